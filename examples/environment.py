"""An environment of one's own: two agents on a line meet, or run out of time.

marl check-env examples/environment.py:Meeting
marl train examples/environment.py:Meeting --agent mat --steps 50000
marl train examples/environment.py:Meeting --kwargs '{cells: 12}'
"""

import numpy as np
from gymnasium import spaces

from marl.types import EnvSpec, Obs, Step

MAX_STEPS = 20


class Meeting:
    """Each agent sees both positions and moves left, stays, or moves right. Meeting pays 1 and ends the episode."""

    def __init__(self, cells=8):
        self.cells = cells
        self.spec = EnvSpec(
            name="meeting",
            agents=("a", "b"),
            observation_space=spaces.Box(0.0, 1.0, (2,), np.float32),
            action_space=spaces.Discrete(3),
            max_steps=MAX_STEPS,
            team_reward=True,
        )
        self.rng, self.time = np.random.default_rng(), None

    def reset(self, seed=None):
        """Begin an episode with the agents in different cells."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.position, self.time = self.rng.permutation(self.cells)[:2], 0
        return self.observe()

    def step(self, action):
        """Move both agents; `action` (2,) is 0 left, 1 stay, 2 right."""
        if self.time is None:
            raise RuntimeError("step without a running episode; call reset first")
        self.position = np.clip(self.position + action - 1, 0, self.cells - 1)
        self.time += 1
        met, late = bool(self.position[0] == self.position[1]), self.time == MAX_STEPS
        if met or late:
            self.time = None
        reward = np.full(2, met, dtype=np.float32)
        return Step(self.observe(), reward, terminated=met, truncated=late and not met, info={"success": float(met)})

    def observe(self):
        """Return both positions as fractions of the line, each agent's own first."""
        own = (self.position / (self.cells - 1)).astype(np.float32)
        return Obs(
            agents=np.stack([own, own[::-1]]),
            alive=np.ones(2, dtype=bool),
            action_mask=np.ones((2, 3), dtype=bool),
        )

    def render(self):
        """Return the line as text."""
        return "".join("*" if cell in self.position else "." for cell in range(self.cells))

    def get_state(self):
        """Return what the future depends on, so that a resumed run continues exactly."""
        return {
            "position": self.position.copy(),
            "time": self.time,
            "rng": self.rng.bit_generator.state,
        }

    def set_state(self, state):
        """Continue from `get_state`."""
        self.position, self.time = state["position"].copy(), state["time"]
        self.rng.bit_generator.state = state["rng"]
        return self.observe()

    def close(self):
        """Do nothing: nothing is open."""
