"""Warnings about collapse and divergence while a run learns."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from marl import distributed
from marl.callbacks import Callback
from marl.config import RunConfig, flatten

LOGGER = logging.getLogger("marl")

MIN_ENTROPY = 0.003
"""Entropy of a decision, in nats, below which a policy hardly explores."""
EARLY = 0.25
"""Fraction of a run in which low entropy is a fault. Later the policy may have converged."""
SOLVED = 0.9
"""Success rate of the training episodes above which low entropy is no fault."""
MAX_KL = 1.0
MAX_INITIAL_KL = 0.01
"""Nats by which `evaluate` may differ from `act` on the same weights, for rounding in half precision."""
MAX_CLIP_FRACTION = 0.75
MAX_VALUE_LOSS = 10.0
"""In units of normalized returns: an error of more than four standard deviations."""
MIN_STD = 0.005
"""Standard deviation of an action in [-1, 1] below which it hardly explores."""
MAX_STD_FRACTION = 0.99
MAX_REPEATED_TEXT = 0.5
MAX_INVALID_FRACTION = 0.5
WARMUP_ITERATIONS = 5
"""Iterations in which most actions of an untrained language model may be invalid, without a warning."""


class Diagnostics(Callback):
    """Warn once about each kind of symptom, in the console and as text under the tag warning/KIND.

    `trainer.warned` holds the kinds that were warned about. Checkpoints save it.
    """

    def on_iteration(self, trainer: Any, metrics: dict[str, float]) -> None:
        disagreement = find_disagreement(trainer.updater.initial_kl, trainer.config.agent)
        hidden = ("kl", "clip_fraction") if disagreement else ()  # these follow from it
        found = find_symptoms(metrics, trainer.config, trainer.iteration, trainer.steps)
        for kind, text in (*disagreement, *found):
            if kind in trainer.warned or kind in hidden:
                continue
            trainer.warned.add(kind)
            if distributed.rank() == 0:
                LOGGER.warning("iteration %d: %s", trainer.iteration, text)
                trainer.tracker.text(trainer.steps, f"warning/{kind}", f"iteration {trainer.iteration}: {text}")


def find_disagreement(initial_kl: float, agent: str) -> list[tuple[str, str]]:
    """Return (kind, text) if `act` and `evaluate` disagree by `initial_kl` nats before the first gradient step."""
    if initial_kl <= MAX_INITIAL_KL:
        return []
    text = (
        f"policy/kl={initial_kl:.3g} nats before the first gradient step, where it must be 0: `evaluate` gives other "
        f"log-probabilities than `act`. Run `marl check-agent {agent}`, which names the rule; dropout has this effect "
        "as well"
    )
    return [("disagreement", text)]


def find_symptoms(
    metrics: Mapping[str, float], config: RunConfig, iteration: int, steps: int
) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) for each symptom in the metrics of an iteration. The text has the value, cause and remedy.

    `steps` counts the environment steps of the run so far.
    """
    entropy = metrics.get("policy/entropy")
    early = steps <= EARLY * config.steps and metrics.get("episode/success", 0.0) < SOLVED
    if entropy is None:
        yield (
            "no_choice",
            "no agent had a choice in the whole rollout, so it holds no training data for a policy; end an episode "
            "once all agents are dead, and offer more than one action",
        )
    elif early and "policy/std_min" not in metrics and entropy < MIN_ENTROPY:
        yield (
            "entropy",
            f"policy/entropy={entropy:.3g} nats, so the policy hardly explores. Raise --entropy-coef, or "
            "lower --learning-rate",
        )
    if (kl := metrics.get("policy/kl", 0.0)) > MAX_KL:
        yield (
            "kl",
            f"policy/kl={kl:.3g} nats, so the update moved the policy too far from the one that collected the data. "
            "Lower --learning-rate or --epochs, or set --target-kl 0.02",
        )
    if (clipped := metrics.get("policy/clip_fraction", 0.0)) > MAX_CLIP_FRACTION:
        yield (
            "clip_fraction",
            f"policy/clip_fraction={clipped:.3g}, so most decisions no longer learn. Lower --learning-rate or --epochs",
        )
    if config.learn.value_norm_decay and (loss := metrics.get("loss/value", 0.0)) > MAX_VALUE_LOSS:
        yield (
            "value_loss",
            f"loss/value={loss:.3g} in units of normalized returns, so the critic does not follow the returns. Lower "
            "--learning-rate or --critic-learning-rate, and look for rewards of very different size",
        )
    yield from _find_std_symptoms(metrics, flatten(config).get("max_std"))
    if (repeated := metrics.get("policy/repeated_text", 0.0)) > MAX_REPEATED_TEXT:
        yield (
            "repeated_text",
            f"policy/repeated_text={repeated:.3g}, so answers repeat themselves. Lower --learning-rate, raise "
            "--temperature, or hold the model near its reference with --reference-coef",
        )
    if iteration > WARMUP_ITERATIONS and (
        (invalid := metrics.get("episode/invalid_fraction", 0.0)) > MAX_INVALID_FRACTION
    ):
        yield (
            "invalid_actions",
            f"episode/invalid_fraction={invalid:.3g}, so most steps pass without effect. Say in the prompt which "
            "actions are valid, or offer candidates",
        )


def _find_std_symptoms(metrics: Mapping[str, float], limit: float | None) -> Iterator[tuple[str, str]]:
    if (lowest := metrics.get("policy/std_min", MIN_STD)) < MIN_STD:
        yield (
            "std_collapse",
            f"policy/std_min={lowest:.3g}, so a dimension of the actions is hardly explored. Raise "
            "--entropy-coef, or lower --learning-rate",
        )
    if limit is not None and (highest := metrics.get("policy/std_max", 0.0)) > MAX_STD_FRACTION * limit:
        yield (
            "max_std",
            f"policy/std_max={highest:.3g} has reached max_std={limit:g}, so a dimension of the actions stays noise. "
            "Lower --entropy-coef or --max-std",
        )
