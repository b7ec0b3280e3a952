"""E environments stepped together, in this process or spread over worker processes.

Both vectors run the same code over the same arrays (`marl.vector.shared_memory.Shard`), so they return the same bits.
"""

import pickle
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from logging import getLogger
from operator import index as as_int
from typing import Any

import numpy as np

from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, MarlError, WorkerError
from marl.protocols import Env, State, VectorEnv
from marl.registry import EnvFactory, find_env
from marl.types import EnvSpec, Final, Obs, VectorStep
from marl.vector.shared_memory import ARRAYS, Buffers, Shard, ShardReport, TextFields, check_same, observation_at
from marl.vector.worker import STEP, Pool, Worker, require_descriptors, start_context

SAVED = ("vector.seed", "vector.restarts")
"""What a vector adds to an environment's state: its last seed, and how often its worker was started anew."""
MAX_FAILURES = 3
"""A worker that is lost this often without a step in between is not started again."""


class _Vector(ABC):
    """What both vectors share: checks of the caller's arguments, and results made of the buffers.

    The environments are cut into shards, each a range of `_ranges`.
    """

    def __init__(self, spec: EnvSpec, name: str, ranges: list[range], memory: Any) -> None:
        self._spec = spec
        self._name = name or spec.name
        self._ranges = ranges
        self._num_envs = ranges[-1].stop
        self._buffers = Buffers.from_memory(spec, self._num_envs, memory)
        self._words: list[list[TextFields] | None] = [None] * len(ranges)
        self._no_arguments = dict.fromkeys(range(len(ranges)), ())
        self._seeds = list(range(self._num_envs))
        self._restarts = [0] * self._num_envs
        self._plain: Obs | None = None
        self._closed = False

    @abstractmethod
    def _ask(self, method: str, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call a method of the shards whose numbers are the keys, with the given arguments."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self, seeds: list[int]) -> Obs:
        """Start E episodes, one seed each. Returns leading axis E. Raises ValueError for unusable seeds."""
        if len(seeds) != self._num_envs:
            raise ValueError(f"{self._name}: reset needs {self._num_envs} seeds, one an environment, got {len(seeds)}")
        self._seeds = [self._seed(seed) for seed in seeds]
        return self._begin(self._ask("reset", self._split(self._seeds)))

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start a new episode in one environment. Returns the observation of all E."""
        self._need_start("reset_at")
        number, local = self._locate(index)
        if seed is not None:
            self._seeds[index] = self._seed(seed)
        return self._begin(self._ask("reset_at", {number: (local, seed)}))

    def step(self, action: Any) -> VectorStep:
        """Act with (E, N) int64, (E, N, A) float32, or (E, N) strings, of which each environment gets (N,) objects.

        Raises WorkerError where an environment raises or its process is lost, EnvironmentContractError where one
        breaks its spec; the vector is closed then.
        """
        self._need_start("step")
        reports: dict[int, ShardReport] = self._ask("step", self._load(action))
        ended = [item for report in reports.values() for item in report.ended]
        cut = [(index, {}, words) for report in reports.values() for index, words in report.cut]
        obs = self._begin(reports) if any(report.restarted for report in reports.values()) else self._observe(reports)
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
        self._need_start("render")
        number, local = self._locate(index)
        return self._ask("render", {number: (local,)})[number]

    def get_state(self) -> list[State | None]:
        """One state for each environment, None where it cannot give one."""
        self._need_start("get_state")
        answers = self._ask("get_state", self._no_arguments)
        states = [state for states in answers.values() for state in states]
        own = [dict(zip(SAVED, pair, strict=True)) for pair in zip(self._seeds, self._restarts, strict=True)]
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
            self._seeds[index] = state.get(SAVED[0], self._seeds[index])
            self._restarts[index] = state.get(SAVED[1], self._restarts[index])
            inner.append({name: value for name, value in state.items() if name not in SAVED})
        return self._begin(self._ask("set_state", self._split(inner)))

    def _split(self, items: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
        """One argument for each shard: its part of E items."""
        return {number: (items[held.start : held.stop],) for number, held in enumerate(self._ranges)}

    def _seed(self, seed: int) -> int:
        if as_int(seed) < 0:
            raise ValueError(f"{self._name}: a seed must be a non-negative integer, got {seed}")
        return as_int(seed)

    def _need_start(self, method: str) -> None:
        if self._plain is None:
            raise RuntimeError(f"{self._name}: call `reset` or `set_state` before `{method}`")

    def _need_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self._name}: this vector of environments is closed; make a new one")

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard of an environment, and its place there."""
        for number, held in enumerate(self._ranges):
            if index in held:
                return number, index - held.start
        raise IndexError(f"{self._name}: environment {index} is not one of 0 to {self._num_envs - 1}")

    def _load(self, action: Any) -> dict[int, tuple[Any, ...]]:
        """Copy actions into the buffers; text becomes the argument of each shard's step."""
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

    def _begin(self, reports: dict[int, ShardReport]) -> Obs:
        """The observation where episodes start outside `step`: decides whether there are action masks."""
        obs, masked = self._buffers.obs, self._buffers.masked
        if masked.any() != masked.all():
            self.close()
            raise EnvironmentContractError(
                f"{self._name}: environments {np.flatnonzero(masked).tolist()} give an `action_mask` and environments "
                f"{np.flatnonzero(~masked).tolist()} do not; all must or none"
            )
        self._plain = Obs(obs.agents, obs.alive, obs.action_mask if masked[0] else None, obs.state)
        return self._observe(reports)

    def _observe(self, reports: dict[int, ShardReport]) -> Obs:
        assert self._plain is not None
        for number, report in reports.items():
            self._words[number] = report.words
        if not any(self._words):
            return self._plain
        spoken = [words or [(None, None)] * len(held) for words, held in zip(self._words, self._ranges, strict=True)]
        return _with_words(self._plain, [words for part in spoken for words in part])

    def _final(self, ended: list[tuple[int, dict[str, float], TextFields]]) -> Final:
        indices = np.array([index for index, _, _ in ended], dtype=np.int64)
        obs = observation_at(self._buffers.final, indices)
        if not self._buffers.masked[0]:
            obs = Obs(obs.agents, obs.alive, None, obs.state)
        return Final(indices, _with_words(obs, [words for _, _, words in ended]), tuple(info for _, info, _ in ended))


def _with_words(obs: Obs, words: list[TextFields]) -> Obs:
    agents = tuple(agents for agents, _ in words) if obs.agents is None else obs.agents
    candidates = tuple(candidates for _, candidates in words)
    spoken = any(each is not None for each in candidates)
    return Obs(agents, obs.alive, obs.action_mask, obs.state, candidates if spoken else None)


class SyncVector(_Vector):
    """E environments in this process.

    `name` is how errors call them (default: the spec's). Arrays of observations are views of buffers that the
    next `step` or `reset` overwrites.
    """

    def __init__(self, makes: Sequence[Callable[[], Env]], name: str = "") -> None:
        _need_makes(makes)
        self._shard = Shard(makes, 0, name)
        spec = self._shard.spec
        try:
            super().__init__(spec, name, [range(len(makes))], bytearray(Buffers.size(spec, len(makes))))
        except MarlError:
            self._shard.close()
            raise
        self._shard.attach(self._buffers)

    def _ask(self, method: str, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        self._need_open()
        try:
            return {0: getattr(self._shard, method)(*calls[0])}
        except MarlError:
            self.close()
            raise

    def close(self) -> None:
        self._closed = True
        self._shard.close()


class ProcessVector(_Vector):
    """E environments over `workers` processes, in contiguous chunks.

    `makes` are picklable factories. Arrays live in shared memory, text travels through pipes, and each step costs
    one message to and one from each worker. A worker that is silent for `timeout` seconds counts as lost.

    The global random generators of each worker, from which an environment's libraries may draw, are seeded before it
    makes its environments, from `seed` and its number, and at `reset`, from the seeds that are given then. Their
    positions are part of the states.

    With `restart`, a worker that is lost in `step` (its process died or hung, or an environment raised) or in
    `reset` is started anew and its environments begin episodes with fresh seeds, a function of the last seeds
    and of the number of restarts. The step reports them in `restarted`: reward 0, truncated, and a `final` whose
    observation is the one that the lost step started from. `get_state` gives None for them until then. A broken
    contract, any other loss, and the third loss without a step in between raise, as everything does without
    `restart`; the vector is closed then.
    """

    def __init__(
        self,
        makes: Sequence[Callable[[], Env]],
        workers: int,
        restart: bool = False,
        name: str = "",
        timeout: float = 300.0,
        seed: int = 0,
    ) -> None:
        _need_makes(makes)
        if not 1 <= workers <= len(makes):
            raise ConfigError(f"workers must be between 1 and the {len(makes)} environments, got {workers}")
        if timeout <= 0:
            raise ConfigError(f"timeout must be a positive number of seconds, got {timeout}")
        require_descriptors(workers)
        self._timeout = timeout
        self._restart = restart
        self._context = start_context()
        self._pool = Pool()
        self._finalizer = weakref.finalize(self, self._pool.close)
        self._finalizer.atexit = False
        bounds = [len(makes) * number // workers for number in range(workers + 1)]
        ranges = [range(*pair) for pair in pairwise(bounds)]
        try:
            self._start(makes, ranges, name, seed)
        except BaseException:
            self._pool.close()
            raise

    def _start(self, makes: Sequence[Callable[[], Env]], ranges: list[range], name: str, seed: int) -> None:
        workers = self._pool.workers
        for number, held in enumerate(ranges):
            worker = Worker(number, held, _pickled(makes[held.start : held.stop]), self._pool.memory, name, seed)
            worker.start(self._context)
            workers.append(worker)
        deadline = time.monotonic() + self._timeout
        specs = [worker.receive(deadline, "make") for worker in workers]
        for held, spec in zip(ranges, specs, strict=True):
            check_same(specs[0], spec, f"{name or spec.name}, environment {held.start}: ")
        super().__init__(specs[0], name, ranges, self._pool.memory.resize(Buffers.size(specs[0], len(makes))))
        for worker in workers:
            worker.name = self._name
            worker.attach(len(makes))
        self._previous = [(array, array.copy()) for array in _arrays(self._buffers.obs)] if self._restart else []

    def _ask(self, method: str, calls: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        self._need_open()
        workers = self._pool.workers
        self._settle()
        for array, previous in self._previous:
            np.copyto(previous, array)
        messages = {
            number: pickle.dumps((method, given)) if given or method != "step" else STEP
            for number, given in calls.items()
        }
        for number, message in messages.items():
            workers[number].send(message)
        deadline = time.monotonic() + self._timeout
        answers: dict[int, Any] = {}
        for number in calls:
            try:
                answers[number] = workers[number].receive(deadline, method)
            except MarlError as error:
                answers[number] = error
            else:
                if method == "step":
                    workers[number].failures = 0
        if any(isinstance(answer, MarlError) for answer in answers.values()):
            answers = {number: self._recover(number, method, answer) for number, answer in answers.items()}
        return answers

    def _settle(self) -> None:
        """Drop the answers to a call that an interrupt left; a worker that fails to answer fails the next call."""
        deadline = time.monotonic() + self._timeout
        for worker in self._pool.workers:
            if worker.busy and worker.error is None:
                with suppress(MarlError):
                    worker.receive(deadline, "interrupted call")

    def _recover(self, number: int, method: str, answer: Any) -> Any:
        """What stands for the answer of a lost worker, where there is something; raises its error otherwise."""
        if not isinstance(answer, MarlError):
            return answer
        if self._restart and isinstance(answer, WorkerError):
            if method == "get_state":
                return [None] * len(self._ranges[number])
            if method in ("step", "reset"):
                return self._revive(number, answer)
        self.close()
        raise answer

    def _revive(self, number: int, error: WorkerError) -> ShardReport:
        """Start a lost worker anew, and end the episodes that it held as truncated."""
        worker = self._pool.workers[number]
        words = self._words[number] or [(None, None)] * len(worker.env_range)
        while True:
            worker.failures += 1
            if worker.failures >= MAX_FAILURES:
                self.close()
                raise WorkerError(f"{worker.title} was lost {MAX_FAILURES} times without a step: {error}") from error
            getLogger("marl").warning("%s\nIt is started anew and its environments begin new episodes.", error)
            try:
                spoken = self._restart_worker(worker)
                break
            except WorkerError as again:
                error = again
        rows = slice(worker.env_range.start, worker.env_range.stop)
        for (_, previous), final in zip(self._previous, _arrays(self._buffers.final), strict=True):
            final[rows] = previous[rows]
        self._buffers.reward[rows] = 0
        self._buffers.terminated[rows] = False
        self._buffers.truncated[rows] = True
        self._buffers.duration[rows] = 1
        self._buffers.agent_truncated[rows] = False
        self._buffers.restarted[rows] = True
        ended = tuple((index, {}, word) for index, word in zip(worker.env_range, words, strict=True))
        return ShardReport(spoken.words, ended, restarted=True)

    def _restart_worker(self, worker: Worker) -> ShardReport:
        deadline = time.monotonic() + self._timeout
        worker.start(self._context)
        check_same(self._spec, worker.receive(deadline, "make"), f"{worker.title} restarted: ")
        worker.attach(self._num_envs)
        seeds = []
        for index in worker.env_range:
            self._restarts[index] += 1
            sequence = np.random.SeedSequence(self._seeds[index], spawn_key=(self._restarts[index],))
            seeds.append(int(sequence.generate_state(1)[0]))
        worker.send(pickle.dumps(("reset", (seeds,))))
        return worker.receive(deadline, "reset")

    def close(self) -> None:
        self._closed = True
        self._pool.close()


def _arrays(obs: Obs) -> list[np.ndarray]:
    return [array for name in ARRAYS if (array := getattr(obs, name)) is not None]


def _need_makes(makes: Sequence[Callable[[], Env]]) -> None:
    if not makes:
        raise ConfigError("a vector needs at least one environment, got no factories")


def _pickled(makes: Sequence[Callable[[], Env]]) -> bytes:
    try:
        return pickle.dumps(makes)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"worker processes need factories that can be pickled ({error}); use marl.registry.EnvFactory or a "
            "function at the top of a module, or workers=0"
        ) from error


def make_vector(
    name: str,
    options: dict[str, Any],
    num_envs: int,
    workers: int = 0,
    threads: int = 1,
    restart: bool = False,
    seed: int = 0,
) -> VectorEnv:
    """E environments of a registered name: in `workers` processes, or in this one where `workers` is 0.

    `seed` is that of the workers' global random generators (see `ProcessVector`). In this process an environment that
    is batched by nature runs as its own batch with `threads` threads. Raises ConfigError for an option that the
    environment or the number of workers leaves without effect.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs must be at least 1, got {num_envs}")
    if not 0 <= workers <= num_envs:
        raise ConfigError(f"workers must be between 0 and num_envs = {num_envs}, got {workers}")
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    if restart and workers == 0:
        raise ConfigError("restart=True starts lost worker processes anew, and workers=0 has none; set workers")
    entry, task = find_env(name)
    if entry.make_vector is not None and workers == 0:
        return entry.make_vector(task, num_envs, threads, **options)
    if threads > 1:
        reason = "workers run one thread each" if workers else "it is not batched by nature"
        raise ConfigError(f"{name}: threads={threads} has no effect, {reason}; set threads=1")
    makes = [EnvFactory(name, options)] * num_envs
    if workers == 0:
        return SyncVector(makes, name)
    return ProcessVector(makes, workers, restart, name, seed=seed)
