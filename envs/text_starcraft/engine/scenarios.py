"""Tasks: full games against ten levels, and short scenarios with a shaped reward."""

from dataclasses import dataclass

from marl.envs.text_starcraft.data.names import PROTOSS_STRUCTURES
from marl.envs.text_starcraft.engine.compiling import compiled
from marl.envs.text_starcraft.engine.economy import PYLON, TOWN_HALL
from marl.envs.text_starcraft.engine.observation import BUILDINGS, NUM_RESEARCH, PLANNED_UNITS, RESOURCES
from marl.envs.text_starcraft.engine.production import add_units, new_structure, put_in_group, start_game
from marl.envs.text_starcraft.engine.state import (
    ATTACK,
    BLOCKED_SECONDS,
    BUILT,
    GOAL,
    KILLED,
    LOST,
    MODE,
    MONEY,
    PROTOSS,
    SCENARIO,
    UNDERWAY,
    ZERG,
)
from marl.envs.text_starcraft.engine.zerg_army import begin_plan
from marl.envs.text_starcraft.engine.zerg_economy import LING, ROACH

FULL_GAME, OPENING, DEFEND, EXPAND, TECH = range(5)
NUM_LEVELS = 10


@dataclass(frozen=True)
class Scenario:
    """A task: name, kind of reward and start, opponent's level, time limit, goal in words."""

    name: str
    number: int
    level: int
    max_steps: int
    goal: str


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        *(
            Scenario(f"pvz-{level}", FULL_GAME, level, 10_080, "Destroy all structures of the enemy.")
            for level in range(1, NUM_LEVELS + 1)
        ),
        Scenario(
            "opening", OPENING, 1, 1_008, "Have many probes and a first army after three minutes, never without supply."
        ),
        Scenario("defend", DEFEND, 1, 1_344, "An attack is on its way. Destroy it and lose little."),
        Scenario("expand", EXPAND, 1, 1_680, "Have three bases and many probes after five minutes."),
        Scenario("tech", TECH, 1, 2_016, "Have many kinds of structures and finished research after six minutes."),
    )
}
TASKS = tuple(SCENARIOS)

WAVE_LINGS, WAVE_ROACHES = 16, 8
WAVE_VALUE = 16 * 25 + 8 * 100
GATEWAY, CORE, FORGE, ASSIMILATOR = (
    PROTOSS_STRUCTURES.index(name) for name in ("Gateway", "CyberneticsCore", "Forge", "Assimilator")
)
TECH_GOAL = 14


@compiled
def begin_game(game):
    """Set up the start of an episode."""
    start_game(game)
    if game.core[SCENARIO] == FULL_GAME:
        begin_plan(game)
    elif game.core[SCENARIO] == DEFEND:
        begin_defense(game)


@compiled
def begin_defense(game):
    """Start with two bases, a small army, and a wave of zerglings and roaches on its way."""
    new_structure(game, PROTOSS, TOWN_HALL[0], 1, True)
    for site in (0, 0, 1):
        new_structure(game, PROTOSS, PYLON, site, True)
    for kind in (GATEWAY, GATEWAY, CORE, FORGE, ASSIMILATOR, ASSIMILATOR):
        new_structure(game, PROTOSS, kind, 0, True)
    add_units(game, PROTOSS, 0, 12, 1)
    add_units(game, PROTOSS, 1, 2, 1)
    game.bank[PROTOSS, 0], game.bank[PROTOSS, 1] = 350 * MONEY, 150 * MONEY
    put_in_group(game, ZERG, 1, LING, WAVE_LINGS)
    put_in_group(game, ZERG, 1, ROACH, WAVE_ROACHES)
    game.groups[ZERG, 1, MODE], game.groups[ZERG, 1, GOAL] = ATTACK, 1


@compiled
def score(game, view):
    """Return the score of a scenario, about 1 for a very good game. Rewards are its changes."""
    shown, scenario = view.shown, game.core[SCENARIO]
    probes, army = shown[0], shown[6]
    if scenario == OPENING:
        return 0.6 * min(probes - 12, 18) / 18.0 + 0.4 * min(army, 6) / 6.0 - game.totals[BLOCKED_SECONDS] / 60.0
    if scenario == DEFEND:
        return game.totals[KILLED] / WAVE_VALUE - game.totals[LOST] / 3000.0
    if scenario == EXPAND:
        halls = view.summary[PROTOSS, BUILT, TOWN_HALL[0]] + 0.5 * view.summary[PROTOSS, UNDERWAY, TOWN_HALL[0]]
        return 0.5 * min(halls - 1.0, 2.0) / 2.0 + 0.5 * min(probes - 12, 32) / 32.0
    if scenario == TECH:
        return 1.0 * technologies(shown) / TECH_GOAL
    return 0.0


@compiled
def technologies(shown):
    """Return the number of kinds of structures, finished or under way, plus finished research."""
    number = 0
    for index in range(RESOURCES, BUILDINGS):
        number += shown[index] > 0
    for index in range(PLANNED_UNITS, PLANNED_UNITS + NUM_RESEARCH):
        number += shown[index] >= 100
    return number
