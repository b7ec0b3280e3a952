"""Server of the StarCraft II API: a websocket, the states of a game and its requests, over any `Simulation`.

One player against at most one computer, stepped by the client, without rendered pictures. A request that the state
forbids gets `error` strings, one that fails its own error code and details. NOT_SERVED lists what is missing.
"""

import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from marl.envs.sc2.protos import load
from marl.envs.sc2.server_game import (
    PLAYER,
    Failed,
    Library,
    Refused,
    Replay,
    ServerGame,
    Version,
    map_name,
    read_replay,
    to_text,
)
from marl.registry import unknown_name_message

load()  # before the import that needs what it builds
api: Any = import_module("s2clientprotocol.sc2api_pb2")

PATH = "/sc2api"

NOT_SERVED = (
    ("realtime games and replays", "`error` string"),
    ("several clients in one game, observers, Battle.net maps", "error code of create_game or join_game"),
    ("rendered pictures (options.render)", "FeatureUnsupported"),
    ("actions on feature layers, on pictures and on the user interface; toggle_autocast", "ActionResult NotSupported"),
    ("abilities but Smart, Stop, Move, Attack and a medivac's Heal", "ActionResult NotSupported"),
    ("queued orders of a unit that has an order", "ActionResult CantQueueThatOrder"),
    ("debug commands but create_unit, kill_unit, unit_value, end_game, game_state show_map", "`error` string"),
    ("map_command", "NoTriggerError"),
)
"""Requests that are not served, and the answer to each."""

MAX_PIXELS = 256
"""Maximal width and height of a feature layer."""


class Handler(Protocol):
    """Handler of a connection's messages."""

    @property
    def over(self) -> bool:
        """True if the process should end."""
        ...

    def handle(self, message: bytes) -> bytes:
        """Return the answer. May raise ConnectionAbortedError to close the connection instead."""
        ...


_ANY = frozenset(api.Status.values())
_PLAYING = frozenset((api.in_game,))
_SHOWN = frozenset((api.in_game, api.in_replay, api.ended))
_BEFORE = frozenset((api.launched, api.in_game, api.in_replay, api.ended))
_STATES = {
    "create_game": _BEFORE,
    "start_replay": _BEFORE,
    "join_game": frozenset((api.init_game,)),
    "restart_game": frozenset((api.in_game, api.ended)),
    "leave_game": _SHOWN,
    "quick_save": _PLAYING,
    "quick_load": _PLAYING,
    "game_info": _SHOWN,
    "observation": _SHOWN,
    "data": _SHOWN,
    "save_replay": _SHOWN,
    "action": _PLAYING,
    "debug": _PLAYING,
    "map_command": _PLAYING,
    "step": frozenset((api.in_game, api.in_replay)),
    "query": frozenset((api.in_game, api.in_replay)),
    "obs_action": frozenset((api.in_replay,)),
}
"""States in which a request is allowed. Requests not listed are always allowed."""


class Session:
    """State of a server and its answers.

    `data_folder` holds maps and replays of the installation; `temp_folder` receives files of `save_map`.
    """

    def __init__(self, library: Library, version: Version, data_folder: Path, temp_folder: Path) -> None:
        self._library, self._version = library, version
        self._maps, self._replays, self._temp = data_folder / "Maps", data_folder / "Replays", temp_folder
        self._status = api.launched
        self._created: Any = None
        self._game: Any = None
        self._playback: Replay | None = None
        self._saved: Any = None

    @property
    def over(self) -> bool:
        """True after a quit request."""
        return self._status == api.quit

    def handle(self, message: bytes) -> bytes:
        """Return the serialized Response to a serialized Request."""
        response = api.Response()
        try:
            request = api.Request.FromString(message)
        except DecodeError as problem:
            response.error.append(f"the message of {len(message)} bytes is no Request: {problem}")
        else:
            if request.HasField("id"):
                response.id = request.id
            self._answer(request, response)
        response.status = self._status
        return response.SerializeToString()

    def _answer(self, request: Any, response: Any) -> None:
        name = request.WhichOneof("request")
        if name is None:
            response.error.append("the request is empty, or of a kind that this protocol does not know")
            return
        part = getattr(response, name)
        try:
            self._check_state(name)
            part.SetInParent()
            getattr(self, f"_{name}")(getattr(request, name), part)
        except Failed as problem:
            part.error = problem.code
            if "error_details" in part.DESCRIPTOR.fields_by_name:
                part.error_details = problem.details
        except Refused as problem:
            response.ClearField(name)
            response.error.append(f"{name}: {problem}")
        except Exception as problem:
            traceback.print_exc()
            response.ClearField(name)
            response.error.append(f"{name}: the server failed, see its log: {type(problem).__name__}: {problem}")

    def _check_state(self, name: str) -> None:
        allowed = _STATES.get(name, _ANY)
        if self._status in allowed:
            return
        if self._status == api.ended and name in ("step", "action"):
            raise Refused("Game has already ended")
        states = ", ".join(api.Status.Name(state) for state in sorted(allowed))
        raise Refused(f"not allowed in the state {api.Status.Name(self._status)}; allowed in: {states}")

    def _ping(self, _request: Any, part: Any) -> None:
        part.game_version, part.data_version = self._version.game, self._version.data
        part.data_build = part.base_build = self._version.build

    def _quit(self, _request: Any, _part: Any) -> None:
        self._status = api.quit

    def _available_maps(self, _request: Any, part: Any) -> None:
        found = self._maps.rglob("*.SC2Map")
        part.local_map_paths.extend(
            sorted(str(path.relative_to(self._maps)) for path in found if path.stem in self._library.maps)
        )

    def _save_map(self, request: Any, part: Any) -> None:
        relative = PurePosixPath(to_text(request.map_path).replace("\\", "/").replace("\0", ""))
        if not request.map_data or not relative.name or relative.is_absolute() or ".." in relative.parts:
            raise Failed(part.InvalidMapData, "")
        path = self._temp / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request.map_data)

    def _create_game(self, request: Any, part: Any) -> None:
        if request.realtime:
            raise Refused("realtime games are not served; leave out `realtime` and send step requests")
        self._check_players(request, part)
        self._check_map(request, part)
        create = api.RequestCreateGame()
        create.CopyFrom(request)
        create.local_map.ClearField("map_data")
        create.local_map.map_path = to_text(create.local_map.map_path)
        if not create.HasField("random_seed"):
            create.random_seed = secrets.randbits(32)
        self._created, self._game, self._playback, self._saved = create, None, None, None
        self._status = api.init_game

    @staticmethod
    def _check_players(request: Any, part: Any) -> None:
        kinds = [setup.type for setup in request.player_setup]
        if not kinds:
            raise Failed(part.MissingPlayerSetup, "give one Participant, and at most one Computer")
        if kinds.count(api.Participant) > 1:
            raise Failed(part.MultiplayerUnsupported, f"{len(kinds)} players; one Participant can play here")
        if kinds.count(api.Participant) != 1 or kinds.count(api.Computer) != len(kinds) - 1 or len(kinds) > 2:
            names = [api.PlayerType.Name(kind) for kind in kinds]
            raise Failed(part.InvalidPlayerSetup, f"{names}; give one Participant, and at most one Computer")

    def _check_map(self, request: Any, part: Any) -> None:
        if request.WhichOneof("Map") == "battlenet_map_name":
            raise Failed(part.InvalidMapName, f"{request.battlenet_map_name!r} is Battle.net's; give a local_map")
        path = to_text(request.local_map.map_path)
        if not path:
            raise Failed(part.MissingMap, "give local_map.map_path: the map is known by its file's name")
        if request.local_map.HasField("map_data"):
            if not request.local_map.map_data:
                raise Failed(part.InvalidMapData, f"the data of {path!r} are empty")
        elif not any((folder / path).is_file() for folder in (self._maps, self._temp)):
            raise Failed(part.InvalidMapPath, f"{path!r} is no file in {self._maps} or {self._temp}")
        if map_name(request) not in self._library.maps:
            raise Failed(part.InvalidMapName, unknown_name_message("map", map_name(request), self._library.maps))

    def _join_game(self, request: Any, part: Any) -> None:
        if request.HasField("server_ports") or request.client_ports or request.HasField("host_ip"):
            raise Failed(part.FeatureUnsupported, "one client can play here; leave out ports and host_ip")
        if request.WhichOneof("participation") is None:
            raise Failed(part.MissingParticipation, "give `race`")
        if request.HasField("observed_player_id"):
            raise Failed(part.InvalidObservedPlayerId, "a running game has no observers here; give `race` and play")
        self._check_options(request, part, part.FeatureUnsupported)
        self._game = ServerGame(self._library, self._created, request)
        part.player_id = PLAYER
        self._status = api.in_game

    @staticmethod
    def _check_options(request: Any, part: Any, unsupported: int) -> None:
        if not request.HasField("options"):
            raise Failed(part.MissingOptions, "give the options of the interface, such as raw=True")
        if request.options.HasField("render"):
            raise Failed(unsupported, "options.render is not served; ask for raw observations or feature layers")
        if request.options.HasField("feature_layer"):
            setup = request.options.feature_layer
            for name in ("resolution", "minimap_resolution"):
                x, y = getattr(setup, name).x, getattr(setup, name).y
                if not (1 <= x <= MAX_PIXELS and 1 <= y <= MAX_PIXELS):
                    raise Failed(unsupported, f"feature_layer.{name}={x} x {y}; give 1 to {MAX_PIXELS} each")
            if not 0 <= setup.width <= MAX_PIXELS:
                raise Failed(unsupported, f"feature_layer.width={setup.width}; give map units up to {MAX_PIXELS}")

    def _restart_game(self, _request: Any, _part: Any) -> None:
        if self._playback is not None:
            raise Refused("a replay cannot be restarted; send start_replay again")
        self._game = ServerGame(self._library, self._game.create, self._game.join)
        self._saved = None
        self._status = api.in_game

    def _leave_game(self, _request: Any, _part: Any) -> None:
        self._game = self._playback = self._saved = None
        self._status = api.launched

    def _quick_save(self, _request: Any, _part: Any) -> None:
        self._saved = self._game.save()

    def _quick_load(self, _request: Any, _part: Any) -> None:
        if self._saved is None:
            raise Refused("nothing has been saved in this game; send quick_save first")
        self._game.load(self._saved)

    def _game_info(self, _request: Any, part: Any) -> None:
        part.map_name = map_name(self._game.create)
        part.local_map_path = self._game.create.local_map.map_path
        part.player_info.extend(self._game.players())
        part.start_raw.CopyFrom(self._game.simulation.ground())
        part.options.CopyFrom(self._game.join.options)

    def _data(self, request: Any, part: Any) -> None:
        part.CopyFrom(self._game.simulation.data(request))

    def _observation(self, _request: Any, part: Any) -> None:
        self._game.observe(part)

    def _action(self, request: Any, part: Any) -> None:
        part.result.extend(self._game.act(request))

    def _obs_action(self, _request: Any, _part: Any) -> None:
        """Accept a camera action of a replay's observer. It has no effect, because nothing is rendered."""

    def _map_command(self, request: Any, part: Any) -> None:
        raise Failed(part.NoTriggerError, f"the map has no trigger {request.trigger_cmd!r}")

    def _step(self, request: Any, part: Any) -> None:
        count = request.count if request.HasField("count") else 1
        if self._playback is not None:
            self._playback.step(count)
            if self._playback.over:
                self._status = api.ended
        else:
            self._game.step(count)
        part.simulation_loop = self._game.loop

    def _query(self, request: Any, part: Any) -> None:
        self._game.simulation.query(request, part)

    def _debug(self, request: Any, _part: Any) -> None:
        self._game.debug(request)
        if self._game.results:
            self._status = api.ended

    def _save_replay(self, _request: Any, part: Any) -> None:
        part.data = self._game.replay(self._version)

    def _replay_bytes(self, request: Any, part: Any) -> bytes:
        kind = request.WhichOneof("replay")
        if kind is None:
            raise Failed(part.MissingReplay, "give replay_data or replay_path")
        if kind == "replay_data":
            return request.replay_data
        try:
            return (self._replays / to_text(request.replay_path)).read_bytes()
        except (OSError, ValueError) as problem:
            raise Failed(part.InvalidReplayPath, f"{request.replay_path!r} in {self._replays}: {problem}") from problem

    def _start_replay(self, request: Any, part: Any) -> None:
        data = self._replay_bytes(request, part)
        self._check_options(request, part, part.LaunchError)
        if request.realtime:
            raise Refused("realtime replays are not served; leave out `realtime` and send step requests")
        if request.observed_player_id not in (0, PLAYER):
            raise Failed(part.InvalidObservedPlayerId, f"{request.observed_player_id}; player {PLAYER} can be watched")
        try:
            _, requests = read_replay(data)
        except ValueError as problem:
            raise Failed(part.InvalidReplayData, str(problem)) from problem
        name = map_name(requests[0].create_game)
        if name not in self._library.maps:
            raise Failed(part.InvalidMapData, unknown_name_message("map", name, self._library.maps))
        self._playback = Replay(self._library, requests, request.options)
        self._game, self._saved = self._playback.game, None
        self._status = api.ended if self._playback.over else api.in_replay

    def _replay_info(self, request: Any, part: Any) -> None:
        try:
            part.CopyFrom(read_replay(self._replay_bytes(request, part))[0])
        except ValueError as problem:
            raise Failed(part.ParsingError, str(problem)) from problem


def listen(
    handler: Handler, host: str, port: int, patience: float = 600.0, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve one client after another at `ws://host:port/sc2api` until the handler is over; `ready` is called first.

    Ends also after `patience` seconds without a client. Raises OSError if the port is taken.
    """
    over, talking = threading.Event(), threading.Lock()
    heard = time.monotonic()

    def talk(connection: ServerConnection) -> None:
        nonlocal heard
        if not talking.acquire(timeout=1.0):
            connection.close(1013, "another client is connected")
            return
        try:
            with suppress(ConnectionClosed, ConnectionAbortedError):
                while not handler.over:
                    answer = handler.handle(bytes(connection.recv(decode=False)))  # some clients say that it is text
                    with suppress(ConnectionClosed):  # what was asked before is done all the same
                        connection.send(answer)
        finally:
            heard = time.monotonic()
            talking.release()
            if handler.over:
                over.set()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "family": family}
    with serve(talk, host, port, process_request=_check_path, **options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ready()
        while not over.wait(1.0) and (talking.locked() or time.monotonic() - heard < patience):
            pass


def _check_path(connection: ServerConnection, request: Request) -> Response | None:
    if request.path == PATH:
        return None
    return connection.respond(HTTPStatus.NOT_FOUND, f"{request.path} is not served here; {PATH} is\n")
