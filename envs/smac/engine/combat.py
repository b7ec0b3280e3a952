"""Attacks and damage: wind-up, hits, missiles, splash, explosions."""

import math

from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import (
    AGENTS,
    AIM,
    ARMOR,
    ATTACK,
    BACKSWING,
    BURSTS,
    COOLDOWN,
    DAMAGE_POINT,
    FLIES,
    HEALTH,
    HIT_DELAY,
    HITS,
    HITS_AIR,
    IMPACT,
    MELEE_POINT,
    MELEE_RANGE,
    MISSILE_SPEED,
    PERIOD,
    RADIUS,
    RANGE,
    RANGE_SLACK,
    RECOVER,
    SECOND,
    SHIELD,
    SHIELD_DELAY,
    STAT_FIELDS,
    TARGET,
    TOUCH,
    VICTIM,
    WINDUP,
    X,
    Y,
    random_int,
)

INSTANT, LINE, BURST = range(3)
"""Kinds of attack: one target; a line across the target; a circle around the attacker, which dies."""

SPLASH_POINTS = 5
SPLASH_PITCH = 0.25
SPLASH_WIDTH = 0.15
BURST_RADIUS = 2.2
MIN_DAMAGE = 0.5
SHIELD_DELAY_LOOPS = 10.0 * SECOND
HELP_RADIUS = 5.0


@compiled
def edge_distance(stats, unit_float, unit, other):
    """Return the distance between the edges of two units, negative where they overlap."""
    dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
    return math.sqrt(dx * dx + dy * dy) - stats[RADIUS, unit] - stats[RADIUS, other]


@compiled
def can_hit(stats, unit, other):
    """Return whether a unit's weapon reaches the other's plane (ground or air)."""
    return stats[ATTACK, unit] >= 0.0 and (stats[FLIES, other] == 0.0 or stats[HITS_AIR, unit] > 0.0)


@compiled
def call_for_help(stats, unit_float, unit_int, victim, attacker):
    """Turn idle or marching enemies near a victim on an attacker outside their scan range."""
    for unit in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, unit] > 0.0 and unit_int[TARGET, unit] < 0 and can_hit(stats, unit, attacker):
            dx, dy = unit_float[X, victim] - unit_float[X, unit], unit_float[Y, victim] - unit_float[Y, unit]
            if dx * dx + dy * dy <= HELP_RADIUS * HELP_RADIUS:
                unit_int[TARGET, unit] = attacker


@compiled
def damage(stats, unit_float, unit_int, attacker, victim):
    """Apply one hit, which may kill. Shields absorb it first; a hit on health takes at least 0.5 points."""
    if unit_float[HEALTH, victim] <= 0.0:
        return
    force = stats[STAT_FIELDS + attacker, victim]
    unit_float[SHIELD_DELAY, victim] = SHIELD_DELAY_LOOPS
    taken = min(unit_float[SHIELD, victim], force)
    unit_float[SHIELD, victim] -= taken
    if force > taken:
        unit_float[HEALTH, victim] -= max(MIN_DAMAGE, force - taken - stats[ARMOR, victim])
    if unit_float[HEALTH, victim] <= 0.0:
        unit_float[HEALTH, victim] = 0.0
        unit_float[SHIELD, victim] = 0.0
        if stats[BURSTS, victim] > 0.0:
            unit_float[IMPACT, victim] = 1e-3
            unit_int[VICTIM, victim] = victim
    elif victim >= int(stats[AGENTS, 0]) and unit_int[TARGET, victim] < 0:
        call_for_help(stats, unit_float, unit_int, victim, attacker)


@compiled
def explode(stats, unit_float, unit_int, unit):
    """Blow up a suicide unit: every opponent on the ground in range takes a hit."""
    unit_float[HEALTH, unit] = 0.0
    unit_float[IMPACT, unit] = 0.0
    agents = int(stats[AGENTS, 0])
    first, last = (agents, stats.shape[1]) if unit < agents else (0, agents)
    for other in range(first, last):
        if stats[FLIES, other] == 0.0:
            dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
            reach = BURST_RADIUS + stats[RADIUS, other]
            if dx * dx + dy * dy <= reach * reach:
                damage(stats, unit_float, unit_int, unit, other)


@compiled
def sweep_beams(stats, unit_float, unit_int, unit, target):
    """Sweep beams along a line through the target, across the shot. Each beam hits every opponent once."""
    dx, dy = unit_float[X, target] - unit_float[X, unit], unit_float[Y, target] - unit_float[Y, unit]
    length = max(1e-9, math.sqrt(dx * dx + dy * dy))
    dx, dy = dx / length, dy / length
    agents = int(stats[AGENTS, 0])
    first, last = (agents, stats.shape[1]) if unit < agents else (0, agents)
    for other in range(first, last):
        if unit_float[HEALTH, other] <= 0.0 or stats[FLIES, other] > 0.0:
            continue
        ox, oy = unit_float[X, other] - unit_float[X, target], unit_float[Y, other] - unit_float[Y, target]
        along = (oy * dx - ox * dy) / SPLASH_PITCH
        point = SPLASH_PITCH * max(-SPLASH_POINTS, min(SPLASH_POINTS, math.floor(along + 0.5)))
        px, py = ox + dy * point, oy - dx * point
        reach = SPLASH_WIDTH + stats[RADIUS, other]
        if px * px + py * py <= reach * reach:
            for _ in range(int(stats[HITS, unit])):
                damage(stats, unit_float, unit_int, unit, other)


@compiled
def fire(stats, unit_float, unit_int, unit, target):
    """End a wind-up: hit now, or start a missile, a second hit or a beam."""
    kind = int(stats[ATTACK, unit])
    unit_float[WINDUP, unit] = 0.0
    unit_float[RECOVER, unit] = stats[BACKSWING, unit]
    unit_int[VICTIM, unit] = target
    if kind == BURST:
        explode(stats, unit_float, unit_int, unit)
    elif kind == LINE:
        unit_float[IMPACT, unit] = stats[HIT_DELAY, unit]
    elif stats[MISSILE_SPEED, unit] > 0.0 and edge_distance(stats, unit_float, unit, target) > stats[MELEE_RANGE, unit]:
        flight = max(0.0, edge_distance(stats, unit_float, unit, target)) / stats[MISSILE_SPEED, unit]
        unit_float[IMPACT, unit] = max(1e-3, flight)
    else:
        damage(stats, unit_float, unit_int, unit, target)
        if stats[HITS, unit] > 1.0:
            unit_float[IMPACT, unit] = stats[HIT_DELAY, unit]


@compiled
def apply_impacts(stats, unit_float, unit_int):
    """Apply missiles, second hits and delayed explosions that are due. An explosion may set off the next."""
    for unit in range(stats.shape[1]):
        if unit_float[IMPACT, unit] > 0.0:
            unit_float[IMPACT, unit] -= 1.0
            if unit_float[IMPACT, unit] > 0.0:
                continue
            unit_float[IMPACT, unit] = 0.0
            target = unit_int[VICTIM, unit]
            if stats[BURSTS, unit] > 0.0:
                explode(stats, unit_float, unit_int, unit)
            elif stats[ATTACK, unit] == LINE:
                sweep_beams(stats, unit_float, unit_int, unit, target)
            elif stats[HITS, unit] == 1.0 or unit_float[HEALTH, unit] > 0.0:
                damage(stats, unit_float, unit_int, unit, target)


@compiled
def continue_attack(stats, unit_float, unit_int, unit):
    """Continue an attack that has begun. Return whether the unit is busy with it."""
    if unit_float[WINDUP, unit] > 0.0:
        target = unit_int[AIM, unit]
        reach = stats[RANGE, unit] + stats[RANGE_SLACK, unit] + TOUCH  # TOUCH as in `attack`
        if unit_float[HEALTH, target] <= 0.0 or edge_distance(stats, unit_float, unit, target) > reach:
            unit_float[WINDUP, unit] = 0.0
            unit_float[COOLDOWN, unit] = 0.0
            return False
        unit_float[WINDUP, unit] -= 1.0
        if unit_float[WINDUP, unit] <= 0.0:
            fire(stats, unit_float, unit_int, unit, target)
        return True
    if unit_float[RECOVER, unit] > 0.0:
        unit_float[RECOVER, unit] -= 1.0
        return unit_float[RECOVER, unit] > 0.0
    return False


@compiled
def attack(stats, unit_float, unit_int, counters, unit, target, away):
    """Attack a target in range, `away` from edge to edge. Return the distance to walk to one out of range."""
    if away > stats[RANGE, unit] + TOUCH:
        return away - stats[RANGE, unit]
    if unit_float[COOLDOWN, unit] > 0.0:
        return 0.0
    delay = -1.0 + 3.0 * random_int(counters, 1 << 20) / (1 << 20)
    unit_float[COOLDOWN, unit] = stats[PERIOD, unit] + delay
    unit_int[AIM, unit] = target
    close = away <= stats[MELEE_RANGE, unit]
    unit_float[WINDUP, unit] = stats[MELEE_POINT, unit] if close else stats[DAMAGE_POINT, unit]
    if unit_float[WINDUP, unit] <= 0.0:
        fire(stats, unit_float, unit_int, unit, target)
    return 0.0
