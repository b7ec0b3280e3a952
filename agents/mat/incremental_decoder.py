"""Incremental decoding: one agent after another, with what the decoder has seen kept in a cache.

With tens of rows an operation costs its call, not its arithmetic, so the code keeps the number of calls low. All that
does not depend on earlier actions is computed for all agents at once: queries of observations, noise, masks. Biases are
moved into what they are added to next. Discrete tokens are rows of a table. Log-probabilities are taken at the end.

Shape legend: E environments, N agents, D width, H heads, L slots, A distribution parameters, V = A + 1 token ids.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.heads import Head
from marl.agents.mat.attention import FusedDecoderBlock, TokenTable, query
from marl.agents.mat.encoder_decoder import DecoderBlock
from marl.agents.parameter_sharing import NetworkSets


class Decoded(NamedTuple):
    """Decisions of E environments, in decision order."""

    action: Tensor  # (E, N, L)
    parameters: Tensor  # (E, N, A), of the distributions that the actions were drawn from
    features: Tensor  # (E, N, D), the decoder's output


class IncrementalDecoder:
    """Decoder and actor, one position at a time, with the weights at construction.

    Discrete tokens come from `table`. Without a table the first token is `start` (1, D), and `embed(action, own)` makes
    the others (E, D), from the actions before (E, L) and the parameter sets of their agents.
    """

    def __init__(
        self,
        blocks: Any,
        fused: tuple[FusedDecoderBlock, ...],
        *,
        actor: nn.Sequential | NetworkSets,
        head: Head,
        table: TokenTable | None,
        start: Tensor,
        embed: Callable[[Tensor, Any], Tensor],
    ) -> None:
        self.blocks = [BlockWeights(block, own) for block, own in zip(blocks, fused, strict=True)]
        self.rowwise = None
        if isinstance(actor, NetworkSets):
            self.rowwise = actor.rowwise()
        else:
            layers: Any = actor
            hidden, _, norm, last = layers
            self.hidden = (hidden.bias, hidden.weight.mT)
            self.norm = (norm.normalized_shape, norm.weight, norm.bias)
            self.last = (last.bias, last.weight.mT)
        self.head, self.table, self.start, self.embed = head, table, start, embed

    def decode(
        self, representation: Tensor, mask: Tensor, offset: Tensor, sets: Sequence[Any] | None = None
    ) -> Decoded:
        """Decide for each agent given the actions before it.

        `offset` (E, N, A) is the head's `sampling_offset`. `sets` (N,) lists for each position the parameter set of its
        rows, or is None if all share one.
        """
        envs, agents, _ = representation.shape
        counts = None if self.table is None else TokenCounts(self.table, envs, agents)
        layers = [CachedBlock(block, representation, k > 0 or counts is None) for k, block in enumerate(self.blocks)]
        offsets = (offset if self.rowwise is not None else offset + self.last[0]).unbind(1)
        masks = mask.unbind(1)
        action: Tensor | None = None
        actions, outputs, features = [], [], []
        for i in range(agents):
            if counts is not None:
                x = counts.attend(action)
            elif action is None:
                x = layers[0].attend(i, self.start.expand(envs, -1))
            else:
                x = layers[0].attend(i, self.embed(action, None if sets is None else sets[i - 1]))
            x = layers[0].finish(i, x)
            for layer in layers[1:]:
                x = layer.finish(i, layer.attend(i, x))
            features.append(x)
            if self.rowwise is not None and sets is not None:
                x = self.rowwise(x, sets[i])
                perturbed = x + offsets[i]
            else:
                x = torch.layer_norm(F.gelu(torch.addmm(self.hidden[0], x, self.hidden[1])), *self.norm)
                perturbed = torch.addmm(offsets[i], x, self.last[1])
            outputs.append(x)
            action = self.head.argmax_action(perturbed, masks[i])
            actions.append(action)
        parameters = torch.stack(outputs, 1)
        if self.rowwise is None:
            parameters = F.linear(parameters, self.last[1].mT, self.last[0])
        return Decoded(torch.stack(actions, 1), parameters, torch.stack(features, 1))


class BlockWeights:
    """Weights of a decoder block, arranged for one position at a time."""

    def __init__(self, block: DecoderBlock, fused: FusedDecoderBlock) -> None:
        norms: Any = block.norms
        first: Any = block.mlp[0]
        second: Any = block.mlp[2]
        self.heads, self.fused = block.self_attention.heads, fused
        # The bias of the MLP's second layer is added with the residual. The first layer subtracts it again.
        self.cross_ov = fused.cross_attention.ov.mT
        self.norms = [
            (norm.normalized_shape, norm.weight, norm.bias + extra)
            for norm, extra in zip(norms, (0.0, second.bias, 0.0), strict=True)
        ]
        self.first = (first.bias - first.weight @ second.bias, first.weight.mT)
        self.second = second.weight.mT


class CachedBlock:
    """A decoder block and its caches during one decision.

    `self_attends` is False if a TokenTable does the block's self-attention.
    """

    def __init__(self, weights: BlockWeights, representation: Tensor, self_attends: bool) -> None:
        envs, agents, width = representation.shape
        cross = weights.fused.cross_attention
        self.weights = weights
        self.cross_cache = KVCache(envs, agents, width, representation)
        self.self_cache = KVCache(envs, agents, width, representation) if self_attends else None
        self.queries = query(cross, representation).unflatten(-1, (-1, width)).unbind(1)
        self.residuals = (representation + cross.ov_bias).unbind(1)

    def attend(self, i: int, x: Tensor) -> Tensor:
        """Return the tokens `x` (E, D) of position i with self-attention added."""
        fused, cache = self.weights.fused.self_attention, self.self_cache
        assert cache is not None
        query = torch.addmm(fused.qk_bias, x, fused.qk.mT).view(len(x), self.weights.heads, -1)
        return torch.addmm(x + fused.ov_bias, cache.attend(i, x, query), fused.ov.mT)

    def finish(self, i: int, x: Tensor) -> Tensor:
        """Return the block's output (E, D) at position i, from what `attend` returned."""
        weights = self.weights
        x = torch.layer_norm(x, *weights.norms[0])
        x = torch.addmm(self.residuals[i], self.cross_cache.attend(i, x, self.queries[i]), weights.cross_ov)
        x = torch.layer_norm(x, *weights.norms[1])
        hidden = F.gelu(torch.addmm(weights.first[0], x, weights.first[1]))
        return torch.layer_norm(torch.addmm(x, hidden, weights.second), *weights.norms[2])


class KVCache:
    """Cache (E, N, D) of one attention layer, which serves as keys and values: see FusedAttention."""

    def __init__(self, envs: int, agents: int, width: int, like: Tensor) -> None:
        cache = like.new_empty(envs, agents, width)
        transposed = cache.mT
        self.positions = cache.unbind(1)
        self.until = [cache.narrow(1, 0, i + 1) for i in range(agents)]
        self.until_transposed = [transposed.narrow(2, 0, i + 1) for i in range(agents)]

    def attend(self, i: int, x: Tensor, query: Tensor) -> Tensor:
        """Store `x` (E, D) at position i. Returns the mixture (E, H D) of positions 0 to i for `query` (E, H, D)."""
        self.positions[i].copy_(x)
        weights = torch.bmm(query, self.until_transposed[i]).softmax(-1)
        return torch.bmm(weights, self.until[i]).flatten(1)


class TokenCounts:
    """Number of times that each token id has occurred in each environment, (E, V), and attention over it."""

    def __init__(self, table: TokenTable, envs: int, agents: int) -> None:
        self.table, self.logs = table, table.logs(agents)
        rows = torch.cat([table.score, table.token], -1)
        self.actions = rows[1:]
        self.row = rows[0].expand(envs, -1).contiguous()
        self.score, self.token = self.row.split([table.score.shape[1], table.token.shape[1]], 1)
        self.count = torch.zeros(envs, table.num_tokens, dtype=torch.long, device=rows.device)
        self.count[:, 0] = 1
        self.action_count, self.one = self.count[:, 1:], self.count[:, :1].clone()

    def attend(self, action: Tensor | None) -> Tensor:
        """Return the tokens (E, D) of the last actions (E, 1), or of the start, with self-attention added."""
        if action is not None:
            self.action_count.scatter_add_(1, action, self.one)
            torch.index_select(self.actions, 0, action.view(-1), out=self.row)
        weights = self.table.weights(self.score, self.logs.take(self.count))
        return torch.addmm(self.token, weights, self.table.value)
