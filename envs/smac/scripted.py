"""Scripted teams for SMAC's maps: what plain rules win.

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
from marl.registry import NoOptions, register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

FAR = 1e6
STEP_LOOPS = 8.0
STOP, NORTH, FIRST_TARGET = 1, 2, 6
MOVES = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
"""North, south, east and west, in the order of the actions."""

SHORT = 1.0
"""Weapons of less range are for fighting hand to hand."""

JOINED = 5.9
"""Those without a target join in when a foe's center is so near to an agent's; 6 is SMAC's shooting range."""

ARC_AHEAD, ARC_HALF = 1.0, 1.6
"""Where the waiting arc has its middle, in front of the start, and how far it goes to each side, in radians."""

ARC_MELEE, ARC_RANGED, ARC_MOST = 4.0, 7.0, 14.0
"""Its radius for those who fight hand to hand, the least for those who shoot, and the greatest."""

ARC_GAP, ARC_BLAST_GAP, ARC_ROW = 1.5, 3.0, 0.85
"""Distances between neighbors on the arc, between those who await explosions, and between rows."""

HEALER_BACK = 8.0
"""How far behind the middle of the arc healers wait."""

ARRIVED = 0.6
"""A move goes about twice as far, so that no place can be taken more exactly."""

WALK_WEIGHT, MELEE_WEIGHT = 10.0, 0.1
"""What a loop's walk counts against a loop that a target's death takes; those without reach think of the way first."""

BLAST_HOLD = 4.0
"""Who fights hand to hand keeps its place until a foe's edge is so near, as long as foes that explode live."""

CROWD = 1.25
"""Attacks that hit an area count the foes within this distance."""

OUTRANGE = 2.0
"""By how much a weapon must reach farther for its bearer to keep away from another's."""

COOLING = 8.0
"""Loops of cooldown from which a step back costs no shot."""

CHASE_STEPS, CHASE_MARGIN = 2.2, 1.1
"""Steps of a pursuer that are kept between it and a unit whose weapon cools down, or is ready."""

DOOMED_VOLLEYS = 1.1
"""Who bears fewer volleys of all that shoot at it gives up its place."""

PLAN, FIRST_LEG = 6, 2
"""Steps that a way out is looked ahead, and those of its first leg."""

CLUSTER, CLUSTER_RADIUS = 0.03, 4.0
"""A way out loses so much for each unit of distance that it ends farther than that from the others' middle."""

WORN_HITS, FRESH_SHIELD, PUSH_DAMAGE = 1.05, 0.95, 15.0
"""A siege: who bears fewer hits leaves, returns with so much of the shield, and stays for an end that is in sight."""


class UnitTables:
    """What a map says of its U units, agents before enemies: distances in map units, times in game loops."""

    def __init__(self, task: str) -> None:
        from marl.envs.smac import SmacOptions
        from marl.envs.smac.engine import fields as rules
        from marl.envs.smac.engine.combat import BURST, LINE
        from marl.envs.smac.engine.compile_map import build_rules, build_world
        from marl.envs.smac.maps import load_map

        battle_map = load_map(task)
        if battle_map.kinds:
            raise ConfigError(
                f"smac/{task}: this agent knows its team and the enemy's from the map, and SMACv2 draws them anew in "
                "every episode; choose one of SMAC's maps, such as smac/3m, or --agent random"
            )
        self.rules = build_rules(battle_map, SmacOptions())
        world = build_world(battle_map, SmacOptions())
        stats = world.stats
        self.agents, self.walkable, self.way = world.agents, world.walkable, world.way
        self.awaits = battle_map.order == "point"
        self.health, self.shield = stats[rules.MAX_HEALTH], stats[rules.MAX_SHIELD]
        self.radius, self.speed, self.range = stats[rules.RADIUS], stats[rules.STEP], stats[rules.RANGE]
        self.period, self.windup = stats[rules.PERIOD], stats[rules.DAMAGE_POINT]
        speed = stats[rules.MISSILE_SPEED]
        self.flight = np.divide(JOINED, speed, out=np.zeros_like(speed), where=speed > 0)
        self.cooldown_scale = stats[rules.COOLDOWN_SCALE]
        self.healer, self.walks = stats[rules.HEALER] > 0, stats[rules.WALKS] > 0
        self.biological = stats[rules.BIOLOGICAL] > 0
        armed = stats[rules.ATTACK] >= 0
        self.melee = armed & (self.range < SHORT)
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
        """(N, 2) where agents await the enemy: their start where every enemy fights hand to hand, else an arc open
        towards it, kind by kind in rows, with healers behind."""
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
        """At most `count` places (K, 2) on the ground, row behind row, each row from its middle outwards."""
        spots = np.zeros((0, 2))
        gap = ARC_BLAST_GAP if self.explosive else ARC_GAP
        while len(spots) < count and radius < ARC_MOST:
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
    """E battles, their U units agents first: `health`, `shield` (E, U) points, `place` (E, U, 2), `cooldown` (E, N)
    loops, `last` (E, N) action or 0, `mask` (E, N, A)."""

    agents: int
    health: np.ndarray
    shield: np.ndarray
    place: np.ndarray
    cooldown: np.ndarray
    last: np.ndarray
    mask: np.ndarray

    @cached_property
    def life(self) -> np.ndarray:
        """(E, U) health and shield."""
        return self.health + self.shield

    @cached_property
    def alive(self) -> np.ndarray:
        """(E, N)"""
        return self.health[:, : self.agents] > 0

    @cached_property
    def foes(self) -> np.ndarray:
        """(E, M) which enemies live."""
        return self.health[:, self.agents :] > 0

    @cached_property
    def apart(self) -> np.ndarray:
        """(E, N, M) between the centers of agents and enemies, FAR where one is dead."""
        between = self.place[:, : self.agents, None] - self.place[:, None, self.agents :]
        living = self.alive[..., None] & self.foes[:, None]
        return np.where(living, np.hypot(between[..., 0], between[..., 1]), FAR)


def read(facts: UnitTables, state: np.ndarray, mask: np.ndarray) -> BattleView:
    """Decode state vectors (E, S); see `rules.survey` for their layout."""
    rules, n, count = facts.rules, facts.agents, len(state)
    wide, narrow = 4 + rules.ally_shield + rules.type_bits, 3 + rules.enemy_shield + rules.type_bits
    middle, end = n * wide, n * wide + rules.enemies * narrow
    state = state.astype(np.float64)
    allies = state[:, :middle].reshape(count, n, wide)
    enemies = state[:, middle:end].reshape(count, rules.enemies, narrow)
    shield = np.zeros((count, len(facts.shield)))
    if rules.ally_shield:
        shield[:, :n] = allies[..., 4] * facts.shield[:n]
    if rules.enemy_shield:
        shield[:, n:] = enemies[..., 3] * facts.shield[n:]
    return BattleView(
        agents=n,
        health=np.concatenate([allies[..., 0], enemies[..., 0]], 1) * facts.health,
        shield=shield,
        place=np.concatenate([allies[..., 2:4], enemies[..., 1:3]], 1) * 32.0 + 16.0,
        cooldown=allies[..., 1] * facts.cooldown_scale[:n],
        last=state[:, end : end + n * rules.actions].reshape(count, n, rules.actions).argmax(-1),
        mask=mask,
    )


def shoot(facts: UnitTables, scene: BattleView) -> np.ndarray:
    """(E, N) actions: an attack or a heal where there is one to do, else 0.

    Agents choose one after another, each knowing what those before it, and shots in the air, will have done.
    """
    n, foes = facts.agents, slice(facts.agents, None)
    rows = np.arange(len(scene.life))
    action = np.zeros((len(rows), n), np.int64)
    left = scene.life[:, foes].copy()
    shielded = scene.shield[:, foes] > 0
    blasts = (scene.foes & facts.burst[foes]).any(1, keepdims=True)
    between = scene.place[:, foes, None] - scene.place[:, None, foes]
    crowd = ((np.hypot(between[..., 0], between[..., 1]) < CROWD) & scene.foes[:, None]).sum(-1).clip(1)
    healers = np.flatnonzero(facts.healer[:n]).tolist()
    fighters = [agent for agent in range(n) if agent not in healers]
    raised = facts.period[:n] - scene.cooldown  # loops since the weapon was raised, give or take two
    held = np.where((scene.last >= FIRST_TARGET) & (scene.cooldown > 0), scene.last - FIRST_TARGET, -1)
    for agent in fighters:
        target = np.maximum(held[:, agent], 0)
        flying = (held[:, agent] >= 0) & (raised[:, agent] < facts.windup[agent] + facts.flight[agent] + 1.0)
        left[rows, target] -= np.where(flying, volley(facts, agent, shielded)[rows, target], 0.0)
    for agent in fighters:
        gap = scene.apart[:, agent] - facts.reach[agent, foes]
        can = scene.mask[:, agent, FIRST_TARGET:] & facts.hits[agent, foes]
        if facts.melee[agent]:
            can &= (gap < BLAST_HOLD) | ~blasts
        walk = np.maximum(0.0, gap) / facts.speed[agent]
        worth = np.maximum(left, 1.0) / facts.harm[foes] / np.where(facts.area[agent], crowd, 1.0)
        cost = worth * (MELEE_WEIGHT if facts.melee[agent] else 1.0) + walk * WALK_WEIGHT
        cost = np.where(can, np.where(left > 1e-3, cost, cost + 0.01 * FAR), FAR)
        target = np.maximum(held[:, agent], 0)
        keep = (held[:, agent] >= 0) & (raised[:, agent] < facts.windup[agent] + 1.0) & can[rows, target]
        target = np.where(keep, target, cost.argmin(1))
        some = can[rows, target]
        action[:, agent] = np.where(some, FIRST_TARGET + target, 0)
        soon = scene.cooldown[:, agent] + walk[rows, target] + facts.windup[agent] <= STEP_LOOPS
        left[rows, target] -= np.where(some & soon & ~keep, volley(facts, agent, shielded)[rows, target], 0.0)
    for agent in healers:
        action[:, agent] = heal(facts, scene, agent)
    return action


def volley(facts: UnitTables, agent: int, shielded: np.ndarray) -> np.ndarray:
    """(E, M) the damage of one attack on each enemy."""
    return np.where(shielded, facts.shield_damage[agent, facts.agents :], facts.health_damage[agent, facts.agents :])


def heal(facts: UnitTables, scene: BattleView, agent: int) -> np.ndarray:
    """(E,) the action that heals the ally with the least share of its health, or 0."""
    n = facts.agents
    share = scene.health[:, :n] / facts.health[:n]
    offered = scene.mask[:, agent, FIRST_TARGET : FIRST_TARGET + n]
    width = offered.shape[1]
    can = offered & (facts.biological[:n] & (share < 1.0))[:, :width]
    patient = np.where(can, share[:, :width], FAR).argmin(1)
    return np.where(can.any(1), FIRST_TARGET + patient, 0)


def position(facts: UnitTables, scene: BattleView, action: np.ndarray) -> None:
    """Move those who have no action yet: to their posts before the battle, and to the nearest foe in it."""
    n = facts.agents
    idle = (action == 0) & scene.alive
    near = (scene.apart < JOINED).any((1, 2))
    hurt = (scene.life < facts.health + facts.shield - 0.01).any(1)
    blasts = (scene.foes & facts.burst[n:]).any(1)
    joined = (near | hurt) & ~blasts | (not facts.awaits)
    apart = np.where(facts.hits[:n, n:], scene.apart, FAR)
    foe = np.take_along_axis(scene.place, n + apart.argmin(-1)[..., None], 1)
    goal = np.where(joined[:, None, None], foe, facts.posts)
    go = idle & (~joined[:, None] | (apart.min(-1) < FAR))
    if facts.healer[:n].any():
        others = (scene.alive & facts.biological[:n])[..., None]
        middle = (scene.place[:, :n] * others).sum(1) / np.maximum(others.sum(1), 1)
        behind = facts.healer[:n] & joined[:, None]
        goal = np.where(behind[..., None], middle[:, None], goal)
        go |= idle & behind
    go &= np.linalg.norm(goal - scene.place[:, :n], axis=-1) > ARRIVED
    action[:] = np.where(go, step_towards(facts, scene, goal), np.where(idle, STOP, action))


def step_towards(facts: UnitTables, scene: BattleView, goal: np.ndarray) -> np.ndarray:
    """(E, N) the available move that leads best to `goal` (E, N, 2), around walls; to stop where none does."""
    place = scene.place[:, : facts.agents]
    if len(facts.way) > 1:
        here, there = np.clip(place, 0, 31).astype(int), np.clip(goal, 0, 31).astype(int)
        there = there[..., 0] * 32 + there[..., 1]
        via = facts.way[here[..., 0] * 32 + here[..., 1], there].astype(int)
        around = (via != there) & facts.walks[: facts.agents]
        goal = np.where(around[..., None], np.stack(np.divmod(via, 32), -1) + 0.5, goal)
    progress = np.where(scene.mask[..., NORTH:FIRST_TARGET], (goal - place) @ MOVES.T, 0.0)
    return np.where(progress.max(-1) > 0.1, NORTH + progress.argmax(-1), STOP)


def kite(facts: UnitTables, scene: BattleView, action: np.ndarray) -> None:
    """Let units step back where that is better than what they were to do."""
    n = facts.agents
    gap = scene.apart - facts.reach[n:, :n].T
    if (facts.speed[n:] == 0).all():
        flee = leave_siege(facts, scene, action, gap)
    else:
        apart = np.where(facts.hits[n:, :n].T, scene.apart, FAR)
        chased = (apart == apart.min(1, keepdims=True)) & (apart < FAR)  # (E, N, M) an enemy's nearest
        flee = flee_pursuers(facts, scene, chased, gap) | flee_fire(facts, scene, action, chased, gap)
    env, agent = np.nonzero(flee & scene.alive)
    if len(env):
        action[env, agent] = escape(facts, scene, env, agent)


def flee_pursuers(facts: UnitTables, scene: BattleView, chased: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """(E, N) who is being caught by what it outranges: always while its weapon cools down, and with a weapon that is
    ready where it is the faster one, or others are free to shoot."""
    n = facts.agents
    outranged = facts.range[:n, None] - facts.range[n:] > OUTRANGE
    distance = np.where(outranged & (chased | (gap < 1.0)), gap, FAR).min(-1)
    step = facts.speed[n:].max() * STEP_LOOPS
    caught = distance < step * CHASE_MARGIN
    free = (scene.alive & ~caught & facts.hits[:n, n:].any(1)).any(1, keepdims=True)
    fired = facts.period[:n] - scene.cooldown > facts.windup[:n] + 1.0
    cooling = (scene.cooldown > COOLING) & fired
    faster = facts.speed[:n] > facts.speed[n:].max()
    return np.where(cooling, distance < step * CHASE_STEPS, caught & (faster | free))


def flee_fire(
    facts: UnitTables, scene: BattleView, action: np.ndarray, chased: np.ndarray, gap: np.ndarray
) -> np.ndarray:
    """(E, N) who is about to die of the fire on it, has no shot ready, and has a healthier ally to take its place."""
    n = facts.agents
    damage = np.where(scene.shield[:, :n, None] > 0, facts.shield_damage[n:, :n].T, facts.health_damage[n:, :n].T)
    coming = (damage * (chased & (gap < 1.0))).sum(-1)
    life = scene.life[:, :n]
    doomed = (coming > 0) & (life <= coming * DOOMED_VOLLEYS)
    healthiest = np.where(doomed, 0.0, life).max(1, keepdims=True)
    ready = (scene.cooldown <= 1.0) & (action >= FIRST_TARGET)
    return doomed & (life < healthiest) & ~ready & ~facts.melee[:n]


def leave_siege(facts: UnitTables, scene: BattleView, action: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """(E, N) who must leave the reach of what cannot move. Those outside wait until all shields have grown back."""
    n = facts.agents
    hit = facts.shield_damage[n:, :n].sum(0)
    outside = gap.min(-1) > 0.3
    tired = (scene.alive & (scene.shield[:, :n] < FRESH_SHIELD * facts.shield[:n])).any(1, keepdims=True)
    action[outside & tired & scene.alive] = STOP
    bears = np.ceil(scene.life[:, :n] / hit).sum(1, keepdims=True)
    unending = scene.life[:, n:].sum(1, keepdims=True) > PUSH_DAMAGE * bears
    return ~outside & unending & (scene.life[:, :n] <= WORN_HITS * hit)


def escape(facts: UnitTables, scene: BattleView, env: np.ndarray, agent: np.ndarray) -> np.ndarray:
    """(K,) the first move of the best of sixteen ways out, two legs each, with all enemies in pursuit; else to stop."""
    n = facts.agents
    first, second = np.divmod(np.arange(16), 4)
    spot = np.repeat(scene.place[env, agent][:, None], 16, 1)  # (K, 16, 2)
    chase = np.repeat(scene.place[env, n:][:, None], 16, 1)  # (K, 16, M, 2)
    harmless = ~(scene.foes[env] & facts.hits[n:, agent].T)[:, None]
    reach = facts.reach[n:, agent].T[:, None]
    stride = (facts.speed[agent] * STEP_LOOPS)[:, None, None]
    least, total = np.full((len(env), 16), FAR), np.zeros((len(env), 16))
    for turn in range(PLAN):
        to = spot + MOVES[first if turn < FIRST_LEG else second] * stride
        cell = np.clip(to, 0, 31).astype(int)
        ground = facts.walkable[cell[..., 0], cell[..., 1]] | ~facts.walks[agent][:, None]
        inside = ((to > 0.5) & (to < 31.5)).all(-1)
        spot = np.where((ground & inside)[..., None], to, spot)
        way = spot[:, :, None] - chase
        length = np.maximum(np.linalg.norm(way, axis=-1), 1e-6)
        pace = np.clip(length - reach, 0.0, facts.speed[n:] * STEP_LOOPS)
        chase = chase + way * (pace / length)[..., None]
        nearest = np.where(harmless, FAR, length - pace - reach).min(-1)
        least, total = np.minimum(least, nearest), total + np.minimum(nearest, 6.0)
    mates = (scene.alive[env] & (np.arange(n) != agent[:, None]))[..., None]
    middle = (scene.place[env, :n] * mates).sum(1) / np.maximum(mates.sum(1), 1)
    lost = np.linalg.norm(spot - middle[:, None], axis=-1) - CLUSTER_RADIUS
    value = least + 0.15 * total - CLUSTER * np.maximum(0.0, lost) * mates.any(1)
    value = np.where(scene.mask[env, agent][:, NORTH + first], value, -FAR)
    return np.where(value.max(1) > -FAR, NORTH + first[value.argmax(1)], STOP)


class ScriptedTeam:
    """A policy of rules; `kites` tells the two apart. Raises ConfigError for what is not SMAC with its own state."""

    module = None
    slots = 1

    def __init__(self, spec: EnvSpec, kites: bool) -> None:
        self.spec, self.kites = spec, kites
        family, _, task = spec.name.partition("/")
        if family != "smac":
            raise ConfigError(
                f"this agent knows the rules of smac only, and the environment is {spec.name!r}; choose smac/3m or "
                "another of `marl list envs`, or --agent random"
            )
        self.facts = UnitTables(task)
        given, known = spec.state_size, self.facts.rules.state_size
        if given != known or spec.action_size != self.facts.rules.actions:
            raise ConfigError(
                f"{spec.name}: the state has {given} numbers and there are {spec.action_size} actions, but this agent "
                f"reads {known} and {self.facts.rules.actions}; leave layout, state_last_action, "
                "state_timestep_number and obs_instead_of_state at their defaults"
            )

    def encode(self, obs: Obs) -> Inputs:
        return {
            "alive": torch.as_tensor(obs.alive),
            "action_mask": torch.as_tensor(obs.action_mask),
            "state": torch.as_tensor(obs.state),
        }

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:  # noqa: ARG002
        action = self.choose(inputs["state"].numpy(), inputs["action_mask"].numpy())
        exists = inputs["alive"].unsqueeze(-1)
        zeros = torch.zeros(exists.shape)
        nodes = Nodes(torch.from_numpy(action).unsqueeze(-1), exists, torch.zeros_like(exists))
        return Decision(action, nodes, zeros, zeros)

    def choose(self, state: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(E, N) actions for states (E, S) and masks (E, N, A)."""
        scene = read(self.facts, state, mask)
        action = shoot(self.facts, scene)
        position(self.facts, scene, action)
        if self.kites:
            kite(self.facts, scene, action)
        return action

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        raise NotImplementedError("this agent does not learn")

    def value(self, inputs: Inputs) -> Tensor:
        return torch.zeros(inputs["alive"].shape)

    def update_statistics(self, inputs: Inputs, mask: Tensor) -> None:
        pass


@register_agent("focus-fire", trains=False, summary="SMAC by rules: an arc, and shared targets without overkill")
def make_focus_fire(spec: EnvSpec, options: NoOptions) -> ScriptedTeam:  # noqa: ARG001 - the interface of factories
    return ScriptedTeam(spec, kites=False)


@register_agent("kiting", trains=False, summary="SMAC by rules: focus-fire that steps back from pursuers and from fire")
def make_kiting(spec: EnvSpec, options: NoOptions) -> ScriptedTeam:  # noqa: ARG001 - the interface of factories
    return ScriptedTeam(spec, kites=True)
