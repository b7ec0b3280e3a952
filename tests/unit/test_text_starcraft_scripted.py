"""Scripted players of Text StarCraft: what they read, when their builds stand, and whom they beat."""

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.text_starcraft import batch, make
from marl.envs.text_starcraft.data.names import ACTION_ID, ACTIONS, NUM_SHOWN
from marl.envs.text_starcraft.engine import state as st
from marl.envs.text_starcraft.env import NUMBER_SCALE
from marl.envs.text_starcraft.scripted import STYLES, ScriptedPlayer, choose, read_text
from marl.envs.text_starcraft.win_rates import count_wins
from marl.envs.toy import TASKS as TOY_TASKS
from marl.envs.toy import make as make_toy
from marl.errors import ConfigError
from marl.evaluation import paired_seeds, run_episodes

pytestmark = pytest.mark.timeout(900)  # the first test may compile the simulator


@pytest.mark.parametrize("style", STYLES)
def test_the_first_level_loses_to_every_style(style):
    assert count_wins(style, 1, 8) == 8


def test_the_win_rate_falls_with_the_level():
    wins = [count_wins("robotics", level, 12) for level in (3, 7, 10)]
    assert wins[0] == 12
    assert wins == sorted(wins, reverse=True)
    assert wins[-1] == 0


def test_random_players_lose_from_the_second_level_on():
    env = batch("pvz-2", 4, frames=40, observation="vector", max_steps=50_000)
    obs, generator, outcomes = env.reset(range(4)), np.random.default_rng(0), []
    while len(outcomes) < 4:
        action = [[generator.choice(np.flatnonzero(row[0]))] for row in obs.action_mask]
        step = env.step(np.array(action))
        obs = step.obs
        outcomes += [] if step.final is None else [info["success"] for info in step.final.info]
    assert np.mean(outcomes) <= 0.5


@pytest.mark.parametrize("style", STYLES)
def test_players_read_the_same_from_text_and_from_vectors(style):
    text, vector = batch("pvz-4", 2, frames=20), batch("pvz-4", 2, frames=20, observation="vector")
    readers = [ScriptedPlayer(env.spec, style) for env in (text, vector)]
    seen = [env.reset([5, 6]) for env in (text, vector)]
    for _ in range(120):
        actions = [reader.act(reader.encode(obs)).action for reader, obs in zip(readers, seen, strict=True)]
        assert actions[0].tolist() == [[ACTIONS[number] for number in row] for row in actions[1].tolist()]
        seen = [env.step(action).obs for env, action in zip((text, vector), actions, strict=True)]


def test_a_prompt_is_read_line_by_line():
    env = make("pvz-1", frames=1)
    obs = env.reset(3)
    for _ in range(400):
        action = choose(STYLES["gateway"], read_text(obs.agents[0], obs.candidates[0]))
        obs = env.step(np.array([action], dtype=object)).obs
    reading = read_text(obs.agents[0], obs.candidates[0])
    shown = env.games.views.shown[0] / np.where(np.arange(NUM_SHOWN) >= NUM_SHOWN - 26, 100, 1)
    np.testing.assert_allclose(reading.shown, shown)
    assert reading.seconds == 71
    assert reading.mask.tolist() == env.games.views.mask[0].astype(bool).tolist()
    assert len(NUMBER_SCALE) == 1 + NUM_SHOWN + 60


def test_players_refuse_other_environments():
    with pytest.raises(ConfigError, match="plays text-starcraft only"):
        ScriptedPlayer(make_toy(TOY_TASKS[0]).spec, "gateway")
    env = batch("opening", 1, candidates=False)
    player, obs = ScriptedPlayer(env.spec, "gateway"), env.reset([0])
    with pytest.raises(ConfigError, match="needs candidates"):
        player.encode(obs)


def timeline(orders, seconds, probes, train=()):
    """Play orders one after another, each as soon as it can be, the first one at 0:18.

    A Nexus makes probes up to a number, and boosts itself after the first order. `train`: what is made after the last
    order, once all gateways are warp gates. Returns the clock of each order, and the dictionary at every second.
    """
    env = make("tech", frames=1, max_steps=50_000, building_limits=False)
    obs, done, shown, clock = env.reset(0), [], [], 0.0
    while clock < seconds:
        resource, offered, action = env.information()["resource"], obs.candidates[0], "EMPTY ACTION"
        if len(done) < len(orders):
            supply, name = orders[len(done)]
            if resource["supply_used"] >= supply and name in offered and clock >= 18:
                action = name
                done.append(clock)
        if action == "EMPTY ACTION":
            if resource["worker_supply"] < probes and "TRAIN PROBE" in offered:
                action = "TRAIN PROBE"
            elif done and "CHRONOBOOST NEXUS" in offered:
                action = "CHRONOBOOST NEXUS"
            elif len(done) == len(orders) and not env.information()["building"]["gateway_count"]:
                action = next((name for name in train if name in offered), action)
        obs = env.step(np.array([action], dtype=object)).obs
        clock = env.games.games.core[0, st.LOOP] / 22.4
        if int(clock) > len(shown):
            shown.append(env.information())
    return done, shown


def when(shown, true):
    return next(second for second, information in enumerate(shown, 1) if true(information))


def test_a_standard_expansion_with_robotics_reaches_its_usual_timings():
    """Clock of the start of each structure in common builds (players' benchmarks, from memory), within 5 %.

    The gateway and the first gas are left out: a gateway begins at 0:36 here, when the pylon stands, and at 0:39 in
    these builds.
    """
    usual = {
        "BUILD PYLON": 18,
        "BUILD NEXUS": 80,
        "BUILD CYBERNETICSCORE": 88,
        "BUILD ROBOTICSFACILITY": 128,
    }
    orders = [(14, "BUILD PYLON"), (16, "BUILD GATEWAY"), (17, "BUILD ASSIMILATOR"), (20, "BUILD NEXUS")]
    orders += [(20, "BUILD CYBERNETICSCORE"), (21, "BUILD ASSIMILATOR"), (22, "BUILD PYLON")]
    orders += [(22, "BUILD ROBOTICSFACILITY"), (23, "TRAIN IMMORTAL")]
    done, shown = timeline(orders, 225, probes=40)
    for name, seconds in usual.items():
        place = [order for _, order in orders].index(name)
        assert done[place] == pytest.approx(seconds, rel=0.05), name
    assert when(shown, lambda seen: seen["unit"]["immortal_count"]) == pytest.approx(212, rel=0.05)


def test_four_gates_warp_in_at_their_usual_time():
    """5:30 of the old clock of 16 loops a second, 236 seconds of the present one, within 5 %."""
    orders = [(14, "BUILD PYLON"), (16, "BUILD GATEWAY"), (17, "BUILD ASSIMILATOR"), (18, "BUILD ASSIMILATOR")]
    orders += [(19, "BUILD CYBERNETICSCORE"), (20, "BUILD PYLON"), (20, "RESEARCH WARPGATERESEARCH")]
    orders += [(20, "BUILD GATEWAY")] * 3 + [(20, "BUILD PYLON")] * 2
    _, shown = timeline(orders, 250, probes=22, train=("TRAIN STALKER", "TRAIN ZEALOT"))
    army = when(shown, lambda seen: seen["building"]["warp_gate_count"] == 4 and seen["resource"]["army_supply"] >= 8)
    assert army == pytest.approx(236, rel=0.05)


def test_actions_of_styles_exist():
    for style in STYLES.values():
        assert {order.action for order in style.orders} <= set(ACTION_ID)
        assert {action for action, _, _ in style.army} <= set(ACTION_ID)


def test_an_economy_and_an_army_by_script_beat_the_first_level():
    env = batch("pvz-1", 2, frames=10, observation="vector", two_agents=True)
    rows = run_episodes(ScriptedPlayer(env.spec, "gateway"), env, paired_seeds(2))
    assert [row.info["success"] for row in rows] == [1.0, 1.0]
