"""`marl report`: read runs or results files, print the tables, and write the files that are asked for."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from marl.errors import ConfigError, unknown_name_message
from marl.experiments.report.analysis import Method, Options, Report, Rows, analyze
from marl.experiments.report.figure import Axis, draw_report
from marl.experiments.report.page import page
from marl.experiments.report.results_file import read_results, to_json, to_marl_eval
from marl.experiments.report.runs import RunGroup, find_runs, group_runs, read_rows
from marl.experiments.report.tables import latex_page, markdown_page, tables, to_csv, to_markdown, to_rich
from marl.files import whole_files

SUFFIXES = {
    "html": ".html",
    "pdf": ".pdf",
    "svg": ".svg",
    "png": ".png",
    "markdown": ".md",
    "latex": ".tex",
    "csv": ".csv",
    "json": ".json",
    "marl-eval": ".marl-eval.json",
}
"""Suffix of each format."""

TABLE = re.compile(r"<!-- marl report (.*) -->\n\n((?:\|.*\n)+)")
"""A table of a page, below the command that makes it."""

DEFAULT_FORMATS = ("json", "png")


@dataclass(frozen=True)
class ReportCommand:
    """Compare runs of several seeds and agents: tables, statistics over tasks, learning curves.

    Final scores are on the test seeds, curves on the validation seeds. Intervals are 95 %.
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="")] = ()
    """Folders of runs, folders that hold them, or results files (.json) of earlier reports."""
    metric: str | None = None
    """Metric to compare: return, length, or a number that the environment reports, such as success. None is the metric
    of the results file, else return."""
    out: Path | None = None
    """File to write: .html, .pdf, .svg, .png, .md, .tex, .csv, .json or .marl-eval.json. Without a suffix, OUT.json and
    OUT.png, or the formats of --format."""
    format: tuple[str, ...] = ()
    """Formats to write: html, pdf, svg, png, markdown, latex, csv, json, marl-eval."""
    bounds: tuple[str, ...] = ()
    """Lowest and highest score, as LOW:HIGH for all tasks or TASK=LOW:HIGH for one. Aggregates over tasks need bounds;
    success has 0:1."""
    threshold: float | None = None
    """Score whose first step is reported."""
    at: tuple[int, ...] = ()
    """Environment steps at which the tables report the score too."""
    rows: Rows = "runs"
    """Rows of the first table: runs (each agent on each task, with every statistic), agents or tasks (final scores
    alone, with the other as columns), or overall (aggregates over tasks alone)."""
    interval: Method = "auto"
    """Interval of a mean over seeds: bootstrap, student (Student's t), or auto, which takes bootstrap for bounded
    metrics."""
    x: Axis = "steps"
    """Horizontal axis of figures: environment steps, or training time."""
    seeds: bool = False
    """Draw the curve of every seed in figures too."""
    update: tuple[Path, ...] = ()
    """Markdown pages in which every table below a comment <!-- marl report ... --> is to be written anew. Paths in the
    comments are relative to the present folder."""


def compare_runs(command: ReportCommand) -> None:
    """Print the tables and write the files.

    Raises ConfigError if there is no run, for an unknown format, or for a file that cannot be written.
    """
    if command.update:
        update_pages(command.update)
        if not command.runs:
            return
    outputs = output_files(command.out, command.format)
    groups, report = make_report(command)
    if outputs:
        with whole_files(*outputs.values()) as beside:
            for kind, path in zip(outputs, beside, strict=True):
                write(kind, path, report, groups, command)
    console = Console()
    console.print(*(to_rich(table) for table in tables(report)[:2]))
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {warning}", highlight=False)
    if outputs:
        print(f"wrote {' and '.join(map(str, outputs.values()))}")


def make_report(command: ReportCommand) -> tuple[list[RunGroup], Report]:
    """Return the groups of runs and their analysis."""
    metric, groups, notes = load(command.runs, command.metric)
    bounds = parse_bounds(command.bounds)
    options = Options(metric, bounds, command.threshold, command.at, command.interval, command.rows)
    return groups, analyze(groups, options, notes)


def update_pages(pages: Sequence[Path]) -> None:
    """Write the tables of all pages anew, or none of them. Raises ConfigError for a page without a table."""
    with whole_files(*pages) as beside:
        for page, new in zip(pages, beside, strict=True):
            try:
                text = page.read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"cannot read {page}: {error}") from error
            if not TABLE.search(text):
                raise ConfigError(f"{page} has no table below a comment <!-- marl report ... -->; add one")
            new.write_text(TABLE.sub(updated_table, text), encoding="utf-8")
    print(f"wrote the tables of {' and '.join(map(str, pages))}")


def updated_table(found: re.Match[str]) -> str:
    """Return a comment with a command, and the first table that the command makes."""
    made = tables(make_report(tyro.cli(ReportCommand, args=shlex.split(found[1])))[1])
    if not made:
        raise ConfigError(f"marl report {found[1]} makes no table; the runs need two tasks and bounds")
    return f"<!-- marl report {found[1]} -->\n\n{to_markdown(made[0])}"


def load(paths: Sequence[Path], metric: str | None) -> tuple[str, list[RunGroup], list[str]]:
    """Return the metric, the groups of runs and results files, and notes about runs that were left out.

    A run that was never evaluated is an error if it is named, and left out if it is in a named folder of runs.
    """
    if not paths:
        raise ConfigError("report needs runs; give one or more folders of runs, such as runs")
    files = [path for path in paths if path.suffix == ".json" and not path.is_dir()]
    groups: list[RunGroup] = []
    for path in files:
        found, read = read_results(path)
        if metric not in (None, found):
            raise ConfigError(f"{path} holds {found!r}, not {metric!r}; give --metric {found} or other runs")
        metric, groups = found, groups + read
    metric = metric or "return"
    named = [path for path in paths if path not in files]
    kept, notes = [], []
    for folder in dict.fromkeys(run for path in named for run in find_runs(path)):
        if folder not in named and next(read_rows(folder / "evaluations.jsonl"), None) is None:
            notes.append(f"left out, because it was never evaluated: {folder}")
        else:
            kept.append(folder)
    if not kept and not groups:
        raise ConfigError(f"no run in {', '.join(map(str, paths))} can be reported on: {'; '.join(notes)}")
    groups += group_runs(kept, metric)
    names = [(group.env, group.name) for group in groups]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise ConfigError(f"{twice[1]} on {twice[0]} is given twice, in runs or results files; leave one out")
    return metric, groups, notes


def parse_bounds(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return (low, high) by task from LOW:HIGH and TASK=LOW:HIGH; "" is every other task."""
    bounds: dict[str, tuple[float, float]] = {}
    for text in texts:
        task, _, ends = text.rpartition("=")
        found = re.fullmatch(r"([^:]+):([^:]+)", ends)
        try:
            low, high = map(float, found.groups()) if found else (0.0, 0.0)
        except ValueError:
            low, high = 0.0, 0.0
        if not low < high or task in bounds:
            raise ConfigError(f"bounds={text} is not LOW:HIGH or TASK=LOW:HIGH of one task; give for example 0:500")
        bounds[task] = (low, high)
    return bounds


def output_files(out: Path | None, formats: Sequence[str]) -> dict[str, Path]:
    """Return the file of each format that is asked for.

    Raises ConfigError for an unknown format or suffix, and for a place where no file can be.
    """
    if unknown := [each for each in formats if each not in SUFFIXES]:
        raise ConfigError(unknown_name_message("format", unknown[0], SUFFIXES))
    if out is None:
        if formats:
            raise ConfigError(f"format={' '.join(formats)} needs a file; give --out")
        return {}
    if out.is_dir():
        raise ConfigError(f"out={str(out)!r} is a folder; give the name of a file in it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}: its folder does not exist")
    by_suffix = sorted(SUFFIXES.items(), key=lambda each: -len(each[1]))
    own = next((kind for kind, suffix in by_suffix if out.name.endswith(suffix) and out.name != suffix), None)
    if own is not None and not formats:
        return {own: out}
    stem = out.name.removesuffix(SUFFIXES[own]) if own is not None else out.name
    return {kind: out.with_name(stem + SUFFIXES[kind]) for kind in dict.fromkeys(formats or DEFAULT_FORMATS)}


def write(kind: str, path: Path, report: Report, groups: Sequence[RunGroup], command: ReportCommand) -> None:
    """Write one format to `path`."""
    metric = report.options.metric
    if kind in ("pdf", "svg", "png"):
        draw_report(report, path, kind, x=command.x, seeds=command.seeds)
        return
    text: dict[str, Callable[[], str]] = {
        "html": lambda: page(report, command.x),
        "markdown": lambda: markdown_page(report),
        "latex": lambda: latex_page(report),
        "csv": lambda: to_csv(report),
        "json": lambda: json.dumps(to_json(groups, metric), indent=1) + "\n",
        "marl-eval": lambda: json.dumps(to_marl_eval(groups, metric), indent=1) + "\n",
    }
    path.write_text(text[kind](), encoding="utf-8")
