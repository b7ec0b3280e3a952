"""Figures of a report at print size: learning curves by task, and over tasks profiles and sample efficiency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from marl.errors import ConfigError, MissingDependencyError
from marl.experiments.report.analysis import METRIC_BOUNDS, SHARES, THRESHOLDS, Report, Row
from marl.experiments.report.styles import color, dashes, label, task_label
from marl.tracking.metrics import axis_label

Axis = Literal["steps", "time"]
"""Horizontal axis of a curve: environment steps, or training time without evaluations."""

WIDTH = 7.0
"""Width of a figure in inches: the text of a page."""
DPI = 200
PANEL_HEIGHT = 2.0
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "marl",
}
"""Text of 7 to 8 points, embedded in PDF files as outlines that printers accept."""


def draw_report(report: Report, path: Path, kind: str, *, x: Axis = "steps", seeds: bool = False) -> None:
    """Draw the panels of a report to `path` as `kind` (pdf, svg or png), with the curve of every seed if `seeds`.

    Raises MissingDependencyError without matplotlib, ConfigError if `x` is "time" and a run has no speed on record.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise MissingDependencyError("figures need matplotlib; install with: pip install 'seqmarl[report]'") from error
    tasks, names = report.tasks, report.names
    count = len(tasks) + (2 if report.aggregates else 0)
    columns = min(3, count)
    lines = -(-count // columns)
    styles = {name: line_style(name, dash) for name, dash in dashes(names).items()}
    with matplotlib.rc_context(RC):
        width = WIDTH if columns > 1 else WIDTH / 2
        figure = Figure(figsize=(width, PANEL_HEIGHT * lines + 0.35), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, task in zip(panels, tasks, strict=False):
            draw_task(panel, report, task, styles, x=x, seeds=seeds)
        if report.aggregates:
            draw_profile(panels[len(tasks)], report, styles)
            draw_efficiency(panels[len(tasks) + 1], report, styles)
        for panel in panels[count:]:
            panel.set_axis_off()
        handles = [Line2D([], [], **styles[name], label=label(name)) for name in names]
        if published := [each for row in report.rows for each in row.published]:
            text = "published" + (", other environment version" if any(each.version for each in published) else "")
            handles.append(Line2D([], [], color="gray", linestyle=":", linewidth=0.9, label=text))
        beside = min(6, 3 * columns) if max(map(len, names)) < 16 else 1
        figure.legend(handles=handles, loc="outside lower center", ncols=beside, frameon=False)
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        figure.savefig(path, dpi=DPI, format=kind, metadata=metadata)


def line_style(name: str, dash: str) -> dict[str, Any]:
    """Return matplotlib's color and dash pattern of a group."""
    pattern = tuple(float(length) for length in dash.split())
    return {"color": color(name)[0], "linestyle": (0, pattern) if pattern else "solid", "linewidth": 1.4}


def positions(row: Row, x: Axis) -> Sequence[float]:
    """Return the horizontal positions of a row's evaluations: steps, or hours of training."""
    if x == "steps":
        return row.steps
    seconds = row.group.seconds(row.steps)
    if seconds is None:
        raise ConfigError(
            f"{row.group.name} on {row.group.env} has no training time on record (metrics.jsonl); use --x steps"
        )
    return [each / 3600 for each in seconds]


def draw_task(panel: Any, report: Report, task: str, styles: dict[str, Any], *, x: Axis, seeds: bool) -> None:
    """Draw the curves on one task, with interval bands and published scores."""
    rows = [row for row in report.rows if row.group.env == task]
    drawn: list[np.ndarray] = []
    for row in rows:
        style, where = styles[row.group.name], positions(row, x)
        same = sum(np.array_equal(row.mean, other) for other in drawn)
        if same:
            style = style | {"linestyle": (4.0 * same, (4, 4)), "linewidth": 1.8}
        drawn.append(row.mean)
        if seeds:
            for curve in row.group.table(row.steps):
                plot_curve(panel, where, curve, color=style["color"], alpha=0.35, linewidth=0.6)
        panel.fill_between(where, row.low, row.high, color=style["color"], alpha=0.12, linewidth=0)
        plot_curve(panel, where, row.mean, **style)
        for each in row.published:
            panel.axhline(each.value, color=style["color"], linewidth=0.7, linestyle=":", alpha=0.9)
    counts = sorted({len(row.group.curves) for row in rows})
    among = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    noun = "seed" if counts == [1] else "seeds"
    panel.set_title(f"{task_label(task, report.tasks)}, {among} {noun}")
    panel.set_xlabel("environment steps" if x == "steps" else "training time (hours)")
    panel.set_ylabel(axis_label(f"eval/{report.options.metric}").removeprefix("eval/"))
    panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    panel.grid(alpha=0.25, linewidth=0.5)
    if bounds := METRIC_BOUNDS.get(report.options.metric):
        margin = 0.03 * (bounds[1] - bounds[0])
        panel.set_ylim(bounds[0] - margin, bounds[1] + margin)


def draw_profile(panel: Any, report: Report, styles: dict[str, Any]) -> None:
    """Draw the fraction of runs above each score."""
    for each in report.aggregates:
        value, low, high = each.profile
        panel.fill_between(THRESHOLDS, low, high, color=styles[each.name]["color"], alpha=0.15, linewidth=0)
        panel.plot(THRESHOLDS, value, **styles[each.name], drawstyle="steps-post")
    panel.set(title="performance profile", xlabel="score", ylabel="fraction of runs above", ylim=(-0.03, 1.03))
    panel.grid(alpha=0.25, linewidth=0.5)


def draw_efficiency(panel: Any, report: Report, styles: dict[str, Any]) -> None:
    """Draw the interquartile mean over tasks by the share of the training steps."""
    for each in report.aggregates:
        value, low, high = each.efficiency
        panel.fill_between(SHARES, low, high, color=styles[each.name]["color"], alpha=0.15, linewidth=0)
        panel.plot(SHARES, value, **styles[each.name])
    panel.set(title="sample efficiency", xlabel="share of the steps", ylabel="interquartile mean", ylim=(-0.03, 1.03))
    panel.grid(alpha=0.25, linewidth=0.5)


def plot_curve(panel: Any, x: Sequence[float], y: Any, **style: Any) -> None:
    """Draw a line, or a dot if there is only one point."""
    panel.plot(x, y, marker="o" if len(x) == 1 else "", markersize=3, **style)
