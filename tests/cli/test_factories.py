"""Agents and environments of the user, named by a module or by a file."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import marl
from marl import factories, run_folder
from marl.errors import ConfigError, UnknownNameError
from marl.registry import AGENTS, ENVS
from tests.support.command import call

AGENT = """
from dataclasses import dataclass
from pathlib import Path
import marl
from marl.agents.mlp import MLPOptions, make_mappo
Path({proof!r}).touch()

@dataclass(frozen=True)
class Options:
    width: int = 8

def make(spec, width=8):
    return make_mappo(spec, MLPOptions(hidden=(width,)))

def typed(spec, options: Options):
    return make(spec, options.width)

def broken(spec):
    return spec.no_such_field

def other(spec):
    return 3

class Lacking(marl.Policy):
    act = evaluate = None
"""
ENV = """
from marl.envs.toy import make as make_toy
def make():
    return make_toy("chain")
"""
QUICK = ["--num-envs", "2", "--rollout-steps", "8", "--steps", "16", "--eval-episodes", "1", "--name", "own"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder with the factories of an agent and of an environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("own_agent.py").write_text(AGENT.format(proof=str(tmp_path / "imported")))
    Path("own_env.py").write_text(ENV)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


def test_an_agent_and_an_environment_of_ones_own_train_and_load_from_any_folder(monkeypatch, capsys, home):
    args = ["./own_env.py:make", "--agent", "./own_agent.py:make", "--agent-kwargs", "{width: 4}", *QUICK]
    assert call(monkeypatch, capsys, "train", *args)[0] == 0
    config = run_folder.read_config(home / "runs" / "own")
    assert (config.env, config.agent) == (f"{home}/own_env.py:make", f"{home}/own_agent.py:make")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert call(monkeypatch, capsys, "eval", "../runs/own", "--episodes", "1")[0] == 0
    assert "return" in call(monkeypatch, capsys, "play", "../runs/own", "--view", "text")[1]
    assert call(monkeypatch, capsys, "report", "../runs/own")[0] == 0
    assert call(monkeypatch, capsys, "resume", "../runs/own", "--steps", "32")[0] == 0
    policy = marl.load_policy(home / "runs" / "own")
    shape = (policy.spec.num_agents, policy.spec.observation_size)
    assert policy.act(np.zeros(shape, dtype=np.float32)).shape == shape[:1]


def test_a_module_that_is_not_found_is_named_with_the_folder_of_the_run(monkeypatch, capsys, home):
    assert call(monkeypatch, capsys, "train", "toy/chain", "--agent", "own_agent:make", *QUICK)[0] == 0
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(home)])
    sys.modules.pop("own_agent")
    code, _, err = call(monkeypatch, capsys, "eval", "../runs/own")
    assert code == 2
    assert "No module named 'own_agent'" in err
    assert f"the run was made in the folder {home}; start the command there" in err


def test_an_agent_of_somebody_else_is_not_imported(monkeypatch, capsys, home):
    assert call(monkeypatch, capsys, "train", "toy/chain", "--agent", "own_agent:make", *QUICK)[0] == 0
    shutil.rmtree(home / "state")
    (home / "imported").unlink()
    sys.modules.pop("own_agent")
    for args in (["eval", "runs/own"], ["play", "runs/own"], ["resume", "runs/own", "--steps", "32"]):
        code, _, err = call(monkeypatch, capsys, *args)
        assert code == 2
        assert "agent own_agent:make" in err
        assert "--trust" in err
    assert not (home / "imported").exists()
    assert call(monkeypatch, capsys, "eval", "runs/own", "--episodes", "1", "--trust")[0] == 0


@pytest.mark.parametrize(
    ("agent", "kwargs", "message"),
    [
        ("own_agent:make", "{widht: 4}", r"widht.*its signature is \(spec, width=8\)"),
        ("own_agent:typed", "{widht: 4}", "unknown option of agent own_agent:typed 'widht'; did you mean 'width'"),
        ("own_agent:typed", "{width: wide}", "cannot take the options"),
        ("own_agent:broken", "{}", r"raised AttributeError at .*own_agent.py:\d+"),
        ("own_agent:other", "{}", "returned a builtins.int, which is not a marl.Policy.*docs/add-agent.md"),
        ("own_agent:Lacking", "{}", "does not define the method 'value'.*docs/add-agent.md"),
        ("own_agent:missing", "{}", "cannot import agent 'own_agent:missing'"),
        ("no_such.py:make", "{}", "there is no file"),
        ("own_agent.py", "", "names a file; add the function in it, as in own_agent.py:make"),
        ("own agent:make", "{}", "neither registered nor"),
        ("os:sep", "{}", "is a str; give a function or a class"),
    ],
)
def test_a_wrong_agent_is_named(monkeypatch, capsys, home, agent, kwargs, message):  # noqa: ARG001
    given = ["--agent-kwargs", kwargs] if kwargs else []
    code, _, err = call(monkeypatch, capsys, "train", "toy/chain", "--agent", agent, *given, *QUICK)
    assert code == 2
    assert re.search(message, err)
    assert "Traceback" not in err


def test_options_of_a_dataclass_come_from_keyword_arguments(home):  # noqa: ARG001
    sys.path.append(".")
    spec = marl.registry.EnvFactory("toy/chain")().spec
    entry = AGENTS.get("own_agent:typed")
    policies = [entry.make(spec, entry.options({"width": width})) for width in (3, 5)]
    small, large = (sum(p.numel() for p in policy.parameters()) for policy in policies)
    assert small < large


def test_names_of_functions_lead_back_to_them():
    name = factories.factory_name(call)
    assert factories.import_factory(name, "agent") is call
    assert factories.factory_name("toy/chain") == "toy/chain"
    with pytest.raises(ConfigError, match="define it at the top of a module"):
        factories.factory_name(lambda: None)
    assert factories.short_name("/x/y/own.py:make") == "own:make"
    assert factories.short_name("smac/3m") == "smac/3m"
    with pytest.raises(UnknownNameError):
        ENVS.get("own")


def test_a_file_may_be_reached_by_its_module_and_by_its_path(home):
    """A name that the file registers is the same by both ways and in a copy, and is refused in a file that differs."""
    code = """
import marl
from marl.agents.mlp import MLPOptions, make_mappo

@marl.register_agent("own_registered", summary="as mappo")
def make(spec):
    return make_mappo(spec, MLPOptions())
"""
    Path("own_registered.py").write_text(code)
    (home / "copy").mkdir()
    Path("copy/own_registered.py").write_text(code)
    Path("own_other.py").write_text(code + "\n# another file\n")
    sys.path.append(str(home))
    try:
        for name in ("own_registered:make", "own_registered.py:make", "copy/own_registered.py:make"):
            assert callable(factories.import_factory(name, "agent"))
        with pytest.raises(ConfigError, match=r"'own_registered' is registered twice.*rename one"):
            factories.import_factory("own_other.py:make", "agent")
    finally:
        AGENTS.entries.pop("own_registered", None)
