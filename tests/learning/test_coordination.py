"""Sequential decisions reach optima that independent ones provably cannot, and PPO learns plain tasks.

Independent learners share one policy without identities; `factorized_optimum` bounds what any such
policy can expect, so the comparison does not depend on how well it was tuned.
"""

import numpy as np
import pytest
import torch

from marl.config import override
from marl.envs.toy import factorized_optimum, optimum
from marl.evaluation import paired_seeds, run_episodes
from marl.experiments.presets import choose
from marl.run import build
from marl.vector import make_vector

ROUNDING = 1e-6


def learn(task: str, agent: str, steps: int, deterministic: bool, *, enough: float = np.inf, **changes) -> float:
    """Mean return of 256 episodes after training on one thread with a fixed seed.

    Training ends early at an evaluation, one every 3,000 steps, whose mean return is `enough`.
    """
    config, _ = choose(f"toy/{task}", agent)
    config = override(config, {"seed": 3, "steps": steps, **changes})
    env = make_vector(config.env, config.tasks[0].options, config.collect.num_envs)
    trainer = build(config, env, torch.device("cpu"), 1)
    interval = max(1, round(3_000 / (steps / config.iterations)))
    for iteration in range(1, config.iterations + 1):
        trainer.iterate()
        if iteration == config.iterations or (enough < np.inf and iteration % interval == 0):
            rows = run_episodes(trainer.policy, env, paired_seeds(256), deterministic)
            score = sum(row.episode_return for row in rows) / len(rows)
            if score >= enough:
                break
    return score


@pytest.mark.parametrize("task", ["xor3", "permutation"])
def test_mat_coordinates_where_independent_learners_cannot(task):
    best, bound = optimum(task), factorized_optimum(task)
    assert bound < 0.5 * best
    assert learn(task, "mat", 25_000, True, enough=best - ROUNDING, agent_id=False) == pytest.approx(best)
    independent = learn(task, "ippo", 25_000, False, agent_id=False, entropy_coef=0.0)
    # Four standard errors of 256 episodes of a return in [0, 1].
    assert independent <= bound + 4 * 0.5 / 16


@pytest.mark.parametrize(
    ("task", "agent"),
    [
        ("xor3", "mat-bad"),
        ("permutation", "mat-gru"),
        ("permutation", "mat-decoder"),
        ("xor3", "ff-sable"),
        ("swarm", "ff-sable"),
    ],
)
def test_its_relatives_that_decide_one_by_one_coordinate_too(task, agent):
    best = optimum(task)
    assert learn(task, agent, 25_000, True, enough=best - ROUNDING, agent_id=False) == pytest.approx(best)


@pytest.mark.parametrize("task", ["climbing", "penalty"])
def test_mat_reaches_the_optimum_next_to_a_penalty(task):
    best = optimum(task)
    assert learn(task, "mat", 30_000, True, enough=best - ROUNDING) == pytest.approx(best)


def test_mat_passes_observations_on():
    """In `copy` the answer stands in another agent's observation, which the encoder must carry over."""
    enough = 0.98 * optimum("copy")
    assert learn("copy", "mat", 40_000, True, enough=enough) >= enough
    assert learn("copy", "ippo", 12_000, False) <= factorized_optimum("copy") + 4 * 0.5 / 16


@pytest.mark.parametrize(
    ("agent", "steps", "changes"),
    [
        ("mat", 12_000, {"parameters_per": "agent_type"}),
        ("mat-decoder", 20_000, {}),
        ("mappo", 12_000, {}),
        ("happo", 12_000, {}),
    ],
)
def test_a_mixed_team_passes_on_what_one_agent_sees(agent, steps, changes):
    """MAT passes it on in its encoder or in action tokens. Agents with only their own observation stay at the bound."""
    best, bound = optimum("mixed"), factorized_optimum("mixed")
    if agent.startswith("mat"):
        enough = 0.95 * best
        assert learn("mixed", agent, steps, True, enough=enough, **changes) >= enough
    else:
        assert 0.9 * bound < learn("mixed", agent, steps, True) < bound + 0.05


@pytest.mark.parametrize("agent", ["mat", "mat-bad", "mat-encoder", "mat-dec", "mappo", "ippo", "happo"])
def test_a_delayed_reward_is_found(agent):
    enough = 0.95 * optimum("chain")
    assert learn("chain", agent, 30_000, True, enough=enough) >= enough


@pytest.mark.parametrize("agent", ["mat", "mappo"])
def test_continuous_actions(agent):
    """Return 0 is perfect; agents that do nothing get about -1 an episode or worse."""
    still = learn("continuous", agent, 1, True, learning_rate=1e-9)
    enough = 0.25 * still if agent == "mat" else 0.6 * still
    assert learn("continuous", agent, 40_000, True, enough=enough, entropy_coef=0.0) >= enough


@pytest.mark.parametrize("agent", ["ippo", "mappo", "happo"])
@pytest.mark.parametrize(("penalty", "level"), [(0.0, 10.0), (-100.0, 2.0)])
def test_rivals_reach_their_published_level_in_the_penalty_game(agent, penalty, level):
    """Policies that decide at the same time find an optimum where miscoordination is free, and settle for the safe
    equilibrium where it is not, in all of the seeds of Papoudakis et al. 2021 (table 3: 250 and 50 in 25 rounds)."""
    assert learn("penalty", agent, 5_000, True, penalty=penalty) == pytest.approx(level)


def test_happo_coordinates_agents_that_see_the_same():
    """Its agents have actors of their own: with a shared one the team wins with probability n!/n^n at most (Kuba et
    al. 2022, proposition 1, has such a game)."""
    assert learn("permutation", "happo", 8_000, True, agents=3, agent_id=False) == pytest.approx(1.0)
