"""The fast paths of MAT equal the plain encoder and decoder of the paper, in 16 digits."""

import gymnasium
import numpy as np
import pytest
import torch

from marl.agents.mat.agents import MAT
from marl.agents.mat.encoder_decoder import decode, previous_actions
from marl.agents.mat.options import MATOptions
from marl.agents.mat.order import agent_order, decision_order
from marl.types import EnvSpec, Obs

ENVS, AGENTS, WIDTH, ACTIONS = 6, 5, 4, 3


@pytest.fixture(autouse=True)
def double():
    """Only a difference in meaning is visible in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(discrete, **options):
    torch.manual_seed(0)
    space = gymnasium.spaces.Discrete(ACTIONS) if discrete else gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,))
    names = tuple(f"agent_{i}" for i in range(AGENTS))
    spec = EnvSpec("test", names, gymnasium.spaces.Box(-9.0, 9.0, (WIDTH,)), space, 10)
    policy = MAT(spec, MATOptions(embedding=16, **options))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return policy


def observe(policy, dead):
    rng = np.random.default_rng(1)
    alive = rng.random((ENVS, AGENTS)) < (0.6 if dead else 2.0)
    mask = np.ones((ENVS, AGENTS, ACTIONS), bool)
    if policy.spec.discrete:
        mask = rng.random(mask.shape) < 0.6
        mask[..., 1] = True
    return policy.encode(Obs(rng.normal(size=(ENVS, AGENTS, WIDTH)), alive, mask))


def close(x, y):
    torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("dead", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"blocks": 2, "heads": 4}, {"heads": 2, "agent_order": "random"}], ids=["one", "four", "random"]
)
@pytest.mark.parametrize("iterations", [0, AGENTS])
def test_fast_paths_equal_the_plain_encoder_and_decoder(monkeypatch, discrete, dead, options, iterations):
    """Representation, values, distributions, log-probabilities, sampled actions, and the gradient of every weight."""
    monkeypatch.setattr("marl.agents.mat.autoregressive.max_jacobi_iterations", lambda *_: iterations)
    policy = build(discrete, **options)
    inputs = observe(policy, dead)
    generator = torch.Generator().manual_seed(5)
    decision = policy.act(inputs, generator)
    order = decision.nodes.order
    assert (order is None) == (not dead and "agent_order" not in options)

    noise = policy.head.noise((ENVS, AGENTS), torch.device("cpu"), torch.Generator().manual_seed(5))
    mask = decision_order(inputs["action_mask"], order)
    plain = policy.encoder(policy.features(inputs), inputs["alive"])
    representation = decision_order(plain, order)
    offset = policy.head.sampling_offset(mask, noise, order)
    with torch.no_grad():
        action, _ = decode(policy.decoder, policy.actor, policy.head, representation, mask, offset)
    close(agent_order(action, order), decision.nodes.action)
    parameters = policy.actor(policy.decoder(representation, previous_actions(action)))
    log_prob, entropy = policy.head.evaluate(parameters, mask, action, order)
    expected = agent_order(log_prob, order), agent_order(entropy, order), policy.critic(plain)
    close(decision.log_prob, expected[0].detach())
    close(decision.value, expected[2].detach())

    evaluation = policy.evaluate(inputs, decision.nodes)
    ours = evaluation.log_prob, evaluation.entropy, evaluation.value
    weights = list(policy.parameters())
    gradients = []
    for parts in (ours, expected):
        loss = sum(part.square().sum() for part in parts)
        gradients.append(torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True))
    for mine, other in zip(ours, expected, strict=True):
        close(mine, other)
    for mine, other in zip(*gradients, strict=True):
        close(mine, other)
    assert len(decision.nodes.action.unique()) > 1


def test_a_table_of_tokens_equals_attention_over_them():
    """The first decoder block's self-attention as a table, with weights so far apart that most underflow."""
    policy = build(discrete=True, heads=2)
    block = policy.decoder.blocks[0].self_attention
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(4.0 * torch.randn_like(parameter))
    inputs = observe(policy, dead=False)
    nodes = policy.act(inputs, torch.Generator().manual_seed(1)).nodes
    before = previous_actions(nodes.action)
    x = policy.embed_tokens(before)
    allowed = torch.ones(AGENTS, AGENTS, dtype=torch.bool).tril()
    table = policy.fuse().table
    assert table is not None
    close(table.attend(before), x + block(x, x, allowed))
