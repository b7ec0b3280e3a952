"""Battles of a batch of environments: buffers, checks of actions, infos, and the embedded engine."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger

import gymnasium
import numpy as np

from marl.envs.compiling import must_compile
from marl.envs.smac.engine.battle import Battle, make_scratch
from marl.envs.smac.engine.compile_map import build_rules, build_world, entities, random_stream
from marl.envs.smac.engine.fields import (
    COUNTER_FIELDS,
    FLOAT_FIELDS,
    HEALTH,
    IGNORED,
    INT_FIELDS,
    KIND,
    RANDOM,
    STEPS,
    WON,
    World,
)
from marl.envs.smac.engine.scenario import fill_unit_stats, sample_teams
from marl.envs.smac.engine.thread_pool import ThreadPool, useful_threads
from marl.envs.smac.maps import UNIT_TYPES, BattleMap, load_map
from marl.envs.smac.options import SmacOptions
from marl.envs.smac.render.text import draw_text
from marl.envs.smac.task.step import View, advance, find_unavailable, observe_battle, restart
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.protocols import State
from marl.types import EnvSpec, Obs


class BattleBuffers:
    """Buffers, spec, checks of actions and infos of E battles on one map, for every backend."""

    def __init__(self, task: str, num_envs: int, options: SmacOptions) -> None:
        if num_envs < 1 or num_envs != int(num_envs):
            raise ConfigError(f"smac/{task}: {num_envs} environments; give a whole number of 1 or more")
        self.map = load_map(task)
        if options.layout == "entities":
            self.map = replace(self.map, ally_types=UNIT_TYPES, enemy_types=UNIT_TYPES)
        self.rules = build_rules(self.map, options)
        self.world = build_world(self.map, options)
        count = num_envs if self.map.kinds else 1
        self.stats, self.starts = (np.stack([part] * count) for part in (self.world.stats, self.world.start))
        """Statistics and starts of each environment where teams are drawn, else (1, ...) for all."""
        self.ignore = options.unavailable_action == "ignore"
        self._warned = False
        self.spec = self._spec()
        agents, units = self.rules.agents, self.world.units
        self.battle = Battle(
            unit_float=np.zeros((num_envs, FLOAT_FIELDS, units)),
            unit_int=np.zeros((num_envs, INT_FIELDS, units), np.int64),
            counters=np.zeros((num_envs, COUNTER_FIELDS), np.int64),
        )
        self.view = View(
            obs=np.zeros((num_envs, agents, self.rules.observation_size), np.float32),
            state=np.zeros((num_envs, self.rules.state_size), np.float32),
            mask=np.zeros((num_envs, agents, self.rules.actions), bool),
            alive=np.zeros((num_envs, agents), bool),
            reward=np.zeros((num_envs, agents), np.float32),
            outcome=np.zeros(num_envs, np.int64),
            terminated=np.zeros(num_envs, bool),
            truncated=np.zeros(num_envs, bool),
        )
        self._sides = np.stack([np.arange(units) < agents, np.arange(units) >= agents], 1).astype(int)
        self.obs = Obs(self.view.obs, self.view.alive, self.view.mask, self.view.state)
        self.restarted: np.ndarray | None = None
        """(E,) bool: the game was lost in the last step. None for backends that lose no games."""

    def _spec(self) -> EnvSpec:
        groups = self.map.types[: self.map.num_agents]
        names = groups
        if self.map.kinds:
            groups, names = ("unit",) * len(groups), ("agent",) * len(groups)
        return EnvSpec(
            name=f"smac/{self.map.name}",
            agents=tuple(f"{name}_{index}" for index, name in enumerate(names)),
            observation_space=gymnasium.spaces.Box(-1.0, 1.0, (self.rules.observation_size,), np.float32),
            action_space=gymnasium.spaces.Discrete(self.rules.actions),
            max_steps=self.rules.limit,
            state_space=gymnasium.spaces.Box(-np.inf, np.inf, (self.rules.state_size,), np.float32),
            agent_types=groups,
            entities=entities(self.rules, self.map) if self.rules.entities else None,
        )

    def map_at(self, index: int) -> BattleMap:
        """Return the map with the unit types of one environment."""
        if not self.map.kinds:
            return self.map
        return replace(self.map, types=tuple(self.map.kinds[kind] for kind in self.battle.unit_int[index, KIND]))

    def world_at(self, index: int) -> World:
        """Return the world of one environment."""
        row = index if self.map.kinds else 0
        return self.world._replace(stats=self.stats[row], start=self.starts[row])

    def refresh(self) -> None:
        """Update all observations from the units."""
        for index in range(len(self.battle.counters)):
            observe_battle(self.rules, self.world_at(index), self.battle, self.view, index)

    def check(self, action: np.ndarray) -> np.ndarray:
        """Return the actions (E, N) as int64.

        Raises EnvironmentContractError for actions of another shape or type and for unavailable ones, and RuntimeError
        without a running episode, before anything has moved.
        """
        expected = self.view.alive.shape
        if action.shape != expected:
            raise EnvironmentContractError(f"{self.spec.name}: the action's shape is {action.shape}; give {expected}")
        if action.dtype.kind not in "iu":
            raise EnvironmentContractError(f"{self.spec.name}: actions are of type {action.dtype}; give whole numbers")
        action = np.ascontiguousarray(action, np.int64)
        view = self.view
        env, agent = find_unavailable(view.mask, view.alive, self.battle.counters, action, self.ignore)
        if env >= 0:
            if agent < 0:
                raise RuntimeError(f"{self.spec.name}: environment {env} has no running episode; call reset first")
            available = np.flatnonzero(self.view.mask[env, agent]).tolist()
            raise EnvironmentContractError(
                f"{self.spec.name}: in environment {env}, agent {agent} ({self.spec.agents[agent]}) cannot take action "
                f"{action[env, agent]}; available: {available}. Choose from the mask of the same observation"
            )
        return action

    def infos(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, float], ...]:
        """Return the infos of episodes that have just ended. Logs the first one with ignored actions."""
        won = (self.view.outcome.take(indices) == WON).tolist()
        dead = ((self.battle.unit_float.take(indices, 0)[:, HEALTH] <= 0.0) @ self._sides).tolist()
        infos = tuple(
            {"success": float(win), "dead_allies": float(allies), "dead_enemies": float(enemies)}
            for win, (allies, enemies) in zip(won, dead, strict=True)
        )
        if self.restarted is not None:
            for info, restarted in zip(infos, self.restarted[indices], strict=True):
                info.update({"restarted": 1.0} if restarted else {})
        if self.ignore:
            ignored = self.battle.counters[indices, IGNORED].tolist()
            for info, actions in zip(infos, ignored, strict=True):
                info["ignored_actions"] = float(actions)
            self._warn(max(ignored))
        return infos

    def _warn(self, ignored: int) -> None:
        if ignored and not self._warned:
            self._warned = True
            getLogger("marl").warning(
                "%s: %d actions of an episode were not available and did nothing; later ones are only counted, as "
                "ignored_actions in the info",
                self.spec.name,
                ignored,
            )

    def render(self, index: int) -> str:
        """Return one battle as text."""
        unit_float, steps = self.battle.unit_float[index], int(self.battle.counters[index, STEPS])
        return draw_text(self.map_at(index), unit_float, f"{self.spec.name}, step {steps} of {self.rules.limit}")


class Battles(BattleBuffers):
    """E battles in the embedded engine, and their threads. Episodes begin only with `begin`."""

    def __init__(self, task: str, num_envs: int, threads: int, options: SmacOptions) -> None:
        super().__init__(task, num_envs, options)
        if threads < 1:
            raise ConfigError(f"{self.spec.name}: {threads} threads; give 1 or more")
        if must_compile(advance):
            print("smac: compiling the battle engine, once, in about 20 seconds ...", file=sys.stderr, flush=True)
        self._action = np.zeros((num_envs, self.rules.agents), np.int64)
        self._threads = useful_threads(threads, num_envs * self.world.units)
        self.set_loops(self.world.loops)
        for index in range(num_envs):
            self.seed(index, None)

    def seed(self, index: int, seed: int | None) -> None:
        """Seed one environment's random stream. None takes fresh entropy."""
        self.battle.counters[index, RANDOM] = random_stream(seed)

    def set_loops(self, loops: int) -> None:
        """Set the number of game loops of a step."""
        self.world = self.world._replace(loops=loops)
        worlds = self.world._replace(stats=self.stats, start=self.starts)
        self._plain = tuple(tuple(part) for part in (self.rules, worlds, self.battle, self.view))
        scratches = [tuple(make_scratch(self.world.units)) for _ in range(self._threads)]
        self._pool = ThreadPool(advance, (*self._plain, self._action), scratches)

    def begin(self, indices: Sequence[int] | np.ndarray) -> None:
        """Begin an episode in each of the environments."""
        indices = np.asarray(indices, np.int64)
        if self.map.kinds:
            sample_teams(*self._plain[:2], self.battle.unit_int, self.battle.counters, indices)
        restart(*self._plain, indices)

    def advance(self, action: np.ndarray) -> int:
        """Play one step of every battle into `view`. Return the number of ended episodes. Raises as `check`."""
        self._action[:] = self.check(action)
        return self._pool.play()

    def get_state(self, index: int) -> State:
        """Return a copy of one battle's state."""
        arrays = {name: array[index].copy() for name, array in self.battle._asdict().items()}
        return {"map": self.map.name, **arrays}

    def set_state(self, index: int, state: State) -> None:
        """Restore one battle; `refresh` updates `obs`. Raises CheckpointError for a state of another map."""
        arrays = {name: np.asarray(state[name]) for name in self.battle._fields if name in state}
        for name, array in self.battle._asdict().items():
            if state.get("map") != self.map.name or name not in arrays or arrays[name].shape != array[index].shape:
                raise CheckpointError(
                    f"{self.spec.name}: the state was saved on the map {state.get('map')} or by another version; "
                    "begin a new episode"
                )
        for name, array in self.battle._asdict().items():
            array[index] = arrays[name]
        if self.map.kinds:
            fill_unit_stats(self.rules, self.world_at(index), self.battle.unit_int[index])

    def close(self) -> None:
        """End the threads."""
        self._pool.close()
