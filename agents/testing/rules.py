"""The rules of an agent, and comparisons that name what differs."""

from enum import IntEnum
from typing import Any, NoReturn

import torch
from torch import Tensor

from marl.errors import AgentContractError
from marl.policy import PAGE


class Rule(IntEnum):
    """A rule that every agent keeps. Its number leads every message."""

    INTERFACE = 1
    INPUTS = 2
    ACTION = 3
    DEAD_AGENTS = 4
    LOG_PROB = 5
    VALUE = 6
    ORDER = 7
    GRADIENT = 8
    DETERMINISM = 9
    DISTRIBUTION = 10
    SAVING = 11
    RECURRENCE = 12


AXES = ("row", "agent", "slot", "entry")


def fail(rule: Rule, where: str, text: str) -> NoReturn:
    """Raise AgentContractError for a broken rule."""
    title = rule.name.lower().replace("_", " ")
    raise AgentContractError(f"[{int(rule):02d} {title}] {where}: {text}. See {PAGE}#rules")


def require_shape(rule: Rule, where: str, name: str, x: Any, *shapes: tuple[int, ...]) -> Tensor:
    """Return `x` if it is a finite tensor of one of the shapes."""
    if not isinstance(x, Tensor):
        fail(rule, where, f"{name} is a {type(x).__name__}; return a tensor")
    if tuple(x.shape) not in shapes:
        fail(rule, where, f"{name} has shape {tuple(x.shape)}; expected {' or '.join(map(str, shapes))}")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        fail(rule, where, f"{name}={float(x[~x.isfinite()][0])} at {first(~x.isfinite())}; expected finite numbers")
    return x


def require_equal(
    rule: Rule, where: str, text: str, x: Tensor, y: Tensor, mask: Tensor | None = None, tolerance: float = 1e-4
) -> None:
    """Raise unless `x` and `y` agree within the tolerance, relative to numbers above 1, where `mask` is True."""
    gap = (x.double() - y.double()).abs()
    bad = ~(gap <= tolerance * y.double().abs().clamp(min=1.0))
    if mask is not None:
        bad = bad & mask
    if bool(bad.any()):
        place = tuple(int(i) for i in bad.nonzero()[0])
        fail(rule, where, f"{text}: {float(x[place]):.6g} and {float(y[place]):.6g} at {first(bad)}")


def first(bad: Tensor) -> str:
    """Return the place of the first True, such as "row 3, agent 1, slot 0"."""
    place = bad.nonzero()[0].tolist()
    names = AXES if len(place) <= len(AXES) else ("axis",) * len(place)
    return ", ".join(f"{name} {index}" for name, index in zip(names, place, strict=False)) or "the only entry"


def copy_of(x: Any) -> Any:
    """Return a deep copy of tensors in dictionaries, dataclasses and None."""
    if isinstance(x, dict):
        return {name: copy_of(value) for name, value in x.items()}
    if hasattr(x, "__dataclass_fields__"):
        return type(x)(**{name: copy_of(getattr(x, name)) for name in x.__dataclass_fields__})
    return x.clone() if isinstance(x, Tensor) else x


def select(x: Any, rows: Any) -> Any:
    """Return some rows of the tensors in dictionaries, dataclasses and None."""
    if isinstance(x, dict):
        return {name: select(value, rows) for name, value in x.items()}
    if hasattr(x, "__dataclass_fields__"):
        return type(x)(**{name: select(getattr(x, name), rows) for name in x.__dataclass_fields__})
    return x[rows] if isinstance(x, Tensor) else x


def concatenate(parts: list[Any]) -> Any:
    """Return the T parts (E, ...), dictionaries or dataclasses of tensors, as one of B = E T rows, time innermost."""
    head = parts[0]
    if isinstance(head, dict):
        return {name: concatenate([part[name] for part in parts]) for name in head}
    if hasattr(head, "__dataclass_fields__"):
        return type(head)(
            **{name: concatenate([getattr(part, name) for part in parts]) for name in head.__dataclass_fields__}
        )
    return torch.stack(parts, 1).flatten(0, 1) if isinstance(head, Tensor) else None
