"""Log of a run as JSON lines: `metrics.jsonl`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marl.files import RecordFile, write_whole
from marl.tracking.base import Tracker


class JsonlTracker(Tracker):
    """One JSON object a line, `{"step": ..., tag: value, ...}`, on disk when `log` returns.

    Timing tags come last in a line. A value that is not finite is null. A text is a string under its tag.

    With `resume_step`, later lines are dropped, so that the log of a killed and resumed run equals that of an
    uninterrupted run. A partial line is always dropped.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None) -> None:
        path = Path(path)
        if path.is_file():
            drop_lines(path, math.inf if resume_step is None else resume_step)
        self._file = RecordFile(path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        timing_last = sorted(values, key=lambda tag: tag.startswith("speed/"))
        self._write(step, {tag: _json_number(values[tag]) for tag in timing_last})

    def text(self, step: int, tag: str, value: str) -> None:
        """Write a text."""
        self._write(step, {tag: value})

    def close(self) -> None:
        """Write what is held, if the disk allows it."""
        self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        line = json.dumps({"step": int(step), **values}, allow_nan=False)
        self._file.write(line.encode() + b"\n")


def _json_number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def drop_lines(path: Path, last_step: float) -> None:
    """Rewrite `path` without partial lines and lines after `last_step`.

    The old file stays until the new one is complete. Raises ConfigError if the new one cannot be written.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line.rstrip(b"\n") + b"\n" for line in lines if _line_step(line) <= last_step]
    if kept != lines:
        write_whole(path, b"".join(kept))


def _line_step(line: bytes) -> float:
    """Return the step of a line, or NaN, which compares false with every step, for a partial line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.nan
