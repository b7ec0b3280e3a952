"""Vector environment over worker processes."""

import pickle
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from logging import getLogger
from typing import Any

import numpy as np

from marl.errors import ConfigError, MarlError, WorkerError
from marl.protocols import Env
from marl.vector.base import VectorBase, require_env_fns
from marl.vector.shard import NO_TEXT, ShardReport, check_same
from marl.vector.shared_memory import Buffers, arrays_of
from marl.vector.worker import STEP, Pool, Worker, require_descriptors, start_context

MAX_FAILURES = 3
"""A worker that is lost this often without a step in between is not started again."""


class ProcessVector(VectorBase):
    """E environments over `workers` processes, in contiguous ranges.

    `env_fns` are picklable factories. Arrays lie in shared memory, text goes through pipes, and each step costs one
    message to each worker and one from it. A worker that is silent for `timeout` seconds counts as lost.

    The global random generators of each worker, from which libraries of an environment may draw, are seeded from `seed`
    and the worker's first environment before environments are made, and from the given seeds at `reset`. Their states
    are part of `get_state`.

    With `restart`, a worker that is lost in `step` (its process died or hung, or an environment raised) or in `reset`
    is restarted, and its environments begin episodes with fresh seeds. These are a function of the last seeds and of
    the number of restarts. The step reports the environments in `restarted`, with reward 0, truncated, and with a
    `final` that holds the observation before the lost step. `get_state` gives None for them until then. A broken
    contract, any other loss, and the third loss without a step in between raise. Without `restart` every loss raises.
    The vector is closed then.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], Env]],
        workers: int,
        restart: bool = False,
        name: str = "",
        timeout: float = 300.0,
        *,
        seed: int = 0,
    ) -> None:
        require_env_fns(env_fns)
        if not 1 <= workers <= len(env_fns):
            raise ConfigError(f"workers={workers} cannot share {len(env_fns)} environments; give 1 to {len(env_fns)}")
        if timeout <= 0:
            raise ConfigError(f"timeout={timeout} is no time to wait; give a positive number of seconds")
        require_descriptors(workers)
        self._timeout = timeout
        self._restart = restart
        self._context = start_context()
        self._pool = Pool()
        self._finalizer = weakref.finalize(self, self._pool.close)
        self._finalizer.atexit = False
        bounds = [len(env_fns) * number // workers for number in range(workers + 1)]
        env_ranges = [range(*pair) for pair in pairwise(bounds)]
        try:
            self._start(env_fns, env_ranges, name, seed)
        except BaseException:
            self._pool.close()
            raise

    def _start(self, env_fns: Sequence[Callable[[], Env]], env_ranges: list[range], name: str, seed: int) -> None:
        workers = self._pool.workers
        for number, envs in enumerate(env_ranges):
            worker = Worker(
                number,
                envs,
                _pickle(env_fns[envs.start : envs.stop]),
                self._pool.memory,
                name=name,
                seed=seed,
            )
            worker.start(self._context)
            workers.append(worker)
        deadline = time.monotonic() + self._timeout
        specs = [worker.receive(deadline, "make") for worker in workers]
        for envs, spec in zip(env_ranges, specs, strict=True):
            check_same(specs[0], spec, f"{name or spec.name}, environment {envs.start}: ")
        super().__init__(specs[0], name, env_ranges, self._pool.memory.resize(Buffers.size(specs[0], len(env_fns))))
        for worker in workers:
            worker.name = self._name
            worker.attach(len(env_fns))
        obs = arrays_of(self._buffers.obs) if self._restart else {}
        self._previous_obs = {name: (array, array.copy()) for name, array in obs.items()}

    def _call(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        self._require_open()
        workers = self._pool.workers
        self._drain()
        for array, previous in self._previous_obs.values():
            np.copyto(previous, array)
        messages = {
            number: pickle.dumps((method, given)) if given or method != "step" else STEP
            for number, given in arguments.items()
        }
        for number, message in messages.items():
            workers[number].send(message)
        deadline = time.monotonic() + self._timeout
        answers: dict[int, Any] = {}
        for number in arguments:
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

    def _drain(self) -> None:
        """Drop the answers to an interrupted call. A worker that fails to answer fails the next call."""
        deadline = time.monotonic() + self._timeout
        for worker in self._pool.workers:
            if worker.busy and worker.error is None:
                with suppress(MarlError):
                    worker.receive(deadline, "interrupted call")

    def _recover(self, number: int, method: str, answer: Any) -> Any:
        """Return an answer, or a substitute for the answer of a lost worker. Raises its error if there is none."""
        if not isinstance(answer, MarlError):
            return answer
        if self._restart and isinstance(answer, WorkerError):
            if method == "get_state":
                return [None] * len(self._env_ranges[number])
            if method in ("step", "reset"):
                return self._replace_worker(number, answer)
        self.close()
        raise answer

    def _replace_worker(self, number: int, error: WorkerError) -> ShardReport:
        """Restart a lost worker, and truncate the episodes that it held."""
        worker = self._pool.workers[number]
        text = self._text[number] or [NO_TEXT] * len(worker.env_range)
        while True:
            worker.failures += 1
            if worker.failures >= MAX_FAILURES:
                self.close()
                raise WorkerError(f"{worker.title} was lost {MAX_FAILURES} times without a step: {error}") from error
            getLogger("marl").warning("%s\nIt is restarted and its environments begin new episodes.", error)
            try:
                report = self._restart_worker(worker)
                break
            except WorkerError as again:
                error = again
        rows = slice(worker.env_range.start, worker.env_range.stop)
        final = arrays_of(self._buffers.final)
        for name, (_, previous) in self._previous_obs.items():
            final[name][rows] = previous[rows]
        self._buffers.reward[rows] = 0
        self._buffers.terminated[rows] = False
        self._buffers.truncated[rows] = True
        self._buffers.duration[rows] = 1
        self._buffers.agent_truncated[rows] = False
        self._buffers.restarted[rows] = True
        ended = tuple((index, {}, fields) for index, fields in zip(worker.env_range, text, strict=True))
        return ShardReport(report.text, ended, restarted=True)

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
        """Close all environments and end their processes."""
        self._closed = True
        self._pool.close()


def _pickle(env_fns: Sequence[Callable[[], Env]]) -> bytes:
    try:
        return pickle.dumps(env_fns)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"worker processes need factories that can be pickled ({error}); use marl.registry.EnvFactory or a "
            "function at the top of a module, or workers=0"
        ) from error
