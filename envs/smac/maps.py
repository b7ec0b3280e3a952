"""Maps and units as data: types, starts, ground, statistics."""

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from marl.errors import UnknownNameError
from marl.registry import unknown_name_message

DATA: dict[str, Any] = json.loads(files("marl.envs.smac").joinpath("data.json").read_text("utf-8"))
"""`units`, `terrain`, `maps` and the game's defaults; see its `note` for units of measure."""

TASKS: tuple[str, ...] = tuple(DATA["maps"])
"""Names of SMAC's maps."""

UNIT_TYPES: tuple[str, ...] = tuple(sorted(DATA["units"]))
"""Types of units on all maps."""

TEAM_TASKS: dict[str, tuple[str, int, int]] = {
    f"{race}_{agents}_vs_{enemies}": (race, agents, enemies)
    for race in DATA["teams"]["races"]
    for agents, enemies in DATA["teams"]["sizes"]
}
"""SMACv2's scenarios: race, number of agents and number of enemies by name."""

SIZE = 32
"""Width and height of every map, in cells."""

LOOPS = float(DATA["engine"]["loops_per_second"])
"""Game loops in a second of game time."""


@dataclass(frozen=True)
class BattleMap:
    """A map with U = N + M units: N allies in the order of agents, then M enemies.

    `types` (U,): names. `start` (U, 2): x and y. `walkable` (x, y) bool. `goals` (2, 2): ends of the line on which the
    enemy's destination is drawn. `order`: the enemy's first order (none, point, units or nearest). `ally_types`,
    `enemy_types`: order of the one-hot unit types, empty without types.

    `kinds` (K,): types of which teams are drawn, in the order that numbers agents, with `weights`. `dependent`: the
    type that forms no team alone, or "". With kinds, `types` and `start` hold only until an episode begins.
    """

    name: str
    limit: int
    types: tuple[str, ...]
    num_agents: int
    start: np.ndarray
    walkable: np.ndarray
    order: str
    goals: np.ndarray
    ally_types: tuple[str, ...]
    enemy_types: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    weights: tuple[int, ...] = ()
    dependent: str = ""

    @property
    def num_enemies(self) -> int:
        """Number of enemies M."""
        return len(self.types) - self.num_agents

    @property
    def convex(self) -> bool:
        """True if the ground is one rectangle, so that no wall stands between two units."""
        columns, rows = self.walkable.any(axis=1), self.walkable.any(axis=0)
        return bool((self.walkable == np.outer(columns, rows)).all())


@functools.lru_cache
def load_map(name: str) -> BattleMap:
    """Return a map. Raises UnknownNameError with the closest names."""
    if name in TEAM_TASKS:
        return _team_map(name)
    if name not in DATA["maps"]:
        raise UnknownNameError(unknown_name_message("task of smac", name, (*TASKS, *TEAM_TASKS)))
    data = DATA["maps"][name]
    walkable = _ground(data["terrain"])
    center = {side: _center(data["spawns"], side) for side in ("ally", "enemy")}
    placed = {side: _place(data["spawns"], side, center, walkable) for side in center}
    allies = sorted(placed["ally"])  # by type, then x, then y: unit ids follow the alphabet
    units = [*allies, *placed["enemy"]]
    ally_types, enemy_types = _one_hot_types([unit[0] for unit in allies], [unit[0] for unit in placed["enemy"]])
    goals = np.array(data["enemy_points"] or [center["ally"]], dtype=np.float64)
    return BattleMap(
        name=name,
        limit=data["limit"],
        types=tuple(unit[0] for unit in units),
        num_agents=len(allies),
        start=np.array([unit[1:] for unit in units], dtype=np.float64),
        walkable=walkable,
        order=data["enemy_order"],
        goals=goals[[0, -1]],
        ally_types=ally_types,
        enemy_types=enemy_types,
    )


def _ground(terrain: str) -> np.ndarray:
    """Return the walkable cells (x, y) bool."""
    return np.array([[cell == "." for cell in row] for row in reversed(DATA["terrain"][terrain])]).T


def _team_map(name: str) -> BattleMap:
    """Return the map of a SMACv2 scenario."""
    race, agents, enemies = TEAM_TASKS[name]
    teams, data = DATA["teams"], DATA["teams"]["races"][race]
    weights = dict(zip(data["types"], data["weights"], strict=True))
    kinds, types = tuple(sorted(weights)), tuple(data["types"])
    center = np.full((agents + enemies, 2), SIZE / 2.0)
    return BattleMap(
        name=name,
        limit=teams["limit"],
        types=kinds[:1] * len(center),
        num_agents=agents,
        start=center,
        walkable=_ground(teams["terrain"]),
        order="nearest",
        goals=center[:2],
        ally_types=types,
        enemy_types=types,
        kinds=kinds,
        weights=tuple(weights[kind] for kind in kinds),
        dependent=data["dependent"],
    )


def _center(spawns: list[dict[str, Any]], side: str) -> tuple[float, float]:
    points = [spawn["point"] for spawn in spawns if spawn["side"] == side for _ in range(spawn["count"])]
    x, y = np.mean(points, axis=0)
    return float(x), float(y)


def _one_hot_types(allies: list[str], enemies: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the order of types of allies and enemies. SMAC reverses the enemy's stalkers and zealots where they are
    the only types."""
    types = tuple(sorted(set(allies)))
    if len(types) < 2:
        return (), ()
    if types == ("stalker", "zealot") and set(enemies) == set(types):
        return types, ("zealot", "stalker")
    return types, types


Unit = tuple[str, float, float]


def _place(
    spawns: list[dict[str, Any]], side: str, center: dict[str, tuple[float, float]], walkable: np.ndarray
) -> list[Unit]:
    """Return units in order of creation, each on the free spot next to its spawn point.

    Spots form a hexagonal lattice, nearest first and towards the opponent first, so that both sides of a symmetric map
    mirror each other.
    """
    offsets = lattice(center[side], center["enemy" if side == "ally" else "ally"])
    placed: list[Unit] = []
    for spawn in spawns:
        if spawn["side"] == side:
            for _ in range(spawn["count"]):
                placed.append(nearest_free(spawn["unit"], np.array(spawn["point"]) + offsets, placed, walkable))
    return placed


def lattice(own: tuple[float, float], other: tuple[float, float]) -> np.ndarray:
    """Return offsets (K, 2), nearest first, of a hexagonal lattice that faces from `own` to `other`."""
    pitch = 0.375
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(-30, 31), np.arange(-30, 31)))
    along, across = pitch * np.sqrt(0.75) * i, pitch * (j + 0.5 * (i % 2))
    order = np.lexsort((-across, np.abs(across).round(6), -along.round(6), np.hypot(along, across).round(6)))
    ahead = np.subtract(other, own) / np.hypot(*np.subtract(other, own))
    left = np.array([-ahead[1], ahead[0]]) * (1.0 if ahead[0] >= 0 else -1.0)
    return along[order, None] * ahead + across[order, None] * left


def nearest_free(kind: str, spots: np.ndarray, placed: list[Unit], walkable: np.ndarray) -> Unit:
    """Place a unit on the first of the spots (K, 2) that is walkable and touches no `placed` unit of its plane."""
    unit = DATA["units"][kind]
    radius, flies = unit["separation_radius"], unit["plane"] == "air"
    cells = np.clip(spots.astype(int), 0, SIZE - 1)
    free = walkable[cells[:, 0], cells[:, 1]] | flies
    for other, x, y in placed:
        data = DATA["units"][other]
        if (data["plane"] == "air") == flies:
            apart = np.hypot(spots[:, 0] - x, spots[:, 1] - y)
            free &= apart > radius + data["separation_radius"] - 1e-6
    x, y = spots[np.flatnonzero(free)[0]]
    return kind, float(x), float(y)


@functools.lru_cache
def waypoints(name: str) -> np.ndarray:
    """Return the cell to walk straight to on the way from the first cell to the second, (cells, cells) int16.

    A cell is x * 32 + y. It is the second cell itself where nothing stands between, or where no way exists.
    """
    from scipy.sparse.csgraph import dijkstra

    battle_map = load_map(name)
    walkable = _reachable(battle_map.walkable, battle_map.start[0])
    _, before = dijkstra(_neighbors(walkable), return_predecessors=True)
    clear = _clear_lines(walkable)
    every = np.arange(SIZE * SIZE, dtype=np.int32)
    toward = np.broadcast_to(every, before.shape).copy()
    last = np.where(before < 0, every, before)  # the cell before `toward` on the way to it
    rows = np.arange(SIZE * SIZE)[:, None]
    while True:
        blocked = ~clear[rows, toward] & (last[rows, toward] != toward) & (last[rows, toward] != rows)
        if not blocked.any():
            return toward.astype(np.int16)
        toward = np.where(blocked, last[rows, toward], toward)


def _reachable(walkable: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the ground that is connected to the cell of `start`."""
    from scipy.ndimage import label

    parts: Any = label(walkable)
    parts = parts[0]
    return parts == parts[int(start[0]), int(start[1])]


def _neighbors(walkable: np.ndarray) -> Any:
    """Return the graph of steps between cells. A diagonal step must not cut a corner."""
    from scipy.sparse import coo_matrix

    x, y = np.nonzero(walkable)
    starts, ends, lengths = [], [], []
    padded = np.pad(walkable, 1)
    for dx, dy in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        open_ = padded[x + dx + 1, y + dy + 1] & padded[x + dx + 1, y + 1] & padded[x + 1, y + dy + 1]
        starts.append((x * SIZE + y)[open_])
        ends.append(((x + dx) * SIZE + y + dy)[open_])
        lengths.append(np.full(open_.sum(), np.hypot(dx, dy)))
    index = (np.concatenate(starts), np.concatenate(ends))
    return coo_matrix((np.concatenate(lengths), index), shape=(SIZE * SIZE, SIZE * SIZE)).tocsr()


def _clear_lines(walkable: np.ndarray) -> np.ndarray:
    """Return whether a strip of 0.9 around the line between two cell centers is walkable, (cells, cells) bool."""
    cells = np.flatnonzero(walkable)
    center = np.stack(np.divmod(cells, SIZE), axis=1) + 0.5
    clear = np.zeros((SIZE * SIZE, SIZE * SIZE), bool)
    steps = np.linspace(0.0, 1.0, 2 * SIZE)
    for cell, here in zip(cells, center, strict=True):
        line = center - here
        length = np.maximum(np.hypot(line[:, 0], line[:, 1]), 1e-9)[:, None]
        side = np.stack([-line[:, 1], line[:, 0]], axis=1) / length * 0.45
        good = np.ones(len(cells), bool)
        for shift in (-1.0, 1.0):
            points = here + shift * side[:, None] + steps[:, None] * line[:, None]
            index = points.astype(int)
            good &= walkable[index[..., 0], index[..., 1]].all(axis=1)
        clear[cell, cells] = good
    return clear
