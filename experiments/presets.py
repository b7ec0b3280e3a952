"""Tuned settings by environment and agent, as flat overrides of the defaults.

A key is (environment or family, agent). The most specific one is used, alone.
"""

from typing import Any

from marl.config import RunConfig, default_config, override
from marl.errors import UnknownNameError
from marl.registry import closest

TOY: dict[str, Any] = {
    "num_envs": 32,
    "rollout_steps": 16,
    "steps": 50_000,
    "epochs": 5,
    "minibatches": 1,
    "learning_rate": 1e-3,
    "entropy_coef": 0.02,
    "eval_interval": 20,
    "eval_episodes": 16,
}

MUJOCO: dict[str, Any] = {
    "num_envs": 40,
    "rollout_steps": 100,
    "minibatches": 40,
    "epochs": 10,
    "learning_rate": 5e-5,
    "clip": 0.05,
    "value_clip": 0.05,
    "entropy_coef": 0.001,
    "max_grad_norm": 0.5,
    "eval_interval": 25,
    "eval_episodes": 10,
}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("toy", "mat"): TOY,
    ("toy", "mappo"): TOY,
    ("toy", "ippo"): TOY,
    ("mamujoco", "mat"): MUJOCO,
    ("mamujoco", "mappo"): MUJOCO,
    ("mamujoco", "ippo"): MUJOCO,
}


def choose(env: str, agent: str) -> tuple[RunConfig, str]:
    """The configuration for an environment and an agent, and where it comes from in words."""
    family = env.replace(":", "/").partition("/")[0]
    for key in ((env, agent), (family, agent)):
        if key in PRESETS:
            return override(default_config(env, agent), PRESETS[key]), f"preset {key[0]} + {key[1]}"
    return default_config(env, agent), f"defaults (no preset for {env} + {agent})"


def by_name(name: str, env: str, agent: str) -> tuple[RunConfig, str]:
    """The preset called `ENV+AGENT`, applied to this environment and agent; `none` is the defaults."""
    if name == "none":
        return default_config(env, agent), "defaults"
    names = {f"{key[0]}+{key[1]}": changes for key, changes in PRESETS.items()}
    if name not in names:
        raise UnknownNameError(closest("preset", name, [*names, "none"]))
    return override(default_config(env, agent), names[name]), f"preset {name}"
