"""Environments that misbehave on request, for `tests.support.faulty_envs:make`."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium.spaces import MultiDiscrete

from marl.envs.toy import make as make_toy
from marl.envs.wrappers import EnvWrapper
from marl.types import EnvSpec, Obs, Step


class Broken(EnvWrapper):
    """Toy chain whose step number `at`, counted over all episodes, does `what` ("huge": every later step).

    With a `once` file only the first environment to get there misbehaves, and creates the file.
    """

    def __init__(self, what: str, at: int, once: str = "") -> None:
        super().__init__(make_toy("agent_death" if what in ("mask", "nobody") else "chain"))
        self.what, self.at, self.once, self.count = what, at, once, 0

    def reset(self, seed: int | None = None) -> Obs:
        obs = super().reset(seed)
        if self.what == "unborn":
            return replace(obs, alive=np.zeros_like(obs.alive))
        return replace(obs, agents=obs.agents + 7) if self.what == "outside" else obs

    def step(self, action: np.ndarray) -> Step:
        self.count += 1
        if self.what == "dead" and self.count > self.at:  # for good, in an episode that does not end
            obs = super().reset(0)
            return Step(
                replace(obs, alive=np.zeros_like(obs.alive)), np.zeros(len(obs.alive), np.float32), False, False
            )
        step = self.env.step(action)
        if self.what == "always":
            return replace(step, reward=np.full_like(step.reward, np.nan))
        if self.what == "huge" and self.count > self.at:
            return replace(step, reward=np.full_like(step.reward, 3e38))
        if self.count != self.at or (self.once and not first(Path(self.once))):
            return step
        if self.what == "reward":
            return replace(step, reward=np.full_like(step.reward, np.nan))
        if self.what == "observation":
            return replace(step, obs=replace(step.obs, agents=np.full_like(step.obs.agents, np.inf)))
        if self.what == "state":
            return replace(step, obs=replace(step.obs, state=np.full_like(step.obs.state, np.nan)))
        if self.what == "mask":
            return replace(step, obs=replace(step.obs, action_mask=np.zeros_like(step.obs.action_mask)))
        if self.what == "nobody":
            return replace(step, obs=replace(step.obs, alive=np.zeros_like(step.obs.alive)))
        if self.what == "raise":
            raise ZeroDivisionError("the simulator divided by zero")
        if self.what == "exit":
            sys.exit(0)
        if self.what == "interrupt":
            raise KeyboardInterrupt
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "sleep":
            time.sleep(60)
        return step


class Choices(EnvWrapper):
    @property
    def spec(self) -> EnvSpec:
        return replace(super().spec, action_space=MultiDiscrete([2, 3]), action_sizes=())


def first(path: Path) -> bool:
    """Return True if this call, of all processes, created the file."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make(what: str = "nothing", at: int = 1, once: str = "") -> Broken:
    return Broken(what, at, once)


def on_rank(rank: int = 1, what: str = "nothing", at: int = 1) -> Broken:
    """Return an environment that misbehaves on a single rank of a run."""
    return Broken(what if os.environ.get("RANK") == str(rank) else "nothing", at)


def choices() -> EnvWrapper:
    """An environment whose actions no agent can take."""
    return Choices(make_toy("chain"))
