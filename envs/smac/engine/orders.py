"""What units are told: the orders of agents' actions, and those of SMACv2's map to the enemy."""

from marl.envs.smac.engine.combat import (
    ATTACK_MOVING,
    ATTACKING,
    GOING,
    HARMLESS,
    HUNTING,
    IDLE,
    MENDING,
    can_hit,
    gap,
    single,
)
from marl.envs.smac.engine.fields import (
    AGENTS,
    BIOLOGICAL,
    COOLDOWN,
    EAST,
    FIRST_TARGET,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALING,
    HEALTH,
    LOOK_X,
    LOOK_Y,
    MAX_HEALTH,
    NORTH,
    ORDER,
    RECOVER,
    SCAN,
    SOUTH,
    TARGET,
    WEST,
    WINDUP,
    X,
    Y,
    compiled,
    entry,
    reaches,
    target_of,
)

FAR = 1e9


@compiled
def apply_action(rules, world, unit_float, unit_int, agent, action):
    """Give an agent the order of its action. To look somewhere, or to attack out of reach, leaves the old one."""
    order, target = IDLE, -1
    x, y, first = unit_float[X, agent], unit_float[Y, agent], FIRST_TARGET + rules.fov_actions
    if NORTH <= action <= WEST:
        order = GOING
        x += rules.move * ((1.0 if action == EAST else 0.0) - (1.0 if action == WEST else 0.0))
        y += rules.move * ((1.0 if action == NORTH else 0.0) - (1.0 if action == SOUTH else 0.0))
    elif FIRST_TARGET <= action < first:
        unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent] = world.looks[action - FIRST_TARGET]
        return
    elif action >= first:
        target = target_of(rules, world.stats, agent, action - first)
        order = MENDING if target < rules.agents else ATTACKING
        if not rules.masked and not reaches(rules, world.stats, unit_float, agent, target):
            return
    give_order(world.stats, unit_float, unit_int, agent, order, target, x, y)


@compiled
def give_order(stats, unit_float, unit_int, unit, order, target, x, y):
    """Replace a unit's order; False where the game refuses it and the unit keeps the old one."""
    if order == MENDING and (
        stats[HEALER, unit] == 0.0
        or unit_float[HEALTH, target] >= stats[MAX_HEALTH, target]
        or stats[BIOLOGICAL, target] == 0.0
    ):
        return False
    if order == ATTACKING:
        if not can_hit(stats, unit, target):
            return False
        if unit_int[ORDER, unit] == ATTACKING and unit_int[TARGET, unit] == target:
            return True
    if order == ATTACK_MOVING and unit_int[ORDER, unit] == ATTACK_MOVING:
        unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = single(x), single(y)
        return True
    if unit_float[WINDUP, unit] > 0.0:
        unit_float[COOLDOWN, unit] = 0.0
    unit_float[WINDUP, unit] = 0.0
    unit_float[RECOVER, unit] = 0.0
    unit_int[ORDER, unit] = order
    unit_int[TARGET, unit] = target
    unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = single(x), single(y)
    return True


@entry
def find_enemy(stats, unit_float, unit_int, unit):
    """Return the nearest enemy that an attack-moving agent can hit within its scan range, or -1.

    Enemies that fight or heal come before those that do neither.
    """
    best, least = -1, FAR
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, other] > 0.0 and can_hit(stats, unit, other):
            away = gap(stats, unit_float, unit, other)
            harmless = stats[HEALER, other] > 0.0 and unit_int[HEALING, other] < 0
            rank = away + HARMLESS if harmless else away
            if away <= stats[SCAN, unit] and rank < least:
                best, least = other, rank
    return best


@compiled
def trigger_attack(stats, unit_float, unit_int, unit):
    """Send a waiting unit against the nearest agent that it can hit; a healer goes along with the rest."""
    if stats[HEALER, unit] > 0.0:
        unit_int[ORDER, unit] = HUNTING
        return
    least = FAR
    for other in range(int(stats[AGENTS, 0])):
        dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
        apart = dx * dx + dy * dy
        if unit_float[HEALTH, other] > 0.0 and apart < least and can_hit(stats, unit, other):
            least = apart
            unit_int[ORDER, unit], unit_int[TARGET, unit] = ATTACKING, other
