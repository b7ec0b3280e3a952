"""SMAC and SMACv2: StarCraft II micromanagement by an embedded battle engine or by the game.

A task is one of SMAC's 23 maps, such as `3m`, or one of SMACv2's 15 scenarios, such as `terran_5_vs_5`, whose teams and
starts are drawn anew in every episode. What agents see, may do and are paid follows SMAC (Samvelyan et al. 2019) and
SMACv2 (Ellis et al. 2023) for every option; `FIDELITY.md` lists what the engine models of the game and what it does
not. `marl.envs.smac.env` holds the classes, `marl.envs.smac.sc2.backend` what plays in StarCraft II itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from marl.envs.smac.maps import TASKS, TEAM_TASKS
from marl.errors import ConfigError, UnknownNameError
from marl.registry import register_env, unknown_name_message

if TYPE_CHECKING:
    from marl.envs.smac.env import SmacEnv, SmacVector

__all__ = ["TASKS", "TEAM_TASKS", "SmacOptions", "batch", "make"]

_ONLY_EMBEDDED = ("creep_decay", "conic_fov", "num_fov_actions", "prob_obs_enemy", "action_mask")
_ONLY_SC2 = ("game_version", "difficulty", "replay_dir")


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text in quotes",
    type(None): "None",
}


def _is_a(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, kind)


@dataclass(frozen=True)
class SmacOptions:
    """What agents see, what they are paid, and how the game runs. The defaults are SMAC's, or SMACv2's in its tasks."""

    backend: Literal["embedded", "sc2"] = "embedded"
    """What plays the battles: the embedded engine, or StarCraft II itself, found at SC2PATH."""
    game_version: str | None = None
    """Which installed version of StarCraft II plays, such as 4.6.2 or 4.10. None is the newest. Only for sc2."""
    difficulty: Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "A"] = "7"
    """The level of StarCraft II's own player, from very easy to cheating; 7 is very hard. Only for sc2."""
    replay_dir: str | None = None
    """Where replays are saved, one of each game: all battles from a seeded reset to the next one or to the end. None
    saves none. Only for sc2."""
    layout: Literal["smac", "mappo", "entities"] = "smac"
    """What observations and the state hold, in which order: as SMAC does, or the forks of it that MAPPO and MAT were
    published with. These give every agent a state of its own: the state is all of them, agent i's the i-th of N parts
    of equal width. entities: as SMAC, but what is shown of a unit is alike on all SMAC maps, and on all those of SMACv2
    (its shield even where it has none, its type among all there are), for agents that act in teams of other sizes than
    they have learned in."""
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
    obs_own_pos: bool | None = None
    """Show the agent its place on the map. None does so in SMACv2's tasks only."""
    use_unit_ranges: bool | None = None
    """Every unit has its own sight, and the range of its own weapon, at least 2. None means in SMACv2's tasks only."""
    sight_range: float | None = None
    """How far every agent sees, in map units between centers. None is 9, or the unit's own with use_unit_ranges."""
    shoot_range: float | None = None
    """How near a target must be to be offered, in map units between centers. None is 6, or the unit's own with
    use_unit_ranges."""
    conic_fov: bool = False
    """Agents see, and are offered targets, only in a cone, which further actions turn. Only for embedded."""
    num_fov_actions: int = 12
    """The directions to which the cone can be turned, the first one east; its angle is a full turn divided by them.
    With conic_fov only."""
    prob_obs_enemy: float = 1.0
    """The probability with which an agent may see an enemy that another agent has seen first, drawn once for as long as
    both of these live (SMACv2's extended partial observability). Only for embedded."""
    action_mask: bool = True
    """Offer only targets within reach. Without it every living target is offered: to medivacs the agents that are no
    medivacs, to other agents the enemies. An order out of reach is not carried out. Only for embedded."""
    move_amount: float = 2.0
    """How far away a unit is sent by one move action."""
    step_mul: int = 8
    """Game loops in one step; 16 make a second of game time."""
    max_steps: int | None = None
    """The length at which an episode is truncated. None is the map's own."""
    reward_sparse: bool = False
    """Pay 1 for a win, -1 for a defeat and nothing else (scaled where reward_scale is set, as SMAC does)."""
    reward_only_positive: bool = True
    """Pay the absolute value of the damage done and of the kills, in SMACv2's tasks never less than nothing; without
    it, losses are charged too."""
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
        self._check_types()
        for name in ("step_mul", "max_steps", "num_fov_actions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give a whole number of 1 or more")
        for name in ("sight_range", "shoot_range", "move_amount", "reward_scale_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; give more than 0")
        for name in ("reward_death_value", "reward_win", "reward_negative_scale"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.reward_defeat > 0:
            raise ConfigError(f"reward_defeat is {self.reward_defeat}; give 0 or less")
        if not 0 <= self.prob_obs_enemy <= 1:
            raise ConfigError(f"prob_obs_enemy is {self.prob_obs_enemy}; give a probability from 0 to 1")
        if self.num_fov_actions != 12 and not self.conic_fov:
            raise ConfigError(
                f"num_fov_actions is {self.num_fov_actions}, which has no effect without conic_fov; leave it out or "
                "set conic_fov"
            )
        if self.layout == "entities" and (self.obs_last_action or self.obs_agent_id):
            raise ConfigError(
                "obs_last_action and obs_agent_id show what depends on the number of units, and layout=entities "
                "nothing of the kind; leave them out, or choose layout=smac"
            )
        self._refuse_idle_options()

    def _check_types(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(hint) or (hint,)
            if get_origin(hint) is Literal:
                fits, wanted = value in kinds, map(repr, kinds)
            else:
                fits, wanted = any(_is_a(kind, value) for kind in kinds), (_KINDS[kind] for kind in kinds)
            if not fits:
                raise ConfigError(f"{name} is {value!r}; give {' or '.join(wanted)}")

    def _refuse_idle_options(self) -> None:
        """Options that the chosen backend would not read."""
        idle = _ONLY_EMBEDDED if self.backend == "sc2" else _ONLY_SC2
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in idle and value != option.default:
                raise ConfigError(
                    f"{option.name} is {value!r}, which has no effect with backend={self.backend}; leave it out or "
                    f"choose backend={'embedded' if self.backend == 'sc2' else 'sc2'}"
                )


def _options(given: dict[str, Any]) -> SmacOptions:
    """Raises UnknownNameError with the closest names."""
    names = [option.name for option in fields(SmacOptions)]
    for name in given:
        if name not in names:
            raise UnknownNameError(unknown_name_message("option of smac", name, names))
    return SmacOptions(**given)


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> SmacVector:
    """`num_envs` battles, stepped by `threads` threads. The results do not depend on `threads`.

    StarCraft II runs as one process for each battle, with a thread of its own here whatever `threads` is.
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
    """One battle."""
    from marl.envs.smac.env import SmacEnv

    return SmacEnv(task, _options(options))
