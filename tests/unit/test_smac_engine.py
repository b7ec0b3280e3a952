"""The battle engine against numbers that the game's unit table gives exactly."""

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac.engine import combat
from marl.envs.smac.engine.battle import act_enemy, choose_target
from marl.envs.smac.engine.fields import (
    ATTACKING,
    COOLDOWN,
    ENERGY,
    HEALING,
    HEALTH,
    IDLE,
    IMPACT,
    ORDER,
    SHIELD,
    TARGET,
    WINDUP,
    X,
    Y,
)
from marl.envs.smac.engine.pathing import fill_positions
from marl.envs.smac.maps import DATA, TASKS, load_map, waypoints
from tests.support.smac import Arena

FIRST = 6
"""The action that attacks the first enemy (or heals the first ally)."""


@pytest.mark.parametrize(
    ("attacker", "victim", "hits"),
    [
        ("marine", "marine", 8),  # 45 / 6
        ("marine", "zealot", 29),  # 8 hits leave 2 of the shield, the 9th 97 health, then 5 a hit
        ("marine", "stalker", 30),  # 13 hits leave 2 of the shield, the 14th 77 health, then 5 a hit
        ("marauder", "stalker", 9),  # 4 x 20 on the shield, then 19 a hit
        ("marauder", "zealot", 17),  # 5 x 10 on the shield, then 9 a hit
        ("stalker", "marauder", 10),  # 14 - 1
        ("stalker", "zealot", 17),
        ("zealot", "zergling", 5),  # two hits a strike
        ("zergling", "zealot", 35),  # 10 on the shield, then 4 a hit
        ("hydralisk", "zealot", 14),  # the 5th breaks the shield and takes 9, then 11 a hit
        ("spine_crawler", "stalker", 6),  # 30 a hit; the 3rd breaks the shield and takes 9, then 29
        ("baneling", "zergling", 1),  # 20 + 15 against light
        ("baneling", "zealot", 5),  # 35: the 2nd takes 19 health, then 34
        ("baneling", "stalker", 9),  # 20: 4 on the shield, then 19
        ("colossus", "marauder", 7),  # 19 a beam
        ("zergling", "spine_crawler", 100),  # 5 - 2
    ],
)
def test_hits_to_kill(attacker, victim, hits):
    arena = Arena([(attacker, 10, 10)], [(victim, 12, 10)])
    taken = 0
    while arena.health[1] > 0:
        combat.damage(arena.world.stats, arena.unit_float, arena.unit_int, 0, 1)
        taken += 1
    assert taken == hits
    assert arena.shield[1] == 0


def test_a_hit_takes_at_least_half_a_point():
    arena = Arena([("zergling", 10, 10)], [("spine_crawler", 12, 10)])
    arena.world.stats[-2, 1] = 1.0  # one hit's damage, against 2 armor
    combat.damage(arena.world.stats, arena.unit_float, arena.unit_int, 0, 1)
    assert arena.health[1] == 299.5


def damage_times(arena, unit, loops):
    """The loops in which a unit lost health or shield."""
    times, before = [], arena.health[unit] + arena.shield[unit]
    for loop in range(loops):
        arena.play()
        now = arena.health[unit] + arena.shield[unit]
        if now < before - 1e-9:
            times.append(loop)
        before = now
    return np.array(times)


@pytest.mark.parametrize(
    ("kind", "distance", "wind_up"),
    [
        ("marine", 5.7, 1),  # 0.05 s
        ("stalker", 6.2, 8),  # 0.167 s is 2.672 loops, and 4.325 units of flight at 18.75 / 16 a loop 4 loops more
        ("hydralisk", 5.9, 6),  # 0.208 s is 3.328 loops, and 3.65 units at 2.5 a loop
    ],
)
def test_rate_of_fire(kind, distance, wind_up):
    arena = Arena([(kind, 10, 10)], [("spine_crawler", 10 + distance, 10)])
    arena.world.stats[0, 1] = arena.unit_float[HEALTH, 1] = 1e6
    arena.world.stats[-2, 1] = 10.0
    arena.world.stats[-1, 0] = 0.0
    arena.unit_float[HEALTH, 0] = 1e6
    arena.command(0, FIRST)
    times = damage_times(arena, 1, 4000)
    flight = 0.0
    weapon = DATA["units"][kind]["weapons"][0]
    radii = DATA["units"][kind]["radius"] + 0.875
    if "missile_speed" in weapon:
        flight = np.ceil((distance - radii) / (weapon["missile_speed"] / 16)) - 1
    assert times[0] == np.ceil(weapon["damage_point"] * 16) + flight
    assert wind_up >= times[0]
    period = weapon["period"] * 16
    gaps = np.diff(times)
    assert gaps.min() == np.ceil(period - 1)
    assert gaps.max() == np.ceil(period + 2)
    assert gaps.mean() == pytest.approx(period + 0.5 + 0.5, abs=0.25), "uniform in [-1, 2], rounded up"


def test_a_zealot_hits_twice_and_only_while_it_lives():
    arena = Arena([("zealot", 10, 10)], [("marauder", 11.1, 10)])
    arena.command(0, FIRST)
    assert damage_times(arena, 1, 10).tolist() == [0, 4]  # 0.28 s is 4.48 loops, the first of them in the same loop
    assert arena.health[1] == 125 - 2 * 7
    arena = Arena([("zealot", 10, 10)], [("marauder", 11.1, 10)])
    arena.command(0, FIRST)
    arena.play()
    arena.unit_float[HEALTH, 0] = 0
    arena.play(10)
    assert arena.health[1] == 125 - 7


def test_a_missile_in_flight_outlives_its_shooter():
    arena = Arena([("stalker", 10, 10)], [("spine_crawler", 16.5, 10)])
    arena.world.stats[-1, 0] = 0.0
    arena.command(0, FIRST)
    while arena.unit_float[IMPACT, 0] <= 0:
        arena.play()
    arena.unit_float[HEALTH, 0] = 0
    arena.play(8)
    assert arena.health[1] == pytest.approx(300 - 12, abs=0.2)  # 10 + 4 - 2, less the regeneration


def test_two_equal_marines_win_equally_often():
    wins = 0
    for seed in range(300):
        arena = Arena([("marine", 10, 10)], [("marine", 14, 10)], seed=seed)
        arena.command(0, FIRST)
        while arena.health.all():
            arena.play()
        assert (arena.health > 0).sum() == 1
        wins += arena.health[0] > 0
    assert abs(wins - 150) < 4 * np.sqrt(300 / 4)


def test_more_marines_win():
    for seed in range(5):
        arena = Arena([("marine", 10, 10)], [("marine", 14, 10), ("marine", 14, 11)], seed=seed)
        arena.command(0, FIRST)
        arena.play(200)
        assert arena.health[0] == 0
        assert (arena.health[1:] > 0).all()


def play_stalker(kite):
    """Health and shield left to a stalker and a zealot; kiting, the stalker runs in a square between its shots."""
    arena = Arena([("stalker", 2, 8)], [("zealot", 2, 1)], goal=(2.0, 8.0))
    corners, turn = ((2, 30, 2), (30, 30, 4), (30, 2, 3), (2, 2, 5)), 0
    for _ in range(600):
        if not arena.health.all():
            break
        x, y, away = corners[turn % 4]
        if np.hypot(*(arena.places[0] - (x, y))) < 1.5:
            turn += 1
        flee = kite and arena.unit_float[COOLDOWN, 0] > 2
        arena.command(0, away if flee else FIRST)
        arena.play(4)
    return arena.health + arena.shield


def test_kiting_beats_a_zealot_and_standing_does_not():
    standing, kiting = play_stalker(False), play_stalker(True)
    assert standing[0] == 0
    assert kiting[1] == 0
    assert kiting[0] > 100


def test_movement_is_exact():
    for kind, way in (("marine", 1.125), ("stalker", 1.47655), ("baneling", 1.25), ("colossus", 1.125)):
        arena = Arena([(kind, 10, 10)], [("marine", 30, 30)])
        arena.command(0, 4)
        arena.play(8)
        np.testing.assert_allclose(arena.places[0], (10 + way, 10), atol=1e-5)
        arena.play(100)
        np.testing.assert_allclose(arena.places[0], (12, 10), err_msg="a move goes 2 and ends")
    arena = Arena([("medivac", 10, 10), ("marine", 20, 10)], [("marine", 30, 30)])
    arena.command(0, 2)
    arena.play(8)
    speeds = np.arange(1, 9) * 2.3125 / 256
    np.testing.assert_allclose(arena.places[0], (10, 10 + speeds.sum()), atol=1e-5, err_msg="a medivac accelerates")


def test_a_medivac_heals_and_pays():
    arena = Arena([("marauder", 10, 10), ("medivac", 12, 10)], [("marine", 30, 30)])
    arena.unit_float[HEALTH, 0] = 50
    arena.command(1, FIRST)
    arena.play(16)
    assert arena.health[0] == pytest.approx(59)  # 9 a second
    assert arena.unit_float[ENERGY, 1] == pytest.approx(50 + 0.5625 - 9 * 0.33)
    arena.unit_float[ENERGY, 1] = 0
    arena.play(1)
    assert arena.health[0] == pytest.approx(59 + 0.5625 / 16 / 0.33, abs=1e-5)


def test_a_medivac_walks_to_a_patient_and_keeps_its_order_when_told_to_heal_the_healthy():
    arena = Arena([("marine", 4, 10), ("marine", 20, 10), ("medivac", 12, 10)], [("marine", 30, 30)] * 3)
    arena.unit_float[HEALTH, 0] = 10
    arena.command(2, FIRST)
    arena.command(2, FIRST + 1)
    assert arena.unit_int[TARGET, 2] == 0
    arena.play(120)
    assert arena.health[0] == pytest.approx(45)
    assert np.hypot(*(arena.places[2] - arena.places[0])) == pytest.approx(4 + 0.75 + 0.375, abs=1e-6)


def test_an_enemy_medivac_chooses_the_weakest():
    arena = Arena([("marine", 2, 2)], [("medivac", 20, 20), ("marine", 22, 20), ("marauder", 23, 20)])
    arena.unit_float[HEALTH, 2:] = 30, 40  # two thirds, and less than a third
    arena.play(16)
    assert arena.health[3] == pytest.approx(49)
    assert arena.health[2] == 30
    arena.unit_float[ENERGY, 1] = 4
    arena.unit_int[TARGET, 1] = -1
    arena.play(1)
    assert arena.health[3] == pytest.approx(49), "it does not begin with less than 5 energy"


def test_a_baneling_splashes_enemies_only():
    radius = 2.2 + 0.375
    arena = Arena(
        [("baneling", 16, 16), ("zergling", 16.5, 16)],
        [("zergling", 16 - 0.9, 16), ("zergling", 16, 16 + radius - 0.02), ("zergling", 16, 16 - radius - 0.05)],
    )
    arena.world.stats[3, 1:] = 0.0  # nobody walks
    arena.command(0, FIRST)
    arena.play()
    assert arena.health[0] == 0
    assert arena.health[1] == 35
    assert arena.health[2:4].tolist() == [0, 0]
    assert arena.health[4] > 34


def test_a_killed_baneling_explodes_and_so_does_the_next():
    arena = Arena(
        [("marine", 10, 10), ("zergling", 17, 10), ("baneling", 18, 10)],
        [("baneling", 15.5, 10), ("zergling", 20, 10)],
    )
    arena.unit_float[HEALTH, 3] = 1
    arena.unit_float[HEALTH, 2] = 15
    arena.command(0, FIRST)
    arena.play(4)
    assert arena.health.tolist()[1:] == [0, 0, 0, 0]
    assert arena.health[0] == 45


@pytest.mark.parametrize("start", [(16, 20), (20, 25), (16.3, 16.7), (28.1, 3.3)])
def test_who_has_come_to_the_very_edge_of_its_range_shoots(start):
    arena = Arena([("zealot", 2.18497753, 27.89221191)], [("colossus", *start)])
    arena.world = arena.world._replace(loops=8)
    arena.unit_int[[ORDER, TARGET], 1] = ATTACKING, 0
    arena.play(60)
    assert arena.health[0] == 0


def test_a_colossus_sweeps_a_line_across_the_shot():
    reach = 0.15 + 0.375
    zerglings = [(21, 16), (21, 16 + 1.25 + reach - 0.01), (21, 16 - 1.25 - reach - 0.03), (21 + reach + 0.03, 16.8)]
    arena = Arena([("colossus", 16, 16)], [("zergling", *place) for place in zerglings])
    arena.world.stats[0] = 1e3
    arena.unit_float[HEALTH] = 1e3
    arena.world.stats[3, 1:] = 0.0  # nobody walks
    arena.command(0, FIRST)
    arena.play(7)
    lost = 1e3 - arena.health[1:]
    np.testing.assert_allclose(lost, [40, 40, 0, 0], atol=0.2)


def test_shields_wait_ten_seconds_and_then_regenerate():
    arena = Arena([("stalker", 10, 10)], [("marine", 30, 30)])
    combat.damage(arena.world.stats, arena.unit_float, arena.unit_int, 1, 0)
    arena.play(160)
    assert arena.shield[0] == 74
    arena.play(16)
    assert arena.shield[0] == pytest.approx(76)
    arena.play(100)
    assert (arena.shield[0], arena.health[0]) == (80, 80)


def test_zerg_regenerate():
    arena = Arena([("zergling", 10, 10)], [("marine", 30, 30)])
    arena.unit_float[HEALTH, 0] = 20
    arena.play(32)
    assert arena.health[0] == pytest.approx(20 + 2 * 0.2734)


def test_agents_never_act_of_their_own_accord():
    arena = Arena([("marine", 10, 10)], [("spine_crawler", 15, 10)])
    before = arena.places[0].copy()
    arena.play(30)
    assert (arena.places[0] == before).all()
    assert arena.health[1] == 300
    assert arena.health[0] < 45


def test_the_enemy_shoots_the_nearest_that_fights():
    arena = Arena([("marine", 12, 10), ("medivac", 15, 10), ("marine", 11, 10)], [("marine", 16.5, 10)] * 3)
    arena.play()
    assert (arena.unit_int[TARGET, 3:] == 0).all()
    arena = Arena([("medivac", 15, 10)], [("marine", 16.5, 10), ("zealot", 16.5, 12)])
    arena.play()
    assert arena.unit_int[TARGET, 1:].tolist() == [0, -1], "a zealot cannot hit what flies"


def test_a_healer_at_work_counts_as_one_that_fights():
    arena = Arena([("marine", 12.5, 10), ("medivac", 15, 10)], [("marine", 16.5, 10)] * 2)
    for healing, expected in ((-1, 0), (0, 1)):
        arena.unit_int[HEALING, 1] = healing
        fill_positions(arena.world.stats, arena.unit_float, arena.unit_int, arena.scratch.positions)
        assert choose_target(arena.world.stats, arena.scratch.positions, 2) == expected


def test_who_dies_in_a_loop_is_no_target_and_does_not_act_any_more():
    arena = Arena([("marine", 12, 10), ("marine", 11.5, 10)], [("marine", 16.5, 10), ("marine", 16.5, 11)])
    state = arena.world.stats, arena.unit_float, arena.unit_int
    fill_positions(*state, arena.scratch.positions)
    arena.unit_float[HEALTH, 0] = 0
    act_enemy(*state, arena.counters, arena.scratch.positions, 2)
    assert arena.unit_int[TARGET, 2] == 1, "not the one that has just died, but the next"
    arena = Arena([("stalker", 10, 10)], [("spine_crawler", 16, 10)], creep_decay=True)
    arena.play(3)
    arena.unit_float[[HEALTH, WINDUP], 1] = 0.01, 0.5
    arena.play(3)
    assert arena.health.tolist() == [80, 0]
    assert arena.shield[0] == 80


def test_an_attack_move_stops_to_fight_and_goes_on():
    arena = Arena([("marine", 16, 16)], [("marine", 28, 16)], goal=(4.0, 16.0))
    for _ in range(400):
        arena.play()
        if arena.health[0] == 0:
            break
    assert arena.places[1, 0] == pytest.approx(16 + 5 + 0.75, abs=0.2)
    arena.play(200)
    np.testing.assert_allclose(arena.places[1], (4, 16))
    assert arena.unit_int[ORDER, 1] == IDLE


def test_an_idle_enemy_shot_from_afar_turns_on_the_shooter_with_its_friends():
    arena = Arena([("stalker", 10, 10)], [("zealot", 17, 10), ("zealot", 18, 10), ("zealot", 28, 28)])
    arena.play(5)
    assert (arena.unit_int[TARGET, 1:] == -1).all()
    arena.command(0, FIRST)
    arena.play(12)
    assert arena.unit_int[TARGET, 1:].tolist() == [0, 0, -1]


def test_a_new_order_cancels_the_wind_up_and_the_same_order_does_not():
    for again, hurt in ((FIRST, True), (1, False)):
        arena = Arena([("stalker", 10, 10)], [("spine_crawler", 16, 10)])
        arena.command(0, FIRST)
        arena.play(2)
        arena.command(0, again)
        assert (arena.unit_float[COOLDOWN, 0] == 0) == (not hurt)
        arena.play(10)
        assert (arena.health[1] < 300) == hurt


@pytest.mark.parametrize("count", [10, 40])
def test_units_do_not_stand_in_each_other_nor_leave_the_ground(count):
    ground = np.zeros((32, 32), bool)
    ground[:, 8:24] = True
    rng = np.random.default_rng(0)
    units = [("zergling", *place) for place in rng.uniform((10, 9), (20, 22), (count, 2))]
    y = 11.0 if count < 20 else 15.0  # against a wall a large crowd presses itself together
    arena = Arena([("marine", 4, y)], units, goal=(4.0, y), walkable=ground)
    arena.unit_float[HEALTH, 0] = arena.world.stats[0, 0] = 1e6
    arena.play(200)
    apart = np.hypot(*(arena.places[:, None] - arena.places[None]).transpose(2, 0, 1)) + 9 * np.eye(count + 1)
    assert apart.min() > 0.75 * (0.97 if count < 20 else 0.75), "walking units may overlap by a quarter"
    assert (arena.places[:, 1] >= 8.375 - 1e-6).all()
    away = np.hypot(*(arena.places[1:] - arena.places[0]).T)
    assert (away < 0.75 + 0.1 + 1e-5).sum() >= 5, "they surround their victim"
    assert away.max() < 4.5


def test_who_is_behind_a_crowd_finds_the_open_side():
    friends = [("zergling", 11.0 + 0.8 * i, 16.0 + 0.8 * j) for i in range(3) for j in (-1, 0, 1)]
    arena = Arena([("zealot", 10, 16)], friends, goal=(10.0, 16.0))
    arena.unit_float[HEALTH, 0] = arena.world.stats[0, 0] = 1e6
    arena.play(80)
    x, y = (arena.places[1:] - arena.places[0]).T
    touches = np.hypot(x, y) < 0.875 + 0.1 + 1e-5
    assert touches.sum() >= 6
    assert (x[touches] < 0).sum() >= 2, "some came from the east and attack from the west"


def test_a_column_walks_as_one():
    arena = Arena(
        [("marine", 30, 30)],
        [("marine", 4 + 0.75 * i, 10 + 0.75 * j) for i in range(4) for j in range(3)],
        goal=(30.0, 10.75),
    )
    before = arena.places[1:].copy()
    arena.play(40)
    moved = arena.places[1:] - before
    assert (moved[:, 0] > 40 * 2.25 / 16 - 0.5).all(), "nobody waits for who walks ahead"


def test_a_walker_goes_around_who_stands():
    arena = Arena([("marine", 10, 10), ("marine", 12, 10), ("marine", 12, 10.8)], [("marine", 30, 30)])
    for _ in range(8):
        arena.command(0, 4)
        arena.play(8)
    assert arena.places[0, 0] > 15
    np.testing.assert_allclose(arena.places[1:3], [(12, 10), (12, 10.8)], err_msg="who stands is not pushed", rtol=1e-6)


@pytest.mark.parametrize("name", ["corridor", "2c_vs_64zg", "so_many_baneling", "bane_vs_bane", "6h_vs_8z"])
def test_waypoints_lead_to_the_goal_over_open_ground(name):
    battle_map = load_map(name)
    way = waypoints(name)
    for x, y in battle_map.start[battle_map.num_agents :]:
        here, there = int(x) * 32 + int(y), int(battle_map.goals[0, 0]) * 32 + int(battle_map.goals[0, 1])
        for _ in range(20):
            here = int(way[here, there])
            assert battle_map.walkable[here // 32, here % 32]
            if here == there:
                break
        assert here == there


@pytest.mark.parametrize("name", TASKS)
def test_everyone_starts_on_free_ground(name):
    battle_map = load_map(name)
    for index, (kind, (x, y)) in enumerate(zip(battle_map.types, battle_map.start, strict=True)):
        unit = DATA["units"][kind]
        if unit["plane"] == "air":
            continue
        assert battle_map.walkable[int(x), int(y)]
        for other in range(index):
            if DATA["units"][battle_map.types[other]]["plane"] != "air":
                apart = np.hypot(*(battle_map.start[other] - (x, y)))
                reach = unit["separation_radius"] + DATA["units"][battle_map.types[other]]["separation_radius"]
                assert apart > reach - 1e-5
    assert SHIELD == 3
    assert (X, Y) == (0, 1)
