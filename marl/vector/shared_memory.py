"""Arrays of E environments in one block of memory."""

import mmap
import os
import tempfile
from dataclasses import dataclass, fields
from math import prod
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Text

from marl.errors import EnvironmentContractError
from marl.types import EnvSpec, Obs

ALIGNMENT = 64
"""Bytes. Each array begins at a multiple of it."""
ARRAYS = ("agents", "alive", "action_mask", "state")
"""Fields of an observation that are arrays, if an environment has them."""

TextFields = tuple[Any, Any]
"""Fields of one observation that no array holds: `agents` if it is text, and `candidates`."""


class SharedBlock:
    """Block of shared memory without a name. The kernel frees it with the last process that holds it.

    Pickling it while a process starts gives that process the same block.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> "SharedBlock":
        """Return an empty block."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("marl"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (DupFd(self.descriptor),)

    def resize(self, size: int) -> mmap.mmap:
        """Set the size to `size` zero bytes and map them. Call it once, before other processes map the block."""
        os.ftruncate(self.descriptor, size)
        return self.map(size)

    def map(self, size: int) -> mmap.mmap:
        """Map the first `size` bytes."""
        return mmap.mmap(self.descriptor, size)

    def close(self) -> None:
        """Close the descriptor. Maps stay valid."""
        os.close(self.descriptor)


def _receive(duplicate: Any) -> SharedBlock:
    return SharedBlock(duplicate.detach())


@dataclass(frozen=True)
class Buffers:
    """Arrays with leading axis E. Fields of `obs` and `final` without an array are None.

    `action`: (E, N) int64, (E, N, A) float32, or None for text. `reward`: (E, N) float32. `masked`: (E,) bool, True if
    the environment gives action masks. `duration`: (E,) int64, in steps. `agent_truncated`: (E, N) bool. `terminated`,
    `truncated`, `restarted`: (E,) bool.
    """

    obs: Obs
    final: Obs
    action: np.ndarray | None
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    masked: np.ndarray
    duration: np.ndarray
    agent_truncated: np.ndarray
    restarted: np.ndarray

    @classmethod
    def from_memory(cls, spec: EnvSpec, num_envs: int, memory: Any) -> "Buffers":
        """Return arrays of E environments inside a writable block of `Buffers.size(spec, E)` bytes."""
        arrays: dict[str, Any] = {}
        offset = 0
        for name, (shape, dtype) in _layout(spec, num_envs).items():
            arrays[name] = np.ndarray(shape, dtype, memory, offset)
            offset += _aligned(shape, dtype)
        obs, final = (
            Obs(**{name: arrays.pop(f"{part}.{name}", None) for name in ARRAYS})  # pyright: ignore[reportArgumentType]
            for part in ("obs", "final")
        )
        arrays.setdefault("action", None)
        return cls(obs, final, **arrays)

    def rows(self, rows: slice) -> "Buffers":
        """Return views of some environments' rows."""
        views: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, part in views.items():
            if part is not None:
                views[name] = observation_at(part, rows) if isinstance(part, Obs) else part[rows]
        return Buffers(**views)

    @staticmethod
    def size(spec: EnvSpec, num_envs: int) -> int:
        """Return the size of all arrays in bytes."""
        return sum(_aligned(*field) for field in _layout(spec, num_envs).values())


def _aligned(shape: tuple[int, ...], dtype: type) -> int:
    return -(-prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


def _layout(spec: EnvSpec, num_envs: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return the shape and type of each array by name. Raises EnvironmentContractError for an unsupported space."""
    rows = (num_envs, spec.num_agents)
    for kind, space, kinds in (
        ("observation", spec.observation_space, (Box, Text)),
        *(("action", space, (Discrete, Box) if spec.mixed else (Discrete, Box, Text)) for space in spec.action_spaces),
    ):
        if not isinstance(space, kinds) or (isinstance(space, Box) and len(space.shape) != 1):
            allowed = ", ".join("Box with one axis" if kind is Box else kind.__name__ for kind in kinds)
            raise EnvironmentContractError(f"{spec.name}: {kind} space {space} is none of {allowed}")
    part: dict[str, tuple[tuple[int, ...], type]] = {"alive": (rows, np.bool_)}
    if isinstance(spec.observation_space, Box):
        part["agents"] = ((*rows, spec.observation_size), np.float32)
    if not isinstance(spec.action_space, Text):
        part["action_mask"] = ((*rows, spec.action_size), np.bool_)
    if spec.state_space is not None:
        part["state"] = ((num_envs, spec.state_size), np.float32)
    layout = {f"{name}.{field}": value for name in ("obs", "final") for field, value in part.items()}
    layout |= {"reward": (rows, np.float32), "agent_truncated": (rows, np.bool_)}
    layout |= dict.fromkeys(("terminated", "truncated", "masked", "restarted"), ((num_envs,), np.bool_))
    layout["duration"] = ((num_envs,), np.int64)
    if spec.discrete:
        layout["action"] = (rows, np.int64)
    elif spec.continuous or spec.mixed:
        layout["action"] = ((*rows, spec.action_size), np.float32)
    return layout


def observation_at(obs: Obs, rows: Any) -> Obs:
    """Return the arrays of `obs` at an index, a slice or a list of indices along the first axis."""
    cut = {name: None if (array := getattr(obs, name)) is None else array[rows] for name in ARRAYS}
    return Obs(**cut)  # pyright: ignore[reportArgumentType] - `alive` is never None


def arrays_of(obs: Obs) -> dict[str, np.ndarray]:
    """Return the arrays of an observation by name."""
    return {name: array for name in ARRAYS if (array := getattr(obs, name)) is not None}
