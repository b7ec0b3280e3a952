"""What the collector keeps of an environment's steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.mlp import MLPOptions, MLPPolicy
from envs.toy import make as make_toy
from envs.wrappers import EnvWrapper, EpisodeStatistics, TimeLimit
from marl import run
from marl.checkpoint import load
from marl.errors import ConfigError
from marl.normalise import ValueNorm
from marl.rollout import Collector
from marl.vector import SyncVector


class Macro(EnvWrapper):
    """A toy whose n-th action of an episode takes n primitive steps."""

    memory = ("count",)
    count = 0

    def reset(self, seed=None):
        self.count = 0
        return super().reset(seed)

    def step(self, action):
        self.count += 1
        return replace(super().step(action), duration=self.count)


def collector(make, envs=3, steps=8, kind=MLPPolicy):
    env = SyncVector([make] * envs)
    torch.manual_seed(0)
    policy = kind(env.spec, MLPOptions(hidden=(8,)), central=False)
    return Collector(env, policy, ValueNorm(0.0), steps, torch.Generator().manual_seed(0), list(range(envs)))


def test_durations_reach_the_rollout_through_wrappers():
    rollout, _ = collector(lambda: EpisodeStatistics(TimeLimit(Macro(make_toy("chain", length=5)), 3))).collect()
    expected = np.array([1, 2, 3, 1, 2, 3, 1, 2])
    assert rollout.duration.tolist() == np.tile(expected, (3, 1)).T.tolist()
    discount = rollout.discount(0.9)
    assert discount is not None
    np.testing.assert_allclose(discount[:, 0].numpy(), 0.9**expected, rtol=1e-6)


def test_primitive_steps_need_no_discount_of_their_own():
    rollout, _ = collector(lambda: make_toy("chain")).collect()
    assert rollout.discount(0.9) is None


def test_a_macro_action_is_discounted_in_training(small):
    """A run whose every action takes two primitive steps learns what a run with the squared discount learns."""
    twice = small("tests.unit.test_rollout:slow", "mappo", eval_episodes=0, name="twice", gamma=0.9)
    plain = small("toy/chain", "mappo", eval_episodes=0, name="plain", gamma=0.9**2)
    models = [load(run.start(config) / "checkpoints").tensors["model"] for config in (twice, plain)]
    for name, x in models[0].items():
        torch.testing.assert_close(x, models[1][name], atol=1e-5, rtol=1e-4)


class Slow(EnvWrapper):
    def step(self, action):
        return replace(super().step(action), duration=2)


def slow():
    return Slow(make_toy("chain"))


class Sampler(MLPPolicy):
    """Samples from a flatter distribution than its own, and knows a reference."""

    def act(self, inputs, generator=None, deterministic=False):
        decision = super().act(inputs, generator, deterministic)
        return replace(decision, behaviour=decision.log_prob - 0.25, reference=2.0 * decision.log_prob)


def test_behaviour_and_reference_are_kept_where_a_policy_gives_them():
    plain = collector(lambda: make_toy("chain"))
    rollout, _ = plain.collect()
    assert rollout.behaviour is None
    assert rollout.penalty(0.0) is None
    with pytest.raises(ConfigError, match="reference_reward_coef is"):
        rollout.penalty(0.5)
    sampling = collector(lambda: make_toy("chain"), kind=Sampler)
    rollout, _ = sampling.collect()
    assert rollout.behaviour is not None
    torch.testing.assert_close(rollout.behaviour, rollout.log_prob - 0.25)
    penalty = rollout.penalty(0.5)
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.5 * rollout.log_prob)
    batch = rollout.flat(rollout.value, rollout.value).rows(torch.tensor([5, 1]))
    assert batch.reference is not None
    torch.testing.assert_close(batch.reference, 2.0 * batch.log_prob)
