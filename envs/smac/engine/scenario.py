"""Random parts of an episode: SMACv2's teams and starts (Ellis et al. 2023), and who may see an enemy.

Compiled functions that draw from a battle's random stream.
"""

import math

from marl.envs.smac.engine.compiling import compiled, entry, part
from marl.envs.smac.engine.fields import (
    FLIES,
    FOV_X,
    FOV_Y,
    HEALTH,
    KIND,
    MAX_HEALTH,
    MAX_SHIELD,
    MAX_X,
    MAX_Y,
    MIN_X,
    MIN_Y,
    OWNER,
    SCALE,
    SEPARATION,
    SIGHT,
    SIZE,
    STAT_FIELDS,
    TOUCH,
    WATCHERS,
    Rules,
    World,
    X,
    Y,
    env_world,
    random_int,
)


@compiled
def in_cone(rules, look_x, look_y, dx, dy, apart):
    """Return whether a point at (dx, dy) from an agent, at squared distance `apart`, is in its cone of sight."""
    return rules.fov_actions == 0 or dx * look_x + dy * look_y >= rules.half_cone * math.sqrt(apart)


FINE = 1 << 20
"""Number of steps of a random fraction."""

NEAREST = 2.0
"""Least distance from the center, along each axis, of enemies on a diagonal."""

STRIP = SIZE / 2.0 - 1.0
"""Width of the part of the map where agents stand opposite the enemy."""


@compiled
def random_fraction(counters):
    """Draw a number in [0, 1)."""
    return random_int(counters, FINE) / FINE


@compiled
def sample_types(weight_sums, dependent, unit_int, counters, first, last):
    """Draw the types of units `first` to `last`, again as long as all are of the dependent type."""
    again = first < last
    while again:
        for unit in range(first, last):
            lot, kind = random_int(counters, weight_sums[-1]), 0
            while lot >= weight_sums[kind]:
                kind += 1
            unit_int[KIND, unit] = kind
            if kind != dependent:
                again = False


@compiled
def draw_corner(counters, taken):
    """Draw one of the four corners whose bit is not set in `taken`."""
    corner = random_int(counters, 4)
    while (taken >> corner) & 1:
        corner = random_int(counters, 4)
    return corner


@compiled
def place_surrounded(start, agents, counters):
    """Start with agents in the center and enemies in one to four groups, each at a random place on a diagonal of its
    own. Units of a group have consecutive numbers."""
    middle, groups, taken, unit = SIZE / 2.0, 1 + random_int(counters, 4), 0, agents
    start[:, :agents] = middle
    for group in range(groups):
        corner, away, size = draw_corner(counters, taken), random_fraction(counters), start.shape[1] - unit
        taken |= 1 << corner
        if group < groups - 1:
            rest, size = size, 0
            for _ in range(rest):  # of those not yet in a group, each is in this one with equal chances
                size += random_int(counters, groups - group) == 0
        reach = away * NEAREST + (1.0 - away) * middle
        for member in range(unit, unit + size):
            start[0, member] = middle + (reach if corner & 1 else -reach)
            start[1, member] = middle + (reach if corner & 2 else -reach)
        unit += size


@compiled
def place_mirrored(start, agents, counters):
    """Start with agents anywhere in the west and the enemy as their mirror image. Enemies beyond the number of agents
    start anywhere in the east."""
    for unit in range(start.shape[1]):
        twin = unit - agents
        if unit < agents:
            start[0, unit], start[1, unit] = STRIP * random_fraction(counters), SIZE * random_fraction(counters)
        elif twin < agents:
            start[0, unit], start[1, unit] = SIZE - start[0, twin], start[1, twin]
        else:
            start[0, unit], start[1, unit] = (
                SIZE / 2.0 * (1.0 + random_fraction(counters)),
                SIZE * random_fraction(counters),
            )


@compiled
def is_free_spot(start, type_stats, unit_int, unit, x, y):
    """Return whether a place is within the bounds of a unit and touches no unit before it."""
    kind = unit_int[KIND, unit]
    if not (
        type_stats[MIN_X, kind] <= x <= type_stats[MAX_X, kind]
        and type_stats[MIN_Y, kind] <= y <= type_stats[MAX_Y, kind]
    ):
        return False
    for other in range(unit):
        near = type_stats[SEPARATION, kind] + type_stats[SEPARATION, unit_int[KIND, other]] - TOUCH
        dx, dy = start[0, other] - x, start[1, other] - y
        if type_stats[FLIES, kind] == type_stats[FLIES, unit_int[KIND, other]] and dx * dx + dy * dy < near * near:
            return False
    return True


@compiled
def spread_units(start, type_stats, spawn_offsets, agents, unit_int):
    """Move units from their starts to the nearest free places, in order of creation. Offsets are mirrored for the
    enemy, so that mirrored teams stay mirrored."""
    for unit in range(start.shape[1]):
        kind = unit_int[KIND, unit]
        x = min(max(start[0, unit], type_stats[MIN_X, kind]), type_stats[MAX_X, kind])
        y = min(max(start[1, unit], type_stats[MIN_Y, kind]), type_stats[MAX_Y, kind])
        side = 1.0 if unit < agents else -1.0
        for spot in range(spawn_offsets.shape[0]):
            there_x, there_y = x + side * spawn_offsets[spot, 0], y + spawn_offsets[spot, 1]
            if is_free_spot(start, type_stats, unit_int, unit, there_x, there_y):
                x, y = there_x, there_y
                break
        start[0, unit], start[1, unit] = x, y


@compiled
def is_ordered_before(start, unit_int, unit, other):
    """Return whether SMAC numbers an agent before another: by type, then west to east, then south to north."""
    if unit_int[KIND, unit] != unit_int[KIND, other]:
        return unit_int[KIND, unit] < unit_int[KIND, other]
    if start[0, unit] != start[0, other]:
        return start[0, unit] < start[0, other]
    return start[1, unit] < start[1, other]


@compiled
def sort_agents(start, agents, unit_int):
    """Sort the agents into SMAC's order. Enemies keep the order of creation."""
    for agent in range(1, agents):
        place = agent
        while place > 0 and is_ordered_before(start, unit_int, place, place - 1):
            before = place - 1
            unit_int[KIND, place], unit_int[KIND, before] = unit_int[KIND, before], unit_int[KIND, place]
            start[0, place], start[0, before] = start[0, before], start[0, place]
            start[1, place], start[1, before] = start[1, before], start[1, place]
            place = before


@part
def fill_unit_stats(rules, world, unit_int):
    """Fill `world.stats` from the types in `unit_int`, and set the reward scale."""
    stats, type_stats, worth = world.stats, world.type_stats, 0.0
    for unit in range(world.units):
        kind = unit_int[KIND, unit]
        for field in range(STAT_FIELDS):
            stats[field, unit] = type_stats[field, kind]
        for other in range(world.units):
            stats[STAT_FIELDS + unit, other] = type_stats[STAT_FIELDS + kind, unit_int[KIND, other]]
        if unit >= world.agents:
            worth += stats[MAX_HEALTH, unit] + stats[MAX_SHIELD, unit]
    if rules.reward_scale_rate > 0.0:
        stats[SCALE] = rules.reward_scale_rate / (rules.death_value * rules.enemies + rules.win + worth)


@entry
def sample_teams(rules, world, battle_whole, battle_tally, chosen):
    """Draw teams and starts of an episode in each of the chosen environments, into KIND, `stats` and `start` of the
    world.

    Both teams are equal. Additional units of a larger enemy are drawn separately. `rules` and `world` are plain tuples,
    see `task.step.advance`; the arrays are those of all environments.
    """
    rules, world = Rules(*rules), World(*world)
    agents, units = world.agents, world.units
    twins = min(units, 2 * agents)
    for env in chosen:
        here, unit_int, counters = env_world(world, env), battle_whole[env], battle_tally[env]
        sample_types(world.weight_sums, world.dependent, unit_int, counters, 0, agents)
        sample_types(world.weight_sums, world.dependent, unit_int, counters, twins, units)
        for unit in range(agents, twins):
            unit_int[KIND, unit] = unit_int[KIND, unit - agents]
        if random_int(counters, 2) == 0:
            place_surrounded(here.start, agents, counters)
        else:
            place_mirrored(here.start, agents, counters)
        spread_units(here.start, world.type_stats, world.spawn_offsets, agents, unit_int)
        sort_agents(here.start, agents, unit_int)
        fill_unit_stats(rules, here, unit_int)


@compiled
def sees(rules, stats, unit_float, agent, other):
    """Return whether a living agent has another unit in sight."""
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, sight = dx * dx + dy * dy, stats[SIGHT, agent]
    if unit_float[HEALTH, agent] <= 0.0 or apart >= sight * sight:
        return False
    return in_cone(rules, unit_float[FOV_X, agent], unit_float[FOV_Y, agent], dx, dy, apart)


@part
def update_visibility(rules, stats, unit_float, unit_int, counters):
    """Draw who may see each enemy (SMACv2's extended partial observability).

    An enemy in sight without a living owner falls to one of the agents that see it. Every other agent may see it with
    probability `visibility_prob`, as long as owner and enemy live. A second call changes nothing.
    """
    for enemy in range(rules.agents, rules.agents + rules.enemies):
        owner = unit_int[OWNER, enemy]
        if owner >= 0 and unit_float[HEALTH, owner] > 0.0 and unit_float[HEALTH, enemy] > 0.0:
            continue
        unit_int[OWNER, enemy], unit_int[WATCHERS, enemy] = -1, 0
        viewers, count = 0, 0
        for agent in range(rules.agents):
            if unit_float[HEALTH, enemy] > 0.0 and sees(rules, stats, unit_float, agent, enemy):
                viewers |= 1 << agent
                count += 1
        if count == 0:
            continue
        chosen = random_int(counters, count)
        for agent in range(rules.agents):
            if (viewers >> agent) & 1:
                if chosen == 0:
                    unit_int[OWNER, enemy] = agent
                chosen -= 1
            if random_int(counters, FINE) < rules.visibility_prob * FINE or unit_int[OWNER, enemy] == agent:
                unit_int[WATCHERS, enemy] |= 1 << agent
