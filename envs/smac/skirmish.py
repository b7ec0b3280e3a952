"""A battle as a client of StarCraft II sees it: the embedded engine in the messages of the game's protocol.

Where the trigger of a SMAC map is at work in the game, so it is here: a step that begins with both sides dead ends
with both created anew. The game's interface reports in single precision, and the engine rounds to it.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from envs.sc2.ids import ATTACK, HEAL, MOVE, SMART, STOP, UNITS
from envs.sc2.match import COMPUTER, PLAYER
from envs.smac import SmacOptions, engine, orders
from envs.smac.build import build_world, random_stream
from envs.smac.combat import ATTACKING, GOING, IDLE, MENDING
from envs.smac.maps import DATA, SIZE, load_map
from envs.smac.rules import (
    COOLDOWN,
    ENERGY,
    GOAL_X,
    GOAL_Y,
    HEALER,
    HEALTH,
    MAX_HEALTH,
    MAX_SHIELD,
    ORDER,
    RADIUS,
    RANDOM,
    REAL_FIELDS,
    SHIELD,
    TALLY_FIELDS,
    TARGET,
    WHOLE_FIELDS,
    X,
    Y,
)

common: Any = import_module("s2clientprotocol.common_pb2")
data_pb: Any = import_module("s2clientprotocol.data_pb2")
debug: Any = import_module("s2clientprotocol.debug_pb2")
error: Any = import_module("s2clientprotocol.error_pb2")
raw_pb: Any = import_module("s2clientprotocol.raw_pb2")
api: Any = import_module("s2clientprotocol.sc2api_pb2")

FIRST_AGENT_TYPE = 1970
"""SMAC's maps define types of their own for the agents' units: this id and the next ones, in alphabetical order."""

ABILITIES = {
    SMART: ("Smart", "PointOrUnit", 0),
    STOP: ("Stop", "None", 3665),
    MOVE: ("Move", "PointOrUnit", 3794),
    ATTACK: ("Attack", "PointOrUnit", 3674),
    HEAL: ("Heal", "Unit", 0),
}
"""Name, target and the general ability that stands for it in clients."""

_SPECIFIC = {general: specific for specific, (_, _, general) in ABILITIES.items() if general}
_RACES = {"terran": common.Terran, "zerg": common.Zerg, "protoss": common.Protoss}
_HEIGHT = 127
_Z = -16.0 + 32.0 * _HEIGHT / 255.0
_VISIBLE = bytes([2]) * SIZE * SIZE


def image(values: np.ndarray, bits: int) -> Any:
    """ImageData of values (x, y): row by row from y = 0 on, in a byte of eight points the first one highest."""
    rows = np.packbits(values.T.astype(bool), axis=1) if bits == 1 else values.T.astype(np.uint8)
    size = common.Size2DI(x=values.shape[0], y=values.shape[1])
    return common.ImageData(bits_per_pixel=bits, size=size, data=rows.tobytes())


class Skirmish:
    """A battle on one of SMAC's maps; see `envs.sc2.match.Simulation`. The agents are the player's units."""

    def __init__(self, name: str, seed: int) -> None:
        self.map = load_map(name)
        self.world = build_world(self.map, SmacOptions())
        units = self.world.units
        self.real = np.zeros((REAL_FIELDS, units))
        self.whole = np.zeros((WHOLE_FIELDS, units), np.int64)
        self.tally = np.zeros(TALLY_FIELDS, np.int64)
        self.tally[RANDOM] = random_stream(seed)
        self._scratch = engine.new_scratch(units)
        self._created = 0
        self._dead: list[int] = []
        allies = sorted(set(self.map.types[: self.map.num_agents]))
        self.agent_types = {kind: FIRST_AGENT_TYPE + rank for rank, kind in enumerate(allies)}
        self._units = [self._draw_unit(unit) for unit in range(units)]
        self._ground = self._draw_ground()
        self._begin()

    def _begin(self) -> None:
        engine.begin(self.world, self.real, self.whole, self.tally)
        self._alive = self._living()
        self._tag_units([(1 << 32) + ((self._created + unit + 1) << 18) + 1 for unit in self._alive])
        self._created += len(self._alive)

    def _tag_units(self, tags: list[int]) -> None:
        self._tags, self._unit_of = tags, {tag: unit for unit, tag in enumerate(tags)}
        for message, tag in zip(self._units, tags, strict=True):
            message.tag = tag

    def _draw_unit(self, unit: int) -> Any:
        """What stays as it is in the report of a unit."""
        own, kind = unit < self.world.agents, self.map.types[unit]
        stats = self.world.stats[:, unit]
        message = raw_pb.Unit(
            display_type=raw_pb.Visible,
            alliance=raw_pb.Self if own else raw_pb.Enemy,
            unit_type=self.agent_types[kind] if own else UNITS[kind],
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
            message.energy_max = engine.MOST_ENERGY
        return message

    def _draw_ground(self) -> Any:
        walkable, agents = self.map.walkable, self.world.agents
        there = self.map.start[agents:].mean(axis=0)
        return raw_pb.StartRaw(
            map_size=common.Size2DI(x=SIZE, y=SIZE),
            pathing_grid=image(walkable, 1),
            placement_grid=image(walkable, 1),
            terrain_height=image(np.full_like(walkable, _HEIGHT, np.uint8), 8),
            playable_area=common.RectangleI(p0=common.PointI(x=0, y=0), p1=common.PointI(x=SIZE, y=SIZE)),
            start_locations=[common.Point2D(x=there[0], y=there[1])],
        )

    def ground(self) -> Any:
        return self._ground

    def races(self) -> tuple[int, int]:
        player, computer = (_RACES[DATA["units"][self.map.types[unit]]["race"]] for unit in (0, -1))
        return player, computer

    def _living(self) -> list[int]:
        return np.flatnonzero(self.real[HEALTH] > 0.0).tolist()

    def show(self, player: Any, raw: Any) -> None:
        living = self._living()
        army = sum(unit < self.world.agents for unit in living)
        player.player_id = PLAYER
        for name in ("minerals", "vespene", "food_workers", "idle_worker_count", "warp_gate_count", "larva_count"):
            setattr(player, name, 0)
        player.food_cap, player.food_used, player.food_army, player.army_count = 200, army, army, army
        if raw is None:
            return
        raw.player.camera.x, raw.player.camera.y, raw.player.camera.z = SIZE / 2, SIZE / 2, _Z
        raw.event.dead_units.extend(self._dead)
        size = {"x": SIZE, "y": SIZE}
        raw.map_state.visibility.CopyFrom(common.ImageData(bits_per_pixel=8, size=size, data=_VISIBLE))
        raw.map_state.creep.CopyFrom(common.ImageData(bits_per_pixel=1, size=size, data=bytes(SIZE * SIZE // 8)))
        real, target = self.real.tolist(), self.whole[TARGET].tolist()
        for unit in living:
            message = raw.units.add()
            message.CopyFrom(self._units[unit])
            position, x, y = message.pos, real[X][unit], real[Y][unit]
            position.x, position.y, position.z = x, y, _Z
            message.health = real[HEALTH][unit]
            if message.shield_max:
                message.shield = real[SHIELD][unit]
            if message.energy_max:
                message.energy = real[ENERGY][unit]
            message.facing = self._facing(unit, target[unit], real)
            if unit < self.world.agents:
                message.weapon_cooldown = max(0.0, real[COOLDOWN][unit])
                self._show_order(message, unit, target[unit], real)

    def _facing(self, unit: int, target: int, real: list[list[float]]) -> float:
        """Towards the target, else towards where it goes, else the way it faced in the beginning."""
        if target >= 0:
            x, y = real[X][target], real[Y][target]
        elif self.whole[ORDER, unit] == IDLE:
            return 0.0 if unit < self.world.agents else math.pi
        else:
            x, y = real[GOAL_X][unit], real[GOAL_Y][unit]
        return math.atan2(y - real[Y][unit], x - real[X][unit]) % math.tau

    def _show_order(self, message: Any, unit: int, target: int, real: list[list[float]]) -> None:
        """The game tells no orders of the enemy's units."""
        order = self.whole[ORDER, unit]
        if order == GOING:
            place = common.Point(x=real[GOAL_X][unit], y=real[GOAL_Y][unit], z=_Z)
            message.orders.add(ability_id=MOVE, target_world_space_pos=place)
        elif order == ATTACKING:
            message.orders.add(ability_id=ATTACK, target_unit_tag=self._tags[target])
            message.engaged_target_tag = self._tags[target]
        elif order == MENDING:
            message.orders.add(ability_id=HEAL, target_unit_tag=self._tags[target])

    def order(self, command: Any) -> list[tuple[int, int]]:
        return [(tag, self._order_unit(tag, command)) for tag in command.unit_tags]

    def _order_unit(self, tag: int, command: Any) -> int:
        """Give one unit its order. An agent's unit never chooses a target, so that it only goes to a point that it
        should attack-move to."""
        unit = self._unit_of.get(tag, -1)
        if unit < 0 or self.real[HEALTH, unit] <= 0.0:
            return error.Error
        if unit >= self.world.agents:
            return error.YouCantControlThatUnit
        if command.queue_command and self.whole[ORDER, unit] != IDLE:
            return error.CantQueueThatOrder
        ability = _SPECIFIC.get(command.ability_id, command.ability_id)
        if ability not in self._abilities(unit):
            return error.NotSupported
        kind = command.WhichOneof("target")
        if ability == STOP:
            return self._give(unit, IDLE)
        if kind == "target_world_space_pos" and ability != HEAL:
            x, y = command.target_world_space_pos.x, command.target_world_space_pos.y
            near = -SIZE <= x <= 2 * SIZE and -SIZE <= y <= 2 * SIZE
            if self.world.way.shape[0] > 1:  # the engine looks the way to such a point up by its cell
                near = 0.0 <= x < SIZE and 0.0 <= y < SIZE
            return self._give(unit, GOING, x=x, y=y) if near else error.MustTargetWalkableLocation
        if kind != "target_unit_tag":
            return error.MustTargetUnit
        target = self._unit_of.get(command.target_unit_tag, -1)
        if target < 0 or self.real[HEALTH, target] <= 0.0:
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
        return self._give(unit, GOING, x=self.real[X, target], y=self.real[Y, target])

    def _give(self, unit: int, order: int, target: int = -1, x: float | None = None, y: float | None = None) -> int:
        here_x, here_y = self.real[X, unit], self.real[Y, unit]
        goal = (here_x if x is None else float(x), here_y if y is None else float(y))
        taken = orders.give_order(self.world.stats, self.real, self.whole, unit, order, target, *goal)
        return error.Success if taken else error.CantTargetThatUnit

    def _abilities(self, unit: int) -> tuple[int, ...]:
        return SMART, STOP, MOVE, HEAL if self.world.stats[HEALER, unit] > 0.0 else ATTACK

    def step(self, loops: int) -> None:
        empty, before = not self._living(), self._alive
        world = self.world._replace(loops=loops)
        engine.play(world, self._scratch, self.real, self.whole, self.tally)
        self._alive = self._living()
        self._dead = [self._tags[unit] for unit in sorted(set(before) - set(self._alive))]
        if empty:
            self._begin()

    def kill(self, tags: Sequence[int]) -> None:
        """A unit that is removed does not blow up."""
        for unit in self._known(tags):
            self.real[HEALTH, unit] = self.real[SHIELD, unit] = 0.0

    def _known(self, tags: Sequence[int]) -> list[int]:
        return [self._unit_of[tag] for tag in tags if tag in self._unit_of]

    def set_value(self, tag: int, kind: int, value: float) -> None:
        """A unit takes no more than its type can have; without life it dies."""
        fields = {
            debug.DebugSetUnitValue.Life: (HEALTH, self.world.stats[MAX_HEALTH]),
            debug.DebugSetUnitValue.Shields: (SHIELD, self.world.stats[MAX_SHIELD]),
            debug.DebugSetUnitValue.Energy: (ENERGY, engine.MOST_ENERGY * (self.world.stats[HEALER] > 0.0)),
        }
        field, most = fields[kind]
        value = value if math.isfinite(value) else 0.0
        for unit in self._known([tag]):
            if self.real[HEALTH, unit] > 0.0:
                self.real[field, unit] = np.float32(min(max(value, 0.0), most[unit]))

    def save(self) -> Any:
        arrays = self.real.copy(), self.whole.copy(), self.tally.copy()
        return arrays, list(self._tags), self._created, list(self._alive), list(self._dead)

    def load(self, saved: Any) -> None:
        arrays, tags, self._created, alive, dead = saved
        for mine, theirs in zip((self.real, self.whole, self.tally), arrays, strict=True):
            mine[:] = theirs
        self._alive, self._dead = list(alive), list(dead)
        self._tag_units(tags)

    def query(self, request: Any, response: Any) -> None:
        for asked in request.pathing:
            start = asked.start_pos
            if asked.HasField("unit_tag"):
                units = self._known([asked.unit_tag])
                start = common.Point2D(x=self.real[X, units[0]], y=self.real[Y, units[0]]) if units else None
            response.pathing.add(distance=self._distance(start, asked.end_pos) if start else 0.0)
        for asked in request.abilities:
            answer = response.abilities.add(unit_tag=asked.unit_tag)
            for unit in self._known([asked.unit_tag]):
                answer.unit_type_id = self._units[unit].unit_type
                if unit < self.world.agents and self.real[HEALTH, unit] > 0.0:
                    for ability in self._abilities(unit):
                        answer.abilities.add(ability_id=ability, requires_point=False)
        for asked in request.placements:
            place = asked.target_pos
            free = self._walkable(place.x, place.y)
            response.placements.add(result=error.Success if free else error.CantBuildLocationInvalid)

    def _walkable(self, x: float, y: float) -> bool:
        return 0.0 <= x < SIZE and 0.0 <= y < SIZE and bool(self.map.walkable[int(x), int(y)])

    def _distance(self, start: Any, end: Any) -> float:
        """The way between two points around walls, from cell to cell; 0 where there is none, as the game says it."""
        if not (self._walkable(start.x, start.y) and self._walkable(end.x, end.y)):
            return 0.0
        x, y, way, length = start.x, start.y, self.world.way, 0.0
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
        tables = api.ResponseData()
        if request.ability_id:
            tables.abilities.extend(draw_ability(number) for number in [*ABILITIES, *_SPECIFIC])
        if request.unit_type_id:
            tables.units.extend(draw_type(kind, number) for kind, number in UNITS.items())
            for kind, number in self.agent_types.items():
                own = draw_type(kind, number)
                own.name, own.unit_alias = f"{own.name}Agent", UNITS[kind]
                tables.units.append(own)
        return tables


def draw_ability(number: int) -> Any:
    """AbilityData of one of ABILITIES, or of the general one that stands for it."""
    ability = _SPECIFIC.get(number, number)
    name, target, general = ABILITIES[ability]
    message = data_pb.AbilityData(
        ability_id=number,
        link_name=name.lower(),
        link_index=0,
        button_name=name,
        friendly_name=name,
        remaps_to_ability_id=general if number == ability else 0,
        available=True,
        target=data_pb.AbilityData.Target.Value(target),
        allow_minimap=target == "PointOrUnit",
        allow_autocast=False,
        is_building=False,
        is_instant_placement=False,
    )
    if ability == HEAL:
        message.cast_range = engine.HEAL_RANGE
    return message


def draw_type(kind: str, number: int) -> Any:
    """UnitTypeData of a type, under a number. Speed and periods are per second of 16 loops."""
    unit = DATA["units"][kind]
    message = data_pb.UnitTypeData(
        unit_id=number,
        name=kind.title().replace("_", ""),
        available=True,
        cargo_size=0,
        mineral_cost=0,
        vespene_cost=0,
        food_required=1.0,
        race=_RACES[unit["race"]],
        sight_range=unit["sight"],
        movement_speed=unit["speed"],
        armor=unit["armor"],
        attributes=[data_pb.Attribute.Value(name.title()) for name in unit["attributes"]],
    )
    for weapon in unit["weapons"]:
        message.weapons.add(
            type=data_pb.Weapon.Any if weapon["targets"] == "both" else data_pb.Weapon.Ground,
            damage=weapon["damage"],
            attacks=weapon["hits"],
            range=weapon["range"],
            speed=weapon["period"],
            damage_bonus=[
                {"attribute": data_pb.Attribute.Value(name.title()), "bonus": bonus}
                for name, bonus in weapon["bonus"].items()
            ],
        )
    return message
