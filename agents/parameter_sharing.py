"""Parameter sharing: which agents share a network, and how several networks run in one pass.

A *parameter set* is one network and the agents that use it. The agents are numbered 0 to N-1, the sets 0 to G-1.

Shape legend: B rows, N agents, G parameter sets, K networks, M members of the largest set, D features, A outputs.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.heads import SMALL_GAIN, mlp
from marl.errors import ConfigError
from marl.types import EnvSpec

Sharing = Literal["team", "agent_type", "agent"]
"""Agents that share parameters: the whole team, all agents of one type (`EnvSpec.agent_types`), or none."""


def parameter_sets(spec: EnvSpec, per: Sharing) -> tuple[int, ...]:
    """Return the parameter set of each agent, (N,).

    Raises ConfigError if agents of one type are to share parameters and their spaces differ.
    """
    names = {"team": ("team",) * spec.num_agents, "agent_type": spec.agent_types, "agent": spec.agents}[per]
    if per == "agent_type":
        _check_equal_spaces(spec)
    order = list(dict.fromkeys(names))
    return tuple(order.index(name) for name in names)


def _check_equal_spaces(spec: EnvSpec) -> None:
    first: dict[str, tuple[int, str]] = {}
    for agent, agent_type in enumerate(spec.agent_types):
        space = f"{type(spec.action_spaces[agent]).__name__} actions of size {spec.action_sizes[agent]}"
        spaces = f"observations of size {spec.observation_sizes[agent]} and {space}"
        other, expected = first.setdefault(agent_type, (agent, spaces))
        if spaces != expected:
            raise ConfigError(
                f"parameters_per='agent_type', but {spec.agents[other]!r} and {spec.agents[agent]!r} of type "
                f"{agent_type!r} in {spec.name} have unequal spaces: {expected}; {spaces}. Use parameters_per='agent' "
                "or 'team', or give them types of their own"
            )


class SharedActor(nn.Sequential):
    """One network for all agents."""

    def forward(self, input: Tensor, active: Sequence[bool] | None = None) -> Tensor:  # noqa: A002, ARG002
        """Return outputs (..., N, A) of features (..., N, D)."""
        return super().forward(input)


class NetworkSets(nn.Module):
    """One network per parameter set, all of one architecture, from (..., N, D) to (..., N, A).

    A network is a sequence of linear layers, LayerNorms, RMSNorms and functions without parameters. All sets pass a
    layer together, as a product of stacked matrices.
    """

    def __init__(self, networks: Iterable[nn.Sequential], sets: Sequence[int]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.parameter_sets = tuple(sets)
        self.members = [[i for i, own in enumerate(sets) if own == g] for g in range(max(sets) + 1)]
        self.largest = max(map(len, self.members))

    def forward(self, x: Tensor, active: Sequence[bool] | None = None) -> Tensor:
        """Return outputs (..., N, A) of features (..., N, D).

        `active` (N,) lists the agents whose outputs matter. A set without one is not computed: its rows are zero and
        its network gets no gradient, not even zero, with which an optimizer's momentum would move it.
        """
        if active is not None and not any(active):
            return self(x).detach()
        sets = range(len(self.members))
        if active is not None:
            sets = [g for g in sets if any(active[i] for i in self.members[g])]
        rows = x.reshape(-1, *x.shape[-2:])
        gather, scatter = self._indices(sets)
        if gather is not None:
            rows = rows[:, gather]
        rows = rows.unflatten(1, (len(sets), self.largest)).transpose(0, 1)  # (G, B, M, D)
        shape = rows.shape[:-1]
        out = apply_stacked(stack_layers([self.networks[g] for g in sets]), rows.flatten(1, 2))  # (G, B M, A)
        out = out.view(*shape, -1).transpose(0, 1).flatten(1, 2)
        if scatter is not None:
            out = F.pad(out, (0, 0, 0, 1))[:, scatter]
        return out.view(*x.shape[:-1], -1)

    def _indices(self, sets: Sequence[int]) -> tuple[list[int], list[int]] | tuple[None, None]:
        """Return the agent at each of the G M rows, and the row of each agent. Both are None if nothing moves.

        Agents of sets that are left out have the row behind the last. Small sets repeat a member.
        """
        gather = [i for g in sets for i in (self.members[g] * self.largest)[: self.largest]]
        scatter = [len(gather)] * len(self.parameter_sets)
        for start, g in enumerate(sets):
            for number, agent in enumerate(self.members[g]):
                scatter[agent] = start * self.largest + number
        if gather == scatter == list(range(len(self.parameter_sets))):
            return None, None
        return gather, scatter

    def network_for(self, agent: int) -> nn.Module:
        """Return the network of one agent."""
        return self.networks[self.parameter_sets[agent]]

    def rowwise(self) -> "RowwiseNetworks":
        """Return the networks with their present weights, for rows of any parameter set."""
        return RowwiseNetworks(stack_layers(list(self.networks)))


def make_actors(
    inputs: int, hidden: tuple[int, ...], outputs: int, sets: Sequence[int], *, input_norm: bool = True
) -> SharedActor | NetworkSets:
    """Return actors for the parameter sets `sets` (N,): from features (..., N, D) to parameters (..., N, A).

    `input_norm` as in `mlp`.
    """
    networks = [mlp(inputs, hidden, outputs, SMALL_GAIN, input_norm=input_norm) for _ in range(max(sets) + 1)]
    return NetworkSets(networks, sets) if len(networks) > 1 else SharedActor(*networks[0])


class Layer(NamedTuple):
    """One layer of K networks: `weight` (K, D, A) or (K, 1, D) and `bias` (K, 1, A), either may be missing."""

    module: nn.Module
    weight: Tensor | None
    bias: Tensor | None


def stack_layers(networks: Sequence[Any]) -> list[Layer]:
    """Return the layers of networks of one architecture, stacked; differentiable."""
    layers = []
    for same in zip(*networks, strict=True):
        weight = bias = None
        if isinstance(same[0], nn.Linear | nn.LayerNorm | nn.RMSNorm):
            weight = torch.stack([layer.weight for layer in same])
            weight = weight.mT if isinstance(same[0], nn.Linear) else weight.unsqueeze(1)
            if getattr(same[0], "bias", None) is not None:
                bias = torch.stack([layer.bias for layer in same]).unsqueeze(1)
        layers.append(Layer(same[0], weight, bias))
    return layers


def apply_stacked(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Return (K, B, A): each of K networks applied to its own rows of `x` (K, B, D)."""
    for module, weight, bias in layers:
        if weight is None:
            x = module(x)
        elif isinstance(module, nn.RMSNorm):
            x = F.rms_norm(x, module.normalized_shape, eps=module.eps) * weight
        elif isinstance(module, nn.Linear):
            x = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
        else:
            # With an explicit weight and bias a CPU's layer_norm is twice as fast.
            width = x.shape[-1]
            assert bias is not None
            x = torch.addcmul(bias, torch.layer_norm(x, [width], x.new_ones(width), x.new_zeros(width)), weight)
    return x


class RowwiseNetworks:
    """Networks with fixed weights, for rows (B, D) of one parameter set or of a set per row (B,)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def __call__(self, x: Tensor, own: int | Tensor) -> Tensor:
        """Return (B, A). `own` is the parameter set of all rows, or of each row (B,)."""
        index = slice(own, own + 1) if isinstance(own, int) else own
        axis = 0 if isinstance(own, int) else 1
        layers = [
            Layer(module, *(None if part is None else part[index] for part in parts)) for module, *parts in self.layers
        ]
        return apply_stacked(layers, x.unsqueeze(axis)).squeeze(axis)


class ActionTokens(nn.Module):
    """Tokens of mixed actions, or of continuous actions of several parameter sets.

    A token is the embedding of the action's index, 0 being the start, plus a linear map of its dimensions. Both have
    rows or columns of their own for each parameter set.
    """

    def __init__(self, choices: int, dimensions: int, sets: int, width: int, gain: float) -> None:
        super().__init__()
        self.choices, self.sets = choices, sets
        self.index = nn.Embedding(1 + sets * choices, width)
        self.dimensions = nn.Linear(sets * dimensions, width, bias=False)
        for layer in (self.index, self.dimensions):
            nn.init.orthogonal_(layer.weight, gain)

    def token_ids(self, action: Tensor, own: Any) -> Tensor:
        """Return token inputs (..., 1 + G A) of actions (..., 1 + A): an index and dimensions.

        `own` is the parameter set, an int or (...).
        """
        index, dimensions = action[..., :1], action[..., 1:]
        own = torch.as_tensor(own, device=action.device)
        placed = F.one_hot(own, self.sets).to(dimensions.dtype).unsqueeze(-1) * dimensions.unsqueeze(-2)
        return torch.cat([1.0 + index + self.choices * own.unsqueeze(-1), placed.flatten(-2)], -1)

    def forward(self, token_inputs: Tensor) -> Tensor:
        """Return tokens (..., D) of what `token_ids` returned."""
        return self.index(token_inputs[..., 0].long()) + self.dimensions(token_inputs[..., 1:])
