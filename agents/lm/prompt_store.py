"""Storage of prompts: each holds the ids that its parent lacks."""

from collections import OrderedDict
from collections.abc import Container, Iterator

from marl.agents.lm.candidate_trie import Tokens

MAX_WHOLE = 1024
"""Number of prompts that are kept whole, so that they need not be joined again."""


class PromptStore:
    """Prompts by id. The prompt of a conversation's later turn is its parent's prompt and new ids.

    Memory grows with new ids, not with turns times length.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, Tokens]] = {}
        self._whole: OrderedDict[int, Tokens] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __getitem__(self, number: int) -> Tokens:
        parent, own = self._entries[number]
        if parent < 0:
            return own
        if number in self._whole:
            self._whole.move_to_end(number)
            return self._whole[number]
        parts = [own]
        while parent >= 0:
            parent, own = self._entries[parent]
            parts.append(own)
        whole = tuple(token for part in reversed(parts) for token in part)
        self._remember(number, whole)
        return whole

    def __setitem__(self, number: int, ids: Tokens) -> None:
        self._entries[number] = (-1, ids)

    def add_below(self, number: int, ids: Tokens, ancestor: int) -> None:
        """Store a prompt below `ancestor` or the nearest prompt above it whose ids it begins with."""
        while ancestor >= 0:
            whole = self[ancestor]
            if ids[: len(whole)] == whole:
                self._entries[number] = (ancestor, ids[len(whole) :])
                self._remember(number, ids)
                return
            ancestor = self._entries[ancestor][0]
        self[number] = ids

    def keep(self, numbers: Container[int]) -> None:
        """Drop all prompts except `numbers` and those that they begin with."""
        kept: set[int] = set()
        for number in self._entries:
            if number in numbers:
                while number >= 0 and number not in kept:
                    kept.add(number)
                    number = self._entries[number][0]
        self._entries = {n: entry for n, entry in self._entries.items() if n in kept}
        self._whole.clear()

    @property
    def stored_ids(self) -> int:
        """Number of ids in memory, without the prompts that are kept whole."""
        return sum(len(own) for _, own in self._entries.values())

    def _remember(self, number: int, whole: Tokens) -> None:
        self._whole[number] = whole
        if len(self._whole) > MAX_WHOLE:
            self._whole.popitem(last=False)
