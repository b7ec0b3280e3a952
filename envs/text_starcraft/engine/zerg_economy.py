"""The Zerg opponent's economy, technology and army of levels 1 to 10."""

from marl.envs.text_starcraft.data.names import ZERG_STRUCTURES, ZERG_UNITS, ZERG_UPGRADES
from marl.envs.text_starcraft.data.tables import STRUCTURES as S
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.tables import UPGRADE_GAS, UPGRADE_MINERALS
from marl.envs.text_starcraft.data.world_map import NUM_SITES, SITES_PER_SIDE
from marl.envs.text_starcraft.data.zerg_plans import (
    DEFENSE_GAP,
    DRONES_FIRST,
    DRONES_LATER,
    INJECTS,
    PLAN_SHARES,
    RUSH,
    SCRIPT_SECOND,
    THRESHOLD_LEVEL,
    TIMING,
    UPGRADE_PHASE,
    WORKER_GAP,
)
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.economy import GEYSERS, add_pending, can_pay, pay, take_worker
from marl.envs.text_starcraft.engine.movement import standing_at
from marl.envs.text_starcraft.engine.production import (
    HIVE,
    INJECT_LOOPS,
    begin_job,
    begin_upgrade,
    find_idle,
    group_supply,
    new_structure,
    rally_site,
)
from marl.envs.text_starcraft.engine.state import (
    AI_BUILD,
    AI_FOOD,
    AI_NEXT_ARMY,
    AI_NEXT_DEFENSE,
    AI_NEXT_WORKER,
    AI_PHASE,
    AI_PHASE_END,
    AI_TEMPLATE,
    BUILT,
    CAP,
    FREE_GEYSERS,
    IN_PRODUCTION,
    INJECT,
    JOB,
    LARVAE,
    LEVEL,
    LOOP,
    MAX_STRUCTURES,
    MORPH_JOB,
    OWNER,
    PROTOSS,
    READY,
    SITE,
    SUPPLY,
    TYPE,
    UNDERWAY,
    UNITS,
    USED,
    ZERG,
)

(
    HATCHERY,
    LAIR,
    _,
    EXTRACTOR,
    POOL,
    EVOLUTION,
    WARREN,
    NEST,
    DEN,
    LURKER_DEN,
    PIT,
    SPIRE,
    GREATER_SPIRE,
    CAVERN,
    _,
    SPINE,
    SPORE,
) = range(len(ZERG_STRUCTURES))
(
    DRONE,
    OVERLORD,
    OVERSEER,
    QUEEN,
    LING,
    BANELING,
    ROACH,
    RAVAGER,
    HYDRA,
    LURKER,
    MUTA,
    CORRUPTOR,
    BROOD_LORD,
    INFESTOR,
    _,
    VIPER,
    ULTRA,
) = range(len(ZERG_UNITS))
NUM_TYPES = len(ZERG_UNITS)
STRUCTURE_OF = (
    POOL,
    POOL,
    POOL,
    POOL,
    POOL,
    NEST,
    WARREN,
    WARREN,
    DEN,
    LURKER_DEN,
    SPIRE,
    SPIRE,
    GREATER_SPIRE,
    PIT,
    PIT,
    HIVE,
    CAVERN,
)
"""Structure that a unit needs."""
MORPHS_FROM = (-1, -1, OVERLORD, -1, -1, LING, -1, ROACH, -1, HYDRA, -1, -1, CORRUPTOR, -1, -1, -1, -1)
NEEDS_HALL = (0, 0, 0, 0, 0, 0, 0, 0, LAIR, LAIR, LAIR, LAIR, HIVE, LAIR, LAIR, HIVE, HIVE)
U_MINERALS, U_GAS, U_LOOPS, U_SUPPLY = U.minerals[1], U.gas[1], U.build_loops[1], U.supply[1]
S_MINERALS, S_GAS, S_LOOPS = S.minerals[1], S.gas[1], S.build_loops[1]
MELEE, MISSILE, PLATES = (
    ZERG_UPGRADES.index(f"Zerg{n}Level1") for n in ("MeleeWeapons", "MissileWeapons", "GroundArmors")
)
LING_SPEED, ROACH_SPEED = ZERG_UPGRADES.index("zerglingmovementspeed"), ZERG_UPGRADES.index("GlialReconstitution")
HATCH_SECONDS = (240, 180, 75, 65, 55, 50, 45, 45, 45, 40)
"""Seconds of the clock before which no second hatchery is built, by level."""


@compiled
def inject(game, summary):
    """Let queens inject larvae."""
    queens, structures = summary[UNITS, QUEEN], game.structures[ZERG]
    if not INJECTS[game.core[LEVEL] - 1]:
        return
    for slot in range(MAX_STRUCTURES):
        if queens > 0 and 0 <= structures[TYPE, slot] <= HIVE and structures[READY, slot]:
            queens -= 1
            if structures[INJECT, slot] <= 0:
                structures[INJECT, slot] = INJECT_LOOPS


@compiled
def total(summary, kind):
    """Return the number of structures of a kind, finished or under way."""
    return summary[BUILT, kind] + summary[UNDERWAY, kind]


@compiled
def halls(summary):
    """Return the number of town halls, finished or under way."""
    return total(summary, HATCHERY) + total(summary, LAIR) + total(summary, HIVE)


@compiled
def has_hall(summary, kind):
    """Return whether a finished hall of at least this kind exists."""
    return summary[BUILT, HIVE] + (summary[BUILT, LAIR] if kind <= LAIR else 0) + (kind == HATCHERY) > 0


@compiled
def spend(game, summary):
    """Place the most urgent affordable order. Return False if there is none."""
    core = game.core
    level, loop, phase = core[LEVEL] - 1, core[LOOP], core[AI_PHASE]
    drones = summary[UNITS, DRONE] + summary[IN_PRODUCTION, DRONE]
    army = (group_supply(game, ZERG, 0) + queued_food(summary)) // 2
    late = phase >= 2 or (10 * army >= 7 * core[AI_FOOD] and phase >= 1)
    wanted_drones = DRONES_LATER[level] if late else DRONES_FIRST[level]
    if core[AI_BUILD] == RUSH and phase == 0:
        wanted_drones = 17 if level < 5 else 14
    elif core[AI_BUILD] == TIMING and phase == 0:
        wanted_drones = min(wanted_drones, 28)
    margin = 4 + 4 * halls(summary)
    room = summary[SUPPLY, CAP] + 16 * summary[IN_PRODUCTION, OVERLORD] - summary[SUPPLY, USED]
    if room < margin and summary[SUPPLY, CAP] + 16 * summary[IN_PRODUCTION, OVERLORD] < 400:
        return hatch(game, summary, OVERLORD)
    if drones < 13:
        return hatch(game, summary, DRONE)
    early_pool = core[AI_BUILD] == RUSH and phase == 0
    if total(summary, POOL) == 0 and (drones >= 17 or early_pool):
        return build(game, summary, POOL)
    bases = halls(summary)
    wanted_bases = 1 + (loop * 10 >= HATCH_SECONDS[level] * 224) * (not early_pool)
    if wanted_bases == 2 and drones > 34:
        wanted_bases = min(6, 1 + (drones + 2) // 15)
    if bases < wanted_bases and drones >= 16:
        if can_pay(game, ZERG, S_MINERALS[HATCHERY] - 50, 0):
            return expand(game, summary)
        if bases < 2 and level >= 2:
            return False
    more_drones = loop >= core[AI_NEXT_WORKER] and drones < wanted_drones and drones < 20 * bases
    if more_drones and hatch(game, summary, DRONE):
        core[AI_NEXT_WORKER] = loop + WORKER_GAP[level]
        return True
    if technology(game, summary, drones):
        return True
    queens = summary[UNITS, QUEEN] + summary[IN_PRODUCTION, QUEEN]
    if queens < min(4, bases) and summary[BUILT, POOL] and phase + level > 0 and train_queen(game):
        return True
    if core[AI_FOOD] > 0 and raise_army(game, summary, army):
        return True
    return defend_bases(game, summary) or research(game, summary)


@compiled
def queued_food(summary):
    """Return the supply of the army in eggs, in halves."""
    food = 0
    for kind in range(LING, NUM_TYPES):
        food += U_SUPPLY[kind] * summary[IN_PRODUCTION, kind]
    return food


@compiled
def hatch(game, summary, kind):
    """Turn a larva into an egg, two for zerglings. Return False without larva, money or supply."""
    pairs = 2 if kind == LING else 1
    minerals, gas, supply = pairs * U_MINERALS[kind], pairs * U_GAS[kind], pairs * U_SUPPLY[kind]
    if not can_pay(game, ZERG, minerals, gas) or summary[SUPPLY, USED] + supply > summary[SUPPLY, CAP]:
        return False
    structures = game.structures[ZERG]
    for slot in range(MAX_STRUCTURES):
        if 0 <= structures[TYPE, slot] <= HIVE and structures[READY, slot] and structures[LARVAE, slot] > 0:
            if not add_pending(game, ZERG, kind, U_LOOPS[kind], structures[SITE, slot], pairs):
                return False
            structures[LARVAE, slot] -= 1
            pay(game, ZERG, minerals, gas)
            summary[SUPPLY, USED] += supply
            summary[IN_PRODUCTION, kind] += pairs
            return True
    return False


@compiled
def morph_unit(game, summary, kind):
    """Morph a unit at home. Return False without one, money or supply."""
    source = MORPHS_FROM[kind]
    minerals, gas = U_MINERALS[kind] - U_MINERALS[source], U_GAS[kind] - U_GAS[source]
    more = max(0, U_SUPPLY[kind] - U_SUPPLY[source])
    count = game.counts[ZERG, 0, source]
    if count == 0 or not can_pay(game, ZERG, minerals, gas) or summary[SUPPLY, USED] + more > summary[SUPPLY, CAP]:
        return False
    if not add_pending(game, ZERG, kind, U_LOOPS[kind], rally_site(game, ZERG), 1):
        return False
    for pool in range(2):
        game.pools[ZERG, 0, pool, source] *= (count - 1) / count
    game.counts[ZERG, 0, source] = count - 1
    pay(game, ZERG, minerals, gas)
    summary[SUPPLY, USED] += more
    summary[UNITS, source] -= 1
    summary[IN_PRODUCTION, kind] += 1
    return True


@compiled
def build(game, summary, kind):
    """Turn a drone into a structure at the first base."""
    return build_at(game, summary, kind, first_base(game))


@compiled
def first_base(game):
    """Return the first base, or -1."""
    for site in range(SITES_PER_SIDE, NUM_SITES):
        if game.bases[site, OWNER] == ZERG:
            return site
    return -1


@compiled
def build_at(game, summary, kind, site):
    """Turn a drone into a structure at a site. Return False if it is impossible."""
    minerals, gas = S_MINERALS[kind] - U_MINERALS[DRONE], S_GAS[kind]
    if site < 0 or not can_pay(game, ZERG, minerals, gas) or summary[UNITS, DRONE] == 0:
        return False
    if new_structure(game, ZERG, kind, site, False) < 0:
        return False
    take_worker(game, ZERG)
    pay(game, ZERG, minerals, gas)
    summary[UNDERWAY, kind] += 1
    summary[UNITS, DRONE] -= 1
    summary[SUPPLY, USED] -= U_SUPPLY[DRONE]
    return True


@compiled
def expand(game, summary):
    """Build a hatchery at the next free base. Return False if none is free."""
    for site in range(SITES_PER_SIDE, NUM_SITES):
        if game.bases[site, OWNER] < 0 and standing_at(game, ZERG, site) == 0 and standing_at(game, PROTOSS, site) == 0:
            return build_at(game, summary, HATCHERY, site)
    return False


@compiled
def morph_structure(game, source, kind):
    """Morph an idle structure. Return False without one or money."""
    slot = find_idle(game, ZERG, source)
    minerals, gas = S_MINERALS[kind] - S_MINERALS[source], S_GAS[kind] - S_GAS[source]
    if slot < 0 or not can_pay(game, ZERG, minerals, gas):
        return False
    pay(game, ZERG, minerals, gas)
    begin_job(game, ZERG, slot, MORPH_JOB + kind, S_LOOPS[kind])
    return True


@compiled
def is_morphing(game, kind):
    """Return whether a structure morphs into a kind."""
    for slot in range(MAX_STRUCTURES):
        if game.structures[ZERG, TYPE, slot] >= 0 and game.structures[ZERG, JOB, slot] == MORPH_JOB + kind:
            return True
    return False


@compiled
def technology(game, summary, drones):
    """Order gas or a structure that the army needs. Return whether an order was placed."""
    shares = PLAN_SHARES[game.core[AI_TEMPLATE]]
    if summary[BUILT, POOL] + summary[UNDERWAY, POOL] == 0:
        return False
    gas_units = 1.0 - shares[LING]
    wanted_gas = 0 if gas_units < 0.05 else 1 + (drones >= 22) + (drones - 22) // 8 * (drones > 22)
    wanted_gas = min(wanted_gas, 8 if gas_units > 0.5 else 3)
    extractors = total(summary, EXTRACTOR)
    if extractors < wanted_gas and summary[UNDERWAY, EXTRACTOR] < 2 and summary[SUPPLY, FREE_GEYSERS] > 0:
        for site in range(SITES_PER_SIDE, NUM_SITES):
            if game.bases[site, OWNER] == ZERG and gas_structures(game, site) < GEYSERS:
                return build_at(game, summary, EXTRACTOR, site)
    if not summary[BUILT, POOL]:
        return False
    for kind in range(BANELING, NUM_TYPES):
        if shares[kind] == 0.0:
            continue
        if need_hall(game, summary, NEEDS_HALL[kind]) or need_structure(game, summary, STRUCTURE_OF[kind]):
            return True
        source = MORPHS_FROM[kind]
        if source > LING and need_structure(game, summary, STRUCTURE_OF[source]):
            return True
    return False


@compiled
def gas_structures(game, site):
    """Return the number of extractors at a site."""
    number = 0
    for slot in range(MAX_STRUCTURES):
        number += game.structures[ZERG, TYPE, slot] == EXTRACTOR and game.structures[ZERG, SITE, slot] == site
    return number


@compiled
def need_hall(game, summary, kind):
    """Morph towards a lair or a hive. Return whether an order was placed."""
    if kind == HATCHERY or has_hall(summary, kind):
        return False
    if summary[BUILT, LAIR] == 0:
        return not is_morphing(game, LAIR) and morph_structure(game, HATCHERY, LAIR)
    if total(summary, PIT) == 0:
        return build(game, summary, PIT)
    return summary[BUILT, PIT] > 0 and not is_morphing(game, HIVE) and morph_structure(game, LAIR, HIVE)


@compiled
def need_structure(game, summary, kind):
    """Build a missing structure that can be built. Return whether an order was placed."""
    if kind == GREATER_SPIRE:
        if total(summary, SPIRE) + total(summary, GREATER_SPIRE) == 0:
            return has_hall(summary, LAIR) and build(game, summary, SPIRE)
        if summary[BUILT, GREATER_SPIRE] or not has_hall(summary, HIVE) or is_morphing(game, GREATER_SPIRE):
            return False
        return morph_structure(game, SPIRE, GREATER_SPIRE)
    if kind <= HIVE or total(summary, kind) or (kind == SPIRE and total(summary, GREATER_SPIRE)):
        return False
    if kind in (DEN, PIT, SPIRE) and not has_hall(summary, LAIR):
        return False
    if kind == CAVERN and not has_hall(summary, HIVE):
        return False
    if kind == LURKER_DEN and summary[BUILT, DEN] == 0:
        return total(summary, DEN) == 0 and has_hall(summary, LAIR) and build(game, summary, DEN)
    return build(game, summary, kind)


@compiled
def has_tech(summary, kind):
    """Return whether a unit can be made."""
    if not has_hall(summary, NEEDS_HALL[kind]):
        return False
    needed = STRUCTURE_OF[kind]
    if needed == SPIRE:
        return summary[BUILT, SPIRE] + summary[BUILT, GREATER_SPIRE] > 0
    if needed == HIVE:
        return summary[BUILT, HIVE] > 0
    return summary[BUILT, needed] > 0


@compiled
def raise_army(game, summary, army):
    """Order the unit that the army lacks most. Levels below 6 stop at the wanted food and pace themselves."""
    core = game.core
    level = core[LEVEL]
    paced = level < THRESHOLD_LEVEL
    if paced and (army >= core[AI_FOOD] or core[LOOP] < core[AI_NEXT_ARMY]):
        return False
    shares = PLAN_SHARES[core[AI_TEMPLATE]]
    best, most = -1, -1e9
    goal = max(army + 4, core[AI_FOOD])
    for kind in range(LING, NUM_TYPES):
        if shares[kind] <= 0.0 or not has_tech(summary, kind):
            continue
        have = 0.5 * U_SUPPLY[kind] * (game.counts[ZERG, 0, kind] + summary[IN_PRODUCTION, kind])
        lack = (shares[kind] * goal - have) / shares[kind]
        source = MORPHS_FROM[kind]
        if lack > most and (source < 0 or game.counts[ZERG, 0, source] > 0):
            best, most = kind, lack
    if best < 0:
        best = ROACH if summary[BUILT, WARREN] else LING
        if not summary[BUILT, POOL]:
            return False
    ordered = morph_unit(game, summary, best) if MORPHS_FROM[best] >= 0 else hatch(game, summary, best)
    if not ordered and not paced and summary[BUILT, POOL] and game.bank[ZERG, 0] > 400 * 4_032_000:
        ordered = hatch(game, summary, LING)
    if ordered and paced:
        left = max(1, core[AI_FOOD] - army)
        time = max(0, core[AI_PHASE_END] - core[LOOP] - 40 * SCRIPT_SECOND)
        core[AI_NEXT_ARMY] = core[LOOP] + time * max(1, U_SUPPLY[best] // 2) // (left + 1) // 2
    return ordered


@compiled
def train_queen(game):
    """Train a queen. Return whether it was ordered."""
    if not can_pay(game, ZERG, U_MINERALS[QUEEN], 0):
        return False
    for kind in range(HIVE + 1):
        slot = find_idle(game, ZERG, kind)
        if slot >= 0:
            pay(game, ZERG, U_MINERALS[QUEEN], 0)
            begin_job(game, ZERG, slot, QUEEN, U_LOOPS[QUEEN])
            return True
    return False


@compiled
def defend_bases(game, summary):
    """Build spine and spore crawlers, one at a time."""
    core = game.core
    level, phase = core[LEVEL], core[AI_PHASE]
    if core[LOOP] < core[AI_NEXT_DEFENSE] or summary[BUILT, POOL] == 0 or summary[UNITS, DRONE] < 18 or level < 3:
        return False
    wanted = min(6, (1 + phase) * (1 + (level >= 5)))
    kind = SPINE if total(summary, SPINE) <= total(summary, SPORE) * 2 else SPORE
    if total(summary, SPINE) + total(summary, SPORE) >= wanted:
        return False
    core[AI_NEXT_DEFENSE] = core[LOOP] + DEFENSE_GAP[level - 1] + 30 * SCRIPT_SECOND
    return build_at(game, summary, kind, rally_site(game, ZERG))


@compiled
def research(game, summary):
    """Research speed, weapons and armor."""
    core = game.core
    if core[AI_PHASE] < UPGRADE_PHASE[core[LEVEL] - 1]:
        return False
    if core[LEVEL] >= 5:
        if summary[BUILT, POOL] and want_upgrade(game, POOL, LING_SPEED):
            return True
        if summary[BUILT, WARREN] and has_hall(summary, LAIR) and want_upgrade(game, WARREN, ROACH_SPEED):
            return True
    if total(summary, EVOLUTION) == 0 and summary[UNITS, DRONE] >= 20:
        return build(game, summary, EVOLUTION)
    if summary[BUILT, EVOLUTION] == 0:
        return False
    shares = PLAN_SHARES[core[AI_TEMPLATE]]
    first = MELEE if shares[LING] + shares[ULTRA] > 0.5 else MISSILE
    for step in range(3):
        if step > 0 and not has_hall(summary, LAIR if step == 1 else HIVE):
            break
        if want_upgrade(game, EVOLUTION, first + step) or want_upgrade(game, EVOLUTION, PLATES + step):
            return True
    return False


@compiled
def want_upgrade(game, building, upgrade):
    """Begin an upgrade that is missing and affordable. Return whether it began."""
    minerals, gas = UPGRADE_MINERALS[1, upgrade], UPGRADE_GAS[1, upgrade]
    if game.upgrades[ZERG, upgrade] or not can_pay(game, ZERG, minerals, gas):
        return False
    return begin_upgrade(game, ZERG, building, upgrade, minerals, gas)
