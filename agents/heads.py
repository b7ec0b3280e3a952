"""Action heads: distributions over discrete, continuous and mixed actions, and the layers that they stand on.

Shape legend: E environments, N agents, L slots of an action, A parameters of an agent's action distribution (logits or
means). Leading axes `...` are any batch, usually (E, N).
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from marl.errors import ConfigError, NonFiniteError
from marl.types import EnvSpec

RELU_GAIN = 2.0**0.5
SMALL_GAIN = 0.01
SOFTMAX_WIDTH = 16
"""Width from which a CPU's softmax takes the vectorized path."""


def linear(inputs: int, outputs: int, gain: float = RELU_GAIN, bias: bool = True) -> nn.Linear:
    """Return a linear layer with orthogonal weights of the given gain and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, hidden: tuple[int, ...], outputs: int, gain: float, *, input_norm: bool = True) -> nn.Sequential:
    """Return an MLP: LayerNorm on the input; linear, GELU and LayerNorm per hidden layer; a linear layer of `gain`.

    Without `input_norm` the first layer is the identity.
    """
    layers: list[nn.Module] = [nn.LayerNorm(inputs) if input_norm else nn.Identity()]
    for width in hidden:
        layers += [linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
        inputs = width
    return nn.Sequential(*layers, linear(inputs, outputs, gain))


class CategoricalHead(nn.Module):
    """One discrete action per agent, L = 1. The parameters are logits (..., A)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.slots = 1

    def split_mask(self, mask: Tensor) -> Tensor:
        """Return the mask in the layout that the other methods take, from the environment's mask (E, N, A)."""
        return mask

    def start_action(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return zero actions (*shape, 1), int64."""
        return torch.zeros((*shape, 1), dtype=torch.long, device=device)

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        """Return Gumbel noise (*shape, A). Given the noise, sampling is a deterministic function of the logits."""
        exponential = torch.empty((*shape, self.size), device=device).exponential_(generator=generator)
        return -exponential.log()

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the offset (..., A) that `argmax_action` wants added to the logits.

        It is the noise, or zero if `noise` is None, and -inf at unavailable actions.
        """
        offset = torch.zeros(mask.shape, device=mask.device) if noise is None else noise
        return offset.masked_fill(~mask, float("-inf"))

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the Gaussian head reads it
        """Return actions (..., 1): the Gumbel-max sample, or the most probable action if there was no noise."""
        return perturbed.argmax(-1, keepdim=True)

    def log_prob(self, logits: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the log-probability (..., 1) of `action` (..., 1)."""
        return masked_log_softmax(logits, mask).gather(-1, action)

    def evaluate(
        self,
        logits: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,  # noqa: ARG002 - the Gaussian head reads this and the next
        active: Sequence[bool] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of `action` and the entropy, each (..., 1), differentiable."""
        # A finite fill: zero times it is zero, in the entropy and in its gradient. Zero times infinity is NaN.
        logits = pad_softmax(logits.masked_fill(~mask, -1e9), -1e9)
        log_probs = F.log_softmax(logits, -1)
        entropy = -(logits.softmax(-1) * log_probs).sum(-1, keepdim=True)
        return log_probs.gather(-1, action), entropy

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG002 - the Gaussian head reads it
        """Return the slots (..., 1) that exist: one per living agent."""
        return alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """Return (..., 1) bool: more than one action is available."""
        return mask.sum(-1, keepdim=True) > 1

    def to_env(self, action: Tensor) -> np.ndarray:
        """Return the environment's action (E, N) int64."""
        return action.squeeze(-1).cpu().numpy()


class GaussianHead(nn.Module):
    """A normal distribution per action dimension, L = A. Actions are in units where the action space is [-1, 1].

    Bounds are (A,), or (N, A) if each agent has its own. The standard deviation is `max_std` * sigmoid(log_std), with
    one free parameter per dimension and parameter set, as in MAT's released code. Samples are not squashed. They are
    clipped only on their way to the environment. With several parameter sets all arguments are (E, N, A), in the
    agents' order or in decision order `order` (E, N).
    """

    low: Tensor
    high: Tensor
    bounded: Tensor

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        max_std: float,
        init_std: float,
        parameter_sets: Sequence[int] = (0,),
    ) -> None:
        super().__init__()
        self.size = self.slots = low.shape[-1]
        self.max_std = max_std
        share = init_std / max_std
        start = torch.full((self.size,), float(np.log(share / (1.0 - share))))
        self.log_std = nn.ParameterList(nn.Parameter(start.clone()) for _ in range(max(parameter_sets) + 1))
        self.parameter_sets = tuple(parameter_sets)
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float32), persistent=False)
        self.register_buffer("bounded", self.low.isfinite() & self.high.isfinite(), persistent=False)

    def split_mask(self, mask: Tensor) -> Tensor:
        """Return the mask in the layout that the other methods take: the dimensions (E, N, A) that exist."""
        return mask

    def start_action(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return zero actions (*shape, A), float32."""
        return torch.zeros((*shape, self.slots), device=device)

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        """Return standard normal noise (*shape, A)."""
        return torch.randn((*shape, self.size), device=device, generator=generator)

    def std(self, order: Tensor | None = None, active: Sequence[bool] | None = None) -> Tensor:
        """Return the standard deviations: (A,), or (N, A) with several parameter sets, or (E, N, A) in an `order`.

        `active` (N,) lists the agents with nodes. A set without one gets no gradient, not even zero.
        """
        if len(self.log_std) == 1:
            return self.max_std * torch.sigmoid(self.log_std[0])
        used = {own for agent, own in enumerate(self.parameter_sets) if active is None or active[agent]}
        log_std = torch.stack(
            [self.log_std[own] if own in used else self.log_std[own].detach() for own in self.parameter_sets]
        )
        std = self.max_std * torch.sigmoid(log_std)
        return std if order is None else std[order]

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:
        """Return the offset (..., A) that `argmax_action` wants added to the means: noise times standard deviation.

        Raises NonFiniteError if a standard deviation is 0, NaN or infinite.
        """
        log_std = torch.stack(list(self.log_std)).detach()
        bad = ~(log_std.isfinite() & (torch.sigmoid(log_std) > 0.0))
        if bool(bad.any()):
            bad_set, dimension = (int(i) for i in bad.nonzero()[0])
            agents = [agent for agent, own in enumerate(self.parameter_sets) if own == bad_set]
            whose = f"agents {agents}" if len(self.log_std) > 1 else "all agents"
            raise NonFiniteError(
                f"log_std={float(log_std[bad_set, dimension])} in action dimension {dimension} of {whose} gives no "
                "positive standard deviation. Go back to an earlier checkpoint, and lower --learning-rate or raise "
                "--entropy-coef"
            )
        return torch.zeros(mask.shape, device=mask.device) if noise is None else self.std(order) * noise

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:
        """Return actions (..., A): the perturbed means, zero in padded dimensions."""
        return perturbed.masked_fill(~mask, 0.0)

    def evaluate(
        self,
        mean: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,
        active: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log-density of `action` and entropy per dimension, (..., A) each, zero where padded."""
        std = self.std(order, active)
        entropy = (0.5 + 0.5 * np.log(2 * np.pi) + std.log()).expand_as(mean)
        return log_density(mean, std, action).masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)

    def log_prob(self, mean: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the log-density (..., A) of `action`, zero where padded."""
        return log_density(mean, self.std(order), action).masked_fill(~mask, 0.0)

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:
        """Return the slots (..., A) that exist: the action dimensions of living agents."""
        return mask & alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """Return (..., A) bool: every dimension that exists has a choice."""
        return mask

    def to_env(self, action: Tensor) -> np.ndarray:
        """Return the environment's action (E, N, A) float32.

        A dimension with two finite bounds is scaled from [-1, 1] to them. Others are clipped to the bound they have.
        """
        scaled = self.low + 0.5 * (action.clamp(-1.0, 1.0) + 1.0) * (self.high - self.low)
        free = action.clamp(self.low, self.high)
        return torch.where(self.bounded, scaled, free).cpu().numpy()


def log_density(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """Return the log-density (..., A) of independent normals. `std` broadcasts to `mean` (..., A)."""
    return -0.5 * ((action - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)


class MixedHead(nn.Module):
    """Heads of a mixed team, L = 1 + A. Slot 0 is a discrete agent's action, the rest a continuous agent's dimensions.

    Parameters, noise and masks are those of a CategoricalHead and a GaussianHead, concatenated. The mask says which of
    the two an agent has. In slot 0 a continuous agent stores the number of discrete actions, and has no node there.
    """

    discrete: Tensor

    def __init__(self, spec: EnvSpec, max_std: float, init_std: float, parameter_sets: Sequence[int]) -> None:
        super().__init__()
        spaces: Any = spec.action_spaces
        discrete = [isinstance(space, gymnasium.spaces.Discrete) for space in spaces]
        self.num_choices = max(space.n for space, is_discrete in zip(spaces, discrete, strict=True) if is_discrete)
        boxes = {i: space for i, space in enumerate(spaces) if not discrete[i]}
        low = np.zeros((len(spaces), max(box.shape[0] for box in boxes.values())), np.float32)
        high = np.zeros_like(low)
        for i, box in boxes.items():
            low[i, : box.shape[0]], high[i, : box.shape[0]] = box.low, box.high
        self.register_buffer("discrete", torch.tensor(discrete).unsqueeze(-1), persistent=False)
        self.categorical = CategoricalHead(self.num_choices)
        self.gaussian = GaussianHead(low, high, max_std, init_std, parameter_sets)
        self.size, self.slots = self.num_choices + self.gaussian.size, 1 + self.gaussian.size
        self.env_width = spec.action_size

    def split_mask(self, mask: Tensor) -> Tensor:
        """Return the mask (E, N, choices + dimensions) from the environment's mask (E, N, A)."""
        choice, dimension = mask[..., : self.num_choices], mask[..., : self.gaussian.size]
        return torch.cat([choice & self.discrete, dimension & ~self.discrete], -1)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split parameters, noise or masks into the categorical and the Gaussian part."""
        return x.split([self.num_choices, self.gaussian.size], -1)

    def start_action(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return zero actions (*shape, L), float32."""
        return torch.zeros((*shape, self.slots), device=device)

    def noise(self, shape: tuple[int, ...], device: torch.device, generator: Generator | None) -> Tensor:
        """Return Gumbel and normal noise side by side."""
        return torch.cat([head.noise(shape, device, generator) for head in (self.categorical, self.gaussian)], -1)

    def sampling_offset(self, mask: Tensor, noise: Tensor | None, order: Tensor | None = None) -> Tensor:
        """Return the offsets of both heads side by side."""
        choice, dimension = self.parts(mask)
        gumbel, normal = (None, None) if noise is None else self.parts(noise)
        left = self.categorical.sampling_offset(choice, gumbel)
        return torch.cat([left, self.gaussian.sampling_offset(dimension, normal, order)], -1)

    def argmax_action(self, perturbed: Tensor, mask: Tensor) -> Tensor:
        """Return actions (..., L) float32."""
        choice, dimension = self.parts(mask)
        logits, means = self.parts(perturbed)
        picked = self.categorical.argmax_action(logits, choice)
        picked = picked.masked_fill(~choice.any(-1, keepdim=True), self.num_choices)
        return torch.cat([picked.to(means.dtype), self.gaussian.argmax_action(means, dimension)], -1)

    def log_prob(self, parameters: Tensor, mask: Tensor, action: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the log-probability or density of each slot, (..., L), zero where a slot does not exist."""
        return self.evaluate(parameters, mask, action, order)[0]

    def evaluate(
        self,
        parameters: Tensor,
        mask: Tensor,
        action: Tensor,
        order: Tensor | None = None,
        active: Sequence[bool] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probability or density, and entropy, of each slot, (..., L), zero where a slot does not exist."""
        (choice, dimension), (logits, means) = self.parts(mask), self.parts(parameters)
        absent = ~choice.any(-1, keepdim=True)
        index = action[..., :1].long().clamp(max=self.num_choices - 1)
        discrete = self.categorical.evaluate(logits, choice | absent, index)
        continuous = self.gaussian.evaluate(means, dimension, action[..., 1:], order, active)
        log_prob, entropy = (
            torch.cat([left.masked_fill(absent, 0.0), right], -1)
            for left, right in zip(discrete, continuous, strict=True)
        )
        return log_prob, entropy

    def slot_mask(self, alive: Tensor, mask: Tensor) -> Tensor:
        """Return the slots (..., L) that exist."""
        choice, dimension = self.parts(mask)
        return torch.cat([choice.any(-1, keepdim=True), dimension], -1) & alive.unsqueeze(-1)

    def has_choice(self, mask: Tensor) -> Tensor:
        """Return (..., L) bool: the slot has more than one possible action."""
        choice, dimension = self.parts(mask)
        return torch.cat([self.categorical.has_choice(choice), dimension], -1)

    def to_env(self, action: Tensor) -> np.ndarray:
        """Return the environment's action (E, N, A) float32. Entry 0 of a discrete agent is the index of its action."""
        env_action = np.zeros((*action.shape[:-1], self.env_width), np.float32)
        env_action[..., : self.gaussian.size] = self.gaussian.to_env(action[..., 1:])
        index, discrete = action[..., 0].cpu().numpy(), self.discrete.squeeze(-1).cpu().numpy()
        env_action[..., 0] = np.where(discrete, index, env_action[..., 0])
        return env_action


Head = CategoricalHead | GaussianHead | MixedHead


def make_head(spec: EnvSpec, max_std: float, init_std: float, parameter_sets: Sequence[int] = (0,)) -> Head:
    """Return the head that fits the action space, with standard deviations for each parameter set (N,).

    Raises ConfigError if the action space is neither Discrete nor Box nor a team of both.
    """
    space: Any = spec.action_space
    if spec.discrete:
        return CategoricalHead(spec.action_size)
    if spec.continuous:
        return GaussianHead(space.low, space.high, max_std, init_std, parameter_sets)
    if spec.mixed:
        return MixedHead(spec, max_std, init_std, parameter_sets)
    kind = type(spec.action_space).__name__
    raise ConfigError(
        f"{spec.name} has {kind} actions, and this agent acts in Discrete or Box spaces only. Use another agent"
    )


def sample(head: Head, parameters: Tensor, mask: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return actions and their log-probabilities, (..., L) each, of distributions with `parameters` (..., A).

    Without noise the actions are the most probable ones.
    """
    action = head.argmax_action(parameters + head.sampling_offset(mask, noise), mask)
    return action, head.log_prob(parameters, mask, action)


def pad_softmax(x: Tensor, fill: float) -> Tensor:
    """Pad (..., A) with `fill` to the width from which a CPU's softmax is ten times as fast."""
    missing = SOFTMAX_WIDTH - x.shape[-1]
    return F.pad(x, (0, missing), value=fill) if missing > 0 and x.device.type == "cpu" else x


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last axis."""
    return pad_softmax(x, float("-inf")).softmax(-1)[..., : x.shape[-1]]


def masked_log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Return log-probabilities over the available actions, (..., A) or wider, -inf at the others."""
    return F.log_softmax(pad_softmax(logits.masked_fill(~mask, float("-inf")), float("-inf")), -1)
