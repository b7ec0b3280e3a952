"""Ranks that lose a disk, each other or their launcher: none waits for ever, and what was learned is kept."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from marl import run
from marl.checkpoint.store import load
from marl.config import override, to_yaml

ROOT = Path(__file__).parents[2]
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

START = """
import sys
from pathlib import Path

from marl import run
from marl.config import from_yaml
from marl.errors import MarlError

try:
    run.start(from_yaml(Path(sys.argv[1]).read_text()))
except MarlError as error:
    print(error, *getattr(error, '__notes__', []), sep="\\n", file=sys.stderr)
    sys.exit(2)
"""


@pytest.fixture
def start(tmp_path):
    """The command that starts a run of a configuration on one of its ranks."""

    def command(config) -> list[str]:
        script, file = tmp_path / "start.py", tmp_path / "config.yaml"
        script.write_text(START)
        file.write_text(to_yaml(config))
        return [str(script), str(file)]

    return command


def both_ranks(command: list[str]) -> list[tuple[int, str]]:
    """The exit status and the errors of two ranks, without a launcher that would end one when the other fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | SETTINGS | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=240)[1] for rank in ranks]
        return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]
    finally:
        for rank in ranks:
            rank.kill()


def test_a_checkpoint_that_cannot_be_written_ends_both_ranks(small, start):
    config = small("toy/chain", "mappo", eval_interval=2)
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True)
    (folder / "checkpoints").touch()
    for status, said in both_ranks(start(config)):
        assert status == 2, said
        assert "cannot write checkpoint" in said
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6


def test_an_error_on_one_rank_keeps_what_both_have_learned(small, start, monkeypatch):
    """Rank 1 raises in the third iteration. Rank 0 saves two, which two ranks continue.

    torchrun would start the ranks again, but their command would not continue this run.
    """
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    config = small("tests.support.faulty_envs:on_rank", "mappo", eval_episodes=0, checkpoint_interval=9)
    config = override(config, {"kwargs": {"what": "raise", "at": 19}})
    (first, mine), (second, theirs) = both_ranks(start(config))
    assert (first, second) == (2, 2)
    assert "another rank has left" in mine
    assert "what was learned in 64 steps is kept; continue with: torchrun --nproc-per-node 2" in mine
    assert "divided by zero" in theirs
    folder = Path(config.runs_dir) / config.name
    checkpoint = load(folder / "checkpoints")
    assert (checkpoint.step, checkpoint.data["iteration"]) == (64, 2)
    # Continue it as one of two ranks would, alone.
    monkeypatch.setattr(run.distributed, "local_world_size", lambda: 2)
    trainer = run.build(config, run.make_env(config, config.tasks[0], 1, 2, train=True), run.torch.device("cpu"), 1)
    checkpoint.data["world_size"] = 1
    assert trainer.set_state(checkpoint) == [
        "saved by rank 0 alone, after an error: new episodes and new random streams begin"
    ]
    before = trainer.generators["policy"].get_state()
    assert trainer.iterate()
    assert (trainer.iteration, trainer.steps) == (3, 64 + 16)
    assert not run.torch.equal(before, trainer.streams.torch("policy", 0).get_state())


@pytest.mark.slow
def test_torchrun_starts_a_killed_rank_again_with_the_same_result(small):
    """One of two ranks is killed in the middle. The run ends with the weights of one that nothing happened to."""
    models = []
    for name in ("whole", "killed"):
        config = small("toy/chain", "mappo", name=name, steps=9600, eval_interval=100, checkpoint_interval=7)
        folder = Path(config.runs_dir) / name
        options = ["--num-envs", "4", "--rollout-steps", "8", "--minibatches", "3", "--epochs", "2", "--seed", "5"]
        options += ["--steps", "9600", "--eval-interval", "100", "--eval-episodes", "3", "--checkpoint-interval", "7"]
        options += ["--runs-dir", config.runs_dir, "--name", name, "--if-exists", "resume"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, "--max-restarts=2", "-m", "marl.experiments.cli", "train", "toy/chain"]
        process = subprocess.Popen([*command, "--agent", "mappo", *options], env=os.environ | SETTINGS)
        if name == "killed":
            deadline = time.monotonic() + 120
            while not any((folder / "checkpoints").glob("step_*")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            psutil.Process(process.pid).children()[-1].kill()
        assert process.wait(240) == 0
        models.append(load(folder / "checkpoints").tensors["model"])
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_ranks_end_with_their_launcher(small, start):
    config = small("toy/chain", "mappo", eval_episodes=0, steps=10**8, checkpoint_interval=1000)
    folder = Path(config.runs_dir) / config.name
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, *start(config)], env=os.environ | SETTINGS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, left = psutil.wait_procs(ranks, timeout=120)
        assert not left
    finally:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert load(folder / "checkpoints").step == rows[-1]["step"]
