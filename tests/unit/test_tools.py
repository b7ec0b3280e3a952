"""Tools that an agent misuses: no call takes the run's time, memory or prompt, and answers are the same every time."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from marl.envs.text import TextEnv, TextStep
from marl.envs.tools import MAX_ITEMS, Toolbox
from marl.errors import ConfigError

CALLED = []


def times(left, right):
    """Multiply."""
    CALLED.append(left)
    return left * right


def power(base, exponent):
    """Raise to a power."""
    return base**exponent


def descend(depth):
    """Call itself."""
    return descend(depth + 1)


def give(kind):
    """Return something that has no text of its own."""
    ring = []
    ring.append(ring)
    return {
        "object": object(),
        "inside": [object(), {1: (2.5,)}, (None, "a")],
        "set": {"b", "a", "d", "c"},
        "sets": [{"b", "a"}, frozenset({3, 1})],
        "endless": itertools.count(),
        "function": give,
        "ring": ring,
        "none": None,
    }[kind]


def fail(kind):
    """Raise something."""
    raise {"object": ValueError(object()), "exit": SystemExit(), "interrupt": KeyboardInterrupt("no")}[kind]


def crash(number=signal.SIGKILL):
    """Take its process with it."""
    os.kill(os.getpid(), number)


def read():
    """Read what is typed."""
    return open(0, closefd=False).read()


def draw():
    """Draw from the global generators."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002 - as tools may


def sleep(seconds):
    """Wait."""
    time.sleep(seconds)


TOOLS = [times, power, descend, give, fail, crash, read, draw, sleep]
CALLS = [
    ("times('x', 3000000000)", "mistake: this needs too much memory"),
    ("times([0], 1000000000)", "mistake: this needs too much memory"),
    ("power(7, power(7, 7))", "mistake: arguments have to be plain values, such as 3, 'text' or [1, 2]"),
    ("power(10, 4000)", "1" + "0" * 58 + "... (4001 characters)"),
    ("power(10, 5000)", "an integer of about 5001 digits"),
    ("times('ab', 5000)", "ab" * 29 + "... (10000 characters)"),
    ("times(1e308, 10)", "inf"),
    ("descend(0)", "mistake: this goes round in circles, or too deep"),
    ("crash()", "mistake: the tool broke down without an answer"),
    ("crash(40)", "mistake: the tool broke down without an answer"),
    (f"crash({int(signal.SIGSTOP)})", "mistake: the tool broke down without an answer"),
    ("read()", ""),
    ("give('nothing')", "mistake: KeyError: 'nothing'"),
    ("times(1, 2", "mistake: '(' was never closed"),
    ("times(**{'left': 1}, right=2)", "mistake: write each named argument as name=value"),
    ("give('object')", "<object object>"),
    ("give('inside')", "[<object object>, {1: (2.5,)}, (None, 'a')]"),
    ("give('set')", "{'a', 'b', 'c', 'd'}"),
    ("give('sets')", "[{'a', 'b'}, {1, 3}]"),
    ("give('function')", "<function give>"),
    ("give('none')", "None"),
    ("fail('object')", "mistake: <object object>"),
    ("fail('exit')", "mistake: SystemExit"),
    ("fail('interrupt')", "mistake: no"),
    (f"times({'[' * 21}{']' * 21}, 1)", "mistake: arguments have more than 20 brackets inside each other"),
    (f"times('{'x' * 2000}', 1)", "mistake: the call has 2012 characters, at most 1000 are read"),
    (f"times({'-' * 900}1, 1)", "mistake: arguments have to be plain values, such as 3, 'text' or [1, 2]"),
    (r"times('\d', 1)", r"\d"),
]


@pytest.mark.parametrize(("text", "answer"), CALLS, ids=[text[:24] for text, _ in CALLS])
def test_what_hostile_calls_are_answered(text, answer):
    assert Toolbox(TOOLS).call(text, max_length=80) == answer


def test_a_call_that_computes_too_long_is_stopped_wherever_it_is():
    answer = Toolbox(TOOLS, seconds=0.2, wall_seconds=60.0).call("power(9, 387420489)")
    assert answer == "mistake: this takes longer than 0.2 seconds"


def test_a_call_that_waits_too_long_is_stopped():
    answer = Toolbox(TOOLS, seconds=60.0, wall_seconds=0.3).call("sleep(1000)")
    assert answer == "mistake: this takes longer than 0.3 seconds"


def test_time_in_which_a_call_does_not_compute_is_not_counted():
    assert Toolbox(TOOLS, seconds=0.2).call("sleep(0.5)") == "None"


@pytest.mark.parametrize("nested", ["[" * 10_000, "[" * 300 + "]" * 300, "times(" * 100 + ")" * 100, "{" * 150])
def test_brackets_without_end_are_a_mistake(nested):
    answer = Toolbox(TOOLS).call(f"times({nested}, 1)", max_length=80)
    assert answer.startswith("mistake: ")
    assert len(answer) <= 80


def test_what_a_tool_draws_depends_on_the_call_only():
    def drawn(text):
        return Toolbox([draw, times]).call(text)

    first = drawn("draw()")
    for generator in (random.random, np.random.random, lambda: torch.rand(())):
        generator()
    assert drawn("draw()") == first != drawn("draw( )")


def test_endless_and_round_results_come_to_an_end():
    toolbox = Toolbox(TOOLS)
    assert toolbox.call("give('endless')", 10_000) == f"[{', '.join(map(str, range(MAX_ITEMS)))}, ...]"
    assert toolbox.call("give('ring')") == "[" * 21 + "..." + "]" * 21


def test_a_call_leaves_no_trace_in_the_run():
    CALLED.clear()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = len(os.listdir("/proc/self/fd")), children.read_text()
    toolbox = Toolbox(TOOLS, seconds=0.5, wall_seconds=0.5)
    for text in ("times(2, 3)", "crash()", "sleep(9)"):
        assert toolbox.call(text)
    assert CALLED == []
    assert (len(os.listdir("/proc/self/fd")), children.read_text()) == before


def asked(**options):
    return TextEnv(
        "asked",
        lambda _: 0,
        lambda _: "?",
        lambda *_: TextStep(0, ended=True),
        tools=[times],
        **({"max_steps": 99} | options),
    )


def test_calls_and_answers_fill_no_more_of_a_prompt_than_they_may():
    env = asked(notes_length=120)
    bare = env.reset(0).agents[0]
    for count in range(1, 8):
        prompt = env.step([f"times('ab', {count}000)"]).obs.agents[0]
        assert len(prompt) <= len(bare) + len("\n(earlier calls: 9)") + len("\n") + 120
        assert f"times('ab', {count}000) -> abab" in prompt
        assert f"... ({2 * count}000 characters)" in prompt
    assert "(earlier calls: 6)" in prompt
    env = asked()
    env.reset(0)
    short = [env.step([f"times({n}, 2)"]).obs.agents[0] for n in range(3)][-1]
    assert short.endswith("times(0, 2) -> 0\ntimes(1, 2) -> 2\ntimes(2, 2) -> 4")
    with pytest.raises(ConfigError, match=r"asked: notes_length=9, too short for a call .* give 40"):
        asked(notes_length=9)


def test_characters_that_a_prompt_must_not_hold_are_spelt():
    env = asked(characters="é")
    env.reset(0)
    prompt = env.step(["times('é\u00fc\U0001f600\x1b', 1)"]).obs.agents[0]
    assert prompt.endswith(r"times('é\xfc\U0001f600\x1b', 1) -> é\xfc\U0001f600\x1b")
    assert env.spec.observation_space.contains(prompt)


def test_a_process_that_a_tool_leaves_behind_holds_nobody_up(tmp_path):
    left = tmp_path / "left"

    def leave():
        """Answer, and leave a process behind."""
        if os.fork() == 0:
            left.write_text(str(os.getpid()))
            time.sleep(1000)
        while not left.exists() or not left.read_text():
            time.sleep(0.01)
        return "answered"

    assert Toolbox([leave], seconds=60.0).call("leave()") == "answered"
    number = int(left.read_text())
    deadline = time.monotonic() + 60.0
    while _runs(number):
        assert time.monotonic() < deadline, "the process is still there"
        time.sleep(0.01)


def _runs(number: int) -> bool:
    """True while a process exists that has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
