"""One moment of a battle as a picture: seen from above, north up."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marl.envs.smac.engine.combat import (
    ATTACKING,
    BURST,
    BURST_RADIUS,
    GOING,
    LINE,
    MENDING,
    SPLASH_PITCH,
    SPLASH_POINTS,
)
from marl.envs.smac.engine.fields import (
    AIM,
    ATTACK,
    BACKSWING,
    BURSTS,
    FLIES,
    GOAL_X,
    GOAL_Y,
    HEALING,
    HEALTH,
    HIT_DELAY,
    IMPACT,
    MAX_HEALTH,
    MAX_SHIELD,
    MISSILE_SPEED,
    ORDER,
    RADIUS,
    RECOVER,
    SHIELD,
    TARGET,
    VICTIM,
    WINDUP,
    X,
    Y,
)
from marl.envs.smac.maps import BattleMap
from marl.envs.smac.render.text import GLYPHS, reachable, window
from marl.errors import MissingDependencyError

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise MissingDependencyError(
        "pictures of battles need pillow; install with: pip install 'seqmarl[smac]'"
    ) from error

Color = tuple[int, int, int]

NARROWEST, WIDEST, HIGHEST, HEADER = 640, 800, 728, 62
"""Pixels: the picture is as large as fits, and the map stands in its middle below the header."""

FINE = 2
"""Everything is drawn so many times larger and scaled down."""

GROUND, GRID, WALL, EDGE = (44, 49, 60), (50, 56, 68), (19, 21, 27), (92, 101, 121)
TEXT, INK, TRACK = (232, 235, 240), (12, 15, 21), (14, 17, 23)
SIDES: tuple[Color, Color] = ((84, 160, 255), (255, 150, 48))
SHOTS: tuple[Color, Color] = ((190, 222, 255), (255, 214, 158))
HEALTHY, SHIELDED, MENDED, LOOKED = (230, 236, 228), (176, 148, 255), (88, 232, 128), (240, 120, 225)

LEVELS = 24
"""Steps in which health and shield are shown."""

TABLE = 72
"""Pixels of each side of the table of attention."""

FLASH = 4.0
"""Game loops for which a shot is seen."""

BLAST = 7.0
"""Game loops for which an explosion is seen."""

FADE = 24.0
"""Game loops in which the cross of a dead unit becomes faint."""


@dataclass(frozen=True)
class Frame:
    """Contents of one frame: unit fields (see `marl.envs.smac.engine.fields`) and a caption.

    `dead_for` (U,): game loops since each unit died.
    """

    unit_float: np.ndarray
    unit_int: np.ndarray
    dead_for: np.ndarray
    caption: str


class Painter:
    """Paints moments on one map, whose units have the statistics `stats`."""

    def __init__(self, battle_map: BattleMap, stats: np.ndarray) -> None:
        self.map, self.stats = battle_map, stats
        self.left, self.right, self.low, self.high = window(battle_map)
        self.scale = FINE * min(WIDEST // (self.right - self.left), HIGHEST // (self.high - self.low))
        width = (self.right - self.left) * self.scale
        self.margin = max(0, FINE * NARROWEST - width) // 2
        self.fonts = [ImageFont.load_default(FINE * size) for size in (17, 14)]
        self.ground = self._ground()
        self.sprites: dict[tuple[str, int, int, int], Any] = {}
        self.layers: list[int] = np.lexsort((-stats[RADIUS], stats[FLIES])).tolist()

    def paint(self, moment: Frame, attention: np.ndarray | None = None) -> np.ndarray:
        """(height, width, 3) uint8, both even; `attention` (N, N): how much the row's agent looks at the column's."""
        picture = self.ground.copy()
        pen = ImageDraw.Draw(picture, "RGBA")
        points = self._pixels(moment.unit_float[X], moment.unit_float[Y])
        alive = moment.unit_float[HEALTH] > 0
        for unit in np.flatnonzero(~alive).tolist():
            self._cross(pen, points[unit], unit, moment.dead_for[unit])
        for agent in np.flatnonzero(alive[: self.map.num_agents]).tolist():
            self._order(pen, points, moment, agent)
        if attention is not None:
            self._looks(pen, points, attention, alive)
        for unit in self.layers:
            if alive[unit]:
                self._stamp(picture, points[unit], unit, moment.unit_float)
        for unit in range(len(alive)):
            self._effects(pen, points, moment, unit, bool(alive[unit]))
        if attention is not None:
            self._table(pen, attention, alive)
        self._write(pen, moment, alive, attention is not None)
        return np.asarray(picture.reduce(FINE))

    def _pixels(self, x: Any, y: Any) -> np.ndarray:
        """(..., 2) places in the fine picture, whose second axis points south."""
        east, south = (x - self.left) * self.scale, (self.high - y) * self.scale
        return np.stack([east + self.margin, south + FINE * HEADER], axis=-1)

    def _ground(self) -> Any:
        """The picture without units."""
        width, height = self._corner(self.right, self.low)
        width, even = width + self.margin, 2 * FINE
        picture = Image.new("RGB", (-(-width // even) * even, -(-height // even) * even), WALL)
        pen = ImageDraw.Draw(picture)
        ground = np.pad(reachable(self.map), 1)
        cells = [(x, y) for x in range(self.left, self.right) for y in range(self.low, self.high)]
        for x, y in cells:
            if ground[x + 1, y + 1]:
                pen.rectangle([*self._corner(x, y + 1), *(self._corner(x + 1, y) - 1)], GROUND, GRID)
        for x, y in cells:
            for (dx, dy), (start, end) in BORDERS.items():
                if ground[x + 1, y + 1] and not ground[x + 1 + dx, y + 1 + dy]:
                    line = [*self._corner(x + start[0], y + start[1]), *self._corner(x + end[0], y + end[1])]
                    pen.line(line, EDGE, 2 * FINE)
        return picture

    def _corner(self, x: int, y: int) -> np.ndarray:
        return self._pixels(x, y).astype(int)

    def _cross(self, pen: Any, point: np.ndarray, unit: int, dead_for: float) -> None:
        """Where a unit died; a suicide unit's explosion around it, while it lasts."""
        x, y = point
        size = 0.6 * self.stats[RADIUS, unit] * self.scale
        color = (*self._side(unit), int(200 - 120 * min(1.0, dead_for / FADE)))
        for sign in (-1, 1):
            pen.line([x - size, y - sign * size, x + size, y + sign * size], color, 2 * FINE)
        if self.stats[BURSTS, unit] and dead_for < BLAST:
            share = (1 + dead_for) / (1 + BLAST)
            radius, left = BURST_RADIUS * self.scale * share**0.5, 1.0 - share
            glow, rim = (*self._side(unit), int(120 * left)), (*self._shot(unit), int(255 * left))
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], glow, rim, 2 * FINE)

    def _order(self, pen: Any, points: np.ndarray, moment: Frame, agent: int) -> None:
        """A thin line from an agent to where or at whom it was sent."""
        order, target = moment.unit_int[ORDER, agent], moment.unit_int[TARGET, agent]
        if order == GOING:
            goal = self._pixels(moment.unit_float[GOAL_X, agent], moment.unit_float[GOAL_Y, agent])
            pen.line([*points[agent], *goal], (*SIDES[0], 110), FINE)
            pen.ellipse([*(goal - 2 * FINE), *(goal + 2 * FINE)], (*SIDES[0], 150))
        elif order in (ATTACKING, MENDING) and moment.unit_float[HEALTH, target] > 0:
            pen.line([*points[agent], *points[target]], (*(SIDES[0] if order == ATTACKING else MENDED), 85), FINE)

    def _stamp(self, picture: Any, point: np.ndarray, unit: int, unit_float: np.ndarray) -> None:
        """A living unit."""
        health = _level(unit_float[HEALTH, unit] / self.stats[MAX_HEALTH, unit])
        shield = _level(unit_float[SHIELD, unit] / self.stats[MAX_SHIELD, unit]) if self.stats[MAX_SHIELD, unit] else -1
        key = (self.map.types[unit], int(unit >= self.map.num_agents), health, shield)
        if key not in self.sprites:
            radius = self.stats[RADIUS, unit] * self.scale
            sprite = _sprite(radius, self._side(unit), GLYPHS[key[0]], health, shield)
            if self.stats[FLIES, unit]:
                sprite.putalpha(sprite.getchannel("A").point(lambda value: 4 * value // 5))
            self.sprites[key] = sprite
        sprite = self.sprites[key]
        left, top = np.rint(point - sprite.width / 2).astype(int)
        picture.paste(sprite, (int(left), int(top)), sprite)

    def _effects(self, pen: Any, points: np.ndarray, moment: Frame, unit: int, alive: bool) -> None:
        """What a unit does: aims, shoots, has a missile or a beam on its way, heals."""
        unit_float, unit_int, stats = moment.unit_float[:, unit], moment.unit_int[:, unit], self.stats[:, unit]
        color = self._shot(unit)
        if unit_float[IMPACT] > 0 and stats[ATTACK] == LINE:
            self._beam(pen, points, unit, unit_int[VICTIM], 1.0 - unit_float[IMPACT] / stats[HIT_DELAY])
        elif unit_float[IMPACT] > 0 and stats[MISSILE_SPEED] > 0:
            start, end = self._shot_line(points, unit, unit_int[VICTIM])
            self._missile(pen, end, start, unit_float[IMPACT] * stats[MISSILE_SPEED] * self.scale, color)
        if not alive:
            return
        if unit_float[WINDUP] > 0:
            start, end = self._shot_line(points, unit, unit_int[AIM])
            pen.line([*start, *end], (*color, 70), FINE)
        since = stats[BACKSWING] - unit_float[RECOVER]
        instant = not stats[MISSILE_SPEED] and stats[ATTACK] not in (LINE, BURST)
        if instant and unit_float[RECOVER] > 0 and since < FLASH:
            start, end = self._shot_line(points, unit, unit_int[VICTIM])
            shade = (*color, int(255 * (1.0 - since / FLASH)))
            pen.line([*start, *end], shade, 2 * FINE)
            pen.ellipse([*(end - 3 * FINE), *(end + 3 * FINE)], shade)
        if unit_int[HEALING] >= 0:
            self._heal(pen, points[unit], points[unit_int[HEALING]], self.stats[RADIUS, unit_int[HEALING]] * self.scale)

    def _shot_line(self, points: np.ndarray, unit: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """From within a shooter's disc to within its target's."""
        way = points[target] - points[unit]
        way = way / max(1e-9, float(np.hypot(*way))) * self.scale
        near, far = 0.8 * self.stats[RADIUS, unit], 0.6 * self.stats[RADIUS, target]
        return points[unit] + near * way, points[target] - far * way

    def _missile(self, pen: Any, end: np.ndarray, start: np.ndarray, left: float, color: Color) -> None:
        """A dot with a tail, `left` pixels before `end`."""
        back = start - end
        back = back / max(1e-9, float(np.hypot(*back)))
        head = end + back * left
        pen.line([*head, *(head + back * 0.7 * self.scale)], (*color, 120), 2 * FINE)
        pen.ellipse([*(head - 3 * FINE), *(head + 3 * FINE)], (*color, 255))

    def _beam(self, pen: Any, points: np.ndarray, unit: int, target: int, share: float) -> None:
        """A beam that sweeps across its target."""
        way = points[target] - points[unit]
        across = np.array([way[1], -way[0]]) / max(1e-9, float(np.hypot(*way)))
        reach = across * SPLASH_POINTS * SPLASH_PITCH * self.scale
        start, now = points[target] - reach, points[target] - reach + 2.0 * share * reach
        pen.line([*start, *now], (*self._side(unit), 220), 3 * FINE)
        pen.line([*points[unit], *now], (*self._shot(unit), 230), 2 * FINE)

    def _heal(self, pen: Any, start: np.ndarray, end: np.ndarray, radius: float) -> None:
        """A line to a patient of that radius, and a plus sign at its shoulder."""
        pen.line([*start, *end], (*MENDED, 190), 2 * FINE)
        arm, half = 5 * FINE, FINE
        x, y = end + radius * np.array([0.9, -0.9])
        pen.rectangle([x - arm, y - half, x + arm, y + half], (*MENDED, 255))
        pen.rectangle([x - half, y - arm, x + half, y + arm], (*MENDED, 255))

    def _looks(self, pen: Any, points: np.ndarray, attention: np.ndarray, alive: np.ndarray) -> None:
        """Curves from each agent to a dot at those that it looks at, the stronger the more; weak ones come first."""
        rows, columns = np.nonzero(attention > 0)
        pairs = sorted((float(attention[i, j]), i, j) for i, j in zip(rows, columns, strict=True) if i != j)
        bend = np.linspace(0.0, 1.0, 17)[:, None]
        for weight, i, j in pairs:
            if not (alive[i] and alive[j]):
                continue
            way = points[j] - points[i]
            middle = (points[i] + points[j]) / 2 + 0.18 * np.array([way[1], -way[0]])
            back = (middle - points[j]) / max(1e-9, float(np.hypot(*(middle - points[j]))))
            end = points[j] + back * self.stats[RADIUS, j] * self.scale
            curve = (1 - bend) ** 2 * points[i] + 2 * bend * (1 - bend) * middle + bend**2 * end
            shade, width = (*LOOKED, int(40 + 200 * weight)), FINE * (1.0 + 4.0 * weight)
            pen.line([tuple(point) for point in curve], shade, round(width), joint="curve")
            pen.ellipse([*(end - 1.4 * width), *(end + 1.4 * width)], (*LOOKED, int(90 + 160 * weight)))

    def _table(self, pen: Any, attention: np.ndarray, alive: np.ndarray) -> None:
        """The weights in the corner of the map, as close agents hide their curves: rows look at columns, and on the
        diagonal is what an agent gave to none."""
        agents, side = len(attention), TABLE * FINE
        cell = side / agents
        left, top = self.ground.width - side - 8 * FINE, (HEADER + 8) * FINE
        pen.rectangle([left, top, left + side, top + side], (*INK, 200))
        for i, j in np.argwhere(attention > 0).tolist():
            if alive[i] and alive[j]:
                corner = np.array([left + j * cell, top + i * cell])
                pen.rectangle([*corner, *(corner + cell - 1)], (*LOOKED, int(255 * min(1.0, attention[i, j]))))

    def _write(self, pen: Any, moment: Frame, alive: np.ndarray, attention: bool) -> None:
        """The caption, and below it who lives, in the colors of the sides."""
        large, small = self.fonts
        pen.text((12 * FINE, 8 * FINE), moment.caption, TEXT, large)
        x = 12 * FINE
        for side, units in enumerate((range(self.map.num_agents), range(self.map.num_agents, len(alive)))):
            text = _census(self.map.types, alive, units)
            pen.text((x, 35 * FINE), text, SIDES[side], small)
            x += round(pen.textlength(text, small)) + 24 * FINE
        if attention:
            words = "curves, and rows of the table: whose action an agent looks at"
            pen.text((12 * FINE, self.ground.height - 6 * FINE), words, LOOKED, small, "ld")

    def _side(self, unit: int) -> Color:
        return SIDES[int(unit >= self.map.num_agents)]

    def _shot(self, unit: int) -> Color:
        return SHOTS[int(unit >= self.map.num_agents)]


BORDERS = {(1, 0): ((1, 0), (1, 1)), (-1, 0): ((0, 0), (0, 1)), (0, 1): ((0, 1), (1, 1)), (0, -1): ((0, 0), (1, 0))}
"""The side of a cell towards each neighbor: the ends of a line."""


def _level(share: float) -> int:
    """0 only for nothing, LEVELS only for everything that can be told from it."""
    return int(np.ceil(share * LEVELS))


def _census(types: tuple[str, ...], alive: np.ndarray, units: range) -> str:
    """How many of one side live, by type, each with its letter."""
    kinds = {types[unit]: 0 for unit in units}
    for unit in units:
        kinds[types[unit]] += bool(alive[unit])
    counts = ", ".join(f"{count} {kind.replace('_', ' ')} ({GLYPHS[kind]})" for kind, count in kinds.items())
    return f"{sum(kinds.values())} of {len(units)} alive: {counts}"


def _sprite(radius: float, color: Color, glyph: str, health: int, shield: int) -> Any:
    """A disc of its true radius with a letter; its inner rim is the health left, its outer one the shield."""
    fine = 3
    size = int(np.ceil(radius * 1.02)) * 2
    middle = size * fine / 2
    picture = Image.new("RGBA", (size * fine, size * fine), (*TRACK, 0))
    pen = ImageDraw.Draw(picture)

    def disc(share: float) -> list[float]:
        reach = radius * fine * share
        return [middle - reach, middle - reach, middle + reach, middle + reach]

    def rim(outer: float, inner: float, level: int, shade: Color) -> None:
        pen.pieslice(disc(outer), -90, -90 + 360 * level / LEVELS, (*shade, 255))
        pen.ellipse(disc(inner), (*TRACK, 255))

    pen.ellipse(disc(1.0), (*TRACK, 255))
    inside = 0.96
    if shield >= 0:
        rim(inside, 0.83, shield, SHIELDED)
        inside = 0.79
    rim(inside, inside - 0.18, health, HEALTHY)
    pen.ellipse(disc(inside - 0.22), (*color, 255))
    font = ImageFont.load_default(1.5 * (inside - 0.22) * radius * fine)
    pen.text((middle, middle), glyph, INK, font, "mm", stroke_width=radius * fine * 0.02, stroke_fill=INK)
    return picture.reduce(fine)
