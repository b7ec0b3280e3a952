"""Multi-agent MuJoCo against gymnasium-robotics' mamujoco_v1, and against the contracts of marl.protocols."""

import ctypes.util
import json
import os
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium_robotics.envs.multiagent_mujoco import mamujoco_v1
from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

from envs.mamujoco import TASKS, MamujocoOptions, batch, make
from envs.mamujoco.env import MamujocoEnv, MamujocoVector
from envs.mamujoco.layout import find_layout
from envs.mamujoco.scenarios import SCENARIOS, Runner, Scenario
from envs.mamujoco.tasks import (
    PARTITIONS,
    REPARTITIONS,
    factorisation,
    multi_agent_env,
    parse_task,
    single_agent_env,
)
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, UnknownNameError
from marl.protocols import Env, VectorEnv
from marl.registry import find_env

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
        parts = factorisation(task) if name in SPECIAL else None
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


def random_actions(spec, steps, num_envs, seed=0):
    low, high = spec.action_space.low[0], spec.action_space.high[0]
    shape = (steps, num_envs, spec.num_agents, spec.action_size)
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def copied(obs):
    return [obs.agents.copy(), obs.state.copy()]


def assert_same(obs, expected):
    np.testing.assert_array_equal(obs.agents, expected[0])
    np.testing.assert_array_equal(obs.state, expected[1])


def assert_step(step, oracle, action):
    """One step of both; returns whether the episode ended."""
    expected, reward, terminated, truncated, info = oracle.step(action)
    assert_same(step.obs, expected)
    assert set(step.reward.tolist()) == {float(np.float32(reward))}
    assert (step.terminated, step.truncated) == (terminated, truncated)
    for name, value in step.info.items():
        assert value == float(info[name]), name
    return terminated or truncated


@pytest.mark.parametrize("agent_obsk", [0, 1, 2, None])
@pytest.mark.parametrize("name", TASKS)
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
            assert (step.terminated[index], step.truncated[index]) == (terminated, truncated)
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
    """What `set_state` needs to continue from where mamujoco_v1 stands."""
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


def test_a_termination_at_the_limit_is_both_terminated_and_truncated():
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
    assert (steps[-1].terminated, steps[-1].truncated) == (True, True)


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
    parts = factorisation(parse_task(f"{scenario}-{partition}"))["partition"]
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


def test_padded_action_dimensions_are_marked_and_ignored():
    env, other = make("Humanoid-9|8"), make("Humanoid-9|8")
    obs = env.reset(seed=0)
    other.reset(seed=0)
    assert obs.action_mask.sum(axis=1).tolist() == list(env.spec.action_sizes) == [9, 8]
    assert not obs.action_mask[1, 8]
    for action in random_actions(env.spec, 5, 1)[:, 0]:
        changed = action.copy()
        changed[1, 8] = np.nan
        assert_same(env.step(changed).obs, copied(other.step(action).obs))


@pytest.mark.parametrize("name", [name for name in TASKS if "x" not in name or name in ("Ant-4x2", "Hopper-3x1")])
def test_spec_describes_what_comes(name):
    env = make(name)
    spec, obs = env.spec, env.reset(seed=0)
    assert isinstance(env, Env)
    ranges = env._simulation.model.actuator_ctrlrange.astype(np.float32)
    assert (ranges == ranges[0]).all(), "one Box is the range of every actuator"
    assert (spec.action_space.low[0], spec.action_space.high[0]) == tuple(ranges[0])
    assert spec.action_space.shape == (max(spec.action_sizes),)
    assert sum(spec.action_sizes) == len(ranges)
    assert obs.agents.shape == (spec.num_agents, spec.observation_size)
    assert obs.agents.dtype == obs.state.dtype == np.float32
    assert obs.state.shape == (spec.state_size,)
    assert obs.alive.all()
    assert (spec.name, spec.discrete, len(spec.groups)) == (f"mamujoco/{name}", False, spec.num_agents)
    assert spec.observation_space.contains(obs.agents[0])


def test_results_do_not_depend_on_threads_nor_on_the_number_of_environments():
    actions = random_actions(make("Hopper-3x1").spec, 80, 5)
    runs = []
    for threads, num_envs in ((1, 5), (2, 5), (9, 5), (2, 3)):
        env = batch("Hopper-3x1", num_envs, threads)
        assert isinstance(env, VectorEnv)
        seen = copied(env.reset([9, 8, 9, 1, 2][:num_envs]))
        run = [[part[:3] for part in seen]]
        for action in actions:
            step = env.step(action[:num_envs])
            run.append([part[:3] for part in [*copied(step.obs), step.reward, step.terminated]])
        runs.append(run)
        env.close()
    assert any(step[-1].any() for step in runs[0][1:])
    for run in runs[1:]:
        for ours, first in zip(run, runs[0], strict=True):
            for left, right in zip(ours, first, strict=True):
                np.testing.assert_array_equal(left, right)


def test_a_seed_decides_the_episode_whatever_came_before():
    env = batch("Ant-4x2", 2, 1)
    first = copied(env.reset([3, 4]))
    for action in random_actions(env.spec, 10, 2):
        env.step(action)
    assert_same(env.reset([3, 4]), first)
    assert (first[0][0] != first[0][1]).any()
    moved = copied(env.step(random_actions(env.spec, 1, 2)[0]).obs)
    again = env.reset_at(0, seed=3)
    np.testing.assert_array_equal(again.agents[0], first[0][0])
    np.testing.assert_array_equal(again.agents[1], moved[0][1])


def test_unseeded_environments_differ():
    assert (make("Hopper").reset().agents != make("Hopper").reset().agents).any()


def record(env, action):
    """Everything that a step of a batch shows, and the physics behind it in float64."""
    step = env.step(action)
    physics = np.stack([state["physics"] for state in env.get_state()])
    return [*copied(step.obs), step.reward, step.terminated | step.truncated, physics]


@pytest.mark.parametrize(
    "name", ["HalfCheetah-6x1", "Ant-4x2", "Hopper-3x1", "Humanoid-9|8", "Reacher-2x1", "Pusher-3p"]
)
def test_a_restored_batch_continues_to_the_bit(name):
    env = batch(name, 3, 1, max_steps=40)
    actions = random_actions(env.spec, 75, 3)
    env.reset([1, 2, 3])
    for action in actions[:25]:
        env.step(action)
    states = env.get_state()
    for state in states:
        plain = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
        state.update(json.loads(json.dumps(plain)))
    before = copied(env._simulation.obs)
    expected = [record(env, action) for action in actions[25:]]
    fresh = batch(name, 3, 2, max_steps=40)
    assert_same(fresh.set_state(states), before)
    for action, record_before in zip(actions[25:], expected, strict=True):
        for ours, theirs in zip(record(fresh, action), record_before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert any(ended.any() for *_, ended, _ in expected), "the restored episodes end and start anew"
    fresh.close()


def test_a_single_environment_is_restored_at_its_start_and_at_its_end():
    env, fresh = make("Walker2d-6x1", max_steps=3), make("Walker2d-6x1", max_steps=3)
    first = copied(env.reset(seed=0))
    start = env.get_state()
    actions = random_actions(env.spec, 3, 1)[:, 0]
    trajectory = [copied(env.step(action).obs) for action in actions]
    assert_same(fresh.set_state(start), first)
    for action, obs in zip(actions, trajectory, strict=True):
        assert_same(fresh.step(action).obs, obs)
    assert_same(make("Walker2d-6x1", max_steps=3).set_state(env.get_state()), trajectory[-1])
    following = copied(env.reset())
    assert_same(fresh.reset(), following)


def test_a_state_of_another_task_is_refused():
    state = make("Hopper").get_state()
    with pytest.raises(CheckpointError, match="HalfCheetah"):
        make("HalfCheetah").set_state(state)
    with pytest.raises(ConfigError, match="1 states for 2 environments"):
        batch("Hopper", 2).set_state([state])


def test_stepping_outside_an_episode_is_an_error():
    env = make("Swimmer-2x1", max_steps=1)
    action = np.zeros((2, 1), np.float32)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(action)
    env.reset(seed=0)
    assert env.step(action).truncated
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(action)
    with pytest.raises(RuntimeError, match="call reset"):
        make("Swimmer-2x1", max_steps=1).step(action)
    ended = make("Swimmer-2x1", max_steps=1)
    ended.set_state(env.get_state())
    with pytest.raises(RuntimeError, match="call reset"):
        ended.step(action)
    vector = batch("Swimmer-2x1", 2)
    vector.reset_at(0, seed=0)
    with pytest.raises(RuntimeError, match=r"environments \[1\]"):
        vector.step(np.zeros((2, 2, 1)))


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 2), (2, 6, 1)])
def test_an_action_of_another_shape_is_an_error(shape):
    env = make("HalfCheetah-6x1")
    env.reset(seed=0)
    with pytest.raises(EnvironmentContractError, match="shape"):
        env.step(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HalfCheetah-6x2", "HalfCheetah-6x1"),
        ("HalfChetah-6x1", "HalfCheetah-6x1"),
        ("Hopper-", "Hopper-3x1"),
        ("", "known:"),
        ("ManySegmentSwimmer", "ManySegmentSwimmer-3x2"),
        ("ManySegmentSwimmer-0x2", "<agents>x<segments of each>"),
        ("ManySegmentSwimmer-1x1", "at least two"),
        ("ManySegmentAnt-2x3d", "ManySegmentAnt-3x2"),
    ],
)
def test_an_unknown_task_names_the_closest(name, message):
    entry, task = find_env(f"mamujoco/{name}")
    with pytest.raises(UnknownNameError, match=message):
        entry.make(task)


def test_the_coupled_half_cheetah_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"mujoco<=3\.5"):
        make("CoupledHalfCheetah-1p1")


def test_wrong_options_are_refused_with_the_closest():
    with pytest.raises(UnknownNameError, match="bthigh"):
        make("HalfCheetah-6x1", disabled_joint="bthig")
    with pytest.raises(ConfigError, match="0 to 5"):
        make("HalfCheetah-6x1", disabled_joint=6)
    with pytest.raises(ConfigError, match="agent_obsk is -1"):
        MamujocoOptions(agent_obsk=-1)
    with pytest.raises(ConfigError, match="max_steps is 0"):
        MamujocoOptions(max_steps=0)
    with pytest.raises(ConfigError, match="0 environments"):
        batch("Hopper", 0)
    with pytest.raises(ConfigError, match="1 seeds for 2 environments"):
        batch("Hopper", 2).reset([0])


def test_the_registry_builds_listed_and_parametric_tasks():
    for name in ("mamujoco/Ant-8x1", "mamujoco/ManySegmentSwimmer-4x2", "mamujoco:Hopper"):
        entry, task = find_env(name)
        assert entry.make(task, **vars(entry.options())).spec.name == f"mamujoco/{task}"
    assert isinstance(entry.batch("Hopper", 2, 1, agent_obsk=0), MamujocoVector)
    assert isinstance(entry.make("Hopper"), MamujocoEnv)
    assert {task.partition("-")[0] for task in entry.tasks} >= set(PARTITIONS)


def test_every_partition_of_upstream_is_known():
    upstream = {"Ant": "2x4 2x4d 4x2", "HalfCheetah": "2x3 6x1", "Humanoid": "9|8", "Walker2d": "2x3"}
    for scenario, partitions in upstream.items():
        for partition in partitions.split():
            assert partition in PARTITIONS[scenario]
            assert len(get_parts_and_edges(scenario, partition)[0]) == len(make(f"{scenario}-{partition}").spec.agents)


class Blind(Runner):
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


def test_construction_leaves_no_notice_and_no_handler_behind(notices):
    handler = mujoco.get_mju_user_warning()
    make("HalfCheetah-6x1")
    assert notices == []
    assert mujoco.get_mju_user_warning() is handler
    gymnasium.make("HalfCheetah-v5", disable_env_checker=True)
    assert len(notices) == 1, "upstream's file still causes the notice that is dropped"


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    def fail(*_):
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    env = make("Hopper")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"no display.*MUJOCO_GL=egl.*libosmesa6"):
        env.render()


DRAW = """
import numpy as np
from envs.mamujoco import batch, make

for name in ("Hopper-3x1", "Reacher-2x1"):
    env, other = batch(name, 2), batch(name, 2)
    env.reset([0, 1]), other.reset([0, 1])
    first = env.render(0)
    assert first.shape == (480, 480, 3) and first.dtype == np.uint8 and first.std() > 5, first.std()
    action = np.full((2, env.spec.num_agents, env.spec.action_size), 0.3, np.float32)
    for _ in range(20):
        env.step(action), other.step(action)
    for _ in range(3):
        frame = env.render(1)
        env.step(action), other.step(action)
        ours, theirs = env.get_state()[1]["physics"], other.get_state()[1]["physics"]
        assert (ours == theirs).all(), "drawing changed the physics"
    assert (env.render(1) != frame).any() and (env.render(1) != env.render(0)).any()
    assert (other.render(1) == env.render(1)).all()
    env.close(), other.close()
print("drawn")
"""


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="libEGL is not installed")
def test_draws_off_screen_without_touching_the_physics():
    """In a process of its own: MuJoCo chooses its OpenGL platform once, on import."""
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "drawn", done.stderr
