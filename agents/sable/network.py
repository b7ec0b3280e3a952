"""Encoder and decoder of Sable (Mahjoub et al. 2025): MAT's shape with retention for attention.

Shape legend: B rows, N agents, D width.
"""

from typing import Any

import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.heads import SMALL_GAIN, linear
from marl.agents.sable.retention import NORM_EPS, LayerStates, Retention, Visible


def rms_norm(width: int) -> nn.RMSNorm:
    """Return RMSNorm (Zhang and Sennrich 2019) over `width` features."""
    return nn.RMSNorm(width, eps=NORM_EPS)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020): W_o (silu(W_g x) * W_i x), all of one width, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = linear(width, width, bias=False)
        self.inner = linear(width, width, bias=False)
        self.out = linear(width, width, SMALL_GAIN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., D) of `x` (..., D)."""
        return self.out(F.silu(self.gate(x)) * self.inner(x))


class EncoderBlock(nn.Module):
    """Retention in which the agents of a step all see each other, then SwiGLU, each with a residual and RMSNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.retention = Retention(width, heads)
        self.norms = nn.ModuleList(rms_norm(width) for _ in range(2))
        self.mlp = SwiGLU(width)

    def forward(self, x: Tensor, alive: Tensor, states: LayerStates, layer: int) -> Tensor:
        """Return the block's output (B, N, D) for `x` (B, N, D). Dead agents are hidden from the others."""
        x = self.norms[0](x + self.retention(x, x, alive, states, layer, "step"))
        return self.norms[1](x + self.mlp(x))


class Encoder(nn.Module):
    """Embed each agent's observation, then retention over agents and steps."""

    def __init__(self, embed: nn.Module, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks: Any = nn.ModuleList(EncoderBlock(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, alive: Tensor, states: LayerStates) -> Tensor:
        """Return the representation (B, N, D) of embedded observations (B, N, D)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, alive, states, layer)
        return x


class DecoderBlock(nn.Module):
    """Causal retention over actions, then from the observations to the actions, then SwiGLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_retention = Retention(width, heads)
        self.cross_retention = Retention(width, heads)
        self.norms = nn.ModuleList(rms_norm(width) for _ in range(3))
        self.mlp = SwiGLU(width)

    def forward(
        self, x: Tensor, representation: Tensor, alive: Tensor, states: LayerStates, layer: int, visible: Visible
    ) -> Tensor:
        """Return (B, N, D) for tokens `x` and the `representation`, both (B, N, D) in decision order."""
        x = self.norms[0](x + self.self_retention(x, x, alive, states, layer, visible))
        cross = self.cross_retention(representation, x, alive, states, layer + 1, visible)
        x = self.norms[1](representation + cross)
        return self.norms[2](x + self.mlp(x))

    def next_token(
        self, x: Tensor, representation: Tensor, alive: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output (E, 1, D) for one token a row, and the new states of both retention layers."""
        added, own = self.self_retention.next_token(x, x, alive, state[0])
        x = self.norms[0](x + added)
        added, cross = self.cross_retention.next_token(representation, x, alive, state[1])
        x = self.norms[1](representation + added)
        return self.norms[2](x + self.mlp(x)), (own, cross)


class Decoder(nn.Module):
    """Features of each agent given all observations and the actions of the agents before it."""

    def __init__(self, token: nn.Module, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.token = token
        self.blocks: Any = nn.ModuleList(DecoderBlock(width, heads) for _ in range(blocks))
        self.first_layer = blocks
        """Number of the decoder's first retention layer, behind those of the encoder."""

    def forward(
        self, x: Tensor, representation: Tensor, alive: Tensor, states: LayerStates, visible: Visible = "before"
    ) -> Tensor:
        """Return features (B, N, D) of embedded tokens and representation (B, N, D), in decision order."""
        for number, block in enumerate(self.blocks):
            x = block(x, representation, alive, states, self.first_layer + 2 * number, visible)
        return x


def observation_embedding(size: int, width: int, input_norm: bool) -> nn.Sequential:
    """Return the embedding of an observation: RMSNorm, or the identity without `input_norm`; linear; GELU."""
    return nn.Sequential(rms_norm(size) if input_norm else nn.Identity(), linear(size, width, bias=False), nn.GELU())


def output_head(width: int, size: int) -> nn.Sequential:
    """Return the head of the critic or the actor: linear, GELU, RMSNorm, and a linear layer of small gain."""
    return nn.Sequential(linear(width, width), nn.GELU(), rms_norm(width), linear(width, size, SMALL_GAIN))
