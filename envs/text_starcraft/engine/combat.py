"""Fights: aggregated damage between groups and at bases, healing, static defense.

A group fires at all enemy groups in contact and at static defense. Damage by type follows the game's formula
(attributes, armor, upgrades, shields). The share of a group that fires, splash and priorities are choices of the model,
see FIDELITY.md.
"""

import math

import numpy as np

from marl.envs.text_starcraft.data.names import MAX_TYPES, PROTOSS_STRUCTURES, ZERG_STRUCTURES, ZERG_UPGRADES
from marl.envs.text_starcraft.data.tables import (
    ABSORB,
    AIR,
    BONUS_STEP,
    GROUND,
    PRIORITY,
    SPLASH,
    WEAPON_LINE,
    WEAPON_STEP,
)
from marl.envs.text_starcraft.data.tables import STRUCTURES as S
from marl.envs.text_starcraft.data.tables import UNITS as U
from marl.envs.text_starcraft.data.world_map import NUM_SITES
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.movement import (
    ADRENAL,
    CONTACT_RANGE,
    OVERLORD,
    ZERGLING,
    near,
    near_site,
    speed_of,
    standing_at,
)
from marl.envs.text_starcraft.engine.production import destroy_structure, group_supply
from marl.envs.text_starcraft.engine.state import (
    CHARGE,
    CONTACT,
    ENERGY,
    GAS_MINERS,
    HP,
    KILLED,
    LOST,
    MAX_GROUPS,
    MAX_STRUCTURES,
    MINERS,
    MODE,
    OWNER,
    POWER,
    PROTOSS,
    QUIET,
    READY,
    SCOUT,
    SCOUT_BACK,
    SHIELD,
    SITE,
    STEP_LOOPS,
    TYPE,
    WORKER_HARM,
    WORKERS_LOST,
    ZERG,
)

CLOSING_SPEED = 3.15 / 22.4
"""Speed in cells a loop at which units of short range close in."""
OVERKILL = 0.25
"""Exponent of the ratio of supplies that weakens the larger side's fire, so that attrition follows the power 1.5."""
FRONT, FRONT_SHARE, MELEE_RANGE = 12.0, 0.25, 1.0
"""Number of melee units that reach their targets at once, and the share of the others."""
KITING_RANGE, KITING = 6.0, 1.2
DEFENSE_SUPPLY, DEFENSE_WEIGHT = 4.0, 6.0
"""Supply of a defensive structure, and its weight as a target per supply."""
QUIET_LOOPS = 224
"""Loops without damage after which shields regenerate."""
SHIELD_STEP, HEALTH_STEP = 2.0 * STEP_LOOPS / 16.0, 0.27 * STEP_LOOPS / 22.4
BATTERY_STEP, BATTERY_COST = 25.2 * STEP_LOOPS / 22.4, ENERGY // 3
"""Shield that a battery restores in a step, and the energy of one point."""
CANNON, BATTERY = PROTOSS_STRUCTURES.index("PhotonCannon"), PROTOSS_STRUCTURES.index("ShieldBattery")
SPINE, SPORE = ZERG_STRUCTURES.index("SpineCrawler"), ZERG_STRUCTURES.index("SporeCrawler")
OBSERVER = 13
WORKER_SHARE = 0.5
"""Share of the fire at a base without defenders that hits workers."""
DAMAGE, BONUS, BONUS_BITS, COOL, REACH = U.damage, U.bonus, U.bonus_attributes, U.cooldown, U.range
BITS, PLANE, SUPPLY, ARMOR = U.attributes, U.plane, U.supply, U.armor
MAX_HP, MAX_SHIELD, VALUE = U.hp, U.shield, U.minerals + U.gas
S_DAMAGE, S_BONUS, S_BONUS_BITS, S_COOL = S.damage, S.bonus, S.bonus_attributes, S.cooldown
S_BITS, S_ARMOR, S_VALUE = S.attributes, S.armor, S.minerals + S.gas
COLOSSUS, ADEPT, HIGH_TEMPLAR, TEMPEST, PHOENIX = 16, 2, 5, 9, 11
ULTRALISK, BANELING = 16, 5
GLAIVES, LANCE, STORM, PHOENIX_RANGE, TEMPEST_UP = 7, 19, 22, 24, 25
PLATING = ZERG_UPGRADES.index("ChitinousPlating")
_LINES = ("Missile", "Flyer", "Melee")
FIRST_LEVEL = np.array([[10, 1, 10], [ZERG_UPGRADES.index(f"Zerg{n}WeaponsLevel1") for n in _LINES]])
"""First weapon upgrade of a unit, by side and line."""
ARMOR_LEVEL = np.array([[13, 4], [ZERG_UPGRADES.index(f"Zerg{n}ArmorsLevel1") for n in ("Ground", "Flyer")]])
"""First armor upgrade of ground and air units, by side."""
SHIELD_LEVEL = 16
STORM_DAMAGE = 5.0 * STEP_LOOPS / 22.4
"""Damage of a high templar's psi storms in a step to all units in them, averaged over energy regeneration."""


@compiled
def levels(game, side, first):
    """Return how many of three consecutive upgrades are done."""
    done = game.upgrades[side]
    return (done[first] == 1) + (done[first + 1] == 1) + (done[first + 2] == 1)


@compiled
def volley(damage, armor):
    """Return the damage of one hit after armor."""
    return max(0.5, damage - armor)


@compiled
def damage_rate(game, side, kind, plane, bits, armor, shield_share, target_side, target_plane):
    """Return a unit's damage a loop against a target, averaged over shield and health."""
    base = DAMAGE[side, kind, plane]
    if base == 0.0:
        return 0.0
    level = levels(game, side, FIRST_LEVEL[side, WEAPON_LINE[side, kind]])
    hit = base + level * WEAPON_STEP[side, kind, plane]
    if bits & BONUS_BITS[side, kind, plane]:
        hit += BONUS[side, kind, plane] + level * BONUS_STEP[side, kind, plane]
    plates = armor + levels(game, target_side, ARMOR_LEVEL[target_side, target_plane])
    rate = (1.0 - shield_share) * volley(hit, plates)
    if shield_share > 0.0:
        rate += shield_share * volley(hit, levels(game, PROTOSS, SHIELD_LEVEL))
    cooldown = COOL[side, kind, plane]
    if side == PROTOSS and kind == ADEPT and game.upgrades[PROTOSS, GLAIVES] == 1:
        cooldown /= 1.45
    elif side == ZERG and kind == ZERGLING and game.upgrades[ZERG, ADRENAL] == 1:
        cooldown /= 1.4
    return rate / cooldown


@compiled
def reach_of(game, side, kind, plane):
    """Return the range of a unit with its upgrades."""
    reach = REACH[side, kind, plane]
    lance = kind == COLOSSUS and game.upgrades[PROTOSS, LANCE] == 1
    if side == PROTOSS and (lance or (kind == PHOENIX and game.upgrades[PROTOSS, PHOENIX_RANGE] == 1)):
        reach += 2.0
    return reach


@compiled
def is_target(game, side, group, kind):
    """Return whether a group has such units that can be shot at. Overlords keep away; observers are invisible."""
    if game.counts[side, group, kind] == 0:
        return False
    if side == ZERG:
        return kind != OVERLORD
    return kind != OBSERVER


@compiled
def is_defense(side, kind):
    """Return whether a structure is static defense."""
    return kind == CANNON if side == PROTOSS else kind in (SPINE, SPORE)


@compiled
def engaged_share(game, side, group, kind, plane, own, foes):
    """Return the share of a group's units of a type that fire."""
    reach, row = reach_of(game, side, kind, plane), game.groups[side, group]
    closing = max(CLOSING_SPEED, speed_of(game, side, kind))
    if row[CONTACT] * closing < CONTACT_RANGE - 1.0 - reach:
        return 0.0
    share = min(1.0, (foes / own) ** OVERKILL)
    if reach < MELEE_RANGE:
        count = game.counts[side, group, kind]
        if count > FRONT:
            share *= (FRONT + FRONT_SHARE * (count - FRONT)) / count
    elif reach >= KITING_RANGE:
        share *= KITING
    return share


@compiled
def count_enemies(game, side, group):
    """Return the targets of a group: weights on the ground and in the air, supply, and whether there are any."""
    enemy = 1 - side
    foes, contact = 0.0, False
    weight_ground, weight_air = 0.0, 0.0
    for other in range(MAX_GROUPS):
        if not near(game, side, group, other):
            continue
        for kind in range(MAX_TYPES):
            if is_target(game, enemy, other, kind):
                weight = game.counts[enemy, other, kind] * PRIORITY[enemy, kind] * (SUPPLY[enemy, kind] + 1)
                if PLANE[enemy, kind] == AIR:
                    weight_air += weight
                else:
                    weight_ground += weight
                foes += SUPPLY[enemy, kind] * game.counts[enemy, other, kind]
                contact = True
    return weight_ground, weight_air, foes, contact


@compiled
def find_enemy_site(game, side, group):
    """Return the enemy's site near a group, -1 for none, the supply that its defenses count for, its workers, and the
    number of its structures."""
    enemy = 1 - side
    place, defenses, workers, structures = -1, 0.0, 0, 0
    for site in range(NUM_SITES):
        if near_site(game, side, group, site) and standing_at(game, enemy, site):
            place = site
            if game.bases[site, OWNER] == enemy:
                workers = game.bases[site, MINERS] + game.bases[site, GAS_MINERS]
            break
    if place >= 0:
        for slot in range(MAX_STRUCTURES):
            kind = game.structures[enemy, TYPE, slot]
            if kind >= 0 and game.structures[enemy, SITE, slot] == place:
                structures += 1
                if is_defense(enemy, kind) and game.structures[enemy, READY, slot]:
                    defenses += DEFENSE_SUPPLY
    return place, defenses, workers, structures


@compiled
def fire(game, side, group, damage, structure_damage):
    """Add a group's damage of one step to `damage` (2, groups, types) and `structure_damage` (2, sites + sites for
    workers)."""
    enemy = 1 - side
    weight_ground, weight_air, foes, contact = count_enemies(game, side, group)
    place, defenses, workers, structures = find_enemy_site(game, side, group)
    if place >= 0:
        foes += defenses
        contact = True
    row = game.groups[side, group]
    if not contact:
        row[CONTACT] = 0.0
        return
    row[CONTACT] += STEP_LOOPS
    if row[MODE] in (SCOUT, SCOUT_BACK):
        return
    own = float(max(1, group_supply(game, side, group)))
    foes = max(foes, 1.0)
    for kind in range(MAX_TYPES):
        count = game.counts[side, group, kind]
        if count == 0 or (side == ZERG and kind == OVERLORD):
            continue
        hits_ground, hits_air = DAMAGE[side, kind, GROUND] > 0.0, DAMAGE[side, kind, AIR] > 0.0
        total = weight_ground + DEFENSE_WEIGHT * defenses if hits_ground else 0.0
        total += weight_air if hits_air else 0.0
        if side == PROTOSS and kind == HIGH_TEMPLAR and game.upgrades[PROTOSS, STORM] == 1:
            add_storm(game, enemy, group, count, weight_ground + weight_air, damage)
        if total > 0.0:
            for other in range(MAX_GROUPS):
                if not near(game, side, group, other):
                    continue
                for target in range(MAX_TYPES):
                    if not is_target(game, enemy, other, target):
                        continue
                    plane = PLANE[enemy, target]
                    if DAMAGE[side, kind, plane] == 0.0 and not (target == COLOSSUS and enemy == PROTOSS and hits_air):
                        continue
                    life = MAX_HP[enemy, target] + MAX_SHIELD[enemy, target]
                    rate = damage_rate(
                        game,
                        side,
                        kind,
                        plane,
                        BITS[enemy, target],
                        ARMOR[enemy, target] + plating(game, enemy, target),
                        MAX_SHIELD[enemy, target] / life,
                        enemy,
                        plane,
                    )
                    number = game.counts[enemy, other, target]
                    weight = number * PRIORITY[enemy, target] * (SUPPLY[enemy, target] + 1)
                    splash = min(SPLASH[side, kind], max(1.0, 0.5 * number))
                    share = engaged_share(game, side, group, kind, plane, own, foes)
                    dealt = count * share * rate * splash * STEP_LOOPS * weight / total
                    damage[enemy, other, target] += dealt / ABSORB[enemy, target]
                    if side == ZERG and kind == BANELING:
                        damage[side, group, kind] += dealt / 2.0
            if defenses > 0.0 and hits_ground:
                share = engaged_share(game, side, group, kind, GROUND, own, foes)
                rate = structure_rate(game, side, kind, enemy)
                structure_damage[enemy, place] += count * share * rate * STEP_LOOPS * DEFENSE_WEIGHT * defenses / total
        elif place >= 0 and hits_ground and structures:
            share = engaged_share(game, side, group, kind, GROUND, own, own)
            rate = count * share * structure_rate(game, side, kind, enemy) * STEP_LOOPS
            if workers > 0:
                structure_damage[enemy, NUM_SITES + place] += WORKER_SHARE * rate
                rate *= 1.0 - WORKER_SHARE
            structure_damage[enemy, place] += rate


@compiled
def plating(game, side, kind):
    """Return the additional armor of chitinous plating."""
    return 2.0 if side == ZERG and kind == ULTRALISK and game.upgrades[ZERG, PLATING] == 1 else 0.0


@compiled
def structure_rate(game, side, kind, enemy):
    """Return a unit's damage a loop against structures (armored, armor 1)."""
    rate = damage_rate(game, side, kind, GROUND, S_BITS[enemy, 0], 1.0, 0.5 if enemy == PROTOSS else 0.0, enemy, 0)
    if side == PROTOSS and kind == TEMPEST and game.upgrades[PROTOSS, TEMPEST_UP] == 1:
        rate *= 2.0
    if side == ZERG and kind == BANELING:
        rate *= 2.0
    return rate


@compiled
def add_storm(game, enemy, group, count, weight, damage):
    """Add the damage of psi storms to the groups in contact."""
    for other in range(MAX_GROUPS):
        if not near(game, PROTOSS, group, other):
            continue
        for target in range(MAX_TYPES):
            if is_target(game, enemy, other, target):
                number = game.counts[enemy, other, target]
                damage[enemy, other, target] += (
                    count * STORM_DAMAGE * min(3.0, number) * number * (SUPPLY[enemy, target] + 1) / weight
                )


@compiled
def fire_defenses(game, side, damage):
    """Add the damage of static defense to the enemy groups at its site."""
    enemy = 1 - side
    for slot in range(MAX_STRUCTURES):
        kind = game.structures[side, TYPE, slot]
        if kind < 0 or not is_defense(side, kind) or not game.structures[side, READY, slot]:
            continue
        site = game.structures[side, SITE, slot]
        if side == PROTOSS and not (game.core[POWER] >> site) & 1:
            continue
        total = 0.0
        for pass_number in range(2):
            for other in range(MAX_GROUPS):
                if not near_site(game, enemy, other, site):
                    continue
                for target in range(MAX_TYPES):
                    plane = PLANE[enemy, target]
                    if not is_target(game, enemy, other, target) or S_DAMAGE[side, kind, plane] == 0.0:
                        continue
                    weight = game.counts[enemy, other, target] * (SUPPLY[enemy, target] + 1.0)
                    if pass_number == 0:
                        total += weight
                        continue
                    hit = S_DAMAGE[side, kind, plane]
                    if BITS[enemy, target] & S_BONUS_BITS[side, kind, plane]:
                        hit += S_BONUS[side, kind, plane]
                    armor = ARMOR[enemy, target] + levels(game, enemy, ARMOR_LEVEL[enemy, plane])
                    rate = volley(hit, armor) / S_COOL[side, kind, plane]
                    damage[enemy, other, target] += rate * STEP_LOOPS * weight / total


@compiled
def recharge(game, damage, structure_damage):
    """Let shield batteries absorb damage at their site."""
    for slot in range(MAX_STRUCTURES):
        if game.structures[PROTOSS, TYPE, slot] != BATTERY or not game.structures[PROTOSS, READY, slot]:
            continue
        site, charge = game.structures[PROTOSS, SITE, slot], game.structures[PROTOSS, CHARGE, slot]
        left = min(BATTERY_STEP, charge / BATTERY_COST)
        if left <= 0.0 or not (game.core[POWER] >> site) & 1:
            continue
        before = left
        for group in range(MAX_GROUPS):
            if near_site(game, PROTOSS, group, site):
                for kind in range(MAX_TYPES):
                    taken = min(left, damage[PROTOSS, group, kind])
                    damage[PROTOSS, group, kind] -= taken
                    left -= taken
        taken = min(left, structure_damage[PROTOSS, site])
        structure_damage[PROTOSS, site] -= taken
        left -= taken
        game.structures[PROTOSS, CHARGE, slot] -= int((before - left) * BATTERY_COST)


@compiled
def wound_group(game, side, group, damage):
    """Subtract the damage of a step from a group's shields and health, and remove the dead."""
    hurt = False
    for kind in range(MAX_TYPES):
        harm = damage[side, group, kind]
        count = game.counts[side, group, kind]
        if harm <= 0.0 or count == 0:
            continue
        hurt = True
        pools = game.pools[side, group]
        share = MAX_SHIELD[side, kind] / (MAX_SHIELD[side, kind] + MAX_HP[side, kind])
        off_shield = min(pools[SHIELD, kind], harm * share)
        pools[SHIELD, kind] -= off_shield
        pools[HP, kind] -= harm - off_shield
        left = max(0, min(count, math.ceil(pools[HP, kind] / MAX_HP[side, kind] - 1e-9)))
        if left == 0:
            pools[HP, kind] = pools[SHIELD, kind] = 0.0
        pools[SHIELD, kind] = min(pools[SHIELD, kind], left * MAX_SHIELD[side, kind])
        if left < count:
            game.counts[side, group, kind] = left
            game.totals[LOST if side == PROTOSS else KILLED] += (count - left) * VALUE[side, kind]
            if side == PROTOSS and kind == 0:
                game.totals[WORKERS_LOST] += count - left
            if side == ZERG:
                game.seen[kind] = max(0, game.seen[kind] - (count - left))
    row = game.groups[side, group]
    row[QUIET] = 0.0 if hurt else row[QUIET] + STEP_LOOPS
    if not hurt:
        regenerate(game, side, group)


@compiled
def regenerate(game, side, group):
    """Regenerate shields of Protoss, health of Zerg."""
    if side == PROTOSS and game.groups[side, group, QUIET] < QUIET_LOOPS:
        return
    field = SHIELD if side == PROTOSS else HP
    for kind in range(MAX_TYPES):
        count = game.counts[side, group, kind]
        if count:
            most = count * (MAX_SHIELD[side, kind] if side == PROTOSS else MAX_HP[side, kind])
            step = count * (SHIELD_STEP if side == PROTOSS else HEALTH_STEP)
            game.pools[side, group, field, kind] = min(most, game.pools[side, group, field, kind] + step)


@compiled
def wound_base(game, side, site, structure_damage):
    """Subtract damage from structures at a site, static defense first, and from workers there."""
    harm = structure_damage[side, site]
    while harm > 0.0:
        target = -1
        for slot in range(MAX_STRUCTURES):
            kind = game.structures[side, TYPE, slot]
            if kind >= 0 and game.structures[side, SITE, slot] == site:
                defends = is_defense(side, kind)
                if target < 0 or (defends and not is_defense(side, game.structures[side, TYPE, target])):
                    target = slot
                if defends:
                    break
        if target < 0:
            break
        off = min(harm, game.life[side, SHIELD, target])
        game.life[side, SHIELD, target] -= off
        harm -= off
        off = min(harm, game.life[side, HP, target])
        game.life[side, HP, target] -= off
        harm -= off
        if game.life[side, HP, target] <= 1e-9:
            game.totals[LOST if side == PROTOSS else KILLED] += S_VALUE[side, game.structures[side, TYPE, target]]
            destroy_structure(game, side, target)
    harm = structure_damage[side, NUM_SITES + site]
    if harm > 0.0 and game.bases[site, OWNER] == side:
        wound_workers(game, side, site, harm)


@compiled
def wound_workers(game, side, site, harm):
    """Kill workers one by one. Damage below a worker's life carries over to the next step."""
    life = MAX_HP[side, 0] + MAX_SHIELD[side, 0]
    game.totals[WORKER_HARM + side] += harm
    while game.totals[WORKER_HARM + side] >= life:
        game.totals[WORKER_HARM + side] -= life
        if game.bases[site, MINERS] > 0:
            game.bases[site, MINERS] -= 1
        elif game.bases[site, GAS_MINERS] > 0:
            game.bases[site, GAS_MINERS] -= 1
        else:
            return
        game.totals[LOST if side == PROTOSS else KILLED] += VALUE[side, 0]
        if side == PROTOSS:
            game.totals[WORKERS_LOST] += 1


@compiled
def fight(game, view):
    """Play one step of all fights."""
    damage, structure_damage = view.damage, view.structure_damage
    damage[:] = 0.0
    structure_damage[:] = 0.0
    any_contact = False
    for side in range(2):
        for group in range(MAX_GROUPS):
            if group_supply(game, side, group) > 0:
                fire(game, side, group, damage, structure_damage)
                any_contact = any_contact or game.groups[side, group, CONTACT] > 0.0
    if any_contact:
        fire_defenses(game, PROTOSS, damage)
        fire_defenses(game, ZERG, damage)
        recharge(game, damage, structure_damage)
    for side in range(2):
        for group in range(MAX_GROUPS):
            if group_supply(game, side, group) > 0:
                wound_group(game, side, group, damage)
        if any_contact:
            for site in range(NUM_SITES):
                if structure_damage[side, site] > 0.0 or structure_damage[side, NUM_SITES + site] > 0.0:
                    wound_base(game, side, site, structure_damage)
