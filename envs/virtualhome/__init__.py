"""Household tasks in text, after VirtualHome: food preparation, six errands that differ in their nouns, entertainment.

The finite state machines, offered actions and rewards are those that remain of VirtualHome's simulator behind the text
of TWOSOME (Tan et al., "True Knowledge Comes from Practice", ICLR 2024) and POAD (Wen et al., "Reinforcing Language
Agents via Policy Optimization with Action Decomposition", NeurIPS 2024); the words are our own. Success earns 1, and an
episode of k steps is worth 0.95^(k-1).
"""

from dataclasses import dataclass

from marl.envs.text import Invalid, TextEnv
from marl.envs.virtualhome.appliance_task import APPLIANCE_TASKS, ApplianceTask
from marl.envs.virtualhome.entertainment import Entertainment
from marl.errors import ConfigError, UnknownNameError
from marl.registry import register_env, unknown_name_message

TASKS = (*APPLIANCE_TASKS, "entertainment")
GAMMA = 0.95


@dataclass(frozen=True)
class VirtualHomeOptions:
    """Options of the home."""

    max_steps: int = 50
    """Steps after which an episode is truncated."""
    reproduce_upstream_bugs: bool = False
    """What the published code does: walking to what one holds leads astray, and who sits down too early stays there."""
    invalid: Invalid = "error"
    """What an action that is not offered does: an error, or nothing."""


@register_env(
    "virtualhome", tasks=TASKS, options=VirtualHomeOptions, summary="household tasks in text, one agent, sparse reward"
)
def make(task: str, max_steps: int = 50, reproduce_upstream_bugs: bool = False, invalid: Invalid = "error") -> TextEnv:
    """The task; its state is a `Home` or an `Evening`."""
    if task not in TASKS:
        raise UnknownNameError(unknown_name_message("task of virtualhome", task, TASKS))
    if max_steps < 1:
        raise ConfigError(f"virtualhome: max_steps={max_steps}; give 1 or more")
    rules = (
        ApplianceTask(APPLIANCE_TASKS[task], reproduce_upstream_bugs)
        if task in APPLIANCE_TASKS
        else Entertainment(reproduce_upstream_bugs)
    )
    return TextEnv(
        f"virtualhome/{task}",
        rules.start,
        rules.prompt,
        rules.play,
        rules.candidates,
        max_steps=max_steps,
        gamma=GAMMA,
        optimum=GAMMA ** (rules.best_steps - 1),
        words=rules.words,
        invalid=invalid,
    )
