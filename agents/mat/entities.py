"""MAT and its relatives on entity observations: their parameters fit any number of agents and targets.

Shape legend: B rows, N agents, D width, A actions, K targeted actions, W width of a target's row.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor, nn

from marl.agents.entities import EntityEncoder, TargetedHead, TargetEncoder, entity_layout, reads_entities
from marl.agents.heads import linear
from marl.agents.mat.autoregressive import AutoregressivePolicy
from marl.agents.mat.encoder_decoder import discrete_tokens
from marl.agents.mat.order import decision_order
from marl.agents.mat.policy import TeamPolicy
from marl.types import EnvSpec, Inputs


class TakeFirst(nn.Module):
    """The first `width` features of a tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., width) of `x` (..., D)."""
        return x[..., : self.width]


class EntityMixin(TeamPolicy):
    """Embed observations with an EntityEncoder, and score targeted actions by their targets."""

    targets: TargetEncoder
    actor: Any

    def make_embed(self) -> Any:
        """Return the embedding of one agent's entities."""
        return EntityEncoder(entity_layout(self.spec), self.options.embedding)

    def fuse_embedding(self) -> None:
        """Return None: nothing of this embedding can be fused."""

    def make_actor(self) -> Any:
        """Return the actor, which reads features and target rows (..., D + K (W + 1) + 1)."""
        width = self.options.embedding
        self.targets = TargetEncoder(self.spec, width)
        return TargetedHead(self.targets, width, (width,))


class EntitySimultaneous(EntityMixin):
    """Actors on the encoder's representation and the targets."""

    def distributions(self, inputs: Inputs, representation: Tensor, active: Any, steps: int) -> tuple[Tensor, None]:  # noqa: ARG002
        """Return the distributions of all agents."""
        return self.actor(torch.cat([representation, self.targets(inputs["agents"])], -1)), None


class EntityAutoregressive(EntityMixin, AutoregressivePolicy):
    """Representation and features carry the encoded targets behind them, (..., D + K (W + 1) + 1).

    The token of an earlier action is the embedding of its kind (each ordinary action, or "targeted") plus a linear map
    of its target's row.
    """

    def __init__(self, spec: EnvSpec, options: Any) -> None:
        super().__init__(spec, options)
        width = options.embedding
        self.critic = nn.Sequential(TakeFirst(width), *self.critic)
        self.decoder.token = discrete_tokens(self.targets.ordinary + 2, width)
        self.target_token = linear(self.targets.width, width)

    def build_cache(self) -> tuple[Any, None]:
        """Return the fused weights. There is no incremental decoder."""
        return self.fuse(), None

    def jacobi_iterations(self, envs: int, agents: int) -> int:  # noqa: ARG002
        """Return N, which is always enough."""
        return agents

    def make_table(self, first: Any) -> None:
        """Return None: a token also depends on its target."""

    def decoder_memory(self, inputs: Inputs, fused: Any, order: Tensor | None) -> Tensor:
        """Return representation and encoded targets, (B, N, D + K (W + 1) + 1), in decision order."""
        representation = super().decoder_memory(inputs, fused, order)
        return torch.cat([representation, decision_order(self.targets(inputs["agents"]), order)], -1)

    def decoder_inputs(
        self,
        representation: Tensor,
        action: Tensor,
        order: Tensor | None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return the representation (B, N, D) alone, and raw tokens (B, N, D) of the actions before."""
        features, targets = self.split_targets(representation)
        chosen, _ = self.targets.choose(targets, action)
        kind = action.squeeze(-1).clamp(max=self.targets.ordinary) + 1
        tokens = self.decoder.token(kind) + self.target_token(chosen)
        start = self.decoder.token.weight[0].expand(len(tokens), 1, -1)
        return features, torch.cat([start, tokens[:, :-1]], 1)

    def embed_raw(self, token_inputs: Tensor) -> Tensor:
        """Return tokens (..., D) before normalization, from raw tokens (..., D)."""
        return F.gelu(token_inputs)

    def decode(self, representation: Tensor, action: Tensor, fused: Any, order: Tensor | None = None) -> Tensor:
        """Return features with the targets behind them, which count the choices of the agents before."""
        features = super().decode(representation, action, fused, order)
        _, targets = self.targets.choose(self.split_targets(representation)[1], action)
        return torch.cat([features, targets], -1)

    def split_targets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (..., D) and encoded targets (..., K (W + 1) + 1)."""
        return x[..., : self.options.embedding], x[..., self.options.embedding :]


def with_entities(policy: Any, mixin: type[EntityMixin], spec: EnvSpec, options: Any) -> Any:
    """Return the class `policy`, combined with `mixin` if `spec` and `options` make it read entities."""
    if not reads_entities(spec, options):
        return policy
    return type(f"{mixin.__name__}{policy.__name__}", (mixin, policy), {})
