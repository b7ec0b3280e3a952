"""Ids of prompts and of candidate sets. This is the only place where text becomes tokens.

Rollouts store the ids, so an update reads the tokens that were sampled and never tokenizes.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

from marl.agents.lm.candidate_trie import Tokens, Trie, build_trie
from marl.agents.lm.conversation import History, Turn, keep_ids
from marl.agents.lm.prompt_store import PromptStore
from marl.agents.lm.tokenizer import Overflow, Tokenizer, fit_prompt
from marl.errors import ConfigError, EnvironmentContractError
from marl.messages import Message, parse_messages, plain_text

LOGGER = logging.getLogger("marl")
FREE = -1
"""Candidate set id of free text: no candidates."""
AgentAction = tuple[int, Tokens]
"""An agent and the tokens of its action."""


class Window(NamedTuple):
    """Earlier turns of a conversation that a prompt holds.

    `turns` and `tokens` limit their number and the ids of the prompt; None is no limit.
    """

    history: History = "none"
    turns: int | None = None
    tokens: int | None = None


class PromptTurn(NamedTuple):
    """Origin of a conversation's prompt: the context before it, the new messages, and the number of dropped turns."""

    context: int
    messages: Turn
    dropped: int


class PromptTable:
    """Ids of prompts and candidate sets.

    A *context* is a prompt and the ids that were sampled after it. Context 0 is the beginning of an episode.

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
        window: Window | None = None,
        conversation: bool = False,
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
        self.tail = common_length(tokenizer.prompt("a")[::-1], tokenizer.prompt("b")[::-1])
        self.names = speakers
        self.window, self.conversation = window or Window(), conversation
        self.summarize: Callable[[Sequence[Message]], str] | None = None
        """Summary of the messages of turns that a window has dropped, put before the first turn that is left."""
        self.prompts = PromptStore()
        self.turns: dict[int, PromptTurn] = {}
        self.contexts: dict[int, tuple[int, Tokens]] = {}
        self.observations: dict[int, str] = {}
        self.dropped_turns = 0
        self.texts: dict[int, str] = {}
        self.tries: dict[int, Trie] = {}
        self.cut, self.equal = 0, False
        self._known: dict[Any, int] = {}
        self._next = 1
        self._markup = functools.lru_cache(4096)(tokenizer.markup)

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

    def observation_id(self, text: str) -> int:
        """Return the id of an observation, of which `prompt_after` makes a prompt."""
        key = ("observation", text)
        number = self._known.get(key)
        return self._add(key, self.observations, text) if number is None else number

    def context_id(self, prompt: int, tokens: Tokens) -> int:
        """Return the id of the context of a prompt and the ids sampled after it."""
        key = ("context", prompt, tokens)
        number = self._known.get(key)
        return self._add(key, self.contexts, (prompt, tokens)) if number is None else number

    def prompt_after(self, context: int, observation: int) -> int:
        """Return the id of the prompt of an observation that follows a context."""
        return self._prompt_after(context, self._messages(self.observations[observation]))

    def turns_of(self, context: int) -> tuple[list[Turn], list[Tokens]]:
        """Return the messages of all turns before a context, and the ids sampled in each."""
        turns: list[Turn] = []
        answers: list[Tokens] = []
        while context:
            prompt, tokens = self.contexts[context]
            context, messages, _ = self.turns[prompt]
            turns.append(messages)
            answers.append(tokens)
        return turns[::-1], answers[::-1]

    def context_of(self, turns: Sequence[Turn], answers: Sequence[Tokens]) -> int:
        """Return the id of the context with these turns, as `turns_of` returns them."""
        context = 0
        for messages, tokens in zip(turns, answers, strict=True):
            context = self.context_id(self._prompt_after(context, messages), tokens)
        return context

    def _messages(self, observation: str) -> Turn:
        return parse_messages(observation) if self.conversation else (Message("user", observation),)

    def _prompt_after(self, context: int, messages: Turn) -> int:
        """Return the id of a prompt.

        Raises ConfigError if the conversation has outgrown the model's context and nothing may be dropped.
        """
        key = ("prompt", context, messages)
        number = self._known.get(key)
        if number is not None:
            return number
        turns, answers = self.turns_of(context)
        parent = self.contexts[context][0] if context else -1
        dropped = self.turns[parent].dropped if context else 0
        window, before = self.window, dropped
        if window.history == "turns" and window.turns is not None:
            dropped = max(dropped, len(turns) - window.turns)
        limit = self.room if window.tokens is None else min(window.tokens, self.room)
        while True:
            ids = self._assemble([*turns, messages], answers, dropped)
            if len(ids) <= limit or (dropped == len(turns) and len(ids) <= self.room):
                break
            if window.history != "tokens" and self.overflow == "error":
                raise ConfigError(
                    f"a conversation of {len(turns) + 1} turns has {len(ids)} tokens and the model has room for "
                    f"{self.room}; drop old turns with --history tokens or --history turns, or take a model of longer "
                    "context"
                )
            if dropped == len(turns):
                ids, _ = fit_prompt(self.tokenizer, plain_text(messages), self.room, self.overflow)
                break
            dropped += 1
        self.dropped_turns += dropped - before
        number = self._next
        self._next += 1
        self._known[key] = number
        self.prompts.add_below(number, ids, parent)
        self.turns[number] = PromptTurn(context, messages, dropped)
        self.texts[number] = plain_text(messages)
        return number

    def _assemble(self, turns: Sequence[Turn], answers: Sequence[Tokens], dropped: int) -> Tokens:
        """Return the ids of a conversation without its first `dropped` turns; their system messages stay."""
        gone = turns[:dropped]
        first = tuple(message for turn in gone for message in turn if message.role == "system")
        if gone and self.summarize is not None:
            first += (Message("user", self.summarize(self._spoken(gone, answers[:dropped]))),)
        shown = [(*first, *turns[dropped]), *turns[dropped + 1 :]]
        kept = answers[dropped:]
        tokenizer, ends = self.tokenizer, self.tokenizer.ends
        rendering = tokenizer.render(shown, [tokenizer.raw(tokens) for tokens in kept])
        ids = list(self._markup(rendering.between[0], shown[0], True))
        for tokens, text, after, turn in zip(kept, rendering.shown, rendering.between[1:], shown[1:], strict=True):
            own = keep_ids(tokens, text, tokenizer.raw, tokenizer.action, ends)
            markup = self._markup(after, turn, False)
            if own and own[-1] in ends and markup[:1] == own[-1:]:
                own = own[:-1]
            ids += [*own, *markup]
        return tuple(ids)

    def _spoken(self, turns: Sequence[Turn], answers: Sequence[Tokens]) -> list[Message]:
        """Return all messages of turns, the agent's own included."""
        spoken: list[Message] = []
        for turn, tokens in itertools.zip_longest(turns, answers):
            spoken += [*turn, Message("assistant", self.tokenizer.decode(tokens))]
        return spoken

    def extend(self, prompt: int, actions: tuple[AgentAction, ...]) -> int:
        """Return the id of a prompt with the actions of other agents appended, one per line."""
        if prompt in self.turns:
            context, messages, _ = self.turns[prompt]
            said = [Message("user", f"{self.names[a]}: {self.tokenizer.decode(tokens)}") for a, tokens in actions]
            return self._prompt_after(context, (*messages, *said))
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

    def evict_except(self, prompts: set[int], choices: set[int], observations: Container[int] = ()) -> None:
        """Drop all other ids, except what comes before `prompts` in their conversations. They are not used again."""
        origins = set(prompts)
        for number in prompts:
            while number in self.turns and self.turns[number].context:
                number = self.contexts[self.turns[number].context][0]
                if number in origins:
                    break
                origins.add(number)
        self.prompts.keep(origins)
        self.texts = {n: text for n, text in self.texts.items() if n in self.prompts}
        self.tries = {n: trie for n, trie in self.tries.items() if n in choices}
        self.turns = {n: turn for n, turn in self.turns.items() if n in self.prompts}
        self.contexts = {n: context for n, context in self.contexts.items() if context[0] in self.prompts}
        self.observations = {n: text for n, text in self.observations.items() if n in observations}
        tables = (self.prompts, self.tries, self.contexts, self.observations)
        self._known = {key: n for key, n in self._known.items() if any(n in table for table in tables)}

    def _add(self, key: Any, table: Any, value: Any) -> int:
        number = self._next
        self._next += 1
        self._known[key] = number
        table[number] = value
        return number


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right)))
