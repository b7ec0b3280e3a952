"""An environment that leaves the program fails like one that raises: training is saved and ends with an error."""

import json
import logging
import sys

import pytest

from marl import run
from marl.checkpoint.store import load
from marl.errors import WorkerError
from marl.experiments import cli

BROKEN = "tests.support.faulty_envs:make"


@pytest.mark.parametrize(
    ("what", "workers", "message"),
    [
        ("exit", 0, "environment 0 raised SystemExit: 0"),
        ("interrupt", 0, "training raised KeyboardInterrupt"),
        ("exit", 1, "environment 0 raised SystemExit: 0"),
        ("interrupt", 1, "environments from 0 raised KeyboardInterrupt"),
    ],
)
def test_an_environment_that_leaves_the_program(small, what, workers, message):
    config = small(
        BROKEN, kwargs={"what": what, "at": 13}, workers=workers, num_envs=1, checkpoint_interval=99, eval_interval=0
    )
    with pytest.raises(WorkerError, match=message) as caught:
        run.start(config)
    folder = f"{config.runs_dir}/run"
    assert f"what was learned in 8 steps is kept; continue with: marl resume {folder}" in caught.value.__notes__
    assert load(f"{folder}/checkpoints").step == 8


@pytest.mark.parametrize(
    ("args", "code"),
    [(["eval", BROKEN], 2), (["play", BROKEN, "--view", "text"], 2), (["check-env", BROKEN], 2)],
)
def test_commands_that_only_watch_it_fail_too(monkeypatch, capsys, args, code):
    kwargs = json.dumps({"what": "exit", "at": 2})
    monkeypatch.setattr(sys, "argv", ["marl", *args, "--episodes", "1", "--kwargs", kwargs])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert "raised SystemExit: 0" in capsys.readouterr().err


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("no")])
def test_an_environment_that_fails_to_close_changes_nothing_else(monkeypatch, caplog, error):
    def close(_):
        raise error

    monkeypatch.setattr("tests.support.faulty_envs.Broken.close", close)
    play = ["marl", "play", BROKEN, "--view", "text", "--episodes", "1"]
    monkeypatch.setattr(sys, "argv", play)
    with caplog.at_level(logging.WARNING, logger="marl"):
        cli.main()
    assert "an environment did not close" in caplog.text
    monkeypatch.setattr(sys, "argv", [*play, "--kwargs", json.dumps({"what": "raise", "at": 2})])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_a_module_that_exits_as_it_is_imported(tmp_path, monkeypatch, small):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot import .* 'leaves:make' \(SystemExit at .*leaves.py:2: 0\)"):
        run.start(small("leaves:make"))
