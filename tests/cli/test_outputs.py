"""Files are written whole or not at all, and what is printed can be typed."""

import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from marl import distributed, run
from marl.errors import ConfigError
from marl.experiments import cli
from marl.experiments.report.command import ReportCommand, compare_runs
from marl.files import whole_files, write_whole
from marl.registry import EnvFactory
from marl.vector import ProcessVector


def test_several_files_are_written_all_or_none(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.png"
    first.write_text("old")

    def write_and_fail():
        with whole_files(first, second) as (one, two):
            one.write_text("new")
            two.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "old"}
    second.mkdir()
    with pytest.raises(ConfigError, match="it is a folder"), whole_files(first, second) as (one, _):
        one.write_text("new")
    assert first.read_text() == "old"
    second.rmdir()
    with whole_files(first, second) as (one, two):
        one.write_text("new")
        two.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "new", "b.png": "whole"}


def test_devices_and_links_stay_what_they_are(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["stdout", "fd/1"])
def test_the_standard_output_may_be_the_file(tmp_path, name):
    """Behind a pipe, and behind a file that holds what is printed later too."""
    program = f"""from pathlib import Path
from marl.files import write_whole
write_whole(Path("/dev/{name}"), "row\\n")
print("table")"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "row\ntable\n"
    with (tmp_path / "out").open("a") as file:
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "row\ntable\n"


def test_a_report_whose_picture_cannot_be_written_leaves_no_table(tmp_path, monkeypatch, small):
    pytest.importorskip("matplotlib")
    folder = run.start(small(steps=32)).folder

    def full(report, path, kind, **options):  # noqa: ARG001
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("marl.experiments.report.command.draw_report", full)
    with pytest.raises(ConfigError, match=r"cannot write .*out.json and .*out.png: No space left on device"):
        compare_runs(ReportCommand((folder,), "return", tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_training_with_stdout_closed(monkeypatch, small):
    monkeypatch.setattr(sys, "stdout", None)
    cli.open_closed_streams()
    opened = sys.stdout
    assert run.start(small(steps=32)).folder.is_dir()
    opened.close()


def test_the_line_that_continues_a_run_can_be_typed():
    for name in ("a b", "it's", "$(touch x)"):
        line = distributed.resume_command(Path("runs") / name)
        assert shlex.split(line) == ["marl", "resume", f"runs/{name}"]


def test_more_workers_than_files_may_be_open(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match=r"workers=40 needs 184 more open files.*ulimit -n"):
        ProcessVector([EnvFactory("toy/chain")] * 40, 40)
