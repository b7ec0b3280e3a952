"""Tiny games with known optima, for tests, examples and debugging.

Every game is seeded, restores exactly (`get_state`, `set_state`), and has two reference values:

* `optimum`: the best expected return of any policy that sees all observations and forgets none;
* `factorized_optimum`: the best expected return of agents that share one stochastic policy, see only their own
  present observation (no agent id), and act independently of each other.

If the two differ, only a policy that conditions agents on each other reaches the optimum.

| task | steps | optimum | factorized optimum | tests |
|---|---|---|---|---|
| climbing | 1 | 11 | 11 | miscoordination next to the optimum costs 30 |
| penalty | 1 | 10 | 10 | mixing the two best equilibria costs `penalty` |
| xor3 | 1 | 1 | 4/9 | exactly one of three identical agents must play 1 |
| permutation | 1 | 1 | n!/n^n | n identical agents must take n distinct actions |
| swarm | 1 | 1 | see `swarm` | many agents must spread evenly over the cells of a line |
| chain | length | 1 | 1 | one reward at the very end |
| copy | length | 1 | 1/symbols (1 for one agent) | the answer is in another agent's observation |
| memory | length | 1 | 1/symbols | the first observation determines the last action |
| continuous | length | 0 | see `Continuous` | only the first agent observes the target |
| mixed | length | 1 | see `Mixed` | discrete and continuous agents; only the first observes the target |
| agent_death | length | see `AgentDeath` | the same | agents die; action masks change at every step |

Climbing and penalty are from Claus and Boutilier, "The Dynamics of Reinforcement Learning in
Cooperative Multiagent Systems", 1998. Returns are undiscounted. With individual rewards, the values are means over
agents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from marl.envs.toy.base import Toy, make_game, option_names
from marl.envs.toy.matrix_games import climbing, penalty, permutation, swarm, xor3
from marl.envs.toy.sequences import Chain, Copy, Memory
from marl.envs.toy.teams import AgentDeath, Continuous, Mixed
from marl.registry import register_env


@dataclass(frozen=True)
class ToyOptions:
    """Options of the toy games. None is the default of the task. A task refuses an option that it does not have."""

    agents: int | None = None
    """Number of agents (permutation, swarm, chain, copy, memory, continuous, mixed, agent_death)."""
    length: int | None = None
    """Steps of an episode (chain, copy, memory, continuous, mixed, agent_death)."""
    penalty: float | None = None
    """Reward of mixing the two best equilibria, zero or below (penalty)."""
    cells: int | None = None
    """Cells of the line; must divide the number of agents (swarm)."""
    symbols: int | None = None
    """Size of the alphabet (copy, memory)."""
    unequal: bool | None = None
    """Remove the last action dimension of every second agent (continuous)."""
    individual: bool | None = None
    """Reward each agent for its own actions instead of the team (agent_death)."""


GAMES: dict[str, Callable[..., Toy]] = {
    "climbing": climbing,
    "penalty": penalty,
    "xor3": xor3,
    "permutation": permutation,
    "swarm": swarm,
    "chain": Chain,
    "copy": Copy,
    "memory": Memory,
    "continuous": Continuous,
    "mixed": Mixed,
    "agent_death": AgentDeath,
}

TASKS = tuple(GAMES)


@register_env(
    "toy", tasks=TASKS, options=ToyOptions, reads=partial(option_names, GAMES), summary="tiny games with known optima"
)
def make(task: str, **options: Any) -> Toy:
    """Return the game `task`. An option of None keeps the default of the task."""
    return make_game("toy", GAMES, task, options)


def optimum(task: str, **options: Any) -> float:
    """Return the best expected undiscounted return of any policy that sees all observations."""
    return make(task, **options).optimum


def factorized_optimum(task: str, **options: Any) -> float:
    """Return the best expected return of agents that share a policy of their own observation and act independently."""
    return make(task, **options).factorized_optimum
