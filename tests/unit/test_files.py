"""Locks, and cores that are free."""

import errno
import fcntl
import subprocess
import sys

import psutil
import pytest

from marl import cpu
from marl.files import exclusive_lock

HOLD = """
import sys, time
from pathlib import Path
from marl.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another process holds"), exclusive_lock(path, wait=False):
            pass
        holder.kill()
    with exclusive_lock(path, wait=False), pytest.raises(BlockingIOError), exclusive_lock(path, wait=False):
        pass
    with exclusive_lock(path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive_lock(tmp_path / ".lock", wait=False), exclusive_lock(tmp_path / ".lock", wait=False):
        pass


@pytest.mark.parametrize(("busy", "free"), [([0, 0, 0, 0], 4), ([99, 12, 95, 100], 1), ([100, 100, 100, 100], 1)])
def test_free_cores(monkeypatch, busy, free):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: busy)
    assert cpu.free_cores() == free


def test_free_cores_of_a_container_with_its_own_numbers(monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {12, 13}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: [100, 0])
    assert cpu.free_cores() == 1
