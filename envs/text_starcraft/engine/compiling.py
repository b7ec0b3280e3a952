"""Compile functions of the simulator to machine code, cached on disk."""

import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numba

from marl.envs.text_starcraft import data, engine


def _digest() -> str:
    """Digest of all code and tables of the simulator: tables are constants of compiled functions."""
    parts = [part for package in (engine, data) for part in files(package).iterdir()]
    sources = sorted((part for part in parts if part.name.endswith((".py", ".csv"))), key=lambda part: part.name)
    return hashlib.sha256(b"".join(part.read_bytes() for part in sources)).hexdigest()


_SOURCES = _digest()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that other compiled functions call, on first use.

    Numba's cache sees the function's own file; here a change in any file counts. Without fast mathematics, so that
    results are the same on every machine. Compiled functions allocate no arrays.
    """
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls."""
    return _compile(function)


def _compile(function: Callable[..., Any], **wrappers: bool) -> Any:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False, **wrappers}
    try:
        dispatcher = numba.njit(**options, cache=True)(function)
    except RuntimeError:  # no folder to write to; NUMBA_CACHE_DIR can name one
        return numba.njit(**options)(function)
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None:
        cache_file._source_stamp = _SOURCES
    return dispatcher


def must_compile(dispatcher: Any) -> bool:
    """Whether the first call will compile the function, because no earlier process left it on disk."""
    if getattr(dispatcher, "signatures", True):  # a plain function has none: compilation is switched off
        return False
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    return cache_file is None or not cache_file._load_index()
