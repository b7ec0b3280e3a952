"""Metrics of a game by the formulas of TextStarCraft II, from the sums that the simulator keeps."""

from collections.abc import Sequence

from marl.envs.text_starcraft.engine.state import (
    BANK_STEPS,
    BANK_SUM,
    BEST_TECH,
    BLOCKED_SECONDS,
    PREFIX_BANK_SUM,
    PREFIX_SECONDS,
    USED_STEPS,
    USED_SUM,
)


def metrics(totals: Sequence[float]) -> dict[str, float]:
    """Population block ratio, resource utilization ratio, average population utilization, technology rate, mean bank.

    The first two end where supply used reaches 194, and are 0 in the first second. The second one adds up the bank of
    every step and depends on their rate; the mean bank, over all steps, does not.
    """
    seconds = float(totals[PREFIX_SECONDS])
    return {
        "population_block_ratio": float(totals[BLOCKED_SECONDS]) / seconds if seconds else 0.0,
        "resource_utilization_ratio": float(totals[PREFIX_BANK_SUM]) / seconds if seconds else 0.0,
        "average_population_utilization": float(totals[USED_SUM]) / max(1.0, float(totals[USED_STEPS])),
        "technology_rate": float(totals[BEST_TECH]),
        "mean_bank": float(totals[BANK_SUM]) / max(1.0, float(totals[BANK_STEPS])),
    }
