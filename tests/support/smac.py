"""A battlefield of our own choosing for the tests of the battle engine, and a scripted team."""

import numpy as np

from envs.smac import SmacOptions, engine
from envs.smac.build import build_rules, build_world
from envs.smac.combat import ATTACK_MOVING, IDLE
from envs.smac.maps import BattleMap
from envs.smac.rules import (
    HEALTH,
    ORDER,
    REAL_FIELDS,
    SHIELD,
    STEPS,
    TALLY_FIELDS,
    WHOLE_FIELDS,
    X,
    Y,
)


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


def focus_fire(env, obs):
    """(N,) actions of a team that waits for the enemy, and shoots the weakest that it reaches without a step.

    Healers treat the weakest ally that they may. Once the battle is joined,
    or after 15 steps, who has no target goes to the nearest.
    """
    battles = env._battles
    real, agents = battles.battle.real[0], battles.rules.agents
    between = real[:2, :agents, None] - real[:2, None, agents:]
    alive = (real[HEALTH, :agents, None] > 0) & (real[HEALTH, None, agents:] > 0)
    joined = battles.battle.tally[0, STEPS] > 15 or bool((alive & (np.hypot(*between) < 7)).any())
    actions = np.zeros(agents, np.int64)
    for agent in np.flatnonzero(obs.alive):
        mask = obs.action_mask[agent]
        heals = battles.map.types[agent] == "medivac"
        others = real[:, :agents] if heals else real[:, agents:]
        away = others[:2] - real[:2, agent, None]
        distance = np.hypot(*away)
        targets = np.flatnonzero(mask[6:])
        if len(targets):
            reached = targets[distance[targets] < 5.75]
            choice = reached if len(reached) else targets[[np.argmin(distance[targets])]]
            strength = others[HEALTH, choice] + others[SHIELD, choice] + 1e-3 * distance[choice]
            actions[agent] = 6 + choice[np.argmin(strength)]
            continue
        living = np.flatnonzero((others[HEALTH] > 0) & (distance > 0))
        actions[agent] = 1
        if joined and len(living):
            dx, dy = away[:, living[np.argmin(distance[living])]]
            east, north = (4 if dx > 0 else 5), (2 if dy > 0 else 3)
            choices = [east, north] if abs(dx) > abs(dy) else [north, east]
            actions[agent] = next((move for move in choices if mask[move]), 1)
    return actions
