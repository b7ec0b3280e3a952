"""Recurrent networks over time, for agents that must remember what they no longer see.

Shape legend: B rows, K consecutive steps of each chunk, R rememberers (agents, or a critic of them all), W width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from marl.agents.parameter_sharing import NetworkSets
from marl.agents.policy_base import SharedActor
from marl.types import Inputs


class RecurrentInputs(NamedTuple):
    """`memory` (B, R, W) at each row, who is `alive` (B, R), where an episode `began` (B,), and K, the `steps`."""

    state: Tensor
    alive: Tensor
    episode_start: Tensor
    steps: int

    def select(self, rows: list[int]) -> "RecurrentInputs":
        """That of some rememberers."""
        return self._replace(state=self.state[:, rows], alive=self.alive[:, rows])


def recurrent_inputs(inputs: Inputs, steps: int, rows: slice = slice(None)) -> RecurrentInputs:
    """That of the rememberers `rows`: the agents, or one for them all, who lives as long as any."""
    memory, alive = inputs["memory"][:, rows], inputs["alive"]
    if memory.shape[1] != alive.shape[1]:
        alive = alive.any(-1, keepdim=True)
    return RecurrentInputs(memory, alive, inputs["began"], steps)


class GRULayer(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) along the steps of a chunk, normalized as in MAPPO (Yu et al. 2022).

    Nothing passes from one episode to the next; the memory of the dead stays as it is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, past: RecurrentInputs) -> tuple[Tensor, Tensor]:
        """From (B, R, W) to the same, and the memory (B / K, R, W) behind each chunk."""
        x, alive, began = (each.unflatten(0, (-1, past.steps)) for each in (x, past.alive, past.episode_start))
        memory = past.state[:: past.steps]
        told = []
        for step in range(past.steps):
            if step:
                memory = memory.masked_fill(began[:, step, None, None], 0.0)
            new = self.cell(x[:, step].flatten(0, 1), memory.flatten(0, 1)).view_as(memory)
            memory = torch.where(alive[:, step, :, None], new, memory)
            told.append(memory)
        return self.norm(torch.stack(told, 1).flatten(0, 1)), memory


class RecurrentMLP(nn.Module):
    """A perceptron with a memory before its last layer, from (B, R, D) to (B, R, A)."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = network[:-1], cast(nn.Linear, network[-1])
        self.gru = GRULayer(self.head.in_features)

    def forward(self, x: Tensor, past: RecurrentInputs) -> tuple[Tensor, Tensor]:
        """Its output, and the memory (B / K, R, W) behind each chunk."""
        x, memory = self.gru(self.body(x), past)
        return self.head(x), memory


class RecurrentActors(nn.Module):
    """`Recurrent` for `Shared` actors, or for those of each group."""

    def __init__(self, actors: SharedActor | NetworkSets, agents: int) -> None:
        super().__init__()
        networks = actors.networks if isinstance(actors, NetworkSets) else [actors]
        self.networks = nn.ModuleList(RecurrentMLP(cast(nn.Sequential, network)) for network in networks)
        self.members = actors.members if isinstance(actors, NetworkSets) else [list(range(agents))]
        order = [agent for group in self.members for agent in group]
        self.back = [order.index(agent) for agent in range(agents)]

    def forward(self, x: Tensor, past: RecurrentInputs, present: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """As Recurrent; see PerGroup for who is `present`."""
        if len(self.members) == 1:
            return self.networks[0](x, past)
        if present is None or not any(present):
            present = [True] * len(self.back)
        pairs: list[Any] = [None] * len(self.members)
        for g, group in enumerate(self.members):
            if any(present[i] for i in group):
                pairs[g] = self.networks[g](x[:, group], past.select(group))
        told = next(pair for pair in pairs if pair is not None)
        for g, group in enumerate(self.members):
            if pairs[g] is None:
                pairs[g] = tuple(part.new_zeros(len(part), len(group), part.shape[-1]) for part in told)
        output, memory = (torch.cat(parts, 1)[:, self.back] for parts in zip(*pairs, strict=True))
        return output, memory
