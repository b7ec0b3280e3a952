"""Multi-Agent Transformer (Wen et al. 2022): an encoder over observations, a causal decoder over actions.

Shape legend: E environments, N agents, D embedding, A actions, H heads.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from agents.attention import DecoderBlock, DecoderFold, EncoderBlock, Fold, ask, causal_bias, living_bias
from agents.decode import Stepper
from agents.nn import RELU_GAIN, SMALL_GAIN, GaussianHead, VectorPolicy, fingerprint, linear, make_head, plain_kernels
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


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


class Folds(NamedTuple):
    """The weights as the forward pass wants them, multiplied out where that saves work on every row."""

    embed: tuple[Tensor, Tensor]
    encoder: tuple[Fold, ...]
    decoder: tuple[DecoderFold, ...]


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
        self._kept: tuple[object, Folds, Stepper] | None = None
        self._all: tuple[nn.Parameter, ...] = ()

    def fold(self) -> Folds:
        """The folded weights, differentiable."""
        norm, first = cast(nn.LayerNorm, self.embed[0]), cast(nn.Linear, self.embed[1])
        # Observations need no gradient, so neither does their normalisation once its gain is in the weights.
        embed = (first.weight * norm.weight, first.bias + first.weight @ norm.bias)
        encoder: Any = self.encoder
        decoder: Any = self.decoder
        return Folds(embed, tuple(b.attention.fold() for b in encoder), tuple(b.fold() for b in decoder))

    def kept(self) -> tuple[Folds, Stepper]:
        """What acting needs, made anew only when the weights have changed."""
        if not self._all:
            self._all = tuple(self.parameters())
        mark = fingerprint(self._all)
        if self._kept is None or self._kept[0] != mark:
            folds = self.fold()
            tokens = None if isinstance(self.head, GaussianHead) else self.all_tokens()
            stepper = Stepper(self.decoder, folds.decoder, self.actor, self.head, tokens, self.embed_tokens)
            self._kept = (mark, folds, stepper)
        return self._kept[1:]

    def represent(self, inputs: Inputs, folds: Folds) -> tuple[Tensor, Tensor]:
        """The encoder: representation (E, N, D) and value (E, N, 1)."""
        x = self.features(inputs)
        x = self.embed[3](F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), *folds.embed)))
        bias = living_bias(inputs["alive"], self.options.heads, x)
        for block, fold in zip(self.encoder, folds.encoder, strict=True):
            x = block(x, fold, bias)
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

    def all_tokens(self) -> Tensor:
        """(A + 1, D): the start, then each discrete action."""
        return self.token_norm(F.gelu(cast(nn.Embedding, self.token).weight))

    def embed_tokens(self, action: Tensor) -> Tensor:
        """Tokens (E, K, D) of continuous actions (E, K, A)."""
        return self.token_norm(F.gelu(self.token(action)))

    def tokens(self, action: Tensor, fold: Fold) -> tuple[Tensor, Tensor]:
        """What each of N positions (E, N, D) knows of actions (E, N, L), the one before it; and its queries."""
        before = F.pad(action[:, :-1], (0, 0, 1, 0))
        if isinstance(self.head, GaussianHead):
            x = self.embed_tokens(before)
            return x, ask(fold, x)
        table = self.all_tokens()
        kind = (before + 1).squeeze(-1)
        kind[:, 0] = 0
        return F.embedding(kind, table), F.embedding(kind, ask(fold, table))

    def decode(self, representation: Tensor, action: Tensor, folds: Folds) -> Tensor:
        """Parameters (E, N, A) of every agent's distribution given the `action` (E, N, L) of those before it."""
        x, query = self.tokens(action, folds.decoder[0].own)
        bias = causal_bias(x.shape[1], self.options.heads, x)
        for number, (block, fold) in enumerate(zip(self.decoder, folds.decoder, strict=True)):
            x = block(x, query if number == 0 else ask(fold.own, x), representation, fold, bias)
        return self.actor(x)

    def search(
        self, representation: Tensor, mask: Tensor, noise: Tensor | None, folds: Folds, passes: int
    ) -> tuple[Tensor, Tensor] | None:
        """Actions and parameters as the sequential decoder finds them, by at most `passes` passes over all agents.

        With the noise drawn, a sample is a function of the samples before it: whatever a pass leaves as it was is
        that fixed point, and N passes always find it. None where `passes` were too few.
        """
        offset = self.head.offset(mask, noise)
        action = torch.zeros((*mask.shape[:2], self.slots), dtype=torch.long, device=mask.device)
        for _ in range(passes):
            parameters = self.decode(representation, action, folds)
            better = self.head.pick(parameters + offset, mask)
            if torch.equal(better, action):
                return action, parameters
            action = better
        return None

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        with torch.no_grad(), plain_kernels():
            folds, stepper = self.kept()
            alive = inputs["alive"]
            envs, agents = alive.shape
            representation, value = self.represent(inputs, folds)
            noise = None if deterministic else self.head.noise((envs, agents), value.device, generator)
            order = self.decide_order(alive, generator)
            ordered, mask = reorder(representation, order), reorder(inputs["action_mask"], order)
            passes = parallel_passes(envs, agents, alive.device.type) if self.spec.discrete else 0
            found = self.search(ordered, mask, noise, folds, passes) or stepper.decode(ordered, mask, noise)
            log_prob = self.head.log_prob(found[1], mask, found[0])
            action = restore(found[0], order)
        nodes = self.nodes(inputs, self.head, action, order)
        return Decision(self.head.to_env(action), nodes, restore(log_prob, order), value)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        folds = self.fold()
        representation, value = self.represent(inputs, folds)
        order = nodes.order
        ordered, mask = reorder(representation, order), reorder(inputs["action_mask"], order)
        action = reorder(nodes.action, order)
        log_prob, entropy = self.head.evaluate(self.decode(ordered, action, folds), mask, action)
        return Evaluation(restore(log_prob, order), restore(entropy, order), value)

    def value(self, inputs: Inputs) -> Tensor:
        folds = self.fold() if torch.is_grad_enabled() else self.kept()[0]
        return self.represent(inputs, folds)[1].squeeze(-1)

    @torch.no_grad()
    def attention(self, inputs: Inputs, nodes: Nodes) -> Tensor:
        """(E, N, N): how much agent i, deciding, looked at the action of agent j, in the decoder's self-attention.

        Averaged over heads and blocks. Only agents that decided before i have a weight; what i gave to the symbol
        that begins the sequence, and so to nobody, is at [i, i]. A living agent's row sums to 1, a dead one's to 0.
        """
        folds, order = self.fold(), nodes.order
        representation = reorder(self.represent(inputs, folds)[0], order)
        x = self.tokens(reorder(nodes.action, order), folds.decoder[0].own)[0]
        total = x.new_zeros(*inputs["alive"].shape, self.spec.num_agents)
        bias = causal_bias(x.shape[1], self.options.heads, x)
        blocks: Any = self.decoder
        for block, fold in zip(blocks, folds.decoder, strict=True):
            total += block.own.weights(x) / len(blocks)
            x = block(x, ask(fold.own, x), representation, fold, bias)
        # Position p holds the action decided at p - 1, and position 0 the beginning.
        looked = F.pad(total[:, :, 1:], (0, 1)) + torch.diag_embed(total[:, :, 0])
        looked = restore(restore(looked, order).mT, order).mT
        return looked * inputs["alive"].unsqueeze(-1)


def parallel_passes(envs: int, agents: int, device: str) -> int:
    """Passes over all agents to try before deciding one after another; all that it may take on a GPU, else few.

    On a CPU core a pass costs about 0.1 ms and 1.1 us a row, a position 50 us and 1.3 us an environment
    (`marl bench act`). At most half of the sequential time is spent on trying, and one pass alone proves nothing.
    """
    if device != "cpu":
        return agents
    affordable = int(agents * (50.0 + 1.3 * envs) / (2.0 * (100.0 + 1.1 * envs * agents)))
    return affordable if affordable > 1 else 0


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
