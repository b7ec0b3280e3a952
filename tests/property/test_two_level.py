"""Properties of the two-level backup for actions made of tokens, of any length."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marl.backup import Links, backup
from marl.objective import Batch, ClippedPPO
from marl.types import Evaluation, Nodes

ACTIONS = ((0,), (1, 0), (1, 1, 0), (1, 1, 1))
"""Prefix-free token sequences of unequal length."""
PREFIXES = tuple(sorted({action[:j] for action in ACTIONS for j in range(len(action))}, key=len))
LONGEST = max(map(len, ACTIONS))


class Process:
    """A random decision process of S states with deterministic transitions, and a random policy over tokens."""

    def __init__(self, seed: int, states: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.reward = torch.as_tensor(rng.normal(size=(states, len(ACTIONS))))
        self.next = torch.as_tensor(rng.integers(states, size=(states, len(ACTIONS))))
        self.chance = {prefix: torch.as_tensor(rng.dirichlet((1.0, 1.0), states)) for prefix in PREFIXES}
        self.states = states

    def action_chance(self) -> torch.Tensor:
        """(S, A): the product over tokens."""
        columns = [
            torch.stack([self.chance[action[:j]][:, token] for j, token in enumerate(action)]).prod(0)
            for action in ACTIONS
        ]
        return torch.stack(columns, -1)

    def by_action(self, gamma: float, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Value (S,) and Q (S, A) of whole actions."""
        value = torch.zeros(self.states, dtype=torch.float64)
        for _ in range(600):
            q = self.reward + gamma * value[self.next]
            value = q.max(-1).values if greedy else (self.action_chance() * q).sum(-1)
        return value, q

    def by_token(self, links: Links, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from `backup` alone: every state and action is one step, one environment each."""
        index = {prefix: i for i, prefix in enumerate(PREFIXES)}
        value = torch.zeros(self.states, len(PREFIXES), dtype=torch.float64)
        mask = torch.zeros(1, self.states * len(ACTIONS), 1, LONGEST, dtype=torch.bool)
        for a, action in enumerate(ACTIONS):
            mask[0, a :: len(ACTIONS), 0, : len(action)] = True
        no = torch.zeros(1, mask.shape[1], dtype=torch.bool)
        for _ in range(600):
            tokens = torch.zeros(mask.shape, dtype=torch.float64)
            for a, action in enumerate(ACTIONS):
                for j in range(len(action)):
                    tokens[0, a :: len(ACTIONS), 0, j] = value[:, index[action[:j]]]
            bootstrap = value[self.next, 0].view(1, -1, 1)
            ends = {"terminated": no, "truncated": no, "bootstrap": bootstrap}
            returns = backup(links, self.reward.view(1, -1, 1), tokens, mask, **ends)[1]
            q = returns.view(self.states, len(ACTIONS), LONGEST)
            value = self._fold(q, index, greedy)
        last = torch.stack([q[:, a, len(action) - 1] for a, action in enumerate(ACTIONS)], -1)
        return value[:, 0], last

    def _fold(self, q: torch.Tensor, index: dict[tuple[int, ...], int], greedy: bool) -> torch.Tensor:
        """From the Q of each token to the value of each prefix."""
        value = torch.zeros(self.states, len(PREFIXES), dtype=torch.float64)
        for prefix, i in index.items():
            token_q = {
                action[len(prefix)]: q[:, a, len(prefix)]
                for a, action in enumerate(ACTIONS)
                if action[: len(prefix)] == prefix
            }
            both = torch.stack([token_q[token] for token in (0, 1)], -1)
            value[:, i] = both.max(-1).values if greedy else (self.chance[prefix] * both).sum(-1)
        return value


@pytest.mark.parametrize("greedy", [False, True], ids=["evaluation", "optimality"])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_have_the_values_of_actions(seed, greedy):
    """The value of the empty prefix is the state's and the Q of the last token the action's; not so with a discount
    inside the action."""
    process, gamma = Process(seed), 0.9
    value, q = process.by_action(gamma, greedy)
    exact = Links("parallel", "sequential", gamma, 0.0, 1.0, 0.0)
    found = process.by_token(exact, greedy)
    torch.testing.assert_close(found[0], value)
    torch.testing.assert_close(found[1], q)
    naive = process.by_token(Links("parallel", "sequential", gamma, 0.0, gamma, 0.0), greedy)
    assert float((naive[0] - value).abs().max()) > 0.05


@pytest.mark.parametrize(("gamma_intra", "long"), [(1.0, 1.0), (0.95, 0.9025)])
def test_a_discount_inside_the_action_punishes_long_words(gamma_intra, long):
    """Three tokens earn 1.0, one token 0.95: the naive discount values the worse action higher."""
    returns = []
    for length, reward in ((3, 1.0), (1, 0.95)):
        shape = (1, 1, 1, length)
        done = torch.ones(1, 1, dtype=torch.bool)
        links = Links("parallel", "sequential", 0.95, 1.0, gamma_intra, 1.0)
        given_reward = torch.full(shape[:3], reward, dtype=torch.float64)
        zeros = torch.zeros(shape, dtype=torch.float64)
        mask = torch.ones(shape, dtype=torch.bool)
        ends = {"terminated": done, "truncated": ~done, "bootstrap": given_reward}
        returns.append(float(backup(links, given_reward, zeros, mask, **ends)[1][0, 0, 0, 0]))
    assert returns == pytest.approx([long, 0.95])
    assert (returns[0] > returns[1]) == (gamma_intra == 1.0)


def test_equal_advantages_of_tokens_make_the_gradient_of_the_action():
    """With one advantage for all tokens of an action, token ratios give A times the gradient of log pi(action)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[[1, 0, 3, 2]]])
    mask = torch.tensor([[[True, True, True, False]]])

    def log_prob():
        return logits.log_softmax(-1).gather(-1, tokens[0, 0, :, None]).view(1, 1, 4)

    advantage = torch.full((1, 1, 4), -1.7, dtype=torch.float64)
    batch = Batch({}, Nodes(tokens, mask, mask), log_prob().detach(), advantage, advantage, advantage)
    evaluation = Evaluation(log_prob(), torch.zeros_like(advantage), advantage)
    one = torch.ones(2, dtype=torch.float64)
    loss = ClippedPPO(ratio_level="node", entropy_coef=0.0, value_coef=0.0)(evaluation, batch, one)[0]
    expected = torch.autograd.grad(1.7 * log_prob()[mask].sum(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


@given(seed=st.integers(0, 2**32 - 1), gae_lambda=st.floats(0, 1), place=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_forced_tokens_change_no_other_advantage(seed, gae_lambda, place):
    """A token that had to be, worth what follows it, may stand anywhere inside the actions."""
    rng = np.random.default_rng(seed)
    steps, slots = 4, 3
    shape = (steps, 2, 1, slots)
    value = torch.as_tensor(rng.normal(size=shape))
    length = rng.integers(1, slots + 1, shape[:3])
    mask = torch.as_tensor(np.arange(slots) < length[..., None])
    rest = {
        "terminated": torch.as_tensor(rng.random(shape[:2]) < 0.2),
        "truncated": torch.as_tensor(rng.random(shape[:2]) < 0.2),
        "bootstrap": torch.as_tensor(rng.normal(size=shape[:3])),
    }
    reward = torch.as_tensor(rng.normal(size=shape[:3]))
    links = Links("parallel", "sequential", 0.9, gae_lambda)
    before = backup(links, reward, value, mask, **rest)[0]
    # A slot before token `place`, filled in the actions that have that token.
    place = min(place, slots - 1)
    filled = mask[..., place : place + 1]
    longer = torch.cat([mask[..., :place], filled, mask[..., place:]], -1)
    repeated = torch.cat([value[..., :place], value[..., place : place + 1], value[..., place:]], -1)
    after = backup(links, reward, repeated, longer, **rest)[0]
    kept = torch.cat([after[..., :place], after[..., place + 1 :]], -1)
    torch.testing.assert_close(kept, before)
