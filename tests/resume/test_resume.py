"""A run killed at any moment continues as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from marl import run
from marl.config import override, to_yaml
from marl.errors import CheckpointError, ConfigError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = max((folder / "checkpoints").glob("step_*"))
    return load_file(last / "model.safetensors") | load_file(last / "optimizer.safetensors")


def log(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    """The lines of a log without times, and without evaluations on the test seeds at an end that was not the last."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    last = rows[-1]["step"] if rows else 0
    rows = [row for row in rows if row.get("split") != "test" or row["step"] == last]
    left_out = [("speed/",) if row["step"] == last else ("speed/", "test/") for row in rows]
    return [
        {k: v for k, v in row.items() if not k.startswith(names)} for row, names in zip(rows, left_out, strict=True)
    ]


def assert_same_run(one: Path, two: Path) -> None:
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert log(one) == log(two)
    assert log(one, "evaluations.jsonl") == log(two, "evaluations.jsonl")


GROUPS = {"whole_episodes": True, "group_size": 2, "advantage": "gigpo", "value_coef": 0.0}
CASES = [
    ("toy/chain", "mat", {"normalize_observations": True}),
    ("toy/agent_death", "mat", {"agent_order": "random"}),
    ("toy/climbing+penalty", "mat", {"normalize_observations": True, "minibatches": 2, "steps": 384}),
    ("toy/mixed", "mat", {"parameters_per": "agent_type"}),
    ("toy/continuous", "mappo", {"anneal_learning_rate": True}),
    ("toy/chain", "mat", {"whole_episodes": True, "anneal_learning_rate": True, "critic_learning_rate": 1e-3}),
    ("tests.unit.test_rollout:short", "mappo", GROUPS),
    ("toy/agent_death", "mappo", {"bptt_steps": 4}),
    ("toy/agent_death", "mat-dec", {"bptt_steps": 4}),
    ("toy/agent_death", "sable", {"bptt_steps": 4, "agent_order": "random"}),
    ("mamujoco/Hopper-3x1", "mat", {"normalize_observations": True, "env_threads": 2}),
    # Observations are draws from the global random generators, of this process and of two workers.
    ("tests.support.buffers:Dice", "mappo", {}),
    ("tests.support.buffers:Dice", "mappo", {"workers": 2}),
]


@pytest.mark.parametrize(("env", "agent", "changes"), CASES)
def test_half_and_half_is_the_whole(small, env, agent, changes):
    whole = small(env, agent, name="whole", eval_interval=3, **changes)
    run.start(whole)
    half = replace(whole, name="half", steps=whole.steps // 2)
    if {"anneal_learning_rate", "whole_episodes"} & changes.keys():
        # The schedule looks at the total, and so do evaluations; the first half must know it: stop it from outside.
        half = replace(half, steps=whole.steps)
        stop_after(half, 3)
        folder = run.resume(Path(half.runs_dir) / "half", {}).folder
    else:
        run.start(half)
        folder = run.resume(Path(half.runs_dir) / "half", {"steps": whole.steps}).folder
    assert_same_run(Path(whole.runs_dir) / "whole", folder)


def stop_after(what, iterations, start=run.start):
    from marl.trainer import Trainer

    class Stopping(Trainer):
        def iterate(self):
            metrics = super().iterate()
            if self.iteration == iterations:
                self.stop_reason = "interrupted"
            return metrics

    original, run.Trainer = run.Trainer, Stopping
    try:
        start(what)
    finally:
        run.Trainer = original


def test_an_annealed_rate_continues_where_a_run_is_extended(small):
    """From the rate of the last update to zero at the new end, without a jump; and the same after another resume."""
    config = small("toy/climbing", "mappo", eval_episodes=0, anneal_learning_rate=True, learning_rate=1e-3)
    per, count = config.steps_per_iteration, config.iterations
    folder = run.start(config).folder
    stop_after(folder, count + 2, lambda folder: run.resume(folder, {"steps": per * (count + 5)}))
    run.resume(folder, {})
    rates = [row["policy/learning_rate"] for row in log(folder) if "policy/learning_rate" in row]
    first = [1e-3 * (1 - i / count) for i in range(count)]
    rest = [first[-1] * (1 - i / 5) for i in range(5)]
    assert rates == pytest.approx(first + rest)


def start_process(config, tmp_path: Path) -> subprocess.Popen:
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    code = (
        "import sys; from marl.config import from_yaml; from marl.run import start\n"
        "start(from_yaml(open(sys.argv[1]).read()))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.DEVNULL)


def wait_for_checkpoint(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while len(list(folder.glob("checkpoints/step_*"))) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_minus_nine(small, tmp_path):
    config = small("toy/chain", "mat", name="whole", steps=4 * 8 * 40, eval_interval=7)
    run.start(config)
    killed = replace(config, name="killed")
    folder = Path(config.runs_dir) / "killed"
    process = start_process(killed, tmp_path)
    wait_for_checkpoint(folder, 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99999, "torn')
    run.resume(folder, {})
    assert_same_run(Path(config.runs_dir) / "whole", folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_resumes_exactly(small, tmp_path, number):
    config = small("toy/chain", "mat", name="whole", steps=4 * 8 * 60, eval_episodes=0, checkpoint_interval=50)
    run.start(config)
    stopped = replace(config, name="stopped", evaluation=replace(config.evaluation, checkpoint_interval=2))
    folder = Path(config.runs_dir) / "stopped"
    process = start_process(stopped, tmp_path)
    wait_for_checkpoint(folder, 1, process)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert len(log(folder)) < 60
    run.resume(folder, {})
    a, b = weights(Path(config.runs_dir) / "whole"), weights(folder)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["step"] for row in log(folder)] == [32 * i for i in range(1, 61)]


def test_damaged_checkpoint_falls_back(small, caplog):
    config = small(eval_episodes=0)
    folder = run.start(config).folder
    newest = max((folder / "checkpoints").glob("step_*"))
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    before = log(folder)
    run.resume(folder, {})
    assert newest.name in caplog.text
    assert log(folder) == before


def test_other_settings_are_refused(small):
    config = small()
    folder = run.start(config).folder
    with pytest.raises(ConfigError, match="clip"):
        run.resume(folder, {"clip": 0.3})
    (folder / "config.yaml").write_text(to_yaml(override(config, {"clip": 0.3})))
    with pytest.raises(ConfigError, match="differs"):
        run.resume(folder, {})
    with pytest.raises(ConfigError, match="holds a run already"):
        run.start(config)
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        run.resume(folder.parent, {})
