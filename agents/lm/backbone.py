"""A causal language model with one forward pass over trees of tokens, for acting and learning."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl.agents.lm.adapters import dropout_layers
from marl.agents.lm.candidate_trie import pick
from marl.agents.lm.fingerprint import compare
from marl.agents.lm.output_head import PLAIN, LogitRule, OutputMatrix
from marl.agents.lm.token_tree import Tree, batches, merge, pack
from marl.agents.lm.tokenizer import Tokenizer
from marl.agents.lm.tree_attention import tree_attention
from marl.errors import ConfigError

MERGED = 512
"""Tokens up to which trees are merged: attention inside a merged tree is computed for all pairs of its tokens."""


class Backbone(nn.Module):
    """A model's weights, of which the trained ones are this module's parameters.

    Trained are the adapters, or all weights if there are no adapters. `state_dict` holds them and the fingerprint of a
    pretrained model. The other weights belong to `model`. It is no submodule, but moves with this module between
    devices. It stays in evaluation mode. The *reference* is the model before training: the adapters switched off, or a
    frozen copy.

    `context` is the number of tokens of prompt plus action, `feature_size` is H, and `token_budget` the number of
    tokens of a forward pass.
    """

    base: Tensor | None

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        context: int,
        token_budget: int,
        adapters: Any | None = None,
        reference: Any | None = None,
        placed: bool = False,
        logit_rule: LogitRule = PLAIN,
        base: Tensor | None = None,
        name: str = "tiny",
    ) -> None:
        """Wrap `model`.

        `adapters` is the peft model around it, and `reference` a frozen copy of a model that trains in full. With
        `placed` the model's layers lie on several devices and stay there. `logit_rule` is applied to its logits.
        `base` is the fingerprint of a pretrained model, which checkpoints keep and loading compares. `name` is for
        messages.
        """
        super().__init__()
        self.placed = placed
        self._held = (model.eval(), adapters, reference)
        self.tokenizer, self.context, self.token_budget = tokenizer, context, token_budget
        self.logit_rule, self.name = logit_rule, name
        self._dropout = [] if adapters is None else dropout_layers(adapters)
        self.register_buffer("base", base)
        self.register_load_state_dict_pre_hook(self._compare_base)
        self.feature_size = int(model.get_input_embeddings().weight.shape[1])
        self.trained = nn.ParameterDict(
            {name.replace(".", "/"): weight for name, weight in model.named_parameters() if weight.requires_grad}
        )

    @property
    def model(self) -> Any:
        """The causal language model."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings, and of all tensors outside the model."""
        return self.model.get_input_embeddings().weight.device

    @property
    def output(self) -> OutputMatrix:
        """The output matrix, from features to logits. It is the trained one if the model trains in full."""
        return self._output(self.model)

    @property
    def reference_output(self) -> OutputMatrix:
        """The output matrix of the reference."""
        return self._output(self._held[2] or self.model)

    def _output(self, model: Any) -> OutputMatrix:
        layer = model.get_output_embeddings()
        return OutputMatrix(layer.weight, getattr(layer, "bias", None), self.logit_rule)

    def merged_features(self, trees: Sequence[Tree]) -> Tensor:
        """Return the same as `features`, but tokens at the beginning of several trees are read once.

        A merged tree holds at most MERGED tokens, or twice as many as the longest tree. Rounding depends on which trees
        are merged.
        """
        merged = merge(trees, max([MERGED, *(2 * tree.length for tree in trees)]))
        hidden = self.features([tree for tree, _ in merged])
        rows: list[Any] = [None] * len(trees)
        start = 0
        for tree, members in merged:
            for index, own in members:
                rows[index] = own + start
            start += tree.rows
        return pick(hidden, torch.from_numpy(np.concatenate(rows)).to(hidden.device))

    def features(self, trees: Sequence[Tree], reference: bool = False) -> Tensor:
        """Return the last hidden states (M, H) float32 at each prompt's last token and at each node of its tree.

        M is the sum of `tree.rows`. A tree's first row is its prompt's last token, and row k + 1 its node k. Each row
        is what the model computes for the prompt and the node's ancestors alone, but shared prefixes are computed
        once. Trees of similar length share a forward pass of at most `token_budget` tokens. A longer tree has its own.

        On a CPU a tree's features do not depend on the other trees, to the last bit, with or without gradients.
        Another tree over the same tokens rounds differently: in bf16 a token's log-probability moves by up to 0.16
        (SmolLM2). So act and learn with the same tree.

        Adapter dropout is active if autograd is on and this module is in training mode. The features of the
        `reference` have no gradient, and are ordinary tensors even in inference mode, so they can be kept for learning.
        """
        if not trees:
            return torch.zeros(0, self.feature_size, device=self.device)
        if not reference:
            with self._dropping(self.training and torch.is_grad_enabled()):
                return self._features(self.model, trees)
        with torch.inference_mode(False), torch.no_grad(), self._adapters_off():
            return self._features(self._held[2] or self.model, trees)

    def _features(self, model: Any, trees: Sequence[Tree]) -> Tensor:
        parts: dict[int, Tensor] = {}
        for group in batches([tree.length for tree in trees], self.token_budget):
            hidden = self._forward(model, [trees[index] for index in group])
            for row, index in enumerate(group):
                parts[index] = hidden[row, len(trees[index].prompt) - 1 : trees[index].length]
        return torch.cat([parts[index] for index in range(len(trees))]).to(self.device, torch.float32)

    def _forward(self, model: Any, trees: Sequence[Tree]) -> Tensor:
        """Return hidden states (B, S, H) of trees padded on the right."""
        ids, positions, visible = (torch.from_numpy(x).to(self.device) for x in pack(trees, self.tokenizer.pad))
        decoder, everything = model.get_decoder(), torch.ones_like(ids)
        with tree_attention(decoder, positions, visible):
            out = decoder(input_ids=ids, position_ids=positions, attention_mask=everything, use_cache=False)
        return out.last_hidden_state

    @contextmanager
    def _dropping(self, learning: bool) -> Iterator[None]:
        for layer in self._dropout:
            layer.train(learning)
        try:
            yield
        finally:
            for layer in self._dropout:
                layer.eval()

    @contextmanager
    def _adapters_off(self) -> Iterator[None]:
        adapters = self._held[1]
        if adapters is None:
            yield
            return
        adapters.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            adapters.base_model.enable_adapter_layers()

    @staticmethod
    def _compare_base(module: Any, state_dict: Any, prefix: str, *_: Any) -> None:
        """Raise CheckpointError if the checkpoint belongs to another pretrained model."""
        there = state_dict.get(f"{prefix}base")
        if module.base is not None and there is not None:
            compare(module.base, there, module.name)

    def _apply(self, fn: Any, recurse: bool = True) -> "Backbone":
        """Move the model's other weights too.

        Raises ConfigError if the model is placed and the device is not its first.
        """
        if self.placed:
            asked = fn(torch.empty(0, device=self.device)).device
            if asked != self.device:
                raise ConfigError(f"device={asked}, but device_map begins on {self.device}; use --device {self.device}")
            return self
        super()._apply(fn, recurse)
        for model in (self._held[0], self._held[2]):
            if model is not None:
                model._apply(fn)
        return self
