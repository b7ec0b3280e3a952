"""Plans of the Zerg opponent: openings, phases, armies, pace by level."""

import numpy as np

from marl.envs.text_starcraft.data.names import MAX_TYPES, ZERG_UNITS
from marl.envs.text_starcraft.data.tables import REINSTALL, number, read_table
from marl.errors import ConfigError

PHASES = ("open", "mid", "late", "final")
BUILDS = ("rush", "timing", "power", "macro", "air")
_LATE_BUILDS = ("core", "high_tech", "special", "mixed", "air")
RUSH, TIMING, POWER_BUILD, MACRO = range(4)
SCRIPT_SECOND = 16
"""Game loops of a second of the opponent's scripts."""
TABLED_LEVELS = 6


def _phases() -> tuple[np.ndarray, np.ndarray]:
    """Food and loops (levels, phases, builds). Raises ConfigError where a row is missing."""
    food = np.full((TABLED_LEVELS, 4, 5), -1, np.int64)
    loops = np.zeros((TABLED_LEVELS, 4, 5), np.int64)
    name = "zerg_phases.csv"
    for row in read_table(name):
        phase = PHASES.index(row["phase"])
        builds = BUILDS if phase < 2 else _LATE_BUILDS
        place = int(number(name, row, "level")) - 1, phase, builds.index(row["build"])
        food[place] = number(name, row, "food")
        loops[place] = SCRIPT_SECOND * number(name, row, "seconds")
    if (food < 0).any():
        level, phase, build = np.argwhere(food < 0)[0]
        label = (BUILDS if phase < 2 else _LATE_BUILDS)[build]
        raise ConfigError(f"{name}: no row for level {level + 1}, phase {PHASES[phase]}, build {label}; {REINSTALL}")
    return food, loops


PHASE_FOOD, PHASE_LOOPS = _phases()


def _plans() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return shares of units, weights by phase, levels, and use against air of every plan."""
    name = "zerg_plans.csv"
    rows = read_table(name)
    levels, weights = np.zeros((len(rows), 2), np.int64), np.zeros((len(rows), 4), np.int64)
    antiair, shares = np.zeros(len(rows), np.int64), np.zeros((len(rows), MAX_TYPES))
    for index, row in enumerate(rows):
        levels[index] = number(name, row, "first_level"), number(name, row, "last_level")
        weights[index] = [number(name, row, phase) for phase in PHASES]
        antiair[index] = number(name, row, "antiair")
        for unit in set(ZERG_UNITS) & set(row):
            shares[index, ZERG_UNITS.index(unit)] = number(name, row, unit) / 100
        if not np.isclose(shares[index].sum(), 1.0):
            raise ConfigError(f"{name}, {row['name']}: shares add up to {100 * shares[index].sum():g}; {REINSTALL}")
    return levels, weights, antiair, shares


PLAN_LEVELS, PLAN_WEIGHTS, PLAN_ANTIAIR, PLAN_SHARES = _plans()

OPENINGS = np.array(
    [
        (4, 41, 50, 5),
        (4, 51, 40, 5),
        (4, 41, 45, 10),
        (4, 36, 45, 15),
        (2, 28, 50, 20),
        (2, 18, 45, 35),
        (2, 18, 40, 40),
        (2, 18, 40, 40),
        (2, 28, 45, 25),
        (4, 36, 45, 15),
    ]
)
"""Chances of the opening builds in percent, by level. They are drawn by their sum, which need not be 100."""

WORKER_GAP = np.array([10, 6, 4, 2, 0, 0, 0, 0, 0, 0]) * SCRIPT_SECOND
DEFENSE_GAP = np.array([40, 20, 10, 5, 0, 0, 0, 0, 0, 0]) * SCRIPT_SECOND
DRONES_FIRST = np.array([20, 22, 24, 26, 30, 32, 36, 36, 38, 40])
DRONES_LATER = np.array([40, 50, 54, 60, 60, 64, 66, 66, 66, 70])
FOOD_PERCENT = np.array([100, 100, 100, 100, 100, 100, 120, 130, 140, 150])
"""Food wanted in a phase, of that in the table: levels above the table's last one want more of the same."""
ORDERS_A_TICK = np.array([1, 1, 1, 2, 2, 3, 4, 4, 5, 6])
INJECTS = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
UPGRADE_PHASE = np.array([9, 2, 2, 1, 1, 1, 1, 1, 1, 1])
"""The first phase in which upgrades are researched."""
RETREAT_LEVEL, THRESHOLD_LEVEL = 4, 6
