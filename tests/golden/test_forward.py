"""Pinned outputs of each network for given weights, and its initial weights.

After an intended change of the numbers, `python -m tests.golden.test_forward` writes new ones.
"""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from marl.registry import AGENTS
from marl.types import EnvSpec, Nodes, Obs

FILE = Path(__file__).with_name("forward.json")
E, N, D, A = 2, 3, 5, 4
NAMES = ("mat", "mat-bad", "mat-decoder", "mat-gru", "mat-encoder", "mat-dec", "ff-sable", "mappo", "ippo", "happo")
CASES = [(name, discrete) for name in NAMES for discrete in (True, False)]


def build(name: str, agents=N, observation=D, actions=A, discrete=True, **options):
    space = gymnasium.spaces.Discrete(actions) if discrete else gymnasium.spaces.Box(-1.0, 1.0, (actions,))
    names = tuple(f"agent_{i}" for i in range(agents))
    spec = EnvSpec("pinned", names, gymnasium.spaces.Box(-9.0, 9.0, (observation,)), space, max_steps=9)
    entry = AGENTS.get(name)
    torch.manual_seed(0)
    return entry.make(spec, entry.options(**options))


def wave(count: int, phase: float) -> torch.Tensor:
    """Numbers in [-1, 1] that need no random generator."""
    return torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase).float()


def forward(name: str, discrete: bool) -> dict[str, list[float]]:
    """Return log-probabilities and values for fixed weights and inputs. An agent is dead in the last row."""
    torch.set_num_threads(1)
    width = {"hidden": (8, 8)} if name in ("mappo", "ippo", "happo") else {"embedding": 8}
    policy = build(name, discrete=discrete, **width)
    with torch.no_grad():
        for i, (key, parameter) in enumerate(policy.named_parameters()):
            start = float("norm" in key or (key.endswith("weight") and parameter.dim() == 1))
            parameter.copy_(start + 0.4 * wave(parameter.numel(), float(i)).view_as(parameter))
    alive = np.ones((E, N), bool)
    alive[1, 0] = False
    inputs = policy.encode(Obs(wave(E * N * D, 0.5).view(E, N, D).numpy(), alive))
    action = torch.arange(E * N).view(E, N, 1) % A if discrete else wave(E * N * A, 0.1).view(E, N, A)
    mask = inputs["alive"].unsqueeze(-1).expand_as(action)
    order = torch.tensor([[0, 1, 2], [1, 2, 0]])
    with torch.no_grad():
        evaluation = policy.evaluate(inputs, Nodes(action, mask, mask, order))
    numbers = {"log_prob": evaluation.log_prob, "entropy": evaluation.entropy, "value": evaluation.value}
    return {key: [round(x, 6) for x in number[alive].flatten().tolist()] for key, number in numbers.items()}


@pytest.mark.parametrize(("name", "discrete"), CASES)
def test_fixed_weights_compute_what_they_did(name, discrete):
    expected = json.loads(FILE.read_text())[f"{name}, {'discrete' if discrete else 'continuous'}"]
    actual = forward(name, discrete)
    for key, numbers in expected.items():
        assert actual[key] == pytest.approx(numbers, abs=2e-5, rel=2e-5), key


LARGE, SMALL = 2.0**0.5, 0.01
GAINS = {
    "encoder.embed.1": LARGE,
    "encoder.blocks.0.attention.query": SMALL,
    "encoder.blocks.0.attention.key": SMALL,
    "encoder.blocks.0.attention.value": SMALL,
    "encoder.blocks.0.attention.out": SMALL,
    "encoder.blocks.0.mlp.0": LARGE,
    "encoder.blocks.0.mlp.2": SMALL,
    "critic.0": LARGE,
    "critic.3": SMALL,
    "decoder.token": LARGE,
    "decoder.blocks.0.self_attention.query": SMALL,
    "decoder.blocks.0.cross_attention.out": SMALL,
    "decoder.blocks.0.mlp.0": LARGE,
    "decoder.blocks.0.mlp.2": SMALL,
    "actor.0": LARGE,
    "actor.3": SMALL,
}


@pytest.mark.parametrize("discrete", [True, False])
def test_layers_start_orthogonal_with_the_released_gains(discrete):
    policy = build("mat", discrete=discrete)
    for name, gain in GAINS.items():
        weight = policy.get_submodule(name).weight.detach()
        square = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(square, gain**2 * torch.eye(len(square)), atol=1e-5, rtol=1e-4, msg=name)
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
            assert (module.weight == 1).all()


@pytest.mark.parametrize(
    ("agents", "observation", "actions", "released"), [(3, 30, 9, 83.9e3), (8, 80, 14, 91161), (27, 285, 36, 121e3)]
)
def test_parameter_counts_are_the_released_ones(agents, observation, actions, released):
    """Less what gets no gradient there: the encoders of an unused state of width 37, and of the decoder's own view."""
    policy = build("mat", agents, observation, actions, agent_id=False)
    unused = sum(2 * width + 64 * width + 64 for width in (37, observation))
    count = sum(p.numel() for p in policy.parameters()) + unused
    assert count == pytest.approx(released, rel=0 if released == 91161 else 5e-3)


def test_relatives_differ_from_mat_by_what_they_leave_out():
    """In parameters, at width 64 on 8m's sizes."""
    count = {name: sum(p.numel() for p in build(name, 8, 80, 14, agent_id=False).parameters()) for name in NAMES[:6]}
    square, norm = 64 * 64 + 64, 2 * 64
    attention, perceptron = 4 * square, 2 * square
    encoder_block, decoder_block = attention + perceptron + 2 * norm, 2 * attention + perceptron + 3 * norm
    tokens, head = 15 * 64 + norm, square + norm + 64 * 14 + 14
    assert count["mat-bad"] == count["mat"]
    assert count["mat"] - count["mat-encoder"] == decoder_block + tokens
    assert count["mat"] - count["mat-decoder"] == encoder_block + norm
    assert (
        count["mat-dec"] - count["mat-encoder"] == (2 * 80 + 64 * 80 + 64 + norm + square + norm + 64 * 14 + 14) - head
    )
    recurrent = 2 * 2 * (3 * 64 * 64 + 3 * 64)
    assert count["mat-gru"] - count["mat"] == 2 * recurrent - encoder_block - decoder_block


if __name__ == "__main__":
    pinned = {
        f"{name}, {'discrete' if discrete else 'continuous'}": forward(name, discrete) for name, discrete in CASES
    }
    FILE.write_text(json.dumps(pinned, indent=1) + "\n")
