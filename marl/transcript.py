"""Transcripts: one episode step by step, with the advantage that training would assign to every node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from marl.backup import Links, backup
from marl.collector import bootstrap_value
from marl.episodes import never_stop, play_episodes
from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.types import Decision, Inputs, Obs
from marl.value_norm import ValueNorm

MAX_STEPS = 1000
"""Number of steps after which an episode is cut."""


@dataclass(frozen=True)
class TranscriptStep:
    """One step of an episode. `obs`, `inputs` and `decision` have a leading axis E = 1.

    `reward`: (N,). `duration`: primitive steps that the step took. `advantage`: (N, L), or (N, 1) where a value belongs
    to a whole action, in units of reward.
    """

    obs: Obs
    inputs: Inputs
    decision: Decision
    reward: np.ndarray
    duration: int
    advantage: Tensor


def record_transcript(
    policy: Policy,
    env: VectorEnv,
    seed: int,
    links: Links,
    value_norm: ValueNorm,
    *,
    deterministic: bool = True,
    max_steps: int = MAX_STEPS,
    stop: Callable[[], bool] = never_stop,
) -> list[TranscriptStep]:
    """Play the episode of `seed` in `env`, which holds one environment, and return its steps with their advantages.

    The episode is cut after `max_steps` steps, or after the first step at which `stop()` is true.
    """
    steps: list[TranscriptStep] = []
    cuts: dict[int, tuple[Tensor, Tensor]] = {}
    sequential = links.agents == "sequential"
    env_index = np.array([0])
    terminated, last, recurrent_state = False, None, None
    for played in play_episodes(policy, env, [seed], max_steps, deterministic=deterministic, copy_obs=True):
        if played.discarded[0]:
            steps, cuts = [], {}
            continue
        step, recurrent_state = played.step, played.recurrent_state
        if step.agent_final is not None:
            with torch.inference_mode():
                obs = step.agent_final.obs
                value = bootstrap_value(
                    policy, value_norm, obs, recurrent_state, env_index, sequential_agents=sequential
                )
            cuts[len(steps)] = torch.as_tensor(step.agent_truncated), value
        duration = 1 if step.duration is None else int(step.duration[0])
        reward, value = step.reward[0].copy(), played.decision.value[0]
        steps.append(TranscriptStep(played.obs, played.inputs, played.decision, reward, duration, value))
        terminated, last = bool(step.terminated[0]), step.obs if step.final is None else step.final.obs
        if played.ended[0] or stop():
            break
    assert last is not None
    assert recurrent_state is not None
    with torch.inference_mode():
        bootstrap = bootstrap_value(policy, value_norm, last, recurrent_state, env_index, sequential_agents=sequential)
        return with_advantages(steps, links, value_norm, terminated, bootstrap, cuts)


def with_advantages(
    steps: list[TranscriptStep],
    links: Links,
    value_norm: ValueNorm,
    terminated: bool,
    bootstrap: Tensor,
    cuts: Mapping[int, tuple[Tensor, Tensor]],
) -> list[TranscriptStep]:
    """Return the steps with their advantages filled in.

    `bootstrap`: (1, N), value of the observation after the last step, in the critic's units.
    `cuts`: by step, the agents (1, N) bool that were truncated alone in it, and their bootstrap values (1, N).
    """
    nodes = [step.decision.nodes for step in steps]
    value = torch.stack([step.decision.value for step in steps])
    mask = torch.stack([each.node_mask for each in nodes])
    if value.shape != mask.shape:
        mask = mask.any(-1, keepdim=True)
    device = value.device
    reward = torch.stack([torch.as_tensor(step.reward) for step in steps]).unsqueeze(1).to(device)
    ends = torch.zeros(len(steps), 1, dtype=torch.bool, device=device)
    done = ends.clone()
    done[-1] = terminated
    values = value_norm.denormalize(bootstrap).expand_as(reward).clone()
    cut_alone = torch.zeros_like(values, dtype=torch.bool)
    for t, (agents, cut_value) in cuts.items():
        cut_alone[t] = agents.to(device)
        if t < len(steps) - 1:
            values[t] = value_norm.denormalize(cut_value)
        else:
            chain = cut_alone[t].any(-1, keepdim=True) if links.agents == "sequential" else cut_alone[t]
            values[t] = torch.where(chain, value_norm.denormalize(cut_value), values[t])
    orders = [each.order for each in nodes]
    order = None if any(each is None for each in orders) else torch.stack(orders)  # pyright: ignore[reportArgumentType]
    durations = torch.tensor([[step.duration] for step in steps], device=device)
    advantage, _ = backup(
        links,
        reward,
        value_norm.denormalize(value),
        mask,
        terminated=done,
        truncated=ends,
        bootstrap=values,
        order=order,
        discount=links.gamma**durations,
        agent_truncated=cut_alone if cuts else None,
    )
    return [replace(step, advantage=each[0]) for step, each in zip(steps, advantage, strict=True)]
