"""E simulations of two hands and their objects."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

import warnings
from typing import Any

import gymnasium
import mujoco
import numpy as np

from marl.envs.hands import HandsOptions
from marl.envs.hands.features import HandsScene
from marl.envs.hands.hand_model import FINGERS, SIDES, SUBSTEPS, add_hands, compile_model, new_scene
from marl.envs.hands.tasks import TASKS, HandTask
from marl.envs.mamujoco.batch_simulation import BatchSimulation
from marl.envs.mamujoco.obs_columns import Layout
from marl.envs.mamujoco.scenarios import StepResult
from marl.errors import ConfigError, EnvironmentContractError, NonFiniteError, UnknownNameError
from marl.protocols import State
from marl.registry import unknown_name_message
from marl.types import EnvSpec


class HandsSimulation(BatchSimulation):
    """Physics, features and episode lengths of E environments of one task.

    `succeeded` (E,) bool: the goal was reached in the episode.
    """

    def __init__(self, name: str, num_envs: int, threads: int, options: HandsOptions) -> None:
        if num_envs < 1 or threads < 1:
            raise ConfigError(f"hands/{name}: {num_envs} environments and {threads} threads; give 1 or more of each")
        if name not in TASKS:
            raise UnknownNameError(unknown_name_message("task of hands", name, TASKS))
        task = TASKS[name]
        if options.object_type is not None and task.shape is None:
            raise ConfigError(
                f"hands/{name}: object_type={options.object_type!r} has no effect, because the task has an object of "
                "its own; leave it out"
            )
        self.rules = task.rules(options.object_type or task.shape or "")
        self.on_divergence = options.on_divergence
        model = build_model(task, self.rules)
        self.rules.bind(model)
        self.scene = HandsScene(model, self.rules)
        layout = make_layout(self.scene, model, options.team)
        spec = _make_spec(f"hands/{name}", layout, options.max_steps or task.max_steps)
        self.succeeded = np.zeros(num_envs, bool)
        self._order = np.concatenate([hand.control_indices for hand in self.scene.hands])
        self._size = len(self.scene.hands[0].control_indices)
        super().__init__(model, self.scene, layout, spec, SUBSTEPS, num_envs, threads)

    def start(self, index: int, seed: int | None) -> None:
        """Start an episode: joints of both hands alike near their rest, objects near their start."""
        if seed is not None:
            self.generators[index] = np.random.default_rng(seed)
        data, generator, noise = self.datas[index], self.generators[index], self.rules.joint_noise
        mujoco.mj_resetData(self.model, data)
        drawn = generator.uniform(-1.0, 1.0, self.scene.hands[0].index.qpos.size)
        for hand in self.scene.hands:
            part = hand.index
            rest = noise * (part.low + (part.high - part.low) * drawn)
            data.qpos[part.qpos] = np.clip(rest, part.low, part.high)
            data.qpos[part.qpos[part.coupled]] = data.qpos[part.qpos[part.coupled - 1]]
        self.rules.start(data, generator)
        data.ctrl[self._order] = np.concatenate([h.controls(np.zeros((1, self._size)))[0] for h in self.scene.hands])
        mujoco.mj_forward(self.model, data)
        mujoco.mj_rnePostConstraint(self.model, data)
        self.succeeded[index] = False

    def advance(self, action: np.ndarray) -> StepResult:
        """Step every environment. MuJoCo's own warnings of a state that is not finite are left to `outcome`.

        MuJoCo would print them and append them to MUJOCO_LOG.TXT in the working folder.
        """
        previous = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(_forward_warning)
        try:
            return super().advance(action)
        finally:
            mujoco.set_mju_user_warning(previous)

    def finish(self, data: Any) -> None:
        """Compute the forces between bodies, and the positions and velocities that belong to the new state."""
        model = self.model
        mujoco.mj_rnePostConstraint(model, data)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)

    def command(self, action: np.ndarray) -> np.ndarray:
        """Return the controls (E, actuators). Raises EnvironmentContractError for an action that is not finite."""
        if not np.isfinite(action).all():
            broken = np.flatnonzero(~np.isfinite(action).all(axis=1)).tolist()
            raise EnvironmentContractError(f"{self.spec.name}: the actions of environments {broken} are not finite")
        command = np.empty(action.shape)
        for side, hand in enumerate(self.scene.hands):
            own = action[:, side * self._size : (side + 1) * self._size]
            command[:, hand.control_indices] = hand.controls(own.astype(np.float64))
        return command

    def outcome(self, before: np.ndarray, command: np.ndarray) -> StepResult:
        """Return reward, termination and info. `info` has `success`: the goal was reached in the episode."""
        diverged = ~np.isfinite(self.table.raw).all(axis=1)
        if diverged.any():
            self._drop(np.flatnonzero(diverged), before)
        action = [(command[:, hand.control_indices] - hand.center) / hand.half for hand in self.scene.hands]
        result = self.rules.outcome(self.table.features, self.scene.hands, np.concatenate(action, axis=1))
        self.succeeded |= result.reached & ~diverged
        if result.renew is not None and result.renew.any():
            self._renew(result.renew)
        info = {"success": self.succeeded.astype(np.float64), **result.info}
        if self.on_divergence == "end":
            info["diverged"] = diverged.astype(np.float64)
        return StepResult(np.where(diverged, 0.0, result.reward), result.terminated & ~diverged, info)

    def _drop(self, rows: np.ndarray, before: np.ndarray) -> None:
        """End the episodes of `rows` as truncated with the features `before` the step, or raise NonFiniteError."""
        if self.on_divergence == "stop":
            named = ", ".join(f"environment {row} at step {self.steps[row]}" for row in rows)
            raise NonFiniteError(
                f"{self.spec.name}: MuJoCo's state is not finite in {named}; set on_divergence='end' to end such "
                "episodes as truncated"
            )
        self.table.raw[rows] = before[rows]
        self.steps[rows] = self.max_steps
        self.refresh()

    def _renew(self, goals: np.ndarray) -> None:
        """Draw the goals (E, goals) anew and show them."""
        for row, goal in np.argwhere(goals):
            self.rules.renew_goal(self.datas[row], int(goal), self.generators[row])
            self.table.features["mocap_quat"][row] = self.datas[row].mocap_quat.reshape(-1)
        self.refresh()

    def camera(self) -> Any:
        """Return a camera that sees both hands."""
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, camera)
        bases = [self.model.body(f"{side}/robot0:hand mount").pos for side in SIDES]
        camera.lookat[:] = np.mean(bases, axis=0)
        camera.distance, camera.azimuth, camera.elevation = 1.6, 160.0, -30.0
        return camera

    def get_state(self, index: int) -> State:
        """Return what the base class returns, and whether the goal was reached."""
        return {**super().get_state(index), "succeeded": bool(self.succeeded[index])}

    def set_state(self, index: int, state: State) -> None:
        """Continue from `get_state`."""
        super().set_state(index, state)
        self.succeeded[index] = state["succeeded"]


def _forward_warning(message: str) -> None:
    """Turn a message of MuJoCo into a Python warning, unless it is about a state that is not finite."""
    if "unstable" not in message:
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def build_model(task: HandTask, rules: Any) -> Any:
    """Return the MjModel of a task: two hands and the objects of its rules."""
    spec = new_scene()
    add_hands(spec, task.poses, task.force, task.torque)
    rules.add(spec)
    return compile_model(spec)


def make_layout(scene: HandsScene, model: Any, team: str) -> Layout:
    """Return who observes and moves what.

    Every agent observes its own hand and the objects. The state is both hands and the objects. The columns of the table
    end with the derived features and one zero.
    """
    data = mujoco.MjData(model)
    features = {name: view[None] for name, view in scene.sources(data).items()}
    both, objects = (block.shape[1] for block in scene.derived(features))
    first = sum(view.shape[1] for view in features.values())
    right, left, shared = np.split(first + np.arange(both + objects), [both // 2, both])
    agents, columns, actions = [], [], []
    for side, hand, own in zip(SIDES, scene.hands, (right, left), strict=True):
        pushes = len(hand.index.pushes)
        offset = SIDES.index(side) * len(hand.control_indices)
        members = {side: np.arange(len(hand.control_indices))}
        if team == "fingers":
            members = {f"{side}_{name}": pushes + hand.index.fingers[name] for name in FINGERS}
            members[f"{side}_base"] = np.concatenate((np.arange(pushes), pushes + hand.index.fingers["base"]))
        for name, rows in members.items():
            agents.append(name)
            columns.append(np.concatenate((own, shared)))
            actions.append(offset + rows)
    widths = tuple(map(len, actions))
    mask = np.arange(max(widths)) < np.array(widths)[:, None]
    control = np.empty(sum(widths), np.int64)
    for agent, rows in enumerate(actions):
        control[rows] = agent * mask.shape[1] + np.arange(len(rows))
    state = np.concatenate((right, left, shared))
    observed = tuple(map(len, columns))
    return Layout(tuple(agents), np.concatenate(columns), observed, state, control, mask, widths)


def _make_spec(name: str, layout: Layout, max_steps: int) -> EnvSpec:
    box = gymnasium.spaces.Box
    return EnvSpec(
        name=name,
        agents=layout.agents,
        observation_space=box(-np.inf, np.inf, (max(layout.observation_sizes),), np.float32),
        action_space=box(-1.0, 1.0, layout.mask.shape[1:], np.float32),
        max_steps=max_steps,
        state_space=box(-np.inf, np.inf, layout.state.shape, np.float32),
        agent_types=layout.agents,
        observation_sizes=layout.observation_sizes,
        action_sizes=layout.action_sizes,
    )
