"""The server of the StarCraft II API for tests: in this process or another, asked in few words."""

import socket
import subprocess
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import portpicker
from websockets.sync.client import connect

from marl.envs.sc2.protos import load

load()  # before the imports that need what it builds
api = import_module("s2clientprotocol.sc2api_pb2")
query = import_module("s2clientprotocol.query_pb2")
protocol = import_module("pysc2.lib.protocol")
remote_controller = import_module("pysc2.lib.remote_controller")
run_configs = import_module("pysc2.run_configs")


def request(**fields) -> bytes:
    """A serialized Request, such as `request(step={"count": 8})`."""
    return api.Request(**fields).SerializeToString()


def creation(name: str = "3m", seed: int | None = 1, **fields):
    """Return the request that creates a game on a map."""
    players = [api.PlayerSetup(type=api.Participant), api.PlayerSetup(type=api.Computer, race=1, difficulty=7)]
    create = api.RequestCreateGame(player_setup=players, random_seed=seed, **fields)
    create.local_map.map_path = f"SMAC_Maps/{name}.SC2Map"
    return create


def joining(**options):
    return api.RequestJoinGame(race=1, options=api.InterfaceOptions(**{"raw": True, **options}))


class Asker:
    """Asks a `Session` in this process, or anything else that takes and gives bytes."""

    def __init__(self, handle) -> None:
        self.handle = handle

    def __call__(self, **fields):
        return api.Response.FromString(self.handle(request(**fields)))

    def begin(self, name: str = "3m", seed: int | None = 1, **options):
        self(create_game=creation(name, seed))
        return self(join_game=joining(**options))

    def observe(self):
        return self(observation={}).observation

    def units(self, alliance: int | None = None):
        units = self.observe().observation.raw_data.units
        return [unit for unit in units if alliance in (None, unit.alliance)]

    def command(self, ability: int, *tags: int, place=None, target: int | None = None, **fields):
        """The ActionResult of a unit command."""
        command = {"ability_id": ability, "unit_tags": tags, **fields}
        if place is not None:
            command["target_world_space_pos"] = {"x": place[0], "y": place[1]}
        if target is not None:
            command["target_unit_tag"] = target
        response = self(action={"actions": [{"action_raw": {"unit_command": command}}]})
        assert not response.error, response.error
        return response.action.result[0]

    def kill(self, *tags: int):
        return self(debug={"debug": [{"kill_unit": {"tag": tags}}]})


@contextmanager
def running(folder: Path, seconds: float = 120.0):
    """Start the game of an installation by hand; gives the process and its port, as soon as it listens."""
    port = portpicker.pick_unused_port()
    (executable,) = folder.glob("Versions/Base*/SC2_x64")
    folders = ["-dataDir", f"{folder}/", "-tempDir", f"{folder}/temp/"]
    extra = ["-headlessNoRender", "-dataVersion", "B89B", "-eglpath", "libEGL.so", "-displayMode", "0", "-verbose"]
    arguments = [str(executable), "-listen", "127.0.0.1", "-port", str(port), *folders, *extra]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                assert process.poll() is None, process.returncode
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.wait()


@contextmanager
def binary_client(port: int):
    """A client that sends binary frames and does not number its requests."""
    with connect(f"ws://127.0.0.1:{port}/sc2api", compression=None, max_size=None) as connection:

        def handle(message: bytes) -> bytes:
            connection.send(message)
            answer = connection.recv(30)
            assert isinstance(answer, bytes), "the answer was not sent as a binary frame"
            return answer

        yield Asker(handle)
