"""Statistics of scores (seeds, tasks): aggregates, intervals and comparisons.

The aggregates and their stratified bootstrap follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice". A score is the result of one training run on one task. One-dimensional scores belong to one
task. If tasks differ in their number of seeds, scores are a masked array (see `stack_tasks`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from marl.errors import ConfigError, NonFiniteError
from marl.stats import Interval, check_level

RUNS = (-2, -1)
"""Axes of seeds and tasks."""
RESAMPLES = 2000
CHUNK = 2**22
"""Most numbers that a chunk of the bootstrap holds at once."""

Statistic = Callable[..., Any]
"""`statistic(scores, axis=(-2, -1))` reduces (..., seeds, tasks) to (...). Missing seeds are NaN."""


def stack_tasks(tasks: Sequence[ArrayLike]) -> np.ma.MaskedArray:
    """Return scores (seeds, tasks) from the scores of each task. Seeds that a task lacks are masked."""
    columns = [np.asarray(task, dtype=np.float64).ravel() for task in tasks]
    scores = np.ma.masked_all((max(map(len, columns), default=0), len(columns)))
    for task, column in enumerate(columns):
        scores[: len(column), task] = column
    return scores


def interquartile_mean(scores: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Any:
    """Return the mean of the scores without the lowest and the highest quarter, each rounded down."""
    array = _filled(scores)
    axes = tuple(range(array.ndim)) if axis is None else tuple(np.atleast_1d(axis).tolist())
    array = np.moveaxis(array, axes, range(-len(axes), 0))
    pooled = np.sort(array.reshape(*array.shape[: -len(axes)], -1), axis=-1)
    count = np.isfinite(pooled).sum(axis=-1, keepdims=True)
    rank = np.arange(pooled.shape[-1])
    middle = (rank >= count // 4) & (rank < count - count // 4)
    return np.where(middle, pooled, 0.0).sum(axis=-1) / middle.sum(axis=-1)


def task_mean(scores: ArrayLike, axis: tuple[int, int] = RUNS) -> Any:
    """Return the mean over tasks of the mean over seeds. `axis`: of seeds and tasks."""
    return _mean(_task_means(scores, axis), axis=-1)


def task_median(scores: ArrayLike, axis: tuple[int, int] = RUNS) -> Any:
    """Return the median over tasks of the mean over seeds. `axis`: of seeds and tasks."""
    return np.median(_task_means(scores, axis), axis=-1)


def optimality_gap(scores: ArrayLike, axis: tuple[int, int] = RUNS, optimum: float = 1.0) -> Any:
    """Return the mean amount by which scores fall short of `optimum`. Scores above it count as `optimum`."""
    return optimum - task_mean(np.minimum(_filled(scores), optimum), axis)


def resample(scores: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return bootstrap samples (resamples, seeds, tasks): seeds are drawn with replacement within each task.

    The samples depend on the scores of a task, not on the order of its seeds.
    """
    table = np.sort(check_scores(scores), axis=0)
    if resamples < 1:
        raise ConfigError(f"resamples={resamples} draws no sample; give at least 1")
    counts = np.isfinite(table).sum(axis=0)
    draws = np.random.default_rng(seed).random((resamples, *table.shape))
    samples = np.take_along_axis(table[None], (draws * counts).astype(np.int64), axis=1)
    return np.where(np.arange(len(table))[:, None] < counts, samples, np.nan)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    level: float = 0.95,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval (low, high) of `statistic` under the stratified bootstrap (section 4.1).

    The same seed gives the same interval. A single run for every task gives (NaN, NaN).
    """
    table = check_scores(scores)
    check_level(level)
    samples = resample(scores, resamples, seed)
    if len(table) == 1:
        return float("nan"), float("nan")
    low, high = np.quantile(statistic(samples, axis=RUNS), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def bootstrap_means(scores: ArrayLike, level: float = 0.95, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return percentile intervals (low, high) of the mean over seeds of each column of (seeds, columns)."""
    table = check_scores(scores)
    check_level(level)
    if len(table) == 1:
        return np.full(table.shape[1], np.nan), np.full(table.shape[1], np.nan)
    width = max(1, CHUNK // (RESAMPLES * len(table)))
    ends = [
        np.quantile(resample(table[:, start : start + width], seed=seed).mean(axis=1), _tails(level), axis=0)
        for start in range(0, table.shape[1], width)
    ]
    low, high = np.concatenate(ends, axis=1)
    return low, high


def student_means(scores: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return Student's t intervals (low, high) of the mean over seeds of each column of (seeds, columns)."""
    table = check_scores(scores)
    check_level(level)
    mean = table.mean(axis=0)
    if len(table) == 1:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = scipy.stats.t.ppf(0.5 + level / 2, df=len(table) - 1) * table.std(axis=0, ddof=1) / np.sqrt(len(table))
    return mean - half, mean + half


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Return for each threshold the fraction of runs that score more, averaged over tasks (section 4.2)."""
    return _profiles(check_scores(scores), np.asarray(thresholds, dtype=np.float64).ravel())


def profile_interval(
    scores: ArrayLike, thresholds: ArrayLike, level: float = 0.95, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return pointwise bootstrap intervals (low, high) of a performance profile, each of shape (thresholds,)."""
    check_level(level)
    points = np.asarray(thresholds, dtype=np.float64).ravel()
    table = check_scores(scores)
    if len(table) == 1:
        return np.full(len(points), np.nan), np.full(len(points), np.nan)
    samples = resample(scores, seed=seed)
    profiles = np.stack([_profiles(samples, points[i : i + 1])[..., 0] for i in range(len(points))], axis=-1)
    low, high = np.quantile(profiles, _tails(level), axis=0)
    return low, high


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Return P(a run of `scores` beats one of `others` on a random task). Ties count half (section 4.3).

    The numbers of seeds may differ. Raises ConfigError if the numbers of tasks differ.
    """
    return float(_improvement(*_same_tasks(scores, others)))


def improvement_interval(scores: ArrayLike, others: ArrayLike, level: float = 0.95, *, seed: int = 0) -> Interval:
    """Return the bootstrap interval (low, high) of the probability of improvement. Both sides are resampled."""
    ours, theirs = _same_tasks(scores, others)
    check_level(level)
    if len(ours) == 1 and len(theirs) == 1:
        return float("nan"), float("nan")
    samples, rivals = resample(scores, seed=seed), resample(others, seed=seed + 1)
    chunks = max(1, RESAMPLES * ours.size * len(theirs) // CHUNK)
    pairs = zip(np.array_split(samples, chunks), np.array_split(rivals, chunks), strict=True)
    low, high = np.quantile(np.concatenate([_improvement(*pair) for pair in pairs]), _tails(level))
    return float(low), float(high)


def first_reached(steps: Sequence[int], means: ArrayLike, threshold: float) -> int | None:
    """Return the first of `steps` at which `means` is `threshold` or more, up to rounding; None if none is."""
    return next((step for step, mean in zip(steps, np.asarray(means), strict=True) if mean >= threshold - 1e-9), None)


def check_scores(scores: ArrayLike) -> np.ndarray:
    """Return scores as float64 (seeds, tasks). Masked scores are NaN at the end of their column.

    Raises ConfigError for another shape, and for a task without a score; NonFiniteError for scores that are not finite.
    """
    array = np.ma.asarray(scores, dtype=np.float64) if np.ma.isMaskedArray(scores) else np.asarray(scores, np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise ConfigError(f"scores have shape {array.shape}; give (seeds, tasks) or (seeds,) with at least one of each")
    given = np.ma.compressed(array) if np.ma.isMaskedArray(array) else array.ravel()
    if wrong := int((~np.isfinite(given)).sum()):
        raise NonFiniteError(f"{wrong} of {given.size} scores are not finite; leave those out")
    if not np.ma.count(array, axis=0).all():
        raise ConfigError("a task has no score; leave it out")
    return np.sort(_filled(array), axis=0) if np.ma.is_masked(array) else _filled(array)


def _filled(scores: ArrayLike) -> np.ndarray:
    """Return a float64 array with NaN for masked scores."""
    return np.ma.filled(np.ma.asarray(scores, dtype=np.float64), np.nan)


def _mean(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean without NaN. Every slice has a number."""
    given = np.isfinite(array)
    return np.where(given, array, 0.0).sum(axis=axis) / given.sum(axis=axis)


def _task_means(scores: ArrayLike, axis: tuple[int, int]) -> np.ndarray:
    """Return means over seeds (..., tasks)."""
    return _mean(np.moveaxis(_filled(scores), axis, RUNS), axis=-2)


def _profiles(tables: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return profiles (..., thresholds) of (..., seeds, tasks)."""
    given = np.isfinite(tables)
    above = (tables[..., None] > thresholds).sum(axis=-3) / given.sum(axis=-2)[..., None]
    return above.mean(axis=-2)


def _improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return P(improvement) (...) of (..., seeds, tasks) on (..., other seeds, tasks)."""
    difference = ours[..., :, None, :] - theirs[..., None, :, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    return (wins.sum(axis=(-3, -2)) / np.isfinite(difference).sum(axis=(-3, -2))).mean(axis=-1)


def _same_tasks(scores: ArrayLike, others: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = check_scores(scores), check_scores(others)
    if ours.shape[1] != theirs.shape[1]:
        raise ConfigError(f"scores of {ours.shape[1]} tasks cannot be compared with those of {theirs.shape[1]}")
    return ours, theirs


def _tails(level: float) -> list[float]:
    return [0.5 - level / 2, 0.5 + level / 2]
