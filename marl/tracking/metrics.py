"""Table of metrics: tag, unit, meaning, and the places that show it.

The rows are in `metrics.csv`. The console, TensorBoard's pages, reports and `docs/tensorboard.md` read them. Agents and
environments may log other tags.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    `unit`: "text" and "picture" for what is no number. `label`: name on the console's dashboard, empty if the dashboard
    has no place for it. `chart`: category and title on TensorBoard's Custom Scalars page, or None. `shown`: "line" for
    the plain lines of the console, "hparams" for a column of the HParams page.
    """

    tag: str
    unit: str
    label: str
    chart: tuple[str, str] | None
    shown: frozenset[str]
    description: str


def _read(path: Path) -> dict[str, Metric]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = {}
    for row in rows:
        category, _, title = row["chart"].partition(": ")
        chart = (category, title) if title else None
        metrics[row["tag"]] = Metric(
            row["tag"], row["unit"], row["label"], chart, frozenset(row["shown"].split()), row["description"]
        )
    return metrics


METRICS = _read(Path(__file__).with_suffix(".csv"))
"""Rows by tag, in the order in which they are shown."""

LINE_TAGS = tuple(tag for tag, metric in METRICS.items() if "line" in metric.shown)
"""Tags of the console's plain lines."""

HPARAM_TAGS = tuple(
    sorted(
        (tag for tag, metric in METRICS.items() if "hparams" in metric.shown),
        key=lambda tag: tag.partition("/")[0],
        reverse=True,
    )
)
"""Tags by which the HParams page compares runs, the final score first."""


def find_metric(tag: str) -> Metric | None:
    """Return the row of a tag, or of the tag without the agent type or task at its end. None for an unknown tag."""
    return METRICS.get("/".join(tag.split("/")[:2]))


def axis_label(tag: str) -> str:
    """Return the label of an axis: the tag, and its unit if the table has it."""
    metric = find_metric(tag)
    return tag if metric is None or metric.unit == "1" else f"{tag} ({metric.unit})"


def chart_layout(tags: Iterable[str]) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """Return the categories and charts of the Custom Scalars page that hold one of `tags`.

    A chart is a kind and its tags, as torch.utils.tensorboard's `custom_scalars` takes them: a "Margin" of a value, its
    low and its high, or a "Multiline" of regular expressions. Tags of agent types or tasks have charts of their own.
    """
    known = set(tags)
    layout: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for metric in METRICS.values():
        if metric.chart is None:
            continue
        category, title = metric.chart
        if any(tag.startswith(f"{metric.tag}/") for tag in known):
            typed = f"{title.partition(' (')[0]} by agent type or task"
            layout.setdefault(category, {})[typed] = ("Multiline", [f"{metric.tag}/"])
        if metric.tag in known:
            kind, chart_tags = layout.setdefault(category, {}).setdefault(title, ("Multiline", []))
            layout[category][title] = (kind, [*chart_tags, f"{metric.tag}$"])
    for charts in layout.values():
        for title, (_, chart_tags) in charts.items():
            if len(chart_tags) == 3:
                charts[title] = ("Margin", [tag.rstrip("$") for tag in chart_tags])
    return layout
