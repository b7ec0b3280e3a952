"""Evaluation on paired seeds: episode i starts from the same seed for every agent and at every time."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from marl.info import finite_info
from marl.memory import Memory
from marl.protocols import Policy, VectorEnv
from marl.seeding import Streams
from marl.stats import mean_interval

MOST_REPEATS = 3
"""How often an episode is played again because its environment died."""


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode: `returns` is the mean over agents of the undiscounted return."""

    episode: int
    seed: int
    returns: float
    length: int
    terminated: bool
    info: dict[str, float] = field(default_factory=dict)


def evaluate(
    policy: Policy, env: VectorEnv, seeds: Sequence[int], deterministic: bool = True, generator_seed: int = 0
) -> list[EpisodeRow]:
    """One row per seed, in the order of `seeds`.

    Every seed is played to its end, whatever its length, so that short episodes are not favoured:
    environment e plays episodes e, e + E, e + 2 E, ... An episode that a dying environment cut short is played again,
    some times at most.
    """
    generator = torch.Generator(device=policy_device(policy)).manual_seed(generator_seed)
    count = env.num_envs
    playing = np.arange(count)
    totals, lengths, lost = np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    rows: dict[int, EpisodeRow] = {}
    obs = env.reset([seeds[min(i, len(seeds) - 1)] for i in range(count)])
    playing[len(seeds) :] = -1
    memory = Memory(policy, count)
    warned: set[str] = set()
    while (playing >= 0).any():
        with torch.inference_mode():
            decision = policy.act(memory.join(policy.encode(obs)), generator, deterministic)
        memory.keep(decision)
        step = env.step(decision.action)
        obs = step.obs
        totals += step.reward.mean(-1)
        lengths += 1
        ended = step.terminated | step.truncated
        if not ended.any():
            continue
        memory.forget(ended)
        step = copy.deepcopy(step)  # what it shows may be overwritten when an environment is reset
        infos = {} if step.final is None else dict(zip(step.final.env.tolist(), step.final.info, strict=True))
        for e in np.flatnonzero(ended):
            episode = int(playing[e])
            if episode >= 0 and step.restarted is not None and step.restarted[e] and lost[e] < MOST_REPEATS:
                lost[e] += 1
                obs = env.reset_at(int(e), seeds[episode])
            elif episode >= 0:
                info = finite_info(infos.get(int(e), {}), env.spec.name, warned)
                rows[episode] = EpisodeRow(
                    episode, seeds[episode], float(totals[e]), int(lengths[e]), bool(step.terminated[e]), info
                )
                following = episode + count
                playing[e] = following if following < len(seeds) else -1
                lost[e] = 0
                if playing[e] >= 0:
                    obs = env.reset_at(int(e), seeds[following])
            totals[e], lengths[e] = 0.0, 0
    return [rows[i] for i in range(len(seeds))]


def paired_seeds(count: int) -> list[int]:
    """The seeds of evaluation episodes 0..count-1: the same for every agent, run and time."""
    streams = Streams(0)
    return [streams.integer("eval", i) for i in range(count)]


def summarise(rows: Sequence[EpisodeRow]) -> dict[str, float]:
    """Means over episodes, with the 95 % Student interval of the mean return.

    What all infos hold is averaged too, as `eval/NAME`, where it speaks of the episode (see `of_episode`). An
    episode whose return is not finite is left out and counted as `eval/dropped`.
    """
    count = len(rows)
    rows = [row for row in rows if np.isfinite(row.returns)]
    dropped = {"eval/dropped": float(count - len(rows))} if len(rows) < count else {}
    if not rows:
        return dropped
    returns = np.array([row.returns for row in rows])
    low, high = mean_interval(returns)
    values = {
        "eval/return": float(returns.mean()),
        "eval/return_low": low,
        "eval/return_high": high,
        "eval/length": float(np.mean([row.length for row in rows])),
    }
    shared = set.intersection(*(set(row.info) for row in rows))
    for name in sorted(filter(of_episode, shared)):
        mean = float(np.mean([row.info[name] for row in rows]))
        if np.isfinite(mean):
            values[f"eval/{name}"] = mean
    return values | dropped


def of_episode(name: str) -> bool:
    """Whether a scalar of an episode's last info speaks of the whole team and episode.

    The terms of the last step's reward do not, nor does what belongs to one agent (AGENT/NAME); returns and lengths
    that a wrapper adds are known already.
    """
    if "reward" in name or "penalty" in name or "/" in name:
        return False
    return name not in ("episode_return", "episode_length", "TimeLimit.truncated")


def policy_device(policy: Policy) -> torch.device:
    """Where the policy's tensors live; the CPU for one without parameters."""
    module = policy.module
    tensor = None if module is None else next(iter(module.state_dict().values()), None)
    return torch.device("cpu") if tensor is None else tensor.device
