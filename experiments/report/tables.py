"""Tables of a report: for the terminal, as Markdown, as LaTeX (booktabs), and as tidy CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Column
from rich.table import Table as RichTable

from marl.experiments.report.analysis import Estimate, Report, Row
from marl.experiments.report.styles import label, task_label

PERCENTAGES = frozenset({"success"})
"""Metrics that are shown in per cent."""

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Table:
    """Cells as text, with a caption and notes. `left`: number of columns of text, before those of numbers."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 2


def format_score(metric: str, value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """Format a mean and its interval: success in per cent, clipped to 0 to 100, other metrics with four digits."""
    if metric in PERCENTAGES:
        interval = "" if np.isnan(low) else f" ({100 * max(low, 0.0):.0f} to {100 * min(high, 1.0):.0f})"
        return f"{100 * value:.0f} %{interval}"
    interval = "" if np.isnan(low) else f" ({number(low)} to {number(high)})"
    return f"{number(value)}{interval}"


def number(value: float) -> str:
    """Format a number with four digits, without an exponent below ten million."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def estimate(metric: str, each: Estimate) -> str:
    """Format a statistic and its interval."""
    return format_score(metric, each.value, each.low, each.high)


def step_count(steps: int) -> str:
    """Format environment steps in thousands from 10,000 on."""
    return f"{steps:,}" if steps < 10_000 else f"{steps / 1000:.0f} k"


def task_table(report: Report) -> Table:
    """Return the table with a row for each task and agent."""
    options, tasks = report.options, report.tasks
    metric = options.metric
    published = any(row.published for row in report.rows)
    any_tested = any(row.tested for row in report.rows)
    headers = ["task", "agent", "seeds", "steps"]
    headers += [f"at {step_count(step)}" for step in options.at]
    if options.threshold is not None:
        headers.append(f"{format_score(metric, options.threshold)} reached after")
    headers += [f"{metric} at the end (95 %)", "on the way", "highest on the way"]
    headers += ["published"] if published else []
    rows = []
    for row in report.rows:
        cells = [task_label(row.group.env, tasks), label(row.group.name), str(len(row.group.curves))]
        cells.append(step_count(row.steps[-1]))
        cells += ["-" if each is None else estimate(metric, each) for each in row.at]
        if options.threshold is not None:
            cells.append("-" if row.reached is None else step_count(row.reached))
        mark = " *" if any_tested and not row.tested else ""
        cells += [estimate(metric, row.final) + mark, format_score(metric, row.on_the_way.value)]
        cells.append(f"{format_score(metric, row.best.value)} at {step_count(row.best_step)}")
        cells += [published_cell(row, metric)] if published else []
        rows.append(tuple(cells))
    return Table(f"{metric} by task", tuple(headers), tuple(rows), tuple(task_notes(report)))


def score_table(report: Report) -> Table:
    """Return the table of final scores, one row for each agent and a column for each task, or the other way round."""
    tasks, names = report.tasks, report.names
    found = {(row.group.env, row.group.name): estimate(report.options.metric, row.final) for row in report.rows}
    shown = [task_label(task, tasks) for task in tasks]
    if report.options.rows == "agents":
        headers = ("agent", *shown)
        rows = [(label(name), *(found.get((task, name), "-") for task in tasks)) for name in names]
    else:
        headers = ("task", *map(label, names))
        rows = [
            (text, *(found.get((task, name), "-") for name in names)) for task, text in zip(tasks, shown, strict=True)
        ]
    at_end = next(iter(task_notes(report)))
    return Table(f"{report.options.metric} at the end (95 %)", headers, tuple(rows), (at_end,), left=1)


def task_notes(report: Report) -> Iterable[str]:
    """Yield the notes of the table by task."""
    if all(row.tested for row in report.rows):
        yield "At the end: test seeds."
    elif any(row.tested for row in report.rows):
        yield "At the end: test seeds (*: validation seeds, because there is no test evaluation)."
    else:
        yield "At the end: validation seeds, because there is no test evaluation."
    yield "On the way: mean over the evaluations. Highest on the way: validation seeds, so it is biased upwards."
    sources = {(each.source, each.table, each.version) for row in report.rows for each in row.published}
    for source, table, version in sorted(sources):
        yield f"Published: {source}, {table}" + (f" (+: {version})." if version else ".")


def published_cell(row: Row, metric: str) -> str:
    """Format the published scores of a row; a plus marks another environment version."""
    cells = []
    for each in row.published:
        about = "about " if each.approximate else ""
        mark = " +" if each.version else ""
        cells.append(f"{about}{format_score(metric, each.value)} at {step_count(each.steps)}{mark}")
    return ", ".join(cells) or "-"


def overall_table(report: Report) -> Table | None:
    """Return the table of aggregates over tasks, or None if there are none."""
    if not report.aggregates:
        return None
    first = report.aggregates[0].name
    scale = report.options.metric if not report.options.bounds else ""
    headers = ("agent", "IQM at the end (95 %)", "median", "mean", "optimality gap", "IQM on the way")
    headers += (f"P(improvement on {label(first)})",)
    rows = tuple(
        (
            label(each.name),
            *(
                format_score(scale, *_rounded(found, 9 if scale else 3))
                for found in (each.iqm, each.median, each.mean, each.optimality_gap, each.on_the_way)
            ),
            "-" if each.name == first else format_score("", *_rounded(each.improvement[first])),
        )
        for each in report.aggregates
    )
    ends = ", ".join(f"{task_label(env, report.tasks)} {step_count(step)}" for env, step in report.ends.items())
    seeds = "test seeds" if report.all_tested else "validation seeds"
    notes = (f"At the end: {seeds} at the last step at which all agents were evaluated: {ends}.",)
    if report.options.bounds:
        notes += ("Scores are scaled by the bounds of their task, so that 0 is the lowest and 1 the highest.",)
    return Table(f"{report.options.metric} over {len(report.ends)} tasks", headers, rows, notes, left=1)


def improvement_table(report: Report) -> Table | None:
    """Return the matrix of probabilities of improvement, or None without aggregates."""
    if not report.aggregates:
        return None
    names = [each.name for each in report.aggregates]
    rows = tuple(
        (
            label(each.name),
            *("-" if n == each.name else format_score("", *_rounded(each.improvement[n])) for n in names),
        )
        for each in report.aggregates
    )
    caption = "Probability that a run of the row's agent scores higher than one of the column's"
    return Table(caption, ("agent", *map(label, names)), rows, left=1)


def _rounded(each: Estimate, digits: int = 2) -> tuple[float, float, float]:
    """Return value, low and high with `digits` decimals."""
    return round(each.value, digits), round(each.low, digits), round(each.high, digits)


def tables(report: Report) -> list[Table]:
    """Return all tables that a report has."""
    by_task = {"runs": task_table, "overall": lambda _: None}.get(report.options.rows, score_table)
    return [made for made in (by_task(report), overall_table(report), improvement_table(report)) if made]


def to_rich(table: Table) -> RichTable:
    """Return a table for the terminal."""
    columns = [Column(each, overflow="fold") for each in table.headers]
    made = RichTable(*columns, title=table.caption, caption="\n".join(table.notes) or None)
    for row in table.rows:
        made.add_row(*row)
    return made


def to_markdown(table: Table) -> str:
    """Return a table as Markdown, without caption and notes."""
    escape = [[cell.replace("|", "\\|") for cell in cells] for cells in (table.headers, *table.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in escape]
    return "\n".join([lines[0], "|" + "---|" * len(table.headers), *lines[1:]]) + "\n"


def markdown_page(report: Report) -> str:
    """Return all tables with captions, notes and warnings."""
    parts = [f"# {report.options.metric} of {', '.join(map(label, report.names))}\n"]
    parts += [f"> **Warning:** {each}\n" for each in report.warnings]
    for table in tables(report):
        parts += [f"## {table.caption}\n", to_markdown(table), *(f"{note}\n" for note in table.notes)]
    return "\n".join(parts)


def to_latex(table: Table) -> str:
    """Return a table in LaTeX with the rules of the package booktabs."""
    alignment = "l" * table.left + "r" * (len(table.headers) - table.left)
    lines = [f"{' & '.join(map(latex, cells))} \\\\" for cells in (table.headers, *table.rows)]
    body = "\n".join(lines[1:])
    notes = "".join(f" {latex(note)}" for note in table.notes)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{latex(table.caption)}.{notes}}}\n"
        f"\\begin{{tabular}}{{{alignment}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n"
        f"\\end{{tabular}}\n\\end{{table}}\n"
    )


def latex(text: str) -> str:
    """Return text with LaTeX's special characters escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def latex_page(report: Report) -> str:
    """Return all tables, with warnings as comments."""
    head = "% Needs \\usepackage{booktabs}\n" + "".join(f"% Warning: {each}\n" for each in report.warnings)
    return head + "\n" + "\n".join(map(to_latex, tables(report)))


def to_csv(report: Report) -> str:
    """Return every statistic in tidy form: one line for each task, agent, statistic and step."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "agent", "metric", "statistic", "step", "value", "low", "high", "seeds", "split"])
    metric = report.options.metric

    def write(task: str, name: str, statistic: str, step: object, values: Sequence[float], *rest: object) -> None:
        writer.writerow(
            [task, name, metric, statistic, step, *(f"{v:.6g}" if np.isfinite(v) else "" for v in values), *rest]
        )

    for row in report.rows:
        who, seeds = (row.group.env, row.group.name), len(row.group.curves)
        for step, *values in zip(row.steps, row.mean, row.low, row.high, strict=True):
            write(*who, "mean", step, values, seeds, "validation")
        for statistic, step, each, split in (
            ("end", row.steps[-1], row.final, "test" if row.tested else "validation"),
            ("highest on the way", row.best_step, row.best, "validation"),
            ("on the way", "", row.on_the_way, "validation"),
        ):
            write(*who, statistic, step, (each.value, each.low, each.high), seeds, split)
        if report.options.threshold is not None:
            nan = float("nan")
            write(*who, f"reached {report.options.threshold:g}", row.reached or "", (nan, nan, nan), row.reached_by, "")
        for each in row.published:
            statistic = f"published: {each.source}, {each.table}" + (f"; {each.version}" if each.version else "")
            write(*who, statistic, each.steps, (each.value, float("nan"), float("nan")), "", "")
    split = "test" if report.all_tested else "validation"
    for each in report.aggregates:
        for statistic, found in (
            ("IQM", each.iqm),
            ("median", each.median),
            ("mean", each.mean),
            ("optimality gap", each.optimality_gap),
            ("IQM on the way", each.on_the_way),
            *((f"P(improvement on {name})", found) for name, found in each.improvement.items()),
        ):
            write("all", each.name, statistic, "", (found.value, found.low, found.high), "", split)
    return file.getvalue()
