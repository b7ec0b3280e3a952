"""SMAC in StarCraft II: pysc2, a process, a websocket and the protocol, with the embedded engine in the game's place.

The game itself is not here. The server that stands for it is started as the game is, and plays the same battles as
the embedded backend, so that the two backends must agree in every bit.
"""

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")
if not Path("/proc/self/stat").exists():
    pytest.skip("processes are looked up in /proc", allow_module_level=True)

with warnings.catch_warnings():
    # PettingZoo's own test package imports its environments through their deprecated names.
    warnings.filterwarnings("ignore", message="The old environment creation API", category=DeprecationWarning)
    from pettingzoo.test import parallel_api_test

from marl.envs.pettingzoo_view import as_parallel_env
from marl.envs.sc2.game import GameError
from marl.envs.sc2.install import find_install
from marl.envs.smac import TASKS, SmacOptions, batch, make
from marl.envs.smac.maps import load_map
from marl.envs.smac.sc2 import backend as real_module
from marl.envs.smac.sc2.backend import GameSetup, api, read_ground, read_span
from marl.envs.testing import check_env, check_vector_env
from marl.errors import ConfigError, EnvironmentContractError
from marl.experiments import cli
from tests.support.games import choose, faults, install, installed, make_real, same_obs
from tests.support.smac import EVERY_MAP

__all__ = ["faults", "install", "installed"]

pytestmark = pytest.mark.usefixtures("install")


def compare(embedded, other, seeds, steps, limit=10**9, ahead=4.0):
    """Play both backends side by side; a new seed after every second episode, a double reset after every third."""
    rng, ends = np.random.default_rng(7), []
    obs = embedded.reset(seeds[0])
    same_obs(obs, other.reset(seeds[0]))
    for _ in range(steps):
        action = choose(obs, rng, ahead)
        left, right = embedded.step(action), other.step(action)
        np.testing.assert_array_equal(left.reward, right.reward)
        same_obs(left.obs, right.obs)
        assert (left.terminated, left.truncated, dict(left.info)) == (right.terminated, right.truncated, right.info)
        obs = left.obs
        if left.terminated or left.truncated:
            ends.append((left.terminated, left.info["success"], left.info["dead_allies"], left.info["dead_enemies"]))
            if len(ends) == limit:
                break
            seed = seeds[len(ends) // 2 % len(seeds)] if len(ends) % 2 == 0 else None
            for _ in range(2 if len(ends) % 3 == 0 else 1):
                obs = embedded.reset(seed)
                same_obs(obs, other.reset(seed))
    embedded.close()
    other.close()
    return ends


@pytest.mark.parametrize(
    ("task", "steps"), [("3m", 300), ("MMM", 250), ("2s3z", 300), ("bane_vs_bane", 300), ("corridor", 250)]
)
def test_both_backends_agree_in_every_bit(task, steps):
    ends = compare(make(task), make_real(task), [3, 2**32 - 1, 0], steps)
    assert len(ends) >= 3
    assert any(end[2] for end in ends), "somebody died"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_both_backends_agree_on_every_map(task):
    assert compare(make(task), make_real(task), [11, 12], 600)


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 7, "state_timestep_number": True, "obs_timestep_number": True, "obs_last_action": True},
        {"unavailable_action": "ignore", "obs_pathing_grid": True, "reward_only_positive": False, "obs_agent_id": True},
        {"step_mul": 3, "move_amount": 1.3, "sight_range": 7.5, "obs_instead_of_state": True, "reward_sparse": True},
    ],
)
def test_both_backends_agree_with_other_options(options):
    compare(make("MMM", **options), make_real("MMM", **options), [5], 120)


def test_ignored_actions_are_counted_for_each_episode():
    options = {"unavailable_action": "ignore", "max_steps": 2}
    embedded, other = make("3m", **options), make_real("3m", **options)
    for ignored in (3, 1, 0):
        embedded.reset(0), other.reset(0)
        for action in (np.array([6] * ignored + [1] * (3 - ignored)), np.ones(3, int)):
            left, right = embedded.step(action), other.step(action)
            same_obs(left.obs, right.obs)
        assert left.info == right.info
        assert right.info["ignored_actions"] == ignored
    other.close()


def test_moves_are_offered_where_the_game_says_that_one_can_walk(monkeypatch):
    ground = np.zeros((32, 32), bool)
    ground[:, 16:] = True
    monkeypatch.setattr(real_module, "read_ground", lambda _: ground)
    env = make_real("3m")
    obs = env.reset(0)
    y = env._battles.battle.unit_float[0, 1, :3]
    np.testing.assert_array_equal(obs.action_mask[:, 3], y - 1 >= 16)
    assert obs.action_mask[:, 2].all()
    env.close()


def test_the_state_divides_by_the_playable_area_that_the_game_reports(faults):
    """The center is that of the whole map, as in SMAC; observations and masks do not depend on the area."""
    (faults / "always").write_text("area game_info")
    embedded, other = make("MMM", obs_own_pos=True), make_real("MMM", obs_own_pos=True)
    expected, obs = embedded.reset(3), other.reset(3)
    for _ in range(2):
        np.testing.assert_array_equal(obs.agents, expected.agents)
        np.testing.assert_array_equal(obs.action_mask, expected.action_mask)
        end = 10 * 7 + 10 * 6
        ratio = np.ones(end, np.float64)
        for start, width, count in ((2, 7, 10), (71, 6, 10)):
            ratio[start : start + width * count : width] = 32 / 28
            ratio[start + 1 : start + width * count : width] = 32 / 24
        np.testing.assert_allclose(obs.state[:end], expected.state[:end] * ratio, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(obs.state[end:], expected.state[end:])
        action = choose(expected, np.random.default_rng(0))
        expected, obs = embedded.step(action).obs, other.step(action).obs
    other.close()


def test_every_place_in_the_state_of_mappo_divides_by_the_playable_area():
    env = make("3m", layout="mappo", state_last_action=False)
    plain = env.reset(0).state.reshape(3, -1).copy()
    battles = env._battles
    battles.rules = battles.rules._replace(span_x=28.0, span_y=24.0)
    battles.refresh()
    ally, enemy = 8, 8
    places = [6, 6 + ally, *(2 * ally + 6 + enemy * index for index in range(3)), 2 * ally + 3 * enemy + 4 + 5]
    ratio = np.ones(plain.shape[1])
    ratio[places], ratio[np.array(places) + 1] = 32 / 28, 32 / 24
    np.testing.assert_allclose(battles.view.state[0].reshape(3, -1), plain * ratio, rtol=1e-6, atol=1e-7)


def test_a_playable_area_that_cannot_be_is_refused():
    def info(size=32, low=(0, 0), high=(32, 32)):
        info = api.ResponseGameInfo()
        info.start_raw.map_size.x = info.start_raw.map_size.y = size
        area = info.start_raw.playable_area
        (area.p0.x, area.p0.y), (area.p1.x, area.p1.y) = low, high
        return info

    assert read_span(info(low=(2, 1), high=(30, 25))) == (28.0, 24.0)
    with pytest.raises(ConfigError, match="map_size=64 x 64"):
        read_span(info(size=64))
    for low, high in (((0, 0), (0, 0)), ((5, 5), (5, 9)), ((0, 0), (33, 32)), ((-1, 0), (32, 32))):
        with pytest.raises(ConfigError, match="playable_area"):
            read_span(info(low=low, high=high))


def test_a_battle_that_nobody_survives_is_followed_by_the_one_that_the_map_made():
    """Both sides respawn at once then, and the battle that follows must not be thrown away."""
    embedded, other = make("bane_vs_bane"), make_real("bane_vs_bane")
    ends = compare(embedded, other, [41], 4000, limit=40, ahead=-4.0)
    assert any(end[2:] == (24, 24) for end in ends), ends


def test_a_vector_agrees_with_the_embedded_one():
    embedded, other = batch("2s3z", 3, max_steps=40), batch("2s3z", 3, backend="sc2", max_steps=40)
    rng, ended = np.random.default_rng(0), 0
    obs = embedded.reset([4, 5, 4])
    same_obs(obs, other.reset([4, 5, 4]))
    games = [instance._game for instance in other._battles._instances]
    assert len({game.port for game in games}) == len({game.pid for game in games}) == 3
    for number in range(150):
        action = choose(obs, rng)
        left, right = embedded.step(action), other.step(action)
        for name in ("reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        same_obs(left.obs, right.obs)
        assert (left.final is None) == (right.final is None)
        if left.final is not None:
            ended += len(left.final.env)
            np.testing.assert_array_equal(left.final.env, right.final.env)
            same_obs(left.final.obs, right.final.obs)
            assert left.final.info == right.final.info
        obs = left.obs
        if number in (30, 70):
            obs = embedded.reset_at(1, None if number == 30 else 9)
            same_obs(obs, other.reset_at(1, None if number == 30 else 9))
    assert ended >= 6
    assert not right.restarted.any()
    assert [instance._game for instance in other._battles._instances] == games, "no process was needed anew"
    other.close()


def test_passes_the_conformance_suite():
    assert check_env(lambda: make_real("3m", max_steps=20))


def test_a_batch_passes_the_conformance_suite():
    assert check_vector_env(
        lambda: batch("MMM", 2, backend="sc2", max_steps=25), [1, 2], lambda: make_real("MMM", max_steps=25), steps=40
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_map_passes_the_conformance_suite(task):
    limit = min(load_map(task).limit, 60)
    assert check_env(lambda: make_real(task, max_steps=limit))
    assert check_vector_env(lambda: batch(task, 2, backend="sc2"), [1, 2], lambda: make_real(task), steps=70)


@pytest.mark.parametrize("task", ["2s_vs_1sc", "MMM"])
def test_passes_the_tests_of_pettingzoo(task):
    env = as_parallel_env(make_real(task, max_steps=30))
    parallel_api_test(env, num_cycles=40)
    env.reset(seed=3)
    assert env.state().shape == env.state_space.shape
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_map_passes_the_tests_of_pettingzoo(task):
    env = as_parallel_env(make_real(task, max_steps=30))
    parallel_api_test(env, num_cycles=40)
    env.close()


@pytest.mark.parametrize("task", EVERY_MAP)
def test_every_embedded_map_passes_the_tests_of_pettingzoo(task):
    env = as_parallel_env(make(task, max_steps=30))
    parallel_api_test(env, num_cycles=40)
    assert env.state().shape == env.state_space.shape
    agent = env.possible_agents[0]
    assert set(env.observation_space(agent).spaces) == {"observation", "action_mask"}


def test_seeds_decide_and_entropy_differs():
    def trace(env, seed):
        obs, rng = env.reset(seed), np.random.default_rng(0)
        for _ in range(14):
            step = env.step(choose(obs, rng))
            obs = step.obs
        return obs.state.tobytes()

    env, other = make_real("3m"), make_real("3m")
    assert trace(env, 3) == trace(other, 3) == trace(env, 3) != trace(env, 4)
    large = trace(env, 2**64 + 3)
    assert large == trace(other, 2**64 + 3)
    assert large not in (trace(env, 3), trace(env, 2**64 + 4)), "a seed that needs more than 32 bits is not cut off"
    with pytest.raises(ValueError, match="non-negative"):
        env.reset(-1)
    env.close()
    other.close()


def test_what_a_game_begins_with(install):
    def new_setup(task, **options):
        opening = GameSetup(find_install(), load_map(task), SmacOptions(backend="sc2", **options))
        return opening.create(5), opening.join()

    create, join = new_setup("2m_vs_1z", difficulty="A")
    assert (create.random_seed, create.realtime, create.local_map.map_path) == (5, False, "SMAC_Maps/2m_vs_1z.SC2Map")
    assert create.local_map.map_data == (install / "Maps" / "SMAC_Maps" / "2m_vs_1z.SC2Map").read_bytes()
    player, computer = create.player_setup
    assert (player.type, computer.type, computer.race, computer.difficulty) == (api.Participant, api.Computer, 3, 10)
    assert (join.race, join.options.raw, join.options.score) == (1, True, False)
    create, join = new_setup("6h_vs_8z")
    assert (create.player_setup[1].race, create.player_setup[1].difficulty, join.race) == (3, 7, 2)


def test_actions_outside_the_mask_are_refused_before_anything_is_sent():
    env = make_real("3m")
    env.reset(0)
    with pytest.raises(EnvironmentContractError, match=r"agent 2 \(marine_2\) cannot take action 7"):
        env.step(np.array([1, 1, 7]))
    same_obs(env.step(np.ones(3, int)).obs, stepped("3m", 0))
    env.close()
    env.close()


def stepped(task, seed):
    """The observation after one step in which all agents of the embedded engine stop."""
    env = make(task)
    env.reset(seed)
    return env.step(np.ones(env.spec.num_agents, int)).obs


def test_no_state_can_be_saved_and_no_film_made():
    env = make_real("3m")
    env.reset(0)
    assert env.get_state() is None
    with pytest.raises(RuntimeError, match="StarCraft II cannot restore a state"):
        env.set_state({})
    assert "marine 45" in env.render()
    assert env.film() is None
    env.close()
    with pytest.raises(RuntimeError, match="no running episode"):
        env.step(np.ones(3, int))
    with pytest.raises(RuntimeError, match="closed; make a new"):
        env.reset(3)
    vector = batch("3m", 2, backend="sc2")
    assert vector.get_state() == [None, None]
    for index in (-1, 2):
        with pytest.raises(ConfigError, match=f"no environment {index}"):
            vector.reset_at(index)
    vector.close()


def test_the_pathing_grid_of_old_and_new_games():
    ground = np.zeros((32, 32), bool)
    ground[3:9, 20:31] = True
    ground[0, 0] = True

    def info(bits, data, size=32):
        info = api.ResponseGameInfo()
        info.start_raw.pathing_grid.bits_per_pixel = bits
        info.start_raw.pathing_grid.size.x = info.start_raw.pathing_grid.size.y = size
        info.start_raw.pathing_grid.data = data
        return info

    np.testing.assert_array_equal(read_ground(info(1, np.packbits(ground.T).tobytes())), ground)
    old = np.where(ground.T[::-1], 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(read_ground(info(8, old.tobytes())), ground)
    for bits, data, size in ((8, b"\0" * 3, 32), (1, b"", 32), (2, b"\0" * 256, 32), (1, b"\0" * 512, 64)):
        with pytest.raises(ConfigError, match="pathing grid has"):
            read_ground(info(bits, data, size))


def unit(kind, alliance, x, health, shield=0.0):
    place = SimpleNamespace(x=x, y=0.0)
    return SimpleNamespace(unit_type=kind, alliance=alliance, pos=place, health_max=health, shield_max=shield)


def test_units_take_the_places_that_they_have_in_the_embedded_engine():
    opening = GameSetup(find_install(), load_map("2s3z"), SmacOptions(backend="sc2"))
    zealots = [unit(1971, 1, x, 100.0, 50.0) for x in (3.0, 1.0, 2.0)]
    stalkers = [unit(1970, 1, x, 80.0, 80.0) for x in (9.0, 8.0)]
    enemies = [
        unit(kind, 4, x, *((80.0, 80.0) if kind == 74 else (100.0, 50.0))) for x, kind in enumerate([73] * 3 + [74] * 2)
    ]
    placed = opening.arrange([*enemies, *zealots, *stalkers])
    assert placed[:5] == [stalkers[1], stalkers[0], zealots[1], zealots[2], zealots[0]]
    kinds = load_map("2s3z").types[5:]
    assert [unit.unit_type for unit in placed[5:]] == [{"stalker": 74, "zealot": 73}[kind] for kind in kinds]
    assert [unit.pos.x for unit in placed[5:] if unit.unit_type == 73] == [0, 1, 2], "in their order within a type"

    def refuse(units, match):
        with pytest.raises(ConfigError, match=match):
            opening.arrange(units)

    refuse([*enemies[:4], unit(110, 4, 9.0, 145.0), *zealots, *stalkers], "has an enemy of unit type 110, which no map")
    refuse([*enemies, *zealots, *stalkers[:1], unit(1972, 1, 0, 9.0)], "has an agent of unit type 1972")
    refuse([*enemies, *zealots, *stalkers[:1], zealots[0]], "4 allied zealot.* SMAC's has 2 allied stalker")
    refuse(
        [*enemies[:4], unit(74, 4, 9.0, 95.0, 80.0), *zealots, *stalkers],
        r"unit type 74, a stalker, of at most \(95.0, 80.0\)",
    )


def test_a_map_of_another_name_is_found_out(monkeypatch):
    env = make_real("3m")
    opening = env._battles._instances[0]._opening
    monkeypatch.setattr(opening, "path", "SMAC_Maps/3s_vs_3z.SC2Map")
    with pytest.raises(
        ConfigError, match=r"3s_vs_3z.SC2Map has an agent of .*, a marine, of at most .80.0, 80.0. health"
    ):
        env.reset(0)
    monkeypatch.setattr(opening, "path", "SMAC_Maps/8m.SC2Map")
    with pytest.raises(ConfigError, match=r"8m.SC2Map has 8 agents and 8 enemies. Put SMAC's own map"):
        env.reset(0)
    monkeypatch.setattr(opening, "path", "SMAC_Maps/2m_vs_1z.SC2Map")
    with pytest.raises(GameError, match=r"lost 3 times .* has not created .* are [12] of 3 agents and 1 of 3 enemies"):
        env.reset(0)
    env.close()


def test_a_training_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = ["--num-envs", "2", "--rollout-steps", "32", "--eval-episodes", "2", "--epochs", "1"]
    arguments = [
        "train",
        "smac/3m",
        "--backend",
        "sc2",
        "--agent",
        "mappo",
        *quick,
        "--steps",
        "192",
        "--name",
        "real",
    ]
    monkeypatch.setattr(sys, "argv", ["marl", *arguments])
    cli.main()
    lines = [json.loads(line) for line in (tmp_path / "runs/real/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [64, 128, 192]
    assert np.isfinite(lines[-1]["loss/value"])
    monkeypatch.setattr(sys, "argv", ["marl", "resume", "runs/real", "--steps", "256"])
    cli.main()
    lines = [json.loads(line) for line in (tmp_path / "runs/real/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 256
    capsys.readouterr()
