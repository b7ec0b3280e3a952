"""Process of a running StarCraft II and the connection to it.

Every wait has a time limit. Every failure of the game (no start, crash, hang, broken protocol) is a GameError that ends
with the game's own log.
"""

import os
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from logging import getLogger
from pathlib import Path
from typing import Any

from marl.envs.sc2.install import Install
from marl.envs.sc2.protos import load
from marl.errors import MarlError

load()  # before the imports that need what it builds

import portpicker  # noqa: E402
import websocket  # noqa: E402
from google.protobuf.message import DecodeError  # noqa: E402
from pysc2.lib.protocol import ConnectionError as PeerError  # noqa: E402
from pysc2.lib.protocol import ProtocolError, StarcraftProtocol  # noqa: E402
from pysc2.lib.remote_controller import RequestError, check_error  # noqa: E402
from pysc2.lib.sc_process import SC2LaunchError, StarcraftProcess  # noqa: E402

api: Any = import_module("s2clientprotocol.sc2api_pb2")

LAUNCH_SECONDS = 360.0
"""Time limit from the start of a game to its first answer."""

REPLY_SECONDS = 180.0
"""Time limit of an answer. Loading a map takes longest."""

LONG_REPLY_SECONDS = 15.0
"""Duration of a start after which the user is told of the wait."""

LOG_CHARACTERS = 2000
"""Characters of the game's log that an error shows."""

HOST = "127.0.0.1"

NONSENSE = (ValueError, TypeError)
"""Exceptions of pysc2 for answers that are text or have an unknown status."""

_launching = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
"""Limit of parallel starts: games that start together slow each other beyond every time limit."""

_ports: set[int] = set()
_ports_lock = threading.Lock()


class GameError(MarlError):
    """StarCraft II did not start, crashed, hung, ended by itself or broke its protocol."""


class GameNotListeningError(GameError):
    """StarCraft II runs but accepts no connection."""


class Game:
    """One process of the game and the connection to it. Raises GameError if it cannot be started."""

    def __init__(self, install: Install) -> None:
        self.install = install
        try:
            self.port = _pick_port()
        except portpicker.NoFreePortFoundError as error:
            raise GameError(f"StarCraft II cannot be started: {error}; free a port of this machine") from error
        self._title = "StarCraft II"
        self._protocol: StarcraftProtocol | None = None
        self._requests = 0
        with _launching:
            self._open()

    def _open(self) -> None:
        self._process = self._start()
        sockets: list[Any] = []
        self._finalizer = weakref.finalize(self, _end, self._process, sockets)
        try:
            sockets.append(self._connect())
            self._protocol = StarcraftProtocol(sockets[0])
            ping = self.ask(api.Request(ping=api.RequestPing()))[0].ping
            self._title = f"StarCraft II {ping.game_version}"
            if ping.base_build != (build := self.install.build):
                raise GameError(self._failure(f"is Base{ping.base_build}, not Base{build} as its folder says"))
        except BaseException:
            self.close()
            raise

    def _start(self) -> "GameProcess":
        try:
            return GameProcess(
                self.install.config,
                exec_path=str(self.install.binary),
                version=self.install.config.version,
                host=HOST,
                port=self.port,
                connect=False,
            )
        except (SC2LaunchError, OSError, RuntimeError) as error:
            _return_port(self.port)
            raise GameError(f"StarCraft II cannot be started from {self.install.binary}: {error}") from error

    @property
    def pid(self) -> int | None:
        """Number of the process, or None after its end."""
        return self._process.pid

    def _connect(self) -> Any:
        """Return the websocket once the game listens."""
        started, told = time.monotonic(), False
        with self._translated("did not accept a connection"):
            while self._process.running:
                try:
                    return _open_websocket(self.port)
                except (OSError, websocket.WebSocketBadStatusException) as error:
                    waited = time.monotonic() - started
                    if waited > LAUNCH_SECONDS:
                        what = f"did not listen within {LAUNCH_SECONDS:.0f} s: {error}"
                        raise GameNotListeningError(self._failure(what)) from error
                    if waited > LONG_REPLY_SECONDS and not told:
                        told = True
                        title = f"{self._title} ({self.install.binary}, port {self.port})"
                        getLogger("marl").warning("waiting for %s to listen, up to %.0f s", title, LAUNCH_SECONDS)
                time.sleep(0.1)
        raise GameError(self._failure("ended before it listened; is the port taken, or a library missing?"))

    def ask(self, *requests: Any) -> list[Any]:
        """Send all requests, then read the responses in the same order; the game works while they travel.

        Raises GameError, after which the connection may be out of step: close the game.
        """
        if self._protocol is None:
            raise GameError(self._failure("was asked something after its end"))
        names = ", ".join(dict.fromkeys(str(request.WhichOneof("request")) for request in requests))
        with self._translated(f"failed to answer to {names}"):
            for request in requests:
                self._requests += 1
                request.id = self._requests
                self._protocol.write(request)
            responses = [self._protocol.read() for _ in requests]
        for request, response in zip(requests, responses, strict=True):
            if response.HasField("id") and response.id != request.id:
                raise GameError(self._failure(f"answered to request {response.id}, not {request.id} ({names})"))
        return responses

    def new_game(self, create: Any, join: Any) -> Any:
        """Create a game and join it, in place of the present one. Returns its ResponseGameInfo."""
        created = self.ask(api.Request(create_game=create))[0].create_game
        self._check(created, api.ResponseCreateGame.Error)
        joined = self.ask(api.Request(join_game=join))[0].join_game
        self._check(joined, api.ResponseJoinGame.Error)
        return self.ask(api.Request(game_info=api.RequestGameInfo()))[0].game_info

    def save_replay(self) -> bytes:
        """Return the replay of the present game up to now."""
        return self.ask(api.Request(save_replay=api.RequestSaveReplay()))[0].save_replay.data

    def close(self) -> None:
        """End the process: with a quit request if it listens, else with a signal. May be called again."""
        if self._protocol is not None:
            with suppress(PeerError, websocket.WebSocketException, OSError):
                self._protocol.write(api.Request(quit=api.RequestQuit()))
            self._protocol = None
        self._finalizer()
        _return_port(self.port)

    def _check(self, response: Any, errors: Any) -> None:
        try:
            check_error(response, errors)
        except RequestError as error:
            raise GameError(self._failure(f"refused: {error}")) from error

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Raise GameError for every failure of the peer."""
        try:
            yield
        except (PeerError, ProtocolError, websocket.WebSocketException, DecodeError, OSError, *NONSENSE) as error:
            raise GameError(self._failure(f"{what}: {error}")) from error

    def _failure(self, what: str) -> str:
        state = self._process.describe()
        log = self._process.read_log()
        log = f"The end of its own log:\n{log}" if log else "It wrote no log."
        return f"{self._title} ({self.install.binary}, port {self.port}, {state}) {what}\n{log}"


class GameProcess(StarcraftProcess):
    """Process of the game, started by pysc2. Its output is kept. It ends when this process ends, even by a kill."""

    _guard: subprocess.Popen | None = None
    _log: Path | None = None

    def _launch(self, run_config: Any, args: list[str], **_: Any) -> subprocess.Popen:
        self._log = Path(self._tmp_dir, "game.log")
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                args,
                cwd=run_config.cwd,
                env=run_config.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt from the keyboard is for this process, which then ends the game
            )
        try:
            if os.name == "posix":
                self._guard = _watch(process.pid, self._tmp_dir)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _shutdown(self) -> None:
        super()._shutdown()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def describe(self) -> str:
        """Return that the process runs, or how it ended. A process about to end gets a moment."""
        process = self._proc
        if process is None:
            return "closed"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        return "running" if process.returncode is None else f"ended with code {process.returncode}"

    def read_log(self) -> str:
        """Return the last lines of the game's output."""
        if self._log is None or not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - LOG_CHARACTERS))
            return log.read().decode("utf-8", "replace").strip()


def _open_websocket(port: int) -> Any:
    """Return a direct connection. The websocket library itself would use the proxy of the environment variables."""
    connection = socket.create_connection((HOST, port), REPLY_SECONDS)
    try:
        return websocket.create_connection(f"ws://{HOST}:{port}/sc2api", timeout=REPLY_SECONDS, socket=connection)
    except BaseException:
        connection.close()
        raise


def _end(process: GameProcess, sockets: list[Any]) -> None:
    for each in sockets:
        each.shutdown()  # its polite `close` waits for a game that may hang, and leaks if that hung up
    process.close()


def _watch(pid: int, folder: str) -> subprocess.Popen:
    """Start a shell that waits until this process ends, which closes a pipe, and then cleans up."""
    command = ["/bin/sh", "-c", 'read -r _; kill -9 "$0"; rm -rf "$1"', str(pid), folder]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)


def _pick_port() -> int:
    """Return a free port that no other game of this process uses."""
    with _ports_lock:
        while True:
            port = portpicker.pick_unused_port()
            if port not in _ports:
                _ports.add(port)
                return port


def _return_port(port: int) -> None:
    with _ports_lock:
        _ports.discard(port)
