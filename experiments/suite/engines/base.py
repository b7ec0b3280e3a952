"""Interface of an engine, which executes runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from marl.experiments.suite.plan import Job


@dataclass(frozen=True)
class Ended:
    """A run whose process has ended."""

    job: Job
    exit_status: int
    """Zero if the run ended by itself or was stopped, else an error, which the log names."""


class Engine(Protocol):
    """Executes runs. A run's own folder says how far it came; the engine only starts and stops processes."""

    slots: int
    """Runs that are submitted at the same time."""
    outlives: bool
    """Runs go on when this command ends."""

    def submit(self, job: Job, log: Path) -> None:
        """Start or continue a run. Its output is appended to `log`."""
        ...

    def poll(self) -> Sequence[Ended]:
        """Return the runs that have ended since the last call, without waiting."""
        ...

    def stop(self) -> None:
        """Ask all runs to save and end."""
        ...

    def close(self) -> None:
        """End everything that is left, at once."""
        ...
