"""Ids of prompts and of candidate sets. This is the only place where text becomes tokens.

Rollouts store the ids, so an update reads the tokens that were sampled and never tokenizes.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from marl.agents.lm.candidate_trie import Tokens, Trie, build_trie
from marl.agents.lm.tokenizer import Overflow, Tokenizer, fit_prompt
from marl.errors import ConfigError, EnvironmentContractError

LOGGER = logging.getLogger("marl")
FREE = -1
"""Candidate set id of free text: no candidates."""
AgentAction = tuple[int, Tokens]
"""An agent and the tokens of its action."""


class PromptTable:
    """Ids of prompts and candidate sets.

    `context` is the number of tokens of a prompt and an action together, and `slots` the maximum of an action. `end`
    ends a candidate that is a prefix of another, see `build_trie`. `speakers` are the agents whose actions may be
    appended to a prompt. Raises ConfigError if the context leaves no room for a prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: int,
        slots: int,
        end: int | None,
        overflow: Overflow,
        speakers: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.slots, self.end = tokenizer, slots, end
        self.overflow: Overflow = overflow
        self.labels = [tokenizer.action(f"\n{name}: ") for name in speakers]
        self.room = context - slots - sum(len(label) + slots for label in self.labels[:-1])
        if self.room < 1:
            raise ConfigError(
                f"the model's context of {context} tokens leaves no room for a prompt beside "
                f"{max(1, len(speakers))} actions of up to {slots} tokens; lower --max-action-tokens"
            )
        # Two prompts agree in what the chat template puts behind them.
        self.tail = _agree(tokenizer.prompt("a")[::-1], tokenizer.prompt("b")[::-1])
        self.prompts: dict[int, Tokens] = {}
        self.texts: dict[int, str] = {}
        self.tries: dict[int, Trie] = {}
        self.cut, self.equal = 0, False
        self._known: dict[Any, int] = {}
        self._next = 0

    def prompt_id(self, text: str) -> int:
        """Return the id of a prompt, cut to the context if allowed. Raises ConfigError if it does not fit."""
        number = self._known.get(text)
        if number is None:
            ids, cut = fit_prompt(self.tokenizer, text, self.room, self.overflow)
            if cut:
                self.cut += 1
                if self.cut & (self.cut - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                    LOGGER.warning(
                        "prompts too long so far: %d; of this one the first %d characters were cut off", self.cut, cut
                    )
            number = self._add(text, self.prompts, ids)
            self.texts[number] = text
        return number

    def extend(self, prompt: int, actions: tuple[AgentAction, ...]) -> int:
        """Return the id of a prompt with the actions of other agents appended, one per line."""
        key = (prompt, actions)
        number = self._known.get(key)
        if number is None:
            ids = self.prompts[prompt]
            middle = len(ids) - self.tail
            lines = [
                token for agent, tokens in actions for token in (*self.labels[agent], *self.tokenizer.quote(tokens))
            ]
            number = self._add(key, self.prompts, (*ids[:middle], *lines, *ids[middle:]))
            self.texts[number] = self.texts[prompt] + self.tokenizer.decode(lines)
        return number

    def candidate_set_id(self, texts: Iterable[str] | None) -> int:
        """Return the id of a candidate set, FREE for None. Raises EnvironmentContractError for an empty set."""
        if texts is None:
            return FREE
        texts = tuple(texts)
        number = self._known.get(texts)
        if number is None:
            if not texts:
                raise EnvironmentContractError("an agent is offered no candidate action; leave one even to the dead")
            trie = build_trie(texts, [self.tokenizer.action(text) for text in texts], self.end, self.slots)
            if len(trie.paths) < len(texts) and not self.equal:
                self.equal = True
                LOGGER.warning(
                    "of the candidate actions %.200s some are equal, or the same tokens to the model; each counts once "
                    "(said once)",
                    list(texts),
                )
            number = self._add(texts, self.tries, trie)
        return number

    def evict_except(self, prompts: set[int], choices: set[int]) -> None:
        """Drop all other ids. They are not used again."""
        self.prompts = {n: ids for n, ids in self.prompts.items() if n in prompts}
        self.texts = {n: text for n, text in self.texts.items() if n in prompts}
        self.tries = {n: trie for n, trie in self.tries.items() if n in choices}
        self._known = {key: n for key, n in self._known.items() if n in self.prompts or n in self.tries}

    def _add(self, key: Any, table: dict[int, Any], value: Any) -> int:
        number = self._next
        self._next += 1
        self._known[key] = number
        table[number] = value
        return number


def _agree(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right)))
