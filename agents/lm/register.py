"""The language agents: one policy class for each way of choosing, one set of defaults for each algorithm."""

from agents.lm.models import load_backbone
from agents.lm.policy import LanguageOptions, TokenOptions, TokenPolicy
from marl.registry import register_agent
from marl.types import EnvSpec


def backbone_for(spec: EnvSpec, options: LanguageOptions):
    return load_backbone(
        options.model,
        spec,
        precision=options.precision,
        chat=options.chat,
        lora_rank=options.lora_rank,
        token_budget=options.token_budget,
    )


def make_token_policy(spec: EnvSpec, options: TokenOptions) -> TokenPolicy:
    return TokenPolicy(spec, options, backbone_for(spec, options))
