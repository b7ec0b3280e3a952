"""Environments without a preset are learned with the defaults."""

import pytest

from marl import run
from marl.config import override
from marl.experiments.presets import choose
from marl.run_folder import read_scores


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cartpole_is_solved_with_the_defaults(tmp_path):
    config, source = choose("gymnasium:CartPole-v1", "mappo")
    assert source.startswith("defaults")
    run.start(override(config, {"steps": 100_000, "runs_dir": str(tmp_path), "name": "cartpole", "learn_threads": 1}))
    assert read_scores(tmp_path / "cartpole")["test/return"] >= 475.0
