"""A trained policy for use outside training."""

import dataclasses
from pathlib import Path
from typing import Any

import dacite
import gymnasium
import numpy as np
import torch

from marl.checkpoint import Checkpoint, load, load_weights
from marl.errors import CheckpointError
from marl.evaluate import policy_device
from marl.memory import Memory
from marl.protocols import Policy
from marl.registry import AGENTS
from marl.spaces import spec_from_json
from marl.trust import external_of_agent, require_trust
from marl.types import EnvSpec, Obs


class LoadedPolicy:
    """A frozen policy: `action = policy.act(observation)`, and `policy.reset()` where an episode begins.

    Only an agent that remembers needs the latter; to the others it does nothing.
    """

    def __init__(self, policy: Policy, step: int) -> None:
        self.policy, self.step = policy, step
        self.generator = torch.Generator(device=policy_device(policy)).manual_seed(0)
        self.memory: Memory | None = None

    @property
    def spec(self) -> EnvSpec:
        return self.policy.spec

    def reset(self, ended: np.ndarray | None = None) -> None:
        """Forget all, or what belongs to the environments where `ended` (E,) is True."""
        if ended is None:
            self.memory = None
        elif self.memory is not None:
            self.memory.forget(ended)

    def act(self, observation: Obs | np.ndarray, deterministic: bool = True) -> np.ndarray:
        """Actions (N,) int64, (N, A) float32 or N strings of an `Obs`, or of an array (N, D) in which all agents live.

        Given leading axis E, the actions have it too. Raises ValueError for another shape, where an agent that
        reads text is given no `Obs`, which holds the actions to choose from, and where one that remembers is given
        another E than at the step before.
        """
        text = isinstance(self.spec.observation_space, gymnasium.spaces.Text)
        if not isinstance(observation, Obs):
            if text:
                raise ValueError(f"{self.spec.name} is read as text; give an Obs whose agents are strings")
            observation = self._all_alive(np.asarray(observation, dtype=np.float32))
        single = np.ndim(observation.alive) == 1
        if single:
            observation = batch_of_one(observation)
        if text:
            self._check_text(observation.agents)
        else:
            self._check(observation.agents)
        with torch.inference_mode():
            inputs = self.policy.encode(observation)
            self.memory = self.memory or Memory(self.policy, len(observation.alive))
            decision = self.policy.act(self.memory.join(inputs), self.generator, deterministic)
            self.memory.keep(decision)
        action = decision.action
        return action[0] if single else action

    def _all_alive(self, agents: np.ndarray) -> Obs:
        """An observation of living agents that may do everything. Actors do not read the state, so it is zero."""
        self._check(agents)
        leading = agents.shape[:-1]
        exists = np.arange(self.spec.action_size) < np.asarray(self.spec.action_sizes)[:, None]
        mask = np.broadcast_to(exists, (*leading, self.spec.action_size)).copy()
        state = np.zeros((*leading[:-1], self.spec.state_size), dtype=np.float32) if self.spec.state_size else None
        return Obs(agents, np.ones(leading, dtype=bool), mask, state)

    def _check_text(self, rows: Any) -> None:
        count = self.spec.num_agents
        for row in rows:
            if isinstance(row, str) or len(row) != count or not all(isinstance(text, str) for text in row):
                raise ValueError(f"observation is {row!r:.80}; {self.spec.name} gives {count} strings, or E times that")

    def _check(self, agents: np.ndarray) -> None:
        expected = (self.spec.num_agents, self.spec.observation_size)
        if agents.shape[-2:] != expected or agents.ndim > 3:
            raise ValueError(f"observation has shape {agents.shape}; {self.spec.name} gives {expected}, or E of them")


def load_policy(
    path: str | Path, which: str | int = "best", spec: EnvSpec | None = None, trust: bool = False
) -> LoadedPolicy:
    """The policy of a run's folder or of one checkpoint; its simulator need not be installed.

    `which` is "best" (by evaluation; the last where none was evaluated), "last", or a step. `spec` is that of the
    environment to act in, for a policy that acts in others than it has learned in. `trust` opens a folder of
    language-model weights that is named by a run which this user did not make. Raises CheckpointError where there is no
    checkpoint, or it does not fit, and ConfigError where trust is missing.
    """
    path = Path(path)
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint = load_checkpoint(root, which)
    return LoadedPolicy(make_policy(checkpoint, spec, trust), checkpoint.step)


def load_checkpoint(root: Path, which: Any) -> Checkpoint:
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; give a run's folder, such as runs/NAME, or one checkpoint's")
    return load(root, which=which)


def make_policy(checkpoint: Checkpoint, spec: EnvSpec | None = None, trust: bool = False) -> Policy:
    """The policy for the environment that it has learned in, or for another.

    Raises CheckpointError where it does not fit, and ConfigError where trust is missing, see `load_policy`.
    """
    data = checkpoint.data
    names = external_of_agent(data["agent"], data["agent_options"])
    require_trust(checkpoint.path.absolute().parent.parent, names, trust)
    entry = AGENTS.get(data["agent"])
    options = dacite.from_dict(entry.options, data["agent_options"], dacite.Config(strict=True, cast=[tuple]))
    policy = entry.make(spec or spec_from_json(data["spec"]), options)
    give_weights(policy.module, policy.spec, checkpoint)
    policy.module.eval()
    return policy


def give_weights(module: torch.nn.Module, spec: EnvSpec, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError, with a note of where they were learned, where the weights do not fit."""
    try:
        load_weights(module, checkpoint.tensors["model"], checkpoint.path)
    except CheckpointError as error:
        learned = spec_from_json(checkpoint.data["spec"])
        there, here = (f"{each.name} (agents: {each.num_agents})" for each in (learned, spec))
        error.add_note(f"they were learned in {there}, and this is {here}")
        if learned.num_agents != spec.num_agents and spec.entities is None and spec.observation_sizes:
            error.add_note("where an environment shows entities (SMAC: layout=entities), agents fit teams of any size")
        raise


def batch_of_one(obs: Obs) -> Obs:
    """One observation with a leading axis E = 1."""

    def lift(x: Any) -> Any:
        return None if x is None else x[None] if isinstance(x, np.ndarray) else [x]

    return Obs(**{f.name: lift(getattr(obs, f.name)) for f in dataclasses.fields(obs)})
