"""The battle engine: one step of E battles, from orders to observations.

Every game loop, living units act in a random order: timers, regeneration, then the order or the enemy's own mind;
after that delayed hits land and overlapping units are pushed apart. See `FIDELITY.md` for what is modelled.
"""

from typing import NamedTuple

import numpy as np

from envs.smac.combat import (
    ATTACK_MOVING,
    ATTACKING,
    GOING,
    HUNTING,
    IDLE,
    MENDING,
    SECOND,
    TOUCH,
    attack,
    can_hit,
    confine,
    draw,
    gap,
    land,
    pursue_attack,
    separate,
    single,
    walk,
)
from envs.smac.rules import (
    AGENTS,
    BIOLOGICAL,
    COOLDOWN,
    COUNTED,
    DECAY,
    EAST,
    ENERGY,
    FIRST_TARGET,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALING,
    HEALTH,
    IGNORED,
    LAST,
    MAX_HEALTH,
    MAX_SHIELD,
    MOVED,
    NO_ACTION,
    NORTH,
    ORDER,
    PACE,
    QUIET,
    RADIUS,
    RANGE,
    RECOVER,
    REGENERATION,
    RUNNING,
    RUNNING_ON,
    SCAN,
    SHIELD,
    SLOP,
    SOUTH,
    STEPS,
    TARGET,
    WEST,
    WINDUP,
    X,
    Y,
    battle_outcome,
    compiled,
    observe,
    offer_actions,
    pay,
    survey,
)

SHIELD_REGENERATION = 2.0 / SECOND
ENERGY_REGENERATION = 0.5625 / SECOND
MOST_ENERGY = 200.0
START_ENERGY = 50.0
HEAL_RANGE = 4.0
HEAL_SCAN = 6.0
HEAL_STEP = 9.0 / SECOND
ENERGY_PER_HEALTH = 0.33
LEAST_ENERGY = 5.0
FAR = 1e9


class Battle(NamedTuple):
    """The state of E battles: `real` (E, fields, U), `whole` (E, fields, U), `tally` (E, fields)."""

    real: np.ndarray
    whole: np.ndarray
    tally: np.ndarray


class View(NamedTuple):
    """Output buffers: `seen` (E, N, D), `state` (E, S), `mask` (E, N, A), `alive` (E, N), `reward` (E, N),
    `outcome` (E,) int64."""

    seen: np.ndarray
    state: np.ndarray
    mask: np.ndarray
    alive: np.ndarray
    reward: np.ndarray
    outcome: np.ndarray


class Scratch(NamedTuple):
    """Working memory of one thread: `turn` and `slots` (U,) int64, `place` (3, U) float64."""

    turn: np.ndarray
    slots: np.ndarray
    place: np.ndarray


def new_scratch(units: int) -> Scratch:
    return Scratch(np.zeros(units, np.int64), np.zeros(units, np.int64), np.zeros((3, units)))


@compiled
def begin(world, real, whole, tally):
    """The first moment of an episode."""
    real[:] = 0.0
    whole[:] = -1
    share = draw(tally, 1 << 20) / (1 << 20)
    for unit in range(world.units):
        real[X, unit], real[Y, unit] = world.start[0, unit], world.start[1, unit]
        real[HEALTH, unit] = world.stats[MAX_HEALTH, unit]
        real[SHIELD, unit] = world.stats[MAX_SHIELD, unit]
        real[ENERGY, unit] = START_ENERGY if world.stats[HEALER, unit] > 0.0 else 0.0
        report(real, unit)
        real[COUNTED, unit] = real[HEALTH, unit] + real[SHIELD, unit]
        whole[ORDER, unit] = IDLE if unit < world.agents else world.order
        real[GOAL_X, unit] = world.goals[0, 0] + share * (world.goals[1, 0] - world.goals[0, 0])
        real[GOAL_Y, unit] = world.goals[0, 1] + share * (world.goals[1, 1] - world.goals[0, 1])
    tally[STEPS] = 0
    tally[RUNNING] = 1
    tally[IGNORED] = 0


@compiled
def command(rules, world, real, whole, agent, action):
    """Give an agent the order of its action."""
    order, target = IDLE, -1
    x, y = real[X, agent], real[Y, agent]
    if NORTH <= action <= WEST:
        order = GOING
        x += rules.move * ((1.0 if action == EAST else 0.0) - (1.0 if action == WEST else 0.0))
        y += rules.move * ((1.0 if action == NORTH else 0.0) - (1.0 if action == SOUTH else 0.0))
    elif action >= FIRST_TARGET and rules.healers and world.stats[HEALER, agent] > 0.0:
        order, target = MENDING, action - FIRST_TARGET
    elif action >= FIRST_TARGET:
        order, target = ATTACKING, rules.agents + action - FIRST_TARGET
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
    if real[WINDUP, unit] > 0.0:
        real[COOLDOWN, unit] = 0.0
    real[WINDUP, unit] = 0.0
    real[RECOVER, unit] = 0.0
    whole[ORDER, unit] = order
    whole[TARGET, unit] = target
    real[GOAL_X, unit], real[GOAL_Y, unit] = single(x), single(y)
    return True


@compiled
def age(stats, real, whole, unit):
    """Timers and regeneration of one loop."""
    real[COOLDOWN, unit] = max(0.0, real[COOLDOWN, unit] - 1.0)
    whole[MOVED, unit] = 0
    whole[HEALING, unit] = -1
    if stats[REGENERATION, unit] > 0.0:
        real[HEALTH, unit] = min(stats[MAX_HEALTH, unit], real[HEALTH, unit] + stats[REGENERATION, unit])
    if stats[MAX_SHIELD, unit] > 0.0:
        if real[QUIET, unit] > 0.0:
            real[QUIET, unit] -= 1.0
        else:
            real[SHIELD, unit] = min(stats[MAX_SHIELD, unit], real[SHIELD, unit] + SHIELD_REGENERATION)
    if stats[HEALER, unit] > 0.0:
        real[ENERGY, unit] = min(MOST_ENERGY, real[ENERGY, unit] + ENERGY_REGENERATION)
    if stats[DECAY, unit] > 0.0:
        real[HEALTH, unit] = max(0.0, real[HEALTH, unit] - stats[DECAY, unit])


@compiled
def mend(stats, way, real, whole, unit, target):
    """Heal a unit in range, go to one that is not. False where there is nothing to heal or nothing to heal with."""
    missing = stats[MAX_HEALTH, target] - real[HEALTH, target]
    if real[HEALTH, target] <= 0.0 or missing <= 0.0:
        return False
    away = gap(stats, real, unit, target)
    if away > HEAL_RANGE + TOUCH:
        walk(stats, way, real, whole, unit, real[X, target], real[Y, target], away - HEAL_RANGE)
        return True
    amount = min(HEAL_STEP, missing, real[ENERGY, unit] / ENERGY_PER_HEALTH)
    if amount <= 0.0:
        return False
    real[HEALTH, target] += amount
    real[ENERGY, unit] = max(0.0, real[ENERGY, unit] - amount * ENERGY_PER_HEALTH)
    real[PACE, unit] = 0.0
    whole[HEALING, unit] = target
    return True


@compiled
def act_ally(stats, way, real, whole, tally, unit):
    """Carry out the standing order; an agent's unit never does anything of its own accord."""
    if pursue_attack(stats, real, whole, unit):
        return
    order, target = whole[ORDER, unit], whole[TARGET, unit]
    if order == GOING:
        if walk(stats, way, real, whole, unit, real[GOAL_X, unit], real[GOAL_Y, unit], FAR):
            whole[ORDER, unit] = IDLE
    elif order == ATTACKING:
        if real[HEALTH, target] > 0.0:
            attack(stats, way, real, whole, tally, unit, target, gap(stats, real, unit, target))
        else:
            whole[ORDER, unit] = IDLE
    elif order == MENDING and not mend(stats, way, real, whole, unit, target):
        whole[ORDER, unit] = IDLE
    if whole[MOVED, unit] == 0:
        real[PACE, unit] = 0.0


@compiled
def choose_target(stats, real, whole, unit):
    """The nearest opponent in scan range, those that fight or heal before those that do neither; or -1."""
    best, least, armed = -1, FAR, False
    x, y = real[X, unit], real[Y, unit]
    for other in range(int(stats[AGENTS, 0])):
        if real[HEALTH, other] <= 0.0 or not can_hit(stats, unit, other):
            continue
        dx, dy = real[X, other] - x, real[Y, other] - y
        apart = dx * dx + dy * dy
        reach = stats[SCAN, unit] + stats[RADIUS, unit] + stats[RADIUS, other]
        if apart > reach * reach:
            continue
        threat = stats[HEALER, other] == 0.0 or whole[HEALING, other] >= 0
        if (threat and not armed) or (threat == armed and apart < least):
            best, least, armed = other, apart, threat
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
def march(stats, way, real, whole, unit):
    """Attack-move: on to the goal, or after the nearest agent."""
    if whole[ORDER, unit] == HUNTING:
        least = FAR
        for other in range(int(stats[AGENTS, 0])):
            away = gap(stats, real, unit, other)
            if real[HEALTH, other] > 0.0 and away < least:
                least = away
                real[GOAL_X, unit], real[GOAL_Y, unit] = real[X, other], real[Y, other]
    elif whole[ORDER, unit] != ATTACK_MOVING:
        return
    arrived = walk(stats, way, real, whole, unit, real[GOAL_X, unit], real[GOAL_Y, unit], FAR)
    if arrived and whole[ORDER, unit] == ATTACK_MOVING:
        whole[ORDER, unit] = IDLE


@compiled
def act_enemy(stats, way, real, whole, tally, unit):
    """The game's own control of an attack-moving or idle unit."""
    if pursue_attack(stats, real, whole, unit):
        return
    if stats[HEALER, unit] > 0.0:
        patient = whole[TARGET, unit]
        if patient < 0 or real[HEALTH, patient] >= stats[MAX_HEALTH, patient] or real[HEALTH, patient] <= 0.0:
            patient = choose_patient(stats, real, unit)
        whole[TARGET, unit] = patient
        if patient < 0 or not mend(stats, way, real, whole, unit, patient):
            whole[TARGET, unit] = -1
            march(stats, way, real, whole, unit)
        return
    target = whole[TARGET, unit]
    if target >= 0 and real[HEALTH, target] <= 0.0:
        target = -1
    away = gap(stats, real, unit, target) if target >= 0 else FAR
    if away > stats[RANGE, unit] + stats[SLOP, unit]:
        found = choose_target(stats, real, whole, unit)
        if found >= 0:
            target = found
            away = gap(stats, real, unit, target)
    whole[TARGET, unit] = target
    if target >= 0:
        attack(stats, way, real, whole, tally, unit, target, away)
    else:
        march(stats, way, real, whole, unit)


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
    turn, slots, place = scratch.turn, scratch.slots, scratch.place
    for _ in range(world.loops):
        count = 0
        for unit in range(world.units):
            if real[HEALTH, unit] > 0.0:
                other = draw(tally, count + 1)  # shuffled as it is filled
                turn[count] = turn[other]
                turn[other] = unit
                count += 1
        for position in range(count):
            unit = turn[position]
            if real[HEALTH, unit] <= 0.0:
                continue
            age(stats, real, whole, unit)
            if unit < world.agents:
                act_ally(stats, way, real, whole, tally, unit)
            else:
                act_enemy(stats, way, real, whole, tally, unit)
        land(stats, real, whole)
        separate(stats, real, whole, slots, place)
        confine(stats, way, walkable, near_wall, real)
    for unit in range(world.units):
        report(real, unit)


@compiled
def show(rules, world, battle, view, env):
    """Bring one environment's observations, state and mask up to date."""
    real, whole, tally = battle.real[env], battle.whole[env], battle.tally[env]
    mask, seen = view.mask[env], view.seen[env]
    for agent in range(rules.agents):
        view.alive[env, agent] = real[HEALTH, agent] > 0.0
    offer_actions(rules, world.stats, world.walkable, real, mask)
    observe(rules, world.stats, world.walkable, real, whole, tally, mask, seen)
    survey(rules, world.stats, real, whole, tally, seen, view.state[env])


@compiled
def find_unavailable(view, action, ignore):
    """(environment, agent) of the first action of a living agent that is not available, or (-1, -1)."""
    for env in range(action.shape[0]):
        for agent in range(action.shape[1]):
            if view.alive[env, agent]:
                choice = action[env, agent]
                outside = choice < 0 or choice >= view.mask.shape[2]
                if outside or (not ignore and not view.mask[env, agent, choice]):
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
    view.reward[env] = pay(rules, real, outcome)
    if outcome != RUNNING_ON or tally[STEPS] >= rules.limit:
        tally[RUNNING] = 0
    show(rules, world, battle, view, env)


@compiled
def advance(rules, world, battle, view, action, scratch, first, last):
    """Play one step in environments [first, last): orders, loops, reward, end, observations.

    `action` (E, N) holds actions within range; those of the dead are not read.
    """
    for env in range(first, last):
        real, whole, tally = battle.real[env], battle.whole[env], battle.tally[env]
        take(rules, battle, view, action[env], env)
        for agent in range(rules.agents):
            if whole[LAST, agent] != NO_ACTION:
                command(rules, world, real, whole, agent, whole[LAST, agent])
        play(world, scratch, real, whole, tally)
        settle(rules, world, battle, view, env)


@compiled
def restart(rules, world, battle, view, chosen):
    """Begin an episode in each of the chosen environments, from their random streams."""
    for env in chosen:
        begin(world, battle.real[env], battle.whole[env], battle.tally[env])
        show(rules, world, battle, view, env)
