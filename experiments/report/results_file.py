"""Results files: every curve of a report as JSON, which `marl report` reads in place of runs, and marl-eval's JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marl.errors import ConfigError
from marl.experiments.report.runs import Curve, RunGroup

FORMAT = 2
"""Format of results files. Files without a format hold curves alone."""


def to_json(groups: Sequence[RunGroup], metric: str) -> dict[str, Any]:
    """Return the scores of every seed by environment, agent, seed and step: on validation seeds, and on test seeds."""
    data: dict[str, Any] = {"format": FORMAT, "metric": metric, "environments": {}, "test": {}, "seconds": {}}
    for group in groups:
        for name, curves, digits in (
            ("environments", group.curves, 6),
            ("test", group.tests, 6),
            ("seconds", group.clocks, 1),
        ):
            steps = {seed: set(group.curves[seed]) for seed in group.curves}
            kept = {
                str(seed): {
                    str(step): round(value, digits)
                    for step, value in curve.items()
                    if name != "seconds" or step in steps[seed]
                }
                for seed, curve in curves.items()
            }
            data[name].setdefault(group.env, {})[group.name] = kept
    protocols = {group.env: {} for group in groups}
    for group in groups:
        protocols[group.env][group.name] = {name: sorted(values) for name, values in group.protocol.items()}
    return data | {"protocol": protocols}


def read_results(path: Path) -> tuple[str, list[RunGroup]]:
    """Return the metric and the groups of a results file.

    Raises ConfigError for a file that cannot be read, is of a later format, or has no curve.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("environments"), dict):
        raise ConfigError(f"{path} is no results file; `marl report RUN ... --out X.json` writes one")
    if data.get("format", 1) > FORMAT:
        raise ConfigError(f"{path} has format {data['format']}, this seqmarl reads formats up to {FORMAT}; update it")
    groups = []
    try:
        for env, agents in data["environments"].items():
            for name, seeds in agents.items():
                tests, clocks, protocol = (
                    data.get(part, {}).get(env, {}).get(name, {}) for part in ("test", "seconds", "protocol")
                )
                curves = _curves(seeds)
                if not all(curves.values()) or not curves:
                    raise ConfigError(f"{path} has no evaluation of {name} on {env}; leave that agent out")
                facts = {fact: set(values) for fact, values in protocol.items()}
                groups.append(RunGroup(env, name, curves, _curves(tests), _curves(clocks), facts))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no results file: {error}") from error
    if not groups:
        raise ConfigError(f"{path} has no runs; `marl report RUN ... --out X.json` writes some")
    return str(data.get("metric", "return")), groups


def _curves(seeds: dict[str, dict[str, float]]) -> dict[int, Curve]:
    return {int(seed): {int(step): float(value) for step, value in curve.items()} for seed, curve in seeds.items()}


def to_marl_eval(groups: Sequence[RunGroup], metric: str) -> dict[str, Any]:
    """Return the scores as `marl-eval` reads them: environment, task, algorithm, run, step.

    Every run of a task has the steps at which all of its runs were evaluated. `absolute_metrics` holds the score at the
    last of these (Gorsane et al. 2022, "Towards a Standardised Performance Evaluation Protocol for Cooperative MARL").
    Raises ConfigError if the runs of a task share no step.
    """
    data: dict[str, Any] = {}
    for env in dict.fromkeys(group.env for group in groups):
        here = [group for group in groups if group.env == env]
        steps = sorted(set.intersection(*(set(group.common_steps()) for group in here)))
        if not steps:
            raise ConfigError(f"the runs on {env} share no evaluation step, which marl-eval requires; leave some out")
        family, _, task = env.partition("/")
        algorithms = data.setdefault(family, {}).setdefault(task or family, {})
        for group in here:
            finals = dict(zip(group.curves, group.scores(steps[-1]), strict=True))
            algorithms[group.name.replace(",", ";")] = {
                f"seed_{seed}": {
                    f"step_{number}": {"step_count": step, metric: [curve[step]]} for number, step in enumerate(steps)
                }
                | {"absolute_metrics": {metric: [finals[seed]]}}
                for seed, curve in group.curves.items()
            }
    return data
