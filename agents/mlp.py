"""PPO with multi-layer perceptrons: IPPO (de Witt et al. 2020), MAPPO (Yu et al. 2022), HAPPO (Kuba et al. 2022)."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor

from marl.agents.entities import EntityActor, EntityCritic, reads_entities
from marl.agents.parameter_sharing import NetworkSets, Sharing, parameter_sets
from marl.agents.policy_base import VectorOptions, VectorPolicy, active_agents, make_actors, make_head, mlp, sample
from marl.agents.recurrent import RecurrentActors, RecurrentMLP, recurrent_inputs
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes
from marl.value_norm import RunningMoments


@dataclass(frozen=True)
class MLPOptions(VectorOptions):
    """PPO with an actor and a critic for each agent."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    parameters_per: Sharing = "team"
    """Who has an actor: the team together, each group of agents (by type, as the environment says), or each agent. Only
    a team's can read entities, for teams of any size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden is {self.hidden}; give one or more positive widths, such as 64 64")


class MLPPolicy(VectorPolicy):
    """Actors on the agents' own observations. The critic reads the same, or, where central, everything.

    A central critic has one output per agent; it reads the state, or where an environment has none the
    observations of all living agents.
    """

    acts_alone = False
    """Actors can be asked one by one."""

    def __init__(self, spec: EnvSpec, options: MLPOptions, central: bool) -> None:
        super().__init__(spec, options.agent_id, options.normalize_observations)
        self.central = central
        sees = reads_entities(spec, options) and not options.bptt_steps
        self.reads_state = central and spec.state_size > 0 and not sees
        places = parameter_sets(spec, options.parameters_per)
        self.head = make_head(spec, options.max_std, options.init_std, places)
        self.slots = self.head.slots
        self.state_moments = None
        if sees:
            self.actor: Any = EntityActor(spec, options.hidden)
            self.critic: Any = EntityCritic(spec, options.hidden, central)
            return
        self.acts_alone = not options.bptt_steps
        self.actor = make_actors(self.feature_size, options.hidden, self.head.size, places)
        if self.reads_state and options.normalize_observations:
            self.state_moments = RunningMoments(1, spec.state_size)
        if central:
            width = spec.state_size or spec.num_agents * spec.observation_size
            self.critic = mlp(width, options.hidden, spec.num_agents, 1.0)
        else:
            self.critic = mlp(self.feature_size, options.hidden, 1, 1.0)

    def critic_input(self, inputs: Inputs) -> Tensor:
        """What the critic reads: (E, N, D), or where central (E, S)."""
        if not self.central:
            return self.features(inputs)
        if self.reads_state:
            view = inputs["state"]
            return view if self.state_moments is None else self.state_moments(view.unsqueeze(-2)).squeeze(-2)
        x = inputs["agents"] if self.moments is None else self.moments(inputs["agents"])
        return x.masked_fill(~inputs["alive"].unsqueeze(-1), 0.0).flatten(-2)

    def value(self, inputs: Inputs) -> Tensor:
        if isinstance(self.critic, EntityCritic):
            return self.critic(inputs["agents"], inputs["alive"])
        value = self.critic(self.critic_input(inputs))
        return value if self.central else value.squeeze(-1)

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        parameters = self.actor(self.features(inputs))
        return self.decision(inputs, parameters, self.value(inputs), generator, deterministic)

    def decision(
        self, inputs: Inputs, parameters: Tensor, value: Tensor, generator: Generator | None, deterministic: bool
    ) -> Decision:
        """Of the distributions' `parameters` (E, N, A) and the values (E, N)."""
        noise = None if deterministic else self.head.noise(tuple(parameters.shape[:-1]), parameters.device, generator)
        action, log_prob = sample(self.head, parameters, inputs["action_mask"], noise)
        nodes = self.nodes(inputs, self.head, action, None)
        return Decision(self.head.to_env(action), nodes, log_prob, value.unsqueeze(-1))

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        present = active_agents(nodes.loss_mask)
        if not any(present):
            return value_only(self.node_value(inputs), nodes)
        if present.count(True) == 1 and self.acts_alone:
            return self.evaluate_one(inputs, nodes, present)
        parameters = self.actor(self.features(inputs), present)
        return self.evaluation(inputs, nodes, parameters, self.node_value(inputs), present)

    def node_value(self, inputs: Inputs) -> Tensor:
        """Return values (B, N, 1), zeros where `turn` left out what the critic reads."""
        if "alive" in inputs:
            return self.value(inputs).unsqueeze(-1)
        return inputs["agents"].new_zeros(len(inputs["agents"]), self.spec.num_agents, 1)

    def evaluate_one(self, inputs: Inputs, nodes: Nodes, present: list[bool]) -> Evaluation:
        """The same where a single agent is present, for the work of one."""
        agent = present.index(True)
        own = slice(agent, agent + 1)
        mine = inputs if inputs["agents"].shape[1] == 1 else inputs | agent_slice(inputs, own)
        actor = self.actor.network_for(agent) if isinstance(self.actor, NetworkSets) else self.actor
        parameters = actor(self.features(mine, own))
        place = torch.tensor([[agent]], device=parameters.device)
        told = self.head.evaluate(parameters, mine["action_mask"], nodes.action[:, own], place, present)
        log_prob, entropy = (F.pad(x, (0, 0, agent, self.spec.num_agents - 1 - agent)) for x in told)
        return Evaluation(log_prob, entropy, self.node_value(inputs))

    def agent_inputs(self, inputs: Inputs, agent: int) -> Inputs:
        """Return what `evaluate` reads where one agent's decisions are learned and no values.

        Where actors can be asked one by one, that is the agent's own "agents" (B, 1, D) and "action_mask" (B, 1, A).
        """
        if not self.acts_alone:
            return inputs
        return {name: x.contiguous() for name, x in agent_slice(inputs, slice(agent, agent + 1)).items()}

    def active(self, nodes: Nodes) -> int:
        """As the base; where a single actor is asked it is one."""
        alone = self.acts_alone and active_agents(nodes.loss_mask).count(True) == 1
        return 1 if alone else super().active(nodes)

    def evaluation(
        self, inputs: Inputs, nodes: Nodes, parameters: Tensor, value: Tensor, present: list[bool]
    ) -> Evaluation:
        log_prob, entropy = self.head.evaluate(parameters, inputs["action_mask"], nodes.action, present=present)
        return Evaluation(log_prob, entropy, value)

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        super().update_statistics(inputs, nodes)
        if self.state_moments is not None:
            self.state_moments.update(inputs["state"].unsqueeze(-2), nodes.node_mask.any(-1).any(-1, keepdim=True))


def value_only(value: Tensor, nodes: Nodes) -> Evaluation:
    """Return the evaluation of rows in which nobody decides anything, with values (B, N, 1)."""
    nothing = value.new_zeros(nodes.node_mask.shape)
    return Evaluation(nothing, nothing, value)


def agent_slice(inputs: Inputs, agents: slice) -> Inputs:
    """Observations (B, K, D) and masks (B, K, A) of K agents."""
    return {name: inputs[name][:, agents] for name in ("agents", "action_mask")}


class RecurrentPolicy(MLPPolicy):
    """Actors and critic with memories of their own (Yu et al. 2022); a central critic has one for the whole team."""

    def __init__(self, spec: EnvSpec, options: MLPOptions, central: bool) -> None:
        super().__init__(spec, options, central)
        self.actor, self.critic = RecurrentActors(self.actor, spec.num_agents), RecurrentMLP(self.critic)
        self.bptt_steps = options.bptt_steps
        self.recurrent_shape = (spec.num_agents + (1 if central else spec.num_agents), options.hidden[-1])

    def decide(self, inputs: Inputs, steps: int, present: list[bool] | None) -> tuple[Tensor, Tensor]:
        """Parameters (B, N, A) of the distributions, and the actors' memory (B / `steps`, N, W) behind each chunk."""
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents))
        return self.actor(self.features(inputs), past, present)

    def critic_forward(self, inputs: Inputs, steps: int) -> tuple[Tensor, Tensor]:
        """Values (B, N), and the critic's memory (B / `steps`, R, W) behind each chunk."""
        view = self.critic_input(inputs)
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents, None))
        value, memory = self.critic(view.unsqueeze(1) if self.central else view, past)
        return value.flatten(1), memory

    def value(self, inputs: Inputs) -> Tensor:
        return self.critic_forward(inputs, 1)[0]

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        parameters, actors = self.decide(inputs, 1, None)
        value, critic = self.critic_forward(inputs, 1)
        decision = self.decision(inputs, parameters, value, generator, deterministic)
        return replace(decision, recurrent_state=torch.cat([actors, critic], 1))

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        present = active_agents(nodes.loss_mask)
        value = self.critic_forward(inputs, self.bptt_steps)[0].unsqueeze(-1)
        if not any(present):
            return value_only(value, nodes)
        parameters, _ = self.decide(inputs, self.bptt_steps, present)
        return self.evaluation(inputs, nodes, parameters, value, present)


def make_policy(spec: EnvSpec, options: MLPOptions, central: bool) -> MLPPolicy:
    return (RecurrentPolicy if options.bptt_steps else MLPPolicy)(spec, options, central)


@register_agent("mappo", options=MLPOptions, summary="PPO with a shared actor and a central critic")
def make_mappo(spec: EnvSpec, options: MLPOptions) -> MLPPolicy:
    return make_policy(spec, options, central=True)


@register_agent("ippo", options=MLPOptions, summary="independent PPO: actor and critic see one agent's observation")
def make_ippo(spec: EnvSpec, options: MLPOptions) -> MLPPolicy:
    return make_policy(spec, options, central=False)


@dataclass(frozen=True)
class HAPPOOptions(MLPOptions):
    """PPO for one agent after another."""

    parameters_per: Sharing = "agent"
    """Who has an actor: the team together, each group of agents (by type, as the environment says), or each agent."""


@register_agent(
    "happo",
    options=HAPPOOptions,
    summary="PPO for one agent after another, each minding what those before it have changed; a central critic",
    defaults={"agent_updates": "sequential"},
)
def make_happo(spec: EnvSpec, options: HAPPOOptions) -> MLPPolicy:
    return make_policy(spec, options, central=True)
