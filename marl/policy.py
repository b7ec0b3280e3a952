"""Base class of all agents: every method and attribute that the core uses, with its default."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from marl.errors import ConfigError
from marl.objective import RowIndex, even_slices
from marl.oom import MicroBatchBackoff
from marl.types import Decision, EnvSpec, Evaluation, Inputs, Nodes, Obs

if TYPE_CHECKING:
    from marl.transcript import TranscriptStep

PAGE = "docs/add-agent.md"


class Policy(nn.Module):
    """An agent: it decides the nodes of a step and values them. Its parameters are those of this module.

    A subclass defines `act`, `evaluate` and `value`. Everything else has a default. Override `encode` for text
    observations. Pass the number of slots L to `__init__` for actions with more than one node per agent.

    The module is in training mode during an update and in evaluation mode otherwise. In evaluation mode, `evaluate`
    must return the log-probabilities that `act` returned for the same inputs and nodes. In training mode dropout and
    batch normalization are active, so importance ratios start at 1 only up to their noise.
    """

    reads_state = False
    """`encode` also returns the environment's state."""
    threaded_acting = False
    """Acting on a single observation gains from several threads, as for a pretrained language model."""
    bptt_steps = 0
    """Steps of the segments through which the gradient of a recurrent policy runs; 0 means no recurrence."""
    recurrent_shape: tuple[int, int] | None = None
    """(R, W), the shape of the recurrent state of one environment; see marl.recurrent_state."""
    recurrent_dtype = torch.float32
    """Type of the recurrent state."""

    def __init__(self, spec: EnvSpec, slots: int = 1) -> None:
        super().__init__()
        self.spec = spec
        self.slots = slots
        self.backoff = MicroBatchBackoff("Set --micro-batch to begin with fewer")
        """Reduction of the rows of a forward pass after it ran out of memory."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU if there are none."""
        tensor = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    # Required

    def act(self, inputs: Inputs, generator: Generator | None = None, deterministic: bool = False) -> Decision:
        """Sample a decision, or take the most probable one if `deterministic`. Called without gradients.

        Draw random numbers from `generator` alone: otherwise a resumed run differs.
        """
        raise missing_method(self, "act")

    def evaluate(self, inputs: Inputs, nodes: Nodes) -> Evaluation:
        """Return log-probability, entropy and value of stored nodes, differentiable."""
        raise missing_method(self, "evaluate")

    def value(self, inputs: Inputs) -> Tensor:
        """Return the value of each agent's first node, shape (E, N), in the critic's units.

        It is the bootstrap value of chains that are cut.
        """
        raise missing_method(self, "value")

    # Inputs

    def encode(self, obs: Obs) -> Inputs:
        """Return an observation as tensors with leading axis E on the policy's device.

        The default, for array observations, returns "agents" (E, N, D), "alive" (E, N), "action_mask" (E, N, A), and
        "state" (E, S) if `reads_state`. Without a mask every action that the agent has is available. It is the only
        place where text becomes tokens.
        """
        alive = torch.as_tensor(obs.alive)
        if obs.action_mask is None:
            exists = torch.arange(self.spec.action_size) < torch.tensor(self.spec.action_sizes).unsqueeze(-1)
            mask = exists.expand(*alive.shape, -1)
        else:
            mask = torch.as_tensor(obs.action_mask)
        inputs = {"agents": torch.as_tensor(obs.agents), "alive": alive, "action_mask": mask}
        if self.reads_state:
            inputs["state"] = torch.as_tensor(obs.state)
        device = self.device
        return {name: x.to(device) for name, x in inputs.items()}

    def agent_inputs(self, inputs: Inputs, agent: int) -> Inputs:
        """Return the inputs that `evaluate` reads in the update of one agent's decisions without values.

        Called where agents are updated sequentially. The default returns all inputs.
        """
        return inputs

    def export_recurrent_state(self, state: Tensor) -> Any:
        """Return the recurrent state (E, R, W) for a checkpoint, as tensors and JSON data."""
        return state

    def import_recurrent_state(self, data: Any) -> Tensor:
        """Return the recurrent state (E, R, W) of `export_recurrent_state`."""
        return data

    # Updates

    def micro_batches(self, inputs: Inputs, nodes: Nodes, rows: int, divisor: int) -> Sequence[RowIndex]:
        """Return the rows of each forward pass of an update. Together they hold every row once.

        A pass holds at most `rows` rows, or any number if `rows` is 0, divided by `divisor` after the memory ran out.
        The default returns slices of nearly equal size that keep segments of `bptt_steps` together.
        """
        return even_slices(nodes.node_mask, rows, divisor, self.bptt_steps or 1)

    def accumulation_context(self) -> AbstractContextManager[None]:
        """Return a context around all forward and backward passes of one gradient.

        Inside it the weights do not change, so work that depends on the weights alone can be shared between the passes.
        The gradient must be complete at its end.
        """
        return nullcontext()

    def after_update(self) -> None:
        """Follow a gradient step, for example to update target networks or to drop caches."""

    def update_statistics(self, inputs: Inputs, nodes: Nodes) -> None:
        """Add a rollout of B = T x E rows to running statistics, after the update on it.

        `inputs` (B, ...) count where `nodes` (B, N, L) exist: the agent was alive and the row was learned from.
        """

    def metrics(self, inputs: Inputs, nodes: Nodes) -> dict[str, float]:
        """Return numbers about the policy and a rollout's nodes to log after the update."""
        return {}

    def share_backbone(self, original: Any) -> None:
        """Use weights of `original` that are no module parameters, in a run on several environments.

        `original` is a policy of the same class for another environment. Raises ConfigError if they do not fit.
        """

    # Views

    @property
    def has_transcript(self) -> bool:
        """The class defines `transcript`."""
        return type(self).transcript is not Policy.transcript

    def transcript(self, episode: "Sequence[TranscriptStep]") -> str:
        """Return an episode as Markdown. A class that defines it defines `picture` too."""
        raise missing_method(self, "transcript")

    def picture(self, episode: "Sequence[TranscriptStep]") -> np.ndarray:
        """Return an image of the advantage of every node, shape (height, width, 3) uint8."""
        raise missing_method(self, "picture")

    @property
    def has_attention(self) -> bool:
        """The class defines `attention`."""
        return type(self).attention is not Policy.attention

    def attention(self, inputs: Inputs, nodes: Nodes) -> Tensor:
        """Return the attention weight of each deciding agent on each other agent's action, shape (E, N, N)."""
        raise missing_method(self, "attention")


REQUIRED = ("act", "evaluate", "value")


def missing_method(policy: Policy, name: str) -> ConfigError:
    """Return the error for a method that a class of policies has to define."""
    kind = type(policy)
    return ConfigError(
        f"class {kind.__module__}.{kind.__qualname__} does not define the method {name!r} of marl.Policy; define it as "
        f"{PAGE} shows"
    )


def require_policy(made: Any, agent: str) -> Policy:
    """Return what the factory of `agent` made.

    Raises ConfigError if it is not a Policy, or lacks a required method.
    """
    if not isinstance(made, Policy):
        kind = "None" if made is None else f"a {type(made).__module__}.{type(made).__qualname__}"
        raise ConfigError(
            f"agent={agent!r} returned {kind}, which is not a marl.Policy; return an instance of a subclass, as {PAGE} "
            "shows"
        )
    for name in REQUIRED:
        if getattr(type(made), name) is getattr(Policy, name):
            raise missing_method(made, name)
    return made
