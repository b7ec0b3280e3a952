"""Families of transformers: trees, plain forwards and the cache give the same log-probabilities.

Every model is random and tiny, with windows and chunks of 16 tokens, and caps and scales that matter. The plain forward
is the model's own, with its plain attention.
"""

import copy

import numpy as np
import pytest
import torch

from marl.agents.lm.backbone import Backbone
from marl.agents.lm.generate import generate
from marl.agents.lm.loading import load_backbone
from marl.agents.lm.self_check import check, find_logit_rule
from marl.agents.lm.token_tree import Tree
from marl.agents.lm.word_tokenizer import WordTokenizer
from tests.support.lm import SPEC, save_random, save_tokenizer

transformers = pytest.importorskip("transformers")

TOKENIZER = WordTokenizer(())
WIDTHS = {
    "vocab_size": TOKENIZER.size,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": TOKENIZER.end,
    "pad_token_id": TOKENIZER.pad,
}
GROUPED = WIDTHS | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
SLIDING = {"sliding_window": 16}
MIXED = SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = WIDE | MIXED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
CAPPED = GEMMA | {"attn_logit_softcapping": 4.0}
GPT2 = {
    "vocab_size": TOKENIZER.size,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.25,
    "bos_token_id": 0,
    "eos_token_id": TOKENIZER.end,
}
NEO = {
    "num_layers": 2,
    "num_heads": 4,
    "window_size": 16,
    "attention_types": [[["global", "local"], 1]],
}
FAMILIES = {
    "Llama": GROUPED,
    "Mistral": GROUPED | SLIDING,
    "Mixtral": GROUPED | SLIDING | EXPERTS,
    "Phi3": GROUPED | SLIDING,
    "Starcoder2": GROUPED | SLIDING,
    "GPTNeo": {key: WIDTHS[key] for key in ("vocab_size", "hidden_size", "max_position_embeddings")} | NEO,
    "GPT2": GPT2,
    "GPTJ": GPT2 | {"rotary_dim": 8},
    "GPTNeoX": WIDTHS,
    "OPT": WIDTHS | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Phi": WIDTHS,
    "Gemma": WIDE,
    "Gemma2": CAPPED,
    "Gemma3": GEMMA,
    "VaultGemma": CAPPED,
    "Qwen2": GROUPED | MIXED | {"use_sliding_window": True, "max_window_layers": 0},
    "Qwen3": WIDE | MIXED | {"use_sliding_window": True, "max_window_layers": 0},
    "Qwen3Moe": WIDE | EXPERTS,
    "Cohere": GROUPED | {"logit_scale": 0.3},
    "Cohere2": GROUPED | MIXED | {"logit_scale": 0.3},
    "Granite": GROUPED | {"logits_scaling": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "GraniteMoe": GROUPED | EXPERTS | {"logits_scaling": 3.0},
    "Olmo2": GROUPED,
    "Olmo3": GROUPED | MIXED,
    "GptOss": WIDE | MIXED | EXPERTS,
    "SmolLM3": GROUPED | {"no_rope_layers": [1, 0]},
    "StableLm": GROUPED,
    "MiniCPM3": WIDTHS
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    | {"dim_model_base": 16, "num_key_value_heads": 4},
    "HyperCLOVAX": GROUPED | {"logits_scaling": 3.0},
    "Ministral": WIDE | MIXED,
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}


def make_backbone(family):
    """A backbone around a random model, and the same model apart."""
    config = getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(config).eval()
    rule = find_logit_rule(model, family)
    return Backbone(model, TOKENIZER, 512, 4096, logit_rule=rule), copy.deepcopy(model)


@torch.no_grad()
def plain_log_probs(model, prompt, answer):
    """(1 + len(answer), V): the model's own, behind the prompt and each token of an answer."""
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits.float(), -1)


def draw(rng, count):
    return tuple(rng.integers(6, TOKENIZER.size, count).tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_and_the_cache_give_the_log_probs_of_the_model(family):
    backbone, model = make_backbone(family)
    model.set_attn_implementation("eager")
    rng = np.random.default_rng(0)
    answers = []
    with torch.no_grad():
        for length in (5, 24, 300):
            prompt, one, two = draw(rng, length), draw(rng, 4), draw(rng, 5)
            tree = Tree(prompt, one + two, (-1, 0, 1, 2, -1, 4, 5, 6, 7))
            log_probs = torch.log_softmax(backbone.output.logits(backbone.features([tree])), -1)
            for branch, rows in ((one, [0, 1, 2, 3, 4]), (two, [0, 5, 6, 7, 8, 9])):
                expected = plain_log_probs(model, prompt, branch)
                torch.testing.assert_close(log_probs[rows], expected, rtol=0.0, atol=1e-4)
            answers.append((prompt, expected))
    prompts = [prompt for prompt, _ in answers]
    sampled = generate(backbone, prompts, max_tokens=20, generator=torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        ids = sampled.ids(row)
        expected = plain_log_probs(model, prompt, ids)[:-1].gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)
        torch.testing.assert_close(sampled.behavior_log_prob[row, : len(ids)], expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "GptOss"])
def test_the_check_at_load_time_notices_a_window_that_is_not_kept(family, monkeypatch):
    """Also one far longer than its prompt."""
    from marl.agents.lm import tree_attention
    from marl.errors import ConfigError

    monkeypatch.setitem(FAMILIES, family, FAMILIES[family] | {"sliding_window": 400})
    backbone, _ = make_backbone(family)
    check(backbone, family)
    assert backbone.model.config.sliding_window == 400
    monkeypatch.setattr(
        tree_attention,
        "tree_mask",
        lambda trees, _: trees[1].unsqueeze(1),
    )
    with pytest.raises(ConfigError, match="cannot share a prompt among actions"):
        check(backbone, family)


def test_a_window_does_not_bound_the_context(tmp_path):
    size = len(save_tokenizer(tmp_path))
    config = transformers.Gemma2Config(**CAPPED | {"vocab_size": size, "eos_token_id": 0, "pad_token_id": 0})
    save_random(transformers.Gemma2ForCausalLM, config, tmp_path)
    assert load_backbone(str(tmp_path), SPEC, precision="fp32", lora_rank=2).context == 512


def test_other_users_of_transformers_keep_their_masks():
    backbone, model = make_backbone("Mistral")
    before = plain_log_probs(model, (7, 8, 9), (10,) * 30)
    with torch.no_grad():
        backbone.features([Tree((7, 8, 9))])
    assert torch.equal(plain_log_probs(model, (7, 8, 9), (10,) * 30), before)
