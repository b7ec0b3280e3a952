"""Code of the user: factories named `package.module:function` or `path/to/file.py:function`, callbacks and trackers."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import dacite

from marl.errors import CallbackError, ConfigError, MarlError, UnknownNameError, unknown_name_message

FILE_SUFFIX = ".py"


def absolute_name(name: str) -> str:
    """Return the name of a factory with the path of its file made absolute; any other name as it is."""
    place, colon, attribute = name.rpartition(":")
    return f"{os.path.abspath(place)}:{attribute}" if colon and place.endswith(FILE_SUFFIX) else name


def short_name(name: str) -> str:
    """Return a name without the folders of its file, for the names of runs."""
    place, colon, attribute = name.rpartition(":")
    return f"{Path(place).stem}:{attribute}" if colon and place.endswith(FILE_SUFFIX) else name


def factory_name(factory: Any, kind: str = "factory") -> str:
    """Return the name under which a function or class can be imported again; a string is returned as it is.

    A factory of a script is named by the script's file. A factory of a notebook has a name that holds in this process
    alone. Raises ConfigError, which says `kind`, for an instance, a lambda, a nested function and anything else that
    has no such name.
    """
    if isinstance(factory, str):
        return factory
    module, attribute = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    if not attribute.isidentifier() or getattr(sys.modules.get(module), attribute, None) is not factory:
        if not callable(factory):
            raise ConfigError(
                f"{kind}={factory!r:.80} is an instance of {type(factory).__name__}; give a name, or the class or "
                "function that makes it, and its keyword arguments beside it"
            )
        raise ConfigError(f"{kind}={factory!r} cannot be imported by a name; define it at the top of a module")
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        return f"{os.path.abspath(file)}:{attribute}"
    return f"{module}:{attribute}"


def check_name(name: str, kind: str) -> None:
    """Raise ConfigError unless `name` is a Python name in a module or in a file."""
    place, _, attribute = name.rpartition(":")
    parts = () if place.endswith(FILE_SUFFIX) else place.split(".")
    if not all(part.isidentifier() for part in (*parts, attribute)):
        raise ConfigError(
            f"{kind} {name!r} is neither registered nor PACKAGE.MODULE:FUNCTION nor FILE.py:FUNCTION; give one of them"
        )


def import_factory(name: str, kind: str) -> Callable[..., Any]:
    """Return the function or class of `package.module:function` or `file.py:function`.

    Raises ConfigError if it cannot be imported or called.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = _load_file(Path(place)) if place.endswith(FILE_SUFFIX) else importlib.import_module(place)
        factory = getattr(module, attribute)
    except (Exception, SystemExit) as error:
        where = "" if isinstance(error, ImportError | AttributeError | FileNotFoundError) else place_of(error)
        raise ConfigError(
            f"cannot import {kind} {name!r} ({type(error).__name__}{where}: {error}); give PACKAGE.MODULE:FUNCTION of "
            "an installed module or of one in the working folder, or FILE.py:FUNCTION"
        ) from error
    if not callable(factory):
        raise ConfigError(f"{kind} {name!r} is a {type(factory).__name__}; give a function or a class")
    return factory


def call_factory(name: str, kind: str, arguments: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Import a factory and return `factory(*arguments, **kwargs)`.

    A factory whose next parameter is annotated with a dataclass gets one made of `kwargs`. Raises ConfigError if the
    factory cannot be imported or does not take the arguments.
    """
    factory = import_factory(name, kind)
    options = _options_dataclass(factory, len(arguments))
    if options is not None:
        known = [f.name for f in fields(options)]
        for given in kwargs:
            if given not in known:
                raise UnknownNameError(unknown_name_message(f"option of {kind} {name}", given, known))
        try:
            arguments, kwargs = (*arguments, dacite.from_dict(options, kwargs, dacite.Config(cast=[tuple, float]))), {}
        except dacite.DaciteError as error:
            raise ConfigError(f"{kind} {name!r} cannot take the options {dict(kwargs)}: {error}") from error
    check_arguments(factory, arguments, kwargs, f"{kind} {name!r}")
    return factory(*arguments, **kwargs)


def check_arguments(
    factory: Callable[..., Any], arguments: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> None:
    """Raise ConfigError if the signature of `factory` does not take the arguments."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(*arguments, **kwargs)
    except TypeError as error:
        first = "the environment's spec and " if arguments else ""
        raise ConfigError(
            f"{name} cannot be called with {first}kwargs={dict(kwargs)}: {error}; its signature is {signature}"
        ) from error


def call_method(part: Any, kind: str, method: str, *arguments: Any) -> Any:
    """Call a method of a callback or a tracker, which `kind` says, and return its result.

    Raises CallbackError, with the class and the method, for an error of a class from outside this package, and for an
    error of the library behind a tracker. Errors of this package's own classes pass.
    """
    try:
        return getattr(part, method)(*arguments)
    except (Exception, SystemExit) as error:
        owner = type(part)
        if owner.__module__.partition(".")[0] == "marl" and (kind != "tracker" or isinstance(error, MarlError)):
            raise
        raise CallbackError(
            f"{kind} {owner.__module__}.{owner.__qualname__} raised {type(error).__name__} in "
            f"{method}{place_of(error)}: {error}"
        ) from error


@contextmanager
def naming_class(part: Any, kind: str) -> Iterator[None]:
    """Raise CallbackError, with the class, file and line, for an error in the code of `part` of a user's class.

    Errors of this package's own classes pass, and errors whose traceback does not lead through the class's file.
    """
    try:
        yield
    except Exception as error:
        owner = type(part)
        file = getattr(sys.modules.get(owner.__module__), "__file__", None)
        passed = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if owner.__module__.partition(".")[0] == "marl" or isinstance(error, MarlError) or file not in passed:
            raise
        raise CallbackError(
            f"{kind} {owner.__qualname__} raised {type(error).__name__}{place_of(error)}: {error}"
        ) from error


def raised_in(error: BaseException, name: str) -> ConfigError:
    """Return an error of the user's code as a ConfigError that names its type and its place."""
    return ConfigError(f"{name} raised {type(error).__name__}{place_of(error)}: {error}; mend the code")


def place_of(error: BaseException) -> str:
    """Return " at FILE:LINE" of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _options_dataclass(factory: Callable[..., Any], index: int) -> type | None:
    """Return the dataclass with which the parameter at `index` is annotated, or None."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
        hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
    except (ValueError, TypeError, NameError, AttributeError):
        return None
    kind = hints.get(parameters[index].name) if len(parameters) > index else None
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _load_file(path: Path) -> ModuleType:
    """Import a file once per process. Its folder is searched for the modules that it imports."""
    path = path.absolute()
    main = sys.modules["__main__"]
    if (file := getattr(main, "__file__", None)) and os.path.abspath(file) == str(path):
        return main
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
