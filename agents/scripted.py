"""Agents that do not learn: a random one, and one that repeats a fixed action."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from marl.agents.policy_base import CategoricalHead, GaussianHead, make_head
from marl.errors import ConfigError
from marl.policy import Policy
from marl.registry import NoOptions, register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs


class FixedPolicy(Policy):
    """Acts without looking: uniformly over what is available, or always the same.

    `constant` is None for random, else the discrete action, or the torque of every dimension in
    [-1, 1]; where that discrete action is not available the first available one is taken.
    """

    def __init__(self, spec: EnvSpec, constant: float | None) -> None:
        super().__init__(spec)
        self.constant = constant
        self.head = make_head(spec, max_std=1.0, init_std=0.5)
        self.slots = self.head.slots
        choices = 0
        if not isinstance(self.head, GaussianHead):
            choices = self.head.size if isinstance(self.head, CategoricalHead) else self.head.choices
        if constant is not None and choices and constant not in range(choices):
            raise ConfigError(f"action is {constant}; {spec.name} has the actions 0 to {choices - 1}")

    def encode(self, obs: Obs) -> Inputs:
        alive = torch.as_tensor(obs.alive)
        shape = (*alive.shape, self.spec.action_size)
        mask = torch.ones(shape, dtype=torch.bool) if obs.action_mask is None else torch.as_tensor(obs.action_mask)
        return {"alive": alive, "action_mask": self.head.split_mask(mask)}

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:  # noqa: ARG002
        mask = inputs["action_mask"]
        if isinstance(self.head, GaussianHead):
            action = self._torques(mask, generator)
        elif isinstance(self.head, CategoricalHead):
            action = self._choices(mask, generator)
        else:
            choice, torque = self.head.parts(mask)
            action = torch.cat([self._choices(choice, generator), self._torques(torque, generator)], -1)
        exists = self.head.slot_mask(inputs["alive"], mask)
        zeros = torch.zeros(exists.shape)
        return Decision(self.head.to_env(action), Nodes(action, exists, torch.zeros_like(exists)), zeros, zeros)

    def _torques(self, mask: Tensor, generator: Generator | None) -> Tensor:
        if self.constant is None:
            action = 2.0 * torch.rand(mask.shape, generator=generator) - 1.0
        else:
            action = torch.full(mask.shape, float(self.constant))
        return action.masked_fill(~mask, 0.0)

    def _choices(self, mask: Tensor, generator: Generator | None) -> Tensor:
        score = torch.rand(mask.shape, generator=generator) if self.constant is None else torch.zeros(mask.shape)
        if self.constant is not None:
            score[..., int(self.constant)] = 1.0
        return score.masked_fill(~mask, -1.0).argmax(-1, keepdim=True)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        raise NotImplementedError("this agent does not learn")

    def value(self, inputs: Inputs) -> Tensor:
        return torch.zeros(inputs["alive"].shape)


@register_agent("random", trains=False, summary="uniform over the available actions, or over [-1, 1] per torque")
def make_random(spec: EnvSpec, options: NoOptions) -> FixedPolicy:  # noqa: ARG001 - the interface of factories
    return FixedPolicy(spec, None)


@dataclass(frozen=True)
class ScriptedOptions:
    """An agent that always does the same."""

    action: float = 0.0
    """The discrete action, or the torque of every dimension in [-1, 1]."""


@register_agent("scripted", options=ScriptedOptions, trains=False, summary="always the same action")
def make_scripted(spec: EnvSpec, options: ScriptedOptions) -> FixedPolicy:
    return FixedPolicy(spec, options.action)
