"""MLflow."""

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marl.errors import ConfigError, MissingDependencyError
from marl.tracking.base import Tracker, run_name, runs_dir

ID_FILE = "mlflow_id"
MAX_VALUE = 500
"""Longest value of a parameter that every MLflow server takes."""
MAX_BATCH = 100
"""Most parameters of one request."""


class MLflowTracker(Tracker):
    """Logs a run to MLflow: to `uri`, else MLFLOW_TRACKING_URI, else `mlruns` in the folder of all runs.

    A resumed run continues the same MLflow run, whose id is kept in the run's folder. Without an answer of the server
    the run is refused before it trains. Raises MissingDependencyError without the package.
    """

    def __init__(self, experiment: str = "seqmarl", uri: str = "") -> None:
        try:
            mlflow: Any = importlib.import_module("mlflow")
            importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise MissingDependencyError(
                "tracker 'mlflow' needs the package mlflow; install with: pip install 'seqmarl[mlflow]'"
            ) from error
        self.make_client, self.entities = mlflow.MlflowClient, mlflow.entities
        self.experiment, self.uri = experiment, uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        self.client: Any = None
        self.run_id = ""

    def start(self, folder: Path, step: int) -> None:
        """Open the MLflow run. Raises ConfigError if the server does not answer."""
        uri = self.uri or (runs_dir(folder.absolute()) / "mlruns").as_uri()
        if not self.uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else files are refused, and a database is needed
        path = folder / ID_FILE
        try:
            self.client = self.make_client(uri)
            if step and path.exists():
                self.run_id = path.read_text().strip()
                self.client.update_run(self.run_id, status="RUNNING")
                return
            found = self.client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else self.client.create_experiment(self.experiment)
            self.run_id = self.client.create_run(number, run_name=run_name(folder)).info.run_id
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"tracker 'mlflow' cannot start at {uri} ({type(error).__name__}: {reason}); check the server, or "
                "unset MLFLOW_TRACKING_URI to log to files"
            ) from error
        path.write_text(self.run_id + "\n")

    def config(self, text: str, flat: Mapping[str, Any]) -> None:
        """Log the settings as parameters, and the YAML as an artifact."""
        if self.client.get_run(self.run_id).data.params:
            return  # a resumed run: MLflow does not change parameters
        parameters = [self.entities.Param(name, str(value)[:MAX_VALUE]) for name, value in flat.items()]
        for i in range(0, len(parameters), MAX_BATCH):
            self.client.log_batch(self.run_id, params=parameters[i : i + MAX_BATCH])
        self.client.log_text(self.run_id, text, "config.yaml")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics at the number of environment steps."""
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def text(self, step: int, tag: str, value: str) -> None:
        """Log text as an artifact."""
        self.client.log_text(self.run_id, value, f"{tag}/{step:012d}.md")

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Log a picture as an artifact."""
        self.client.log_image(self.run_id, picture, f"{tag}/{step:012d}.png")

    def close(self) -> None:
        """End the MLflow run."""
        if self.run_id:
            self.client.set_terminated(self.run_id)
