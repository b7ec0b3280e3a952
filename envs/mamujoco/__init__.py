"""Multi-agent MuJoCo: the joints of one robot divided among agents, simulated for E environments at once.

A task is `<Scenario>-<partition>`, such as `HalfCheetah-6x1`. A scenario alone, such as `Hopper`, is one agent that
moves every joint and observes everything. Observations, rewards and terminations equal gymnasium-robotics'
`mamujoco_v1` to the bit (in float32). `marl.envs.mamujoco.env` holds the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marl.envs.mamujoco.tasks import TASKS
from marl.errors import ConfigError
from marl.registry import register_env

if TYPE_CHECKING:
    from marl.envs.mamujoco.env import MamujocoEnv, MamujocoVector

__all__ = ["TASKS", "MamujocoOptions", "batch", "make"]


@dataclass(frozen=True)
class MamujocoOptions:
    """Options of Multi-agent MuJoCo."""

    agent_obsk: int | None = 1
    """Joint distance that an agent observes: 0 its own joints, 1 the adjacent ones too, and so on. None makes the whole
    robot one agent that observes everything. (The MAT and HAPPO papers use 0.)"""
    max_steps: int | None = None
    """Steps after which an episode is truncated. None is the scenario's own: 1000, Pusher 100, Reacher 50."""
    disabled_joint: int | str | None = None
    """Actuator that ignores its agent's action and never moves: its index, or the name of its joint, such as
    `bthigh`."""

    def __post_init__(self) -> None:
        if self.agent_obsk is not None and self.agent_obsk < 0:
            raise ConfigError(f"agent_obsk={self.agent_obsk}; give 0 or more, or None for one agent")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more, or None for the scenario's own")


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> MamujocoVector:
    """Return `num_envs` environments of a task, stepped by `threads` threads. Results do not depend on `threads`."""
    from marl.envs.mamujoco.env import MamujocoVector

    return MamujocoVector(task, num_envs, threads, MamujocoOptions(**options))


@register_env(
    "mamujoco",
    options=MamujocoOptions,
    make_vector=batch,
    tasks=TASKS,
    accepts_other_tasks=True,
    requires=("mujoco", "gymnasium_robotics"),
    install="pip install 'seqmarl[mujoco]'",
    summary="Multi-agent MuJoCo: the joints of one robot divided among agents; continuous actions",
)
def make(task: str, **options: Any) -> MamujocoEnv:
    """Return one environment of a task."""
    from marl.envs.mamujoco.env import MamujocoEnv

    return MamujocoEnv(task, MamujocoOptions(**options))
