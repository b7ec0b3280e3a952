"""What units do to each other and to the ground: damage, splash, healing, steps and collisions.

Compiled functions of one battle's arrays; see `envs.smac.rules` for their fields.
"""

import math
from typing import NamedTuple

import numpy as np

from envs.smac.rules import (
    ACCELERATION,
    AGENTS,
    AIM,
    ARMOUR,
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
    LEAST_X,
    LEAST_Y,
    MELEE_POINT,
    MELEE_RANGE,
    MISSILE_SPEED,
    MOST_X,
    MOST_Y,
    MOVED,
    PACE,
    PERIOD,
    QUIET,
    RADIUS,
    RANDOM,
    RANGE,
    RECOVER,
    SEPARATION,
    SHIELD,
    SLOP,
    STAT_FIELDS,
    STEP,
    TARGET,
    VICTIM,
    WALKS,
    WINDUP,
    X,
    Y,
    compiled,
)

SIZE = 32
"""Width and height of a map."""

SECOND = 16.0
"""Game loops in a second."""

INSTANT, LINE, BURST = range(3)
"""Kinds of attack: one target; a line across the target; a circle around the attacker, which dies."""

SPLASH_POINTS = 5
SPLASH_PITCH = 0.25
SPLASH_WIDTH = 0.15
BURST_RADIUS = 2.2
LEAST_DAMAGE = 0.5
SHIELD_DELAY = 10.0 * SECOND
HELP_RADIUS = 5.0
TOUCH = 1e-6
GRAZE = 1e-5
"""Squared distance within which two units only touch."""
SLIDE = 0.8
"""A walker that runs into one that stands goes sideways by this share of the overlap, and so around it."""

RELAXATIONS = 4
DEEP = 0.2
"""Overlaps are resolved at most so often in a loop, until none is so deep."""

IDLE, GOING, ATTACKING, MENDING, ATTACK_MOVING, HUNTING = range(6)
"""Orders of a unit: stand; go to a point; attack or heal a target; attack-move to a point or after the other side."""


class World(NamedTuple):
    """What does not change in a battle.

    `stats` (fields + U, U): the statistics, then row by row each unit's damage of one hit before armour;
    `walkable` (x, y); `near_wall` (x, y): a wall touches the cell; `way` (cells, cells), see `maps.waypoints`, or
    (1, 1) where the ground is one rectangle; `start` (2, U) and `goals` (2, 2) of the map; `order`: what the enemy
    is told; `loops` of one step.
    """

    agents: int
    units: int
    order: int
    loops: int
    stats: np.ndarray
    walkable: np.ndarray
    near_wall: np.ndarray
    way: np.ndarray
    start: np.ndarray
    goals: np.ndarray


@compiled
def draw(tally, bound):
    """A whole number in [0, bound), bound < 2**31, from a multiply-with-carry stream in `tally`."""
    state = tally[RANDOM]
    state = 1791398085 * (state & 0xFFFFFFFF) + (state >> 32)
    tally[RANDOM] = state
    return ((state & 0xFFFFFFFF) * bound) >> 32


@compiled
def single(value):
    """The nearest number of single precision."""
    return float(np.float32(value))


@compiled
def gap(stats, real, unit, other):
    """The distance between the edges of two units, below zero where they overlap."""
    dx, dy = real[X, other] - real[X, unit], real[Y, other] - real[Y, unit]
    return math.sqrt(dx * dx + dy * dy) - stats[RADIUS, unit] - stats[RADIUS, other]


@compiled
def can_hit(stats, unit, other):
    """Whether the unit's weapon reaches the plane of the other."""
    return stats[ATTACK, unit] >= 0.0 and (stats[FLIES, other] == 0.0 or stats[HITS_AIR, unit] > 0.0)


@compiled
def call_for_help(stats, real, whole, victim, attacker):
    """Idle or marching enemies near a victim that is shot from beyond their scan turn on the attacker."""
    for unit in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if real[HEALTH, unit] > 0.0 and whole[TARGET, unit] < 0 and can_hit(stats, unit, attacker):
            dx, dy = real[X, victim] - real[X, unit], real[Y, victim] - real[Y, unit]
            if dx * dx + dy * dy <= HELP_RADIUS * HELP_RADIUS:
                whole[TARGET, unit] = attacker


@compiled
def hurt(stats, real, whole, attacker, victim):
    """One hit: shields take it before armour, a hit on health takes at least half a point. May kill."""
    if real[HEALTH, victim] <= 0.0:
        return
    force = stats[STAT_FIELDS + attacker, victim]
    real[QUIET, victim] = SHIELD_DELAY
    taken = min(real[SHIELD, victim], force)
    real[SHIELD, victim] -= taken
    if force > taken:
        real[HEALTH, victim] -= max(LEAST_DAMAGE, force - taken - stats[ARMOUR, victim])
    if real[HEALTH, victim] <= 0.0:
        real[HEALTH, victim] = 0.0
        real[SHIELD, victim] = 0.0
        if stats[BURSTS, victim] > 0.0:
            real[IMPACT, victim] = 1e-3
            whole[VICTIM, victim] = victim
    elif victim >= int(stats[AGENTS, 0]) and whole[TARGET, victim] < 0:
        call_for_help(stats, real, whole, victim, attacker)


@compiled
def burst(stats, real, whole, unit):
    """A suicide unit blows up: every opponent whose edge is near takes a hit."""
    real[HEALTH, unit] = 0.0
    real[IMPACT, unit] = 0.0
    agents = int(stats[AGENTS, 0])
    first, last = (agents, stats.shape[1]) if unit < agents else (0, agents)
    for other in range(first, last):
        if stats[FLIES, other] == 0.0:
            dx, dy = real[X, other] - real[X, unit], real[Y, other] - real[Y, unit]
            reach = BURST_RADIUS + stats[RADIUS, other]
            if dx * dx + dy * dy <= reach * reach:
                hurt(stats, real, whole, unit, other)


@compiled
def sweep(stats, real, whole, unit, target):
    """Beams along a line through the target, across the shot: each hits every opponent that it touches once."""
    dx, dy = real[X, target] - real[X, unit], real[Y, target] - real[Y, unit]
    length = max(1e-9, math.sqrt(dx * dx + dy * dy))
    dx, dy = dx / length, dy / length
    agents = int(stats[AGENTS, 0])
    first, last = (agents, stats.shape[1]) if unit < agents else (0, agents)
    for other in range(first, last):
        if real[HEALTH, other] <= 0.0 or stats[FLIES, other] > 0.0:
            continue
        ox, oy = real[X, other] - real[X, target], real[Y, other] - real[Y, target]
        along = (oy * dx - ox * dy) / SPLASH_PITCH
        point = SPLASH_PITCH * max(-SPLASH_POINTS, min(SPLASH_POINTS, math.floor(along + 0.5)))
        px, py = ox + dy * point, oy - dx * point
        reach = SPLASH_WIDTH + stats[RADIUS, other]
        if px * px + py * py <= reach * reach:
            for _ in range(int(stats[HITS, unit])):
                hurt(stats, real, whole, unit, other)


@compiled
def fire(stats, real, whole, unit, target):
    """The end of a wind-up: hits now, or sends off what lands later."""
    kind = int(stats[ATTACK, unit])
    real[WINDUP, unit] = 0.0
    real[RECOVER, unit] = stats[BACKSWING, unit]
    whole[VICTIM, unit] = target
    if kind == BURST:
        burst(stats, real, whole, unit)
    elif kind == LINE:
        real[IMPACT, unit] = stats[HIT_DELAY, unit]
    elif stats[MISSILE_SPEED, unit] > 0.0 and gap(stats, real, unit, target) > stats[MELEE_RANGE, unit]:
        flight = max(0.0, gap(stats, real, unit, target)) / stats[MISSILE_SPEED, unit]
        real[IMPACT, unit] = max(1e-3, flight)
    else:
        hurt(stats, real, whole, unit, target)
        if stats[HITS, unit] > 1.0:
            real[IMPACT, unit] = stats[HIT_DELAY, unit]


@compiled
def land(stats, real, whole):
    """Missiles, second hits and delayed explosions that are due. A dead baneling's explosion may kill the next."""
    for unit in range(stats.shape[1]):
        if real[IMPACT, unit] > 0.0:
            real[IMPACT, unit] -= 1.0
            if real[IMPACT, unit] > 0.0:
                continue
            real[IMPACT, unit] = 0.0
            target = whole[VICTIM, unit]
            if stats[BURSTS, unit] > 0.0:
                burst(stats, real, whole, unit)
            elif stats[ATTACK, unit] == LINE:
                sweep(stats, real, whole, unit, target)
            elif stats[HITS, unit] == 1.0 or real[HEALTH, unit] > 0.0:
                hurt(stats, real, whole, unit, target)


@compiled
def pursue_attack(stats, real, whole, unit):
    """Go on with an attack that has begun. True where the unit is busy with it and does nothing else."""
    if real[WINDUP, unit] > 0.0:
        target = whole[AIM, unit]
        reach = stats[RANGE, unit] + stats[SLOP, unit]
        if real[HEALTH, target] <= 0.0 or gap(stats, real, unit, target) > reach:
            real[WINDUP, unit] = 0.0
            real[COOLDOWN, unit] = 0.0
            return False
        real[WINDUP, unit] -= 1.0
        if real[WINDUP, unit] <= 0.0:
            fire(stats, real, whole, unit, target)
        return True
    if real[RECOVER, unit] > 0.0:
        real[RECOVER, unit] -= 1.0
        return real[RECOVER, unit] > 0.0
    return False


@compiled
def attack(stats, way, real, whole, tally, unit, target, away):
    """Shoot the target, whose edge is `away`, where it is in range, and walk to it where it is not."""
    if away > stats[RANGE, unit] + TOUCH:
        walk(stats, way, real, whole, unit, real[X, target], real[Y, target], away - stats[RANGE, unit])
        return
    if real[COOLDOWN, unit] > 0.0:
        return
    delay = -1.0 + 3.0 * draw(tally, 1 << 20) / (1 << 20)
    real[COOLDOWN, unit] = stats[PERIOD, unit] + delay
    whole[AIM, unit] = target
    close = away <= stats[MELEE_RANGE, unit]
    real[WINDUP, unit] = stats[MELEE_POINT, unit] if close else stats[DAMAGE_POINT, unit]
    if real[WINDUP, unit] <= 0.0:
        fire(stats, real, whole, unit, target)


@compiled
def walk(stats, way, real, whole, unit, x, y, most):
    """One loop's way towards a point, at most `most`, around walls. True on arrival at the point."""
    straight = True
    step = min(stats[STEP, unit], most)
    if stats[ACCELERATION, unit] > 0.0:
        real[PACE, unit] = min(stats[STEP, unit], real[PACE, unit] + stats[ACCELERATION, unit])
        step = min(step, real[PACE, unit])
    if way.shape[0] > 1 and stats[WALKS, unit] > 0.0:
        here = int(real[X, unit]) * SIZE + int(real[Y, unit])
        there = int(x) * SIZE + int(y)
        via = way[here, there]
        if via != there:
            straight = False
            x, y = via // SIZE + 0.5, via % SIZE + 0.5
    dx, dy = x - real[X, unit], y - real[Y, unit]
    length = math.sqrt(dx * dx + dy * dy)
    whole[MOVED, unit] = 1
    if length <= step:
        real[X, unit], real[Y, unit] = x, y
        return straight
    share = step / length
    real[X, unit] += dx * share
    real[Y, unit] += dy * share
    return False


@compiled
def separate(stats, real, whole, slots, place):
    """Push overlapping ground units apart: the one that walks yields and slips past, of two equal ones
    each gives half.

    `slots` (U,) int64 and `place` (3, U) float64 are scratch: the living ground units, their places and radii.
    """
    count = 0
    for unit in range(stats.shape[1]):
        if real[HEALTH, unit] > 0.0 and stats[FLIES, unit] == 0.0:
            slots[count] = unit
            place[0, count], place[1, count] = real[X, unit], real[Y, unit]
            place[2, count] = stats[SEPARATION, unit]
            count += 1
    pushed = False
    for _ in range(RELAXATIONS):
        deepest = 0.0
        for a in range(count):
            x, y, radius, touching = place[0, a], place[1, a], place[2, a], 0
            for b in range(a + 1, count):
                dx, dy, reach = place[0, b] - x, place[1, b] - y, place[2, b] + radius
                touching += dx * dx + dy * dy < reach * reach - GRAZE
            if touching:
                pushed = True
                for b in range(a + 1, count):
                    dx, dy, reach = place[0, b] - place[0, a], place[1, b] - place[1, a], place[2, b] + radius
                    if dx * dx + dy * dy < reach * reach - GRAZE:
                        deepest = max(deepest, push(stats, whole, slots, place, a, b))
        if deepest < DEEP:
            break
    if pushed:
        for a in range(count):
            real[X, slots[a]], real[Y, slots[a]] = place[0, a], place[1, a]


@compiled
def push(stats, whole, slots, place, a, b):
    """Move two overlapping units of `place` apart; returns by how much they did overlap."""
    dx, dy = place[0, b] - place[0, a], place[1, b] - place[1, a]
    reach = place[2, a] + place[2, b]
    apart = math.sqrt(dx * dx + dy * dy)
    if apart < 1e-9:
        dx, dy, apart = 0.0, 1.0, 1.0
        depth = reach
    else:
        depth = reach - apart
    first, second = float(whole[MOVED, slots[a]]), float(whole[MOVED, slots[b]])
    slide = 0.0
    if first == second:
        first = second = 0.5
    else:
        slide = depth * SLIDE * (1.0 if (slots[a] + slots[b]) % 2 == 0 else -1.0)
    if stats[STEP, slots[a]] == 0.0:
        first, second = 0.0, 1.0
    elif stats[STEP, slots[b]] == 0.0:
        first, second = 1.0, 0.0
    dx, dy = dx / apart, dy / apart
    place[0, a] -= (dx * depth - dy * slide) * first
    place[1, a] -= (dy * depth + dx * slide) * first
    place[0, b] += (dx * depth - dy * slide) * second
    place[1, b] += (dy * depth + dx * slide) * second
    return depth


@compiled
def confine(stats, way, walkable, near_wall, real):
    """Keep units within the rectangle of their plane, and ground units out of the walls in it."""
    for unit in range(stats.shape[1]):
        x, y = real[X, unit], real[Y, unit]
        x = stats[LEAST_X, unit] if x < stats[LEAST_X, unit] else x
        y = stats[LEAST_Y, unit] if y < stats[LEAST_Y, unit] else y
        real[X, unit] = stats[MOST_X, unit] if x > stats[MOST_X, unit] else x
        real[Y, unit] = stats[MOST_Y, unit] if y > stats[MOST_Y, unit] else y
    if way.shape[0] == 1:
        return
    for unit in range(stats.shape[1]):
        walks = real[HEALTH, unit] > 0.0 and stats[WALKS, unit] > 0.0
        if walks and near_wall[int(real[X, unit]), int(real[Y, unit])]:
            leave_walls(walkable, real, unit, stats[SEPARATION, unit])


@compiled
def leave_walls(walkable, real, unit, radius):
    """Push a disc out of the wall cells around it; out of a wall that it stands in, to the nearest ground."""
    x, y = real[X, unit], real[Y, unit]
    column, line = int(x), int(y)
    if not walkable[column, line]:
        best = 1e9
        for i in range(max(0, column - 3), min(walkable.shape[0], column + 4)):
            for j in range(max(0, line - 3), min(walkable.shape[1], line + 4)):
                if walkable[i, j]:
                    near_x = min(max(real[X, unit], i + TOUCH), i + 1.0 - TOUCH)
                    near_y = min(max(real[Y, unit], j + TOUCH), j + 1.0 - TOUCH)
                    away = (near_x - real[X, unit]) ** 2 + (near_y - real[Y, unit]) ** 2
                    if away < best:
                        best, x, y = away, near_x, near_y
        column, line = int(x), int(y)
    for i in range(max(0, column - 1), min(walkable.shape[0], column + 2)):
        for j in range(max(0, line - 1), min(walkable.shape[1], line + 2)):
            if not walkable[i, j]:
                dx, dy = x - min(max(x, float(i)), i + 1.0), y - min(max(y, float(j)), j + 1.0)
                apart = math.sqrt(dx * dx + dy * dy)
                if 0.0 < apart < radius:
                    x += dx / apart * (radius - apart)
                    y += dy / apart * (radius - apart)
    if walkable[int(x), int(y)]:
        real[X, unit], real[Y, unit] = x, y
