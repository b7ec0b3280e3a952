"""What a policy carries from one step of an episode to the next.

A policy that remembers has `recurrent_shape`, (R, W), and `bptt_steps`, the length of the chunks in which it learns.
It reads `inputs["memory"]` (E, R, W), zero where an episode begins, and gives in `Decision.memory` what it wants to
read at the next step. `Policy.evaluate` gets whole chunks: K consecutive steps of one environment as K consecutive
rows. It takes the memory of the first, and starts anew where `inputs["began"]` (B,) says that an episode began.
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
    """The memory of E environments; nothing for a policy that has none."""

    def __init__(self, policy: Policy, envs: int) -> None:
        self.shape = policy.recurrent_shape
        self.state: Tensor | None = None
        self.episode_start = np.ones(envs, dtype=bool)

    def add_to(self, inputs: Inputs) -> Inputs:
        """The inputs of a step and what is remembered. Raises ValueError for another number of environments."""
        if self.shape is None:
            return inputs
        alive = inputs["alive"]
        if len(alive) != len(self.episode_start):
            raise ValueError(
                f"{len(alive)} environments, but {len(self.episode_start)} are remembered; begin with an empty memory"
            )
        began = torch.as_tensor(self.episode_start, device=alive.device)
        if self.state is None:
            state = torch.zeros((len(alive), *self.shape), device=alive.device)
        else:
            state = self.state.to(alive.device).masked_fill(began[:, None, None], 0.0)
        return inputs | {"memory": state, "began": began}

    def update(self, decision: Decision) -> None:
        """Take what the policy gave for the next step."""
        self.state, self.episode_start = decision.recurrent_state, np.zeros_like(self.episode_start)

    def bootstrap_inputs(self, inputs: Inputs, rows: np.ndarray) -> Inputs:
        """`inputs` of the observations that followed the last step in environments `rows`, before any new episode."""
        if self.state is None:
            return inputs
        index = torch.as_tensor(rows, device=self.state.device)
        return inputs | {"memory": self.state[index], "began": torch.zeros_like(index, dtype=torch.bool)}

    def reset(self, ended: np.ndarray | bool = True) -> None:
        """An episode begins where `ended` (E,) is True, or everywhere."""
        self.episode_start = self.episode_start | ended

    def get_state(self) -> dict[str, Any]:
        return {"state": self.state, "began": self.episode_start.tolist()}

    def set_state(self, data: dict[str, Any]) -> None:
        self.state, self.episode_start = data["state"], np.array(data["began"])


def segment_steps(config: "RunConfig", policy: Policy, envs: int) -> int:
    """K: how many consecutive steps of an environment stay together in an update; 1 without memory.

    Raises ConfigError where a rollout of `envs` environments does not divide into chunks, or there are too few.
    """
    chunk = policy.bptt_steps
    if not chunk:
        return 1
    steps, learn = config.collect.rollout_steps, config.learn
    if steps % chunk:
        nearest = min((k for k in range(1, steps + 1) if steps % k == 0), key=lambda k: abs(k - chunk))
        raise ConfigError(
            f"bptt_steps is {chunk}, which does not divide rollout_steps, {steps}; give {nearest}, or change "
            "rollout_steps"
        )
    count = envs * steps // chunk
    if learn.minibatches > count:
        raise ConfigError(
            f"minibatches is {learn.minibatches}, more than the {count} chunks of {chunk} steps (bptt_steps) of a "
            "rollout"
        )
    if 0 < learn.micro_batch < chunk:
        raise ConfigError(
            f"micro_batch is {learn.micro_batch}, less than a chunk of {chunk} steps (bptt_steps); give more"
        )
    return chunk
