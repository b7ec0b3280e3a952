"""Evaluation on paired seeds: episode i starts from the same seed for every agent and at every time.


Training chooses the best checkpoint by episodes on the validation seeds. A score on those is too high, because it was
selected. Scores to report come from the test seeds, which choose nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from marl.config import MAX_EPISODE_STEPS
from marl.episodes import never_stop, play_episodes
from marl.info import finite_info
from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.seeding import Streams
from marl.stats import mean_interval
from marl.types import EnvSpec


MAX_AGENT_RETURNS = 16
"""The largest team whose agents have returns of their own in the log."""

Split = Literal["validation", "test"]
"""Which seeds an evaluation plays: those that choose the best checkpoint, or those that score it."""


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode: `returns` is the mean over agents of the undiscounted return.

    `type_returns` are the means over the agents of each type, see `return_labels`. `cut`: the episode was left at the
    step limit, so it has no last info.
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
    """Return the label, shape (N,), under which each agent's return is averaged; empty where all returns are equal.

    Labels are the agent types. Agents of one type, in teams of at most MAX_AGENT_RETURNS, are told apart by name.
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
    """The seeds of evaluation episodes 0..count-1 of a split: the same for every agent, run and time."""
    streams = Streams(0)
    return [streams.integer("eval" if split == "validation" else "test", i) for i in range(count)]


def summarize(rows: Sequence[EpisodeRow], prefix: str = "eval") -> dict[str, float]:
    """Means over episodes, with the 95 % Student interval of the mean return, as `PREFIX/NAME`.

    Returns of agent types are `PREFIX/return/TYPE`. What the infos of all episodes that ended by themselves hold is
    averaged over these, where it speaks of the episode (see `of_episode`); an episode that was cut at the step limit
    counts as no success. An episode whose return is not finite is left out and counted as `PREFIX/dropped`, and one
    that was cut is counted as `PREFIX/cut`.
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
    """Whether a scalar of an episode's last info speaks of the whole team and episode.

    The terms of the last step's reward do not, nor does what belongs to one agent (AGENT/NAME); returns and lengths
    that a wrapper adds are known already.
    """
    if "reward" in name or "penalty" in name or "/" in name:
        return False
    return name not in ("episode_return", "episode_length", "TimeLimit.truncated")
