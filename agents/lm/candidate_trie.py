"""Tries of tokens over the candidate actions, and several tries laid out flat for one forward pass.

A *state* is a prefix that continues. State 0 is the end of the prompt, the others follow an edge. An *edge* adds one
token to a state. A candidate is a path of edges. Probabilities belong to edges and are normalized over the edges that
leave the same state. So a single edge has log-probability 0, and no path leads to an action that is not allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from marl.errors import ConfigError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Trie:
    """C candidate actions as paths through S states and M edges.

    `token`, `source` (M,) are an edge's token and the state it leaves. `entry` (S,) is the edge that leads to a state,
    -1 for state 0, and `depth` (S,) the number of edges before it. `paths` lists the edges of each candidate. With
    `free` nothing restricts the tokens, and the paths are what was sampled. `index` finds a candidate by its tokens.
    """

    texts: tuple[str, ...]
    token: np.ndarray
    source: np.ndarray
    entry: np.ndarray
    depth: np.ndarray
    paths: tuple[Tokens, ...]
    free: bool = False
    index: dict[Tokens, int] = field(default_factory=dict, repr=False)

    @property
    def states(self) -> int:
        """Number of states S."""
        return len(self.entry)

    def tokens(self, candidate: int) -> Tokens:
        """Return the tokens of a candidate, as they are sampled and stored."""
        return tuple(self.token[list(self.paths[candidate])].tolist())

    def inner(self) -> tuple[np.ndarray, np.ndarray]:
        """Return token and parent of states 1 to S-1. Parent -1 is the prompt, and i the i-th of these states."""
        edges = self.entry[1:]
        return self.token[edges], self.source[edges] - 1


def build_trie(texts: Sequence[str], tokens: Sequence[Tokens], end: int | None, limit: int, free: bool = False) -> Trie:
    """Return the trie of candidates `texts` with `tokens`.

    A candidate that is empty or a prefix of another ends with the token `end`. If `end` is None, candidates may end
    inside others. Candidates with equal tokens count once, with the first one's text. Raises ConfigError for a
    candidate of more than `limit` tokens, and for an empty one if `end` is None.
    """
    prefixes = {ids[:n] for ids in tokens for n in range(len(ids))}
    edges: dict[tuple[int, int], int] = {}
    states: dict[int, int] = {-1: 0}
    token: list[int] = []
    source: list[int] = []
    entry, depth = [-1], [0]
    kept: dict[Tokens, int] = {}
    names: list[str] = []
    paths: list[Tokens] = []
    for text, ids in zip(texts, tokens, strict=True):
        if not free and end is not None and (not ids or ids in prefixes):
            ids = (*ids, end)
        if len(ids) > limit:
            raise ConfigError(
                f"the action {text!r:.80} has {len(ids)} tokens, more than max_action_tokens, {limit}; "
                f"use --max-action-tokens {len(ids)} or more"
            )
        if not ids:
            raise ConfigError(
                f"the action {text!r} has no tokens, so nothing says how likely it is; give it words, or take an agent "
                "that closes actions with a token, such as poad"
            )
        if ids in kept:
            continue
        path: list[int] = []
        edge = -1
        for piece in ids:
            if edge not in states:
                states[edge] = len(entry)
                entry.append(edge)
                depth.append(len(path))
            state = states[edge]
            edge = edges.setdefault((state, piece), len(token))
            if edge == len(token):
                token.append(piece)
                source.append(state)
            path.append(edge)
        kept[ids] = len(paths)
        names.append(text)
        paths.append(tuple(path))
    t, s, e, d = (np.array(x, np.int64) for x in (token, source, entry, depth))
    return Trie(tuple(names), t, s, e, d, tuple(paths), free, kept)


@dataclass(frozen=True)
class FlatTries:
    """P tries laid out flat, one after the other: S states and M edges.

    `source` (M,) is the flat state that an edge leaves. `root` (P,) is the flat state at the end of each prompt.
    `free` (S,) marks states that allow the whole vocabulary, `branching` (S,) states with a choice. `depth` (S,) is the
    number of tokens between a state and its prompt.
    """

    tries: tuple[Trie, ...]
    token: Tensor
    source: Tensor
    root: Tensor
    free: Tensor
    branching: Tensor
    depth: Tensor
    first_edge: np.ndarray

    @property
    def states(self) -> int:
        """Number of states S."""
        return self.free.shape[0]

    def rows(self, tree: np.ndarray, candidate: np.ndarray, slots: int) -> tuple[Tensor, Tensor]:
        """Return flat edges (K, L) of K candidates, `candidate[k]` of trie `tree[k]`, and the mask (K, L) of edges."""
        edges = np.zeros((len(tree), slots), np.int64)
        mask = np.zeros((len(tree), slots), bool)
        for k, (t, c) in enumerate(zip(tree.tolist(), candidate.tolist(), strict=True)):
            path = self.tries[t].paths[c]
            edges[k, : len(path)] = path
            edges[k, : len(path)] += self.first_edge[t]
            mask[k, : len(path)] = True
        device = self.token.device
        return torch.from_numpy(edges).to(device), torch.from_numpy(mask).to(device)


def flatten_tries(tries: Sequence[Trie], device: torch.device) -> FlatTries:
    """Return the tries laid out flat, on `device`."""
    states = np.array([trie.states for trie in tries])
    first_state = np.concatenate([[0], states.cumsum()])[:-1]
    first_edge = np.concatenate([[0], np.cumsum([len(trie.token) for trie in tries])])[:-1]
    source = np.concatenate([trie.source + first for trie, first in zip(tries, first_state, strict=True)])
    free = np.array([trie.free for trie in tries]).repeat(states)
    branching = free | (np.bincount(source, minlength=len(free)) > 1)
    token = np.concatenate([trie.token for trie in tries])
    depth = np.concatenate([trie.depth for trie in tries])
    flat = [torch.from_numpy(x).to(device) for x in (token, source, first_state, free, branching, depth)]
    return FlatTries(tuple(tries), flat[0], flat[1], flat[2], flat[3], flat[4], flat[5], first_edge)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` (M,) of `x` (S, H).

    The gradient is deterministic. That of `x[index]` is summed by several threads in varying order.
    """
    return F.embedding(index, x)


def segment_sum(x: Tensor, segment: Tensor, count: int) -> Tensor:
    """Return the sum (count,) of the entries of `x` (M,) in each segment, given each entry's `segment` (M,)."""
    return x.new_zeros(count).index_add(0, segment, x)


def segment_logsumexp(x: Tensor, segment: Tensor, count: int) -> Tensor:
    """Return the log-sum-exp (count,) of each segment; -inf for an empty one."""
    top = x.detach().new_full((count,), float("-inf")).scatter_reduce(0, segment, x.detach(), "amax")
    return segment_sum((x - top[segment]).exp(), segment, count).log() + top
