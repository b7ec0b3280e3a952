"""Advantage estimators: generalized advantage estimation, and critic-free ones over whole episodes.

Entries where a mask is False take no part in any mean, and are zero in the result. Means are over all ranks.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from marl import distributed
from marl.backup import Links, backup
from marl.errors import ConfigError
from marl.objective import masked_sum
from marl.registry import register_advantage
from marl.rollout import Rollout
from marl.types import Inputs
from marl.value_norm import ValueNorm

EPSILON = 1e-4
"""Added to the standard deviation of a group, so that a group of nearly equal scores has small advantages."""


@dataclass(frozen=True)
class AdvantageContext:
    """Settings of the run and state of the critic that an estimator reads."""

    links: Links
    value_norm: ValueNorm
    """Scale of the critic's values. An estimator that uses the critic updates it with the returns."""
    group_size: int
    """Environments of a group: their episodes begin alike."""
    node_reward: Tensor | None
    """Reward of single nodes, shape (T, E, N, L): the policy's reward minus the weighted KL term, or None."""


@dataclass(frozen=True)
class Advantages:
    """Result of an estimator.

    `advantage`: (T, E, N, L), or (T, E, N, 1) for one value per action. `returns`: the critic's targets in its own
    units, shaped like `Rollout.value`; None if no critic is trained. `metrics` are logged.
    """

    advantage: Tensor
    returns: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdvantageEstimator:
    """Base class of advantage estimators. The fields of a subclass are its options, with their docstrings as help."""

    uses_critic: ClassVar[bool] = True
    """A critic is trained. Without one, returns are not bootstrapped: both lambdas are 1."""
    needs_whole_episodes: ClassVar[bool] = False
    """Each rollout must hold one whole episode per environment."""
    needs_groups: ClassVar[bool] = False
    """Episodes are compared with others that began alike, so `group_size` must be 2 or more."""

    def __call__(self, rollout: Rollout, context: AdvantageContext) -> Advantages:
        """Return the advantages of a rollout."""
        raise NotImplementedError(f"class {type(self).__name__} does not define __call__; see docs/add-algorithm.md")

    def check(self, config: Any) -> None:
        """Raise ConfigError if the settings of a run contradict the class attributes."""
        name = config.learn.advantage
        if not self.uses_critic and config.objective_options.value_coef != 0.0:
            raise ConfigError(
                f"advantage={name!r} has no critic, but value_coef={config.objective_options.value_coef}; set it to 0"
            )
        if self.needs_whole_episodes and not config.collect.whole_episodes:
            raise ConfigError(f"advantage={name!r} needs whole episodes; add --whole-episodes")
        if self.needs_groups and config.collect.group_size < 2:
            raise ConfigError(f"advantage={name!r} compares the episodes of a group, but group_size=1; set 2 or more")


def require_advantages(made: Any, estimator: AdvantageEstimator, rollout: Rollout) -> Advantages:
    """Return what an estimator made of a rollout.

    Raises ConfigError if it is not Advantages, has other shapes, or lacks the returns that the critic learns.
    """
    name, page = f"advantage class {type(estimator).__name__}", "as docs/add-algorithm.md shows"
    if not isinstance(made, Advantages):
        raise ConfigError(f"{name} returned a {type(made).__name__}; return marl.advantages.Advantages, {page}")
    shapes = (rollout.node_mask.shape, (*rollout.node_mask.shape[:-1], 1))
    if made.advantage.shape not in shapes:
        raise ConfigError(
            f"{name} returned an advantage of shape {tuple(made.advantage.shape)}; return {tuple(shapes[0])} or "
            f"{shapes[1]}, {page}"
        )
    if made.returns is None and estimator.uses_critic:
        raise ConfigError(f"{name} returned returns=None; return the critic's targets, or set uses_critic = False")
    if made.returns is not None and made.returns.shape != rollout.value.shape:
        raise ConfigError(
            f"{name} returned returns of shape {tuple(made.returns.shape)}; return {tuple(rollout.value.shape)}, {page}"
        )
    return made


@register_advantage("gae", summary="generalized advantage estimation, from a critic")
@dataclass(frozen=True)
class GAE(AdvantageEstimator):
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16) over the links of the run, standardized."""

    def __call__(self, rollout: Rollout, context: AdvantageContext) -> Advantages:
        """Return standardized advantages and the critic's targets; update the value normalizer with the returns."""
        norm, mask = context.value_norm, rollout.value_mask()
        value = norm.denormalize(rollout.value)
        advantage, returns = backup(
            context.links,
            rollout.reward,
            value,
            mask,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            bootstrap=norm.denormalize(rollout.bootstrap),
            order=rollout.order,
            discount=rollout.discount(context.links.gamma),
            node_reward=context.node_reward,
            agent_truncated=rollout.agent_cuts(),
        )
        if rollout.node_reward_own is not None:
            returns = returns - rollout.node_reward_own
        explained = explained_variance(value, returns, mask)
        norm.update(returns, mask)
        mean, std = norm.moments()
        metrics = {
            "value/explained_variance": explained,
            "value/mean": mean_over_ranks(value, mask),
            "value/norm_mean": float(mean),
            "value/norm_std": float(std),
        }
        per_node = value.shape == rollout.node_mask.shape
        trained = rollout.loss_mask if per_node else rollout.loss_mask.any(-1, keepdim=True)
        return Advantages(standardize(advantage, trained), norm.normalize(returns), metrics)


@register_advantage("return", summary="discounted return of each node, standardized over the batch, without a critic")
@dataclass(frozen=True)
class Return(AdvantageEstimator):
    """Return to go of each node, standardized over the whole batch (REINFORCE++, Hu 2025)."""

    uses_critic = False
    needs_whole_episodes = True

    def __call__(self, rollout: Rollout, context: AdvantageContext) -> Advantages:
        """Return the standardized returns to go."""
        returns = returns_to_go(context.links, rollout, rollout.reward, rollout.node_mask, context.node_reward)
        return Advantages(standardize(returns, rollout.loss_mask))


@dataclass(frozen=True)
class GroupEstimator(AdvantageEstimator):
    """Base class of estimators that compare an episode with the others of its group, agent by agent."""

    uses_critic = False
    needs_whole_episodes = True
    needs_groups = True

    def __call__(self, rollout: Rollout, context: AdvantageContext) -> Advantages:
        """Return one advantage per step, shape (T, E, N, 1)."""
        size = context.group_size
        returns = step_returns(context.links, rollout, context.node_reward)
        score, exists = returns[0], rollout.node_mask.any(-1)
        valid = exists.any(0)
        advantage = self.compare(rollout, returns, exists, size).expand_as(returns)
        deviation = group_std(score, valid, size)
        everywhere = torch.ones_like(deviation, dtype=torch.bool)
        metrics = {
            "group/std": mean_over_ranks(deviation, everywhere),
            "group/zero_variance_fraction": mean_over_ranks(deviation == 0, everywhere),
        }
        return Advantages(advantage.masked_fill(~exists, 0.0).unsqueeze(-1), None, metrics)

    def compare(self, rollout: Rollout, returns: Tensor, exists: Tensor, size: int) -> Tensor:
        """Return advantages by the `returns` of steps that `exist`, both (T, E, N). The result broadcasts to that."""
        raise NotImplementedError


@register_advantage("rloo", summary="score of an episode minus the mean of the others in its group")
@dataclass(frozen=True)
class RLOO(GroupEstimator):
    """REINFORCE leave-one-out (Kool et al. 2019, eq. 8)."""

    def compare(self, rollout: Rollout, returns: Tensor, exists: Tensor, size: int) -> Tensor:  # noqa: ARG002
        """Return the score minus the mean score of the others, shape (E, N)."""
        return leave_one_out(returns[0], exists.any(0), size)


@register_advantage("grpo", summary="score of an episode in standard deviations of its group")
@dataclass(frozen=True)
class GRPO(GroupEstimator):
    """Group relative policy optimization (Shao et al. 2024, section 4.1.2)."""

    def compare(self, rollout: Rollout, returns: Tensor, exists: Tensor, size: int) -> Tensor:  # noqa: ARG002
        """Return the score in standard deviations of the group, shape (E, N)."""
        return grpo_advantages(returns[0], exists.any(0), size)


@register_advantage("gigpo", summary="grpo, and the same among the steps of a group with equal observations")
@dataclass(frozen=True)
class GiGPO(GRPO):
    """Group-in-group policy optimization (Feng et al. 2025, eq. 8)."""

    gigpo_step_weight: float = 1.0
    """Weight of the comparison between steps with the same observation."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gigpo_step_weight < float("inf"):
            raise ConfigError(
                f"gigpo_step_weight={self.gigpo_step_weight}, which is negative or not finite; set 0 or more"
            )

    def compare(self, rollout: Rollout, returns: Tensor, exists: Tensor, size: int) -> Tensor:
        """Return the advantages of the episodes plus the weighted ones of the steps, shape (T, E, N)."""
        keys = observation_keys(rollout.inputs, returns.shape[-1])
        steps = gigpo_step_advantages(returns, keys, exists, size)
        return super().compare(rollout, returns, exists, size) + self.gigpo_step_weight * steps


def leave_one_out(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """Return the score minus the mean of the others of its group, shape (E, N) (Kool et al. 2019, eq. 8)."""
    scores, weight = _grouped(score, valid, size)
    others = weight.sum(1, keepdim=True) - weight
    rest = (scores * weight).sum(1, keepdim=True) - scores * weight
    advantage = (scores - rest / others.clamp(min=1.0)) * weight * (others > 0)
    return advantage.reshape(score.shape).to(score.dtype)


def grpo_advantages(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """Return the score in standard deviations of its group, shape (E, N) (Shao et al. 2024, section 4.1.2)."""
    scores, weight = _grouped(score, valid, size)
    count = weight.sum(1, keepdim=True).clamp(min=1.0)
    centered = (scores - (scores * weight).sum(1, keepdim=True) / count) * weight
    deviation = (centered.square().sum(1, keepdim=True) / count).sqrt()
    return (centered / (deviation + EPSILON)).reshape(score.shape).to(score.dtype)


def group_std(score: Tensor, valid: Tensor, size: int) -> Tensor:
    """Return the standard deviation inside each group, shape (E / size, N)."""
    scores, weight = _grouped(score, valid, size)
    count = weight.sum(1).clamp(min=1.0)
    centered = (scores - ((scores * weight).sum(1) / count).unsqueeze(1)) * weight
    return (centered.square().sum(1) / count).sqrt()


def gigpo_step_advantages(returns: Tensor, keys: Tensor, mask: Tensor, size: int) -> Tensor:
    """Return the returns to go in standard deviations of the steps of a group with the same key, shape (T, E, N).

    `keys` (T, E, N) int64 are equal where observations are. A step whose key is unique gets 0 (Feng et al. 2025, eq. 6
    and 7).
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
    """Return integers that are equal where an agent's inputs are equal, shape (T, E, N) int64.

    All inputs of single agents count, (T, E, N, ...), except the recurrent state.
    """
    own = [x for name, x in inputs.items() if name != "recurrent_state" and x.dim() >= 3 and x.shape[2] == agents]
    shape = own[0].shape[:3]
    rows = torch.cat([x.reshape(*shape, -1).double() for x in own], -1)
    return rows.flatten(0, 2).unique(dim=0, return_inverse=True)[1].view(shape)


def step_returns(links: Links, rollout: Rollout, node_reward: Tensor | None) -> Tensor:
    """Return the return to go of each step, shape (T, E, N), with its own reward and that of its nodes.

    Sequential agents share one chain, and so the whole return.
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
    """Return the discounted reward that follows each node, shape of `mask`, up to the end of episode or rollout."""
    return backup(
        links,
        reward,
        torch.zeros_like(mask, dtype=reward.dtype),
        mask,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        bootstrap=torch.zeros_like(rollout.bootstrap),
        order=rollout.order,
        discount=rollout.discount(links.gamma),
        node_reward=node_reward,
    )[1]


def mean_over_ranks(x: Tensor, mask: Tensor) -> float:
    """Return the mean of the masked entries of all ranks; 0 if there are none."""
    y = x.double()
    total, count = distributed.all_reduce(torch.stack([masked_sum(y, mask), mask.sum().double()])).tolist()
    return total / max(count, 1.0)


def standardize(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with zero mean and unit population variance over the masked entries of all ranks."""
    y = x.double()
    total, count = distributed.all_reduce(torch.stack([masked_sum(y, mask), mask.sum().double()])).unbind()
    y = y - total / count.clamp(min=1)
    variance = distributed.all_reduce(masked_sum(y.square(), mask)) / count.clamp(min=1)
    return (y / (variance.sqrt() + 1e-5)).to(x.dtype).masked_fill(~mask, 0.0)


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(returns - value) / Var(returns) over the masked entries of all ranks; 0 for constant returns."""
    y = torch.stack([returns.double(), (returns - value).double()])
    sums = torch.stack([*(masked_sum(each, mask) for each in y), mask.sum().double()])
    *total, count = distributed.all_reduce(sums).unbind()
    mean = torch.stack(total) / count.clamp(min=1)
    y = y - mean.view(2, *[1] * returns.dim())
    spread, error = distributed.all_reduce(torch.stack([masked_sum(each.square(), mask) for each in y])).tolist()
    rounding = 1e-20 * float(count * mean[0].square())
    return 1.0 - error / spread if spread > rounding else 0.0


def _grouped(score: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return scores and weights in float64, shape (E / size, size, N)."""
    return tuple(x.double().unflatten(0, (-1, size)) for x in (score.masked_fill(~valid, 0.0), valid))  # pyright: ignore[reportReturnType]
