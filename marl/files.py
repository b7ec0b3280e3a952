"""Files that are written whole or not at all, and the names that folders may have."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from marl.errors import ConfigError

MAX_NAME_BYTES = 200
"""Longest name of a folder: file systems allow 255 bytes, and names beside it are longer."""


@contextmanager
def whole_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a path beside each of `paths`, of the same suffix, to write to.

    At the end those that were written are renamed into place; after an error none is. A device, a pipe or an open file
    (/dev/stdout) is yielded itself. Raises ConfigError where the system does not let us write.
    """
    finals = [path if _is_device(path) else Path(os.path.realpath(path)) for path in paths]
    beside = [path if _is_device(path) else path.with_name(f".{path.stem}.partial{path.suffix}") for path in finals]
    try:
        for path in finals:
            if path.is_dir():
                raise ConfigError(f"cannot write {path}: it is a folder; give the name of a file")
        yield tuple(beside)
        for written, path in zip(beside, finals, strict=True):
            if written != path and written.exists():
                os.replace(written, path)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        names = " and ".join(str(path) for path in paths)
        raise ConfigError(f"cannot write {names}: {reason}; choose another place") from error
    finally:
        for written, path in zip(beside, finals, strict=True):
            if written != path:
                with suppress(OSError):
                    written.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Whether a path names a device, a pipe or an open file, which no other file can replace."""
    with suppress(OSError):
        if path.exists() and not path.is_file():
            return True
    return path.is_absolute() and path.parts[1:2] in (("dev",), ("proc",))


def write_whole(path: Path, data: str | bytes) -> None:
    """Write one file. Raises ConfigError as `whole_files`."""
    with whole_files(path) as (beside,):
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


def require_folder_name(option: str, name: str) -> None:
    """Raise ConfigError unless `name` is that of a folder directly below another, on every file system."""
    problem = ""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        problem = "is no name of a folder; its place is given with --runs-dir"
    elif name.startswith("-") or name != name.strip() or not name.isprintable():
        problem = "begins with a dash, or has spaces around it or characters that cannot be printed"
    elif len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        problem = f"is longer than {MAX_NAME_BYTES} bytes"
    if problem:
        shown = ascii(name) if len(name) < 60 else f"{name[:40]!a}..."
        raise ConfigError(f"{option} is {shown}, which {problem}; give another")
