"""Features, rewards and terminations of the scenarios, for E environments at once.

The formulas are those of Gymnasium's v5 environments, term by term and in the same order of operations, so that they
agree to the bit. Weights and ranges are read from the Gymnasium environment.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Features = dict[str, np.ndarray]
"""Arrays of MjData that a scenario uses, by name: each (E, size) float64."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step: `reward` (E,) float64, `terminated` (E,) bool, and `info` of (E,) arrays."""

    reward: np.ndarray
    terminated: np.ndarray
    info: dict[str, np.ndarray]


def _squares(values: np.ndarray) -> np.ndarray:
    return np.sum(np.square(values), axis=-1)


def _never(features: Features) -> np.ndarray:
    return np.zeros(len(features["qpos"]), bool)


class Scenario:
    """Rules of one robot. `base` is the Gymnasium environment, the source of every constant."""

    contact_forces = False
    """True if `cfrc_ext` is used, which MuJoCo computes only on request."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def sources(self, data: Any) -> Features:
        """Return flat views of the arrays of one MjData that the scenario uses, by name."""
        return {"qpos": data.qpos, "qvel": data.qvel}

    def derived(self, features: Features) -> list[np.ndarray]:
        """Return derived features that agents or the state may contain, each (E, size)."""
        del features
        return []

    def position(self, features: Features) -> np.ndarray:
        """Return the coordinate whose change over a step gives the forward velocity, (E,) in meters."""
        return features["qpos"][:, 0]

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        """Return the result of a step to `features` with forward `velocity` (E,) and `action` (E, actuators)."""
        raise NotImplementedError


class ForwardReward(Scenario):
    """HalfCheetah and Swimmer: run forward; never terminates."""

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        forward = self.base._forward_reward_weight * velocity
        control = self.base._ctrl_cost_weight * _squares(action)
        info = {"x_position": features["qpos"][:, 0], "x_velocity": velocity}
        info |= {"reward_forward": forward, "reward_ctrl": -control}
        return StepResult(forward - control, _never(features), info)


class Walker(Scenario):
    """Walker2d: run forward; terminates unless upright."""

    def derived(self, features: Features) -> list[np.ndarray]:
        return [np.clip(features["qvel"], -10, 10)]

    def healthy(self, features: Features) -> np.ndarray:
        """Return (E,) bool: height and angle are within the healthy range."""
        height, angle = features["qpos"][:, 1], features["qpos"][:, 2]
        (low, high), (left, right) = self.base._healthy_z_range, self.base._healthy_angle_range
        return (low < height) & (height < high) & (left < angle) & (angle < right)

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        healthy = self.healthy(features)
        forward = self.base._forward_reward_weight * velocity
        survive = healthy * self.base._healthy_reward
        control = self.base._ctrl_cost_weight * _squares(action)
        info = {"x_position": features["qpos"][:, 0], "x_velocity": velocity}
        info |= {"reward_forward": forward, "reward_ctrl": -control, "reward_survive": survive}
        return StepResult(forward + survive - control, ~healthy & self.base._terminate_when_unhealthy, info)


class Hopper(Walker):
    """Hopper: like Walker2d, with bounds on the whole state."""

    def healthy(self, features: Features) -> np.ndarray:
        low, high = self.base._healthy_state_range
        rest = np.concatenate((features["qpos"][:, 2:], features["qvel"]), axis=1)
        return super().healthy(features) & ((low < rest) & (rest < high)).all(axis=1)


class Ant(Scenario):
    """Ant: run forward with little contact force; terminates at an unhealthy height."""

    contact_forces = True

    def sources(self, data: Any) -> Features:
        torso = data.body(self.base._main_body).xpos
        return {"qpos": data.qpos, "qvel": data.qvel, "torso": torso, "cfrc_ext": data.cfrc_ext.reshape(-1)}

    def derived(self, features: Features) -> list[np.ndarray]:
        return [np.clip(features["cfrc_ext"], *self.base._contact_force_range)]

    def position(self, features: Features) -> np.ndarray:
        return features["torso"][:, 0]

    def healthy(self, features: Features) -> np.ndarray:
        """Return (E,) bool: the height is within the healthy range and the state is finite."""
        low, high = self.base._healthy_z_range
        height = features["qpos"][:, 2]
        finite = np.isfinite(features["qpos"]).all(axis=1) & np.isfinite(features["qvel"]).all(axis=1)
        return finite & (low <= height) & (height <= high)

    def costs(self, features: Features, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the control cost and the contact cost, each (E,)."""
        contact = self.base._contact_cost_weight * _squares(self.derived(features)[0])
        return self.base._ctrl_cost_weight * _squares(action), contact

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        healthy = self.healthy(features)
        forward = velocity * self.base._forward_reward_weight
        survive = healthy * self.base._healthy_reward
        control, contact = self.costs(features, action)
        info = {"x_position": features["qpos"][:, 0], "y_position": features["qpos"][:, 1], "x_velocity": velocity}
        info |= {"reward_forward": forward, "reward_survive": survive}
        info |= {"reward_ctrl": -control, "reward_contact": -contact}
        reward = (forward + survive) - (control + contact)
        return StepResult(reward, ~healthy & self.base._terminate_when_unhealthy, info)


class Humanoid(Ant):
    """Humanoid: walk forward; velocity of the center of mass; terminates at an unhealthy height."""

    def sources(self, data: Any) -> Features:
        names = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos", "ctrl")
        return {name: getattr(data, name).reshape(-1) for name in names}

    def derived(self, features: Features) -> list[np.ndarray]:
        del features
        return []

    def position(self, features: Features) -> np.ndarray:
        mass = self.base.model.body_mass
        centers = features["xipos"].reshape(-1, len(mass), 3)
        return (np.sum(mass[:, None] * centers, axis=1) / np.sum(mass))[:, 0]

    def healthy(self, features: Features) -> np.ndarray:
        low, high = self.base._healthy_z_range
        height = features["qpos"][:, 2]
        return (low < height) & (height < high)

    def costs(self, features: Features, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        del action
        contact = self.base._contact_cost_weight * _squares(features["cfrc_ext"])
        control = self.base._ctrl_cost_weight * _squares(features["ctrl"])
        return control, np.clip(contact, *self.base._contact_cost_range)


class HumanoidStandup(Humanoid):
    """HumanoidStandup: rise; never terminates."""

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        del velocity, action
        rise = features["qpos"][:, 2] / self.base.model.opt.timestep
        control = self.base._ctrl_cost_weight * _squares(features["ctrl"])
        impact = self.base._impact_cost_weight * _squares(features["cfrc_ext"])
        impact = np.clip(impact, *self.base._impact_cost_range)
        info = {"x_position": features["qpos"][:, 0], "y_position": features["qpos"][:, 1]}
        info |= {"reward_linup": rise, "reward_quadctrl": -control, "reward_impact": -impact}
        return StepResult(rise - control - impact + 1, _never(features), info)


class Reacher(Scenario):
    """Reacher: bring the fingertip to the target."""

    def sources(self, data: Any) -> Features:
        bodies = {name: data.body(name).xpos for name in ("fingertip", "target")}
        return {"qpos": data.qpos, "qvel": data.qvel, **bodies}

    def derived(self, features: Features) -> list[np.ndarray]:
        return [np.sin(features["qpos"]), np.cos(features["qpos"]), features["fingertip"] - features["target"]]

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        del velocity
        gap = features["fingertip"] - features["target"]
        distance = -np.linalg.norm(gap, axis=-1) * self.base._reward_dist_weight
        control = -_squares(action) * self.base._reward_control_weight
        return StepResult(distance + control, _never(features), {"reward_dist": distance, "reward_ctrl": control})


class Pusher(Scenario):
    """Pusher: push the object to the goal."""

    def sources(self, data: Any) -> Features:
        bodies = {name: data.body(name).xpos for name in ("tips_arm", "object", "goal")}
        return {"qpos": data.qpos, "qvel": data.qvel, **bodies}

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        del velocity
        to_arm, to_goal = features["object"] - features["tips_arm"], features["object"] - features["goal"]
        near = -np.linalg.norm(to_arm, axis=-1) * self.base._reward_near_weight
        distance = -np.linalg.norm(to_goal, axis=-1) * self.base._reward_dist_weight
        control = -_squares(action) * self.base._reward_control_weight
        info = {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}
        return StepResult(distance + control + near, _never(features), info)


class InvertedPendulum(Scenario):
    """InvertedPendulum: keep the pole within 0.2 rad of upright."""

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        del velocity, action
        finite = np.isfinite(features["qpos"]).all(axis=1) & np.isfinite(features["qvel"]).all(axis=1)
        terminated = ~finite | (np.abs(features["qpos"][:, 1]) > 0.2)
        survive = (~terminated).astype(np.float64)
        return StepResult(survive, terminated, {"reward_survive": survive})


class InvertedDoublePendulum(Scenario):
    """InvertedDoublePendulum: keep the tip of the second pole higher than one meter."""

    def sources(self, data: Any) -> Features:
        force = {"qfrc_constraint": data.qfrc_constraint, "tip": data.site_xpos[0]}
        return {"qpos": data.qpos, "qvel": data.qvel, **force}

    def derived(self, features: Features) -> list[np.ndarray]:
        clipped = [np.clip(features[name], -10, 10) for name in ("qvel", "qfrc_constraint")]
        return [np.sin(features["qpos"]), np.cos(features["qpos"]), *clipped]

    def outcome(self, features: Features, velocity: np.ndarray, action: np.ndarray) -> StepResult:
        del velocity, action
        across, height = features["tip"][:, 0], features["tip"][:, 2]
        first, second = features["qvel"][:, 1], features["qvel"][:, 2]
        terminated = height <= 1
        survive = self.base._healthy_reward * ~terminated
        distance = 0.01 * across**2 + (height - 2) ** 2
        speed = 1e-3 * first**2 + 5e-3 * second**2
        info = {"reward_survive": survive, "distance_penalty": -distance, "velocity_penalty": -speed}
        return StepResult(survive - distance - speed, terminated, info)


SCENARIOS: dict[str, type[Scenario]] = {
    "Ant": Ant,
    "HalfCheetah": ForwardReward,
    "Hopper": Hopper,
    "Humanoid": Humanoid,
    "HumanoidStandup": HumanoidStandup,
    "InvertedDoublePendulum": InvertedDoublePendulum,
    "InvertedPendulum": InvertedPendulum,
    "Pusher": Pusher,
    "Reacher": Reacher,
    "Swimmer": ForwardReward,
    "Walker2d": Walker,
}
