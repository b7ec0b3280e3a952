"""E simulations of one MjModel: E MjData stepped by threads, with episodes, random streams, saved states and frames."""
# pyright: reportAttributeAccessIssue=false
# (mujoco's names come from C++, so the type checker does not know them)

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mujoco
import numpy as np

from marl.envs.mamujoco.obs_columns import FeatureTable, Layout, Scene
from marl.envs.mamujoco.scenarios import StepResult
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.protocols import State
from marl.types import EnvSpec, Obs

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_FRAME = 480


class BatchSimulation:
    """Physics, features and episode lengths of E environments, without autoreset.

    `running` (E,) bool: an episode is running. `steps` (E,) int64: its length so far. `substeps`: steps of the physics
    in an environment step. A subclass defines how an episode starts (`start`), what is computed after the physics
    (`finish`), the controls of an action (`command`) and the result of a step (`outcome`).
    """

    def __init__(
        self, model: Any, scene: Scene, layout: Layout, spec: EnvSpec, substeps: int, num_envs: int, threads: int
    ) -> None:
        assert spec.max_steps is not None
        self.max_steps = spec.max_steps
        self.model, self.layout, self.spec, self.substeps = model, layout, spec, substeps
        self.running = np.zeros(num_envs, bool)
        self.steps = np.zeros(num_envs, np.int64)
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self._allocate(num_envs, scene)
        self._start_threads(min(threads, num_envs))
        self._renderer: Any = None

    def _allocate(self, num_envs: int, scene: Scene) -> None:
        """Allocate the buffers, and the views that link each MjData to its rows."""
        agents, width = len(self.layout.agents), self.spec.observation_size
        self.datas = [mujoco.MjData(self.model) for _ in range(num_envs)]
        self.table = FeatureTable(scene, self.datas[0], num_envs)
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
        self._lanes = [(d, d.ctrl, control, list(scene.sources(d).values()), raw) for d, control, raw in rows]

    def _start_threads(self, threads: int) -> None:
        edges = np.linspace(0, len(self._lanes), threads + 1).astype(int).tolist()
        self._chunks = [self._lanes[start:stop] for start, stop in itertools.pairwise(edges)]
        self._pool = ThreadPoolExecutor(threads - 1, "mujoco") if threads > 1 else None

    def start(self, index: int, seed: int | None) -> None:
        """Put an environment's MjData into a first state. A seed restarts its random stream."""
        raise NotImplementedError

    def finish(self, data: Any) -> None:
        """Compute what the features need beyond mj_step."""

    def command(self, action: np.ndarray) -> np.ndarray:
        """Return the controls (E, actuators) of the joint actions (E, actuators), in the order of the actuators."""
        return action

    def outcome(self, before: np.ndarray, command: np.ndarray) -> StepResult:
        """Return the result of a step. `before` (E, W): features before it. `command` (E, actuators): controls."""
        raise NotImplementedError

    def reset(self, index: int, seed: int | None) -> None:
        """Start an episode. Call `refresh` before reading `obs`."""
        self.start(index, seed)
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
        command = self._set_controls(np.asarray(action, np.float32))
        before = self.table.raw.copy()
        if self._pool is None:
            self._run(self._chunks[0])
        else:
            others = [self._pool.submit(self._run, chunk) for chunk in self._chunks[1:]]
            self._run(self._chunks[0])
            for other in others:
                other.result()
        self.steps += 1
        self.refresh()
        return self.outcome(before, command)

    def _set_controls(self, action: np.ndarray) -> np.ndarray:
        """Set the controls of (E, N, A) actions and return them, (E, actuators)."""
        expected = (len(self.datas), *self.layout.mask.shape)
        if action.shape != expected:
            raise EnvironmentContractError(f"{self.spec.name}: action has shape {action.shape}; give {expected}")
        command = self.command(action.reshape(len(action), -1)[:, self.layout.control])
        self._control[:] = command
        return command

    def _run(self, lanes: list[Any]) -> None:
        """Step the physics of some environments and copy the sources of the scene into the table."""
        step, finish, copy = mujoco.mj_step, self.finish, np.concatenate
        model, frames = self.model, self.substeps
        for data, target, control, sources, raw in lanes:
            target[:] = control
            step(model, data, frames)
            finish(data)
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
            "generator": self.generators[index].bit_generator.state,
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
        self.generators[index].bit_generator.state = state["generator"]

    def render(self, index: int) -> np.ndarray:
        """Return a frame of one environment, (480, 480, 3) uint8. Raises ConfigError without off-screen OpenGL."""
        if self._renderer is None:
            self._renderer = _open_renderer(self.model)
        scene = mujoco.MjData(self.model)  # a copy: drawing needs a forward pass that the episode must not make
        mujoco.mj_setState(self.model, scene, self.get_state(index)["physics"], _PHYSICS)
        mujoco.mj_forward(self.model, scene)
        self._renderer.update_scene(scene, camera=self.camera())
        return self._renderer.render()

    def camera(self) -> Any:
        """Return the camera of the frames: its name, or an MjvCamera."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the threads and close the renderer."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


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
