"""CommNet (Sukhbaatar et al. 2016): agents exchange continuous messages in several rounds before they decide.

In round k agent i has a hidden state h_i and hears c_i, the mean of the other living agents' states (equation 2):

    h_i <- tanh(H_k h_i + C_k c_i)

For discrete, continuous and mixed actions.

    marl train toy/copy --agent ./examples/commnet.py:make --agent-kwargs '{"rounds": 3}'
"""

import torch
from torch import nn

import marl
from marl.agents.heads import make_head, mlp, sample
from marl.types import Decision, Evaluation, Nodes


class CommNet(marl.Policy):
    """`rounds` rounds of messages of `width` numbers. Actor and critic read the last hidden state."""

    identity: torch.Tensor

    def __init__(self, spec, rounds=2, width=64):
        super().__init__(spec)
        self.head = make_head(spec, max_std=0.5, init_std=0.3)
        self.slots = self.head.slots  # one per action dimension if actions are continuous
        self.embed = nn.Linear(spec.observation_size + spec.num_agents, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.heard = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(rounds))
        self.actor = mlp(width, (width,), self.head.size, 0.01)
        self.critic = mlp(width, (width,), 1, 1.0)
        self.register_buffer("identity", torch.eye(spec.num_agents), persistent=False)

    def encode(self, obs):
        inputs = super().encode(obs)
        return inputs | {"action_mask": self.head.split_mask(inputs["action_mask"])}

    def features(self, inputs):
        """Hidden states after all rounds, (E, N, width)."""
        x, alive = inputs["agents"], inputs["alive"].unsqueeze(-1)  # (E, N, D), (E, N, 1)
        h = self.embed(torch.cat([x, self.identity.expand(*x.shape[:-1], -1)], -1)).tanh()
        for own, heard in zip(self.own, self.heard, strict=True):
            said = h * alive
            others = (alive.sum(1, keepdim=True) - alive.long()).clamp(min=1)
            message = (said.sum(1, keepdim=True) - said) / others
            h = (own(h) + heard(message)).tanh()
        return h

    def act(self, inputs, generator=None, deterministic=False):
        h, mask = self.features(inputs), inputs["action_mask"]
        noise = None if deterministic else self.head.noise(h.shape[:-1], h.device, generator)
        action, log_prob = sample(self.head, self.actor(h), mask, noise)  # (E, N, L)
        exists = self.head.slot_mask(inputs["alive"], mask)
        nodes = Nodes(action, exists, exists & self.head.has_choice(mask))
        return Decision(self.head.to_env(action), nodes, log_prob, self.critic(h))

    def evaluate(self, inputs, nodes):
        h = self.features(inputs)
        log_prob, entropy = self.head.evaluate(self.actor(h), inputs["action_mask"], nodes.action)
        return Evaluation(log_prob, entropy, self.critic(h))

    def value(self, inputs):
        return self.critic(self.features(inputs)).squeeze(-1)


make = CommNet
