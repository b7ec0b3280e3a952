"""Time of a suite beside that of its runs one by one, and of a report over many runs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from marl.config import override, to_yaml
from marl.experiments.presets import choose

RUNS = 16
STEPS = 8192
TASKS = ("climbing", "penalty", "xor3", "permutation")
AGENTS = ("mappo", "ippo")
REPORT_RUNS = 500
EVALUATIONS, EPISODES = 20, 32
"""Evaluations of each run of the report, and episodes of each."""


def suite_part(config: Any) -> Table:  # noqa: ARG001 - the parts share an interface
    """Measure one round: a round takes minutes."""
    table = Table("", "seconds", "times one by one", title=f"{RUNS} runs of {STEPS} steps on toy tasks")
    with tempfile.TemporaryDirectory(prefix="marl-bench-") as folder:
        alone = time_single_runs(Path(folder))
        suite = time_suite(Path(folder))
        table.add_row("marl train, one after another", f"{alone:.1f}", "1.00")
        table.add_row("marl suite", f"{suite:.1f}", f"{suite / alone:.2f}")
        report = report_time(Path(folder))
        table.add_row(f"marl report of {REPORT_RUNS} runs", f"{report:.1f}", "")
    return table


def call(*words: str) -> float:
    """Return the seconds of a `marl` command. Raises CalledProcessError if it fails."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "marl.experiments.cli", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def time_single_runs(folder: Path) -> float:
    """Return the seconds of all runs as single commands, one thread each."""
    options = ["--steps", str(STEPS), "--learn-threads", "1", "--env-threads", "1", "--runs-dir", str(folder / "alone")]
    return sum(
        call("train", f"toy/{task}", "--agent", agent, "--seed", str(seed), *options)
        for task in TASKS
        for agent in AGENTS
        for seed in (1, 2)
    )


def time_suite(folder: Path) -> float:
    """Return the seconds of the same runs as a suite."""
    suite = {
        "title": "toys",
        "metric": "return",
        "step": "one step",
        "tasks": [f"toy/{task}" for task in TASKS],
        "agents": list(AGENTS),
        "scales": {"bench": {"steps": STEPS, "seeds": [1, 2]}},
    }
    file = folder / "toys.yaml"
    file.write_text(yaml.safe_dump(suite), encoding="utf-8")
    return call("suite", str(file), "--scale", "bench", "--folder", str(folder / "suite"))


def report_time(folder: Path) -> float:
    """Return the seconds of `marl report` on synthetic runs: 10 tasks, 5 agents, 10 seeds."""
    rng = np.random.default_rng(0)
    for name in ("3m", "8m", "25m", "2s3z", "3s5z", "MMM", "MMM2", "1c3s5z", "5m_vs_6m", "corridor"):
        task = f"smac/{name}"
        for agent in ("mat", "mat-dec", "mappo", "happo", "ippo"):
            base = choose(task, agent)[0]
            for seed in range(1, REPORT_RUNS // 50 + 1):
                run = folder / "many" / name / agent / str(seed)
                run.mkdir(parents=True)
                (run / "config.yaml").write_text(to_yaml(override(base, {"seed": seed})), encoding="utf-8")
                rows = [
                    {
                        "step": 20_480 * number,
                        "split": "validation",
                        "episode": episode,
                        "seed": episode,
                        "episode_return": float(rng.uniform(0, 20)),
                        "length": 60,
                        "info": {"success": float(rng.random() < number / EVALUATIONS)},
                    }
                    for number in range(1, EVALUATIONS + 1)
                    for episode in range(EPISODES)
                ]
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (run / "evaluations.jsonl").write_text(text, encoding="utf-8")
    return call("report", str(folder / "many"), "--metric", "success", "--out", str(folder / "many.html"))
