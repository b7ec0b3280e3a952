"""Multi-agent MuJoCo: specs, seeds, threads, saved states, errors and frames."""
# ruff: noqa: E402

import ctypes.util
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("gymnasium_robotics")

from marl.envs.mamujoco import TASKS, MamujocoOptions, batch, batch_simulation, make
from marl.envs.mamujoco.env import MamujocoEnv, MamujocoVector
from marl.envs.mamujoco.tasks import PARTITIONS
from marl.envs.testing import check_env, check_vector_env
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, UnknownNameError
from marl.protocols import Env, VectorEnv
from marl.registry import find_env
from tests.support.mamujoco import assert_same, copied, random_actions


@pytest.mark.parametrize("name", ["HalfCheetah-6x1", "Humanoid-9|8", "Hopper-3x1", "InvertedPendulum", "Pusher-3p"])
def test_passes_the_conformance_suite(name):
    one, three = partial(make, name, max_steps=25), partial(batch, name, 3, 2, max_steps=25)
    assert check_env(one)
    assert check_vector_env(three, [1, 2, 3], one, steps=55)


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
    assert (spec.name, spec.discrete, len(spec.agent_types)) == (f"mamujoco/{name}", False, spec.num_agents)
    assert spec.observation_space.contains(obs.agents[0])


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
    with pytest.raises(ConfigError, match="agent_obsk=-1"):
        MamujocoOptions(agent_obsk=-1)
    with pytest.raises(ConfigError, match="max_steps=0"):
        MamujocoOptions(max_steps=0)
    with pytest.raises(ConfigError, match="0 environments"):
        batch("Hopper", 0)
    with pytest.raises(ConfigError, match="1 seeds for 2 environments"):
        batch("Hopper", 2).reset([0])


def test_the_registry_builds_listed_and_parametric_tasks():
    for name in ("mamujoco/Ant-8x1", "mamujoco/ManySegmentSwimmer-4x2", "mamujoco:Hopper"):
        entry, task = find_env(name)
        assert entry.make(task, **vars(entry.options())).spec.name == f"mamujoco/{task}"
    assert isinstance(entry.make_vector("Hopper", 2, 1, agent_obsk=0), MamujocoVector)
    assert isinstance(entry.make("Hopper"), MamujocoEnv)
    assert {task.partition("-")[0] for task in entry.tasks} >= set(PARTITIONS)


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    attempts = []

    def fail(*_):
        attempts.append(1)
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    monkeypatch.setattr(batch_simulation, "_cannot_draw", None)
    for _ in range(2):
        env = make("Hopper")
        env.reset(seed=0)
        with pytest.raises(ConfigError, match=r"no display.*MUJOCO_GL=egl.*libosmesa6"):
            env.render()
    assert len(attempts) == 1, "MuJoCo aborts the process at a second attempt"


DRAW = """
import numpy as np
from marl.envs.mamujoco import batch, make

for name in ("Hopper-3x1", "Reacher-2x1"):
    env, other = batch(name, 2), batch(name, 2)
    env.reset([0, 1]), other.reset([0, 1])
    first = env.render(0)
    assert first.shape == (480, 480, 3) and first.dtype == np.uint8 and first.std() > 5, first.std()
    action = np.full((2, env.spec.num_agents, env.spec.action_size), 0.3, np.float32)
    for _ in range(20):
        env.step(action), other.step(action)
    frame = env.render(1)
    env.step(action), other.step(action)
    ours, theirs = env.get_state()[1]["physics"], other.get_state()[1]["physics"]
    assert (ours == theirs).all(), "drawing changed the physics"
    after = env.render(1)
    assert (after != frame).any() and (after != env.render(0)).any()
    assert (other.render(1) == after).all()
    env.close(), other.close()
print("drawn")
"""


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="libEGL is not installed")
def test_draws_off_screen_without_touching_the_physics():
    """In a process of its own: MuJoCo chooses its OpenGL platform once, on import."""
    environment = {**os.environ, "MUJOCO_GL": "egl"}
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "drawn", done.stderr
