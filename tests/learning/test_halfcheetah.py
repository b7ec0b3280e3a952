"""MAT learns to run in real MuJoCo with the preset that the README's main job uses."""

import pytest
import torch

from marl.config import override
from marl.evaluation import paired_seeds, run_episodes, summarize
from marl.experiments.presets import choose
from marl.run import build
from marl.vector import make_vector


@pytest.mark.slow
def test_mat_runs_after_two_hundred_thousand_steps():
    """Seeds 1 to 3 reached 1940, 2235 and 2371 when the preset was made."""
    config, source = choose("mamujoco/HalfCheetah-6x1", "mat")
    assert source == "preset mamujoco + mat"
    config = override(config, {"steps": 200_000, "seed": 4})
    env = make_vector(config.env, {}, config.collect.num_envs)
    trainer = build(config, env, torch.device("cpu"), 1)
    for _ in range(config.iterations):
        trainer.iterate()
    assert summarize(run_episodes(trainer.policy, env, paired_seeds(10)))["eval/return"] > 1400
