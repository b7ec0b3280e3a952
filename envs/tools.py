"""Plain functions as tools of a language agent, which calls them by writing `name(3, "text")`.

Each call runs in a forked process with operating-system limits on CPU time and memory. CPU time does not depend on the
load of the machine. A longer limit on wall time ends calls that wait. The limits also end a single long operation, such
as `9**9**9` or `"x" * 3_000_000_000`. Restrictions:

- Changes that a tool makes in memory are lost. Keep lasting data in the game's own state.
- Files that a tool writes, and processes that it starts in their own session, are not cleaned up.
- Memory is limited on Linux only; elsewhere only the time limits apply.
- A tool that ends just before its limit on one machine may be stopped on a slower one.
- CPU time of processes that a tool starts is not counted. The limit on wall time ends the call.
- The order of a set inside a text that a tool returns may differ between processes.
"""

import ast
import inspect
import os
import re
import resource
import signal
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from marl.errors import ConfigError
from marl.seeding import seed_everything

Tool = Callable[..., Any]
MAX_CALL = 1000
"""Maximum number of characters of a call."""
MAX_DEPTH = 20
"""Maximum depth of nested brackets in a call and in an answer."""
MAX_ITEMS = 100
"""Maximum number of items of a collection that an answer shows."""
MAX_BITS = 14_000
"""Maximum size of an integer that is written out, about 4,200 digits, slightly below Python's own limit."""
MAX_MEMORY = 512 << 20
"""Bytes that a call may allocate on top of the forked process."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Toolbox:
    """Functions that an action may call with literal arguments. No text of an agent is evaluated as code.

    `seconds`: CPU time of a call. `wall_seconds`: wall time of a call, twelve times as long by default.

    Raises ConfigError for a function without a name, a signature or a docstring: agents read its first line.
    """

    def __init__(self, tools: Sequence[Tool], seconds: float = 5.0, wall_seconds: float | None = None) -> None:
        self.tools = {getattr(tool, "__name__", repr(tool)): tool for tool in tools}
        self.seconds = seconds
        self.wall_seconds = 12 * seconds if wall_seconds is None else wall_seconds
        for name, tool in self.tools.items():
            if not name.isidentifier() or not inspect.getdoc(tool) or _parameters(tool) is None:
                raise ConfigError(
                    f"tool {name}: agents are shown its name, parameters and docstring; give a documented function"
                )
        if len(self.tools) < len(tools):
            raise ConfigError(f"{len(tools)} tools share the names {', '.join(self.tools)}; rename those that clash")

    def manual(self) -> str:
        """Return one line for each tool: its signature and the first line of its docstring."""
        return "\n".join(
            f"{name}{_parameters(tool)}: {(inspect.getdoc(tool) or '').splitlines()[0]}"
            for name, tool in self.tools.items()
        )

    def call(self, text: str, max_length: int = 500) -> str | None:
        """Return the answer of the tool that `text` calls, or the description of a mistake, in `max_length` characters.

        Returns None if `text` does not call a tool. The answer depends on the call only; see the module's restrictions.
        """
        text = text.strip()
        name, mark, _ = text.partition("(")
        if not mark or name.strip() not in self.tools:
            return None
        if len(text) > MAX_CALL:
            return shortened(f"mistake: the call has {len(text)} characters, at most {MAX_CALL} are read", max_length)
        return self._run_in_fork(self.tools[name.strip()], text, max_length)

    def _run_in_fork(self, tool: Tool, text: str, max_length: int) -> str:
        """Return the answer of a call in a child process. Kills every process left in its process group."""
        # A file instead of a pipe: a process that the tool leaves behind would keep a pipe open for ever.
        with tempfile.TemporaryFile() as stream:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # about forking beside threads: the child only runs the tool, within limits
                child = os.fork()
            if not child:
                try:
                    os.setpgid(0, 0)
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                    _limit(self.seconds, self.wall_seconds)
                    seed_everything(zlib.crc32(text.encode()))
                    answer = shortened(_answer(tool, text), max_length)
                    stream.write(answer.encode(errors="backslashreplace"))
                    stream.flush()
                    os._exit(0)
                finally:
                    os._exit(1)
            status = os.waitpid(child, os.WUNTRACED)[1]
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            if os.WIFSTOPPED(status):  # no timer ends a process that is stopped
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
            stream.seek(0)
            answer = stream.read().decode(errors="replace")
        limits: dict[int, float] = {signal.SIGPROF: self.seconds, signal.SIGALRM: self.wall_seconds}
        if os.WIFSIGNALED(status) and (limit := limits.get(os.WTERMSIG(status))):
            return shortened(f"mistake: this takes longer than {limit:g} seconds", max_length)
        if status:
            return shortened("mistake: the tool broke down without an answer", max_length)
        return answer


def _limit(seconds: float, wall_seconds: float) -> None:
    """Let the system end this process after a CPU time or a wall time, and refuse it more memory.

    The parent handles the signals of Ctrl-C and SIGTERM.
    """
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = Path("/proc/self/statm")
    if pages.exists():
        size = int(pages.read_text().split()[0]) * resource.getpagesize() + MAX_MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _answer(tool: Tool, text: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments, named = _arguments(text)
            return _shown(tool(*arguments, **named))
    except MemoryError:
        return "mistake: this needs too much memory"
    except RecursionError:
        return "mistake: this goes round in circles, or too deep"
    except SyntaxError as error:
        return f"mistake: {error.msg}"
    except KeyError as error:
        return f"mistake: KeyError: {ADDRESS.sub('', str(error))}"
    except BaseException as error:  # a tool may even want to exit
        return f"mistake: {ADDRESS.sub('', str(error)) or type(error).__name__}"


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the argument values of a call. Raises ValueError or SyntaxError unless it is a call with literals."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("write one call and nothing else")
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("write each named argument as name=value")
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError) as error:
        raise ValueError("arguments have to be plain values, such as 3, 'text' or [1, 2]") from error
    if max(map(_depth, (*arguments, *named.values())), default=0) > MAX_DEPTH:
        raise ValueError(f"arguments have more than {MAX_DEPTH} brackets inside each other")
    return arguments, named


def _depth(value: Any) -> int:
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    nested = isinstance(value, (list, tuple, set, dict))
    return 1 + max(map(_depth, inside), default=0) if nested else 0


def _shown(value: Any) -> str:
    """Return a tool's result as text: sets sorted, objects without their memory address."""
    if isinstance(value, (list, tuple, Mapping, AbstractSet, Iterator)) or _is_long(value):
        return _nested(value, 0)
    return ADDRESS.sub("", str(value))


def _nested(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        pairs = (f"{_nested(k, depth + 1)}: {_nested(v, depth + 1)}" for k, v in value.items())
        return f"{{{_joined(pairs)}}}"
    if isinstance(value, AbstractSet):
        return f"{{{_joined(sorted(_nested(item, depth + 1) for item in value))}}}"
    if isinstance(value, (list, tuple, Iterator)):
        inside = _joined(_nested(item, depth + 1) for item in value)
        alone = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({inside}{alone})" if isinstance(value, tuple) else f"[{inside}]"
    if _is_long(value):
        return f"an integer of about {int(value.bit_length() * 0.30103) + 1} digits"
    return ADDRESS.sub("", repr(value))


def _joined(items: Iterable[str]) -> str:
    """Join the first items of a possibly endless iterable."""
    first = list(islice(items, MAX_ITEMS + 1))
    return ", ".join(first[:MAX_ITEMS] + ["..."] * (len(first) > MAX_ITEMS))


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > MAX_BITS


def shortened(text: str, max_length: int) -> str:
    """Return the text, or its beginning and its length if it is longer than `max_length`."""
    if len(text) <= max_length:
        return text
    note = f"... ({len(text)} characters)"
    return text[: max(0, max_length - len(note))] + note


def _parameters(tool: Tool) -> str | None:
    """Return the parameter names in brackets, or None for a function without a signature."""
    try:
        return f"({', '.join(inspect.signature(tool).parameters)})"
    except ValueError:
        return None
