"""PPO with an extra loss term: a penalty on the squared distance from the policy that collected the rollout.

marl train toy/climbing --agent mappo --objective examples/objective.py:PenalizedPPO
"""

from dataclasses import dataclass

from torch import Tensor

import marl
from marl.objective import Batch, ClippedPPO, masked_sum
from marl.types import Evaluation


@marl.register_objective("penalized-ppo", summary="clipped PPO with a penalty on changes of the log-probability")
@dataclass(frozen=True)
class PenalizedPPO(ClippedPPO):
    """Clipped PPO plus the mean squared change of the log-probability of each decision."""

    penalty: float = 0.1
    """Weight of the penalty."""

    def extra_terms(self, evaluation: Evaluation, batch: Batch, units: Tensor) -> dict[str, Tensor]:
        """Return the penalty, a sum over the micro-batch divided by the units of the minibatch."""
        change = (evaluation.log_prob - batch.log_prob).square()
        return {"penalty": self.penalty * masked_sum(change, batch.nodes.loss_mask) / units}
