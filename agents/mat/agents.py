"""The Multi-Agent Transformer (Wen et al. 2022) and its relatives. Each class is what it changes of MAT.

Shape legend: B rows (environments, or steps x environments), E environments, N agents, D width, L slots.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.entities import EntityActor, reads_entities
from marl.agents.mat.attention import (
    FusedDecoderBlock,
    TokenTable,
    after_self_attention,
    causal_bias,
    decoder_block,
    fuse_layers,
)
from marl.agents.mat.autoregressive import AutoregressivePolicy
from marl.agents.mat.encoder_decoder import Decoder, Encoder, causal_mask
from marl.agents.mat.entities import EntityAutoregressive, EntityMixin, EntitySimultaneous, with_entities
from marl.agents.mat.gru import MATGRU
from marl.agents.mat.incremental_decoder import IncrementalDecoder
from marl.agents.mat.options import GRUOptions, MATOptions, TransformerOptions
from marl.agents.mat.order import agent_order, decision_order, fixed_order
from marl.agents.mat.policy import FusedEncoder, Parameters, SimultaneousPolicy
from marl.agents.parameter_sharing import NetworkSets, make_actors
from marl.agents.recurrent import RecurrentActors, recurrent_inputs
from marl.registry import register_agent
from marl.types import EnvSpec, Inputs, Nodes


class FusedMAT(NamedTuple):
    """Fused weights of encoder and decoder."""

    encoder: FusedEncoder
    decoder: tuple[FusedDecoderBlock, ...]
    table: TokenTable | None
    """Self-attention between discrete actions in the decoder's first block. None if tokens are not ids of one set."""


class MAT(AutoregressivePolicy):
    """Attention in encoder and decoder."""

    def make_decoder(self, token: nn.Module) -> nn.Module:
        """Return the paper's decoder."""
        return Decoder(token, self.options.embedding, self.options.heads, self.options.blocks)

    def fuse(self) -> FusedMAT:
        """Return the fused weights of encoder and decoder, differentiable."""
        layers = [block.attention for block in self.encoder.blocks]
        for block in self.decoder.blocks:
            layers += [block.self_attention, block.cross_attention]
        fused = iter(fuse_layers(layers))
        encoder = FusedEncoder(self.fuse_embedding(), tuple(next(fused) for _ in self.encoder.blocks))
        decoder = tuple(FusedDecoderBlock(next(fused), next(fused)) for _ in self.decoder.blocks)
        return FusedMAT(encoder, decoder, self.make_table(decoder[0]))

    def make_table(self, first: FusedDecoderBlock) -> TokenTable | None:
        """Return the token table of the decoder's first block, or None if tokens are not ids of one parameter set."""
        token = self.decoder.token
        if not isinstance(token, nn.Embedding) or self.num_sets > 1:
            return None
        return TokenTable.make(first.self_attention, self.options.heads, self.decoder.token_norm(F.gelu(token.weight)))

    def build_cache(self) -> tuple[FusedMAT, Any]:
        """Return the fused weights and the incremental decoder."""
        fused = self.fuse()
        start = self.embed_tokens(self.shift_right(self.start_actions(1, 1)))[:, 0]
        decoder = IncrementalDecoder(
            self.decoder.blocks,
            fused.decoder,
            actor=self.actor,
            head=self.head,
            table=fused.table,
            start=start,
            embed=lambda action, own: self.embed_tokens(self.token_ids(action, own)),
        )
        return fused, decoder

    def decoder_memory(self, inputs: Inputs, fused: Any, order: Tensor | None) -> Tensor:
        """Return the encoder's representation (B, N, D), in decision order."""
        return decision_order(self.encode_observations(inputs, fused.encoder), order)

    def decode(self, representation: Tensor, action: Tensor, fused: Any, order: Tensor | None = None) -> Tensor:
        """Return features (B, N, D) of every agent given the actions before it, in decision order."""
        representation, before = self.decoder_inputs(representation, action, order)
        x = before
        bias = causal_bias(action.shape[1], self.options.heads, representation)
        for number, (block, own) in enumerate(zip(self.decoder.blocks, fused.decoder, strict=True)):
            if number == 0 and fused.table is not None:
                x = after_self_attention(block, fused.table.attend(before), representation, own, bias)
            else:
                x = self.embed_tokens(before) if number == 0 else x
                x = decoder_block(block, x, representation, own, bias)
        return x

    @torch.no_grad()
    def attention(self, inputs: Inputs, nodes: Nodes) -> Tensor:
        """Return the weights (E, N, N) with which agent i attends to the action of agent j in its own decision.

        They are the decoder's self-attention, averaged over heads and blocks. The weight of the start token is at
        [i, i]. Agents that decide after i have weight 0. A living agent's row sums to 1, a dead one's to 0.
        """
        fused, order = self.fuse(), nodes.order
        inputs, _ = self.run_recurrent(inputs, fused.encoder, 1)
        representation = self.decoder_memory(inputs, fused, order)
        representation, before = self.decoder_inputs(representation, decision_order(nodes.action, order), order)
        x = self.embed_tokens(before)
        total = x.new_zeros(*inputs["alive"].shape, self.spec.num_agents)
        allowed = causal_mask(x)
        for block in self.decoder.blocks:
            total += block.self_attention.weights(x, x, allowed).mean(1) / len(self.decoder.blocks)
            x = block(x, representation, allowed)
        # Position p holds the action decided at p - 1, and position 0 the start token.
        weights = F.pad(total[:, :, 1:], (0, 1)) + torch.diag_embed(total[:, :, 0])
        weights = agent_order(agent_order(weights, order).mT, order).mT
        return weights * inputs["alive"].unsqueeze(-1)


class MATBad(MAT):
    """One chain of credit through the agents of a step, in decision order.

    The critic reads the decoder: V_i(o, a_1..i-1) is the value once the agents before i have decided. With both
    discounts inside a step at 1, an agent's advantage is what its own action changed.
    """

    critic_reads_decoder = True

    def value(self, inputs: Inputs) -> Tensor:
        """Return the value (E, N) of a step in which nobody has decided yet, equal for all agents.

        It is the value of the agent that decides first, or the mean over the living agents if the order is random.
        """
        fused = self.fuse() if torch.is_grad_enabled() else self.cached_weights()[0]
        inputs, _ = self.run_recurrent(inputs, fused.encoder, 1)
        alive, order = inputs["alive"], fixed_order(inputs["alive"])
        representation = self.decoder_memory(inputs, fused, order)
        if not self.random_order:
            representation = representation[:, :1]
        first = representation.flatten(0, 1).unsqueeze(1)
        value = self.critic(self.decode(first, self.start_actions(len(first), 1), fused)).view(len(alive), -1)
        if self.random_order:
            weight = decision_order(alive.unsqueeze(-1), order).squeeze(-1).to(value.dtype)
            value = (value * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1.0)
        return value.expand(alive.shape)


class MATDecoder(MAT):
    """No encoder: the decoder reads each agent's own embedded observation, and the critic reads the decoder."""

    critic_reads_decoder = True

    def make_encoder(self, embed: nn.Module) -> nn.Module:
        """Return an encoder without blocks."""
        return Encoder(embed, self.options.embedding, self.options.heads, 0)

    def make_embed(self) -> Any:
        """Return the embedding without its last LayerNorm."""
        embed = super().make_embed()
        embed[3] = nn.Identity()
        return embed

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N), a mean over orders if the order is random."""
        return self.value_over_orders(inputs)

    def value_in_order(self, inputs: Inputs, order: Tensor | None) -> Tensor:
        """Return values (E, N) given the most probable actions of the agents before. The released code samples them."""
        return self.decide(inputs, None, order).value.squeeze(-1)


class MATEncoder(SimultaneousPolicy):
    """No decoder: actions are independent given all observations."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        self.actor = self.per_parameter_set(self.make_actor)

    def distributions(
        self,
        inputs: Inputs,  # noqa: ARG002
        representation: Tensor,
        active: list[bool] | None,
        steps: int,  # noqa: ARG002
    ) -> Parameters:
        """Return the distributions of all agents, from the encoder's representation."""
        if isinstance(self.actor, NetworkSets):
            return self.actor(representation, active), None
        return self.actor(representation), None


class MATDec(SimultaneousPolicy):
    """Decentralized actors: MLPs on the agents' own observations. Their gradient does not reach the encoder."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        hidden = (options.embedding, options.embedding)
        if reads_entities(spec, options) and not options.bptt_steps:
            self.actor: Any = EntityActor(spec, hidden)
        else:
            self.actor = make_actors(
                self.feature_size,
                hidden,
                self.head.size,
                self.parameter_sets,
                input_norm=options.observation_layer_norm,
            )
        if options.bptt_steps:
            self.actor = RecurrentActors(self.actor, spec.num_agents)
            self.recurrent_shape = (2 * spec.num_agents, options.embedding)

    def distributions(
        self,
        inputs: Inputs,
        representation: Tensor,  # noqa: ARG002
        active: list[bool] | None,
        steps: int,
    ) -> Parameters:
        """Return the distributions of all agents, each from its own observation."""
        if not self.bptt_steps:
            return self.actor(self.features(inputs), active), None
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents, None))
        return self.actor(self.features(inputs), past, active)


@register_agent("mat", options=MATOptions, summary="Multi-Agent Transformer: agents decide one after another")
def make_mat(spec: EnvSpec, options: MATOptions) -> MAT:
    """Return MAT for `spec`."""
    return with_entities(MAT, EntityAutoregressive, spec, options)(spec, options)


@register_agent(
    "mat-bad",
    options=MATOptions,
    summary="MAT with one chain of credit through the agents of a step, and a critic that sees earlier actions",
    defaults={"agent_credit": "sequential"},
)
def make_mat_bad(spec: EnvSpec, options: MATOptions) -> MATBad:
    """Return MAT-BAD for `spec`."""
    return with_entities(MATBad, EntityAutoregressive, spec, options)(spec, options)


@register_agent("mat-decoder", options=MATOptions, summary="MAT without its encoder")
def make_mat_decoder(spec: EnvSpec, options: MATOptions) -> MATDecoder:
    """Return MAT-Decoder for `spec`."""
    return with_entities(MATDecoder, EntityAutoregressive, spec, options)(spec, options)


@register_agent("mat-gru", options=GRUOptions, summary="MAT with recurrent networks over the agents for attention")
def make_mat_gru(spec: EnvSpec, options: GRUOptions) -> MATGRU:
    """Return MAT-GRU for `spec`."""
    return with_entities(MATGRU, EntityAutoregressive, spec, options)(spec, options)


@register_agent("mat-encoder", options=TransformerOptions, summary="MAT without its decoder: agents decide at once")
def make_mat_encoder(spec: EnvSpec, options: TransformerOptions) -> MATEncoder:
    """Return MAT-Encoder for `spec`."""
    return with_entities(MATEncoder, EntitySimultaneous, spec, options)(spec, options)


@register_agent("mat-dec", options=TransformerOptions, summary="decentralized actors with MAT's encoder as critic")
def make_mat_dec(spec: EnvSpec, options: TransformerOptions) -> MATDec:
    """Return MAT-Dec for `spec`."""
    return with_entities(MATDec, EntityMixin, spec, options)(spec, options)
