"""The language agents: a policy class for each way of choosing, and the settings that make each algorithm."""

from typing import Any

from agents.lm.backbone import Backbone
from agents.lm.models import load_backbone
from agents.lm.policy import LanguageOptions, TokenOptions, TokenPolicy
from agents.lm.soft import SoftOptions, SoftPolicy
from agents.lm.twosome import Twosome, TwosomeOptions
from marl.registry import register_agent
from marl.types import EnvSpec

LEARNING: dict[str, Any] = {"epochs": 4, "entropy_coef": 0.01, "max_grad_norm": 1.0}
TOKENS = LEARNING | {"slot_links": "sequential", "ratio": "node"}


def open_backbone(spec: EnvSpec, options: LanguageOptions) -> Backbone:
    return load_backbone(
        options.model,
        spec,
        precision=options.precision,
        chat=options.chat,
        lora_rank=options.lora_rank,
        token_budget=options.token_budget,
    )


def make_token_policy(spec: EnvSpec, options: TokenOptions) -> TokenPolicy:
    return TokenPolicy(spec, options, open_backbone(spec, options))


for _name, _summary, _defaults in (
    (
        "poad",
        "PPO over tokens with undiscounted credit inside an action (Wen et al. 2024); lambda_intra None as released",
        TOKENS | {"gamma_intra": 1.0, "lambda_intra": 1.0},
    ),
    ("ntpo", "PPO over tokens, every token a step", TOKENS | {"gamma_intra": None, "lambda_intra": None}),
):
    register_agent(_name, options=TokenOptions, summary=_summary, defaults=_defaults)(make_token_policy)


@register_agent(
    "twosome",
    options=TwosomeOptions,
    defaults=LEARNING | {"ratio": "agent"},
    summary="PPO over candidate actions scored by their tokens (Tan et al. 2024)",
)
def make_twosome(spec: EnvSpec, options: TwosomeOptions) -> Twosome:
    return Twosome(spec, options, open_backbone(spec, options))


@register_agent(
    "etpo",
    options=SoftOptions,
    defaults={
        "objective": "soft_q",
        "slot_links": "sequential",
        "gamma_intra": 1.0,
        "lambda_intra": 0.0,
        "gae_lambda": 0.0,
        "value_norm_decay": 0.0,
        "max_grad_norm": 1.0,
    },
    summary="soft Q values of tokens beside a frozen reference (Wen et al. 2024)",
)
def make_soft(spec: EnvSpec, options: SoftOptions) -> SoftPolicy:
    return SoftPolicy(spec, options, open_backbone(spec, options))
