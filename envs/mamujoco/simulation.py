"""E simulations of one robot."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

from typing import Any

import gymnasium
import mujoco
import numpy as np

from marl.envs.mamujoco.batch_simulation import BatchSimulation
from marl.envs.mamujoco.obs_columns import Layout, find_layout
from marl.envs.mamujoco.scenarios import SCENARIOS, StepResult
from marl.envs.mamujoco.tasks import default_max_steps, multi_agent_env, parse_task, single_agent_env
from marl.errors import ConfigError, UnknownNameError
from marl.registry import unknown_name_message
from marl.types import EnvSpec


class Simulation(BatchSimulation):
    """Physics, features and episode lengths of E environments of one robot."""

    def __init__(self, name: str, num_envs: int, threads: int, options: Any) -> None:
        if num_envs < 1 or threads < 1:
            raise ConfigError(f"mamujoco/{name}: {num_envs} environments and {threads} threads; give 1 or more of each")
        task = parse_task(name)
        self.base = single_agent_env(task)
        self.scenario = SCENARIOS[task.rules](self.base)
        upstream = multi_agent_env(task, options.agent_obsk, self.base)
        layout = find_layout(self.scenario, upstream)
        self._whole = upstream.agent_obsk is None
        self.disabled = _actuator(self.base.model, options.disabled_joint)
        self.max_steps: int = options.max_steps or default_max_steps(task)
        spec = self._make_spec(name, layout)
        super().__init__(self.base.model, self.scenario, layout, spec, self.base.frame_skip, num_envs, threads)

    def _make_spec(self, name: str, layout: Layout) -> EnvSpec:
        low, high = self.base.model.actuator_ctrlrange.astype(np.float32).T
        seen, shown = (max(layout.observation_sizes),), layout.state.shape
        return EnvSpec(
            name=f"mamujoco/{name}",
            agents=layout.agents,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, seen, np.float32),
            action_space=gymnasium.spaces.Box(low.min(), high.max(), layout.mask.shape[1:], np.float32),
            max_steps=self.max_steps,
            state_space=gymnasium.spaces.Box(-np.inf, np.inf, shown, np.float32),
            agent_types=layout.agents,
            observation_sizes=layout.observation_sizes,
            action_sizes=layout.action_sizes,
        )

    def start(self, index: int, seed: int | None) -> None:
        """Start an episode with the same random draws as Gymnasium."""
        base = self.base
        base.data, base.np_random = self.datas[index], self.generators[index]
        base.reset(seed=seed)
        self.generators[index] = base.np_random

    def finish(self, data: Any) -> None:
        """Compute contact forces if the scenario uses them."""
        if self.scenario.contact_forces:
            mujoco.mj_rnePostConstraint(self.model, data)

    def command(self, action: np.ndarray) -> np.ndarray:
        """Return the controls, (E, actuators), as mamujoco_v1 gives them to the reward.

        If one agent is the whole robot, they stay float32 as upstream, and so do the control costs.
        """
        if self.disabled is not None:
            action[:, self.disabled] = 0.0
        return action if self._whole else action.astype(np.float64, order="C")

    def outcome(self, before: np.ndarray, command: np.ndarray) -> StepResult:
        """Return reward, termination and info as Gymnasium computes them."""
        features = self.table.features
        start = self.scenario.position(self.table.views(before))
        velocity = (self.scenario.position(features) - start) / self.base.dt
        return self.scenario.outcome(features, velocity, command)

    def camera(self) -> Any:
        """Return the model's tracking camera, or Gymnasium's default camera."""
        if mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
            return "track"
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, camera)
        for name, value in self.base.mujoco_renderer.default_cam_config.items():
            if isinstance(value, np.ndarray):
                getattr(camera, name)[:] = value
            else:
                setattr(camera, name, value)
        return camera


def _actuator(model: Any, joint: int | str | None) -> int | None:
    """Return the index of a joint's actuator, given that index or the joint's name."""
    names = [model.joint(model.actuator_trnid[index, 0]).name for index in range(model.nu)]
    if isinstance(joint, str):
        if joint not in names:
            raise UnknownNameError(unknown_name_message("disabled_joint", joint, names))
        return names.index(joint)
    if joint is not None and not 0 <= joint < model.nu:
        raise ConfigError(f"disabled_joint={joint}; give 0 to {model.nu - 1} or one of {', '.join(names)}")
    return joint
