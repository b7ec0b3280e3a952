"""A run's folder: its name, lock, configuration and status, and a watch over it while the run writes to it."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from marl import distributed
from marl.callbacks import Callback
from marl.config import RunConfig, from_yaml, to_yaml
from marl.errors import CheckpointError, ConfigError, RunFolderError, UnknownNameError
from marl.factories import short_name
from marl.files import exclusive_lock, write_whole
from marl.tracking.jsonl import drop_lines

Status = Literal["running", "finished", "stopped", "failed"]
GIT_TIMEOUT = 5.0
"""Seconds to wait for git."""


def check_empty(folder: Path) -> None:
    """Raise ConfigError if a run has saved a checkpoint there."""
    if has_checkpoint(folder):
        raise ConfigError(
            f"{folder} holds a run already; continue it with `{distributed.resume_command(folder)}`, or use another "
            "--name"
        )


def has_checkpoint(folder: Path) -> bool:
    """Return True if a run has saved a checkpoint there."""
    return any((folder / "checkpoints").glob("step_*"))


def is_run(folder: Path) -> bool:
    """Return True if a run has written to the folder."""
    return any((folder / name).exists() for name in ("status.json", "metrics.jsonl", "checkpoints"))


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of a run. Raises CheckpointError without one, and ConfigError if it cannot be read."""
    path = folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a run: it has no config.yaml; `ls runs` shows the runs")
    try:
        return read_config_file(path)
    except ConfigError as error:
        modules = read_status(folder).get("registered_by")
        if modules and isinstance(error.__cause__, UnknownNameError):
            error.add_note(
                f"{', '.join(map(str, modules))} registered it when the run was made. In Python, import that first. "
                "For the command line, declare it as an entry point of your package, or train with FILE.py:FUNCTION"
            )
        raise


def read_config_file(path: Path, changes: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration of a YAML file; `changes` take the place of its "env" and "agent".

    Raises ConfigError if it cannot be read.
    """
    try:
        return from_yaml(path.read_text(encoding="utf-8"), path, changes or {})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def new_folder(config: RunConfig) -> Path:
    """Make and return runs/ENV/AGENT/SEED-TIME, the same folder on every rank. TensorBoard shows the path as the name.

    A number is appended if the folder of this second exists.
    """
    env, agent = (
        "".join(c if c.isalnum() or c in "-_." else "-" for c in short_name(name))
        for name in (config.env, config.agent)
    )
    parent = Path(config.runs_dir) / env / agent
    folder = first = parent / f"{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    with translate_os_errors(Path(config.runs_dir)):
        parent.mkdir(parents=True, exist_ok=True)
        while distributed.rank() == 0:
            with suppress(FileExistsError):
                folder.mkdir()
                break
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
    return distributed.gather(folder)[0]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Make the folder and lock it against other processes. Raises ConfigError if one trains in it."""
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / ".lock", wait=False))
        except BlockingIOError:
            raise ConfigError(f"another process trains in {folder}; wait for it, or use another --name") from None
        yield


@contextmanager
def translate_os_errors(folder: Path) -> Iterator[None]:
    """Raise ConfigError for an OSError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write the folder {folder}: {error}; choose another with --runs-dir") from error


def prepare_folder(folder: Path, config: RunConfig, step: int) -> None:
    """Write the configuration, and drop evaluations that an earlier process logged after `step`."""
    write_whole(folder / "config.yaml", to_yaml(config))
    evaluations = folder / "evaluations.jsonl"
    if evaluations.exists():
        drop_lines(evaluations, step or -1)  # a run from the beginning logs step 0 again


class RunStatus:
    """Writes status.json: whether the run is running, finished, stopped or failed, why, what code it ran, and where.

    A run that was killed keeps the status "running". `registered_by`: modules outside this package that registered the
    run's environment, agent or algorithm.
    """

    def __init__(self, folder: Path, registered_by: Sequence[str] = ()) -> None:
        self.folder = folder
        self.started = _now()
        self.code = {"version": package_version(), "git_commit": git_commit(), "registered_by": list(registered_by)}
        self.code["working_folder"] = os.getcwd()

    def write(self, status: Status, steps: int, reason: str = "") -> None:
        """Write the status after `steps` environment steps. Raises ConfigError if the system refuses."""
        record = {"status": status, "reason": reason, "steps": steps}
        record |= {"started": self.started, "written": _now()} | self.code
        write_whole(self.folder / "status.json", json.dumps(record, indent=1) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json; empty if it is absent or damaged."""
    with suppress(OSError, ValueError):
        record = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def read_scores(folder: Path) -> dict[str, float]:
    """Return the last value of every tag "eval/..." and "test/..." in metrics.jsonl; empty without evaluations."""
    scores: dict[str, float] = {}
    with suppress(OSError, ValueError), open(folder / "metrics.jsonl", encoding="utf-8") as file:
        for line in file:
            if '"eval/' in line or '"test/' in line:
                scores |= {
                    tag: value
                    for tag, value in json.loads(line).items()
                    if tag.startswith(("eval/", "test/")) and isinstance(value, int | float)
                }
    return scores


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def package_version() -> str:
    """Return the version of this package; "unknown" where it is not installed."""
    try:
        return version("seqmarl")
    except PackageNotFoundError:
        return "unknown"


def git_commit() -> str | None:
    """Return the git commit of the working folder, with "-dirty" if files differ from it; None without a repository."""
    # Without optional locks git leaves the index of the user's repository as it is.
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


class FolderWatch(Callback):
    """Raises RunFolderError after an iteration in which the run's folder was renamed, replaced or deleted.

    Only rank 0, which writes, has one. Open files follow a renamed folder, and are lost with a deleted one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptor = os.open(folder, os.O_RDONLY)
        self.identity = self._identity(folder)

    def on_logged(self, trainer: Any) -> None:  # noqa: ARG002
        """Check the folder after each iteration."""
        self.require()

    def on_stop(self, trainer: Any) -> None:  # noqa: ARG002
        """Check the folder before the last save."""
        self.require()

    def require(self) -> None:
        """Raise RunFolderError if the folder is no longer where the run began.

        Errors of the file system are ignored, because a network may be down for a while.
        """
        try:
            if self._identity(self.folder) == self.identity:
                return
        except OSError:
            return
        renamed = self.renamed()
        what = "was deleted" if renamed is None else f"was renamed to {renamed}"
        raise RunFolderError(f"the run's folder {self.folder} {what} while it trained; leave it in place until it ends")

    def renamed(self) -> Path | None:
        """Return where the folder is now; None if it was deleted, or the system cannot say."""
        try:
            now = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            return now if self._identity(now) == self.identity else None
        except OSError:
            return None

    def refuge(self) -> Path:
        """Return a folder to save to: where the run's folder is now, else a new one where it was or beside it."""
        if renamed := self.renamed():
            return renamed
        folder, number = self.folder, 1
        while (folder / "config.yaml").exists() or (folder.exists() and not folder.is_dir()):
            number += 1
            folder = self.folder.with_name(f"{self.folder.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        """Release the folder."""
        os.close(self.descriptor)

    def _identity(self, folder: Path) -> tuple[int, int] | None:
        """Return the device and the number of a folder; None if it is not there."""
        try:
            found = os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino
