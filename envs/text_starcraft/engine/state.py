"""State of E games: arrays, their fields, and the constants that name rows of them."""

from typing import Any

import numpy as np

from marl.envs.text_starcraft.data.names import MAX_TYPES, NUM_ACTIONS, NUM_SHOWN
from marl.envs.text_starcraft.data.world_map import NUM_SITES
from marl.envs.text_starcraft.engine.compiling import compiled

PROTOSS, ZERG = 0, 1
STEP_LOOPS = 4
"""Game loops of a step: 0.18 seconds."""

MONEY = 4_032_000
"""Units of a mineral in `bank`. Mining rates are whole numbers of units a loop, so that incomes are exact."""

SHARE = MONEY // 1344
"""Units of a mineral a minute (1344 loops) in one loop."""

ENERGY = 256
"""Units of a point of energy. 9 of them regenerate in a loop, 0.7875 points in a second."""

MAX_STRUCTURES, MAX_PENDING, MAX_GROUPS, MAX_UPGRADES = 96, 128, 6, 32
MAX_RESULTS, TEXT_BYTES = 20, 8_000
"""Largest number of results of a window (10 actions of two agents), and of bytes of a text."""

# Fields of `core` (int64): the clock, what the game was set up with, and the opponent's plan.
(
    LOOP,
    STEPS,
    RUNNING,
    RANDOM,
    LEVEL,
    SCENARIO,
    LIMITS,
    MAX_STEPS,
    OUTCOME,
    LAST_SCOUT,
    POWER,
    AI_BUILD,
    AI_PHASE,
    AI_PHASE_START,
    AI_PHASE_END,
    AI_TEMPLATE,
    AI_FOOD,
    AI_NEXT_WORKER,
    AI_NEXT_ARMY,
    AI_NEXT_DEFENSE,
    AI_RETREATED,
    AI_ATTACKS,
    AI_LAST_SENT,
    AI_KILLED_BEFORE,
    AI_LOST_BEFORE,
    FAILURES,
    FRAME,
    CHOICE,
) = range(28)
CORE_FIELDS = 28
"""FRAME and CHOICE are steps played and choices made of the present window."""

# Fields of `totals` (float64): what metrics and rewards add up.
(
    BLOCKED_SECONDS,
    BANK_SUM,
    BANK_STEPS,
    PREFIX_BANK_SUM,
    PREFIX_SECONDS,
    PREFIX_OVER,
    USED_SUM,
    USED_STEPS,
    BEST_TECH,
    SCORE,
    KILLED,
    LOST,
    WORKERS_LOST,
    LAST_SECONDS,
    WORKER_HARM,
) = range(15)
TOTAL_FIELDS = 16
"""WORKER_HARM has two rows, one a side: damage to workers that has not killed one yet. KILLED and LOST are minerals and
gas of Zerg and of Protoss units and structures destroyed."""

# Fields of `bases` (int64), one row a site.
OWNER, FIELDS_NEAR, FIELDS_FAR, GEYSER_A, GEYSER_B, MINERS, GAS_MINERS, TAKEN = range(8)
BASE_FIELDS = 8
"""OWNER is -1, or the side that has a finished town hall there. Minerals and gas are in units of MONEY. TAKEN is the
number of finished gas structures."""

# Fields of `structures` (int64), one column a structure.
TYPE, SITE, READY, WORK, JOB, QUEUE_1, QUEUE_2, QUEUE_3, QUEUE_4, CHARGE, BOOST, COOLDOWN, LARVAE, TIMER = range(14)
INJECT, KNOWN = 14, 15
STRUCTURE_FIELDS = 16
"""WORK is what is left of construction or of the job, two units a loop (three with chrono boost). JOB is the index of
a unit, UPGRADE_JOB plus that of an upgrade, MORPH_JOB plus that of a structure, or -1. KNOWN: the enemy has seen it."""
UPGRADE_JOB, MORPH_JOB = 100, 200

# Fields of `pending` (int64): units that appear, and workers that travel.
KIND, LEFT, PLACE, COUNT = range(4)
PENDING_FIELDS = 4
TRAVEL = 32
"""KIND of workers that will mine at a site; below it, the index of a unit."""

# Fields of `groups` (float64). A group stands at node FROM, or on the road to node TO, DONE cells along it.
FROM, TO, DONE, GOAL, MODE, CONTACT, QUIET, X, Y = range(9)
GROUP_FIELDS = 9
HOME, ATTACK, RETREAT, SCOUT, SCOUT_BACK = range(5)
"""Modes. Group 0 of a side is at home; the others are on their way."""

HP, SHIELD = 0, 1

# Rows of `summary` (int64, MAX_TYPES wide), counts by type.
BUILT, UNDERWAY, IDLE, BOOSTABLE, UNITS, IN_PRODUCTION, SUPPLY = range(7)
SUMMARY_ROWS = 7
CAP, USED, ARMY, SPARE_QUEUE, MORPHING, CHARGED, FREE_GEYSERS = range(7)
"""Columns of row SUPPLY: supply in halves, gateways with room in their queue, gateways that become warp gates, Nexus
with the energy of a chrono boost, and geysers at own bases without a gas structure."""


GAME = np.dtype(
    [
        ("core", np.int64, (CORE_FIELDS,)),
        ("totals", np.float64, (TOTAL_FIELDS,)),
        ("bank", np.int64, (2, 2)),
        ("bases", np.int64, (NUM_SITES, BASE_FIELDS)),
        ("structures", np.int64, (2, STRUCTURE_FIELDS, MAX_STRUCTURES)),
        ("life", np.float64, (2, 2, MAX_STRUCTURES)),
        ("pending", np.int64, (2, PENDING_FIELDS, MAX_PENDING)),
        ("upgrades", np.int64, (2, MAX_UPGRADES)),
        ("groups", np.float64, (2, MAX_GROUPS, GROUP_FIELDS)),
        ("counts", np.int64, (2, MAX_GROUPS, MAX_TYPES)),
        ("pools", np.float64, (2, MAX_GROUPS, 2, MAX_TYPES)),
        ("seen", np.int64, (MAX_TYPES,)),
        ("previous", np.int64, (NUM_SHOWN,)),
        ("results", np.int64, (MAX_RESULTS, 3)),
    ]
)
"""State of a game. `bank`: minerals and gas of each side. `seen`: Zerg units that Protoss remembers. `previous`: shown
numbers at the start of the window. `results`: actions of the window, -1 for none, the reasons of their failures, and
the agents that chose them."""

VIEW = np.dtype(
    [
        ("summary", np.int64, (2, SUMMARY_ROWS, MAX_TYPES)),
        ("progress", np.float64, (MAX_UPGRADES,)),
        ("shown", np.int64, (NUM_SHOWN,)),
        ("enemies", np.int64, (3, MAX_TYPES)),
        ("reasons", np.int64, (NUM_ACTIONS,)),
        ("mask", np.uint8, (NUM_ACTIONS,)),
        ("damage", np.float64, (2, MAX_GROUPS, MAX_TYPES)),
        ("structure_damage", np.float64, (2, 2 * NUM_SITES)),
        ("reward", np.float64),
        ("duration", np.int64),
        ("length", np.int64),
        ("terminated", np.int64),
        ("truncated", np.int64),
        ("text", np.uint8, (TEXT_BYTES,)),
    ]
)
"""Results that follow from the state of a game and its last decision. `progress`: of research. `shown`: in the order of
the observation's keys. `enemies`: units in sight, structures known, units remembered. `damage`, `structure_damage`: to
groups, and to structures and workers by site, within a step. `text`: `length` bytes."""


def new_games(num_envs: int) -> np.recarray:
    """Return the states of so many games."""
    return np.zeros(num_envs, GAME).view(np.recarray)


def new_views(num_envs: int) -> np.recarray:
    """Return the views of so many games."""
    return np.zeros(num_envs, VIEW).view(np.recarray)


@compiled
def draw(core: Any, bound: int) -> int:
    """Draw an integer in [0, bound), bound < 2**31, from the multiply-with-carry stream in `core`."""
    stream = core[RANDOM]
    stream = 1791398085 * (stream & 0xFFFFFFFF) + (stream >> 32)
    core[RANDOM] = stream
    return ((stream & 0xFFFFFFFF) * bound) >> 32


def random_stream(seed: int | None) -> int:
    """Return the first state of a game's random stream. None takes fresh entropy."""
    words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    # any state of the generator but 0 and its one fixed point
    return 1 + int(words[0]) + ((int(words[1]) % 1791398084) << 32)
