"""Two Shadow hands in MuJoCo with the tasks of Bi-DexHands, simulated for E environments at once.

Chen et al. 2022, "Towards Human-Level Bimanual Dexterous Manipulation with Reinforcement Learning".
`marl.envs.hands.env` holds the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from marl.errors import ConfigError, UnknownNameError
from marl.registry import register_env, unknown_name_message

if TYPE_CHECKING:
    from marl.envs.hands.env import HandsEnv, HandsVector

__all__ = ["HandsOptions", "batch", "make"]

TASK_NAMES = (
    "over",
    "catch-underarm",
    "catch-over2underarm",
    "two-catch-underarm",
    "re-orientation",
    "door-open-inward",
    "door-open-outward",
    "door-close-inward",
    "door-close-outward",
    "pen",
    "swing-cup",
)
Team = Literal["hands", "fingers"]
Divergence = Literal["stop", "end"]
OBJECT_NAMES = ("egg", "block", "pen")


@dataclass(frozen=True)
class HandsOptions:
    """Options of the Shadow hands."""

    team: Team = "hands"
    """Agents: the two hands, or the five fingers of each hand and its base (with the wrist), twelve in all."""
    object_type: str | None = None
    """Object that is thrown or turned: egg, block or pen. None is the task's own."""
    max_steps: int | None = None
    """Steps after which an episode is truncated. None is the task's own: 75, doors 250, pen and cup 125."""
    on_divergence: Divergence = "stop"
    """Reaction to a state of MuJoCo that is not finite: stop with an error, or end the episode as truncated."""

    def __post_init__(self) -> None:
        for name, choices in (("team", get_args(Team)), ("on_divergence", get_args(Divergence))):
            if (value := getattr(self, name)) not in choices:
                raise UnknownNameError(unknown_name_message(name, value, choices))
        if self.object_type is not None and self.object_type not in OBJECT_NAMES:
            raise UnknownNameError(unknown_name_message("object_type", self.object_type, OBJECT_NAMES))
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more, or None for the task's own")


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> HandsVector:
    """Return `num_envs` environments of a task, stepped by `threads` threads. Results do not depend on `threads`."""
    from marl.envs.hands.env import HandsVector

    return HandsVector(task, num_envs, threads, HandsOptions(**options))


@register_env(
    "hands",
    options=HandsOptions,
    make_vector=batch,
    tasks=TASK_NAMES,
    requires=("mujoco", "gymnasium_robotics"),
    install="pip install 'seqmarl[hands]'",
    summary="two Shadow hands that throw, turn, open and pull; continuous actions",
)
def make(task: str, **options: Any) -> HandsEnv:
    """Return one environment of a task."""
    from marl.envs.hands.env import HandsEnv

    return HandsEnv(task, HandsOptions(**options))
