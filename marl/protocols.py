"""The interfaces that environments, trackers and callbacks fill."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from marl.types import EnvSpec, Obs, Step, VectorStep

State = dict[str, Any]
"""A flat dictionary of numpy arrays and JSON values (numbers, strings, lists, dictionaries)."""


@runtime_checkable
class Env(Protocol):
    """One environment with N agents that act together."""

    @property
    def spec(self) -> EnvSpec: ...

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed starts the environment's random stream anew; None continues it."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Act with (N,) int64 or (N, A) float32. Entries of dead agents and padded dimensions are ignored.

        A mixed team acts with (N, A) float32, of which a discrete agent's entry 0 is the index of its action.

        Raises RuntimeError before the first `reset` and after an episode's end.
        """
        ...

    def render(self) -> np.ndarray | str | None:
        """An (height, width, 3) uint8 frame, or text, or None where nothing can be shown."""
        ...

    def get_state(self) -> State | None:
        """Everything that the future depends on, random stream included; None where a simulator cannot."""
        ...

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`; returns the observation at that point."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class VectorEnv(Protocol):
    """E environments stepped together, with same-step autoreset."""

    @property
    def spec(self) -> EnvSpec: ...

    @property
    def num_envs(self) -> int: ...

    def reset(self, seeds: list[int]) -> Obs:
        """Start E episodes, one seed each. Returns leading axis E."""
        ...

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start a new episode in one environment. Returns the observation of all E."""
        ...

    def step(self, action: np.ndarray) -> VectorStep:
        """Act with (E, N) int64 or (E, N, A) float32."""
        ...

    def render(self, index: int = 0) -> np.ndarray | str | None: ...

    def get_state(self) -> list[State | None]: ...

    def set_state(self, states: list[State]) -> Obs: ...

    def close(self) -> None: ...
