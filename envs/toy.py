"""Tiny games with known optima, for tests, examples and debugging.

Every game is seeded, exact in `get_state`/`set_state`, and says two numbers about itself:

* `optimum`: the best expected return of any policy that sees all observations and forgets none;
* `factorized_optimum`: the best expected return of agents that share one stochastic policy, see only
  their own present observation (no agent id) and decide independently of each other's action.

Where the two differ, a policy that is a sequence over agents is needed.

| task | steps | optimum | factorized optimum | what it probes |
|---|---|---|---|---|
| climbing | 1 | 11 | 11 | miscoordination next to the optimum is punished by -30 |
| penalty | 1 | 10 | 10 | two equally good equilibria, mixing them costs `penalty` |
| xor3 | 1 | 1 | 4/9 | exactly one of three identical agents must stand out |
| permutation | 1 | 1 | n!/n^n | n identical agents must choose n distinct actions |
| chain | length | 1 | 1 | one reward at the very end |
| copy | length | 1 | 1/symbols (1 for one agent) | the answer is in another agent's observation |
| recall | length | 1 | 1/symbols | what was seen at the first step is asked for at the last |
| continuous | length | 0 | see `Continuous` | only the first agent sees the target of all |
| mixed | length | 1 | see `Mixed` | switches and dials must act on what the first switch alone sees |
| mortal | length | see `Mortal` | the same | deaths and action masks that change at every step |

Climbing and penalty are from Claus and Boutilier, "The Dynamics of Reinforcement Learning in
Cooperative Multiagent Systems", 1998. Returns are undiscounted; where agents are rewarded
individually, the numbers are the mean over agents.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from marl.errors import ConfigError, UnknownNameError
from marl.protocols import State
from marl.registry import register_env, unknown_name_message
from marl.types import EnvSpec, Obs, Step


@dataclass(frozen=True)
class ToyOptions:
    """Options of the toy games. None is the task's own default; a task refuses an option that it does not have."""

    agents: int | None = None
    """Number of agents (permutation, chain, copy, recall, continuous, mixed, mortal)."""
    length: int | None = None
    """Steps of an episode (chain, copy, recall, continuous, mixed, mortal)."""
    penalty: float | None = None
    """What mixing the two good equilibria costs, zero or below (penalty)."""
    symbols: int | None = None
    """Size of the alphabet (copy, recall)."""
    unequal: bool | None = None
    """Every second agent lacks the last action dimension (continuous)."""
    individual: bool | None = None
    """Reward each agent for its own actions instead of the team for all (mortal)."""


class Toy:
    """What the games share: random stream, order of calls, action checks and exact state.

    A game sets `optimum` and `factorized_optimum`, names in `memory` the attributes that hold its
    episode, and fills `_begin`, `_play`, `_observe` and `_describe`.
    """

    memory: tuple[str, ...] = ()
    optimum: float
    factorized_optimum: float

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.elapsed = 0
        self.over = True
        self._random = np.random.default_rng()
        self._begin()

    def _begin(self) -> None:
        """Draw what an episode holds."""

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """The reward (N,) of a checked action, and whether the game has truly ended. Runs before `elapsed` grows."""
        raise NotImplementedError

    def _observe(self) -> Obs:
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    def reset(self, seed: int | None = None) -> Obs:
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self.elapsed = 0
        self.over = False
        self._begin()
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        if self.over:
            raise RuntimeError(f"{self.spec.name}: step without a running episode; call reset first")
        reward, terminated = self._play(self._checked(np.asarray(action)))
        self.elapsed += 1
        truncated = not terminated and self.elapsed == self.spec.max_steps
        self.over = terminated or truncated
        return Step(self._observe(), reward, terminated, truncated)

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """The action, with zeros where nobody acts. Raises ValueError for what a living agent cannot do."""
        name, count, size = self.spec.name, self.spec.num_agents, self.spec.action_size
        expected = (count,) if self.spec.discrete else (count, size)
        if action.shape != expected:
            raise ValueError(f"{name}: an action of shape {action.shape}; expected {expected}")
        obs = self._observe()
        mask = np.ones((count, size), dtype=bool) if obs.action_mask is None else obs.action_mask
        discrete = np.array([isinstance(space, spaces.Discrete) for space in self.spec.action_spaces])
        if not self.spec.discrete:
            exists = (mask | discrete[:, None]) & obs.alive[:, None]
            action = np.where(exists, np.where(discrete[:, None], action, np.clip(action, -1.0, 1.0)), 0.0)
        for agent in np.flatnonzero(obs.alive & discrete):
            choice = int(np.ravel(action[agent])[0])
            if not 0 <= choice < size or not mask[agent, choice]:
                available = np.flatnonzero(mask[agent]).tolist()
                raise ValueError(f"{name}: agent {agent} cannot choose action {choice}; available: {available}")
        return np.where(obs.alive, action, 0) if self.spec.discrete else action

    def _team(self, reward: float) -> np.ndarray:
        return np.full(self.spec.num_agents, reward, dtype=np.float32)

    def _everyone(self) -> np.ndarray:
        return np.ones(self.spec.num_agents, dtype=bool)

    def render(self) -> str:
        return f"{self.spec.name}, step {self.elapsed} of {self.spec.max_steps}\n{self._describe()}"

    def get_state(self) -> State:
        state: State = {"random": self._random.bit_generator.state, "elapsed": self.elapsed, "over": self.over}
        return state | {name: np.array(getattr(self, name)) for name in self.memory}

    def set_state(self, state: State) -> Obs:
        self._random.bit_generator.state = state["random"]
        self.elapsed = int(state["elapsed"])
        self.over = bool(state["over"])
        for name in self.memory:
            setattr(self, name, np.array(state[name]))
        return self._observe()

    def close(self) -> None:
        """Nothing is held."""


class MatrixGame(Toy):
    """A matrix game: all agents act once, observe nothing (a constant 1) and receive `payoff(action)`."""

    memory = ("last",)

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
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, 1),
                action_space=spaces.Discrete(actions),
                max_steps=1,
            )
        )

    def _begin(self) -> None:
        self.last = np.full(self.spec.num_agents, -1)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.last = action
        return self._team(self.payoff(action)), True

    def _observe(self) -> Obs:
        return Obs(agents=np.ones((self.spec.num_agents, 1), dtype=np.float32), alive=self._everyone())

    def _describe(self) -> str:
        if self.last[0] < 0:
            return "nobody has acted"
        return f"actions {self.last.tolist()}, reward {self.payoff(self.last):g}"


def climbing() -> MatrixGame:
    """The climbing game, two agents with three actions."""
    table = np.array([[11, -30, 0], [-30, 7, 6], [0, 0, 5]])
    return MatrixGame("climbing", 2, 3, lambda action: float(table[tuple(action)]), 11.0, 11.0)


def penalty(penalty: float = -100.0) -> MatrixGame:
    """The penalty game, two agents with three actions; the penalty k is zero or below."""
    if penalty > 0:
        raise ConfigError(f"toy/penalty: penalty={penalty} is a reward; give zero or less")
    table = np.array([[10, 0, penalty], [0, 2, 0], [penalty, 0, 10]])
    return MatrixGame("penalty", 2, 3, lambda action: float(table[tuple(action)]), 10.0, 10.0)


def xor3() -> MatrixGame:
    """Three agents, two actions, reward 1 where exactly one agent plays 1 (odd parity, but not all alike).

    Agents that play 1 with the same probability p win with probability 3 p (1 - p)^2, at most 4/9 (p = 1/3).
    """
    return MatrixGame("xor3", 3, 2, lambda action: float(action.sum() == 1), 1.0, 4 / 9)


def permutation(agents: int = 4) -> MatrixGame:
    """n agents with n actions, reward 1 where all choices are distinct.

    Agents that draw from the same distribution p win with probability n! times the product of p, which is
    at most n!/n^n (uniform p, by the inequality of arithmetic and geometric means).
    """
    _at_least("permutation", "agents", agents, 2)
    bound = math.factorial(agents) / agents**agents
    return MatrixGame(
        "permutation", agents, agents, lambda action: float(len(set(action.tolist())) == agents), 1.0, bound
    )


class Chain(Toy):
    """A row of doors, left (0) or right (1). The team earns 1 at the end if nobody ever chose a wrong one.

    The right door of step t is (t + 1) % 2. Observation (length + 1): one-hot step, then 1 while there is
    no mistake; the state is the same. A uniform policy earns 2^(-agents * length). The last door
    terminates the episode.
    """

    memory = ("faultless",)
    optimum = 1.0
    factorized_optimum = 1.0

    def __init__(self, agents: int = 1, length: int = 5) -> None:
        _at_least("chain", "agents", agents, 1)
        _at_least("chain", "length", length, 1)
        self.length = length
        super().__init__(
            EnvSpec(
                name="toy/chain",
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, length + 1),
                action_space=spaces.Discrete(2),
                max_steps=length,
                state_space=_box(0.0, 1.0, length + 1),
            )
        )

    def _begin(self) -> None:
        self.faultless = np.array(True)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.faultless = self.faultless & (action == (self.elapsed + 1) % 2).all()
        at_end = self.elapsed + 1 == self.length
        return self._team(float(at_end and self.faultless)), at_end

    def _observe(self) -> Obs:
        row = np.append(_one_hot(self.elapsed, self.length), np.float32(self.faultless))
        return Obs(agents=np.tile(row, (self.spec.num_agents, 1)), alive=self._everyone(), state=row)

    def _describe(self) -> str:
        return "no mistake" if self.faultless else "a mistake was made"


class Copy(Toy):
    """Repeat a sequence of symbols that another agent sees.

    Agent i observes, all at once, the whole sequence that agent (i + 1) % N must say (length one-hots of
    `symbols`), then a one-hot of the step. The team earns, at each step, the share of agents that said
    their own symbol, divided by `length`. With one agent this is a plain copy task. With more, an agent's own
    observation is independent of its own sequence, so without the others' it earns 1/symbols.
    State: all sequences in the order of their speakers, then the step. The last symbol terminates.
    """

    memory = ("sequence",)
    optimum = 1.0

    def __init__(self, agents: int = 2, length: int = 3, symbols: int = 3) -> None:
        _at_least("copy", "agents", agents, 1)
        _at_least("copy", "length", length, 1)
        _at_least("copy", "symbols", symbols, 2)
        self.length, self.symbols = length, symbols
        self.factorized_optimum = 1.0 if agents == 1 else 1 / symbols
        super().__init__(
            EnvSpec(
                name="toy/copy",
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, length * symbols + length),
                action_space=spaces.Discrete(symbols),
                max_steps=length,
                state_space=_box(0.0, 1.0, agents * length * symbols + length),
            )
        )

    def _begin(self) -> None:
        self.sequence = self._random.integers(self.symbols, size=(self.spec.num_agents, self.length))

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        share = (action == self.sequence[:, self.elapsed]).mean()
        return self._team(share / self.length), self.elapsed + 1 == self.length

    def _observe(self) -> Obs:
        count = self.spec.num_agents
        spoken = np.eye(self.symbols, dtype=np.float32)[self.sequence].reshape(count, -1)
        now = _one_hot(self.elapsed, self.length)
        seen = np.concatenate([np.roll(spoken, -1, axis=0), np.tile(now, (count, 1))], axis=1)
        return Obs(agents=seen, alive=self._everyone(), state=np.append(spoken, now))

    def _describe(self) -> str:
        return "\n".join(
            f"{agent} says {line.tolist()}" for agent, line in zip(self.spec.agents, self.sequence, strict=True)
        )


class Recall(Toy):
    """Say at the last step the symbol that was shown at the first.

    Each agent observes a symbol of its own (one-hot of `symbols`; zeros after the first step), then a one-hot of the
    step. At the last step the team earns the share of agents that say their symbol. Nothing else is paid, and nothing
    that an agent sees depends on an action. So the last observation is the same whatever the symbols were, and an
    agent without a memory earns 1/symbols, even where it sees the others' observations and actions. State: all
    symbols, then the step. The last step terminates.
    """

    memory = ("shown",)
    optimum = 1.0

    def __init__(self, agents: int = 2, length: int = 4, symbols: int = 3) -> None:
        _at_least("recall", "agents", agents, 1)
        _at_least("recall", "length", length, 2)
        _at_least("recall", "symbols", symbols, 2)
        self.length, self.symbols = length, symbols
        self.factorized_optimum = 1 / symbols
        super().__init__(
            EnvSpec(
                name="toy/recall",
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, symbols + length),
                action_space=spaces.Discrete(symbols),
                max_steps=length,
                state_space=_box(0.0, 1.0, agents * symbols + length),
            )
        )

    def _begin(self) -> None:
        self.shown = self._random.integers(self.symbols, size=self.spec.num_agents)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        at_end = self.elapsed + 1 == self.length
        return self._team(float((action == self.shown).mean()) if at_end else 0.0), at_end

    def _observe(self) -> Obs:
        symbols, now = np.eye(self.symbols, dtype=np.float32)[self.shown], _one_hot(self.elapsed, self.length)
        seen = symbols if self.elapsed == 0 else np.zeros_like(symbols)
        rows = np.concatenate([seen, np.tile(now, (self.spec.num_agents, 1))], axis=1)
        return Obs(agents=rows, alive=self._everyone(), state=np.append(symbols, now))

    def _describe(self) -> str:
        return f"shown {self.shown.tolist()}"


class Continuous(Toy):
    """Agents' actions in [-1, 1] must add up to a target that only the first agent sees.

    The action has two dimensions; with `unequal`, agents 1, 3, .. lack the last (see `action_mask`). With c
    agents that have a dimension, its target is uniform in [-c, c], drawn anew at each step. Team
    reward: minus the mean squared error over the two dimensions. Observation (3): the target and 1 for the
    first agent, zeros for the others; state (2): the target. The task has no end of its own: it is truncated.

    Without the others' sight of the target, agents can only add a constant (best: 0) and the first agent
    removes up to 1 of the error: the mean of max(|x| - 1, 0)^2 over [-c, c] is (c - 1)^3 / 3c.
    """

    memory = ("target",)
    optimum = 0.0

    def __init__(self, agents: int = 2, length: int = 4, unequal: bool = False) -> None:
        _at_least("continuous", "agents", agents, 1)
        _at_least("continuous", "length", length, 1)
        sizes = tuple(1 if unequal and agent % 2 else 2 for agent in range(agents))
        self.mask = np.arange(2) < np.array(sizes)[:, None]  # (N, A)
        self.reach = self.mask.sum(axis=0)  # (A,)
        self.factorized_optimum = -length * float(np.mean((self.reach - 1) ** 3 / (3 * self.reach)))
        super().__init__(
            EnvSpec(
                name="toy/continuous",
                agents=_names(agents),
                observation_space=_box(-float(agents), float(agents), 3),
                action_space=_box(-1.0, 1.0, 2),
                max_steps=length,
                state_space=_box(-float(agents), float(agents), 2),
                action_sizes=sizes,
            )
        )

    def _begin(self) -> None:
        self.target = self._random.uniform(-1.0, 1.0, size=2) * self.reach

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        error = np.mean((action.sum(axis=0) - self.target) ** 2)
        self._begin()
        return self._team(-error), False

    def _observe(self) -> Obs:
        seen = np.zeros((self.spec.num_agents, 3), dtype=np.float32)
        seen[0] = [*self.target, 1.0]
        return Obs(seen, self._everyone(), action_mask=self.mask.copy(), state=self.target.astype(np.float32))

    def _describe(self) -> str:
        return f"target {np.round(self.target, 3).tolist()}"


class Mixed(Toy):
    """Switches (Discrete(3)) and dials (a Box from -1 to 1), in turn, must all show the place that agent 0 is shown.

    The places are -1, 0 and 1, one of them drawn anew at each step; a switch shows the one that it chooses, a dial the
    number that it is set to. Reward of the team: the mean over agents of max(0, 1 - distance to the place), divided by
    `length`. Observation (4): the place, one-hot, for agent 0 and zeros for the others; then 1 for a switch. State (3):
    the place. The task has no end of its own: it is truncated.

    Without a word of the first agent's the others are right in one case of three, whatever they show:
    (1 + (N - 1) / 3) / N.
    """

    memory = ("place",)
    optimum = 1.0
    places = 3

    def __init__(self, agents: int = 4, length: int = 1) -> None:
        _at_least("mixed", "agents", agents, 2)
        _at_least("mixed", "length", length, 1)
        self.length = length
        self.factorized_optimum = (1.0 + (agents - 1) / self.places) / agents
        self.dial = np.arange(agents) % 2 == 1  # (N,)
        super().__init__(
            EnvSpec(
                name="toy/mixed",
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, self.places + 1),
                action_space=spaces.Tuple([_box(-1.0, 1.0, 1) if dial else spaces.Discrete(3) for dial in self.dial]),
                max_steps=length,
                state_space=_box(0.0, 1.0, self.places),
                agent_types=tuple("dial" if dial else "switch" for dial in self.dial),
            )
        )

    def _begin(self) -> None:
        self.place = int(self._random.integers(self.places))

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        shown = action[:, 0] - np.where(self.dial, 0.0, 1.0)
        reward = np.maximum(0.0, 1.0 - np.abs(shown - (self.place - 1))).mean() / self.length
        self._begin()
        return self._team(reward), False

    def _observe(self) -> Obs:
        state = _one_hot(self.place, self.places)
        seen = np.zeros((self.spec.num_agents, self.places + 1), dtype=np.float32)
        seen[0, : self.places] = state
        seen[:, -1] = ~self.dial
        mask = np.arange(self.spec.action_size) < np.array(self.spec.action_sizes)[:, None]
        return Obs(seen, self._everyone(), action_mask=mask, state=state)

    def _describe(self) -> str:
        return f"place {self.place - 1}"


class Mortal(Toy):
    """Agents die at known times and may not do everything at every step.

    Agent 0 lives on; agent i > 0 acts `lifetime[i] = max(1, length - i * max(1, length // N))` times, then
    its observation is zero. At step t agent i is shown (one-hot, 4) the action to take, drawn anew each time
    among all but the unavailable (t + i) % 4, and then t / length. A living agent earns 1 / length for it;
    the team reward is the mean over all N agents. State: all observations in a row. The survivors are
    truncated at `length`. Optimum: the mean over agents of lifetime / length.
    """

    memory = ("wanted",)
    actions = 4

    def __init__(self, agents: int = 3, length: int = 6, individual: bool = False) -> None:
        _at_least("mortal", "agents", agents, 1)
        _at_least("mortal", "length", length, 1)
        self.length = length
        self.lifetime = np.maximum(1, length - np.arange(agents) * max(1, length // agents))  # (N,) actions
        self.optimum = self.factorized_optimum = float(np.mean(self.lifetime) / length)
        width = self.actions + 1
        super().__init__(
            EnvSpec(
                name="toy/mortal",
                agents=_names(agents),
                observation_space=_box(0.0, 1.0, width),
                action_space=spaces.Discrete(self.actions),
                max_steps=length,
                state_space=_box(0.0, 1.0, agents * width),
                team_reward=not individual,
            )
        )

    def _begin(self) -> None:
        self._draw(0)

    def _draw(self, now: int) -> None:
        others = self._random.integers(1, self.actions, size=self.spec.num_agents)
        self.wanted = (now + np.arange(self.spec.num_agents) + others) % self.actions

    def _alive(self) -> np.ndarray:
        alive = self.elapsed < self.lifetime
        alive[0] = True
        return alive

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        earned = (self._alive() & (action == self.wanted)) / self.length
        self._draw(self.elapsed + 1)
        return earned.astype(np.float32) if not self.spec.team_reward else self._team(earned.mean()), False

    def _observe(self) -> Obs:
        alive, count = self._alive(), self.spec.num_agents
        seen = np.zeros((count, self.actions + 1), dtype=np.float32)
        seen[np.arange(count), self.wanted] = 1.0
        seen[:, -1] = self.elapsed / self.length
        seen[~alive] = 0.0
        mask = np.ones((count, self.actions), dtype=bool)
        mask[np.arange(count), (self.elapsed + np.arange(count)) % self.actions] = False
        mask[~alive] = np.arange(self.actions) == 0
        return Obs(seen, alive, action_mask=mask, state=seen.flatten())

    def _describe(self) -> str:
        wanted = zip(self.spec.agents, self.wanted, self._alive(), strict=True)
        return "\n".join(f"{agent} {f'wants {action}' if alive else 'is dead'}" for agent, action, alive in wanted)


GAMES: dict[str, Callable[..., Toy]] = {
    "climbing": climbing,
    "penalty": penalty,
    "xor3": xor3,
    "permutation": permutation,
    "chain": Chain,
    "copy": Copy,
    "recall": Recall,
    "continuous": Continuous,
    "mixed": Mixed,
    "mortal": Mortal,
}

TASKS = tuple(GAMES)


@register_env("toy", tasks=TASKS, options=ToyOptions, summary="tiny games with known optima")
def make(task: str, **options: Any) -> Toy:
    """The game `task`; an option of None is left at the task's default."""
    return build("toy", GAMES, task, options)


def build(family: str, games: Mapping[str, Callable[..., Any]], task: str, options: Mapping[str, Any]) -> Any:
    """The game `task` of a family, with the options that are not None. Raises for one that the game does not take."""
    if task not in games:
        raise UnknownNameError(unknown_name_message(f"task of {family}", task, games))
    given = {name: value for name, value in options.items() if value is not None}
    accepted = inspect.signature(games[task]).parameters
    for name in given:
        if name not in accepted:
            raise ConfigError(f"{family}/{task} has no option {name!r}; it takes: {', '.join(accepted) or 'none'}")
    return games[task](**given)


def optimum(task: str, **options: Any) -> float:
    """The best expected undiscounted return of any policy that sees all observations."""
    return make(task, **options).optimum


def factorized_optimum(task: str, **options: Any) -> float:
    """The best expected return of agents that share a policy of their own observation and act independently."""
    return make(task, **options).factorized_optimum


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"agent_{index}" for index in range(count))


def _box(low: float, high: float, size: int) -> spaces.Box:
    return spaces.Box(low, high, (size,), np.float32)


def _one_hot(index: int, size: int) -> np.ndarray:
    """(size,) float32; all zero for an index past the end."""
    return (np.arange(size) == index).astype(np.float32)


MAX_SIZE = 100_000
"""Most agents, steps or symbols of a game."""


def _at_least(task: str, option: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"toy/{task}: {option}={value}; give {least} or more")
    if value > MAX_SIZE:
        raise ConfigError(f"toy/{task}: {option}={value}, too many for a toy; give {MAX_SIZE} or fewer")
