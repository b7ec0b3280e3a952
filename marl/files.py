"""Files that are written whole or record by record, locks, and names of folders."""

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from marl.errors import ConfigError

MAX_NAME_BYTES = 200
"""Longest name of a folder. File systems allow 255 bytes, and names derived from it are longer."""


@contextmanager
def whole_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path beside each of `paths`, with the same suffix, to write to.

    The written files are renamed to `paths` at the end, and removed after an error. A device, a pipe or an open file
    (/dev/stdout) is yielded itself. Raises ConfigError if a file cannot be written.
    """
    finals = [path if _is_device(path) else Path(os.path.realpath(path)) for path in paths]
    partials = [path if _is_device(path) else path.with_name(f".{path.stem}.partial{path.suffix}") for path in finals]
    try:
        for path in finals:
            if path.is_dir():
                raise ConfigError(f"cannot write {path}: it is a folder; give the name of a file")
        yield tuple(partials)
        for partial, path in zip(partials, finals, strict=True):
            if partial != path and partial.exists():
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        names = " and ".join(str(path) for path in paths)
        raise ConfigError(f"cannot write {names}: {reason}; choose another place") from error
    finally:
        for partial, path in zip(partials, finals, strict=True):
            if partial != path:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Return True for a device, a pipe or an open file, which no other file can replace."""
    with suppress(OSError):
        if path.exists() and not path.is_file():
            return True
    return path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",))


def write_whole(path: Path, data: str | bytes) -> None:
    """Write one file. Raises ConfigError as `whole_files`."""
    with whole_files(path) as (partial,):
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def exclusive_lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of the file `path`, which is created if absent.

    Without `wait`, raises BlockingIOError if another process holds it. On a file system without locks it does nothing.
    """
    # The fallback is a marker file. One of a killed process on another machine would stay for ever.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"another process holds {path}") from error
    except (OSError, NotImplementedError):
        pass  # writing without a lock is better than not writing; a folder that cannot be written fails at the write
    try:
        yield
    finally:
        lock.release()


def require_folder_name(option: str, name: str) -> None:
    """Raise ConfigError unless `name` names a folder directly below another on every file system."""
    problem = ""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        problem = "is not the name of a folder; --runs-dir sets its place"
    elif name.startswith("-") or name != name.strip() or not name.isprintable():
        problem = "begins with a dash, or has spaces around it or characters that cannot be printed"
    elif len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    if problem:
        shown = ascii(name) if len(name) < 60 else f"{name[:40]!a}..."
        raise ConfigError(f"{option}={shown} {problem}; give another name")


BUFFERED_RECORDS = 10_000
"""Records held in memory while a file cannot be written. The oldest are dropped beyond it."""


class RecordFile:
    """File that grows by whole records and survives a full disk, so that a full disk does not end a run.

    A record that cannot be written is held in memory, after one warning on stderr. A later `write`, or `close`, writes
    it in order. Opening the file raises OSError if it fails; `write` never does. (The writers of torch and TensorBoard
    raise, and leave a partial record after which the file cannot be read.)
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the run
        self._size = self._file.tell()
        self._held: deque[bytes] = deque()
        self._lost = 0
        self._partial = False
        self._warned = False

    def write(self, record: bytes) -> None:
        """Append a record."""
        self._held.append(record)
        error = self._write_held()
        if error is None:
            return
        if len(self._held) > BUFFERED_RECORDS:
            self._held.popleft()
            self._lost += 1
        if not self._warned:
            self._warned = True
            _warn(
                f"cannot write {self.path} ({error}); training goes on and up to {BUFFERED_RECORDS} records wait in "
                "memory; free some space and they are written"
            )

    def close(self) -> None:
        """Write the held records, if possible. Warns with the number of lost records."""
        if self._file.closed:
            return
        error = self._write_held()
        lost = self._lost + len(self._held)
        if lost:
            _warn(f"{lost} records of {self.path} were lost ({error or 'more were waiting than memory may hold'})")
        with suppress(OSError):
            if self._partial:
                self._file.truncate(self._size)
        with suppress(OSError):
            self._file.close()

    def _write_held(self) -> OSError | None:
        waiting = len(self._held)
        try:
            while self._held:
                self._write_record(self._held[0])
                self._held.popleft()
        except OSError as error:
            return error
        if self._warned and waiting:
            self._warned = False
            _warn(f"{self.path} can be written again; {waiting} waiting records were added to it")
        return None

    def _write_record(self, record: bytes) -> None:
        if self._partial:
            self._file.truncate(self._size)
        self._partial = True
        left = memoryview(record)
        while left:
            left = left[self._file.write(left) or 0 :]
        self._partial = False
        self._size += len(record)


def _warn(text: str) -> None:
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)
