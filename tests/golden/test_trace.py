"""Pinned numbers of training, step by step. A refactoring must not change them.

After an intended change of the numbers, `python -m tests.golden.test_trace` writes new ones.
"""

import json
from pathlib import Path

import pytest
import torch

from marl.config import default_config, override
from marl.run import build
from marl.vector import make_vector

FILE = Path(__file__).with_name("trace.json")
CASES = {
    "mat, deaths and discrete actions": ("toy/agent_death", "mat", {"embedding": 16}),
    "mat, random order, two blocks": (
        "toy/agent_death",
        "mat",
        {"embedding": 16, "agent_order": "random", "blocks": 2},
    ),
    "mat, torques": ("toy/continuous", "mat", {"embedding": 16, "normalize_observations": True}),
    "mappo": ("toy/agent_death", "mappo", {"hidden": (16,), "value_clip": 0.2}),
    "ippo": ("toy/continuous", "ippo", {"hidden": (16,), "value_loss": "mse", "ratio_level": "node"}),
}
PINNED = ("loss/policy", "loss/value", "policy/entropy", "policy/kl", "gradient/norm", "value/explained_variance")


def trace(name: str) -> list[dict[str, float]]:
    torch.set_num_threads(1)
    env_name, agent, changes = CASES[name]
    settings = {"num_envs": 3, "rollout_steps": 16, "epochs": 2, "minibatches": 2, "seed": 11, **changes}
    config = override(default_config(env_name, agent), settings)
    env = make_vector(config.env, {}, 3)
    trainer = build(config, env, torch.device("cpu"), 1)
    rows = []
    for _ in range(4):
        metrics = trainer.iterate()
        rows.append({key: metrics[key] for key in (*PINNED, "episode/count")})
    env.close()
    return rows


@pytest.mark.parametrize("name", CASES)
def test_training_computes_what_it_did(name):
    expected = json.loads(FILE.read_text())[name]
    for row, pinned in zip(trace(name), expected, strict=True):
        # Processors round differently; anything more is a change.
        assert row == pytest.approx(pinned, rel=2e-3, abs=1e-5)


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: trace(name) for name in CASES}, indent=1) + "\n")
