"""Names to factories: a decorator, entry points, and direct `package.module:factory` strings.

An environment's factory is `factory(task, **options) -> Env`; one that is batched by nature also
gives `batch(task, num_envs, threads, **options) -> VectorEnv`. Modules are imported on first use.
"""

import difflib
import importlib
import importlib.util
import inspect
import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from typing import Any

import yaml

from marl.errors import ConfigError, MissingDependencyError, UnknownNameError


@dataclass(frozen=True)
class NoOptions:
    """Takes no options."""


@dataclass(frozen=True)
class FactoryOptions:
    """Options of a factory of your own."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""


def named_kwargs(options: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as `external` lists them: a factory may import or open whatever they say."""
    kwargs = options.get("kwargs")
    return [f"kwargs {json.dumps(kwargs, sort_keys=True, default=str)}"] if kwargs else []


def nothing_external(*_: Any) -> list[str]:
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
    """`tasks` is a selection: `make` knows more, and refuses wrong names itself."""
    requires: tuple[str, ...] = ()
    """Modules that must be importable."""
    install: str = ""
    """The exact line that installs them."""
    summary: str = ""
    external: Callable[[str, Mapping[str, Any]], list[str]] = nothing_external
    """`external(task, options)` lists the code and files outside the suite that `make` would import, run or open."""


@dataclass(frozen=True)
class AgentEntry:
    """An agent. `make(spec, options) -> Policy`; `trains` is False for random and scripted agents.

    `defaults`: the settings of a run, by their flat names, that make the algorithm what it is. `check(options, learn)`
    raises ConfigError for options and settings of learning that make no sense together.
    """

    name: str
    make: Callable[..., Any]
    options: type = NoOptions
    trains: bool = True
    summary: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Any, Any], None] | None = None
    external: Callable[[Mapping[str, Any]], list[str]] = nothing_external
    """`external(options)` lists the code and files outside the suite that `make` would import, run or open."""


@dataclass
class Registry:
    """Entries of one kind, loaded from the entry-point group `group` on first use."""

    kind: str
    entry_point_group: str
    entries: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    loaded: bool = False

    def add(self, entry: Any) -> None:
        known = self.entries.get(entry.name)
        if known is not None and known.make.__module__ != entry.make.__module__:
            raise ConfigError(
                f"{self.kind} {entry.name!r} is registered twice, by {known.make.__module__} and "
                f"{entry.make.__module__}; rename one"
            )
        self.entries[entry.name] = entry

    def load(self) -> None:
        """Import every module named by an entry point of the group; one that fails is kept in `broken`."""
        if self.loaded:
            return
        self.loaded = True
        for point in entry_points(group=self.entry_point_group):
            try:
                importlib.import_module(point.value.split(":")[0])
            except (Exception, SystemExit) as error:
                self.broken[point.name] = f"{type(error).__name__}: {error}"

    def names(self) -> list[str]:
        self.load()
        return sorted(self.entries)

    def get(self, name: str) -> Any:
        self.load()
        if name in self.entries:
            return self.entries[name]
        if name in self.broken:
            raise ConfigError(f"the plug-in for {self.kind} {name!r} failed to import: {self.broken[name]}")
        raise UnknownNameError(unknown_name_message(self.kind, name, self.entries))


ENVS = Registry("environment", "marl.envs")
AGENTS = Registry("agent", "marl.agents")


def unknown_name_message(kind: str, name: str, known: Iterable[str], listed: str = "") -> str:
    """The message for a wrong name: the closest known ones, or where none is close all, or where they are `listed`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; {listed or 'known: ' + ', '.join(known)}"


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


BRIDGES: list[Callable[[Any, str], Any]] = []
"""Functions that turn an environment of another library into an `Env`, or return None; see `register_bridge`."""


def register_bridge(bridge: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Let factories return objects that `bridge(made, name)` turns into an `Env`; it returns None for any other."""
    BRIDGES.append(bridge)
    return bridge


def as_env(made: Any, name: str) -> Any:
    """Return `made` as an `Env`: itself, or bridged if it is an environment of another library.

    `name` is how errors call it. Raises ConfigError for anything else.
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
        f"{name} returned {kind}, which is no environment; return a `marl.protocols.Env`, whose `spec` is a "
        "`marl.types.EnvSpec`, a gymnasium.Env, or a PettingZoo ParallelEnv or AECEnv"
    )


@dataclass(frozen=True)
class EnvFactory:
    """A picklable recipe for one environment: call it to get an `Env`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    """What tells it from the other tasks of a run."""

    def __call__(self) -> Any:
        entry, task = find_env(self.name)
        return as_env(entry.make(task, **self.options), self.name)


def tasks_of(name: str, options: Mapping[str, Any]) -> list[EnvFactory]:
    """The environments of a run, of the same `options` but for those that one names itself.

    `name` is `family/task`, or several joined by +, of which those behind the first may leave out the family. A task
    may end in options: `,name=value`, the value in YAML. Raises UnknownNameError and ConfigError.
    """
    first = ""
    found = []
    for text in name.split("+"):
        if not text:
            raise ConfigError(f"{name!r} has nothing on one side of a +; give the name of a task, or leave out the +")
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
    """The name and the value of `name=value`."""
    name, equals, value = pair.partition("=")
    try:
        if equals:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigError(f"{pair!r} in {task!r} is no option with its value; give name=value")


def find_family(name: str) -> EnvEntry:
    """The entry that the tasks of `tasks_of` have in common."""
    return find_env(tasks_of(name, {})[0].name)[0]


def find_env(name: str) -> tuple[EnvEntry, str]:
    """The entry and the task of `family/task`, `family:task` or `package.module:factory`.

    Imports no factory of a user. Raises UnknownNameError with the closest names, MissingDependencyError with the
    install line, and ConfigError for a text that names no factory.
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
            if entry.tasks and not task:
                raise UnknownNameError(f"{name!r} names no task; give {family}/ and one of {', '.join(entry.tasks)}")
            if entry.tasks and not entry.accepts_other_tasks and task not in entry.tasks:
                raise UnknownNameError(unknown_name_message(f"task of {family}", task, entry.tasks))
            return entry, task
    if ":" in name:
        return _user_entry(name), ""
    ENVS.get(name.partition("/")[0])
    raise UnknownNameError(unknown_name_message("environment", name, ENVS.entries))


def missing(entry: EnvEntry) -> list[str]:
    """The modules that the environment needs and this Python lacks."""
    return [module for module in entry.requires if importlib.util.find_spec(module) is None]


def check_arguments(factory: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> None:
    """Raise ConfigError where the factory's signature does not take `kwargs`."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C tell nothing
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ConfigError(
            f"the environment factory {name!r} cannot be called with kwargs={dict(kwargs)}: {error}; its signature is "
            f"{signature}"
        ) from error


def _user_entry(name: str) -> EnvEntry:
    """The entry of `package.module:factory`, which is imported when an environment is made."""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigError(f"environment {name!r} is neither family/task nor package.module:factory; give one of them")

    def make(task: str, kwargs: dict[str, Any] | None = None) -> Any:  # noqa: ARG001 - the interface of factories
        factory = import_factory(name)
        check_arguments(factory, kwargs or {}, name)
        return factory(**(kwargs or {}))

    def external(_: str, options: Mapping[str, Any]) -> list[str]:
        return [f"environment {name}", *named_kwargs(options)]

    return EnvEntry(name=name, make=make, options=FactoryOptions, external=external)


def import_factory(name: str) -> Callable[..., Any]:
    """The callable of `package.module:factory`. Raises ConfigError where there is none."""
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" at {place.filename}:{place.lineno}" if not isinstance(error, ImportError | AttributeError) else ""
        raise ConfigError(
            f"cannot import the environment factory {name!r} ({type(error).__name__}{where}: {error}); give "
            "`package.module:factory` of an installed module, or run from the folder that holds it"
        ) from error
    if not callable(factory):
        raise ConfigError(f"{name!r} is a {type(factory).__name__}; give a function or class that makes an environment")
    return factory
