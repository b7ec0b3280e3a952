"""Sweeps: a search over options of `marl train`, and the ranking of what was tried."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from rich.table import Table

from marl.config import RunConfig, override, to_yaml
from marl.errors import ConfigError, MarlError
from marl.experiments.api import with_options
from marl.experiments.presets import choose
from marl.experiments.report.runs import read_curve
from marl.experiments.report.tables import format_score
from marl.experiments.suite.plan import (
    Job,
    Plan,
    describe,
    folder_name,
    read_file,
    require_distinct,
    require_distinct_folders,
)
from marl.experiments.suite.suite import THREADS
from marl.files import write_whole
from marl.stats import mean_interval

RESERVED = frozenset({"seed", "runs_dir", "name", "env", "agent"})
"""Options that a sweep sets itself."""
MAX_NAME = 120
"""Most characters of the settings in the name of a folder."""


@dataclass(frozen=True)
class Range:
    """Values between two numbers, for a random search."""

    low: float
    high: float
    log: bool = False
    """Draw the logarithm uniformly."""
    integer: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ConfigError(
                f"range {self.low:g} to {self.high:g} holds no numbers; low must be below high"
                + (", and above 0 for a logarithm" if self.log else "")
            )

    def draw(self, random: np.random.Generator) -> float | int:
        """Return one value."""
        if self.log:
            value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = random.uniform(self.low, self.high)
        return round(value) if self.integer else float(f"{value:.4g}")


@dataclass(frozen=True)
class SweepFile:
    """A sweep as a YAML file."""

    env: str | tuple[str, ...]
    agent: str | tuple[str, ...]
    search: Literal["grid", "random", "list"]
    values: dict[str, Any] = field(default_factory=dict)
    """Option -> values. A random search also takes {low, high, log, integer}."""
    settings: tuple[dict[str, Any], ...] = ()
    """Settings of a list search."""
    samples: int = 10
    """Settings of a random search."""
    search_seed: int = 0
    """Seed of a random search."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of every run."""
    seeds: tuple[int, ...] = (1001, 1002, 1003)
    """Training seeds. Results should be made on others."""
    metric: str = "return"
    maximize: bool = True


def plan_sweep(path: Path, folder: Path) -> tuple[SweepFile, Plan]:
    """Return the runs of a sweep. Raises ConfigError for an unknown option or a wrong value, before anything starts."""
    sweep: SweepFile = read_file(path, SweepFile)
    envs = (sweep.env,) if isinstance(sweep.env, str) else sweep.env
    agents = (sweep.agent,) if isinstance(sweep.agent, str) else sweep.agent
    for option, given in (("env", envs), ("agent", agents), ("seeds", sweep.seeds)):
        require_distinct(option, given)
    searched = set(sweep.values).union(*sweep.settings)
    for names, where in ((sweep.options, "options"), (searched, "values or settings")):
        if fixed := sorted(RESERVED & set(names)):
            raise ConfigError(f"{path}: {where} have {', '.join(fixed)}; a sweep has a field for it, or sets it itself")
    jobs = []
    tried = {describe(each): each for each in all_settings(sweep)}
    for name, settings in tried.items():
        for env, agent in itertools.product(envs, agents):
            base = with_options(choose(env, agent)[0], THREADS | sweep.options | settings)
            label = name if len(envs) == 1 else f"{env} {name}"
            place = folder / folder_name(f"{env}-{agent}") / folder_name(short(name, list(tried)))
            for seed in sweep.seeds:
                own = {"seed": seed, "runs_dir": str(place), "name": str(seed)}
                jobs.append(Job(override(base, own), label, agent))
    require_distinct_folders(jobs)
    about = f"{sweep.search} search over {', '.join(sorted(searched))}: {len(tried)} settings, {len(sweep.seeds)} seeds"
    return sweep, Plan(path.stem, folder, sweep.metric, tuple(jobs), (about,))


def short(name: str, tried: Sequence[str]) -> str:
    """Return settings as the name of a folder; long ones are cut and numbered."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{tried.index(name) + 1}"


def all_settings(sweep: SweepFile) -> Iterator[dict[str, Any]]:
    """Yield the settings that are tried. Raises ConfigError if the fields do not fit the kind of search."""
    if sweep.search == "list":
        if sweep.values or not sweep.settings:
            raise ConfigError("search=list takes the field settings, a list of options, and not values")
        yield from sweep.settings
        return
    if sweep.settings or not sweep.values:
        raise ConfigError(f"search={sweep.search} takes the field values, options with their values, and not settings")
    choices = {name: values_of(name, given, sweep.search) for name, given in sweep.values.items()}
    lists = {name: given for name, given in choices.items() if isinstance(given, list)}
    if sweep.search == "grid":
        for values in itertools.product(*lists.values()):
            yield dict(zip(lists, values, strict=True))
        return
    if sweep.samples < 1:
        raise ConfigError(f"samples={sweep.samples}; give 1 or more")
    random = np.random.default_rng(sweep.search_seed)
    for _ in range(sweep.samples):
        yield {
            name: given.draw(random) if isinstance(given, Range) else given[int(random.integers(len(given)))]
            for name, given in choices.items()
        }


def values_of(name: str, given: Any, search: str) -> Range | list[Any]:
    """Return the values of an option, or the range of a random search. Raises ConfigError for anything else."""
    if isinstance(given, Mapping) and search == "random":
        unknown = set(given) - {f.name for f in dataclasses.fields(Range)}
        if unknown or not {"low", "high"} <= set(given):
            raise ConfigError(f"values of {name} are {dict(given)}; give a list, or low and high, with log or integer")
        log, integer = (bool(given.get(key, False)) for key in ("log", "integer"))
        return Range(float(given["low"]), float(given["high"]), log, integer)
    if isinstance(given, list) and given:
        return given
    raise ConfigError(f"values of {name} are {given!r}; give a list" + (" or a range" if search == "random" else ""))


Ranking = dict[tuple[str, str], list[tuple[str, list[float], RunConfig]]]
"""By environment and agent, best first: settings, the last validation score of each seed, and the configuration."""


def rank(sweep: SweepFile, jobs: Sequence[Job]) -> Ranking:
    """Return the ranking of the settings. Settings of which no run has a score are left out."""
    found: dict[tuple[str, str], dict[str, tuple[list[float], RunConfig]]] = {}
    for job in jobs:
        try:
            curve = read_curve(job.folder, sweep.metric)
        except MarlError:
            continue
        by_setting = found.setdefault((job.config.env, job.config.agent), {})
        by_setting.setdefault(job.row, ([], job.config))[0].append(curve[max(curve)])
    sign = -1 if sweep.maximize else 1
    return {
        key: sorted(
            ((row, scores, config) for row, (scores, config) in by_setting.items()),
            key=lambda each: sign * float(np.mean(each[1])),
        )
        for key, by_setting in found.items()
    }


def ranking_tables(sweep: SweepFile, found: Ranking) -> list[Table]:
    """Return one table for each environment and agent, best settings first."""
    tables = []
    for (env, agent), ranking in found.items():
        title = f"{agent} on {env}: validation seeds, last weights"
        table = Table("settings", f"{sweep.metric} (95 %)", "seeds", title=title)
        for row, scores, _ in ranking:
            shown = format_score(sweep.metric, float(np.mean(scores)), *mean_interval(scores))
            table.add_row(row, shown, f"{len(scores)} of {len(sweep.seeds)}")
        tables.append(table)
    return tables


def write_best(found: Ranking, folder: Path) -> list[Path]:
    """Write the best settings of each environment and agent for `marl train --config`; return the files."""
    written = []
    for (env, agent), ranking in found.items():
        settings = yaml.safe_load(to_yaml(ranking[0][2]))
        for name in ("runs_dir", "name", "seed"):
            del settings[name]
        path = folder / f"best-{folder_name(f'{env}-{agent}')}.yaml"
        write_whole(path, yaml.safe_dump(settings, sort_keys=False))
        written.append(path)
    return written
