"""The blocks of the transformer, with attention in folded form.

Shape legend: B rows (environments, or steps x environments), N agents, M positions attended to, D embedding,
H heads, A actions.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from agents.nn import SMALL_GAIN, SOFTMAX_WIDTH, linear, softmax


class Fold(NamedTuple):
    """The four linear maps of an attention layer multiplied out to two, one before and one after the softmax.

    Score and mixture are bilinear, q . k = (W_k' W_q x) . y and W_o W_v y, so queries can be asked of, and mixtures
    made from, the attended `y` itself: neither keys nor values exist, and `y` is all there is to cache. The bias of
    the keys shifts all scores of a row alike, which a softmax does not see.
    """

    into: Tensor  # (H D, D)
    shift: Tensor  # (H D,)
    out: Tensor  # (D, H D)
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

    def fold(self) -> Fold:
        """The layer as two maps, differentiable."""
        heads = (self.heads, -1)
        query, key, value = (layer.weight.unflatten(0, heads) for layer in (self.query, self.key, self.value))
        key = key.mT * key.shape[1] ** -0.5  # (H, D, D / H)
        out = self.out.weight.unflatten(1, heads).transpose(0, 1) @ value  # (H, D, D)
        # Without an effect the bias of the keys has a gradient all the same, of zero.
        bias = self.out.weight @ self.value.bias + self.out.bias + 0.0 * self.key.bias
        shift = key @ self.query.bias.unflatten(0, heads).unsqueeze(-1)
        return Fold((key @ query).flatten(0, 1), shift.flatten(), out.transpose(0, 1).flatten(1), bias)

    def weights(self, x: Tensor) -> Tensor:
        """(B, N, N): how much each position of `x` looks at itself and those before, averaged over heads."""
        fold = self.fold()
        score = ask(fold, x).unflatten(-1, (self.heads, -1)).transpose(1, 2) @ x.unsqueeze(1).mT
        return (score + causal_bias(x.shape[1], 1, x)).softmax(-1).mean(1)


def ask(fold: Fold, x: Tensor) -> Tensor:
    """The queries (B, N, H D) of `x` (B, N, D), in the space of what they are asked of."""
    return F.linear(x, fold.into, fold.shift)


def mix(fold: Fold, query: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """(B, N, D): attention of queries (B, N, H D) over `y` (B, M, D); `bias` (N H, M) or (B, N H, M) on the scores."""
    mixture: Any = Mixture.apply(query.view(len(y), -1, y.shape[-1]), y, bias)
    return F.linear(mixture.view(query.shape), fold.out, fold.bias)


class Mixture(torch.autograd.Function):
    """softmax(q y' + bias) y, from queries (B, N H, D) and what they are asked of, (B, M, D).

    The gradient is written out: autograd's is the same, by way of transposed matrices that take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
        score = torch.bmm(query, y.mT)  # (B, N H, M)
        weights = softmax(score if bias is None else score.add_(bias))
        ctx.save_for_backward(query, y, weights)
        return torch.bmm(weights, y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = grad_outputs
        query, y, weights = ctx.saved_tensors
        score = weights * torch.bmm(gradient, y.mT)
        score = torch.addcmul(score, weights, score.sum(-1, keepdim=True), value=-1.0)
        to_y = torch.bmm(weights.mT, gradient).baddbmm_(score.mT, query)
        return torch.bmm(score, y), to_y, None


def causal_bias(agents: int, heads: int, like: Tensor) -> Tensor:
    """(N H, N): 0 where a position is the query's own or earlier, -inf where it is later."""
    bias = like.new_full((agents, agents), float("-inf")).triu(1)
    return bias.repeat_interleave(heads, 0) if heads > 1 else bias


def living_bias(alive: Tensor, heads: int, like: Tensor) -> Tensor | None:
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

    def forward(self, x: Tensor, fold: Fold, bias: Tensor | None) -> Tensor:
        x = self.norms[0](x + mix(fold, ask(fold, x), x, bias))
        return self.norms[1](x + self.mlp(x))


@dataclass(frozen=True)
class DecoderFold:
    """Both attention layers of a decoder block."""

    own: Fold
    cross: Fold


class DecoderBlock(nn.Module):
    """Causal attention over action tokens, then attention with the observation stream as query and residual."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.own = Attention(embedding, heads)
        self.cross = Attention(embedding, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(3))
        self.mlp = nn.Sequential(linear(embedding, embedding), nn.GELU(), linear(embedding, embedding, SMALL_GAIN))

    def fold(self) -> DecoderFold:
        return DecoderFold(self.own.fold(), self.cross.fold())

    def attend(self, x: Tensor, fold: DecoderFold, bias: Tensor) -> Tensor:
        """Tokens (B, N, D) with self-attention added, for all N positions at once."""
        return x + mix(fold.own, ask(fold.own, x), x, bias)

    def finish(self, x: Tensor, representation: Tensor, fold: DecoderFold, bias: Tensor) -> Tensor:
        """The rest of the block, from what `attend` made and the observations (B, N, D)."""
        x = self.norms[0](x)
        x = self.norms[1](representation + mix(fold.cross, ask(fold.cross, representation), x, bias))
        return self.norms[2](x + self.mlp(x))

    def forward(self, x: Tensor, representation: Tensor, fold: DecoderFold, bias: Tensor) -> Tensor:
        return self.finish(self.attend(x, fold, bias), representation, fold, bias)


class TokenTable:
    """Causal self-attention among discrete tokens, as a table of the V = A + 1 kinds; differentiable.

    Positions have no embedding, so the first block's self-attention sees a bag of tokens: a token's score with each
    kind is a constant, and a kind that is there c times weighs as one whose score is log c higher.
    """

    def __init__(self, fold: Fold, heads: int, tokens: Tensor) -> None:
        # Kinds that never occur make the softmax wide enough to be fast.
        tokens = F.pad(tokens, (0, 0, 0, max(0, SOFTMAX_WIDTH - len(tokens))))
        kinds, width = tokens.shape
        self.heads, self.kinds = heads, kinds
        self.score = (ask(fold, tokens).view(-1, width) @ tokens.mT).view(kinds, heads * kinds)
        value = fold.out.view(width, heads, width).transpose(0, 1) @ tokens.mT  # (H, D, V)
        self.value = value.mT.reshape(heads * kinds, width)
        self.token = tokens + fold.bias

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
