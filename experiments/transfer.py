"""`marl transfer`: few-shot transfer from several tasks to an unseen one.

Every training is a run in its own folder, so a stopped command continues when it is repeated.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from marl.checkpoint.store import load
from marl.config import RunConfig, digest, override
from marl.errors import ConfigError
from marl.evaluation import run_episodes
from marl.experiments.presets import choose
from marl.experiments.report import results_file
from marl.experiments.report.runs import read_curve, row_metrics, unknown_metric
from marl.experiments.report.tables import format_score
from marl.files import require_folder_name, write_whole
from marl.multitask import share_parameters
from marl.policy import require_policy
from marl.registry import AGENTS
from marl.run import resume, start
from marl.run_folder import has_checkpoint, read_config
from marl.settings import require_episodes
from marl.stats import mean_interval
from marl.vector import make_vector

FILE = "transfer.json"

Scores = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Scores by agent, initialization (pretrained or scratch), percentage and seed."""

ActualSteps = dict[str, dict[str, int]]
"""Environment steps in whole iterations, by agent and percentage."""

COMMON_METRICS = ("return", "length")
"""Metrics of every environment."""

RESERVED = frozenset(
    {"env", "agent", "steps", "seed", "runs_dir", "name", "init_from", "eval_episodes", "eval_interval", "eval_start"}
)
"""Settings that the comparison sets itself."""

LOCKED = ("source", "target", "percentages", "budget", "pretrain_steps", "episodes", "settings")
"""Fields that a started comparison keeps. Agents and seeds may change; the table shows those of the last command."""

TARGET_SETTINGS = {"eval_start": True, "anneal_learning_rate": False}
"""Settings on the target. An annealed learning rate would depend on the requested percentages."""


@dataclass(frozen=True)
class Transfer:
    """Pre-train on several tasks, then learn an unseen task from a few per cent of the data, and compare with learning
    it from scratch (Wen et al. 2022, section 5.3). A stopped command continues when it is repeated."""

    source: Positional[str]
    """Tasks to pre-train on, joined by +, as `marl train` takes them."""
    target: str
    """The unseen task. Its number of agents may differ if agents read entities (SMAC: layout=entities). A task may have
    its own options, as mamujoco/HalfCheetah-6x1,disabled_joint=bshin."""
    agents: tuple[str, ...] = ("mat",)
    """Agents to compare."""
    seeds: tuple[int, ...] = (1,)
    """Seeds. Each has its own pre-training."""
    percentages: tuple[float, ...] = (0, 1, 5, 10)
    """Percentages of the budget after which to evaluate; 0 is before training."""
    budget: int = 1_000_000
    """Environment steps on the target that count as 100 %."""
    pretrain_steps: int = 1_000_000
    """Environment steps of the pre-training over all its tasks."""
    metric: str = "return"
    """Metric to compare: return, length, or a number that the environment reports, such as success."""
    episodes: int = 32
    """Episodes of an evaluation; the table shows the scores on the test seeds."""
    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    name: str = "transfer"
    """Folder of this comparison below `runs_dir`; it holds transfer.json."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all runs, on top of the presets, for example '{layout: entities, num_envs: 8}'. Learning rates are
    never annealed on the target."""

    def __post_init__(self) -> None:
        for name in ("agents", "seeds", "percentages"):
            values = getattr(self, name)
            for value in values:
                if (count := values.count(value)) > 1:
                    raise ConfigError(f"{name} has {value} {count} times; give it once")
        if not self.agents or not self.seeds or max(self.percentages, default=0) <= 0:
            raise ConfigError("agents or seeds are empty, or no percentage is above 0; give at least one of each")
        if outside := [percentage for percentage in self.percentages if not 0 <= percentage <= 100]:
            raise ConfigError(f"percentages has {outside[0]:g}; give parts of the budget, from 0 to 100")
        if fixed := sorted(RESERVED & set(self.settings)):
            raise ConfigError(f"settings have {', '.join(fixed)}, which this command sets itself; leave it out")
        require_episodes("episodes", self.episodes)
        for name in ("budget", "pretrain_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; give 1 or more")
        require_folder_name("name", self.name)
        if not self.steps(self.parts[0]):
            raise ConfigError(f"{self.parts[0]:g} % of the budget, {self.budget}, is less than a step; give more of it")

    @property
    def parts(self) -> list[float]:
        """Percentages above 0, in ascending order."""
        return sorted(set(self.percentages) - {0})

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""
        return self.runs_dir / self.name

    def steps(self, percentage: float) -> int:
        """Return the environment steps of a percentage of the budget."""
        return round(self.budget * percentage / 100)

    def config(self, env: str, agent: str, seed: int, part: str, **changes: Any) -> RunConfig:
        """Return the configuration of a run: the preset, the settings, and the comparison's own settings."""
        own = {"seed": seed, "runs_dir": str(self.folder), "name": f"{agent}-{seed}-{part}"}
        watch = {"eval_episodes": self.episodes, "eval_interval": 0}
        return override(choose(env, agent)[0], self.settings | own | watch | changes)

    def plan(self, agent: str, seed: int) -> tuple[RunConfig, dict[str, list[RunConfig]]]:
        """Return the configuration of the pre-training, and by initialization those on the target, one per part."""
        source = self.config(self.source, agent, seed, "source", steps=self.pretrain_steps)
        targets = {
            initialization: [
                self.config(
                    self.target, agent, seed, initialization, steps=self.steps(part), init_from=init, **TARGET_SETTINGS
                )
                for part in self.parts
            ]
            for initialization, init in (("pretrained", str(folder_of(source))), ("scratch", ""))
        }
        return source, targets


def transfer(options: Transfer) -> None:
    """Run the missing trainings, print the table and write transfer.json."""
    require_same_comparison(options)
    for agent in options.agents:
        require_fit(options, agent)
    scores: Scores = {}
    actual_steps: ActualSteps = {}
    for agent, seed, initialization, folder in train_runs(options):
        curve = read_curve(folder, options.metric, "test")
        for percentage in sorted(options.percentages):
            step = min((step for step in curve if step >= options.steps(percentage)), default=None)
            if step is None:
                raise ConfigError(
                    f"{folder} lacks its last evaluation, which was interrupted; remove it, and run again"
                )
            actual_steps.setdefault(agent, {})[f"{percentage:g}"] = step
            found = scores.setdefault(agent, {}).setdefault(initialization, {}).setdefault(f"{percentage:g}", {})
            found[str(seed)] = round(curve[step], 6)
    write_results(options, actual_steps, scores)
    Console().print(score_table(options, actual_steps, scores))
    print(f"wrote {options.folder / FILE}")


def write_results(options: Transfer, actual_steps: ActualSteps, scores: Scores) -> None:
    """Write options and scores so far to FILE in the comparison's folder: a results file, which `marl report` reads."""
    groups = {
        f"{agent} {initialization}": {
            str(seed): {
                str(actual_steps[agent][percentage]): found[str(seed)]
                for percentage, found in percentages.items()
                if str(seed) in found
            }
            for seed in options.seeds
        }
        for agent, initializations in scores.items()
        for initialization, percentages in initializations.items()
    }
    curves = {options.target: groups}
    content = {
        **dataclasses.asdict(options),
        "runs_dir": str(options.runs_dir),
        "format": results_file.FORMAT,
        "environments": curves,
        "test": curves,
    }
    write_whole(options.folder / FILE, json.dumps(content, indent=1) + "\n")


def require_same_comparison(options: Transfer) -> None:
    """Raise ConfigError if the folder holds a comparison with other settings."""
    path = options.folder / FILE
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; give another --name, or remove it") from error
    wanted = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    for each in (saved, wanted):
        each["percentages"] = sorted(each.get("percentages", ()))
    for name in LOCKED:
        if saved.get(name) != wanted[name]:
            raise ConfigError(
                f"{options.folder} was started with {name}={saved.get(name)}, not {wanted[name]}; give another "
                "--name, or remove the folder"
            )


def require_fit(options: Transfer, agent: str) -> None:
    """Check a comparison before training.

    Raises ConfigError if a run would be refused, the source weights do not fit the target, or it lacks the metric.
    """
    entry, policies, labels = AGENTS.get(agent), [], []
    if not entry.trains:
        raise ConfigError(f"agent {agent!r} does not learn; leave it out")
    source, targets = options.plan(agent, options.seeds[0])
    first = targets["scratch"][0]
    for config in (source, first):
        if entry.check is not None:
            entry.check(config)
    if first.steps < first.steps_per_iteration and not first.collect.whole_episodes:
        raise ConfigError(
            f"{options.parts[0]:g} % of the budget, {options.budget}, is {first.steps} steps, less than "
            f"an iteration of {agent} (num_envs {first.collect.num_envs} x rollout_steps {first.collect.rollout_steps})"
            "; give larger percentages or --budget, or smaller ones in --settings"
        )
    unseen = first.tasks
    for task in unseen:
        if task in source.tasks:
            raise ConfigError(f"target {task.label} is a task of the source too, so it is not unseen; give another")
    for task in source.tasks + unseen:
        with closing(make_vector(task.name, task.options, 1)) as env:
            policies.append(require_policy(entry.make(env.spec, source.agent_options), agent))
            labels.append(task.label)
            if task in unseen and options.metric not in COMMON_METRICS:
                (row,) = run_episodes(policies[-1], env, [0])
                if options.metric not in (known := row_metrics(dataclasses.asdict(row))):
                    raise unknown_metric(options.metric, task.label, known)
    for policy, label in zip(policies[1:], labels[1:], strict=True):
        share_parameters(policy, policies[0], (label, labels[0]))


def train_runs(options: Transfer) -> Iterator[tuple[str, int, str, Path]]:
    """Train every run. Yields agent, seed, initialization and folder of each finished run on the target.

    FILE is written after the first pre-training, so that later commands with other settings are refused.
    """
    for seed in options.seeds:
        for agent in options.agents:
            source, targets = options.plan(agent, seed)
            train_until(source)
            if not (options.folder / FILE).exists():
                write_results(options, {}, {})
            for initialization, configs in targets.items():
                for config in configs:
                    train_until(config)
                yield agent, seed, initialization, folder_of(configs[-1])


def folder_of(config: RunConfig) -> Path:
    """Return the folder of a run."""
    return Path(config.runs_dir) / config.name


def train_until(config: RunConfig) -> None:
    """Train a new or interrupted run until `config.steps`, where it is evaluated and saved.

    Raises ConfigError if the folder holds a run with other settings, or if this run is interrupted.
    """
    folder = folder_of(config)
    if (folder / "config.yaml").exists():
        if digest(read_config(folder)) != digest(config):
            raise ConfigError(f"{folder} was started with other settings; give another --name, or remove it")
        if trained_steps(folder) < config.steps:
            # Its settings equal those of this command, except what a resumed run may change, such as trackers.
            resume(folder, {"steps": config.steps, "trackers": config.trackers}, trust=True)
    else:
        start(config)
    if trained_steps(folder) < config.steps:
        raise ConfigError(f"{folder} was interrupted; repeat the command to continue")


def trained_steps(folder: Path) -> int:
    """Return the environment steps of a run's last checkpoint."""
    return load(folder / "checkpoints").step if has_checkpoint(folder) else 0


def score_table(options: Transfer, actual_steps: ActualSteps, scores: Scores) -> Table:
    """Return a table with two rows for each agent and a column for each percentage: means with 95 % intervals."""
    title = (
        f"{options.source} -> {options.target}\n{options.metric} of {options.episodes} episodes on the test seeds, "
        f"seeds of runs: {len(options.seeds)}"
    )
    columns = []
    for percentage in next(iter(actual_steps.values())):
        steps = sorted({of_agent[percentage] for of_agent in actual_steps.values()})
        columns.append(f"{percentage} %\n{' or '.join(f'{each:,}' for each in steps)} steps")
    table = Table("data", *columns, title=title)
    for agent, initializations in scores.items():
        for initialization, percentages in initializations.items():
            found = [list(seeds.values()) for seeds in percentages.values()]
            cells = (format_score(options.metric, sum(each) / len(each), *mean_interval(each)) for each in found)
            table.add_row(f"{agent}, {initialization}", *cells)
    return table
