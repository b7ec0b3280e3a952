"""Language agents with the tiny model on games of text whose optimum is known."""

import numpy as np
import pytest
import torch

from marl.config import default_config, override
from marl.envs.text import TextEnv, TextStep
from marl.envs.toy_text import TextMdp
from marl.evaluation import paired_seeds, run_episodes
from marl.run import build
from marl.types import Obs
from marl.vector import make_vector
from tests.support.language import make_agent


def train(task, agent, iterations, game=None, *, stop=None, **changes):
    """A trainer after some iterations on one thread, and its environments; `stop(trainer, env)` ends training early."""
    usual = {"num_envs": 8, "rollout_steps": 16, "seed": 3}
    config = override(default_config(task if ":" in task else f"text/{task}", agent), usual | changes)
    config = override(config, {"steps": iterations * config.steps_per_iteration})
    env = make_vector(config.env, game or {}, config.collect.num_envs)
    trainer = build(config, env, torch.device("cpu"), 1)
    for _ in range(iterations):
        trainer.iterate()
        if stop is not None and trainer.iteration % 4 == 0 and trainer.iteration < iterations and stop(trainer, env):
            break
    return trainer, env


def learn(task, agent, iterations, *args, deterministic=True, enough=np.inf, **kwargs):
    """Mean return of 64 episodes after some iterations, or as soon as it is `enough`, asked after every fourth."""
    score = -np.inf

    def reached(trainer, env):
        nonlocal score
        rows = run_episodes(trainer.policy, env, paired_seeds(64), deterministic)
        score = sum(row.episode_return for row in rows) / len(rows)
        return score >= enough

    trainer, env = train(task, agent, iterations, *args, stop=reached if enough < np.inf else None, **kwargs)
    if trainer.iteration == iterations:
        reached(trainer, env)
    return score


def test_poad_and_twosome_find_the_delayed_reward_and_ntpo_takes_the_consolation():
    """Walking pays 1 at the end of 24 words, stopping .4 at once: the discount of every word makes that look better."""
    assert learn("chain", "poad", 24, enough=0.98) >= 0.98
    assert learn("chain", "twosome", 36, enough=0.98) >= 0.98
    assert learn("chain", "ntpo", 15) == pytest.approx(0.4)


@pytest.mark.parametrize(("long", "ntpo"), [(2, 1.0), (9, 0.95)])
def test_the_length_of_words_matters_to_ntpo_alone(long, ntpo):
    """Discounted .95 a word, nine words that earn 1 are worth .663, less than one word that earns .95."""
    assert learn("wording", "poad", 16, {"long": long}, enough=1.0) == pytest.approx(1.0)
    assert learn("wording", "ntpo", 16, {"long": long}) == pytest.approx(ntpo)


@pytest.mark.parametrize(("agent", "iterations"), [("reinforce", 25), ("grpo", 12), ("gigpo", 12)])
def test_other_algorithms_learn_a_simple_task(agent, iterations):
    assert learn("bake", agent, iterations, num_envs=16, enough=1.0) == pytest.approx(1.0)


def test_etpo_finds_the_exact_soft_optimal_policy():
    """pi ~ rho exp(Q / beta) of the soft Bellman equation, with rho the model before training."""
    beta, mdp = 0.5, TextMdp()
    before, _ = policy_and_value(make_agent("etpo", mdp.spec), mdp)
    value = np.zeros(len(mdp.reward))
    for _ in range(300):
        q = mdp.reward + mdp.gamma * mdp.transition @ value
        value = beta * np.log((before * np.exp(q / beta)).sum(-1))
    optimal = before * np.exp((q - value[:, None]) / beta)
    changes = {"num_envs": 16, "rollout_steps": 64, "anneal_learning_rate": True, "target_decay": 0.8, "seed": 1}
    trainer, _ = train("mdp", "etpo", 30, beta=beta, gamma=mdp.gamma, **changes)
    policy, learned = policy_and_value(trainer.policy, mdp)
    assert 0.5 * np.abs(policy - optimal).sum(-1).max() < 0.05
    np.testing.assert_allclose(learned, value, atol=0.2)
    assert 0.5 * np.abs(before - optimal).sum(-1).max() > 0.3


def policy_and_value(policy, mdp):
    """Probabilities (S, A) of whole actions and the value (S,) of each place."""
    prompts, count = mdp.prompts, len(mdp.prompts)
    obs = Obs([[p] for p in prompts], np.ones((count, 1), bool), candidates=[[mdp.actions]] * count)
    inputs = policy.encode(obs)
    menus = policy.score_candidates(
        [(int(p), int(c)) for p, c in zip(inputs["prompt"], inputs["choices"], strict=True)]
    )
    share = np.array([np.diff(menu.cumulative, prepend=0.0) for menu in menus])
    return share, policy.value(inputs)[:, 0].detach().numpy()


@pytest.mark.parametrize("links", ["parallel", "sequential"])
def test_agents_in_sequence_divide_the_work(links):
    """Without names, agents who do not see each other's choice win half of the rounds at most."""
    team = {"agent_credit": links, "team": "sequential"}
    assert learn("chores", "poad", 15, {"named": False}, **team, deterministic=False, enough=0.95) >= 0.95
    apart = learn("chores", "poad", 10, {"named": False}, deterministic=False)
    assert apart <= 0.5 + 4 * 0.5 / 8


def blurt():
    """Environment of one token of free text. The reward is 1 if it is a word, not a byte or a punctuation mark."""
    known = ("apple", "bell", "cloud", "drum", "ember", "frost", "grape", "horn")
    return TextEnv(
        "blurt",
        lambda _: "Say a word.",
        lambda state: state,
        lambda _, action, __: TextStep("Thanks.", float(action in known), ended=True),
        max_steps=1,
        words=("Say a word. Thanks.", *known),
        invalid="ignore",
    )


def test_free_text_is_learned_token_by_token():
    """Eight of about 300 tokens step_reward."""
    changes = {"max_action_tokens": 1, "num_envs": 32, "rollout_steps": 4, "learning_rate": 1e-3, "top_p": 0.98}
    assert learn(f"{__name__}:blurt", "poad", 20, deterministic=False, enough=0.8, **changes) >= 0.8


@pytest.mark.slow
def test_a_conversation_is_learned_and_without_memory_it_cannot_be():
    """Four numbers, four turns. An agent without memory finds the number with probability .778 at most."""
    bound = 1 / 4 + 3 / 4 * (1 - (2 / 3) ** 3)
    assert learn("guess", "poad", 32, {"numbers": 4, "turns": 4}, enough=1.0) == pytest.approx(1.0)
    forgetful = learn("guess", "poad", 24, {"numbers": 4, "turns": 4}, deterministic=False, history="none")
    assert forgetful <= bound + 3 * np.sqrt(bound * (1 - bound) / 64)
