"""Battles on the server of the StarCraft II API: equal to the embedded engine's bit for bit, fully observed."""

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("pysc2")
pytest.importorskip("websockets")

from marl.envs.sc2.server import Session
from marl.envs.smac import make
from marl.envs.smac.engine.fields import COOLDOWN, ENERGY, FLIES, HEALTH, HITS_AIR, SHIELD, X, Y
from marl.envs.smac.maps import DATA, load_map
from marl.envs.smac.sc2.serve import BUILD, VERSIONS, SmacLibrary, make_install
from tests.support.sc2 import Asker, api

ALLY, ENEMY = 1, 4
STOP, MOVE, ATTACK, HEAL, SMART = 4, 16, 23, 386, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_install(tmp_path_factory.mktemp("game"))


@pytest.fixture
def ask(folder, tmp_path):
    return Asker(Session(SmacLibrary(), VERSIONS[BUILD], folder, tmp_path).handle)


def smac_grid(image):
    """(x, y) bool, as SMAC reads one bit a point: a row of bytes for each of the first axis, which it then turns."""
    rows = np.frombuffer(image.data, np.uint8).reshape(image.size.x, image.size.y // 8)
    bits = [[byte >> bit & 1 for byte in row for bit in range(7, -1, -1)] for row in rows.tolist()]
    return np.array(bits, bool).T


def burny_grid(image):
    """(x, y) bool, as python-sc2 reads it: rows from y = 0 on."""
    bits = np.unpackbits(np.frombuffer(image.data, np.uint8))
    return bits.reshape(image.size.y, image.size.x).T.astype(bool)


@pytest.mark.parametrize("name", ["3m", "corridor", "2c_vs_64zg", "so_many_baneling"])
def test_the_ground_is_the_map_s(ask, name):
    ask.begin(name)
    info = ask(game_info={}).game_info
    walkable, ground = load_map(name).walkable, info.start_raw
    assert not np.array_equal(walkable, walkable.T)
    for grid in (ground.pathing_grid, ground.placement_grid):
        assert grid.bits_per_pixel == 1
        np.testing.assert_array_equal(smac_grid(grid), walkable)
        np.testing.assert_array_equal(burny_grid(grid), walkable)
    assert len(ground.terrain_height.data) == 1024
    assert ground.terrain_height.bits_per_pixel == 8
    area = ground.playable_area
    assert (area.p0.x, area.p0.y, area.p1.x, area.p1.y, ground.map_size.x, ground.map_size.y) == (0, 0, 32, 32, 32, 32)
    (start,) = ground.start_locations
    assert walkable[int(start.x), int(start.y)]


@pytest.mark.parametrize("name", ["3m", "MMM2", "1c3s5z", "2s_vs_1sc", "bane_vs_bane"])
def test_the_units_are_the_map_s(ask, name):
    battle_map = load_map(name)
    ask.begin(name)
    observation = ask.observe().observation
    units = list(observation.raw_data.units)
    assert observation.game_loop == 0
    kinds = sorted(set(battle_map.types[: battle_map.num_agents]))
    expected = [1970 + kinds.index(kind) for kind in battle_map.types[: battle_map.num_agents]]
    assert [unit.unit_type for unit in units if unit.alliance == ALLY] == expected
    table = {unit.unit_id: unit for unit in ask(data={"unit_type_id": True}).data.units}
    for unit, kind, place in zip(units, battle_map.types, battle_map.start, strict=True):
        data = DATA["units"][kind]
        told = (unit.health, unit.health_max, unit.shield, unit.shield_max)
        assert told == (data["hp"], data["hp"], data["shield"], data["shield"])
        assert (unit.pos.x, unit.pos.y) == tuple(np.float32(place))
        assert (unit.energy, unit.energy_max) == ((50, 200) if kind == "medivac" else (0, 0))
        assert unit.radius == np.float32(data["radius"])
        assert unit.is_flying == (kind == "medivac")
        assert unit.owner == (1 if unit.alliance == ALLY else 2)
        assert (unit.build_progress, unit.display_type, unit.cloak) == (1.0, 1, 3)
        assert unit.alliance == ALLY or not (unit.HasField("weapon_cooldown") or unit.orders)
        row = table[unit.unit_type]
        assert (row.movement_speed, row.armor) == (np.float32(data["speed"]), data["armor"])
        assert row.name.startswith(kind.title().replace("_", ""))
        assert len(row.weapons) == len(data["weapons"])
    assert len({unit.tag for unit in units}) == len(units)
    assert observation.player_common.army_count == battle_map.num_agents
    assert observation.raw_data.map_state.visibility.data == bytes([2]) * 1024
    assert observation.raw_data.map_state.creep.data == bytes(128)


FIELDS = [X, Y, HEALTH, SHIELD, ENERGY, COOLDOWN]


class Mirror:
    """SMAC's way to play, message by message, next to an environment of the embedded engine."""

    def __init__(self, ask, name, seed):
        self.ask, self.env = ask, make(name)
        self.agents = self.env.spec.num_agents
        self.heals = [kind == "medivac" for kind in self.env._battles.map.types]
        stats = self.env._battles.world.stats
        self.reaches = (stats[HITS_AIR, :, None] > 0) | (stats[FLIES] == 0)
        self.obs = self.env.reset(seed)
        ask.begin(name, seed)
        self.tags = [unit.tag for unit in ask.units()]

    def compare(self):
        unit_float = self.env._battles.battle.unit_float[0]
        units = {unit.tag: unit for unit in self.ask.units()}
        living = [column for column, tag in enumerate(self.tags) if tag in units]
        assert living == np.flatnonzero(unit_float[HEALTH] > 0).tolist()
        for column in living:
            unit = units[self.tags[column]]
            told = [unit.pos.x, unit.pos.y, unit.health, unit.shield, unit.energy, unit.weapon_cooldown]
            known = unit_float[FIELDS, column].tolist()
            count = 6 if column < self.agents else 5
            assert told[:count] == known[:count]

    def act(self, actions):
        for agent in np.flatnonzero(self.obs.alive):
            action, tag = int(actions[agent]), self.tags[agent]
            x, y = self.env._battles.battle.unit_float[0, [X, Y], agent]
            if action == 1:
                self.ask.command(STOP, tag)
            elif action < 6:
                step = {2: (0, 2), 3: (0, -2), 4: (2, 0), 5: (-2, 0)}[action]
                assert self.ask.command(MOVE, tag, place=(x + step[0], y + step[1])) == 1
            elif self.heals[agent]:
                self.ask.command(HEAL, tag, target=self.tags[action - 6])
            else:
                target = self.agents + action - 6
                taken = self.ask.command(ATTACK, tag, target=self.tags[target]) == 1
                assert taken == self.reaches[agent, target]
        step = self.env.step(actions)
        self.obs = step.obs
        self.ask(step={"count": 8})
        return step.terminated or step.truncated

    def reset(self):
        self.obs = self.env.reset()
        living = [unit.tag for unit in self.ask.units()]
        if living:
            self.ask.kill(*living)
        self.ask(step={"count": 2})
        tags = [unit.tag for unit in self.ask.units()]
        assert not set(tags) & set(self.tags)
        self.tags = tags


@pytest.mark.parametrize("name", ["3m", "MMM2", "2s3z", "corridor", "2c_vs_64zg", "bane_vs_bane", "2m_vs_1z"])
def test_battles_are_bit_for_bit_those_of_the_embedded_engine(ask, name):
    """Over episodes too: the random stream goes on with the map's own respawn."""
    random = np.random.default_rng(3)
    mirror = Mirror(ask, name, 2**32 - 5)
    mirror.compare()
    over, episodes = False, 0
    for number in range(70):
        chances = mirror.obs.action_mask * np.where(np.arange(mirror.env.spec.action_size) < 6, 1.0, 4.0)
        actions = np.array([random.choice(len(row), p=row / row.sum()) for row in chances])
        over = mirror.act(actions)
        mirror.compare()
        if over or number in (30, 50):
            mirror.reset()
            mirror.compare()
            episodes += 1
    assert episodes >= 2


@pytest.mark.parametrize("loops", [1, 5, 8, 24])
def test_a_step_is_as_long_as_it_is_asked_to_be(ask, loops):
    ask.begin()
    before = ask.units()[0]
    ask.command(MOVE, before.tag, place=(before.pos.x - 8, before.pos.y))
    assert ask(step={"count": loops}).step.simulation_loop == loops
    after = ask.units()[0]
    assert before.pos.x - after.pos.x == pytest.approx(loops * 2.25 / 16, abs=1e-5)


def test_both_sides_are_created_anew_once_they_are_dead(ask):
    ask.begin()
    first = [unit.tag for unit in ask.units()]
    ask(step={"count": 40})
    ask.kill(*first[:3])
    ask(step={"count": 2})
    assert [unit.tag for unit in ask.units()] == first[3:]
    ask.kill(*first)
    assert ask.units() == []
    ask(step={"count": 2})
    second = ask.units()
    assert len(second) == 6
    assert all(unit.health == unit.health_max for unit in second)
    assert not {unit.tag for unit in second} & set(first)
    assert ask.observe().observation.game_loop == 44
    ask.kill(*first)
    assert [unit.tag for unit in ask.units()] == [unit.tag for unit in second]


def test_who_die_in_a_step_are_seen_dead_before_they_are_replaced(ask):
    """A draw: a client must see the empty field, or it would take the new battle for the old one."""
    ask.begin("bane_vs_bane")
    units = ask.units()
    mine, theirs = units[0], units[-1]
    ask.kill(*(unit.tag for unit in units[1:-1]))
    for unit in (mine, theirs):
        ask(debug={"debug": [{"unit_value": {"unit_tag": unit.tag, "unit_value": 2, "value": 0.5}}]})
    ask.command(ATTACK, mine.tag, target=theirs.tag)
    left = [mine, theirs]
    for _ in range(60):
        if not left:
            break
        assert [unit.tag for unit in left] == [mine.tag, theirs.tag]
        ask(step={"count": 8})
        left = ask.units()
    assert left == []
    assert {mine.tag, theirs.tag} == set(ask.observe().observation.raw_data.event.dead_units)
    ask(step={"count": 1})
    assert len(ask.units()) == len(units)


def test_deaths_are_events_of_the_step_in_which_they_happen(ask):
    ask.begin()
    tags = [unit.tag for unit in ask.units()]
    ask.kill(tags[1])
    ask(step={"count": 1})
    assert list(ask.observe().observation.raw_data.event.dead_units) == [tags[1]]
    ask(step={"count": 1})
    assert list(ask.observe().observation.raw_data.event.dead_units) == []


def test_orders_and_their_results(ask):
    ask.begin("MMM")
    units = ask.units()
    mine, theirs = units[:10], units[10:]
    marauder, marine, medivac = mine[0].tag, mine[2].tag, mine[9].tag
    enemy, flyer = theirs[0].tag, theirs[-1].tag
    names = api.DESCRIPTOR.pool.FindEnumTypeByName("SC2APIProtocol.ActionResult").values_by_name
    cases = [
        ("Success", (MOVE, marine), {"place": (10, 16)}),
        ("Success", (3794, marine), {"place": (10, 16)}),
        ("Success", (MOVE, marine, marauder), {"target": enemy}),
        ("Success", (ATTACK, marine), {"target": flyer}),
        ("Success", (SMART, marine), {"target": enemy}),
        ("Success", (ATTACK, marine), {"place": (9, 9)}),
        ("CantTargetThatUnit", (ATTACK, marauder), {"target": flyer}),
        ("CantTargetThatUnit", (ATTACK, marine), {"target": 12345}),
        ("CantTargetYourOwnUnits", (ATTACK, marine), {"target": marauder}),
        ("NotSupported", (ATTACK, medivac), {"target": enemy}),
        ("NotSupported", (HEAL, marine), {"target": marauder}),
        ("NotSupported", (999, marine), {}),
        ("NotSupported", (-1, marine), {}),
        ("CantTargetThatUnit", (HEAL, medivac), {"target": marine}),
        ("MustTargetFriendlyUnits", (HEAL, medivac), {"target": enemy}),
        ("MustTargetUnit", (HEAL, medivac), {"place": (1, 1)}),
        ("MustTargetUnit", (MOVE, marine), {}),
        ("YouCantControlThatUnit", (STOP, enemy), {}),
        ("Error", (STOP, 12345), {}),
        ("CantQueueThatOrder", (STOP, marine), {"queue_command": True}),
        ("Success", (STOP, marauder, 12345), {}),
        ("Success", (STOP, marauder), {"queue_command": True}),
    ]
    for name, arguments, keywords in cases:
        assert ask.command(*arguments, **keywords) == names[name].number, (arguments, keywords)
        errors = ask.observe().action_errors
        wrong = 12345 in arguments if name == "Success" else True
        assert [error.unit_tag for error in errors] == ([arguments[-1]] if wrong else [])
        assert ask.observe().action_errors == []


@pytest.mark.parametrize("name", ["3m", "corridor"])
def test_a_place_that_is_nowhere_is_refused(ask, name):
    """The engine is compiled and checks no index."""
    ask.begin(name)
    tag = ask.units()[0].tag
    for place in ((np.nan, 3), (3, np.inf), (-np.inf, 3), (1e9, 3), (3, -1e30), (70, 3)):
        assert ask.command(MOVE, tag, place=place) == 85
    assert ask.command(MOVE, tag, place=(33, 16)) == (1 if name == "3m" else 85)
    ask(step={"count": 100})
    assert all(0 <= unit.pos.x < 32 and 0 <= unit.pos.y < 32 for unit in ask.units(ALLY))


def test_an_observation_tells_what_was_ordered(ask):
    ask.begin("MMM")
    units = ask.units()
    hurt = {"unit_tag": units[2].tag, "unit_value": 2, "value": 7.0}
    ask(debug={"debug": [{"unit_value": hurt}]})
    ask.command(HEAL, units[9].tag, target=units[2].tag)
    ask.command(MOVE, units[0].tag, place=(3.3, 20.0))
    ask.command(ATTACK, units[1].tag, target=units[10].tag)
    response = ask.observe()
    shown = response.observation.raw_data.units
    assert shown[2].health == 7.0
    assert (shown[9].orders[0].ability_id, shown[9].orders[0].target_unit_tag) == (HEAL, units[2].tag)
    assert (shown[0].orders[0].ability_id, shown[0].orders[0].target_world_space_pos.x) == (MOVE, np.float32(3.3))
    assert (shown[1].orders[0].ability_id, shown[1].engaged_target_tag) == (ATTACK, units[10].tag)
    assert shown[3].orders == []
    assert [action.action_raw.unit_command.ability_id for action in response.actions] == [HEAL, MOVE, ATTACK]
    assert ask.observe().actions == []


def test_queries(ask):
    ask.begin("2c_vs_64zg")
    units = ask.units()
    own, enemy = units[0], units[-1]
    walkable = load_map("2c_vs_64zg").walkable
    wall, ground = np.argwhere(~walkable)[0] + 0.5, np.argwhere(walkable)[0] + 0.5

    def place(x, y):
        return {"x": float(x), "y": float(y)}

    near = place(own.pos.x + 0.5, own.pos.y)
    pathing = [
        {"unit_tag": own.tag, "end_pos": near},
        {"start_pos": place(own.pos.x, own.pos.y), "end_pos": place(16, 9)},
        {"unit_tag": own.tag, "end_pos": place(*wall)},
        {"unit_tag": 99, "end_pos": near},
    ]
    placements = [{"ability_id": 318, "target_pos": place(*point)} for point in (ground, wall, (-3, 40))]
    abilities = [{"unit_tag": tag} for tag in (own.tag, enemy.tag, 99)]
    answer = ask(query={"pathing": pathing, "abilities": abilities, "placements": placements}).query
    short, long, blocked, unknown = (path.distance for path in answer.pathing)
    assert short == pytest.approx(0.5, abs=1e-5)
    assert (blocked, unknown) == (0.0, 0.0)
    assert own.pos.y > 14
    assert 25 < long < 35  # around the wall between the high and the low ground
    assert [[ability.ability_id for ability in row.abilities] for row in answer.abilities] == [
        [SMART, STOP, MOVE, ATTACK],
        [],
        [],
    ]
    assert answer.abilities[0].unit_type_id == own.unit_type
    assert [row.result for row in answer.placements] == [1, 44, 44]


def test_the_tables_are_what_clients_look_up(ask):
    ask.begin("1c3s5z")
    tables = ask(data={"ability_id": True, "unit_type_id": True}).data
    units = {unit.unit_id: unit for unit in tables.units}
    assert {unit.unit_type for unit in ask.units()} <= set(units)
    assert units[98].attributes == [2, 3, 8]
    assert units[1970].unit_alias == 4
    zealot = units[73].weapons[0]
    assert (zealot.damage, zealot.attacks, zealot.type) == (8.0, 2, 1)
    assert [(bonus.attribute, bonus.bonus) for bonus in units[51].weapons[0].damage_bonus] == [(2, 10.0)]
    abilities = {ability.ability_id: ability for ability in tables.abilities}
    assert {MOVE, ATTACK, STOP, HEAL, SMART} <= set(abilities)
    assert {ability.remaps_to_ability_id for ability in tables.abilities} <= {0, *abilities}
    assert ask(data={"unit_type_id": True}).data.abilities == []
    assert ask(data={}).data == api.ResponseData()
