"""The server of the StarCraft II API: its states, errors and messages."""

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")

from marl.envs.sc2.server import Session
from marl.envs.sc2.server_game import ServerGame
from marl.envs.smac.sc2.serve import BUILD, VERSIONS, SmacLibrary, make_install
from tests.support.sc2 import Asker, api, creation, joining, request

ALLY, ENEMY = 1, 4
STOP, MOVE, ATTACK, HEAL, SMART = 4, 16, 23, 386, 1
LAYERS = {"resolution": {"x": 8, "y": 8}, "minimap_resolution": {"x": 8, "y": 8}}
RAW = api.InterfaceOptions(raw=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_install(tmp_path_factory.mktemp("game"))


@pytest.fixture
def ask(folder, tmp_path):
    return Asker(Session(SmacLibrary(), VERSIONS[BUILD], folder, tmp_path).handle)


@pytest.fixture
def another(folder, tmp_path):
    return lambda: Asker(Session(SmacLibrary(), VERSIONS[BUILD], folder, tmp_path).handle)


def end_game(ask, result=2):
    return ask(debug={"debug": [{"end_game": {"end_result": result}}]})


def enter(ask, state):
    """Bring a new session into a state."""
    if state in ("init_game", "in_game", "ended"):
        ask(create_game=creation())
    if state in ("in_game", "ended"):
        ask(join_game=joining())
    if state == "ended":
        end_game(ask)
    if state == "in_replay":
        ask.begin()
        ask(step={"count": 8})
        ask(start_replay={"replay_data": ask(save_replay={}).save_replay.data, "options": RAW})
    assert api.Status.Name(ask(ping={}).status) == state


ALWAYS = {"ping", "available_maps", "save_map", "replay_info"}
SHOWING = {"game_info", "observation", "data", "save_replay", "leave_game"}
BEGINNING = {"create_game", "start_replay"}
ALLOWED = {
    "launched": BEGINNING,
    "init_game": {"join_game"},
    "in_game": {"restart_game", "action", "step", "query", "debug", "quick_save", "map_command"} | SHOWING | BEGINNING,
    "in_replay": {"step", "query", "obs_action"} | SHOWING | BEGINNING,
    "ended": {"restart_game"} | SHOWING | BEGINNING,
}
EMPTY = [field.name for field in api.Request.DESCRIPTOR.oneofs_by_name["request"].fields]


@pytest.mark.parametrize("state", ALLOWED)
def test_a_state_allows_its_requests_and_no_others(another, state):
    for name in EMPTY:
        if name in ("quit", "quick_load"):
            continue
        ask = another()
        enter(ask, state)
        before = ask(ping={}).status
        response = ask(**{name: {}})
        if name in ALLOWED[state] | ALWAYS:
            assert not response.error, (name, response.error)
            assert response.WhichOneof("response") == name
        else:
            (message,) = response.error
            ended = state == "ended" and name in ("step", "action")
            assert ("Game has already ended" if ended else f"not allowed in the state {state}") in message
            assert message.startswith(f"{name}: ")
            assert response.WhichOneof("response") is None
            assert response.status == before == ask(ping={}).status


def test_every_kind_of_request_is_answered_by_name(ask):
    """None is left to the fallback for what the server does not know."""
    enter(ask, "in_game")
    for name in EMPTY:
        response = ask(**{name: {}})
        assert not any("AttributeError" in text or "server failed" in text for text in response.error), name


def test_the_number_of_a_request_is_echoed_and_not_invented(ask):
    assert ask(ping={}, id=77).id == 77
    assert ask(step={}, id=78).id == 78
    assert not ask(ping={}).HasField("id")


@pytest.mark.parametrize("message", [b"", b"\xff\xff\xff", b"\x9a\x01", "täxt".encode()])
def test_what_is_no_request_gets_an_error_and_the_state_stays(ask, message):
    enter(ask, "in_game")
    response = api.Response.FromString(ask.handle(message))
    assert len(response.error) == 1
    assert response.status == api.in_game


def altered(change):
    create = creation()
    change(create)
    return create


def set_players(*kinds):
    def change(create):
        del create.player_setup[:]
        create.player_setup.extend(api.PlayerSetup(type=kind) for kind in kinds)

    return change


@pytest.mark.parametrize(
    ("change", "name", "part"),
    [
        (lambda c: c.ClearField("local_map"), "MissingMap", "map_path"),
        (lambda c: setattr(c, "battlenet_map_name", "Acropolis LE"), "InvalidMapName", "Acropolis LE"),
        (lambda c: setattr(c.local_map, "map_path", "SMAC_Maps/no.SC2Map"), "InvalidMapPath", "SMAC_Maps/no.SC2Map"),
        (lambda c: setattr(c.local_map, "map_path", "SMAC_Maps"), "InvalidMapPath", "SMAC_Maps"),
        (lambda c: c.local_map.MergeFrom(api.LocalMap(map_path="a/5m.SC2Map", map_data=b"x")), "InvalidMapName", "3m"),
        (lambda c: setattr(c.local_map, "map_data", b""), "InvalidMapData", "empty"),
        (set_players(), "MissingPlayerSetup", "Participant"),
        (set_players(1, 1), "MultiplayerUnsupported", "2 players"),
        (set_players(2), "InvalidPlayerSetup", "Computer"),
        (set_players(1, 3), "InvalidPlayerSetup", "Observer"),
        (set_players(1, 2, 2), "InvalidPlayerSetup", "at most one"),
    ],
)
def test_a_game_that_cannot_be_created(ask, change, name, part):
    response = ask(create_game=altered(change))
    assert response.create_game.error == api.ResponseCreateGame.Error.Value(name)
    assert part in response.create_game.error_details
    assert response.status == api.launched
    assert not response.error


@pytest.mark.parametrize(
    ("join", "name"),
    [
        ({"options": RAW}, "MissingParticipation"),
        ({"race": 1}, "MissingOptions"),
        ({"observed_player_id": 1, "options": RAW}, "InvalidObservedPlayerId"),
        ({"race": 1, "options": RAW, "server_ports": {"game_port": 1, "base_port": 2}}, "FeatureUnsupported"),
        ({"race": 1, "options": {"feature_layer": {"width": 24}}}, "FeatureUnsupported"),  # no resolution
        ({"race": 1, "options": {"raw": True, "render": {"resolution": {"x": 8, "y": 8}}}}, "FeatureUnsupported"),
    ],
)
def test_a_game_that_cannot_be_joined(ask, join, name):
    enter(ask, "init_game")
    response = ask(join_game=join)
    assert response.join_game.error == api.ResponseJoinGame.Error.Value(name)
    assert response.join_game.error_details
    assert response.status == api.init_game
    assert ask(join_game=joining()).join_game.player_id == 1


def test_realtime_is_refused(ask):
    response = ask(create_game=creation(realtime=True))
    assert "realtime" in response.error[0]
    assert response.status == api.launched


def test_game_info_tells_the_players_and_echoes_the_options(ask):
    ask(create_game=creation("6h_vs_8z"))
    options = {"raw": True, "score": True, "show_cloaked": True, "raw_affects_selection": True}
    ask(join_game={"race": 4, "player_name": "me", "options": options})
    info = ask(game_info={}).game_info
    assert info.options == api.InterfaceOptions(**options)
    assert (info.map_name, info.local_map_path) == ("6h_vs_8z", "SMAC_Maps/6h_vs_8z.SC2Map")
    me, other = info.player_info
    assert (me.player_id, me.type, me.race_requested, me.race_actual, me.player_name) == (1, 1, 4, 2, "me")
    assert (other.player_id, other.type, other.race_actual, other.difficulty) == (2, 2, 3, 7)


def test_an_observation_holds_what_was_asked_for(ask):
    ask(create_game=creation())
    ask(join_game={"race": 1, "options": {"score": True}})
    observation = ask.observe().observation
    assert observation.HasField("score")
    assert not observation.HasField("raw_data")


def test_chat_comes_back_once_and_pictures_are_not_acted_on(ask):
    ask.begin()
    actions = [
        {"action_chat": {"channel": 1, "message": "gl hf"}},
        {},
        {"action_feature_layer": {"camera_move": {"center_minimap": {"x": 1, "y": 1}}}},
        {"action_raw": {"camera_move": {"center_world_space": {"x": 1, "y": 1}}}},
        {"action_raw": {"toggle_autocast": {"ability_id": HEAL}}},
    ]
    assert list(ask(action={"actions": actions}).action.result) == [1, 1, 2, 1, 2]
    (chat,) = ask.observe().chat
    assert (chat.player_id, chat.message) == (1, "gl hf")
    assert ask.observe().chat == []


def test_debug_commands_are_carried_out_together_or_not_at_all(ask):
    ask.begin()
    tag = ask.units()[0].tag
    response = ask(debug={"debug": [{"kill_unit": {"tag": [tag]}}, {"create_unit": {"unit_type": 1, "owner": 1}}]})
    assert "unit_type=1" in response.error[0]
    assert response.WhichOneof("response") is None
    assert len(ask.units()) == 6
    assert "game_state" in ask(debug={"debug": [{"game_state": 6}]}).error[0]
    assert not ask(debug={"debug": [{"draw": {}}, {"game_state": 1}, {"score": {"score": 1.0}}]}).error
    for kind, value in ((2, 99.0), (3, 5.0), (1, 5.0)):
        ask(debug={"debug": [{"unit_value": {"unit_tag": tag, "unit_value": kind, "value": value}}]})
    unit = ask.units()[0]
    assert (unit.health, unit.shield, unit.energy) == (45.0, 0.0, 0.0)


@pytest.mark.parametrize(("end", "results"), [(1, [2, 1]), (2, [1, 2])])
def test_a_game_that_is_over_still_shows_itself_and_plays_no_more(ask, end, results):
    ask.begin()
    assert ask.observe().player_result == []
    assert end_game(ask, end).status == api.ended
    for _ in range(2):
        assert [result.result for result in ask.observe().player_result] == results
    assert "Game has already ended" in ask(step={"count": 8}).error[0]
    assert ask(restart_game={}).status == api.in_game
    assert len(ask.units()) == 6
    assert ask.observe().player_result == []


def test_a_step_without_a_count_is_one_loop_and_none_is_endless(ask):
    ask.begin()
    assert ask(step={}).step.simulation_loop == 1
    assert ask(step={"count": 0}).step.simulation_loop == 1
    assert "count=4000000000" in ask(step={"count": 4_000_000_000}).error[0]
    assert ask.observe().observation.game_loop == 1


def test_maps_on_disc_and_maps_that_are_sent(ask, folder, tmp_path):
    (folder / "Maps" / "Acropolis.SC2Map").write_bytes(b"not ours")
    assert list(ask(available_maps={}).available_maps.local_map_paths) == sorted(
        f"SMAC_Maps/{path.name}" for path in (folder / "Maps" / "SMAC_Maps").iterdir()
    )
    create = creation()
    create.local_map.map_path = "sent/2s3z.SC2Map"
    assert ask(create_game=create).create_game.HasField("error")
    assert not ask(save_map={"map_path": "sent/2s3z.SC2Map", "map_data": b"x"}).save_map.HasField("error")
    assert (tmp_path / "sent" / "2s3z.SC2Map").read_bytes() == b"x"
    assert ask(create_game=create).status == api.init_game
    for path in ("../evil.SC2Map", "/tmp/evil.SC2Map", "", "a/../../b.SC2Map"):
        assert ask(save_map={"map_path": path, "map_data": b"x"}).save_map.error == 1
    assert ask(save_map={"map_path": "empty.SC2Map"}).save_map.error == 1


def test_no_message_breaks_the_server(another, monkeypatch):
    """Requests with a few bytes changed: whatever they mean, the answer is a Response of the state that follows."""
    monkeypatch.setattr(ServerGame, "_test_process", lambda *_: None)  # some come to mean test_process
    random, ask = np.random.default_rng(0), another()
    ask.begin("MMM")
    tags = [unit.tag for unit in ask.units()]
    command = {"ability_id": ATTACK, "unit_tags": tags[:3], "target_unit_tag": tags[-1]}
    move = {"ability_id": MOVE, "unit_tags": tags[:8], "target_world_space_pos": {"x": 5.0, "y": 25.0}}
    requests = [
        request(action={"actions": [{"action_raw": {"unit_command": command}}, {"action_chat": {"message": "x"}}]}),
        request(action={"actions": [{"action_raw": {"unit_command": move}}]}),
        request(observation={"game_loop": 9}, id=1),
        request(step={"count": 8}),
        request(query={"pathing": [{"unit_tag": tags[0], "end_pos": {"x": 3.0, "y": 9.0}}]}),
        request(debug={"debug": [{"unit_value": {"unit_tag": tags[0], "unit_value": 2, "value": 4.0}}]}),
        request(debug={"debug": [{"create_unit": {"unit_type": 48, "owner": 2, "pos": {"x": 9.0, "y": 16.0}}}]}),
        request(create_game=creation("2s3z")),
        request(join_game=joining(score=True, feature_layer=LAYERS)),
        request(start_replay={"replay_data": ask(save_replay={}).save_replay.data, "options": RAW}),
    ]
    for number in range(3000):
        message = bytearray(requests[random.integers(len(requests))])
        for _ in range(random.integers(3)):
            message[random.integers(len(message))] = random.integers(256)
        if number % 50 == 0:
            ask = another()
            ask.begin("MMM")
        response = api.Response.FromString(ask.handle(bytes(message)))
        assert not any("server failed" in text for text in response.error), (bytes(message), response.error)
        assert response.status == ask(ping={}).status
