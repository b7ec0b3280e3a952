"""The battle engine: one step of E battles, from orders to observations.

Every game loop, living units act in a random order: timers, regeneration, then the order or the enemy's own mind;
after that delayed hits land and overlapping units are pushed apart. See `FIDELITY.md` for what is modelled.
"""

import math
from typing import NamedTuple

import numpy as np

from marl.envs.smac.engine.combat import (
    AHEAD,
    ALL,
    ATTACK_MOVING,
    ATTACKING,
    BODY,
    CROWD,
    GIVE,
    GOING,
    GROUND_BODY,
    HARMLESS,
    HUNTING,
    IDLE,
    MENDING,
    NOBODY,
    NOTHING,
    RANK,
    SECOND,
    SOLID,
    SPOT_ROWS,
    SPOT_X,
    SPOT_Y,
    TOUCH,
    WAITING,
    WIDTH,
    World,
    apply_impacts,
    attack,
    confine,
    draw,
    fill_positions,
    gap,
    neighbors,
    one_world,
    pursue_attack,
    rank_of,
    remove,
    separate,
    sign,
    single,
    walk,
    way_around,
)
from marl.envs.smac.engine.fields import (
    AGENTS,
    AGES,
    ATTACK,
    BIOLOGICAL,
    CLOCK,
    COOLDOWN,
    COUNTED,
    DECAY,
    ENERGY,
    FLIES,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALING,
    HEALTH,
    HITS_AIR,
    IGNORED,
    KIND,
    LAST,
    LOOK_X,
    MAX_HEALTH,
    MAX_SHIELD,
    MOVED,
    NO_ACTION,
    ORDER,
    PACE,
    QUIET,
    RADIUS,
    RANGE,
    REGENERATION,
    RUNNING,
    RUNNING_ON,
    SCAN,
    SHIELD,
    SIDE,
    SLOP,
    STEPS,
    TARGET,
    Rules,
    X,
    Y,
    compiled,
    entry,
    offer_actions,
    offer_targets,
    share_health,
    write_obs,
    write_state,
)
from marl.envs.smac.engine.orders import FAR, apply_action, find_enemy, trigger_attack
from marl.envs.smac.engine.scenario import update_visibility
from marl.envs.smac.engine.thread_pool import ENDED, publish, take_work
from marl.envs.smac.task.mappo_layout import write_mappo_obs, write_mappo_state
from marl.envs.smac.task.reward import battle_outcome, step_reward

AT_TOUCH = 1.0
"""Weapons of less range make a unit go up to its target."""

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
"""Every so many loops SMACv2's map sends units that wait against the nearest agent."""


class Battle(NamedTuple):
    """The state of E battles: `real` (E, fields, U), `whole` (E, fields, U), `tally` (E, fields)."""

    unit_float: np.ndarray
    unit_int: np.ndarray
    counters: np.ndarray


class View(NamedTuple):
    """Output buffers: `seen` (E, N, D), `state` (E, S), `mask` (E, N, A), `alive` (E, N), `reward` (E, N),
    `outcome` (E,) int64, `terminated` and `truncated` (E,) bool."""

    seen: np.ndarray
    state: np.ndarray
    mask: np.ndarray
    alive: np.ndarray
    reward: np.ndarray
    outcome: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Scratch(NamedTuple):
    """Working memory of one thread: `turn` (U,) uint32, which as indices need no check for negative ones, and `spots`
    (rows, U) float32 (see `combat.mark`)."""

    turn: np.ndarray
    spots: np.ndarray


def new_scratch(units: int) -> Scratch:
    return Scratch(np.zeros(units, np.uint32), np.zeros((SPOT_ROWS, units), np.float32))


@compiled
def begin(world, unit_float, unit_int, counters):
    """The first moment of an episode."""
    unit_float[:] = 0.0
    unit_int[:KIND] = -1
    unit_int[SIDE] = 0
    share = draw(counters, 1 << 20) / (1 << 20)
    for unit in range(world.units):
        unit_float[X, unit], unit_float[Y, unit] = world.start[0, unit], world.start[1, unit]
        unit_float[HEALTH, unit] = world.stats[MAX_HEALTH, unit]
        unit_float[SHIELD, unit] = world.stats[MAX_SHIELD, unit]
        unit_float[ENERGY, unit] = START_ENERGY if world.stats[HEALER, unit] > 0.0 else 0.0
        unit_float[LOOK_X, unit] = 1.0
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
def update_timers(stats, unit_float, unit_int, spots, unit):
    """Timers and regeneration of one loop."""
    unit_float[COOLDOWN, unit] = max(0.0, unit_float[COOLDOWN, unit] - 1.0)
    unit_int[MOVED, unit] = 0
    unit_int[SIDE, unit] -= sign(unit_int[SIDE, unit])
    unit_int[HEALING, unit] = -1
    if stats[AGES, unit] == 0.0:
        return
    if stats[REGENERATION, unit] > 0.0:
        unit_float[HEALTH, unit] = min(stats[MAX_HEALTH, unit], unit_float[HEALTH, unit] + stats[REGENERATION, unit])
    if stats[MAX_SHIELD, unit] > 0.0:
        if unit_float[QUIET, unit] > 0.0:
            unit_float[QUIET, unit] -= 1.0
        else:
            unit_float[SHIELD, unit] = min(stats[MAX_SHIELD, unit], unit_float[SHIELD, unit] + SHIELD_REGENERATION)
    if stats[HEALER, unit] > 0.0:
        spots[RANK, unit] = HARMLESS
        unit_float[ENERGY, unit] = min(MAX_ENERGY, unit_float[ENERGY, unit] + ENERGY_REGENERATION)
    if stats[DECAY, unit] > 0.0:
        unit_float[HEALTH, unit] = max(0.0, unit_float[HEALTH, unit] - stats[DECAY, unit])


@compiled
def heal(stats, unit_float, unit_int, spots, unit, target):
    """Heal a unit in range; returns how far to walk to one that is not, -1 where there is nothing to heal or to heal
    with."""
    missing = stats[MAX_HEALTH, target] - unit_float[HEALTH, target]
    if unit_float[HEALTH, target] <= 0.0 or missing <= 0.0:
        return -1.0
    away = gap(stats, unit_float, unit, target)
    if away > HEAL_RANGE + TOUCH:
        return away - HEAL_RANGE
    amount = min(HEAL_STEP, missing, unit_float[ENERGY, unit] / ENERGY_PER_HEALTH)
    if amount <= 0.0:
        return -1.0
    unit_float[HEALTH, target] += amount
    unit_float[ENERGY, unit] = max(0.0, unit_float[ENERGY, unit] - amount * ENERGY_PER_HEALTH)
    unit_float[PACE, unit] = 0.0
    unit_int[HEALING, unit] = target
    spots[RANK, unit] = NOTHING
    return 0.0


@compiled
def act_ally(stats, unit_float, unit_int, counters, spots, unit):
    """Carry out the standing order; an agent's unit never does anything of its own accord. SMAC's actions never order
    an attack-move; clients of the server do.

    Returns whom to walk to, -1 for the unit's goal, and how far at most, 0 for not at all.
    """
    order, target = unit_int[ORDER, unit], unit_int[TARGET, unit]
    if pursue_attack(stats, unit_float, unit_int, unit):
        return -1, 0.0
    if order == GOING:
        return -1, FAR
    if order == ATTACKING and unit_float[HEALTH, target] > 0.0:
        return target, attack(stats, unit_float, unit_int, counters, unit, target, gap(stats, unit_float, unit, target))
    if order == MENDING:
        away = heal(stats, unit_float, unit_int, spots, unit, target)
        if away >= 0.0:
            return target, away
    if order == ATTACK_MOVING:
        kept = stats[RANGE, unit] + max(TOUCH, stats[SLOP, unit])
        if target < 0 or unit_float[HEALTH, target] <= 0.0 or gap(stats, unit_float, unit, target) > kept:
            target = find_enemy(stats, unit_float, unit_int, unit)
            unit_int[TARGET, unit] = target
        if target < 0:
            return -1, FAR
        return target, attack(stats, unit_float, unit_int, counters, unit, target, gap(stats, unit_float, unit, target))
    unit_int[ORDER, unit] = IDLE
    return -1, 0.0


@compiled
def choose_target(stats, spots, unit):
    """The nearest opponent in scan range, those that fight or heal before those that do neither; or -1."""
    xs, ys, rank = spots[SPOT_X], spots[SPOT_Y], spots[RANK]
    body = spots[BODY if stats[HITS_AIR, unit] > 0.0 else GROUND_BODY]
    x, y, reach = xs[unit], ys[unit], np.float32(stats[SCAN, unit] + stats[RADIUS, unit])
    best = NOBODY
    for other in range(int(stats[AGENTS, 0])):
        dx, dy, far = xs[other] - x, ys[other] - y, reach + body[other]
        apart = dx * dx + dy * dy
        best = min(best, rank_of(apart + rank[other], other) if apart <= far * abs(far) else NOBODY)
    if best == NOBODY:
        return -1
    return best % CROWD


@compiled
def fights_at_touch(stats, unit):
    """Whether a unit has to be next to its target."""
    return stats[ATTACK, unit] >= 0.0 and stats[RANGE, unit] < AT_TOUCH


@compiled
def choose_reachable(stats, unit_float, spots, unit, nearest):
    """Of the targets on the ground in scan range the one with the shortest way around those who stand between."""
    dx, dy = unit_float[X, nearest] - unit_float[X, unit], unit_float[Y, nearest] - unit_float[Y, unit]
    near = neighbors(spots, unit, max(AHEAD, stats[SCAN, unit], math.sqrt(dx * dx + dy * dy)))
    best, least = nearest, way_around(stats, unit_float, spots, near, unit, nearest, math.inf)
    for other in range(int(stats[AGENTS, 0])):
        if unit_float[HEALTH, other] > 0.0 and other != nearest and stats[FLIES, other] == 0.0:
            dx, dy = unit_float[X, other] - unit_float[X, unit], unit_float[Y, other] - unit_float[Y, unit]
            apart = math.sqrt(dx * dx + dy * dy)
            if apart < least and apart < stats[SCAN, unit] + stats[RADIUS, unit] + stats[RADIUS, other]:
                way = way_around(stats, unit_float, spots, near, unit, other, least)
                if way < least:
                    best, least = other, way
    return best


@compiled
def choose_patient(stats, unit_float, unit):
    """The friend in reach with the least share of its health, the nearest of equals; or -1."""
    best, least, nearest = -1, 1.0, FAR
    if unit_float[ENERGY, unit] < MIN_ENERGY:
        return best
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if unit_float[HEALTH, other] <= 0.0 or stats[BIOLOGICAL, other] == 0.0:
            continue
        share, away = unit_float[HEALTH, other] / stats[MAX_HEALTH, other], gap(stats, unit_float, unit, other)
        if away <= HEAL_SCAN and (share < least or (share == least and share < 1.0 and away < nearest)):
            best, least, nearest = other, share, away
    return best


@compiled
def walk_to_goal(stats, unit_float, unit_int, unit):
    """Attack-move: on to the goal, or after the nearest agent; returns as `act_ally` does."""
    if unit_int[ORDER, unit] == HUNTING:
        least = FAR
        for other in range(int(stats[AGENTS, 0])):
            away = gap(stats, unit_float, unit, other)
            if unit_float[HEALTH, other] > 0.0 and away < least:
                least = away
                unit_float[GOAL_X, unit], unit_float[GOAL_Y, unit] = unit_float[X, other], unit_float[Y, other]
    return -1, 0.0 if unit_int[ORDER, unit] in (IDLE, WAITING) else FAR


@compiled
def act_enemy(stats, unit_float, unit_int, counters, spots, unit):
    """The game's own control of an attack-moving or idle unit; returns as `act_ally` does."""
    if pursue_attack(stats, unit_float, unit_int, unit):
        return -1, 0.0
    if unit_int[ORDER, unit] == WAITING and unit_int[TARGET, unit] < 0 and counters[CLOCK] % TRIGGER_LOOPS == 0:
        trigger_attack(stats, unit_float, unit_int, unit)
    target = unit_int[TARGET, unit]
    if stats[HEALER, unit] > 0.0:
        if target < 0 or unit_float[HEALTH, target] >= stats[MAX_HEALTH, target] or unit_float[HEALTH, target] <= 0.0:
            target = choose_patient(stats, unit_float, unit)
        away = heal(stats, unit_float, unit_int, spots, unit, target) if target >= 0 else -1.0
        unit_int[TARGET, unit] = target if away >= 0.0 else -1
    else:
        if target >= 0 and unit_float[HEALTH, target] <= 0.0:
            target = -1
            if unit_int[ORDER, unit] == ATTACKING:
                unit_int[ORDER, unit] = WAITING
        away = gap(stats, unit_float, unit, target) if target >= 0 else FAR
        touching = fights_at_touch(stats, unit)
        kept = stats[RANGE, unit] + (TOUCH if touching else stats[SLOP, unit])
        if away > kept and unit_int[ORDER, unit] != ATTACKING:
            found = choose_target(stats, spots, unit)
            while found >= 0 and unit_float[HEALTH, found] <= 0.0:  # died in this loop
                remove(spots, found)
                found = choose_target(stats, spots, unit)
            if found >= 0 and touching:
                found = choose_reachable(stats, unit_float, spots, unit, found)
            if found >= 0:
                target = found
                away = gap(stats, unit_float, unit, target)
        unit_int[TARGET, unit] = target
        if target >= 0:
            away = attack(stats, unit_float, unit_int, counters, unit, target, away)
    if unit_int[TARGET, unit] >= 0:
        return target, away
    return walk_to_goal(stats, unit_float, unit_int, unit)


@compiled
def take_turn(stats, way, unit_float, unit_int, counters, spots, unit):
    """What a living unit does in a game loop."""
    update_timers(stats, unit_float, unit_int, spots, unit)
    if unit_float[HEALTH, unit] <= 0.0:
        return
    ally = unit < stats[AGENTS, 0]
    if ally:
        friend, most = act_ally(stats, unit_float, unit_int, counters, spots, unit)
    else:
        friend, most = act_enemy(stats, unit_float, unit_int, counters, spots, unit)
    if most > 0.0:
        x = unit_float[X, friend] if friend >= 0 else unit_float[GOAL_X, unit]
        y = unit_float[Y, friend] if friend >= 0 else unit_float[GOAL_Y, unit]
        chases = friend >= 0 and fights_at_touch(stats, unit)
        arrived = walk(stats, way, unit_float, unit_int, spots, unit, x, y, most, chases)
        if arrived and friend < 0 and unit_int[ORDER, unit] != HUNTING:
            unit_int[ORDER, unit] = IDLE
    if unit_int[MOVED, unit] == 0:
        unit_float[PACE, unit] = 0.0
    spots[SOLID, unit] = spots[WIDTH, unit] * (GIVE if unit_int[MOVED, unit] == 1 else ALL)


@compiled
def round_to_float32(unit_float, unit):
    """Round what others may see of a unit to single precision, in which the game's own interface reports."""
    for field in (X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN):
        unit_float[field, unit] = single(unit_float[field, unit])


@compiled
def run_game_loops(world, scratch, unit_float, unit_int, counters):
    """The game loops of one step."""
    stats, way = world.stats, world.way
    walkable, near_wall = world.walkable, world.near_wall
    turn, spots = scratch.turn, scratch.spots
    fill_positions(stats, unit_float, unit_int, spots)
    for _ in range(world.loops):
        count = 0
        for unit in range(world.units):
            if unit_float[HEALTH, unit] > 0.0:
                other = draw(counters, count + 1)  # shuffled as it is filled
                turn[count] = turn[other]
                turn[other] = unit
                count += 1
            else:
                remove(spots, unit)
        for position in range(count):
            unit = turn[position]
            if unit_float[HEALTH, unit] > 0.0:
                take_turn(stats, way, unit_float, unit_int, counters, spots, unit)
        apply_impacts(stats, unit_float, unit_int)
        counters[CLOCK] += 1
        if counters[CLOCK] % 2 == 0:
            separate(stats, unit_float, unit_int, spots)
        confine(stats, way, walkable, near_wall, unit_float, spots)
    for unit in range(world.units):
        round_to_float32(unit_float, unit)


@compiled
def observe_battle(rules, world, battle, view, env):
    """Bring one environment's observations, state and mask up to date."""
    unit_float, unit_int, counters = battle.unit_float[env], battle.unit_int[env], battle.counters[env]
    mask, seen = view.mask[env], view.seen[env]
    share_health(world.stats, unit_float)
    for agent in range(rules.agents):
        view.alive[env, agent] = unit_float[HEALTH, agent] > 0.0
    if rules.visibility_prob < 1.0:
        update_visibility(rules, world.stats, unit_float, unit_int, counters)
    offer_actions(rules, world.stats, world.walkable, unit_float, mask)
    if rules.mappo:
        write_mappo_obs(rules, world.stats, world.walkable, unit_float, unit_int, counters, mask, seen)
    else:
        write_obs(rules, world.stats, world.walkable, unit_float, unit_int, counters, mask, seen)
    if rules.mappo and not rules.concat_obs:
        write_mappo_state(rules, world.stats, unit_float, unit_int, counters, mask, view.state[env])
    else:
        write_state(rules, world.stats, unit_float, unit_int, counters, seen, view.state[env])
    if not rules.masked:
        offer_targets(rules, world.stats, unit_float, mask)


@entry
def find_unavailable(mask, alive, counters, action, ignore):
    """(environment, agent) of the first action of a living agent that is not available, or (-1, -1).

    (environment, -1) where no episode is running.
    """
    for env in range(action.shape[0]):
        if counters[env, RUNNING] == 0:
            return env, -1
        for agent in range(action.shape[1]):
            if alive[env, agent]:
                choice = action[env, agent]
                outside = choice < 0 or choice >= mask.shape[2]
                if outside or (not ignore and not mask[env, agent, choice]):
                    return env, agent
    return -1, -1


@compiled
def record_actions(rules, battle, view, action, env):
    """Note one environment's actions (N,) as the last ones, doing nothing for what is not available."""
    unit_int, counters = battle.unit_int[env], battle.counters[env]
    for agent in range(rules.agents):
        unit_int[LAST, agent] = NO_ACTION
        if view.alive[env, agent]:
            choice = action[agent]
            if view.mask[env, agent, choice]:
                unit_int[LAST, agent] = choice
            else:
                counters[IGNORED] += 1


@compiled
def finish_step(rules, world, battle, view, env):
    """The reward, the end and the observations of a step, from where the units are now."""
    unit_float, counters = battle.unit_float[env], battle.counters[env]
    counters[STEPS] += 1
    outcome = battle_outcome(rules, world.stats, unit_float)
    view.outcome[env] = outcome
    view.reward[env] = step_reward(rules, world.stats, unit_float, outcome)
    view.terminated[env] = outcome != RUNNING_ON
    view.truncated[env] = outcome == RUNNING_ON and counters[STEPS] >= rules.limit
    if view.terminated[env] or view.truncated[env]:
        counters[RUNNING] = 0
    observe_battle(rules, world, battle, view, env)


@entry
def advance(rules, world, battle, view, action, scratch, desk, helps):
    """Play one step in the environments claimed: orders, loops, reward, end, observations; returns how many ended.

    The first four and `scratch` are plain tuples of the fields of Rules, World, Battle, View and Scratch, the World's
    with the leading axis of `one_world`. `action` (E, N) holds actions within range; those of the dead are not read.
    Threads that share a `desk` share the work, see `crew`; one that `helps` stays for the steps that follow.
    """
    rules, world, battle, view, scratch = Rules(*rules), World(*world), Battle(*battle), View(*view), Scratch(*scratch)
    if not helps:
        publish(desk, action.shape[0])
    first, last = take_work(desk, helps, 0, 0)
    while first < last:
        ended = 0
        for env in range(first, last):
            unit_float, unit_int, counters = battle.unit_float[env], battle.unit_int[env], battle.counters[env]
            here = one_world(world, env)
            record_actions(rules, battle, view, action[env], env)
            for agent in range(rules.agents):
                if unit_int[LAST, agent] != NO_ACTION:
                    apply_action(rules, here, unit_float, unit_int, agent, unit_int[LAST, agent])
            run_game_loops(here, scratch, unit_float, unit_int, counters)
            finish_step(rules, here, battle, view, env)
            ended += 1 - counters[RUNNING]
        first, last = take_work(desk, helps, last - first, ended)
    return desk[ENDED]


@entry
def restart(rules, world, battle, view, chosen):
    """Begin an episode in each of the chosen environments, from their random streams; see `advance`."""
    rules, world, battle, view = Rules(*rules), World(*world), Battle(*battle), View(*view)
    for env in chosen:
        here = one_world(world, env)
        begin(here, battle.unit_float[env], battle.unit_int[env], battle.counters[env])
        observe_battle(rules, here, battle, view, env)
