"""Help of the commands: short, in lines that fit, and complete with --help-all."""

import dataclasses
import re

import pytest

from marl.config import PARTS
from marl.experiments import cli
from marl.experiments.presets import choose


def help_of(monkeypatch, capsys, columns, *args):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", ["marl", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize(("env", "agent"), [("toy/climbing", "mat"), ("smac/3m", "mat"), ("text/chain", "poad")])
def test_help_is_short_and_help_all_is_whole(monkeypatch, capsys, env, agent):
    for columns in (80, 120):
        short = help_of(monkeypatch, capsys, columns, "train", env, "--agent", agent, "--help")
        assert len(short.splitlines()) < 100
        assert max(map(len, short.splitlines())) <= columns
        assert "options options" not in short
    whole = help_of(monkeypatch, capsys, 80, "train", env, "--agent", agent, "--help-all")
    config = choose(env, agent)[0]
    for part in (config, *(getattr(config, name) for name in PARTS)):
        for f in dataclasses.fields(part):
            if f.name not in PARTS and f.name != "env":
                assert re.search(rf"--(\[no-\])?{f.name.replace('_', '-')} ", whole), f.name
    assert "The default takes the most probable ones" in " ".join(whole.split())


def test_the_defaults_of_the_preset_are_shown(monkeypatch, capsys):
    assert "--steps 60000" in help_of(monkeypatch, capsys, 80, "train", "toy/climbing", "--help")
    assert "--steps 1000000" in help_of(monkeypatch, capsys, 80, "train", "toy/climbing", "--preset", "none", "--help")


def test_options_of_other_games_are_left_to_help_all(monkeypatch, capsys):
    short = help_of(monkeypatch, capsys, 80, "train", "toy/climbing", "--help")
    assert "--penalty" not in short
    assert "--penalty" in help_of(monkeypatch, capsys, 80, "train", "toy/penalty", "--help")
    assert "--penalty" in help_of(monkeypatch, capsys, 80, "train", "toy/climbing+penalty", "--help")
    assert "--verbosity" not in help_of(monkeypatch, capsys, 80, "train", "text/bake", "--agent", "poad", "--help")


SUBJECTS = {
    "resume": "RUN",
    "eval": "RUN|ENV",
    "play": "RUN|ENV",
    "report": "RUN ...",
    "transfer": "SOURCE",
    "list": "WHAT",
    "check-env": "ENV",
    "check-agent": "AGENT",
    "bench": "PARTS",
}


@pytest.mark.parametrize("command", SUBJECTS)
def test_every_command_has_help(monkeypatch, capsys, command):
    out = help_of(monkeypatch, capsys, 80, command, "--help-all")
    assert out.startswith(f"usage: marl {command} {SUBJECTS[command]} [--option value ...]")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("check-agent mat --sead 3", "unknown option of marl check-agent '--sead'; did you mean '--seed'"),
        ("train toy/chain --wormers 3", "unknown option of marl train '--wormers'; did you mean '--workers'"),
        ("eval toy/chain --xyz=3", "unknown option of marl eval '--xyz'; `marl eval --help-all` lists the options"),
        ("resume runs/a runs/b", "unknown argument of marl resume 'runs/b'"),
    ],
)
def test_an_unknown_option_is_refused_with_the_closest_one(monkeypatch, capsys, words, message):
    monkeypatch.setattr("sys.argv", ["marl", *words.split()])
    with pytest.raises(SystemExit):
        cli.main()
    assert message in capsys.readouterr().err
