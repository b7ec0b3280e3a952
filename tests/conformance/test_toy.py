"""The toy games keep the contract, and their optima are what they say."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from marl.envs import toy
from marl.envs.testing import check_env, check_vector_env
from marl.errors import ConfigError, UnknownNameError
from marl.registry import EnvFactory, find_env
from marl.vector import SyncVector

VARIANTS = [
    *((task, {}) for task in toy.TASKS),
    ("penalty", {"penalty": 0.0}),
    ("permutation", {"agents": 2}),
    ("swarm", {"agents": 128}),
    ("chain", {"agents": 3, "length": 1}),
    ("copy", {"agents": 1, "length": 4, "symbols": 2}),
    ("copy", {"agents": 5}),
    ("memory", {"agents": 1, "length": 2, "symbols": 4}),
    ("continuous", {"agents": 1}),
    ("continuous", {"agents": 3, "unequal": True}),
    ("mixed", {"agents": 3, "length": 3}),
    ("agent_death", {"individual": True}),
    ("agent_death", {"agents": 5, "length": 3}),
]


@pytest.mark.parametrize(("task", "options"), VARIANTS)
def test_games_keep_the_contract(task, options):
    check_env(EnvFactory(f"toy/{task}", options), episodes=3)


@pytest.mark.parametrize("task", toy.TASKS)
def test_games_keep_the_contract_in_a_vector(task):
    make = EnvFactory(f"toy/{task}")
    check_vector_env(lambda: SyncVector([make] * 3), [5, 6, 7], make, steps=20)


def payoffs(task, **options):
    """The reward of every joint action of a one-shot game, as the environment pays it: (A,) * N."""
    env = toy.make(task, **options)
    table = np.zeros((env.spec.action_size,) * env.spec.num_agents)
    for joint in itertools.product(range(env.spec.action_size), repeat=env.spec.num_agents):
        env.reset(0)
        step = env.step(np.array(joint))
        assert step.terminated
        assert not step.truncated
        table[joint] = step.reward[0]
    return table


def best_shared_policy(table):
    """The largest expected payoff of agents that draw independently from one distribution, by optimization."""

    def loss(logits):
        value = table
        for _ in range(table.ndim):
            value = value @ softmax(logits)
        return -value

    generator = np.random.default_rng(0)
    starts = [*(20.0 * np.eye(table.shape[0])), *generator.normal(size=(12, table.shape[0]))]
    return max(-minimize(loss, start, method="BFGS").fun for start in starts)


ONE_SHOT = [("climbing", {}), ("penalty", {}), ("penalty", {"penalty": -1.0}), ("xor3", {})]
ONE_SHOT += [("permutation", {"agents": agents}) for agents in (2, 3, 4)]
ONE_SHOT += [("swarm", {"agents": 4, "cells": 2}), ("swarm", {"agents": 3, "cells": 3})]


@pytest.mark.parametrize(("task", "options"), ONE_SHOT)
def test_one_shot_optima_by_enumeration(task, options):
    table = payoffs(task, **options)
    assert toy.optimum(task, **options) == table.max()
    assert toy.factorized_optimum(task, **options) == pytest.approx(best_shared_policy(table), abs=1e-5)


def test_matrix_games_are_the_published_ones():
    assert payoffs("climbing").tolist() == [[11, -30, 0], [-30, 7, 6], [0, 0, 5]]
    assert payoffs("penalty").tolist() == [[10, 0, -100], [0, 2, 0], [-100, 0, 10]]


@pytest.mark.parametrize("task", ["xor3", "permutation"])
def test_coordination_games_need_more_than_a_shared_factorized_policy(task):
    assert toy.factorized_optimum(task) < 0.5 * toy.optimum(task)


def test_an_agent_of_xor3_or_permutation_cannot_win_or_lose_alone():
    """Whatever one agent plays, the others can still make the team win, and lose."""
    for task in ("xor3", "permutation"):
        table = payoffs(task)
        for agent in range(table.ndim):
            others = np.moveaxis(table, agent, 0).reshape(table.shape[0], -1)
            assert (others.max(axis=1) == 1).all()
            assert (others.min(axis=1) == 0).all()


def play(env, choose, seed=0):
    """The return (N,) of one episode, and its last step."""
    obs, total = env.reset(seed), 0.0
    while True:
        step = env.step(choose(obs))
        obs, total = step.obs, total + step.reward.astype(np.float64)
        if step.terminated or step.truncated:
            return total, step


@pytest.mark.parametrize(("agents", "length"), [(1, 5), (2, 3)])
def test_chain_pays_for_one_sequence_only_and_at_the_end(agents, length):
    env = toy.make("chain", agents=agents, length=length)
    returns = []
    for plan in itertools.product([0, 1], repeat=agents * length):
        env.reset()
        steps = [env.step(row) for row in np.array(plan).reshape(length, agents)]
        assert all(step.reward.tolist() == [0.0] * agents for step in steps[:-1])
        assert steps[-1].terminated
        returns.append(steps[-1].reward[0])
    assert sum(returns) == max(returns) == env.optimum


def test_chain_observation_tells_a_faultless_row_from_a_spoilt_one():
    env = toy.make("chain")
    env.reset()
    assert env.step(np.array([1])).obs.agents[0].tolist() == [0, 1, 0, 0, 0, 1]
    assert env.step(np.array([1])).obs.agents[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert env.step(np.array([1])).obs.agents[0, -1] == 0


def read_neighbor(env):
    """The symbol of each agent, from the observation of the one before."""

    def choose(obs):
        now = obs.agents[0, -env.length :].argmax()
        symbols = obs.agents[:, : -env.length].reshape(env.spec.num_agents, env.length, env.symbols)
        return np.roll(symbols[:, now].argmax(axis=1), 1)

    return choose


@pytest.mark.parametrize("options", [{}, {"agents": 1}, {"agents": 4, "length": 5, "symbols": 7}])
def test_copy_is_solved_by_reading_the_neighbor(options):
    env = toy.make("copy", **options)
    for seed in range(5):
        assert play(env, read_neighbor(env), seed)[0] == pytest.approx(np.full(env.spec.num_agents, env.optimum))


def test_copy_factorized_optimum_by_enumeration_of_all_policies():
    env = toy.make("copy", agents=2, length=1, symbols=2)
    env.reset(0)
    state, best = env.get_state(), 0.0
    for policy in itertools.product([0, 1], repeat=2):  # from the symbol that is seen to the one that is said
        total = 0.0
        for sequence in itertools.product([0, 1], repeat=2):
            obs = env.set_state({**state, "sequence": np.array(sequence)[:, None]})
            total += env.step(np.array(policy)[obs.agents[:, :2].argmax(axis=1)]).reward[0]
        best = max(best, total / 4)
    assert best == env.factorized_optimum == 0.5


@pytest.mark.parametrize("options", [{}, {"agents": 1}, {"agents": 3, "unequal": True}])
def test_continuous_is_solved_by_sharing_the_target(options):
    env = toy.make("continuous", **options)

    def choose(obs):
        share = obs.agents[0, :2] / obs.action_mask.sum(axis=0)
        return np.where(obs.action_mask, share, 77.0).astype(np.float32)  # masked entries must not matter

    total, last = play(env, choose)
    assert total == pytest.approx(env.optimum, abs=1e-9)
    assert last.truncated


@pytest.mark.parametrize(("agents", "unequal"), [(1, False), (2, False), (3, False), (2, True), (4, True)])
def test_continuous_factorized_optimum_by_integration(agents, unequal):
    """Over a grid of targets, with the best constant of the others and the best answer of the first agent."""
    env = toy.make("continuous", agents=agents, unequal=unequal, length=1)
    errors = []
    for count in env.reach:
        target = np.linspace(-count, count, 4001)
        sums = np.linspace(-(count - 1), count - 1, 41)  # of the others
        answer = np.clip(target - sums[:, None], -1, 1)
        errors.append(((target - sums[:, None] - answer) ** 2).mean(axis=1).min())
    assert env.factorized_optimum == pytest.approx(-np.mean(errors), abs=2e-3)


def test_continuous_pays_minus_the_mean_squared_error_of_clipped_actions():
    env = toy.make("continuous", agents=2)
    target = env.reset(3).state.astype(np.float64)
    step = env.step(np.array([[5.0, 0.25], [-0.5, 0.0]], dtype=np.float32))
    expected = -((0.5 - target[0]) ** 2 + (0.25 - target[1]) ** 2) / 2
    assert step.reward == pytest.approx([expected, expected], rel=1e-5)


def test_mixed_is_solved_by_passing_the_place_on():
    env = toy.make("mixed", agents=5, length=3)

    def choose(obs):
        place = obs.agents[0, :3].argmax()
        return np.array([[place - env.dial[agent], 9.0, 9.0] for agent in range(5)], np.float32)

    total, last = play(env, choose)
    assert total == pytest.approx(env.optimum)
    assert last.truncated


def test_mixed_factorized_optimum_by_enumeration():
    """Over places, with every choice of a switch and a grid of torques of a dial that do not see them."""
    env = toy.make("mixed", agents=2, length=1)
    env.reset(0)
    best = []
    for shown in np.linspace(-1, 1, 21):
        paid = []
        for place in range(3):
            env.set_state({**env.get_state(), "place": np.array(place), "over": False, "elapsed": 0})
            paid.append(env.step(np.array([[place, 0, 0], [shown, 0, 0]], np.float32)).reward[0])
        best.append(np.mean(paid))
    assert max(best) == pytest.approx(env.factorized_optimum)


def follow(obs):
    return obs.agents[:, :4].argmax(axis=1)


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize(("agents", "length"), [(3, 6), (1, 4), (5, 3)])
def test_mortal_is_solved_by_doing_what_is_shown(individual, agents, length):
    env = toy.make("agent_death", agents=agents, length=length, individual=individual)
    total, last = play(env, follow)
    assert total.mean() == pytest.approx(env.optimum)
    assert (np.ptp(total) > 0) == (individual and agents > 1)
    assert last.truncated


def test_mortal_agents_die_when_documented_and_their_actions_are_ignored():
    env = toy.make("agent_death", individual=True)
    obs, alive, rewards = env.reset(0), [], []
    for _ in range(6):
        alive.append(obs.alive.tolist())
        step = env.step(np.where(obs.alive, follow(obs), 99))
        rewards.append((step.reward > 0).tolist())
        obs = step.obs
    yes, no = True, False
    assert alive == [[yes, yes, yes]] * 2 + [[yes, yes, no]] * 2 + [[yes, no, no]] * 2
    assert rewards == alive
    assert obs.alive.tolist() == [yes, no, no]
    assert obs.action_mask[1].tolist() == [yes, no, no, no]
    assert not obs.agents[1:].any()


def test_mortal_refuses_a_masked_action():
    env = toy.make("agent_death")
    obs = env.reset(0)
    action = follow(obs)
    assert not obs.action_mask[1, 1]
    action[1] = 1
    with pytest.raises(ValueError, match=r"agent 1 cannot take action 1; available: \[0, 2, 3\]"):
        env.step(action)


@pytest.mark.parametrize("action", [np.array([3, 0]), np.array([-1, 0])])
def test_an_action_that_does_not_exist_is_refused(action):
    env = toy.make("climbing")
    env.reset()
    with pytest.raises(ValueError, match="agent 0 cannot take action"):
        env.step(action)


def test_an_action_of_another_shape_is_refused():
    env = toy.make("climbing")
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(3,\); give \(2,\)"):
        env.step(np.zeros(3, dtype=np.int64))


def test_reset_without_a_seed_goes_on_with_the_stream():
    env = toy.make("copy", agents=3, length=6)
    states = [env.reset(1).state.tolist()] + [env.reset().state.tolist() for _ in range(3)]
    assert len({tuple(state) for state in states}) == 4
    assert [env.reset(1).state.tolist()] + [env.reset().state.tolist() for _ in range(3)] == states


@pytest.mark.parametrize("task", toy.TASKS)
def test_render_names_the_game_and_the_step(task):
    env = toy.make(task)
    assert env.render().startswith(f"toy/{task}, step 0 of {env.spec.max_steps}\n")


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("climbing", {"agents": 3}, "toy/climbing has no option 'agents'; it takes: none"),
        ("chain", {"symbols": 3}, "toy/chain has no option 'symbols'; it takes: agents, length"),
        ("penalty", {"penalty": 1.0}, "penalty=1.0 is a reward"),
        ("permutation", {"agents": 1}, "agents=1; give 2 or more"),
        ("copy", {"symbols": 1}, "symbols=1; give 2 or more"),
        ("agent_death", {"length": 0}, "length=0; give 1 or more"),
        ("swarm", {"agents": 6, "cells": 4}, "cells=4 does not divide agents=6; give a divisor"),
        ("swarm", {"cells": 1}, "cells=1; give 2 or more"),
    ],
)
def test_wrong_options_are_named(task, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.make(task, **options)


def test_options_of_none_are_defaults_and_unknown_tasks_are_refused():
    options = dict.fromkeys(toy.ToyOptions.__dataclass_fields__)
    assert all(toy.make(task, **options).spec == toy.make(task).spec for task in toy.TASKS)
    with pytest.raises(UnknownNameError, match="did you mean 'climbing'"):
        toy.make("climbin")
    assert find_env("toy/xor3")[0].options is toy.ToyOptions


def test_recall_pays_for_what_was_shown_and_does_not_show_it_again():
    """Observations after the first step do not depend on the first observation or on the actions."""
    later = set()
    for seed in range(9):
        env = toy.make("memory", agents=2, length=3, symbols=3)
        shown = env.reset(seed).agents[:, :3].argmax(-1)
        steps = [env.step((shown + seed) % 3), env.step((shown + seed) % 3), env.step(shown)]
        later.add(tuple(step.obs.agents.tobytes() for step in steps))
        assert [step.reward.tolist() for step in steps] == [[0, 0], [0, 0], [1, 1]]
        assert [step.terminated for step in steps] == [False, False, True]
    assert len(later) == 1
    assert toy.factorized_optimum("memory", symbols=3) == 1 / 3
