"""Adapters on a pretrained model, how it is told from others, and models that cannot be used."""

import json
from contextlib import nullcontext

import pytest
import torch

from marl.agents.lm.generate import generate
from marl.agents.lm.loading import load_backbone
from marl.agents.lm.token_tree import Tree
from marl.checkpoint.codec import load_weights
from marl.errors import CheckpointError, ConfigError
from tests.support.lm import CHAT, SPEC, WORDS, save_llama, save_random, save_tokenizer, stir

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    save_llama(tmp_path / "model")
    return tmp_path / "model"


def open_folder(folder, **options):
    return load_backbone(str(folder), SPEC, **{"precision": "fp32", "lora_rank": 2} | options)


# Adapters


def adapted(backbone):
    return {name.split("/lora")[0].rsplit("/", 1)[-1] for name in backbone.trained}


def test_adapters_go_to_every_projection_of_the_decoder_by_default(folder, tmp_path):
    assert adapted(open_folder(folder)) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    from transformers import GPT2Config, GPT2LMHeadModel

    size = len(save_tokenizer(tmp_path / "gpt2"))
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    save_random(GPT2LMHeadModel, config, tmp_path / "gpt2")
    assert adapted(open_folder(tmp_path / "gpt2")) == {"c_attn", "c_proj", "c_fc"}


def test_targets_end_the_names_of_layers(folder):
    backbone = open_folder(folder, lora_targets=("self_attn.q_proj", "layers.1.mlp.up_proj"))
    assert adapted(backbone) == {"q_proj", "up_proj"}
    assert sum("up_proj" in name for name in backbone.trained) == 2


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("c_attn", "matches no linear layer of the decoder"),
        ("norm", "matches no linear layer of the decoder"),
        ("proj", "matches no linear layer of the decoder"),
        ("lm_head", "the output matrix, which adapters do not train here"),
    ],
)
def test_targets_that_nothing_would_train(folder, target, why):
    with pytest.raises(ConfigError, match=rf"lora_targets='{target}': .*{why}; model .* has q_proj, k_proj, .*all-lin"):
        open_folder(folder, lora_targets=("q_proj", target))


def test_layers_without_effect_are_not_trained_in_silence(folder, monkeypatch):
    from transformers import LlamaForCausalLM

    make = LlamaForCausalLM.__init__

    def with_an_idle_layer(self, config):
        make(self, config)
        self.model.idle = torch.nn.Linear(32, 32)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", with_an_idle_layer)
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"idle"], raising=False)
    assert "idle" not in adapted(open_folder(folder, lora_targets=("q_proj",)))
    with pytest.raises(ConfigError, match=r"lora_targets idle of model .* have no effect on its predictions"):
        open_folder(folder)


def test_alpha_over_rank_scales_what_adapters_add(folder):
    tree = [Tree((3, 4, 5), (6, 7), (-1, -1))]
    backbones = [open_folder(folder, lora_alpha=alpha) for alpha in (None, 4.0, 8.0)]
    for backbone in backbones:
        stir(backbone, scale=1e-3)
    base = backbones[0].features(tree, reference=True)
    usual, same, double = (backbone.features(tree).detach() - base for backbone in backbones)
    assert torch.equal(usual, same)
    assert float(double.norm() / usual.norm()) == pytest.approx(2.0, rel=0.05)


def test_dropout_acts_in_learning_alone(folder):
    backbone, tree = open_folder(folder, lora_dropout=0.5), [Tree((3, 4, 5), (6, 7), (-1, -1))]
    stir(backbone)
    with torch.no_grad():
        acted = backbone.features(tree)
    assert not torch.allclose(backbone.features(tree), acted, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(backbone.features(tree), acted)
    assert torch.equal(backbone.eval().features(tree), acted)


# The very model


def test_a_changed_base_model_is_noticed_when_a_checkpoint_is_loaded(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    stored = open_folder(folder).state_dict()
    open_folder(folder, precision="bf16").load_state_dict(stored)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model .* has another weights than when this"):
        open_folder(folder).load_state_dict(stored)
    save_llama(tmp_path / "other", chat=CHAT)
    with pytest.raises(CheckpointError, match="has another tokenizer than when"):
        load_weights(open_folder(tmp_path / "other"), stored, tmp_path)


def test_ranks_that_open_different_models_under_one_name_end(folder, monkeypatch):
    gather = "marl.agents.lm.fingerprint.distributed.gather"
    monkeypatch.setattr(gather, lambda value: [value, value.clone()])
    open_folder(folder)
    monkeypatch.setattr(gather, lambda value: [value, value.clone(), value + 1])
    said = r"model .* on rank 2 has another weights and other tokenizer than on rank 0; give all ranks the same files"
    with pytest.raises(ConfigError, match=said):
        open_folder(folder)


def test_every_end_token_of_the_generation_config_ends_an_answer(folder):
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=[0, 6, 9]).save_pretrained(folder)
    backbone = open_folder(folder)
    assert (backbone.tokenizer.end, backbone.tokenizer.ends) == (0, (0, 6, 9))
    assert backbone.tokenizer.decode([4, 6, 5]) == backbone.tokenizer.decode([4])
    assert backbone.tokenizer.quote([4, 6]) == (4,)
    assert 6 in backbone.tokenizer.prompt(" ".join(WORDS))
    answers = generate(backbone, [(3, 4)] * 200, max_tokens=8, generator=torch.Generator().manual_seed(0))
    last = {answers.ids(row)[-1] for row in range(200) if len(answers.ids(row)) < 8}
    assert last == {0, 6, 9}
    assert not any(token in (0, 6, 9) for row in range(200) for token in answers.ids(row)[:-1])


# Folders that cannot be used


def save_family(kind, folder, **config):
    """A random model of another family; returns its folder."""
    import transformers

    size = len(save_tokenizer(folder))
    config = getattr(transformers, f"{kind}Config")(vocab_size=size, **config)
    name = {"T5": "T5ForConditionalGeneration", "Bert": "BertLMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    save_random(getattr(transformers, name), config, folder)
    return folder


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RANDOM = {"initializer_range": 0.3}
POSITIONS = "cannot share a prompt among actions"
UNFIT = {
    "Mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "MambaForCausalLM", "Mamba"),
    "Bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4} | RANDOM, "BloomForCausalLM", POSITIONS),
    "Mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4} | RANDOM, "MptForCausalLM", POSITIONS),
    "Falcon": (WIDTHS | RANDOM | {"alibi": True}, "FalconForCausalLM", POSITIONS),
    "Bert": (WIDTHS, "BertLMHeadModel", "does something to its logits"),
    "T5": ({"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64}, "t5", "has an encoder and a decoder"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_of_an_unfit_family_is_refused_by_name(tmp_path, kind):
    config, name, why = UNFIT[kind]
    with pytest.raises(ConfigError, match=rf"^model .* \({name}\) .*{why}.* Decoder-only transformers work, such as"):
        open_folder(save_family(kind, tmp_path, **config))


def test_code_that_a_model_brings_is_never_run(folder):
    config = folder / "config.json"
    brought = json.loads(config.read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    config.write_text(json.dumps(brought))
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match=r"brings code of its own, which is never run \(trust_remote_code=False\)"):
        open_folder(folder)


@pytest.mark.parametrize("cap", [30.0, 300.0])
def test_a_cap_that_the_config_does_not_declare_is_noticed(folder, monkeypatch, cap):
    """Also where the check's own logits, about 10, are so small that the cap does not show."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def capped(self, *args, **options):
        out = forward(self, *args, **options)
        out.logits = cap * torch.tanh(out.logits / cap)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    with pytest.raises(ConfigError, match="does something to its logits that its config does not declare"):
        open_folder(folder)


def test_a_model_that_mixes_a_trees_branches_is_refused(folder, monkeypatch):
    monkeypatch.setattr("marl.agents.lm.backbone.tree_attention", lambda *_: nullcontext())
    with pytest.raises(ConfigError, match="cannot share a prompt among actions"):
        open_folder(folder)


def test_a_model_that_changes_its_positions_with_length_is_used_as_far_as_it_does_not(tmp_path):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    lengths = {"max_position_embeddings": 96, "original_max_position_embeddings": 48}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    folder = save_family("Phi3", tmp_path, **WIDTHS, **lengths, **special, num_key_value_heads=2, rope_parameters=rope)
    assert open_folder(folder).context == 48
