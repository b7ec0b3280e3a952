import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.errors import ConfigError
from marl.objective import Batch, ClippedPPO, even_slices, kl_estimate, masked_sum, row_count
from marl.types import Evaluation, Nodes


def make_batch(rows=5, agents=3, slots=2, value_slots=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (rows, agents, slots)
    mask = torch.rand(shape, generator=g) < 0.7
    mask[0, 0, 0] = True
    nodes = Nodes(torch.zeros(shape), mask, mask & (torch.rand(shape, generator=g) < 0.9))
    values = (rows, agents, value_slots)
    batch = Batch(
        {"x": torch.randn(rows, 4, generator=g)},
        nodes,
        torch.randn(shape, generator=g),
        torch.randn(values, generator=g),
        torch.randn(values, generator=g),
        torch.randn(values, generator=g),
    )
    evaluation = Evaluation(
        batch.log_prob + 0.3 * torch.randn(shape, generator=g),
        torch.rand(shape, generator=g),
        batch.value + 0.5 * torch.randn(values, generator=g),
    )
    return batch, evaluation


@pytest.mark.parametrize("ratio_level", ["node", "agent", "step"])
@pytest.mark.parametrize("value_clip", [0.0, 0.1])
def test_loss_is_the_sum_over_units_written_out(ratio_level, value_clip):
    batch, evaluation = make_batch()
    objective = ClippedPPO(clip=0.1, ratio_level=ratio_level, entropy_coef=0.3, value_coef=0.7, value_clip=value_clip)
    rows, agents, slots = batch.log_prob.shape
    units: dict[tuple, list[tuple]] = {}
    for b in range(rows):
        for n in range(agents):
            for k in range(slots):
                if batch.nodes.loss_mask[b, n, k]:
                    key = {"node": (b, n, k), "agent": (b, n), "step": (b,)}[ratio_level]
                    units.setdefault(key, []).append((b, n, k))
    policy, entropy = [], []
    for members in units.values():
        r = math.exp(sum(float(evaluation.log_prob[m] - batch.log_prob[m]) for m in members))
        a = sum(float(batch.advantage[b, n, 0]) for b, n, _ in members) / len(members)
        policy.append(min(r * a, min(max(r, 0.9), 1.1) * a))
        entropy.append(sum(float(evaluation.entropy[m]) for m in members))
    errors = []
    for b in range(rows):
        for n in range(agents):
            if batch.nodes.node_mask[b, n].any():
                v, old, target = (float(x[b, n, 0]) for x in (evaluation.value, batch.value, batch.returns))
                near = old + min(max(v - old, -value_clip), value_clip)
                error = 0.5 * (v - target) ** 2
                errors.append(max(error, 0.5 * (near - target) ** 2) if value_clip else error)
    mean = lambda x: sum(x) / len(x)  # noqa: E731
    loss, parts = objective(evaluation, batch, objective.counts(batch))
    assert float(loss) == pytest.approx(-mean(policy) - 0.3 * mean(entropy) + 0.7 * mean(errors), abs=1e-5)
    assert float(parts["policy/entropy"]) == pytest.approx(mean(entropy), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 7), ratio_level=st.sampled_from(["node", "agent", "step"]))
def test_gradient_does_not_depend_on_micro_batches(seed, size, ratio_level):
    batch, _ = make_batch(rows=7, seed=seed)
    objective = ClippedPPO(ratio_level=ratio_level)
    weight = torch.linspace(-1, 1, 4, requires_grad=True)

    def gradient(parts):
        weight.grad = None
        for part in parts:
            shift = (part.inputs["x"] @ weight)[:, None, None]
            evaluation = Evaluation(part.log_prob + 0.1 * shift, shift.expand_as(part.log_prob), part.value + shift)
            objective(evaluation, part, counts)[0].backward()
        assert weight.grad is not None
        return weight.grad.clone()

    counts = objective.counts(batch)
    parts = [batch.rows(index) for index in even_slices(batch.nodes.node_mask, size, 1)]
    torch.testing.assert_close(gradient(parts), gradient([batch]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "divisor", "sizes"),
    [(0, 1, [7]), (3, 1, [3, 3, 1]), (5, 1, [4, 3]), (0, 2, [4, 3]), (3, 2, [2, 2, 2, 1]), (9, 99, [1] * 7)],
)
def test_passes_hold_every_row_once(rows, divisor, sizes):
    parts = even_slices(torch.ones(7, 2, 1), rows, divisor)
    assert [row_count(part) for part in parts] == sizes
    assert [i for part in parts for i in range(7)[part]] == list(range(7))


def enumerated(logits, behavior, advantage, **fields):
    """Return one row for each action of a categorical policy, and the loss as the mean over rows weighted by `chance`.

    A mean over samples of the sampler has this expectation, exactly.
    """
    old = logits.detach().log_softmax(-1)
    count = len(old)
    nodes = Nodes(*(torch.ones(count, 1, 1, dtype=torch.bool) for _ in range(3)))
    column = lambda x: x.reshape(count, 1, 1)  # noqa: E731
    zeros = torch.zeros(count, 1, 1)
    batch = Batch({}, nodes, column(old), zeros, column(advantage), zeros, behavior_log_prob=column(behavior), **fields)

    def loss(objective, chance):
        evaluation = Evaluation(column(logits.log_softmax(-1)), zeros, zeros)
        one = torch.tensor([1.0, 1.0])
        rows = [batch.rows(torch.tensor([i])) for i in range(count)]
        parts = [Evaluation(*(x[i : i + 1] for x in (evaluation.log_prob, zeros, zeros))) for i in range(count)]
        return sum(chance[i] * objective(parts[i], rows[i], one)[0] for i in range(count))

    return loss


def test_samples_of_another_distribution_give_the_policy_gradient():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, generator=g, requires_grad=True)
    behavior = (logits.detach() + 0.3 * torch.randn(5, generator=g)).log_softmax(-1)
    advantage = torch.randn(5, generator=g)
    exact = -torch.autograd.grad((logits.softmax(-1) * advantage).sum(), logits)[0]
    loss = enumerated(logits, behavior, advantage)
    free, cut = (ClippedPPO(ratio_level="node", entropy_coef=0.0, is_weight_cap=cap) for cap in (100.0, 1.0))
    torch.testing.assert_close(torch.autograd.grad(loss(free, behavior.exp()), logits)[0], exact)
    # The cap binds, so the gradient differs, and no unit weighs more than it did without a correction.
    assert not torch.allclose(torch.autograd.grad(loss(cut, behavior.exp()), logits)[0], exact, atol=1e-3)
    weight = (logits.detach().log_softmax(-1) - behavior).exp().clamp(max=1.0)
    expected = -(behavior.exp() * weight * advantage).sum()
    assert float(loss(cut, behavior.exp()).detach()) == pytest.approx(float(expected), abs=1e-6)


def test_the_gap_between_policy_and_sampler_is_reported():
    batch, evaluation = make_batch()
    gap = torch.randn(batch.log_prob.shape, generator=torch.Generator().manual_seed(3))
    shifted = replace(batch, behavior_log_prob=batch.log_prob - gap)
    objective = ClippedPPO(ratio_level="node")
    parts = objective(evaluation, shifted, objective.counts(batch))[1]
    assert float(parts["policy/behavior_gap"]) == pytest.approx(float(gap.abs()[batch.nodes.loss_mask].mean()), 1e-4)
    assert "policy/behavior_gap" not in objective(evaluation, batch, objective.counts(batch))[1]
    equal = replace(batch, behavior_log_prob=batch.log_prob)
    losses = [objective(evaluation, each, objective.counts(batch))[0] for each in (batch, equal)]
    torch.testing.assert_close(*losses)


def test_the_upper_clip_range_may_be_wider():
    batch, evaluation = make_batch()
    up = Evaluation(batch.log_prob + math.log(1.25), evaluation.entropy, batch.value)
    gains = replace(batch, advantage=torch.ones_like(batch.advantage))
    for clip_high, expected in ((None, 1.2), (0.28, 1.25), (0.22, 1.22)):
        objective = ClippedPPO(ratio_level="node", clip_high=clip_high, entropy_coef=0.0)
        parts = objective(up, gains, objective.counts(batch))[1]
        assert float(parts["loss/policy"]) == pytest.approx(-expected, abs=1e-5)
        assert float(parts["policy/clip_fraction"]) == pytest.approx(float(expected < 1.25))


def test_the_reference_pulls_with_the_gradient_of_the_divergence():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=g, requires_grad=True)
    reference = torch.randn(6, generator=g).log_softmax(-1)
    chance = logits.detach().softmax(-1)
    loss = enumerated(logits, chance.log(), torch.zeros(6), reference_log_prob=reference.reshape(6, 1, 1))
    objective = ClippedPPO(ratio_level="node", entropy_coef=0.0, reference_coef=0.5)
    divergence = (chance * (chance.log() - reference)).sum()
    value = loss(objective, chance)
    assert float(value.detach()) == pytest.approx(0.5 * float(divergence), rel=1e-5)
    # With samples held fixed, the gradient of k3's mean is that of KL(reference || policy).
    pulled = torch.autograd.grad(value, logits)[0]
    expected = torch.autograd.grad(-0.5 * (reference.exp() * logits.log_softmax(-1)).sum(), logits)[0]
    torch.testing.assert_close(pulled, expected, atol=1e-5, rtol=1e-4)


def test_a_reference_that_is_not_there_is_named():
    batch, evaluation = make_batch()
    objective = ClippedPPO(reference_coef=0.1)
    with pytest.raises(ConfigError, match="no reference policy"):
        objective(evaluation, batch, objective.counts(batch))


def test_what_is_masked_cannot_matter_even_as_nan():
    batch, evaluation = make_batch()
    objective = ClippedPPO()
    log_prob = evaluation.log_prob.masked_fill(~batch.nodes.loss_mask, float("nan")).requires_grad_()
    spoiled = Evaluation(
        log_prob, evaluation.entropy.masked_fill(~batch.nodes.loss_mask, float("inf")), evaluation.value
    )
    counts = objective.counts(batch)
    loss, _ = objective(spoiled, batch, counts)
    torch.testing.assert_close(loss, objective(evaluation, batch, counts)[0])
    loss.backward()
    assert log_prob.grad is not None
    assert torch.isfinite(log_prob.grad).all()
    assert (log_prob.grad[~batch.nodes.loss_mask] == 0).all()


def test_huber_pulls_from_both_sides():
    batch, _ = make_batch(rows=1, agents=2, slots=1)
    object.__setattr__(batch, "returns", torch.zeros(1, 2, 1))
    value = torch.tensor([[[20.0], [-20.0]]], requires_grad=True)
    error = ClippedPPO(huber_delta=10.0).value_error(value, batch.value, batch.returns)
    assert error.flatten().tolist() == [150.0, 150.0]
    error.sum().backward()
    assert value.grad is not None
    assert value.grad.flatten().tolist() == [10.0, -10.0]


def test_kl_estimators_agree_with_the_exact_divergence():
    old = torch.distributions.Normal(0.0, 1.0)
    new = torch.distributions.Normal(0.1, 1.1)
    x = old.sample((400_000,)) if torch.manual_seed(0) else None
    log_ratio = new.log_prob(x) - old.log_prob(x)
    exact = float(torch.distributions.kl_divergence(old, new))
    assert float(kl_estimate(log_ratio, "k1").mean()) == pytest.approx(exact, rel=0.08)
    assert float(kl_estimate(log_ratio, "k2").mean()) == pytest.approx(exact, rel=0.15)
    assert float(kl_estimate(log_ratio, "k3").mean()) == pytest.approx(exact, rel=0.05)
    assert (kl_estimate(log_ratio, "k3") >= 0).all()


def test_masked_sum_ignores_what_is_masked():
    assert float(masked_sum(torch.tensor([float("nan"), 2.0]), torch.tensor([False, True]))) == 2.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip", 0.0),
        ("clip_high", 0.0),
        ("is_weight_cap", 0.5),
        ("reference_coef", -1.0),
        ("clip", 1.5),
        ("entropy_coef", -1.0),
        ("huber_delta", 0.0),
        ("value_clip", -1),
    ],
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        ClippedPPO(**{field: value})
