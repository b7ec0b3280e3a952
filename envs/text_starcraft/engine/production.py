"""Construction, jobs and queues, warp-ins, larvae and eggs."""

from marl.envs.text_starcraft.data.names import MAX_TYPES, PROTOSS_STRUCTURES, ZERG_STRUCTURES
from marl.envs.text_starcraft.data.tables import STRUCTURES as S
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.tables import UPGRADE_LOOPS
from marl.envs.text_starcraft.data.world_map import DISTANCE, NUM_SITES, POSITION, SITES_PER_SIDE
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.economy import (
    GAS_STRUCTURE,
    GATEWAY,
    GEYSER,
    HIVE,
    LARGE_FIELDS,
    SMALL_FIELDS,
    UNPOWERED,
    WORKER_SPEED,
    add_pending,
    is_town_hall,
    pay,
    take_worker,
)
from marl.envs.text_starcraft.engine.state import (
    BOOST,
    CHARGE,
    CONTACT,
    COOLDOWN,
    COUNT,
    DONE,
    ENERGY,
    FIELDS_FAR,
    FIELDS_NEAR,
    FROM,
    GAS_MINERS,
    GEYSER_A,
    GEYSER_B,
    GOAL,
    GROUP_FIELDS,
    HOME,
    HP,
    INJECT,
    JOB,
    KIND,
    LARVAE,
    LEFT,
    MAX_GROUPS,
    MAX_PENDING,
    MAX_STRUCTURES,
    MINERS,
    MODE,
    MONEY,
    MORPH_JOB,
    OWNER,
    PLACE,
    POWER,
    PROTOSS,
    QUEUE_1,
    QUEUE_2,
    QUEUE_4,
    QUIET,
    READY,
    SHIELD,
    SITE,
    STEP_LOOPS,
    STRUCTURE_FIELDS,
    TAKEN,
    TIMER,
    TO,
    TRAVEL,
    TYPE,
    UPGRADE_JOB,
    WORK,
    ZERG,
    X,
    Y,
)

WARP_GATE = PROTOSS_STRUCTURES.index("WarpGate")
NEXUS, BATTERY = PROTOSS_STRUCTURES.index("Nexus"), PROTOSS_STRUCTURES.index("ShieldBattery")
SPIRE = ZERG_STRUCTURES.index("Spire")
BOOST_LOOPS = 448
"""Duration of a chrono boost, 20 seconds. Work is half as fast again."""
WARP_LOOPS = 64
"""Duration of a warp-in near a Nexus or a gateway."""
MORPH_LOOPS = 160
FIRST_TRIP = 96
"""Loops before the first income of a game."""
BUILDER_AWAY = 56
"""Loops for which a probe leaves the mineral line to place a structure."""
LARVA_LOOPS, MOST_LARVAE, INJECTED, MOST_WITH_INJECT = 240, 3, 3, 19
INJECT_LOOPS = 710
"""Loops between a queen's injects: 25 energy return in 31.7 seconds."""
MAX_ENERGY, MAX_BATTERY_ENERGY, START_ENERGY = 200 * ENERGY, 100 * ENERGY, 50 * ENERGY
ENERGY_A_STEP = 9 * STEP_LOOPS
START_SHARE = 0.1
"""Share of health and shield at the beginning of construction."""
S_HP, S_SHIELD, S_LOOPS, S_MINERALS, S_GAS = S.hp, S.shield, S.build_loops, S.minerals, S.gas
U_HP, U_SHIELD, U_LOOPS, UNIT_SUPPLY = U.hp, U.shield, U.build_loops, U.supply
OVERSEER = 2


@compiled
def clear_game(game):
    """Clear a game except its random stream and settings."""
    game.totals[:] = 0.0
    game.bank[:] = 0
    game.upgrades[:] = 0
    game.counts[:] = 0
    game.pools[:] = 0.0
    game.groups[:] = 0.0
    game.seen[:] = 0
    game.previous[:] = 0
    game.results[:] = -1
    game.life[:] = 0.0
    game.structures[:] = 0
    for side in range(2):
        for slot in range(MAX_STRUCTURES):
            game.structures[side, TYPE, slot] = -1
        for entry in range(MAX_PENDING):
            game.pending[side, KIND, entry] = -1
        for group in range(MAX_GROUPS):
            stand(game, side, group, SITES_PER_SIDE * side)
    for site in range(NUM_SITES):
        base = game.bases[site]
        base[:] = 0
        base[OWNER] = -1
        base[FIELDS_NEAR], base[FIELDS_FAR] = LARGE_FIELDS * MONEY, SMALL_FIELDS * MONEY
        base[GEYSER_A], base[GEYSER_B] = GEYSER * MONEY, GEYSER * MONEY


@compiled
def stand(game, side, group, node):
    """Put a group at a node, at home."""
    row = game.groups[side, group]
    for field in range(GROUP_FIELDS):
        row[field] = 0.0
    row[FROM], row[TO], row[GOAL], row[DONE], row[MODE] = node, node, node, 0.0, HOME
    row[CONTACT], row[QUIET] = 0.0, 0.0
    row[X], row[Y] = POSITION[node, 0], POSITION[node, 1]


@compiled
def rally_site(game, side):
    """Return the side's base nearest to the enemy's main."""
    enemy_main = SITES_PER_SIDE * (1 - side)
    best, least = SITES_PER_SIDE * side, 1e9
    for site in range(NUM_SITES):
        if game.bases[site, OWNER] == side and DISTANCE[site, enemy_main] < least:
            best, least = site, DISTANCE[site, enemy_main]
    return best


@compiled
def group_supply(game, side, group):
    """Return the supply of fighting units and scouts of a group, in halves. Overlords count 0."""
    total = 0
    for kind in range(MAX_TYPES):
        total += UNIT_SUPPLY[side, kind] * game.counts[side, group, kind]
    return total + side * game.counts[side, group, OVERSEER]


@compiled
def put_in_group(game, side, group, kind, count):
    """Add units with full health to a group."""
    game.counts[side, group, kind] += count
    game.pools[side, group, HP, kind] += count * U_HP[side, kind]
    game.pools[side, group, SHIELD, kind] += count * U_SHIELD[side, kind]


@compiled
def add_units(game, side, kind, count, site):
    """Let units appear: workers mine at their base, the others join the group at home."""
    if kind == 0:
        if game.bases[site, OWNER] != side:
            site = rally_site(game, side)
        game.bases[site, MINERS] += count
        return
    if group_supply(game, side, 0) == 0:
        stand(game, side, 0, rally_site(game, side))
    put_in_group(game, side, 0, kind, count)


@compiled
def new_structure(game, side, kind, site, ready):
    """Add a structure, finished or at its beginning. Return its slot, or -1 if there is no room."""
    structures = game.structures[side]
    for slot in range(MAX_STRUCTURES):
        if structures[TYPE, slot] >= 0:
            continue
        for field in range(STRUCTURE_FIELDS):
            structures[field, slot] = 0
        structures[TYPE, slot], structures[SITE, slot], structures[JOB, slot] = kind, site, -1
        for field in range(QUEUE_1, QUEUE_4 + 1):
            structures[field, slot] = -1
        structures[WORK, slot] = 2 * S_LOOPS[side, kind]
        share = 1.0 if ready else START_SHARE
        game.life[side, HP, slot] = share * S_HP[side, kind]
        game.life[side, SHIELD, slot] = share * S_SHIELD[side, kind]
        if ready:
            finish_structure(game, side, slot)
        return slot
    return -1


@compiled
def build_structure(game, side, kind, site, minerals, gas):
    """Pay for a structure and begin it. A probe returns later, a drone is used up. Return False without room."""
    if new_structure(game, side, kind, site, False) < 0:
        return False
    pay(game, side, minerals, gas)
    home = take_worker(game, side)
    if side == PROTOSS and home >= 0:
        loops = BUILDER_AWAY + int(2.0 * DISTANCE[home, site] / WORKER_SPEED)
        add_pending(game, side, TRAVEL, loops, home, 1)
    return True


@compiled
def finish_structure(game, side, slot):
    """Finish a structure: a town hall takes its site, a gas structure its geyser."""
    structures = game.structures[side]
    kind, site = structures[TYPE, slot], structures[SITE, slot]
    structures[READY, slot], structures[WORK, slot] = 1, 0
    if is_town_hall(side, kind):
        game.bases[site, OWNER] = side
        structures[CHARGE, slot] = START_ENERGY
        structures[LARVAE, slot] = 1
    elif kind == GAS_STRUCTURE[side]:
        game.bases[site, TAKEN] += 1
    elif side == PROTOSS and kind == BATTERY:
        structures[CHARGE, slot] = START_ENERGY


@compiled
def finish_job(game, side, slot):
    """Finish a job and begin the next of the queue, with the work done beyond the end."""
    structures = game.structures[side]
    job, site = structures[JOB, slot], structures[SITE, slot]
    over = -structures[WORK, slot]
    structures[JOB, slot], structures[WORK, slot] = -1, 0
    if job >= MORPH_JOB:
        kind = job - MORPH_JOB
        game.life[side, HP, slot] += S_HP[side, kind] - S_HP[side, structures[TYPE, slot]]
        structures[TYPE, slot] = kind
    elif job >= UPGRADE_JOB:
        game.upgrades[side, job - UPGRADE_JOB] = 1
    else:
        add_units(game, side, job, 1, site)
    if structures[QUEUE_1, slot] >= 0:
        structures[JOB, slot] = structures[QUEUE_1, slot]
        for field in range(QUEUE_2, QUEUE_4 + 1):
            structures[field - 1, slot] = structures[field, slot]
        structures[QUEUE_4, slot] = -1
        structures[WORK, slot] = 2 * U_LOOPS[side, structures[JOB, slot]] - over


@compiled
def advance_structures(game, side):
    """Advance construction, jobs, cooldowns, energy and larvae by one step."""
    structures = game.structures[side]
    morphs = side == PROTOSS and game.upgrades[PROTOSS, 0] == 1
    for slot in range(MAX_STRUCTURES):
        kind = structures[TYPE, slot]
        if kind < 0:
            continue
        if not structures[READY, slot]:
            share = (1.0 - START_SHARE) * STEP_LOOPS / S_LOOPS[side, kind]
            game.life[side, HP, slot] += share * S_HP[side, kind]
            game.life[side, SHIELD, slot] += share * S_SHIELD[side, kind]
            structures[WORK, slot] -= 2 * STEP_LOOPS
            if structures[WORK, slot] <= 0:
                finish_structure(game, side, slot)
            continue
        boosted = min(structures[BOOST, slot], STEP_LOOPS)
        structures[BOOST, slot] -= boosted
        if side == PROTOSS and kind >= UNPOWERED and not (game.core[POWER] >> structures[SITE, slot]) & 1:
            continue
        work = 2 * STEP_LOOPS + boosted
        structures[COOLDOWN, slot] = max(0, structures[COOLDOWN, slot] - work)
        if structures[JOB, slot] >= 0:
            structures[WORK, slot] -= work
            if structures[WORK, slot] <= 0:
                finish_job(game, side, slot)
        if morphs and structures[TYPE, slot] == GATEWAY and structures[JOB, slot] < 0:
            structures[JOB, slot] = MORPH_JOB + WARP_GATE
            structures[WORK, slot] = 2 * MORPH_LOOPS
        if side == PROTOSS:
            if kind == NEXUS:
                structures[CHARGE, slot] = min(MAX_ENERGY, structures[CHARGE, slot] + ENERGY_A_STEP)
            elif kind == BATTERY:
                structures[CHARGE, slot] = min(MAX_BATTERY_ENERGY, structures[CHARGE, slot] + ENERGY_A_STEP)
        elif kind <= HIVE:
            grow_larvae(structures, slot)


@compiled
def grow_larvae(structures, slot):
    """Grow larvae and finish injects of a town hall."""
    if structures[LARVAE, slot] < MOST_LARVAE:
        structures[TIMER, slot] += STEP_LOOPS
        if structures[TIMER, slot] >= LARVA_LOOPS:
            structures[TIMER, slot] -= LARVA_LOOPS
            structures[LARVAE, slot] += 1
    if structures[INJECT, slot] > 0:
        structures[INJECT, slot] -= STEP_LOOPS
        if structures[INJECT, slot] <= 0:
            structures[LARVAE, slot] = min(MOST_WITH_INJECT, structures[LARVAE, slot] + INJECTED)


@compiled
def advance_pending(game, side):
    """Advance warp-ins, eggs and travelling workers by one step."""
    pending = game.pending[side]
    for entry in range(MAX_PENDING):
        if pending[KIND, entry] < 0:
            continue
        pending[LEFT, entry] -= STEP_LOOPS
        if pending[LEFT, entry] > 0:
            continue
        kind = pending[KIND, entry]
        pending[KIND, entry] = -1
        add_units(game, side, 0 if kind == TRAVEL else kind, pending[COUNT, entry], pending[PLACE, entry])


@compiled
def destroy_structure(game, side, slot):
    """Remove a structure. A base's workers flee, a gas structure's geyser becomes free."""
    structures = game.structures[side]
    kind, site, ready = structures[TYPE, slot], structures[SITE, slot], structures[READY, slot]
    job = structures[JOB, slot]
    if UPGRADE_JOB <= job < MORPH_JOB:
        game.upgrades[side, job - UPGRADE_JOB] = 0
    structures[TYPE, slot] = -1
    if ready and kind == GAS_STRUCTURE[side]:
        game.bases[site, TAKEN] -= 1
    if ready and is_town_hall(side, kind):
        game.bases[site, OWNER] = -1
        workers = game.bases[site, MINERS] + game.bases[site, GAS_MINERS]
        game.bases[site, MINERS], game.bases[site, GAS_MINERS] = 0, 0
        refuge = rally_site(game, side)
        if workers and game.bases[refuge, OWNER] == side:
            loops = int(DISTANCE[site, refuge] / WORKER_SPEED)
            add_pending(game, side, TRAVEL, loops, refuge, workers)


@compiled
def start_game(game):
    """Begin a game: a town hall, 12 workers and 50 minerals for each side."""
    clear_game(game)
    for side in range(2):
        home = SITES_PER_SIDE * side
        game.bank[side, 0] = 50 * MONEY
        new_structure(game, side, NEXUS if side == PROTOSS else 0, home, True)
        add_pending(game, side, TRAVEL, FIRST_TRIP, home, 12)
    put_in_group(game, ZERG, 0, 1, 1)
    game.structures[ZERG, LARVAE, 0] = MOST_LARVAE


@compiled
def find_idle(game, side, kind):
    """Return the slot of a finished, powered structure of a kind without job or cooldown, or -1."""
    structures = game.structures[side]
    for slot in range(MAX_STRUCTURES):
        if structures[TYPE, slot] == kind and structures[READY, slot] and structures[JOB, slot] < 0:
            powered = side != PROTOSS or kind < UNPOWERED or (game.core[POWER] >> structures[SITE, slot]) & 1
            if powered and structures[COOLDOWN, slot] <= 0:
                return slot
    return -1


@compiled
def begin_job(game, side, slot, job, loops):
    """Begin a job in a structure."""
    game.structures[side, JOB, slot], game.structures[side, WORK, slot] = job, 2 * loops


@compiled
def begin_upgrade(game, side, building, upgrade, minerals, gas):
    """Research at an idle building. Return False if there is none."""
    slot = find_idle(game, side, building)
    if slot < 0:
        return False
    pay(game, side, minerals, gas)
    begin_job(game, side, slot, UPGRADE_JOB + upgrade, UPGRADE_LOOPS[side, upgrade])
    game.upgrades[side, upgrade] = 2
    return True


@compiled
def move_all(game, side, source, target):
    """Move all fighting units of one group to another. Overlords stay."""
    for kind in range(1, game.counts.shape[2]):
        if side == ZERG and kind == 1:
            continue
        game.counts[side, target, kind] += game.counts[side, source, kind]
        game.counts[side, source, kind] = 0
        for pool in range(2):
            game.pools[side, target, pool, kind] += game.pools[side, source, pool, kind]
            game.pools[side, source, pool, kind] = 0.0
