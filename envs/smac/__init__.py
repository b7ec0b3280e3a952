"""SMAC: StarCraft II micromanagement on the 23 maps of the challenge, by an embedded battle engine or by the game.

A task is a map, such as `3m`. What agents see, may do and are paid follows SMAC (Samvelyan et al. 2019) for every
option; `FIDELITY.md` lists what the engine models of the game and what it does not. `envs.smac.env` holds the classes,
`envs.smac.real` what plays in StarCraft II itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from envs.smac.maps import TASKS
from marl.errors import ConfigError
from marl.registry import register_env

if TYPE_CHECKING:
    from envs.smac.env import SmacEnv, SmacVector

__all__ = ["TASKS", "SmacOptions", "batch", "make"]


@dataclass(frozen=True)
class SmacOptions:
    """What agents see, what they are paid, and how the game runs. The defaults are SMAC's."""

    backend: Literal["embedded", "sc2"] = "embedded"
    """What plays the battles: the embedded engine, or StarCraft II itself, found at SC2PATH."""
    game_version: str | None = None
    """Which installed version of StarCraft II plays, such as 4.6.2 or 4.10. None is the newest. Only for sc2."""
    difficulty: Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "A"] = "7"
    """The level of StarCraft II's own player, from very easy to cheating; 7 is very hard. Only for sc2."""
    replay_dir: str | None = None
    """Where replays are saved, one of each game: all battles from a seeded reset to the next one or to the end. None
    saves none. Only for sc2."""
    layout: Literal["smac", "mappo"] = "smac"
    """What observations and the state hold, in which order: as SMAC does, or the forks of it that MAPPO and MAT were
    published with. These give every agent a state of its own: the state is all of them, agent i's the i-th of N parts
    of equal width."""
    obs_all_health: bool = True
    """Show the health and shield of every unit in sight, and the agent's own."""
    obs_own_health: bool = True
    """Show the agent its own health and shield. With obs_all_health it is always shown."""
    obs_last_action: bool | None = None
    """Show the last action of every ally in sight, with layout=mappo the agent's own too. None means with that layout
    only."""
    obs_pathing_grid: bool = False
    """Show which of eight points around the agent can be walked on."""
    obs_agent_id: bool | None = None
    """Append the agent's index, one-hot. None means with layout=mappo only, whose state shows it always."""
    obs_timestep_number: bool = False
    """Append the fraction of the episode limit that has passed."""
    obs_instead_of_state: bool = False
    """The state is all observations, one after another."""
    state_last_action: bool = True
    """The state holds the last action of every agent."""
    state_timestep_number: bool = False
    """The state ends with the fraction of the episode limit that has passed."""
    sight_range: float = 9.0
    """How far an agent sees, in map units between centres."""
    shoot_range: float = 6.0
    """How near a target must be to be offered, in map units between centres."""
    move_amount: float = 2.0
    """How far away a unit is sent by one move action."""
    step_mul: int = 8
    """Game loops in one step; 16 make a second of game time."""
    max_steps: int | None = None
    """The length at which an episode is truncated. None is the map's own."""
    reward_sparse: bool = False
    """Pay 1 for a win, -1 for a defeat and nothing else (scaled where reward_scale is set, as SMAC does)."""
    reward_only_positive: bool = True
    """Pay the absolute value of the damage done and of the kills; without it, losses are charged too."""
    reward_death_value: float = 10.0
    """Paid for a kill, and charged for a loss where losses are charged."""
    reward_win: float = 200.0
    """Paid for a win."""
    reward_defeat: float = 0.0
    """Paid for a defeat, zero or below."""
    reward_negative_scale: float = 0.5
    """Weight of losses."""
    reward_scale: bool = True
    """Divide by what the best episode pays, times reward_scale_rate."""
    reward_scale_rate: float = 20.0
    """What the best episode pays where rewards are scaled (without the shields that regenerate)."""
    unavailable_action: Literal["error", "ignore"] = "error"
    """What an action outside the mask does: an error, or nothing, and the unit keeps its order. Ignored ones are
    counted in the info of the episode's end."""
    creep_decay: bool = False
    """Spine crawlers lose 1 health every 0.3332 s, as the game's data say of rooted buildings off creep. It is not
    known whether the game does so on 2s_vs_1sc."""

    def __post_init__(self) -> None:
        for name in ("step_mul", "max_steps"):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < 1):
                raise ConfigError(f"{name} is {value}; give a whole number of 1 or more")
        for name in ("sight_range", "shoot_range", "move_amount", "reward_scale_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0")
        for name in ("unavailable_action", "backend", "difficulty", "layout"):
            allowed, value = get_args(get_type_hints(type(self))[name]), getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; give {' or '.join(map(repr, allowed))}")
        if self.game_version is not None and not isinstance(self.game_version, str):
            raise ConfigError(f"game_version is {self.game_version!r}, a number; put it in quotes, such as '4.10'")
        self._refuse_idle_options()

    def _refuse_idle_options(self) -> None:
        """Options that the chosen backend would not read."""
        idle = ("creep_decay",) if self.backend == "sc2" else ("game_version", "difficulty", "replay_dir")
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in idle and value != option.default:
                raise ConfigError(
                    f"{option.name} is {value!r}, which has no effect with backend={self.backend}; leave it out or "
                    f"choose backend={'embedded' if self.backend == 'sc2' else 'sc2'}"
                )


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> SmacVector:
    """`num_envs` battles on a map, stepped by `threads` threads. The results do not depend on `threads`.

    StarCraft II runs as one process for each battle, with a thread of its own here whatever `threads` is.
    """
    from envs.smac.env import SmacVector

    return SmacVector(task, num_envs, threads, SmacOptions(**options))


@register_env(
    "smac",
    options=SmacOptions,
    batch=batch,
    tasks=TASKS,
    requires=("numba",),
    install="pip install 'seqmarl[smac]'",
    summary="SMAC: StarCraft II micromanagement on 23 maps, embedded engine or the game itself; discrete actions",
)
def make(task: str, **options: Any) -> SmacEnv:
    """One battle on a map."""
    from envs.smac.env import SmacEnv

    return SmacEnv(task, SmacOptions(**options))
