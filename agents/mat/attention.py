"""The blocks of the transformer, with attention in folded form.

Shape legend: B rows (environments, or steps x environments), N agents, M positions attended to, D embedding,
H heads, A actions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marl.agents.policy_base import SMALL_GAIN, SOFTMAX_WIDTH, linear, softmax


class FusedAttention(NamedTuple):
    """The four linear maps of an attention layer multiplied out to two, one before and one after the softmax.

    Score and mixture are bilinear, q . k = (W_k' W_q x) . y and W_o W_v y, so queries can be asked of, and mixtures
    made from, the attended `y` itself: neither keys nor values exist, and `y` is all there is to cache. The bias of
    the keys shifts all scores of a row alike, which a softmax does not see.
    """

    qk: Tensor  # (H D, D)
    qk_bias: Tensor  # (H D,)
    ov: Tensor  # (D, H D)
    bias: Tensor  # (D,)


class Attention(nn.Module):
    """Scaled dot-product attention; scores are scaled by 1/sqrt(D/H)."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(embedding, embedding, SMALL_GAIN)
        self.key = linear(embedding, embedding, SMALL_GAIN)
        self.value = linear(embedding, embedding, SMALL_GAIN)
        self.out = linear(embedding, embedding, SMALL_GAIN)

    def weights(self, x: Tensor) -> Tensor:
        """(B, N, N): how much each position of `x` looks at itself and those before, averaged over heads."""
        (fold,) = fuse_layers([self])
        score = query(fold, x).unflatten(-1, (self.heads, -1)).transpose(1, 2) @ x.unsqueeze(1).mT
        return (score + causal_bias(x.shape[1], 1, x)).softmax(-1).mean(1)


def fuse_layers(layers: Sequence[Attention]) -> list[FusedAttention]:
    """Each of the layers, of one width and number of heads, as two maps; differentiable.

    All at once, because the matrices are small. A loss that reaches one layer gives the others a gradient of zero.
    """
    if not layers:
        return []
    heads, width = layers[0].heads, layers[0].query.in_features
    size = width // heads

    def stack(name: str) -> tuple[Tensor, Tensor]:
        parts: list[Any] = [getattr(layer, name) for layer in layers]
        return torch.stack([part.weight for part in parts]), torch.stack([part.bias for part in parts])

    parts = map(stack, ("query", "key", "value", "out"))
    (query, query_bias), (key, key_bias), (value, value_bias), (out, out_bias) = parts
    key = key.view(-1, size, width).mT * size**-0.5  # (layers H, D, D / H)
    into = torch.bmm(key, query.view(-1, size, width)).view(len(layers), -1, width)
    shift = torch.bmm(key, query_bias.view(-1, size, 1)).view(len(layers), -1)
    # Without an effect the bias of the keys has a gradient all the same, of zero.
    bias = torch.baddbmm((out_bias + 0.0 * key_bias).unsqueeze(-1), out, value_bias.unsqueeze(-1)).squeeze(-1)
    out = out.view(-1, width, heads, size).transpose(1, 2).reshape(-1, width, size)  # (layers H, D, D / H)
    out = torch.bmm(out, value.view(-1, size, width)).view(-1, heads, width, width)
    out = out.transpose(1, 2).reshape(len(layers), width, -1)
    return [FusedAttention(*fold) for fold in zip(*(x.unbind() for x in (into, shift, out, bias)), strict=True)]


def detach_leaves(fold: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """A nest of tuples with the same numbers outside their graph; `pairs` takes each tensor that wants a gradient and
    the leaf in its place."""
    if isinstance(fold, tuple):
        parts = [detach_leaves(part, pairs) for part in fold]
        return type(fold)(*parts) if hasattr(fold, "_fields") else tuple(parts)
    if not isinstance(fold, Tensor) or not fold.requires_grad:
        return fold
    leaf = fold.detach().requires_grad_()
    pairs.append((fold, leaf))
    return leaf


def query(fold: FusedAttention, x: Tensor) -> Tensor:
    """The queries (B, N, H D) of `x` (B, N, D), in the space of what they are asked of."""
    return F.linear(x, fold.qk, fold.qk_bias)


def attend(fold: FusedAttention, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, D): what `x` (B, N, D) sees in `y` (B, M, D); `bias` (N H, M) or (B, N H, M) is added to the scores."""
    seen: Any = FusedAttentionFunction.apply(x, y, bias, *fold)
    return seen


class FusedAttentionFunction(torch.autograd.Function):
    """out softmax(q y' + bias) y, with queries q = into x: attention (Vaswani et al. 2017, eq. 1) by a `Fold`.

    Arguments and result are those of `look`. The gradient is written out: autograd's is the same, by way of transposed
    matrices that take three times as long, and it keeps queries and mixtures, which cost little to make again. It has
    no gradient itself; asking for one raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor | None, into: Tensor, shift: Tensor, out: Tensor, out_bias: Tensor
    ) -> Tensor:
        query = F.linear(x, into, shift)
        score = torch.bmm(query.view(len(y), -1, y.shape[-1]), y.mT)  # (B, N H, M)
        weights = softmax(score if bias is None else score.add_(bias))
        ctx.save_for_backward(x, y, weights, into, shift, out)
        return F.linear(torch.bmm(weights, y).view(query.shape), out, out_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, weights, into, shift, out = ctx.saved_tensors
        by_row, by_query = (-1, into.shape[0]), (len(y), -1, y.shape[-1])
        to_seen = grad_outputs[0].flatten(0, 1)
        to_out = to_seen.mT @ torch.bmm(weights, y).view(by_row)
        to_mixture = (to_seen @ out).view(by_query)
        to_score = weights * torch.bmm(to_mixture, y.mT)
        to_score = torch.addcmul(to_score, weights, to_score.sum(-1, keepdim=True), value=-1.0)
        query = F.linear(x, into, shift).view(by_query)
        to_y = torch.bmm(weights.mT, to_mixture).baddbmm_(to_score.mT, query)
        to_query = torch.bmm(to_score, y).view(by_row)
        to_x = (to_query @ into).view_as(x)
        return to_x, to_y, None, to_query.mT @ x.flatten(0, 1), to_query.sum(0), to_out, to_seen.sum(0)


def causal_bias(agents: int, heads: int, like: Tensor) -> Tensor:
    """(N H, N): 0 where a position is the query's own or earlier, -inf where it is later."""
    bias = like.new_full((agents, agents), float("-inf")).triu(1)
    return bias.repeat_interleave(heads, 0) if heads > 1 else bias


def alive_bias(alive: Tensor, heads: int, like: Tensor) -> Tensor | None:
    """(B, N H, N): 0 at living agents and at oneself, -inf at the dead; None where all live."""
    if bool(alive.all()):
        return None
    itself = torch.eye(alive.shape[-1], dtype=torch.bool, device=alive.device)
    seen = alive[:, None, :] | itself
    bias = like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
    return bias.repeat_interleave(heads, 1) if heads > 1 else bias


class EncoderBlock(nn.Module):
    """Post-LayerNorm block with unmasked attention and an MLP of ratio 1."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(embedding, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(2))
        self.mlp = nn.Sequential(linear(embedding, embedding), nn.GELU(), linear(embedding, embedding, SMALL_GAIN))

    def forward(self, x: Tensor, fold: FusedAttention, bias: Tensor | None) -> Tensor:
        x = self.norms[0](x + attend(fold, x, x, bias))
        return self.norms[1](x + self.mlp(x))


class FusedDecoderBlock(NamedTuple):
    """Both attention layers of a decoder block."""

    own: FusedAttention
    cross: FusedAttention


class DecoderBlock(nn.Module):
    """Causal attention over action tokens, then attention with the observation stream as query and residual."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.own = Attention(embedding, heads)
        self.cross = Attention(embedding, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(3))
        self.mlp = nn.Sequential(linear(embedding, embedding), nn.GELU(), linear(embedding, embedding, SMALL_GAIN))

    def layers(self) -> tuple[Attention, Attention]:
        """As they are folded to a DecoderFold."""
        return self.own, self.cross

    def attend(self, x: Tensor, fold: FusedDecoderBlock, bias: Tensor) -> Tensor:
        """Tokens (B, N, D) with self-attention added, for all N positions at once."""
        return x + attend(fold.own, x, x, bias)

    def finish(self, x: Tensor, representation: Tensor, fold: FusedDecoderBlock, bias: Tensor) -> Tensor:
        """The rest of the block, from what `attend` made and the observations (B, N, D)."""
        x = self.norms[0](x)
        x = self.norms[1](representation + attend(fold.cross, representation, x, bias))
        return self.norms[2](x + self.mlp(x))

    def forward(self, x: Tensor, representation: Tensor, fold: FusedDecoderBlock, bias: Tensor) -> Tensor:
        return self.finish(self.attend(x, fold, bias), representation, fold, bias)


class TokenTable(NamedTuple):
    """Causal self-attention among discrete tokens, as a table of the V = A + 1 kinds; differentiable.

    Positions have no embedding, so the first block's self-attention sees a bag of tokens: a token's score with each
    kind is a constant, and a kind that is there c times weighs as one whose score is log c higher.
    """

    heads: int
    score: Tensor  # (V, H V)
    value: Tensor  # (H V, D)
    token: Tensor  # (V, D)

    @classmethod
    def make(cls, fold: FusedAttention, heads: int, tokens: Tensor) -> "TokenTable":
        """From the embedded kinds, (A + 1, D)."""
        # Kinds that never occur make the softmax wide enough to be fast.
        tokens = F.pad(tokens, (0, 0, 0, max(0, SOFTMAX_WIDTH - len(tokens))))
        kinds, width = tokens.shape
        score = (query(fold, tokens).view(-1, width) @ tokens.mT).view(kinds, heads * kinds)
        value = fold.ov.view(width, heads, width).transpose(0, 1) @ tokens.mT  # (H, D, V)
        return cls(heads, score, value.mT.reshape(heads * kinds, width), tokens + fold.bias)

    @property
    def kinds(self) -> int:
        return len(self.token)

    def attend(self, kind: Tensor) -> Tensor:
        """Tokens (B, N, D) of `kind` (B, N) with self-attention added."""
        count = kind.new_zeros(*kind.shape, self.kinds).scatter_(-1, kind.unsqueeze(-1), 1).cumsum_(1)
        weights = self.weigh(F.embedding(kind, self.score), self.logs(kind.shape[1]).take(count))
        token = F.embedding(kind, self.token)
        return torch.addmm(token.flatten(0, 1), weights.flatten(0, 1), self.value).view_as(token)

    def logs(self, agents: int) -> Tensor:
        """log c for c of 0 to N: a CPU takes ten times as long for the logarithm of zero as for another."""
        return torch.arange(agents + 1, dtype=self.value.dtype, device=self.value.device).log()

    def weigh(self, score: Tensor, log_count: Tensor) -> Tensor:
        """(..., H V): how much is looked at all tokens of a kind, from scores (..., H V) and log counts (..., V)."""
        if self.heads == 1:
            return (score + log_count).softmax(-1)
        parts = score.unflatten(-1, (self.heads, -1)) + log_count.unsqueeze(-2)
        return parts.softmax(-1).flatten(-2)
