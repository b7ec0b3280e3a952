"""Acting: one agent after another through the decoder, in as few operations as the arithmetic allows.

With some tens of rows an operation costs its call, not its arithmetic. So all that does not depend on earlier actions
is computed for all agents at once (queries of observations, noise, masks), biases are moved into what they are added
to next, discrete tokens are rows of a table, and log-probabilities are taken at the end.

Shape legend: E environments, N agents, D embedding, H heads, A actions, V = A + 1 tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.mat.attention import DecoderBlock, FusedDecoderBlock, TokenTable, query
from marl.agents.parameter_sharing import NetworkSets
from marl.agents.policy_base import Head


class Decoded(NamedTuple):
    """The decision of E environments, in the order of decisions."""

    action: Tensor  # (E, N, L)
    parameters: Tensor  # (E, N, A), of the distributions that the actions were drawn from
    features: Tensor  # (E, N, D), the decoder's output


class IncrementalDecoder:
    """The decoder and the actor, a position at a time, with the weights as they were when it was made.

    Discrete tokens are those of `table`; without one the first is `start` (1, D), and `embed` makes the others (E, D)
    of the actions before (E, L) and the groups of who took them.
    """

    def __init__(
        self,
        blocks: Any,
        folds: tuple[FusedDecoderBlock, ...],
        actor: nn.Sequential | NetworkSets,
        head: Head,
        table: TokenTable | None,
        start: Tensor,
        embed: Callable[[Tensor, Any], Tensor],
    ) -> None:
        self.blocks = [BlockWeights(block, fold) for block, fold in zip(blocks, folds, strict=True)]
        self.rows = None
        if isinstance(actor, NetworkSets):
            self.rows = actor.rowwise()
        else:
            layers: Any = actor
            hidden, _, norm, last = layers
            self.hidden = (hidden.bias, hidden.weight.mT)
            self.norm = (norm.normalized_shape, norm.weight, norm.bias)
            self.last = (last.bias, last.weight.mT)
        self.head, self.table, self.start, self.embed = head, table, start, embed

    def decode(
        self, representation: Tensor, mask: Tensor, offset: Tensor, groups: Sequence[Any] | None = None
    ) -> Decoded:
        """Actions, each given those before it; `offset` (E, N, A) is the head's, and `groups` (N) are those of the rows
        of each position, where there are."""
        envs, agents, _ = representation.shape
        bag = None if self.table is None else TokenCounts(self.table, envs, agents)
        layers = [CachedBlock(block, representation, k > 0 or bag is None) for k, block in enumerate(self.blocks)]
        offsets = (offset if self.rows is not None else offset + self.last[0]).unbind(1)
        masks = mask.unbind(1)
        action: Tensor | None = None
        actions, told, features = [], [], []
        for i in range(agents):
            if bag is not None:
                x = bag.attend(action)
            elif action is None:
                x = layers[0].attend(i, self.start.expand(envs, -1))
            else:
                x = layers[0].attend(i, self.embed(action, None if groups is None else groups[i - 1]))
            x = layers[0].finish(i, x)
            for layer in layers[1:]:
                x = layer.finish(i, layer.attend(i, x))
            features.append(x)
            if self.rows is not None and groups is not None:
                x = self.rows(x, groups[i])
                perturbed = x + offsets[i]
            else:
                x = torch.layer_norm(F.gelu(torch.addmm(self.hidden[0], x, self.hidden[1])), *self.norm)
                perturbed = torch.addmm(offsets[i], x, self.last[1])
            told.append(x)
            action = self.head.argmax_action(perturbed, masks[i])
            actions.append(action)
        parameters = torch.stack(told, 1)
        if self.rows is None:
            parameters = F.linear(parameters, self.last[1].mT, self.last[0])
        return Decoded(torch.stack(actions, 1), parameters, torch.stack(features, 1))


class BlockWeights:
    """The weights of a decoder block, arranged for one position at a time."""

    def __init__(self, block: DecoderBlock, fold: FusedDecoderBlock) -> None:
        norms: Any = block.norms
        first: Any = block.mlp[0]
        second: Any = block.mlp[2]
        self.heads, self.fold = block.own.heads, fold
        # The bias of the MLP's second layer rides on the residual, and the first layer takes it off again.
        self.cross_out = fold.cross.ov.mT
        self.norms = [
            (norm.normalized_shape, norm.weight, norm.bias + extra)
            for norm, extra in zip(norms, (0.0, second.bias, 0.0), strict=True)
        ]
        self.first = (first.bias - first.weight @ second.bias, first.weight.mT)
        self.second = second.weight.mT


class CachedBlock:
    """A decoder block in the middle of a decision; `attends` where its self-attention is not a table's."""

    def __init__(self, step: BlockWeights, representation: Tensor, attends: bool) -> None:
        envs, agents, width = representation.shape
        self.step = step
        self.cross = KVCache(envs, agents, width, representation)
        self.own = KVCache(envs, agents, width, representation) if attends else None
        self.queries = query(step.fold.cross, representation).unflatten(-1, (-1, width)).unbind(1)
        self.residuals = (representation + step.fold.cross.bias).unbind(1)

    def attend(self, i: int, x: Tensor) -> Tensor:
        """Tokens (E, D) of position i, self-attention added."""
        own, seen = self.step.fold.own, self.own
        assert seen is not None
        query = torch.addmm(own.qk_bias, x, own.qk.mT).view(len(x), self.step.heads, -1)
        return torch.addmm(x + own.bias, seen.attend(i, x, query), own.ov.mT)

    def finish(self, i: int, x: Tensor) -> Tensor:
        """Position i after the block (E, D), from what `attend` made."""
        step = self.step
        x = torch.layer_norm(x, *step.norms[0])
        x = torch.addmm(self.residuals[i], self.cross.attend(i, x, self.queries[i]), step.cross_out)
        x = torch.layer_norm(x, *step.norms[1])
        hidden = F.gelu(torch.addmm(step.first[0], x, step.first[1]))
        return torch.layer_norm(torch.addmm(x, hidden, step.second), *step.norms[2])


class KVCache:
    """What one attention layer has seen so far, (E, N, D), and attention of the newest position over it."""

    def __init__(self, envs: int, agents: int, width: int, like: Tensor) -> None:
        seen = like.new_empty(envs, agents, width)
        flipped = seen.mT
        self.places = seen.unbind(1)
        self.until = [seen.narrow(1, 0, i + 1) for i in range(agents)]
        self.until_flipped = [flipped.narrow(2, 0, i + 1) for i in range(agents)]

    def attend(self, i: int, x: Tensor, query: Tensor) -> Tensor:
        """Keep `x` (E, D) at position i; the mixture (E, H D) that queries (E, H, D) make of all up to it."""
        self.places[i].copy_(x)
        weights = torch.bmm(query, self.until_flipped[i]).softmax(-1)
        return torch.bmm(weights, self.until[i]).flatten(1)


class TokenCounts:
    """What each environment's agents have chosen so far: how often each token is there, (E, V)."""

    def __init__(self, table: TokenTable, envs: int, agents: int) -> None:
        self.table, self.logs = table, table.logs(agents)
        rows = torch.cat([table.score, table.token], -1)
        self.actions = rows[1:]
        self.row = rows[0].expand(envs, -1).contiguous()
        self.score, self.token = self.row.split([table.score.shape[1], table.token.shape[1]], 1)
        self.count = torch.zeros(envs, table.kinds, dtype=torch.long, device=rows.device)
        self.count[:, 0] = 1
        self.chosen, self.one = self.count[:, 1:], self.count[:, :1].clone()

    def attend(self, action: Tensor | None) -> Tensor:
        """Tokens (E, D) of the last actions (E, 1), or of the start, with self-attention added."""
        if action is not None:
            self.chosen.scatter_add_(1, action, self.one)
            torch.index_select(self.actions, 0, action.view(-1), out=self.row)
        weights = self.table.weigh(self.score, self.logs.take(self.count))
        return torch.addmm(self.token, weights, self.table.value)
