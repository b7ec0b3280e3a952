"""Contract of `TextEnv` for authors of text environments."""

import numpy as np
import pytest

from marl.envs.testing import check_env, check_vector_env
from marl.envs.text import NOOP, TextEnv, TextStep, words_of
from marl.envs.tools import Toolbox
from marl.errors import ConfigError, EnvironmentContractError
from marl.vector import SyncVector


def add(left, right):
    """Add two numbers.

    No agent reads on.
    """
    return left + right


def broken(text):
    """Fails always."""
    raise KeyError(text)


def sums(**options):
    """Say the sum of two numbers, or ask a tool for it."""

    def start(random):
        return tuple(random.integers(10, 100, size=2).tolist())

    def prompt(state):
        return f"What is {state[0]} plus {state[1]}?"

    def play(state, action, _):
        right = action == str(sum(state))
        return TextStep(state, float(right), ended=True, success=right)

    return TextEnv("sums", start, prompt, play, **{"tools": [add, broken], "max_steps": 4, "optimum": 1.0} | options)


def counter(**options):
    """Agents say yes or no, and are paid for yes; the second dies at its first no; three rounds."""

    def play(state, action, _):
        turn, alive = state
        alive = (True, alive[1] and action[1] == "yes")
        return TextStep((turn + 1, alive), [float(text == "yes") for text in action], ended=turn == 2)

    return TextEnv(
        "counter",
        lambda _: (0, (True, True)),
        lambda state: (f"Round {state[0]}",) * 2,
        play,
        lambda _: (("yes", "no"),) * 2,
        agents=("a", "b"),
        alive=lambda state: state[1],
        team_reward=False,
        **options,
    )


def single(candidates, *turns, **options):
    """A game that asks "?" and answers each action with the next of some turns, whose states are 0, 1, ..."""
    return TextEnv("single", lambda _: 0, lambda _: "?", lambda state, *_: turns[state], candidates, **options)


@pytest.mark.parametrize("make", [sums, counter])
def test_games_of_plain_functions_keep_the_contract(make):
    check_env(make, episodes=4)
    check_vector_env(lambda: SyncVector([make] * 2), [1, 2], make, steps=12)


def test_a_tool_is_answered_under_the_next_prompt_and_costs_a_step():
    env = sums()
    prompt = env.reset(1).agents[0]
    left, right = env.state
    assert prompt == f"What is {left} plus {right}?\nadd(left, right): Add two numbers.\nbroken(text): Fails always."
    step = env.step([f"add({left}, right={right})"])
    assert step.obs.agents[0] == f"{prompt}\nadd({left}, right={right}) -> {left + right}"
    assert (step.reward[0], step.terminated, step.truncated, step.info) == (0, False, False, {})
    step = env.step([str(left + right)])
    assert step.terminated
    assert step.info == {"success": 1.0, "discounted_return": 1.0, "normalized_return": 1.0, "invalid": 0.0}
    assert env.reset().agents[0].endswith("Fails always.")


CALLS = [
    ("add(2, -3)", "-1"),
    (" add ('a', 'b') ", "ab"),
    ("add([1], [2])", "[1, 2]"),
    ("broken('x')", "mistake: KeyError: 'x'"),
    ("add(2)", "mistake: add() missing 1 required positional argument: 'right'"),
    ("add(2, 3) + 1", "mistake: write one call and nothing else"),
    ("5", None),
    ("sub(1, 2)", None),
    ("I add (2, 3)", None),
]


@pytest.mark.parametrize(("text", "answer"), CALLS)
def test_calls_of_tools(text, answer):
    assert Toolbox([add, broken]).call(text) == answer


NO_CALLS = ["add(2, 3", "add(__import__('os').getpid(), 1)", "add(open('x'), 1)", "add(x, 1)", "add(*[1, 2])"]
NO_CALLS += ["add(**{'left': 1})", "add(1, 2)(3, 4)", "add(1, 2); add(1, 2)", "add(1,\x00 2)"]


@pytest.mark.parametrize("text", NO_CALLS)
def test_nothing_that_an_agent_writes_is_evaluated(text):
    assert Toolbox([add]).call(text).startswith("mistake: ")


def test_tools_that_cannot_be_shown():
    for tool in (lambda x: x, dict):  # no name, no signature
        with pytest.raises(ConfigError, match=f"tool {tool.__name__}: agents are shown its name, parameters and"):
            Toolbox([tool])
    with pytest.raises(ConfigError, match="2 tools share the names add"):
        Toolbox([add, add])
    with pytest.raises(ConfigError, match="sums: tools are for one agent, and there are 2"):
        sums(agents=("a", "b"))


def test_rewards_of_each_agent_and_the_silence_of_the_dead():
    env = counter(gamma=0.5)
    env.reset(0)
    step = env.step(["yes", "no"])
    assert step.reward.tolist() == [1, 0]
    assert step.obs.alive.tolist() == [True, False]
    assert step.obs.candidates == (("yes", "no"), (NOOP,))
    env.step(["no", "anything at all"])
    last = env.step(["yes", ""])
    assert last.info["discounted_return"] == pytest.approx((1 + 0.25) / 2)
    assert last.obs.candidates == ((NOOP,), (NOOP,))


INVALID = [
    (
        counter,
        ["yes", "maybe"],
        r"counter: agent 1 cannot take the action 'maybe'; give one of \['yes', 'no'\], or set invalid='ignore'",
    ),
    (counter, ["", "yes"], "agent 0 cannot take the action ''"),
    (counter, ["yes"], r"action is \['yes'\]; give 2 strings, one for each agent"),
    (counter, ["yes", 1], "give 2 strings"),
    (counter, "no", "action is 'no'; give 2 strings"),
    (lambda: sums(invalid="error"), [" \n"], r"agent 0 cannot take the action ' \\n'; give a text"),
]


@pytest.mark.parametrize(("make", "action", "message"), INVALID)
def test_actions_that_are_not_valid(make, action, message):
    env = make()
    env.reset(0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.elapsed == 0


def test_actions_that_are_not_valid_pass_without_effect_where_asked_for():
    env = counter(invalid="ignore")
    before = env.reset(0)
    step = env.step(["yes", "maybe"])
    assert step.reward.tolist() == [0, 0]
    assert step.obs.agents == before.agents
    for _ in range(3):
        step = env.step(["yes", "yes"])
    assert step.info["invalid"] == 1


def test_saying_nothing_in_free_text_lets_time_pass():
    env = sums()
    env.reset(0)
    steps = [env.step([text]) for text in ("", " ", "\n", "")]
    assert steps[-1].truncated
    assert steps[-1].info["invalid"] == 4


@pytest.mark.parametrize("offered", [[], ["a", "a"], "go", [1, 2]])
def test_a_game_that_offers_nothing_or_the_same_twice_or_no_texts(offered):
    with pytest.raises(
        EnvironmentContractError, match=r"single: agent 0 has the candidates .*; return a list of distinct text"
    ):
        single(lambda _: offered).reset(0)


@pytest.mark.parametrize(
    ("agents", "prompt", "expected"), [(("a",), 7, "7; return a text"), (("a", "b"), "ab", "'ab'; return 2 texts")]
)
def test_a_game_whose_prompt_is_no_text(agents, prompt, expected):
    env = TextEnv("odd", lambda _: 0, lambda _: prompt, lambda *_: TextStep(0), agents=agents)
    with pytest.raises(EnvironmentContractError, match=f"odd: the prompt is {expected}"):
        env.reset(0)


def test_an_ended_game_is_asked_for_no_actions():
    env = single(lambda state: [["go"], []][state], TextStep(1, ended=True))
    env.reset(0)
    assert env.step(["go"]).obs.candidates == ((NOOP,),)
    with pytest.raises(RuntimeError, match="step without a running episode"):
        env.step([NOOP])


def test_a_game_cut_off_by_time_still_has_actions():
    env = single(lambda _: ["go"], TextStep(0, duration=3), max_steps=5)
    env.reset(0)
    steps = [env.step(["go"]) for _ in range(2)]
    assert [step.truncated for step in steps] == [False, True]
    assert steps[-1].obs.candidates == (("go",),)


def test_non_ascii_text():
    env = single(lambda _: ["ja", "größer", "語"], TextStep(0, 1.0, ended=True), characters="öß語")
    check_env(lambda: env)
    assert env.reset(0).candidates == (("ja", "größer", "語"),)


def test_before_the_first_reset():
    with pytest.raises(RuntimeError, match="sums: get_state before the first reset"):
        sums().get_state()
    assert sums().render() == "sums: no episode has started"


def test_the_random_stream_goes_on_after_a_restored_episode():
    env, other = sums(), sums()
    env.reset(3)
    env.step(["add(1, 2)"])
    other.set_state(env.get_state())
    assert other.notes == env.notes == ["add(1, 2) -> 3"]
    assert [other.reset().agents for _ in range(3)] == [env.reset().agents for _ in range(3)]


def test_words_of_texts_and_of_tools():
    assert words_of("Take 42 plates, Ada!", "Ada's") == ("!", "'", ",", "2", "4", "Ada", "Take", "plates", "s")
    assert {"add", "left", "numbers", NOOP} <= set(sums().spec.words)


def test_the_reward_is_of_single_precision_and_the_summary_is_not():
    env = single(lambda _: ["go"], TextStep(0, 1 / 3, ended=True))
    env.reset(0)
    step = env.step(["go"])
    assert step.reward.dtype == np.float32
    assert step.info["discounted_return"] == 1 / 3
