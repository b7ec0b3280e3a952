"""Scheduler: executes the unfinished runs of a plan on an engine, and says what became of each."""

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from marl.errors import ConfigError
from marl.experiments.suite.cost import Kind, Rate, duration_text, kind_of
from marl.experiments.suite.engines.base import Ended, Engine
from marl.experiments.suite.plan import Job, Plan, Progress, progress_of
from marl.experiments.suite.table import ProgressTable, last_step
from marl.files import exclusive_lock
from marl.stopping import stop_requests

POLL_SECONDS = 0.1
TABLE_SECONDS = 1.0
MIN_FREE_BYTES = 50_000_000
"""Space on the disk below which no further run starts."""
FULL_DISK = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""Words of the system in the reason of a run that failed because the disk, or the user's share of it, is full."""


@contextmanager
def plan_lock(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock. Raises ConfigError if another command works in it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = exclusive_lock(folder / ".plan.lock", wait=False)
        with lock:
            yield
    except BlockingIOError:
        raise ConfigError(f"another command works in {folder}; wait for it, or give another --folder") from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}; give another --folder") from error


class Scheduler:
    """Executes the runs of a plan. `rates` are for the estimate of the time left."""

    def __init__(
        self,
        plan: Plan,
        progress: dict[Job, Progress],
        engine: Engine,
        table: ProgressTable,
        rates: Mapping[Kind, Rate],
    ) -> None:
        self.plan, self.progress, self.engine, self.table, self.rates = plan, progress, engine, table, rates
        self.running: list[Job] = []
        self.stopping = False
        """No further run starts."""

    def execute(self) -> dict[Job, Progress]:
        """Execute what is not done, and return the progress of each run. A failed run does not stop the others.

        A stop request lets all runs save and end. A second one ends them at once.
        """
        waiting = [job for job in self.plan.jobs if self.progress[job].state != "done"]
        (self.plan.folder / "logs").mkdir(exist_ok=True)
        drawn = 0.0
        self.table.start()
        try:
            with stop_requests(self.stop):
                while self.running or (waiting and not self.stopping):
                    while waiting and len(self.running) < self.engine.slots and not self.stopping:
                        if shutil.disk_usage(self.plan.folder).free < MIN_FREE_BYTES:
                            self.report_full_disk()
                            break
                        self.begin(waiting.pop(0))
                    for ended in self.engine.poll():
                        self.end(ended)
                    if time.monotonic() - drawn >= TABLE_SECONDS:
                        drawn = time.monotonic()
                        self.table.update(self.progress, self.running, self.time_left(waiting))
                    time.sleep(POLL_SECONDS)
        finally:
            self.table.update(self.progress, self.running, "")
            self.table.close()
            self.engine.close()
        return self.progress

    def stop(self) -> None:
        """Start no further run, and ask the running ones to save and end, unless they go on without this command."""
        self.stopping = True
        if self.engine.outlives:
            self.table.event(f"{len(self.running)} submitted runs go on; the same command shows how far they are")
            self.running.clear()
            return
        self.table.event("saving and ending the runs; interrupt again to end at once")
        self.engine.stop()

    def begin(self, job: Job) -> None:
        """Start or continue a run."""
        self.engine.submit(job, self.log(job))
        self.running.append(job)
        before = self.progress[job]
        verb = f"continues after {before.steps:,} steps" if before.steps else "starts"
        if self.table.live is None:
            self.table.event(f"{verb}: {job.title}")

    def end(self, ended: Ended) -> None:
        """Take note of a run that ended."""
        job = ended.job
        self.running.remove(job)
        self.progress[job] = found = progress_of(job)
        if found.state == "done":
            if self.table.live is None:
                self.table.event(f"done: {job.title}")
            return
        # The exit status is lost if the signal that stops everything ended the fork server as well.
        if self.stopping and found.state == "unfinished":
            return
        reason = found.reason or last_line(self.log(job)) or f"its process ended with status {ended.exit_status}"
        if ended.exit_status < 0:
            reason = f"its process was killed by signal {-ended.exit_status}"
        self.progress[job] = Progress("failed", found.steps, reason, found.version)
        self.table.event(f"failed: {job.title}: {reason}; its output is in {self.log(job)}")
        if any(sign in reason for sign in FULL_DISK):
            self.report_full_disk()

    def report_full_disk(self) -> None:
        """Start no further run, and say why."""
        self.stopping = True
        self.table.event(f"the disk of {self.plan.folder} is full, so no further run starts; make room and repeat")

    def log(self, job: Job) -> Path:
        """Return the file with the output of a run."""
        return self.plan.folder / "logs" / f"{'-'.join(job.folder.parts[len(self.plan.folder.parts) :])}.log"

    def time_left(self, waiting: list[Job]) -> str:
        """Estimate the time left; empty if a rate is unknown."""
        seconds = 0.0
        for job in (*waiting, *self.running):
            rate = self.rates.get(kind_of(job))
            if rate is None:
                return ""
            steps = last_step(job.folder) if job in self.running else self.progress[job].steps
            seconds += max(0, job.config.steps - steps) / rate.steps_per_second
        seconds /= max(1, min(self.engine.slots, len(waiting) + len(self.running)))
        return f"about {duration_text(seconds)} left"


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, at most 300 characters."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines if line.startswith("marl:")]
    return (errors or lines or [""])[-1][:300]
