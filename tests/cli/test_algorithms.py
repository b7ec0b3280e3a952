"""Advantage estimators and objectives: the built-in ones, those of a plug-in, and those of a user's file."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import marl
from marl.advantages import GAE, RLOO, AdvantageEstimator, Advantages, GiGPO, require_advantages
from marl.config import RunConfig, default_config, digest, from_yaml, override, to_yaml
from marl.errors import ConfigError, UnknownNameError
from marl.experiments import cli
from marl.experiments.listing import print_list
from marl.objective import ClippedPPO, SoftQ
from marl.registry import ADVANTAGES, OBJECTIVES, AlgorithmEntry

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--num-envs", "2", "--rollout-steps", "8", "--steps", "16", "--epochs", "1", "--eval-episodes", "0"]


@dataclass(frozen=True)
class Damped(ClippedPPO):
    """PPO with a damping."""

    damping: float = 0.5
    """Damping of something."""


@pytest.fixture
def plugin(monkeypatch):
    OBJECTIVES.load()
    monkeypatch.setitem(OBJECTIVES.entries, "damped", AlgorithmEntry("damped", Damped, Damped, "damped PPO"))


def parse(env, *args, agent="ippo"):
    return cli.parse(default_config(env, agent), [env, "--agent", agent, *args])


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(monkeypatch, tmp_path, *args):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    command = ["marl", "train", "toy/climbing", *QUICK, "--runs-dir", str(tmp_path), "--name", "own", *args]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    return tmp_path / "own"


def test_an_objective_of_a_file_trains_resumes_and_asks_for_trust(monkeypatch, tmp_path, capsys):
    name = f"{EXAMPLES}/objective.py:PenalizedPPO"
    options = "{penalty: 0.5, clip: 0.1}"
    folder = train(monkeypatch, tmp_path, "--objective", name, "--objective-kwargs", options, "--epochs", "2")
    row = metrics(folder)[-1]
    assert row["loss/penalty"] > 0.0
    parts = row["loss/policy"] - 0.01 * row["policy/entropy"] + row["loss/penalty"] + row["loss/value"]
    assert row["loss/total"] == pytest.approx(parts, rel=1e-4)
    monkeypatch.setattr(sys, "argv", ["marl", "resume", str(folder), "--steps", "32"])
    cli.main()
    assert metrics(folder)[-1]["step"] == 32
    shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(sys, "argv", ["marl", "resume", str(folder), "--steps", "48"])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"objective {name}" in capsys.readouterr().err


def test_an_advantage_of_a_file_trains(monkeypatch, tmp_path):
    name = f"{EXAMPLES}/advantage.py:TimeBaseline"
    free = ["--whole-episodes", "--value-coef", "0", "--agent", "ippo", "--advantage-kwargs", "{limit: 0.01}"]
    row = metrics(train(monkeypatch, tmp_path, "--advantage", name, *free, "--num-envs", "8"))[-1]
    assert row["advantage/clipped"] > 0
    assert "value/explained_variance" not in row


def test_what_a_file_declares_is_checked(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(monkeypatch, tmp_path, "--advantage", f"{EXAMPLES}/advantage.py:TimeBaseline", "--value-coef", "0")
    assert "needs whole episodes" in capsys.readouterr().err


def test_a_file_with_something_else_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(monkeypatch, tmp_path, "--objective", f"{EXAMPLES}/advantage.py:TimeBaseline")
    assert "made a TimeBaseline; give a subclass of marl.objective.Objective" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (torch.zeros(2, 3, 4, 2), "returned a Tensor; return marl.advantages.Advantages"),
        (Advantages(torch.zeros(2, 3, 4)), r"of shape \(2, 3, 4\); return \(2, 3, 4, 2\) or \(2, 3, 4, 1\)"),
        (Advantages(torch.zeros(2, 3, 4, 2)), "returned returns=None.* set uses_critic = False"),
        (Advantages(torch.zeros(2, 3, 4, 2), torch.zeros(2, 3, 4, 2)), r"returns of shape .* return \(2, 3, 4, 1\)"),
    ],
)
def test_what_an_estimator_returns_is_checked(made, message):
    rollout: Any = SimpleNamespace(node_mask=torch.ones(2, 3, 4, 2, dtype=torch.bool), value=torch.zeros(2, 3, 4, 1))
    with pytest.raises(ConfigError, match=message):
        require_advantages(made, GAE(), rollout)
    fitting = Advantages(torch.zeros(2, 3, 4, 1))
    assert require_advantages(fitting, RLOO(), rollout) is fitting


@pytest.mark.usefixtures("plugin")
def test_options_of_a_registered_objective_are_flags():
    config = parse("toy/chain", "--objective", "damped", "--damping", "0.25", "--clip", "0.1")
    assert config.objective_options == Damped(damping=0.25, clip=0.1)
    assert from_yaml(to_yaml(config)) == config
    assert digest(config) != digest(override(config, {"damping": 0.5}))
    with pytest.raises(ConfigError, match=r"'ppo' has no option --damping; these have it: damped"):
        parse("toy/chain", "--damping", "0.25")
    with pytest.raises(ConfigError, match=r"'soft_q' has no option --clip; these have it: damped, .*ppo"):
        parse("toy/chain", "--objective", "soft_q", "--clip", "0.1")


def test_another_objective_keeps_the_shared_options_that_were_set():
    config = override(default_config("toy/chain", "ippo"), {"clip": 0.1, "value_coef": 0.5})
    changed = override(config, {"objective": "soft_q", "value_norm_decay": 0.0})
    assert changed.objective_options == SoftQ(value_coef=0.5)
    back = override(changed, {"objective": "ppo"})
    assert back.objective_options == ClippedPPO(value_coef=0.5)


def test_names_and_their_options_go_together():
    assert {"gae", "gigpo", "grpo", "return", "rloo"} <= set(ADVANTAGES.names())
    assert {"ppo", "soft_q"} <= set(OBJECTIVES.names())
    with pytest.raises(UnknownNameError, match="unknown advantage 'group'; did you mean 'grpo'"):
        override(default_config("toy/chain", "ippo"), {"advantage": "group"})
    with pytest.raises(ConfigError, match=r"advantage_options=GiGPO.*takes GAE; change both together"):
        RunConfig("toy/chain", advantage_options=GiGPO())


def test_two_parts_with_one_option_are_refused(monkeypatch):
    @dataclass(frozen=True)
    class Clashing(AdvantageEstimator):
        clip: float = 1.0

    ADVANTAGES.load()
    monkeypatch.setitem(ADVANTAGES.entries, "clashing", AlgorithmEntry("clashing", Clashing, Clashing))
    with pytest.raises(ConfigError, match="'clip' of objective_options is one of advantage_options too; rename it"):
        override(default_config("toy/chain", "ippo"), {"advantage": "clashing"})


@pytest.mark.usefixtures("plugin")
def test_the_help_and_the_list_name_what_is_registered(capsys):
    with pytest.raises(SystemExit):
        parse("toy/chain", "--objective", "damped", "--help-all")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "damped: damped PPO" in text
    assert "--damping 0.5 Damping of something." in text
    print_list("objectives")
    assert "damping=0.5" in capsys.readouterr().out.replace("\n", "")


def test_the_decorators_register():
    @marl.register_advantage("temporary", summary="for a test")
    @dataclass(frozen=True)
    class Temporary(AdvantageEstimator):
        pass

    try:
        assert ADVANTAGES.get("temporary").create(Temporary()) == Temporary()
        assert asdict(Temporary()) == {}
    finally:
        del ADVANTAGES.entries["temporary"]
