"""Interfaces of environments."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from marl.types import EnvSpec, Obs, Step, VectorStep

State = dict[str, Any]
"""A flat dictionary of numpy arrays and JSON values (numbers, strings, lists, dictionaries)."""


@runtime_checkable
class Env(Protocol):
    """One environment with N agents that act simultaneously."""

    @property
    def spec(self) -> EnvSpec:
        """Specification of agents, spaces and limits."""
        ...

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed restarts the environment's random stream; None continues it."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Act with (N,) int64 or (N, A) float32. Entries of dead agents and padded dimensions are ignored.

        The action of a mixed team is (N, A) float32; entry 0 of a discrete agent is the index of its action.

        Raises RuntimeError before the first `reset` and after the end of an episode.
        """
        ...

    def render(self) -> np.ndarray | str | None:
        """Return a frame (height, width, 3) uint8, a text, or None if there is no view."""
        ...

    def get_state(self) -> State | None:
        """Return the complete state, random stream included; None if the simulator cannot."""
        ...

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`. Returns the observation at that point."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


@runtime_checkable
class VectorEnv(Protocol):
    """E environments stepped together, with same-step autoreset."""

    @property
    def spec(self) -> EnvSpec:
        """Specification of each environment."""
        ...

    @property
    def num_envs(self) -> int:
        """E."""
        ...

    def reset(self, seeds: list[int]) -> Obs:
        """Start E episodes, one seed each. Returns an observation with leading axis E."""
        ...

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start a new episode in one environment. Returns the observation of all E."""
        ...

    def step(self, action: np.ndarray) -> VectorStep:
        """Act with (E, N) int64 or (E, N, A) float32."""
        ...

    def render(self, index: int = 0) -> np.ndarray | str | None:
        """Return the view of one environment, as `Env.render`."""
        ...

    def get_state(self) -> list[State | None]:
        """Return the state of each environment, as `Env.get_state`."""
        ...

    def set_state(self, states: list[State]) -> Obs:
        """Continue from `get_state`. Returns the observation of all E at that point."""
        ...

    def close(self) -> None:
        """Release the simulators."""
        ...
