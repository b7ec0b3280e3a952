"""Movement: steps around walls and units, and collisions."""

import math

import numpy as np

from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import (
    ACCELERATION,
    FLIES,
    HEALER,
    HEALING,
    HEALTH,
    MAX_X,
    MAX_Y,
    MIN_X,
    MIN_Y,
    MOVED,
    RADIUS,
    RANGE,
    SEPARATION,
    SIDE,
    SIZE,
    SPEED,
    TOUCH,
    VELOCITY,
    WALKS,
    X,
    Y,
)

TOUCH_SQUARED = np.float32(1e-5)
"""Squared distance below which two units only touch."""

# Rows of the position cache (rows, U) float32, which scans over all units read. Dead units stand FAR_AWAY.
POSITION_X, POSITION_Y, WIDTH, SOLID, BODY, GROUND_BODY, RANK, NEAR_X, NEAR_Y, NEAR_REACH = range(10)

POSITION_ROWS = 10
"""WIDTH: separation radius, ABSENT for flyers and the dead. SOLID: the same for standing units, and the share
WALKING_WIDTH of it for walking ones. BODY: radius. GROUND_BODY: radius, ABSENT for flyers. RANK: added to the squared
distance of a target. NEAR_X, NEAR_Y, NEAR_REACH: neighbors of one unit, see `gather_neighbors`."""

FAR_AWAY = np.float32(1e6)
ABSENT = np.float32(-10.0)

HARMLESS_RANK = np.float32(1024.0)
"""RANK of units that neither fight nor heal, larger than any squared distance of a target."""

WALKING_WIDTH = np.float32(0.75)
"""Share of its width that a walking unit blocks: in a column the units behind may move up first."""

ZERO = np.float32(0.0)
ONE, TWO = np.float32(1.0), np.float32(2.0)
MAX_UNITS, RANK_STEPS, RANK_OFFSET = np.int32(128), np.float32(1024.0), np.float32(16.0)
MAX_RANK = np.float32(16000.0)
NO_RANK = np.int32(2**31 - 1)
"""Rank of no unit, larger than all others."""
CLEARANCE = 1e-3

SIDE_LOOPS, SIDE_BIAS = 8, 0.8
"""SIDE_LOOPS: loops for which a melee unit keeps the side on which it goes around a crowd. SIDE_BIAS: radians by which
the detour on this side may be longer."""

AHEAD, MAX_CORNERS, BLOCKED = 1.5, 8, 10.0
"""AHEAD: distance that a blocked unit looks ahead. MAX_CORNERS: units that it goes around at most. BLOCKED: turn that
stands for no way."""

EIGHTH_X, EIGHTH_Y, EIGHTHS = math.cos(math.pi / 8), math.sin(math.pi / 8), 4
"""An eighth of a half turn, and the number of such turns by which a unit tries to squeeze past walking units."""


@compiled
def pack_rank(number, index):
    """Pack a number above -16, in steps of 1 / RANK_STEPS, and an index below MAX_UNITS into an int32.

    The minimum of many packed ranks becomes vector instructions, which comparisons of floats do not.
    """
    return np.int32(np.int32(min(number + RANK_OFFSET, MAX_RANK) * RANK_STEPS) * MAX_UNITS + np.int32(index))


@compiled
def walk(stats, waypoints, unit_float, unit_int, positions, unit, x, y, most, chases):
    """Move a unit towards a point for one loop, at most `most`, around walls and units. Return whether it arrived.

    A unit that `chases` wants to touch its target, so it steers around a crowd in between.
    """
    straight = True
    step = min(stats[SPEED, unit], most)
    if stats[ACCELERATION, unit] > 0.0:
        unit_float[VELOCITY, unit] = min(stats[SPEED, unit], unit_float[VELOCITY, unit] + stats[ACCELERATION, unit])
        step = min(step, unit_float[VELOCITY, unit])
    if waypoints.shape[0] > 1 and stats[WALKS, unit] > 0.0:
        here = int(unit_float[X, unit]) * SIZE + int(unit_float[Y, unit])
        there = min(max(int(x), 0), SIZE - 1) * SIZE + min(max(int(y), 0), SIZE - 1)
        via = waypoints[here, there]
        if via != there:
            straight = False
            x, y = via // SIZE + 0.5, via % SIZE + 0.5
    dx, dy = x - unit_float[X, unit], y - unit_float[Y, unit]
    length = math.sqrt(dx * dx + dy * dy)
    if length > step:
        dx, dy = dx * (step / length), dy * (step / length)
    if stats[FLIES, unit] == 0.0:
        positions[SOLID, unit] = ABSENT
        if chases and straight:
            dx, dy = steer_around(unit_int, positions, unit, dx, dy, most)
            if dx == 0.0 and dy == 0.0:
                return False
        blocker = find_blocker(positions, unit, dx, dy)
        if blocker >= 0 and chases and unit_int[SIDE, unit] != 0:
            squeeze_past(unit_float, unit_int, positions, unit, dx, dy)
            return False
        if blocker >= 0:
            step_aside(unit_float, unit_int, positions, unit, blocker, dx, dy)
            return False
    move_to(unit_float, positions, unit, unit_float[X, unit] + dx, unit_float[Y, unit] + dy)
    unit_int[MOVED, unit] = 1
    return straight and length <= step


@compiled
def move_to(unit_float, positions, unit, x, y):
    """Place a unit. The cached position of a unit that died in this loop stays."""
    unit_float[X, unit], unit_float[Y, unit] = x, y
    if unit_float[HEALTH, unit] > 0.0:
        positions[POSITION_X, unit], positions[POSITION_Y, unit] = np.float32(x), np.float32(y)


@compiled
def find_blocker(positions, unit, dx, dy):
    """Return the unit that a step of (dx, dy) would run into the deepest, and deeper than now, or -1."""
    xs, ys, solid, radius = positions[POSITION_X], positions[POSITION_Y], positions[SOLID], positions[WIDTH, unit]
    x, y, step_x, step_y = xs[unit], ys[unit], np.float32(dx), np.float32(dy)
    step = step_x * step_x + step_y * step_y
    best = NO_RANK
    for other in range(xs.shape[0]):
        reach, away_x, away_y = max(ZERO, solid[other] + radius), xs[other] - x, ys[other] - y
        nearer = TWO * (away_x * step_x + away_y * step_y) - step
        room = away_x * away_x + away_y * away_y - nearer - reach * reach
        hit = (room < -TOUCH_SQUARED) & (nearer > ZERO)
        best = min(best, pack_rank(room, other) if hit else NO_RANK)
    return best % MAX_UNITS if best != NO_RANK else -1


@compiled
def free_sides(positions, unit, dx, dy):
    """Return whether steps of (dx, dy) and of (-dx, -dy) run into no unit deeper than now."""
    xs, ys, solid, radius = positions[POSITION_X], positions[POSITION_Y], positions[SOLID], positions[WIDTH, unit]
    x, y, step_x, step_y = xs[unit], ys[unit], np.float32(dx), np.float32(dy)
    step = step_x * step_x + step_y * step_y
    hit, back = False, False
    for other in range(xs.shape[0]):
        reach, away_x, away_y = max(ZERO, solid[other] + radius), xs[other] - x, ys[other] - y
        towards = TWO * (away_x * step_x + away_y * step_y)
        room = away_x * away_x + away_y * away_y - reach * reach + step + TOUCH_SQUARED
        hit |= (room < towards) & (towards > step)
        back |= (room < -towards) & (-towards > step)
    return not hit, not back


@compiled
def step_aside(unit_float, unit_int, positions, unit, blocker, dx, dy):
    """Move past the unit in the way by a step as long as (dx, dy), on the side that leads onwards, else on the other,
    else stay."""
    away_x, away_y = unit_float[X, unit] - unit_float[X, blocker], unit_float[Y, unit] - unit_float[Y, blocker]
    apart = math.sqrt(away_x * away_x + away_y * away_y)
    step = math.sqrt(dx * dx + dy * dy)
    if apart < TOUCH:
        return
    side_x, side_y = -away_y / apart * step, away_x / apart * step
    onwards = side_x * dx + side_y * dy
    if onwards < -TOUCH or (onwards <= TOUCH and unit % 2 == 1):
        side_x, side_y = -side_x, -side_y
    free, back = free_sides(positions, unit, side_x, side_y)
    if free or back:
        sign = 1.0 if free else -1.0
        move_to(unit_float, positions, unit, unit_float[X, unit] + sign * side_x, unit_float[Y, unit] + sign * side_y)
        unit_int[MOVED, unit] = 1


@compiled
def sign(x):
    """Return -1, 0 or 1."""
    return 1 if x > 0 else -1 if x < 0 else 0


@compiled
def is_free(positions, unit, dx, dy):
    """Return whether a step of (dx, dy) runs into no unit deeper than now."""
    return find_blocker(positions, unit, dx, dy) < 0


@compiled
def gather_neighbors(positions, unit, length):
    """Store the offsets of units within `length` of a unit's edge in NEAR_X to NEAR_REACH. Return their number."""
    xs, ys, solid, width = positions[POSITION_X], positions[POSITION_Y], positions[SOLID], positions[WIDTH]
    count = 0
    for other in range(xs.shape[0]):
        x, y, reach = xs[other] - xs[unit], ys[other] - ys[unit], width[other] + width[unit]
        far = length + reach + CLEARANCE
        if solid[other] >= width[other] and reach > ZERO and x * x + y * y < far * far and other != unit:
            positions[NEAR_X, count], positions[NEAR_Y, count], positions[NEAR_REACH, count] = x, y, reach
            count += 1
    return count


@compiled
def is_clear(positions, near, x, y, length):
    """Return whether none of the `near` gathered units stands within `length` in direction (x, y)."""
    for i in range(near):
        away_x, away_y, reach = (
            float(positions[NEAR_X, i]),
            float(positions[NEAR_Y, i]),
            float(positions[NEAR_REACH, i]),
        )
        along, across = x * away_x + y * away_y, x * away_y - y * away_x
        if along <= 0.0 or abs(across) >= reach - CLEARANCE:
            continue
        if along - math.sqrt(reach * reach - across * across) < length:
            return False
    return True


@compiled
def detour_angle(positions, near, x, y, length, side, limit):
    """Return the radians to turn from (x, y), to the left (`side` 1) or right (-1), past all gathered units within
    `length`. BLOCKED stands for an angle above `limit`."""
    total = 0.0
    for _ in range(MAX_CORNERS):
        most = 0.0
        for i in range(near):
            away_x, away_y, reach = (
                float(positions[NEAR_X, i]),
                float(positions[NEAR_Y, i]),
                float(positions[NEAR_REACH, i]),
            )
            along, across = x * away_x + y * away_y, x * away_y - y * away_x
            if along <= 0.0 or abs(across) >= reach - CLEARANCE:
                continue
            if along - math.sqrt(reach * reach - across * across) < length:
                distance = math.sqrt(along * along + across * across)
                most = max(most, side * math.atan2(across, along) + math.asin(min(1.0, reach / distance)))
                if total + most > limit:
                    return BLOCKED
        if most <= 0.0:
            return total
        most += CLEARANCE
        total += most
        if total > limit:
            return BLOCKED
        c, s = math.cos(most), side * math.sin(most)
        x, y = c * x - s * y, s * x + c * y
    return total


@compiled
def steer_around(unit_int, positions, unit, dx, dy, length):
    """Turn the step (dx, dy) to the nearer side of the units within `length`, with a bias for the side kept so far.
    Return (0, 0) if both sides are blocked."""
    step = math.sqrt(dx * dx + dy * dy)
    look = max(length, AHEAD)
    if step < TOUCH:
        return dx, dy
    near = gather_neighbors(positions, unit, look)
    if is_clear(positions, near, dx / step, dy / step, length):
        return dx, dy
    left = detour_angle(positions, near, dx / step, dy / step, look, 1.0, math.pi)
    handicap = left - SIDE_BIAS * sign(unit_int[SIDE, unit])
    right = detour_angle(positions, near, dx / step, dy / step, look, -1.0, min(math.pi, handicap))
    side, turn = (1, left) if handicap < right else (-1, right)
    unit_int[SIDE, unit] = side * SIDE_LOOPS if turn < BLOCKED else 0
    if turn >= BLOCKED:
        return 0.0, 0.0
    c, s = math.cos(turn), side * math.sin(turn)
    return c * dx - s * dy, s * dx + c * dy


@compiled
def detour_length(stats, unit_float, positions, near, unit, target, least):
    """Return the approximate length of the way to a target: an arc past the gathered units in between.

    A result of `least` or more is only a bound.
    """
    dx, dy = unit_float[X, target] - unit_float[X, unit], unit_float[Y, target] - unit_float[Y, unit]
    apart = math.sqrt(dx * dx + dy * dy)
    length = apart - stats[RADIUS, unit] - stats[RADIUS, target] - stats[RANGE, unit]
    if length <= 0.0 or apart < TOUCH:
        return apart
    if is_clear(positions, near, dx / apart, dy / apart, length):
        return apart
    look = max(length, AHEAD)
    # An arc of half-angle t over a chord is t / sin t > 1 + t^2 / 6 times as long.
    limit = min(math.pi, math.sqrt(6.0 * max(0.0, least / apart - 1.0)))
    left = detour_angle(positions, near, dx / apart, dy / apart, look, 1.0, limit)
    right = detour_angle(positions, near, dx / apart, dy / apart, look, -1.0, min(limit, left))
    turn = min(left, right, 3.0)
    return apart * turn / math.sin(turn) if turn > CLEARANCE else apart


@compiled
def squeeze_past(unit_float, unit_int, positions, unit, dx, dy):
    """Take the first free step among those turned ever further to the kept side, up to a right angle."""
    side = sign(unit_int[SIDE, unit])
    for _ in range(EIGHTHS):
        dx, dy = EIGHTH_X * dx - side * EIGHTH_Y * dy, side * EIGHTH_Y * dx + EIGHTH_X * dy
        if is_free(positions, unit, dx, dy):
            move_to(unit_float, positions, unit, unit_float[X, unit] + dx, unit_float[Y, unit] + dy)
            unit_int[MOVED, unit] = 1
            return


@compiled
def fill_positions(stats, unit_float, unit_int, positions):
    """Fill the position cache from the units. Every later move updates it."""
    for unit in range(stats.shape[1]):
        positions[BODY, unit] = np.float32(stats[RADIUS, unit])
        positions[GROUND_BODY, unit] = ABSENT if stats[FLIES, unit] > 0.0 else positions[BODY, unit]
        positions[RANK, unit] = HARMLESS_RANK if stats[HEALER, unit] > 0.0 and unit_int[HEALING, unit] < 0 else ZERO
        if unit_float[HEALTH, unit] > 0.0:
            positions[POSITION_X, unit], positions[POSITION_Y, unit] = (
                np.float32(unit_float[X, unit]),
                np.float32(unit_float[Y, unit]),
            )
            positions[WIDTH, unit] = np.float32(stats[SEPARATION, unit]) if stats[FLIES, unit] == 0.0 else ABSENT
            positions[SOLID, unit] = positions[WIDTH, unit] * (WALKING_WIDTH if unit_int[MOVED, unit] == 1 else ONE)
        else:
            remove(positions, unit)


@compiled
def remove(positions, unit):
    """Remove a dead unit from the position cache."""
    positions[POSITION_X, unit] = positions[POSITION_Y, unit] = FAR_AWAY
    positions[WIDTH, unit] = positions[SOLID, unit] = ABSENT


@compiled
def separate(stats, unit_float, unit_int, positions):
    """Push overlapping ground units apart. A walking unit yields to a standing one; two alike give half each."""
    xs, ys, width = positions[POSITION_X], positions[POSITION_Y], positions[WIDTH]
    for unit in range(xs.shape[0]):
        if unit_float[HEALTH, unit] <= 0.0:
            remove(positions, unit)
    for a in range(xs.shape[0]):
        x, y, radius, touching = xs[a], ys[a], width[a], False
        for b in range(a):  # a loop from 0 without branches becomes vector instructions
            dx, dy, reach = xs[b] - x, ys[b] - y, max(ZERO, width[b] + radius)
            touching |= dx * dx + dy * dy < reach * reach - TOUCH_SQUARED
        if touching:
            for b in range(a):
                dx, dy, reach = xs[b] - xs[a], ys[b] - ys[a], max(ZERO, width[b] + radius)
                if dx * dx + dy * dy < reach * reach - TOUCH_SQUARED:
                    push_apart(stats, unit_float, unit_int, positions, b, a)


@compiled
def push_apart(stats, unit_float, unit_int, positions, a, b):
    """Move two overlapping units apart until they touch."""
    dx, dy = unit_float[X, b] - unit_float[X, a], unit_float[Y, b] - unit_float[Y, a]
    apart = math.sqrt(dx * dx + dy * dy)
    if apart < TOUCH:
        dx, dy, apart = 0.0, TOUCH, TOUCH
    depth = (stats[SEPARATION, a] + stats[SEPARATION, b] - apart) / apart
    first, second = float(unit_int[MOVED, a]), float(unit_int[MOVED, b])
    if first == second:
        first = second = 0.5
    if stats[SPEED, a] == 0.0:
        first, second = 0.0, 1.0
    elif stats[SPEED, b] == 0.0:
        first, second = 1.0, 0.0
    move_to(unit_float, positions, a, unit_float[X, a] - dx * depth * first, unit_float[Y, a] - dy * depth * first)
    move_to(unit_float, positions, b, unit_float[X, b] + dx * depth * second, unit_float[Y, b] + dy * depth * second)


@compiled
def keep_in_bounds(stats, waypoints, walkable, near_wall, unit_float, positions):
    """Keep units within the rectangle of their plane, and ground units out of the walls in it."""
    for unit in range(stats.shape[1]):
        x = min(max(unit_float[X, unit], stats[MIN_X, unit]), stats[MAX_X, unit])
        y = min(max(unit_float[Y, unit], stats[MIN_Y, unit]), stats[MAX_Y, unit])
        if x != unit_float[X, unit] or y != unit_float[Y, unit]:
            move_to(unit_float, positions, unit, x, y)
    if waypoints.shape[0] == 1:
        return
    for unit in range(stats.shape[1]):
        walks = unit_float[HEALTH, unit] > 0.0 and stats[WALKS, unit] > 0.0
        if walks and near_wall[int(unit_float[X, unit]), int(unit_float[Y, unit])]:
            push_out_of_walls(walkable, unit_float, positions, unit, stats[SEPARATION, unit])


@compiled
def push_out_of_walls(walkable, unit_float, positions, unit, radius):
    """Push a disc out of the wall cells around it, and from within a wall to the nearest ground."""
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
        move_to(unit_float, positions, unit, x, y)
