"""Engine that executes runs on the nodes of a Ray cluster.

A node shares no disk with this machine. A run is executed in a temporary folder of its node, its files are brought home
while it trains, and after the loss of its node it continues on another one from the files that are at home.
"""

import importlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marl.config import override, to_yaml
from marl.errors import ConfigError, MissingDependencyError
from marl.experiments.suite.engines.base import Ended
from marl.experiments.suite.engines.local import LocalEngine
from marl.experiments.suite.plan import Job
from marl.files import write_whole

INSTALL = "pip install 'seqmarl[ray]'"
CONNECT_SECONDS = 5.0
"""Time that the address of a cluster has to answer."""
NEWS_SECONDS = 2.0
"""Time between two deliveries of the files of a run."""
WATCH_SECONDS = 0.2
MAX_RETRIES = 3
"""Lost nodes that a run survives."""
RUNS = "runs"
LOG = "run.log"


@dataclass(frozen=True)
class News:
    """Change of a run's files since the last delivery."""

    written: dict[str, bytes]
    """Contents of new and changed files, by their path in the run's folder."""
    present: frozenset[str]
    """All files that the folder holds."""
    log: bytes
    """New output."""
    exit_status: int | None
    """Exit status of a run that has ended."""


class NodeRun:
    """One run on a node, in a temporary folder; a Ray actor."""

    def __init__(self, job: Job, files: dict[str, bytes]) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="marl-ray-"))
        os.chdir(self.scratch)
        self.job = replace(job, config=override(job.config, {"runs_dir": RUNS}))
        write_files(self.job.folder, files)
        self.sent = signatures(self.job.folder)
        self.log_sent = 0
        self.engine = LocalEngine(1)
        self.engine.submit(self.job, self.scratch / LOG)

    def watch(self) -> News:
        """Return what has changed, after NEWS_SECONDS or once the run has ended."""
        deadline, ended = time.monotonic() + NEWS_SECONDS, []
        while not ended and time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)
            ended = list(self.engine.poll())
        now, written = signatures(self.job.folder), {}
        for name in [name for name, signature in now.items() if self.sent.get(name) != signature]:
            with suppress(FileNotFoundError):  # an old checkpoint that goes
                written[name] = (self.job.folder / name).read_bytes()
        self.sent = now
        log = b""
        with suppress(FileNotFoundError), open(self.scratch / LOG, "rb") as file:
            file.seek(self.log_sent)
            log = file.read()
        self.log_sent += len(log)
        return News(written, frozenset(now), log, ended[0].exit_status if ended else None)

    def stop(self) -> None:
        """Ask the run to save and end."""
        self.engine.stop()

    def close(self) -> None:
        """End the run, and remove the temporary folder."""
        self.engine.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def signatures(folder: Path) -> dict[str, tuple[int, int]]:
    """Return time and size of each file below a folder, by its path in it, without hidden files, such as locks."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        with suppress(FileNotFoundError):
            if not any(part.startswith(".") for part in name.parts) and path.is_file():
                status = path.stat()
                found[str(name)] = (status.st_mtime_ns, status.st_size)
    return found


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files below a folder, by their path in it."""
    return {name: (folder / name).read_bytes() for name in signatures(folder)}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


@dataclass
class Remote:
    """A run on the cluster, seen from here."""

    job: Job
    log: Path
    actor: Any
    retries: int = 0


class RayEngine:
    """Executes each run as an actor with one CPU, on any node.

    Raises MissingDependencyError without Ray, and ConfigError if the cluster does not answer. An empty `address` starts
    Ray on this machine. `slots` is the number of runs at the same time, by default one for each CPU of the cluster.
    """

    outlives = False

    def __init__(self, address: str = "", slots: int | None = None) -> None:
        with suppress(ModuleNotFoundError):
            self.ray: Any = importlib.import_module("ray")
        # A folder of the name in the working folder is imported as a module without a file.
        if getattr(getattr(self, "ray", None), "__file__", None) is None:
            raise MissingDependencyError(f"engine='ray' needs the package ray; install with: {INSTALL}")
        self.connected = not self.ray.is_initialized()
        if self.connected:
            if address:
                require_answer(address)
            # Ray would stop this process at the first SIGTERM.
            self.ray.init(address=address or None, log_to_driver=False, include_dashboard=False, logging_level="error")
        self.slots = slots or max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self.actor_class = self.ray.remote(num_cpus=1, max_restarts=0, max_concurrency=2)(NodeRun)
        self.pending: dict[Any, Remote] = {}

    def submit(self, job: Job, log: Path) -> None:
        """Start or continue a run on a node."""
        self._begin(Remote(job, log, None))

    def _begin(self, run: Remote) -> None:
        run.actor = self.actor_class.remote(run.job, read_files(run.job.folder))
        self.pending[run.actor.watch.remote()] = run

    def poll(self) -> Sequence[Ended]:
        """Bring files home, and return the runs that have ended since the last call."""
        if not self.pending:
            return []
        ready, _ = self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        ended = []
        for reference in ready:
            run = self.pending.pop(reference)
            try:
                news = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                if isinstance(error, self.ray.exceptions.RayTaskError) or "creation task" in str(error):
                    ended.append(self._failed(run, f"a node cannot execute the run: {last_words(error)}"))
                elif run.retries == MAX_RETRIES:
                    ended.append(self._failed(run, f"its node was lost {MAX_RETRIES + 1} times"))
                else:
                    run.retries += 1
                    add_text(run.log, f"its node was lost; continues on another one, try {run.retries + 1}\n")
                    self._begin(run)
                continue
            bring_home(run, news)
            if news.exit_status is None:
                self.pending[run.actor.watch.remote()] = run
            else:
                run.actor.close.remote()
                ended.append(Ended(run.job, news.exit_status))
        return ended

    def _failed(self, run: Remote, reason: str) -> Ended:
        add_text(run.log, f"marl: {reason}\n")
        return Ended(run.job, 1)

    def stop(self) -> None:
        """Ask all runs to save and end."""
        for run in self.pending.values():
            run.actor.stop.remote()

    def close(self) -> None:
        """End all runs, and leave the cluster."""
        with suppress(self.ray.exceptions.RayError):
            self.ray.get([run.actor.close.remote() for run in self.pending.values()], timeout=CONNECT_SECONDS)
        for run in self.pending.values():
            self.ray.kill(run.actor)
        self.pending = {}
        if self.connected:
            self.ray.shutdown()
            self.connected = False


def require_answer(address: str) -> None:
    """Raise ConfigError unless something listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"address={address!r}; give HOST:PORT of the head of a Ray cluster")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"address={address!r} does not answer ({error}); start the cluster with `ray start --head`, or leave "
            "--address out to start Ray on this machine"
        ) from error


def bring_home(run: Remote, news: News) -> None:
    """Write the files of a delivery, then remove those that the run has removed."""
    folder = run.job.folder
    before = signatures(folder)
    files = dict(news.written)
    if "config.yaml" in files:  # the run's own names the temporary folder
        files["config.yaml"] = to_yaml(run.job.config).encode()
    write_files(folder, files)
    for name in before.keys() - news.present:
        (folder / name).unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            path.rmdir()
    if news.log:
        with open(run.log, "ab") as file:
            file.write(news.log)


def add_text(log: Path, text: str) -> None:
    """Append a text to a log."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(text)


def last_words(error: Exception) -> str:
    """Return the last line of an error that is not empty."""
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
