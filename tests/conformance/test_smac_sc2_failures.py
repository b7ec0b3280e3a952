"""Errors if StarCraft II is absent, wrong, crashes, hangs or breaks its protocol. No process or file is left."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")
if not Path("/proc/self/stat").exists():
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

from marl.envs.sc2 import game as game_module
from marl.envs.sc2.game import Game, GameError
from marl.envs.sc2.install import find_install
from marl.envs.smac import batch, make
from marl.envs.smac.sc2 import backend as real_module
from marl.envs.smac.sc2.backend import api
from marl.envs.smac.sc2.serve import make_install
from marl.errors import ConfigError, MissingDependencyError
from tests.support.games import choose, faults, install, installed, make_real, processes, same_obs, wait_until_gone

__all__ = ["faults", "install", "installed"]

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("install")
def test_what_is_missing_is_told_before_anything_starts(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"game_version='4.6.2' .*Base69232.* has Base75689"):
        make_real("3m", game_version="4.6.2")
    folder = make_install(tmp_path, 69232)
    monkeypatch.setenv("SC2PATH", str(folder))
    make_real("3m", game_version="4.6.2").close()
    (folder / "Maps" / "SMAC_Maps" / "MMM2.SC2Map").unlink()
    with pytest.raises(MissingDependencyError, match=r"no map at .*MMM2.SC2Map .*; unzip SMAC_Maps.zip of https"):
        make_real("MMM2")
    monkeypatch.setenv("SC2PATH", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDependencyError, match=r"SC2PATH, which is .*nowhere"):
        batch("3m", 2, backend="sc2")


@pytest.mark.usefixtures("install")
def test_a_game_of_another_version_than_its_folder_says_is_refused(tmp_path, monkeypatch):
    folder = make_install(tmp_path, 69232)
    (folder / "Versions" / "Base69232").rename(folder / "Versions" / "Base71061")
    monkeypatch.setenv("SC2PATH", str(folder))
    with pytest.raises(GameError, match=r"StarCraft II 4.6.2.69232 .* is Base69232, not Base71061"):
        Game(find_install())
    assert processes(folder) == []


FAILURES = {
    "garbage observation": "failed to answer to action, step, observation: Error parsing message",
    "nothing step": "Got an empty response",
    "hang step": "Websocket timed out",
    "hangup action": "failed to answer to action, step, observation: Got an empty response",
    "crash step": "ended with code 3",
    "error action": "out of vespene",
    "ended observation": "ended the game by itself, its status is ended",
    "stub observation": "ended the game by itself",
    "text step": "failed to answer to action, step, observation",
    "id step": "answered to request",
    "status step": "incomplete response without a status",
}


def test_a_game_that_fails_in_a_step_is_started_anew(faults, caplog):
    env = make_real("3m")
    for kind, part in FAILURES.items():
        before = env.reset(5)
        seen = {name: getattr(before, name).copy() for name in ("agents", "alive", "action_mask", "state")}
        first = env._battles._instances[0]._game.pid
        (faults / "once").write_text(kind)
        env._battles.view.reward[:] = 9
        step = env.step(np.array([4, 4, 4]))
        assert (step.terminated, step.truncated, step.reward.tolist()) == (False, True, [0, 0, 0]), kind
        assert step.info == {"success": 0, "dead_allies": 0, "dead_enemies": 0, "restarted": 1}, kind
        assert step.restarted, kind
        same_obs(SimpleNamespace(**seen), step.obs)
        message = caplog.records[-1].getMessage()
        assert part in message, message
        assert "smac/3m, environment 0" in message
        if kind.split()[0] not in ("ended", "stub", "id"):
            assert f"faults: {kind.split()[0]}" in message, "the game's own log is shown"
        with pytest.raises(RuntimeError, match="no running episode"):
            env.step(np.array([4, 4, 4]))
        assert env._battles._instances[0]._wire_seed() not in (4, 5, 6), "the same battle would only be lost again"
        again = env.reset()
        assert env._battles._instances[0]._game.pid != first
        assert again.alive.all()
        after = env.step(np.array([4, 4, 4]))
        assert not after.truncated
        assert "restarted" not in after.info
    env.close()


@pytest.mark.usefixtures("install")
def test_games_step_at_the_same_time(monkeypatch):
    vector, step = batch("3m", 4, backend="sc2"), real_module.SC2Instance.step
    together = threading.Barrier(4, timeout=60)

    def wait_and_step(*arguments):
        together.wait()  # raises BrokenBarrierError unless all four games are in a step
        step(*arguments)

    monkeypatch.setattr(real_module.SC2Instance, "step", wait_and_step)
    obs, rng = vector.reset([1, 2, 3, 4]), np.random.default_rng(0)
    for _ in range(3):
        obs = vector.step(choose(obs, rng)).obs
    vector.close()


@pytest.fixture
def launches(monkeypatch):
    """List with one entry for each game that an environment launches."""
    launches, game = [], real_module.Game

    def launch(install):
        launches.append(install)
        return game(install)

    monkeypatch.setattr(real_module, "Game", launch)
    return launches


@pytest.mark.usefixtures("faults")
def test_the_others_of_a_batch_play_on(caplog):
    def run(harm):
        vector = batch("3m", 3, backend="sc2")
        obs, rng, trace = vector.reset([1, 2, 3]), np.random.default_rng(0), []
        for number in range(12):
            if harm and number == 6:
                os.kill(vector._battles._instances[1]._game.pid, signal.SIGKILL)
            step = vector.step(choose(obs, rng))
            obs = step.obs
            trace.append((obs.agents.copy(), step.reward, step.truncated, step.restarted, step.final))
        vector.close()
        return trace

    unit_int, harmed, again = run(False), run(True), run(True)
    for number, (left, right) in enumerate(zip(unit_int, harmed, strict=True)):
        for index in (0, 1, 2) if number < 6 else (0, 2):
            np.testing.assert_array_equal(left[0][index], right[0][index])
            assert (left[1][index] == right[1][index]).all()
        assert right[3].tolist() == [False, number == 6, False]
    np.testing.assert_array_equal(harmed[6][4].obs.agents[0], harmed[5][0][1])
    assert harmed[6][4].env.tolist() == [1]
    assert harmed[6][4].info[0]["restarted"] == 1
    assert harmed[6][1][1].tolist() == [0, 0, 0]
    for left, right in zip(harmed, again, strict=True):
        np.testing.assert_array_equal(left[0], right[0], err_msg="what follows a loss is a function of the seeds")
    assert "ended with code -9" in caplog.text


def test_a_game_that_always_fails_is_given_up_with_its_own_words(faults, launches):
    env = make_real("3m")
    (faults / "always").write_text("refuse create_game")
    with pytest.raises(GameError, match=r"(?s)environment 0: lost 3 times .*MissingMap: 'no such map here'.*faults"):
        env.reset(0)
    assert len(launches) == 3
    (faults / "always").write_text("crash step")
    env = make_real("3m")
    for number in range(3):
        env.reset(None if number else 0)
        if number < 2:
            assert env.step(np.array([4, 4, 4])).truncated
    with pytest.raises(GameError, match="lost 3 times without a step in between"):
        env.step(np.array([4, 4, 4]))
    env.close()


@pytest.mark.usefixtures("install")
def test_losses_with_a_step_in_between_do_not_add_up(monkeypatch):
    monkeypatch.setattr(real_module, "MAX_FAILURES", 2)
    env = make_real("3m")
    env.reset(0)
    for _ in range(3):
        assert not env.step(np.array([4, 4, 4])).truncated
        os.kill(env._battles._instances[0]._game.pid, signal.SIGKILL)
        assert env.step(np.array([4, 4, 4])).truncated
        env.reset()
    env.close()


def test_a_game_that_fails_between_battles_is_started_anew(faults, caplog):
    env, embedded = make_real("3m", max_steps=2), make("3m", max_steps=2)
    (faults / "once").write_text("garbage join_game")
    same_obs(env.reset(8), embedded.reset(8))
    assert "failed to answer to join_game" in caplog.text
    for _ in range(2):
        step = env.step(np.array([4, 4, 4]))
    assert step.truncated
    assert "restarted" not in step.info
    (faults / "once").write_text("crash debug")
    assert env.reset().alive.all()
    assert "failed to answer to debug, step, observation" in caplog.text
    env.close()


@pytest.mark.usefixtures("faults")
def test_a_game_that_ends_at_once_tells_why():
    binary = find_install().binary
    binary.write_text("#!/bin/sh\necho libSDL is missing >&2\nexit 5\n")
    with pytest.raises(GameError, match=r"(?s)ended with code 5\) ended before it listened.*libSDL is missing"):
        Game(find_install())
    binary.write_text("not a program")
    with pytest.raises(GameError, match="cannot be started"):
        Game(find_install())


@pytest.mark.usefixtures("faults")
def test_a_game_that_never_listens_is_given_up(monkeypatch, caplog, launches):
    monkeypatch.setattr(game_module, "LAUNCH_SECONDS", 1.0)
    monkeypatch.setattr(game_module, "LONG_REPLY_SECONDS", 0.3)
    binary = find_install().binary
    binary.write_text("#!/bin/sh\necho still loading\nexec sleep 60\n")
    with pytest.raises(GameError, match=r"(?s)did not listen within 1 s.*still loading"):
        Game(find_install())
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"waiting for StarCraft II ({binary}, port ")
    assert told.endswith("to listen, up to 1 s")
    env = make_real("3m")
    with pytest.raises(GameError, match=r"smac/3m, environment 0: .*did not listen within 1 s"):
        env.reset(0)
    assert len(launches) == 1, "a game that has never played is not launched again"
    env.close()


@pytest.mark.usefixtures("faults")
def test_a_peer_that_is_no_game_is_given_up(monkeypatch):
    """Something else listens, and says nothing."""
    monkeypatch.setattr(game_module, "REPLY_SECONDS", 0.5)
    find_install().binary.write_text("#!/bin/sh\nexec sleep 60\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(game_module, "_pick_port", lambda: silent.getsockname()[1])
        with pytest.raises(GameError, match="did not accept a connection"):
            Game(find_install())


@pytest.mark.usefixtures("faults")
def test_a_peer_without_the_game_s_address_is_given_up(monkeypatch):
    """The game says so too, before it is ready; but not for ever."""
    monkeypatch.setattr(game_module, "LAUNCH_SECONDS", 1.0)
    find_install().binary.write_text("#!/bin/sh\nexec sleep 60\n")
    asked = []

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response_only(404)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(game_module, "_pick_port", lambda: server.server_port)
    try:
        with pytest.raises(GameError, match="did not listen within 1 s"):
            Game(find_install())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(asked) > 3
    assert set(asked) == {"/sc2api"}


@pytest.mark.usefixtures("install")
def test_a_port_in_use_is_named_and_another_one_taken(monkeypatch, caplog):
    pick = game_module._pick_port
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", 0))  # it does not listen, so that it does not swallow the connection
        port = blocker.getsockname()[1]
        ports = iter([port])
        monkeypatch.setattr(game_module, "_pick_port", lambda: next(ports, None) or pick())
        env = make_real("3m")
        same_obs(env.reset(3), make("3m").reset(3))
        assert f"port {port}, ended with code 1" in caplog.text
        assert f"cannot listen at 127.0.0.1:{port}" in caplog.text
        env.close()


@pytest.mark.usefixtures("install")
def test_replays_are_saved_and_can_be_opened(tmp_path):
    folder = tmp_path / "deep" / "replays"
    env = make_real("3m", replay_dir=str(folder), max_steps=5)
    env.reset(1)
    env.reset(2)
    assert not list(folder.iterdir()), "nothing was played"
    for _ in range(5):
        env.step(np.ones(3, int))
    env.reset()
    for _ in range(3):
        env.step(np.ones(3, int))
    env.reset(3)
    env.step(np.ones(3, int))
    env.close()
    replays = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(replays) == 2
    assert all(path.name.startswith("3m-") and path.suffix == ".SC2Replay" for path in replays)
    game = Game(find_install())
    infos = []
    for path in replays:
        request = api.Request(replay_info=api.RequestReplayInfo(replay_data=path.read_bytes()))
        infos.append(game.ask(request)[0].replay_info)
    game.close()
    assert [info.local_map_path for info in infos] == ["SMAC_Maps/3m.SC2Map"] * 2
    assert [info.game_duration_loops for info in infos] == [8 * 8 + 2, 8]


@pytest.mark.usefixtures("install")
def test_a_replay_that_cannot_be_written_does_not_stop_a_run(tmp_path, caplog):
    env = make_real("3m", replay_dir=str(tmp_path / "folder"))
    env.reset(0)
    env.step(np.ones(3, int))
    (tmp_path / "folder").rmdir()
    same_obs(env.reset(4), make("3m").reset(4))
    assert "smac/3m: no replay is saved" in caplog.text
    env.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"replay_dir='.*file/deeper', which cannot be made"):
        make_real("3m", replay_dir=str(tmp_path / "file" / "deeper"))


RUN = """
import os, signal, sys, time
import numpy as np
from marl.envs.smac import batch
vector = batch("3m", 2, backend="sc2")
vector.reset([0, 1])
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise ValueError", "del vector", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_is_left_behind(install, tmp_path, end):
    command, environment = [sys.executable, "-c", RUN.format(end=end)], {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "ready\n", done.stderr
    wait_until_gone(install)
    wait_until_gone(tmp_path)
    assert list(tmp_path.glob("sc-*")) == []


def test_a_proxy_for_the_web_is_not_asked(install, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.setattr(game_module, "LAUNCH_SECONDS", 30.0)
    env = make_real("3m")
    env.reset(0)
    env.close()


def test_a_game_that_nobody_watches_over_is_ended(install, monkeypatch):
    def refuse(*_):
        raise OSError("no more processes")

    monkeypatch.setattr(game_module, "_watch", refuse)
    env = make_real("3m")
    with pytest.raises(GameError, match="no more processes"):
        env.reset(0)
    wait_until_gone(install)


@pytest.mark.usefixtures("install")
def test_an_interrupt_from_the_keyboard_is_not_for_the_game():
    """An interrupt reaches every process of the terminal's group, so the game has a group of its own."""
    env = make_real("3m")
    env.reset(0)
    assert os.getpgid(env._battles._instances[0]._game.pid) != os.getpgid(0)
    env.close()


def test_a_stopped_game_is_killed(install, monkeypatch):
    monkeypatch.setattr(game_module, "REPLY_SECONDS", 1.0)
    env = make_real("3m")
    env.reset(0)
    pid = env._battles._instances[0]._game.pid
    os.kill(pid, signal.SIGSTOP)
    assert env.step(np.ones(3, int)).truncated
    assert pid not in processes(install)
    env.close()


@pytest.mark.usefixtures("install")
def test_a_closed_game_cannot_be_asked():
    game = Game(find_install())
    game.close()
    game.close()
    assert game.pid is None
    with pytest.raises(GameError, match=r"closed\) was asked something after its end"):
        game.ask(api.Request(ping=api.RequestPing()))
