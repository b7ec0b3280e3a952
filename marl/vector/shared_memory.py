"""One block of arrays for E environments, and the shards of environments that fill it.

A vector in one process is one shard over private memory; worker processes hold one shard each over shared memory.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from logging import getLogger
from math import prod
from operator import index as as_int
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gymnasium.spaces import Box, Discrete, Text

from marl.errors import EnvironmentContractError, MarlError, WorkerError
from marl.info import read_info
from marl.protocols import Env, State
from marl.registry import as_env
from marl.types import EnvSpec, Obs, Step

ALIGNMENT = 64
FLAGS = (bool, np.bool_)
ARRAYS = ("agents", "alive", "action_mask", "state")
"""The fields of an observation that are arrays, where an environment has them."""

GLOBALS = "worker.globals"
"""Entry of a state that a worker process adds: its global random generators. No environment reads it."""

TextFields = tuple[Any, Any]
"""The parts of one observation that no array holds: `agents` where it is text, and `candidates`."""


class ShardReport(NamedTuple):
    """What a shard answers besides the buffers.

    `words`: one entry per environment, or None where the arrays hold everything. `ended`: (environment,
    info, words) of each episode that ended. `cut`: (environment, words) where agents were cut off alone. `restarted`:
    the shard lost its worker in this step.
    """

    words: list[TextFields] | None = None
    ended: tuple[tuple[int, dict[str, float], TextFields], ...] = ()
    cut: tuple[tuple[int, TextFields], ...] = ()
    restarted: bool = False


EMPTY_REPORT = ShardReport()


@dataclass(frozen=True)
class Buffers:
    """Arrays with leading axis E. Fields of `obs` and `final` that have no array are None.

    `action`: (E, N) int64, (E, N, A) float32, or None for text. `masked`: (E,) bool, the environment
    gives action masks. `duration`: (E,) int64. `agent_truncated`: (E, N) bool. `restarted`: (E,) bool.
    """

    obs: Obs
    final: Obs
    action: np.ndarray | None
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    masked: np.ndarray
    duration: np.ndarray
    agent_truncated: np.ndarray
    restarted: np.ndarray

    @classmethod
    def from_memory(cls, spec: EnvSpec, num_envs: int, memory: Any) -> "Buffers":
        """The arrays of E environments inside a writable block of `Buffers.size(spec, E)` bytes."""
        arrays: dict[str, Any] = {}
        offset = 0
        for name, (shape, dtype) in _layout(spec, num_envs).items():
            arrays[name] = np.ndarray(shape, dtype, memory, offset)
            offset += _aligned(shape, dtype)
        parts = [
            Obs(
                agents=arrays.get(f"{part}.agents"),
                alive=arrays[f"{part}.alive"],
                action_mask=arrays.get(f"{part}.action_mask"),
                state=arrays.get(f"{part}.state"),
            )
            for part in ("obs", "final")
        ]
        names = ("reward", "terminated", "truncated", "masked", "duration", "agent_truncated", "restarted")
        return cls(*parts, action=arrays.get("action"), **{name: arrays[name] for name in names})

    @staticmethod
    def size(spec: EnvSpec, num_envs: int) -> int:
        return sum(_aligned(*field) for field in _layout(spec, num_envs).values())


def _aligned(shape: tuple[int, ...], dtype: type) -> int:
    return -(-prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


def _layout(spec: EnvSpec, num_envs: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """Name, shape and type of each array. Raises EnvironmentContractError for a space that has none."""
    rows = (num_envs, spec.num_agents)
    for kind, space, kinds in (
        ("observation", spec.observation_space, (Box, Text)),
        *(("action", space, (Discrete, Box) if spec.mixed else (Discrete, Box, Text)) for space in spec.action_spaces),
    ):
        if not isinstance(space, kinds) or (isinstance(space, Box) and len(space.shape) != 1):
            allowed = ", ".join("Box with one axis" if kind is Box else kind.__name__ for kind in kinds)
            raise EnvironmentContractError(f"{spec.name}: {kind} space {space} is none of {allowed}")
    part: dict[str, tuple[tuple[int, ...], type]] = {"alive": (rows, np.bool_)}
    if isinstance(spec.observation_space, Box):
        part["agents"] = ((*rows, spec.observation_size), np.float32)
    if not isinstance(spec.action_space, Text):
        part["action_mask"] = ((*rows, spec.action_size), np.bool_)
    if spec.state_space is not None:
        part["state"] = ((num_envs, spec.state_size), np.float32)
    layout = {f"{name}.{field}": value for name in ("obs", "final") for field, value in part.items()}
    layout |= {"reward": (rows, np.float32), "agent_truncated": (rows, np.bool_)}
    layout |= dict.fromkeys(("terminated", "truncated", "masked", "restarted"), ((num_envs,), np.bool_))
    layout["duration"] = ((num_envs,), np.int64)
    if spec.discrete:
        layout["action"] = (rows, np.int64)
    elif spec.continuous or spec.mixed:
        layout["action"] = ((*rows, spec.action_size), np.float32)
    return layout


def observation_at(obs: Obs, rows: Any) -> Obs:
    """The arrays of `obs` at an index, a slice or a list of indices along the first axis."""
    cut = {name: None if (array := getattr(obs, name)) is None else array[rows] for name in ARRAYS}
    return Obs(**cut)  # pyright: ignore[reportArgumentType] - `alive` is never None


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Turn what is raised inside into an error of the suite with `where` in front, `sys.exit` included.

    An interrupt by the user passes.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise failure(error, where) from error


def failure(error: BaseException, where: str) -> MarlError:
    """`error` with its place in front: errors of the suite keep their class, others become a WorkerError
    that holds the traceback."""
    if isinstance(error, MarlError) and type(error).__module__ == MarlError.__module__:
        return type(error)(f"{where}: {error}")
    trace = "".join(traceback.format_exception(error))
    return WorkerError(f"{where} raised {type(error).__name__}: {error}\n{trace}")


def check_same(first: EnvSpec, spec: EnvSpec, where: str = "") -> None:
    """Raise EnvironmentContractError unless two environments fit in one batch; names and lengths may differ."""
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
    """The environments [start, start + n) of a vector, and their rows of its buffers.

    What an environment raises becomes a MarlError that names it; see `failure`.
    """

    def __init__(self, makes: Sequence[Callable[[], Env]], start: int, name: str) -> None:
        self.start = start
        self.name = name
        self.envs: list[Env] = []
        try:
            for index, make in enumerate(makes):
                with self._at(index):
                    self.envs.append(as_env(make(), name or "the factory"))
                    check_same(self.spec, self.envs[-1].spec)
                self.name = name or self.spec.name
        except MarlError:
            self.close()
            raise

    @property
    def spec(self) -> EnvSpec:
        return self.envs[0].spec

    def attach(self, buffers: Buffers) -> None:
        """Fill these buffers from now on."""
        rows = slice(self.start, self.start + len(self.envs))
        names = ("action", "reward", "terminated", "truncated", "masked", "duration", "agent_truncated", "restarted")
        cut: dict[str, Any] = {
            name: None if (array := getattr(buffers, name)) is None else array[rows] for name in names
        }
        self.buffers = Buffers(obs=observation_at(buffers.obs, rows), final=observation_at(buffers.final, rows), **cut)
        self.actions = None if self.buffers.action is None else list(self.buffers.action)
        self.text = buffers.obs.agents is None
        self.names = ARRAYS[1:] if self.text else ARRAYS
        self.no_text: list[TextFields] = [(None, None)] * len(self.envs)
        self.words = list(self.no_text)
        self.marked = True
        arrays = {**dict(self._arrays(self.buffers.obs)), "reward": self.buffers.reward}
        self.flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        self.lengths = {name: array.shape[1] for name, array in arrays.items()}

    def reset(self, seeds: Sequence[int]) -> ShardReport:
        for index, seed in enumerate(seeds):
            with self._at(index):
                self._store(index, self.envs[index].reset(seed))
        return self._report()

    def reset_at(self, index: int, seed: int | None) -> ShardReport:
        with self._at(index):
            self._store(index, self.envs[index].reset(seed))
        return self._report()

    def set_state(self, states: Sequence[State]) -> ShardReport:
        for index, state in enumerate(states):
            own = {name: value for name, value in state.items() if name != GLOBALS}
            with self._at(index):
                self._store(index, self.envs[index].set_state(own))
        return self._report()

    def get_state(self) -> list[State | None]:
        states = []
        for index, env in enumerate(self.envs):
            with self._at(index):
                states.append(env.get_state())
        return states

    def render(self, index: int) -> np.ndarray | str | None:
        with self._at(index):
            return self.envs[index].render()

    def step(self, texts: list[list[str]] | None = None) -> ShardReport:
        """Act with `texts`, n rows of N strings, or with the actions in the buffers; start anew what ended."""
        actions: Any = self.actions if texts is None else np.array(texts, dtype=object)
        steps: list[Step] = []
        observations: list[Obs] = []
        ended, cut = [], []
        self._clear_marks()
        index = 0
        try:
            for index, env in enumerate(self.envs):
                step = env.step(actions[index])
                if not isinstance(step, Step):
                    raise EnvironmentContractError(f"`step` must return a Step, got {type(step).__name__}")
                if type(step.terminated) not in FLAGS or type(step.truncated) not in FLAGS:
                    raise EnvironmentContractError(
                        "`terminated` and `truncated` must each be one bool for all agents, got "
                        f"{step.terminated!r} and {step.truncated!r}"
                    )
                obs = step.obs
                if step.terminated or step.truncated:
                    ended.append(self._end(index, step))
                    # `reset` may overwrite the buffers that the step shows.
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
            raise failure(error, self._where(index)) from error
        self._gather(steps, observations)
        return self._report(ended, cut)

    def close(self) -> None:
        """Close every environment; one that raises is logged and does not stop the others."""
        while self.envs:
            try:
                self.envs.pop().close()
            except (Exception, SystemExit):
                getLogger("marl").warning("%s: an environment did not close", self.name, exc_info=True)

    def _where(self, index: int) -> str:
        return f"{self.name}, environment {self.start + index}" if self.name else f"environment {self.start + index}"

    def _at(self, index: int) -> AbstractContextManager[None]:
        return named_errors(self._where(index))

    def _arrays(self, target: Obs) -> list[tuple[str, np.ndarray]]:
        return [(name, array) for name in ARRAYS if (array := getattr(target, name)) is not None]

    def _report(
        self, ended: Sequence[tuple[int, dict[str, float], TextFields]] = (), cut: Sequence[tuple[int, TextFields]] = ()
    ) -> ShardReport:
        return ShardReport(None if self.words == self.no_text else self.words, tuple(ended), tuple(cut))

    def _check(self, index: int, obs: Any) -> TextFields:
        """Raise unless an observation keeps to the spec. Returns its words."""
        if not isinstance(obs, Obs):
            raise EnvironmentContractError(f"an observation must be an Obs, got {type(obs).__name__}")
        for name in ARRAYS:
            buffer, value = getattr(self.buffers.obs, name), getattr(obs, name)
            if name == "agents" and self.text:
                continue
            if buffer is not None and (name != "action_mask" or self.buffers.masked[index]):
                _check_array(name, value, buffer.shape[1:], buffer.dtype)
            elif value is not None:
                reason = (
                    "as `spec.state_space` is" if name == "state" else "as this episode began or as actions are text"
                )
                raise EnvironmentContractError(f"`{name}` must be None, {reason}, got {type(value).__name__}")
        return self._words(obs)

    def _words(self, obs: Obs) -> TextFields:
        count, agents, candidates = self.spec.num_agents, obs.agents, obs.candidates
        if self.text and not (isinstance(agents, tuple) and [type(agent) for agent in agents] == [str] * count):
            raise EnvironmentContractError(f"`agents` must be a tuple of {count} strings, got {agents!r:.80}")
        if candidates is not None and not (isinstance(candidates, Sequence) and len(candidates) == count):
            raise EnvironmentContractError(
                f"`candidates` must hold one entry for each of {count} agents, got {candidates!r:.80}"
            )
        if candidates is not None:
            candidates = tuple(tuple(each) if isinstance(each, list) else each for each in candidates)
        return (agents if self.text else None, candidates)

    def _copy(self, target: Obs, index: int, obs: Obs) -> None:
        for name, array in self._arrays(target):
            if (value := getattr(obs, name)) is not None:
                array[index] = value

    def _store(self, index: int, obs: Obs) -> None:
        """Take the observation with which an environment starts or continues."""
        self.buffers.masked[index] = isinstance(obs, Obs) and obs.action_mask is not None
        self.words[index] = self._check(index, obs)
        self._copy(self.buffers.obs, index, obs)

    def _end(self, index: int, step: Step) -> tuple[int, dict[str, float], TextFields]:
        """Keep the last observation of an episode, before the environment overwrites it."""
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
            self.buffers.restarted[index] = self.marked = True
        words = self._check(index, step.obs)
        self._copy(self.buffers.final, index, step.obs)
        return self.start + index, read_info(step.info), words

    def _cut(self, index: int, step: Step) -> list[tuple[int, TextFields]]:
        """Keep the last observation of agents that are cut off while their episode goes on."""
        cut, shape = step.agent_truncated, self.buffers.agent_truncated.shape[1:]
        if cut is not None:
            _check_array("agent_truncated", cut, shape, np.dtype(np.bool_))
        if cut is None or not cut.any():
            if step.final is not None:
                raise EnvironmentContractError("`final` must be None where `agent_truncated` is not True for anybody")
            return []
        agents = [self.spec.agents[agent] for agent in np.flatnonzero(cut)]
        if step.final is None:
            raise EnvironmentContractError(
                f"`agent_truncated` is True for {agents}, and `final` is None; give in `final` the observation in "
                "which they still live, from which their future is valued"
            )
        words = self._check(index, step.final)
        self._check(index, step.obs)
        if (cut & (step.obs.alive | ~step.final.alive)).any():
            raise EnvironmentContractError(
                f"`agent_truncated` is True for {agents}; they must be alive in `final` and not in `obs`"
            )
        self._copy(self.buffers.final, index, step.final)
        self.buffers.agent_truncated[index] = cut
        self.marked = True
        return [(self.start + index, words)]

    def _clear_marks(self) -> None:
        """Forget what only some steps say."""
        if self.marked:
            self.buffers.agent_truncated[:] = False
            self.buffers.restarted[:] = False
            self.marked = False

    def _gather(self, steps: list[Step], observations: list[Obs]) -> None:
        """Copy n transitions into the buffers, each field in one call."""
        try:
            fits = self._join("reward", [step.reward for step in steps])
            for name in self.names:
                fits = self._join(name, [getattr(obs, name) for obs in observations]) and fits
            spoken = self.text or any(obs.candidates is not None for obs in observations)
        except (AttributeError, TypeError, ValueError):
            fits = spoken = False
        if not fits:
            self._explain(steps, observations)
        self.words = list(self.no_text)
        if spoken:
            self.words = []
            for index, obs in enumerate(observations):
                with self._at(index):
                    self.words.append(self._words(obs))
        durations = [step.duration for step in steps]
        if durations.count(1) < len(durations):
            for index, duration in enumerate(durations):
                with self._at(index):
                    durations[index] = _read_duration(duration)
        self.buffers.duration[:] = durations
        self.buffers.terminated[:] = [step.terminated for step in steps]
        self.buffers.truncated[:] = [step.truncated for step in steps]

    def _join(self, name: str, column: list[Any]) -> bool:
        """Copy one field of n environments into the buffers; False where it has another shape."""
        flat = self.flat.get(name)
        if flat is None or (name == "action_mask" and not self.buffers.masked[0]):
            return column.count(None) == len(column)
        if set(map(len, column)) != {self.lengths[name]}:
            return False
        np.concatenate(column, out=flat, casting="no")
        return True

    def _explain(self, steps: list[Step], observations: list[Obs]) -> NoReturn:
        """Raise for the first field that did not fit."""
        for index, (step, obs) in enumerate(zip(steps, observations, strict=True)):
            with self._at(index):
                self._check(index, obs)
                _check_array("reward", step.reward, self.buffers.reward.shape[1:], self.buffers.reward.dtype)
        raise EnvironmentContractError(f"{self.name}: arrays of different environments do not fit in one batch")
