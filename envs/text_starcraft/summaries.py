"""Summaries of a window of frames by a frozen language model (Chain of Summarization, Ma et al. 2024)."""

from collections.abc import Sequence

from marl.registry import open_text_model

KEPT_FRAMES = 5
"""Frames of a window that the model reads, as in the original. Here they are spread over the window."""

INSTRUCTION = (
    "These are {count} observations of a StarCraft II game, the oldest first. In two or three sentences, say how "
    "economy, army and technology stand, what the enemy does, and what is needed next.\n\n"
)
HEAD = "Summary of the last {frames} steps:\n"


class Summarizer:
    """A frozen model that writes at most `tokens` tokens for a window. Raises ConfigError if it cannot be opened."""

    def __init__(self, model: str, tokens: int, frames: int) -> None:
        self._write, self.tokens, self.frames = open_text_model(model), tokens, frames

    def summarize(self, windows: Sequence[Sequence[str]]) -> list[str]:
        """Return a paragraph for each window of frames, oldest first, in printable ASCII."""
        prompts = [self.prompt(window) for window in windows]
        return [HEAD.format(frames=self.frames) + plain(text) + "\n" for text in self._write(prompts, self.tokens)]

    @staticmethod
    def prompt(window: Sequence[str]) -> str:
        """Return the model's prompt."""
        frames = "".join(f"Observation {number}: {frame.strip()}\n\n" for number, frame in enumerate(window, 1))
        return INSTRUCTION.format(count=len(window)) + frames


def plain(text: str) -> str:
    """Return a text as one paragraph of printable ASCII."""
    letters = " ".join(text.split()).encode("ascii", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in letters)
