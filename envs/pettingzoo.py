"""PettingZoo environments.

`pettingzoo:<module>`, for example `pettingzoo:mpe2.simple_spread_v3`, runs any module that has a `parallel_env`, or
an AEC `env` that PettingZoo can make parallel. `ParallelBridge` bridges an environment object.
`marl.envs.pettingzoo_view` converts in the other direction.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo.utils.conversions import aec_to_parallel
from pettingzoo.utils.env import AECEnv, ParallelEnv

from marl.envs.pettingzoo_modules import load_factory, make_with
from marl.envs.spaces import (
    MASK,
    ObservationReader,
    declared_space,
    flat_action,
    flat_box,
    flat_vector,
    inner_action,
    rendered,
    scalars,
)
from marl.envs.wrappers import Bounds, with_bounds
from marl.errors import ConfigError, EnvironmentContractError
from marl.protocols import Env, State
from marl.registry import named_kwargs, register_bridge, register_env
from marl.types import EnvSpec, Obs, Step

COMMON = "__common__"
"""Key of the infos for entries that belong to no single agent."""


@dataclass(frozen=True)
class PettingZooOptions:
    """Options of a PettingZoo environment."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the module's `parallel_env` (or `env`)."""
    max_steps: int | None = None
    """Steps after which an episode is truncated; None is the environment's own limit, if it can be found."""
    ignore: tuple[str, ...] = ()
    """Entries of a Dict observation to leave out, such as a text."""
    state: bool = True
    """Give the environment's global state, if it has one, to centralized critics."""
    bounds: Bounds = "ignore"
    """Treatment of observations outside their declared space: "ignore", "clip", or "error", which ends the run."""

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more, or None")


class ParallelBridge:
    """A `pettingzoo.ParallelEnv` as an `Env`.

    Observations are flattened to float32 vectors and padded with zeros to the widest agent. `ObservationReader` reads
    action masks from a Dict observation or an agent's info, and leaves out the entries in `ignore`. Discrete and Box
    actions of unequal sizes are padded and masked; a team with both kinds is mixed. Continuous actions are clipped to
    the agent's own bounds. An agent's type is its name without the trailing number, if the spaces of all agents of that
    name are equal. Rewards are individual. With `use_state`, `state` is the environment's own; after all agents have
    terminated, the last state stays. Infos are joined as `<agent>/<name>`. Without a team `success`, it is the mean of
    the last `success` of each agent in the episode.

    An agent that the environment drops is not alive; its observation is zero, and its reward too unless the environment
    still gives one. The episode ends when no agent is left, or at `max_steps`. It is truncated if any agent that acted
    in the last step was truncated without having terminated; such agents stay alive in the last observation. Otherwise
    it is terminated. Agents truncated while others act on are `agent_truncated`, and `final` holds their last
    observations.

    Raises ConfigError for unsupported spaces.
    """

    def __init__(
        self,
        env: ParallelEnv,
        max_steps: int | None = None,
        name: str | None = None,
        ignore: tuple[str, ...] = (),
        use_state: bool = True,
    ) -> None:
        self.env = env
        self.name = name or f"pettingzoo:{env}"
        if not getattr(env, "possible_agents", None):
            raise ConfigError(f"{self.name}: no `possible_agents`; the bridge needs all agents in advance; define it")
        self._agents = list(env.possible_agents)
        self._action_spaces = [self._space("action", agent) for agent in self._agents]
        self._observation_spaces = [self._space("observation", agent) for agent in self._agents]
        self._readers = [
            ObservationReader(space, own, f"{self.name}, agent {agent!r}", ignore)
            for agent, space, own in zip(self._agents, self._observation_spaces, self._action_spaces, strict=True)
        ]
        self._masked: set[Any] = set()
        state_space = getattr(env, "state_space", None) if use_state else None
        where = f"{self.name}: `state_space`"
        self._state_space = None if state_space is None else declared_space(state_space, where)
        self._last_state: np.ndarray | None = None
        self.spec = self._build_spec(max_steps)
        self._sizes_mask = np.arange(self.spec.action_size) < np.array(self.spec.action_sizes)[:, None]  # (N, A)
        self._elapsed = 0
        self._successes: dict[Any, float] = {}
        self._over = True
        self._closed = False

    @classmethod
    def from_aec(cls, env: AECEnv, max_steps: int | None = None, name: str | None = None) -> "ParallelBridge":
        """Bridge a turn-based environment through PettingZoo's own converter.

        Raises ConfigError if the environment is not marked as parallelizable.
        """
        return cls(_parallel(env, name or str(env)), max_steps, name)

    def _space(self, kind: str, agent: Any) -> spaces.Space:
        """Return an agent's observation or action space. Raises ConfigError if the environment declares none."""
        try:
            space = getattr(self.env, f"{kind}_space")(agent)
        except (AttributeError, KeyError, NotImplementedError, TypeError) as error:
            raise ConfigError(
                f"{self.name}: declares no {kind} space for agent {agent!r} ({type(error).__name__}: {error}); define "
                f"the method `{kind}_space(agent)`"
            ) from error
        return declared_space(space, f"{self.name}: the {kind} space of agent {agent!r}")

    def _build_spec(self, max_steps: int | None) -> EnvSpec:
        boxes = [reader.box for reader in self._readers]
        actions = [
            flat_action(space, f"{self.name}, agent {agent!r}", team=True)
            for agent, space in zip(self._agents, self._action_spaces, strict=True)
        ]
        limits = [limit for limit in (max_steps, _own_limit(self.env)) if limit is not None]
        return EnvSpec(
            name=self.name,
            agents=tuple(str(agent) for agent in self._agents),
            observation_space=_common_box([*boxes, *_zero_box(boxes)]),
            action_space=_common_action(actions),
            max_steps=min(limits) if limits else None,
            state_space=None if self._state_space is None else flat_box(self._state_space, self.name),
            team_reward=False,
            agent_types=self._agent_types(),
            observation_sizes=tuple(box.shape[0] for box in boxes),
            action_sizes=tuple(_action_width(action) for action in actions),
        )

    def _agent_types(self) -> tuple[str, ...]:
        names = [str(agent) for agent in self._agents]
        stems = [re.sub(r"_?\d+$", "", name) for name in names]
        spaces_of: dict[str, set[str]] = {stem: set() for stem in stems}
        for stem, *both in zip(stems, self._observation_spaces, self._action_spaces, strict=True):
            spaces_of[stem].add(str(both))
        return tuple(
            stem if stem and len(spaces_of[stem]) == 1 else name for name, stem in zip(names, stems, strict=True)
        )

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode."""
        observations, infos = self.env.reset(seed=seed)
        self._elapsed = 0
        self._over = False
        self._successes = {}
        return self._obs(set(self.env.agents), observations, infos)

    def step(self, action: np.ndarray) -> Step:
        """Act with (N,) int64 or (N, A) float32. Raises RuntimeError without a running episode."""
        if self._over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        acting = set(self.env.agents)
        chosen = {
            agent: inner_action(space, action[index])
            for index, (agent, space) in enumerate(zip(self._agents, self._action_spaces, strict=True))
            if agent in acting
        }
        observations, rewards, terminations, truncations, infos = self.env.step(chosen)
        self._elapsed += 1
        alive = {agent for agent in self.env.agents if not terminations.get(agent) and not truncations.get(agent)}
        cut = {agent for agent in acting if truncations.get(agent) and not terminations.get(agent)}
        at_limit = self.spec.max_steps is not None and self._elapsed >= self.spec.max_steps
        self._over = not alive or at_limit
        truncated = self._over and bool(alive or cut)
        reward = np.array([rewards.get(agent, 0.0) for agent in self._agents], dtype=np.float32)
        last = self._obs(alive | cut, observations, infos, cut)
        info = self._info(infos)
        if self._over or not cut:
            return Step(last, reward, self._over and not truncated, truncated, info)
        alone = np.array([agent in cut for agent in self._agents])
        obs = self._obs(alive, observations, infos)
        return Step(obs, reward, False, False, info, agent_truncated=alone, final=last)

    def _obs(self, alive: set[Any], observations: Any, infos: Any, cut: Collection[Any] = ()) -> Obs:
        """Return the observation of the agents `alive`. Truncated agents (`cut`) need no action mask."""
        seen = np.zeros((len(self._agents), self.spec.observation_size), dtype=np.float32)
        available = self._sizes_mask.copy()
        for index, agent in enumerate(self._agents):
            if agent not in alive:
                available[index] = np.arange(self.spec.action_size) == 0
                continue
            if agent not in observations:
                raise EnvironmentContractError(
                    f"{self.name}: gave no observation to the agent {agent!r}, which acts or was truncated; give every "
                    "agent that has not terminated an observation, from which its future is valued"
                )
            ended = self._over or agent in cut
            vector, mask = self._readers[index].read(observations[agent], infos.get(agent) or {}, ended)
            seen[index, : len(vector)] = vector
            if mask is not None:
                available[index, : len(mask)] = mask
                self._masked.add(agent)
            elif agent in self._masked and not ended:
                raise EnvironmentContractError(
                    f"{self.name}: gave agent {agent!r} an `{MASK}` before and none now; give one in every info"
                )
        living = np.array([agent in alive for agent in self._agents])
        return Obs(seen, living, action_mask=available, state=self._state(bool(alive)))

    def _state(self, anybody: bool) -> np.ndarray | None:
        """Return the global state (S,). The last one stays after all agents ended: some environments have none then."""
        if self._state_space is None:
            return None
        if anybody or self._last_state is None:
            try:
                self._last_state = np.array(flat_vector(self._state_space, self.env.state()))
            except Exception as error:
                raise EnvironmentContractError(
                    f"{self.name}: its `state()` failed ({type(error).__name__}: {error}); run without the state: "
                    "--no-state, or `use_state=False` in code"
                ) from error
        return self._last_state

    def _info(self, infos: dict[Any, Any]) -> dict[str, float]:
        joined: dict[str, float] = {}
        for agent, info in infos.items():
            own = scalars(info or {})
            joined |= {name if agent == COMMON else f"{agent}/{name}": value for name, value in own.items()}
            if "success" in own:
                self._successes[agent] = own["success"]
        if self._successes and "success" not in joined:
            joined["success"] = float(np.mean(list(self._successes.values())))
        return joined

    def render(self) -> np.ndarray | str | None:
        """Return a frame, text, or None without a render mode."""
        return rendered(self.env)

    def get_state(self) -> None:
        """Return None: PettingZoo has no common way to save an environment."""

    def set_state(self, state: State) -> Obs:  # noqa: ARG002
        """Raise RuntimeError: `get_state` is None."""
        raise RuntimeError(f"{self.spec.name} cannot restore a state; its get_state is None")

    def close(self) -> None:
        """Close the environment once."""
        if not self._closed:
            self._closed = True
            self.env.close()


@register_env(
    "pettingzoo",
    options=PettingZooOptions,
    summary="any PettingZoo module, for example mpe2.simple_spread_v3",
    external=lambda task, options: [f"environment pettingzoo:{task}", *named_kwargs(options)],
)
def make(
    task: str,
    kwargs: dict[str, Any] | None = None,
    max_steps: int | None = None,
    ignore: tuple[str, ...] = (),
    state: bool = True,
    bounds: Bounds = "ignore",
) -> Env:
    """Return the environment of the module `task`, bridged.

    Raises UnknownNameError if an installed package has no such module, MissingDependencyError if a package is missing,
    ConfigError if the module holds no environment or cannot make it.
    """
    name = f"pettingzoo:{task}"
    env = make_with(load_factory(task), kwargs or {}, task)
    if isinstance(env, AECEnv):
        env = _parallel(env, name)
    return with_bounds(ParallelBridge(env, max_steps, name, ignore, state), bounds)


@register_bridge
def bridge(made: Any, name: str) -> Env | None:
    """Bridge a PettingZoo environment that a factory returned. Returns None for anything else."""
    if isinstance(made, AECEnv):
        return with_bounds(ParallelBridge.from_aec(made, name=name), "ignore")
    return with_bounds(ParallelBridge(made, name=name), "ignore") if isinstance(made, ParallelEnv) else None


def _parallel(env: AECEnv, name: str) -> ParallelEnv:
    if not env.metadata.get("is_parallelizable", False):
        raise ConfigError(
            f"{name}: its agents act in turns and its metadata does not say `is_parallelizable`; only environments "
            "whose agents can act at the same time are supported"
        )
    return aec_to_parallel(env)


def _own_limit(env: ParallelEnv) -> int | None:
    """Return the environment's own step limit: `max_cycles` or `max_steps` of the inner environment, else None."""
    inner: Any = env.unwrapped
    for place in (inner, getattr(inner, "env", None), getattr(inner, "aec_env", None)):
        for attribute in ("max_cycles", "max_steps"):
            limit = getattr(place, attribute, None)
            if isinstance(limit, int) and limit > 0:
                return limit
    return None


def _common_box(boxes: list[spaces.Box]) -> spaces.Box:
    """Return the smallest Box that holds every agent's vector, padded at the end with zeros."""
    width = max(box.shape[0] for box in boxes)
    low = np.min([np.pad(box.low, (0, width - box.shape[0])) for box in boxes], axis=0)
    high = np.max([np.pad(box.high, (0, width - box.shape[0])) for box in boxes], axis=0)
    return spaces.Box(low, high, dtype=np.float32)


def _zero_box(boxes: list[spaces.Box]) -> list[spaces.Box]:
    """Return the Box of the zero vector, which a dead agent observes."""
    width = max(box.shape[0] for box in boxes)
    return [spaces.Box(0.0, 0.0, (width,), np.float32)]


def _common_action(actions: list[spaces.Discrete | spaces.Box]) -> spaces.Space:
    """Return the smallest space that holds every agent's, or a Tuple of all if they are of both kinds."""
    if len({type(action) for action in actions}) > 1:
        empty = spaces.Box(0.0, 0.0, (1,), np.float32)
        return spaces.Tuple([empty if action.shape == (0,) else action for action in actions])
    discrete = [int(action.n) for action in actions if isinstance(action, spaces.Discrete)]
    if discrete:
        return spaces.Discrete(max(discrete))
    return _common_box([action for action in actions if isinstance(action, spaces.Box)])


def _action_width(action: spaces.Discrete | spaces.Box) -> int:
    """Return the number of actions or dimensions, at least 1: an empty Box keeps one dimension that nothing reads."""
    return int(action.n) if isinstance(action, spaces.Discrete) else max(1, action.shape[0])
