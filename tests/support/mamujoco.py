"""Helpers of the tests of multi-agent MuJoCo."""

import numpy as np


def random_actions(spec, steps, num_envs, seed=0):
    low, high = spec.action_space.low[0], spec.action_space.high[0]
    shape = (steps, num_envs, spec.num_agents, spec.action_size)
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def copied(obs):
    return [obs.agents.copy(), obs.state.copy()]


def assert_same(obs, expected):
    np.testing.assert_array_equal(obs.agents, expected[0])
    np.testing.assert_array_equal(obs.state, expected[1])
