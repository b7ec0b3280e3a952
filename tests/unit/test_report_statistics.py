"""Statistics of scores against closed forms, counting, and their own coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marl.errors import ConfigError, NonFiniteError
from marl.experiments.report.statistics import (
    RUNS,
    bootstrap_interval,
    bootstrap_means,
    first_reached,
    improvement_interval,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_interval,
    resample,
    stack_tasks,
    student_means,
    task_mean,
    task_median,
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
    """The worst task's mean, which no statistic of pooled scores can show."""
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
    low, high = student_means(samples.T, level=0.8)
    assert 0.74 < np.mean((low <= 3.0) & (high >= 3.0)) < 0.86
    low, high = bootstrap_means(samples[:200].T, level=0.8)
    assert 0.65 < np.mean((low <= 3.0) & (high >= 3.0)) < 0.87


@pytest.mark.parametrize("scores", [[3.0], [[1.0, 2.0, 3.0]]])
def test_a_single_run_has_no_interval(scores):
    assert all(map(math.isnan, bootstrap_interval(scores)))
    assert np.isnan(student_means(scores)).all()
    assert np.isnan(bootstrap_means(scores)).all()
    assert np.isnan(profile_interval(scores, [0.5])).all()
    assert np.isnan(improvement_interval(scores, scores)).all()


def test_constant_scores_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full((4, 3), 0.25)) == (0.25, 0.25)
    assert np.array_equal(student_means(np.full((5, 2), 0.25)), np.full((2, 2), 0.25))
    assert np.array_equal(bootstrap_means(np.full((5, 2), 0.25)), np.full((2, 2), 0.25))


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
    "function", [bootstrap_interval, bootstrap_means, student_means, lambda scores: performance_profile(scores, [0])]
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
    for function in (bootstrap_interval, bootstrap_means, student_means):
        for level in (0.0, 1.0, 95):
            with pytest.raises(ConfigError, match=f"level={level}"):
                function([1.0, 2.0], level=level)
    with pytest.raises(ConfigError, match="resamples=0"):
        bootstrap_interval([1.0, 2.0], resamples=0)
    with pytest.raises(ConfigError, match="2 tasks cannot be compared with those of 1"):
        probability_of_improvement([[1.0, 2.0]], [1.0])
    with pytest.raises(ConfigError, match="a task has no score"):
        bootstrap_interval(stack_tasks([[1.0], []]))


SMALL = np.array([[0.0, 0.5], [0.2, 1.0], [0.4, 0.6], [1.0, 0.7]])
"""Four seeds on two tasks. Task means: 0.4 and 0.7."""


def test_aggregates_of_a_small_table():
    assert task_mean(SMALL) == pytest.approx(0.55)
    assert task_median(SMALL) == pytest.approx(0.55)
    assert task_median(np.append(SMALL, np.full((4, 1), 0.45), axis=1)) == pytest.approx(0.45)
    # The middle four of 0, .2, .4, .5, .6, .7, 1, 1.
    assert interquartile_mean(SMALL) == pytest.approx(0.55)
    assert optimality_gap(SMALL) == pytest.approx(0.45)
    assert optimality_gap(SMALL, optimum=0.5) == pytest.approx(0.5 - (0.0 + 0.2 + 0.4 + 0.5 * 5) / 8)
    assert first_reached([10, 20, 30, 40], [0.1, 0.5, 0.4, 0.9], 0.5) == 20
    assert first_reached([10, 20], [0.1, 0.4], 0.5) is None


def test_tasks_may_differ_in_seeds():
    scores = stack_tasks([[0.0, 1.0], [0.2, 0.4, 0.6, 0.8]])
    assert scores.shape == (4, 2)
    assert task_mean(scores) == pytest.approx(0.5)
    assert interquartile_mean(scores) == pytest.approx(np.mean([0.2, 0.4, 0.6, 0.8]))
    assert optimality_gap(scores) == pytest.approx(0.5)
    assert performance_profile(scores, [0.5]) == pytest.approx([0.5])
    assert probability_of_improvement(scores, stack_tasks([[0.5], [0.7]])) == pytest.approx((0.5 + 0.25) / 2)
    samples = resample(scores, 500)
    assert np.isnan(samples[:, 2:, 0]).all()
    assert set(np.unique(samples[:, :2, 0])) == {0.0, 1.0}
    assert set(np.unique(samples[..., 1])) == {0.2, 0.4, 0.6, 0.8}
    low, high = bootstrap_interval(scores, task_mean)
    assert 0.1 <= low < 0.5 < high <= 0.9


UNIT = hnp.arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 3)), elements=st.floats(0, 1))


@settings(max_examples=15, deadline=None, database=None)
@given(UNIT, st.randoms(use_true_random=False))
def test_intervals_contain_the_statistic_and_stay_in_bounds(scores, shuffler):
    shuffled = scores[shuffler.sample(range(len(scores)), len(scores))]
    for statistic in (task_mean, optimality_gap):
        low, high = bootstrap_interval(scores, statistic)
        assert 0 - 1e-9 <= low <= statistic(scores) + 1e-9
        assert statistic(scores) - 1e-9 <= high <= 1 + 1e-9
        assert bootstrap_interval(shuffled, statistic) == (low, high)
    low, high = bootstrap_means(scores)
    assert (low >= scores.min(axis=0) - 1e-9).all()
    assert (high <= scores.max(axis=0) + 1e-9).all()
    assert np.array_equal(bootstrap_means(shuffled), (low, high))
    assert improvement_interval(shuffled, scores) == improvement_interval(scores, scores)
    for low, high in zip(*profile_interval(scores, [0.0, 0.5]), strict=True):
        assert 0 <= low <= high <= 1


def test_intervals_shrink_with_seeds():
    rng = np.random.default_rng(2)
    widths = [np.ptp(bootstrap_means(rng.random((count, 50))), axis=0).mean() for count in (4, 16, 64)]
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]


def test_statistics_are_those_of_rliable():
    """Point estimates are equal. Intervals are two draws of one bootstrap, with 2000 resamples each."""
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(0)
    scores = rng.random((7, 5))
    others = rng.random((6, 5)) * 0.8

    def all_statistics(table):
        return np.array(
            [
                metrics.aggregate_iqm(table),
                metrics.aggregate_median(table),
                metrics.aggregate_mean(table),
                metrics.aggregate_optimality_gap(table),
            ]
        )

    points, intervals = library.get_interval_estimates({"a": scores}, all_statistics, reps=2000)
    for number, statistic in enumerate((interquartile_mean, task_median, task_mean, optimality_gap)):
        assert statistic(scores, axis=RUNS) == pytest.approx(points["a"][number])
        assert bootstrap_interval(scores, statistic) == pytest.approx(intervals["a"][:, number], abs=0.02)
    assert probability_of_improvement(scores, others) == pytest.approx(
        metrics.probability_of_improvement(scores, others)
    )
    _, between = library.get_interval_estimates(
        {"a": (scores, others)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=500
    )
    assert improvement_interval(scores, others) == pytest.approx(between["a"][:, 0], abs=0.03)
    thresholds = np.linspace(0, 1, 11)
    profiles, bands = library.create_performance_profile({"a": scores}, thresholds, reps=500)
    assert performance_profile(scores, thresholds) == pytest.approx(profiles["a"])
    assert np.allclose(profile_interval(scores, thresholds), bands["a"], atol=0.06)
