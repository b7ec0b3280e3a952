"""`marl bench`: speed of each layer, as ratios to a baseline measured in the same run."""

import contextlib
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console, RenderableType
from rich.table import Table
from tyro.conf import Positional

from marl.cpu import free_cores, peak_memory_mb, tune_malloc, usable_cores
from marl.errors import ConfigError
from marl.experiments.bench.agents import act_part, teams_part, update_part
from marl.experiments.bench.language import language_part
from marl.experiments.bench.smac import random_choice, smac_part
from marl.experiments.bench.suite import suite_part
from marl.experiments.bench.train import ranks_part, train_part
from marl.registry import EnvFactory, find_env
from marl.types import EnvSpec, Obs
from marl.vector import ProcessVector, SyncVector, make_vector

Part = Literal["env", "act", "update", "teams", "train", "ranks", "smac", "language", "suite"]


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine. Every figure is the median of several interleaved rounds.

    - env: environment steps per second of each layer.
    - act, update: milliseconds of a policy.
    - teams: MAPPO, MAT and Sable with 3 to 1,024 agents, time and memory per agent.
    - train: the whole training loop, on `--env` and on two SMAC maps.
    - ranks: two data-parallel processes against one, and against two independent ones.
    - smac: steps per second of the battle engine on six maps.
    - language: tokens per second of a language agent.
    - suite: sixteen small runs one by one and as a suite, and a report on 500 runs, in seconds.
    """

    parts: Positional[tuple[Part, ...]] = ("env", "act", "update", "train")
    """Parts to measure."""
    env: str = "mamujoco/HalfCheetah-6x1"
    """Environment of env, train and ranks."""
    num_envs: int = 64
    """Number of environments of env."""
    model: str = "smollm2"
    """Model of language."""
    rounds: int = 5
    """Number of rounds of each figure."""
    seconds: float = 0.5
    """Seconds of a round."""

    def __post_init__(self) -> None:
        if self.num_envs < 1 or self.rounds < 1 or not 0 < self.seconds < float("inf"):
            raise ConfigError(
                f"num_envs={self.num_envs}, rounds={self.rounds}, seconds={self.seconds}; give num_envs and "
                "rounds of 1 or more, and positive seconds"
            )
        for option, users in (("env", {"env", "train", "ranks"}), ("num_envs", {"env"}), ("model", {"language"})):
            if getattr(self, option) != getattr(Bench, option) and not users & set(self.parts):
                raise ConfigError(
                    f"{option}={getattr(self, option)} has no effect on {', '.join(self.parts)}; leave it out"
                )


BARE = "bare mj_step"
"""Row of the physics alone."""
VISITED = 64
"""Steps of random actions whose states are measured."""
Row = tuple[str, float, float]
"""Name, median figure, and its spread: (highest - lowest) / median."""


def run(config: Bench) -> None:
    """Measure the parts and print one table for each."""
    find_env(config.env)
    console = Console()
    cores = usable_cores()
    console.print(f"{cores} cores, {free_cores()} of them free; torch {torch.__version__}, numpy {np.__version__}")
    torch.set_num_threads(1)
    tune_malloc()
    for part in config.parts:
        console.print(PARTS[part](config))
    console.print(f"peak memory of this process {peak_memory_mb():.0f} MiB")


def measure(work: dict[str, Callable[[], int]], config: Bench) -> list[Row]:
    """Return units of work per second. Each function returns its number of units; the functions take turns."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values():
        function()
    for _ in range(config.rounds):
        for name, function in work.items():
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < config.seconds:
                done += function()
            rates[name].append(done / (time.perf_counter() - start))
    return [(name, statistics.median(x), (max(x) - min(x)) / statistics.median(x)) for name, x in rates.items()]


def table_of(title: str, rows: list[Row], unit: str, baseline: str, invert: bool = False) -> Table:
    """Return a table of figures and their ratios to the row `baseline`; `invert` shows milliseconds per unit."""
    table = Table("", unit, f"times {baseline}", "spread", title=title)
    base = next(rate for name, rate, _ in rows if name == baseline)
    for name, rate, spread in rows:
        figure = f"{1000 / rate:.2f}" if invert else f"{rate:,.0f}"
        ratio = base / rate if invert else rate / base
        table.add_row(name, figure, f"{ratio:.2f}", f"{spread:.0%}")
    return table


def env_part(config: Bench) -> Table:
    """Measure steps per second from the bare simulator up to worker processes."""
    with contextlib.ExitStack() as stack:
        work: dict[str, Callable[[], int]] = {}
        family = config.env.partition("/")[0]
        baseline = "one environment"
        if family == "mamujoco":
            work |= mujoco_baselines(config)
            baseline = "mamujoco_v1"
        elif family == "hands":
            work[BARE] = bare_hands(config)
            baseline = BARE
        else:
            work[baseline] = random_stepper(SyncVector([EnvFactory(config.env)], config.env), stack)
        cores = usable_cores()
        batched = find_env(config.env)[0].make_vector is not None
        for threads in sorted({1, cores}) if batched else [1]:
            vector = make_vector(config.env, {}, config.num_envs, threads=threads)
            work[f"vector of {config.num_envs}, {threads} threads"] = random_stepper(vector, stack)
        if batched:
            work["vector of 1"] = random_stepper(make_vector(config.env, {}, 1), stack)
        for workers in sorted({1, min(cores, config.num_envs)}):
            vector = ProcessVector([EnvFactory(config.env)] * config.num_envs, workers, name=config.env)
            work[f"{workers} worker processes"] = random_stepper(vector, stack)
        return table_of(f"{config.env}: environment steps per second", measure(work, config), "steps/s", baseline)


def random_stepper(vector: Any, stack: contextlib.ExitStack) -> Callable[[], int]:
    """Return a function that steps a vector with random actions and returns its number of steps."""
    stack.callback(vector.close)
    rng = np.random.default_rng(0)
    obs = vector.reset(list(range(vector.num_envs)))
    torques = [random_action(vector.spec, obs, rng) for _ in range(16)]

    def step() -> int:
        nonlocal obs
        action = random_action(vector.spec, obs, rng) if vector.spec.discrete else torques[rng.integers(16)]
        obs = vector.step(action).obs
        return vector.num_envs

    return step


def random_action(spec: EnvSpec, obs: Obs, rng: np.random.Generator) -> np.ndarray:
    """Return random available actions, (E, N) int64 or (E, N, A) float32."""
    if spec.discrete:
        mask = np.ones((*obs.alive.shape, spec.action_size)) if obs.action_mask is None else obs.action_mask
        return random_choice(mask, rng)
    space: Any = spec.action_space
    return rng.uniform(space.low, space.high, (*obs.alive.shape, spec.action_size)).astype(np.float32)


def bare_hands(config: Bench) -> Callable[[], int]:
    """Return a stepper of bare `mj_step` on one thread, from states that a batch of hands visits with random actions.

    Physics takes as long as its contacts need, so that it is measured on the states of the environments themselves.
    """
    from marl.envs.hands import batch

    mujoco: Any = importlib.import_module("mujoco")
    env = batch(config.env.partition("/")[2].partition(",")[0], config.num_envs)
    env.reset(list(range(config.num_envs)))
    rng, visited = np.random.default_rng(0), []
    for _ in range(VISITED):
        env.step(rng.uniform(-1.0, 1.0, (config.num_envs, *env.simulation.layout.mask.shape)).astype(np.float32))
        visited.append([state["physics"] for state in env.get_state() if state is not None])
    simulation = env.simulation
    model, datas, flags = simulation.model, simulation.datas, mujoco.mjtState.mjSTATE_INTEGRATION

    def bare() -> int:
        for data, physics in zip(datas, visited[rng.integers(VISITED)], strict=True):
            mujoco.mj_setState(model, data, physics, flags)
            mujoco.mj_step(model, data, simulation.substeps)
        return len(datas)

    return bare


def mujoco_baselines(config: Bench) -> dict[str, Callable[[], int]]:
    """Return steppers of bare `mj_step` on E states and of gymnasium-robotics' environment."""
    from marl.envs.mamujoco.tasks import multi_agent_env, parse_task, single_agent_env

    mujoco: Any = importlib.import_module("mujoco")
    task = parse_task(config.env.partition("/")[2])
    oracle = multi_agent_env(task, 1, single_agent_env(task))
    core = single_agent_env(task)
    oracle.reset(seed=0)
    rng = np.random.default_rng(0)
    states = [mujoco.MjData(core.model) for _ in range(config.num_envs)]
    for data in states:
        data.ctrl[:] = rng.uniform(-1.0, 1.0, core.model.nu)
    actions = {name: oracle.action_space(name).sample() for name in oracle.possible_agents}

    def bare() -> int:
        for data in states:
            mujoco.mj_step(core.model, data, core.frame_skip)
        return len(states)

    def wrapped() -> int:
        for _ in range(64):
            _, _, terminated, truncated, _ = oracle.step(actions)
            if any(truncated.values()) or any(terminated.values()):
                oracle.reset()
        return 64

    return {BARE: bare, "mamujoco_v1": wrapped}


PARTS: dict[str, Callable[[Bench], RenderableType]] = {
    "env": env_part,
    "act": act_part,
    "update": update_part,
    "teams": teams_part,
    "train": train_part,
    "ranks": ranks_part,
    "smac": smac_part,
    "language": language_part,
    "suite": suite_part,
}
