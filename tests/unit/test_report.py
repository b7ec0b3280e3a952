"""Runs side by side: what the table, the JSON and the picture say of known curves."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from marl.config import default_config, override, to_yaml
from marl.errors import CheckpointError, ConfigError
from marl.experiments.report import (
    RunGroup,
    compare_runs,
    draw,
    find_runs,
    group_runs,
    overall,
    read_curve,
    table,
    to_json,
)


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


def test_means_and_intervals_over_seeds(tmp_path):
    curves = [{100: 0.2, 200: 0.5}, {100: 0.4, 200: 0.9}, {100: 0.3, 200: 0.7, 300: 1.0}]
    folders = [write_run(tmp_path / f"run{seed}", seed, curve) for seed, curve in enumerate(curves)]
    (group,) = group_runs(folders, "success")
    assert group.steps() == [100, 200]
    mean, low, high = group.at(200)
    expected = stats.ttest_1samp([0.5, 0.9, 0.7], 0.0).confidence_interval()
    assert (mean, low, high) == pytest.approx((0.7, expected.low, expected.high))
    (one,) = group_runs(folders[:1], "return")
    assert one.at(100)[0] == pytest.approx(2.0)
    assert np.isnan(one.at(100)[1])


def test_report_writes_what_it_shows(tmp_path, capsys):
    folders = [write_run(tmp_path / name, 1, {100: 0.25, 200: 0.5}, name) for name in ("mat", "mappo")]
    compare_runs(folders, "success", tmp_path / "climb.png")
    assert "mappo" in capsys.readouterr().out
    data = json.loads((tmp_path / "climb.json").read_text())
    assert data["environments"]["toy/climbing"]["mat"]["1"] == {"100": 0.25, "200": 0.5}
    assert (tmp_path / "climb.png").stat().st_size > 10_000


def test_a_folder_stands_for_the_runs_below_it(tmp_path):
    runs = [tmp_path / "toy-climbing" / name / "1" for name in ("mappo", "mat")]
    for folder in runs:
        folder.parent.mkdir(parents=True)
        write_run(folder, 1, {100: 0.25}, folder.parent.name)
    assert find_runs(tmp_path) == runs
    assert find_runs(runs[0]) == runs[:1]
    assert find_runs(tmp_path / "absent") == [tmp_path / "absent"]


def test_the_score_at_the_end_is_of_the_test_seeds(tmp_path):
    """The validation seeds have chosen: by luck alone their best is too high."""
    folders = [
        write_run(tmp_path / "a", 1, {100: 0.9, 200: 0.5}, tests={200: 0.1}),
        write_run(tmp_path / "b", 2, {100: 0.7, 200: 0.5}, tests={200: 0.3}),
        write_run(tmp_path / "c", 1, {100: 0.6, 200: 0.4}, "mappo"),
    ]
    groups = group_runs(folders, "success")
    made = table(groups, "success")
    cells = [[str(cell) for cell in column.cells] for column in made.columns]
    assert cells[3] == ["200", "200"]
    assert [cell.split(" (")[0] for cell in cells[4]] == ["20 %", "40 % *"]
    assert [cell.split(" (")[0] for cell in cells[5]] == ["80 %", "60 %"]
    assert "test seeds" in str(made.caption)
    assert to_json(groups, "success")["test"]["toy/climbing"]["mat"] == {"1": {"200": 0.1}, "2": {"200": 0.3}}
    assert group_runs(folders[:1], "return/prey")[0].scores(200) == [0.1]


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
    compare_runs([folder], "score", None)


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


def test_a_single_evaluation_is_seen(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    drawn = []
    for score in (0.2, 0.8):
        folders = [write_run(tmp_path / f"run{score}-{seed}", seed, {100 + seed: score}) for seed in (1, 2)]
        draw(group_runs(folders, "success"), "success", tmp_path / "one.png")
        drawn.append(imageio.imread(tmp_path / "one.png"))
    assert (drawn[0] != drawn[1]).any()


def test_agents_over_all_environments():
    def group(env, name, *ends, steps=(1, 2)):
        curves = {seed: dict.fromkeys(steps, 0.0) | {steps[-1]: end} for seed, end in enumerate(ends)}
        return RunGroup(env, name, curves, {seed: {} for seed in curves})

    groups = [
        group("a", "mat", 0.2, 0.4),
        group("b", "mat", 0.6, 1.0),
        group("a", "mappo", 0.5, 0.3, steps=(1, 2, 3)),
        group("b", "mappo", 0.8, 0.9, steps=(1, 2, 3)),
    ]
    made = overall(groups, "success")
    assert made is not None
    agents, end, way, better = ([str(cell) for cell in column.cells] for column in made.columns)
    assert agents == ["mat", "mappo"]
    # Two quarters of four scores remain; mappo's last step is one that mat never reached.
    assert [cell.split(" (")[0] for cell in end] == ["50 %", "0 %"]
    assert [cell.split(" (")[0] for cell in way] == ["25 %", "0 %"]
    assert better == ["-", "0.00"]
    assert re.fullmatch(r"50 % \(\d+ to \d+\)", end[0])
    assert overall(groups, "return") is None
    assert overall(groups[:3], "success") is None
    assert overall(groups[::2], "success") is None
    assert overall([*groups[:3], group("b", "mappo", 0.8)], "success") is None
    assert overall([*groups[:3], group("b", "mappo", 0.8, 0.9, steps=(7, 8))], "success") is None


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


def test_wrong_runs_are_named(tmp_path):
    one = write_run(tmp_path / "one", 1, {100: 0.5})
    with pytest.raises(ConfigError, match=r"two is a second run of mat on toy/climbing with seed 1 and the same"):
        group_runs([one, write_run(tmp_path / "two", 1, {100: 0.5})], "return")
    with pytest.raises(ConfigError, match=r"no 'wins'; give one of length, return, return/prey, success"):
        group_runs([one], "wins")
    with pytest.raises(CheckpointError, match="was never evaluated"):
        group_runs([write_run(tmp_path / "none", 1, {})], "return")
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        group_runs([tmp_path], "return")
    with pytest.raises(ConfigError, match="folder does not exist"):
        compare_runs([one], "return", tmp_path / "no" / "out")
    with pytest.raises(ConfigError, match="a folder; give the name of a file in it"):
        compare_runs([one], "return", Path())
