"""Student's interval of a mean against closed forms."""

import math

import numpy as np
import pytest

from marl.errors import ConfigError, NonFiniteError
from marl.stats import mean_interval


def test_mean_interval_is_students():
    """The 97.5 % quantile of Student's t with 2 degrees of freedom is 4.30265, with 1 it is tan(0.475 pi)."""
    half = 4.302652729911275 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half))
    half = math.tan(0.475 * math.pi)
    assert mean_interval([0.0, 2.0]) == pytest.approx((1 - half, 1 + half))


def test_special_samples():
    assert all(map(math.isnan, mean_interval([3.0])))
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([], ConfigError, r"shape \(0,\)"),
        (np.zeros((2, 2)), ConfigError, r"shape \(2, 2\)"),
        ([1.0, math.nan, math.inf], NonFiniteError, "2 of 3 values are not finite"),
    ],
)
def test_values_that_cannot_be_used_are_named(values, error, message):
    with pytest.raises(error, match=message):
        mean_interval(values)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_lie_between_0_and_1(level):
    with pytest.raises(ConfigError, match=f"level={level}"):
        mean_interval([1.0, 2.0], level=level)
