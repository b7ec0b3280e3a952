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


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cross products (..., 3). For the few vectors of a small batch, np.cross takes three times as long."""
    result = np.empty(np.broadcast_shapes(first.shape, second.shape))
    (a, b, c), (x, y, z) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    result[..., 0], result[..., 1], result[..., 2] = b * z - c * y, c * x - a * z, a * y - b * x
    return result


def rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) turned by quaternions (..., 4)."""
    scalar, axis = quaternion[..., :1], quaternion[..., 1:]
    twice = 2.0 * cross(axis, vector)
    return vector + scalar * twice + cross(axis, twice)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the products (..., 4) of quaternions."""
    scalar = left[..., :1] * right[..., :1] - (left[..., 1:] * right[..., 1:]).sum(-1, keepdims=True)
    axis = left[..., :1] * right[..., 1:] + right[..., :1] * left[..., 1:] + cross(left[..., 1:], right[..., 1:])
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
    """Controls and fingertips of one hand. `center` and `half` (20 or 26,): middle and half of the control ranges."""

    def __init__(self, model: Any, side: str) -> None:
        self.index = HandIndex(model, side)
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


class HandsScene:
    """Features of a model of two hands; see `marl.envs.mamujoco.obs_columns.Scene`."""

    def __init__(self, model: Any, rules: Any) -> None:
        self.rules = rules
        self.hands = [HandFeatures(model, side) for side in SIDES]
        parts = [hand.index for hand in self.hands]
        self._qpos, self._dofs = (np.stack([getattr(part, name) for part in parts]) for name in ("qpos", "dofs"))
        self._tips = np.stack([part.fingertips for part in parts])
        self._bases = np.array([part.base for part in parts])
        self._controls = np.stack([hand.control_indices for hand in self.hands])
        self._roots = model.body_rootid[self._tips]
        low, high = np.stack([part.low for part in parts]), np.stack([part.high for part in parts])
        self._middle, self._half_range = (low + high) / 2, (high - low) / 2
        self._center, self._half = (np.stack([getattr(h, name) for h in self.hands]) for name in ("center", "half"))
        self._upright = conjugate(model.body_quat[self._bases])

    def sources(self, data: Any) -> Features:
        """Return flat views of the arrays of one MjData, by name."""
        names = ("qpos", "qvel", "ctrl", "qfrc_actuator", *_STRUCTURED)
        return {name: getattr(data, name).reshape(-1) for name in names}

    def derived(self, features: Features) -> list[np.ndarray]:
        """Return the observations of the right hand and the left hand, in one block, and of the objects."""
        return [self.observe_hands(features).reshape(len(features["qpos"]), -1), self.rules.observe(features)]

    def observe_hands(self, features: Features) -> np.ndarray:
        """Return the observations of both hands, (E, 2, size).

        Joint positions (24) scaled to [-1, 1], velocities (24) x 0.2 and actuator torques (24) x 10; of each fingertip
        position, quaternion, velocity and angular velocity (5 x 13); force and torque by which each finger holds its
        tip (5 x 6) in the world frame; of a free base position (3) and turn from its start as roll, pitch and yaw (3);
        last actions (20, or 26 with a free base).
        """
        num_envs = len(features["qpos"])
        position, quaternion = shaped(features, "xpos")[:, self._tips], shaped(features, "xquat")[:, self._tips]
        motion, wrench = shaped(features, "cvel")[:, self._tips], shaped(features, "cfrc_int")[:, self._tips]
        # Spatial vectors refer to the center of mass of the hand: rotation first, then translation.
        arm = position - shaped(features, "subtree_com")[:, self._roots]
        spin, force = motion[..., :3], wrench[..., 3:]
        velocity = motion[..., 3:] + cross(spin, arm)
        torque = wrench[..., :3] - cross(arm, force)
        blocks = [
            (features["qpos"][:, self._qpos] - self._middle) / self._half_range,
            features["qvel"][:, self._dofs] * VELOCITY_SCALE,
            features["qfrc_actuator"][:, self._dofs] * FORCE_SCALE,
            np.concatenate((position, quaternion, velocity, spin), axis=-1).reshape(num_envs, 2, -1),
            np.concatenate((force, torque), axis=-1).reshape(num_envs, 2, -1),
        ]
        if len(self.hands[0].index.pushes):
            turn = multiply(shaped(features, "xquat")[:, self._bases], self._upright)
            blocks += [shaped(features, "xpos")[:, self._bases], euler(turn)]
        blocks.append((features["ctrl"][:, self._controls] - self._center) / self._half)
        return np.concatenate(blocks, axis=2)
