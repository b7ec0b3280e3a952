"""Updating one agent after another."""

from dataclasses import replace

import pytest
import torch

from marl.config import default_config, override
from marl.run import build
from marl.vector import make_vector

ROWS = 4 * 8


def make_trainer(env="toy/agent_death", agent="happo", **changes):
    settings = {"num_envs": 4, "rollout_steps": 8, "epochs": 2, "minibatches": 2, **changes}
    settings |= {"hidden": (8,)} if agent == "happo" else {"embedding": 8, "parameters_per": "agent"}
    config = override(default_config(env, agent), settings | {"agent_updates": "sequential"})
    trainer = build(config, make_vector(env, {}, 4), torch.device("cpu"), 1)
    return trainer, trainer.make_batch(trainer.collector.collect()[0])[0]


def log_probs(trainer, batch):
    with torch.no_grad():
        return trainer.policy.evaluate(batch.inputs, batch.nodes).log_prob.masked_fill(~batch.nodes.loss_mask, 0.0)


@pytest.mark.parametrize("memory", [0, 4])
def test_each_agent_minds_what_those_before_it_changed(monkeypatch, memory):
    """Advantages carry the product of the ratios of the agents before, and no one else's nodes are there."""
    trainer, batch = make_trainer(bptt_steps=memory)
    start = log_probs(trainer, batch)
    torch.testing.assert_close(start, batch.log_prob.masked_fill(~batch.nodes.loss_mask, 0.0), atol=1e-5, rtol=1e-5)
    seen = []

    def disturb(mine):
        (agent,) = mine.nodes.loss_mask.any(-1).any(0).nonzero()[:, 0].tolist()
        assert torch.equal(mine.nodes.loss_mask[:, agent], batch.nodes.loss_mask[:, agent])
        assert mine.returns is None
        moved = (log_probs(trainer, batch) - start).sum((1, 2), keepdim=True)
        torch.testing.assert_close(mine.advantage, batch.advantage * moved.exp(), atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            for parameter in trainer.policy.actor.networks[agent].parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        seen.append(agent)
        return {"loss/total": float(len(seen))}

    def epochs(part):
        return disturb(part) if part.nodes.loss_mask.any() else {"loss/value": 3.0, "loss/total": 1.5}

    monkeypatch.setattr(trainer.updater, "run_epochs", epochs)
    torch.manual_seed(0)
    agents = batch.nodes.node_mask.shape[1]
    assert trainer.updater.update_sequentially(batch, trainer.agent_order()) == {
        "loss/total": (agents + 1) / 2 + 1.5,
        "loss/value": 3.0,
    }
    assert sorted(seen) == list(range(agents))
    assert float((log_probs(trainer, batch) - start).abs().max()) > 0.1


def test_the_order_of_agents_is_drawn_for_each_rollout(monkeypatch):
    trainer, batch = make_trainer()
    orders = []

    def note(mine):
        orders[-1] += mine.nodes.loss_mask.any(-1).any(0).nonzero()[:1, 0].tolist()
        return {"loss/value": 0.0, "loss/total": 0.0}

    monkeypatch.setattr(trainer.updater, "run_epochs", note)
    for iteration in (0, 1, 2, 3, 0):
        trainer.iteration = iteration
        orders.append([])
        trainer.updater.update_sequentially(batch, trainer.agent_order())
    assert orders[0] == orders[4]
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize(
    "changes", [{"micro_batch": 1, "minibatches": 1}, {"minibatches": 32}, {"bptt_steps": 4, "minibatches": 8}]
)
def test_parts_without_the_agent_move_no_other(changes):
    """If the agent is dead in all rows of a pass, there is no gradient, and no parameter moves by momentum."""
    trainer, batch = make_trainer(epochs=1, **changes)
    nobody = batch.nodes.node_mask.clone()
    nobody[: ROWS // 2] = False
    batch = replace(batch, nodes=replace(batch.nodes, node_mask=nobody, loss_mask=nobody))
    trainer.updater.update_sequentially(batch, trainer.agent_order())  # leaves momentum in the optimizer
    before = {name: x.clone() for name, x in trainer.policy.state_dict().items()}
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    mine = batch.for_agent(1, ones)
    trainer.updater.run_epochs(replace(mine, inputs=trainer.policy.agent_inputs(mine.inputs, 1)))
    moved = {name for name, x in trainer.policy.state_dict().items() if not torch.equal(x, before[name])}
    assert moved
    assert all(name.startswith("actor.networks.1.") for name in moved)
    nobody = replace(mine, nodes=replace(mine.nodes, loss_mask=torch.zeros_like(mine.nodes.loss_mask)))
    before = {name: x.clone() for name, x in trainer.policy.state_dict().items()}
    assert trainer.updater.run_epochs(nobody)["gradient/norm"] == 0.0
    assert all(torch.equal(x, before[name]) for name, x in trainer.policy.state_dict().items())


@pytest.mark.parametrize("agent", ["mat", "mat-dec"])
def test_a_pass_without_the_agent_moves_no_other_actor(agent):
    trainer, batch = make_trainer("toy/climbing", agent, minibatches=1, epochs=1, micro_batch=ROWS // 2)
    trainer.updater.update_sequentially(batch, trainer.agent_order())  # leaves momentum in the optimizer
    before = {name: x.clone() for name, x in trainer.policy.state_dict().items()}
    mine = batch.for_agent(1, torch.ones_like(batch.advantage[:, :1, :1]))
    mine.nodes.loss_mask[: ROWS // 2] = False
    trainer.updater.run_epochs(mine)
    moved = {name for name, x in trainer.policy.state_dict().items() if not torch.equal(x, before[name])}
    assert {name.split(".")[2] for name in moved if name.startswith("actor.networks.")} == {"1"}


TURNS = [
    ("toy/agent_death", "happo"),
    ("toy/mixed", "happo"),
    ("toy/agent_death", "mat-dec"),
    ("toy/continuous", "mat"),
]


@pytest.mark.parametrize(("env", "agent"), TURNS)
def test_an_agent_s_turn_moves_its_actor_alone(env, agent):
    """Momentum of earlier updates and of the critic's passes moves no parameter without a gradient."""
    trainer, batch = make_trainer(env, agent, minibatches=1, epochs=1)
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    trainer.updater.update_sequentially(batch, trainer.agent_order())  # leaves momentum in the optimizer
    before = {name: x.clone() for name, x in trainer.policy.state_dict().items()}
    trainer.updater.run_epochs(batch.for_agent(1, ones))
    moved = {name for name, x in trainer.policy.state_dict().items() if not torch.equal(x, before[name])}
    own = {name for name in moved if name.startswith("actor.networks.1.") or name.endswith("log_std.1")}
    assert own
    shared = () if agent == "happo" else ("embed.", "encoder.", "decoder.", "token")
    assert not {name for name in moved - own if not name.startswith(shared)}


@pytest.mark.parametrize("changes", [{}, {"bptt_steps": 4, "minibatches": 8}])
def test_the_critic_is_trained_once_an_iteration(changes):
    """As many steps of the optimizer as each actor's, whatever the number of agents, on all values at once."""
    trainer, batch = make_trainer("toy/climbing", **changes)
    metrics = trainer.updater.update_sequentially(batch, trainer.agent_order())
    learn = trainer.config.learn
    for name, parameter in trainer.policy.named_parameters():
        assert float(trainer.updater.optimizer.state[parameter]["step"]) == learn.epochs * learn.minibatches, name
    assert metrics["loss/value"] > 0.0
    before = trainer.policy.state_dict()
    actors = {name: x.clone() for name, x in before.items() if name.startswith("actor")}
    trainer.updater.run_epochs(batch.values_only())
    assert all(torch.equal(trainer.policy.state_dict()[name], x) for name, x in actors.items())


@pytest.mark.parametrize("env", ["toy/agent_death", "toy/mixed", "toy/climbing"])
def test_a_turn_reads_what_is_the_agent_s_own(env):
    trainer, batch = make_trainer(env, normalize_observations=True)
    trainer.policy.update_statistics(batch.inputs, batch.nodes)
    ones = torch.ones_like(batch.advantage[:, :1, :1])
    for agent in range(batch.nodes.node_mask.shape[1]):
        mine = batch.for_agent(agent, ones)
        cut = trainer.policy.agent_inputs(mine.inputs, agent)
        whole, part = (trainer.policy.evaluate(inputs, mine.nodes) for inputs in (mine.inputs, cut))
        assert torch.equal(whole.log_prob, part.log_prob)
        assert not part.value.requires_grad
        assert {name: x.shape[1] for name, x in cut.items()} == {"agents": 1, "action_mask": 1}


def test_a_rollout_without_living_agents_changes_nothing():
    trainer, batch = make_trainer()
    none = torch.zeros_like(batch.nodes.node_mask)
    empty = replace(batch, nodes=replace(batch.nodes, node_mask=none, loss_mask=none))
    before = [parameter.clone() for parameter in trainer.policy.parameters()]
    assert "loss/value" not in trainer.updater.update_sequentially(empty, trainer.agent_order())
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.policy.parameters(), strict=True))
