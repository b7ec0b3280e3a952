"""Decision order: the order in which the agents of a step decide.

`order` (E, N) lists the agents by position: `order[e, 0]` decides first. None is 0..N-1 in every environment. Dead and
padded agents come last.

Shape legend: E environments, N agents, F features.
"""

import torch
from torch import Generator, Tensor


def fixed_order(alive: Tensor) -> Tensor | None:
    """Return the order (E, N) of the environment's list, living agents first. None if all are alive."""
    if bool(alive.all()):
        return None
    return (~alive).to(torch.uint8).argsort(dim=-1, stable=True)


def random_order(alive: Tensor, generator: Generator | None) -> Tensor:
    """Return a uniformly drawn order (E, N), living agents first."""
    key = torch.rand(alive.shape, device=alive.device, generator=generator)
    return (key + (~alive).to(key.dtype)).argsort(-1)


def rotations(alive: Tensor) -> Tensor:
    """Return 2 N orders of each environment, (E 2N, N): the rotations of the agents and of their reverse.

    Over them each agent has each position, and decides before each other agent, equally often. Living agents come
    first.
    """
    envs, agents = alive.shape
    position = torch.arange(agents, device=alive.device)
    rotated = (position + position.unsqueeze(-1)) % agents
    rank = torch.cat([rotated, agents - 1 - rotated])  # (2N, N)
    return (rank.repeat(envs, 1) + agents * ~alive.repeat_interleave(len(rank), 0)).argsort(-1)


def decision_order(x: Tensor, order: Tensor | None) -> Tensor:
    """Return `x` (E, N, F), given in agent order, in decision order."""
    return x if order is None else x.gather(1, order.unsqueeze(-1).expand_as(x))


def agent_order(x: Tensor, order: Tensor | None) -> Tensor:
    """Return `x` (E, N, F), given in decision order, in agent order."""
    if order is None:
        return x
    return torch.empty_like(x).scatter_(1, order.unsqueeze(-1).expand_as(x), x)
