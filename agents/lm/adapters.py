"""Low-rank adapters on the layers of a pretrained model."""

import warnings
from typing import Any

import torch
from torch import nn

from marl.errors import ConfigError, MissingDependencyError

ALL_LINEAR = "all-linear"
"""Every attention and MLP projection, as in PEFT."""


def add_adapters(
    model: Any, name: str, *, rank: int, alpha: float, dropout: float, targets: tuple[str, ...], seed: int
) -> Any:
    """Add adapters to the model and freeze the rest. Returns peft's wrapper. Predictions do not change yet.

    `targets` are suffixes of layer names (`q_proj`, `self_attn.q_proj`), or `all-linear`. `alpha` / `rank` scales the
    output of an adapter (Hu et al. 2021, section 4.1). `seed` seeds their weights. Raises ConfigError if a target
    matches no layer, or the output matrix.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError(f"lora_rank needs peft ({error}); run: pip install 'seqmarl[lm]'") from error

    layers = _find_layers(model, name, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that peft then mends itself, and of names transformers drops
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _find_layers(model: Any, name: str, targets: tuple[str, ...]) -> list[str]:
    """Return the full names of the decoder's linear layers that the targets match."""
    output = model.get_output_embeddings()
    inside = {id(module) for module in model.get_decoder().modules()}
    linear = {path: layer for path, layer in model.named_modules() if _is_linear(layer)}
    layers = [path for path, layer in linear.items() if id(layer) in inside and layer is not output]
    chosen: dict[str, None] = {}
    for target in targets:
        matching = [path for path in layers if target == ALL_LINEAR or f".{path}".endswith(f".{target}")]
        if not matching:
            raise ConfigError(_nothing_matches(model, name, target, layers, output))
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def _is_linear(layer: nn.Module) -> bool:
    """Return True for a projection. Some expert routers extend one, and return more than a tensor."""
    from transformers.pytorch_utils import Conv1D

    if type(layer) in (nn.Linear, Conv1D) or not isinstance(layer, nn.Linear):
        return isinstance(layer, nn.Linear | Conv1D)
    with torch.no_grad():
        return isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), torch.Tensor)


def _nothing_matches(model: Any, name: str, target: str, layers: list[str], output: nn.Module) -> str:
    names = ", ".join(dict.fromkeys(path.rsplit(".", 1)[-1] for path in layers))
    head = next(path for path, layer in model.named_modules() if layer is output)
    why = "that matches no linear layer of the decoder"
    if f".{head}".endswith(f".{target}"):
        why = "the output matrix, which adapters do not train here"
    return f"lora_targets={target!r}: {why}; model {name} has {names}. Give some of these, or {ALL_LINEAR}"


def dropout_layers(adapters: Any) -> list[nn.Module]:
    """Return the dropout layers of the adapters; none if the probability is 0."""
    return [
        module
        for path, module in adapters.named_modules()
        if isinstance(module, nn.Dropout) and "lora_dropout" in path.split(".")
    ]
