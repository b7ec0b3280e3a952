"""The kitchen against the published measurements, by playing all that can happen, and its rules one by one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from marl.envs import overcooked
from marl.envs.overcooked.grid import DOWN, LEFT, NOOP, RIGHT, UP, next_move
from marl.envs.overcooked.kitchen import Kitchen, Rules
from marl.envs.overcooked.layouts import DISHES
from marl.envs.overcooked.macros import Cook, Macro
from marl.envs.testing import check_env
from marl.errors import ConfigError, UnknownNameError
from tests.support.text import Graph

PLAN = [
    "fetch the tomato",
    "lay the tomato on the cutting board",
    "chop the tomato",
    "fetch the tomato",
    "fetch the bowl",
    "serve the dish",
]
OBVIOUS = [*PLAN[:3], "fetch the bowl", "add the tomato to the bowl", "serve the dish"]


@pytest.fixture(scope="module")
def graphs():
    return {
        reproduce_upstream_bugs: Graph(overcooked.make("tomato-salad", reproduce_upstream_bugs=reproduce_upstream_bugs))
        for reproduce_upstream_bugs in (False, True)
    }


@pytest.fixture(scope="module")
def two_foods():
    return Graph(overcooked.make("tomato-lettuce-salad", reproduce_upstream_bugs=True))


@pytest.fixture
def rules():
    return Rules(DISHES["tomato-salad"])


def played(env, actions):
    """The steps of a plan, from a fresh start."""
    env.reset(0)
    return [env.step([action]) for action in actions]


@pytest.mark.parametrize("reproduce_upstream_bugs", [False, True])
def test_optimum_plan_and_prompts_are_the_published_ones(graphs, reproduce_upstream_bugs):
    graph = graphs[reproduce_upstream_bugs]
    assert graph.optimum() == pytest.approx(0.920518, abs=5e-7)
    assert graph.plan() == PLAN
    assert len(graph.prompts() - {graph.prompt[graph.start]}) == 20  # the paper does not count the start
    assert not graph.unknown_pieces()


def test_chance_does_as_published(graphs):
    """The published mean and deviation of uniform choices, -0.094 and 0.343, are themselves estimates."""
    mean, deviation = sampled_chance(graphs[True], 4000)
    assert mean == pytest.approx(-0.094, abs=0.012)
    assert deviation == pytest.approx(0.343, abs=0.02)


def sampled_chance(graph, episodes):
    random, gamma, returns = np.random.default_rng(0), graph.env.gamma, []
    options = {state: list(graph.turns[state].values()) for state in graph.states}
    for _ in range(episodes):
        state, time, total = graph.start, 0, 0.0
        while True:
            turn = options[state][int(random.random() * len(options[state]))]
            total += gamma**time * turn.reward
            time += turn.duration
            if turn.ended or time >= 200:
                break
            state = turn.state
        returns.append(total)
    return np.mean(returns), np.std(returns)


def test_two_foods_have_a_best_plan_of_ten_macro_actions(two_foods):
    graph = two_foods
    assert graph.optimum() == pytest.approx(0.947656, abs=1e-6)
    assert graph.optimum() == pytest.approx(graph.env.optimum, abs=1e-6)
    assert len(graph.plan()) == 10
    assert len(graph.prompts() - {graph.prompt[graph.start]}) == 786
    assert not graph.unknown_pieces()
    assert sum(step.duration for step in played(graph.env, graph.plan())) == 45


def test_paying_once_for_chopping_leaves_the_best_plan_for_two_foods_as_it_is(two_foods):
    env = overcooked.make("tomato-lettuce-salad")
    assert played(env, two_foods.plan())[-1].info["discounted_return"] == pytest.approx(env.optimum, abs=1e-6)


@pytest.mark.parametrize(("plan", "steps", "value"), [(PLAN, 28, 0.9205), (OBVIOUS, 31, 0.8956)])
def test_plans_take_the_published_steps(plan, steps, value):
    done = played(overcooked.make("tomato-salad"), plan)
    assert [step.terminated for step in done] == [False] * 5 + [True]
    assert sum(step.duration for step in done) == steps
    assert done[-1].info["success"] == 1
    by_hand = 0.2 * 0.99**9 + 0.99 ** (steps - 1) - 0.001 * sum(0.99**i for i in range(steps))
    assert done[-1].info["discounted_return"] == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(value, abs=5e-5)


def test_the_reward_of_a_macro_action_is_that_of_its_steps_discounted():
    done = played(overcooked.make("tomato-salad"), PLAN)
    assert [step.duration for step in done] == [2, 5, 3, 1, 10, 7]
    assert done[2].reward[0] == pytest.approx(-0.001 * (1 + 0.99 + 0.99**2) + 0.2 * 0.99**2, abs=1e-7)


def test_labels_are_distinct_and_tell_what_would_happen(graphs):
    graph = graphs[False]
    assert all(len(set(graph.candidates[state])) == 5 for state in graph.live)
    for state in graph.live:
        assert ("serve nothing" in graph.candidates[state]) == (not state.carried)
        if "chop the tomato" in graph.candidates[state]:
            assert not state["tomato"].chopped
            assert graph.turns[state]["chop the tomato"].state["tomato"].chopped


def test_what_the_published_code_offers_for_chopped_food(graphs):
    """Chopping it again is offered, and does nothing."""
    again = [state for state in graphs[True].live
             if state["tomato"].chopped and "chop the tomato" in graphs[True].candidates[state]]  # fmt: skip
    assert again
    assert all(graphs[True].turns[state]["chop the tomato"].state == state for state in again)


def test_nobody_lives_from_chopping_and_wasting():
    totals = {}
    for reproduce_upstream_bugs in (False, True):
        env = overcooked.make("tomato-salad", reproduce_upstream_bugs=reproduce_upstream_bugs)
        env.reset(0)
        totals[reproduce_upstream_bugs] = 0.0
        for action in itertools.cycle([*PLAN[:4], "serve the dish"]):
            step = env.step([action])
            totals[reproduce_upstream_bugs] += float(step.reward[0])
            if step.truncated:
                break
    assert totals[True] > 0.8
    assert totals[False] < -0.8


@pytest.mark.parametrize(("reproduce_upstream_bugs", "steps"), [(False, 5), (True, 9)])
def test_a_macro_action_stops_with_the_episode(reproduce_upstream_bugs, steps):
    env = overcooked.make("tomato-salad", max_steps=12, reproduce_upstream_bugs=reproduce_upstream_bugs)
    last = played(env, [*PLAN[:2], "fetch the bowl"])[-1]
    assert last.truncated
    assert not last.terminated
    assert last.duration == steps
    assert last.reward[0] == pytest.approx(-0.001 * sum(0.99**i for i in range(steps)))


def at(rules, cook, **cells):
    """A kitchen with the cook and the named things in these cells; `chopped` names foods."""
    chopped = cells.pop("chopped", ())
    start = rules.start()
    things = tuple(
        replace(thing, cell=cells.get(thing.name, thing.cell), chops=3 if thing.name in chopped else 0)
        for thing in start.things
    )
    return Kitchen(cook, things)


HERE, COUNTER, BOARD = (1, 1), (0, 1), (1, 0)
STEPS = [
    # what is where before, the move, what is where after, the reward without the step's own
    ("walk", {"tomato": HERE}, RIGHT, {"tomato": (1, 2), "cook": (1, 2)}, 0),
    ("stay", {}, NOOP, {}, 0),
    ("pick up", {"tomato": COUNTER}, UP, {"tomato": HERE}, 0),
    ("pick up the filled bowl", {"tomato": COUNTER, "bowl": COUNTER, "chopped": ["tomato"]}, UP,
     {"tomato": HERE, "bowl": HERE}, 0),
    ("put down", {"tomato": HERE}, UP, {"tomato": COUNTER}, 0),
    ("nothing to use", {}, UP, {}, 0),
    ("raw food stays out of the bowl", {"tomato": HERE, "bowl": COUNTER}, UP, {}, 0),
    ("food into a bowl on the counter", {"tomato": HERE, "bowl": COUNTER, "chopped": ["tomato"]}, UP,
     {"tomato": COUNTER}, 0),
    ("food from the counter into the bowl", {"tomato": COUNTER, "bowl": HERE, "chopped": ["tomato"]}, UP,
     {"tomato": HERE}, 0),
    ("raw food on the counter stays", {"tomato": COUNTER, "bowl": HERE}, UP, {}, 0),
    ("on the board", {"tomato": HERE}, LEFT, {"tomato": BOARD}, 0),
    ("the board is taken", {"tomato": BOARD, "bowl": HERE}, LEFT, {}, 0),
    ("food from the board into the bowl", {"tomato": BOARD, "bowl": HERE, "chopped": ["tomato"]}, LEFT,
     {"tomato": HERE}, 0),
    ("take the bowl from the board with the food", {"tomato": HERE, "bowl": BOARD, "chopped": ["tomato"]}, LEFT,
     {"tomato": HERE, "bowl": HERE}, 0),
    ("take chopped food from the board", {"tomato": BOARD, "chopped": ["tomato"]}, LEFT, {"tomato": HERE}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("before", "move", "after", "reward"), [step[1:] for step in STEPS], ids=[s[0] for s in STEPS])
def test_primitive_steps(rules, before, move, after, reward):
    chopped = before.get("chopped", ())
    kitchen, gained, served = rules.step(at(rules, HERE, **before), move)
    expected = {name: cell for name, cell in (before | after).items() if name not in ("chopped", "cook")}
    assert kitchen == at(rules, after.get("cook", HERE), chopped=chopped, **expected)
    assert gained == pytest.approx(reward - 0.001)
    assert not served


def test_three_strokes_chop_and_the_third_pays(rules):
    kitchen, rewards = at(rules, HERE, tomato=BOARD), []
    for _ in range(4):
        kitchen, reward, _ = rules.step(kitchen, LEFT)
        rewards.append(reward)
    assert rewards == pytest.approx([-0.001, -0.001, 0.199, -0.001])
    assert kitchen["tomato"].cell == HERE


def test_chopping_what_is_not_asked_for_pays_nothing():
    rules = Rules(DISHES["tomato-lettuce-salad"])
    for food, total in (("onion", 0.0), ("lettuce", 0.2)):
        kitchen, earned = at(rules, HERE, **{food: BOARD}), 0.003
        for _ in range(3):
            kitchen, reward, _ = rules.step(kitchen, LEFT)
            earned += reward
        assert earned == pytest.approx(total)


@pytest.mark.parametrize(
    ("things", "reward", "served"),
    [
        ({"tomato": (3, 1), "bowl": (3, 1), "chopped": ["tomato"]}, 1.0, True),
        ({"tomato": (3, 1), "chopped": ["tomato"]}, -0.1, False),
        ({"bowl": (3, 1)}, -0.1, False),
        ({}, 0.0, False),
    ],
)
def test_serving(rules, things, reward, served):
    kitchen, gained, done = rules.step(at(rules, (3, 1), **things), LEFT)
    assert gained == pytest.approx(reward - 0.001)
    assert done == served
    if not served:
        assert [thing.cell for thing in kitchen.things] == [(0, 5), (6, 5)]
        assert not kitchen["tomato"].chopped


def test_a_dish_with_too_much_in_it_is_wasted():
    rules = Rules(DISHES["tomato-lettuce-salad"])
    all_in = dict.fromkeys(("tomato", "lettuce", "onion", "bowl"), (3, 1))
    kitchen, reward, served = rules.step(at(rules, (3, 1), chopped=("tomato", "lettuce", "onion"), **all_in), LEFT)
    assert reward == pytest.approx(-0.101)
    assert not served
    assert {thing.name: thing.cell for thing in kitchen.things} == dict(rules.starts)


MACROS = [
    # cook, things, macro, steps, where the cook ends
    ("food in the bowl is not fetched", (1, 1), {"tomato": BOARD, "bowl": BOARD, "chopped": ["tomato"]},
     Macro("get", "tomato"), 1, (1, 1)),
    ("raw food is not chopped by fetching", (1, 4), {"tomato": BOARD}, Macro("get", "tomato"), 3, (1, 1)),
    ("nor with full hands", (1, 4), {"tomato": BOARD, "bowl": (1, 4)}, Macro("get", "tomato"), 3, (1, 1)),
    ("nor from beside it", (1, 1), {"tomato": BOARD, "bowl": (1, 1)}, Macro("get", "tomato"), 1, (1, 1)),
    ("food in the bowl is walked to until it is seen", (1, 4), {"tomato": BOARD, "bowl": BOARD, "chopped": ["tomato"]},
     Macro("get", "tomato"), 3, (1, 2)),
    ("food in the bowl far to the left and below", (1, 5), {"tomato": (5, 0), "bowl": (5, 0), "chopped": ["tomato"]},
     Macro("get", "tomato"), 8, (5, 2)),
    ("raw food on a counter and full hands", (1, 4), {"bowl": (1, 4)}, Macro("get", "tomato"), 2, (1, 5)),
    ("with raw food in hand no bowl", (1, 5), {"tomato": (1, 5)}, Macro("get", "bowl"), 5, (5, 5)),
    ("nor from the board", (1, 1), {"tomato": (1, 1), "bowl": BOARD}, Macro("get", "bowl"), 1, (1, 1)),
    ("nothing to deliver", (1, 4), {}, Macro("deliver"), 5, (3, 1)),
    ("nothing to deliver, already there", (3, 1), {}, Macro("deliver"), 1, (3, 1)),
    ("something to deliver", (1, 4), {"bowl": (1, 4)}, Macro("deliver"), 6, (3, 1)),
    ("empty hands stop at the board", (1, 4), {"tomato": BOARD}, Macro("go", board=0), 3, (1, 1)),
    ("already there", (1, 1), {"tomato": BOARD}, Macro("go", board=0), 1, (1, 1)),
    ("chop far from the board", (1, 4), {"tomato": BOARD}, Macro("chop"), 1, (1, 4)),
    ("chop the bowl", (1, 1), {"bowl": BOARD}, Macro("chop"), 1, (1, 1)),
    ("chop with full hands", (1, 1), {"tomato": BOARD, "bowl": (1, 1)}, Macro("chop"), 3, (1, 1)),
    ("chop", (1, 1), {"tomato": BOARD}, Macro("chop"), 3, (1, 1)),
    ("fetch what is in hand", (1, 4), {"tomato": (1, 4)}, Macro("get", "tomato"), 1, (1, 4)),
    ("fill the bowl and take it", (5, 5), {"tomato": (5, 5), "chopped": ["tomato"]}, Macro("get", "bowl"), 2, (5, 5)),
    ("fill the bowl on the board, which then is in hand", (1, 1),
     {"tomato": (1, 1), "bowl": BOARD, "chopped": ["tomato"]}, Macro("get", "bowl"), 2, (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cook", "things", "macro", "steps", "end"), [m[1:] for m in MACROS], ids=[m[0] for m in MACROS]
)
def test_macro_actions(rules, cook, things, macro, steps, end):
    outcome = Cook(rules).perform(at(rules, cook, **things), macro)
    assert outcome.duration == steps
    assert outcome.kitchen.cook == end


def test_ways_are_shortest_and_walls_are_walked_around():
    layout = replace(DISHES["tomato-salad"].layout, counters=tuple((row, 3) for row in range(1, 5)))
    walled = Rules(replace(DISHES["tomato-salad"], layout=layout))
    outcome = Cook(walled).perform(walled.start(), Macro("go", board=0))
    assert outcome.duration == 4 + 3 + 4
    layout = replace(layout, counters=(*layout.counters, (5, 3)))
    closed = Rules(replace(DISHES["tomato-salad"], layout=layout))
    assert Cook(closed).perform(closed.start(), Macro("go", board=0)).duration == 1
    assert next_move((1, 1), (1, 1), closed.floor) is None
    assert next_move((1, 1), (2, 0), closed.floor) == DOWN


@pytest.mark.parametrize("task", list(DISHES))
@pytest.mark.parametrize("reproduce_upstream_bugs", [False, True])
def test_tasks_keep_the_contract(task, reproduce_upstream_bugs):
    lines = check_env(lambda: overcooked.make(task, reproduce_upstream_bugs=reproduce_upstream_bugs), episodes=2)
    assert "time limit: max_steps=200 was kept" in lines


def test_render_shows_prompt_actions_and_kitchen():
    env = overcooked.make("tomato-salad")
    assert env.render() == "overcooked/tomato-salad: no episode has started"
    env.reset(0)
    text = env.render()
    assert "A raw tomato is on the counter." in text
    assert "  - serve nothing" in text
    assert "B . . . C . #" in text


def test_names_and_limits_that_are_wrong():
    with pytest.raises(UnknownNameError, match="did you mean 'tomato-salad'"):
        overcooked.make("tomato-salat")
    with pytest.raises(ConfigError, match="overcooked: max_steps=0; give 1 or more"):
        overcooked.make("tomato-salad", max_steps=0)
