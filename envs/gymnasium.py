"""Gymnasium environments as teams of one: `gymnasium:<id>`, for example `gymnasium:CartPole-v1`.

Also the translation of spaces that this bridge shares with the PettingZoo one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatten, flatten_space

from marl.errors import ConfigError
from marl.protocols import State
from marl.registry import named_kwargs, register_env
from marl.types import EnvSpec, Obs, Step

SUPPORTED_ACTIONS = "Discrete, and Box of a float type"
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


@dataclass(frozen=True)
class GymnasiumOptions:
    """Options of a Gymnasium environment."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `gymnasium.make`."""
    max_steps: int | None = None
    """Length at which an episode is truncated; None is the environment's registered limit."""


class GymnasiumBridge:
    """A `gymnasium.Env` as an `Env` with the one agent "agent".

    Observations are flattened to a vector (Discrete ones to one-hots) of float32. Continuous actions are
    clipped to the action space; an `action_mask` in the info of a discrete environment is kept. An episode
    that both ends and reaches its limit is terminated, not truncated. The info of a step keeps its scalars.
    Raises ConfigError for spaces that have no such form.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = env
        registered = env.spec
        name = "gymnasium" if registered is None else f"gymnasium:{registered.id}"
        self.spec = EnvSpec(
            name=name,
            agents=("agent",),
            observation_space=flat_box(env.observation_space, name),
            action_space=flat_action(env.action_space, name),
            max_steps=None if registered is None else registered.max_episode_steps,
        )
        self._over = True
        self._closed = False

    def reset(self, seed: int | None = None) -> Obs:
        observation, info = self.env.reset(seed=seed)
        self._over = False
        return self._obs(observation, info)

    def step(self, action: np.ndarray) -> Step:
        if self._over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        own = inner_action(self.env.action_space, action[0])
        observation, reward, terminated, truncated, info = self.env.step(own)
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated
        self._over = terminated or truncated
        rewards = np.array([reward], dtype=np.float32)
        return Step(self._obs(observation, info), rewards, terminated, truncated, scalars(info))

    def _obs(self, observation: Any, info: dict[str, Any]) -> Obs:
        vector = flat_vector(self.env.observation_space, observation)
        mask = info.get("action_mask") if self.spec.discrete else None
        return Obs(
            agents=vector[None],
            alive=np.ones(1, dtype=bool),
            action_mask=None if mask is None else np.asarray(mask, dtype=bool)[None],
        )

    def render(self) -> np.ndarray | str | None:
        return shown(self.env)

    def get_state(self) -> None:
        """None: Gymnasium has no common way to save an environment."""

    def set_state(self, state: State) -> Obs:  # noqa: ARG002
        raise RuntimeError(f"{self.spec.name} cannot restore a state; its get_state is None")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()


def external(task: str, options: Mapping[str, Any]) -> list[str]:
    """Gymnasium imports the module of an id `MODULE:ID`; a plain id it looks up among those registered."""
    return [*([f"environment gymnasium:{task}"] if ":" in task else []), *named_kwargs(options)]


@register_env(
    "gymnasium",
    options=GymnasiumOptions,
    summary="any Gymnasium environment, as a team of one",
    external=external,
)
def make(task: str, kwargs: dict[str, Any] | None = None, max_steps: int | None = None) -> GymnasiumBridge:
    """`gymnasium.make(task, **kwargs)`, bridged. Raises ConfigError where Gymnasium cannot make it."""
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    try:
        env = gymnasium.make(task, **limit, **(kwargs or {}))
    except (gymnasium.error.Error, TypeError) as error:
        raise ConfigError(f"gymnasium cannot make {task!r} with {kwargs or {}}: {error}") from error
    return GymnasiumBridge(env)


def flat_box(space: spaces.Space, where: str) -> spaces.Box:
    """The Box (D,) float32 that holds `flat_vector` of the space's members. Raises ConfigError where none does."""
    flat = None if _holds_text(space) else flatten_space(space)
    if not isinstance(flat, spaces.Box):
        raise ConfigError(f"{where}: observations {space} are not supported; supported: {SUPPORTED_OBSERVATIONS}")
    with np.errstate(over="ignore"):
        return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def flat_vector(space: spaces.Space, value: Any) -> np.ndarray:
    """(D,) float32: an observation in one row."""
    if type(space) is spaces.Box:
        return np.asarray(value, dtype=np.float32).reshape(-1)
    return np.asarray(flatten(space, value), dtype=np.float32)


def flat_action(space: spaces.Space, where: str) -> spaces.Discrete | spaces.Box:
    """Discrete(A) from 0, or a Box (A,) float32. Raises ConfigError for any other kind of action."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low.reshape(-1), high.reshape(-1), dtype=np.float32)
    raise ConfigError(f"{where}: actions {space} are not supported; supported: {SUPPORTED_ACTIONS}")


def inner_action(space: spaces.Space, action: np.ndarray) -> Any:
    """An agent's own action (), or (A,) with padding beyond its width, as a member of its space."""
    if isinstance(space, spaces.Discrete):
        return int(np.ravel(action)[0]) + int(space.start)
    assert isinstance(space, spaces.Box)
    own = np.asarray(action)[: space.low.size].reshape(space.shape)
    return np.clip(own, space.low, space.high).astype(space.dtype)


def scalars(info: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The entries of an info dictionary that are single numbers."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in info.items()
        if isinstance(value, int | float | np.number | np.bool_)
    }


def shown(env: Any) -> np.ndarray | str | None:
    """What `env.render` returns, or None where the environment was made without a mode that returns something."""
    if getattr(env, "render_mode", None) is None:
        return None
    frame = env.render()
    return frame if isinstance(frame, np.ndarray | str) else None


def _holds_text(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Dict):
        return any(_holds_text(inner) for inner in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return any(_holds_text(inner) for inner in space.spaces)
    return isinstance(space, spaces.Text)
