"""Models by name: `tiny`, `smollm2`, a folder, a GGUF file, or what Hugging Face's cache holds."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from marl import distributed
from marl.agents.lm.adapters import ALL_LINEAR, add_adapters
from marl.agents.lm.backbone import Backbone
from marl.agents.lm.fingerprint import compare_ranks, fingerprint
from marl.agents.lm.output_head import PLAIN
from marl.agents.lm.self_check import WORKS, check, describe, find_logit_rule
from marl.agents.lm.tokenizer import PretrainedTokenizer, Tokenizer
from marl.agents.lm.word_tokenizer import WordTokenizer
from marl.errors import ConfigError, MissingDependencyError
from marl.types import EnvSpec

LOGGER = logging.getLogger("marl")
Precision = Literal["auto", "fp32", "bf16"]
Chat = Literal["auto", "off"]
DeviceMap = Literal["none", "auto"]


def load_backbone(
    name: str,
    spec: EnvSpec,
    *,
    precision: Precision = "auto",
    device_map: DeviceMap = "none",
    chat: Chat = "auto",
    system: str = "",
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    lora_targets: tuple[str, ...] = (ALL_LINEAR,),
    token_budget: int = 4096,
    seed: int = 0,
) -> Backbone:
    """Return the model `name`, ready to train, on the CPU or placed by accelerate with `device_map`.

    `lora_rank` above 0 trains adapters of that rank on the layers named `lora_targets`, in float32, and freezes the
    rest (Hu et al. 2021; scaled by `lora_alpha` / `lora_rank`, None is 2, as rank 8 and alpha 16 are); 0 trains all
    weights, beside a frozen copy as the reference. `precision` is that of frozen weights; what trains is float32.
    `seed` draws the weights of `tiny` and the adapters; both are the same whatever else is drawn, so the reference of
    a continued run is the same too.

    With `device_map` "auto" accelerate spreads the layers over the GPUs, in order, and hidden states travel between
    them. It needs adapters, room for the whole model, and one process. Tested with accelerate's hooks on a CPU; it
    has not run on several GPUs yet.

    Raises ConfigError for a model that is not there or cannot be used, MissingDependencyError without the extra `lm`.
    """
    require_extra()
    from_scratch = name == "tiny"
    dtype = frozen_dtype(precision) if lora_rank and not from_scratch else torch.float32
    if precision == "bf16" and dtype != torch.bfloat16:
        raise ConfigError(
            f"precision={precision!r} is for frozen weights; model {name} with lora_rank={lora_rank} needs fp32"
        )
    if device_map != "none":
        _require_one_process_and_accelerate()
    if from_scratch:
        model, tokenizer = _tiny(spec, seed)
        rule, base = PLAIN, None
    else:
        model, tokenizer, base = _pretrained(name, dtype, chat, system, device_map)
        with _told_by_name(model, name):
            rule = find_logit_rule(model, name)
    adapters = reference = None
    if lora_rank:
        alpha = 2.0 * lora_rank if lora_alpha is None else lora_alpha
        with _told_by_name(model, name):
            adapters = add_adapters(
                model, name, rank=lora_rank, alpha=alpha, dropout=lora_dropout, targets=lora_targets, seed=seed
            )
    else:
        reference = copy.deepcopy(model).eval().requires_grad_(False)
    backbone = Backbone(
        model,
        tokenizer,
        0,
        token_budget,
        adapters,
        reference,
        placed=device_map != "none",
        logit_rule=rule,
        base=base,
        name=name,
    )
    if not from_scratch:
        with _told_by_name(model, name):
            check(backbone, name)
    backbone.context = _context(model, name)
    return backbone


@contextmanager
def _told_by_name(model: Any, name: str) -> Iterator[None]:
    """Raise errors from inside a model as ConfigError that names the model and what works."""
    try:
        yield
    except (ConfigError, MissingDependencyError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        raise ConfigError(f"{describe(name, model)} cannot be used by language agents: {reason}. {WORKS}") from error


def require_extra() -> None:
    """Raise MissingDependencyError if transformers is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"language agents need transformers ({error}); run: pip install 'seqmarl[lm]'"
        ) from error


def _require_one_process_and_accelerate() -> None:
    if distributed.world_size() > 1:
        raise ConfigError(
            f"device_map spreads one model over all GPUs, and this run has {distributed.world_size()} ranks; start it "
            "without torchrun, or leave it 'none'"
        )
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"device_map needs accelerate ({error}); run: pip install accelerate") from error


def frozen_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of frozen weights. `auto` is bf16 if the hardware computes in it, else float32.

    With SmolLM2 on a CPU that has AVX-512 BF16, bf16 forwards are 2.7 times as fast and updates 2.0 to 2.7 times.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bf16() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _has_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _tiny(spec: EnvSpec, seed: int) -> tuple[Any, Tokenizer]:
    """Return a random Llama of 1.4 million parameters with the environment's words as vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = WordTokenizer(spec.words)
    config = LlamaConfig(
        vocab_size=tokenizer.size,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad,
        bos_token_id=None,
        eos_token_id=tokenizer.end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def _pretrained(
    name: str, dtype: torch.dtype, chat: Chat, system: str, device_map: DeviceMap
) -> tuple[Any, PretrainedTokenizer, torch.Tensor]:
    from marl.agents.lm.pretrained import open_pretrained

    model, tokenizer = open_pretrained(name, dtype, None if device_map == "none" else device_map)
    base = fingerprint(model, tokenizer)
    compare_ranks(base, name)
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    return model, PretrainedTokenizer(tokenizer, name, chat, system, ends), base


def _context(model: Any, name: str) -> int:
    """Return the model's context length in tokens. Raises ConfigError if its config has none."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not longest:
        raise ConfigError(f"{describe(name, model)} does not say how long its prompts may be. {WORKS}")
    rope = getattr(config, "rope_parameters", None) or {}
    for rules in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if rules.get("rope_type") == "longrope":
            # Beyond it all positions turn at other speeds, those of earlier tokens too.
            first = int(rules.get("original_max_position_embeddings") or longest)
            if first < longest:
                LOGGER.info("model %s is used up to %d tokens, before it changes its positions", name, first)
                longest = first
    return int(longest)
