"""The update on a batch: passes over minibatches, micro-batches, gradient steps."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Generator, Tensor

from marl import distributed
from marl.errors import NonFiniteError
from marl.multitask import Task
from marl.objective import Batch, Objective, RowIndex, row_count, unit_sum
from marl.optimizer import clip_gradients, parameter_groups
from marl.rollout import iter_minibatches
from marl.settings import LearnConfig

Pass = tuple[int, RowIndex]
"""Rows of one forward pass: the number of the task, and the rows of its minibatch."""


class Updater:
    """Optimizer, learning rates and objective of a run, and the update on a batch of each task.

    `segment_steps`: consecutive rows that stay together, for recurrent policies.
    """

    def __init__(
        self, learn: LearnConfig, tasks: Sequence[Task], objective: Objective, generator: Generator, segment_steps: int
    ) -> None:
        self.learn, self.tasks, self.objective = learn, tasks, objective
        self.generator, self.segment_steps = generator, segment_steps
        policy = tasks[0].policy
        self.device, self.backoff = policy.device, policy.backoff
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameter_groups(policy, learn), eps=learn.adam_epsilon, fused=True)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.lr_factor = 1.0
        self.lr_start: tuple[int, float] = (0, 1.0)
        """Steps and factor from which learning rates are annealed to zero."""
        self.initial_kl = 0.0
        """Largest KL estimate of the iteration on weights that had not changed since acting. It is 0 but for rounding.
        """

    def set_learning_rates(self, steps: int, last: int) -> dict[str, float]:
        """Anneal the learning rates linearly to zero at `last` steps, if configured; return them as metrics."""
        if self.learn.anneal_learning_rate:
            start, factor = self.lr_start
            self.lr_factor = factor * max(0.0, 1.0 - (steps - start) / (last - start))
        rates = [rate * self.lr_factor for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return dict(zip(("policy/learning_rate", "value/learning_rate"), rates, strict=False))

    def set_training(self, training: bool) -> None:
        """Switch dropout, batch normalization and the like to training or to evaluation mode."""
        for task in self.tasks:
            task.policy.train(training)

    def update_sequentially(self, batch: Batch, order: Sequence[int]) -> dict[str, float]:
        """Update the agents one after another in `order`, then the critic (HAPPO, Kuba et al. 2022, algorithm 4).

        Each agent gets all epochs, with advantages weighted by the importance ratios of the agents updated before.
        Returns the means over the agents, and the value loss.
        """
        policy = self.tasks[0].policy
        weight = torch.ones_like(batch.advantage[:, :1, :1])
        reports = []
        for agent in order:
            mine = batch.for_agent(agent, weight)
            mine = replace(mine, inputs=policy.agent_inputs(mine.inputs, agent))
            reports.append(self.run_epochs(mine))
            weight = weight * self.importance_ratio(mine)
        means = {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}
        if self.objective.value_coef:
            critic = self.run_epochs(batch.values_only())
            means["loss/total"] += critic["loss/total"]
            if "loss/value" in critic:  # absent if no agent was alive
                means["loss/value"] = critic["loss/value"]
        return means

    @torch.no_grad()
    def importance_ratio(self, batch: Batch) -> Tensor:
        """Return the importance ratio of each row's trained nodes, shape (B, 1, 1)."""
        policy = self.tasks[0].policy
        ratio = torch.ones_like(batch.advantage[:, :1, :1])
        for index in policy.micro_batches(batch.inputs, batch.nodes, self.learn.micro_batch, self.backoff.reduction):
            rows = batch.rows(index)
            change = policy.evaluate(rows.inputs, rows.nodes).log_prob - rows.log_prob
            ratio[index] = unit_sum(change, rows.nodes.loss_mask, "step").clamp(-20.0, 20.0).exp()
        return ratio

    def run_epochs(self, *batches: Batch) -> dict[str, float]:
        """Pass over the batches of all tasks until the epochs are done or the KL limit ends them.

        Returns the means of the metrics over the gradient steps.
        """
        learn = self.learn
        sums: dict[str, Tensor] = {}
        row_counts = [self.objective.row_counts(batch).to(batch.log_prob.dtype) for batch in batches]
        updates, epochs = 0, 0
        self.set_training(True)
        try:
            while epochs < learn.epochs:
                epoch_kl = torch.zeros((), device=self.device)
                for rows, counts in self.iter_minibatches(batches, row_counts):
                    minibatches = [batch.rows(index) for batch, index in zip(batches, rows, strict=True)]
                    parts = self.step(minibatches, counts, epochs)
                    if not updates:
                        self.initial_kl = max(self.initial_kl, float(parts["policy/kl"]))
                    epoch_kl += parts["policy/kl"]
                    for name, part in parts.items():
                        sums[name] = sums.get(name, torch.zeros_like(part)) + part
                    updates += 1
                epochs += 1
                if learn.target_kl and float(epoch_kl) / learn.minibatches > learn.target_kl:
                    break
        finally:
            self.set_training(False)
        names = list(sums)
        means = (torch.stack([sums[name] for name in names]) / updates).tolist()
        return dict(zip(names, means, strict=True)) | {"policy/epochs": float(epochs)}

    def iter_minibatches(
        self, batches: Sequence[Batch], row_counts: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[RowIndex, ...], Tensor]]:
        """Yield the minibatches of an epoch: the rows in each task, and the counts of the objective, shape (tasks, 2).

        The counts are sums over all ranks. One message holds those of the whole epoch, because every message is a
        barrier.
        """
        cuts = (iter_minibatches(each, self.learn.minibatches, self.generator, self.segment_steps) for each in batches)
        rows = list(zip(*cuts, strict=True))
        counts = [torch.stack([x[part].sum(0) for x, part in zip(row_counts, each, strict=True)]) for each in rows]
        return zip(rows, distributed.all_reduce(torch.stack(counts)), strict=True)

    def step(self, minibatches: Sequence[Batch], counts: Tensor, epoch: int) -> dict[str, Tensor]:
        """Take one gradient step on a minibatch of each task.

        `counts` (tasks, 2) are those of the objective over all ranks. Returns the metrics over all ranks, means over
        the tasks, and the gradient norm. Raises NonFiniteError before the step if loss or gradient is not finite.
        """
        total = self.gradient(minibatches, counts * len(minibatches))
        reduced = distributed.sum_gradients(self.parameters, torch.stack(list(total.values())))
        total = dict(zip(total, reduced.unbind(), strict=True))
        norm = clip_gradients(self.parameters, self.learn.max_grad_norm or float("inf")).to(self.device)
        if not bool(torch.isfinite(norm + total["loss/total"])):
            shown = ", ".join(f"{name}={float(part):g}" for name, part in total.items())
            raise NonFiniteError(
                f"loss or gradient of epoch {epoch + 1} is not finite ({shown}, gradient norm {float(norm):g}). The "
                "weights before this step are kept. Lower --learning-rate or --max-grad-norm, or check the "
                "observations and rewards"
            )
        self.optimizer.step()
        for task in self.tasks:
            task.policy.after_update()
        return total | {"gradient/norm": norm}

    def gradient(self, minibatches: Sequence[Batch], counts: Tensor) -> dict[str, Tensor]:
        """Fill the gradients of a minibatch of each task, in smaller passes if memory runs out.

        `counts` (tasks, 2) are those of the objective. Returns the metrics on this rank.
        """

        def split(divisor: int) -> list[Pass]:
            return [
                (number, part)
                for number, (task, each) in enumerate(zip(self.tasks, minibatches, strict=True))
                for part in task.policy.micro_batches(each.inputs, each.nodes, self.learn.micro_batch, divisor)
            ]

        def accumulate(passes: Sequence[Pass]) -> dict[str, Tensor]:
            self.optimizer.zero_grad(set_to_none=True)
            total: dict[str, Tensor] = {}
            with ExitStack() as stack:
                for number, count in Counter(number for number, _ in passes).items():
                    if count > 1:
                        stack.enter_context(self.tasks[number].policy.accumulation_context())
                for number, index in passes:
                    batch = minibatches[number]
                    micro = batch if row_count(index) == len(batch.log_prob) else batch.rows(index)
                    evaluation = self.tasks[number].policy.evaluate(micro.inputs, micro.nodes)
                    loss, parts = self.objective(evaluation, micro, counts[number])
                    if loss.requires_grad:
                        loss.backward()
                    for name, part in parts.items():
                        total[name] = total[name] + part if name in total else part
            return total

        return self.backoff.run(split, lambda each: row_count(each[1]), accumulate, self.segment_steps)
