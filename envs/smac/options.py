"""Options of SMAC environments and their checks."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from marl.errors import ConfigError

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
    """Options of a task. The defaults are SMAC's, or SMACv2's in its scenarios."""

    backend: Literal["embedded", "sc2"] = "embedded"
    """Backend of the battles: the embedded engine, or StarCraft II itself, found at SC2PATH."""
    game_version: str | None = None
    """Installed version of StarCraft II, such as 4.6.2 or 4.10. None: the newest. Only for sc2."""
    difficulty: Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "A"] = "7"
    """Level of StarCraft II's own player, from very easy to cheating; 7 is very hard. Only for sc2."""
    replay_dir: str | None = None
    """Folder for replays, one of each game: all battles from a seeded reset to the next one. None: no replays. Only for
    sc2."""
    layout: Literal["smac", "mappo", "entities"] = "smac"
    """Layout of observations and state. smac: as in SMAC. mappo: as in the forks that MAPPO and MAT were published
    with, where every agent has a state of its own; the state is the concatenation of N parts of equal width. entities:
    as smac, but with the same features for every unit on all maps of SMAC or SMACv2 (shield and all types), for agents
    that play with other numbers of units than in training."""
    obs_all_health: bool = True
    """Show health and shield of every unit in sight, and the agent's own."""
    obs_own_health: bool = True
    """Show the agent its own health and shield. Always on with obs_all_health."""
    obs_last_action: bool | None = None
    """Show the last action of every ally in sight, with layout=mappo the agent's own too. None: on with layout=mappo
    only."""
    obs_pathing_grid: bool = False
    """Show which of eight points around the agent are walkable."""
    obs_agent_id: bool | None = None
    """Append the agent's index, one-hot. None: on with layout=mappo only, whose state always shows it."""
    obs_timestep_number: bool = False
    """Append the fraction of the episode limit that has passed."""
    obs_instead_of_state: bool = False
    """Use all observations in a row as the state."""
    state_last_action: bool = True
    """Include the last action of every agent in the state."""
    state_timestep_number: bool = False
    """Append the fraction of the episode limit that has passed to the state."""
    obs_own_pos: bool | None = None
    """Show the agent its position on the map. None: on in SMACv2's scenarios only."""
    use_unit_ranges: bool | None = None
    """Give every unit its own sight, and its weapon's range, at least 2. None: on in SMACv2's scenarios only."""
    sight_range: float | None = None
    """Sight of every agent, in map units between centers. None: 9, or the unit's own with use_unit_ranges."""
    shoot_range: float | None = None
    """Distance at which targets are offered, in map units between centers. None: 6, or the unit's own with
    use_unit_ranges."""
    conic_fov: bool = False
    """Restrict sight and targets to a cone, which additional actions turn. Only for embedded."""
    num_fov_actions: int = 12
    """Number of directions of the cone, the first one east. Its angle is a full turn divided by them. Only with
    conic_fov."""
    prob_obs_enemy: float = 1.0
    """Probability that an agent may see an enemy that another agent has seen first, drawn once for as long as both live
    (SMACv2's extended partial observability). Only for embedded."""
    action_mask: bool = True
    """Offer only targets within reach. False: offer every living target; an order out of reach has no effect. Only for
    embedded."""
    move_amount: float = 2.0
    """Distance of the target point of a move action, in map units."""
    step_mul: int = 8
    """Game loops of one step; 16 make a second of game time."""
    max_steps: int | None = None
    """Steps after which an episode is truncated. None: the map's own limit."""
    reward_sparse: bool = False
    """Pay 1 for a win, -1 for a defeat and nothing else. reward_scale applies too, as in SMAC."""
    reward_only_positive: bool = True
    """Pay the absolute value of damage and kills; in SMACv2's scenarios, at least 0. False: subtract losses too."""
    reward_death_value: float = 10.0
    """Reward of a kill, and cost of a loss where losses count."""
    reward_win: float = 200.0
    """Reward of a win."""
    reward_defeat: float = 0.0
    """Reward of a defeat, 0 or less."""
    reward_negative_scale: float = 0.5
    """Weight of losses."""
    reward_scale: bool = True
    """Divide rewards by the best episode's return and multiply them by reward_scale_rate."""
    reward_scale_rate: float = 20.0
    """Return of the best episode with scaled rewards, not counting shields that regenerate."""
    unavailable_action: Literal["error", "ignore"] = "error"
    """Effect of an action outside the mask. error: an error. ignore: the unit keeps its order, and the info of the
    episode's end counts it."""
    creep_decay: bool = False
    """Spine crawlers lose 1 health every 0.3332 s, as the game's data say of rooted buildings off creep. It is unknown
    whether the game does so on 2s_vs_1sc."""

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("step_mul", "max_steps", "num_fov_actions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; give a whole number of 1 or more")
        for name in ("sight_range", "shoot_range", "move_amount", "reward_scale_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value}; give more than 0")
        for name in ("reward_death_value", "reward_win", "reward_negative_scale"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}; give 0 or more")
        if self.reward_defeat > 0:
            raise ConfigError(f"reward_defeat={self.reward_defeat}; give 0 or less")
        if not 0 <= self.prob_obs_enemy <= 1:
            raise ConfigError(f"prob_obs_enemy={self.prob_obs_enemy}; give a probability from 0 to 1")
        if self.num_fov_actions != 12 and not self.conic_fov:
            raise ConfigError(
                f"num_fov_actions={self.num_fov_actions}, which has no effect without conic_fov; leave it out or "
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
                raise ConfigError(f"{name}={value!r}; give {' or '.join(wanted)}")

    def _refuse_idle_options(self) -> None:
        """Raises ConfigError for options that the chosen backend does not read."""
        idle = _ONLY_EMBEDDED if self.backend == "sc2" else _ONLY_SC2
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in idle and value != option.default:
                raise ConfigError(
                    f"{option.name}={value!r}, which has no effect with backend={self.backend}; leave it out or "
                    f"choose backend={'embedded' if self.backend == 'sc2' else 'sc2'}"
                )
