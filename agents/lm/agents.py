"""Registration of the language agents: policy classes, and the settings that make each algorithm."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.etpo import ETPOOptions, ETPOPolicy
from marl.agents.lm.loading import load_backbone
from marl.agents.lm.options import LanguageOptions, TokenOptions
from marl.agents.lm.policy import TokenPolicy
from marl.agents.lm.twosome import Twosome, TwosomeOptions
from marl.config import RunConfig, flatten
from marl.errors import ConfigError
from marl.registry import TextModel, register_agent, register_text_models
from marl.types import EnvSpec

LEARN: dict[str, Any] = {"epochs": 4, "max_grad_norm": 1.0}
TOKENS = LEARN | {"token_credit": "sequential", "ratio_level": "node"}
EPISODES = TOKENS | {"critic": "none", "value_coef": 0.0, "whole_episodes": True}
GROUPS = EPISODES | {"group_size": 8, "clip_high": 0.28, "entropy_coef": 0.0}


ALGORITHMS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "poad": (
        "PPO over tokens, credit inside an action undiscounted (Wen et al. 2024; as released with --lambda-intra None)",
        TOKENS | {"gamma_intra": 1.0, "lambda_intra": 1.0},
    ),
    "ntpo": ("PPO over tokens, each token a step", TOKENS | {"gamma_intra": None, "lambda_intra": None}),
    "reinforce": (
        "REINFORCE++: returns of whole episodes, near a reference (Hu 2025); RLOO with --advantage rloo --group-size 8",
        EPISODES | {"advantage": "return", "reference": True, "reference_reward_coef": 0.001},
    ),
    "grpo": (
        "whole episodes against others that began alike (Shao et al. 2024)",
        GROUPS | {"advantage": "grpo"},
    ),
    "gigpo": (
        "the same, and steps against others with the same prompt (Feng et al. 2025)",
        GROUPS | {"advantage": "gigpo"},
    ),
}
"""Algorithms over tokens: summary and settings."""


def check(config: RunConfig) -> None:
    """Raise ConfigError for settings of a run that contradict the options of its agent."""
    options, learn = config.agent_options, config.learn
    soft, uses_critic = isinstance(options, ETPOOptions), config.make_advantage().uses_critic
    if (learn.objective == "soft_q") != soft:
        raise ConfigError(f"objective={learn.objective!r}; 'soft_q' is what agent etpo computes, and it alone")
    if uses_critic and options.critic_reads == "none":
        raise ConfigError(
            f"critic is 'none', and advantage {learn.advantage!r} needs one; leave --critic out, or learn from whole "
            "episodes: --advantage return --whole-episodes --value-coef 0"
        )
    if uses_critic and config.make_objective().value_coef == 0.0:
        raise ConfigError("value_coef is 0, so nothing trains the critic that the advantages come from; give more")
    if not uses_critic and options.critic_reads != "none":
        raise ConfigError(f"advantage={learn.advantage!r}, which uses no critic; add --critic none")
    for name in ("reference_coef", "reference_reward_coef"):
        value = flatten(config).get(name, 0.0)
        if value and soft:
            raise ConfigError(f"{name}={value}, but agent etpo weighs that divergence by --beta; leave it 0")
        if value and not options.reference:
            raise ConfigError(f"{name}={value}, but no reference is kept; add --reference, or leave it 0")
    if learn.agent_updates == "sequential" and options.team == "sequential":
        raise ConfigError(
            "agent_updates='sequential', which learns from one agent without the others, but with team "
            "'sequential' an agent reads what the others have said; change one of them"
        )


def open_backbone(spec: EnvSpec, options: LanguageOptions) -> Backbone:
    """Return the model of `options`. Raises ConfigError if observations or actions of `spec` are not text."""
    for kind, space in (("observations", spec.observation_space), ("actions", spec.action_space)):
        if not isinstance(space, gymnasium.spaces.Text):
            raise ConfigError(f"{spec.name} has {type(space).__name__} {kind}; language agents read and write text")
    return load_backbone(
        options.model,
        spec,
        precision=options.precision,
        device_map=options.device_map,
        chat=options.chat,
        system=options.system,
        lora_rank=options.rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        lora_targets=options.lora_targets,
        token_budget=options.token_budget,
        seed=options.model_seed,
    )


def external(options: Mapping[str, Any]) -> list[str]:
    """Return the weights on disk that `options` name, except those of an installed package."""
    return [] if (model := options.get("model", "tiny")) in ("tiny", "smollm2") else [f"model {model}"]


def make_token_policy(spec: EnvSpec, options: TokenOptions) -> TokenPolicy:
    """Return a token policy for `spec`."""
    return TokenPolicy(spec, options, open_backbone(spec, options))


for _name, (_summary, _defaults) in ALGORITHMS.items():
    register_agent(_name, options=TokenOptions, summary=_summary, defaults=_defaults, check=check, external=external)(
        make_token_policy
    )


@register_agent(
    "twosome",
    options=TwosomeOptions,
    summary="PPO over candidate actions scored by their tokens (Tan et al. 2024)",
    defaults=LEARN | {"ratio_level": "agent"},
    check=check,
    external=external,
)
def make_twosome(spec: EnvSpec, options: TwosomeOptions) -> Twosome:
    """Return TWOSOME for `spec`."""
    return Twosome(spec, options, open_backbone(spec, options))


@register_agent(
    "etpo",
    options=ETPOOptions,
    summary="soft Q values of tokens beside a frozen reference (Wen et al. 2024)",
    defaults={
        "objective": "soft_q",
        "epochs": 8,
        "token_credit": "sequential",
        "gamma_intra": 1.0,
        "lambda_intra": 0.0,
        "gae_lambda": 0.0,
        "value_norm_decay": 0.0,
        "learning_rate": 3e-4,
        "critic_learning_rate": 3e-3,
        "max_grad_norm": 1.0,
    },
    check=check,
    external=external,
)
def make_etpo(spec: EnvSpec, options: ETPOOptions) -> ETPOPolicy:
    """Return ETPO for `spec`."""
    return ETPOPolicy(spec, options, open_backbone(spec, options))


@register_text_models
def open_text_model(name: str) -> TextModel:
    """Return a frozen pretrained model that writes texts; see `marl.agents.lm.text_model`."""
    from marl.agents.lm.text_model import load_writer

    return load_writer(name)
