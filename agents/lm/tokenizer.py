"""Interface of tokenizers, and the adapter of Hugging Face tokenizers."""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from marl.agents.lm.conversation import CONTENT, Rendering, Turn, merged_users, render_chat
from marl.errors import ConfigError
from marl.messages import Message, plain_text

Overflow = Literal["error", "cut"]
"""Treatment of a prompt that is too long: raise an error, or cut its beginning."""

MARKUP = re.compile(r"[<\[].*[>\]]", re.DOTALL)
"""An added token of this form, such as <think> or [INST], is a control token even if it is not declared special."""
FIXED_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Prefix of chat templates, so that prompts with a date do not depend on the day."""


class Tokenizer(Protocol):
    """Prompts and actions to ids. Ids of a prompt and of an action are concatenated, never tokenized as one text.

    Text never becomes a control token: `<|im_end|>` in a prompt or an action is the ids of its characters.

    `size` is V, and ids are below it. `pad` and `end` are the ids of padding and of the end of an action.
    `ends` are all ids that end an answer, including `end`.
    """

    size: int
    pad: int
    end: int
    ends: tuple[int, ...]

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a prompt, at least one, with the markup before and after its text."""
        ...

    def action(self, text: str) -> tuple[int, ...]:
        """Return the ids of an action, without an end token; none for an empty text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids before the first end token, stripped."""
        ...

    def raw(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids before the first end token, with its spaces."""
        ...

    def quote(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of an answer as part of a prompt, without control tokens."""
        ...

    def render(self, turns: Sequence[Turn], answers: Sequence[str]) -> Rendering:
        """Return the text of a conversation of T turns and T - 1 answers, taken apart."""
        ...

    def markup(self, text: str, turn: Turn, first: bool) -> tuple[int, ...]:
        """Return the ids of a text between two answers, which holds the messages of `turn`; `first`: of the first."""
        ...


class PretrainedTokenizer:
    """Tokenizer of a pretrained model. `name` is the model's name in messages.

    With `chat`, a prompt is the user's message of the model's template, behind a message of the role "system" if
    `system` is not empty. A system message that the template would write by itself is left empty. Without `chat`, a
    prompt is plain text, and the space between it and an action belongs to the action.

    Control tokens are those declared special, except the unknown token, and added tokens of the form of `MARKUP`.
    Markup that a template writes in ordinary tokens cannot be told from text.

    `model_ends`: the ids that end an answer by the model's generation config, besides the tokenizer's own.

    Raises ConfigError for a tokenizer without an end token, and for a `system` message without a template that takes
    one.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        chat: Literal["auto", "off"],
        system: str = "",
        model_ends: tuple[int, ...] = (),
    ) -> None:
        self._tokenizer, self._name = tokenizer, name
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer of model {name} has no end token; set eos_token in tokenizer_config.json")
        self.end = int(tokenizer.eos_token_id)
        self.ends = tuple(dict.fromkeys((self.end, *model_ends)))
        self.pad = self.end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.size = len(tokenizer)
        self._special = _special_ids(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._control = self._special | {token for token, piece in added if MARKUP.fullmatch(piece.content)}
        self.chat = chat == "auto" and bool(tokenizer.chat_template)
        self._messages = self._system_messages(system)
        self._own_controls = self._count_own_controls()
        self._before = "" if self.chat else self._space()

    def _system_messages(self, system: str) -> list[dict[str, str]]:
        """The messages before the user's: none where the template adds no system message of its own accord."""
        if not self.chat:
            if system:
                raise ConfigError(f"system={system!r:.80}, but model {self._name} has no chat template to put it in")
            return []
        from jinja2 import TemplateError

        message = {"role": "system", "content": system}
        self._messages = []
        bare = self._template(CONTENT)
        self._messages = [message]
        try:
            with_system = self._template(CONTENT)
        except TemplateError as error:
            with_system = ""
            if system:
                raise ConfigError(
                    f"system={system!r:.80}, but the chat template of model {self._name} takes no system message "
                    f"({error}); leave it out"
                ) from error
        if system and system.strip() not in with_system:
            raise ConfigError(f"system={system!r:.80}, but the chat template of model {self._name} does not show it")
        return [message] if system or 0 < len(with_system) < len(bare) else []

    def _template(self, text: str) -> str:
        """Return a prompt's text inside the template's markup."""
        return self._apply([*self._messages, {"role": "user", "content": text}]) if self.chat else text

    def _apply(self, messages: list[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=FIXED_DATE + self._tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=True,
        )

    def _space(self) -> str:
        """Return the prefix that makes prompt and action read as one text. Sentencepiece adds its own space."""
        whole = self._encode("go north")
        return next((space for space in (" ", "") if self._encode("go") + self._encode(space + "north") == whole), " ")

    def _encode(self, text: str, special: bool = False) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def _count_controls(self, ids: Sequence[int]) -> int:
        return sum(token in self._control for token in ids)

    def _count_own_controls(self) -> tuple[int, int]:
        """Return the number of control tokens before and after a prompt's text."""
        if self.chat:
            before, _, after = self._template(CONTENT).partition(CONTENT)
            return self._count_controls(self._encode(before)), self._count_controls(self._encode(after))
        ids = self._encode("a", special=True)
        before = next((i for i, token in enumerate(ids) if token not in self._control), len(ids))
        return before, self._count_controls(ids[before:])

    def _as_text(self, ids: tuple[int, ...], before: int = 0, after: int = 0) -> tuple[int, ...]:
        """Return ids whose control tokens are spelled in ordinary tokens, but the first `before` and last `after`."""
        last, met = self._count_controls(ids) - after, 0
        if last <= before:
            return ids
        pieces: list[int] = []
        for token in ids:
            if token in self._control:
                met += 1
                pieces += [token] if not before < met <= last else self._spell(token)
            else:
                pieces.append(token)
        return tuple(pieces)

    def _spell(self, control: int) -> tuple[int, ...]:
        """Return a control token's text as ordinary ids."""
        text = self._tokenizer.convert_ids_to_tokens(control)
        for parts in ((text,), (text[:1], text[1:]), text):
            ids = [
                token
                for part in parts
                for token in self._tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
            ]
            if not self._count_controls(ids):
                return tuple(ids)
        return ()

    def prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a prompt, in the chat template if there is one."""
        ids = self._encode(self._template(text), special=not self.chat)
        return self._as_text(ids, *self._own_controls) or (self.end,)

    def action(self, text: str) -> tuple[int, ...]:
        """Return the ids of an action that follows a prompt."""
        return self._as_text(self._encode(self._before + text)) if text else ()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text before the first end token, stripped."""
        return self.raw(ids).strip()

    def raw(self, ids: Sequence[int]) -> str:
        """Return the text before the first end token, as it is."""
        return self._tokenizer.decode(self._until_end(ids), skip_special_tokens=True)

    def quote(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of an action as ordinary text for another prompt."""
        return self._as_text(tuple(token for token in self._until_end(ids) if token not in self._special))

    def render(self, turns: Sequence[Turn], answers: Sequence[str]) -> Rendering:
        """Return the text of a conversation, by the chat template if there is one.

        Roles that a template does not know become the user's. Raises ConfigError if the template hides answers.
        """
        if not self.chat:
            texts = [plain_text(turn) for turn in turns]
            return Rendering((texts[0], *(f"\n{text}" for text in texts[1:])), tuple(answers))

        def render(answers: Sequence[str]) -> str:
            return self._apply(self._chat_messages(turns, answers))

        rendering = render_chat(render, answers)
        if rendering is None:
            between = render([CONTENT] * len(answers)).split(CONTENT)
            if len(between) != len(turns):
                raise ConfigError(
                    f"the chat template of model {self._name} does not show each of {len(answers)} earlier answers "
                    "once; use --chat off"
                )
            rendering = Rendering(tuple(between), tuple(answers))
        return rendering

    def _chat_messages(self, turns: Sequence[Turn], answers: Sequence[str]) -> list[dict[str, str]]:
        """Return the template's messages. The agent's own system message replaces the environment's."""
        messages: list[Message] = []
        for index, turn in enumerate(turns):
            new = [self._known_role(message) for message in turn]
            messages += merged_users(new)
            if index < len(answers):
                messages.append(Message("assistant", answers[index]))
        own = [] if self._messages and self._messages[0]["content"] else messages
        system = [message for message in own if message.role == "system"][:1]
        rest = [message for message in messages if message.role != "system"]
        if rest[0].role == "tool":
            rest[0] = Message("user", rest[0].content)
        begin = [{"role": "system", "content": message.content} for message in system] or self._messages
        return [*begin, *({"role": message.role, "content": message.content} for message in rest)]

    def _known_role(self, message: Message) -> Message:
        content = message.content.replace(CONTENT, "")
        return Message(message.role if self._knows(message.role) else "user", content)

    @functools.cache  # noqa: B019 - a tokenizer lives as long as its run
    def _knows(self, role: str) -> bool:
        """Return True if the template shows messages of a role."""
        before: list[dict[str, str]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        after = [{"role": "user", "content": "a"}] if role == "system" else []
        message = {"role": role, "content": CONTENT}
        try:
            text = self._apply([message, *after] if role in ("system", "user") else [*before, message])
        except Exception:  # whatever a template makes of a role that it does not know
            return False
        return CONTENT in text

    def markup(self, text: str, turn: Turn, first: bool) -> tuple[int, ...]:
        """Return the ids of a text between two answers. Control tokens in the messages become ordinary text."""
        contents = [message.content.replace(CONTENT, "") for message in turn]
        if not any(self._count_controls(self._encode(content)) for content in contents):
            return self._encode(text, special=first and not self.chat) or ((self.end,) if first else ())
        ids: list[int] = []
        for content in contents:
            content = content if content in text else content.strip()
            before, found, after = text.partition(content)
            if found:
                ids += [*self._encode(before), *self._as_text(self._encode(found))]
                text = after
        return (*ids, *self._encode(text))

    def _until_end(self, ids: Sequence[int]) -> list[int]:
        """Return the ids before the first end token, which may be an ordinary token such as a line break."""
        return list(itertools.takewhile(lambda token: token not in self.ends, ids))


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of special tokens, without the unknown token, which stands for text."""
    ids = {token for token, piece in tokenizer.added_tokens_decoder.items() if piece.special}
    ids |= set(tokenizer.all_special_ids)
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return frozenset(ids if tokenizer.unk_token_id in ends else ids - {tokenizer.unk_token_id})


def stop_at(text: str, stops: Sequence[str]) -> int:
    """Return the index of the first of the `stops` in a text, or -1."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=-1)


def fit_prompt(tokenizer: Tokenizer, text: str, room: int, overflow: Overflow) -> tuple[tuple[int, ...], int]:
    """Return a prompt's ids, at most `room`, and the number of characters cut from the left of its text.

    The template around the text is never cut. Raises ConfigError if the prompt does not fit and may not be cut, or if
    not even the empty text fits.
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
    """Return the least number below `high` from which the property holds, or `high`."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
