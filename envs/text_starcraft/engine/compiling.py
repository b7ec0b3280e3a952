"""Decorators of the simulator's compiled functions."""

from marl.envs.compiling import EngineCompiler

_compiler = EngineCompiler("marl.envs.text_starcraft.engine", "marl.envs.text_starcraft.data")
compiled, entry = _compiler.part, _compiler.entry
