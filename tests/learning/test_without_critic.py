"""The advantages that need no critic solve a task of a few steps."""

import pytest
import torch

from marl.config import default_config, override
from marl.run import build
from marl.vector import make_vector

SETTINGS = {
    "num_envs": 32,
    "rollout_steps": 4,
    "whole_episodes": True,
    "group_size": 8,
    "hidden": (32,),
    "epochs": 2,
    "learning_rate": 3e-3,
    "value_coef": 0.0,
    "gamma": 1.0,
    "symbols": 3,
    "length": 3,
}


@pytest.mark.parametrize("advantage", ["return", "rloo", "grpo", "gigpo"])
def test_a_sequence_is_copied(advantage):
    """One agent repeats three symbols that it sees. A random policy earns 1/3."""
    config = override(default_config("toy/copy", "ippo"), SETTINGS | {"advantage": advantage})
    env = make_vector("toy/copy", {"agents": 1, "length": 3, "symbols": 3}, 32)
    trainer = build(config, env, torch.device("cpu"), 1)
    returns = [trainer.iterate()["episode/return"] for _ in range(100)]
    env.close()
    assert sum(returns[:5]) / 5 < 0.5
    assert sum(returns[-5:]) / 5 > 0.9, returns[::10]
