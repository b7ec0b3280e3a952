"""Running moments of observations and of returns, updated once per rollout."""

import torch
from torch import Tensor, nn

from marl.distributed import all_reduce
from marl.errors import ConfigError


class RunningMoments(nn.Module):
    """Mean and variance per agent and feature, (N, D), over all rollouts and ranks (Chan et al. 1979, eq. 1.5).

    Sums are float64. `forward` standardizes and clips to +-10 standard deviations. Before the first update it is the
    identity.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, agents: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(agents, features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(agents, features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(agents, 1, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor) -> None:
        """Add `x` (..., N, D) where `mask` (..., N) is True."""
        shape = self.mean.shape
        weight = mask.reshape(-1, shape[0], 1).double()
        rows = x.reshape(-1, *shape).double() * weight
        self.add(torch.stack([rows.sum(0), rows.square().sum(0), weight.sum(0).expand(shape)]))

    @torch.no_grad()
    def add(self, sums: Tensor) -> None:
        """Add entries of this rank by their sums, sums of squares and counts, (3, N, D) float64."""
        total, square, counts = all_reduce(sums)
        count = counts[:, :1]
        mean = total / count.clamp(min=1.0)
        variance = (square / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
        share = count / (self.count + count).clamp(min=1.0)
        delta = mean - self.mean
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * delta.square())
        self.mean.add_(share * delta)
        self.count.add_(count)

    def forward(self, x: Tensor, agents: slice = slice(None)) -> Tensor:
        """Return `x` (..., K, D) of the K `agents`, by default all N, standardized."""
        scale = self.variance[agents].clamp(min=1e-8).rsqrt().to(x.dtype)
        return ((x - self.mean[agents].to(x.dtype)) * scale).clamp(-10.0, 10.0)


class ValueNorm(nn.Module):
    """Normalizer of returns by the moments of recent rollouts (Yu et al. 2022, section 5.1).

    `decay` is the weight of the past at each update. The moving averages are debiased as in Adam. With `decay` 0 the
    critic works in units of the reward.
    """

    first: Tensor
    second: Tensor
    weight: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"value_norm_decay={decay} is no weight; set 0 (off) or a number below 1, usually 0.99")
        self.decay = decay
        self.register_buffer("first", torch.zeros((), dtype=torch.float64))
        self.register_buffer("second", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, returns: Tensor, mask: Tensor) -> None:
        """Add the returns of one rollout, in units of the reward, where `mask` is True."""
        if self.decay == 0.0:
            return
        x = returns[mask].double()
        total, square, count = all_reduce(torch.stack([x.sum(), x.square().sum(), x.new_tensor(x.numel())]))
        if count == 0:
            return
        self.first.lerp_(total / count, 1 - self.decay)
        self.second.lerp_(square / count, 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation; 0 and 1 before the first update."""
        if self.weight == 0:
            return torch.zeros_like(self.first), torch.ones_like(self.first)
        mean = self.first / self.weight
        variance = (self.second / self.weight - mean.square()).clamp(min=1e-4)
        return mean, variance.sqrt()

    def normalize(self, x: Tensor) -> Tensor:
        """Return returns in units of the reward in the critic's units."""
        mean, std = self.moments()
        return (x - mean.to(x.dtype)) / std.to(x.dtype)

    def denormalize(self, x: Tensor) -> Tensor:
        """Return values in the critic's units in units of the reward."""
        mean, std = self.moments()
        return x * std.to(x.dtype) + mean.to(x.dtype)
