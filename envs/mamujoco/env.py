"""Environments: a batch with same-step autoreset, and a single one."""

from collections.abc import Sequence

import numpy as np

from marl.envs.mamujoco import MamujocoOptions
from marl.envs.mamujoco.batch_simulation import BatchSimulation
from marl.envs.mamujoco.scenarios import StepResult
from marl.envs.mamujoco.simulation import Simulation
from marl.errors import ConfigError
from marl.protocols import State
from marl.types import EnvSpec, Final, Obs, Step, VectorStep


def _rows(obs: Obs, rows: np.ndarray) -> Obs:
    """Return a copy of the observations of some environments."""
    assert obs.action_mask is not None
    assert obs.state is not None
    return Obs(obs.agents[rows], obs.alive[rows], obs.action_mask[rows], obs.state[rows])


def _info(outcome: StepResult, index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in outcome.info.items()}


class SimulationVector:
    """The environments of a simulation; see `marl.protocols.VectorEnv`."""

    def __init__(self, simulation: BatchSimulation) -> None:
        self._simulation = simulation

    @property
    def simulation(self) -> BatchSimulation:
        """Physics and features of the environments."""
        return self._simulation

    @property
    def spec(self) -> EnvSpec:
        """Spec of the task."""
        return self._simulation.spec

    @property
    def num_envs(self) -> int:
        """Number of environments E."""
        return len(self._simulation.datas)

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Start E episodes, one for each seed."""
        self._check_count("seeds", seeds)
        for index, seed in enumerate(seeds):
            self._simulation.reset(index, seed)
        self._simulation.refresh()
        return self._simulation.obs

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start an episode in one environment."""
        self._simulation.reset(index, seed)
        self._simulation.refresh()
        return self._simulation.obs

    def step(self, action: np.ndarray) -> VectorStep:
        """Act with (E, N, A) float32. Resets the environments whose episode ends."""
        simulation = self._simulation
        outcome = simulation.advance(action)
        truncated = (simulation.steps >= simulation.max_steps) & ~outcome.terminated
        reward = np.repeat(outcome.reward.astype(np.float32)[:, None], self.spec.num_agents, axis=1)
        ended = np.flatnonzero(outcome.terminated | truncated)
        final = None
        if len(ended):
            infos = tuple(_info(outcome, int(index)) for index in ended)
            final = Final(ended, _rows(simulation.obs, ended), infos)
            for index in ended:
                simulation.reset(int(index), None)
            simulation.refresh()
        return VectorStep(simulation.obs, reward, outcome.terminated, truncated, final)

    def render(self, index: int = 0) -> np.ndarray:
        """Return a frame of one environment, (480, 480, 3) uint8."""
        return self._simulation.render(index)

    def get_state(self) -> list[State | None]:
        """Return one state for each environment."""
        return [self._simulation.get_state(index) for index in range(self.num_envs)]

    def set_state(self, states: Sequence[State]) -> Obs:
        """Continue from `get_state`."""
        self._check_count("states", states)
        for index, state in enumerate(states):
            self._simulation.set_state(index, state)
        self._simulation.refresh()
        return self._simulation.obs

    def close(self) -> None:
        """Stop the threads and close the renderer."""
        self._simulation.close()

    def _check_count(self, what: str, given: Sequence[object]) -> None:
        if len(given) != self.num_envs:
            raise ConfigError(
                f"{self.spec.name}: {len(given)} {what} for {self.num_envs} environments; give one for each"
            )


class SimulationEnv:
    """The only environment of a simulation, without autoreset; see `marl.protocols.Env`."""

    def __init__(self, simulation: BatchSimulation) -> None:
        self._simulation = simulation

    @property
    def simulation(self) -> BatchSimulation:
        """Physics and features of the environment."""
        return self._simulation

    @property
    def spec(self) -> EnvSpec:
        """Spec of the task."""
        return self._simulation.spec

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed restarts the random stream."""
        self._simulation.reset(0, seed)
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Act with (N, A) float32. Raises RuntimeError without a running episode."""
        simulation = self._simulation
        outcome = simulation.advance(np.asarray(action)[None])
        terminated = bool(outcome.terminated[0])
        truncated = not terminated and bool(simulation.steps[0] >= simulation.max_steps)
        ended = terminated or truncated
        simulation.running[0] = not ended
        reward = np.full(self.spec.num_agents, outcome.reward[0], np.float32)
        return Step(self._obs(), reward, terminated, truncated, _info(outcome, 0) if ended else {})

    def render(self) -> np.ndarray:
        """Return a frame, (480, 480, 3) uint8."""
        return self._simulation.render(0)

    def get_state(self) -> State:
        """Return physics, features and random stream."""
        return self._simulation.get_state(0)

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`."""
        self._simulation.set_state(0, state)
        return self._observe()

    def close(self) -> None:
        """Stop the threads and close the renderer."""
        self._simulation.close()

    def _observe(self) -> Obs:
        self._simulation.refresh()
        return self._obs()

    def _obs(self) -> Obs:
        obs = self._simulation.obs
        assert obs.action_mask is not None
        assert obs.state is not None
        return Obs(obs.agents[0], obs.alive[0], obs.action_mask[0], obs.state[0])


class MamujocoVector(SimulationVector):
    """`num_envs` environments of one task; see `marl.protocols.VectorEnv`.

    The final info of an episode is Gymnasium's info of its last step: position, velocity and reward terms.
    """

    def __init__(self, task: str, num_envs: int, threads: int = 1, options: MamujocoOptions | None = None) -> None:
        super().__init__(Simulation(task, num_envs, threads, options or MamujocoOptions()))


class MamujocoEnv(SimulationEnv):
    """One environment of a task, without autoreset; see `marl.protocols.Env`."""

    def __init__(self, task: str, options: MamujocoOptions | None = None) -> None:
        super().__init__(Simulation(task, 1, 1, options or MamujocoOptions()))
