"""Parameter groups of the optimizer, and gradient clipping."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl.config import LearnConfig
from marl.errors import ConfigError

SMALL_GRADIENT = 2**16
"""Numbers in a gradient up to which copying it is cheaper than a norm of its own."""


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm, over all of them, is at most `limit`; returns the norm before.

    Small ones of a device are joined: a norm of each takes longer. Without any gradient the norm is 0.
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
    """What Adam takes: the parameters that learn, those of the critic apart where it has its own rate.

    Raises ConfigError where it has one, and there is no critic.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not learn.critic_learning_rate:
        return [{"params": [p for _, p in named], "lr": learn.learning_rate}]
    critic = [p for name, p in named if name.startswith("critic")]
    if not critic:
        raise ConfigError(
            f"critic_learning_rate is {learn.critic_learning_rate}, but this agent has no parameters of a critic; "
            "leave it 0"
        )
    others = [p for name, p in named if not name.startswith("critic")]
    return [{"params": others, "lr": learn.learning_rate}, {"params": critic, "lr": learn.critic_learning_rate}]
