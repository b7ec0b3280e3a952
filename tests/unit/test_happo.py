"""Updating one agent after another."""

from dataclasses import replace

import pytest
import torch

from marl.config import default_config, override
from marl.run import build
from marl.vector import make_vector

ROWS = 4 * 8


def make_trainer(env="toy/mortal", **changes):
    settings = {"num_envs": 4, "rollout_steps": 8, "epochs": 2, "minibatches": 2, "hidden": (8,), **changes}
    config = override(default_config(env, "happo"), settings)
    trainer = build(config, make_vector(env, {}, 4), torch.device("cpu"), 1)
    return trainer, trainer.credit(trainer.collector.collect()[0])[0]


def log_probs(trainer, batch):
    with torch.no_grad():
        return trainer.policy.evaluate(batch.inputs, batch.nodes).log_prob.masked_fill(~batch.nodes.trained, 0.0)


@pytest.mark.parametrize("memory", [0, 4])
def test_each_agent_minds_what_those_before_it_changed(monkeypatch, memory):
    """Advantages carry the product of the ratios of the agents before, and no one else's nodes are there."""
    trainer, batch = make_trainer(memory=memory)
    start = log_probs(trainer, batch)
    torch.testing.assert_close(start, batch.log_prob.masked_fill(~batch.nodes.trained, 0.0), atol=1e-5, rtol=1e-5)
    seen = []

    def disturb(mine):
        (agent,) = mine.nodes.trained.any(-1).any(0).nonzero()[:, 0].tolist()
        assert torch.equal(mine.nodes.trained[:, agent], batch.nodes.trained[:, agent])
        assert torch.equal(mine.nodes.mask, mine.nodes.trained)
        moved = (log_probs(trainer, batch) - start).sum((1, 2), keepdim=True)
        torch.testing.assert_close(mine.advantage, batch.advantage * moved.exp(), atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            for parameter in trainer.policy.actor.networks[agent].parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        seen.append(agent)
        return {"loss": float(len(seen))}

    monkeypatch.setattr(trainer, "epochs", disturb)
    torch.manual_seed(0)
    agents = batch.nodes.mask.shape[1]
    assert trainer.agents(batch) == {"loss": (agents + 1) / 2}
    assert sorted(seen) == list(range(agents))
    assert float((log_probs(trainer, batch) - start).abs().max()) > 0.1


def test_the_order_of_agents_is_drawn_for_each_rollout(monkeypatch):
    trainer, batch = make_trainer()
    orders = []

    def note(mine):
        orders[-1].append(int(mine.nodes.trained.any(-1).any(0).nonzero()[0, 0]))
        return {}

    monkeypatch.setattr(trainer, "epochs", note)
    for iteration in (0, 1, 2, 3, 0):
        trainer.iteration = iteration
        orders.append([])
        trainer.agents(batch)
    assert orders[0] == orders[4]
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize(
    "changes", [{"micro_batch": 1, "minibatches": 1}, {"minibatches": 32}, {"memory": 4, "minibatches": 8}]
)
def test_parts_without_the_agent_move_no_other(changes):
    """Where the agent is dead in all rows of a pass there is no gradient, and so no step of an actor's momentum."""
    trainer, batch = make_trainer(epochs=1, **changes)
    nobody = batch.nodes.mask.clone()
    nobody[: ROWS // 2] = False
    batch = replace(batch, nodes=replace(batch.nodes, mask=nobody, trained=nobody))
    trainer.agents(batch)  # leaves momentum in the optimiser
    before = {name: x.clone() for name, x in trainer.module.state_dict().items()}
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    mine = batch.of_agent(1, ones)
    if hasattr(trainer.policy, "turn"):
        mine = replace(mine, inputs=trainer.policy.turn(mine.inputs, 1))
    trainer.epochs(mine)
    moved = {name for name, x in trainer.module.state_dict().items() if not torch.equal(x, before[name])}
    assert not any(name.startswith(("actor.networks.0.", "actor.networks.2.")) for name in moved)


@pytest.mark.parametrize("env", ["toy/mortal", "toy/mixed"])
def test_an_agent_s_turn_moves_its_actor_alone(env):
    trainer, batch = make_trainer(env, minibatches=1)
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    trainer.epochs(batch.of_agent(0, ones))  # leaves momentum in the optimiser
    before = {name: x.clone() for name, x in trainer.module.state_dict().items()}
    trainer.epochs(batch.of_agent(1, ones))
    moved = {name for name, x in trainer.module.state_dict().items() if not torch.equal(x, before[name])}
    actors = {name for name in moved if not name.startswith("critic")}
    own = {name for name in actors if name.startswith("actor.networks.1.") or name.endswith("log_std.1")}
    assert own == actors
    assert moved > actors > set()


@pytest.mark.parametrize("env", ["toy/mortal", "toy/mixed", "toy/climbing"])
def test_a_turn_reads_what_is_the_agent_s_own(env):
    trainer, batch = make_trainer(env, normalise_observations=True)
    trainer.policy.observe(batch.inputs, batch.nodes)
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    for agent in range(batch.nodes.mask.shape[1]):
        mine = batch.of_agent(agent, ones)
        cut = trainer.policy.turn(mine.inputs, agent)
        whole, part = (trainer.policy.evaluate(inputs, mine.nodes) for inputs in (mine.inputs, cut))
        assert torch.equal(whole.log_prob, part.log_prob)
        assert torch.equal(whole.value, part.value)
        assert cut["agents"].shape[1] == (1 if trainer.policy.reads_state else batch.nodes.mask.shape[1])
