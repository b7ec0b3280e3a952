"""Plans: the runs of a suite or a sweep with all their settings, and the progress of each."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml

from marl.config import RESUMABLE_FIELDS, RunConfig, digest, flatten
from marl.errors import ConfigError, MarlError, unknown_name_message
from marl.run_folder import package_version, read_config, read_status

State = Literal["new", "unfinished", "failed", "done"]


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a plan. Jobs are compared by identity, because settings have no hash."""

    config: RunConfig
    row: str
    """Row of the progress table: the task, or the settings of a sweep."""
    column: str
    """Column of the progress table: the agent."""

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config.runs_dir) / self.config.name

    @property
    def title(self) -> str:
        """Short name: row, column and seed."""
        return f"{self.row} {self.column} seed {self.config.seed}"


@dataclass(frozen=True)
class Plan:
    """Runs that belong together, in one folder."""

    name: str
    folder: Path
    metric: str
    jobs: tuple[Job, ...]
    about: tuple[str, ...] = ()
    """Lines on sources and units, to print first."""


@dataclass(frozen=True)
class Progress:
    """State of a run and the steps that it has trained."""

    state: State
    steps: int = 0
    reason: str = ""
    """Reason of a failure."""
    version: str = ""
    """Version of seqmarl that wrote the run; empty before it began."""


def progress_of(job: Job) -> Progress:
    """Return the progress of a run, by the files in its folder.

    Raises ConfigError if the folder holds a run with other settings, or one that cannot be read.
    """
    if not (job.folder / "config.yaml").exists():
        return Progress("new")
    try:
        found = read_config(job.folder)
    except MarlError as error:
        raise ConfigError(f"{job.folder} holds a run that cannot be read ({error}); remove it") from error
    if digest(found) != digest(job.config):
        old, new = flatten(found), flatten(job.config)
        differ = [name for name in new if name not in RESUMABLE_FIELDS and new[name] != old.get(name)]
        shown = ", ".join(f"{name}={old.get(name)!r} there and {new[name]!r} here" for name in differ[:4])
        raise ConfigError(
            f"{job.folder} holds a run with other settings ({shown}); give another --folder, or remove it"
        )
    status = read_status(job.folder)
    steps = status.get("steps")
    steps = steps if isinstance(steps, int) else 0
    version = str(status.get("version", ""))
    if status.get("status") == "finished" and found.steps >= job.config.steps:
        return Progress("done", steps, version=version)
    if status.get("status") == "failed":
        return Progress("failed", steps, str(status.get("reason", "")).partition("\n")[0], version)
    return Progress("unfinished", steps, version=version)


def older_versions(progress: Iterable[Progress]) -> list[str]:
    """Return the versions other than this one that have written finished runs, sorted."""
    return sorted({each.version for each in progress if each.state == "done"} - {package_version(), ""})


def read_file(path: Path, kind: type) -> Any:
    """Return the dataclass `kind` of a YAML file. Raises ConfigError with the wrong field, and the closest name."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no fields; see docs/suites.md")
    known = list(kind.__dataclass_fields__)
    for name in data:
        if name not in known:
            raise ConfigError(f"{path}: {unknown_name_message('field', str(name), known)}")
    try:
        return dacite.from_dict(kind, data, dacite.Config(strict=True, cast=[tuple]))
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; see docs/suites.md") from error


def require_distinct(option: str, values: Sequence[Any]) -> None:
    """Raise ConfigError if a value is given twice, or none is given."""
    if not values:
        raise ConfigError(f"{option} is empty; give at least one")
    for value in values:
        if (count := values.count(value)) > 1:
            raise ConfigError(f"{option} has {value} {count} times; give it once")


def require_distinct_folders(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if two runs would share a folder."""
    seen: dict[Path, Job] = {}
    for job in jobs:
        if (other := seen.setdefault(job.folder, job)) is not job:
            raise ConfigError(f"{other.title} and {job.title} are one run, {job.folder}; leave one out")


def folder_name(text: str) -> str:
    """Return `text` as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_.=," else "-" for letter in text)


def describe(settings: Mapping[str, Any]) -> str:
    """Return settings in short, as `clip=0.1,epochs=5`."""
    return (
        ",".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items())
        or "default"
    )
