"""Trust in a run's folder: code that its files name runs only if this user made the run, or allows it.

A run that names code or files outside the suite (`package.module:factory`, `pettingzoo:MODULE`, keyword arguments of a
factory, a folder of language-model weights) keeps a mark: the names, with an HMAC under a key of this user. The mark
lies in the folder, so a run may be moved or renamed. The folder of somebody else has no mark under this key.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from marl.config import ALGORITHM_REGISTRIES, RunConfig
from marl.errors import ConfigError
from marl.files import exclusive_lock, write_whole
from marl.registry import AGENTS, find_env

MARK = "origin.json"
KEY_BYTES = 32


def external_of_env(config: RunConfig) -> set[str]:
    """Return names of code and files outside the package that the run's environments import, run or open."""
    names: set[str] = set()
    for made in config.tasks:
        entry, task = find_env(made.name)
        names |= set(entry.external(task, made.options))
    return names


def external_of_agent(agent: str, options: Mapping[str, Any]) -> set[str]:
    """Return names of code and files outside the package that an agent with these options uses."""
    return set(AGENTS.get(agent).external(options))


def external_of_algorithm(config: RunConfig) -> set[str]:
    """Return the names of code outside the package that the run's advantage estimator and objective are."""
    names: set[str] = set()
    for kind, registry in ALGORITHM_REGISTRIES.items():
        names |= set(registry.get(getattr(config.learn, kind)).external(vars(getattr(config, f"{kind}_options"))))
    return names


def external_names(config: RunConfig) -> set[str]:
    """Return names of code and files outside the package that a run imports, runs or opens."""
    trackers = {f"tracker {name}" for name in config.trackers if ":" in name}
    agent = external_of_agent(config.agent, asdict(config.agent_options))
    return external_of_env(config) | agent | external_of_algorithm(config) | trackers


def require_trust(folder: Path, names: set[str], trust: bool) -> None:
    """Raise ConfigError unless `trust`, or the mark of the run in `folder` covers all `names`."""
    if trust or not names or names <= _marked(folder):
        return
    raise ConfigError(
        f"{folder} was not made by you on this machine, and its files name code or files to import or open: "
        f"{', '.join(sorted(names))}. Read them first; then add --trust (in Python trust=True)"
    )


def mark_trusted(folder: Path, names: set[str]) -> str | None:
    """Mark the run in `folder` as made by this user. Returns a line on why that was not possible, else None."""
    if not names:
        return None
    try:
        mark = json.dumps({"names": sorted(names), "hmac": _seal(sorted(names), _key(make=True))}, indent=1)
        write_whole(folder / MARK, mark + "\n")
    except (OSError, RuntimeError, ConfigError) as error:
        return f"this run will need --trust where it is used again: its mark cannot be kept ({error})"
    return None


def _marked(folder: Path) -> set[str]:
    """Return the names that the mark in `folder` covers: none if it is absent, damaged or made under another key."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        names, seal = mark["names"], mark["hmac"]
        if hmac.compare_digest(_seal(names, _key(make=False)), seal):
            return set(names)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return set()


def _seal(names: list[str], key: bytes) -> str:
    return hmac.new(key, json.dumps(names).encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes:
    """Return the key of this user, made on first use if `make`.

    Raises OSError if there is none, and RuntimeError if the user has no home.
    """
    path = key_path()
    with suppress(FileNotFoundError):
        if (key := path.read_bytes()) or not make:
            return _checked(path, key)
    if not make:
        raise FileNotFoundError(f"no key {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(path.with_suffix(".lock")):  # another process may be making it
        path.touch(mode=0o600)
        if not path.read_bytes():
            path.write_bytes(secrets.token_bytes(KEY_BYTES))
        return _checked(path, path.read_bytes())


def _checked(path: Path, key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise OSError(f"{path} has {len(key)} bytes instead of {KEY_BYTES}; remove it")
    return key


def key_path() -> Path:
    """Return the path of the key: seqmarl/key below XDG_STATE_HOME, or below ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "seqmarl" / "key"
