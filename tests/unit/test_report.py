"""Reports on known curves: tables, data files, figures, pages, warnings and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marl.config import default_config, override, to_yaml
from marl.errors import CheckpointError, ConfigError
from marl.experiments.report.analysis import Options, analyze
from marl.experiments.report.command import ReportCommand, compare_runs, parse_bounds
from marl.experiments.report.published import read_published
from marl.experiments.report.results_file import to_json
from marl.experiments.report.runs import RunGroup, find_runs, group_runs, mean_curves, read_curve
from marl.experiments.report.tables import overall_table, task_table


def write_run(folder, seed, scores, agent="mat", tests=None, **settings):
    """A run that wins with frequency scores[s] in the two episodes of step s, and tests[s] in those on test seeds."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        to_yaml(override(default_config("toy/climbing", agent), {"seed": seed} | settings))
    )
    rows = [
        {"step": step, "split": split, "episode": i, "episode_return": 10 * score, "length": 7}
        | {"info": {"success": score + 0.1 * (-1) ** i}, "type_returns": {"prey": score}}
        for split, each in (("validation", scores), ("test", tests or {}))
        for step, score in each.items()
        for i in range(2)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(*runs, **options):
    return compare_runs(ReportCommand(tuple(runs), **options))


def column(table, header):
    return [row[table.headers.index(header)] for row in table.rows]


def group(env, name, *ends, steps=(1, 2)):
    """A group of runs whose scores are 0 before the last step."""
    curves = {seed: dict.fromkeys(steps, 0.0) | {steps[-1]: end} for seed, end in enumerate(ends)}
    return RunGroup(env, name, curves, {seed: {} for seed in curves})


def test_means_and_intervals_over_seeds(tmp_path):
    curves = [{100: 0.2, 200: 0.5}, {100: 0.4, 200: 0.9}, {100: 0.3, 200: 0.7, 300: 1.0}]
    folders = [write_run(tmp_path / f"run{seed}", seed, curve) for seed, curve in enumerate(curves)]
    (group,) = group_runs(folders, "success")
    (row,) = analyze([group], Options("success", threshold=0.7, interval="student", at=(50, 150))).rows
    expected = stats.ttest_1samp([0.5, 0.9, 0.7], 0.0).confidence_interval()
    assert (row.steps, row.mean.tolist()) == ((100, 200), pytest.approx([0.3, 0.7]))
    assert (row.low[1], row.high[1]) == pytest.approx((expected.low, min(expected.high, 1.0)))
    assert (row.reached, row.reached_by) == (200, 2)
    assert row.at[0] is None
    assert row.at[1].value == pytest.approx(0.3)
    assert row.on_the_way.value == pytest.approx(0.5)
    (row,) = analyze([group], Options("success")).rows
    assert row.final.low == pytest.approx(0.5), "the bootstrap of three seeds reaches the lowest"
    assert row.final.high == pytest.approx(0.9)
    (one,) = analyze(group_runs(folders[:1], "return"), Options()).rows
    assert one.mean[0] == pytest.approx(2.0)
    assert np.isnan(one.low).all()


def test_a_folder_stands_for_the_runs_below_it(tmp_path):
    runs = [tmp_path / "toy-climbing" / name / "1" for name in ("mappo", "mat")]
    for folder in runs:
        folder.parent.mkdir(parents=True)
        write_run(folder, 1, {100: 0.25}, folder.parent.name)
    assert find_runs(tmp_path) == runs
    assert find_runs(runs[0]) == runs[:1]
    assert find_runs(tmp_path / "absent") == [tmp_path / "absent"]


def test_episodes_without_an_end_or_a_number_are_left_out(tmp_path):
    folder = write_run(tmp_path / "a", 1, {100: 0.5, 200: 0.5})
    rows = [
        {"step": 100, "episode_return": 2.0, "length": 9, "info": {}, "cut": True},
        {"step": 100, "episode_return": float("nan"), "length": 9, "info": {"success": 1.0, "score": 1.0}},
        {"step": 300, "episode_return": 2.0, "length": 9, "info": {}, "cut": True},
    ]
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    lines = [line | {"info": {"success": 0.5, "score": 4.0}} for line in lines] + rows
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(folder, "score") == {100: 3.0, 200: 4.0}
    assert read_curve(folder, "success") == {100: pytest.approx(0.5), 200: 0.5, 300: 0.0}
    assert read_curve(folder, "return")[100] == 4.0
    compare_runs(ReportCommand((folder,), "score"))


def test_runs_that_differ_in_settings_are_told_apart(tmp_path):
    slow, fast = ({"learning_rate": rate} for rate in (1e-4, 1e-3))
    folders = [
        write_run(tmp_path / "a", 1, {100: 0.5}, **slow),
        write_run(tmp_path / "b", 1, {100: 0.7}, **fast, init_from="runs/one"),
        write_run(tmp_path / "c", 2, {100: 0.9}, **fast, init_from="runs/two", steps=7),
        write_run(tmp_path / "d", 1, {100: 0.1}, "mappo"),
        write_run(tmp_path / "e", 2, {100: 0.1}, "mappo", micro_batch=64, steps=7),
        write_run(tmp_path / "f", 1, {100: 0.1}, "ippo", anneal_learning_rate=True, steps=7),
        write_run(tmp_path / "g", 1, {100: 0.1}, "ippo", eval_stochastic=True),
    ]
    groups = group_runs(folders, "success")
    assert [(group.name, list(group.curves)) for group in groups] == [
        ("mat init_from=False learning_rate=0.0001", [1]),
        ("mat init_from=True learning_rate=0.001", [1, 2]),
        ("mappo", [1, 2]),
        ("ippo anneal_learning_rate=True eval_stochastic=False steps=7", [1]),
        ("ippo anneal_learning_rate=False eval_stochastic=True", [1]),
    ]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", 1, {100: 0.5, 200: 0.7})
    rows = folder / "evaluations.jsonl"
    rows.write_text(rows.read_text() + '{"step": 300, "epis')
    assert list(read_curve(folder, "return")) == [100, 200]
    rows.write_text('{"step": 300, "epis\n' + rows.read_text())
    with pytest.raises(CheckpointError, match=r"cannot read .*evaluations\.jsonl: "):
        read_curve(folder, "return")
    rows.unlink()
    with pytest.raises(CheckpointError, match="was never evaluated"):
        read_curve(folder, "return")


def test_the_score_at_the_end_is_of_the_test_seeds(tmp_path):
    """The validation seeds have chosen: by luck alone their best is too high."""
    folders = [
        write_run(tmp_path / "a", 1, {100: 0.9, 200: 0.5}, tests={200: 0.1}),
        write_run(tmp_path / "b", 2, {100: 0.7, 200: 0.5}, tests={200: 0.3}),
        write_run(tmp_path / "c", 1, {100: 0.6, 200: 0.4}, "mappo"),
    ]
    groups = group_runs(folders, "success")
    made = task_table(analyze(groups, Options("success")))
    assert column(made, "steps") == ["200", "200"]
    assert [cell.split(" (")[0] for cell in column(made, "success at the end (95 %)")] == ["20 %", "40 % *"]
    assert column(made, "highest on the way") == ["80 % at 100", "60 % at 100"]
    assert "test seeds" in made.notes[0]
    assert to_json(groups, "success")["test"]["toy/climbing"]["mat"] == {"1": {"200": 0.1}, "2": {"200": 0.3}}
    assert group_runs(folders[:1], "return/prey")[0].scores(200) == [0.1]


def test_agents_over_all_environments():
    groups = [
        group("a", "mat", 0.2, 0.4),
        group("b", "mat", 0.6, 1.0),
        group("a", "mappo", 0.5, 0.3, steps=(1, 2, 3)),
        group("b", "mappo", 0.8, 0.9, steps=(1, 2, 3)),
    ]

    def aggregates(groups, metric="success", **options):
        return analyze(groups, Options(metric, **options)).aggregates

    mat, mappo = aggregates(groups)
    # Two quarters of four scores remain; mappo's last step is one that mat never reached.
    assert (mat.iqm.value, mappo.iqm.value) == (pytest.approx(0.5), 0.0)
    assert mat.on_the_way.value == pytest.approx(0.25)
    assert (mat.median.value, mat.optimality_gap.value) == (pytest.approx(0.55), pytest.approx(0.45))
    assert mappo.improvement["mat"].value == 0.0
    assert mat.iqm.low < 0.5 < mat.iqm.high
    assert mat.profile[0, [0, 30, 99, 100]] == pytest.approx([1.0, 0.75, 0.25, 0.0])
    assert mat.efficiency[0, -1] == pytest.approx(0.5)
    assert mat.efficiency[0, 10] == 0.0
    assert np.isnan(mat.efficiency[0, 0]), "no evaluation before 5 % of the steps"
    made = overall_table(analyze(groups, Options("success")))
    assert column(made, "P(improvement on MAT)") == ["-", "0 (0 to 0)"]
    assert aggregates(groups, "return") == ()
    scaled, _ = aggregates(groups, "return", bounds={"": (0.0, 2.0), "b": (-1.0, 1.0)})
    # A quarter of four scores is dropped at each end: 0.1, 0.2, 0.8, 1.
    assert scaled.iqm.value == pytest.approx(0.5)
    assert scaled.mean.value == pytest.approx((0.1 + 0.2 + 0.8 + 1.0) / 4)
    assert aggregates(groups[:3]) == ()
    assert aggregates(groups[::2]) == ()
    assert aggregates([*groups[:3], group("b", "mappo", 0.8)])[0].iqm.value == pytest.approx(0.5)
    assert aggregates([*groups[:3], group("b", "mappo", 0.8, 0.9, steps=(7, 8))]) == ()


def test_what_makes_scores_incomparable_is_said(tmp_path):
    rows = [
        write_run(tmp_path / "a", 1, {100: 0.5}, eval_episodes=8),
        write_run(tmp_path / "b", 1, {100: 0.5}, "mappo", eval_episodes=16),
        write_run(tmp_path / "c", 1, {100: 0.6}, "ippo", eval_stochastic=True, length=3),
        write_run(tmp_path / "d", 1, {100: 0.6, 200: 0.6}, "happo"),
    ]
    for name, version in (("a", "0.1.0"), ("b", "0.2.0")):
        folder = tmp_path / name / "checkpoints" / "step_1"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"versions": {"seqmarl": version}}))
    warnings = "\n".join(analyze(group_runs(rows, "success"), Options("success")).warnings)
    assert "fewer than 5 seeds" in warnings
    assert "mixed episodes on toy/climbing" in warnings
    assert "mat 8, mappo 16" in warnings
    assert "mixed actions on toy/climbing" in warnings
    assert "mixed environment options" in warnings
    assert "mixed version on toy/climbing, so scores are not comparable: mat 0.1.0, mappo 0.2.0" in warnings
    assert "identical curves on toy/climbing: mat and mappo" in warnings
    five = [group("a", "mat", 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert analyze(five, Options("success")).warnings == ()


def test_scores_outside_their_bounds_are_named():
    with pytest.raises(ConfigError, match=r"return=0.9 of mat on a, seed 1, step 2 lies outside its bounds 0 to 0.5"):
        analyze([group("a", "mat", 0.2, 0.9)], Options("return", bounds={"a": (0.0, 0.5)}))
    with pytest.raises(ConfigError, match="bounds name 'b', which has no run"):
        analyze([group("a", "mat", 0.2)], Options("return", bounds={"b": (0.0, 0.5)}))
    assert parse_bounds(("0:500", "mamujoco/Ant-v5=-1:2e3")) == {"": (0, 500), "mamujoco/Ant-v5": (-1, 2000)}
    for wrong in ("500", "5:0", "a=b:c", "1:2:3"):
        with pytest.raises(ConfigError, match="is not LOW:HIGH"):
            parse_bounds((wrong,))


def test_published_scores_are_tabled_with_their_source():
    assert len({(each.task, each.agent, each.metric, each.source) for each in read_published()}) == len(
        read_published()
    )
    assert all(0 <= each.value <= 1 for each in read_published() if each.metric == "success")
    made = task_table(analyze([group("smac/MMM", "mat", 0.9), group("smac/MMM", "mat-bad", 0.9)], Options("success")))
    assert column(made, "published") == ["100 % at 2000 k +", "-"]
    assert "Wen et al. 2022" in made.notes[-1]
    assert "+: StarCraft II itself" in made.notes[-1]


def test_wrong_runs_are_named(tmp_path):
    one = write_run(tmp_path / "one", 1, {100: 0.5})
    with pytest.raises(ConfigError, match=r"two is a second run of mat on toy/climbing with seed 1 and the same"):
        group_runs([one, write_run(tmp_path / "two", 1, {100: 0.5})], "return")
    with pytest.raises(ConfigError, match=r"no 'wins': unknown metric 'wins'; known: length, return, return/prey, suc"):
        group_runs([one], "wins")
    with pytest.raises(ConfigError, match=r"no 'sucess': unknown metric 'sucess'; did you mean 'success'"):
        group_runs([one], "sucess")
    with pytest.raises(CheckpointError, match="was never evaluated"):
        group_runs([write_run(tmp_path / "none", 1, {})], "return")
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        group_runs([tmp_path], "return")
    with pytest.raises(ConfigError, match="report needs runs"):
        command()
    for options, message in (
        ({"out": tmp_path / "no" / "out"}, "folder does not exist"),
        ({"out": Path()}, "a folder; give the name of a file in it"),
        ({"out": tmp_path / "x", "format": ("htm",)}, "unknown format 'htm'; did you mean 'html'"),
        ({"format": ("html",)}, "format=html needs a file; give --out"),
        ({"out": tmp_path / "x.svg", "x": "time"}, "no training time on record"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(one, **options)
    assert not list(tmp_path.glob("*x.*"))
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "never", 2, {})
    with pytest.raises(ConfigError, match=r"no run in .* can be reported on: left out, because it was never evaluated"):
        command(tmp_path / "runs")


def test_copies_that_other_trackers_keep_are_no_runs(tmp_path):
    run = write_run(tmp_path / "run", 1, {100: 0.5})
    for copy in (run / "wandb" / "offline-run" / "files", tmp_path / "mlruns" / "1" / "artifacts"):
        copy.mkdir(parents=True)
        (copy / "config.yaml").write_text((run / "config.yaml").read_text())
    assert find_runs(tmp_path) == [run]


def test_an_unknown_split_is_named(tmp_path):
    row = {"episode_return": 1.0, "length": 1, "info": {}, "step": 0, "split": "holdout"}
    with pytest.raises(CheckpointError, match="split='holdout'"):
        mean_curves([row], "return", tmp_path)
