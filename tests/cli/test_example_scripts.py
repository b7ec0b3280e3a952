"""The example callback, tracker, environment and script run."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import marl
from marl import factories
from marl.envs.testing import check_env
from marl.registry import EnvFactory

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = {"num_envs": 4, "rollout_steps": 8, "epochs": 1, "eval_episodes": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder; modules of the examples are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]


def example(name):
    return factories.import_factory(f"{EXAMPLES}/{name}", "example")


def test_the_callback_records_a_data_set():
    callback = example("callback.py:RecordDataset")("data")
    marl.train(env="toy/copy", agent="mappo", steps=64, callbacks=[callback], **QUICK)
    parts = [np.load(path) for path in sorted(Path("data").glob("*.npz"))]
    assert len(parts) == 2
    for part in parts:
        assert part["obs"].shape == part["next_obs"].shape
        assert part["obs"].shape[:2] == part["reward"].shape[:2] == part["terminated"].shape == (8, 4)


def test_the_tracker_writes_csv_and_continues_it():
    result = marl.train(env="toy/chain", steps=32, trackers=[f"{EXAMPLES}/tracker.py:CsvTracker"], **QUICK)
    marl.resume(result.folder, steps=64)
    with open(result.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows if row["tag"] == "loss/total"} == {"32", "64"}


def test_the_script_trains_and_compares(monkeypatch, capsys):
    main = runpy.run_path(str(EXAMPLES / "train_from_python.py"))["main"]
    original = marl.train
    monkeypatch.setattr(marl, "train", lambda **options: original(**options | QUICK), raising=False)
    assert set(main(steps=32)) == {"mat", "mappo"}
    assert "played an episode" in capsys.readouterr().out


def test_the_environment_keeps_every_rule_and_trains():
    name = f"{EXAMPLES}/environment.py:Meeting"
    assert check_env(EnvFactory(name, {"kwargs": {"cells": 5}}), 2, 0)
    result = marl.train(env=name, kwargs={"cells": 5}, steps=32, **QUICK)
    assert result.policy.spec.name == "meeting"
