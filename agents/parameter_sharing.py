"""Networks for the agents of each group: which agents share one, and all of them in one pass.

Shape legend: B rows, K networks, N agents, G groups, M members of the largest group, D features.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.errors import ConfigError
from marl.types import EnvSpec

Sharing = Literal["team", "group", "agent"]
"""Who has parameters of its own: the team together, each group of `EnvSpec.agent_types`, or each agent."""


def parameter_sets(spec: EnvSpec, per: Sharing) -> tuple[int, ...]:
    """(N,): the number of each agent's set of parameters; all 0 where there is but one.

    Raises ConfigError where agents of one group are to share parameters and their spaces differ.
    """
    names = {"team": ("team",) * spec.num_agents, "group": spec.agent_types, "agent": spec.agents}[per]
    if per == "group":
        _require_equal_spaces(spec)
    order = list(dict.fromkeys(names))
    return tuple(order.index(name) for name in names)


def _require_equal_spaces(spec: EnvSpec) -> None:
    first: dict[str, tuple[int, str]] = {}
    for agent, group in enumerate(spec.agent_types):
        space = f"{type(spec.action_spaces[agent]).__name__} actions of size {spec.action_sizes[agent]}"
        spaces = f"observations of size {spec.observation_sizes[agent]} and {space}"
        other, expected = first.setdefault(group, (agent, spaces))
        if spaces != expected:
            raise ConfigError(
                f"parameters_per is 'group', but {spec.agents[other]!r} and {spec.agents[agent]!r} of the group "
                f"{group!r} of {spec.name} have unequal spaces: {expected}; {spaces}. Give agent, team, or groups of "
                "equal agents"
            )


class NetworkSets(nn.Module):
    """A network for each group of agents, all of one shape, from (..., N, D) to (..., N, A).

    A network is a sequence of linear layers, normalizations and functions without parameters. The groups pass
    through a layer together, by products of stacked matrices.
    """

    def __init__(self, networks: Iterable[nn.Sequential], places: Sequence[int]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.parameter_sets = tuple(places)
        self.members = [[i for i, place in enumerate(places) if place == g] for g in range(max(places) + 1)]
        self.widest = max(map(len, self.members))

    def forward(self, x: Tensor, present: Sequence[bool] | None = None) -> Tensor:
        """Rows of agents whose group has nobody `present` are zero, and its network rests, where some are.

        Where nobody is, no gradient reaches a network, not even one of zero, with which momentum would move it.
        """
        if present is not None and not any(present):
            return self(x).detach()
        groups = range(len(self.members))
        if present is not None:
            groups = [g for g in groups if any(present[i] for i in self.members[g])]
        rows = x.reshape(-1, *x.shape[-2:])
        into, back = self._paths(groups)
        if into is not None:
            rows = rows[:, into]
        rows = rows.unflatten(1, (len(groups), self.widest)).transpose(0, 1)  # (G, B, M, D)
        shape = rows.shape[:-1]
        out = self._through(groups, rows.flatten(1, 2)).view(*shape, -1).transpose(0, 1).flatten(1, 2)
        if back is not None:
            out = F.pad(out, (0, 0, 0, 1))[:, back]
        return out.view(*x.shape[:-1], -1)

    def _paths(self, groups: Sequence[int]) -> tuple[list[int], list[int]] | tuple[None, None]:
        """Which agent is at each of the G M places, and at which place each agent is; None where all stay in place.

        Agents of a group that rests are at the place behind the last; small groups repeat a member.
        """
        into = [i for g in groups for i in (self.members[g] * self.widest)[: self.widest]]
        back = [len(into)] * len(self.parameter_sets)
        for start, g in enumerate(groups):
            for number, agent in enumerate(self.members[g]):
                back[agent] = start * self.widest + number
        return (None, None) if into == back == list(range(len(self.parameter_sets))) else (into, back)

    def _through(self, groups: Sequence[int], x: Tensor) -> Tensor:
        """(G, B M, D) to (G, B M, A)."""
        return apply_stacked(stack_layers([self.networks[g] for g in groups]), x)

    def network_for(self, agent: int) -> nn.Module:
        """The network of one agent."""
        return self.networks[self.parameter_sets[agent]]

    def rowwise(self) -> "RowwiseNetworks":
        return RowwiseNetworks(stack_layers(list(self.networks)))


class Layer(NamedTuple):
    """A layer of K networks: `weight` (K, D, D') or (K, 1, D) and `bias` (K, 1, D'), or neither."""

    module: nn.Module
    weight: Tensor | None
    bias: Tensor | None


def stack_layers(networks: Sequence[Any]) -> list[Layer]:
    """The layers of networks of one shape, differentiable."""
    layers = []
    for same in zip(*networks, strict=True):
        weight = bias = None
        if isinstance(same[0], nn.Linear | nn.LayerNorm):
            weight, bias = (torch.stack([getattr(layer, name) for layer in same]) for name in ("weight", "bias"))
            weight, bias = weight.mT if isinstance(same[0], nn.Linear) else weight.unsqueeze(1), bias.unsqueeze(1)
        layers.append(Layer(same[0], weight, bias))
    return layers


def apply_stacked(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """(K, B, D) to (K, B, A), each of K networks on rows of its own."""
    for module, weight, bias in layers:
        if weight is None or bias is None:
            x = module(x)
        elif isinstance(module, nn.Linear):
            x = torch.baddbmm(bias, x, weight)
        else:
            # Given a gain and a bias, a CPU normalizes twice as fast as without.
            width = x.shape[-1]
            x = torch.addcmul(bias, torch.layer_norm(x, [width], x.new_ones(width), x.new_zeros(width)), weight)
    return x


class RowwiseNetworks:
    """The networks with the weights as they were, on rows (B, D) that are all of one group or each of its own (B,)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor, group: int | Tensor) -> Tensor:
        index = slice(group, group + 1) if isinstance(group, int) else group
        axis = 0 if isinstance(group, int) else 1
        layers = [
            Layer(module, *(None if part is None else part[index] for part in parts)) for module, *parts in self.layers
        ]
        return apply_stacked(layers, x.unsqueeze(axis)).squeeze(axis)


class ActionTokens(nn.Module):
    """Tokens of actions that are told apart by kind and group.

    The token of an action is the row of its number, 0 being the start, and a linear map of its torques,
    which has columns of its own for each group.
    """

    def __init__(self, numbers: int, torques: int, groups: int, width: int, gain: float) -> None:
        super().__init__()
        self.numbers, self.groups = numbers, groups
        self.number = nn.Embedding(1 + groups * numbers, width)
        self.torque = nn.Linear(groups * torques, width, bias=False)
        for layer in (self.number, self.torque):
            nn.init.orthogonal_(layer.weight, gain)

    def token_ids(self, action: Tensor, group: Any) -> Tensor:
        """(..., 1 + G A) of actions (..., 1 + A), a number and torques, of agents of a `group` (...) or int."""
        number, torque = action[..., :1], action[..., 1:]
        group = torch.as_tensor(group, device=action.device)
        own = F.one_hot(group, self.groups).to(torque.dtype).unsqueeze(-1) * torque.unsqueeze(-2)
        return torch.cat([1.0 + number + self.numbers * group.unsqueeze(-1), own.flatten(-2)], -1)

    def forward(self, marked: Tensor) -> Tensor:
        return self.number(marked[..., 0].long()) + self.torque(marked[..., 1:])
