"""Options of the language agents."""

from dataclasses import dataclass
from typing import Literal

from marl.agents.lm.adapters import ALL_LINEAR
from marl.agents.lm.conversation import History
from marl.agents.lm.tokenizer import Overflow
from marl.errors import ConfigError


@dataclass(frozen=True)
class LanguageOptions:
    """Options of a language model that acts in text."""

    model: str = "tiny"
    """Model: tiny (random, the environment's words), smollm2, a folder, a GGUF file, or a cached Hugging Face name."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the frozen weights; auto is bf16 if the hardware computes in it."""
    device_map: Literal["none", "auto"] = "none"
    """auto spreads a pretrained model over all GPUs."""
    lora_rank: int | None = None
    """Rank of the LoRA adapters; 0 trains all weights. None is 0 for tiny and 8 for the others."""
    lora_alpha: float | None = None
    """LoRA alpha: the output of an adapter is scaled by alpha / rank. None is twice the rank."""
    lora_dropout: float = 0.0
    """Dropout of adapter inputs in updates. Acting has none, so ratios do not start at 1."""
    lora_targets: tuple[str, ...] = (ALL_LINEAR,)
    """Layers with adapters; all-linear is every attention and MLP projection."""
    model_seed: int = 0
    """Seed of the weights of tiny and of new adapters, independent of the run's seed."""
    chat: Literal["auto", "off"] = "auto"
    """auto uses the model's chat template if it has one."""
    system: str = ""
    """System message of the chat template. The default message of some templates (SmolLM2, Qwen) is left out."""
    temperature: float = 1.0
    """Divisor of the logits, in acting and in learning."""
    max_action_tokens: int = 16
    """Maximum tokens of an action."""
    prompt_overflow: Overflow = "error"
    """Treatment of a prompt longer than the model's context: error, or cut its beginning."""
    history: History = "auto"
    """Earlier turns of the episode in a prompt: none, all, the last turns (history_turns), or as many as fit
    history_tokens. auto: all if the environment is a conversation, else none."""
    history_turns: int = 8
    """Earlier turns in a prompt with history turns."""
    history_tokens: int = 2048
    """Maximum tokens of a prompt with history tokens; the oldest turns are dropped whole."""
    team: Literal["parallel", "sequential"] = "parallel"
    """Each agent reads its own prompt (parallel), or also the actions of the agents before it (sequential)."""
    critic: Literal["auto", "shared", "frozen", "none"] = "auto"
    """Features that the critic reads: of the learning model (shared), of the frozen one, or no critic. auto is frozen
    with adapters, else shared."""
    critic_hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers of the critic."""
    reference: bool = False
    """Store log-probabilities of the model before training, for a penalty on the divergence from it."""
    token_budget: int = 4096
    """Maximum tokens of a forward pass, if rows can be split."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model is empty; give tiny, smollm2, a folder, a GGUF file or a cached Hugging Face name")
        for name in ("max_action_tokens", "token_budget", "history_turns", "history_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; give 1 or more")
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}; give a positive number")
        if self.lora_alpha is not None and not 0.0 < self.lora_alpha < float("inf"):
            raise ConfigError(f"lora_alpha={self.lora_alpha}; give a positive number")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(f"lora_dropout={self.lora_dropout}; give 0 or more, less than 1")
        if self.lora_rank is not None and self.lora_rank < 0:
            raise ConfigError(f"lora_rank={self.lora_rank}; give 0 or more")
        if any(width < 1 for width in self.critic_hidden):
            raise ConfigError(f"critic_hidden={self.critic_hidden}; a layer has a width of 1 or more")
        if self.model == "tiny" and self.device_map != "none":
            raise ConfigError("device_map is for pretrained models; tiny fits everywhere, leave it 'none'")
        if self.system and (self.model == "tiny" or self.chat == "off"):
            why = "model 'tiny' has no chat template" if self.model == "tiny" else "chat is 'off'"
            raise ConfigError(f"system={self.system!r:.80}, but {why}; leave it out")
        if not self.lora_targets:
            raise ConfigError(f"lora_targets is empty; give names of layers, or {ALL_LINEAR}")
        if not self.rank:
            self._require_nothing_of_adapters()

    def _require_nothing_of_adapters(self) -> None:
        for name in ("lora_targets", "lora_alpha", "lora_dropout", "device_map"):
            value, usual = getattr(self, name), getattr(LanguageOptions, name)
            if value != usual:
                raise ConfigError(
                    f"{name}={value!r}, which is for adapters, and model {self.model} trains in full; give a "
                    "--lora-rank above 0"
                )

    @property
    def rank(self) -> int:
        """Rank of the adapters, 0 without adapters."""
        return (0 if self.model == "tiny" else 8) if self.lora_rank is None else self.lora_rank

    @property
    def critic_reads(self) -> Literal["shared", "frozen", "none"]:
        """Features that the critic reads."""
        return ("frozen" if self.rank else "shared") if self.critic == "auto" else self.critic


@dataclass(frozen=True)
class TokenOptions(LanguageOptions):
    """Options of a language model that acts token by token."""

    top_p: float = 1.0
    """Nucleus sampling of free text: the most probable tokens with this total probability."""
    stop_strings: tuple[str, ...] = ()
    """Free text ends before the first of these strings, beside the model's own end tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p}; give a number above 0, at most 1")
        if "" in self.stop_strings:
            raise ConfigError("stop_strings holds an empty string, before which all text ends; leave it out")
