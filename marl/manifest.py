"""Manifest of a checkpoint: the files of its directory, with sizes and digests."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
SUFFIX = ".safetensors"
MAX_NUMBER = 2.0**63
"""Bound of the numbers in a manifest. Smaller numbers are safe in floating-point arithmetic."""


class NewerFormatError(CheckpointError):
    """A later version of this package wrote the checkpoint."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint directory whose files exist in full. File contents are not read.

    Raises NewerFormatError for a later format, and CheckpointError for an unreadable, altered or ill-formed manifest
    and for a missing or resized file.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        intact = manifest["sha256"] == manifest_digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damage(path, f"{MANIFEST} is unreadable ({type(error).__name__}: {error})") from error
    if not intact:
        raise damage(path, f"{MANIFEST} does not match its own sha256")
    found = manifest.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormatError(f"{path} has format {found}, this seqmarl reads formats up to {FORMAT}: update it")
    if wrong := ill_formed(manifest):
        raise damage(path, f"{MANIFEST} has {wrong}")
    for name, expected in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise damage(path, f"{name} is missing") from error
        if size != expected["bytes"]:
            raise damage(path, f"{name} has {size} bytes instead of {expected['bytes']}")
    return manifest


def ill_formed(manifest: Mapping[str, Any]) -> str | None:
    """Return the first unusable field of a manifest as text, or None if all are usable."""
    score, files = manifest.get("score", ""), manifest.get("files")
    usable = {
        "format": _is_count(manifest.get("format")),
        "step": _is_count(manifest.get("step")),
        "order": _is_finite(manifest.get("order")),
        "score": score is None or _is_finite(score),
        "data": isinstance(manifest.get("data"), dict),
        "files": isinstance(files, dict) and all(_is_file(name, each) for name, each in files.items()),
    }
    wrong = next((name for name, good in usable.items() if not good), None)
    return None if wrong is None else f"{wrong}={manifest.get(wrong)!r:.80}, which cannot be used"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_NUMBER


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER


def _is_file(name: str, expected: Any) -> bool:
    """Return True if an entry names a file of the directory itself, with its size and digest."""
    return (
        name.endswith(SUFFIX)
        and Path(name).name == name
        and isinstance(expected, dict)
        and _is_count(expected.get("bytes"))
        and isinstance(expected.get("sha256"), str)
    )


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of all other fields. Every format uses the same rule."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path, what: str) -> CheckpointError:
    """Return the error for a damaged or absent checkpoint directory."""
    if not path.is_dir():
        return CheckpointError(f"there is no checkpoint directory {path}")
    return CheckpointError(f"checkpoint {path} is damaged: {what}")
