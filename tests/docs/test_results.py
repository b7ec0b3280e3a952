"""Tables of the results pages are what their commands make of the committed results files.

A table is made by the command in the comment above it: `marl report ... --out PAGE.md` writes it.
"""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import tyro

from marl.experiments.report.analysis import Options, analyze
from marl.experiments.report.command import ReportCommand, load, parse_bounds
from marl.experiments.report.tables import markdown_page

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
TABLE = re.compile(r"<!-- marl report (.*) -->\n\n((?:\|.*\n)+)")
FOUND = [(page.name, *found) for page in sorted(RESULTS.glob("*.md")) for found in TABLE.findall(page.read_text())]


@cache
def report(arguments: str) -> str:
    """Return the Markdown that a command writes."""
    command = tyro.cli(ReportCommand, args=shlex.split(arguments))
    metric, groups, notes = load([RESULTS.parents[1] / path for path in command.runs], command.metric)
    options = Options(metric, parse_bounds(command.bounds), command.threshold, command.at, command.interval)
    return markdown_page(analyze(groups, options, notes))


def test_pages_have_tables_made_by_commands():
    assert {page for page, *_ in FOUND} >= {"family.md"}
    assert len(FOUND) >= 4


@pytest.mark.parametrize(
    ("page", "arguments", "table"), FOUND, ids=[f"{page}-{number}" for number, (page, *_) in enumerate(FOUND)]
)
def test_a_table_is_what_its_command_writes(page, arguments, table):
    assert table in report(arguments), f"a table of {page} is not what `marl report {arguments}` writes; copy it anew"
