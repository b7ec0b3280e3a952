"""Recurrent networks over time, for agents that must remember what they no longer see.

Shape legend: B rows, K consecutive steps of each chunk, R rememberers (agents, or a critic of them all), W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from agents.nn import Separate, Shared
from marl.errors import ConfigError
from marl.types import Inputs


@dataclass(frozen=True)
class MemoryOptions:
    """Whether agents remember."""

    memory: int = 0
    """Remember earlier steps of an episode in a recurrent network (GRU), whose gradient runs through this many steps
    (published: 10); must divide rollout_steps. 0 remembers nothing."""

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise ConfigError(f"memory is {self.memory}; give a number of steps, usually 8 to 16, or 0 for none")


class Remembered(NamedTuple):
    """`memory` (B, R, W) at each row, who is `alive` (B, R), where an episode `began` (B,), and K, the `steps`."""

    memory: Tensor
    alive: Tensor
    began: Tensor
    steps: int

    def of(self, rows: slice) -> "Remembered":
        """That of some rememberers."""
        return self._replace(memory=self.memory[:, rows], alive=self.alive[:, rows])


def remembered(inputs: Inputs, steps: int, rows: slice = slice(None)) -> Remembered:
    """That of the rememberers `rows`: the agents, or one for them all, who lives as long as any."""
    memory, alive = inputs["memory"][:, rows], inputs["alive"]
    if memory.shape[1] != alive.shape[1]:
        alive = alive.any(-1, keepdim=True)
    return Remembered(memory, alive, inputs["began"], steps)


class Recall(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) along the steps of a chunk, normalised as in MAPPO (Yu et al. 2022).

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

    def forward(self, x: Tensor, past: Remembered) -> tuple[Tensor, Tensor]:
        """From (B, R, W) to the same, and the memory (B / K, R, W) behind each chunk."""
        x, alive, began = (each.unflatten(0, (-1, past.steps)) for each in (x, past.alive, past.began))
        memory = past.memory[:: past.steps]
        told = []
        for step in range(past.steps):
            if step:
                memory = memory.masked_fill(began[:, step, None, None], 0.0)
            new = self.cell(x[:, step].flatten(0, 1), memory.flatten(0, 1)).view_as(memory)
            memory = torch.where(alive[:, step, :, None], new, memory)
            told.append(memory)
        return self.norm(torch.stack(told, 1).flatten(0, 1)), memory


class Recurrent(nn.Module):
    """A perceptron with a memory before its last layer, from (B, R, D) to (B, R, A)."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = network[:-1], cast(nn.Linear, network[-1])
        self.recall = Recall(self.head.in_features)

    def forward(self, x: Tensor, past: Remembered) -> tuple[Tensor, Tensor]:
        """Its output, and the memory (B / K, R, W) behind each chunk."""
        x, memory = self.recall(self.body(x), past)
        return self.head(x), memory


class RecurrentActors(nn.Module):
    """`Recurrent` for `Shared` or `Separate` actors."""

    def __init__(self, actors: Shared | Separate) -> None:
        super().__init__()
        networks = actors.networks if isinstance(actors, Separate) else [actors]
        self.networks = nn.ModuleList(Recurrent(cast(nn.Sequential, network)) for network in networks)

    def forward(self, x: Tensor, past: Remembered, present: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """As Recurrent, with a network for each agent where they are separate; see Separate for who is `present`."""
        if len(self.networks) == 1:
            return self.networks[0](x, past)
        if present is None or not any(present):
            present = [True] * len(self.networks)
        rows: list[Any] = [None] * len(self.networks)
        for i, network in enumerate(self.networks):
            if present[i]:
                rows[i] = network(x[:, i : i + 1], past.of(slice(i, i + 1)))
        output, memory = (torch.zeros_like(part) for part in next(row for row in rows if row is not None))
        pairs = [(output, memory) if row is None else row for row in rows]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)
