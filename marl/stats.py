"""Student's t interval of a mean."""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from marl.errors import ConfigError, NonFiniteError

Interval = tuple[float, float]


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return Student's t interval (low, high) of the mean of independent values; (NaN, NaN) for a single value.

    Raises ConfigError for values that are not a vector or a level outside (0, 1), NonFiniteError for values that are
    not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    check_level(level)
    if sample.ndim != 1 or not sample.size:
        raise ConfigError(f"values have shape {sample.shape}; give a vector with at least one of them")
    if wrong := int((~np.isfinite(sample)).sum()):
        raise NonFiniteError(f"{wrong} of {sample.size} values are not finite; leave those out")
    if len(sample) == 1:
        return float("nan"), float("nan")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    half = float(scipy.stats.t.ppf(0.5 + level / 2, df=len(sample) - 1) * error)
    return float(sample.mean()) - half, float(sample.mean()) + half


def check_level(level: float) -> None:
    """Raise ConfigError unless a confidence level lies between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level}; a confidence level lies between 0 and 1, such as 0.95")
