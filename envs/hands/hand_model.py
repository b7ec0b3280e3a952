"""Shadow hands: the right hand of gymnasium-robotics, its mirror image, and models of two hands.

The asset is OpenAI's Shadow Dexterous Hand (Plappert et al. 2018, "Multi-Goal Reinforcement Learning").
"""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

TIMESTEP = 1 / 480
"""Seconds of a step of the physics."""
SUBSTEPS = 8
"""Steps of the physics in an environment step, which makes 60 environment steps a second."""
BASE_DAMPING = 100.0
"""Rate in 1/s at which the velocity of a free base decays, as in Bi-DexHands."""
SIDES = ("right", "left")
FINGERS = ("ff", "mf", "rf", "lf", "th")
"""First, middle, ring and little finger, and thumb."""
# Turn of the hand's mount that makes it reach along -y with its palm up: a quarter about x after a half about z.
_MOUNT = np.array([0.0, 0.0, -np.sqrt(0.5), np.sqrt(0.5)])


@dataclass(frozen=True)
class Pose:
    """Place of a hand: `position` (3,) in meters and `rotation` (4,), a quaternion w, x, y, z.

    Without rotation a hand reaches along -y with its palm up.
    """

    position: tuple[float, float, float]
    rotation: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)


def about(axis: str, angle: float) -> np.ndarray:
    """Return the quaternion (4,) of a turn by `angle` in rad about the axis x, y or z."""
    quaternion = np.zeros(4)
    quaternion[0], quaternion["wxyz".index(axis)] = np.cos(angle / 2), np.sin(angle / 2)
    return quaternion


def turned(*turns: tuple[str, float]) -> tuple[float, ...]:
    """Return the quaternion of turns about fixed axes, the first one first."""
    result = np.array([1.0, 0.0, 0.0, 0.0])
    for axis, angle in turns:
        product = np.zeros(4)
        mujoco.mju_mulQuat(product, about(axis, angle), result)
        result = product
    return tuple(result.tolist())


def _load_right_hand() -> Any:
    """Return the MjSpec of a right hand alone, with the orientations of all its elements as quaternions."""
    found = importlib.util.find_spec("gymnasium_robotics")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "envs" / "assets"
    original = mujoco.MjSpec.from_file(str(folder / "hand" / "reach.xml"))
    original.compile()
    hand = mujoco.MjSpec.from_string(original.to_xml())
    hand.meshdir, hand.texturedir = str(folder / "stls" / "hand"), str(folder / "textures")
    for size in ("njmax", "nconmax", "nuser_jnt", "nuser_site", "nuser_tendon", "nuser_actuator", "nuser_sensor"):
        setattr(hand, size, -1)
    mount = hand.body("robot0:hand mount")
    for body in list(hand.worldbody.bodies):
        if body.name == "floor0":
            hand.delete(body)
    for element in (*hand.worldbody.geoms, *hand.worldbody.lights, *hand.sensors):
        hand.delete(element)
    mount.pos, mount.quat = np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
    for body in hand.bodies:
        body.gravcomp = 1.0
    for name in ("robot0:V_thbase", "robot0:V_thhub"):  # markers of a millimeter
        hand.geom(name).contype = hand.geom(name).conaffinity = 0
    return hand


def _mirror(hand: Any) -> None:
    """Reflect a hand in the plane x = 0. The same joint angles then give mirrored positions."""
    for body in hand.bodies:
        body.pos = _reflected(body.pos)
        body.quat = _reflected_turn(body.quat)
        body.ipos = _reflected(body.ipos)
        body.iquat = _reflected_turn(body.iquat)
    for element in (*hand.geoms, *hand.sites):
        element.pos = _reflected(element.pos)
        element.quat = _reflected_turn(element.quat)
    for joint in hand.joints:
        joint.pos = _reflected(joint.pos)
        joint.axis = -_reflected(joint.axis)  # the axis of a rotation is a pseudovector
    for mesh in hand.meshes:
        mesh.scale = _reflected(mesh.scale)


def _reflected(vector: np.ndarray) -> np.ndarray:
    return np.array([-vector[0], vector[1], vector[2]])


def _reflected_turn(quaternion: np.ndarray) -> np.ndarray:
    return np.array([quaternion[0], quaternion[1], -quaternion[2], -quaternion[3]])


def new_scene() -> Any:
    """Return an MjSpec with the floor, the lights and the options of the physics."""
    spec = mujoco.MjSpec()
    spec.modelname = "hands"
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.option.iterations = 20
    # A state that is not finite stays as it is, so that it can be reported. MuJoCo would restart the simulation.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    world = spec.worldbody
    world.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[2, 2, 0.1], rgba=[0.35, 0.4, 0.45, 1])
    sun = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    world.add_light(name="light", type=sun, pos=[0, 0, 4], dir=[0.3, 0.2, -1], ambient=[0.2] * 3, castshadow=False)
    return spec


def add_hands(spec: Any, poses: tuple[Pose, Pose], force: float, torque: float) -> None:
    """Attach a right and a left hand. Bases are free and moved by `force` in N and `torque` in N m, or fixed at 0."""
    for side, pose in zip(SIDES, poses, strict=True):
        hand = _load_right_hand()
        if side == "left":
            _mirror(hand)
        mount = hand.body("robot0:hand mount")
        if force:
            mount.add_freejoint(name="base")
        quaternion = np.zeros(4)
        mujoco.mju_mulQuat(quaternion, np.array(pose.rotation), _MOUNT)
        spec.worldbody.add_frame(pos=pose.position, quat=quaternion).attach_body(mount, f"{side}/", "")
    for side in SIDES if force else ():
        for axis in range(6):
            limit, gear = (force if axis < 3 else torque), np.zeros(6)
            gear[axis] = 1.0
            spec.add_actuator(
                name=f"{side}/base_{axis}",
                target=f"{side}/base",
                trntype=mujoco.mjtTrn.mjTRN_JOINTINPARENT,
                gear=gear,
                ctrllimited=True,
                ctrlrange=[-limit, limit],
            )


def compile_model(spec: Any) -> Any:
    """Return the MjModel, with the damping of the free bases."""
    model = spec.compile()
    for side in SIDES:
        joint = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, f"{side}/base")
        if joint >= 0:
            dofs = slice(model.jnt_dofadr[joint], model.jnt_dofadr[joint] + 6)
            model.dof_damping[dofs] = BASE_DAMPING * model.dof_M0[dofs]
    return model


class HandIndex:
    """Indices of one hand in the arrays of an MjModel.

    `qpos`, `dofs` (24,): joints. `base_dofs` (6,) or empty. `fingertips` (5,): bodies. `base`: body of the mount.
    `positions` (20,), `pushes` (6,) or empty: actuators. `fingers`: name of a finger -> its rows of `positions`, with
    "base" for the wrist. `low`, `high` (24,): limits of the joints in rad. `coupled` (4,): last joints of the four
    fingers, which a tendon couples to the joint before.
    """

    def __init__(self, model: Any, side: str) -> None:
        joints = [j for j in range(model.njnt) if model.joint(j).name.startswith(f"{side}/robot0:")]
        self.qpos, self.dofs = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self.low, self.high = model.jnt_range[joints].T
        coupled = [f"{side}/robot0:{finger.upper()}J0" for finger in FINGERS[:4]]
        self.coupled = np.array([joints.index(model.joint(name).id) for name in coupled])
        free = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, f"{side}/base")
        self.base_dofs = np.arange(6) + model.jnt_dofadr[free] if free >= 0 else np.zeros(0, np.int64)
        self.base = model.body(f"{side}/robot0:hand mount").id
        self.fingertips = np.array([model.body(f"{side}/robot0:{finger}distal").id for finger in FINGERS])
        names = [model.actuator(index).name for index in range(model.nu)]
        self.positions = np.array([i for i, name in enumerate(names) if name.startswith(f"{side}/robot0:")])
        self.pushes = np.array([i for i, name in enumerate(names) if name.startswith(f"{side}/base_")], np.int64)
        letters = [names[index].removeprefix(f"{side}/robot0:A_")[:2].lower() for index in self.positions]
        self.fingers = {
            name: np.array([row for row, own in enumerate(letters) if own == ("wr" if name == "base" else name)])
            for name in (*FINGERS, "base")
        }
