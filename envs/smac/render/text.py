"""A battle as text, and the letters and map window that text and pictures share."""

from typing import Any

import numpy as np
from scipy.ndimage import label

from marl.envs.smac.engine.fields import HEALTH, SHIELD, X, Y
from marl.envs.smac.maps import SIZE, BattleMap

GLYPHS = {
    "marine": "M",
    "marauder": "R",
    "medivac": "V",
    "zealot": "Z",
    "stalker": "S",
    "colossus": "C",
    "zergling": "L",
    "baneling": "B",
    "hydralisk": "H",
    "spine_crawler": "P",
}
"""Letter of each unit type."""


def reachable(battle_map: BattleMap) -> np.ndarray:
    """Return the ground (x, y) bool that is connected to the start of a unit."""
    parts: Any = label(battle_map.walkable)
    parts = parts[0]
    x, y = battle_map.start.astype(int).T
    return np.isin(parts, np.setdiff1d(parts[x, y], 0))


def window(battle_map: BattleMap) -> tuple[int, int, int, int]:
    """Return the west, east, south and north end of the reachable ground, one cell wider."""
    columns, rows = np.nonzero(reachable(battle_map))
    west, south = (max(0, int(axis.min()) - 1) for axis in (columns, rows))
    east, north = (min(SIZE, int(axis.max()) + 2) for axis in (columns, rows))
    return west, east, south, north


def draw_text(battle_map: BattleMap, unit_float: np.ndarray, title: str) -> str:
    """Draw the map from north to south, `#` for walls and capitals for agents, with health and shields below."""
    canvas = np.where(battle_map.walkable.T, ".", "#")
    lines = {"allies": [], "enemies": []}
    for unit, kind in enumerate(battle_map.types):
        ally = unit < battle_map.num_agents
        if unit_float[HEALTH, unit] > 0:
            glyph = GLYPHS[kind]
            canvas[int(unit_float[Y, unit]), int(unit_float[X, unit])] = glyph if ally else glyph.lower()
        shield = f"+{unit_float[SHIELD, unit]:.0f}" if unit_float[SHIELD, unit] > 0 else ""
        lines["allies" if ally else "enemies"].append(f"{kind} {unit_float[HEALTH, unit]:.0f}{shield}")
    west, east, south, north = window(battle_map)
    rows = ["".join(row[west:east]) for row in canvas[south:north][::-1]]
    return "\n".join([title, *rows, *(f"{side}: {', '.join(units)}" for side, units in lines.items())])
