"""A language agent that is stopped and continued is the agent that was not."""

from pathlib import Path

import pytest

from marl import run
from tests.resume.test_resume import assert_same_run, stop_after

GROUPS = {"group_size": 2, "max_action_tokens": 3, "rollout_steps": 1, "steps": 4 * 6}
CASES = [
    ("chain", "poad", {"critic": "frozen"}),
    ("guess", "poad", {"rollout_steps": 3}),
    ("chain", "twosome", {"lora_rank": 2}),
    ("free_text", "grpo", GROUPS),
]


@pytest.mark.parametrize(("task", "agent", "changes"), CASES)
def test_half_and_half_is_the_whole(small, task, agent, changes):
    """The cache of prompts is empty in the second half, and no number changes."""
    whole = small(f"text/{task}", agent, name="whole", eval_interval=3, **changes)
    run.start(whole)
    half = small(f"text/{task}", agent, name="half", eval_interval=3, **changes)
    stop_after(half, 3)
    assert_same_run(Path(whole.runs_dir) / "whole", run.resume(Path(half.runs_dir) / "half", {}).folder)
