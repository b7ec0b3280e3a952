"""SMAC: sizes, observations and rewards against SMAC's own rules; the contract on every map; threads and states."""

import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac import TASKS, SmacOptions, batch, make
from marl.envs.smac.engine import thread_pool
from marl.envs.smac.engine.fields import COOLDOWN, ENERGY, HEALTH, LAST, SCALE, STEPS, X, Y
from marl.envs.smac.env import SmacEnv, SmacVector
from marl.envs.smac.maps import load_map
from marl.envs.smac.scripted import ScriptedTeam
from marl.envs.testing import check_env, check_vector_env
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, UnknownNameError
from marl.registry import find_env
from tests.support.smac import EVERY_MAP, SAMPLE, place

SIZES = {
    "3m": (60, 9, 30, 48, 365),
    "8m": (120, 14, 80, 168, 640),
    "25m": (150, 31, 250, 950, 1575),
    "5m_vs_6m": (70, 12, 55, 98, 530),
    "8m_vs_9m": (120, 15, 85, 179, 695),
    "10m_vs_11m": (150, 17, 105, 243, 805),
    "27m_vs_30m": (180, 36, 285, 1170, 1850),
    "MMM": (150, 16, 160, 290, 1015),
    "MMM2": (180, 18, 176, 322, 1205),
    "2s3z": (120, 11, 80, 120, 1020),
    "3s5z": (150, 14, 128, 216, 1510),
    "3s5z_vs_3s6z": (170, 15, 136, 230, 1670),
    "1c3s5z": (180, 15, 162, 270, 1870),
    "3s_vs_3z": (150, 9, 36, 54, 680),
    "3s_vs_4z": (200, 10, 42, 61, 840),
    "3s_vs_5z": (250, 11, 48, 68, 1000),
    "2m_vs_1z": (150, 7, 16, 26, 360),
    "2s_vs_1sc": (300, 7, 17, 27, 510),
    "6h_vs_8z": (150, 14, 78, 140, 1480),
    "corridor": (400, 30, 156, 282, 1280),
    "so_many_baneling": (100, 38, 202, 397, 1480),
    "bane_vs_bane": (200, 30, 336, 984, 1260),
    "2c_vs_64zg": (400, 70, 332, 342, 3080),
}
"""SMAC's episode limit, actions, observation, state and greatest reward before scaling."""


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_those_of_smac(name):
    env = make(name)
    spec = env.spec
    got = (spec.max_steps, spec.action_size, spec.observation_size, spec.state_size)
    assert got == SIZES[name][:4]
    assert 20 / env._battles.world.stats[SCALE, 0] == pytest.approx(SIZES[name][4])
    assert set(SIZES) == set(TASKS)
    assert spec.name == f"smac/{name}"


@pytest.mark.parametrize("name", EVERY_MAP)
def test_passes_the_conformance_suite(name):
    limit = min(SIZES[name][0], 60)
    assert check_env(lambda: make(name, max_steps=limit))
    assert check_vector_env(lambda: batch(name, 3, 2), [1, 2, 3], lambda: make(name), steps=70)


def test_the_sample_has_every_kind_of_map():
    """The tests of every map leave the others to the slow tests."""

    def kinds(tasks):
        maps = [load_map(task) for task in tasks]
        units = {(kind, index < each.num_agents) for each in maps for index, kind in enumerate(each.types)}
        return units | {each.order for each in maps} | {each.walkable.tobytes() for each in maps}

    assert kinds(SAMPLE) == kinds(TASKS)


def test_an_observation_by_hand():
    env = make("3m")
    env.reset(0)
    obs, unit_float = place(
        env,
        {0: (10, 16, 45, 0), 1: (10, 18, 30, 0), 3: (15, 16, 15, 0), 4: (10, 22.5, 45, 0), 5: (19.1, 16, 45, 0)},
    )
    unit_float[COOLDOWN, 0] = 7.5
    env._battles.refresh()
    expected = [1, 1, 1, 1]
    expected += [1, 5 / 9, 5 / 9, 0, 15 / 45]  # in shooting range
    expected += [0, 6.5 / 9, 0, 6.5 / 9, 1]  # seen, too far to shoot
    expected += [0, 0, 0, 0, 0]  # out of sight
    expected += [1, 2 / 9, 0, 2 / 9, 30 / 45]
    expected += [0, 0, 0, 0, 0]  # dead
    expected += [1]
    np.testing.assert_allclose(obs.agents[0], expected, atol=1e-7)
    assert (obs.agents[2] == 0).all()
    assert obs.alive.tolist() == [True, True, False]
    assert obs.action_mask[0].tolist() == [False, True, True, True, True, True, True, False, False]
    assert obs.action_mask[2].tolist() == [True] + [False] * 8
    state = [1, 7.5 / 15, -6 / 32, 0, 30 / 45, 0, -6 / 32, 2 / 32, 0, 0, 0, 0]
    state += [15 / 45, -1 / 32, 0, 1, -6 / 32, 6.5 / 32, 1, 3.1 / 32, 0]
    np.testing.assert_allclose(obs.state, state + [0] * 27, atol=1e-7)


def test_shields_types_and_the_enemys_other_numbering():
    env = make("2s3z")
    env.reset(0)
    obs, _ = place(env, {0: (10, 16, 40, 20), 2: (13, 16, 100, 25), 5: (10, 14, 80, 80), 7: (9, 16, 50, 0)})
    seen = obs.agents[0]
    width = 4 + 2 + 2
    np.testing.assert_allclose(seen[4 : 4 + width], [1, 2 / 9, 0, -2 / 9, 1, 1, 0, 1], atol=1e-7)  # a stalker
    np.testing.assert_allclose(seen[4 + 2 * width :][:width], [1, 1 / 9, -1 / 9, 0, 0.5, 0, 1, 0], atol=1e-7)
    ally = seen[4 + 5 * width + width :][:width]  # agent 2, a zealot: the second of the others
    np.testing.assert_allclose(ally, [1, 3 / 9, 3 / 9, 0, 1, 0.5, 0, 1], atol=1e-7)
    np.testing.assert_allclose(seen[-4:], [0.5, 0.25, 1, 0], atol=1e-7)


def test_walls_close_moves():
    env = make("3m")
    env.reset(0)
    obs, _ = place(env, {0: (10.5, 23.2, 45, 0), 1: (0.5, 8.5, 45, 0), 2: (31.2, 16, 45, 0), 3: (20, 16, 45, 0)})
    assert obs.action_mask[:, 2:6].tolist() == [
        [False, True, True, True],
        [True, False, True, True],  # SMAC truncates towards zero, so that it may still go west
        [True, True, False, True],
    ]


def test_a_medivac_is_offered_allies_and_shows_its_energy():
    env = make("MMM")
    env.reset(0)
    units = {0: (10, 16, 125, 0), 2: (12, 16, 45, 0), 8: (30, 16, 45, 0), 9: (10, 17, 150, 0), 10: (14, 16, 45, 0)}
    obs, unit_float = place(env, units)
    unit_float[ENERGY, 9] = 100
    env._battles.refresh()
    assert np.flatnonzero(obs.action_mask[9, 6:]).tolist() == [0, 2]
    assert np.flatnonzero(obs.action_mask[0, 6:]).tolist() == [0]
    assert obs.state[9 * 7 + 1] == pytest.approx(0.5)
    # SMAC's first enemy feature of a medivac is whether it may heal the ally of that number
    assert obs.agents[9, 4] == 1


@pytest.mark.parametrize(
    ("option", "width"),
    [
        ({"obs_all_health": False}, -2 - 3),
        ({"obs_all_health": False, "obs_own_health": False}, -2 - 3 - 1),
        ({"obs_last_action": True}, 2 * 9),
        ({"obs_pathing_grid": True}, 8),
        ({"obs_agent_id": True}, 3),
        ({"obs_timestep_number": True}, 1),
    ],
)
def test_options_change_the_observation(option, width):
    env = make("3m", **option)
    assert env.spec.observation_size == 30 + width
    assert check_env(lambda: make("3m", **option))


def test_extra_features_by_hand():
    env = make("3m", obs_last_action=True, obs_pathing_grid=True, obs_agent_id=True, obs_timestep_number=True)
    env.reset(0)
    obs, _ = place(env, {0: (10.5, 22.5, 45, 0), 1: (10, 20, 45, 0), 3: (14, 16, 45, 0)})
    battles = env._battles
    battles.battle.unit_int[0, LAST, 1] = 3
    battles.battle.counters[0, STEPS] = 15
    battles.refresh()
    seen = obs.agents[0]
    # north and south by 4, east and west by 4, then NE, SW, SE, NW by 2; the ground ends above 23
    assert seen[4:12].tolist() == [0, 1, 1, 1, 0, 1, 1, 0]
    ally = seen[12 + 15 :][: 5 + 9]
    assert ally[5:].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert seen[-5:].tolist() == [1, 1, 0, 0, 0.25]
    assert obs.agents[2, -4:].tolist() == [0, 0, 1, 0.25]


def test_state_options():
    assert make("3m", state_last_action=False).spec.state_size == 48 - 27
    assert make("3m", state_timestep_number=True).spec.state_size == 49
    env = make("3m", obs_instead_of_state=True)
    obs = env.reset(0)
    np.testing.assert_array_equal(obs.state, obs.agents.reshape(-1))
    env = make("3m", state_timestep_number=True)
    env.reset(0)
    step = env.step(np.array([2, 3, 4]))
    assert step.obs.state[-1] == pytest.approx(1 / 60)
    assert step.obs.state[-28:-1].reshape(3, 9).argmax(1).tolist() == [2, 3, 4]


def play(env, seed, choose):
    """Play an episode; returns the rewards and the last step."""
    obs, rewards = env.reset(seed), []
    while True:
        step = env.step(choose(obs.state[None], obs.action_mask[None])[0])
        obs = step.obs
        rewards.append(float(step.reward[0]))
        if step.terminated or step.truncated:
            return rewards, step


def test_a_won_battle_pays_twenty():
    env = make("8m")
    team, won = ScriptedTeam(env.spec, kites=False), 0
    for seed in range(8):
        rewards, step = play(env, seed, team.choose)
        if step.info["success"]:
            won += 1
            assert sum(rewards) == pytest.approx(20, abs=1e-3)
            assert step.info["dead_enemies"] == 8
            assert rewards[-1] > 200 / 640 * 20
    assert won >= 7


def test_a_battle_that_is_not_won_pays_the_damage_done():
    env, rng = make("3m"), np.random.default_rng(0)
    for seed in range(8):
        rewards, step = play(env, seed, lambda _, mask: (mask * rng.random(mask.shape)).argmax(-1))
        assert step.info["success"] == 0
        left = env._battles.battle.unit_float[0, HEALTH, 3:].sum()
        assert sum(rewards) == pytest.approx((135 - left + 10 * step.info["dead_enemies"]) * 20 / 365, abs=1e-3)


def test_rewards_by_hand():
    def reward_of(unit_health, actions, **options):
        env = make("3m", **options)
        env.reset(0)
        place(env, {0: (10, 16, 45, 0), 1: (10, 18, 45, 0), **unit_health})
        return env, env.step(np.array(actions))

    # a marine with 3 health dies to one shot: its 3 health, 10 for the kill, 200 for the win
    _, step = reward_of({3: (14, 16, 3, 0)}, [6, 1, 0])
    assert step.terminated
    assert step.reward.tolist() == [pytest.approx(213 * 20 / 365)] * 3
    assert step.info == {"success": 1, "dead_allies": 1, "dead_enemies": 3}
    _, step = reward_of({3: (14, 16, 3, 0)}, [6, 1, 0], reward_scale=False, reward_win=50, reward_death_value=4)
    assert step.reward[0] == pytest.approx(57)
    _, step = reward_of({3: (14, 16, 3, 0)}, [6, 1, 0], reward_sparse=True, reward_scale=False)
    assert step.reward[0] == 1
    env, step = reward_of({3: (14, 16, 45, 0)}, [1, 1, 0], reward_only_positive=False, reward_scale=False)
    lost = 90 - env._battles.battle.unit_float[0, HEALTH, :3].sum()
    assert lost in (6, 12)
    assert step.reward[0] == pytest.approx(-lost / 2)
    env, step = reward_of({3: (14, 16, 45, 0)}, [1, 1, 0], reward_scale=False)
    assert step.reward[0] == 0
    env, step = reward_of({0: (10, 16, 1, 0), 1: (0, 0, 0, 0), 3: (14, 16, 45, 0)}, [1, 0, 0], reward_defeat=-30)
    assert step.terminated
    assert step.info["success"] == 0
    assert step.reward[0] == pytest.approx(-30 * 20 / 365)


def test_a_healer_alone_has_lost_and_a_lone_enemy_healer_too():
    env = make("MMM")
    env.reset(0)
    place(env, {0: (4, 16, 125, 0), 19: (28, 16, 150, 0)})
    step = env.step(np.array([1] + [0] * 9))
    assert (step.terminated, step.info["success"]) == (True, 1)
    env.reset(0)
    place(env, {9: (4, 16, 150, 0), 10: (28, 16, 45, 0)})
    step = env.step(np.array([0] * 9 + [1]))
    assert (step.terminated, step.info["success"]) == (True, 0)


def test_the_time_limit_truncates():
    env = make("2s_vs_1sc", max_steps=5)
    env.reset(0)
    for number in range(5):
        step = env.step(np.array([1, 1]))
        assert step.truncated == (number == 4)
        assert not step.terminated
    assert step.info["success"] == 0


def test_an_unavailable_action_is_an_error_or_ignored(caplog):
    vector = batch("3m", 2)
    vector.reset([0, 1])
    action = np.ones((2, 3), int)
    action[1, 2] = 7
    with pytest.raises(EnvironmentContractError, match=r"environment 1, agent 2 \(marine_2\).*7; available: \[1, 2,"):
        vector.step(action)
    assert (vector._battles.battle.counters[:, STEPS] == 0).all(), "nothing has moved"
    action[1, 2] = 9
    ignoring = batch("3m", 2, unavailable_action="ignore")
    ignoring.reset([0, 1])
    with pytest.raises(EnvironmentContractError, match="9; available"):
        ignoring.step(action)
    action[1, 2] = 7
    env = make("3m", unavailable_action="ignore", max_steps=2)
    for _ in range(2):
        env.reset(0)
        env.step(action[1])
        assert env.step(action[0]).info["ignored_actions"] == 1
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("smac/3m: 1 actions of an episode were not available and did nothing")


def test_results_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(thread_pool, "UNITS_PER_THREAD", 1)
    runs = []
    for threads in (1, 2, 5):
        env = batch("2s3z", 5, threads)
        obs = env.reset([5, 4, 3, 2, 1])
        rng, run = np.random.default_rng(0), []
        for _ in range(150):
            action = (obs.action_mask * rng.random(obs.action_mask.shape)).argmax(-1)
            step = env.step(action)
            obs = step.obs
            run.append([obs.agents.copy(), obs.state.copy(), step.reward, step.terminated])
        env.close()
        runs.append(run)
    assert any(step[3].any() for step in runs[0])
    for run in runs[1:]:
        for ours, first in zip(run, runs[0], strict=True):
            for left, right in zip(ours, first, strict=True):
                np.testing.assert_array_equal(left, right)


REFERENCE = """
import hashlib, sys
import numpy as np
from marl.envs.smac import batch

digest = hashlib.sha256()
for task, steps in (("MMM", 14), ("bane_vs_bane", 6), ("1c3s5z", 10)):
    env = batch(task, 1)
    obs = env.reset([3])
    rng = np.random.default_rng(0)
    for _ in range(steps):
        mask = obs.action_mask.copy()
        score = rng.random(mask.shape)
        score[..., 4] += 0.5
        score[..., 6:] += 1
        step = env.step((mask * score).argmax(-1))
        obs = step.obs
        for array in (*env._battles.battle, obs.agents, obs.state, step.reward):
            digest.update(np.ascontiguousarray(array).tobytes())
print(digest.hexdigest())
"""


def test_the_uncompiled_engine_gives_the_same_bits():
    digests = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-c", REFERENCE], env=environment, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
        digests.append(done.stdout)
    assert digests[0] == digests[1]


def test_seeds_decide_and_entropy_differs():
    def trace(seed):
        env = make("3m")
        env.reset(seed)
        for _ in range(12):
            step = env.step(np.where(env._obs().alive, np.where(env._obs().action_mask[:, 6], 6, 1), 0))
            if step.terminated:
                break
        return env._battles.battle.unit_float[0].tobytes()

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)
    assert trace(None) != trace(None)


def test_wrong_names_counts_and_states_are_refused():
    with pytest.raises(UnknownNameError, match="3s5z"):
        find_env("smac/3s6z")
    with pytest.raises(UnknownNameError, match="27m_vs_30m"):
        make("27m_vs_31m")
    for count in (0, -1, 2.5):
        with pytest.raises(ConfigError, match=f"{count} environments; give a whole number of 1 or more"):
            batch("3m", count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="1 seeds for 2 environments"):
        batch("3m", 2).reset([0])
    state = make("3m").get_state()
    with pytest.raises(CheckpointError, match="3m"):
        make("3s_vs_3z").set_state(state)
    with pytest.raises(ConfigError, match=r"environment 2;.* 2, from 0"):
        batch("3m", 2).reset_at(2)
    with pytest.raises(CheckpointError, match="8m"):
        make("8m").set_state(state)
    env = make("3m")
    env.reset(0)
    with pytest.raises(EnvironmentContractError, match="shape"):
        env.step(np.ones(4, int))
    for wrong in (np.ones(3), np.full(3, np.nan), np.ones(3, bool), np.array(["1", "1", "1"])):
        with pytest.raises(EnvironmentContractError, match=r"actions are of type .*; give whole numbers"):
            env.step(wrong)
    env.step(np.ones(3, np.uint8))
    assert isinstance(make("3m"), SmacEnv)
    assert isinstance(batch("3m", 1), SmacVector)


WRONG_OPTIONS = [
    ({"step_mul": 0}, "step_mul=0; give a whole number of 1 or more"),
    ({"step_mul": 8.0}, "step_mul=8.0; give a whole number"),
    ({"step_mul": True}, "step_mul=True; give a whole number"),
    ({"max_steps": "60"}, "max_steps='60'; give a whole number or None"),
    ({"sight_range": float("nan")}, "sight_range=nan; give a finite number or None"),
    ({"reward_win": float("inf")}, "reward_win=inf; give a finite number"),
    ({"reward_win": -1.0}, "reward_win=-1.0; give 0 or more"),
    ({"reward_defeat": 5}, "reward_defeat=5; give 0 or less"),
    ({"move_amount": 0}, "move_amount=0; give more than 0"),
    ({"obs_all_health": 1}, "obs_all_health=1; give True or False"),
    ({"game_version": 4.1, "backend": "sc2"}, "game_version=4.1; give a text in quotes or None"),
    ({"difficulty": 7, "backend": "sc2"}, "difficulty=7; give '1' or '2'"),
    ({"unavailable_action": "noop"}, "unavailable_action='noop'; give 'error' or 'ignore'"),
    ({"backend": "sc3"}, "backend='sc3'; give 'embedded' or 'sc2'"),
]


@pytest.mark.parametrize(("options", "said"), WRONG_OPTIONS)
def test_options_of_the_wrong_type_or_size_are_named(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        make("3m", **options)


def test_options_take_numbers_of_every_kind():
    given: dict[str, Any] = {"step_mul": np.int64(4), "reward_win": np.float32(100), "move_amount": 3}
    options = SmacOptions(**given)
    assert (options.step_mul, options.reward_win, options.move_amount) == (4, 100, 3)


def test_an_unknown_option_is_told_with_the_closest_names():
    with pytest.raises(UnknownNameError, match=r"option of smac.*'obs_timestep_number'"):
        make("3m", obs_timestep=True)
    with pytest.raises(UnknownNameError, match="'step_mul'"):
        batch("3m", 2, step_mull=4)


def test_the_picture_shows_who_is_where():
    env = make("2s3z")
    env.reset(0)
    text = env.render()
    assert "stalker 80+80" in text
    assert text.count("S") == 2
    assert "smac/2s3z, step 0 of 120" in text


@pytest.mark.parametrize("name", ["corridor", "2m_vs_1z"])
def test_moves_beyond_the_map_end_at_its_edge(name):
    env = make(name, move_amount=30, unavailable_action="error")
    for way, (axis, sign) in {2: (Y, 1), 3: (Y, -1), 4: (X, 1), 5: (X, -1)}.items():
        obs = env.reset(0)
        unit_float = env._battles.battle.unit_float[0]
        for _ in range(3):
            before = unit_float[axis, 0]
            if obs.action_mask[0, way]:
                obs = env.step(np.where(obs.action_mask[:, way], way, 1)).obs
                assert sign * (unit_float[axis, 0] - before) >= 0
