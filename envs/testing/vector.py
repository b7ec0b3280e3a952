"""Checks of a batch of environments."""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from marl.envs.testing.compare import random_action, same, through_storage
from marl.envs.testing.contract import (
    Promise,
    check_array,
    check_cut_agents,
    check_ending,
    check_info,
    check_obs,
    check_reward,
    check_spec,
    check_time,
    fail,
)
from marl.protocols import Env, VectorEnv
from marl.types import Obs, VectorStep

Trace = list[tuple[Any, VectorStep]]
"""Pairs of an action and its step."""


def check_vector_env(
    make_vector: Callable[[], VectorEnv],
    seeds: list[int],
    make_env: Callable[[], Env] | None = None,
    steps: int = 100,
) -> list[str]:
    """Play `steps` random steps in E = len(seeds) environments and check every promise of the contract.

    With `make_env`, every environment is compared, bit for bit, with a single one of the same seed, which is reset
    by `reset(None)` at the end of an episode. This shows that `final` is the true last observation. Returns one line
    for each check. Raises EnvironmentContractError at the first broken promise.
    """
    vector = make_vector()
    name = vector.spec.name
    lines = [check_spec(vector)]
    if vector.num_envs != len(seeds):
        fail(Promise.BATCH, name, f"num_envs={vector.num_envs}; expected {len(seeds)}, one for each seed")
    first = _checked_batch(vector, vector.reset(list(seeds)), f"{name}, reset")
    trace = _run_vector(vector, first, _generators(seeds), steps)
    ends = sum(int((step.terminated | step.truncated).sum()) for _, step in trace)
    lines.append(f"batch: {len(seeds)} environments, {steps} steps, {ends} episodes ended, shapes and flags agree")
    if make_env is not None:
        for index, seed in enumerate(seeds):
            _check_against_single(make_env(), first, trace, index, seed)
        lines.append("autoreset: equal to single environments, final observations included")
    _check_vector_determinism(make_vector(), first, trace, seeds)
    lines.append("determinism: the same seeds and actions give the same batch, bit for bit")
    _check_vector_independence(make_vector(), first, trace, seeds)
    lines.append("independence: other seeds elsewhere leave environment 0 as it was")
    _check_reset_at(vector, first, trace, seeds)
    lines.append("reset_at: starts a new episode in one environment and leaves the others")
    lines.append(_check_vector_restore(vector, make_vector(), seeds, steps))
    vector.close()
    vector.close()
    return lines


def _generators(seeds: list[int]) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, index]) for index, seed in enumerate(seeds)]


def _row(obs: Obs, index: int) -> Obs:
    """Return the observation of one environment of a batch."""
    cut = {f.name: None if (value := getattr(obs, f.name)) is None else value[index] for f in fields(obs)}
    return Obs(**cut)  # pyright: ignore[reportArgumentType] - `alive` is never None


def _checked_batch(vector: VectorEnv, obs: Obs, where: str) -> Obs:
    """Check an observation of E environments and return a copy."""
    for f in fields(obs):
        value = getattr(obs, f.name)
        if value is not None and len(value) != vector.num_envs:
            fail(Promise.BATCH, where, f"obs.{f.name} has {len(value)} rows; expected {vector.num_envs}")
    for index in range(vector.num_envs):
        check_obs(vector.spec, _row(obs, index), f"{where}, environment {index}")
    return copy.deepcopy(obs)


def _run_vector(vector: VectorEnv, obs: Obs, generators: list[np.random.Generator], steps: int) -> Trace:
    """Take random actions from `obs` on and check every step."""
    spec = vector.spec
    elapsed = np.zeros(vector.num_envs, dtype=int)
    trace: Trace = []
    for number in range(steps):
        rows = [random_action(spec, _row(obs, index), each) for index, each in enumerate(generators)]
        step = vector.step(np.stack(rows))
        where = f"{spec.name}, step {number}"
        if not isinstance(step, VectorStep):
            fail(Promise.BATCH, where, f"step returned a {type(step).__name__}; expected marl.types.VectorStep")
        obs = _checked_batch(vector, step.obs, where)
        elapsed += _durations(step)
        _check_vector_step(vector, step, elapsed, where)
        elapsed[step.terminated | step.truncated] = 0
        trace.append((np.stack(rows), copy.deepcopy(step)))
    return trace


def _check_vector_step(vector: VectorEnv, step: VectorStep, elapsed: np.ndarray, where: str) -> None:
    spec, count = vector.spec, vector.num_envs
    check_array(Promise.BATCH, where, "reward", step.reward, (count, spec.num_agents), np.float32)
    check_array(Promise.BATCH, where, "terminated", step.terminated, (count,), np.bool_)
    check_array(Promise.BATCH, where, "truncated", step.truncated, (count,), np.bool_)
    if step.duration is not None:
        check_array(Promise.DURATION, where, "duration", step.duration, (count,), np.int64)
        if step.duration.min() < 1:
            fail(Promise.DURATION, where, f"duration={step.duration.tolist()}; expected 1 or more everywhere")
    if step.restarted is not None and step.restarted.any():
        fail(Promise.BATCH, where, f"restarted={step.restarted.tolist()}; expected no environment to be lost")
    for index in range(count):
        at = f"{where}, environment {index}"
        terminated, truncated = bool(step.terminated[index]), bool(step.truncated[index])
        check_reward(spec, step.reward[index], at)
        check_ending(terminated, truncated, at)
        check_time(spec, int(elapsed[index]), terminated, truncated, at)
    _check_vector_cuts(vector, step, where)
    ended = np.flatnonzero(step.terminated | step.truncated)
    final = step.final
    named = [] if final is None else np.asarray(final.env).tolist()
    if named != ended.tolist() or (final is not None and not named):
        found = "None" if final is None else f"for environments {named}"
        fail(Promise.AUTORESET, where, f"final is {found}; expected one for environments {ended.tolist()}, else None")
    if final is None:
        return
    if len(final.info) != len(named):
        fail(Promise.AUTORESET, where, f"final.info has {len(final.info)} entries; expected {len(named)}")
    for place, index in enumerate(named):
        at = f"{where}, final observation of environment {index}"
        check_obs(spec, _row(final.obs, place), at)
        check_info(final.info[place], at)


def _check_vector_cuts(vector: VectorEnv, step: VectorStep, where: str) -> None:
    """Check agents that are truncated alone."""
    spec, cut, final = vector.spec, step.agent_truncated, step.agent_final
    named = [] if final is None else np.asarray(final.env).tolist()
    if cut is not None:
        check_array(Promise.ENDING, where, "agent_truncated", cut, (vector.num_envs, spec.num_agents), np.bool_)
    expected = [] if cut is None else np.flatnonzero(cut.any(-1)).tolist()
    if named != expected:
        fail(
            Promise.ENDING, where, f"agent_final is for environments {named}; expected one for environments {expected}"
        )
    for place, index in enumerate(named):
        assert cut is not None
        assert final is not None
        at = f"{where}, agent_final of environment {index}"
        if step.terminated[index] or step.truncated[index]:
            fail(Promise.ENDING, at, "is given where the episode ends; expected None")
        row = _row(final.obs, place)
        check_obs(spec, row, at)
        check_cut_agents(cut[index], _row(step.obs, index), row, at)


def _check_against_single(env: Env, first: Obs, trace: Trace, index: int, seed: int) -> None:
    where = f"{env.spec.name}, environment {index} beside a single one with seed {seed}"
    same(Promise.AUTORESET, f"{where}, reset", env.reset(seed), _row(first, index))
    for number, (action, step) in enumerate(trace):
        at = f"{where}, step {number}"
        alone = env.step(action[index])
        obs = copy.deepcopy(alone.obs)
        flags = (bool(step.terminated[index]), bool(step.truncated[index]))
        same(Promise.AUTORESET, f"{at}, reward", alone.reward, step.reward[index])
        same(Promise.AUTORESET, f"{at}, (terminated, truncated)", (alone.terminated, alone.truncated), flags)
        same(Promise.AUTORESET, f"{at}, duration", int(alone.duration), int(_durations(step)[index]))
        if any(flags):
            assert step.final is not None
            place = np.asarray(step.final.env).tolist().index(index)
            same(Promise.AUTORESET, f"{at}, final observation", obs, _row(step.final.obs, place))
            same(Promise.AUTORESET, f"{at}, final info", dict(alone.info), dict(step.final.info[place]))
            obs = env.reset(None)
        elif alone.final is not None:
            assert step.agent_final is not None
            assert step.agent_truncated is not None
            place = np.asarray(step.agent_final.env).tolist().index(index)
            same(Promise.ENDING, f"{at}, agent_truncated", alone.agent_truncated, step.agent_truncated[index])
            same(Promise.ENDING, f"{at}, agent_final", alone.final, _row(step.agent_final.obs, place))
        same(Promise.AUTORESET, f"{at}, observation", obs, _row(step.obs, index))
    env.close()


def _durations(step: VectorStep) -> np.ndarray:
    """Return the duration of every step, (E,) int64."""
    return np.ones(len(step.terminated), dtype=np.int64) if step.duration is None else step.duration


def _same_row(promise: Promise, where: str, expected: VectorStep, actual: VectorStep, index: int) -> None:
    for field in ("reward", "terminated", "truncated"):
        same(promise, f"{where}, {field}", getattr(expected, field)[index], getattr(actual, field)[index])
    same(promise, f"{where}, duration", int(_durations(expected)[index]), int(_durations(actual)[index]))
    same(promise, where, _row(expected.obs, index), _row(actual.obs, index))


def _check_vector_determinism(vector: VectorEnv, first: Obs, trace: Trace, seeds: list[int]) -> None:
    where = f"{vector.spec.name}, a second vector with the seeds {seeds}"
    same(Promise.DETERMINISM, f"{where}, reset", first, vector.reset(list(seeds)))
    for number, (action, expected) in enumerate(trace):
        actual = vector.step(action)
        for index in range(len(seeds)):
            _same_row(Promise.DETERMINISM, f"{where}, step {number}, environment {index}", expected, actual, index)
    vector.close()


def _check_vector_independence(vector: VectorEnv, first: Obs, trace: Trace, seeds: list[int]) -> None:
    """Check that environment 0 repeats its trace beside other seeds."""
    others = [seed + 1000 for seed in seeds[1:]]
    generators = _generators(others)
    obs = vector.reset([seeds[0], *others])
    where = f"{vector.spec.name}, environment 0 beside other seeds"
    same(Promise.INDEPENDENCE, f"{where}, reset", _row(first, 0), _row(obs, 0))
    for number, (action, expected) in enumerate(trace):
        rows = [random_action(vector.spec, _row(obs, place + 1), each) for place, each in enumerate(generators)]
        step = vector.step(np.stack([action[0], *rows]))
        _same_row(Promise.INDEPENDENCE, f"{where}, step {number}", expected, step, 0)
        obs = step.obs
    vector.close()


def _check_reset_at(vector: VectorEnv, first: Obs, trace: Trace, seeds: list[int]) -> None:
    """Check that `reset_at` restarts the last environment and leaves the others as they are."""
    last = len(seeds) - 1
    obs = vector.reset_at(last, seed=seeds[last])
    where = f"{vector.spec.name}, reset_at({last}, seed={seeds[last]})"
    same(Promise.INDEPENDENCE, f"{where}, environment {last}", _row(first, last), _row(obs, last))
    for index in range(last):
        same(Promise.INDEPENDENCE, f"{where}, environment {index}", _row(trace[-1][1].obs, index), _row(obs, index))


def _check_vector_restore(vector: VectorEnv, other: VectorEnv, seeds: list[int], steps: int) -> str:
    where = f"{vector.spec.name}, get_state"
    states = vector.get_state()
    if len(states) != len(seeds):
        fail(Promise.RESTORE, where, f"gave {len(states)} states; expected {len(seeds)}")
    if any(state is None for state in states):
        other.close()
        return "get_state: None, this environment cannot be restored"
    saved = [through_storage(state, f"{where}[{index}]") for index, state in enumerate(states)]
    obs = other.set_state(copy.deepcopy(saved))
    obs = _checked_batch(other, obs, f"{vector.spec.name}, set_state")
    generators = _generators(seeds)
    for number in range(steps):
        action = np.stack([random_action(vector.spec, _row(obs, i), each) for i, each in enumerate(generators)])
        expected, actual = vector.step(action), other.step(action)
        for index in range(len(seeds)):
            at = f"{where}, step {number} after set_state in another vector, environment {index}"
            _same_row(Promise.RESTORE, at, expected, actual, index)
        obs = actual.obs
    other.close()
    return "get_state, set_state: another vector continues bit for bit"
