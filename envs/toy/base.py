"""Base class of the toy games, and their helpers."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.errors import ConfigError, UnknownNameError
from marl.protocols import State
from marl.registry import unknown_name_message
from marl.types import EnvSpec, Obs, Step

MAX_SIZE = 100_000
"""Upper bound of the number of agents, steps or symbols of a game."""


class Toy:
    """Base class of the toy games: random stream, order of calls, action checks, saved state.

    A subclass sets `optimum` and `factorized_optimum`, lists in `state_attributes` the attributes that `get_state`
    saves, and implements `_begin`, `_play`, `_observe` and `_describe`.
    """

    state_attributes: tuple[str, ...] = ()
    optimum: float
    """Best expected return of any policy that sees all observations and forgets none."""
    factorized_optimum: float
    """Best expected return of agents that share a policy of their own observation and act independently."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.elapsed = 0
        self.over = True
        self._random = np.random.default_rng()
        self._begin()

    def _begin(self) -> None:
        """Draw the random content of an episode."""

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the reward (N,) of a valid action, and True if the episode terminates. Runs before `elapsed` grows."""
        raise NotImplementedError

    def _observe(self) -> Obs:
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed restarts the random stream."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.elapsed = 0
        self.over = False
        self._begin()
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Act with (N,) integers or (N, A) floats.

        Raises RuntimeError without a running episode, ValueError for an action that a living agent cannot take.
        """
        if self.over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        reward, terminated = self._play(self._checked(np.asarray(action)))
        self.elapsed += 1
        truncated = not terminated and self.elapsed == self.spec.max_steps
        self.over = terminated or truncated
        return Step(self._observe(), reward, terminated, truncated)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Return the action with zeros for dead agents. Raises ValueError for one that a living agent cannot take."""
        name, count, size = self.spec.name, self.spec.num_agents, self.spec.action_size
        expected = (count,) if self.spec.discrete else (count, size)
        if action.shape != expected:
            raise ValueError(f"{name}: action has shape {action.shape}; give {expected}")
        obs = self._observe()
        mask = np.ones((count, size), dtype=bool) if obs.action_mask is None else obs.action_mask
        discrete = np.array([isinstance(space, spaces.Discrete) for space in self.spec.action_spaces])
        if not self.spec.discrete:
            exists = (mask | discrete[:, None]) & obs.alive[:, None]
            action = np.where(exists, np.where(discrete[:, None], action, np.clip(action, -1.0, 1.0)), 0.0)
        for agent in np.flatnonzero(obs.alive & discrete):
            choice = int(np.ravel(action[agent])[0])
            if not 0 <= choice < size or not mask[agent, choice]:
                available = np.flatnonzero(mask[agent]).tolist()
                raise ValueError(f"{name}: agent {agent} cannot take action {choice}; available: {available}")
        return np.where(obs.alive, action, 0) if self.spec.discrete else action

    def team_reward(self, reward: float) -> np.ndarray:
        """Return the reward of every agent, (N,) float32."""
        return np.full(self.spec.num_agents, reward, dtype=np.float32)

    def all_alive(self) -> np.ndarray:
        """Return (N,) True."""
        return np.ones(self.spec.num_agents, dtype=bool)

    def render(self) -> str:
        """Return the state of the game as text."""
        return f"{self.spec.name}, step {self.elapsed} of {self.spec.max_steps}\n{self._describe()}"

    def get_state(self) -> State:
        """Return the random stream and the episode."""
        state: State = {"random": self._random.bit_generator.state, "elapsed": self.elapsed, "over": self.over}
        return state | {name: np.array(getattr(self, name)) for name in self.state_attributes}

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`."""
        self._random.bit_generator.state = state["random"]
        self.elapsed = int(state["elapsed"])
        self.over = bool(state["over"])
        for name in self.state_attributes:
            setattr(self, name, np.array(state[name]))
        return self._observe()

    def close(self) -> None:
        """Do nothing: a game holds no resources."""


def make_game(family: str, games: Mapping[str, Callable[..., Any]], task: str, options: Mapping[str, Any]) -> Any:
    """Return the game `task` of a family, built with the options that are not None.

    Raises UnknownNameError for an unknown task, ConfigError for an option that the game does not have.
    """
    if task not in games:
        raise UnknownNameError(unknown_name_message(f"task of {family}", task, games))
    given = {name: value for name, value in options.items() if value is not None}
    accepted = option_names(games, task)
    for name in given:
        if name not in accepted:
            raise ConfigError(f"{family}/{task} has no option {name!r}; it takes: {', '.join(accepted) or 'none'}")
    return games[task](**given)


def option_names(games: Mapping[str, Callable[..., Any]], task: str) -> list[str]:
    """Return the names of the options that a game of a family has."""
    return list(inspect.signature(games[task]).parameters)


def agent_names(count: int) -> tuple[str, ...]:
    """Return agent_0, agent_1, ..."""
    return tuple(f"agent_{index}" for index in range(count))


def box(low: float, high: float, size: int) -> spaces.Box:
    """Return the space of `size` float32 numbers from `low` to `high`."""
    return spaces.Box(low, high, (size,), np.float32)


def one_hot(index: int, size: int) -> np.ndarray:
    """Return a one-hot vector (size,) float32; all zeros for an index past the end."""
    return (np.arange(size) == index).astype(np.float32)


def require_size(task: str, option: str, value: int, least: int) -> None:
    """Raise ConfigError unless `least` <= `value` <= MAX_SIZE."""
    if value < least:
        raise ConfigError(f"toy/{task}: {option}={value}; give {least} or more")
    if value > MAX_SIZE:
        raise ConfigError(f"toy/{task}: {option}={value}, too many for a toy; give {MAX_SIZE} or fewer")
