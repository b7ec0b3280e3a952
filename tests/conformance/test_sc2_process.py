"""The embedded engine as a process in place of StarCraft II: pysc2 and others start it and play."""

import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")

import portpicker
import websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from marl.envs.sc2.server import Session, listen
from marl.envs.smac.sc2.serve import BUILD, MAPS, VERSIONS, SmacLibrary, make_install
from tests.support.sc2 import (
    api,
    binary_client,
    creation,
    joining,
    protocol,
    query,
    remote_controller,
    request,
    run_configs,
    running,
)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start the game of a new installation as pysc2 does."""

    def start(folder=tmp_path, version=None, **options):
        monkeypatch.setenv("SC2PATH", str(make_install(folder, **options)))
        return run_configs.get(version=version).start(want_rgb=False, timeout_seconds=120)

    return start


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """A process and its port."""
    with running(make_install(tmp_path_factory.mktemp("game"))) as started:
        yield started


def test_pysc2_plays_a_game_with_all_that_it_can_ask(start, tmp_path):
    with start(folder=tmp_path / "it's a folder with spaces", version="4.10") as game:
        assert game.ping().base_build == 75689
        assert len(game.available_maps().local_map_paths) == len(MAPS)
        game.save_map("other/3m.SC2Map", b"data")
        game.create_game(creation("MMM"))
        assert game.join_game(joining(score=True)).player_id == 1
        assert game.game_info().map_name == "MMM"
        static = game.data()
        assert static.units[48] == "Marine"
        assert static.general_abilities == {3665, 3674, 3794}
        units = game.observe().observation.raw_data.units
        command = {"ability_id": 23, "target_unit_tag": units[-1].tag, "unit_tags": [units[3].tag]}
        assert list(game.act(api.Action(action_raw={"unit_command": command})).result) == [1]
        game.chat("hello")
        assert game.step(8).simulation_loop == 8
        seen = game.observe(disable_fog=True, target_game_loop=3)
        assert seen.observation.game_loop == 8
        assert [chat.message for chat in seen.chat] == ["hello"]
        asked = query.RequestQuery(abilities=[{"unit_tag": units[0].tag}])
        assert len(game.query(asked).abilities[0].abilities) == 4
        game.debug(api.RequestDebug(debug=[{"kill_unit": {"tag": [unit.tag for unit in units]}}]).debug)
        game.step(2)
        assert len(game.observe().observation.raw_data.units) == 20
        data = game.save_replay()
        assert game.replay_info(data).game_duration_loops == 10
        game.restart()
        game.leave()
        assert game.status == protocol.Status.launched
        game.start_replay(api.RequestStartReplay(replay_data=data, options={"raw": True}))
        game.observer_act(api.ObserverAction(camera_move={"world_pos": {"x": 1, "y": 1}}))
        game.step(100)
        assert game.status_ended


def test_pysc2_is_told_what_went_wrong(start):
    with start(version="4.6.2", build=69232) as game:
        assert game.ping().game_version == "4.6.2.69232"
        wrong = creation("3m")
        wrong.local_map.MergeFrom(api.LocalMap(map_path="SMAC_Maps/3mm.SC2Map", map_data=b"data"))
        with pytest.raises(remote_controller.RequestError, match=r"InvalidMapName.*did you mean '3m'"):
            game.create_game(wrong)
        game.create_game(creation("3m"))
        with pytest.raises(remote_controller.RequestError, match=r"MissingOptions.*raw=True"):
            game.join_game(api.RequestJoinGame(race=1))
        game.join_game(joining())
        with pytest.raises(protocol.ProtocolError, match="create_unit has owner=0; give 1 or 2"):
            game.debug(api.RequestDebug(debug=[{"create_unit": {"unit_type": 48}}]).debug)
        assert game.step(8).simulation_loop == 8


def test_a_client_may_send_binary_frames_text_frames_or_many_at_once(game):
    with binary_client(game[1]) as ask:
        assert not ask(ping={}).HasField("id")
        ask.begin("3m")
        assert ask(step={"count": 8}).step.simulation_loop == 8
    old = websocket.create_connection(f"ws://127.0.0.1:{game[1]}/sc2api", timeout=30)
    for number in range(1, 40):
        kind = {"step": {"count": 1}} if number % 2 else {"observation": {}}
        old.send(request(id=number, **kind), opcode=websocket.ABNF.OPCODE_TEXT if number % 3 else 2)
    answers = [api.Response.FromString(old.recv()) for _ in range(1, 40)]
    old.close()
    assert [answer.id for answer in answers] == list(range(1, 40))
    assert answers[-1].step.simulation_loop == 28  # the game had gone on without a client
    assert answers[-2].observation.observation.game_loop == 27


def test_other_paths_are_not_found_and_a_second_client_is_turned_away(game):
    for path in ("", "/", "/sc2api2", "/sc2API"):
        with pytest.raises(InvalidStatus) as caught, connect(f"ws://127.0.0.1:{game[1]}{path}"):
            pass
        assert caught.value.response.status_code == 404
    with binary_client(game[1]) as ask:
        with binary_client(game[1]) as other, pytest.raises(ConnectionClosed, match="another client"):
            other(ping={})
        assert ask(ping={}).ping.base_build == 75689
    with binary_client(game[1]) as again:
        assert again(ping={}).ping.base_build == 75689


@pytest.mark.parametrize("way", ["quit", "quit and hang up", "SIGTERM", "exit", "crash"])
def test_a_process_ends_when_it_is_told_to(tmp_path, way):
    with running(make_install(tmp_path)) as (process, port):
        if way == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        elif way == "quit":
            with binary_client(port) as ask:
                assert ask(quit={}).status == api.quit
        else:
            with connect(f"ws://127.0.0.1:{port}/sc2api") as connection:
                if way == "quit and hang up":
                    connection.send(request(quit={}))
                else:
                    connection.send(request(create_game=creation()))
                    connection.send(request(join_game=joining()))
                    connection.send(request(debug={"debug": [{"test_process": {"test": way}}]}))
        status = process.wait(10)
        assert status == {"exit": 1, "crash": -signal.SIGABRT}.get(way, 0)


def test_a_port_that_is_taken_or_is_none_is_named(game):
    for port in (game[1], 70_000):
        command = [sys.executable, "-m", "marl.envs.smac.sc2.serve", "-port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
        assert "embedded battle engine" not in done.stderr, "it does not listen"


def test_the_command_writes_an_installation(tmp_path):
    command = [sys.executable, "-m", "marl.envs.smac.sc2.serve", "install", str(tmp_path / "the game")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"export SC2PATH='{tmp_path}/the game'\n"
    maps = {path.stem for path in (tmp_path / "the game" / "Maps" / "SMAC_Maps").glob("*.SC2Map")}
    assert maps == set(MAPS)
    (tmp_path / "file").write_text("")
    done = subprocess.run([*command[:-1], str(tmp_path / "file")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"cannot write into {tmp_path}/file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_nobody_comes_to_ends(tmp_path):
    session = Session(SmacLibrary(), VERSIONS[BUILD], tmp_path, tmp_path)
    began = time.monotonic()
    listen(session, "127.0.0.1", portpicker.pick_unused_port(), patience=0.2)
    assert time.monotonic() - began > 0.2
    assert not session.over
