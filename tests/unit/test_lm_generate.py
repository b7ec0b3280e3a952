import pytest
import torch

from marl.agents.lm.generate import generate, nucleus
from marl.agents.lm.loading import load_backbone
from marl.agents.lm.token_tree import Tree
from marl.agents.lm.tokenizer import stop_at
from tests.support.lm import SPEC, stir

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def backbone():
    """A model whose distributions are far from even."""
    backbone = load_backbone("tiny", SPEC)
    stir(backbone)
    return backbone


def prompts(backbone, *texts):
    return [backbone.tokenizer.prompt(text) for text in texts]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def features_log_prob(backbone, prompt, ids, temperature):
    """Return the log-probability of an answer as the update computes it."""
    vectors = backbone.features([Tree.path(prompt, ids[:-1])]) / temperature
    tokens = torch.tensor(ids).unsqueeze(-1)
    return backbone.output.token_logits(vectors, tokens).squeeze(-1) - backbone.output.moments(vectors)[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_that_learning_computes(backbone, temperature):
    asked = prompts(backbone, "open the fridge", "go north you are in the fridge", "tomato", "open the fridge")
    answers = generate(backbone, asked, max_tokens=9, temperature=temperature, generator=seeded())
    for row, prompt in enumerate(asked):
        ids = answers.ids(row)
        with torch.no_grad():
            expected = features_log_prob(backbone, prompt, ids, temperature)
        torch.testing.assert_close(answers.behavior_log_prob[row, : len(ids)], expected, rtol=1e-4, atol=1e-4)
    assert answers.ids(0) != answers.ids(3)


def test_greedy_answers_are_the_likeliest_tokens_one_by_one_in_any_company(backbone):
    asked = prompts(backbone, "open the fridge", "go north you are in the fridge", "tomato")
    together = generate(backbone, asked, max_tokens=6, greedy=True)
    assert not together.behavior_log_prob.any()
    for row, prompt in enumerate(asked):
        expected = []
        while len(expected) < 6 and backbone.tokenizer.end not in expected:
            vectors = backbone.features([Tree.path(prompt, expected)])
            expected.append(int(backbone.output.logits(vectors[-1:]).argmax()))
        assert together.ids(row) == tuple(expected)
        assert generate(backbone, [prompt], max_tokens=6, greedy=True).ids(0) == tuple(expected)


def test_behavior_is_the_distribution_that_sampled(backbone):
    asked = prompts(backbone, *["open the fridge"] * 400)
    answers = generate(backbone, asked, max_tokens=1, top_p=0.5, generator=seeded())
    with torch.no_grad():
        whole = torch.log_softmax(backbone.output.logits(backbone.features([Tree(asked[0])])), -1)
    cut = nucleus(whole, 0.5).squeeze(0)
    tokens = answers.tokens.squeeze(-1)
    torch.testing.assert_close(answers.behavior_log_prob.squeeze(-1), cut[tokens], rtol=1e-4, atol=1e-4)
    assert (answers.behavior_log_prob.squeeze(-1) > whole[0, tokens]).all()
    frequency = torch.bincount(tokens, minlength=len(cut)) / len(tokens)
    assert (frequency - cut.exp()).abs().max() < 0.1


def test_the_nucleus_is_the_smallest_set_that_reaches_its_share():
    log_probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]]).log()
    assert nucleus(log_probs, 0.6).exp()[0].tolist() == pytest.approx([0.0, 4 / 7, 0.0, 3 / 7])
    assert nucleus(log_probs, 0.75).exp()[0].tolist() == pytest.approx([0.0, 4 / 9, 2 / 9, 3 / 9])
    assert nucleus(log_probs, 0.6).exp()[1].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(nucleus(log_probs, 1.0), log_probs)


def test_answers_end_with_the_end_token_or_at_the_limit(backbone, monkeypatch):
    asked = prompts(backbone, *["tomato"] * 60)
    first = generate(backbone, asked[:1], max_tokens=1, greedy=True).ids(0)[0]
    monkeypatch.setattr(backbone.tokenizer, "ends", (first,))
    answers = generate(backbone, asked, max_tokens=5, generator=seeded())
    ended = 0
    for row in range(60):
        ids = answers.ids(row)
        stops = [token == first for token in ids]
        assert not any(stops[:-1])
        assert stops[-1] or len(ids) == 5
        assert not answers.behavior_log_prob[row, len(ids) :].any()
        ended += stops[-1]
    assert 0 < ended < 60
    only = generate(backbone, asked, max_tokens=5, greedy=True)
    assert only.tokens.shape == (60, 1)


def test_answers_end_with_a_stop_string(backbone):
    asked = prompts(backbone, *["tomato"] * 60)
    stops = ("fridge", "e o")
    plain = generate(backbone, asked, max_tokens=6, generator=seeded())
    answers = generate(backbone, asked, max_tokens=6, stop_strings=stops, generator=seeded())
    ended = 0
    for row in range(60):
        ids = answers.ids(row)
        texts = [backbone.tokenizer.raw(ids[:n]) for n in range(1, len(ids) + 1)]
        holds = [any(stop in text for stop in stops) for text in texts]
        assert not any(holds[:-1])
        assert holds[-1] or len(ids) == 6 or ids[-1] == backbone.tokenizer.end
        ended += holds[-1]
    assert ended > 0
    assert any(len(plain.ids(row)) > len(answers.ids(row)) for row in range(60))
    assert stop_at("one two three", ("three", "two")) == 4
    assert stop_at("one", ("two",)) == -1


def test_an_end_token_alone_is_the_empty_text(backbone):
    answers = generate(backbone, prompts(backbone, "tomato"), max_tokens=1, generator=seeded())
    assert backbone.tokenizer.decode([backbone.tokenizer.end, *answers.ids(0)]) == ""


def test_the_generator_decides_the_sample(backbone):
    asked = prompts(backbone, "open", "close the")
    one, same, other = (generate(backbone, asked, max_tokens=8, generator=seeded(seed)).tokens for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_no_room_for_the_answer(backbone):
    with pytest.raises(ValueError, match="a prompt of 3 tokens and an answer of 1022 do not fit a context of 1024"):
        generate(backbone, prompts(backbone, "open the"), max_tokens=1022)
