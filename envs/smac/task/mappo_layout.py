"""Observations and states as MAPPO's fork of SMAC lays them out, which MAT took over (Yu et al. 2022, Wen et al. 2022).

The observation is SMAC's in another order, with the last actions of all and the agent's index. The state is not one of
the team: each agent has its own, which shows the whole battle from its place, with what it could see of it. Here they
stand one after another. Of the dead nothing is shown but their index and the time ("death masking").
"""

import math

from marl.envs.smac.engine.fields import (
    ALLY_TYPE,
    ENEMY_TYPE,
    FIRST_TARGET,
    HEALTH,
    LAST,
    LOOK_X,
    LOOK_Y,
    NORTH,
    SIGHT,
    SIZE,
    STEPS,
    X,
    Y,
    charge,
    compiled,
    in_cone,
    may_watch,
    observe_allies,
    observe_enemies,
    show_ground,
    show_health,
    show_look,
)


@compiled
def sign(rules, counters, agent, named, timed, row, end):
    """Write who sees a row and when into its last places, before `end`."""
    if timed:
        end -= 1
        row[end] = counters[STEPS] / rules.limit
    if named:
        row[end - rules.agents + agent] = 1.0


@compiled
def show_moves(mask, row, at):
    for move in range(4):
        row[at + move] = 1.0 if mask[NORTH + move] else 0.0
    return at + 4


@compiled
def show_place(rules, unit_float, unit, row, at):
    """Write a unit's offset from the center of the map, divided by the playable area."""
    row[at] = (unit_float[X, unit] - SIZE / 2.0) / rules.span_x
    row[at + 1] = (unit_float[Y, unit] - SIZE / 2.0) / rules.span_y
    return at + 2


@compiled
def show_offset(rules, stats, unit_float, agent, other, row, at):
    """Write how far and where a unit is from an agent, in parts of its sight; returns whether it is in its sight."""
    sight = stats[SIGHT, agent]
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, scale = dx * dx + dy * dy, 1.0 / sight
    row[at] = math.sqrt(apart) * scale
    row[at + 1] = dx * scale
    row[at + 2] = dy * scale
    return apart < sight * sight and in_cone(rules, unit_float[LOOK_X, agent], unit_float[LOOK_Y, agent], dx, dy, apart)


@compiled
def show_kind(rules, stats, row_of_types, unit, row, at):
    if rules.type_bits:
        row[at + int(stats[row_of_types, unit])] = 1.0
    return at + rules.type_bits


@compiled
def show_last(rules, unit_int, unit, row, at):
    if unit_int[LAST, unit] >= 0:
        row[at + unit_int[LAST, unit]] = 1.0
    return at + rules.actions


@compiled
def show_self(rules, stats, unit_float, unit_int, agent, placed, last, row, at):
    """Write what an agent knows of itself, which starts as an ally's part does: visible, and no distance."""
    row[at] = 1.0
    at += 4
    if rules.own_health:
        at = show_health(unit_float, agent, rules.ally_shield, row, at)
    if placed:
        at = show_place(rules, unit_float, agent, row, at)
    elif rules.own_place:
        row[at], row[at + 1] = unit_float[X, agent] / SIZE, unit_float[Y, agent] / SIZE
        at += 2
    at = show_look(rules, unit_float, agent, row, at)
    at = show_kind(rules, stats, ALLY_TYPE, agent, row, at)
    if last:
        at = show_last(rules, unit_int, agent, row, at)
    return at


@compiled
def write_mappo_obs(rules, stats, walkable, unit_float, unit_int, counters, mask, seen):
    """Fill `seen` (N, D) float32: allies, enemies, own moves, self, index, time."""
    seen[:] = 0.0
    for agent in range(rules.agents):
        row = seen[agent]
        sign(rules, counters, agent, rules.agent_id, rules.timestep, row, row.shape[0])
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        at = observe_allies(rules, stats, unit_float, unit_int, agent, row, 0)
        at = observe_enemies(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = show_moves(mask[agent], row, at)
        if rules.pathing:
            at = show_ground(rules, walkable, unit_float[X, agent], unit_float[Y, agent], row, at)
        show_self(rules, stats, unit_float, unit_int, agent, 0, rules.last_action, row, at)


@compiled
def survey_allies(rules, stats, unit_float, unit_int, agent, row, at):
    last = rules.state_last_action
    width = 7 + rules.type_bits + rules.all_health * (1 + rules.ally_shield) + last * rules.actions
    width += 2 * (rules.fov_actions > 0)
    for other in range(rules.agents):
        if other == agent:
            continue
        if unit_float[HEALTH, other] > 0.0:
            row[at] = 1.0 if show_offset(rules, stats, unit_float, agent, other, row, at + 1) else 0.0
            row[at + 4] = charge(rules, stats, unit_float, other)
            end = at + 5
            if rules.all_health:
                end = show_health(unit_float, other, rules.ally_shield, row, end)
            end = show_place(rules, unit_float, other, row, end)
            end = show_look(rules, unit_float, other, row, end)
            end = show_kind(rules, stats, ALLY_TYPE, other, row, end)
            if last:
                show_last(rules, unit_int, other, row, end)
        at += width
    return at


@compiled
def survey_enemies(rules, stats, unit_float, unit_int, agent, mask, row, at):
    width = 7 + rules.type_bits + rules.all_health * (1 + rules.enemy_shield)
    for enemy in range(rules.enemies):
        other = rules.agents + enemy
        if unit_float[HEALTH, other] > 0.0:
            row[at] = 1.0 if mask[FIRST_TARGET + rules.fov_actions + enemy] else 0.0
            seen = show_offset(rules, stats, unit_float, agent, other, row, at + 1) and may_watch(
                rules, unit_int, agent, other
            )
            row[at + 4] = 1.0 if seen else 0.0
            end = at + 5
            if rules.all_health:
                end = show_health(unit_float, other, rules.enemy_shield, row, end)
            end = show_kind(rules, stats, ENEMY_TYPE, other, row, end)
            show_place(rules, unit_float, other, row, end)
        at += width
    return at


@compiled
def write_mappo_state(rules, stats, unit_float, unit_int, counters, mask, state):
    """Fill `state` (N * S',) float32: for each agent allies, enemies, own moves, self, index, time; all that live."""
    state[:] = 0.0
    width = state.shape[0] // rules.agents
    for agent in range(rules.agents):
        row = state[agent * width : (agent + 1) * width]
        sign(rules, counters, agent, 1, rules.state_timestep, row, width)
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        at = survey_allies(rules, stats, unit_float, unit_int, agent, row, 0)
        at = survey_enemies(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = show_moves(mask[agent], row, at)
        show_self(rules, stats, unit_float, unit_int, agent, 1, rules.state_last_action, row, at)
