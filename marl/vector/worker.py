"""Worker processes, each with one shard of a vector: their main loop, and handles on them."""

import atexit
import faulthandler
import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from typing import Any

import psutil

from marl.errors import ConfigError, MarlError, WorkerError, named_error
from marl.seeding import global_state, seed_everything, set_global_state
from marl.vector.shard import EMPTY_REPORT, GLOBALS, Shard
from marl.vector.shared_memory import Buffers, SharedBlock

TIMEOUT = 10.0
"""Seconds that a worker has to close its environments before it is killed."""
FILES_PER_WORKER = 4
"""Two pipes, and the files that multiprocessing keeps open for a process."""
SPARE_FILES = 24
"""Open files that the rest of a run needs: logs, checkpoints, imports."""
STEP = b"s"
"""Message to a worker: step with the actions in the buffers."""
DONE = b"d"
"""Reply of a worker: the buffers hold everything, and no episode ended."""


class Shutdown(KeyboardInterrupt):
    """The vector was closed, so this process must end."""


def _raise_shutdown(*_: Any) -> None:
    raise Shutdown


def serve(
    inbox: Connection,
    outbox: Connection,
    memory: SharedBlock,
    pickled_envs: bytes,
    env_range: range,
    *,
    name: str,
    seed: int,
) -> None:
    """Main loop of a worker process: build the shard, answer with its spec, then answer messages until it shuts down.

    `seed` and the first environment seed the global random generators of the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A signal to the whole job reaches every process, and the run needs its environments to save a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, _raise_shutdown)
    faulthandler.enable()
    seed_everything(seed, env_range.start)
    with suppress(Shutdown):
        _serve(inbox, outbox, memory, pickled_envs, env_range, name=name)


def _serve(
    inbox: Connection, outbox: Connection, memory: SharedBlock, pickled_envs: bytes, env_range: range, *, name: str
) -> None:
    try:
        shard = Shard(pickle.loads(pickled_envs), env_range.start, name)
    except Shutdown:
        raise
    except BaseException as error:
        answer = error if isinstance(error, MarlError) else named_error(error, name or "factories")
        outbox.send_bytes(pickle.dumps(answer))
        return
    try:
        try:
            spec = pickle.dumps(shard.spec)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            problem = f"{shard.name}: its spec cannot be pickled ({error}); use spaces of gymnasium"
            outbox.send_bytes(pickle.dumps(ConfigError(f"{problem}, or leave out --workers")))
            return
        outbox.send_bytes(spec)
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
    except Shutdown:
        raise
    except BaseException as error:
        return pickle.dumps(named_error(error, f"{shard.name}, environments from {shard.start}"))


def _call(shard: Shard, method: str, arguments: tuple[Any, ...]) -> Any:
    """Call a method of the shard, and seed, save or restore the global random generators of the process with it.

    The state of the shard's first environment holds their state.
    """
    if method == "reset":
        seed_everything(arguments[0][0], shard.start)
    result = getattr(shard, method)(*arguments)
    # Environments may draw while they are restored, so this comes last.
    if method == "set_state" and GLOBALS in arguments[0][0]:
        set_global_state(arguments[0][0][GLOBALS])
    if method == "get_state" and result[0] is not None:
        result[0] = result[0] | {GLOBALS: global_state()}
    return result


def start_context() -> Any:
    """Return the start method: a fork server that has imported torch once, or spawn if the system cannot fork."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _one_thread() -> Iterator[None]:
    """Start processes with one thread each. Libraries read the variable when they are loaded."""
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
    """Raise ConfigError if the system's limit of open files is too low for so many workers."""
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - psutil.Process().num_fds()
    needed = FILES_PER_WORKER * workers + SPARE_FILES
    if free < needed:
        raise ConfigError(
            f"workers={workers} needs {needed} more open files, and the limit leaves {free}; raise it with `ulimit -n` "
            "or give fewer workers"
        )


class Worker:
    """One process, the range of its environments, and the pipes to and from it.

    `busy`: an answer is due. `partial`: an interrupt may have cut a message in two. `error`: the reason why the process
    is lost, or None. `failures`: number of losses since the last step.
    """

    def __init__(
        self, number: int, env_range: range, pickled_envs: bytes, memory: SharedBlock, *, name: str, seed: int
    ) -> None:
        self.number = number
        self.env_range = env_range
        self.name = name
        self.arguments = (memory, pickled_envs, env_range)
        self.options = {"name": name, "seed": seed}
        self.failures = 0

    def start(self, context: Any) -> None:
        """Start the process. Its first answer is its spec. Call `attach` then."""
        self.busy, self.partial = True, False
        self.error: MarlError | None = None
        inbox, self.outgoing = context.Pipe(duplex=False)
        self.incoming, outbox = context.Pipe(duplex=False)
        self.process = context.Process(
            target=serve, args=(inbox, outbox, *self.arguments), kwargs=self.options, daemon=True
        )
        with _one_thread():
            self.process.start()
        inbox.close()
        outbox.close()
        self.ready = select.poll()
        self.ready.register(self.incoming.fileno(), select.POLLIN)
        self.ready.register(self.process.sentinel, select.POLLIN)

    def attach(self, num_envs: int) -> None:
        """Let the process map the memory. Call it after the memory was resized."""
        with suppress(OSError):
            self.outgoing.send_bytes(pickle.dumps(num_envs))

    def send(self, message: bytes) -> None:
        """Send a message. If the worker has died, `receive` raises."""
        if self.error is None and not self.partial:
            self.busy = self.partial = True
            with suppress(OSError):
                self.outgoing.send_bytes(message)
            self.partial = False

    def receive(self, deadline: float, doing: str) -> Any:
        """Return the answer.

        Raises an error that the worker sent, or WorkerError if it died or was silent until `deadline`. The worker is
        ended then.
        """
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
        """Wait for the process to exit until `deadline`, then kill it."""
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(TIMEOUT)
        self.process.close()

    @property
    def title(self) -> str:
        """Subject of an error message."""
        name = f"{self.name}: " if self.name else ""
        return (
            f"{name}worker {self.number}, which holds environments {self.env_range.start} to {self.env_range.stop - 1},"
        )

    def _read(self, deadline: float, doing: str) -> Any:
        if self.partial:
            return WorkerError(f"{self.title} was interrupted in the middle of a message; create new environments")
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
        if message == DONE:
            return EMPTY_REPORT
        try:
            return pickle.loads(message)
        except (ImportError, AttributeError) as error:  # a class of a file that this process has not imported
            return WorkerError(
                f"{self.title} answered `{doing}` with an object of a class that cannot be imported here ({error}); "
                "use spaces of gymnasium in the spec, define the class in an installed module, or leave out --workers"
            )

    def _death_message(self, doing: str) -> str:
        self.process.join(TIMEOUT)
        code = self.process.exitcode
        cause, fix = f"exited with code {code}", "see what the environment printed"
        if code is not None and code < 0:
            cause, fix = f"died of {signal.Signals(-code).name}", "see the trace that it printed, if any"
            if code == -signal.SIGKILL:
                fix = "the system kills what exceeds its memory: use fewer workers or environments"
        return f"{self.title} {cause} in `{doing}`; {fix}, or restart lost workers with --restart-workers"


class Pool:
    """Workers of one vector and their memory. They end with the vector or with the program."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.memory = SharedBlock.create()
        self.owner = os.getpid()
        atexit.register(self.close)

    def close(self) -> None:
        """End all processes together. Does nothing the second time, or in a fork of the owner."""
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
