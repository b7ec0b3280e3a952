"""Games that go on from a save, begin again or are played back, on the server of the StarCraft II API."""

import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")

from marl.envs.sc2.server import Session
from marl.envs.sc2.server_game import read_replay
from marl.envs.smac.sc2.serve import BUILD, VERSIONS, SmacLibrary, make_install
from tests.support.sc2 import Asker, api, creation, joining

ATTACK, MOVE = 23, 16
RAW = api.InterfaceOptions(raw=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_install(tmp_path_factory.mktemp("game"))


@pytest.fixture
def new(folder, tmp_path):
    return lambda: Asker(Session(SmacLibrary(), VERSIONS[BUILD], folder, tmp_path).handle)


def fight(ask, steps, count=8):
    """A few steps of a battle in which everything happens: orders, a hit, chat, a death, a respawn."""
    for number in range(steps):
        units = ask.units()
        mine = [unit for unit in units if unit.alliance == 1]
        theirs = [unit for unit in units if unit.alliance == 4]
        for unit in mine[:-1]:
            if theirs:
                ask.command(ATTACK, unit.tag, target=theirs[number % len(theirs)].tag)
        if mine:
            ask.command(MOVE, mine[-1].tag, place=(3.3 + number, 15.7))
        if number == 5:
            ask(action={"actions": [{"action_chat": {"message": "now"}}]})
        if number == 20:
            ask.kill(*(unit.tag for unit in units))
        ask(step={"count": count})


def shown(ask):
    """All that an observation tells of the field."""
    observation = ask.observe().observation
    return observation.raw_data.SerializeToString(deterministic=True), observation.game_loop


def watch(ask, data, count):
    """Start a replay and see it to the end; returns all observations."""
    response = ask(start_replay={"replay_data": data, "options": RAW})
    assert not response.start_replay.HasField("error"), response
    assert response.status == api.in_replay
    seen = [shown(ask)]
    while ask(ping={}).status == api.in_replay:
        ask(step={"count": count})
        seen.append(shown(ask))
        assert len(seen) < 1000
    return seen


def test_a_replay_is_the_game_again(new):
    ask, other = new(), new()
    ask.begin("2s3z", None)
    seen = [shown(ask)]
    for _ in range(30):
        fight(ask, 1)
        seen.append(shown(ask))
    data = ask(save_replay={}).save_replay.data
    assert watch(other, data, 8) == seen
    assert other(step={"count": 8}).error


@pytest.mark.parametrize("count", [1, 3, 5, 64])
def test_a_replay_may_be_watched_at_any_pace(new, count):
    """The engine rounds at the end of a step, so that steps of other sizes would make another battle."""
    ask, other = new(), new()
    ask.begin("3m", 5)
    seen = {0: shown(ask)[0]}
    for size in (8, 8, 3, 8, 1, 16, 8) * 4:
        fight(ask, 1, size)
        field, loop = shown(ask)
        seen[loop] = field
    watched = watch(other, ask(save_replay={}).save_replay.data, count)
    loops = [loop for _, loop in watched]
    assert loops[-1] == max(seen)
    common = [(field, loop) for field, loop in watched if loop in seen]
    assert len(common) >= 2
    assert len(loops) == len(set(loops))
    tags = [[unit.tag for unit in api_units(field)] for field, _ in common]
    assert tags == [[unit.tag for unit in api_units(seen[loop])] for _, loop in common]
    places = [[(unit.pos.x, unit.pos.y, unit.health) for unit in api_units(field)] for field, _ in common]
    assert places == [[(unit.pos.x, unit.pos.y, unit.health) for unit in api_units(seen[loop])] for _, loop in common]


def api_units(field):
    return type(api.Observation().raw_data).FromString(field).units


def test_a_replay_is_told_about_without_being_played(new, folder):
    ask = new()
    ask(create_game=creation("MMM"))
    ask(join_game={"race": 1, "player_name": "me", "options": RAW})
    ask(step={"count": 224})
    ask(debug={"debug": [{"end_game": {"end_result": 2}}]})
    data = ask(save_replay={}).save_replay.data
    info = new()(replay_info={"replay_data": data}).replay_info
    assert (info.map_name, info.local_map_path) == ("MMM", "SMAC_Maps/MMM.SC2Map")
    assert (info.game_duration_loops, info.base_build, info.game_version) == (224, 75689, "4.10.0.75689")
    assert info.game_duration_seconds == pytest.approx(10.0)
    me, other = info.player_info
    assert (me.player_info.player_name, me.player_result.result, other.player_result.result) == ("me", 1, 2)
    path = folder / "Replays" / "one.SC2Replay"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    assert new()(replay_info={"replay_path": "one.SC2Replay"}).replay_info == info
    assert new()(start_replay={"replay_path": str(path), "options": RAW}).status == api.in_replay


def test_what_is_no_replay_is_refused_by_name(new):
    ask = new()
    ask.begin()
    fight(ask, 3)
    data = ask(save_replay={}).save_replay.data
    damaged = [b"", b"MPQ\x1b", data[:10], data[:40], data[:-5], data[:-1] + b"\x00", data[:60] + b"!" + data[61:]]
    for wrong in damaged:
        response = ask(start_replay={"replay_data": wrong, "options": RAW})
        assert response.start_replay.error == api.ResponseStartReplay.InvalidReplayData, wrong
        assert response.start_replay.error_details
        assert response.status == api.in_game
        assert ask(replay_info={"replay_data": wrong}).replay_info.error == api.ResponseReplayInfo.ParsingError
    start = {"replay_data": data, "options": RAW}
    cases = [
        ("MissingReplay", {"options": RAW}),
        ("MissingOptions", {"replay_data": data}),
        ("InvalidReplayPath", {"replay_path": "none.SC2Replay", "options": RAW}),
        ("InvalidObservedPlayerId", {**start, "observed_player_id": 2}),
        ("LaunchError", {**start, "options": {"feature_layer": {"width": 24}}}),
    ]
    for name, request in cases:
        error = ask(start_replay=request).start_replay.error
        assert error == api.ResponseStartReplay.Error.Value(name)
    assert "realtime" in ask(start_replay={**start, "realtime": True}).error[0]
    assert ask.observe().observation.game_loop == 24


def test_a_replay_begins_nothing_but_itself(new):
    ask = new()
    ask.begin()
    fight(ask, 2)
    data = ask(save_replay={}).save_replay.data
    watch(ask, data, 8)
    assert "start_replay" in ask(restart_game={}).error[0]
    assert ask(leave_game={}).status == api.launched
    ask.begin("2s3z")
    assert len(ask.units()) == 10


def test_a_quick_save_is_gone_back_to_exactly(new):
    ask = new()
    ask.begin("MMM", 11)
    assert "quick_save" in ask(quick_load={}).error[0]
    fight(ask, 15)
    ask(quick_save={})
    before = shown(ask)
    fight(ask, 12)
    first = shown(ask)
    for _ in range(2):
        ask(action={"actions": [{"action_chat": {"message": "that did not happen"}}]})
        ask(quick_load={})
        response = ask.observe()
        assert (len(response.chat), len(response.actions)) == (0, 0)
        assert shown(ask) == before
        fight(ask, 12)
        assert shown(ask) == first
    other = new()
    assert watch(other, ask(save_replay={}).save_replay.data, 8)[-1] == first


def test_a_seed_names_a_game_and_none_draws_one(new):
    def play(ask):
        fight(ask, 24)
        return shown(ask)[0]

    ask = new()
    ask.begin("3m", 9)
    first = play(ask)
    ask(restart_game={})
    assert play(ask) == first
    ask(leave_game={})
    ask.begin("3m", 9)
    assert play(ask) == first
    ask(create_game=creation("3m", 10))
    ask(join_game=joining())
    assert play(ask) != first
    seeds = set()
    for _ in range(3):
        ask.begin("3m", None)
        info, requests = read_replay(ask(save_replay={}).save_replay.data)
        assert info.map_name == "3m"
        seeds.add(requests[0].create_game.random_seed)
    assert len(seeds) == 3
