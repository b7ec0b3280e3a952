"""Models by name: `tiny`, `smollm2`, a folder, a GGUF file, or what Hugging Face's cache holds."""

import copy
import warnings
from typing import Any, Literal

import torch

from agents.lm.backbone import Backbone
from agents.lm.tokens import PretrainedTokenizer, Tokenizer
from agents.lm.tree import Tree
from agents.lm.words import WordTokenizer
from marl import distributed
from marl.errors import ConfigError, MissingDependencyError
from marl.types import EnvSpec

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
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj"),
    token_budget: int = 4096,
    seed: int = 0,
) -> Backbone:
    """The model `name`, ready to train: on the CPU, or with `device_map` where accelerate has put it.

    `lora_rank` above 0 trains adapters of that rank on the layers named `lora_targets`, in float32, and freezes the
    rest (Hu et al. 2021; scaled by 2, as rank 8 and alpha 16 are); 0 trains all weights, beside a frozen copy as the
    reference. `precision` is that of frozen weights; what trains is float32. `seed` draws the weights of `tiny` and
    the adapters; both are the same whatever else is drawn, so the reference of a continued run is the same too.

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
            f"precision is bf16, which is for frozen weights; model {name} with lora_rank {lora_rank} needs fp32"
        )
    if device_map != "none":
        _require_one_process_and_accelerate()
    model, tokenizer = _tiny(spec, seed) if from_scratch else _pretrained(name, dtype, chat, system, device_map)
    adapters = reference = None
    if lora_rank:
        adapters = _adapt(model, name, lora_rank, lora_targets, seed)
    else:
        reference = copy.deepcopy(model).eval().requires_grad_(False)
    backbone = Backbone(model, tokenizer, _context(model), token_budget, adapters, reference, device_map != "none")
    if not from_scratch:
        _check(backbone, name)
    return backbone


def require_extra() -> None:
    """Raise MissingDependencyError where transformers is absent."""
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
    """The dtype of frozen weights; `auto` is bf16 where the machine computes in it, else float32.

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
    """A random Llama of 1.4 million parameters that knows the words of the environment."""
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


def _pretrained(name: str, dtype: torch.dtype, chat: Chat, system: str, device_map: DeviceMap) -> tuple[Any, Tokenizer]:
    from agents.lm.pretrained import open_pretrained

    model, tokenizer = open_pretrained(name, dtype, None if device_map == "none" else device_map)
    return model, PretrainedTokenizer(tokenizer, name, chat, system)


def _adapt(model: Any, name: str, rank: int, targets: tuple[str, ...], seed: int) -> Any:
    """Put adapters into the model, which changes nothing yet, and freeze the rest. Returns peft's wrapper."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError(f"lora_rank needs peft ({error}); run: pip install 'seqmarl[lm]'") from error

    endings = {path.rsplit(".", 1)[-1]: None for path, layer in model.named_modules() if hasattr(layer, "weight")}
    unknown = [target for target in targets if target not in endings]
    if unknown or not targets:
        raise ConfigError(f"lora_targets are {targets}; model {name} has layers named {', '.join(endings)}")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that peft then mends itself, and of names transformers drops
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)))


def _context(model: Any) -> int:
    """Tokens that the model can look back on: all its layers, so a sliding window counts."""
    config = model.config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if sliding else None
    return int(min(config.max_position_embeddings, window or config.max_position_embeddings))


@torch.no_grad()
def _check(backbone: Backbone, name: str) -> None:
    """Raise ConfigError where the attention ignores a tree's mask, or the logits are not linear in the features."""
    one, two, three, four, five = (token % backbone.tokenizer.size for token in (11, 23, 42, 57, 91))
    tree = backbone.features([Tree((one, two), (three, four, five), (-1, -1, 1))])[-1]
    path = backbone.features([Tree.path((one, two), (four, five))])[-1]
    if (tree - path).norm() > 0.05 * path.norm():
        raise ConfigError(f"model {name} cannot share a prompt among actions: its attention takes no mask of its own")
    ids = torch.tensor([[one, two, four, five]], device=backbone.device)
    logits = backbone.model(input_ids=ids, use_cache=False).logits[0, -1:].float()
    hidden = backbone.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -1:]
    if (backbone.output.logits(hidden) - logits).norm() > 0.02 * logits.norm():
        raise ConfigError(f"model {name} caps or scales its logits, which is not supported; take another model")
