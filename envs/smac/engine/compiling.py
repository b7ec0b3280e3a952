"""Decorators of the battle engine's compiled functions."""

from collections.abc import Callable
from typing import Any

from marl.envs.compiling import EngineCompiler

_compiler = EngineCompiler("marl.envs.smac.engine", "marl.envs.smac.task")
entry, part = _compiler.entry, _compiler.part


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function as a part that is always inlined; a battle of few units is a third slower without.

    Functions that are called rarely are plain parts.
    """
    return part(function, forceinline=True)
