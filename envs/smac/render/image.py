"""Image of a battle at one moment, seen from above, north up."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from marl.envs.smac.engine.combat import BURST, BURST_RADIUS, LINE, SPLASH_PITCH, SPLASH_POINTS
from marl.envs.smac.engine.fields import (
    AIM,
    ATTACK,
    ATTACKING,
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
    MENDING,
    MISSILE_SPEED,
    MOVING,
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

MIN_WIDTH, MAX_WIDTH, MAX_HEIGHT, HEADER = 640, 800, 728, 62
"""Pixels. The image is as large as fits. The map is in its middle below the header."""

SUPERSAMPLING = 2
"""Factor by which everything is drawn larger and then scaled down."""

GROUND, GRID, WALL, EDGE = (44, 49, 60), (50, 56, 68), (19, 21, 27), (92, 101, 121)
TEXT, INK, TRACK = (232, 235, 240), (12, 15, 21), (14, 17, 23)
SIDES: tuple[Color, Color] = ((84, 160, 255), (255, 150, 48))
SHOTS: tuple[Color, Color] = ((190, 222, 255), (255, 214, 158))
HEALTH_COLOR, SHIELD_COLOR, HEAL_COLOR, ATTENTION_COLOR = (
    (230, 236, 228),
    (176, 148, 255),
    (88, 232, 128),
    (240, 120, 225),
)

LEVELS = 24
"""Steps in which health and shield are shown."""

TABLE = 72
"""Side of the attention table in pixels."""

FLASH = 4.0
"""Game loops for which a shot is visible."""

BLAST = 7.0
"""Game loops for which an explosion is visible."""

FADE = 24.0
"""Game loops in which the cross of a dead unit fades."""


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
    """Painter of frames on one map, whose units have the statistics `stats`."""

    def __init__(self, battle_map: BattleMap, stats: np.ndarray) -> None:
        self.map, self.stats = battle_map, stats
        self.left, self.right, self.low, self.high = window(battle_map)
        self.scale = SUPERSAMPLING * min(MAX_WIDTH // (self.right - self.left), MAX_HEIGHT // (self.high - self.low))
        width = (self.right - self.left) * self.scale
        self.margin = max(0, SUPERSAMPLING * MIN_WIDTH - width) // 2
        self.fonts = [ImageFont.load_default(SUPERSAMPLING * size) for size in (17, 14)]
        self.ground = self._ground()
        self.sprites: dict[tuple[str, int, int, int], Any] = {}
        self.layers: list[int] = np.lexsort((-stats[RADIUS], stats[FLIES])).tolist()

    def paint(self, frame: Frame, attention: np.ndarray | None = None) -> np.ndarray:
        """Return an image (height, width, 3) uint8 with even sides. `attention` (N, N): weight of the column's agent
        for the row's."""
        picture = self.ground.copy()
        pen = ImageDraw.Draw(picture, "RGBA")
        points = self._pixels(frame.unit_float[X], frame.unit_float[Y])
        alive = frame.unit_float[HEALTH] > 0
        for unit in np.flatnonzero(~alive).tolist():
            self._cross(pen, points[unit], unit, frame.dead_for[unit])
        for agent in np.flatnonzero(alive[: self.map.num_agents]).tolist():
            self._order(pen, points, frame, agent)
        if attention is not None:
            self._attention(pen, points, attention, alive)
        for unit in self.layers:
            if alive[unit]:
                self._stamp(picture, points[unit], unit, frame.unit_float)
        for unit in range(len(alive)):
            self._effects(pen, points, frame, unit, bool(alive[unit]))
        if attention is not None:
            self._attention_table(pen, attention, alive)
        self._write(pen, frame, alive, attention is not None)
        return np.asarray(picture.reduce(SUPERSAMPLING))

    def _pixels(self, x: Any, y: Any) -> np.ndarray:
        """Return points (..., 2) in the enlarged image, whose second axis points south."""
        east, south = (x - self.left) * self.scale, (self.high - y) * self.scale
        return np.stack([east + self.margin, south + SUPERSAMPLING * HEADER], axis=-1)

    def _ground(self) -> Any:
        """Draw the map without units."""
        width, height = self._corner(self.right, self.low)
        width, even = width + self.margin, 2 * SUPERSAMPLING
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
                    pen.line(line, EDGE, 2 * SUPERSAMPLING)
        return picture

    def _corner(self, x: int, y: int) -> np.ndarray:
        return self._pixels(x, y).astype(int)

    def _cross(self, pen: Any, point: np.ndarray, unit: int, dead_for: float) -> None:
        """Draw a cross at a dead unit's place, and an explosion if it blew up."""
        x, y = point
        size = 0.6 * self.stats[RADIUS, unit] * self.scale
        color = (*self._side(unit), int(200 - 120 * min(1.0, dead_for / FADE)))
        for sign in (-1, 1):
            pen.line([x - size, y - sign * size, x + size, y + sign * size], color, 2 * SUPERSAMPLING)
        if self.stats[BURSTS, unit] and dead_for < BLAST:
            share = (1 + dead_for) / (1 + BLAST)
            radius, left = BURST_RADIUS * self.scale * share**0.5, 1.0 - share
            glow, rim = (*self._side(unit), int(120 * left)), (*self._shot(unit), int(255 * left))
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], glow, rim, 2 * SUPERSAMPLING)

    def _order(self, pen: Any, points: np.ndarray, frame: Frame, agent: int) -> None:
        """A thin line from an agent to where or at whom it was sent."""
        order, target = frame.unit_int[ORDER, agent], frame.unit_int[TARGET, agent]
        if order == MOVING:
            goal = self._pixels(frame.unit_float[GOAL_X, agent], frame.unit_float[GOAL_Y, agent])
            pen.line([*points[agent], *goal], (*SIDES[0], 110), SUPERSAMPLING)
            pen.ellipse([*(goal - 2 * SUPERSAMPLING), *(goal + 2 * SUPERSAMPLING)], (*SIDES[0], 150))
        elif order in (ATTACKING, MENDING) and frame.unit_float[HEALTH, target] > 0:
            pen.line(
                [*points[agent], *points[target]],
                (*(SIDES[0] if order == ATTACKING else HEAL_COLOR), 85),
                SUPERSAMPLING,
            )

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

    def _effects(self, pen: Any, points: np.ndarray, frame: Frame, unit: int, alive: bool) -> None:
        """Draw the aim, shot, missile, beam and healing of a unit."""
        unit_float, unit_int, stats = frame.unit_float[:, unit], frame.unit_int[:, unit], self.stats[:, unit]
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
            pen.line([*start, *end], (*color, 70), SUPERSAMPLING)
        since = stats[BACKSWING] - unit_float[RECOVER]
        instant = not stats[MISSILE_SPEED] and stats[ATTACK] not in (LINE, BURST)
        if instant and unit_float[RECOVER] > 0 and since < FLASH:
            start, end = self._shot_line(points, unit, unit_int[VICTIM])
            shade = (*color, int(255 * (1.0 - since / FLASH)))
            pen.line([*start, *end], shade, 2 * SUPERSAMPLING)
            pen.ellipse([*(end - 3 * SUPERSAMPLING), *(end + 3 * SUPERSAMPLING)], shade)
        if unit_int[HEALING] >= 0:
            self._heal(pen, points[unit], points[unit_int[HEALING]], self.stats[RADIUS, unit_int[HEALING]] * self.scale)

    def _shot_line(self, points: np.ndarray, unit: int, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a line from within the shooter's disc to within the target's."""
        way = points[target] - points[unit]
        way = way / max(1e-9, float(np.hypot(*way))) * self.scale
        near, far = 0.8 * self.stats[RADIUS, unit], 0.6 * self.stats[RADIUS, target]
        return points[unit] + near * way, points[target] - far * way

    def _missile(self, pen: Any, end: np.ndarray, start: np.ndarray, left: float, color: Color) -> None:
        """Draw a dot with a tail, `left` pixels before `end`."""
        back = start - end
        back = back / max(1e-9, float(np.hypot(*back)))
        head = end + back * left
        pen.line([*head, *(head + back * 0.7 * self.scale)], (*color, 120), 2 * SUPERSAMPLING)
        pen.ellipse([*(head - 3 * SUPERSAMPLING), *(head + 3 * SUPERSAMPLING)], (*color, 255))

    def _beam(self, pen: Any, points: np.ndarray, unit: int, target: int, share: float) -> None:
        """Draw a beam that sweeps across its target."""
        way = points[target] - points[unit]
        across = np.array([way[1], -way[0]]) / max(1e-9, float(np.hypot(*way)))
        reach = across * SPLASH_POINTS * SPLASH_PITCH * self.scale
        start, now = points[target] - reach, points[target] - reach + 2.0 * share * reach
        pen.line([*start, *now], (*self._side(unit), 220), 3 * SUPERSAMPLING)
        pen.line([*points[unit], *now], (*self._shot(unit), 230), 2 * SUPERSAMPLING)

    def _heal(self, pen: Any, start: np.ndarray, end: np.ndarray, radius: float) -> None:
        """Draw a line to a healed unit of that radius, and a plus sign beside it."""
        pen.line([*start, *end], (*HEAL_COLOR, 190), 2 * SUPERSAMPLING)
        arm, half = 5 * SUPERSAMPLING, SUPERSAMPLING
        x, y = end + radius * np.array([0.9, -0.9])
        pen.rectangle([x - arm, y - half, x + arm, y + half], (*HEAL_COLOR, 255))
        pen.rectangle([x - half, y - arm, x + half, y + arm], (*HEAL_COLOR, 255))

    def _attention(self, pen: Any, points: np.ndarray, attention: np.ndarray, alive: np.ndarray) -> None:
        """Draw curves from each agent to the agents it attends to, strong ones last."""
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
            shade, width = (*ATTENTION_COLOR, int(40 + 200 * weight)), SUPERSAMPLING * (1.0 + 4.0 * weight)
            pen.line([tuple(point) for point in curve], shade, round(width), joint="curve")
            pen.ellipse([*(end - 1.4 * width), *(end + 1.4 * width)], (*ATTENTION_COLOR, int(90 + 160 * weight)))

    def _attention_table(self, pen: Any, attention: np.ndarray, alive: np.ndarray) -> None:
        """Draw the weights in the corner of the map, since curves of close agents hide. Rows attend to columns."""
        agents, side = len(attention), TABLE * SUPERSAMPLING
        cell = side / agents
        left, top = self.ground.width - side - 8 * SUPERSAMPLING, (HEADER + 8) * SUPERSAMPLING
        pen.rectangle([left, top, left + side, top + side], (*INK, 200))
        for i, j in np.argwhere(attention > 0).tolist():
            if alive[i] and alive[j]:
                corner = np.array([left + j * cell, top + i * cell])
                pen.rectangle([*corner, *(corner + cell - 1)], (*ATTENTION_COLOR, int(255 * min(1.0, attention[i, j]))))

    def _write(self, pen: Any, frame: Frame, alive: np.ndarray, attention: bool) -> None:
        """Write the caption and the numbers of living units, in the colors of the sides."""
        large, small = self.fonts
        pen.text((12 * SUPERSAMPLING, 8 * SUPERSAMPLING), frame.caption, TEXT, large)
        x = 12 * SUPERSAMPLING
        for side, units in enumerate((range(self.map.num_agents), range(self.map.num_agents, len(alive)))):
            text = _count_living(self.map.types, alive, units)
            pen.text((x, 35 * SUPERSAMPLING), text, SIDES[side], small)
            x += round(pen.textlength(text, small)) + 24 * SUPERSAMPLING
        if attention:
            words = "curves, and rows of the table: whose action an agent looks at"
            pen.text((12 * SUPERSAMPLING, self.ground.height - 6 * SUPERSAMPLING), words, ATTENTION_COLOR, small, "ld")

    def _side(self, unit: int) -> Color:
        return SIDES[int(unit >= self.map.num_agents)]

    def _shot(self, unit: int) -> Color:
        return SHOTS[int(unit >= self.map.num_agents)]


BORDERS = {(1, 0): ((1, 0), (1, 1)), (-1, 0): ((0, 0), (0, 1)), (0, 1): ((0, 1), (1, 1)), (0, -1): ((0, 0), (1, 0))}
"""Ends of the line on a cell's side towards each neighbor."""


def _level(share: float) -> int:
    """Return the step of a share: 0 only for nothing, LEVELS only for everything."""
    return int(np.ceil(share * LEVELS))


def _count_living(types: tuple[str, ...], alive: np.ndarray, units: range) -> str:
    """Return the numbers of living units of one side by type, each with its letter."""
    kinds = {types[unit]: 0 for unit in units}
    for unit in units:
        kinds[types[unit]] += bool(alive[unit])
    counts = ", ".join(f"{count} {kind.replace('_', ' ')} ({GLYPHS[kind]})" for kind, count in kinds.items())
    return f"{sum(kinds.values())} of {len(units)} alive: {counts}"


def _sprite(radius: float, color: Color, glyph: str, health: int, shield: int) -> Any:
    """Draw a disc of a unit's radius with a letter; its inner rim shows the health, its outer one the shield."""
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
        rim(inside, 0.83, shield, SHIELD_COLOR)
        inside = 0.79
    rim(inside, inside - 0.18, health, HEALTH_COLOR)
    pen.ellipse(disc(inside - 0.22), (*color, 255))
    font = ImageFont.load_default(1.5 * (inside - 0.22) * radius * fine)
    pen.text((middle, middle), glyph, INK, font, "mm", stroke_width=radius * fine * 0.02, stroke_fill=INK)
    return picture.reduce(fine)
