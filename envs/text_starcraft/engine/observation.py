"""Observation of the Protoss player: counts, enemies, and the text of a frame as bytes."""

from typing import Any

import numpy as np

from marl.envs.text_starcraft.data.names import (
    BUILDING_KEYS,
    BUILDING_TYPES,
    ENEMY_KEYS,
    ENEMY_STRUCTURE_KEYS,
    ENEMY_UNIT_KEYS,
    MAX_TYPES,
    NUM_SHOWN,
    PLANNING_STRUCTURE_KEYS,
    PLANNING_UNIT_KEYS,
    PROTOSS_STRUCTURES,
    PROTOSS_UNITS,
    PROTOSS_UPGRADES,
    RESEARCH_KEYS,
    RESOURCE_KEYS,
    UNIT_KEYS,
    UNIT_TYPES,
)
from marl.envs.text_starcraft.data.world_map import NUM_SITES, POSITION
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.movement import CONTACT_RANGE, near_site
from marl.envs.text_starcraft.engine.production import group_supply
from marl.envs.text_starcraft.engine.state import (
    ARMY,
    BUILT,
    CAP,
    GAS_MINERS,
    IN_PRODUCTION,
    KNOWN,
    LOOP,
    MAX_GROUPS,
    MAX_STRUCTURES,
    MINERS,
    MONEY,
    MORPHING,
    OWNER,
    PROTOSS,
    SITE,
    SUPPLY,
    TYPE,
    UNDERWAY,
    UNITS,
    USED,
    ZERG,
    X,
    Y,
)

SIGHT = CONTACT_RANGE + 2.0
RESOURCES = len(RESOURCE_KEYS)
BUILDINGS = RESOURCES + len(BUILDING_KEYS)
OWN_UNITS = BUILDINGS + len(UNIT_KEYS)
PLANNED_STRUCTURES = OWN_UNITS + len(PLANNING_STRUCTURE_KEYS)
PLANNED_UNITS = PLANNED_STRUCTURES + len(PLANNING_UNIT_KEYS)
"""Ends of the sections in `shown`; research, in percent, is the rest."""
BUILDING_INDEX = np.array([PROTOSS_STRUCTURES.index(name) for name in BUILDING_TYPES])
UNIT_INDEX = np.array([PROTOSS_UNITS.index(name) for name in UNIT_TYPES])
RESEARCH_INDEX = np.array(
    [PROTOSS_UPGRADES.index(name) if name else -1 for keys in RESEARCH_KEYS.values() for name in keys.values()]
)
NUM_RESEARCH = len(RESEARCH_INDEX)
WARP_GATE_KEY = BUILDING_TYPES.index("WarpGate")


@compiled
def look(game, view):
    """Fill `view.enemies`, and remember the enemies in sight."""
    in_sight, known, remembered = view.enemies[0], view.enemies[1], view.enemies[2]
    view.enemies[:] = 0
    for group in range(MAX_GROUPS):
        if group_supply(game, ZERG, group) > 0 and group_in_sight(game, group):
            for kind in range(MAX_TYPES):
                in_sight[kind] += game.counts[ZERG, group, kind] * (kind != 1 or group > 0)
    structures = game.structures[ZERG]
    for site in range(NUM_SITES):
        if not site_in_sight(game, site):
            continue
        for slot in range(MAX_STRUCTURES):
            if structures[TYPE, slot] >= 0 and structures[SITE, slot] == site:
                structures[KNOWN, slot] = 1
        if game.bases[site, OWNER] == ZERG:
            in_sight[0] += game.bases[site, MINERS] + game.bases[site, GAS_MINERS]
    for slot in range(MAX_STRUCTURES):
        if structures[TYPE, slot] >= 0 and structures[KNOWN, slot]:
            known[structures[TYPE, slot]] += 1
    for kind in range(MAX_TYPES):
        game.seen[kind] = max(game.seen[kind], in_sight[kind])
        remembered[kind] = game.seen[kind] if game.seen[kind] > in_sight[kind] else 0


@compiled
def group_in_sight(game, group):
    """Return whether Protoss sees an enemy group."""
    row = game.groups[ZERG, group]
    for own in range(MAX_GROUPS):
        if group_supply(game, PROTOSS, own) > 0:
            other = game.groups[PROTOSS, own]
            dx, dy = row[X] - other[X], row[Y] - other[Y]
            if dx * dx + dy * dy < SIGHT * SIGHT:
                return True
    for slot in range(MAX_STRUCTURES):
        if game.structures[PROTOSS, TYPE, slot] >= 0:
            site = game.structures[PROTOSS, SITE, slot]
            dx, dy = row[X] - POSITION[site, 0], row[Y] - POSITION[site, 1]
            if dx * dx + dy * dy < SIGHT * SIGHT:
                return True
    return False


@compiled
def site_in_sight(game, site):
    """Return whether Protoss sees a site."""
    for own in range(MAX_GROUPS):
        if group_supply(game, PROTOSS, own) > 0 and near_site(game, PROTOSS, own, site):
            return True
    return False


@compiled
def show(game, view):
    """Fill `view.shown` in the order of the keys in `names`."""
    summary, shown = view.summary[PROTOSS], view.shown
    supply = summary[SUPPLY]
    shown[0] = summary[UNITS, 0]
    shown[1], shown[2] = game.bank[PROTOSS, 0] // MONEY, game.bank[PROTOSS, 1] // MONEY
    shown[3] = (supply[CAP] - supply[USED]) // 2
    shown[4], shown[5], shown[6] = supply[CAP] // 2, supply[USED] // 2, supply[ARMY] // 2
    for index in range(len(BUILDING_INDEX)):
        kind = BUILDING_INDEX[index]
        shown[RESOURCES + index] = summary[BUILT, kind] + summary[UNDERWAY, kind]
        shown[OWN_UNITS + index] = summary[UNDERWAY, kind]
    shown[OWN_UNITS + WARP_GATE_KEY] += supply[MORPHING]
    for index in range(len(UNIT_INDEX)):
        shown[BUILDINGS + index] = summary[UNITS, UNIT_INDEX[index]]
        shown[PLANNED_STRUCTURES + index] = summary[IN_PRODUCTION, UNIT_INDEX[index]]
    for index in range(NUM_RESEARCH):
        upgrade = RESEARCH_INDEX[index]
        value = 0
        if upgrade >= 0 and game.upgrades[PROTOSS, upgrade] == 1:
            value = 100
        elif upgrade >= 0 and game.upgrades[PROTOSS, upgrade] == 2:
            value = min(99, max(1, int(100.0 * view.progress[upgrade] + 0.5)))
        shown[PLANNED_UNITS + index] = value


def capitalized(key: str) -> str:
    """A key as the text shows it: blanks for underscores, a capital at the beginning, the rest small."""
    return key.replace("_", " ").capitalize()


def _lines(labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts one after another as bytes, and where each begins and the last one ends."""
    encoded = [label.encode("ascii") for label in labels]
    ends = np.cumsum([0, *map(len, encoded)])
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), ends.astype(np.int64)


_KEYS = [
    *RESOURCE_KEYS,
    *BUILDING_KEYS,
    *UNIT_KEYS,
    *PLANNING_STRUCTURE_KEYS,
    *PLANNING_UNIT_KEYS,
    *(key for keys in RESEARCH_KEYS.values() for key in keys),
]
LABELS, LABEL_ENDS = _lines([capitalized(key) for key in _KEYS])
_PARTS = [
    "At ",
    " game time, our current StarCraft II situation is as follows:\n\n",
    "Resources:\n- Game time: ",
    "\nBuildings:\n",
    "\nUnits:\n",
    "\nPlanning:\n",
    "\nPlanning structure:\n",
    "\nPlanning unit:\n",
    "\nResearch:\n",
    "\nEnemy:\n",
    "\nUnit:\n",
    "\nStructure:\n",
    "\nRemembered unit:\n",
    "- ",
    ": ",
    "\n",
    "Changes since the decision before:\n",
    " -> ",
    *(f"\n{capitalized(key)}:\n" for key in RESEARCH_KEYS),
]
PARTS, PART_ENDS = _lines(_PARTS)
(AT, INTRO, RESOURCE, BUILDING, UNIT, PLANNING, PLAN_STRUCTURE, PLAN_UNIT, RESEARCH, ENEMY) = range(10)
ENEMY_PART, BULLET, COLON, NEWLINE, CHANGES, ARROW, RESEARCH_PART = 10, 13, 14, 15, 16, 17, 18
_ENEMY_LABELS = [
    capitalized(key)
    for keys in (ENEMY_UNIT_KEYS, ENEMY_STRUCTURE_KEYS, ENEMY_UNIT_KEYS)
    for key in (*keys, *[""] * (MAX_TYPES - len(keys)))
]
ENEMY_LABELS, ENEMY_ENDS = _lines(_ENEMY_LABELS)
RESEARCH_SECTION_ENDS = np.cumsum([len(keys) for keys in RESEARCH_KEYS.values()])


@compiled
def copy(source, start, end, buffer, at):
    """Write a row of bytes. Return the next position."""
    for place in range(start, end):
        buffer[at] = source[place]
        at += 1
    return at


@compiled
def part(number, buffer, at):
    """Write one of several texts. Return the next position."""
    return copy(PARTS, PART_ENDS[number], PART_ENDS[number + 1], buffer, at)


@compiled
def digits(value, buffer, at):
    """Write a whole number."""
    if value < 0:
        buffer[at] = 45
        return digits_of(-value, buffer, at + 1)
    return digits_of(value, buffer, at)


@compiled
def digits_of(value, buffer, at):
    """Return the number of digits of a whole number."""
    size, rest = 1, value
    while rest >= 10:
        rest //= 10
        size += 1
    for place in range(size):
        buffer[at + size - 1 - place] = 48 + value % 10
        value //= 10
    return at + size


@compiled
def clock(loop, buffer, at):
    """Write MM:SS."""
    seconds = loop * 10 // 224
    minutes = seconds // 60
    if minutes < 10:
        buffer[at] = 48
        at += 1
    at = digits_of(minutes, buffer, at)
    buffer[at] = 58
    buffer[at + 1] = 48 + seconds % 60 // 10
    buffer[at + 2] = 48 + seconds % 10
    return at + 3


@compiled
def share(percent, buffer, at):
    """Write 1, or two decimals without zeros at the end."""
    if percent >= 100:
        return digits_of(1, buffer, at)
    buffer[at], buffer[at + 1] = 48, 46
    buffer[at + 2] = 48 + percent // 10
    if percent % 10 == 0:
        return at + 3
    buffer[at + 3] = 48 + percent % 10
    return at + 4


@compiled
def line(shown, index, buffer, at):
    """Write a line with a label and a number. Return the next position."""
    at = part(BULLET, buffer, at)
    at = copy(LABELS, LABEL_ENDS[index], LABEL_ENDS[index + 1], buffer, at)
    at = part(COLON, buffer, at)
    at = share(shown[index], buffer, at) if index >= PLANNED_UNITS else digits(shown[index], buffer, at)
    return part(NEWLINE, buffer, at)


@compiled
def section(shown, first, last, head, buffer, at):
    """The head and the lines that are not zero; nothing where all are."""
    empty = True
    for index in range(first, last):
        if shown[index] != 0:
            if empty:
                at = part(head, buffer, at)
                empty = False
            at = line(shown, index, buffer, at)
    return at


@compiled
def is_any(shown, first, last):
    """Return whether any number of a section is not zero."""
    for index in range(first, last):  # noqa: SIM110 - numba compiles no generators
        if shown[index] != 0:
            return True
    return False


@compiled
def write_frame(game, view):
    """Write the text of a frame. Return its length."""
    shown, buffer, loop = view.shown, view.text, game.core[LOOP]
    at = part(AT, buffer, 0)
    at = clock(loop, buffer, at)
    at = part(INTRO, buffer, at)
    at = part(RESOURCE, buffer, at)
    at = clock(loop, buffer, at)
    at = part(NEWLINE, buffer, at)
    for index in range(RESOURCES):
        if shown[index] != 0:
            at = line(shown, index, buffer, at)
    at = section(shown, RESOURCES, BUILDINGS, BUILDING, buffer, at)
    at = section(shown, BUILDINGS, OWN_UNITS, UNIT, buffer, at)
    if is_any(shown, OWN_UNITS, PLANNED_UNITS):
        at = part(PLANNING, buffer, at)
        at = section(shown, OWN_UNITS, PLANNED_STRUCTURES, PLAN_STRUCTURE, buffer, at)
        at = section(shown, PLANNED_STRUCTURES, PLANNED_UNITS, PLAN_UNIT, buffer, at)
    if is_any(shown, PLANNED_UNITS, NUM_SHOWN):
        at = part(RESEARCH, buffer, at)
        first = PLANNED_UNITS
        for number in range(len(RESEARCH_SECTION_ENDS)):
            last = PLANNED_UNITS + RESEARCH_SECTION_ENDS[number]
            at = section(shown, first, last, RESEARCH_PART + number, buffer, at)
            first = last
    return part(NEWLINE, buffer, write_enemies(view, buffer, at))


@compiled
def write_enemies(view, buffer, at):
    """Write the enemies in sight and remembered. Return the next position."""
    any_enemy = False
    for row in range(3):
        any_row = False
        for kind in range(MAX_TYPES):
            if view.enemies[row, kind] == 0:
                continue
            if not any_enemy:
                at = part(ENEMY, buffer, at)
                any_enemy = True
            if not any_row:
                at = part(ENEMY_PART + row, buffer, at)
                any_row = True
            at = part(BULLET, buffer, at)
            index = row * MAX_TYPES + kind
            at = copy(ENEMY_LABELS, ENEMY_ENDS[index], ENEMY_ENDS[index + 1], buffer, at)
            at = part(COLON, buffer, at)
            at = digits_of(view.enemies[row, kind], buffer, at)
            at = part(NEWLINE, buffer, at)
    return at


@compiled
def write_changes(game, view, at):
    """Write the changes since the decision before. Return the length."""
    buffer = view.text
    any_change = False
    for index in range(PLANNED_UNITS):
        if view.shown[index] != game.previous[index]:
            if not any_change:
                at = part(CHANGES, buffer, at)
                any_change = True
            at = part(BULLET, buffer, at)
            at = copy(LABELS, LABEL_ENDS[index], LABEL_ENDS[index + 1], buffer, at)
            at = part(COLON, buffer, at)
            at = digits(game.previous[index], buffer, at)
            at = part(ARROW, buffer, at)
            at = digits(view.shown[index], buffer, at)
            at = part(NEWLINE, buffer, at)
    return at


LABEL_TEXTS = (*map(capitalized, _KEYS), *_PARTS, *_ENEMY_LABELS)
"""Texts that prompts consist of."""


def information(game: Any, view: Any) -> dict[str, Any]:
    """Return the observation as a dictionary of sections: resource, building, unit, planning, research, enemy."""
    shown = [int(number) for number in view.shown]
    seconds = int(game.core[LOOP]) * 10 // 224
    research, at = {}, PLANNED_UNITS
    for building, keys in RESEARCH_KEYS.items():
        percents = shown[at : at + len(keys)]
        research[building] = {key: _share(percent) for key, percent in zip(keys, percents, strict=True)}
        at += len(keys)
    tables = (ENEMY_UNIT_KEYS, ENEMY_STRUCTURE_KEYS, ENEMY_UNIT_KEYS)
    return {
        "resource": {"game_time": f"{seconds // 60:02d}:{seconds % 60:02d}"}
        | dict(zip(RESOURCE_KEYS, shown, strict=False)),
        "building": dict(zip(BUILDING_KEYS, shown[RESOURCES:BUILDINGS], strict=True)),
        "unit": dict(zip(UNIT_KEYS, shown[BUILDINGS:OWN_UNITS], strict=True)),
        "planning": {
            "planning_structure": dict(zip(PLANNING_STRUCTURE_KEYS, shown[OWN_UNITS:PLANNED_STRUCTURES], strict=True)),
            "planning_unit": dict(zip(PLANNING_UNIT_KEYS, shown[PLANNED_STRUCTURES:PLANNED_UNITS], strict=True)),
        },
        "research": research,
        "enemy": {
            name: {key: int(count) for key, count in zip(keys, row, strict=False) if count}
            for name, keys, row in zip(ENEMY_KEYS, tables, view.enemies, strict=True)
        },
    }


def _share(percent: int) -> int | float:
    return percent // 100 if percent % 100 == 0 else percent / 100
