"""ETPO (Wen et al. 2024): soft Q values of tokens, and the policy that they imply beside a frozen reference.

For a state s (a prefix) and a token w, with pi the policy, rho the reference and Q' the slow copy of Q:

    Q(s, w)  <-  r + discount * V(s'),    V(s) = E_pi[Q'(s, w)] - beta KL(pi || rho)
    policy loss at s = sum_w pi(w) (beta (log pi(w) - log rho(w)) - Q(s, w))

whose minimum is pi(w) ~ rho(w) exp(Q(s, w) / beta). Longer returns go on through the sampled w' behind w, which earns
-beta log(pi(w') / rho(w')) by itself; its expectation is in V(s').
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
"""Numbers of a vocabulary times states that exist at a time."""


@dataclass(frozen=True)
class ETPOOptions(LanguageOptions):
    """A language model with soft Q values."""

    critic: Literal["shared", "frozen"] = "frozen"
    """Features that the Q values read: those of the model that learns, or of the frozen one."""
    beta: float = 0.1
    """Weight of the divergence from the reference, in units of the reward."""
    target_decay: float = 0.9
    """Weight of the past in the slow copy of the Q values, at each update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.beta < float("inf"):
            raise ConfigError(f"beta is {self.beta}; give a positive number")
        if not 0.0 <= self.target_decay < 1.0:
            raise ConfigError(f"target_decay is {self.target_decay}; give 0 or more, less than 1")


class QHead(nn.Module):
    """Q(s, w) = v(s) + u(s) . e(w), with the frozen output vector of the token; zero at the start.

    `scale` brings output vectors to a length of about 1.
    """

    def __init__(self, width: int, hidden: tuple[int, ...], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.net = mlp(width, hidden, 1 + width, SMALL_GAIN)
        nn.init.zeros_(self.net[-1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """v (S,) and u (S, H)."""
        out = self.net(features)
        return out[:, 0], self.scale * out[:, 1:]


class ETPOPolicy(TokenPolicy):
    """`Decision.value` is V, `node_reward` the sampled divergence, `Evaluation.value` the Q of the token taken,
    `policy_loss` the policy loss.
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
        unit = self.backbone.reference_output.weight.float().norm(dim=-1).mean()
        return QHead(width, self.options.critic_hidden, 1.0 / float(unit))

    @torch.no_grad()
    def after_update(self) -> None:
        super().after_update()
        for slow, new in zip(self.critic_target.parameters(), self.critic.parameters(), strict=True):
            slow.lerp_(new, 1.0 - self.decay)

    def share_backbone(self, original: TokenPolicy) -> None:
        super().share_backbone(original)
        self.decay = 1.0  # the slow copy is the original's, and moves with it, once an update

    @torch.no_grad()
    def values(self, batch: EncodedBatch) -> Tensor:
        """(S,): the soft value of every state; a target, so without gradients."""
        expected, divergence, _ = self.expectations(batch, self.critic_target)
        return expected - self.beta * divergence

    def evaluate_actions(
        self, batch: EncodedBatch, tree: np.ndarray, candidate: np.ndarray, acting: bool
    ) -> ActionEvaluation:
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
        """Under the policy, at every state: the mean of Q (S,), which is constant to Q's weights, and the divergence
        from the reference (S,). And the Q of every edge (M,).
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
        """The same two at states where every token is allowed, without v."""
        temperature = self.options.temperature
        log_prob = self.backbone.output.at(temperature).logits(hidden).log_softmax(-1)
        reference = self.backbone.reference_output.at(temperature).logits(frozen).log_softmax(-1)
        share = log_prob.exp()
        return (share * self.q_head.logits(u)).sum(-1), (share * (log_prob - reference)).sum(-1)

    @property
    def q_head(self) -> OutputMatrix:
        return OutputMatrix(self.backbone.reference_output.weight)
