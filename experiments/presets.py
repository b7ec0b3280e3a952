"""Tuned settings by environment and agent, as flat overrides of the defaults.

A key is (environment or family, agent). The most specific one is used, alone.
"""

import dataclasses
from typing import Any

from marl.config import RunConfig, default_config, override
from marl.errors import UnknownNameError
from marl.registry import unknown_name_message

# Layer normalization of raw observations, as in the published networks, hides their mean and scale. Where no preset
# says that it helps, it is off. experiments/results/defaults.md has the search.
UNTUNED: dict[str, Any] = {"observation_layer_norm": False}

TOY: dict[str, Any] = {
    "num_envs": 32,
    "rollout_steps": 16,
    "steps": 60_000,
    "epochs": 5,
    "learning_rate": 1e-3,
    "entropy_coef": 0.05,
    "eval_interval": 20,
    "eval_episodes": 16,
}

# The first agent must keep exploring actions with a penalty until the second agent has learned to follow.
COORDINATION: dict[str, Any] = TOY | {"entropy_coef": 0.5}

# MAT's released script uses 40 minibatches, 10 epochs, clip 0.05 and a learning rate of 5e-5 on raw observations.
# These settings learn faster per step and need an eighth of the updates.
MUJOCO: dict[str, Any] = {
    "num_envs": 40,
    "rollout_steps": 100,
    "minibatches": 10,
    "epochs": 5,
    "learning_rate": 3e-4,
    "clip": 0.1,
    "entropy_coef": 0.001,
    "max_grad_norm": 0.5,
    "value_norm_decay": 0.95,
    "normalize_observations": True,
    "eval_interval": 25,
    "eval_episodes": 10,
}

# The papers' runs on dexterous hands discount with 0.96; users could not reproduce them with 0.99. Not tuned otherwise.
HANDS: dict[str, Any] = MUJOCO | {"gamma": 0.96, "rollout_steps": 75}

# MAPPO's paper uses one minibatch, 5 to 15 epochs and ten million steps. On the embedded engine, four minibatches
# per epoch learn the same in fewer steps.
SMAC: dict[str, Any] = {
    "num_envs": 32,
    "rollout_steps": 64,
    "steps": 500_000,
    "minibatches": 4,
    "epochs": 5,
    "learning_rate": 5e-4,
    "entropy_coef": 0.01,
    "eval_interval": 10,
    "eval_episodes": 32,
}

# MAPPO's paper uses one minibatch, twenty million steps and a learning rate of 7e-4. With 7e-4 MAT stops improving
# early. Four of six agents end better with 3e-4, and MAT ends worse again with 1e-4.
SPREAD: dict[str, Any] = {
    "num_envs": 64,
    "rollout_steps": 25,
    "steps": 400_000,
    "minibatches": 2,
    "epochs": 10,
    "learning_rate": 3e-4,
    "entropy_coef": 0.01,
    "eval_interval": 20,
    "eval_episodes": 32,
}

# Prompts leave facts out, so greedy agents can repeat the same actions for ever. Evaluations sample actions, as in the
# papers.
TEXT: dict[str, Any] = {
    "num_envs": 16,
    "rollout_steps": 64,
    "steps": 30_000,
    "learning_rate": 3e-4,
    "entropy_coef": 0.02,
    "eval_interval": 3,
    "eval_episodes": 32,
    "eval_stochastic": True,
}

DISCOUNTS = {
    "virtualhome": 0.95,
    "overcooked": 0.99,
    "text/chain": 0.95,
    "text/wording": 0.95,
    "text/bake": 0.95,
    "text/mdp": 0.9,
    "text/chores": 1.0,
    "text/free_text": 1.0,
    "text/guess": 1.0,
}
"""Discounts that the tasks' own returns are reckoned with."""
HOUSEHOLD: dict[str, Any] = TEXT | {"gamma": DISCOUNTS["virtualhome"]}
KITCHEN: dict[str, Any] = TEXT | {"gamma": DISCOUNTS["overcooked"], "steps": 40_000, "anneal_learning_rate": True}

# One-step targets move a reward by one token per rollout; longer returns move it at once. At the default beta the KL
# term outweighs the rewards of these tasks.
SOFT: dict[str, Any] = {"steps": 40_000, "beta": 0.02, "gae_lambda": 0.95, "lambda_intra": 1.0}


def without_entropy(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings for an objective that has no entropy bonus."""
    return {name: value for name, value in settings.items() if name != "entropy_coef"}


SABLE = ("sable", "ff-sable", "sable-bad")
ONE_BY_ONE = ("mat", "mat-bad", "mat-decoder", "mat-gru", *SABLE)
AGENTS = (*ONE_BY_ONE, "mat-dec", "mat-encoder", "mappo", "ippo", "happo")
LANGUAGE = ("twosome", "ntpo", "poad")
CRITIC_FREE = ("reinforce", "grpo", "gigpo")
FAMILIES = {
    "toy": (TOY, AGENTS),
    "mamujoco": (MUJOCO, AGENTS),
    "hands": (HANDS, AGENTS),
    "smac": (SMAC, AGENTS),
    "pettingzoo:mpe2.simple_spread_v3": (SPREAD, AGENTS),
    "mpe/spread": (SPREAD, AGENTS),
    "virtualhome": (HOUSEHOLD, LANGUAGE),
    "overcooked": (KITCHEN, LANGUAGE),
}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    (task, agent): COORDINATION for task in ("toy/climbing", "toy/penalty") for agent in ONE_BY_ONE
}
PRESETS |= {(family, agent): settings for family, (settings, agents) in FAMILIES.items() for agent in agents}
# The segments of a memory have to divide the rollout. The default of 16 steps divides the other families' rollouts.
PRESETS |= {
    (family, agent): FAMILIES[family][0] | {"bptt_steps": steps}
    for family, steps in (("mamujoco", 20), ("pettingzoo:mpe2.simple_spread_v3", 25), ("mpe/spread", 25))
    for agent in ("sable", "sable-bad")
}
# Not tuned. Without a critic the discount only defines the return to maximize.
PRESETS |= {(task, agent): {"gamma": discount} for task, discount in DISCOUNTS.items() for agent in CRITIC_FREE}
PRESETS |= {
    ("virtualhome", "twosome"): HOUSEHOLD | {"steps": 55_000},
    ("overcooked", "twosome"): KITCHEN | {"steps": 55_000},
    ("virtualhome", "etpo"): without_entropy(HOUSEHOLD) | SOFT,
    ("overcooked", "etpo"): without_entropy(KITCHEN) | SOFT,
}


def choose(env: str, agent: str) -> tuple[RunConfig, str]:
    """The configuration for an environment and an agent, and where it comes from in words."""
    family = env.replace(":", "/").partition("/")[0]
    for key in ((env, agent), (family, agent)):
        if key in PRESETS:
            return override(default_config(env, agent), PRESETS[key]), f"preset {key[0]} + {key[1]}"
    return untuned(env, agent), f"defaults (no preset for {env} + {agent})"


def untuned(env: str, agent: str) -> RunConfig:
    """Return the defaults for an environment and an agent without a preset."""
    config = default_config(env, agent)
    options = {field.name for field in dataclasses.fields(config.agent_options)}
    return override(config, {name: value for name, value in UNTUNED.items() if name in options})


def by_name(name: str, env: str, agent: str) -> tuple[RunConfig, str]:
    """The preset called `ENV+AGENT`, applied to this environment and agent; `none` is the defaults."""
    if name == "none":
        return untuned(env, agent), "defaults"
    names = {f"{key[0]}+{key[1]}": changes for key, changes in PRESETS.items()}
    if name not in names:
        raise UnknownNameError(unknown_name_message("preset", name, [*names, "none"]))
    return override(default_config(env, agent), names[name]), f"preset {name}"
