"""Networks for entity observations. Their parameters do not depend on the number of agents or targets.

An agent's embedding is made of its own features and, for each kind of entity, the number seen and the mean and maximum
over them (Deep Sets, Zaheer et al. 2017, eq. 4, with two poolings). A targeted action is scored by the row of its
target, as the agent sees it, against a query of the agent.

Shape legend: B rows, E environments, N agents, O observation features, D width, A actions, K targeted actions,
R rows of a block, F features of a row, W width of an encoded target.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.heads import SMALL_GAIN, linear
from marl.types import EntityLayout, EnvSpec


def entity_layout(spec: EnvSpec) -> EntityLayout:
    """Return the entity layout of `spec`, which must have one."""
    assert spec.entities is not None
    return spec.entities


def reads_entities(spec: EnvSpec, options: Any) -> bool:
    """Return True if a policy reads observations as entities: `spec` has them and all agents share parameters."""
    return spec.entities is not None and options.parameters_per == "team"


def split_blocks(entities: EntityLayout, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Split observations (..., O) into the agent's own features (..., F) and rows (..., R, F) by kind of entity."""
    own, others = [], {}
    parts = x.split([rows * width for _, rows, width in entities.blocks], -1)
    for part, (name, rows, width) in zip(parts, entities.blocks, strict=True):
        if name == "own":
            own.append(part)
        else:
            others[name] = part.unflatten(-1, (rows, width))
    return torch.cat(own, -1), others


class EntityEncoder(nn.Module):
    """Embedding (..., D) of an entity observation (..., O)."""

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
        """Return the embeddings (..., D) of `x` (..., O)."""
        own, others = split_blocks(self.entities, x)
        pooled = [own]
        for name, rows in others.items():
            seen = (rows != 0.0).any(-1, keepdim=True)
            count = seen.sum(-2).to(x.dtype)
            # ReLU leaves nothing below zero, so the zeros of rows that are not seen never change the maximum.
            each = F.relu(self.each[name](rows)) * seen
            pooled += [each.sum(-2) / count.clamp(min=1.0), each.amax(-2), count.log1p()]
        return self.mix(torch.cat(pooled, -1))


class TargetEncoder(nn.Module):
    """Encode the targets of targeted actions, flat: K rows of W + 1, then one flag, (..., K (W + 1) + 1).

    The last entry of a row is log(1 + number of earlier agents that chose this target). The flag is 1 for agents whose
    targets are of the alternative kind, such as healers. W is D / 2.
    """

    def __init__(self, spec: EnvSpec, width: int) -> None:
        super().__init__()
        self.entities = entity_layout(spec)
        self.num_targeted, self.width = self.entities.num_targeted, max(1, width // 2)
        self.ordinary = spec.action_size - self.num_targeted
        sizes = {name: size for name, _, size in self.entities.blocks}
        kinds = (self.entities.target, self.entities.alt_target)
        self.each = nn.ModuleDict({name: linear(sizes[name], self.width) for name in kinds})

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoded targets (..., K (W + 1) + 1) of observations (..., O), nothing chosen yet."""
        own, others = split_blocks(self.entities, x)
        is_healer = own[..., self.entities.healer_flag, None]
        target, alt_target = (
            F.relu(self.each[name](resize_rows(others[name], self.num_targeted)))
            for name in (self.entities.target, self.entities.alt_target)
        )
        rows = F.pad(torch.where(is_healer.unsqueeze(-1) > 0.0, alt_target, target), (0, 1))
        return torch.cat([rows.flatten(-2), (is_healer > 0.0).to(x.dtype)], -1)

    def choose(self, targets: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Apply actions (B, N, 1), in decision order, to encoded targets (B, N, K (W + 1) + 1).

        Returns the row (B, N, W) of each action's target, zeros if it has none, and the encoded targets with the
        choices of the agents before counted.
        """
        rows, is_healer = target_rows(targets, self.num_targeted), targets[..., -1:]
        index = action - self.ordinary
        chosen = F.one_hot(index.squeeze(-1).clamp(min=0), self.num_targeted).to(targets.dtype) * (index >= 0)
        target = (chosen.unsqueeze(-2) @ rows[..., :-1]).squeeze(-2)
        # Index k means another target to an agent of the other kind, so the kinds are counted apart.
        kinds = torch.stack([chosen * (1.0 - is_healer), chosen * is_healer])
        before = F.pad(kinds.cumsum(2)[:, :, :-1], (0, 0, 1, 0))
        count = torch.where(is_healer > 0.0, before[1], before[0]).log1p()
        rows = torch.cat([rows[..., :-1], count.unsqueeze(-1)], -1)
        return target, torch.cat([rows.flatten(-2), is_healer], -1)


def target_rows(targets: Tensor, num_targeted: int) -> Tensor:
    """Return the rows (..., K, W + 1) of encoded targets."""
    return targets[..., :-1].unflatten(-1, (num_targeted, -1))


def resize_rows(rows: Tensor, count: int) -> Tensor:
    """Return (..., count, F): rows (..., R, F) cut, or padded with zeros."""
    return F.pad(rows[..., :count, :], (0, 0, 0, max(0, count - rows.shape[-2])))


class TargetedHead(nn.Module):
    """Logits (..., A) of features (..., D) with encoded targets behind them."""

    def __init__(self, targets: TargetEncoder, inputs: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.inputs, self.num_targeted = inputs, targets.num_targeted
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [linear(inputs, width), nn.GELU(), nn.LayerNorm(width)]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.ordinary = linear(inputs, targets.ordinary, SMALL_GAIN)
        self.query = linear(inputs, targets.width + 1, SMALL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (..., A): the ordinary actions, then the targeted ones."""
        hidden, rows = self.body(x[..., : self.inputs]), target_rows(x[..., self.inputs :], self.num_targeted)
        return torch.cat([self.ordinary(hidden), (rows @ self.query(hidden).unsqueeze(-1)).squeeze(-1)], -1)


class EntityActor(nn.Module):
    """Logits (..., A) of an agent's own entity observation (..., O)."""

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = EntityEncoder(entity_layout(spec), hidden[0])
        self.targets = TargetEncoder(spec, hidden[0])
        self.head = TargetedHead(self.targets, hidden[0], hidden[1:])

    def forward(self, x: Tensor, active: Any = None) -> Tensor:  # noqa: ARG002 - the interface of SharedActor
        """Return logits (..., A)."""
        return self.head(torch.cat([self.embed(x), self.targets(x)], -1))


class EntityCritic(nn.Module):
    """Values of entity observations. If `central`, each also reads mean and maximum over the living agents."""

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...], central: bool) -> None:
        super().__init__()
        self.central = central
        self.embed = EntityEncoder(entity_layout(spec), hidden[0])
        width, layers = hidden[0] * (3 if central else 1), []
        for size in hidden[1:] or hidden:
            layers += [linear(width, size), nn.GELU(), nn.LayerNorm(size)]
            width = size
        self.body = nn.Sequential(*layers, linear(width, 1, 1.0))

    def forward(self, x: Tensor, alive: Tensor) -> Tensor:
        """Return values (B, N) of observations (B, N, O)."""
        x = self.embed(x)
        if self.central:
            is_alive = alive.unsqueeze(-1)
            mean = x.masked_fill(~is_alive, 0.0).sum(-2, keepdim=True) / is_alive.sum(-2, keepdim=True).clamp(min=1)
            # A finite fill: with all agents dead, minus infinity would give a gradient of NaN.
            most = x.masked_fill(~is_alive, -1e4).amax(-2, keepdim=True)
            x = torch.cat([x, mean.expand_as(x), most.expand_as(x)], -1)
        return self.body(x).squeeze(-1)
