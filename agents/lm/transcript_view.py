"""Views of an episode: Markdown, and an image of each token's advantage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from marl.errors import MissingDependencyError
from marl.transcript import TranscriptStep

WIDTH, MARGIN, LINE, CELL = 1000, 16, 22, 44
"""Pixels: width, margin, height of a line of text, height of a row of tokens."""
INK, FAINT, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
BAR = r"\|"
"""Escaped bar inside a table cell."""
MAX_UTTERANCES = 60
"""Number of actions that a picture shows."""
GOOD, BAD = np.array([33, 102, 172]), np.array([214, 96, 77])


@dataclass(frozen=True)
class Utterance:
    """One agent's action in one step. The lists have an entry for each node."""

    step: int
    agent: str
    prompt: str
    action: str
    reward: float
    tokens: list[str]
    trained: list[bool]
    log_prob: list[float]
    value: list[float]
    advantage: list[float]


def utterances(policy: Any, episode: Sequence[TranscriptStep]) -> Iterator[Utterance]:
    """Yield the actions of an episode in order, of agents that have nodes."""
    for step, transition in enumerate(episode):
        nodes = transition.decision.nodes
        prompts = policy.prompt_ids(transition.inputs, nodes)
        for agent, name in enumerate(policy.spec.agents):
            mask = nodes.node_mask[0, agent]
            if mask.any():
                columns = (
                    nodes.loss_mask[0],
                    transition.decision.log_prob[0],
                    transition.decision.value[0],
                    transition.advantage,
                )
                pieces = policy.token_texts(
                    nodes.action[0, agent][mask].tolist(), str(transition.decision.action[0, agent])
                )
                yield Utterance(
                    step + 1,
                    name,
                    policy.prompt_table.texts[int(prompts[0, agent])],
                    str(transition.decision.action[0, agent]),
                    float(transition.reward[agent]),
                    [_on_one_line(piece) for piece in pieces],
                    *(column[agent].expand_as(mask)[mask].tolist() for column in columns),
                )


def _on_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def transcript(policy: Any, episode: Sequence[TranscriptStep]) -> str:
    """Return Markdown: prompt, action, reward, and a table of tokens. A token without alternatives is "forced"."""
    parts, heads = [], ["token", "log-probability", *([] if policy.critic is None else ["value"]), credit_of(policy)]
    for utterance in utterances(policy, episode):
        quoted = "\n".join(f"> {line}  " for line in utterance.prompt.splitlines() or [""])
        likely = np.exp(sum(utterance.log_prob))
        rows = [heads, ["---"] * len(heads)]
        for token, free, p, v, a in zip(
            utterance.tokens, utterance.trained, utterance.log_prob, utterance.value, utterance.advantage, strict=True
        ):
            value = [] if policy.critic is None else [f"{v:.3f}"]
            rows.append([token.replace("|", BAR), f"{p:.3f}" if free else "forced", *value, f"{a:+.3f}"])
        parts.append(
            f"**Step {utterance.step}, {utterance.agent}**\n\n{quoted}\n\n**{utterance.action}** "
            f"(probability {likely:.3f}, reward {utterance.reward:g})\n\n"
            + "\n".join(f"| {' | '.join(row)} |" for row in rows)
        )
    return "\n\n".join(parts)


def credit_of(policy: Any) -> str:
    """Return the name of a token's credit: without a critic, learning compares returns between episodes."""
    return "advantage" if policy.critic is not None else "return to come"


def picture(policy: Any, episode: Sequence[TranscriptStep]) -> np.ndarray:
    """Return an image (height, width, 3) uint8 with a cell for each token: blue for positive credit, red for negative.

    Full color is the largest credit of the episode. Framed tokens had alternatives. Raises MissingDependencyError
    without pillow.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingDependencyError(f"the picture needs pillow ({error}); run: pip install 'seqmarl[lm]'") from error

    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    shown = list(islice(utterances(policy, episode), MAX_UTTERANCES))
    top = max((abs(a) for each in shown for a in each.advantage), default=0.0) or 1.0
    layouts = [_layout(each, font) for each in shown]
    height = 2 * MARGIN + LINE + sum(LINE + rows * CELL + 8 for rows, _ in layouts)
    image = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text(
        (MARGIN, MARGIN), f"{credit_of(policy)} of each token, from {-top:.2g} (red) to {top:.2g} (blue)", INK, font
    )
    y = MARGIN + LINE
    for each, (rows, boxes) in zip(shown, layouts, strict=True):
        head = f"{each.step}  {each.agent}  reward {each.reward:g}  |  "
        draw.text((MARGIN, y + 4), _fit(head + " ".join(each.prompt.split()), small), FAINT, small)
        for (x, row, width), token, free, a in zip(boxes, each.tokens, each.trained, each.advantage, strict=True):
            box = (x, y + LINE + row * CELL, x + width, y + LINE + row * CELL + CELL - 6)
            draw.rectangle(box, _color(a / top), INK if free else None)
            ink = PAPER if abs(a) > 0.6 * top else INK
            draw.text((x + 6, box[1] + 2), token, ink, font)
            draw.text((x + 6, box[1] + 21), f"{a:+.2g}", ink, small)
        y += LINE + rows * CELL + 8
    return np.asarray(image)


def _layout(utterance: Utterance, font: Any) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the number of rows of the tokens, and each token's x, row and width."""
    x, row, boxes = MARGIN, 0, []
    for token in utterance.tokens:
        width = max(int(font.getlength(token)) + 12, 48)
        if x + width > WIDTH - MARGIN and x > MARGIN:
            x, row = MARGIN, row + 1
        boxes.append((x, row, width))
        x += width + 4
    return row + 1, boxes


def _fit(text: str, font: Any) -> str:
    """Return the text, or its beginning and end if it is wider than the picture."""
    room = WIDTH - 2 * MARGIN
    if font.getlength(text) <= room:
        return text
    keep = int(len(text) * room / font.getlength(text)) - 4
    return f"{text[: keep // 3]} ... {text[-(keep - keep // 3) :]}"


def _color(share: float) -> tuple[int, int, int]:
    """Return the color of a share of full credit: white at 0, full color at 1 and -1."""
    mixed = 255 + abs(share) * ((GOOD if share > 0 else BAD) - 255)
    return int(mixed[0]), int(mixed[1]), int(mixed[2])
