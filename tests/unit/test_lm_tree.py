import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.agents.lm.loading import load_backbone
from marl.agents.lm.output_head import LogitRule, OutputMatrix
from marl.agents.lm.token_tree import Tree, batches, padded
from tests.support.lm import (
    SPEC,
    branches,
    random_tree,
    save_llama,
    save_random,
    save_tokenizer,
    separate_features,
    stir,
)

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny", SPEC)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    backbone = load_backbone(str(folder), SPEC, precision="fp32", lora_rank=4)
    stir(backbone)
    return backbone


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Learned positions, another attention, adapters on a layer of another kind."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    size = len(save_tokenizer(folder))
    save_random(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0),
        folder,
    )
    backbone = load_backbone(str(folder), SPEC, precision="fp32", lora_rank=4, lora_targets=("c_attn",))
    stir(backbone)
    return backbone


def some_trees(backbone, count=6, prompt=12, nodes=9, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, prompt)), int(rng.integers(0, nodes))) for _ in range(count)]
    return [random_tree(rng, backbone.tokenizer.size, *shape) for shape in shapes]


@pytest.mark.parametrize("name", ["tiny", "llama", "gpt2"])
def test_features_of_a_tree_are_those_of_separate_forwards(name, request):
    backbone = request.getfixturevalue(name)
    trees = some_trees(backbone)
    with torch.no_grad():
        together, separate = backbone.features(trees), separate_features(backbone, trees)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-5)


def test_features_with_plain_attention(tiny):
    trees = some_trees(tiny)
    with torch.no_grad():
        expected = tiny.features(trees)
        tiny.model.set_attn_implementation("eager")
        try:
            torch.testing.assert_close(tiny.features(trees), expected, rtol=1e-5, atol=1e-5)
        finally:
            tiny.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_gradients_of_a_tree_are_those_of_separate_forwards(name, request):
    backbone = request.getfixturevalue(name)
    trees = some_trees(backbone, count=3)
    weight = torch.randn(sum(tree.rows for tree in trees), generator=torch.Generator().manual_seed(0))

    def gradients(features):
        logits = backbone.output.logits(features)
        loss = (torch.log_softmax(logits, -1)[:, 3] * weight).sum()
        return torch.autograd.grad(loss, list(backbone.parameters()))

    for one, other in zip(
        gradients(backbone.features(trees)), gradients(separate_features(backbone, trees)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("budget", [1, 48, 4096])
def test_gradients_do_not_depend_on_the_split(tiny, budget):
    trees = some_trees(tiny, count=8, prompt=40)

    def gradient(token_budget):
        tiny.token_budget = token_budget
        features = tiny.features(trees)
        log_normalizer, _ = tiny.output.moments(features)
        return torch.autograd.grad(log_normalizer.square().mean(), tiny.trained["model/embed_tokens/weight"])[0]

    try:
        torch.testing.assert_close(gradient(budget), gradient(200), rtol=1e-5, atol=1e-6)
    finally:
        tiny.token_budget = 4096


def test_a_tree_has_the_same_features_to_the_last_bit_in_any_company(tiny):
    trees = some_trees(tiny, count=24, prompt=300, nodes=20)
    rows = [tree.rows for tree in trees]
    with torch.no_grad():
        alone = [tiny.features([tree]) for tree in trees]
        for some in (slice(None), slice(0, None, 2), slice(None, None, -1)):
            company = tiny.features(trees[some]).split(rows[some])
            assert all(torch.equal(one, other) for one, other in zip(alone[some], company, strict=True))
    learning = tiny.features(trees).detach().split(rows)
    assert all(torch.equal(one, other) for one, other in zip(alone, learning, strict=True))


def test_the_reference_is_the_model_before_training_and_never_learns(llama, tiny):
    for backbone in (llama, tiny):
        trees = some_trees(backbone)
        with torch.inference_mode():
            before = backbone.features(trees, reference=True)
        assert not before.requires_grad
        assert not before.is_inference()
        assert torch.equal(before, backbone.features(trees, reference=True))
        assert backbone.features(trees).requires_grad
    with torch.no_grad():
        untouched = separate_features(tiny, trees, model=load_backbone("tiny", SPEC).model)
        stirred = load_backbone("tiny", SPEC)
        stir(stirred)
        torch.testing.assert_close(stirred.features(trees, reference=True), untouched, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(stirred.features(trees), untouched, atol=1e-2)
        assert not torch.equal(stirred.output.weight, stirred.reference_output.weight)


def test_no_tree_has_no_features(tiny):
    assert tiny.features([]).shape == (0, tiny.feature_size)


@given(st.lists(st.integers(1, 700), max_size=40), st.integers(1, 2000))
def test_batches_hold_every_index_once_within_the_budget(lengths, budget):
    groups = batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        sizes = {padded(lengths[index]) for index in group}
        assert len(sizes) == 1
        assert len(group) == 1 or len(group) * sizes.pop() <= budget
        assert all(padded(lengths[index]) >= lengths[index] for index in group)


@pytest.mark.parametrize(
    ("prompt", "tokens", "parents", "message"),
    [
        ((), (), (), "prompt is empty"),
        ((1,), (2,), (), "1 tokens and 0 parents"),
        ((1,), (2, 3), (-1, 1), "earlier node"),
        ((1,), (2,), (-2,), "earlier node"),
    ],
)
def test_a_tree_must_be_one(prompt, tokens, parents, message):
    with pytest.raises(ValueError, match=message):
        Tree(prompt, tokens, parents)


def test_a_path_is_a_tree_without_branches():
    tree = Tree.path((5, 6), (7, 8, 9))
    assert branches(tree) == [[5, 6], [5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9]]
    assert tree.visible.tolist() == np.tri(5, dtype=bool).tolist()
    assert tree.positions.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_moments_in_slices_are_those_of_the_whole_vocabulary(bias, chunk, monkeypatch):
    monkeypatch.setattr("marl.agents.lm.output_head.CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    vectors, weight, offset = (
        torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((5, 16), (1000, 16), (1000,))
    )
    output = OutputMatrix(weight, offset if bias else None)
    inputs = [vectors, weight, offset] if bias else [vectors, weight]
    log_probs = torch.log_softmax(vectors @ weight.T + (offset if bias else 0.0), -1)
    expected = torch.stack(
        [log_probs.gather(-1, torch.full((5, 1), 7)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)]
    )
    log_normalizer, mean = output.moments(vectors)
    token = output.token_logits(vectors, torch.full((5, 1), 7)).squeeze(-1) - log_normalizer
    actual = torch.stack([token, log_normalizer - mean])
    torch.testing.assert_close(actual, expected)
    pull = torch.randn(2, 5, generator=generator)
    for one, other in zip(
        torch.autograd.grad((actual * pull).sum(), inputs),
        torch.autograd.grad((expected * pull).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [LogitRule(0.25), LogitRule(1.0, 3.0), LogitRule(2.0, 5.0)])
def test_caps_and_scales_act_before_the_temperature(rule):
    generator = torch.Generator().manual_seed(0)
    vectors, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).float().requires_grad_()
        for shape in ((5, 16), (300, 16), (300,))
    )
    output = OutputMatrix(weight, bias, rule).at(0.5)
    product = rule.scale * (vectors @ weight.T + bias)
    logits = (product if rule.cap is None else rule.cap * torch.tanh(product / rule.cap)) / 0.5
    torch.testing.assert_close(output.logits(vectors), logits)
    log_probs = torch.log_softmax(logits, -1)
    log_normalizer, mean = output.moments(vectors)
    tokens = torch.full((5, 1), 7)
    actual = torch.stack([output.token_logits(vectors, tokens).squeeze(-1) - log_normalizer, log_normalizer - mean])
    expected = torch.stack([log_probs[:, 7], -(log_probs.exp() * log_probs).sum(-1)])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    pull = torch.randn(2, 5, generator=generator)
    for one, other in zip(
        torch.autograd.grad((actual * pull).sum(), (vectors, weight, bias)),
        torch.autograd.grad((expected * pull).sum(), (vectors, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_moments_of_frozen_weights_have_no_gradient_for_them():
    vectors, weight = torch.randn(3, 8, requires_grad=True), torch.randn(20, 8, dtype=torch.bfloat16)
    log_normalizer, mean = OutputMatrix(weight).moments(vectors)
    (log_normalizer + mean).sum().backward()
    assert weight.grad is None
    assert vectors.grad is not None
