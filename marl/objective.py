"""Objectives over masked nodes: clipped PPO and soft Q. Every reduction takes a mask."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from marl.errors import ConfigError
from marl.registry import register_objective
from marl.types import Evaluation, Inputs, Nodes

RatioLevel = Literal["node", "agent", "step"]
Estimator = Literal["k1", "k2", "k3"]
RowIndex = slice | Tensor
"""Rows of a batch: a slice with a start and a stop, or indices."""


@dataclass(frozen=True)
class Batch:
    """B rows of a rollout: `inputs` and `nodes` (B, ...), all others (B, N, L) or (B, N, 1).

    `value` and `returns` are in the critic's units. `returns` is None if no value is learned. `behavior_log_prob` and
    `reference_log_prob` are those of Decision.
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
        """Return the rows at `index`. The rows of a slice are views."""
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
        """Return the batch with one agent's decisions, advantages times `weight` (B, 1, 1), and no value loss."""
        mine = torch.zeros_like(self.nodes.loss_mask[:1])
        mine[:, agent] = True
        nodes = replace(self.nodes, loss_mask=self.nodes.loss_mask & mine)
        return replace(self, nodes=nodes, advantage=self.advantage * weight, returns=None)

    def values_only(self) -> "Batch":
        """Return the batch without decisions, for an update of the critic alone."""
        return replace(self, nodes=replace(self.nodes, loss_mask=torch.zeros_like(self.nodes.loss_mask)))


@dataclass(frozen=True)
class Objective:
    """Base class of objectives: the value loss. Fields of a subclass are options, with their docstrings as help.

    All sums run over a micro-batch and are divided by the counts of the whole minibatch, over all micro-batches and
    ranks. So the losses of micro-batches add up to the minibatch's mean, and so do their gradients.
    """

    value_coef: float = 1.0
    """Weight of the value loss."""
    value_loss: Literal["huber", "mse"] = "huber"
    """Form of the value loss."""
    huber_delta: float = 10.0
    """Error, in units of the critic, beyond which the Huber loss is linear."""
    kl_estimator: Estimator = "k3"
    """Estimate of the KL divergence that is logged and that target_kl reads."""

    uses_advantages: ClassVar[bool] = True
    """The policy loss reads advantages. Without them the advantage estimator only provides returns."""
    normalizes_values: ClassVar[bool] = True
    """The critic may work in normalized units."""

    def __post_init__(self) -> None:
        _require_weights(value_coef=self.value_coef)
        if not self.huber_delta > 0.0:
            raise ConfigError(f"huber_delta={self.huber_delta}, which is not positive; set a positive number")

    def check(self, config: Any) -> None:
        """Raise ConfigError if the settings of a run contradict the class attributes."""
        learn = config.learn
        if not self.normalizes_values and learn.value_norm_decay != 0.0:
            raise ConfigError(
                f"value_norm_decay={learn.value_norm_decay}, but objective {learn.objective!r} needs values in units "
                "of the reward; set it to 0"
            )
        if not self.uses_advantages and not config.make_advantage().uses_critic:
            raise ConfigError(
                f"objective={learn.objective!r} learns from a critic, but advantage={learn.advantage!r} has none; set "
                "advantage to 'gae'"
            )

    def __call__(self, evaluation: Evaluation, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the metrics of a micro-batch, each a sum divided by `counts`.

        `counts` (2,) are the policy units and the value nodes of the whole minibatch. The metrics hold "loss/total",
        "loss/policy" and "policy/kl".
        """
        raise NotImplementedError(f"class {type(self).__name__} does not define __call__; see docs/add-algorithm.md")

    def units(self, batch: Batch) -> Tensor:
        """Return the mask of the units over which the policy loss is a mean, shape (B, ...)."""
        return batch.nodes.loss_mask

    def row_counts(self, batch: Batch) -> Tensor:
        """Return the policy units and value nodes of each row, shape (B, 2)."""
        return torch.stack([x.flatten(1).sum(-1) for x in (self.units(batch), value_mask(batch))], -1)

    def counts(self, batch: Batch) -> Tensor:
        """Return the policy units and value nodes of a batch, shape (2,): the denominators of its means."""
        return self.row_counts(batch).sum(0).to(batch.log_prob.dtype)

    def total(
        self, policy_loss: Tensor, evaluation: Evaluation, batch: Batch, counts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of policy and values, and the value loss as a metric.

        A policy without units, or a critic without value nodes, gets no gradient. A gradient of zero would not do: the
        optimizer's momentum would move the weights.
        """
        decides, values = (counts > 0).tolist()
        loss = policy_loss if decides else policy_loss.detach()
        if not values or not self.value_coef or batch.returns is None:
            return loss, {}
        error = masked_sum(self.value_error(evaluation.value, batch.value, batch.returns), value_mask(batch))
        value_loss = error / counts[1]
        return loss + self.value_coef * value_loss, {"loss/value": value_loss.detach()}

    def value_error(self, value: Tensor, old_value: Tensor, returns: Tensor) -> Tensor:  # noqa: ARG002 - ClippedPPO's
        """Return the error of each value node, shape of `value`."""
        return self.error(value - returns)

    def error(self, difference: Tensor) -> Tensor:
        """Return the Huber or squared error of each difference."""
        if self.value_loss == "mse":
            return 0.5 * difference.square()
        return F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=self.huber_delta)


@register_objective("ppo", summary="clipped surrogate of PPO, with an entropy bonus")
@dataclass(frozen=True)
class ClippedPPO(Objective):
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7) with a value loss and an entropy bonus.

    The importance ratio, and with it the clip, belongs to each node (one torque, one token), each agent (the product
    over its slots), or the whole step (the product over all agents). Losses, entropy and KL are means over these units.
    """

    clip: float = 0.2
    """PPO clip range of the importance ratio."""
    clip_high: float | None = None
    """Upper clip range if it differs from the lower one (Yu et al. 2025, eq. 10); None takes clip for both."""
    is_weight_cap: float = 2.0
    """Largest importance weight of a unit that was sampled from another distribution than the policy's (Espeholt et al.
    2018, eq. 1)."""
    reference_coef: float = 0.0
    """Weight in the loss of the divergence from a frozen reference policy, estimated by k3 at each node (Shao et al.
    2024, eq. 4), for agents that have one."""
    ratio_level: RatioLevel = "agent"
    """Unit of the importance ratio: a node (one torque, one token), an agent's action, or a whole step."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus, the mean over the units of ratio_level of the sum over their nodes."""
    value_clip: float = 0.0
    """Range to which a value may move in one update, in units of the critic; 0 is no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.clip < 1.0:
            raise ConfigError(f"clip={self.clip}, but the clip range lies between 0 and 1; set usually 0.05 to 0.3")
        if self.clip_high is not None and not 0.0 < self.clip_high < float("inf"):
            raise ConfigError(f"clip_high={self.clip_high}, which is not positive; set a positive number or None")
        if not 1.0 <= self.is_weight_cap < float("inf"):
            raise ConfigError(f"is_weight_cap={self.is_weight_cap}, but importance weights average 1; set 1 or more")
        _require_weights(entropy_coef=self.entropy_coef, value_clip=self.value_clip, reference_coef=self.reference_coef)

    def units(self, batch: Batch) -> Tensor:
        """Return the mask of the units of the ratio: (B, N, L), (B, N, 1) or (B, 1, 1)."""
        return to_units(batch.nodes.loss_mask, self.unit(batch))

    def __call__(self, evaluation: Evaluation, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics. Raises ConfigError for a reference weight without a reference policy."""
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
        for name, term in self.extra_terms(evaluation, batch, units).items():
            loss = loss + term
            extra[f"loss/{name}"] = term.detach()
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

    def extra_terms(self, evaluation: Evaluation, batch: Batch, units: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return further terms of the policy loss by name, each a masked sum over the batch divided by `units`.

        They are added to the loss and logged as "loss/NAME". Override it in a subclass.
        """
        return {}

    def unit(self, batch: Batch) -> RatioLevel:
        """Return the level of the ratio. An agent with one slot is a node, which is less work."""
        return "node" if self.ratio_level == "agent" and batch.nodes.node_mask.shape[-1] == 1 else self.ratio_level

    def value_error(self, value: Tensor, old_value: Tensor, returns: Tensor) -> Tensor:
        """Return the error of each value node; with `value_clip`, the larger of the free and the clipped one."""
        error = self.error(value - returns)
        if self.value_clip == 0.0:
            return error
        near = old_value + (value - old_value).clamp(-self.value_clip, self.value_clip)
        return torch.maximum(error, self.error(near - returns))


@register_objective("soft_q", summary="soft Q values and the policy that they imply, for agent etpo")
@dataclass(frozen=True)
class SoftQ(Objective):
    """Entropy-regularized policy optimization node by node (Wen et al. 2024, "Entropy-Regularized Token-Level Policy
    Optimization", eq. 12 and 13).

    Returns are the reward plus the soft value of the next node. With lambda above 0 they are longer and hold the
    divergence rewards of the nodes between. `Evaluation.value` is the Q value of the action taken, regressed on the
    returns. `Evaluation.policy_loss` is the policy's loss, an expectation over all actions of a node.
    """

    uses_advantages = False
    normalizes_values = False

    def __call__(self, evaluation: Evaluation, batch: Batch, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its metrics. Raises ConfigError if the policy computes no policy loss."""
        if evaluation.policy_loss is None:
            raise ConfigError(
                "objective='soft_q', which this agent does not compute; set objective to 'ppo', or train agent etpo"
            )
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


def _require_weights(**weights: float) -> None:
    """Raise ConfigError for a weight that is negative or not finite."""
    for name, value in weights.items():
        if not 0.0 <= value < float("inf"):
            raise ConfigError(f"{name}={value}, which is negative or not finite; set 0 or more")


def no_reference(name: str, value: float) -> ConfigError:
    """Return the error for a weight of the reference policy with an agent that has none."""
    return ConfigError(
        f"{name}={value}, but this agent has no reference policy; set it to 0, or train a language agent with "
        "--reference"
    )


def kl_estimate(log_ratio: Tensor, kind: Estimator) -> Tensor:
    """Return estimates of KL(old || new) at samples of old, with log_ratio = log new - log old.

    k1 is unbiased, k2 has low variance, k3 is unbiased, low in variance and never negative
    (Schulman 2020, "Approximating KL divergence").
    """
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1(log_ratio) - log_ratio


def even_slices(mask: Tensor, rows: int, divisor: int, chunk: int = 1) -> list[RowIndex]:
    """Return slices of nearly equal size over the B rows of `mask` (B, N, L), for `Policy.micro_batches`.

    Segments of `chunk` rows stay together.
    """
    count = mask.shape[0]
    most = -(-(min(rows, count) if rows else count) // divisor)
    most = max(chunk, most - most % chunk)
    size = -(-count // max(1, -(-count // most)))
    size = max(chunk, size + -size % chunk)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def row_count(index: RowIndex) -> int:
    """Return the number of rows of an index."""
    return index.stop - index.start if isinstance(index, slice) else len(index)


def value_mask(batch: Batch) -> Tensor:
    """Return the mask of value nodes, (B, N, L), or (B, N, 1) if a value belongs to a whole action."""
    mask = batch.nodes.node_mask
    return mask if batch.value.shape[-1] == mask.shape[-1] else mask.any(-1, keepdim=True)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of the entries where `mask` is True. All others, NaN included, are ignored."""
    return x.masked_fill(~mask, 0.0).sum()


_AXES: dict[str, tuple[int, ...]] = {"node": (), "agent": (-1,), "step": (-2, -1)}


def to_units(mask: Tensor, unit: RatioLevel) -> Tensor:
    """Return the mask of units with at least one node: (B, N, L), (B, N, 1) or (B, 1, 1)."""
    return (
        mask
        if unit == "node"
        else mask.any(-1, keepdim=True)
        if unit == "agent"
        else mask.flatten(1).any(-1)[:, None, None]
    )


def unit_sum(x: Tensor, mask: Tensor, unit: RatioLevel) -> Tensor:
    """Return the sum over the masked nodes of each unit."""
    x = x.masked_fill(~mask, 0.0)
    return x if unit == "node" else x.sum(_AXES[unit], keepdim=True)


def unit_mean(x: Tensor, mask: Tensor, unit: RatioLevel) -> Tensor:
    """Return the mean over the masked nodes of each unit."""
    if unit == "node":
        return x
    return unit_sum(x, mask, unit) / mask.sum(_AXES[unit], keepdim=True).clamp(min=1)
