"""The scale of a frozen model's features, by the depth of their state."""

import torch
from torch import Tensor

from marl.value_norm import RunningMoments


class DepthNorm(RunningMoments):
    """Centers features and divides them by their spread, one number for all of them, at each depth below L.

    Behind prompts that differ in a few words, the features that a pretrained model gives to the last token, often one
    of its template, are nearly parallel: SmolLM2's differ by a seventeenth of their length. Undone, a critic needs ten
    times the updates to tell states apart. The identity for depths that were never met.
    """

    def nothing(self) -> Tensor:
        """The sums of no states, (3, L, H)."""
        return torch.zeros(3, *self.mean.shape, dtype=torch.float64, device=self.mean.device)

    def sums(self, features: Tensor, depth: Tensor) -> Tensor:
        """What `add` takes of states (S, H) at `depth` (S,)."""
        x = features.double()
        return self.nothing().index_add(1, depth, torch.stack([x, x.square(), torch.ones_like(x)]))

    def forward(self, features: Tensor, depth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        least = 1e-6 * self.mean.square().mean(-1) + 1e-12
        scale = self.variance.mean(-1).maximum(least).rsqrt()
        return (features - self.mean[depth].to(features.dtype)) * scale[depth, None].to(features.dtype)
