"""Part of `marl bench` that measures language agents: rollouts, updates, and bytes per token."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from marl.config import default_config, override
from marl.experiments.bench.baseline_lm import ReferenceLanguageAgent
from marl.run import build
from marl.vector import make_vector

TASK = "virtualhome/food-preparation"
ENVS, STEPS, REFERENCE_STEPS = 8, 16, 2
"""Environments, steps of our rollout, and steps of the reference's, which is slow and equally costly at each step."""


class Language:
    """POAD in 8 environments, and the reference with the same weights."""

    def __init__(self, model: str, agent: str = "poad") -> None:
        settings = {"model": model, "num_envs": ENVS, "rollout_steps": STEPS, "epochs": 1, "eval_episodes": 0}
        if model == "tiny":
            settings |= {"lora_rank": 8}
        config = override(default_config(TASK, agent), settings)
        self.env: Any = make_vector(TASK, {}, ENVS)
        self.trainer = build(config, self.env, torch.device("cpu"), 1)
        self.policy: Any = self.trainer.policy
        self.reference = ReferenceLanguageAgent(self.policy)
        self.rows: list[tuple[str, str]] = []
        self.rollout()

    def rollout(self) -> int:
        """Collect a rollout after an update of the policy; return the number of sampled tokens."""
        self.policy.after_update()
        rollout, _ = self.trainer.collector.collect()
        return int(rollout.node_mask.sum())

    def update(self) -> int:
        """Update once on that rollout; return its number of tokens."""
        rollout = self.trainer.collector.rollout
        assert rollout is not None
        self.trainer.learn(rollout)
        return int(rollout.node_mask.sum())

    def reference_rollout(self) -> int:
        """Collect a rollout of the reference in the same environments; return the number of sampled tokens."""
        tokens = 0
        for _ in range(REFERENCE_STEPS):
            obs = self.trainer.collector.obs
            prompts, candidates = ([row[0] for row in part] for part in (obs.agents, obs.candidates))
            actions, count = self.reference.act(prompts, candidates)
            self.rows = [*self.rows, *zip(prompts, actions, strict=True)][-REFERENCE_STEPS * ENVS :]
            self.trainer.collector.obs = self.env.step([[action] for action in actions]).obs
            tokens += count
        return tokens

    def reference_update(self) -> int:
        """Update the reference once on its rollout; return its number of tokens."""
        return self.reference.update(self.rows)


def tokens_per_second(work: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median rate of each function per second of CPU time, and its spread. The functions take turns."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values():
        function()
    for _ in range(rounds):
        for name, function in work.items():
            start = time.process_time()
            done = function()
            rates[name].append(done / (time.process_time() - start))
    return {name: (statistics.median(x), (max(x) - min(x)) / statistics.median(x)) for name, x in rates.items()}


def peak_mebibytes(model: str, what: str) -> float:
    """Return the peak memory of a process that only rolls out and updates, in MiB."""
    code = f"from marl.experiments.bench.language import alone; alone({model!r}, {what!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(model: str, what: str) -> None:
    """Roll out and update, ours or the reference, and print the peak memory in MiB."""
    torch.set_num_threads(1)
    language = Language(model)
    if what == "reference":
        language.reference_rollout()
        language.reference_update()
    else:
        language.rollout()
        language.update()
    # ru_maxrss would start at the memory of the parent process.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def buffer_bytes(agent: str) -> float:
    """Return the bytes that a rollout stores per slot of an action, ids and masks included."""
    rollout = Language("tiny", agent).trainer.collector.rollout
    assert rollout is not None
    parts = [rollout.action, rollout.node_mask, rollout.loss_mask, rollout.log_prob, rollout.value]
    return sum(part.nbytes for part in parts) / rollout.node_mask.numel()


def language_part(config: Any) -> Table:
    """Measure action tokens per second of CPU time on one thread, and peak memory, of ours and the reference."""
    language = Language(config.model)
    work = {
        "reference, rollout": language.reference_rollout,
        "ours, rollout": language.rollout,
        "reference, update": language.reference_update,
        "ours, update": language.update,
    }
    rates = tokens_per_second(work, config.rounds)
    title = (
        f"{TASK}, {config.model}, poad, {ENVS} environments: tokens of actions per second of CPU time\n"
        f"etpo's rollout keeps {buffer_bytes('etpo'):.0f} bytes a token, ids and masks included"
    )
    table = Table("", "tokens/s", "times reference", "spread", "peak MiB", title=title)
    memory = {who: peak_mebibytes(config.model, who) for who in ("reference", "ours")}
    for name, (rate, spread) in rates.items():
        who, _, what = name.partition(", ")
        ratio = rate / rates[f"reference, {what}"][0]
        table.add_row(name, f"{rate:,.1f}", f"{ratio:.2f}", f"{spread:.0%}", f"{memory[who]:,.0f}")
    return table
