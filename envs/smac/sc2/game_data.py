"""Data tables and unit messages of the StarCraft II API for the units of the embedded engine."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from marl.envs.sc2.ids import ATTACK, HEAL, MOVE, SMART, STOP, UNITS
from marl.envs.sc2.protos import load
from marl.envs.smac.engine.battle import HEAL_RANGE
from marl.envs.smac.maps import DATA

load()  # before the imports that need what it builds
buffs: Any = import_module("pysc2.lib.buffs")
upgrades: Any = import_module("pysc2.lib.upgrades")
common: Any = import_module("s2clientprotocol.common_pb2")
data_pb: Any = import_module("s2clientprotocol.data_pb2")
api: Any = import_module("s2clientprotocol.sc2api_pb2")

FIRST_AGENT_TYPE = 1970
"""SMAC's maps define types of their own for the agents' units: this id and the next ones, in alphabetical order."""

ABILITIES = {
    SMART: ("Smart", "PointOrUnit", 0),
    STOP: ("Stop", "None", 3665),
    MOVE: ("Move", "PointOrUnit", 3794),
    ATTACK: ("Attack", "PointOrUnit", 3674),
    HEAL: ("Heal", "Unit", 0),
}
"""Name, target, and the general ability that clients use in its place."""

SPECIFIC = {general: specific for specific, (_, _, general) in ABILITIES.items() if general}
RACES = {"terran": common.Terran, "zerg": common.Zerg, "protoss": common.Protoss}


def agent_type_ids(kinds: Iterable[str]) -> dict[str, int]:
    """Return the unit type id of the agents' own version of every unit type."""
    return {kind: FIRST_AGENT_TYPE + rank for rank, kind in enumerate(sorted(set(kinds)))}


def draw_tables(request: Any, agent_types: Mapping[str, int]) -> Any:
    """Return the tables that a RequestData asks for, as ResponseData.

    As in the game, the unit table has one row for each id from 0 on, and the row at an index has that id. SMACv2 counts
    the rows to find the agents' types. Rows of units that the engine does not have are not `available`. Upgrades and
    buffs have their ids and names only: no map of SMAC researches or casts one.
    """
    tables = api.ResponseData()
    if request.ability_id:
        tables.abilities.extend(draw_ability(number) for number in [*ABILITIES, *SPECIFIC])
    if request.unit_type_id:
        known = {number: draw_type(kind, number) for kind, number in UNITS.items()}
        for kind, number in agent_types.items():
            known[number] = draw_type(kind, number)
            known[number].name, known[number].unit_alias = f"{known[number].name}Agent", UNITS[kind]
        for number in range(max(known) + 1):
            tables.units.append(known.get(number) or data_pb.UnitTypeData(unit_id=number, available=False))
    if request.upgrade_id:
        tables.upgrades.extend(
            data_pb.UpgradeData(upgrade_id=upgrade.value, name=upgrade.name) for upgrade in sorted(upgrades.Upgrades)
        )
    if request.buff_id:
        tables.buffs.extend(data_pb.BuffData(buff_id=buff.value, name=buff.name) for buff in sorted(buffs.Buffs))
    return tables


def draw_ability(number: int) -> Any:
    """Return the AbilityData of one of ABILITIES, or of the general ability in its place."""
    ability = SPECIFIC.get(number, number)
    name, target, general = ABILITIES[ability]
    message = data_pb.AbilityData(
        ability_id=number,
        link_name=name.lower(),
        link_index=0,
        button_name=name,
        friendly_name=name,
        remaps_to_ability_id=general if number == ability else 0,
        available=True,
        target=data_pb.AbilityData.Target.Value(target),
        allow_minimap=target == "PointOrUnit",
        allow_autocast=False,
        is_building=False,
        is_instant_placement=False,
    )
    if ability == HEAL:
        message.cast_range = HEAL_RANGE
    return message


def draw_type(kind: str, number: int) -> Any:
    """Return the UnitTypeData of a type with the id `number`. Speed and periods are per second of 16 loops."""
    unit = DATA["units"][kind]
    message = data_pb.UnitTypeData(
        unit_id=number,
        name=kind.title().replace("_", ""),
        available=True,
        cargo_size=0,
        mineral_cost=0,
        vespene_cost=0,
        food_required=1.0,
        race=RACES[unit["race"]],
        sight_range=unit["sight"],
        movement_speed=unit["speed"],
        armor=unit["armor"],
        attributes=[data_pb.Attribute.Value(name.title()) for name in unit["attributes"]],
    )
    for weapon in unit["weapons"]:
        message.weapons.add(
            type=data_pb.Weapon.Any if weapon["targets"] == "both" else data_pb.Weapon.Ground,
            damage=weapon["damage"],
            attacks=weapon["hits"],
            range=weapon["range"],
            speed=weapon["period"],
            damage_bonus=[
                {"attribute": data_pb.Attribute.Value(name.title()), "bonus": bonus}
                for name, bonus in weapon["bonus"].items()
            ],
        )
    return message
