"""Observations and states in the layout of MAPPO's fork of SMAC, which MAT uses too (Yu et al. 2022, Wen et al. 2022).

The observation has SMAC's contents in another order, with all last actions and the agent's index. Every agent has a
state of its own: the whole battle relative to the agent, with a flag for what it sees. The state is the concatenation
of these. A dead agent's part holds only its index and the time ("death masking").
"""

import math

from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import (
    ALLY_TYPE,
    ENEMY_TYPE,
    FIRST_TARGET,
    FOV_X,
    FOV_Y,
    HEALTH,
    LAST,
    NORTH,
    SIGHT,
    SIZE,
    STEPS,
    X,
    Y,
)
from marl.envs.smac.engine.scenario import in_cone
from marl.envs.smac.task.observation import (
    cooldown_share,
    may_watch,
    write_allies,
    write_enemies,
    write_fov,
    write_health,
    write_pathing_grid,
)


@compiled
def write_id_and_time(rules, counters, agent, named, timed, row, end):
    """Write the agent's index, one-hot, and the time into the last columns before `end`."""
    if timed:
        end -= 1
        row[end] = counters[STEPS] / rules.limit
    if named:
        row[end - rules.agents + agent] = 1.0


@compiled
def write_move_mask(mask, row, at):
    """Write the availability of the four moves. Return the next column."""
    for move in range(4):
        row[at + move] = 1.0 if mask[NORTH + move] else 0.0
    return at + 4


@compiled
def write_position(rules, unit_float, unit, row, at):
    """Write a unit's offset from the center of the map, divided by the playable area. Return the next column."""
    row[at] = (unit_float[X, unit] - SIZE / 2.0) / rules.span_x
    row[at + 1] = (unit_float[Y, unit] - SIZE / 2.0) / rules.span_y
    return at + 2


@compiled
def write_offset(rules, stats, unit_float, agent, other, row, at):
    """Write distance and offset of a unit from an agent, divided by its sight. Return whether the agent sees it."""
    sight = stats[SIGHT, agent]
    dx, dy = unit_float[X, other] - unit_float[X, agent], unit_float[Y, other] - unit_float[Y, agent]
    apart, scale = dx * dx + dy * dy, 1.0 / sight
    row[at] = math.sqrt(apart) * scale
    row[at + 1] = dx * scale
    row[at + 2] = dy * scale
    return apart < sight * sight and in_cone(rules, unit_float[FOV_X, agent], unit_float[FOV_Y, agent], dx, dy, apart)


@compiled
def write_unit_type(rules, stats, row_of_types, unit, row, at):
    """Write a unit's type, one-hot. Return the next column."""
    if rules.type_bits:
        row[at + int(stats[row_of_types, unit])] = 1.0
    return at + rules.type_bits


@compiled
def write_last_action(rules, unit_int, unit, row, at):
    """Write a unit's last action, one-hot. Return the next column."""
    if unit_int[LAST, unit] >= 0:
        row[at + unit_int[LAST, unit]] = 1.0
    return at + rules.actions


@compiled
def write_own(rules, stats, unit_float, unit_int, agent, placed, last, row, at):
    """Write an agent's own features. As in an ally's part, they start with visibility and distance. Return the next
    column."""
    row[at] = 1.0
    at += 4
    if rules.own_health:
        at = write_health(unit_float, agent, rules.ally_shield, row, at)
    if placed:
        at = write_position(rules, unit_float, agent, row, at)
    elif rules.own_place:
        row[at], row[at + 1] = unit_float[X, agent] / SIZE, unit_float[Y, agent] / SIZE
        at += 2
    at = write_fov(rules, unit_float, agent, row, at)
    at = write_unit_type(rules, stats, ALLY_TYPE, agent, row, at)
    if last:
        at = write_last_action(rules, unit_int, agent, row, at)
    return at


@compiled
def write_mappo_obs(rules, stats, walkable, unit_float, unit_int, counters, mask, obs):
    """Fill `obs` (N, D) float32: allies, enemies, own moves, own features, index, time."""
    obs[:] = 0.0
    for agent in range(rules.agents):
        row = obs[agent]
        write_id_and_time(rules, counters, agent, rules.agent_id, rules.timestep, row, row.shape[0])
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        at = write_allies(rules, stats, unit_float, unit_int, agent, row, 0)
        at = write_enemies(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = write_move_mask(mask[agent], row, at)
        if rules.pathing:
            at = write_pathing_grid(rules, walkable, unit_float[X, agent], unit_float[Y, agent], row, at)
        write_own(rules, stats, unit_float, unit_int, agent, 0, rules.last_action, row, at)


@compiled
def write_ally_states(rules, stats, unit_float, unit_int, agent, row, at):
    """Write the other agents' part of an agent's state. Return the next column."""
    last = rules.state_last_action
    width = 7 + rules.type_bits + rules.all_health * (1 + rules.ally_shield) + last * rules.actions
    width += 2 * (rules.fov_actions > 0)
    for other in range(rules.agents):
        if other == agent:
            continue
        if unit_float[HEALTH, other] > 0.0:
            row[at] = 1.0 if write_offset(rules, stats, unit_float, agent, other, row, at + 1) else 0.0
            row[at + 4] = cooldown_share(rules, stats, unit_float, other)
            end = at + 5
            if rules.all_health:
                end = write_health(unit_float, other, rules.ally_shield, row, end)
            end = write_position(rules, unit_float, other, row, end)
            end = write_fov(rules, unit_float, other, row, end)
            end = write_unit_type(rules, stats, ALLY_TYPE, other, row, end)
            if last:
                write_last_action(rules, unit_int, other, row, end)
        at += width
    return at


@compiled
def write_enemy_states(rules, stats, unit_float, unit_int, agent, mask, row, at):
    """Write the enemies' part of an agent's state. Return the next column."""
    width = 7 + rules.type_bits + rules.all_health * (1 + rules.enemy_shield)
    for enemy in range(rules.enemies):
        other = rules.agents + enemy
        if unit_float[HEALTH, other] > 0.0:
            row[at] = 1.0 if mask[FIRST_TARGET + rules.fov_actions + enemy] else 0.0
            visible = write_offset(rules, stats, unit_float, agent, other, row, at + 1) and may_watch(
                rules, unit_int, agent, other
            )
            row[at + 4] = 1.0 if visible else 0.0
            end = at + 5
            if rules.all_health:
                end = write_health(unit_float, other, rules.enemy_shield, row, end)
            end = write_unit_type(rules, stats, ENEMY_TYPE, other, row, end)
            write_position(rules, unit_float, other, row, end)
        at += width
    return at


@compiled
def write_mappo_state(rules, stats, unit_float, unit_int, counters, mask, state):
    """Fill `state` (N * S',) float32: for each agent all living allies and enemies, own moves and features, index,
    time."""
    state[:] = 0.0
    width = state.shape[0] // rules.agents
    for agent in range(rules.agents):
        row = state[agent * width : (agent + 1) * width]
        write_id_and_time(rules, counters, agent, 1, rules.state_timestep, row, width)
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        at = write_ally_states(rules, stats, unit_float, unit_int, agent, row, 0)
        at = write_enemy_states(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = write_move_mask(mask[agent], row, at)
        write_own(rules, stats, unit_float, unit_int, agent, 1, rules.state_last_action, row, at)
