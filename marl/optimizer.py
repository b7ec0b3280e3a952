"""Parameter groups of the optimizer, and gradient clipping."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl.errors import ConfigError
from marl.settings import LearnConfig

SMALL_GRADIENT = 2**16
"""Numbers in a gradient up to which copying it is cheaper than computing its own norm."""


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; return the norm before, 0 without gradients.

    Small gradients of a device are joined first, because computing a norm of each is slower.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    small: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        if gradient.numel() <= SMALL_GRADIENT:
            small.setdefault(gradient.device, []).append(gradient.flatten())
    norms = [torch.cat(part).norm() for part in small.values()]
    norms += [gradient.norm() for gradient in gradients if gradient.numel() > SMALL_GRADIENT]
    norm = torch.stack([part.to(norms[0].device) for part in norms]).norm()
    if norm > limit:
        scale = limit / (float(norm) + 1e-6)
        for gradient in gradients:
            gradient.mul_(scale)
    return norm


def parameter_groups(module: nn.Module, learn: LearnConfig) -> list[dict[str, Any]]:
    """Return Adam's parameter groups: all trainable parameters, or two groups if the critic has its own rate.

    The critic's parameters are those whose name begins with "critic". Raises ConfigError if there are none.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not learn.critic_learning_rate:
        return [{"params": [p for _, p in named], "lr": learn.learning_rate}]
    critic = [p for name, p in named if name.startswith("critic")]
    if not critic:
        raise ConfigError(
            f"critic_learning_rate={learn.critic_learning_rate}, but this agent has no critic parameters; set it to 0"
        )
    others = [p for name, p in named if not name.startswith("critic")]
    return [{"params": others, "lr": learn.learning_rate}, {"params": critic, "lr": learn.critic_learning_rate}]
