"""Every public name has a docstring, docstrings open with what they describe, and names are the field's terms."""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("marl", "envs", "agents", "experiments", "examples")
LINKS = {ROOT / "marl" / name for name in FOLDERS}
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not LINKS.intersection(path.parents)
)
RIDDLES = re.compile(r"(What|That|Those|These|Of|Whether|Which|How|Where|Who|Whose|When|Whatever|Everything that)\b")
"""Openings of docstrings that make a reader look for the noun."""
OLD_NAMES = frozenset(
    """
    crew skirmish verdict situations halving grove storyteller judgement told muster equip furnish claim dismiss
    survey_as_fork observe_as_fork tally keep_memory against_critic against_others anchored relative silent_fraction
    rememberers one_by_one stepper bag lay_out take_over quick_products user_of obituary hang_up torn carve admit
    over_tasks free_to_change patient_console depth_scale soft_policy undecided seen_by hopeful faithful errand
    trail evening strike bite mischief departures unread bury rouse settle
    """.split()  # noqa: SIM905 - a list of words reads better as words
)
"""Names that were riddles; each has a standard term now."""


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, bool]]:
    """Yield (qualified name, node, public) of every class, function and method; nested functions are left out."""

    def walk(body: list[ast.stmt], prefix: str, public: bool) -> Iterator[tuple[str, ast.AST, bool]]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                seen = public and not node.name.startswith("_")
                yield prefix + node.name, node, seen
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.", seen)

    yield from walk(tree.body, "", True)


def is_overload_or_override(node: ast.AST) -> bool:
    """Return whether another definition carries the docstring: an overload, an override, a property's setter."""
    names = {ast.unparse(each).split(".")[-1] for each in getattr(node, "decorator_list", [])}
    return bool(names & {"overload", "override", "setter"})


def complaints(path: Path) -> list[str]:
    """Return one line for each rule that a file breaks, with the place."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    texts = [("module", 1, ast.get_docstring(tree))]
    bases = inherited_names(tree)
    for name, node, public in definitions(tree):
        text = ast.get_docstring(node)  # pyright: ignore[reportArgumentType]
        line = node.lineno  # pyright: ignore[reportAttributeAccessIssue]
        texts.append((name, line, text))
        if public and text is None and not is_overload_or_override(node) and name not in bases:
            found.append(f"{path.relative_to(ROOT)}:{line}: {name} has no docstring")
        if name.rsplit(".", 1)[-1].lower().strip("_") in OLD_NAMES:
            found.append(f"{path.relative_to(ROOT)}:{line}: {name} is a riddle; use the field's term")
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Module | ast.ClassDef):
            for before, after in pairwise(scope.body):
                if isinstance(before, ast.AnnAssign | ast.Assign) and is_text(after):
                    texts.append((re.split("[:=]", ast.unparse(before))[0].strip(), after.lineno, after.value.value))
    for name, line, text in texts:
        if text is not None and RIDDLES.match(text.strip()):
            found.append(f"{path.relative_to(ROOT)}:{line}: {name} opens with {text.split()[0]!r}")
    return found


def is_text(node: ast.stmt) -> bool:
    """Return whether a statement is a string alone: the docstring of the field or constant before it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def inherited_names(tree: ast.Module) -> set[str]:
    """Return the methods of classes with bases, and dunder methods: their documentation may be that of the base."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and (
                    node.bases or method.name.startswith("__")
                ):
                    names.add(f"{node.name}.{method.name}")
    return names


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_names_and_docstrings(path: Path) -> None:
    assert not complaints(path)


if __name__ == "__main__":
    chosen = [Path(each).resolve() for each in sys.argv[1:]] or [ROOT]
    files = [path for path in FILES if any(path.is_relative_to(each) for each in chosen)]
    print(*[line for path in files for line in complaints(path)], sep="\n")
