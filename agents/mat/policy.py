"""Policies on top of the encoder: the common base, and agents that decide simultaneously.

Shape legend: B rows (environments, or steps x environments), E environments, N agents, D width, L slots,
A distribution parameters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from marl.agents.heads import make_head, sample
from marl.agents.mat.attention import FusedAttention, alive_bias, detach_leaves, encoder_block, fuse_layers
from marl.agents.mat.encoder_decoder import Encoder, observation_embedding, output_head
from marl.agents.mat.options import TeamOptions
from marl.agents.parameter_sharing import NetworkSets, parameter_sets
from marl.agents.policy_base import VectorPolicy, active_agents, no_onednn, weights_version
from marl.agents.recurrent import GRULayer, recurrent_inputs
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


class FusedEncoder(NamedTuple):
    """Encoder weights as the forward pass uses them: multiplied out where that saves work on every row."""

    embed: tuple[Tensor, Tensor] | None
    """Weight and bias of the embedding's first layer. None if embeddings are per parameter set or of entities."""
    blocks: tuple[FusedAttention, ...]


class TeamPolicy(VectorPolicy):
    """Base of the policies with an encoder. The critic gives one value per agent and step, (E, N, 1).

    Attention never reaches dead and padded agents. Nothing that a living agent does depends on them or their number.
    """

    min_passes = 3
    """One pass takes two thirds of the memory of MAT's released code. Each further pass costs about 2 ms."""

    def __init__(self, spec: EnvSpec, options: TeamOptions) -> None:
        super().__init__(spec, options.agent_id, options.normalize_observations)
        self.options: Any = options
        self.parameter_sets = parameter_sets(spec, options.parameters_per)
        self.encoder: Any = self.make_encoder(self.per_parameter_set(self.make_embed))
        self.critic = self.make_output(1)
        self.head = make_head(spec, options.max_std, options.init_std, self.parameter_sets)
        self.slots = self.head.slots
        self.gru = None
        if options.bptt_steps:
            self.make_recurrent()
        self._cache: tuple[object, Any] | None = None
        self._all_parameters: tuple[nn.Parameter, ...] = ()
        self._shared_weights: Any = None

    @property
    def num_sets(self) -> int:
        """Number of parameter sets."""
        return max(self.parameter_sets) + 1

    def per_parameter_set(self, make: Callable[[], nn.Sequential]) -> nn.Sequential | NetworkSets:
        """Return one network from `make`, or one per parameter set."""
        networks = [make() for _ in range(self.num_sets)]
        return NetworkSets(networks, self.parameter_sets) if len(networks) > 1 else networks[0]

    def make_embed(self) -> Any:
        """Return the embedding of one agent's observation."""
        return observation_embedding(self.feature_size, self.options.embedding, self.options.observation_layer_norm)

    def make_encoder(self, embed: nn.Module) -> nn.Module:
        """Return the encoder on top of `embed`."""
        return Encoder(embed, self.options.embedding, self.options.heads, self.options.blocks)

    def make_recurrent(self) -> None:
        """Make the recurrent layer, and set the shape of its state."""
        width = self.options.embedding
        self.gru = GRULayer(width)
        self.bptt_steps, self.recurrent_shape = self.options.bptt_steps, (self.spec.num_agents, width)

    def make_output(self, size: int) -> nn.Sequential:
        """Return the head of the critic or the actor, from features (..., D) to (..., size)."""
        return output_head(self.options.embedding, size)

    def make_actor(self) -> Any:
        """Return the network from features (..., D) to the parameters of the head's distribution, (..., A)."""
        return self.make_output(self.head.size)

    # Fused weights

    def fuse_embedding(self) -> tuple[Tensor, Tensor] | None:
        """Return the embedding's first linear layer, with gain and bias of the normalization before it, differentiable.

        Observations need no gradient, so their normalization then needs none either.
        """
        if isinstance(self.encoder.embed, NetworkSets):
            return None
        norm, first = self.encoder.embed[0], cast(nn.Linear, self.encoder.embed[1])
        if not isinstance(norm, nn.LayerNorm):
            return first.weight, first.bias
        return first.weight * norm.weight, first.bias + first.weight @ norm.bias

    def fuse_encoder(self) -> FusedEncoder:
        """Return the encoder's fused weights, differentiable."""
        layers = [block.attention for block in self.encoder.blocks]
        return FusedEncoder(self.fuse_embedding(), tuple(fuse_layers(layers)))

    def fuse(self) -> Any:
        """Return the fused weights that `evaluate` reads, differentiable."""
        return self.fuse_encoder()

    def build_cache(self) -> Any:
        """Return what acting makes of the weights; `cached_weights` keeps it."""
        return self.fuse()

    def cached_weights(self) -> Any:
        """Return the result of `build_cache`, made again only when the weights have changed."""
        if not self._all_parameters:
            self._all_parameters = tuple(self.parameters())
        version = weights_version(self._all_parameters)
        if self._cache is None or self._cache[0] != version:
            self._cache = (version, self.build_cache())
        return self._cache[1]

    @contextmanager
    def accumulation_context(self) -> Iterator[None]:
        """Fuse the weights once for all evaluations inside the context. At its end they get the whole gradient.

        The weights must not change inside.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        self._shared_weights = detach_leaves(self.fuse(), pairs)
        try:
            yield
        finally:
            self._shared_weights = None
        reached = [(part, leaf.grad) for part, leaf in pairs if leaf.grad is not None]
        torch.autograd.backward([part for part, _ in reached], [gradient for _, gradient in reached])

    # Forward pass

    def run_recurrent(self, inputs: Inputs, fused: FusedEncoder, steps: int) -> tuple[Inputs, Tensor | None]:
        """Run the recurrent layer over segments of `steps` rows.

        Returns the inputs with its output as "embedded", and the recurrent state (B / `steps`, N, D) after each
        segment. Without recurrence the inputs are unchanged and the state is None.
        """
        if self.gru is None:
            return inputs, None
        past = recurrent_inputs(inputs, steps, slice(self.spec.num_agents))
        x, state = self.gru(self.embed_observations(inputs, fused), past)
        return inputs | {"embedded": x}, state

    def embed_observations(self, inputs: Inputs, fused: FusedEncoder) -> Tensor:
        """Return the embedded observations (B, N, D), each agent by itself."""
        if "embedded" in inputs:
            return inputs["embedded"]
        x = self.features(inputs)
        if fused.embed is None:
            return self.encoder.embed(x)
        if self.options.observation_layer_norm:
            # With an explicit weight and bias a CPU's layer_norm is twice as fast.
            width = x.shape[-1]
            x = torch.layer_norm(x, [width], x.new_ones(width), x.new_zeros(width))
        return self.encoder.embed[3](F.gelu(F.linear(x, *fused.embed)))

    def encode_observations(self, inputs: Inputs, fused: FusedEncoder) -> Tensor:
        """Return the encoder's representation (B, N, D), in agent order."""
        x = self.embed_observations(inputs, fused)
        bias = alive_bias(inputs["alive"], self.encoder.heads, x)
        for block, own in zip(self.encoder.blocks, fused.blocks, strict=True):
            x = encoder_block(block, x, own, bias)
        return x

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N)."""
        fused = self.fuse_encoder() if torch.is_grad_enabled() else self.cached_weights()
        inputs, _ = self.run_recurrent(inputs, fused, 1)
        return self.critic(self.encode_observations(inputs, fused)).squeeze(-1)


Parameters = tuple[Tensor, Tensor | None]
"""Distribution parameters (B, N, A), and the recurrent state (B / `steps`, N, D) of actors that have their own."""


class SimultaneousPolicy(TeamPolicy):
    """Agents that decide at the same time, with the encoder's critic."""

    def distributions(
        self, inputs: Inputs, representation: Tensor, active: list[bool] | None, steps: int
    ) -> Parameters:
        """Return the distributions of all agents, in segments of `steps` rows.

        Rows of agents that are not `active` may hold anything finite.
        """
        raise NotImplementedError

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Decide for all agents at once."""
        with torch.no_grad(), no_onednn():
            inputs, state = self.run_recurrent(inputs, self.cached_weights(), 1)
            representation = self.encode_observations(inputs, self.cached_weights())
            parameters, actor_state = self.distributions(inputs, representation, None, 1)
            shape = tuple(inputs["alive"].shape)
            noise = None if deterministic else self.head.noise(shape, parameters.device, generator)
            action, log_prob = sample(self.head, parameters, inputs["action_mask"], noise)
            value = self.critic(representation)
            if state is not None and actor_state is not None:
                state = torch.cat([state, actor_state], 1)
        nodes = self.nodes(inputs, action)
        return Decision(self.head.to_env(action), nodes, log_prob, value, recurrent_state=state)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability and entropy (B, N, L) and value (B, N, 1) of stored nodes, differentiable."""
        fused = self._shared_weights or self.fuse()
        inputs, _ = self.run_recurrent(inputs, fused, self.bptt_steps)
        representation = self.encode_observations(inputs, fused)
        active = active_agents(nodes.loss_mask)
        parameters, _ = self.distributions(inputs, representation, active, self.bptt_steps)
        log_prob, entropy = self.head.evaluate(parameters, inputs["action_mask"], nodes.action, active=active)
        return Evaluation(log_prob, entropy, self.critic(representation))
