"""Conversion of other libraries' spaces: observations to vectors, actions to Discrete or Box, and action masks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten, flatten_space

from marl.errors import ConfigError, EnvironmentContractError, UnknownNameError
from marl.registry import unknown_name_message

MASK = "action_mask"
"""Entry of a Dict observation or of an info that holds the action mask."""
SUPPORTED_ACTIONS = "Discrete, and Box of a float type"
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


class ObservationReader:
    """Converts the observations of one agent to a vector (D,) float32 and an action mask (A,) bool.

    `space` is flattened: images row by row, categories as one-hots. For an agent with Discrete actions, the entry
    `action_mask` of a Dict is the mask and not part of the vector. `ignore` names entries of a Dict to leave out.
    Raises ConfigError for a space that cannot be flattened, UnknownNameError for a name in `ignore` that it lacks.
    """

    def __init__(self, space: spaces.Space, action_space: spaces.Space, where: str, ignore: Sequence[str] = ()) -> None:
        self._where = where
        self._num_actions = int(action_space.n) if isinstance(action_space, spaces.Discrete) else 0
        self._masked = False
        if ignore and not isinstance(space, spaces.Dict):
            raise ConfigError(f"{where}: ignore={tuple(ignore)}, but {space} is not a Dict; leave `ignore` out")
        if isinstance(space, spaces.Dict):
            for name in ignore:
                if name not in space.spaces:
                    raise UnknownNameError(
                        unknown_name_message(f"observation entry of {where}", name, map(str, space.spaces))
                    )
            self._masked = self._num_actions > 0 and MASK in space.spaces
            kept = [name for name in space.spaces if name not in ignore and not (self._masked and name == MASK)]
            if not kept:
                raise ConfigError(f"{where}: nothing is left of the observation {space}; keep at least one entry")
            self._kept: Any = kept[0] if len(kept) == 1 else None
            space = space[kept[0]] if len(kept) == 1 else spaces.Dict([(name, space[name]) for name in kept])
        else:
            self._kept = None
        self._space = space
        self.box = flat_box(space, where)

    def read(self, observation: Any, info: Mapping[str, Any], over: bool = False) -> tuple[np.ndarray, Any]:
        """Return the vector (D,) and the mask (A,), or None if neither the observation nor `info` has a mask.

        If the episode is `over`, a mask without available actions allows the first one. Raises
        EnvironmentContractError for an observation outside the space and for a mask of another size.
        """
        mask = observation[MASK] if self._masked and isinstance(observation, Mapping) else info.get(MASK)
        mask = self._checked_mask(mask, over) if self._num_actions and mask is not None else None
        try:
            own = observation if self._kept is None else observation[self._kept]
            vector = flat_vector(self._space, own)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._not_in_space(observation) from error
        if vector.shape != self.box.shape:
            raise self._not_in_space(observation)
        return vector, mask

    def _checked_mask(self, mask: Any, over: bool) -> np.ndarray:
        available = np.asarray(mask, dtype=bool)
        if available.shape != (self._num_actions,):
            raise EnvironmentContractError(
                f"{self._where}: `action_mask` has shape {available.shape}; give one entry for each of the "
                f"{self._num_actions} actions"
            )
        return np.arange(self._num_actions) == 0 if over and not available.any() else available

    def _not_in_space(self, observation: Any) -> EnvironmentContractError:
        return EnvironmentContractError(
            f"{self._where}: the observation {observation!r:.200} is not in the declared space {self._space}"
        )


def declared_space(space: Any, where: str) -> spaces.Space:
    """Return a Gymnasium space, converted from the old `gym` package if needed. Raises ConfigError for others."""
    if isinstance(space, spaces.Space):
        return space
    kind = type(space).__name__
    if type(space).__module__.partition(".")[0] == "gym":
        if kind == "Box":
            return spaces.Box(space.low, space.high, dtype=space.dtype)
        if kind == "Discrete":
            return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(space.nvec)
        if kind == "MultiBinary":
            return spaces.MultiBinary(space.n)
        if kind == "Tuple":
            return spaces.Tuple([declared_space(inner, where) for inner in space.spaces])
        if kind == "Dict":
            return spaces.Dict([(name, declared_space(inner, where)) for name, inner in space.spaces.items()])
    raise ConfigError(
        f"{where} is {space!r:.100} ({type(space).__module__}.{kind}), not a Gymnasium space; declare a "
        "gymnasium.spaces.Space"
    )


def flat_box(space: spaces.Space, where: str) -> spaces.Box:
    """Return the Box (D,) float32 of `flat_vector`. Raises ConfigError for a space that cannot be flattened."""
    odd = dict(_unflattenable(space))
    if odd:
        if not isinstance(space, spaces.Dict):
            raise ConfigError(f"{where}: observations {space} are not supported; supported: {SUPPORTED_OBSERVATIONS}")
        kind_of = {path[0]: type(inner).__name__ for path, inner in odd.items()}
        names = " ".join(map(str, kind_of))
        kinds = ", ".join(f"{name!r} ({kind})" for name, kind in kind_of.items())
        kept = [name for name in space.spaces if name not in kind_of]
        raise ConfigError(
            f"{where}: the observation entries {kinds} cannot be flattened; supported: {SUPPORTED_OBSERVATIONS}. Leave "
            f"them out with `--ignore {names}`, or in code with "
            f"gymnasium.wrappers.FilterObservation(env, {kept})"
        )
    flat: Any = flatten_space(space)
    with np.errstate(over="ignore"):
        return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _unflattenable(space: spaces.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Space]]:
    """Yield the path and space of every part that has no vector of fixed width."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        entries = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, inner in entries:
            yield from _unflattenable(inner, (*path, name))
        return
    try:
        flat = None if isinstance(space, spaces.Text) else flatten_space(space)
    except NotImplementedError:  # a custom space
        flat = None
    if not isinstance(flat, spaces.Box):
        yield path, space


def flat_vector(space: spaces.Space, value: Any) -> np.ndarray:
    """Return an observation as a vector (D,) float32."""
    if type(space) is spaces.Box:
        return np.asarray(value, dtype=np.float32).reshape(-1)
    return np.asarray(flatten(space, value), dtype=np.float32)


def flat_action(space: spaces.Space, where: str, team: bool = False) -> spaces.Discrete | spaces.Box:
    """Return Discrete(A) from 0, or a Box (A,) float32. Raises ConfigError for any other kind of action.

    `team`: the space belongs to one agent of several, so the advice in the error names no Gymnasium wrapper.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low.reshape(-1), high.reshape(-1), dtype=np.float32)
    raise ConfigError(
        f"{where}: actions {space} are not supported; supported: {SUPPORTED_ACTIONS}. {_action_remedy(space, team)}"
    )


def _action_remedy(space: spaces.Space, team: bool) -> str:
    """Return advice for converting an unsupported action space."""
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        binary = isinstance(space, spaces.MultiBinary)
        sizes = [2] * math.prod(space.shape) if binary else np.ravel(space.nvec).tolist()
        start = 0 if binary else np.ravel(space.start).tolist()
        offset = f" + {start}" if np.any(start) else ""
        advice = "Number its combinations"
        old, new = f"np.array(np.unravel_index(action, {sizes})){offset}", f"spaces.Discrete({math.prod(sizes)})"
    elif isinstance(space, spaces.Box):
        advice, old, new = "Round", f"np.round(action).astype({space.dtype})", f"spaces.Box(..., {space.shape})"
    elif isinstance(space, spaces.Tuple | spaces.Dict):
        return (
            "A Tuple or Dict of actions is a team's if the observation space is one too, with an entry for each agent; "
            "for a single agent join the parts with gymnasium.wrappers.TransformAction"
        )
    else:
        return "Convert from a supported space"
    if team:
        return f"{advice}: declare gymnasium.{new} for each agent, and convert in `step`: {old}"
    return f"{advice}: gymnasium.wrappers.TransformAction(env, lambda action: {old}, gymnasium.{new})"


def inner_action(space: spaces.Space, action: np.ndarray) -> Any:
    """An agent's own action (), or (A,) with padding beyond its width, as a member of its space."""
    if isinstance(space, spaces.Discrete):
        return int(np.ravel(action)[0]) + int(space.start)
    assert isinstance(space, spaces.Box)
    own = np.asarray(action)[: space.low.size].reshape(space.shape)
    return np.clip(own, space.low, space.high).astype(space.dtype)


def scalars(info: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the entries of an info that are single numbers within the range of a float."""
    kept: dict[str, float] = {}
    for name, value in info.items():
        array = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "biuf"
        if array or isinstance(value, int | float | np.number | np.bool_):
            with suppress(OverflowError):
                kept[f"{prefix}{name}"] = float(value)
    return kept


def rendered(env: Any) -> np.ndarray | str | None:
    """Return what `env.render` returns; None for a render mode that returns nothing or opens a window."""
    if getattr(env, "render_mode", None) in (None, "human"):
        return None
    frame = env.render()
    return frame if isinstance(frame, np.ndarray | str) else None
