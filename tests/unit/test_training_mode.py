"""Dropout and batch normalization act in updates alone."""

import pytest
import torch
from torch import nn

from marl.config import default_config, override
from marl.errors import NonFiniteError
from marl.evaluation import run_episodes
from marl.run import build
from marl.vector import make_vector


def make_trainer(agent):
    settings = {"num_envs": 4, "rollout_steps": 8, "epochs": 1, "hidden": (8,)}
    trainer = build(
        override(default_config("toy/climbing", agent), settings),
        make_vector("toy/climbing", {}, 4),
        torch.device("cpu"),
        1,
    )
    assert not trainer.policy.training
    networks = trainer.policy.actor.networks if agent == "happo" else [trainer.policy.actor]
    for network in networks:
        network.insert(3, nn.Dropout(0.5))
    trainer.policy.critic.insert(3, nn.BatchNorm1d(8))
    trainer.policy.eval()
    return trainer


@pytest.mark.parametrize("agent", ["mappo", "happo"])
def test_a_policy_trains_in_updates_and_acts_in_evaluation_mode(monkeypatch, agent):
    trainer = make_trainer(agent)
    policy, modes = trainer.policy, []
    original = policy.evaluate

    def noted(inputs, nodes):
        modes.append((torch.is_grad_enabled(), policy.training))
        return original(inputs, nodes)

    rollout, _ = trainer.collector.collect()
    batch = trainer.make_batch(rollout)[0]
    with torch.no_grad():
        torch.testing.assert_close(policy.evaluate(batch.inputs, batch.nodes).log_prob, batch.log_prob)
    before = policy.critic[3].running_var.clone()
    monkeypatch.setattr(policy, "evaluate", noted)
    trainer.learn(rollout)
    assert all(grad == training for grad, training in modes)
    assert (True, True) in modes
    assert ((False, False) in modes) == (agent == "happo")
    assert not torch.equal(policy.critic[3].running_var, before)
    assert not policy.training
    env = make_vector("toy/climbing", {}, 2)
    returns = [[row.episode_return for row in run_episodes(policy, env, [1, 2, 3])] for _ in range(2)]
    assert returns[0] == returns[1]


def test_an_update_that_fails_leaves_evaluation_mode(monkeypatch):
    trainer = make_trainer("mappo")
    rollout, _ = trainer.collector.collect()

    def fail(*_):
        assert trainer.policy.training
        raise NonFiniteError("infinite")

    monkeypatch.setattr(trainer.updater, "step", fail)
    with pytest.raises(NonFiniteError):
        trainer.learn(rollout)
    assert not trainer.policy.training
