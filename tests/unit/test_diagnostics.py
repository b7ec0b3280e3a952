"""Warnings about collapse and divergence, and none about health."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from marl import run
from marl.agents.heads import GaussianHead
from marl.agents.lm.policy import TokenPolicy
from marl.agents.lm.prompt_table import FREE
from marl.config import default_config, override
from marl.diagnostics import find_symptoms
from marl.envs.toy import make as make_toy
from marl.envs.wrappers import EnvWrapper
from marl.errors import NonFiniteError
from marl.registry import AGENTS
from marl.types import Nodes

HEALTHY = {
    "policy/entropy": 0.7,
    "policy/kl": 0.02,
    "policy/clip_fraction": 0.2,
    "loss/value": 0.6,
    "episode/invalid_fraction": 0.1,
}
CASES = [
    ({}, set()),
    ({"policy/entropy": 0.001}, {"entropy"}),
    ({"policy/entropy": 0.001, "episode/success": 0.95}, set()),
    ({"policy/entropy": -3.0, "policy/std_min": 0.1, "policy/std_max": 0.3}, set()),
    ({"policy/std_min": 0.001, "policy/std_max": 0.499}, {"std_collapse", "max_std"}),
    ({"policy/kl": 17.0, "policy/clip_fraction": 0.9}, {"kl", "clip_fraction"}),
    ({"loss/value": 40.0}, {"value_loss"}),
    ({"policy/repeated_text": 0.8, "episode/invalid_fraction": 0.7}, {"repeated_text", "invalid_actions"}),
    ({"policy/entropy": None}, {"no_choice"}),
]


@pytest.mark.parametrize(("changes", "kinds"), CASES)
def test_symptoms(changes, kinds):
    config = default_config("toy/continuous", "mappo")
    metrics = {name: x for name, x in (HEALTHY | changes).items() if x is not None}
    found = dict(find_symptoms(metrics, config, 100, 1000))
    assert found.keys() == kinds
    assert all("--" in text or kind in ("no_choice", "invalid_actions") for kind, text in found.items())


def test_what_passes_with_time_or_has_no_unit_is_no_symptom():
    config = default_config("toy/continuous", "mappo")
    assert not dict(find_symptoms(HEALTHY | {"episode/invalid_fraction": 1.0}, config, 1, 10))
    assert not dict(find_symptoms(HEALTHY | {"policy/entropy": 0.001}, config, 100, config.steps // 2))
    raw = override(config, {"value_norm_decay": 0.0})
    assert not dict(find_symptoms(HEALTHY | {"loss/value": 1e4}, raw, 100, 1000))


class Ignoring(EnvWrapper):
    """Three of four steps pass without effect."""

    def step(self, action):
        step = super().step(action)
        return step.__class__(step.obs, step.reward, True, False, {"invalid": 0.75})


def ignoring():
    return Ignoring(make_toy("climbing"))


def logged(folder, tag):
    return [row[tag] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if tag in row]


def test_a_run_that_diverges_says_so_once(small, caplog):
    """In the console, in the log and in TensorBoard, and not again after it was resumed."""
    config = small("toy/continuous", "mappo", learning_rate=0.5, eval_episodes=0, max_grad_norm=0.0)
    folder = run.start(config).folder
    run.resume(folder, {"steps": 2 * config.steps})
    (text,) = logged(folder, "warning/kl")
    assert text in caplog.text
    assert text.startswith("iteration ")
    assert "Lower --learning-rate" in text
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Tensors("warning/kl")] == [int(text.split()[1][:-1]) * 32]


def disagreeing(spec):
    policy = AGENTS.get("mappo").make(spec, AGENTS.get("mappo").options())
    evaluate = policy.evaluate

    def evaluate_wrongly(inputs, nodes):
        evaluation = evaluate(inputs, nodes)
        return replace(evaluation, log_prob=evaluation.log_prob - 0.5)

    policy.evaluate = evaluate_wrongly
    return policy


def test_an_agent_whose_act_and_evaluate_disagree_is_named(small):
    """Before the first step the ratio is exp(-.5), so the estimate exp(-.5) - 1 + .5 of KL is .107."""
    agent = "tests.unit.test_diagnostics:disagreeing"
    folder = run.start(small("toy/climbing", agent, eval_episodes=0)).folder
    (text,) = logged(folder, "warning/disagreement")
    assert text.startswith("iteration 1: policy/kl=0.107 nats before the first gradient step")
    assert f"`marl check-agent {agent}`" in text
    assert not logged(folder, "warning/kl")


def test_other_symptoms_are_told_beside_a_disagreement(small):
    agent = "tests.unit.test_diagnostics:disagreeing"
    folder = run.start(small("tests.unit.test_diagnostics:ignoring", agent, steps=256, eval_episodes=0)).folder
    assert logged(folder, "warning/disagreement")
    assert logged(folder, "warning/invalid_actions")


@pytest.mark.parametrize("agent", ["mat", "happo"])
def test_agents_agree_with_themselves(small, agent):
    folder = run.start(small("toy/climbing", agent, eval_episodes=0)).folder
    assert not logged(folder, "warning/disagreement")


def test_steps_without_effect_are_counted(small):
    folder = run.start(small("tests.unit.test_diagnostics:ignoring", "mappo", steps=256, eval_episodes=0)).folder
    assert set(logged(folder, "episode/invalid_fraction")) == {0.75}
    (text,) = logged(folder, "warning/invalid_actions")
    assert text.startswith("iteration 6: episode/invalid_fraction=0.75")


@pytest.mark.parametrize("value", [-200.0, float("inf"), float("nan")])
def test_a_standard_deviation_that_is_none_is_named(value):
    box = gymnasium.spaces.Box(-1, 1, (3, 2))
    mask = torch.ones(1, 3, 2, dtype=torch.bool)
    for places, whose in (((0, 1, 0), r"agents \[1\]"), ((0, 0, 0), "all agents")):
        head = GaussianHead(box.low, box.high, 0.5, 0.25, places)
        with torch.no_grad():
            head.log_std[-1][1] = value
        with pytest.raises(NonFiniteError, match=f"log_std={value} in action dimension 1 of {whose}"):
            head.sampling_offset(mask, None)


def test_free_text_that_repeats_itself_is_measured():
    action = torch.tensor([[[7, 8, 7, 8, 7], [1, 2, 3, 4, 0]], [[5, 5, 5, 0, 0], [9, 9, 9, 9, 9]]])
    lengths = torch.tensor([[5, 4], [3, 5]])
    mask = torch.arange(5) < lengths.unsqueeze(-1)
    inputs = {"choices": torch.tensor([[FREE, FREE], [FREE, FREE + 1]])}
    policy = SimpleNamespace(has_history=False)
    metrics = TokenPolicy.metrics(policy, inputs, Nodes(action, mask, mask))
    assert metrics == {"policy/repeated_text": pytest.approx(np.mean([0.5, 0.0]))}
    assert TokenPolicy.metrics(policy, {"choices": inputs["choices"] - FREE}, Nodes(action, mask, mask)) == {}
