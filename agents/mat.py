"""Multi-Agent Transformer (Wen et al. 2022): an encoder over observations, a causal decoder over actions.

Shape legend: E environments, N agents, D embedding, A actions, H heads.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from agents.nn import RELU_GAIN, SMALL_GAIN, GaussianHead, VectorPolicy, linear, make_head
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes

Cache = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MATOptions:
    """The Multi-Agent Transformer."""

    embedding: int = 64
    """Width of the transformer."""
    heads: int = 1
    """Attention heads; must divide the width."""
    blocks: int = 1
    """Encoder blocks, and decoder blocks."""
    agent_order: Literal["fixed", "random"] = "fixed"
    """Order in which agents decide: as the environment lists them, or drawn anew at every step."""
    agent_id: bool = True
    """Append the agent's one-hot identity to its observation."""
    normalise_observations: bool = False
    """Standardise observations by running moments, kept with the weights."""
    std_limit: float = 0.5
    """Upper bound of the standard deviation of continuous actions, which lie in [-1, 1]."""
    std_start: float = 0.3655
    """Standard deviation of continuous actions at the start."""

    def __post_init__(self) -> None:
        if self.embedding < 1:
            raise ConfigError(f"embedding is {self.embedding}; give 1 or more, usually 64")
        if self.heads < 1 or self.embedding % self.heads:
            raise ConfigError(f"heads is {self.heads}, which does not divide embedding, {self.embedding}")
        if self.blocks < 1:
            raise ConfigError(f"blocks is {self.blocks}; give 1 or more")


class Attention(nn.Module):
    """Scaled dot-product attention; scores are scaled by 1/sqrt(D/H)."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(embedding, embedding, SMALL_GAIN)
        self.key = linear(embedding, embedding, SMALL_GAIN)
        self.value = linear(embedding, embedding, SMALL_GAIN)
        self.out = linear(embedding, embedding, SMALL_GAIN)

    def split(self, x: Tensor) -> Tensor:
        """(E, N, D) to (E, H, N, D/H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys(self, x: Tensor) -> Cache:
        return self.split(self.key(x)), self.split(self.value(x))

    def attend(self, query: Tensor, cache: Cache, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`query` (E, N, D) over cached keys and values; `mask` (E, 1, N, N) is True where one may look."""
        key, value = cache
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(query)), key, value, attn_mask=mask, is_causal=causal
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor) -> Tensor:
        """(E, N, N): how much each position of `x` looks at itself and those before, averaged over heads."""
        query, key = self.split(self.query(x)), self.split(self.key(x))
        score = query @ key.mT / query.shape[-1] ** 0.5
        ahead = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).triu(1)
        return score.masked_fill(ahead, float("-inf")).softmax(-1).mean(1)


class EncoderBlock(nn.Module):
    """Post-LayerNorm block with unmasked attention and an MLP of ratio 1."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(embedding, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(2))
        self.mlp = nn.Sequential(linear(embedding, embedding), nn.GELU(), linear(embedding, embedding, SMALL_GAIN))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norms[0](x + self.attention.attend(x, self.attention.keys(x), mask))
        return self.norms[1](x + self.mlp(x))


class DecoderBlock(nn.Module):
    """Causal attention over action tokens, then attention with the observation stream as query and residual."""

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        self.own = Attention(embedding, heads)
        self.cross = Attention(embedding, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(embedding) for _ in range(3))
        self.mlp = nn.Sequential(linear(embedding, embedding), nn.GELU(), linear(embedding, embedding, SMALL_GAIN))

    def forward(self, x: Tensor, representation: Tensor) -> Tensor:
        """All N positions at once, (E, N, D) each."""
        x = self.norms[0](x + self.own.attend(x, self.own.keys(x), causal=True))
        x = self.norms[1](representation + self.cross.attend(representation, self.cross.keys(x), causal=True))
        return self.norms[2](x + self.mlp(x))

    def step(self, x: Tensor, representation: Tensor, caches: "BlockCache", i: int) -> Tensor:
        """Position i alone, (E, 1, D), given the cached keys and values of the positions before."""
        x = self.norms[0](x + self.own.attend(x, caches.own.extend(self.own.keys(x), i)))
        x = self.norms[1](
            representation + self.cross.attend(representation, caches.cross.extend(self.cross.keys(x), i))
        )
        return self.norms[2](x + self.mlp(x))


class KeyValues:
    """Preallocated keys and values (E, H, N, D/H) of one attention layer."""

    def __init__(self, envs: int, heads: int, agents: int, embedding: int, like: Tensor) -> None:
        shape = (envs, heads, agents, embedding // heads)
        self.key, self.value = like.new_empty(shape), like.new_empty(shape)

    def extend(self, cache: Cache, i: int) -> Cache:
        self.key[:, :, i : i + 1], self.value[:, :, i : i + 1] = cache
        return self.key[:, :, : i + 1], self.value[:, :, : i + 1]


@dataclass(frozen=True)
class BlockCache:
    own: KeyValues
    cross: KeyValues


class MAT(VectorPolicy):
    """The policy; values come from the encoder, one for each agent and step, (E, N, 1).

    Dead and padded agents are hidden from the encoder's attention and decide last, so that nothing
    that a living agent does depends on them or on their number.
    """

    def __init__(self, spec: EnvSpec, options: MATOptions) -> None:
        super().__init__(spec, options.agent_id, options.normalise_observations)
        width, heads = options.embedding, options.heads
        self.options = options
        self.embed = nn.Sequential(
            nn.LayerNorm(self.feature_size), linear(self.feature_size, width), nn.GELU(), nn.LayerNorm(width)
        )
        self.encoder = nn.ModuleList(EncoderBlock(width, heads) for _ in range(options.blocks))
        self.critic = nn.Sequential(linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, 1, SMALL_GAIN))
        self.head = make_head(spec, options.std_limit, options.std_start)
        self.slots = self.head.slots
        if isinstance(self.head, GaussianHead):
            self.token: nn.Module = linear(spec.action_size, width)
        else:
            self.token = nn.Embedding(spec.action_size + 1, width)
            nn.init.orthogonal_(self.token.weight, RELU_GAIN)
        self.token_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(options.blocks))
        self.actor = nn.Sequential(
            linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, spec.action_size, SMALL_GAIN)
        )

    def represent(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The encoder: representation (E, N, D) and value (E, N, 1)."""
        alive = inputs["alive"]
        mask = None
        if not bool(alive.all()):
            itself = torch.eye(alive.shape[-1], dtype=torch.bool, device=alive.device)
            mask = (alive[:, None, :] | itself).unsqueeze(1)
        x = self.embed(self.features(inputs))
        for block in self.encoder:
            x = block(x, mask)
        return x, self.critic(x)

    def decide_order(self, alive: Tensor, generator: Generator | None) -> Tensor | None:
        """(E, N): living agents first, in the chosen order; None where that is 0..N-1 everywhere."""
        if self.options.agent_order == "random":
            key = torch.rand(alive.shape, device=alive.device, generator=generator)
        elif bool(alive.all()):
            return None
        else:
            key = torch.arange(alive.shape[-1], device=alive.device).expand(alive.shape) / alive.shape[-1]
        return (key + (~alive).to(key.dtype)).argsort(-1)

    def embed_tokens(self, action: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """Tokens (E, K, D) of earlier actions (E, K, L), or of the start, (E, 1, D), where there are none."""
        weight = self.token_norm.weight
        if isinstance(self.head, GaussianHead):
            x = weight.new_zeros((*shape, self.slots)) if action is None else action
        else:
            x = torch.zeros(shape, dtype=torch.long, device=weight.device) if action is None else action.squeeze(-1) + 1
        return self.token_norm(F.gelu(self.token(x)))

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        representation, value = self.represent(inputs)
        alive, mask = inputs["alive"], inputs["action_mask"]
        envs, agents = alive.shape
        noise = None if deterministic else self.head.noise((envs, agents), value.device, generator)
        stored = self.decide_order(alive, generator)
        ordered, mask = reorder(representation, stored), reorder(mask, stored)
        width, heads = self.options.embedding, self.options.heads
        caches = [
            BlockCache(*(KeyValues(envs, heads, agents, width, representation) for _ in range(2))) for _ in self.decoder
        ]
        action: Tensor | None = None
        actions, log_probs = [], []
        blocks: Any = self.decoder
        for i in range(agents):
            x = self.embed_tokens(action, (envs, 1))
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, ordered[:, i : i + 1], cache, i)
            sample = self.head.sample(self.actor(x), mask[:, i : i + 1], None if noise is None else noise[:, i : i + 1])
            action = sample.action
            actions.append(sample.action)
            log_probs.append(sample.log_prob)
        chosen = restore(torch.cat(actions, 1), stored)
        nodes = self.nodes(inputs, self.head, chosen, stored)
        return Decision(self.head.to_env(chosen), nodes, restore(torch.cat(log_probs, 1), stored), value)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        representation, value = self.represent(inputs)
        order = nodes.order
        ordered, mask = reorder(representation, order), reorder(inputs["action_mask"], order)
        action = reorder(nodes.action, order)
        envs, agents = inputs["alive"].shape
        x = self.embed_tokens(None, (envs, 1))
        if agents > 1:
            x = torch.cat([x, self.embed_tokens(action[:, :-1], (envs, agents - 1))], 1)
        for block in self.decoder:
            x = block(x, ordered)
        log_prob, entropy = self.head.evaluate(self.actor(x), mask, action)
        return Evaluation(restore(log_prob, order), restore(entropy, order), value)

    def value(self, inputs: Inputs) -> Tensor:
        return self.represent(inputs)[1].squeeze(-1)

    @torch.no_grad()
    def attention(self, inputs: Inputs, nodes: Nodes) -> Tensor:
        """(E, N, N): how much agent i, deciding, looked at the action of agent j, in the decoder's self-attention.

        Averaged over heads and blocks. Only agents that decided before i have a weight; what i gave to the symbol
        that begins the sequence, and so to nobody, is at [i, i]. A living agent's row sums to 1, a dead one's to 0.
        """
        representation, order = self.represent(inputs)[0], nodes.order
        ordered, action = reorder(representation, order), reorder(nodes.action, order)
        envs, agents = inputs["alive"].shape
        tokens = [self.embed_tokens(None, (envs, 1)), self.embed_tokens(action, (envs, agents))]
        x = torch.cat(tokens, 1)[:, :-1]
        total = x.new_zeros(envs, agents, agents)
        blocks: Any = self.decoder
        for block in blocks:
            total += block.own.weights(x) / len(blocks)
            x = block(x, ordered)
        # Position p holds the action decided at p - 1, and position 0 the beginning.
        looked = F.pad(total[:, :, 1:], (0, 1)) + torch.diag_embed(total[:, :, 0])
        looked = restore(restore(looked, order).mT, order).mT
        return looked * inputs["alive"].unsqueeze(-1)


def reorder(x: Tensor, order: Tensor | None) -> Tensor:
    """(E, N, F) from agent order to decision order."""
    return x if order is None else x.gather(1, order.unsqueeze(-1).expand_as(x))


def restore(x: Tensor, order: Tensor | None) -> Tensor:
    """(E, N, F) from decision order back to agent order."""
    if order is None:
        return x
    return torch.empty_like(x).scatter_(1, order.unsqueeze(-1).expand_as(x), x)


@register_agent("mat", options=MATOptions, summary="Multi-Agent Transformer, autoregressive over agents")
def make_mat(spec: EnvSpec, options: MATOptions) -> MAT:
    return MAT(spec, options)
