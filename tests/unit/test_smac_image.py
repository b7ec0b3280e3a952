"""Pictures of battles show what the engine's arrays say, and the film shows what happened within a step."""

import itertools
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from marl.envs.smac import make
from marl.envs.smac.engine.fields import (
    FIRST_TARGET,
    GOAL_X,
    GOAL_Y,
    HEALTH,
    IDLE,
    LAST,
    MOVING,
    ORDER,
    RADIUS,
    SHIELD,
    TARGET,
    WINDUP,
    X,
    Y,
)
from marl.envs.smac.maps import DATA, load_map
from marl.envs.smac.render import image as paint
from marl.envs.smac.render.image import (
    ATTENTION_COLOR,
    FLASH,
    HEADER,
    HEAL_COLOR,
    HEALTH_COLOR,
    SHIELD_COLOR,
    SHOTS,
    SIDES,
    TABLE,
    WALL,
    Frame,
    Painter,
)
from marl.envs.smac.render.text import GLYPHS, draw_text, reachable, window
from marl.envs.smac.render.video import END_FRAMES, LOOPS_PER_FRAME
from marl.envs.smac.scripted import ScriptedTeam
from marl.errors import MissingDependencyError
from tests.support.smac import EVERY_MAP, Arena

ROOT = Path(__file__).parents[2]
SCALE = 728 // 32
"""Pixels of a map unit on the open ground of an Arena."""


class Scene:
    """An Arena and its painter."""

    def __init__(self, allies, enemies, **options):
        self.arena = Arena(allies, enemies, **options)
        self.painter = Painter(self.arena.map, self.arena.world.stats)
        self.dead_for = np.zeros(len(allies) + len(enemies))

    def paint(self, attention=None, caption=""):
        return self.painter.paint(Frame(self.arena.unit_float, self.arena.unit_int, self.dead_for, caption), attention)

    def pixel(self, x, y):
        """(row, column) of a place."""
        return round(HEADER + (32 - y) * SCALE), round(x * SCALE)

    def around(self, frame, x, y, reach=0.5):
        row, column = self.pixel(x, y)
        half = round(reach * SCALE)
        return frame[row - half : row + half, column - half : column + half]


def focus_fire(spec, obs):
    return ScriptedTeam(spec, kites=False).choose(obs.state[None], obs.action_mask[None])[0]


def like(frame, color, tolerance=26):
    """(height, width) bool: pixels of about that color."""
    return (np.abs(frame.astype(int) - color) <= tolerance).all(-1)


def center(mask):
    """(row, column) of the middle of what is True."""
    return np.argwhere(mask).mean(0)


def test_units_stand_where_they_are_in_the_colors_of_their_sides_north_up():
    scene = Scene([("zealot", 8.0, 24.0)], [("stalker", 20.5, 6.25)])
    frame = scene.paint()[HEADER:]
    for side, (x, y) in enumerate(scene.arena.places):
        row, column = center(like(frame, SIDES[side]))
        assert row == pytest.approx((32 - y) * SCALE - 0.5, abs=1.0)
        assert column == pytest.approx(x * SCALE - 0.5, abs=1.0)
    assert not like(scene.around(scene.paint(), 8, 24), SIDES[1]).any()


@pytest.mark.parametrize("kind", ["zergling", "stalker", "spine_crawler", "colossus", "medivac"])
def test_discs_have_the_true_radius_and_nothing_spills_over(kind):
    here, there = (Scene([(kind, x, 16.0)], [("marine", 28.0, 28.0)]) for x in (8.0, 20.0))
    changed = (here.paint() != there.paint()).any(-1)[:, : 14 * SCALE]
    rows, columns = np.nonzero(changed)
    wide = 2 * here.arena.world.stats[RADIUS, 0] * SCALE
    for extent in (np.ptp(rows) + 1, np.ptp(columns) + 1):
        assert extent == pytest.approx(wide, abs=2.0)


@pytest.mark.parametrize(("field", "color"), [(HEALTH, HEALTH_COLOR), (SHIELD, SHIELD_COLOR)])
def test_the_rims_are_as_long_as_health_and_shield(field, color):
    scene = Scene([("stalker", 10.0, 16.0)], [("marine", 28.0, 28.0)])

    def length(share):
        scene.arena.unit_float[field, 0] = share * 80.0
        return int(like(scene.around(scene.paint(), 10, 16, 0.9), color, 40).sum())

    unit_int = length(1.0)
    assert unit_int > 40
    assert length(0.5) == pytest.approx(unit_int / 2, rel=0.15)
    assert length(0.25) == pytest.approx(unit_int / 4, rel=0.25)
    assert 0 < length(0.01) < unit_int / 8 if field == HEALTH else length(0.0) == 0


def test_units_without_shields_show_none():
    scene = Scene([("marine", 10.0, 16.0)], [("zergling", 20.0, 16.0)])
    assert not like(scene.paint()[HEADER:], SHIELD_COLOR, 40).any()


def test_the_dead_leave_a_cross_that_fades():
    scene = Scene([("stalker", 10.0, 16.0), ("stalker", 10.0, 24.0)], [("marine", 28.0, 28.0)])
    alive = like(scene.around(scene.paint(), 10, 16, 0.9), SIDES[0]).sum()
    scene.arena.unit_float[[HEALTH, SHIELD], 0] = 0.0
    fresh = scene.paint()
    scene.dead_for[0] = 1000.0
    old = scene.paint()
    empty = scene.around(old, 4, 4, 0.9).astype(int)
    strength = [np.abs(scene.around(frame, 10, 16, 0.9).astype(int) - empty).sum() for frame in (fresh, old)]
    assert like(scene.around(fresh, 10, 16, 0.9), SIDES[0]).sum() < alive / 4
    assert strength[0] > 1.5 * strength[1] > 0
    assert like(scene.around(old, 10, 24, 0.9), SIDES[0]).sum() == alive


def test_every_shot_is_seen_as_a_line_to_its_victim():
    scene = Scene([("marine", 10.0, 16.0)], [("marine", 14.0, 16.0)])
    quiet = scene.around(scene.paint(), 12, 16, 0.2).copy()
    scene.arena.command(0, FIRST_TARGET)
    before, shots = scene.arena.health[1], 0
    for _ in range(40):
        scene.arena.unit_int[ORDER, 1], scene.arena.unit_int[TARGET, 1] = IDLE, -1
        scene.arena.unit_float[WINDUP, 1] = 0.0
        scene.arena.play()
        if scene.arena.health[1] < before:
            before, shots = scene.arena.health[1], shots + 1
            assert like(scene.around(scene.paint(), 12, 16, 0.2), SHOTS[0], 40).any()
        elif shots == 0:
            assert not like(scene.around(scene.paint(), 12, 16, 0.2), SHOTS[0], 40).any()
    assert shots >= 2
    assert FLASH >= LOOPS_PER_FRAME, "a shot is over before the next picture"
    assert not like(quiet, SHOTS[0], 40).any()


def test_a_missile_flies_to_its_victim():
    scene = Scene([("stalker", 8.0, 16.0)], [("spine_crawler", 15.0, 16.0)])
    scene.arena.unit_float[HEALTH, 1] = 80.0
    scene.arena.command(0, FIRST_TARGET)
    places = []
    for _ in range(20):
        scene.arena.play()
        row, start = scene.pixel(9.0, 16.0)
        way = like(scene.paint()[row - 4 : row + 4, start : round(14.0 * SCALE)], SHOTS[0], 30)
        if way.any():
            places.append(np.nonzero(way)[1].mean())
        if scene.arena.health[1] < 80.0:
            break
    assert scene.arena.health[1] < 80.0
    assert len(places) >= 3
    assert (np.diff(places) > 0.8 * SCALE).all(), "18.75 map units a second are 1.17 a game loop"


def test_a_suicide_unit_explodes_as_far_as_its_splash_reaches():
    scene = Scene([("baneling", 16.0, 16.0)], [("marine", 28.0, 28.0)])
    scene.arena.unit_float[HEALTH, 0] = 0.0
    scene.dead_for[0] = 1000.0
    calm = scene.paint().astype(int)
    scene.dead_for[0] = 2.0
    rows, columns = np.nonzero((scene.paint() != calm).any(-1))
    early = np.ptp(columns)
    scene.dead_for[0] = paint.BLAST - 0.5
    rows, columns = np.nonzero((scene.paint() != calm).any(-1))
    assert early < np.ptp(columns) <= 2 * 2.2 * SCALE + 2
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)


def test_healing_is_a_green_line():
    scene = Scene([("medivac", 10.0, 16.0), ("marine", 13.0, 16.0)], [("marine", 28.0, 28.0)])
    scene.arena.unit_float[HEALTH, 1] = 10.0
    assert not like(scene.paint(), HEAL_COLOR, 60).any()
    scene.arena.command(0, FIRST_TARGET + 1)
    scene.arena.play()
    assert scene.arena.health[1] > 10.0
    assert like(scene.around(scene.paint(), 11.5, 16, 0.4), HEAL_COLOR, 70).any()
    scene.arena.command(0, 1)
    scene.arena.play()
    assert not like(scene.paint(), HEAL_COLOR, 60).any()


def test_orders_lead_to_where_agents_were_sent():
    scene = Scene([("marine", 10.0, 16.0)], [("marine", 28.0, 28.0)])
    calm = scene.paint().astype(int)
    scene.arena.unit_int[ORDER, 0] = MOVING
    scene.arena.unit_float[[GOAL_X, GOAL_Y], 0] = 12.0, 19.0
    changed = (scene.paint() != calm).any(-1)
    assert changed[scene.pixel(12, 19)]
    assert changed[scene.pixel(11, 17.5)]
    rows, columns = np.nonzero(changed)
    assert rows.min() >= scene.pixel(12, 19)[0] - 4
    assert columns.max() <= scene.pixel(12, 19)[1] + 4


TRIO = [("marine", 8.0, 8.0), ("marine", 16.0, 8.0), ("marine", 12.0, 20.0)]


TABLE_END = HEADER + 8 + TABLE + 2
"""The first row below the table of attention."""


def below(frame):
    return frame[TABLE_END:]


def test_attention_is_a_curve_from_who_looks_to_whom():
    scene = Scene(TRIO, [("marine", 28.0, 28.0)])
    weights = np.zeros((3, 3), np.float32)
    plain = scene.paint(weights)
    weights[np.diag_indices(3)] = 1.0
    assert (below(scene.paint(weights)) == below(plain)).all(), "an agent that looks at nobody has no curve"
    weights = np.zeros((3, 3), np.float32)
    weights[1, 0] = 0.9
    strong = scene.paint(weights)
    weights[1, 0] = 0.1
    weak = scene.paint(weights)
    difference = [np.abs(below(frame).astype(int) - below(plain)).sum() for frame in (strong, weak)]
    assert difference[0] > 4 * difference[1] > 0
    rows, columns = np.nonzero(below(strong != plain).any(-1))
    assert columns.min() >= 7.5 * SCALE
    assert columns.max() <= 16.5 * SCALE
    assert rows.max() - rows.min() < 3 * SCALE, "nothing leads to the third agent"
    straight = scene.pixel(12, 8)[0] - TABLE_END
    assert rows[columns == 12 * SCALE].min() > straight + 0.5 * SCALE, "it bows to the left of who looks, here south"
    weights[0, 1], weights[1, 0] = 0.9, 0.0
    rows, columns = np.nonzero(below(scene.paint(weights) != plain).any(-1))
    assert rows[columns == 12 * SCALE].max() < straight - 0.5 * SCALE, "the way back bows north"


def test_rows_of_the_table_of_attention_look_at_columns():
    scene = Scene(TRIO, [("marine", 28.0, 28.0)])
    weights = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], np.float32)
    frame = scene.paint(weights)
    top, left, cell = HEADER + 8, frame.shape[1] - 8 - TABLE, TABLE / 3
    middle = (np.arange(3) + 0.5) * cell
    shown = frame[np.ix_((top + middle).astype(int), (left + middle).astype(int))].astype(float)
    strength = np.abs(shown - shown[0, 2]).sum(-1) / np.abs(np.array(ATTENTION_COLOR) - shown[0, 2]).sum()
    np.testing.assert_allclose(strength, weights, atol=0.03)


def test_attention_of_the_dead_is_not_drawn():
    scene = Scene(TRIO, [("marine", 28.0, 28.0)])
    scene.arena.unit_float[HEALTH, 0] = 0.0
    weights = np.zeros((3, 3), np.float32)
    plain = scene.paint(weights)
    weights[1, 0] = weights[0, 2] = 1.0
    assert (scene.paint(weights) == plain).all()
    weights[2, 1] = 1.0
    assert like(scene.paint(weights), ATTENTION_COLOR, 60)[HEADER:-30].any()


@pytest.mark.parametrize("task", EVERY_MAP)
def test_every_map_fits_its_picture(task):
    env = make(task)
    env.reset(0)
    film = env.film()
    (frame,) = film.draw()
    height, width, _ = frame.shape
    assert frame.dtype == np.uint8
    assert 640 <= width <= 800
    assert 450 <= height <= 800
    assert height % 2 == 0
    assert width % 2 == 0
    battle_map, units = load_map(task), len(load_map(task).types)
    west, east, south, north = window(battle_map)
    assert reachable(battle_map)[west:east, south:north].sum() == reachable(battle_map).sum()
    assert all(west < x < east and south < y < north for x, y in battle_map.start)
    battles = env._battles
    full = "    ".join([env.spec.name, "step 999 of 999", "300.0 s", "return 20.00", "time is up"])
    moment = Frame(battles.battle.unit_float[0], battles.battle.unit_int[0], np.zeros(units), full)
    frame = film._painter.paint(moment)
    assert (frame[: HEADER - 4, -8:] == WALL).all(), "the text of the header runs over its end"
    assert (frame[: HEADER - 4, :600] != WALL).any()


def test_walls_and_ground_differ_where_the_map_says_so():
    battle_map = load_map("corridor")
    painter = Painter(battle_map, make("corridor")._battles.world.stats)
    units = len(battle_map.types)
    far = np.zeros((14, units))
    far[X], far[Y] = -50.0, -50.0
    far[HEALTH] = 1.0
    frame = painter.paint(Frame(far, np.full((7, units), -1), np.zeros(units), ""))
    west, east, south, north = window(battle_map)
    ground = reachable(battle_map)
    scale = painter.scale // paint.SUPERSAMPLING
    for x in range(west, east):
        for y in range(south, north):
            color = frame[int(HEADER + (north - y - 0.5) * scale), int((x - west + 0.5) * scale)]
            assert tuple(color) == (paint.GROUND if ground[x, y] else WALL)


def test_every_type_has_a_letter_of_its_own():
    assert set(GLYPHS) == set(DATA["units"])
    assert len({glyph.lower() for glyph in GLYPHS.values()}) == len(GLYPHS)


def test_the_text_shows_types_and_leaves_out_walls_all_around():
    arena = Arena([("medivac", 4.5, 3.5), ("marauder", 6.5, 3.5)], [("marine", 9.5, 5.5)])
    arena.map.walkable[:] = False
    arena.map.walkable[2:12, 2:8] = True
    title, *rows = draw_text(arena.map, arena.unit_float, "title").splitlines()
    assert title == "title"
    assert rows[:8] == [
        "############",
        "#..........#",
        "#..........#",
        "#.......m..#",
        "#..........#",
        "#..V.R.....#",
        "#..........#",
        "############",
    ]
    assert rows[8:] == ["allies: medivac 150, marauder 125", "enemies: marine 45"]


def play(env, film, steps, seed=3):
    """The pictures of a scripted episode, step by step, and the rewards."""
    obs = env.reset(seed)
    drawn, rewards = [film.draw()], []
    for _ in range(steps):
        step = env.step(focus_fire(env.spec, obs))
        obs = step.obs
        rewards.append(float(step.reward[0]))
        drawn.append(film.draw())
        if step.terminated or step.truncated:
            break
    return drawn, rewards


@pytest.mark.parametrize("task", ["2s3z", "MMM2", "bane_vs_bane"])
def test_a_step_played_again_is_the_same_step(task):
    env = make(task)
    film, obs = env.film(), env.reset(5)
    film.draw()
    for _ in range(24):
        before = env.get_state()
        step = env.step(focus_fire(env.spec, obs))
        obs = step.obs
        if step.terminated:
            break
        after = env.get_state()
        again = film._replay(8).get_state(0)
        for name in after:
            np.testing.assert_array_equal(again[name], after[name])
        halfway = film._replay(4).battle.unit_float[0]
        assert (halfway != before["unit_float"]).any()
        assert (halfway != after["unit_float"]).any()
        film.draw()
    assert env.get_state()["unit_float"][HEALTH].min() == 0.0, "nobody died, so little was tested"


def test_a_battle_that_is_watched_goes_on_as_if_it_were_not():
    watched, alone = make("2s3z"), make("2s3z")
    play(watched, watched.film(), 12)
    obs = alone.reset(3)
    for _ in range(12):
        obs = alone.step(focus_fire(alone.spec, obs)).obs
    for name, expected in alone.get_state().items():
        np.testing.assert_array_equal(watched.get_state()[name], expected)
    np.testing.assert_array_equal(watched._obs().agents, obs.agents)


@pytest.mark.parametrize(("step_mul", "count"), [(1, 1), (2, 1), (3, 2), (8, 4)])
def test_a_step_has_a_picture_every_two_loops(step_mul, count):
    env = make("3m", step_mul=step_mul)
    drawn, _ = play(env, env.film(), 3)
    assert [len(frames) for frames in drawn] == [1, count, count, count]
    moving = [frame for frames in drawn for frame in frames]
    for frame, following in itertools.pairwise(moving[1:]):
        assert (frame[HEADER:] != following[HEADER:]).any(), "enemies walk in every picture"


def test_captions_tell_step_return_and_result(monkeypatch):
    captions = []
    plain = Painter.paint

    def record(self, moment, attention=None):
        captions.append(moment.caption.split("    "))
        return plain(self, moment, attention)

    monkeypatch.setattr(Painter, "paint", record)
    env = make("3m")
    drawn, rewards = play(env, env.film(), 60)
    assert captions[0] == ["smac/3m", "step 0 of 60", "0.0 s", "return 0.00"]
    assert captions[-1][1] == f"step {len(rewards)} of 60"
    assert captions[-1][2] == f"{len(rewards) / 2:.1f} s"
    assert captions[-1][3] == f"return {sum(rewards):.2f}"
    assert captions[-1][4] == ("won" if env._battles.infos([0])[0]["success"] else "lost")
    assert captions[-2][3] == f"return {sum(rewards[:-1]):.2f}", "a reward is paid at the end of its step"
    assert all(len(caption) == 4 for caption in captions[:-1])
    assert len(drawn[-1]) == 4 + END_FRAMES
    assert all((frame == drawn[-1][3]).all() for frame in drawn[-1][3:])


def test_a_film_that_was_not_told_of_every_step_shows_the_present():
    env = make("3m")
    film, obs = env.film(), env.reset(0)
    assert len(film.draw()) == 1
    for _ in range(2):
        obs = env.step(focus_fire(env.spec, obs)).obs
    assert len(film.draw()) == 1
    state = env.get_state()
    env.step(focus_fire(env.spec, obs))
    assert len(film.draw()) == 4
    env.set_state(state)
    (frame,) = film.draw()
    late = make("3m")
    late.set_state(state)
    np.testing.assert_array_equal(frame, late.film().draw()[0])
    env.reset(0)
    assert len(film.draw()) == 1


def test_ignored_actions_are_filmed_too():
    env = make("3m", unavailable_action="ignore")
    film = env.film()
    env.reset(0)
    film.draw()
    env.step(np.array([FIRST_TARGET, 2, 0]))
    assert env._battles.battle.unit_int[0, LAST, :3].tolist() == [0, 2, 0]
    assert len(film.draw()) == 4


def test_without_pillow_the_line_that_installs_it_is_named(monkeypatch):
    for name in ("marl.envs.smac.render.image", "marl.envs.smac.render.video"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    env = make("3m")
    env.reset(0)
    assert "step 0" in env.render()
    with pytest.raises(MissingDependencyError, match=r"seqmarl\[smac\]"):
        env.film()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"pillow", "imageio", "imageio-ffmpeg"} <= {line.split(">")[0] for line in extras["smac"]}
