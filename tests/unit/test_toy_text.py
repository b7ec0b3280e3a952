"""The toy games of text pay what they say; their optima are computed by playing them."""

import itertools

import numpy as np
import pytest

from marl.envs import toy_text
from marl.envs.testing import check_env, check_vector_env
from marl.envs.text import NOOP
from marl.errors import ConfigError, UnknownNameError
from marl.vector import SyncVector
from tests.support.text import Graph

VARIANTS = [
    *((task, {}) for task in toy_text.TASKS),
    ("chain", {"consolation": 0.0, "length": 2, "verbosity": 1}),
    ("wording", {"long": 11, "short": 11}),
    ("mdp", {"states": 8, "actions": 5, "table": 3}),
    ("chores", {"agents": 4, "length": 3, "leaves": True}),
    ("chores", {"named": False}),
    ("bake", {"invalid": "ignore"}),
]


@pytest.mark.parametrize(("task", "options"), VARIANTS)
def test_games_keep_the_contract(task, options):
    check_env(lambda: toy_text.make(task, **options), episodes=3)


@pytest.mark.parametrize("task", toy_text.TASKS)
def test_games_keep_the_contract_in_a_vector(task):
    def make():
        return toy_text.make(task)

    check_vector_env(lambda: SyncVector([make] * 3), [5, 6, 7], make, steps=20)


@pytest.mark.parametrize(("task", "options"), [v for v in VARIANTS if v[0] in ("chain", "wording", "bake")])
def test_the_optimum_is_that_of_dynamic_programming(task, options):
    env = toy_text.make(task, **options)
    assert Graph(env).optimum() == pytest.approx(env.optimum, abs=1e-12)


@pytest.mark.parametrize("task", ["chain", "wording", "bake"])
def test_all_that_is_read_and_said_is_made_of_the_words(task):
    assert not Graph(toy_text.make(task)).unknown_pieces()


def test_a_discount_for_each_word_makes_giving_up_the_best_of_the_chain():
    """The best first action differs between a backup over whole actions and a naive one over tokens."""
    graph = Graph(toy_text.make("chain"))
    by_step = graph.start_options(graph.values())
    by_word = graph.start_options(graph.values(each_word=True), each_word=True)
    best = max(by_step, key=by_step.get)
    assert best.startswith("blue door")
    assert max(by_word, key=by_word.get) == "stop"
    assert by_word[best] == pytest.approx(0.95**23)


def test_chance_in_the_chain_is_worth_more_than_giving_up():
    """Otherwise a learner that counts steps would first learn to take the consolation."""
    graph = Graph(toy_text.make("chain"))
    options = graph.start_options(graph.values(greedy=False))
    assert options["stop"] < np.mean([value for action, value in options.items() if action != "stop"])


def test_wording_turns_the_choice_only_where_words_are_discounted():
    flipped = Graph(toy_text.make("wording"))
    same = Graph(toy_text.make("wording", long=1, short=1))
    assert flipped.start_options(flipped.values(each_word=True), each_word=True) == pytest.approx(
        {"walk slowly around": 0.95**2, "jump": 0.95}
    )
    assert flipped.start_options(flipped.values()) == {"walk slowly around": 1.0, "jump": 0.95}
    assert same.start_options(same.values(each_word=True), each_word=True) == {"walk": 1.0, "jump": 0.95}


def test_the_tables_of_the_process_are_what_it_plays():
    env = toy_text.make("mdp", states=3, actions=3, table=5)
    assert env.transition.sum(axis=-1) == pytest.approx(np.full((3, 3), 0.75))
    counts, ends, starts = np.zeros((3, 3, 3)), np.zeros((3, 3)), np.zeros(3)
    generator = np.random.default_rng(1)
    env.reset(0)
    for _ in range(1500):
        state = env.prompts.index(env.reset().agents[0])
        starts[state] += 1
        over = False
        while not over:
            action = int(generator.integers(3))
            step = env.step([env.actions[action]])
            assert step.reward[0] == np.float32(env.reward[state, action])
            over = step.terminated
            ends[state, action] += over
            if not over:
                following = env.prompts.index(step.obs.agents[0])
                counts[state, action, following] += 1
                state = following
    visits = counts.sum(-1) + ends
    assert np.abs(counts / visits[..., None] - env.transition).max() < 0.06
    assert np.abs(starts / starts.sum() - env.start).max() < 0.04


def test_no_action_of_the_process_begins_another():
    texts = [text.split() for text in toy_text.make("mdp", actions=5).actions]
    assert not any(a == b[: len(a)] for a, b in itertools.permutations(texts, 2))


def test_five_steps_without_the_bread_lose():
    env = toy_text.make("bake")
    env.reset(0)
    steps = [env.step(["close the oven door"]) for _ in range(5)]
    assert [float(step.reward[0]) for step in steps] == [0, 0, 0, 0, -1]
    assert steps[-1].terminated
    assert steps[-1].info["discounted_return"] == pytest.approx(-(0.95**4))


@pytest.mark.parametrize("agents", [2, 3])
def test_chores_pay_where_all_differ(agents):
    env = toy_text.make("chores", agents=agents)
    won = 0
    for joint in itertools.product(toy_text.CHORES[:agents], repeat=agents):
        env.reset(0)
        step = env.step(list(joint))
        assert step.reward.tolist() == [float(len(set(joint)) == agents)] * agents
        won += step.info["success"]
    assert won == {2: 2, 3: 6}[agents]


def test_who_has_gone_home_has_one_candidate_and_is_not_heard():
    env = toy_text.make("chores", agents=3, length=2, leaves=True)
    obs = env.reset(0)
    assert obs.alive.all()
    obs = env.step(list(toy_text.CHORES[:3])).obs
    assert obs.alive.tolist() == [True, True, False]
    assert obs.candidates[2] == (NOOP,)
    last = env.step([*toy_text.CHORES[:2], "whatever"])
    assert last.info["normalized_return"] == pytest.approx(1.0)


def test_unnamed_workers_read_the_same():
    assert len(set(toy_text.make("chores", agents=4, named=False).reset(0).agents)) == 1
    assert len(set(toy_text.make("chores", agents=4).reset(0).agents)) == 4


@pytest.mark.parametrize(
    ("said", "reward"), [("{0} {1}", 1.0), (" {0}  {1}\n", 1.0), ("{0}", 0.5), ("{0} {1} {0} {1}", 0.5), ("{1}x", 0.0)]
)
def test_say_pays_the_share_of_words_in_place(said, reward):
    env = toy_text.make("free_text")
    words = env.reset(3).agents[0].removeprefix("Say: ").split()
    step = env.step([said.format(*words)])
    assert step.terminated
    assert step.reward[0] == reward
    assert step.info["success"] == (reward == 1.0)


def test_options_that_a_game_does_not_have():
    with pytest.raises(ConfigError, match="text/wording has no option 'agents'; it takes: long, short, inferior"):
        toy_text.make("wording", agents=2)
    with pytest.raises(ConfigError, match="text/chain: verbosity=99; give 1 to 14"):
        toy_text.make("chain", verbosity=99)
    with pytest.raises(UnknownNameError, match="did you mean 'chores'"):
        toy_text.make("chore")
