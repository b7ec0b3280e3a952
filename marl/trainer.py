"""Training loop: collect, compute advantages, update, notify callbacks."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl import distributed
from marl.advantages import AdvantageContext, require_advantages
from marl.callbacks import Callback
from marl.checkpoint.codec import load_weights, pack, pack_optimizer, rng_state, set_rng_state, unpack, unpack_optimizer
from marl.checkpoint.store import Checkpoint
from marl.collector import Collector, Episodes
from marl.config import RunConfig
from marl.cpu import onednn_matmul, peak_memory_mb, usable_cores
from marl.errors import CheckpointError, MarlError, NonFiniteError
from marl.evaluation import mean_by_label, return_labels
from marl.factories import call_method, naming_class
from marl.multitask import Task
from marl.objective import Batch
from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.recurrent_state import segment_steps
from marl.rollout import Rollout, rows_of
from marl.seeding import Streams
from marl.stopping import ANOTHER_RANK, INTERRUPTED
from marl.tracking.base import Tracker
from marl.transitions import Recorder
from marl.update import Updater
from marl.value_norm import ValueNorm

SMALL_UPDATE = 32768
"""Agent rows of a minibatch below which a second thread costs as much as it saves (`marl bench update`)."""


class Trainer:
    """One on-policy run: collect rollouts, compute advantages, update, notify callbacks.

    `steps` counts the environment steps that were learned from, over all ranks. `extra_tasks` are further environments
    that are learned at the same time. Their policies share the parameters of `policy`. Every update takes rows of each
    task, and each task has the same weight in it, whatever its number of agents.
    """

    def __init__(
        self,
        config: RunConfig,
        env: VectorEnv,
        policy: Policy,
        tracker: Tracker,
        *,
        callbacks: Sequence[Callback] = (),
        device: torch.device | None = None,
        free_threads: int = 1,
        extra_tasks: Sequence[tuple[VectorEnv, Policy]] = (),
    ) -> None:
        self.config, self.env, self.policy = config, env, policy
        self.tracker, self.callbacks = tracker, list(callbacks)
        self.device = device or torch.device("cpu")
        self.free_threads = free_threads
        self.streams = Streams(config.seed)
        rank = distributed.rank()
        distributed.broadcast_module(policy)
        self.links, self.advantage = config.links(), config.make_advantage()
        self.generators = {
            "policy": self.streams.torch("policy", rank, device=str(self.device)),
            "minibatch": self.streams.torch("minibatch", rank),
        }
        pairs = zip(config.tasks, [(env, policy), *extra_tasks], strict=True)
        self.tasks = [self.make_task(i, task.label, *pair) for i, (task, pair) in enumerate(pairs)]
        self.value_norm, self.collector = self.tasks[0].value_norm, self.tasks[0].collector
        self.segment_steps = segment_steps(config, policy, env.num_envs)
        self.updater = Updater(
            config.learn, self.tasks, config.make_objective(), self.generators["minibatch"], self.segment_steps
        )
        self.iteration = 0
        self.steps = 0
        self.warned: set[str] = set()
        """Symptoms that this run was warned about, see marl.diagnostics."""
        self.last_score: float | None = None
        self.evaluation_missing = False
        """The evaluation of these weights was interrupted. A resumed run begins with it."""
        self.stop_reason: str | None = None
        self.interrupted = False
        self.updater.set_training(False)

    def make_task(self, number: int, name: str, env: VectorEnv, policy: Policy) -> Task:
        """Return the task of an environment, with its value normalizer and its collector."""
        config = self.config
        value_norm = ValueNorm(config.learn.value_norm_decay).to(self.device)
        first = (number * distributed.world_size() + distributed.rank()) * env.num_envs
        collector = Collector(
            env,
            policy,
            value_norm,
            config.collect.rollout_steps,
            self.generators["policy"],
            seeds=[self.streams.integer("env", first + i) for i in range(env.num_envs)],
            drop_nonfinite=config.collect.on_nonfinite == "drop",
            sequential_agents=self.links.agents == "sequential",
        )
        return Task(name, policy, value_norm, collector)

    @property
    def annealing_steps(self) -> int:
        """Environment steps after which annealed learning rates are zero."""
        return self.config.iterations * self.config.steps_per_iteration

    @property
    def finished(self) -> bool:
        """All configured steps are done."""
        return self.steps >= self.config.steps

    @property
    def asked_to_stop(self) -> bool:
        """A callback or a signal asked this rank to stop."""
        return self.stop_reason is not None or self.interrupted

    def train(self) -> str:
        """Iterate until the steps are done or a stop is requested. Returns the reason."""
        torch.set_num_threads(self.act_threads)
        if any(type(callback).on_rollout is not Callback.on_rollout for callback in self.callbacks):
            for task in self.tasks:
                task.collector.recorder = Recorder()
        self.notify("on_start")
        stopped = distributed.any_rank(self.finished or self.asked_to_stop, self.device)
        while not stopped:
            metrics = self.iterate()
            self.notify("on_iteration", metrics)
            self.tracker.log(self.steps, metrics)
            self.notify("on_logged")
            # A signal may come on one rank at any moment, so the ranks vote once an iteration.
            stopped = distributed.any_rank(self.finished or self.asked_to_stop, self.device)
        asked = INTERRUPTED if self.interrupted else ANOTHER_RANK
        # A run whose last evaluation was interrupted is not finished: resuming it plays that evaluation.
        finished = self.finished and not (self.interrupted and self.evaluation_missing)
        self.stop_reason = "finished" if finished else self.stop_reason or asked
        self.notify("on_stop")
        return self.stop_reason

    def notify(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback. Raises CallbackError if one of the user's raises."""
        for callback in self.callbacks:
            call_method(callback, "callback", hook, self, *arguments)

    def iterate(self) -> dict[str, float]:
        """Collect one rollout and update on it. Returns the metrics."""
        start = time.perf_counter()
        self.last_score = None  # it belongs to the weights before this iteration
        seconds, total = self.collector_totals()
        torch.set_num_threads(self.act_threads)
        rollouts, episodes = [], []
        for task in self.tasks:
            rollout, ended = task.collector.collect(self.episode_seeds())
            rollouts.append(rollout)
            episodes.append(ended)
            if task.collector.recorder is not None:
                self.notify("on_rollout", task.collector.recorder.take(task.name))
        after, count = self.collector_totals()
        steps = distributed.all_reduce(torch.tensor(count - total))
        collected = time.perf_counter()
        threads = self.learn_threads(*rollouts)
        torch.set_num_threads(threads)
        with onednn_matmul(self.device):
            metrics = self.learn(*rollouts)
        torch.set_num_threads(self.act_threads)
        self.notify("on_update", metrics)
        end = time.perf_counter()
        self.iteration += 1
        self.steps += int(steps)
        spent = {name: after[name] - before for name, before in seconds.items()}
        spent["learn"] = end - collected
        metrics |= {f"speed/{name}_fraction": part / (end - start) for name, part in spent.items()}
        metrics["speed/other_fraction"] = 1.0 - sum(spent.values()) / (end - start)
        metrics["speed/learn_threads"] = float(threads)
        metrics["speed/memory_mb"] = peak_memory_mb()
        metrics["speed/steps_per_second"] = int(steps) / (end - start)
        return metrics | self.mean_over_tasks(
            [
                episode_metrics(ended, return_labels(task.collector.env.spec))
                for task, ended in zip(self.tasks, episodes, strict=True)
            ]
        )

    def collector_totals(self) -> tuple[dict[str, float], int]:
        """Return the seconds spent in environments and in acting, and the steps collected, on this rank."""
        collectors = [task.collector for task in self.tasks]
        seconds = {name: sum(each.seconds[name] for each in collectors) for name in collectors[0].seconds}
        return seconds, sum(each.total for each in collectors)

    def mean_over_tasks(self, metrics: list[dict[str, float]]) -> dict[str, float]:
        """Return the means over the tasks that report a metric, and each task's own value if there are several."""
        if len(metrics) == 1:
            return metrics[0]
        found: dict[str, list[float]] = {}
        for each in metrics:
            for name, value in each.items():
                found.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in found.items()}
        for task, each in zip(self.tasks, metrics, strict=True):
            means |= {f"{name}/{task.name}": value for name, value in each.items()}
        return means

    def episode_seeds(self) -> list[int] | None:
        """Return the seeds of a rollout of whole episodes, equal inside a group; None if episodes span rollouts."""
        collect = self.config.collect
        if not collect.whole_episodes:
            return None
        first = distributed.rank() * self.env.num_envs
        groups = [(first + i) // collect.group_size for i in range(self.env.num_envs)]
        return [self.streams.integer("episode", self.iteration, group) for group in groups]

    @property
    def act_threads(self) -> int:
        """Threads of acting: one, or the free cores for a policy with `threaded_acting`."""
        return self.free_threads if self.policy.threaded_acting else 1

    def learn_threads(self, *rollouts: Rollout) -> int:
        """Return the threads of an update: as configured, else 1 for small passes and the free cores for large ones."""
        learn = self.config.learn
        if self.config.compute.learn_threads:
            return self.config.compute.learn_threads
        if self.policy.threaded_acting:
            return self.free_threads
        rows = -(-rollouts[0].node_mask.shape[0] * rollouts[0].node_mask.shape[1] // learn.minibatches)
        rows = min(rows, learn.micro_batch or rows)
        agents = max(rollout.node_mask.shape[2] for rollout in rollouts)
        return self.free_threads if rows * agents >= SMALL_UPDATE else 1

    def learn(self, *rollouts: Rollout) -> dict[str, float]:
        """Compute advantages and update the policy on them. Returns the metrics.

        Raises NonFiniteError if the loss or a gradient is not finite. The value normalizers are then restored.
        """
        learn = self.config.learn
        norms = [{name: x.clone() for name, x in task.value_norm.state_dict().items()} for task in self.tasks]
        made = [self.make_batch(rollout, number) for number, rollout in enumerate(rollouts)]
        batches, credit = [batch for batch, _ in made], self.mean_over_tasks([values for _, values in made])
        rates = self.updater.set_learning_rates(self.steps, self.annealing_steps)
        self.updater.initial_kl = 0.0
        try:
            with naming_class(self.updater.objective, "objective"):
                if learn.agent_updates == "sequential":
                    metrics = self.updater.update_sequentially(batches[0], self.agent_order())
                else:
                    metrics = self.updater.run_epochs(*batches)
        except NonFiniteError as error:
            for task, before in zip(self.tasks, norms, strict=True):
                task.value_norm.load_state_dict(before)
            raise NonFiniteError(f"iteration {self.iteration + 1}: {error}") from error
        has_choice = any(bool(batch.nodes.loss_mask.any()) for batch in batches)
        if not distributed.any_rank(has_choice, self.device):
            for name in ("policy/entropy", "policy/kl", "policy/clip_fraction"):
                metrics.pop(name, None)
        policy_metrics = []
        for task, batch in zip(self.tasks, batches, strict=True):
            task.policy.update_statistics(batch.inputs, batch.nodes)
            policy_metrics.append(task.policy.metrics(batch.inputs, batch.nodes))
        metrics |= self.mean_over_tasks(policy_metrics)
        return metrics | credit | rates

    def make_batch(self, rollout: Rollout, task: int = 0) -> tuple[Batch, dict[str, float]]:
        """Return the training batch of a task with its advantages, and metrics."""
        learn = self.config.learn
        context = AdvantageContext(
            self.links,
            self.tasks[task].value_norm,
            self.config.collect.group_size,
            rollout.node_reward(learn.reference_reward_coef),
        )
        with naming_class(self.advantage, "advantage"):
            made = self.advantage(rollout, context)
        advantages = require_advantages(made, self.advantage, rollout)
        batch = rollout.flat(advantages.advantage, advantages.returns)
        played = batch.nodes.node_mask.flatten(1).any(-1).view(-1, self.segment_steps).any(-1).nonzero().squeeze(-1)
        if self.config.collect.whole_episodes and len(played) >= learn.minibatches:
            batch = batch.rows(rows_of(played, self.segment_steps))
        return batch, advantages.metrics

    def agent_order(self) -> list[int]:
        """Return the random order in which the agents are updated in this iteration."""
        generator = torch.Generator().manual_seed(self.streams.integer("agents", self.iteration))
        return torch.randperm(self.env.spec.num_agents, generator=generator).tolist()

    def get_state(
        self, environments: bool = True, alone: bool = False
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return the complete state of training, as groups of tensors and JSON data.

        Without `environments` a resumed run starts new episodes: for a state in the middle of a rollout. `alone` leaves
        out the state of the single ranks, which needs communication: a resumed run then has new random streams.
        """
        optimizer_tensors, optimizer_data = pack_optimizer(self.updater.optimizer)
        environments = environments and not self.config.collect.whole_episodes
        local = {
            "collector": self.collector.get_state(environments),
            "others": [task.collector.get_state(environments) for task in self.tasks[1:]],
            "rng": rng_state(self.generators),
            "divisor": self.updater.backoff.reduction,
        }
        tensors = {
            "model": dict(self.policy.state_dict()),
            "optimizer": optimizer_tensors,
            "value_norm": dict(self.value_norm.state_dict()),
            **{f"value_norm_{i}": dict(task.value_norm.state_dict()) for i, task in enumerate(self.tasks) if i},
        }
        data: dict[str, Any] = {
            "iteration": self.iteration,
            "annealing": {
                "start": self.updater.lr_start,
                "factor": self.updater.lr_factor,
                "steps": self.annealing_steps,
            },
            "warned": sorted(self.warned),
            "evaluation_missing": self.evaluation_missing,
            "optimizer": optimizer_data,
            "world_size": distributed.world_size(),
            "free_threads": self.free_threads,
            "ranks": [],
        }
        for rank, part in enumerate([] if alone else distributed.gather(local)):
            tensors[f"rank_{rank}"], packed = pack(part)
            data["ranks"].append(packed)
        return tensors, data

    def set_state(self, checkpoint: Checkpoint) -> list[str]:
        """Continue from `get_state`. Returns notes on what could not be restored exactly.

        Raises CheckpointError if the checkpoint does not fit this run.
        """
        data = checkpoint.data
        if data["world_size"] != distributed.world_size():
            raise CheckpointError(
                f"{checkpoint.path} was saved by {data['world_size']} ranks, and here are {distributed.world_size()}; "
                f"go on with: {distributed.resume_command(checkpoint.path.parents[1], data['world_size'])}"
            )
        load_weights(self.policy, checkpoint.tensors["model"], checkpoint.path)
        try:
            return self.restore(checkpoint)
        except MarlError:
            raise
        except Exception as error:  # the data of a run may be anybody's
            raise CheckpointError(f"{checkpoint.path} cannot be continued: {error!r}") from error

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Restore everything except the weights. Returns notes on what could not be restored exactly."""
        tensors, data = checkpoint.tensors, checkpoint.data
        for i, task in enumerate(self.tasks):
            task.value_norm.load_state_dict(tensors[f"value_norm_{i}" if i else "value_norm"])
        unpack_optimizer(self.updater.optimizer, tensors["optimizer"], data["optimizer"])
        self.iteration, self.steps = data["iteration"], checkpoint.step
        notes = []
        self.warned = set(data["warned"])
        self.evaluation_missing = data["evaluation_missing"]
        annealing = data["annealing"]
        self.updater.lr_start, self.updater.lr_factor = tuple(annealing["start"]), annealing["factor"]
        if self.config.learn.anneal_learning_rate and annealing["steps"] != self.annealing_steps:
            self.updater.lr_start = (self.steps, self.updater.lr_factor)
            notes.append(
                f"learning rates are annealed from {self.updater.lr_factor:.3g} of their start to 0 at "
                f"{self.annealing_steps} steps; for the full rate, start a new run with --init-from"
            )
        # The number of threads is part of the arithmetic, so it is kept where the cores are there.
        if data["free_threads"] > usable_cores():
            notes.append(f"saved with {data['free_threads']} threads, more than the cores here: rounding may differ")
        else:
            self.free_threads = data["free_threads"]
        rank = distributed.rank()
        if not data["ranks"]:
            for name, generator in self.generators.items():
                device = str(generator.device)
                generator.set_state(self.streams.torch(name, rank, self.iteration, device=device).get_state())
            self.begin_episodes([False] * len(self.tasks))
            return [*notes, "saved by rank 0 alone, after an error: new episodes and new random streams begin"]
        local = unpack(tensors[f"rank_{rank}"], data["ranks"][rank])
        self.updater.backoff.reduction = local.get("divisor", 1)
        collectors = [local["collector"], *local.get("others", ())]
        restored = [task.collector.set_state(state) for task, state in zip(self.tasks, collectors, strict=True)]
        # Last, because environments may draw from the global generators while they are restored.
        set_rng_state(self.generators, *local["rng"])
        if all(restored) or self.config.collect.whole_episodes:
            return notes
        self.begin_episodes(restored)
        return [*notes, "the environments' states cannot be restored: new episodes start, the rest continues exactly"]

    def begin_episodes(self, restored: Sequence[bool]) -> None:
        """Start new episodes in the environments of each task that was not restored."""
        rank = distributed.rank()
        for number, task in enumerate(self.tasks):
            if not restored[number]:
                env = task.collector.env
                first = (number * distributed.world_size() + rank) * env.num_envs
                seeds = [self.streams.integer("env", first + i, self.iteration) for i in range(env.num_envs)]
                task.collector.obs = env.reset(seeds)


def episode_metrics(episodes: Episodes, labels: Sequence[str]) -> dict[str, float]:
    """Return means over the episodes that ended in a rollout, over all ranks; no returns if none ended.

    `labels` (N,) name the agents whose returns are averaged together, see `return_labels`.
    """
    success = [info["success"] for info in episodes.infos if "success" in info]
    invalid = [info["invalid"] for info in episodes.infos if "invalid" in info]
    totals = np.sum(episodes.agent_returns, axis=0) if episodes.agent_returns else np.zeros(len(labels))
    sums = torch.tensor(
        [
            sum(episodes.returns),
            sum(episodes.lengths),
            sum(success),
            len(episodes.returns),
            len(success),
            episodes.dropped,
            sum(invalid),
            len(invalid),
            *mean_by_label(labels, totals).values(),
        ],
        dtype=torch.float64,
    )
    returns, lengths, wins, count, judged, dropped, invalid, checked, *typed = distributed.all_reduce(sums).tolist()
    metrics = {"episode/count": count}
    if count:
        metrics |= {"episode/return": returns / count, "episode/length": lengths / count}
        metrics |= {f"episode/return/{label}": x / count for label, x in zip(dict.fromkeys(labels), typed, strict=True)}
    if judged:
        metrics["episode/success"] = wins / judged
    if checked and lengths:
        metrics["episode/invalid_fraction"] = invalid / lengths
    if dropped:
        metrics["episode/dropped"] = dropped
    return metrics
