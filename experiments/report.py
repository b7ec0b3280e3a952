"""`marl report`: comparison of runs of several seeds as a table, as JSON, and as learning curves."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from marl.config import RESUMABLE_FIELDS, RunConfig, flatten
from marl.errors import CheckpointError, ConfigError, MissingDependencyError
from marl.evaluation import Split
from marl.files import whole_files
from marl.run_folder import read_config
from marl.stats import bootstrap_interval, interquartile_mean, mean_interval, probability_of_improvement
from marl.tracking.metrics import axis_label

Curve = dict[int, float]
"""Mean over the episodes of an evaluation, by environment steps."""


@dataclass(frozen=True)
class RunGroup:
    """Runs of one agent on one environment with the same settings: one curve for each seed of a run.

    `name`: the agent, followed by the settings in which groups of that agent differ. `curves`: scores on the validation
    seeds. `tests`: scores on the test seeds, at the end of a run and before training if it was evaluated then.
    """

    env: str
    name: str
    curves: dict[int, Curve]
    tests: dict[int, Curve]

    def steps(self) -> list[int]:
        """Return the steps at which every run was evaluated."""
        return sorted(set.intersection(*(set(curve) for curve in self.curves.values())))

    def at(self, step: int) -> tuple[float, float, float]:
        """Return mean over seeds and 95 % Student interval, which is NaN for a single seed."""
        return summary([curve[step] for curve in self.curves.values()])

    def tested(self, step: int) -> bool:
        """Return True if every run was scored on the test seeds at `step`."""
        return all(step in self.tests[seed] for seed in self.curves)

    def scores(self, step: int) -> list[float]:
        """Return one score for each run: on the test seeds if all runs have one, else on the validation seeds."""
        return [(self.tests if self.tested(step) else self.curves)[seed][step] for seed in self.curves]


def summary(scores: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % Student interval."""
    return float(np.mean(scores)), *mean_interval(scores)


def read_curve(folder: Path, metric: str, split: Split = "validation") -> Curve:
    """Return the mean of `metric` by step, computed as in `marl.evaluation.summarize`.

    A cut episode counts as no success. Episodes whose value is not finite are left out.

    Raises CheckpointError if the run was never evaluated, ConfigError if its episodes lack `metric`.
    """
    scores: dict[int, list[float]] = {}
    rows = list(read_rows(folder / "evaluations.jsonl"))
    for row in rows:
        known = values_of(row)
        if row.get("cut") and metric not in known:
            known[metric] = 0.0 if metric == "success" else np.nan
        if metric not in known:
            raise no_metric(metric, folder, known)
        if row.get("split", "validation") == split and np.isfinite(known[metric]):
            scores.setdefault(row["step"], []).append(known[metric])
    if not rows:
        raise CheckpointError(f"{folder} was never evaluated; train it with --eval-episodes above 0")
    return {step: float(np.mean(values)) for step, values in scores.items()}


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
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


def no_metric(metric: str, whose: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a metric that the episodes lack."""
    return ConfigError(f"the episodes of {whose} have no {metric!r}; give one of {', '.join(sorted(known))}")


NOT_COMPARED = RESUMABLE_FIELDS - {"eval_stochastic"} | {
    "env",
    "agent",
    "seed",
    "device",
    "learn_threads",
    "micro_batch",
}
"""Fields that do not change the result, or that groups and curves distinguish already."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that runs of one group share. Of `init_from`, only its presence counts."""
    flat = {name: value for name, value in flatten(config).items() if name not in NOT_COMPARED}
    steps = {"steps": config.steps} if config.learn.anneal_learning_rate else {}
    return flat | steps | {"init_from": bool(config.init_from)}


def group_runs(folders: Sequence[Path], metric: str) -> list[RunGroup]:
    """Group runs by environment, agent and settings, in the order of first appearance.

    Raises ConfigError if two runs of a group have the same seed.
    """
    found: dict[str, tuple[RunConfig, dict[int, Curve], dict[int, Curve]]] = {}
    for folder in folders:
        config = read_config(folder)
        key = json.dumps([config.env, config.agent, settings_of(config)], default=str)
        _, curves, tests = found.setdefault(key, (config, {}, {}))
        if config.seed in curves:
            raise ConfigError(
                f"{folder} is a second run of {config.agent} on {config.env} with seed {config.seed} and the same "
                "settings; leave one out"
            )
        curves[config.seed] = read_curve(folder, metric)
        tests[config.seed] = read_curve(folder, metric, "test")
    configs = [config for config, *_ in found.values()]
    return [
        RunGroup(config.env, name_of(config, configs), dict(sorted(curves.items())), tests)
        for config, curves, tests in found.values()
    ]


def find_runs(folder: Path) -> list[Path]:
    """Return the runs below a folder, sorted, or the folder itself if it is a run or holds none."""
    if (folder / "config.yaml").exists():
        return [folder]
    return sorted(path.parent for path in folder.rglob("config.yaml")) or [folder]


def name_of(config: RunConfig, others: Iterable[RunConfig]) -> str:
    """Return the agent's name, followed by the settings in which its groups on the same environment differ."""
    mine = settings_of(config)
    rivals = [settings_of(other) for other in others if (other.env, other.agent) == (config.env, config.agent)]
    own = [f"{name}={value}" for name, value in mine.items() if any(other.get(name) != value for other in rivals)]
    return " ".join([config.agent, *own])


def shown(metric: str, value: float, low: float, high: float) -> str:
    """Format a mean and its interval: success in per cent, clipped to 0 to 100, other metrics with four digits."""
    if metric == "success":
        interval = "" if np.isnan(low) else f" ({100 * max(low, 0.0):.0f} to {100 * min(high, 1.0):.0f})"
        return f"{100 * value:.0f} %{interval}"
    interval = "" if np.isnan(low) else f" ({low:.4g} to {high:.4g})"
    return f"{value:.4g}{interval}"


SEEDS_USED = """at the end: test seeds (*: validation seeds, because there is no test evaluation)
highest on the way: validation seeds, so it is biased upwards"""
"""Caption of the table: evaluation seeds of its columns."""


def table(groups: Sequence[RunGroup], metric: str) -> Table:
    """Return a table with one row for each group: final score, and highest evaluation at which every run was scored."""
    names = (Column(name, overflow="fold") for name in ("environment", "agent"))
    made = Table(*names, "seeds", "steps", f"{metric} at the end (95 %)", "highest on the way", "at")
    made.caption = SEEDS_USED
    for group in groups:
        steps = group.steps()
        if not steps:
            made.add_row(group.env, group.name, str(len(group.curves)), "-", "no common evaluation", "-", "-")
            continue
        best = max(steps, key=lambda step: group.at(step)[0])
        end = shown(metric, *summary(group.scores(steps[-1]))) + ("" if group.tested(steps[-1]) else " *")
        cells = f"{steps[-1]:,}", end, shown(metric, *group.at(best)), f"{best:,}"
        made.add_row(group.env, group.name, str(len(group.curves)), *cells)
    return made


def overall(groups: Sequence[RunGroup], metric: str) -> Table | None:
    """Compare agents over all environments, up to the last step at which all were evaluated.

    Shows interquartile means over seeds and environments with stratified bootstrap intervals, and the probability of
    improvement on the first agent (Agarwal et al. 2021, section 4). Returns None unless the metric is `success`, there
    are two or more environments and agents, and each agent has the same number of seeds in every environment.
    """
    envs, names = (list(dict.fromkeys(each)) for each in zip(*((g.env, g.name) for g in groups), strict=True))
    found = {(group.env, group.name): group for group in groups}
    counts = {name: {len(found[env, name].curves) for env in envs if (env, name) in found} for name in names}
    whole = len(found) == len(envs) * len(names) and all(len(each) == 1 for each in counts.values())
    if metric != "success" or min(len(envs), len(names)) < 2 or not whole:
        return None
    steps = {env: sorted(set.intersection(*(set(found[env, name].steps()) for name in names))) for env in envs}
    if not all(each and each[-1] for each in steps.values()):
        return None
    made = Table("agent", "at the end (95 %)", "on the way (95 %)", f"P(improvement on {names[0]})")
    made.title = f"{metric} over {len(envs)} environments, interquartile means"
    untested = any(not found[env, name].tested(each[-1]) for env, each in steps.items() for name in names)
    made.caption = "the end: " + ", ".join(f"{env} {each[-1]:,}" for env, each in steps.items())
    made.caption += "; validation seeds" if untested else "; test seeds at the end, validation seeds on the way"
    ends: dict[str, np.ndarray] = {}
    for name in names:
        curves = [[[curve[step] for step in steps[env]] for curve in found[env, name].curves.values()] for env in envs]
        ends[name] = np.array([found[env, name].scores(steps[env][-1]) for env in envs]).T
        way = np.array([[np.mean(curve) for curve in seeds] for seeds in curves]).T
        cells = (shown(metric, interquartile_mean(x), *bootstrap_interval(x)) for x in (ends[name], way))
        better = probability_of_improvement(ends[name], ends[names[0]])
        made.add_row(name, *cells, f"{better:.2f}" if name != names[0] else "-")
    return made


def to_json(groups: Sequence[RunGroup], metric: str) -> dict[str, Any]:
    """Return the curves of all runs by environment and group, on the validation and the test seeds."""
    both: dict[str, dict[str, Any]] = {"environments": {}, "test": {}}
    for group in groups:
        for name, curves in (("environments", group.curves), ("test", group.tests)):
            seeds = {str(seed): {str(k): round(v, 6) for k, v in curve.items()} for seed, curve in curves.items()}
            both[name].setdefault(group.env, {})[group.name] = seeds
    return {"metric": metric, **both}


def draw(groups: Sequence[RunGroup], metric: str, path: Path) -> None:
    """Draw the mean curves, and faintly the curves of all runs, with one panel for each environment.

    Raises MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingDependencyError("pictures need matplotlib; install with: pip install 'seqmarl[report]'") from error
    envs = list(dict.fromkeys(group.env for group in groups))
    names = list(dict.fromkeys(group.name for group in groups))
    columns = min(3, len(envs))
    lines = -(-len(envs) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, env in zip(panels, envs, strict=False):
        here = [group for group in groups if group.env == env]
        for group in here:
            color, steps = f"C{names.index(group.name)}", group.steps()
            for curve in group.curves.values():
                plot(panel, list(curve), list(curve.values()), color=color, alpha=0.3, linewidth=0.7)
            plot(panel, steps, [group.at(step)[0] for step in steps], color=color, linewidth=1.8)
        seeds = sorted({len(group.curves) for group in here})
        count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        panel.set_title(f"{env}, seeds: {count}", fontsize=10)
        panel.set_xlabel("environment steps")
        panel.set_ylabel(axis_label(f"eval/{metric}"))
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
        panel.grid(alpha=0.3)
        if metric == "success":
            panel.set_ylim(-0.03, 1.03)
    for panel in panels[len(envs) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(names)]
    beside = min(6, 2 * columns) if max(map(len, names)) < 16 else 1
    figure.legend(handles=handles, loc="outside lower center", ncols=beside, fontsize=9)
    figure.savefig(path, dpi=130)


def plot(panel: Any, x: list[int], y: list[float], **style: Any) -> None:
    """Plot a line, or a dot for a single point."""
    panel.plot(x, y, marker="o" if len(x) == 1 else "", **style)


def compare_runs(folders: Sequence[Path], metric: str, out: Path | None) -> None:
    """Print the tables. If `out` is given, write `out`.json and `out`.png.

    Raises ConfigError without folders, or if `out` cannot be written.
    """
    if not folders:
        raise ConfigError("report needs runs; give one or more folders of runs, such as runs")
    if out is not None:
        if out.is_dir():
            raise ConfigError(f"out={str(out)!r} is a folder; give the name of a file in it, without .json or .png")
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"cannot write {out}: its folder does not exist")
        out = out.with_suffix("") if out.suffix in (".json", ".png") else out
    groups = group_runs([run for folder in folders for run in find_runs(folder)], metric)
    tables = [table(groups, metric), overall(groups, metric)]
    if out is not None:
        data, picture = out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.png")
        with whole_files(data, picture) as (data_beside, picture_beside):
            data_beside.write_text(json.dumps(to_json(groups, metric), indent=1) + "\n", encoding="utf-8")
            draw(groups, metric, picture_beside)
    Console().print(*filter(None, tables))
    if out is not None:
        print(f"wrote {out}.json and {out}.png")
