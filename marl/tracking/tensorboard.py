"""Where a run's numbers go: `metrics.jsonl` always, TensorBoard beside it. The console is in `marl.tracking.console`.

A tracker never stops training because of the disk: what cannot be written waits in memory and is written
when there is space again.
"""

import json
import math
import os
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from marl.protocols import Tracker

TAGS: dict[str, str] = {
    "episode/return": "Mean return of the training episodes that ended in this iteration (exploring policy).",
    "episode/length": "Mean length of those episodes, in environment steps.",
    "episode/success": "Fraction of those episodes that the environment calls a success.",
    "episode/count": "How many training episodes ended in this iteration.",
    "episode/invalid_fraction": "Fraction of the steps of those episodes that passed because an action was invalid.",
    "episode/dropped": "Training episodes left out: not finite, or cut by the restart of a worker.",
    "eval/return": "Mean return of the evaluation episodes (validation seeds, the same each time).",
    "eval/return_low": "Lower end of the 95 % Student interval of the mean evaluation return.",
    "eval/return_high": "Upper end of the 95 % Student interval of the mean evaluation return.",
    "eval/length": "Mean length of the evaluation episodes, in environment steps.",
    "eval/dropped": "Evaluation episodes left out because their return was not finite.",
    "eval/discounted_return": "Mean discounted return of the evaluation episodes, as the environment counts it.",
    "eval/normalized_return": "Mean of that as a fraction of the best that is possible.",
    "eval/success": "Fraction of the evaluation episodes that the environment calls a success.",
    "eval/cut": "Evaluation episodes left at the step limit; they count as no success.",
    "test/return": "Mean return of the final evaluation: on the test seeds, which have chosen nothing.",
    "test/return_low": "Lower end of the 95 % Student interval of that return.",
    "test/return_high": "Upper end of the 95 % Student interval of that return.",
    "test/length": "Mean length of the episodes of the final evaluation, in environment steps.",
    "test/success": "Fraction of the episodes of the final evaluation that the environment calls a success.",
    "test/dropped": "Episodes of the final evaluation left out because their return was not finite.",
    "test/cut": "Episodes of the final evaluation left at the step limit; they count as no success.",
    "loss/policy": "Policy objective, to be minimized; near zero and noisy for clipped PPO.",
    "loss/value": "Value regression error, in the critic's own (normalized) units.",
    "loss/total": "Weighted sum of the losses: what the optimizer sees.",
    "policy/kl": "Mean KL divergence from the policy that collected the data to the updated one, in nats.",
    "policy/clip_fraction": "Fraction of the probability ratios that left the clip range.",
    "policy/behavior_gap": "Mean absolute log-ratio, in a unit, of the old policy to what really sampled, in nats.",
    "policy/reference_kl": "Mean KL divergence from the policy to its frozen reference (k3 estimate), in nats.",
    "policy/entropy": "Mean entropy of a unit of the ratio (a node, an agent's action or a step), in nats.",
    "policy/std_min": "Smallest standard deviation of a continuous action's dimension, where actions lie in [-1, 1].",
    "policy/std_max": "Largest standard deviation of a continuous action's dimension.",
    "policy/repeated_text": "Fraction of neighboring tokens in free answers of four tokens or more that came before.",
    "policy/epochs": "Passes over the data in this iteration, before the KL limit stopped them.",
    "policy/learning_rate": "Learning rate of the policy's optimizer.",
    "value/learning_rate": "Learning rate of the critic's parameters, where it is their own.",
    "value/explained_variance": "1 - Var(return - value) / Var(return): 1 is perfect, 0 no better than a constant.",
    "value/mean": "Mean predicted value of the visited states, in units of reward.",
    "value/norm_mean": "Running mean of the returns that the value normalizer subtracts.",
    "value/norm_std": "Running standard deviation of the returns that the value normalizer divides by.",
    "group/spread": "Mean standard deviation of the scores inside a group of episodes that began alike.",
    "group/silent_fraction": "Fraction of those groups whose episodes all scored the same: they teach nothing.",
    "gradient/norm": "Mean L2 norm of the gradient before clipping; of the actors, where agents learn in sequence.",
    "speed/steps_per_second": "Environment steps a second, everything included.",
    "speed/env_fraction": "Fraction of the iteration's time spent in the environments.",
    "speed/act_fraction": "Fraction of the iteration's time spent in choosing actions.",
    "speed/learn_fraction": "Fraction of the iteration's time spent in updating parameters.",
    "speed/other_fraction": "Fraction of the iteration's time spent on everything else.",
    "speed/memory_mb": "Peak resident memory of the training process, in MiB.",
}
"""Every tag that the trainer logs, and what it means. Agents may log others; they are grouped by prefix.

Warnings are texts under warning/KIND, with the kinds of `marl.diagnostics`: no_choice, entropy, kl, clip_fraction,
value_loss, std_collapse, max_std, repeated_text, invalid_actions.
"""

CHARTS: dict[str, dict[str, Sequence[Any]]] = {
    "Return": {
        "evaluation return (95 % interval)": ("Margin", ["eval/return", "eval/return_low", "eval/return_high"]),
        "training episode return": ("Multiline", ["episode/return$"]),
        "returns of agent types": ("Multiline", ["eval/return/", "episode/return/"]),
        "evaluation return, 1 is the optimum": ("Multiline", ["eval/normalized_return$"]),
    },
    "Success": {
        "evaluation success": ("Multiline", ["eval/success$"]),
        "training episode success": ("Multiline", ["episode/success$"]),
    },
    "Losses": {
        "policy loss": ("Multiline", ["loss/policy$"]),
        "value loss": ("Multiline", ["loss/value$"]),
        "gradient norm": ("Multiline", ["gradient/norm$"]),
    },
    "Policy": {
        "KL divergence": ("Multiline", ["policy/kl$"]),
        "clip fraction": ("Multiline", ["policy/clip_fraction$"]),
        "entropy": ("Multiline", ["policy/entropy$"]),
    },
    "Value": {
        "explained variance": ("Multiline", ["value/explained_variance$"]),
        "mean value": ("Multiline", ["value/mean$"]),
    },
    "Time": {
        "steps per second": ("Multiline", ["speed/steps_per_second$"]),
        "environment fraction": ("Multiline", ["speed/env_fraction$"]),
        "learning fraction": ("Multiline", ["speed/learn_fraction$"]),
    },
}
"""Categories and charts of TensorBoard's Custom Scalars page; a multiline chart's tags are regular expressions."""

HPARAM_METRICS = ("test/return", "test/success", "eval/return", "eval/success", "episode/return")
"""Tags that the HParams page compares runs by."""

BUFFERED_RECORDS = 10_000
"""Records kept in memory while a file cannot be written; beyond it the oldest are dropped and counted."""


class RecordFile:
    """A file that grows by whole records and outlives a full disk.

    `write` never raises OSError: a record that does not fit is held, after one warning on stderr, and is
    written, in order, by a later `write` or by `close`. Opening the file does raise OSError.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open for as long as the run
        self._size = self._file.tell()
        self._held: deque[bytes] = deque()
        self._lost = 0
        self._partial = False
        self._warned = False

    def write(self, record: bytes) -> None:
        self._held.append(record)
        error = self._write_held()
        if error is None:
            return
        if len(self._held) > BUFFERED_RECORDS:
            self._held.popleft()
            self._lost += 1
        if not self._warned:
            self._warned = True
            _warn(
                f"cannot write {self.path} ({error}); training goes on and up to {BUFFERED_RECORDS} records wait in "
                "memory; free some space and they are written"
            )

    def close(self) -> None:
        """Try once more to write what is held, and say how many records were lost."""
        if self._file.closed:
            return
        error = self._write_held()
        lost = self._lost + len(self._held)
        if lost:
            _warn(f"{lost} records of {self.path} were lost ({error or 'more were waiting than memory may hold'})")
        with suppress(OSError):
            if self._partial:
                self._file.truncate(self._size)
        with suppress(OSError):
            self._file.close()

    def _write_held(self) -> OSError | None:
        waiting = len(self._held)
        try:
            while self._held:
                self._write_record(self._held[0])
                self._held.popleft()
        except OSError as error:
            return error
        if self._warned and waiting:
            self._warned = False
            _warn(f"{self.path} can be written again; {waiting} waiting records were added to it")
        return None

    def _write_record(self, record: bytes) -> None:
        if self._partial:
            self._file.truncate(self._size)
        self._partial = True
        left = memoryview(record)
        while left:
            left = left[self._file.write(left) or 0 :]
        self._partial = False
        self._size += len(record)


def _warn(text: str) -> None:
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


class JsonlTracker:
    """One JSON object a line, `{"step": ..., tag: value, ...}`, on disk when `log` returns.

    Timing tags come last in a line; a value that is not finite is null; a text is a string under its tag.
    With `resume_step`, later lines are dropped, so that the log of a killed and resumed run equals that of
    an uninterrupted one. A line that a crash tore is dropped always.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None) -> None:
        path = Path(path)
        if path.is_file():
            drop_lines(path, math.inf if resume_step is None else resume_step)
        self._file = RecordFile(path)

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Nothing: the log holds what changes with the step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        timing_last = sorted(values, key=lambda tag: tag.startswith("speed/"))
        self._write(step, {tag: _json_number(values[tag]) for tag in timing_last})

    def text(self, step: int, tag: str, value: str) -> None:
        self._write(step, {tag: value})

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Nothing: pictures are for TensorBoard."""

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        line = json.dumps({"step": int(step), **values}, allow_nan=False)
        self._file.write(line.encode() + b"\n")


def _json_number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def drop_lines(path: Path, last_step: float) -> None:
    """Rewrite `path` without torn lines and lines after `last_step`; the old file stays until the new one is whole."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line.rstrip(b"\n") + b"\n" for line in lines if _line_step(line) <= last_step]
    if kept == lines:
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _line_step(line: bytes) -> float:
    """The step of a line; NaN, which compares as neither before nor after, where the line is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.nan


class TensorBoardTracker:
    """An event file in `directory` that TensorBoard shows as one run.

    Scalars carry the meanings of TAGS; the configuration is a text and the columns of the HParams page;
    CHARTS are the Custom Scalars page. With `resume_step`, what earlier event files of the directory say about later
    steps is cut off, so that any reader sees each step once. A running TensorBoard, which has read it before, hides it
    (it heeds only the second and later starts of a session, hence one in every file).

    `columns` are hyper-parameters that other runs have, for the HParams page shows the columns of a single run.

    Records are written as they come, without SummaryWriter: the thread behind it dies of a full disk,
    raises that error in the next call, and leaves a torn record after which the file cannot be read.
    """

    def __init__(self, directory: Path | str, resume_step: int | None = None, columns: Sequence[str] = ()) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"{EVENTS}{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._trial = str(directory)
        if resume_step is not None:
            for path in sorted(Path(directory).glob(f"{EVENTS}*")):
                cut_events(path, resume_step)
        self._file = RecordFile(Path(directory) / name)
        self._records = RecordWriter(self._file)
        self._described: set[str] = set()
        self._columns = tuple(columns)
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._add(self._first_step, file_version="brain.Event:2")
        self._add(self._first_step, session_log={"status": "START"})

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Show `text` on the Text page and `flat` on the HParams page, which opens with its first five columns."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from torch.utils.tensorboard.summary import custom_scalars

        hyper_parameters = {name: _hyperparameter(value) for name, value in flat.items()}
        self.text(self._first_step, "config", f"```yaml\n{text.rstrip()}\n```")
        self._add(self._first_step, summary=_columns([*flat, *(name for name in self._columns if name not in flat)]))
        self._add(self._first_step, summary=hparams_pb(hyper_parameters, trial_id=self._trial))
        self._add(self._first_step, summary=custom_scalars(CHARTS))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        scalars = []
        for tag, value in values.items():
            description = None if tag in self._described else TAGS.get(tag)
            scalars.extend(scalar_pb(tag, float(value), description).value)
        self._described.update(values)
        self._add(step, summary={"value": scalars})

    def text(self, step: int, tag: str, value: str) -> None:
        """Show `value` as Markdown on the Text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(step, summary=text_pb(tag, value))

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Show `picture` (height, width, 3) uint8 on the Images page."""
        height, width, _ = picture.shape
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": png(picture)}
        self._add(step, summary={"value": [{"tag": tag, "image": image}]})

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue] - made at import
            wall_time=time.time(), step=int(step), **content
        )
        self._records.write(event.SerializeToString())


EVENTS = "events.out.tfevents."
"""How the names of event files begin."""


def cut_events(path: Path, last_step: int) -> None:
    """Shorten an event file to the records before the first of a later step, or a torn one. An empty file is removed.

    A record is its length (8 bytes), a checksum (4), an event in protobuf and a checksum (4); steps never fall within a
    file.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import event_pb2

    kept, size = 0, path.stat().st_size
    with open(path, "r+b") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            body = file.read(length) if length <= size else b""
            if len(body) < length or len(file.read(4)) < 4:
                break
            try:
                event = event_pb2.Event.FromString(body)  # pyright: ignore[reportAttributeAccessIssue] - made at import
            except DecodeError:
                break
            if event.step > last_step:
                break
            kept = file.tell()
        file.truncate(kept)
    if not kept:
        path.unlink()


def png(picture: np.ndarray) -> bytes:
    """A picture (height, width, 3) uint8 as the bytes of a PNG file: unfiltered rows of RGB, deflated."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be (height, width, 3) uint8, got {picture.shape} {picture.dtype}")

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _columns(names: Sequence[str]) -> dict[str, Any]:
    """The HParams page: a column for each hyper-parameter and each tag of COMPARED.

    The page sorts columns by name and shows five, those that are said to differ first; so the first five
    of `names` are said to. No type is given: the filter that comes with one hides runs of another type.
    """
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = plugin_data_pb2.HParamsPluginData(  # pyright: ignore[reportAttributeAccessIssue] - made at import
        experiment={
            "hparam_infos": [{"name": name, "differs": index < 5} for index, name in enumerate(names)],
            "metric_infos": [{"name": {"tag": tag}, "description": TAGS[tag]} for tag in HPARAM_METRICS],
        }
    )
    column = {"metadata": metadata.create_summary_metadata(content), "tensor": metadata.NULL_TENSOR}
    return {"value": [{"tag": metadata.EXPERIMENT_TAG, **column}]}


def _hyperparameter(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


class MultiTracker:
    """Hands every call to each of `trackers`, in order; to none of them where the sequence is empty."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.config(text, flat)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def text(self, step: int, tag: str, value: str) -> None:
        for tracker in self.trackers:
            tracker.text(step, tag, value)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        for tracker in self.trackers:
            tracker.image(step, tag, picture)

    def close(self) -> None:
        """Close every tracker, also where one of them raises."""
        with ExitStack() as stack:
            for tracker in reversed(self.trackers):
                stack.callback(tracker.close)
