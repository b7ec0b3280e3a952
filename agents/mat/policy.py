"""The transformer over a team: its encoder of observations, and the autoregressive decoder of actions on top.

Shape legend: E environments, N agents, D embedding, A actions, H heads, L slots.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from marl.agents.mat.attention import (
    DecoderBlock,
    EncoderBlock,
    FusedAttention,
    FusedDecoderBlock,
    TokenTable,
    alive_bias,
    causal_bias,
    detach_leaves,
    fuse_layers,
)
from marl.agents.mat.incremental_decoder import Decoded, IncrementalDecoder
from marl.agents.parameter_sharing import ActionTokens, NetworkSets, Sharing, parameter_sets
from marl.agents.policy_base import (
    RELU_GAIN,
    SMALL_GAIN,
    CategoricalHead,
    MixedHead,
    VectorOptions,
    VectorPolicy,
    active_agents,
    linear,
    make_head,
    no_onednn,
    weights_version,
)
from marl.agents.recurrent import GRULayer, recurrent_inputs
from marl.errors import ConfigError
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


@dataclass(frozen=True)
class TeamOptions(VectorOptions):
    """A network over all agents."""

    embedding: int = 64
    """Width of the network."""
    parameters_per: Sharing = "team"
    """Who has an embedding of observations and actions, and an actor: the team together, each group of agents (by type,
    as the environment says), or each agent. Attention and critic are always the team's. Only a team's can read
    entities, for teams of any size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding < 1:
            raise ConfigError(f"embedding is {self.embedding}; give 1 or more, usually 64")


@dataclass(frozen=True)
class TransformerOptions(TeamOptions):
    """Attention between the agents."""

    heads: int = 1
    """Attention heads; must divide the width."""
    blocks: int = 1
    """Blocks of attention in the encoder, and as many in a decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.embedding % self.heads:
            raise ConfigError(f"heads is {self.heads}, which does not divide embedding, {self.embedding}")
        if self.blocks < 1:
            raise ConfigError(f"blocks is {self.blocks}; give 1 or more")


Order = Literal["fixed", "random"]


@dataclass(frozen=True)
class MATOptions(TransformerOptions):
    """The Multi-Agent Transformer."""

    agent_order: Order = "fixed"
    """Order in which agents decide: as the environment lists them, or drawn anew at every step."""


class FusedEncoder(NamedTuple):
    """The encoder's weights as the forward pass wants them, multiplied out where that saves work on every row."""

    embed: tuple[Tensor, Tensor] | None
    """None where groups have embeddings of their own, or observations are made of entities."""
    blocks: tuple[FusedAttention, ...]


class TeamPolicy(VectorPolicy):
    """Embedded observations, and a critic with one value for each agent and step, (E, N, 1).

    Dead and padded agents are hidden from the encoder's attention, so that nothing that a living agent does depends
    on them or on their number.
    """

    min_passes = 3
    """In one pass an update takes two thirds of the memory of MAT's released code; each costs about 2 ms of its own."""

    def __init__(self, spec: EnvSpec, options: TeamOptions) -> None:
        super().__init__(spec, options.agent_id, options.normalize_observations)
        width = options.embedding
        self.options = options
        self.parameter_sets = parameter_sets(spec, options.parameters_per)
        self.embed = self.per_parameter_set(self.make_embed)
        self.encoder: Any = self.make_encoder()
        self.critic = nn.Sequential(linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, 1, SMALL_GAIN))
        self.head = make_head(spec, options.max_std, options.init_std, self.parameter_sets)
        self.slots = self.head.slots
        self.gru = None
        if options.bptt_steps:
            self.gru = GRULayer(width)
            self.bptt_steps, self.recurrent_shape = options.bptt_steps, (spec.num_agents, width)
        self._cache: tuple[object, Any] | None = None
        self._all: tuple[nn.Parameter, ...] = ()
        self._shared_weights: Any = None

    def per_parameter_set(self, make: Callable[[], nn.Sequential]) -> nn.Sequential | NetworkSets:
        networks = [make() for _ in range(max(self.parameter_sets) + 1)]
        return NetworkSets(networks, self.parameter_sets) if len(networks) > 1 else networks[0]

    def make_embed(self) -> nn.Sequential:
        width = self.options.embedding
        return nn.Sequential(
            nn.LayerNorm(self.feature_size), linear(self.feature_size, width), nn.GELU(), self.embed_norm(width)
        )

    def embed_norm(self, width: int) -> nn.Module:
        return nn.LayerNorm(width)

    @property
    def heads(self) -> int:
        options: Any = self.options
        return options.heads

    def make_encoder(self) -> nn.Module:
        options: Any = self.options
        return nn.ModuleList(EncoderBlock(options.embedding, options.heads) for _ in range(options.blocks))

    def make_actor(self) -> nn.Sequential:
        """From features (..., D) to the parameters of the head's distribution, (..., A)."""
        width, size = self.options.embedding, self.head.size
        return nn.Sequential(linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, size, SMALL_GAIN))

    def fuse_embedding(self) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the first layer with the gain and bias of the normalization before it.

        Observations need no gradient, so neither does their normalization then.
        """
        if isinstance(self.embed, NetworkSets):
            return None
        norm, first = cast(nn.LayerNorm, self.embed[0]), cast(nn.Linear, self.embed[1])
        return first.weight * norm.weight, first.bias + first.weight @ norm.bias

    def fuse_encoder(self) -> FusedEncoder:
        """Differentiable."""
        return FusedEncoder(self.fuse_embedding(), tuple(fuse_layers([block.attention for block in self.encoder])))

    def fuse(self) -> Any:
        """What `evaluate` takes of the weights, differentiable."""
        return self.fuse_encoder()

    @contextmanager
    def accumulation_context(self) -> Iterator[None]:
        """Evaluations within share one fold of the weights, which get its gradient at the end.

        The weights must not change meanwhile.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        self._shared_weights = detach_leaves(self.fuse(), pairs)
        try:
            yield
        finally:
            self._shared_weights = None
        reached = [(part, leaf.grad) for part, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([part for part, _ in reached], [gradient for _, gradient in reached])

    def build_cache(self) -> Any:
        """What acting wants made of the weights."""
        return self.fuse()

    def cached_weights(self) -> Any:
        """What `prepare` makes, anew only when the weights have changed."""
        if not self._all:
            self._all = tuple(self.parameters())
        mark = weights_version(self._all)
        if self._cache is None or self._cache[0] != mark:
            self._cache = (mark, self.build_cache())
        return self._cache[1]

    def run_recurrent(self, inputs: Inputs, folds: FusedEncoder, steps: int) -> tuple[Inputs, Tensor | None]:
        """The inputs with observations embedded and joined to what was seen before, in chunks of `steps`, and what each
        agent remembers behind them; without a memory the inputs as they are."""
        if self.gru is None:
            return inputs, None
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents))
        x, memory = self.gru(self.embed_observations(inputs, folds), past)
        return inputs | {"embedded": x}, memory

    def embed_observations(self, inputs: Inputs, folds: FusedEncoder) -> Tensor:
        """(E, N, D), each agent by itself."""
        if "embedded" in inputs:
            return inputs["embedded"]
        x = self.features(inputs)
        if folds.embed is None:
            return self.embed(x)
        # Given a gain and a bias, a CPU normalizes twice as fast as without.
        width = x.shape[-1]
        x = torch.layer_norm(x, [width], x.new_ones(width), x.new_zeros(width))
        return cast(nn.Sequential, self.embed)[3](F.gelu(F.linear(x, *folds.embed)))

    def encode_observations(self, inputs: Inputs, folds: FusedEncoder) -> Tensor:
        """The encoder's representation (E, N, D), in the order of the agents."""
        x = self.embed_observations(inputs, folds)
        bias = alive_bias(inputs["alive"], self.heads, x)
        for block, fold in zip(self.encoder, folds.blocks, strict=True):
            x = block(x, fold, bias)
        return x

    def value(self, inputs: Inputs) -> Tensor:
        folds = self.fuse_encoder() if torch.is_grad_enabled() else self.cached_weights()
        inputs, _ = self.run_recurrent(inputs, folds, 1)
        return self.critic(self.encode_observations(inputs, folds)).squeeze(-1)


class AutoregressivePolicy(TeamPolicy):
    """Agents that decide one after another, each given the actions before; the dead and the padded come last."""

    critic_reads_decoder = False
    """The critic reads the decoder, and so each value is given the actions of the agents before; else the encoder."""

    def __init__(self, spec: EnvSpec, options: Any) -> None:
        super().__init__(spec, options)
        width, groups = options.embedding, max(self.parameter_sets) + 1
        if isinstance(self.head, CategoricalHead):
            self.token: nn.Module = nn.Embedding(1 + groups * self.head.size, width)
            nn.init.orthogonal_(self.token.weight, RELU_GAIN)
        elif isinstance(self.head, MixedHead):
            self.token = ActionTokens(self.head.choices + 1, self.head.torque.size, groups, width, RELU_GAIN)
        elif groups > 1:
            self.token = ActionTokens(1, self.head.size, groups, width, RELU_GAIN)
        else:
            self.token = linear(self.head.size, width)
        self.token_norm = nn.LayerNorm(width)
        self.decoder: Any = self.make_decoder()
        self.actor = self.per_parameter_set(self.make_actor)

    def make_decoder(self) -> nn.Module:
        raise NotImplementedError

    def build_cache(self) -> tuple[Any, Any]:
        """What `fold` makes, and what decides for one agent after another: it has a `decode` as Stepper's."""
        raise NotImplementedError

    def decoder_memory(self, inputs: Inputs, folds: Any, order: Tensor | None) -> Tensor:
        """What the decoder knows of the observations, (E, N, D), in the order of decisions."""
        raise NotImplementedError

    def decode(self, representation: Tensor, action: Tensor, folds: Any, order: Tensor | None = None) -> Tensor:
        """Features (E, N, D) of every agent given the `action` (E, N, L) of those before it, both in that `order`."""
        raise NotImplementedError

    def decide_order(self, alive: Tensor, generator: Generator | None) -> Tensor | None:
        """(E, N): living agents first, in the chosen order; None where that is 0..N-1 everywhere."""
        if self.random_order:
            key = torch.rand(alive.shape, device=alive.device, generator=generator)
            return (key + (~alive).to(key.dtype)).argsort(-1)
        return fixed_order(alive)

    @property
    def random_order(self) -> bool:
        options: Any = self.options
        return options.agent_order == "random"

    def position_sets(self, order: Tensor | None) -> Tensor | None:
        """The group of each position, (N,), or (E, N) in an `order`; None where all share their parameters."""
        if max(self.parameter_sets) == 0:
            return None
        groups = torch.tensor(self.parameter_sets, device=self.identity.device)
        return groups if order is None else groups[order]

    def row_sets(self, order: Tensor | None) -> list[Any] | None:
        """For each of N positions the group of its rows, or of each row (E,); None where all share their parameters."""
        groups = self.position_sets(order)
        if groups is None:
            return None
        return list(self.parameter_sets) if order is None else list(groups.unbind(1))

    def action_parameters(self, features: Tensor, order: Tensor | None, present: list[bool] | None = None) -> Tensor:
        """The actor's, (E, N, A), of features (E, N, D) in that order; see PerGroup for who is `present`."""
        if not isinstance(self.actor, NetworkSets):
            return self.actor(features)
        return decision_order(self.actor(agent_order(features, order), present), order)

    def embed_raw(self, x: Tensor) -> Tensor:
        """Tokens (..., D) before they are normalized, from what `reads` returns of earlier actions."""
        return F.gelu(self.token(x))

    def embed_tokens(self, x: Tensor) -> Tensor:
        """Tokens (..., D), from what `reads` returns of earlier actions."""
        return self.token_norm(self.embed_raw(x))

    def token_ids(self, action: Tensor, group: Any) -> Tensor:
        """What tells the actions (..., L) of agents of a `group` (...) apart, and from the start, which is 0.

        Kinds (...), 1 + a being the action a, or vectors: torques (..., A), or as MarkedTokens has them.
        """
        if isinstance(self.token, nn.Embedding):
            kind = action[..., 0] + 1
            return kind if group is None else kind + self.head.size * group
        if not isinstance(self.token, ActionTokens):
            return action
        if not isinstance(self.head, MixedHead):
            action = F.pad(action, (1, 0))
        return self.token.token_ids(action, 0 if group is None else group)

    def start_actions(self, envs: int, agents: int) -> Tensor:
        """(E, N, L): actions to begin with, all zero."""
        zeros = self.identity.new_zeros(envs, agents, self.slots)
        return zeros.long() if isinstance(self.head, CategoricalHead) else zeros

    def shift_right(self, action: Tensor, order: Tensor | None = None) -> Tensor:
        """What `embed_tokens` takes for each position, of the action (E, N, L) before it."""
        groups, earlier = self.position_sets(order), action[:, :-1]
        marked = self.token_ids(earlier, None if groups is None else groups[..., : earlier.shape[1]])
        return F.pad(marked, (1, 0) if marked.dim() == 2 else (0, 0, 1, 0))

    def decoder_inputs(self, representation: Tensor, action: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the decoder reads for each agent: of the observations (E, N, D), and of the actions before."""
        return representation, self.shift_right(action, order)

    def jacobi_decode(
        self,
        representation: Tensor,
        mask: Tensor,
        offset: Tensor,
        folds: Any,
        max_iterations: int,
        order: Tensor | None = None,
    ) -> Decoded | None:
        """What the sequential decoder decides, by at most `passes` passes over all agents; for discrete actions.

        `offset` (E, N, A) is the head's.

        With the noise drawn, a sample is a function of the samples before it. A pass settles at least one more agent,
        so N are always enough, and what a pass leaves as it was is settled whole. None where `passes` were too few.
        """
        action = self.start_actions(*mask.shape[:2])
        for done in range(1, max_iterations + 1):
            features = self.decode(representation, action, folds, order)
            parameters = self.action_parameters(features, order)
            better = self.head.argmax_action(parameters + offset, mask)
            if done == mask.shape[1] or torch.equal(better, action):
                return Decoded(better, parameters, features)
            action = better
        return None

    def jacobi_iterations(self, envs: int, agents: int) -> int:
        """Passes of `search` to try before deciding one after another."""
        return max_jacobi_iterations(envs, agents, self.identity.device.type) if self.spec.discrete else 0

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        alive = inputs["alive"]
        shape = (alive.shape[0], alive.shape[1])
        noise = None if deterministic else self.head.noise(shape, alive.device, generator)
        return self.decide(inputs, noise, self.decide_order(alive, generator))

    def decide(self, inputs: Inputs, noise: Tensor | None, order: Tensor | None) -> Decision:
        """Each agent given the actions of those before it in the `order`; the likeliest actions without noise."""
        with torch.no_grad(), no_onednn():
            folds, stepper = self.cached_weights()
            inputs, memory = self.run_recurrent(inputs, folds.encoder, 1)
            representation, mask = (
                self.decoder_memory(inputs, folds, order),
                decision_order(inputs["action_mask"], order),
            )
            offset = self.head.sampling_offset(mask, noise, order)
            passes = self.jacobi_iterations(mask.shape[0], mask.shape[1])
            decoded = self.jacobi_decode(representation, mask, offset, folds, passes, order)
            decoded = decoded or stepper.decode(representation, mask, offset, self.row_sets(order))
            log_prob = self.head.log_prob(decoded.parameters, mask, decoded.action, order)
            value = self.critic(decoded.features if self.critic_reads_decoder else representation)
            action, log_prob, value = (agent_order(x, order) for x in (decoded.action, log_prob, value))
        nodes = self.nodes(inputs, self.head, action, order)
        return Decision(self.head.to_env(action), nodes, log_prob, value, recurrent_state=memory)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        folds, order = self._shared_weights or self.fuse(), nodes.order
        inputs, _ = self.run_recurrent(inputs, folds.encoder, self.bptt_steps)
        representation, mask = self.decoder_memory(inputs, folds, order), decision_order(inputs["action_mask"], order)
        action = decision_order(nodes.action, order)
        features = self.decode(representation, action, folds, order)
        present = active_agents(nodes.loss_mask)
        parameters = self.action_parameters(features, order, present)
        log_prob, entropy = self.head.evaluate(parameters, mask, action, order, present)
        value = self.critic(features if self.critic_reads_decoder else representation)
        return Evaluation(*(agent_order(x, order) for x in (log_prob, entropy, value)))

    def value(self, inputs: Inputs) -> Tensor:
        return self.value_in_order(inputs, fixed_order(inputs["alive"]))

    def value_in_order(self, inputs: Inputs, order: Tensor | None) -> Tensor:
        """Return the value (E, N) of each agent where agents decide in that `order`."""
        folds = self.fuse() if torch.is_grad_enabled() else self.cached_weights()[0]
        inputs, _ = self.run_recurrent(inputs, folds.encoder, 1)
        return agent_order(self.critic(self.decoder_memory(inputs, folds, order)), order).squeeze(-1)

    def value_over_orders(self, inputs: Inputs) -> Tensor:
        """Return the value (E, N) of each agent before its order is known, where values depend on the order.

        A random order is averaged over the N rotations of the agents and of their reverse, in which each agent has
        each place, and decides before each other agent, equally often.
        """
        if not self.random_order:
            return self.value_in_order(inputs, fixed_order(inputs["alive"]))
        envs, agents = inputs["alive"].shape
        place = torch.arange(agents, device=self.identity.device)
        rotations = (place + place.unsqueeze(-1)) % agents
        rank = torch.cat([rotations, agents - 1 - rotations])  # (K, N), K = 2 N
        repeated = {name: x.repeat_interleave(len(rank), 0) for name, x in inputs.items()}
        order = (rank.repeat(envs, 1) + agents * ~repeated["alive"]).argsort(-1)
        return self.value_in_order(repeated, order).unflatten(0, (envs, len(rank))).mean(1)


class FusedWeights(NamedTuple):
    """The weights of encoder and decoder, folded."""

    encoder: FusedEncoder
    decoder: tuple[FusedDecoderBlock, ...]
    table: TokenTable | None
    """Self-attention among discrete actions in the first block."""


class MAT(AutoregressivePolicy):
    """Attention in encoder and decoder."""

    def make_decoder(self) -> nn.Module:
        options: Any = self.options
        return nn.ModuleList(DecoderBlock(options.embedding, options.heads) for _ in range(options.blocks))

    def fuse(self) -> FusedWeights:
        layers = [block.attention for block in self.encoder]
        layers += [layer for block in self.decoder for layer in block.layers()]
        folds = iter(fuse_layers(layers))
        encoder = FusedEncoder(self.fuse_embedding(), tuple(next(folds) for _ in self.encoder))
        decoder = tuple(FusedDecoderBlock(next(folds), next(folds)) for _ in self.decoder)
        return FusedWeights(encoder, decoder, self.make_table(decoder[0]))

    def make_table(self, first: FusedDecoderBlock) -> TokenTable | None:
        """None where tokens are not of a few kinds that all agents share."""
        if not isinstance(self.token, nn.Embedding) or max(self.parameter_sets) > 0:
            return None
        return TokenTable.make(first.own, self.heads, self.token_norm(F.gelu(self.token.weight)))

    def build_cache(self) -> tuple[FusedWeights, IncrementalDecoder]:
        folds = self.fuse()
        start = self.embed_tokens(self.shift_right(self.start_actions(1, 1)))[:, 0]
        return folds, IncrementalDecoder(
            self.decoder, folds.decoder, self.actor, self.head, folds.table, start, self.embed_action
        )

    def embed_action(self, action: Tensor, group: Any) -> Tensor:
        return self.embed_tokens(self.token_ids(action, group))

    def decoder_memory(self, inputs: Inputs, folds: Any, order: Tensor | None) -> Tensor:
        return decision_order(self.encode_observations(inputs, folds.encoder), order)

    def decode(self, representation: Tensor, action: Tensor, folds: Any, order: Tensor | None = None) -> Tensor:
        representation, before = self.decoder_inputs(representation, action, order)
        x = before
        bias = causal_bias(action.shape[1], self.heads, representation)
        for number, (block, fold) in enumerate(zip(self.decoder, folds.decoder, strict=True)):
            if number == 0 and folds.table is not None:
                x = folds.table.attend(before)
            else:
                x = block.attend(self.embed_tokens(before) if number == 0 else x, fold, bias)
            x = block.finish(x, representation, fold, bias)
        return x

    @torch.no_grad()
    def attention(self, inputs: Inputs, nodes: Nodes) -> Tensor:
        """(E, N, N): how much agent i, deciding, looked at the action of agent j, in the decoder's self-attention.

        Averaged over heads and blocks. Only agents that decided before i have a weight; what i gave to the symbol
        that begins the sequence, and so to nobody, is at [i, i]. A living agent's row sums to 1, a dead one's to 0.
        """
        folds, order = self.fuse(), nodes.order
        inputs, _ = self.run_recurrent(inputs, folds.encoder, 1)
        representation = self.decoder_memory(inputs, folds, order)
        representation, before = self.decoder_inputs(representation, decision_order(nodes.action, order), order)
        x = self.embed_tokens(before)
        total = x.new_zeros(*inputs["alive"].shape, self.spec.num_agents)
        bias = causal_bias(x.shape[1], self.heads, x)
        for block, fold in zip(self.decoder, folds.decoder, strict=True):
            total += block.own.weights(x) / len(self.decoder)
            x = block(x, representation, fold, bias)
        # Position p holds the action decided at p - 1, and position 0 the beginning.
        looked = F.pad(total[:, :, 1:], (0, 1)) + torch.diag_embed(total[:, :, 0])
        looked = agent_order(agent_order(looked, order).mT, order).mT
        return looked * inputs["alive"].unsqueeze(-1)


def max_jacobi_iterations(envs: int, agents: int, device: str) -> int:
    """Passes over all agents to try before deciding one after another; all that it may take on a GPU, else few.

    On a CPU core a pass costs about 0.1 ms and 1.1 us a row, a position 50 us and 1.3 us an environment. Untrained
    agents need 2 passes, and on 8m, once they win nine games in ten, 3 or 4. So passes are tried where 4 cost no
    more than the positions, and no more of them than that.
    """
    if device != "cpu":
        return agents
    affordable = int(agents * (50.0 + 1.3 * envs) / (100.0 + 1.1 * envs * agents))
    return affordable if affordable >= 4 else 0


def fixed_order(alive: Tensor) -> Tensor | None:
    """(E, N): living agents first, as the environment lists them; None where that is 0..N-1 everywhere."""
    if bool(alive.all()):
        return None
    return (~alive).to(torch.uint8).argsort(dim=-1, stable=True)


def decision_order(x: Tensor, order: Tensor | None) -> Tensor:
    """(E, N, F) from agent order to decision order."""
    return x if order is None else x.gather(1, order.unsqueeze(-1).expand_as(x))


def agent_order(x: Tensor, order: Tensor | None) -> Tensor:
    """(E, N, F) from decision order back to agent order."""
    if order is None:
        return x
    return torch.empty_like(x).scatter_(1, order.unsqueeze(-1).expand_as(x), x)
