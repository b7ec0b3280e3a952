"""Values through a checkpoint: environment states, optimizers and random streams come back bit for bit."""

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.checkpoint.codec import pack, pack_optimizer, rng_state, set_rng_state, unpack, unpack_optimizer
from marl.checkpoint.store import load, save
from marl.errors import CheckpointError

QUICK = settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def same(left, right):
    """Equal in value, type, dtype, shape and bits."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    return left == right or (left != left and right != right)


def through_disk(value):
    tensors, data = pack(value)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), 0, {"value": tensors}, {"value": data})
        found = load(Path(folder))
        return unpack(found.tensors["value"], found.data["value"])


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int16", "int64", "uint16", "uint64", "float16", "bfloat16", "float32", "float64", "complex64"],
)
def test_every_tensor_dtype_and_odd_shape_survives(tmp_path, dtype):
    dtype = getattr(torch, dtype)
    tensors = {"scalar": torch.ones((), dtype=dtype), "empty": torch.ones((0, 3), dtype=dtype)}
    tensors["matrix"] = torch.arange(6).reshape(2, 3).to(dtype)
    save(tmp_path, 1, {"group": tensors, "nothing": {}}, {})
    found = load(tmp_path).tensors
    assert found["nothing"] == {}
    assert found["group"].keys() == tensors.keys()
    assert all(same(found["group"][name], tensor) for name, tensor in tensors.items())


def test_shared_strided_and_lazy_tensors_are_stored_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    group = {"all": base, "tied": base, "transposed": base.t(), "rows": base[1:], "every": base[:, ::2]}
    group["parameter"] = torch.nn.Parameter(base)
    group["negated"] = torch.view_as_complex(torch.ones(3, 2)).conj().imag
    expected = {name: tensor.detach().clone() for name, tensor in group.items()}
    save(tmp_path, 1, {"group": group}, {})
    found = load(tmp_path).tensors["group"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    found["all"].add_(1)
    assert torch.equal(found["tied"], expected["tied"])
    assert torch.equal(group["all"], expected["all"])


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
HUGE = st.integers(-(2**256), 2**256)
DTYPES = (
    hnp.scalar_dtypes()
    | hnp.complex_number_dtypes(endianness=">")
    | hnp.floating_dtypes(endianness=">")
    | st.just("U3")
)
ARRAYS = hnp.arrays(dtype=DTYPES, shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
SCALARS = hnp.scalar_dtypes().flatmap(hnp.from_dtype)
KEYS = st.text(max_size=5) | st.sampled_from(["$", "/", "a/b", "~", "__metadata__", "\ud800", "é"])
VALUES = st.recursive(
    ATOMS | HUGE | ARRAYS | SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.dictionaries(st.integers() | KEYS | st.tuples(st.integers(), st.text()), inner, max_size=3)
    ),
    max_leaves=8,
)


@QUICK
@given(VALUES)
def test_any_state_survives_the_disk(value):
    assert same(through_disk(value), value)


def test_keys_that_read_alike_stay_apart():
    left, right, odd = np.zeros(1), np.ones(2), np.full(3, 2)
    value = {"a/b": left, "a": {"b": right, "": odd}, "a%2Fb": odd, "\ud800": right, "": left, 0: odd, "0": right}
    assert same(through_disk(value), value)
    del value[0]
    assert same(through_disk(value), value)


def test_states_of_a_vector_environment_survive():
    grid = np.arange(12, dtype=np.uint32).reshape(3, 4)
    state = {"grid": grid.T, "step": 7, "total": np.uint64(2**64 - 1), "done": np.array(True), "text": ["a", None]}
    state["rng"] = np.random.default_rng(5).bit_generator.state
    states = [state, None, {"backwards": grid[::-1], "legacy": np.random.MT19937(3).state}]
    found = through_disk(states)
    assert same(found, states)
    grid[:] = 0
    found[0]["grid"][0, 0] = 99
    assert found[2]["backwards"][0, 3] == 11, "copies are neither views of the environment nor of each other"


def test_packed_arrays_are_copies_and_unpacked_ones_are_writable():
    array = np.zeros(3)
    tensors, data = pack({"array": array})
    array[:] = 1
    first, second = unpack(tensors, data)["array"], unpack(tensors, data)["array"]
    first[:] = 2
    assert second.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"env": {"handle": object()}}, "/env/handle is a object"),
        ([{"names": np.array(["a", None], dtype=object)}], "/0/names is an array of object"),
        ({"pairs": np.zeros(2, dtype=[("x", "f4")])}, "/pairs is an array of"),
        ({"hidden": np.ma.masked_equal(np.arange(2), 1)}, "/hidden is a MaskedArray"),
        (b"bytes", "/ is a bytes"),
        ({"path": Path("a")}, "/path is a"),
    ],
)
def test_what_cannot_be_held_is_named(value, message):
    with pytest.raises(CheckpointError, match=message):
        pack(value)


def test_tensors_and_data_that_do_not_belong_together_are_refused():
    _, data = pack({"a": np.zeros(2)})
    with pytest.raises(CheckpointError, match="lacks the tensor '/a'; it has /b"):
        unpack({"/b": torch.zeros(2)}, data)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_continues_bit_for_bit(tmp_path, kind, amsgrad):
    def make(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        groups = [
            {"params": model[0].parameters(), "lr": 0.1 / 3},
            {"params": model[2].parameters(), "betas": (0.7, 0.9)},
        ]
        return model, kind(groups, amsgrad=amsgrad, weight_decay=0.01)

    def train(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    batches = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    model, optimizer = make(1)
    train(model, optimizer, batches[:3])
    tensors, data = pack_optimizer(optimizer)
    save(tmp_path, 3, {"model": model.state_dict(), "optimizer": tensors}, {"optimizer": data})
    found = load(tmp_path)
    resumed, other = make(2)
    resumed.load_state_dict(found.tensors["model"])
    unpack_optimizer(other, found.tensors["optimizer"], found.data["optimizer"])
    assert same(other.state_dict(), optimizer.state_dict())
    train(model, optimizer, batches[3:])
    train(resumed, other, batches[3:])
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), resumed.parameters(), strict=True))
    assert same(other.state_dict(), optimizer.state_dict())


def test_an_optimizer_shares_nothing_with_the_one_it_came_from():
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    first, second = (torch.optim.Adam([parameter]) for parameter in parameters)
    parameters[0].grad = torch.ones(2)
    first.step()
    unpack_optimizer(second, *pack_optimizer(first))
    first.step()
    state = second.state_dict()["state"][0]
    assert state["step"] == 1
    assert torch.allclose(state["exp_avg"], torch.full((2,), 0.1))


def test_an_optimizer_of_another_shape_is_refused():
    small, large = (torch.optim.Adam([torch.nn.Parameter(torch.ones(2)) for _ in range(count)]) for count in (1, 2))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        unpack_optimizer(large, *pack_optimizer(small))


def streams():
    kinds = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
    numpy_streams = {kind.__name__: np.random.Generator(kind(3)) for kind in kinds}
    return {**numpy_streams, "torch": torch.Generator().manual_seed(4)}


def draw(generators):
    drawn = []
    for generator in generators.values():
        if isinstance(generator, torch.Generator):
            drawn.append(torch.randn(3, generator=generator).tolist())
        else:
            drawn += [generator.integers(9, size=3, dtype=np.uint32).tolist(), generator.normal(size=3).tolist()]
    return [*drawn, random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()]  # noqa: NPY002


def test_every_random_stream_continues(tmp_path):
    generators = streams()
    draw(generators)  # an odd number of draws: half-used words and cached normals are part of the state
    tensors, data = rng_state(generators)
    save(tmp_path, 0, {"rng": tensors}, {"rng": data})
    expected = draw(generators)
    fresh = streams()
    assert draw(fresh) != expected
    found = load(tmp_path)
    set_rng_state(fresh, found.tensors["rng"], found.data["rng"])
    assert draw(fresh) == expected


def test_random_streams_of_another_run_are_refused():
    tensors, data = rng_state({"policy": torch.Generator(), "env": np.random.default_rng(0)})
    with pytest.raises(CheckpointError, match=r"\['env', 'policy'\], the run has \['policy'\]"):
        set_rng_state({"policy": torch.Generator()}, tensors, data)
    for swapped in (np.random.Generator(np.random.MT19937(0)), torch.Generator()):
        with pytest.raises(CheckpointError, match="'env' was of another kind"):
            set_rng_state({"policy": torch.Generator(), "env": swapped}, tensors, data)
