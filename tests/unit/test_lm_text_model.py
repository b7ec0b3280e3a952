"""A frozen model that writes texts for environments."""

import pytest

pytest.importorskip("transformers")

from marl.agents.lm.text_model import load_writer
from marl.errors import ConfigError
from marl.registry import open_text_model
from tests.support.lm import CHAT, save_llama


def test_a_writer_answers_each_prompt_as_it_does_alone(tmp_path):
    save_llama(tmp_path, chat=CHAT)
    write = open_text_model(str(tmp_path))
    prompts = ["go north", "take the key and go north", "go north"]
    answers = write(prompts, 6)
    assert answers == [write([prompt], 6)[0] for prompt in prompts]
    assert answers[0] == answers[2]
    assert all(1 <= len(answer.split()) <= 6 for answer in answers)


def test_long_prompts_are_cut_and_impossible_ones_refused(tmp_path):
    save_llama(tmp_path)
    write = load_writer(str(tmp_path))
    assert write(["north " * 500], 4) == write(["north " * 60], 4)
    with pytest.raises(ConfigError, match="max_tokens=64 does not fit the model's context of 64"):
        write(["north"], 64)


def test_a_random_model_is_refused():
    with pytest.raises(ConfigError, match="'tiny' has random weights"):
        open_text_model("tiny")
