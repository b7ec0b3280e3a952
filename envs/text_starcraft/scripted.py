"""Scripted Protoss players in three styles: gateway, robotics and stargate armies on two to four bases.

A player reads nothing but its observation, as text or as a vector, and keeps no memory: every decision is the first
order of a list of priorities that is wanted now. An order that only lacks money is waited for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from marl.envs.text_starcraft.data.names import (
    ACTION_ID,
    ACTIONS,
    BUILDING_KEYS,
    NUM_ACTIONS,
    NUM_SHOWN,
    PLANNING_STRUCTURE_KEYS,
    PLANNING_UNIT_KEYS,
    RESEARCH_KEYS,
    RESOURCE_KEYS,
    UNIT_KEYS,
)
from marl.envs.text_starcraft.data.rules import PRICE_GAS, PRICE_MINERALS
from marl.errors import ConfigError
from marl.policy import Policy
from marl.registry import NoOptions, register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

_RESEARCH_KEYS = tuple(key for keys in RESEARCH_KEYS.values() for key in keys)
KEYS = (*RESOURCE_KEYS, *BUILDING_KEYS, *UNIT_KEYS, *PLANNING_STRUCTURE_KEYS, *PLANNING_UNIT_KEYS, *_RESEARCH_KEYS)
"""Names of the entries of `shown`, in order."""
_INDEX = {key: index for index, key in enumerate(KEYS)}
_LABEL_INDEX = {key.replace("_", " ").capitalize(): index for index, key in enumerate(KEYS)}
_LINE = re.compile(r"^- ([^:\n]+): ([-\d.]+)$", re.MULTILINE)
_CLOCK = re.compile(r"At (\d+):(\d\d) game time")


@dataclass(frozen=True)
class Order:
    """An action that is wanted until `count` of what `key` counts exist, from a supply or a time in seconds on.

    `after`: keys of structures that must be finished before. `waits`: save money for it.
    """

    action: str
    key: str
    count: int
    supply: int = 0
    seconds: int = 0
    after: tuple[str, ...] = ()
    waits: bool = True


@dataclass(frozen=True)
class Style:
    """Orders by priority, units to train with the wanted supply of each, and the supply to attack with."""

    orders: tuple[Order, ...]
    army: tuple[tuple[str, str, int], ...]
    attack_supply: int
    probes: int = 44
    upgrades: tuple[str, ...] = ()


OPENING = (
    Order("BUILD PYLON", "pylon_count", 1, supply=14),
    Order("BUILD GATEWAY", "gates", 1, supply=15, after=("pylon_count",)),
    Order("BUILD ASSIMILATOR", "gas_buildings_count", 1, supply=16),
    Order("BUILD NEXUS", "nexus_count", 2, supply=20),
    Order("BUILD CYBERNETICSCORE", "cybernetics_core_count", 1, after=("gates",)),
    Order("BUILD ASSIMILATOR", "gas_buildings_count", 2, supply=20),
    Order("BUILD PYLON", "pylon_count", 2, supply=21),
    Order("RESEARCH WARPGATERESEARCH", "warpgate_research_status", 1, after=("cybernetics_core_count",)),
)
BATTERIES = (
    Order("BUILD FORGE", "forge_count", 1, seconds=230, after=("pylon_count",)),
    Order("BUILD SHIELDBATTERY", "shield_battery_count", 2, seconds=240, after=("forge_count",), waits=False),
    Order("BUILD PHOTONCANNON", "photon_cannon_count", 1, seconds=270, after=("forge_count",), waits=False),
)
GATEWAY_STYLE = Style(
    orders=(
        *OPENING,
        Order("BUILD GATEWAY", "gates", 3, seconds=180, after=("cybernetics_core_count",)),
        Order("BUILD TWILIGHTCOUNCIL", "twilight_council_count", 1, seconds=215, after=("cybernetics_core_count",)),
        *BATTERIES,
        Order("RESEARCH CHARGE", "charge_research_status", 1, after=("twilight_council_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 4, seconds=230),
        Order("BUILD GATEWAY", "gates", 6, seconds=300, after=("cybernetics_core_count",)),
        Order("BUILD NEXUS", "nexus_count", 3, seconds=330),
        Order("BUILD TEMPLARARCHIVE", "templar_archives_count", 1, seconds=420, after=("twilight_council_count",)),
        Order("BUILD GATEWAY", "gates", 8, seconds=420, after=("cybernetics_core_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 6, seconds=400),
        Order("BUILD NEXUS", "nexus_count", 4, seconds=600),
        Order("BUILD GATEWAY", "gates", 12, seconds=600, after=("cybernetics_core_count",)),
    ),
    army=(
        ("TRAIN HIGHTEMPLAR", "high_templar_count", 8),
        ("TRAIN STALKER", "stalker_count", 24),
        ("TRAIN ZEALOT", "Zealot_count", 90),
    ),
    attack_supply=60,
    probes=56,
    upgrades=("GROUNDWEAPONS", "GROUNDARMORS"),
)
ROBOTICS_STYLE = Style(
    orders=(
        *OPENING,
        Order("BUILD ROBOTICSFACILITY", "robotics_facility_count", 1, seconds=120, after=("cybernetics_core_count",)),
        Order("BUILD GATEWAY", "gates", 3, seconds=190, after=("cybernetics_core_count",)),
        *BATTERIES,
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 4, seconds=200),
        Order("BUILD ROBOTICSBAY", "robotics_bay_count", 1, seconds=300, after=("robotics_facility_count",)),
        Order("BUILD NEXUS", "nexus_count", 3, seconds=330),
        Order("BUILD ROBOTICSFACILITY", "robotics_facility_count", 2, seconds=310, after=("cybernetics_core_count",)),
        Order(
            "RESEARCH EXTENDEDTHERMALLANCE", "extended_thermal_lance_research_status", 1, after=("robotics_bay_count",)
        ),
        Order("BUILD TWILIGHTCOUNCIL", "twilight_council_count", 1, seconds=400, after=("cybernetics_core_count",)),
        Order("RESEARCH CHARGE", "charge_research_status", 1, after=("twilight_council_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 6, seconds=380),
        Order("BUILD GATEWAY", "gates", 6, seconds=360, after=("cybernetics_core_count",)),
        Order("BUILD NEXUS", "nexus_count", 4, seconds=540),
        Order("BUILD ROBOTICSFACILITY", "robotics_facility_count", 3, seconds=610, after=("cybernetics_core_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 8, seconds=560),
        Order("BUILD GATEWAY", "gates", 10, seconds=610, after=("cybernetics_core_count",)),
    ),
    army=(
        ("TRAIN COLOSSUS", "colossus_count", 36),
        ("TRAIN IMMORTAL", "immortal_count", 40),
        ("TRAIN STALKER", "stalker_count", 30),
        ("TRAIN ZEALOT", "Zealot_count", 60),
    ),
    attack_supply=70,
    probes=62,
    upgrades=("GROUNDWEAPONS", "GROUNDARMORS"),
)
STARGATE_STYLE = Style(
    orders=(
        *OPENING,
        Order("BUILD STARGATE", "statgate_count", 1, seconds=120, after=("cybernetics_core_count",)),
        *BATTERIES,
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 4, seconds=190),
        Order("BUILD GATEWAY", "gates", 2, seconds=240, after=("cybernetics_core_count",)),
        Order("BUILD STARGATE", "statgate_count", 3, seconds=300, after=("cybernetics_core_count",)),
        Order("BUILD NEXUS", "nexus_count", 3, seconds=330),
        Order("BUILD FLEETBEACON", "fleet_beacon_count", 1, seconds=360, after=("statgate_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 6, seconds=380),
        Order("BUILD GATEWAY", "gates", 4, seconds=420, after=("cybernetics_core_count",)),
        Order("BUILD NEXUS", "nexus_count", 4, seconds=560),
        Order("BUILD STARGATE", "statgate_count", 4, seconds=610, after=("cybernetics_core_count",)),
        Order("BUILD ASSIMILATOR", "gas_buildings_count", 8, seconds=570),
    ),
    army=(
        ("TRAIN CARRIER", "Carrier_count", 60),
        ("TRAIN VOIDRAY", "voidray_count", 60),
        ("TRAIN STALKER", "stalker_count", 12),
        ("TRAIN ZEALOT", "Zealot_count", 40),
    ),
    attack_supply=80,
    probes=62,
    upgrades=("AIRWEAPONS", "AIRARMORS"),
)
STYLES = {"gateway": GATEWAY_STYLE, "robotics": ROBOTICS_STYLE, "stargate": STARGATE_STYLE}
SUPPLY = {"Zealot": 2, "stalker": 2, "high": 2, "immortal": 4, "colossus": 6, "voidray": 4, "Carrier": 6}


class Reading:
    """Numbers of an observation, read from its text or vector."""

    def __init__(self, shown: np.ndarray, seconds: float, mask: np.ndarray) -> None:
        self.shown, self.seconds, self.mask = shown, seconds, mask
        self.minerals, self.gas = shown[_INDEX["mineral"]], shown[_INDEX["gas"]]

    def count(self, key: str) -> float:
        """Finished and under way; a research counts as soon as it has begun."""
        if key == "gates":
            return self.count("gateway_count") + self.shown[_INDEX["warp_gate_count"]]
        value = self.shown[_INDEX[key]]
        return float(value > 0) if key.endswith("status") else float(value)

    def finished(self, key: str) -> bool:
        """Return whether structures of these keys are finished."""
        if key == "gates":
            return self.finished("gateway_count") or self.finished("warp_gate_count")
        underway = self.shown[_INDEX[f"planning_{key.replace('statgate', 'stargate')}"]]
        return bool(self.shown[_INDEX[key]] > underway)

    def can(self, action: str) -> bool:
        """Return whether an action can be carried out."""
        return bool(self.mask[ACTION_ID[action]])

    def lacks_money(self, action: str) -> bool:
        """Return whether an action lacks only money."""
        number = ACTION_ID[action]
        return bool(self.minerals < PRICE_MINERALS[number] or self.gas < PRICE_GAS[number])


def choose(style: Style, reading: Reading) -> str:
    """The action of a style."""
    see = reading.count
    used, left, cap = see("supply_used"), see("supply_left"), see("supply_cap")
    coming = 8 * see("planning_pylon_count") + 15 * see("planning_nexus_count")
    production = (
        2 * see("gates") + 4 * see("robotics_facility_count") + 4 * see("statgate_count") + 2 * see("nexus_count")
    )
    if used >= 20 and cap + coming < 200 and left + coming < min(16, production) and reading.can("BUILD PYLON"):
        return "BUILD PYLON"
    probes = see("probe_count") + see("planning_probe_count")
    if reading.can("CHRONOBOOST NEXUS") and probes < 40:
        return "CHRONOBOOST NEXUS"
    if see("army_supply") >= style.attack_supply and reading.can("MULTI-ATTACK") and reading.seconds % 20 < 2:
        return "MULTI-ATTACK"
    if see("army_supply") and see("supply_used") >= 190 and reading.can("MULTI-ATTACK") and reading.seconds % 20 < 2:
        return "MULTI-ATTACK"
    if probes < min(style.probes, 22 * see("nexus_count")) and reading.can("TRAIN PROBE"):
        return "TRAIN PROBE"
    if see("high_templar_count") >= 2 and reading.can("MORPH ARCHON"):
        return "MORPH ARCHON"
    army = _train(style, reading)
    for order in style.orders:
        if see(order.key) >= order.count or used < order.supply or reading.seconds < order.seconds:
            continue
        if not all(reading.finished(key) for key in order.after):
            continue
        if reading.can(order.action):
            return order.action
        threatened = see("army_supply") < reading.seconds / 30
        if order.waits and reading.lacks_money(order.action) and not (army and threatened):
            return "EMPTY ACTION"
    if army:
        return army
    for line in style.upgrades:
        for level in (1, 2, 3):
            action = f"RESEARCH PROTOSS{line}LEVEL{level}"
            if reading.can(action) and reading.seconds > 300:
                return action
    return "EMPTY ACTION"


def _train(style: Style, reading: Reading) -> str | None:
    """The unit of which most is missing, by share of what is wanted; None where none can be trained."""
    best, least = None, 1.0
    for action, key, wanted in style.army:
        each = SUPPLY[key.split("_")[0]]
        share = each * (reading.count(key) + reading.count(f"planning_{key}")) / wanted
        if reading.can(action) and share < least:
            best, least = action, share
    return best


def read_text(prompt: str, candidates: tuple[str, ...]) -> Reading:
    """Numbers from a prompt, and the mask from its candidates."""
    shown = np.zeros(NUM_SHOWN)
    frame = prompt.split("\nEnemy:\n")[0].split("Changes since")[0]
    for label, value in _LINE.findall(frame):
        if (index := _LABEL_INDEX.get(label)) is not None:
            shown[index] = float(value)
    clock = _CLOCK.match(prompt)
    seconds = 60 * int(clock[1]) + int(clock[2]) if clock else 0
    mask = np.zeros(NUM_ACTIONS, bool)
    mask[[ACTION_ID[name] for name in candidates]] = True
    return Reading(shown, seconds, mask)


class ScriptedPlayer(Policy):
    """A policy of one style. Raises ConfigError for an environment that is not text-starcraft with candidates."""

    def __init__(self, spec: EnvSpec, style: str) -> None:
        super().__init__(spec)
        self.style = STYLES[style]
        if spec.name.partition("/")[0] != "text-starcraft":
            raise ConfigError(
                f"this agent plays text-starcraft only, and the environment is {spec.name!r}; choose "
                "text-starcraft/pvz-1 or another of `marl list envs`"
            )
        self.reads_text = not spec.discrete

    def encode(self, obs: Obs) -> Inputs:
        """Return the observation as numbers and candidates."""
        from marl.envs.text_starcraft.env import NUMBER_SCALE

        if self.reads_text:
            if obs.candidates is None:
                raise ConfigError(f"{self.spec.name}: this agent needs candidates; leave candidates alone")
            pairs = zip(obs.agents, obs.candidates, strict=True)
            rows = [[read_text(*agent) for agent in zip(*pair, strict=True)] for pair in pairs]
        else:
            numbers = np.rint(obs.agents / NUMBER_SCALE)
            assert obs.action_mask is not None
            pairs = zip(numbers, obs.action_mask, strict=True)
            rows = [
                [Reading(row[1 : 1 + NUM_SHOWN], row[0], mask) for row, mask in zip(*pair, strict=True)]
                for pair in pairs
            ]
        action = torch.tensor([[ACTION_ID[choose(self.style, agent)] for agent in row] for row in rows])
        return {"action": action, "alive": torch.as_tensor(obs.alive)}

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:  # noqa: ARG002
        """Return the scripted actions, with no loss terms."""
        chosen = inputs["action"]  # (E, N)
        exists = inputs["alive"].unsqueeze(-1)
        zeros = torch.zeros(exists.shape)
        nodes = Nodes(chosen.unsqueeze(-1), exists, torch.zeros_like(exists))
        action = chosen.numpy()
        if self.reads_text:
            action = np.array([[ACTIONS[number] for number in row] for row in action.tolist()], dtype=object)
        return Decision(action, nodes, zeros, zeros)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Raises NotImplementedError: the policy does not learn."""
        raise NotImplementedError("this agent does not learn")

    def value(self, inputs: Inputs) -> Tensor:
        """Return zeros (E, N)."""
        return torch.zeros(inputs["alive"].shape)


@register_agent("starcraft-gateway", trains=False, summary="Text StarCraft by script: zealots, stalkers and archons")
def make_gateway(spec: EnvSpec, options: NoOptions) -> ScriptedPlayer:  # noqa: ARG001 - the interface of factories
    """Return a player with a gateway army."""
    return ScriptedPlayer(spec, "gateway")


@register_agent("starcraft-robotics", trains=False, summary="Text StarCraft by script: immortals and colossi")
def make_robotics(spec: EnvSpec, options: NoOptions) -> ScriptedPlayer:  # noqa: ARG001 - the interface of factories
    """Return a player with a robotics army."""
    return ScriptedPlayer(spec, "robotics")


@register_agent("starcraft-stargate", trains=False, summary="Text StarCraft by script: void rays and carriers")
def make_stargate(spec: EnvSpec, options: NoOptions) -> ScriptedPlayer:  # noqa: ARG001 - the interface of factories
    """Return a player with a stargate army."""
    return ScriptedPlayer(spec, "stargate")
