"""Orders of units: acceptance of an order, targets of attack-moves, SMACv2's attack trigger."""

from marl.envs.smac.engine.combat import can_hit, edge_distance
from marl.envs.smac.engine.compiling import compiled, part
from marl.envs.smac.engine.fields import (
    AGENTS,
    ATTACK_MOVING,
    ATTACKING,
    BIOLOGICAL,
    COOLDOWN,
    FAR,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALING,
    HEALTH,
    HUNTING,
    MAX_HEALTH,
    MENDING,
    ORDER,
    RECOVER,
    SCAN,
    TARGET,
    WINDUP,
    X,
    Y,
    to_float32,
)
from marl.envs.smac.engine.pathing import HARMLESS_RANK


@compiled
def give_order(stats, unit_float, unit_int, unit, order, target, x, y):
    """Replace a unit's order. Return False if the game refuses it and the unit keeps the old one."""
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
        unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = to_float32(x), to_float32(y)
        return True
    if unit_float[WINDUP, unit] > 0.0:
        unit_float[COOLDOWN, unit] = 0.0
    unit_float[WINDUP, unit] = 0.0
    unit_float[RECOVER, unit] = 0.0
    unit_int[ORDER, unit] = order
    unit_int[TARGET, unit] = target
    unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = to_float32(x), to_float32(y)
    return True


@part
def find_enemy(stats, unit_float, unit_int, unit):
    """Return the nearest enemy that an attack-moving agent can hit within its scan range, or -1.

    Enemies that fight or heal come before the others.
    """
    best, least = -1, FAR
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, other] > 0.0 and can_hit(stats, unit, other):
            away = edge_distance(stats, unit_float, unit, other)
            harmless = stats[HEALER, other] > 0.0 and unit_int[HEALING, other] < 0
            rank = away + HARMLESS_RANK if harmless else away
            if away <= stats[SCAN, unit] and rank < least:
                best, least = other, rank
    return best


@compiled
def trigger_attack(stats, unit_float, unit_int, unit):
    """Send a waiting unit against the nearest agent that it can hit. A healer follows the others."""
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
