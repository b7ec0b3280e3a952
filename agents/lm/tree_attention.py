"""Attention over trees of tokens. Every layer keeps its model's mask, applied at the tree's positions.

transformers builds the mask of a layer from a rule over two positions (causal, sliding window, chunk), which the model
chooses for each kind of layer. Here the rule reads the positions in the tree, not in the row, and a token sees its
ancestors only. So a window of 512 tokens holds 512 tokens of the node's own branch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Trees = tuple[Tensor, Tensor]
"""`positions` (B, S) int64 and `visible` (B, S, S) bool of a batch of trees."""
_TREES: ContextVar[Trees | None] = ContextVar("trees", default=None)
WRAPPED = "reads_trees"


@contextmanager
def tree_attention(decoder: nn.Module, positions: Tensor, visible: Tensor) -> Iterator[None]:
    """Make `decoder` read rows as trees inside the context: token i at `positions[:, i]` attends to `visible[:, i]`.

    Call the decoder without a cache and with a two-dimensional attention mask of ones. Other threads, and
    other calls of transformers, keep their own masks.
    """
    _wrap_mask_functions()
    local = [module for module in decoder.modules() if _holds_window(module)]
    token = _TREES.set((positions, visible))
    try:
        with _local_windows(local, positions, visible):
            yield
    finally:
        _TREES.reset(token)


def tree_mask(trees: Trees, rule: Callable[..., Tensor]) -> Tensor:
    """Return (B, 1, S, S) bool: the tree and the `rule` of a layer both allow the attention.

    `rule(batch, head, query position, key position)` is a mask function of transformers.
    """
    positions, visible = trees
    batch = torch.arange(len(positions), device=positions.device)[:, None, None, None]
    head = batch.new_zeros(1, 1, 1, 1)
    allowed = rule(batch, head, positions[:, None, :, None], positions[:, None, None, :])
    return visible.unsqueeze(1) & allowed


def _wrap_mask_functions() -> None:
    """Make transformers' mask functions read trees inside `tree_attention`. Outside they do not change."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as FUNCTIONS

    for name in ("sdpa", "eager"):
        if not hasattr(FUNCTIONS[name], WRAPPED):
            FUNCTIONS.register(name, _or_trees(FUNCTIONS[name], additive=name == "eager"))


def _or_trees(standard: Callable[..., Any], additive: bool) -> Callable[..., Any]:
    from transformers.masking_utils import causal_mask_function

    def mask(*args: Any, **options: Any) -> Any:
        trees = _TREES.get()
        if trees is None:
            return standard(*args, **options)
        allowed = tree_mask(trees, options.get("mask_function", causal_mask_function))
        if not additive:
            return allowed
        dtype = options.get("dtype", torch.float32)
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)

    setattr(mask, WRAPPED, True)
    return mask


def _holds_window(module: nn.Module) -> bool:
    return module.__dict__.get("attention_type") == "local" and "bias" in module._buffers


@contextmanager
def _local_windows(modules: list[nn.Module], positions: Tensor, visible: Tensor) -> Iterator[None]:
    """Replace the windows that layers hold as buffers (GPT-Neo) by windows over the trees."""
    layers: list[Any] = modules
    before = [layer.bias for layer in layers]
    try:
        for layer, rows in zip(layers, before, strict=True):
            size = layer.config.window_size
            allowed = tree_mask((positions, visible), lambda _, __, query, key, size=size: key > query - size)
            layer.bias = allowed.to(rows.device)
        yield
    finally:
        for layer, rows in zip(layers, before, strict=True):
            layer.bias = rows
