"""A battle as text."""

import numpy as np

from envs.smac.maps import BattleMap
from envs.smac.rules import HEALTH, SHIELD, X, Y


def draw_text(battle_map: BattleMap, real: np.ndarray, title: str) -> str:
    """The map from north to south, `#` wall, agents in capitals, and every unit's health and shield below."""
    canvas = np.where(battle_map.walkable.T, ".", "#")
    lines = {"allies": [], "enemies": []}
    for unit, kind in enumerate(battle_map.types):
        ally = unit < battle_map.num_agents
        if real[HEALTH, unit] > 0:
            canvas[int(real[Y, unit]), int(real[X, unit])] = kind[0].upper() if ally else kind[0]
        shield = f"+{real[SHIELD, unit]:.0f}" if real[SHIELD, unit] > 0 else ""
        lines["allies" if ally else "enemies"].append(f"{kind} {real[HEALTH, unit]:.0f}{shield}")
    rows = ["".join(row) for row in canvas[::-1]]
    return "\n".join([title, *rows, *(f"{side}: {', '.join(units)}" for side, units in lines.items())])
