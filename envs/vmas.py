"""VMAS: two-dimensional robots simulated in batches with torch, as a batch: `vmas/<scenario>`.

Bettini et al. 2022, "VMAS: A Vectorized Multi-Agent Simulator for Collective Robot Learning". The simulator is the
package's own.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from marl.errors import ConfigError, UnknownNameError
from marl.protocols import State
from marl.registry import named_kwargs, register_env, unknown_name_message
from marl.types import EnvSpec, Final, Obs, Step, VectorStep

RESTORABLE = (
    "balance",
    "ball_passage",
    "discovery",
    "dispersion",
    "dropout",
    "flocking",
    "navigation",
    "passage",
    "reverse_transport",
    "transport",
    "wheel",
)
"""Scenarios whose tensors are their whole state, and whose environments do not depend on the size of the batch."""
OTHERS = (
    "ball_trajectory",
    "buzz_wire",
    "football",
    "give_way",
    "joint_passage",
    "joint_passage_size",
    "multi_give_way",
)
"""Scenarios that keep a part of their state elsewhere, such as in controllers. Their state cannot be saved."""
SCENARIOS = tuple(sorted(RESTORABLE + OTHERS))
REACHED_AT_THE_END = frozenset(
    {"discovery", "joint_passage", "joint_passage_size", "navigation", "passage", "reverse_transport", "transport"}
)
"""Scenarios that terminate only when their goal is reached, which is success."""
BLOCK = 16
"""Starts that an environment draws at a time."""
GENERATOR = "generator"
TENSORS = "tensors"
COUNTERS = "counters"
RUNNING = "running"


@dataclass(frozen=True)
class VmasOptions:
    """Options of VMAS."""

    max_steps: int = 100
    """Steps after which an episode is truncated."""
    continuous: bool = True
    """Continuous actions (forces); otherwise discrete ones."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the scenario, such as {n_agents: 4}."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more")


class Simulator:
    """A batch of `num_envs` environments of a scenario, and their tensors as one array.

    `columns()` lists every tensor with a leading axis E that the scenario, its world and its entities hold. One step is
    taken at first, because some tensors are made in a step.
    """

    def __init__(self, scenario: str, num_envs: int, options: VmasOptions) -> None:
        self.env: Any = importlib.import_module("vmas").make_env(
            scenario, num_envs, continuous_actions=options.continuous, terminated_truncated=True, **options.kwargs
        )
        self.env.step([torch.zeros(num_envs, self.env.get_agent_action_size(agent)) for agent in self.env.agents])
        self.env.reset()

    def columns(self) -> Iterator[Tensor]:
        """Yield the tensors, each (E, ...), always in the same order."""
        scenario, world = self.env.scenario, self.env.world
        owners: list[Any] = [self.env, scenario, world]
        for entity in world.entities:
            owners += [entity, entity.state, getattr(entity, "action", None), getattr(entity, "dynamics", None)]
        for owner in owners:
            for _, value in sorted(vars(owner).items()) if owner is not None else ():
                if isinstance(value, Tensor) and value.ndim and len(value) == self.env.num_envs:
                    yield value

    def read(self) -> np.ndarray:
        """Return all tensors as (E, W) float64, which holds each of their numbers exactly."""
        return torch.cat([tensor.reshape(len(tensor), -1).double() for tensor in self.columns()], 1).numpy()

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write what `read` returned into the environments `rows` (K,); `values` is (K, W)."""
        given, first = torch.from_numpy(values), 0
        for tensor in self.columns():
            width = tensor[0].numel()
            part = given[:, first : first + width].reshape(len(rows), *tensor.shape[1:])
            tensor[rows] = part.to(tensor.dtype)
            first += width


class VmasVector:
    """`num_envs` environments of one scenario in one batch of tensors; see `marl.protocols.VectorEnv`.

    Every environment draws its starts from a random stream of its own, so that no environment depends on another. It
    draws BLOCK starts at a time in a second simulator, because a simulator resets one environment as slowly as many.
    Observations and actions of unequal agents are padded with zeros and masked. Rewards are individual. The final info
    of an episode has `success` where the scenario terminates only at its goal. Raises ConfigError for a scenario that
    cannot be made.
    """

    def __init__(self, scenario: str, num_envs: int, options: VmasOptions | None = None) -> None:
        options = options or VmasOptions()
        self._success, self._restorable = scenario in REACHED_AT_THE_END, scenario in RESTORABLE
        try:
            self._simulator = Simulator(scenario, num_envs, options)
            self._pool = Simulator(scenario, BLOCK, options) if self._restorable else None
        except Exception as error:
            raise ConfigError(
                f"vmas/{scenario}: cannot be made with {options.kwargs}: {type(error).__name__}: {error}"
            ) from error
        self._env = self._simulator.env
        self._max_steps = options.max_steps
        self.spec = self._build_spec(scenario, options)
        widths = self.spec.action_sizes
        self._mask = np.repeat((np.arange(self.spec.action_size) < np.array(widths)[:, None])[None], num_envs, axis=0)
        self._ranges = [
            torch.as_tensor(np.stack([space.low, space.high])) if options.continuous else None
            for space in self._env.action_space
        ]
        self._alive = np.ones((num_envs, self.spec.num_agents), dtype=bool)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._blocks: dict[int, np.ndarray] = {}
        self._counters = np.zeros((num_envs, 3), dtype=np.int64)
        self._steps, self._block_seeds, self._used = self._counters.T

    def _build_spec(self, scenario: str, options: VmasOptions) -> EnvSpec:
        names = tuple(agent.name for agent in self._env.agents)
        shapes: list[tuple[int, ...]] = [
            tuple(getattr(space, "shape", None) or ()) for space in self._env.observation_space
        ]
        if any(len(shape) != 1 for shape in shapes):
            raise ConfigError(f"vmas/{scenario}: observations of shapes {shapes} are not supported; give vectors")
        widths = tuple(shape[0] for shape in shapes)
        if options.continuous:
            sizes = tuple(space.shape[0] for space in self._env.action_space)
            action: spaces.Space = spaces.Box(-1.0, 1.0, (max(sizes),), np.float32)
        else:
            sizes = tuple(int(space.n) for space in self._env.action_space)
            action = spaces.Discrete(max(sizes))
        types = [name.rstrip("0123456789").rstrip("_") for name in names]
        spaces_of_type: dict[str, set[tuple[int, int]]] = {kind: set() for kind in types}
        for kind, width, size in zip(types, widths, sizes, strict=True):
            spaces_of_type[kind].add((width, size))
        return EnvSpec(
            name=f"vmas/{scenario}",
            agents=names,
            observation_space=spaces.Box(-np.inf, np.inf, (max(widths),), np.float32),
            action_space=action,
            max_steps=options.max_steps,
            team_reward=False,
            agent_types=tuple(
                kind if len(spaces_of_type[kind]) == 1 else name for kind, name in zip(types, names, strict=True)
            ),
            observation_sizes=widths,
            action_sizes=sizes,
        )

    @property
    def num_envs(self) -> int:
        """Number of environments E."""
        return self._env.num_envs

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Start E episodes, one for each seed."""
        if len(seeds) != self.num_envs:
            raise ConfigError(f"{self.spec.name}: {len(seeds)} seeds for {self.num_envs} environments; give one each")
        for index, seed in enumerate(seeds):
            self._seed(index, seed)
        self._start(np.arange(self.num_envs))
        return self._observe()

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Start an episode in one environment."""
        if seed is not None:
            self._seed(index, seed)
        self._start(np.array([index]))
        return self._observe()

    def _seed(self, index: int, seed: int) -> None:
        """Restart the random stream of an environment."""
        self._generators[index] = np.random.default_rng(seed)
        self._blocks.pop(index, None)

    def _start(self, rows: np.ndarray) -> None:
        """Start an episode in the environments `rows` (K,)."""
        self._steps[rows] = 0
        if self._pool is None:
            for index in rows.tolist():
                self._env.seed(self._draw(index))
                self._env.reset_at(index, return_observations=False)
            return
        starts = []
        for index in rows.tolist():
            if index not in self._blocks or self._used[index] == BLOCK:
                self._block_seeds[index], self._used[index] = self._draw(index), 0
                self._blocks[index] = self._read_block(index)
            starts.append(self._blocks[index][self._used[index]])
            self._used[index] += 1
        self._simulator.write(rows, np.stack(starts))

    def _draw(self, index: int) -> int:
        """Return the next seed of an environment's random stream."""
        return int(self._generators[index].integers(2**31))

    def _read_block(self, index: int) -> np.ndarray:
        """Return the starts (BLOCK, W) that belong to the seed of an environment's block."""
        assert self._pool is not None
        self._pool.env.reset(seed=int(self._block_seeds[index]))
        return self._pool.read()

    def step(self, action: np.ndarray, autoreset: bool = True) -> VectorStep:
        """Act with (E, N, A) float32 in [-1, 1], scaled to each agent's range, or (E, N) int64.

        Resets the environments whose episode ends, unless `autoreset` is False.
        """
        observations, rewards, terminated, _, _ = self._env.step(self._own_actions(action))
        self._steps += 1
        terminated = terminated.numpy().copy()
        truncated = (self._steps >= self._max_steps) & ~terminated
        reward = torch.stack([own.reshape(-1) for own in rewards], 1).float().numpy()  # (E, N)
        obs, final = self._padded(observations), None
        if len(ended := np.flatnonzero(terminated | truncated)):
            infos = tuple({"success": float(terminated[index])} if self._success else {} for index in ended)
            final = Final(ended, Obs(obs.agents[ended], self._alive[ended], self._mask[ended]), infos)
            if autoreset:
                self._start(ended)
                obs = self._observe()
        return VectorStep(obs, reward, terminated, truncated, final)

    def _own_actions(self, action: np.ndarray) -> list[Tensor]:
        """Return one tensor (E, A_i) for each agent, in the range that the simulator takes."""
        given = torch.from_numpy(np.ascontiguousarray(action))
        own = []
        for agent, (limits, size) in enumerate(zip(self._ranges, self.spec.action_sizes, strict=True)):
            if limits is None:
                own.append(given[:, agent, None])
            else:
                low, high = limits
                own.append((low + high) / 2.0 + given[:, agent, :size].clamp(-1.0, 1.0) * ((high - low) / 2.0))
        return own

    def _observe(self) -> Obs:
        """Return the observation of all environments."""
        (observations,) = self._env.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )
        return self._padded(observations)

    def _padded(self, observations: Sequence[Tensor]) -> Obs:
        agents = np.zeros((self.num_envs, self.spec.num_agents, self.spec.observation_size), dtype=np.float32)
        for agent, own in enumerate(observations):
            agents[:, agent, : own.shape[1]] = own.numpy()
        return Obs(agents, self._alive, self._mask)

    def render(self, index: int = 0) -> np.ndarray:
        """Return a picture of one environment, (H, W, 3) uint8."""
        return np.asarray(self._env.render(mode="rgb_array", env_index=index))

    def get_state(self) -> list[State | None]:
        """Return one state for each environment: its row of every tensor of the simulator, and its random stream.

        States are None unless the scenario is one of RESTORABLE.
        """
        if not self._restorable:
            return [None] * self.num_envs
        return [
            {GENERATOR: generator.bit_generator.state, COUNTERS: counters.copy(), TENSORS: row}
            for generator, counters, row in zip(self._generators, self._counters, self._simulator.read(), strict=True)
        ]

    def set_state(self, states: Sequence[State]) -> Obs:
        """Continue from `get_state`. Raises RuntimeError for a scenario whose state cannot be saved."""
        if not self._restorable:
            raise RuntimeError(f"{self.spec.name} cannot restore a state; its get_state is None")
        for index, state in enumerate(states):
            self._generators[index].bit_generator.state = state[GENERATOR]
            self._counters[index] = state[COUNTERS]
            self._blocks[index] = self._read_block(index)
        self._simulator.write(np.arange(self.num_envs), np.stack([state[TENSORS] for state in states]))
        return self._observe()

    def close(self) -> None:
        """Release nothing: the simulator holds tensors only."""


class VmasEnv:
    """One environment, without autoreset; see `marl.protocols.Env`."""

    def __init__(self, scenario: str, options: VmasOptions | None = None) -> None:
        self._batch = VmasVector(scenario, 1, options)
        self.spec = self._batch.spec
        self._running = False

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode. A seed restarts the random stream."""
        self._running = True
        return self._first(self._batch.reset_at(0, seed))

    def step(self, action: np.ndarray) -> Step:
        """Act with (N, A) float32 or (N,) int64. Raises RuntimeError without a running episode."""
        if not self._running:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        step = self._batch.step(np.asarray(action)[None], autoreset=False)
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        self._running = not (terminated or truncated)
        info = {} if step.final is None else step.final.info[0]
        return Step(self._first(step.obs), step.reward[0], terminated, truncated, info)

    def _first(self, obs: Obs) -> Obs:
        assert obs.action_mask is not None
        return Obs(obs.agents[0], obs.alive[0], obs.action_mask[0])

    def render(self) -> np.ndarray:
        """Return a picture, (H, W, 3) uint8."""
        return self._batch.render(0)

    def get_state(self) -> State | None:
        """Return the simulator's tensors and the random stream."""
        state = self._batch.get_state()[0]
        return None if state is None else state | {RUNNING: self._running}

    def set_state(self, state: State) -> Obs:
        """Continue from `get_state`."""
        self._running = bool(state[RUNNING])
        inner = {name: value for name, value in state.items() if name != RUNNING}
        return self._first(self._batch.set_state([inner]))

    def close(self) -> None:
        """Release nothing: the simulator holds tensors only."""


def external(_: str, options: Any) -> list[str]:
    """Return the keyword arguments of the scenario, which may name files."""
    return named_kwargs(options)


def batch(task: str, num_envs: int, threads: int = 1, **options: Any) -> VmasVector:  # noqa: ARG001
    """Return `num_envs` environments of a scenario. torch's own threads step them."""
    return VmasVector(task, num_envs, VmasOptions(**options))


@register_env(
    "vmas",
    options=VmasOptions,
    make_vector=batch,
    tasks=SCENARIOS,
    requires=("vmas",),
    install="pip install 'seqmarl[vmas]'",
    summary="teams of robots on a plane, simulated in batches by torch; continuous or discrete actions",
    external=external,
)
def make(task: str, **options: Any) -> VmasEnv:
    """Return one environment of a scenario. Raises UnknownNameError for an unknown one."""
    if task not in SCENARIOS:
        raise UnknownNameError(unknown_name_message("task of vmas", task, SCENARIOS))
    return VmasEnv(task, VmasOptions(**options))
