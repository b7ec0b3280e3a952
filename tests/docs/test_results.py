"""Tables of the results pages and of the README are what their commands make of the committed results files.

`marl report --update PAGE.md` writes them.
"""

from pathlib import Path

import pytest

from marl.experiments.report.command import TABLE, updated_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "experiments" / "results").glob("*.md"))]
FOUND = [(page.name, found) for page in PAGES for found in TABLE.finditer(page.read_text())]


def test_pages_have_tables_made_by_commands():
    pages = {page for page, _ in FOUND}
    assert pages == {"README.md", "defaults.md", "family.md", "language.md", "smac-baselines.md", "transfer.md"}


@pytest.mark.parametrize(("page", "found"), FOUND, ids=[f"{page}-{found.start()}" for page, found in FOUND])
def test_a_table_is_what_its_command_writes(page, found, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert found[0] == updated_table(found), f"run `marl report --update` on {page}"
