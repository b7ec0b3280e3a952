"""Vectors of environments: both against a plain loop and against each other, and what happens when things break."""

import gc
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_envs import DISASTERS, WORDS, Broken, Idle, Shape, Threads, Troubled, Walk

from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, NonFiniteError, WorkerError
from marl.protocols import VectorEnv
from marl.registry import ENVS, EnvEntry
from marl.types import Final, Obs, VectorStep
from marl.vector import ProcessVector, SyncVector, make_vector

SHAPES = {
    "plain": Shape(),
    "torques without masks": Shape(action="box", mask=False),
    "torques with masks, no state": Shape(action="box", state=False),
    "one agent, no state": Shape(agents=1, state=False, size=1),
    "all text": Shape(agents=3, text=True, action="text", candidates=True, state=False),
    "text, chosen by number": Shape(text=True, candidates=True),
    "text alone": Shape(text=True, action="text", mask=False),
    "arrays with candidates": Shape(action="text", candidates=True),
    "never saved": Shape(saves=False),
    "always ends": Shape(sometimes_terminated=1.0),
    "macro actions": Shape(longest=3),
    "only truncated": Shape(sometimes_terminated=0.0, max_steps=2),
}
TROUBLE = replace(SHAPES["plain"], actions=len(DISASTERS), sometimes_terminated=0.1)
NUM_ENVS = 5

Vector = Callable[..., Any]
"""Makes a vector; what the test makes is closed when it ends."""


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    vectors: list[Any] = []
    yield vectors
    for vector in vectors:
        vector.close()


@pytest.fixture
def processes(opened: list[Any]) -> Vector:
    def make(makes: Any, workers: int = 2, **options: Any) -> ProcessVector:
        opened.append(ProcessVector(makes, workers, **options))
        return opened[-1]

    return make


@pytest.fixture(params=["sync", "processes"])
def vector(request: pytest.FixtureRequest, opened: list[Any], processes: Vector) -> Vector:
    def sync(makes: Any, **options: Any) -> SyncVector:
        opened.append(SyncVector(makes, **options))
        return opened[-1]

    return sync if request.param == "sync" else processes


def actions(shape: Shape, rng: np.random.Generator, count: int = NUM_ENVS) -> Any:
    if shape.action == "text":
        return [[WORDS[rng.integers(5)] for _ in range(shape.agents)] for _ in range(count)]
    if shape.action == "box":
        return rng.normal(size=(count, shape.agents, shape.actions))
    return rng.integers(0, shape.actions, (count, shape.agents))


def calm(vector: Any) -> np.ndarray:
    return np.zeros((vector.num_envs, vector.spec.num_agents), np.int64)


def trouble(vector: Any, index: int, kind: str) -> np.ndarray:
    action = calm(vector)
    action[index, 0] = DISASTERS.index(kind)
    return action


def go(vector: Any, steps: int = 3) -> None:
    """Reset and step without a hint of trouble."""
    vector.reset(list(range(vector.num_envs)))
    for _ in range(steps):
        vector.step(calm(vector))


def frozen(value: Any) -> Any:
    """Comparable and independent of buffers; arrays with their type, shape and bits."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if is_dataclass(value):
        return tuple((field.name, frozen(getattr(value, field.name))) for field in fields(value))
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return tuple(frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def own(states: list[Any]) -> list[Any]:
    """The states as the environments gave them, without what vectors and workers add."""
    return [
        state and {name: value for name, value in state.items() if not name.startswith(("vector.", "worker."))}
        for state in states
    ]


def batch(observations: list[Obs]) -> Obs:
    """The plain way to put observations side by side, copied."""

    def stack(name: str) -> Any:
        column = [getattr(obs, name) for obs in observations]
        return None if column[0] is None else np.stack(column)

    words = isinstance(observations[0].agents, tuple)
    candidates = tuple(obs.candidates for obs in observations)
    return Obs(
        agents=tuple(obs.agents for obs in observations) if words else stack("agents"),
        alive=np.stack([obs.alive for obs in observations]),
        action_mask=stack("action_mask"),
        state=stack("state"),
        candidates=None if all(each is None for each in candidates) else candidates,
    )


class Loop:
    """A vector in the fewest lines, as the standard of comparison."""

    def __init__(self, shape: Shape, count: int) -> None:
        self.envs = [Walk(shape) for _ in range(count)]
        self.text = shape.action == "text"
        self.box = shape.action == "box"

    def reset(self, seeds: list[int]) -> Obs:
        self.now = [batch([env.reset(seed)]) for env, seed in zip(self.envs, seeds, strict=True)]
        return self.all()

    def all(self) -> Obs:
        def first(name: str, obs: Obs) -> Any:
            value = getattr(obs, name)
            return None if value is None else value[0]

        names = ("agents", "alive", "action_mask", "state", "candidates")
        return batch([Obs(**{name: first(name, obs) for name in names}) for obs in self.now])

    def reset_at(self, index: int, seed: int | None) -> Obs:
        self.now[index] = batch([self.envs[index].reset(seed)])
        return self.all()

    def set_state(self, states: list[Any]) -> Obs:
        self.now = [batch([env.set_state(state)]) for env, state in zip(self.envs, states, strict=True)]
        return self.all()

    def get_state(self) -> list[Any]:
        return [env.get_state() for env in self.envs]

    def render(self, index: int) -> Any:
        return self.envs[index].render()

    def step(self, action: Any) -> VectorStep:
        steps, last, ended = [], [], []
        for index, env in enumerate(self.envs):
            given = action[index] if self.text else np.asarray(action[index], np.float32 if self.box else np.int64)
            step = env.step(given)
            steps.append(step)
            self.now[index] = batch([step.obs])
            if step.terminated or step.truncated:
                ended.append(index)
                last.append(self.now[index])
                self.now[index] = batch([env.reset()])
        final = None
        if ended:
            now, self.now = self.now, last
            final = Final(np.array(ended), self.all(), tuple(steps[index].info for index in ended))  # type: ignore[arg-type]
            self.now = now
        durations = np.array([step.duration for step in steps])
        return VectorStep(
            obs=self.all(),
            reward=np.stack([step.reward for step in steps]),
            terminated=np.array([step.terminated for step in steps]),
            truncated=np.array([step.truncated for step in steps]),
            final=final,
            duration=durations if durations.max() > 1 else None,
        )


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("workers", [0, 2, 5])
def test_equals_a_plain_loop_bit_for_bit(kind: str, workers: int, opened: list[Any]) -> None:
    shape, rng = SHAPES[kind], np.random.default_rng(workers)
    makes = [partial(Walk, shape)] * NUM_ENVS
    tested: Any = ProcessVector(makes, workers) if workers else SyncVector(makes)
    opened.append(tested)
    loop = Loop(shape, NUM_ENVS)
    seeds = [int(seed) for seed in rng.integers(0, 2**32, NUM_ENVS)]
    assert frozen(tested.reset(seeds)) == frozen(loop.reset(seeds))
    ends = 0
    for round_ in range(3):
        for _ in range(6):
            action = actions(shape, rng)
            got, expected = tested.step(action), loop.step(action)
            assert frozen(got) == frozen(expected)
            ends += 0 if expected.final is None else len(expected.final.env)
        index, seed = int(rng.integers(NUM_ENVS)), [None, 7, 0][round_]
        assert frozen(tested.reset_at(index, seed)) == frozen(loop.reset_at(index, seed))
        assert tested.render(index) == loop.render(index)
        states = tested.get_state()
        assert frozen(own(states)) == frozen(loop.get_state())
        if shape.saves:
            now = frozen(loop.all())
            tested.step(actions(shape, rng))
            assert frozen(tested.set_state(states)) == frozen(loop.set_state(own(states))) == now
        else:
            assert states == [None] * NUM_ENVS
            with pytest.raises(CheckpointError, match=r"none for environments \[0, 1, 2, 3, 4\]"):
                tested.set_state(states)
    assert ends > 0


def test_is_a_vector_env(vector: Vector) -> None:
    tested = vector([partial(Walk, Shape())] * 3)
    assert isinstance(tested, VectorEnv)
    assert tested.num_envs == 3
    assert tested.spec == Walk(Shape()).spec


def test_results_besides_observations_are_the_callers_to_keep(vector: Vector) -> None:
    tested = vector([partial(Walk, Shape(sometimes_terminated=0.5))] * 4)
    tested.reset([1, 2, 3, 4])
    steps = [tested.step(calm(tested)) for _ in range(6)]
    kept = [frozen((step.reward, step.terminated, step.truncated, step.final)) for step in steps]
    for _ in range(6):
        tested.step(calm(tested))
    assert kept == [frozen((step.reward, step.terminated, step.truncated, step.final)) for step in steps]
    assert len({reward for (reward, *_) in kept}) == 6


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_workers_need_not_divide_environments(workers: int, processes: Vector, tmp_path: Path) -> None:
    makes = [partial(Troubled, TROUBLE, str(tmp_path / str(index))) for index in range(7)]
    tested = processes(makes, workers)
    tested.reset(list(range(10, 17)))
    assert [(tmp_path / str(index)).read_text() for index in range(7)] == [f"{seed}\n" for seed in range(10, 17)]
    sizes = [len(held) for held in tested._env_ranges]
    assert sum(sizes) == 7
    assert max(sizes) - min(sizes) <= 1
    assert all(a.stop == b.start for a, b in pairwise(tested._env_ranges))


# Errors of the caller


def test_calls_before_reset_and_after_close(vector: Vector) -> None:
    tested = vector([partial(Walk, Shape())] * 2)
    for call in (partial(tested.step, calm(tested)), partial(tested.reset_at, 0), tested.get_state, tested.render):
        with pytest.raises(RuntimeError, match="walk: call `reset`"):
            call()
    tested.reset([1, 2])
    tested.close()
    tested.close()
    for call in (partial(tested.step, calm(tested)), partial(tested.reset, [1, 2])):
        with pytest.raises(RuntimeError, match="walk: this vector of environments is closed"):
            call()


def test_starts_from_a_state_without_reset(vector: Vector) -> None:
    first, second = (vector([partial(Walk, Shape())] * 2) for _ in range(2))
    first.reset([5, 6])
    first.step(calm(first))
    states = first.get_state()
    assert frozen(second.set_state(states)) == frozen(first.set_state(states))
    for _ in range(10):
        assert frozen(second.step(calm(second))) == frozen(first.step(calm(first)))


@pytest.mark.parametrize(
    ("shape", "bad"),
    [
        (Shape(), np.zeros((2, 2))),
        (Shape(), np.zeros((3, 2), np.int64)),
        (Shape(), np.zeros((2, 2, 1), np.int64)),
        (Shape(), np.zeros(2, np.int64)),
        (Shape(action="box"), np.zeros((2, 2, 3), np.float32)),
        (Shape(action="box"), np.zeros((2, 2, 4), complex)),
        (Shape(action="text"), [["go"], ["stay"]]),
        (Shape(action="text"), ["go", "stay"]),
    ],
)
def test_actions_of_another_shape_or_kind(shape: Shape, bad: Any, vector: Vector) -> None:
    tested = vector([partial(Walk, shape)] * 2)
    tested.reset([1, 2])
    with pytest.raises(ValueError, match=r"walk: actions must be .* \(2, 2"):
        tested.step(bad)
    tested.step(actions(shape, np.random.default_rng(0), 2))


def test_seeds_indices_and_states_that_do_not_fit(vector: Vector) -> None:
    tested = vector([partial(Walk, Shape())] * 2)
    with pytest.raises(ValueError, match="2 seeds, one an environment, got 3"):
        tested.reset([1, 2, 3])
    with pytest.raises(ValueError, match="non-negative integer, got -1"):
        tested.reset([1, -1])
    tested.reset([1, 2])
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"environment {index} is not one of 0 to 1"):
            tested.reset_at(index)
    states = tested.get_state()
    with pytest.raises(CheckpointError, match="2 environments with 1 states"):
        tested.set_state(states[:1])
    with pytest.raises(CheckpointError, match=r"none for environments \[1\]"):
        tested.set_state([states[0], None])
    tested.step(calm(tested))


def test_construction_refuses_what_cannot_run(vector: Vector) -> None:
    with pytest.raises(ConfigError, match="at least one environment"):
        vector([])
    for workers in (0, 3, -1):
        with pytest.raises(ConfigError, match=f"workers={workers} cannot share 2 environments; give 1 to 2"):
            ProcessVector([Idle] * 2, workers)
    with pytest.raises(ConfigError, match="timeout=0 is no time to wait"):
        ProcessVector([Idle] * 2, 1, timeout=0)
    with pytest.raises(ConfigError, match="can be pickled"):
        ProcessVector([lambda: Walk(Shape())], 1)


# Errors of an environment


@pytest.mark.parametrize("when", ["reset", "step", "final", "autoreset"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("agents", np.zeros((2, 4), np.float32), r"`agents` must be an array float32 \(2, 3\), got float32 \(2, 4\)"),
        ("agents", np.zeros((3, 3), np.float32), r"`agents` must be .*, got float32 \(3, 3\)"),
        ("agents", np.zeros((2, 3)), r"`agents` must be .*, got float64 \(2, 3\)"),
        ("agents", np.zeros((1, 2, 3), np.float32), r"`agents` must be .*, got float32 \(1, 2, 3\)"),
        ("agents", ("a", "b"), r"`agents` must be .*, got tuple \('a', 'b'\)"),
        ("alive", np.ones(2), r"`alive` must be an array bool \(2,\), got float64 \(2,\)"),
        ("alive", None, r"`alive` must be .*, got NoneType None"),
        ("state", np.zeros(4, np.float32), r"`state` must be an array float32 \(5,\), got float32 \(4,\)"),
        ("state", None, r"`state` must be .*, got NoneType None"),
        ("candidates", ["one"], r"`candidates` must hold one entry for each of 2 agents, got \['one'\]"),
    ],
)
def test_observations_that_break_the_spec(when: str, field: str, value: Any, message: str, vector: Vector) -> None:
    good = partial(Broken, "", None, "never")
    tested = vector([good, good, partial(Broken, field, value, when)], name="toy/broken")
    with pytest.raises(EnvironmentContractError, match="toy/broken, environment 2: " + message):
        go(tested)
    with pytest.raises(RuntimeError, match="closed"):
        tested.reset([1, 2, 3])


@pytest.mark.parametrize(
    ("field", "value", "when", "message"),
    [
        ("reward", np.zeros(3, np.float32), "step", r"`reward` must be an array float32 \(2,\), got float32 \(3,\)"),
        ("reward", np.zeros(2), "final", r"`reward` must be .*, got float64 \(2,\)"),
        ("reward", 1.0, "step", r"`reward` must be .*, got float 1\.0"),
        ("terminated", np.zeros(2, bool), "step", "`terminated` and `truncated` must each be one bool"),
        ("truncated", 1, "final", "`terminated` and `truncated` must each be one bool"),
        ("info", {"map": "8m"}, "final", r"`info\['map'\]` must be a scalar, got str '8m'"),
        ("info", None, "final", "`info` must be a mapping"),
        ("duration", 0, "step", "`duration` must be a whole number of 1 or more, got 0"),
        ("duration", 2.5, "final", r"`duration` must be .*, got 2\.5"),
        ("action_mask", None, "step", r"`action_mask` must be an array bool \(2, 4\), got NoneType"),
        ("action_mask", np.ones((2, 4)), "step", r"`action_mask` must be .*, got float64 \(2, 4\)"),
    ],
)
def test_steps_that_break_the_spec(field: str, value: Any, when: str, message: str, vector: Vector) -> None:
    tested = vector([partial(Walk, Shape()), partial(Broken, field, value, when)], name="toy/broken")
    with pytest.raises(EnvironmentContractError, match="toy/broken, environment 1: " + message):
        go(tested)


def test_fields_that_the_spec_denies(vector: Vector) -> None:
    tested = vector([partial(Walk, Shape(mask=False)), partial(Walk, Shape())])
    with pytest.raises(
        EnvironmentContractError, match=r"environments \[1\] give an `action_mask` and environments \[0\]"
    ):
        tested.reset([1, 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_shapes_that_only_fit_in_sum(workers: int, opened: list[Any]) -> None:
    """One row too many in one environment and one too few in another fill a batch exactly."""
    more = partial(Broken, "reward", np.zeros(3, np.float32), "step")
    less = partial(Broken, "reward", np.zeros(1, np.float32), "step")
    opened.append(ProcessVector([more, less], workers) if workers else SyncVector([more, less]))
    with pytest.raises(EnvironmentContractError, match="environment 0: `reward` must be"):
        go(opened[-1])


@pytest.mark.parametrize(
    "other", [Shape(agents=3), Shape(size=4), Shape(actions=5), Shape(state=False), Shape(text=True)]
)
def test_environments_that_do_not_fit_together(other: Shape, vector: Vector) -> None:
    with pytest.raises(EnvironmentContractError, match="environment 2: `spec"):
        vector([partial(Walk, Shape()), partial(Walk, Shape()), partial(Walk, other)], name="toy/mixed")
    vector([partial(Walk, Shape()), partial(Walk, Shape(max_steps=3))])


def test_a_factory_that_raises(vector: Vector) -> None:
    good = partial(Walk, Shape())
    with pytest.raises(WorkerError, match=r"(?s)toy/x, environment 1 raised TypeError.*Traceback.*__init__") as caught:
        vector([good, Walk, good], name="toy/x")
    assert "shape" in str(caught.value)


def test_an_environment_that_raises(vector: Vector) -> None:
    tested = vector([partial(Troubled, TROUBLE)] * 4, name="toy/x")
    tested.reset([1, 2, 3, 4])
    tested.step(calm(tested))
    with pytest.raises(WorkerError) as caught:
        tested.step(trouble(tested, 3, "raise"))
    message = str(caught.value)
    assert message.startswith("toy/x, environment 3 raised ZeroDivisionError: the simulator is out of luck")
    assert re.search(r"Traceback .*vector_envs\.py.*in disaster", message, re.DOTALL)
    assert not multiprocessing.active_children()


def test_errors_of_the_suite_keep_their_class(vector: Vector) -> None:
    tested = vector([partial(Troubled, TROUBLE)] * 2, name="toy/x")
    tested.reset([1, 2])
    with pytest.raises(NonFiniteError, match="toy/x, environment 1: a NaN in the torque"):
        tested.step(trouble(tested, 1, "refuse"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kill", "died of SIGKILL in `step`; the system kills what exceeds its memory: use fewer"),
        ("segfault", "died of SIGSEGV in `step`"),
        ("exit", "exited with code 3 in `step`"),
        ("hang", "did not answer `step` in time: an environment hangs, or needs a longer `timeout`"),
    ],
)
def test_a_worker_that_is_lost(kind: str, message: str, processes: Vector) -> None:
    tested = processes([partial(Troubled, TROUBLE)] * 5, name="toy/x", timeout=2.0)
    tested.reset([1, 2, 3, 4, 5])
    tested.step(calm(tested))
    start = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        tested.step(trouble(tested, 2, kind))
    assert str(caught.value).startswith(f"toy/x: worker 1, which holds environments 2 to 4, {message}")
    assert time.monotonic() - start < 6
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("call", ["step", "reset", "reset_at", "get_state", "render"])
def test_a_worker_killed_between_calls(call: str, processes: Vector) -> None:
    tested = processes([partial(Walk, Shape())] * 2, workers=1)
    tested.reset([1, 2])
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGKILL)
    arguments = {"step": (calm(tested),), "reset": ([1, 2],), "reset_at": (0,)}.get(call, ())
    with pytest.raises(
        WorkerError, match=f"walk: worker 0, which holds environments 0 to 1, died of SIGKILL in `{call}`"
    ):
        getattr(tested, call)(*arguments)


# Restarts


@pytest.mark.parametrize("kind", ["raise", "kill", "hang"])
def test_restart_ends_the_lost_episodes_and_leaves_the_others_alone(
    kind: str, processes: Vector, caplog: pytest.LogCaptureFixture
) -> None:
    makes = [partial(Troubled, TROUBLE)] * 5
    tested, other = processes(makes, restart=True, timeout=2.0), SyncVector(makes)
    for each in (tested, other):
        each.reset([1, 2, 3, 4, 5])
        for _ in range(2):
            each.step(calm(each))
    other.step(calm(other))
    obs = tested.step(calm(tested)).obs
    before = frozen([obs.agents[2:], obs.alive[2:], obs.action_mask[2:], obs.state[2:]])
    with caplog.at_level(logging.WARNING, "marl"):
        lost = tested.step(trouble(tested, 3, kind))
    expected = other.step(calm(other))
    assert lost.restarted.tolist() == [False, False, True, True, True]
    assert lost.truncated[2:].all()
    assert not lost.terminated[2:].any()
    assert not lost.reward[2:].any()
    place = lost.final.env >= 2
    assert lost.final.env[place].tolist() == [2, 3, 4]
    last = lost.final.obs
    assert frozen([last.agents[place], last.alive[place], last.action_mask[place], last.state[place]]) == before
    assert lost.final.info[-3:] == ({}, {}, {})
    assert "It is restarted" in caplog.text
    assert ("Traceback" in caplog.text) == (kind == "raise")
    for _ in range(10):
        assert frozen([lost.obs.agents[:2], lost.reward[:2], lost.terminated[:2], lost.truncated[:2]]) == frozen(
            [expected.obs.agents[:2], expected.reward[:2], expected.terminated[:2], expected.truncated[:2]]
        )
        lost, expected = tested.step(calm(tested)), other.step(calm(other))
        assert lost.restarted is None
    other.close()


def test_restart_keeps_the_last_text(processes: Vector) -> None:
    shape = Shape(text=True, candidates=True, actions=len(DISASTERS))
    tested = processes([partial(Troubled, shape)] * 3, workers=3, restart=True)
    tested.reset([1, 2, 3])
    before = tested.step(calm(tested)).obs
    lost = tested.step(trouble(tested, 1, "exit"))
    place = lost.final.env.tolist().index(1)
    assert lost.final.obs.agents[place] == before.agents[1]
    assert lost.obs.agents[1] != before.agents[1]
    if before.candidates and before.candidates[1]:
        assert lost.final.obs.candidates[place] == before.candidates[1]


def test_restart_seeds_are_fresh_and_a_function_of_the_seeds(processes: Vector, tmp_path: Path) -> None:
    runs = []
    for run in range(2):
        paths = [tmp_path / f"{run} {index}" for index in range(4)]
        tested = processes([partial(Troubled, TROUBLE, str(path)) for path in paths], restart=True)
        tested.reset([1, 2, 3, 4])
        for _ in range(3):
            tested.step(trouble(tested, 3, "raise"))
            tested.step(calm(tested))
        runs.append([[line for line in path.read_text().split() if line.isdigit()] for path in paths])
    assert runs[0] == runs[1]
    assert [len(seeds) for seeds in runs[0]] == [1, 1, 4, 4]
    assert len({seed for seeds in runs[0] for seed in seeds}) == 10


def test_restart_seeds_go_on_from_a_state(processes: Vector, tmp_path: Path) -> None:
    """A vector that continues another's states draws the seeds that the other would have drawn."""

    def make(name: str) -> Any:
        makes = [partial(Troubled, TROUBLE, str(tmp_path / f"{name} {index}")) for index in range(2)]
        return processes(makes, restart=True)

    def seeds(name: str) -> list[list[str]]:
        paths = [tmp_path / f"{name} {index}" for index in range(2)]
        return [[line for line in path.read_text().split() if line.isdigit()] for path in paths]

    whole, other, resumed = make("whole"), make("other"), make("resumed")
    whole.reset([1, 2])
    other.reset([3, 4])
    for each in (whole, other):
        each.step(trouble(each, 0, "raise"))
        each.step(calm(each))
    resumed.set_state(whole.get_state())
    for each in (whole, other, resumed):
        for index in range(2):
            each.step(trouble(each, index, "raise"))
            each.step(calm(each))
    assert [len(drawn) for drawn in seeds("whole")] == [3, 2]
    assert seeds("resumed") == [drawn[-1:] for drawn in seeds("whole")]
    assert not {seed for drawn in seeds("whole") for seed in drawn} & {
        seed for drawn in seeds("other") for seed in drawn
    }


def test_three_losses_in_a_row_raise(processes: Vector) -> None:
    tested = processes([partial(Troubled, TROUBLE)] * 2, restart=True)
    tested.reset([1, 2])
    for _ in range(2):
        assert tested.step(trouble(tested, 0, "kill")).restarted.tolist() == [True, False]
    with pytest.raises(WorkerError, match=r"worker 0.* was lost 3 times without a step.*SIGKILL"):
        tested.step(trouble(tested, 0, "kill"))
    assert not multiprocessing.active_children()


def test_an_environment_that_never_starts_raises(processes: Vector) -> None:
    tested = processes([partial(Troubled, TROUBLE, "", 1, "exit")] * 2, restart=True)
    with pytest.raises(WorkerError, match=r"was lost 3 times without a step.*exited with code 3 in `reset`"):
        tested.reset([1, 2])


def test_restart_does_not_hide_a_broken_contract(processes: Vector) -> None:
    tested = processes([partial(Broken, "reward", None, "step")], workers=1, restart=True)
    tested.reset([1])
    with pytest.raises(EnvironmentContractError, match="environment 0: `reward` must be"):
        tested.step(calm(tested))


def test_restart_after_a_death_that_get_state_found(processes: Vector) -> None:
    tested = processes([partial(Walk, Shape())] * 3, workers=3, restart=True)
    tested.reset([1, 2, 3])
    os.kill(tested._pool.workers[1].process.pid, signal.SIGKILL)
    states = tested.get_state()
    assert [state is None for state in states] == [False, True, False]
    assert tested.step(calm(tested)).restarted.tolist() == [False, True, False]
    assert None not in tested.get_state()


# Processes come and go


def test_close_reaches_the_environments_and_leaves_nothing(tmp_path: Path) -> None:
    def once() -> None:
        tested = ProcessVector([partial(Troubled, TROUBLE, str(tmp_path / str(index))) for index in range(3)], 2)
        go(tested, 1)
        tested.close()
        assert all((tmp_path / str(index)).read_text().endswith("closed\n") for index in range(3))

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(10):
        once()
    gc.collect()
    assert not multiprocessing.active_children()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_views_outlive_the_vector(processes: Vector) -> None:
    tested = processes([partial(Walk, Shape())] * 2)
    obs = tested.reset([1, 2])
    bits = frozen(obs)
    tested.close()
    del tested
    gc.collect()
    assert frozen(obs) == bits


def test_a_forgotten_vector_ends_its_processes() -> None:
    tested = ProcessVector([Idle] * 2, 2)
    assert len(multiprocessing.active_children()) == 2
    del tested
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_failed_construction_leaves_nothing(tmp_path: Path) -> None:
    for workers in (1, 2):
        makes: list[Any] = [partial(Troubled, TROUBLE, str(tmp_path / str(workers))), Walk]
        with pytest.raises(WorkerError, match="environment 1 raised TypeError"):
            ProcessVector(makes, workers)
        assert not multiprocessing.active_children()
        assert (tmp_path / str(workers)).read_text() == "closed\n"


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """A Ctrl-C in the middle of what is inside, which must not finish."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_an_interrupt_loses_one_step_and_nothing_else(processes: Vector) -> None:
    makes = [partial(Troubled, TROUBLE)] * 2
    tested, twin = processes(makes), SyncVector(makes)
    for each in (tested, twin):
        each.reset([1, 2])
    with interrupt_after(0.1):
        tested.step(trouble(tested, 1, "nap"))
    twin.step(trouble(twin, 1, "nap"))
    assert frozen(own(tested.get_state())) == frozen(own(twin.get_state()))
    assert frozen(tested.step(calm(tested))) == frozen(twin.step(calm(twin)))


def test_close_after_an_interrupt_does_not_wait_for_the_step(processes: Vector, tmp_path: Path) -> None:
    tested = processes([partial(Troubled, TROUBLE, str(tmp_path / "trace"))], workers=1)
    tested.reset([1])
    with interrupt_after(0.1):
        tested.step(trouble(tested, 0, "hang"))
    start = time.monotonic()
    tested.close()
    assert time.monotonic() - start < 5
    assert (tmp_path / "trace").read_text() == "1\nclosed\n"


@pytest.mark.parametrize("restart", [False, True])
def test_a_message_cut_in_two_is_a_loss(restart: bool, processes: Vector) -> None:
    tested = processes([partial(Walk, Shape())] * 2, restart=restart)
    tested.reset([1, 2])
    tested._pool.workers[1].partial = True
    if restart:
        assert tested.step(calm(tested)).restarted.tolist() == [False, True]
    else:
        with pytest.raises(WorkerError, match=r"worker 1.* was interrupted in the middle of a message"):
            tested.step(calm(tested))


def test_workers_leave_an_interrupt_to_the_parent(processes: Vector) -> None:
    tested = processes([partial(Walk, Shape())] * 2)
    tested.reset([1, 2])
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    time.sleep(0.05)
    tested.step(calm(tested))


SCRIPT = """
import multiprocessing, os, sys, time
from functools import partial
import numpy as np
from vector_envs import Shape, Troubled
from marl.vector import ProcessVector
if __name__ == "__main__":
    vector = ProcessVector([partial(Troubled, Shape(), sys.argv[1])] * 3, 2)
    vector.reset([1, 2, 3])
    vector.step(np.zeros((3, 2), np.int64))
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    {end}
"""


def start_script(folder: Path, end: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("{end}", end))
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1])])
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "trace")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not any(runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see processes")
def test_children_of_a_killed_parent_exit(tmp_path: Path) -> None:
    with start_script(tmp_path, "time.sleep(60)") as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(runs(pid) for pid in pids)
        parent.kill()
        assert gone(pids, 3.0)
        assert parent.communicate()[1] == ""
    assert (tmp_path / "trace").read_text().count("closed") == 3


def test_a_program_that_ends_without_close_is_silent(tmp_path: Path) -> None:
    with start_script(tmp_path, "pass") as parent:
        out, err = parent.communicate(timeout=60)
    assert err == ""
    assert parent.returncode == 0
    assert (tmp_path / "trace").read_text().count("closed") == 3
    assert gone([int(pid) for pid in out.split()], 1.0)


# By name


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A family `batched`, whose native batch notes how it was made."""
    made: list[Any] = []

    def batch_(task: str, num_envs: int, threads: int, **options: Any) -> Any:
        made.append((task, num_envs, threads, options))
        return SyncVector([partial(Walk, Shape(**options))] * num_envs)

    entry = EnvEntry("batched", make=lambda task, **options: Walk(Shape(**options)), make_vector=batch_)  # noqa: ARG005
    monkeypatch.setitem(ENVS.entries, "batched", entry)
    return made


def test_make_vector_picks_batch_loop_or_processes(registered: list[Any], opened: list[Any]) -> None:
    opened.append(make_vector("batched/8m", {"agents": 3}, 4, threads=2))
    assert registered == [("8m", 4, 2, {"agents": 3})]
    opened.append(make_vector("vector_envs:Idle", {}, 3))
    assert isinstance(opened[-1], SyncVector)
    opened.append(make_vector("vector_envs:Idle", {}, 3, workers=2, restart=True))
    assert isinstance(opened[-1], ProcessVector)
    assert len(multiprocessing.active_children()) == 2
    assert opened[-1].reset([1, 2, 3]).agents.shape == (3, 8, 80)
    assert len(registered) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs=0 holds no environment"),
        ({"workers": 3}, "workers=3 cannot share num_envs=2 environments; give 0 to 2"),
        ({"workers": -1}, "workers=-1 cannot share num_envs=2 environments; give 0 to 2"),
        ({"threads": 0}, "threads=0 cannot run; give 1 or more"),
        ({"threads": 2}, "threads=2 has no effect, it is not batched"),
        ({"threads": 2, "workers": 1}, "threads=2 has no effect, workers run one thread each"),
        ({"restart": True}, "workers=0 has none; set workers"),
    ],
)
def test_make_vector_refuses_options_without_effect(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_vector("vector_envs:Idle", {}, **{"num_envs": 2, **options})


def test_workers_run_one_thread(processes: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tested = processes([partial(Threads, Shape())], workers=1)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    tested.reset([1])
    assert tested.render(0) == "1 thread of torch"


SPACE_OF_A_FILE = """
import dataclasses
import gymnasium
from marl.registry import EnvFactory

class OwnBox(gymnasium.spaces.Box):
    pass

def make():
    env = EnvFactory("toy/chain")()
    box = env.spec.observation_space
    env.spec = dataclasses.replace(env.spec, observation_space=OwnBox(box.low, box.high))
    return env
"""


def test_a_space_of_a_class_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(SPACE_OF_A_FILE)
    with pytest.raises(WorkerError, match=r"cannot be imported here \(No module named 'own_.*use spaces of gymnasium"):
        make_vector(f"{file}:make", {}, 2, workers=1)
