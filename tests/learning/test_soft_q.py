"""Soft Q learning over tokens reaches the policy that soft value iteration over whole actions finds."""

import numpy as np
import pytest
import torch

from marl.config import default_config, override
from marl.errors import ConfigError
from marl.objective import SoftQ
from marl.tracking.base import MultiTracker
from marl.trainer import Trainer
from marl.types import Evaluation
from marl.vector import SyncVector
from tests.support.tabular import BETA, GAMMA, REFERENCE, Process, TokenTable, solve
from tests.unit.test_objective import make_batch

SOFT = {
    "objective": "soft_q",
    "token_credit": "sequential",
    "gamma": GAMMA,
    "gae_lambda": 0.0,
    "lambda_intra": 0.0,
    "value_norm_decay": 0.0,
}


@pytest.mark.parametrize("lambdas", [(0.0, 0.0), (0.9, 1.0)])
def test_the_soft_optimum_is_reached(lambdas):
    settings = {"num_envs": 16, "rollout_steps": 8, "epochs": 8, "steps": 128 * 120, "max_grad_norm": 0.0}
    rates = {"learning_rate": 0.02, "critic_learning_rate": 0.1, "anneal_learning_rate": True, "value_loss": "mse"}
    longer = dict(zip(("gae_lambda", "lambda_intra"), lambdas, strict=True))
    config = override(default_config("toy/chain", "ippo"), SOFT | settings | rates | longer)
    env = SyncVector([Process] * 16)
    policy = TokenTable(env.spec)
    trainer = Trainer(config, env, policy, MultiTracker([]))
    trainer.train()
    exact = solve()
    with torch.no_grad():
        log_prob = policy.logits.log_softmax(-1)
        chance = [(log_prob[:, 0, a // 2] + log_prob[:, 1 + a // 2, a % 2]).exp().numpy() for a in range(4)]
        value = policy.soft_value()[:, 0].numpy()
    np.testing.assert_allclose(np.stack(chance, -1), exact.chance, atol=0.01)
    np.testing.assert_allclose(value, exact.value, atol=0.1)
    # A policy without Q in its loss stays at the reference, which is far from there.
    prior = REFERENCE.exp().numpy()[:, 0].repeat(2, -1) * REFERENCE.exp().numpy()[:, 1:].reshape(3, 4)
    assert np.abs(prior - exact.chance).max() > 0.2


def test_the_policy_loss_carries_the_gradient_of_q():
    """The gradient in the logits is pi * (l - E[l]) with l = beta log(pi / rho) - Q, so Q is in it."""
    policy = TokenTable(Process().spec)
    generator = torch.Generator().manual_seed(0)
    inputs = {"state": torch.tensor([[2]])}
    decision = policy.act(inputs, generator)
    batch, _ = make_batch(rows=1, agents=1, slots=2, value_slots=2)
    for name in ("node_mask", "loss_mask", "action"):
        object.__setattr__(batch.nodes, name, getattr(decision.nodes, name))
    objective, gradients = SoftQ(value_coef=0.0), []
    for q in (0.0, 1.0):
        with torch.no_grad():
            policy.critic[2, 0, 1] = q
        policy.zero_grad()
        objective(policy.evaluate(inputs, decision.nodes), batch, torch.tensor([1.0, 1.0]))[0].backward()
        assert policy.logits.grad is not None
        gradients.append(policy.logits.grad[2, 0].clone())
        chance = policy.logits.detach()[2, 0].softmax(-1)
        loss = BETA * (chance.log() - REFERENCE[2, 0]) - policy.critic.detach()[2, 0]
        torch.testing.assert_close(gradients[-1], chance * (loss - (chance * loss).sum()))
    assert not torch.allclose(gradients[0], gradients[1])


def test_masked_nodes_do_not_count():
    batch, evaluation = make_batch(value_slots=2)
    objective = SoftQ()
    expected = torch.randn(batch.log_prob.shape)
    loss = objective(Evaluation(*plain(evaluation), expected), batch, objective.counts(batch))[0]
    spoiled = expected.masked_fill(~batch.nodes.loss_mask, float("nan"))
    torch.testing.assert_close(
        objective(Evaluation(*plain(evaluation), spoiled), batch, objective.counts(batch))[0], loss
    )
    with pytest.raises(ConfigError, match="does not compute"):
        objective(evaluation, batch, objective.counts(batch))


def plain(evaluation):
    return evaluation.log_prob, evaluation.entropy, evaluation.value


def test_values_in_other_units_are_refused():
    with pytest.raises(ConfigError, match=r"value_norm_decay=0\.5, but objective 'soft_q' needs values in units"):
        override(default_config("toy/chain", "ippo"), SOFT | {"value_norm_decay": 0.5})
