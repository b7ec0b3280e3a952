"""Presets agree with the facts that the tasks declare."""

import pytest

from marl.experiments.presets import CRITIC_FREE, DISCOUNTS, LANGUAGE, by_name, choose
from marl.registry import ENVS


def test_observations_are_normalized_by_layers_in_presets_only():
    assert choose("toy/xor3", "mat")[0].agent_options.observation_layer_norm
    for agent in ("mat", "mappo"):
        assert not choose("gymnasium:CartPole-v1", agent)[0].agent_options.observation_layer_norm
        assert not by_name("none", "toy/xor3", agent)[0].agent_options.observation_layer_norm


@pytest.mark.parametrize("family", DISCOUNTS)
def test_agents_discount_as_the_task_does(family):
    name, _, only = family.partition("/")
    entry = ENVS.get(name)
    for task in (only,) if only else entry.tasks:
        env = entry.make(task)
        assert env.gamma == DISCOUNTS[family]
        for agent in CRITIC_FREE if only else (*CRITIC_FREE, *LANGUAGE, "etpo"):
            assert choose(f"{name}/{task}", agent)[0].learn.gamma == env.gamma
