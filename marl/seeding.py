"""One seed to named, independent random streams.

A stream is known by its name and any number of indices, `streams.numpy("minibatch", rank)`, and depends on nothing
else: neither on the order in which streams are asked for nor on how many there are. Adding one changes no other.
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
    """The random streams of one run. A rank is an index like any other: give it where ranks must differ.

    Raises ConfigError for a seed that is not a whole number of 0 or more.
    """

    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _require_integer("seed", self.seed))

    def numpy(self, name: str, *indices: int) -> np.random.Generator:
        """A new PCG64 generator at the start of the stream."""
        return np.random.Generator(np.random.PCG64(self._sequence("numpy", name, indices)))

    def torch(self, name: str, *indices: int, device: str | torch.device = "cpu") -> torch.Generator:
        """A new generator at the start of the stream, on the device that will draw from it.

        Torch's CPU generator takes 32 bits of seed, so n streams share a start with a chance of about n^2 / 2^33.
        """
        generator = torch.Generator(device)
        generator.manual_seed(int(self._sequence("torch", name, indices).generate_state(1, np.uint64)[0]))
        return generator

    def integer(self, name: str, *indices: int) -> int:
        """A seed in [0, 2^31), for an environment or whatever else takes an integer."""
        return int(self._sequence("integer", name, indices).generate_state(1, np.uint32)[0]) >> 1

    def _sequence(self, kind: str, name: str, indices: tuple[int, ...]) -> np.random.SeedSequence:
        """Seeded by the run's seed and a hash of the rest, written so that no two streams read alike."""
        text = json.dumps([kind, name, *(_require_integer(f"index of stream {name!r}", index) for index in indices)])
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.SeedSequence(self.seed, spawn_key=tuple(int(word) for word in np.frombuffer(digest, "<u4")))


def seed_everything(seed: int, *indices: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices), for third-party code that draws from them.

    `indices` tell processes of one run apart. The project's own code draws from `Streams` only.
    """
    streams = Streams(seed)
    random.seed(streams.integer("global python", *indices))
    np.random.seed(streams.integer("global numpy", *indices))  # noqa: NPY002 - the legacy generator is the one to fix
    torch.manual_seed(streams.integer("global torch", *indices))


def global_state() -> dict[str, Any]:
    """Positions of the global generators of python, numpy and torch, as JSON values.

    Of torch these are the CPU's and, once CUDA is in use, each device's, in hexadecimal.
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
    """Set the global generators to what `global_state` saw; CUDA devices that are not here are passed over."""
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
    """Draws from the global generators inside start from `seed` and leave those outside as they were."""
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
        raise ConfigError(f"{what} is {value!r}; give a whole number of 0 or more")
    return number
