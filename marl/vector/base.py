"""Base of the vector environments: checks of the caller's arguments, and results read from the buffers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import index as as_int
from typing import Any

import numpy as np

from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.protocols import Env, State
from marl.types import EnvSpec, Final, Obs, VectorStep
from marl.vector.shard import NO_TEXT, ShardReport
from marl.vector.shared_memory import Buffers, TextFields, observation_at

STATE_KEYS = ("vector.seed", "vector.restarts")
"""Entries that a vector adds to an environment's state: its last seed, and the number of restarts of its worker."""


class VectorBase(ABC):
    """E environments cut into shards. Shard k holds the environments of `env_ranges[k]`.

    Arrays of observations are views of buffers that the next `step` or `reset` overwrites.
    """

    def __init__(self, spec: EnvSpec, name: str, env_ranges: list[range], memory: Any) -> None:
        self._spec = spec
        self._name = name or spec.name
        self._env_ranges = env_ranges
        self._num_envs = env_ranges[-1].stop
        self._buffers = Buffers.from_memory(spec, self._num_envs, memory)
        self._text: list[list[TextFields] | None] = [None] * len(env_ranges)
        self._no_arguments = dict.fromkeys(range(len(env_ranges)), ())
        self._seeds = list(range(self._num_envs))
        self._restarts = [0] * self._num_envs
        self._obs: Obs | None = None
        self._closed = False

    @abstractmethod
    def _call(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call a method of some shards. Keys are shard numbers; values are arguments, and results on return."""

    @abstractmethod
    def close(self) -> None:
        """Close all environments. The vector cannot be used again."""

    @property
    def spec(self) -> EnvSpec:
        """Spec of each environment."""
        return self._spec

    @property
    def num_envs(self) -> int:
        """Number of environments E."""
        return self._num_envs

    def reset(self, seeds: list[int]) -> Obs:
        """Start E episodes from one seed each. Returns an observation with leading axis E.

        Raises ValueError for a negative seed or a wrong number of seeds.
        """
        if len(seeds) != self._num_envs:
            raise ValueError(f"{self._name}: reset needs {self._num_envs} seeds, one an environment, got {len(seeds)}")
        self._seeds = [self._check_seed(seed) for seed in seeds]
        return self._observe_start(self._call("reset", self._split(self._seeds)))

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start a new episode in one environment. Returns the observation of all E."""
        self._require_start("reset_at")
        number, local = self._locate(index)
        if seed is not None:
            self._seeds[index] = self._check_seed(seed)
        return self._observe_start(self._call("reset_at", {number: (local, seed)}))

    def step(self, action: Any) -> VectorStep:
        """Step with actions (E, N) int64, (E, N, A) float32 or (E, N) strings.

        Raises WorkerError if an environment raises or its process is lost, and EnvironmentContractError if one breaks
        its spec. The vector is closed then.
        """
        self._require_start("step")
        reports: dict[int, ShardReport] = self._call("step", self._write_action(action))
        ended = [item for report in reports.values() for item in report.ended]
        cut = [(index, {}, text) for report in reports.values() for index, text in report.cut]
        restarted = any(report.restarted for report in reports.values())
        obs = self._observe_start(reports) if restarted else self._observe(reports)
        return VectorStep(
            obs=obs,
            reward=self._buffers.reward.copy(),
            terminated=self._buffers.terminated.copy(),
            truncated=self._buffers.truncated.copy(),
            final=self._final(ended) if ended else None,
            restarted=self._buffers.restarted.copy() if self._buffers.restarted.any() else None,
            duration=None if (self._buffers.duration == 1).all() else self._buffers.duration.copy(),
            agent_truncated=self._buffers.agent_truncated.copy() if cut else None,
            agent_final=self._final(cut) if cut else None,
        )

    def render(self, index: int = 0) -> np.ndarray | str | None:
        """Return a picture (H, W, 3) uint8 or a text of one environment, or None if it has none."""
        self._require_start("render")
        number, local = self._locate(index)
        return self._call("render", {number: (local,)})[number]

    def get_state(self) -> list[State | None]:
        """Return one state for each environment, None for an environment that cannot save its state."""
        self._require_start("get_state")
        answers = self._call("get_state", self._no_arguments)
        states = [state for states in answers.values() for state in states]
        own = [dict(zip(STATE_KEYS, pair, strict=True)) for pair in zip(self._seeds, self._restarts, strict=True)]
        return [None if state is None else state | more for state, more in zip(states, own, strict=True)]

    def set_state(self, states: Sequence[State | None]) -> Obs:
        """Continue from `get_state`. Raises CheckpointError unless there is a state for each environment."""
        absent = [index for index, state in enumerate(states) if state is None]
        if len(states) != self._num_envs or absent:
            problem = f"none for environments {absent}" if absent else f"{len(states)} states"
            raise CheckpointError(
                f"{self._name}: cannot continue {self._num_envs} environments with {problem}; use as many environments "
                "as were saved, or `reset` those that cannot be saved"
            )
        inner = []
        for index, state in enumerate(states):
            assert state is not None
            self._seeds[index] = state.get(STATE_KEYS[0], self._seeds[index])
            self._restarts[index] = state.get(STATE_KEYS[1], self._restarts[index])
            inner.append({name: value for name, value in state.items() if name not in STATE_KEYS})
        return self._observe_start(self._call("set_state", self._split(inner)))

    def _split(self, items: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
        """Return one argument for each shard: its part of E items."""
        return {number: (items[envs.start : envs.stop],) for number, envs in enumerate(self._env_ranges)}

    def _check_seed(self, seed: int) -> int:
        if as_int(seed) < 0:
            raise ValueError(f"{self._name}: a seed must be a non-negative integer, got {seed}")
        return as_int(seed)

    def _require_start(self, method: str) -> None:
        if self._obs is None:
            raise RuntimeError(f"{self._name}: call `reset` or `set_state` before `{method}`")

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self._name}: this vector of environments is closed; make a new one")

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard of an environment, and its place in the shard."""
        for number, envs in enumerate(self._env_ranges):
            if index in envs:
                return number, index - envs.start
        raise IndexError(f"{self._name}: environment {index} is not one of 0 to {self._num_envs - 1}")

    def _write_action(self, action: Any) -> dict[int, tuple[Any, ...]]:
        """Copy actions into the buffers. Returns the arguments of each shard's step, which hold text actions."""
        buffer = self._buffers.action
        shape = (self._num_envs, self._spec.num_agents) if buffer is None else buffer.shape
        given = np.asarray(action, dtype=object if buffer is None else None)
        if given.shape != shape or (buffer is not None and not np.can_cast(given.dtype, buffer.dtype, "same_kind")):
            kind = "string" if buffer is None else buffer.dtype
            raise ValueError(f"{self._name}: actions must be {kind} {shape}, got {given.dtype} {given.shape}")
        if buffer is None:
            return self._split(given.tolist())
        buffer[...] = given
        return self._no_arguments

    def _observe_start(self, reports: dict[int, ShardReport]) -> Obs:
        """Return the observation after episodes began outside of `step`, and find out if there are action masks."""
        obs, masked = self._buffers.obs, self._buffers.masked
        if masked.any() != masked.all():
            self.close()
            raise EnvironmentContractError(
                f"{self._name}: environments {np.flatnonzero(masked).tolist()} give an `action_mask` and environments "
                f"{np.flatnonzero(~masked).tolist()} do not; all must or none"
            )
        self._obs = Obs(obs.agents, obs.alive, obs.action_mask if masked[0] else None, obs.state)
        return self._observe(reports)

    def _observe(self, reports: dict[int, ShardReport]) -> Obs:
        assert self._obs is not None
        for number, report in reports.items():
            self._text[number] = report.text
        if not any(self._text):
            return self._obs
        parts = zip(self._text, self._env_ranges, strict=True)
        return _with_text(self._obs, [fields for text, envs in parts for fields in text or [NO_TEXT] * len(envs)])

    def _final(self, ended: list[tuple[int, dict[str, float], TextFields]]) -> Final:
        indices = np.array([index for index, _, _ in ended], dtype=np.int64)
        obs = observation_at(self._buffers.final, indices)
        if not self._buffers.masked[0]:
            obs = Obs(obs.agents, obs.alive, None, obs.state)
        return Final(indices, _with_text(obs, [text for _, _, text in ended]), tuple(info for _, info, _ in ended))


def _with_text(obs: Obs, text: list[TextFields]) -> Obs:
    agents = tuple(agents for agents, _ in text) if obs.agents is None else obs.agents
    candidates = tuple(candidates for _, candidates in text)
    has_candidates = any(each is not None for each in candidates)
    return Obs(agents, obs.alive, obs.action_mask, obs.state, candidates if has_candidates else None)


def require_env_fns(env_fns: Sequence[Callable[[], Env]]) -> None:
    """Raise ConfigError unless there is at least one factory."""
    if not env_fns:
        raise ConfigError("a vector needs at least one environment, got no factories")
