"""`marl tensorboard` serves runs under names that read well, and `marl eval --act both` compares ways to act."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from marl import run
from marl.errors import ConfigError
from marl.experiments.board import named_runs
from tests.support.command import call


def test_the_page_lists_the_runs(small):
    folder = Path(run.start(small("toy/chain", "mappo", eval_episodes=0)).folder)
    other = Path(run.start(small("toy/chain", "mappo", eval_episodes=0, name="again")).folder)
    assert named_runs([folder.parent]) == {"toy-chain/mappo/seed-5": other, "toy-chain/mappo/seed-5-2": folder}
    command = [sys.executable, "-m", "marl.experiments.cli", "tensorboard", str(folder.parent), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    board = subprocess.Popen(command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert board.stdout is not None
        line = board.stdout.readline()
        (url,) = re.findall(r"2 runs, colored by agent; Ctrl-C ends it: (http://[^?]+)\?", line)
        with urllib.request.urlopen(f"{url.replace('localhost', '127.0.0.1')}data/runs", timeout=60) as answer:
            assert set(json.load(answer)) == {"toy-chain/mappo/seed-5", "toy-chain/mappo/seed-5-2"}
        board.send_signal(signal.SIGINT)
        assert board.wait(30) == 0
    finally:
        board.kill()
        board.communicate()


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"there is no run in {tmp_path}"):
        named_runs([tmp_path])
    with pytest.raises(ConfigError, match="tensorboard needs runs"):
        named_runs([])


def test_greedy_and_sampled_actions_side_by_side(small, tmp_path, monkeypatch, capsys):
    """An untrained policy of the climbing game is all noise when sampled, and always the same when greedy."""
    folder = run.start(small("toy/climbing", "mappo", eval_episodes=0, learning_rate=1e-9)).folder
    out = tmp_path / "rows.jsonl"
    capsys.readouterr()
    code, shown, said = call(
        monkeypatch, capsys, "eval", str(folder), "--act", "both", "--episodes", "64", "--out", str(out)
    )
    assert code == 0, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["act"] for row in rows] == ["greedy"] * 64 + ["sampled"] * 64
    assert len({row["episode_return"] for row in rows[:64]}) == 1
    assert len({row["episode_return"] for row in rows[64:]}) > 3
    assert [row["seed"] for row in rows[:64]] == [row["seed"] for row in rows[64:]]
    assert "greedy" in shown
    assert "each mean is outside of the other interval" in " ".join(shown.split())
