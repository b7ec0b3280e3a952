"""Sable (Mahjoub et al. 2025): agents decide one after another, and retention remembers the episode.

Shape legend: B rows (environments, or segments x steps), G segments, E environments, N agents, D width, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from marl.agents.mat.autoregressive import AutoregressivePolicy
from marl.agents.mat.entities import EntityAutoregressive, with_entities
from marl.agents.mat.incremental_decoder import Decoded
from marl.agents.mat.options import MATOptions
from marl.agents.mat.order import agent_order, decision_order, fixed_order
from marl.agents.parameter_sharing import NetworkSets
from marl.agents.policy_base import active_agents, no_onednn
from marl.agents.sable.network import Decoder, Encoder, observation_embedding, output_head
from marl.agents.sable.retention import LayerStates, Visible, head_decay
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


@dataclass(frozen=True)
class SableOptions(MATOptions):
    """Options of Sable."""

    bptt_steps: int = 16
    """Steps through which the gradient of the memory runs; must divide rollout_steps. The memory itself reaches back to
    the start of the episode."""
    decay_scale: float = 1.0
    """Factor on the decay of the memory per step, in (0, 1]. At 1 a step of a single head keeps 31/32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay_scale <= 1.0:
            raise ConfigError(f"decay_scale={self.decay_scale} is not in (0, 1]. Give 1.0, or less to forget sooner")
        if self.bptt_steps == 0:
            raise ConfigError("bptt_steps=0 leaves Sable without memory. Give 1 or more, or use the agent ff-sable")


@dataclass(frozen=True)
class FFSableOptions(MATOptions):
    """Options of Sable without memory over steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bptt_steps:
            raise ConfigError(
                f"bptt_steps={self.bptt_steps}, but ff-sable forgets after each step. Use the agent sable, or leave it "
                "out"
            )


class Pass(NamedTuple):
    """One forward pass: the states of the retention layers, and who is alive (B, N) in decision order."""

    states: LayerStates
    alive: Tensor
    visible: Visible = "before"


class Sable(AutoregressivePolicy):
    """Retention in encoder and decoder.

    The recurrent state holds three states per block and head: encoder, decoder over actions, decoder across.
    """

    decay: Tensor

    def __init__(self, spec: EnvSpec, options: Any) -> None:
        super().__init__(spec, options)
        scale = options.decay_scale if options.bptt_steps else 1.0
        self.register_buffer("decay", head_decay(options.heads, scale), persistent=False)

    @property
    def num_layers(self) -> int:
        """Number of retention layers."""
        return 3 * self.options.blocks

    def make_recurrent(self) -> None:
        """Set the shape of the recurrent state: (layers H, d d)."""
        options = self.options
        self.bptt_steps = options.bptt_steps
        self.recurrent_shape = (self.num_layers * options.heads, (options.embedding // options.heads) ** 2)

    def make_embed(self) -> Any:
        """Return the embedding of one agent's observation."""
        return observation_embedding(self.feature_size, self.options.embedding, self.options.observation_layer_norm)

    def make_encoder(self, embed: nn.Module) -> nn.Module:
        """Return the encoder on top of `embed`."""
        return Encoder(embed, self.options.embedding, self.options.heads, self.options.blocks)

    def make_decoder(self, token: nn.Module) -> nn.Module:
        """Return the decoder, which holds `token`."""
        return Decoder(token, self.options.embedding, self.options.heads, self.options.blocks)

    def make_output(self, size: int) -> nn.Sequential:
        """Return the head of the critic or the actor."""
        return output_head(self.options.embedding, size)

    def fuse(self) -> tuple[()]:
        """Return an empty tuple: no weights are fused."""
        return ()

    def build_cache(self) -> tuple[Any, Any]:
        """Return an empty tuple and the incremental decoder."""
        return self.fuse(), IncrementalSable(self)

    # Forward pass

    def start_pass(self, inputs: Inputs, order: Tensor | None, steps: int, visible: Visible = "before") -> Pass:
        """Return the pass over rows in segments of `steps`, with decision order `order` (B, N)."""
        past = inputs["recurrent_state"][::steps] if self.bptt_steps else None
        states = LayerStates(past, self.decay, inputs.get("episode_start"), steps, self.num_layers)
        alive = inputs["alive"] if order is None else inputs["alive"].gather(1, order)
        return Pass(states, alive, visible)

    def embed_observations(self, inputs: Inputs, fused: Any) -> Tensor:  # noqa: ARG002
        """Return the embedded observations (B, N, D), each agent by itself."""
        return self.encoder.embed(self.features(inputs))

    def embed_tokens(self, token_inputs: Tensor) -> Tensor:
        """Return tokens (..., D) of what `shift_right` or `token_ids` returns."""
        return self.embed_raw(token_inputs)

    def decoder_memory(self, inputs: Inputs, fused: Pass, order: Tensor | None) -> Tensor:
        """Return the encoder's representation (B, N, D), in decision order."""
        x = self.encoder(self.embed_observations(inputs, None), inputs["alive"], fused.states)
        return decision_order(x, order)

    def decode(self, representation: Tensor, action: Tensor, fused: Pass, order: Tensor | None = None) -> Tensor:
        """Return features (B, N, D) of every agent given the actions before it, in decision order."""
        representation, before = self.decoder_inputs(representation, action, order)
        return self.decoder(self.embed_tokens(before), representation, fused.alive, fused.states, fused.visible)

    def decide(self, inputs: Inputs, noise: Tensor | None, order: Tensor | None) -> Decision:
        """Decide in the given `order` (E, N) with the given noise. Without noise, take the most probable actions."""
        with torch.no_grad(), no_onednn():
            incremental, made = self.cached_weights()[1], self.start_pass(inputs, order, 1)
            representation = self.decoder_memory(inputs, made, order)
            mask = decision_order(inputs["action_mask"], order)
            offset = self.head.sampling_offset(mask, noise, order)
            iterations = self.jacobi_iterations(mask.shape[0], mask.shape[1])
            decoded = self.jacobi_decode(representation, mask, offset, made, iterations, order)
            decoded = decoded or incremental.decode(representation, mask, offset, self.row_sets(order), made)
            log_prob = self.head.log_prob(decoded.parameters, mask, decoded.action, order)
            value = self.critic(decoded.features if self.critic_reads_decoder else representation)
            action, log_prob, value = (agent_order(x, order) for x in (decoded.action, log_prob, value))
        nodes = self.nodes(inputs, action, order)
        state = made.states.recurrent_state()
        return Decision(self.head.to_env(action), nodes, log_prob, value, recurrent_state=state)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability and entropy (B, N, L) and value (B, N, 1) of stored segments, differentiable."""
        order = nodes.order
        made = self.start_pass(inputs, order, self.bptt_steps or 1)
        representation, mask = self.decoder_memory(inputs, made, order), decision_order(inputs["action_mask"], order)
        action = decision_order(nodes.action, order)
        features = self.decode(representation, action, made, order)
        active = active_agents(nodes.loss_mask)
        parameters = self.action_parameters(features, order, active)
        log_prob, entropy = self.head.evaluate(parameters, mask, action, order, active)
        value = self.critic(features if self.critic_reads_decoder else representation)
        return Evaluation(*(agent_order(x, order) for x in (log_prob, entropy, value)))

    def value_in_order(self, inputs: Inputs, order: Tensor | None) -> Tensor:
        """Return values (E, N) if agents decide in that `order` (E, N)."""
        made = self.start_pass(inputs, order, 1)
        return agent_order(self.critic(self.decoder_memory(inputs, made, order)), order).squeeze(-1)


class SableBad(Sable):
    """One chain of credit through the agents of a step, and a critic that reads earlier actions: see MATBad."""

    critic_reads_decoder = True

    def value(self, inputs: Inputs) -> Tensor:
        """Return the value (E, N) of a step in which nobody has decided yet, equal for all agents.

        It is the value of the agent that decides first, or the mean over the living agents if the order is random.
        """
        alive, order = inputs["alive"], fixed_order(inputs["alive"])
        made = self.start_pass(inputs, order, 1, "self")
        representation = self.decoder_memory(inputs, made, order)
        # Each agent gets the start token, as if it decided first.
        first, living = representation.unsqueeze(2), made.alive
        columns = [
            self.decode(first[:, i], self.start_actions(len(alive), 1), made._replace(alive=living[:, i : i + 1]))
            for i in range(alive.shape[1] if self.random_order else 1)
        ]
        value = self.critic(torch.cat(columns, 1)).squeeze(-1)
        if self.random_order:
            weight = living.to(value.dtype)
            value = (value * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1.0)
        return value.expand(alive.shape)


class IncrementalSable:
    """The decoder of Sable, one position at a time."""

    def __init__(self, policy: Sable) -> None:
        self.policy = policy
        self.rowwise: Any = policy.actor.rowwise() if isinstance(policy.actor, NetworkSets) else None

    def decode(
        self, representation: Tensor, mask: Tensor, offset: Tensor, sets: Sequence[Any] | None, made: Pass
    ) -> Decoded:
        """Decide for each agent given the actions before it. Arguments as IncrementalDecoder's, and the pass `made`."""
        policy, decoder = self.policy, self.policy.decoder
        query = representation[:, 0].unflatten(-1, (policy.options.heads, -1))
        layers = [decoder.first_layer + 2 * number for number in range(len(decoder.blocks))]
        states = [(made.states.start(layer, query), made.states.start(layer + 1, query)) for layer in layers]
        before = policy.shift_right(policy.start_actions(len(mask), 1))
        actions, parameters, features = [], [], []
        for i in range(mask.shape[1]):
            row = slice(i, i + 1)
            x, own = policy.embed_tokens(before), None if sets is None else sets[i]
            for number, block in enumerate(decoder.blocks):
                x, states[number] = block.next_token(x, representation[:, row], made.alive[:, row], states[number])
            parameters.append(policy.actor(x) if own is None else self.rowwise(x.squeeze(1), own).unsqueeze(1))
            actions.append(policy.head.argmax_action(parameters[-1] + offset[:, row], mask[:, row]))
            before = policy.token_ids(actions[-1].squeeze(1), own).unsqueeze(1)
            features.append(x)
        for layer, pair in zip(layers, states, strict=True):
            made.states.after[layer : layer + 2] = pair
        return Decoded(*(torch.cat(parts, 1) for parts in (actions, parameters, features)))


@register_agent("sable", options=SableOptions, summary="Sable: agents decide one after another, with memory over time")
def make_sable(spec: EnvSpec, options: SableOptions) -> Sable:
    """Return Sable for `spec`."""
    return with_entities(Sable, EntityAutoregressive, spec, options)(spec, options)


@register_agent("ff-sable", options=FFSableOptions, summary="Sable without memory over time")
def make_ff_sable(spec: EnvSpec, options: FFSableOptions) -> Sable:
    """Return Sable without memory over steps for `spec`."""
    return with_entities(Sable, EntityAutoregressive, spec, options)(spec, options)


@register_agent(
    "sable-bad",
    options=SableOptions,
    summary="Sable with one chain of credit through the agents of a step, and a critic that sees earlier actions",
    defaults={"agent_credit": "sequential"},
)
def make_sable_bad(spec: EnvSpec, options: SableOptions) -> SableBad:
    """Return Sable-BAD for `spec`."""
    return with_entities(SableBad, EntityAutoregressive, spec, options)(spec, options)
