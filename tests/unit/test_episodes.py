"""The generator that plays episodes: their order, the step limit, dead environments, requests to stop, copies."""

import numpy as np
import pytest

from marl.agents.scripted import FixedPolicy
from marl.backup import Links
from marl.envs.toy import make as make_toy
from marl.episodes import MAX_REPEATS, play_episodes
from marl.evaluation import run_episodes
from marl.transcript import record_transcript
from marl.types import Obs, VectorStep
from marl.value_norm import ValueNorm


class SeedLength:
    """Two environments. An episode lasts as many steps as its seed says; its observation is the time, in one buffer.

    The steps in `deaths` truncate environment 0 as a lost worker does.
    """

    num_envs = 2

    def __init__(self, deaths=()):
        self.spec = make_toy("climbing").spec
        self.time, self.seeds, self.count, self.deaths = np.zeros(2, int), [0, 0], 0, deaths
        self.buffer = np.zeros((2, 2, 1), np.float32)

    def observe(self):
        self.buffer[:] = self.time[:, None, None]
        return Obs(self.buffer, np.ones((2, 2), bool))

    def reset(self, seeds):
        self.seeds, self.time = list(seeds), np.zeros(2, int)
        return self.observe()

    def reset_at(self, index, seed=None):
        self.seeds[index], self.time[index] = seed, 0
        return self.observe()

    def step(self, action):  # noqa: ARG002
        self.count += 1
        died = np.array([self.count in self.deaths, False])
        self.time += 1
        terminated = (self.time >= self.seeds) & ~died
        self.time[terminated | died] = 0
        reward = np.ones((2, 2), np.float32)
        return VectorStep(self.observe(), reward, terminated, died, restarted=died if died.any() else None)


def play(env, seeds, max_steps=100, **options):
    return list(play_episodes(FixedPolicy(env.spec, 0.0), env, seeds, max_steps, **options))


def test_every_environment_plays_its_own_episodes_to_their_ends():
    steps = play(SeedLength(), [3, 1, 2, 2, 1])
    assert [step.episode.tolist() for step in steps] == [[0, 1], [0, 3], [0, 3], [2, -1], [2, -1], [4, -1]]
    assert [step.length.tolist()[0] for step in steps] == [1, 2, 3, 1, 2, 1]
    assert [np.flatnonzero(step.ended).tolist() for step in steps] == [[1], [], [0, 1], [], [0], [0]]
    assert not any(step.cut.any() or step.discarded.any() for step in steps)


def test_an_episode_is_cut_at_the_step_limit():
    steps = play(SeedLength(), [9, 1], max_steps=4)
    assert len(steps) == 4
    assert steps[-1].ended.tolist() == steps[-1].cut.tolist() == [True, False]


def test_an_episode_whose_environment_died_is_played_again():
    steps = play(SeedLength(deaths=(2,)), [3, 9], max_steps=9)
    assert [step.length.tolist()[0] for step in steps][:5] == [1, 2, 1, 2, 3]
    assert [step.discarded.tolist()[0] for step in steps][:5] == [False, True, False, False, False]
    env = SeedLength(deaths=(2,))
    rows = run_episodes(FixedPolicy(env.spec, 0.0), env, [3, 9])
    assert [row.episode_return for row in rows] == [3.0, 9.0]


def test_an_environment_that_always_dies_does_not_play_for_ever():
    (last,) = [step for step in play(SeedLength(deaths=range(99)), [3]) if step.ended[0]]
    assert last.step.truncated[0]
    assert last.length[0] == 1
    assert sum(step.discarded[0] for step in play(SeedLength(deaths=range(99)), [3])) == MAX_REPEATS


def test_a_request_to_stop_is_heard_before_every_step():
    env = SeedLength()
    assert len(play(env, [9, 9], stop=lambda: env.count >= 3)) == 3
    assert not play(env, [9, 9], stop=lambda: True)


@pytest.mark.parametrize("copy_obs", [True, False])
def test_observations_are_copied_on_request(copy_obs):
    steps = play(SeedLength(), [3, 3], copy_obs=copy_obs)
    times = [step.obs.agents.max() for step in steps]
    assert times == ([0.0, 1.0, 2.0] if copy_obs else [0.0, 0.0, 0.0])  # one buffer, which ends at 0


class Alone(SeedLength):
    """The first of the two environments."""

    num_envs = 1

    def observe(self):
        self.buffer[:] = self.time[:, None, None]
        return Obs(self.buffer[:1], np.ones((1, 2), bool))

    def reset(self, seeds):
        return super().reset([*seeds, 10**9])

    def step(self, action):
        step = super().step(action)
        restarted = None if step.restarted is None else step.restarted[:1]
        return VectorStep(step.obs, step.reward[:1], step.terminated[:1], step.truncated[:1], restarted=restarted)


def test_a_transcript_begins_again_where_its_environment_died():
    env = Alone(deaths=(2,))
    policy = FixedPolicy(env.spec, 0.0)
    steps = record_transcript(policy, env, 3, Links(), ValueNorm(0.0))
    assert [float(step.obs.agents[0, 0, 0]) for step in steps] == [0.0, 1.0, 2.0]
