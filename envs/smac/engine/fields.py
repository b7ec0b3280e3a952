"""Arrays of a battle and their fields, the task's rules, and the world of the engine.

The units of a battle are columns of two arrays, agents before enemies: `unit_float` (fields, U) float64 and `unit_int`
(fields, U) int64.
"""

from typing import NamedTuple

import numpy as np

from marl.envs.smac.engine.compiling import compiled

# Fields of `unit_float`. Distances in map units, times in game loops.
X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN, WINDUP, RECOVER, IMPACT, SHIELD_DELAY, VELOCITY, GOAL_X, GOAL_Y, COUNTED = (
    range(14)
)
HEALTH_SHARE, SHIELD_SHARE, FOV_X, FOV_Y = 14, 15, 16, 17

FLOAT_FIELDS = 18
"""COUNTED: health and shield at the last reward. SHIELD_DELAY: loops until the shield regenerates. HEALTH_SHARE and
SHIELD_SHARE: shares that observations show. FOV_X and FOV_Y: direction of an agent's cone of sight, of length 1."""

# Fields of `unit_int`. Units are indices, or -1 for none.
ORDER, TARGET, AIM, VICTIM, HEALING, LAST, MOVED, OWNER, WATCHERS, KIND, SIDE = range(11)

INT_FIELDS = 11
"""LAST: an agent's last action, -1 before the first. OWNER: the agent that saw an enemy first. WATCHERS: one bit for
each agent that may see it too. KIND: index of a unit's type where teams are drawn, see `maps.BattleMap.kinds`. SIDE:
loops for which a unit keeps going around a crowd, positive on the left and negative on the right."""

# Fields of `counters` (fields,) int64 of one environment.
STEPS, RUNNING, RANDOM, IGNORED, CLOCK = range(5)

COUNTER_FIELDS = 5
"""CLOCK counts the game loops of an episode. RANDOM is the state of the random stream. IGNORED counts actions outside
the mask."""

# Rows of `stats` (fields, U) float64.
(
    MAX_HEALTH,
    MAX_SHIELD,
    ARMOR,
    SPEED,
    RADIUS,
    SEPARATION,
    FLIES,
    REGENERATION,
    RANGE,
    RANGE_SLACK,
    SCAN,
    PERIOD,
    DAMAGE_POINT,
    BACKSWING,
    MISSILE_SPEED,
    HITS,
    HIT_DELAY,
    ATTACK,
    MELEE_RANGE,
    MELEE_POINT,
    HITS_AIR,
    HEALER,
    BURSTS,
    WALKS,
    BIOLOGICAL,
    COOLDOWN_SCALE,
    ALLY_TYPE,
    ENEMY_TYPE,
    DECAY,
    ACCELERATION,
    AGENTS,
    MIN_X,
    MAX_X,
    MIN_Y,
    MAX_Y,
    HAS_TIMERS,
    SIGHT,
    SHOOT,
    SCALE,
) = range(39)
STAT_FIELDS = 39
"""HAS_TIMERS: something regenerates or decays. SIGHT and SHOOT: distances between centers within which an agent sees a
unit and may target it. SCALE: factor of every reward."""

SIZE = 32
"""Width and height of every map, in cells."""

NO_ACTION, STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = range(7)
RUNNING_ON, WON, LOST, DRAWN = range(4)


class Rules(NamedTuple):
    """SMAC's options, and the sizes that follow from them, as numbers for compiled functions."""

    agents: int
    enemies: int
    actions: int
    limit: int
    ally_shield: int
    enemy_shield: int
    type_bits: int
    healers: int
    """1 on maps with medivacs: the targeted actions of a healer are its allies."""
    all_health: int
    own_health: int
    last_action: int
    pathing: int
    agent_id: int
    timestep: int
    concat_obs: int
    mappo: int
    """1 for observations and states in the layout of MAPPO's fork, see `marl.envs.smac.task.mappo_layout`."""
    entities: int
    """1 if every agent has a row among the allies. The observer's own row is zero."""
    state_last_action: int
    state_timestep: int
    sparse: int
    only_positive: int
    own_place: int
    fov_actions: int
    """Number of directions of the cone of sight, 0 for sight all around."""
    masked: int
    """1 if only targets within reach are offered."""
    random_teams: int
    """1 if teams are drawn at random (SMACv2)."""
    half_cone: float
    """Cosine of half a cone's angle."""
    visibility_prob: float
    """Probability that an agent may see an enemy that another agent has seen first."""
    move: float
    death_value: float
    win: float
    defeat: float
    negative_scale: float
    reward_scale_rate: float
    """Return of the best episode, 0 for rewards that are not scaled."""
    span_x: float
    span_y: float
    """Width and height of the playable area. The state divides a unit's offset from the center of the map by them."""

    @property
    def enemy_width(self) -> int:
        """Numbers that an observation holds for one enemy."""
        return 4 + self.type_bits + self.all_health * (1 + self.enemy_shield)

    @property
    def ally_width(self) -> int:
        """Numbers that an observation holds for one ally."""
        width = 4 + self.type_bits + self.all_health * (1 + self.ally_shield)
        return width + self.last_action * self.actions

    @property
    def ally_rows(self) -> int:
        """Number of allies that an observation has rows for."""
        return self.agents - 1 + self.entities

    @property
    def observation_size(self) -> int:
        """Width D of an observation."""
        own = (
            self.type_bits + self.own_health * (1 + self.ally_shield) + 2 * self.own_place + 2 * (self.fov_actions > 0)
        )
        others = self.enemies * self.enemy_width + self.ally_rows * self.ally_width
        own += self.mappo * (4 + self.last_action * self.actions)
        return 4 + 8 * self.pathing + others + own + self.agent_id * self.agents + self.timestep

    @property
    def viewpoint_size(self) -> int:
        """Width of one agent's part of the state in MAPPO's layout."""
        last = self.state_last_action * self.actions
        fov_directions = 2 * (self.fov_actions > 0)
        ally = 7 + self.type_bits + self.all_health * (1 + self.ally_shield) + fov_directions + last
        enemy = 7 + self.type_bits + self.all_health * (1 + self.enemy_shield)
        own = 6 + self.type_bits + self.own_health * (1 + self.ally_shield) + fov_directions + last
        return (self.agents - 1) * ally + self.enemies * enemy + 4 + own + self.agents + self.state_timestep

    @property
    def state_size(self) -> int:
        """Width S of the state."""
        if self.mappo and not self.concat_obs:
            return self.agents * self.viewpoint_size
        if self.concat_obs:
            return self.agents * self.observation_size
        allies = self.agents * (4 + self.ally_shield + self.type_bits + 2 * (self.fov_actions > 0))
        enemies = self.enemies * (3 + self.enemy_shield + self.type_bits)
        return allies + enemies + self.state_last_action * self.agents * self.actions + self.state_timestep


SECOND = 16.0
"""Game loops in a second."""

TOUCH = 1e-6

IDLE, MOVING, ATTACKING, MENDING, ATTACK_MOVING, HUNTING, WAITING = range(7)
"""Orders of a unit: stand; go to a point; attack or heal a target; attack-move to a point or towards the nearest
opponent; stand until the map's trigger sends the unit against the nearest agent."""


class World(NamedTuple):
    """Constants of a battle.

    `stats` (fields + U, U): statistics, then row by row the damage of one hit of each unit before armor. `walkable` (x,
    y). `near_wall` (x, y): cells that touch a wall. `waypoints` (cells, cells): see `maps.waypoints`, (1, 1) where the
    ground is one rectangle. `start` (2, U) and `goals` (2, 2): places of the map. `order`: the enemy's first order.
    `loops`: game loops of a step.

    For teams that are drawn from K types: `type_stats` (fields + K, K): as `stats`, by type. `weight_sums` (K,):
    cumulative weights. `dependent`: the type that forms no team alone, or -1. `spawn_offsets` (L, 2): offsets from a
    start where a unit may stand, nearest first. `fov_directions` (K, 2): directions of a cone of sight.

    For several environments with different teams, `stats` and `start` have a leading axis E, see `env_world`.
    """

    agents: int
    units: int
    order: int
    loops: int
    stats: np.ndarray
    walkable: np.ndarray
    near_wall: np.ndarray
    waypoints: np.ndarray
    start: np.ndarray
    goals: np.ndarray
    type_stats: np.ndarray
    weight_sums: np.ndarray
    dependent: int
    spawn_offsets: np.ndarray
    fov_directions: np.ndarray


@compiled
def env_world(world, env):
    """Return the world of one environment from a world with leading axes E, or 1 for all."""
    row = env if world.stats.shape[0] > 1 else 0
    parts = (
        world.order,
        world.loops,
        world.stats[row],
        world.walkable,
        world.near_wall,
        world.waypoints,
        world.start[row],
    )
    rest = world.goals, world.type_stats, world.weight_sums, world.dependent, world.spawn_offsets, world.fov_directions
    return World(world.agents, world.units, *parts, *rest)


@compiled
def random_int(counters, bound):
    """Draw an integer in [0, bound), bound < 2**31, from the multiply-with-carry stream in `counters`."""
    state = counters[RANDOM]
    state = 1791398085 * (state & 0xFFFFFFFF) + (state >> 32)
    counters[RANDOM] = state
    return ((state & 0xFFFFFFFF) * bound) >> 32


@compiled
def to_float32(value):
    """Round to single precision."""
    return float(np.float32(value))


FAR = 1e9
