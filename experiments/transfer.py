"""`marl transfer`: what an agent that has learned several tasks makes of an unseen one, with little data or none.

Everything is a run in a folder of its own, so a command that was stopped goes on where it was when it is given again.
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
from marl.config import RunConfig, digest, override, require_episodes
from marl.errors import ConfigError
from marl.evaluation import run_episodes
from marl.experiments.presets import choose
from marl.experiments.report import no_metric, read_curve, shown, values_of
from marl.files import require_folder_name, write_whole
from marl.multitask import share_parameters
from marl.registry import AGENTS
from marl.run import has_checkpoint, read_config, resume, start
from marl.stats import mean_interval
from marl.vector import make_vector

FILE = "transfer.json"

Scores = dict[str, dict[str, dict[str, dict[str, float]]]]
"""By agent, beginning (pretrained or scratch), percentage and seed."""

actual_steps = dict[str, dict[str, int]]
"""By agent and percentage: its steps, in whole iterations."""

EVERYWHERE = ("return", "length")
"""What the episodes of every environment have."""

RESERVED = frozenset(
    {"env", "agent", "steps", "seed", "runs_dir", "name", "init_from", "eval_episodes", "eval_interval", "eval_start"}
)
"""Settings of runs that belong to the comparison."""

LOCKED = ("source", "target", "percentages", "budget", "pretrain_steps", "episodes", "settings")
"""What a comparison that was begun keeps. Other agents and seeds may follow in it; the table is of those just named."""

ON_TARGET = {"eval_start": True, "anneal_learning_rate": False}
"""A rate that falls to the end of a run would depend on which parts of the data are asked for."""


@dataclass(frozen=True)
class Transfer:
    """Pre-train on several tasks at once, then learn an unseen one from a few per cent of the data, beside learning it
    from scratch (Wen et al. 2022, section 5.3). A stopped command goes on where it was when it is given again."""

    source: Positional[str]
    """Tasks to pre-train on, joined by +, as `marl train` takes them."""
    target: str
    """The unseen task; the number of agents may be another where agents read entities (SMAC: layout=entities). A task
    may have options of its own, as mamujoco/HalfCheetah-6x1,disabled_joint=bshin."""
    agents: tuple[str, ...] = ("mat",)
    """Agents to compare."""
    seeds: tuple[int, ...] = (1,)
    """Seeds, each with a pre-training of its own."""
    percentages: tuple[float, ...] = (0, 1, 5, 10)
    """Parts of the budget after which to evaluate; 0 is before any learning."""
    budget: int = 1_000_000
    """Environment steps that are all the data of the target."""
    pretrain_steps: int = 1_000_000
    """Environment steps of the pre-training, over all its tasks."""
    metric: str = "return"
    """What to compare: return, length, or a number that the environment reports, such as success."""
    episodes: int = 32
    """Episodes of an evaluation; the table is of those on the test seeds."""
    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    name: str = "transfer"
    """Folder in it for this comparison, with transfer.json."""
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
            raise ConfigError("give one or more agents and seeds, and percentages of which one is above 0")
        if outside := [percentage for percentage in self.percentages if not 0 <= percentage <= 100]:
            raise ConfigError(f"percentages has {outside[0]:g}; give parts of the budget, from 0 to 100")
        if fixed := sorted(RESERVED & set(self.settings)):
            raise ConfigError(f"settings have {', '.join(fixed)}, which this command sets itself; leave it out")
        require_episodes("episodes", self.episodes)
        for name in ("budget", "pretrain_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        require_folder_name("name", self.name)
        if not self.steps(self.parts[0]):
            raise ConfigError(f"{self.parts[0]:g} % of the budget, {self.budget}, is less than a step; give more of it")

    @property
    def parts(self) -> list[float]:
        """The percentages after which something has been learned, the smallest first."""
        return sorted(set(self.percentages) - {0})

    @property
    def folder(self) -> Path:
        return self.runs_dir / self.name

    def steps(self, percentage: float) -> int:
        return round(self.budget * percentage / 100)

    def config(self, env: str, agent: str, seed: int, part: str, **changes: Any) -> RunConfig:
        """That of a run: the preset, the settings, and what belongs to this comparison."""
        own = {"seed": seed, "runs_dir": str(self.folder), "name": f"{agent}-{seed}-{part}"}
        watch = {"eval_episodes": self.episodes, "eval_interval": 0}
        return override(choose(env, agent)[0], self.settings | own | watch | changes)

    def plan(self, agent: str, seed: int) -> tuple[RunConfig, dict[str, list[RunConfig]]]:
        """The pre-training, and by its beginning each run on the target, once for every part of the data it learns."""
        source = self.config(self.source, agent, seed, "source", steps=self.pretrain_steps)
        targets = {
            beginning: [
                self.config(self.target, agent, seed, beginning, steps=self.steps(part), init_from=init, **ON_TARGET)
                for part in self.parts
            ]
            for beginning, init in (("pretrained", str(folder_of(source))), ("scratch", ""))
        }
        return source, targets


def transfer(asked: Transfer) -> None:
    """Run what is missing, print the table and write transfer.json."""
    require_same(asked)
    for agent in asked.agents:
        require_fit(asked, agent)
    scores: Scores = {}
    reached: actual_steps = {}
    for agent, seed, beginning, folder in learn(asked):
        curve = read_curve(folder, asked.metric, "test")
        for percentage in sorted(asked.percentages):
            step = min((step for step in curve if step >= asked.steps(percentage)), default=None)
            if step is None:
                raise ConfigError(
                    f"{folder} lacks its last evaluation, which was interrupted; remove it, and run again"
                )
            reached.setdefault(agent, {})[f"{percentage:g}"] = step
            found = scores.setdefault(agent, {}).setdefault(beginning, {}).setdefault(f"{percentage:g}", {})
            found[str(seed)] = round(curve[step], 6)
    write(asked, reached, scores)
    Console().print(table(asked, reached, scores))
    print(f"wrote {asked.folder / FILE}")


def write(asked: Transfer, reached: actual_steps, scores: Scores) -> None:
    """What was asked and what came out of it so far, as FILE in the comparison's folder."""
    told = {**dataclasses.asdict(asked), "runs_dir": str(asked.runs_dir), "steps": reached, "scores": scores}
    write_whole(asked.folder / FILE, json.dumps(told, indent=1) + "\n")


def require_same(asked: Transfer) -> None:
    """Raises ConfigError where the folder holds another comparison, whose runs would be taken for those of this one."""
    path = asked.folder / FILE
    if not path.exists():
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; give another --name, or remove it") from error
    wanted = json.loads(json.dumps(dataclasses.asdict(asked), default=str))
    for told in (begun, wanted):
        told["percentages"] = sorted(told.get("percentages", ()))
    for name in LOCKED:
        if begun.get(name) != wanted[name]:
            raise ConfigError(
                f"{asked.folder} was begun with {name} {begun.get(name)}, and {wanted[name]} was asked for; give "
                "another --name, or remove it"
            )


def require_fit(asked: Transfer, agent: str) -> None:
    """Raises ConfigError, before long work, where a run would be refused, the weights of the sources would not fit the
    target, or the target lacks the metric."""
    entry, policies, labels = AGENTS.get(agent), [], []
    if not entry.trains:
        raise ConfigError(f"agent {agent!r} does not learn; leave it out")
    source, targets = asked.plan(agent, asked.seeds[0])
    first = targets["scratch"][0]
    for config in (source, first):
        if entry.check is not None:
            entry.check(config.agent_options, config.learn)
    if first.steps < first.steps_per_iteration and not first.collect.whole_episodes:
        raise ConfigError(
            f"{asked.parts[0]:g} % of the budget, {asked.budget}, is {first.steps} steps, less than "
            f"an iteration of {agent} (num_envs {first.collect.num_envs} x rollout_steps {first.collect.rollout_steps})"
            "; give larger percentages or --budget, or smaller ones in --settings"
        )
    unseen = first.tasks
    for task in unseen:
        if task in source.tasks:
            raise ConfigError(f"target {task.label} is a task of the source too, so it is not unseen; give another")
    for task in source.tasks + unseen:
        with closing(make_vector(task.name, task.options, 1)) as env:
            policies.append(entry.make(env.spec, source.agent_options))
            labels.append(task.label)
            if task in unseen and asked.metric not in EVERYWHERE:
                (row,) = run_episodes(policies[-1], env, [0])
                if asked.metric not in (known := values_of(dataclasses.asdict(row))):
                    raise no_metric(asked.metric, task.label, known)
    for policy, label in zip(policies[1:], labels[1:], strict=True):
        share_parameters(policy, policies[0], (label, labels[0]))


def learn(asked: Transfer) -> Iterator[tuple[str, int, str, Path]]:
    """Every run on the target, once it has learned from all the data that it may have.

    FILE is there from the end of the first pre-training on, for with other settings its weights would be others.
    """
    for seed in asked.seeds:
        for agent in asked.agents:
            source, targets = asked.plan(agent, seed)
            train_until(source)
            if not (asked.folder / FILE).exists():
                write(asked, {}, {})
            for beginning, configs in targets.items():
                for config in configs:
                    train_until(config)
                yield agent, seed, beginning, folder_of(configs[-1])


def folder_of(config: RunConfig) -> Path:
    return Path(config.runs_dir) / config.name


def train_until(config: RunConfig) -> None:
    """Train until `config.steps`, from wherever the run stands; at its end it is evaluated and saved.

    Raises ConfigError where the folder holds another run, or this one is interrupted.
    """
    folder = folder_of(config)
    if (folder / "config.yaml").exists():
        if digest(read_config(folder)) != digest(config):
            raise ConfigError(f"{folder} was begun with other settings; give another --name, or remove it")
        if trained_steps(folder) < config.steps:
            resume(folder, {"steps": config.steps}, trust=True)  # its settings are those of this command
    else:
        start(config)
    if trained_steps(folder) < config.steps:
        raise ConfigError(f"{folder} was interrupted; the same command goes on from there")


def trained_steps(folder: Path) -> int:
    """Steps that a run has learned from."""
    return load(folder / "checkpoints").step if has_checkpoint(folder) else 0


def table(asked: Transfer, reached: actual_steps, scores: Scores) -> Table:
    """Two rows an agent, one column a percentage: means over seeds with their 95 % Student intervals."""
    title = (
        f"{asked.source} -> {asked.target}\n{asked.metric} of {asked.episodes} episodes on the test seeds, "
        f"seeds of runs: {len(asked.seeds)}"
    )
    columns = []
    for percentage in next(iter(reached.values())):
        steps = sorted({of_agent[percentage] for of_agent in reached.values()})
        columns.append(f"{percentage} %\n{' or '.join(f'{each:,}' for each in steps)} steps")
    made = Table("data", *columns, title=title)
    for agent, beginnings in scores.items():
        for beginning, percentages in beginnings.items():
            found = [list(seeds.values()) for seeds in percentages.values()]
            cells = (shown(asked.metric, sum(each) / len(each), *mean_interval(each)) for each in found)
            made.add_row(f"{agent}, {beginning}", *cells)
    return made
