"""The agents of `examples/` learn."""

import pytest
import torch

from marl.config import override
from marl.envs.toy import factorized_optimum, optimum
from marl.evaluation import paired_seeds, run_episodes
from marl.experiments.presets import choose
from marl.run import build
from marl.vector import make_vector


@pytest.mark.parametrize(
    ("file", "task", "steps"), [("commnet", "copy", 4_096), ("mlp", "climbing", 2_048)], ids=["commnet", "mlp"]
)
def test_an_example_learns(file, task, steps):
    """CommNet passes on what another agent sees. The MLP finds the safe equilibrium."""
    config, _ = choose(f"toy/{task}", f"./examples/{file}.py:make")
    config = override(config, {"seed": 3, "steps": steps, "rollout_steps": 16, "epochs": 5, "learning_rate": 3e-3})
    env = make_vector(config.env, config.tasks[0].options, config.collect.num_envs)
    trainer = build(config, env, torch.device("cpu"), 1)
    for _ in range(config.iterations):
        trainer.iterate()
    rows = run_episodes(trainer.policy, env, paired_seeds(64), deterministic=file == "commnet")
    reached = sum(row.episode_return for row in rows) / len(rows)
    if file == "commnet":
        bound = factorized_optimum(task)
        assert reached > bound + 0.3 * (optimum(task) - bound)
    else:
        assert reached > 1.0, "uniform play earns -3.4, and the equilibrium 5"
