"""From the text of a language model to actions, and the words of prompts."""

import difflib
import re

from marl.envs.text_starcraft.data.names import ACTION_ID, ACTIONS
from marl.envs.text_starcraft.data.rules import explain

_DECISIONS = re.compile(r"\d+: <?([^>\n]+)>?")
_BRACKETED = re.compile(r"<([^<>\n]+)>")
UNKNOWN = "no such action"


def named_actions(text: str, count: int) -> list[str]:
    """Names of the actions that a text asks for, at most `count`.

    After the last `Decisions:` these are the first lines `0: <NAME>`; without it, the last names in angle brackets; and
    a text without any is itself a name.
    """
    _, mark, decisions = text.rpartition("Decisions:")
    if mark and (names := _DECISIONS.findall(decisions)):
        return names[:count]
    if names := _BRACKETED.findall(text):
        return names[-count:]
    return [text] if text.strip() else []


def parse_actions(text: str, count: int) -> tuple[list[int], list[str]]:
    """Ids of the actions that a text asks for, in any case, and a line for each name that is no action."""
    if (known := ACTION_ID.get(text)) is not None:
        return [known], []
    ids, failures = [], []
    for name in named_actions(text, count):
        action = ACTION_ID.get(" ".join(name.upper().split()))
        if action is None:
            failures.append(unknown_action(name))
        else:
            ids.append(action)
    return ids, failures


def unknown_action(name: str) -> str:
    """The line of a failure, with the closest action if there is one. Characters beyond ASCII are escaped."""
    shown = " ".join(name.split()).encode("ascii", "backslashreplace").decode()
    shown = "".join(letter if letter.isprintable() else "?" for letter in shown[:60])
    close = difflib.get_close_matches(name.upper()[:60], ACTIONS, 1)
    hint = f"; did you mean {close[0]}" if close else ""
    return f"Action failed: {shown}, Reason: {UNKNOWN}{hint}\n"


def result_line(action: int, reason: int) -> str:
    """Return the result of an action in words."""
    if reason == 0:
        return f"Action executed: {ACTIONS[action]}\n"
    return f"Action failed: {ACTIONS[action]}, Reason: {explain(reason, action)}\n"


def choice_line(number: int, count: int) -> str:
    """Return the line that ends the prompts within a window."""
    return f"Choice {number} of {count}.\n"


def decisions_text(actions: list[int]) -> str:
    """The text that names actions as the original's agents do."""
    return "\n".join(["Decisions:", *(f"{place}: <{ACTIONS[action]}>" for place, action in enumerate(actions))])
