"""Agents that remember solve a game that agents without a memory provably cannot."""

import pytest

from marl.envs.toy import factorized_optimum
from tests.learning.test_coordination import learn


@pytest.mark.parametrize("agent", ["mappo", "mat"])
def test_what_was_shown_is_recalled(agent):
    assert learn("memory", agent, 8_000, True, enough=0.95, length=3, bptt_steps=8) >= 0.95
    # Four standard errors of 256 episodes of a return in [0, 1].
    assert learn("memory", agent, 2_000, False, length=3) <= factorized_optimum("memory") + 4 * 0.5 / 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent", ["ippo", "happo", "mat-bad", "mat-decoder", "mat-gru", "mat-encoder", "mat-dec", "sable", "sable-bad"]
)
def test_the_others_recall_too(agent):
    assert learn("memory", agent, 25_000, True, enough=0.95, bptt_steps=8) >= 0.95
