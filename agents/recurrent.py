"""Recurrent layers over the steps of an episode, trained by truncated backpropagation through time.

A batch of B rows is B / K segments of K consecutive steps of one environment. A recurrent state belongs to a *stream*:
an agent, or the whole team.

Shape legend: B rows, K steps of a segment, R streams, N agents, W width of the state, D features, A outputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from marl.agents.parameter_sharing import NetworkSets, SharedActor
from marl.types import Inputs


class RecurrentInputs(NamedTuple):
    """Recurrent state at each row, streams that are alive, rows that start an episode, and steps of a segment."""

    state: Tensor  # (B, R, W)
    alive: Tensor  # (B, R)
    episode_start: Tensor  # (B,)
    steps: int

    def select(self, streams: list[int]) -> "RecurrentInputs":
        """Return the inputs of some streams."""
        return self._replace(state=self.state[:, streams], alive=self.alive[:, streams])


def recurrent_inputs(inputs: Inputs, steps: int, streams: slice = slice(None)) -> RecurrentInputs:
    """Return the inputs of `streams`: one per agent, or one for the team, which is alive while any agent is."""
    state, alive = inputs["recurrent_state"][:, streams], inputs["alive"]
    if state.shape[1] != alive.shape[1]:
        alive = alive.any(-1, keepdim=True)
    return RecurrentInputs(state, alive, inputs["episode_start"], steps)


class GRULayer(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over the steps of a segment, and LayerNorm, as in MAPPO's released code.

    The state starts at zero in each episode. A dead agent's state does not change.
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
        """Return outputs (B, R, W) of `x` (B, R, W), and the state (B / K, R, W) after each segment."""
        x, alive, start = (each.unflatten(0, (-1, past.steps)) for each in (x, past.alive, past.episode_start))
        state = past.state[:: past.steps]
        states = []
        for step in range(past.steps):
            if step:
                state = state.masked_fill(start[:, step, None, None], 0.0)
            new = self.cell(x[:, step].flatten(0, 1), state.flatten(0, 1)).view_as(state)
            state = torch.where(alive[:, step, :, None], new, state)
            states.append(state)
        return self.norm(torch.stack(states, 1).flatten(0, 1)), state


class RecurrentMLP(nn.Module):
    """An MLP with a GRULayer before its last layer, from (B, R, D) to (B, R, A)."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.body, self.head = network[:-1], cast(nn.Linear, network[-1])
        self.gru = GRULayer(self.head.in_features)

    def forward(self, x: Tensor, past: RecurrentInputs) -> tuple[Tensor, Tensor]:
        """Return outputs (B, R, A), and the state (B / K, R, W) after each segment."""
        x, state = self.gru(self.body(x), past)
        return self.head(x), state


class RecurrentActors(nn.Module):
    """Actors of make_actors, each with a GRULayer."""

    def __init__(self, actors: SharedActor | NetworkSets, agents: int) -> None:
        super().__init__()
        networks = actors.networks if isinstance(actors, NetworkSets) else [actors]
        self.networks = nn.ModuleList(RecurrentMLP(cast(nn.Sequential, network)) for network in networks)
        self.members = actors.members if isinstance(actors, NetworkSets) else [list(range(agents))]
        order = [agent for members in self.members for agent in members]
        self.scatter = [order.index(agent) for agent in range(agents)]

    def forward(self, x: Tensor, past: RecurrentInputs, active: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs (B, N, A) and states (B / K, N, W), zero for parameter sets without an `active` agent."""
        if len(self.members) == 1:
            return self.networks[0](x, past)
        if active is None or not any(active):
            active = [True] * len(self.scatter)
        pairs: list[Any] = [None] * len(self.members)
        for g, members in enumerate(self.members):
            if any(active[i] for i in members):
                pairs[g] = self.networks[g](x[:, members], past.select(members))
        computed = next(pair for pair in pairs if pair is not None)
        for g, members in enumerate(self.members):
            if pairs[g] is None:
                pairs[g] = tuple(part.new_zeros(len(part), len(members), part.shape[-1]) for part in computed)
        output, state = (torch.cat(parts, 1)[:, self.scatter] for parts in zip(*pairs, strict=True))
        return output, state
