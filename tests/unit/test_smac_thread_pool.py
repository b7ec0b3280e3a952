"""Thread pool of SMAC: every battle of a step is played exactly once, and no thread waits forever."""

import gc
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac import batch
from marl.envs.smac.engine import thread_pool

PREAMBLE = """
import os, sys
import numpy as np
from marl.envs.smac import batch
from marl.envs.smac.engine import thread_pool
thread_pool.UNITS_PER_THREAD = 1

def play(env, steps):
    env.reset(range(env.num_envs))
    return [env.step(np.ones((env.num_envs, 3), int)).reward.sum() for _ in range(steps)]

env = batch("3m", 8, 2)
expected = play(env, 20)
"""


def count(done, desk, helps):
    """Work in Python: note each battle that was claimed."""
    if not helps:
        thread_pool.publish(desk, len(done))
    first, last = thread_pool.take_work(desk, helps, 0, 0)
    while first < last:
        done[first:last] += 1
        first, last = thread_pool.take_work(desk, helps, last - first, last - first)
    return int(desk[thread_pool.ENDED])


class Count(thread_pool.ThreadPool):
    def __init__(self, battles, threads, work=None):
        self.done = np.zeros(battles, np.int64)
        super().__init__(
            work or (lambda done, _, desk, helps: count(done, desk, helps)), (self.done,), [None] * threads
        )


@pytest.mark.parametrize("battles", [1, 2, 3, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_battle_is_played_once(battles, threads):
    counted = Count(battles, threads)
    for step in range(1, 300):
        assert counted.play() == battles
        np.testing.assert_array_equal(counted.done, step)
    counted.close()


def test_two_threads_share_the_work():
    seen = set()

    def work(done, _, desk, helps):
        seen.add((helps, threading.get_ident()))
        time.sleep(0.001)
        return count(done, desk, helps)

    shared = Count(4, 2, work)
    for _ in range(3):
        shared.play()
    shared.close()
    assert len(seen) == 2


def test_a_helper_that_fails_is_heard():
    def work(done, _, desk, helps):
        if helps:
            raise ValueError("broken")
        return count(done, desk, helps)

    broken = Count(4, 2, work)
    broken.play()

    def play_on():
        for _ in range(1000):
            broken.play()
            time.sleep(0.001)

    with pytest.raises(RuntimeError, match="worker thread of the battle engine failed") as error:
        play_on()
    assert isinstance(error.value.__cause__, ValueError)


def test_a_caller_that_fails_ends_the_workers():
    def work(done, _, desk, helps):
        ended = count(done, desk, helps)
        if not helps and done[0] == 3:
            raise KeyboardInterrupt
        return ended

    broken, before = Count(4, 3, work), threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        [broken.play() for _ in range(5)]
    assert threading.active_count() == before
    assert [broken.play(), broken.play()] == [4, 4]
    broken.close()


def test_threads_go_with_their_battles(monkeypatch):
    monkeypatch.setattr(thread_pool, "UNITS_PER_THREAD", 1)
    before = threading.active_count()
    envs = [batch("3m", 4, 3) for _ in range(2)]
    for env in envs:
        env.reset(range(4))
        for _ in range(2):
            env.step(np.ones((4, 3), int))
    assert threading.active_count() == before + 4
    envs[0].close()
    assert threading.active_count() == before + 2
    del env, envs
    gc.collect()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_few_units_are_left_to_one_thread():
    assert thread_pool.useful_threads(8, 6) == 1
    assert thread_pool.useful_threads(8, 64 * 6) == 2
    assert thread_pool.useful_threads(2, 1024 * 16) == 2


def run(code, timeout=240):  # the first one on a machine compiles the engine
    return subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_a_process_ends_with_workers_asleep():
    done = run("print(len(expected))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")


def test_a_forked_process_has_workers_of_its_own():
    code = """
for _ in range(20):
    child = os.fork()
    if child == 0:
        again = play(env, 20)
        if again == expected and len(env._battles._pool._workers) == 1:
            env.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert play(env, 20) == expected
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_ends_a_process_in_the_middle_of_steps():
    # A test run in the background may have been started with this signal ignored, which a child inherits.
    code = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "print('ready', flush=True)\nwhile True: play(env, 20)"
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        it.send_signal(signal.SIGINT)
        try:
            _, errors = it.communicate(timeout=30)
        finally:
            it.kill()
        assert it.returncode != 0
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
