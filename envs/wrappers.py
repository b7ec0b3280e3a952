"""Wrappers of environments. Each wrapper is an `Env` whose saved state includes the state of the wrapped one."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces

from marl.errors import ConfigError, MissingDependencyError
from marl.protocols import Env, State
from marl.types import EnvSpec, Obs, Step

Bounds = Literal["ignore", "clip", "error"]
"""Treatment of observations outside the declared space of a bridged environment."""


class EnvWrapper:
    """Base class: passes every call on. A subclass overrides `observe`, which maps every observation, or the calls.

    `state_attributes` names the attributes that are saved beside the state of the wrapped environment.
    """

    state_attributes: tuple[str, ...] = ()

    def __init__(self, env: Env) -> None:
        self.env = env
        depth = 0
        while isinstance(env, EnvWrapper):
            env, depth = env.env, depth + 1
        self._prefix = f"wrapper{depth}."

    @property
    def spec(self) -> EnvSpec:
        """Spec of the environment as the wrapper shows it."""
        return self.env.spec

    def observe(self, obs: Obs) -> Obs:
        """Return the observation that the wrapper shows."""
        return obs

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode."""
        return self.observe(self.env.reset(seed))

    def step(self, action: np.ndarray) -> Step:
        """Act in the wrapped environment."""
        step = self.env.step(action)
        final = None if step.final is None else self.observe(step.final)
        return replace(step, obs=self.observe(step.obs), final=final)

    def render(self) -> np.ndarray | str | None:
        """Return the frame or text of the wrapped environment."""
        return self.env.render()

    def get_state(self) -> State | None:
        """Return both states, or None if the wrapped environment cannot save its own."""
        state = self.env.get_state()
        if state is None:
            return None
        return state | {self._prefix + name: getattr(self, name) for name in self.state_attributes}

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`."""
        obs = self.env.set_state({key: value for key, value in state.items() if not key.startswith(self._prefix)})
        for name in self.state_attributes:
            setattr(self, name, state[self._prefix + name])
        return self.observe(obs)

    def close(self) -> None:
        """Close the wrapped environment."""
        self.env.close()


class TimeLimit(EnvWrapper):
    """Truncate an episode after `max_steps` primitive steps, or at the environment's own limit if that comes first."""

    state_attributes = ("elapsed", "over")

    def __init__(self, env: Env, max_steps: int) -> None:
        super().__init__(env)
        if max_steps < 1:
            raise ConfigError(f"TimeLimit: max_steps={max_steps}; give 1 or more")
        own = env.spec.max_steps
        self._spec = replace(env.spec, max_steps=max_steps if own is None else min(max_steps, own))
        self._limit = max_steps
        self.elapsed = 0
        self.over = True

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int | None = None) -> Obs:
        obs = super().reset(seed)
        self.elapsed = 0
        self.over = False
        return obs

    def step(self, action: np.ndarray) -> Step:
        if self.over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        step = super().step(action)
        self.elapsed += step.duration
        truncated = step.truncated or (self.elapsed >= self._limit and not step.terminated)
        self.over = step.terminated or truncated
        if truncated and step.final is not None:  # agents truncated alone in the last step stay alive
            return replace(step, obs=step.final, truncated=True, agent_truncated=None, final=None)
        return replace(step, truncated=truncated)


class AgentId(EnvWrapper):
    """Prepend a one-hot agent index to every observation.

    The N columns come first, so that padding of narrower agents stays last. An `AgentId` around a `DeathMask` keeps
    the index of dead agents; one inside a `DeathMask` loses it.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        spec, box = env.spec, _box(env, "AgentId")
        count = spec.num_agents
        self._ids = np.eye(count, dtype=np.float32)
        low = np.concatenate([np.zeros(count, np.float32), box.low])
        high = np.concatenate([np.ones(count, np.float32), box.high])
        sizes = tuple(size + count for size in spec.observation_sizes)
        space = spaces.Box(low, high, dtype=np.float32)
        self._spec = replace(spec, observation_space=space, observation_sizes=sizes)

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def observe(self, obs: Obs) -> Obs:
        return replace(obs, agents=np.concatenate([self._ids, obs.agents], axis=1))


class DeathMask(EnvWrapper):
    """Give dead agents a zero observation and only the first action."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._spec = replace(env.spec, observation_space=_with_zero(_box(env, "DeathMask")))

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def observe(self, obs: Obs) -> Obs:
        alive = obs.alive[:, None]
        agents = np.where(alive, obs.agents, np.float32(0))
        if isinstance(self.spec.action_space, spaces.Text):
            return replace(obs, agents=agents)
        first = np.arange(self.spec.action_size) == 0
        return replace(obs, agents=agents, action_mask=np.where(alive, _action_mask(self.spec, obs), first))


class Pad(EnvWrapper):
    """Pad observations, actions or the team, so that one policy fits environments of several sizes.

    New columns are zero, new actions are never available, new agents are never alive. New agents receive the team
    reward, or 0 if rewards are individual. Raises ConfigError if a size is below the environment's own.
    """

    def __init__(
        self,
        env: Env,
        observation_size: int | None = None,
        action_size: int | None = None,
        num_agents: int | None = None,
    ) -> None:
        super().__init__(env)
        spec = env.spec
        box = _box(env, "Pad")
        if isinstance(spec.action_space, spaces.Text):
            raise ConfigError(f"Pad: {spec.name} has Text actions; only Discrete and Box actions can be padded")
        width = _size("observation_size", observation_size, spec.observation_size)
        actions = _size("action_size", action_size, spec.action_size)
        self._extra = _size("num_agents", num_agents, spec.num_agents) - spec.num_agents
        self._spec = replace(
            spec,
            agents=spec.agents + tuple(f"pad_{index}" for index in range(self._extra)),
            agent_types=spec.agent_types + ("pad",) * self._extra,
            observation_space=_widen(_with_zero(box), width),
            action_space=_wider_action(spec, actions, self._extra),
            observation_sizes=spec.observation_sizes + (0,) * self._extra,
            action_sizes=spec.action_sizes + (1,) * self._extra,
        )

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def observe(self, obs: Obs) -> Obs:
        inner, outer = self.env.spec, self._spec
        agents = np.zeros((outer.num_agents, outer.observation_size), dtype=np.float32)
        agents[: inner.num_agents, : inner.observation_size] = obs.agents
        mask = np.zeros((outer.num_agents, outer.action_size), dtype=bool)
        mask[: inner.num_agents, : inner.action_size] = _action_mask(inner, obs)
        mask[inner.num_agents :, 0] = True
        alive = np.append(obs.alive, np.zeros(self._extra, dtype=bool))
        candidates = None if obs.candidates is None else tuple(obs.candidates) + ((),) * self._extra
        return Obs(agents, alive, action_mask=mask, state=obs.state, candidates=candidates)

    def step(self, action: np.ndarray) -> Step:
        inner = self.env.spec
        own = action[: inner.num_agents] if inner.discrete else action[: inner.num_agents, : inner.action_size]
        step = super().step(own)
        fill = step.reward[0] if inner.team_reward else 0.0
        reward = np.append(step.reward, np.full(self._extra, fill, dtype=np.float32))
        if step.agent_truncated is None:
            return replace(step, reward=reward)
        alone = np.append(step.agent_truncated, np.zeros(self._extra, dtype=bool))
        return replace(step, reward=reward, agent_truncated=alone)


class Unbounded(EnvWrapper):
    """Declare infinite bounds for observations and states."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        state = env.spec.state_space
        self._spec = replace(
            env.spec,
            observation_space=_unbounded(_box(env, "Unbounded")),
            state_space=None if state is None else _unbounded(state),
        )

    @property
    def spec(self) -> EnvSpec:
        return self._spec


class ClipObservation(EnvWrapper):
    """Clip observations and states to their declared bounds."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._space = _box(env, "ClipObservation")

    def observe(self, obs: Obs) -> Obs:
        space, state = self.spec.state_space, obs.state
        if state is not None and space is not None:
            state = np.clip(state, space.low, space.high)
        return replace(obs, agents=np.clip(obs.agents, self._space.low, self._space.high), state=state)


def with_bounds(env: Env, bounds: Bounds) -> Env:
    """Return the environment with its declared observation bounds enforced by an error, ignored, or by clipping."""
    if bounds not in get_args(Bounds):
        raise ConfigError(f"{env.spec.name}: bounds={bounds!r}; give one of {', '.join(get_args(Bounds))}")
    return {"error": lambda env: env, "ignore": Unbounded, "clip": ClipObservation}[bounds](env)


class EpisodeStatistics(EnvWrapper):
    """Add `episode_return` (mean over agents) and `episode_length` to the info of the last step of an episode."""

    state_attributes = ("episode_return", "episode_length")

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.episode_return = 0.0
        self.episode_length = 0

    def reset(self, seed: int | None = None) -> Obs:
        self.episode_return = 0.0
        self.episode_length = 0
        return super().reset(seed)

    def step(self, action: np.ndarray) -> Step:
        step = super().step(action)
        self.episode_return += float(step.reward.mean(dtype=np.float64))
        self.episode_length += 1
        if not (step.terminated or step.truncated):
            return step
        totals = {"episode_return": self.episode_return, "episode_length": float(self.episode_length)}
        return replace(step, info={**step.info, **totals})


class Record(EnvWrapper):
    """Write the output of `render` after every reset and step to one file, which is complete after `close`.

    `path` ends in .mp4 or .gif for frames, in .txt for text. `fps` is frames per second. Raises ConfigError if the
    environment renders something else, MissingDependencyError without imageio.
    """

    def __init__(self, env: Env, path: str | Path, fps: int = 20) -> None:
        super().__init__(env)
        self._path = Path(path)
        self._fps = fps
        self._writer: Any = None
        if self._path.suffix not in (".mp4", ".gif", ".txt"):
            raise ConfigError(f"Record: cannot write {str(path)!r}; give a path that ends in .mp4, .gif or .txt")
        if fps < 1:
            raise ConfigError(f"Record: fps={fps}; give 1 or more")

    def reset(self, seed: int | None = None) -> Obs:
        obs = super().reset(seed)
        self._write()
        return obs

    def step(self, action: np.ndarray) -> Step:
        step = super().step(action)
        self._write()
        return step

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        super().close()

    def _write(self) -> None:
        shown = self.env.render()
        wanted = str if self._path.suffix == ".txt" else np.ndarray
        if not isinstance(shown, wanted):
            raise ConfigError(
                f"Record: {self.spec.name} renders {type(shown).__name__}, and {str(self._path)!r} takes "
                f"{wanted.__name__}; write text (str) to .txt and frames (ndarray) to .mp4 or .gif, and make an "
                "environment that renders NoneType with a render mode"
            )
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            as_text = isinstance(shown, str)
            self._writer = self._path.open("w", encoding="utf-8") if as_text else _video(self._path, self._fps)
        if isinstance(shown, str):
            self._writer.write(shown + "\n\n")
        else:
            height, width = shown.shape[:2]
            # H.264 with the yuv420p pixel format needs even sides.
            self._writer.append_data(np.pad(shown, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _video(path: Path, fps: int) -> Any:
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise MissingDependencyError(
            "Record needs imageio for frames; install with: pip install imageio imageio-ffmpeg"
        ) from error
    if path.suffix == ".gif":
        return imageio.get_writer(path, duration=1000 / fps, loop=0)
    return imageio.get_writer(path, fps=fps, macro_block_size=1)


def _box(env: Env, wrapper: str) -> spaces.Box:
    space = env.spec.observation_space
    if not isinstance(space, spaces.Box):
        raise ConfigError(
            f"{wrapper}: {env.spec.name} has {type(space).__name__} observations; only Box observations can be wrapped"
        )
    return space


def _unbounded(box: spaces.Box) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, box.shape, np.float32)


def _with_zero(box: spaces.Box) -> spaces.Box:
    return spaces.Box(np.minimum(box.low, 0), np.maximum(box.high, 0), dtype=np.float32)


def _widen(box: spaces.Box, size: int) -> spaces.Box:
    extra = (0, size - box.shape[0])
    return spaces.Box(np.pad(box.low, extra), np.pad(box.high, extra), dtype=np.float32)


def _wider_action(spec: EnvSpec, size: int, extra_agents: int) -> spaces.Space:
    if spec.mixed:
        if size > spec.action_size:
            raise ConfigError(
                f"Pad: action_size={size}, but the agents of {spec.name} have action spaces of their own, which need "
                "no padding; leave it out"
            )
        return spaces.Tuple((*spec.action_spaces, *(spaces.Discrete(1),) * extra_agents))
    if isinstance(spec.action_space, spaces.Box):
        extra = (0, size - spec.action_size)
        low = np.pad(spec.action_space.low, extra, constant_values=-1)
        high = np.pad(spec.action_space.high, extra, constant_values=1)
        return spaces.Box(low, high, dtype=np.float32)
    return spaces.Discrete(size)


def _size(option: str, wanted: int | None, own: int) -> int:
    if wanted is not None and wanted < own:
        raise ConfigError(f"Pad: {option}={wanted} is below the environment's own {own}; give {own} or more")
    return own if wanted is None else wanted


def _action_mask(spec: EnvSpec, obs: Obs) -> np.ndarray:
    if obs.action_mask is not None:
        return obs.action_mask
    return np.ones((spec.num_agents, spec.action_size), dtype=bool)
