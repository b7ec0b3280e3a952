"""Files of a report: results that are read again, marl-eval's JSON, tables as text, figures and the web page."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from marl.errors import ConfigError
from marl.experiments.report.analysis import Options, analyze
from marl.experiments.report.command import ReportCommand, compare_runs
from marl.experiments.report.figure import draw_report
from marl.experiments.report.page import page
from marl.experiments.report.results_file import read_results, to_json, to_marl_eval
from marl.experiments.report.runs import RunGroup, read_clock
from marl.experiments.report.styles import COLORS, color, dashes, label, shorten, task_label
from marl.experiments.report.tables import latex_page, markdown_page, tables, to_csv

STEPS = (1000, 20_000, 30_000)


def make_groups(tasks=("toy/a", "toy/b"), names=("mat", "mappo<i>")):
    groups = []
    for number, (task, name) in enumerate((task, name) for task in tasks for name in names):
        curves = {
            s: dict(zip(STEPS, (round(0.1 * number, 6), round(0.2 + 0.1 * s, 6), round(0.3 + 0.2 * s, 6)), strict=True))
            for s in range(3)
        }
        clocks = {seed: {30_000: 60.0 * (seed + 1)} for seed in curves}
        tests = {seed: {30_000: 0.2 + 0.1 * seed} for seed in curves}
        groups.append(RunGroup(task, name, curves, tests, clocks, {"episodes": {"8"}}))
    return groups


REPORT = analyze(make_groups(), Options("success", threshold=0.3, at=(20_000,)))


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(to_json(make_groups(), "success")))
    metric, groups = read_results(path)
    assert metric == "success"
    again = analyze(groups, REPORT.options)
    assert to_csv(again) == to_csv(REPORT)
    assert again.warnings == REPORT.warnings
    old = {"metric": "success", "environments": to_json(make_groups(), "success")["environments"]}
    path.write_text(json.dumps(old))
    assert [group.curves for group in read_results(path)[1]] == [group.curves for group in make_groups()]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "cannot read"),
        ("{", "cannot read"),
        ("[]", "is no results file"),
        ('{"environments": {}}', "has no runs"),
        ('{"format": 9, "environments": {}}', "has format 9, this seqmarl reads formats up to 2; update it"),
        ('{"environments": {"a": {"mat": {"1": {}}}}}', "has no evaluation of mat on a"),
        ('{"environments": {"a": {"mat": {"one": {"1": 2}}}}}', "is no results file: invalid literal"),
        ('{"environments": {"a": []}}', "is no results file"),
    ],
)
def test_results_that_cannot_be_read_are_named(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_text(data)
    with pytest.raises(ConfigError, match=message):
        read_results(path)


def test_results_files_take_the_place_of_runs(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, task in zip(paths, ("toy/a", "toy/b"), strict=True):
        path.write_text(json.dumps(to_json(make_groups((task,)), "success")))
    compare_runs(ReportCommand(tuple(paths), out=tmp_path / "both.csv"))
    assert "success over 2 tasks" in capsys.readouterr().out
    assert (tmp_path / "both.csv").read_text().count("\nall,mat,success,IQM,") == 1
    with pytest.raises(ConfigError, match="holds 'success', not 'return'"):
        compare_runs(ReportCommand((paths[0],), metric="return"))
    with pytest.raises(ConfigError, match="mat on toy/a is given twice"):
        compare_runs(ReportCommand((paths[0], paths[0])))


def test_marl_eval_gets_the_structure_that_it_reads():
    groups = [*make_groups(), RunGroup("toy/a", "ippo,lr", {7: {20_000: 0.5}}, {7: {}})]
    data = to_marl_eval(groups, "success")
    assert list(data) == ["toy"]
    assert list(data["toy"]) == ["a", "b"]
    assert list(data["toy"]["a"]) == ["mat", "mappo<i>", "ippo;lr"]
    run = data["toy"]["a"]["mat"]["seed_1"]
    assert run == {
        "step_0": {"step_count": 20_000, "success": [pytest.approx(0.3)]},
        "absolute_metrics": {"success": [pytest.approx(0.3)]},
    }
    with pytest.raises(ConfigError, match="share no evaluation step"):
        to_marl_eval([*groups, RunGroup("toy/a", "happo", {1: {5: 0.5}}, {1: {}})], "success")


def test_marl_eval_aggregates_the_same_scores():
    tools = pytest.importorskip("marl_eval.utils.data_processing_utils")
    processed = tools.data_process_pipeline(to_marl_eval(make_groups(), "success"), [])
    single = tools.get_and_aggregate_data_single_task(processed, "success", [], "a", "toy")
    assert single["mat"]["mean"] == pytest.approx(REPORT.rows[0].mean)
    absolute, curves = tools.create_matrices_for_rliable(processed, "toy", [])
    assert np.shape(curves["mean_success"]["mat"]) == (3, 2, 3)
    assert absolute["mean_success"]["mat"] == pytest.approx(np.array([[0.2] * 2, [0.3] * 2, [0.4] * 2]))


def test_tables_as_text():
    rows = list(csv.DictReader(io.StringIO(to_csv(REPORT))))
    (end,) = [r for r in rows if (r["task"], r["agent"], r["statistic"]) == ("toy/b", "mat", "end")]
    assert (float(end["value"]), end["seeds"], end["split"], end["step"]) == (0.3, "3", "test", "30000")
    assert {r["statistic"] for r in rows if r["task"] == "all"} >= {"IQM", "median", "optimality gap"}
    markdown = markdown_page(REPORT)
    assert "| a | MAT | 3 | 30 k | 30 % (20 to 40) | 20 k | 30 % (20 to 40) | 27 % | 50 % at 30 k |" in markdown
    assert "**Warning:** fewer than 5 seeds" in markdown
    latex = latex_page(REPORT)
    assert latex.count("\\toprule") == latex.count("\\bottomrule") == 3
    assert "a & MAT & 3 & 30 k & 30 \\% (20 to 40) & 20 k & 30 \\% (20 to 40)" in latex
    assert not re.search(r"(?<!\\)%(?! Needs| Warning)", latex)


def test_final_scores_by_agent_and_by_task():
    by_agent, by_task, overall = (
        tables(analyze(make_groups(), Options("success", rows=rows)))[0] for rows in ("agents", "tasks", "overall")
    )
    assert by_agent.headers == ("agent", "a", "b")
    assert by_agent.rows[0] == ("MAT", "30 % (20 to 40)", "30 % (20 to 40)")
    assert [row[0] for row in by_task.rows] == ["a", "b"]
    assert by_task.headers == ("task", *(row[0] for row in by_agent.rows))
    assert by_task.rows[1][1] == by_agent.rows[0][2]
    assert overall.headers[1].startswith("IQM")


def test_tables_of_a_page_are_written_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text(json.dumps(to_json(make_groups(), "success")))
    before, comment = "# Page\n\n", "<!-- marl report r.json --rows agents -->\n\n"
    Path("page.md").write_text(before + comment + "| old |\n\nText | stays.\n")
    compare_runs(ReportCommand(update=(Path("page.md"),)))
    text = Path("page.md").read_text()
    assert text.startswith(before + comment + "| agent | a | b |\n|---|---|---|\n| MAT | 30 % (20 to 40) |")
    assert text.endswith("|\n\nText | stays.\n")
    Path("other.md").write_text("<!-- marl report none.json -->\n\n| old |\n")
    with pytest.raises(ConfigError, match="cannot read none"):
        compare_runs(ReportCommand(update=(Path("page.md"), Path("other.md"))))
    Path("other.md").write_text("no table\n")
    with pytest.raises(ConfigError, match="has no table below a comment"):
        compare_runs(ReportCommand(update=(Path("other.md"),)))
    assert Path("page.md").read_text() == text


class Links(HTMLParser):
    """Collects elements and what they link to."""

    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_is_whole_and_loads_nothing():
    text = page(REPORT)
    parser = Links()
    parser.feed(text)
    assert parser.links == []
    assert not re.search(r"https?:|@import|url\(", text)
    assert parser.tags.count("table") == 3
    assert parser.tags.count("i") == 0, "names are escaped"
    assert "fewer than 5 seeds" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [panel["title"] for panel in data["panels"][:2]] == ["a", "b"]
    assert len(data["panels"]) == 4
    curve = data["panels"][0]["curves"][0]
    assert curve["x"] == list(STEPS)
    assert curve["time"][-1] == pytest.approx(120 / 3600)
    assert curve["seeds"]["2"] == pytest.approx([0.0, 0.4, 0.7])
    assert "training time" in text


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_figures_of_each_kind(tmp_path, kind):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"x.{kind}"
    report = REPORT if kind == "png" else analyze(make_groups(("toy/a",)), Options("success"))
    draw_report(report, path, kind, seeds=True, x="time")
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)


def test_a_single_evaluation_and_a_second_equal_curve_are_seen(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("matplotlib")
    pictures = []
    for scores in ({"mat": 0.2}, {"mat": 0.8}, {"mat": 0.8, "mappo": 0.8}):
        groups = [
            RunGroup("a", n, {1: {1: x, 2: x}} if len(scores) > 1 else {1: {1: x}}, {}) for n, x in scores.items()
        ]
        draw_report(analyze(groups, Options("success")), tmp_path / "one.png", "png")
        pictures.append(imageio.imread(tmp_path / "one.png")[..., :3])
    assert (pictures[0] != pictures[1]).any()
    for name in ("mat", "mappo"):
        rgb = np.array([int(color(name)[0][i : i + 2], 16) for i in (1, 3, 5)])
        line = (np.abs(pictures[2][:300].astype(int) - rgb).sum(axis=-1) < 12).sum()
        assert line > 200, f"{name} is hidden by the other"


def test_an_agent_has_one_color_in_every_figure():
    assert color("mat") == color("mat learning_rate=0.1") == COLORS["blue"]
    assert color("my.module:agent") == color("my.module:agent")
    assert len({color(name) for name in ("mat", "mat-dec", "mat-bad", "mappo", "happo", "ippo", "sable")}) == 7
    patterns = dashes(["mat", "mappo", "mat lr=1", "mat lr=2"])
    assert patterns["mat"] == patterns["mappo"] == ""
    assert len({patterns[name] for name in ("mat", "mat lr=1", "mat lr=2")}) == 3
    assert task_label("smac/3m", ["smac/3m", "smac/8m"]) == "3m"
    assert task_label("smac/3m", ["smac/3m", "toy/a"]) == "smac/3m"


def test_files_are_shown_with_their_last_folder():
    assert label("/home/me/v1/agent.py:make") == "v1/agent.py:make"
    assert label("mat advantage=/home/me/lib/gae.py:Mine") == "MAT advantage=lib/gae.py:Mine"
    assert task_label("/home/me/lib/env.py:make", ["/home/me/lib/env.py:make"]) == "lib/env.py:make"
    assert shorten("/a/b/c/x.py:f+/a/b/d/y.py:g on toy/climbing") == "c/x.py:f+d/y.py:g on toy/climbing"
    name = "/home/me/lib/agent.py:make"
    report = analyze(make_groups(names=("mat", name)), REPORT.options)
    assert f"| {name}" not in markdown_page(report)
    assert "| lib/agent.py:make |" in markdown_page(report)
    assert name not in " ".join(report.warnings)
    assert name in to_csv(report)


def test_the_clock_of_a_run(tmp_path):
    lines = [{"step": step, "x": 1, "speed/steps_per_second": speed} for step, speed in ((100, 50.0), (300, 100.0))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 400, "sp')
    assert read_clock(tmp_path) == {100: 2.0, 300: 4.0}
    assert read_clock(tmp_path / "none") == {}
