"""Rules of the 72 actions as tables: producers, requirements, limits, prices, and the reasons of failures."""

import numpy as np

from marl.envs.text_starcraft.data.names import (
    ACTIONS,
    NUM_ACTIONS,
    PROTOSS_STRUCTURES,
    PROTOSS_UNITS,
    PROTOSS_UPGRADES,
)
from marl.envs.text_starcraft.data.tables import STRUCTURES, UNITS, UPGRADE_GAS, UPGRADE_LOOPS, UPGRADE_MINERALS

FIRST_BUILD, FIRST_RESEARCH, FIRST_SCOUT = 19, 34, 60
ATTACK_ACTION, RETREAT_ACTION, FIRST_CHRONO, EMPTY = 64, 65, 66, 71
ARCHON = 18
NUM_BUILDABLE, NUM_UPGRADES = 15, 26

REASONS = (
    "",
    "No Nexus available",
    "Too many probes (more than 75)",
    "Not enough supply left",
    "Cannot afford {action}",
    "All {subject} are busy",
    "No Gateway available",
    "{subject} not available",
    "No pylons available",
    "No Warp Gate available",
    "No idle Warp Gate available",
    "{action} limit reached",
    "Not the right conditions to build a Pylon",
    "Army supply is less than 10",
    "No {scout} available for scouting",
    "No available Nexus to chronoboost {subject}",
    "{action} is done or in progress",
    "No {subject} that is busy and not boosted",
    "No free place for {action}",
    "A scout left less than 54 seconds ago",
    "Army supply is 0 or less",
    "Less than two High Templar or Dark Templar",
    "No worker available",
    "The level before is not done",
)
(
    OK,
    NO_NEXUS,
    MANY_PROBES,
    NO_SUPPLY,
    NO_MONEY,
    BUSY,
    NO_GATEWAY,
    MISSING,
    NO_PYLON,
    NO_WARP_GATE,
    NO_IDLE_WARP_GATE,
    LIMIT,
    PYLON_CONDITIONS,
    SMALL_ARMY,
    NO_SCOUT,
    NO_ENERGY,
    DONE_BEFORE,
    NOT_BUSY,
    NO_PLACE,
    SCOUTED,
    NO_ARMY,
    NO_TEMPLARS,
    NO_WORKER,
    LEVEL_BEFORE,
) = range(24)
SUBJECT = 64
"""A reason is its index plus SUBJECT times the index of the structure that it names."""


def _s(name: str) -> int:
    return PROTOSS_STRUCTURES.index(name)


GATE, CORE = _s("Gateway"), _s("CyberneticsCore")
PRODUCER = np.array([_s("Nexus"), *[GATE] * 6, *[_s("Stargate")] * 5, _s("Nexus"), *[_s("RoboticsFacility")] * 5])
NEEDS = np.full(ARCHON, -1)
"""Structure that a unit needs besides its producer, or -1."""
for _unit, _structure in (
    ("Adept", "CyberneticsCore"),
    ("Stalker", "CyberneticsCore"),
    ("Sentry", "CyberneticsCore"),
    ("HighTemplar", "TemplarArchive"),
    ("DarkTemplar", "DarkShrine"),
    ("Carrier", "FleetBeacon"),
    ("Tempest", "FleetBeacon"),
    ("Mothership", "FleetBeacon"),
    ("Colossus", "RoboticsBay"),
    ("Disruptor", "RoboticsBay"),
):
    NEEDS[PROTOSS_UNITS.index(_unit)] = _s(_structure)
UNIT_LIMIT = np.full(ARCHON, 1000)
for _unit, _most in (
    ("Observer", 2),
    ("WarpPrism", 1),
    ("Disruptor", 1),
    ("Oracle", 1),
    ("Phoenix", 4),
    ("Mothership", 1),
):
    UNIT_LIMIT[PROTOSS_UNITS.index(_unit)] = _most
MAX_PROBES = 75

BUILD_NEEDS = np.full((NUM_BUILDABLE, 2), -1)
for _structure, _needed in (
    ("Gateway", ("Nexus",)),
    ("Forge", ("Nexus",)),
    ("CyberneticsCore", ("Gateway",)),
    ("TwilightCouncil", ("CyberneticsCore",)),
    ("RoboticsFacility", ("CyberneticsCore",)),
    ("Stargate", ("CyberneticsCore",)),
    ("TemplarArchive", ("TwilightCouncil",)),
    ("DarkShrine", ("TwilightCouncil",)),
    ("RoboticsBay", ("RoboticsFacility",)),
    ("FleetBeacon", ("Stargate",)),
    ("PhotonCannon", ("Forge", "CyberneticsCore")),
    ("ShieldBattery", ("Forge", "CyberneticsCore")),
):
    BUILD_NEEDS[_s(_structure), : len(_needed)] = [_s(each) for each in _needed]

_MINUTE = 1344
FOREVER = 1 << 40
LIMIT_UNTIL = np.full((NUM_BUILDABLE, 5), FOREVER)
LIMIT_COUNT = np.full((NUM_BUILDABLE, 5), 1000)
"""Largest number of a structure, finished or under way, before each of five times in loops."""
for _names, _times, _most in (
    (("Gateway",), (3, 5, 7, 10), (1, 3, 6, 8)),
    (("CyberneticsCore",), (5, 20), (1, 2)),
    (("Forge",), (5, 10), (1, 2)),
    (("RoboticsFacility",), (5, 10, 15), (1, 2, 3)),
    (("Stargate",), (5, 10, 15), (1, 3, 4)),
    (("PhotonCannon", "ShieldBattery"), (5, 10, 15, 20), (1, 3, 5, 7)),
):
    for _name in _names:
        LIMIT_UNTIL[_s(_name), : len(_times)] = [minutes * _MINUTE for minutes in _times]
        LIMIT_COUNT[_s(_name), : len(_most)] = _most
MAX_DEFENSES = 4
MAX_NEXUS, MAX_NEXUS_UNDERWAY = 9, 2

UPGRADE_BUILDING = np.array(
    [CORE] * 7
    + [_s("TwilightCouncil")] * 3
    + [_s("Forge")] * 9
    + [_s("RoboticsBay")] * 3
    + [_s("TemplarArchive")]
    + [_s("FleetBeacon")] * 3
)
UPGRADE_NEEDS = np.full((NUM_UPGRADES, 2), -1)
"""Upgrade of the level before, and a further structure; -1 for none."""
for _index, _name in enumerate(PROTOSS_UPGRADES):
    if _name[-1] in "23":
        _more = "FleetBeacon" if "Air" in _name else "TwilightCouncil"
        UPGRADE_NEEDS[_index] = _index - 1, _s(_more)

SCOUT_UNIT = np.array([PROTOSS_UNITS.index(name) for name in ("Probe", "Observer", "Zealot", "Phoenix")])
SCOUT_GAP = 300 * 4
CHRONO_TARGET = np.array([_s(n) for n in ("Nexus", "CyberneticsCore", "TwilightCouncil", "Stargate", "Forge")])
CHRONO_SUPPLY = np.array([2, 0, 4, 4, 4])
"""Supply that must be left, in whole supply."""
MIN_ATTACK_SUPPLY = 10


def _prices() -> tuple[np.ndarray, np.ndarray]:
    """Return minerals and gas of every action."""
    minerals, gas = np.zeros(NUM_ACTIONS, np.int64), np.zeros(NUM_ACTIONS, np.int64)
    for column, units, structures, upgrades in (
        (minerals, UNITS.minerals, STRUCTURES.minerals, UPGRADE_MINERALS),
        (gas, UNITS.gas, STRUCTURES.gas, UPGRADE_GAS),
    ):
        column[:ARCHON] = units[0, :ARCHON]
        column[FIRST_BUILD:FIRST_RESEARCH] = structures[0, :NUM_BUILDABLE]
        column[FIRST_RESEARCH:FIRST_SCOUT] = upgrades[0, :NUM_UPGRADES]
    return minerals, gas


PRICE_MINERALS, PRICE_GAS = _prices()
UNIT_SUPPLY, UNIT_LOOPS, WARP_COOLDOWN = UNITS.supply[0], UNITS.build_loops[0], UNITS.warp_cooldown[0]
RESEARCH_LOOPS = UPGRADE_LOOPS[0]


def explain(reason: int, action: int) -> str:
    """Return the reason of a failure in words."""
    subject = PROTOSS_STRUCTURES[reason // SUBJECT]
    scout = ACTIONS[action].partition(" ")[2].capitalize()
    return REASONS[reason % SUBJECT].format(action=ACTIONS[action], subject=subject, scout=scout)
