"""Battles of our own choosing for the tests of SMAC."""

import numpy as np
import pytest

from marl.envs.smac import TASKS, SmacOptions
from marl.envs.smac.engine.battle import begin_episode, make_scratch, run_game_loops
from marl.envs.smac.engine.compile_map import build_rules, build_world
from marl.envs.smac.engine.fields import (
    ATTACK_MOVING,
    COUNTED,
    COUNTER_FIELDS,
    FLOAT_FIELDS,
    HEALTH,
    IDLE,
    INT_FIELDS,
    ORDER,
    SHIELD,
    X,
    Y,
)
from marl.envs.smac.maps import BattleMap
from marl.envs.smac.task.actions import apply_action

SAMPLE = (
    "3m",
    "MMM2",
    "3s5z_vs_3s6z",
    "1c3s5z",
    "3s_vs_3z",
    "2m_vs_1z",
    "2s_vs_1sc",
    "6h_vs_8z",
    "corridor",
    "so_many_baneling",
    "bane_vs_bane",
    "2c_vs_64zg",
)
"""Maps with every unit type, ground, order of the enemy and layout. The others differ in the number of units only."""

EVERY_MAP = [pytest.param(task, marks=() if task in SAMPLE else pytest.mark.slow) for task in TASKS]
"""All maps for a parametrization; those outside the sample are slow tests."""


class Arena:
    """Units on open ground, one game loop at a time. Units are (type, x, y), agents first.

    Enemies stand idle, or with `goal` (x, y) attack-move to it.
    """

    def __init__(self, allies, enemies, seed=1, goal=None, walkable=None, **options):
        units = [*allies, *enemies]
        options = SmacOptions(**options)
        ground = np.ones((32, 32), bool) if walkable is None else walkable
        self.map = BattleMap(
            name="arena",
            limit=100,
            types=tuple(unit[0] for unit in units),
            num_agents=len(allies),
            start=np.array([unit[1:] for unit in units], float),
            walkable=ground,
            order="none" if goal is None else "point",
            goals=np.array([goal or (0.0, 0.0)] * 2),
            ally_types=(),
            enemy_types=(),
        )
        self.rules = build_rules(self.map, options)
        self.world = build_world(self.map, options)._replace(loops=1)
        self.unit_float = np.zeros((FLOAT_FIELDS, len(units)))
        self.unit_int = np.zeros((INT_FIELDS, len(units)), np.int64)
        self.counters = np.zeros(COUNTER_FIELDS, np.int64)
        self.counters[2] = 1 + (seed << 20)
        self.scratch = make_scratch(len(units))
        begin_episode(self.world, self.unit_float, self.unit_int, self.counters)

    def command(self, agent, action):
        apply_action(self.rules, self.world, self.unit_float, self.unit_int, agent, action)

    def play(self, loops=1):
        for _ in range(loops):
            run_game_loops(self.world, self.scratch, self.unit_float, self.unit_int, self.counters)

    @property
    def health(self):
        return self.unit_float[HEALTH]

    @property
    def shield(self):
        return self.unit_float[SHIELD]

    @property
    def places(self):
        return self.unit_float[[X, Y]].T

    def walk_to_goal(self, unit, marching=True):
        self.unit_int[ORDER, unit] = ATTACK_MOVING if marching else IDLE


def place(env, units):
    """Put units (index: x, y, health, shield) and show them; the rest are dead."""
    battles = env._battles
    unit_float = battles.battle.unit_float[0]
    unit_float[HEALTH] = unit_float[SHIELD] = 0.0
    for unit, values in units.items():
        unit_float[X, unit], unit_float[Y, unit], unit_float[HEALTH, unit], unit_float[SHIELD, unit] = values
    unit_float[COUNTED] = np.where(unit_float[HEALTH] > 0, unit_float[HEALTH] + unit_float[SHIELD], 0)
    battles.refresh()
    return env._obs(), unit_float
