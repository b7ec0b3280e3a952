"""The embedded battle engine behind StarCraft II's protocol.

As with the trigger of SMAC's maps, a step that begins with both sides dead ends with both created again. The game's
interface reports single precision, and the engine rounds to it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from marl.envs.sc2.ids import ATTACK, HEAL, MOVE, SMART, STOP, UNITS
from marl.envs.sc2.server_game import COMPUTER, PLAYER, Refused
from marl.envs.smac.engine.battle import MAX_ENERGY, START_ENERGY, begin_episode, make_scratch, run_game_loops
from marl.envs.smac.engine.compile_map import build_world, random_stream
from marl.envs.smac.engine.fields import (
    AIM,
    ATTACK_MOVING,
    ATTACKING,
    COOLDOWN,
    COUNTER_FIELDS,
    ENERGY,
    FLOAT_FIELDS,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALING,
    HEALTH,
    IDLE,
    IMPACT,
    INT_FIELDS,
    MAX_HEALTH,
    MAX_SHIELD,
    MENDING,
    MOVING,
    ORDER,
    RADIUS,
    RANDOM,
    SHIELD,
    SIDE,
    TARGET,
    VICTIM,
    WAITING,
    X,
    Y,
)
from marl.envs.smac.engine.orders import give_order
from marl.envs.smac.engine.pathing import MAX_UNITS
from marl.envs.smac.maps import DATA, SIZE, BattleMap, lattice, load_map, nearest_free
from marl.envs.smac.options import SmacOptions
from marl.envs.smac.sc2.feature_layers import draw_layers, image_data
from marl.envs.smac.sc2.game_data import RACES, SPECIFIC, agent_type_ids, draw_tables

common: Any = import_module("s2clientprotocol.common_pb2")
debug: Any = import_module("s2clientprotocol.debug_pb2")
error: Any = import_module("s2clientprotocol.error_pb2")
raw_pb: Any = import_module("s2clientprotocol.raw_pb2")
api: Any = import_module("s2clientprotocol.sc2api_pb2")

FLAT_MAP = "32x32_flat"
"""SMACv2's map. It begins without units; clients create them with `debug create_unit`."""

FLAT_TYPES = tuple(kind for kind in UNITS if kind != "spine_crawler")
"""Unit types whose agents' versions SMACv2's map defines."""

_HEIGHT = 127
_Z = -16.0 + 32.0 * _HEIGHT / 255.0
INDICES = [TARGET, AIM, VICTIM, HEALING]
"""Fields of `unit_int` that hold the index of a unit, or -1."""

_VISIBLE = bytes([2]) * SIZE * SIZE


class NewUnit(NamedTuple):
    """A unit to create: side, type, id under which it is shown, and place."""

    own: bool
    kind: str
    type_id: int
    x: float
    y: float


class Column(NamedTuple):
    """A column of the arrays after units were created. `old` is its index before, -1 for a new unit."""

    own: bool
    kind: str
    type_id: int
    tag: int
    old: int
    place: tuple[float, ...] = ()


def _spots(unit: NewUnit) -> np.ndarray:
    """Return places (K, 2) for a new unit, nearest first: a lattice around its place, then the cells of the map."""
    center = unit.x, unit.y
    cells = np.stack(np.divmod(np.arange(SIZE * SIZE), SIZE), axis=1) + 0.5
    cells = cells[np.argsort(np.hypot(*(cells - center).T), kind="stable")]
    spots = np.concatenate([center + lattice((0.0, 0.0), (1.0, 0.0)), cells])
    width = DATA["units"][unit.kind]["separation_radius"]
    return spots[((spots >= width) & (spots <= SIZE - width)).all(axis=1)]


def open_map(name: str) -> BattleMap:
    """Return a map of SMAC, or SMACv2's map without units."""
    if name != FLAT_MAP:
        return load_map(name)
    flat = replace(load_map("terran_5_vs_5"), name=name, types=(), num_agents=0, start=np.zeros((0, 2)))
    return replace(flat, ally_types=(), enemy_types=(), kinds=(), weights=(), dependent="")


class EmbeddedGame:
    """A battle on one of SMAC's maps; see `marl.envs.sc2.server_game.Simulation`. The player's units are the agents."""

    def __init__(self, name: str, seed: int) -> None:
        self._base = open_map(name)
        self.counters = np.zeros(COUNTER_FIELDS, np.int64)
        self.counters[RANDOM] = random_stream(seed)
        self._created = 0
        self._dead: list[int] = []
        self._camera = (SIZE / 2, SIZE / 2)
        kinds = FLAT_TYPES if name == FLAT_MAP else self._base.types[: self._base.num_agents]
        self.agent_types = agent_type_ids(kinds)
        self._ground = self._draw_ground()
        self._set_base()
        self._begin()

    def _begin(self) -> None:
        """Create both sides of the map."""
        if self.map is not self._base:
            self._set_base()
        begin_episode(self.world, self.unit_float, self.unit_int, self.counters)
        self._alive = self._living()
        self._tag_units([self._new_tag() for _ in self._type_ids])

    def _set_base(self) -> None:
        """Set the map's own units."""
        agents, types = self._base.num_agents, self._base.types
        own = [self.agent_types[kind] for kind in types[:agents]]
        self._set_units(self._base, own + [UNITS[kind] for kind in types[agents:]])

    def _set_units(self, battle_map: BattleMap, type_ids: list[int]) -> None:
        """Set the units, with empty arrays."""
        self.map, self._type_ids = battle_map, type_ids
        self.world = build_world(battle_map, SmacOptions())
        units = self.world.units
        self.unit_float, self.unit_int = np.zeros((FLOAT_FIELDS, units)), np.zeros((INT_FIELDS, units), np.int64)
        self._scratch = make_scratch(units)
        self._units = [self._draw_unit(unit) for unit in range(units)]

    def _new_tag(self) -> int:
        self._created += 1
        return (1 << 32) + (self._created << 18) + 1

    def _tag_units(self, tags: list[int]) -> None:
        self._tags, self._unit_of = tags, {tag: unit for unit, tag in enumerate(tags)}
        for message, tag in zip(self._units, tags, strict=True):
            message.tag = tag

    def _draw_unit(self, unit: int) -> Any:
        """Return the constant part of a unit's message."""
        own, kind = unit < self.world.agents, self.map.types[unit]
        stats = self.world.stats[:, unit]
        message = raw_pb.Unit(
            display_type=raw_pb.Visible,
            alliance=raw_pb.Self if own else raw_pb.Enemy,
            unit_type=self._type_ids[unit],
            owner=PLAYER if own else COMPUTER,
            radius=stats[RADIUS],
            build_progress=1.0,
            cloak=raw_pb.NotCloaked,
            detect_range=0.0,
            radar_range=0.0,
            is_selected=False,
            is_on_screen=False,
            is_blip=False,
            is_powered=False,
            is_active=False,
            health_max=stats[MAX_HEALTH],
            is_flying=DATA["units"][kind]["plane"] == "air",
            is_burrowed=False,
            is_hallucination=False,
        )
        if stats[MAX_SHIELD] > 0.0:
            message.shield_max = stats[MAX_SHIELD]
        if stats[HEALER] > 0.0:
            message.energy_max = MAX_ENERGY
        return message

    def _draw_ground(self) -> Any:
        walkable, enemies = self._base.walkable, self._base.start[self._base.num_agents :]
        there = enemies.mean(axis=0) if len(enemies) else (SIZE / 2, SIZE / 2)
        return raw_pb.StartRaw(
            map_size=common.Size2DI(x=SIZE, y=SIZE),
            pathing_grid=image_data(walkable, 1),
            placement_grid=image_data(walkable, 1),
            terrain_height=image_data(np.full_like(walkable, _HEIGHT, np.uint8), 8),
            playable_area=common.RectangleI(p0=common.PointI(x=0, y=0), p1=common.PointI(x=SIZE, y=SIZE)),
            start_locations=[common.Point2D(x=there[0], y=there[1])],
        )

    def ground(self) -> Any:
        """Return the StartRaw of the map."""
        return self._ground

    def races(self) -> tuple[int, int]:
        """Return the races of player and computer."""
        if not self._base.types:
            return common.NoRace, common.NoRace
        player, computer = (RACES[DATA["units"][self._base.types[unit]]["race"]] for unit in (0, -1))
        return player, computer

    def _living(self) -> list[int]:
        return np.flatnonzero(self.unit_float[HEALTH] > 0.0).tolist()

    def show(self, player: Any, raw: Any) -> None:
        """Fill a PlayerCommon and an ObservationRaw, if one is given."""
        living = self._living()
        army = sum(unit < self.world.agents for unit in living)
        player.player_id = PLAYER
        for name in ("minerals", "vespene", "food_workers", "idle_worker_count", "warp_gate_count", "larva_count"):
            setattr(player, name, 0)
        player.food_cap, player.food_used, player.food_army, player.army_count = 200, army, army, army
        if raw is None:
            return
        (raw.player.camera.x, raw.player.camera.y), raw.player.camera.z = self._camera, _Z
        raw.event.dead_units.extend(self._dead)
        size = {"x": SIZE, "y": SIZE}
        raw.map_state.visibility.CopyFrom(common.ImageData(bits_per_pixel=8, size=size, data=_VISIBLE))
        raw.map_state.creep.CopyFrom(common.ImageData(bits_per_pixel=1, size=size, data=bytes(SIZE * SIZE // 8)))
        unit_float, target = self.unit_float.tolist(), self.unit_int[TARGET].tolist()
        for unit in living:
            message = raw.units.add()
            message.CopyFrom(self._units[unit])
            position, x, y = message.pos, unit_float[X][unit], unit_float[Y][unit]
            position.x, position.y, position.z = x, y, _Z
            message.health = unit_float[HEALTH][unit]
            if message.shield_max:
                message.shield = unit_float[SHIELD][unit]
            if message.energy_max:
                message.energy = unit_float[ENERGY][unit]
            message.facing = self._facing(unit, target[unit], unit_float)
            if unit < self.world.agents:
                message.weapon_cooldown = max(0.0, unit_float[COOLDOWN][unit])
                self._show_order(message, unit, target[unit], unit_float)

    def _facing(self, unit: int, target: int, unit_float: list[list[float]]) -> float:
        """Return the angle towards the target, else the goal, else the opponent's side."""
        if target >= 0:
            x, y = unit_float[X][target], unit_float[Y][target]
        elif self.unit_int[ORDER, unit] == IDLE:
            return 0.0 if unit < self.world.agents else math.pi
        else:
            x, y = unit_float[GOAL_X][unit], unit_float[GOAL_Y][unit]
        return math.atan2(y - unit_float[Y][unit], x - unit_float[X][unit]) % math.tau

    def _show_order(self, message: Any, unit: int, target: int, unit_float: list[list[float]]) -> None:
        """Add the order of an agent's unit. The game shows no orders of enemies."""
        order = self.unit_int[ORDER, unit]
        if order in (MOVING, ATTACK_MOVING):
            place = common.Point(x=unit_float[GOAL_X][unit], y=unit_float[GOAL_Y][unit], z=_Z)
            message.orders.add(ability_id=MOVE if order == MOVING else ATTACK, target_world_space_pos=place)
            if order == ATTACK_MOVING and target >= 0:
                message.engaged_target_tag = self._tags[target]
        elif order == ATTACKING:
            message.orders.add(ability_id=ATTACK, target_unit_tag=self._tags[target])
            message.engaged_target_tag = self._tags[target]
        elif order == MENDING:
            message.orders.add(ability_id=HEAL, target_unit_tag=self._tags[target])

    def order(self, command: Any) -> list[tuple[int, int]]:
        """Give each unit of a command its order. Return (tag, ActionResult) of each."""
        return [(tag, self._order_unit(tag, command)) for tag in command.unit_tags]

    def _order_unit(self, tag: int, command: Any) -> int:
        """Give one unit its order. Return an ActionResult."""
        unit = self._unit_of.get(tag, -1)
        if unit < 0 or self.unit_float[HEALTH, unit] <= 0.0:
            return error.Error
        if unit >= self.world.agents:
            return error.YouCantControlThatUnit
        if command.queue_command and self.unit_int[ORDER, unit] != IDLE:
            return error.CantQueueThatOrder
        ability = SPECIFIC.get(command.ability_id, command.ability_id)
        if ability not in self._abilities(unit):
            return error.NotSupported
        kind = command.WhichOneof("target")
        if ability == STOP:
            return self._give(unit, IDLE)
        if kind == "target_world_space_pos" and ability != HEAL:
            x, y = command.target_world_space_pos.x, command.target_world_space_pos.y
            near = -SIZE <= x <= 2 * SIZE and -SIZE <= y <= 2 * SIZE
            if self.world.waypoints.shape[0] > 1:  # the engine looks the way to such a point up by its cell
                near = 0.0 <= x < SIZE and 0.0 <= y < SIZE
            order = ATTACK_MOVING if ability == ATTACK else MOVING
            return self._give(unit, order, x=x, y=y) if near else error.MustTargetWalkableLocation
        if kind != "target_unit_tag":
            return error.MustTargetUnit
        target = self._unit_of.get(command.target_unit_tag, -1)
        if target < 0 or self.unit_float[HEALTH, target] <= 0.0:
            return error.CantTargetThatUnit
        return self._aim(unit, ability, target)

    def _aim(self, unit: int, ability: int, target: int) -> int:
        own, heals = target < self.world.agents, self.world.stats[HEALER, unit] > 0.0
        if ability == ATTACK and own:
            return error.CantTargetYourOwnUnits
        if ability == HEAL and not own:
            return error.MustTargetFriendlyUnits
        if not own and ability in (ATTACK, SMART) and not heals:
            return self._give(unit, ATTACKING, target)
        if ability == HEAL or (ability == SMART and heals and own and target != unit):
            return self._give(unit, MENDING, target)
        return self._give(unit, MOVING, x=self.unit_float[X, target], y=self.unit_float[Y, target])

    def _give(self, unit: int, order: int, target: int = -1, x: float | None = None, y: float | None = None) -> int:
        here_x, here_y = self.unit_float[X, unit], self.unit_float[Y, unit]
        goal = (here_x if x is None else float(x), here_y if y is None else float(y))
        taken = give_order(self.world.stats, self.unit_float, self.unit_int, unit, order, target, *goal)
        return error.Success if taken else error.CantTargetThatUnit

    def _abilities(self, unit: int) -> tuple[int, ...]:
        return SMART, STOP, MOVE, HEAL if self.world.stats[HEALER, unit] > 0.0 else ATTACK

    def step(self, loops: int) -> None:
        """Play game loops. Recreate both sides if both were dead."""
        empty, before = not self._living(), self._alive
        if self.world.units:
            world = self.world._replace(loops=loops)
            run_game_loops(world, self._scratch, self.unit_float, self.unit_int, self.counters)
        self._alive = self._living()
        self._dead = [self._tags[unit] for unit in sorted(set(before) - set(self._alive))]
        if empty and self._base.types:
            self._begin()

    def plan(self, commands: Sequence[Any]) -> list[NewUnit]:
        """Return the units of DebugCreateUnits. Raises Refused for one that cannot be created."""
        units: list[NewUnit] = []
        for command in commands:
            own, number, place = command.owner == PLAYER, command.unit_type, command.pos
            kinds = {UNITS[kind]: kind for kind in UNITS} | ({v: k for k, v in self.agent_types.items()} if own else {})
            if command.owner not in (PLAYER, COMPUTER):
                raise Refused(f"create_unit has owner={command.owner}; give {PLAYER} or {COMPUTER}")
            if number not in kinds:
                raise Refused(f"create_unit has unit_type={number}, unknown for player {command.owner}; see `data`")
            if not (0.0 <= place.x <= SIZE and 0.0 <= place.y <= SIZE):
                raise Refused(f"create_unit has pos=({place.x}, {place.y}), outside the map of {SIZE} x {SIZE}")
            count = command.quantity if command.HasField("quantity") else 1
            room = MAX_UNITS - 1 - len(self._kept()) - len(units)
            if count > room:
                raise Refused(f"create_unit has quantity={count}; there is room for {room} more units, kill some first")
            units += [NewUnit(own, kinds[number], number, place.x, place.y)] * count
        return units

    def _kept(self) -> list[int]:
        """Return columns still needed: living units, missiles on their way, and their targets."""
        kept = (self.unit_float[HEALTH] > 0.0) | (self.unit_float[IMPACT] > 0.0)
        targets = self.unit_int[INDICES][:, kept]
        kept[targets[targets >= 0]] = True
        return np.flatnonzero(kept).tolist()

    def create(self, units: Sequence[NewUnit]) -> None:
        """Add units, each on the free spot nearest to its place, and remove dead units."""
        kept, agents = self._kept(), self.world.agents
        names, ids, tags, unit_float, unit_int = (
            self.map.types,
            self._type_ids,
            self._tags,
            self.unit_float,
            self.unit_int,
        )
        placed = [(names[unit], *unit_float[[X, Y], unit].tolist()) for unit in self._living()]
        columns = [Column(unit < agents, names[unit], ids[unit], tags[unit], unit) for unit in kept]
        for unit in units:
            placed.append(nearest_free(unit.kind, _spots(unit), placed, self.map.walkable))
            columns.append(Column(unit.own, unit.kind, unit.type_id, self._new_tag(), -1, placed[-1][1:]))
        columns.sort(key=lambda column: not column.own)
        moved = np.full(len(tags) + 1, -1)  # -1 stays -1
        for at, column in enumerate(columns):
            if column.old >= 0:
                moved[column.old] = at
        types, own = tuple(column.kind for column in columns), sum(column.own for column in columns)
        start = np.zeros((len(types), 2))
        battle_map = replace(self._base, types=types, num_agents=own, start=start, ally_types=(), enemy_types=())
        self._set_units(battle_map, [column.type_id for column in columns])
        for at, column in enumerate(columns):
            if column.old >= 0:
                self.unit_float[:, at], self.unit_int[:, at] = unit_float[:, column.old], unit_int[:, column.old]
                self.unit_int[INDICES, at] = moved[unit_int[INDICES, column.old]]
            else:
                self._start_unit(at, column.own, column.place)
        self._tag_units([column.tag for column in columns])
        self._alive = self._living()

    def _start_unit(self, unit: int, own: bool, place: tuple[float, ...]) -> None:
        """Set the arrays of a new unit."""
        stats = self.world.stats
        self.unit_int[:, unit] = -1
        self.unit_int[SIDE, unit] = 0
        waits = not own and self._base.order == "nearest"
        self.unit_int[ORDER, unit] = WAITING if waits else IDLE
        self.unit_float[[X, Y], unit] = np.array(place, np.float32)
        self.unit_float[HEALTH, unit], self.unit_float[SHIELD, unit] = stats[MAX_HEALTH, unit], stats[MAX_SHIELD, unit]
        self.unit_float[ENERGY, unit] = START_ENERGY * (stats[HEALER, unit] > 0.0)

    def kill(self, tags: Sequence[int]) -> None:
        """Remove units. A removed unit does not blow up."""
        for unit in self._known(tags):
            self.unit_float[HEALTH, unit] = self.unit_float[SHIELD, unit] = 0.0

    def _known(self, tags: Sequence[int]) -> list[int]:
        return [self._unit_of[tag] for tag in tags if tag in self._unit_of]

    def set_value(self, tag: int, kind: int, value: float) -> None:
        """Set life, shields or energy of a unit, at most its type's maximum. Without life it dies."""
        fields = {
            debug.DebugSetUnitValue.Life: (HEALTH, self.world.stats[MAX_HEALTH]),
            debug.DebugSetUnitValue.Shields: (SHIELD, self.world.stats[MAX_SHIELD]),
            debug.DebugSetUnitValue.Energy: (ENERGY, MAX_ENERGY * (self.world.stats[HEALER] > 0.0)),
        }
        field, most = fields[kind]
        value = value if math.isfinite(value) else 0.0
        for unit in self._known([tag]):
            if self.unit_float[HEALTH, unit] > 0.0:
                self.unit_float[field, unit] = np.float32(min(max(value, 0.0), most[unit]))

    def save(self) -> Any:
        """Return a copy of the battle for `load`."""
        arrays = self.unit_float.copy(), self.unit_int.copy(), self.counters.copy()
        units = self.map, list(self._type_ids), list(self._tags)
        return arrays, units, self._created, list(self._alive), list(self._dead), self._camera

    def load(self, saved: Any) -> None:
        """Restore a battle that `save` returned."""
        arrays, (battle_map, type_ids, tags), self._created, alive, dead, self._camera = saved
        if battle_map is not self.map:
            self._set_units(battle_map, type_ids)
        for mine, theirs in zip((self.unit_float, self.unit_int, self.counters), arrays, strict=True):
            mine[:] = theirs
        self._alive, self._dead = list(alive), list(dead)
        self._tag_units(list(tags))

    def move_camera(self, x: float, y: float) -> None:
        """Center the camera on a point, as far as the map allows."""
        inside = [min(max(value, 0.0), float(SIZE)) if math.isfinite(value) else SIZE / 2 for value in (x, y)]
        self._camera = inside[0], inside[1]

    def show_layers(self, setup: Any, layers: Any) -> None:
        """Fill an ObservationFeatureLayer for a SpatialCameraSetup."""
        raw = raw_pb.ObservationRaw()
        self.show(api.PlayerCommon(), raw)
        draw_layers(setup, self._camera, raw.units, self._ground, layers)

    def query(self, request: Any, response: Any) -> None:
        """Answer pathing, ability and placement queries."""
        for asked in request.pathing:
            start = asked.start_pos
            if asked.HasField("unit_tag"):
                units = self._known([asked.unit_tag])
                start = (
                    common.Point2D(x=self.unit_float[X, units[0]], y=self.unit_float[Y, units[0]]) if units else None
                )
            response.pathing.add(distance=self._distance(start, asked.end_pos) if start else 0.0)
        for asked in request.abilities:
            answer = response.abilities.add(unit_tag=asked.unit_tag)
            for unit in self._known([asked.unit_tag]):
                answer.unit_type_id = self._units[unit].unit_type
                if unit < self.world.agents and self.unit_float[HEALTH, unit] > 0.0:
                    for ability in self._abilities(unit):
                        answer.abilities.add(ability_id=ability, requires_point=False)
        for asked in request.placements:
            place = asked.target_pos
            free = self._walkable(place.x, place.y)
            response.placements.add(result=error.Success if free else error.CantBuildLocationInvalid)

    def _walkable(self, x: float, y: float) -> bool:
        return 0.0 <= x < SIZE and 0.0 <= y < SIZE and bool(self.map.walkable[int(x), int(y)])

    def _distance(self, start: Any, end: Any) -> float:
        """Return the length of the way between two points around walls, 0 if there is none, as in the game."""
        if not (self._walkable(start.x, start.y) and self._walkable(end.x, end.y)):
            return 0.0
        x, y, way, length = start.x, start.y, self.world.waypoints, 0.0
        while way.shape[0] > 1:
            here, there = int(x) * SIZE + int(y), int(end.x) * SIZE + int(end.y)
            via = int(way[here, there])
            if via in (here, there):
                break
            next_x, next_y = via // SIZE + 0.5, via % SIZE + 0.5
            length += math.hypot(next_x - x, next_y - y)
            x, y = next_x, next_y
        return length + math.hypot(end.x - x, end.y - y)

    def data(self, request: Any) -> Any:
        """Return the ResponseData that a RequestData asks for."""
        return draw_tables(request, self.agent_types)
