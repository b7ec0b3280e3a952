"""Objects, rewards and ends of the tasks: interface, and throwing and turning objects.

The formulas are those of Bi-DexHands (Chen et al. 2022, "Towards Human-Level Bimanual Dexterous Manipulation with
Reinforcement Learning"). docs/environments/hands.md lists what differs.
"""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from marl.envs.hands.features import Features, FreeBody, HandFeatures, conjugate, multiply, rotation_distance, shaped
from marl.envs.hands.hand_model import about

Vector = tuple[float, float, float]

DENSITY = 500.0
"""Density of the objects in kg/m^3."""
OBJECTS: dict[str, tuple[Any, list[float]]] = {
    "egg": (mujoco.mjtGeom.mjGEOM_ELLIPSOID, [0.03, 0.03, 0.04]),
    "block": (mujoco.mjtGeom.mjGEOM_BOX, [0.025, 0.025, 0.025]),
    "pen": (mujoco.mjtGeom.mjGEOM_CAPSULE, [0.008, 0.1, 0.0]),
}
"""Shape and size in meters of the objects, as in gymnasium-robotics' hand tasks."""
POSITION_NOISE = 0.01
"""Largest shift in meters of an object's start along each axis."""


@dataclass(frozen=True)
class Outcome:
    """Result of a step.

    `reward` (E,). `terminated` (E,) bool. `reached` (E,) bool: the goal. `info`: (E,) arrays by name.
    `renew` (E, goals) bool: goals to draw anew.
    """

    reward: np.ndarray
    terminated: np.ndarray
    reached: np.ndarray
    info: dict[str, np.ndarray]
    renew: np.ndarray | None = None


class Rules:
    """Objects of a task, their starts, observation, reward and ends."""

    joint_noise = 0.0
    """Spread of the joints at the start, as a part of their ranges."""

    def add(self, spec: Any) -> None:
        """Add the objects to an MjSpec."""
        raise NotImplementedError

    def bind(self, model: Any) -> None:
        """Look up the indices of the objects in an MjModel."""
        raise NotImplementedError

    def start(self, data: Any, generator: np.random.Generator) -> None:
        """Place the objects at the start of an episode."""
        raise NotImplementedError

    def renew_goal(self, data: Any, goal: int, generator: np.random.Generator) -> None:
        """Draw a goal anew."""
        raise NotImplementedError

    def observe(self, features: Features) -> np.ndarray:
        """Return the part of the observation that both hands share, (E, size)."""
        raise NotImplementedError

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step after `action` (E, actuators) in [-1, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Flight:
    """Start of an object and its goal, in meters."""

    start: Vector
    goal: Vector


def random_turn(generator: np.random.Generator) -> np.ndarray:
    """Return a turn about y and then about x, each by an angle drawn from [-pi, pi]: a quaternion (4,)."""
    first, second = generator.uniform(-np.pi, np.pi, 2)
    return multiply(about("x", first), about("y", second))


class ObjectRules(Rules):
    """Free objects with goal poses."""

    joint_noise = 0.2

    def __init__(self, flights: tuple[Flight, ...], shape: str) -> None:
        self.flights, self.shape = flights, shape

    def add(self, spec: Any) -> None:
        """Add the objects, and their goals as bodies without contact."""
        kind, size = OBJECTS[self.shape]
        for number, flight in enumerate(self.flights):
            color = [0.46, 0.7, 0.9] if number == 0 else [0.9, 0.5, 0.6]
            body = spec.worldbody.add_body(name=f"object{number}", pos=flight.start)
            body.add_freejoint(name=f"object{number}")
            body.add_geom(type=kind, size=size, density=DENSITY, condim=4, rgba=[*color, 1.0])
            goal = spec.worldbody.add_body(name=f"goal{number}", pos=flight.goal, mocap=True)
            goal.add_geom(type=kind, size=size, contype=0, conaffinity=0, rgba=[*color, 0.35])

    def bind(self, model: Any) -> None:
        """Look up the objects."""
        self.bodies = [FreeBody(model, f"object{number}") for number in range(len(self.flights))]

    def start(self, data: Any, generator: np.random.Generator) -> None:
        """Shift all objects alike and turn them alike. Draw one turn for all goals."""
        shift, turn = generator.uniform(-POSITION_NOISE, POSITION_NOISE, 3), random_turn(generator)
        goal = random_turn(generator)
        for number, (flight, body) in enumerate(zip(self.flights, self.bodies, strict=True)):
            data.qpos[body.qpos] = np.concatenate((np.array(flight.start) + shift, turn))
            data.mocap_pos[number], data.mocap_quat[number] = flight.goal, goal

    def renew_goal(self, data: Any, goal: int, generator: np.random.Generator) -> None:
        """Draw the orientation of a goal anew."""
        data.mocap_quat[goal] = random_turn(generator)

    def observe(self, features: Features) -> np.ndarray:
        """Return of each object its pose and velocities (13), the pose of its goal (7) and the turn to it (4)."""
        blocks = []
        for number, body in enumerate(self.bodies):
            position, turn = self._goal(features, number)
            difference = multiply(body.pose(features)[:, 3:], conjugate(turn))
            blocks += [body.observe(features), position, turn, difference]
        return np.concatenate(blocks, axis=1)

    def _goal(self, features: Features, number: int) -> tuple[np.ndarray, np.ndarray]:
        return shaped(features, "mocap_pos")[:, number], shaped(features, "mocap_quat")[:, number]

    def distances(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """Return the distances in meters and the angles in rad of the objects from their goals, each (E, objects)."""
        lengths, angles = [], []
        for number, body in enumerate(self.bodies):
            pose, (position, turn) = body.pose(features), self._goal(features, number)
            lengths.append(np.linalg.norm(pose[:, :3] - position, axis=1))
            angles.append(rotation_distance(pose[:, 3:], turn))
        return np.stack(lengths, axis=1), np.stack(angles, axis=1)

    def fallen(self, features: Features, height: float) -> np.ndarray:
        """Return (E,) bool: an object is at or below `height` in meters."""
        return np.min([body.pose(features)[:, 2] for body in self.bodies], axis=0) <= height


class Throw(ObjectRules):
    """Throw each object from one hand to the other.

    Reward: sum over the objects of exp(-0.2 (scale d + angle)). The goal is reached when the distances d are below
    0.03 m on average. Ends when an object is at or below `height`, or, if `drift` is given, when a base is that far
    from its start.
    """

    def __init__(
        self, flights: tuple[Flight, ...], shape: str, scale: float = 20.0, height: float = 0.2, drift: float = np.inf
    ) -> None:
        super().__init__(flights, shape)
        self.scale, self.height, self.drift = scale, height, drift

    def bind(self, model: Any) -> None:
        """Look up the objects and the starts of the bases."""
        super().bind(model)
        self._bases = [model.body(f"{side}/robot0:hand mount") for side in ("right", "left")]
        self._starts = np.stack([base.pos for base in self._bases])
        self._base_indices = [base.id for base in self._bases]

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step."""
        del hands, action
        length, angle = self.distances(features)
        drift = np.linalg.norm(shaped(features, "xpos")[:, self._base_indices] - self._starts, axis=2)
        ended = self.fallen(features, self.height) | (drift.max(axis=1) >= self.drift)
        info = {"distance": length.mean(axis=1), "angle": angle.mean(axis=1)}
        reward = np.exp(-0.2 * (self.scale * length + angle)).sum(axis=1)
        return Outcome(reward, ended, length.sum(axis=1) < 0.03 * len(self.bodies), info)


class Turn(ObjectRules):
    """Turn an object in each hand to the orientation of its goal.

    Reward: sum over the objects of -10 d + 1 / (angle + 0.1), and 250 for each one within 0.1 rad, less 0.0002 times
    the square of the action. A goal that was reached is drawn anew. Ends when an object is at or below 0.2 m.
    """

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step."""
        del hands
        length, angle = self.distances(features)
        reached = angle < 0.1
        reward = (-10.0 * length + 1.0 / (angle + 0.1) + 250.0 * reached).sum(axis=1)
        reward -= 0.0002 * np.square(action).sum(axis=1)
        info = {"distance": length.mean(axis=1), "angle": angle.mean(axis=1)}
        return Outcome(reward, self.fallen(features, 0.2), angle.min(axis=1) < 0.1, info, reached)
