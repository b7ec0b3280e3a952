"""Parts of `marl bench` that measure policies: acting, and one epoch of an update."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from rich.table import Column, Table

from marl.cpu import free_cores, onednn_matmul
from marl.experiments.bench.baseline_mat import ReferenceMAT, ReferenceUpdate
from marl.objective import Batch, ClippedPPO
from marl.optimizer import clip_gradients
from marl.registry import AGENTS
from marl.types import EnvSpec, Nodes, Obs

HALFCHEETAH, M3, M8, M27 = (6, 15, 1), (3, 30, 9), (8, 80, 14), (27, 285, 36)
"""(agents, observation size, actions) of HalfCheetah 6x1, which is continuous, and of SMAC 3m, 8m, 27m_vs_30m."""
SIZES = tuple(((agents, *M27[1:]), 32) for agents in (8, 27, 64, 128))
"""Teams that differ only in their number of agents."""
ACT_SHAPES = ((HALFCHEETAH, 40), (M3, 8), (M8, 8), (M8, 32), (M27, 8), *SIZES)
UPDATE_SHAPES = ((HALFCHEETAH, 40), (M3, 8), (M8, 8), (M8, 32), (M27, 32))
Shape = tuple[int, int, int]
REFERENCE_AGENTS = 32
"""Largest team on which the reference is measured: its work grows with the square of the team."""


TEAM_SIZES = (3, 27, 128, 512, 1024)
TEAM_ENVS, TEAM_STEPS, TEAM_OBSERVATION, TEAM_ACTIONS = 8, 2, 16, 8
"""Environments, steps of an update, observation size and actions of the part `teams`."""


def policies(shape: Shape, names: tuple[str, ...] = ("mappo", "mat"), **options: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and policy of each agent of `names` for a shape."""
    agents, observation, actions = shape
    space = gymnasium.spaces.Discrete(actions) if actions > 1 else gymnasium.spaces.Box(-1.0, 1.0, (1,))
    box = gymnasium.spaces.Box(-np.inf, np.inf, (observation,), np.float32)
    spec = EnvSpec("bench", tuple(f"agent_{i}" for i in range(agents)), box, space, max_steps=100)
    for name in names:
        entry = AGENTS.get(name)
        torch.manual_seed(0)
        yield name, entry.make(spec, entry.options(**options))


def observations(shape: Shape, envs: int) -> Obs:
    """Return random observations of E environments."""
    rng = np.random.default_rng(0)
    agents, observation, actions = shape
    mask = rng.random((envs, agents, actions)) < 0.7
    mask[..., 0] = True
    obs = rng.normal(size=(envs, agents, observation)).astype(np.float32)
    return Obs(obs, np.ones((envs, agents), dtype=bool), mask if actions > 1 else None)


def measure(work: dict[str, Callable[[], object]], config: Any) -> dict[str, tuple[float, float]]:
    """Return the median CPU milliseconds of a call of each function, and the interquartile spread.

    The functions take turns call by call, so that other load on the machine affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values():
        function()
    while min(map(sum, seconds.values())) < config.rounds * config.seconds / 4 or min(map(len, seconds.values())) < 3:
        for name, function in work.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    result = {}
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        result[name] = (1000 * middle, (high - low) / middle)
    return result


def act_part(config: Any) -> Table:
    """Measure milliseconds from numpy observations to actions, log-probabilities and values, on one thread.

    Predicted from operation counts before implementation: 11 times the reference at 27 agents x 32, and 6 times at
    8 x 8, where the overhead of Python was underestimated.
    """
    columns = ("agents", "obs.", "agent", "ms", "us an agent", "times ref.", "spread")
    table = Table(*columns, title="acting, CPU time of one thread")
    for shape, envs in ACT_SHAPES:
        obs = observations(shape, envs)
        work: dict[str, Callable[[], object]] = {}
        for name, policy in policies(shape):
            work[name] = actor(policy, obs)
            if name == "mat" and shape[0] <= REFERENCE_AGENTS:
                work["reference"] = reference_actor(ReferenceMAT(policy), obs)
        figures = measure(work, config)
        for name, (ms, spread) in figures.items():
            ratio = f"{figures['reference'][0] / ms:.1f}" if "reference" in figures else ""
            each = f"{1000 * ms / shape[0]:.0f}"
            table.add_row(f"{shape[0]} x {envs}", str(shape[1]), name, f"{ms:.2f}", each, ratio, f"{spread:.0%}")
    return table


def actor(policy: Any, obs: Obs) -> Callable[[], object]:
    """Return a function that acts once."""

    def act() -> object:
        with torch.inference_mode():
            return policy.act(policy.encode(obs))

    return act


def reference_actor(policy: ReferenceMAT, obs: Obs) -> Callable[[], object]:
    """Return a function with which the reference acts once."""
    mask = None if obs.action_mask is None else obs.action_mask.astype(np.float32)
    return lambda: policy.act(obs.agents, mask)


def update_part(config: Any) -> Table:
    """Measure one epoch over 100 steps of each environment in one minibatch: time, and growth of memory.

    With free cores, also the gain of more threads in wall time.

    Predicted from operation counts: 1.9 times the speed of the reference at 27 agents x 32, and less than a third
    of its memory. A batch is split into three passes or more, except the smallest, 3 agents x 8: there one pass takes
    .6 to .7 of the reference's memory, two took .33 and three .26, at 1.9, 1.7 and 1.4 times its speed.
    The passes of a gradient share fused weights of all layers: predicted to save 1.3 of the 3.4 ms of fixed cost of a
    pass; 1.9 were saved.
    The reference multiplies matrices with PyTorch's default library. `torch.compile` of the forward pass, tried at 8
    agents x 8 and x 32, took 33 to 43 seconds to compile and was then 1.01 to 1.03 times as fast, so there is no such
    option.
    """
    cores = free_cores()
    columns = ["agents", Column("agent", no_wrap=True), "ms", "times ref.", "MiB", "of ref.", "spread"]
    columns += [f"{cores} threads"] if cores > 1 else []
    table = Table(*columns, title="an epoch of 100 steps, CPU time of one thread")
    for shape, envs in UPDATE_SHAPES:
        work: dict[str, Callable[[], object]] = {}
        for name, policy in policies(shape):
            batch = random_batch(policy, observations(shape, 100 * envs))
            work[name] = updater(policy, batch)
            if name == "mat":
                work["mat bf16"] = in_bf16(updater(policy, batch))
                work["reference"] = ReferenceUpdate(ReferenceMAT(policy), 100, envs)
        figures = measure(work, config)
        memory = {name: peak_growth(function) for name, function in work.items()}
        for name, (ms, spread) in figures.items():
            cells = [f"{shape[0]} x {envs}", name, f"{ms:.1f}", f"{figures['reference'][0] / ms:.2f}"]
            cells += [f"{memory[name]:.0f}", f"{memory[name] / max(memory['reference'], 1e-9):.2f}", f"{spread:.0%}"]
            cells += [f"{thread_gain(work[name], cores):+.0%}"] if cores > 1 else []
            table.add_row(*cells)
    return table


def teams_part(config: Any) -> Table:
    """Measure acting and one gradient step of teams of 3 to 1,024 agents: CPU time and peak memory per agent.

    Agents have no identity among their observations: a one-hot identity grows with the square of the team.
    """
    columns = ("agents", "agent", "act us an agent", "spread", "update us an agent", "spread", "update KiB an agent")
    title = f"{TEAM_ENVS} environments, an update of {TEAM_STEPS} steps, CPU time of one thread"
    table = Table(*columns, title=title)
    for agents in TEAM_SIZES:
        shape = (agents, TEAM_OBSERVATION, TEAM_ACTIONS)
        made = dict(policies(shape, ("mappo", "mat", "ff-sable"), agent_id=False))
        obs = observations(shape, TEAM_ENVS)
        acting = measure({name: actor(policy, obs) for name, policy in made.items()}, config)
        obs = observations(shape, TEAM_ENVS * TEAM_STEPS)
        work = {name: updater(policy, random_batch(policy, obs)) for name, policy in made.items()}
        updating = measure(work, config)
        for name, function in work.items():
            cells = [
                part
                for ms, spread in (acting[name], updating[name])
                for part in (f"{1000 * ms / agents:.0f}", f"{spread:.0%}")
            ]
            table.add_row(str(agents), name, *cells, f"{1024 * peak_growth(function) / agents:.0f}")
    return table


def random_batch(policy: Any, obs: Obs) -> Batch:
    """Return a batch of the policy's decisions with random advantages and returns."""
    with torch.inference_mode():
        inputs = policy.encode(obs)
        decision = policy.act(inputs)
    numbers = torch.randn(decision.value.shape)
    # Tensors from inference mode cannot be trained on; clones made outside can.
    nodes = Nodes(*(x.clone() for x in (decision.nodes.action, decision.nodes.node_mask, decision.nodes.loss_mask)))
    inputs = {name: x.clone() for name, x in inputs.items()}
    return Batch(inputs, nodes, decision.log_prob.clone(), decision.value.clone(), numbers, numbers)


def updater(policy: Any, batch: Batch) -> Callable[[], object]:
    """Return a function that takes one gradient step on the batch."""
    parameters = list(policy.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-6, fused=True)
    objective = ClippedPPO()

    def update() -> None:
        counts = objective.counts(batch)
        optimizer.zero_grad(set_to_none=True)
        passes = policy.micro_batches(batch.inputs, batch.nodes, 0, 1)
        shared = policy.accumulation_context() if len(passes) > 1 else nullcontext()
        with onednn_matmul(torch.device("cpu")), shared:
            for index in passes:
                part = batch.rows(index)
                objective(policy.evaluate(part.inputs, part.nodes), part, counts)[0].backward()
        clip_gradients(parameters, 10.0)
        optimizer.step()

    return update


def in_bf16(function: Callable[[], object]) -> Callable[[], object]:
    """Return the function under bfloat16 autocast."""

    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return function()

    return call


def thread_gain(function: Callable[[], object], threads: int) -> float:
    """Return the gain in wall time of a call with `threads` threads, as a fraction; best of three calls each."""
    best = {1: float("inf"), threads: float("inf")}
    for count in (1, threads) * 3:
        torch.set_num_threads(count)
        start = time.perf_counter()
        function()
        best[count] = min(best[count], time.perf_counter() - start)
    torch.set_num_threads(1)
    return best[1] / best[threads] - 1.0


def peak_growth(function: Callable[[], object]) -> float:
    """Return the peak growth of resident memory during a call, in MiB; 0 if the system does not report it."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if sys.platform != "linux" or not reset.exists():
        return 0.0
    # Freed memory that the process still holds would hide the memory of the call.
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    reset.write_text("5")

    def kibibytes(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    before = kibibytes("VmRSS")
    function()
    return (kibibytes("VmHWM") - before) / 1024
