"""Web page of a report: one file without links to others, with sortable tables and curves that are drawn as SVG."""

import html
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from marl.experiments.report.analysis import METRIC_BOUNDS, SHARES, THRESHOLDS, Report, Row
from marl.experiments.report.figure import Axis
from marl.experiments.report.styles import color, dashes, label, task_label
from marl.experiments.report.tables import PERCENTAGES, Table, tables

TEMPLATE = Path(__file__).with_name("page.html")


def page(report: Report, x: Axis = "steps") -> str:
    """Return the page as HTML. `x`: horizontal axis at first."""
    metric = report.options.metric
    title = f"{metric}: {', '.join(map(label, report.names))}"
    problems = "".join(f"<li>{html.escape(each)}</li>" for each in report.warnings)
    parts = {
        "TITLE": html.escape(title if len(title) < 100 else f"{metric} of {len(report.names)} agents"),
        "SUMMARY": html.escape(summary(report)),
        "WARNINGS": f"<aside><h2>Warnings</h2><ul>{problems}</ul></aside>" if problems else "",
        "TABLES": "".join(map(to_html, tables(report))),
        "DATA": json.dumps(data(report, x), separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def summary(report: Report) -> str:
    """Return one line: numbers of agents, tasks and runs, and the version that made the page."""
    runs = sum(len(row.group.curves) for row in report.rows)
    try:
        made = f"seqmarl {version('seqmarl')}"
    except PackageNotFoundError:
        made = "seqmarl"
    counts = ((len(report.names), "agent"), (len(report.tasks), "task"), (runs, "run"))
    return ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts) + f". Made by {made}."


def to_html(table: Table) -> str:
    """Return a table whose headers sort its rows."""
    head = "".join(
        f'<th scope="col"{"" if number < table.left else " class=n"}><button>{html.escape(each)}</button></th>'
        for number, each in enumerate(table.headers)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if number < table.left else ' class=n'}>{html.escape(cell)}</td>"
            for number, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in table.notes)
    return (
        f"<section><h2>{html.escape(table.caption)}</h2><div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{notes}</section>"
    )


def data(report: Report, x: Axis) -> dict[str, Any]:
    """Return what the page draws: panels of curves, each with values, intervals and seeds."""
    names = report.names
    patterns = dashes(names)
    agents = {
        name: {"label": label(name), "light": color(name)[0], "dark": color(name)[1], "dash": patterns[name]}
        for name in names
    }
    panels = []
    for task in report.tasks:
        rows = [row for row in report.rows if row.group.env == task]
        same: list[np.ndarray] = []
        curves = []
        for row in rows:
            curves.append(curve_data(row) | {"same": sum(np.array_equal(row.mean, other) for other in same)})
            same.append(row.mean)
        panels.append(
            {
                "title": task_label(task, report.tasks),
                "y": report.options.metric,
                "bounds": METRIC_BOUNDS.get(report.options.metric),
                "percent": report.options.metric in PERCENTAGES,
                "curves": curves,
            }
        )
    for title, axis, values, attribute in (
        ("Performance profile: fraction of runs above a score", "score", THRESHOLDS, "profile"),
        ("Sample efficiency: interquartile mean over tasks", "share of the steps", SHARES, "efficiency"),
    ):
        if report.aggregates:
            curves = [
                {"agent": each.name, "x": numbers(values)}
                | dict(zip(("mean", "low", "high"), map(numbers, getattr(each, attribute)), strict=True))
                for each in report.aggregates
            ]
            panels.append({"title": title, "axis": axis, "bounds": (0, 1), "percent": False, "y": "", "curves": curves})
    return {"agents": agents, "panels": panels, "axis": x}


def curve_data(row: Row) -> dict[str, Any]:
    """Return one curve of a panel. `time`: hours of training at each step, or None."""
    seconds = row.group.seconds(row.steps)
    return {
        "agent": row.group.name,
        "x": list(row.steps),
        "time": None if seconds is None else numbers(np.array(seconds) / 3600),
        "mean": numbers(row.mean),
        "low": numbers(row.low),
        "high": numbers(row.high),
        "seeds": {str(s): numbers(c) for s, c in zip(row.group.curves, row.group.table(row.steps), strict=True)},
        "published": [
            {
                "value": each.value,
                "text": f"{label(each.agent)} in {each.source}, {each.table}"
                + (f" ({each.version})" if each.version else ""),
            }
            for each in row.published
        ],
    }


def numbers(values: Any) -> list[float | None]:
    """Return numbers for JSON, with six digits and None for NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=np.float64)]
