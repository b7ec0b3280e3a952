"""E simulations of one robot: one MjModel, E MjData, stepped by threads."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import mujoco
import numpy as np

from marl.envs.mamujoco.obs_columns import FeatureTable, Layout, find_layout
from marl.envs.mamujoco.scenarios import SCENARIOS, StepResult
from marl.envs.mamujoco.tasks import default_max_steps, multi_agent_env, parse_task, single_agent_env
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, UnknownNameError
from marl.protocols import State
from marl.registry import unknown_name_message
from marl.types import EnvSpec, Obs

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_FRAME = 480


class Simulation:
    """Physics, features and episode lengths of E environments, without autoreset.

    `running` (E,) bool: an episode is running. `steps` (E,) int64: its length so far.
    """

    def __init__(self, name: str, num_envs: int, threads: int, options: Any) -> None:
        if num_envs < 1 or threads < 1:
            raise ConfigError(f"mamujoco/{name}: {num_envs} environments and {threads} threads; give 1 or more of each")
        task = parse_task(name)
        self.base = single_agent_env(task)
        self.model = self.base.model
        self.scenario = SCENARIOS[task.rules](self.base)
        upstream = multi_agent_env(task, options.agent_obsk, self.base)
        self.layout = find_layout(self.scenario, upstream)
        self._whole = upstream.agent_obsk is None
        self.disabled = _actuator(self.model, options.disabled_joint)
        self.max_steps: int = options.max_steps or default_max_steps(task)
        self.spec = self._spec(name)
        self.running = np.zeros(num_envs, bool)
        self.steps = np.zeros(num_envs, np.int64)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._allocate(num_envs)
        self._start_threads(min(threads, num_envs))
        self._renderer: Any = None

    def _spec(self, name: str) -> EnvSpec:
        layout: Layout = self.layout
        low, high = self.model.actuator_ctrlrange.astype(np.float32).T
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

    def _allocate(self, num_envs: int) -> None:
        """Allocate the buffers, and the views that link each MjData to its rows."""
        agents, width = len(self.layout.agents), self.spec.observation_size
        self.datas = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self.table = FeatureTable(self.scenario, self.base.data, num_envs)
        self._rounded = np.zeros(self.table.values.shape, np.float32)
        self._control = np.zeros((num_envs, self.model.nu))
        self._seen = np.zeros((num_envs, agents * width), np.float32)
        self._state = np.zeros((num_envs, self.spec.state_size), np.float32)
        self.obs = Obs(
            agents=self._seen.reshape(num_envs, agents, width),
            alive=np.ones((num_envs, agents), bool),
            action_mask=np.tile(self.layout.mask, (num_envs, 1, 1)),
            state=self._state,
        )
        rows = zip(self.datas, self._control, self.table.raw, strict=True)
        self._lanes = [(d, d.ctrl, control, list(self.scenario.sources(d).values()), raw) for d, control, raw in rows]

    def _start_threads(self, threads: int) -> None:
        edges = np.linspace(0, len(self._lanes), threads + 1).astype(int).tolist()
        self._chunks = [self._lanes[start:stop] for start, stop in itertools.pairwise(edges)]
        self._pool = ThreadPoolExecutor(threads - 1, "mamujoco") if threads > 1 else None

    def reset(self, index: int, seed: int | None) -> None:
        """Start an episode with the same random draws as Gymnasium. Call `refresh` before reading `obs`."""
        base = self.base
        base.data, base.np_random = self.datas[index], self._generators[index]
        base.reset(seed=seed)
        self._generators[index] = base.np_random
        np.concatenate(self._lanes[index][3], out=self.table.raw[index])
        self.running[index] = True
        self.steps[index] = 0

    def advance(self, action: np.ndarray) -> StepResult:
        """Step every environment with `action` (E, N, A) and update `obs`.

        Raises RuntimeError if an environment has no running episode, EnvironmentContractError for another shape.
        """
        if not self.running.all():
            idle = np.flatnonzero(~self.running).tolist()
            raise RuntimeError(f"{self.spec.name}: no episode is running in environments {idle}; call reset first")
        command = self._command(np.asarray(action, np.float32))
        before = self.scenario.position(self.table.features).copy()
        if self._pool is None:
            self._run(self._chunks[0])
        else:
            others = [self._pool.submit(self._run, chunk) for chunk in self._chunks[1:]]
            self._run(self._chunks[0])
            for other in others:
                other.result()
        velocity = (self.scenario.position(self.table.features) - before) / self.base.dt
        self.steps += 1
        self.refresh()
        return self.scenario.outcome(self.table.features, velocity, command)

    def _command(self, action: np.ndarray) -> np.ndarray:
        """Set the controls and return them, (E, actuators), as mamujoco_v1 gives them to the reward.

        If one agent is the whole robot, they stay float32 as upstream, and so do the control costs.
        """
        expected = (len(self.datas), *self.layout.mask.shape)
        if action.shape != expected:
            raise EnvironmentContractError(f"{self.spec.name}: action has shape {action.shape}; give {expected}")
        command = action.reshape(len(action), -1)[:, self.layout.control]
        if self.disabled is not None:
            command[:, self.disabled] = 0.0
        self._control[:] = command
        return command if self._whole else self._control

    def _run(self, lanes: list[Any]) -> None:
        """Step the physics of some environments and copy the sources of the scenario into the table."""
        step, finish, copy = mujoco.mj_step, mujoco.mj_rnePostConstraint, np.concatenate
        model, frames, contact = self.model, self.base.frame_skip, self.scenario.contact_forces
        for data, target, control, sources, raw in lanes:
            target[:] = control
            step(model, data, frames)
            if contact:
                finish(model, data)
            copy(sources, out=raw)

    def refresh(self) -> None:
        """Update `obs` from the table."""
        self.table.derive()
        np.copyto(self._rounded, self.table.values, casting="same_kind")
        np.take(self._rounded, self.layout.observation, axis=1, out=self._seen, mode="clip")
        np.take(self._rounded, self.layout.state, axis=1, out=self._state, mode="clip")

    def get_state(self, index: int) -> State:
        """Return physics with the solver's warm start, features (which lag by one frame) and the random stream."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.datas[index], physics, _PHYSICS)
        return {
            "physics": physics,
            "features": self.table.raw[index].copy(),
            "steps": int(self.steps[index]),
            "running": bool(self.running[index]),
            "generator": self._generators[index].bit_generator.state,
        }

    def set_state(self, index: int, state: State) -> None:
        """Continue from `get_state`. Call `refresh` before reading `obs`.

        Raises CheckpointError for a state of another task.
        """
        physics, features = (np.asarray(state[name], np.float64) for name in ("physics", "features"))
        expected = ((mujoco.mj_stateSize(self.model, _PHYSICS),), self.table.raw[index].shape)
        if (physics.shape, features.shape) != expected:
            raise CheckpointError(
                f"{self.spec.name}: the state's physics and features have the shapes {physics.shape} and "
                f"{features.shape}, not {expected[0]} and {expected[1]}; give a state that this task and version saved"
            )
        mujoco.mj_setState(self.model, self.datas[index], physics, _PHYSICS)
        self.table.raw[index] = features
        self.steps[index] = state["steps"]
        self.running[index] = state["running"]
        self._generators[index].bit_generator.state = state["generator"]

    def render(self, index: int) -> np.ndarray:
        """Return a frame of one environment, (480, 480, 3) uint8. Raises ConfigError without off-screen OpenGL."""
        if self._renderer is None:
            self._renderer = _open_renderer(self.model)
        scene = mujoco.MjData(self.model)  # a copy: drawing needs a forward pass that the episode must not make
        mujoco.mj_setState(self.model, scene, self.get_state(index)["physics"], _PHYSICS)
        mujoco.mj_forward(self.model, scene)
        self._renderer.update_scene(scene, camera=self._camera())
        return self._renderer.render()

    def _camera(self) -> Any:
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

    def close(self) -> None:
        """Stop the threads and close the renderer."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


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


_cannot_draw: Exception | None = None


def _open_renderer(model: Any) -> Any:
    """Open a renderer. After a failure no second attempt is made, because MuJoCo would abort the process."""
    global _cannot_draw
    if _cannot_draw is None:
        try:
            with warnings.catch_warnings():
                # Without a display GLFW warns before it fails; the error below covers it.
                warnings.filterwarnings("ignore", module="glfw")
                return mujoco.Renderer(model, _FRAME, _FRAME)
        except Exception as error:  # each OpenGL platform fails with its own class
            _cannot_draw = error
    raise ConfigError(
        f"MuJoCo cannot draw off screen ({_cannot_draw}); set MUJOCO_GL=egl or MUJOCO_GL=osmesa before Python starts, "
        "and install the library behind it: apt-get install libegl1, or libosmesa6"
    ) from _cannot_draw
