"""An MLP agent: every agent decides, and is valued, from its own observation. For discrete actions.

marl train toy/climbing --agent ./examples/mlp.py:make
"""

import marl
from marl.agents.heads import CategoricalHead, mlp, sample
from marl.errors import ConfigError
from marl.types import Decision, Evaluation, Nodes


class MLP(marl.Policy):
    """Actor and critic with hidden layers of the given widths."""

    def __init__(self, spec, hidden=(64, 64)):
        super().__init__(spec)
        if not spec.discrete:
            raise ConfigError(f"{spec.name} has no discrete actions, which this agent needs")
        self.head = CategoricalHead(spec.action_size)
        self.actor = mlp(spec.observation_size, tuple(hidden), spec.action_size, 0.01)
        self.critic = mlp(spec.observation_size, tuple(hidden), 1, 1.0)

    def act(self, inputs, generator=None, deterministic=False):
        logits, mask = self.actor(inputs["agents"]), inputs["action_mask"]  # (E, N, A)
        noise = None if deterministic else self.head.noise(logits.shape[:-1], logits.device, generator)
        action, log_prob = sample(self.head, logits, mask, noise)  # (E, N, 1)
        exists = inputs["alive"].unsqueeze(-1)
        nodes = Nodes(action, exists, exists & self.head.has_choice(mask))
        return Decision(self.head.to_env(action), nodes, log_prob, self.critic(inputs["agents"]))

    def evaluate(self, inputs, nodes):
        log_prob, entropy = self.head.evaluate(self.actor(inputs["agents"]), inputs["action_mask"], nodes.action)
        return Evaluation(log_prob, entropy, self.critic(inputs["agents"]))

    def value(self, inputs):
        return self.critic(inputs["agents"]).squeeze(-1)


make = MLP
