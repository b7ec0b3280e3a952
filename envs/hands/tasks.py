"""The tasks: where the hands stand, how their bases move, and the rules."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from marl.envs.hands.hand_model import Pose, turned
from marl.envs.hands.handles import Cup, Doors, Pen
from marl.envs.hands.rules import Flight, Rules, Throw, Turn

# A base is pushed by 100,000 dt times the translation scale in N and turned by 1000 dt times the rotation scale in N m.
_PUSH, _TWIST = 1e5 / 60, 1e3 / 60
RIGHT = Pose((0.0, 0.0, 0.5))
CATCHER = Pose((0.0, -1.15, 0.5), turned(("z", np.pi)))


@dataclass(frozen=True)
class HandTask:
    """A task. `rules` builds its rules from the shape of the objects.

    `shape`: usual object, or None if the task has objects of its own. `force` in N and `torque` in N m: largest push on
    a free base. Bases are fixed if it is 0.
    """

    poses: tuple[Pose, Pose]
    rules: Callable[[str], Rules]
    max_steps: int
    shape: str | None = None
    force: float = 0.1 * _PUSH
    torque: float = 2.0 * _TWIST


def _throw(start: tuple[float, float, float], *goal: float) -> Flight:
    return Flight(start, (goal[0], goal[1], goal[2]))


_HELD = (0.0, -0.39, 0.54)
_OVER = _throw(_HELD, 0.0, -0.64, 0.54)
_ACROSS = _throw(_HELD, 0.0, -0.79, 0.54)
_BACK = _throw((0.0, -0.78, 0.54), 0.0, -0.38, 0.54)
_DOWN = _throw((0.0, -0.03, 1.0), 0.0, -0.48, 0.55)
_IN_PLACE = (_throw((0.0, -0.39, 0.6), 0.0, -0.39, 0.56), _throw((0.0, -0.76, 0.6), 0.0, -0.76, 0.56))

_AT_DOORS = (
    Pose((0.55, 0.2, 0.6), turned(("x", np.pi), ("y", np.pi / 2), ("z", np.pi / 2))),
    Pose((0.55, -0.2, 0.6), turned(("x", np.pi), ("y", -np.pi / 2), ("z", np.pi / 2))),
)
_AT_TABLE = (
    Pose((0.55, 0.2, 0.8), turned(("x", np.pi), ("z", np.pi / 2))),
    Pose((0.55, -0.2, 0.8), turned(("x", np.pi), ("z", np.pi / 2))),
)
_AT_CUP = (Pose((0.35, 0.2, 0.8), _AT_DOORS[0].rotation), Pose((0.35, -0.2, 0.8), _AT_DOORS[1].rotation))
_OVERARM = Pose((0.0, 0.0, 0.5), turned(("x", np.pi / 2 + 0.1), ("y", np.pi)))
_UNDERARM = Pose((0.0, -0.8, 0.5), turned(("z", np.pi)))

TASKS: dict[str, HandTask] = {
    "over": HandTask(
        (RIGHT, Pose((0.0, -1.0, 0.5), turned(("z", np.pi)))),
        lambda shape: Throw((_OVER,), shape, scale=50.0),
        75,
        "egg",
        force=0.0,
        torque=0.0,
    ),
    "catch-underarm": HandTask((RIGHT, CATCHER), lambda shape: Throw((_ACROSS,), shape), 75, "egg"),
    "catch-over2underarm": HandTask(
        (_OVERARM, _UNDERARM), lambda shape: Throw((_DOWN,), shape, height=0.3, drift=0.1), 75, "egg"
    ),
    "two-catch-underarm": HandTask((RIGHT, CATCHER), lambda shape: Throw((_ACROSS, _BACK), shape), 75, "egg"),
    "re-orientation": HandTask((RIGHT, CATCHER), lambda shape: Turn(_IN_PLACE, shape), 75, "block"),
    "door-open-inward": HandTask(_AT_DOORS, lambda _: Doors(inward=True, closing=False), 250),
    "door-open-outward": HandTask(_AT_DOORS, lambda _: Doors(inward=False, closing=False), 250),
    "door-close-inward": HandTask(_AT_DOORS, lambda _: Doors(inward=True, closing=True), 250),
    "door-close-outward": HandTask(_AT_DOORS, lambda _: Doors(inward=False, closing=True), 250),
    "pen": HandTask(_AT_TABLE, lambda _: Pen(), 125, force=0.5 * _PUSH, torque=0.1 * _TWIST),
    "swing-cup": HandTask(_AT_CUP, lambda _: Cup(), 125, force=0.5 * _PUSH, torque=0.1 * _TWIST),
}
"""Tasks by name."""
