"""Checks of one environment."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.envs.testing.compare import blank_action, overwritten, random_action, same, through_storage
from marl.envs.testing.contract import Promise, check_obs, check_spec, check_step, check_time, fail, named
from marl.errors import ConfigError, MissingDependencyError
from marl.protocols import Env
from marl.registry import as_env
from marl.types import EnvSpec, Obs, Step

FACTORY = "the given factory"
MAX_STEPS = 2000
"""Number of steps after which an endless episode is abandoned."""


@dataclass(frozen=True)
class Episode:
    """A recorded episode: the first observation, T actions, and T steps."""

    first: Obs
    actions: list[Any]
    steps: list[Step]

    def obs(self, index: int) -> Obs:
        """Return the observation before step `index`."""
        return self.first if index == 0 else self.steps[index - 1].obs

    @property
    def duration(self) -> int:
        """Length in primitive steps."""
        return sum(int(step.duration) for step in self.steps)

    @property
    def over(self) -> bool:
        """True once the episode has ended."""
        return bool(self.steps) and (self.steps[-1].terminated or self.steps[-1].truncated)


def check_env(make: Callable[[], Env] | Env, episodes: int = 2, seed: int = 0) -> list[str]:
    """Play `episodes` random episodes and check every promise of the contract. Returns one line for each check.

    `make` should be a factory: with a single instance, calls before the first `reset` and agreement between two
    instances cannot be checked. The environments are closed. Raises EnvironmentContractError at the first broken
    promise.
    """
    fresh = (lambda: as_env(make(), FACTORY)) if callable(make) else None
    env: Env = fresh() if fresh is not None else as_env(make, "the given object")
    lines = [check_spec(env)]
    spec = env.spec
    if fresh is not None:
        must_refuse(env, blank_action(spec), f"{spec.name}, before the first reset")
    record, reused = _record(env, episodes, seed)
    lines += _describe(spec, record)
    if reused:
        lines.append(
            f"buffers: {', '.join(sorted(reused))} of a step are overwritten by the next step or reset; `marl` copies "
            "in time, and a loop of your own must, too"
        )
    lines.append(f"call order: step raises RuntimeError {'before reset and ' if fresh else ''}after an episode's end")
    twin = fresh() if fresh is not None else env
    _check_determinism(env, twin, record, seed)
    lines.append(f"determinism: the same seed and actions give the same {episodes} episodes, bit for bit")
    restored = fresh() if fresh is not None else env
    lines.append(_check_restore(env, restored, record, seed))
    lines.append(_check_render(env))
    for instance in (env, twin, restored):
        instance.close()
        try:
            instance.close()
        except Exception as error:
            fail(Promise.CLOSE, spec.name, f"a second close raised {named(error)}; expected nothing to happen")
    lines.append("close: can be called twice")
    return lines


def _record(env: Env, episodes: int, seed: int) -> tuple[list[Episode], set[str]]:
    """Play random episodes, the first from the seed, and check every observation and step.

    Returns the episodes, and the names of fields that the environment overwrote after returning them.
    """
    spec, generator = env.spec, np.random.default_rng(seed)
    record: list[Episode] = []
    reused: set[str] = set()
    shown: Obs | Step | None = None
    kept: Any = None
    for number in range(episodes):
        elapsed = 0
        where = f"{spec.name}, episode {number}"
        first = env.reset(seed if number == 0 else None)
        if shown is not None:
            reused |= _overwritten(kept, shown)
        check_obs(spec, first, f"{where}, reset")
        if not first.alive.any():
            fail(Promise.ALIVE, f"{where}, reset", "obs.alive is all False; expected at least one living agent")
        episode = Episode(copy.deepcopy(first), [], [])
        shown, kept = first, episode.first
        while not episode.over and len(episode.steps) < min(spec.max_steps or MAX_STEPS, MAX_STEPS):
            action = random_action(spec, episode.obs(len(episode.steps)), generator)
            step = env.step(copy.deepcopy(action))
            reused |= _overwritten(kept, shown)
            at = f"{where}, step {len(episode.steps)}"
            check_step(spec, step, at)
            episode.actions.append(action)
            episode.steps.append(copy.deepcopy(step))
            shown, kept = step, episode.steps[-1]
            elapsed += int(step.duration)
            check_time(spec, elapsed, bool(step.terminated), bool(step.truncated), at)
        if episode.over:
            must_refuse(env, blank_action(spec), f"{where}, after its end")
        record.append(episode)
    return record, reused


def _overwritten(kept: Obs | Step, shown: Obs | Step) -> set[str]:
    prefix = "obs." if isinstance(kept, Obs) else ""
    return {prefix + name for name in overwritten(kept, shown)}


def must_refuse(env: Env, action: Any, where: str) -> None:
    """Check that `step` raises RuntimeError."""
    try:
        env.step(action)
    except RuntimeError:
        return
    except Exception as error:
        fail(Promise.CALL_ORDER, where, f"step raised {named(error)}; expected a RuntimeError")
    fail(Promise.CALL_ORDER, where, "step was accepted; expected a RuntimeError")


def _describe(spec: EnvSpec, record: list[Episode]) -> list[str]:
    lengths = [len(episode.steps) for episode in record]
    fields_seen = "observations, masks, rewards and flags agree with the spec"
    lines = [f"steps: {len(record)} episodes of {lengths} steps; {fields_seen}"]
    if spec.max_steps is not None:
        reached = spec.max_steps <= max(episode.duration for episode in record)
        lines.append(f"time limit: max_steps={spec.max_steps} was {'kept' if reached else 'not reached'}")
    if isinstance(spec.observation_space, spaces.Text):
        lines.append(_describe_texts([episode.obs(index) for episode in record for index in range(len(episode.steps))]))
    return lines


def _describe_texts(seen: list[Obs]) -> str:
    prompts = [text for obs in seen for text in obs.agents]
    span = f"{min(map(len, prompts))} to {max(map(len, prompts))} characters, {len(set(prompts))} different"
    offered = [len(texts) for obs in seen if obs.candidates is not None for texts in obs.candidates]
    actions = f"{min(offered)} to {max(offered)} candidates" if offered else "actions in free text"
    return f"text: prompts of {span}; {actions}"


def _replay(env: Env, episodes: list[Episode], promise: Promise, label: str) -> None:
    """Play recorded episodes again, each after `reset(None)`, and compare."""
    for number, episode in enumerate(episodes):
        where = f"{env.spec.name}, {label}, later episode {number}"
        same(promise, f"{where}, reset", episode.first, env.reset(None))
        _replay_steps(env, episode, 0, promise, where)


def _replay_steps(env: Env, episode: Episode, start: int, promise: Promise, where: str) -> None:
    for index in range(start, len(episode.steps)):
        step = env.step(copy.deepcopy(episode.actions[index]))
        same(promise, f"{where}, step {index}", episode.steps[index], step)


def _check_determinism(env: Env, twin: Env, record: list[Episode], seed: int) -> None:
    """Check that the seed repeats the record in the same instance, even in mid-episode, and in another instance."""
    label = f"reset(seed={seed}) again"
    check_obs(env.spec, env.reset(seed + 1), f"{env.spec.name}, reset(seed={seed + 1})")
    for instance in (env, twin):
        where = f"{env.spec.name}, {label}"
        same(Promise.DETERMINISM, f"{where}, reset", record[0].first, instance.reset(seed))
        _replay_steps(instance, record[0], 0, Promise.DETERMINISM, where)
        _replay(instance, record[1:], Promise.DETERMINISM, label)


def _check_restore(env: Env, other: Env, record: list[Episode], seed: int) -> str:
    episode = record[0]
    for point in sorted({0, len(episode.steps) // 2, len(episode.steps)}):
        where = f"{env.spec.name}, state after step {point} of {len(episode.steps)}"
        env.reset(seed)
        for action in episode.actions[:point]:
            env.step(copy.deepcopy(action))
        state = env.get_state()
        if state is None:
            return "get_state: None, this environment cannot be restored"
        saved = through_storage(state, where)
        _replay_steps(env, episode, point, Promise.RESTORE, f"{where}, continued after get_state")
        same(Promise.RESTORE, f"{where}, the state that get_state gave, after more steps", saved, state)
        given = copy.deepcopy(saved)
        try:
            obs = other.set_state(given)
        except Exception as error:
            fail(Promise.RESTORE, where, f"set_state raised {named(error)}; expected what get_state gave to be taken")
        same(Promise.RESTORE, f"{where}, set_state", episode.obs(point), obs)
        same(Promise.RESTORE, f"{where}, get_state after set_state", saved, through_storage(other.get_state(), where))
        if point == len(episode.steps) and episode.over:
            must_refuse(other, blank_action(env.spec), f"{where}, after set_state")
        _replay_steps(other, episode, point, Promise.RESTORE, f"{where}, after set_state")
        _replay(other, record[1:], Promise.RESTORE, f"after set_state at step {point}")
        same(Promise.RESTORE, f"{where}, the state given to set_state, after more steps", saved, given)
    return "get_state, set_state: an episode continues bit for bit, at its start, middle and end"


def _check_render(env: Env) -> str:
    env.reset()
    try:
        shown = env.render()
    except (ConfigError, MissingDependencyError) as error:
        return f"render: not checked, {error}"
    where = f"{env.spec.name}, render"
    if isinstance(shown, np.ndarray):
        if shown.ndim != 3 or shown.shape[2] != 3 or shown.dtype != np.uint8:
            expected = "expected (height, width, 3) uint8"
            fail(Promise.RENDER, where, f"a frame has shape {shown.shape} and dtype {shown.dtype}; {expected}")
        return f"render: frames of {shown.shape[1]} x {shown.shape[0]} pixels"
    if shown is not None and not isinstance(shown, str):
        fail(Promise.RENDER, where, f"gave a {type(shown).__name__}; expected an array, text or None")
    return "render: nothing to show" if shown is None else "render: text"
