"""Engine that submits runs to SLURM as array jobs, through submitit. All nodes share the folder of the plan."""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from marl.config import from_yaml, to_yaml
from marl.errors import ConfigError, MarlError, MissingDependencyError
from marl.experiments.suite.engines.base import Ended
from marl.experiments.suite.plan import Job
from marl.files import write_whole

INSTALL = "pip install 'seqmarl[slurm]'"
RECORD = "slurm.json"
MAX_SUBMITTED = 1000
"""Runs of an array job; SLURM's default limit is 1001."""


class SlurmRun:
    """One run as a function for submitit. If its time ends, it goes back into the queue and continues."""

    def __init__(self, settings: str, log: str) -> None:
        self.settings, self.log = settings, log

    def __call__(self) -> int:
        """Start or continue the run, and return its exit status."""
        from marl.run import start

        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        try:
            start(from_yaml(self.settings, "the plan"), if_exists="resume")
        except MarlError as error:
            print(f"marl: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr, flush=True)
            return 2
        return 0

    def checkpoint(self) -> Any:
        """Return what submitit submits when the time of the job is over: the same run, which continues."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self)


class SlurmEngine:
    """Submits runs as array jobs, at most `slots` of which execute at the same time.

    `parameters` are those of `submitit.AutoExecutor.update_parameters`, such as {slurm_partition: cpu}. The file
    slurm.json of the plan says which job executes which run, so that a later command waits for the same jobs.
    Raises MissingDependencyError without submitit, and ConfigError without SLURM or for a wrong parameter.
    """

    outlives = True

    def __init__(self, folder: Path, parameters: Mapping[str, Any], slots: int | None = None) -> None:
        try:
            self.submitit: Any = importlib.import_module("submitit")
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"engine='slurm' needs submitit; install with: {INSTALL}") from error
        self.slots = MAX_SUBMITTED
        self.folder = folder.absolute()
        settings = {"name": f"marl-{folder.name}", "cpus_per_task": 1, "timeout_min": 24 * 60, **parameters}
        try:
            self.executor = self.submitit.AutoExecutor(self.folder / "submitit", cluster="slurm")
            self.executor.update_parameters(**settings, slurm_array_parallelism=slots or 256)
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"engine='slurm' finds no SLURM on this machine: {error}") from error
        except (NameError, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"slurm={dict(parameters)!r} does not fit: {error}") from error
        self.waiting: list[tuple[Job, Path]] = []
        self.submitted: dict[str, tuple[Job, Any]] = {}

    def submit(self, job: Job, log: Path) -> None:
        """Submit a run with the next call of `poll`, unless a job of an earlier command executes it."""
        number = self._record().get(str(job.folder))
        if number is not None:
            earlier = self.submitit.SlurmJob(self.executor.folder, number)
            if not earlier.done():
                self.submitted[number] = (job, earlier)
                return
        self.waiting.append((job, log.absolute()))

    def poll(self) -> Sequence[Ended]:
        """Submit what waits as one array job, and return the runs that have ended since the last call."""
        if self.waiting:
            with self.executor.batch():
                jobs = [self.executor.submit(SlurmRun(to_yaml(job.config), str(log))) for job, log in self.waiting]
            for (job, _), made in zip(self.waiting, jobs, strict=True):
                self.submitted[made.job_id] = (job, made)
            record = self._record() | {str(job.folder): number for number, (job, _) in self.submitted.items()}
            write_whole(self.folder / RECORD, json.dumps(record, indent=1) + "\n")
            self.waiting = []
        ended = []
        for number, (job, made) in list(self.submitted.items()):
            if made.done():
                del self.submitted[number]
                ended.append(Ended(job, self._exit_status(made)))
        return ended

    def _exit_status(self, made: Any) -> int:
        """Return the exit status of a job that has ended; 1 if SLURM ended it."""
        try:
            return int(made.result())
        except Exception as error:
            print(f"SLURM job {made.job_id} ended as {made.state}: {error}", file=sys.stderr)
            return 1

    def _record(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        return {}

    def stop(self) -> None:
        """Leave the jobs to SLURM. `scancel` ends them."""

    def close(self) -> None:
        """Leave the jobs to SLURM."""
