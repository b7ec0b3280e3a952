"""Engine that executes runs as processes of this machine."""

import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from marl.config import to_yaml
from marl.experiments.suite.engines.base import Ended
from marl.experiments.suite.plan import Job
from marl.experiments.suite.worker import work

END_SECONDS = 10.0
"""Time that a run has to end when everything is closed, before it is killed."""


class LocalEngine:
    """Runs `slots` processes at a time. They are forked from a server that has imported what all of them need.

    A run that outlives this process saves and ends.
    """

    outlives = False

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["marl.experiments.suite.worker"])
        self.running: dict[ForkServerProcess, tuple[Job, Connection]] = {}

    def submit(self, job: Job, log: Path) -> None:
        """Start or continue a run."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work, args=(to_yaml(job.config), str(log), theirs), name=job.title)
        process.start()
        theirs.close()
        self.running[process] = (job, ours)

    def poll(self) -> Sequence[Ended]:
        """Return the runs that have ended since the last call."""
        ended = []
        for process in [each for each in self.running if each.exitcode is not None]:
            job, pipe = self.running.pop(process)
            ended.append(Ended(job, process.exitcode or 0))
            pipe.close()
            process.close()
        return ended

    def stop(self) -> None:
        """Ask all runs to save and end, as SIGTERM does."""
        for process in self.running:
            with suppress(OSError):
                process.terminate()

    def close(self) -> None:
        """End all runs."""
        self.stop()
        for process in self.running:
            process.join(END_SECONDS)
            process.kill()
