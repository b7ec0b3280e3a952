"""The interfaces that environments, policies, trackers and callbacks fill."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Generator, Tensor, nn

from marl.objective import RowIndex
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs, Step, VectorStep

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


class Policy(Protocol):
    """An agent: it sees inputs, decides nodes and values them.

    `module` holds the parameters (None for an agent that does not learn). It is in training mode in the passes of an
    update and in evaluation mode everywhere else. In evaluation mode `evaluate` gives the log-probabilities that `act`
    gave. In training mode dropout and batch normalization act, if a policy has them, and the importance ratios of an
    update begin at 1 only up to their noise: keep dropout low, or limit it to the critic.

    `slots` is L. `evaluate`, `split`, `observe` and `after_update` are called on agents that learn, alone. One may have
    `turn(inputs, agent) -> Inputs`: what `evaluate` reads where one agent's decisions alone are learned and no values,
    which is less to gather when agents learn one after another.
    One may have `metrics(inputs, nodes) -> dict[str, float]`: numbers about the policy, and about the nodes of a
    rollout, to log after an update. And `one_step()`, a context in which several calls of `evaluate`, each with its
    backward pass, make one gradient: what depends on the weights alone, which must not change meanwhile, is made once,
    and the gradient is whole at the end.
    """

    spec: EnvSpec
    slots: int

    @property
    def module(self) -> nn.Module | None: ...

    def encode(self, obs: Obs) -> Inputs:
        """Tensors with leading axis E on the policy's device; the only place where text becomes tokens."""
        ...

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision: ...

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Log-probability, entropy and value of given nodes, differentiable."""
        ...

    def value(self, inputs: Inputs) -> Tensor:
        """(E, N): the value of each agent's first node, in the critic's own units."""
        ...

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> Sequence[RowIndex]:
        """The indices of the rows of each forward pass of an update; together they hold every row once.

        A pass takes at most `rows` rows, 0 for as many as the policy likes, and where memory ran out before, a
        `divisor`-th of that. `marl.objective.consecutive` is the usual way.
        """
        ...

    def after_update(self) -> None:
        """Follow a gradient step: a moving average of weights, a memory that has become stale."""
        ...

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Take a rollout of B = T x E rows into running statistics, after learning from it.

        `inputs` (B, ...) were read where `nodes` (B, N, L) exist: an agent lived and the row was learned from.
        """
        ...


class Tracker(Protocol):
    """Where numbers go. `step` is always the number of environment steps."""

    def config(self, text: str, flat: Mapping[str, Any]) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, tag: str, value: str) -> None: ...

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Show a picture (height, width, 3) uint8."""
        ...

    def close(self) -> None: ...


class Callback(Protocol):
    """Called by the trainer; every method may do nothing."""

    def on_start(self, trainer: Any) -> None:
        """Before the first iteration of this process."""
        ...

    def on_iteration(self, trainer: Any, metrics: dict[str, float]) -> None:
        """After an iteration; may add to the metrics that are logged."""
        ...

    def on_logged(self, trainer: Any) -> None: ...

    def on_stop(self, trainer: Any) -> None: ...
