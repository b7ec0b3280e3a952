"""The environments: a batch of battles with same-step autoreset, and one battle."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from logging import getLogger
from typing import TYPE_CHECKING

import gymnasium
import numpy as np

from marl.envs.smac import SmacOptions
from marl.envs.smac.engine import battle as engine
from marl.envs.smac.engine import scenario as chance
from marl.envs.smac.engine.combat import World
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
    must_compile,
)
from marl.envs.smac.engine.thread_pool import ThreadPool, useful_threads
from marl.envs.smac.maps import TEAM_TASKS, UNIT_TYPES, BattleMap, load_map
from marl.envs.smac.render.text import draw_text
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.protocols import State
from marl.types import EnvSpec, Final, Obs, Step, VectorStep

if TYPE_CHECKING:
    from marl.envs.smac.render.video import BattleVideo
    from marl.envs.smac.sc2.backend import SC2Battles


class BattleBuffers:
    """E battles on one map under SMAC's rules, whoever plays them: buffers, spec, the check of actions, infos."""

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
        """Those of each environment where teams are drawn, else (1, ...) of all; see `combat.one_world`."""
        self.ignore = options.unavailable_action == "ignore"
        self._warned = False
        self.spec = self._spec()
        agents, units = self.rules.agents, self.world.units
        self.battle = engine.Battle(
            unit_float=np.zeros((num_envs, FLOAT_FIELDS, units)),
            unit_int=np.zeros((num_envs, INT_FIELDS, units), np.int64),
            counters=np.zeros((num_envs, COUNTER_FIELDS), np.int64),
        )
        self.view = engine.View(
            seen=np.zeros((num_envs, agents, self.rules.observation_size), np.float32),
            state=np.zeros((num_envs, self.rules.state_size), np.float32),
            mask=np.zeros((num_envs, agents, self.rules.actions), bool),
            alive=np.zeros((num_envs, agents), bool),
            reward=np.zeros((num_envs, agents), np.float32),
            outcome=np.zeros(num_envs, np.int64),
            terminated=np.zeros(num_envs, bool),
            truncated=np.zeros(num_envs, bool),
        )
        self._sides = np.stack([np.arange(units) < agents, np.arange(units) >= agents], 1).astype(int)
        self.obs = Obs(self.view.seen, self.view.alive, self.view.mask, self.view.state)
        self.restarted: np.ndarray | None = None
        """(E,) bool where a game was lost in the last step; None where none can be."""

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
        """The map, with the types of one environment's units."""
        if not self.map.kinds:
            return self.map
        return replace(self.map, types=tuple(self.map.kinds[kind] for kind in self.battle.unit_int[index, KIND]))

    def world_at(self, index: int) -> World:
        """The world of one environment."""
        row = index if self.map.kinds else 0
        return self.world._replace(stats=self.stats[row], start=self.starts[row])

    def refresh(self) -> None:
        """Bring the observations up to date with the units."""
        for index in range(len(self.battle.counters)):
            engine.observe_battle(self.rules, self.world_at(index), self.battle, self.view, index)

    def check(self, action: np.ndarray) -> np.ndarray:
        """The actions (E, N) as int64. Raises where one cannot be taken, before anything has moved."""
        expected = self.view.alive.shape
        if action.shape != expected:
            raise EnvironmentContractError(f"{self.spec.name}: the action's shape is {action.shape}; give {expected}")
        if action.dtype.kind not in "iu":
            raise EnvironmentContractError(f"{self.spec.name}: actions are of type {action.dtype}; give whole numbers")
        action = np.ascontiguousarray(action, np.int64)
        view = self.view
        env, agent = engine.find_unavailable(view.mask, view.alive, self.battle.counters, action, self.ignore)
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
        """Of episodes that have just ended. The first one with ignored actions is logged."""
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
        unit_float, steps = self.battle.unit_float[index], int(self.battle.counters[index, STEPS])
        return draw_text(self.map_at(index), unit_float, f"{self.spec.name}, step {steps} of {self.rules.limit}")


class Battles(BattleBuffers):
    """E battles in the embedded engine, and their threads; it does not begin episodes by itself."""

    def __init__(self, task: str, num_envs: int, threads: int, options: SmacOptions) -> None:
        super().__init__(task, num_envs, options)
        if threads < 1:
            raise ConfigError(f"{self.spec.name}: {threads} threads; give 1 or more")
        if must_compile(engine.advance):
            print("smac: compiling the battle engine, once, in about 20 seconds ...", file=sys.stderr, flush=True)
        self._action = np.zeros((num_envs, self.rules.agents), np.int64)
        self._threads = useful_threads(threads, num_envs * self.world.units)
        self.set_loops(self.world.loops)
        for index in range(num_envs):
            self.seed(index, None)

    def seed(self, index: int, seed: int | None) -> None:
        """Put one environment's random stream at the start that a seed names; None takes fresh entropy."""
        self.battle.counters[index, RANDOM] = random_stream(seed)

    def set_loops(self, loops: int) -> None:
        """How many game loops a step lasts."""
        self.world = self.world._replace(loops=loops)
        worlds = self.world._replace(stats=self.stats, start=self.starts)
        self._plain = tuple(tuple(part) for part in (self.rules, worlds, self.battle, self.view))
        scratches = [tuple(engine.new_scratch(self.world.units)) for _ in range(self._threads)]
        self._crew = ThreadPool(engine.advance, (*self._plain, self._action), scratches)

    def begin(self, indices: Sequence[int] | np.ndarray) -> None:
        indices = np.asarray(indices, np.int64)
        if self.map.kinds:
            chance.sample_teams(*self._plain[:2], self.battle.unit_int, self.battle.counters, indices)
        engine.restart(*self._plain, indices)

    def advance(self, action: np.ndarray) -> int:
        """One step of every battle, with results in `view`; returns how many ended. Raises for impossible actions."""
        self._action[:] = self.check(action)
        return self._crew.play()

    def get_state(self, index: int) -> State:
        arrays = {name: array[index].copy() for name, array in self.battle._asdict().items()}
        return {"map": self.map.name, **arrays}

    def set_state(self, index: int, state: State) -> None:
        """Raises CheckpointError for a state of another map. Call `refresh` before reading `obs`."""
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
            chance.fill_unit_stats(self.rules, self.world_at(index), self.battle.unit_int[index])

    def close(self) -> None:
        self._crew.close()


def open_battles(task: str, num_envs: int, threads: int, options: SmacOptions) -> "Battles | SC2Battles":
    """The battles of the backend that the options name."""
    if options.backend == "embedded":
        return Battles(task, num_envs, threads, options)
    if task in TEAM_TASKS:
        raise ConfigError(
            f"smac/{task}: backend sc2 plays SMAC's own maps, and only the embedded engine draws SMACv2's teams; "
            "choose backend=embedded"
        )
    from marl.envs.smac.sc2.backend import SC2Battles

    return SC2Battles(task, num_envs, options)


class SmacVector:
    """`num_envs` battles on one map; see `marl.protocols.VectorEnv`.

    The info of an ended episode: `success` (the battle was won), `dead_allies`, `dead_enemies`, and `restarted` where
    StarCraft II was lost in it: then the step pays nothing, truncates, and its last observation is the one before.
    """

    def __init__(self, task: str, num_envs: int, threads: int = 1, options: SmacOptions | None = None) -> None:
        self._battles = open_battles(task, num_envs, threads, options or SmacOptions())

    @property
    def spec(self) -> EnvSpec:
        return self._battles.spec

    @property
    def num_envs(self) -> int:
        return len(self._battles.battle.counters)

    def reset(self, seeds: Sequence[int]) -> Obs:
        self._check_count("seeds", seeds)
        for index, seed in enumerate(seeds):
            self._battles.seed(index, seed)
        self._battles.begin(np.arange(self.num_envs))
        return self._battles.obs

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        if not 0 <= index < self.num_envs:
            count = self.num_envs
            raise ConfigError(f"{self.spec.name}: there is no environment {index}; there are {count}, from 0")
        if seed is not None:
            self._battles.seed(index, seed)
        self._battles.begin([index])
        return self._battles.obs

    def step(self, action: np.ndarray) -> VectorStep:
        battles = self._battles
        view, count = battles.view, battles.advance(np.asarray(action))
        terminated, truncated, reward = view.terminated.copy(), view.truncated.copy(), view.reward.copy()
        restarted = None if battles.restarted is None else battles.restarted.copy()
        final = None
        if count:
            ended = (terminated | truncated).nonzero()[0]
            last = Obs(*(array.take(ended, 0) for array in (view.seen, view.alive, view.mask, view.state)))
            final = Final(ended, last, battles.infos(ended))
            battles.begin(ended)
        return VectorStep(battles.obs, reward, terminated, truncated, final, restarted)

    def render(self, index: int = 0) -> str:
        return self._battles.render(index)

    def get_state(self) -> list[State | None]:
        return [self._battles.get_state(index) for index in range(self.num_envs)]

    def set_state(self, states: Sequence[State]) -> Obs:
        self._check_count("states", states)
        for index, state in enumerate(states):
            self._battles.set_state(index, state)
        self._battles.refresh()
        return self._battles.obs

    def close(self) -> None:
        self._battles.close()

    def _check_count(self, what: str, given: Sequence[object]) -> None:
        if len(given) != self.num_envs:
            raise ConfigError(f"{self.spec.name}: {len(given)} {what} for {self.num_envs} environments; give one each")


class SmacEnv:
    """One battle, a batch of one that waits for `reset`; see `marl.protocols.Env`."""

    def __init__(self, task: str, options: SmacOptions | None = None) -> None:
        self._battles = open_battles(task, 1, 1, options or SmacOptions())

    @property
    def spec(self) -> EnvSpec:
        return self._battles.spec

    def reset(self, seed: int | None = None) -> Obs:
        if seed is not None:
            self._battles.seed(0, seed)
        self._battles.begin([0])
        return self._obs()

    def step(self, action: np.ndarray) -> Step:
        view, ended = self._battles.view, self._battles.advance(np.asarray(action)[None])
        info = self._battles.infos([0])[0] if ended else {}
        lost = self._battles.restarted is not None and bool(self._battles.restarted[0])
        terminated, truncated = bool(view.terminated[0]), bool(view.truncated[0])
        return Step(self._obs(), view.reward[0].copy(), terminated, truncated, info, restarted=lost)

    def render(self) -> str:
        return self._battles.render(0)

    def film(self) -> "BattleVideo | None":
        """Moving pictures of the battle from now on; see there. None for StarCraft II, which keeps replays instead.

        Raises MissingDependencyError without Pillow.
        """
        if not isinstance(self._battles, Battles):
            return None
        from marl.envs.smac.render.video import BattleVideo

        return BattleVideo(self._battles)

    def get_state(self) -> State | None:
        return self._battles.get_state(0)

    def set_state(self, state: State) -> Obs:
        self._battles.set_state(0, state)
        self._battles.refresh()
        return self._obs()

    def close(self) -> None:
        self._battles.close()

    def _obs(self) -> Obs:
        view = self._battles.view
        return Obs(view.seen[0], view.alive[0], view.mask[0], view.state[0])
