"""Agents that decide one after another, each given the actions of those before it.

Shape legend: B rows (environments, or steps x environments), E environments, N agents, D width, L slots,
A distribution parameters.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Generator, Tensor, nn

from marl.agents.heads import RELU_GAIN, CategoricalHead, MixedHead, linear
from marl.agents.mat.encoder_decoder import discrete_tokens
from marl.agents.mat.incremental_decoder import Decoded
from marl.agents.mat.order import agent_order, decision_order, fixed_order, random_order, rotations
from marl.agents.mat.policy import TeamPolicy
from marl.agents.parameter_sharing import ActionTokens, NetworkSets
from marl.agents.policy_base import active_agents, no_onednn
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes


class AutoregressivePolicy(TeamPolicy):
    """Encoder, decoder, and actor. Dead and padded agents decide last.

    A subclass gives the decoder (`make_decoder`, `decoder_memory`, `decode`) and its incremental form (`build_cache`).
    """

    critic_reads_decoder = False
    """The critic reads the decoder, so values depend on the actions before. By default it reads the encoder."""

    def __init__(self, spec: EnvSpec, options: Any) -> None:
        super().__init__(spec, options)
        self.decoder: Any = self.make_decoder(self.make_token())
        self.actor = self.per_parameter_set(self.make_actor)

    def make_token(self) -> nn.Module:
        """Return the embedding of earlier actions, from what `token_ids` returns."""
        width, head = self.options.embedding, self.head
        if isinstance(head, CategoricalHead):
            return discrete_tokens(1 + self.num_sets * head.size, width)
        if isinstance(head, MixedHead):
            return ActionTokens(head.num_choices + 1, head.gaussian.size, self.num_sets, width, RELU_GAIN)
        if self.num_sets > 1:
            return ActionTokens(1, head.size, self.num_sets, width, RELU_GAIN)
        return linear(head.size, width)

    def make_decoder(self, token: nn.Module) -> nn.Module:
        """Return the decoder, which holds `token`."""
        raise NotImplementedError

    def build_cache(self) -> tuple[Any, Any]:
        """Return the fused weights, and the incremental decoder: it has IncrementalDecoder's `decode`."""
        raise NotImplementedError

    def decoder_memory(self, inputs: Inputs, fused: Any, order: Tensor | None) -> Tensor:
        """Return what the decoder reads of the observations, (B, N, D), in decision order."""
        raise NotImplementedError

    def decode(self, representation: Tensor, action: Tensor, fused: Any, order: Tensor | None = None) -> Tensor:
        """Return features (B, N, D) of every agent given the actions before it.

        `representation` (B, N, D) and `action` (B, N, L) are in decision order.
        """
        raise NotImplementedError

    # Decision order and parameter sets

    @property
    def random_order(self) -> bool:
        """Agents decide in an order that is drawn at every step."""
        return self.options.agent_order == "random"

    def decide_order(self, alive: Tensor, generator: Generator | None) -> Tensor | None:
        """Return the decision order (E, N), or None for 0..N-1 everywhere."""
        return random_order(alive, generator) if self.random_order else fixed_order(alive)

    def position_sets(self, order: Tensor | None) -> Tensor | None:
        """Return the parameter set at each position, (N,), or (E, N) in an `order`. None if there is one set."""
        if self.num_sets == 1:
            return None
        sets = torch.tensor(self.parameter_sets, device=self.identity.device)
        return sets if order is None else sets[order]

    def row_sets(self, order: Tensor | None) -> list[Any] | None:
        """Return for each of N positions the parameter set of all rows, or of each row (E,). None if there is one."""
        sets = self.position_sets(order)
        if sets is None:
            return None
        return list(self.parameter_sets) if order is None else list(sets.unbind(1))

    def action_parameters(self, features: Tensor, order: Tensor | None, active: list[bool] | None = None) -> Tensor:
        """Return the distributions' parameters (B, N, A) of features (B, N, D), both in decision order.

        `active` (N,) lists the agents whose rows matter, see NetworkSets.
        """
        if not isinstance(self.actor, NetworkSets):
            return self.actor(features)
        return decision_order(self.actor(agent_order(features, order), active), order)

    # Tokens

    def embed_raw(self, token_inputs: Tensor) -> Tensor:
        """Return tokens (..., D) before normalization."""
        return F.gelu(self.decoder.token(token_inputs))

    def embed_tokens(self, token_inputs: Tensor) -> Tensor:
        """Return tokens (..., D) of what `shift_right` or `token_ids` returns."""
        return self.decoder.token_norm(self.embed_raw(token_inputs))

    def token_ids(self, action: Tensor, own: Any) -> Tensor:
        """Return the token inputs of actions (..., L) by agents of parameter set `own`, an int or (...).

        They are ids (...), 0 being the start and 1 + a action a; or vectors, see ActionTokens.
        """
        token = self.decoder.token
        if isinstance(token, nn.Embedding):
            ids = action[..., 0] + 1
            return ids if own is None else ids + self.head.size * own
        if not isinstance(token, ActionTokens):
            return action
        if not isinstance(self.head, MixedHead):
            action = F.pad(action, (1, 0))
        return token.token_ids(action, 0 if own is None else own)

    def shift_right(self, action: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the token input of each position, of the action (B, N, L) before it. The start token is zero."""
        sets, earlier = self.position_sets(order), action[:, :-1]
        ids = self.token_ids(earlier, None if sets is None else sets[..., : earlier.shape[1]])
        return F.pad(ids, (1, 0) if ids.dim() == 2 else (0, 0, 1, 0))

    def start_actions(self, envs: int, agents: int) -> Tensor:
        """Return zero actions (E, N, L)."""
        return self.head.start_action((envs, agents), self.identity.device)

    def decoder_inputs(self, representation: Tensor, action: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads at each position: of the observations (B, N, D), and of the actions before."""
        return representation, self.shift_right(action, order)

    # Decoding

    def jacobi_decode(
        self,
        representation: Tensor,
        mask: Tensor,
        offset: Tensor,
        fused: Any,
        max_iterations: int,
        order: Tensor | None = None,
    ) -> Decoded | None:
        """Decode all agents in parallel, until nothing changes (Jacobi iteration; Song et al. 2021).

        Given the noise in `offset` (E, N, A), a sample is a function of the samples before it. Each iteration fixes at
        least one more agent, so N suffice, and an iteration that changes nothing has found the sequential decision.
        Returns None if `max_iterations` were too few. For discrete actions.
        """
        action = self.start_actions(*mask.shape[:2])
        for iteration in range(1, max_iterations + 1):
            features = self.decode(representation, action, fused, order)
            parameters = self.action_parameters(features, order)
            better = self.head.argmax_action(parameters + offset, mask)
            if iteration == mask.shape[1] or torch.equal(better, action):
                return Decoded(better, parameters, features)
            action = better
        return None

    def jacobi_iterations(self, envs: int, agents: int) -> int:
        """Return the Jacobi iterations to try before decoding incrementally."""
        return max_jacobi_iterations(envs, agents, self.identity.device.type) if self.spec.discrete else 0

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Decide one agent after another. `deterministic` takes each agent's most probable action."""
        alive = inputs["alive"]
        shape = (alive.shape[0], alive.shape[1])
        noise = None if deterministic else self.head.noise(shape, alive.device, generator)
        return self.decide(inputs, noise, self.decide_order(alive, generator))

    def decide(self, inputs: Inputs, noise: Tensor | None, order: Tensor | None) -> Decision:
        """Decide in the given `order` (E, N) with the given noise. Without noise, take the most probable actions."""
        with torch.no_grad(), no_onednn():
            fused, incremental = self.cached_weights()
            inputs, state = self.run_recurrent(inputs, fused.encoder, 1)
            representation = self.decoder_memory(inputs, fused, order)
            mask = decision_order(inputs["action_mask"], order)
            offset = self.head.sampling_offset(mask, noise, order)
            iterations = self.jacobi_iterations(mask.shape[0], mask.shape[1])
            decoded = self.jacobi_decode(representation, mask, offset, fused, iterations, order)
            decoded = decoded or incremental.decode(representation, mask, offset, self.row_sets(order))
            log_prob = self.head.log_prob(decoded.parameters, mask, decoded.action, order)
            value = self.critic(decoded.features if self.critic_reads_decoder else representation)
            action, log_prob, value = (agent_order(x, order) for x in (decoded.action, log_prob, value))
        nodes = self.nodes(inputs, action, order)
        return Decision(self.head.to_env(action), nodes, log_prob, value, recurrent_state=state)

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability and entropy (B, N, L) and value (B, N, 1) of stored nodes, differentiable.

        One pass over all agents: each position reads the stored actions before it (teacher forcing).
        """
        fused, order = self._shared_weights or self.fuse(), nodes.order
        inputs, _ = self.run_recurrent(inputs, fused.encoder, self.bptt_steps)
        representation, mask = self.decoder_memory(inputs, fused, order), decision_order(inputs["action_mask"], order)
        action = decision_order(nodes.action, order)
        features = self.decode(representation, action, fused, order)
        active = active_agents(nodes.loss_mask)
        parameters = self.action_parameters(features, order, active)
        log_prob, entropy = self.head.evaluate(parameters, mask, action, order, active)
        value = self.critic(features if self.critic_reads_decoder else representation)
        return Evaluation(*(agent_order(x, order) for x in (log_prob, entropy, value)))

    # Values

    def value(self, inputs: Inputs) -> Tensor:
        """Return values (E, N)."""
        return self.value_in_order(inputs, fixed_order(inputs["alive"]))

    def value_in_order(self, inputs: Inputs, order: Tensor | None) -> Tensor:
        """Return values (E, N) if agents decide in that `order` (E, N)."""
        fused = self.fuse() if torch.is_grad_enabled() else self.cached_weights()[0]
        inputs, _ = self.run_recurrent(inputs, fused.encoder, 1)
        return agent_order(self.critic(self.decoder_memory(inputs, fused, order)), order).squeeze(-1)

    def value_over_orders(self, inputs: Inputs) -> Tensor:
        """Return values (E, N) before the order is known, for policies whose values depend on it.

        If the order is random, this is the mean over the `rotations` of the agents.
        """
        if not self.random_order:
            return self.value_in_order(inputs, fixed_order(inputs["alive"]))
        envs, agents = inputs["alive"].shape
        repeated = {name: x.repeat_interleave(2 * agents, 0) for name, x in inputs.items()}
        values = self.value_in_order(repeated, rotations(inputs["alive"]))
        return values.unflatten(0, (envs, 2 * agents)).mean(1)


def max_jacobi_iterations(envs: int, agents: int, device: str) -> int:
    """Return the Jacobi iterations to try before decoding incrementally.

    On a GPU that is always N. On a CPU core an iteration costs about 0.1 ms and 1.1 us per agent row, and a position of
    the incremental decoder 50 us and 1.3 us per environment. Untrained agents need 2 iterations. On 8m, agents that win
    nine games in ten need 3 or 4. So iterations are tried if 4 cost no more than incremental decoding, up to its cost.
    """
    if device != "cpu":
        return agents
    affordable = int(agents * (50.0 + 1.3 * envs) / (100.0 + 1.1 * envs * agents))
    return affordable if affordable >= 4 else 0
