"""Compile the functions of an engine to machine code, with a cache on disk.

Numba compiles every function by itself, together with all functions that it calls: in a call tree ten levels deep most
code is optimized and translated ten times. Here only entries, the functions that Python calls, become machine code.
Parts, the functions that compiled functions call, stop at LLVM's intermediate code and are optimized within an entry.
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.resources import files
from typing import Any

import numba
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""No fast mathematics, so that results are the same on every machine and without compilation. No reference counts of
arrays, which would cost more than the engines: compiled functions allocate no arrays."""


class PartLibrary(JITCodeLibrary):
    """Intermediate code of a part. It is linked into callers and never becomes machine code by itself."""

    def _optimize_final_module(self) -> None:
        """Leave the optimization to the entry; numba has optimized the function by itself already."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002 - numba's interface
        """Return 0, numba's answer for a function without machine code."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        """Itself: numba sets the environment of a function there once it has machine code."""
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Do nothing: without machine code there is no environment."""


class PartCompiler(Compiler):
    """Numba's compiler with a `PartLibrary` as its output."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile a function to intermediate code."""
        self.state.library = PartLibrary(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


class EngineCompiler:
    """Decorators for the functions of one engine.

    Numba's cache sees the file of an entry, but not those of the parts and of the tables that it is compiled from.
    Here a change in any file of the engine's packages makes the cache stale.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages

    @cached_property
    def _sources(self) -> str:
        return self.digest([files(package) for package in self._packages])

    @staticmethod
    def digest(folders: Iterable[Any]) -> str:
        """Return the digest of all code and tables (.py and .csv files) in folders."""
        parts = [part for folder in folders for part in folder.iterdir() if part.name.endswith((".py", ".csv"))]
        return hashlib.sha256(
            b"".join(part.read_bytes() for part in sorted(parts, key=lambda part: part.name))
        ).hexdigest()

    def part(self, function: Callable[..., Any], **options: Any) -> Any:
        """Compile a function that compiled functions call. Python may call it too, which compiles it as an entry."""
        options = {**OPTIONS, **options, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        dispatcher: Any = numba.njit(pipeline_class=PartCompiler, **options)(function)
        if dispatcher is function:  # compilation is switched off
            return function
        entry = self.entry(function)
        resolve = dispatcher.get_call_template  # constants as arguments: one version for all, not one for each
        dispatcher.get_call_template = lambda args, kws: resolve(tuple(map(types.unliteral, args)), kws)
        dispatcher._insert = lambda *_: None  # no machine code that Python could call:
        dispatcher._compile_for_args = lambda *_, **__: entry  # every call from Python is one of the entry
        return dispatcher

    def entry(self, function: Callable[..., Any]) -> Any:
        """Compile a function that Python calls, on its first call. Named tuples as arguments take microseconds."""
        try:
            dispatcher: Any = numba.njit(cache=True, **OPTIONS)(function)
        except RuntimeError:  # no folder to write to; NUMBA_CACHE_DIR can name one
            dispatcher = numba.njit(**OPTIONS)(function)
        if (cache_file := _cache_file(dispatcher)) is not None:
            cache_file._source_stamp = self._sources
        return dispatcher


def _cache_file(dispatcher: Any) -> Any:
    return getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)


def must_compile(dispatcher: Any) -> bool:
    """Return whether the first call will compile an entry, because no earlier process left it on disk."""
    if getattr(dispatcher, "signatures", True):  # a plain function has none: compilation is switched off
        return False
    cache_file = _cache_file(dispatcher)
    return cache_file is None or not cache_file._load_index()
