"""What units do to each other and to the ground: damage, splash, healing, steps and collisions.

Compiled functions of one battle's arrays; see `marl.envs.smac.engine.fields` for their fields.
"""

import math
from typing import NamedTuple

import numpy as np

from marl.envs.smac.engine.fields import (
    ACCELERATION,
    AGENTS,
    AIM,
    ARMOR,
    ATTACK,
    BACKSWING,
    BURSTS,
    COOLDOWN,
    DAMAGE_POINT,
    FLIES,
    HEALER,
    HEALING,
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
    SIDE,
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
MIN_DAMAGE = 0.5
SHIELD_DELAY = 10.0 * SECOND
HELP_RADIUS = 5.0
TOUCH = 1e-6
GRAZE = np.float32(1e-5)
"""Squared distance within which two units only touch."""

# Rows of `spots` (rows, U) float32, what scans over all units read. Who is dead stands FAR_AWAY.
SPOT_X, SPOT_Y, WIDTH, SOLID, BODY, GROUND_BODY, RANK, NEAR_X, NEAR_Y, NEAR_REACH = range(10)
SPOT_ROWS = 10
"""WIDTH is the separation radius, of a flyer and of the dead ABSENT; SOLID is the same of those that stand still, and
GIVE of it of those that walk. BODY is the radius, GROUND_BODY too but of a flyer ABSENT; RANK sets a target behind.
The last three belong to one unit for a moment, see `gather`."""
FAR_AWAY = np.float32(1e6)
ABSENT = np.float32(-10.0)
HARMLESS = np.float32(1024.0)
"""The RANK of who neither fights nor heals, more than any squared distance at which a target is chosen."""
GIVE = np.float32(0.75)
"""Share of its width that a walking unit keeps to itself: in a column the ones behind move up before those ahead do."""
NOTHING = np.float32(0.0)
ALL, TWICE = np.float32(1.0), np.float32(2.0)

CROWD, FINENESS, SHIFT = np.int32(128), np.float32(1024.0), np.float32(16.0)
LARGEST = np.float32(16000.0)
NOBODY = np.int32(2**31 - 1)
TIGHT = 1e-3

KEPT_LOOPS, SIDE_BIAS = 8, 0.8
"""Loops for which a melee unit remembers on which side it goes around, and the radians that this side may be longer."""
AHEAD, CORNERS, CLOSED = 1.5, 8, 10.0
"""How far it looks for who stands in the way once someone does, how many it goes around, and the turn past too many."""
EIGHTH_X, EIGHTH_Y, EIGHTHS = math.cos(math.pi / 8), math.sin(math.pi / 8), 4
"""An eighth of a half turn, and how many of them it tries to squeeze past units that walk."""

IDLE, GOING, ATTACKING, MENDING, ATTACK_MOVING, HUNTING, WAITING = range(7)
"""Orders of a unit: stand; go to a point; attack or heal a target; attack-move to a point or after the other side;
stand until the map's trigger sends it against the nearest agent."""


class World(NamedTuple):
    """What does not change in a battle.

    `stats` (fields + U, U): the statistics, then row by row each unit's damage of one hit before armor; `traits`
    (fields + K, K): the same of the K types of which teams are drawn, K = 0 where they are not; `odds` (K,) the sums of
    the types' weights up to each of them; `dependent`: the type of which no team consists alone, or -1; `lattice`
    (L, 2): where a unit may stand around its start, nearest first; `looks` (K, 2): where a cone of sight may point;
    `walkable` (x, y); `near_wall` (x, y): a wall touches the cell; `way` (cells, cells), see `maps.waypoints`, or
    (1, 1) where the ground is one rectangle; `start` (2, U) and `goals` (2, 2) of the map; `order`: what the enemy
    is told; `loops` of one step.

    For several environments whose teams differ, `stats` and `start` have a leading axis E; see `one_world`.
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
    traits: np.ndarray
    odds: np.ndarray
    dependent: int
    lattice: np.ndarray
    looks: np.ndarray


@compiled
def one_world(world, env):
    """One environment's part of a world whose `stats` and `start` have a leading axis, E or 1 for all."""
    row = env if world.stats.shape[0] > 1 else 0
    parts = world.order, world.loops, world.stats[row], world.walkable, world.near_wall, world.way, world.start[row]
    rest = world.goals, world.traits, world.odds, world.dependent, world.lattice, world.looks
    return World(world.agents, world.units, *parts, *rest)


@compiled
def draw(counters, bound):
    """A whole number in [0, bound), bound < 2**31, from a multiply-with-carry stream in `tally`."""
    state = counters[RANDOM]
    state = 1791398085 * (state & 0xFFFFFFFF) + (state >> 32)
    counters[RANDOM] = state
    return ((state & 0xFFFFFFFF) * bound) >> 32


@compiled
def single(value):
    """The nearest number of single precision."""
    return float(np.float32(value))


@compiled
def rank_of(number, index):
    """A number, over -16 and in steps of 1 / FINENESS, and an index below CROWD as one whole number of 32 bits.

    The least of many is then found by vector instructions, which comparisons of floats do not become.
    """
    return np.int32(np.int32(min(number + SHIFT, LARGEST) * FINENESS) * CROWD + np.int32(index))


@compiled
def gap(stats, unit_float, unit, other):
    """The distance between the edges of two units, below zero where they overlap."""
    dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
    return math.sqrt(dx * dx + dy * dy) - stats[RADIUS, unit] - stats[RADIUS, other]


@compiled
def can_hit(stats, unit, other):
    """Whether the unit's weapon reaches the plane of the other."""
    return stats[ATTACK, unit] >= 0.0 and (stats[FLIES, other] == 0.0 or stats[HITS_AIR, unit] > 0.0)


@compiled
def call_for_help(stats, unit_float, unit_int, victim, attacker):
    """Idle or marching enemies near a victim that is shot from beyond their scan turn on the attacker."""
    for unit in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, unit] > 0.0 and unit_int[TARGET, unit] < 0 and can_hit(stats, unit, attacker):
            dx, dy = unit_float[X, victim] - unit_float[X, unit], unit_float[Y, victim] - unit_float[Y, unit]
            if dx * dx + dy * dy <= HELP_RADIUS * HELP_RADIUS:
                unit_int[TARGET, unit] = attacker


@compiled
def damage(stats, unit_float, unit_int, attacker, victim):
    """One hit: shields take it before armor, a hit on health takes at least half a point. May kill."""
    if unit_float[HEALTH, victim] <= 0.0:
        return
    force = stats[STAT_FIELDS + attacker, victim]
    unit_float[QUIET, victim] = SHIELD_DELAY
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
def burst(stats, unit_float, unit_int, unit):
    """A suicide unit blows up: every opponent whose edge is near takes a hit."""
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
def sweep(stats, unit_float, unit_int, unit, target):
    """Beams along a line through the target, across the shot: each hits every opponent that it touches once."""
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
    """The end of a wind-up: hits now, or sends off what lands later."""
    kind = int(stats[ATTACK, unit])
    unit_float[WINDUP, unit] = 0.0
    unit_float[RECOVER, unit] = stats[BACKSWING, unit]
    unit_int[VICTIM, unit] = target
    if kind == BURST:
        burst(stats, unit_float, unit_int, unit)
    elif kind == LINE:
        unit_float[IMPACT, unit] = stats[HIT_DELAY, unit]
    elif stats[MISSILE_SPEED, unit] > 0.0 and gap(stats, unit_float, unit, target) > stats[MELEE_RANGE, unit]:
        flight = max(0.0, gap(stats, unit_float, unit, target)) / stats[MISSILE_SPEED, unit]
        unit_float[IMPACT, unit] = max(1e-3, flight)
    else:
        damage(stats, unit_float, unit_int, unit, target)
        if stats[HITS, unit] > 1.0:
            unit_float[IMPACT, unit] = stats[HIT_DELAY, unit]


@compiled
def apply_impacts(stats, unit_float, unit_int):
    """Missiles, second hits and delayed explosions that are due. A dead baneling's explosion may kill the next."""
    for unit in range(stats.shape[1]):
        if unit_float[IMPACT, unit] > 0.0:
            unit_float[IMPACT, unit] -= 1.0
            if unit_float[IMPACT, unit] > 0.0:
                continue
            unit_float[IMPACT, unit] = 0.0
            target = unit_int[VICTIM, unit]
            if stats[BURSTS, unit] > 0.0:
                burst(stats, unit_float, unit_int, unit)
            elif stats[ATTACK, unit] == LINE:
                sweep(stats, unit_float, unit_int, unit, target)
            elif stats[HITS, unit] == 1.0 or unit_float[HEALTH, unit] > 0.0:
                damage(stats, unit_float, unit_int, unit, target)


@compiled
def pursue_attack(stats, unit_float, unit_int, unit):
    """Go on with an attack that has begun. True where the unit is busy with it and does nothing else."""
    if unit_float[WINDUP, unit] > 0.0:
        target = unit_int[AIM, unit]
        reach = stats[RANGE, unit] + stats[SLOP, unit] + TOUCH  # as where it began: at its very edge it goes on
        if unit_float[HEALTH, target] <= 0.0 or gap(stats, unit_float, unit, target) > reach:
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
    """Shoot the target, whose edge is `away`, where it is in range; returns how far to walk where it is not."""
    if away > stats[RANGE, unit] + TOUCH:
        return away - stats[RANGE, unit]
    if unit_float[COOLDOWN, unit] > 0.0:
        return 0.0
    delay = -1.0 + 3.0 * draw(counters, 1 << 20) / (1 << 20)
    unit_float[COOLDOWN, unit] = stats[PERIOD, unit] + delay
    unit_int[AIM, unit] = target
    close = away <= stats[MELEE_RANGE, unit]
    unit_float[WINDUP, unit] = stats[MELEE_POINT, unit] if close else stats[DAMAGE_POINT, unit]
    if unit_float[WINDUP, unit] <= 0.0:
        fire(stats, unit_float, unit_int, unit, target)
    return 0.0


@compiled
def walk(stats, way, unit_float, unit_int, spots, unit, x, y, most, chases):
    """One loop's way towards a point, at most `most`, around walls and units in the way. True on arrival.

    A unit that `chases` wants to touch who is there, and so goes around a crowd that stands between.
    """
    straight = True
    step = min(stats[STEP, unit], most)
    if stats[ACCELERATION, unit] > 0.0:
        unit_float[PACE, unit] = min(stats[STEP, unit], unit_float[PACE, unit] + stats[ACCELERATION, unit])
        step = min(step, unit_float[PACE, unit])
    if way.shape[0] > 1 and stats[WALKS, unit] > 0.0:
        here = int(unit_float[X, unit]) * SIZE + int(unit_float[Y, unit])
        there = min(max(int(x), 0), SIZE - 1) * SIZE + min(max(int(y), 0), SIZE - 1)
        via = way[here, there]
        if via != there:
            straight = False
            x, y = via // SIZE + 0.5, via % SIZE + 0.5
    dx, dy = x - unit_float[X, unit], y - unit_float[Y, unit]
    length = math.sqrt(dx * dx + dy * dy)
    if length > step:
        dx, dy = dx * (step / length), dy * (step / length)
    if stats[FLIES, unit] == 0.0:
        spots[SOLID, unit] = ABSENT
        if chases and straight:
            dx, dy = go_around(unit_int, spots, unit, dx, dy, most)
            if dx == 0.0 and dy == 0.0:
                return False
        blocker = blocker_of(spots, unit, dx, dy)
        if blocker >= 0 and chases and unit_int[SIDE, unit] != 0:
            squeeze_past(unit_float, unit_int, spots, unit, dx, dy)
            return False
        if blocker >= 0:
            step_aside(unit_float, unit_int, spots, unit, blocker, dx, dy)
            return False
    move_to(unit_float, spots, unit, unit_float[X, unit] + dx, unit_float[Y, unit] + dy)
    unit_int[MOVED, unit] = 1
    return straight and length <= step


@compiled
def move_to(unit_float, spots, unit, x, y):
    """Place a unit. The spot of one that died in this loop stays what it is."""
    unit_float[X, unit], unit_float[Y, unit] = x, y
    if unit_float[HEALTH, unit] > 0.0:
        spots[SPOT_X, unit], spots[SPOT_Y, unit] = np.float32(x), np.float32(y)


@compiled
def blocker_of(spots, unit, dx, dy):
    """The unit into whose solid part a step of (dx, dy) would run the deepest, and deeper than now; or -1."""
    xs, ys, solid, radius = spots[SPOT_X], spots[SPOT_Y], spots[SOLID], spots[WIDTH, unit]
    x, y, step_x, step_y = xs[unit], ys[unit], np.float32(dx), np.float32(dy)
    step = step_x * step_x + step_y * step_y
    best = NOBODY
    for other in range(xs.shape[0]):
        reach, away_x, away_y = max(NOTHING, solid[other] + radius), xs[other] - x, ys[other] - y
        nearer = TWICE * (away_x * step_x + away_y * step_y) - step
        room = away_x * away_x + away_y * away_y - nearer - reach * reach
        hit = (room < -GRAZE) & (nearer > NOTHING)
        best = min(best, rank_of(room, other) if hit else NOBODY)
    return best % CROWD if best != NOBODY else -1


@compiled
def free_sides(spots, unit, dx, dy):
    """Whether a step of (dx, dy), and one of (-dx, -dy), runs into no unit deeper than now."""
    xs, ys, solid, radius = spots[SPOT_X], spots[SPOT_Y], spots[SOLID], spots[WIDTH, unit]
    x, y, step_x, step_y = xs[unit], ys[unit], np.float32(dx), np.float32(dy)
    step = step_x * step_x + step_y * step_y
    hit, back = False, False
    for other in range(xs.shape[0]):
        reach, away_x, away_y = max(NOTHING, solid[other] + radius), xs[other] - x, ys[other] - y
        towards = TWICE * (away_x * step_x + away_y * step_y)
        room = away_x * away_x + away_y * away_y - reach * reach + step + GRAZE
        hit |= (room < towards) & (towards > step)
        back |= (room < -towards) & (-towards > step)
    return not hit, not back


@compiled
def step_aside(unit_float, unit_int, spots, unit, blocker, dx, dy):
    """Instead of a step of (dx, dy), one as long past the unit in the way, on the side that leads onwards or else on
    the other; or none."""
    away_x, away_y = unit_float[X, unit] - unit_float[X, blocker], unit_float[Y, unit] - unit_float[Y, blocker]
    apart = math.sqrt(away_x * away_x + away_y * away_y)
    step = math.sqrt(dx * dx + dy * dy)
    if apart < TOUCH:
        return
    side_x, side_y = -away_y / apart * step, away_x / apart * step
    onwards = side_x * dx + side_y * dy
    if onwards < -TOUCH or (onwards <= TOUCH and unit % 2 == 1):
        side_x, side_y = -side_x, -side_y
    free, back = free_sides(spots, unit, side_x, side_y)
    if free or back:
        sign = 1.0 if free else -1.0
        move_to(unit_float, spots, unit, unit_float[X, unit] + sign * side_x, unit_float[Y, unit] + sign * side_y)
        unit_int[MOVED, unit] = 1


@compiled
def sign(x):
    return 1 if x > 0 else -1 if x < 0 else 0


@compiled
def is_free(spots, unit, dx, dy):
    """Whether a step of (dx, dy) runs into no unit deeper than now."""
    return blocker_of(spots, unit, dx, dy) < 0


@compiled
def neighbors(spots, unit, length):
    """Note who stands within `length` of a unit's edge, relative to the unit; returns how many do."""
    xs, ys, solid, width = spots[SPOT_X], spots[SPOT_Y], spots[SOLID], spots[WIDTH]
    count = 0
    for other in range(xs.shape[0]):
        x, y, reach = xs[other] - xs[unit], ys[other] - ys[unit], width[other] + width[unit]
        far = length + reach + TIGHT
        if solid[other] >= width[other] and reach > NOTHING and x * x + y * y < far * far and other != unit:
            spots[NEAR_X, count], spots[NEAR_Y, count], spots[NEAR_REACH, count] = x, y, reach
            count += 1
    return count


@compiled
def is_clear(spots, near, x, y, length):
    """Whether none of the `near` gathered stand within `length` in the direction (x, y)."""
    for i in range(near):
        away_x, away_y, reach = float(spots[NEAR_X, i]), float(spots[NEAR_Y, i]), float(spots[NEAR_REACH, i])
        along, across = x * away_x + y * away_y, x * away_y - y * away_x
        if along <= 0.0 or abs(across) >= reach - TIGHT:
            continue
        if along - math.sqrt(reach * reach - across * across) < length:
            return False
    return True


@compiled
def turn_past(spots, near, x, y, length, side, limit):
    """Radians to turn from (x, y), to the left (`side` 1) or right (-1), past all of the `near` gathered who stand
    within `length`; CLOSED where that is over `limit`."""
    total = 0.0
    for _ in range(CORNERS):
        most = 0.0
        for i in range(near):
            away_x, away_y, reach = float(spots[NEAR_X, i]), float(spots[NEAR_Y, i]), float(spots[NEAR_REACH, i])
            along, across = x * away_x + y * away_y, x * away_y - y * away_x
            if along <= 0.0 or abs(across) >= reach - TIGHT:
                continue
            if along - math.sqrt(reach * reach - across * across) < length:
                distance = math.sqrt(along * along + across * across)
                most = max(most, side * math.atan2(across, along) + math.asin(min(1.0, reach / distance)))
                if total + most > limit:
                    return CLOSED
        if most <= 0.0:
            return total
        most += TIGHT
        total += most
        if total > limit:
            return CLOSED
        c, s = math.cos(most), side * math.sin(most)
        x, y = c * x - s * y, s * x + c * y
    return total


@compiled
def go_around(unit_int, spots, unit, dx, dy, length):
    """The step (dx, dy) turned to the nearer side of who stands within `length`, or the side kept so far; (0, 0) where
    both are closed."""
    step = math.sqrt(dx * dx + dy * dy)
    look = max(length, AHEAD)
    if step < TOUCH:
        return dx, dy
    near = neighbors(spots, unit, look)
    if is_clear(spots, near, dx / step, dy / step, length):
        return dx, dy
    left = turn_past(spots, near, dx / step, dy / step, look, 1.0, math.pi)
    handicap = left - SIDE_BIAS * sign(unit_int[SIDE, unit])
    right = turn_past(spots, near, dx / step, dy / step, look, -1.0, min(math.pi, handicap))
    side, turn = (1, left) if handicap < right else (-1, right)
    unit_int[SIDE, unit] = side * KEPT_LOOPS if turn < CLOSED else 0
    if turn >= CLOSED:
        return 0.0, 0.0
    c, s = math.cos(turn), side * math.sin(turn)
    return c * dx - s * dy, s * dx + c * dy


@compiled
def way_around(stats, unit_float, spots, near, unit, target, least):
    """About how long the way to a target is: an arc that sets out past those of the `near` gathered who stand between.

    Where that is not under `least`, any number that is not.
    """
    dx, dy = unit_float[X, target] - unit_float[X, unit], unit_float[Y, target] - unit_float[Y, unit]
    apart = math.sqrt(dx * dx + dy * dy)
    length = apart - stats[RADIUS, unit] - stats[RADIUS, target] - stats[RANGE, unit]
    if length <= 0.0 or apart < TOUCH:
        return apart
    if is_clear(spots, near, dx / apart, dy / apart, length):
        return apart
    look = max(length, AHEAD)
    # An arc of half-angle t over a chord is t / sin t > 1 + t^2 / 6 times as long.
    limit = min(math.pi, math.sqrt(6.0 * max(0.0, least / apart - 1.0)))
    left = turn_past(spots, near, dx / apart, dy / apart, look, 1.0, limit)
    right = turn_past(spots, near, dx / apart, dy / apart, look, -1.0, min(limit, left))
    turn = min(left, right, 3.0)
    return apart * turn / math.sin(turn) if turn > TIGHT else apart


@compiled
def squeeze_past(unit_float, unit_int, spots, unit, dx, dy):
    """Instead of a step of (dx, dy), the first free one of those turned ever further to the side kept, up to a right
    angle."""
    side = sign(unit_int[SIDE, unit])
    for _ in range(EIGHTHS):
        dx, dy = EIGHTH_X * dx - side * EIGHTH_Y * dy, side * EIGHTH_Y * dx + EIGHTH_X * dy
        if is_free(spots, unit, dx, dy):
            move_to(unit_float, spots, unit, unit_float[X, unit] + dx, unit_float[Y, unit] + dy)
            unit_int[MOVED, unit] = 1
            return


@compiled
def fill_positions(stats, unit_float, unit_int, spots):
    """Fill `spots` with where units are; from here on who changes something notes it."""
    for unit in range(stats.shape[1]):
        spots[BODY, unit] = np.float32(stats[RADIUS, unit])
        spots[GROUND_BODY, unit] = ABSENT if stats[FLIES, unit] > 0.0 else spots[BODY, unit]
        spots[RANK, unit] = HARMLESS if stats[HEALER, unit] > 0.0 and unit_int[HEALING, unit] < 0 else NOTHING
        if unit_float[HEALTH, unit] > 0.0:
            spots[SPOT_X, unit], spots[SPOT_Y, unit] = np.float32(unit_float[X, unit]), np.float32(unit_float[Y, unit])
            spots[WIDTH, unit] = np.float32(stats[SEPARATION, unit]) if stats[FLIES, unit] == 0.0 else ABSENT
            spots[SOLID, unit] = spots[WIDTH, unit] * (GIVE if unit_int[MOVED, unit] == 1 else ALL)
        else:
            remove(spots, unit)


@compiled
def remove(spots, unit):
    spots[SPOT_X, unit] = spots[SPOT_Y, unit] = FAR_AWAY
    spots[WIDTH, unit] = spots[SOLID, unit] = ABSENT


@compiled
def separate(stats, unit_float, unit_int, spots):
    """Push overlapping ground units apart: one that stands makes one that walks yield, two of a kind give half each."""
    xs, ys, width = spots[SPOT_X], spots[SPOT_Y], spots[WIDTH]
    for unit in range(xs.shape[0]):
        if unit_float[HEALTH, unit] <= 0.0:
            remove(spots, unit)
    for a in range(xs.shape[0]):
        x, y, radius, touching = xs[a], ys[a], width[a], False
        for b in range(a):  # becomes vector instructions: it begins at 0 and has no branch
            dx, dy, reach = xs[b] - x, ys[b] - y, max(NOTHING, width[b] + radius)
            touching |= dx * dx + dy * dy < reach * reach - GRAZE
        if touching:
            for b in range(a):
                dx, dy, reach = xs[b] - xs[a], ys[b] - ys[a], max(NOTHING, width[b] + radius)
                if dx * dx + dy * dy < reach * reach - GRAZE:
                    push(stats, unit_float, unit_int, spots, b, a)


@compiled
def push(stats, unit_float, unit_int, spots, a, b):
    """Move two overlapping units apart, until they touch."""
    dx, dy = unit_float[X, b] - unit_float[X, a], unit_float[Y, b] - unit_float[Y, a]
    apart = math.sqrt(dx * dx + dy * dy)
    if apart < TOUCH:
        dx, dy, apart = 0.0, TOUCH, TOUCH
    depth = (stats[SEPARATION, a] + stats[SEPARATION, b] - apart) / apart
    first, second = float(unit_int[MOVED, a]), float(unit_int[MOVED, b])
    if first == second:
        first = second = 0.5
    if stats[STEP, a] == 0.0:
        first, second = 0.0, 1.0
    elif stats[STEP, b] == 0.0:
        first, second = 1.0, 0.0
    move_to(unit_float, spots, a, unit_float[X, a] - dx * depth * first, unit_float[Y, a] - dy * depth * first)
    move_to(unit_float, spots, b, unit_float[X, b] + dx * depth * second, unit_float[Y, b] + dy * depth * second)


@compiled
def confine(stats, way, walkable, near_wall, unit_float, spots):
    """Keep units within the rectangle of their plane, and ground units out of the walls in it."""
    for unit in range(stats.shape[1]):
        x = min(max(unit_float[X, unit], stats[LEAST_X, unit]), stats[MOST_X, unit])
        y = min(max(unit_float[Y, unit], stats[LEAST_Y, unit]), stats[MOST_Y, unit])
        if x != unit_float[X, unit] or y != unit_float[Y, unit]:
            move_to(unit_float, spots, unit, x, y)
    if way.shape[0] == 1:
        return
    for unit in range(stats.shape[1]):
        walks = unit_float[HEALTH, unit] > 0.0 and stats[WALKS, unit] > 0.0
        if walks and near_wall[int(unit_float[X, unit]), int(unit_float[Y, unit])]:
            leave_walls(walkable, unit_float, spots, unit, stats[SEPARATION, unit])


@compiled
def leave_walls(walkable, unit_float, spots, unit, radius):
    """Push a disc out of the wall cells around it; out of a wall that it stands in, to the nearest ground."""
    x, y = unit_float[X, unit], unit_float[Y, unit]
    column, line = int(x), int(y)
    if not walkable[column, line]:
        best = 1e9
        for i in range(max(0, column - 3), min(walkable.shape[0], column + 4)):
            for j in range(max(0, line - 3), min(walkable.shape[1], line + 4)):
                if walkable[i, j]:
                    near_x = min(max(unit_float[X, unit], i + TOUCH), i + 1.0 - TOUCH)
                    near_y = min(max(unit_float[Y, unit], j + TOUCH), j + 1.0 - TOUCH)
                    away = (near_x - unit_float[X, unit]) ** 2 + (near_y - unit_float[Y, unit]) ** 2
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
        move_to(unit_float, spots, unit, x, y)
