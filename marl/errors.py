"""Errors that a user can act on. Each message names the thing, its value and the fix."""

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MarlError(Exception):
    """Base class of the errors of this package."""


class ConfigError(MarlError, ValueError):
    """An option, preset or file holds a value that cannot be used."""


class UnknownNameError(MarlError, KeyError):
    """A registry has no entry of that name; the message lists the closest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingDependencyError(MarlError, ImportError):
    """An optional package or simulator is absent; the message holds the install line."""


class EnvironmentContractError(MarlError):
    """An environment returned something that its own `EnvSpec` forbids."""


class AgentContractError(MarlError):
    """An agent broke a rule of `marl.Policy`."""


class WorkerError(MarlError):
    """An environment raised, or its worker process died; the message holds the traceback."""


class RankError(MarlError):
    """Another rank of the run has ended."""


class NonFiniteError(MarlError):
    """A NaN or an infinity in an observation, a reward, a loss or a gradient."""


class MemoryLimitError(MarlError):
    """A forward pass of a single row does not fit in memory."""


class RunFolderError(MarlError):
    """The folder of a run was renamed, replaced or deleted while it trained."""


class CallbackError(MarlError):
    """A callback or a tracker of the user raised an error."""


class CheckpointError(MarlError):
    """No usable checkpoint, or one that does not fit the run."""


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Raise `named_error` of whatever is raised inside, `sys.exit` included. KeyboardInterrupt passes."""
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise named_error(error, where) from error


def named_error(error: BaseException, where: str) -> MarlError:
    """Return an error whose message begins with `where`.

    An error of this package keeps its class. Any other becomes a WorkerError with its traceback.
    """
    if isinstance(error, MarlError) and type(error).__module__ == MarlError.__module__:
        return type(error)(f"{where}: {error}")
    trace = "".join(traceback.format_exception(error))
    return WorkerError(f"{where} raised {type(error).__name__}: {error}\n{trace}")


def unknown_name_message(kind: str, name: str, known: Iterable[str], listed: str = "") -> str:
    """Return the error message of a wrong name: the closest known names, else `listed`, else all known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"unknown {kind} {name!r}; {listed or 'known: ' + ', '.join(known)}"
