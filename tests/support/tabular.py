"""A small Markov decision process whose actions are two tokens, a tabular policy for it, and its exact solution."""

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from marl.policy import Policy
from marl.types import Decision, EnvSpec, Evaluation, Nodes, Obs, Step

STATES, GAMMA, BETA = 3, 0.9, 0.5
NEXT = np.array([[1, 2, 0, 1], [2, 2, 0, 1], [0, 1, 2, 0]])  # (S, A)
REWARD = np.array([[0.0, 0.3, -0.4, 0.8], [1.0, -0.2, 0.1, 0.0], [0.2, 0.5, -0.3, 0.6]])
REFERENCE = torch.tensor([[[0.7, 0.3], [0.4, 0.6], [0.5, 0.5]]]).expand(STATES, 3, 2).log()
"""(S, prefix, token): log-probabilities after no token, after token 0, after token 1."""


class Process:
    """Goes from state to state for ever; truncated after `max_steps`."""

    def __init__(self) -> None:
        self.spec = EnvSpec("process", ("agent",), Box(0.0, 1.0, (STATES,), np.float32), Discrete(4), max_steps=6)
        self.rng = np.random.default_rng()
        self.state = self.elapsed = 0

    def observe(self) -> Obs:
        return Obs(np.eye(STATES, dtype=np.float32)[None, self.state], np.ones(1, dtype=bool))

    def reset(self, seed=None) -> Obs:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.state, self.elapsed = int(self.rng.integers(STATES)), 0
        return self.observe()

    def step(self, action) -> Step:
        reward = np.full(1, REWARD[self.state, action[0]], dtype=np.float32)
        self.state = int(NEXT[self.state, action[0]])
        self.elapsed += 1
        return Step(self.observe(), reward, False, self.elapsed == 6)

    def get_state(self):
        return None

    def close(self) -> None:
        pass


class TokenTable(Policy):
    """Two binary tokens an action, L = 2: a table of logits and one of Q values, with a slow copy of the latter."""

    target: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__(spec, slots=2)
        self.logits = nn.Parameter(torch.zeros(STATES, 3, 2))
        self.critic = nn.Parameter(torch.zeros(STATES, 3, 2))
        self.register_buffer("target", torch.zeros(STATES, 3, 2))

    def encode(self, obs: Obs) -> dict[str, Tensor]:
        return {"state": torch.as_tensor(obs.agents).argmax(-1)}  # (E, 1)

    def soft_value(self) -> Tensor:
        """(S, prefix): what the policy expects of the slow Q values, less its divergence from the reference."""
        log_prob = self.logits.log_softmax(-1)
        return (log_prob.exp() * (self.target - BETA * (log_prob - REFERENCE))).sum(-1)

    def value(self, inputs) -> Tensor:
        return self.soft_value()[inputs["state"], 0]

    def places(self, inputs, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """State and prefix of each node, (E, 1, 2)."""
        prefix = torch.stack([torch.zeros_like(tokens[..., 0]), 1 + tokens[..., 0]], -1)
        return inputs["state"].unsqueeze(-1).expand_as(prefix), prefix

    def act(self, inputs, generator=None, deterministic=False) -> Decision:  # noqa: ARG002
        chance = self.logits.softmax(-1)
        state = inputs["state"].flatten()
        first = torch.multinomial(chance[state, 0], 1, generator=generator)
        second = torch.multinomial(chance[state, 1 + first[:, 0]], 1, generator=generator)
        tokens = torch.stack([first, second], -1)  # (E, 1, 2)
        place = self.places(inputs, tokens)
        everything = torch.ones_like(tokens, dtype=torch.bool)
        log_prob = self.logits.log_softmax(-1)[place].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        action = (2 * tokens[..., 0] + tokens[..., 1]).numpy()
        earned = BETA * (REFERENCE[place].gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - log_prob)
        nodes = Nodes(tokens, everything, everything)
        return Decision(action, nodes, log_prob, self.soft_value()[place], node_reward=earned)

    def evaluate(self, inputs, nodes: Nodes) -> Evaluation:
        place = self.places(inputs, nodes.action)
        log_prob, q = self.logits.log_softmax(-1), self.critic
        expected = (log_prob.exp() * (BETA * (log_prob - REFERENCE) - q.detach())).sum(-1)
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        taken = [x[place].gather(-1, nodes.action.unsqueeze(-1)).squeeze(-1) for x in (log_prob, q)]
        return Evaluation(taken[0], entropy[place], taken[1], expected[place])

    def after_update(self) -> None:
        self.target.lerp_(self.critic.detach(), 0.2)


@dataclass(frozen=True)
class Solution:
    """`value` (S,), and `chance` (S, A) of the policy that maximizes reward less BETA times the divergence."""

    value: np.ndarray
    chance: np.ndarray


def solve() -> Solution:
    """Soft value iteration over whole actions, whose reference probability is the product over tokens."""
    rho = REFERENCE.exp().numpy().astype(float)
    prior = np.stack([rho[:, 0, a // 2] * rho[:, 1 + a // 2, a % 2] for a in range(4)], -1)  # (S, A)
    value = np.zeros(STATES)
    for _ in range(500):
        q = REWARD + GAMMA * value[NEXT]
        value = BETA * np.log((prior * np.exp(q / BETA)).sum(-1))
    weight = prior * np.exp(q / BETA)
    return Solution(value, weight / weight.sum(-1, keepdims=True))
