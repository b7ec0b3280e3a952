"""Advantages without a critic: an episode against the others that began in the same place.

Consecutive environments form groups of `size`, and each agent is compared with itself. Entries where `valid` or
`mask` is False take no part and are zero.
"""

import torch
from torch import Tensor

from marl.types import Inputs

EPSILON = 1e-4
"""Added to a standard deviation, so that groups that all but agree stay quiet."""


def leave_one_out(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """(E, N): each episode's score less the mean of the others in its group (RLOO, Kool et al. 2019, eq. 8)."""
    scores, weight = _grouped(score, valid, size)
    others = weight.sum(1, keepdim=True) - weight
    rest = (scores * weight).sum(1, keepdim=True) - scores * weight
    advantage = (scores - rest / others.clamp(min=1.0)) * weight * (others > 0)
    return advantage.reshape(score.shape).to(score.dtype)


def grpo_advantages(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """(E, N): each episode's score in standard deviations of its group (GRPO, Shao et al. 2024, section 4.1.2)."""
    scores, weight = _grouped(score, valid, size)
    count = weight.sum(1, keepdim=True).clamp(min=1.0)
    centered = (scores - (scores * weight).sum(1, keepdim=True) / count) * weight
    deviation = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return (centered / (deviation + EPSILON)).reshape(score.shape).to(score.dtype)


def group_std(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """(E / size, N): the standard deviation inside each group."""
    scores, weight = _grouped(score, valid, size)
    count = weight.sum(1).clamp(min=1.0)
    centered = (scores - ((scores * weight).sum(1) / count).unsqueeze(1)) * weight
    return (centered.square().sum(1) / count).sqrt()


def gigpo_step_advantages(returns: Tensor, keys: Tensor, mask: Tensor, size: int) -> Tensor:
    """(T, E, N): returns-to-go in standard deviations of the steps of the group that began with the same observation.

    `keys` (T, E, N) int64 are equal where observations are. A step without a twin is 0 (GiGPO, Feng et al. 2025,
    eq. 6 and 7).
    """
    envs, agents = returns.shape[1:]
    group = torch.arange(envs, device=returns.device).div(size, rounding_mode="floor").view(-1, 1)
    place = (group * agents + torch.arange(agents, device=returns.device)).expand_as(keys)
    names = torch.stack([place.flatten(), keys.flatten()], -1)
    index = names.unique(dim=0, return_inverse=True)[1]
    weight, values = mask.flatten().double(), returns.flatten().double()
    sums = torch.zeros(2, int(index.max()) + 1, dtype=torch.float64, device=returns.device)
    count, total = sums.index_add(1, index, torch.stack([weight, values * weight])).unbind()
    centered = (values - (total / count.clamp(min=1.0))[index]) * weight
    square = torch.zeros_like(count).index_add(0, index, centered.square())
    deviation = (square / count.clamp(min=1.0)).sqrt()[index]
    return (centered / (deviation + EPSILON)).view_as(returns).to(returns.dtype)


def observation_keys(inputs: Inputs, agents: int) -> Tensor:
    """(T, E, N) int64, equal where an agent sees the same: all inputs (T, E, N, ...) that belong to single agents.

    What it remembers does not count.
    """
    own = [x for name, x in inputs.items() if name != "memory" and x.dim() >= 3 and x.shape[2] == agents]
    shape = own[0].shape[:3]
    rows = torch.cat([x.reshape(*shape, -1).double() for x in own], -1)
    return rows.flatten(0, 2).unique(dim=0, return_inverse=True)[1].view(shape)


def _grouped(score: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Scores and weights (E / size, size, N) in float64."""
    return tuple(x.double().unflatten(0, (-1, size)) for x in (score.masked_fill(~valid, 0.0), valid))  # pyright: ignore[reportReturnType]
