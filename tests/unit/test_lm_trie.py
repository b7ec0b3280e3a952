"""The token trie against probabilities worked out candidate by candidate."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.agents.lm.candidate_trie import build_trie, flatten_tries, pick, segment_logsumexp
from marl.errors import ConfigError

END = 99

candidates = st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), min_size=1, max_size=7, unique=True)


def trie_of(*tokens, end=END, limit=10):
    return build_trie([str(ids) for ids in tokens], tokens, end, limit)


@given(candidates, st.randoms(use_true_random=False))
def test_probabilities_of_candidates_are_products_over_allowed_tokens_and_sum_to_one(tokens, random):
    trie = trie_of(*tokens)
    logit = [random.uniform(-3, 3) for _ in trie.token]
    forest = flatten_tries([trie], torch.device("cpu"))
    x = torch.tensor(logit, dtype=torch.float64)
    log_prob = x - segment_logsumexp(x, forest.source, forest.states)[forest.source]
    edges, mask = forest.rows(np.zeros(len(tokens), int), np.arange(len(tokens)), 10)
    product = (log_prob[edges] * mask).sum(-1).exp()
    assert float(product.sum()) == pytest.approx(1.0)

    # The same, from prefixes: which tokens may follow, and how likely each is among them.
    said = [trie.tokens(c) for c in range(len(tokens))]
    weight = {
        (ids[:n], ids[n]): math.exp(logit[trie.paths[c][n]]) for c, ids in enumerate(said) for n in range(len(ids))
    }
    for c, ids in enumerate(said):
        probability = 1.0
        for n in range(len(ids)):
            allowed = sum(w for (prefix, _), w in weight.items() if prefix == ids[:n])
            probability *= weight[ids[:n], ids[n]] / allowed
        assert float(product[c]) == pytest.approx(probability)


@given(candidates)
def test_a_trie_holds_each_prefix_once_and_ends_only_where_one_action_begins_another(tokens):
    trie = trie_of(*tokens)
    for c, ids in enumerate(tokens):
        begins_another = any(other[: len(ids)] == ids for other in tokens if other != ids)
        assert trie.tokens(c) == ((*ids, END) if begins_another or not ids else ids)
        assert trie.index[trie.tokens(c)] == c
    prefixes = {trie.tokens(c)[:n] for c in range(len(tokens)) for n in range(len(trie.tokens(c)))}
    assert trie.states == len(prefixes)
    assert len(trie.token) == len({trie.tokens(c)[:n] for c in range(len(tokens)) for n in range(1, 9)} - {()})
    inner, parent = trie.inner()
    assert len(inner) == trie.states - 1
    assert all(parent[i] < i for i in range(len(parent)))


def test_forced_tokens_have_log_probability_zero_exactly():
    trie = trie_of((1, 2, 3), (4, 5))
    forest = flatten_tries([trie], torch.device("cpu"))
    x = torch.tensor([3e4, 0.1, -7e3, 3e4, 12.3])
    log_prob = x - segment_logsumexp(x, forest.source, forest.states)[forest.source]
    assert [float(log_prob[edge]) for edge in (*trie.paths[0][1:], *trie.paths[1][1:])] == [0.0, 0.0, 0.0]


def test_equal_actions_are_one_and_long_ones_are_refused():
    trie = build_trie(["a", "b", "also a"], [(1,), (2,), (1,)], END, 3)
    assert trie.texts == ("a", "b")
    with pytest.raises(ConfigError, match=r"'long' has 4 tokens.*--max-action-tokens 4"):
        build_trie(["long"], [(1, 2, 3, 4)], END, 3)


def test_an_empty_action_needs_an_end():
    assert build_trie(["", "a"], [(), (1,)], END, 3).tokens(0) == (END,)
    with pytest.raises(ConfigError, match="'' has no tokens"):
        build_trie(["", "a"], [(), (1,)], None, 3)


def test_picked_rows_have_the_same_gradient_every_time_with_several_threads():
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 40, (400,), generator=generator)
    x, upstream = (torch.randn(n, 576, generator=generator) for n in (40, 400))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    leaf = x.clone().requires_grad_()
    gradients = [torch.autograd.grad(pick(leaf, index), leaf, upstream)[0] for _ in range(30)]
    torch.set_num_threads(before)
    assert torch.equal(pick(x, index), x[index])
    torch.testing.assert_close(gradients[0], torch.zeros_like(x).index_add(0, index, upstream))
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_a_forest_keeps_tries_apart():
    tries = [trie_of((1, 2), (1, 3)), trie_of((5,)), trie_of((1, 2), (2, 2), (3,))]
    forest = flatten_tries(tries, torch.device("cpu"))
    assert forest.root.tolist() == [0, 2, 3]
    assert forest.branching.tolist() == [False, True, False, True, False, False]
    edges, mask = forest.rows(np.array([2, 0, 1]), np.array([1, 1, 0]), 3)
    said = [forest.token[e][m].tolist() for e, m in zip(edges, mask, strict=True)]
    assert said == [[2, 2], [1, 3], [5]]
    assert forest.source.tolist() == [0, 1, 1, 2, 3, 4, 3, 5, 3]
