"""A run as data: frozen dataclasses whose field docstrings become `--help`, and a YAML export that loads back."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite
import yaml
from tyro.conf import Positional

from marl.advantages import GAE, AdvantageEstimator
from marl.backup import Links
from marl.errors import ConfigError
from marl.factories import absolute_name
from marl.files import require_folder_name
from marl.objective import ClippedPPO, Objective
from marl.registry import (
    ADVANTAGES,
    AGENTS,
    ENVS,
    OBJECTIVES,
    EnvFactory,
    NoOptions,
    find_family,
    tasks_of,
    unknown_name_message,
)
from marl.settings import CollectConfig, ComputeConfig, EvalConfig, LearnConfig, require_not_negative, require_positive
from marl.tracking.base import check_tracker_name


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    env: Positional[str]
    """Environment: FAMILY/TASK, FILE.py:FACTORY, PACKAGE.MODULE:FACTORY, pettingzoo:MODULE or gymnasium:ID. Several
    tasks of a family, joined by +, are learned together with equal weight. A task may end in options of its own, as in
    mamujoco/HalfCheetah-6x1,disabled_joint=bfoot+HalfCheetah-6x1,disabled_joint=ffoot."""
    agent: str = "mat"
    """Agent: a name of `marl list agents`, FILE.py:FACTORY or PACKAGE.MODULE:FACTORY."""
    steps: int = 1_000_000
    """Environment steps to train for, over all ranks. The last iteration is a whole one."""
    seed: int = 1
    """Seed of every random stream of the run."""
    runs_dir: str = "runs"
    """Folder of all runs."""
    name: str = ""
    """Name of this run's folder; empty makes ENV/AGENT/SEED-TIME."""
    trackers: tuple[str, ...] = ()
    """Trackers beside JSONL and TensorBoard: wandb, mlflow, FILE.py:CLASS or PACKAGE.MODULE:CLASS."""
    init_from: str = ""
    """Run or checkpoint whose weights to start from."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    advantage_options: Any = field(default_factory=GAE)
    objective_options: Any = field(default_factory=ClippedPPO)
    agent_options: Any = field(default_factory=NoOptions)
    env_options: Any = field(default_factory=NoOptions)

    def __post_init__(self) -> None:
        # A run finds the files of its factories from any folder.
        object.__setattr__(self, "env", "+".join(map(_absolute_task, self.env.split("+"))))
        object.__setattr__(self, "agent", absolute_name(self.agent))
        object.__setattr__(self, "trackers", tuple(map(absolute_name, self.trackers)))
        for tracker in self.trackers:
            check_tracker_name(tracker)
        require_positive(self, "steps")
        entries = [registry.get(getattr(self.learn, kind)) for kind, registry in ALGORITHM_REGISTRIES.items()]
        for (kind, _), entry in zip(ALGORITHM_REGISTRIES.items(), entries, strict=True):
            if not isinstance(options := getattr(self, f"{kind}_options"), entry.options):
                raise ConfigError(
                    f"{kind}_options={options!r}, but {kind}={entry.name!r} takes {entry.options.__name__}; change "
                    "both together"
                )
        if all(entry.options is entry.make for entry in entries):  # a class of the user is imported later
            self.check_algorithm()
        if self.learn.agent_updates == "sequential" and "+" in self.env:
            raise ConfigError(
                f"agent_updates='sequential', agent by agent, and the tasks of {self.env!r} have agents of their "
                "own; train in one task, or another agent"
            )
        require_not_negative(self, "seed")
        if self.name:
            require_folder_name("name", self.name)
        rows = self.collect.num_envs * self.collect.rollout_steps
        if self.learn.minibatches > rows:
            raise ConfigError(
                f"minibatches={self.learn.minibatches}, more than the {rows} rows of a rollout "
                f"(num_envs {self.collect.num_envs} x rollout_steps {self.collect.rollout_steps})"
            )

    def make_advantage(self) -> AdvantageEstimator:
        """Return the advantage estimator. Raises ConfigError for a class of the user that makes anything else."""
        made = ADVANTAGES.get(self.learn.advantage).create(self.advantage_options)
        return _require_kind(made, AdvantageEstimator, "advantage", self.learn.advantage)

    def make_objective(self) -> Objective:
        """Return the objective. Raises ConfigError for a class of the user that makes anything else."""
        made = OBJECTIVES.get(self.learn.objective).create(self.objective_options)
        return _require_kind(made, Objective, "objective", self.learn.objective)

    def check_algorithm(self) -> None:
        """Raise ConfigError if the settings contradict the advantage estimator, the objective or each other."""
        self.make_advantage().check(self)
        self.make_objective().check(self)

    def links(self) -> Links:
        """Return how credit runs for the advantage estimator of this run."""
        return self.learn.links(self.make_advantage().uses_critic)

    @property
    def tasks(self) -> list[EnvFactory]:
        """Environments to learn in."""
        given = {f.name: getattr(self.env_options, f.name) for f in dataclasses.fields(self.env_options)}
        return tasks_of(self.env, given)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of an iteration, over all environments and tasks."""
        return self.collect.num_envs * self.collect.rollout_steps * (1 + self.env.count("+"))

    @property
    def iterations(self) -> int:
        """Fewest iterations of the run. With whole episodes, steps of an iteration may be left out, and more follow."""
        return -(-self.steps // self.steps_per_iteration)


def _absolute_task(task: str) -> str:
    """Return a task with the path of its factory's file made absolute."""
    name, comma, options = task.partition(",")
    return absolute_name(name) + comma + options


def _require_kind(made: Any, kind: type, option: str, name: str) -> Any:
    """Return `made`. Raises ConfigError unless it is an instance of `kind`."""
    if not isinstance(made, kind):
        raise ConfigError(
            f"{option}={name!r} made a {type(made).__name__}; give a subclass of {kind.__module__}.{kind.__name__}, as "
            "docs/add-algorithm.md shows"
        )
    return made


ALGORITHM_REGISTRIES = {"advantage": ADVANTAGES, "objective": OBJECTIVES}
"""Settings of LearnConfig that name a registered class, whose options are a part of their own."""
OPTION_PARTS = ("advantage_options", "objective_options", "agent_options", "env_options")
"""Parts whose class depends on the names that a run gives."""
PARTS = ("collect", "learn", "evaluation", "compute", *OPTION_PARTS)
RESUMABLE_FIELDS = frozenset(
    {"steps", "runs_dir", "name", "trackers", "workers", "restart_workers", "on_nonfinite", "env_threads"}
    | {f.name for f in dataclasses.fields(EvalConfig)}
)
"""Fields that a resumed run may change without changing what it has computed."""


def default_config(env: str, agent: str) -> RunConfig:
    """Return the defaults of an environment and an agent, with the settings that define the agent."""
    entry, known = find_family(env), AGENTS.get(agent)
    config = RunConfig(env=env, agent=agent, agent_options=known.options(), env_options=entry.options())
    return override(config, known.defaults)


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy with fields changed by their flat names.

    Another advantage estimator or objective keeps the options that it shares with the one before. Raises
    ConfigError for a name that no part has, or that two parts have.
    """
    chosen = {part: getattr(config, part) for part in PARTS} | algorithm_options(config, changes)
    owners = {f.name: "" for f in dataclasses.fields(config) if f.name not in PARTS}
    for part, value in chosen.items():
        for f in dataclasses.fields(value):
            if f.name in owners:
                raise ConfigError(f"option {f.name!r} of {part} is one of {owners[f.name] or 'the run'} too; rename it")
            owners[f.name] = part
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        if name not in owners:
            kind, listed = (
                f"option of {config.agent} on {config.env}",
                "`marl train ENV --agent NAME --help` lists them",
            )
            raise ConfigError(unknown_name_message(kind, name, owners, listed))
        grouped.setdefault(owners[name], {})[name] = value
    top = grouped.pop("", {})
    chosen |= {part: dataclasses.replace(chosen[part], **fields) for part, fields in grouped.items()}
    return dataclasses.replace(config, **top, **chosen)


def algorithm_options(config: RunConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the advantage estimator and the objective that `changes` name, as parts of a config.

    An option that differs from the default of the present class is kept if the new class has it too.
    """
    parts = {}
    for kind, registry in ALGORITHM_REGISTRIES.items():
        before = getattr(config, f"{kind}_options")
        options = registry.get(changes.get(kind, getattr(config.learn, kind))).options
        names = {f.name for f in dataclasses.fields(options)}
        usual, given = vars(type(before)()), vars(before)
        kept = {name: value for name, value in given.items() if name in names and value != usual[name]}
        parts[f"{kind}_options"] = before if type(before) is options else options(**kept)
    return parts


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return every field by its own name, without the parts."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= value if name in PARTS else {name: value}
    return flat


def option_names() -> list[str]:
    """Return the names of all options of runs: the common ones, and those of every registered agent and environment."""
    parts = [RunConfig, CollectConfig, LearnConfig, EvalConfig, ComputeConfig]
    for registry in (*ALGORITHM_REGISTRIES.values(), AGENTS, ENVS):
        parts += [registry.entries[name].options for name in registry.names()]
    names = dict.fromkeys(f.name for part in parts for f in dataclasses.fields(part))
    return [name for name in names if name not in PARTS]


def digest(config: RunConfig) -> str:
    """Return a hash of all settings on which learning depends.

    Only settings that differ from the defaults enter, so that runs remain resumable when an option is added.
    """
    usual = flatten(default_config(config.env, config.agent))
    fixed = {
        name: value
        for name, value in flatten(config).items()
        if name not in RESUMABLE_FIELDS and (name not in usual or value != usual[name] or name in ("env", "agent"))
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def to_yaml(config: RunConfig) -> str:
    """Return a configuration as YAML, which `from_yaml` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(x) for key, x in value.items()}
        return [plain(x) for x in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def _number(value: Any) -> Any:
    """Return a number that YAML 1.1 reads as text, such as 1e-3; anything else as it is."""
    try:
        return float(value) if isinstance(value, int | str) and not isinstance(value, bool) else value
    except ValueError:
        return value


def _check_fields(data: Mapping[str, Any], default: RunConfig, options: Mapping[str, type]) -> None:
    """Raise ConfigError for a field that does not exist, or that stands in another part."""
    parts = {name: type(getattr(default, name)) for name in PARTS} | dict(options)
    known = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in parts.items()}
    known[""] = [f.name for f in dataclasses.fields(default)]
    for part, fields in known.items():
        given = data[part] if part else data
        for field_name in given if isinstance(given, Mapping) else ():
            if field_name in fields:
                continue
            where = f"field of {part}" if part else "field"
            if owners := [other for other in known if field_name in known[other]]:
                raise ConfigError(f"{field_name!r} is not a {where}; write it under {owners[0] or 'no part'}")
            names = fields if part else [name for every in known.values() for name in every]
            raise ConfigError(unknown_name_message(where, str(field_name), names))


def from_yaml(text: str, source: str | Path = "configuration", changes: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration of a text that `to_yaml` wrote, or of a part of one.

    Fields that are absent have the defaults of the environment and the agent. `changes` replace "env" and "agent".
    Raises ConfigError, which names the file and the field; for an unknown field it names the closest one.
    """
    try:
        data = yaml.safe_load(text)
        if isinstance(data, dict):
            data |= changes or {}
        for name in ("env", "agent"):
            if not isinstance(data, dict) or not isinstance(data.get(name), str):
                raise ConfigError(f"has no text under {name!r}; give the configuration of a run")
        options = {"env_options": find_family(data["env"]).options, "agent_options": AGENTS.get(data["agent"]).options}
        hooks = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _number})
        default = default_config(data["env"], data["agent"])
        learn = data["learn"] if isinstance(data.get("learn"), dict) else {}
        parts = algorithm_options(default, {name: str(learn[name]) for name in ALGORITHM_REGISTRIES if name in learn})
        options |= {name: type(part) for name, part in parts.items()}
        usual = dataclasses.asdict(default) | {name: dataclasses.asdict(part) for name, part in parts.items()}
        for name in PARTS:
            if isinstance(given := data.get(name) or {}, dict):
                data[name] = usual[name] | given
        _check_fields(data, default, options)
        for name, kind in options.items():
            data[name] = dacite.from_dict(kind, data[name], hooks)
        return dacite.from_dict(RunConfig, usual | data, hooks)
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply to be the configuration of a run") from error
    except (yaml.YAMLError, dacite.DaciteError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error
