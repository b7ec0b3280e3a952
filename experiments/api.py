"""The Python interface: what the `marl` command does, as functions. `marl.train` and the others are these."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import yaml

from marl import run
from marl.callbacks import Callback
from marl.config import ALGORITHM_REGISTRIES, RunConfig, from_yaml, override, to_yaml
from marl.errors import ConfigError
from marl.evaluation import EpisodeRow, summarize
from marl.experiments.play import evaluate_task, load_for_evaluation
from marl.experiments.presets import by_name, choose
from marl.factories import absolute_name, factory_name
from marl.registry import Registry, find_family, require_options
from marl.run import IfExists, Result
from marl.run_folder import is_run, read_config_file
from marl.settings import MAX_EPISODE_STEPS
from marl.tracking.base import Tracker
from marl.trust import external_names, require_trust

Act = Literal["run", "greedy", "sampled"]
"""Actions of an evaluation: as the run's own evaluations, the most probable ones, or sampled."""


@dataclass(frozen=True)
class Evaluation:
    """Episodes on the test seeds."""

    scores: dict[str, float]
    """Means by tag: "test/return", "test/success", ...; of several tasks each has its own, as "test/return/TASK"."""
    episodes: dict[str, list[EpisodeRow]]
    """Every episode, by task."""


def train(
    config: RunConfig | str | os.PathLike[str] | None = None,
    *,
    env: str | Callable[..., Any] | None = None,
    agent: str | Callable[..., Any] | None = None,
    preset: str = "",
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker | str] = (),
    if_exists: IfExists = "error",
    trust: bool = False,
    **options: Any,
) -> Result:
    """Train an agent and return the run's folder, scores and policy.

    Give a configuration (a RunConfig, or the path of a YAML file), or an environment and an agent by name or as a
    factory; the tuned preset of the two is the start, or `preset`. `options` are those of `marl train --help`, with
    underscores. The run remembers trackers that are given by name; other trackers, and callbacks, are to be given again
    when it is resumed. `if_exists` is as in `marl.run.start`. `trust` allows the code that a YAML file in the folder of
    another user's run names. Raises MarlError if the run is refused or fails.
    """
    chosen, source = make_config(config, env, agent, preset, trust)
    if names := tuple(each for each in trackers if isinstance(each, str)):
        options["trackers"] = (*chosen.trackers, *names)
    notes = (f"settings: {source}",)
    objects = tuple(each for each in trackers if not isinstance(each, str))
    return run.start(with_options(chosen, options), run.Extras(tuple(callbacks), objects, notes), if_exists)


def with_options(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """Return a copy with options changed by their flat names. Raises ConfigError for a wrong name, type or value."""
    if not options:
        return config
    options = dict(options)
    for kind, registry in ALGORITHM_REGISTRIES.items():
        if not isinstance(options.get(kind, ""), str):
            options[kind] = class_name(options[kind], kind, registry)
    try:
        text = to_yaml(override(config, options))
    except (TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"options {dict(options)} hold a value of the wrong type: {error}") from error
    return from_yaml(text, "options")  # which checks the types


def class_name(given: Any, kind: str, registry: Registry) -> str:
    """Return the name of a class that is given as `kind`: its registered one, or the one that imports it.

    Raises ConfigError for anything else, such as an instance.
    """
    if not isinstance(given, type):
        raise ConfigError(
            f"{kind}={given!r:.80} is an instance of {type(given).__name__}; give the class, and its options as "
            f"keyword arguments, or in {kind}_kwargs if it is not registered"
        )
    registered = [name for name in registry.names() if registry.entries[name].make is given]
    return registered[0] if registered else factory_name(given, kind)


def make_config(
    config: RunConfig | str | os.PathLike[str] | None,
    env: str | Callable[..., Any] | None,
    agent: str | Callable[..., Any] | None,
    preset: str = "",
    trust: bool = False,
) -> tuple[RunConfig, str]:
    """Return a configuration, and a note on its source.

    `env` and `agent` take the place of those in a YAML file. Raises ConfigError for other combinations, and for a file
    in the folder of a run that names code and that another user made, unless `trust`.
    """
    names = {kind: factory_name(each, kind) for kind, each in (("env", env), ("agent", agent)) if each is not None}
    if config is None:
        if "env" not in names:
            raise ConfigError("train needs a configuration or an environment; give config=... or env=...")
        name, agent_name = names["env"], names.get("agent", "mat")
        return by_name(preset, name, agent_name) if preset else choose(name, agent_name)
    if preset:
        raise ConfigError(f"preset={preset!r} beside a configuration, which has all settings; leave one out")
    if isinstance(config, RunConfig):
        if names:
            raise ConfigError(f"{' and '.join(names)} beside a RunConfig, which has its own; leave them out")
        return config, "the given configuration"
    path = Path(config)
    read = read_config_file(path, names)
    if is_run(folder := path.absolute().parent):
        kinds = {"env": "environment", "agent": "agent"}
        typed = {f"{kinds[kind]} {absolute_name(name)}" for kind, name in names.items()}
        require_trust(folder, external_names(read) - typed, trust)
    return read, str(path)


def resume(
    folder: str | os.PathLike[str],
    *,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker | str] = (),
    trust: bool = False,
    **changes: Any,
) -> Result:
    """Continue a run from its last checkpoint; `changes` are options of `marl resume --help`, such as `steps`."""
    return run.resume(Path(folder), changes, trust, run.Extras(tuple(callbacks), tuple(trackers)))


def evaluate(
    subject: Result | str | os.PathLike[str],
    *,
    env: str = "",
    agent: str = "",
    episodes: int = 32,
    num_envs: int = 16,
    which: str | int = "best",
    act: Act = "run",
    eval_max_steps: int = MAX_EPISODE_STEPS,
    trust: bool = False,
    **env_options: Any,
) -> Evaluation:
    """Play episodes on the test seeds, which are the same for every agent, and return their scores.

    `subject` is a result, the folder of a run or of a checkpoint, or an environment for an `agent` that needs no
    training. The other arguments are the options of `marl eval --help`; `env_options` are the environment's. Raises
    ConfigError for another `act`.
    """
    if act not in get_args(Act):
        raise ConfigError(f"act={act!r}; give one of {', '.join(get_args(Act))}, and call twice to compare two")
    name = str(subject.folder if isinstance(subject, Result) else os.fspath(subject))
    chosen = None
    if env_options:
        if Path(name).is_dir():
            raise ConfigError(f"{name} is a run with its own environment options; leave {', '.join(env_options)} out")
        family = find_family(name).options
        require_options(name, family, env_options)
        chosen = family(**env_options)
    parsed = SimpleNamespace(
        subject=name, agent=agent, env=env, which=str(which), act=act, trust=trust, env_options=chosen
    )
    parsed.episodes, parsed.num_envs, parsed.eval_max_steps = episodes, num_envs, eval_max_steps
    loaded = load_for_evaluation(parsed)
    rows = {task.label: evaluate_task(loaded, task, parsed) for task in loaded.config.tasks}
    summaries = {task: summarize(each, "test") for task, each in rows.items()}
    if len(rows) == 1:
        return Evaluation(next(iter(summaries.values())), rows)
    tags = set.intersection(*(set(each) for each in summaries.values()))
    scores = {tag: sum(each[tag] for each in summaries.values()) / len(rows) for tag in sorted(tags)}
    scores |= {f"{tag}/{task}": value for task, each in summaries.items() for tag, value in each.items()}
    return Evaluation(scores, rows)
