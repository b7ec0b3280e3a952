"""Progress of a plan on the console: one table on a terminal, else a line for each event."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from marl.experiments.suite.plan import Job, Plan, Progress

TAIL_BYTES = 16_384
"""Bytes at the end of a log that hold its last line."""


def last_step(folder: Path) -> int:
    """Return the environment steps in the last complete line of metrics.jsonl, or 0."""
    with suppress(OSError, ValueError, KeyError, IndexError), open(folder / "metrics.jsonl", "rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        return int(json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])["step"])
    return 0


class ProgressTable:
    """Rows are tasks or settings, columns are agents, and a cell counts the runs that are done."""

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self.plan = plan
        self.console = console or Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def start(self) -> None:
        """Begin to draw."""
        if self.live is not None:
            self.live.start()

    def event(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, progress: Mapping[Job, Progress], running: Sequence[Job], left: str) -> None:
        """Draw the table if this is a terminal. `left` is the estimate of the time left."""
        if self.live is not None:
            self.live.update(self.table(progress, running, left), refresh=True)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self.live is not None:
            self.live.stop()

    def table(self, progress: Mapping[Job, Progress], running: Sequence[Job], left: str = "") -> Table:
        """Return the table."""
        rows = list(dict.fromkeys(job.row for job in self.plan.jobs))
        columns = list(dict.fromkeys(job.column for job in self.plan.jobs))
        done = sum(each.state == "done" for each in progress.values())
        caption = f"{done} of {len(self.plan.jobs)} runs done" + (f", {left}" if left else "")
        table = Table("", *columns, title=self.plan.name, caption=caption)
        for row in rows:
            cells = []
            for column in columns:
                jobs = [job for job in self.plan.jobs if (job.row, job.column) == (row, column)]
                cells.append(cell(jobs, progress, running) if jobs else "")
            table.add_row(row, *cells)
        return table


def cell(jobs: Sequence[Job], progress: Mapping[Job, Progress], running: Sequence[Job]) -> str:
    """Return the state of the runs of one cell, as `2 of 5, 1 failed, running 43 %`."""
    states = [progress[job].state for job in jobs]
    parts = [f"{states.count('done')} of {len(jobs)}"]
    if failed := sum(state == "failed" and job not in running for state, job in zip(states, jobs, strict=True)):
        parts.append(f"[red]{failed} failed[/]")
    mine = [job for job in jobs if job in running]
    if mine:
        shares = [f"{100 * min(1.0, last_step(job.folder) / job.config.steps):.0f} %" for job in mine]
        parts.append(f"[cyan]running {', '.join(shares)}[/]")
    return ", ".join(parts)
