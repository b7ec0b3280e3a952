"""Help of the commands: one line per option with --help, and the whole text with --help-all."""

import ast
import dataclasses
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin

from tyro.conf import Positional

FLAGS = ("-h", "--help", "--help-all")
MAX_COLUMN = 34
"""Widest column of options."""
TITLES = {
    "collect": "Collecting",
    "learn": "Learning",
    "evaluation": "Evaluation, checkpoints, early stop",
    "compute": "Devices and threads",
    "advantage_options": "Advantage {advantage}",
    "objective_options": "Objective {objective}",
    "agent_options": "Agent {agent}",
    "env_options": "Environment {env}",
    "options": "Environment",
    "own_options": "Agent",
}
"""Titles of the parts of a command's options."""


RARE = frozenset(
    (
        "adam_epsilon",
        "micro_batch",
        "restart_workers",
        "on_nonfinite",
        "huber_delta",
        "kl_estimator",
        "is_weight_cap",
        "value_clip",
        "clip_high",
        "reference_reward_coef",
        "critic_learning_rate",
        "keep_checkpoints",
        "eval_max_steps",
        "env_threads",
        "learn_threads",
        "init_std",
        "max_std",
        "gamma_intra",
        "lambda_intra",
        "value_loss",
    )
)
"""Options that --help leaves to --help-all."""
MAX_ROWS = 15
"""Most options of an agent or an environment with --help."""


def wants_help(args: list[str]) -> bool:
    """Return True if the arguments ask for help."""
    return any(flag in args for flag in FLAGS)


def print_help(
    kind: type,
    prog: str,
    args: list[str],
    default: Any = None,
    about: str = "",
    *,
    unread: frozenset[str] = frozenset(),
) -> None:
    """Print the options of a dataclass, whose parts are groups; `default` is an instance with the defaults.

    `unread`: names of options without effect, which --help leaves to --help-all.
    """
    full, width = "--help-all" in args, min(shutil.get_terminal_size().columns, 120)
    groups = list(_groups(kind, default))
    positional = [row for _, rows in groups for row in rows if not row[0].startswith("-")]
    print(f"usage: {' '.join([prog, *(row[0] for row in positional), '[--option value ...]'])}\n")
    for paragraph in inspect.cleandoc(about or kind.__doc__ or "").split("\n\n"):
        print(textwrap.fill(" ".join(paragraph.split()), width) + "\n")
    for title, rows in groups:
        if not rows:
            continue
        print(title)
        column = min(MAX_COLUMN, max(len(name) for name, _ in rows)) + 4
        left = 0
        if not full:
            shown = [row for row in rows if _field(row[0]) not in RARE | unread][
                : None if title == "Learning" else MAX_ROWS
            ]
            rows, left = shown, len(rows) - len(shown)
        for name, text in rows:
            for line in _lines(name, text, column, width, full):
                print(line)
        if left:
            print(f"  {left} more with --help-all")
    if not full:
        print("\n--help-all shows every option with its whole text.")
    sys.stdout.flush()


def flag_names(kind: type, default: Any = None) -> list[str]:
    """Return the flags of a dataclass and its parts, as they are typed."""
    rows = [name.partition(" ")[0] for _, rows in _groups(kind, default) for name, _ in rows]
    return [name.replace("[no-]", "") for name in rows if name.startswith("-")]


def _field(name: str) -> str:
    """Return the field of a row's flag."""
    return name.partition(" ")[0].removeprefix("--").removeprefix("[no-]").replace("-", "_")


def _lines(name: str, text: str, column: int, width: int, full: bool) -> Iterator[str]:
    """Yield the lines of one option: the first sentence in one line, or the whole text."""
    head = f"  {name}"
    if not full:
        text = text.partition(". ")[0].partition("; ")[0].rstrip(".")
        room = width - max(column, len(head) + 2)
        yield f"{head:<{column}}{'' if len(head) < column else '  '}{textwrap.shorten(text, room, placeholder=' ...')}"
        return
    lines = textwrap.wrap(text, width - column) or [""]
    if len(head) >= column:
        yield head
        head = ""
    yield f"{head:<{column}}{lines[0]}"
    for line in lines[1:]:
        yield " " * column + line


def _groups(kind: type, default: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the title and the rows of the command's own options and of each part."""
    own, parts = [], []
    for f in dataclasses.fields(kind):
        value = getattr(default, f.name) if default is not None else _default(f)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts.append((f.name, value))
        else:
            own.append((f, value))
    names = {f.name: value for f, value in own}
    for name, part in parts:
        names |= {f.name: getattr(part, f.name) for f in dataclasses.fields(part)} if name == "learn" else {}
    yield "Options", list(_rows(kind, own))
    for name, part in parts:
        rows = [(f, getattr(part, f.name)) for f in dataclasses.fields(part)]
        yield str(TITLES.get(name) or name).format_map(names), list(_rows(type(part), rows))


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _rows(kind: type, fields: list[tuple[dataclasses.Field[Any], Any]]) -> Iterator[tuple[str, str]]:
    """Yield the flag with its default, and the text, of each option."""
    texts = field_texts(kind)
    for f, value in fields:
        text, metavar, choices = texts.get(f.name, ""), "", ()
        hint = f.type
        if get_origin(hint) is Annotated:
            for note in get_args(hint)[1:]:
                text = getattr(note, "help", None) or text
                metavar = getattr(note, "metavar", None) or metavar
        choices = _choices(hint)
        if choices and "one of" not in text:
            text = f"{text} One of {', '.join(choices)}."
        if _is_positional(hint):
            yield metavar or f.name.upper(), text
        elif isinstance(value, bool):
            yield f"--[no-]{_flag(f.name)} {'yes' if value else 'no'}", text
        else:
            yield f"--{_flag(f.name)} {_shown(value)}", text


def _is_positional(hint: Any) -> bool:
    return Positional[str] == hint or "Positional" in repr(hint) or "_PositionalMarker" in repr(hint)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal, also of an optional one."""
    for each in (hint, *get_args(hint)):
        if "Literal" in repr(get_origin(each)):
            return tuple(map(str, get_args(each)))
    return ()


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "VALUE"
    if value is None or value == "" or value == ():
        return "..." if value != () else "[...]"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_texts(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for statement, after in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                texts[statement.target.id] = " ".join(after.value.value.split())
    return texts
