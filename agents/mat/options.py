"""Options of the Multi-Agent Transformer and its relatives."""

from dataclasses import dataclass
from typing import Literal

from marl.agents.parameter_sharing import Sharing
from marl.agents.policy_base import VectorOptions
from marl.errors import ConfigError

Order = Literal["fixed", "random"]


@dataclass(frozen=True)
class TeamOptions(VectorOptions):
    """Options of a network over all agents."""

    embedding: int = 64
    """Width of the network."""
    parameters_per: Sharing = "team"
    """Agents that share embeddings and actor: the team, those of one agent_type, or none. Attention and critic
    are always shared. Only team reads entity observations as such."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding < 1:
            raise ConfigError(f"embedding={self.embedding} is no width. Give 1 or more, usually 64")


@dataclass(frozen=True)
class TransformerOptions(TeamOptions):
    """Options of attention between the agents."""

    heads: int = 1
    """Attention heads; must divide the width."""
    blocks: int = 1
    """Blocks of the encoder, and as many of a decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or self.embedding % self.heads:
            raise ConfigError(
                f"heads={self.heads} does not divide embedding={self.embedding}. Give a divisor, such as 1"
            )
        if self.blocks < 1:
            raise ConfigError(f"blocks={self.blocks} leaves no attention. Give 1 or more")


@dataclass(frozen=True)
class MATOptions(TransformerOptions):
    """Options of the Multi-Agent Transformer."""

    agent_order: Order = "fixed"
    """Order in which agents decide: as the environment lists them, or drawn at every step."""


@dataclass(frozen=True)
class GRUOptions(TeamOptions):
    """Options of MAT with recurrent networks over the agents in place of attention."""

    layers: int = 2
    """Layers of each recurrent network."""
    agent_order: Order = "fixed"
    """Order in which agents are read and decide: as the environment lists them, or drawn at every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise ConfigError(f"layers={self.layers} leaves no recurrent network. Give 1 or more")
