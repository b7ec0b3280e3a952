"""SMAC in the layout of MAPPO's fork: sizes, rows written out by hand, SMAC's own layout in another order."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac import TASKS, SmacOptions, batch, make
from marl.envs.smac.engine.fields import (
    ALLY_TYPE,
    COOLDOWN,
    COOLDOWN_SCALE,
    ENEMY_TYPE,
    ENERGY,
    HEALER,
    HEALTH,
    LAST,
    MAX_HEALTH,
    MAX_SHIELD,
    SHIELD,
    STEPS,
    X,
    Y,
)
from marl.envs.smac.scripted import ScriptedTeam
from marl.envs.testing import check_env, check_vector_env
from marl.errors import ConfigError
from tests.support.smac import EVERY_MAP

MAPS = {
    "3m": (3, 3, 0, 0, 0),
    "8m": (8, 8, 0, 0, 0),
    "25m": (25, 25, 0, 0, 0),
    "5m_vs_6m": (5, 6, 0, 0, 0),
    "8m_vs_9m": (8, 9, 0, 0, 0),
    "10m_vs_11m": (10, 11, 0, 0, 0),
    "27m_vs_30m": (27, 30, 0, 0, 0),
    "MMM": (10, 10, 0, 0, 3),
    "MMM2": (10, 12, 0, 0, 3),
    "2s3z": (5, 5, 1, 1, 2),
    "3s5z": (8, 8, 1, 1, 2),
    "3s5z_vs_3s6z": (8, 9, 1, 1, 2),
    "1c3s5z": (9, 9, 1, 1, 3),
    "3s_vs_3z": (3, 3, 1, 1, 0),
    "3s_vs_4z": (3, 4, 1, 1, 0),
    "3s_vs_5z": (3, 5, 1, 1, 0),
    "2m_vs_1z": (2, 1, 0, 1, 0),
    "2s_vs_1sc": (2, 1, 1, 0, 0),
    "6h_vs_8z": (6, 8, 0, 1, 0),
    "corridor": (6, 24, 1, 0, 0),
    "so_many_baneling": (7, 32, 1, 0, 0),
    "bane_vs_bane": (24, 24, 0, 0, 2),
    "2c_vs_64zg": (2, 64, 1, 0, 0),
}
"""Agents, enemies, whether each side has shields, and the width of a type."""

PUBLISHED = {"3m": (64, 81), "8m": (204, 251), "MMM2": (370, 435), "27m_vs_30m": (1288, 1458)}


def fork(task, **options):
    env = make(task, layout="mappo", **options)
    env.reset(0)
    return env


def views(env, obs):
    """(N, S'): each agent's own part of the state."""
    return obs.state.reshape(env.spec.num_agents, -1)


def place(env, units, last=()):
    """Put units (index: x, y, health, shield), tell the agents' last actions and show them; the rest are dead."""
    battles = env._battles
    unit_float, unit_int = battles.battle.unit_float[0], battles.battle.unit_int[0]
    unit_float[HEALTH] = unit_float[SHIELD] = 0.0
    for unit, values in units.items():
        unit_float[X, unit], unit_float[Y, unit], unit_float[HEALTH, unit], unit_float[SHIELD, unit] = values
    unit_int[LAST, : len(last)] = last
    battles.refresh()
    return env._obs()


def scatter(env, seed):
    """Units anywhere in a part of the map, some dead, with any health, cooldown, energy and last action."""
    battles, rng = env._battles, np.random.default_rng(seed)
    unit_float, unit_int, stats = battles.battle.unit_float[0], battles.battle.unit_int[0], battles.world.stats
    units = unit_float.shape[1]
    unit_float[X], unit_float[Y] = (
        rng.uniform(4, 28, units).astype(np.float32),
        rng.uniform(10, 22, units).astype(np.float32),
    )
    unit_float[HEALTH] = (rng.random(units) * stats[MAX_HEALTH] * (rng.random(units) < 0.7)).astype(np.float32)
    unit_float[SHIELD] = (rng.random(units) * stats[MAX_SHIELD]).astype(np.float32)
    unit_float[ENERGY], unit_float[COOLDOWN] = rng.uniform(0, 200, units), rng.uniform(-1, 15, units)
    unit_int[LAST] = rng.integers(-1, battles.rules.actions, units)
    battles.refresh()
    return env._obs()


def one_hot(index, size):
    return [float(index == position) for position in range(size)]


@pytest.mark.parametrize("name", TASKS)
def test_sizes_are_those_of_the_fork(name):
    agents, enemies, shield, foes_shield, types = MAPS[name]
    ally, enemy = 5 + shield + types + 6 + enemies, 5 + foes_shield + types
    observation = agents * ally + enemies * enemy + 4 + agents
    view = observation + 3 * (agents - 1) + 3 * enemies + 2
    env = fork(name, max_steps=25)
    assert (env.spec.observation_size, env.spec.state_size) == (observation, agents * view)
    assert PUBLISHED.get(name, (observation, view)) == (observation, view)
    assert set(MAPS) == set(TASKS)


@pytest.mark.parametrize("name", EVERY_MAP)
def test_passes_the_conformance_suite(name):
    assert check_env(lambda: make(name, layout="mappo", max_steps=25))


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM"])
def test_a_batch_is_as_many_single_ones(name):
    options = {"layout": "mappo"}
    assert check_vector_env(lambda: batch(name, 3, 2, **options), [1, 2, 3], lambda: make(name, **options), steps=70)


def test_marines_by_hand():
    env = fork("3m")
    env._battles.battle.unit_float[0, COOLDOWN, 1] = 7.5
    units = {0: (10, 16, 45, 0), 1: (10, 18, 30, 0), 3: (15, 16, 15, 0), 4: (10, 22.5, 45, 0), 5: (19.1, 16, 45, 0)}
    obs = place(env, units, last=(6, 3, 0))

    expected = [1, 2 / 9, 0, 2 / 9, 30 / 45, *one_hot(3, 9)]
    expected += [0] * 14  # dead
    expected += [1, 5 / 9, 5 / 9, 0, 15 / 45]  # in shooting range
    expected += [0, 6.5 / 9, 0, 6.5 / 9, 1]  # seen, too far to shoot
    expected += [0] * 5  # out of sight
    expected += [1, 1, 1, 1]
    expected += [1, 0, 0, 0, 1, *one_hot(6, 9)]
    expected += [1, 0, 0]
    np.testing.assert_allclose(obs.agents[0], expected, atol=1e-7)
    np.testing.assert_array_equal(obs.agents[2], [0] * 61 + [0, 0, 1])

    expected = [1, 2 / 9, 0, 2 / 9, 7.5 / 15, 30 / 45, -6 / 32, 2 / 32, *one_hot(3, 9)]
    expected += [0] * 17
    expected += [1, 5 / 9, 5 / 9, 0, 1, 15 / 45, -1 / 32, 0]
    expected += [0, 6.5 / 9, 0, 6.5 / 9, 1, 1, -6 / 32, 6.5 / 32]
    expected += [0, 9.1 / 9, 9.1 / 9, 0, 0, 1, 3.1 / 32, 0]  # out of sight, and known all the same
    expected += [1, 1, 1, 1]
    expected += [1, 0, 0, 0, 1, -6 / 32, 0, *one_hot(6, 9)]
    expected += [1, 0, 0]
    np.testing.assert_allclose(views(env, obs)[0], expected, atol=1e-7)
    np.testing.assert_array_equal(views(env, obs)[2], [0] * 78 + [0, 0, 1])


def test_an_ally_out_of_sight_by_hand():
    env = fork("3m")
    env._battles.battle.unit_float[0, COOLDOWN, 2] = 3
    obs = place(env, {1: (10, 16, 45, 0), 2: (22, 11, 9, 0)}, last=(0, 1, 4))
    assert (obs.agents[1, :28] == 0).all()
    ally = [0, 13 / 9, 12 / 9, -5 / 9, 3 / 15, 9 / 45, 6 / 32, -5 / 32, *one_hot(4, 9)]
    np.testing.assert_allclose(views(env, obs)[1, :34], [0] * 17 + ally, atol=1e-7)
    back = [0, 13 / 9, -12 / 9, 5 / 9, 0, 1, -6 / 32, 0, *one_hot(1, 9)]
    np.testing.assert_allclose(views(env, obs)[2, :34], [0] * 17 + back, atol=1e-7)


def test_shields_and_types_by_hand():
    env = fork("2s3z")
    unit_float = env._battles.battle.unit_float[0]
    unit_float[COOLDOWN, 0], unit_float[COOLDOWN, 2] = 35, 11
    units = {0: (10, 16, 40, 20), 2: (13, 16, 100, 25), 5: (10, 14, 80, 80), 7: (9, 26, 50, 10)}
    obs = place(env, units, last=(1, 0, 8, 0, 0))

    # a stalker sees a zealot; among the enemies a zealot is the first type and a stalker the second
    expected = [0] * 19 + [1, 3 / 9, 3 / 9, 0, 1, 0.5, 0, 1, *one_hot(8, 11)] + [0] * 38
    expected += [1, 2 / 9, 0, -2 / 9, 1, 1, 0, 1] + [0] * 32
    expected += [1, 1, 1, 1]
    expected += [1, 0, 0, 0, 0.5, 0.25, 1, 0, *one_hot(1, 11)]
    expected += one_hot(0, 5)
    np.testing.assert_allclose(obs.agents[0], expected, atol=1e-7)

    expected = [0] * 22
    expected += [1, 3 / 9, 3 / 9, 0, 11 / 22, 1, 0.5, -3 / 32, 0, 0, 1, *one_hot(8, 11)] + [0] * 44
    far = np.hypot(1, 10) / 9
    expected += [1, 2 / 9, 0, -2 / 9, 1, 1, 1, 0, 1, -6 / 32, -2 / 32] + [0] * 11
    expected += [0, far, -1 / 9, 10 / 9, 0, 0.5, 0.2, 1, 0, -7 / 32, 10 / 32] + [0] * 22
    expected += [1, 1, 1, 1]
    expected += [1, 0, 0, 0, 0.5, 0.25, -6 / 32, 0, 1, 0, *one_hot(1, 11)]
    expected += one_hot(0, 5)
    np.testing.assert_allclose(views(env, obs)[0], expected, atol=1e-7)


def test_a_healer_by_hand():
    env = fork("MMM")
    env._battles.battle.unit_float[0, ENERGY, 9] = 120
    units = {2: (12, 16, 15, 0), 9: (10, 16, 150, 0), 10: (14, 16, 45, 0), 12: (30, 16, 45, 0)}
    obs = place(env, units, last=(0, 0, 1, 0, 0, 0, 0, 0, 0, 8))
    actions = 16
    ally, enemy = 4 + 1 + 3 + actions, 4 + 1 + 3
    healer, marine = obs.agents[9], obs.agents[2]
    seen = [1, 2 / 9, 2 / 9, 0, 15 / 45, 0, 1, 0, *one_hot(1, actions)]
    np.testing.assert_allclose(healer[2 * ally :][:ally], seen, atol=1e-7)
    # of an enemy it is told whether it may heal the ally of that number: here the third and not the first
    foes = healer[9 * ally :][: 10 * enemy].reshape(10, enemy)
    assert foes[0, 0] == 0
    assert foes[0, 1] == pytest.approx(4 / 9)
    assert (foes[1:] == 0).all(), "the third enemy is out of sight"
    np.testing.assert_allclose(healer[-10 - ally : -10], [1, 0, 0, 0, 1, 0, 0, 1, *one_hot(8, actions)], atol=1e-7)
    assert marine[8 * ally :][:ally].tolist()[4:8] == [1, 0, 0, 1]

    ally, enemy = ally + 3, enemy + 3
    of_healer, of_marine = views(env, obs)[9], views(env, obs)[2]
    foes = of_healer[9 * ally :][: 10 * enemy].reshape(10, enemy)
    assert foes[2, 0] == 1, "which the agent's own state shows too, of whom it does not see"
    assert foes[2, 4] == 0
    expected = [1, 2 / 9, -2 / 9, 0, 120 / 200, 1, -6 / 32, 0, 0, 0, 1, *one_hot(8, actions)]
    np.testing.assert_allclose(of_marine[8 * ally :][:ally], expected, atol=1e-7)


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM2", "corridor", "2m_vs_1z"])
def test_the_observation_is_smacs_in_another_order(name):
    ours, smacs = fork(name), make(name, obs_last_action=True, obs_agent_id=True)
    smacs.reset(0)
    agents, enemies, shield, foes_shield, types = MAPS[name]
    allies, foes = (agents - 1) * (5 + shield + types + 6 + enemies), enemies * (5 + foes_shield + types)
    own = 1 + shield + types
    for seed in range(8):
        seen, theirs = scatter(ours, seed), scatter(smacs, seed)
        left = seen.agents
        np.testing.assert_array_equal(left[:, :allies], theirs.agents[:, 4 + foes :][:, :allies])
        np.testing.assert_array_equal(left[:, allies:][:, :foes], theirs.agents[:, 4:][:, :foes])
        np.testing.assert_array_equal(left[:, allies + foes :][:, :4], theirs.agents[:, :4])
        rest = left[:, allies + foes + 4 :]
        np.testing.assert_array_equal(rest[:, 0], seen.alive)
        assert (rest[:, 1:4] == 0).all()
        np.testing.assert_array_equal(rest[:, 4:][:, :own], theirs.agents[:, 4 + foes + allies :][:, :own])
        last = ours._battles.battle.unit_int[0, LAST, :agents]
        acted = np.array([one_hot(choice, 6 + enemies) for choice in last]) * seen.alive[:, None]
        np.testing.assert_array_equal(rest[:, 4 + own : -agents], acted)
        np.testing.assert_array_equal(rest[:, -agents:], np.eye(agents))
        np.testing.assert_array_equal(seen.action_mask, theirs.action_mask)


def view_of(env, obs, agent):
    """Return one agent's part of the state, computed from the units."""
    rules, stats, unit_float = env._battles.rules, env._battles.world.stats, env._battles.battle.unit_float[0]
    last, n = env._battles.battle.unit_int[0, LAST], rules.agents
    here, row = unit_float[[X, Y], agent], []

    def offset(unit):
        way = unit_float[[X, Y], unit] - here
        return [np.hypot(*way) / 9, *way / 9], float(np.hypot(*way) < 9)

    def health(unit, shields):
        fractions = [unit_float[HEALTH, unit] / stats[MAX_HEALTH, unit]]
        return [*fractions, unit_float[SHIELD, unit] / stats[MAX_SHIELD, unit]] if shields else fractions

    def center(unit):
        return [*(unit_float[[X, Y], unit] - 16) / 32]

    for other in (unit for unit in range(n) if unit != agent):
        way, seen = offset(other)
        level = unit_float[ENERGY, other] if stats[HEALER, other] else max(0, unit_float[COOLDOWN, other])
        part = [seen, *way, level / stats[COOLDOWN_SCALE, other], *health(other, rules.ally_shield), *center(other)]
        part += one_hot(stats[ALLY_TYPE, other], rules.type_bits) + one_hot(last[other], rules.actions)
        row += [x * obs.alive[other] for x in part]
    for enemy in range(rules.enemies):
        way, seen = offset(n + enemy)
        part = [float(obs.action_mask[agent, 6 + enemy]), *way, seen, *health(n + enemy, rules.enemy_shield)]
        part += one_hot(stats[ENEMY_TYPE, n + enemy], rules.type_bits) + center(n + enemy)
        row += [x * (unit_float[HEALTH, n + enemy] > 0) for x in part]
    row += [*obs.action_mask[agent, 2:6], 1, 0, 0, 0, *health(agent, rules.ally_shield), *center(agent)]
    row += one_hot(stats[ALLY_TYPE, agent], rules.type_bits) + one_hot(last[agent], rules.actions)
    return np.array(row) * obs.alive[agent]


@pytest.mark.parametrize("name", ["8m", "3s5z_vs_3s6z", "MMM2", "6h_vs_8z", "2c_vs_64zg"])
def test_every_agents_state_from_the_units(name):
    env = fork(name)
    for seed in range(6):
        obs = scatter(env, seed)
        for agent, view in enumerate(views(env, obs)):
            np.testing.assert_allclose(view[: -len(obs.alive)], view_of(env, obs, agent), atol=1e-6)
            assert view[-len(obs.alive) :].tolist() == one_hot(agent, len(obs.alive))


def test_no_last_action_before_the_first_and_a_step_shows_it():
    env = fork("3m")
    obs = env.reset(0)
    assert (obs.agents[:, 52:61] == 0).all()
    assert (views(env, obs)[:, 69:78] == 0).all()
    obs = env.step(np.array([2, 3, 4])).obs
    np.testing.assert_array_equal(obs.agents[:, 52:61], np.eye(9)[[2, 3, 4]])
    np.testing.assert_array_equal(views(env, obs)[:, 69:78], np.eye(9)[[2, 3, 4]])


@pytest.mark.parametrize(
    ("option", "observation", "view"),
    [
        ({"obs_all_health": False}, -5, -5),
        ({"obs_all_health": False, "obs_own_health": False}, -6, -6),
        ({"obs_last_action": False}, -27, 0),
        ({"obs_agent_id": False}, -3, 0),
        ({"obs_pathing_grid": True}, 8, 0),
        ({"obs_timestep_number": True}, 1, 0),
        ({"state_last_action": False}, 0, -27),
        ({"state_timestep_number": True}, 0, 1),
        ({"obs_instead_of_state": True}, 0, 64 - 81),
    ],
)
def test_options_are_honored(option, observation, view):
    env = fork("3m", **option)
    assert (env.spec.observation_size, env.spec.state_size) == (64 + observation, 3 * (81 + view))
    assert check_env(lambda: make("3m", layout="mappo", **option))


def test_options_by_hand():
    env = fork("3m", obs_last_action=False, obs_pathing_grid=True, obs_timestep_number=True, obs_all_health=False)
    env._battles.battle.counters[0, STEPS] = 15
    obs = place(env, {0: (10.5, 23.25, 45, 0), 1: (10.5, 20, 30, 0), 3: (14.5, 23.25, 20, 0)}, last=(1, 1, 0))
    expected = [1, 3.25 / 9, 0, -3.25 / 9] + [0] * 4 + [1, 4 / 9, 4 / 9, 0] + [0] * 8
    expected += [0, 1, 1, 1, *(0, 1, 1, 1, 0, 1, 1, 0)]  # the ground ends at 24
    expected += [1, 0, 0, 0, 1, *(1, 0, 0), 0.25]
    np.testing.assert_allclose(obs.agents[0], expected, atol=1e-7)
    assert obs.agents[2].tolist() == [0] * (len(expected) - 4) + [0, 0, 1, 0.25]

    env = fork("3m", state_last_action=False, state_timestep_number=True, obs_all_health=False)
    env._battles.battle.counters[0, STEPS] = 15
    obs = place(env, {0: (10, 16, 45, 0), 1: (10, 18, 30, 0), 3: (15, 16, 15, 0)}, last=(1, 1, 0))
    expected = [1, 2 / 9, 0, 2 / 9, 0, -6 / 32, 2 / 32] + [0] * 7
    expected += [1, 5 / 9, 5 / 9, 0, 1, -1 / 32, 0] + [0] * 14
    expected += [1, 1, 1, 1, *(1, 0, 0, 0, 1, -6 / 32, 0), *(1, 0, 0), 0.25]
    np.testing.assert_allclose(views(env, obs)[0], expected, atol=1e-7)
    assert views(env, obs)[2].tolist() == [0] * (len(expected) - 4) + [0, 0, 1, 0.25]


def test_observations_can_be_the_state():
    env = fork("2s3z", obs_instead_of_state=True)
    for seed in range(3):
        obs = scatter(env, seed)
        np.testing.assert_array_equal(obs.state, obs.agents.reshape(-1))


def test_smacs_layout_is_the_default_and_has_not_changed():
    digest = hashlib.sha256()
    for task in ("3m", "2s3z", "MMM2"):
        env = make(task)
        env.reset(0)
        for seed in range(5):
            obs = scatter(env, seed)
            digest.update(obs.agents.tobytes() + obs.state.tobytes() + obs.action_mask.tobytes())
    assert digest.hexdigest() == "2468066e05c98e42d9b2406f578d83599b4805e6dbffdaa8c010eb9f7afaee4f"


REFERENCE = """
import hashlib
import numpy as np
from marl.envs.smac import batch

digest = hashlib.sha256()
for task in ("MMM", "2s3z"):
    env = batch(task, 1, layout="mappo", obs_pathing_grid=True, state_timestep_number=True)
    obs = env.reset([3])
    rng = np.random.default_rng(0)
    for _ in range(14):
        obs = env.step((obs.action_mask * rng.random(obs.action_mask.shape)).argmax(-1)).obs
        digest.update(obs.agents.tobytes() + obs.state.tobytes())
print(digest.hexdigest())
"""


def test_uncompiled_functions_give_the_same_bits():
    digests = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-c", REFERENCE], env=environment, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
        digests.append(done.stdout)
    assert digests[0] == digests[1]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="layout='mat'; give 'smac' or 'mappo'"):
        SmacOptions(layout="mat")  # type: ignore[arg-type] - a wrong value on purpose
    with pytest.raises(ConfigError, match="leave layout"):
        ScriptedTeam(fork("3m").spec, kites=False)
