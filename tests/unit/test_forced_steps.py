"""Steps in which an agent has one legal action train its value and nothing else."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from marl.config import default_config, override
from marl.registry import AGENTS
from marl.run import build
from marl.types import EnvSpec, Obs, Step
from marl.vector import SyncVector

ENVS, STEPS = 2, 4


class TakingTurns:
    """Two agents with four actions each, of whom one at a time has a choice; the other waits, dead or alive."""

    spec = EnvSpec("turns", ("a", "b"), gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(4), 8)

    def __init__(self, waits_alive):
        self.waits_alive, self.t = waits_alive, 0

    def reset(self, seed=None):  # noqa: ARG002
        self.t = 0
        return self.obs()

    def obs(self):
        acts = np.arange(2) == self.t % 2
        mask = np.broadcast_to(acts[:, None], (2, 4)) | (np.arange(4) == 0)
        alive = acts | self.waits_alive
        return Obs(np.zeros((2, 2), np.float32), alive, mask)

    def step(self, action):
        self.t += 1
        reward = np.full(2, action[(self.t - 1) % 2] == 3, np.float32)
        return Step(self.obs(), reward, self.t == 8, False)

    def get_state(self):
        return None

    def close(self):
        pass


def make_trainer(agent, waits_alive, **changes):
    settings = {"num_envs": ENVS, "rollout_steps": STEPS, "epochs": 1, **changes}
    config = override(default_config("toy/climbing", agent), settings)
    env = SyncVector([lambda: TakingTurns(waits_alive)] * ENVS)
    return build(config, env, torch.device("cpu"), 1)


@pytest.mark.parametrize("agent", ["mat", "mat-dec", "mat-gru", "mappo"])
def test_an_agent_that_waits_alive_is_as_one_that_is_not_there(agent):
    """Entropy is log 4, as it is where who waits counts as dead, and not the half of it."""
    for waits_alive in (True, False):
        metrics = make_trainer(agent, waits_alive).iterate()
        assert metrics["policy/entropy"] == pytest.approx(math.log(4), abs=1e-3)


@pytest.mark.parametrize("agent", ["mappo", "mat", "happo"])
def test_forced_steps_train_values_alone(agent):
    trainer = make_trainer(agent, True)
    batch = trainer.make_batch(trainer.collector.collect()[0])[0]
    nodes = batch.nodes
    assert bool(nodes.node_mask.all())
    assert nodes.loss_mask.sum().item() == ENVS * STEPS
    assert trainer.updater.objective.counts(batch).tolist() == [ENVS * STEPS, 2 * ENVS * STEPS]
    chosen = batch.advantage[nodes.loss_mask]
    assert float(chosen.mean()) == pytest.approx(0.0, abs=1e-5)
    evaluation = trainer.policy.evaluate(batch.inputs, nodes)
    torch.testing.assert_close(evaluation.log_prob, batch.log_prob)
    spoiled = replace(batch, advantage=batch.advantage.masked_fill(~nodes.loss_mask, float("nan")))
    losses = [
        trainer.updater.objective(evaluation, each, trainer.updater.objective.counts(batch))[0]
        for each in (batch, spoiled)
    ]
    torch.testing.assert_close(*losses)


def test_a_discrete_agent_of_a_mixed_team_has_a_choice_where_several_actions_are_available():
    trainer = make_trainer("mappo", True)
    spec = replace(
        TakingTurns.spec,
        action_space=gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (2,))]),
        action_sizes=(),
    )
    entry = AGENTS.get("mappo")
    policy = entry.make(spec, trainer.config.agent_options)
    mask = np.array([[[True, False, False], [True, True, False]], [[True, True, False], [True, True, False]]])
    with torch.no_grad():
        nodes = policy.act(policy.encode(Obs(np.zeros((2, 2, 2), np.float32), np.ones((2, 2), bool), mask))).nodes
    assert nodes.node_mask.tolist() == [[[True, False, False], [False, True, True]]] * 2
    assert nodes.loss_mask.tolist() == [
        [[False, False, False], [False, True, True]],
        [[True, False, False], [False, True, True]],
    ]
