"""Multi-agent MuJoCo against gymnasium-robotics' mamujoco_v1, to the bit."""
# ruff: noqa: E402

import gymnasium
import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics.envs.multiagent_mujoco import mamujoco_v1
from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

from marl.envs.mamujoco import TASKS, batch, make
from marl.envs.mamujoco.obs_columns import find_layout
from marl.envs.mamujoco.scenarios import SCENARIOS, ForwardReward, Scenario
from marl.envs.mamujoco.tasks import REPARTITIONS, factorization, multi_agent_env, parse_task, single_agent_env
from marl.errors import EnvironmentContractError
from tests.support.mamujoco import assert_same, random_actions

ENDING = ("Hopper-3x1", "Walker2d-2x3", "Ant-4x2", "Humanoid-9|8", "InvertedPendulum", "InvertedDoublePendulum")


@pytest.fixture(autouse=True)
def notices():
    """MuJoCo's notices, kept out of the terminal and of MUJOCO_LOG.TXT: upstream's half_cheetah.xml causes one."""
    messages = []
    mujoco.set_mju_user_warning(messages.append)
    yield messages
    mujoco.set_mju_user_warning(None)


class Oracle:
    """mamujoco_v1 with arrays in and out, padded as EnvSpec promises."""

    def __init__(self, name, agent_obsk=1, **options):
        task = parse_task(name)
        parts = factorization(task) if name in SPECIAL else None
        self.env = mamujoco_v1.parallel_env(
            task.scenario, task.partition, agent_obsk, agent_factorization=parts, disable_env_checker=True, **options
        )
        self.agents = self.env.possible_agents
        self.sizes = [self.env.action_space(agent).shape[0] for agent in self.agents]
        self.width = max(self.env.observation_space(agent).shape[0] for agent in self.agents)

    def pad(self, observations):
        padded = np.zeros((len(self.agents), self.width))
        for row, agent in zip(padded, self.agents, strict=True):
            row[: len(observations[agent])] = observations[agent]
        return padded.astype(np.float32), self.env.state().astype(np.float32)

    def reset(self, seed=None):
        return self.pad(self.env.reset(seed=seed)[0])

    def step(self, action):
        rows = zip(self.agents, self.sizes, action, strict=True)
        observations, reward, terminated, truncated, info = self.env.step({a: row[:size] for a, size, row in rows})
        first = self.agents[0]
        return self.pad(observations), reward[first], terminated[first], truncated[first], info[first]


SPECIAL = {f"{scenario}-{partition}" for scenario, partition in REPARTITIONS} | {"Pusher-3p"}
"""Tasks whose partition is ours; Pusher's own one is compared below, up to upstream's arbitrary order."""


def assert_step(step, oracle, action):
    """Step both environments and compare. Return True if the episode ended."""
    expected, reward, terminated, truncated, info = oracle.step(action)
    assert_same(step.obs, expected)
    assert set(step.reward.tolist()) == {float(np.float32(reward))}
    assert (step.terminated, step.truncated) == (terminated, truncated and not terminated)
    for name, value in step.info.items():
        assert value == float(info[name]), name
    return terminated or truncated


@pytest.mark.parametrize("agent_obsk", [0, 1, 2, None])
@pytest.mark.parametrize("name", [*TASKS, "ManySegmentAnt-1x2", "ManySegmentSwimmer-1x3"])
def test_equals_upstream(name, agent_obsk):
    env, oracle = make(name, agent_obsk=agent_obsk), Oracle(name, agent_obsk)
    assert_same(env.reset(seed=11), oracle.reset(seed=11))
    for action in random_actions(env.spec, 30, 1)[:, 0]:
        if assert_step(env.step(action), oracle, action):
            assert_same(env.reset(), oracle.reset())
    assert env.spec.observation_sizes == tuple(oracle.env.observation_space(a).shape[0] for a in oracle.agents)
    assert env.spec.action_sizes == tuple(oracle.sizes)
    assert env.spec.agents == tuple(oracle.agents)


@pytest.mark.parametrize("name", ENDING)
def test_batch_equals_upstream_over_ends(name):
    """Each environment of a batch is one oracle, its random stream running on over the resets."""
    env = batch(name, 3, 2, max_steps=70)
    oracles = [Oracle(name, max_episode_steps=70) for _ in range(3)]
    obs = env.reset([5, 6, 7])
    expected = [oracle.reset(seed) for oracle, seed in zip(oracles, (5, 6, 7), strict=True)]
    assert_same(obs, [np.stack(part) for part in zip(*expected, strict=True)])
    terminations = 0
    for action in random_actions(env.spec, 150, 3, seed=2):
        step = env.step(action)
        ended = np.flatnonzero(step.terminated | step.truncated).tolist()
        assert (step.final is None) == (not ended)
        if step.final is not None:
            assert step.final.env.tolist() == ended
        for index, oracle in enumerate(oracles):
            last, reward, terminated, truncated, info = oracle.step(action[index])
            assert (step.terminated[index], step.truncated[index]) == (terminated, truncated and not terminated)
            np.testing.assert_array_equal(step.reward[index], np.float32(reward))
            terminations += terminated
            if terminated or truncated:
                row = ended.index(index)
                np.testing.assert_array_equal(step.final.obs.agents[row], last[0])
                np.testing.assert_array_equal(step.final.obs.state[row], last[1])
                assert step.final.info[row] == {name: float(info[name]) for name in step.final.info[row]}
                assert step.final.info[row]
                last = oracle.reset()
            np.testing.assert_array_equal(step.obs.agents[index], last[0])
            np.testing.assert_array_equal(step.obs.state[index], last[1])
    assert terminations
    env.close()


def upstream_state(env, oracle):
    """Return the state of mamujoco_v1 for `set_state`."""
    single = oracle.env.single_agent_env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(single.model, kind))
    mujoco.mj_getState(single.model, single.data, physics, kind)
    features = np.concatenate(list(env._simulation.scenario.sources(single.data).values()))
    return {**env.get_state(), "physics": physics, "features": features, "steps": 0, "running": True}


@pytest.mark.parametrize("name", ENDING)
def test_far_out_states_are_rewarded_and_ended_as_upstream(name):
    """States scattered around the borders of health: heights, angles and, for Hopper, velocities."""
    env, oracle = make(name), Oracle(name)
    env.reset(seed=0), oracle.reset(seed=0)
    single = oracle.env.single_agent_env.unwrapped
    generator = np.random.default_rng(0)
    ends = []
    for action in random_actions(env.spec, 120, 1)[:, 0]:
        qpos = single.init_qpos * generator.uniform(0.2, 1.6) + generator.uniform(-0.3, 0.3, single.model.nq)
        qvel = generator.normal(0, 1, single.model.nv) * generator.choice((0.1, 3, 70))
        single.set_state(qpos, qvel)
        env.set_state(upstream_state(env, oracle))
        ends.append(assert_step(env.step(action), oracle, action))
    assert 5 < sum(ends) < 115


@pytest.mark.parametrize("name", ["Ant", "Hopper", "Humanoid", "Walker2d"])
def test_health_is_upstreams_on_both_sides_of_every_border(name):
    single = single_agent_env(parse_task(name))
    scenario = SCENARIOS[name](single)
    generator = np.random.default_rng(0)
    healthy = []
    for _ in range(400):
        single.data.qpos[:] = generator.normal(0, 0.3, single.model.nq)
        single.data.qpos[1:3] = generator.uniform((0.6, -0.3), (2.1, 2.1)) * generator.choice((1, 0.2), 2)
        single.data.qvel[:] = generator.normal(0, 1, single.model.nv) * generator.choice((1, 60))
        single.data.qvel[generator.integers(single.model.nv)] *= generator.choice((1, np.nan), p=(0.9, 0.1))
        features = {key: view[None] for key, view in scenario.sources(single.data).items()}
        healthy.append(bool(scenario.healthy(features)[0]))
        assert healthy[-1] == bool(single.is_healthy)
    assert 10 < sum(healthy) < 390


@pytest.mark.parametrize(("name", "length"), [("Pusher-3p", 100), ("Reacher-2x1", 50)])
def test_full_length_is_truncated_as_upstream(name, length):
    env, oracle = make(name), Oracle(name)
    assert env.spec.max_steps == length
    env.reset(seed=1), oracle.reset(seed=1)
    actions = random_actions(env.spec, length, 1)[:, 0]
    ends = [assert_step(env.step(action), oracle, action) for action in actions]
    assert ends == [False] * (length - 1) + [True]


def test_every_other_scenario_lasts_1000_steps():
    assert {make(name).spec.max_steps for name in ("HalfCheetah-6x1", "Hopper", "ManySegmentAnt-1x2")} == {1000}


def test_a_termination_at_the_limit_is_no_truncation():
    """Gymnasium reports both; here an episode ends in one way, and a true end has no value behind it."""
    actions = random_actions(make("Hopper-3x1").spec, 200, 1)[:, 0]
    env = make("Hopper-3x1")
    env.reset(seed=0)
    length = next(count for count, action in enumerate(actions, 1) if env.step(action).terminated)
    env, oracle = make("Hopper-3x1", max_steps=length), Oracle("Hopper-3x1", max_episode_steps=length)
    env.reset(seed=0), oracle.reset(seed=0)
    steps = []
    for action in actions[:length]:
        steps.append(env.step(action))
        assert_step(steps[-1], oracle, action)
    assert (steps[-1].terminated, steps[-1].truncated) == (True, False)
    vector = batch("Hopper-3x1", 2, max_steps=length)
    vector.reset([0, 0])
    for action in actions[:length]:
        step = vector.step(np.stack([action, action]))
    assert step.terminated.all()
    assert not step.truncated.any()
    vector.close()


@pytest.mark.parametrize("agent_obsk", [0, 1, 2])
def test_pusher_differs_from_upstream_only_in_the_order_that_upstream_leaves_to_chance(agent_obsk):
    env = make("Pusher-3p", agent_obsk=agent_obsk)
    upstream = mamujoco_v1.parallel_env("Pusher", "3p", agent_obsk)
    ours, (theirs, _) = env.reset(seed=4), upstream.reset(seed=4)
    for row, size, agent in zip(ours.agents, env.spec.observation_sizes, env.spec.agents, strict=True):
        np.testing.assert_array_equal(np.sort(row[:size]), np.sort(theirs[agent].astype(np.float32)))
    again = make("Pusher-3p", agent_obsk=agent_obsk).reset(seed=4)
    np.testing.assert_array_equal(again.agents, ours.agents)


@pytest.mark.parametrize(("scenario", "partition"), REPARTITIONS)
def test_our_partitions_share_out_every_joint_once(scenario, partition):
    parts = factorization(parse_task(f"{scenario}-{partition}"))["partition"]
    count, size = map(int, partition.split("x"))
    assert [len(part) for part in parts] == [size] * count
    whole = get_parts_and_edges(scenario, None)[0][0]
    assert sorted(node.act_ids for part in parts for node in part) == sorted(node.act_ids for node in whole)


def test_half_cheetah_3x2_moves_the_joints_of_the_papers():
    env = make("HalfCheetah-3x2")
    env.reset(seed=0)
    action = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
    env.step(action)
    model, data = env._simulation.model, env._simulation.datas[0]
    torques = {model.actuator(index).name: float(np.float32(data.ctrl[index])) for index in range(6)}
    expected = ["bfoot", "bshin", "bthigh", "ffoot", "fshin", "fthigh"]
    assert torques == dict(zip(expected, action.reshape(-1).tolist(), strict=True))


@pytest.mark.parametrize("joint", ["bthigh", 0])
@pytest.mark.parametrize("agent_obsk", [1, None])
def test_a_disabled_joint_is_an_action_of_zero(joint, agent_obsk):
    env, oracle = (
        make("HalfCheetah-6x1", disabled_joint=joint, agent_obsk=agent_obsk),
        Oracle("HalfCheetah-6x1", agent_obsk),
    )
    env.reset(seed=0), oracle.reset(seed=0)
    for action in random_actions(env.spec, 20, 1)[:, 0]:
        given = action.copy()
        action.reshape(-1)[0] = 0
        assert_step(env.step(given), oracle, action)
        assert given.reshape(-1)[0] != 0


def test_construction_leaves_no_notice_and_no_handler_behind(notices):
    handler = mujoco.get_mju_user_warning()
    make("HalfCheetah-6x1")
    assert notices == []
    assert mujoco.get_mju_user_warning() is handler
    gymnasium.make("HalfCheetah-v5", disable_env_checker=True)
    assert len(notices) == 1, "upstream's file still causes the notice that is dropped"


class Blind(ForwardReward):
    """A scenario that forgot the velocities."""

    def sources(self, data):
        return {"qpos": data.qpos}


def test_a_number_that_is_no_feature_is_an_error():
    task = parse_task("HalfCheetah-6x1")
    single = single_agent_env(task)
    upstream = multi_agent_env(task, 1, single)
    assert len(find_layout(Scenario(single), upstream).agents) == 6
    with pytest.raises(EnvironmentContractError, match=r"entries \[1, 6, 7, 8\] of mamujoco_v1's agent_0"):
        find_layout(Blind(single), upstream)
