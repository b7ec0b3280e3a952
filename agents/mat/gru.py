"""MAT-GRU: recurrent networks over the agents in place of attention.

Shape legend: B rows, E environments, N agents, D width, L slots.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from marl.agents.mat.autoregressive import AutoregressivePolicy
from marl.agents.mat.incremental_decoder import Decoded
from marl.agents.mat.order import decision_order
from marl.agents.mat.policy import FusedEncoder
from marl.agents.parameter_sharing import NetworkSets
from marl.types import Inputs


class GRUEncoder(nn.Module):
    """Embedding of observations, and a recurrent network over the agents."""

    def __init__(self, embed: nn.Module, rnn: nn.GRU) -> None:
        super().__init__()
        self.embed, self.rnn = embed, rnn


class GRUDecoder(nn.Module):
    """Embedding of earlier actions, and a recurrent network over the agents."""

    def __init__(self, token: nn.Module, width: int, rnn: nn.GRU) -> None:
        super().__init__()
        self.token, self.token_norm, self.rnn = token, nn.LayerNorm(width), rnn


class FusedGRU(NamedTuple):
    """Fused weights of MATGRU."""

    encoder: FusedEncoder


class MATGRU(AutoregressivePolicy):
    """Agents are read one after another: each one's features hold the observations of those before and its own."""

    def make_encoder(self, embed: nn.Module) -> nn.Module:
        """Return the recurrent encoder."""
        return GRUEncoder(embed, self.make_rnn())

    def make_decoder(self, token: nn.Module) -> nn.Module:
        """Return the recurrent decoder."""
        return GRUDecoder(token, self.options.embedding, self.make_rnn())

    def make_rnn(self) -> nn.GRU:
        """Return a GRU with orthogonal weights and zero biases."""
        width = self.options.embedding
        rnn = nn.GRU(width, width, self.options.layers, batch_first=True)
        for name, parameter in rnn.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        return rnn

    def fuse_encoder(self) -> FusedEncoder:
        """Return the fused embedding, differentiable."""
        return FusedEncoder(self.fuse_embedding(), ())

    def fuse(self) -> FusedGRU:
        """Return the fused weights, differentiable."""
        return FusedGRU(self.fuse_encoder())

    def build_cache(self) -> tuple[FusedGRU, "IncrementalGRU"]:
        """Return the fused weights and the incremental decoder."""
        return self.fuse(), IncrementalGRU(self)

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N), a mean over orders if the order is random."""
        return self.value_over_orders(inputs)

    def decoder_memory(self, inputs: Inputs, fused: Any, order: Tensor | None) -> Tensor:
        """Return the encoder's output (B, N, D), in decision order."""
        return self.encoder.rnn(decision_order(self.embed_observations(inputs, fused.encoder), order))[0]

    def combine(self, before: Tensor, representation: Tensor) -> Tensor:
        """Return the decoder's input (B, N, D): tokens plus representation, normalized."""
        return self.decoder.token_norm(self.embed_raw(before) + representation)

    def decode(self, representation: Tensor, action: Tensor, fused: Any, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return features (B, N, D) of every agent given the actions before it, in decision order."""
        representation, before = self.decoder_inputs(representation, action, order)
        return self.decoder.rnn(self.combine(before, representation))[0]


class IncrementalGRU:
    """The decoder of MATGRU, one position at a time."""

    def __init__(self, policy: MATGRU) -> None:
        self.policy = policy
        self.rowwise: Any = policy.actor.rowwise() if isinstance(policy.actor, NetworkSets) else None

    def decode(self, representation: Tensor, mask: Tensor, offset: Tensor, sets: Sequence[Any] | None) -> Decoded:
        """Decide for each agent given the actions before it. Arguments as IncrementalDecoder's."""
        policy, head = self.policy, self.policy.head
        state: Tensor | None = None
        before = policy.shift_right(policy.start_actions(len(mask), 1))
        actions, parameters, features = [], [], []
        for i in range(mask.shape[1]):
            row = slice(i, i + 1)
            x, state = policy.decoder.rnn(policy.combine(before, representation[:, row]), state)
            own = None if sets is None else sets[i]
            parameters.append(policy.actor(x) if own is None else self.rowwise(x.squeeze(1), own).unsqueeze(1))
            actions.append(head.argmax_action(parameters[-1] + offset[:, row], mask[:, row]))
            before = policy.token_ids(actions[-1].squeeze(1), own).unsqueeze(1)
            features.append(x)
        return Decoded(*(torch.cat(parts, 1) for parts in (actions, parameters, features)))
