"""Checkpoints: exact round trips, and always one good copy whatever breaks in between."""

import errno
import json
import logging
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marl.checkpoint import store as checkpoint
from marl.checkpoint.store import best, load, save
from marl.errors import CheckpointError, ConfigError
from marl.manifest import manifest_digest

QUICK = settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def content(step):
    return {"model": {"weight": torch.full((50,), float(step))}, "rng": {"state": torch.arange(9, dtype=torch.uint8)}}


def put(root, step, **options):
    return save(root, step, content(step), {"step": step}, **options)


def names(root):
    return sorted(path.name for path in root.iterdir())


def steps(root):
    return [int(name.removeprefix("step_")) for name in names(root)]


def assert_step(found, step):
    assert (found.step, found.data) == (step, {"step": step})
    assert found.tensors.keys() == {"model", "rng"}
    for group, tensors in content(step).items():
        assert all(torch.equal(found.tensors[group][name], tensor) for name, tensor in tensors.items())


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_whole(tmp_path):
    path = put(tmp_path / "new" / "root", 120_000)
    assert path == tmp_path / "new" / "root" / "step_000000120000"
    assert names(path) == ["manifest.json", "model.safetensors", "rng.safetensors"]
    for found in (load(path.parent), load(path), load(path.parent, torch.device("cpu"), which=120_000)):
        assert_step(found, 120_000)
        assert found.path == path


def test_what_is_loaded_outlives_the_files(tmp_path):
    put(tmp_path, 1)
    first = load(tmp_path)
    first.tensors["model"]["weight"].add_(1)
    assert_step(load(tmp_path), 1)
    for step in (2, 3):
        put(tmp_path, step, keep=1)
    assert not first.path.exists()
    assert (first.tensors["model"]["weight"] == 2).all()


# --- which are kept and found ----------------------------------------------------------------------------------------


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.5, 5: -2.0}
    for step, score in scores.items():
        put(tmp_path, step, keep=2, score=score)
    assert steps(tmp_path) == [2, 4, 5]
    assert best(tmp_path) == tmp_path / "step_000000000002"
    assert_step(load(tmp_path, which="best"), 2)
    assert_step(load(tmp_path), 5)
    put(tmp_path, 6, keep=1, score=0.9)
    assert steps(tmp_path) == [6], "of equal scores the latest is the best"


def test_without_scores_the_last_stands_for_the_best(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 2)
    assert best(tmp_path) is None
    assert best(tmp_path / "absent") is None
    assert_step(load(tmp_path, which="best"), 2)


def test_the_best_that_is_cut_short_does_not_count(tmp_path):
    for step in (1, 2, 3):
        put(tmp_path, step, score=-float(step))
    os.truncate(tmp_path / "step_000000000001" / "model.safetensors", 100)
    assert best(tmp_path) == tmp_path / "step_000000000002"
    put(tmp_path, 4, keep=1)
    assert steps(tmp_path) == [2, 4], "and it is not what pruning spares"


def test_the_last_is_the_one_saved_last(tmp_path):
    for step in (100, 200, 300):
        put(tmp_path, step)
    put(tmp_path, 150, keep=1)
    assert steps(tmp_path) == [150], "a run continued from an earlier step does not lose what it just saved"
    put(tmp_path, 120)
    assert_step(load(tmp_path), 120)


def test_the_same_step_again_replaces(tmp_path):
    for step in (1, 2):
        put(tmp_path, step, score=float(step))
    path = save(tmp_path, 1, {"model": {"weight": torch.zeros(3)}}, {"again": True}, score=5.0)
    assert steps(tmp_path) == [1, 2]
    assert load(tmp_path).data == {"again": True}
    assert list(load(path).tensors) == ["model"]
    assert best(tmp_path) == path


def test_a_damaged_checkpoint_does_not_push_a_good_one_out(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 9)
    (tmp_path / "step_000000000009" / "manifest.json").unlink()
    put(tmp_path, 2, keep=2)
    assert steps(tmp_path) == [1, 2, 9]
    put(tmp_path, 10, keep=2)
    put(tmp_path, 11, keep=2)
    assert steps(tmp_path) == [10, 11]


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path, position=-1, bit=0):
    content_ = bytearray(path.read_bytes())
    content_[position] ^= 1 << bit
    path.write_bytes(content_)


DAMAGE = {
    "truncated": ("model.safetensors", lambda path: os.truncate(path, 100)),
    "longer": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"0")),
    "empty": ("model.safetensors", lambda path: os.truncate(path, 0)),
    "flipped": ("rng.safetensors", flip),
    "header": ("model.safetensors", lambda path: flip(path, 0)),
    "missing file": ("rng.safetensors", Path.unlink),
    "missing manifest": ("manifest.json", Path.unlink),
    "no JSON": ("manifest.json", lambda path: path.write_text("{")),
    "no text": ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "no dictionary": ("manifest.json", lambda path: path.write_text("[]")),
    "other data": ("manifest.json", lambda path: path.write_text(path.read_text().replace('"step": 3', '"step": 4'))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, caplog, kind):
    for step in (1, 2, 3):
        put(tmp_path, step, score=float(step))
    name, break_ = DAMAGE[kind]
    path = tmp_path / "step_000000000003"
    break_(path / name)
    for which in ("last", "best"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="marl"):
            assert_step(load(tmp_path, which=which), 2)
        assert f"checkpoint {path} is damaged: {name}" in caplog.text
    for explicit in (lambda: load(path), lambda: load(tmp_path, which=3)):
        with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
            explicit()
    assert_step(load(tmp_path, which=1), 1)
    put(tmp_path, 3)
    assert_step(load(path), 3)


RESEALED = {
    "format": "one",
    "step": -1,
    "order": None,
    "score": "high",
    "data": [],
    "files": {"../step_000000000001/model.safetensors": {"bytes": 1, "sha256": ""}},
}


@pytest.mark.parametrize("name", RESEALED)
def test_a_manifest_whose_digest_fits_and_whose_fields_do_not_is_damaged(tmp_path, name):
    put(tmp_path, 1)
    huge = {name: 10**400}  # no float
    for change in (
        lambda manifest: manifest.pop(name),
        lambda manifest: manifest.update({name: RESEALED[name]}),
        *([] if name in ("format", "data", "files") else [lambda manifest: manifest.update(huge)]),
    ):
        file = put(tmp_path, 2) / "manifest.json"
        manifest = json.loads(file.read_text())
        change(manifest)
        manifest["sha256"] = manifest_digest(manifest)
        file.write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=f"is damaged: manifest.json has {name}="):
            load(file.parent)
        assert_step(load(tmp_path), 1)
    put(tmp_path, 3, keep=2)
    assert_step(load(tmp_path), 3)


def test_a_manifest_nested_beyond_reading_is_damaged(tmp_path):
    put(tmp_path, 1)
    (put(tmp_path, 2) / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    assert_step(load(tmp_path), 1)


def test_content_that_the_caller_refuses_is_passed_over(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 2)

    def check(found):
        if found.data["step"] == 2:
            raise CheckpointError("not that one")

    assert_step(load(tmp_path, check=check), 1)
    with pytest.raises(CheckpointError, match="not that one"):
        load(tmp_path, which=2, check=check)


# --- obstacles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_stands_where_a_checkpoint_was_does_not_block_later_saves(tmp_path, kind):
    """Such as a folder that was moved to another disk, and linked."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    put(root, 1).rename(elsewhere)
    if kind == "file":
        (root / "step_000000000001").write_text("mine")
    else:
        (root / "step_000000000001").symlink_to(elsewhere if kind == "link" else tmp_path / "absent")
    for step in (2, 1, 3, 4):
        put(root, step, keep=1)
        assert_step(load(root), step)
    assert names(root) == ["step_000000000004"]
    assert names(elsewhere) == ["manifest.json", "model.safetensors", "rng.safetensors"]


def test_leftovers_that_cannot_be_removed_do_not_block_later_saves(tmp_path, monkeypatch, caplog):
    put(tmp_path, 1)
    (tmp_path / ".removed_step_000000000000").mkdir()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "not allowed")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    put(tmp_path, 2)
    assert "cannot remove" in caplog.text
    assert_step(load(tmp_path), 2)


@QUICK
@given(st.data())
def test_no_flipped_bit_is_ever_loaded(data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        put(root, 1)
        path = put(root, 2)
        file = path / data.draw(st.sampled_from(names(path)))
        flip(file, data.draw(st.integers(0, file.stat().st_size - 1)), data.draw(st.integers(0, 7)))
        found = load(root)
        assert_step(found, found.step)
        assert found.step == 1 or file.name == "manifest.json"


def test_where_nothing_is_usable_it_says_what_was_found(tmp_path, caplog):
    with pytest.raises(CheckpointError, match=r"no usable checkpoint \(last\).*no step_\* folder"):
        load(tmp_path / "absent")
    for step in (1, 2):
        flip(put(tmp_path, step) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"0002 is damaged: model.*0001 is damaged: model"):
        load(tmp_path)
    assert len(caplog.records) == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .*found steps: \[1, 2\]"):
        load(tmp_path, which=7)
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        load(tmp_path / "step_000000000008")


def test_a_newer_format_is_not_skipped_and_not_removed(tmp_path, monkeypatch):
    put(tmp_path, 1)
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "FORMAT", 2)
        path = put(tmp_path, 2)
    for explicit in (lambda: load(tmp_path), lambda: load(path), lambda: load(tmp_path, which=2)):
        with pytest.raises(CheckpointError, match="has format 2, this seqmarl reads formats up to 1"):
            explicit()
    put(tmp_path, 3, keep=1)
    assert steps(tmp_path) == [2, 3]
    assert_step(load(tmp_path), 3)


def test_a_moved_checkpoint_loads(tmp_path):
    put(tmp_path / "run", 5).rename(tmp_path / "published")
    assert_step(load(tmp_path / "published"), 5)


def test_loading_unpickles_nothing(tmp_path, monkeypatch):
    save(
        tmp_path,
        1,
        {"rng": {"state": torch.zeros(3, dtype=torch.uint8)}},
        {"state": {"$": "array", "name": "os.system"}},
    )

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert load(tmp_path).step == 1


# --- errors while saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "step=-1"),
        ({"keep": 0}, "keep=0"),
        ({"score": float("nan")}, "score=nan"),
        ({"tensors": {"a/b": {}}}, "tensor group 'a/b'"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        save(**{"root": tmp_path, "step": 1, "tensors": {}, "data": {}, **options})
    with pytest.raises(ConfigError, match="which='newest'"):
        load(tmp_path, which="newest")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("tensor", "data", "message"),
    [
        (torch.zeros(3).to_sparse(), {}, "cannot store group.safetensors"),
        (torch.zeros(3, dtype=torch.complex128), {}, "complex128"),
        (torch.zeros(3, device="meta"), {}, "meta"),
        (torch.zeros(3), {"array": np.zeros(3)}, "no JSON.*marl.checkpoint.codec.pack"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(tmp_path, tensor, data, message):
    put(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 2, {"model": {"fine": torch.zeros(3)}, "group": {"name": tensor}}, data)
    with pytest.raises(CheckpointError, match="'__metadata__', which the file format reserves"):
        save(tmp_path, 2, {"group": {"__metadata__": torch.zeros(3)}}, {})
    assert steps(tmp_path) == [1]


def test_a_full_disk_leaves_the_earlier_one(tmp_path, monkeypatch):
    message = r"No space left.*need 209 bytes and \d+ are free; there is no earlier checkpoint"

    def full(path, _):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "_write_tensors", full)
        with pytest.raises(CheckpointError, match=message):
            put(tmp_path, 1)
        assert names(tmp_path) == []
        broken.undo()
        put(tmp_path, 1)
        broken.setattr(checkpoint, "_write_tensors", full)
        for step in (1, 2):
            with pytest.raises(CheckpointError, match="the earlier checkpoint step_000000000001 is intact"):
                put(tmp_path, step)
            assert steps(tmp_path) == [1]
    assert_step(load(tmp_path), 1)


def test_a_write_that_the_system_cuts_short(tmp_path):
    put(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large.*need 400000 bytes.*step_000000000001 is intact"):
            save(tmp_path, 2, {"model": {"weight": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps(tmp_path) == [1]
    assert_step(load(tmp_path), 1)


def test_a_really_full_disk(tmp_path):
    mounted = subprocess.run(["sh", "-c", f"mount -t tmpfs -o size=256k tmpfs '{tmp_path}'"], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        put(tmp_path, 1)
        with pytest.raises(CheckpointError, match=r"No space left.*need 400000 bytes and 2\d{5} are free"):
            save(tmp_path, 2, {"model": {"weight": torch.zeros(100_000)}}, {})
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, 2, {}, {"log": "x" * 400_000})
        assert steps(tmp_path) == [1]
        assert_step(load(tmp_path), 1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_interrupt_leaves_nothing_half_done(tmp_path, monkeypatch):
    put(tmp_path, 1)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 2)
    assert steps(tmp_path) == [1]


def test_an_old_one_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    put(tmp_path, 1)
    rename = Path.rename

    def stubborn(path, target):
        if target.name.startswith(".removed_"):
            raise PermissionError(errno.EACCES, "not allowed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    put(tmp_path, 2, keep=1)
    assert "cannot remove the old checkpoint" in caplog.text
    assert_step(load(tmp_path), 2)


CRASHES = """
import itertools, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from marl.checkpoint.store import load, save

def put(root, step, copy):
    value = torch.full((5000,), step + copy / 2)
    save(root, step, {"model": {"weight": value}, "envs": {"a": value}}, {"step": step, "copy": copy}, keep=2,
         score=float(step == 1))

def check(root):
    found = load(root)
    value = found.data["step"] + found.data["copy"] / 2
    assert found.step == found.data["step"]
    assert all((found.tensors[group][name] == value).all() for group, name in (("model", "weight"), ("envs", "a")))
    return found

def settled(root, step):
    put(root, step, 0)
    assert check(root).step == step
    names = sorted(path.name for path in root.iterdir())
    assert len(names) <= 3 and names[0] == f"step_{1:012d}", names
    assert not any(name.startswith(".") for name in names), names
    assert load(root, which="best").step == 1

def killed_at(count):
    remaining = itertools.count(count, -1)
    def hook(event, arguments):
        if event.split(".")[0] in ("os", "shutil", "open") and next(remaining) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def child(work):
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process

def every_point(base, step, copy):
    for step_ in (1, 2, 3):
        put(base, step_, 0)
    for count in itertools.count():
        root = base.with_name(f"{base.name}_{count}")
        shutil.copytree(base, root)
        process = child(lambda: (killed_at(count), put(root, step, copy)))
        dead = os.waitpid(process, 0)[1]
        found = check(root)
        assert (found.step, found.data["copy"]) in ((3, 0), (step, copy)), found
        settled(root, 5)
        shutil.rmtree(root)
        if not dead:
            return count

def forever(root):
    first = load(root).step
    for step in itertools.count(first + 1):
        for copy in (0, 1):
            put(root, step, copy)

def random_moments(root, kills):
    put(root, 1, 0)
    for _ in range(kills):
        before = load(root).step
        process = child(lambda: forever(root))
        time.sleep(random.uniform(0.02, 0.25))
        os.kill(process, signal.SIGKILL)
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        found = check(root)
        assert found.step >= before
        settled(root, found.step + 1)
    return found.step

folder = Path(sys.argv[1])
new, again = every_point(folder / "new", 4, 0), every_point(folder / "again", 3, 1)
print(new, again, random_moments(folder / "random", 10))
"""


def test_kill_minus_nine_at_any_moment_leaves_a_good_one(tmp_path):
    result = subprocess.run([sys.executable, "-c", CRASHES, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stderr
    new, again, random_steps = map(int, result.stdout.split())
    assert min(new, again) > 20, "the crash points cover opening, renaming and removing"
    assert random_steps > 10


def test_a_step_caught_between_two_copies_is_found_by_name(tmp_path):
    path = put(tmp_path, 4)
    path.rename(tmp_path / f".replaced_{path.name}")
    assert_step(load(tmp_path), 4)
    assert_step(load(path), 4)
    put(tmp_path, 5)
    assert steps(tmp_path) == [4, 5]


def test_the_manifest_says_what_it_holds(tmp_path):
    manifest = json.loads((put(tmp_path, 8, score=0.5) / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["score"]) == (1, 8, 0.5)
    assert manifest["files"]["model.safetensors"].keys() == {"bytes", "sha256"}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"].keys() == {"seqmarl", "torch", "numpy", "python"}
