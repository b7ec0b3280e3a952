"""Training checkpoints: directories that are written under another name and renamed, without pickled objects.

    root/step_000000120000/<group>.safetensors    one file for each group of tensors
    root/step_000000120000/manifest.json          JSON data, score, versions, size and sha256 of every file

A leading dot marks an unfinished operation: `.partial_` is being written, `.replaced_` is replaced by a newer copy of
its step, `.removed_` is being deleted. The next save cleans up after a crash. One process at a time may save to a root;
any number may load from it.
"""

import json
import logging
import math
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from marl.errors import CheckpointError, ConfigError
from marl.manifest import (
    FORMAT,
    MANIFEST,
    SUFFIX,
    NewerFormatError,
    damage,
    file_digest,
    manifest_digest,
    read_manifest,
)

LOGGER = logging.getLogger("marl")

_STEP = re.compile(r"(?:\.replaced_)?step_(\d{12,})")
_UNFINISHED = re.compile(r"\.(partial|replaced|removed)_(step_\d{12,})")
_GROUP = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint: tensors by group and name, JSON data, and its directory."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    data: dict[str, Any]
    path: Path


@dataclass(frozen=True)
class _Entry:
    """Directory of a root. `order` counts saves; that of a damaged one is estimated from its step."""

    path: Path
    order: float
    score: float | None = None
    error: CheckpointError | None = None


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    data: Mapping[str, Any],
    keep: int = 3,
    score: float | None = None,
) -> Path:
    """Write a checkpoint of `step` under `root`, then remove all but the last `keep` and the best-scored one.

    `tensors` are grouped: {"model": {"weight": ...}}. `data` is JSON; use `pack` for arrays, tuples and integer keys.
    The last checkpoints are those saved last, whatever their step. Tensors that share memory are written separately.
    Returns the directory.

    Raises ConfigError for an invalid argument, and CheckpointError if the data cannot be stored or written (a full
    disk). A failed save leaves nothing behind, and earlier checkpoints as they were.
    """
    _check_arguments(step, tensors, keep, score)
    root = Path(root)
    final = root / f"step_{step:012d}"
    partial = root / f".partial_{final.name}"
    score = None if score is None else float(score)
    manifest = {"format": FORMAT, "step": int(step), "score": score, "versions": _versions(), "data": _json(data)}
    try:
        root.mkdir(parents=True, exist_ok=True)
        _finish_interrupted_saves(root)
        manifest["order"] = 1 + math.ceil(max((entry.order for entry in _history(root)), default=0))
        _write(partial, tensors, manifest)
        _publish(partial, final)
    except BaseException as error:
        _discard(partial)
        if isinstance(error, OSError):
            needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
            raise CheckpointError(_failure(root, final, needed, error)) from error
        raise
    _prune(root, keep)
    return final


def load(
    path: Path,
    map_location: str | torch.device = "cpu",
    which: str | int = "last",
    check: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Read and verify the checkpoint in `path`, or the "last", the "best" or a step's checkpoint of the root `path`.

    Tensors are loaded to `map_location`. "best" has the highest score; it is the last if none has a score. If the
    checkpoint is damaged, the next one in that order is taken, with a warning that names the damage. `check` raises
    CheckpointError for content that the caller cannot use, which counts as damage.

    Raises CheckpointError if an explicit directory or step is damaged or absent, if nothing is usable, and for a format
    newer than this code; ConfigError for an unknown `which`.
    """
    path = Path(path)
    if match := _STEP.fullmatch(path.name):
        return _read(_present(path.parent).get(int(match[1]), path), map_location, check)
    if (path / MANIFEST).exists():
        return _read(path, map_location, check)
    if isinstance(which, int):
        present = _present(path)
        if which not in present:
            raise CheckpointError(f"no checkpoint of step {which} in {path}; found steps: {sorted(present)}")
        return _read(present[which], map_location, check)
    if which not in ("last", "best"):
        raise ConfigError(f"which={which!r}; give 'last', 'best' or a step number")
    history = _history(path)
    scored = _by_score(history)
    candidates = [entry for entry in history if entry.error] + scored if which == "best" and scored else history
    damage = []
    for entry in candidates:
        try:
            return _read(entry.path, map_location, check)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            LOGGER.warning("%s; falling back to the checkpoint before it", error)
            damage.append(str(error))
    raise CheckpointError(f"no usable checkpoint ({which}) in {path}; found: {'; '.join(damage) or 'no step_* folder'}")


def best(root: Path) -> Path | None:
    """Return the directory of the highest score (the latest of equals), or None if no intact one has a score."""
    return next((entry.path for entry in _by_score(_history(Path(root)))), None)


def _check_arguments(step: int, groups: Iterable[str], keep: int, score: float | None) -> None:
    if step < 0:
        raise ConfigError(f"step={step}; a checkpoint's step is 0 or more")
    if keep < 1:
        raise ConfigError(f"keep={keep}; keep at least 1 checkpoint")
    if score is not None and not math.isfinite(score):
        raise ConfigError(f"score={score}; give a finite number, or None where there is none")
    for name in groups:
        if not _GROUP.fullmatch(name):
            raise ConfigError(f"tensor group {name!r} is no file name; use letters, digits, '_' and '-'")


def _versions() -> dict[str, str]:
    try:
        own = version("seqmarl")
    except PackageNotFoundError:
        own = "not installed"
    python = platform.python_version()
    return {"seqmarl": own, "torch": str(torch.__version__), "numpy": np.__version__, "python": python}


def _json(data: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(data))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the data is no JSON ({error}); pass it through marl.checkpoint.codec.pack") from error


def _write(partial: Path, tensors: Mapping[str, Mapping[str, Tensor]], manifest: dict[str, Any]) -> None:
    partial.mkdir()
    manifest["files"] = {}
    for name, group in tensors.items():
        path = partial / f"{name}{SUFFIX}"
        _write_tensors(path, group)
        _sync(path)
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    manifest["sha256"] = manifest_digest(manifest)
    (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    _sync(partial / MANIFEST)
    _sync(partial)


def _write_tensors(path: Path, group: Mapping[str, Tensor]) -> None:
    try:
        save_file(_writable(group), path)
        path.chmod(0o644)  # safetensors writes for its owner alone
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    except (KeyError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"cannot store {path.name}, give plain dense tensors: {error!r}") from error


def _writable(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, each with its own storage."""
    if "__metadata__" in group:
        raise CheckpointError("a tensor is named '__metadata__', which the file format reserves; rename it")
    result: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in group.items():
        plain = tensor.detach().to("cpu").resolve_conj().resolve_neg()
        if plain.layout is torch.strided:
            plain = plain.contiguous()
            pointer = plain.untyped_storage().data_ptr()
            plain = plain.clone() if pointer in storages else plain
            storages.add(pointer)
        result[name] = plain
    return result


def _publish(partial: Path, final: Path) -> None:
    """Rename into place. At every moment `load` finds the old or the new copy of the step."""
    replaced = final.with_name(f".replaced_{final.name}")
    if os.path.lexists(final):
        final.rename(replaced)
    partial.rename(final)
    _sync(final.parent)
    _discard(replaced)


def _finish_interrupted_saves(root: Path) -> None:
    """Undo or finish the saves that a crash interrupted."""
    for path in list(root.iterdir()):
        match = _UNFINISHED.fullmatch(path.name)
        if match and match[1] == "replaced" and not os.path.lexists(root / match[2]):
            path.rename(root / match[2])
        elif match:
            _discard(path)


def _discard(path: Path) -> None:
    """Delete a directory, a file or a symbolic link without its target. A failure is a warning."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        LOGGER.warning("cannot remove %s: %s", path, error)


def _prune(root: Path, keep: int) -> None:
    history = _history(root)
    oldest = [entry.order for entry in history if not entry.error][:keep][-1]
    champion = _by_score(history)[:1]
    for entry in history:
        if entry.order >= oldest or entry in champion or isinstance(entry.error, NewerFormatError):
            continue
        removed = entry.path.with_name(f".removed_{entry.path.name}")
        try:
            entry.path.rename(removed)
        except OSError as error:
            LOGGER.warning("cannot remove the old checkpoint %s: %s", entry.path, error)
        else:
            _discard(removed)


def _failure(root: Path, final: Path, needed: int, error: OSError) -> str:
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    intact = [entry.path.name for entry in _history(root) if not entry.error]
    earlier = f"the earlier checkpoint {intact[0]} is intact" if intact else "there is no earlier checkpoint"
    return (
        f"cannot write checkpoint {final}: {error}; its tensors need {needed} bytes and {free} are free; {earlier}. "
        "Free some space, lower --keep-checkpoints, or choose another folder"
    )


def _present(root: Path) -> dict[int, Path]:
    """Return the directories by step. A replaced copy counts only if the new one is missing."""
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return {int(match[1]): path for path in paths if (match := _STEP.fullmatch(path.name))}


def _history(root: Path) -> list[_Entry]:
    """Return every checkpoint of a root, last saved first. File sizes are compared, contents are not read."""
    entries, newest = [], 0.0
    for _, path in sorted(_present(root).items()):
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            entries.append(_Entry(path, newest + 0.5, error=error))
        else:
            entries.append(_Entry(path, manifest["order"], manifest["score"]))
            newest = max(newest, manifest["order"])
    return sorted(entries, key=lambda entry: (entry.order, entry.path.name), reverse=True)


def _by_score(history: list[_Entry]) -> list[_Entry]:
    """Return the intact entries with a score, highest first, latest first among equals."""
    scored = [(entry.score, entry.order, entry) for entry in history if not entry.error and entry.score is not None]
    return [entry for *_, entry in sorted(scored, key=lambda item: item[:2], reverse=True)]


def _read(path: Path, map_location: str | torch.device, check: Callable[[Checkpoint], None] | None) -> Checkpoint:
    manifest = read_manifest(path)
    tensors = {}
    for name, expected in manifest["files"].items():
        try:
            intact = file_digest(path / name) == expected["sha256"]
            group = load_file(path / name, device=str(map_location)) if intact else {}
        except (OSError, SafetensorError) as error:
            raise damage(path, f"{name} cannot be read ({error})") from error
        if not intact:
            raise damage(path, f"{name} does not match its sha256")
        tensors[name.removesuffix(SUFFIX)] = group
    found = Checkpoint(manifest["step"], tensors, manifest["data"], path)
    if check:
        check(found)
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
