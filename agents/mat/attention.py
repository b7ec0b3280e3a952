"""Fused forms of the transformer's attention and blocks.

They compute what the modules of `encoder_decoder.py` compute, with the same parameters.

Shape legend: B rows (environments, or steps x environments), N agents, M positions attended to, D width, H heads,
A actions, V = A + 1 token ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

from marl.agents.heads import SOFTMAX_WIDTH, softmax
from marl.agents.mat.encoder_decoder import Attention, DecoderBlock, EncoderBlock, alive_mask


class FusedAttention(NamedTuple):
    """An attention layer's four linear maps, multiplied to two: one before and one after the softmax.

    Scores and mixtures are bilinear: q . k = (W_k' W_q x) . y, and W_o W_v y. So the queries are asked of the attended
    `y` itself, and the mixture is made of it. Keys and values need not exist, and `y` is all that a cache holds. The
    keys' bias shifts all scores of a query alike, and a softmax ignores that.
    """

    qk: Tensor  # (H D, D)
    qk_bias: Tensor  # (H D,)
    ov: Tensor  # (D, H D)
    ov_bias: Tensor  # (D,)


class FusedDecoderBlock(NamedTuple):
    """Both attention layers of a decoder block."""

    self_attention: FusedAttention
    cross_attention: FusedAttention


def fuse_layers(layers: Sequence[Attention]) -> list[FusedAttention]:
    """Return the fused form of each layer, differentiable. All layers have the same width and number of heads.

    They are fused together because the matrices are small. A loss that reaches one layer gives the others a gradient
    of zero.
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
    qk = torch.bmm(key, query.view(-1, size, width)).view(len(layers), -1, width)
    qk_bias = torch.bmm(key, query_bias.view(-1, size, 1)).view(len(layers), -1)
    # The keys' bias has no effect, but it gets a gradient, of zero.
    ov_bias = torch.baddbmm((out_bias + 0.0 * key_bias).unsqueeze(-1), out, value_bias.unsqueeze(-1)).squeeze(-1)
    out = out.view(-1, width, heads, size).transpose(1, 2).reshape(-1, width, size)  # (layers H, D, D / H)
    ov = torch.bmm(out, value.view(-1, size, width)).view(-1, heads, width, width)
    ov = ov.transpose(1, 2).reshape(len(layers), width, -1)
    return [FusedAttention(*layer) for layer in zip(*(x.unbind() for x in (qk, qk_bias, ov, ov_bias)), strict=True)]


def detach_leaves(fused: Any, pairs: list[tuple[Tensor, Tensor]]) -> Any:
    """Return a copy of a nest of tuples whose tensors are detached leaves.

    Appends to `pairs` each tensor that requires a gradient, with the leaf that replaces it.
    """
    if isinstance(fused, tuple):
        parts = [detach_leaves(part, pairs) for part in fused]
        return type(fused)(*parts) if hasattr(fused, "_fields") else tuple(parts)
    if not isinstance(fused, Tensor) or not fused.requires_grad:
        return fused
    leaf = fused.detach().requires_grad_()
    pairs.append((fused, leaf))
    return leaf


def query(fused: FusedAttention, x: Tensor) -> Tensor:
    """Return the queries (B, N, H D) of `x` (B, N, D), in the space of what is attended to."""
    return F.linear(x, fused.qk, fused.qk_bias)


def attend(fused: FusedAttention, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    """Attend from `x` (B, N, D) to `y` (B, M, D). Returns (B, N, D).

    `bias`, (N H, M) or (B, N H, M), is added to the scores.
    """
    mixture: Any = FusedAttentionFunction.apply(x, y, bias, *fused)
    return mixture


class FusedAttentionFunction(torch.autograd.Function):
    """Attention (Vaswani et al. 2017, eq. 1) with fused weights: ov softmax(q y' + bias) y, with queries q = qk x.

    Arguments and result are those of `attend`. The gradient is written by hand. Autograd's is equal, but takes three
    times as long over transposed matrices, and stores queries and mixtures, which are cheap to compute again. A second
    derivative raises RuntimeError.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor | None, qk: Tensor, qk_bias: Tensor, ov: Tensor, ov_bias: Tensor
    ) -> Tensor:
        """Return the attention's output (B, N, D)."""
        query = F.linear(x, qk, qk_bias)
        score = torch.bmm(query.view(len(y), -1, y.shape[-1]), y.mT)  # (B, N H, M)
        weights = softmax(score if bias is None else score.add_(bias))
        ctx.save_for_backward(x, y, weights, qk, qk_bias, ov)
        return F.linear(torch.bmm(weights, y).view(query.shape), ov, ov_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients of the arguments."""
        x, y, weights, qk, qk_bias, ov = ctx.saved_tensors
        by_row, by_query = (-1, qk.shape[0]), (len(y), -1, y.shape[-1])
        grad_out = grad_outputs[0].flatten(0, 1)
        grad_ov = grad_out.mT @ torch.bmm(weights, y).view(by_row)
        grad_mixture = (grad_out @ ov).view(by_query)
        grad_score = weights * torch.bmm(grad_mixture, y.mT)
        grad_score = torch.addcmul(grad_score, weights, grad_score.sum(-1, keepdim=True), value=-1.0)
        query = F.linear(x, qk, qk_bias).view(by_query)
        grad_y = torch.bmm(weights.mT, grad_mixture).baddbmm_(grad_score.mT, query)
        grad_query = torch.bmm(grad_score, y).view(by_row)
        grad_x = (grad_query @ qk).view_as(x)
        return grad_x, grad_y, None, grad_query.mT @ x.flatten(0, 1), grad_query.sum(0), grad_ov, grad_out.sum(0)


def causal_bias(agents: int, heads: int, like: Tensor) -> Tensor:
    """Return (N H, N): 0 at the own position and those before, -inf at later ones."""
    bias = like.new_full((agents, agents), float("-inf")).triu(1)
    return bias.repeat_interleave(heads, 0) if heads > 1 else bias


def alive_bias(alive: Tensor, heads: int, like: Tensor) -> Tensor | None:
    """Return (B, N H, N): 0 at living agents and oneself, -inf at dead agents. None if all agents are alive."""
    if bool(alive.all()):
        return None
    allowed = alive_mask(alive)
    bias = like.new_zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
    return bias.repeat_interleave(heads, 1) if heads > 1 else bias


def encoder_block(block: EncoderBlock, x: Tensor, fused: FusedAttention, bias: Tensor | None) -> Tensor:
    """Return `block` applied to `x` (B, N, D), with fused attention."""
    x = block.norms[0](x + attend(fused, x, x, bias))
    return block.norms[1](x + block.mlp(x))


def decoder_block(
    block: DecoderBlock, x: Tensor, representation: Tensor, fused: FusedDecoderBlock, bias: Tensor
) -> Tensor:
    """Return `block` applied to tokens `x` (B, N, D) and the observations (B, N, D), with fused attention."""
    return after_self_attention(block, x + attend(fused.self_attention, x, x, bias), representation, fused, bias)


def after_self_attention(
    block: DecoderBlock, x: Tensor, representation: Tensor, fused: FusedDecoderBlock, bias: Tensor
) -> Tensor:
    """Return the rest of `block`, for `x` (B, N, D) to which the self-attention is already added."""
    x = block.norms[0](x)
    x = block.norms[1](representation + attend(fused.cross_attention, representation, x, bias))
    return block.norms[2](x + block.mlp(x))


class TokenTable(NamedTuple):
    """Causal self-attention between discrete tokens, as a table over the V token ids; differentiable.

    Positions have no embedding, so the first block's self-attention sees a multiset of tokens. The score of one token
    id with another is a constant. An id that occurs c times weighs as much as one whose score is log c higher.
    """

    heads: int
    score: Tensor  # (V, H V)
    value: Tensor  # (H V, D)
    token: Tensor  # (V, D)

    @classmethod
    def make(cls, fused: FusedAttention, heads: int, tokens: Tensor) -> "TokenTable":
        """Return the table of the embedded token ids `tokens` (V, D)."""
        # Ids that never occur make the softmax wide enough to be fast.
        tokens = F.pad(tokens, (0, 0, 0, max(0, SOFTMAX_WIDTH - len(tokens))))
        count, width = tokens.shape
        score = (query(fused, tokens).view(-1, width) @ tokens.mT).view(count, heads * count)
        value = fused.ov.view(width, heads, width).transpose(0, 1) @ tokens.mT  # (H, D, V)
        return cls(heads, score, value.mT.reshape(heads * count, width), tokens + fused.ov_bias)

    @property
    def num_tokens(self) -> int:
        """Number of token ids, unused ones included."""
        return len(self.token)

    def attend(self, token_id: Tensor) -> Tensor:
        """Return the tokens (B, N, D) of `token_id` (B, N) with self-attention added."""
        count = token_id.new_zeros(*token_id.shape, self.num_tokens).scatter_(-1, token_id.unsqueeze(-1), 1).cumsum_(1)
        weights = self.weights(F.embedding(token_id, self.score), self.logs(token_id.shape[1]).take(count))
        token = F.embedding(token_id, self.token)
        return torch.addmm(token.flatten(0, 1), weights.flatten(0, 1), self.value).view_as(token)

    def logs(self, agents: int) -> Tensor:
        """Return log c for c from 0 to N. A CPU takes ten times as long for the logarithm of zero as for another."""
        return torch.arange(agents + 1, dtype=self.value.dtype, device=self.value.device).log()

    def weights(self, score: Tensor, log_count: Tensor) -> Tensor:
        """Return the attention weights (..., H V) of token ids, from scores (..., H V) and log counts (..., V)."""
        if self.heads == 1:
            return (score + log_count).softmax(-1)
        parts = score.unflatten(-1, (self.heads, -1)) + log_count.unsqueeze(-2)
        return parts.softmax(-1).flatten(-2)
