"""Base class of trackers: receivers of the numbers, texts and pictures of a run."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from marl.errors import ConfigError, MarlError, UnknownNameError, unknown_name_message
from marl.factories import call_method, import_factory, raised_in

TRACKERS = {"wandb": "marl.tracking.wandb_tracker:WandbTracker", "mlflow": "marl.tracking.mlflow_tracker:MLflowTracker"}
"""Trackers by the names of --trackers. JSONL and TensorBoard are always written."""


class Tracker:
    """Receives what a run logs, on rank 0. Every method does nothing by default.

    `step` is always the number of environment steps. A tracker that raises stops the run with a checkpoint.
    """

    def start(self, folder: Path, step: int) -> None:
        """Open the log of the run in `folder`. `step` is above 0 if the run is resumed: later values come again.

        An error here refuses the run before it trains.
        """

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Receive the settings of the run, as YAML and by option name."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receive the metrics of an iteration by tag, such as "episode/return"."""

    def text(self, step: int, tag: str, value: str) -> None:
        """Receive Markdown."""

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Receive a picture, shape (height, width, 3) uint8."""

    def close(self) -> None:
        """Write what is left. Every end of a run calls it."""


class MultiTracker(Tracker):
    """Tracker that passes every call to each of `trackers`, in order. Raises CallbackError if one raises."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self.trackers = tuple(trackers)

    def start(self, folder: Path, step: int) -> None:
        """Start every tracker."""
        self._call("start", folder, step)

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Pass on the settings."""
        self._call("config", text, flat)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on metrics."""
        self._call("log", step, values)

    def text(self, step: int, tag: str, value: str) -> None:
        """Pass on a text."""
        self._call("text", step, tag, value)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Pass on a picture."""
        self._call("image", step, tag, picture)

    def close(self) -> None:
        """Close every tracker, even if one raises."""
        with ExitStack() as stack:
            for tracker in reversed(self.trackers):
                stack.callback(call_method, tracker, "tracker", "close")

    def _call(self, method: str, *arguments: Any) -> None:
        for tracker in self.trackers:
            call_method(tracker, "tracker", method, *arguments)


def runs_dir(folder: Path) -> Path:
    """Return the folder --runs-dir of a run: the third above ENV/AGENT/SEED-TIME, else the one above."""
    default = re.fullmatch(r"\d+-\d{8}-\d{6}(-\d+)?", folder.name)
    return folder.parents[2] if default and len(folder.parents) > 2 else folder.parent


def run_name(folder: Path) -> str:
    """Return the name of the run in `folder`: ENV/AGENT/SEED-TIME in a default folder, else the folder's name."""
    return str(folder.relative_to(runs_dir(folder)))


def check_tracker_name(name: str) -> None:
    """Raise UnknownNameError unless `name` is one of TRACKERS or a factory's."""
    if name not in TRACKERS and ":" not in name:
        raise UnknownNameError(unknown_name_message("tracker", name, [*TRACKERS, "FILE.py:CLASS"]))


def make_tracker(tracker: Tracker | str) -> Tracker:
    """Return a tracker, made from its name if one is given. Raises ConfigError for anything else."""
    made: Any = tracker
    if isinstance(tracker, str):
        check_tracker_name(tracker)
        factory = import_factory(TRACKERS.get(tracker, tracker), "tracker")
        try:
            made = factory()
        except MarlError:
            raise
        except Exception as error:
            raise raised_in(error, f"tracker {tracker!r}") from error
    if not isinstance(made, Tracker):
        raise ConfigError(f"tracker={tracker!r} is a {type(made).__name__}; give an instance of a marl.Tracker class")
    return made
