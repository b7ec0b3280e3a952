"""Runs on disk, grouped by agent and task: evaluation curves of one metric, clocks, and the evaluation protocol."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marl.config import RESUMABLE_FIELDS, RunConfig, flatten
from marl.errors import CheckpointError, ConfigError, unknown_name_message
from marl.evaluation import Split
from marl.manifest import MANIFEST
from marl.run_folder import read_config, read_status

Curve = dict[int, float]
"""Mean over the episodes of an evaluation, by environment steps."""

SPEED = re.compile(r'"step": (\d+),.*"speed/steps_per_second": ([\d.e+-]+)')
"""Step and speed in a line of metrics.jsonl."""

SEED = re.compile(r"^seed: (\d+)$", re.M)
"""Seed in the text of config.yaml."""

NOT_COMPARED = RESUMABLE_FIELDS - {"eval_stochastic"} | {
    "env",
    "agent",
    "seed",
    "device",
    "learn_threads",
    "micro_batch",
}
"""Fields that do not change the result, or that groups and curves distinguish already."""


@dataclass(frozen=True)
class RunGroup:
    """Runs of one agent on one environment with the same settings: one curve for each seed of a run.

    `name`: the agent, followed by the settings in which groups of that agent differ. `curves`: scores on the validation
    seeds. `tests`: scores on the test seeds, at the end of a run and before training if it was evaluated then.
    `clocks`: seconds of training by environment steps, for each seed. `protocol`: for each fact about the evaluation
    (episodes, greedy or sampled actions, step limit, episode seeds, environment options, version), its values.
    """

    env: str
    name: str
    curves: dict[int, Curve]
    tests: dict[int, Curve]
    clocks: dict[int, Curve] = field(default_factory=dict)
    protocol: dict[str, set[str]] = field(default_factory=dict)

    @property
    def agent(self) -> str:
        """Name of the agent without settings."""
        return self.name.partition(" ")[0]

    def common_steps(self) -> list[int]:
        """Return the steps at which every run was evaluated."""
        return sorted(set.intersection(*(set(curve) for curve in self.curves.values())))

    def table(self, steps: Sequence[int]) -> np.ndarray:
        """Return the validation scores (seeds, steps)."""
        return np.array([[curve[step] for step in steps] for curve in self.curves.values()], dtype=np.float64)

    def seconds(self, steps: Sequence[int]) -> list[float] | None:
        """Return the mean training time at each step, or None if a run has no speed on record."""
        if set(self.clocks) != set(self.curves) or not all(self.clocks.values()):
            return None
        clocks = [np.interp(steps, [0, *clock], [0.0, *clock.values()]) for clock in self.clocks.values()]
        return np.mean(clocks, axis=0).tolist()

    def has_test_scores(self, step: int) -> bool:
        """Return True if every run was scored on the test seeds at `step`."""
        return all(step in self.tests.get(seed, {}) for seed in self.curves)

    def scores(self, step: int) -> list[float]:
        """Return one score for each run: on the test seeds if all runs have one, else on the validation seeds."""
        return [(self.tests if self.has_test_scores(step) else self.curves)[seed][step] for seed in self.curves]


def find_runs(folder: Path) -> list[Path]:
    """Return the runs below a folder, sorted, or the folder itself if it is a run or holds none."""
    if (folder / "config.yaml").exists():
        return [folder]
    found = sorted(path.parent for path in folder.rglob("config.yaml"))
    # W&B and MLflow keep copies of the file in folders of their own.
    return [run for run in found if not {"wandb", "mlruns"} & set(run.relative_to(folder).parts)] or [folder]


def read_curve(folder: Path, metric: str, split: Split = "validation") -> Curve:
    """Return the mean of `metric` by step, computed as in `marl.evaluation.summarize`.

    A cut episode counts as no success. Episodes whose value is not finite are left out.

    Raises CheckpointError if the run was never evaluated, ConfigError if its episodes lack `metric`.
    """
    return mean_curves(list(read_rows(folder / "evaluations.jsonl")), metric, folder)[split]


def mean_curves(rows: Sequence[Mapping[str, Any]], metric: str, folder: Path) -> dict[Split, Curve]:
    """Return the curves of `read_curve` from the rows of evaluations.jsonl."""
    scores: dict[Split, dict[int, list[float]]] = {"validation": {}, "test": {}}
    for row in rows:
        known = row_metrics(row)
        if row.get("cut") and metric not in known:
            known[metric] = 0.0 if metric == "success" else np.nan
        if metric not in known:
            raise unknown_metric(metric, folder, known)
        if (split := row.get("split", "validation")) not in scores:
            raise CheckpointError(f"{folder / 'evaluations.jsonl'} has split={split!r}; it was made by another version")
        if math.isfinite(known[metric]):
            scores[split].setdefault(row["step"], []).append(known[metric])
    if not rows:
        raise CheckpointError(f"{folder} was never evaluated; train it with --eval-episodes above 0")
    return {split: {step: float(np.mean(each)) for step, each in steps.items()} for split, steps in scores.items()}


def row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an evaluated episode from the fields of its EpisodeRow."""
    by_type = {f"return/{name}": value for name, value in row.get("type_returns", {}).items()}
    return {"return": row["episode_return"], "length": row["length"], **by_type, **row["info"]}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a file, without an unfinished last line; nothing if there is no file.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, 1):
            if number < len(lines) or line.endswith("\n"):
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_clock(folder: Path) -> Curve:
    """Return the seconds of training by step, without evaluations. Empty if the run has no readable metrics.jsonl."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    clock: Curve = {}
    last, seconds = 0, 0.0
    for line in lines:
        if (found := SPEED.search(line)) and float(found[2]) > 0:
            step = int(found[1])
            seconds += max(0, step - last) / float(found[2])
            last = step
            clock[step] = seconds
    return clock


def unknown_metric(metric: str, whose: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a metric that the episodes lack, with the closest names."""
    return ConfigError(f"the episodes of {whose} have no {metric!r}: {unknown_name_message('metric', metric, known)}")


def group_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that runs of one group share. Of `init_from`, only its presence counts."""
    flat = {name: value for name, value in flatten(config).items() if name not in NOT_COMPARED}
    steps = {"steps": config.steps} if config.learn.anneal_learning_rate else {}
    return flat | steps | {"init_from": bool(config.init_from)}


def protocol_of(folder: Path, config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the facts about the evaluations of a run that make its scores comparable with those of others."""
    played = sorted({(row.get("episode", 0), row.get("seed", 0)) for row in rows if row.get("split") != "test"})
    digest = hashlib.sha256(json.dumps(played).encode()).hexdigest()[:8]
    options = ", ".join(f"{name}={value}" for name, value in vars(config.env_options).items())
    facts = {
        "episodes": str(config.evaluation.eval_episodes),
        "actions": "sampled" if config.evaluation.eval_stochastic else "greedy",
        "eval_max_steps": str(config.evaluation.eval_max_steps),
        "episode seeds": digest,
        "environment options": options or "default",
        "version": code_version(folder),
    }
    return {name: {value} for name, value in facts.items() if value}


def code_version(folder: Path) -> str:
    """Return the version of seqmarl and the git commit of a run: of its status, else of its newest checkpoint.

    Empty if neither can be read.
    """
    status = read_status(folder)
    if status.get("version"):
        return " ".join(str(status[name]) for name in ("version", "git_commit") if status.get(name))
    for manifest in sorted(folder.glob(f"checkpoints/*/{MANIFEST}"), reverse=True):
        try:
            return str(json.loads(manifest.read_bytes())["versions"]["seqmarl"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def read_seed_config(folder: Path, known: dict[str, RunConfig]) -> RunConfig:
    """Return the configuration of a run. Texts that differ in the seed alone are parsed once, and kept in `known`."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    seed, rest = SEED.search(text), SEED.sub("", text, count=1)
    if seed is not None and rest in known:
        return dataclasses.replace(known[rest], seed=int(seed[1]))
    known[rest] = read_config(folder)
    return known[rest]


def group_runs(folders: Sequence[Path], metric: str) -> list[RunGroup]:
    """Group runs by environment, agent and settings, in the order of first appearance.

    Raises ConfigError if two runs of a group have the same seed.
    """
    found: dict[str, tuple[RunConfig, RunGroup]] = {}
    configs: dict[str, RunConfig] = {}
    for folder in folders:
        config = read_seed_config(folder, configs)
        key = json.dumps([config.env, config.agent, group_settings(config)], default=str)
        _, group = found.setdefault(key, (config, RunGroup(config.env, config.agent, {}, {})))
        if config.seed in group.curves:
            raise ConfigError(
                f"{folder} is a second run of {config.agent} on {config.env} with seed {config.seed} and the same "
                "settings; leave one out"
            )
        rows = list(read_rows(folder / "evaluations.jsonl"))
        curves = mean_curves(rows, metric, folder)
        group.curves[config.seed], group.tests[config.seed] = curves["validation"], curves["test"]
        group.clocks[config.seed] = read_clock(folder)
        for name, values in protocol_of(folder, config, rows).items():
            group.protocol.setdefault(name, set()).update(values)
    others = [config for config, _ in found.values()]
    return [
        RunGroup(config.env, group_name(config, others), dict(sorted(g.curves.items())), g.tests, g.clocks, g.protocol)
        for config, g in found.values()
    ]


def group_name(config: RunConfig, others: Iterable[RunConfig]) -> str:
    """Return the agent's name, followed by the settings in which its groups on the same environment differ."""
    mine = group_settings(config)
    rivals = [group_settings(other) for other in others if (other.env, other.agent) == (config.env, config.agent)]
    own = [f"{name}={value}" for name, value in mine.items() if any(other.get(name) != value for other in rivals)]
    return " ".join([config.agent, *own])
