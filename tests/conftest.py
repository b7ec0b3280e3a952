import dataclasses
from pathlib import Path

import pytest
import torch

from marl.config import RunConfig, default_config, override


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_state_folder(tmp_path_factory):
    """The key of the tests' runs does not go to the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


SMALL = {
    "num_envs": 4,
    "rollout_steps": 8,
    "steps": 4 * 8 * 6,
    "epochs": 2,
    "minibatches": 3,
    "eval_interval": 2,
    "eval_episodes": 3,
    "checkpoint_interval": 1,
    "device": "cpu",
    "learn_threads": 1,
    "env_threads": 1,
    "seed": 5,
}


@pytest.fixture
def small(tmp_path: Path):
    """A run of six short iterations: `small(env, agent, **changes)`."""

    def make(env: str = "toy/chain", agent: str = "mat", **changes) -> RunConfig:
        settings = {**SMALL, "runs_dir": str(tmp_path / "runs"), "name": "run", **changes}
        fields = {f.name for f in dataclasses.fields(default_config(env, agent).agent_options)}
        sizes = {"embedding": 16, "hidden": (16,), "critic_hidden": (16,)}
        network = {name: size for name, size in sizes.items() if name in fields}
        return override(default_config(env, agent), {**network, **settings})

    return make
