"""The household tasks against the published measurements, by playing all that can happen."""

from dataclasses import replace

import pytest

from marl.envs import virtualhome
from marl.envs.testing import check_env
from marl.envs.virtualhome.appliance_task import APPLIANCE_TASKS, Home
from marl.envs.virtualhome.entertainment import EntertainmentState
from marl.errors import ConfigError, UnknownNameError
from tests.support.text import Graph


def graph_of(task, reproduce_upstream_bugs=False):
    return Graph(virtualhome.make(task, reproduce_upstream_bugs=reproduce_upstream_bugs))


@pytest.mark.parametrize(
    ("task", "reproduce_upstream_bugs", "optimum", "steps", "prompts"),
    [
        ("food-preparation", False, 0.773781, 6, 17),
        ("food-preparation", True, 0.773781, 6, 17),
        ("entertainment", False, 0.598737, 11, 56),
        ("entertainment", True, 0.598737, 11, 53),  # published are 56, in words that tell more of who sits
    ],
)
def test_optimum_and_prompts_are_the_published_ones(task, reproduce_upstream_bugs, optimum, steps, prompts):
    graph = graph_of(task, reproduce_upstream_bugs)
    assert graph.optimum() == pytest.approx(optimum, abs=5e-7)
    assert graph.optimum() == pytest.approx(graph.env.optimum, abs=1e-12)
    assert len(graph.plan()) == steps
    assert len(graph.prompts()) == prompts
    assert not graph.unknown_pieces()


@pytest.mark.parametrize(
    ("task", "success", "value"), [("food-preparation", 0.015, 0.0029), ("entertainment", 0.0030, 0.00043)]
)
def test_chance_does_as_published(task, success, value):
    found, mean, _ = graph_of(task, reproduce_upstream_bugs=True).chance(limit=50)
    assert found == pytest.approx(success, rel=0.04)
    assert mean == pytest.approx(value, rel=0.04)


ROOMS = {"walk to the kitchen", "walk to the bathroom", "walk to the bedroom"}
OFFERS = [
    ("nothing to put on the table", EntertainmentState("living room", "coffee table"), set(), {"TV", "sofa"}),
    ("the table has its snack", EntertainmentState("living room", "coffee table", "held", "table"), {"TV", "sofa"},
     {"TV", "sofa", "put the chips on the coffee table"}),
    ("beside the sofa, the TV off", EntertainmentState("living room", "sofa"),
     {"coffee table", "TV"}, {"coffee table", "TV"}),
    ("beside the sofa, the TV on", EntertainmentState("living room", "sofa", playing=True),
     {"coffee table", "TV", "sit down on the sofa", "stand up from the sofa"},
     {"coffee table", "TV", "sit down on the sofa"}),
    ("beside the TV", EntertainmentState("living room", "TV"),
     {"coffee table", "sofa", "turn on the TV", "turn off the TV"}, {"coffee table", "sofa", "turn on the TV"}),
]  # fmt: skip


@pytest.mark.parametrize(("evening", "published", "ours"), [each[1:] for each in OFFERS], ids=[e[0] for e in OFFERS])
def test_what_the_published_code_offers_in_the_living_room(evening, published, ours):
    for reproduce_upstream_bugs, offered in ((True, published), (False, ours)):
        texts = {text if " " in text and text != "coffee table" else f"walk to the {text}" for text in offered}
        assert set(virtualhome.Entertainment(reproduce_upstream_bugs).candidates(evening)) == ROOMS | texts


def test_what_the_published_code_offers_elsewhere():
    evening = virtualhome.Entertainment(reproduce_upstream_bugs=True)
    left = EntertainmentState("kitchen", chips="table")
    assert evening.candidates(left)[3:] == ["walk to the chips"]
    assert evening.after(left, "walk to the chips") == left
    assert evening.candidates(replace(left, near="milk"))[3:] == ["grab the milk"]
    assert set(evening.candidates(EntertainmentState("living room", "sofa", playing=True, sitting=True))) == ROOMS
    inside = Home(near_thing=True, near_appliance=True, opened=True, inside=True)
    for reproduce_upstream_bugs in (False, True):
        offered = virtualhome.ApplianceTask(APPLIANCE_TASKS["food-preparation"], reproduce_upstream_bugs).candidates(
            inside
        )[3:]
        assert offered == (["open the microwave"] if reproduce_upstream_bugs else []) + ["close the microwave"]


def test_the_size_of_the_state_machines():
    """States of the food: lying (6 in the kitchen, 6 elsewhere), held (4, 6), or inside (2, 3, the end)."""
    assert len(graph_of("food-preparation").states) == 6 + 6 + 4 + 6 + 2 + 3 + 1
    assert len(graph_of("entertainment").states) == 147


def test_what_is_offered_in_food_preparation_and_fails():
    graph = graph_of("food-preparation")
    assert {len(graph.candidates[state]) for state in graph.live} == {3, 4, 5, 6, 7}
    walk = {(Home(near_thing=True, near_appliance=near, holding=True, opened=opened), "walk to the pancake")
            for near in (False, True) for opened in (False, True)}  # fmt: skip
    assert graph.idle() == walk | {
        (Home(near_appliance=True), "close the microwave"),
        (Home(near_appliance=True, opened=True), "open the microwave"),
        (Home(near_thing=True, near_appliance=True, holding=True), "close the microwave"),
        (Home(near_thing=True, near_appliance=True, holding=True), "put the pancake into the microwave"),
        (Home(near_thing=True, near_appliance=True, holding=True, opened=True), "open the microwave"),
    }


def test_the_published_fault_leads_astray_who_walks_to_what_they_hold():
    rules = virtualhome.ApplianceTask(APPLIANCE_TASKS["food-preparation"], reproduce_upstream_bugs=True)
    home = Home(near_thing=True, near_appliance=True, holding=True)
    assert rules.after(home, "walk to the pancake") == Home(near_thing=True, holding=True)
    for action in ("walk to the bedroom", "walk to the bathroom", "walk to the kitchen", "walk to the pancake"):
        home = rules.after(home, action)
    assert home == Home("bedroom", near_thing=True, holding=True, upstream_room="bedroom")


def test_what_is_offered_in_the_evening_and_fails():
    graph = graph_of("entertainment")
    sizes = {len(graph.candidates[state]) for state in graph.live if not state.sitting}
    assert (min(sizes), max(sizes)) == (3, 7)
    full = EntertainmentState("living room", "TV", "held", "held")
    assert graph.idle() == {(full, "turn on the TV")}


def test_sitting_down_too_early_is_forever_only_where_asked_for():
    for reproduce_upstream_bugs in (False, True):
        graph = graph_of("entertainment", reproduce_upstream_bugs)
        value = graph.values()
        sitting = [state for state in graph.live if state.sitting]
        assert sitting
        assert all((value[state] == 0) == reproduce_upstream_bugs for state in sitting)


@pytest.mark.parametrize("task", [task for task in virtualhome.TASKS if task != "entertainment"])
def test_errands_differ_in_their_nouns_only(task):
    """The same graph, whatever the words: states, offered actions by place, values."""
    food, other = graph_of("food-preparation"), graph_of(task)
    assert set(food.states) == set(other.states)
    assert food.values() == other.values()
    nouns, cake = APPLIANCE_TASKS[task], APPLIANCE_TASKS["food-preparation"]
    for state in food.states:
        renamed = [text.replace(cake.thing, nouns.thing).replace(cake.appliance, nouns.appliance)
                   for text in food.candidates[state]]  # fmt: skip
        assert tuple(renamed) == other.candidates[state]
        if not nouns.plural:
            prompt = food.prompt[state].replace(cake.thing, nouns.thing).replace(cake.appliance, nouns.appliance)
            assert prompt == other.prompt[state]


@pytest.mark.parametrize("task", virtualhome.TASKS)
def test_tasks_keep_the_contract(task):
    check_env(lambda: virtualhome.make(task), episodes=2)


def test_an_episode_is_worth_what_it_says():
    env = virtualhome.make("food-preparation")
    env.reset(0)
    steps = [env.step([action]) for action in Graph(virtualhome.make("food-preparation")).plan()]
    assert all(step.info == {} for step in steps[:-1])
    assert steps[-1].terminated
    assert steps[-1].info == pytest.approx(
        {"success": 1.0, "discounted_return": 0.95**5, "normalized_return": 1.0}, abs=1e-12
    )


def test_time_is_up_after_fifty_steps_and_that_is_no_end():
    env = virtualhome.make("food-preparation")
    env.reset(0)
    rooms = ["walk to the bedroom", "walk to the kitchen"] * 25
    steps = [env.step([room]) for room in rooms]
    assert [step.truncated for step in steps] == [False] * 49 + [True]
    assert steps[-1].info["success"] == 0
    assert len(steps[-1].obs.candidates[0]) == 5


def test_names_and_limits_that_are_wrong():
    with pytest.raises(UnknownNameError, match="did you mean 'cheese'"):
        virtualhome.make("chees")
    with pytest.raises(ConfigError, match="virtualhome: max_steps=0; give 1 or more"):
        virtualhome.make("pizza", max_steps=0)
