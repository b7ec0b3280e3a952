"""Statistics of scores against closed forms, counting, and their own coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.errors import ConfigError, NonFiniteError
from marl.stats import (
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    performance_profile,
    probability_of_improvement,
)

QUICK = settings(max_examples=50, deadline=None, database=None)
TABLES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(-5, 5))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 100], 2.5),
        ([-1000, 2, 3, 4, 9, 1e6, 5, -7], 3.5),
        ([1, 2, 9], 4.0),  # a quarter of three, rounded down, is none
        ([4, 1, 2, 3, 50], 3.0),
        ([7], 7.0),
        ([[1, 2], [3, 100]], 2.5),
    ],
)
def test_interquartile_mean_of_small_tables(scores, expected):
    assert interquartile_mean(scores) == pytest.approx(expected)


@QUICK
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(-9, 9)))
def test_interquartile_mean_over_axes_is_that_of_each_table(scores):
    tables = [interquartile_mean(table.ravel()) for table in scores]
    assert np.allclose(interquartile_mean(scores, axis=(-2, -1)), tables)
    assert np.allclose(interquartile_mean(scores, axis=(-1, -2)), tables)
    assert np.allclose(interquartile_mean(scores, axis=0)[0, 0], interquartile_mean(scores[:, 0, 0]))


def test_the_bootstrap_is_that_of_every_resample():
    """Three runs have 27 equally likely resamples: the interval's ends are quantiles of their means."""
    scores = np.array([0.0, 1.0, 5.0])
    means = sorted(np.mean(resample) for resample in itertools.product(scores, repeat=3))
    low, high = bootstrap_interval(scores, np.mean, level=0.8, resamples=20_000)
    assert low == pytest.approx(means[2], abs=1e-9), "10 % of 27 resamples are fewer than 3"
    assert high == pytest.approx(means[24], abs=1e-9)


def test_the_bootstrap_stays_within_tasks():
    """Tasks far apart but runs alike: runs drawn across tasks would spread the interval over the whole range."""
    scores = np.array([[0.0, 100.0, 1000.0]] * 4) + np.arange(4)[:, None]
    low, high = bootstrap_interval(scores, np.mean)
    middle = scores.mean()
    assert middle - 2 < low < middle < high < middle + 2


def test_the_bootstrap_hands_seeds_and_tasks_to_the_statistic():
    """The worst task's mean, which no statistic of pooled scores can print_transcript."""
    scores = np.stack([np.arange(8.0), np.full(8, 2.0)], axis=1)

    def worst(tables, axis):
        assert axis == (-2, -1)
        assert tables.shape[-2:] == (8, 2)
        return tables.mean(axis=-2).min(axis=-1)

    low, high = bootstrap_interval(scores, worst)
    assert low < high == 2.0


def test_the_bootstrap_is_reproducible_and_wider_at_a_higher_level():
    scores = np.random.default_rng(1).normal(size=(6, 3))
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)
    (low, high), (lower, higher) = (bootstrap_interval(scores, level=level) for level in (0.5, 0.99))
    assert lower < low < interquartile_mean(scores) < high < higher


def test_the_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 2.0, size=(400, 12))
    exact = [low <= 3.0 <= high for low, high in (mean_interval(sample, level=0.8) for sample in samples)]
    assert 0.74 < np.mean(exact) < 0.86
    rough = [low <= 3.0 <= high for low, high in (bootstrap_interval(s, np.mean, 0.8, 200) for s in samples[:200])]
    assert 0.65 < np.mean(rough) < 0.87


def test_mean_interval_is_students():
    """The 97.5 % quantile of Student's t with 2 degrees of freedom is 4.30265, with 1 it is tan(0.475 pi)."""
    half = 4.302652729911275 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half))
    half = math.tan(0.475 * math.pi)
    assert mean_interval([0.0, 2.0]) == pytest.approx((1 - half, 1 + half))


@pytest.mark.parametrize("scores", [[3.0], [[1.0, 2.0, 3.0]]])
def test_a_single_run_has_no_interval(scores):
    assert all(map(math.isnan, bootstrap_interval(scores)))
    assert all(map(math.isnan, mean_interval([3.0])))


def test_constant_scores_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full((4, 3), 0.25)) == (0.25, 0.25)
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_a_performance_profile_counts_runs_above():
    scores = [[0.0, 0.5], [1.0, 0.5]]
    assert performance_profile(scores, [-1, 0, 0.25, 0.5, 1]).tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]
    assert performance_profile([1.0, 3.0], 2).tolist() == [0.5]


def test_probability_of_improvement_counts_pairs_within_tasks():
    ours, theirs = [[1.0, 0.0], [3.0, 0.0]], [[2.0, 0.0], [2.0, 9.0], [0.0, -9.0]]
    first = (0 + 0 + 1 + 1 + 1 + 1) / 6
    second = (0.5 + 0 + 1) * 2 / 6
    assert probability_of_improvement(ours, theirs) == pytest.approx((first + second) / 2)
    assert probability_of_improvement([1, 2], [0]) == 1.0


@QUICK
@given(TABLES, st.randoms(use_true_random=False))
def test_improvement_of_one_is_the_loss_of_the_other(scores, shuffler):
    others = scores[:, shuffler.sample(range(scores.shape[1]), scores.shape[1])]
    both = probability_of_improvement(scores, others), probability_of_improvement(others, scores)
    assert sum(both) == pytest.approx(1.0)
    assert probability_of_improvement(scores, scores) == pytest.approx(0.5)
    assert probability_of_improvement(scores + 20, others) == 1.0


@pytest.mark.parametrize(
    "function", [bootstrap_interval, mean_interval, lambda scores: performance_profile(scores, [0])]
)
@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        ([], ConfigError, r"shape \(0, 1\)"),
        (np.zeros((3, 0)), ConfigError, r"shape \(3, 0\)"),
        (np.zeros((2, 2, 2)), ConfigError, r"shape \(2, 2, 2\)"),
        (1.0, ConfigError, r"shape \(\)"),
        ([1.0, math.nan, math.inf], NonFiniteError, "2 of 3 scores are not finite"),
    ],
)
def test_scores_that_cannot_be_used_are_named(function, scores, error, message):
    with pytest.raises(error, match=message):
        function(scores)


def test_options_that_cannot_be_used_are_named():
    for function in (bootstrap_interval, mean_interval):
        for level in (0.0, 1.0, 95):
            with pytest.raises(ConfigError, match=f"level is {level}"):
                function([1.0, 2.0], level=level)
    with pytest.raises(ConfigError, match="resamples is 0"):
        bootstrap_interval([1.0, 2.0], resamples=0)
    with pytest.raises(ConfigError, match="2 tasks cannot be compared with those of 1"):
        probability_of_improvement([[1.0, 2.0]], [1.0])
