"""Environments that return buffers of their own, cut agents off alone, or draw from global random streams."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from marl.types import EnvSpec, Obs, Step


class Buffered:
    """Two agents, two steps. Everything is returned in one set of buffers, which `reset` clears."""

    def __init__(self) -> None:
        self.spec = EnvSpec(
            name="buffered",
            agents=("a", "b"),
            observation_space=Box(0.0, 10.0, (1,), np.float32),
            action_space=Discrete(2),
            max_steps=2,
            state_space=Box(0.0, 10.0, (1,), np.float32),
            team_reward=False,
        )
        self.seen, self.state = np.zeros((2, 1), np.float32), np.zeros(1, np.float32)
        self.alive, self.mask = np.ones(2, bool), np.ones((2, 2), bool)
        self.reward = np.zeros(2, np.float32)
        self.duration: Any = np.ones((), np.int64)
        self.info: dict[str, Any] = {"success": np.zeros(())}
        self.choices = [["x"], ["x"]]
        self.over = True

    def reset(self, seed: int | None = None) -> Obs:  # noqa: ARG002
        self.over, self.time = False, 0
        for array in (self.seen, self.state, self.reward, self.info["success"]):
            array[...] = 0
        self.alive[:], self.mask[:], self.duration[...] = True, True, 1
        for choices in self.choices:
            choices[:] = ["x"]
        return self.obs()

    def obs(self) -> Obs:
        return Obs(self.seen, self.alive, self.mask, self.state, self.choices)

    def step(self, action: Any) -> Step:  # noqa: ARG002
        if self.over:
            raise RuntimeError("reset first")
        self.time += 1
        for array in (self.seen, self.state, self.info["success"]):
            array[...] = self.time
        self.reward[:] = (self.time, 10 * self.time)
        self.alive[1], self.mask[1, 1], self.duration[...] = False, False, 3
        for choices in self.choices:
            choices[:] = [f"last {self.time}"]
        self.over = self.time == 2
        return Step(self.obs(), self.reward, self.over, False, self.info, self.duration)

    def render(self) -> None:
        return None

    def get_state(self) -> None:
        return None

    def set_state(self, state: Any) -> Obs:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Relay:
    """Agents leave one after another, in the order of their numbers, while the others play on.

    Agent i leaves after step `leaves[i]`, terminated where `dies[i]` and cut off otherwise; the last to leave ends the
    episode. Everyone who plays is paid 1 a step, sees (own number, steps so far), and may do one of two things.
    """

    def __init__(self, leaves: tuple[int, ...] = (2, 3, 5), dies: tuple[bool, ...] = (False, True, False)) -> None:
        self.leaves, self.dies = np.array(leaves), np.array(dies)
        self.spec = EnvSpec(
            name="relay",
            agents=tuple(f"agent_{i}" for i in range(len(leaves))),
            observation_space=Box(0.0, 10.0, (2,), np.float32),
            action_space=Discrete(2),
            max_steps=None,
            team_reward=False,
        )
        self.time, self.over = 0, True

    def reset(self, seed: int | None = None) -> Obs:  # noqa: ARG002
        self.time, self.over = 0, False
        return self.observe(np.ones(len(self.leaves), bool))

    def observe(self, alive: np.ndarray) -> Obs:
        seen = np.stack([np.arange(len(alive)), np.full(len(alive), self.time)], 1).astype(np.float32)
        return Obs(np.where(alive[:, None], seen, np.float32(0)), alive)

    def step(self, action: Any) -> Step:  # noqa: ARG002
        if self.over:
            raise RuntimeError("reset first")
        reward = (self.leaves > self.time).astype(np.float32)
        self.time += 1
        alive, cut = self.leaves > self.time, (self.leaves == self.time) & ~self.dies
        if not alive.any():
            self.over = True
            return Step(self.observe(cut), reward, not cut.any(), bool(cut.any()))
        if not cut.any():
            return Step(self.observe(alive), reward, False, False)
        return Step(self.observe(alive), reward, False, False, agent_truncated=cut, final=self.observe(alive | cut))

    def render(self) -> None:
        return None

    def get_state(self) -> dict[str, Any]:
        return {"time": self.time, "over": self.over}

    def set_state(self, state: dict[str, Any]) -> Obs:
        self.time, self.over = state["time"], state["over"]
        return self.observe((self.leaves == self.time) & ~self.dies if self.over else self.leaves > self.time)

    def close(self) -> None:
        pass


class Dice(Relay):
    """Sees numbers of the global generators of python, numpy and torch; the first is drawn when it is made."""

    def __init__(self, saves: bool = True) -> None:
        super().__init__((9,), (False,))
        self.spec = replace(self.spec, name="dice", observation_space=Box(0.0, 1.0, (4,), np.float32))
        self.made, self.saves = float(np.random.random()), saves  # noqa: NPY002 - the stream in question

    def observe(self, alive: np.ndarray) -> Obs:
        self.drawn = [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002
        return self.shown(alive)

    def shown(self, alive: np.ndarray) -> Obs:
        return Obs(np.array([[self.made, *self.drawn]], np.float32), alive)

    def get_state(self) -> Any:
        return super().get_state() | {"made": self.made, "drawn": self.drawn} if self.saves else None

    def set_state(self, state: dict[str, Any]) -> Obs:
        obs = super().set_state(state)  # which draws, as environments may
        self.made, self.drawn = state["made"], state["drawn"]
        return self.shown(obs.alive)
