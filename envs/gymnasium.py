"""Gymnasium environments: `gymnasium:<id>`, for example `gymnasium:CartPole-v1`.

`gymnasium:<module>:<id>` imports a module first, for example `gymnasium:lbforaging:Foraging-8x8-2p-2f-v3`. An
environment has a team if both of its spaces are a Tuple, or a Dict with the same keys, with one entry for each agent.
Any other environment has one agent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import ParallelEnv

from marl.envs.pettingzoo import COMMON, ParallelBridge
from marl.envs.spaces import MASK, ObservationReader, declared_space, flat_action, inner_action, rendered, scalars
from marl.envs.wrappers import Bounds, with_bounds
from marl.errors import ConfigError, EnvironmentContractError, MissingDependencyError
from marl.protocols import Env, State
from marl.registry import named_kwargs, register_bridge, register_env
from marl.types import EnvSpec, Obs, Step


@dataclass(frozen=True)
class GymnasiumOptions:
    """Options of a Gymnasium environment."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `gymnasium.make`."""
    max_steps: int | None = None
    """Steps after which an episode is truncated; None is the environment's registered limit."""
    ignore: tuple[str, ...] = ()
    """Entries of a Dict observation to leave out, such as a text."""
    bounds: Bounds = "ignore"
    """Treatment of observations outside their declared space: "ignore", "clip", or "error", which ends the run."""

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more, or None")


class GymnasiumBridge:
    """A `gymnasium.Env` as an `Env` with the one agent "agent".

    Observations are flattened to float32 vectors, Discrete ones to one-hots. An action mask of a discrete environment
    is read from a Dict observation or from the infos of `reset` and `step`; see `ObservationReader`. Continuous actions
    are clipped to the action space. An episode that terminates at its time limit is terminated, not truncated. The
    info of a step keeps its scalars. Raises ConfigError for unsupported spaces.
    """

    def __init__(self, env: gymnasium.Env, name: str = "", ignore: tuple[str, ...] = ()) -> None:
        self.env = env
        registered = env.spec
        self.name = name or f"gymnasium:{type(env.unwrapped).__name__ if registered is None else registered.id}"
        self._action_space = _declared(env, "action_space", self.name)
        actions = flat_action(self._action_space, self.name)
        self._reader = ObservationReader(
            _declared(env, "observation_space", self.name), self._action_space, self.name, ignore
        )
        self.spec = EnvSpec(
            name=self.name,
            agents=("agent",),
            observation_space=self._reader.box,
            action_space=actions,
            max_steps=None if registered is None else registered.max_episode_steps,
        )
        self._masked = False
        self._over = True
        self._closed = False

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed)
        self._over = False
        vector, mask = self._reader.read(observation, info)
        self._masked = mask is not None
        return self._obs(vector, mask)

    def step(self, action: np.ndarray) -> Step:
        """Act with (1,) int64 or (1, A) float32. Raises RuntimeError without a running episode."""
        if self._over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        own = inner_action(self._action_space, action[0])
        observation, reward, terminated, truncated, info = self.env.step(own)
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated
        self._over = terminated or truncated
        rewards = np.asarray(reward, dtype=np.float32).reshape(-1)
        if rewards.size != 1:
            raise EnvironmentContractError(
                f"{self.name}: gave {rewards.size} rewards to one agent; give one number, or declare Tuple spaces with "
                "an entry for each agent of a team"
            )
        vector, mask = self._reader.read(observation, info, self._over)
        if self._over and self._masked and mask is None:
            mask = np.ones(self.spec.action_size, dtype=bool)
        if self._masked != (mask is not None):
            raise EnvironmentContractError(
                f"{self.name}: gave an `action_mask` in {'reset' if self._masked else 'step'} and none in "
                f"{'step' if self._masked else 'reset'}; give one in both infos"
            )
        return Step(self._obs(vector, mask), rewards, terminated, truncated, scalars(info))

    def _obs(self, vector: np.ndarray, mask: np.ndarray | None) -> Obs:
        alive = np.ones(1, dtype=bool)
        return Obs(vector[None], alive, action_mask=None if mask is None else mask[None])

    def render(self) -> np.ndarray | str | None:
        """Return a frame, text, or None without a render mode."""
        return rendered(self.env)

    def get_state(self) -> None:
        """Return None: Gymnasium has no common way to save an environment."""

    def set_state(self, state: State) -> Obs:  # noqa: ARG002
        """Raise RuntimeError: `get_state` is None."""
        raise RuntimeError(f"{self.spec.name} cannot restore a state; its get_state is None")

    def close(self) -> None:
        """Close the environment once."""
        if not self._closed:
            self._closed = True
            self.env.close()


class GymnasiumTeam(ParallelEnv):
    """A `gymnasium.Env` for several agents as a PettingZoo `ParallelEnv`.

    Both spaces are a Tuple of N (the agents are named `agent_0`, `agent_1`, ...), or a Dict with the agents' names as
    keys. Observations, rewards and actions have one entry for each agent in the same form. A single reward,
    `terminated` or `truncated` applies to all agents. An info may hold one info for each agent, by name or as a list;
    its other entries belong to the team, and an `action_mask` (N, A) has a row for each agent.

    Some environments count their own steps and report the limit as termination (RWARE). If all agents terminate at the
    environment's own `max_steps` and none is truncated, all are truncated instead. An episode that truly ends in
    exactly that step cannot be told apart.
    """

    metadata: dict[str, Any]

    def __init__(self, env: gymnasium.Env, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.env = env
        self.metadata = {"name": str(env), **env.metadata}
        self.render_mode = env.render_mode
        self._observation_spaces = _team_spaces(observation_space)
        self._action_spaces = _team_spaces(action_space)
        self._named = isinstance(action_space, spaces.Dict)
        self.possible_agents = list(self._action_spaces)
        self.agents = []
        registered = None if env.spec is None else env.spec.max_episode_steps
        own = [getattr(env.unwrapped, name, None) for name in ("max_steps", "_max_episode_steps")]
        own_limits = [limit for limit in own if isinstance(limit, int) and limit > 0]
        self._own_limit = min(own_limits, default=None)
        self._elapsed = 0
        self.max_steps = min([*own_limits, *([registered] if registered else [])], default=None)

    def observation_space(self, agent: str) -> spaces.Space:
        """Return the observation space of an agent."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """Return the action space of an agent."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start an episode. Returns observations and infos by agent."""
        observations, info = self.env.reset(seed=seed, options=options)
        self.agents = self.possible_agents[:]
        self._elapsed = 0
        return self._each(observations, "observations"), self._infos(info)

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Act. Agents without an action get zeros. Returns what `ParallelEnv.step` returns."""
        own = {
            agent: actions[agent] if agent in actions else inner_action(space, np.zeros(space.shape or 1))
            for agent, space in self._action_spaces.items()
        }
        joint: Any = own if self._named else tuple(own.values())
        observations, reward, terminated, truncated, info = self.env.step(joint)
        terminations = {agent: bool(flag) for agent, flag in self._each(terminated, "terminated", True).items()}
        truncations = {agent: bool(flag) for agent, flag in self._each(truncated, "truncated", True).items()}
        self._elapsed += 1
        if self._elapsed == self._own_limit and all(terminations.values()) and not any(truncations.values()):
            terminations, truncations = truncations, terminations
        rewards: dict[str, Any] = self._each(reward, "rewards", shared=True)
        self.agents = [agent for agent in self.agents if not terminations[agent] and not truncations[agent]]
        return self._each(observations, "observations"), rewards, terminations, truncations, self._infos(info)

    def _each(self, value: Any, what: str, shared: bool = False) -> dict[str, Any]:
        """Return one entry for each agent. A single value counts for all agents if it may be `shared`."""
        if isinstance(value, Mapping):
            if all(agent in value for agent in self.possible_agents):
                return {agent: value[agent] for agent in self.possible_agents}
        elif shared and np.ndim(value) == 0:
            return dict.fromkeys(self.possible_agents, value)
        if isinstance(value, list | tuple | np.ndarray) and len(value) == len(self.possible_agents):
            return dict(zip(self.possible_agents, value, strict=True))
        raise EnvironmentContractError(
            f"{self.env}: {what} are {value!r:.200}; give one for each of the agents {', '.join(self.possible_agents)}"
        )

    def _infos(self, info: Any) -> dict[str, dict[str, Any]]:
        if not isinstance(info, Mapping):
            return self._each(info, "infos")
        own: dict[str, Any] = {agent: info.get(agent) for agent in self.possible_agents}
        infos: dict[str, dict[str, Any]] = {a: dict(one) if isinstance(one, Mapping) else {} for a, one in own.items()}
        if MASK in info:
            for agent, mask in self._each(info[MASK], "action masks").items():
                infos[agent][MASK] = mask
        infos[COMMON] = {name: value for name, value in info.items() if name not in own}
        return infos

    def render(self) -> Any:
        """Return the environment's rendering."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def external(task: str, options: Mapping[str, Any]) -> list[str]:
    """Return the code that an id `MODULE:ID` and keyword arguments import; a plain id is looked up in the registry."""
    return [*([f"environment gymnasium:{task}"] if ":" in task else []), *named_kwargs(options)]


@register_env(
    "gymnasium",
    options=GymnasiumOptions,
    summary="any Gymnasium environment, of one agent or of a team",
    external=external,
)
def make(
    task: str,
    kwargs: dict[str, Any] | None = None,
    max_steps: int | None = None,
    ignore: tuple[str, ...] = (),
    bounds: Bounds = "ignore",
) -> Env:
    """Return `gymnasium.make(task, **kwargs)`, bridged.

    Raises ConfigError if Gymnasium cannot make the environment, MissingDependencyError if a package is missing.
    """
    name = f"gymnasium:{task}"
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    try:
        # Gymnasium's own checker does not support teams; `marl check-env` does.
        env = gymnasium.make(task, **{"disable_env_checker": True, **limit, **(kwargs or {})})
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise MissingDependencyError(f"environment {name!r} needs a missing package: {error}") from error
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        hint = "" if ":" in task else f" If a package registers it, name that too: gymnasium:PACKAGE:{task}"
        raise ConfigError(f"gymnasium cannot make {task!r}: {error}{hint}") from error
    except Exception as error:
        raise ConfigError(f"gymnasium cannot make {task!r} with {kwargs or {}}: {_error_text(error)}") from error
    return with_bounds(bridge_gymnasium(env, "", ignore), bounds)


def _error_text(error: Exception) -> str:
    """Return the text of an error, with its type unless Gymnasium wrote it."""
    return str(error) if isinstance(error, gymnasium.error.Error | TypeError) else f"{type(error).__name__}: {error}"


def bridge_gymnasium(env: gymnasium.Env, name: str = "", ignore: tuple[str, ...] = ()) -> Env:
    """Return the environment as an `Env`: a team if its spaces have one entry for each agent, else one agent."""
    name = name or f"gymnasium:{type(env.unwrapped).__name__ if env.spec is None else env.spec.id}"
    observation, action = (_declared(env, kind, name) for kind in ("observation_space", "action_space"))
    seen, acting = _team_spaces(observation), _team_spaces(action)
    if acting and list(seen) == list(acting):
        return ParallelBridge(GymnasiumTeam(env, observation, action), name=name, ignore=ignore)
    return GymnasiumBridge(env, name, ignore)


@register_bridge
def bridge(made: Any, name: str) -> Env | None:
    """Bridge a Gymnasium environment that a factory returned. Returns None for anything else.

    Raises ConfigError for batches of environments and for environments of the old `gym` package.
    """
    if isinstance(made, gymnasium.Env):
        return with_bounds(bridge_gymnasium(made, name), "ignore")
    packages = {base.__module__.partition(".")[0] for base in type(made).__mro__}
    if isinstance(made, gymnasium.vector.VectorEnv):
        raise ConfigError(f"{name} returned a batch of environments ({type(made).__name__}); return a single one")
    if "vmas" in packages:
        raise ConfigError(
            f"{name} returned a batch of VMAS; make a single one: vmas.make_env(..., num_envs=1, wrapper='gymnasium', "
            "terminated_truncated=True), which needs `pip install shimmy`"
        )
    if "gym" in packages:
        raise ConfigError(
            f"{name} returned an environment of the old `gym` package ({type(made).__name__}); return "
            "gymnasium.make('GymV26Environment-v0', env=env), or GymV21Environment-v0 if `step` returns four values, "
            "after `pip install shimmy`"
        )
    return None


def _declared(env: gymnasium.Env, kind: str, name: str) -> spaces.Space:
    """Return one of the two spaces. Raises ConfigError if the environment does not declare it."""
    space = getattr(env, kind, None)
    if space is None:
        raise ConfigError(f"{name}: declares no `{kind}`; set it in the environment's __init__")
    return declared_space(space, f"{name}: `{kind}`")


def _team_spaces(space: spaces.Space) -> dict[str, spaces.Space]:
    """Return the space of each agent; empty if the space is not of a team."""
    if isinstance(space, spaces.Tuple):
        return {f"agent_{index}": inner for index, inner in enumerate(space.spaces)}
    if isinstance(space, spaces.Dict):
        return {str(name): inner for name, inner in space.spaces.items()}
    return {}
