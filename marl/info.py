"""Scalars that an environment reports about an episode."""

import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from marl.errors import EnvironmentContractError

LOGGER = logging.getLogger("marl")


def read_info(info: Any) -> dict[str, float]:
    """Return the scalars of an info as floats.

    Raises EnvironmentContractError unless the info is a mapping of names to single numbers that fit in a float.
    """
    if not isinstance(info, Mapping):
        raise EnvironmentContractError(f"`info` must be a mapping of flat scalars, got {type(info).__name__}")
    return {name: _number(name, value) for name, value in info.items()}


def _number(name: Any, value: Any) -> float:
    array = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "biuf"
    if not array and not isinstance(value, Real | np.bool_):
        raise EnvironmentContractError(f"`info[{name!r}]` must be a scalar, got {type(value).__name__} {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        raise EnvironmentContractError(
            f"`info[{name!r}]` is too large for a float (1.8e308); give its logarithm, or leave it out"
        ) from None


def finite_info(info: Mapping[str, float], env: str, warned: set[str]) -> dict[str, float]:
    """Return the entries of an info that are finite.

    Warns about every other entry, once for each name; `warned` collects the names. `env` names the environment.
    """
    values = read_info(info)
    for name, value in values.items():
        if not math.isfinite(value) and name not in warned:
            warned.add(name)
            LOGGER.warning("%s: info[%r] is %s at an episode's end; such values are left out", env, name, value)
    return {name: value for name, value in values.items() if math.isfinite(value)}
