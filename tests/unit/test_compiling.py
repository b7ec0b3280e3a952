"""Compilation of engines: parts are compiled within entries only, and any changed source makes the cache stale."""

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from marl.envs.compiling import OPTIONS, EngineCompiler, PartLibrary

compiler = EngineCompiler("marl.envs.sc2")


@compiler.part
def scaled(values, index, factor):
    return values[index] * factor


@compiler.part
def total(values, factor):
    result = 0.0
    for index in range(values.shape[0]):
        result += scaled(values, index, factor)
    return result + scaled(values, 0, 3)


@numba.njit(**OPTIONS)
def both(values):
    return total(values, 2) + total(values, 4)


def test_constants_as_arguments_share_one_version_without_machine_code():
    assert both(np.arange(4.0)) == 6 * 2 + 6 * 4
    for part in (scaled, total):
        (result,) = part.overloads.values()
        assert isinstance(result.library, PartLibrary)


def test_python_can_call_a_part():
    assert scaled(np.arange(4.0), 3, 0.5) == 1.5


def test_the_digest_sees_every_file(tmp_path):
    digests = set()
    for code, table in (("one = 1", "a,b"), ("one = 2", "a,b"), ("one = 2", "a,c")):
        (tmp_path / "functions.py").write_text(code)
        (tmp_path / "table.csv").write_text(table)
        digests.add(EngineCompiler.digest([tmp_path]))
    assert len(digests) == 3
