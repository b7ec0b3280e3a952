"""Weights & Biases."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marl.errors import ConfigError, MissingDependencyError
from marl.tracking.base import Tracker, run_name

INIT_TIMEOUT = 30.0
"""Seconds to wait for the server."""
ID_FILE = "wandb_id"


class WandbTracker(Tracker):
    """Logs a run to Weights & Biases; `options` go to `wandb.init`.

    A resumed run continues the same W&B run, whose id is kept in the run's folder. Without an API key, or without an
    answer of the server, the run is refused before it trains; `WANDB_MODE=offline` logs to files in the run's folder.
    Raises ConfigError without a key, and MissingDependencyError without the package.
    """

    def __init__(self, project: str = "seqmarl", **options: Any) -> None:
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingDependencyError(
                "tracker 'wandb' needs the package wandb; install with: pip install 'seqmarl[wandb]'"
            ) from error
        self.wandb, self.project, self.options = wandb, project, options
        self.run: Any = None
        mode = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
        if mode not in ("offline", "disabled") and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise ConfigError(
                "tracker 'wandb' has no API key; run `wandb login`, set WANDB_API_KEY, or log to files with "
                "WANDB_MODE=offline"
            )

    def start(self, folder: Path, step: int) -> None:
        """Open the W&B run. Raises ConfigError if the server does not answer."""
        path = folder / ID_FILE
        known = path.read_text().strip() if step and path.exists() else None
        settings = self.wandb.Settings(init_timeout=INIT_TIMEOUT, console="off", silent=True)
        options = {"name": run_name(folder), "dir": str(folder), "id": known, "resume": "allow", "settings": settings}
        try:
            self.run = self.wandb.init(project=self.project, **(options | self.options))
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"tracker 'wandb' cannot start ({type(error).__name__}: {reason}); check the network and the key, or "
                "log to files with WANDB_MODE=offline"
            ) from error
        path.write_text(self.run.id + "\n")

    def config(self, text: str, flat: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Set the W&B config."""
        self.run.config.update(dict(flat), allow_val_change=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics at the number of environment steps."""
        self.run.log(dict(values), step=step)

    def text(self, step: int, tag: str, value: str) -> None:
        """Log text as it is, in a fixed-width font."""
        escaped = value.replace("&", "&amp;").replace("<", "&lt;")
        self.run.log({tag: self.wandb.Html(f"<pre>{escaped}</pre>", inject=False)}, step=step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Log a picture."""
        self.run.log({tag: self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Finish the W&B run."""
        if self.run is not None:
            self.run.finish()
