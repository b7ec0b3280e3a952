"""Networks whose parameters know no number of agents or targets, for observations that are made of entities.

An agent's embedding is made of its own features and, for each kind of entity, of how many it sees and the mean and the
maximum over them (Zaheer et al. 2017, eq. 4, with two poolings). An action that is aimed is scored by its target's row,
as the agent itself sees it, against a query of the agent, and known to the agents after it by that row.

Shape legend: E environments, N agents, D embedding, A actions, K aimed actions, W width of a target's row.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.mat.policy import AutoregressivePolicy, TeamPolicy, decision_order
from marl.agents.policy_base import RELU_GAIN, SMALL_GAIN, linear
from marl.types import EntityLayout, EnvSpec, Inputs


def entity_layout(spec: EnvSpec) -> EntityLayout:
    assert spec.entities is not None
    return spec.entities


def split_blocks(entities: EntityLayout, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of observations (..., D_in) what is the agent's own (..., F), and the rows (..., R, W) of each kind of entity."""
    own, others = [], {}
    parts = x.split([rows * width for _, rows, width in entities.blocks], -1)
    for part, (name, rows, width) in zip(parts, entities.blocks, strict=True):
        if name == "own":
            own.append(part)
        else:
            others[name] = part.unflatten(-1, (rows, width))
    return torch.cat(own, -1), others


class EntityEncoder(nn.Module):
    """From observations (..., D_in) to embeddings (..., D)."""

    def __init__(self, entities: EntityLayout, width: int) -> None:
        super().__init__()
        self.entities = entities
        sizes = {name: size for name, _, size in entities.blocks if name != "own"}
        own = sum(size for name, _, size in entities.blocks if name == "own")
        half = max(1, width // 2)
        total = own + len(sizes) * (2 * half + 1)
        self.each = nn.ModuleDict({name: linear(size, half) for name, size in sizes.items()})
        self.mix = nn.Sequential(nn.LayerNorm(total), linear(total, width), nn.GELU(), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        own, others = split_blocks(self.entities, x)
        pooled = [own]
        for name, rows in others.items():
            seen = (rows != 0.0).any(-1, keepdim=True)
            count = seen.sum(-2).to(x.dtype)
            # Nothing is below zero, so what is not seen is zero and never the maximum of what is.
            each = F.relu(self.each[name](rows)) * seen
            pooled += [each.sum(-2) / count.clamp(min=1.0), each.amax(-2), count.log1p()]
        return self.mix(torch.cat(pooled, -1))


class TargetEncoder(nn.Module):
    """The rows of what aimed actions are aimed at.

    A row is W = D / 2 wide, and one: how many agents before have chosen that target, as log(1 + number).
    """

    def __init__(self, spec: EnvSpec, width: int) -> None:
        super().__init__()
        self.entities = entity_layout(spec)
        self.aimed, self.width = self.entities.num_targeted, max(1, width // 2)
        self.ordinary = spec.action_size - self.aimed
        sizes = {name: size for name, _, size in self.entities.blocks}
        kinds = (self.entities.target, self.entities.alt_target)
        self.each = nn.ModuleDict({name: linear(sizes[name], self.width) for name in kinds})

    def forward(self, x: Tensor) -> Tensor:
        """(..., K (W + 1) + 1) of observations (..., D_in): flat rows, and 1 for agents that aim at the other kind."""
        own, others = split_blocks(self.entities, x)
        switched = own[..., self.entities.healer_flag, None]
        target, other = (
            F.relu(self.each[name](fit(others[name], self.aimed)))
            for name in (self.entities.target, self.entities.alt_target)
        )
        rows = F.pad(torch.where(switched.unsqueeze(-1) > 0.0, other, target), (0, 1))
        return torch.cat([rows.flatten(-2), (switched > 0.0).to(x.dtype)], -1)

    def follow(self, told: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Of actions (E, N, 1) in the order of decisions the rows (E, N, W) of their targets, zeros where they have
        none; and what `forward` gave, `told`, with the choices of the agents before counted in."""
        rows, switched = as_rows(told, self.aimed), told[..., -1:]
        index = action - self.ordinary
        chosen = F.one_hot(index.squeeze(-1).clamp(min=0), self.aimed).to(told.dtype) * (index >= 0)
        target = (chosen.unsqueeze(-2) @ rows[..., :-1]).squeeze(-2)
        # What is a target of one agent's is none of another's that aims at the other kind.
        kinds = torch.stack([chosen * (1.0 - switched), chosen * switched])
        before = F.pad(kinds.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
        count = torch.where(switched > 0.0, before[1], before[0]).log1p()
        rows = torch.cat([rows[..., :-1], count.unsqueeze(-1)], -1)
        return target, torch.cat([rows.flatten(-2), switched], -1)


def as_rows(told: Tensor, aimed: int) -> Tensor:
    """(..., K, W + 1) of what `Targets` gives."""
    return told[..., :-1].unflatten(-1, (aimed, -1))


def fit(rows: Tensor, count: int) -> Tensor:
    """(..., R, F) cut or filled up with zeros to `count` rows."""
    return F.pad(rows[..., :count, :], (0, 0, 0, max(0, count - rows.shape[-2])))


class TargetedHead(nn.Module):
    """Logits (..., A) of features (..., D) with what `targets` tells behind them."""

    def __init__(self, targets: TargetEncoder, inputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs, self.aimed = inputs, targets.aimed
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.ordinary = linear(inputs, targets.ordinary, SMALL_GAIN)
        self.query = linear(inputs, targets.width + 1, SMALL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        hidden, rows = self.body(x[..., : self.inputs]), as_rows(x[..., self.inputs :], self.aimed)
        return torch.cat([self.ordinary(hidden), (rows @ self.query(hidden).unsqueeze(-1)).squeeze(-1)], -1)


class EntityActor(nn.Module):
    """Logits (..., A) of an agent's own observation (..., D_in)."""

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.perception = EntityEncoder(entity_layout(spec), hidden[0])
        self.targets = TargetEncoder(spec, hidden[0])
        self.aim = TargetedHead(self.targets, hidden[0], hidden[1:])

    def forward(self, x: Tensor, present: Any = None) -> Tensor:  # noqa: ARG002 - as `Shared`
        return self.aim(torch.cat([self.perception(x), self.targets(x)], -1))


class EntityCritic(nn.Module):
    """Values (E, N) of observations (E, N, D_in): of each agent's own, or, where central, with the mean and the maximum
    over the embeddings of all living agents."""

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...], central: bool) -> None:
        super().__init__()
        self.central = central
        self.perception = EntityEncoder(entity_layout(spec), hidden[0])
        width, layers = hidden[0] * (3 if central else 1), []
        for size in hidden[1:] or hidden:
            layers += [linear(width, size), nn.GELU(), nn.LayerNorm(size)]
            width = size
        self.body = nn.Sequential(*layers, linear(width, 1, 1.0))

    def forward(self, x: Tensor, alive: Tensor) -> Tensor:
        x = self.perception(x)
        if self.central:
            lives = alive.unsqueeze(-1)
            mean = x.masked_fill(~lives, 0.0).sum(-2, keepdim=True) / lives.sum(-2, keepdim=True).clamp(min=1)
            # A finite fill: where nobody lives, minus infinity would make a gradient of NaN.
            most = x.masked_fill(~lives, -1e4).amax(-2, keepdim=True)
            x = torch.cat([x, mean.expand_as(x), most.expand_as(x)], -1)
        return self.body(x).squeeze(-1)


class TakeFirst(nn.Module):
    """The first features of a tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


class EntityMixin(TeamPolicy):
    """Agents' embeddings by Perception."""

    targets: TargetEncoder
    actor: Any
    token: Any

    def make_embed(self) -> Any:
        return EntityEncoder(entity_layout(self.spec), self.options.embedding)

    def fuse_embedding(self) -> None:
        return None

    def make_actor(self) -> Any:
        width = self.options.embedding
        self.targets = TargetEncoder(self.spec, width)
        return TargetedHead(self.targets, width, (width,))


class EntitySimultaneous(EntityMixin):
    """Actors on the encoder that know what is aimed at."""

    def distributions(self, inputs: Inputs, representation: Tensor, mask: Any, steps: int) -> tuple[Tensor, None]:  # noqa: ARG002
        return self.actor(torch.cat([representation, self.targets(inputs["agents"])], -1)), None


class EntityAutoregressive(EntityMixin, AutoregressivePolicy):
    """What is known of an agent, before and after the decoder, has behind it what `Targets` tells.

    The token of an earlier action is made of its kind, the ordinary ones and "aimed", and of its target's row.
    """

    def __init__(self, spec: EnvSpec, options: Any) -> None:
        super().__init__(spec, options)
        width = options.embedding
        self.critic = nn.Sequential(TakeFirst(width), *self.critic)
        self.token = nn.Embedding(self.targets.ordinary + 2, width)
        nn.init.orthogonal_(self.token.weight, RELU_GAIN)
        self.target_token = linear(self.targets.width, width)

    def build_cache(self) -> tuple[Any, None]:
        return self.fuse(), None

    def jacobi_iterations(self, envs: int, agents: int) -> int:  # noqa: ARG002
        """As many as may be needed: nobody decides one after another."""
        return agents

    def make_table(self, first: Any) -> None:
        """A token is made of its target too."""

    def decoder_memory(self, inputs: Inputs, folds: Any, order: Tensor | None) -> Tensor:
        known = super().decoder_memory(inputs, folds, order)
        return torch.cat([known, decision_order(self.targets(inputs["agents"]), order)], -1)

    def decoder_inputs(
        self,
        representation: Tensor,
        action: Tensor,
        order: Tensor | None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        known, told = self.part(representation)
        target, _ = self.targets.follow(told, action)
        kind = action.squeeze(-1).clamp(max=self.targets.ordinary) + 1
        tokens = self.token(kind) + self.target_token(target)
        start = self.token.weight[0].expand(len(tokens), 1, -1)
        return known, torch.cat([start, tokens[:, :-1]], 1)

    def embed_raw(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def decode(self, representation: Tensor, action: Tensor, folds: Any, order: Tensor | None = None) -> Tensor:
        features = super().decode(representation, action, folds, order)
        _, told = self.targets.follow(self.part(representation)[1], action)
        return torch.cat([features, told], -1)

    def part(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : self.options.embedding], x[..., self.options.embedding :]


def reads_entities(spec: EnvSpec, options: Any) -> bool:
    """Whether a policy reads observations as entities: where they are, and the team has one set of parameters."""
    return spec.entities is not None and options.parameters_per == "team"


def with_entities(kind: Any, reader: type[EntityMixin], spec: EnvSpec, options: Any) -> Any:
    """A class of policies, or the one of its like that is a `reader` of entities."""
    return type(f"{reader.__name__}{kind.__name__}", (reader, kind), {}) if reads_entities(spec, options) else kind
