"""Console: a live dashboard on a terminal, plain lines anywhere else."""

import json
import logging
import math
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.filesize import pick_unit_and_suffix
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from marl.tracking.base import Tracker
from marl.tracking.metrics import LINE_TAGS, METRICS, Metric

REFRESH_SECONDS = 0.25
"""Shortest time between two drawings of the dashboard."""

LINE_SECONDS = 2.0
"""Shortest time between two plain lines without an evaluation."""

PACE_SECONDS = 600.0
"""Time over which the pace is averaged to estimate the time left."""

CELL_WIDTH = 26
"""Characters of a label and its value on the dashboard."""

SCORES = {"eval": "Evaluation", "test": "Test", "episode": "Episodes"}
"""Prefixes of tags with a return, and their headings on the dashboard."""


def number(value: float) -> str:
    """Format with four significant digits, without an exponent below a million."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def steps(value: float) -> str:
    """Format a number of steps: 950, 12.50k, 4.80M, 1.20B."""
    unit, suffix = pick_unit_and_suffix(int(value), ["", "k", "M", "B"], 1000)
    return f"{value / unit:.2f}{suffix}" if unit > 1 else f"{int(value)}"


def duration(seconds: float) -> str:
    """Format seconds: 0:00:58, 2 days, 3:12:00."""
    return str(timedelta(seconds=int(seconds)))


def percent(fraction: float) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * fraction:.0f} %" if math.isfinite(fraction) else str(fraction)


def sparkline(values: np.ndarray, width: int) -> str:
    """Return at most `width` bars. Each is the mean of an equal share of the values (n,), from lowest to highest."""
    count = max(0, min(width, len(values)))
    if not count:
        return ""
    means = np.array([share.mean() for share in np.array_split(values, count)])
    spread = means.max() - means.min()
    heights = np.minimum(7, 8 * (means - means.min()) / spread).astype(int) if spread else np.full(count, 3)
    return "".join("▁▂▃▄▅▆▇█"[height] for height in heights)


class Board:
    """State of a run as the console shows it. rich draws it as the dashboard."""

    def __init__(self, title: str, total_steps: int) -> None:
        self.title = title
        self.total_steps = total_steps
        self.latest: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.histories = {prefix: array("d") for prefix in SCORES}
        self.progress = Progress(
            BarColumn(None),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            auto_refresh=False,
            speed_estimate_period=PACE_SECONDS,
            get_time=lambda: time.monotonic(),
        )
        self.progress.add_task("", total=total_steps, text="")
        (self.task,) = self.progress.tasks

    @property
    def step(self) -> int:
        """Environment steps so far."""
        return int(self.task.completed)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step."""
        first = not self.latest
        self.latest.update({tag: float(value) for tag, value in values.items()})
        for prefix, history in self.histories.items():
            if math.isfinite(value := float(values.get(f"{prefix}/return", math.nan))):
                history.append(value)
        if "eval/return" in values:
            self.update_best(step, self.latest["eval/return"])
        if first:  # a resumed run did not make these steps now
            self.progress.reset(self.task.id, completed=step)
        else:
            self.progress.update(self.task.id, completed=step)

    def update_best(self, step: int, score: float) -> None:
        """Keep the best score, and the latest of equal scores."""
        if score >= (self.best[0] if self.best else -math.inf):
            self.best = (score, step)

    def seconds_left(self) -> float | None:
        """Estimate the time left in seconds from the recent pace, evaluation included. None if it is unknown."""
        if self.step >= self.total_steps:
            return 0.0
        pace = self.task.speed or self.latest.get("speed/steps_per_second", 0.0)
        return (self.total_steps - self.step) / pace if pace > 0 else None

    def steps_text(self) -> str:
        """Return the steps so far and in total. The last iteration may go beyond the total."""
        if self.step > self.total_steps:
            return f"{steps(self.step)} steps ({steps(self.total_steps)} requested)"
        return f"{steps(self.step)} of {steps(self.total_steps)} steps"

    def line(self, values: Mapping[str, float]) -> str:
        """Return one plain line about `values`, in ASCII."""
        parts = [f"{self.steps_text():>6} ({percent(min(1.0, self.step / self.total_steps))})"]
        if "eval/return" in values:
            parts.append(f"VALIDATION {_score(values, 'eval')}{_success(values, 'eval')}")
            if self.best:
                parts.append(f"best {number(self.best[0])} at {steps(self.best[1])}")
            if "test/return" in values:
                parts.append(f"TEST {_score(values, 'test')}{_success(values, 'test')}")
        for tag in LINE_TAGS:
            if tag in values:
                split = "training " if tag.startswith("episode/") else ""
                parts.append(f"{split}{METRICS[tag].label} {_format(METRICS[tag], values[tag])}{_by_type(values, tag)}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width - 4, console.height - 3
        head = Group(self._progress(), *self._scores(width))
        cells = self._cells(width, height - len(console.render_lines(head, options.update(width=width))))
        title = Text(self.title, style="bold")
        title.truncate(width - 2, overflow="ellipsis")  # rich would widen the panel for a longer one
        yield Panel(Group(head, cells), title=title, title_align="left", border_style="blue")

    def _progress(self) -> RenderableType:
        left = self.seconds_left()
        self.task.fields["text"] = f"{self.steps_text()}, {'?' if left is None else duration(left)} left"
        return self.progress.make_tasks_table([self.task])

    def _scores(self, width: int) -> Iterator[RenderableType]:
        """Yield two lines for each kind of episode: the return and its course, then other results."""
        for prefix, heading in SCORES.items():
            line = Text(f"{heading:<11}", style="bold cyan", no_wrap=True, overflow="ellipsis")
            if f"{prefix}/return" not in self.latest:
                if prefix != "test":
                    yield line.append("none yet", style="dim")
                continue
            line.append(_score(self.latest, prefix), style="bold default").pad_right(max(1, 38 - line.cell_len))
            room = max(0, width - line.cell_len)
            yield line.append(sparkline(np.array(self.histories[prefix]), room), style="green")
            rest = {name: self.latest.get(f"{prefix}/{name}") for name in ("success", "length")}
            results = (
                [f"best {number(self.best[0])} at {steps(self.best[1])}"] if prefix == "eval" and self.best else []
            )
            results += [f"success {percent(rest['success'])}"] if rest["success"] is not None else []
            results += [f"length {number(rest['length'])}"] if rest["length"] is not None else []
            yield Text(" " * 11 + "   ".join(results), no_wrap=True, overflow="ellipsis")

    def _cells(self, width: int, rows: int) -> RenderableType:
        """Return labels and values in as many columns as fit. Tags of agents follow those of the table."""
        known = [(metric.label, tag) for tag, metric in METRICS.items() if metric.label and tag in self.latest]
        others = [(tag, tag) for tag in sorted(self.latest.keys() - METRICS.keys())]
        cells = [_cell("elapsed", duration(self.task.elapsed or 0))]
        for label, tag in [pair for pair in known + others if "/return" not in pair[1]]:
            value = self.latest[tag]
            cells.append(_cell(label, _format(METRICS.get(tag), value), "" if math.isfinite(value) else "bold red"))
        columns = max(1, (width + 2) // (CELL_WIDTH + 2))
        return Columns(cells[: columns * max(1, rows)], width=CELL_WIDTH, padding=(0, 2))


def _cell(label: str, value: str, style: str = "") -> Text:
    """Return a label and a value, CELL_WIDTH characters wide."""
    text = Text(label, style="dim", no_wrap=True)
    text.truncate(CELL_WIDTH - 1 - len(value), overflow="ellipsis", pad=True)
    return text.append(f" {value}", style=style)


def _format(metric: Metric | None, value: float) -> str:
    return percent(value) if metric is not None and metric.unit == "fraction" else number(value)


def _score(values: Mapping[str, float], prefix: str) -> str:
    """Return a return with its interval and the returns of agent types: `30 [20, 36] (prey 5, hunter 50)`."""
    low, high = (values.get(f"{prefix}/return_{end}", math.nan) for end in ("low", "high"))
    interval = "" if math.isnan(low) or math.isnan(high) else f" [{number(low)}, {number(high)}]"
    return f"{number(values[f'{prefix}/return'])}{interval}{_by_type(values, f'{prefix}/return')}"


def _success(values: Mapping[str, float], prefix: str) -> str:
    """Return ` success 80 %`, or nothing if the task reports none."""
    return f" success {percent(values[f'{prefix}/success'])}" if f"{prefix}/success" in values else ""


def _by_type(values: Mapping[str, float], tag: str) -> str:
    """Return the values of agent types, ` (prey 5, hunter 50)`, or nothing if there are none."""
    found = [f"{name.removeprefix(f'{tag}/')} {number(x)}" for name, x in values.items() if name.startswith(f"{tag}/")]
    return f" ({', '.join(found)})" if found else ""


class PipeSafeConsole(Console):
    """Console that goes silent when its reader is gone, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        """Ignore the closed pipe."""
        with suppress(SystemExit):
            super().on_broken_pipe()


class ConsoleTracker(Tracker):
    """Run on stdout: a dashboard on a terminal, else a plain line every few seconds.

    `log` alone draws both, without a thread, so that a worker process can be forked at any time. A full disk behind
    stdout, or a reader that is gone, does not stop training.
    """

    def __init__(self, title: str, total_steps: int, console: Console | None = None) -> None:
        self._console = console or PipeSafeConsole(force_terminal=sys.stdout.isatty())
        self._board = Board(title, total_steps)
        self._drawn = -math.inf
        self._pending = ""
        self._live: Live | None = None
        self._log_streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        """Handlers of the root logger that print above the dashboard, and where they printed before."""
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if terminal and self._console.encoding.lower().startswith("utf"):
            self._live = Live(self._board, console=self._console, auto_refresh=False)

    def restore_best(self, log: Path) -> None:
        """Read the best evaluation from the `metrics.jsonl` of a resumed run."""
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            row = json.loads(line)
            if row.get("eval/return") is not None:
                self._board.update_best(row["step"], row["eval/return"])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Draw the dashboard, or print a line, if one is due."""
        self._board.update(step, values)
        with suppress(OSError):
            if self._live:
                self._draw(self._live)
            else:
                self._print_line(values)

    def message(self, text: str) -> None:
        """Print a line, above the dashboard if there is one. A signal handler may call it."""
        with suppress(OSError, RuntimeError):  # RuntimeError: the signal came within another print
            self._print(text)

    def close(self) -> None:
        """Leave the last state on the screen, or print the last line if it is still due."""
        with suppress(OSError):
            if self._live:
                for handler, stream in self._log_streams:
                    handler.setStream(stream)
                self._live.stop()
            elif self._pending:
                self._print(self._pending)
        self._pending = ""

    def _draw(self, live: Live) -> None:
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        if not live.is_started:
            live.start()  # which puts a proxy that prints above the dashboard in the place of sys.stderr
            handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
            self._log_streams = [(each, each.stream) for each in handlers if each.stream.isatty()]
            for handler, _ in self._log_streams:
                handler.setStream(sys.stderr)
        live.refresh()

    def _print_line(self, values: Mapping[str, float]) -> None:
        if math.isinf(self._drawn):
            self._print(f"{self._board.title}: {steps(self._board.total_steps)} steps")
        self._pending = self._board.line(values)
        now = time.monotonic()
        if "eval/return" in values or now - self._drawn >= LINE_SECONDS:
            self._print(self._pending)
            self._pending = ""
            self._drawn = now

    def _print(self, text: str) -> None:
        encoding = self._console.encoding
        readable = text.encode(encoding, "replace").decode(encoding)
        self._console.print(readable, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._console.file.flush()
