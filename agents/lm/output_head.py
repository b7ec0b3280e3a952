"""Output head: logits of features with the output matrix (V, H), without (M, V) logits in memory."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 23
"""Elements of logits that exist at a time."""


@dataclass(frozen=True)
class LogitRule:
    """Map from the product z with the output matrix to logits: `cap * tanh(scale * z / cap) / temperature`.

    Without a soft cap (Gemma 2 report, 2024, section 2) it is `scale * z / temperature`.
    """

    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def __call__(self, product: Tensor) -> Tensor:
        if self == PLAIN:
            return product
        scaled = product * self.scale
        return (scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)) / self.temperature

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative by the product, given the logits."""
        slope = self.scale / self.temperature
        return slope if self.cap is None else slope * (1.0 - (logits * (self.temperature / self.cap)).square())


PLAIN = LogitRule()


@dataclass(frozen=True)
class OutputMatrix:
    """Logits are `rule(vectors @ weight.T + bias)`: `weight` (V, H), `bias` (V,) or None. All arithmetic is float32.

    Vectors are moved to the weight's device, and results back to theirs.
    """

    weight: Tensor
    bias: Tensor | None = None
    rule: LogitRule = PLAIN

    def at(self, temperature: float) -> "OutputMatrix":
        """Return the same matrix with logits divided by `temperature`."""
        return replace(self, rule=replace(self.rule, temperature=temperature))

    def logits(self, vectors: Tensor) -> Tensor:
        """Return logits (M, V) of vectors (M, H)."""
        here = vectors.to(self.weight.device, torch.float32)
        slices = [_slice_logits(here, self, *span) for span in _slices(here, self.weight)]
        return torch.cat(slices, -1).to(vectors.device)

    def token_logits(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """Return the logits (M, C) of the tokens `ids` (M, C) under vectors (M, H)."""
        here, ids = vectors.to(self.weight.device, torch.float32), ids.to(self.weight.device)
        product = (F.embedding(ids, self.weight).float() @ here.unsqueeze(-1)).squeeze(-1)
        return self.rule(product if self.bias is None else product + self.bias[ids].float()).to(vectors.device)

    def moments(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-sum-exp of the logits and their mean under the softmax, (M,) each.

        A token's log-probability is its logit minus the first. The entropy is the first minus the second.
        """
        here = vectors.to(self.weight.device, torch.float32)
        both: Any = _Moments.apply(here, self.weight, self.bias, self.rule)
        return both[0].to(vectors.device), both[1].to(vectors.device)


class _Moments(torch.autograd.Function):
    """One forward pass over slices of the vocabulary, and one backward pass that computes the slices again.

    With p the softmax and l the logits: d logsumexp / dl = p, d mean / dl = p (1 + l - mean).
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor | None, rule: LogitRule
    ) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = OutputMatrix(weight, bias, rule)
        top = vectors.new_full(vectors.shape[:1], float("-inf"))
        total, weighted = torch.zeros_like(top), torch.zeros_like(top)
        for start, stop in _slices(vectors, weight):
            logits = _slice_logits(vectors, output, start, stop)
            new_top = torch.maximum(top, logits.amax(-1))
            fade = (top - new_top).exp()
            share = (logits - new_top.unsqueeze(-1)).exp_()
            total = total * fade + share.sum(-1)
            weighted = weighted * fade + (share * logits).sum(-1)
            top = new_top
        log_normalizer, mean = top + total.log(), weighted / total
        ctx.rule = rule
        ctx.save_for_backward(vectors, weight, bias, log_normalizer, mean)
        return log_normalizer, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        vectors, weight, bias, log_normalizer, mean = ctx.saved_tensors
        output = OutputMatrix(weight, bias, ctx.rule)
        for_normalizer, for_mean = (gradient.unsqueeze(-1) for gradient in gradients)
        of_vectors = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for start, stop in _slices(vectors, weight):
            logits = _slice_logits(vectors, output, start, stop)
            softmax = (logits - log_normalizer.unsqueeze(-1)).exp()
            of_logits = softmax * (for_normalizer + for_mean * (1.0 + logits - mean.unsqueeze(-1)))
            of_product = of_logits if ctx.rule == PLAIN else of_logits * ctx.rule.slope(logits)
            if of_vectors is not None:
                of_vectors += of_product @ weight[start:stop].float()
            if of_weight is not None:
                of_weight[start:stop] = of_product.T @ vectors
            if of_bias is not None:
                of_bias[start:stop] = of_product.sum(0)
        return of_vectors, of_weight, of_bias, None


def _slices(vectors: Tensor, weight: Tensor) -> list[tuple[int, int]]:
    """Return bounds of slices within CHUNK whose float32 weights fit a CPU's cache."""
    width = min(max(256, CHUNK // max(1, vectors.shape[0])), 4096)
    size = weight.shape[0]
    return [(start, min(start + width, size)) for start in range(0, size, width)]


def _slice_logits(vectors: Tensor, output: OutputMatrix, start: int, stop: int) -> Tensor:
    bias = None if output.bias is None else output.bias[start:stop].float()
    return output.rule(F.linear(vectors, output.weight[start:stop].float(), bias))
