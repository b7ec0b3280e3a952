"""SMAC's scripted teams: what they see, whom they shoot, when they step back, what they win, and what they refuse."""

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from marl.envs.smac import batch, make
from marl.envs.smac.engine.fields import COOLDOWN, HEALTH, LAST, SHIELD, X, Y
from marl.envs.smac.scripted import FIRST_TARGET, NORTH, STOP, ScriptedTeam, UnitTables, choose_targets, decode_state
from marl.errors import ConfigError
from marl.evaluation import paired_seeds, run_episodes
from marl.registry import AGENTS, NoOptions, find_env
from tests.support.smac import EVERY_MAP

EPISODES = 32


def results(task, agent, episodes=EPISODES):
    env = batch(task, episodes)
    policy = AGENTS.get(agent).make(env.spec, NoOptions())
    return run_episodes(policy, env, paired_seeds(episodes))


def success(task, agent, episodes=EPISODES):
    return np.mean([row.info["success"] for row in results(task, agent, episodes)])


def arrange(env, units):
    """Put units (index: x, y, health, cooldown) on the field, the rest dead; returns states (1, S) and masks."""
    env.reset(0)
    unit_float = env._battles.battle.unit_float[0]
    unit_float[HEALTH] = unit_float[SHIELD] = 0.0
    for unit, values in units.items():
        unit_float[X, unit], unit_float[Y, unit], unit_float[HEALTH, unit], unit_float[COOLDOWN, unit] = values
    env._battles.refresh()
    obs = env._obs()
    return obs.state[None], obs.action_mask[None]


@pytest.mark.parametrize("task", ["3m", "MMM", "2s3z", "6h_vs_8z", "3s_vs_4z"])
def test_the_state_says_where_the_units_are(task):
    env = batch(task, 2)
    team, obs = ScriptedTeam(env.spec, kites=False), env.reset([3, 4])
    for _ in range(18):
        obs = env.step(team.choose(obs.state, obs.action_mask)).obs
    tables = UnitTables(task)
    view, unit_float = decode_state(tables, obs.state, obs.action_mask), env._battles.battle.unit_float
    agents, living = tables.agents, unit_float[:, HEALTH] > 0
    assert (unit_float[:, HEALTH] < tables.health).any()
    np.testing.assert_allclose(view.health, unit_float[:, HEALTH], atol=1e-3)
    np.testing.assert_allclose(view.shield, unit_float[:, SHIELD], atol=1e-3)
    np.testing.assert_allclose(view.place[living], unit_float[:, [X, Y]].swapaxes(1, 2)[living], atol=1e-4)
    armed = living[:, :agents] & ~tables.healer[:agents]
    np.testing.assert_allclose(view.cooldown[armed], unit_float[:, COOLDOWN, :agents][armed], atol=1e-3)
    assert (view.last[armed] == env._battles.battle.unit_int[:, LAST, :agents][armed]).all()


@pytest.mark.parametrize("agent", ["focus-fire", "kiting"])
@pytest.mark.parametrize("task", EVERY_MAP)
def test_every_action_of_every_map_is_available(task, agent):
    env = batch(task, 2)
    policy = AGENTS.get(agent).make(env.spec, NoOptions())
    obs = env.reset([1, 2])
    for _ in range(45):
        decision = policy.act(policy.encode(obs))
        assert decision.action.dtype == np.int64
        taken = np.take_along_axis(obs.action_mask, decision.action[..., None], -1)[..., 0]
        assert taken.all()
        assert (decision.action[obs.alive] >= STOP).all()
        obs = env.step(decision.action).obs


def test_the_decision_has_the_shapes_of_a_policy():
    env = batch("2s3z", 3)
    policy = AGENTS.get("kiting").make(env.spec, NoOptions())
    inputs = policy.encode(env.reset([0, 1, 2]))
    decision = policy.act(inputs)
    assert decision.nodes.action.shape == decision.log_prob.shape == decision.value.shape == (3, 5, 1)
    assert decision.nodes.node_mask.all()
    assert not decision.nodes.loss_mask.any()
    assert torch.equal(decision.nodes.action[..., 0], torch.as_tensor(decision.action))
    assert policy.value(inputs).shape == (3, 5)
    assert not AGENTS.get("kiting").trains


@pytest.mark.parametrize("kites", [False, True])
@pytest.mark.parametrize("task", ["MMM", "3s_vs_4z", "corridor", "2s_vs_1sc"])
def test_a_battle_is_played_the_same_alone_and_in_a_batch_and_again(task, kites):
    env = batch(task, 3)
    team, other = ScriptedTeam(env.spec, kites), ScriptedTeam(env.spec, kites)
    obs = env.reset([4, 5, 6])
    for _ in range(40):
        action = team.choose(obs.state, obs.action_mask)
        for index in (2, 0, 1):
            alone = other.choose(obs.state[index : index + 1], obs.action_mask[index : index + 1])
            assert (alone[0] == action[index]).all()
        obs = env.step(action).obs


def test_no_more_shoot_than_a_kill_takes():
    env, tables = make("3m"), UnitTables("3m")
    line = {0: (10, 15, 45, 0), 1: (10, 16, 45, 0), 2: (10, 17, 45, 0)}
    for weak, expected in ((5.0, 1), (6.0, 1), (6.5, 2), (12.5, 3), (40.0, 3)):
        view = decode_state(tables, *arrange(env, line | {3: (14, 16, weak, 0), 4: (14, 15.5, 45, 0)}))
        chosen = choose_targets(tables, view)[0]
        assert (chosen == FIRST_TARGET).sum() == expected
        assert (chosen == FIRST_TARGET + 1).sum() == 3 - expected


def test_weapons_that_cool_down_leave_the_kill_to_others():
    env, tables = make("3m"), UnitTables("3m")
    units = {0: (10, 15, 45, 12), 1: (10, 16, 45, 0), 2: (10, 17, 45, 0), 3: (14, 16, 6, 0), 4: (14, 15.5, 45, 0)}
    chosen = choose_targets(tables, decode_state(tables, *arrange(env, units)))[0]
    assert chosen[1] == FIRST_TARGET
    assert chosen[2] == FIRST_TARGET + 1


def test_an_attack_that_is_impossible_is_not_ordered():
    env = make("MMM")
    team = ScriptedTeam(env.spec, kites=False)
    # two marauders, a marine and the medivac, a damaged marine of theirs out of reach, their medivac next to them
    units = {0: (10, 15, 125, 0), 1: (10, 17, 125, 0), 2: (10, 16, 20, 0), 9: (9, 16, 150, 0)}
    action = team.choose(*arrange(env, units | {19: (13, 16, 150, 0), 10: (30, 16, 45, 0)}))[0]
    medivac = FIRST_TARGET + 9
    assert action[2] == medivac
    assert (action[:2] < FIRST_TARGET).all()
    assert action[9] == FIRST_TARGET + 2


def test_a_healer_treats_the_weakest():
    env = make("MMM")
    team = ScriptedTeam(env.spec, kites=False)
    units = {0: (10, 15, 120, 0), 2: (10, 16, 20, 0), 3: (10, 17, 30, 0), 9: (9, 16, 150, 0), 10: (30, 16, 45, 0)}
    assert team.choose(*arrange(env, units))[0, 9] == FIRST_TARGET + 2
    units[2], units[3] = (10, 16, 45, 0), (10, 17, 45, 0)
    assert team.choose(*arrange(env, units))[0, 9] == FIRST_TARGET


def test_a_stalker_steps_back_from_a_zealot_only_while_that_costs_no_shot():
    env = make("3s_vs_3z")
    teams = {kites: ScriptedTeam(env.spec, kites) for kites in (False, True)}
    for apart, cooldown, shoots in ((4.5, 0, True), (4.5, 18, True), (2.5, 18, False), (1.6, 0, False)):
        view = arrange(env, {0: (16, 16, 80, cooldown), 3: (16 + apart, 16, 100, 0)})
        assert teams[False].choose(*view)[0, 0] == FIRST_TARGET
        chosen = teams[True].choose(*view)[0, 0]
        assert (chosen == FIRST_TARGET) == shoots
        if not shoots:
            assert NORTH <= chosen < FIRST_TARGET
            assert chosen != NORTH + 2  # east, into it


def test_a_cornered_unit_does_not_run_into_the_corner():
    env = make("3s_vs_3z")
    team = ScriptedTeam(env.spec, kites=True)
    state, mask = arrange(env, {0: (1.2, 1.2, 80, 18), 3: (3.0, 1.2, 100, 0)})
    assert team.choose(state, mask)[0, 0] == NORTH


def test_who_would_die_gives_its_place_to_a_healthy_ally():
    env = make("3m")
    near = {3: (15, 16, 45, 0), 4: (15, 16.9, 45, 0)}
    for health, cooldown, leaves in ((10, 10, True), (45, 10, False), (10, 0, False)):
        view = arrange(env, {0: (10, 16, health, cooldown), 1: (9.4, 15, 45, 10)} | near)
        assert (ScriptedTeam(env.spec, True).choose(*view)[0, 0] < FIRST_TARGET) == leaves
        assert ScriptedTeam(env.spec, False).choose(*view)[0, 0] >= FIRST_TARGET
    last = arrange(env, {0: (10, 16, 10, 10)} | near)
    assert ScriptedTeam(env.spec, True).choose(*last)[0, 0] >= FIRST_TARGET


@pytest.mark.parametrize(
    ("task", "least"), [("3m", 0.7), ("8m", 0.7), ("25m", 0.7), ("2s3z", 0.4), ("3s5z", 0.6), ("MMM", 0.7)]
)
def test_focused_fire_wins_equal_battles(task, least):
    assert success(task, "focus-fire") >= least
    assert success(task, "kiting") >= least - 0.1


def test_a_swarm_that_surrounds_is_hard_to_beat():
    assert success("corridor", "focus-fire") <= 0.65


def test_numbers_do_not_decide_alone():
    for task in ("8m_vs_9m", "10m_vs_11m"):
        assert success(task, "focus-fire") >= 0.8


@pytest.mark.parametrize("task", ["3s_vs_3z", "3s_vs_4z", "3s_vs_5z"])
def test_stalkers_win_against_zealots_by_kiting_and_not_without(task):
    assert success(task, "kiting") >= 0.9
    assert success(task, "focus-fire") <= 0.1


def test_a_siege_and_a_chase_need_steps_back_too():
    for task in ("2m_vs_1z", "2s_vs_1sc"):
        kiting, focused = ([row.episode_return for row in results(task, agent)] for agent in ("kiting", "focus-fire"))
        assert np.mean(kiting) > np.mean(focused) + 3


def test_random_play_wins_nothing():
    assert success("8m", "random", 64) < 0.05


def test_the_same_seeds_give_the_same_episodes():
    for agent in ("focus-fire", "kiting"):
        assert results("5m_vs_6m", agent, 8) == results("5m_vs_6m", agent, 8)


def test_other_environments_and_states_are_refused():
    entry, task = find_env("toy/climbing")
    for agent in ("focus-fire", "kiting"):
        make_team = AGENTS.get(agent).make
        with pytest.raises(ConfigError, match="'toy/climbing'; choose"):
            make_team(entry.make(task).spec, NoOptions())
        for options in ({"state_last_action": False}, {"state_timestep_number": True}):
            with pytest.raises(ConfigError, match="state_last_action"):
                make_team(make("3m", **options).spec, NoOptions())


@pytest.mark.parametrize("task", EVERY_MAP)
def test_observations_instead_of_the_state_are_refused(task):
    with pytest.raises(ConfigError, match="obs_instead_of_state"):
        ScriptedTeam(make(task, obs_instead_of_state=True).spec, kites=False)


def test_who_awaits_explosions_keeps_apart_and_keeps_its_place():
    env = batch("so_many_baneling", 1)
    team, obs = ScriptedTeam(env.spec, kites=False), env.reset([0])
    for _ in range(11):
        obs = env.step(team.choose(obs.state, obs.action_mask)).obs
    # units stand 0.8 apart at the start
    x, y = env._battles.battle.unit_float[0, [X, Y], :7]
    nearest = (np.hypot(x[:, None] - x, y[:, None] - y) + 9 * np.eye(7)).min(0)
    assert nearest.mean() > 1.5
    assert success("bane_vs_bane", "focus-fire") >= 0.8
