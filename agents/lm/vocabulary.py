"""What the output matrix (V, H) says of features, without (M, V) logits in memory."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 23
"""Elements of logits that exist at a time."""


@dataclass(frozen=True)
class OutputMatrix:
    """Logits are `vectors @ weight.T + bias`: `weight` (V, H), `bias` (V,) or None. All arithmetic is float32.

    Vectors go to the weight's device and what comes of them returns to theirs.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, vectors: Tensor) -> Tensor:
        """(M, V) logits of vectors (M, H)."""
        here = vectors.to(self.weight.device, torch.float32)
        spans = _slices(here, self.weight)
        return torch.cat([_slice_logits(here, self.weight, self.bias, *span) for span in spans], -1).to(vectors.device)

    def token_logits(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """(M, C): the logits of the tokens `ids` (M, C) under vectors (M, H)."""
        here, ids = vectors.to(self.weight.device, torch.float32), ids.to(self.weight.device)
        logits = (F.embedding(ids, self.weight).float() @ here.unsqueeze(-1)).squeeze(-1)
        return (logits if self.bias is None else logits + self.bias[ids].float()).to(vectors.device)

    def moments(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(M,) each: log sum exp of the logits, and their mean under the softmax.

        A token's log-probability is its logit less the first; the entropy is the first less the second. Divide the
        vectors by a temperature for the distribution at that temperature.
        """
        here = vectors.to(self.weight.device, torch.float32)
        both: Any = _Moments.apply(here, self.weight, self.bias)
        return both[0].to(vectors.device), both[1].to(vectors.device)


class _Moments(torch.autograd.Function):
    """One pass over slices of the vocabulary forward, and one backward that computes the slices anew.

    With p the softmax and l the logits: d logsumexp / dl = p, d mean / dl = p (1 + l - mean).
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        top = vectors.new_full(vectors.shape[:1], float("-inf"))
        total, weighted = torch.zeros_like(top), torch.zeros_like(top)
        for start, stop in _slices(vectors, weight):
            logits = _slice_logits(vectors, weight, bias, start, stop)
            new_top = torch.maximum(top, logits.amax(-1))
            fade = (top - new_top).exp()
            share = (logits - new_top.unsqueeze(-1)).exp_()
            total = total * fade + share.sum(-1)
            weighted = weighted * fade + (share * logits).sum(-1)
            top = new_top
        log_normaliser, mean = top + total.log(), weighted / total
        ctx.save_for_backward(vectors, weight, bias, log_normaliser, mean)
        return log_normaliser, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        vectors, weight, bias, log_normaliser, mean = ctx.saved_tensors
        for_normaliser, for_mean = (gradient.unsqueeze(-1) for gradient in gradients)
        of_vectors = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for start, stop in _slices(vectors, weight):
            logits = _slice_logits(vectors, weight, bias, start, stop)
            softmax = (logits - log_normaliser.unsqueeze(-1)).exp()
            of_logits = softmax * (for_normaliser + for_mean * (1.0 + logits - mean.unsqueeze(-1)))
            if of_vectors is not None:
                of_vectors += of_logits @ weight[start:stop].float()
            if of_weight is not None:
                of_weight[start:stop] = of_logits.T @ vectors
            if of_bias is not None:
                of_bias[start:stop] = of_logits.sum(0)
        return of_vectors, of_weight, of_bias


def _slices(vectors: Tensor, weight: Tensor) -> list[tuple[int, int]]:
    """Bounds of slices that keep to CHUNK, and small enough that their weights in float32 stay in a CPU's cache."""
    width = min(max(256, CHUNK // max(1, vectors.shape[0])), 4096)
    size = weight.shape[0]
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def _slice_logits(vectors: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    return F.linear(vectors, weight[start:stop].float(), None if bias is None else bias[start:stop].float())
