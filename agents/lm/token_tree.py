"""Prompts with a trie of continuations, and batches of them for one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Tree:
    """A prompt and the trie of tokens that may follow it.

    `prompt`: P >= 1 token ids. `tokens`: the K ids of the trie's nodes. `parents`: K indices of nodes, each smaller
    than its own, or -1 where a node follows the prompt. K = 0 is a prompt alone; a trie that is one path is plain
    teacher forcing, see `path`.

    A node's feature says what may follow the node, so the log-probability of a token needs its parent only. Leave
    the leaves out (of a path, the last token), unless their features are read.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a tree's prompt is empty; the first token of an action needs one before it")
        if len(self.tokens) != len(self.parents):
            raise ValueError(f"a tree has {len(self.tokens)} tokens and {len(self.parents)} parents; give one each")
        if any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError(f"parents are {self.parents}; each is -1 or the index of an earlier node")

    @classmethod
    def path(cls, prompt: Sequence[int], tokens: Sequence[int]) -> "Tree":
        """Return a prompt with one continuation."""
        return cls(tuple(prompt), tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    @property
    def length(self) -> int:
        """Positions that a forward pass computes, P + K."""
        return len(self.prompt) + len(self.tokens)

    @property
    def rows(self) -> int:
        """Rows of features, K + 1: the last prompt token and every node."""
        return len(self.tokens) + 1

    @cached_property
    def ancestors(self) -> np.ndarray:
        """Mask (K, K) bool: row k is True at node k and its ancestors."""
        seen = np.eye(len(self.parents), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    @property
    def positions(self) -> np.ndarray:
        """Positions (P + K,) int64: a node's position behind the prompt and its ancestors alone."""
        depth = self.ancestors.sum(-1, dtype=np.int64)
        return np.concatenate([np.arange(len(self.prompt)), len(self.prompt) - 1 + depth])

    @property
    def visible(self) -> np.ndarray:
        """Attention mask (P + K, P + K) bool: the row's token attends to the column's."""
        start = len(self.prompt)
        mask = np.tri(self.length, dtype=bool)
        mask[start:, start:] = self.ancestors
        return mask


def merge(trees: Sequence[Tree], limit: int) -> list[tuple[Tree, list[tuple[int, np.ndarray]]]]:
    """Merge trees whose prompts begin alike, so that a token that several share is read once.

    Returns merged trees. Beside each stand the indices of its members, with each member's rows of features (K + 1,)
    among the rows of the merged tree. A merged tree has at most `limit` tokens, unless one member alone is longer.
    """
    groups: list[_Merger] = []
    for index in sorted(range(len(trees)), key=lambda i: trees[i].prompt):
        tree = trees[index]
        if not (groups and groups[-1].add(index, tree, limit)):
            groups.append(_Merger(index, tree))
    return [(group.tree(), group.members()) for group in groups]


class _Merger:
    """A trie of all tokens of several trees. Node 0 is the first token of their prompts."""

    def __init__(self, index: int, tree: Tree) -> None:
        self.token, self.parent = [tree.prompt[0]], [-1]
        self.children: dict[tuple[int, int], int] = {}
        self.trunk = len(tree.prompt)
        self.last = tree.prompt
        self.nodes: list[tuple[int, list[int]]] = []
        self._insert(index, tree)

    def add(self, index: int, tree: Tree, limit: int) -> bool:
        """Add a tree, unless it shares less than half of its prompt or the result is too long."""
        pairs = zip(self.last, tree.prompt, strict=False)
        shared = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(self.last), len(tree.prompt)))
        if 2 * shared < len(tree.prompt) or len(self.token) + tree.length - shared > limit:
            return False
        self.trunk, self.last = min(self.trunk, shared), tree.prompt
        self._insert(index, tree)
        return True

    def _insert(self, index: int, tree: Tree) -> None:
        node = 0
        for token in tree.prompt[1:]:
            node = self._child(node, token)
        nodes = [node]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            nodes.append(self._child(nodes[parent + 1], token))
        self.nodes.append((index, nodes))

    def _child(self, node: int, token: int) -> int:
        child = self.children.setdefault((node, token), len(self.token))
        if child == len(self.token):
            self.token.append(token)
            self.parent.append(node)
        return child

    def tree(self) -> Tree:
        """Return the merged tree, whose prompt is what all prompts begin with."""
        trunk = self.trunk
        parents = [max(parent - trunk, -1) for parent in self.parent[trunk:]]
        return Tree(tuple(self.token[:trunk]), tuple(self.token[trunk:]), tuple(parents))

    def members(self) -> list[tuple[int, np.ndarray]]:
        """Return the index and the rows of features of every member."""
        return [(index, np.array(nodes) - self.trunk + 1) for index, nodes in self.nodes]


def padded(length: int) -> int:
    """Return the padded length of a tree: a few per cent more, so that many trees share one length.

    It depends on nothing else, because kernels round differently for batches of other sizes.
    """
    multiple = 16 if length <= 256 else 64
    return length + -length % multiple


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return groups of indices whose trees have one padded length, of at most `budget` padded tokens each.

    A tree longer than the budget has its own group. Every index appears once. Indices keep their order within a group,
    and groups are ordered by length.
    """
    sizes: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        sizes.setdefault(padded(length), []).append(index)
    groups: list[list[int]] = []
    for size, members in sorted(sizes.items()):
        count = max(1, budget // size)
        groups += [members[start : start + count] for start in range(0, len(members), count)]
    return groups


def pack(trees: Sequence[Tree], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B trees padded on the right to S: ids (B, S), positions (B, S), attention mask (B, S, S).

    Padding attends to itself alone, so that no attention row is empty, and nothing attends to padding.
    """
    size = (len(trees), padded(max(tree.length for tree in trees)))
    ids, positions = np.full(size, pad, dtype=np.int64), np.zeros(size, dtype=np.int64)
    visible = np.tile(np.eye(size[1], dtype=bool), (size[0], 1, 1))
    for row, tree in enumerate(trees):
        ids[row, : tree.length] = tree.prompt + tree.tokens
        positions[row, : tree.length] = tree.positions
        visible[row, : tree.length, : tree.length] = tree.visible
    return ids, positions, visible
