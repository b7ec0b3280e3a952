"""The plain way to score actions, which `marl bench` measures ours against, agrees with ours."""

import numpy as np
import pytest
import torch

from marl.agents.lm.loading import load_backbone
from marl.agents.lm.token_tree import Tree
from marl.experiments.bench.baseline_lm import ReferenceLanguageAgent
from marl.experiments.bench.language import Language
from tests.support.lm import SPEC


class Plain:
    def __init__(self):
        self.backbone = load_backbone("tiny", SPEC)
        self.critic = torch.nn.Linear(self.backbone.feature_size, 1)


def test_the_reference_scores_actions_as_the_tree_does():
    plain = Plain()
    backbone = plain.backbone
    pairs = [("you are in the north", "open the fridge"), ("go", "put the tomato down"), ("go", "close")]
    with torch.no_grad():
        log_prob, mask, _ = ReferenceLanguageAgent(plain).forward(pairs)
        for row, (prompt, action) in enumerate(pairs):
            tokens = backbone.tokenizer.action(action)
            chain = Tree(backbone.tokenizer.prompt(prompt), tokens[:-1], tuple(range(-1, len(tokens) - 2)))
            features = backbone.features([chain])
            logits = backbone.output.token_logits(features, torch.tensor(tokens)[:, None])[:, 0]
            expected = logits - backbone.output.moments(features)[0]
            assert int(mask[row].sum()) == len(tokens)
            torch.testing.assert_close(log_prob[row][mask[row]], expected, rtol=1e-4, atol=1e-5)


def test_the_parts_of_the_benchmark_say_how_many_tokens_they_did():
    language = Language("tiny")
    said = language.rollout()
    assert language.update() == said > 0
    tokens = language.reference_rollout()
    assert language.reference_update() == tokens > 0
    assert len(language.rows) == 16


def test_the_reference_draws_by_the_score_of_a_word():
    plain = Plain()
    agent = ReferenceLanguageAgent(plain)
    candidates = ["open the fridge", "close", "go north"]
    with torch.no_grad():
        scores = agent.forward([("go", each) for each in candidates])[0].sum(-1)
    share = (scores / torch.tensor([3.0, 1.0, 2.0])).softmax(-1).numpy()
    drawn = [agent.act(["go"] * 50, [candidates] * 50)[0] for _ in range(8)]
    found = np.array([np.mean(np.array(drawn) == each) for each in candidates])
    assert found == pytest.approx(share, abs=4 * 0.5 / 400**0.5)
