"""A callback that records a data set: every transition of a run, as compressed NumPy files.

    python examples/callback.py

A file `dataset/000001.npz` holds one rollout: obs, action, reward, next_obs, terminated, truncated and alive, with
leading axes (T, E). A policy for offline learning reads them with `numpy.load`.
"""

from pathlib import Path

import numpy as np

import marl


class RecordDataset(marl.Callback):
    """Write the transitions of every rollout to `folder`."""

    def __init__(self, folder="dataset"):
        self.folder = Path(folder)
        self.count = 0

    def on_start(self, trainer):
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_rollout(self, trainer, transitions):
        self.count += 1
        np.savez_compressed(
            self.folder / f"{self.count:06d}.npz",
            obs=transitions.obs.agents,  # (T, E, N, D)
            alive=transitions.obs.alive,  # (T, E, N)
            action=transitions.action,  # (T, E, N)
            reward=transitions.reward,  # (T, E, N)
            next_obs=transitions.next_obs.agents,  # the last observation of an episode where one ended
            terminated=transitions.terminated,  # (T, E)
            truncated=transitions.truncated,
        )


if __name__ == "__main__":
    result = marl.train(env="toy/copy", agent="mappo", steps=20_000, callbacks=[RecordDataset()])
    print(result.scores["test/return"])
