"""The tasks of text in batches: words and durations arrive as they are."""

from functools import partial

import pytest

from marl.envs import overcooked, toy_text, virtualhome
from marl.envs.testing import check_vector_env
from marl.vector import ProcessVector, SyncVector

MAKES = [
    partial(overcooked.make, "tomato-salad"),
    partial(virtualhome.make, "food-preparation"),
    partial(virtualhome.make, "entertainment", reproduce_upstream_bugs=True),
    partial(toy_text.make, "chores", agents=3, length=2, leaves=True),
]


@pytest.mark.parametrize("make", MAKES)
def test_tasks_keep_the_contract_in_a_vector(make):
    check_vector_env(lambda: SyncVector([make] * 3), [5, 6, 7], make, steps=70)


def test_tasks_keep_the_contract_in_worker_processes():
    check_vector_env(lambda: ProcessVector([MAKES[0]] * 3, workers=2), [5, 6, 7], MAKES[0], steps=40)
