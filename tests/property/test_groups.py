"""Comparisons inside groups against loops written out, and credit of whole rollouts against sums by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.advantages import (
    EPSILON,
    GRPO,
    RLOO,
    AdvantageContext,
    GiGPO,
    Return,
    gigpo_step_advantages,
    group_std,
    grpo_advantages,
    leave_one_out,
    observation_keys,
)
from marl.settings import LearnConfig
from marl.value_norm import ValueNorm

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2))  # groups, size, agents


def scores(seed, groups, size, agents):
    rng = np.random.default_rng(seed)
    score = torch.as_tensor(rng.integers(-2, 3, (groups * size, agents)).astype(float))
    return score, torch.as_tensor(rng.random((groups * size, agents)) < 0.8)


def members(e, n, size, valid):
    start = e // size * size
    return [i for i in range(start, start + size) if valid[i, n]]


@given(seed=st.integers(0, 2**32 - 1), sizes=SIZES)
@settings(max_examples=50, deadline=None)
def test_episodes_are_compared_with_their_group(seed, sizes):
    score, valid = scores(seed, *sizes)
    size = sizes[1]
    left_out, scaled, deviation = (f(score, valid, size) for f in (leave_one_out, grpo_advantages, group_std))
    for e in range(score.shape[0]):
        for n in range(score.shape[1]):
            here = members(e, n, size, valid)
            if here:
                std = np.std([float(score[i, n]) for i in here])
                assert float(deviation[e // size, n]) == pytest.approx(std)
            others = [float(score[i, n]) for i in here if i != e]
            if not valid[e, n] or not others:
                assert float(left_out[e, n]) == 0.0
            else:
                assert float(left_out[e, n]) == pytest.approx(float(score[e, n]) - np.mean(others))
            if not valid[e, n]:
                assert float(scaled[e, n]) == 0.0
            else:
                mean = np.mean([float(score[i, n]) for i in here])
                assert float(scaled[e, n]) == pytest.approx((float(score[e, n]) - mean) / (std + EPSILON))


def test_left_out_scores_do_not_spoil_the_others():
    score = torch.tensor([[1.0], [float("nan")], [3.0]])
    valid = torch.tensor([[True], [False], [True]])
    assert leave_one_out(score, valid, 3).flatten().tolist() == [-2.0, 0.0, 2.0]


@given(seed=st.integers(0, 2**32 - 1), sizes=SIZES, steps=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_steps_are_compared_where_observations_are_equal(seed, sizes, steps):
    groups, size, agents = sizes
    rng = np.random.default_rng(seed)
    shape = (steps, groups * size, agents)
    returns = torch.as_tensor(rng.integers(-2, 3, shape).astype(float))
    seen = torch.as_tensor(rng.integers(0, 3, (*shape, 2)))
    mask = torch.as_tensor(rng.random(shape) < 0.8)
    keys = observation_keys({"seen": seen, "team": torch.zeros(shape[:2])}, agents)
    advantage = gigpo_step_advantages(returns, keys, mask, size)
    for t, e, n in np.ndindex(shape):
        twins = [
            float(returns[s, i, n])
            for s in range(steps)
            for i in range(e // size * size, e // size * size + size)
            if mask[s, i, n] and torch.equal(seen[s, i, n], seen[t, e, n])
        ]
        expected = 0.0
        if mask[t, e, n]:
            expected = (float(returns[t, e, n]) - np.mean(twins)) / (np.std(twins) + EPSILON)
        assert float(advantage[t, e, n]) == pytest.approx(expected, abs=1e-9)


def episode_rollout(seed, steps=5, envs=4, agents=2, slots=3):
    """A rollout of whole episodes, of different lengths, as the collector leaves it."""
    rng = np.random.default_rng(seed)
    shape = (steps, envs, agents, slots)
    mask = torch.as_tensor(rng.random(shape) < 0.8)
    mask[0, :, :, 0] = True
    length = rng.integers(1, steps + 1, envs)
    ended = torch.zeros(steps, envs, dtype=torch.bool)
    reward = torch.as_tensor(rng.normal(size=shape[:3]))
    for e, last in enumerate(length):
        ended[last - 1, e] = True
        mask[last:, e] = False
        reward[last:, e] = 0.0
    log_ratio = torch.as_tensor(rng.normal(size=shape))
    return SimpleNamespace(
        node_mask=mask,
        loss_mask=mask & torch.as_tensor(rng.random(shape) < 0.8),
        reward=reward,
        terminated=ended & torch.as_tensor(rng.random((steps, envs)) < 0.5),
        truncated=ended,
        bootstrap=torch.full(shape[:3], 1e6, dtype=torch.float64),
        order=None,
        inputs={"seen": torch.as_tensor(rng.integers(0, 2, (*shape[:3], 1)))},
        duration=torch.as_tensor(rng.integers(1, 4, (steps, envs))),
        log_ratio=log_ratio,
    )


def with_methods(rollout):
    rollout.discount = lambda gamma: gamma ** rollout.duration.double()
    rollout.node_reward = lambda coef: coef * rollout.log_ratio.masked_fill(~rollout.loss_mask, 0.0) if coef else None
    return rollout


def future(rollout, t, e, own, gamma, coef, begin=0):
    """Return the discounted sum after node `begin` of step t. `own`: agents whose nodes and rewards count."""
    total, weight = 0.0, 1.0
    for s in range(t, rollout.reward.shape[0]):
        for place, index in enumerate(own):
            if (s > t or place >= begin) and rollout.loss_mask[s, e][index]:
                total += weight * coef * float(rollout.log_ratio[s, e][index])
        agents = {index[0] for index in own}
        total += weight * float(np.mean([float(rollout.reward[s, e, n]) for n in agents]))
        weight *= gamma ** int(rollout.duration[s, e])
    return total


@pytest.mark.parametrize("agents", ["parallel", "sequential"])
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_credit_of_whole_episodes(agents, coef):
    rollout = with_methods(episode_rollout(7))
    gamma, size = 0.9, 2
    learn = LearnConfig(
        gamma=gamma,
        agent_credit=agents,
        token_credit="sequential",
    )
    context = AdvantageContext(learn.links(uses_critic=False), ValueNorm(0.0), size, rollout.node_reward(coef))
    chains = {n: [(m, l) for m in ([n] if agents == "parallel" else range(2)) for l in range(3)] for n in range(2)}
    advantage = Return()(rollout, context).advantage
    expected = torch.zeros_like(advantage)
    for t, e, n, l in np.ndindex(expected.shape):
        begin = chains[n].index((n, l))
        expected[t, e, n, l] = future(rollout, t, e, chains[n], gamma, coef, begin)
    mean = expected[rollout.loss_mask].mean()
    std = expected[rollout.loss_mask].std(correction=0)
    torch.testing.assert_close(advantage[rollout.loss_mask], (expected[rollout.loss_mask] - mean) / (std + 1e-5))

    returns = torch.zeros_like(rollout.reward)
    for t, e, n in np.ndindex(returns.shape):
        returns[t, e, n] = future(rollout, t, e, chains[n], gamma, coef)
    exists, valid = rollout.node_mask.any(-1), torch.ones_like(returns[0], dtype=torch.bool)
    steps = gigpo_step_advantages(returns, observation_keys(rollout.inputs, 2), exists, size)
    for estimator, value in {
        RLOO(): leave_one_out(returns[0], valid, size).expand_as(returns),
        GRPO(): grpo_advantages(returns[0], valid, size).expand_as(returns),
        GiGPO(gigpo_step_weight=0.5): grpo_advantages(returns[0], valid, size) + 0.5 * steps,
    }.items():
        advantages = estimator(rollout, context)
        torch.testing.assert_close(advantages.advantage.squeeze(-1), value.masked_fill(~exists, 0.0))
        assert advantages.metrics["group/std"] == pytest.approx(float(group_std(returns[0], valid, size).mean()))
