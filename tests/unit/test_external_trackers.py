"""Weights & Biases and MLflow, without a network."""

import sys

import numpy as np
import pytest

from marl import run
from marl.errors import ConfigError, MissingDependencyError
from marl.tracking.base import make_tracker

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_absent_package_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"seqmarl\[{name}\]"):
        make_tracker(name)


def test_wandb_without_a_key_refuses_before_the_start(small, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(type(wandb.api), "api_key", None, raising=False)
    with pytest.raises(ConfigError, match=r"no API key; run `wandb login`.*WANDB_MODE=offline"):
        run.start(small(name="x", trackers=("wandb",)))
    assert not (tmp_path / "runs").exists()


def test_wandb_writes_offline(small, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small(steps=64, name="offline", trackers=("wandb",))
    folder = run.start(config).folder
    first = (folder / "wandb_id").read_text()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert run.resume(folder, {"steps": 96}).steps == 96
    assert (folder / "wandb_id").read_text() == first


def test_mlflow_writes_files_and_continues_a_run(small, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small(steps=64, name="flow", trackers=("mlflow",))
    folder = run.start(config).folder
    assert run.resume(folder, {"steps": 96}).steps == 96
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((folder.parent / "mlruns").as_uri())
    identity = (folder / "mlflow_id").read_text().strip()
    history = client.get_metric_history(identity, "loss/total")
    assert [point.step for point in history] == [32, 64, 96]
    found = client.get_run(identity)
    assert found.info.status == "FINISHED"
    assert found.data.params["env"] == config.env
    tracker = make_tracker("mlflow")
    tracker.start(folder, 96)
    tracker.text(96, "eval/transcript", "# words")
    tracker.image(96, "eval/credit", np.zeros((4, 6, 3), dtype=np.uint8))
    tracker.close()
    assert {item.path for item in client.list_artifacts(identity, "eval")} == {"eval/transcript", "eval/credit"}


def test_an_mlflow_server_that_does_not_answer_refuses_before_training(small, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"tracker 'mlflow' cannot start at http://127.0.0.1:9"):
        run.start(small(steps=64, trackers=("mlflow",)))
