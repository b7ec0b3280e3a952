"""Clipped PPO and soft Q over masked nodes. Every reduction takes a mask."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from marl.errors import ConfigError
from marl.types import Evaluation, Inputs, Nodes

RatioLevel = Literal["node", "agent", "step"]
Estimator = Literal["k1", "k2", "k3"]
RowIndex = slice | Tensor
"""Some rows of a batch: a slice that has a start and a stop, or their indices."""


@dataclass(frozen=True)
class Batch:
    """B rows of a rollout: `inputs` and `nodes` (B, ...), the rest (B, N, L) or (B, N, 1).

    `value` and `returns` are in the critic's units; `returns` is None where no value is learned. `behavior` and
    `reference` as in Decision.
    """

    inputs: Inputs
    nodes: Nodes
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor | None
    behavior_log_prob: Tensor | None = None
    reference_log_prob: Tensor | None = None

    def rows(self, index: RowIndex) -> "Batch":
        """The rows at `index`; those of a slice are views."""
        nodes = self.nodes

        def take(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return Batch(
            inputs={name: x[index] for name, x in self.inputs.items()},
            nodes=Nodes(nodes.action[index], nodes.node_mask[index], nodes.loss_mask[index], take(nodes.order)),
            log_prob=self.log_prob[index],
            value=self.value[index],
            advantage=self.advantage[index],
            returns=take(self.returns),
            behavior_log_prob=take(self.behavior_log_prob),
            reference_log_prob=take(self.reference_log_prob),
        )

    def for_agent(self, agent: int, weight: Tensor) -> "Batch":
        """The same rows with the decisions of one agent, its advantages times `weight` (B, 1, 1), and no values."""
        mine = torch.zeros_like(self.nodes.loss_mask[:1])
        mine[:, agent] = True
        nodes = replace(self.nodes, loss_mask=self.nodes.loss_mask & mine)
        return replace(self, nodes=nodes, advantage=self.advantage * weight, returns=None)

    def values_only(self) -> "Batch":
        """The same rows with values to learn and no decisions."""
        return replace(self, nodes=replace(self.nodes, loss_mask=torch.zeros_like(self.nodes.loss_mask)))


@dataclass(frozen=True)
class Objective:
    """The error of values against returns, and the estimate of how far a policy moved."""

    value_coef: float = 1.0
    value_loss: Literal["huber", "mse"] = "huber"
    huber_delta: float = 10.0
    kl_estimator: Estimator = "k3"

    def __post_init__(self) -> None:
        if not 0.0 <= self.value_coef < float("inf"):
            raise ConfigError(f"value_coef is {self.value_coef}; give 0 or more")
        if not self.huber_delta > 0.0:
            raise ConfigError(f"huber_delta is {self.huber_delta}; give a positive number")

    def units(self, batch: Batch) -> Tensor:
        """(B, ...): which units of the policy's loss there are."""
        raise NotImplementedError

    def row_counts(self, batch: Batch) -> Tensor:
        """(B, 2): policy units and value nodes of each row."""
        return torch.stack([x.flatten(1).sum(-1) for x in (self.units(batch), value_mask(batch))], -1)

    def counts(self, batch: Batch) -> Tensor:
        """(2,): policy units and value nodes of a batch, the denominators of its means."""
        return self.row_counts(batch).sum(0).to(batch.log_prob.dtype)

    def total(
        self, policy_loss: Tensor, evaluation: Evaluation, batch: Batch, counts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of policy and values, and the values' part of it.

        A policy without units, or a critic without values to learn, gets no gradient. With a gradient of zero, an
        optimizer's momentum would move it.
        """
        decides, values = (counts > 0).tolist()
        loss = policy_loss if decides else policy_loss.detach()
        if not values or not self.value_coef or batch.returns is None:
            return loss, {}
        error = masked_sum(self.value_error(evaluation.value, batch.value, batch.returns), value_mask(batch))
        value_loss = error / counts[1]
        return loss + self.value_coef * value_loss, {"loss/value": value_loss.detach()}

    def value_error(self, value: Tensor, old_value: Tensor, returns: Tensor) -> Tensor:  # noqa: ARG002 - ClippedPPO's
        """Return the error of each value node."""
        return self.error(value - returns)

    def error(self, difference: Tensor) -> Tensor:
        if self.value_loss == "mse":
            return 0.5 * difference.square()
        return F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=self.huber_delta)


@dataclass(frozen=True)
class ClippedPPO(Objective):
    """The clipped surrogate of PPO (Schulman et al. 2017, eq. 7) with a value loss and an entropy bonus.

    `ratio` says what the importance ratio, and with it the clip, belongs to: each "node" (one torque,
    one token), each "agent" (the product over its slots), or the whole "step" (the product over all
    agents). Losses, entropy and KL are means over these units. `clip_high` is the upper range where it differs
    (Yu et al. 2025, eq. 10).

    Where something else than the policy sampled, each unit weighs in with the probability of the old policy
    over that of the sampler, cut at `is_weight_cap` (Espeholt et al. 2018, eq. 1: a truncated importance weight).
    `reference_coef` weighs the divergence from the reference policy, estimated by k3 at each node
    (Shao et al. 2024, eq. 4).
    """

    clip: float = 0.2
    clip_high: float | None = None
    is_weight_cap: float = 2.0
    reference_coef: float = 0.0
    ratio_level: RatioLevel = "agent"
    entropy_coef: float = 0.01
    value_clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.clip < 1.0:
            raise ConfigError(f"clip is {self.clip}; the PPO clip lies between 0 and 1, usually 0.05 to 0.3")
        if self.clip_high is not None and not 0.0 < self.clip_high < float("inf"):
            raise ConfigError(f"clip_high is {self.clip_high}; give a positive number, or None for that of clip")
        if not 1.0 <= self.is_weight_cap < float("inf"):
            raise ConfigError(f"is_weight_cap is {self.is_weight_cap}; a cap of importance weights is 1 or more")
        for name in ("entropy_coef", "value_clip", "reference_coef"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")

    def units(self, batch: Batch) -> Tensor:
        return to_units(batch.nodes.loss_mask, self.unit(batch))

    def __call__(self, evaluation: Evaluation, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts, each a sum over this batch divided by `counts`.

        With the counts of a whole minibatch (over all micro-batches and ranks) the parts of several
        batches add up to that minibatch's means, and so do their gradients.
        """
        units = counts[0].clamp(min=1.0)
        trained, unit = batch.nodes.loss_mask, self.unit(batch)
        mask = to_units(trained, unit)
        log_ratio = unit_sum(evaluation.log_prob - batch.log_prob, trained, unit)
        advantage = unit_mean(batch.advantage.expand_as(trained), trained, unit)
        # exp(88) is infinite in float32, and infinity times a zero gradient is NaN.
        log_ratio = log_ratio.clamp(-20.0, 20.0)
        ratio = log_ratio.exp()
        low, high = 1.0 - self.clip, 1.0 + (self.clip if self.clip_high is None else self.clip_high)
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        extra: dict[str, Tensor] = {}
        if batch.behavior_log_prob is not None:
            gap = unit_sum(batch.log_prob - batch.behavior_log_prob, trained, unit)
            surrogate = surrogate * gap.clamp(-20.0, 20.0).exp().clamp(max=self.is_weight_cap)
            extra["policy/behavior_gap"] = masked_sum(gap.abs(), mask) / units
        policy_loss = -masked_sum(surrogate, mask) / units
        entropy_mean = masked_sum(evaluation.entropy, trained) / units
        loss = policy_loss - self.entropy_coef * entropy_mean
        if batch.reference_log_prob is None and self.reference_coef:
            raise no_reference("reference_coef", self.reference_coef)
        if batch.reference_log_prob is not None:
            distance = (batch.reference_log_prob - evaluation.log_prob).clamp(-20.0, 20.0)
            divergence = masked_sum(kl_estimate(distance, "k3"), trained) / units
            loss = loss + self.reference_coef * divergence
            extra["policy/reference_kl"] = divergence.detach()
        loss, value_part = self.total(loss, evaluation, batch, counts)
        with torch.no_grad():
            parts = {
                "loss/total": loss.detach(),
                "loss/policy": policy_loss.detach(),
                "policy/entropy": entropy_mean.detach(),
                "policy/kl": masked_sum(kl_estimate(log_ratio, self.kl_estimator), mask) / units,
                "policy/clip_fraction": masked_sum(((ratio < low) | (ratio > high)).float(), mask) / units,
            }
        return loss, parts | value_part | extra

    def unit(self, batch: Batch) -> RatioLevel:
        """What the ratio belongs to: an agent's only slot is a node of its own, which is less work."""
        return "node" if self.ratio_level == "agent" and batch.nodes.node_mask.shape[-1] == 1 else self.ratio_level

    def value_error(self, value: Tensor, old_value: Tensor, returns: Tensor) -> Tensor:
        """Return the error of each value node, the larger of the free and the clipped one where `value_clip` > 0."""
        error = self.error(value - returns)
        if self.value_clip == 0.0:
            return error
        near = old_value + (value - old_value).clamp(-self.value_clip, self.value_clip)
        return torch.maximum(error, self.error(near - returns))


@dataclass(frozen=True)
class SoftQ(Objective):
    """Entropy-regularized policy optimization node by node (Wen et al. 2024, "Entropy-Regularized Token-Level Policy
    Optimization", eq. 12 and 13).

    Returns are the reward and the soft value of the next node, or longer ones (lambda above 0) with the divergence that
    the nodes between have earned. `Evaluation.value` is the Q of the action
    taken, regressed on them; `Evaluation.policy_loss` is the policy's loss, an expectation over all actions of a node.
    """

    def units(self, batch: Batch) -> Tensor:
        return batch.nodes.loss_mask

    def __call__(self, evaluation: Evaluation, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As ClippedPPO. Raises ConfigError where the policy gives no expected loss."""
        if evaluation.policy_loss is None:
            raise ConfigError("objective is 'soft_q', which this agent does not compute; take 'ppo', or the agent etpo")
        units, trained = counts[0].clamp(min=1.0), batch.nodes.loss_mask
        policy_loss = masked_sum(evaluation.policy_loss, trained) / units
        loss, value_part = self.total(policy_loss, evaluation, batch, counts)
        with torch.no_grad():
            log_ratio = (evaluation.log_prob - batch.log_prob).masked_fill(~trained, 0.0).clamp(-20.0, 20.0)
            parts = {
                "loss/total": loss.detach(),
                "loss/policy": policy_loss.detach(),
                "policy/entropy": masked_sum(evaluation.entropy, trained) / units,
                "policy/kl": masked_sum(kl_estimate(log_ratio, self.kl_estimator), trained) / units,
            }
            if batch.reference_log_prob is not None:
                distance = (batch.reference_log_prob - evaluation.log_prob).clamp(-20.0, 20.0)
                parts["policy/reference_kl"] = masked_sum(kl_estimate(distance, "k3"), trained) / units
        return loss, parts | value_part


def no_reference(name: str, value: float) -> ConfigError:
    return ConfigError(
        f"{name} is {value}, but this agent keeps no reference policy; leave it 0, or take a language agent "
        "with --reference"
    )


def kl_estimate(log_ratio: Tensor, kind: Estimator) -> Tensor:
    """Estimates of KL(old || new) from samples of old, with log_ratio = log new - log old.

    k1 is unbiased, k2 has low variance, k3 is unbiased, low in variance and never negative
    (Schulman 2020, "Approximating KL divergence").
    """
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1(log_ratio) - log_ratio


def even_slices(mask: Tensor, rows: int, divisor: int, chunk: int = 1) -> list[RowIndex]:
    """The rows of `mask` (B, N, L) in order, cut into parts of about equal size as `Policy.split` says.

    `chunk` rows stay together.
    """
    count = mask.shape[0]
    most = -(-(min(rows, count) if rows else count) // divisor)
    most = max(chunk, most - most % chunk)
    size = -(-count // max(1, -(-count // most)))
    size = max(chunk, size + -size % chunk)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def row_count(index: RowIndex) -> int:
    return index.stop - index.start if isinstance(index, slice) else len(index)


def value_mask(batch: Batch) -> Tensor:
    """(B, N, L), or (B, N, 1) where a value belongs to a whole action."""
    mask = batch.nodes.node_mask
    return mask if batch.value.shape[-1] == mask.shape[-1] else mask.any(-1, keepdim=True)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum of the entries where `mask` is True; whatever stands elsewhere, NaN included, is ignored."""
    return x.masked_fill(~mask, 0.0).sum()


_AXES: dict[str, tuple[int, ...]] = {"node": (), "agent": (-1,), "step": (-2, -1)}


def to_units(mask: Tensor, unit: RatioLevel) -> Tensor:
    """Which units hold at least one node: (B, N, L), (B, N, 1) or (B, 1, 1)."""
    return (
        mask
        if unit == "node"
        else mask.any(-1, keepdim=True)
        if unit == "agent"
        else mask.flatten(1).any(-1)[:, None, None]
    )


def unit_sum(x: Tensor, mask: Tensor, unit: RatioLevel) -> Tensor:
    """The sum of the masked nodes of each unit."""
    x = x.masked_fill(~mask, 0.0)
    return x if unit == "node" else x.sum(_AXES[unit], keepdim=True)


def unit_mean(x: Tensor, mask: Tensor, unit: RatioLevel) -> Tensor:
    """The mean of the masked nodes of each unit."""
    if unit == "node":
        return x
    return unit_sum(x, mask, unit) / mask.sum(_AXES[unit], keepdim=True).clamp(min=1)
