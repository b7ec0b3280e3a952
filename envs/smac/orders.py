"""What units are told: the orders of agents' actions, and those of SMACv2's map to the enemy."""

from envs.smac.combat import (
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
from envs.smac.rules import (
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
def command(rules, world, real, whole, agent, action):
    """Give an agent the order of its action. To look somewhere, or to attack out of reach, leaves the old one."""
    order, target = IDLE, -1
    x, y, first = real[X, agent], real[Y, agent], FIRST_TARGET + rules.looks
    if NORTH <= action <= WEST:
        order = GOING
        x += rules.move * ((1.0 if action == EAST else 0.0) - (1.0 if action == WEST else 0.0))
        y += rules.move * ((1.0 if action == NORTH else 0.0) - (1.0 if action == SOUTH else 0.0))
    elif FIRST_TARGET <= action < first:
        real[LOOK_X, agent], real[LOOK_Y, agent] = world.looks[action - FIRST_TARGET]
        return
    elif action >= first:
        target = target_of(rules, world.stats, agent, action - first)
        order = MENDING if target < rules.agents else ATTACKING
        if not rules.masked and not reaches(rules, world.stats, real, agent, target):
            return
    give_order(world.stats, real, whole, agent, order, target, x, y)


@compiled
def give_order(stats, real, whole, unit, order, target, x, y):
    """Replace a unit's order; False where the game refuses it and the unit keeps the old one."""
    if order == MENDING and (
        stats[HEALER, unit] == 0.0
        or real[HEALTH, target] >= stats[MAX_HEALTH, target]
        or stats[BIOLOGICAL, target] == 0.0
    ):
        return False
    if order == ATTACKING:
        if not can_hit(stats, unit, target):
            return False
        if whole[ORDER, unit] == ATTACKING and whole[TARGET, unit] == target:
            return True
    if order == ATTACK_MOVING and whole[ORDER, unit] == ATTACK_MOVING:
        real[GOAL_X, unit], real[GOAL_Y, unit] = single(x), single(y)
        return True
    if real[WINDUP, unit] > 0.0:
        real[COOLDOWN, unit] = 0.0
    real[WINDUP, unit] = 0.0
    real[RECOVER, unit] = 0.0
    whole[ORDER, unit] = order
    whole[TARGET, unit] = target
    real[GOAL_X, unit], real[GOAL_Y, unit] = single(x), single(y)
    return True


@entry
def find_enemy(stats, real, whole, unit):
    """Return the nearest enemy that an attack-moving agent can hit within its scan range, or -1.

    Enemies that fight or heal come before those that do neither.
    """
    best, least = -1, FAR
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if real[HEALTH, other] > 0.0 and can_hit(stats, unit, other):
            away = gap(stats, real, unit, other)
            harmless = stats[HEALER, other] > 0.0 and whole[HEALING, other] < 0
            rank = away + HARMLESS if harmless else away
            if away <= stats[SCAN, unit] and rank < least:
                best, least = other, rank
    return best


@compiled
def rouse(stats, real, whole, unit):
    """Send a waiting unit against the nearest agent that it can hit; a healer goes along with the rest."""
    if stats[HEALER, unit] > 0.0:
        whole[ORDER, unit] = HUNTING
        return
    least = FAR
    for other in range(int(stats[AGENTS, 0])):
        dx, dy = real[X, other] - real[X, unit], real[Y, other] - real[Y, unit]
        apart = dx * dx + dy * dy
        if real[HEALTH, other] > 0.0 and apart < least and can_hit(stats, unit, other):
            least = apart
            whole[ORDER, unit], whole[TARGET, unit] = ATTACKING, other
