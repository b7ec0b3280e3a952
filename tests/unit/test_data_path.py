"""Nothing that an environment says is lost, misread or learned from as what it is not, between it and the update."""

import logging
import random
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from marl import distributed, run
from marl.agents.mlp import MLPOptions, MLPPolicy
from marl.backup import Links, backup
from marl.collector import Collector
from marl.envs.testing import check_env, check_vector_env
from marl.envs.wrappers import AgentId, DeathMask, EnvWrapper, EpisodeStatistics, Pad, TimeLimit
from marl.errors import EnvironmentContractError
from marl.evaluation import run_episodes
from marl.seeding import own_globals
from marl.types import Step
from marl.value_norm import ValueNorm
from marl.vector import ProcessVector, SyncVector
from tests.support.buffers import Buffered, Dice, Relay


@pytest.fixture
def opened():
    vectors: list[Any] = []

    def keep(vector: Any) -> Any:
        vectors.append(vector)
        return vector

    yield keep
    for vector in vectors:
        vector.close()


def zeros(vector):
    return np.zeros((vector.num_envs, vector.spec.num_agents), np.int64)


def policy_for(spec):
    torch.manual_seed(0)
    return MLPPolicy(spec, MLPOptions(hidden=(8,)), central=False)


def collect(vector, steps, one_chain=False, **options):
    policy = policy_for(vector.spec)
    collector = Collector(
        vector,
        policy,
        ValueNorm(0.0),
        steps,
        torch.Generator().manual_seed(0),
        seeds=list(range(vector.num_envs)),
        sequential_agents=one_chain,
        **options,
    )
    return collector, *collector.collect()


# Buffers


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_step_survives_the_reset_that_clears_its_buffers(workers, opened):
    makes = [Buffered] * 2
    vector = opened(ProcessVector(makes, workers) if workers else SyncVector(makes))
    vector.reset([1, 2])
    vector.step(zeros(vector))
    step = vector.step(zeros(vector))
    assert step.reward.tolist() == [[2, 20]] * 2
    assert step.duration.tolist() == [3, 3]
    assert step.final.info == ({"success": 2.0},) * 2
    last = step.final.obs
    assert (last.agents.tolist(), last.state.tolist()) == ([[[2], [2]]] * 2, [[2]] * 2)
    assert (last.alive.tolist(), last.action_mask[:, 1].tolist()) == ([[True, False]] * 2, [[True, False]] * 2)
    assert last.candidates == ((("last 2",), ("last 2",)),) * 2
    assert step.obs.candidates == ((("x",), ("x",)),) * 2


class Bare:
    """A batch that returns its buffers themselves, which `reset_at` clears."""

    def __init__(self, spoil=None):
        self.inner, self.spoil, self.count = SyncVector([Buffered] * 2), spoil, 0
        self.spec, self.num_envs = self.inner.spec, 2

    def reset(self, seeds):
        return self.inner.reset(seeds)

    def reset_at(self, index, seed=None):
        obs = self.inner.reset_at(index, seed)
        for array in (self.last.reward, self.last.terminated, self.last.truncated):
            array[:] = 0
        if self.last.final is not None:
            self.last.final.obs.agents[:] = 0
            for info in self.last.final.info:
                info["success"] = -1.0
        return obs

    def step(self, action):
        self.last, self.count = self.inner.step(action), self.count + 1
        if self.spoil == self.count:
            self.last.reward[0] = np.nan
        return self.last


def test_evaluation_reads_a_batch_before_it_resets_it():
    vector: Any = Bare()
    rows = run_episodes(policy_for(vector.spec), vector, [1, 2, 3, 4])
    assert [(row.episode_return, row.terminated, row.info) for row in rows] == [(16.5, True, {"success": 2.0})] * 4


def test_a_dropped_episode_leaves_the_others_rewards():
    """Environment 0 is reset by hand in its first step, which clears the batch's buffers."""
    vector: Any = Bare(spoil=1)
    _, rollout, _ = collect(vector, 2, drop_nonfinite=True)
    assert rollout.reward[:, 1].tolist() == [[1, 10], [2, 20]]
    assert rollout.terminated[:, 1].tolist() == [False, True]


def test_the_conformance_suite_tells_what_is_overwritten():
    lines = [line for line in check_env(Buffer) if line.startswith("buffers: ")]
    assert len(lines) == 1
    assert "info, obs.action_mask, obs.agents, obs.alive, obs.state, reward of a step" in lines[0]
    assert not any(line.startswith("buffers") for line in check_env(Relay))


class Buffer(Buffered):
    """As the contract wants it: with numbers for counts, and without candidates."""

    def obs(self):
        return replace(super().obs(), candidates=None)

    def step(self, action):
        step = super().step(action)
        return replace(step, duration=1, info=self.info)


# Endings


class Ends(EnvWrapper):
    def __init__(self, change):
        super().__init__(Relay((3,), (False,)))
        self.change = change

    def step(self, action):
        step = super().step(action)
        return replace(step, **self.change) if step.truncated else step


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"terminated": True}, "`terminated` and `truncated` are both True"),
        ({"agent_truncated": np.ones(1, bool)}, "`agent_truncated` and `final` must be None where the episode ends"),
        ({"restarted": True, "terminated": True, "truncated": False}, "`restarted` and `terminated` are both True"),
        ({"info": {"big": 10**400}}, r"`info\['big'\]` is too large for a float"),
        ({"info": {"x": "no"}}, r"`info\['x'\]` must be a scalar, got str 'no'"),
    ],
)
def test_endings_that_say_two_things_are_refused(change, said, opened):
    make = partial(Ends, change)
    vector = opened(SyncVector([make]))
    vector.reset([0])
    for _ in range(2):
        vector.step(zeros(vector))
    with pytest.raises(EnvironmentContractError, match=f"relay, environment 0: {said}"):
        vector.step(zeros(vector))
    with pytest.raises(EnvironmentContractError, match=r"\[0[79] "):
        check_env(make)


class Plain(SyncVector):
    """A batch whose steps pass through `lie`."""

    def step(self, action):
        return self.lie(super().step(action))


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda step: replace(step, final=None), "its episode was truncated, and its last observation is missing"),
        (lambda step: replace(step, agent_final=None), "agents were truncated alone, and their last observation is"),
        (lambda step: replace(step, terminated=step.truncated), "terminated and truncated are both True"),
    ],
)
def test_a_batch_must_give_last_observations(lie, said):
    vector = Plain([Relay])
    vector.lie = lie
    with pytest.raises(EnvironmentContractError, match=f"relay: environment 0: {said}"):
        collect(vector, 6)


# Agents that are cut off alone


@pytest.mark.parametrize("workers", [0, 2])
def test_agents_cut_alone_reach_the_vectors_step(workers, opened):
    make = partial(Relay, (2, 1, 3))
    vector = opened(ProcessVector([Relay, make, Relay], workers) if workers else SyncVector([Relay, make, Relay]))
    vector.reset([1, 2, 3])
    first = vector.step(zeros(vector))
    assert first.agent_truncated is None  # agent 1 of environment 1 died
    step = vector.step(zeros(vector))
    assert step.agent_truncated.tolist() == [[True, False, False]] * 3
    assert step.agent_final.env.tolist() == [0, 1, 2]
    assert step.agent_final.obs.alive.tolist() == [[True] * 3, [True, False, True], [True] * 3]
    assert step.agent_final.obs.agents[0, 0].tolist() == [0, 2]
    assert step.obs.alive.tolist() == [[False, True, True], [False, False, True], [False, True, True]]
    assert not (step.terminated | step.truncated).any()
    ended = vector.step(zeros(vector))
    assert ended.agent_truncated is None
    assert ended.truncated.tolist() == [False, True, False]


def wrapped():
    return EpisodeStatistics(Pad(DeathMask(AgentId(Relay())), num_agents=4))


@pytest.mark.parametrize("make", [Relay, wrapped])
def test_cut_agents_keep_the_contract(make):
    check_env(make)
    check_vector_env(lambda: SyncVector([make] * 2), [1, 2], make, steps=12)


def test_wrappers_hand_cut_agents_on():
    env = wrapped()
    env.reset(0)
    env.step(np.zeros(4, np.int64))
    step = env.step(np.zeros(4, np.int64))
    assert step.agent_truncated is not None
    assert step.final is not None
    assert step.agent_truncated.tolist() == [True, False, False, False]
    assert step.final.alive.tolist() == [True, True, True, False]
    assert step.final.agents[0].tolist() == [1, 0, 0, 0, 2]


def test_a_time_limit_that_meets_a_cut_keeps_the_agent_in_the_last_observation():
    env = TimeLimit(Relay(), 2)
    env.reset(0)
    env.step(np.zeros(3, np.int64))
    step = env.step(np.zeros(3, np.int64))
    assert (step.truncated, step.agent_truncated, step.final) == (True, None, None)
    assert step.obs.alive.all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"final": None}, "final"),
        ({"agent_truncated": None}, "final"),
        ({"agent_truncated": np.array([False, True, False])}, "agent_truncated"),
        ({"agent_truncated": np.ones(3)}, "agent_truncated"),
    ],
)
def test_lies_about_cut_agents_are_named(change, said, opened):
    class Lie(EnvWrapper):
        def step(self, action):
            step = super().step(action)
            return replace(step, **change) if step.final is not None else step

    with pytest.raises(EnvironmentContractError, match=rf"\[07 ending\].*{said}"):
        check_env(lambda: Lie(Relay()))
    vector = opened(SyncVector([lambda: Lie(Relay())]))
    vector.reset([0])
    vector.step(zeros(vector))
    with pytest.raises(EnvironmentContractError, match=f"relay, environment 0: .*{said}"):
        vector.step(zeros(vector))


@pytest.mark.parametrize("steps", [2, 4, 6])
@pytest.mark.parametrize("one_chain", [False, True])
def test_a_cut_agent_is_valued_from_its_last_observation(steps, one_chain, opened):
    """Agent 0 is cut off in step 2, agent 1 dies in step 3, agent 2 is cut off with the episode in step 5."""
    collector, rollout, _ = collect(opened(SyncVector([Relay])), steps, one_chain)
    policy, env = collector.policy, Relay()

    def value(alive, time):
        env.time = time
        obs = env.observe(np.array(alive))
        obs = replace(obs, agents=obs.agents[None], alive=obs.alive[None])
        return policy.value(policy.encode(obs))[0]

    with torch.no_grad():
        before = value([True, True, True], 2)
        assert rollout.agent_truncated[:, 0].nonzero().tolist() == [[1, 0]]
        expected = before[0].expand(3) if one_chain else before
        assert rollout.bootstrap[1, 0, 0] == expected[0] != 0
        links = Links("sequential" if one_chain else "parallel", gamma=0.9, gae_lambda=1.0)
        _, returns = backup(
            links,
            rollout.reward,
            rollout.value,
            rollout.node_mask,
            terminated=rollout.terminated,
            truncated=rollout.truncated,
            bootstrap=rollout.bootstrap,
            agent_truncated=rollout.agent_cuts(),
        )
        if not one_chain:
            # Agent 0 earns 1 in both of its steps, then the value of its last observation.
            assert returns[0, 0, 0, 0] == pytest.approx(1 + 0.9 * (1 + 0.9 * float(before[0])), abs=1e-6)
        if not one_chain and steps >= 4:
            assert returns[0, 0, 1, 0] == pytest.approx(1 + 0.9 + 0.81, abs=1e-6)  # the dead earn nothing more
        if one_chain:
            # All three earn 1 on average, up to the cut.
            assert returns[1, 0, 2, 0] == pytest.approx(1 + 0.9 * float(before[0]), abs=1e-6)
        if steps == 2:
            following = value([False, True, True], 2)
            assert torch.equal(rollout.bootstrap[1, 0, 1:], expected[1:] if one_chain else following[1:])


# Steps that did not happen


class Lost(EnvWrapper):
    """Loses its simulator in the step after `time`, once."""

    def __init__(self, time):
        super().__init__(Relay((9,), (False,)))
        self.lost = time

    def step(self, action):
        if self.env.time == self.lost:
            obs, self.lost, self.env.over = self.env.observe(np.ones(1, bool)), -1, True
            return Step(obs, np.zeros(1, np.float32), False, True, restarted=True)
        return super().step(action)


def test_a_step_in_which_the_environment_was_lost_is_not_learned_from(opened):
    collector, rollout, episodes = collect(opened(SyncVector([lambda: Lost(2)])), 5)
    assert rollout.node_mask[:, 0, 0, 0].tolist() == [True, True, False, True, True]
    assert not rollout.loss_mask[2].any()
    assert (len(episodes.returns), episodes.dropped) == (0, 1)
    _, returns = backup(
        Links(gamma=0.9, gae_lambda=1.0),
        rollout.reward,
        rollout.value,
        rollout.node_mask,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        bootstrap=rollout.bootstrap,
        discount=rollout.discount(0.9),
    )
    obs = Relay((9,), (False,))
    obs.time = 2
    last = obs.observe(np.ones(1, bool))
    policy = collector.policy
    with torch.no_grad():
        value = policy.value(policy.encode(replace(last, agents=last.agents[None], alive=last.alive[None])))
    # Step 1 leads to the observation in which the simulator was lost, one discount away.
    assert returns[1, 0, 0, 0] == pytest.approx(1 + 0.9 * float(value), abs=1e-6)
    assert returns[2, 0, 0, 0] == 0


def test_a_whole_episode_that_was_lost_is_not_learned_from(opened):
    collector, _, _ = collect(opened(SyncVector([lambda: Lost(2), lambda: Relay((4,), (True,))])), 5)
    collector.env._shard.envs[0].lost = 2
    rollout, episodes = collector.collect([3, 3])
    assert not rollout.node_mask[:, 0].any()
    assert rollout.node_mask[:, 1, 0, 0].tolist() == [True] * 4 + [False]
    assert episodes.dropped == 1


# Errors about observations, rewards and infos


class Shifted(EnvWrapper):
    """Relay for one agent whose observation is moved at one time."""

    def __init__(self, by, when):
        super().__init__(Relay((9,), (False,)))
        self.by, self.when = by, when

    def observe(self, obs):
        moved = obs.agents - np.float32(self.by) if self.env.time == self.when else obs.agents
        return replace(obs, agents=moved)


@pytest.mark.parametrize("when", [0, 3, 9])
def test_bounds_allow_rounding_and_hold_in_every_step(when, opened):
    collect(opened(SyncVector([lambda: Shifted(1e-6, when)])), 9)
    with pytest.raises(EnvironmentContractError, match=r"relay: environment 0, agent 'agent_0': feature 0 .* is -0\.0"):
        collect(opened(SyncVector([lambda: Shifted(0.01, when)])), 9)


def test_bounds_hold_for_the_last_observation_of_an_agent_that_is_cut_off_alone(opened):
    class Outside(EnvWrapper):
        def step(self, action):
            step = super().step(action)
            return (
                step if step.final is None else replace(step, final=replace(step.final, agents=step.final.agents - 1))
            )

    with pytest.raises(EnvironmentContractError, match=r"relay: environment 0, agent 'agent_0': feature 0 .* is -1\.0"):
        collect(opened(SyncVector([lambda: Outside(Relay())])), 3)


def test_the_conformance_suite_allows_rounding_too():
    check_env(lambda: Shifted(1e-6, 3))
    with pytest.raises(EnvironmentContractError, match="the space's bounds"):
        check_env(lambda: Shifted(0.01, 3))


class Team(EnvWrapper):
    @property
    def spec(self):
        return replace(super().spec, team_reward=True)


def test_a_team_reward_that_is_none_is_found_in_training(opened):
    said = "relay: environment 0: team_reward is True, but 'agent_0' received 0 and 'agent_1' 1; give all"
    with pytest.raises(EnvironmentContractError, match=said):
        collect(opened(SyncVector([lambda: Team(Relay())])), 4)


class Unsure(EnvWrapper):
    def step(self, action):
        step = super().step(action)
        return replace(step, info={"success": float("nan"), "score": 2}) if step.truncated else step


def test_a_success_that_is_no_number_is_left_out_with_a_warning(opened, caplog):
    vector = opened(SyncVector([lambda: Unsure(Relay((2,), (False,)))] * 2))
    with caplog.at_level(logging.WARNING, "marl"):
        collector, _, episodes = collect(vector, 4)
        assert episodes.infos == [{"score": 2.0}] * 4
        assert caplog.text.count("info['success'] is nan at an episode's end") == 1
        rows = run_episodes(collector.policy, vector, [1, 2, 3])
    assert [row.info for row in rows] == [{"score": 2.0}] * 3
    with pytest.raises(EnvironmentContractError, match=r"info\['success'\] is nan; expected a finite number"):
        check_env(lambda: Unsure(Relay((2,), (False,))))


# Global random streams


def draws(vector, steps=2):
    """(steps + 1, E, 4): what the environments see of the global streams."""
    return np.stack(
        [vector.obs.agents[:, 0]] + [vector.step(zeros(vector)).obs.agents[:, 0].copy() for _ in range(steps)]
    )


def dice(opened, seed, seeds, saves=True):
    vector = opened(ProcessVector([partial(Dice, saves)] * 2, 2, seed=seed))
    vector.obs = replace(vector.reset(seeds), agents=vector.reset(seeds).agents.copy())
    return vector


def test_workers_draw_different_global_numbers_that_the_seed_decides(opened):
    first, again, other = (draws(dice(opened, seed, seeds)) for seed, seeds in ((1, [5, 5]), (1, [5, 5]), (2, [6, 7])))
    np.testing.assert_array_equal(first, again)
    for one, two in ((first[:, 0], first[:, 1]), (first, other)):
        assert not np.isin(one, two).any()


def test_the_workers_global_numbers_go_on_from_a_state(opened):
    first, second = dice(opened, 1, [5, 6]), dice(opened, 3, [8, 9])
    first.step(zeros(first))
    states = first.get_state()
    expected = [first.step(zeros(first)).obs.agents.copy() for _ in range(3)]
    second.set_state(states)
    got = [second.step(zeros(second)).obs.agents.copy() for _ in range(3)]
    np.testing.assert_array_equal(expected, got)


def test_ranks_and_tasks_draw_different_global_numbers(small, monkeypatch):
    """Each rank's process and its workers have different global seeds."""
    drawn, seeds = [], []

    def spy(*_):
        drawn.extend([random.random(), np.random.random(), float(torch.rand(()))])  # noqa: NPY002
        raise NotImplementedError

    monkeypatch.setattr(run, "make_vector", lambda *_, seed, **__: seeds.append(seed))
    for rank in (0, 1, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        config = small("toy/climbing+penalty", workers=2)
        for number, task in enumerate(config.tasks):
            run.make_env(config, task, 1, 4, train=True, number=number)
        with own_globals(0), monkeypatch.context() as patch:
            patch.setattr(run, "make_env", lambda *_, **__: spy())
            with pytest.raises(NotImplementedError):
                run.start(replace(config, name=""))
    assert drawn[3:6] == drawn[6:]
    assert seeds[2:4] == seeds[4:]
    assert len(set(drawn[:6])) == 6
    assert len(set(seeds[:4])) == 4


class Strict(Relay):
    """Refuses a state with an entry that it did not give."""

    def set_state(self, state):
        assert state.keys() == {"time", "over"}
        return super().set_state(state)


@pytest.mark.parametrize("workers", [(2, 0), (0, 2), (2, 1)])
def test_an_environment_is_given_its_own_state_whatever_the_number_of_workers(workers, opened):
    first, second = (
        opened(ProcessVector([Strict] * 2, count) if count else SyncVector([Strict] * 2)) for count in workers
    )
    first.reset([1, 2])
    first.step(zeros(first))
    assert second.set_state(first.get_state()).agents[:, 0, 1].tolist() == [1, 1]
