"""Every part of `marl bench` runs, on discrete and on continuous actions."""

import subprocess
import sys

import pytest

from marl.config import override
from marl.experiments.bench.train import PHASES, Loop
from marl.experiments.presets import choose


@pytest.mark.parametrize("env", ["smac/3m", "mamujoco/HalfCheetah-6x1"])
@pytest.mark.parametrize("reference", [False, True])
def test_a_loop_measures_itself(env, reference):
    settings = override(choose(env, "mat")[0], {"num_envs": 2, "rollout_steps": 4, "minibatches": 2, "epochs": 1})
    loop = Loop(settings, 1, reference)
    for _ in range(2):
        loop.iterate()
    loop.env.close()
    assert len(loop.rates) == 2
    assert all(0 < x < float("inf") for rates in loop.rates for x in rates)
    assert set(loop.shares[0]) == set(PHASES)
    assert 0.5 < sum(loop.shares[1].values()) <= 1.001


@pytest.mark.slow
@pytest.mark.parametrize("part", ["env", "act", "update", "train", "ranks", "smac", "language", "suite"])
def test_a_part_prints_its_table(part):
    command = [sys.executable, "-m", "marl.experiments.cli", "bench", part, "--rounds", "1", "--seconds", "0.02"]
    # A round of the part suite takes minutes, whatever the options.
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200 if part == "suite" else 280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "━" in done.stdout
