"""Sable's decoding, options, and recurrent state."""

import numpy as np
import pytest
import torch

from marl.errors import ConfigError
from marl.registry import AGENTS
from marl.types import Obs
from tests.golden.test_forward import build

E, N, D, A = 3, 6, 5, 4


def make(name="sable", **options):
    options = {"embedding": 8, "heads": 2, "blocks": 2} | options
    policy = build(name, N, D, A, **options)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def make_inputs(policy, seed=0, dead=True):
    rng = np.random.default_rng(seed)
    alive = rng.random((E, N)) < 0.7 if dead else np.ones((E, N), bool)
    alive[:, 2] = True
    inputs = policy.encode(Obs(rng.standard_normal((E, N, D)).astype(np.float32), alive))
    if policy.recurrent_shape is None:
        return inputs
    state = torch.from_numpy(rng.standard_normal((E, *policy.recurrent_shape)).astype(np.float32))
    return inputs | {"recurrent_state": state, "episode_start": torch.tensor([False, True, False])}


@pytest.mark.parametrize("name", ["sable", "ff-sable", "sable-bad"])
@pytest.mark.parametrize("options", [{}, {"agent_order": "random"}, {"parameters_per": "agent"}])
@pytest.mark.parametrize("discrete", [True, False])
def test_parallel_decoding_equals_one_agent_after_another(name, options, discrete, monkeypatch):
    policy = make(name, discrete=discrete, **options)
    inputs, decisions = make_inputs(policy), []
    for iterations in (N, 0):
        if discrete:
            monkeypatch.setattr(policy, "jacobi_iterations", lambda *_, count=iterations: count)
        decisions.append(policy.act(inputs, torch.Generator().manual_seed(4)))
    first, second = decisions
    alive = inputs["alive"]
    np.testing.assert_allclose(first.action[alive], second.action[alive], atol=1e-5)
    torch.testing.assert_close(first.log_prob[alive], second.log_prob[alive], atol=2e-5, rtol=1e-5)
    if name != "ff-sable":
        torch.testing.assert_close(first.recurrent_state, second.recurrent_state, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_decisions_do_not_depend_on_the_chunk(chunk, monkeypatch):
    policy = make()
    inputs = make_inputs(policy)
    nodes = policy.act(inputs, torch.Generator().manual_seed(4)).nodes
    policy.bptt_steps = 1
    expected = policy.evaluate(inputs, nodes).log_prob
    monkeypatch.setattr("marl.agents.sable.retention.CHUNK", chunk)
    torch.testing.assert_close(policy.evaluate(inputs, nodes).log_prob, expected, atol=2e-5, rtol=1e-5)


def test_the_state_holds_three_states_per_block_and_head():
    policy = make(heads=2, blocks=2)
    assert policy.recurrent_shape == (12, 16)
    assert make("ff-sable").recurrent_shape is None
    assert "recurrent_state" not in make_inputs(make("ff-sable"))


def test_a_dead_agent_leaves_no_trace_in_the_state():
    policy = make()
    inputs = make_inputs(policy)
    other = dict(inputs, agents=inputs["agents"] + 5.0 * ~inputs["alive"].unsqueeze(-1))
    before, after = (policy.act(x, torch.Generator().manual_seed(4)).recurrent_state for x in (inputs, other))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("sable", {"decay_scale": 0.0}, r"decay_scale=0.0 is not in \(0, 1\]. Give 1.0, or less to forget sooner"),
        ("sable", {"decay_scale": 1.5}, r"decay_scale=1.5 is not in \(0, 1\]"),
        (
            "sable",
            {"bptt_steps": 0},
            "bptt_steps=0 leaves Sable without memory. Give 1 or more",
        ),
        ("ff-sable", {"bptt_steps": 4}, "bptt_steps=4, but ff-sable forgets after each step. Use the agent sable"),
        ("sable", {"heads": 3}, "heads=3 does not divide embedding=64"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, text):
    with pytest.raises(ConfigError, match=text):
        AGENTS.get(name).options(**options)
