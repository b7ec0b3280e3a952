"""Installations that stand for StarCraft II, and the processes that are started from them."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from marl.envs.sc2 import game as game_module
from marl.envs.smac import make
from marl.envs.smac.sc2.serve import make_install


def processes(word):
    """The processes that have `word` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(word).encode() in line and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def guards():
    """The shells of this process that watch over its games."""
    children = [pid for path in Path("/proc/self/task").glob("*/children") for pid in contents(path).split()]
    return [pid for pid in children if b"kill -9" in contents(Path(f"/proc/{pid.decode()}/cmdline"))]


def contents(path):
    """Return the content of a file of /proc, empty if its process or thread has just ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until_gone(word):
    deadline = time.monotonic() + 10
    while processes(word):
        assert time.monotonic() < deadline, f"still running: {processes(word)}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    return make_install(tmp_path_factory.mktemp("game"))


@pytest.fixture
def install(installed, monkeypatch):
    """Installation that SC2PATH names. At the end of a test no process of it runs."""
    monkeypatch.setenv("SC2PATH", str(installed))
    yield installed
    assert processes(installed) == []
    assert guards() == []


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """The same, with a server that does what a file in this folder says; see `tests.support.faulty_sc2_server`."""
    folder = make_install(tmp_path / "game", command=("-m", "tests.support.faulty_sc2_server"))
    monkeypatch.setenv("SC2PATH", str(folder))
    monkeypatch.setattr(game_module, "REPLY_SECONDS", 3.0)
    yield folder
    assert processes(folder) == []
    assert guards() == []


def make_real(task, **options):
    return make(task, backend="sc2", **options)


def same_obs(left, right):
    for name in ("agents", "alive", "action_mask", "state"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def choose(obs, rng, ahead=4.0):
    """Available actions at random, attacks before moves."""
    score = rng.random(obs.action_mask.shape)
    score[..., 6:] += ahead
    score[..., 4] += 0.3
    return np.where(obs.action_mask, score, -1.0).argmax(-1)
