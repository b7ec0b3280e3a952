"""A run as data: frozen dataclasses whose field docstrings become `--help`, and a YAML export that loads back."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml
from tyro.conf import Positional

from marl.advantages import GAE, AdvantageEstimator
from marl.backup import Axis, Links
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
from marl.tracking.base import check_tracker_name
from marl.value_norm import ValueNorm


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; give 1 or more")


MAX_EPISODES = 1_000_000
"""Most episodes of an evaluation."""

MAX_EPISODE_STEPS = 10_000
"""Default number of steps after which an evaluated or watched episode is left."""


def require_episodes(option: str, episodes: int, at_least: int = 1) -> None:
    """Raise ConfigError for a number of episodes that no evaluation can have."""
    if not at_least <= episodes <= MAX_EPISODES:
        raise ConfigError(f"{option} is {episodes}; give {at_least} to {MAX_EPISODES}")


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} is {getattr(config, name)}; give 0 or more")


@dataclass(frozen=True)
class CollectConfig:
    """Collecting experience."""

    num_envs: int = 16
    """Environments of each task stepped together, over all ranks."""
    rollout_steps: int = 128
    """Steps of each environment between two updates."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this process."""
    restart_workers: bool = False
    """Start a dead or raising environment worker anew instead of stopping the run."""
    on_nonfinite: Literal["stop", "drop"] = "stop"
    """What to do with a NaN or infinite observation or reward: stop the run, or leave the episode out."""
    whole_episodes: bool = False
    """Begin every rollout with a new episode in each environment and learn from that one alone; those that have not
    ended after rollout_steps are cut there."""
    group_size: int = 1
    """Environments whose episodes begin alike, from one seed, for whole episodes."""

    def __post_init__(self) -> None:
        _positive(self, "num_envs", "rollout_steps", "group_size")
        _not_negative(self, "workers")
        if self.workers > self.num_envs:
            raise ConfigError(f"workers is {self.workers}, more than num_envs, {self.num_envs}")
        if self.group_size > 1 and not self.whole_episodes:
            raise ConfigError(f"group_size is {self.group_size}; groups need whole episodes, add --whole-episodes")
        if self.num_envs % self.group_size:
            raise ConfigError(f"group_size is {self.group_size}, which does not divide num_envs, {self.num_envs}")


@dataclass(frozen=True)
class LearnConfig:
    """Learning from it."""

    learning_rate: float = 5e-4
    """Step size of Adam."""
    critic_learning_rate: float = 0.0
    """Step size for the parameters whose name begins with "critic"; 0 takes learning_rate."""
    anneal_learning_rate: bool = False
    """Lower the learning rates linearly to zero over the run. A run resumed with another number of steps continues from
    the rate of its last update, linearly to zero at its new end."""
    adam_epsilon: float = 1e-5
    """Epsilon of Adam."""
    epochs: int = 10
    """Passes over each rollout."""
    agent_updates: Literal["together", "sequential"] = "together"
    """Whether a pass updates all agents, or all passes are made for one agent after another, in random order, each
    with advantages weighed by how much likelier the agents before it have made what they did (HAPPO)."""
    minibatches: int = 1
    """Parts of nearly equal size into which each pass splits the rollout."""
    micro_batch: int = 0
    """Rows (steps x environments) per forward pass; 0 leaves it to the agent. The gradient does not depend on it."""
    max_grad_norm: float = 10.0
    """Norm to which gradients are clipped; 0 leaves them."""
    target_kl: float = 0.0
    """Stop the passes over a rollout once the mean KL of a pass exceeds this; 0 never stops."""
    gamma: float = 0.99
    """Discount between two steps."""
    gae_lambda: float = 0.95
    """Weight of longer returns in generalized advantage estimation."""
    agent_credit: Axis = "parallel"
    """How credit runs within a step: parallel gives each agent its own chain through time, sequential threads one
    chain through the agents in the order in which they decide."""
    token_credit: Axis = "parallel"
    """The same for the slots (torques, tokens) of an agent's action."""
    gamma_intra: float | None = 1.0
    """Discount between two nodes of a step; None takes gamma."""
    lambda_intra: float | None = 1.0
    """Weight of longer returns between two nodes of a step; None takes gae_lambda."""
    advantage: str = "gae"
    """Advantage estimator: a name of `marl list advantages`, PACKAGE.MODULE:CLASS or FILE.py:CLASS."""
    objective: str = "ppo"
    """Objective: a name of `marl list objectives`, PACKAGE.MODULE:CLASS or FILE.py:CLASS."""
    reference_reward_coef: float = 0.0
    """Weight in the reward of the divergence from a frozen reference policy, node by node, for agents that have one."""
    value_norm_decay: float = 0.99
    """Weight of the past in the return moments that scale the critic, updated once a rollout; 0 is off."""

    def __post_init__(self) -> None:
        _positive(self, "epochs", "minibatches")
        _not_negative(
            self, "micro_batch", "max_grad_norm", "target_kl", "critic_learning_rate", "reference_reward_coef"
        )
        for name in ("learning_rate", "adam_epsilon"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a positive number below 1")
        ValueNorm(self.value_norm_decay)
        self.links()
        object.__setattr__(self, "advantage", absolute_name(self.advantage))
        object.__setattr__(self, "objective", absolute_name(self.objective))

    def links(self, uses_critic: bool = True) -> Links:
        """Return how credit runs. Without a critic nothing cuts returns short: both lambdas are 1."""
        gamma_intra = self.gamma if self.gamma_intra is None else self.gamma_intra
        weights = (self.gae_lambda, self.gae_lambda if self.lambda_intra is None else self.lambda_intra)
        over, inside = weights if uses_critic else (1.0, 1.0)
        return Links(self.agent_credit, self.token_credit, self.gamma, over, gamma_intra, inside)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluating, saving and stopping."""

    eval_interval: int = 25
    """Iterations between two evaluations on the validation seeds, which choose the best checkpoint; 0 evaluates only
    at the end. The end has an evaluation on the test seeds too: its score is one to report."""
    eval_episodes: int = 10
    """Episodes of an evaluation, with the same seeds each time and for every agent; 0 never evaluates."""
    eval_max_steps: int = MAX_EPISODE_STEPS
    """Steps after which an evaluation leaves an episode, unless the environment declares a longer limit."""
    eval_start: bool = False
    """Evaluate before learning too: what a pretrained model does untrained."""
    eval_stochastic: bool = False
    """Sample actions in evaluations instead of taking the most probable ones."""
    checkpoint_interval: int = 25
    """Iterations between two checkpoints; the end and an interrupt always save one, and so does an error where there is
    one rank."""
    keep_checkpoints: int = 3
    """Latest checkpoints that are kept, besides the best evaluated one."""
    stop_return: float | None = None
    """Stop once the mean return of an evaluation reaches this."""

    def __post_init__(self) -> None:
        _not_negative(self, "eval_interval")
        require_episodes("eval_episodes", self.eval_episodes, at_least=0)
        _positive(self, "checkpoint_interval", "keep_checkpoints", "eval_max_steps")
        if self.stop_return is not None and not math.isfinite(self.stop_return):
            raise ConfigError(f"stop_return is {self.stop_return}; give a number")
        if self.stop_return is not None and not self.eval_episodes:
            raise ConfigError("stop_return needs evaluations, but eval_episodes is 0")


@dataclass(frozen=True)
class ComputeConfig:
    """Devices and threads."""

    device: str = "auto"
    """Where the agent lives: cpu, cuda, cuda:1, ..., or auto for a GPU where there is one."""
    env_threads: int = 0
    """Threads of a natively batched environment; 0 takes the free cores."""
    learn_threads: int = 0
    """Threads of an update; 0 chooses by its size, at most the free cores. Acting uses one, and the free cores for a
    pretrained language model."""

    def __post_init__(self) -> None:
        _not_negative(self, "env_threads", "learn_threads")
        for name in ("env_threads", "learn_threads"):
            if getattr(self, name) > (os.cpu_count() or 1):
                raise ConfigError(f"{name} is {getattr(self, name)}, more than the {os.cpu_count()} cores here")


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    env: Positional[str]
    """Environment: FAMILY/TASK, pettingzoo:MODULE, gymnasium:ID, PACKAGE.MODULE:FACTORY or FILE.py:FACTORY. Several
    tasks of a family, joined by +, are learned together with equal weight. A task may end in options of its own, as in
    mamujoco/HalfCheetah-6x1,disabled_joint=bfoot+HalfCheetah-6x1,disabled_joint=ffoot."""
    agent: str = "mat"
    """Agent: a name of `marl list agents`, PACKAGE.MODULE:FACTORY or FILE.py:FACTORY."""
    steps: int = 1_000_000
    """Environment steps to train for, over all environments and ranks; the last iteration is a whole one."""
    seed: int = 1
    """Seed of every random stream of the run."""
    runs_dir: str = "runs"
    """Folder that holds the runs."""
    name: str = ""
    """Name of this run's folder; empty makes one from environment, agent, seed and time."""
    trackers: tuple[str, ...] = ()
    """Trackers besides JSONL and TensorBoard: wandb, mlflow, PACKAGE.MODULE:CLASS or FILE.py:CLASS."""
    init_from: str = ""
    """Folder of a run, or of a checkpoint, whose last weights to begin with; empty begins with new ones."""
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
        _positive(self, "steps")
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
                f"agent_updates is 'sequential', agent by agent, and the tasks of {self.env!r} have agents of their "
                "own; train in one task, or another agent"
            )
        _not_negative(self, "seed")
        if self.name:
            require_folder_name("name", self.name)
        rows = self.collect.num_envs * self.collect.rollout_steps
        if self.learn.minibatches > rows:
            raise ConfigError(
                f"minibatches is {self.learn.minibatches}, more than the {rows} rows of a rollout "
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
        """The environments to learn in."""
        given = {f.name: getattr(self.env_options, f.name) for f in dataclasses.fields(self.env_options)}
        return tasks_of(self.env, given)

    @property
    def steps_per_iteration(self) -> int:
        return self.collect.num_envs * self.collect.rollout_steps * (1 + self.env.count("+"))

    @property
    def iterations(self) -> int:
        """The fewest that may be needed: with whole episodes some steps of an iteration are left out."""
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
    """The defaults for an environment and an agent: the options that both declare, and what defines the agent."""
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
    """Every field by its own name, the parts dissolved."""
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
    """A fingerprint of everything that the learning depends on.

    Only what differs from the defaults enters, so that a new option leaves old runs resumable.
    """
    usual = flatten(default_config(config.env, config.agent))
    fixed = {
        name: value
        for name, value in flatten(config).items()
        if name not in RESUMABLE_FIELDS and (name not in usual or value != usual[name] or name in ("env", "agent"))
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def to_yaml(config: RunConfig) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(x) for key, x in value.items()}
        return [plain(x) for x in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; what is no number is left for the type check to name."""
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
                raise ConfigError(f"has no text under {name!r}; it is not the configuration of a run")
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
