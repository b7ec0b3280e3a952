"""The console: what it shows, how often, and what it survives."""

import errno
import io
import logging
import math
import os

import numpy as np
import pytest
from rich.console import Console

from marl.tracking import console as dashboard
from marl.tracking.console import (
    Board,
    ConsoleTracker,
    PipeSafeConsole,
    duration,
    number,
    percent,
    sparkline,
    steps,
)
from marl.tracking.metrics import METRICS


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    return now


SCALARS = [tag for tag, metric in METRICS.items() if metric.unit not in ("text", "picture")]
ITERATION = {
    tag: 0.25 if tag.endswith("fraction") else 4980.3 for tag in SCALARS if tag[:5] not in ("eval/", "test/")
} | {
    "gradient/norm": math.inf,
    "loss/value": math.nan,
}
EVALUATION = {"eval/return": 5234.0, "eval/return_low": 5012.0, "eval/return_high": 5432.5, "eval/success": 0.8}


def plain(terminal: bool = False) -> tuple[ConsoleTracker, io.StringIO]:
    out = io.StringIO()
    return ConsoleTracker("mat", 1000, Console(file=out, force_terminal=terminal, width=80, color_system=None)), out


def test_plain_lines_are_the_first_the_evaluations_the_last_and_one_in_two_seconds(clock):
    tracker, out = plain()
    for step in range(10, 101, 10):
        tracker.log(step, ITERATION | (EVALUATION if step == 40 else {}))
        clock[0] += 0.6
    tracker.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "mat: 1.00k steps"
    assert [int(line.split()[0]) for line in lines[1:]] == [10, 40, 80, 100]
    assert "VALIDATION 5234 [5012, 5432] success 80 %" in lines[2]
    assert "best 5234 at 40" in lines[2]
    assert out.getvalue().isascii()
    assert "\x1b" not in out.getvalue()


def test_a_last_line_that_was_printed_is_not_printed_again(clock):
    tracker, out = plain()
    tracker.log(10, ITERATION)
    clock[0] += 5
    tracker.log(20, ITERATION)
    tracker.close()
    tracker.close()
    assert len(out.getvalue().splitlines()) == 3


def test_a_dumb_terminal_and_one_without_unicode_get_plain_lines(monkeypatch):
    raw = io.BytesIO()
    latin = io.TextIOWrapper(raw, encoding="latin-1")
    tracker = ConsoleTracker("mat", 10, Console(file=latin, force_terminal=True))
    tracker.message("→ done")
    tracker.log(1, ITERATION)
    assert b"? done" in raw.getvalue()
    assert b"return" in raw.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    tracker, out = plain(terminal=True)
    tracker.log(1, ITERATION)
    assert out.getvalue().isascii()


def test_color_in_the_environment_does_not_make_a_pipe_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ConsoleTracker("mat", 10).log(1, ITERATION)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("width", "height"), [(60, 20), (80, 24), (200, 50)])
@pytest.mark.parametrize("values", [{}, ITERATION, EVALUATION, ITERATION | EVALUATION], ids=["none", "i", "e", "both"])
def test_the_dashboard_fits(width, height, values):
    board = Board("a title " * 30, 10_000_000)
    own = {f"prefix{index}/some_long_name": 1.0 for index in range(9)} | {f"p/name{index}": 1e7 for index in range(99)}
    for step in range(0, 5_000_000, 50_000):
        board.update(step, values | own)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    lines = ["".join(segment.text for segment in line) for line in console.render_lines(board)]
    assert len(lines) < height
    assert all(len(line.rstrip()) <= width for line in lines)
    text = "\n".join(lines)
    assert ("Evaluation 5234 [5012, 5432]" in text) == ("eval/return" in values)
    assert ("best 5234 at 4.95M   success 80 %" in text) == ("eval/return" in values)
    assert text.count("none yet") == 2 - ("eval/return" in values) - ("episode/return" in values)
    assert "50% 4.95M of 10.00M steps" in text
    assert ("nan" in text) == ("inf" in text) == ("loss/value" in values)
    for label in ("KL", "entropy", "value loss", "explained var.", "gradient norm"):
        assert (label in text) == ("loss/value" in values), label
    assert ("p/name98" in text) == (width == 200)


def test_a_terminal_is_drawn_at_most_four_times_a_second(clock):
    tracker, out = plain(terminal=True)
    for step in range(101):
        tracker.log(step, ITERATION)
        clock[0] += 0.01
    draws = out.getvalue().count("─ mat ─")
    assert 3 <= draws <= 6
    tracker.close()
    assert "100 of 1.00k" in out.getvalue().rpartition("─ mat ─")[2]
    assert out.getvalue().endswith("\x1b[?25h")


def test_messages_are_printed_in_both_modes():
    for terminal in (False, True):
        tracker, out = plain(terminal)
        tracker.message("saved [bold]x[/bold] :smile:")
        tracker.log(1, ITERATION)
        tracker.message("y" * 200)
        tracker.text(12_345, "sample", "\nfirst\nsecond")
        tracker.close()
        assert "saved [bold]x[/bold] :smile:" in out.getvalue()
        assert "y" * 200 in out.getvalue()
        assert "first" not in out.getvalue()


class BrokenOutput(io.StringIO):
    def __init__(self, error: int) -> None:
        super().__init__()
        self.error = error

    def write(self, *_):
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_a_console_that_cannot_be_written_to_stops_nothing(monkeypatch, terminal, error):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    tracker = ConsoleTracker("mat", 10, PipeSafeConsole(file=BrokenOutput(error), force_terminal=terminal))
    tracker.message("x")
    tracker.log(1, ITERATION | EVALUATION)
    tracker.close()


def test_a_line_tells_returns_by_agent_type_and_the_score_on_test_seeds():
    values = {"episode/return": 27.5, "episode/return/prey": 5.0, "episode/return/hunter": 50.0}
    values |= {"eval/return": 30.0, "eval/return/prey": 6.0, "test/return": 28.0}
    values |= {"test/return_low": 20.0, "test/return_high": 36.0}
    board = Board("run", 100)
    board.update(10, values)
    line = board.line(values)
    assert "training return 27.5 (prey 5, hunter 50)" in line
    assert "VALIDATION 30 (prey 6)" in line
    assert "TEST 28 [20, 36]" in line


def test_the_best_evaluation_is_the_last_of_the_highest_that_are_numbers():
    board = Board("x", 100)
    for step, value in enumerate([-5.0, math.nan, 3.0, 3.0, 2.0]):
        board.update(step, {"eval/return": value})
        board.update(step, {"loss/value": 1.0})
    assert board.best == (3.0, 3)


def test_a_resumed_run_remembers_its_best_evaluation(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"step": 1, "eval/return": 9.5}\n{"step": 2, "loss/value": 1.0}\n{"step": 3, "eval/return": null}\n'
    )
    out = io.StringIO()
    tracker = ConsoleTracker("mat", 10, PipeSafeConsole(file=out))
    tracker.restore_best(log)
    tracker.log(5, {"eval/return": 4.0})
    assert "best 9.5 at 1" in out.getvalue()


def test_the_time_left_follows_the_recent_pace(clock):
    board = Board("x", 1000)
    board.update(600, {"speed/steps_per_second": 100.0})  # a resumed run: the first 600 steps took no time here
    assert board.seconds_left() == 4.0
    clock[0] += 10
    board.update(700, {"speed/steps_per_second": 100.0})
    clock[0] += 10
    board.update(800, {"speed/steps_per_second": 100.0})
    assert board.seconds_left() == pytest.approx(20.0)
    board.update(1010, {})
    assert board.seconds_left() == 0.0


def test_an_iteration_beyond_the_requested_steps_is_told_apart():
    board = Board("x", 100)
    assert "0 of 100 steps (0 %)" in board.line({})
    board.update(512, {})
    assert "512 steps (100 requested) (100 %)" in board.line({})


def test_the_time_left_is_unknown_without_a_pace():
    board = Board("x", 1000)
    board.update(0, {})
    assert board.seconds_left() is None


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 5, ""),
        ([1.0, 2.0], 0, ""),
        ([7.0], 5, "▄"),
        ([0.0, 1.0], 5, "▁█"),
        ([float(value) for value in range(8)], 8, "▁▂▃▄▅▆▇█"),
        ([0.0, 0.0, 1.0, 1.0], 2, "▁█"),
        ([-1e300, 1e300], 2, "▁█"),
        ([1.0, 2.0], -3, ""),
    ],
)
def test_sparkline(values, width, bars):
    assert sparkline(np.array(values), width) == bars


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (12.0, "12"), (0.0123449, "0.01234"), (-5234.12, "-5234"), (99.9999, "100"), (3e-4, "0.0003")),
        *((2.5e7, "2.5e+07"), (math.nan, "nan"), (-math.inf, "-inf"), (123456.7, "123457"), (1e-6, "1e-06")),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_counts_times_and_fractions():
    assert [steps(value) for value in (0, 999, 12_500, 999_000, 4_800_000, 1.2e9)] == [
        *("0", "999", "12.50k", "999.00k", "4.80M", "1.20B")
    ]
    assert [duration(value) for value in (0, 58.9, 3753, 86_400 + 3 * 3600 + 720)] == [
        *("0:00:00", "0:00:58", "1:02:33", "1 day, 3:12:00")
    ]
    assert [percent(value) for value in (0.0, 0.345, 1.0, math.nan)] == ["0 %", "34 %", "100 %", "nan"]


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_log_records_print_above_the_dashboard_and_elsewhere_as_before():
    terminal, file = FakeTerminal(), io.StringIO()
    handlers = [logging.StreamHandler(terminal), logging.StreamHandler(file)]
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    try:
        tracker, out = plain(terminal=True)
        tracker.log(10, ITERATION)
        root.warning("above")
        tracker.close()
        root.warning("after")
    finally:
        for handler in handlers:
            root.removeHandler(handler)
    assert "above\n" in out.getvalue()
    assert terminal.getvalue() == "after\n"
    assert file.getvalue() == "above\nafter\n"
