"""PPO with multi-layer perceptrons: IPPO (de Witt et al. 2020), MAPPO (Yu et al. 2022), HAPPO (Kuba et al. 2022).

Shape legend: B rows (environments, or steps x environments), E environments, N agents, D features, S state, L slots,
A distribution parameters, K steps of a segment, W width of a recurrent state.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor

from marl.agents.entities import EntityActor, EntityCritic, reads_entities
from marl.agents.heads import make_head, mlp, sample
from marl.agents.parameter_sharing import NetworkSets, Sharing, make_actors, parameter_sets
from marl.agents.policy_base import VectorOptions, VectorPolicy, active_agents
from marl.agents.recurrent import RecurrentActors, RecurrentMLP, recurrent_inputs
from marl.errors import ConfigError
from marl.registry import register_agent
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes
from marl.value_norm import RunningMoments


@dataclass(frozen=True)
class MLPOptions(VectorOptions):
    """Options of MAPPO and IPPO."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    parameters_per: Sharing = "team"
    """Agents that share an actor: the team, those of one agent_type, or none. Only team reads entity
    observations as such."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden={self.hidden} are no widths. Give one or more positive ones, such as 64 64")


@dataclass(frozen=True)
class HAPPOOptions(MLPOptions):
    """Options of HAPPO."""

    parameters_per: Sharing = "agent"
    """Agents that share an actor: the team, those of one agent_type, or none."""


class MLPPolicy(VectorPolicy):
    """Actors on the agents' own observations. The critic reads the same, or everything if `central`.

    A central critic has one output per agent. It reads the state, or the observations of all living agents if the
    environment has no state.
    """

    evaluates_one = False
    """`evaluate` can compute a single agent's actor alone."""

    def __init__(self, spec: EnvSpec, options: MLPOptions, central: bool) -> None:
        super().__init__(spec, options.agent_id, options.normalize_observations)
        self.central = central
        entities = reads_entities(spec, options) and not options.bptt_steps
        self.reads_state = central and spec.state_size > 0 and not entities
        sets = parameter_sets(spec, options.parameters_per)
        self.head = make_head(spec, options.max_std, options.init_std, sets)
        self.slots = self.head.slots
        self.state_moments = None
        if entities:
            self.actor: Any = EntityActor(spec, options.hidden)
            self.critic: Any = EntityCritic(spec, options.hidden, central)
            return
        self.evaluates_one = not options.bptt_steps
        norm = options.observation_layer_norm
        self.actor = make_actors(self.feature_size, options.hidden, self.head.size, sets, input_norm=norm)
        if self.reads_state and options.normalize_observations:
            self.state_moments = RunningMoments(1, spec.state_size)
        if central:
            width = spec.state_size or spec.num_agents * spec.observation_size
            self.critic = mlp(width, options.hidden, spec.num_agents, 1.0, input_norm=norm)
        else:
            self.critic = mlp(self.feature_size, options.hidden, 1, 1.0, input_norm=norm)

    def critic_input(self, inputs: Inputs) -> Tensor:
        """Return what the critic reads: (B, N, D), or (B, S) if central."""
        if not self.central:
            return self.features(inputs)
        if self.reads_state:
            state = inputs["state"]
            return state if self.state_moments is None else self.state_moments(state.unsqueeze(-2)).squeeze(-2)
        x = inputs["agents"] if self.moments is None else self.moments(inputs["agents"])
        return x.masked_fill(~inputs["alive"].unsqueeze(-1), 0.0).flatten(-2)

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N)."""
        if isinstance(self.critic, EntityCritic):
            return self.critic(inputs["agents"], inputs["alive"])
        value = self.critic(self.critic_input(inputs))
        return value if self.central else value.squeeze(-1)

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Decide for all agents at once."""
        parameters = self.actor(self.features(inputs))
        return self.decision(inputs, parameters, self.value(inputs), generator, deterministic)

    def decision(
        self, inputs: Inputs, parameters: Tensor, value: Tensor, generator: Generator | None, deterministic: bool
    ) -> Decision:
        """Sample from distributions with `parameters` (E, N, A), and return the decision with values (E, N)."""
        noise = None if deterministic else self.head.noise(tuple(parameters.shape[:-1]), parameters.device, generator)
        action, log_prob = sample(self.head, parameters, inputs["action_mask"], noise)
        return Decision(self.head.to_env(action), self.nodes(inputs, action), log_prob, value.unsqueeze(-1))

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability and entropy (B, N, L) and value (B, N, 1) of stored nodes, differentiable.

        Actors without a node in `nodes.loss_mask` are not computed.
        """
        active = active_agents(nodes.loss_mask)
        if not any(active):
            return value_only(self.node_value(inputs), nodes)
        if active.count(True) == 1 and self.evaluates_one:
            return self.evaluate_one(inputs, nodes, active)
        parameters = self.actor(self.features(inputs), active)
        return self.evaluation(inputs, nodes, parameters, self.node_value(inputs), active)

    def node_value(self, inputs: Inputs) -> Tensor:
        """Return values (B, N, 1). They are zeros if `agent_inputs` left out what the critic reads."""
        if "alive" in inputs:
            return self.value(inputs).unsqueeze(-1)
        return inputs["agents"].new_zeros(len(inputs["agents"]), self.spec.num_agents, 1)

    def evaluate_one(self, inputs: Inputs, nodes: Nodes, active: list[bool]) -> Evaluation:
        """Return the evaluation when a single agent is active, at the cost of one actor."""
        agent = active.index(True)
        own = slice(agent, agent + 1)
        mine = inputs if inputs["agents"].shape[1] == 1 else inputs | agent_slice(inputs, own)
        actor = self.actor.network_for(agent) if isinstance(self.actor, NetworkSets) else self.actor
        parameters = actor(self.features(mine, own))
        order = torch.tensor([[agent]], device=parameters.device)
        evaluated = self.head.evaluate(parameters, mine["action_mask"], nodes.action[:, own], order, active)
        log_prob, entropy = (F.pad(x, (0, 0, agent, self.spec.num_agents - 1 - agent)) for x in evaluated)
        return Evaluation(log_prob, entropy, self.node_value(inputs))

    def agent_inputs(self, inputs: Inputs, agent: int) -> Inputs:
        """Return what `evaluate` reads when only one agent's decisions are learned, and no values.

        That is the agent's own "agents" (B, 1, D) and "action_mask" (B, 1, A), if its actor can be computed alone.
        """
        if not self.evaluates_one:
            return inputs
        return {name: x.contiguous() for name, x in agent_slice(inputs, slice(agent, agent + 1)).items()}

    def num_evaluated(self, nodes: Nodes) -> int:
        """Return the number of agents per row whose features `evaluate` computes."""
        alone = self.evaluates_one and active_agents(nodes.loss_mask).count(True) == 1
        return 1 if alone else super().num_evaluated(nodes)

    def evaluation(
        self, inputs: Inputs, nodes: Nodes, parameters: Tensor, value: Tensor, active: list[bool]
    ) -> Evaluation:
        """Return the evaluation of distributions with `parameters` (B, N, A) and values (B, N, 1)."""
        log_prob, entropy = self.head.evaluate(parameters, inputs["action_mask"], nodes.action, active=active)
        return Evaluation(log_prob, entropy, value)

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Add a rollout's observations (B, N, D) and states (B, S) to the running moments."""
        super().update_statistics(inputs, nodes)
        if self.state_moments is not None:
            self.state_moments.update(inputs["state"].unsqueeze(-2), nodes.node_mask.any(-1).any(-1, keepdim=True))


def value_only(value: Tensor, nodes: Nodes) -> Evaluation:
    """Return the evaluation of rows without decisions, with values (B, N, 1)."""
    zeros = value.new_zeros(nodes.node_mask.shape)
    return Evaluation(zeros, zeros, value)


def agent_slice(inputs: Inputs, agents: slice) -> Inputs:
    """Return observations (B, M, D) and masks (B, M, A) of the M agents of a slice."""
    return {name: inputs[name][:, agents] for name in ("agents", "action_mask")}


class RecurrentPolicy(MLPPolicy):
    """Actors and critic with recurrent states of their own (Yu et al. 2022). A central critic has one for the team."""

    def __init__(self, spec: EnvSpec, options: MLPOptions, central: bool) -> None:
        super().__init__(spec, options, central)
        self.actor, self.critic = RecurrentActors(self.actor, spec.num_agents), RecurrentMLP(self.critic)
        self.bptt_steps = options.bptt_steps
        self.recurrent_shape = (spec.num_agents + (1 if central else spec.num_agents), options.hidden[-1])

    def actor_forward(self, inputs: Inputs, steps: int, active: list[bool] | None) -> tuple[Tensor, Tensor]:
        """Return distribution parameters (B, N, A), and the actors' state (B / K, N, W) after each segment."""
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents))
        return self.actor(self.features(inputs), past, active)

    def critic_forward(self, inputs: Inputs, steps: int) -> tuple[Tensor, Tensor]:
        """Return values (B, N), and the critic's state (B / K, R, W) after each segment."""
        x = self.critic_input(inputs)
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents, None))
        value, state = self.critic(x.unsqueeze(1) if self.central else x, past)
        return value.flatten(1), state

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N)."""
        return self.critic_forward(inputs, 1)[0]

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Decide for all agents at once, and return the recurrent state of the next step."""
        parameters, actor_state = self.actor_forward(inputs, 1, None)
        value, critic_state = self.critic_forward(inputs, 1)
        decision = self.decision(inputs, parameters, value, generator, deterministic)
        return replace(decision, recurrent_state=torch.cat([actor_state, critic_state], 1))

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability and entropy (B, N, L) and value (B, N, 1) of stored segments, differentiable."""
        active = active_agents(nodes.loss_mask)
        value = self.critic_forward(inputs, self.bptt_steps)[0].unsqueeze(-1)
        if not any(active):
            return value_only(value, nodes)
        parameters, _ = self.actor_forward(inputs, self.bptt_steps, active)
        return self.evaluation(inputs, nodes, parameters, value, active)


def make_policy(spec: EnvSpec, options: MLPOptions, central: bool) -> MLPPolicy:
    """Return the policy for `options`, recurrent if they ask for it."""
    return (RecurrentPolicy if options.bptt_steps else MLPPolicy)(spec, options, central)


@register_agent("mappo", options=MLPOptions, summary="PPO with a shared actor and a central critic")
def make_mappo(spec: EnvSpec, options: MLPOptions) -> MLPPolicy:
    """Return MAPPO for `spec`."""
    return make_policy(spec, options, central=True)


@register_agent("ippo", options=MLPOptions, summary="independent PPO: actor and critic see one agent's observation")
def make_ippo(spec: EnvSpec, options: MLPOptions) -> MLPPolicy:
    """Return IPPO for `spec`."""
    return make_policy(spec, options, central=False)


@register_agent(
    "happo",
    options=HAPPOOptions,
    summary="PPO for one agent after another, corrected for the agents updated before; a central critic",
    defaults={"agent_updates": "sequential"},
)
def make_happo(spec: EnvSpec, options: HAPPOOptions) -> MLPPolicy:
    """Return HAPPO for `spec`."""
    return make_policy(spec, options, central=True)
