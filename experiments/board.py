"""`marl tensorboard`: TensorBoard on runs, under names that read well."""

import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from marl.errors import ConfigError
from marl.experiments.report.runs import find_runs
from marl.factories import short_name
from marl.stopping import stop_requests

FIELD = re.compile(r"^(env|agent|seed): (.+)$", re.M)
"""The first fields of config.yaml, which are read without parsing the rest of hundreds of files."""

COLORS = "?runColorGroup=regex%3A%5B%5E%2F%5D%2B%2F(%5B%5E%2F%5D%2B)%2F&smoothing=0#timeseries"
"""Part of an address that colors ENV/AGENT/SEED by agent, without smoothing."""


@dataclass(frozen=True)
class BoardCommand:
    """Open TensorBoard on runs, named ENV/AGENT/SEED, with the charts in the order of this project."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="")]
    """Folders of runs, or folders that hold them."""
    port: int = 6006
    """Port of the web page; 0 takes a free one."""


def named_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the runs in the folders by the names ENV/AGENT/SEED; equal ones are numbered.

    Raises ConfigError if there is none.
    """
    if not paths:
        raise ConfigError("tensorboard needs runs; give one or more folders of runs, such as runs")
    found: dict[str, Path] = {}
    for run in dict.fromkeys(run for path in paths for run in find_runs(path)):
        file = run / "config.yaml"
        if not file.is_file():
            raise ConfigError(f"there is no run in {run}; `ls runs` shows the runs")
        fields = dict(FIELD.findall(file.read_text(encoding="utf-8", errors="replace")))
        env, agent = (short_name(fields.get(name, "unknown").strip("'\"")) for name in ("env", "agent"))
        name = first = "/".join(re.sub(r"[/:]", "-", part) for part in (env, agent, f"seed-{fields.get('seed', '?')}"))
        number = 1
        while name in found:
            number += 1
            name = f"{first}-{number}"
        found[name] = run
    return found


@contextmanager
def linked(runs: dict[str, Path]) -> Iterator[Path]:
    """Yield a temporary folder with a link to each run under its name."""
    with tempfile.TemporaryDirectory(prefix="marl-board-") as folder:
        for name, run in runs.items():
            link = Path(folder) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(run.absolute(), target_is_directory=True)
        yield Path(folder)


def open_board(command: BoardCommand) -> None:
    """Run `marl tensorboard` until an interrupt. Raises ConfigError if the port is taken."""
    runs = named_runs(command.runs)
    with linked(runs) as folder:
        from tensorboard import program

        board = program.TensorBoard()
        board.configure(argv=["tensorboard", "--logdir", str(folder), "--port", str(command.port)])
        try:
            url = board.launch()
        except program.TensorBoardServerException as error:
            raise ConfigError(f"port={command.port} cannot be opened ({error}); give another --port") from error
        stopped = threading.Event()
        with stop_requests(stopped.set):
            print(f"{len(runs)} runs, colored by agent; Ctrl-C ends it: {url}{COLORS}", flush=True)
            stopped.wait()
