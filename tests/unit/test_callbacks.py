"""Callbacks and trackers of the user: the hooks that they see, and the end of a run in which one raises."""

# ruff: noqa: ARG002 - hooks have fixed signatures

import json

import numpy as np
import pytest

from marl import run
from marl.callbacks import Callback
from marl.checkpoint.store import load
from marl.errors import CallbackError, ConfigError, UnknownNameError
from marl.factories import call_method
from marl.run_folder import git_commit, read_status
from marl.tracking.base import Tracker


class Spy(Callback):
    """Keeps the names of the hooks that were called, and raw transitions."""

    def __init__(self):
        self.hooks, self.rollouts = [], []

    def on_start(self, trainer):
        self.hooks.append("start")

    def on_rollout(self, trainer, transitions):
        self.hooks.append("rollout")
        self.rollouts.append(transitions)

    def on_update(self, trainer, metrics):
        assert "loss/total" in metrics
        self.hooks.append("update")

    def on_iteration(self, trainer, metrics):
        assert "episode/count" in metrics
        metrics["mine/number"] = 7.0
        self.hooks.append("iteration")

    def on_evaluation(self, trainer, split, episodes, scores):
        (rows,) = episodes.values()
        self.hooks.append(f"{split} of {len(rows)}")

    def on_checkpoint(self, trainer, path):
        assert path.is_dir()
        self.hooks.append("checkpoint")

    def on_stop(self, trainer):
        self.hooks.append(trainer.stop_reason)


class Broken(Callback):
    def on_iteration(self, trainer, metrics):
        if trainer.iteration == 2:
            raise KeyError("no such thing")


class Rows(Tracker):
    """Keeps what it is told."""

    def __init__(self):
        self.calls = []

    def start(self, folder, step):
        self.calls.append(("start", folder.name, step))

    def log(self, step, values):
        self.calls.append(("log", step, values["mine/number"]))

    def close(self):
        self.calls.append(("close",))


def test_every_hook_is_called_in_order(small):
    spy, rows = Spy(), Rows()
    result = run.start(
        small(steps=64, eval_interval=2, eval_episodes=3, checkpoint_interval=100, name="spied"),
        run.Extras(callbacks=[spy], trackers=[rows]),
    )
    each = ["rollout", "update", "iteration"]
    ends = ["validation of 3", "test of 3"]
    assert spy.hooks == ["start", *each, *each[:2], *ends, "iteration", "checkpoint", "finished"]
    assert rows.calls == [("start", "spied", 0), ("log", 32, 7.0), ("log", 64, 7.0), ("close",)]
    assert result.scores.keys() >= {"eval/return", "test/return"}
    assert (result.steps, result.stop_reason) == (64, "finished")
    spec = result.policy.spec
    assert result.policy.act(np.zeros((spec.num_agents, spec.observation_size))).shape == (spec.num_agents,)


class Impatient(Callback):
    def on_iteration(self, trainer, metrics):
        if trainer.iteration == 2:
            trainer.stop_reason = "enough"


def test_a_run_that_a_callback_stops_is_scored_on_the_test_seeds(small):
    config = small(steps=128, eval_interval=3, eval_episodes=3)
    result = run.start(config, run.Extras(callbacks=[Impatient()]))
    assert (result.steps, result.stop_reason) == (64, "enough")
    assert result.scores.keys() >= {"eval/return", "test/return"}


def test_an_evaluation_is_not_played_again_if_a_callback_stops_the_run_behind_it(small):
    config = small(steps=128, eval_interval=2, eval_episodes=3)
    folder = run.start(config, run.Extras(callbacks=[Impatient()])).folder
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(64, "validation")] * 3 + [(64, "test")] * 3


def test_raw_transitions_hold_the_whole_rollout(small):
    """The next observation is that of the following step, or the last of the episode."""
    spy = Spy()
    config = small("toy/chain", steps=64, eval_episodes=0)
    run.start(config, run.Extras(callbacks=[spy]))
    time, envs = config.collect.rollout_steps, config.collect.num_envs
    for rollout in spy.rollouts:
        agents = rollout.obs.agents
        assert agents.shape[:2] == rollout.reward.shape[:2] == rollout.action.shape[:2] == (time, envs)
        ended = rollout.terminated | rollout.truncated
        assert ended.any()
        assert rollout.played.all()
        going = ~ended[:-1]
        assert np.array_equal(rollout.next_obs.agents[:-1][going], agents[1:][going])
        assert not np.array_equal(rollout.next_obs.agents[:-1][ended[:-1]], agents[1:][ended[:-1]])
    first, second = spy.rollouts
    going = ~(first.terminated | first.truncated)[-1]
    assert np.array_equal(first.next_obs.agents[-1][going], second.obs.agents[0][going])


def test_environments_that_wait_for_the_others_are_marked(small):
    spy = Spy()
    config = small("toy/chain", steps=32, eval_episodes=0, whole_episodes=True, rollout_steps=16)
    run.start(config, run.Extras(callbacks=[spy]))
    for rollout in spy.rollouts:
        ends = (rollout.terminated | rollout.truncated) & rollout.played
        assert (ends.sum(0) <= 1).all()
        assert rollout.played[0].all()


def test_a_callback_that_raises_stops_the_run_with_a_checkpoint(small):
    config = small(name="broken", steps=128, eval_episodes=0)
    with pytest.raises(
        CallbackError, match=r"callback .*\.Broken raised KeyError in on_iteration at .*no such thing"
    ) as error:
        run.start(config, run.Extras(callbacks=[Broken()]))
    folder = run.Path(config.runs_dir) / "broken"
    assert load(folder / "checkpoints").step == 64
    assert any("is kept" in note for note in error.value.__notes__)
    status = read_status(folder)
    assert status["status"] == "failed"
    assert "Broken raised KeyError" in status["reason"]
    assert run.resume(folder, {}).steps == 128
    assert read_status(folder)["status"] == "finished"


class Full(Tracker):
    def log(self, step, values):
        raise OSError("no room")


def test_a_tracker_that_raises_is_named(small):
    with pytest.raises(CallbackError, match=r"Full raised OSError in log at .*no room"):
        run.start(small(steps=64, eval_episodes=0), run.Extras(trackers=[Full()]))


def test_an_error_of_the_library_behind_a_tracker_is_named(monkeypatch):
    monkeypatch.setattr(Full, "__module__", "marl.tracking.mlflow_tracker")
    with pytest.raises(CallbackError, match=r"tracker marl.tracking.mlflow_tracker.Full raised OSError in log"):
        call_method(Full(), "tracker", "log", 1, {})


def test_an_error_at_the_end_does_not_hide_the_first(small):
    class Gone(Full):
        def close(self):
            raise OSError("still no room")

    with pytest.raises(CallbackError, match="in log at") as error:
        run.start(small(steps=64, eval_episodes=0), run.Extras(trackers=[Gone()]))
    assert any("could not be closed" in note and "still no room" in note for note in error.value.__notes__)


def test_parts_of_another_kind_are_refused_before_the_start(small):
    with pytest.raises(ConfigError, match=r"give marl\.Callback instances"):
        run.Extras(callbacks=[Spy])
    with pytest.raises(ConfigError, match=r"is a type; give an instance of a marl\.Tracker class"):
        run.start(small(name="x"), run.Extras(trackers=[Rows]))
    with pytest.raises(UnknownNameError, match="did you mean 'wandb'"):
        small(trackers=("wanbd",))
    assert not run.Path(small().runs_dir).exists()


def test_the_status_names_version_and_commit(small):
    record = json.loads((run.start(small(steps=32)).folder / "status.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] == 32
    assert record["git_commit"] == git_commit()
    assert record["version"]


def test_a_run_that_is_there_is_skipped_or_resumed(small, capsys):
    config = small(steps=64, name="again", eval_episodes=0)
    run.start(config)
    for choice in ("skip", "resume"):
        assert run.start(config, if_exists=choice).steps == 64
        assert "finished after 64 steps; nothing was trained" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="already"):
        run.start(config)
    more = small(steps=96, name="again", eval_episodes=0)
    with pytest.raises(ConfigError, match="is not finished; continue it with --if-exists resume"):
        run.start(more, if_exists="skip")
    assert run.start(more, if_exists="resume").steps == 96
    with pytest.raises(ConfigError, match=r"other settings \(clip=0.2 there and 0.3 here\)"):
        run.start(small(steps=96, name="again", eval_episodes=0, clip=0.3), if_exists="skip")


def test_a_status_without_steps_is_not_taken_for_a_finished_run(small):
    config = small(steps=32, name="again", eval_episodes=0)
    folder = run.start(config).folder
    (folder / "status.json").write_text('{"status": "finished"}')
    with pytest.raises(ConfigError, match="is not finished"):
        run.start(config, if_exists="skip")
