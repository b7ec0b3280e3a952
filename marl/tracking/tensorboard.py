"""Event files for TensorBoard."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marl.files import RecordFile
from marl.tracking.base import Tracker
from marl.tracking.metrics import HPARAM_TAGS, METRICS, chart_layout, find_metric

EVENTS = "events.out.tfevents."
"""Beginning of the names of event files."""


class TensorBoardTracker(Tracker):
    """Event file in `directory`, which TensorBoard shows as one run.

    Scalars carry the descriptions of the table of metrics. The Custom Scalars page has the charts of the tags that were
    logged. The configuration is a text, and the columns of the HParams page.

    With `resume_step`, events of later steps are cut from earlier event files of the directory, so that every reader
    sees each step once. A running TensorBoard, which has read them before, hides them.

    Events are written by TensorBoard's own record writer to a `RecordFile`. torch's SummaryWriter writes from a thread,
    which ends on a full disk; the next call then raises, and a partial record stays in the file.
    """

    def __init__(self, directory: Path | str, resume_step: int | None = None, columns: Sequence[str] = ()) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._trial = str(directory)
        self._tags: set[str] = set()
        if resume_step is not None:
            for path in sorted(Path(directory).glob(f"{EVENTS}*")):
                self._tags |= cut_events(path, resume_step)
        name = f"{EVENTS}{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordFile(Path(directory) / name)
        self._records = RecordWriter(self._file)
        self._columns = tuple(columns)
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._add(self._first_step, file_version="brain.Event:2")
        self._add(self._first_step, session_log={"status": "START"})

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Show `text` on the Text page and `flat` on the HParams page, which opens with its first five columns."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        self.text(self._first_step, "run/config", f"```yaml\n{text.rstrip()}\n```")
        self._add(self._first_step, summary=_columns([*flat, *(name for name in self._columns if name not in flat)]))
        hparams = {name: _hparam(value) for name, value in flat.items()}
        self._add(self._first_step, summary=hparams_pb(hparams, trial_id=self._trial))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars. A tag has its description the first time."""
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from torch.utils.tensorboard.summary import custom_scalars

        scalars, new = [], values.keys() - self._tags
        for tag, value in values.items():
            metric = find_metric(tag) if tag in new else None
            scalars.extend(scalar_pb(tag, float(value), metric and metric.description).value)
        self._add(step, summary={"value": scalars})
        if new:
            self._tags |= new
            if layout := chart_layout(self._tags):
                self._add(step, summary=custom_scalars(layout))
        if "test/return" in values:
            self.text(step, "result", _result_table(values))

    def text(self, step: int, tag: str, value: str) -> None:
        """Show `value` as Markdown on the Text page."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(step, summary=text_pb(tag, value))

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Show `picture` (H, W, 3) uint8 on the Images page."""
        from torch.utils.tensorboard.summary import image

        self._add(step, summary=image(tag, picture, dataformats="HWC"))

    def close(self) -> None:
        """Write what is held, if the disk allows it."""
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2

        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue] - made at import
            wall_time=time.time(), step=int(step), **content
        )
        self._records.write(event.SerializeToString())


def cut_events(path: Path, last_step: int) -> set[str]:
    """Shorten an event file to the records before the first of a later step, or before a partial one.

    Steps never decrease within a file. A file without records is removed. Returns the tags of the scalars that stay.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    size, tags = 0, set()
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)  # pyright: ignore[reportAttributeAccessIssue] - made at import
        if event.step > last_step:
            break
        size += len(record) + 16  # length (8 bytes) and two checksums (4 bytes each)
        tags.update(value.tag for value in event.summary.value if "/" in value.tag)
    os.truncate(path, size)
    if not size:
        path.unlink()
    return tags


def _result_table(values: Mapping[str, float]) -> str:
    """Return the scores of an evaluation as a Markdown table."""
    rows = [(tag, find_metric(tag)) for tag in values if tag.startswith(("test/", "eval/"))]
    lines = [f"| `{tag}` | {values[tag]:.6g} | {metric.description if metric else ''} |" for tag, metric in rows]
    return "\n".join(["| metric | value | meaning |", "|---|---|---|", *lines])


def _columns(names: Sequence[str]) -> dict[str, Any]:
    """Return the summary that sets the columns of the HParams page: hyper-parameters and HPARAM_TAGS.

    The page sorts columns by name and shows five, those first that are marked as different. So the first five of
    `names` are marked. No type is given, because its filter hides runs of another type.
    """
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = plugin_data_pb2.HParamsPluginData(  # pyright: ignore[reportAttributeAccessIssue] - made at import
        experiment={
            "hparam_infos": [{"name": name, "differs": index < 5} for index, name in enumerate(names)],
            "metric_infos": [{"name": {"tag": tag}, "description": METRICS[tag].description} for tag in HPARAM_TAGS],
        }
    )
    column = {"metadata": metadata.create_summary_metadata(content), "tensor": metadata.NULL_TENSOR}
    return {"value": [{"tag": metadata.EXPERIMENT_TAG, **column}]}


def _hparam(value: Any) -> bool | float | str:
    """Return a value that the HParams page can show. It shows numbers with four decimals, so integers are text."""
    return value if isinstance(value, bool | float | str) else str(value)
