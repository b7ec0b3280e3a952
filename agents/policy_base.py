"""Parts that the agents share: initialization, attention, action heads, and the base of policies over vectors."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from marl.agents.parameter_sharing import NetworkSets
from marl.errors import ConfigError, NonFiniteError
from marl.objective import RowIndex
from marl.policy import Policy
from marl.types import EnvSpec, Inputs, Nodes, Obs
from marl.value_norm import RunningMoments

RELU_GAIN = 2.0**0.5
SMALL_GAIN = 0.01
MIN_SPLIT_ROWS = 4096
"""Agent rows that an update takes in one pass on a CPU; a larger batch is cut in at least `min_passes`."""
MAX_PASS_ROWS = 8192
"""Agent rows beyond which a CPU gains no more from larger passes."""

SOFTMAX_WIDTH = 16


@dataclass(frozen=True)
class VectorOptions:
    """What all agents that read vectors have in common."""

    bptt_steps: int = 0
    """Remember earlier steps of an episode in a recurrent network (GRU), whose gradient runs through this many steps
    (published: 10); must divide rollout_steps. 0 remembers nothing. With it mappo, ippo and mat-dec read entities as
    plain numbers, and fit no team of another size."""
    agent_id: bool = True
    """Append the agent's one-hot identity to its observation, unless that is made of entities."""
    normalize_observations: bool = False
    """Standardize observations by running moments, kept with the weights."""
    max_std: float = 0.5
    """Upper bound of the standard deviation of continuous actions, which lie in [-1, 1]."""
    init_std: float = 0.3655
    """Standard deviation of continuous actions at the start."""

    def __post_init__(self) -> None:
        if self.bptt_steps < 0:
            raise ConfigError(
                f"bptt_steps is {self.bptt_steps}; give a number of steps, usually 8 to 16, or 0 for none"
            )
        if not 0.0 < self.max_std < float("inf"):
            raise ConfigError(f"max_std is {self.max_std}; give a positive number, usually .5")
        if not 0.0 < self.init_std < self.max_std:
            raise ConfigError(
                f"init_std is {self.init_std}; it must lie between 0 and max_std, which is {self.max_std}"
            )


def linear(inputs: int, outputs: int, gain: float = RELU_GAIN, bias: bool = True) -> nn.Linear:
    """A linear layer with orthogonal weights of the given gain and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, gain: float) -> nn.Sequential:
    """LayerNorm on the input, then linear, GELU and LayerNorm per hidden layer, and a linear head."""
    layers: list[nn.Module] = [nn.LayerNorm(inputs)]
    for width in hidden:
        layers += [linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
        inputs = width
    return nn.Sequential(*layers, linear(inputs, outputs, gain))


class SharedActor(nn.Sequential):
    """One network for all agents."""

    def forward(self, input: Tensor, present: Sequence[bool] | None = None) -> Tensor:  # noqa: A002, ARG002
        return super().forward(input)


def make_actors(inputs: int, hidden: tuple[int, ...], outputs: int, places: Sequence[int]) -> SharedActor | NetworkSets:
    """Actors from features (..., N, D) to the parameters of their distributions, (..., N, A); see `group_places`."""
    networks = [mlp(inputs, hidden, outputs, SMALL_GAIN) for _ in range(max(places) + 1)]
    return NetworkSets(networks, places) if len(networks) > 1 else SharedActor(*networks[0])


def active_agents(mask: Tensor) -> list[bool]:
    """Which agents have a node in `mask` (B, N, L)."""
    return mask.any(-1).any(0).tolist()


class CategoricalHead(nn.Module):
    """One discrete action per agent, L = 1. Parameters of the distribution: logits (..., A)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.slots = 1

    def split_mask(self, mask: Tensor) -> Tensor:
        """The mask as the other methods want it, from that of the environment (E, N, A)."""
        return mask

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        """Gumbel noise (*shape, A): with it drawn beforehand, sampling is a deterministic map."""
        exponential = torch.empty((*shape, self.size), device=device).exponential_(generator=generator)
        return -exponential.log()

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(..., A): what the logits lack for `pick`; the Gumbel noise, or nothing, and -inf where unavailable."""
        offset = torch.zeros(mask.shape, device=mask.device) if noise is None else noise
        return offset.masked_fill(~mask, float("-inf"))

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the shape is the Gaussian head's
        """(..., 1): the Gumbel-max sample, or without noise the most probable action."""
        return perturbed.argmax(-1, keepdim=True)

    def log_prob(self, logits: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return masked_log_softmax(logits, mask).gather(-1, action)

    def evaluate(
        self,
        logits: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,  # noqa: ARG002 - this and the next are the Gaussian head's
        present: Sequence[bool] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of `action` and entropy, each (..., 1)."""
        # A finite fill instead of minus infinity: zero times it is zero, in the entropy and in its gradient.
        logits = pad_softmax(logits.masked_fill(~mask, -1e9), -1e9)
        log_probs = F.log_softmax(logits, -1)
        entropy = -(logits.softmax(-1) * log_probs).sum(-1, keepdim=True)
        return log_probs.gather(-1, action), entropy

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the shape is the Gaussian head's
        return alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """(..., 1) bool: more than one action is available."""
        return mask.sum(-1, keepdim=True) > 1

    def to_env(self, action: Tensor) -> np.ndarray:
        """(E, N) int64."""
        return action.squeeze(-1).cpu().numpy()


class GaussianHead(nn.Module):
    """A Normal per action dimension, L = A, in units where the action space is [-1, 1].

    Bounds are (A,), or (N, A) where each agent has its own.

    The standard deviation is `max_std` * sigmoid(log_std), one free parameter per dimension and group of agents
    (`places`, see `group_places`), as in MAT's released code; samples are not squashed, and clipped only on their way
    to the environment. Where there are groups, arguments are (E, N, A), in the agents' order or in `order` (E, N).
    """

    low: Tensor
    high: Tensor
    bounded: Tensor

    def __init__(
        self, low: np.ndarray, high: np.ndarray, max_std: float, init_std: float, places: Sequence[int] = (0,)
    ) -> None:
        super().__init__()
        self.size = self.slots = low.shape[-1]
        self.max_std = max_std
        share = init_std / max_std
        start = torch.full((self.size,), float(np.log(share / (1.0 - share))))
        self.log_std = nn.ParameterList(nn.Parameter(start.clone()) for _ in range(max(places) + 1))
        self.parameter_sets = tuple(places)
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float32), persistent=False)
        self.register_buffer("bounded", self.low.isfinite() & self.high.isfinite(), persistent=False)

    def split_mask(self, mask: Tensor) -> Tensor:
        return mask

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        return torch.randn((*shape, self.size), device=device, generator=generator)

    def std(self, order: Tensor | None = None, present: Sequence[bool] | None = None) -> Tensor:
        """(A,), or where there are groups (N, A), or in an `order` (E, N, A).

        No gradient reaches the deviations of groups with nobody `present`, not even one of zero.
        """
        if len(self.log_std) == 1:
            return self.max_std * torch.sigmoid(self.log_std[0])
        awake = {place for agent, place in enumerate(self.parameter_sets) if present is None or present[agent]}
        log_std = torch.stack(
            [self.log_std[p] if p in awake else self.log_std[p].detach() for p in self.parameter_sets]
        )
        std = self.max_std * torch.sigmoid(log_std)
        return std if order is None else std[order]

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:
        """(..., A): what the means lack for `pick`. Raises NonFiniteError for a deviation of 0, NaN or infinity."""
        log_std = torch.stack(list(self.log_std)).detach()
        bad = ~(log_std.isfinite() & (torch.sigmoid(log_std) > 0.0))
        if bool(bad.any()):
            place, dimension = (int(i) for i in bad.nonzero()[0])
            agents = [agent for agent, own in enumerate(self.parameter_sets) if own == place]
            whose = f"agents {agents}" if len(self.log_std) > 1 else "all agents"
            raise NonFiniteError(
                f"log_std={float(log_std[place, dimension])} of dimension {dimension} of the action of {whose}, which "
                "is no standard deviation above 0. Go back to an earlier checkpoint, and lower --learning-rate or "
                "raise --entropy-coef"
            )
        return torch.zeros(mask.shape, device=mask.device) if noise is None else self.std(order) * noise

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:
        return perturbed.masked_fill(~mask, 0.0)

    def evaluate(
        self,
        mean: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,
        present: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-density of `action` and entropy per dimension, (..., A), zero where padded."""
        std = self.std(order, present)
        entropy = (0.5 + 0.5 * np.log(2 * np.pi) + std.log()).expand_as(mean)
        return log_density(mean, std, action).masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)

    def log_prob(self, mean: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:
        return log_density(mean, self.std(order), action).masked_fill(~mask, 0.0)

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:
        return mask & alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """(..., A) bool: every dimension that exists is free."""
        return mask

    def to_env(self, action: Tensor) -> np.ndarray:
        """(E, N, A) float32: scaled from [-1, 1] where a dimension has two bounds, else cut to the one it has."""
        scaled = self.low + 0.5 * (action.clamp(-1.0, 1.0) + 1.0) * (self.high - self.low)
        free = action.clamp(self.low, self.high)
        return torch.where(self.bounded, scaled, free).cpu().numpy()


def log_density(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """(..., A), of independent Normals with `mean` (..., A) and `std`, which broadcasts to it."""
    return -0.5 * ((action - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)


class MixedHead(nn.Module):
    """A mixed team: L = 1 + A, slot 0 the choice of a discrete agent and those behind the torques of a continuous one.

    Parameters, noise and masks are those of a CategoricalHead and a GaussianHead side by side, and the masks alone say
    which of the two an agent has. Slot 0 of a continuous agent holds the number of choices, and is no node.
    """

    discrete: Tensor

    def __init__(self, spec: EnvSpec, max_std: float, init_std: float, places: Sequence[int]) -> None:
        super().__init__()
        spaces: Any = spec.action_spaces
        discrete = [isinstance(space, gymnasium.spaces.Discrete) for space in spaces]
        self.choices = max(space.n for space, chooses in zip(spaces, discrete, strict=True) if chooses)
        boxes = {i: space for i, space in enumerate(spaces) if not discrete[i]}
        low = np.zeros((len(spaces), max(box.shape[0] for box in boxes.values())), np.float32)
        high = np.zeros_like(low)
        for i, box in boxes.items():
            low[i, : box.shape[0]], high[i, : box.shape[0]] = box.low, box.high
        self.register_buffer("discrete", torch.tensor(discrete).unsqueeze(-1), persistent=False)
        self.choice = CategoricalHead(self.choices)
        self.torque = GaussianHead(low, high, max_std, init_std, places)
        self.size, self.slots, self.width = self.choices + self.torque.size, 1 + self.torque.size, spec.action_size

    def split_mask(self, mask: Tensor) -> Tensor:
        choice, torque = mask[..., : self.choices], mask[..., : self.torque.size]
        return torch.cat([choice & self.discrete, torque & ~self.discrete], -1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is the categorical head's and what the Gaussian one's, of parameters, noise or masks."""
        return x.split([self.choices, self.torque.size], -1)

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        return torch.cat([head.noise(shape, device, generator) for head in (self.choice, self.torque)], -1)

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:
        choice, torque = self.parts(mask)
        drawn = (None, None) if noise is None else self.parts(noise)
        return torch.cat(
            [self.choice.sampling_offset(choice, drawn[0]), self.torque.sampling_offset(torque, drawn[1], order)], -1
        )

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:
        choice, torque = self.parts(mask)
        logits, means = self.parts(perturbed)
        picked = self.choice.argmax_action(logits, choice).masked_fill(~choice.any(-1, keepdim=True), self.choices)
        return torch.cat([picked.to(means.dtype), self.torque.argmax_action(means, torque)], -1)

    def log_prob(self, parameters: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:
        return self.evaluate(parameters, mask, action, order)[0]

    def evaluate(
        self,
        parameters: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,
        present: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability or density, and entropy, of each slot, (..., L); zero where there is none."""
        (choice, torque), (logits, means) = self.parts(mask), self.parts(parameters)
        absent = ~choice.any(-1, keepdim=True)
        index = action[..., :1].long().clamp(max=self.choices - 1)
        chosen = self.choice.evaluate(logits, choice | absent, index)
        turned = self.torque.evaluate(means, torque, action[..., 1:], order, present)
        log_prob, entropy = (
            torch.cat([left.masked_fill(absent, 0.0), right], -1) for left, right in zip(chosen, turned, strict=True)
        )
        return log_prob, entropy

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:
        choice, torque = self.parts(mask)
        return torch.cat([choice.any(-1, keepdim=True), torque], -1) & alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """(..., L) bool."""
        choice, torque = self.parts(mask)
        return torch.cat([self.choice.has_choice(choice), torque], -1)

    def to_env(self, action: Tensor) -> np.ndarray:
        """(E, N, A) float32, entry 0 of a discrete agent being its choice."""
        given = np.zeros((*action.shape[:-1], self.width), np.float32)
        given[..., : self.torque.size] = self.torque.to_env(action[..., 1:])
        chosen, discrete = action[..., 0].cpu().numpy(), self.discrete.squeeze(-1).cpu().numpy()
        given[..., 0] = np.where(discrete, chosen, given[..., 0])
        return given


Head = CategoricalHead | GaussianHead | MixedHead


def sample(head: Head, parameters: Tensor, mask: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Actions and their log-probabilities, (..., L) each, of distributions (..., A); the likeliest without noise."""
    action = head.argmax_action(parameters + head.sampling_offset(mask, noise), mask)
    return action, head.log_prob(parameters, mask, action)


def make_head(spec: EnvSpec, max_std: float, init_std: float, places: Sequence[int] = (0,)) -> Head:
    """The head that fits the action space, with a deviation for each group (`group_places`); ConfigError for one that
    has none."""
    space: Any = spec.action_space
    if spec.discrete:
        return CategoricalHead(spec.action_size)
    if spec.continuous:
        return GaussianHead(space.low, space.high, max_std, init_std, places)
    if spec.mixed:
        return MixedHead(spec, max_std, init_std, places)
    kind = type(spec.action_space).__name__
    raise ConfigError(f"{spec.name} has {kind} actions; this agent acts on Discrete or Box spaces only")


def pad_softmax(x: Tensor, fill: float) -> Tensor:
    """(..., A) with `fill` behind it up to the width from which a CPU's softmax is ten times as fast."""
    missing = SOFTMAX_WIDTH - x.shape[-1]
    return F.pad(x, (0, missing), value=fill) if missing > 0 and x.device.type == "cpu" else x


def softmax(x: Tensor) -> Tensor:
    """Over the last axis."""
    return pad_softmax(x, float("-inf")).softmax(-1)[..., : x.shape[-1]]


def masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over the available actions, (..., A) or wider; -inf elsewhere."""
    return F.log_softmax(pad_softmax(logits.masked_fill(~mask, float("-inf")), float("-inf")), -1)


_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


def weights_version(parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
    """Differs once one of them was changed in place or replaced, by whatever but writing to `parameter.data`.

    Fused optimizers do not count up the version of what they change, so the steps of all optimizers count too.
    """
    marks = [_steps]
    for parameter in parameters:
        marks += [parameter._version, parameter.data_ptr()]
    return tuple(marks)


@contextmanager
def no_onednn() -> Iterator[None]:
    """Without oneDNN, whose GELU takes five times as long to call as a hundred rows take to compute."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class VectorPolicy(Policy):
    """Base of the policies over vector observations: encoding, identity, normalization.

    Observations stay raw in storage and are normalized on the way into the network, so the running
    moments are part of the weights, and change only between updates.
    """

    head: Head
    min_passes = 1
    """Forward passes, at least, of an update on more than a small batch; more of them take less memory."""

    def __init__(self, spec: EnvSpec, agent_id: bool, normalize: bool) -> None:
        super().__init__(spec)
        if not spec.observation_sizes:
            kind = type(spec.observation_space).__name__
            raise ConfigError(f"{spec.name} gives {kind} observations; this agent reads Box observations only")
        if spec.entities is not None and normalize:
            raise ConfigError(
                f"normalize_observations is set, but the observations of {spec.name} are made of entities in any "
                "number; leave it out"
            )
        self.agent_id = agent_id and spec.entities is None
        self.moments = RunningMoments(spec.num_agents, spec.observation_size) if normalize else None
        self.register_buffer("identity", torch.eye(spec.num_agents), persistent=False)

    identity: Tensor

    @property
    def device(self) -> torch.device:
        return self.identity.device

    @property
    def feature_size(self) -> int:
        """The width of what `features` returns."""
        return self.spec.observation_size + (self.spec.num_agents if self.agent_id else 0)

    def encode(self, obs: Obs) -> Inputs:
        """As in the base class, with the mask as the head reads it."""
        inputs = super().encode(obs)
        inputs["action_mask"] = self.head.split_mask(inputs["action_mask"])
        return inputs

    def features(self, inputs: Inputs, agents: slice = slice(None)) -> Tensor:
        """(E, N, D + N): normalized observations with the agents' one-hot identity behind; those in `inputs` are of all
        agents, or of some."""
        x = inputs["agents"]
        if self.moments is not None:
            x = self.moments(x, agents)
        if self.agent_id:
            x = torch.cat([x, self.identity[agents].expand(*x.shape[:-1], -1)], -1)
        return x

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Take a rollout's observations (B, N, D) into the running moments where agents have nodes."""
        if self.moments is not None:
            self.moments.update(inputs["agents"], nodes.node_mask.any(-1))

    def metrics(self, inputs: Inputs, nodes: Nodes) -> dict[str, float]:  # noqa: ARG002
        """Return the smallest and the largest standard deviation of continuous actions, if there are any."""
        head = self.head.torque if isinstance(self.head, MixedHead) else self.head
        if not isinstance(head, GaussianHead):
            return {}
        with torch.no_grad():
            std = head.std()
        return {"policy/std_min": float(std.min()), "policy/std_max": float(std.max())}

    def active(self, nodes: Nodes) -> int:
        """Of how many agents `evaluate` computes features."""
        return nodes.node_mask.shape[1]

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> Sequence[RowIndex]:
        batch = len(nodes.node_mask)
        total = batch * self.active(nodes)
        if not rows and total > MIN_SPLIT_ROWS and nodes.node_mask.device.type == "cpu":
            rows = -(-batch // max(self.min_passes, -(-total // MAX_PASS_ROWS)))
        return super().micro_batches(inputs, nodes, rows, divisor)

    def nodes(self, inputs: Inputs, head: Head, action: Tensor, order: Tensor | None) -> Nodes:
        mask = head.slot_mask(inputs["alive"], inputs["action_mask"])
        return Nodes(action, mask, mask & head.has_choice(inputs["action_mask"]), order)
