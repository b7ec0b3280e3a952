"""The console: a live dashboard on a terminal, plain lines anywhere else."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from marl.tracking.tensorboard import TAGS

REFRESH_SECONDS = 0.25
"""The dashboard is drawn at most this often."""

LINE_SECONDS = 2.0
"""Plain lines without an evaluation come at most this often."""

HISTORY_POINTS = 256
"""Points that a sparkline remembers, whatever the length of the run."""

OTHER_LINES = 3
"""Lines for tags that the dashboard has no place for."""

SHARES = (
    ("env", "speed/env_fraction", "█", "cyan"),
    ("act", "speed/act_fraction", "▓", "green"),
    ("learn", "speed/learn_fraction", "▒", "magenta"),
    ("other", "speed/other_fraction", "░", "bright_black"),
)
"""Where time goes: name, tag, the character and the color of its piece of the bar."""

COLUMNS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        ("KL", "policy/kl"),
        ("clip fraction", "policy/clip_fraction"),
        ("entropy", "policy/entropy"),
        ("epochs", "policy/epochs"),
        ("learning rate", "policy/learning_rate"),
    ),
    (
        ("explained var.", "value/explained_variance"),
        ("value mean", "value/mean"),
        ("return mean", "value/norm_mean"),
        ("return std", "value/norm_std"),
        ("gradient norm", "gradient/norm"),
    ),
    (
        ("policy loss", "loss/policy"),
        ("value loss", "loss/value"),
        ("total loss", "loss/total"),
    ),
)
"""Three columns of labels and tags."""

LINE: tuple[tuple[str, str], ...] = (
    ("return", "episode/return"),
    ("success", "episode/success"),
    ("value loss", "loss/value"),
    ("KL", "policy/kl"),
    ("clip", "policy/clip_fraction"),
    ("explained var.", "value/explained_variance"),
    ("steps/s", "speed/steps_per_second"),
)
"""Labels and tags of a plain line."""


def number(value: float) -> str:
    """Four significant digits, without an exponent from a thousandth to a million."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    rounded = float(f"{value:.3e}")
    if 1e-3 <= abs(rounded) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:.{digits}f}"
    return f"{value:.1e}"


def steps(value: float) -> str:
    """A number of steps: 950, 12.5k, 4.80M, 1.20B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{letter}"
    return f"{int(value)}"


def duration(seconds: float) -> str:
    """0:58, 1:02:33 or 2 d 03:12."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if math.isfinite(fraction) else str(fraction)


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` bars, the mean of equally many finite values each, from the lowest to the highest."""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)] if count else []
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    low = min(means, default=0.0)
    spread = max(means, default=0.0) - low
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(7, int(8 * (mean - low) / spread))] if spread else bars[3] for mean in means)


class History:
    """The course of one tag in at most HISTORY_POINTS means over equally many finite values."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._open: list[float] = []
        self._span = 1

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self._open.append(value)
        if len(self._open) < self._span:
            return
        self._points.append(sum(self._open) / self._span)
        self._open = []
        if len(self._points) == HISTORY_POINTS:
            self._points = [(a + b) / 2 for a, b in zip(self._points[::2], self._points[1::2], strict=True)]
            self._span *= 2

    def points(self) -> list[float]:
        return self._points + ([sum(self._open) / len(self._open)] if self._open else [])


class Board:
    """What the console knows of a run; rich draws it as the dashboard."""

    def __init__(self, title: str, total_steps: int) -> None:
        self.title = title
        self.total_steps = total_steps
        self.step = 0
        self.latest: dict[str, float] = {}
        self.best: tuple[float, int] | None = None
        self.histories = {tag: History() for tag in ("episode/return", "eval/return", "test/return")}
        self._started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque(maxlen=100)

    def update(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        self.latest.update({tag: float(value) for tag, value in values.items()})
        for tag, history in self.histories.items():
            if tag in values:
                history.add(self.latest[tag])
        if "eval/return" in values:
            self.update_best(step, self.latest["eval/return"])
        self._marks.append((time.monotonic(), step))

    def update_best(self, step: int, score: float) -> None:
        """Keep the best score, of equal ones the last."""
        if score >= (self.best[0] if self.best else -math.inf):
            self.best = (score, step)

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.total_steps) if self.total_steps else 1.0

    def seconds_left(self) -> float | None:
        """By the pace of the last hundred calls, pauses for evaluation included; None where it is not known."""
        if self.step >= self.total_steps:
            return 0.0
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._marks[-1]
        if last_step > first_step:
            pace = (last_time - first_time) / (last_step - first_step)
        elif self.latest.get("speed/steps_per_second", 0.0) > 0:
            pace = 1 / self.latest["speed/steps_per_second"]
        else:
            return None
        return max(0.0, (self.total_steps - self.step) * pace - (time.monotonic() - last_time))

    def line(self, values: Mapping[str, float]) -> str:
        """One plain line about `values`, in ASCII."""
        parts = [f"{steps(self.step):>6} of {steps(self.total_steps)} ({percent(self.fraction)})"]
        if "eval/return" in values:
            parts.append(
                f"EVALUATION {number(values['eval/return'])}{_interval(values)}{_by_type(values, 'eval/return')}"
            )
            if self.best:
                parts.append(f"best {number(self.best[0])} at {steps(self.best[1])}")
            if "test/return" in values:
                parts.append(f"TEST {number(values['test/return'])}{_interval(values, 'test')}")
            if "eval/success" in values:
                parts.append(f"success {percent(values['eval/success'])}")
        for label, tag in LINE:
            if tag in values:
                shown = percent(values[tag]) if tag == "episode/success" else number(values[tag])
                parts.append(f"{label} {shown}{_by_type(values, tag)}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, 120)
        body = Group(*self._progress(width - 4), Text(), *self._returns(width - 4), Text(), *self._details(width - 4))
        title = Text(self.title, style="bold")
        title.truncate(width - 6, overflow="ellipsis")  # rich would widen the panel for a longer one
        yield Panel(body, title=title, title_align="left", border_style="blue", width=width)

    def _progress(self, width: int) -> Iterator[RenderableType]:
        left = self.seconds_left() if self._marks else None
        head = Table.grid(expand=True, padding=(0, 2, 0, 0))
        head.add_column(ratio=1)
        for _ in range(3):
            head.add_column(justify="right", no_wrap=True)
        head.add_row(
            ProgressBar(total=1.0, completed=self.fraction, complete_style="cyan", finished_style="green"),
            Text(percent(self.fraction), style="bold"),
            f"{steps(self.step)} of {steps(self.total_steps)} steps",
            Text(f"{'?' if left is None else duration(left)} left", style="bold"),
        )
        yield head
        facts = [("elapsed", duration(time.monotonic() - self._started))]
        if "speed/steps_per_second" in self.latest:
            facts.insert(0, ("steps/s", number(round(self.latest["speed/steps_per_second"]))))
        if "speed/memory_mb" in self.latest:
            facts.append(("memory", f"{self.latest['speed/memory_mb'] / 1000:.1f} GB"))
        yield _facts(facts)
        if any(tag in self.latest for _, tag, _, _ in SHARES):
            yield self._shares(width)

    def _shares(self, width: int) -> Text:
        """A bar over the whole width, then each share's name and percentage."""
        shares = [(name, self.latest.get(tag, 0.0), mark, color) for name, tag, mark, color in SHARES]
        legend = Text()
        for name, share, mark, color in shares:
            legend.append(f"  {mark} ", style=color).append(f"{name} ", style="dim").append(percent(share))
        bar = Text(no_wrap=True, overflow="crop")
        room = max(8, width - legend.cell_len)
        drawn, total = 0, 0.0
        for _, share, mark, color in shares:
            total += share if math.isfinite(share) else 0.0
            length = max(0, round(room * min(1.0, total)) - drawn)
            bar.append(mark * length, style=color)
            drawn += length
        bar.append(" " * (room - drawn))
        return bar.append_text(legend)

    def _returns(self, width: int) -> Iterator[RenderableType]:
        rows = [("Evaluation", "eval", self._evaluation()), ("Episodes", "episode", self._episodes())]
        if "test/return" in self.latest:
            rows.insert(1, ("Test", "test", self._outcome("test")))
        for label, prefix, facts in rows:
            value = self.latest.get(f"{prefix}/return")
            row = Text(no_wrap=True, overflow="ellipsis").append(f"{label:<11}", style="bold cyan")
            if value is None:
                yield row.append("none yet", style="dim")
                continue
            row.append(number(value), style="bold" if math.isfinite(value) else "bold red")
            row.append(_interval(self.latest, prefix))
            row.pad_right(max(1, 38 - row.cell_len))
            row.append(sparkline(self.histories[f"{prefix}/return"].points(), width - row.cell_len), style="green")
            yield row
            yield Text(" " * 11).append_text(_facts(facts))

    def _evaluation(self) -> list[tuple[str, str]]:
        best = [("best", f"{number(self.best[0])} at {steps(self.best[1])}")] if self.best else []
        return best + self._outcome("eval")

    def _episodes(self) -> list[tuple[str, str]]:
        count = self.latest.get("episode/count")
        ended = [] if count is None else [("ended", number(count))]
        return ended + self._outcome("episode")

    def _outcome(self, prefix: str) -> list[tuple[str, str]]:
        known = []
        if f"{prefix}/length" in self.latest:
            known.append(("length", number(self.latest[f"{prefix}/length"])))
        if f"{prefix}/success" in self.latest:
            known.append(("success", percent(self.latest[f"{prefix}/success"])))
        return known

    def _details(self, width: int) -> Iterator[RenderableType]:
        table = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for _ in COLUMNS:
            table.add_column(ratio=1)
        table.add_row(*(self._column(column) for column in COLUMNS))
        yield table
        groups: dict[str, list[tuple[str, str]]] = {}
        for tag in sorted(self.latest.keys() - TAGS.keys()):
            prefix, _, name = tag.rpartition("/")
            groups.setdefault(prefix, []).append((name, number(self.latest[tag])))
        for prefix, facts in list(groups.items())[:OTHER_LINES]:
            line = Text(no_wrap=True).append(f"{prefix or 'more':<10} ", style="bold cyan").append_text(_facts(facts))
            line.truncate(width, overflow="ellipsis")
            yield line

    def _column(self, column: Sequence[tuple[str, str]]) -> Table:
        table = Table.grid(expand=True, padding=(0, 1, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        for label, tag in column:
            value = self.latest.get(tag)
            style = "" if value is None or math.isfinite(value) else "bold red"
            table.add_row(label, Text("-" if value is None else number(value), style=style))
        return table


def _by_type(values: Mapping[str, float], tag: str) -> str:
    """The values of agent types, ` (prey 5, hunter 50)`; nothing where there are none."""
    found = [f"{name.removeprefix(f'{tag}/')} {number(x)}" for name, x in values.items() if name.startswith(f"{tag}/")]
    return f" ({', '.join(found)})" if found else ""


def _interval(values: Mapping[str, float], prefix: str = "eval") -> str:
    low, high = (values.get(f"{prefix}/return_{end}", math.nan) for end in ("low", "high"))
    return "" if math.isnan(low) or math.isnan(high) else f" [{number(low)}, {number(high)}]"


def _facts(facts: Sequence[tuple[str, str]]) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for index, (label, value) in enumerate(facts):
        text.append("   " if index else "").append(f"{label} ", style="dim").append(value)
    return text


class PipeSafeConsole(Console):
    """A console that falls silent where its reader has gone, instead of ending the process."""

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()


class ConsoleTracker:
    """The run on stdout: a dashboard on a terminal, else a plain line every few seconds.

    Both are drawn by `log` alone, without a thread, so that an environment's process can be forked at any
    time. A full disk behind stdout, or a reader that has gone, never stops training.
    """

    def __init__(self, title: str, total_steps: int, console: Console | None = None) -> None:
        self._console = console or PipeSafeConsole(force_terminal=sys.stdout.isatty())
        self._board = Board(title, total_steps)
        self._drawn = -math.inf
        self._waiting = ""
        self._live: Live | None = None
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        if terminal and self._console.encoding.lower().startswith("utf"):
            self._live = Live(self._board, console=self._console, auto_refresh=False)

    def restore_best(self, log: Path) -> None:
        """Take the best evaluation of what a resumed run logged before, as JsonlTracker writes it."""
        for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
            row = json.loads(line)
            if row.get("eval/return") is not None:
                self._board.update_best(row["step"], row["eval/return"])

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Nothing: the title says what runs."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._board.update(step, values)
        with suppress(OSError):
            if self._live:
                self._draw(self._live)
            else:
                self._print_line(values)

    def text(self, step: int, tag: str, value: str) -> None:
        """Nothing: texts are for TensorBoard and the log."""

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Nothing: a terminal shows no pictures."""

    def message(self, text: str) -> None:
        """Print a line, above the dashboard where there is one. A signal handler may call it, too."""
        with suppress(OSError, RuntimeError):  # RuntimeError: the signal came within another print
            self._print(text)

    def close(self) -> None:
        """Leave the last state on the screen, or print the last line if it is still due."""
        with suppress(OSError):
            if self._live:
                self._live.stop()
            elif self._waiting:
                self._print(self._waiting)
        self._waiting = ""

    def _draw(self, live: Live) -> None:
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        live.start()
        live.refresh()

    def _print_line(self, values: Mapping[str, float]) -> None:
        if math.isinf(self._drawn):
            self._print(f"{self._board.title}: {steps(self._board.total_steps)} steps")
        self._waiting = self._board.line(values)
        now = time.monotonic()
        if "eval/return" in values or now - self._drawn >= LINE_SECONDS:
            self._print(self._waiting)
            self._waiting = ""
            self._drawn = now

    def _print(self, text: str) -> None:
        encoding = self._console.encoding
        readable = text.encode(encoding, "replace").decode(encoding)
        self._console.print(readable, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._console.file.flush()
