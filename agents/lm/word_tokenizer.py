"""A tokenizer whose vocabulary is the words of one environment; other words are spelled in bytes."""

import re
import string
from collections.abc import Iterable, Sequence

from marl.agents.lm.conversation import Rendering, Turn
from marl.messages import plain_text

PIECES = re.compile(r"[^\W\d_]+|\d|[^\S ]| +|[\W_]")
"""Words of letters, single digits, one whitespace character, a run of spaces, or one other character."""
CLOSING = frozenset(".,;:!?)]}'%\n")
OPENING = frozenset("([{'\n")
SPECIAL = ("<pad>", "<end>", "<start>", "<join>", "<space>", "<spell>")
PAD, END, START, JOIN, SPACE, SPELL = range(len(SPECIAL))
BYTE = len(SPECIAL)
SPELT = "\0"
"""Placeholder of a spelled word when spacing is decided."""


class WordTokenizer:
    """Text to ids and back without loss: `decode(action(text)) == text`.

    A single space between words, and no space before a full stop or between digits, need no token. Other spacing takes
    two tokens. A word that is not in `words` becomes one token and its UTF-8 bytes.
    """

    pad, end, ends = PAD, END, (END,)

    def __init__(self, words: Iterable[str]) -> None:
        known = {*string.punctuation, *string.digits, "\n", "\t"}
        for text in words:
            known.update(piece for piece in PIECES.findall(text) if not piece.startswith(" "))
        self._pieces = sorted(known)
        self._ids = {piece: BYTE + 256 + index for index, piece in enumerate(self._pieces)}
        self.size = BYTE + 256 + len(self._pieces)

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, behind a token that marks the start."""
        return (START, *self.action(text))

    def action(self, text: str) -> tuple[int, ...]:
        """The ids of what follows a prompt, without an end token."""
        ids: list[int] = []
        last, spaces = "", 0
        for piece in PIECES.findall(text):
            if piece.startswith(" "):
                spaces = len(piece)
                continue
            known = piece in self._ids
            spelt = () if known else (BYTE + byte for byte in piece.encode(errors="replace"))
            piece = piece if known else SPELT
            ids += [*_spacing(_gap(last, piece), spaces), self._ids.get(piece, SPELL), *spelt]
            last, spaces = piece, 0
        return (*ids, *[SPACE] * spaces)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; an end token ends it, and bytes that are no text become a replacement character."""
        parts: list[bytes] = []
        last, spaced = "", False
        for token in ids:
            if token == END:
                break
            if token >= BYTE + 256 or token == SPELL:
                piece = SPELT if token == SPELL else self._pieces[token - BYTE - 256]
                parts.append(b" " * (0 if spaced else _gap(last, piece)) + (b"" if token == SPELL else piece.encode()))
                last, spaced = piece, False
            elif token >= BYTE:
                parts.append(bytes([token - BYTE]))
            elif token in (SPACE, JOIN):
                parts.append(b" " if token == SPACE else b"")
                spaced = True
        return b"".join(parts).decode(errors="replace")

    raw = decode

    def quote(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of an answer as they stand in a prompt: without control tokens."""
        return tuple(token for token in ids if token not in (PAD, END, START))

    def render(self, turns: Sequence[Turn], answers: Sequence[str]) -> Rendering:
        """The text of a conversation: messages on lines of their own, answers as they are."""
        return Rendering(tuple(plain_text(turn) for turn in turns), tuple(answers))

    def markup(self, text: str, turn: Turn, first: bool) -> tuple[int, ...]:  # noqa: ARG002 - the protocol's
        """The ids of the messages between two answers, behind the token that marks a start."""
        return self.prompt(text)


def _gap(last: str, piece: str) -> int:
    """The spaces between two pieces that need no token."""
    if not last or piece in CLOSING or last in OPENING or (last.isdigit() and piece.isdigit()):
        return 0
    return 1


def _spacing(expected: int, spaces: int) -> list[int]:
    if spaces == expected:
        return []
    return [SPACE] * spaces or [JOIN]
