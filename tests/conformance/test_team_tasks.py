"""The named families of other packages: contract, rewards, success, names."""

import numpy as np
import pytest

import marl
from marl.envs.team_tasks import LBF_TASKS, MAGENT_VERSIONS, MPE_VERSIONS, RWARE_TASKS, SISL_VERSIONS, task_name
from marl.envs.testing import check_env
from marl.errors import ConfigError, UnknownNameError

TASKS = {
    "lbf": ("lbforaging", LBF_TASKS),
    "rware": ("rware", RWARE_TASKS),
    "mpe": ("mpe2", tuple(MPE_VERSIONS)),
    "sisl": ("pygame", tuple(SISL_VERSIONS)),
    "magent": ("magent2", tuple(MAGENT_VERSIONS)),
}
CHECKED = (
    "lbf/2s-8x8-2p-2f-coop",
    "rware/tiny-2ag",
    "mpe/speaker_listener",
    "mpe/tag",
    "sisl/pursuit",
    "magent/battle",
)


SMALL = {
    "magent/battle": {"map_size": 16},
    "sisl/pursuit": {"x_size": 7, "y_size": 7, "n_pursuers": 2, "n_evaders": 2, "max_cycles": 50},
}


def make(name: str, **options):
    pytest.importorskip(TASKS[name.partition("/")[0]][0])
    return marl.make(name, **options)


@pytest.mark.parametrize("name", CHECKED)
def test_a_family_keeps_the_contract(name):
    env = make(name, kwargs=SMALL.get(name))
    assert env.spec.name == name
    check_env(env)


@pytest.mark.parametrize("name", [f"{family}/{task}" for family, (_, tasks) in TASKS.items() for task in tasks])
def test_every_listed_task_is_made(name):
    if name == "sisl/multiwalker":
        pytest.importorskip("Box2D")
    make(name).close()


def play(env, seed, steps):
    """Yield the steps of one random episode."""
    env.reset(seed=seed)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        step = env.step(random.integers(env.spec.action_size, size=env.spec.num_agents))
        yield step
        if step.terminated or step.truncated:
            return


def test_the_team_reward_is_the_sum_of_the_agents_own():
    individual, team = (make("lbf/5x5-2p-1f", reward=kind) for kind in ("individual", "team"))
    assert (individual.spec.team_reward, team.spec.team_reward) == (False, True)
    unequal = 0
    for seed in range(30):
        for own, shared in zip(play(individual, seed, 50), play(team, seed, 50), strict=True):
            assert np.allclose(shared.reward, own.reward.sum())
            unequal += own.reward[0] != own.reward[1]
    assert unequal > 0


def test_foraging_succeeds_when_no_food_is_left_and_is_truncated_at_its_limit():
    env = make("lbf/5x5-2p-1f")
    ends = [list(play(env, seed, 50))[-1] for seed in range(30)]
    successes = [end.info["success"] for end in ends]
    assert successes == [float(end.terminated) for end in ends]
    assert 0 < sum(successes) < len(ends)


def test_a_limit_of_ones_own_truncates():
    for name in ("lbf/8x8-2p-2f-coop", "rware/tiny-2ag", "mpe/spread"):
        steps = list(play(make(name, max_steps=7), 0, 20))
        assert len(steps) == 7
        assert steps[-1].truncated


def test_names_are_those_of_the_packages():
    assert task_name("Foraging-2s-8x8-2p-2f-coop-v3") == "2s-8x8-2p-2f-coop"
    assert task_name("rware-tiny-2ag-hard-v2") == "tiny-2ag-hard"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lbf/8x8-2p-9f", "unknown task of lbf '8x8-2p-9f'; did you mean '8x8-2p-4f'"),
        ("rware/tony-2ag", "unknown task of rware 'tony-2ag'; did you mean 'tiny-2ag'"),
        ("mpe/sprad", "unknown task of mpe 'sprad'; did you mean 'spread'"),
    ],
)
def test_unknown_tasks_are_named_with_the_closest(name, message):
    with pytest.raises(UnknownNameError, match=message):
        make(name)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ConfigError, match="max_steps=0; give 1 or more, or None"):
        make("mpe/spread", max_steps=0)
