"""Two agents that share one base: one for the economy, one for the army."""

import numpy as np

from marl.envs.text_starcraft.data.names import ACTIONS

ECONOMY, ARMY = "economy", "army"
TEAM = (ECONOMY, ARMY)
ANYBODY = ("EMPTY ACTION",)


def _belongs_to_army(action: str) -> bool:
    verb, _, noun = action.partition(" ")
    trains = verb in ("TRAIN", "MORPH") and noun != "PROBE"
    return trains or verb in ("SCOUTING", "MULTI-ATTACK", "MULTI-RETREAT") or noun in ("PHOTONCANNON", "SHIELDBATTERY")


ROLE_OF = tuple(None if action in ANYBODY else ARMY if _belongs_to_army(action) else ECONOMY for action in ACTIONS)
"""Agent of each action; None for actions of both."""

ROLE_LINES = {
    ECONOMY: "You are the economy agent: you train probes, build, research and use chrono boost. The army agent trains "
    "and leads the army.\n",
    ARMY: "You are the army agent: you train and lead the army, build cannons and batteries, and scout. The economy "
    "agent does the rest.\n",
}


def role_masks(agents: tuple[str, ...]) -> np.ndarray:
    """Return the actions (N, 72) uint8 of each agent; all of them for an agent without a role."""
    return np.array([[role in (None, agent) or agent not in TEAM for role in ROLE_OF] for agent in agents], np.uint8)


def other_role(action: int) -> str:
    """Return the reason why an agent of a team cannot take the other one's action."""
    return f"an action of the {ROLE_OF[action]} agent"
