"""One episode step by step, with the credit that learning would give it: what a policy tells its story from."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from marl.backup import Links, backup
from marl.evaluation import never
from marl.policy import Policy
from marl.protocols import VectorEnv
from marl.recurrent_state import RecurrentState
from marl.rollout import bootstrap_value
from marl.types import Decision, Inputs, Obs
from marl.value_norm import ValueNorm

MAX_STEPS = 1000
"""Steps after which an episode is left."""


@dataclass(frozen=True)
class TranscriptStep:
    """One step. `obs`, `inputs` and `decision` have a leading axis E = 1.

    `advantage` (N, L), or (N, 1) where a value belongs to a whole action, in units of reward. `reward` (N,).
    """

    obs: Obs
    inputs: Inputs
    decision: Decision
    reward: np.ndarray
    duration: int
    advantage: Tensor


def play(
    policy: Policy,
    env: VectorEnv,
    seed: int,
    links: Links,
    value_norm: ValueNorm,
    deterministic: bool = True,
    longest: int = MAX_STEPS,
    stop: Callable[[], bool] = never,
) -> list[TranscriptStep]:
    """The episode that `seed` begins in the first environment of `env`, which holds one; at most `longest` steps.

    It is left after its first step once `stop()` is true.
    """
    generator = torch.Generator(device=policy.device).manual_seed(0)
    obs = env.reset([seed])
    turns: list[TranscriptStep] = []
    terminated = truncated = False
    last = obs
    memory = RecurrentState(policy, 1)
    one_chain = links.agents == "sequential"
    cuts: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode():
        while not (terminated or truncated) and len(turns) < longest and not (turns and stop()):
            seen = copy.deepcopy(obs)
            inputs = memory.add_to(policy.encode(seen))
            decision = policy.act(inputs, generator, deterministic)
            memory.update(decision)
            step = env.step(decision.action)
            obs = step.obs
            terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
            last = obs if step.final is None else step.final.obs
            if step.agent_final is not None:
                value = bootstrap_value(policy, value_norm, step.agent_final.obs, memory, np.array([0]), one_chain)
                cuts[len(turns)] = torch.as_tensor(step.agent_truncated), value
            duration = 1 if step.duration is None else int(step.duration[0])
            turns.append(TranscriptStep(seen, inputs, decision, step.reward[0].copy(), duration, decision.value[0]))
    bootstrap = bootstrap_value(policy, value_norm, last, memory, np.array([0]), one_chain)
    return with_advantages(turns, links, value_norm, terminated, bootstrap, cuts)


def with_advantages(
    turns: list[TranscriptStep],
    links: Links,
    value_norm: ValueNorm,
    terminated: bool,
    bootstrap: Tensor,
    cuts: Mapping[int, tuple[Tensor, Tensor]],
) -> list[TranscriptStep]:
    """The turns with their advantages; `bootstrap` (1, N) is the value of what follows, in the critic's units.

    `cuts`: by turn, which agents (1, N) were cut off alone in it, and their values (1, N).
    """
    nodes = [turn.decision.nodes for turn in turns]
    value = torch.stack([turn.decision.value for turn in turns])
    mask = torch.stack([each.node_mask for each in nodes])
    if value.shape != mask.shape:
        mask = mask.any(-1, keepdim=True)
    device = value.device
    reward = torch.stack([torch.as_tensor(turn.reward) for turn in turns]).unsqueeze(1).to(device)
    ends = torch.zeros(len(turns), 1, dtype=torch.bool, device=device)
    done = ends.clone()
    done[-1] = terminated
    values = value_norm.denormalize(bootstrap).expand_as(reward).clone()
    alone = torch.zeros_like(values, dtype=torch.bool)
    for t, (agents, cut_value) in cuts.items():
        alone[t] = agents.to(device)
        if t < len(turns) - 1:
            values[t] = value_norm.denormalize(cut_value)
        else:
            chain = alone[t].any(-1, keepdim=True) if links.agents == "sequential" else alone[t]
            values[t] = torch.where(chain, value_norm.denormalize(cut_value), values[t])
    orders = [each.order for each in nodes]
    order = None if any(each is None for each in orders) else torch.stack(orders)  # pyright: ignore[reportArgumentType]
    durations = torch.tensor([[turn.duration] for turn in turns], device=device)
    advantage, _ = backup(
        links,
        reward,
        value_norm.denormalize(value),
        mask,
        done,
        ends,
        values,
        order,
        links.gamma**durations,
        agent_truncated=alone if cuts else None,
    )
    return [replace(turn, advantage=each[0]) for turn, each in zip(turns, advantage, strict=True)]
