"""What chance decides beyond the fighting: SMACv2's teams and starting places, and who may see an enemy.

Compiled functions of one battle's arrays, which draw from its random stream; see
`marl.envs.smac.engine.fields` for the fields.
"""

from marl.envs.smac.engine.combat import SIZE, TOUCH, World, draw, one_world
from marl.envs.smac.engine.fields import (
    FLIES,
    HEALTH,
    KIND,
    LEAST_X,
    LEAST_Y,
    LOOK_X,
    LOOK_Y,
    MAX_HEALTH,
    MAX_SHIELD,
    MOST_X,
    MOST_Y,
    OWNER,
    SCALE,
    SEPARATION,
    SIGHT,
    STAT_FIELDS,
    WATCHERS,
    Rules,
    X,
    Y,
    compiled,
    entry,
    in_cone,
)

FINE = 1 << 20
"""Into so many parts a random share is divided."""

NEAREST = 2.0
"""How far from the center, along each axis, enemies on a diagonal stand at least."""

STRIP = SIZE / 2.0 - 1.0
"""The width of the part of the map in which agents stand opposite the enemy."""


@compiled
def share(counters):
    """A number in [0, 1)."""
    return draw(counters, FINE) / FINE


@compiled
def draw_kinds(odds, dependent, unit_int, counters, first, last):
    """Draw the types of the units from `first` to `last`, anew as long as all are of the type that needs others."""
    again = first < last
    while again:
        for unit in range(first, last):
            lot, kind = draw(counters, odds[-1]), 0
            while lot >= odds[kind]:
                kind += 1
            unit_int[KIND, unit] = kind
            if kind != dependent:
                again = False


@compiled
def free_corner(counters, taken):
    """One of the four corners whose bits are not set in `taken`."""
    corner = draw(counters, 4)
    while (taken >> corner) & 1:
        corner = draw(counters, 4)
    return corner


@compiled
def surround(start, agents, counters):
    """Agents in the center; the enemy in one to four groups, which chance fills, each somewhere on a diagonal of its
    own. Units of a group follow one another."""
    middle, groups, taken, unit = SIZE / 2.0, 1 + draw(counters, 4), 0, agents
    start[:, :agents] = middle
    for group in range(groups):
        corner, away, size = free_corner(counters, taken), share(counters), start.shape[1] - unit
        taken |= 1 << corner
        if group < groups - 1:
            rest, size = size, 0
            for _ in range(rest):  # of those not yet in a group, each is in this one with equal chances
                size += draw(counters, groups - group) == 0
        reach = away * NEAREST + (1.0 - away) * middle
        for member in range(unit, unit + size):
            start[0, member] = middle + (reach if corner & 1 else -reach)
            start[1, member] = middle + (reach if corner & 2 else -reach)
        unit += size


@compiled
def reflect(start, agents, counters):
    """Agents anywhere on the western side, the enemy as their mirror image; enemies beyond their number anywhere on
    the eastern side."""
    for unit in range(start.shape[1]):
        twin = unit - agents
        if unit < agents:
            start[0, unit], start[1, unit] = STRIP * share(counters), SIZE * share(counters)
        elif twin < agents:
            start[0, unit], start[1, unit] = SIZE - start[0, twin], start[1, twin]
        else:
            start[0, unit], start[1, unit] = SIZE / 2.0 * (1.0 + share(counters)), SIZE * share(counters)


@compiled
def is_free(start, traits, unit_int, unit, x, y):
    """Whether a place is within the bounds of a unit and touches no unit before it."""
    kind = unit_int[KIND, unit]
    if not (traits[LEAST_X, kind] <= x <= traits[MOST_X, kind] and traits[LEAST_Y, kind] <= y <= traits[MOST_Y, kind]):
        return False
    for other in range(unit):
        near = traits[SEPARATION, kind] + traits[SEPARATION, unit_int[KIND, other]] - TOUCH
        dx, dy = start[0, other] - x, start[1, other] - y
        if traits[FLIES, kind] == traits[FLIES, unit_int[KIND, other]] and dx * dx + dy * dy < near * near:
            return False
    return True


@compiled
def spread(start, traits, lattice, agents, unit_int):
    """Move units from their starts to the nearest free places, in the order of their creation; mirrored for the enemy,
    so that the image of a team is a team's image."""
    for unit in range(start.shape[1]):
        kind = unit_int[KIND, unit]
        x = min(max(start[0, unit], traits[LEAST_X, kind]), traits[MOST_X, kind])
        y = min(max(start[1, unit], traits[LEAST_Y, kind]), traits[MOST_Y, kind])
        side = 1.0 if unit < agents else -1.0
        for spot in range(lattice.shape[0]):
            there_x, there_y = x + side * lattice[spot, 0], y + lattice[spot, 1]
            if is_free(start, traits, unit_int, unit, there_x, there_y):
                x, y = there_x, there_y
                break
        start[0, unit], start[1, unit] = x, y


@compiled
def goes_before(start, unit_int, unit, other):
    """Whether SMAC numbers an agent before another: by type, then from west to east, then from south to north."""
    if unit_int[KIND, unit] != unit_int[KIND, other]:
        return unit_int[KIND, unit] < unit_int[KIND, other]
    if start[0, unit] != start[0, other]:
        return start[0, unit] < start[0, other]
    return start[1, unit] < start[1, other]


@compiled
def number_agents(start, agents, unit_int):
    """Sort the agents into SMAC's order. Enemies stay in the order of their creation."""
    for agent in range(1, agents):
        place = agent
        while place > 0 and goes_before(start, unit_int, place, place - 1):
            before = place - 1
            unit_int[KIND, place], unit_int[KIND, before] = unit_int[KIND, before], unit_int[KIND, place]
            start[0, place], start[0, before] = start[0, before], start[0, place]
            start[1, place], start[1, before] = start[1, before], start[1, place]
            place = before


@entry
def fill_unit_stats(rules, world, unit_int):
    """Fill `world.stats` with the statistics of the types in `whole`, and with what a reward is multiplied by."""
    stats, traits, worth = world.stats, world.traits, 0.0
    for unit in range(world.units):
        kind = unit_int[KIND, unit]
        for field in range(STAT_FIELDS):
            stats[field, unit] = traits[field, kind]
        for other in range(world.units):
            stats[STAT_FIELDS + unit, other] = traits[STAT_FIELDS + kind, unit_int[KIND, other]]
        if unit >= world.agents:
            worth += stats[MAX_HEALTH, unit] + stats[MAX_SHIELD, unit]
    if rules.reward_scale_rate > 0.0:
        stats[SCALE] = rules.reward_scale_rate / (rules.death_value * rules.enemies + rules.win + worth)


@entry
def sample_teams(rules, world, battle_whole, battle_tally, chosen):
    """Draw the teams and starts of an episode in each of the chosen environments, into KIND and the world's `stats` and
    `start`: two equal teams, and for the larger enemy's additional units a draw of their own.

    `rules` and `world` are plain tuples, see `engine.advance`; the arrays are those of all environments.
    """
    rules, world = Rules(*rules), World(*world)
    agents, units = world.agents, world.units
    twins = min(units, 2 * agents)
    for env in chosen:
        here, unit_int, counters = one_world(world, env), battle_whole[env], battle_tally[env]
        draw_kinds(world.odds, world.dependent, unit_int, counters, 0, agents)
        draw_kinds(world.odds, world.dependent, unit_int, counters, twins, units)
        for unit in range(agents, twins):
            unit_int[KIND, unit] = unit_int[KIND, unit - agents]
        if draw(counters, 2) == 0:
            surround(here.start, agents, counters)
        else:
            reflect(here.start, agents, counters)
        spread(here.start, world.traits, world.lattice, agents, unit_int)
        number_agents(here.start, agents, unit_int)
        fill_unit_stats(rules, here, unit_int)


@compiled
def sees(rules, stats, unit_float, agent, other):
    """Whether a living agent has another unit in sight."""
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, sight = dx * dx + dy * dy, stats[SIGHT, agent]
    if unit_float[HEALTH, agent] <= 0.0 or apart >= sight * sight:
        return False
    return in_cone(rules, unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent], dx, dy, apart)


@entry
def update_visibility(rules, stats, unit_float, unit_int, counters):
    """Let enemies in sight that belong to no living agent fall to one of those that see them, and draw which others
    may see them too, as long as that agent and the enemy live. Called again, it changes nothing."""
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
        chosen = draw(counters, count)
        for agent in range(rules.agents):
            if (viewers >> agent) & 1:
                if chosen == 0:
                    unit_int[OWNER, enemy] = agent
                chosen -= 1
            if draw(counters, FINE) < rules.visibility_prob * FINE or unit_int[OWNER, enemy] == agent:
                unit_int[WATCHERS, enemy] |= 1 << agent
