"""Evaluation: seeds that have chosen nothing, episodes that never end, requests to stop, returns by agent type."""

import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from marl import run
from marl.agents.scripted import FixedPolicy
from marl.checkpoint.store import load
from marl.config import override
from marl.errors import ConfigError, RunFolderError
from marl.evaluation import paired_seeds, return_labels, run_episodes, summarize
from marl.experiments import cli
from marl.registry import EnvFactory
from marl.run_folder import FolderWatch
from marl.types import EnvSpec, Obs, Step
from marl.vector import make_vector

GAME = "tests.unit.test_evaluation:make"


class Game:
    """Two agents that earn 5 and 50 in each of two steps; with `endless`, episodes of odd seeds have no end.

    With `signal_at`, that step of all episodes sends SIGINT.
    """

    def __init__(self, agents=("prey_0", "hunter_0"), groups=("prey", "hunter"), endless=False, signal_at=0) -> None:
        self.spec = EnvSpec(
            "game",
            tuple(agents),
            spaces.Box(0, 1, (1,)),
            spaces.Discrete(2),
            None,
            team_reward=False,
            agent_types=groups,
        )
        self.endless, self.signal_at, self.count, self.time, self.seed = endless, signal_at, 0, 0, 0

    def observe(self) -> Obs:
        return Obs(np.zeros((2, 1), np.float32), np.ones(2, bool), np.ones((2, 2), bool))

    def reset(self, seed=None) -> Obs:
        self.seed, self.time = self.seed if seed is None else seed, 0
        return self.observe()

    def step(self, action) -> Step:  # noqa: ARG002
        self.time, self.count = self.time + 1, self.count + 1
        if self.count == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        over = self.time >= 2 and not (self.endless and self.seed % 2)
        info = {"success": 1.0, "level": 3.0} if over else {}
        return Step(self.observe(), np.array([5.0, 50.0], np.float32), over, False, info)

    def render(self) -> None: ...

    def get_state(self) -> None: ...

    def set_state(self, state) -> Obs: ...

    def close(self) -> None: ...


def make(**options) -> Game:
    return Game(**options)


def vector(count, **options):
    return make_vector(GAME, {"kwargs": options}, count)


def lines(folder: Path, name: str = "evaluations.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_test_seeds_are_not_those_that_choose():
    validation, test = paired_seeds(2000), paired_seeds(2000, "test")
    assert not set(validation) & set(test)
    assert len(set(test)) == len(test)
    assert paired_seeds(3, "test") == test[:3]


def test_an_episode_without_an_end_is_left():
    env = vector(2, endless=True)
    rows = run_episodes(FixedPolicy(env.spec, 0.0), env, [2, 1, 4, 6], max_steps=7)
    assert [(row.length, row.cut, row.terminated) for row in rows] == [
        (2, False, True),
        (7, True, False),
        (2, False, True),
        (2, False, True),
    ]
    summary = summarize(rows)
    assert summary["eval/cut"] == 1
    assert summary["eval/success"] == 0.75  # an episode that was cut is no success
    assert summary["eval/level"] == 3.0


def test_the_environments_own_limit_counts_where_it_is_longer():
    env = make_vector("toy/copy", {}, 1)
    assert [row.length for row in run_episodes(FixedPolicy(env.spec, 0.0), env, [1], max_steps=1)] == [
        env.spec.max_steps
    ]


def test_returns_by_agent_type():
    env = vector(1)
    (row,) = run_episodes(FixedPolicy(env.spec, 0.0), env, [2])
    assert (row.episode_return, row.type_returns) == (55.0, {"prey": 10.0, "hunter": 100.0})
    summary = summarize([row], "test")
    assert (summary["test/return/prey"], summary["test/return/hunter"]) == (10.0, 100.0)
    assert return_labels(Game(("a", "b"), ("player", "player")).spec) == ("a", "b")
    assert return_labels(EnvFactory("toy/copy", {})().spec) == ()


def test_a_run_logs_returns_by_type_and_scores_its_end_on_test_seeds(small):
    config = small(GAME, "mappo", steps=64, eval_interval=1, eval_episodes=2)
    folder = run.start(config).folder
    first, last = lines(folder, "metrics.jsonl")
    for row in (first, last):
        assert (row["episode/return"], row["episode/return/prey"], row["episode/return/hunter"]) == (55.0, 10.0, 100.0)
        assert row["eval/return/hunter"] == 100.0
    assert last["test/return"] == 55.0
    assert "test/return" not in first
    rows = lines(folder)
    seeds = {split: [row["seed"] for row in rows if row["split"] == split] for split in ("validation", "test")}
    assert seeds == {"validation": paired_seeds(2) * 2, "test": paired_seeds(2, "test")}
    assert {row["step"] for row in rows if row["split"] == "test"} == {64}


def test_a_signal_in_an_evaluation_ends_it(small, caplog):
    """In the first of two evaluations, of an episode without an end: told, left out, and the run is saved."""
    config = small(GAME, "mappo", steps=64, num_envs=2, rollout_steps=16, eval_interval=1, eval_episodes=2)
    options = {"endless": True, "signal_at": 40}  # a training environment gets no further than 32
    config = override(config, {"kwargs": options, "eval_max_steps": 10**9})
    with caplog.at_level(logging.WARNING, logger="marl"):
        folder = run.start(config).folder
    assert "the validation evaluation after 32 steps was interrupted" in caplog.text
    assert lines(folder) == []
    assert load(folder / "checkpoints").step == 32


@pytest.mark.parametrize("steps", [32, 64])
def test_an_interrupted_evaluation_is_played_when_the_run_is_resumed(small, monkeypatch, steps):
    """The only evaluation, after 32 steps, is interrupted. No signal comes after that."""
    config = small(GAME, "mappo", steps=steps, num_envs=2, rollout_steps=16, eval_interval=1, eval_episodes=80)
    folder = run.start(override(config, {"kwargs": {"signal_at": 40}})).folder
    assert lines(folder) == []
    assert load(folder / "checkpoints").data["evaluation_missing"]
    monkeypatch.setattr(os, "kill", lambda *_: None)
    run.resume(folder, {})
    played = {(row["step"], row["split"]) for row in lines(folder)}
    assert played == {(step, "validation") for step in range(32, steps + 1, 32)} | {(steps, "test")}
    scored = [row["step"] for row in lines(folder, "metrics.jsonl") if "eval/return" in row]
    assert scored == list(range(32, steps + 1, 32))
    first = load(folder / "checkpoints", which=32)
    assert json.loads((first.path / "manifest.json").read_text())["score"] == 55.0
    assert not first.data["evaluation_missing"]
    with pytest.raises(ConfigError, match="has trained for"):
        run.resume(folder, {})


def test_eval_hears_the_stop_request_and_plays_test_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kwargs = "{endless: true, signal_at: 40}"
    args = ["eval", GAME, "--kwargs", kwargs, "--episodes", "6", "--num-envs", "2", "--out", "rows.jsonl"]
    monkeypatch.setattr("sys.argv", ["marl", *args])
    cli.main()
    shown = " ".join(capsys.readouterr().out.split())
    assert "on the test seeds, stopped: " in shown
    rows = lines(tmp_path, "rows.jsonl")
    assert 0 < len(rows) < 6
    assert {row["seed"] for row in rows} <= set(paired_seeds(6, "test"))


def test_an_error_of_the_file_system_is_no_proof_that_the_folder_is_gone(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    watch = FolderWatch(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("marl.run_folder.os.stat", fail)
        watch.require()
    watch.folder = tmp_path / "nowhere"
    with pytest.raises(RunFolderError, match=f"was renamed to {tmp_path}"):
        watch.require()
    watch.close()


@pytest.mark.parametrize("what", ["renamed", "deleted"])
def test_a_folder_that_goes_away_stops_the_run_with_what_it_has(small, monkeypatch, what):
    config = small(GAME, "mappo", eval_episodes=0, checkpoint_interval=1)
    folder, elsewhere = Path(config.runs_dir) / "run", Path(config.runs_dir) / "other"

    class Losing(run.Trainer):
        def iterate(self):
            metrics = super().iterate()
            if self.iteration == 3:
                folder.rename(elsewhere)
                if what == "deleted":
                    shutil.rmtree(elsewhere)
            return metrics

    with monkeypatch.context() as patch:
        patch.setattr(run, "Trainer", Losing)
        with pytest.raises(RunFolderError, match=f"was {what}") as told:
            run.start(config)
    kept = elsewhere if what == "renamed" else folder
    assert told.value.__notes__[-1].endswith(f"resume {kept}")
    assert "what was learned in 96 steps is kept" in told.value.__notes__[-1]
    assert folder.exists() == (what == "deleted")
    assert load(kept / "checkpoints").step == 96
    run.resume(kept, {})
    assert load(kept / "checkpoints").step == config.steps
