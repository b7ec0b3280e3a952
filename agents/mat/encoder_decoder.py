"""Encoder and decoder of the Multi-Agent Transformer (Wen et al. 2022, figure 2).

The sequence is the N agents of one environment step; there is no time axis. The modules here hold the parameters. The
agents compute the same by faster paths: `attention.py` fuses weight matrices, `incremental_decoder.py` decodes with a
cache, and `AutoregressivePolicy.jacobi_decode` decodes all agents in parallel. Tests hold them equal to this file.

Shape legend: B rows (environments, or steps x environments), N agents, M positions attended to, O observation features,
D width, H heads, L slots of an action, A parameters of an agent's action distribution.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.heads import RELU_GAIN, SMALL_GAIN, Head, linear


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2). Scores are scaled by 1/sqrt(D/H)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(width, width, SMALL_GAIN)
        self.key = linear(width, width, SMALL_GAIN)
        self.value = linear(width, width, SMALL_GAIN)
        self.out = linear(width, width, SMALL_GAIN)

    def split_heads(self, x: Tensor) -> Tensor:
        """Return (B, H, N, D / H) of (B, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def weights(self, x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
        """Return the attention weights (B, H, N, M). `allowed` broadcasts to (B, N, M): where `x` may attend to `y`."""
        query, key = self.split_heads(self.query(x)), self.split_heads(self.key(y))
        score = query @ key.mT * key.shape[-1] ** -0.5
        return score.masked_fill(~allowed.unsqueeze(-3), float("-inf")).softmax(-1)

    def forward(self, x: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
        """Attend from `x` (B, N, D) to `y` (B, M, D). Returns (B, N, D)."""
        mixture = self.weights(x, y, allowed) @ self.split_heads(self.value(y))
        return self.out(mixture.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Post-LayerNorm block: attention between all agents, then an MLP of ratio 1."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mlp = block_mlp(width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Return the block's output (B, N, D) for `x` (B, N, D)."""
        x = self.norms[0](x + self.attention(x, x, allowed))
        return self.norms[1](x + self.mlp(x))


class Encoder(nn.Module):
    """Embed each agent's observation, then attend between agents.

    The value of agent i is `output_head(width, 1)` of its representation.
    """

    def __init__(self, embed: nn.Module, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embed, self.heads = embed, heads
        self.blocks = nn.ModuleList(EncoderBlock(width, heads) for _ in range(blocks))

    def forward(self, observation: Tensor, alive: Tensor) -> Tensor:
        """Return the representation (B, N, D) of observations (B, N, O). Dead agents are hidden from the others."""
        x = self.embed(observation)
        for block in self.blocks:
            x = block(x, alive_mask(alive))
        return x


class DecoderBlock(nn.Module):
    """Causal self-attention over actions, then causal attention from the observations to the actions, then an MLP.

    The observations are the query and the residual of the second attention, as in the released code. In Vaswani et
    al. 2017 they are its keys and values.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = block_mlp(width)

    def forward(self, x: Tensor, representation: Tensor, allowed: Tensor) -> Tensor:
        """Return the block's output (B, N, D) for tokens `x` (B, N, D) and the `representation` (B, N, D)."""
        x = self.norms[0](x + self.self_attention(x, x, allowed))
        x = self.norms[1](representation + self.cross_attention(representation, x, allowed))
        return self.norms[2](x + self.mlp(x))


class Decoder(nn.Module):
    """Features of each agent given all observations and the actions of the agents before it.

    The distribution of agent i's action is `output_head(width, A)` of its features.
    """

    def __init__(self, token: nn.Module, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.token, self.token_norm = token, nn.LayerNorm(width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(blocks))

    def forward(self, representation: Tensor, previous: Tensor) -> Tensor:
        """Return features (B, N, D). `previous` are the token inputs that `previous_actions` makes."""
        x = self.token_norm(F.gelu(self.token(previous)))
        for block in self.blocks:
            x = block(x, representation, causal_mask(x))
        return x


def decode(
    decoder: Decoder, actor: nn.Module, head: Head, representation: Tensor, mask: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Decide one agent after another, running the whole decoder for each.

    `offset` (B, N, A) is the head's `sampling_offset`: it holds the noise, so the result is a deterministic function.
    Returns actions (B, N, L) and the distributions' parameters (B, N, A).
    """
    action = head.start_action(tuple(mask.shape[:2]), mask.device)
    parameters = offset
    for i in range(mask.shape[1]):
        parameters = actor(decoder(representation, previous_actions(action)))
        action[:, i] = head.argmax_action(parameters[:, i] + offset[:, i], mask[:, i])
    return action, parameters


def previous_actions(action: Tensor) -> Tensor:
    """Return the token input of each agent: the action of the agent before it, and a start token for the first.

    Discrete actions (B, N, 1) become token ids (B, N): 0 is the start, 1 + a is action a. Continuous actions (B, N, L)
    stay vectors, and the start is zeros.
    """
    tokens = action if action.is_floating_point() else action.squeeze(-1) + 1
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)


def observation_embedding(size: int, width: int, input_norm: bool = True) -> nn.Sequential:
    """Return the embedding of an observation: LayerNorm, linear, GELU, LayerNorm.

    Without `input_norm` the first layer is the identity.
    """
    norm = nn.LayerNorm(size) if input_norm else nn.Identity()
    return nn.Sequential(norm, linear(size, width), nn.GELU(), nn.LayerNorm(width))


def discrete_tokens(count: int, width: int) -> nn.Embedding:
    """Return an orthogonal table of `count` tokens, the start token included."""
    table = nn.Embedding(count, width)
    nn.init.orthogonal_(table.weight, RELU_GAIN)
    return table


def output_head(width: int, size: int) -> nn.Sequential:
    """Return the head of the critic or the actor: linear, GELU, LayerNorm, and a linear layer of small gain."""
    return nn.Sequential(linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, size, SMALL_GAIN))


def block_mlp(width: int) -> nn.Sequential:
    """Return the two-layer MLP of a block."""
    return nn.Sequential(linear(width, width), nn.GELU(), linear(width, width, SMALL_GAIN))


def alive_mask(alive: Tensor) -> Tensor:
    """Return (B, N, N) bool: attention goes to living agents and to oneself."""
    return alive[:, None, :] | torch.eye(alive.shape[-1], dtype=torch.bool, device=alive.device)


def causal_mask(x: Tensor) -> Tensor:
    """Return (N, N) bool for `x` (B, N, D): attention goes to the own position and those before."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
