"""Environments: a batch of battles with same-step autoreset, and one battle."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from marl.envs.smac.battles import Battles
from marl.envs.smac.maps import TEAM_TASKS
from marl.envs.smac.options import SmacOptions
from marl.errors import ConfigError
from marl.protocols import State
from marl.types import EnvSpec, Final, Obs, Step, VectorStep

if TYPE_CHECKING:
    from marl.envs.smac.render.video import BattleVideo
    from marl.envs.smac.sc2.backend import SC2Battles


def open_battles(task: str, num_envs: int, threads: int, options: SmacOptions) -> "Battles | SC2Battles":
    """Return the battles of the chosen backend. Raises ConfigError for a SMACv2 scenario with backend=sc2."""
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

    The info of an ended episode has `success` (the battle was won), `dead_allies`, `dead_enemies`, and `restarted` if
    StarCraft II was lost in it. Then the step pays 0, truncates, and repeats the observation before.
    """

    def __init__(self, task: str, num_envs: int, threads: int = 1, options: SmacOptions | None = None) -> None:
        self._battles = open_battles(task, num_envs, threads, options or SmacOptions())

    @property
    def spec(self) -> EnvSpec:
        """Specification of the task."""
        return self._battles.spec

    @property
    def num_envs(self) -> int:
        """Number of battles E."""
        return len(self._battles.battle.counters)

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Begin an episode in every environment, with one seed each."""
        self._check_count("seeds", seeds)
        for index, seed in enumerate(seeds):
            self._battles.seed(index, seed)
        self._battles.begin(np.arange(self.num_envs))
        return self._battles.obs

    def reset_at(self, index: int, seed: int | None = None) -> Obs:
        """Begin an episode in one environment. Raises ConfigError for an index out of range."""
        if not 0 <= index < self.num_envs:
            count = self.num_envs
            raise ConfigError(f"{self.spec.name}: there is no environment {index}; there are {count}, from 0")
        if seed is not None:
            self._battles.seed(index, seed)
        self._battles.begin([index])
        return self._battles.obs

    def step(self, action: np.ndarray) -> VectorStep:
        """Play one step with actions (E, N), and restart ended episodes."""
        battles = self._battles
        view, count = battles.view, battles.advance(np.asarray(action))
        terminated, truncated, reward = view.terminated.copy(), view.truncated.copy(), view.reward.copy()
        restarted = None if battles.restarted is None else battles.restarted.copy()
        final = None
        if count:
            ended = (terminated | truncated).nonzero()[0]
            last = Obs(*(array.take(ended, 0) for array in (view.obs, view.alive, view.mask, view.state)))
            final = Final(ended, last, battles.infos(ended))
            battles.begin(ended)
        return VectorStep(battles.obs, reward, terminated, truncated, final, restarted)

    def render(self, index: int = 0) -> str:
        """Return one battle as text."""
        return self._battles.render(index)

    def get_state(self) -> list[State | None]:
        """Return the state of every environment, None for StarCraft II."""
        return [self._battles.get_state(index) for index in range(self.num_envs)]

    def set_state(self, states: Sequence[State]) -> Obs:
        """Restore the state of every environment. Return the observations."""
        self._check_count("states", states)
        for index, state in enumerate(states):
            self._battles.set_state(index, state)
        self._battles.refresh()
        return self._battles.obs

    def close(self) -> None:
        """End the battles."""
        self._battles.close()

    def _check_count(self, what: str, given: Sequence[object]) -> None:
        if len(given) != self.num_envs:
            raise ConfigError(f"{self.spec.name}: {len(given)} {what} for {self.num_envs} environments; give one each")


class SmacEnv:
    """One battle, a batch of one without autoreset; see `marl.protocols.Env`."""

    def __init__(self, task: str, options: SmacOptions | None = None) -> None:
        self._battles = open_battles(task, 1, 1, options or SmacOptions())

    @property
    def spec(self) -> EnvSpec:
        """Specification of the task."""
        return self._battles.spec

    def reset(self, seed: int | None = None) -> Obs:
        """Begin an episode."""
        if seed is not None:
            self._battles.seed(0, seed)
        self._battles.begin([0])
        return self._obs()

    def step(self, action: np.ndarray) -> Step:
        """Play one step with actions (N,)."""
        view, ended = self._battles.view, self._battles.advance(np.asarray(action)[None])
        info = self._battles.infos([0])[0] if ended else {}
        lost = self._battles.restarted is not None and bool(self._battles.restarted[0])
        terminated, truncated = bool(view.terminated[0]), bool(view.truncated[0])
        return Step(self._obs(), view.reward[0].copy(), terminated, truncated, info, restarted=lost)

    def render(self) -> str:
        """Return the battle as text."""
        return self._battles.render(0)

    def film(self) -> "BattleVideo | None":
        """Return moving pictures of the battle from now on, None for StarCraft II, which saves replays instead.

        Raises MissingDependencyError without Pillow.
        """
        if not isinstance(self._battles, Battles):
            return None
        from marl.envs.smac.render.video import BattleVideo

        return BattleVideo(self._battles)

    def get_state(self) -> State | None:
        """Return the state, None for StarCraft II."""
        return self._battles.get_state(0)

    def set_state(self, state: State) -> Obs:
        """Restore a state. Return the observation."""
        self._battles.set_state(0, state)
        self._battles.refresh()
        return self._obs()

    def close(self) -> None:
        """End the battle."""
        self._battles.close()

    def _obs(self) -> Obs:
        view = self._battles.view
        return Obs(view.obs[0], view.alive[0], view.mask[0], view.state[0])
