"""The 72 actions of the Protoss player: availability and effects."""

from marl.envs.text_starcraft.data.names import NUM_ACTIONS
from marl.envs.text_starcraft.data.rules import (
    ARCHON,
    ATTACK_ACTION,
    BUILD_NEEDS,
    BUSY,
    CHRONO_SUPPLY,
    CHRONO_TARGET,
    DONE_BEFORE,
    EMPTY,
    FIRST_BUILD,
    FIRST_CHRONO,
    FIRST_RESEARCH,
    FIRST_SCOUT,
    GATE,
    LEVEL_BEFORE,
    LIMIT,
    LIMIT_COUNT,
    LIMIT_UNTIL,
    MANY_PROBES,
    MAX_DEFENSES,
    MAX_NEXUS,
    MAX_NEXUS_UNDERWAY,
    MAX_PROBES,
    MIN_ATTACK_SUPPLY,
    MISSING,
    NEEDS,
    NO_ARMY,
    NO_ENERGY,
    NO_GATEWAY,
    NO_IDLE_WARP_GATE,
    NO_MONEY,
    NO_NEXUS,
    NO_PLACE,
    NO_PYLON,
    NO_SCOUT,
    NO_SUPPLY,
    NO_TEMPLARS,
    NO_WARP_GATE,
    NO_WORKER,
    NOT_BUSY,
    OK,
    PRICE_GAS,
    PRICE_MINERALS,
    PRODUCER,
    PYLON_CONDITIONS,
    RETREAT_ACTION,
    SCOUT_GAP,
    SCOUT_UNIT,
    SCOUTED,
    SMALL_ARMY,
    SUBJECT,
    UNIT_LIMIT,
    UNIT_LOOPS,
    UNIT_SUPPLY,
    UPGRADE_BUILDING,
    UPGRADE_NEEDS,
    WARP_COOLDOWN,
)
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.world_map import DISTANCE, NUM_SITES, SITES_PER_SIDE
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.economy import CHRONO_ENERGY, GEYSERS, add_pending, can_pay, pay, take_worker
from marl.envs.text_starcraft.engine.movement import send_group
from marl.envs.text_starcraft.engine.production import (
    BOOST_LOOPS,
    NEXUS,
    WARP_GATE,
    WARP_LOOPS,
    begin_job,
    begin_upgrade,
    build_structure,
    find_idle,
    group_supply,
    move_all,
    put_in_group,
    rally_site,
)
from marl.envs.text_starcraft.engine.state import (
    ARMY,
    ATTACK,
    BOOST,
    BOOSTABLE,
    BUILT,
    CAP,
    CHARGE,
    CHARGED,
    COOLDOWN,
    FREE_GEYSERS,
    GOAL,
    GROUP_FIELDS,
    IDLE,
    IN_PRODUCTION,
    JOB,
    LAST_SCOUT,
    LIMITS,
    LOOP,
    MAX_GROUPS,
    MAX_STRUCTURES,
    MODE,
    OWNER,
    POWER,
    PROTOSS,
    QUEUE_1,
    QUEUE_4,
    READY,
    RETREAT,
    SCOUT,
    SITE,
    SPARE_QUEUE,
    SUPPLY,
    TYPE,
    UNDERWAY,
    UNITS,
    USED,
    ZERG,
)

PYLON, ASSIMILATOR, CANNON, BATTERY = 0, 1, 13, 14
HIGH_TEMPLAR, DARK_TEMPLAR, MOTHERSHIP = 5, 6, 12
ARCHON_LOOPS = U.build_loops[0, ARCHON]
CAP_SUPPLY = 400
SITE_ROOM = 20
"""Number of structures at a site before the next base is built up."""
MINUTE = 1344


@compiled
def missing(structure):
    """Return the reason that a structure is missing."""
    return MISSING + SUBJECT * structure


@compiled
def supply_left(summary):
    """Return the free supply, in halves."""
    return summary[SUPPLY, CAP] - summary[SUPPLY, USED]


@compiled
def unit_reason(game, summary, unit):
    """Return the reason why a unit cannot be trained, or OK."""
    if unit == 0 and summary[UNITS, 0] + summary[IN_PRODUCTION, 0] >= MAX_PROBES:
        return MANY_PROBES
    producer = PRODUCER[unit]
    warps = producer == GATE and game.upgrades[PROTOSS, 0] == 1
    if producer == NEXUS and summary[BUILT, NEXUS] == 0:
        return NO_NEXUS
    if warps and summary[BUILT, WARP_GATE] == 0:
        return NO_WARP_GATE
    if producer == GATE and not warps and summary[BUILT, GATE] == 0:
        return NO_GATEWAY
    if producer not in (NEXUS, GATE) and summary[BUILT, producer] == 0:
        return missing(producer)
    if NEEDS[unit] >= 0 and summary[BUILT, NEEDS[unit]] == 0:
        return missing(NEEDS[unit])
    if summary[UNITS, unit] + summary[IN_PRODUCTION, unit] >= UNIT_LIMIT[unit]:
        return LIMIT
    if supply_left(summary) < UNIT_SUPPLY[unit]:
        return NO_SUPPLY
    if warps:
        if summary[IDLE, WARP_GATE] == 0:
            return NO_IDLE_WARP_GATE
    elif producer == GATE:
        if summary[IDLE, GATE] == 0 and summary[SUPPLY, SPARE_QUEUE] == 0:
            return BUSY + SUBJECT * GATE
    elif summary[IDLE, producer] == 0:
        return BUSY + SUBJECT * producer
    return OK


@compiled
def structure_reason(game, summary, kind):
    """Return the reason why a structure cannot be built, or OK."""
    for column in range(2):
        needed = BUILD_NEEDS[kind, column]
        if needed == GATE:
            if summary[BUILT, GATE] + summary[BUILT, WARP_GATE] == 0:
                return missing(GATE)
        elif needed >= 0 and summary[BUILT, needed] == 0:
            return missing(needed)
    loop, total, left = game.core[LOOP], summary[BUILT, kind] + summary[UNDERWAY, kind], supply_left(summary)
    if summary[UNITS, 0] == 0:
        return NO_WORKER
    if kind == PYLON:
        if summary[SUPPLY, CAP] >= CAP_SUPPLY:
            return PYLON_CONDITIONS
        if game.core[LIMITS]:
            most_left = 6 if loop < 6 * MINUTE else 10 if loop < 8 * MINUTE else 14
            most_underway = 2 if loop < 6 * MINUTE else 3 if 7 * MINUTE <= loop < 8 * MINUTE else 4
            if left > most_left or summary[UNDERWAY, PYLON] > most_underway:
                return PYLON_CONDITIONS
        return OK if site_for(game, kind) >= 0 else NO_PLACE
    if kind == ASSIMILATOR:
        if summary[SUPPLY, FREE_GEYSERS] <= 0:
            return NO_PLACE
        return LIMIT if summary[UNDERWAY, kind] >= 2 else OK
    if kind == NEXUS:
        if summary[UNDERWAY, kind] >= MAX_NEXUS_UNDERWAY or total >= MAX_NEXUS:
            return LIMIT
        return OK if site_for(game, kind) >= 0 else NO_PLACE
    if game.core[POWER] == 0:
        return NO_PYLON
    if game.core[LIMITS]:
        if kind == GATE:
            total += summary[BUILT, WARP_GATE]
        if kind in (CANNON, BATTERY) and total >= MAX_DEFENSES:
            return LIMIT
        for row in range(LIMIT_UNTIL.shape[1]):
            if loop < LIMIT_UNTIL[kind, row]:
                if total >= LIMIT_COUNT[kind, row]:
                    return LIMIT
                break
    return OK


@compiled
def upgrade_reason(game, summary, upgrade):
    """Return the reason why an upgrade cannot be researched, or OK."""
    building = UPGRADE_BUILDING[upgrade]
    if game.upgrades[PROTOSS, upgrade]:
        return DONE_BEFORE
    if summary[BUILT, building] == 0:
        return missing(building)
    before, further = UPGRADE_NEEDS[upgrade, 0], UPGRADE_NEEDS[upgrade, 1]
    if before >= 0 and game.upgrades[PROTOSS, before] != 1:
        return LEVEL_BEFORE
    if further >= 0 and summary[BUILT, further] == 0:
        return missing(further)
    return OK if summary[IDLE, building] else BUSY + SUBJECT * building


@compiled
def other_reason(game, summary, action):
    """Return the reason why a scout, attack, retreat or chrono boost is impossible, or OK."""
    if action >= FIRST_CHRONO:
        target = CHRONO_TARGET[action - FIRST_CHRONO]
        if summary[BUILT, target] == 0:
            return missing(target)
        if supply_left(summary) < 2 * CHRONO_SUPPLY[action - FIRST_CHRONO]:
            return NO_SUPPLY
        if summary[SUPPLY, CHARGED] == 0:
            return NO_ENERGY + SUBJECT * target
        return OK if summary[BOOSTABLE, target] else NOT_BUSY + SUBJECT * target
    if action == ATTACK_ACTION:
        return OK if summary[SUPPLY, ARMY] >= 2 * MIN_ATTACK_SUPPLY else SMALL_ARMY
    if action == RETREAT_ACTION:
        return OK if summary[SUPPLY, ARMY] > 0 else NO_ARMY
    unit = SCOUT_UNIT[action - FIRST_SCOUT]
    if unit == 0:
        if summary[UNITS, 0] == 0:
            return NO_SCOUT
    elif game.counts[PROTOSS, 0, unit] == 0:
        return NO_SCOUT
    return SCOUTED if game.core[LOOP] < game.core[LAST_SCOUT] + SCOUT_GAP else OK


@compiled
def find_reason(game, summary, action):
    """Return the reason why the action cannot be carried out now, or OK; see `rules.explain`."""
    if action == EMPTY:
        return OK
    if action == ARCHON:
        return OK if pair_of_templars(game) >= 0 else NO_TEMPLARS
    if action >= FIRST_SCOUT:
        return other_reason(game, summary, action)
    if action < ARCHON:
        reason = unit_reason(game, summary, action)
    elif action < FIRST_RESEARCH:
        reason = structure_reason(game, summary, action - FIRST_BUILD)
    else:
        reason = upgrade_reason(game, summary, action - FIRST_RESEARCH)
    if reason == OK and not can_pay(game, PROTOSS, PRICE_MINERALS[action], PRICE_GAS[action]):
        return NO_MONEY
    return reason


@compiled
def find_reasons(game, view):
    """Fill reasons and mask of all actions."""
    for action in range(NUM_ACTIONS):
        view.reasons[action] = find_reason(game, view.summary[PROTOSS], action)
        view.mask[action] = view.reasons[action] == OK


@compiled
def pair_of_templars(game):
    """Return the type of two templars at home that can merge, 0 for one of each, -1 for none."""
    high, dark = game.counts[PROTOSS, 0, HIGH_TEMPLAR], game.counts[PROTOSS, 0, DARK_TEMPLAR]
    if high >= 2:
        return HIGH_TEMPLAR
    if dark >= 2:
        return DARK_TEMPLAR
    return 0 if high and dark else -1


@compiled
def structures_at(game, site, kind):
    """Return the number of structures of a kind at a site, of all kinds for -1."""
    total = 0
    for slot in range(MAX_STRUCTURES):
        own = game.structures[PROTOSS, TYPE, slot]
        if own >= 0 and game.structures[PROTOSS, SITE, slot] == site and (kind < 0 or own == kind):
            total += 1
    return total


@compiled
def site_for(game, kind):
    """Return the site for a new structure, or -1.

    A Nexus goes to the next free base, a pylon to the base with the fewest, gas to the first base with a free geyser,
    defenses to the front base with power, everything else to the first base with power and room.
    """
    best, least = -1, 1e9
    enemy_main = SITES_PER_SIDE
    for site in range(NUM_SITES):
        owner, base = game.bases[site, OWNER], structures_at(game, site, NEXUS) > 0
        powered = (game.core[POWER] >> site) & 1
        if kind == NEXUS:
            rank = 1e9 if owner == ZERG or base or site >= SITES_PER_SIDE else site
        elif kind == PYLON:
            rank = structures_at(game, site, PYLON) + 0.01 * site if base else 1e9
        elif kind == ASSIMILATOR:
            free = owner == PROTOSS and structures_at(game, site, ASSIMILATOR) < GEYSERS
            rank = site if free else 1e9
        elif kind in (CANNON, BATTERY):
            rank = DISTANCE[site, enemy_main] + 1000.0 * (owner != PROTOSS) if powered else 1e9
        else:
            rank = site + 100.0 * (structures_at(game, site, -1) >= SITE_ROOM) if powered else 1e9
        if rank < least:
            best, least = site, rank
    return best


@compiled
def apply_action(game, action):
    """Carry out an action for which `find_reason` returned OK."""
    if action == EMPTY:
        return
    minerals, gas = PRICE_MINERALS[action], PRICE_GAS[action]
    if action < ARCHON:
        train(game, action, minerals, gas)
    elif action == ARCHON:
        merge_templars(game)
    elif action < FIRST_RESEARCH:
        kind = action - FIRST_BUILD
        build_structure(game, PROTOSS, kind, site_for(game, kind), minerals, gas)
    elif action < FIRST_SCOUT:
        upgrade = action - FIRST_RESEARCH
        begin_upgrade(game, PROTOSS, UPGRADE_BUILDING[upgrade], upgrade, minerals, gas)
    elif action < ATTACK_ACTION:
        send_scout(game, SCOUT_UNIT[action - FIRST_SCOUT])
    elif action == ATTACK_ACTION:
        order_attack(game)
    elif action == RETREAT_ACTION:
        order_retreat(game)
    else:
        boost(game, CHRONO_TARGET[action - FIRST_CHRONO])


@compiled
def train(game, unit, minerals, gas):
    """Train a unit: warp it in, begin it, or put it in the shortest queue."""
    structures, producer = game.structures[PROTOSS], PRODUCER[unit]
    if producer == GATE and game.upgrades[PROTOSS, 0] == 1:
        slot = find_idle(game, PROTOSS, WARP_GATE)
        if slot >= 0 and add_pending(game, PROTOSS, unit, WARP_LOOPS, rally_site(game, PROTOSS), 1):
            structures[COOLDOWN, slot] = 2 * WARP_COOLDOWN[unit]
            pay(game, PROTOSS, minerals, gas)
        return
    slot = find_idle(game, PROTOSS, producer)
    if slot >= 0:
        pay(game, PROTOSS, minerals, gas)
        begin_job(game, PROTOSS, slot, unit, UNIT_LOOPS[unit])
        return
    best, least = -1, 1 << 40
    for slot in range(MAX_STRUCTURES):
        if structures[TYPE, slot] == producer and structures[READY, slot] and structures[JOB, slot] < 100:
            queued = 0
            for field in range(QUEUE_1, QUEUE_4 + 1):
                queued += structures[field, slot] >= 0
            if queued < 4 and queued < least and (game.core[POWER] >> structures[SITE, slot]) & 1:
                best, least = slot, queued
    if best >= 0:
        pay(game, PROTOSS, minerals, gas)
        structures[QUEUE_1 + least, best] = unit


@compiled
def merge_templars(game):
    """Merge two templars at home into an Archon."""
    kind = pair_of_templars(game)
    if kind == 0:
        remove_unit(game, HIGH_TEMPLAR)
        remove_unit(game, DARK_TEMPLAR)
    else:
        remove_unit(game, kind)
        remove_unit(game, kind)
    add_pending(game, PROTOSS, ARCHON, ARCHON_LOOPS, rally_site(game, PROTOSS), 1)


@compiled
def remove_unit(game, kind):
    """Remove a unit of average health from the group at home."""
    count = game.counts[PROTOSS, 0, kind]
    for pool in range(2):
        game.pools[PROTOSS, 0, pool, kind] *= (count - 1) / count
    game.counts[PROTOSS, 0, kind] = count - 1


@compiled
def send_scout(game, unit):
    """Send one unit to the enemy's main as the last group."""
    group = MAX_GROUPS - 1
    start = rally_site(game, PROTOSS)
    if group_supply(game, PROTOSS, group) > 0:
        return
    if unit == 0:
        start = take_worker(game, PROTOSS)
        if start < 0:
            return
    else:
        remove_unit(game, unit)
    put_in_group(game, PROTOSS, group, unit, 1)
    send_group(game, PROTOSS, group, start, SITES_PER_SIDE, SCOUT)
    game.core[LAST_SCOUT] = game.core[LOOP]


@compiled
def attack_goal(game):
    """Return the enemy's main or, once it is empty, the nearest base of the enemy."""
    best, least = SITES_PER_SIDE, 1e9
    for site in range(NUM_SITES):
        standing = 0
        for slot in range(MAX_STRUCTURES):
            standing += game.structures[ZERG, TYPE, slot] >= 0 and game.structures[ZERG, SITE, slot] == site
        if standing:
            far = DISTANCE[site, SITES_PER_SIDE]
            if far < least:
                best, least = site, far
    return best


@compiled
def order_attack(game):
    """Send the army at home to the attack. Groups that are out continue."""
    goal = attack_goal(game)
    for group in range(1, MAX_GROUPS - 1):
        if group_supply(game, PROTOSS, group) > 0:
            game.groups[PROTOSS, group, MODE] = ATTACK
            game.groups[PROTOSS, group, GOAL] = goal
    send_home_group(game, PROTOSS, goal)


@compiled
def send_home_group(game, side, goal):
    """Turn the group at home into a group on the attack, if one is free. Return whether it was."""
    if group_supply(game, side, 0) <= 0:
        return False
    for group in range(1, MAX_GROUPS - 1):
        if group_supply(game, side, group) == 0:
            move_all(game, side, 0, group)
            for field in range(GROUP_FIELDS):
                game.groups[side, group, field] = game.groups[side, 0, field]
            game.groups[side, group, MODE] = ATTACK
            game.groups[side, group, GOAL] = goal
            return True
    return False


@compiled
def order_retreat(game):
    """Send all groups on the attack home."""
    home = rally_site(game, PROTOSS)
    for group in range(1, MAX_GROUPS - 1):
        if group_supply(game, PROTOSS, group) > 0:
            game.groups[PROTOSS, group, MODE] = RETREAT
            game.groups[PROTOSS, group, GOAL] = home


@compiled
def boost(game, target):
    """Let every Nexus with 50 energy boost one working structure of the kind."""
    structures = game.structures[PROTOSS]
    for nexus in range(MAX_STRUCTURES):
        if (
            structures[TYPE, nexus] != NEXUS
            or not structures[READY, nexus]
            or structures[CHARGE, nexus] < CHRONO_ENERGY
        ):
            continue
        for slot in range(MAX_STRUCTURES):
            works = structures[TYPE, slot] == target and structures[READY, slot] and structures[JOB, slot] >= 0
            if works and structures[BOOST, slot] == 0:
                structures[BOOST, slot] = BOOST_LOOPS
                structures[CHARGE, nexus] -= CHRONO_ENERGY
                break
