"""The Multi-Agent Transformer (Wen et al. 2022) and its relatives; each is what it changes of the first.

Shape legend: E environments, N agents, D embedding, A actions, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from agents.decode import Decoded
from agents.entities import AimsAtOnce, AimsOneByOne, EntityActor, SeesEntities, fitting, reads_entities
from agents.memory import RecurrentActors, remembered
from agents.nn import make_actors, plain_kernels, present_agents, sample
from agents.pergroup import PerGroup
from agents.transformer import (
    MAT,
    EncoderFolds,
    MATOptions,
    OneByOne,
    Order,
    TeamOptions,
    TeamPolicy,
    TransformerOptions,
    fixed_order,
    reorder,
)
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


@register_agent("mat", options=MATOptions, summary="Multi-Agent Transformer, autoregressive over agents")
def make_mat(spec: EnvSpec, options: MATOptions) -> MAT:
    return fitting(MAT, AimsOneByOne, spec, options)(spec, options)


class MATBad(MAT):
    """One chain of credit through the agents of a step, in the order of their decisions.

    The critic values what is left to come once the agents before have decided: V_i(o, a_1..i-1), read off the
    decoder. With both factors inside a step at 1, an agent's advantage is then what its own action changed.
    """

    values_follow_actions = True

    def value(self, inputs: Inputs) -> Tensor:
        """(E, N): the value of a step in which nobody has decided yet, the same for every agent.

        It is that of whoever decides first; where that is drawn, the mean over the living agents.
        """
        folds = self.fold() if torch.is_grad_enabled() else self.kept()[0]
        inputs, _ = self.remember(inputs, folds.encoder, 1)
        alive, order = inputs["alive"], fixed_order(inputs["alive"])
        representation = self.represent(inputs, folds, order)
        if not self.random_order:
            representation = representation[:, :1]
        first = representation.flatten(0, 1).unsqueeze(1)
        value = self.critic(self.decode(first, self.nothing(len(first), 1), folds)).view(len(alive), -1)
        if self.random_order:
            weight = reorder(alive.unsqueeze(-1), order).squeeze(-1).to(value.dtype)
            value = (value * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1.0)
        return value.expand(alive.shape)


@register_agent(
    "mat-bad",
    options=MATOptions,
    summary="MAT with one chain of credit through the agents of a step, and values of what is decided so far",
    defaults={"agent_links": "sequential"},
)
def make_mat_bad(spec: EnvSpec, options: MATOptions) -> MATBad:
    return fitting(MATBad, AimsOneByOne, spec, options)(spec, options)


class MATDecoder(MAT):
    """No encoder: the decoder reads each agent's own embedded observation, and the critic the decoder."""

    values_follow_actions = True

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
    return fitting(MATDecoder, AimsOneByOne, spec, options)(spec, options)


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


class GRUFolds(NamedTuple):
    encoder: EncoderFolds


class MATGRU(OneByOne):
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

    def fold_encoder(self) -> EncoderFolds:
        return EncoderFolds(self.fold_embedding(), ())

    def fold(self) -> GRUFolds:
        return GRUFolds(self.fold_encoder())

    def prepare(self) -> tuple[GRUFolds, "GRUStepper"]:
        return self.fold(), GRUStepper(self)

    def value(self, inputs: Inputs) -> Tensor:
        return self.value_over_orders(inputs)

    def represent(self, inputs: Inputs, folds: Any, order: Tensor | None) -> Tensor:
        return self.encoder(reorder(self.embed_observations(inputs, folds.encoder), order))[0]

    def fuse(self, before: Tensor, representation: Tensor) -> Tensor:
        """What the decoder reads: tokens of earlier actions, added to the observations, normalised together."""
        return self.token_norm(self.lift(before) + representation)

    def decode(self, representation: Tensor, action: Tensor, folds: Any, order: Tensor | None = None) -> Tensor:  # noqa: ARG002
        representation, before = self.reads(representation, action, order)
        return self.decoder(self.fuse(before, representation))[0]


class GRUStepper:
    """The decoder of MATGRU, a position at a time."""

    def __init__(self, policy: MATGRU) -> None:
        self.policy = policy
        self.rows: Any = policy.actor.rows() if isinstance(policy.actor, PerGroup) else None

    def decode(self, representation: Tensor, mask: Tensor, offset: Tensor, groups: Sequence[Any] | None) -> Decoded:
        policy, head = self.policy, self.policy.head
        memory: Tensor | None = None
        before = policy.before(policy.nothing(len(mask), 1))
        actions, parameters, features = [], [], []
        for i in range(mask.shape[1]):
            row = slice(i, i + 1)
            x, memory = policy.decoder(policy.fuse(before, representation[:, row]), memory)
            group = None if groups is None else groups[i]
            parameters.append(policy.actor(x) if group is None else self.rows(x.squeeze(1), group).unsqueeze(1))
            actions.append(head.pick(parameters[-1] + offset[:, row], mask[:, row]))
            before = policy.mark(actions[-1].squeeze(1), group).unsqueeze(1)
            features.append(x)
        return Decoded(*(torch.cat(parts, 1) for parts in (actions, parameters, features)))


@register_agent("mat-gru", options=GRUOptions, summary="MAT with recurrent networks over the agents for attention")
def make_mat_gru(spec: EnvSpec, options: GRUOptions) -> MATGRU:
    return fitting(MATGRU, AimsOneByOne, spec, options)(spec, options)


Told = tuple[Tensor, Tensor | None]
"""Parameters (B, N, A) of distributions, and what actors with a memory of their own remember, (B / K, N, D)."""


class Factorised(TeamPolicy):
    """Agents that decide at the same time, with the encoder's critic."""

    def distributions(self, inputs: Inputs, representation: Tensor, present: list[bool] | None, steps: int) -> Told:
        """Those of each agent, of agents that are not `present` whatever is cheap; in chunks of `steps` rows."""
        raise NotImplementedError

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        with torch.no_grad(), plain_kernels():
            inputs, memory = self.remember(inputs, self.kept(), 1)
            representation = self.attend(inputs, self.kept())
            parameters, actors = self.distributions(inputs, representation, None, 1)
            shape = tuple(inputs["alive"].shape)
            noise = None if deterministic else self.head.noise(shape, parameters.device, generator)
            action, log_prob = sample(self.head, parameters, inputs["action_mask"], noise)
            value = self.critic(representation)
            if memory is not None and actors is not None:
                memory = torch.cat([memory, actors], 1)
        nodes = self.nodes(inputs, self.head, action, None)
        return Decision(self.head.to_env(action), nodes, log_prob, value, memory=memory)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        folds = self._leaves or self.fold()
        inputs, _ = self.remember(inputs, folds, self.memory_steps)
        representation = self.attend(inputs, folds)
        present = present_agents(nodes.trained)
        parameters, _ = self.distributions(inputs, representation, present, self.memory_steps)
        log_prob, entropy = self.head.evaluate(parameters, inputs["action_mask"], nodes.action, present=present)
        return Evaluation(log_prob, entropy, self.critic(representation))


class MATEncoder(Factorised):
    """No decoder: actions are independent given all observations."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        self.actor = self.per_group(self.make_actor)

    def distributions(self, inputs: Inputs, representation: Tensor, present: list[bool] | None, steps: int) -> Told:  # noqa: ARG002
        if isinstance(self.actor, PerGroup):
            return self.actor(representation, present), None
        return self.actor(representation), None


@register_agent("mat-encoder", options=TransformerOptions, summary="MAT without its decoder: agents decide at once")
def make_mat_encoder(spec: EnvSpec, options: TransformerOptions) -> MATEncoder:
    return fitting(MATEncoder, AimsAtOnce, spec, options)(spec, options)


class MATDec(Factorised):
    """Decentralised actors, multi-layer perceptrons on the agents' own observations; no gradient of theirs reaches
    the encoder."""

    def __init__(self, spec: EnvSpec, options: TransformerOptions) -> None:
        super().__init__(spec, options)
        hidden = (options.embedding, options.embedding)
        if reads_entities(spec, options) and not options.memory:
            self.actor: Any = EntityActor(spec, hidden)
        else:
            self.actor = make_actors(self.feature_size, hidden, self.head.size, self.places)
        if options.memory:
            self.actor = RecurrentActors(self.actor, spec.num_agents)
            self.memory_shape = (2 * spec.num_agents, options.embedding)

    def distributions(self, inputs: Inputs, representation: Tensor, present: list[bool] | None, steps: int) -> Told:  # noqa: ARG002
        if not self.memory_steps:
            return self.actor(self.features(inputs), present), None
        past = remembered(inputs, steps, slice(self.spec.num_agents, None))
        return self.actor(self.features(inputs), past, present)


@register_agent("mat-dec", options=TransformerOptions, summary="MAT's encoder as critic of decentralised actors")
def make_mat_dec(spec: EnvSpec, options: TransformerOptions) -> MATDec:
    return fitting(MATDec, SeesEntities, spec, options)(spec, options)
