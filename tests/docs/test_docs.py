"""Every code block of the pages and of the README runs, or says why it does not. Every name on them exists."""

import pkgutil
import re
import shlex
import sys
from pathlib import Path

import pytest

from marl import registry
from marl.config import option_names
from marl.experiments import cli
from marl.tracking.metrics import METRICS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.M | re.S)
CODE_FOLDERS = "marl|agents|envs|experiments|tests|examples|docs"

SHORT = {
    "steps": "32",
    "num-envs": "4",
    "rollout-steps": "8",
    "minibatches": "1",
    "epochs": "1",
    "checkpoint-interval": "100",
}
"""Options that a training command of a page gets, in place of its own, so that it ends within a second or two."""
OTHER_TOOLS = {
    "nproc-per-node",
    "nnodes",
    "rdzv-backend",
    "rdzv-endpoint",
    "max-restarts",
    "logdir",
    "no-deps",
    "strict",
    "help",
    "help-all",
}
"""Options of torchrun, TensorBoard, pip and MkDocs, and those that argument parsers add."""


def blocks(page: Path) -> list[tuple[bool, str, str]]:
    """Return (not run, language, code) of each block."""
    found = []
    for skip, indent, language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        found.append((bool(skip), language, re.sub(rf"^{indent}", "", body, flags=re.M)))
    return found


def shorten(line: str) -> list[str]:
    """Return the arguments of a `marl` command with fewer steps and episodes."""
    args = shlex.split(line, comments=True)[1:]
    changes: dict[str, str] = {}
    if args[0] == "train" and "--help" not in args:
        # Episodes of text agents take long before they have learned; reports need evaluations of toy games.
        changes = SHORT | {"eval-episodes": "1" if args[1].startswith("toy/") else "0"}
    elif args[0] == "resume":
        changes = {"steps": "64"}
    elif args[0] == "eval":
        changes = {"episodes": "1"}
    elif args[0] == "play":
        changes = {"stop-after": "8"}
    for name, value in changes.items():
        if f"--{name}" in args:
            at = args.index(f"--{name}")
            del args[at : at + 2]
        args += [f"--{name}", value]
    return args


def run_command(line: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["marl", *shorten(line)])
    code = 0
    try:
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    assert code == 0, f"{line}\n{out}{err}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder. Modules and registrations that a page makes are undone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for table in vars(registry).values():
        if isinstance(table, registry.Registry):
            table.load()
            monkeypatch.setattr(table, "entries", dict(table.entries))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_blocks_run(page, folder, monkeypatch, capsys):
    names = {"__name__": "page"}
    for skip, language, code in blocks(page):
        if skip or language == "text":
            continue
        if language == "python":
            if file := re.match(r"# ([\w/.]+\.py)\n", code):
                (folder / file[1]).write_text(code)
            else:
                exec(compile(code, page.name, "exec"), names)
        elif language == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                assert line.startswith("marl "), f"{line!r}: mark the block with <!-- not run: reason -->"
                run_command(line, monkeypatch, capsys)
        elif language == "yaml" and (file := re.match(r"# ([\w/.]+\.yaml)\n", code)):
            (folder / file[1]).write_text(code)
        else:
            pytest.fail(f"a block of {language!r} cannot run; mark it with <!-- not run: reason -->")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_names_exist(page):
    text = page.read_text(encoding="utf-8")
    options = set(option_names())
    sources = "".join(path.read_text() for folder in ("experiments", "envs") for path in (ROOT / folder).rglob("*.py"))
    sources += (ROOT / "marl/registry.py").read_text()
    for name in set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", text)) - OTHER_TOOLS:
        field = name.removeprefix("no-").replace("-", "_")
        assert field in options or re.search(rf"\b{field}: ", sources), f"no option --{name}"
    for name in re.findall(rf"`((?:{CODE_FOLDERS})/[\w/.-]*)`", text):
        assert (ROOT / name).exists(), f"no file {name}"
    for name in re.findall(
        r"`((?:mamujoco|hands|smac|overcooked|virtualhome|toy|text|text-starcraft)/[\w|+-]+)`", text
    ):
        registry.tasks_of(name, {})
    for tag in re.findall(r"`((?:episode|eval|test|loss|policy|value|group|gradient|speed)/[a-z_]+)`", text):
        assert tag in METRICS or f'"{tag}"' in sources, f"no tag {tag}"
    for name in re.findall(r"`(marl(?:\.\w+)+)[`(]", text):
        pkgutil.resolve_name(name)
    for name, path in re.findall(rf"`(?:\w+\.)?(\w+)` in `((?:{CODE_FOLDERS})/[\w/]+\.py)`", text):
        assert re.search(rf"\b(def|class) {name}\b", (ROOT / path).read_text()), f"no {name} in {path}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        assert (page.parent / target).exists() or target.startswith("http"), target


def test_the_readme_begins_with_two_commands():
    commands = [code.strip() for _, language, code in blocks(PAGES[0]) if language == "sh"]
    assert commands[:2] == ["make train", "make test"]


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in site
    assert not re.search(r"https?://", site), "the site loads nothing from other hosts"
