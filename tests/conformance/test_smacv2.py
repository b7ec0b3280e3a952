"""SMACv2: sizes, ranges, cones, sightings and rewards by hand, the enemy; the contract; threads and states."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac import TASKS, TEAM_TASKS, SmacOptions, batch, make
from marl.envs.smac.engine.fields import (
    ATTACKING,
    HEALTH,
    HUNTING,
    IDLE,
    LAST,
    MOVING,
    ORDER,
    OWNER,
    TARGET,
    WAITING,
    WATCHERS,
    X,
)
from marl.envs.smac.scripted import ScriptedTeam
from marl.envs.testing import check_env, check_vector_env
from marl.errors import ConfigError, UnknownNameError
from marl.registry import find_env
from tests.support.smac import place

TYPES = {
    "terran": ("marine", "marauder", "medivac"),
    "protoss": ("stalker", "zealot", "colossus"),
    "zerg": ("zergling", "hydralisk", "baneling"),
}
"""By race, in the order of the observation's one-hot types; the last one is rare."""


@pytest.mark.parametrize("task", TEAM_TASKS)
def test_sizes_are_those_of_smacv2(task):
    race, n, _, m = task.split("_")
    n, m, shield = int(n), int(m), int(race == "protoss")
    spec = make(task).spec
    actions = 6 + (max(n, m) if race == "terran" else m)
    assert spec.action_size == actions
    assert spec.observation_size == 4 + (m + n - 1) * (4 + 1 + shield + 3) + 1 + shield + 2 + 3
    assert spec.state_size == n * (4 + shield + 3) + m * (3 + shield + 3) + n * actions
    assert spec.max_steps == 200
    assert spec.agents == tuple(f"agent_{index}" for index in range(n))
    assert set(spec.agent_types) == {"unit"}
    assert find_env(f"smac/{task}")[1] == task


def test_sizes_as_published():
    sizes = [
        (spec.action_size, spec.observation_size, spec.state_size)
        for spec in (make(f"{race}_5_vs_5").spec for race in TYPES)
    ]
    assert sizes == [(11, 82, 120), (11, 92, 130), (11, 82, 120)]
    assert len(TEAM_TASKS) == 15
    assert not set(TEAM_TASKS) & set(TASKS)


def find_team(env, kinds):
    """Reset until the first agents are of these types; the rest does not matter."""
    for seed in range(500):
        env.reset(seed)
        if env._battles.map_at(0).types[: len(kinds)] == kinds:
            return
    raise AssertionError(kinds)


def test_an_observation_by_hand():
    env = make("terran_5_vs_5")
    find_team(env, ("marauder", "marine", "marine", "medivac", "medivac"))
    types = env._battles.map_at(0).types
    marauder, marine = (types.index(kind, 5) for kind in ("marauder", "marine"))
    units = {
        0: (8, 16, 125, 0),
        1: (8, 18, 30, 0),
        3: (8, 12, 75, 0),
        marauder: (13.5, 16, 25, 0),
        marine: (17.5, 16, 45, 0),
    }
    obs, _ = place(env, units)
    block = {marauder: [1, 5.5 / 10, 5.5 / 10, 0, 0.2, 0, 1, 0], marine: [0, 0.95, 0.95, 0, 1, 1, 0, 0]}
    expected = [1, 1, 1, 1]
    for enemy in range(5, 10):
        expected += block.get(enemy, [0] * 8)
    expected += [1, 2 / 10, 0, 2 / 10, 30 / 45, 1, 0, 0] + [0] * 8
    expected += [1, 4 / 10, 0, -4 / 10, 0.5, 0, 0, 1] + [0] * 8
    expected += [1, 8 / 32, 16 / 32, 0, 1, 0]
    np.testing.assert_allclose(obs.agents[0], expected, atol=1e-6)
    at = 4 + 8 * (marauder - 5)
    apart = np.hypot(5.5, 2)  # beyond a marine's 5, within its sight of 9
    np.testing.assert_allclose(obs.agents[1, at : at + 4], [0, apart / 9, 5.5 / 9, -2 / 9], atol=1e-6)
    assert not obs.action_mask[1, 6 + marauder - 5]
    assert np.flatnonzero(obs.action_mask[3, 6:]).tolist() == [0], "a medivac reaches 4, and no other medivac"
    ally = obs.state[: 5 * 7].reshape(5, 7)
    np.testing.assert_allclose(ally[3], [0.5, 50 / 200, -8 / 32, -4 / 32, 0, 0, 1], atol=1e-6)
    enemy = obs.state[35 : 35 + 30].reshape(5, 6)[marauder - 5]
    np.testing.assert_allclose(enemy, [0.2, -2.5 / 32, 0, 0, 1, 0], atol=1e-6)


def test_own_place_on_classic_maps():
    env = make("2s3z", obs_own_pos=True)
    env.reset(0)
    obs, _ = place(env, {0: (12, 20, 80, 80), 6: (14, 16, 80, 80)})
    np.testing.assert_allclose(obs.agents[0, -6:], [1, 1, 12 / 32, 20 / 32, 1, 0])
    assert make("2s3z").spec.observation_size == env.spec.observation_size - 2
    assert make("zerg_5_vs_5", obs_own_pos=False).spec.observation_size == 80


NORTH_EAST = 12 // 4 // 3  # 30 degrees, the direction after east


def test_the_cone_of_sight_by_hand():
    env = make("3m", conic_fov=True)
    assert env.spec.action_size == 9 + 12
    assert env.spec.observation_size == 30 + 2
    assert env.spec.state_size == 48 + 3 * 2 + 3 * 12
    env.reset(0)
    at = {east: (10 + 5 * np.cos(a), 16 + 5 * np.sin(a), 45, 0) for east, a in ((3, 0.25), (4, 0.27), (5, np.pi))}
    units = {0: (10, 16, 45, 0), 1: (14, 16, 45, 0), 2: (10, 12, 45, 0), **at}
    obs, _ = place(env, units)

    def seen():
        enemies = [bool(obs.agents[0, 4 + 5 * enemy + 1]) for enemy in range(3)]
        return enemies, obs.action_mask[0, 18:].tolist(), obs.agents[0, [19, 24]].tolist()

    # half the angle is 15 degrees, 0.262 radians; units behind are not seen
    assert seen() == ([True, False, False], [True, False, False], [1, 0])
    np.testing.assert_allclose(obs.agents[0, -2:], [1, 0], atol=1e-7)
    assert obs.action_mask[0, 6:18].all()
    assert not obs.action_mask[:, 0].any()
    obs = env.step(np.array([6 + NORTH_EAST, 6 + 9, 6 + 6])).obs
    np.testing.assert_allclose(obs.agents[0, -2:], [np.cos(np.pi / 6), 0.5], atol=1e-7)
    state = obs.state[: 3 * 6].reshape(3, 6)[:, 4:]
    np.testing.assert_allclose(state, [[np.cos(np.pi / 6), 0.5], [0, -1], [-1, 0]], atol=1e-7)
    assert obs.state[27:].reshape(3, 21).argmax(1).tolist() == [7, 15, 12]
    obs, _ = place(env, units)
    assert seen() == ([False, True, False], [False, True, False], [0, 0])
    obs = env.step(np.array([6 + 6, 1, 1])).obs
    obs, _ = place(env, units)
    assert seen() == ([False, False, True], [False, False, True], [0, 0])
    obs = env.step(np.array([6 + 9, 1, 1])).obs
    obs, _ = place(env, units)
    assert seen() == ([False, False, False], [False, False, False], [0, 1])


def test_the_layout_of_mappo_shows_place_and_cone_too():
    env = make("zerg_5_vs_5", layout="mappo", conic_fov=True, num_fov_actions=4, prob_obs_enemy=0.0)
    find_team(env, ("baneling", "hydralisk"))
    units = {0: (8, 16, 15, 0), 1: (10, 16, 80, 0), 5: (12, 16, 30, 0), 6: (8, 20, 30, 0)}
    obs, _ = place(env, units)
    actions = env.spec.action_size
    own = [1, 0, 0, 0, 0.5, 8 / 32, 16 / 32, 1, 0, 0, 0, 1] + [0] * actions + [1, 0, 0, 0, 0]
    np.testing.assert_allclose(obs.agents[0, -len(own) :], own, atol=1e-7)
    ally, enemy = 4 + 1 + 3 + actions, 4 + 1 + 3
    assert env.spec.observation_size == 4 * ally + 5 * enemy + 4 + len(own)
    owner = env._battles.battle.unit_int[0, OWNER, 5]
    assert owner in (0, 1)
    assert env._battles.battle.unit_int[0, OWNER, 6] == -1
    ally, enemy = 7 + 1 + 2 + 3 + actions, 7 + 1 + 3
    parts = obs.state.reshape(5, -1)
    assert parts.shape[1] == 4 * ally + 5 * enemy + 4 + 6 + 1 + 2 + 3 + actions + 5
    np.testing.assert_allclose(parts[0, :13], [1, 0.25, 0.25, 0, 0, 1, -6 / 32, 0, 1, 0, 0, 1, 0], atol=1e-7)
    for agent in (0, 1):
        foes = parts[agent, 4 * ally :][: 5 * enemy].reshape(5, enemy)
        assert foes[:, 4].tolist() == [agent == owner, 0, 0, 0, 0], "who sees them"
        assert (foes[:2, 5] > 0.3).all(), "the state shows them all the same"


def test_turning_the_cone_leaves_the_order():
    env = make("3m", conic_fov=True, num_fov_actions=4)
    obs = env.reset(0)
    unit_int = env._battles.battle.unit_int[0]
    env.step(np.array([4, 4, 4]))
    assert unit_int[ORDER, :3].tolist() == [MOVING] * 3
    before = env._battles.battle.unit_float[0, X, :3].copy()
    obs = env.step(np.array([7, 8, 9])).obs
    assert (env._battles.battle.unit_float[0, X, :3] > before + 0.5).all()
    np.testing.assert_allclose(obs.agents[:, -2:], [[0, 1], [-1, 0], [0, -1]], atol=1e-7)
    # a quarter of a turn for each: every direction is in one cone
    units = {0: (16, 16, 45, 0), 1: (18, 17, 45, 0), 2: (17, 19, 45, 0), 3: (14, 17, 45, 0), 4: (16, 13, 45, 0)}
    total = np.zeros(4)
    for look in range(4):
        env.step(np.array([6 + look, 1, 1]))
        obs, _ = place(env, units)
        total += obs.agents[0, [4 + 1, 4 + 5 + 1, 19, 24]] > 0
        env._battles.battle.counters[0, 1] = 1
    assert total.tolist() == [1] * 4


def sightings(obs, agents=3, enemies=3):
    """(N, M) which enemies are shown to whom."""
    return obs.agents[:, 4 : 4 + 5 * enemies].reshape(agents, enemies, 5)[..., 1] > 0


def test_an_enemy_belongs_to_who_saw_it_first_by_hand():
    env = make("3m", prob_obs_enemy=0.0)
    env.reset(0)
    unit_int, counters = env._battles.battle.unit_int[0], env._battles.battle.counters[0]
    far = {0: (8, 16, 45, 0), 1: (8, 17, 45, 0), 2: (8, 18, 45, 0), 3: (24, 16, 45, 0)}
    obs, _ = place(env, far)
    assert not sightings(obs).any()
    assert unit_int[OWNER, 3] == -1
    only = {**far, 2: (18, 18, 45, 0)}
    obs, _ = place(env, only)
    assert sightings(obs).tolist() == [[False] * 3, [False] * 3, [True, False, False]]
    all_near = {**only, 0: (19, 16, 45, 0), 1: (19, 17, 45, 0), 2: (19, 18, 45, 0)}
    obs, _ = place(env, all_near)
    assert sightings(obs)[:, 0].tolist() == [False, False, True]
    assert obs.action_mask[:, 6].tolist() == [True] * 3, "the mask does not hide it"
    obs, _ = place(env, {**all_near, 2: (8, 18, 45, 0)})
    assert not sightings(obs).any(), "it still belongs to an agent that does not see it now"
    stream = counters.copy()
    env._battles.refresh()
    assert (counters == stream).all(), "looking again draws nothing"
    obs, _ = place(env, {**all_near, 2: (18, 18, 0, 0)})
    assert sightings(obs)[:, 0].sum() == 1, "the next one to see it takes it over"
    assert unit_int[OWNER, 3] in (0, 1)
    assert not obs.agents[2].any()
    place(env, {**all_near, 3: (24, 16, 0, 0)})
    assert unit_int[OWNER, 3] == -1
    assert unit_int[WATCHERS, 3] == 0


def test_who_may_see_an_enemy_is_drawn_once():
    shown, owners = [], []
    env = make("3m", prob_obs_enemy=0.3)
    units = {agent: (10, 15 + agent, 45, 0) for agent in range(3)} | {
        enemy: (15, 12 + enemy, 45, 0) for enemy in (3, 4, 5)
    }
    for seed in range(150):
        env.reset(seed)
        obs, _ = place(env, units)
        first = sightings(obs).copy()
        for _ in range(3):
            obs, _ = place(env, units)
            assert (sightings(obs) == first).all()
        shown.append(first)
        owners.append(env._battles.battle.unit_int[0, OWNER, 3:].copy())
    shown, owners = np.array(shown), np.array(owners)
    assert (np.take_along_axis(shown, owners[:, None], 1)).all(), "the owner sees it"
    rest = (shown.sum() - 450) / 900
    assert rest == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 900))
    assert np.bincount(owners.ravel(), minlength=3) == pytest.approx(150, abs=5 * 10)
    env = make("3m", prob_obs_enemy=1.0)
    env.reset(0)
    obs, _ = place(env, units)
    assert sightings(obs).all()
    assert (env._battles.battle.unit_int[0, OWNER] == -1).all()


def test_without_a_mask_an_attack_out_of_reach_is_not_sent():
    env = make("3m", action_mask=False)
    env.reset(0)
    units = {0: (10, 16, 45, 0), 1: (10, 18, 45, 0), 2: (20, 16, 45, 0), 3: (23, 16, 45, 0), 4: (30, 16, 45, 0)}
    obs, _ = place(env, units)
    assert obs.action_mask[:, 6:].tolist() == [[True, True, False]] * 3
    assert obs.agents[2, [4, 4 + 5]].tolist() == [1, 0], "agents are shown what is in reach"
    unit_int = env._battles.battle.unit_int[0]
    unit_int[ORDER, 0] = MOVING
    env._battles.battle.unit_float[0, 11:13, 0] = 10, 20
    env.step(np.array([6, 1, 6]))
    assert unit_int[LAST, :3].tolist() == [6, 1, 6]
    assert unit_int[ORDER, :3].tolist() == [MOVING, IDLE, ATTACKING]


@pytest.mark.parametrize("layout", ["smac", "entities"])
@pytest.mark.parametrize("task", ["MMM", "MMM2", "terran_5_vs_5", "terran_10_vs_11", "terran_20_vs_23"])
def test_without_a_mask_healers_are_offered_living_allies_and_others_living_enemies(task, layout):
    """SMACv2 offers a medivac all agents that are no medivacs, for any number of enemies."""
    env = make(task, action_mask=False, layout=layout)
    if task not in TASKS:
        find_team(env, ("marauder", "marine", "marine", "medivac") if task == "terran_5_vs_5" else ("marauder",))
    else:
        env.reset(0)
    types, n = env._battles.map_at(0).types, env.spec.num_agents
    health = env._battles.battle.unit_float[0, HEALTH]
    health[[1, n + 1]] = 0.0
    env._battles.refresh()
    mask = env._obs().action_mask
    width = env.spec.action_size - 6
    enemies = [unit < len(types) and health[unit] > 0 for unit in range(n, n + width)]
    allies = [unit < n and types[unit] != "medivac" and health[unit] > 0 for unit in range(width)]
    for agent in range(n):
        expected = allies if types[agent] == "medivac" else enemies
        assert mask[agent, 6:].tolist() == (expected if health[agent] > 0 else [False] * width), types[agent]
    assert "medivac" in types[:n]


def test_enemies_that_wait_are_sent_against_the_nearest_and_stay_on_it():
    env = make("zerg_5_vs_5")
    find_team(env, ("hydralisk", "hydralisk"))
    place(env, {0: (4, 16, 80, 0), 1: (4, 28, 80, 0), 5: (28, 18, 80, 0)})
    unit_int, unit_float = env._battles.battle.unit_int[0], env._battles.battle.unit_float[0]
    env.step(np.array([1, 1, 0, 0, 0]))
    assert (unit_int[ORDER, 5], unit_int[TARGET, 5]) == (ATTACKING, 0)
    assert unit_float[X, 5] < 27.5
    place(env, {0: (4, 16, 80, 0), 1: (18, 28, 80, 0), 5: (20, 28, 30, 0)})
    env.step(np.array([1, 1, 0, 0, 0]))
    assert unit_int[TARGET, 5] == 0, "it passes the nearer one by"
    place(env, {0: (4, 16, 0, 0), 1: (4, 4, 80, 0), 5: (28, 28, 30, 0)})
    env.step(np.array([0, 1, 0, 0, 0]))
    assert (unit_int[ORDER, 5], unit_int[TARGET, 5]) == (WAITING, -1)
    env.step(np.array([0, 1, 0, 0, 0]))
    assert (unit_int[ORDER, 5], unit_int[TARGET, 5]) == (ATTACKING, 1)


def test_healers_go_along_and_who_cannot_hit_the_nearest_takes_another():
    env = make("terran_5_vs_5")
    find_team(env, ("marauder", "marauder", "marauder", "marine", "medivac"))
    types = env._battles.map_at(0).types
    marauder, medivac = (types.index(kind, 5) for kind in ("marauder", "medivac"))
    unit_int, unit_float = env._battles.battle.unit_int[0], env._battles.battle.unit_float[0]
    place(env, {0: (4, 4, 125, 0), 4: (18, 16, 150, 0), marauder: (28, 28, 125, 0), medivac: (28, 16, 150, 0)})
    env.step(np.array([1, 0, 0, 0, 1]))
    assert (unit_int[ORDER, marauder], unit_int[TARGET, marauder]) == (ATTACKING, 0)
    assert unit_int[ORDER, medivac] == HUNTING
    assert unit_float[X, medivac] < 28


def test_enemies_that_can_only_heal_have_lost():
    env = make("terran_5_vs_5")
    find_team(env, ("marauder", "marauder", "marine", "medivac", "medivac"))
    healers = [unit for unit, kind in enumerate(env._battles.map_at(0).types) if kind == "medivac"]
    place(env, {0: (4, 16, 125, 0), healers[-1]: (28, 16, 150, 0), healers[-2]: (28, 20, 150, 0)})
    step = env.step(np.array([1, 0, 0, 0, 0]))
    assert (step.terminated, step.info["success"]) == (True, 1)
    find_team(env, ("marauder", "marauder", "marine", "medivac", "medivac"))
    place(env, {healers[0]: (4, 16, 150, 0), healers[1]: (4, 20, 150, 0), 5: (28, 16, 45, 0)})
    step = env.step(np.array([0, 0, 0, 1, 1]))
    assert (step.terminated, step.info["success"]) == (True, 0)


def test_what_an_enemy_regenerates_is_not_paid():
    for task, pays in (("protoss_5_vs_5", False), ("2s3z", True)):
        env = make(task, reward_scale=False)
        env.reset(0)
        units = env.spec.num_agents
        place(env, {0: (4, 16, 80, 0), units: (28, 16, 80, 10)})
        assert (env.step(np.array([1, 0, 0, 0, 0])).reward[0] > 0) == pays


def fight(env, seed):
    """Play an episode in which everybody shoots the first target that is offered, or awaits one; the rewards, and the
    last step."""
    obs, rewards = env.reset(seed), []
    while True:
        offered = obs.action_mask[:, 6:]
        action = np.where(offered.any(1), 6 + offered.argmax(1), np.where(obs.alive, 1, 0))
        step = env.step(action)
        obs = step.obs
        rewards.append(float(step.reward[0]))
        if step.terminated or step.truncated:
            return rewards, step


@pytest.mark.parametrize("race", TYPES)
def test_a_won_battle_pays_twenty(race):
    env = make(f"{race}_5_vs_5", shoot_range=12.0, reward_only_positive=False, reward_negative_scale=0.0)
    plain, won = make(f"{race}_5_vs_5", shoot_range=12.0), 0
    for seed in range(30):
        rewards, step = fight(env, seed)
        if step.info["success"] and step.info["dead_enemies"] == 5:
            won += 1
            assert sum(rewards) == pytest.approx(20, abs=1e-3)
            assert sum(fight(plain, seed)[0]) > 20 - 1e-3, "what is regenerated must be shot again"
    assert won >= 3


OPTIONS = [
    {},
    {"conic_fov": True, "num_fov_actions": 5, "prob_obs_enemy": 0.4, "obs_last_action": True},
    {"layout": "mappo", "conic_fov": True, "prob_obs_enemy": 0.4},
    {"action_mask": False, "prob_obs_enemy": 0.0, "obs_instead_of_state": True, "obs_timestep_number": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("task", ["terran_5_vs_5", "protoss_10_vs_11", "MMM2"])
def test_passes_the_conformance_suite(task, options):
    assert check_env(lambda: make(task, max_steps=50, **options))
    assert check_vector_env(
        lambda: batch(task, 3, 2, max_steps=40, **options),
        [1, 2, 3],
        lambda: make(task, max_steps=40, **options),
        steps=70,
    )


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(
            task, marks=() if task in ("terran_10_vs_11", "zerg_5_vs_5", "zerg_20_vs_23") else pytest.mark.slow
        )
        for task in sorted(set(TEAM_TASKS) - {"terran_5_vs_5", "protoss_10_vs_11"})
    ],
)
def test_every_scenario_passes_the_conformance_suite(task):
    assert check_env(lambda: make(task, max_steps=30))


def play(env, obs, steps, seed=0):
    """Return the outputs of a batch over some steps of random actions, mostly attacks."""
    rng, run = np.random.default_rng(seed), []
    for _ in range(steps):
        score = rng.random(obs.action_mask.shape)
        score[..., 6:] += 0.5
        step = env.step((obs.action_mask * score).argmax(-1))
        obs = step.obs
        run.append([obs.agents.copy(), obs.state.copy(), obs.action_mask.copy(), step.reward, step.terminated])
    return run


def assert_equal_runs(first, second):
    for ours, theirs in zip(first, second, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("options", OPTIONS[1:])
def test_results_do_not_depend_on_threads(options):
    runs = []
    for threads in (1, 3):
        env = batch("zerg_10_vs_11", 5, threads, **options)
        runs.append(play(env, env.reset([5, 4, 3, 2, 1]), 120))
        env.close()
    assert any(step[4].any() for step in runs[0]), "episodes ended and new teams were drawn"
    assert_equal_runs(*runs)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_state_restores_the_drawn_teams(options):
    env = batch("protoss_5_vs_5", 3, **options)
    play(env, env.reset([7, 8, 9]), 30)
    states = env.get_state()
    types = [env._battles.map_at(index).types for index in range(3)]
    assert len(set(types)) > 1
    expected = play(env, env._battles.obs, 60, seed=1)
    other = batch("protoss_5_vs_5", 3, **options)
    other.reset([1, 2, 3])
    obs = other.set_state(states)
    assert [other._battles.map_at(index).types for index in range(3)] == types
    assert_equal_runs(expected, play(other, obs, 60, seed=1))
    np.testing.assert_array_equal(env._battles.stats, other._battles.stats)


def test_one_battle_equals_the_first_of_a_batch():
    one, many = batch("terran_10_vs_11", 1), batch("terran_10_vs_11", 2)
    obs, both = one.reset([4]), many.reset([4, 5])
    np.testing.assert_array_equal(obs.agents[0], both.agents[0])
    action = np.where(both.action_mask[:, :, 6:].any(-1), 6 + both.action_mask[:, :, 6:].argmax(-1), 1)
    np.testing.assert_array_equal(one.step(action[:1]).obs.agents[0], many.step(action).obs.agents[0])


REFERENCE = """
import hashlib
import numpy as np
from marl.envs.smac import batch

digest = hashlib.sha256()
hidden = {"prob_obs_enemy": 0.5, "conic_fov": True}
runs = (("terran_5_vs_5", 8, hidden), ("zerg_5_vs_5", 8, {"action_mask": False}), ("MMM", 3, hidden))
for task, steps, options in runs:
    env = batch(task, 2, **options)
    obs = env.reset([3, 4])
    rng = np.random.default_rng(0)
    for _ in range(steps):
        mask = obs.action_mask.copy()
        step = env.step((mask * rng.random(mask.shape)).argmax(-1))
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


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="only the embedded engine draws"):
        make("terran_5_vs_5", backend="sc2")
    with pytest.raises(ConfigError, match="draws them anew"):
        ScriptedTeam(make("zerg_5_vs_5").spec, kites=False)
    with pytest.raises(UnknownNameError, match="protoss_10_vs_11"):
        make("protoss_10_vs_12")
    for options, message in (
        ({"prob_obs_enemy": 1.2}, "prob_obs_enemy=1.2"),
        ({"num_fov_actions": 8}, "without conic_fov"),
        ({"num_fov_actions": 0, "conic_fov": True}, "num_fov_actions=0"),
        ({"sight_range": 0.0}, "sight_range=0.0"),
        ({"conic_fov": True, "backend": "sc2"}, "conic_fov=True.*backend=embedded"),
        ({"prob_obs_enemy": 0.0, "backend": "sc2"}, "prob_obs_enemy=0.0"),
        ({"action_mask": False, "backend": "sc2"}, "action_mask=False"),
    ):
        with pytest.raises(ConfigError, match=message):
            SmacOptions(**options)
