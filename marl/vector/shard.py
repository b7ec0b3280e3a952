"""Shard: some environments of a vector, and the code that steps them and fills their rows of the buffers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from logging import getLogger
from operator import index as as_int
from typing import Any, NamedTuple, NoReturn

import numpy as np

from marl.errors import EnvironmentContractError, MarlError, named_error, named_errors
from marl.info import read_info
from marl.protocols import Env, State
from marl.registry import as_env
from marl.types import EnvSpec, Obs, Step
from marl.vector.shared_memory import ARRAYS, Buffers, TextFields, arrays_of

BOOL_TYPES = (bool, np.bool_)

GLOBALS = "worker.globals"
"""Entry that a worker process adds to a state: its global random generators. No environment reads it."""

NO_TEXT: TextFields = (None, None)


def close_env(env: Env, name: str) -> None:
    """Close an environment. An error in it, `sys.exit` included, is logged under `name`."""
    try:
        env.close()
    except (Exception, SystemExit):
        getLogger("marl").warning("%s: an environment did not close", name, exc_info=True)


class ShardReport(NamedTuple):
    """Answer of a shard besides the buffers.

    `text`: one entry for each environment, or None if the arrays hold everything. `ended`: (environment, info, text)
    of each episode that ended. `cut`: (environment, text) of each environment in which only some agents were truncated.
    `restarted`: True if the shard lost its worker in this step.
    """

    text: list[TextFields] | None = None
    ended: tuple[tuple[int, dict[str, float], TextFields], ...] = ()
    cut: tuple[tuple[int, TextFields], ...] = ()
    restarted: bool = False


EMPTY_REPORT = ShardReport()


def check_same(first: EnvSpec, spec: EnvSpec, where: str = "") -> None:
    """Raise EnvironmentContractError unless two specs fit in one batch. Their names and lengths may differ."""
    if not isinstance(spec, EnvSpec):
        raise EnvironmentContractError(f"{where}`spec` must be an EnvSpec, got {type(spec).__name__}")
    for name in ("agents", "agent_types", "observation_space", "action_space", "state_space", "team_reward"):
        expected, got = getattr(first, name), getattr(spec, name)
        if expected != got:
            raise EnvironmentContractError(
                f"{where}`spec.{name}` must be that of the vector's first environment: expected {expected}, got {got}"
            )


def _check_array(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if isinstance(value, np.ndarray) and value.shape == shape and value.dtype == dtype:
        return
    got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"{type(value).__name__} {value!r:.80}"
    raise EnvironmentContractError(f"`{name}` must be an array {dtype} {shape}, got {got}")


def _read_duration(duration: Any) -> int:
    try:
        steps = as_int(duration)
    except TypeError:
        steps = 0
    if steps < 1:
        raise EnvironmentContractError(f"`duration` must be a whole number of 1 or more, got {duration!r:.80}")
    return steps


class Shard:
    """Environments [start, start + n) of a vector, and their rows of its buffers.

    An error that an environment raises becomes a MarlError that names the environment, see `named_error`.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Env]], start: int, name: str) -> None:
        self.start = start
        self.name = name
        self.envs: list[Env] = []
        try:
            for index, make in enumerate(env_fns):
                with self._at(index):
                    self.envs.append(as_env(make(), name or "the factory"))
                    check_same(self.spec, self.envs[-1].spec)
                self.name = name or self.spec.name
        except MarlError:
            self.close()
            raise

    @property
    def spec(self) -> EnvSpec:
        """Spec of the first environment."""
        return self.envs[0].spec

    def attach(self, buffers: Buffers) -> None:
        """Set the buffers of the whole vector, of which this shard fills its rows."""
        self.buffers = buffers.rows(slice(self.start, self.start + len(self.envs)))
        self.actions = None if self.buffers.action is None else list(self.buffers.action)
        self.text_obs = buffers.obs.agents is None
        self.names = ARRAYS[1:] if self.text_obs else ARRAYS
        self.no_text = [NO_TEXT] * len(self.envs)
        self.text = list(self.no_text)
        self.flagged = True
        arrays = {**arrays_of(self.buffers.obs), "reward": self.buffers.reward}
        self.flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        self.lengths = {name: array.shape[1] for name, array in arrays.items()}

    def reset(self, seeds: Sequence[int]) -> ShardReport:
        """Start an episode in each environment, one seed each."""
        for index, seed in enumerate(seeds):
            with self._at(index):
                self._store(index, self.envs[index].reset(seed))
        return self._report()

    def reset_at(self, index: int, seed: int | None) -> ShardReport:
        """Start an episode in environment `start + index`."""
        with self._at(index):
            self._store(index, self.envs[index].reset(seed))
        return self._report()

    def set_state(self, states: Sequence[State]) -> ShardReport:
        """Continue each environment from its state."""
        for index, state in enumerate(states):
            own = {name: value for name, value in state.items() if name != GLOBALS}
            with self._at(index):
                self._store(index, self.envs[index].set_state(own))
        return self._report()

    def get_state(self) -> list[State | None]:
        """Return the state of each environment, None if it cannot save one."""
        states = []
        for index, env in enumerate(self.envs):
            with self._at(index):
                states.append(env.get_state())
        return states

    def render(self, index: int) -> np.ndarray | str | None:
        """Render environment `start + index`."""
        with self._at(index):
            return self.envs[index].render()

    def step(self, texts: list[list[str]] | None = None) -> ShardReport:
        """Step with `texts`, n rows of N strings, or with the actions in the buffers. Resets what ended."""
        actions: Any = self.actions if texts is None else np.array(texts, dtype=object)
        steps: list[Step] = []
        observations: list[Obs] = []
        ended, cut = [], []
        self._clear_flags()
        index = 0
        try:
            for index, env in enumerate(self.envs):
                step = env.step(actions[index])
                if not isinstance(step, Step):
                    raise EnvironmentContractError(f"`step` must return a Step, got {type(step).__name__}")
                if type(step.terminated) not in BOOL_TYPES or type(step.truncated) not in BOOL_TYPES:
                    raise EnvironmentContractError(
                        "`terminated` and `truncated` must each be one bool for all agents, got "
                        f"{step.terminated!r} and {step.truncated!r}"
                    )
                obs = step.obs
                if step.terminated or step.truncated:
                    ended.append(self._end(index, step))
                    # `reset` may overwrite arrays that the step shares.
                    step = replace(step, reward=copy(step.reward), duration=_read_duration(step.duration))
                    obs = env.reset()
                    self._check(index, obs)
                elif step.agent_truncated is not None or step.final is not None:
                    cut += self._cut(index, step)
                steps.append(step)
                observations.append(obs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise named_error(error, self._where(index)) from error
        self._gather(steps, observations)
        return self._report(ended, cut)

    def close(self) -> None:
        """Close every environment. An error of one is logged, and the others are closed."""
        while self.envs:
            close_env(self.envs.pop(), self.name)

    def _where(self, index: int) -> str:
        return f"{self.name}, environment {self.start + index}" if self.name else f"environment {self.start + index}"

    def _at(self, index: int) -> AbstractContextManager[None]:
        return named_errors(self._where(index))

    def _report(
        self, ended: Sequence[tuple[int, dict[str, float], TextFields]] = (), cut: Sequence[tuple[int, TextFields]] = ()
    ) -> ShardReport:
        return ShardReport(None if self.text == self.no_text else self.text, tuple(ended), tuple(cut))

    def _check(self, index: int, obs: Any) -> TextFields:
        """Raise EnvironmentContractError unless an observation fits the spec. Returns its text fields."""
        if not isinstance(obs, Obs):
            raise EnvironmentContractError(f"an observation must be an Obs, got {type(obs).__name__}")
        for name in ARRAYS:
            buffer, value = getattr(self.buffers.obs, name), getattr(obs, name)
            if name == "agents" and self.text_obs:
                continue
            if buffer is not None and (name != "action_mask" or self.buffers.masked[index]):
                _check_array(name, value, buffer.shape[1:], buffer.dtype)
            elif value is not None:
                reason = (
                    "as `spec.state_space` is" if name == "state" else "as this episode began or as actions are text"
                )
                raise EnvironmentContractError(f"`{name}` must be None, {reason}, got {type(value).__name__}")
        return self._text_fields(obs)

    def _text_fields(self, obs: Obs) -> TextFields:
        count, agents, candidates = self.spec.num_agents, obs.agents, obs.candidates
        if self.text_obs and not (isinstance(agents, tuple) and [type(agent) for agent in agents] == [str] * count):
            raise EnvironmentContractError(f"`agents` must be a tuple of {count} strings, got {agents!r:.80}")
        if candidates is not None and not (isinstance(candidates, Sequence) and len(candidates) == count):
            raise EnvironmentContractError(
                f"`candidates` must hold one entry for each of {count} agents, got {candidates!r:.80}"
            )
        if candidates is not None:
            candidates = tuple(tuple(each) if isinstance(each, list) else each for each in candidates)
        return (agents if self.text_obs else None, candidates)

    def _copy(self, target: Obs, index: int, obs: Obs) -> None:
        for name, array in arrays_of(target).items():
            if (value := getattr(obs, name)) is not None:
                array[index] = value

    def _store(self, index: int, obs: Obs) -> None:
        """Store an observation with which an environment starts or continues."""
        self.buffers.masked[index] = isinstance(obs, Obs) and obs.action_mask is not None
        self.text[index] = self._check(index, obs)
        self._copy(self.buffers.obs, index, obs)

    def _end(self, index: int, step: Step) -> tuple[int, dict[str, float], TextFields]:
        """Store the last observation of an episode, before the environment overwrites it."""
        if step.terminated and step.truncated:
            raise EnvironmentContractError(
                "`terminated` and `truncated` are both True; an episode that truly ends is terminated alone"
            )
        if step.agent_truncated is not None or step.final is not None:
            raise EnvironmentContractError(
                "`agent_truncated` and `final` must be None where the episode ends; agents that are cut off there are "
                "alive in `obs`, terminated ones are not"
            )
        if step.restarted:
            if step.terminated:
                raise EnvironmentContractError("`restarted` and `terminated` are both True; truncate a lost episode")
            self.buffers.restarted[index] = self.flagged = True
        text = self._check(index, step.obs)
        self._copy(self.buffers.final, index, step.obs)
        return self.start + index, read_info(step.info), text

    def _cut(self, index: int, step: Step) -> list[tuple[int, TextFields]]:
        """Store the last observation of agents that are truncated while their episode continues."""
        cut, shape = step.agent_truncated, self.buffers.agent_truncated.shape[1:]
        if cut is not None:
            _check_array("agent_truncated", cut, shape, np.dtype(np.bool_))
        if cut is None or not cut.any():
            if step.final is not None:
                raise EnvironmentContractError("`final` must be None where `agent_truncated` is True for no agent")
            return []
        agents = [self.spec.agents[agent] for agent in np.flatnonzero(cut)]
        if step.final is None:
            raise EnvironmentContractError(
                f"`agent_truncated` is True for {agents}, and `final` is None; give in `final` the last "
                "observation in which they are alive, from which they bootstrap"
            )
        text = self._check(index, step.final)
        self._check(index, step.obs)
        if (cut & (step.obs.alive | ~step.final.alive)).any():
            raise EnvironmentContractError(
                f"`agent_truncated` is True for {agents}; they must be alive in `final` and not in `obs`"
            )
        self._copy(self.buffers.final, index, step.final)
        self.buffers.agent_truncated[index] = cut
        self.flagged = True
        return [(self.start + index, text)]

    def _clear_flags(self) -> None:
        """Clear the flags that few steps set."""
        if self.flagged:
            self.buffers.agent_truncated[:] = False
            self.buffers.restarted[:] = False
            self.flagged = False

    def _gather(self, steps: list[Step], observations: list[Obs]) -> None:
        """Copy n transitions into the buffers, each field in one call."""
        try:
            fits = self._copy_column("reward", [step.reward for step in steps])
            for name in self.names:
                fits = self._copy_column(name, [getattr(obs, name) for obs in observations]) and fits
            has_text = self.text_obs or any(obs.candidates is not None for obs in observations)
        except (AttributeError, TypeError, ValueError):
            fits = has_text = False
        if not fits:
            self._raise_misfit(steps, observations)
        self.text = list(self.no_text)
        if has_text:
            for index, obs in enumerate(observations):
                with self._at(index):
                    self.text[index] = self._text_fields(obs)
        durations = [step.duration for step in steps]
        if durations.count(1) < len(durations):
            for index, duration in enumerate(durations):
                with self._at(index):
                    durations[index] = _read_duration(duration)
        self.buffers.duration[:] = durations
        self.buffers.terminated[:] = [step.terminated for step in steps]
        self.buffers.truncated[:] = [step.truncated for step in steps]

    def _copy_column(self, name: str, column: list[Any]) -> bool:
        """Copy one field of n environments into the buffers. Returns False if its shape differs."""
        flat = self.flat.get(name)
        if flat is None or (name == "action_mask" and not self.buffers.masked[0]):
            return column.count(None) == len(column)
        if set(map(len, column)) != {self.lengths[name]}:
            return False
        np.concatenate(column, out=flat, casting="no")
        return True

    def _raise_misfit(self, steps: list[Step], observations: list[Obs]) -> NoReturn:
        """Raise EnvironmentContractError for the first field that does not fit."""
        for index, (step, obs) in enumerate(zip(steps, observations, strict=True)):
            with self._at(index):
                self._check(index, obs)
                _check_array("reward", step.reward, self.buffers.reward.shape[1:], self.buffers.reward.dtype)
        raise EnvironmentContractError(f"{self.name}: arrays of different environments do not fit in one batch")
