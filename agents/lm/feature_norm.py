"""Normalization of a frozen model's features, by the depth of their state."""

import torch
from torch import Tensor

from marl.value_norm import RunningMoments


class DepthNorm(RunningMoments):
    """Center features and divide them by one standard deviation, for each depth below L.

    A pretrained model's features at the last token are nearly parallel for prompts that differ in a few words: those of
    SmolLM2 differ by a seventeenth of their length. Without normalization a critic needs ten times the updates to tell
    states apart. Depths without data are left as they are.
    """

    def nothing(self) -> Tensor:
        """Return sums over no states, (3, L, H)."""
        return torch.zeros(3, *self.mean.shape, dtype=torch.float64, device=self.mean.device)

    def sums(self, features: Tensor, depth: Tensor) -> Tensor:
        """Return the sums (3, L, H) that `add` takes, of features (S, H) at `depth` (S,)."""
        x = features.double()
        return self.nothing().index_add(1, depth, torch.stack([x, x.square(), torch.ones_like(x)]))

    def forward(self, features: Tensor, depth: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        least = 1e-6 * self.mean.square().mean(-1) + 1e-12
        scale = self.variance.mean(-1).maximum(least).rsqrt()
        return (features - self.mean[depth].to(features.dtype)) * scale[depth, None].to(features.dtype)
