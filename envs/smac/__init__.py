"""SMAC and SMACv2: StarCraft II micromanagement in an embedded battle engine or in the game.

A task is one of SMAC's 23 maps, such as `3m` (Samvelyan et al. 2019), or one of SMACv2's 15 scenarios, such as
`terran_5_vs_5`, whose teams and starts are drawn in every episode (Ellis et al. 2023). Observations, actions and
rewards follow the papers' code for every option. `FIDELITY.md` lists what the engine models of the game.

`engine/` moves units, `task/` makes observations, masks and rewards of them, `render/` draws them, and `sc2/` plays in
StarCraft II or serves the engine to its clients.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from marl.envs.smac.maps import TASKS, TEAM_TASKS
from marl.envs.smac.options import SmacOptions
from marl.errors import UnknownNameError
from marl.registry import register_env, unknown_name_message

if TYPE_CHECKING:
    from marl.envs.smac.env import SmacEnv, SmacVector

__all__ = ["TASKS", "TEAM_TASKS", "SmacOptions", "batch", "make"]


def _options(given: dict[str, Any]) -> SmacOptions:
    """Build the options. Raises UnknownNameError with the closest names."""
    names = [option.name for option in fields(SmacOptions)]
    for name in given:
        if name not in names:
            raise UnknownNameError(unknown_name_message("option of smac", name, names))
    return SmacOptions(**given)


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> SmacVector:
    """Return `num_envs` battles, stepped by `threads` threads. Results do not depend on `threads`.

    With backend=sc2 every battle has its own process of StarCraft II and its own thread here.
    """
    from marl.envs.smac.env import SmacVector

    return SmacVector(task, num_envs, threads, _options(options))


@register_env(
    "smac",
    options=SmacOptions,
    make_vector=batch,
    tasks=(*TASKS, *TEAM_TASKS),
    requires=("numba",),
    install="pip install 'seqmarl[smac]'",
    summary="SMAC and SMACv2: StarCraft II micromanagement, embedded engine or the game itself; discrete actions",
    external=lambda _, options: [f"replay_dir {folder}"] if (folder := options.get("replay_dir")) else [],
)
def make(task: str, **options: Any) -> SmacEnv:
    """Return one battle."""
    from marl.envs.smac.env import SmacEnv

    return SmacEnv(task, _options(options))
