"""Packing of nested values, optimizers and random streams into tensors and JSON, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from marl.errors import CheckpointError
from marl.seeding import global_state, set_global_state

Packed = tuple[dict[str, Tensor], Any]
"""Tensors for a group of a checkpoint, and the JSON value that refers to them by name."""

Generators = Mapping[str, torch.Generator | np.random.Generator]

_TAG = "$"
_TYPED = {np.dtype(kind) for kind in ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")}


def pack(value: Any) -> Packed:
    """Split nested lists, tuples and dictionaries of arrays, tensors and JSON values; `unpack` restores them.

    It keeps integers of any size, None, NumPy scalars, dictionary keys that are no strings, and every NumPy dtype of
    fixed size without fields. Arrays are copied, tensors are not.

    Raises CheckpointError for anything else, with its place.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(value, "", tensors)


def unpack(tensors: Mapping[str, Tensor], data: Any) -> Any:
    """Return the value that was packed. It shares no memory with `tensors`.

    Raises CheckpointError if tensors and data do not belong together.
    """
    if isinstance(data, list):
        return [unpack(tensors, item) for item in data]
    if not isinstance(data, dict):
        return data
    if _TAG not in data:
        return {key: unpack(tensors, item) for key, item in data.items()}
    kind = data[_TAG]
    if kind == "tuple":
        return tuple(unpack(tensors, data["items"]))
    if kind == "dict":
        return {unpack(tensors, key): unpack(tensors, item) for key, item in data["items"]}
    if data["name"] not in tensors:
        raise CheckpointError(f"the checkpoint lacks the tensor {data['name']!r}; it has {', '.join(sorted(tensors))}")
    tensor = tensors[data["name"]]
    if kind == "tensor":
        return tensor.clone()
    return _to_array(tensor, data)[() if kind == "scalar" else ...]


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encode(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {_TAG: "tuple", "items": _encode(list(value), where, tensors)}
    if type(value) is dict:
        return _encode_dict(value, where, tensors)
    name = where or "/"
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {_TAG: "tensor", "name": name}
    if type(value) is np.ndarray or isinstance(value, np.generic):
        tensors[name], dtype = _from_array(np.asarray(value), name)
        return {_TAG: "array" if type(value) is np.ndarray else "scalar", "name": name, **dtype}
    raise CheckpointError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; "
        "use numbers, strings, lists, tuples, dictionaries, arrays or tensors"
    )


def _encode_dict(value: dict[Any, Any], where: str, tensors: dict[str, Tensor]) -> Any:
    if all(type(key) is str for key in value) and _TAG not in value:
        return {
            key: _encode(item, f"{where}/{quote(key, safe='', errors='surrogatepass')}", tensors)
            for key, item in value.items()
        }
    pairs = [_encode(list(pair), f"{where}/{index}", tensors) for index, pair in enumerate(value.items())]
    return {_TAG: "dict", "items": pairs}


def _from_array(array: np.ndarray, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Return the array as a tensor of its dtype, or as bytes with dtype and shape as JSON."""
    if array.dtype in _TYPED:
        return torch.from_numpy(np.array(array, order="C")), {}
    if array.dtype.kind not in "biufcSUmM":
        raise CheckpointError(f"{name} is an array of {array.dtype}, which a checkpoint cannot hold; split it")
    raw = torch.from_numpy(np.array(bytearray(array.tobytes()), dtype=np.uint8))
    return raw, {"dtype": array.dtype.str, "shape": list(array.shape)}


def _to_array(tensor: Tensor, data: Mapping[str, Any]) -> np.ndarray:
    array = tensor.cpu().numpy()
    if "dtype" not in data:
        return array.copy()
    return np.ndarray(data["shape"], np.dtype(data["dtype"]), buffer=array.tobytes()).copy()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Load the tensors of a checkpoint. Raises CheckpointError that names the first one that does not fit."""
    own = module.state_dict()
    for name in [*own, *tensors]:
        shapes = [list(group[name].shape) if name in group else None for group in (tensors, own)]
        if shapes[0] != shapes[1]:
            there, here = ("nothing" if shape is None else f"{shape}" for shape in shapes)
            raise CheckpointError(
                f"{source} holds {there} for {name!r} where this network has {here}: it is of another agent, of other "
                "agent options, or of another number of agents; load it with the configuration it was trained with"
            )
    module.load_state_dict(tensors)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> Packed:
    """Return state and options of every parameter group. The tensors are not copies."""
    return pack(optimizer.state_dict())


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], data: Any) -> None:
    """Continue from `pack_optimizer`, on the devices of the optimizer's parameters.

    Raises CheckpointError if the parameter groups do not fit.
    """
    try:
        optimizer.load_state_dict(unpack(tensors, data))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the optimizer of the checkpoint does not fit this model: {error}") from error


def rng_state(generators: Generators) -> Packed:
    """Return the states of the named generators and of the global ones of Python, NumPy and torch."""
    named = {
        name: stream.get_state() if isinstance(stream, torch.Generator) else stream.bit_generator.state
        for name, stream in generators.items()
    }
    return pack({"named": named, "global": global_state()})


def set_rng_state(generators: Generators, tensors: Mapping[str, Tensor], data: Any) -> None:
    """Set the generators in place, and the global ones, to the states of `rng_state`.

    Raises CheckpointError if names, kinds or devices of the generators differ.
    """
    state = unpack(tensors, data)
    if state["named"].keys() != generators.keys():
        raise CheckpointError(
            f"the checkpoint has the random streams {sorted(state['named'])}, the run has {sorted(generators)}"
        )
    for name, generator in generators.items():
        saved = state["named"][name]
        try:
            if isinstance(generator, torch.Generator):
                generator.set_state(saved.cpu())
            else:
                generator.bit_generator.state = saved
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the random stream {name!r} was of another kind: {error}") from error
    set_global_state(state["global"])
