"""The reverse scan against sums written out node by node."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.backup import Links, backup
from marl.errors import ConfigError

AXES = ("parallel", "sequential")


def random_problem(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> dict[str, torch.Tensor]:
    steps, envs, agents, _ = shape
    return {
        "reward": torch.as_tensor(rng.normal(size=shape[:3])),
        "value": torch.as_tensor(rng.normal(size=shape)),
        "mask": torch.as_tensor(rng.random(shape) < 0.7),
        "terminated": torch.as_tensor(rng.random((steps, envs)) < 0.2),
        "truncated": torch.as_tensor(rng.random((steps, envs)) < 0.2),
        "bootstrap": torch.as_tensor(rng.normal(size=(steps, envs, agents))),
        "order": torch.as_tensor(rng.permuted(np.broadcast_to(np.arange(agents), shape[:3]), axis=-1)),
    }


def chain_of(links: Links, n: int, l: int) -> tuple[int, int]:
    return (-1 if links.agents == "sequential" else n, -1 if links.slots == "sequential" else l)


def brute_force(links: Links, p: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each advantage as the sum over later nodes of its episode of discounted, weighted errors."""
    steps, envs, agents, slots = p["value"].shape
    result = torch.zeros_like(p["value"])
    chains = {chain_of(links, n, l) for n in range(agents) for l in range(slots)}
    for e in range(envs):
        for chain in chains:
            start = 0
            for end in range(steps):
                agents_cut = p["agent_truncated"][end, e] if "agent_truncated" in p else torch.zeros(agents).bool()
                cut = agents_cut.any() if links.agents == "sequential" else agents_cut[chain[0]]
                if p["terminated"][end, e] or p["truncated"][end, e] or cut or end == steps - 1:
                    solve_segment(links, p, result, e, chain, start, end)
                    start = end + 1
    return result


def solve_segment(links, p, result, e, chain, start, end):
    nodes, rewards, gammas, lambdas = [], [], [], []
    for t in range(start, end + 1):
        n_order = p["order"][t, e].tolist() if links.agents == "sequential" else range(p["value"].shape[2])
        here = [
            (t, n, l)
            for n in n_order
            for l in range(p["value"].shape[3])
            if chain_of(links, n, l) == chain and p["mask"][t, e, n, l]
        ]
        for i, node in enumerate(here):
            nodes.append(node)
            inside = i + 1 < len(here)
            rewards.append(float(p["node_reward"][t, e][node[1:]]) if "node_reward" in p else 0.0)
            gammas.append(links.gamma_intra if inside else 1.0)
            lambdas.append(links.lambda_intra if inside else links.gae_lambda)
        if nodes:
            reward = p["reward"][t, e].mean() if links.agents == "sequential" else p["reward"][t, e, chain[0]]
            rewards[-1] += gammas[-1] * float(reward)
            gammas[-1] *= links.gamma if p.get("discount") is None else float(p["discount"][t, e])
    if not nodes:
        return
    agent = 0 if links.agents == "sequential" else chain[0]
    last = 0.0 if p["terminated"][end, e] else float(p["bootstrap"][end, e, agent])
    values = [float(p["value"][t, e, n, l]) for t, n, l in nodes] + [last]
    errors = [rewards[i] + gammas[i] * values[i + 1] - values[i] for i in range(len(nodes))]
    for i, (t, n, l) in enumerate(nodes):
        weight, total = 1.0, 0.0
        for j in range(i, len(nodes)):
            total += weight * errors[j]
            weight *= gammas[j] * lambdas[j]
        result[t, e, n, l] = total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*(st.integers(1, limit) for limit in (6, 2, 3, 3))),
    agents=st.sampled_from(AXES),
    slots=st.sampled_from(AXES),
    factors=st.tuples(*(st.floats(0, 1) for _ in range(4))),
    macro=st.booleans(),
    extra=st.booleans(),
    alone=st.booleans(),
)
def test_backup_is_the_brute_force_sum(seed, shape, agents, slots, factors, macro, extra, alone):
    """With and without actions of several primitive steps, rewards of single nodes, and agents truncated alone."""
    links, rng = Links(agents, slots, *factors), np.random.default_rng(seed)
    problem = random_problem(rng, shape)
    if macro:
        problem["discount"] = links.gamma ** torch.as_tensor(rng.integers(1, 9, shape[:2])).double()
    if extra:
        problem["node_reward"] = torch.as_tensor(rng.normal(size=shape))
    if alone:
        problem["agent_truncated"] = torch.as_tensor(rng.random(shape[:3]) < 0.2)
    advantage, returns = backup(links, **problem)
    torch.testing.assert_close(advantage, brute_force(links, problem), rtol=1e-9, atol=1e-9)
    expected = (advantage + problem["value"]).masked_fill(~problem["mask"], 0.0)
    torch.testing.assert_close(returns, expected)


@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0.5, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_macro_action_is_worth_its_primitive_steps(seed, gamma):
    """At lambda 1 a step of k primitive ones has the returns of k steps, whose nodes in between do not exist."""
    rng = np.random.default_rng(seed)
    steps, links = 6, Links(gamma=gamma, gae_lambda=1.0)
    problem = random_problem(rng, (steps, 2, 2, 1))
    problem["mask"] = torch.ones_like(problem["mask"])
    duration = torch.as_tensor(rng.integers(1, 4, (steps, 1))).expand(-1, 2)
    index = (duration[:, 0].cumsum(0) - 1).tolist()  # the last primitive step of each action
    begin = [0, *(i + 1 for i in index[:-1])]
    fine = {}
    for name in ("reward", "value", "mask", "terminated", "truncated", "bootstrap"):
        x = problem[name]
        fine[name] = torch.zeros((index[-1] + 1, *x.shape[1:]), dtype=x.dtype)
        fine[name][begin if name in ("value", "mask") else index] = x
    # An action's reward is known at its beginning: the same as so much more at its end.
    fine["reward"][index] = problem["reward"] * (gamma ** (1.0 - duration.double())).unsqueeze(-1)
    expected = backup(links, **fine)[1][begin]
    torch.testing.assert_close(backup(links, **problem, discount=gamma ** duration.double())[1], expected)


WORKED = {  # gamma .9, lambda .8, worked out by hand
    (1.0, 0.8): (0.378464, 0.348080, 0.164, 0.58, 0.1),
    (1.0, 1.0): (0.546, 0.446, 0.3, 0.6, 0.1),
    (0.9, 0.8): (0.20925, 0.235069, 0.00704, 0.482, 0.1),
}


@pytest.mark.parametrize(("intra", "expected"), WORKED.items())
def test_token_example(intra, expected):
    """Two actions of two and three tokens: POAD with lambda inside, BAD, and NTPO."""
    value = torch.tensor([[0.5, 0.6, 9.9], [0.7, 0.4, 0.9]], dtype=torch.float64)[:, None, None]
    mask = torch.tensor([[True, True, False], [True, True, True]])[:, None, None]
    advantage, _ = backup(
        Links("parallel", "sequential", 0.9, 0.8, *intra),
        torch.tensor([0.2, 1.0], dtype=torch.float64)[:, None, None],
        value,
        mask,
        terminated=torch.tensor([[False], [True]]),
        truncated=torch.zeros(2, 1, dtype=torch.bool),
        bootstrap=torch.full((2, 1, 1), 5.0, dtype=torch.float64),
    )
    torch.testing.assert_close(advantage[mask], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_action_example():
    """The same two actions, each one node with the value of its first token: the advantages of BAD's first tokens."""
    advantage, _ = backup(
        Links("parallel", "parallel", 0.9, 0.8),
        torch.tensor([0.2, 1.0], dtype=torch.float64)[:, None, None],
        torch.tensor([0.5, 0.7], dtype=torch.float64)[:, None, None, None],
        torch.ones(2, 1, 1, 1, dtype=torch.bool),
        terminated=torch.tensor([[False], [True]]),
        truncated=torch.zeros(2, 1, dtype=torch.bool),
        bootstrap=torch.full((2, 1, 1), 5.0, dtype=torch.float64),
    )
    torch.testing.assert_close(advantage.flatten(), torch.tensor([0.546, 0.3], dtype=torch.float64), atol=1e-6, rtol=0)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_first_return_ignores_later_token_values_at_lambda_one(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, (4, 2, 1, 4))
    problem["mask"][:, :, :, 0] = True
    links = Links("parallel", "sequential", 0.97, 1.0, 1.0, 1.0)
    before = backup(links, **problem)[1][..., 0]
    problem["value"][..., 1:] = torch.as_tensor(rng.normal(size=(4, 2, 1, 3)))
    torch.testing.assert_close(backup(links, **problem)[1][..., 0], before, atol=1e-10, rtol=0)


@given(seed=st.integers(0, 2**32 - 1), gae_lambda=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_bad_equals_gae_over_actions(seed, gae_lambda):
    """With both intra factors 1 the first token's advantage is the action's, whatever the other tokens' values."""
    problem = random_problem(np.random.default_rng(seed), (5, 2, 2, 3))
    problem["mask"][..., 0] = True
    tokens = backup(Links("parallel", "sequential", 0.95, gae_lambda), **problem)[0][..., :1]
    whole = {**problem, "value": problem["value"][..., :1], "mask": problem["mask"][..., :1]}
    torch.testing.assert_close(tokens, backup(Links("parallel", "parallel", 0.95, gae_lambda), **whole)[0])


@given(seed=st.integers(0, 2**32 - 1), agents=st.sampled_from(AXES), slots=st.sampled_from(AXES))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing(seed, agents, slots):
    """Further slots and steps' masked values, whatever they hold, leave the rest as it was."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, (4, 2, 2, 2))
    links = Links(agents, slots, 0.9, 0.8, 0.95, 0.7)
    before = backup(links, **problem)
    shape = (4, 2, 2, 3)
    value = torch.full(shape, float("nan"), dtype=torch.float64)
    value[..., :2] = torch.where(problem["mask"], problem["value"], torch.nan)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., :2] = problem["mask"]
    after = backup(links, **{**problem, "value": value, "mask": mask})
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a[..., :2], b)
        assert (a[..., 2] == 0).all()


@given(seed=st.integers(0, 2**32 - 1), agents=st.sampled_from(AXES), slots=st.sampled_from(AXES))
@settings(max_examples=25, deadline=None)
def test_nothing_leaks_over_an_episode_end(seed, agents, slots):
    problem = random_problem(np.random.default_rng(seed), (6, 2, 2, 2))
    problem["terminated"][2], problem["truncated"][2] = torch.tensor([True, False]), torch.tensor([False, True])
    links = Links(agents, slots, 0.99, 0.95, 0.9, 0.8)
    before = backup(links, **problem)[0][:3]
    for name in ("reward", "value", "bootstrap"):
        problem[name][3:] = 1e6
    torch.testing.assert_close(backup(links, **problem)[0][:3], before)


@pytest.mark.parametrize("agents", AXES)
@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_truncated_chain_with_exact_values_has_no_advantage(agents, gae_lambda):
    """A reward of 1 for ever is worth 1 / (1 - gamma) everywhere, cut or not."""
    gamma, shape = 0.9, (5, 1, 3, 1)
    exact = 1.0 / (1.0 - gamma)
    truncated = torch.zeros(5, 1, dtype=torch.bool)
    truncated[2] = True
    advantage, returns = backup(
        Links(agents, "parallel", gamma, gae_lambda),
        torch.ones(shape[:3], dtype=torch.float64),
        torch.full(shape, exact, dtype=torch.float64),
        torch.ones(shape, dtype=torch.bool),
        terminated=torch.zeros(5, 1, dtype=torch.bool),
        truncated=truncated,
        bootstrap=torch.full(shape[:3], exact, dtype=torch.float64),
    )
    torch.testing.assert_close(advantage, torch.zeros_like(advantage), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, torch.full_like(returns, exact))


@pytest.mark.parametrize("name", ["gamma", "gae_lambda", "gamma_intra", "lambda_intra"])
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_wrong_discounts_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        Links(**{name: value})
