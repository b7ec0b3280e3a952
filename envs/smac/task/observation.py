"""Observations and state in SMAC's layout (Samvelyan et al. 2019)."""

import math

from marl.envs.smac.engine.compiling import compiled
from marl.envs.smac.engine.fields import (
    ALLY_TYPE,
    COOLDOWN,
    COOLDOWN_SCALE,
    ENEMY_TYPE,
    ENERGY,
    FIRST_TARGET,
    FOV_X,
    FOV_Y,
    HEALER,
    HEALTH,
    HEALTH_SHARE,
    LAST,
    MAX_HEALTH,
    MAX_SHIELD,
    NORTH,
    SHIELD,
    SHIELD_SHARE,
    SIGHT,
    SIZE,
    STEPS,
    WATCHERS,
    X,
    Y,
)
from marl.envs.smac.engine.scenario import in_cone


@compiled
def update_health_shares(stats, unit_float):
    """Update HEALTH_SHARE and SHIELD_SHARE. The latter is 0 for units without shields."""
    for unit in range(stats.shape[1]):
        unit_float[HEALTH_SHARE, unit] = unit_float[HEALTH, unit] / stats[MAX_HEALTH, unit]
        unit_float[SHIELD_SHARE, unit] = unit_float[SHIELD, unit] / max(1.0, stats[MAX_SHIELD, unit])


@compiled
def write_health(unit_float, unit, shields, row, at):
    """Write the share of health and, with shields, of the shield. Return the next column."""
    row[at] = unit_float[HEALTH_SHARE, unit]
    if shields:
        row[at + 1] = unit_float[SHIELD_SHARE, unit]
    return at + 1 + shields


@compiled
def write_fov(rules, unit_float, agent, row, at):
    """Write the direction of an agent's cone of sight, if there are cones. Return the next column."""
    if rules.fov_actions == 0:
        return at
    row[at], row[at + 1] = unit_float[FOV_X, agent], unit_float[FOV_Y, agent]
    return at + 2


@compiled
def write_pathing_grid(rules, walkable, x, y, row, at):
    """Write whether each of eight points around is walkable. Points off the map count as walkable. Return the next
    column."""
    column, line, move = int(x), int(y), rules.move
    for k in range(8):
        far = 2.0 * move if k < 4 else move
        dx = far * ((k == 2) - (k == 3) + (k == 4) - (k == 5) + (k == 6) - (k == 7))
        dy = far * ((k == 0) - (k == 1) + (k == 4) - (k == 5) - (k == 6) + (k == 7))
        px, py = column + dx, line + dy
        outside = px < 0 or py < 0 or px >= walkable.shape[0] or py >= walkable.shape[1]
        row[at + k] = 1.0 if outside or walkable[int(px), int(py)] else 0.0
    return at + 8


@compiled
def may_watch(rules, unit_int, agent, enemy):
    """Return whether an agent may see an enemy that is in its sight."""
    return rules.visibility_prob >= 1.0 or (unit_int[WATCHERS, enemy] >> agent) & 1 == 1


@compiled
def write_enemies(rules, stats, unit_float, unit_int, agent, mask, row, at):
    """Write the enemies that an agent sees. Return the next column."""
    x, y = unit_float[X, agent], unit_float[Y, agent]
    look_x, look_y, sight, n = unit_float[FOV_X, agent], unit_float[FOV_Y, agent], stats[SIGHT, agent], rules.agents
    scale = 1.0 / sight
    width = 4 + rules.type_bits + rules.all_health * (1 + rules.enemy_shield)
    for enemy in range(rules.enemies):
        other = n + enemy
        dx, dy = unit_float[X, other] - x, unit_float[Y, other] - y
        apart = dx * dx + dy * dy
        visible = (
            apart < sight * sight and unit_float[HEALTH, other] > 0.0 and in_cone(rules, look_x, look_y, dx, dy, apart)
        )
        if visible and may_watch(rules, unit_int, agent, other):
            row[at] = 1.0 if mask[FIRST_TARGET + rules.fov_actions + enemy] else 0.0
            row[at + 1] = math.sqrt(apart) * scale
            row[at + 2] = dx * scale
            row[at + 3] = dy * scale
            end = at + 4
            if rules.all_health:
                end = write_health(unit_float, other, rules.enemy_shield, row, end)
            if rules.type_bits:
                row[end + int(stats[ENEMY_TYPE, other])] = 1.0
        at += width
    return at


@compiled
def write_allies(rules, stats, unit_float, unit_int, agent, row, at):
    """Write the allies that an agent sees. Return the next column."""
    x, y = unit_float[X, agent], unit_float[Y, agent]
    look_x, look_y, sight = unit_float[FOV_X, agent], unit_float[FOV_Y, agent], stats[SIGHT, agent]
    scale = 1.0 / sight
    width = 4 + rules.type_bits + rules.all_health * (1 + rules.ally_shield) + rules.last_action * rules.actions
    for other in range(rules.agents):
        if other == agent:
            at += rules.entities * width
            continue
        dx, dy = unit_float[X, other] - x, unit_float[Y, other] - y
        apart = dx * dx + dy * dy
        visible = (
            apart < sight * sight and unit_float[HEALTH, other] > 0.0 and in_cone(rules, look_x, look_y, dx, dy, apart)
        )
        if visible:
            row[at] = 1.0
            row[at + 1] = math.sqrt(apart) * scale
            row[at + 2] = dx * scale
            row[at + 3] = dy * scale
            end = at + 4
            if rules.all_health:
                end = write_health(unit_float, other, rules.ally_shield, row, end)
            if rules.type_bits:
                row[end + int(stats[ALLY_TYPE, other])] = 1.0
                end += rules.type_bits
            if rules.last_action and unit_int[LAST, other] >= 0:
                row[end + unit_int[LAST, other]] = 1.0
        at += width
    return at


@compiled
def write_obs(rules, stats, walkable, unit_float, unit_int, counters, mask, obs):
    """Fill `seen` (N, D) float32: own moves, enemies, allies, self. A dead agent sees zeros.

    The agent's index and the time, where they are shown, are shown to the dead too.
    """
    obs[:] = 0.0
    for agent in range(rules.agents):
        row = obs[agent]
        end = row.shape[0]
        if rules.timestep:
            end -= 1
            row[end] = counters[STEPS] / rules.limit
        if rules.agent_id:
            row[end - rules.agents + agent] = 1.0
        if unit_float[HEALTH, agent] <= 0.0:
            continue
        for move in range(4):
            row[move] = 1.0 if mask[agent, NORTH + move] else 0.0
        at = 4
        if rules.pathing:
            at = write_pathing_grid(rules, walkable, unit_float[X, agent], unit_float[Y, agent], row, at)
        at = write_enemies(rules, stats, unit_float, unit_int, agent, mask[agent], row, at)
        at = write_allies(rules, stats, unit_float, unit_int, agent, row, at)
        if rules.own_health:
            at = write_health(unit_float, agent, rules.ally_shield, row, at)
        if rules.own_place:
            row[at], row[at + 1] = unit_float[X, agent] / SIZE, unit_float[Y, agent] / SIZE
            at += 2
        at = write_fov(rules, unit_float, agent, row, at)
        if rules.type_bits:
            row[at + int(stats[ALLY_TYPE, agent])] = 1.0


@compiled
def cooldown_share(rules, stats, unit_float, unit):
    """Return the share of an agent's cooldown, or of a healer's energy, that is left."""
    healer = rules.healers and stats[HEALER, unit] > 0.0
    level = unit_float[ENERGY, unit] if healer else max(0.0, unit_float[COOLDOWN, unit])
    return level / stats[COOLDOWN_SCALE, unit]


@compiled
def write_state(rules, stats, unit_float, unit_int, counters, obs, state):
    """Fill `state` (S,) float32: allies, enemies, last actions, time; or all observations in a row."""
    if rules.concat_obs:
        width = obs.shape[1]
        for agent in range(rules.agents):
            for column in range(width):
                state[agent * width + column] = obs[agent, column]
        return
    state[:] = 0.0
    n, at, center = rules.agents, 0, SIZE / 2.0
    for unit in range(n + rules.enemies):
        ally = unit < n
        shields = rules.ally_shield if ally else rules.enemy_shield
        width = 3 + ally + shields + 2 * (ally and rules.fov_actions > 0) + rules.type_bits
        if unit_float[HEALTH, unit] > 0.0:
            state[at] = unit_float[HEALTH_SHARE, unit]
            end = at + 1
            if ally:
                state[end] = cooldown_share(rules, stats, unit_float, unit)
                end += 1
            state[end] = (unit_float[X, unit] - center) / rules.span_x
            state[end + 1] = (unit_float[Y, unit] - center) / rules.span_y
            end += 2
            if shields:
                state[end] = unit_float[SHIELD_SHARE, unit]
                end += 1
            if ally:
                end = write_fov(rules, unit_float, unit, state, end)
            if rules.type_bits:
                state[end + int(stats[ALLY_TYPE if ally else ENEMY_TYPE, unit])] = 1.0
        at += width
    if rules.state_last_action:
        for agent in range(n):
            if unit_int[LAST, agent] >= 0:
                state[at + unit_int[LAST, agent]] = 1.0
            at += rules.actions
    if rules.state_timestep:
        state[at] = counters[STEPS] / rules.limit
