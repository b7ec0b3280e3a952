"""Playing episodes: the one loop behind evaluations, transcripts, videos and recorded data."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.recurrent_state import RecurrentState
from marl.types import Decision, Inputs, Obs, VectorStep

MAX_REPEATS = 3
"""Number of times that an episode is played again because its environment died."""


@dataclass(frozen=True)
class EpisodeStep:
    """One step of E environments that play episodes.

    `obs`, `inputs` and `decision` are from before the step, `step` is its outcome, and `recurrent_state` is the state
    after it. All arrays of the environments are valid until the next step is asked for.

    `episode`: (E,) int64, index of the episode among the seeds, -1 in an environment that plays none any more.
    `length`: (E,) int64, steps of the episode so far, this one included.
    `ended`: (E,) bool, the episode ends with this step: terminated, truncated, or cut.
    `cut`: (E,) bool, the episode ends only because it reached `max_steps`.
    `discarded`: (E,) bool, the environment died; its episode starts again from its seed.
    """

    obs: Obs
    inputs: Inputs
    decision: Decision
    step: VectorStep
    recurrent_state: RecurrentState
    episode: np.ndarray
    length: np.ndarray
    ended: np.ndarray
    cut: np.ndarray
    discarded: np.ndarray


def never_stop() -> bool:
    """Return False: the default of `stop`."""
    return False


def play_episodes(
    policy: Policy,
    env: VectorEnv,
    seeds: Sequence[int],
    max_steps: int,
    *,
    deterministic: bool = True,
    generator_seed: int = 0,
    stop: Callable[[], bool] = never_stop,
    copy_obs: bool = False,
) -> Iterator[EpisodeStep]:
    """Play one episode for each seed and yield every step of the E environments.

    Environment e plays episodes e, e + E, e + 2 E, ... to their ends, so that short episodes are not favored.
    An episode is cut after `max_steps` steps. Playing ends when all episodes have ended, or when `stop()` is true
    before a step.

    With `copy_obs`, `obs` and `inputs` hold a copy; environments may overwrite their observation during a step.
    """
    generator = torch.Generator(device=policy.device).manual_seed(generator_seed)
    count = env.num_envs
    episode = np.arange(count)
    episode[len(seeds) :] = -1
    length, repeats = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    recurrent_state = RecurrentState(policy, count)
    obs = env.reset([seeds[min(i, len(seeds) - 1)] for i in range(count)])
    while (episode >= 0).any() and not stop():
        if copy_obs:
            obs = copy.deepcopy(obs)
        with torch.inference_mode():
            inputs = recurrent_state.add_to(policy.encode(obs))
            decision = policy.act(inputs, generator, deterministic)
        recurrent_state.update(decision)
        step = env.step(decision.action)
        length += 1
        done = step.terminated | step.truncated
        cut = ~done & (length >= max_steps)
        over = done | cut
        playing = episode >= 0
        died = np.zeros_like(over) if step.restarted is None else step.restarted
        discarded = over & playing & died & (repeats < MAX_REPEATS)
        ended = over & playing & ~discarded
        yield EpisodeStep(
            obs, inputs, decision, step, recurrent_state, episode.copy(), length.copy(), ended, cut & playing, discarded
        )
        obs = step.obs
        if not over.any():
            continue
        recurrent_state.reset(over)
        length[over] = 0
        repeats[discarded] += 1
        repeats[ended] = 0
        episode[ended] += count
        episode[episode >= len(seeds)] = -1
        for index in np.flatnonzero((ended | discarded) & (episode >= 0)):
            obs = env.reset_at(int(index), seeds[episode[index]])
