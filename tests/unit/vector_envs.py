"""Tiny environments for the tests of vectors, in a module that worker processes can import."""

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Text

from marl.errors import NonFiniteError
from marl.types import EnvSpec, Obs, Step

WORDS = ("go", "stay", "turn left", "grüß dich", "")


@dataclass(frozen=True)
class Shape:
    """Kind of an environment. Every field changes the spec or the content of an observation."""

    agents: int = 2
    size: int = 3
    actions: int = 4
    action: str = "discrete"
    text: bool = False
    state: bool = True
    mask: bool = True
    candidates: bool = False
    saves: bool = True
    sometimes_terminated: float = 0.2
    max_steps: int = 7
    longest: int = 1
    """Most primitive steps of an action."""


class Walk:
    """Random numbers that depend on seed and actions, in buffers that every step overwrites."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        n = shape.agents
        actions: dict[str, Any] = {
            "discrete": Discrete(shape.actions),
            "box": Box(-1.0, 1.0, (shape.actions,), np.float32),
            "text": Text(20),
        }
        self.spec = EnvSpec(
            name="walk",
            agents=tuple(f"walker {i}" for i in range(n)),
            observation_space=Text(99) if shape.text else Box(-np.inf, np.inf, (shape.size,), np.float32),
            action_space=actions[shape.action],
            max_steps=shape.max_steps,
            state_space=Box(-np.inf, np.inf, (5,), np.float32) if shape.state else None,
            team_reward=False,
        )
        self.rng = np.random.default_rng()
        self.buffers = {
            "agents": np.zeros((n, shape.size), np.float32),
            "alive": np.zeros(n, bool),
            "action_mask": np.zeros((n, shape.actions), bool),
            "state": np.zeros(5, np.float32),
        }
        self.steps = -1
        self.trace = 0.0
        self.closed = False

    def reset(self, seed: int | None = None) -> Obs:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.steps, self.trace = 0, 0.0
        return self._observe()

    def step(self, action: Any) -> Step:
        if self.steps < 0:
            raise RuntimeError("reset first")
        self.steps += 1
        self.trace = 0.5 * self.trace + self._weigh(action)
        terminated = bool(self.rng.random() < self.shape.sometimes_terminated)
        truncated = not terminated and self.steps >= self.shape.max_steps
        reward = (self.rng.random(self.shape.agents) + self.trace).astype(np.float32)
        info = {"steps": self.steps, "trace": self.trace}
        step = Step(self._observe(), reward, terminated, truncated, info, 1 + self.steps % self.shape.longest)
        if terminated or truncated:
            self.steps = -1
        return step

    def _weigh(self, action: Any) -> float:
        assert len(action) == self.shape.agents
        if self.shape.action == "text":
            return float(sum((i + 1) * WORDS.index(word) for i, word in enumerate(action)))
        assert action.dtype == (np.int64 if self.shape.action == "discrete" else np.float32)
        return float(np.sum(action * np.arange(1, action.size + 1).reshape(action.shape)))

    def _observe(self) -> Obs:
        self.before = self.rng.bit_generator.state
        for name in ("agents", "state"):
            self.buffers[name][...] = self.rng.random(self.buffers[name].shape) + self.trace
        for name in ("alive", "action_mask"):
            self.buffers[name][...] = self.rng.random(self.buffers[name].shape) < 0.7
        self.buffers["action_mask"][:, 0] = True
        count = self.shape.agents
        text = tuple(f"{WORDS[self.rng.integers(5)]} {self.trace} {i}" for i in range(count))
        spoken = self.shape.candidates and self.rng.random() < 0.8
        mask = self.shape.mask and self.shape.action != "text"
        return Obs(
            agents=text if self.shape.text else self.buffers["agents"],
            alive=self.buffers["alive"],
            action_mask=self.buffers["action_mask"] if mask else None,
            state=self.buffers["state"] if self.shape.state else None,
            candidates=tuple(WORDS[: self.rng.integers(1, 5)] for _ in range(count)) if spoken else None,
        )

    def render(self) -> np.ndarray | str | None:
        return f"step {self.steps} trace {self.trace}"

    def get_state(self) -> dict[str, Any] | None:
        if not self.shape.saves:
            return None
        return {"rng": self.before, "steps": self.steps, "trace": self.trace}

    def set_state(self, state: dict[str, Any]) -> Obs:
        self.rng.bit_generator.state = state["rng"]
        self.steps, self.trace = state["steps"], state["trace"]
        return self._observe()

    def close(self) -> None:
        self.closed = True


class Threads(Walk):
    """Shows with how many threads its process computes."""

    def render(self) -> str:
        return f"{torch.get_num_threads()} thread of torch"


DISASTERS = ("", "raise", "kill", "segfault", "exit", "hang", "refuse", "nap")


class Troubled(Walk):
    """An action of `k` for the first agent brings about the k-th of DISASTERS; `at_reset` does at the n-th reset."""

    def __init__(self, shape: Shape, trace: str = "", at_reset: int = 0, what: str = "raise") -> None:
        super().__init__(shape)
        self.path, self.at_reset, self.what, self.resets = trace, at_reset, what, 0

    def step(self, action: Any) -> Step:
        disaster(DISASTERS[int(action[0])])
        return super().step(action)

    def reset(self, seed: int | None = None) -> Obs:
        self.resets += 1
        if self.path:
            with open(self.path, "a") as file:
                file.write(f"{seed}\n")
        if self.resets == self.at_reset:
            disaster(self.what)
        return super().reset(seed)

    def close(self) -> None:
        if self.path:
            with open(self.path, "a") as file:
                file.write("closed\n")


def disaster(kind: str) -> None:
    if kind == "raise":
        raise ZeroDivisionError("the simulator is out of luck")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfault":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(60)
    if kind == "nap":
        time.sleep(0.4)
    if kind == "refuse":
        raise NonFiniteError("a NaN in the torque")


class Broken(Walk):
    """Breaks one promise of its spec, at reset or at a step."""

    def __init__(self, field: str, value: Any, when: str) -> None:
        super().__init__(Shape(sometimes_terminated=0.0, max_steps=3))
        self.field, self.value, self.when = field, value, when

    def _spoil(self, obs: Obs, when: str) -> Obs:
        if when != self.when or not hasattr(obs, self.field):
            return obs
        parts = {name: getattr(obs, name) for name in ("agents", "alive", "action_mask", "state", "candidates")}
        return Obs(**{**parts, self.field: self.value})

    def reset(self, seed: int | None = None) -> Obs:
        return self._spoil(super().reset(seed), "reset" if seed is not None else "autoreset")

    def step(self, action: Any) -> Step:
        step = super().step(action)
        ended = step.terminated or step.truncated
        obs = self._spoil(step.obs, "final" if ended else "step")
        parts: dict[str, Any] = {"obs": obs, "reward": step.reward, "info": step.info}
        parts |= {"terminated": step.terminated, "truncated": step.truncated, "duration": step.duration}
        if self.field in parts and self.when == ("final" if ended else "step"):
            parts[self.field] = self.value
        return Step(**parts)


class Idle:
    """Does nothing, at the size of a battle of eight: measures what a vector costs."""

    def __init__(self) -> None:
        self.spec = EnvSpec(
            name="idle",
            agents=tuple(str(i) for i in range(8)),
            observation_space=Box(-1.0, 1.0, (80,), np.float32),
            action_space=Discrete(14),
            max_steps=None,
            state_space=Box(-1.0, 1.0, (168,), np.float32),
        )
        arrays = (np.zeros((8, 80), np.float32), np.ones(8, bool), np.ones((8, 14), bool), np.zeros(168, np.float32))
        self.one = Step(Obs(*arrays), np.zeros(8, np.float32), False, False)

    def reset(self, seed: int | None = None) -> Obs:  # noqa: ARG002
        return self.one.obs

    def step(self, action: Any) -> Step:  # noqa: ARG002
        return self.one

    def render(self) -> None:
        return None

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> Obs:  # noqa: ARG002
        return self.one.obs

    def close(self) -> None:
        pass
