"""Recurrent state of a policy from one step of an episode to the next.

A recurrent policy sets `recurrent_shape`, (R, W), and `bptt_steps`, the length of the segments through which its
gradient runs. It reads `inputs["recurrent_state"]` (E, R, W), zero at the start of an episode, and returns the next
state in `Decision.recurrent_state`. `Policy.evaluate` gets whole segments: K consecutive steps of one environment as K
consecutive rows. It reads the state of the first row, and restarts at zero where `inputs["episode_start"]` (B,) is set.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from marl.errors import ConfigError
from marl.policy import Policy
from marl.types import Decision, Inputs

if TYPE_CHECKING:
    from marl.config import RunConfig


class RecurrentState:
    """Recurrent state of E environments; empty for a policy without recurrence."""

    def __init__(self, policy: Policy, envs: int) -> None:
        self.policy, self.shape = policy, policy.recurrent_shape
        self.state: Tensor | None = None
        self.episode_start = np.ones(envs, dtype=bool)

    def add_to(self, inputs: Inputs) -> Inputs:
        """Return the inputs of a step with the state. Raises ValueError for another number of environments."""
        if self.shape is None:
            return inputs
        alive = inputs["alive"]
        if len(alive) != len(self.episode_start):
            raise ValueError(
                f"the observation is of {len(alive)} environments, but the recurrent state of "
                f"{len(self.episode_start)}; call reset() first"
            )
        start = torch.as_tensor(self.episode_start, device=alive.device)
        if self.state is None:
            state = torch.zeros((len(alive), *self.shape), dtype=self.policy.recurrent_dtype, device=alive.device)
        else:
            state = self.state.to(alive.device).masked_fill(start[:, None, None], 0)
        return inputs | {"recurrent_state": state, "episode_start": start}

    def update(self, decision: Decision) -> None:
        """Store the state that a decision returned."""
        self.state, self.episode_start = decision.recurrent_state, np.zeros_like(self.episode_start)

    def bootstrap_inputs(self, inputs: Inputs, rows: np.ndarray) -> Inputs:
        """Return the inputs of the observations that follow the last step in environments `rows`, with its state."""
        if self.state is None:
            return inputs
        index = torch.as_tensor(rows, device=self.state.device)
        start = torch.zeros_like(index, dtype=torch.bool)
        return inputs | {"recurrent_state": self.state[index], "episode_start": start}

    def reset(self, ended: np.ndarray | bool = True) -> None:
        """Start new episodes where `ended` (E,) is True, or everywhere."""
        self.episode_start = self.episode_start | ended

    def get_state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        state = None if self.state is None else self.policy.export_recurrent_state(self.state)
        return {"state": state, "episode_start": self.episode_start.tolist()}

    def set_state(self, data: dict[str, Any]) -> None:
        """Continue from `get_state`."""
        state = data["state"]
        self.state = None if state is None else self.policy.import_recurrent_state(state)
        self.episode_start = np.array(data["episode_start"])


def segment_steps(config: "RunConfig", policy: Policy, envs: int) -> int:
    """Return K, the consecutive steps of an environment that stay together in an update; 1 without recurrence.

    Raises ConfigError if a rollout of `envs` environments does not divide into segments, or has too few.
    """
    segment = policy.bptt_steps
    if not segment:
        return 1
    steps, learn = config.collect.rollout_steps, config.learn
    if steps % segment:
        nearest = min((k for k in range(1, steps + 1) if steps % k == 0), key=lambda k: abs(k - segment))
        raise ConfigError(
            f"bptt_steps={segment} does not divide rollout_steps={steps}; set bptt_steps to {nearest}, or change "
            "rollout_steps"
        )
    count = envs * steps // segment
    if learn.minibatches > count:
        raise ConfigError(
            f"minibatches={learn.minibatches}, but a rollout has {count} segments of {segment} steps (bptt_steps); set "
            "fewer"
        )
    if 0 < learn.micro_batch < segment:
        raise ConfigError(
            f"micro_batch={learn.micro_batch} is less than a segment of {segment} steps (bptt_steps); set more"
        )
    return segment
