"""Tasks in which each hand reaches for a handle: double doors, a pen with a cap, and a cup."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

from typing import Any

import mujoco
import numpy as np

from marl.envs.hands.features import (
    VELOCITY_SCALE,
    Features,
    FreeBody,
    HandFeatures,
    conjugate,
    multiply,
    rotation_distance,
    shaped,
)
from marl.envs.hands.hand_model import SIDES, about
from marl.envs.hands.rules import DENSITY, Outcome, Rules

HINGE = 0.42
"""Distance in meters of a door's hinge from the middle of the doors: the width of a leaf."""
HANDLE = 0.12
"""Distance in meters of a closed door's handle from the middle."""
OPEN = 1.5
"""Angle in rad of an open door."""
STIFF = [0.005, 1.0]
"""Time constant in s and damping ratio of stiff contacts and limits."""
HARD: dict[str, Any] = {"priority": 1, "solref": STIFF}
"""Contacts of doors, tables, pen and cup: hands that are pushed by hundreds of newtons do not pass through."""


class HandleRules(Rules):
    """A handle for each hand: bodies `right_handle` and `left_handle`."""

    def bind(self, model: Any) -> None:
        """Look up the handles."""
        self._handles = [model.body(f"{side}_handle").id for side in SIDES]

    def handles(self, features: Features) -> np.ndarray:
        """Return the positions of the right and the left handle, (E, 2, 3) in meters."""
        return shaped(features, "xpos")[:, self._handles]

    def reach(self, features: Features, hands: list[HandFeatures]) -> np.ndarray:
        """Return the sum of the distances of a hand's fingertips from its handle, (E, 2) in meters."""
        handles = self.handles(features)
        tips = np.stack([hand.fingertips(features) for hand in hands], axis=1)  # (E, 2, 5, 3)
        return np.linalg.norm(tips - handles[:, :, None], axis=-1).sum(axis=-1)


class Doors(HandleRules):
    """Open or close a double door.

    `inward` doors swing towards the hands, so that opening one means pulling. With s the sum of the distances of a
    hand's five fingertips from its handle and g the gap |y_right - y_left| between the handles, the reward of opening
    is 2 - s_right - s_left + 2 g, and of closing 6 - s_right - s_left + 1 - 2 g. The part of g counts while both s are
    below 0.5. Ends when an s reaches 1.5, or 3 in closing.
    """

    def __init__(self, inward: bool, closing: bool) -> None:
        self.inward, self.closing = inward, closing

    def add(self, spec: Any) -> None:
        """Add two leaves in the plane x = 0, each with a vertical bar as handle on the side of the hands."""
        box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
        wood, metal = [0.6, 0.45, 0.3, 1.0], [0.75, 0.75, 0.8, 1.0]
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            leaf = spec.worldbody.add_body(name=f"{side}_leaf", pos=[0.0, sign * HINGE, 0.6])
            leaf.add_joint(
                name=f"{side}_leaf",
                axis=[0.0, 0.0, sign if self.inward else -sign],
                range=[0.0, OPEN + 0.07],
                limited=True,
                damping=np.array([1.0, 0.0, 0.0]),
                frictionloss=0.1,
                solref_limit=STIFF,
            )
            inner = -sign * (HINGE - 0.002) / 2
            solid: dict[str, Any] = {"contype": 0, "conaffinity": 1, "density": DENSITY, **HARD}
            leaf.add_geom(type=box, size=[0.02, abs(inner), 0.3], pos=[0.0, inner, 0.0], rgba=wood, **solid)
            handle = leaf.add_body(name=f"{side}_handle", pos=[0.07, -sign * (HINGE - HANDLE), 0.0])
            handle.add_geom(type=capsule, size=[0.01, 0.08, 0.0], rgba=metal, **solid)
            for height in (-0.08, 0.08):
                ends = [0.0, 0.0, height, -0.05, 0.0, height]
                handle.add_geom(type=capsule, size=[0.008, 0.0, 0.0], fromto=ends, rgba=metal, **solid)

    def bind(self, model: Any) -> None:
        """Look up handles and leaves."""
        super().bind(model)
        joints = [model.joint(f"{side}_leaf").id for side in SIDES]
        self._qpos, self._dofs = model.jnt_qposadr[joints], model.jnt_dofadr[joints]

    def start(self, data: Any, generator: np.random.Generator) -> None:
        """Close the doors, or open them if closing is the task."""
        del generator
        data.qpos[self._qpos] = OPEN if self.closing else 0.0

    def observe(self, features: Features) -> np.ndarray:
        """Return the positions of the handles (6), the angles of the leaves (2) and their velocities x 0.2 (2)."""
        handles = self.handles(features).reshape(-1, 6)
        angles, velocities = features["qpos"][:, self._qpos], features["qvel"][:, self._dofs]
        return np.concatenate((handles, angles, velocities * VELOCITY_SCALE), axis=1)

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step. The goal: handles over 0.5 m apart, or under 0.3 m in closing."""
        del action
        reach, handles = self.reach(features, hands), self.handles(features)
        gap = np.abs(handles[:, 0, 1] - handles[:, 1, 1])
        near = reach.max(axis=1) < 0.5
        if self.closing:
            reward = 6.0 - reach.sum(axis=1) + near * (1.0 - 2.0 * gap)
            return Outcome(reward, reach.max(axis=1) >= 3.0, gap < 0.3, {"gap": gap})
        reward = 2.0 - reach.sum(axis=1) + near * 2.0 * gap
        return Outcome(reward, reach.max(axis=1) >= 1.5, gap > 0.5, {"gap": gap})


class Pen(HandleRules):
    """Pull the cap off a pen that lies on a table.

    With s the sum of the distances of a hand's five fingertips from its half of the pen and d the distance between the
    halves, the reward is exp(-10 s_right) + exp(-10 s_left) + 5 d - 0.8. The part of d counts while both s are below
    0.75. The goal is d > 0.3 m. Ends when an s reaches 1.5.
    """

    def add(self, spec: Any) -> None:
        """Add the table, and the pen along y: its right half is the body, its left half the cap."""
        box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
        table: dict[str, Any] = {"contype": 0, "conaffinity": 1, "rgba": [0.5, 0.4, 0.3, 1.0], **HARD}
        spec.worldbody.add_geom(name="table", type=box, size=[0.25, 0.5, 0.3], pos=[0.0, 0.0, 0.3], **table)
        pen = spec.worldbody.add_body(name="pen", pos=[0.0, 0.0, 0.612])
        pen.add_freejoint(name="pen")
        part: dict[str, Any] = {"type": capsule, "size": [0.01, 0.0, 0.0], "density": DENSITY, "condim": 4, **HARD}
        pen.add_geom(fromto=[0.0, 0.01, 0.0, 0.0, 0.15, 0.0], rgba=[0.2, 0.3, 0.8, 1.0], **part)
        pen.add_body(name="right_handle", pos=[0.0, 0.08, 0.0])
        cap = pen.add_body(name="cap")
        slide = mujoco.mjtJoint.mjJNT_SLIDE
        damping = np.array([1.0, 0.0, 0.0])
        cap.add_joint(
            name="cap", type=slide, axis=[0, -1, 0], range=[0.0, 0.4], limited=True, damping=damping, frictionloss=0.2
        )
        cap.add_geom(fromto=[0.0, -0.01, 0.0, 0.0, -0.15, 0.0], rgba=[0.8, 0.2, 0.2, 1.0], **part)
        cap.add_body(name="left_handle", pos=[0.0, -0.08, 0.0])

    def bind(self, model: Any) -> None:
        """Look up the pen, its cap and its halves."""
        super().bind(model)
        self._pen = FreeBody(model, "pen")
        cap = model.joint("cap").id
        self._cap, self._cap_dof = model.jnt_qposadr[cap], model.jnt_dofadr[cap]

    def start(self, data: Any, generator: np.random.Generator) -> None:
        """Leave the pen where the model has it."""

    def observe(self, features: Features) -> np.ndarray:
        """Return pose and velocities of the pen (13), its halves (6), and position and velocity x 0.2 of its cap."""
        cap = features["qpos"][:, self._cap], features["qvel"][:, self._cap_dof] * VELOCITY_SCALE
        handles = self.handles(features).reshape(-1, 6)
        return np.concatenate((self._pen.observe(features), handles, np.stack(cap, axis=1)), axis=1)

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step."""
        del action
        reach, handles = self.reach(features, hands), self.handles(features)
        gap = np.linalg.norm(handles[:, 0] - handles[:, 1], axis=1)
        near = reach.max(axis=1) < 0.75
        reward = np.exp(-10.0 * reach).sum(axis=1) + near * (5.0 * gap - 0.8)
        return Outcome(reward, reach.max(axis=1) >= 1.5, gap > 0.3, {"gap": gap})


class Cup(HandleRules):
    """Turn a cup with two handles by a quarter about the vertical axis.

    With s the sum of the distances of a hand's five fingertips from its handle and a the angle from the goal, the
    reward is -s_right - s_left + 1 / (a + 0.1) - 1. The part of a counts while both s are below 0.4. The goal is
    a < pi / 4. Ends when the cup is at or below 0.3 m.
    """

    def add(self, spec: Any) -> None:
        """Add the table, and the cup with a vertical bar on either side."""
        box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
        table: dict[str, Any] = {"contype": 0, "conaffinity": 1, "rgba": [0.5, 0.4, 0.3, 1.0], **HARD}
        spec.worldbody.add_geom(name="table", type=box, size=[0.15, 0.15, 0.3], pos=[0.0, 0.0, 0.3], **table)
        cup = spec.worldbody.add_body(name="cup", pos=[0.0, 0.0, 0.701])
        cup.add_freejoint(name="cup")
        color = [0.9, 0.9, 0.95, 1.0]
        cup.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.05, 0.1, 0.0], mass=0.25, condim=4, rgba=color, **HARD
        )
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            handle = cup.add_body(name=f"{side}_handle", pos=[0.0, sign * 0.1, 0.03])
            bar: dict[str, Any] = {"type": capsule, "mass": 0.01, "condim": 4, "rgba": color, **HARD}
            handle.add_geom(size=[0.01, 0.05, 0.0], **bar)
            for height in (-0.05, 0.05):
                handle.add_geom(size=[0.008, 0.0, 0.0], fromto=[0, 0, height, 0, -sign * 0.05, height], **bar)

    def bind(self, model: Any) -> None:
        """Look up the cup and its handles."""
        super().bind(model)
        self._cup = FreeBody(model, "cup")
        self._goal = about("z", np.pi / 2)

    def start(self, data: Any, generator: np.random.Generator) -> None:
        """Leave the cup where the model has it."""

    def observe(self, features: Features) -> np.ndarray:
        """Return pose and velocities of the cup (13), the turn from its goal (4) and the handles (6)."""
        turn = multiply(self._cup.pose(features)[:, 3:], conjugate(self._goal))
        return np.concatenate((self._cup.observe(features), turn, self.handles(features).reshape(-1, 6)), axis=1)

    def outcome(self, features: Features, hands: list[HandFeatures], action: np.ndarray) -> Outcome:
        """Return the result of a step."""
        del action
        reach, pose = self.reach(features, hands), self._cup.pose(features)
        angle = rotation_distance(pose[:, 3:], self._goal)
        near = reach.max(axis=1) < 0.4
        reward = -reach.sum(axis=1) + near * (1.0 / (angle + 0.1) - 1.0)
        return Outcome(reward, pose[:, 2] <= 0.3, angle < np.pi / 4, {"angle": angle})
