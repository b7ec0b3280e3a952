"""Evaluation on paired seeds: episode i starts from the same seed for every agent, run and time.

Training selects the best checkpoint by its score on the validation seeds, so that score is biased upwards. Report
scores on the test seeds, which select nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from marl.episodes import never_stop, play_episodes
from marl.info import finite_info
from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.seeding import Streams
from marl.settings import MAX_EPISODE_STEPS
from marl.stats import mean_interval
from marl.types import EnvSpec

MAX_AGENT_RETURNS = 16
"""Largest team for which the returns of single agents are logged."""

Split = Literal["validation", "test"]
"""Set of evaluation seeds: validation selects the best checkpoint, test scores it."""


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode.

    `episode_return`: undiscounted return, mean over agents. `type_returns`: its mean over the agents of each label, see
    `return_labels`. `cut`: the episode was cut at the step limit, so it has no final info.
    """

    episode: int
    seed: int
    episode_return: float
    length: int
    terminated: bool
    info: dict[str, float] = field(default_factory=dict)
    type_returns: dict[str, float] = field(default_factory=dict)
    cut: bool = False


def return_labels(spec: EnvSpec) -> tuple[str, ...]:
    """Return the labels (N,) under which the agents' returns are averaged; empty if the team shares its reward.

    A label is the agent's type. If all agents have the same type, a label is the agent's name, in teams of at most
    MAX_AGENT_RETURNS.
    """
    if spec.team_reward or spec.num_agents == 1:
        return ()
    if len(set(spec.agent_types)) > 1:
        return spec.agent_types
    return spec.agents if spec.num_agents <= MAX_AGENT_RETURNS else ()


def mean_by_label(labels: Sequence[str], returns: np.ndarray) -> dict[str, float]:
    """Return the mean of `returns` (N,) over the agents of each label."""
    return {
        label: float(np.mean([value for other, value in zip(labels, returns, strict=True) if other == label]))
        for label in dict.fromkeys(labels)
    }


def run_episodes(
    policy: Policy,
    env: VectorEnv,
    seeds: Sequence[int],
    deterministic: bool = True,
    generator_seed: int = 0,
    *,
    max_steps: int = MAX_EPISODE_STEPS,
    stop: Callable[[], bool] = never_stop,
) -> list[EpisodeRow]:
    """Play one episode for each seed and return one row for each, in the order of `seeds`.

    Environment e plays episodes e, e + E, e + 2 E, ... to their ends, so that short episodes are not favored. An
    episode whose environment died is played again. An episode is cut after `max_steps` steps, or after the
    environment's own limit where that is larger. If `stop()` becomes true, only the rows of finished episodes are
    returned.
    """
    limit = max(max_steps, env.spec.max_steps or 0)
    labels = return_labels(env.spec)
    returns = np.zeros((env.num_envs, env.spec.num_agents))
    rows: dict[int, EpisodeRow] = {}
    warned: set[str] = set()
    steps = play_episodes(
        policy, env, seeds, limit, deterministic=deterministic, generator_seed=generator_seed, stop=stop
    )
    for played in steps:
        step = played.step
        returns += step.reward
        if played.ended.any():
            infos = {} if step.final is None else dict(zip(step.final.env.tolist(), step.final.info, strict=True))
            for e in np.flatnonzero(played.ended):
                episode = int(played.episode[e])
                rows[episode] = EpisodeRow(
                    episode,
                    seeds[episode],
                    float(returns[e].mean()),
                    int(played.length[e]),
                    bool(step.terminated[e]),
                    finite_info(infos.get(int(e), {}), env.spec.name, warned),
                    mean_by_label(labels, returns[e]),
                    bool(played.cut[e]),
                )
        returns[played.ended | played.discarded] = 0.0
    return [rows[i] for i in sorted(rows)]


def paired_seeds(count: int, split: Split = "validation") -> list[int]:
    """Return the seeds of episodes 0 to count - 1 of a split: the same for every agent, run and time."""
    streams = Streams(0)
    return [streams.integer("eval" if split == "validation" else "test", i) for i in range(count)]


def summarize(rows: Sequence[EpisodeRow], prefix: str = "eval") -> dict[str, float]:
    """Return means over episodes, and the 95 % Student interval of the mean return, as `PREFIX/NAME`.

    Returns by label are `PREFIX/return/LABEL`. Entries of the final infos that describe the episode (see
    `is_episode_metric`) are averaged over the episodes that were not cut; a cut episode counts as no success. Episodes
    with a return that is not finite are left out and counted in `PREFIX/dropped`; `PREFIX/cut` counts cut episodes.
    """
    count = len(rows)
    rows = [row for row in rows if np.isfinite(row.episode_return)]
    counts = {"dropped": count - len(rows), "cut": sum(row.cut for row in rows)}
    counted = {f"{prefix}/{name}": float(number) for name, number in counts.items() if number}
    if not rows:
        return counted
    returns = np.array([row.episode_return for row in rows])
    low, high = mean_interval(returns)
    means = {
        "return": float(returns.mean()),
        "return_low": low,
        "return_high": high,
        "length": float(np.mean([row.length for row in rows])),
    }
    means |= {
        f"return/{label}": float(np.mean([row.type_returns[label] for row in rows])) for label in rows[0].type_returns
    }
    ended = [row for row in rows if not row.cut]
    shared = set.intersection(*(set(row.info) for row in ended)) if ended else set()
    for name in sorted(filter(is_episode_metric, shared)):
        total = sum(row.info[name] for row in ended)
        mean = total / len(rows if name == "success" else ended)
        if np.isfinite(mean):
            means[name] = float(mean)
    return {f"{prefix}/{name}": value for name, value in means.items()} | counted


def is_episode_metric(name: str) -> bool:
    """Return True if an entry of an episode's final info describes the team and the whole episode.

    Excludes reward terms of the last step, entries of one agent (AGENT/NAME), and the totals that wrappers add.
    """
    if "reward" in name or "penalty" in name or "/" in name:
        return False
    return name not in ("episode_return", "episode_length", "TimeLimit.truncated")
