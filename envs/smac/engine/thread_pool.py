"""Thread pool of a batch of battles: workers sleep in compiled code and wake once a step, without Python's lock.

The caller takes battles from the front of the queue and workers from the back, in chunks that shrink, so that a late
worker costs nothing and a battle mostly stays in one core's cache. The last battle is the caller's: workers finish
theirs meanwhile, and the caller need not sleep. Sleeping and waking use POSIX mutexes and condition variables.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.typing.templates import signature

from marl.envs.smac.engine.compiling import entry, part

UNITS_PER_THREAD = 192
"""Number of units, over all battles, that justifies one more thread: about 70 microseconds of work."""

CHUNKS_PER_THREAD = 4
"""Chunks for each thread that the remaining battles are divided into."""

# Fields of a queue (int64,). Threads take the battles [FIRST, LAST). UNFINISHED: battles not played to their end.
# ENDED: episodes that ended in this step. The mutex and the conditions have 64 bytes each.
MUTEX, WORK_READY, WORK_DONE, FIRST, LAST, UNFINISHED, ENDED, THREADS, OPEN = 0, 8, 16, 24, 25, 26, 27, 28, 29
QUEUE_FIELDS = 32


def _posix(name: str, arguments: int) -> Any:
    """Declare a function of the C library with so many address arguments."""
    return types.ExternalFunction(name, signature(types.int32, *[types.intp] * arguments))


_make_mutex, _make_condition = _posix("pthread_mutex_init", 2), _posix("pthread_cond_init", 2)
_lock, _unlock = _posix("pthread_mutex_lock", 1), _posix("pthread_mutex_unlock", 1)
_wait, _wake = _posix("pthread_cond_wait", 2), _posix("pthread_cond_broadcast", 1)


@entry
def init(queue, threads):
    """Initialize a queue of zeros for a number of threads."""
    _make_mutex(queue[MUTEX:].ctypes.data, 0)
    _make_condition(queue[WORK_READY:].ctypes.data, 0)
    _make_condition(queue[WORK_DONE:].ctypes.data, 0)
    queue[THREADS], queue[OPEN] = threads, 1


@part
def publish(queue, battles):
    """Put the battles of a step in the queue and wake the workers."""
    shared = queue[THREADS] > 1
    if shared:
        _lock(queue[MUTEX:].ctypes.data)
    queue[FIRST], queue[LAST], queue[UNFINISHED], queue[ENDED] = 0, battles, battles, 0
    if shared:
        _unlock(queue[MUTEX:].ctypes.data)
        _wake(queue[WORK_READY:].ctypes.data)


@entry
def shutdown(queue):
    """Wake all threads and end the workers. Battles that no thread has taken are not played."""
    _lock(queue[MUTEX:].ctypes.data)
    queue[OPEN] = 0
    _unlock(queue[MUTEX:].ctypes.data)
    _wake(queue[WORK_READY:].ctypes.data)
    _wake(queue[WORK_DONE:].ctypes.data)


@part
def take_work(queue, is_worker, done, ended):
    """Report finished battles and take the next ones, [first, last).

    A worker sleeps until there are battles, and gets none after `shutdown`. The caller gets none when all are done.
    """
    if queue[THREADS] == 1:
        first, last = queue[FIRST], queue[LAST]
        queue[FIRST] = last
        queue[ENDED] += ended
        return first, last
    mutex = queue[MUTEX:].ctypes.data
    _lock(mutex)
    queue[UNFINISHED] -= done
    queue[ENDED] += ended
    if is_worker:
        if done > 0 and queue[UNFINISHED] == 0:
            _wake(queue[WORK_DONE:].ctypes.data)
        while queue[OPEN] and queue[LAST] - queue[FIRST] < 2:
            _wait(queue[WORK_READY:].ctypes.data, mutex)
    elif queue[FIRST] == queue[LAST]:
        while queue[OPEN] and queue[UNFINISHED] > 0:
            _wait(queue[WORK_DONE:].ctypes.data, mutex)
    left = (queue[LAST] - queue[FIRST]) * queue[OPEN]
    size = min(left, 1 + left // (CHUNKS_PER_THREAD * queue[THREADS]))
    if is_worker:
        queue[LAST] -= size
        first = queue[LAST]
    else:
        first = queue[FIRST]
        queue[FIRST] += size
    _unlock(mutex)
    return first, first + size


def useful_threads(threads: int, units: int) -> int:
    """Return the number of threads that pays off for a number of units."""
    return max(1, min(threads, units // UNITS_PER_THREAD))


class ThreadPool:
    """The calling thread and its workers for one batch of battles.

    `work(*arguments, scratch, queue, is_worker)` plays the battles that it takes and returns the number of ended
    episodes. Workers start with the second step, after the first one has compiled. They end with `close`, or when the
    pool is garbage. A forked process starts its own workers.
    """

    def __init__(self, work: Callable[..., int], arguments: tuple[Any, ...], scratches: list[Any]) -> None:
        self._work, self._arguments, self._scratches = work, arguments, scratches
        self._reset()

    def play(self) -> int:
        """Play one step of all battles. Return the number of ended episodes. Raises RuntimeError if a worker failed."""
        if self._stepped and len(self._scratches) > 1 and self._process != os.getpid():
            self._start_workers()
        try:
            ended = self._work(*self._arguments, self._scratches[0], self._queue, False)
            if self._failures:
                raise RuntimeError(
                    "a worker thread of the battle engine failed; reset the environments"
                ) from self._failures[0]
        except BaseException:
            self.close()
            raise
        self._stepped = True
        return ended

    def _start_workers(self) -> None:
        self._reset()
        self._stepped, self._process = True, os.getpid()
        init(self._queue, len(self._scratches))
        self._end = weakref.finalize(self, _shutdown_pool, self._queue, self._process)
        self._end.atexit = False
        for scratch in self._scratches[1:]:
            arguments = self._work, (*self._arguments, scratch), self._queue, self._failures
            self._workers.append(threading.Thread(target=_run_worker, args=arguments, daemon=True))
            self._workers[-1].start()

    def close(self) -> None:
        """End the workers. A later step starts new ones."""
        if self._end is not None:
            self._end()
        for worker in self._workers:
            worker.join()
        self._reset()

    def _reset(self) -> None:
        self._queue, self._workers, self._failures = np.zeros(QUEUE_FIELDS, np.int64), [], []
        self._queue[THREADS] = 1
        self._stepped, self._process, self._end = False, None, None


def _run_worker(work: Callable[..., int], arguments: tuple[Any, ...], queue: np.ndarray, failures: list[Any]) -> None:
    try:
        work(*arguments, queue, True)
    except BaseException as error:  # raised again by the caller
        failures.append(error)
        shutdown(queue)


def _shutdown_pool(queue: np.ndarray, process: int) -> None:
    if process == os.getpid():  # in a forked process the mutex may stay locked
        shutdown(queue)
