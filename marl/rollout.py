"""Rollouts: T steps of E environments in preallocated storage, and their minibatches."""

import logging

import torch
from torch import Generator, Tensor

from marl.objective import Batch, RowIndex, no_reference
from marl.types import Decision, Inputs, Nodes

LOGGER = logging.getLogger("marl")


class Rollout:
    """T steps of E environments as a struct of tensors, filled in place.

    `inputs`: (T, E, ...) as the policy encoded them. `action, node_mask, loss_mask, log_prob`: (T, E, N, L).
    `value`: (T, E, N, L) or (T, E, N, 1), in the critic's units. `reward`: (T, E, N).
    `terminated, truncated`: (T, E). `bootstrap`: (T, E, N), in the critic's units, set only where a chain is cut.
    `duration`: (T, E) int64 primitive steps. `order`: (T, E, N) or None. `behavior_log_prob, reference_log_prob,
    node_reward_own`: (T, E, N, L), or None if the policy does not give them. `agent_truncated`: (T, E, N), agents that
    were truncated alone. The memory layout of a recurrent policy's rollout is (E, T), so that segments are views.
    Its recurrent state is stored at the first of each `segment_steps` steps, where `Policy.evaluate` reads it. It is
    zero elsewhere, so that those pages of memory stay unused.
    """

    def __init__(self, steps: int, inputs: Inputs, decision: Decision, num_agents: int, segment_steps: int = 1) -> None:
        self.env_major, self.segment_steps = decision.recurrent_state is not None, segment_steps

        def like(x: Tensor) -> Tensor:
            if self.env_major:
                return torch.zeros((len(x), steps, *x.shape[1:]), dtype=x.dtype, device=x.device).transpose(0, 1)
            return torch.zeros((steps, *x.shape), dtype=x.dtype, device=x.device)

        nodes = decision.nodes
        envs = nodes.node_mask.shape[0]
        device = decision.log_prob.device
        self.steps = steps
        self.inputs = {name: like(x) for name, x in inputs.items()}
        self.action, self.node_mask, self.loss_mask = like(nodes.action), like(nodes.node_mask), like(nodes.loss_mask)
        self.order: Tensor | None = None
        self.log_prob, self.value = like(decision.log_prob), like(decision.value)
        self.behavior_log_prob = None if decision.behavior_log_prob is None else like(decision.behavior_log_prob)
        self.reference_log_prob = None if decision.reference_log_prob is None else like(decision.reference_log_prob)
        self.node_reward_own = None if decision.node_reward is None else like(decision.node_reward)
        self.reward = torch.zeros((steps, envs, num_agents), device=device)
        self.bootstrap = torch.zeros((steps, envs, num_agents), device=device)
        self.terminated = torch.zeros((steps, envs), dtype=torch.bool, device=device)
        self.truncated = torch.zeros((steps, envs), dtype=torch.bool, device=device)
        self.agent_truncated = torch.zeros((steps, envs, num_agents), dtype=torch.bool, device=device)
        self.duration = torch.ones((steps, envs), dtype=torch.long, device=device)

    def write(self, t: int, inputs: Inputs, decision: Decision) -> None:
        """Store step `t`."""
        nodes = decision.nodes
        for name, x in inputs.items():
            if name != "recurrent_state" or t % self.segment_steps == 0:
                self.inputs[name][t] = x
        self.action[t], self.node_mask[t], self.loss_mask[t] = nodes.action, nodes.node_mask, nodes.loss_mask
        self.log_prob[t], self.value[t] = decision.log_prob, decision.value
        if self.behavior_log_prob is not None and decision.behavior_log_prob is not None:
            self.behavior_log_prob[t] = decision.behavior_log_prob
        if self.reference_log_prob is not None and decision.reference_log_prob is not None:
            self.reference_log_prob[t] = decision.reference_log_prob
        if self.node_reward_own is not None and decision.node_reward is not None:
            self.node_reward_own[t] = decision.node_reward
        if nodes.order is not None and self.order is None:
            # All steps before this one were decided in the order 0..N-1.
            self.order = (
                torch.arange(self.node_mask.shape[2], device=self.node_mask.device)
                .expand(self.node_mask.shape[:3])
                .clone()
            )
        if self.order is not None:
            self.order[t] = torch.arange(self.node_mask.shape[2]) if nodes.order is None else nodes.order

    def discount(self, gamma: float) -> Tensor | None:
        """Return the discount of each step, shape (T, E); None if every step is one primitive step."""
        return gamma**self.duration if bool((self.duration != 1).any()) else None

    def agent_cuts(self) -> Tensor | None:
        """Return the agents that were truncated alone, shape (T, E, N) bool; None if there are none."""
        return self.agent_truncated if bool(self.agent_truncated.any()) else None

    def node_reward(self, coef: float) -> Tensor | None:
        """Return the rewards of single nodes, shape (T, E, N, L): the policy's own, plus `coef` times the log-ratio of
        reference to policy at trained nodes.

        None if there are neither. Raises ConfigError if `coef` is set and the policy has no reference.
        """
        if coef == 0.0:
            return self.node_reward_own
        if self.reference_log_prob is None:
            raise no_reference("reference_reward_coef", coef)
        near = coef * (self.reference_log_prob - self.log_prob).masked_fill(~self.loss_mask, 0.0)
        return near if self.node_reward_own is None else near + self.node_reward_own

    def value_mask(self) -> Tensor:
        """Return the mask of value nodes: (T, E, N, L), or (T, E, N, 1) if a value belongs to a whole action."""
        return self.node_mask if self.value.shape == self.node_mask.shape else self.node_mask.any(-1, keepdim=True)

    def flat(self, advantage: Tensor, returns: Tensor | None) -> Batch:
        """Return all T x E rows as one batch of views. Rows of a recurrent policy are ordered by environment."""

        def flat(x: Tensor) -> Tensor:
            return (x.transpose(0, 1) if self.env_major else x).flatten(0, 1)

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else flat(x)

        return Batch(
            inputs={name: flat(x) for name, x in self.inputs.items()},
            nodes=Nodes(flat(self.action), flat(self.node_mask), flat(self.loss_mask), maybe(self.order)),
            log_prob=flat(self.log_prob),
            value=flat(self.value),
            advantage=flat(advantage),
            returns=maybe(returns),
            behavior_log_prob=maybe(self.behavior_log_prob),
            reference_log_prob=maybe(self.reference_log_prob),
        )


def iter_minibatches(batch: Batch, count: int, generator: Generator, chunk: int = 1) -> list[RowIndex]:
    """Return the rows of `count` random parts of nearly equal size, which together hold every row once.

    Segments of `chunk` rows stay whole. A single part is a slice of all rows in their order, which needs no copy.
    """
    if count == 1:
        return [slice(0, batch.log_prob.shape[0])]
    chunks = batch.log_prob.shape[0] // chunk
    order = torch.randperm(chunks, generator=generator).to(batch.log_prob.device)
    return [rows_of(part, chunk) for part in order.tensor_split(count)]


def rows_of(chunks: Tensor, chunk: int) -> Tensor:
    """Return the rows of the segments `chunks` (K,), which have `chunk` rows each."""
    return (chunks.unsqueeze(-1) * chunk + torch.arange(chunk, device=chunks.device)).flatten()
