"""Bases: mining with saturation and distance, gas, transfers of workers, and counts by type."""

from marl.envs.text_starcraft.data.names import MAX_TYPES, PROTOSS_STRUCTURES, ZERG_STRUCTURES
from marl.envs.text_starcraft.data.tables import STRUCTURES as S
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.tables import UPGRADE_LOOPS
from marl.envs.text_starcraft.data.world_map import DISTANCE, NUM_SITES
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.state import (
    ARMY,
    BOOST,
    BOOSTABLE,
    BUILT,
    CAP,
    CHARGE,
    CHARGED,
    COOLDOWN,
    COUNT,
    ENERGY,
    FIELDS_FAR,
    FIELDS_NEAR,
    FREE_GEYSERS,
    GAS_MINERS,
    GEYSER_A,
    GEYSER_B,
    IDLE,
    IN_PRODUCTION,
    JOB,
    KIND,
    LEFT,
    MAX_GROUPS,
    MAX_PENDING,
    MAX_STRUCTURES,
    MINERS,
    MONEY,
    MORPH_JOB,
    MORPHING,
    OWNER,
    PLACE,
    POWER,
    PROTOSS,
    QUEUE_1,
    QUEUE_4,
    READY,
    SHARE,
    SITE,
    SPARE_QUEUE,
    STEP_LOOPS,
    SUPPLY,
    TAKEN,
    TRAVEL,
    TYPE,
    UNDERWAY,
    UNITS,
    UPGRADE_JOB,
    USED,
    WORK,
)

NEAR_RATE, FAR_RATE, CROWDED_RATE = 63, 55, 25
"""Minerals a minute of a worker: two on each of four near fields, two on each of four far ones, and a third on each."""
GAS_SHARE = 160 * SHARE // 3
"""A third of a geyser's 160 a minute. The fourth worker at a geyser adds nothing."""
SMALL_FIELDS, LARGE_FIELDS, GEYSER = 4 * 900, 4 * 1800, 2250
BEST_MINERS, MOST_MINERS, GEYSER_MINERS = 16, 24, 3
MAX_SUPPLY = 400
GEYSERS = 2
CHRONO_ENERGY = 50 * ENERGY
TOWN_HALL = (PROTOSS_STRUCTURES.index("Nexus"), ZERG_STRUCTURES.index("Hatchery"))
GAS_STRUCTURE = (PROTOSS_STRUCTURES.index("Assimilator"), ZERG_STRUCTURES.index("Extractor"))
PYLON, GATEWAY = PROTOSS_STRUCTURES.index("Pylon"), PROTOSS_STRUCTURES.index("Gateway")
HIVE = ZERG_STRUCTURES.index("Hive")
UNPOWERED = 3
"""Protoss structures below this index need no pylon."""
UNIT_SUPPLY, UNIT_GIVES, STRUCTURE_GIVES, WORKER_SPEED = U.supply, U.supply_given, S.supply_given, U.speed[0, 0]


@compiled
def is_town_hall(side, kind):
    """Return whether a structure is a town hall."""
    return kind == TOWN_HALL[0] if side == PROTOSS else kind <= HIVE


@compiled
def mineral_rate(workers, near, far):
    """Return the minerals a minute of workers at a base with near and far fields left (each 0 or 1)."""
    near_best, far_best = min(workers, 8 * near), 0
    rest = workers - near_best
    far_best = min(rest, 8 * far)
    rest -= far_best
    return NEAR_RATE * near_best + FAR_RATE * far_best + CROWDED_RATE * min(rest, 4 * near + 4 * far)


@compiled
def mine(game, side, percent):
    """Add the income of one step at all bases of a side, times `percent` / 100."""
    for site in range(NUM_SITES):
        base = game.bases[site]
        if base[OWNER] != side:
            continue
        near, far = min(base[MINERS], 8) if base[FIELDS_NEAR] > 0 else 0, 0
        rest = base[MINERS] - near
        if base[FIELDS_FAR] > 0:
            far = min(rest, 8)
            rest -= far
        extra_near = min(rest, 4) if base[FIELDS_NEAR] > 0 else 0
        extra_far = min(rest - extra_near, 4) if base[FIELDS_FAR] > 0 else 0
        from_near = STEP_LOOPS * SHARE * (NEAR_RATE * near + CROWDED_RATE * extra_near)
        from_far = STEP_LOOPS * SHARE * (FAR_RATE * far + CROWDED_RATE * extra_far)
        from_near, from_far = min(from_near, base[FIELDS_NEAR]), min(from_far, base[FIELDS_FAR])
        base[FIELDS_NEAR] -= from_near
        base[FIELDS_FAR] -= from_far
        game.bank[side, 0] += (from_near + from_far) * percent // 100
        at_a = min(base[GAS_MINERS], GEYSER_MINERS)
        at_b = min(base[GAS_MINERS] - at_a, GEYSER_MINERS)
        from_a = min(STEP_LOOPS * GAS_SHARE * at_a, base[GEYSER_A])
        from_b = min(STEP_LOOPS * GAS_SHARE * at_b, base[GEYSER_B])
        base[GEYSER_A] -= from_a
        base[GEYSER_B] -= from_b
        game.bank[side, 1] += (from_a + from_b) * percent // 100


@compiled
def add_pending(game, side, kind, loops, site, count):
    """Let units or travelling workers appear later. Return False if there is no free entry."""
    pending = game.pending[side]
    for entry in range(MAX_PENDING):
        if pending[KIND, entry] < 0:
            pending[KIND, entry], pending[LEFT, entry] = kind, loops
            pending[PLACE, entry], pending[COUNT, entry] = site, count
            return True
    return False


@compiled
def take_worker(game, side):
    """Take a worker from the most crowded mineral line, else from gas. Return its site, or -1."""
    best, most = -1, 0
    for site in range(NUM_SITES):
        if game.bases[site, OWNER] == side and game.bases[site, MINERS] > most:
            best, most = site, game.bases[site, MINERS]
    if best >= 0:
        game.bases[best, MINERS] -= 1
        return best
    for site in range(NUM_SITES):
        if game.bases[site, OWNER] == side and game.bases[site, GAS_MINERS] > 0:
            game.bases[site, GAS_MINERS] -= 1
            return site
    return -1


@compiled
def distribute_workers(game, side, gas_wanted):
    """Fill geysers, and send surplus workers to the base with the most room."""
    bases = game.bases
    crowded, room, over, free = -1, -1, 0, 0
    for site in range(NUM_SITES):
        if bases[site, OWNER] != side:
            continue
        alive = (bases[site, GEYSER_A] > 0) + (bases[site, GEYSER_B] > 0)
        wanted = GEYSER_MINERS * min(bases[site, TAKEN], alive) if gas_wanted else 0
        while bases[site, GAS_MINERS] < wanted and bases[site, MINERS] > 0:
            bases[site, MINERS] -= 1
            bases[site, GAS_MINERS] += 1
        while bases[site, GAS_MINERS] > wanted:
            bases[site, MINERS] += 1
            bases[site, GAS_MINERS] -= 1
        best = 8 * (bases[site, FIELDS_NEAR] > 0) + 8 * (bases[site, FIELDS_FAR] > 0)
        balance = bases[site, MINERS] - best
        if balance > over:
            crowded, over = site, balance
        if -balance > free:
            room, free = site, -balance
    if crowded >= 0 and room >= 0:
        moved = min(over, free)
        loops = int(DISTANCE[crowded, room] / WORKER_SPEED)
        if add_pending(game, side, TRAVEL, loops, room, moved):
            bases[crowded, MINERS] -= moved


@compiled
def count_types(game, view, side):
    """Fill the summary of a side: structures, units and supply by type."""
    summary = view.summary[side]
    summary[:] = 0
    structures = game.structures[side]
    queued = summary[IN_PRODUCTION]
    supply = summary[SUPPLY]
    if side == PROTOSS:
        view.progress[:] = 0.0
        power = 0
        for slot in range(MAX_STRUCTURES):
            if structures[TYPE, slot] == PYLON and structures[READY, slot]:
                power |= 1 << structures[SITE, slot]
        game.core[POWER] = power
    for slot in range(MAX_STRUCTURES):
        kind = structures[TYPE, slot]
        if kind < 0:
            continue
        if not structures[READY, slot]:
            summary[UNDERWAY, kind] += 1
            continue
        summary[BUILT, kind] += 1
        supply[CAP] += STRUCTURE_GIVES[side, kind]
        job = structures[JOB, slot]
        powered = side != PROTOSS or kind < UNPOWERED or (game.core[POWER] >> structures[SITE, slot]) & 1
        if job < 0:
            summary[IDLE, kind] += powered and structures[COOLDOWN, slot] <= 0
        elif structures[BOOST, slot] == 0 and powered:
            summary[BOOSTABLE, kind] += 1
        if 0 <= job < UPGRADE_JOB:
            queued[job] += 1
        elif UPGRADE_JOB <= job < MORPH_JOB and side == PROTOSS:
            upgrade = job - UPGRADE_JOB
            view.progress[upgrade] = 1.0 - structures[WORK, slot] / (2.0 * UPGRADE_LOOPS[side, upgrade])
        if side == PROTOSS and kind == GATEWAY:
            supply[MORPHING] += job >= MORPH_JOB
            supply[SPARE_QUEUE] += powered and job < MORPH_JOB and structures[QUEUE_4, slot] < 0
        for field in range(QUEUE_1, QUEUE_4 + 1):
            if structures[field, slot] >= 0:
                queued[structures[field, slot]] += 1
        if side == PROTOSS and kind == TOWN_HALL[0]:
            supply[CHARGED] += structures[CHARGE, slot] >= CHRONO_ENERGY
    units = summary[UNITS]
    for group in range(MAX_GROUPS):
        for kind in range(MAX_TYPES):
            units[kind] += game.counts[side, group, kind]
    for site in range(NUM_SITES):
        if game.bases[site, OWNER] == side:
            supply[FREE_GEYSERS] += GEYSERS
            units[0] += game.bases[site, MINERS] + game.bases[site, GAS_MINERS]
    supply[FREE_GEYSERS] -= summary[BUILT, GAS_STRUCTURE[side]] + summary[UNDERWAY, GAS_STRUCTURE[side]]
    pending = game.pending[side]
    for entry in range(MAX_PENDING):
        kind = pending[KIND, entry]
        if kind == TRAVEL:
            units[0] += pending[COUNT, entry]
        elif kind >= 0:
            queued[kind] += pending[COUNT, entry]
    for kind in range(MAX_TYPES):
        supply[USED] += UNIT_SUPPLY[side, kind] * (units[kind] + queued[kind])
        supply[CAP] += UNIT_GIVES[side, kind] * units[kind]
        if kind > 0:
            supply[ARMY] += UNIT_SUPPLY[side, kind] * units[kind]
    supply[CAP] = min(supply[CAP], MAX_SUPPLY)


@compiled
def can_pay(game, side, minerals, gas):
    """Return whether a side has so many minerals and so much gas."""
    return game.bank[side, 0] >= minerals * MONEY and game.bank[side, 1] >= gas * MONEY


@compiled
def pay(game, side, minerals, gas):
    """Subtract minerals and gas."""
    game.bank[side, 0] -= minerals * MONEY
    game.bank[side, 1] -= gas * MONEY
