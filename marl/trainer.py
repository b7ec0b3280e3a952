"""collect -> backup -> learn -> callbacks."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from marl import distributed
from marl.checkpoint import (
    Checkpoint,
    load_weights,
    pack,
    pack_optimiser,
    rng_state,
    set_rng_state,
    unpack,
    unpack_optimiser,
)
from marl.config import LearnConfig, RunConfig
from marl.credit import against_critic, against_others
from marl.errors import CheckpointError, ConfigError, NonFiniteError
from marl.halving import Halving
from marl.memory import chunk_steps
from marl.normalise import ValueNorm
from marl.objective import Batch, Rows, row_count, unit_sum
from marl.protocols import Callback, Policy, Tracker, VectorEnv
from marl.rollout import Collector, Episodes, Rollout, minibatches, rows_of
from marl.seeding import Streams
from marl.threads import peak_memory_mb, quick_products, usable_cores

SMALL_UPDATE = 32768
"""Agent rows of a forward pass below which a second thread costs about what it gives (`marl bench update`)."""


class Trainer:
    """One on-policy run: it owns the optimiser, the value normaliser, the random streams and the progress.

    `steps` counts the environment steps that were learned from, over all ranks.
    """

    def __init__(
        self,
        config: RunConfig,
        env: VectorEnv,
        policy: Policy,
        tracker: Tracker,
        callbacks: Sequence[Callback] = (),
        device: torch.device | None = None,
        free_threads: int = 1,
    ) -> None:
        module = policy.module
        assert module is not None
        self.config, self.env, self.policy = config, env, policy
        self.tracker, self.callbacks = tracker, list(callbacks)
        self.device = device or torch.device("cpu")
        self.module = module
        self.free_threads = free_threads
        self.streams = Streams(config.seed)
        rank = distributed.rank()
        distributed.broadcast_module(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            parameter_groups(module, config.learn), eps=config.learn.adam_epsilon, fused=True
        )
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.value_norm = ValueNorm(config.learn.value_norm_decay).to(self.device)
        self.links, self.objective = config.learn.links(), config.learn.make_objective()
        self.generators = {
            "policy": self.streams.torch("policy", rank, device=str(self.device)),
            "minibatch": self.streams.torch("minibatch", rank),
        }
        self.chunk = chunk_steps(config, policy, env.num_envs)
        first = rank * env.num_envs
        self.collector = Collector(
            env,
            policy,
            self.value_norm,
            config.collect.rollout_steps,
            self.generators["policy"],
            [self.streams.integer("env", first + i) for i in range(env.num_envs)],
            config.collect.on_nonfinite == "drop",
            self.links.agents == "sequential",
        )
        self.halving = getattr(policy, "halving", None) or Halving("Set --micro-batch to begin with fewer")
        self.iteration = 0
        self.steps = 0
        self.last_score: float | None = None
        self.stop_reason: str | None = None

    @property
    def finished(self) -> bool:
        return self.steps >= self.config.steps

    def train(self) -> str:
        """Iterate until the steps are done or something asks to stop; returns the reason."""
        torch.set_num_threads(self.act_threads)
        for callback in self.callbacks:
            callback.on_start(self)
        stopped = self.finished
        while not stopped:
            metrics = self.iterate()
            for callback in self.callbacks:
                callback.on_iteration(self, metrics)
            self.tracker.log(self.steps, metrics)
            for callback in self.callbacks:
                callback.on_logged(self)
            # A signal may set the reason on one rank at any moment, so the ranks vote once an iteration.
            stopped = distributed.any_rank(self.finished or self.stop_reason is not None, self.device)
        if self.finished:
            self.stop_reason = "finished"
        for callback in self.callbacks:
            callback.on_stop(self)
        return self.stop_reason or "stopped by another rank"

    def iterate(self) -> dict[str, float]:
        """One rollout and the update on it; returns the metrics."""
        start = time.perf_counter()
        seconds = dict(self.collector.seconds)
        torch.set_num_threads(self.act_threads)
        total = self.collector.total
        rollout, episodes = self.collector.collect(self.episode_seeds())
        steps = distributed.all_reduce(torch.tensor(self.collector.total - total))
        collected = time.perf_counter()
        threads = self.learn_threads(rollout)
        torch.set_num_threads(threads)
        with quick_products(self.device):
            metrics = self.learn(rollout)
        torch.set_num_threads(self.act_threads)
        end = time.perf_counter()
        self.iteration += 1
        self.steps += int(steps)
        spent = {name: self.collector.seconds[name] - before for name, before in seconds.items()}
        spent["learn"] = end - collected
        metrics |= {f"speed/{name}_fraction": part / (end - start) for name, part in spent.items()}
        metrics["speed/other_fraction"] = 1.0 - sum(spent.values()) / (end - start)
        metrics["speed/learn_threads"] = float(threads)
        metrics["speed/memory_mb"] = peak_memory_mb()
        metrics["speed/steps_per_second"] = int(steps) / (end - start)
        return metrics | episode_metrics(episodes)

    def episode_seeds(self) -> list[int] | None:
        """The seeds of a rollout of whole episodes, equal inside a group; None where episodes simply go on."""
        collect = self.config.collect
        if not collect.whole_episodes:
            return None
        first = distributed.rank() * self.env.num_envs
        groups = [(first + i) // collect.group_size for i in range(self.env.num_envs)]
        return [self.streams.integer("episode", self.iteration, group) for group in groups]

    @property
    def act_threads(self) -> int:
        """Threads of acting: one, and for a policy that says that it is heavy the free cores."""
        return self.free_threads if getattr(self.policy, "heavy", False) else 1

    def learn_threads(self, rollout: Rollout) -> int:
        """Threads of this update: as configured, else 1 for small passes and the free cores for the others."""
        learn = self.config.learn
        if self.config.compute.learn_threads:
            return self.config.compute.learn_threads
        if getattr(self.policy, "heavy", False):
            return self.free_threads
        rows = -(-rollout.mask.shape[0] * rollout.mask.shape[1] // learn.minibatches)
        rows = min(rows, learn.micro_batch or rows)
        return self.free_threads if rows * rollout.mask.shape[2] >= SMALL_UPDATE else 1

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Backup, then epochs over minibatches."""
        learn = self.config.learn
        norm_before = {name: x.clone() for name, x in self.value_norm.state_dict().items()}
        batch, credit = self.credit(rollout)
        left = 1.0
        if learn.anneal_learning_rate:
            total = self.config.iterations * self.config.steps_per_iteration
            left = max(0.0, 1.0 - self.steps / total)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * left

        try:
            metrics = self.agents(batch) if learn.agent_updates == "sequential" else self.epochs(batch)
        except NonFiniteError:
            self.value_norm.load_state_dict(norm_before)
            raise
        self.policy.observe(rollout.inputs, rollout.mask.any(-1))
        if len(self.rates) > 1:
            metrics["value/learning_rate"] = self.rates[1] * left
        return metrics | credit | {"policy/learning_rate": self.rates[0] * left}

    def credit(self, rollout: Rollout) -> tuple[Batch, dict[str, float]]:
        """The rows to learn from, with their advantages, and what there is to say about them."""
        learn = self.config.learn
        if learn.advantage == "gae":
            advantage, returns, metrics = against_critic(
                rollout, self.links, self.value_norm, learn.reference_reward_coef
            )
        else:
            advantage, metrics = against_others(rollout, learn, self.config.collect.group_size)
            returns = rollout.value
        batch = rollout.flat(advantage, returns)
        played = batch.nodes.mask.flatten(1).any(-1).view(-1, self.chunk).any(-1).nonzero().squeeze(-1)
        if self.config.collect.whole_episodes and len(played) >= learn.minibatches:
            batch = batch.rows(rows_of(played, self.chunk))
        return batch, metrics

    def agents(self, batch: Batch) -> dict[str, float]:
        """All passes for one agent after another (Kuba et al. 2022, algorithm 4); the means of what they report.

        An agent's advantage is weighed by the importance ratio of the agents updated before it. Each trains the
        value that is its own.
        """
        generator = torch.Generator().manual_seed(self.streams.integer("agents", self.iteration))
        weight = torch.ones_like(batch.advantage[:, :1, :1])
        reports = []
        for agent in torch.randperm(batch.nodes.mask.shape[1], generator=generator).tolist():
            mine = batch.of_agent(agent, weight)
            reports.append(self.epochs(mine))
            weight = weight * self.ratio(mine)
        return {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}

    @torch.no_grad()
    def ratio(self, batch: Batch) -> Tensor:
        """(B, 1, 1): how much likelier the trained nodes of a row are now than when they were decided."""
        ratio = torch.ones_like(batch.advantage[:, :1, :1])
        for index in self.policy.split(batch.inputs, batch.nodes, self.config.learn.micro_batch, self.halving.divisor):
            rows = batch.rows(index)
            change = self.policy.evaluate(rows.inputs, rows.nodes).log_prob - rows.log_prob
            ratio[index] = unit_sum(change, rows.nodes.trained, "step").clamp(-20.0, 20.0).exp()
        return ratio

    def epochs(self, batch: Batch) -> dict[str, float]:
        """Passes over the rollout until they are done or the KL limit ends them; the means of what they report."""
        learn = self.config.learn
        sums: dict[str, Tensor] = {}
        updates, epochs = 0, 0
        while epochs < learn.epochs:
            epoch_kl = torch.zeros((), device=self.device)
            for minibatch in minibatches(batch, learn.minibatches, self.generators["minibatch"], self.chunk):
                parts = self.update(minibatch, epochs)
                epoch_kl += parts["policy/kl"]
                for name, part in parts.items():
                    sums[name] = sums.get(name, torch.zeros_like(part)) + part
                updates += 1
            epochs += 1
            if learn.target_kl and float(epoch_kl) / learn.minibatches > learn.target_kl:
                break
        names = list(sums)
        means = (torch.stack([sums[name] for name in names]) / updates).tolist()
        return dict(zip(names, means, strict=True)) | {"policy/epochs": float(epochs)}

    def update(self, minibatch: Batch, epoch: int) -> dict[str, Tensor]:
        """One gradient step; returns the parts of the loss over all ranks, and the gradient norm."""
        learn = self.config.learn
        counts = distributed.all_reduce(self.objective.counts(minibatch))
        total = self.gradient(minibatch, counts)
        reduced = distributed.sum_gradients(self.parameters, torch.stack(list(total.values())))
        total = dict(zip(total, reduced.unbind(), strict=True))
        limit = learn.max_grad_norm or float("inf")
        norm = clip_gradients(self.parameters, limit).to(self.device)
        if not bool(torch.isfinite(norm + total["loss/total"])):
            shown = ", ".join(f"{name} {float(part):g}" for name, part in total.items())
            raise NonFiniteError(
                f"non-finite loss or gradient in iteration {self.iteration + 1}, epoch {epoch + 1} ({shown}, gradient "
                f"norm {float(norm):g}); the weights before this step are kept. Lower --learning-rate or "
                "--max-grad-norm, or look at the observations and rewards"
            )
        self.optimiser.step()
        self.policy.after_update()
        return total | {"gradient/norm": norm}

    def gradient(self, minibatch: Batch, counts: Tensor) -> dict[str, Tensor]:
        """Fill the gradients; returns the parts of the loss on this rank."""

        def split(divisor: int) -> Sequence[Rows]:
            return self.policy.split(minibatch.inputs, minibatch.nodes, self.config.learn.micro_batch, divisor)

        return self.halving.run(split, row_count, lambda passes: self.accumulate(minibatch, passes, counts), self.chunk)

    def accumulate(self, minibatch: Batch, passes: Sequence[Rows], counts: Tensor) -> dict[str, Tensor]:
        """The gradients of the forward passes, added up, and the parts of their losses."""
        self.optimiser.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for index in passes:
            micro = minibatch if len(passes) == 1 else minibatch.rows(index)
            evaluation = self.policy.evaluate(micro.inputs, micro.nodes)
            loss, parts = self.objective(evaluation, micro, counts)
            loss.backward()
            for name, part in parts.items():
                total[name] = total[name] + part if name in total else part
        return total

    def get_state(self, environments: bool = True) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Everything that the future depends on, as groups of tensors and JSON data.

        Without `environments` the run continues with new episodes: for a state in the middle of a rollout.
        """
        optimiser_tensors, optimiser_data = pack_optimiser(self.optimiser)
        environments = environments and not self.config.collect.whole_episodes
        local = {
            "collector": self.collector.get_state(environments),
            "rng": rng_state(self.generators),
            "divisor": self.halving.divisor,
        }
        tensors = {
            "model": dict(self.module.state_dict()),
            "optimiser": optimiser_tensors,
            "value_norm": dict(self.value_norm.state_dict()),
        }
        data: dict[str, Any] = {
            "iteration": self.iteration,
            "optimiser": optimiser_data,
            "world_size": distributed.world_size(),
            "free_threads": self.free_threads,
            "ranks": [],
        }
        for rank, part in enumerate(distributed.gather(local)):
            tensors[f"rank_{rank}"], packed = pack(part)
            data["ranks"].append(packed)
        return tensors, data

    def set_state(self, checkpoint: Checkpoint) -> list[str]:
        """Continue from `get_state`; returns notes on what could not be restored exactly."""
        tensors, data = checkpoint.tensors, checkpoint.data
        if data["world_size"] != distributed.world_size():
            raise CheckpointError(
                f"{checkpoint.path} was saved by {data['world_size']} ranks and this is {distributed.world_size()}; "
                f"resume with torchrun --nproc-per-node {data['world_size']}"
            )
        rank = distributed.rank()
        load_weights(self.module, tensors["model"], checkpoint.path)
        self.value_norm.load_state_dict(tensors["value_norm"])
        unpack_optimiser(self.optimiser, tensors["optimiser"], data["optimiser"])
        self.iteration, self.steps = data["iteration"], checkpoint.step
        notes = []
        # The number of threads is part of the arithmetic, so it is kept where the cores are there.
        if data["free_threads"] > usable_cores():
            notes.append(f"saved with {data['free_threads']} threads, more than the cores here: rounding may differ")
        else:
            self.free_threads = data["free_threads"]
        local = unpack(tensors[f"rank_{rank}"], data["ranks"][rank])
        set_rng_state(self.generators, *local["rng"])
        self.halving.divisor = local.get("divisor", 1)
        if self.collector.set_state(local["collector"]) or self.config.collect.whole_episodes:
            return notes
        first = rank * self.env.num_envs
        seeds = [self.streams.integer("env", first + i, self.iteration) for i in range(self.env.num_envs)]
        self.collector.obs = self.env.reset(seeds)
        return [*notes, "the environments' states cannot be restored: new episodes start, the rest continues exactly"]


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm, over all of them, is at most `limit`; returns the norm before.

    Those of a device are joined: a norm of each takes longer where they are many and small.
    """
    devices: dict[torch.device, list[Tensor]] = {}
    for gradient in (p.grad for p in parameters if p.grad is not None):
        devices.setdefault(gradient.device, []).append(gradient)
    norms = [torch.cat([gradient.flatten() for gradient in part]).norm() for part in devices.values()]
    norm = torch.stack([part.to(norms[0].device) for part in norms]).norm()
    if norm > limit:
        scale = limit / (float(norm) + 1e-6)
        for part in devices.values():
            for gradient in part:
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


def episode_metrics(episodes: Episodes) -> dict[str, float]:
    """Means over the episodes that ended in a rollout, over all ranks; empty where none ended."""
    success = [info["success"] for info in episodes.infos if "success" in info]
    sums = torch.tensor(
        [
            sum(episodes.returns),
            sum(episodes.lengths),
            sum(success),
            len(episodes.returns),
            len(success),
            episodes.dropped,
        ],
        dtype=torch.float64,
    )
    returns, lengths, wins, count, judged, dropped = distributed.all_reduce(sums).tolist()
    metrics = {"episode/count": count}
    if count:
        metrics |= {"episode/return": returns / count, "episode/length": lengths / count}
    if judged:
        metrics["episode/success"] = wins / judged
    if dropped:
        metrics["episode/dropped"] = dropped
    return metrics
