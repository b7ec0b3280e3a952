"""A match as the server of the StarCraft II API plays it: over any `Simulation`, recorded, and played back."""

import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from marl.envs.sc2.protos import load

load()  # before the imports that need what it builds
api: Any = import_module("s2clientprotocol.sc2api_pb2")
debug: Any = import_module("s2clientprotocol.debug_pb2")
error: Any = import_module("s2clientprotocol.error_pb2")
score: Any = import_module("s2clientprotocol.score_pb2")

PLAYER, COMPUTER = 1, 2
"""Player ids: the client's, and that of the other side."""

REPLAY = b"seqmarl replay 1\n"
"""First bytes of a replay. A ResponseReplayInfo follows, then all requests of the game, compressed. Each message is its
length (4 bytes, little-endian) and its protobuf."""

DEBUG_COMMANDS = (None, "draw", "score", "create_unit", "kill_unit", "unit_value", "end_game", "test_process")
"""Debug commands that are served; `draw` and `score` show nothing. Of `game_state` only show_map is."""

MAX_LOOPS = 1_000_000
"""Game loops that one request may ask for."""

LOOPS_PER_SECOND = 22.4
"""Game loops in a second of a replay's duration, which is in seconds of the fastest speed."""

_RESULTS = (api.Victory, api.Defeat)


class Simulation(Protocol):
    """A game in progress. Messages are those of s2clientprotocol; a tag names a unit."""

    def races(self) -> tuple[int, int]:
        """Return the races of player and computer, NoRace where the map leaves it to the players."""
        ...

    def ground(self) -> Any:
        """Return the map as StartRaw."""
        ...

    def data(self, request: Any) -> Any:
        """Return the ResponseData that a RequestData asks for."""
        ...

    def show(self, player: Any, raw: Any) -> None:
        """Fill a PlayerCommon and, if given, an ObservationRaw."""
        ...

    def order(self, command: Any) -> list[tuple[int, int]]:
        """Carry out an ActionRawUnitCommand. Return a tag and an ActionResult for each of its units."""
        ...

    def step(self, loops: int) -> None: ...

    def kill(self, tags: Sequence[int]) -> None:
        """Remove units. Unknown tags are ignored."""
        ...

    def plan(self, commands: Sequence[Any]) -> Any:
        """Check DebugCreateUnits and return the argument of `create`. Raises Refused if one cannot be carried out."""
        ...

    def create(self, units: Any) -> None:
        """Create the units that `plan` returned."""
        ...

    def move_camera(self, x: float, y: float) -> None: ...

    def show_layers(self, setup: Any, layers: Any) -> None:
        """Fill an ObservationFeatureLayer for a SpatialCameraSetup."""
        ...

    def set_value(self, tag: int, kind: int, value: float) -> None:
        """Set the value that a DebugSetUnitValue names."""
        ...

    def query(self, request: Any, response: Any) -> None:
        """Answer a RequestQuery in a ResponseQuery."""
        ...

    def save(self) -> Any:
        """Return everything that `load` needs to continue from here."""
        ...

    def load(self, saved: Any) -> None: ...


class Library(Protocol):
    """Maps that a server can play."""

    @property
    def maps(self) -> Sequence[str]: ...

    def open(self, name: str, seed: int) -> Simulation:
        """Return a game on a map. Its random numbers start with a seed in [0, 2**32)."""
        ...


class Version(NamedTuple):
    """Version that a server reports."""

    game: str
    data: str
    build: int


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """Request answered with an `error` string."""


class Failed(Exception):  # noqa: N818
    """Request answered with the error code of its own response."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class RequestLog:
    """Requests of a game, compressed as they arrive."""

    def __init__(self) -> None:
        self._packer = zlib.compressobj(6)
        self._parts: list[bytes] = []

    def add(self, **request: Any) -> None:
        """Append a request."""
        if part := self._packer.compress(_packed(api.Request(**request))):
            self._parts.append(part)

    def data(self) -> bytes:
        """Return the compressed requests."""
        return b"".join(self._parts) + self._packer.copy().flush()

    def mark(self) -> Any:
        """Return a mark for `rewind`."""
        return self._packer.copy(), list(self._parts)

    def rewind(self, mark: Any) -> None:
        """Remove all requests after a mark."""
        self._packer, self._parts = mark[0].copy(), list(mark[1])


def read_replay(data: bytes) -> tuple[Any, list[Any]]:
    """Return the ResponseReplayInfo and the requests of a replay. Raises ValueError if it is none or damaged."""
    if not data.startswith(REPLAY):
        raise ValueError("these are not the bytes of a replay that this server has saved")
    try:
        (size,) = struct.unpack_from("<I", data, len(REPLAY))
        start = len(REPLAY) + 4
        info = api.ResponseReplayInfo.FromString(data[start : start + size])
        requests = [api.Request.FromString(part) for part in _split(zlib.decompress(data[start + size :]))]
    except (ValueError, zlib.error, struct.error, DecodeError) as problem:
        raise ValueError(f"the replay is damaged: {problem}") from problem
    kinds = [request.WhichOneof("request") for request in requests]
    if kinds[:2] != ["create_game", "join_game"] or not {"action", "debug", "step"}.issuperset(kinds[2:]):
        raise ValueError("the replay is damaged: its requests are not those of a game")
    return info, requests


def _packed(message: Any) -> bytes:
    data = message.SerializeToString()
    return struct.pack("<I", len(data)) + data


def _split(plain: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(plain):
        (size,) = struct.unpack_from("<I", plain, at)
        at += 4 + size
        if at > len(plain):
            raise ValueError("it ends too early")
        yield plain[at - size : at]


class ServerGame:
    """One game: its setup, its simulation, and the events of the next observation."""

    def __init__(self, library: Library, create: Any, join: Any) -> None:
        self.library, self.create, self.join = library, create, join
        self.simulation = library.open(map_name(create), create.random_seed)
        self.loop = 0
        self.results: dict[int, int] = {}
        self.record = RequestLog()
        self.record.add(create_game=create)
        self.record.add(join_game=join)
        self._forget()

    def _forget(self) -> None:
        self.actions, self.errors, self.chat = [], [], []

    def act(self, request: Any) -> list[int]:
        """Carry out a RequestAction. Return an ActionResult for each action."""
        if any(action.ListFields() for action in request.actions):
            self.record.add(action=request)
        return [self._perform(action) for action in request.actions]

    def _perform(self, action: Any) -> int:
        results = []
        if action.HasField("action_chat"):
            self.chat.append(api.ChatReceived(player_id=PLAYER, message=to_text(action.action_chat.message)))
        if any(action.HasField(name) for name in ("action_feature_layer", "action_render", "action_ui")):
            results.append(error.NotSupported)
        kind = action.action_raw.WhichOneof("action")
        if kind == "toggle_autocast":
            results.append(error.NotSupported)
        elif kind == "camera_move":
            place = action.action_raw.camera_move.center_world_space
            self.simulation.move_camera(place.x, place.y)
        elif kind == "unit_command":
            command = action.action_raw.unit_command
            for tag, result in self.simulation.order(command):
                results.append(result)
                if result != error.Success:
                    wrong = api.ActionError(unit_tag=tag, ability_id=max(0, command.ability_id), result=result)
                    self.errors.append(wrong)
        if results and error.Success not in results:
            return results[0]
        if action.ListFields():
            self.actions.append(api.Action(game_loop=self.loop))
            self.actions[-1].MergeFrom(action)
        return error.Success

    def debug(self, request: Any) -> None:
        """Carry out a RequestDebug, completely or not at all. Units are created after its other commands.

        Raises Refused if a command is not served.
        """
        kinds = [command.WhichOneof("command") for command in request.debug]
        for command, kind in zip(request.debug, kinds, strict=True):
            shown = kind == "game_state" and command.game_state == debug.show_map
            if kind not in DEBUG_COMMANDS and not shown:
                raise Refused(f"{kind} is not served; create_unit, kill_unit, unit_value and end_game are")
        pairs = zip(request.debug, kinds, strict=True)
        plan = self.simulation.plan([command.create_unit for command, kind in pairs if kind == "create_unit"])
        if "test_process" not in kinds:  # which would befall who watches the replay
            self.record.add(debug=request)
        for command, kind in zip(request.debug, kinds, strict=True):
            if kind == "kill_unit":
                self.simulation.kill(command.kill_unit.tag)
            elif kind == "unit_value":
                value = command.unit_value
                self.simulation.set_value(value.unit_tag, value.unit_value, value.value)
            elif kind == "end_game":
                surrender = command.end_game.end_result != debug.DebugEndGame.DeclareVictory
                self.results = dict(zip((PLAYER, COMPUTER), _RESULTS[:: -1 if surrender else 1], strict=True))
            elif kind == "test_process":
                self._test_process(command.test_process)
        if plan:
            self.simulation.create(plan)

    @staticmethod
    def _test_process(request: Any) -> None:
        """Crash, exit or hang, as a DebugTestProcess asks."""
        time.sleep(request.delay_ms / 1000)
        if request.test == debug.DebugTestProcess.crash:
            os.abort()
        if request.test == debug.DebugTestProcess.exit:
            os._exit(1)
        while True:
            time.sleep(1)

    def step(self, count: int) -> None:
        """Play game loops. Raises Refused above MAX_LOOPS."""
        if count > MAX_LOOPS:
            raise Refused(f"count={count}; give at most {MAX_LOOPS}")
        self.record.add(step=api.RequestStep(count=count))
        self.simulation.step(count)
        self.loop += count

    def observe(self, response: Any) -> None:
        """Fill a ResponseObservation. Events since the last one are reported once."""
        options, observation = self.join.options, response.observation
        observation.game_loop = self.loop
        self.simulation.show(observation.player_common, observation.raw_data if options.raw else None)
        if options.HasField("feature_layer"):
            self.simulation.show_layers(options.feature_layer, observation.feature_layer_data)
        if options.score:
            observation.score.score_type = score.Score.Melee
            observation.score.score = 0
            observation.score.score_details.SetInParent()
        response.actions.extend(self.actions)
        response.action_errors.extend(self.errors)
        response.chat.extend(self.chat)
        for player, result in self.results.items():
            response.player_result.add(player_id=player, result=result)
        self._forget()

    def players(self) -> list[Any]:
        """Return the players as PlayerInfo."""
        races, players = self.simulation.races(), []
        setups = sorted(self.create.player_setup, key=lambda setup: setup.type)
        for player_id, setup in enumerate(setups, PLAYER):
            requested = self.join.race if setup.type == api.Participant else setup.race
            player = api.PlayerInfo(player_id=player_id, type=setup.type, race_requested=requested)
            player.race_actual = races[player_id - PLAYER] or requested
            player.player_name = to_text(self.join.player_name if setup.type == api.Participant else setup.player_name)
            if setup.type == api.Computer:
                player.difficulty, player.ai_build = setup.difficulty, setup.ai_build
            players.append(player)
        return players

    def save(self) -> Any:
        """Return everything that `load` needs."""
        return self.simulation.save(), self.loop, dict(self.results), self.record.mark()

    def load(self, saved: Any) -> None:
        """Restore a saved game."""
        self.simulation.load(saved[0])
        self.loop, self.results = saved[1], dict(saved[2])
        self.record.rewind(saved[3])
        self._forget()

    def replay(self, version: Version) -> bytes:
        """Return the bytes of a replay up to now; see REPLAY."""
        info = api.ResponseReplayInfo(map_name=map_name(self.create), local_map_path=self.create.local_map.map_path)
        info.game_duration_loops = self.loop
        info.game_duration_seconds = self.loop / LOOPS_PER_SECOND
        info.game_version, info.data_version = version.game, version.data
        info.data_build = info.base_build = version.build
        for player in self.players():
            result = self.results.get(player.player_id, api.Undecided)
            info.player_info.add(player_info=player, player_result={"player_id": player.player_id, "result": result})
        return REPLAY + _packed(info) + self.record.data()


class Replay:
    """A replay that is watched. Steps may differ from the game's: each of the game's is played as one."""

    def __init__(self, library: Library, requests: Sequence[Any], options: Any) -> None:
        create, join = requests[0].create_game, api.RequestJoinGame()
        join.CopyFrom(requests[1].join_game)
        join.options.CopyFrom(options)
        self.game = ServerGame(library, create, join)
        self._requests, self._at = requests, 2
        self._steps = sum(request.HasField("step") for request in requests)
        self._before: Any = None
        self._finish()

    @property
    def over(self) -> bool:
        """True after the last request."""
        return self._at == len(self._requests)

    def _apply(self) -> None:
        """Apply the requests before the next step."""
        while not self.over and not self._requests[self._at].HasField("step"):
            request = self._requests[self._at]
            if request.HasField("action"):
                self.game.act(request.action)
            else:
                self.game.debug(request.debug)
            self._at += 1

    def _finish(self) -> None:
        """Apply the requests after the last step."""
        if self._steps == 0:
            self._apply()

    def step(self, count: int) -> None:
        """Play game loops, or as many as are left."""
        while count > 0 and not self.over:
            if self._before is None:
                self._apply()
                self._before = self.game.simulation.save(), self.game.loop
            saved, loop = self._before
            whole, done = self._requests[self._at].step.count, self.game.loop - loop
            self.game.simulation.load(saved)
            if done + count < whole:
                self.game.simulation.step(done + count)
                self.game.loop += count
                return
            self.game.loop = loop
            self.game.step(whole)
            self._before = None
            count -= whole - done
            self._at += 1
            self._steps -= 1
            self._finish()


def to_text(field: str | bytes) -> str:
    """Return a text field. protobuf returns bytes for texts that are not UTF-8."""
    return field.decode("utf-8", "replace") if isinstance(field, bytes) else field


def map_name(create: Any) -> str:
    """Return the name of a game's map."""
    return PurePosixPath(to_text(create.local_map.map_path).replace("\\", "/")).stem
