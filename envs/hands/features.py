"""Features of two hands and of their objects, for E environments at once."""

from typing import Any

import numpy as np

from marl.envs.hands.hand_model import SIDES, HandIndex

Features = dict[str, np.ndarray]
"""Arrays of MjData by name, each flat: (E, size) float64."""

VELOCITY_SCALE = 0.2
FORCE_SCALE = 10.0
_STRUCTURED = {"xpos": 3, "xquat": 4, "cvel": 6, "cfrc_int": 6, "subtree_com": 3, "mocap_pos": 3, "mocap_quat": 4}


def shaped(features: Features, name: str) -> np.ndarray:
    """Return an array of bodies as (E, bodies, width)."""
    flat = features[name]
    return flat.reshape(len(flat), -1, _STRUCTURED[name])


def rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) turned by quaternions (..., 4)."""
    scalar, axis = quaternion[..., :1], quaternion[..., 1:]
    twice = 2.0 * np.cross(axis, vector)
    return vector + scalar * twice + np.cross(axis, twice)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the products (..., 4) of quaternions."""
    scalar = left[..., :1] * right[..., :1] - (left[..., 1:] * right[..., 1:]).sum(-1, keepdims=True)
    axis = left[..., :1] * right[..., 1:] + right[..., :1] * left[..., 1:] + np.cross(left[..., 1:], right[..., 1:])
    return np.concatenate((scalar, axis), axis=-1)


def conjugate(quaternion: np.ndarray) -> np.ndarray:
    """Return the inverse turns (..., 4)."""
    return quaternion * np.array([1.0, -1.0, -1.0, -1.0])


def euler(quaternion: np.ndarray) -> np.ndarray:
    """Return roll, pitch and yaw (..., 3) in rad: turns about the fixed axes x, y and z, in this order."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1.0, 1.0))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.stack((roll, pitch, yaw), axis=-1)


def rotation_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the angle (...) in rad between two orientations (..., 4)."""
    difference = multiply(first, conjugate(second))
    return 2.0 * np.arcsin(np.minimum(np.linalg.norm(difference[..., 1:], axis=-1), 1.0))


class FreeBody:
    """Indices of a body with a free joint: `body`, `qpos` (7,) and `dofs` (6,)."""

    def __init__(self, model: Any, name: str) -> None:
        self.body = model.body(name).id
        joint = model.body_jntadr[self.body]
        self.qpos = np.arange(7) + model.jnt_qposadr[joint]
        self.dofs = np.arange(6) + model.jnt_dofadr[joint]

    def pose(self, features: Features) -> np.ndarray:
        """Return position and quaternion w, x, y, z, (E, 7)."""
        return features["qpos"][:, self.qpos]

    def observe(self, features: Features) -> np.ndarray:
        """Return pose (7), velocity (3) in m/s and angular velocity (3) x 0.2 in the world frame: (E, 13)."""
        pose, velocity = self.pose(features), features["qvel"][:, self.dofs]
        spin = rotate(pose[:, 3:], velocity[:, 3:])  # MuJoCo keeps it in the frame of the body
        return np.concatenate((pose, velocity[:, :3], spin * VELOCITY_SCALE), axis=1)


class HandFeatures:
    """Observation of one hand, (E, 193), and of its free base and the pushes on it, (E, 206)."""

    def __init__(self, model: Any, side: str, start_rotation: np.ndarray) -> None:
        self.index = HandIndex(model, side)
        self._upright = conjugate(start_rotation)
        self._root = model.body_rootid[self.index.base]
        self._controls = np.concatenate((self.index.pushes, self.index.positions)).astype(np.int64)
        low, high = model.actuator_ctrlrange[self._controls].T
        self.center, self.half = (low + high) / 2, (high - low) / 2

    def controls(self, action: np.ndarray) -> np.ndarray:
        """Return the controls of actions (E, 20 or 26) in [-1, 1]: pushes on the base, then joint positions."""
        return self.center + np.clip(action, -1.0, 1.0) * self.half

    @property
    def control_indices(self) -> np.ndarray:
        """Actuators of the hand in the order of its actions: pushes on a free base (6), then positions (20)."""
        return self._controls

    def fingertips(self, features: Features) -> np.ndarray:
        """Return the positions of the fingertips, (E, 5, 3) in meters."""
        return shaped(features, "xpos")[:, self.index.fingertips]

    def observe(self, features: Features) -> np.ndarray:
        """Return the observation of the hand.

        Joint positions (24) scaled to [-1, 1], velocities (24) x 0.2 and actuator torques (24) x 10; of each fingertip
        position, quaternion, velocity and angular velocity (5 x 13); force and torque that each fingertip exchanges
        with its finger (5 x 6) in the world frame; of a free base position (3) and turn from its start as roll, pitch
        and yaw (3); last actions (20, or 26 with a free base).
        """
        index = self.index
        middle, half = (index.low + index.high) / 2, (index.high - index.low) / 2
        tips, center = index.fingertips, shaped(features, "subtree_com")[:, self._root, None]
        position, quaternion = shaped(features, "xpos")[:, tips], shaped(features, "xquat")[:, tips]
        motion, wrench = shaped(features, "cvel")[:, tips], shaped(features, "cfrc_int")[:, tips]
        spin, arm = motion[..., :3], position - center  # spatial vectors refer to the hand's center of mass
        velocity = motion[..., 3:] + np.cross(spin, arm)
        force = wrench[..., 3:]
        torque = wrench[..., :3] - np.cross(arm, force)
        blocks = [
            (features["qpos"][:, index.qpos] - middle) / half,
            features["qvel"][:, index.dofs] * VELOCITY_SCALE,
            features["qfrc_actuator"][:, index.dofs] * FORCE_SCALE,
            np.concatenate((position, quaternion, velocity, spin), axis=-1),
            np.concatenate((force, torque), axis=-1),
        ]
        if len(index.pushes):
            turn = multiply(shaped(features, "xquat")[:, index.base], self._upright)
            blocks += [shaped(features, "xpos")[:, index.base], euler(turn)]
        blocks.append((features["ctrl"][:, self._controls] - self.center) / self.half)
        return np.concatenate([block.reshape(len(block), -1) for block in blocks], axis=1)


class HandsScene:
    """Features of a model of two hands; see `marl.envs.mamujoco.obs_columns.Scene`."""

    def __init__(self, model: Any, rules: Any) -> None:
        self.rules = rules
        starts = [model.body(f"{side}/robot0:hand mount").quat for side in SIDES]
        self.hands = [HandFeatures(model, side, start) for side, start in zip(SIDES, starts, strict=True)]

    def sources(self, data: Any) -> Features:
        """Return flat views of the arrays of one MjData, by name."""
        names = ("qpos", "qvel", "ctrl", "qfrc_actuator", *_STRUCTURED)
        return {name: getattr(data, name).reshape(-1) for name in names}

    def derived(self, features: Features) -> list[np.ndarray]:
        """Return the observations of the right hand, the left hand and the objects, each (E, size)."""
        return [*(hand.observe(features) for hand in self.hands), self.rules.observe(features)]
