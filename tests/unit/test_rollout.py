"""Rollouts: the data that the collector stores of an environment's steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from marl import run
from marl.agents.mlp import MLPOptions, MLPPolicy
from marl.checkpoint.store import load
from marl.collector import Collector, bootstrap_value
from marl.config import default_config, override
from marl.envs.toy import make as make_toy
from marl.envs.wrappers import EnvWrapper, EpisodeStatistics, TimeLimit
from marl.errors import ConfigError
from marl.policy import Policy
from marl.recurrent_state import RecurrentState
from marl.types import Obs
from marl.value_norm import ValueNorm
from marl.vector import SyncVector


class Macro(EnvWrapper):
    """A toy whose n-th action of an episode takes n primitive steps."""

    state_attributes = ("count",)
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
    return Collector(env, policy, ValueNorm(0.0), steps, torch.Generator().manual_seed(0), seeds=list(range(envs)))


def test_durations_reach_the_rollout_through_wrappers():
    rollout, _ = collector(lambda: EpisodeStatistics(TimeLimit(Macro(make_toy("chain", length=5)), 6))).collect()
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
    models = [load(run.start(config).folder / "checkpoints").tensors["model"] for config in (twice, plain)]
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
        return replace(decision, behavior_log_prob=decision.log_prob - 0.25, reference_log_prob=2.0 * decision.log_prob)


def test_behavior_and_reference_are_kept_where_a_policy_gives_them():
    plain = collector(lambda: make_toy("chain"))
    rollout, _ = plain.collect()
    assert rollout.behavior_log_prob is None
    assert rollout.node_reward(0.0) is None
    with pytest.raises(ConfigError, match="reference_reward_coef="):
        rollout.node_reward(0.5)
    sampling = collector(lambda: make_toy("chain"), kind=Sampler)
    rollout, _ = sampling.collect()
    assert rollout.behavior_log_prob is not None
    torch.testing.assert_close(rollout.behavior_log_prob, rollout.log_prob - 0.25)
    penalty = rollout.node_reward(0.5)
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.5 * rollout.log_prob)
    batch = rollout.flat(rollout.value, rollout.value).rows(torch.tensor([5, 1]))
    assert batch.reference_log_prob is not None
    torch.testing.assert_close(batch.reference_log_prob, 2.0 * batch.log_prob)


class Short(EnvWrapper):
    """A toy whose episode ends after 1 to 4 steps, drawn with its seed, and that says how often it was played."""

    state_attributes = ()

    def reset(self, seed=None):
        self.count = 0
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.length = int(self.rng.integers(1, 5))
        return super().reset(seed)

    def step(self, action):
        self.count += 1
        step = super().step(action)
        return replace(step, terminated=self.count == self.length, truncated=False)


def short():
    return Short(make_toy("copy", length=6))


class Backwards(EnvWrapper):
    """The agents in reverse, so that the first dies first."""

    def observe(self, obs):
        return Obs(obs.agents[::-1].copy(), obs.alive[::-1].copy(), obs.action_mask[::-1].copy(), obs.state)

    def step(self, action):
        step = super().step(action[::-1])
        return replace(step, reward=step.reward[::-1].copy())


def test_one_chain_goes_on_where_its_first_agent_is_dead():
    """At the time limit of `agent_death` its last agents live no more; reversed, those are the first of the chain."""
    config = override(
        default_config("toy/agent_death", "mat-bad"), {"num_envs": 2, "rollout_steps": 6, "value_norm_decay": 0.0}
    )
    env = SyncVector([lambda: Backwards(make_toy("agent_death", individual=True))] * 2)
    trainer = run.build(config, env, torch.device("cpu"), 1)
    with torch.no_grad():
        trainer.policy.critic[-1].bias.fill_(3.0)
    rollout, _ = trainer.collector.collect()
    assert rollout.truncated[-1].all()
    assert not rollout.node_mask[-1, :, 0].any()
    # A dead agent would bootstrap with 0; a living agent's chain has the critic's value.
    torch.testing.assert_close(rollout.bootstrap[-1], torch.full((2, 3), 3.0), atol=0.5, rtol=0)


class Worth(Policy):
    """Values agents by their number."""

    def __init__(self, team_reward):
        super().__init__(replace(make_toy("agent_death").spec, team_reward=team_reward))

    def encode(self, obs):
        return {"alive": torch.as_tensor(obs.alive)}

    def value(self, inputs):
        return torch.arange(1.0, 4.0).expand(inputs["alive"].shape)


@pytest.mark.parametrize(
    ("team_reward", "one_chain", "expected"),
    [
        (True, True, [[1, 1, 1], [2, 2, 2], [0, 0, 0]]),
        (False, True, [[1, 1, 1], [2, 2, 2], [0, 0, 0]]),
        (True, False, [[1, 2, 3], [2.5, 2, 3], [0, 0, 0]]),
        (False, False, [[1, 2, 3], [0, 2, 3], [0, 0, 0]]),
    ],
)
def test_what_a_cut_chain_is_worth(team_reward, one_chain, expected):
    alive = np.array([[True] * 3, [False, True, True], [False] * 3])
    policy = Worth(team_reward)
    value = bootstrap_value(
        policy, ValueNorm(0.0), Obs(None, alive), RecurrentState(policy, 3), np.arange(3), sequential_agents=one_chain
    )
    assert value.tolist() == expected


def lengths(seeds):
    return np.array([np.random.default_rng(seed).integers(1, 5) for seed in seeds])


def test_whole_episodes_are_all_there_is():
    seeds = [11, 11, 12, 13]
    expected = lengths(seeds)
    tested = collector(short, envs=4, steps=6)
    rollout, _ = tested.collect([21, 22, 23, 24])
    rollout, episodes = tested.collect(seeds)
    assert sorted(episodes.lengths) == sorted(expected.tolist())
    assert tested.total == lengths([21, 22, 23, 24]).sum() + expected.sum()
    played = torch.arange(6)[:, None] < torch.as_tensor(expected)
    assert torch.equal(rollout.node_mask.any(-1).any(-1), played)
    assert torch.equal(rollout.loss_mask.any(-1).any(-1), played)
    assert not rollout.reward[~played].any()
    assert torch.equal(rollout.terminated, torch.arange(6)[:, None] == torch.as_tensor(expected) - 1)
    assert torch.equal(rollout.inputs["agents"][0, 0], rollout.inputs["agents"][0, 1])
    assert not torch.equal(rollout.inputs["agents"][0, 0], rollout.inputs["agents"][0, 2])


def test_episodes_longer_than_the_rollout_are_cut_with_a_value():
    seeds = list(range(30, 36))
    tested = collector(short, envs=6, steps=2)
    rollout, episodes = tested.collect(seeds)
    cut = lengths(seeds) > 2
    assert cut.any()
    assert len(episodes.lengths) == (~cut).sum()
    assert (rollout.bootstrap[-1][torch.as_tensor(cut)] != 0).all()
    again, _ = tested.collect(seeds)
    assert torch.equal(again.inputs["agents"][0], tested.policy.encode(tested.env.reset(seeds))["agents"])


def test_what_breaks_after_an_episode_does_not_matter():
    class Late(Short):
        """Gives NaN once its first episode is over."""

        def reset(self, seed=None):
            self.late = seed is None
            return super().reset(seed)

        def step(self, action):
            step = super().step(action)
            return replace(step, reward=np.full_like(step.reward, np.nan)) if self.late else step

    rollout, episodes = collector(lambda: Late(make_toy("copy", length=6)), envs=3, steps=6).collect([1, 2, 3])
    assert len(episodes.returns) == 3
    assert torch.isfinite(rollout.reward).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group_size": 2}, "add --whole-episodes"),
        ({"group_size": 3, "whole_episodes": True}, "does not divide num_envs, 4"),
        ({"advantage": "grpo", "value_coef": 0.0}, "needs whole episodes"),
        ({"advantage": "rloo", "value_coef": 0.0, "whole_episodes": True}, "group_size=1; set 2 or more"),
        ({"advantage": "return", "whole_episodes": True}, r"value_coef=1\.0; set it to 0"),
    ],
)
def test_settings_of_whole_episodes_that_do_not_fit(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        small(**changes)
