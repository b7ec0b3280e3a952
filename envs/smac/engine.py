"""The battle engine: one step of E battles, from orders to observations.

Every game loop, living units act in a random order: timers, regeneration, then the order or the enemy's own mind;
after that delayed hits land and overlapping units are pushed apart. See `FIDELITY.md` for what is modelled.
"""

import math
from typing import NamedTuple

import numpy as np

from envs.smac.chance import notice
from envs.smac.combat import (
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
    attack,
    bury,
    confine,
    draw,
    gap,
    gather,
    land,
    mark,
    one_world,
    pursue_attack,
    rank_of,
    separate,
    sign,
    single,
    walk,
    way_around,
)
from envs.smac.crew import ENDED, call, claim
from envs.smac.fork import observe_as_fork, survey_as_fork
from envs.smac.orders import FAR, command, find_enemy, rouse
from envs.smac.rules import (
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
    observe,
    offer_actions,
    offer_targets,
    share_health,
    survey,
)
from envs.smac.verdict import battle_outcome, pay

AT_TOUCH = 1.0
"""Weapons of less range make a unit go up to its target."""

SHIELD_REGENERATION = 2.0 / SECOND
ENERGY_REGENERATION = 0.5625 / SECOND
MOST_ENERGY = 200.0
START_ENERGY = 50.0
HEAL_RANGE = 4.0
HEAL_SCAN = 6.0
HEAL_STEP = 9.0 / SECOND
ENERGY_PER_HEALTH = 0.33
LEAST_ENERGY = 5.0
TRIGGER_LOOPS = 8
"""Every so many loops SMACv2's map sends units that wait against the nearest agent."""


class Battle(NamedTuple):
    """The state of E battles: `real` (E, fields, U), `whole` (E, fields, U), `tally` (E, fields)."""

    real: np.ndarray
    whole: np.ndarray
    tally: np.ndarray


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
def begin(world, real, whole, tally):
    """The first moment of an episode."""
    real[:] = 0.0
    whole[:KIND] = -1
    whole[SIDE] = 0
    share = draw(tally, 1 << 20) / (1 << 20)
    for unit in range(world.units):
        real[X, unit], real[Y, unit] = world.start[0, unit], world.start[1, unit]
        real[HEALTH, unit] = world.stats[MAX_HEALTH, unit]
        real[SHIELD, unit] = world.stats[MAX_SHIELD, unit]
        real[ENERGY, unit] = START_ENERGY if world.stats[HEALER, unit] > 0.0 else 0.0
        real[LOOK_X, unit] = 1.0
        report(real, unit)
        real[COUNTED, unit] = real[HEALTH, unit] + real[SHIELD, unit]
        whole[ORDER, unit] = IDLE if unit < world.agents else world.order
        real[GOAL_X, unit] = world.goals[0, 0] + share * (world.goals[1, 0] - world.goals[0, 0])
        real[GOAL_Y, unit] = world.goals[0, 1] + share * (world.goals[1, 1] - world.goals[0, 1])
    tally[STEPS] = 0
    tally[CLOCK] = 0
    tally[RUNNING] = 1
    tally[IGNORED] = 0


@compiled
def age(stats, real, whole, spots, unit):
    """Timers and regeneration of one loop."""
    real[COOLDOWN, unit] = max(0.0, real[COOLDOWN, unit] - 1.0)
    whole[MOVED, unit] = 0
    whole[SIDE, unit] -= sign(whole[SIDE, unit])
    whole[HEALING, unit] = -1
    if stats[AGES, unit] == 0.0:
        return
    if stats[REGENERATION, unit] > 0.0:
        real[HEALTH, unit] = min(stats[MAX_HEALTH, unit], real[HEALTH, unit] + stats[REGENERATION, unit])
    if stats[MAX_SHIELD, unit] > 0.0:
        if real[QUIET, unit] > 0.0:
            real[QUIET, unit] -= 1.0
        else:
            real[SHIELD, unit] = min(stats[MAX_SHIELD, unit], real[SHIELD, unit] + SHIELD_REGENERATION)
    if stats[HEALER, unit] > 0.0:
        spots[RANK, unit] = HARMLESS
        real[ENERGY, unit] = min(MOST_ENERGY, real[ENERGY, unit] + ENERGY_REGENERATION)
    if stats[DECAY, unit] > 0.0:
        real[HEALTH, unit] = max(0.0, real[HEALTH, unit] - stats[DECAY, unit])


@compiled
def mend(stats, real, whole, spots, unit, target):
    """Heal a unit in range; returns how far to walk to one that is not, -1 where there is nothing to heal or to heal
    with."""
    missing = stats[MAX_HEALTH, target] - real[HEALTH, target]
    if real[HEALTH, target] <= 0.0 or missing <= 0.0:
        return -1.0
    away = gap(stats, real, unit, target)
    if away > HEAL_RANGE + TOUCH:
        return away - HEAL_RANGE
    amount = min(HEAL_STEP, missing, real[ENERGY, unit] / ENERGY_PER_HEALTH)
    if amount <= 0.0:
        return -1.0
    real[HEALTH, target] += amount
    real[ENERGY, unit] = max(0.0, real[ENERGY, unit] - amount * ENERGY_PER_HEALTH)
    real[PACE, unit] = 0.0
    whole[HEALING, unit] = target
    spots[RANK, unit] = NOTHING
    return 0.0


@compiled
def act_ally(stats, real, whole, tally, spots, unit):
    """Carry out the standing order; an agent's unit never does anything of its own accord. SMAC's actions never order
    an attack-move; clients of the server do.

    Returns whom to walk to, -1 for the unit's goal, and how far at most, 0 for not at all.
    """
    order, target = whole[ORDER, unit], whole[TARGET, unit]
    if pursue_attack(stats, real, whole, unit):
        return -1, 0.0
    if order == GOING:
        return -1, FAR
    if order == ATTACKING and real[HEALTH, target] > 0.0:
        return target, attack(stats, real, whole, tally, unit, target, gap(stats, real, unit, target))
    if order == MENDING:
        away = mend(stats, real, whole, spots, unit, target)
        if away >= 0.0:
            return target, away
    if order == ATTACK_MOVING:
        kept = stats[RANGE, unit] + max(TOUCH, stats[SLOP, unit])
        if target < 0 or real[HEALTH, target] <= 0.0 or gap(stats, real, unit, target) > kept:
            target = find_enemy(stats, real, whole, unit)
            whole[TARGET, unit] = target
        if target < 0:
            return -1, FAR
        return target, attack(stats, real, whole, tally, unit, target, gap(stats, real, unit, target))
    whole[ORDER, unit] = IDLE
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
def choose_reachable(stats, real, spots, unit, nearest):
    """Of the targets on the ground in scan range the one with the shortest way around those who stand between."""
    dx, dy = real[X, nearest] - real[X, unit], real[Y, nearest] - real[Y, unit]
    near = gather(spots, unit, max(AHEAD, stats[SCAN, unit], math.sqrt(dx * dx + dy * dy)))
    best, least = nearest, way_around(stats, real, spots, near, unit, nearest, math.inf)
    for other in range(int(stats[AGENTS, 0])):
        if real[HEALTH, other] > 0.0 and other != nearest and stats[FLIES, other] == 0.0:
            dx, dy = real[X, other] - real[X, unit], real[Y, other] - real[Y, unit]
            apart = math.sqrt(dx * dx + dy * dy)
            if apart < least and apart < stats[SCAN, unit] + stats[RADIUS, unit] + stats[RADIUS, other]:
                way = way_around(stats, real, spots, near, unit, other, least)
                if way < least:
                    best, least = other, way
    return best


@compiled
def choose_patient(stats, real, unit):
    """The friend in reach with the least share of its health, the nearest of equals; or -1."""
    best, least, nearest = -1, 1.0, FAR
    if real[ENERGY, unit] < LEAST_ENERGY:
        return best
    for other in range(int(stats[AGENTS, 0]), stats.shape[1]):
        if real[HEALTH, other] <= 0.0 or stats[BIOLOGICAL, other] == 0.0:
            continue
        share, away = real[HEALTH, other] / stats[MAX_HEALTH, other], gap(stats, real, unit, other)
        if away <= HEAL_SCAN and (share < least or (share == least and share < 1.0 and away < nearest)):
            best, least, nearest = other, share, away
    return best


@compiled
def march(stats, real, whole, unit):
    """Attack-move: on to the goal, or after the nearest agent; returns as `act_ally` does."""
    if whole[ORDER, unit] == HUNTING:
        least = FAR
        for other in range(int(stats[AGENTS, 0])):
            away = gap(stats, real, unit, other)
            if real[HEALTH, other] > 0.0 and away < least:
                least = away
                real[GOAL_X, unit], real[GOAL_Y, unit] = real[X, other], real[Y, other]
    return -1, 0.0 if whole[ORDER, unit] in (IDLE, WAITING) else FAR


@compiled
def act_enemy(stats, real, whole, tally, spots, unit):
    """The game's own control of an attack-moving or idle unit; returns as `act_ally` does."""
    if pursue_attack(stats, real, whole, unit):
        return -1, 0.0
    if whole[ORDER, unit] == WAITING and whole[TARGET, unit] < 0 and tally[CLOCK] % TRIGGER_LOOPS == 0:
        rouse(stats, real, whole, unit)
    target = whole[TARGET, unit]
    if stats[HEALER, unit] > 0.0:
        if target < 0 or real[HEALTH, target] >= stats[MAX_HEALTH, target] or real[HEALTH, target] <= 0.0:
            target = choose_patient(stats, real, unit)
        away = mend(stats, real, whole, spots, unit, target) if target >= 0 else -1.0
        whole[TARGET, unit] = target if away >= 0.0 else -1
    else:
        if target >= 0 and real[HEALTH, target] <= 0.0:
            target = -1
            if whole[ORDER, unit] == ATTACKING:
                whole[ORDER, unit] = WAITING
        away = gap(stats, real, unit, target) if target >= 0 else FAR
        touching = fights_at_touch(stats, unit)
        kept = stats[RANGE, unit] + (TOUCH if touching else stats[SLOP, unit])
        if away > kept and whole[ORDER, unit] != ATTACKING:
            found = choose_target(stats, spots, unit)
            while found >= 0 and real[HEALTH, found] <= 0.0:  # died in this loop
                bury(spots, found)
                found = choose_target(stats, spots, unit)
            if found >= 0 and touching:
                found = choose_reachable(stats, real, spots, unit, found)
            if found >= 0:
                target = found
                away = gap(stats, real, unit, target)
        whole[TARGET, unit] = target
        if target >= 0:
            away = attack(stats, real, whole, tally, unit, target, away)
    if whole[TARGET, unit] >= 0:
        return target, away
    return march(stats, real, whole, unit)


@compiled
def take_turn(stats, way, real, whole, tally, spots, unit):
    """What a living unit does in a game loop."""
    age(stats, real, whole, spots, unit)
    if real[HEALTH, unit] <= 0.0:
        return
    ally = unit < stats[AGENTS, 0]
    if ally:
        friend, most = act_ally(stats, real, whole, tally, spots, unit)
    else:
        friend, most = act_enemy(stats, real, whole, tally, spots, unit)
    if most > 0.0:
        x = real[X, friend] if friend >= 0 else real[GOAL_X, unit]
        y = real[Y, friend] if friend >= 0 else real[GOAL_Y, unit]
        chases = friend >= 0 and fights_at_touch(stats, unit)
        arrived = walk(stats, way, real, whole, spots, unit, x, y, most, chases)
        if arrived and friend < 0 and whole[ORDER, unit] != HUNTING:
            whole[ORDER, unit] = IDLE
    if whole[MOVED, unit] == 0:
        real[PACE, unit] = 0.0
    spots[SOLID, unit] = spots[WIDTH, unit] * (GIVE if whole[MOVED, unit] == 1 else ALL)


@compiled
def report(real, unit):
    """Round what others may see of a unit to single precision, in which the game's own interface reports."""
    for field in (X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN):
        real[field, unit] = single(real[field, unit])


@compiled
def play(world, scratch, real, whole, tally):
    """The game loops of one step."""
    stats, way = world.stats, world.way
    walkable, near_wall = world.walkable, world.near_wall
    turn, spots = scratch.turn, scratch.spots
    mark(stats, real, whole, spots)
    for _ in range(world.loops):
        count = 0
        for unit in range(world.units):
            if real[HEALTH, unit] > 0.0:
                other = draw(tally, count + 1)  # shuffled as it is filled
                turn[count] = turn[other]
                turn[other] = unit
                count += 1
            else:
                bury(spots, unit)
        for position in range(count):
            unit = turn[position]
            if real[HEALTH, unit] > 0.0:
                take_turn(stats, way, real, whole, tally, spots, unit)
        land(stats, real, whole)
        tally[CLOCK] += 1
        if tally[CLOCK] % 2 == 0:
            separate(stats, real, whole, spots)
        confine(stats, way, walkable, near_wall, real, spots)
    for unit in range(world.units):
        report(real, unit)


@compiled
def show(rules, world, battle, view, env):
    """Bring one environment's observations, state and mask up to date."""
    real, whole, tally = battle.real[env], battle.whole[env], battle.tally[env]
    mask, seen = view.mask[env], view.seen[env]
    share_health(world.stats, real)
    for agent in range(rules.agents):
        view.alive[env, agent] = real[HEALTH, agent] > 0.0
    if rules.sharing < 1.0:
        notice(rules, world.stats, real, whole, tally)
    offer_actions(rules, world.stats, world.walkable, real, mask)
    if rules.mappo:
        observe_as_fork(rules, world.stats, world.walkable, real, whole, tally, mask, seen)
    else:
        observe(rules, world.stats, world.walkable, real, whole, tally, mask, seen)
    if rules.mappo and not rules.joined:
        survey_as_fork(rules, world.stats, real, whole, tally, mask, view.state[env])
    else:
        survey(rules, world.stats, real, whole, tally, seen, view.state[env])
    if not rules.masked:
        offer_targets(rules, world.stats, real, mask)


@entry
def find_unavailable(mask, alive, tally, action, ignore):
    """(environment, agent) of the first action of a living agent that is not available, or (-1, -1).

    (environment, -1) where no episode is running.
    """
    for env in range(action.shape[0]):
        if tally[env, RUNNING] == 0:
            return env, -1
        for agent in range(action.shape[1]):
            if alive[env, agent]:
                choice = action[env, agent]
                outside = choice < 0 or choice >= mask.shape[2]
                if outside or (not ignore and not mask[env, agent, choice]):
                    return env, agent
    return -1, -1


@compiled
def take(rules, battle, view, action, env):
    """Note one environment's actions (N,) as the last ones, doing nothing for what is not available."""
    whole, tally = battle.whole[env], battle.tally[env]
    for agent in range(rules.agents):
        whole[LAST, agent] = NO_ACTION
        if view.alive[env, agent]:
            choice = action[agent]
            if view.mask[env, agent, choice]:
                whole[LAST, agent] = choice
            else:
                tally[IGNORED] += 1


@compiled
def settle(rules, world, battle, view, env):
    """The reward, the end and the observations of a step, from where the units are now."""
    real, tally = battle.real[env], battle.tally[env]
    tally[STEPS] += 1
    outcome = battle_outcome(rules, world.stats, real)
    view.outcome[env] = outcome
    view.reward[env] = pay(rules, world.stats, real, outcome)
    view.terminated[env] = outcome != RUNNING_ON
    view.truncated[env] = outcome == RUNNING_ON and tally[STEPS] >= rules.limit
    if view.terminated[env] or view.truncated[env]:
        tally[RUNNING] = 0
    show(rules, world, battle, view, env)


@entry
def advance(rules, world, battle, view, action, scratch, desk, helps):
    """Play one step in the environments claimed: orders, loops, reward, end, observations; returns how many ended.

    The first four and `scratch` are plain tuples of the fields of Rules, World, Battle, View and Scratch, the World's
    with the leading axis of `one_world`. `action` (E, N) holds actions within range; those of the dead are not read.
    Threads that share a `desk` share the work, see `crew`; one that `helps` stays for the steps that follow.
    """
    rules, world, battle, view, scratch = Rules(*rules), World(*world), Battle(*battle), View(*view), Scratch(*scratch)
    if not helps:
        call(desk, action.shape[0])
    first, last = claim(desk, helps, 0, 0)
    while first < last:
        ended = 0
        for env in range(first, last):
            real, whole, tally = battle.real[env], battle.whole[env], battle.tally[env]
            here = one_world(world, env)
            take(rules, battle, view, action[env], env)
            for agent in range(rules.agents):
                if whole[LAST, agent] != NO_ACTION:
                    command(rules, here, real, whole, agent, whole[LAST, agent])
            play(here, scratch, real, whole, tally)
            settle(rules, here, battle, view, env)
            ended += 1 - tally[RUNNING]
        first, last = claim(desk, helps, last - first, ended)
    return desk[ENDED]


@entry
def restart(rules, world, battle, view, chosen):
    """Begin an episode in each of the chosen environments, from their random streams; see `advance`."""
    rules, world, battle, view = Rules(*rules), World(*world), Battle(*battle), View(*view)
    for env in chosen:
        here = one_world(world, env)
        begin(here, battle.real[env], battle.whole[env], battle.tally[env])
        show(rules, here, battle, view, env)
