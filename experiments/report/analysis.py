"""Analysis of groups of runs: a row for each agent and task, aggregates of each agent over tasks, and warnings."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from marl.errors import ConfigError
from marl.experiments.report import statistics
from marl.experiments.report.published import Published, find_published
from marl.experiments.report.runs import RunGroup
from marl.experiments.report.styles import shorten

Rows = Literal["runs", "agents", "tasks", "overall"]
"""Rows of the first table. runs: each agent on each task, with every statistic. agents, tasks: final scores alone, one
row for each agent and a column for each task, or the other way round. overall: aggregates over tasks alone."""

Method = Literal["auto", "bootstrap", "student"]
"""Interval of a mean over seeds. auto: bootstrap if the metric is bounded, else Student's t."""

METRIC_BOUNDS = {"success": (0.0, 1.0), "normalized_return": (0.0, 1.0)}
"""Scales that hold in every environment."""

METRIC_LIMITS = {"success": (0.0, 1.0), "normalized_return": (-np.inf, 1.0)}
"""Lowest and highest possible scores in every environment. A normalized return is negative where penalties are."""

FEWEST_SEEDS = 5
"""Number of seeds below which an interval is not reliable."""

THRESHOLDS = np.linspace(0.0, 1.0, 101)
"""Scores at which performance profiles are computed."""

SHARES = np.linspace(0.05, 1.0, 20)
"""Shares of the training steps at which sample efficiency is computed."""


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval, NaN for a single run."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Options:
    """Choices of an analysis.

    `bounds`: (low, high) by task; "" holds for every task without an entry. `threshold`: score whose first step is
    reported. `at`: further steps at which to report the score. `interval`: see `Method`. `rows`: see `Rows`.
    """

    metric: str = "return"
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    threshold: float | None = None
    at: tuple[int, ...] = ()
    interval: Method = "auto"
    rows: Rows = "runs"

    def bounds_of(self, env: str) -> tuple[float, float] | None:
        """Return the scores of a task that count as 0 and 1 in aggregates, or None if they are not declared."""
        return self.bounds.get(env, self.bounds.get("", METRIC_BOUNDS.get(self.metric)))

    def limits_of(self, env: str) -> tuple[float, float] | None:
        """Return the lowest and highest score of a task, or None if they are not declared."""
        return self.bounds.get(env, self.bounds.get("", METRIC_LIMITS.get(self.metric)))


@dataclass(frozen=True)
class Row:
    """One agent on one task. `mean`, `low` and `high` (steps,) are its curve on the validation seeds.

    `final`: score at the last common step, on the test seeds if `tested`. `best`: highest mean of the curve.
    `on_the_way`: mean over the common steps. `reached`: first step whose mean is the threshold or more, and
    `reached_by` the number of seeds that ever reached it. `at`: scores at the last evaluations before `Options.at`.
    """

    group: RunGroup
    steps: tuple[int, ...]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    final: Estimate
    tested: bool
    best: Estimate
    best_step: int
    on_the_way: Estimate
    reached: int | None
    reached_by: int
    at: tuple[Estimate | None, ...]
    published: tuple[Published, ...]


@dataclass(frozen=True)
class Aggregate:
    """One agent over all tasks, with scores scaled to 0 to 1 by the bounds of each task.

    `profile` (3, thresholds) and `efficiency` (3, shares) hold value, low and high. `improvement`: probability of
    improvement on each other agent.
    """

    name: str
    iqm: Estimate
    median: Estimate
    mean: Estimate
    optimality_gap: Estimate
    on_the_way: Estimate
    profile: np.ndarray
    efficiency: np.ndarray
    improvement: dict[str, Estimate]


@dataclass(frozen=True)
class Report:
    """Result of `analyze`. `ends`: for each task of the aggregates, the last step at which every agent was scored."""

    options: Options
    rows: tuple[Row, ...]
    aggregates: tuple[Aggregate, ...]
    ends: dict[str, int]
    all_tested: bool
    warnings: tuple[str, ...]

    @property
    def tasks(self) -> list[str]:
        """Tasks in order of appearance."""
        return list(dict.fromkeys(row.group.env for row in self.rows))

    @property
    def names(self) -> list[str]:
        """Names of the groups in order of appearance."""
        return list(dict.fromkeys(row.group.name for row in self.rows))


def analyze(groups: Sequence[RunGroup], options: Options, notes: Iterable[str] = ()) -> Report:
    """Return the statistics of `groups`. `notes` are warnings from reading them.

    Raises ConfigError if a score lies outside its bounds, or if an option names a task that is not among the groups.
    """
    if unknown := sorted(set(options.bounds) - {group.env for group in groups} - {""}):
        raise ConfigError(f"bounds name {unknown[0]!r}, which has no run; give a task of the report")
    for group in groups:
        check_bounds(group, options.limits_of(group.env), options.metric)
    rows = tuple(make_row(group, options) for group in groups if group.common_steps())
    warnings = [*notes, *find_problems(groups, rows)]
    warnings += [f"{g.name} on {g.env}: no evaluation is common to its seeds" for g in groups if not g.common_steps()]
    aggregates, ends, tested = aggregate(groups, options, warnings)
    return Report(options, rows, aggregates, ends, tested, tuple(map(shorten, warnings)))


def check_bounds(group: RunGroup, bounds: tuple[float, float] | None, metric: str) -> None:
    """Raise ConfigError if a score of `group` lies outside `bounds`."""
    if bounds is None:
        return
    low, high = bounds
    slack = 1e-6 * (high - max(low, -high))
    for curves in (group.curves, group.tests):
        for seed, curve in curves.items():
            for step, score in curve.items():
                if not low - slack <= score <= high + slack:
                    raise ConfigError(
                        f"{metric}={score:g} of {group.name} on {group.env}, seed {seed}, step {step} lies outside its "
                        f"bounds {low:g} to {high:g}; give wider --bounds"
                    )


def make_row(group: RunGroup, options: Options) -> Row:
    """Return the statistics of one agent on one task."""
    steps = group.common_steps()
    curves = group.table(steps)
    interval = mean_estimator(options.interval, options.limits_of(group.env))
    mean = curves.mean(axis=0)
    low, high = interval(curves)
    best = int(mean.argmax())
    final = summarize(group.scores(steps[-1]), interval)
    reached = None if options.threshold is None else statistics.first_reached(steps, mean, options.threshold)
    by = 0 if options.threshold is None else int((curves >= options.threshold - 1e-9).any(axis=1).sum())
    before = [max((i for i, step in enumerate(steps) if step <= at), default=None) for at in options.at]
    return Row(
        group,
        tuple(steps),
        mean,
        low,
        high,
        final,
        group.has_test_scores(steps[-1]),
        Estimate(float(mean[best]), float(low[best]), float(high[best])),
        steps[best],
        summarize(list(curves.mean(axis=1)), interval),
        reached,
        by,
        tuple(None if i is None else Estimate(float(mean[i]), float(low[i]), float(high[i])) for i in before),
        find_published(group.env, group.agent, options.metric),
    )


def mean_estimator(method: Method, bounds: tuple[float, float] | None) -> Callable[[np.ndarray], Any]:
    """Return a function from scores (seeds, columns) to the intervals (low, high) of their means, inside `bounds`."""

    def student(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = statistics.student_means(scores)
        return (low, high) if bounds is None else (np.maximum(low, bounds[0]), np.minimum(high, bounds[1]))

    uses_bootstrap = method == "bootstrap" or (method == "auto" and bounds is not None)
    return statistics.bootstrap_means if uses_bootstrap else student


def summarize(scores: Sequence[float], interval: Callable[[np.ndarray], Any]) -> Estimate:
    """Return mean and interval of one score for each seed."""
    column = np.asarray(scores, dtype=np.float64)[:, None]
    low, high = interval(column)
    return Estimate(float(column.mean()), float(low[0]), float(high[0]))


def aggregate(
    groups: Sequence[RunGroup], options: Options, warnings: list[str]
) -> tuple[tuple[Aggregate, ...], dict[str, int], bool]:
    """Return the aggregates over the tasks that every agent was evaluated on, their last steps, and whether all scores
    are of the test seeds. There are none for fewer than two such tasks or without bounds; `warnings` gets the reason.
    """
    names, envs = (list(dict.fromkeys(each)) for each in ([g.name for g in groups], [g.env for g in groups]))
    found = {(group.env, group.name): group for group in groups}
    if len(envs) < 2:
        return (), {}, False
    ends: dict[str, list[int]] = {}
    for env in envs:
        here = [set(found[env, name].common_steps()) for name in names if (env, name) in found]
        if len(here) == len(names) and (common := set.intersection(*here) - {0}):
            ends[env] = sorted(common)
    if left_out := [env for env in envs if env not in ends]:
        warnings.append(f"no evaluation by all agents, so not in the aggregates over tasks: {', '.join(left_out)}")
    if len(ends) < 2:
        return (), {}, False
    scale = {env: options.bounds_of(env) for env in ends}
    if unbounded := [env for env, bounds in scale.items() if bounds is None]:
        warnings.append(
            f"no aggregates over tasks: {options.metric} has no bounds on {', '.join(unbounded)}; give --bounds"
        )
        return (), {}, False
    if len({len(found[env, name].curves) for env in ends for name in names}) > 1:
        warnings.append("agents or tasks differ in the number of seeds; interquartile means weigh every run alike")

    def scaled(env: str, scores: Any) -> np.ndarray:
        low, high = scale[env] or (0.0, 1.0)
        return np.clip((np.asarray(scores, dtype=np.float64) - low) / (high - low), 0.0, 1.0)

    tested = all(found[env, name].has_test_scores(steps[-1]) for env, steps in ends.items() for name in names)
    finals, ways, curves = {}, {}, {}
    for name in names:
        mine = {env: scaled(env, found[env, name].table(steps)) for env, steps in ends.items()}
        scores = [scaled(env, found[env, name].scores(steps[-1])) for env, steps in ends.items()]
        finals[name] = statistics.stack_tasks(scores)
        ways[name] = statistics.stack_tasks([each.mean(axis=1) for each in mine.values()])
        curves[name] = mine
    made = [
        Aggregate(
            name,
            estimate(finals[name], statistics.interquartile_mean),
            estimate(finals[name], statistics.task_median),
            estimate(finals[name], statistics.task_mean),
            estimate(finals[name], statistics.optimality_gap),
            estimate(ways[name], statistics.interquartile_mean),
            np.stack(
                [
                    statistics.performance_profile(finals[name], THRESHOLDS),
                    *statistics.profile_interval(finals[name], THRESHOLDS),
                ]
            ),
            efficiency(curves[name], ends),
            {other: improvement(finals[name], finals[other]) for other in names if other != name},
        )
        for name in names
    ]
    return tuple(made), {env: steps[-1] for env, steps in ends.items()}, tested


def estimate(scores: Any, statistic: statistics.Statistic) -> Estimate:
    """Return an aggregate and its stratified bootstrap interval."""
    return Estimate(float(statistic(scores, axis=statistics.RUNS)), *statistics.bootstrap_interval(scores, statistic))


def improvement(scores: Any, others: Any) -> Estimate:
    """Return the probability of improvement and its bootstrap interval."""
    interval = statistics.improvement_interval(scores, others)
    return Estimate(statistics.probability_of_improvement(scores, others), *interval)


def efficiency(curves: dict[str, np.ndarray], ends: dict[str, list[int]]) -> np.ndarray:
    """Return interquartile mean, low and high (3, shares) of the last evaluations before each share of the steps.

    NaN before every task had an evaluation.
    """
    made = np.full((3, len(SHARES)), np.nan)
    for number, share in enumerate(SHARES):
        columns = []
        for env, steps in ends.items():
            before = np.searchsorted(steps, share * steps[-1] * (1 + 1e-9), side="right") - 1
            if before >= 0:
                columns.append(curves[env][:, before])
        if len(columns) == len(ends):
            result = estimate(statistics.stack_tasks(columns), statistics.interquartile_mean)
            made[:, number] = dataclasses.astuple(result)
    return made


def find_problems(groups: Sequence[RunGroup], rows: Sequence[Row]) -> list[str]:
    """Return warnings: few seeds, mixed evaluation protocols, versions or settings, and identical curves."""
    problems = []
    if few := [f"{g.name} on {g.env} has {len(g.curves)}" for g in groups if len(g.curves) < FEWEST_SEEDS]:
        listed = ", ".join(few[:3]) + (f", and {len(few) - 3} more are as few" if len(few) > 3 else "")
        problems.append(f"fewer than {FEWEST_SEEDS} seeds, so intervals are not reliable: {listed}")
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        for fact in dict.fromkeys(name for group in here for name in group.protocol):
            values = {value for group in here for value in group.protocol.get(fact, ())}
            if len(values) > 1:
                each = ", ".join(f"{g.name} {' and '.join(sorted(g.protocol.get(fact, {'unknown'})))}" for g in here)
                problems.append(f"mixed {fact} on {env}, so scores are not comparable: {each}")
        seen: dict[tuple[Any, ...], str] = {}
        for row in rows:
            if row.group.env == env:
                key = (row.steps, row.mean.tobytes())
                if key in seen:
                    problems.append(f"identical curves on {env}: {seen[key]} and {row.group.name}")
                seen.setdefault(key, row.group.name)
    return problems
