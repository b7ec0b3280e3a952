"""The Multi-Agent Transformer (Wen et al. 2022) and its relatives; each is what it changes of the first.

Shape legend: E environments, N agents, D embedding, A actions, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from marl.agents.entities import (
    EntityActor,
    EntityAutoregressive,
    EntityMixin,
    EntitySimultaneous,
    reads_entities,
    with_entities,
)
from marl.agents.mat.incremental_decoder import Decoded
from marl.agents.mat.policy import (
    MAT,
    AutoregressivePolicy,
    FusedEncoder,
    MATOptions,
    Order,
    TeamOptions,
    TeamPolicy,
    TransformerOptions,
    decision_order,
    fixed_order,
)
from marl.agents.parameter_sharing import NetworkSets
from marl.agents.policy_base import active_agents, make_actors, no_onednn, sample
from marl.agents.recurrent import RecurrentActors, recurrent_inputs
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


@register_agent("mat", options=MATOptions, summary="Multi-Agent Transformer, autoregressive over agents")
def make_mat(spec: EnvSpec, options: MATOptions) -> MAT:
    return with_entities(MAT, EntityAutoregressive, spec, options)(spec, options)


class MATBad(MAT):
    """One chain of credit through the agents of a step, in the order of their decisions.

    The critic values what is left to come once the agents before have decided: V_i(o, a_1..i-1), read off the
    decoder. With both factors inside a step at 1, an agent's advantage is then what its own action changed.
    """

    critic_reads_decoder = True

    def value(self, inputs: Inputs) -> Tensor:
        """(E, N): the value of a step in which nobody has decided yet, the same for every agent.

        It is that of whoever decides first; where that is drawn, the mean over the living agents.
        """
        folds = self.fuse() if torch.is_grad_enabled() else self.cached_weights()[0]
        inputs, _ = self.run_recurrent(inputs, folds.encoder, 1)
        alive, order = inputs["alive"], fixed_order(inputs["alive"])
        representation = self.decoder_memory(inputs, folds, order)
        if not self.random_order:
            representation = representation[:, :1]
        first = representation.flatten(0, 1).unsqueeze(1)
        value = self.critic(self.decode(first, self.start_actions(len(first), 1), folds)).view(len(alive), -1)
        if self.random_order:
            weight = decision_order(alive.unsqueeze(-1), order).squeeze(-1).to(value.dtype)
            value = (value * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1.0)
        return value.expand(alive.shape)


@register_agent(
    "mat-bad",
    options=MATOptions,
    summary="MAT with one chain of credit through the agents of a step, and values of what is decided so far",
    defaults={"agent_credit": "sequential"},
)
def make_mat_bad(spec: EnvSpec, options: MATOptions) -> MATBad:
    return with_entities(MATBad, EntityAutoregressive, spec, options)(spec, options)


class MATDecoder(MAT):
    """No encoder: the decoder reads each agent's own embedded observation, and the critic the decoder."""

    critic_reads_decoder = True

    def embed_norm(self, width: int) -> nn.Module:  # noqa: ARG002
        return nn.Identity()

    def make_encoder(self) -> nn.Module:
        return nn.ModuleList()

    def value(self, inputs: Inputs) -> Tensor:
        return self.value_over_orders(inputs)

    def value_in_order(self, inputs: Inputs, order: Tensor | None) -> Tensor:
        """(E, N), given the likeliest actions of the agents before; the released code samples them."""
        return self.decide(inputs, None, order).value.squeeze(-1)


@register_agent("mat-decoder", options=MATOptions, summary="MAT without its encoder")
def make_mat_decoder(spec: EnvSpec, options: MATOptions) -> MATDecoder:
    return with_entities(MATDecoder, EntityAutoregressive, spec, options)(spec, options)


@dataclass(frozen=True)
class GRUOptions(TeamOptions):
    """MAT with recurrent networks over the agents in place of attention."""

    layers: int = 2
    """Layers of each recurrent network."""
    agent_order: Order = "fixed"
    """Order in which agents are read and decide: as the environment lists them, or drawn anew at every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ConfigError(f"layers is {self.layers}; give 1 or more")


class FusedGRUPolicy(NamedTuple):
    encoder: FusedEncoder


class MATGRU(AutoregressivePolicy):
    """Agents are read one after another, so that each knows the observations of those before and its own alone."""

    def make_encoder(self) -> nn.Module:
        return self.recurrent()

    def make_decoder(self) -> nn.Module:
        return self.recurrent()

    def recurrent(self) -> nn.GRU:
        options: Any = self.options
        width = options.embedding
        network = nn.GRU(width, width, options.layers, batch_first=True)
        for name, parameter in network.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        return network

    def fuse_encoder(self) -> FusedEncoder:
        return FusedEncoder(self.fuse_embedding(), ())

    def fuse(self) -> FusedGRUPolicy:
        return FusedGRUPolicy(self.fuse_encoder())

    def build_cache(self) -> tuple[FusedGRUPolicy, "IncrementalGRU"]:
        return self.fuse(), IncrementalGRU(self)

    def value(self, inputs: Inputs) -> Tensor:
        return self.value_over_orders(inputs)

    def decoder_memory(self, inputs: Inputs, folds: Any, order: Tensor | None) -> Tensor:
        return self.encoder(decision_order(self.embed_observations(inputs, folds.encoder), order))[0]

    def combine(self, before: Tensor, representation: Tensor) -> Tensor:
        """What the decoder reads: tokens of earlier actions, added to the observations, normalized together."""
        return self.token_norm(self.embed_raw(before) + representation)

    def decode(self, representation: Tensor, action: Tensor, folds: Any, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        representation, before = self.decoder_inputs(representation, action, order)
        return self.decoder(self.combine(before, representation))[0]


class IncrementalGRU:
    """The decoder of MATGRU, a position at a time."""

    def __init__(self, policy: MATGRU) -> None:
        self.policy = policy
        self.rows: Any = policy.actor.rowwise() if isinstance(policy.actor, NetworkSets) else None

    def decode(self, representation: Tensor, mask: Tensor, offset: Tensor, groups: Sequence[Any] | None) -> Decoded:
        policy, head = self.policy, self.policy.head
        memory: Tensor | None = None
        before = policy.shift_right(policy.start_actions(len(mask), 1))
        actions, parameters, features = [], [], []
        for i in range(mask.shape[1]):
            row = slice(i, i + 1)
            x, memory = policy.decoder(policy.combine(before, representation[:, row]), memory)
            group = None if groups is None else groups[i]
            parameters.append(policy.actor(x) if group is None else self.rows(x.squeeze(1), group).unsqueeze(1))
            actions.append(head.argmax_action(parameters[-1] + offset[:, row], mask[:, row]))
            before = policy.token_ids(actions[-1].squeeze(1), group).unsqueeze(1)
            features.append(x)
        return Decoded(*(torch.cat(parts, 1) for parts in (actions, parameters, features)))


@register_agent("mat-gru", options=GRUOptions, summary="MAT with recurrent networks over the agents for attention")
def make_mat_gru(spec: EnvSpec, options: GRUOptions) -> MATGRU:
    return with_entities(MATGRU, EntityAutoregressive, spec, options)(spec, options)


Parameters = tuple[Tensor, Tensor | None]
"""Parameters (B, N, A) of distributions, and what actors with a memory of their own remember, (B / K, N, D)."""


class SimultaneousPolicy(TeamPolicy):
    """Agents that decide at the same time, with the encoder's critic."""

    def distributions(
        self, inputs: Inputs, representation: Tensor, present: list[bool] | None, steps: int
    ) -> Parameters:
        """Those of each agent, of agents that are not `present` whatever is cheap; in chunks of `steps` rows."""
        raise NotImplementedError

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        with torch.no_grad(), no_onednn():
            inputs, memory = self.run_recurrent(inputs, self.cached_weights(), 1)
            representation = self.encode_observations(inputs, self.cached_weights())
            parameters, actors = self.distributions(inputs, representation, None, 1)
            shape = tuple(inputs["alive"].shape)
            noise = None if deterministic else self.head.noise(shape, parameters.device, generator)
            action, log_prob = sample(self.head, parameters, inputs["action_mask"], noise)
            value = self.critic(representation)
            if memory is not None and actors is not None:
                memory = torch.cat([memory, actors], 1)
        nodes = self.nodes(inputs, self.head, action, None)
        return Decision(self.head.to_env(action), nodes, log_prob, value, recurrent_state=memory)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        folds = self._shared_weights or self.fuse()
        inputs, _ = self.run_recurrent(inputs, folds, self.bptt_steps)
        representation = self.encode_observations(inputs, folds)
        present = active_agents(nodes.loss_mask)
        parameters, _ = self.distributions(inputs, representation, present, self.bptt_steps)
        log_prob, entropy = self.head.evaluate(parameters, inputs["action_mask"], nodes.action, present=present)
        return Evaluation(log_prob, entropy, self.critic(representation))


class MATEncoder(SimultaneousPolicy):
    """No decoder: actions are independent given all observations."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        self.actor = self.per_parameter_set(self.make_actor)

    def distributions(
        self,
        inputs: Inputs,  # noqa: ARG002
        representation: Tensor,
        present: list[bool] | None,
        steps: int,  # noqa: ARG002
    ) -> Parameters:
        if isinstance(self.actor, NetworkSets):
            return self.actor(representation, present), None
        return self.actor(representation), None


@register_agent("mat-encoder", options=TransformerOptions, summary="MAT without its decoder: agents decide at once")
def make_mat_encoder(spec: EnvSpec, options: TransformerOptions) -> MATEncoder:
    return with_entities(MATEncoder, EntitySimultaneous, spec, options)(spec, options)


class MATDec(SimultaneousPolicy):
    """Decentralized actors, multi-layer perceptrons on the agents' own observations; no gradient of theirs reaches
    the encoder."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        hidden = (options.embedding, options.embedding)
        if reads_entities(spec, options) and not options.bptt_steps:
            self.actor: Any = EntityActor(spec, hidden)
        else:
            self.actor = make_actors(self.feature_size, hidden, self.head.size, self.parameter_sets)
        if options.bptt_steps:
            self.actor = RecurrentActors(self.actor, spec.num_agents)
            self.recurrent_shape = (2 * spec.num_agents, options.embedding)

    def distributions(
        self,
        inputs: Inputs,
        representation: Tensor,  # noqa: ARG002
        present: list[bool] | None,
        steps: int,
    ) -> Parameters:
        if not self.bptt_steps:
            return self.actor(self.features(inputs), present), None
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents, None))
        return self.actor(self.features(inputs), past, present)


@register_agent("mat-dec", options=TransformerOptions, summary="MAT's encoder as critic of decentralized actors")
def make_mat_dec(spec: EnvSpec, options: TransformerOptions) -> MATDec:
    return with_entities(MATDec, EntityMixin, spec, options)(spec, options)
