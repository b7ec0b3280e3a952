"""Conversations as token ids: what was sampled stands in later prompts with the same ids.

A chat template is a function from messages to text. Only the text around answers is tokenized. If a template shows an
earlier answer differently than it was sampled, for example without thinking, the difference is applied to the ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from marl.agents.lm.candidate_trie import Tokens
from marl.messages import Message

History = Literal["auto", "none", "all", "turns", "tokens"]
"""Earlier turns in a prompt: none, all, the last turns, or as many as fit a number of tokens."""
Turn: TypeAlias = tuple[Message, ...]
"""Messages of the environment between two answers."""
CONTENT = "\ue000"
"""Placeholder of a text when a chat template is taken apart."""


@dataclass(frozen=True)
class Rendering:
    """A conversation of T turns as text.

    `between`: the T texts before the answers; the last ends where the next answer begins. `shown`: the T - 1 answers as
    the template shows them.
    """

    between: tuple[str, ...]
    shown: tuple[str, ...]


def render_chat(render: Callable[[Sequence[str]], str], answers: Sequence[str]) -> Rendering | None:
    """Take a rendered conversation apart. `render` returns its text, given the answers.

    Returns None if the text around placeholders is not the text around the answers: the template depends on them in
    some other way than by changing how each is shown.
    """
    between = render([CONTENT] * len(answers)).split(CONTENT)
    text = render(answers)
    if len(between) != len(answers) + 1 or not text.startswith(between[0]):
        return None
    place, shown = len(between[0]), []
    for answer, after in zip(answers, between[1:], strict=True):
        last = len(shown) + 1 == len(answers)
        same = [each for each in (answer, answer.strip()) if text.startswith(each + after, place)]
        if last:
            end = len(text) - len(after) if text.endswith(after) else -1
        else:
            end = place + len(same[0]) if same else text.find(after, place)
        if end < place:
            return None
        shown.append(text[place:end])
        place = end + len(after)
    return Rendering(tuple(between), tuple(shown))


def keep_ids(
    tokens: Tokens,
    shown: str,
    raw: Callable[[Sequence[int]], str],
    encode: Callable[[str], Tokens],
    ends: Sequence[int],
) -> Tokens:
    """Return the ids of an answer that a template shows as the text `shown`.

    Ids whose text is still there are kept, and only other text is encoded. White space around the answer and its end
    token are kept as sampled.
    """
    if raw(tokens).strip() == shown.strip():
        return tokens
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    body, end = tokens[:length], tokens[length:]
    target = shown.rstrip()
    start, head = length, target
    for place in range(length):
        suffix = raw(body[place:]).rstrip()
        whole = suffix.strip() == target.strip() and raw(body[place : place + 1]).strip()
        if suffix and (whole or target.endswith(suffix)):
            start, head = place, "" if whole else target[: len(target) - len(suffix)]
            break
    if not head.strip():
        return (*body[start:], *end)
    first = next(place for place in range(start, -1, -1) if head.startswith(raw(body[:place])))
    rest = head[len(raw(body[:first])) :]
    return (*body[:first], *(encode(rest) if rest else ()), *body[start:], *end)


def merged_users(messages: Sequence[Message]) -> list[Message]:
    """Return messages with consecutive user messages joined, because many templates want roles to alternate."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role == "user":
            merged[-1] = Message("user", f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(message)
    return merged
