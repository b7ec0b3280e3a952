"""Settings of a run by concern. The docstring of a field is its help."""

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

from marl.backup import Axis, Links
from marl.errors import ConfigError
from marl.factories import absolute_name
from marl.value_norm import ValueNorm


def require_positive(config: Any, *names: str) -> None:
    """Raise ConfigError unless the fields are 1 or more."""
    for name in names:
        if not getattr(config, name) >= 1:
            raise ConfigError(f"{name}={getattr(config, name)}; give 1 or more")


MAX_EPISODES = 1_000_000
"""Most episodes of an evaluation."""

MAX_EPISODE_STEPS = 10_000
"""Default number of steps after which an evaluated or watched episode is left."""


def require_episodes(option: str, episodes: int, at_least: int = 1) -> None:
    """Raise ConfigError for a number of episodes that no evaluation can have."""
    if not at_least <= episodes <= MAX_EPISODES:
        raise ConfigError(f"{option} is {episodes}; give {at_least} to {MAX_EPISODES}")


def require_not_negative(config: Any, *names: str) -> None:
    """Raise ConfigError unless the fields are finite and 0 or more."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name}={getattr(config, name)}; give 0 or more")


@dataclass(frozen=True)
class CollectConfig:
    """Collection of experience."""

    num_envs: int = 16
    """Environments of each task, over all ranks."""
    rollout_steps: int = 128
    """Steps of each environment between two updates."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this process."""
    restart_workers: bool = False
    """Restart an environment worker that dies or raises, instead of stopping the run."""
    on_nonfinite: Literal["stop", "drop"] = "stop"
    """Treatment of NaN or infinite observations and rewards. stop: end the run. drop: leave the episode out."""
    whole_episodes: bool = False
    """Learn from one whole episode per environment and rollout. Each rollout begins new episodes. An episode that has
    not ended after rollout_steps is cut there."""
    group_size: int = 1
    """Environments whose episodes start from one seed. Needs whole episodes."""

    def __post_init__(self) -> None:
        require_positive(self, "num_envs", "rollout_steps", "group_size")
        require_not_negative(self, "workers")
        if self.workers > self.num_envs:
            raise ConfigError(f"workers={self.workers}, more than num_envs, {self.num_envs}")
        if self.group_size > 1 and not self.whole_episodes:
            raise ConfigError(f"group_size={self.group_size}; groups need whole episodes, add --whole-episodes")
        if self.num_envs % self.group_size:
            raise ConfigError(f"group_size={self.group_size}, which does not divide num_envs, {self.num_envs}")


@dataclass(frozen=True)
class LearnConfig:
    """Updates."""

    learning_rate: float = 5e-4
    """Step size of Adam."""
    critic_learning_rate: float = 0.0
    """Step size of the critic; 0 takes learning_rate. It holds for parameters whose name begins with "critic"."""
    anneal_learning_rate: bool = False
    """Lower the learning rates linearly to zero. A run resumed with another number of steps continues from the rate of
    its last update, linearly to zero at its new end."""
    adam_epsilon: float = 1e-5
    """Epsilon of Adam."""
    epochs: int = 10
    """Passes over each rollout."""
    agent_updates: Literal["together", "sequential"] = "together"
    """Order of the updates of agents. together: every pass updates all agents. sequential: all passes for one agent
    after another, in random order, with advantages weighted by the importance ratios of the agents updated before
    (HAPPO, Kuba et al. 2022)."""
    minibatches: int = 1
    """Minibatches of each pass, of nearly equal size."""
    micro_batch: int = 0
    """Rows (steps x environments) per forward pass; 0 lets the agent choose. The gradient does not depend on it."""
    max_grad_norm: float = 10.0
    """Norm to which gradients are clipped; 0 is off."""
    target_kl: float = 0.0
    """Mean KL divergence at which the passes stop; 0 is off."""
    gamma: float = 0.99
    """Discount between two steps."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation."""
    agent_credit: Axis = "parallel"
    """Credit between the agents of a step. parallel: each agent has its own chain through time. sequential: one chain
    runs through the agents in the order in which they decide."""
    token_credit: Axis = "parallel"
    """Credit between the slots (torques, tokens) of an action: parallel or sequential."""
    gamma_intra: float | None = 1.0
    """Discount between two nodes of a step; none takes gamma."""
    lambda_intra: float | None = 1.0
    """Lambda between two nodes of a step; none takes gae_lambda."""
    advantage: str = "gae"
    """Advantage estimator: a name of `marl list advantages`, PACKAGE.MODULE:CLASS or FILE.py:CLASS."""
    objective: str = "ppo"
    """Objective: a name of `marl list objectives`, PACKAGE.MODULE:CLASS or FILE.py:CLASS."""
    reference_reward_coef: float = 0.0
    """Weight in the reward of the log-ratio to a reference policy, for agents that have one."""
    value_norm_decay: float = 0.99
    """Decay of the moments that scale returns; 0 is off. The moments are updated once per rollout."""

    def __post_init__(self) -> None:
        require_positive(self, "epochs", "minibatches")
        require_not_negative(
            self, "micro_batch", "max_grad_norm", "target_kl", "critic_learning_rate", "reference_reward_coef"
        )
        for name in ("learning_rate", "adam_epsilon"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)}; give a positive number below 1")
        ValueNorm(self.value_norm_decay)
        self.links()
        object.__setattr__(self, "advantage", absolute_name(self.advantage))
        object.__setattr__(self, "objective", absolute_name(self.objective))

    def links(self, uses_critic: bool = True) -> Links:
        """Return how credit runs. Without a critic nothing cuts returns short: both lambdas are 1."""
        gamma_intra = self.gamma if self.gamma_intra is None else self.gamma_intra
        weights = (self.gae_lambda, self.gae_lambda if self.lambda_intra is None else self.lambda_intra)
        over, inside = weights if uses_critic else (1.0, 1.0)
        return Links(self.agent_credit, self.token_credit, self.gamma, over, gamma_intra, inside)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation, checkpoints and early stop."""

    eval_interval: int = 25
    """Iterations between two evaluations; 0 evaluates only at the end. They play the validation seeds, which choose the
    best checkpoint. The last weights are also scored on the test seeds: report this score."""
    eval_episodes: int = 10
    """Episodes of an evaluation; 0 never evaluates. The seeds are the same each time and for every agent."""
    eval_max_steps: int = MAX_EPISODE_STEPS
    """Step limit of an evaluated episode, unless the environment declares a longer one."""
    eval_start: bool = False
    """Evaluate before the first update too, for example to score a pretrained model."""
    eval_stochastic: bool = False
    """Sample actions in evaluations. The default takes the most probable ones."""
    checkpoint_interval: int = 25
    """Iterations between two checkpoints. One is also saved at the end, at an interrupt and after an error."""
    keep_checkpoints: int = 3
    """Checkpoints to keep, besides the best one."""
    stop_return: float | None = None
    """Mean return of an evaluation at which the run stops."""

    def __post_init__(self) -> None:
        require_not_negative(self, "eval_interval")
        require_episodes("eval_episodes", self.eval_episodes, at_least=0)
        require_positive(self, "checkpoint_interval", "keep_checkpoints", "eval_max_steps")
        if self.stop_return is not None and not math.isfinite(self.stop_return):
            raise ConfigError(f"stop_return={self.stop_return}; give a number")
        if self.stop_return is not None and not self.eval_episodes:
            raise ConfigError("stop_return needs evaluations, but eval_episodes is 0")


@dataclass(frozen=True)
class ComputeConfig:
    """Devices and threads."""

    device: str = "auto"
    """Device of the agent: cpu, cuda, cuda:1, ..., or auto for a GPU if there is one."""
    env_threads: int = 0
    """Threads of a natively batched environment; 0 takes the free cores."""
    learn_threads: int = 0
    """Threads of an update; 0 chooses by its size, at most the free cores. Acting uses one thread, or the free cores
    with a pretrained language model."""

    def __post_init__(self) -> None:
        require_not_negative(self, "env_threads", "learn_threads")
        for name in ("env_threads", "learn_threads"):
            if getattr(self, name) > (os.cpu_count() or 1):
                raise ConfigError(f"{name}={getattr(self, name)}, more than the {os.cpu_count()} cores here")
