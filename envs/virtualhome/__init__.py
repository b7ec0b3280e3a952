"""Household tasks in text, after VirtualHome: food preparation, six tasks with other nouns, and entertainment.

State machines, offered actions and rewards follow the text versions of VirtualHome in TWOSOME (Tan et al., "True
Knowledge Comes from Practice", ICLR 2024) and POAD (Wen et al., "Reinforcing Language Agents via Policy Optimization
with Action Decomposition", NeurIPS 2024). The texts are our own. Success is rewarded with 1, so the discounted return
of an episode of k steps is 0.95^(k-1).
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
    """Options of VirtualHome."""

    max_steps: int = 50
    """Steps after which an episode is truncated."""
    reproduce_upstream_bugs: bool = False
    """Reproduce bugs of the published code: walking to a held thing moves the agent to another room, and an agent that
    sits down too early never stands up."""
    invalid: Invalid = "error"
    """Effect of an action that is not offered: an error, or a step without effect."""


@register_env(
    "virtualhome", tasks=TASKS, options=VirtualHomeOptions, summary="household tasks in text, one agent, sparse reward"
)
def make(task: str, max_steps: int = 50, reproduce_upstream_bugs: bool = False, invalid: Invalid = "error") -> TextEnv:
    """Return the task. Its state is a `Home` or an `EntertainmentState`.

    Raises UnknownNameError for an unknown task.
    """
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
