"""Random actions, storage and bit-for-bit comparison for the checks."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.envs.testing.contract import Promise, fail
from marl.protocols import State
from marl.types import EnvSpec, Obs, Step


def blank_action(spec: EnvSpec) -> Any:
    """Return zeros or empty texts in the shape of an action."""
    if isinstance(spec.action_space, spaces.Text):
        return np.array([""] * spec.num_agents, dtype=object)
    if spec.discrete:
        return np.zeros(spec.num_agents, dtype=np.int64)
    return np.zeros((spec.num_agents, spec.action_size), dtype=np.float32)


def random_action(spec: EnvSpec, obs: Obs, generator: np.random.Generator) -> Any:
    """Return random available actions: (N,) int64, (N, A) float32, or N strings from the candidates or the words."""
    space = spec.action_space
    if isinstance(space, spaces.Tuple):
        return _mixed_action(spec, obs, generator)
    if isinstance(space, spaces.Text):
        candidates = obs.candidates or (spec.words or ("wait",),) * spec.num_agents
        texts = [str(generator.choice(each)) for each in candidates]
        return np.array(texts, dtype=object)
    if isinstance(space, spaces.Box):
        low = np.where(np.isfinite(space.low), space.low, -1.0)
        high = np.where(np.isfinite(space.high), space.high, 1.0)
        action = generator.uniform(low, high, size=(spec.num_agents, spec.action_size)).astype(np.float32)
        return action if obs.action_mask is None else np.where(obs.action_mask, action, np.float32(0))
    mask = np.ones((spec.num_agents, spec.action_size), dtype=bool) if obs.action_mask is None else obs.action_mask
    return np.array([generator.choice(np.flatnonzero(row)) for row in mask], dtype=np.int64)


def _mixed_action(spec: EnvSpec, obs: Obs, generator: np.random.Generator) -> np.ndarray:
    action = np.zeros((spec.num_agents, spec.action_size), dtype=np.float32)
    for agent, (space, size) in enumerate(zip(spec.action_spaces, spec.action_sizes, strict=True)):
        alone = replace(spec, agents=("alone",), agent_types=(), action_space=space, action_sizes=())
        mask = None if obs.action_mask is None else obs.action_mask[agent : agent + 1, :size]
        own = random_action(alone, Obs(obs.agents, obs.alive, mask), generator)
        action[agent, : own.size] = own.ravel()
    return action


def difference(expected: Any, actual: Any, field: str) -> str | None:
    """Describe the first entry in which two values differ, or return None. Arrays are compared bit for bit."""
    if isinstance(expected, Obs | Step) and type(actual) is type(expected):
        found = (difference(getattr(expected, f.name), getattr(actual, f.name), f.name) for f in fields(expected))
        return next((text for text in found if text), None)
    if isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray):
        if expected.shape != actual.shape or expected.dtype != actual.dtype:
            return f"{field} is {actual.dtype} {actual.shape}, it was {expected.dtype} {expected.shape}"
        pairs = zip(actual.flat, expected.flat, strict=True)
        unequal = (
            [new.tobytes() != old.tobytes() for new, old in pairs] if actual.tobytes() != expected.tobytes() else []
        )
        if not any(unequal):
            return None
        place = tuple(int(index) for index in np.unravel_index(unequal.index(True), actual.shape))
        return f"{field}{list(place) or ''} is {actual[place]}, it was {expected[place]}"
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        if expected.keys() != actual.keys():
            return f"{field} has the keys {sorted(actual)}, it had {sorted(expected)}"
        found = (difference(expected[key], actual[key], f"{field}[{key!r}]") for key in expected)
        return next((text for text in found if text), None)
    if isinstance(expected, np.ndarray) or isinstance(actual, np.ndarray):
        return f"{field} is a {type(actual).__name__}, it was a {type(expected).__name__}"
    if isinstance(expected, float) and expected != expected:
        expected, actual = str(expected), str(actual)
    return None if expected == actual else f"{field} is {actual!r}, it was {expected!r}"


def overwritten(kept: Obs | Step, shown: Obs | Step) -> list[str]:
    """Return the fields of `shown` that differ from its copy `kept`."""
    names: list[str] = []
    for f in fields(kept):
        one, other = getattr(kept, f.name), getattr(shown, f.name)
        if isinstance(one, Obs):
            names += [f"{f.name}.{inner}" for inner in overwritten(one, other)]
        elif difference(one, other, f.name):
            names.append(f.name)
    return names


def same(promise: Promise, where: str, expected: Any, actual: Any) -> None:
    """Fail with the first entry that differs unless both values are equal bit for bit."""
    found = difference(expected, actual, "value")
    if found:
        fail(promise, where, f"{found}; expected no difference")


def through_storage(state: Any, where: str) -> State:
    """Return the state as a checkpoint restores it: arrays copied, the rest through JSON."""
    if not isinstance(state, dict):
        fail(Promise.RESTORE, where, f"get_state gave a {type(state).__name__}; expected a dictionary or None")
    saved: State = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            saved[name] = value.copy()
            continue
        try:
            saved[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            fail(Promise.RESTORE, where, f"state[{name!r}] is neither an array nor JSON ({error}); expected either")
    return saved
