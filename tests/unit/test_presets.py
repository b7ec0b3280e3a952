"""Presets agree with the facts that the tasks declare."""

import pytest

from marl.experiments.presets import CRITIC_FREE, DISCOUNTS, LANGUAGE, choose
from marl.registry import ENVS


@pytest.mark.parametrize("family", DISCOUNTS)
def test_agents_discount_as_the_task_does(family):
    name, _, only = family.partition("/")
    entry = ENVS.get(name)
    for task in (only,) if only else entry.tasks:
        env = entry.make(task)
        assert env.gamma == DISCOUNTS[family]
        for agent in CRITIC_FREE if only else (*CRITIC_FREE, *LANGUAGE, "etpo"):
            assert choose(f"{name}/{task}", agent)[0].learn.gamma == env.gamma
