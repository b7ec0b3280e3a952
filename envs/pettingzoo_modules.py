"""Lookup of PettingZoo environments by module or registered id, with errors that name the fix."""

import difflib
import importlib
import importlib.util
import pkgutil
import re
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata
from types import ModuleType
from typing import Any

from marl.errors import ConfigError, MissingDependencyError, UnknownNameError
from marl.registry import unknown_name_message

HOMES = ("mpe2", "pettingzoo.sisl", "pettingzoo.butterfly", "pettingzoo.classic", "pettingzoo.atari")
"""Packages to search for a module that is given without its package."""
VERSION = re.compile(r"_v\d+$")


def load_factory(task: str) -> Callable[..., Any]:
    """Return the `parallel_env` of the module `task`, or its `env`.

    A `task` with a slash is an id of PettingZoo's registry, such as `sisl/multiwalker_v9`. `MODULE:` in front of it
    names a module that registers it.

    Raises UnknownNameError with the known versions or modules, MissingDependencyError with the install command,
    ConfigError for a module that is not a PettingZoo environment.
    """
    if "/" in task:
        return _registered(task)
    factory = getattr(module := _import(task), "parallel_env", None) or getattr(module, "env", None)
    if factory is None:
        inside = f", such as one of {found} in it" if (found := _modules(task)) else ""
        raise ConfigError(
            f"{task!r} has neither `parallel_env` nor `env`; name the module of a PettingZoo environment{inside}"
        )
    return factory


def _registered(task: str) -> Callable[..., Any]:
    module, _, name = task.rpartition(":")
    if module:
        _import(module)
    pettingzoo: Any = importlib.import_module("pettingzoo")
    if not hasattr(pettingzoo, "parallel_registry"):
        raise ConfigError(f"pettingzoo:{task}: PettingZoo {pettingzoo.__version__} has no registry; name the module")
    refused: Exception | None = None
    for kind in ("parallel", "aec"):
        try:
            pettingzoo.spec(kind, name)
        except Exception as error:
            refused = refused or error
        else:
            return partial(pettingzoo.make, kind, name)
    hint = "" if module else "; if a package registers it, name that too: pettingzoo:PACKAGE:" + name
    known = sorted(pettingzoo.parallel_registry)
    raise UnknownNameError(unknown_name_message("PettingZoo environment", name, known) + hint) from refused


def _import(task: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            # PettingZoo's versioned modules announce that its registry will replace them.
            warnings.filterwarnings("ignore", message="The old environment creation API", category=DeprecationWarning)
            return importlib.import_module(task)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if absent and (task == absent or task.startswith(f"{absent}.")):
            raise _no_such_module(task, absent, error) from error
        raise _missing_dependency(task, error) from error
    except ImportError as error:
        raise _missing_dependency(task, error) from error
    except Exception as error:
        raise ConfigError(f"pettingzoo:{task}: importing it raised {type(error).__name__}: {error}") from error


def make_with(factory: Callable[..., Any], kwargs: dict[str, Any], task: str) -> Any:
    """Call the factory. Raises ConfigError if it fails, MissingDependencyError if a package is missing."""
    try:
        return factory(**kwargs)
    except Exception as error:
        if isinstance(error, ImportError) or isinstance(error.__cause__, ImportError):
            raise _missing_dependency(task, error) from error
        raise ConfigError(
            f"pettingzoo:{task}: cannot be made with {kwargs}: {type(error).__name__}: {error}"
        ) from error


def _no_such_module(task: str, absent: str, error: Exception) -> Exception:
    package, _, last = task.rpartition(".")
    if package and absent == task:
        found = _modules(package)
        stem = VERSION.sub("", last)
        versions = [name for name in found if VERSION.sub("", name) == stem]
        near = versions or difflib.get_close_matches(last, found, n=4, cutoff=0.5)
        there = f"did you mean {' or '.join(f'{package}.{name}' for name in near)}?" if near else f"it has: {found}"
        return UnknownNameError(f"the package {package!r} has no environment {last!r}; {there}")
    if elsewhere := _elsewhere(task):
        return UnknownNameError(f"no module {task!r}; did you mean {elsewhere}?")
    return MissingDependencyError(
        f"environment 'pettingzoo:{task}' needs the module {task!r} ({error}); check its name, or install the package "
        f"that holds {absent.partition('.')[0]!r}"
    )


def _elsewhere(task: str) -> str:
    """Return the modules of the same name, of any version, in the packages of PettingZoo."""
    package, _, last = task.rpartition(".")
    stem = VERSION.sub("", last)
    homes = [home for home in HOMES if home != package]
    return " or ".join(f"{home}.{name}" for home in homes for name in _modules(home) if VERSION.sub("", name) == stem)


def _modules(package: str) -> list[str]:
    """Return the versioned modules of a package without importing them; empty if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return []
    places = None if spec is None else spec.submodule_search_locations
    return sorted(found.name for found in pkgutil.iter_modules(places or []) if VERSION.search(found.name))


def _missing_dependency(task: str, error: Exception) -> MissingDependencyError:
    package, _, rest = task.partition(".")
    family = rest.partition(".")[0]
    absent = (getattr(error, "name", None) or "").partition(".")[0]
    try:
        extras = metadata(package).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        extras = []
    if family in extras:
        remedy = f"install with: pip install '{package}[{family}]'"
    elif elsewhere := _elsewhere(task):
        remedy = f"did you mean {elsewhere}?"
    elif "pip install" in str(error):
        remedy = "follow that"
    else:
        remedy = f"install the package that holds {absent!r}" if absent else f"reinstall {package!r}"
    reason = str(error).rstrip(".")
    return MissingDependencyError(f"environment 'pettingzoo:{task}' cannot be imported ({reason}); {remedy}")
