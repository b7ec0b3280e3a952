"""Statistics of evaluation scores, (seeds, tasks): point estimates, intervals and comparisons.

The aggregates and their stratified bootstrap follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
the Statistical Precipice". A score is one number for one training run on one task; 1-D scores are one task's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from marl.errors import ConfigError, NonFiniteError

Interval = tuple[float, float]
BOTH = (-2, -1)


def interquartile_mean(scores: ArrayLike, axis: int | tuple[int, int] | None = None) -> Any:
    """The mean of what remains without the lowest and the highest quarter (each rounded down) of the scores."""
    array = np.asarray(scores, dtype=np.float64)
    axes = tuple(range(array.ndim)) if axis is None else np.atleast_1d(axis).tolist()
    array = np.moveaxis(array, axes, range(-len(axes), 0))
    return scipy.stats.trim_mean(array.reshape(*array.shape[: -len(axes)], -1), 0.25, axis=-1)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[..., Any] = interquartile_mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile interval of `statistic` when runs are drawn again, with replacement, in each task on its own.

    `statistic(scores, axis=(-2, -1))` reduces (..., seeds, tasks) to (...), as `np.mean` and `np.median` do.
    Returns (low, high), the same for the same seed; (nan, nan) for a single run, which says nothing of the spread.
    """
    table = _table(scores)
    _check_level(level)
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; give at least 1")
    if len(table) == 1:
        return float("nan"), float("nan")

    def pooled(*tasks: np.ndarray, axis: int) -> Any:
        return statistic(np.stack([np.moveaxis(task, axis, -1) for task in tasks], axis=-1), axis=BOTH)

    result = scipy.stats.bootstrap(
        tuple(table.T),
        pooled,
        n_resamples=resamples,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(returns: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval (low, high) of the mean of independent episode returns, (nan, nan) for a single one."""
    values = _table(returns).ravel()
    _check_level(level)
    if len(values) == 1:
        return float("nan"), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(scipy.stats.t.ppf(0.5 + level / 2, df=len(values) - 1) * error)
    return float(values.mean()) - half, float(values.mean()) + half


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """For each threshold, the fraction of runs that score strictly more, averaged over tasks (section 4.2)."""
    table = _table(scores)
    return np.array([(table > threshold).mean() for threshold in np.asarray(thresholds, dtype=np.float64).ravel()])


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """P(a run of `scores` beats one of `others` on a random task); an equal score counts half (section 4.3).

    The numbers of seeds may differ; ConfigError where the numbers of tasks do.
    """
    ours, theirs = _table(scores), _table(others)
    if ours.shape[1] != theirs.shape[1]:
        raise ConfigError(f"scores of {ours.shape[1]} tasks cannot be compared with those of {theirs.shape[1]}")
    difference = ours[:, None, :] - theirs[None, :, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _table(scores: ArrayLike) -> np.ndarray:
    """(seeds, tasks) float64, neither of them 0, all finite."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.size == 0:
        raise ConfigError(f"scores have shape {array.shape}; give (seeds, tasks) or (seeds,) with at least one of each")
    if not np.isfinite(array).all():
        raise NonFiniteError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} scores are not finite; leave those out"
        )
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; a confidence level lies between 0 and 1, such as 0.95")
