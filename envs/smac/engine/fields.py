"""SMAC's rules: what agents see and may do, the state, the reward and the end, from the arrays that hold the units.

Nothing here knows how units came to be where they are. Every function serves one environment, is compiled by numba
and writes into rows of the buffers it is given. A battle's units are the columns of two arrays, agents before
enemies: `real` (fields, U) float64 and `whole` (fields, U) int64.
"""

import hashlib
import math
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import numba

_FILES = sorted(
    (file for room in ("engine", "task") for file in files("marl.envs.smac").joinpath(room).iterdir()),
    key=lambda file: file.name,
)
_SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in _FILES if file.name.endswith(".py"))).hexdigest()


def compiled(function: Callable[..., Any], inline: bool = True) -> Any:
    """Compile a function to machine code on first use, cached on disc, as a part of those that call it.

    Without fast mathematics, so that the same function run uncompiled gives the same bits, and without reference
    counts of arrays, which would cost more than the battle: compiled functions allocate nothing. Numba's cache
    knows the file of a function only, not those of the functions that it calls; here a change in any counts.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inline, "_nrt": False}
    try:
        dispatcher = numba.njit(**options, cache=True)(function)
    except RuntimeError:  # no folder to write to; NUMBA_CACHE_DIR can name one
        dispatcher = numba.njit(**options)(function)
    if (file := _cache_file(dispatcher)) is not None:
        file._source_stamp = _SOURCES
    return dispatcher


def _cache_file(dispatcher: Any) -> Any:
    return getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)


def must_compile(dispatcher: Any) -> bool:
    """Whether the first call will compile the function, because no earlier process left it on disc."""
    if getattr(dispatcher, "signatures", True):  # a plain function has none: compilation is switched off
        return False
    file = _cache_file(dispatcher)
    return file is None or not file._load_index()


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, or that stays one of its own because others call it rarely.

    Let Python give it plain tuples: named ones take microseconds to hand over.
    """
    return compiled(function, inline=False)


# Fields of `real`. Distances in map units, times in game loops.
X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN, WINDUP, RECOVER, IMPACT, QUIET, PACE, GOAL_X, GOAL_Y, COUNTED = range(14)
HEALTH_SHARE, SHIELD_SHARE, LOOK_X, LOOK_Y = 14, 15, 16, 17
FLOAT_FIELDS = 18
"""COUNTED is the health and shield that the last reward saw; QUIET the loops until shields regenerate; the shares are
what is shown of health and shield; LOOK is the direction of an agent's cone of sight, of length 1."""

# Fields of `whole`. A unit's index, or -1 for none.
ORDER, TARGET, AIM, VICTIM, HEALING, LAST, MOVED, OWNER, WATCHERS, KIND, SIDE = range(11)
INT_FIELDS = 11
"""LAST is an agent's last action, -1 before the first. OWNER is the agent that saw an enemy first, and the bits of
WATCHERS are the agents that may see it too. KIND is a unit's type where teams are drawn, see `maps.BattleMap.kinds`.
SIDE is positive while a unit goes around a crowd on the left, negative on the right, and counts down to 0."""

# Fields of `tally` (fields,) int64: one environment's counters.
STEPS, RUNNING, RANDOM, IGNORED, CLOCK = range(5)
COUNTER_FIELDS = 5
"""CLOCK counts the game loops of an episode."""

# Rows of `stats` (fields, U) float64. AGES: something regenerates or decays. SIGHT and SHOOT are the distances between
# centers within which an agent sees and is offered a target; SCALE is what a reward is multiplied by, for every unit.
(
    MAX_HEALTH,
    MAX_SHIELD,
    ARMOR,
    STEP,
    RADIUS,
    SEPARATION,
    FLIES,
    REGENERATION,
    RANGE,
    SLOP,
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
    LEAST_X,
    MOST_X,
    LEAST_Y,
    MOST_Y,
    AGES,
    SIGHT,
    SHOOT,
    SCALE,
) = range(39)
STAT_FIELDS = 39

SIZE = 32.0
"""Width and height of every map."""

NO_ACTION, STOP, NORTH, SOUTH, EAST, WEST, FIRST_TARGET = range(7)

RUNNING_ON, WON, LOST, DRAWN = range(4)


class Rules(NamedTuple):
    """SMAC's options and the sizes that follow from them, as numbers that a kernel takes."""

    agents: int
    enemies: int
    actions: int
    limit: int
    ally_shield: int
    enemy_shield: int
    type_bits: int
    healers: int
    """Whether the map is of the MMM kind: an agent that heals targets allies."""
    all_health: int
    own_health: int
    last_action: int
    pathing: int
    agent_id: int
    timestep: int
    concat_obs: int
    mappo: int
    """Whether observations and states are laid out as in MAPPO's fork, see `marl.envs.smac.task.mappo_layout`."""
    entities: int
    """Whether every agent, and so the observer too, has a row among the allies; the observer's own is all zeros."""
    state_last_action: int
    state_timestep: int
    sparse: int
    only_positive: int
    own_place: int
    fov_actions: int
    """Directions in which a cone of sight can be turned, 0 where agents see all around."""
    masked: int
    """Whether only targets within reach are offered."""
    random_teams: int
    """Whether teams are drawn, which is SMACv2 and not SMAC."""
    half_cone: float
    """The cosine of half a cone's angle."""
    visibility_prob: float
    """The probability that an agent may see an enemy that another one has seen first."""
    move: float
    death_value: float
    win: float
    defeat: float
    negative_scale: float
    reward_scale_rate: float
    """What the best episode pays, 0 where rewards are not scaled."""
    span_x: float
    span_y: float
    """Width and height of the playable area, by which the state divides a unit's offset from the center of the map."""

    @property
    def enemy_width(self) -> int:
        return 4 + self.type_bits + self.all_health * (1 + self.enemy_shield)

    @property
    def ally_width(self) -> int:
        width = 4 + self.type_bits + self.all_health * (1 + self.ally_shield)
        return width + self.last_action * self.actions

    @property
    def ally_rows(self) -> int:
        return self.agents - 1 + self.entities

    @property
    def observation_size(self) -> int:
        own = (
            self.type_bits + self.own_health * (1 + self.ally_shield) + 2 * self.own_place + 2 * (self.fov_actions > 0)
        )
        others = self.enemies * self.enemy_width + self.ally_rows * self.ally_width
        own += self.mappo * (4 + self.last_action * self.actions)
        return 4 + 8 * self.pathing + others + own + self.agent_id * self.agents + self.timestep

    @property
    def viewpoint_size(self) -> int:
        """The width of one agent's part of the state in the layout of MAPPO's fork."""
        last = self.state_last_action * self.actions
        looks = 2 * (self.fov_actions > 0)
        ally = 7 + self.type_bits + self.all_health * (1 + self.ally_shield) + looks + last
        enemy = 7 + self.type_bits + self.all_health * (1 + self.enemy_shield)
        own = 6 + self.type_bits + self.own_health * (1 + self.ally_shield) + looks + last
        return (self.agents - 1) * ally + self.enemies * enemy + 4 + own + self.agents + self.state_timestep

    @property
    def state_size(self) -> int:
        if self.mappo and not self.concat_obs:
            return self.agents * self.viewpoint_size
        if self.concat_obs:
            return self.agents * self.observation_size
        allies = self.agents * (4 + self.ally_shield + self.type_bits + 2 * (self.fov_actions > 0))
        enemies = self.enemies * (3 + self.enemy_shield + self.type_bits)
        return allies + enemies + self.state_last_action * self.agents * self.actions + self.state_timestep


@compiled
def open_ground(walkable, x, y):
    """Whether the cell of a point, truncated towards zero as SMAC does, is on the map and can be walked on."""
    return -1.0 < x < walkable.shape[0] and -1.0 < y < walkable.shape[1] and walkable[int(x), int(y)]


@compiled
def in_cone(rules, look_x, look_y, dx, dy, apart):
    """Whether a point at (dx, dy) from an agent, `apart` being its squared distance, is in its cone of sight."""
    return rules.fov_actions == 0 or dx * look_x + dy * look_y >= rules.half_cone * math.sqrt(apart)


@compiled
def reaches(rules, stats, unit_float, agent, other):
    """Whether another unit is within an agent's reach, and in its cone of sight."""
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, reach = dx * dx + dy * dy, stats[SHOOT, agent]
    return apart <= reach * reach and in_cone(
        rules, unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent], dx, dy, apart
    )


@compiled
def offer_actions(rules, stats, walkable, unit_float, mask):
    """Fill `mask` (N, A) bool: what each agent can do now. A dead agent can only do nothing."""
    n, first = rules.agents, FIRST_TARGET + rules.fov_actions
    reach = rules.move / 2.0
    mask[:] = False
    for agent in range(n):
        if unit_float[HEALTH, agent] <= 0.0:
            mask[agent, NO_ACTION] = True
            continue
        x, y = unit_float[X, agent], unit_float[Y, agent]
        look_x, look_y, near = (
            unit_float[LOOK_X, agent],
            unit_float[LOOK_Y, agent],
            stats[SHOOT, agent] * stats[SHOOT, agent],
        )
        mask[agent, STOP] = True
        mask[agent, NORTH] = open_ground(walkable, x, y + reach)
        mask[agent, SOUTH] = open_ground(walkable, x, y - reach)
        mask[agent, EAST] = open_ground(walkable, x + reach, y)
        mask[agent, WEST] = open_ground(walkable, x - reach, y)
        mask[agent, FIRST_TARGET:first] = True
        if rules.healers and stats[HEALER, agent] > 0.0:
            for other in range(num_targets(rules, stats, agent)):
                if stats[HEALER, other] == 0.0 and unit_float[HEALTH, other] > 0.0:
                    mask[agent, first + other] = reaches(rules, stats, unit_float, agent, other)
        else:
            for enemy in range(rules.enemies):
                dx, dy = unit_float[X, n + enemy] - x, unit_float[Y, n + enemy] - y
                apart = dx * dx + dy * dy
                close = apart <= near and in_cone(rules, look_x, look_y, dx, dy, apart)
                mask[agent, first + enemy] = unit_float[HEALTH, n + enemy] > 0.0 and close


@compiled
def num_targets(rules, stats, agent):
    """Number of targeted actions of an agent: a healer has one for each agent, every other agent one for each enemy."""
    if rules.healers and stats[HEALER, agent] > 0.0:
        return min(rules.agents, rules.actions - FIRST_TARGET - rules.fov_actions)
    return rules.enemies


@entry
def offer_targets(rules, stats, unit_float, mask):
    """Offer every living agent all its living targets, within reach or not (SMACv2's `action_mask=False`).

    The targets of a healer are the agents that are not healers. The targets of every other agent are the enemies.
    """
    for agent in range(rules.agents):
        for number in range(num_targets(rules, stats, agent)):
            unit = target_of(rules, stats, agent, number)
            healer = unit < rules.agents and stats[HEALER, unit] > 0.0
            if unit_float[HEALTH, agent] > 0.0 and unit_float[HEALTH, unit] > 0.0 and not healer:
                mask[agent, FIRST_TARGET + rules.fov_actions + number] = True


@compiled
def share_health(stats, unit_float):
    """Bring HEALTH_SHARE and SHIELD_SHARE up to date; of units without shields the latter is 0."""
    for unit in range(stats.shape[1]):
        unit_float[HEALTH_SHARE, unit] = unit_float[HEALTH, unit] / stats[MAX_HEALTH, unit]
        unit_float[SHIELD_SHARE, unit] = unit_float[SHIELD, unit] / max(1.0, stats[MAX_SHIELD, unit])


@compiled
def show_health(unit_float, unit, shields, row, at):
    """Write a unit's health fraction and, on a side with shields, its shield's; returns where to go on."""
    row[at] = unit_float[HEALTH_SHARE, unit]
    if shields:
        row[at + 1] = unit_float[SHIELD_SHARE, unit]
    return at + 1 + shields


@compiled
def show_look(rules, unit_float, agent, row, at):
    """Write where an agent's cone of sight points, where there are cones; returns where to go on."""
    if rules.fov_actions == 0:
        return at
    row[at], row[at + 1] = unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent]
    return at + 2


@compiled
def show_ground(rules, walkable, x, y, row, at):
    """Write which of the eight points around can be walked on; points off the map count as ground."""
    column, line, move = int(x), int(y), rules.move
    for k in range(8):
        far = 2.0 * move if k < 4 else move
        dx = far * ((k == 2) - (k == 3) + (k == 4) - (k == 5) + (k == 6) - (k == 7))
        dy = far * ((k == 0) - (k == 1) + (k == 4) - (k == 5) - (k == 6) + (k == 7))
        px, py = column + dx, line + dy
        outside = px < 0 or py < 0 or px >= walkable.shape[0] or py >= walkable.shape[1]
        row[at + k] = 1.0 if outside or walkable[int(px), int(py)] else 0.0
    return at + 8


@compiled
def target_of(rules, stats, agent, number):
    """The unit that an agent's action against a target means: a healer's targets are agents."""
    return number if rules.healers and stats[HEALER, agent] > 0.0 else rules.agents + number


@compiled
def may_watch(rules, unit_int, agent, enemy):
    """Whether an agent may see an enemy that is in its sight."""
    return rules.visibility_prob >= 1.0 or (unit_int[WATCHERS, enemy] >> agent) & 1 == 1


@compiled
def observe_enemies(rules, stats, unit_float, unit_int, agent, mask, row, at):
    x, y = unit_float[X, agent], unit_float[Y, agent]
    look_x, look_y, sight, n = unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent], stats[SIGHT, agent], rules.agents
    scale = 1.0 / sight
    width = 4 + rules.type_bits + rules.all_health * (1 + rules.enemy_shield)
    for enemy in range(rules.enemies):
        other = n + enemy
        dx, dy = unit_float[X, other] - x, unit_float[Y, other] - y
        apart = dx * dx + dy * dy
        seen = (
            apart < sight * sight and unit_float[HEALTH, other] > 0.0 and in_cone(rules, look_x, look_y, dx, dy, apart)
        )
        if seen and may_watch(rules, unit_int, agent, other):
            row[at] = 1.0 if mask[FIRST_TARGET + rules.fov_actions + enemy] else 0.0
            row[at + 1] = math.sqrt(apart) * scale
            row[at + 2] = dx * scale
            row[at + 3] = dy * scale
            end = at + 4
            if rules.all_health:
                end = show_health(unit_float, other, rules.enemy_shield, row, end)
            if rules.type_bits:
                row[end + int(stats[ENEMY_TYPE, other])] = 1.0
        at += width
    return at


@compiled
def observe_allies(rules, stats, unit_float, unit_int, agent, row, at):
    x, y = unit_float[X, agent], unit_float[Y, agent]
    look_x, look_y, sight = unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent], stats[SIGHT, agent]
    scale = 1.0 / sight
    width = 4 + rules.type_bits + rules.all_health * (1 + rules.ally_shield) + rules.last_action * rules.actions
    for other in range(rules.agents):
        if other == agent:
            at += rules.entities * width
            continue
        dx, dy = unit_float[X, other] - x, unit_float[Y, other] - y
        apart = dx * dx + dy * dy
        seen = (
            apart < sight * sight and unit_float[HEALTH, other] > 0.0 and in_cone(rules, look_x, look_y, dx, dy, apart)
        )
        if seen:
            row[at] = 1.0
            row[at + 1] = math.sqrt(apart) * scale
            row[at + 2] = dx * scale
            row[at + 3] = dy * scale
            end = at + 4
            if rules.all_health:
                end = show_health(unit_float, other, rules.ally_shield, row, end)
            if rules.type_bits:
                row[end + int(stats[ALLY_TYPE, other])] = 1.0
                end += rules.type_bits
            if rules.last_action and unit_int[LAST, other] >= 0:
                row[end + unit_int[LAST, other]] = 1.0
        at += width
    return at


@compiled
def write_obs(rules, stats, walkable, unit_float, unit_int, counters, mask, seen):
    """Fill `seen` (N, D) float32: own moves, enemies, allies, self. A dead agent sees zeros.

    The agent's index and the time, where they are shown, are shown to the dead too.
    """
    seen[:] = 0.0
    for agent in range(rules.agents):
        row = seen[agent]
        end = row.shape[0]
        if rules.timestep:
            end -= 1
            row[end] = counters[STEPS] / rules.limit
        if rules.agent_id:
            row[end - rules.agents + agent] = 1.0
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        for move in range(4):
            row[move] = 1.0 if mask[agent, NORTH + move] else 0.0
        at = 4
        if rules.pathing:
            at = show_ground(rules, walkable, unit_float[X, agent], unit_float[Y, agent], row, at)
        at = observe_enemies(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = observe_allies(rules, stats, unit_float, unit_int, agent, row, at)
        if rules.own_health:
            at = show_health(unit_float, agent, rules.ally_shield, row, at)
        if rules.own_place:
            row[at], row[at + 1] = unit_float[X, agent] / SIZE, unit_float[Y, agent] / SIZE
            at += 2
        at = show_look(rules, unit_float, agent, row, at)
        if rules.type_bits:
            row[at + int(stats[ALLY_TYPE, agent])] = 1.0


@compiled
def charge(rules, stats, unit_float, unit):
    """The share of an agent's cooldown that is left, or of a healer's energy."""
    healer = rules.healers and stats[HEALER, unit] > 0.0
    level = unit_float[ENERGY, unit] if healer else max(0.0, unit_float[COOLDOWN, unit])
    return level / stats[COOLDOWN_SCALE, unit]


@compiled
def write_state(rules, stats, unit_float, unit_int, counters, seen, state):
    """Fill `state` (S,) float32: allies, enemies, last actions, time; or all observations."""
    if rules.concat_obs:
        width = seen.shape[1]
        for agent in range(rules.agents):
            for column in range(width):
                state[agent * width + column] = seen[agent, column]
        return
    state[:] = 0.0
    n, at, center = rules.agents, 0, SIZE / 2.0
    for unit in range(n + rules.enemies):
        ally = unit < n
        shields = rules.ally_shield if ally else rules.enemy_shield
        width = 3 + ally + shields + 2 * (ally and rules.fov_actions > 0) + rules.type_bits
        if unit_float[HEALTH, unit] > 0.0:
            state[at] = unit_float[HEALTH_SHARE, unit]
            end = at + 1
            if ally:
                state[end] = charge(rules, stats, unit_float, unit)
                end += 1
            state[end] = (unit_float[X, unit] - center) / rules.span_x
            state[end + 1] = (unit_float[Y, unit] - center) / rules.span_y
            end += 2
            if shields:
                state[end] = unit_float[SHIELD_SHARE, unit]
                end += 1
            if ally:
                end = show_look(rules, unit_float, unit, state, end)
            if rules.type_bits:
                state[end + int(stats[ALLY_TYPE if ally else ENEMY_TYPE, unit])] = 1.0
        at += width
    if rules.state_last_action:
        for agent in range(n):
            if unit_int[LAST, agent] >= 0:
                state[at + unit_int[LAST, agent]] = 1.0
            at += rules.actions
    if rules.state_timestep:
        state[at] = counters[STEPS] / rules.limit
