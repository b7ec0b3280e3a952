"""Retention (Sun et al. 2023) as Sable uses it (Mahjoub et al. 2025): recurrent form, and chunkwise form.

A step holds the tokens of N agents. The state S (d x d) sums k' v over all tokens of the episode. The tokens of a step
enter undecayed, and S decays once a step. `retain_recurrent` is the plain definition. `retain` computes the same for
all steps and agents in parallel, in memory that is linear in the agents.

Shape legend: B rows (environments, or segments x steps), G segments, K steps of a segment, H heads, N agents, d width
of a head, D = H d.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

Visible = Literal["step", "before", "self"]
"""Tokens of the own step that a query reads: all, the own and those before it, or only the own."""

CHUNK = 64
"""Tokens of a step that the chunkwise form compares pair by pair. A chunk reads earlier chunks through their state."""
NORM_EPS = 1e-6


def head_decay(heads: int, scale: float) -> Tensor:
    """Return the decay per step of each head, (H,): scale (1 - exp(linspace(log 1/32, log 1/512, H)))."""
    return scale * (1.0 - torch.linspace(math.log(1 / 32), math.log(1 / 512), heads).exp())


def retain_recurrent(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor,
    episode_start: Tensor,
    visible: Visible,
) -> tuple[Tensor, Tensor]:
    """Return outputs (G, K, H, N, d) and the state (G, H, d, d) after the segment, token by token.

    `query`, `key` and `value` are (G, K, H, N, d), `decay` (H,), `state` (G, H, d, d) after the step before the
    segment, and `episode_start` (G, K) is True at steps where S restarts at zero.
    """
    outputs = []
    for step in range(query.shape[1]):
        state = (decay[:, None, None] * state).masked_fill(episode_start[:, step, None, None, None], 0.0)
        q, k, v = (x[:, step].unbind(2) for x in (query, key, value))
        added = [k[i].unsqueeze(-1) * v[i].unsqueeze(-2) for i in range(len(k))]
        whole = state + sum(added)
        running, row = state, []
        for i in range(len(q)):
            running = running + added[i]
            seen = {"step": whole, "before": running, "self": state + added[i]}[visible]
            row.append((q[i].unsqueeze(-2) @ seen).squeeze(-2))
        outputs.append(torch.stack(row, 2))
        state = whole
    return torch.stack(outputs, 1), state


def retain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    states: "LayerStates",
    layer: int,
    visible: Visible,
    chunk: int | None = None,
) -> Tensor:
    """Return outputs (B, H, N, d) of `query`, `key` and `value` (B, H, N, d), and update the state of a layer.

    `chunk` tokens of a step, by default CHUNK, are compared pair by pair.
    """
    chunk = chunk or CHUNK
    if visible == "self":
        return states.read(layer, query, (query * key).sum(-1, keepdim=True) * value)
    agents, width = query.shape[2:]
    if visible == "step" and not states.remembers and agents <= width:
        return (query @ key.mT) @ value
    if visible == "step":
        added = key.mT @ value
        return query @ (added + states.before(layer, added) if states.remembers else added)
    if agents <= chunk:
        own = (query @ key.mT).tril() @ value
        return own + query @ states.before(layer, key.mT @ value) if states.remembers else own
    padding = -agents % chunk
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, chunk)) for x in (query, key, value))
    added = k.mT @ v  # (B, H, chunks, d, d)
    total = added.cumsum(2)
    earlier = total - added
    if states.remembers:
        earlier = earlier + states.before(layer, total[:, :, -1]).unsqueeze(2)
    return ((q @ k.mT).tril() @ v + q @ earlier).flatten(2, 3)[:, :, :agents]


class LayerStates:
    """States of all retention layers during one forward pass over G segments of K steps.

    `past` (G, layers H, d d) is the recurrent state before each segment, or None to forget everything after each step.
    `episode_start` (B,) is True at rows where an episode starts.
    """

    def __init__(
        self, past: Tensor | None, decay: Tensor, episode_start: Tensor | None, steps: int, layers: int
    ) -> None:
        self.remembers, self.steps = past is not None, steps
        self.after: list[Tensor | None] = [None] * layers
        if past is None or episode_start is None:
            return
        heads, width = len(decay), round(past.shape[-1] ** 0.5)
        self.past = past.view(len(past), layers, heads, width, width).unbind(1)
        # Position 0 is the state before the segment, position u > 0 the tokens of step u - 1.
        episode = F.pad(episode_start.view(-1, steps).cumsum(1), (1, 0))  # (G, K + 1)
        distance = torch.arange(1, steps + 1, device=decay.device).unsqueeze(-1) - torch.arange(
            steps, device=decay.device
        )
        same = episode[:, 1:, None] == episode[:, None, :-1]  # (G, K, K)
        powers = decay[:, None, None] ** distance.clamp(min=0)
        self.weights = powers * ((distance > 0) & same).unsqueeze(1)  # (G, H, K, K)

    def before(self, layer: int, added: Tensor) -> Tensor:
        """Return the decayed state (B, H, d, d) that the rows read, zero at episode starts.

        `added` (B, H, d, d) is what the tokens of each row add. Stores the state after each segment.
        """
        added = added.unflatten(0, (-1, self.steps))  # (G, K, H, d, d)
        entering = torch.cat([self.past[layer].unsqueeze(1), added[:, :-1]], 1)
        before = torch.matmul(self.weights, entering.transpose(1, 2).flatten(3)).transpose(1, 2)
        before = before.view_as(added)
        self.after[layer] = before[:, -1] + added[:, -1]
        return before.flatten(0, 1)

    def read(self, layer: int, query: Tensor, own: Tensor) -> Tensor:
        """Return `own` (E, H, N, d) plus what `query` (E, H, N, d) reads of the states before single steps."""
        if not self.remembers:
            return own
        return own + query @ (self.weights * self.past[layer])

    def start(self, layer: int, like: Tensor) -> Tensor:
        """Return the state (E, H, d, d) before single steps of E rows, for token by token; `like` (E, H, d)."""
        if not self.remembers:
            return like.new_zeros(*like.shape, like.shape[-1])
        return self.weights * self.past[layer]

    def recurrent_state(self) -> Tensor | None:
        """Return the states (G, layers H, d d) after each segment, or None if nothing is remembered."""
        if not self.remembers:
            return None
        states = [state for state in self.after if state is not None]
        return torch.cat(states, 1).flatten(2)


class Retention(nn.Module):
    """Multi-head retention with a normalization of each head and a gate.

    The five projections have no bias. Their weights are normal with standard deviation 1 / D. Keys are scaled by
    1 / sqrt(d). The normalization makes the scale of the state irrelevant. The gate reads what the keys read.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        layers = [nn.Linear(width, width, bias=False) for _ in range(5)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=1.0 / width)
        self.query, self.key, self.value, self.gate, self.out = layers
        self.norm = nn.GroupNorm(heads, width, eps=NORM_EPS)

    def split_heads(self, x: Tensor) -> Tensor:
        """Return (B, H, N, d) of (B, N, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, x: Tensor, y: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of `x` and keys and values of `y`, (B, H, N, d). Keys are zero unless `alive` (B, N)."""
        key = self.key(y).masked_fill(~alive.unsqueeze(-1), 0.0)
        key = self.split_heads(key)
        return self.split_heads(self.query(x)), key * key.shape[-1] ** -0.5, self.split_heads(self.value(y))

    def finish(self, mixture: Tensor, y: Tensor) -> Tensor:
        """Return (B, N, D) of the heads' outputs (B, H, N, d), normalized and gated by `y` (B, N, D)."""
        mixture = mixture.transpose(1, 2).flatten(2)
        normalized = self.norm(mixture.flatten(0, 1)).view_as(mixture)
        return self.out(F.silu(self.gate(y)) * normalized)

    def forward(self, x: Tensor, y: Tensor, alive: Tensor, states: LayerStates, layer: int, visible: Visible) -> Tensor:
        """Return (B, N, D): queries from `x` (B, N, D), keys, values and gate from `y` (B, N, D)."""
        return self.finish(retain(*self.project(x, y, alive), states, layer, visible), y)

    def next_token(self, x: Tensor, y: Tensor, alive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output (E, 1, D) and the new state, of one token `x`, `y` (E, 1, D) and `state` (E, H, d, d)."""
        query, key, value = self.project(x, y, alive)
        state = state + key.mT @ value
        return self.finish(query @ state, y), state
