"""Battles of our own choosing for the tests of SMAC."""

import numpy as np
import pytest

from envs.smac import TASKS, SmacOptions, engine
from envs.smac.build import build_rules, build_world
from envs.smac.combat import ATTACK_MOVING, IDLE
from envs.smac.maps import BattleMap
from envs.smac.rules import (
    COUNTED,
    HEALTH,
    ORDER,
    REAL_FIELDS,
    SHIELD,
    TALLY_FIELDS,
    WHOLE_FIELDS,
    X,
    Y,
)

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
        self.real = np.zeros((REAL_FIELDS, len(units)))
        self.whole = np.zeros((WHOLE_FIELDS, len(units)), np.int64)
        self.tally = np.zeros(TALLY_FIELDS, np.int64)
        self.tally[2] = 1 + (seed << 20)
        self.scratch = engine.new_scratch(len(units))
        engine.begin(self.world, self.real, self.whole, self.tally)

    def command(self, agent, action):
        engine.command(self.rules, self.world, self.real, self.whole, agent, action)

    def play(self, loops=1):
        for _ in range(loops):
            engine.play(self.world, self.scratch, self.real, self.whole, self.tally)

    @property
    def health(self):
        return self.real[HEALTH]

    @property
    def shield(self):
        return self.real[SHIELD]

    @property
    def places(self):
        return self.real[[X, Y]].T

    def march(self, unit, marching=True):
        self.whole[ORDER, unit] = ATTACK_MOVING if marching else IDLE


def place(env, units):
    """Put units (index: x, y, health, shield) and show them; the rest are dead."""
    battles = env._battles
    real = battles.battle.real[0]
    real[HEALTH] = real[SHIELD] = 0.0
    for unit, values in units.items():
        real[X, unit], real[Y, unit], real[HEALTH, unit], real[SHIELD, unit] = values
    real[COUNTED] = np.where(real[HEALTH] > 0, real[HEALTH] + real[SHIELD], 0)
    battles.refresh()
    return env._obs(), real
