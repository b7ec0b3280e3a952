"""Trust: code that a run's folder names runs only if the user made the run, or with --trust."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from marl import load_policy, run
from marl.checkpoint.store import load
from marl.errors import CheckpointError, ConfigError
from marl.experiments.transfer import train_until
from marl.registry import AGENTS
from marl.trust import MARK, external_of_agent, external_of_env, key_path, mark_trusted, require_trust
from tests.support.command import call

FACTORY = """
from pathlib import Path
Path({proof!r}).touch()
from marl.envs.toy import make as make_toy
def make(**kwargs):
    return make_toy("chain")
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user with a key of his own in a working folder with the factory `theirs:make`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    Path("theirs.py").write_text(FACTORY.format(proof=str(tmp_path / "imported")))
    yield tmp_path
    sys.modules.pop("theirs", None)


def forget_user(home):
    """The same folder in the eyes of another user."""
    shutil.rmtree(home / "state", ignore_errors=True)
    (home / "imported").unlink(missing_ok=True)
    sys.modules.pop("theirs", None)


def test_code_named_by_a_run_of_somebody_else_is_not_imported(monkeypatch, capsys, home, small):
    run.start(small("theirs:make", runs_dir="runs", steps=32))
    assert (home / "imported").exists()
    assert call(monkeypatch, capsys, "eval", "runs/run", "--episodes", "1")[0] == 0
    Path("runs/run").rename("moved")
    assert call(monkeypatch, capsys, "eval", "moved", "--episodes", "1")[0] == 0
    forget_user(home)
    for args in (["eval", "moved"], ["play", "moved"], ["resume", "moved", "--steps", "64"]):
        code, _, err = call(monkeypatch, capsys, *args)
        assert code == 2
        assert "environment theirs:make" in err
        assert "--trust" in err
    assert call(monkeypatch, capsys, "report", "moved")[0] == 0
    assert load_policy("moved").step == 32
    assert call(monkeypatch, capsys, "eval", "moved", "--env", "toy/chain", "--episodes", "1")[0] == 0
    assert not (home / "imported").exists()
    assert call(monkeypatch, capsys, "resume", "moved", "--steps", "64", "--trust")[0] == 0
    assert (home / "imported").exists()
    assert call(monkeypatch, capsys, "eval", "moved", "--episodes", "1")[0] == 0


def test_a_mark_covers_no_other_code(home, small):
    folder = run.start(small("theirs:make", runs_dir="runs", steps=32)).folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["env"] = "os:system"
    config["env_options"]["kwargs"] = {"command": "touch owned"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    mark = json.loads((folder / MARK).read_text())
    for names in (mark["names"], ["environment os:system", 'kwargs {"command": "touch owned"}']):
        (folder / MARK).write_text(json.dumps({**mark, "names": names}))
        with pytest.raises(ConfigError, match=r"environment os:system.*kwargs .*touch owned"):
            run.resume(folder, {"steps": 64})
    assert not (home / "owned").exists()


@pytest.mark.parametrize(
    ("env", "changes", "names"),
    [
        ("toy/chain", {}, set()),
        ("gymnasium:CartPole-v1", {}, set()),
        ("gymnasium:antigravity:CartPole-v1", {}, {"environment gymnasium:antigravity:CartPole-v1"}),
        ("gymnasium/antigravity:CartPole-v1", {}, {"environment gymnasium:antigravity:CartPole-v1"}),
        ("gymnasium:CartPole-v1", {"kwargs": {"file": "x"}}, {'kwargs {"file": "x"}'}),
        ("toy/chain+antigravity:x", {}, None),
        ("pettingzoo:os", {}, {"environment pettingzoo:os"}),
        ("pettingzoo:os,kwargs={a: 1}", {}, {"environment pettingzoo:os", 'kwargs {"a": 1}'}),
        ("smac/3m", {"replay_dir": "/x", "backend": "sc2"}, {"replay_dir /x"}),
    ],
)
def test_everything_that_an_environment_s_name_and_options_import_is_listed(small, env, changes, names):
    if names is None:
        with pytest.raises(ConfigError, match="several families"):
            external_of_env(small(env, **changes))
    else:
        assert external_of_env(small(env, **changes)) == names


@pytest.mark.usefixtures("home")
def test_weights_that_a_checkpoint_of_somebody_else_names_are_not_opened(monkeypatch, small):
    assert external_of_agent("poad", {"model": "tiny"}) == external_of_agent("poad", {"model": "smollm2"}) == set()
    assert external_of_agent("mat", {}) == set()
    opened = []
    monkeypatch.setattr("marl.agents.lm.agents.open_backbone", lambda _, options: opened.append(options.model))
    folder = run.start(small(runs_dir="runs", steps=32)).folder
    monkeypatch.setattr("marl.policy_io.load_checkpoint", lambda *_: checkpoint)
    checkpoint = load(folder / "checkpoints")
    options = vars(AGENTS.get("poad").options(model="theirs"))
    checkpoint.data.update(agent="poad", agent_options=json.loads(json.dumps(options)))
    with pytest.raises(ConfigError, match="model theirs"):
        load_policy(folder)
    assert not opened
    with pytest.raises(CheckpointError, match="AttributeError"):  # no model came back
        load_policy(folder, trust=True)
    assert opened == ["theirs"]


def test_a_home_that_cannot_be_written_is_told_and_trusts_nothing(monkeypatch, home):
    (home / "state").write_text("a file")
    (home / "run").mkdir()
    assert "--trust" in str(mark_trusted(home / "run", {"environment a:b"}))
    (home / "state").unlink()
    assert mark_trusted(home / "run", {"environment a:b"}) is None
    assert key_path().stat().st_mode & 0o077 == 0
    require_trust(home / "run", {"environment a:b"}, trust=False)
    key_path().write_bytes(b"")  # an empty key would be everybody's
    with pytest.raises(ConfigError, match="not made by you"):
        require_trust(home / "run", {"environment a:b"}, trust=False)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(home / "other"))
    with pytest.raises(ConfigError, match="not made by you"):
        require_trust(home / "run", {"environment a:b"}, trust=False)


def test_a_comparison_imports_no_tracker_that_a_run_s_files_name(home, small):
    config = small(runs_dir="runs", steps=32, eval_episodes=0)
    run.start(config)
    file = Path("runs/run/config.yaml")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"trackers": ["theirs:Tracker"]}))
    train_until(replace(config, steps=64))
    assert not (home / "imported").exists()


def test_settings_of_a_run_of_somebody_else_import_nothing(monkeypatch, capsys, home, small):
    run.start(small("theirs:make", runs_dir="runs", steps=32, eval_episodes=0))
    forget_user(home)
    command = ("train", "--config", "runs/run/config.yaml", "--name", "mine", "--runs-dir", "runs")
    code, _, err = call(monkeypatch, capsys, *command)
    assert code == 2
    assert "environment theirs:make" in err
    assert not (home / "imported").exists()
    assert call(monkeypatch, capsys, "train", "theirs:make", *command[1:])[0] == 0
    forget_user(home)
    assert call(monkeypatch, capsys, *command[:4], "trusted", "--trust")[0] == 0
    assert (home / "imported").exists()
    assert "leave it out" in call(monkeypatch, capsys, "train", "toy/chain", "--trust")[2]
