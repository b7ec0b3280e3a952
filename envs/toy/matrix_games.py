"""Matrix games: every agent acts once, without an observation."""

import math
from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from marl.envs.toy.base import Toy, agent_names, box, require_size
from marl.errors import ConfigError
from marl.types import EnvSpec, Obs


class MatrixGame(Toy):
    """A matrix game: all agents act once, observe a constant 1, and receive `payoff(action)`."""

    state_attributes = ("last",)

    def __init__(
        self,
        task: str,
        agents: int,
        actions: int,
        payoff: Callable[[np.ndarray], float],
        optimum: float,
        factorized_optimum: float,
    ) -> None:
        self.payoff = payoff
        self.optimum = optimum
        self.factorized_optimum = factorized_optimum
        super().__init__(
            EnvSpec(
                name=f"toy/{task}",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, 1),
                action_space=spaces.Discrete(actions),
                max_steps=1,
            )
        )

    def _begin(self) -> None:
        self.last = np.full(self.spec.num_agents, -1)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.last = action
        return self.team_reward(self.payoff(action)), True

    def _observe(self) -> Obs:
        return Obs(agents=np.ones((self.spec.num_agents, 1), dtype=np.float32), alive=self.all_alive())

    def _describe(self) -> str:
        if self.last[0] < 0:
            return "no action yet"
        return f"actions {self.last.tolist()}, reward {self.payoff(self.last):g}"


def climbing() -> MatrixGame:
    """Return the climbing game: two agents, three actions."""
    table = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]])
    return MatrixGame("climbing", 2, 3, lambda action: float(table[tuple(action)]), 11.0, 11.0)


def penalty(penalty: float = -100.0) -> MatrixGame:
    """Return the penalty game: two agents, three actions, `penalty` (zero or below) for miscoordination."""
    if penalty > 0:
        raise ConfigError(f"toy/penalty: penalty={penalty} is a reward; give zero or less")
    table = np.array([[10, 0, penalty], [0, 2, 0], [penalty, 0, 10]])
    return MatrixGame("penalty", 2, 3, lambda action: float(table[tuple(action)]), 10.0, 10.0)


def xor3() -> MatrixGame:
    """Return the game of three agents and two actions that rewards 1 if exactly one agent plays 1.

    Agents that play 1 with the same probability p win with probability 3 p (1 - p)^2, at most 4/9 (p = 1/3).
    """
    return MatrixGame("xor3", 3, 2, lambda action: float(action.sum() == 1), 1.0, 4 / 9)


def permutation(agents: int = 4) -> MatrixGame:
    """Return the game of n agents and n actions that rewards 1 if all actions are distinct.

    Agents that draw from the same distribution p win with probability n! times the product of p, which is
    at most n!/n^n (uniform p, by the inequality of arithmetic and geometric means).
    """
    require_size("permutation", "agents", agents, 2)
    bound = math.factorial(agents) / agents**agents
    return MatrixGame(
        "permutation", agents, agents, lambda action: float(len(set(action.tolist())) == agents), 1.0, bound
    )


def swarm(agents: int = 8, cells: int = 4) -> MatrixGame:
    """Return the game of n agents that choose one of c cells of a line, and should spread evenly.

    The reward is 1 - sum over cells of |count - n/c| / (2 (n - n/c)): 1 if all cells hold equally many agents, 0 if one
    cell holds all. Agents that draw from the same distribution p expect sum_c E|Bin(n, p_c) - n/c|. Each term is
    convex in p_c, because Bernstein polynomials of a convex function are convex, so uniform p is best.
    """
    require_size("swarm", "cells", cells, 2)
    require_size("swarm", "agents", agents, cells)
    if agents % cells:
        raise ConfigError(f"toy/swarm: cells={cells} does not divide agents={agents}; give a divisor")
    share = agents // cells
    largest = 2 * (agents - share)

    def payoff(action: np.ndarray) -> float:
        return 1.0 - float(np.abs(np.bincount(action, minlength=cells) - share).sum()) / largest

    # Mean absolute deviation of a binomial with integer mean m = n/c (De Moivre): 2 (1 - 1/c) m P(count = m).
    log_choose = math.lgamma(agents + 1) - math.lgamma(share + 1) - math.lgamma(agents - share + 1)
    mode = math.exp(log_choose - share * math.log(cells) + (agents - share) * math.log1p(-1 / cells))
    deviation = 2.0 * share * (1.0 - 1.0 / cells) * mode
    return MatrixGame("swarm", agents, cells, payoff, 1.0, 1.0 - cells * deviation / largest)
