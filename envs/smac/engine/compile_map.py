"""Build the engine's arrays and the rules from a map, the unit table and the options."""

from typing import Any

import numpy as np

from marl.envs.smac.engine import fields as rules
from marl.envs.smac.engine.combat import BURST, INSTANT, LINE
from marl.envs.smac.engine.fields import ATTACK_MOVING, FIRST_TARGET, HUNTING, IDLE, WAITING, Rules, World
from marl.envs.smac.engine.pathing import MAX_UNITS
from marl.envs.smac.maps import DATA, LOOPS, SIZE, BattleMap, lattice, waypoints
from marl.envs.smac.options import SmacOptions
from marl.types import EntityLayout

_ORDERS = {"none": IDLE, "point": ATTACK_MOVING, "units": HUNTING, "nearest": WAITING}
_KINDS = {"line": LINE, "circle": BURST}

SIGHT_RANGE, SHOOT_RANGE, MIN_SHOOT_RANGE = 9.0, 6.0, 2.0
"""Sight and shooting range of every unit in SMAC. With `use_unit_ranges`, the least shooting range."""


def random_stream(seed: int | None) -> int:
    """Return the first state of a battle's random stream. None as seed takes fresh entropy."""
    words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    # any state of the multiply-with-carry generator but 0 and its one fixed point
    return 1 + int(words[0]) + ((int(words[1]) % 1791398084) << 32)


def build_rules(battle_map: BattleMap, options: SmacOptions) -> Rules:
    """Return the rules of a map with the given options."""
    mappo, entities = options.layout == "mappo", options.layout == "entities"
    units = DATA["units"]
    allies = battle_map.types[: battle_map.num_agents]
    enemies = battle_map.types[battle_map.num_agents :]
    healers = "medivac" in (battle_map.kinds or allies)
    fov_directions = options.num_fov_actions if options.conic_fov else 0
    targets = max(len(allies), len(enemies)) if battle_map.kinds and healers else len(enemies)
    return Rules(
        agents=len(allies),
        enemies=len(enemies),
        actions=rules.FIRST_TARGET + fov_directions + targets,
        limit=options.max_steps or battle_map.limit,
        ally_shield=int(entities or units[allies[0]]["race"] == "protoss"),
        enemy_shield=int(entities or units[enemies[0]]["race"] == "protoss"),
        type_bits=len(battle_map.ally_types),
        healers=int(healers),
        all_health=int(options.obs_all_health),
        own_health=int(options.obs_all_health or options.obs_own_health),
        last_action=int(mappo if options.obs_last_action is None else options.obs_last_action),
        pathing=int(options.obs_pathing_grid),
        agent_id=int(mappo if options.obs_agent_id is None else options.obs_agent_id),
        timestep=int(options.obs_timestep_number),
        concat_obs=int(options.obs_instead_of_state),
        mappo=int(mappo),
        entities=int(entities),
        state_last_action=int(options.state_last_action),
        state_timestep=int(options.state_timestep_number),
        sparse=int(options.reward_sparse),
        only_positive=int(options.reward_only_positive),
        own_place=int(_chosen(options.obs_own_pos, battle_map)),
        fov_actions=fov_directions,
        masked=int(options.action_mask),
        random_teams=int(bool(battle_map.kinds)),
        half_cone=float(np.cos(np.pi / fov_directions)) if fov_directions else -1.0,
        visibility_prob=float(options.prob_obs_enemy),
        move=float(options.move_amount),
        death_value=float(options.reward_death_value),
        win=float(options.reward_win),
        defeat=float(options.reward_defeat),
        negative_scale=float(options.reward_negative_scale),
        reward_scale_rate=float(options.reward_scale_rate if options.reward_scale else 0.0),
        span_x=float(SIZE),
        span_y=float(SIZE),
    )


def entities(rules: Rules, battle_map: BattleMap) -> EntityLayout:
    """Return the layout of an observation: moves, enemies, allies, own features. Healers target allies."""
    moves, last = 4 + 8 * rules.pathing, rules.own_health * 2 + 2 * rules.own_place + 2 * (rules.fov_actions > 0)
    blocks = (
        ("own", 1, moves),
        ("enemy", rules.enemies, rules.enemy_width),
        ("ally", rules.ally_rows, rules.ally_width),
        ("own", 1, last + rules.type_bits + rules.timestep),
    )
    healer = moves + last + battle_map.ally_types.index("medivac")
    return EntityLayout(blocks, rules.actions - FIRST_TARGET - rules.fov_actions, "enemy", healer, "ally")


def _chosen(option: bool | None, battle_map: BattleMap) -> bool:
    """Return an option whose default is on in SMACv2 and off in SMAC."""
    return bool(battle_map.kinds) if option is None else option


def build_world(battle_map: BattleMap, options: SmacOptions) -> World:
    """Return the world of a map. Raises ValueError if it has too many units for the engine."""
    if len(battle_map.types) >= MAX_UNITS:
        raise ValueError(
            f"{battle_map.name} has {len(battle_map.types)} units; the engine takes fewer than {MAX_UNITS}"
        )
    stats = _stats(battle_map.types, battle_map, options)
    convex = battle_map.convex
    kinds, angles = battle_map.kinds, np.arange(options.num_fov_actions) * (2 * np.pi / options.num_fov_actions)
    return World(
        agents=battle_map.num_agents,
        units=len(battle_map.types),
        order=_ORDERS[battle_map.order],
        loops=int(options.step_mul),
        stats=stats,
        walkable=np.ascontiguousarray(battle_map.walkable),
        near_wall=_near_wall(battle_map.walkable) & (not convex),
        waypoints=np.zeros((1, 1), np.int16) if convex else waypoints(battle_map.name),
        start=np.ascontiguousarray(battle_map.start.T),
        goals=battle_map.goals,
        type_stats=_stats(kinds, battle_map, options) if kinds else np.zeros((1, 0)),
        weight_sums=np.cumsum(battle_map.weights, dtype=np.int64),
        dependent=kinds.index(battle_map.dependent) if battle_map.dependent else -1,
        spawn_offsets=lattice((0.0, 0.0), (1.0, 0.0)) if kinds else np.zeros((0, 2)),
        fov_directions=np.stack([np.cos(angles), np.sin(angles)], axis=1),
    )


def _stats(types: tuple[str, ...], battle_map: BattleMap, options: SmacOptions) -> np.ndarray:
    """Return the statistics of units of these types and the damage of one hit to each other; see `fields.World`."""
    stats = np.zeros((rules.STAT_FIELDS, len(types)))
    own = _chosen(options.use_unit_ranges, battle_map)
    for index, name in enumerate(types):
        _fill(stats[:, index], name, options)
        sight, shoot = _ranges(name) if own else (SIGHT_RANGE, SHOOT_RANGE)
        stats[rules.SIGHT, index] = options.sight_range or sight
        stats[rules.SHOOT, index] = options.shoot_range or shoot
        if battle_map.ally_types:
            stats[rules.ALLY_TYPE, index] = battle_map.ally_types.index(name)
            stats[rules.ENEMY_TYPE, index] = battle_map.enemy_types.index(name)
    stats[rules.AGENTS] = battle_map.num_agents
    units, enemies = DATA["units"], battle_map.types[battle_map.num_agents :]
    health = sum(units[name]["hp"] + units[name]["shield"] for name in enemies)
    best = options.reward_death_value * len(enemies) + options.reward_win + health
    stats[rules.SCALE] = options.reward_scale_rate / best if options.reward_scale else 1.0
    _confine(stats, battle_map)
    damage = np.array([[_damage(a, b) for b in types] for a in types]).reshape(len(types), len(types))
    return np.concatenate([stats, damage])


def _ranges(name: str) -> tuple[float, float]:
    """Return a unit's own sight and shooting range, between centers."""
    unit: dict[str, Any] = DATA["units"][name]
    reach = unit.get("shoot_range") or unit.get("heal", {}).get("range") or unit["weapons"][0]["range"]
    return float(unit["sight"]), max(float(reach), MIN_SHOOT_RANGE)


def _fill(column: np.ndarray, name: str, options: SmacOptions) -> None:
    """Fill the statistics of one unit: times in loops, speed per loop."""
    unit: dict[str, Any] = DATA["units"][name]
    defaults = DATA["engine"]["weapon"]
    column[rules.MAX_HEALTH], column[rules.MAX_SHIELD] = unit["hp"], unit["shield"]
    column[rules.ARMOR] = unit["armor"]
    column[rules.SPEED] = unit["speed"] / LOOPS
    column[rules.ACCELERATION] = unit.get("acceleration", 0.0) / LOOPS**2
    column[rules.RADIUS], column[rules.SEPARATION] = unit["radius"], unit["separation_radius"]
    column[rules.FLIES] = unit["plane"] == "air"
    column[rules.WALKS] = unit["speed"] > 0 and unit["plane"] == "ground"  # a colossus ("ground+air") climbs
    column[rules.REGENERATION] = unit["hp_regen"] / LOOPS
    column[rules.HEALER] = "heal" in unit
    column[rules.BURSTS] = unit.get("explodes_on_death", False)
    column[rules.BIOLOGICAL] = "biological" in unit["attributes"]
    column[rules.COOLDOWN_SCALE] = unit["cooldown_scale"]
    if options.creep_decay and "structure" in unit["attributes"]:
        column[rules.DECAY] = 1.0 / (0.3332 * LOOPS)
    ages = (rules.REGENERATION, rules.MAX_SHIELD, rules.HEALER, rules.DECAY)
    column[rules.HAS_TIMERS] = any(column[row] > 0 for row in ages)
    column[rules.ATTACK] = -1.0
    column[rules.MELEE_RANGE] = -1e9
    for weapon in unit["weapons"]:
        if weapon.get("melee"):
            column[rules.MELEE_RANGE] = weapon["range"]
            column[rules.MELEE_POINT] = weapon["damage_point"] * LOOPS
            continue
        column[rules.ATTACK] = _KINDS.get(weapon.get("splash", {}).get("kind"), INSTANT)
        column[rules.RANGE] = weapon["range"]
        column[rules.RANGE_SLACK] = weapon.get("range_slop", defaults["range_slop"])
        column[rules.SCAN] = max(weapon["range"], defaults["min_scan_range"])
        column[rules.PERIOD] = weapon["period"] * LOOPS
        column[rules.DAMAGE_POINT] = weapon["damage_point"] * LOOPS
        column[rules.BACKSWING] = weapon.get("backswing", defaults["backswing"]) * LOOPS
        column[rules.MISSILE_SPEED] = weapon.get("missile_speed", 0.0) / LOOPS
        column[rules.HITS] = weapon["hits"]
        column[rules.HIT_DELAY] = (weapon.get("hit_interval") or weapon.get("splash", {}).get("delay", 0.0)) * LOOPS
        column[rules.HITS_AIR] = weapon["targets"] == "both"


def _confine(stats: np.ndarray, battle_map: BattleMap) -> None:
    """Fill the rectangle of each unit's center: the map for flyers, the walkable part for the others."""
    x, y = np.nonzero(battle_map.walkable)
    flies, radius = stats[rules.FLIES] > 0, stats[rules.SEPARATION]
    rows = ((rules.MIN_X, rules.MAX_X, x), (rules.MIN_Y, rules.MAX_Y, y))
    for least, most, cells in rows:
        stats[least] = np.where(flies, 0.0, cells.min() + radius)
        stats[most] = np.where(flies, SIZE - 1e-6, cells.max() + 1.0 - radius)


def _damage(attacker: str, victim: str) -> float:
    """Return the damage of one hit before armor, with the bonus against the victim's attributes."""
    weapons, attributes = DATA["units"][attacker]["weapons"], DATA["units"][victim]["attributes"]
    if not weapons:
        return 0.0
    return float(weapons[0]["damage"] + sum(weapons[0]["bonus"].get(name, 0) for name in attributes))


def _near_wall(walkable: np.ndarray) -> np.ndarray:
    padded = np.pad(walkable, 1, constant_values=False)
    near = np.zeros_like(walkable)
    for dx in range(3):
        for dy in range(3):
            near |= ~padded[dx : dx + SIZE, dy : dy + SIZE]
    return near
