"""The base class of agents: an agent in few lines trains, and what is missing is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical

import marl
from marl import run
from marl.envs.toy import make as make_toy
from marl.errors import ConfigError
from marl.policy import require_policy
from marl.registry import AGENTS, AgentEntry
from marl.types import Decision, Evaluation, Nodes, Obs


class Linear(marl.Policy):
    """A linear actor and critic on each agent's own observation."""

    def __init__(self, spec):
        super().__init__(spec)
        self.actor = nn.Linear(spec.observation_size, spec.action_size)
        self.critic = nn.Linear(spec.observation_size, 1)

    def distribution(self, inputs):
        return Categorical(logits=self.actor(inputs["agents"]).masked_fill(~inputs["action_mask"], -1e9))

    def act(self, inputs, generator=None, deterministic=False):
        pi = self.distribution(inputs)
        noise = torch.empty_like(pi.logits).exponential_(generator=generator)
        action = (pi.logits if deterministic else pi.logits - noise.log()).argmax(-1)
        alive = inputs["alive"].unsqueeze(-1)
        log_prob = pi.log_prob(action).unsqueeze(-1)
        return Decision(
            action.numpy(), Nodes(action.unsqueeze(-1), alive, alive), log_prob, self.critic(inputs["agents"])
        )

    def evaluate(self, inputs, nodes):
        pi = self.distribution(inputs)
        log_prob = pi.log_prob(nodes.action.squeeze(-1)).unsqueeze(-1)
        return Evaluation(log_prob, pi.entropy().unsqueeze(-1), self.critic(inputs["agents"]))

    def value(self, inputs):
        return self.critic(inputs["agents"]).squeeze(-1)


class Mute(Linear):
    evaluate = marl.Policy.evaluate


@pytest.fixture
def register(monkeypatch):
    def add(make):
        AGENTS.load()
        monkeypatch.setitem(AGENTS.entries, "own", AgentEntry("own", make))

    return add


def test_an_agent_of_three_methods_trains_and_loads(small, register):
    register(lambda spec, _: Linear(spec))
    folder = run.start(small("toy/climbing", "own")).folder
    policy = marl.load_policy(folder, "last")
    obs = make_toy("climbing").reset(0)
    action = policy.act(Obs(obs.agents, obs.alive, obs.action_mask))
    assert action.shape == (2,)


def test_a_missing_method_is_named_before_training(small, register):
    register(lambda spec, _: Mute(spec))
    with pytest.raises(
        ConfigError, match=r"test_policy\.Mute does not define the method 'evaluate'.*docs/add-agent\.md"
    ):
        run.start(small("toy/climbing", "own"))
    assert Path("docs/add-agent.md").exists()


@pytest.mark.parametrize("made", [None, nn.Linear(1, 1), Linear])
def test_a_factory_of_something_else_is_named(made):
    with pytest.raises(ConfigError, match=r"agent='own' returned .*not a marl\.Policy"):
        require_policy(made, "own")


def test_defaults_of_the_hooks():
    policy = Linear(make_toy("climbing").spec)
    assert (policy.slots, policy.bptt_steps, policy.recurrent_shape, policy.threaded_acting) == (1, 0, None, False)
    assert not policy.has_transcript
    assert not policy.has_attention
    inputs = policy.encode(Obs(np.zeros((3, 2, policy.spec.observation_size), np.float32), np.ones((3, 2), bool)))
    assert inputs["action_mask"].all()
    nodes = policy.act(inputs).nodes
    assert policy.metrics(inputs, nodes) == {}
    assert policy.agent_inputs(inputs, 0) is inputs
    assert policy.micro_batches(inputs, nodes, 2, 1) == [slice(0, 2), slice(2, 3)]
    with pytest.raises(ConfigError, match="'transcript'"):
        policy.transcript([])
