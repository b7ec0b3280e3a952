"""Cooperative tasks of other packages under names of their own: `lbf/`, `rware/`, `mpe/`, `sisl/` and `magent/`.

The environments are those of the packages, reached through the bridges `gymnasium:` and `pettingzoo:`. A family adds
short task names, the team's reward, a success metric where the task defines one, and the install line.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium
import numpy as np

from marl.envs.gymnasium import make as make_gymnasium
from marl.envs.pettingzoo import make as make_pettingzoo
from marl.envs.wrappers import EnvWrapper
from marl.errors import ConfigError, UnknownNameError
from marl.protocols import Env
from marl.registry import register_env, unknown_name_message
from marl.types import EnvSpec, Step

Reward = Literal["team", "individual"]
"""Reward of an agent: the sum over the team, or its own."""

MPE_VERSIONS = {
    "simple": "simple_v3",
    "adversary": "simple_adversary_v3",
    "crypto": "simple_crypto_v3",
    "push": "simple_push_v3",
    "reference": "simple_reference_v3",
    "speaker_listener": "simple_speaker_listener_v4",
    "spread": "simple_spread_v3",
    "tag": "simple_tag_v3",
    "world_comm": "simple_world_comm_v3",
}
SISL_VERSIONS = {"multiwalker": "multiwalker_v9", "pursuit": "pursuit_v5"}
MAGENT_VERSIONS = {
    "adversarial_pursuit": "adversarial_pursuit_v4",
    "battle": "battle_v4",
    "battlefield": "battlefield_v5",
    "combined_arms": "combined_arms_v6",
    "gather": "gather_v5",
    "tiger_deer": "tiger_deer_v4",
}
ID_PREFIXES = {"lbf": "Foraging-", "rware": "rware-"}
LBF_TASKS = ("5x5-2p-1f", "8x8-2p-2f-coop", "2s-8x8-2p-2f-coop", "10x10-3p-3f", "15x15-3p-4f", "15x15-4p-3f")
RWARE_TASKS = ("tiny-2ag", "tiny-4ag", "small-4ag", "tiny-2ag-hard", "tiny-4ag-hard", "small-4ag-hard")


@dataclass(frozen=True)
class TeamTaskOptions:
    """Options of a team task."""

    max_steps: int | None = None
    """Steps after which an episode is truncated; None is the task's own limit."""
    reward: Reward = "team"
    """Reward of each agent: team, the sum over the team, as tables of cooperative tasks report it, or individual."""
    kwargs: dict[str, Any] | None = None
    """Further keyword arguments of the package's environment."""

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps={self.max_steps}; give 1 or more, or None")


@dataclass(frozen=True)
class IndividualTaskOptions(TeamTaskOptions):
    """Options of a task whose agents have rewards of their own."""

    reward: Reward = "individual"
    """Reward of each agent: individual, its own, or team, the sum over the team."""


class TeamReward(EnvWrapper):
    """Give every agent the sum of the rewards of all agents."""

    @property
    def spec(self) -> EnvSpec:
        return replace(self.env.spec, team_reward=True)

    def step(self, action: np.ndarray) -> Step:
        step = super().step(action)
        return replace(step, reward=np.full_like(step.reward, step.reward.sum(dtype=np.float64)))


class Success(EnvWrapper):
    """Add `success` to the info of the last step of an episode: 1 if `reached()`, else 0."""

    def __init__(self, env: Env, reached: Callable[[], bool]) -> None:
        super().__init__(env)
        self.reached = reached

    def step(self, action: np.ndarray) -> Step:
        step = super().step(action)
        if not (step.terminated or step.truncated):
            return step
        return replace(step, info={**step.info, "success": float(self.reached())})


class Named(EnvWrapper):
    """Give an environment the name of its task, and the team's reward if it asks for that."""

    def __init__(self, env: Env, name: str) -> None:
        super().__init__(env)
        self._name = name

    @property
    def spec(self) -> EnvSpec:
        return replace(self.env.spec, name=self._name)


def registered(name: str, module: str, gymnasium_id: str, max_steps: int | None, kwargs: dict[str, Any] | None) -> Env:
    """Return an environment that `module` registers with Gymnasium.

    Raises UnknownNameError with the closest tasks if it registers none of that id.
    """
    importlib.import_module(module)
    if gymnasium_id not in gymnasium.registry:
        family, _, task = name.partition("/")
        known = [task_name(entry) for entry in gymnasium.registry if entry.startswith(ID_PREFIXES[family])]
        raise UnknownNameError(unknown_name_message(f"task of {family}", task, known))
    return make_gymnasium(f"{module}:{gymnasium_id}", kwargs=kwargs, max_steps=max_steps)


def task_name(gymnasium_id: str) -> str:
    """Return the short name of a registered id: `Foraging-2s-8x8-2p-2f-coop-v3` is `2s-8x8-2p-2f-coop`."""
    return gymnasium_id.partition("-")[2].rpartition("-v")[0]


def innermost(env: Any) -> Any:
    """Return the environment inside all wrappers and bridges."""
    while hasattr(env, "env"):
        env = env.env
    return env


def finished(env: Env, name: str, reward: Reward) -> Env:
    """Return the environment under the task's name with the reward that the options ask for."""
    return Named(TeamReward(env) if reward == "team" else env, name)


@register_env(
    "lbf",
    options=TeamTaskOptions,
    tasks=LBF_TASKS,
    accepts_other_tasks=True,
    requires=("lbforaging",),
    install="pip install 'seqmarl[lbf]'",
    summary="level-based foraging: agents of different levels load food together; discrete actions",
)
def make_lbf(
    task: str, max_steps: int | None = None, reward: Reward = "team", kwargs: dict[str, Any] | None = None
) -> Env:
    """Return `Foraging-<task>-v3`. Success is that no food is left.

    A task is named as the package does without the prefix and the version: `8x8-2p-2f-coop`; `2s-` in front limits the
    sight to two cells. Raises UnknownNameError for an unregistered one.
    """
    env = registered(f"lbf/{task}", "lbforaging", f"Foraging-{task}-v3", max_steps, kwargs)
    game = innermost(env)
    return finished(Success(env, lambda: not game.field.any()), f"lbf/{task}", reward)


@register_env(
    "rware",
    options=TeamTaskOptions,
    tasks=RWARE_TASKS,
    accepts_other_tasks=True,
    requires=("rware",),
    install="pip install 'seqmarl[rware]'",
    summary="robotic warehouse: robots deliver requested shelves; sparse rewards, discrete actions",
)
def make_rware(
    task: str, max_steps: int | None = None, reward: Reward = "team", kwargs: dict[str, Any] | None = None
) -> Env:
    """Return `rware-<task>-v2`. The return is the number of delivered shelves. Raises UnknownNameError."""
    env = registered(f"rware/{task}", "rware", f"rware-{task}-v2", max_steps, kwargs)
    return finished(env, f"rware/{task}", reward)


@register_env(
    "mpe",
    options=IndividualTaskOptions,
    tasks=tuple(MPE_VERSIONS),
    requires=("mpe2",),
    install="pip install 'seqmarl[mpe]'",
    summary="multi-agent particle environments: cooperation, communication and pursuit on a plane",
)
def make_mpe(
    task: str, max_steps: int | None = None, reward: Reward = "individual", kwargs: dict[str, Any] | None = None
) -> Env:
    """Return the particle environment `simple_<task>` of mpe2."""
    env = make_pettingzoo(f"mpe2.{MPE_VERSIONS[task]}", kwargs=kwargs, max_steps=max_steps)
    return finished(env, f"mpe/{task}", reward)


@register_env(
    "sisl",
    options=IndividualTaskOptions,
    tasks=tuple(SISL_VERSIONS),
    requires=("pygame",),
    install="pip install 'pettingzoo[sisl]'",
    summary="walkers that carry a package, and pursuers that surround evaders",
)
def make_sisl(
    task: str, max_steps: int | None = None, reward: Reward = "individual", kwargs: dict[str, Any] | None = None
) -> Env:
    """Return the environment of `pettingzoo.sisl`."""
    env = make_pettingzoo(f"pettingzoo.sisl.{SISL_VERSIONS[task]}", kwargs=kwargs, max_steps=max_steps)
    return finished(env, f"sisl/{task}", reward)


@register_env(
    "magent",
    options=IndividualTaskOptions,
    tasks=tuple(MAGENT_VERSIONS),
    requires=("magent2",),
    install="pip install magent2",
    summary="battles and pursuits of many agents on a grid; teams that shrink",
)
def make_magent(
    task: str, max_steps: int | None = None, reward: Reward = "individual", kwargs: dict[str, Any] | None = None
) -> Env:
    """Return the environment of magent2. Observations are local pictures, flattened."""
    env = make_pettingzoo(f"magent2.environments.{MAGENT_VERSIONS[task]}", kwargs=kwargs, max_steps=max_steps)
    return finished(env, f"magent/{task}", reward)
