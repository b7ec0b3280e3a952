"""EnvSpec to JSON and back, so that a trained policy loads without its simulator."""

import dataclasses
from typing import Any

import gymnasium
import numpy as np

from marl.errors import CheckpointError
from marl.types import EntityLayout, EnvSpec

_SPACES = ("observation_space", "action_space", "state_space")


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    data = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    if spec.entities is not None:
        data["entities"] = dataclasses.asdict(spec.entities)
    return data | {name: _space_to_json(data[name]) for name in _SPACES}


def spec_from_json(data: dict[str, Any]) -> EnvSpec:
    """The inverse of `spec_to_json`; lists become tuples again."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    if (entities := fields.get("entities")) is not None:
        blocks = tuple(tuple(block) for block in entities["blocks"])
        fields["entities"] = EntityLayout(**(entities | {"blocks": blocks}))
    return EnvSpec(**(fields | {name: _space_from_json(data[name]) for name in _SPACES}))


def _space_to_json(space: gymnasium.Space | None) -> dict[str, Any] | None:
    if space is None:
        return None
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n)}
    if isinstance(space, gymnasium.spaces.Box):
        bounds = {name: [repr(float(x)) for x in getattr(space, name)] for name in ("low", "high")}
        return {"kind": "box", "dtype": str(space.dtype), **bounds}
    if isinstance(space, gymnasium.spaces.Text):
        return {"kind": "text", "max_length": space.max_length, "characters": space.characters}
    if isinstance(space, gymnasium.spaces.Tuple):
        return {"kind": "tuple", "spaces": [_space_to_json(each) for each in space.spaces]}
    raise CheckpointError(f"a {type(space).__name__} space cannot be saved; use Box, Discrete, Text or a Tuple")


def _space_from_json(data: dict[str, Any] | None) -> Any:
    if data is None:
        return None
    if data["kind"] == "discrete":
        return gymnasium.spaces.Discrete(data["n"])
    if data["kind"] == "box":
        dtype: Any = np.dtype(data["dtype"]).type
        low, high = (np.array([float(x) for x in data[name]], dtype=dtype) for name in ("low", "high"))
        return gymnasium.spaces.Box(low, high, dtype=dtype)
    if data["kind"] == "tuple":
        return gymnasium.spaces.Tuple([_space_from_json(each) for each in data["spaces"]])
    return gymnasium.spaces.Text(data["max_length"], charset=data["characters"])
