"""Parts of `marl bench` that measure the training loop and data parallelism."""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Group
from rich.table import Column, Table

from marl import distributed
from marl.config import RunConfig, override
from marl.cpu import free_cores, tune_malloc, usable_cores
from marl.errors import ConfigError
from marl.experiments.bench.baseline_mat import ReferenceMAT, ReferenceTrainer
from marl.experiments.presets import choose
from marl.run import build, make_env

PHASES = ("env", "act", "learn")
MAPS = ("smac/8m", "smac/27m_vs_30m")


class Loop:
    """A trainer of `settings`: ours with `free` cores, or the reference. Several loops iterate in turn."""

    def __init__(self, settings: RunConfig, free: int, reference: bool = False) -> None:
        self.steps = settings.steps_per_iteration
        self.env = make_env(settings, settings.tasks[0], free, settings.collect.num_envs, train=True)
        trainer: Any = build(settings, self.env, torch.device("cpu"), free)
        if reference:
            if self.env.spec.mixed:
                raise ConfigError(
                    f"env={settings.env} has mixed actions, which the reference does not support; give another"
                )
            collect, learn = settings.collect, settings.learn
            policy = ReferenceMAT(trainer.policy)
            trainer = ReferenceTrainer(self.env, policy, collect.rollout_steps, learn.epochs, learn.minibatches)
        self.trainer, self.reference, self.threads = trainer, reference, "1/1/1"
        self.rates: list[tuple[float, float]] = []
        self.shares: list[dict[str, float]] = []

    def iterate(self) -> None:
        """Run one iteration and record its rates and time shares."""
        used, clock = time.process_time(), time.perf_counter()
        figures = self.trainer.iterate()
        seconds = time.perf_counter() - clock
        self.rates.append((self.steps / (time.process_time() - used), self.steps / seconds))
        if self.reference:
            self.shares.append({name: figures[name] / seconds for name in PHASES})
            return
        self.shares.append({name: figures[f"speed/{name}_fraction"] for name in PHASES})
        trainer = self.trainer
        self.threads = f"{trainer.free_threads}/{trainer.act_threads}/{figures['speed/learn_threads']:.0f}"


def train_part(config: Any) -> Group:
    """Measure the training loop with the tuned preset: steps per second, and shares of time.

    Runs on one thread, and with free cores on those too. The reference plays the same environments and updates with the
    same epochs and minibatches.
    """
    free = free_cores()
    return Group(*(train_table(env, free, config.rounds) for env in dict.fromkeys((config.env, *MAPS))))


def train_table(env: str, free: int, rounds: int) -> Table:
    """Measure the training loop on one environment."""
    settings = {agent: override(choose(env, agent)[0], {"seed": 1}) for agent in ("mat", "mappo")}
    loops = {agent: Loop(each, 1) for agent, each in settings.items()}
    if free > 1:
        loops[f"mat {free} cores"] = Loop(settings["mat"], free)
    loops["reference"] = Loop(settings["mat"], 1, reference=True)
    for turn in range(1 + max(2, rounds // 2)):
        for loop in loops.values():
            loop.iterate()
            if turn == 0:
                loop.rates.clear()
                loop.shares.clear()
    columns = (Column("agent", no_wrap=True), "per CPU s", "times ref.", "per s", "times ref.", "threads", "% of time")
    title = f"training on {env}: steps, and env/act/learn"
    table = Table(*columns, title=title, caption=choose(env, "mat")[1])
    medians = {
        name: [statistics.median(rates) for rates in zip(*loop.rates, strict=True)] for name, loop in loops.items()
    }
    for name, loop in loops.items():
        loop.env.close()
        pairs = zip(medians[name], medians["reference"], strict=True)
        rates = [cell for rate, base in pairs for cell in (f"{rate:,.0f}", f"{rate / base:.2f}")]
        shares = [f"{100 * statistics.mean(share[phase] for share in loop.shares):.0f}" for phase in PHASES]
        table.add_row(name, *rates, loop.threads, "/".join(shares))
    return table


RANKS = {"1": (1, "together"), "2": (2, "together"), "2 apart": (2, "apart")}


def ranks_part(config: Any) -> Table:
    """Measure one rank on one core against two ranks on two cores, with the same total number of environments.

    "2 apart" are two independent processes with half the environments each. They show the loss through shared caches,
    memory and clock, and so the upper bound for two ranks.
    """
    if usable_cores() < 2:
        raise ConfigError("parts has ranks, which needs two cores, and this process may use one; leave it out")
    rates: dict[str, list[dict[str, float]]] = {name: [] for name in RANKS}
    for _ in range(max(1, config.rounds // 2)):
        for name, (world, how) in RANKS.items():
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
            done = subprocess.run(
                [*command, "-m", "marl.experiments.bench.train", config.env, how],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode or not lines:
                raise ConfigError(f"torchrun with {world} ranks failed: {done.stderr[-1000:]}")
            rates[name].append(json.loads(lines[0]))
    table = Table("ranks", "steps/s", "times one rank", "per CPU s of a rank", "times one rank")
    table.title = f"training mat on {config.env}, a core for each rank"
    medians = {
        name: [statistics.median(figure[clock] for figure in figures) for clock in ("wall", "cpu")]
        for name, figures in rates.items()
    }
    for name, figure in medians.items():
        pairs = zip(figure, medians["1"], strict=True)
        table.add_row(name, *(cell for rate, base in pairs for cell in (f"{rate:,.0f}", f"{rate / base:.2f}")))
    return table


def measure_rank(env: str, how: str, iterations: int = 3) -> None:
    """Train in one process under torchrun. Rank 0 prints the steps per second of all ranks, in wall and CPU time."""
    rank, world = (int(os.environ[name]) for name in ("LOCAL_RANK", "WORLD_SIZE"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    tune_malloc()
    device = distributed.start("cpu") if how == "together" else torch.device("cpu")
    settings = choose(env, "mat")[0]
    count = 2 * settings.collect.num_envs
    settings = override(settings, {"seed": 1, "num_envs": count if how == "together" else count // world})
    vector = make_env(settings, settings.tasks[0], 1, count // world, train=True)
    trainer = build(settings, vector, device, 1)
    trainer.iterate()
    if how == "apart":  # start together, then run independently
        distributed.start("cpu")
        distributed.barrier()
        distributed.stop()
    distributed.barrier()
    clock, used = time.perf_counter(), time.process_time()
    for _ in range(iterations):
        trainer.iterate()
    distributed.barrier()
    steps = iterations * count * settings.collect.rollout_steps
    if rank == 0:
        figures = {"wall": steps / (time.perf_counter() - clock), "cpu": steps / (time.process_time() - used)}
        print(json.dumps(figures), flush=True)
    vector.close()
    # Gloo's threads often abort a process on one core during shutdown.
    os._exit(0)


if __name__ == "__main__":
    measure_rank(sys.argv[1], sys.argv[2])
