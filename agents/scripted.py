"""Agents that do not learn: a random one, and one that repeats a fixed action."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from marl.agents.heads import CategoricalHead, GaussianHead, make_head
from marl.errors import ConfigError
from marl.policy import Policy
from marl.registry import NoOptions, register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs


class FixedPolicy(Policy):
    """Act without reading observations: uniformly over the available actions, or always the same.

    `constant` is the discrete action, or the value of every action dimension in [-1, 1], or None for random actions. If
    the discrete action is not available, the first available one is taken. Raises ConfigError if there is no such
    discrete action.
    """

    def __init__(self, spec: EnvSpec, constant: float | None) -> None:
        super().__init__(spec)
        self.constant = constant
        self.head = make_head(spec, max_std=1.0, init_std=0.5)
        self.slots = self.head.slots
        choices = 0
        if not isinstance(self.head, GaussianHead):
            choices = self.head.size if isinstance(self.head, CategoricalHead) else self.head.num_choices
        if constant is not None and choices and constant not in range(choices):
            raise ConfigError(f"action={constant} does not exist in {spec.name}. Give one of 0 to {choices - 1}")

    def encode(self, obs: Obs) -> Inputs:
        """Return "alive" (E, N) and "action_mask" (E, N, A)."""
        alive = torch.as_tensor(obs.alive)
        shape = (*alive.shape, self.spec.action_size)
        mask = torch.ones(shape, dtype=torch.bool) if obs.action_mask is None else torch.as_tensor(obs.action_mask)
        return {"alive": alive, "action_mask": self.head.split_mask(mask)}

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:  # noqa: ARG002
        """Return random or constant actions. No node is trained."""
        mask = inputs["action_mask"]
        if isinstance(self.head, GaussianHead):
            action = self._continuous(mask, generator)
        elif isinstance(self.head, CategoricalHead):
            action = self._discrete(mask, generator)
        else:
            choice, dimension = self.head.parts(mask)
            action = torch.cat([self._discrete(choice, generator), self._continuous(dimension, generator)], -1)
        exists = self.head.slot_mask(inputs["alive"], mask)
        zeros = torch.zeros(exists.shape)
        return Decision(self.head.to_env(action), Nodes(action, exists, torch.zeros_like(exists)), zeros, zeros)

    def _continuous(self, mask: Tensor, generator: Generator | None) -> Tensor:
        if self.constant is None:
            action = 2.0 * torch.rand(mask.shape, generator=generator) - 1.0
        else:
            action = torch.full(mask.shape, float(self.constant))
        return action.masked_fill(~mask, 0.0)

    def _discrete(self, mask: Tensor, generator: Generator | None) -> Tensor:
        score = torch.rand(mask.shape, generator=generator) if self.constant is None else torch.zeros(mask.shape)
        if self.constant is not None:
            score[..., int(self.constant)] = 1.0
        return score.masked_fill(~mask, -1.0).argmax(-1, keepdim=True)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Raise NotImplementedError: this agent does not learn."""
        raise NotImplementedError("this agent does not learn")

    def value(self, inputs: Inputs) -> Tensor:
        """Return zeros (E, N)."""
        return torch.zeros(inputs["alive"].shape)


@register_agent("random", trains=False, summary="uniform over the available actions, or over [-1, 1] per dimension")
def make_random(spec: EnvSpec, options: NoOptions) -> FixedPolicy:  # noqa: ARG001 - the interface of factories
    """Return the random agent for `spec`."""
    return FixedPolicy(spec, None)


@dataclass(frozen=True)
class ScriptedOptions:
    """Options of an agent that always does the same."""

    action: float = 0.0
    """The discrete action, or the value of every action dimension in [-1, 1]."""


@register_agent("scripted", options=ScriptedOptions, trains=False, summary="always the same action")
def make_scripted(spec: EnvSpec, options: ScriptedOptions) -> FixedPolicy:
    """Return the agent that repeats `options.action`."""
    return FixedPolicy(spec, options.action)
