"""Advantages from the returns of whole episodes against a baseline for each time step, without a critic.

marl train toy/climbing --agent ippo --advantage examples/advantage.py:TimeBaseline --whole-episodes --value-coef 0
"""

from dataclasses import dataclass

import marl
from marl.advantages import AdvantageContext, AdvantageEstimator, Advantages, returns_to_go, standardize
from marl.rollout import Rollout


@marl.register_advantage("time-baseline", summary="returns minus their mean over all episodes at the same time step")
@dataclass(frozen=True)
class TimeBaseline(AdvantageEstimator):
    """Return to go minus its mean over episodes at that step (Greensmith et al. 2004, section 4).

    The mean is over the episodes of this rank.
    """

    uses_critic = False
    needs_whole_episodes = True

    limit: float = 3.0
    """Bound of the absolute advantage, in standard deviations."""

    def __call__(self, rollout: Rollout, context: AdvantageContext) -> Advantages:
        """Return clipped advantages, shape (T, E, N, L)."""
        mask = rollout.node_mask
        returns = returns_to_go(context.links, rollout, rollout.reward, mask, context.node_reward)
        baseline = returns.sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp(min=1)
        advantage = standardize(returns - baseline, rollout.loss_mask).clamp(-self.limit, self.limit)
        return Advantages(advantage, metrics={"advantage/clipped": float((advantage.abs() >= self.limit).sum())})
