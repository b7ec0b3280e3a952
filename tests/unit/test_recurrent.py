"""Recurrent state: in acting, in learning, and its reset at the end of an episode."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from marl import run
from marl.agents.recurrent import GRULayer, RecurrentInputs
from marl.backup import Links
from marl.checkpoint.store import load
from marl.collector import Collector
from marl.config import default_config, override
from marl.envs.toy import make as make_toy
from marl.envs.wrappers import EnvWrapper, TimeLimit
from marl.errors import ConfigError, MemoryLimitError
from marl.evaluation import run_episodes
from marl.experiments.play import play_episode
from marl.objective import even_slices
from marl.policy import Policy
from marl.policy_io import LoadedPolicy, load_policy
from marl.rollout import iter_minibatches
from marl.run import build
from marl.transcript import record_transcript
from marl.types import Decision, Nodes
from marl.value_norm import ValueNorm
from marl.vector import SyncVector
from tests.unit.test_rollout import Short

CHUNK = 4
ENVS = [
    lambda: make_toy("agent_death", length=6),
    lambda: Short(make_toy("agent_death", length=6)),
    lambda: TimeLimit(make_toy("agent_death", length=6), 5),
]
AGENTS = {
    "mappo": ("mappo", {}),
    "ippo": ("ippo", {}),
    "happo": ("happo", {"agent_updates": "together"}),
    "mat": ("mat", {}),
    "mat, random order": ("mat", {"agent_order": "random"}),
    "mat-bad": ("mat-bad", {}),
    "mat-decoder": ("mat-decoder", {}),
    "mat-gru": ("mat-gru", {}),
    "mat-encoder": ("mat-encoder", {}),
    "mat-dec": ("mat-dec", {}),
    "sable": ("sable", {}),
    "sable, random order": ("sable", {"agent_order": "random", "blocks": 2, "heads": 2}),
    "sable-bad": ("sable-bad", {}),
    "mat-dec, separate": ("mat-dec", {"parameters_per": "agent"}),
}


def make_trainer(name, **changes):
    """A trainer with three environments whose episodes end after 6, 1 to 4 and 5 steps."""
    agent, given = AGENTS[name]
    sizes = {"hidden": (8, 8)} if agent in ("mappo", "ippo", "happo") else {"embedding": 8}
    settings = {"num_envs": 3, "rollout_steps": 3 * CHUNK, "bptt_steps": CHUNK, **sizes, **given, **changes}
    config = override(default_config("toy/agent_death", agent), settings)
    trainer = build(config, SyncVector(ENVS), torch.device("cpu"), 1)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.updater.parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return trainer


def as_batch(rollout):
    return rollout.flat(rollout.value, rollout.value)


@pytest.mark.parametrize("name", AGENTS)
def test_learning_sees_what_acting_saw(name):
    """Log-probabilities and values agree over whole rollouts. The second rollout begins in the middle of episodes."""
    trainer = make_trainer(name)
    for iteration in range(2):
        rollout, _ = trainer.collector.collect()
        carried = rollout.inputs["recurrent_state"][0].flatten(1).any(-1)
        assert torch.equal(carried, ~rollout.inputs["episode_start"][0])
        assert bool(carried.any()) == bool(iteration)
        assert rollout.inputs["episode_start"].unflatten(0, (-1, CHUNK))[:, 1:].any(), (
            "an episode should begin inside a chunk"
        )
        batch = as_batch(rollout)
        with torch.no_grad():
            evaluation = trainer.policy.evaluate(batch.inputs, batch.nodes)
        mask = batch.nodes.node_mask
        torch.testing.assert_close(evaluation.log_prob[mask], batch.log_prob[mask], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(evaluation.value[mask], batch.value[mask], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", AGENTS)
def test_what_was_seen_before_matters(name):
    """The first observation of an episode moves the decision at the fourth step, and its weights get a gradient."""
    trainer = make_trainer(name)
    batch = as_batch(trainer.collector.collect()[0]).rows(slice(0, CHUNK))
    policy = trainer.policy
    changed = {key: x.clone() for key, x in batch.inputs.items()}
    for view in {"agents", "state"} & changed.keys():
        changed[view][0, ..., 0] += 1.0
    before, after = (policy.evaluate(inputs, batch.nodes) for inputs in (batch.inputs, changed))
    assert (before.log_prob - after.log_prob)[-1, 0].abs() > 1e-6
    assert (before.value - after.value)[-1, 0].abs() > 1e-6
    (before.log_prob.sum() + before.value.sum()).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in policy.named_parameters() if "cell.weight_hh" in n)


def segments(began, alive):
    """Steps that an agent lived through without an episode beginning in between, and whether they begin the chunk."""
    start = 0
    for step in range(1, len(began) + 1):
        if step == len(began) or began[step]:
            yield [i for i in range(start, step) if alive[i]], start == 0
            start = step


def test_a_chunk_is_the_plain_network_on_each_agent_s_life():
    """Outputs and gradients of torch's own recurrent network, run by itself on each stretch of living steps."""
    torch.manual_seed(0)
    chunks, steps, agents, width = 3, 7, 2, 5
    recall = GRULayer(width)
    with torch.no_grad():
        for parameter in recall.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(chunks * steps, agents, width, requires_grad=True)
    memory = torch.randn(chunks * steps, agents, width, requires_grad=True)
    began, alive = torch.rand(chunks * steps) < 0.3, torch.rand(chunks * steps, agents) < 0.7
    weight = torch.randn(chunks * steps, agents, width) * alive.unsqueeze(-1)
    out, last = recall(x, RecurrentInputs(memory, alive, began, steps))
    plain = nn.GRU(width, width)
    for name, parameter in recall.cell.named_parameters():
        setattr(plain, f"{name}_l0", parameter)
    expected = torch.zeros_like(out)
    for chunk in range(chunks):
        rows = list(range(chunk * steps, (chunk + 1) * steps))
        for agent in range(agents):
            state = memory[rows[0], agent]
            for lived, first in segments(began[rows].tolist(), alive[rows, agent].tolist()):
                state = state if first else torch.zeros(width)
                if lived:
                    index = [rows[i] for i in lived]
                    told, state = plain(x[index, agent], state[None])
                    state = state[0]
                    expected = expected.index_put((torch.tensor(index), torch.tensor(agent)), recall.norm(told))
            torch.testing.assert_close(last[chunk, agent], state)
    torch.testing.assert_close(out[alive], expected[alive])
    wanted = [x, memory, *recall.parameters()]
    actual = torch.autograd.grad((out * weight).sum(), wanted)
    for left, right in zip(actual, torch.autograd.grad((expected * weight).sum(), wanted), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


class Counter(Policy):
    """Remembers how many steps of an episode it has seen, and notes what it was told."""

    recurrent_shape = (1, 1)
    bptt_steps = 1

    def __init__(self, spec):
        super().__init__(spec)
        self.told, self.valued = [], []

    def encode(self, obs):
        return {"alive": torch.as_tensor(obs.alive)}

    def act(self, inputs, generator=None, deterministic=False):  # noqa: ARG002
        self.told.append(inputs["recurrent_state"].flatten().tolist())
        action = torch.zeros((*inputs["alive"].shape, 1), dtype=torch.long)
        mask = inputs["alive"].unsqueeze(-1)
        number = action.float()
        return Decision(
            action.squeeze(-1).numpy(),
            Nodes(action, mask, mask),
            number,
            number,
            recurrent_state=inputs["recurrent_state"] + 1.0,
        )

    def value(self, inputs):
        self.valued.append(inputs["recurrent_state"].flatten().tolist())
        return torch.zeros(inputs["alive"].shape)


class Poisoned(Short):
    """Pays NaN at the second step of its first episode."""

    def reset(self, seed=None):
        self.first = seed is not None
        obs = super().reset(seed)
        self.length = 3
        return obs

    def step(self, action):
        step = super().step(action)
        if self.first and self.count == 2:
            step.reward[:] = np.nan
        return step


def chain(length):
    return lambda: make_toy("chain", length=length)


def counting(makes, steps, drop=False):
    env = SyncVector(makes)
    return Collector(
        env,
        Counter(env.spec),
        ValueNorm(0.0),
        steps,
        torch.Generator(),
        seeds=list(range(env.num_envs)),
        drop_nonfinite=drop,
    )


def test_memory_begins_with_each_episode_and_outlives_a_rollout():
    tested = counting([chain(5), lambda: TimeLimit(make_toy("chain", length=5), 3)], 7)
    told = [tested.collect()[0].inputs["recurrent_state"].squeeze(-1).squeeze(-1).T.tolist() for _ in range(2)]
    assert [row + more for row, more in zip(*told, strict=True)] == [
        [i % 5 for i in range(14)],
        [i % 3 for i in range(14)],
    ]
    # The last observation of a truncated episode, and that after a rollout, are valued with the recurrent state.
    assert tested.policy.valued == [[3.0], [3.0], [2.0, 1.0], [3.0], [3.0], [4.0, 2.0]]


def test_memory_of_a_dropped_episode_is_dropped():
    """An episode that pays NaN in the middle is left out, and the next one begins with nothing."""
    tested = counting([lambda: Poisoned(make_toy("chain")), chain(5)], 6, drop=True)
    rollout, episodes = tested.collect()
    assert episodes.dropped == 1
    assert rollout.inputs["recurrent_state"].flatten(1).T.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0]]
    assert rollout.inputs["episode_start"].T.int().tolist() == [[1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1]]


def test_whole_episodes_begin_with_nothing():
    tested = counting([chain(5), chain(5)], 3)
    for _ in range(2):
        rollout, _ = tested.collect([1, 2])
        assert rollout.inputs["recurrent_state"].flatten(1).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_evaluations_and_transcripts_keep_the_recurrent_state():
    env = SyncVector([chain(5), lambda: TimeLimit(make_toy("chain", length=5), 3)])
    policy = Counter(env.spec)
    run_episodes(policy, env, [1, 2, 3])
    assert policy.told[:6] == [[0, 0], [1, 1], [2, 2], [3, 0], [4, 1], [0, 2]]
    one = SyncVector([chain(5)])
    policy = Counter(one.spec)
    record_transcript(policy, one, 0, Links(), ValueNorm(0.0), max_steps=4)
    assert (policy.told, policy.valued) == ([[0], [1], [2], [3]], [[4]])
    policy = Counter(one.spec)
    viewer: Any = SimpleNamespace(show=lambda *_: None, show_end=lambda: None)
    play_episode(make_toy("chain"), policy, viewer, 0, True, max_steps=3)
    assert policy.told == [[0], [1], [2]]


def test_a_loaded_policy_remembers_until_it_is_told_to_forget():
    env = SyncVector([chain(5)] * 2)
    policy = LoadedPolicy(Counter(env.spec), 0)
    obs = env.reset([1, 2])
    for ended in (None, np.array([False, True]), None):
        policy.act(obs)
        if ended is not None:
            policy.reset(ended)
    assert policy.policy.told == [[0, 0], [1, 1], [2, 0]]
    with pytest.raises(ValueError, match="1 environments, but the recurrent state of 2"):
        policy.act(env.reset_at(0).agents[0])
    policy.reset()
    policy.act(obs.agents[0])
    assert policy.policy.told[-1] == [0]


def test_parts_of_an_update_hold_whole_chunks():
    trainer = make_trainer("mat")
    batch = as_batch(trainer.collector.collect()[0])
    steps = torch.arange(3 * CHUNK).repeat(3)
    batch.inputs["step"] = steps
    rows = iter_minibatches(batch, 4, torch.Generator(), CHUNK)
    parts = [batch.rows(index).inputs["step"].view(-1, CHUNK) for index in rows]
    whole = torch.cat(parts)
    assert [len(part) for part in parts] == [3, 2, 2, 2]
    assert torch.equal(whole, whole[:, :1] + torch.arange(CHUNK))
    assert whole[:, 0].sort().values.tolist() == [0] * 3 + [CHUNK] * 3 + [2 * CHUNK] * 3
    for rows, divisor, sizes in ((0, 1, [36]), (10, 1, [8] * 4 + [4]), (0, 2, [12] * 3), (0, 99, [4] * 9)):
        assert [part.stop - part.start for part in even_slices(batch.nodes.node_mask, rows, divisor, CHUNK)] == sizes


@pytest.mark.parametrize("name", ["mappo", "mat"])
def test_gradients_do_not_depend_on_the_size_of_forward_passes(name):
    gradients = []
    for divisor in (1, 4):
        trainer = make_trainer(name)
        batch = trainer.make_batch(trainer.collector.collect()[0])[0]
        trainer.updater.backoff.reduction = divisor
        trainer.updater.gradient([batch], trainer.updater.objective.counts(batch).unsqueeze(0))
        assert len(trainer.policy.micro_batches(batch.inputs, batch.nodes, 0, divisor)) == (1 if divisor == 1 else 5)
        gradients.append([p.grad for p in trainer.updater.parameters])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)


def test_running_out_of_memory_keeps_chunks_whole(monkeypatch):
    trainer = make_trainer("mappo")
    sizes = []

    def greedy(inputs, nodes):  # noqa: ARG001
        sizes.append(len(nodes.node_mask))
        raise MemoryError("greedy")

    monkeypatch.setattr(trainer.policy, "evaluate", greedy)
    batch = trainer.make_batch(trainer.collector.collect()[0])[0]
    with pytest.raises(MemoryLimitError, match="4 rows"):
        trainer.updater.step([batch], trainer.updater.objective.counts(batch).unsqueeze(0), 0)
    assert sizes == [36, 12, 8, 4]


@pytest.mark.parametrize("name", ["mappo", "happo", "mat"])
def test_whole_episodes_and_turns_learn_with_memory(name):
    updates = "sequential" if name == "happo" else "together"
    trainer = make_trainer(name, whole_episodes=True, agent_updates=updates, minibatches=2, epochs=2)
    for _ in range(2):
        assert all(np.isfinite(x) for x in trainer.iterate().values())
    batch = trainer.make_batch(trainer.collector.collect(trainer.episode_seeds())[0])[0]
    assert len(batch.log_prob) % CHUNK == 0
    assert len(batch.log_prob) < 3 * 3 * CHUNK


class BreaksLater(EnvWrapper):
    """Observations are NaN once the first episode after a seed is over, and from step `at` of it where given."""

    def __init__(self, env, at=None):
        super().__init__(env)
        self.at = at

    def reset(self, seed=None):
        self.first, self.count = seed is not None, 0
        return self.spoiled(super().reset(seed))

    def step(self, action):
        self.count += 1
        step = super().step(action)
        return replace(step, obs=self.spoiled(step.obs))

    def spoiled(self, obs):
        broken = not self.first or self.count == self.at
        return replace(obs, agents=np.full_like(obs.agents, np.nan)) if broken else obs


@pytest.mark.parametrize("name", ["mappo", "mat"])
@pytest.mark.parametrize("memory", [0, CHUNK])
def test_what_an_environment_gives_after_its_episode_reaches_no_gradient(name, memory):
    """With a NaN in an episode that is left out, too: the environments that are over do not end the run."""
    trainer = make_trainer(name, whole_episodes=True, on_nonfinite="drop", epochs=1, minibatches=1, bptt_steps=memory)
    makes = [lambda: BreaksLater(make_toy("agent_death", length=3)), lambda: make_toy("agent_death", length=6)]
    trainer.collector.env = SyncVector([*makes, lambda: BreaksLater(make_toy("agent_death", length=9), at=7)])
    trainer.collector.collect([1, 2, 3])  # the dropped episode needs a rollout before it
    rollout, episodes = trainer.collector.collect([1, 2, 3])
    assert (len(episodes.returns), episodes.dropped) == (2, 1)
    assert rollout.node_mask[..., 0].any(-1).sum(0).tolist() == [3, 6, 0]
    assert all(torch.isfinite(x).all() for x in rollout.inputs.values())
    assert np.isfinite(trainer.learn(rollout)["gradient/norm"])


def test_a_trained_policy_that_is_loaded_does_as_it_was_evaluated(small):
    folder = run.start(small("toy/memory", "mappo", bptt_steps=4, eval_episodes=0, length=3)).folder
    assert load(folder / "checkpoints").data["agent_options"]["bptt_steps"] == 4
    loaded, env = load_policy(folder, "last"), make_toy("memory", length=3)
    seeds = [3, 4, 5]
    expected = [row.episode_return for row in run_episodes(loaded.policy, SyncVector([lambda: env]), seeds)]
    returns = []
    for seed in seeds:
        obs, total, over = env.reset(seed), 0.0, False
        loaded.reset()
        while not over:
            step = env.step(loaded.act(obs))
            obs, total, over = step.obs, total + float(step.reward.mean()), step.terminated
        returns.append(total)
    assert returns == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"bptt_steps": 10, "rollout_steps": 128},
            "bptt_steps=10 does not divide rollout_steps=128; set bptt_steps to 8",
        ),
        ({"bptt_steps": 20, "rollout_steps": 8}, "does not divide rollout_steps=8; set bptt_steps to 8"),
        ({"bptt_steps": -1}, "bptt_steps=-1 is negative"),
        ({"bptt_steps": 8, "rollout_steps": 8, "minibatches": 4}, "a rollout has 3 segments of 8 steps"),
        ({"bptt_steps": 8, "rollout_steps": 8, "micro_batch": 3}, "micro_batch=3 is less than a segment of 8 steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        make_trainer("mat", **changes)
