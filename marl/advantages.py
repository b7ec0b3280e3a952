"""From a rollout to advantages: against a critic, or against other episodes."""

import torch
from torch import Tensor

from marl import distributed
from marl.backup import Links, backup
from marl.config import LearnConfig
from marl.groups import gigpo_step_advantages, group_std, grpo_advantages, leave_one_out, observation_keys
from marl.objective import masked_sum
from marl.rollout import Rollout
from marl.value_norm import ValueNorm


def gae_advantages(
    rollout: Rollout, links: Links, value_norm: ValueNorm, reference_coef: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Standardized advantages, the returns that the critic is to learn, in its units, and metrics.

    `value_norm` takes in the returns. `reference_coef` is that of the reward for staying near the reference.
    """
    mask = rollout.value_mask()
    value = value_norm.denormalize(rollout.value)
    advantage, returns = backup(
        links,
        rollout.reward,
        value,
        mask,
        rollout.terminated,
        rollout.truncated,
        value_norm.denormalize(rollout.bootstrap),
        rollout.order,
        rollout.discount(links.gamma),
        rollout.node_reward(reference_coef),
        rollout.agent_cuts(),
    )
    if rollout.node_reward_own is not None:
        returns = returns - rollout.node_reward_own
    explained = explained_variance(value, returns, mask)
    value_norm.update(returns, mask)
    mean, std = value_norm.moments()
    metrics = {
        "value/explained_variance": explained,
        "value/mean": mean_over_ranks(value, mask),
        "value/norm_mean": float(mean),
        "value/norm_std": float(std),
    }
    trained = rollout.loss_mask if value.shape == rollout.node_mask.shape else rollout.loss_mask.any(-1, keepdim=True)
    return standardize(advantage, trained), value_norm.normalize(returns), metrics


def critic_free_advantages(rollout: Rollout, learn: LearnConfig, group_size: int) -> tuple[Tensor, dict[str, float]]:
    """Advantages of a rollout of whole episodes, as `learn.advantage` says, and metrics."""
    links = learn.links()
    node_reward = rollout.node_reward(learn.reference_reward_coef)
    if learn.advantage == "return":
        returns = returns_to_go(links, rollout, rollout.reward, rollout.node_mask, node_reward)
        return standardize(returns, rollout.loss_mask), {}
    returns = step_returns(links, rollout, node_reward)
    score, exists = returns[0], rollout.node_mask.any(-1)
    valid = exists.any(0)
    compare = leave_one_out if learn.advantage == "rloo" else grpo_advantages
    advantage = compare(score, valid, group_size).expand_as(returns)
    if learn.advantage == "gigpo":
        keys = observation_keys(rollout.inputs, returns.shape[-1])
        advantage = advantage + learn.gigpo_step_weight * gigpo_step_advantages(returns, keys, exists, group_size)
    deviation = group_std(score, valid, group_size)
    everywhere = torch.ones_like(deviation, dtype=torch.bool)
    metrics = {
        "group/std": mean_over_ranks(deviation, everywhere),
        "group/zero_variance_fraction": mean_over_ranks(deviation == 0, everywhere),
    }
    return advantage.masked_fill(~exists, 0.0).unsqueeze(-1), metrics


def step_returns(links: Links, rollout: Rollout, node_reward: Tensor | None) -> Tensor:
    """(T, E, N): what follows each step, its own reward and those of its nodes included.

    Sequential agents, who share one chain, share it all.
    """
    reward = rollout.reward if node_reward is None else rollout.reward + node_reward.sum(-1)
    if links.agents == "sequential":
        own = 0.0 if node_reward is None else node_reward.sum((-2, -1)).unsqueeze(-1)
        reward = (rollout.reward.mean(-1, keepdim=True) + own).expand_as(reward)
    everywhere = torch.ones_like(reward, dtype=torch.bool).unsqueeze(-1)
    return returns_to_go(Links(gamma=links.gamma, gae_lambda=1.0), rollout, reward, everywhere).squeeze(-1)


def returns_to_go(
    links: Links, rollout: Rollout, reward: Tensor, mask: Tensor, node_reward: Tensor | None = None
) -> Tensor:
    """The discounted reward that follows each node of `mask`, to the episode's end or the rollout's."""
    return backup(
        links,
        reward,
        torch.zeros_like(mask, dtype=reward.dtype),
        mask,
        rollout.terminated,
        rollout.truncated,
        torch.zeros_like(rollout.bootstrap),
        rollout.order,
        rollout.discount(links.gamma),
        node_reward,
    )[1]


def mean_over_ranks(x: Tensor, mask: Tensor) -> float:
    """Mean of the masked entries of all ranks; 0 where there are none."""
    y = x.double()
    total, count = distributed.all_reduce(torch.stack([masked_sum(y, mask), mask.sum().double()])).tolist()
    return total / max(count, 1.0)


def standardize(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit variance over the masked entries of all ranks (population variance)."""
    y = x.double()
    total, count = distributed.all_reduce(torch.stack([masked_sum(y, mask), mask.sum().double()])).unbind()
    y = y - total / count.clamp(min=1)
    variance = distributed.all_reduce(masked_sum(y.square(), mask)) / count.clamp(min=1)
    return (y / (variance.sqrt() + 1e-5)).to(x.dtype).masked_fill(~mask, 0.0)


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - value) / Var(returns) over the masked entries of all ranks; 0 for constant returns."""
    y = torch.stack([returns.double(), (returns - value).double()])
    sums = torch.stack([*(masked_sum(each, mask) for each in y), mask.sum().double()])
    *total, count = distributed.all_reduce(sums).unbind()
    mean = torch.stack(total) / count.clamp(min=1)
    y = y - mean.view(2, *[1] * returns.dim())
    spread, error = distributed.all_reduce(torch.stack([masked_sum(each.square(), mask) for each in y])).tolist()
    rounding = 1e-20 * float(count * mean[0].square())
    return 1.0 - error / spread if spread > rounding else 0.0
