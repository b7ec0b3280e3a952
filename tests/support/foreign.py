"""Small environments of the shapes that other people's packages have; importing this module registers them."""

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo.utils.env import AECEnv, ParallelEnv

from marl.registry import register_env


class Foraging(gymnasium.Env):
    """A team in Tuple spaces of unequal widths, with list rewards and an own limit, as LBF and RWARE have it.

    `form`: "tuple", or "dict" for Dict spaces by agent. `ends` is what `terminated` is at the second step.
    """

    def __init__(self, form="tuple", ends=False, reward=None, info=None):
        self._form, self._ends, self._reward, self._info = form, ends, reward, info or {}
        boxes = spaces.Box(0, 9, (2,), np.float32), spaces.Box(0, 9, (2, 2), np.float32)
        numbers = spaces.Discrete(3), spaces.Discrete(2, start=5)
        self.observation_space = self._joined(boxes, spaces.Tuple, spaces.Dict)
        self.action_space = self._joined(numbers, spaces.Tuple, spaces.Dict)
        self._max_episode_steps = 4
        self.received = []

    def _joined(self, pair, sequence=tuple, mapping=dict):
        return sequence(pair) if self._form == "tuple" else mapping({"ant": pair[0], "bee": pair[1]})

    def _observe(self):
        return self._joined((np.full(2, self.time, np.float32), np.full((2, 2), self.time + 1, np.float32)))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.time = 0
        return self._observe(), dict(self._info)

    def step(self, action):
        self.received.append(action)
        self.time += 1
        reward = [self.time, -0.5] if self._form == "tuple" else {"ant": self.time, "bee": -0.5}
        ended = self._ends if self.time == 2 else False
        reward = reward if self._reward is None else self._reward
        return self._observe(), reward, ended, self.time == self._max_episode_steps, dict(self._info)


gymnasium.register("Foraging-v0", entry_point=Foraging)


class MissionSpace(spaces.Space):
    """A space of a kind that Gymnasium does not know, such as MiniGrid's missions."""

    def contains(self, x):
        return isinstance(x, str)


class Grid(gymnasium.Env):
    """An image, a direction and a mission, and a mask beside them where `mask` is "observation", "info" or "reset"."""

    def __init__(self, mask=""):
        self._mask = mask
        parts = {"image": spaces.Box(0, 255, (2, 2, 3), np.uint8), "direction": spaces.Discrete(4)}
        self.observation_space = spaces.Dict(parts | {"mission": MissionSpace()})
        if mask:
            parts = {"image": spaces.Box(0, 255, (2, 2), np.uint8)}
            masks = {"action_mask": spaces.MultiBinary(3)} if mask == "observation" else {}
            self.observation_space = spaces.Dict(parts | masks)
        self.action_space = spaces.Discrete(3)

    def _observe(self):
        info = {"action_mask": np.array([0, 1, self.time % 2], np.int8) * (self.time < 3)}
        if self._mask == "observation":
            return {"image": np.full((2, 2), self.time, np.uint8), **info}, {}
        if self._mask:
            return {
                "image": np.full((2, 2), self.time, np.uint8)
            }, info if self._mask == "info" or not self.time else {}
        return {"image": np.full((2, 2, 3), self.time, np.uint8), "direction": 3, "mission": "go to the door"}, {}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.time = 0
        return self._observe()

    def step(self, action):  # noqa: ARG002
        self.time += 1
        observation, info = self._observe()
        return observation, 1.0, self.time == 3, False, info


class Walkers(ParallelEnv):
    """Two agents whose episode ends at once, after which there is no state, as in multiwalker_v9."""

    render_mode = "human"

    def __init__(self, breaks_at=3):
        self.metadata = {"name": "walkers"}
        self.possible_agents = ["walker_0", "walker_1"]
        self.state_space = spaces.Box(0, 9, (3,), np.float32)
        self._breaks_at = breaks_at

    def observation_space(self, agent):  # noqa: ARG002
        return spaces.Box(0, 9, (1,), np.float32)

    def action_space(self, agent):  # noqa: ARG002
        return spaces.Discrete(2)

    def _observe(self):
        return {agent: np.full(1, self.time, np.float32) for agent in self.possible_agents}

    def reset(self, seed=None, options=None):  # noqa: ARG002
        self.time, self.agents = 0, self.possible_agents[:]
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.time += 1
        ended = dict.fromkeys(actions, self.time == 3)
        if self.time == 3:
            self.agents = []
        return self._observe(), dict.fromkeys(actions, 1.0), ended, dict.fromkeys(actions, False), {}

    def state(self):
        if self.time >= self._breaks_at:
            raise AttributeError("'NoneType' object has no attribute 'position'")
        return np.full(3, self.time, np.float32)

    def render(self):
        raise OSError("no window can be opened")


def cartpole(**kwargs):
    return gymnasium.make("CartPole-v1", **kwargs)


def team():
    return Foraging()


def walkers(breaks_at=3):
    return Walkers(breaks_at)


def turns() -> AECEnv:
    from mpe2 import simple_spread_v3

    return simple_spread_v3.env(max_cycles=4)


def nothing():
    """A factory that forgets to return."""


def batch():
    return gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")


@register_env("foreign")
def make(task):
    return {"cartpole": cartpole, "walkers": walkers}[task]()
