"""Game data as arrays: units, structures, upgrades and weapons of both races, from the CSV files here.

Side 0 is Protoss and side 1 is Zerg. The index of a Protoss unit is the id of the action that trains it, that of a
Protoss structure is the id of the action that builds it minus 19, and that of a Protoss upgrade is the id of the action
that researches it minus 34. Times are in game loops (22.4 in a second), distances in map cells, supply in halves.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np

from marl.envs.text_starcraft import data
from marl.envs.text_starcraft.data.names import (
    MAX_TYPES,
    PROTOSS_STRUCTURES,
    PROTOSS_UNITS,
    PROTOSS_UPGRADES,
    ZERG_STRUCTURES,
    ZERG_UNITS,
    ZERG_UPGRADES,
)
from marl.errors import ConfigError

LOOPS_PER_SECOND = 22.4
GROUND, AIR = 0, 1
"""Planes of a target."""

ATTRIBUTES = ("Light", "Armored", "Biological", "Mechanical", "Psionic", "Massive", "Structure", "Heroic")
_WEAPON = re.compile(r"(both|ground|air):(\d+)(?:\+(\d+)([A-Z][a-z]+))?x(\d+) r([\d.]+) cd([\d.]+)s")


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a table in `data`. Raises ConfigError where a row has more or fewer fields than the head."""
    text = files(data).joinpath(name).read_text(encoding="utf-8")
    return parse_table(name, text)


def parse_table(name: str, text: str) -> list[dict[str, str]]:
    """Rows of CSV text; see `read_table`."""
    head, *rows = csv.reader(text.splitlines())
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ConfigError(f"{name}, line {number}: {len(row)} fields, and the head has {len(head)}; {REINSTALL}")
    return [dict(zip(head, row, strict=True)) for row in rows]


REINSTALL = "the file is damaged, install the package again"


def number(name: str, row: Mapping[str, str], field: str, default: float | None = None) -> float:
    """A number that is 0 or more. Raises ConfigError for anything else; an empty field is the default, if any."""
    text = row.get(field, "")
    if not text and default is not None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        label = row.get("name") or next(iter(row.values()))
        raise ConfigError(f"{name}, {label}: {field}={text!r} is not a number of 0 or more; {REINSTALL}")
    return value


def rows_by_name(name: str, rows: Sequence[Mapping[str, str]], wanted: Sequence[str]) -> list[Mapping[str, str]]:
    """Rows in the order of `wanted`. Raises ConfigError where one is missing or doubled."""
    for label in wanted:
        count = sum(row["name"] == label for row in rows)
        if count != 1:
            raise ConfigError(f"{name}: {count} rows are named {label!r}, expected one; {REINSTALL}")
    return [next(row for row in rows if row["name"] == label) for label in wanted]


class Types:
    """Columns of units or structures, each (2, MAX_TYPES); those of weapons (2, MAX_TYPES, 2 planes).

    `cooldown` is that of a single hit, and `attributes` holds a bit for each of ATTRIBUTES.
    """

    def __init__(self, tables: Sequence[tuple[str, Sequence[str]]]) -> None:
        shape = (len(tables), MAX_TYPES)
        self.minerals, self.gas = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.supply, self.supply_given = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.build_loops, self.warp_cooldown = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.attributes, self.plane = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.hp, self.shield, self.armor, self.speed = (np.zeros(shape) for _ in range(4))
        self.damage, self.bonus, self.cooldown, self.range = (np.zeros((*shape, 2)) for _ in range(4))
        self.bonus_attributes = np.zeros((*shape, 2), np.int64)
        for side, (name, wanted) in enumerate(tables):
            for index, row in enumerate(rows_by_name(name, read_table(name), wanted)):
                self._fill(name, row, side, index)

    def _fill(self, name: str, row: Mapping[str, str], side: int, index: int) -> None:
        for field in ("minerals", "gas"):
            getattr(self, field)[side, index] = number(name, row, field)
        for field in ("supply", "supply_given"):
            getattr(self, field)[side, index] = 2 * number(name, row, field)
        self.build_loops[side, index] = number(name, row, "build_loops")
        self.warp_cooldown[side, index] = round(number(name, row, "warp_cooldown_s", 0.0) * LOOPS_PER_SECOND)
        for field in ("hp", "shield", "armor"):
            getattr(self, field)[side, index] = number(name, row, field)
        self.speed[side, index] = number(name, row, "speed") / LOOPS_PER_SECOND
        self.plane[side, index] = AIR if row["plane"] == "air" else GROUND
        self.attributes[side, index] = attribute_bits(name, row)
        if self.hp[side, index] == 0:
            raise ConfigError(f"{name}, {row['name']}: hp is 0; {REINSTALL}")
        self._fill_weapons(name, row, side, index)

    def _fill_weapons(self, name: str, row: Mapping[str, str], side: int, index: int) -> None:
        """Damage is that of all hits of a volley; of several weapons on a plane the longest counts."""
        for text in filter(None, row["weapons"].split("; ")):
            match = _WEAPON.fullmatch(text)
            if match is None:
                raise ConfigError(f"{name}, {row['name']}: weapon {text!r} cannot be read; {REINSTALL}")
            target, damage, bonus, attribute, hits, reach, cooldown = match.groups()
            for plane in {"both": (GROUND, AIR), "ground": (GROUND,), "air": (AIR,)}[target]:
                place = side, index, plane
                if float(reach) < self.range[place]:
                    continue
                self.damage[place], self.range[place] = float(damage), float(reach)
                self.cooldown[place] = float(cooldown) * LOOPS_PER_SECOND / int(hits)
                self.bonus[place] = float(bonus or 0)
                self.bonus_attributes[place] = 1 << ATTRIBUTES.index(attribute) if attribute else 0


def attribute_bits(name: str, row: Mapping[str, str]) -> int:
    """A bit for each of ATTRIBUTES."""
    unknown = set(row["attributes"].split("|")) - set(ATTRIBUTES)
    if unknown:
        raise ConfigError(f"{name}, {row['name']}: attributes {sorted(unknown)} are not known; {REINSTALL}")
    return sum(1 << ATTRIBUTES.index(word) for word in row["attributes"].split("|"))


UNITS = Types((("protoss_units.csv", PROTOSS_UNITS), ("zerg_units.csv", ZERG_UNITS)))
STRUCTURES = Types((("protoss_structures.csv", PROTOSS_STRUCTURES), ("zerg_structures.csv", ZERG_STRUCTURES)))


def _upgrades() -> tuple[np.ndarray, ...]:
    """Minerals, gas and loops, each (2, 32)."""
    columns = tuple(np.zeros((2, 32), np.int64) for _ in range(3))
    tables = (("protoss_upgrades.csv", PROTOSS_UPGRADES), ("zerg_upgrades.csv", ZERG_UPGRADES))
    for side, (name, wanted) in enumerate(tables):
        for index, row in enumerate(rows_by_name(name, read_table(name), wanted)):
            for column, field in zip(columns, ("minerals", "gas", "build_loops"), strict=True):
                column[side, index] = number(name, row, field)
    return columns


UPGRADE_MINERALS, UPGRADE_GAS, UPGRADE_LOOPS = _upgrades()

MELEE_LINES = ("ZergMeleeWeapons",)
AIR_LINES = ("ProtossAirWeapons", "ZergFlyerWeapons")
_LONG_NAMES = {"Lurker": "LurkerMP"}


def _weapon_steps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damage and bonus that a level of weapons adds (2, MAX_TYPES, 2 planes), and the line (2, MAX_TYPES): 0 ground
    or missile, 1 air or flyer, 2 melee."""
    damage, bonus = np.zeros((2, MAX_TYPES, 2)), np.zeros((2, MAX_TYPES, 2))
    line = np.zeros((2, MAX_TYPES), np.int64)
    name = "weapon_upgrades.csv"
    for row in read_table(name):
        unit, _, plane = row["unit"].rstrip(")").partition("(")
        unit = "Carrier" if unit == "Interceptor" else _LONG_NAMES.get(unit, unit)
        side = int(unit not in PROTOSS_UNITS)
        names = (PROTOSS_UNITS, ZERG_UNITS)[side]
        if unit not in names:
            raise ConfigError(f"{name}: there is no unit {unit!r}; {REINSTALL}")
        index = names.index(unit)
        planes = {"": (GROUND, AIR), "ground": (GROUND,), "air": (AIR,)}[plane]
        column = damage if row["field"] == "Amount" else bonus
        for each in planes:
            column[side, index, each] = number(name, row, "per_level")
        line[side, index] = 1 if row["upgrade_line"] in AIR_LINES else 2 if row["upgrade_line"] in MELEE_LINES else 0
    return damage, bonus, line


WEAPON_STEP, BONUS_STEP, WEAPON_LINE = _weapon_steps()


def _combat_model() -> tuple[np.ndarray, ...]:
    """Choices of the aggregated model, each (2, MAX_TYPES): targets that a hit reaches, life that a unit is worth, and
    how much sooner it is shot at."""
    columns = tuple(np.ones((2, MAX_TYPES)) for _ in range(3))
    for row in read_table("combat_model.csv"):
        side = int(row["name"] in ZERG_UNITS)
        index = (PROTOSS_UNITS, ZERG_UNITS)[side].index(row["name"])
        for column, field in zip(columns, ("splash", "absorb", "priority"), strict=True):
            column[side, index] = number("combat_model.csv", row, field)
    return columns


SPLASH, ABSORB, PRIORITY = _combat_model()
