"""The promises of `EnvSpec`, `Obs` and `Step`, with one check for each."""

import math
from collections.abc import Mapping
from enum import IntEnum
from operator import index as as_int
from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces

from marl.errors import EnvironmentContractError
from marl.info import read_info
from marl.protocols import Env, VectorEnv
from marl.types import EnvSpec, Obs, Step, rounded_bounds


class Promise(IntEnum):
    """Promises of the contract. The number starts every message."""

    SPEC = 1
    OBSERVATION = 2
    ALIVE = 3
    ACTION_MASK = 4
    STATE = 5
    REWARD = 6
    ENDING = 7
    TIME_LIMIT = 8
    INFO = 9
    CALL_ORDER = 10
    DETERMINISM = 11
    RESTORE = 12
    RENDER = 13
    CLOSE = 14
    BATCH = 15
    AUTORESET = 16
    INDEPENDENCE = 17
    DURATION = 18


def fail(promise: Promise, where: str, text: str) -> NoReturn:
    """Raise EnvironmentContractError for a broken promise."""
    title = promise.name.lower().replace("_", " ")
    raise EnvironmentContractError(f"[{int(promise):02d} {title}] {where}: {text}")


def named(error: Exception) -> str:
    """Return the error with its class name."""
    return f"{type(error).__name__}: {error}"


def check_spec(env: Env | VectorEnv) -> str:
    """Check `env.spec` and return a line that describes it."""
    spec = env.spec
    where = f"{getattr(spec, 'name', type(env).__name__)}, spec"
    if not isinstance(spec, EnvSpec):
        fail(Promise.SPEC, where, f"is a {type(spec).__name__}; expected marl.types.EnvSpec")
    count = spec.num_agents
    if len(set(spec.agents)) < count:
        fail(Promise.SPEC, where, f"agents={spec.agents!r}; expected distinct names")
    if len(spec.agent_types) != count:
        fail(
            Promise.SPEC,
            where,
            f"agent_types has {len(spec.agent_types)} entries; expected {count}, one for each agent",
        )
    _check_space(where, "observation_space", spec.observation_space, (spaces.Box, spaces.Text))
    if isinstance(spec.action_space, spaces.Tuple):
        _check_team(where, spec)
    else:
        _check_space(where, "action_space", spec.action_space, (spaces.Discrete, spaces.Box, spaces.Text))
    if spec.state_space is not None:
        _check_space(where, "state_space", spec.state_space, (spaces.Box,))
    if isinstance(spec.observation_space, spaces.Box):
        _check_sizes(where, "observation_sizes", spec.observation_sizes, count, 0, spec.observation_size)
    if not isinstance(spec.action_space, spaces.Text):
        _check_sizes(where, "action_sizes", spec.action_sizes, count, 1, spec.action_size)
    limit = spec.max_steps
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        fail(Promise.SPEC, where, f"max_steps={limit!r}; expected an int of 1 or more, or None")
    for index, word in enumerate(spec.words):
        if not isinstance(word, str) or not word.strip():
            fail(Promise.SPEC, where, f"words[{index}] is {word!r}; expected a word")
    if env.spec != spec:
        fail(Promise.SPEC, where, "differs between two accesses; expected a constant")
    length = "without a declared limit" if limit is None else f"truncated at {limit} steps"
    seen, done = described(spec.observation_space), described(spec.action_space)
    return f"spec: {spec.name}, {count} agents, {seen} -> {done}, {length}"


def _check_team(where: str, spec: EnvSpec) -> None:
    """Check the action spaces of a mixed team."""
    for index, space in enumerate(spec.action_spaces):
        _check_space(where, f"action_space[{index}]", space, (spaces.Discrete, spaces.Box))
    own: Any = spec.action_spaces
    widths = tuple(int(space.n) if isinstance(space, spaces.Discrete) else space.shape[0] for space in own)
    if spec.action_sizes != widths:
        fail(Promise.SPEC, where, f"action_sizes={spec.action_sizes}; expected {widths}, as in action_space")


def described(space: Any) -> str:
    """Return a short description of a space. The repr of a Text space would print its whole alphabet."""
    if isinstance(space, spaces.Text):
        return f"Text(up to {space.max_length} of {len(space.character_set)} characters)"
    return str(space)


def _check_space(where: str, field: str, space: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(space, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        fail(Promise.SPEC, where, f"{field} is {space!r}; expected one of {names}")
    if isinstance(space, spaces.Discrete) and space.start != 0:
        fail(Promise.SPEC, where, f"{field} starts at {space.start}; expected 0")
    if isinstance(space, spaces.Box) and (len(space.shape) != 1 or space.dtype != np.float32):
        fail(Promise.SPEC, where, f"{field} has shape {space.shape} and dtype {space.dtype}; expected 1-D float32")


def _check_sizes(where: str, field: str, sizes: tuple[int, ...], count: int, least: int, width: int) -> None:
    if len(sizes) != count:
        fail(Promise.SPEC, where, f"{field} has {len(sizes)} entries; expected {count}, one for each agent")
    for index, size in enumerate(sizes):
        if not least <= size <= width:
            fail(Promise.SPEC, where, f"{field}[{index}] is {size}; expected {least}..{width}, the padded width")


def check_array(promise: Promise, where: str, field: str, value: Any, shape: tuple[int, ...], dtype: type) -> None:
    """Check type, shape and dtype of an array, and that floats are finite."""
    expected = f"expected an array of shape {shape} and dtype {np.dtype(dtype)}"
    if not isinstance(value, np.ndarray):
        fail(promise, where, f"{field} is {value!r} ({type(value).__name__}); {expected}")
    if value.shape != shape or value.dtype != dtype:
        fail(promise, where, f"{field} has shape {value.shape} and dtype {value.dtype}; {expected}")
    if dtype is np.float32:
        _check_entries(promise, where, field, value, np.isfinite(value), "a finite number")


def _check_entries(promise: Promise, where: str, field: str, value: np.ndarray, good: np.ndarray, wanted: str) -> None:
    if not good.all():
        index = np.argwhere(~good)[0].tolist()
        fail(promise, where, f"{field}{index} is {value[tuple(index)]}; expected {wanted}")


def _check_bounds(promise: Promise, where: str, field: str, value: np.ndarray, box: spaces.Box) -> None:
    least, most = rounded_bounds(box)
    inside = (value >= least) & (value <= most)
    if not inside.all():
        index = np.argwhere(~inside)[0].tolist()
        low, high = box.low[index[-1]], box.high[index[-1]]
        fail(promise, where, f"{field}{index} is {value[tuple(index)]}; expected {low}..{high}, the space's bounds")


def check_obs(spec: EnvSpec, obs: Any, where: str) -> None:
    """Check every field of an observation against the spec."""
    if not isinstance(obs, Obs):
        fail(Promise.OBSERVATION, where, f"the observation is a {type(obs).__name__}; expected marl.types.Obs")
    count = spec.num_agents
    check_array(Promise.ALIVE, where, "obs.alive", obs.alive, (count,), np.bool_)
    if isinstance(spec.observation_space, spaces.Box):
        check_array(Promise.OBSERVATION, where, "obs.agents", obs.agents, (count, spec.observation_size), np.float32)
        _check_bounds(Promise.OBSERVATION, where, "obs.agents", obs.agents, spec.observation_space)
        padding = np.arange(spec.observation_size) >= np.array(spec.observation_sizes)[:, None]
        _check_entries(
            Promise.OBSERVATION, where, "obs.agents", obs.agents, ~padding | (obs.agents == 0), "0, it is padding"
        )
    else:
        _check_texts(where, "obs.agents", obs.agents, count)
        for index in np.flatnonzero(obs.alive):
            _check_text(where, f"obs.agents[{index}]", obs.agents[index], spec.observation_space)
    if obs.candidates is not None:
        _check_candidates(spec, obs.candidates, where)
    _check_mask(spec, obs, where)
    if spec.state_space is None:
        if obs.state is not None:
            fail(Promise.STATE, where, "obs.state is given, but spec.state_space is None; expected None")
        return
    check_array(Promise.STATE, where, "obs.state", obs.state, (spec.state_size,), np.float32)
    assert obs.state is not None
    _check_bounds(Promise.STATE, where, "obs.state", obs.state, spec.state_space)


def _check_texts(where: str, field: str, texts: Any, count: int | None) -> None:
    if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
        fail(Promise.OBSERVATION, where, f"{field} is {texts!r}; expected a tuple of strings")
    if count is not None and len(texts) != count:
        fail(Promise.OBSERVATION, where, f"{field} has {len(texts)} strings; expected {count}, one for each agent")


def _check_text(where: str, field: str, text: str, space: Any) -> None:
    """Check length and characters of a text against its space."""
    if not space.min_length <= len(text) <= space.max_length:
        expected = f"expected {space.min_length}..{space.max_length}, the space's bounds"
        fail(Promise.OBSERVATION, where, f"{field} has {len(text)} characters; {expected}")
    strange = sorted(set(text) - space.character_set)
    if strange:
        expected = "expected those of the space's charset; give more: Text(1000, charset=...), TextEnv(characters=...)"
        fail(Promise.OBSERVATION, where, f"{field} holds {''.join(strange)!r}; {expected}")


def _check_candidates(spec: EnvSpec, candidates: Any, where: str) -> None:
    if len(candidates) != spec.num_agents:
        fail(Promise.OBSERVATION, where, f"obs.candidates has {len(candidates)} entries; expected {spec.num_agents}")
    for index, texts in enumerate(candidates):
        field = f"obs.candidates[{index}]"
        _check_texts(where, field, texts, None)
        if not texts:
            fail(Promise.OBSERVATION, where, f"{field} is empty; expected an action (a dead agent keeps one)")
        if twice := [text for place, text in enumerate(texts) if text in texts[:place]]:
            fail(Promise.OBSERVATION, where, f"{field} offers {twice[0]!r} twice; expected distinct actions")
        if isinstance(spec.action_space, spaces.Text):
            for place, text in enumerate(texts):
                _check_text(where, f"{field}[{place}]", text, spec.action_space)


def _check_mask(spec: EnvSpec, obs: Obs, where: str) -> None:
    field, mask = "obs.action_mask", obs.action_mask
    if isinstance(spec.action_space, spaces.Text):
        return
    if mask is None:
        if min(spec.action_sizes) < spec.action_size:
            fail(Promise.ACTION_MASK, where, f"{field} is None; expected a mask, since spec.action_sizes are unequal")
        return
    check_array(Promise.ACTION_MASK, where, field, mask, (spec.num_agents, spec.action_size), np.bool_)
    padding = np.arange(spec.action_size) >= np.array(spec.action_sizes)[:, None]
    _check_entries(Promise.ACTION_MASK, where, field, mask, ~(padding & mask), "False, it is padding")
    for index in np.flatnonzero(~mask.any(axis=1)):
        state = "living" if obs.alive[index] else "dead"
        fail(Promise.ACTION_MASK, where, f"{field}[{index}] ({state}) is all False; expected at least one True")


def check_step(spec: EnvSpec, step: Any, where: str) -> None:
    """Check every field of a step against the spec."""
    if not isinstance(step, Step):
        fail(Promise.ENDING, where, f"step returned a {type(step).__name__}; expected marl.types.Step")
    check_obs(spec, step.obs, where)
    check_reward(spec, step.reward, where)
    for field, value in (("terminated", step.terminated), ("truncated", step.truncated)):
        if not isinstance(value, bool | np.bool_):
            fail(Promise.ENDING, where, f"{field} is {value!r} ({type(value).__name__}); expected True or False")
    check_ending(bool(step.terminated), bool(step.truncated), where)
    check_agent_cuts(spec, step, where)
    if not isinstance(step.restarted, bool | np.bool_) or (step.restarted and not step.truncated):
        fail(Promise.ENDING, where, f"restarted={step.restarted!r}; expected a bool, True only where truncated is")
    read_duration(step.duration, where)
    check_info(step.info, where)


def read_duration(duration: Any, where: str) -> int:
    """Return a duration as an int. Like training, accept any whole number of 1 or more, a 0-d integer array too."""
    try:
        steps = as_int(duration)
    except TypeError:
        steps = 0
    if steps < 1:
        expected = "expected a whole number of primitive steps, 1 or more"
        fail(Promise.DURATION, where, f"duration={duration!r}; {expected}")
    return steps


def check_agent_cuts(spec: EnvSpec, step: Step, where: str) -> None:
    """Check that agents truncated alone have a final observation that agrees with `agent_truncated`."""
    cut, final = step.agent_truncated, step.final
    if cut is not None:
        check_array(Promise.ENDING, where, "agent_truncated", cut, (spec.num_agents,), np.bool_)
    if (step.terminated or step.truncated) and (cut is not None or final is not None):
        text = "agent_truncated or final is given where the episode ends; expected None, and cut agents alive in obs"
        fail(Promise.ENDING, where, text)
    if cut is None or not cut.any():
        if final is not None:
            fail(Promise.ENDING, where, "final is given, but agent_truncated is True for nobody; expected None")
        return
    if final is None:
        text = (
            f"final is None, but agent_truncated is {cut.tolist()}; expected the observation in which these still live"
        )
        fail(Promise.ENDING, where, text)
    check_obs(spec, final, f"{where}, final")
    check_cut_agents(cut, step.obs, final, where)


def check_cut_agents(cut: np.ndarray, obs: Obs, final: Obs, where: str) -> None:
    """Check that every truncated agent is alive in `final` and dead in `obs`."""
    for agent in np.flatnonzero(cut & (obs.alive | ~final.alive)):
        text = f"agent_truncated[{agent}] is True; expected the agent to be alive in the final observation, not in obs"
        fail(Promise.ENDING, where, text)


def check_reward(spec: EnvSpec, reward: Any, where: str) -> None:
    """Check a reward (N,) float32, which is equal for all agents if the team shares it."""
    check_array(Promise.REWARD, where, "reward", reward, (spec.num_agents,), np.float32)
    if spec.team_reward:
        _check_entries(Promise.REWARD, where, "reward", reward, reward == reward[0], f"{reward[0]}, the team's reward")


def check_ending(terminated: bool, truncated: bool, where: str) -> None:
    """Check that an episode is not both terminated and truncated."""
    if terminated and truncated:
        fail(Promise.ENDING, where, "terminated and truncated are both True; expected one: a true end is terminated")


def check_time(spec: EnvSpec, elapsed: int, terminated: bool, truncated: bool, where: str) -> None:
    """Check truncation at `max_steps`. `elapsed` counts primitive steps."""
    if spec.max_steps is None:
        return
    if elapsed >= spec.max_steps and not terminated and not truncated:
        fail(Promise.TIME_LIMIT, where, f"truncated is False after {elapsed} steps; expected True at max_steps")
    if elapsed < spec.max_steps and truncated:
        fail(Promise.TIME_LIMIT, where, f"truncated is True after {elapsed} steps; expected max_steps={spec.max_steps}")


def check_info(info: Any, where: str) -> None:
    """Check that an info maps strings to finite numbers."""
    if not isinstance(info, Mapping):
        fail(Promise.INFO, where, f"info is a {type(info).__name__}; expected a mapping")
    for name in info:
        if not isinstance(name, str):
            fail(Promise.INFO, where, f"info has the key {name!r}; expected a string")
    try:
        values = read_info(info)
    except EnvironmentContractError as error:
        fail(Promise.INFO, where, str(error))
    for name, value in values.items():
        if not math.isfinite(value):
            fail(Promise.INFO, where, f"info[{name!r}] is {value}; expected a finite number, or no entry")
