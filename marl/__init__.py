"""seqmarl: multi-agent and sequence-model reinforcement learning with one on-policy trainer."""

import importlib
from typing import TYPE_CHECKING, Any

from marl.registry import make, register_advantage, register_agent, register_env, register_objective

if TYPE_CHECKING:
    from marl.callbacks import Callback
    from marl.experiments.api import Evaluation, evaluate, resume, train
    from marl.policy import Policy
    from marl.policy_io import LoadedPolicy, load_policy
    from marl.run import Result
    from marl.tracking.base import Tracker
    from marl.transitions import Transitions

__all__ = [
    "Callback",
    "Evaluation",
    "LoadedPolicy",
    "Policy",
    "Result",
    "Tracker",
    "Transitions",
    "evaluate",
    "load_policy",
    "make",
    "register_advantage",
    "register_agent",
    "register_env",
    "register_objective",
    "resume",
    "train",
]

_HOMES = {
    "Callback": "marl.callbacks",
    "Evaluation": "marl.experiments.api",
    "LoadedPolicy": "marl.policy_io",
    "Policy": "marl.policy",
    "Result": "marl.run",
    "Tracker": "marl.tracking.base",
    "Transitions": "marl.transitions",
    "evaluate": "marl.experiments.api",
    "load_policy": "marl.policy_io",
    "resume": "marl.experiments.api",
    "train": "marl.experiments.api",
}
"""Modules of the names that are imported on first use, because environment workers must not load torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'marl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
