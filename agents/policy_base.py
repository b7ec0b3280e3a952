"""Base class and options of the policies that read vector observations.

Shape legend: B rows (environments, or steps x environments), E environments, N agents, D observation features,
L slots of an action, A actions.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from marl.agents.heads import GaussianHead, Head, MixedHead
from marl.errors import ConfigError
from marl.objective import RowIndex
from marl.policy import Policy
from marl.types import EnvSpec, Inputs, Nodes, Obs
from marl.value_norm import RunningMoments

MIN_SPLIT_ROWS = 4096
"""Agent rows up to which an update on a CPU is one pass. A larger batch is cut into `min_passes` or more."""
MAX_PASS_ROWS = 8192
"""Agent rows beyond which a larger pass is no faster on a CPU."""


MIN_INIT_STD = 1e-4
"""Least initial standard deviation: below it, probabilities of actions overflow in an update."""


@dataclass(frozen=True)
class VectorOptions:
    """Options of all agents that read vector observations."""

    bptt_steps: int = 0
    """Steps of truncated backpropagation through time in a recurrent network (GRU); must divide rollout_steps. 0 is no
    recurrence; published: 10. With recurrence mappo, ippo and mat-dec do not read entity observations as such."""
    agent_id: bool = True
    """Append the agent's one-hot identity to its observation. Entity observations never get one."""
    normalize_observations: bool = False
    """Standardize observations by running mean and variance, which are saved with the weights."""
    observation_layer_norm: bool = True
    """LayerNorm on each observation, as in MAPPO's and MAT's released code. It hides the mean and the scale of an
    observation, which matters where an observation has few features. Entity observations always get it."""
    max_std: float = 0.5
    """Upper bound of the standard deviation of continuous actions, in units where the action space is [-1, 1]."""
    init_std: float = 0.3655
    """Initial standard deviation of continuous actions."""

    def __post_init__(self) -> None:
        if self.bptt_steps < 0:
            raise ConfigError(
                f"bptt_steps={self.bptt_steps} is negative. Give a number of steps, usually 8 to 16, or 0 for none"
            )
        if not 0.0 < self.max_std < float("inf"):
            raise ConfigError(f"max_std={self.max_std} is not a positive number. Give one, usually .5")
        if not MIN_INIT_STD <= self.init_std < self.max_std:
            raise ConfigError(
                f"init_std={self.init_std} is not between {MIN_INIT_STD} and max_std={self.max_std}. Give a value "
                "between them"
            )


class VectorPolicy(Policy):
    """Base of the policies over vector observations: encoding, agent identity, normalization, micro-batches.

    Rollouts store raw observations. They are normalized on the way into the network. The running moments are part of
    the weights and change only between updates.
    """

    head: Head
    identity: Tensor
    min_passes = 1
    """Forward passes, at least, of an update on more than a small batch. More passes take less memory."""

    def __init__(self, spec: EnvSpec, agent_id: bool, normalize: bool) -> None:
        super().__init__(spec)
        if not spec.observation_sizes:
            kind = type(spec.observation_space).__name__
            raise ConfigError(
                f"{spec.name} has {kind} observations, and this agent reads Box observations only. Use another agent"
            )
        if spec.entities is not None and normalize:
            raise ConfigError(
                f"normalize_observations=True does not fit the entity observations of {spec.name}, whose entities vary "
                "in number. Leave it out"
            )
        self.agent_id = agent_id and spec.entities is None
        self.moments = RunningMoments(spec.num_agents, spec.observation_size) if normalize else None
        self.register_buffer("identity", torch.eye(spec.num_agents), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.identity.device

    @property
    def feature_size(self) -> int:
        """Width of what `features` returns."""
        return self.spec.observation_size + (self.spec.num_agents if self.agent_id else 0)

    def encode(self, obs: Obs) -> Inputs:
        """Return what the base class returns, with the mask as the head reads it."""
        inputs = super().encode(obs)
        inputs["action_mask"] = self.head.split_mask(inputs["action_mask"])
        return inputs

    def features(self, inputs: Inputs, agents: slice = slice(None)) -> Tensor:
        """Return normalized observations with the agents' one-hot identity appended, (B, K, D + N).

        `inputs["agents"]` (B, K, D) holds the agents of the slice `agents`, by default all.
        """
        x = inputs["agents"]
        if self.moments is not None:
            x = self.moments(x, agents)
        if self.agent_id:
            x = torch.cat([x, self.identity[agents].expand(*x.shape[:-1], -1)], -1)
        return x

    def nodes(self, inputs: Inputs, action: Tensor, order: Tensor | None = None) -> Nodes:
        """Return the nodes of `action` (E, N, L). Dead agents and padded dimensions have none."""
        mask = self.head.slot_mask(inputs["alive"], inputs["action_mask"])
        return Nodes(action, mask, mask & self.head.has_choice(inputs["action_mask"]), order)

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Add a rollout's observations (B, N, D) to the running moments, where agents have nodes."""
        if self.moments is not None:
            self.moments.update(inputs["agents"], nodes.node_mask.any(-1))

    def metrics(self, inputs: Inputs, nodes: Nodes) -> dict[str, float]:  # noqa: ARG002
        """Return the smallest and the largest standard deviation of continuous actions, if there are any."""
        head = self.head.gaussian if isinstance(self.head, MixedHead) else self.head
        if not isinstance(head, GaussianHead):
            return {}
        with torch.no_grad():
            std = head.std()
        return {"policy/std_min": float(std.min()), "policy/std_max": float(std.max())}

    def num_evaluated(self, nodes: Nodes) -> int:
        """Return the number of agents per row whose features `evaluate` computes."""
        return nodes.node_mask.shape[1]

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> Sequence[RowIndex]:
        """Return even slices of the batch: of `rows` rows, or if `rows` is 0 of a size that is fast on a CPU."""
        batch = len(nodes.node_mask)
        total = batch * self.num_evaluated(nodes)
        if not rows and total > MIN_SPLIT_ROWS and nodes.node_mask.device.type == "cpu":
            rows = -(-batch // max(self.min_passes, -(-total // MAX_PASS_ROWS)))
        return super().micro_batches(inputs, nodes, rows, divisor)


def active_agents(mask: Tensor) -> list[bool]:
    """Return for each agent (N,) if it has a node anywhere in `mask` (B, N, L)."""
    return mask.any(-1).any(0).tolist()


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


def weights_version(parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
    """Return a version that differs once a parameter was changed in place or replaced.

    Fused optimizers do not count up the version of what they change, so the steps of all optimizers count too. Writing
    to `parameter.data` in place is not noticed.
    """
    version = [_optimizer_steps]
    for parameter in parameters:
        version += [parameter._version, parameter.data_ptr()]
    return tuple(version)


@contextmanager
def no_onednn() -> Iterator[None]:
    """Turn oneDNN off inside the context. One call of its GELU takes five times as long as a hundred rows of ours."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
