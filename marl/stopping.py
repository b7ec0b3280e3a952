"""Stop requests: Ctrl-C and SIGTERM."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED, ANOTHER_RANK = "interrupted", "another rank was asked to stop"
"""Reasons for the end of a run that was stopped from outside. It is not finished."""


class StopNow(KeyboardInterrupt):
    """A second stop request, which aborts immediately."""


@contextmanager
def stop_requests(on_first: Callable[[], None]) -> Iterator[None]:
    """Call `on_first` at the first SIGINT or SIGTERM. A second signal, one second or more later, raises StopNow.

    Does nothing outside of the main thread.
    """
    first = float("-inf")

    def stop(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal first
        now = time.monotonic()
        # Schedulers often signal both the process and its group.
        if first < now < first + 1.0:
            return
        if first > 0:
            raise StopNow
        first = now
        on_first()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
