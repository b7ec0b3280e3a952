"""SMAC's battles in StarCraft II itself: one process of the game for each environment, stepped in parallel.

The task is that of the embedded engine, computed from the game's observations. Agents are numbered by unit type, x and
y, as in SMAC, and enemies in the game's order within their type.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import import_module
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from marl.envs.sc2 import ids
from marl.envs.sc2.game import Game, GameError, GameNotListeningError
from marl.envs.sc2.install import Install, find_install
from marl.envs.smac.battles import BattleBuffers
from marl.envs.smac.engine.fields import (
    COOLDOWN,
    COUNTED,
    EAST,
    ENERGY,
    FIRST_TARGET,
    HEALER,
    HEALTH,
    IGNORED,
    LAST,
    NO_ACTION,
    NORTH,
    RUNNING,
    RUNNING_ON,
    SHIELD,
    SOUTH,
    STEPS,
    STOP,
    WEST,
    X,
    Y,
)
from marl.envs.smac.maps import DATA, SIZE, BattleMap
from marl.envs.smac.options import SmacOptions
from marl.envs.smac.task.observation import update_health_shares
from marl.envs.smac.task.step import finish_step, observe_battle, record_actions
from marl.errors import ConfigError
from marl.protocols import State

api: Any = import_module("s2clientprotocol.sc2api_pb2")  # what marl.envs.sc2.game has made importable
common: Any = import_module("s2clientprotocol.common_pb2")
debug: Any = import_module("s2clientprotocol.debug_pb2")
raw: Any = import_module("s2clientprotocol.raw_pb2")

FOLDER = "SMAC_Maps"
GET_MAPS = (
    "unzip SMAC_Maps.zip of https://github.com/oxwhirl/smac/releases/tag/v0.1-beta1 in the folder Maps of the game, "
    f"so that it holds the folder {FOLDER}"
)

ENEMY_TYPES = {number: name for name, number in ids.UNITS.items()}
"""Unit types by the game's ids. Agents have types of the map's own, in the order of their names."""

SELF, ENEMY = 1, 4
"""The game's numbers of alliances."""

SHOWN = [X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN]
"""Fields that the game reports."""

MAX_WAITS = 100
"""Game loops within which a map has to create both sides again."""

MAX_FAILURES = 3
"""Number of lost games without a step in between after which an environment gives up."""

STUB = 2**32 - 1
"""Game loop of an observation that only says that the game is over."""


class SC2Battles(BattleBuffers):
    """E battles on one map, each in its own StarCraft II. A game starts with the first episode."""

    def __init__(self, task: str, num_envs: int, options: SmacOptions) -> None:
        super().__init__(task, num_envs, options)
        self.restarted = self._lost = np.zeros(num_envs, bool)
        opening = GameSetup(find_install(options.game_version), self.map, options)
        self._instances = [SC2Instance(opening, index) for index in range(num_envs)]
        self._worlds, self._rules = [self.world] * num_envs, [self.rules] * num_envs
        self._closed = False
        self._pool = ThreadPoolExecutor(num_envs)

    def seed(self, index: int, seed: int | None) -> None:
        """Let the next episode begin a new game with this seed. None draws a seed."""
        self._instances[index].seed(seed)

    def begin(self, indices: Sequence[int] | np.ndarray) -> None:
        """Begin an episode in each of the environments. Raises GameError if a game fails too often."""
        if self._closed:
            raise RuntimeError(f"{self.spec.name} is closed; make a new environment")
        self._each(self._begin, indices)

    def advance(self, action: np.ndarray) -> int:
        """Play one step of every battle into `view`. Return the number of ended episodes. Raises as `check`."""
        action = self.check(action)
        self._lost[:] = False
        self._each(lambda index: self._step(index, action), range(len(self._instances)))
        return int((self.battle.counters[:, RUNNING] == 0).sum())

    def _each(self, act: Callable[[int], None], indices: Iterable[int]) -> None:
        """Call `act` for several environments in parallel. Exceptions are raised when all are done."""
        first, *others = (int(index) for index in indices)
        waiting = [self._pool.submit(act, index) for index in others]
        try:
            act(first)
        finally:
            wait(waiting)
        for each in waiting:
            each.result()

    def _begin(self, index: int) -> None:
        instance, unit_float, counters = (
            self._instances[index],
            self.battle.unit_float[index],
            self.battle.counters[index],
        )
        counters[RUNNING] = 0
        while True:
            try:
                instance.begin(unit_float)
                break
            except GameError as error:
                instance.lose(error)
        unit_float[COUNTED] = unit_float[HEALTH] + unit_float[SHIELD]
        self.battle.unit_int[index, LAST] = -1
        counters[[STEPS, RUNNING, IGNORED]] = 0, 1, 0
        self._worlds[index] = self.world._replace(walkable=instance.ground)
        self._rules[index] = self.rules._replace(span_x=instance.span[0], span_y=instance.span[1])
        update_health_shares(self.world.stats, unit_float)
        observe_battle(self._rules[index], self._worlds[index], self.battle, self.view, index)

    def _step(self, index: int, action: np.ndarray) -> None:
        record_actions(self.rules, self.battle, self.view, action[index], index)
        unit_float, last = self.battle.unit_float[index], self.battle.unit_int[index, LAST]
        instance, world = self._instances[index], self._worlds[index]
        try:
            instance.step(self._orders(instance, unit_float, last), world.loops, unit_float)
        except GameError as error:
            self.view.reward[index], self.view.outcome[index] = 0.0, RUNNING_ON
            self.view.terminated[index], self.view.truncated[index] = False, True
            self.battle.counters[index, RUNNING] = 0
            self._lost[index] = True
            instance.lose(error)
        else:
            finish_step(self._rules[index], world, self.battle, self.view, index)

    def _orders(self, instance: "SC2Instance", unit_float: np.ndarray, last: np.ndarray) -> Any:
        """Return the agents' actions as one request to the game."""
        request = api.Request()
        request.action.SetInParent()  # also without a single order
        actions = request.action.actions
        tags, healers = instance.tags, self.world.stats[HEALER]
        for agent, choice in enumerate(last[: self.rules.agents].tolist()):
            if choice == NO_ACTION:
                continue
            command = actions.add().action_raw.unit_command
            command.unit_tags.append(tags[agent])
            if choice == STOP:
                command.ability_id = ids.STOP
            elif choice < FIRST_TARGET:
                command.ability_id = ids.MOVE
                x, y = unit_float[X, agent], unit_float[Y, agent]
                command.target_world_space_pos.x = x + self.rules.move * ((choice == EAST) - (choice == WEST))
                command.target_world_space_pos.y = y + self.rules.move * ((choice == NORTH) - (choice == SOUTH))
            elif self.rules.healers and healers[agent]:
                command.ability_id = ids.HEAL
                command.target_unit_tag = tags[choice - FIRST_TARGET]
            else:
                command.ability_id = ids.ATTACK
                command.target_unit_tag = tags[self.rules.agents + choice - FIRST_TARGET]
        return request

    def get_state(self, index: int) -> None:
        """Return None: the game cannot be restored."""

    def set_state(self, index: int, state: State) -> None:  # noqa: ARG002 - the interface of battles
        """Raises RuntimeError: the game cannot be restored."""
        raise RuntimeError(f"{self.spec.name}: StarCraft II cannot restore a state; get_state gives None")

    def close(self) -> None:
        """Quit all games."""
        if not self._closed:
            self._closed = True
            self.battle.counters[:, RUNNING] = 0
            self._each(lambda index: self._instances[index].close(), range(len(self._instances)))
            self._pool.shutdown()


class SC2Instance:
    """One environment's game, from launch to launch. For one battle, `tags` holds the unit tag of each column.

    The game reports `ground` (x, y), the walkable cells, and `span`, the width and height of the playable area, when a
    battle begins.
    """

    ground: np.ndarray
    span: tuple[float, float]

    def __init__(self, opening: "GameSetup", index: int) -> None:
        self.tags: list[int] = []
        self._opening, self._index = opening, index
        self._game: Game | None = None
        self._units: Any = ()
        self._columns: dict[int, int] = {}
        self._new_game = True
        self._stepped = self._played = False
        self._failures = 0
        self._replays = 0
        self.seed(None)

    def seed(self, seed: int | None) -> None:
        """Let the next battle begin a new game with this seed. None draws a seed."""
        self._seed: Any = np.random.SeedSequence(seed).entropy
        self._restarts = 0
        self._new_game = True

    def begin(self, unit_float: np.ndarray) -> None:
        """Start a battle and fill `unit_float` (fields, U). Raises GameError if the game fails."""
        if self._new_game:
            self._open()
        units = self._opening.arrange(self._assemble())
        self.tags = [unit.tag for unit in units]
        self._columns = {tag: column for column, tag in enumerate(self.tags)}
        self._new_game = False
        unit_float[:] = 0.0
        self._fill(unit_float)

    def step(self, orders: Any, loops: int, unit_float: np.ndarray) -> None:
        """Send the orders, play, and fill `unit_float` with the units. Raises GameError if the game fails."""
        self._observe(orders, loops)
        self._fill(unit_float)
        self._failures = 0
        self._stepped = self._played = True

    def lose(self, error: GameError) -> None:
        """Give the game up, so that the next battle begins a new one. Raises GameError after too many failures."""
        self._drop()
        self._failures += 1
        if not self._new_game:
            self._restarts += 1
            self._new_game = True
        name = f"smac/{self._opening.map.name}, environment {self._index}"
        if isinstance(error, GameNotListeningError) and not self._played:
            raise GameError(f"{name}: {error}") from error
        if self._failures >= MAX_FAILURES:
            raise GameError(
                f"{name}: lost {self._failures} times without a step in between, at last: {error}"
            ) from error
        getLogger("marl").warning("%s: %s\nA new game is started and a new episode begins.", name, error)

    def close(self) -> None:
        """Save the replay and quit the game."""
        self._save_replay()
        self._drop()

    def _drop(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def _open(self) -> None:
        """Begin a new game, in the running process if there is one."""
        self._save_replay()
        if self._game is None:
            self._game = Game(self._opening.install)
        info = self._game.new_game(self._opening.create(self._wire_seed()), self._opening.join())
        self.ground, self.span = read_ground(info), read_span(info)
        self._columns, self._stepped = {}, False
        self._observe()

    def _wire_seed(self) -> int:
        """Return the game's 32-bit seed: the given one if it fits and has not been played before."""
        if self._restarts == 0 and self._seed < 2**32:
            return int(self._seed)
        return int(np.random.SeedSequence(self._seed, spawn_key=(self._restarts,)).generate_state(1)[0])

    def _observe(self, before: Any = None, loops: int = 0) -> None:
        """Send the request `before`, play `loops`, and store the visible units, in one exchange."""
        requests = [] if before is None else [before]
        if loops:
            requests.append(api.Request(step=api.RequestStep(count=loops)))
        requests.append(api.Request(observation=api.RequestObservation()))
        assert self._game is not None
        response = self._game.ask(*requests)[-1]
        if response.status != api.in_game or response.observation.observation.game_loop == STUB:
            raise GameError(f"StarCraft II ended the game by itself, its status is {api.Status.Name(response.status)}")
        units = response.observation.observation.raw_data.units
        self._units = [unit for unit in units if unit.display_type == raw.Visible]

    def _assemble(self) -> list[Any]:
        """Return the units of a fresh battle: the map creates both sides once both are dead."""
        sides = self._opening.sides
        have: tuple[int, int] = (0, 0)
        for _ in range(MAX_WAITS):
            units = [unit for unit in self._units if unit.alliance in (SELF, ENEMY)]
            have = sum(unit.alliance == SELF for unit in units), sum(unit.alliance == ENEMY for unit in units)
            if any(unit.tag in self._columns for unit in units):
                kill = debug.DebugCommand(kill_unit=debug.DebugKillUnit(tag=[unit.tag for unit in units]))
                self._observe(api.Request(debug=api.RequestDebug(debug=[kill])), 2)
            elif have == sides:
                return units
            elif have[0] > sides[0] or have[1] > sides[1]:
                raise ConfigError(self._opening.complain(f"has {have[0]} agents and {have[1]} enemies"))
            else:
                self._observe(None, 1)
        raise GameError(
            f"the map {self._opening.path} has not created both sides within {MAX_WAITS} game loops; there are "
            f"{have[0]} of {sides[0]} agents and {have[1]} of {sides[1]} enemies"
        )

    def _fill(self, unit_float: np.ndarray) -> None:
        """Fill each unit's column from the last observation. Units that it does not show are dead."""
        columns, rows = [], []
        for unit in self._units:
            column = self._columns.get(unit.tag)
            if column is not None:
                place = unit.pos
                columns.append(column)
                rows.append((place.x, place.y, unit.health, unit.shield, unit.energy, unit.weapon_cooldown))
        unit_float[HEALTH] = 0.0
        if rows:
            unit_float[SHOWN, np.array(columns)[:, None]] = rows

    def _save_replay(self) -> None:
        """Save the game since the last new one. A replay that fails is only logged."""
        folder = self._opening.replay_dir
        if folder is None or self._game is None or not self._stepped:
            return
        self._replays += 1
        stamp = time.strftime("%Y-%m-%d-%H-%M-%S")
        name = f"{self._opening.map.name}-{stamp}-{os.getpid()}-{self._index}-{self._replays}.SC2Replay"
        try:
            (folder / name).write_bytes(self._game.save_replay())
        except (GameError, OSError) as error:
            getLogger("marl").warning("smac/%s: no replay is saved: %s", self._opening.map.name, error)


class GameSetup:
    """Requests that begin a game on a map, and the map's units."""

    def __init__(self, install: Install, battle_map: BattleMap, options: SmacOptions) -> None:
        self.install, self.map = install, battle_map
        self.path = f"{FOLDER}/{battle_map.name}.SC2Map"
        self.sides = battle_map.num_agents, battle_map.num_enemies
        self.replay_dir = None if options.replay_dir is None else _make_folder(options.replay_dir)
        self._data = install.read_map(self.path, GET_MAPS)
        self._difficulty = int(options.difficulty, 16)
        units = (DATA["units"][battle_map.types[index]] for index in (0, -1))
        self._races = [common.Race.Value(unit["race"].title()) for unit in units]

    def create(self, seed: int) -> Any:
        """Return the RequestCreateGame."""
        request = api.RequestCreateGame(realtime=False, random_seed=seed)
        request.local_map.map_path = self.path
        request.local_map.map_data = self._data
        request.player_setup.add(type=api.Participant)
        request.player_setup.add(type=api.Computer, race=self._races[1], difficulty=self._difficulty)
        return request

    def join(self) -> Any:
        """Return the RequestJoinGame."""
        return api.RequestJoinGame(race=self._races[0], options=api.InterfaceOptions(raw=True, score=False))

    def arrange(self, units: list[Any]) -> list[Any]:
        """Sort the units into the order of the map. Raises ConfigError for units other than SMAC's."""
        allies = sorted(
            (unit for unit in units if unit.alliance == SELF), key=lambda unit: (unit.unit_type, unit.pos.x, unit.pos.y)
        )
        kinds, agents = sorted({unit.unit_type for unit in allies}), self.sides[0]
        names = dict(zip(kinds, sorted(set(self.map.types[:agents])), strict=False))
        waiting: dict[tuple[int, str], list[Any]] = {}
        for unit in [*allies, *(unit for unit in units if unit.alliance == ENEMY)]:
            name = (names if unit.alliance == SELF else ENEMY_TYPES).get(unit.unit_type, "")
            self._check(unit, name)
            waiting.setdefault((unit.alliance, name), []).append(unit)
        slots = [(SELF if index < agents else ENEMY, name) for index, name in enumerate(self.map.types)]
        if Counter(slots) != {slot: len(held) for slot, held in waiting.items()}:
            raise ConfigError(self.complain(f"has {_tell(waiting)}; SMAC's has {_tell(Counter(slots))}"))
        return [waiting[slot].pop(0) for slot in slots]

    def _check(self, unit: Any, name: str) -> None:
        side = "agent" if unit.alliance == SELF else "enemy"
        if not name:
            raise ConfigError(self.complain(f"has an {side} of unit type {unit.unit_type}, which no map of SMAC has"))
        data = DATA["units"][name]
        told, known = (unit.health_max, unit.shield_max), (data["hp"], data["shield"])
        if tuple(map(round, told)) != known:
            raise ConfigError(
                self.complain(
                    f"has an {side} of unit type {unit.unit_type}, a {name}, of at most {told} health and shield, not "
                    f"{known} as in SMAC"
                )
            )

    def complain(self, what: str) -> str:
        """Return the message that the map is not SMAC's."""
        return f"smac/{self.map.name}: the map {self.path} {what}. Put SMAC's own map in its place: {GET_MAPS}"


def _make_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"replay_dir={name!r}, which cannot be made: {error}; name another folder") from error
    return folder


def _tell(sides: Mapping[tuple[int, str], Any]) -> str:
    counted = ((side, name, held if isinstance(held, int) else len(held)) for (side, name), held in sides.items())
    return ", ".join(f"{count} {'allied' if side == SELF else 'enemy'} {name}" for side, name, count in counted)


def read_span(info: Any) -> tuple[float, float]:
    """Return width and height of the playable area that a ResponseGameInfo reports, in map units.

    SMAC's state divides by them, and takes the center of the whole map, whose size must be SMAC's. Raises ConfigError
    for a map of another size and for a playable area that is empty or exceeds the map.
    """
    size, area = info.start_raw.map_size, info.start_raw.playable_area
    if (size.x, size.y) != (SIZE, SIZE):
        raise ConfigError(f"the game's map has map_size={size.x} x {size.y}; SMAC's maps have {SIZE} x {SIZE}")
    low, high = area.p0, area.p1
    if not (0 <= low.x < high.x <= SIZE and 0 <= low.y < high.y <= SIZE):
        raise ConfigError(
            f"the game reports playable_area=({low.x}, {low.y}) to ({high.x}, {high.y}), which is no part of a map of "
            f"{SIZE} x {SIZE}. Use SMAC's own maps: {GET_MAPS}"
        )
    return float(high.x - low.x), float(high.y - low.y)


def read_ground(info: Any) -> np.ndarray:
    """Return the walkable cells (x, y) bool that a ResponseGameInfo reports.

    With one bit a cell, 1 is walkable and rows run from the south. With eight bits, as in older games, 0 is walkable
    and rows run from the north. Raises ConfigError for a grid of another size.
    """
    image = info.start_raw.pathing_grid
    width, height = image.size.x, image.size.y
    cells = np.frombuffer(image.data, np.uint8)
    if image.bits_per_pixel == 1:
        cells = np.unpackbits(cells)
    if image.bits_per_pixel not in (1, 8) or len(cells) != width * height or (width, height) != (SIZE, SIZE):
        raise ConfigError(
            f"the game's pathing grid has {width} x {height} cells of {image.bits_per_pixel} bits in {len(image.data)} "
            f"bytes; SMAC's maps have {SIZE} x {SIZE} of 1 or 8"
        )
    rows = cells.reshape(height, width)
    return np.ascontiguousarray((rows > 0 if image.bits_per_pixel == 1 else rows[::-1] == 0).T)
