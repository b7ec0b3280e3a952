"""Scripted teams for SMAC's maps: baselines of plain rules.

Both are centralized: every order is made from the state vector, which agents that learn do not see when they act, and
from the map's own table of units. They are deterministic, keep no memory, and read nothing but the observation, so that
they play on every backend of `smac/...`, with the default options of the state and the moves.

`focus-fire` awaits the enemy in an arc, so that all shoot whoever comes to its middle, and shares out the volleys: the
target that is down soonest for the harm it does comes first, and no more shoot at it than it takes. `kiting` does the
same, and steps back: out of reach of what it outranges while weapons cool down, and out of the fire when near to death.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from marl.errors import ConfigError
from marl.policy import Policy
from marl.registry import NoOptions, register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

FAR = 1e6
STEP_LOOPS = 8.0
STOP, NORTH, FIRST_TARGET = 1, 2, 6
MOVES = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
"""North, south, east and west, in the order of the actions."""

MELEE_RANGE = 1.0
"""Weapons of less range are melee weapons."""

JOIN_RANGE = 5.9
"""Distance between the centers of an agent and an enemy at which agents without a target join the fight."""

ARC_AHEAD, ARC_HALF = 1.0, 1.6
"""Center of the waiting arc in front of the start, and its half angle in radians."""

ARC_MELEE, ARC_RANGED, ARC_MAX = 4.0, 7.0, 14.0
"""Radius of the arc for melee units, minimum for ranged units, and maximum."""

ARC_GAP, ARC_BLAST_GAP, ARC_ROW = 1.5, 3.0, 0.85
"""Distances between neighbors on the arc, with explosive enemies, and between rows."""

HEALER_BACK = 8.0
"""Distance of healers behind the center of the arc."""

ARRIVED = 0.6
"""Distance at which a place counts as reached. A move goes about twice as far."""

WALK_WEIGHT, MELEE_WEIGHT = 10.0, 0.1
"""Weight of a loop of walking against a loop of shooting, and weight of the target's death for melee units."""

BLAST_HOLD = 4.0
"""Distance to an enemy's edge within which melee units attack while explosive enemies live."""

CROWD_RADIUS = 1.25
"""Radius within which enemies count as hit by an area attack."""

OUTRANGE = 2.0
"""Difference of ranges from which a unit keeps away from an enemy."""

COOLING = 8.0
"""Loops of cooldown from which a step back costs no shot."""

CHASE_STEPS, CHASE_MARGIN = 2.2, 1.1
"""Steps of a pursuer to keep away, with a weapon that cools down and with one that is ready."""

DOOMED_VOLLEYS = 1.1
"""Volleys of all attackers below which a unit retreats."""

PLAN_STEPS, FIRST_LEG = 6, 2
"""Steps of an escape that are planned ahead, and steps of its first leg."""

CLUSTER, CLUSTER_RADIUS = 0.03, 4.0
"""Penalty of an escape for each unit of distance that it ends farther than the radius from the others' center."""

WORN_HITS, FRESH_SHIELD, PUSH_DAMAGE = 1.05, 0.95, 15.0
"""Siege: hits that a unit must bear to stay, share of shields to return with, and damage for the final push."""


class UnitTables:
    """Statistics of a map's U units, agents before enemies: distances in map units, times in game loops."""

    def __init__(self, task: str) -> None:
        from marl.envs.smac.engine import fields as rules
        from marl.envs.smac.engine.combat import BURST, LINE
        from marl.envs.smac.engine.compile_map import build_rules, build_world
        from marl.envs.smac.maps import load_map
        from marl.envs.smac.options import SmacOptions

        battle_map = load_map(task)
        if battle_map.kinds:
            raise ConfigError(
                f"smac/{task}: this agent knows its team and the enemy's from the map, and SMACv2 draws them anew in "
                "every episode; choose one of SMAC's maps, such as smac/3m, or --agent random"
            )
        self.rules = build_rules(battle_map, SmacOptions())
        world = build_world(battle_map, SmacOptions())
        stats = world.stats
        self.agents, self.walkable, self.way = world.agents, world.walkable, world.waypoints
        self.awaits = battle_map.order == "point"
        self.health, self.shield = stats[rules.MAX_HEALTH], stats[rules.MAX_SHIELD]
        self.radius, self.speed, self.range = stats[rules.RADIUS], stats[rules.SPEED], stats[rules.RANGE]
        self.period, self.windup = stats[rules.PERIOD], stats[rules.DAMAGE_POINT]
        speed = stats[rules.MISSILE_SPEED]
        self.flight = np.divide(JOIN_RANGE, speed, out=np.zeros_like(speed), where=speed > 0)
        self.cooldown_scale = stats[rules.COOLDOWN_SCALE]
        self.healer, self.walks = stats[rules.HEALER] > 0, stats[rules.WALKS] > 0
        self.biological = stats[rules.BIOLOGICAL] > 0
        armed = stats[rules.ATTACK] >= 0
        self.melee = armed & (self.range < MELEE_RANGE)
        self.burst = stats[rules.ATTACK] == BURST
        self.area = self.burst | (stats[rules.ATTACK] == LINE)
        self.hits = armed[:, None] & ((stats[rules.FLIES] == 0) | (stats[rules.HITS_AIR] > 0)[:, None])
        damage = stats[rules.STAT_FIELDS :]
        self.shield_damage = self.hits * stats[rules.HITS][:, None] * damage  # (U, U) a volley against a shield
        self.health_damage = self.hits * stats[rules.HITS][:, None] * np.maximum(0.5, damage - stats[rules.ARMOR])
        self.reach = self.range[:, None] + self.radius[:, None] + self.radius  # (U, U) between centers
        harm = self.health_damage[:, : self.agents].max(1) / np.maximum(self.period, 1.0)
        self.harm = np.where(self.healer, 9.0 / 16.0, harm)  # points in a loop; a medivac heals 9 in a second
        self.explosive = bool(self.burst[self.agents :].any())
        self.posts = self._posts(battle_map.start)

    def _posts(self, start: np.ndarray) -> np.ndarray:
        """Return the waiting places (N, 2): the starts if every enemy is a melee unit, else an arc open towards the
        enemy, in rows by type, with healers behind."""
        n = self.agents
        posts, fighters = start[:n].copy(), ~self.healer[:n]
        if self.melee[n:].all() and not self.explosive:
            return posts
        ahead = start[n:].mean(0) - start[:n].mean(0)
        ahead /= np.hypot(*ahead)
        side = np.array([-ahead[1], ahead[0]])
        middle = start[:n].mean(0) + ARC_AHEAD * ahead
        reach = self.reach[:n, n:].min(1)
        for radius in np.unique(reach[fighters]):
            kind = np.flatnonzero((reach == radius) & fighters)
            distance = ARC_MELEE if self.melee[kind[0]] else max(radius, ARC_RANGED)
            spots = self._arc(middle, ahead, side, distance, len(kind))
            if len(spots) == len(kind):
                kind = kind[np.argsort((start[kind] - middle) @ side, kind="stable")]
                posts[kind] = spots[np.argsort((spots - middle) @ side, kind="stable")]
        posts[self.healer[:n]] = middle - HEALER_BACK * ahead
        return posts

    def _arc(self, middle: np.ndarray, ahead: np.ndarray, side: np.ndarray, radius: float, count: int) -> np.ndarray:
        """Return at most `count` places (K, 2) on the ground, row behind row, each from its middle outwards."""
        spots = np.zeros((0, 2))
        gap = ARC_BLAST_GAP if self.explosive else ARC_GAP
        while len(spots) < count and radius < ARC_MAX:
            half = int(ARC_HALF * radius / gap)
            angles = np.array(sorted(range(-half, half + 1), key=abs)) * gap / radius
            row = middle - radius * (np.cos(angles)[:, None] * ahead + np.sin(angles)[:, None] * side)
            row = row[((row > 0.4) & (row < 31.6)).all(1)]
            row = row[self.walkable[tuple(row.astype(int).T)]]
            spots = np.concatenate([spots, row[: count - len(spots)]])
            radius += ARC_ROW
        return spots


@dataclass(frozen=True)
class BattleView:
    """Decoded state of E battles with U units, agents first: `health`, `shield` (E, U) points, `place` (E, U, 2),
    `cooldown` (E, N) loops, `last` (E, N) action or 0, `mask` (E, N, A)."""

    agents: int
    health: np.ndarray
    shield: np.ndarray
    place: np.ndarray
    cooldown: np.ndarray
    last: np.ndarray
    mask: np.ndarray

    @cached_property
    def life(self) -> np.ndarray:
        """Health and shield (E, U)."""
        return self.health + self.shield

    @cached_property
    def alive(self) -> np.ndarray:
        """Living agents (E, N)."""
        return self.health[:, : self.agents] > 0

    @cached_property
    def foes(self) -> np.ndarray:
        """Living enemies (E, M)."""
        return self.health[:, self.agents :] > 0

    @cached_property
    def apart(self) -> np.ndarray:
        """Distances (E, N, M) between the centers of agents and enemies, FAR where one is dead."""
        between = self.place[:, : self.agents, None] - self.place[:, None, self.agents :]
        living = self.alive[..., None] & self.foes[:, None]
        return np.where(living, np.hypot(between[..., 0], between[..., 1]), FAR)


def decode_state(tables: UnitTables, state: np.ndarray, mask: np.ndarray) -> BattleView:
    """Decode state vectors (E, S); see `task.observation.write_state` for their layout."""
    rules, n, count = tables.rules, tables.agents, len(state)
    wide, narrow = 4 + rules.ally_shield + rules.type_bits, 3 + rules.enemy_shield + rules.type_bits
    middle, end = n * wide, n * wide + rules.enemies * narrow
    state = state.astype(np.float64)
    allies = state[:, :middle].reshape(count, n, wide)
    enemies = state[:, middle:end].reshape(count, rules.enemies, narrow)
    shield = np.zeros((count, len(tables.shield)))
    if rules.ally_shield:
        shield[:, :n] = allies[..., 4] * tables.shield[:n]
    if rules.enemy_shield:
        shield[:, n:] = enemies[..., 3] * tables.shield[n:]
    return BattleView(
        agents=n,
        health=np.concatenate([allies[..., 0], enemies[..., 0]], 1) * tables.health,
        shield=shield,
        place=np.concatenate([allies[..., 2:4], enemies[..., 1:3]], 1) * 32.0 + 16.0,
        cooldown=allies[..., 1] * tables.cooldown_scale[:n],
        last=state[:, end : end + n * rules.actions].reshape(count, n, rules.actions).argmax(-1),
        mask=mask,
    )


def choose_targets(tables: UnitTables, view: BattleView) -> np.ndarray:
    """Return actions (E, N): an attack or a heal where one is useful, else 0.

    Agents choose one after another and account for the damage of earlier ones and of shots in the air.
    """
    n, foes = tables.agents, slice(tables.agents, None)
    rows = np.arange(len(view.life))
    action = np.zeros((len(rows), n), np.int64)
    left = view.life[:, foes].copy()
    shielded = view.shield[:, foes] > 0
    blasts = (view.foes & tables.burst[foes]).any(1, keepdims=True)
    between = view.place[:, foes, None] - view.place[:, None, foes]
    crowd = ((np.hypot(between[..., 0], between[..., 1]) < CROWD_RADIUS) & view.foes[:, None]).sum(-1).clip(1)
    healers = np.flatnonzero(tables.healer[:n]).tolist()
    fighters = [agent for agent in range(n) if agent not in healers]
    raised = tables.period[:n] - view.cooldown  # loops since the weapon was raised, give or take two
    held = np.where((view.last >= FIRST_TARGET) & (view.cooldown > 0), view.last - FIRST_TARGET, -1)
    for agent in fighters:
        target = np.maximum(held[:, agent], 0)
        flying = (held[:, agent] >= 0) & (raised[:, agent] < tables.windup[agent] + tables.flight[agent] + 1.0)
        left[rows, target] -= np.where(flying, volley(tables, agent, shielded)[rows, target], 0.0)
    for agent in fighters:
        gap = view.apart[:, agent] - tables.reach[agent, foes]
        can = view.mask[:, agent, FIRST_TARGET:] & tables.hits[agent, foes]
        if tables.melee[agent]:
            can &= (gap < BLAST_HOLD) | ~blasts
        walk = np.maximum(0.0, gap) / tables.speed[agent]
        worth = np.maximum(left, 1.0) / tables.harm[foes] / np.where(tables.area[agent], crowd, 1.0)
        cost = worth * (MELEE_WEIGHT if tables.melee[agent] else 1.0) + walk * WALK_WEIGHT
        cost = np.where(can, np.where(left > 1e-3, cost, cost + 0.01 * FAR), FAR)
        target = np.maximum(held[:, agent], 0)
        keep = (held[:, agent] >= 0) & (raised[:, agent] < tables.windup[agent] + 1.0) & can[rows, target]
        target = np.where(keep, target, cost.argmin(1))
        some = can[rows, target]
        action[:, agent] = np.where(some, FIRST_TARGET + target, 0)
        soon = view.cooldown[:, agent] + walk[rows, target] + tables.windup[agent] <= STEP_LOOPS
        left[rows, target] -= np.where(some & soon & ~keep, volley(tables, agent, shielded)[rows, target], 0.0)
    for agent in healers:
        action[:, agent] = heal(tables, view, agent)
    return action


def volley(tables: UnitTables, agent: int, shielded: np.ndarray) -> np.ndarray:
    """Return the damage (E, M) of one attack on each enemy."""
    return np.where(
        shielded, tables.shield_damage[agent, tables.agents :], tables.health_damage[agent, tables.agents :]
    )


def heal(tables: UnitTables, view: BattleView, agent: int) -> np.ndarray:
    """Return the action (E,) that heals the ally with the least share of health, or 0."""
    n = tables.agents
    share = view.health[:, :n] / tables.health[:n]
    offered = view.mask[:, agent, FIRST_TARGET : FIRST_TARGET + n]
    width = offered.shape[1]
    can = offered & (tables.biological[:n] & (share < 1.0))[:, :width]
    patient = np.where(can, share[:, :width], FAR).argmin(1)
    return np.where(can.any(1), FIRST_TARGET + patient, 0)


def move_idle(tables: UnitTables, view: BattleView, action: np.ndarray) -> None:
    """Move agents without an action: to their posts before the battle, to the nearest enemy in it."""
    n = tables.agents
    idle = (action == 0) & view.alive
    near = (view.apart < JOIN_RANGE).any((1, 2))
    hurt = (view.life < tables.health + tables.shield - 0.01).any(1)
    blasts = (view.foes & tables.burst[n:]).any(1)
    joined = (near | hurt) & ~blasts | (not tables.awaits)
    apart = np.where(tables.hits[:n, n:], view.apart, FAR)
    foe = np.take_along_axis(view.place, n + apart.argmin(-1)[..., None], 1)
    goal = np.where(joined[:, None, None], foe, tables.posts)
    go = idle & (~joined[:, None] | (apart.min(-1) < FAR))
    if tables.healer[:n].any():
        others = (view.alive & tables.biological[:n])[..., None]
        middle = (view.place[:, :n] * others).sum(1) / np.maximum(others.sum(1), 1)
        behind = tables.healer[:n] & joined[:, None]
        goal = np.where(behind[..., None], middle[:, None], goal)
        go |= idle & behind
    go &= np.linalg.norm(goal - view.place[:, :n], axis=-1) > ARRIVED
    action[:] = np.where(go, step_towards(tables, view, goal), np.where(idle, STOP, action))


def step_towards(tables: UnitTables, view: BattleView, goal: np.ndarray) -> np.ndarray:
    """Return the available move (E, N) that leads best to `goal` (E, N, 2) around walls, else stop."""
    place = view.place[:, : tables.agents]
    if len(tables.way) > 1:
        here, there = np.clip(place, 0, 31).astype(int), np.clip(goal, 0, 31).astype(int)
        there = there[..., 0] * 32 + there[..., 1]
        via = tables.way[here[..., 0] * 32 + here[..., 1], there].astype(int)
        around = (via != there) & tables.walks[: tables.agents]
        goal = np.where(around[..., None], np.stack(np.divmod(via, 32), -1) + 0.5, goal)
    progress = np.where(view.mask[..., NORTH:FIRST_TARGET], (goal - place) @ MOVES.T, 0.0)
    return np.where(progress.max(-1) > 0.1, NORTH + progress.argmax(-1), STOP)


def kite(tables: UnitTables, view: BattleView, action: np.ndarray) -> None:
    """Replace actions by steps back where these are better."""
    n = tables.agents
    gap = view.apart - tables.reach[n:, :n].T
    if (tables.speed[n:] == 0).all():
        flee = leave_siege(tables, view, action, gap)
    else:
        apart = np.where(tables.hits[n:, :n].T, view.apart, FAR)
        chased = (apart == apart.min(1, keepdims=True)) & (apart < FAR)  # (E, N, M) an enemy's nearest
        flee = flee_pursuers(tables, view, chased, gap) | flee_fire(tables, view, action, chased, gap)
    env, agent = np.nonzero(flee & view.alive)
    if len(env):
        action[env, agent] = escape(tables, view, env, agent)


def flee_pursuers(tables: UnitTables, view: BattleView, chased: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Return agents (E, N) about to be caught by an enemy that they outrange: while the weapon cools down, or with a
    ready weapon if they are faster or others are free to shoot."""
    n = tables.agents
    outranged = tables.range[:n, None] - tables.range[n:] > OUTRANGE
    distance = np.where(outranged & (chased | (gap < 1.0)), gap, FAR).min(-1)
    step = tables.speed[n:].max() * STEP_LOOPS
    caught = distance < step * CHASE_MARGIN
    free = (view.alive & ~caught & tables.hits[:n, n:].any(1)).any(1, keepdims=True)
    fired = tables.period[:n] - view.cooldown > tables.windup[:n] + 1.0
    cooling = (view.cooldown > COOLING) & fired
    faster = tables.speed[:n] > tables.speed[n:].max()
    return np.where(cooling, distance < step * CHASE_STEPS, caught & (faster | free))


def flee_fire(
    tables: UnitTables, view: BattleView, action: np.ndarray, chased: np.ndarray, gap: np.ndarray
) -> np.ndarray:
    """Return agents (E, N) about to die with no shot ready and a healthier ally to replace them."""
    n = tables.agents
    damage = np.where(view.shield[:, :n, None] > 0, tables.shield_damage[n:, :n].T, tables.health_damage[n:, :n].T)
    coming = (damage * (chased & (gap < 1.0))).sum(-1)
    life = view.life[:, :n]
    doomed = (coming > 0) & (life <= coming * DOOMED_VOLLEYS)
    healthiest = np.where(doomed, 0.0, life).max(1, keepdims=True)
    ready = (view.cooldown <= 1.0) & (action >= FIRST_TARGET)
    return doomed & (life < healthiest) & ~ready & ~tables.melee[:n]


def leave_siege(tables: UnitTables, view: BattleView, action: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Return agents (E, N) that must leave the reach of immobile enemies. Others wait until shields are full."""
    n = tables.agents
    hit = tables.shield_damage[n:, :n].sum(0)
    outside = gap.min(-1) > 0.3
    tired = (view.alive & (view.shield[:, :n] < FRESH_SHIELD * tables.shield[:n])).any(1, keepdims=True)
    action[outside & tired & view.alive] = STOP
    bears = np.ceil(view.life[:, :n] / hit).sum(1, keepdims=True)
    unending = view.life[:, n:].sum(1, keepdims=True) > PUSH_DAMAGE * bears
    return ~outside & unending & (view.life[:, :n] <= WORN_HITS * hit)


def escape(tables: UnitTables, view: BattleView, env: np.ndarray, agent: np.ndarray) -> np.ndarray:
    """Return the first move (K,) of the best of sixteen escapes of two legs with all enemies in pursuit, else stop."""
    n = tables.agents
    first, second = np.divmod(np.arange(16), 4)
    spot = np.repeat(view.place[env, agent][:, None], 16, 1)  # (K, 16, 2)
    chase = np.repeat(view.place[env, n:][:, None], 16, 1)  # (K, 16, M, 2)
    harmless = ~(view.foes[env] & tables.hits[n:, agent].T)[:, None]
    reach = tables.reach[n:, agent].T[:, None]
    stride = (tables.speed[agent] * STEP_LOOPS)[:, None, None]
    least, total = np.full((len(env), 16), FAR), np.zeros((len(env), 16))
    for turn in range(PLAN_STEPS):
        to = spot + MOVES[first if turn < FIRST_LEG else second] * stride
        cell = np.clip(to, 0, 31).astype(int)
        ground = tables.walkable[cell[..., 0], cell[..., 1]] | ~tables.walks[agent][:, None]
        inside = ((to > 0.5) & (to < 31.5)).all(-1)
        spot = np.where((ground & inside)[..., None], to, spot)
        way = spot[:, :, None] - chase
        length = np.maximum(np.linalg.norm(way, axis=-1), 1e-6)
        pace = np.clip(length - reach, 0.0, tables.speed[n:] * STEP_LOOPS)
        chase = chase + way * (pace / length)[..., None]
        nearest = np.where(harmless, FAR, length - pace - reach).min(-1)
        least, total = np.minimum(least, nearest), total + np.minimum(nearest, 6.0)
    mates = (view.alive[env] & (np.arange(n) != agent[:, None]))[..., None]
    middle = (view.place[env, :n] * mates).sum(1) / np.maximum(mates.sum(1), 1)
    lost = np.linalg.norm(spot - middle[:, None], axis=-1) - CLUSTER_RADIUS
    value = least + 0.15 * total - CLUSTER * np.maximum(0.0, lost) * mates.any(1)
    value = np.where(view.mask[env, agent][:, NORTH + first], value, -FAR)
    return np.where(value.max(1) > -FAR, NORTH + first[value.argmax(1)], STOP)


class ScriptedTeam(Policy):
    """Scripted policy of focus fire, with `kites` also of retreat. Raises ConfigError without SMAC's own state."""

    def __init__(self, spec: EnvSpec, kites: bool) -> None:
        super().__init__(spec)
        self.kites = kites
        family, _, task = spec.name.partition("/")
        if family != "smac":
            raise ConfigError(
                f"this agent knows the rules of smac only, and the environment is {spec.name!r}; choose smac/3m or "
                "another of `marl list envs`, or --agent random"
            )
        self.tables = UnitTables(task)
        given, known = spec.state_size, self.tables.rules.state_size
        if given != known or spec.action_size != self.tables.rules.actions:
            raise ConfigError(
                f"{spec.name}: the state has {given} numbers and there are {spec.action_size} actions, but this agent "
                f"reads {known} and {self.tables.rules.actions}; leave layout, state_last_action, "
                "state_timestep_number and obs_instead_of_state at their defaults"
            )

    def encode(self, obs: Obs) -> Inputs:
        """Return mask and state as tensors."""
        return {
            "alive": torch.as_tensor(obs.alive),
            "action_mask": torch.as_tensor(obs.action_mask),
            "state": torch.as_tensor(obs.state),
        }

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:  # noqa: ARG002
        """Return the scripted actions, with no loss terms."""
        action = self.choose(inputs["state"].numpy(), inputs["action_mask"].numpy())
        exists = inputs["alive"].unsqueeze(-1)
        zeros = torch.zeros(exists.shape)
        nodes = Nodes(torch.from_numpy(action).unsqueeze(-1), exists, torch.zeros_like(exists))
        return Decision(action, nodes, zeros, zeros)

    def choose(self, state: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return actions (E, N) for states (E, S) and masks (E, N, A)."""
        view = decode_state(self.tables, state, mask)
        action = choose_targets(self.tables, view)
        move_idle(self.tables, view, action)
        if self.kites:
            kite(self.tables, view, action)
        return action

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Raises NotImplementedError: the policy does not learn."""
        raise NotImplementedError("this agent does not learn")

    def value(self, inputs: Inputs) -> Tensor:
        """Return zeros (E, N)."""
        return torch.zeros(inputs["alive"].shape)


@register_agent("focus-fire", trains=False, summary="SMAC by rules: an arc, and shared targets without overkill")
def make_focus_fire(spec: EnvSpec, options: NoOptions) -> ScriptedTeam:  # noqa: ARG001 - the interface of factories
    """Return a team that waits on an arc and shares targets."""
    return ScriptedTeam(spec, kites=False)


@register_agent("kiting", trains=False, summary="SMAC by rules: focus-fire that steps back from pursuers and from fire")
def make_kiting(spec: EnvSpec, options: NoOptions) -> ScriptedTeam:  # noqa: ARG001 - the interface of factories
    """Return a team that also steps back from pursuers and fire."""
    return ScriptedTeam(spec, kites=True)
