"""What the language agents ask of a tokenizer, and the one around Hugging Face's."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from marl.errors import ConfigError

Overflow = Literal["error", "cut"]
"""A prompt that is longer than there is room for: an error, or its beginning is cut off."""


class Tokenizer(Protocol):
    """Prompts and actions to ids. Ids of a prompt and of an action are concatenated, never tokenised as one text.

    `size`: V, the ids lie below it. `pad`, `end`: ids of padding and of the end of an action.
    """

    size: int
    pad: int
    end: int

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, at least one, with whatever must stand before and behind its text."""
        ...

    def action(self, text: str) -> tuple[int, ...]:
        """The ids of what the model answers, without an end token; none for an empty text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, up to the first end token."""
        ...


class PretrainedTokenizer:
    """A tokenizer of a pretrained model. `name` is the model's, for messages.

    With `chat`, a prompt is the user's message of the model's template; without, it is plain text, and the space
    between it and an action belongs to the action. Raises ConfigError for a tokenizer without an end token.
    """

    def __init__(self, tokenizer: Any, name: str, chat: Literal["auto", "off"]) -> None:
        self._tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer of model {name} has no end token; set eos_token in tokenizer_config.json")
        self.end = int(tokenizer.eos_token_id)
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.size = len(tokenizer)
        self.chat = chat == "auto" and bool(tokenizer.chat_template)
        self._before = "" if self.chat else self._space()

    def _space(self) -> str:
        """What an action starts with so that prompt and action read as one text: sentencepiece adds its own space."""
        whole = self._ids("go north")
        return next((space for space in (" ", "") if self._ids("go") + self._ids(space + "north") == whole), " ")

    def _ids(self, text: str, special: bool = False) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def prompt(self, text: str) -> tuple[int, ...]:
        if not self.chat:
            return self._ids(text, special=True) or (self.end,)
        message = [{"role": "user", "content": text}]
        return self._ids(self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def action(self, text: str) -> tuple[int, ...]:
        return self._ids(self._before + text) if text else ()

    def decode(self, ids: Sequence[int]) -> str:
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()


def fit_prompt(tokenizer: Tokenizer, text: str, room: int, overflow: Overflow) -> tuple[tuple[int, ...], int]:
    """A prompt's ids, at most `room`, and how many characters were cut from the left of its text to make it fit.

    The template around the text is never cut. Raises ConfigError where the prompt does not fit and may not be cut,
    or where not even the empty text fits.
    """
    ids = tokenizer.prompt(text)
    if len(ids) <= room:
        return ids, 0
    if overflow == "error":
        raise ConfigError(
            f"a prompt has {len(ids)} tokens and the model has room for {room}; let the environment write less, take a "
            f"model of longer context, or cut prompts from the left (--prompt-overflow cut). It starts: {text[:80]!r}"
        )
    cut = _least(lambda start: len(tokenizer.prompt(text[start:])) <= room, len(text))
    ids = tokenizer.prompt(text[cut:])
    if len(ids) > room:
        raise ConfigError(f"the model has room for {room} tokens, and an empty prompt already has {len(ids)}")
    return ids, cut


def _least(holds: Callable[[int], bool], high: int) -> int:
    """The least number up to `high` from which on the property holds, or `high`."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
