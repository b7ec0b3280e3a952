"""Models by name: `tiny`, `smollm2`, a folder, a GGUF file, or what Hugging Face's cache holds."""

import copy
from typing import Any, Literal

import torch

from agents.lm.backbone import Backbone
from agents.lm.tokens import Tokenizer
from agents.lm.words import WordTokenizer
from marl.errors import ConfigError, MissingDependencyError
from marl.types import EnvSpec

Precision = Literal["auto", "fp32", "bf16"]


def load_backbone(
    name: str,
    spec: EnvSpec,
    *,
    precision: Precision = "auto",
    chat: Literal["auto", "off"] = "auto",
    lora_rank: int = 0,
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj"),
    token_budget: int = 4096,
    seed: int = 0,
) -> Backbone:
    """The model `name`, ready to train: its adapters of rank `lora_rank`, or where that is 0 all of its weights."""
    _require()
    model, tokenizer = _tiny(spec, seed)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    return Backbone(model, tokenizer, model.config.max_position_embeddings, token_budget, reference=reference)


def _tiny(spec: EnvSpec, seed: int) -> tuple[Any, Tokenizer]:
    """A random Llama of 1.4 million parameters and the words of the environment."""
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
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def _require() -> None:
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"language agents need transformers and peft ({error}); run: pip install 'seqmarl[lm]'"
        ) from error
