"""The commands as a user types them: output and exit codes."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import marl
from marl.agents.heads import make_head
from marl.config import default_config, flatten, from_yaml, override, to_yaml
from marl.errors import ConfigError
from marl.experiments import cli
from marl.experiments.presets import PRESETS, by_name, choose
from marl.registry import AGENTS, ENVS, missing
from tests.support.command import call

ROOT = Path(__file__).parents[2]
QUICK = ["--num-envs", "4", "--rollout-steps", "8", "--eval-episodes", "2", "--embedding", "16", "--epochs", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_train_resume_eval_play_and_load(monkeypatch, capsys, folder):
    code, out, _ = call(monkeypatch, capsys, "train", "toy/climbing", *QUICK, "--steps", "96", "--name", "climb")
    assert code == 0
    assert "preset toy/climbing + mat" in out
    config = from_yaml((folder / "runs/climb/config.yaml").read_text())
    assert config.collect.num_envs == 4
    assert config.agent_options.embedding == 16
    assert call(monkeypatch, capsys, "resume", "runs/climb", "--steps", "128")[0] == 0
    steps = [json.loads(line)["step"] for line in Path("runs/climb/metrics.jsonl").read_text().splitlines()]
    assert steps == [32, 64, 96, 128]
    code, out, _ = call(monkeypatch, capsys, "eval", "runs/climb", "--episodes", "5", "--out", "rows.jsonl")
    assert code == 0
    assert "after 128 steps" in out or "after 96 steps" in out
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows] == list(range(5))
    assert "leave out --agent" in call(monkeypatch, capsys, "eval", "runs/climb", "--agent", "mat")[2]
    assert "they were learned in toy/climbing (agents: 2), and this is toy/copy" in call(
        monkeypatch, capsys, "eval", "runs/climb", "--env", "toy/copy"
    )[2].replace("\n", " ")
    code, out, _ = call(monkeypatch, capsys, "play", "runs/climb")
    assert code == 0
    assert re.search(r"return \S+ in 1 steps; terminated", out)
    policy = marl.load_policy("runs/climb")
    width = policy.spec.observation_size
    assert policy.act(np.zeros((2, width), dtype=np.float32)).shape == (2,)
    assert policy.act(np.zeros((7, 2, width), dtype=np.float32)).shape == (7, 2)
    with pytest.raises(ValueError, match=r"\(3, "):
        policy.act(np.zeros((3, width), dtype=np.float32))


def test_a_policy_whose_critic_reads_the_state_acts_on_arrays(monkeypatch, capsys, folder):
    args = ["train", "toy/agent_death", "--agent", "mappo", "--steps", "32", "--name", "m", "--hidden", "8"]
    assert call(monkeypatch, capsys, *args, *[x for x in QUICK if x not in ("--embedding", "16")])[0] == 0
    policy = marl.load_policy(folder / "runs" / "m")
    assert policy.spec.state_size > 0
    shape = (policy.spec.num_agents, policy.spec.observation_size)
    assert policy.act(np.zeros(shape, dtype=np.float32)).shape == shape[:1]


def test_a_finished_run_says_so(monkeypatch, capsys, folder):  # noqa: ARG001
    assert call(monkeypatch, capsys, "train", "toy/chain", *QUICK, "--steps", "64", "--name", "done")[0] == 0
    for more in ([], ["--steps", "32"]):
        code, _, err = call(monkeypatch, capsys, "resume", "runs/done", *more)
        assert code == 2
        assert "has trained for 64 steps already" in err
    assert "steps: 64" in Path("runs/done/config.yaml").read_text()


def test_untrained_agents_play_and_are_evaluated(monkeypatch, capsys, folder):  # noqa: ARG001
    assert "return" in call(monkeypatch, capsys, "play", "toy/agent_death", "--agent", "random")[1]
    assert "return" in call(monkeypatch, capsys, "eval", "toy/chain", "--agent", "scripted", "--episodes", "3")[1]


WRONG = [
    (["trian", "x"], "did you mean 'train'"),
    (["train"], "train what"),
    (["train", ""], "the environment's name is empty"),
    (["train", "/"], "unknown environment '/'"),
    (["train", "toy/climing"], "'climbing'"),
    (["train", "toy/climbing", "--agent", "mta"], "'mat'"),
    (["train", "toy/climbing", "--agent", "random"], "does not learn"),
    (["train", "toy/climbing", "--preset", "toy+mats"], "'toy+mat'"),
    (["train", "toy/climbing", "--learning-rat", "1"], "--learning-rate"),
    (["train", "toy/climbing", "--clip", "7"], "clip=7"),
    (["train", "toy/climbing", "--steps", "many"], "many"),
    (["train", "no.such.module:make"], "cannot import"),
    (["train", "gymnasium:CartPole-v99"], "CartPole"),
    (["train", "mamujoco/HalfCheetah-5x1"], "HalfCheetah-6x1"),
    (["train", "toy/climbing", "--embedding", "0"], "embedding=0"),
    (["train", "toy/climbing", "--entropy-coef", "inf"], "entropy_coef=inf"),
    (["train", "toy/climbing", "--stop-return", "nan"], "stop_return=nan"),
    (["train", "toy/climbing", "--learn-threads", "9999"], "cores here"),
    (["train", "toy/climbing", "--name", "../x"], "name='../x'"),
    (["train", "toy/climbing", "--name", ".."], "name='..'"),
    (["train", "toy/climbing", "--name", "."], "name='.'"),
    (["train", "toy/climbing", "--name", "/x"], "name='/x'"),
    (["train", "toy/climbing", "--name", "x" * 300], "is longer than"),
    (["train", "toy/climbing", "--name=-x"], "begins with a dash"),
    (["train", "toy/climbing", "--runs-dir", "\udcff"], "is not UTF-8"),
    (["transfer", "toy/climbing+penalty", "--target", "toy/xor3", "--name", ".."], "name='..'"),
    (["train", "toy/climbing", "--device", "meta"], "device='meta'"),
    (["train", "toy/climbing", "--eval-episodes", "9" * 20], "eval_episodes is 9999"),
    (["train", "pettingzoo:"], "'pettingzoo:' names no environment"),
    (["train", "gymnasium:"], "'gymnasium:' names no environment"),
    (["train", ":"], "neither registered nor PACKAGE.MODULE:FUNCTION"),
    (["train", "os:path"], "'os:path' is a module"),
    (["train", "gymnasium:CartPole-v1", "--kwargs", "{a: ["], "is no YAML"),
    (["train", "gymnasium:CartPole-v1", "--max-steps", "0"], "max_steps=0"),
    (["train", "toy/agent_death", "--agents", "9" * 20], "too many for a toy"),
    (["eval", "\udcff"], "is not UTF-8"),
    (["eval", "x" * 300], "File name too long"),
    (["resume", "x" * 300], "File name too long"),
    (["eval", "toy/chain", "--which", "100"], "--which 100 is for runs"),
    (["eval", "toy/chain", "--trust"], "--trust is for runs"),
    (["eval", "toy/chain", "--episodes", "1", "--out", "x" * 300], "File name too long"),
    (["eval", "toy/chain", "--episodes", "1", "--out", "/dev/full"], "cannot write /dev/full: No space left"),
    (["eval", "toy/chain", "--episodes", "1", "--out", "/"], "it is a folder"),
    (["eval", "toy/chain", "--episodes", "9" * 20], "episodes is 9999"),
    (["play", "toy/chain", "--view", "text", "--out", "x.mp4"], "shown as text, so --out"),
    (["play", "toy/chain", "--out", "x.mp4"], "shown as text, so --out"),
    (["play", "toy/chain", "--view", "text", "--fps", "5"], "shown as text, so --fps"),
    (["bench", "act", "--model", "tiny"], "has no effect on act"),
    (["bench", "env", "--seconds", "inf"], "positive"),
    (["train", "toy/climbing", "--max-std", "nan"], "max_std=nan"),
    (
        ["train", "toy/climbing", "--agent", "ippo", "--agent-order", "random"],
        "has no option --agent-order; these have it: ff-sable, mat, mat-bad",
    ),
    (["train", "toy/climbing", "--agent", "ippo", "--layout=entities"], "has no option --layout; these have it: smac"),
    (["train", "toy/climbing", "--advantage", "grpo", "--value-coef", "1"], "has no critic"),
    (["train", "toy/climbing", "--agent", "poad", "--no-agent-id"], "has no option --no-agent-id; these have it"),
    (["train", "toy/climbing", "--agent", "mat", "--agent", "ippo", "--heads", "2"], "no option --heads"),
    (["train", "toy/climbing+"], "no task on one side of a +"),
    (["eval", "smac"], "names no task; give smac/"),
    (["check-env", "toy/climbing+copy"], "check environments one by one"),
    (["train", "toy/climbing", "--device", "tpu"], "device='tpu'"),
    (
        ["train", "toy/climbing", "--device", "cpu:5"],
        "device='cpu:5' has a number",
    ),
    (["resume", "nowhere"], "no config.yaml"),
    (["eval", "runs/typo"], "there is no run"),
    (["eval", "toy/chain", "--out", "no/where.jsonl"], "folder does not exist"),
    (["play", "gymnasium:CartPole-v1", "--fps", "-1"], "fps=-1"),
    (["check-env", "toy/chain", "--episodes", "0"], "episodes is 0"),
    (["eval", "nowhere"], "nowhere"),
    (["eval", "toy/climbing", "--agent", "mat"], "must be trained first"),
    (["eval", "toy/climbing", "--episodes", "0"], "episodes is 0"),
    (["play", "toy/climbing", "--out", "film.avi"], ".mp4 or .gif"),
    (["list", "things"], "things"),
    (["check-env", "toy/nothing"], "task of toy"),
    (["bench", "env", "--rounds", "0"], "rounds"),
]


@pytest.mark.parametrize(("args", "said"), WRONG)
def test_wrong_input_is_named(monkeypatch, capsys, folder, args, said):
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 2
    assert said in out + err
    assert "Traceback" not in out + err
    assert not (folder / "runs").exists()


def test_a_variant_and_a_short_run_are_pointed_out(monkeypatch, capsys, folder):  # noqa: ARG001
    args = ["train", "toy/climbing", "--agent", "happo", "--agent-updates", "together", "--steps", "100"]
    out = " ".join(call(monkeypatch, capsys, *args)[1].split())
    assert "agent_updates='together', where happo has 'sequential'" in out
    assert "steps=100 is less than an iteration, 512 steps; one is trained" in out
    for number, (more, told) in enumerate(
        [
            (["--agent", "mat-bad"], False),
            (["--agent", "mat", "--gamma-intra", ".5"], False),
            (["--agent", "mat-bad", "--gamma-intra", ".5"], True),
        ]
    ):
        args = ["train", "toy/climbing", *QUICK, "--steps", "32", "--name", f"run{number}"]
        assert ("variant" in call(monkeypatch, capsys, *args, *more)[1]) is told


def test_output_that_nobody_reads_is_no_error():
    for command, code in {"--help | true": 141, "train --help | true": 141, "list agents >&-": 0}.items():
        line = f"{sys.executable} -m marl.experiments.cli {command}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (code, "")


def test_a_full_disk_behind_stdout_is_one_line():
    line = [sys.executable, "-m", "marl.experiments.cli", "list", "agents"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "marl: cannot write the output: No space left on device\n")


def test_a_broken_pipe_of_an_environment_is_an_error(monkeypatch):
    def broken(args):  # noqa: ARG001
        raise BrokenPipeError("the simulator's")

    monkeypatch.setitem(cli.COMMANDS, "list", broken)
    monkeypatch.setattr(sys, "argv", ["marl", "list"])
    with pytest.raises(BrokenPipeError, match="the simulator's"):
        cli.main()


def test_lists_and_help(monkeypatch, capsys):
    assert "mamujoco" in call(monkeypatch, capsys, "list", "envs")[1]
    assert "mappo" in call(monkeypatch, capsys, "list", "agents")[1]
    assert re.search(r"mamujoco +│ mat, mat-bad, .*num_envs=40 ", call(monkeypatch, capsys, "list", "presets")[1])
    for command in cli.COMMANDS:
        code, out, _ = call(monkeypatch, capsys, command, "--help")
        assert code == 0
        assert "usage: marl" in out
    assert all(name in call(monkeypatch, capsys)[1] for name in cli.COMMANDS)


@pytest.mark.parametrize("name", ENVS.names())
def test_every_environment_has_options_beside_those_of_the_commands(monkeypatch, capsys, name):
    """Also that none of them is named like one of a command's own."""
    entry = ENVS.entries[name]
    subject = f"{name}/{entry.tasks[0]}" if entry.tasks else {"gymnasium": "gymnasium:CartPole-v1"}.get(name)
    if subject is None:
        pytest.skip("a bridge to what is named")
    if absent := missing(entry):
        pytest.skip(f"{name} needs {', '.join(absent)}")
    for command in ("train", "eval", "play", "check-env"):
        code, out, err = call(monkeypatch, capsys, command, subject, "--help-all")
        assert code == 0, err
        for option in dataclasses.fields(entry.options):
            assert re.search(rf"[-\]]{option.name.replace('_', '-')} ", out), (command, option.name)


def test_eval_and_play_take_the_environment_s_options(monkeypatch, capsys, folder):  # noqa: ARG001
    pytest.importorskip("numba")
    code, out, _ = call(monkeypatch, capsys, "play", "smac/3m", "--view", "text", "--max-steps", "2")
    assert code == 0
    assert "in 2 steps; reached the time limit" in out
    for args in (["smac/3m", "--episodes", "2", "--max-steps", "3"], ["--episodes", "2", "smac/3m"]):
        code, out, _ = call(monkeypatch, capsys, "eval", *args)
        assert code == 0
        assert bool(re.search(r"length\s*\S\s*3\s", out)) == ("--max-steps" in args)
    code, _, err = call(monkeypatch, capsys, "eval", "smac/3m", "--step-mul", "0")
    assert code == 2
    assert "step_mul=0; give a whole number of 1 or more" in err


TEAM = ["--num-envs", "2", "--rollout-steps", "4", "--eval-episodes", "0", "--steps", "8", "--epochs", "1"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["toy/continuous", "--unequal", "True", "--parameters-per", "agent_type"],
            r"parameters_per='agent_type', but 'agent_0' and 'agent_1' of .*: .* size 2; .* size 1\. Use",
        ),
        (
            ["tests.support.faulty_envs:choices", "--agent", "mappo"],
            r"actions MultiDiscrete\(\[2 3\]\) are not supported",
        ),
        (["toy/continuous", "--init-std", "0.5"], r"init_std=0\.5 is not between 0"),
    ],
)
def test_teams_that_an_option_or_agent_cannot_take_are_named(monkeypatch, capsys, folder, args, said):  # noqa: ARG001
    code, _, err = call(monkeypatch, capsys, "train", *args, *TEAM)
    assert code == 2
    assert re.search(said, err)


def test_a_mixed_team_trains_and_plays(monkeypatch, capsys, folder):
    """And its checkpoint is not taken for that of a larger team, of another agent or of other groups."""
    train = ["train", "toy/mixed", "--parameters-per", "agent_type", "--name", "run", *TEAM]
    assert call(monkeypatch, capsys, *train)[0] == 0
    code, out, _ = call(monkeypatch, capsys, "play", "runs/run", "--which", "last")
    assert code == 0
    assert "reached the time limit" in out
    path = folder / "runs/run/config.yaml"
    text = path.read_text()
    changes = [("agents: null", "agents: 6"), ("agent: mat\n", "agent: mat-bad\n"), ("_per: agent_type", "_per: team")]
    for old, new in changes:
        assert old in text
        path.write_text(text.replace(old, new))
        code, _, err = call(monkeypatch, capsys, "resume", "runs/run", "--steps", "16")
        assert code == 2
        assert "differs from the configuration that step_000000000008 was trained with" in err


def test_an_infinite_deviation_is_named(monkeypatch, capsys, folder):  # noqa: ARG001
    def infinite(*args):
        head = make_head(*args)
        torch.nn.init.constant_(head.gaussian.log_std[0], float("inf"))
        return head

    monkeypatch.setattr("marl.agents.mat.policy.make_head", infinite)
    code, _, err = call(monkeypatch, capsys, "train", "toy/mixed", *TEAM)
    assert code == 2
    assert "log_std=inf in action dimension 0 of all agents" in err


def test_a_missing_simulator_comes_with_its_install_line(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "mujoco" else find(name, *rest))
    out = call(monkeypatch, capsys, "list", "envs")[1]
    assert "mamujoco needs mujoco; install with: pip install 'seqmarl[mujoco]'" in out
    code, _, err = call(monkeypatch, capsys, "train", "mamujoco/HalfCheetah-6x1")
    assert code == 2
    assert "needs mujoco; install with: pip install 'seqmarl[mujoco]'" in err


@pytest.mark.parametrize("key", PRESETS, ids="+".join)
def test_every_preset_constructs_and_survives_yaml(key):
    env, agent = key
    tasks = {
        "toy": "toy/copy",
        "mamujoco": "mamujoco/HalfCheetah-6x1",
        "hands": "hands/over",
        "smac": "smac/3m",
        "virtualhome": "virtualhome/entertainment",
        "overcooked": "overcooked/tomato-salad",
    }
    config, source = choose(tasks.get(env, env), agent)
    assert "preset" in source
    assert from_yaml(to_yaml(config)) == config
    assert by_name("+".join(key), tasks.get(env, env), agent)[0] == config
    assert {name: flatten(config)[name] for name in PRESETS[key]} == PRESETS[key]


def test_yaml_errors_name_file_and_field():
    good = to_yaml(default_config("toy/copy", "mat"))
    for empty in ("", "env: toy/copy", "[1]"):
        with pytest.raises(ConfigError, match=r"run\.yaml.*has no text"):
            from_yaml(empty, "run.yaml")
    for bad in ("clip: 7.0", "clipp: 0.2", "clip: [1]"):
        with pytest.raises(ConfigError, match=r"run\.yaml.*clip"):
            from_yaml(good.replace("clip: 0.2", bad, 1), "run.yaml")
    assert from_yaml(good.replace("clip: 0.2", "clip: 1e-1", 1)).objective_options.clip == 0.1


def test_every_option_is_read():
    """Each field of a run, and of its agent's and MuJoCo's options, is read as an attribute somewhere."""
    folders = [ROOT / part for part in ("marl", "agents", "envs", "experiments")]
    source = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    for agent in ("mat", "mappo", "scripted"):
        for name in flatten(default_config("mamujoco/Hopper-3x1", agent)):
            assert re.search(rf"\.{name}\b", source), name


def test_module_runs_under_python_m():
    done = subprocess.run(
        [sys.executable, "-m", "marl.experiments.cli", "list", "agents"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "mat" in done.stdout


def test_user_factories_take_keyword_arguments(monkeypatch, capsys, folder):  # noqa: ARG001
    monkeypatch.syspath_prepend(os.fspath(ROOT))
    args = [
        "train",
        "tests.support.faulty_envs:make",
        "--kwargs",
        "{what: nothing, at: 3}",
        "--name",
        "k",
        "--steps",
        "32",
        *QUICK,
    ]
    assert call(monkeypatch, capsys, *args)[0] == 0
    assert call(monkeypatch, capsys, *args[:2], "--kwargs", "3")[0] == 2
    assert override(default_config("toy/copy", "mat"), {"symbols": 5}).env_options.symbols == 5
    assert set(AGENTS.names()) >= {"mat", "mappo", "ippo", "random", "scripted"}


def test_a_file_of_settings_runs_with_overrides(monkeypatch, capsys, folder):
    assert call(monkeypatch, capsys, "train", "toy/chain", *QUICK, "--steps", "32", "--name", "a")[0] == 0
    args = ["train", "--config", "runs/a/config.yaml", "--name", "b", "--epochs", "2"]
    code, out, _ = call(monkeypatch, capsys, *args)
    assert code == 0
    assert "wrote runs/b" in out
    config = from_yaml((folder / "runs/b/config.yaml").read_text())
    assert (config.env, config.learn.epochs, config.collect.num_envs) == ("toy/chain", 2, 4)
    code, out, _ = call(monkeypatch, capsys, *args, "--if-exists", "skip")
    assert code == 0
    assert "nothing was trained" in out
    Path("wrong.yaml").write_text("env: toy/chain\nagent: mat\nlearn: {epoch: 1}\n")
    assert "did you mean 'epochs'" in call(monkeypatch, capsys, "train", "--config", "wrong.yaml")[2]
    assert "must come first" in call(monkeypatch, capsys, "train", *args[1:], "toy/copy")[2]
