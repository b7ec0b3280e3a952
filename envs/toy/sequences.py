"""Games over several steps: delayed reward, information of another agent, memory."""

import numpy as np
from gymnasium import spaces

from marl.envs.toy.base import Toy, agent_names, box, one_hot, require_size
from marl.types import EnvSpec, Obs


class Chain(Toy):
    """A row of doors, each with two actions. The team earns 1 at the end if no agent ever took a wrong action.

    The right action of step t is (t + 1) % 2. Observation (length + 1): one-hot step, then 1 while there is
    no mistake; the state is the same. A uniform policy earns 2^(-agents * length). The last door
    terminates the episode.
    """

    state_attributes = ("faultless",)
    optimum = 1.0
    factorized_optimum = 1.0

    def __init__(self, agents: int = 1, length: int = 5) -> None:
        require_size("chain", "agents", agents, 1)
        require_size("chain", "length", length, 1)
        self.length = length
        super().__init__(
            EnvSpec(
                name="toy/chain",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, length + 1),
                action_space=spaces.Discrete(2),
                max_steps=length,
                state_space=box(0.0, 1.0, length + 1),
            )
        )

    def _begin(self) -> None:
        self.faultless = np.array(True)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.faultless = self.faultless & (action == (self.elapsed + 1) % 2).all()
        at_end = self.elapsed + 1 == self.length
        return self.team_reward(float(at_end and self.faultless)), at_end

    def _observe(self) -> Obs:
        row = np.append(one_hot(self.elapsed, self.length), np.float32(self.faultless))
        return Obs(agents=np.tile(row, (self.spec.num_agents, 1)), alive=self.all_alive(), state=row)

    def _describe(self) -> str:
        return "no mistake" if self.faultless else "a mistake was made"


class Copy(Toy):
    """Repeat a sequence of symbols that another agent observes.

    Agent i observes the whole sequence of agent (i + 1) % N (`length` one-hots of `symbols`), then the one-hot step.
    At each step the team earns the share of agents that gave their own symbol, divided by `length`. One agent
    observes its own sequence. Among several agents, an agent's observation is independent of its own sequence, so an
    agent that sees no other observation earns 1/symbols. State: the sequences in order of their agents, then the
    step. The last symbol terminates the episode.
    """

    state_attributes = ("sequence",)
    optimum = 1.0

    def __init__(self, agents: int = 2, length: int = 3, symbols: int = 3) -> None:
        require_size("copy", "agents", agents, 1)
        require_size("copy", "length", length, 1)
        require_size("copy", "symbols", symbols, 2)
        self.length, self.symbols = length, symbols
        self.factorized_optimum = 1.0 if agents == 1 else 1 / symbols
        super().__init__(
            EnvSpec(
                name="toy/copy",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, length * symbols + length),
                action_space=spaces.Discrete(symbols),
                max_steps=length,
                state_space=box(0.0, 1.0, agents * length * symbols + length),
            )
        )

    def _begin(self) -> None:
        self.sequence = self._random.integers(self.symbols, size=(self.spec.num_agents, self.length))

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        share = (action == self.sequence[:, self.elapsed]).mean()
        return self.team_reward(share / self.length), self.elapsed + 1 == self.length

    def _observe(self) -> Obs:
        count = self.spec.num_agents
        spoken = np.eye(self.symbols, dtype=np.float32)[self.sequence].reshape(count, -1)
        now = one_hot(self.elapsed, self.length)
        seen = np.concatenate([np.roll(spoken, -1, axis=0), np.tile(now, (count, 1))], axis=1)
        return Obs(agents=seen, alive=self.all_alive(), state=np.append(spoken, now))

    def _describe(self) -> str:
        return "\n".join(
            f"{agent} has {line.tolist()}" for agent, line in zip(self.spec.agents, self.sequence, strict=True)
        )


class Memory(Toy):
    """Give at the last step the symbol that was shown at the first.

    Each agent observes its own symbol (one-hot of `symbols`; zeros after the first step), then the one-hot step. At
    the last step the team earns the share of agents that give their symbol; every other reward is 0. The last
    observation does not depend on the symbols or on any action. An agent without recurrent state therefore earns
    1/symbols, even if it sees the observations and actions of the others. State: all symbols, then the step. The last
    step terminates the episode.
    """

    state_attributes = ("shown",)
    optimum = 1.0

    def __init__(self, agents: int = 2, length: int = 4, symbols: int = 3) -> None:
        require_size("memory", "agents", agents, 1)
        require_size("memory", "length", length, 2)
        require_size("memory", "symbols", symbols, 2)
        self.length, self.symbols = length, symbols
        self.factorized_optimum = 1 / symbols
        super().__init__(
            EnvSpec(
                name="toy/memory",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, symbols + length),
                action_space=spaces.Discrete(symbols),
                max_steps=length,
                state_space=box(0.0, 1.0, agents * symbols + length),
            )
        )

    def _begin(self) -> None:
        self.shown = self._random.integers(self.symbols, size=self.spec.num_agents)

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        at_end = self.elapsed + 1 == self.length
        return self.team_reward(float((action == self.shown).mean()) if at_end else 0.0), at_end

    def _observe(self) -> Obs:
        symbols, now = np.eye(self.symbols, dtype=np.float32)[self.shown], one_hot(self.elapsed, self.length)
        seen = symbols if self.elapsed == 0 else np.zeros_like(symbols)
        rows = np.concatenate([seen, np.tile(now, (self.spec.num_agents, 1))], axis=1)
        return Obs(agents=rows, alive=self.all_alive(), state=np.append(symbols, now))

    def _describe(self) -> str:
        return f"shown {self.shown.tolist()}"
