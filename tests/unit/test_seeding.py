"""Random streams: the same name always the same, another name another, none in the way of the next."""

import json
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from marl.errors import ConfigError
from marl.seeding import Streams, global_state, own_globals, seed_everything, set_global_state

KEYS = [("env",), ("env", 0), ("env", 1), ("env", 0, 0), ("env", 1, 0), ("env", 0, 1), ("env", 10), ("env", 2**32)]
KEYS += [
    ("env", 0, 1, 0),
    ("env,0",),
    ("env0",),
    ("env 0",),
    ('env", 0',),
    ("eval", 0),
    ("policy",),
    ("", 0),
    ("Env", 0),
]


def test_the_streams_never_change():
    """Results that are published with a seed stay reproducible: a change here breaks them all."""
    streams = Streams(7)
    assert streams.numpy("policy").bit_generator.random_raw(2).tolist() == [7784837215222798971, 7862138579843098978]
    assert streams.torch("policy").initial_seed() == 549056340053150511
    assert [streams.integer("env", 0), streams.integer("env", 1), streams.integer("eval", 0)] == [
        135400290,
        1813918527,
        1966888817,
    ]


def test_a_stream_does_not_depend_on_the_process_or_on_what_was_asked_before():
    streams = Streams(3)
    for index in range(5):
        streams.numpy("other", index).random()
    code = "from marl.seeding import Streams; print(Streams(3).integer('env', 4))"
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "99"}, capture_output=True, text=True, check=True
    )
    assert int(other.stdout) == streams.integer("env", 4)
    three: Any = np.int64(3)
    assert streams.numpy("a", 3).random() == Streams(three).numpy("a", three).random()


def test_each_call_starts_the_stream_anew():
    streams = Streams(0)
    first, second = streams.torch("policy", 1), streams.torch("policy", 1)
    torch.rand(9, generator=first)
    assert torch.equal(torch.rand(3, generator=second), torch.rand(3, generator=streams.torch("policy", 1)))


@pytest.mark.parametrize("draw", ["numpy", "torch", "integer"])
def test_another_seed_name_index_or_kind_is_another_stream(draw):
    seen = set()
    for seed in (0, 1, 2**32, 2**64, 2**128, 2**160 + 1):
        for key in KEYS:
            stream = getattr(Streams(seed), draw)(*key)
            seen.add(
                {"numpy": lambda s: s.random(), "torch": torch.Generator.initial_seed, "integer": int}[draw](stream)
            )
    assert len(seen) == 6 * len(KEYS)


def test_kinds_of_one_name_do_not_share_their_seed():
    streams = Streams(5)
    assert streams.torch("env").initial_seed() & 0xFFFFFFFF not in (
        streams.integer("env"),
        2 * streams.integer("env"),
        2 * streams.integer("env") + 1,
    )


def test_streams_are_uncorrelated_across_neighboring_indices_and_seeds():
    drawn = [Streams(seed).numpy("env", index).normal(size=2000) for seed in range(5) for index in range(8)]
    drawn += [
        torch.randn(2000, generator=Streams(seed).torch("env", index), dtype=torch.float64).numpy()
        for seed in range(5)
        for index in range(8)
    ]
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(2000)


def test_integers_are_seeds_and_spread_evenly():
    streams = Streams(11)
    seeds = np.array([streams.integer("env", index) for index in range(4000)])
    assert seeds.min() >= 0
    assert seeds.max() < 2**31
    assert len(np.unique(seeds)) >= 3999, "a pair in 4000 of 2^31 meets about once in 270 runs"
    counts = np.histogram(seeds, bins=16, range=(0, 2**31))[0]
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)
    assert ((seeds & 1).mean() - 0.5) ** 2 < 25 / (4 * 4000)


@pytest.mark.parametrize("seed", [-1, 1.0, "7", None, True])
def test_a_seed_that_is_no_whole_number_is_named(seed):
    with pytest.raises(ConfigError, match=f"seed={seed!r} "):
        Streams(seed)
    with pytest.raises(ConfigError, match=f"seed={seed!r} "):
        seed_everything(seed)


def test_an_index_that_is_no_whole_number_is_named():
    wrong: list[Any] = [-1, 0.5, "0"]
    for index in wrong:
        with pytest.raises(ConfigError, match=f"index of stream 'env'={index!r} "):
            Streams(0).integer("env", 3, index)


def test_a_seed_is_for_good():
    with pytest.raises(FrozenInstanceError):
        setattr(Streams(0), "seed", 1)  # noqa: B010 - a type checker refuses the plain form, as it should


def test_fixed_globals_repeat_and_differ_by_seed():
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002

    def drawn(seed):
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    try:
        assert drawn(1) == drawn(1)
        assert not set(drawn(1)) & set(drawn(2**40))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def test_ranks_have_global_streams_of_their_own():
    with own_globals(0):
        drawn = []
        for indices in ((), (0,), (1,)):
            seed_everything(7, *indices)
            drawn += [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    assert len(set(drawn)) == 9


def test_own_globals_leave_those_outside_as_they_were():
    def drawn():
        return random.gauss(0, 1), np.random.randn(), torch.randn(()).item()  # noqa: NPY002

    with own_globals(0):
        drawn()  # a generator of normal numbers keeps the second of a pair
        state = json.loads(json.dumps(global_state()))
        expected = [drawn() for _ in range(3)]
        set_global_state(state)
        with own_globals(5):
            inside = drawn()
        assert [drawn() for _ in range(3)] == expected
        with own_globals(5):
            assert drawn() == inside
        assert inside not in expected
