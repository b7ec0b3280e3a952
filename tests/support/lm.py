"""Small language models for tests: none is downloaded."""

from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.token_tree import Tree
from marl.types import EnvSpec

WORDS = ("open", "close", "the", "fridge", "tomato", "lettuce", "put", "down", "up", "go", "north", "you", "are", "in")
TEXT = gymnasium.spaces.Text(1000)
SPEC = EnvSpec("kitchen", ("cook",), TEXT, TEXT, 5, words=WORDS)


def random_tree(rng: np.random.Generator, size: int, prompt: int, nodes: int) -> Tree:
    """A tree of random ids below `size`, every node below a random earlier one or the prompt."""
    parents = tuple(int(rng.integers(-1, node)) for node in range(nodes))
    draw = rng.integers(0, size, prompt + nodes).tolist()
    return Tree(tuple(draw[:prompt]), tuple(draw[prompt:]), parents)


def branches(tree: Tree) -> list[list[int]]:
    """The ids that each of a tree's features has seen: the prompt, and every node with what leads to it."""
    seen = [list(tree.prompt)]
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        seen.append([*seen[parent + 1], token])
    return seen


def separate_features(backbone: Backbone, trees: list[Tree], model=None) -> Tensor:
    """Return the features of `Backbone.features`, from one plain forward pass per prompt and branch."""
    decoder = (model or backbone.model).get_decoder()
    rows = [
        decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        for tree in trees
        for ids in branches(tree)
    ]
    return torch.stack(rows).float()


def stir(backbone: Backbone, seed: int = 0, scale: float = 0.05) -> None:
    """Move what is trained away from its start, where adapters do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=scale)


def save_tokenizer(folder: Path, end: str | None = "<end>", chat: str | None = None):
    """A word-level tokenizer in the form of a pretrained one; returns it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<end>", "<user>", "<answer>", "<unknown>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, unk_token="<unknown>")
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return tokenizer


CHAT = "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}<answer>"


def save_llama(folder: Path, **tokenizer) -> None:
    """A random Llama with grouped keys and an output matrix of its own, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(save_tokenizer(folder, **tokenizer))
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    save_random(LlamaForCausalLM, config, folder)


def save_gguf(file: Path) -> None:
    """A random Llama in llama.cpp's format: 4-bit blocks, a byte-pair vocabulary of single letters."""
    import gguf

    size, inner, layers, heads = 64, 128, 2, 2
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<end>", "\u0120", "ab", *letters, *(f"<{index}>" for index in range(35))]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(size // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    rng = np.random.default_rng(0)

    def put(name: str, *shape: int) -> None:
        weight = rng.normal(0.0, 0.2, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)

    put("token_embd.weight", len(tokens), size)
    writer.add_tensor("output_norm.weight", np.ones(size, dtype=np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            put(f"blk.{layer}.{name}.weight", size, size)
        put(f"blk.{layer}.ffn_gate.weight", inner, size)
        put(f"blk.{layer}.ffn_up.weight", inner, size)
        put(f"blk.{layer}.ffn_down.weight", size, inner)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_random(kind, config, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
