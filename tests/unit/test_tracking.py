"""Trackers: what is written, and what survives a crash or a full disk."""

import errno
import io
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marl import files, run
from marl.config import default_config, option_names, override
from marl.errors import CallbackError, ConfigError
from marl.files import RecordFile
from marl.tracking.base import MultiTracker, run_name, runs_dir
from marl.tracking.jsonl import JsonlTracker
from marl.tracking.metrics import HPARAM_TAGS, LINE_TAGS, METRICS, axis_label, chart_layout, find_metric
from marl.tracking.tensorboard import TensorBoardTracker


class SmallDisk(io.FileIO):
    """A file on a disk of `room` bytes: like the kernel, it writes what fits and then raises ENOSPC."""

    room = 0

    def write(self, data):
        fitting = min(len(data), SmallDisk.room - self.tell())
        if fitting <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(data[:fitting]))


@pytest.fixture
def disk(monkeypatch):
    def open_small(path, mode, **options):
        if options.get("buffering") == 0:
            return SmallDisk(path, mode.replace("b", ""))
        return open(path, mode, **options)

    monkeypatch.setattr(files, "open", open_small, raising=False)
    monkeypatch.setattr(SmallDisk, "room", 10**9)
    return SmallDisk


def read_lines(path: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def log_steps(path: Path, first: int, last: int, resume_step: int | None = None) -> JsonlTracker:
    tracker = JsonlTracker(path, resume_step)
    for step in range(first, last + 1):
        tracker.log(step, {"episode/return": step / 3, "loss/value": float(-step)})
        if step % 5 == 0:
            tracker.text(step, "sample", "move e2\ndone ✓")
    return tracker


# ---------------------------------------------------------------------------------------------- the table


def test_every_row_of_the_table_is_complete():
    for tag, metric in METRICS.items():
        assert re.fullmatch(r"[a-z]+(/([a-z_]+|KIND))?", tag)
        assert metric.unit
        assert metric.description.endswith(".")
        assert metric.shown <= {"line", "hparams"}
        assert metric.label or "line" not in metric.shown
    assert "policy/kl" in LINE_TAGS
    assert set(HPARAM_TAGS) >= {"test/return", "eval/return"}


def test_a_tag_of_an_agent_type_or_a_task_has_the_row_of_its_metric():
    assert find_metric("eval/return/prey") is METRICS["eval/return"]
    assert find_metric("own/tag") is None
    assert axis_label("eval/return/prey") == "eval/return/prey (reward)"
    assert axis_label("loss/value") == "loss/value"


def test_charts_hold_the_tags_that_were_logged_and_no_others():
    assert chart_layout(["own/tag", "episode/length"]) == {}
    assert chart_layout(["eval/return", "eval/return_low", "eval/return_high", "policy/kl"]) == {
        "Return": {
            "evaluation return (95 % interval)": ("Margin", ["eval/return", "eval/return_low", "eval/return_high"])
        },
        "Policy": {"KL divergence": ("Multiline", ["policy/kl$"])},
    }
    typed = chart_layout(["episode/return", "episode/return/prey"])["Return"]
    assert typed == {
        "training episode return by agent type or task": ("Multiline", ["episode/return/"]),
        "training episode return": ("Multiline", ["episode/return$"]),
    }


def test_the_page_on_tensorboard_lists_the_table():
    page = (Path(__file__).parents[2] / "docs" / "tensorboard.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([a-z]+(?:/[A-Za-z_]+)?)` \| ([^|]+) \| ([^|]+) \|$", page.partition("## All tags")[2], re.M
    )
    assert rows == [(tag, metric.unit, metric.description) for tag, metric in METRICS.items()]


AGENTS = [("toy/climbing", "mat"), ("toy/climbing", "mappo"), ("text/chain", "poad"), ("text/chain", "grpo")]


@pytest.mark.parametrize(("env", "agent"), AGENTS)
def test_every_tag_of_a_run_is_in_the_table(env, agent, tmp_path):
    options = {"steps": 64, "num_envs": 8, "eval_episodes": 2, "runs_dir": str(tmp_path), "name": "run"}
    options |= {"rollout_steps": 4} if agent != "grpo" else {}
    run.start(override(default_config(env, agent), options))
    tags = {tag for line in read_lines(tmp_path / "run" / "metrics.jsonl") for tag in line} - {"step"}
    assert {"eval/return", "test/return", "policy/kl", "speed/learn_threads"} <= tags
    assert {tag for tag in tags if find_metric(tag) is None} == set()
    assert ("group/zero_variance_fraction" in tags) == (agent == "grpo")


# -------------------------------------------------------------------------------------------------- JSONL


def test_a_line_is_on_disk_when_log_returns_and_timing_comes_last(tmp_path):
    tracker = JsonlTracker(tmp_path / "run" / "metrics.jsonl")
    tracker.config("seed: 1", {"seed": 1})
    tracker.log(10, {"speed/memory_mb": 3.0, "loss/value": 0.5, "own/tag": 2})
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert list(line.items()) == [("step", 10), ("loss/value", 0.5), ("own/tag", 2.0), ("speed/memory_mb", 3.0)]
    tracker.close()
    tracker.close()


def test_what_is_not_finite_is_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
    tracker.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": None, "d": 1.0}]


def test_floats_come_back_exactly(tmp_path):
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": 2.0**53 + 2}
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, values)
    tracker.close()
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, **values}]


def test_a_log_cut_anywhere_and_resumed_equals_an_uninterrupted_one(tmp_path):
    log_steps(tmp_path / "whole.jsonl", 1, 9).close()
    whole = (tmp_path / "whole.jsonl").read_bytes()
    resume_step = 4
    secured = b"".join(whole.splitlines(keepends=True)[:resume_step])
    path = tmp_path / "cut.jsonl"
    for size in {*range(len(secured) - 1, len(whole), 5), len(secured), len(whole) - 1, len(whole)}:
        path.write_bytes(whole[:size])
        log_steps(path, resume_step + 1, 9, resume_step).close()
        assert path.read_bytes() == whole, size
    assert {file.name for file in tmp_path.iterdir()} == {"whole.jsonl", "cut.jsonl"}


def test_without_a_resume_step_only_a_torn_line_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    tracker = JsonlTracker(path)
    tracker.log(3, {"a": 3.0})
    tracker.close()
    assert [line["step"] for line in read_lines(path)] == [1, 3]


def test_torn_lines_in_the_middle_do_not_take_others_with_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\nnull\n{"a": 1}\n{"step": null}\n\n{"step": 2}\n\xff\xfe\n{"step": 3}\n')
    JsonlTracker(path, 2).close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_failed_drop_leaves_the_old_log(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 5).close()
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match="broken"):
        JsonlTracker(path, 2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resume_that_drops_nothing_does_not_rewrite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 5).close()
    inode = path.stat().st_ino
    JsonlTracker(path, 5).close()
    assert path.stat().st_ino == inode


# ---------------------------------------------------------------------------------------------- full disk


def test_lines_wait_for_space_and_arrive_in_order(tmp_path, disk, capsys):
    path = tmp_path / "metrics.jsonl"
    disk.room = 100
    tracker = log_steps(path, 1, 40)
    warning = capsys.readouterr().err
    assert warning.count("warning: cannot write") == 1
    assert str(path) in warning
    assert "No space left on device" in warning
    disk.room = 10**9
    tracker.log(41, {"a": 1.0})
    assert "written again" in capsys.readouterr().err
    tracker.close()
    assert capsys.readouterr().err == ""
    numbers = [line["step"] for line in read_lines(path) if "sample" not in line]
    assert numbers == list(range(1, 42))


@pytest.mark.parametrize("room", range(0, 120, 7))
def test_only_whole_lines_stay_and_the_rest_is_counted(tmp_path, disk, capsys, room):
    path = tmp_path / "metrics.jsonl"
    log_steps(tmp_path / "whole.jsonl", 1, 4).close()
    disk.room = room
    log_steps(path, 1, 4).close()
    kept = read_lines(path)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert path.read_bytes() == b"".join(lines[: len(kept)])
    assert len(b"".join(lines[: len(kept) + 1])) > room
    assert f"{4 - len(kept)} records of {path} were lost" in capsys.readouterr().err


def test_memory_is_bounded_and_the_newest_are_kept(tmp_path, disk, capsys, monkeypatch):
    monkeypatch.setattr(files, "BUFFERED_RECORDS", 5)
    disk.room = 0
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    for step in range(1, 21):
        tracker.log(step, {})
    disk.room = 10**9
    tracker.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [16, 17, 18, 19, 20]
    assert "15 records" in capsys.readouterr().err


def test_a_close_in_time_loses_nothing(tmp_path, disk, capsys):
    disk.room = 10
    tracker = log_steps(tmp_path / "metrics.jsonl", 1, 4)
    disk.room = 10**9
    tracker.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "lost" not in capsys.readouterr().err


def test_each_time_the_disk_fills_there_is_one_warning(tmp_path, disk, capsys):
    file = RecordFile(tmp_path / "log")
    for room in (2, 100, 100, 2, 2, 100):
        disk.room = room
        file.write(b"12345")
    file.close()
    assert capsys.readouterr().err.count("cannot write") == 2
    assert (tmp_path / "log").read_bytes() == b"12345" * 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_the_kernels_own_full_device(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    log_steps(path, 1, 3).close()
    assert f"3 records of {path} were lost" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- TensorBoard


def load(directory: Path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.tensor_proto.float_val[0]) for event in load(directory).Tensors(tag)]


def board_steps(directory: Path, first: int, last: int, resume_step: int | None = None) -> TensorBoardTracker:
    tracker = TensorBoardTracker(directory, resume_step, columns=("clip", "lora_rank"))
    tracker.config("seed: 1\n", {"seed": 1, "clip": 0.2, "gae": True, "sizes": (64, 64), "limit": None, "name": "mat"})
    for step in range(first, last + 1):
        tracker.log(step * 100, {"eval/return": step / 2, "own/tag": math.nan})
    return tracker


def test_scalars_with_descriptions_in_one_run(tmp_path):
    tracker = board_steps(tmp_path, 1, 3)
    tracker.text(100, "sample", "hello *world*")
    assert scalars(tmp_path, "eval/return") == [(100, 0.5), (200, 1.0), (300, 1.5)]  # on disk before close
    tracker.close()
    accumulator = load(tmp_path)
    assert accumulator.SummaryMetadata("eval/return").summary_description == METRICS["eval/return"].description
    assert accumulator.SummaryMetadata("own/tag").summary_description == ""
    assert math.isnan(scalars(tmp_path, "own/tag")[0][1])
    assert accumulator.Tensors("sample")[0].tensor_proto.string_val == [b"hello *world*"]
    assert accumulator.Tensors("run/config")[0].tensor_proto.string_val == [b"```yaml\nseed: 1\n```"]
    (file,) = tmp_path.iterdir()
    assert file.is_file()


def test_the_hyper_parameter_page(tmp_path):
    from tensorboard.plugins.hparams import metadata

    board_steps(tmp_path, 1, 1).close()
    accumulator = load(tmp_path)
    start = accumulator.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(start).hparams
    assert values["seed"].string_value == "1"  # a number would be shown as 1.0000
    assert values["clip"].number_value == 0.2
    assert values["gae"].bool_value is True
    assert values["sizes"].string_value == "(64, 64)"
    assert values["limit"].string_value == "None"
    content = accumulator.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert [info.name.tag for info in experiment.metric_infos] == list(HPARAM_TAGS)
    shown = {info.name: info.differs for info in experiment.hparam_infos}
    assert shown == {
        "seed": True,
        "clip": True,
        "gae": True,
        "sizes": True,
        "limit": True,
        "name": False,
        "lora_rank": False,
    }


def test_the_hyper_parameter_page_has_the_columns_of_every_agent():
    columns = option_names()
    assert {"seed", "gamma", "num_envs", "lora_rank", "hidden", "blocks", "kwargs"} <= set(columns)
    assert not {"agent_options", "learn"} & set(columns)


def chart_titles(directory: Path) -> list[list[str]]:
    from tensorboard.plugins.custom_scalar import layout_pb2

    stored = load(directory).Tensors("custom_scalars__config__")
    layouts = [layout_pb2.Layout.FromString(each.tensor_proto.string_val[0]) for each in stored]  # pyright: ignore
    return [[chart.title for category in layout.category for chart in category.chart] for layout in layouts]


def test_the_page_of_charts_grows_with_the_tags_and_survives_a_restart(tmp_path):
    tracker = board_steps(tmp_path, 1, 3)
    tracker.log(400, {"policy/kl": 0.01, "eval/return": 1.0})
    tracker.close()
    titles = ["evaluation return (95 % interval)", "KL divergence"]
    assert chart_titles(tmp_path) == [titles[:1], titles]
    tracker = TensorBoardTracker(tmp_path, 400)
    tracker.log(500, {"loss/value": 0.5})
    tracker.close()
    assert chart_titles(tmp_path)[-1] == [*titles, "value loss"]


def test_the_text_page_has_the_result_and_then_the_configuration(tmp_path):
    tracker = board_steps(tmp_path, 1, 1)
    tracker.log(200, {"eval/return": 1.0, "test/return": 2.5, "loss/value": 1.0})
    tracker.close()
    (text,) = load(tmp_path).Tensors("result")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[3] == f"| `test/return` | 2.5 | {METRICS['test/return'].description} |"
    assert len(lines) == 4
    assert "eval/transcript" < "result" < "run/config"  # the page sorts by tag


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    board_steps(tmp_path, 1, 8).close()
    (first,) = tmp_path.iterdir()
    with open(first, "ab") as file:
        file.write(b"\x30\x00\x00")  # a record that the kill tore
    board_steps(tmp_path, 5, 6, resume_step=450).close()
    assert scalars(tmp_path, "eval/return") == [(step * 100, step / 2) for step in range(1, 7)]
    assert plain_steps(tmp_path) == [100, 200, 300, 400, 500, 600]
    board_steps(tmp_path, 1, 2, resume_step=-1).close()  # from the beginning, for there was no checkpoint
    assert plain_steps(tmp_path) == [100, 200]
    assert len(list(tmp_path.iterdir())) == 1


def plain_steps(directory: Path) -> list[int]:
    """The steps of a scalar as a script reads them that knows nothing of restarts."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for path in sorted(directory.iterdir()) for event in EventFileLoader(str(path)).Load()]
    return [event.step for event in events for value in event.summary.value if value.tag == "eval/return"]


def test_pictures_come_back_pixel_by_pixel(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    tracker = TensorBoardTracker(tmp_path)
    tracker.image(30, "eval/credit", picture)
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (shown,) = events.Images("eval/credit")
    assert (shown.step, shown.height, shown.width) == (30, 5, 7)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))), picture)


def test_a_full_disk_leaves_a_readable_event_file(tmp_path, disk, capsys):
    disk.room = 4000
    tracker = board_steps(tmp_path, 1, 60)
    assert "cannot write" in capsys.readouterr().err
    assert scalars(tmp_path, "eval/return")[0] == (100, 0.5)
    disk.room = 10**9
    tracker.log(6100, {"eval/return": 30.5})
    assert scalars(tmp_path, "eval/return") == [(step * 100, step / 2) for step in range(1, 62)]
    tracker.close()


# --------------------------------------------------------------------------------------------- fanning out


class Recorder:
    def __init__(self, name: str, calls: list[tuple], broken: bool = False) -> None:
        self.name, self.calls, self.broken = name, calls, broken

    def config(self, text, flat):
        self.calls.append((self.name, "config", text, flat))

    def log(self, step, values):
        self.calls.append((self.name, "log", step, values))

    def text(self, step, tag, value):
        self.calls.append((self.name, "text", step, tag, value))

    def image(self, step, tag, picture):
        self.calls.append((self.name, "image", step, tag, picture))

    def close(self):
        self.calls.append((self.name, "close"))
        if self.broken:
            raise ValueError("cannot close")


def test_every_tracker_gets_every_call_in_order():
    calls: list[tuple] = []
    tracker = MultiTracker([Recorder("a", calls, broken=True), Recorder("b", calls)])
    tracker.config("x", {"y": 1})
    tracker.log(1, {"z": 2.0})
    tracker.text(1, "t", "v")
    tracker.image(1, "p", "pixels")
    with pytest.raises(CallbackError, match=r"Recorder raised ValueError in close.*cannot close"):
        tracker.close()
    one = [
        ("config", "x", {"y": 1}),
        ("log", 1, {"z": 2.0}),
        ("text", 1, "t", "v"),
        ("image", 1, "p", "pixels"),
        ("close",),
    ]
    assert calls == [(name, *call) for call in one for name in "ab"]


def test_a_run_is_named_by_its_folder_and_a_default_folder_by_environment_and_agent(tmp_path):
    assert run_name(tmp_path / "toy-chain" / "mat" / "1-20260102-030405") == "toy-chain/mat/1-20260102-030405"
    assert run_name(tmp_path / "toy-chain" / "mat" / "1-20260102-030405-2") == "toy-chain/mat/1-20260102-030405-2"
    assert run_name(tmp_path / "toy-chain" / "mine") == "mine"
    for name in ("toy-chain/mat/1-20260102-030405", "mine"):
        assert runs_dir(tmp_path / name) == tmp_path


def test_an_open_log_is_closed_if_another_cannot_be_opened(small, monkeypatch):
    closed, close = [], JsonlTracker.close
    monkeypatch.setattr(JsonlTracker, "close", lambda tracker: closed.append(tracker) or close(tracker))

    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr(run, "TensorBoardTracker", refuse)
    with pytest.raises(OSError, match="no room"):
        run.start(small())
    assert len(closed) == 1
