"""Raw transitions of a rollout, for callbacks that record data."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from marl.types import Obs, VectorStep


@dataclass(frozen=True)
class Transitions:
    """T steps of E environments of one task, as the environment and the policy exchanged them. Everything is a copy.

    Arrays of `obs` and `next_obs` have the shapes of `Obs` with leading axes (T, E); texts are lists of T lists of E
    rows. `next_obs` is the last observation of the episode where one ended, not the first of the next.
    `action` is (T, E, N) int64, (T, E, N, A) float32, or lists of texts. `reward` is (T, E, N) float32. `terminated`
    and `truncated` are (T, E) bool. `played` (T, E) is False where an environment only waited for the others to end
    their episodes (--whole-episodes), or lost its simulator.
    """

    task: str
    obs: Obs
    action: Any
    reward: np.ndarray
    next_obs: Obs
    terminated: np.ndarray
    truncated: np.ndarray
    played: np.ndarray


class Recorder:
    """Copies the steps of a collector until they are taken."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self.obs: Obs | None = None

    def observe(self, obs: Obs) -> None:
        """Keep the observation on which the next action is decided."""
        self.obs = _copy(obs)

    def add(self, action: Any, step: VectorStep, waiting: np.ndarray) -> None:
        """Keep a step. `waiting` (E,) bool marks environments whose episode has ended before."""
        following = _copy(step.obs)
        for final in (step.final, step.agent_final):
            if final is not None:
                _put(following, final.env, final.obs)
        played = ~waiting if step.restarted is None else ~waiting & ~step.restarted
        self.steps.append(
            (
                self.obs,
                _copy_value(action),
                step.reward.copy(),
                following,
                step.terminated.copy(),
                step.truncated.copy(),
                played,
            )
        )

    def take(self, task: str) -> Transitions:
        """Return all steps since the last call."""
        columns = list(zip(*self.steps, strict=True))
        self.steps = []
        return Transitions(task, *(_stack(column) for column in columns))


def _copy_value(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else list(x) if isinstance(x, list | tuple) else x


def _copy(obs: Obs) -> Obs:
    return Obs(**{f.name: _copy_value(getattr(obs, f.name)) for f in dataclasses.fields(obs)})


def _put(obs: Obs, env: np.ndarray, rows: Obs) -> None:
    """Replace the rows of the environments `env` (K,)."""
    for f in dataclasses.fields(obs):
        target, source = getattr(obs, f.name), getattr(rows, f.name)
        if target is not None and source is not None:
            for i, e in enumerate(env.tolist()):
                target[e] = source[i]


def _stack(column: tuple[Any, ...]) -> Any:
    """Join T values along a new first axis."""
    if isinstance(column[0], Obs):
        names = [f.name for f in dataclasses.fields(Obs)]
        return Obs(**{name: _stack(tuple(getattr(obs, name) for obs in column)) for name in names})
    if column[0] is None:
        return None
    return np.stack(column) if isinstance(column[0], np.ndarray) else list(column)
