"""Checks of a pretrained model at load time: trees, cache and adapters compute what the model itself does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.generate import Reader
from marl.agents.lm.output_head import PLAIN, LogitRule, OutputMatrix
from marl.agents.lm.token_tree import Tree
from marl.errors import ConfigError

WORKS = "Decoder-only transformers work, such as Llama, Qwen, Mistral, Gemma, Phi, OLMo, Granite and GPT-2"
PROMPT, BRANCH, WINDOW, FEW = 40, 4, 16, 8
"""Tokens of the prompt, of a branch behind it, of narrowed sliding windows, and of checks of any length."""
CAPS = re.compile(r"logits?_soft_?cap(ping)?$")
SCALES = re.compile(r"(logits?_(scale|scaling|multiplier)|lm_head_multiplier|output_multiplier)$")
ATTENTION = re.compile("att(n|ention)|router")


def describe(name: str, model: Any) -> str:
    """Return the model's name and class for a message."""
    return f"model {name} ({type(model).__name__})"


@torch.no_grad()
def find_logit_rule(model: Any, name: str) -> LogitRule:
    """Return the rule from the product with the output matrix to logits, read from the model's config.

    It is tried on plain logits and on large ones, where a soft cap shows. Raises ConfigError if no rule fits, or the
    model has no output matrix.
    """
    layer, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    if layer is None:
        raise ConfigError(f"{describe(name, model)} has no output matrix over its vocabulary. {WORKS}")
    row = torch.tensor([_ids(len(embedding), FEW)], device=embedding.device)
    out = model.get_decoder()(input_ids=row, use_cache=False)
    if "last_hidden_state" not in out:
        raise ConfigError(f"{describe(name, model)} does not give what its output matrix reads. {WORKS}")
    hidden = out.last_hidden_state[0]
    product = OutputMatrix(layer.weight, getattr(layer, "bias", None)).logits(hidden)
    gain = 100.0 / float(product.abs().max().clamp(min=1e-6))
    plain = model(input_ids=row, use_cache=False).logits[0].float()
    hook = layer.register_forward_hook(lambda _, __, out: out * gain)
    try:
        large = model(input_ids=row, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    for rule in _declared_rules(model.config.get_text_config()):
        if _agree(rule(product), plain, layer.weight) and _agree(rule(gain * product), large, layer.weight):
            return rule
    raise ConfigError(
        f"{describe(name, model)} does something to its logits that its config does not declare as one scale and one "
        f"soft cap, so log-probabilities would be wrong. {WORKS}"
    )


def _declared_rules(config: Any) -> list[LogitRule]:
    """Return the rules that a config may mean: some families multiply by a scale, others divide by it."""

    def numbers(names: re.Pattern[str]) -> list[float]:
        found = [getattr(config, key) for key in dir(config) if names.search(key) and not ATTENTION.search(key)]
        return [float(value) for value in found if isinstance(value, int | float) and value > 0]

    scales = [scale for value in numbers(SCALES) for scale in (value, 1.0 / value)]
    rules = [LogitRule(scale, cap) for cap in [*numbers(CAPS), None] for scale in [*scales, 1.0]]
    return [PLAIN if rule == PLAIN else rule for rule in rules]


def check(backbone: Backbone, name: str) -> None:
    """Raise ConfigError if trees or the cache give other log-probabilities than the model, or adapters have no effect.

    It reads about 150 tokens, with sliding windows narrowed to 16.
    """
    model = backbone.model
    vocabulary = min(backbone.tokenizer.size, backbone.output.weight.shape[0])
    ids = _ids(vocabulary, PROMPT + 2 * BRANCH)
    prompt, one, two = ids[:PROMPT], ids[PROMPT : PROMPT + BRANCH], ids[PROMPT + BRANCH :]
    parents = (*range(-1, BRANCH - 1), -1, *range(BRANCH, 2 * BRANCH - 1))
    tree = Tree(prompt, one + two, parents)
    with narrow_windows(model), torch.no_grad():
        row = torch.tensor([prompt + two], device=backbone.device)
        plain = _log_probs(model(input_ids=row, use_cache=False).logits[0, PROMPT - 1 :])
        branch = backbone.features([tree])[[0, *range(BRANCH + 1, 2 * BRANCH + 1)]]
        if not _agree(_log_probs(backbone.output.logits(branch)), plain, backbone.output.weight):
            raise ConfigError(
                f"{describe(name, model)} cannot share a prompt among actions: it has recurrent layers, or positions "
                f"and masks of its own, which a tree of tokens does not fit. {WORKS}"
            )
        cached = _log_probs(backbone.output.logits(_read(backbone, prompt, two)))
        if not _agree(cached, plain, backbone.output.weight):
            raise ConfigError(
                f"{describe(name, model)} computes other log-probabilities with a key-value cache than without. {WORKS}"
            )
    _check_adapters(backbone, name, ids[:FEW])


def _read(backbone: Backbone, prompt: tuple[int, ...], branch: tuple[int, ...]) -> Tensor:
    """Return features (1 + len(branch), H) with the cache, of a prompt that is padded to a longer one."""
    reader = Reader(backbone, [prompt, prompt + branch])
    hidden = [reader.hidden[:1]]
    first = torch.zeros(1, dtype=torch.long, device=backbone.device)
    for token in branch:
        reader.read(torch.tensor([token], device=backbone.device), first)
        hidden.append(reader.hidden)
    return torch.cat(hidden)


def _check_adapters(backbone: Backbone, name: str, ids: tuple[int, ...]) -> None:
    """Raise ConfigError if a kind of layer has adapters without effect on the features."""
    trained = {path: weight for path, weight in backbone.trained.items() if "lora" in path}
    if not trained:
        return
    features = backbone.features([Tree(ids)])
    grads = torch.autograd.grad(features.sum(), list(trained.values()), allow_unused=True)
    kinds: dict[str, bool] = {}
    for path, grad in zip(trained, grads, strict=True):
        kind = path.split("/lora")[0].rsplit("/", 1)[-1]
        kinds[kind] = kinds.get(kind, False) or grad is not None
    idle = [kind for kind, reached in kinds.items() if not reached]
    if idle:
        raise ConfigError(
            f"lora_targets {', '.join(idle)} of {describe(name, backbone.model)} have no effect on its predictions, so "
            "nothing would train there; leave them out"
        )


@contextmanager
def narrow_windows(model: Any) -> Iterator[None]:
    """Narrow sliding windows and attention chunks to 16 tokens inside the context."""
    config = model.get_decoder().config
    before = {
        key: value
        for key in ("sliding_window", "attention_chunk_size")
        if isinstance(value := getattr(config, key, None), int) and value > WINDOW
    }
    try:
        for key in before:
            setattr(config, key, WINDOW)
        yield
    finally:
        for key, value in before.items():
            setattr(config, key, value)


def _ids(vocabulary: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(0).integers(0, vocabulary, count).tolist())


def _log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)


def _agree(ours: Tensor, theirs: Tensor, weight: Tensor) -> bool:
    """Return True if two sets of logits are equal within the precision of the weights."""
    share = 2e-4 if weight.dtype == torch.float32 else 0.03
    theirs = theirs.to(ours.device)
    return bool((ours - theirs).abs().max() <= share * (1.0 + theirs.abs().max()))
