"""What a process takes of the machine: threads for a phase, memory, and the library that multiplies matrices.

Spinning threads on busy cores make small operations many times slower.
"""

import ctypes
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

_STAT = Path("/proc/stat")


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores(seconds: float = 0.2) -> int:
    """The usable cores that nobody keeps busy just now, at least 1; all of them where that cannot be told."""
    cores = usable_cores()
    if cores == 1 or not _STAT.exists():
        return cores
    before = _busy()
    time.sleep(seconds)
    ticks = _busy() - before
    taken = ticks / os.sysconf("SC_CLK_TCK") / seconds
    return max(1, cores - round(taken))


def peak_memory_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def tune_malloc() -> None:
    """Let glibc keep what is freed for what is asked for next; nothing with another C library.

    By default each forward pass gives its memory back to the system and the next one is handed it anew, page by page,
    which takes up to a fifth of an update. Single blocks of more than 32 MiB are given back all the same.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 * 1024 * 1024)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def onednn_matmul(device: torch.device) -> Iterator[None]:
    """Let oneDNN multiply matrices of float32 on a CPU where that keeps their precision; nothing elsewhere.

    On AMD's processors it is twice as fast as MKL, which uses half the width of their registers. PyTorch asks it only
    where products may be less precise, which oneDNN makes use of on some processors and not on others.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" and _keep_precision():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _keep_precision() -> bool:
    """Whether products that may be less precise are not, here: told by numbers that bfloat16 and TF32 round to 1."""
    before, number = torch.get_float32_matmul_precision(), 1.0 + 2.0**-12
    numbers = torch.full((256, 256), number)
    torch.set_float32_matmul_precision("medium")
    product = numbers @ numbers
    torch.set_float32_matmul_precision(before)
    return bool((product / len(numbers) - number**2).abs().max() < 1e-5)


def _busy() -> int:
    """Clock ticks spent outside idle and waiting for discs, summed over the usable cores."""
    mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    rows = [line.split() for line in _STAT.read_text().splitlines() if line.split()[0] in mine]
    return sum(sum(map(int, row[1:4])) + sum(map(int, row[6:9])) for row in rows)
