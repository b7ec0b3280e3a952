"""Names of environments and agents: registered ones, entry points of plug-ins, and factories of the user.

A registered environment is made by `make(task, **options) -> Env`. An environment family that is batched by nature also
has `make_vector(task, num_envs, threads, **options) -> VectorEnv`. Modules are imported on first use.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from marl.errors import ConfigError, MarlError, MissingDependencyError, UnknownNameError, unknown_name_message
from marl.factories import FILE_SUFFIX, absolute_name, call_factory, check_name, factory_name, raised_in


@dataclass(frozen=True)
class NoOptions:
    """No options."""


@dataclass(frozen=True)
class FactoryOptions:
    """Options of an environment factory of your own."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's factory."""


@dataclass(frozen=True)
class AgentFactoryOptions:
    """Options of an agent factory of your own."""

    agent_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the agent's factory."""


def named_kwargs(options: Mapping[str, Any], option: str = "kwargs") -> list[str]:
    """Return keyword arguments as `external` lists them, because a factory may import or open what they name."""
    kwargs = options.get(option)
    return [f"{option} {json.dumps(kwargs, sort_keys=True, default=str)}"] if kwargs else []


def nothing_external(*_: Any) -> list[str]:
    """Return no names: neither code nor files outside the package are used."""
    return []


@dataclass(frozen=True)
class EnvEntry:
    """A family of environments. `options` is a frozen dataclass whose fields are keyword arguments of `make`."""

    name: str
    make: Callable[..., Any]
    options: type = NoOptions
    make_vector: Callable[..., Any] | None = None
    tasks: tuple[str, ...] = ()
    accepts_other_tasks: bool = False
    """`tasks` is a selection: `make` accepts more tasks, and refuses unknown ones itself."""
    requires: tuple[str, ...] = ()
    """Modules that must be importable."""
    install: str = ""
    """Command that installs them."""
    reads: Callable[[str], Collection[str]] | None = None
    """`reads(task)` returns the names of the options that a task has, if it lacks some of the family's."""
    summary: str = ""
    external: Callable[[str, Mapping[str, Any]], list[str]] = nothing_external
    """`external(task, options)` lists the code and files outside the package that `make` imports, runs or opens."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent. `make(spec, options) -> Policy`.

    `trains` is False for random and scripted agents, and None for a factory of the user, which may make either.

    `defaults` are the settings of a run that define the algorithm, by option name. `check(config)` raises
    ConfigError for options that contradict the other settings of a run.
    """

    name: str
    make: Callable[..., Any]
    options: type = NoOptions
    trains: bool | None = True
    summary: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Any], None] | None = None
    external: Callable[[Mapping[str, Any]], list[str]] = nothing_external
    """`external(options)` lists the code and files outside the package that `make` imports, runs or opens."""


@dataclass(frozen=True)
class AlgorithmEntry:
    """An advantage estimator or an objective.

    A registered class is a frozen dataclass: its fields are the options, and its instance is both the options and what
    they make. `create(options)` returns the estimator or the objective.
    """

    name: str
    make: Callable[..., Any]
    options: type
    summary: str = ""
    create: Callable[[Any], Any] = lambda options: options
    external: Callable[[Mapping[str, Any]], list[str]] = nothing_external
    """`external(options)` lists the code and files outside the package that `create` imports, runs or opens."""


@dataclass(frozen=True)
class AdvantageFactoryOptions:
    """Options of an advantage estimator of your own."""

    advantage_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the advantage estimator."""


@dataclass(frozen=True)
class ObjectiveFactoryOptions:
    """Options of an objective of your own."""

    objective_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the objective."""


def same_source(first: str, second: str) -> bool:
    """Return True if two imported modules are one, or their files have equal contents."""
    if first == second:
        return True
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (first, second)]
    texts = [Path(file).read_bytes() for file in files if file is not None and Path(file).is_file()]
    return len(texts) == 2 and texts[0] == texts[1]


@dataclass
class Registry:
    """Entries of one kind. The plug-ins of the entry-point group are imported on first use."""

    kind: str
    entry_point_group: str
    from_factory: Callable[[str], Any]
    """Return the entry of a factory of the user by its name."""
    builtin: tuple[str, ...] = ()
    """Modules of this package that register entries and that no entry point names."""
    entries: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    loaded: bool = False

    def add(self, entry: Any) -> None:
        """Register an entry. Raises ConfigError if another module has registered its name.

        A file that was imported by its module and by its path, or copied, is one module.
        """
        known = self.entries.get(entry.name)
        if known is not None and not same_source(known.make.__module__, entry.make.__module__):
            raise ConfigError(
                f"{self.kind} {entry.name!r} is registered twice, by {known.make.__module__} and "
                f"{entry.make.__module__}; rename one"
            )
        self.entries[entry.name] = entry

    def load(self) -> None:
        """Import the modules that the entry points name. Errors are kept in `broken`."""
        if self.loaded:
            return
        self.loaded = True
        for module in self.builtin:
            importlib.import_module(module)
        for point in entry_points(group=self.entry_point_group):
            try:
                importlib.import_module(point.value.split(":")[0])
            except (Exception, SystemExit) as error:
                self.broken[point.name] = f"{type(error).__name__}: {error}"

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self.load()
        return sorted(self.entries)

    def get(self, name: str) -> Any:
        """Return the entry of a registered name or of a user's factory, which is not imported.

        Raises UnknownNameError with the closest names, and ConfigError if a plug-in is broken.
        """
        self.load()
        if name in self.entries:
            return self.entries[name]
        if name in self.broken:
            raise ConfigError(f"the plug-in for {self.kind} {name!r} failed to import: {self.broken[name]}")
        if ":" in name:
            check_name(name, self.kind)
            return self.from_factory(absolute_name(name))
        if name.endswith(FILE_SUFFIX):
            raise ConfigError(f"{self.kind} {name!r} names a file; add the function in it, as in {name}:make")
        raise UnknownNameError(unknown_name_message(self.kind, name, self.entries))


def _env_from_factory(name: str) -> EnvEntry:
    """Return the entry of a factory `factory(**kwargs) -> Env`, imported when an environment is made."""

    def make(task: str, kwargs: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG001 - the interface of factories
        return call_factory(name, "environment", (), kwargs or {})

    def external(_: str, options: Mapping[str, Any]) -> list[str]:
        return [f"environment {name}", *named_kwargs(options)]

    return EnvEntry(name=name, make=make, options=FactoryOptions, external=external)


def _agent_from_factory(name: str) -> AgentEntry:
    """Return the entry of a factory `factory(spec, **kwargs) -> Policy`, imported when a policy is made."""

    def make(spec: Any, options: AgentFactoryOptions) -> Any:
        try:
            return call_factory(name, "agent", (spec,), options.agent_kwargs)
        except MarlError:
            raise
        except Exception as error:
            raise raised_in(error, f"agent {name!r}") from error

    def external(options: Mapping[str, Any]) -> list[str]:
        return [f"agent {name}", *named_kwargs(options, "agent_kwargs")]

    return AgentEntry(name=name, make=make, options=AgentFactoryOptions, trains=None, external=external)


ENVS = Registry("environment", "marl.envs", _env_from_factory)
AGENTS = Registry("agent", "marl.agents", _agent_from_factory)


def _algorithm_from_factory(name: str, kind: str, options: type) -> AlgorithmEntry:
    """Return the entry of a class of the user, imported when an instance is made."""
    option = f"{kind}_kwargs"

    def create(options: Any) -> Any:
        return call_factory(name, kind, (), vars(options)[option])

    def external(options: Mapping[str, Any]) -> list[str]:
        return [f"{kind} {name}", *named_kwargs(options, option)]

    return AlgorithmEntry(name, create, options, create=create, external=external)


ADVANTAGES = Registry(
    "advantage",
    "marl.advantages",
    lambda name: _algorithm_from_factory(name, "advantage", AdvantageFactoryOptions),
    ("marl.advantages",),
)
OBJECTIVES = Registry(
    "objective",
    "marl.objectives",
    lambda name: _algorithm_from_factory(name, "objective", ObjectiveFactoryOptions),
    ("marl.objective",),
)


def register_env(name: str, **entry: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a factory `make(task, **options) -> Env` under `name`; see EnvEntry for the keywords."""

    def decorate(make: Callable[..., Any]) -> Callable[..., Any]:
        ENVS.add(EnvEntry(name=name, make=make, **entry))
        return make

    return decorate


def register_agent(name: str, **entry: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a factory `make(spec, options) -> Policy` under `name`; see AgentEntry."""

    def decorate(make: Callable[..., Any]) -> Callable[..., Any]:
        AGENTS.add(AgentEntry(name=name, make=make, **entry))
        return make

    return decorate


def register_advantage(name: str, summary: str = "") -> Callable[[type], Any]:
    """Register a subclass of `marl.advantages.AdvantageEstimator`, a frozen dataclass, under `name`."""

    def decorate(kind: type) -> type:
        ADVANTAGES.add(AlgorithmEntry(name, kind, kind, summary))
        return kind

    return decorate


def register_objective(name: str, summary: str = "") -> Callable[[type], Any]:
    """Register a subclass of `marl.objective.Objective`, a frozen dataclass, under `name`."""

    def decorate(kind: type) -> type:
        OBJECTIVES.add(AlgorithmEntry(name, kind, kind, summary))
        return kind

    return decorate


TextModel = Callable[[Sequence[str], int], list[str]]
"""Function `write(prompts, max_tokens)` that returns one text for each prompt."""
TEXT_MODELS: list[Callable[[str], TextModel]] = []
"""The function that opens frozen language models for environments, registered by the language agents."""


def register_text_models(open_model: Callable[[str], TextModel]) -> Callable[[str], TextModel]:
    """Register `open_model(name) -> TextModel`, which raises ConfigError for a model that cannot be opened."""
    TEXT_MODELS[:] = [open_model]
    return open_model


def open_text_model(name: str) -> TextModel:
    """Return a frozen language model that writes texts. Raises ConfigError if there is none of that name."""
    AGENTS.load()
    if not TEXT_MODELS:
        raise ConfigError(f"text model {name!r} cannot be opened, because the language agents are not there")
    return TEXT_MODELS[0](name)


BRIDGES: list[Callable[[Any, str], Any]] = []
"""Functions that turn an environment of another library into an `Env`, or return None."""


def register_bridge(bridge: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Register `bridge(made, name)`, which returns an `Env` for an object of another library and None for others."""
    BRIDGES.append(bridge)
    return bridge


def as_env(made: Any, name: str) -> Any:
    """Return `made` as an `Env`. An environment of another library is bridged.

    `name` identifies it in errors. Raises ConfigError for anything else.
    """
    from marl.types import EnvSpec  # brings torch, which every environment imports anyway

    if isinstance(getattr(made, "spec", None), EnvSpec):
        return made
    ENVS.load()
    for bridge in BRIDGES:
        env = bridge(made, name)
        if env is not None:
            return env
    kind = "None" if made is None else f"a {type(made).__module__}.{type(made).__qualname__}"
    raise ConfigError(
        f"{name} returned {kind}, which is not an environment; return a `marl.protocols.Env`, whose `spec` is a "
        "`marl.types.EnvSpec`, a gymnasium.Env, or a PettingZoo ParallelEnv or AECEnv; see docs/add-environment.md"
    )


@dataclass(frozen=True)
class EnvFactory:
    """A picklable function that makes one environment."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    """Name of the task in the logs of a run on several tasks."""

    def __call__(self) -> Any:
        """Return a new `Env`."""
        entry, task = find_env(self.name)
        return as_env(entry.make(task, **self.options), self.name)


def tasks_of(name: str, options: Mapping[str, Any]) -> list[EnvFactory]:
    """Return the tasks of a run, with `options` for each.

    `name` is `family/task`, or several joined by +; the later ones may leave out the family. A task may end in options
    of its own, `,name=value`, with the value in YAML. Raises UnknownNameError and ConfigError.
    """
    if not name:
        raise ConfigError("the environment's name is empty; `marl list envs` shows the names")
    first = ""
    found = []
    for text in name.split("+"):
        if not text:
            raise ConfigError(f"{name!r} has no task on one side of a +; name one, or leave out the +")
        task, *given = text.split(",")
        if first and not any(mark in task for mark in "/:"):
            task = f"{first.partition('/')[0]}/{task}"
        first = first or task
        entry = find_env(task)[0]
        if entry.name != find_env(first)[0].name:
            raise ConfigError(f"{name!r} joins environments of several families; give tasks of one")
        own = dict(_option(text, pair) for pair in given)
        known = [option.name for option in fields(entry.options)]
        for key in own:
            if key not in known:
                raise UnknownNameError(unknown_name_message(f"option of {entry.name}", key, known))
        found.append(EnvFactory(task, {**options, **own}, text.rpartition("/")[2]))
    labels = [task.label for task in found]
    for label in labels:
        if (count := labels.count(label)) > 1:
            raise ConfigError(f"{name!r} has {label!r} {count} times; give each task once")
    return found


def _option(task: str, pair: str) -> tuple[str, Any]:
    """Split `name=value` and read the value as YAML. Raises ConfigError if there is no value."""
    name, equals, value = pair.partition("=")
    try:
        if equals:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigError(f"{pair!r} in {task!r} is not of the form name=value; give each option a value")


def find_family(name: str) -> EnvEntry:
    """Return the entry of an environment's name, or of several joined names, which have it in common."""
    return find_env(tasks_of(name, {})[0].name)[0]


def require_options(name: str, kind: type, options: Mapping[str, Any]) -> list[str]:
    """Return the options of the family of `name`. Raises UnknownNameError if `options` holds another one."""
    known = [option.name for option in fields(kind)]
    for given in options:
        if given not in known:
            hint = "; give the keyword arguments of a factory as kwargs={...}" if kind is FactoryOptions else ""
            raise UnknownNameError(unknown_name_message(f"option of {name}", given, known) + hint)
    return known


def make(name: str | Callable[..., Any], **options: Any) -> Any:
    """Return a new environment by its name, or by a factory of the user.

    `options` are those of the environment in `marl train`; `kwargs` are the keyword arguments of a factory. Raises
    UnknownNameError for an unknown name or option, and ConfigError for one that does not fit.
    """
    (task,) = tasks_of(factory_name(name, "name"), {})
    kind = find_env(task.name)[0].options
    known = require_options(task.name, kind, options)
    chosen = kind(**{**task.options, **options})
    return EnvFactory(task.name, {option: getattr(chosen, option) for option in known})()


def registering_modules(*entries: Any) -> list[str]:
    """Return the modules outside this package that have registered the entries, sorted; a script is its file's path."""
    names = {entry.make.__module__ for entry in entries if ":" not in entry.name}
    if "__main__" in names:
        names = names - {"__main__"} | {str(getattr(sys.modules["__main__"], "__file__", "__main__"))}
    return sorted(name for name in names if name.partition(".")[0] != "marl")


def find_env(name: str) -> tuple[EnvEntry, str]:
    """Return the entry and the task of `family/task`, `family:task` or the name of a user's factory.

    The factory is not imported. Raises UnknownNameError with the closest names, MissingDependencyError with the install
    line, and ConfigError for a text that names no factory.
    """
    for mark in ("/", ":"):
        family, _, task = name.partition(mark)
        ENVS.load()
        if family in ENVS.entries and "/" not in family:
            entry = ENVS.entries[family]
            if absent := missing(entry):
                raise MissingDependencyError(
                    f"environment {name!r} needs {', '.join(absent)}; install with: {entry.install}"
                )
            if name.endswith(":"):
                raise UnknownNameError(f"{name!r} names no environment; give its name behind the colon")
            if entry.tasks and not task:
                raise UnknownNameError(f"{name!r} names no task; give {family}/ and one of {', '.join(entry.tasks)}")
            if entry.tasks and not entry.accepts_other_tasks and task not in entry.tasks:
                raise UnknownNameError(unknown_name_message(f"task of {family}", task, entry.tasks))
            return entry, task
    if ":" in name or name.endswith(FILE_SUFFIX):
        return ENVS.get(name), ""
    ENVS.get(name.partition("/")[0].strip(".") or name)
    raise UnknownNameError(unknown_name_message("environment", name, ENVS.entries))


def missing(entry: EnvEntry) -> list[str]:
    """Return the modules that the environment requires and that cannot be found."""
    return [module for module in entry.requires if importlib.util.find_spec(module) is None]
