"""Free cores, memory, and the library that multiplies matrices.

Threads on busy cores make small operations many times slower.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import psutil
import torch


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores(seconds: float = 0.2) -> int:
    """Return the number of usable cores that are idle, at least 1, measured over some seconds."""
    cores = usable_cores()
    if cores == 1:
        return 1
    busy = psutil.cpu_percent(seconds, percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(cores)
    # The system's list leaves out cores that are offline, and a container may number its own from 0.
    own = [busy[core] for core in usable] if max(usable) < len(busy) else busy
    return max(1, cores - round(sum(own) / 100))


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MiB. (psutil knows the peak on Windows alone.)"""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def tune_malloc() -> None:
    """Let glibc keep freed memory for later allocations. Does nothing with another C library.

    By default each forward pass returns its memory to the system, and the next one gets it again, page by page. That
    takes up to a fifth of an update. Blocks of more than 32 MiB are still returned.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 32 * 1024 * 1024)
        libc.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def onednn_matmul(device: torch.device) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices on a CPU on which it keeps their precision. Does nothing elsewhere.

    On AMD processors it is twice as fast as MKL, which uses half the width of their registers. PyTorch uses it only if
    products may be less precise. Some processors then lose precision, others do not.
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
    """Return True if precision "medium" is exact here. Measured with numbers that bfloat16 and TF32 round to 1."""
    before, number = torch.get_float32_matmul_precision(), 1.0 + 2.0**-12
    numbers = torch.full((256, 256), number)
    torch.set_float32_matmul_precision("medium")
    product = numbers @ numbers
    torch.set_float32_matmul_precision(before)
    return bool((product / len(numbers) - number**2).abs().max() < 1e-5)
