"""Data types shared by environments, agents and the core.

Shape legend, used in every public signature and trailing comment:

    T step   E environment   N agent   L slot (a decision inside one agent's action)
    A discrete actions or action dimensions   D feature   S state   V vocabulary   K subset

A *node* is one decision, indexed (T, E, N, L): an agent's discrete action, one torque of a
continuous action, or one token of a text action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium
import numpy as np

from marl.errors import EnvironmentContractError

if TYPE_CHECKING:  # environments and the game server start without torch, which takes over a second to import
    from torch import Tensor

Inputs: TypeAlias = "dict[str, Tensor]"
"""Result of `Policy.encode`: tensors with leading axis E."""

ROUNDING = 1e-5
"""Tolerance of observation bounds, relative to their size or to 1, whichever is larger."""


@dataclass(frozen=True)
class EntityLayout:
    """Layout of an entity observation with a variable number of entities.

    `blocks`: (name, rows, width) of its parts in their order. A block named "own" describes the agent itself. The
    others hold one entity per row, zeros if it is not visible. The last `num_targeted` actions target the rows of block
    `target`, in their order. If the agent's own feature `healer_flag` is set, they target the rows of `alt_target`.
    """

    blocks: tuple[tuple[str, int, int], ...]
    num_targeted: int
    target: str
    healer_flag: int
    alt_target: str

    @property
    def width(self) -> int:
        """Width of the whole observation."""
        return sum(rows * width for _, rows, width in self.blocks)

    def features(self) -> dict[str, int]:
        """Return the number of features of an entity by the name of its blocks."""
        names = dict.fromkeys(name for name, _, _ in self.blocks)
        return {name: sum(width for other, _, width in self.blocks if other == name) for name in names}


@dataclass(frozen=True)
class EnvSpec:
    """Specification of an environment. The agents are fixed; who is alive is part of each observation.

    `observation_space` of one agent: a Box (D,) padded to the widest agent, or Text.
    `action_space` of one agent: Discrete(A), a Box (A,) padded to the widest agent, or Text. A mixed team of Discrete
    and Box agents has a Tuple of all N spaces, without padding.
    `observation_sizes` and `action_sizes` (N,): widths before padding (default: no padding).
    `state_space`: a Box (S,) or None. `max_steps`: primitive steps after which an episode is truncated.
    `team_reward`: every agent always receives the same reward.
    `agent_types` (N,): the type of each agent. Agents of one type are interchangeable.
    `words`: the vocabulary of a text environment, for models built from it.
    `entities`: layout of observations with any number of entities, or None.
    `conversation`: each text observation is the messages since the agent's last action, see marl.messages.
    """

    name: str
    agents: tuple[str, ...]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_steps: int | None
    state_space: gymnasium.spaces.Box | None = None
    team_reward: bool = True
    agent_types: tuple[str, ...] = ()
    observation_sizes: tuple[int, ...] = ()
    action_sizes: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    entities: EntityLayout | None = None
    conversation: bool = False

    def __post_init__(self) -> None:
        count = len(self.agents)
        if not count:
            raise EnvironmentContractError(f"{self.name}: agents is empty; name one agent or more")
        if isinstance(self.action_space, gymnasium.spaces.Tuple):
            self._require_team(self.action_space.spaces)
        if not self.agent_types:
            object.__setattr__(self, "agent_types", ("agent",) * count)
        if not self.observation_sizes and isinstance(self.observation_space, gymnasium.spaces.Box):
            object.__setattr__(self, "observation_sizes", self.observation_space.shape * count)
        if not self.action_sizes and not isinstance(self.action_space, gymnasium.spaces.Text):
            object.__setattr__(self, "action_sizes", tuple(self._width(space) for space in self.action_spaces))
        if self.entities is not None and self.entities.width != self.observation_size:
            raise EnvironmentContractError(
                f"{self.name}: its entities are {self.entities.width} wide, and an observation "
                f"{self.observation_size}; mend the blocks"
            )

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.agents)

    @property
    def discrete(self) -> bool:
        """Every agent has discrete actions."""
        return isinstance(self.action_space, gymnasium.spaces.Discrete)

    @property
    def continuous(self) -> bool:
        """Every agent has continuous actions."""
        return isinstance(self.action_space, gymnasium.spaces.Box)

    @property
    def mixed(self) -> bool:
        """Some agents have discrete actions and others continuous ones."""
        return isinstance(self.action_space, gymnasium.spaces.Tuple)

    @property
    def action_spaces(self) -> tuple[gymnasium.Space, ...]:
        """Action space of each agent, (N,); padded, except in a mixed team."""
        if isinstance(self.action_space, gymnasium.spaces.Tuple):
            return tuple(self.action_space.spaces)
        return (self.action_space,) * self.num_agents

    @property
    def action_size(self) -> int:
        """A: the number of discrete actions, or of action dimensions; in a mixed team the largest of all."""
        return max(self._width(space) for space in self.action_spaces)

    def _require_team(self, spaces: tuple[gymnasium.Space, ...]) -> None:
        """Raise EnvironmentContractError unless these are N spaces of both kinds."""
        kinds = [type(space).__name__ for space in spaces]
        if len(kinds) != self.num_agents or set(kinds) != {"Discrete", "Box"}:
            raise EnvironmentContractError(
                f"{self.name}: action_space is the Tuple of {', '.join(kinds)} for {self.num_agents} agents; give one "
                "space per agent, both Discrete and Box among them; if all are of one kind, give the widest space alone"
            )

    def _width(self, space: gymnasium.Space) -> int:
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(space.n)
        if isinstance(space, gymnasium.spaces.Box):
            return int(space.shape[0])
        raise EnvironmentContractError(
            f"{self.name}: actions {space} are not supported; give Discrete, Box or Text, or the Tuple of "
            "a team's Discrete and Box spaces"
        )

    @property
    def observation_size(self) -> int:
        """D, the padded width of one agent's observation. Raises TypeError for text."""
        if isinstance(self.observation_space, gymnasium.spaces.Box):
            return int(self.observation_space.shape[0])
        raise TypeError(f"{self.name}: a {type(self.observation_space).__name__} observation has no size")

    @property
    def state_size(self) -> int:
        """S, or 0 without a state."""
        return 0 if self.state_space is None else int(self.state_space.shape[0])


def rounded_bounds(box: gymnasium.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a Box, widened by the rounding errors of numbers of their size."""
    low, high = box.low, box.high
    return low - ROUNDING * np.maximum(1.0, np.abs(low)), high + ROUNDING * np.maximum(1.0, np.abs(high))


@dataclass(frozen=True)
class Obs:
    """One observation of all agents. In a vector environment every array has a leading axis E.

    `agents`: (N, D) float32, or a tuple of N strings. `alive`: (N,) bool. `action_mask`: (N, A) bool,
    True where an action is available (discrete) or an action dimension exists (continuous); a dead
    agent keeps at least one True. `state`: (S,) float32 or None. `candidates`: per agent, the allowed
    text actions, or None.

    Arrays may be views of the environment's buffers, valid until its next `step` or `reset`.
    """

    agents: Any
    alive: np.ndarray
    action_mask: np.ndarray | None = None
    state: np.ndarray | None = None
    candidates: Any = None


@dataclass(frozen=True)
class Step:
    """One transition of one environment: `reward` (N,) float32, flat scalar `info`.

    `terminated` and `truncated` are never both True: an episode that truly ends at its time limit is terminated.
    `duration`: primitive steps of a macro action. The link to the next step is discounted that many times (semi-Markov
    decision process).

    `agent_truncated` (N,) bool, or None: agents that are truncated in this step while the episode goes on. They are not
    alive in `obs`. `final` is then the observation of this step in which they are still alive; it bootstraps their
    value. If the whole episode ends, both are None and `obs` is the last observation: truncated agents are alive in it,
    terminated ones are not.

    `restarted`: the simulator was lost in this step. The step is not learned from: it is truncated, its reward is zero
    and `obs` is the observation before it.

    All arrays may be views of the environment's buffers, valid until its next `step` or `reset`.
    """

    obs: Obs
    reward: np.ndarray
    terminated: bool
    truncated: bool
    info: Mapping[str, float] = field(default_factory=dict)
    duration: int = 1
    agent_truncated: np.ndarray | None = None
    final: Obs | None = None
    restarted: bool = False


@dataclass(frozen=True)
class Final:
    """Last observation of each of the K episodes that ended in this step, or of agents that were truncated in it.

    `env`: (K,) indices; `obs`: leading axis K; `info`: K dictionaries of flat scalars.
    """

    env: np.ndarray
    obs: Obs
    info: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class VectorStep:
    """One transition of E environments, reset in the same step where they ended.

    `obs`: leading axis E; the first observation of the next episode if one ended.
    `reward`: (E, N) float32. `terminated`, `truncated`: (E,) bool. `final`: None if no episode ended.
    `restarted`: (E,) bool, or None: environments whose worker died and was restarted in this step. Their transition is
    a truncation whose final observation is the one before it.
    `duration`: (E,) int64 primitive steps, or None if all are 1.
    `agent_truncated`: (E, N) bool, agents that are truncated alone as in `Step`, or None. `agent_final`: the
    observations in which they are still alive, with empty infos.

    All arrays may be views of buffers that the next `step`, `reset` or `reset_at` overwrites.
    """

    obs: Obs
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: Final | None = None
    restarted: np.ndarray | None = None
    duration: np.ndarray | None = None
    agent_truncated: np.ndarray | None = None
    agent_final: Final | None = None


@dataclass(frozen=True)
class Nodes:
    """Decisions of one step.

    `action`: (E, N, L), int64 or float32. `node_mask`: (E, N, L) bool, the node exists (values, backup).
    `loss_mask`: (E, N, L) bool, the policy had a choice (loss, entropy, KL, advantage statistics). A node with a single
    available action or token exists, and trains only its value. `order`: (E, N) int64, the order in which the agents
    decided, or None for 0..N-1.
    """

    action: Tensor
    node_mask: Tensor
    loss_mask: Tensor
    order: Tensor | None = None


@dataclass(frozen=True)
class Decision:
    """Decision of a policy: the environment's `action`, (E, N) int64 or (E, N, A) float32, and its nodes.

    The action of a mixed team is (E, N, A) float32; entry 0 of a discrete agent is the index of its action.
    `log_prob`: (E, N, L). `value`: (E, N, L), or (E, N, 1) if a value belongs to a whole action, in the critic's own
    (normalized) units. `behavior_log_prob`: (E, N, L) log-probability under the sampling distribution; None if that is
    the policy itself. `reference_log_prob`: (E, N, L) log-probability under a frozen reference policy, or None.
    `recurrent_state`: (E, R, W) state for the next step, see marl.recurrent_state. `node_reward`: (E, N, L) reward of
    each node that its Q value does not include, or None.
    """

    action: Any
    nodes: Nodes
    log_prob: Tensor
    value: Tensor
    behavior_log_prob: Tensor | None = None
    reference_log_prob: Tensor | None = None
    recurrent_state: Tensor | None = None
    node_reward: Tensor | None = None


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of stored nodes under the present policy: `log_prob`, `entropy` (E, N, L); `value` as in Decision.

    `policy_loss`: (E, N, L) expectation over all actions of a node, for objectives that do not use the sampled action;
    None for all others.
    """

    log_prob: Tensor
    entropy: Tensor
    value: Tensor
    policy_loss: Tensor | None = None
