"""Loading of trained policies, and their specs as JSON."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dacite
import gymnasium
import numpy as np
import torch

from marl.checkpoint.codec import load_weights
from marl.checkpoint.store import Checkpoint, load
from marl.errors import CheckpointError, MarlError
from marl.policy import Policy, require_policy
from marl.recurrent_state import RecurrentState
from marl.registry import AGENTS
from marl.trust import external_of_agent, require_trust
from marl.types import EntityLayout, EnvSpec, Obs


class LoadedPolicy:
    """A trained policy: call `reset()` at the start of an episode, and `act(observation)` at every step.

    `reset` only matters for recurrent agents.
    """

    def __init__(self, policy: Policy, step: int) -> None:
        self.policy, self.step = policy, step
        self.generator = torch.Generator(device=policy.device).manual_seed(0)
        self.recurrent_state: RecurrentState | None = None

    @property
    def spec(self) -> EnvSpec:
        """Specification of the environment that the policy acts in."""
        return self.policy.spec

    def reset(self, ended: np.ndarray | None = None) -> None:
        """Reset the recurrent state of all environments, or of those where `ended` (E,) is True."""
        if ended is None:
            self.recurrent_state = None
        elif self.recurrent_state is not None:
            self.recurrent_state.reset(ended)

    def act(self, observation: Any, deterministic: bool = True, candidates: Any = None) -> Any:
        """Return the actions for one observation of all agents: (N,) int64, (N, A) float32 or N strings.

        `observation`: an `Obs`; an array (N, D); N texts; a dictionary of arrays or texts by agent name, without dead
        agents; or the text of a single agent. All except the dictionary and the single text may have a leading axis E,
        which the actions then have too. The actions for a dictionary are a dictionary, for a text a text.
        `candidates`: the texts to choose from, in the form of the observation; without them any text is an action.
        All agents of an observation other than an `Obs` are alive, and all their actions are available.

        Raises ValueError for anything else, for `candidates` with an `Obs`, and if E changes for a recurrent policy
        without a reset.
        """
        obs = self._obs(observation, candidates)
        single = np.ndim(obs.alive) == 1
        if single:
            obs = batch_of_one(obs)
        with torch.inference_mode():
            inputs = self.policy.encode(obs)
            self.recurrent_state = self.recurrent_state or RecurrentState(self.policy, len(obs.alive))
            decision = self.policy.act(self.recurrent_state.add_to(inputs), self.generator, deterministic)
            self.recurrent_state.update(decision)
        action = decision.action[0] if single else decision.action
        if isinstance(observation, Mapping):
            return {name: self._own_action(action, self.spec.agents.index(name)) for name in observation}
        return action[0] if isinstance(observation, str) else action

    def _obs(self, observation: Any, candidates: Any) -> Obs:
        if isinstance(observation, Obs):
            if candidates is not None:
                raise ValueError("candidates are given twice; leave the argument out, because an Obs has its own")
            self._check(observation.agents)
            return observation
        if isinstance(observation, Mapping):
            return self._from_names(observation, candidates)
        if isinstance(observation, str):
            observation, candidates = [observation], None if candidates is None else [candidates]
        agents = observation if self._reads_text else self._as_array(observation)
        self._check(agents)
        return self._all_alive(agents, self._leading(agents), candidates)

    def _from_names(self, given: Mapping[str, Any], candidates: Any) -> Obs:
        """Return the observation in which the named agents are alive and all others dead."""
        spec = self.spec
        unknown = [name for name in given if name not in spec.agents]
        if unknown or not given:
            found = f"agents {', '.join(map(repr, unknown))}" if unknown else "nobody"
            raise ValueError(f"observation is of {found}; {spec.name} has {', '.join(spec.agents)}")
        if self._reads_text:
            agents: Any = [given.get(name, "") for name in spec.agents]
        else:
            agents = np.zeros((spec.num_agents, spec.observation_size), dtype=np.float32)
            for index, (name, size) in enumerate(zip(spec.agents, spec.observation_sizes, strict=True)):
                own = self._as_array(given[name]) if name in given else np.zeros(size)
                if own.shape not in ((size,), (spec.observation_size,)):
                    raise ValueError(f"the observation of {name} has shape {own.shape}; {spec.name} gives ({size},)")
                agents[index, : len(own)] = own
        self._check(agents)
        if candidates is not None:
            if not isinstance(candidates, Mapping) or candidates.keys() != given.keys():
                raise ValueError(
                    "candidates are not for the agents of the observation; give a dictionary of the same keys"
                )
            candidates = [candidates.get(name, ("wait",)) for name in spec.agents]
        alive = np.array([name in given for name in spec.agents])
        return replace(self._all_alive(agents, alive.shape, candidates), alive=alive)

    def _all_alive(self, agents: Any, shape: tuple[int, ...], candidates: Any) -> Obs:
        """Return an observation of living agents, (N,) or (E, N), with all actions available and a zero state."""
        spec, alive = self.spec, np.ones(shape, dtype=bool)
        if self._reads_text:
            self._check_candidates(shape, candidates)
            return Obs(agents, alive, candidates=candidates)
        if candidates is not None:
            raise ValueError(f"{spec.name} has no texts to choose from; leave candidates out")
        exists = np.arange(spec.action_size) < np.asarray(spec.action_sizes)[:, None]
        mask = np.broadcast_to(exists, (*shape, spec.action_size)).copy()
        state = np.zeros((*shape[:-1], spec.state_size), dtype=np.float32) if spec.state_size else None
        return Obs(agents, alive, mask, state)

    def _own_action(self, action: Any, index: int) -> Any:
        """Return the action of one agent: an integer, an array of its own width, or a text."""
        space = self.spec.action_spaces[index]
        if isinstance(space, gymnasium.spaces.Text):
            return action[index]
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(np.ravel(action[index])[0])
        return action[index, : self.spec.action_sizes[index]]

    @property
    def _reads_text(self) -> bool:
        return isinstance(self.spec.observation_space, gymnasium.spaces.Text)

    def _leading(self, agents: Any) -> tuple[int, ...]:
        """Return the leading shape of checked observations, (N,) or (E, N)."""
        if isinstance(agents, np.ndarray) and agents.dtype.kind == "f":
            return agents.shape[:-1]
        return (len(agents),) if isinstance(agents[0], str) else (len(agents), self.spec.num_agents)

    def _as_array(self, observation: Any) -> np.ndarray:
        try:
            return np.asarray(observation, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"observation={observation!r:.80}, no array of numbers ({error}); {self._expected}"
            ) from error

    def _check(self, agents: Any) -> None:
        """Raise ValueError unless `agents` are the observations of all agents, with or without a leading axis E."""
        if self._reads_text:
            rows = [agents] if _are_texts(agents, self.spec.num_agents) else agents
            fits = _is_row(rows) and len(rows) > 0 and all(_are_texts(row, self.spec.num_agents) for row in rows)
            found = f"observation={agents!r:.80}"
        else:
            sizes = (self.spec.num_agents, self.spec.observation_size)
            fits = isinstance(agents, np.ndarray) and agents.shape[-2:] == sizes and agents.ndim <= 3
            shape = f"observation has shape {getattr(agents, 'shape', None)}"
            found = shape if isinstance(agents, np.ndarray) else f"observation={agents!r:.80}"
        if not fits:
            raise ValueError(f"{found}; {self._expected}")

    def _check_candidates(self, shape: tuple[int, ...], candidates: Any) -> None:
        """Raise ValueError unless every agent of every environment has candidates."""
        if candidates is None:
            return
        rows = candidates if len(shape) == 2 else [candidates]
        fits = _is_row(rows) and len(rows) == (shape[0] if len(shape) == 2 else 1)
        if not fits or not all(_is_row(row) and len(row) == shape[-1] and all(map(_are_texts, row)) for row in rows):
            raise ValueError(
                f"candidates are {candidates!r:.80}; give each agent a list of texts, in the form of the observation"
            )

    @property
    def _expected(self) -> str:
        count, name = self.spec.num_agents, self.spec.name
        if self._reads_text:
            alone = "its text, " if count == 1 else ""
            return f"{name} is read as text: give {alone}{count} strings, E times that, a dictionary of them, or an Obs"
        return f"{name} gives {(count, self.spec.observation_size)}, or E of them, or a dictionary of arrays by agent"


def _is_row(x: Any) -> bool:
    return isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.ndim > 0)


def _are_texts(row: Any, count: int | None = None) -> bool:
    """Return True for a list of `count` strings, or of at least one."""
    right = _is_row(row) and (len(row) == count if count is not None else len(row) > 0)
    return right and all(isinstance(text, str) for text in row)


def load_policy(
    path: str | Path, which: str | int = "best", spec: EnvSpec | None = None, trust: bool = False
) -> LoadedPolicy:
    """Return the policy of a run's folder or of one checkpoint. Its simulator need not be installed.

    `which`: "best" (by evaluation; the last if none was evaluated), "last", or a step. `spec`: the environment to act
    in, if it is not the one of training. `trust` allows the code and the files outside the package that a run of
    another user names. Raises CheckpointError if there is no fitting checkpoint, and ConfigError if trust is missing.
    """
    path = Path(path)
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint = load_checkpoint(root, which)
    return LoadedPolicy(make_policy(checkpoint, spec, trust), checkpoint.step)


def load_checkpoint(root: Path, which: Any) -> Checkpoint:
    """Return a checkpoint of a run. Raises CheckpointError if `root` is no folder, or if there is none."""
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; give a run's folder, such as runs/NAME, or one checkpoint's")
    return load(root, which=which, check=require_run)


RUN_FIELDS: dict[str, type] = {
    "iteration": int,
    "annealing": dict,
    "warned": list,
    "evaluation_missing": bool,
    "world_size": int,
    "free_threads": int,
    "optimizer": dict,
    "ranks": list,
    "digest": str,
    "agent": str,
    "agent_options": dict,
    "spec": dict,
}
"""Names and types of the data in a run's checkpoint."""


def require_run(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless the checkpoint has all data of a run."""
    if absent := [name for name in RUN_FIELDS if name not in checkpoint.data]:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was made by another version of seqmarl: it lacks {', '.join(absent)}; load "
            "it with that version, or train again"
        )
    for name, kind in RUN_FIELDS.items():
        if type(value := checkpoint.data.get(name)) is not kind:
            raise CheckpointError(f"checkpoint {checkpoint.path} is damaged: its data has {name}={value!r:.80}")
    for group in ("model", "optimizer", "value_norm"):
        if group not in checkpoint.tensors:
            raise CheckpointError(f"checkpoint {checkpoint.path} is damaged: it lacks {group}.safetensors")
    try:
        spec_from_json(checkpoint.data["spec"])
    except Exception as error:  # the data of a run may be anybody's
        raise CheckpointError(f"checkpoint {checkpoint.path} is damaged: its spec is unreadable: {error!r}") from error


def make_policy(checkpoint: Checkpoint, spec: EnvSpec | None = None, trust: bool = False) -> Policy:
    """Return the policy of a checkpoint for the environment of training, or for `spec`.

    Raises CheckpointError if it does not fit, and ConfigError if trust is missing, see `load_policy`.
    """
    data = checkpoint.data
    names = external_of_agent(data["agent"], data["agent_options"])
    require_trust(checkpoint.path.absolute().parent.parent, names, trust)
    entry = AGENTS.get(data["agent"])
    try:
        options = dacite.from_dict(entry.options, data["agent_options"], dacite.Config(strict=True, cast=[tuple]))
        policy = require_policy(entry.make(spec or spec_from_json(data["spec"]), options), data["agent"])
    except MarlError:
        raise
    except Exception as error:
        raise CheckpointError(f"{checkpoint.path} holds no agent that can be made: {error!r}") from error
    load_policy_weights(policy, policy.spec, checkpoint)
    policy.eval()
    return policy


def load_policy_weights(module: torch.nn.Module, spec: EnvSpec, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint. Raises CheckpointError that names both environments if they do not fit."""
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
    """Return an observation with a leading axis E = 1."""

    def lift(x: Any) -> Any:
        return None if x is None else x[None] if isinstance(x, np.ndarray) else [x]

    return Obs(**{f.name: lift(getattr(obs, f.name)) for f in dataclasses.fields(obs)})


_SPACES = ("observation_space", "action_space", "state_space")


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Return a spec as JSON data, so that a trained policy loads without its simulator.

    Raises CheckpointError for a space that cannot be saved.
    """
    data = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    if spec.entities is not None:
        data["entities"] = dataclasses.asdict(spec.entities)
    return data | {name: _space_to_json(data[name]) for name in _SPACES}


def spec_from_json(data: dict[str, Any]) -> EnvSpec:
    """Return the spec of `spec_to_json`. Lists become tuples again."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    if (entities := fields.get("entities")) is not None:
        blocks = tuple(tuple(block) for block in entities["blocks"])
        fields["entities"] = EntityLayout(**(entities | {"blocks": blocks}))
    return EnvSpec(**(fields | {name: _space_from_json(data[name]) for name in _SPACES}))


def _space_to_json(space: gymnasium.Space | None) -> dict[str, Any] | None:
    if space is None:
        return None
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n)}
    if isinstance(space, gymnasium.spaces.Box):
        bounds = {name: [repr(float(x)) for x in getattr(space, name)] for name in ("low", "high")}
        return {"kind": "box", "dtype": str(space.dtype), **bounds}
    if isinstance(space, gymnasium.spaces.Text):
        return {"kind": "text", "max_length": space.max_length, "characters": space.characters}
    if isinstance(space, gymnasium.spaces.Tuple):
        return {"kind": "tuple", "spaces": [_space_to_json(each) for each in space.spaces]}
    raise CheckpointError(f"a {type(space).__name__} space cannot be saved; use Box, Discrete, Text or a Tuple")


def _space_from_json(data: dict[str, Any] | None) -> Any:
    if data is None:
        return None
    if data["kind"] == "discrete":
        return gymnasium.spaces.Discrete(data["n"])
    if data["kind"] == "box":
        dtype: Any = np.dtype(data["dtype"]).type
        low, high = (np.array([float(x) for x in data[name]], dtype=dtype) for name in ("low", "high"))
        return gymnasium.spaces.Box(low, high, dtype=dtype)
    if data["kind"] == "tuple":
        return gymnasium.spaces.Tuple([_space_from_json(each) for each in data["spaces"]])
    return gymnasium.spaces.Text(data["max_length"], charset=data["characters"])
