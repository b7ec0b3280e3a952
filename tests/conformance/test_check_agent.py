"""Agents that break one rule each, the complaint of the conformance suite, and the agents that keep all rules."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from marl.agents.heads import mlp
from marl.agents.mlp import MLPOptions, make_ippo
from marl.agents.testing import KINDS, Rule, check_agent
from marl.errors import AgentContractError, ConfigError
from marl.experiments.cli import main
from marl.policy import Policy
from marl.types import Nodes

# ruff: noqa: ARG002, NPY002

BUILT_IN = {
    "mat": {},
    "mat, two blocks and heads, random order": {"blocks": 2, "heads": 2, "agent_order": "random"},
    "mat, per agent, random order": {"parameters_per": "agent", "agent_order": "random"},
    "mat, recurrent": {"bptt_steps": 2},
    "mat-bad": {"agent_order": "random"},
    "mat-decoder": {"blocks": 2, "observation_layer_norm": False},
    "mat-gru": {"parameters_per": "agent", "observation_layer_norm": False},
    "mat-encoder": {"observation_layer_norm": False},
    "mat-dec": {"parameters_per": "agent"},
    "mat-dec, recurrent": {"bptt_steps": 2},
    "sable, recurrent": {"bptt_steps": 2},
    "sable, recurrent, two blocks and heads, random order": {
        "bptt_steps": 2,
        "blocks": 2,
        "heads": 2,
        "agent_order": "random",
    },
    "sable, recurrent, per agent": {"bptt_steps": 2, "parameters_per": "agent", "decay_scale": 0.5},
    "ff-sable": {"agent_order": "random"},
    "ff-sable, per agent": {"parameters_per": "agent", "observation_layer_norm": False},
    "sable-bad, recurrent, random order": {"bptt_steps": 2, "agent_order": "random"},
    "mappo": {"normalize_observations": True},
    "mappo, recurrent": {"bptt_steps": 2},
    "ippo": {"observation_layer_norm": False},
    "happo": {},
    "random": {},
    "scripted": {},
    "./examples/commnet.py:make": {},
    "./examples/mlp.py:make": {},
}


@pytest.mark.parametrize("case", BUILT_IN)
def test_agents_keep_every_rule(case):
    options = BUILT_IN[case]
    kinds = None if "normalize_observations" not in options else ("discrete", "continuous")
    lines = check_agent(case.partition(", ")[0], kinds, options)
    checked = [line for line in lines if "not supported" not in line]
    assert checked[0].startswith("discrete: ")
    assert len(checked) == (2 if kinds or "mlp.py" in case else 4)
    assert ("recurrence" in checked[0]) == ("recurrent" in case)


@pytest.mark.parametrize("name", ["poad", "twosome", "etpo", "grpo"])
def test_language_agents_keep_every_rule(name):
    options = {"team": "sequential"} if name == "poad" else {"critic": "none"} if name == "grpo" else {}
    lines = check_agent(name, ("text",), {"max_action_tokens": 6, "critic_hidden": (8,), **options})
    assert lines[0].startswith("text: 11 rules")


def test_free_text_keeps_every_rule():
    assert check_agent("poad", ("free text",), {"max_action_tokens": 3})[0].startswith("free text: 11 rules")


def honest(spec, policy=None):
    """An agent that keeps every rule, or the same with another class."""
    if not spec.discrete or spec.entities is not None:
        raise ConfigError("discrete actions only")
    made = make_ippo(spec, MLPOptions(hidden=(8,)))
    torch.nn.init.normal_(made.actor[-1].weight, std=0.5)
    if policy is not None:
        made.__class__ = type(policy.__name__, (policy, type(made)), {})
        made.prepare()
    return made


class Lie(Policy):
    """Changes to an honest agent."""

    def prepare(self):
        """Add attributes."""


class FloatMask(Lie):
    def act(self, *args):
        decision = super().act(*args)
        return replace(decision, nodes=replace(decision.nodes, node_mask=decision.nodes.node_mask.float()))


class SummedLogProb(Lie):
    def act(self, *args):
        decision = super().act(*args)
        return replace(decision, log_prob=decision.log_prob.squeeze(-1))


class WritesInputs(Lie):
    def act(self, inputs, *args):
        inputs["agents"] -= 0.1
        return super().act(inputs, *args)


class KeepsView(Lie):
    """Reads the environment's buffer in a later call."""

    def encode(self, obs):
        self.alive = torch.as_tensor(obs.alive)
        return super().encode(obs)

    def act(self, inputs, *args):
        decision = super().act(inputs, *args)
        return replace(decision, log_prob=decision.log_prob.masked_fill(~self.alive.unsqueeze(-1), 0.0))


class IgnoresMask(Lie):
    def encode(self, obs):
        inputs = super().encode(obs)
        return inputs | {"action_mask": torch.ones_like(inputs["action_mask"])}


class DeadDecide(Lie):
    def nodes(self, inputs, action, order=None):
        mask = torch.ones_like(action, dtype=torch.bool)
        return Nodes(action, mask, mask, order)


class HearsTheDead(Lie):
    def features(self, inputs, agents=slice(None)):
        x = inputs["agents"]
        return super().features(inputs | {"agents": x + x.sum(1, keepdim=True)}, agents)


class OtherTemperature(Lie):
    """Samples at another temperature than it reports."""

    def act(self, inputs, generator=None, deterministic=False):
        decision = super().act(inputs, generator, deterministic)
        return replace(decision, log_prob=0.9 * decision.log_prob)


class SamplesElsewhere(Lie):
    """Samples uniformly, and reports the policy's log-probabilities consistently."""

    def act(self, inputs, generator=None, deterministic=False):
        decision = super().act(inputs, generator, deterministic)
        noise = self.head.noise(decision.nodes.action.shape[:2], self.device, generator)
        action = self.head.argmax_action(self.head.sampling_offset(inputs["action_mask"], noise), None)
        nodes = replace(decision.nodes, action=action)
        evaluation = self.evaluate(inputs, nodes)
        return replace(decision, action=self.head.to_env(action), nodes=nodes, log_prob=evaluation.log_prob)


class InfiniteValue(Lie):
    def value(self, inputs):
        return super().value(inputs) / 0.0


class ReadsLaterActions(Lie):
    def logits(self, inputs, action):
        last = action[:, -1:].float()
        return self.actor(self.features(inputs)) * torch.tensor([1.0, 0.5, 0.2]) + 0.3 * last * torch.eye(3)[0]

    def act(self, inputs, generator=None, deterministic=False):
        decision = super().act(inputs, generator, deterministic)
        return replace(decision, log_prob=self.evaluate(inputs, decision.nodes).log_prob)

    def evaluate(self, inputs, nodes):
        evaluation = super().evaluate(inputs, nodes)
        logits = self.logits(inputs, nodes.action)
        log_prob, entropy = self.head.evaluate(logits, inputs["action_mask"], nodes.action)
        return replace(evaluation, log_prob=log_prob, entropy=entropy)


class BatchStatistics(Lie):
    def evaluate(self, inputs, nodes):
        evaluation = super().evaluate(inputs, nodes)
        value = evaluation.value
        return replace(evaluation, value=value - value.mean())


class LosesRows(Lie):
    def micro_batches(self, inputs, nodes, rows, divisor):
        return super().micro_batches(inputs, nodes, rows, divisor)[:-1]


class GlobalGenerator(Lie):
    def act(self, inputs, generator=None, deterministic=False):
        return super().act(inputs, None, deterministic)


class SameEverytime(Lie):
    def act(self, inputs, generator=None, deterministic=False):
        return super().act(inputs, generator, True)


class NoisyGreedy(Lie):
    def prepare(self):
        self.calls = 0

    def act(self, inputs, generator=None, deterministic=False):
        self.calls += deterministic
        generator = torch.Generator().manual_seed(self.calls) if deterministic else generator
        return super().act(inputs, generator, False)


class Counts(Lie):
    """Hidden state: a decision depends on how many there were before."""

    def prepare(self):
        self.calls = 0

    def act(self, inputs, generator=None, deterministic=False):
        self.calls += 1
        for _ in range(self.calls):
            torch.rand(1, generator=generator)
        return super().act(inputs, generator, deterministic)


class ForgetsBuffer(Lie):
    def prepare(self):
        self.shift = torch.randn(self.feature_size)

    def features(self, inputs, agents=slice(None)):
        return super().features(inputs, agents) * self.shift


class NotLoadable(Lie):
    def prepare(self):
        self.extra = mlp(2, (2,), torch.randint(1, 9, ()).item() + 2, 1.0)


LIES = [
    (FloatMask, Rule.INTERFACE, "nodes.node_mask is torch.float32"),
    (SummedLogProb, Rule.INTERFACE, r"act's log_prob has shape \(6, 3\); expected \(6, 3, 1\)"),
    (WritesInputs, Rule.INPUTS, r"act changed inputs\['agents'\] in place"),
    (KeepsView, Rule.INPUTS, "buffers after they were overwritten"),
    (IgnoresMask, Rule.ACTION, r"the action of row \d, agent \d is \d, available are \["),
    (DeadDecide, Rule.DEAD_AGENTS, "dead agent 0 of row 0 has a node"),
    (HearsTheDead, Rule.DEAD_AGENTS, "changes the log_prob of a living one"),
    (OtherTemperature, Rule.LOG_PROB, "log_prob of act and evaluate differ: .* at row"),
    (InfiniteValue, Rule.VALUE, "value=-?inf at row"),
    (ReadsLaterActions, Rule.ORDER, "depends on an action that is decided later"),
    (BatchStatistics, Rule.GRADIENT, "depends on the split into micro-batches"),
    (LosesRows, Rule.GRADIENT, "micro_batches holds"),
    (GlobalGenerator, Rule.DETERMINISM, "drew from the global generator of torch"),
    (SameEverytime, Rule.DETERMINISM, "decided the same in 24 rows"),
    (NoisyGreedy, Rule.DETERMINISM, "deterministic=True decided differently"),
    (Counts, Rule.DETERMINISM, "keep no hidden state"),
    (SamplesElsewhere, Rule.DISTRIBUTION, "the mean log_prob of 1000 samples differs from -entropy"),
    (ForgetsBuffer, Rule.SAVING, "has another log_prob"),
    (NotLoadable, Rule.SAVING, "load_state_dict raised RuntimeError"),
]


@pytest.mark.parametrize(("lie", "rule", "text"), LIES, ids=[lie.__name__ for lie, _, _ in LIES])
def test_a_broken_rule_is_named(lie, rule, text):
    with pytest.raises(AgentContractError) as caught:
        check_agent(lambda spec: honest(spec, lie))
    message = str(caught.value)
    number = re.match(r"\[(\d\d) [a-z ]+\] <lambda> on discrete: ", message)
    assert number, message
    assert Rule(int(number[1])) == rule, message
    assert re.search(text, message), message
    assert message.endswith("See docs/add-agent.md#rules")


def test_a_recurrent_state_that_survives_an_episode_is_named():
    """A policy that ignores where episodes start, in the segments of an update."""

    def make(spec):
        policy = make_ippo(spec, MLPOptions(hidden=(8,), bptt_steps=2))
        evaluate = policy.evaluate
        policy.evaluate = lambda inputs, nodes: evaluate(
            inputs | {"episode_start": torch.zeros_like(inputs["episode_start"])}, nodes
        )
        return policy

    with pytest.raises(AgentContractError, match=r"\[12 recurrence\] .* over segments of bptt_steps=2"):
        check_agent(make, ("discrete",))


def test_honest_agents_pass_and_unsupported_kinds_are_listed():
    lines = check_agent(honest)
    assert lines[0].startswith("discrete: 11 rules (interface, action,")
    assert lines[1:] == [f"{kind}: not supported (discrete actions only)" for kind in list(KINDS)[1:]]
    with pytest.raises(ConfigError, match="discrete actions only"):
        check_agent(honest, ("mixed",))


def test_an_agent_of_no_toy_kind_and_a_factory_of_nothing_are_named():
    with pytest.raises(ConfigError, match=r"'focus-fire' supports no toy environment"):
        check_agent("focus-fire")
    with pytest.raises(ConfigError, match=r"not a marl\.Policy"):
        check_agent(lambda _: None, ("discrete",))


def test_global_generators_are_as_before():
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    check_agent(honest)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["marl", "check-agent", "mat", "--kinds", "discrete", "--embedding", "8"])
    main()
    out = capsys.readouterr().out
    assert out.startswith("discrete: 11 rules")
    assert out.endswith("mat keeps every rule\n")
