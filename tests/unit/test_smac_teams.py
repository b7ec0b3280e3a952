"""SMACv2's teams and starting places: how often they are drawn, and by which rules."""

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.smac import batch, make
from marl.envs.smac.engine import scenario
from marl.envs.smac.engine.fields import KIND, MAX_HEALTH, MAX_SHIELD, SCALE, SEPARATION, SHOOT, SIGHT, X, Y
from marl.envs.smac.maps import DATA

TYPES = {
    "terran": ("marine", "marauder", "medivac"),
    "protoss": ("stalker", "zealot", "colossus"),
    "zerg": ("zergling", "hydralisk", "baneling"),
}
"""By race, in the order of the observation's one-hot types; the last one is rare."""

RANGES = {
    "marine": (9, 5),
    "marauder": (10, 6),
    "medivac": (11, 4),
    "stalker": (10, 6),
    "zealot": (9, 2),
    "colossus": (10, 7),
    "zergling": (8, 2),
    "hydralisk": (9, 5),
    "baneling": (8, 2),
}
"""SMACv2's sight and shooting range."""


def draw_teams(task, count):
    """The batch, the types of all units (count, U) and their places (count, U, 2) at the start of as many battles."""
    env = batch(task, count)
    env.reset(list(range(count)))
    types = np.array([env._battles.map_at(index).types for index in range(count)])
    return env, types, np.moveaxis(env._battles.battle.unit_float[:, [X, Y]], 1, -1)


@pytest.mark.parametrize("race", TYPES)
def test_how_often_each_type_is_drawn(race):
    _, types, _ = draw_teams(f"{race}_10_vs_10", 400)
    for name, weight in zip(TYPES[race], (0.45, 0.45, 0.1), strict=True):
        share = (types[:, :10] == name).mean()
        assert share == pytest.approx(weight, abs=5 * np.sqrt(weight * (1 - weight) / 4000))


@pytest.mark.parametrize(("race", "rare"), [("terran", 0), ("zerg", 0), ("protoss", 0.1)])
def test_the_additional_enemy_can_fight_alone(race, rare):
    _, types, _ = draw_teams(f"{race}_10_vs_11", 400)
    assert (types[:, -1] == TYPES[race][2]).mean() == pytest.approx(rare, abs=5 * np.sqrt(rare * 0.9 / 400))


def test_a_team_that_needs_others_is_drawn_again():
    battles = batch("terran_5_vs_5", 1)._battles
    unit_int, counters = battles.battle.unit_int[0], battles.battle.counters[0]
    assert battles.map.kinds == ("marauder", "marine", "medivac")
    assert (battles.world.weight_sums.tolist(), battles.world.dependent) == ([9, 18, 20], 2)
    mostly = np.array([1, 2, 40])
    drawn = []
    for _ in range(200):
        scenario.sample_types(mostly, 2, unit_int, counters, 0, 2)
        drawn.append(sorted(unit_int[KIND, :2].tolist()))
    assert [2, 2] not in drawn
    assert [0, 2] in drawn
    for _ in range(50):
        scenario.sample_types(mostly, -1, unit_int, counters, 0, 2)
        drawn.append(unit_int[KIND, :2].tolist())
    assert [2, 2] in drawn


@pytest.mark.parametrize("task", ["terran_5_vs_5", "zerg_10_vs_11", "protoss_20_vs_23"])
def test_the_enemy_is_the_same_team(task):
    env, types, _ = draw_teams(task, 60)
    n = env.spec.num_agents
    assert len({tuple(row) for row in types[:, :n]}) > 8
    for row in types:
        assert sorted(row[:n]) == sorted(row[n : 2 * n])
        assert row[:n].tolist() == sorted(row[:n]), "agents are numbered by type"
    assert any(row[n:].tolist() != sorted(row[n:]) for row in types), "enemies are not"
    health = [sum(DATA["units"][name]["hp"] + DATA["units"][name]["shield"] for name in row[n:]) for row in types]
    best = 200 + 10 * (types.shape[1] - n) + np.array(health)
    np.testing.assert_allclose(20 / env._battles.stats[:, SCALE, 0], best)


def split_starts(task, count):
    """(surrounded, reflected): indices of battles, told apart by whether all agents are at the center; and the rest."""
    env, types, places = draw_teams(task, count)
    n = env.spec.num_agents
    near = (np.abs(places[:, :n] - 16) < 5).all((1, 2))
    return np.flatnonzero(near), np.flatnonzero(~near), types, places, n


def test_half_of_the_battles_are_surrounded_and_half_reflected():
    around, across, *_ = split_starts("zerg_10_vs_10", 400)
    assert len(around) == pytest.approx(200, abs=50)
    assert len(around) + len(across) == 400


def test_who_is_surrounded_stands_in_the_middle_and_enemies_in_groups_on_diagonals():
    around, _, _, places, n = split_starts("zerg_5_vs_5", 300)
    groups, corners = [], set()
    for battle in around:
        enemies = places[battle, n:] - 16
        quadrants = [tuple(np.sign(place)) for place in enemies]
        groups.append(len(set(quadrants)))
        corners |= set(quadrants)
        for quadrant in set(quadrants):
            group = enemies[[at == quadrant for at in quadrants]] * quadrant
            middle = group.mean(0)
            assert abs(middle[0] - middle[1]) < 1.2, "on a diagonal, but for the room that units take"
            assert 0.5 < middle.min() <= middle.max() < 16
            assert np.abs(group - middle).max() < 3
        changes = sum(a != b for a, b in zip(quadrants[1:], quadrants[:-1], strict=True))
        assert changes == groups[-1] - 1, "units of a group follow one another"
    assert set(groups) == {1, 2, 3, 4}
    assert len(corners) == 4


def test_distances_on_the_diagonal_are_uniform():
    around, _, _, places, n = split_starts("zerg_5_vs_5", 400)
    lone = [abs(places[battle, n] - 16).mean() for battle in around]  # the first unit of a group stands on its spot
    assert 2 <= min(lone) < 2.6
    assert 14.8 < max(lone) < 16
    assert np.mean(lone) == pytest.approx(9, abs=5 * 4.04 / np.sqrt(len(lone)))


@pytest.mark.parametrize("task", ["zerg_5_vs_5", "protoss_10_vs_11"])
def test_reflected_teams_mirror_each_other(task):
    _, across, types, places, n = split_starts(task, 120)
    exact = 0
    for battle in across:
        agents = {(kind, x, y) for kind, (x, y) in zip(types[battle, :n], places[battle, :n].round(3), strict=True)}
        mirror = places[battle, n : 2 * n] * [-1, 1] + [32, 0]
        twins = {(kind, x, y) for kind, (x, y) in zip(types[battle, n : 2 * n], mirror.round(3), strict=True)}
        exact += agents == twins
        assert (places[battle, :n, 0] < 15.6).all()
        assert (places[battle, 2 * n :, 0] > 15.4).all()
    assert exact > 0.9 * len(across)
    x, y = places[across, :n].reshape(-1, 2).T
    spread = 5 / np.sqrt(12 * len(x))
    assert x.mean() == pytest.approx(7.5, abs=15 * spread + 0.1)
    assert y.mean() == pytest.approx(16, abs=32 * spread)


@pytest.mark.parametrize("task", ["terran_20_vs_23", "protoss_20_vs_23"])
def test_nobody_starts_within_another_or_off_the_map(task):
    env, types, places = draw_teams(task, 60)
    for battle in range(60):
        stats = env._battles.stats[battle]
        width = stats[SEPARATION]
        ground = types[battle] != "medivac"
        for layer in (ground, ~ground):
            here, wide = places[battle, layer], width[layer]
            apart = np.linalg.norm(here[:, None] - here, axis=-1) + 99 * np.eye(len(here))
            assert (apart > wide[:, None] + wide - 1e-4).all()
        assert (places[battle] >= 0).all()
        assert (places[battle, ground] >= width[ground, None] - 1e-5).all()
        assert (places[battle, ground] <= 32 - width[ground, None] + 1e-5).all()


@pytest.mark.parametrize("race", TYPES)
def test_unit_ranges_are_the_units_own(race):
    env, types, _ = draw_teams(f"{race}_10_vs_10", 8)
    for battle, row in enumerate(types):
        stats = env._battles.stats[battle]
        assert list(zip(stats[SIGHT], stats[SHOOT], strict=True)) == [RANGES[name] for name in row]
        assert stats[MAX_HEALTH].tolist() == [DATA["units"][name]["hp"] for name in row]
        assert stats[MAX_SHIELD].tolist() == [DATA["units"][name]["shield"] for name in row]
    fixed = batch(f"{race}_10_vs_10", 2, use_unit_ranges=False)
    fixed.reset([0, 1])
    assert (fixed._battles.stats[:, [SIGHT, SHOOT], 0] == [9, 6]).all()
    chosen = make("3m", use_unit_ranges=True, sight_range=7.5)._battles.world.stats
    assert (chosen[[SIGHT, SHOOT], 0] == [7.5, 5]).all()


def test_pictures_show_the_drawn_teams():
    pytest.importorskip("PIL")
    env = make("zerg_10_vs_11")
    env.reset(0)
    film, teams = env.film(), []
    for seed in range(3):
        env.reset(seed)
        (frame,) = film.draw()
        assert frame.shape[2] == 3
        teams.append(film._painter.map.types)
        assert teams[-1] == env._battles.map_at(0).types
        (radius,) = {DATA["units"][teams[-1][0]]["radius"]}
        assert film._painter.stats[4, 0] == radius
        env.step(np.ones(10, int))
        assert len(film.draw()) == 4
        text = env.render()
        for kind in TYPES["zerg"]:
            assert text.count(f"{kind} ") == teams[-1].count(kind)
    assert len(set(teams)) == 3
