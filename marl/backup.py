"""Two-level Bellman backup over nodes: one reverse scan for every row of the algorithm table."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marl.errors import ConfigError

Axis = Literal["parallel", "sequential"]


@dataclass(frozen=True)
class Links:
    """Links between the nodes of a step, and their discounts.

    A parallel axis has one chain through time for each index. A chain runs through a sequential axis before it goes on
    to the next step. `gamma` and `gae_lambda` belong to the link between two steps, `gamma_intra` and `lambda_intra` to
    a link inside a step. GAE (Schulman et al. 2016, eq. 16) has no sequential axis. BAD (Wen et al. 2024, eq. 8) has
    sequential slots and both intra factors 1.
    """

    agents: Axis = "parallel"
    slots: Axis = "parallel"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    gamma_intra: float = 1.0
    lambda_intra: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda", "gamma_intra", "lambda_intra"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name}={value} is no discount; set a number from 0 to 1")


def backup(
    links: Links,
    reward: Tensor,  # (T, E, N)
    value: Tensor,  # (T, E, N, L)
    mask: Tensor,  # (T, E, N, L) bool
    *,
    terminated: Tensor,  # (T, E) bool
    truncated: Tensor,  # (T, E) bool
    bootstrap: Tensor,  # (T, E, N)
    order: Tensor | None = None,  # (T, E, N)
    discount: Tensor | None = None,  # (T, E)
    node_reward: Tensor | None = None,  # (T, E, N, any)
    agent_truncated: Tensor | None = None,  # (T, E, N) bool
) -> tuple[Tensor, Tensor]:
    """Return advantage and return of every node, both (T, E, N, L), zero where `mask` is False.

    A step's reward belongs to the link that leaves its last existing node. Sequential agents share one chain, and so
    their mean reward. The chain ends after `terminated`. After `truncated`, and after the last row, it is cut and
    continues with `bootstrap`, the value of the chain's next node (the entry of agent 0 for sequential agents).

    A step without a node of the chain is passed over: its reward and its discount count, and the whole link carries one
    lambda. `order` is the order in which sequential agents decided. `discount` replaces gamma on the link that leaves a
    step: gamma ** k after an action of k primitive steps (Sutton, Precup and Singh 1999, section 3). `node_reward`
    belongs to the link that leaves the node itself; it is summed over slots if values belong to whole actions.
    `agent_truncated` cuts the chain of one agent while the episode goes on. If any of them is cut, so is the shared
    chain of sequential agents.
    """
    if node_reward is not None and node_reward.shape != value.shape:
        node_reward = node_reward.sum(-1, keepdim=True)
    sequential_agents = links.agents == "sequential"
    if sequential_agents and order is not None:
        index = order.unsqueeze(-1).expand_as(value)
        value, mask = value.gather(2, index), mask.gather(2, index)
        node_reward = None if node_reward is None else node_reward.gather(2, index)
    chains, exists = _to_chains(links, value), _to_chains(links, mask)  # (T, M, *chain)
    earned = None if node_reward is None else _to_chains(links, node_reward)
    alone = agent_truncated
    if sequential_agents:
        reward, bootstrap = reward.mean(-1), bootstrap[..., 0]
        alone = None if alone is None else alone.any(-1)
    if links.slots == "parallel":
        reward, bootstrap = reward.unsqueeze(-1), bootstrap.unsqueeze(-1)
        alone = None if alone is None else alone.unsqueeze(-1)
    extra = (1,) * (reward.dim() - 2)
    terminated = terminated.view(*terminated.shape, *extra)
    cut = (terminated | truncated.view(*truncated.shape, *extra)).clone()
    if alone is not None:
        cut = cut | alone
    cut[-1] = True
    bootstrap = torch.where(terminated, torch.zeros_like(bootstrap), bootstrap)
    gammas = [links.gamma] * len(cut) if discount is None else discount.view(*discount.shape, *extra).unbind()

    advantage = torch.zeros_like(chains)
    next_value = torch.zeros_like(chains[0, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(chains.shape[0])):
        next_value = torch.where(cut[t], bootstrap[t], next_value)
        next_advantage = next_advantage.masked_fill(cut[t], 0.0)
        link_value = reward[t] + gammas[t] * next_value
        link_advantage = gammas[t] * links.gae_lambda * next_advantage
        next_value, next_advantage = link_value, gammas[t] * next_advantage
        for m in reversed(range(chains.shape[1])):
            here = exists[t, m]
            node_value = chains[t, m]
            node_advantage = link_value - node_value + link_advantage
            if earned is not None:
                node_advantage = node_advantage + earned[t, m]
            advantage[t, m] = node_advantage.masked_fill(~here, 0.0)
            next_value = torch.where(here, node_value, next_value)
            next_advantage = torch.where(here, node_advantage, next_advantage)
            if m:
                link_value = torch.where(here, links.gamma_intra * node_value, link_value)
                weight = links.gamma_intra * links.lambda_intra
                link_advantage = torch.where(here, weight * node_advantage, link_advantage)

    advantage = _from_chains(links, advantage, value.shape)
    returns = (advantage + value).masked_fill(~mask, 0.0)
    if sequential_agents and order is not None:
        index = order.unsqueeze(-1).expand_as(value)
        advantage = torch.zeros_like(advantage).scatter_(2, index, advantage)
        returns = torch.zeros_like(returns).scatter_(2, index, returns)
    return advantage, returns


def _to_chains(links: Links, x: Tensor) -> Tensor:
    """Reorder (T, E, N, L) to (T, M, *chain): M nodes in sequence, then the axes of the chains."""
    if links.agents == "sequential" and links.slots == "sequential":
        return x.flatten(2).transpose(1, 2)  # (T, N L, E)
    if links.agents == "sequential":
        return x.transpose(1, 2)  # (T, N, E, L)
    if links.slots == "sequential":
        return x.permute(0, 3, 1, 2)  # (T, L, E, N)
    return x.unsqueeze(1)  # (T, 1, E, N, L)


def _from_chains(links: Links, x: Tensor, shape: torch.Size) -> Tensor:
    """Reorder (T, M, *chain) back to `shape`, (T, E, N, L)."""
    if links.agents == "sequential" and links.slots == "sequential":
        return x.transpose(1, 2).reshape(shape)
    if links.agents == "sequential":
        return x.transpose(1, 2)
    if links.slots == "sequential":
        return x.permute(0, 2, 3, 1)
    return x.squeeze(1)
