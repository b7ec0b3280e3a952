"""Labels and colors of agents: the same in every figure, and told apart by color-blind readers.

The colors are those of Okabe and Ito 2008, "Color Universal Design", with lighter ones for dark pages.
"""

import re
import zlib
from collections.abc import Sequence

COLORS = {
    "blue": ("#0072B2", "#4FA8E0"),
    "sky": ("#56B4E9", "#9AD5F7"),
    "green": ("#009E73", "#35C79C"),
    "vermilion": ("#D55E00", "#F58A3C"),
    "orange": ("#E69F00", "#F5C04A"),
    "pink": ("#CC79A7", "#E7A6CB"),
    "gray": ("#6B6B6B", "#B4B4B4"),
    "brown": ("#8C5A2B", "#C99765"),
}
"""Color on light and on dark pages, by name."""

AGENTS = {
    "mat": ("MAT", "blue"),
    "mat-dec": ("MAT-Dec", "sky"),
    "mat-bad": ("MAT-BAD", "green"),
    "mat-encoder": ("MAT encoder", "brown"),
    "mat-decoder": ("MAT decoder", "gray"),
    "mat-gru": ("MAT-GRU", "pink"),
    "mappo": ("MAPPO", "vermilion"),
    "happo": ("HAPPO", "orange"),
    "ippo": ("IPPO", "pink"),
    "sable": ("Sable", "brown"),
    "ff-sable": ("ff-Sable", "brown"),
    "sable-bad": ("Sable-BAD", "brown"),
    "poad": ("POAD", "blue"),
    "ntpo": ("NTPO", "vermilion"),
    "twosome": ("TWOSOME", "orange"),
    "etpo": ("ETPO", "green"),
    "grpo": ("GRPO", "pink"),
    "gigpo": ("GiGPO", "sky"),
    "reinforce": ("REINFORCE++", "brown"),
    "qmix": ("QMIX", "gray"),
    "random": ("random", "gray"),
}
"""Label and color of each known agent."""

DASHES = ("", "7 3", "2 2", "8 3 2 3", "12 4", "4 2 1 2")
"""Dash patterns, in line widths, for agents that share a color. The first is a solid line."""


def label(name: str) -> str:
    """Return the label of a group: the agent as its paper spells it, and the settings behind it."""
    agent, space, settings = shorten(name).partition(" ")
    return AGENTS.get(agent, (agent, ""))[0] + space + settings


def shorten(name: str) -> str:
    """Return a name with only the last folder of each file FILE.py:FUNCTION in it."""
    return re.sub(r"[^+=\s]*/(?=[^/+\s]+/[^/+\s]+\.py:\w)", "", name)


def color(name: str) -> tuple[str, str]:
    """Return the color of a group on light and on dark pages. It depends on the agent's name alone."""
    agent = name.partition(" ")[0]
    if agent in AGENTS:
        return COLORS[AGENTS[agent][1]]
    return list(COLORS.values())[zlib.crc32(agent.encode()) % len(COLORS)]


def dashes(names: Sequence[str]) -> dict[str, str]:
    """Return the dash pattern of each group: groups of one color have different ones."""
    used: dict[tuple[str, str], int] = {}
    made = {}
    for name in names:
        number = used.get(color(name), 0)
        used[color(name)] = number + 1
        made[name] = DASHES[number % len(DASHES)]
    return made


def task_label(task: str, tasks: Sequence[str]) -> str:
    """Return a task's name without the family, if all tasks are of one family."""
    families = {None if ".py:" in each or "/" not in each else each.partition("/")[0] for each in tasks}
    return task.partition("/")[2] if len(families) == 1 and None not in families else shorten(task)
