"""Checks of what environments return while they are trained in; `marl check-env` checks more."""

import gymnasium
import numpy as np

from marl.errors import EnvironmentContractError
from marl.types import EnvSpec, Final, Obs, VectorStep, rounded_bounds


def check_action_mask(spec: EnvSpec, obs: Obs, taken: np.ndarray | None = None) -> None:
    """Raise EnvironmentContractError if an agent has no available action.

    `taken` (E,): steps of each environment's episode so far (default: 0).
    """
    if obs.action_mask is not None and not obs.action_mask.any(-1).all():
        index, agent = (int(i) for i in np.argwhere(~obs.action_mask.any(-1))[0])
        steps = 0 if taken is None else int(taken[index])
        raise EnvironmentContractError(
            f"{spec.name}: environment {index}, agent {spec.agents[agent]!r}, after {steps} steps of its episode: "
            "action_mask allows no action; leave one even to the dead (`marl check-env` tests the whole environment)"
        )


def require_alive(spec: EnvSpec, obs: Obs) -> None:
    """Raise EnvironmentContractError if no agent is alive at the start of an episode."""
    if not obs.alive.any(-1).all():
        index = int(np.flatnonzero(~obs.alive.any(-1))[0])
        raise EnvironmentContractError(
            f"{spec.name}: environment {index}: no agent is alive at the beginning of an episode; mend `reset` "
            "(`marl check-env` tests the whole environment)"
        )


class Bounds:
    """The declared bounds of an observation, widened by rounding errors."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.box = spec.observation_space if isinstance(spec.observation_space, gymnasium.spaces.Box) else None
        if self.box is not None:
            self.low, self.high = rounded_bounds(self.box)
            if not (np.isfinite(self.low).any() or np.isfinite(self.high).any()):
                self.box = None

    def check(self, obs: Obs, out: np.ndarray | None = None, envs: np.ndarray | None = None) -> None:
        """Raise EnvironmentContractError if an observation is out of bounds, except in rows `out`.

        `envs` (K,): the environments of the rows (default: all).
        """
        if self.box is None:
            return
        outside = (obs.agents < self.low) | (obs.agents > self.high)
        if not outside.any():
            return
        if out is not None:
            outside &= ~out[:, None, None]
        for index, agent, feature in np.argwhere(outside)[:1].tolist():
            value, low, high = obs.agents[index, agent, feature], self.box.low[feature], self.box.high[feature]
            env = index if envs is None else int(envs[index])
            raise EnvironmentContractError(
                f"{self.spec.name}: environment {env}, agent {self.spec.agents[agent]!r}: feature {feature} of the "
                f"observation is {value}, outside the declared {low} to {high}; mend the space (`marl check-env` tests "
                "the whole environment), or where the environment is not yours (gymnasium:, pettingzoo:) set bounds to "
                "clip or ignore"
            )


def non_finite(obs: Obs) -> np.ndarray:
    """Return the agents whose observation or state holds a NaN or an infinity, shape (E, N) bool."""
    bad = np.zeros(obs.alive.shape, dtype=bool)
    if isinstance(obs.agents, np.ndarray):
        bad |= np.any(~np.isfinite(obs.agents), axis=-1)
    if obs.state is not None:
        bad |= np.any(~np.isfinite(obs.state), axis=-1)[:, None]
    return bad


def require_ending(spec: EnvSpec, step: VectorStep) -> None:
    """Raise EnvironmentContractError if an episode is both terminated and truncated, or lacks its last observation."""
    both = step.terminated & step.truncated
    if both.any():
        raise EnvironmentContractError(
            f"{spec.name}: environment {int(np.flatnonzero(both)[0])}: terminated and truncated are both True; an "
            "episode that truly ends is terminated alone"
        )
    missing = _without(step.truncated, step.final)
    if missing.any():
        raise EnvironmentContractError(
            f"{spec.name}: environment {int(np.flatnonzero(missing)[0])}: its episode was truncated, and its last "
            "observation is missing; give it in `final`, because what would have followed is valued from it"
        )
    if step.agent_truncated is None:
        return
    missing = _without(np.any(step.agent_truncated, axis=-1), step.agent_final)
    if missing.any():
        raise EnvironmentContractError(
            f"{spec.name}: environment {int(np.flatnonzero(missing)[0])}: agents were truncated alone, and their last "
            "observation is missing; give it in `agent_final`, because what would have followed is valued from it"
        )


def _without(ends: np.ndarray, final: Final | None) -> np.ndarray:
    """Return the `ends` without a last observation, shape (E,) bool."""
    missing = ends.copy()
    if final is not None:
        missing[final.env] = False
    return missing


def require_team_reward(spec: EnvSpec, reward: np.ndarray, out: np.ndarray) -> None:
    """Raise EnvironmentContractError for unequal rewards (E, N) of a team, except in rows `out` (E,)."""
    if not spec.team_reward:
        return
    unequal = (reward != reward[:, :1]) & ~out[:, None]
    if unequal.any():
        index, agent = (int(i) for i in np.argwhere(unequal)[0])
        raise EnvironmentContractError(
            f"{spec.name}: environment {index}: team_reward is True, but {spec.agents[0]!r} received "
            f"{reward[index, 0]:g} and {spec.agents[agent]!r} {reward[index, agent]:g}; give all agents the same "
            "reward, or declare team_reward=False"
        )
