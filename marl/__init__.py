"""seqmarl's learning core."""

from typing import TYPE_CHECKING, Any

from marl.registry import register_advantage, register_agent, register_env, register_objective

if TYPE_CHECKING:
    from marl.policy import Policy
    from marl.policy_io import load_policy

__all__ = ["Policy", "load_policy", "register_advantage", "register_agent", "register_env", "register_objective"]


def __getattr__(name: str) -> Any:
    # Environment workers import this package and must not pay for torch's start.
    if name == "load_policy":
        from marl.policy_io import load_policy

        return load_policy
    if name == "Policy":
        from marl.policy import Policy

        return Policy
    raise AttributeError(f"module 'marl' has no attribute {name!r}")
