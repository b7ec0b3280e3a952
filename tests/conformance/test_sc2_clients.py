"""The server does what SMACv2's client and common bots ask for, and refuses the rest by name."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")

from marl.envs.sc2.server import NOT_SERVED, Session
from marl.envs.smac.sc2 import serve
from marl.envs.smac.sc2.embedded_game import FLAT_MAP, FLAT_TYPES
from marl.envs.smac.sc2.game_data import FIRST_AGENT_TYPE
from marl.envs.smac.sc2.serve import BUILD, VERSIONS, SmacLibrary, make_install
from tests.support.sc2 import Asker, api, creation, joining

buffs, upgrades = import_module("pysc2.lib.buffs"), import_module("pysc2.lib.upgrades")

ALLY, ENEMY = 1, 4
STOP, MOVE, ATTACK, HEAL = 4, 16, 23, 386
MARINE, MEDIVAC, ZEALOT = 48, 54, 73
OWN = {kind: FIRST_AGENT_TYPE + rank for rank, kind in enumerate(sorted(FLAT_TYPES))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_install(tmp_path_factory.mktemp("game"))


@pytest.fixture
def ask(folder, tmp_path):
    return Asker(Session(SmacLibrary(), VERSIONS[BUILD], folder, tmp_path).handle)


def new_unit(kind, owner, x, y, **fields):
    return {"create_unit": {"unit_type": kind, "owner": owner, "pos": {"x": x, "y": y}, **fields}}


def debug(ask, *commands):
    return ask(debug={"debug": commands})


def test_an_attack_move_fights_on_the_way_and_then_goes_on(ask):
    ask.begin(FLAT_MAP)
    debug(ask, new_unit(OWN["marine"], 1, 4, 16, quantity=5), new_unit(MARINE, 2, 14, 16))
    tags = [unit.tag for unit in ask.units(ALLY)]
    for tag in tags:
        assert ask.command(ATTACK, tag, place=(28, 16)) == 1
    shown = ask.units(ALLY)[0].orders[0]
    assert (shown.ability_id, shown.target_world_space_pos.x, shown.target_unit_tag) == (ATTACK, 28, 0)
    fought = 0
    for _ in range(40):
        ask(step={"count": 4})
        units = ask.units()
        fought += any(unit.engaged_target_tag for unit in units)
        if not [unit for unit in units if unit.alliance == ENEMY]:
            break
        for unit in units:  # bots repeat the order; it must not undo a wind-up
            if unit.alliance == ALLY:
                ask.command(ATTACK, unit.tag, place=(28, 16))
    else:
        raise AssertionError("the enemy lives")
    assert fought
    before = max(unit.pos.x for unit in ask.units(ALLY))
    ask(step={"count": 200})
    assert before < 20 < min(unit.pos.x for unit in ask.units(ALLY))
    assert any(not unit.orders for unit in ask.units(ALLY)), "the first one has arrived"


def test_a_move_passes_an_enemy_by_and_an_attack_move_spares_a_flyer_that_it_cannot_hit(ask):
    ask.begin(FLAT_MAP)
    debug(ask, new_unit(OWN["marauder"], 1, 4, 16), new_unit(MEDIVAC, 2, 10, 16))
    (tag,) = (unit.tag for unit in ask.units(ALLY))
    ask.command(ATTACK, tag, place=(20, 16))
    ask(step={"count": 160})
    own, flyer = ask.units()
    assert (own.pos.x > 19, flyer.health) == (True, 150)
    debug(ask, new_unit(ZEALOT, 2, 12, 16), {"kill_unit": {"tag": [flyer.tag]}})
    ask.command(MOVE, tag, place=(4, 28))
    ask(step={"count": 16})
    assert [unit.shield for unit in ask.units(ENEMY)] == [50], "nobody shot at it"


def test_smacv2_starts_an_episode(ask):
    """Its client counts the unit table, creates both teams, waits for them, and kills all units at the end."""
    assert f"SMAC_Maps/{FLAT_MAP}.SC2Map" in ask(available_maps={}).available_maps.local_map_paths
    ask(create_game=creation(FLAT_MAP))
    ask(join_game=joining())
    assert ask.units() == []
    assert [player.race_actual for player in ask(game_info={}).game_info.player_info] == [1, 1]
    table = ask(data={"unit_type_id": True}).data.units
    assert [row.unit_id for row in table] == list(range(len(table)))
    first = len(table) - 9
    assert [row.name.removesuffix("Agent") for row in table[first:]] == sorted(kind.title() for kind in FLAT_TYPES)
    for episode in range(2):
        team = [(first + 4, 5.0 + episode), (first + 4, 6.0), (first + 3, 7.0), (first + 5, 8.0)]
        enemy = [(MARINE, 25.0), (MARINE, 25.0), (51, 25.0)]
        commands = [new_unit(kind, 1, x, 16, quantity=1) for kind, x in team]
        assert not debug(ask, *commands).error
        assert not debug(ask, *(new_unit(kind, 2, x, 16, quantity=1) for kind, x in enemy)).error
        ask(step={"count": 1})
        mine, theirs = ask.units(ALLY), ask.units(ENEMY)
        assert sorted(unit.unit_type for unit in mine) == sorted(kind for kind, _ in team)
        assert [unit.unit_type for unit in theirs] == [kind for kind, _ in enemy]
        assert all(unit.owner == 1 and unit.health == unit.health_max for unit in mine)
        assert [unit.energy for unit in mine if unit.unit_type == first + 5] == [pytest.approx(50, abs=0.1)]
        places = np.array([(unit.pos.x, unit.pos.y) for unit in theirs])
        assert (np.hypot(*(places[0] - places[1])) > 0.7, abs(places - (25, 16)).max() < 2) == (True, True)
        ask(step={"count": 80})
        assert min(unit.pos.x for unit in ask.units(ENEMY)) < 20, "idle enemies go for the nearest agent"
        ask.kill(*(unit.tag for unit in ask.units()))
        ask(step={"count": 2})
        assert ask.units() == []


def test_units_are_created_in_the_middle_of_a_fight(ask):
    """Tags, orders, targets and missiles of existing units do not change."""
    ask.begin("2s3z")
    before = ask.units()
    stalker, target = before[0].tag, before[-1].tag
    ask.command(ATTACK, stalker, target=target)
    ask(step={"count": 100})
    old = {unit.tag: unit for unit in ask.units()}
    assert not debug(ask, new_unit(ZEALOT, 1, 16, 16, quantity=3), new_unit(MARINE, 2, 30, 16)).error
    new = {unit.tag: unit for unit in ask.units()}
    assert {tag: new[tag] for tag in old} == old
    added = [unit for tag, unit in new.items() if tag not in old]
    assert sorted((unit.owner, unit.unit_type) for unit in added) == [(1, ZEALOT)] * 3 + [(2, MARINE)]
    ask(quick_save={})
    ask(step={"count": 60})
    after = ask.observe().observation.raw_data
    ask.kill(*new)
    ask(quick_load={})
    assert {unit.tag: unit for unit in ask.units()} == new
    ask(step={"count": 60})
    assert ask.observe().observation.raw_data == after
    ask.kill(*(unit.tag for unit in ask.units()))
    ask(step={"count": 2})
    assert [unit.unit_type for unit in ask.units()] == [unit.unit_type for unit in before], "the map's own sides again"


def test_a_replay_shows_created_units(ask):
    ask.begin(FLAT_MAP)
    debug(ask, new_unit(OWN["zealot"], 1, 8, 16), new_unit(ZEALOT, 2, 12, 16))
    ask(step={"count": 40})
    units = ask.units()
    data = ask(save_replay={}).save_replay.data
    ask(start_replay={"replay_data": data, "options": {"raw": True}})
    ask(step={"count": 40})
    assert ask.units() == units


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (new_unit(MARINE, 3, 5, 5), "owner=3"),
        (new_unit(99999, 1, 5, 5), "unit_type=99999"),
        (new_unit(OWN["marine"], 2, 5, 5), "unknown for player 2"),
        (new_unit(MARINE, 1, 40, 5), "outside the map"),
        (new_unit(MARINE, 1, float("nan"), 5), "outside the map"),
        (new_unit(MARINE, 1, 5, 5, quantity=200), "room for"),
    ],
)
def test_a_unit_that_cannot_be_created_is_refused_and_nothing_is_done(ask, command, part):
    ask.begin(FLAT_MAP)
    response = debug(ask, new_unit(MARINE, 1, 5, 5), command)
    assert part in response.error[0]
    assert "server failed" not in response.error[0]
    assert ask.units() == []


def test_upgrades_and_buffs_have_the_ids_and_names_of_the_game(ask):
    ask.begin()
    tables = ask(data={"upgrade_id": True, "buff_id": True}).data
    assert {row.upgrade_id: row.name for row in tables.upgrades} == {
        each.value: each.name for each in upgrades.Upgrades
    }
    assert {row.buff_id: row.name for row in tables.buffs} == {each.value: each.name for each in buffs.Buffs}
    assert len(tables.units) == len(tables.abilities) == 0


LAYERS = {"width": 32, "resolution": {"x": 64, "y": 64}, "minimap_resolution": {"x": 32, "y": 32}}


def unpack(layers):
    """Each layer as an array (rows, columns), as pysc2's `Feature.unpack_layer` reads it."""
    found = {}
    for field, image in layers.ListFields():
        assert image.bits_per_pixel in (1, 8, 32)
        data = np.frombuffer(image.data, np.int32 if image.bits_per_pixel == 32 else np.uint8)
        data = np.unpackbits(data) if image.bits_per_pixel == 1 else data
        found[field.name] = data[: image.size.x * image.size.y].reshape(image.size.y, image.size.x)
    return found


def test_feature_layers_as_pysc2_reads_them(ask):
    ask(create_game=creation("MMM"))
    ask(join_game={"race": 1, "options": {"raw": True, "feature_layer": LAYERS}})
    assert ask(game_info={}).game_info.options.feature_layer.resolution.x == 64
    observation = ask.observe().observation
    layers, units = observation.feature_layer_data, observation.raw_data.units
    small, screen = unpack(layers.minimap_renders), unpack(layers.renders)
    assert (small["player_relative"].shape, screen["unit_type"].shape) == ((32, 32), (64, 64))
    for unit in units:
        row, column = 31 - int(unit.pos.y), int(unit.pos.x)
        assert small["player_relative"][row, column] in {1, 4}
        row, column = 63 - int(2 * unit.pos.y), int(2 * unit.pos.x)
        assert screen["unit_type"][row, column] in {other.unit_type for other in units}
        assert screen["unit_hit_points_ratio"][row, column] == 255
    assert set(np.unique(screen["unit_type"])) == {0, *(unit.unit_type for unit in units)}
    assert set(np.unique(screen["player_relative"])) == {0, 1, 4}
    assert set(np.unique(small["height_map"])) == {127}
    assert small["camera"].all()
    assert layers.renders.unit_density.bits_per_pixel == 8
    debug(ask, {"kill_unit": {"tag": [unit.tag for unit in units if unit.alliance == ENEMY]}})
    camera = {"action_raw": {"camera_move": {"center_world_space": {"x": 0, "y": 0}}}}
    ask(action={"actions": [camera]})
    layers = ask.observe().observation.feature_layer_data
    small, screen = unpack(layers.minimap_renders), unpack(layers.renders)
    assert set(np.unique(small["player_relative"])) == {0, 1}
    assert set(np.unique(screen["height_map"][:32, 32:])) == {127}
    assert not screen["height_map"][32:].any(), "beyond the edge of the map"


@pytest.mark.parametrize("change", [{"resolution": {"x": 0, "y": 64}}, {"minimap_resolution": {"x": 9999, "y": 32}}])
def test_feature_layers_of_no_size_are_refused(ask, change):
    ask(create_game=creation())
    response = ask(join_game={"race": 1, "options": {"raw": True, "feature_layer": {**LAYERS, **change}}})
    assert response.join_game.error == api.ResponseJoinGame.FeatureUnsupported
    assert next(iter(change)) in response.join_game.error_details


def test_help_and_fidelity_page_list_what_is_not_served(capsys):
    with pytest.raises(SystemExit):
        serve.parse_arguments(["--help"])
    text = capsys.readouterr().out
    assert all(what in text for what, _ in NOT_SERVED)
    assert "FIDELITY.md" in text
    page = (Path(serve.__file__).parents[1] / "FIDELITY.md").read_text("utf-8")
    assert all(f"| {what} | {answer} |" in page for what, answer in NOT_SERVED)
