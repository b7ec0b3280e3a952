"""View of an `Env` as a PettingZoo `ParallelEnv`, for PettingZoo's tools."""

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from marl.errors import ConfigError
from marl.protocols import Env
from marl.types import Obs


class ParallelView(ParallelEnv):
    """An `Env` with array observations as a `ParallelEnv`; see `as_parallel_env`."""

    metadata: dict[str, Any]

    def __init__(self, env: Env) -> None:
        spec = env.spec
        if not isinstance(spec.observation_space, spaces.Box) or isinstance(spec.action_space, spaces.Text):
            raise ConfigError(
                f"{spec.name}: text has no PettingZoo view; give an environment with Box observations and actions that "
                "are arrays"
            )
        self.env = env
        self.metadata = {"name": spec.name, "render_modes": ["human"]}
        self.render_mode = None
        self.possible_agents = list(spec.agents)
        self.agents = []
        if spec.state_space is not None:
            self.state_space = spec.state_space
        self._obs: Obs | None = None
        self._discrete = [isinstance(space, spaces.Discrete) for space in spec.action_spaces]
        self._observation_spaces = {name: self._observation_space(index) for index, name in enumerate(spec.agents)}
        self._action_spaces = {name: self._action_space(index) for index, name in enumerate(spec.agents)}

    def _observation_space(self, index: int) -> spaces.Space:
        space, size = self.env.spec.observation_space, self.env.spec.observation_sizes[index]
        assert isinstance(space, spaces.Box)
        box = spaces.Box(space.low[:size], space.high[:size], dtype=np.float32)
        if not self._discrete[index]:
            return box
        mask = spaces.Box(0, 1, (self.env.spec.action_sizes[index],), np.int8)
        return spaces.Dict({"observation": box, "action_mask": mask})

    def _action_space(self, index: int) -> spaces.Space:
        space, size = self.env.spec.action_spaces[index], self.env.spec.action_sizes[index]
        if isinstance(space, spaces.Box):
            return spaces.Box(space.low[:size], space.high[:size], dtype=np.float32)
        return spaces.Discrete(size)

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the observation space of an agent."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Return the action space of an agent."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:  # noqa: ARG002
        """Start an episode. Returns observations and infos of the living agents."""
        self._obs = self.env.reset(seed)
        self.agents = self._living(self._obs)
        return self._observations(self.agents, self._obs), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Act. Returns what `ParallelEnv.step` returns, for the agents that acted."""
        spec, acting = self.env.spec, self.agents
        width = () if spec.discrete else (spec.action_size,)
        joint = np.zeros((spec.num_agents, *width), dtype=np.int64 if spec.discrete else np.float32)
        for agent, action in actions.items():
            index = self.possible_agents.index(agent)
            if spec.discrete:
                joint[index] = action
            else:
                own = np.atleast_1d(action)
                joint[index, : len(own)] = own
        step = self.env.step(joint)
        self._obs = step.obs
        living = self._living(step.obs)
        alone = np.zeros(spec.num_agents, bool) if step.agent_truncated is None else step.agent_truncated
        cut = [name for name, is_cut in zip(self.possible_agents, alone, strict=True) if is_cut]
        terminated = {agent: step.terminated or (agent not in living and agent not in cut) for agent in acting}
        truncated = {agent: (step.truncated and agent in living) or agent in cut for agent in acting}
        reward = {agent: float(step.reward[self.possible_agents.index(agent)]) for agent in acting}
        observations = self._observations(acting, step.obs)
        if step.final is not None:
            observations |= self._observations(cut, step.final)
        self.agents = [] if step.terminated or step.truncated else living
        return observations, reward, terminated, truncated, {agent: dict(step.info) for agent in acting}

    def _living(self, obs: Obs) -> list[str]:
        return [name for name, alive in zip(self.possible_agents, obs.alive, strict=True) if alive]

    def _observations(self, agents: list[str], obs: Obs) -> dict[str, Any]:
        spec = self.env.spec
        seen: dict[str, Any] = {}
        for agent in agents:
            index = self.possible_agents.index(agent)
            row = np.array(obs.agents[index, : spec.observation_sizes[index]])
            mask = np.ones(spec.action_size, bool) if obs.action_mask is None else obs.action_mask[index]
            available = mask[: spec.action_sizes[index]].astype(np.int8)
            seen[agent] = {"observation": row, "action_mask": available} if self._discrete[index] else row
        return seen

    def state(self) -> np.ndarray:
        """Return the global state (S,). Raises NotImplementedError without one."""
        if self._obs is None or self._obs.state is None:
            raise NotImplementedError(f"{self.env.spec.name} has no state")
        return np.array(self._obs.state)

    def render(self) -> np.ndarray | str | None:
        """Return the environment's frame or text."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def as_parallel_env(env: Env) -> ParallelView:
    """Return the environment as PettingZoo's `ParallelEnv`, without padding.

    Dead agents leave. A discrete agent observes a Dict of `observation` and `action_mask`. Raises ConfigError for
    text environments.
    """
    return ParallelView(env)
