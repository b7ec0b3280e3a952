"""Environments that lie, each in one way, and the exact complaint that the conformance suite must make."""

import re
import string
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from marl.envs import toy
from marl.envs.testing import Promise, check_env, check_vector_env
from marl.envs.testing.compare import difference
from marl.envs.wrappers import EnvWrapper
from marl.errors import EnvironmentContractError, MissingDependencyError
from marl.types import EnvSpec, Obs, Step
from marl.vector import SyncVector


class Liar(EnvWrapper):
    """A game whose observations, steps or spec pass through a lie. `obs`, `step`: from a value and the time."""

    def __init__(self, task="agent_death", obs=None, step=None, **spec):
        super().__init__(toy.make(task))
        self.lie_obs, self.lie_step, self.lie_spec = obs, step, spec
        self.time = 0

    @property
    def spec(self):
        return replace(self.env.spec, **self.lie_spec)

    def observe(self, obs):
        return self.lie_obs(obs, self.time) if self.lie_obs else obs

    def reset(self, seed=None):
        self.time = 0
        return super().reset(seed)

    def step(self, action):
        self.time += 1
        step = super().step(action)
        return self.lie_step(step, self.time) if self.lie_step else step

    def set_state(self, state):
        self.time = state["elapsed"]
        return super().set_state(state)


def complaint(make, **options):
    """The number of the broken promise, and the message."""
    with pytest.raises(EnvironmentContractError) as caught:
        check_env(make, **options)
    message = str(caught.value)
    number = re.match(r"\[(\d\d) [a-z ]+\] ", message)
    assert number, message
    return Promise(int(number[1])), message


def put(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def at(when, change):
    """A lie about observations at one time only."""
    return lambda obs, time: replace(obs, **change(obs)) if time == when else obs


def test_the_game_behind_the_lies_is_honest():
    for task in ("agent_death", "climbing", "chain", "copy"):
        check_env(lambda task=task: Liar(task))


DIAL = spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        ({"action_sizes": (3, 1, 2, 1)}, r"action_sizes=\(3, 1, 2, 1\); expected \(3, 1, 3, 1\)"),
        (
            {"action_space": spaces.Tuple([spaces.Discrete(3), DIAL, spaces.Discrete(3, start=1), DIAL])},
            r"action_space\[2\] starts at 1; expected 0",
        ),
    ],
)
def test_spaces_of_a_mixed_team(lie, said):
    found, text = complaint(lambda: Liar("mixed", **lie))
    assert found == Promise.SPEC
    assert re.search(said, text)


@pytest.mark.parametrize(
    "team", [(spaces.Discrete(3), DIAL), (DIAL,) * 4, (spaces.MultiDiscrete([2, 2]), *(DIAL,) * 3)]
)
def test_a_mixed_team_has_a_space_an_agent_and_both_kinds(team):
    names = ", ".join(type(space).__name__ for space in team)
    with pytest.raises(EnvironmentContractError, match=f"toy/mixed: action_space is the Tuple of {names} for 4 agents"):
        replace(toy.make("mixed").spec, action_space=spaces.Tuple(team))


OBSERVATIONS = [
    # the lie, the promise, the complaint
    (lambda obs, _: obs.agents, Promise.OBSERVATION, "reset: the observation is a ndarray; expected marl.types.Obs"),
    (
        at(0, lambda obs: {"agents": obs.agents[:, :4]}),
        Promise.OBSERVATION,
        r"obs.agents has shape \(3, 4\) and dtype float32; expected an array of shape \(3, 5\) and dtype float32",
    ),
    (
        at(2, lambda obs: {"agents": obs.agents.astype(np.float64)}),
        Promise.OBSERVATION,
        r"episode 0, step 1: obs.agents has shape \(3, 5\) and dtype float64; expected .* float32",
    ),
    (at(0, lambda obs: {"agents": obs.agents.tolist()}), Promise.OBSERVATION, r"obs.agents is \[\[.* \(list\); expec"),
    (
        at(1, lambda obs: {"agents": put(obs.agents, (2, 4), np.nan)}),
        Promise.OBSERVATION,
        r"step 0: obs.agents\[2, 4\] is nan; expected a finite number",
    ),
    (
        at(1, lambda obs: {"agents": put(obs.agents, (1, 3), 1.5)}),
        Promise.OBSERVATION,
        r"obs.agents\[1, 3\] is 1.5; expected 0.0..1.0, the space's bounds",
    ),
    (at(0, lambda _: {"alive": np.zeros(3, bool)}), Promise.ALIVE, "obs.alive is all False; expected at least one"),
    (at(0, lambda _: {"alive": np.ones(3)}), Promise.ALIVE, r"obs.alive has shape \(3,\) and dtype float64; .* bool"),
    (at(0, lambda _: {"alive": None}), Promise.ALIVE, r"obs.alive is None \(NoneType\); expected an array"),
    (
        at(1, lambda obs: {"action_mask": put(obs.action_mask, 1, False)}),
        Promise.ACTION_MASK,
        r"obs.action_mask\[1\] \(living\) is all False; expected at least one True",
    ),
    (
        at(5, lambda obs: {"action_mask": put(obs.action_mask, 2, False)}),
        Promise.ACTION_MASK,
        r"step 4: obs.action_mask\[2\] \(dead\) is all False",
    ),
    (
        at(0, lambda obs: {"action_mask": obs.action_mask.astype(np.int8)}),
        Promise.ACTION_MASK,
        "obs.action_mask has shape .* and dtype int8; expected .* bool",
    ),
    (at(0, lambda _: {"state": None}), Promise.STATE, r"obs.state is None \(NoneType\); expected .* \(15,\)"),
    (at(3, lambda obs: {"state": obs.state[:-1]}), Promise.STATE, r"step 2: obs.state has shape \(14,\)"),
    (at(0, lambda obs: {"state": obs.state - 1}), Promise.STATE, r"obs.state\[0\] is -1.0; expected 0.0..1.0"),
    (at(0, lambda _: {"candidates": (("go",),)}), Promise.OBSERVATION, "obs.candidates has 1 entries; expected 3"),
    (
        at(0, lambda _: {"candidates": (("go",), ("go",), "go")}),
        Promise.OBSERVATION,
        r"obs.candidates\[2\] is 'go'; expected a tuple of strings",
    ),
]


@pytest.mark.parametrize(("lie", "promise", "message"), OBSERVATIONS)
def test_lies_about_observations(lie, promise, message):
    found, text = complaint(lambda: Liar(obs=lie))
    assert re.search(message, text), text
    assert found == promise


def from_step(when, change):
    return lambda step, time: change(step) if time == when else step


STEPS = [
    (
        from_step(1, lambda s: (s.obs, s.reward, s.terminated, s.truncated, {})),
        Promise.ENDING,
        "step 0: step returned a tuple; expected marl.types.Step",
    ),
    (from_step(2, lambda s: replace(s, reward=s.reward[:2])), Promise.REWARD, r"step 1: reward has shape \(2,\)"),
    (from_step(1, lambda s: replace(s, reward=s.reward.astype(float))), Promise.REWARD, "dtype float64; .* float32"),
    (from_step(1, lambda s: replace(s, reward=0.5)), Promise.REWARD, r"reward is 0.5 \(float\); expected an array"),
    (
        from_step(3, lambda s: replace(s, reward=put(s.reward, 1, np.inf))),
        Promise.REWARD,
        r"step 2: reward\[1\] is inf; expected a finite number",
    ),
    (
        from_step(4, lambda s: replace(s, reward=put(s.reward, 2, 7))),
        Promise.REWARD,
        r"step 3: reward\[2\] is 7.0; expected .*, the team's reward",
    ),
    (
        from_step(1, lambda s: replace(s, terminated=None)),
        Promise.ENDING,
        "terminated is None .*expected True or False",
    ),
    (
        from_step(1, lambda s: replace(s, truncated=0)),
        Promise.ENDING,
        r"truncated is 0 \(int\); expected True or False",
    ),
    (
        from_step(1, lambda s: replace(s, terminated=np.zeros(3, bool))),
        Promise.ENDING,
        "terminated is array.* expected True or False",
    ),
    (from_step(6, lambda s: replace(s, terminated=True)), Promise.ENDING, "step 5: terminated and truncated are both"),
    (
        from_step(6, lambda s: replace(s, truncated=False)),
        Promise.TIME_LIMIT,
        "step 5: truncated is False after 6 steps; expected True at max_steps",
    ),
    (
        from_step(4, lambda s: replace(s, truncated=True)),
        Promise.TIME_LIMIT,
        "truncated is True after 4 steps; expected max_steps=6",
    ),
    (
        from_step(2, lambda s: replace(s, duration=0)),
        Promise.DURATION,
        "step 1: duration=0; expected a whole number",
    ),
    (from_step(1, lambda s: replace(s, duration=1.5)), Promise.DURATION, "step 0: duration=1.5; expected a whole"),
    (
        from_step(1, lambda s: replace(s, duration=np.array(0))),
        Promise.DURATION,
        r"step 0: duration=array\(0\); expected a whole",
    ),
    (from_step(1, lambda s: replace(s, info={"x": [1]})), Promise.INFO, r"`info\['x'\]` must be a scalar, got list"),
    (from_step(1, lambda s: replace(s, info={3: 1.0})), Promise.INFO, r"info has the key 3; expected a string"),
    (from_step(1, lambda s: replace(s, info=None)), Promise.INFO, "info is a NoneType; expected a mapping"),
]


@pytest.mark.parametrize(("lie", "promise", "message"), STEPS)
def test_lies_about_steps(lie, promise, message):
    found, text = complaint(lambda: Liar(step=lie))
    assert re.search(message, text), text
    assert found == promise


SPECS = [
    ({"agents": ("a", "a", "b")}, r"agents=\('a', 'a', 'b'\); expected distinct names"),
    ({"agent_types": ("x",)}, "agent_types has 1 entries; expected 3"),
    (
        {"observation_space": spaces.Box(0, 1, (5,), np.float64)},
        r"observation_space has shape \(5,\) and dtype float64",
    ),
    ({"observation_space": spaces.Box(0, 1, (5, 1), np.float32)}, r"observation_space has shape \(5, 1\)"),
    ({"observation_space": spaces.Discrete(5)}, r"observation_space is Discrete\(5\); expected one of Box, Text"),
    ({"action_space": spaces.Discrete(4, start=1)}, "action_space starts at 1; expected 0"),
    ({"action_space": spaces.MultiDiscrete([2, 2])}, "action_space is MultiDiscrete.*; expected one of Discrete, Box"),
    ({"state_space": spaces.Discrete(3)}, r"state_space is Discrete\(3\); expected one of Box"),
    ({"observation_sizes": (5, 6, 5)}, r"observation_sizes\[1\] is 6; expected 0..5, the padded width"),
    ({"action_sizes": (4, 4, 0)}, r"action_sizes\[2\] is 0; expected 1..4, the padded width"),
    ({"action_sizes": (4, 4)}, "action_sizes has 2 entries; expected 3"),
    ({"max_steps": 0}, "max_steps=0; expected an int of 1 or more, or None"),
    ({"max_steps": 6.0}, "max_steps=6.0; expected an int"),
]


@pytest.mark.parametrize(("changes", "message"), SPECS)
def test_lies_in_the_spec(changes, message):
    found, text = complaint(lambda: Liar(**changes))
    assert found == Promise.SPEC
    assert re.search(message, text), text


def test_padding_must_be_empty_and_unavailable():
    found, text = complaint(
        lambda: Liar(observation_sizes=(5, 4, 5), obs=at(0, lambda o: {"agents": o.agents * 0 + 1}))
    )
    assert (found, "obs.agents[1, 4] is 1.0; expected 0, it is padding" in text) == (Promise.OBSERVATION, True), text
    found, text = complaint(lambda: Liar(action_sizes=(4, 3, 4)))
    assert (found, "obs.action_mask[1, 3] is True; expected False, it is padding" in text) == (
        Promise.ACTION_MASK,
        True,
    )
    found, text = complaint(lambda: Liar("climbing", action_sizes=(3, 2)))
    assert (found, "obs.action_mask is None; expected a mask" in text) == (Promise.ACTION_MASK, True), text


def test_a_state_without_a_state_space_is_refused():
    found, text = complaint(lambda: Liar("climbing", obs=lambda o, _: replace(o, state=np.zeros(2, np.float32))))
    assert (found, "spec.state_space is None; expected None" in text) == (Promise.STATE, True)


def test_a_spec_that_changes_is_refused():
    class Fickle(Liar):
        count = 0

        @property
        def spec(self):
            Fickle.count += 1
            return replace(self.env.spec, name=f"fickle {Fickle.count}")

    found, text = complaint(Fickle)
    assert (found, "differs between two accesses" in text) == (Promise.SPEC, True)


class Eager(toy.Chain):
    """Steps whenever it is asked to."""

    def step(self, action):
        if self.elapsed >= self.length or self.over:
            self.reset()
        return super().step(action)


class Clumsy(toy.Chain):
    def step(self, action):
        assert not self.over
        return super().step(action)


class LateEager(Eager):
    """Refuses only before the first reset."""

    started = False

    def reset(self, seed=None):
        self.started = True
        return super().reset(seed)

    def step(self, action):
        if not self.started:
            raise RuntimeError("reset first")
        return super().step(action)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Eager, "before the first reset: step was accepted; expected a RuntimeError"),
        (Clumsy, "before the first reset: step raised AssertionError: (?s:.*); expected a RuntimeError"),
        (LateEager, "episode 0, after its end: step was accepted; expected a RuntimeError"),
    ],
)
def test_steps_out_of_order_must_be_refused(make, message):
    found, text = complaint(make)
    assert found == Promise.CALL_ORDER
    assert re.search(message, text), text


class Global(toy.Copy):
    """Draws from one stream that all instances share, whatever the seed."""

    shared = np.random.default_rng(0)

    def reset(self, seed=None):  # noqa: ARG002
        super().reset()
        self._random = self.shared
        self._begin()
        return self._observe()


class Counting(toy.Copy):
    """Never forgets how many steps it has played: a seed does not start it anew."""

    played = 0

    def step(self, action):
        self.played += 1
        step = super().step(action)
        return replace(step, info={"played": float(self.played)})


class Lucky(toy.Copy):
    """Draws later episodes from the operating system's entropy."""

    def reset(self, seed=None):
        if seed is None:
            self._random = np.random.default_rng()
        return super().reset(seed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Global(length=9),
            r"reset\(seed=0\) again, reset: agents\[\d, \d+\] is .*, it was .*; expected no diff",
        ),
        (Counting, r"step 0: info\['played'\] is 10.0, it was 2.0"),
        (lambda: Lucky(length=9), r"reset\(seed=0\) again, later episode 0, reset: agents\["),
    ],
)
def test_the_same_seed_must_give_the_same_episodes(make, message):
    found, text = complaint(make)
    assert found == Promise.DETERMINISM
    assert re.search(message, text), text


def test_agreement_is_of_bits():
    nan, zero = np.array([[1.0, np.nan]]), np.array([0.0])
    assert difference({"a": nan, "b": float("nan")}, {"a": nan.copy(), "b": float("nan")}, "state") is None
    assert difference(zero, -zero, "reward") == "reward[0] is -0.0, it was 0.0"
    assert difference({"a": nan}, {"a": nan + 1}, "state") == "state['a'][0, 0] is 2.0, it was 1.0"
    assert difference(np.array(True), np.array(False), "over") == "over is False, it was True"
    assert difference(zero, zero.astype(np.float32), "x") == "x is float32 (1,), it was float64 (1,)"
    assert difference({"a": 1}, {"b": 1}, "info") == "info has the keys ['b'], it had ['a']"
    assert difference(("go",), ("stop",), "agents") == "agents is ('stop',), it was ('go',)"


def test_instances_must_agree():
    class Numbered(toy.Chain):
        made = 0

        def __init__(self):
            Numbered.made += 1
            self.number = Numbered.made
            super().__init__()

        def step(self, action):
            return replace(super().step(action), info={"number": float(self.number)})

    found, text = complaint(Numbered)
    assert (found, "info['number'] is 2.0, it was 1.0" in text) == (Promise.DETERMINISM, True), text
    check_env(Numbered())  # one instance alone agrees with itself


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            np.zeros((4, 4), np.uint8),
            r"a frame has shape \(4, 4\) and dtype uint8; expected \(height, width, 3\) uint8",
        ),
        (np.zeros((4, 4, 3)), r"a frame has shape \(4, 4, 3\) and dtype float64"),
        (b"text", "gave a bytes; expected an array, text or None"),
    ],
)
def test_frames_must_be_frames(frame, message):
    class Painter(toy.Chain):
        def render(self):
            return frame

    found, text = complaint(Painter)
    assert found == Promise.RENDER
    assert re.search(message, text), text


def test_a_machine_that_cannot_draw_is_no_lie():
    class Blind(toy.Chain):
        def render(self):
            raise MissingDependencyError("needs a screen; install one")

    assert "render: not checked, needs a screen; install one" in check_env(Blind)


def test_close_must_be_harmless_twice():
    class Fragile(toy.Chain):
        closed = False

        def close(self):
            if self.closed:
                raise OSError("already closed")
            self.closed = True

    found, text = complaint(Fragile)
    assert (found, "a second close raised OSError: already closed" in text) == (Promise.CLOSE, True)


class Talk:
    """Two agents talk; every text is welcome, `candidates` are suggestions. The clock runs `duration` a step."""

    letters = spaces.Text(40, charset=string.ascii_lowercase + " ")

    def __init__(self, shown=None, candidates=None, duration=1, words=("nothing",)):
        self.spec = EnvSpec("talk", ("a", "b"), self.letters, self.letters, max_steps=3, words=words)
        self.shown, self.candidates, self.duration = shown, candidates, duration
        self.heard = None

    def observe(self):
        shown = tuple(f"you heard {word}" for word in self.heard[::-1]) if self.shown is None else self.shown
        return Obs(shown, np.ones(2, dtype=bool), candidates=self.candidates)

    def reset(self, seed=None):  # noqa: ARG002
        self.heard, self.time = ["nothing", "nothing"], 0
        return self.observe()

    def step(self, action):
        if self.heard is None or self.time == 3:
            raise RuntimeError("call reset first")
        self.heard, self.time = [str(word) for word in action], self.time + 1
        return Step(self.observe(), np.zeros(2, np.float32), False, self.time == 3, duration=self.duration)

    def render(self):
        return None

    def get_state(self):
        return None

    def close(self):
        pass


@pytest.mark.parametrize("duration", [1, np.int64(1), np.array(1)])
def test_durations_that_training_accepts_pass(duration):
    assert any("max_steps=3 was kept" in line for line in check_env(lambda: Talk(duration=duration)))


def test_text_is_checked_too():
    lines = check_env(lambda: Talk(candidates=(("yes", "no"), ("maybe",))))
    assert "text: prompts of 12 to 17 characters, 4 different; 1 to 2 candidates" in lines
    assert "get_state: None, this environment cannot be restored" in lines
    assert "render: nothing to show" in lines
    check_vector_env(lambda: SyncVector([Talk] * 2), [1, 2], Talk, steps=8)
    found, text = complaint(lambda: Talk(shown=("one",)))
    assert (found, "obs.agents has 1 strings; expected 2" in text) == (Promise.OBSERVATION, True)
    found, text = complaint(lambda: Talk(shown=["one", "two"]))
    assert (found, "expected a tuple of strings" in text) == (Promise.OBSERVATION, True)


TEXTS = [
    ({"shown": ("one", "")}, r"obs.agents\[1\] has 0 characters; expected 1..40, the space's bounds"),
    ({"shown": ("one", "t" * 41)}, r"obs.agents\[1\] has 41 characters; expected 1..40"),
    ({"shown": ("one", "Zwölf")}, r"obs.agents\[1\] holds 'Zö'; expected those of the space's charset.*characters="),
    (
        {"candidates": (("yes", "no"), ())},
        r"obs.candidates\[1\] is empty; expected an action \(a dead agent keeps one\)",
    ),
    ({"candidates": (("yes", "no", "yes"), ("no",))}, r"obs.candidates\[0\] offers 'yes' twice; expected distinct"),
    ({"candidates": (("yes", ""), ("no",))}, r"obs.candidates\[0\]\[1\] has 0 characters"),
    ({"candidates": (("yes", "no!"), ("no",))}, r"obs.candidates\[0\]\[1\] holds '!'"),
]


@pytest.mark.parametrize(("options", "message"), TEXTS)
def test_lies_in_text(options, message):
    found, text = complaint(lambda: Talk(**options))
    assert re.search(message, text), text
    assert found == Promise.OBSERVATION


def test_words_of_the_spec_are_words():
    found, text = complaint(lambda: Talk(words=("a", " ")))
    assert (found, "words[1] is ' '; expected a word" in text) == (Promise.SPEC, True)


def test_non_ascii_text_passes_where_it_is_declared():
    class Umlauts(Talk):
        letters = spaces.Text(40, charset="abcdefghijklmnopqrstuvwxyz äöü語")

    check_env(lambda: Umlauts(shown=("zwölf", "語")))


def test_the_time_limit_counts_primitive_steps():
    found, text = complaint(lambda: Talk(duration=2))
    assert "step 1: truncated is False after 4 steps; expected True at max_steps" in text
    assert found == Promise.TIME_LIMIT


def test_lines_tell_what_was_and_was_not_checked():
    lines = check_env(lambda: toy.make("agent_death"), episodes=3)
    assert lines[1].startswith("steps: 3 episodes of [6, 6, 6] steps")
    assert "time limit: max_steps=6 was kept" in lines
    assert "call order: step raises RuntimeError before reset and after an episode's end" in lines
    alone = check_env(toy.make("agent_death"))
    assert "call order: step raises RuntimeError after an episode's end" in alone


def test_a_limit_that_is_never_reached_is_told():
    class Endless(toy.Chain):
        def __init__(self):
            super().__init__()
            self.spec = replace(self.spec, max_steps=50)

    assert "time limit: max_steps=50 was not reached" in check_env(Endless)


def test_a_spec_without_agents_is_refused_as_it_is_made():
    with pytest.raises(EnvironmentContractError, match="agents is empty; name one agent or more"):
        check_env(lambda: Liar(agents=()))
