"""Transcripts: every utterance of living agents, with its advantage."""

import dataclasses

import numpy as np
import pytest
import torch

from marl.agents.lm import transcript_view as view
from marl.agents.lm.transcript_view import BAD, GOOD
from marl.transcript import TranscriptStep
from tests.support.language import CANDIDATES, PROMPTS, make_agent, observe, spec_of


def episode_of(policy, rows, advantage, alive=None):
    """An episode of one step."""
    obs = observe([rows], alive=alive)
    inputs = policy.encode(obs)
    with torch.inference_mode():
        decision = policy.act(inputs, torch.Generator().manual_seed(1))
    return [TranscriptStep(obs, inputs, decision, np.full(len(rows), 0.5), 1, advantage.expand_as(decision.value[0]))]


def test_a_transcript_holds_prompts_actions_tokens_and_credit():
    policy = make_agent("poad", spec_of(("Ada", "Bo")), team="sequential")
    (turn,) = episode = episode_of(policy, [0, 2], torch.tensor([[0.25], [-1.5]]))
    text = policy.transcript(episode)
    first = turn.decision.action[0, 0]
    assert f"**Step 1, Ada**\n\n> {PROMPTS[0]}  \n\n**{first}** (probability 0." in text
    assert (
        f"**Step 1, Bo**\n\n> {PROMPTS[2]}  \n> Ada: {first}  \n\n**open the door** (probability 1.000, reward 0.5)"
        in text
    )
    # The only candidate: no token had a choice.
    rows = [line for line in text.splitlines() if "-1.500" in line]
    assert [row.split("|")[1:3] for row in rows] == [[f" {word} ", " forced "] for word in ("open", "the", "door")]
    assert text.count("+0.250") == len(policy.backbone.tokenizer.action(first)) + (first == "go south")


def test_marks_of_tables_and_ends_of_lines_stay_inside_their_cells():
    policy = make_agent("poad", spec_of(words=("|",)))
    obs = dataclasses.replace(observe([[0]]), candidates=((("go |\nnorth",),),))
    inputs = policy.encode(obs)
    with torch.inference_mode():
        decision = policy.act(inputs, torch.Generator().manual_seed(1))
    text = policy.transcript([TranscriptStep(obs, inputs, decision, np.zeros(1), 1, torch.ones(1, 1))])
    rows = text.partition("| --- | --- | --- | --- |\n")[2].splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| go", "| \\|", "| \\n", "| north"]


def test_a_whole_action_is_one_node_and_the_dead_say_nothing():
    policy = make_agent("twosome", spec_of(("Ada", "Bo")))
    text = policy.transcript(episode_of(policy, [1, 0], torch.ones(2, 1), alive=[[True, False]]))
    assert "Bo" not in text
    assert any(f"| {action} | -0." in text for action in CANDIDATES[1])


@pytest.mark.parametrize("agent", ["poad", "twosome", "grpo"])
def test_the_picture_has_a_cell_of_the_advantages_color_for_each_token(agent):
    policy = make_agent(agent, spec_of(("Ada", "Bo")))
    picture = policy.picture(episode_of(policy, [2, 2], torch.tensor([[0.7], [-0.7]])))
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (view.WIDTH, 3)
    upper, lower = np.array_split(picture[view.MARGIN + view.LINE :], 2)
    for half, color, other in ((upper, GOOD, BAD), (lower, BAD, GOOD)):
        cell = (half == color).all(-1)
        assert cell.sum() > 1000
        assert not (half == other).all(-1).any()
        columns = np.flatnonzero(np.diff(np.r_[0, cell.any(0), 0]) == 1)
        assert len(columns) == (1 if agent == "twosome" else 3)


def test_long_stories_are_wrapped_and_cut():
    policy = make_agent("poad", max_action_tokens=400)
    (turn,) = episode_of(policy, [0], torch.zeros(1, 1))
    many = policy.picture([turn] * (view.MAX_UTTERANCES + 20))
    assert many.shape[0] == policy.picture([turn] * view.MAX_UTTERANCES).shape[0]
    obs = observe([[0]], free=True)
    inputs = policy.encode(obs)
    with torch.inference_mode():
        decision = policy.act(inputs, torch.Generator().manual_seed(3))
    speech = TranscriptStep(obs, inputs, decision, np.zeros(1), 1, torch.zeros_like(decision.value[0]))
    assert policy.picture([speech]).shape[0] > policy.picture([turn]).shape[0] + view.CELL


def test_without_a_critic_what_comes_is_shown_and_no_value():
    policy = make_agent("grpo", spec_of(), critic="none")
    text = policy.transcript(episode_of(policy, [1], torch.ones(1, 1)))
    assert "| token | log-probability | return to come |" in text
    assert "value" not in text
