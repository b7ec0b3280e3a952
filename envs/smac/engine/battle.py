"""Game loops of a battle: what every unit does in a loop.

In every game loop the living units act in random order: timers and regeneration, then an agent's order or the enemy's
control. Then delayed hits land, and overlapping units are pushed apart. `FIDELITY.md` lists what the engine models.
"""

import math
from typing import NamedTuple

import numpy as np

from marl.envs.smac.engine.combat import apply_impacts, attack, continue_attack, edge_distance
from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import (
    AGENTS,
    ATTACK,
    ATTACK_MOVING,
    ATTACKING,
    BIOLOGICAL,
    CLOCK,
    COOLDOWN,
    COUNTED,
    DECAY,
    ENERGY,
    FAR,
    FLIES,
    FOV_X,
    GOAL_X,
    GOAL_Y,
    HAS_TIMERS,
    HEALER,
    HEALING,
    HEALTH,
    HITS_AIR,
    HUNTING,
    IDLE,
    IGNORED,
    KIND,
    MAX_HEALTH,
    MAX_SHIELD,
    MENDING,
    MOVED,
    MOVING,
    ORDER,
    RADIUS,
    RANGE,
    RANGE_SLACK,
    REGENERATION,
    RUNNING,
    SCAN,
    SECOND,
    SHIELD,
    SHIELD_DELAY,
    SIDE,
    STEPS,
    TARGET,
    TOUCH,
    VELOCITY,
    WAITING,
    X,
    Y,
    random_int,
    to_float32,
)
from marl.envs.smac.engine.orders import find_enemy, trigger_attack
from marl.envs.smac.engine.pathing import (
    AHEAD,
    BODY,
    GROUND_BODY,
    HARMLESS_RANK,
    MAX_UNITS,
    NO_RANK,
    ONE,
    POSITION_ROWS,
    POSITION_X,
    POSITION_Y,
    RANK,
    SOLID,
    WALKING_WIDTH,
    WIDTH,
    ZERO,
    detour_length,
    fill_positions,
    gather_neighbors,
    keep_in_bounds,
    pack_rank,
    remove,
    separate,
    sign,
    walk,
)

AT_TOUCH = 1.0
"""Weapons of shorter range make a unit walk up to its target."""

SHIELD_REGENERATION = 2.0 / SECOND
ENERGY_REGENERATION = 0.5625 / SECOND
MAX_ENERGY = 200.0
START_ENERGY = 50.0
HEAL_RANGE = 4.0
HEAL_SCAN = 6.0
HEAL_STEP = 9.0 / SECOND
ENERGY_PER_HEALTH = 0.33
MIN_ENERGY = 5.0

TRIGGER_LOOPS = 8
"""Period in loops of the trigger that sends waiting enemies against the nearest agent in SMACv2."""


class Battle(NamedTuple):
    """State of E battles: `unit_float` (E, fields, U), `unit_int` (E, fields, U), `counters` (E, fields)."""

    unit_float: np.ndarray
    unit_int: np.ndarray
    counters: np.ndarray


class Scratch(NamedTuple):
    """Working memory of one thread: `turn` (U,) uint32, the order of units in a loop, and `positions` (rows, U)
    float32, see `pathing.fill_positions`. Unsigned indices need no check for negative ones."""

    turn: np.ndarray
    positions: np.ndarray


def make_scratch(units: int) -> Scratch:
    """Return the working memory for U units."""
    return Scratch(np.zeros(units, np.uint32), np.zeros((POSITION_ROWS, units), np.float32))


@compiled
def begin_episode(world, unit_float, unit_int, counters):
    """Put all units at their starts with full health, and reset the counters."""
    unit_float[:] = 0.0
    unit_int[:KIND] = -1
    unit_int[SIDE] = 0
    share = random_int(counters, 1 << 20) / (1 << 20)
    for unit in range(world.units):
        unit_float[X, unit], unit_float[Y, unit] = world.start[0, unit], world.start[1, unit]
        unit_float[HEALTH, unit] = world.stats[MAX_HEALTH, unit]
        unit_float[SHIELD, unit] = world.stats[MAX_SHIELD, unit]
        unit_float[ENERGY, unit] = START_ENERGY if world.stats[HEALER, unit] > 0.0 else 0.0
        unit_float[FOV_X, unit] = 1.0
        round_to_float32(unit_float, unit)
        unit_float[COUNTED, unit] = unit_float[HEALTH, unit] + unit_float[SHIELD, unit]
        unit_int[ORDER, unit] = IDLE if unit < world.agents else world.order
        unit_float[GOAL_X, unit] = world.goals[0, 0] + share * (world.goals[1, 0] - world.goals[0, 0])
        unit_float[GOAL_Y, unit] = world.goals[0, 1] + share * (world.goals[1, 1] - world.goals[0, 1])
    counters[STEPS] = 0
    counters[CLOCK] = 0
    counters[RUNNING] = 1
    counters[IGNORED] = 0


@compiled
def update_timers(stats, unit_float, unit_int, positions, unit):
    """Advance cooldown, regeneration, energy and decay of a unit by one loop."""
    unit_float[COOLDOWN, unit] = max(0.0, unit_float[COOLDOWN, unit] - 1.0)
    unit_int[MOVED, unit] = 0
    unit_int[SIDE, unit] -= sign(unit_int[SIDE, unit])
    unit_int[HEALING, unit] = -1
    if stats[HAS_TIMERS, unit] == 0.0:
        return
    if stats[REGENERATION, unit] > 0.0:
        unit_float[HEALTH, unit] = min(stats[MAX_HEALTH, unit], unit_float[HEALTH, unit] + stats[REGENERATION, unit])
    if stats[MAX_SHIELD, unit] > 0.0:
        if unit_float[SHIELD_DELAY, unit] > 0.0:
            unit_float[SHIELD_DELAY, unit] -= 1.0
        else:
            unit_float[SHIELD, unit] = min(stats[MAX_SHIELD, unit], unit_float[SHIELD, unit] + SHIELD_REGENERATION)
    if stats[HEALER, unit] > 0.0:
        positions[RANK, unit] = HARMLESS_RANK
        unit_float[ENERGY, unit] = min(MAX_ENERGY, unit_float[ENERGY, unit] + ENERGY_REGENERATION)
    if stats[DECAY, unit] > 0.0:
        unit_float[HEALTH, unit] = max(0.0, unit_float[HEALTH, unit] - stats[DECAY, unit])


@compiled
def heal(stats, unit_float, unit_int, positions, unit, target):
    """Heal a unit in range. Return the distance to walk to one out of range, -1 if nothing can be healed."""
    missing = stats[MAX_HEALTH, target] - unit_float[HEALTH, target]
    if unit_float[HEALTH, target] <= 0.0 or missing <= 0.0:
        return -1.0
    away = edge_distance(stats, unit_float, unit, target)
    if away > HEAL_RANGE + TOUCH:
        return away - HEAL_RANGE
    amount = min(HEAL_STEP, missing, unit_float[ENERGY, unit] / ENERGY_PER_HEALTH)
    if amount <= 0.0:
        return -1.0
    unit_float[HEALTH, target] += amount
    unit_float[ENERGY, unit] = max(0.0, unit_float[ENERGY, unit] - amount * ENERGY_PER_HEALTH)
    unit_float[VELOCITY, unit] = 0.0
    unit_int[HEALING, unit] = target
    positions[RANK, unit] = ZERO
    return 0.0


@compiled
def act_ally(stats, unit_float, unit_int, counters, positions, unit):
    """Carry out the order of an agent's unit, which never acts by itself.

    Return the unit to walk to, -1 for the unit's goal, and the most distance to walk, 0 to stay. SMAC's actions never
    order an attack-move; clients of the server do.
    """
    order, target = unit_int[ORDER, unit], unit_int[TARGET, unit]
    if continue_attack(stats, unit_float, unit_int, unit):
        return -1, 0.0
    if order == MOVING:
        return -1, FAR
    if order == ATTACKING and unit_float[HEALTH, target] > 0.0:
        return target, attack(
            stats, unit_float, unit_int, counters, unit, target, edge_distance(stats, unit_float, unit, target)
        )
    if order == MENDING:
        away = heal(stats, unit_float, unit_int, positions, unit, target)
        if away >= 0.0:
            return target, away
    if order == ATTACK_MOVING:
        kept = stats[RANGE, unit] + max(TOUCH, stats[RANGE_SLACK, unit])
        if target < 0 or unit_float[HEALTH, target] <= 0.0 or edge_distance(stats, unit_float, unit, target) > kept:
            target = find_enemy(stats, unit_float, unit_int, unit)
            unit_int[TARGET, unit] = target
        if target < 0:
            return -1, FAR
        return target, attack(
            stats, unit_float, unit_int, counters, unit, target, edge_distance(stats, unit_float, unit, target)
        )
    unit_int[ORDER, unit] = IDLE
    return -1, 0.0


@compiled
def choose_target(stats, positions, unit):
    """Return the nearest opponent in scan range, or -1. Opponents that fight or heal come before all others."""
    xs, ys, rank = positions[POSITION_X], positions[POSITION_Y], positions[RANK]
    body = positions[BODY if stats[HITS_AIR, unit] > 0.0 else GROUND_BODY]
    x, y, reach = xs[unit], ys[unit], np.float32(stats[SCAN, unit] + stats[RADIUS, unit])
    best = NO_RANK
    for other in range(int(stats[AGENTS, 0])):
        dx, dy, far = xs[other] - x, ys[other] - y, reach + body[other]
        apart = dx * dx + dy * dy
        best = min(best, pack_rank(apart + rank[other], other) if apart <= far * abs(far) else NO_RANK)
    if best == NO_RANK:
        return -1
    return best % MAX_UNITS


@compiled
def is_melee(stats, unit):
    """Return whether a unit has to touch its target."""
    return stats[ATTACK, unit] >= 0.0 and stats[RANGE, unit] < AT_TOUCH


@compiled
def choose_reachable(stats, unit_float, positions, unit, nearest):
    """Return the ground target in scan range with the shortest way around the units between."""
    dx, dy = unit_float[X, nearest] - unit_float[X, unit], unit_float[Y, nearest] - unit_float[Y, unit]
    near = gather_neighbors(positions, unit, max(AHEAD, stats[SCAN, unit], math.sqrt(dx * dx + dy * dy)))
    best, least = nearest, detour_length(stats, unit_float, positions, near, unit, nearest, math.inf)
    for other in range(int(stats[AGENTS, 0])):
        if unit_float[HEALTH, other] > 0.0 and other != nearest and stats[FLIES, other] == 0.0:
            dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
            apart = math.sqrt(dx * dx + dy * dy)
            if apart < least and apart < stats[SCAN, unit] + stats[RADIUS, unit] + stats[RADIUS, other]:
                waypoints = detour_length(stats, unit_float, positions, near, unit, other, least)
                if waypoints < least:
                    best, least = other, waypoints
    return best


@compiled
def choose_heal_target(stats, unit_float, unit):
    """Return the friend in range with the least share of health, the nearest of equals, or -1."""
    best, least, nearest = -1, 1.0, FAR
    if unit_float[ENERGY, unit] < MIN_ENERGY:
        return best
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, other] <= 0.0 or stats[BIOLOGICAL, other] == 0.0:
            continue
        share, away = (
            unit_float[HEALTH, other] / stats[MAX_HEALTH, other],
            edge_distance(stats, unit_float, unit, other),
        )
        if away <= HEAL_SCAN and (share < least or (share == least and share < 1.0 and away < nearest)):
            best, least, nearest = other, share, away
    return best


@compiled
def walk_to_goal(stats, unit_float, unit_int, unit):
    """Attack-move to the goal or towards the nearest agent. Return as `act_ally` does."""
    if unit_int[ORDER, unit] == HUNTING:
        least = FAR
        for other in range(int(stats[AGENTS, 0])):
            away = edge_distance(stats, unit_float, unit, other)
            if unit_float[HEALTH, other] > 0.0 and away < least:
                least = away
                unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = unit_float[X, other], unit_float[Y, other]
    return -1, 0.0 if unit_int[ORDER, unit] in (IDLE, WAITING) else FAR


@compiled
def act_enemy(stats, unit_float, unit_int, counters, positions, unit):
    """Control an enemy as the game does: choose a target, heal or attack. Return as `act_ally` does."""
    if continue_attack(stats, unit_float, unit_int, unit):
        return -1, 0.0
    if unit_int[ORDER, unit] == WAITING and unit_int[TARGET, unit] < 0 and counters[CLOCK] % TRIGGER_LOOPS == 0:
        trigger_attack(stats, unit_float, unit_int, unit)
    target = unit_int[TARGET, unit]
    if stats[HEALER, unit] > 0.0:
        if target < 0 or unit_float[HEALTH, target] >= stats[MAX_HEALTH, target] or unit_float[HEALTH, target] <= 0.0:
            target = choose_heal_target(stats, unit_float, unit)
        away = heal(stats, unit_float, unit_int, positions, unit, target) if target >= 0 else -1.0
        unit_int[TARGET, unit] = target if away >= 0.0 else -1
    else:
        if target >= 0 and unit_float[HEALTH, target] <= 0.0:
            target = -1
            if unit_int[ORDER, unit] == ATTACKING:
                unit_int[ORDER, unit] = WAITING
        away = edge_distance(stats, unit_float, unit, target) if target >= 0 else FAR
        touching = is_melee(stats, unit)
        kept = stats[RANGE, unit] + (TOUCH if touching else stats[RANGE_SLACK, unit])
        if away > kept and unit_int[ORDER, unit] != ATTACKING:
            found = choose_target(stats, positions, unit)
            while found >= 0 and unit_float[HEALTH, found] <= 0.0:  # died in this loop
                remove(positions, found)
                found = choose_target(stats, positions, unit)
            if found >= 0 and touching:
                found = choose_reachable(stats, unit_float, positions, unit, found)
            if found >= 0:
                target = found
                away = edge_distance(stats, unit_float, unit, target)
        unit_int[TARGET, unit] = target
        if target >= 0:
            away = attack(stats, unit_float, unit_int, counters, unit, target, away)
    if unit_int[TARGET, unit] >= 0:
        return target, away
    return walk_to_goal(stats, unit_float, unit_int, unit)


@compiled
def update_unit(stats, waypoints, unit_float, unit_int, counters, positions, unit):
    """Let a living unit act and move for one game loop."""
    update_timers(stats, unit_float, unit_int, positions, unit)
    if unit_float[HEALTH, unit] <= 0.0:
        return
    ally = unit < stats[AGENTS, 0]
    if ally:
        friend, most = act_ally(stats, unit_float, unit_int, counters, positions, unit)
    else:
        friend, most = act_enemy(stats, unit_float, unit_int, counters, positions, unit)
    if most > 0.0:
        x = unit_float[X, friend] if friend >= 0 else unit_float[GOAL_X, unit]
        y = unit_float[Y, friend] if friend >= 0 else unit_float[GOAL_Y, unit]
        chases = friend >= 0 and is_melee(stats, unit)
        arrived = walk(stats, waypoints, unit_float, unit_int, positions, unit, x, y, most, chases)
        if arrived and friend < 0 and unit_int[ORDER, unit] != HUNTING:
            unit_int[ORDER, unit] = IDLE
    if unit_int[MOVED, unit] == 0:
        unit_float[VELOCITY, unit] = 0.0
    positions[SOLID, unit] = positions[WIDTH, unit] * (WALKING_WIDTH if unit_int[MOVED, unit] == 1 else ONE)


@compiled
def round_to_float32(unit_float, unit):
    """Round the fields that the game reports to single precision, as its interface does."""
    for field in (X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN):
        unit_float[field, unit] = to_float32(unit_float[field, unit])


@compiled
def run_game_loops(world, scratch, unit_float, unit_int, counters):
    """Run the game loops of one step."""
    stats, waypoints = world.stats, world.waypoints
    walkable, near_wall = world.walkable, world.near_wall
    turn, positions = scratch.turn, scratch.positions
    fill_positions(stats, unit_float, unit_int, positions)
    for _ in range(world.loops):
        count = 0
        for unit in range(world.units):
            if unit_float[HEALTH, unit] > 0.0:
                other = random_int(counters, count + 1)  # shuffled as it is filled
                turn[count] = turn[other]
                turn[other] = unit
                count += 1
            else:
                remove(positions, unit)
        for position in range(count):
            unit = turn[position]
            if unit_float[HEALTH, unit] > 0.0:
                update_unit(stats, waypoints, unit_float, unit_int, counters, positions, unit)
        apply_impacts(stats, unit_float, unit_int)
        counters[CLOCK] += 1
        if counters[CLOCK] % 2 == 0:
            separate(stats, unit_float, unit_int, positions)
        keep_in_bounds(stats, waypoints, walkable, near_wall, unit_float, positions)
    for unit in range(world.units):
        round_to_float32(unit_float, unit)
