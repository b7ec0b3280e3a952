"""Retention: the chunkwise form equals the recurrent definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.agents.sable.retention import LayerStates, Retention, head_decay, retain, retain_recurrent

VISIBLE = ["step", "before", "self"]


@st.composite
def cases(draw):
    shape = {name: draw(st.integers(1, high)) for name, high in (("G", 3), ("K", 5), ("H", 2), ("N", 7), ("d", 4))}
    return shape, draw(st.integers(1, 8)), draw(st.floats(0.1, 1.0)), draw(st.integers(0, 2**31))


def tensors(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    G, K, H, N, d = shape.values()  # noqa: N806
    query, key, value = (torch.randn(G, K, H, N, d, generator=generator, dtype=dtype) for _ in range(3))
    alive = torch.rand(G, K, 1, N, 1, generator=generator) < 0.7
    state = torch.randn(G, H, d, d, generator=generator, dtype=dtype)
    start = torch.rand(G, K, generator=generator) < 0.3
    return query, key.masked_fill(~alive, 0.0), value, state, start


def chunkwise(query, key, value, decay, state, start, visible, chunk):
    """One layer of three, over the segment at once."""
    others = torch.zeros_like(state)
    past = torch.cat([others, state, others], 1).flatten(2)
    states = LayerStates(past, decay, start.flatten(), query.shape[1], 3)
    rows = (x.flatten(0, 1) for x in (query, key, value))
    out = retain(*rows, states, 1, visible, chunk)
    return out.view_as(query), states.after[1]


@given(cases(), st.sampled_from(["step", "before"]))
@settings(max_examples=60, deadline=None)
def test_both_forms_are_equal_over_episode_ends_dead_agents_and_chunks(case, visible):
    shape, chunk, scale, seed = case
    query, key, value, state, start = tensors(shape, seed)
    decay = head_decay(shape["H"], scale)
    expected, after = retain_recurrent(query, key, value, decay, state, start, visible)
    actual, carried = chunkwise(query, key, value, decay, state, start, visible, chunk)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(carried, after, atol=2e-4, rtol=1e-4)


@given(cases(), st.sampled_from(VISIBLE))
@settings(max_examples=40, deadline=None)
def test_single_steps_equal_a_segment(case, visible):
    """Acting is a segment of one step after another, with the state carried by hand."""
    shape, chunk, scale, seed = case
    query, key, value, state, start = tensors(shape, seed)
    decay = head_decay(shape["H"], scale)
    expected, _ = retain_recurrent(query, key, value, decay, state, start, visible)
    for step in range(shape["K"]):
        now = (x[:, step : step + 1] for x in (query, key, value))
        out, after = chunkwise(*now, decay, state, start[:, step : step + 1], visible, chunk)
        torch.testing.assert_close(out, expected[:, step : step + 1], atol=2e-4, rtol=1e-4)
        if visible == "self":  # a value is read before anybody acts, and changes no state
            assert after is None
            now = (x[:, step : step + 1] for x in (query, key, value))
            _, after = chunkwise(*now, decay, state, start[:, step : step + 1], "step", 1)
        state = after


@given(cases(), st.sampled_from(VISIBLE))
@settings(max_examples=40, deadline=None)
def test_without_memory_each_step_stands_alone(case, visible):
    shape, chunk, scale, seed = case
    query, key, value, state, start = tensors(shape, seed)
    expected, _ = retain_recurrent(
        query, key, value, head_decay(shape["H"], scale), state, torch.ones_like(start), visible
    )
    states = LayerStates(None, head_decay(shape["H"], scale), None, 1, 3)
    actual = retain(*(x.flatten(0, 1) for x in (query, key, value)), states, 1, visible, chunk)
    torch.testing.assert_close(actual.view_as(query), expected, atol=2e-4, rtol=1e-4)
    assert states.recurrent_state() is None


@given(cases(), st.sampled_from(["step", "before"]))
@settings(max_examples=20, deadline=None)
def test_gradients_of_both_forms_are_equal(case, visible):
    shape, chunk, scale, seed = case
    query, key, value, state, start = tensors(shape, seed, torch.float64)
    decay = head_decay(shape["H"], scale).double()
    inputs = [x.requires_grad_() for x in (query, key, value, state)]
    weight = torch.randn(query.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gradients = []
    for form in (retain_recurrent, lambda *x: chunkwise(*x, chunk)):
        out, after = form(*inputs[:3], decay, state, start, visible)
        gradients.append(torch.autograd.grad((out * weight).sum() + after.sin().sum(), inputs))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@given(cases())
@settings(max_examples=20, deadline=None)
def test_the_order_of_agents_does_not_matter_where_all_see_each_other(case):
    shape, chunk, scale, seed = case
    query, key, value, state, start = tensors(shape, seed)
    decay = head_decay(shape["H"], scale)
    order = torch.randperm(shape["N"], generator=torch.Generator().manual_seed(seed))
    out, after = chunkwise(query, key, value, decay, state, start, "step", chunk)
    moved = (x[:, :, :, order] for x in (query, key, value))
    other, other_after = chunkwise(*moved, decay, state, start, "step", chunk)
    torch.testing.assert_close(other, out[:, :, :, order], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(other_after, after, atol=2e-4, rtol=1e-4)


def test_a_single_head_keeps_31_of_32_parts_a_step():
    assert head_decay(1, 1.0).tolist() == pytest.approx([31 / 32])
    assert head_decay(3, 0.5).tolist() == pytest.approx([0.5 * 31 / 32, 0.5 * 127 / 128, 0.5 * 511 / 512])


def test_an_episode_start_hides_everything_before_it():
    query = key = value = torch.ones(1, 3, 1, 1, 1)
    start = torch.tensor([[False, False, True]])
    out, after = chunkwise(query, key, value, torch.tensor([0.5]), torch.full((1, 1, 1, 1), 8.0), start, "before", 1)
    assert out.flatten().tolist() == [0.5 * 8 + 1, 0.5 * 5 + 1, 1.0]
    assert after.item() == 1.0


def test_one_token_at_a_time_equals_the_layer():
    torch.manual_seed(2)
    layer = Retention(8, 2)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    alive = torch.rand(3, 5) < 0.8
    past, start = torch.randn(3, 2, 16), torch.tensor([False, True, False])
    states = LayerStates(past, head_decay(2, 0.9), start, 1, 1)
    expected = layer(x, y, alive, states, 0, "before")
    state, rows = states.start(0, layer.split_heads(x)[:, :, 0]), []
    for i in range(5):
        row = slice(i, i + 1)
        out, state = layer.next_token(x[:, row], y[:, row], alive[:, row], state)
        rows.append(out)
    torch.testing.assert_close(torch.cat(rows, 1), expected)
    torch.testing.assert_close(state, states.after[0])
