"""The Zerg opponent's plan: openings, phases, waves, retreat and defense."""

from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.world_map import NUM_SITES, POSITION
from marl.envs.text_starcraft.data.zerg_plans import (
    FOOD_PERCENT,
    MACRO,
    OPENINGS,
    ORDERS_A_TICK,
    PHASE_FOOD,
    PHASE_LOOPS,
    PLAN_ANTIAIR,
    PLAN_LEVELS,
    PLAN_WEIGHTS,
    RETREAT_LEVEL,
    RUSH,
    SCRIPT_SECOND,
    TABLED_LEVELS,
    THRESHOLD_LEVEL,
)
from marl.envs.text_starcraft.engine.commands import send_home_group
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.movement import OVERLORD, standing_at
from marl.envs.text_starcraft.engine.production import OVERSEER, group_supply, rally_site
from marl.envs.text_starcraft.engine.state import (
    AI_ATTACKS,
    AI_BUILD,
    AI_FOOD,
    AI_NEXT_ARMY,
    AI_NEXT_DEFENSE,
    AI_NEXT_WORKER,
    AI_PHASE,
    AI_PHASE_END,
    AI_PHASE_START,
    AI_RETREATED,
    AI_TEMPLATE,
    ATTACK,
    CONTACT,
    GOAL,
    LEVEL,
    LOOP,
    MAX_GROUPS,
    MODE,
    PROTOSS,
    RETREAT,
    SUPPLY,
    USED,
    ZERG,
    X,
    Y,
    draw,
)
from marl.envs.text_starcraft.engine.zerg_economy import inject, spend

REGROUP_LOOPS = 120 * SCRIPT_SECOND
THREAT_RANGE = 30.0
TICK = 16
"""Loops between decisions."""
VALUE, SUPPLIES = U.minerals + U.gas, U.supply
U_PLANE = U.plane


@compiled
def begin_plan(game):
    """Choose the opening of a game."""
    core = game.core
    level = core[LEVEL] - 1
    chance = draw(core, OPENINGS[level].sum())
    build = 0
    while chance >= OPENINGS[level, build]:
        chance -= OPENINGS[level, build]
        build += 1
    core[AI_BUILD], core[AI_PHASE], core[AI_ATTACKS] = build, -1, 0
    core[AI_RETREATED] = -REGROUP_LOOPS
    core[AI_NEXT_WORKER] = core[AI_NEXT_ARMY] = core[AI_NEXT_DEFENSE] = 0
    next_phase(game)


@compiled
def next_phase(game):
    """Enter the next phase, or the last one again: its food, plan and end."""
    core = game.core
    level, loop = core[LEVEL], core[LOOP]
    core[AI_PHASE] = min(3, core[AI_PHASE] + 1)
    phase, build = core[AI_PHASE], core[AI_BUILD]
    if phase == 2:
        build = core[AI_BUILD] = draw(core, 4)
    row = min(level, TABLED_LEVELS) - 1
    jitter = 970 + draw(core, 81)
    core[AI_FOOD] = PHASE_FOOD[row, phase, build] * FOOD_PERCENT[level - 1] // 100
    core[AI_PHASE_START] = core[AI_NEXT_ARMY] = loop
    core[AI_PHASE_END] = loop + PHASE_LOOPS[row, phase, build] * jitter // 1000
    core[AI_TEMPLATE] = choose_plan(game, phase, build)


@compiled
def choose_plan(game, phase, build):
    """Draw an army plan for a phase, against air if needed."""
    level, air, total = game.core[LEVEL], 0, 0
    for group in range(MAX_GROUPS):
        for kind in range(1, U_PLANE.shape[1]):
            supply = SUPPLIES[0, kind] * game.counts[PROTOSS, group, kind]
            total += supply
            air += supply * U_PLANE[0, kind]
    look_up = level > 2 and phase > 0 and 4 * air > total
    chances = 0
    for plan in range(len(PLAN_WEIGHTS)):
        chances += plan_weight(plan, level, phase, look_up)
    chance = draw(game.core, max(1, chances))
    for plan in range(len(PLAN_WEIGHTS)):
        chance -= plan_weight(plan, level, phase, look_up)
        if chance < 0:
            if phase == 0 and build == RUSH:
                return 0
            return plan
    return 0


@compiled
def plan_weight(plan, level, phase, look_up):
    """Return the weight of a plan at a level in a phase."""
    if not PLAN_LEVELS[plan, 0] <= level <= PLAN_LEVELS[plan, 1] or (look_up and not PLAN_ANTIAIR[plan]):
        return 0
    return PLAN_WEIGHTS[plan, phase]


@compiled
def decide(game, view):
    """Make the decisions of one tick."""
    core, summary = game.core, view.summary[ZERG]
    if core[LOOP] >= core[AI_PHASE_END]:
        end_phase(game)
    elif core[LEVEL] >= THRESHOLD_LEVEL and core[AI_FOOD] > 0:
        enough = group_supply(game, ZERG, 0) >= 2 * core[AI_FOOD] or summary[SUPPLY, USED] >= 360
        if enough and core[LOOP] >= core[AI_RETREATED] + REGROUP_LOOPS:
            launch(game)
            next_phase(game)
    inject(game, summary)
    for _ in range(ORDERS_A_TICK[core[LEVEL] - 1]):
        if not spend(game, summary):
            break
    lead_waves(game)


@compiled
def end_phase(game):
    """End a phase, with an attack if the army is large enough."""
    core = game.core
    enough = group_supply(game, ZERG, 0) >= core[AI_FOOD] and core[AI_FOOD] > 0
    waits = core[AI_PHASE] == 0 and core[AI_BUILD] == MACRO
    if enough and not waits:
        launch(game)
    next_phase(game)


@compiled
def launch(game):
    """Send the whole army at home."""
    if send_home_group(game, ZERG, nearest_protoss_site(game, game.groups[ZERG, 0])):
        game.core[AI_ATTACKS] += 1


@compiled
def nearest_protoss_site(game, row):
    """Return the site with Protoss structures nearest to a group, the Protoss main if there is none."""
    best, least = 0, 1e9
    for site in range(NUM_SITES):
        if standing_at(game, PROTOSS, site):
            dx, dy = POSITION[site, 0] - row[X], POSITION[site, 1] - row[Y]
            far = dx * dx + dy * dy
            if far < least:
                best, least = site, far
    return best


@compiled
def strength(game, side, x, y, reach):
    """Return the value of a side's fighting units around a place."""
    value = 0.0
    for group in range(MAX_GROUPS):
        row = game.groups[side, group]
        dx, dy = row[X] - x, row[Y] - y
        if dx * dx + dy * dy < reach * reach:
            for kind in range(1, U_PLANE.shape[1]):
                if not (side == ZERG and kind <= OVERSEER):
                    value += VALUE[side, kind] * game.counts[side, group, kind]
    return value


@compiled
def lead_waves(game):
    """Lead waves to the next base, or back if the enemy is stronger."""
    core = game.core
    for group in range(1, MAX_GROUPS):
        row = game.groups[ZERG, group]
        if group_supply(game, ZERG, group) == 0 or row[MODE] != ATTACK:
            continue
        row[GOAL] = nearest_protoss_site(game, row)
        if core[LEVEL] >= RETREAT_LEVEL and row[CONTACT] > 0.0:
            own = strength(game, ZERG, row[X], row[Y], 12.0)
            if own < 0.6 * strength(game, PROTOSS, row[X], row[Y], 12.0):
                row[MODE], row[GOAL] = RETREAT, rally_site(game, ZERG)
                core[AI_RETREATED] = core[LOOP]


@compiled
def defend_home(game, side):
    """Send the group at home to an attacked base, or back."""
    row, enemy = game.groups[side, 0], 1 - side
    if group_supply(game, side, 0) == 0:
        return
    goal, least = rally_site(game, side), 1e9
    for other in range(MAX_GROUPS):
        bodies = 0
        for kind in range(U_PLANE.shape[1]):
            bodies += game.counts[enemy, other, kind] * (not (enemy == ZERG and kind == OVERLORD))
        if bodies < 2:
            continue
        theirs = game.groups[enemy, other]
        for site in range(NUM_SITES):
            if standing_at(game, side, site) == 0:
                continue
            dx, dy = theirs[X] - POSITION[site, 0], theirs[Y] - POSITION[site, 1]
            far = dx * dx + dy * dy
            if far < THREAT_RANGE * THREAT_RANGE and far < least:
                if side == ZERG and not worth_defending(game, theirs):
                    continue
                goal, least = site, far
    row[GOAL] = goal


@compiled
def worth_defending(game, theirs):
    """Return whether the army at home is strong enough against a threat."""
    threat = strength(game, PROTOSS, theirs[X], theirs[Y], 12.0)
    row = game.groups[ZERG, 0]
    return strength(game, ZERG, row[X], row[Y], 12.0) > 0.5 * threat
