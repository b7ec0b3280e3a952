"""Worker processes that each hold a shard of a vector's environments: their life, and the handle on them."""

import atexit
import faulthandler
import mmap
import os
import pickle
import resource
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from typing import Any

from marl.errors import ConfigError, MarlError, WorkerError
from marl.seeding import global_state, seed_everything, set_global_state
from marl.vector.shared_memory import EMPTY_REPORT, GLOBALS, Buffers, Shard, failure

TIMEOUT = 10.0
"""Seconds that a worker gets to close its environments before it is killed."""
FILES_PER_WORKER = 4
"""Two pipes, and what multiprocessing keeps of a process."""
SPARE_FILES = 24
"""Files that stay free for the rest of a run: logs, checkpoints, imports."""
STEP = b"s"
"""The message that says: the actions are in the buffers, step."""
DONE = b"d"
"""The reply that says: everything is in the buffers, nothing ended."""


class SharedBlock:
    """A block of shared memory that no name points to: it goes with the last process that holds it, however that
    ends. Pickled while a process starts, it becomes the same block there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> "SharedBlock":
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("marl"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.descriptor),)

    def resize(self, size: int) -> mmap.mmap:
        """Make it `size` zero bytes, once, before others map it."""
        os.ftruncate(self.descriptor, size)
        return self.map(size)

    def map(self, size: int) -> mmap.mmap:
        return mmap.mmap(self.descriptor, size)

    def close(self) -> None:
        """Give up the descriptor; what is mapped stays."""
        os.close(self.descriptor)


def _received(duplicate: Any) -> SharedBlock:
    return SharedBlock(duplicate.detach())


class Released(KeyboardInterrupt):
    """The vector has no use for this process any more."""


def _release(*_: Any) -> None:
    raise Released


def serve(
    inbox: Connection,
    outbox: Connection,
    memory: SharedBlock,
    pickled_envs: bytes,
    env_range: range,
    name: str,
    seed: int,
) -> None:
    """The life of a worker process: build the shard of the pickled factories `recipe`, answer with its spec, then
    answer messages until the vector is gone. `seed`: of its global random generators, with its first environment."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whoever ends a job signals all its processes, and the run needs its environments to save itself first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _release)
    faulthandler.enable()
    seed_everything(seed, env_range.start)
    with suppress(Released):
        _serve(inbox, outbox, memory, pickled_envs, env_range, name)


def _serve(inbox: Connection, outbox: Connection, memory: SharedBlock, recipe: bytes, held: range, name: str) -> None:
    try:
        shard = Shard(pickle.loads(recipe), held.start, name)
    except Released:
        raise
    except BaseException as error:
        outbox.send_bytes(pickle.dumps(error if isinstance(error, MarlError) else failure(error, name or "factories")))
        return
    try:
        outbox.send_bytes(pickle.dumps(shard.spec))
        num_envs = pickle.loads(inbox.recv_bytes())
        shard.attach(Buffers.from_memory(shard.spec, num_envs, memory.map(Buffers.size(shard.spec, num_envs))))
        memory.close()
        while True:
            outbox.send_bytes(_answer(shard, inbox.recv_bytes()))
    except (EOFError, BrokenPipeError):
        return
    finally:
        shard.close()


def _answer(shard: Shard, message: bytes) -> bytes:
    try:
        if message == STEP:
            report = shard.step()
            return DONE if report == EMPTY_REPORT else pickle.dumps(report)
        method, arguments = pickle.loads(message)
        return pickle.dumps(_call(shard, method, arguments))
    except MarlError as error:
        return pickle.dumps(error)
    except Released:
        raise
    except BaseException as error:
        return pickle.dumps(failure(error, f"{shard.name}, environments from {shard.start}"))


def _call(shard: Shard, method: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method of the shard; states and seeds are those of the process's global random generators as well.

    The state of the shard's first environment holds them.
    """
    if method == "reset":
        seed_everything(arguments[0][0], shard.start)
    result = getattr(shard, method)(*arguments)
    # Last, because environments may draw while they are restored.
    if method == "set_state" and GLOBALS in arguments[0][0]:
        set_global_state(arguments[0][0][GLOBALS])
    if method == "get_state" and result[0] is not None:
        result[0] = result[0] | {GLOBALS: global_state()}
    return result


def start_context() -> Any:
    """How workers start: by a fork server that has imported torch once, or anew where the system has no fork."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start inside use one thread each: libraries read the variable as they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def require_descriptors(workers: int) -> None:
    """Raise ConfigError where the system's limit of open files is too low for so many workers."""
    try:
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))
    except OSError:
        return  # a system without /proc
    needed = FILES_PER_WORKER * workers + SPARE_FILES
    if free < needed:
        raise ConfigError(
            f"workers is {workers}, which needs {needed} more open files, and the limit leaves {free}; raise it with "
            "`ulimit -n`, or give fewer"
        )


class Worker:
    """One process, the environments that it holds, and the pipes to and from it.

    `busy`: it owes an answer. `torn`: an interrupt may have cut a message in two. `loss`: why it is of no use any
    more. `losses`: how often it was lost since the last step.
    """

    def __init__(
        self, number: int, env_range: range, pickled_envs: bytes, memory: SharedBlock, name: str, seed: int
    ) -> None:
        self.number = number
        self.env_range = env_range
        self.name = name
        self.arguments = (memory, pickled_envs, env_range, name, seed)
        self.failures = 0

    def start(self, context: Any) -> None:
        """Start the process; its first answer is its spec, and then it needs `attach`."""
        self.busy, self.partial = True, False
        self.error: MarlError | None = None
        inbox, self.outgoing = context.Pipe(duplex=False)
        self.incoming, outbox = context.Pipe(duplex=False)
        self.process = context.Process(target=serve, args=(inbox, outbox, *self.arguments), daemon=True)
        with _one_thread():
            self.process.start()
        inbox.close()
        outbox.close()
        self.ready = select.poll()
        self.ready.register(self.incoming.fileno(), select.POLLIN)
        self.ready.register(self.process.sentinel, select.POLLIN)

    def attach(self, num_envs: int) -> None:
        """Let the process map the memory, which has its size now."""
        with suppress(OSError):
            self.outgoing.send_bytes(pickle.dumps(num_envs))

    def send(self, message: bytes) -> None:
        """Send a message; where the worker has died, `receive` tells."""
        if self.error is None and not self.partial:
            self.busy = self.partial = True
            with suppress(OSError):
                self.outgoing.send_bytes(message)
            self.partial = False

    def receive(self, deadline: float, doing: str) -> Any:
        """The answer. Raises the error that it is, or a WorkerError for a worker that died or stayed silent until
        `deadline`; a worker that raised is ended."""
        answer = self.error or self._read(deadline, doing)
        if isinstance(answer, MarlError):
            if self.error is None:
                self.error = answer
                self.shutdown()
                self.join(time.monotonic() + TIMEOUT)
            raise answer
        return answer

    def shutdown(self) -> None:
        """Tell the process to close its environments and exit."""
        self.outgoing.close()
        self.incoming.close()
        if self.busy and self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)

    def join(self, deadline: float) -> None:
        """Wait for the process to exit, then kill it."""
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(TIMEOUT)
        self.process.close()

    @property
    def title(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return (
            f"{name}worker {self.number}, which holds environments {self.env_range.start} to {self.env_range.stop - 1},"
        )

    def _read(self, deadline: float, doing: str) -> Any:
        if self.partial:
            return WorkerError(f"{self.title} was interrupted in the middle of a message; make the environments anew")
        ready = self.ready.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return WorkerError(
                f"{self.title} did not answer `{doing}` in time: an environment hangs, or needs a longer `timeout`"
            )
        if ready[0][0] != self.incoming.fileno():
            return WorkerError(self._death_message(doing))
        self.partial = True
        try:
            message = self.incoming.recv_bytes()
        except (EOFError, OSError):
            return WorkerError(self._death_message(doing))
        self.partial = self.busy = False
        return EMPTY_REPORT if message == DONE else pickle.loads(message)

    def _death_message(self, doing: str) -> str:
        self.process.join(TIMEOUT)
        code = self.process.exitcode
        cause, fix = f"exited with code {code}", "see what the environment printed"
        if code is not None and code < 0:
            cause, fix = f"died of {signal.Signals(-code).name}", "see the trace that it printed, if any"
            if code == -signal.SIGKILL:
                fix = "the system kills what exceeds its memory: use fewer workers or environments"
        return f"{self.title} {cause} in `{doing}`; {fix}, or start lost workers anew (--restart-workers)"


class Pool:
    """The workers of one vector and their memory, ended with the vector or with the program."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.memory = SharedBlock.create()
        self.owner = os.getpid()
        atexit.register(self.close)

    def close(self) -> None:
        """End the processes, all at once; does nothing the second time and in a fork of the owner."""
        if self.owner != os.getpid():
            return
        self.owner = -1
        atexit.unregister(self.close)
        workers = [worker for worker in self.workers if worker.error is None]
        self.workers = []
        for worker in workers:
            worker.shutdown()
        deadline = time.monotonic() + TIMEOUT
        for worker in workers:
            worker.join(deadline)
        self.memory.close()
