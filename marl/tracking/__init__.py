"""Trackers: places to which a run writes its numbers, texts and pictures."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from marl.protocols import Tracker


class MultiTracker:
    """Tracker that passes every call to each of `trackers`, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Record the configuration."""
        for tracker in self.trackers:
            tracker.config(text, flat)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag."""
        for tracker in self.trackers:
            tracker.log(step, values)

    def text(self, step: int, tag: str, value: str) -> None:
        """Record a text."""
        for tracker in self.trackers:
            tracker.text(step, tag, value)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Record a picture (H, W, 3) uint8."""
        for tracker in self.trackers:
            tracker.image(step, tag, picture)

    def close(self) -> None:
        """Close every tracker, even if one raises."""
        with ExitStack() as stack:
            for tracker in reversed(self.trackers):
                stack.callback(tracker.close)
