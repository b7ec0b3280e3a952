"""VMAS as a batch: contract, independence, starts, limits, and its own dynamics."""

import numpy as np
import pytest
import torch

import marl
from marl.envs.testing import check_env, check_vector_env
from marl.envs.vmas import BLOCK, OTHERS, RESTORABLE, VmasEnv, VmasOptions, VmasVector
from marl.errors import ConfigError, UnknownNameError

vmas = pytest.importorskip("vmas")
# VMAS imports the old gym package, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("scenario", ["balance", "transport", "give_way"])
def test_a_scenario_keeps_the_contract(scenario, continuous):
    options = VmasOptions(max_steps=20, continuous=continuous)
    check_env(VmasEnv(scenario, options))
    single = None if scenario in OTHERS else lambda: VmasEnv(scenario, options)
    check_vector_env(lambda: VmasVector(scenario, 3, options), [1, 2, 3], single, steps=50)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", RESTORABLE)
def test_every_restorable_scenario_keeps_the_contract(scenario):
    options = VmasOptions(max_steps=20)
    check_vector_env(lambda: VmasVector(scenario, 3, options), [1, 2, 3], lambda: VmasEnv(scenario, options), steps=50)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", OTHERS)
def test_every_other_scenario_plays(scenario):
    check_env(VmasEnv(scenario, VmasOptions(max_steps=20)))


def test_steps_and_rewards_are_those_of_the_package():
    ours = VmasVector("transport", 4)
    ours.reset([1, 2, 3, 4])
    theirs = vmas.make_env("transport", 4, continuous_actions=True)
    theirs.reset()
    pair = zip(ours._simulator.env.world.entities, theirs.world.entities, strict=True)
    for mine, their in pair:
        for name in ("pos", "vel", "rot", "ang_vel"):
            getattr(their.state, name)[:] = getattr(mine.state, name)
    for mine, their in zip(ours._simulator.env.scenario.packages, theirs.scenario.packages, strict=True):
        their.global_shaping, their.on_goal = mine.global_shaping.clone(), mine.on_goal.clone()
    random = np.random.default_rng(0)
    for _ in range(30):
        action = random.uniform(-1.0, 1.0, (4, 4, 2)).astype(np.float32)
        step = ours.step(action)
        observations, rewards, *_ = theirs.step(list(torch.from_numpy(action).unbind(1)))
        assert np.array_equal(step.obs.agents, torch.stack(observations, 1).numpy())
        assert np.array_equal(step.reward, torch.stack(rewards, 1).numpy())


def test_starts_differ_between_episodes_and_follow_the_seed():
    def starts(seed, count):
        env = VmasEnv("navigation")
        return [env.reset(seed if index == 0 else None).agents.copy() for index in range(count)]

    first = starts(3, BLOCK + 2)
    assert len({start.tobytes() for start in first}) == BLOCK + 2
    assert all(map(np.array_equal, first, starts(3, BLOCK + 2)))
    assert not np.array_equal(first[0], starts(4, 1)[0])


def test_reaching_the_goal_is_success_and_the_limit_is_truncation():
    env = VmasEnv("transport", VmasOptions(max_steps=5))
    env.reset(0)
    still = np.zeros((4, 2), dtype=np.float32)
    last = [env.step(still) for _ in range(5)][-1]
    assert (last.terminated, last.truncated, last.info) == (False, True, {"success": 0.0})
    env.reset(0)
    package = env._batch._simulator.env.scenario.packages[0]
    package.state.pos[:] = package.goal.state.pos
    last = env.step(still)
    assert (last.terminated, last.truncated, last.info) == (True, False, {"success": 1.0})


def test_actions_beyond_their_range_are_clipped():
    pair = [VmasEnv("balance") for _ in range(2)]
    for env in pair:
        env.reset(0)
    steps = [env.step(np.full((3, 2), size, np.float32)) for env, size in zip(pair, (1.0, 5.0), strict=True)]
    assert np.array_equal(steps[0].obs.agents, steps[1].obs.agents)


def test_bad_input_is_named():
    with pytest.raises(UnknownNameError, match="unknown task of vmas 'balence'; did you mean 'balance'"):
        marl.make("vmas/balence")
    with pytest.raises(ConfigError, match="max_steps=0; give 1 or more"):
        VmasOptions(max_steps=0)
    with pytest.raises(ConfigError, match=r"vmas/football: cannot be made with \{'n_blue_agents': 'x'\}"):
        marl.make("vmas/football", kwargs={"n_blue_agents": "x"})
