"""Games of unlike agents: continuous, mixed and masked actions, and agents that die."""

import numpy as np
from gymnasium import spaces

from marl.envs.toy.base import Toy, agent_names, box, one_hot, require_size
from marl.types import EnvSpec, Obs


class Continuous(Toy):
    """The agents' actions in [-1, 1] must add up to a target that only the first agent observes.

    The action has two dimensions; with `unequal`, agents 1, 3, ... lack the last (see `action_mask`). The target of a
    dimension that c agents have is uniform in [-c, c] and drawn at each step. Team reward: minus the mean squared
    error over the two dimensions. Observation (3): the target and 1 for the first agent, zeros for the others. State
    (2): the target. Episodes are truncated at `length`.

    Agents that do not see the target can only add a constant (best: 0), and the first agent removes up to 1 of the
    error. The mean of max(|x| - 1, 0)^2 over [-c, c] is (c - 1)^3 / 3c.
    """

    state_attributes = ("target",)
    optimum = 0.0

    def __init__(self, agents: int = 2, length: int = 4, unequal: bool = False) -> None:
        require_size("continuous", "agents", agents, 1)
        require_size("continuous", "length", length, 1)
        sizes = tuple(1 if unequal and agent % 2 else 2 for agent in range(agents))
        self.mask = np.arange(2) < np.array(sizes)[:, None]  # (N, A)
        self.reach = self.mask.sum(axis=0)  # (A,)
        self.factorized_optimum = -length * float(np.mean((self.reach - 1) ** 3 / (3 * self.reach)))
        super().__init__(
            EnvSpec(
                name="toy/continuous",
                agents=agent_names(agents),
                observation_space=box(-float(agents), float(agents), 3),
                action_space=box(-1.0, 1.0, 2),
                max_steps=length,
                state_space=box(-float(agents), float(agents), 2),
                action_sizes=sizes,
            )
        )

    def _begin(self) -> None:
        self.target = self._random.uniform(-1.0, 1.0, size=2) * self.reach

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        error = np.mean((action.sum(axis=0) - self.target) ** 2)
        self._begin()
        return self.team_reward(-error), False

    def _observe(self) -> Obs:
        seen = np.zeros((self.spec.num_agents, 3), dtype=np.float32)
        seen[0] = [*self.target, 1.0]
        return Obs(seen, self.all_alive(), action_mask=self.mask.copy(), state=self.target.astype(np.float32))

    def _describe(self) -> str:
        return f"target {np.round(self.target, 3).tolist()}"


class Mixed(Toy):
    """Switches (Discrete(3)) and dials (a Box from -1 to 1) must match a target that agent 0 observes.

    Even agents are switches, odd agents dials. The target is -1, 0 or 1, drawn at each step. A switch plays its action
    minus 1, a dial its action. Team reward: the mean over agents of max(0, 1 - distance to the target), divided by
    `length`. Observation (4): the one-hot target for agent 0 and zeros for the others, then 1 for a switch. State (3):
    the one-hot target. Episodes are truncated at `length`.

    Agents that do not see the target earn 1/3 on average: (1 + (N - 1) / 3) / N for the team.
    """

    state_attributes = ("place",)
    optimum = 1.0
    places = 3

    def __init__(self, agents: int = 4, length: int = 1) -> None:
        require_size("mixed", "agents", agents, 2)
        require_size("mixed", "length", length, 1)
        self.length = length
        self.factorized_optimum = (1.0 + (agents - 1) / self.places) / agents
        self.dial = np.arange(agents) % 2 == 1  # (N,)
        super().__init__(
            EnvSpec(
                name="toy/mixed",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, self.places + 1),
                action_space=spaces.Tuple([box(-1.0, 1.0, 1) if dial else spaces.Discrete(3) for dial in self.dial]),
                max_steps=length,
                state_space=box(0.0, 1.0, self.places),
                agent_types=tuple("dial" if dial else "switch" for dial in self.dial),
            )
        )

    def _begin(self) -> None:
        self.place = int(self._random.integers(self.places))

    def _play(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        shown = action[:, 0] - np.where(self.dial, 0.0, 1.0)
        reward = np.maximum(0.0, 1.0 - np.abs(shown - (self.place - 1))).mean() / self.length
        self._begin()
        return self.team_reward(reward), False

    def _observe(self) -> Obs:
        state = one_hot(self.place, self.places)
        seen = np.zeros((self.spec.num_agents, self.places + 1), dtype=np.float32)
        seen[0, : self.places] = state
        seen[:, -1] = ~self.dial
        mask = np.arange(self.spec.action_size) < np.array(self.spec.action_sizes)[:, None]
        return Obs(seen, self.all_alive(), action_mask=mask, state=state)

    def _describe(self) -> str:
        return f"place {self.place - 1}"


class AgentDeath(Toy):
    """Agents die at known times, and each step masks one action of each agent.

    Agent 0 never dies. Agent i > 0 acts `lifetime[i] = max(1, length - i * max(1, length // N))` times; then its
    observation is zero. At step t agent i observes the action to take (one-hot, 4), drawn at each step among all but
    the masked action (t + i) % 4, and then t / length. A living agent earns 1 / length for that action; the team reward
    is the mean over all N agents. State: all observations. Episodes are truncated at `length`. Optimum: the mean over
    agents of lifetime / length.
    """

    state_attributes = ("wanted",)
    actions = 4

    def __init__(self, agents: int = 3, length: int = 6, individual: bool = False) -> None:
        require_size("agent_death", "agents", agents, 1)
        require_size("agent_death", "length", length, 1)
        self.length = length
        self.lifetime = np.maximum(1, length - np.arange(agents) * max(1, length // agents))  # (N,) actions
        self.optimum = self.factorized_optimum = float(np.mean(self.lifetime) / length)
        width = self.actions + 1
        super().__init__(
            EnvSpec(
                name="toy/agent_death",
                agents=agent_names(agents),
                observation_space=box(0.0, 1.0, width),
                action_space=spaces.Discrete(self.actions),
                max_steps=length,
                state_space=box(0.0, 1.0, agents * width),
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
        return earned.astype(np.float32) if not self.spec.team_reward else self.team_reward(earned.mean()), False

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
