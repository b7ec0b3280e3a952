"""Named, independent random streams from one seed.

A stream is identified by its name and any number of indices, as in `streams.numpy("minibatch", rank)`. It does not
depend on other streams, so adding one changes none.
"""

import hashlib
import json
import operator
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from marl.errors import ConfigError


@dataclass(frozen=True)
class Streams:
    """Random streams of one run. Give the rank as an index if ranks must differ.

    Raises ConfigError for a seed that is not an integer of 0 or more.
    """

    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _require_integer("seed", self.seed))

    def numpy(self, name: str, *indices: int) -> np.random.Generator:
        """Return a new PCG64 generator at the start of the stream."""
        return np.random.Generator(np.random.PCG64(self._sequence("numpy", name, indices)))

    def torch(self, name: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
        """Return a new generator at the start of the stream, on `device`.

        Torch's CPU generator uses 32 bits of the seed: two of n streams coincide with probability n^2 / 2^33.
        """
        generator = torch.Generator(device)
        generator.manual_seed(int(self._sequence("torch", name, indices).generate_state(1, np.uint64)[0]))
        return generator

    def integer(self, name: str, *indices: int) -> int:
        """Return a seed in [0, 2^31), for an environment for example."""
        return int(self._sequence("integer", name, indices).generate_state(1, np.uint32)[0]) >> 1

    def _sequence(self, kind: str, name: str, indices: tuple[int, ...]) -> np.random.SeedSequence:
        """Return the sequence of the run's seed and a hash of kind, name and indices."""
        text = json.dumps([kind, name, *(_require_integer(f"index of stream {name!r}", index) for index in indices)])
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.SeedSequence(self.seed, spawn_key=tuple(int(word) for word in np.frombuffer(digest, "<u4")))


def seed_everything(seed: int, *indices: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices), for third-party code.

    `indices` distinguish the processes of a run. Code of this package draws from `Streams` only.
    """
    streams = Streams(seed)
    random.seed(streams.integer("global python", *indices))
    np.random.seed(streams.integer("global numpy", *indices))  # noqa: NPY002 - the legacy generator is the one to fix
    torch.manual_seed(streams.integer("global torch", *indices))


def global_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch, as JSON values.

    Those of torch are hexadecimal: the CPU's and, once CUDA is initialized, each device's.
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - third-party code draws from it
    state = legacy["state"]
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": legacy | {"state": state | {"key": state["key"].tolist()}},
        "torch": [bytes(each.numpy()).hex() for each in (torch.get_rng_state(), *devices)],
    }


def set_global_state(saved: Mapping[str, Any]) -> None:
    """Set the global generators to a state of `global_state`. CUDA devices that are absent here are skipped."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    legacy = saved["numpy"]
    state = legacy["state"]
    key = np.array(state["key"], dtype=np.uint32)
    np.random.set_state(legacy | {"state": state | {"key": key}})  # noqa: NPY002 - third-party code draws from it
    cpu, *devices = (torch.frombuffer(bytearray.fromhex(each), dtype=torch.uint8) for each in saved["torch"])
    torch.set_rng_state(cpu)
    for index, device in enumerate(devices[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device, index)


@contextmanager
def own_globals(seed: int) -> Iterator[None]:
    """Seed the global generators with `seed` inside the context, and restore them at its end."""
    before = global_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_global_state(before)


def _require_integer(what: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ConfigError(f"{what}={value!r} is no integer of 0 or more; set one")
    return number
