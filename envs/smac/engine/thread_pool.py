"""How threads share the battles of a step: helpers asleep in compiled code, woken once a step without Python's lock.

The caller takes battles from the front and helpers from the back, few at a time and ever fewer, so that a late helper
costs nothing and a battle mostly stays in one core's cache. The last battle is the caller's: while it is fought the
helpers finish theirs, and the caller need not sleep. Sleeping and waking are POSIX's mutexes and condition variables.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.typing.templates import signature

from marl.envs.smac.engine.fields import entry

WORTH = 192
"""Units, of all battles together, for which a thread is worth its wake-up: about 70 microseconds of work."""

PARTS = 4
"""Into so many parts for each thread those battles are divided that nobody has taken yet."""

# Fields of a desk (int64,), from which the threads of a crew take battles [FIRST, LAST). UNDONE battles have not been
# played to their end; ENDED episodes ended in this step. The mutex and the conditions are given 64 bytes each.
MUTEX, CALLED, FINISHED, FIRST, LAST, UNDONE, ENDED, THREADS, OPEN = 0, 8, 16, 24, 25, 26, 27, 28, 29
QUEUE_FIELDS = 32


def _posix(name: str, arguments: int) -> Any:
    """A function of the C library that compiled code may call with so many addresses."""
    return types.ExternalFunction(name, signature(types.int32, *[types.intp] * arguments))


_make_mutex, _make_condition = _posix("pthread_mutex_init", 2), _posix("pthread_cond_init", 2)
_lock, _unlock = _posix("pthread_mutex_lock", 1), _posix("pthread_mutex_unlock", 1)
_wait, _wake = _posix("pthread_cond_wait", 2), _posix("pthread_cond_broadcast", 1)


@entry
def init(desk, threads):
    """Make a desk of zeros ready for so many threads."""
    _make_mutex(desk[MUTEX:].ctypes.data, 0)
    _make_condition(desk[CALLED:].ctypes.data, 0)
    _make_condition(desk[FINISHED:].ctypes.data, 0)
    desk[THREADS], desk[OPEN] = threads, 1


@entry
def publish(desk, battles):
    """Put the battles of a step on the desk and wake the helpers."""
    crowd = desk[THREADS] > 1
    if crowd:
        _lock(desk[MUTEX:].ctypes.data)
    desk[FIRST], desk[LAST], desk[UNDONE], desk[ENDED] = 0, battles, battles, 0
    if crowd:
        _unlock(desk[MUTEX:].ctypes.data)
        _wake(desk[CALLED:].ctypes.data)


@entry
def shutdown(desk):
    """Send the helpers home, and whoever waits for them; battles that nobody has taken are not played."""
    _lock(desk[MUTEX:].ctypes.data)
    desk[OPEN] = 0
    _unlock(desk[MUTEX:].ctypes.data)
    _wake(desk[CALLED:].ctypes.data)
    _wake(desk[FINISHED:].ctypes.data)


@entry
def take_work(desk, helps, done, ended):
    """Hand in what has been done and take the next battles, [first, last).

    A helper sleeps until there are some, and gets none once it is dismissed. The caller gets none when all are done.
    """
    if desk[THREADS] == 1:
        first, last = desk[FIRST], desk[LAST]
        desk[FIRST] = last
        desk[ENDED] += ended
        return first, last
    mutex = desk[MUTEX:].ctypes.data
    _lock(mutex)
    desk[UNDONE] -= done
    desk[ENDED] += ended
    if helps:
        if done > 0 and desk[UNDONE] == 0:
            _wake(desk[FINISHED:].ctypes.data)
        while desk[OPEN] and desk[LAST] - desk[FIRST] < 2:
            _wait(desk[CALLED:].ctypes.data, mutex)
    elif desk[FIRST] == desk[LAST]:
        while desk[OPEN] and desk[UNDONE] > 0:
            _wait(desk[FINISHED:].ctypes.data, mutex)
    left = (desk[LAST] - desk[FIRST]) * desk[OPEN]
    size = min(left, 1 + left // (PARTS * desk[THREADS]))
    if helps:
        desk[LAST] -= size
        first = desk[LAST]
    else:
        first = desk[FIRST]
        desk[FIRST] += size
    _unlock(mutex)
    return first, first + size


def useful_threads(threads: int, units: int) -> int:
    """How many of the threads are worth their wake-up for so many units."""
    return max(1, min(threads, units // WORTH))


class ThreadPool:
    """The caller and its helpers for one set of battles: `work(*arguments, scratch, desk, helps)` plays what it claims
    and returns `desk[ENDED]`.

    Helpers come with the second step, after the first one has compiled, and go with `close` or when nobody refers to
    the crew any more; a process that ends leaves them asleep. A forked process enlists its own.
    """

    def __init__(self, work: Callable[..., int], arguments: tuple[Any, ...], scratches: list[Any]) -> None:
        self._work, self._arguments, self._scratches = work, arguments, scratches
        self._disband()

    def play(self) -> int:
        """One step of all battles; returns how many episodes ended."""
        if self._stepped and len(self._scratches) > 1 and self._process != os.getpid():
            self._enlist()
        try:
            ended = self._work(*self._arguments, self._scratches[0], self._desk, False)
            if self._failures:
                raise RuntimeError("a helper of the battle engine failed; begin new episodes") from self._failures[0]
        except BaseException:
            self.close()
            raise
        self._stepped = True
        return ended

    def _enlist(self) -> None:
        self._disband()
        self._stepped, self._process = True, os.getpid()
        init(self._desk, len(self._scratches))
        self._end = weakref.finalize(self, _dismiss, self._desk, self._process)
        self._end.atexit = False
        for scratch in self._scratches[1:]:
            arguments = self._work, (*self._arguments, scratch), self._desk, self._failures
            self._helpers.append(threading.Thread(target=_help, args=arguments, daemon=True))
            self._helpers[-1].start()

    def close(self) -> None:
        """Send the helpers home; a later step would enlist others."""
        if self._end is not None:
            self._end()
        for helper in self._helpers:
            helper.join()
        self._disband()

    def _disband(self) -> None:
        self._desk, self._helpers, self._failures = np.zeros(QUEUE_FIELDS, np.int64), [], []
        self._desk[THREADS] = 1
        self._stepped, self._process, self._end = False, None, None


def _help(work: Callable[..., int], arguments: tuple[Any, ...], desk: np.ndarray, failures: list[Any]) -> None:
    try:
        work(*arguments, desk, True)
    except BaseException as error:  # the caller raises it
        failures.append(error)
        shutdown(desk)


def _dismiss(desk: np.ndarray, process: int) -> None:
    if process == os.getpid():  # in a forked process the mutex may be locked for good
        shutdown(desk)
