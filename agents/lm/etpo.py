"""ETPO (Wen et al. 2024): soft Q values of tokens, and a policy that is regularized towards a frozen reference.

For a state s (a prefix) and a token w, with pi the policy, rho the reference and Q' the slow copy of Q:

    Q(s, w)  <-  r + discount * V(s'),    V(s) = E_pi[Q'(s, w)] - beta KL(pi || rho)
    policy loss at s = sum_w pi(w) (beta (log pi(w) - log rho(w)) - Q(s, w))

The minimum is pi(w) ~ rho(w) exp(Q(s, w) / beta). Returns over several tokens add the reward
-beta log(pi(w') / rho(w')) of each sampled token w'. Its expectation is part of V(s').
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from marl.agents.heads import SMALL_GAIN, mlp
from marl.agents.lm.backbone import Backbone
from marl.agents.lm.candidate_trie import pick, segment_sum
from marl.agents.lm.options import LanguageOptions
from marl.agents.lm.output_head import OutputMatrix
from marl.agents.lm.policy import TokenPolicy
from marl.agents.lm.token_model import ActionEvaluation, EncodedBatch
from marl.errors import ConfigError
from marl.types import EnvSpec

CHUNK = 1 << 23
"""Elements (states times vocabulary) in memory at a time."""


@dataclass(frozen=True)
class ETPOOptions(LanguageOptions):
    """Options of a language model with soft Q values."""

    critic: Literal["shared", "frozen"] = "frozen"
    """Features that the Q values read: of the learning model (shared), or of the frozen one."""
    beta: float = 0.1
    """Weight of the divergence from the reference, in units of reward."""
    target_decay: float = 0.9
    """Decay of the target Q values per update: their weight in the moving average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.beta < float("inf"):
            raise ConfigError(f"beta={self.beta}; give a positive number")
        if not 0.0 <= self.target_decay < 1.0:
            raise ConfigError(f"target_decay={self.target_decay}; give 0 or more, less than 1")


class QHead(nn.Module):
    """Q(s, w) = v(s) + u(s) . e(w), with the token's frozen output vector e(w). It starts at zero.

    `scale` normalizes the output vectors to a length of about 1.
    """

    def __init__(self, width: int, hidden: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.net = mlp(width, hidden, 1 + width, SMALL_GAIN)
        nn.init.zeros_(self.net[-1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return v (S,) and u (S, H)."""
        out = self.net(features)
        return out[:, 0], self.scale * out[:, 1:]


class ETPOPolicy(TokenPolicy):
    """Token policy with soft Q values.

    `Decision.value` is V, and `node_reward` the sampled divergence. `Evaluation.value` is the Q of the chosen token.
    """

    free_sampling = False
    has_node_reward = True
    critic: QHead

    def __init__(self, spec: EnvSpec, options: ETPOOptions, backbone: Backbone) -> None:
        super().__init__(spec, options, backbone)
        self.reads_frozen = True
        self.beta, self.decay = options.beta, options.target_decay
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)

    def make_critic(self, width: int) -> QHead:
        """Return the Q head."""
        unit = self.backbone.reference_output.weight.float().norm(dim=-1).mean()
        return QHead(width, self.options.critic_hidden, 1.0 / float(unit))

    @torch.no_grad()
    def after_update(self) -> None:
        """Move the target Q head towards the learned one."""
        super().after_update()
        for slow, new in zip(self.critic_target.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(new, 1.0 - self.decay)

    def share_backbone(self, original: TokenPolicy) -> None:
        """Use the language model of `original`, which alone moves the target Q head that both share."""
        super().share_backbone(original)
        self.decay = 1.0

    @torch.no_grad()
    def values(self, batch: EncodedBatch) -> Tensor:
        """Return the soft value of every state, (S,), without gradients because it is a target."""
        expected, divergence, _ = self.expectations(batch, self.critic_target)
        return expected - self.beta * divergence

    def evaluate_actions(
        self, batch: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool
    ) -> ActionEvaluation:
        """Evaluate K actions. In learning, values are Q and the policy loss is added."""
        edges, mask = batch.tries.rows(tree, candidate, self.slots)
        if acting:
            evaluated = super().evaluate_actions(batch, tree, candidate, acting)
            assert batch.frozen is not None
            reference = self.distribution(self.backbone.reference_output, batch.frozen, batch.tries)[0][edges]
            return replace(
                evaluated, node_reward=(self.beta * (reference - evaluated.log_prob)).masked_fill(~mask, 0.0)
            )
        expected, divergence, q = self.expectations(batch, self.critic)
        loss = (self.beta * divergence - expected)[batch.tries.source[edges]]
        evaluated = self.action_evaluation(batch, tree, candidate, acting, q)
        return replace(evaluated, policy_loss=loss.masked_fill(~mask, 0.0))

    def expectations(self, batch: EncodedBatch, head: QHead) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of Q (S,) and the divergence from the reference (S,) under the policy, and Q of edges (M,).

        The mean carries no gradient to the weights of Q.
        """
        assert batch.frozen is not None
        tries = batch.tries
        log_prob = self.distribution(self.backbone.output, batch.hidden, tries)[0]
        reference = self.distribution(self.backbone.reference_output, batch.frozen, tries)[0]
        v, u = head(self.critic_features(batch))
        q = v[tries.source] + self.q_head.token_logits(pick(u, tries.source), tries.token.unsqueeze(-1)).squeeze(-1)

        def mean(x: Tensor) -> Tensor:
            return segment_sum(log_prob.exp() * x, tries.source, tries.states)

        expected, divergence = mean(q.detach()), mean(log_prob - reference)
        if bool(tries.free.any()):
            free = tries.free.nonzero().squeeze(-1)
            size = max(1, CHUNK // self.backbone.output.weight.shape[0])
            parts = [
                checkpoint(
                    self.full_vocab_terms, batch.hidden[part], batch.frozen[part], u[part].detach(), use_reentrant=False
                )
                for part in free.split(size)
            ]
            expected = expected.index_put((free,), torch.cat([part[0] for part in parts]) + v[free].detach())
            divergence = divergence.index_put((free,), torch.cat([part[1] for part in parts]))
        return expected, divergence, q

    def full_vocab_terms(self, hidden: Tensor, frozen: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of u . e and the divergence (S,) at states that allow the whole vocabulary."""
        temperature = self.options.temperature
        log_prob = self.backbone.output.at(temperature).logits(hidden).log_softmax(-1)
        reference = self.backbone.reference_output.at(temperature).logits(frozen).log_softmax(-1)
        share = log_prob.exp()
        return (share * self.q_head.logits(u)).sum(-1), (share * (log_prob - reference)).sum(-1)

    @property
    def q_head(self) -> OutputMatrix:
        """The frozen output vectors of the tokens."""
        return OutputMatrix(self.backbone.reference_output.weight)
