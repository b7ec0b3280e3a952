"""A causal language model as the language agents use it: one forward over trees of tokens, for acting and learning."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from marl.agents.lm.adapters import dropout_layers
from marl.agents.lm.fingerprint import compare
from marl.agents.lm.output_head import PLAIN, LogitRule, OutputMatrix
from marl.agents.lm.token_tree import Tree, batches, pack
from marl.agents.lm.tokenizer import Tokenizer
from marl.agents.lm.tree_attention import tree_attention
from marl.errors import ConfigError


class Backbone(nn.Module):
    """One copy of a model's weights, with whatever of them is trained.

    What is trained is this module's parameters: the adapters, or all weights where there are none. Its `state_dict`
    holds these and the fingerprint of a pretrained model. The rest belongs to `model`, which is no submodule, moves
    with this module between devices and stays in evaluation mode. The *reference* is the model before training: the
    adapters switched off, or a frozen copy.

    `tokenizer`; `context`: tokens of prompt plus action; `feature_size`: H; `token_budget`: tokens of a forward.
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
        """`adapters` is the peft model around `model`; `reference` a frozen copy of a model that trains in full.

        `placed`: the model's layers lie on devices of their own and stay there. `logit_rule`: what the model does to
        its logits. `base`: the fingerprint of a pretrained model, kept in checkpoints and compared when one is
        loaded; `name` is for messages.
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
        return self._held[0]

    @property
    def device(self) -> torch.device:
        """Where tokens go in, and where everything but the model itself belongs."""
        return self.model.get_input_embeddings().weight.device

    @property
    def output(self) -> OutputMatrix:
        """The output matrix, in which features become logits. Of the trained model, if that trains in full."""
        return self._output(self.model)

    @property
    def reference_output(self) -> OutputMatrix:
        """The output matrix that belongs to features of the reference."""
        return self._output(self._held[2] or self.model)

    def _output(self, model: Any) -> OutputMatrix:
        layer = model.get_output_embeddings()
        return OutputMatrix(layer.weight, getattr(layer, "bias", None), self.logit_rule)

    def features(self, trees: Sequence[Tree], reference: bool = False) -> Tensor:
        """(M, H) float32: what the model knows at the last token of every prompt and at every node of its trie.

        M is the sum of `tree.rows`, in order of the trees; a tree's first row is its prompt's last token, row k + 1
        its node k: `features.split([tree.rows for tree in trees])`. Each is what the model computes for the prompt
        and the node's ancestors alone; a tree's prefixes are computed once. Trees of like length share a forward of
        at most `token_budget` tokens (a longer tree has its own).

        On a CPU a tree's features are the same to the last bit whatever other trees are asked for, with gradients or
        without; so a tree met again gives the log-probabilities that it gave before. Another tree over the same
        tokens does not: in bf16 the same token's log-probability moves by up to 0.16 (SmolLM2). Act and learn with
        the same tree.

        The dropout of adapters acts where autograd is on and this module is in training mode.

        With gradients wherever autograd is on, except of the `reference`, whose features are ordinary tensors even
        in inference mode and can be kept for learning later.
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
        """(B, S, H) hidden states of trees padded on the right."""
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
        """Raise CheckpointError where the checkpoint belongs to another pretrained model."""
        there = state_dict.get(f"{prefix}base")
        if module.base is not None and there is not None:
            compare(module.base, there, module.name)

    def _apply(self, fn: Any, recurse: bool = True) -> "Backbone":
        """Take the weights that are not parameters of this module along to another device.

        Raises ConfigError for a model that is placed, and another device than its first.
        """
        if self.placed:
            asked = fn(torch.empty(0, device=self.device)).device
            if asked != self.device:
                raise ConfigError(
                    f"device is {asked}, but device_map begins on {self.device}; use --device {self.device}"
                )
            return self
        super()._apply(fn, recurse)
        for model in (self._held[0], self._held[2]):
            if model is not None:
                model._apply(fn)
        return self
