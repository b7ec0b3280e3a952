"""Attention of the Multi-Agent Transformer's decoder, by agent."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name

from marl.agents.mat.agents import MAT
from marl.agents.mat.encoder_decoder import causal_mask
from marl.agents.mat.options import MATOptions
from marl.types import EnvSpec, Obs

ENVS, AGENTS, WIDTH = 3, 5, 4


def build(seed=0, agents=AGENTS, continuous=False, **options):
    """A policy whose attention is far from uniform."""
    torch.manual_seed(seed)
    space = gymnasium.spaces.Box(-1.0, 1.0, (2,)) if continuous else gymnasium.spaces.Discrete(6)
    names = tuple(f"agent_{i}" for i in range(agents))
    spec = EnvSpec("test", names, gymnasium.spaces.Box(-1.0, 1.0, (WIDTH,)), space, 10)
    policy = MAT(spec, MATOptions(embedding=16, **options))
    for block in policy.decoder.blocks:
        for layer in (block.self_attention.query, block.self_attention.key):
            torch.nn.init.normal_(layer.weight, std=0.5)
            torch.nn.init.normal_(layer.bias, std=0.5)
    return policy


def decide(policy, alive=None, seed=1):
    """Inputs and the nodes of a sampled decision."""
    generator = np.random.default_rng(seed)
    agents = policy.spec.num_agents
    alive = np.ones((ENVS, agents), bool) if alive is None else alive
    inputs = policy.encode(Obs(generator.normal(size=(ENVS, agents, WIDTH)).astype(np.float32), alive))
    with torch.no_grad():
        return inputs, policy.act(inputs, torch.Generator().manual_seed(seed)).nodes


def places(nodes):
    """(E, N): when each agent decided."""
    if nodes.order is None:
        return torch.arange(nodes.action.shape[1]).expand(nodes.action.shape[:2])
    return nodes.order.argsort(-1)


SOME_DEAD = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], bool)
CASES = [
    {"heads": 2, "blocks": 2},
    {"heads": 4, "blocks": 1, "agent_order": "random"},
    {"heads": 1, "blocks": 2, "continuous": True, "agent_order": "random"},
]


@pytest.mark.parametrize("alive", [None, SOME_DEAD])
@pytest.mark.parametrize("options", CASES)
def test_rows_of_the_living_sum_to_one_and_lead_only_to_those_before(options, alive):
    policy = build(**options)
    inputs, nodes = decide(policy, alive)
    attention = policy.attention(inputs, nodes)
    assert attention.shape == (ENVS, AGENTS, AGENTS)
    lives = inputs["alive"]
    assert torch.allclose(attention.sum(-1), lives.float(), atol=1e-6)
    when = places(nodes)
    later = when[:, None, :] > when[:, :, None]
    assert (attention[later] == 0).all()
    earlier = (when[:, None, :] < when[:, :, None]) & lives[:, :, None] & lives[:, None, :]
    assert (attention[earlier] > 0).all()
    assert (attention.mT[~lives] == 0).all(), "somebody looks at the dead"
    assert (attention[~lives] == 0).all(), "the dead look at somebody"
    first = (when == 0) & lives
    assert torch.allclose(attention.diagonal(dim1=1, dim2=2)[first], torch.ones(int(first.sum())))


def test_one_block_equals_the_softmax_of_its_own_queries_and_keys():
    policy = build(heads=1, blocks=1)
    inputs, nodes = decide(policy)
    block = policy.decoder.blocks[0]
    action = nodes.action[..., 0]
    attention = policy.attention(inputs, nodes)
    with torch.no_grad():
        for env in range(ENVS):
            symbols = [0, *(action[env, :-1] + 1).tolist()]  # the start token, then the action of each agent
            tokens = [policy.decoder.token_norm(F.gelu(policy.decoder.token.weight[symbol])) for symbol in symbols]
            for i in range(AGENTS):
                query = block.self_attention.query(tokens[i])
                scores = torch.stack([query @ block.self_attention.key(tokens[j]) / 4.0 for j in range(i + 1)])
                weights = scores.softmax(-1)
                expected = torch.zeros(AGENTS)
                expected[:i] = weights[1:]  # the symbol at place j is the action of agent j - 1
                expected[i] = weights[0]
                assert torch.allclose(attention[env, i], expected, atol=1e-6)
    assert attention.std() > 0.05, "so uniform that little was tested"


def test_heads_and_blocks_are_averaged_and_the_second_block_sees_the_first():
    policy = build(heads=2, blocks=2)
    inputs, nodes = decide(policy)
    with torch.no_grad():
        representation = policy.decoder_memory(inputs, policy.fuse(), None)
        x = policy.embed_tokens(policy.shift_right(nodes.action))
        expected = torch.zeros(ENVS, AGENTS, AGENTS)
        for block in policy.decoder.blocks:
            query, key = block.self_attention.query(x), block.self_attention.key(x)
            for head in range(2):
                part = slice(8 * head, 8 * head + 8)
                for i in range(AGENTS):
                    score = torch.einsum("ed,ejd->ej", query[:, i, part], key[:, : i + 1, part]) / 8**0.5
                    weights = score.softmax(-1) / 4
                    expected[:, i, :i] += weights[:, 1:]
                    expected[:, i, i] += weights[:, 0]
            x = block(x, representation, causal_mask(x))
    assert torch.allclose(policy.attention(inputs, nodes), expected, atol=1e-6)


def test_a_changed_action_changes_only_what_those_after_see():
    policy = build(heads=2, blocks=2, agent_order="random")
    inputs, nodes = decide(policy)
    before, when = policy.attention(inputs, nodes), places(nodes)
    action = nodes.action.clone()
    action[:, 2] = (action[:, 2] + 1) % 6
    after = policy.attention(inputs, dataclasses.replace(nodes, action=action))
    changed = (before != after).any(-1)
    later = when > when[:, 2:3]
    assert later.any()
    assert (changed == later).all()


def test_the_order_of_the_decisions_does_not_rename_agents():
    policy = build(heads=2, blocks=2)
    inputs, nodes = decide(policy)
    order = torch.tensor([[3, 1, 4, 0, 2]]).expand(ENVS, AGENTS)
    attention = policy.attention(inputs, dataclasses.replace(nodes, order=order))
    assert (attention[:, 3, 3] == 1).all(), "the first to decide sees nobody"
    assert (attention[:, 2] > 0).all(), "the last sees everybody"
    assert (attention[:, 1, [0, 2, 4]] == 0).all()
    assert (attention[:, 1, 3] > 0).all()


def test_a_single_agent_looks_at_nobody():
    policy = build(agents=1)
    assert (policy.attention(*decide(policy)) == 1).all()


def test_asking_changes_nothing():
    policy = build(heads=2, blocks=2, agent_order="random")
    inputs, nodes = decide(policy)
    evaluation = policy.evaluate(inputs, nodes)
    state, stream = {name: x.clone() for name, x in policy.state_dict().items()}, torch.get_rng_state()
    attention = policy.attention(inputs, nodes)
    assert not attention.requires_grad
    assert (torch.get_rng_state() == stream).all()
    assert all((x == state[name]).all() for name, x in policy.state_dict().items())
    again = policy.evaluate(inputs, nodes)
    assert (again.log_prob == evaluation.log_prob).all()
    assert (policy.attention(inputs, nodes) == attention).all()
