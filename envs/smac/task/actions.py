"""Actions of agents: availability, targets, and the orders that they give."""

from marl.envs.smac.engine.compiling import compiled, part
from marl.envs.smac.engine.fields import (
    ATTACKING,
    EAST,
    FIRST_TARGET,
    FOV_X,
    FOV_Y,
    HEALER,
    HEALTH,
    IDLE,
    MENDING,
    MOVING,
    NO_ACTION,
    NORTH,
    SHOOT,
    SOUTH,
    STOP,
    WEST,
    X,
    Y,
)
from marl.envs.smac.engine.orders import give_order
from marl.envs.smac.engine.scenario import in_cone


@compiled
def is_walkable(walkable, x, y):
    """Return whether the cell of a point is on the map and walkable. Coordinates are truncated towards zero, as in
    SMAC."""
    return -1.0 < x < walkable.shape[0] and -1.0 < y < walkable.shape[1] and walkable[int(x), int(y)]


@compiled
def reaches(rules, stats, unit_float, agent, other):
    """Return whether another unit is within an agent's reach and in its cone of sight."""
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, reach = dx * dx + dy * dy, stats[SHOOT, agent]
    return apart <= reach * reach and in_cone(rules, unit_float[FOV_X, agent], unit_float[FOV_Y, agent], dx, dy, apart)


@compiled
def offer_actions(rules, stats, walkable, unit_float, mask):
    """Fill `mask` (N, A) bool with the actions available now. A dead agent can only do nothing."""
    n, first = rules.agents, FIRST_TARGET + rules.fov_actions
    reach = rules.move / 2.0
    mask[:] = False
    for agent in range(n):
        if unit_float[HEALTH, agent] <= 0.0:
            mask[agent, NO_ACTION] = True
            continue
        x, y = unit_float[X, agent], unit_float[Y, agent]
        look_x, look_y, near = (
            unit_float[FOV_X, agent],
            unit_float[FOV_Y, agent],
            stats[SHOOT, agent] * stats[SHOOT, agent],
        )
        mask[agent, STOP] = True
        mask[agent, NORTH] = is_walkable(walkable, x, y + reach)
        mask[agent, SOUTH] = is_walkable(walkable, x, y - reach)
        mask[agent, EAST] = is_walkable(walkable, x + reach, y)
        mask[agent, WEST] = is_walkable(walkable, x - reach, y)
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
    """Return the number of targeted actions of an agent: one for each agent for a healer, else one for each enemy."""
    if rules.healers and stats[HEALER, agent] > 0.0:
        return min(rules.agents, rules.actions - FIRST_TARGET - rules.fov_actions)
    return rules.enemies


@part
def offer_targets(rules, stats, unit_float, mask):
    """Offer every living agent all its living targets, within reach or not (SMACv2's `action_mask=False`).

    Targets of a healer are agents that are not healers. Targets of every other agent are the enemies.
    """
    for agent in range(rules.agents):
        for number in range(num_targets(rules, stats, agent)):
            unit = target_of(rules, stats, agent, number)
            healer = unit < rules.agents and stats[HEALER, unit] > 0.0
            if unit_float[HEALTH, agent] > 0.0 and unit_float[HEALTH, unit] > 0.0 and not healer:
                mask[agent, FIRST_TARGET + rules.fov_actions + number] = True


@compiled
def target_of(rules, stats, agent, number):
    """Return the unit that a targeted action of an agent means."""
    return number if rules.healers and stats[HEALER, agent] > 0.0 else rules.agents + number


@compiled
def apply_action(rules, world, unit_float, unit_int, agent, action):
    """Give an agent the order of its action. Turning the cone, or a target out of reach, keeps the old order."""
    order, target = IDLE, -1
    x, y, first = unit_float[X, agent], unit_float[Y, agent], FIRST_TARGET + rules.fov_actions
    if NORTH <= action <= WEST:
        order = MOVING
        x += rules.move * ((1.0 if action == EAST else 0.0) - (1.0 if action == WEST else 0.0))
        y += rules.move * ((1.0 if action == NORTH else 0.0) - (1.0 if action == SOUTH else 0.0))
    elif FIRST_TARGET <= action < first:
        unit_float[FOV_X, agent], unit_float[FOV_Y, agent] = world.fov_directions[action - FIRST_TARGET]
        return
    elif action >= first:
        target = target_of(rules, world.stats, agent, action - first)
        order = MENDING if target < rules.agents else ATTACKING
        if not rules.masked and not reaches(rules, world.stats, unit_float, agent, target):
            return
    give_order(world.stats, unit_float, unit_int, agent, order, target, x, y)
