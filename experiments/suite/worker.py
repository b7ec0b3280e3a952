"""One run in a process of its own.

The modules that every run needs are imported here, once for all runs: the fork server imports this module, and each run
is a copy of that process.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

import torch._dynamo  # noqa: F401 - the first step of an optimizer imports it, in 1.5 seconds
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from marl.config import from_yaml
from marl.errors import MarlError
from marl.registry import ADVANTAGES, AGENTS, ENVS, OBJECTIVES
from marl.run import start

for registry in (ENVS, AGENTS, ADVANTAGES, OBJECTIVES):
    registry.load()


def work(settings: str, log: str, parent: Connection) -> None:
    """Start or continue the run of `settings`, a configuration in YAML, with its output in the file `log`.

    The run saves and ends if the process that holds the other end of `parent` is gone. Exits with status 2 after an
    error that the user can act on.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        start(from_yaml(settings, "the plan"), if_exists="resume")
    except MarlError as error:
        print(f"marl: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        sys.exit(2)


def _end_with(parent: Connection) -> None:
    """Ask this process to stop once the other end of the pipe is closed."""
    try:
        parent.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
