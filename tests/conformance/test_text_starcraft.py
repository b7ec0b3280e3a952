"""Text StarCraft keeps the contract of environments: text, vector, candidates, free text, batches, saved states."""

import re

import numpy as np
import pytest

pytest.importorskip("numba")

from marl.envs.testing import check_env, check_vector_env
from marl.envs.text_starcraft import TASKS, batch, make, roles
from marl.envs.text_starcraft import summaries as registry
from marl.envs.text_starcraft.data.names import ACTIONS, LEVELS
from marl.envs.text_starcraft.engine import state as st
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError, UnknownNameError


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("pvz-5", {"max_steps": 60}),
        ("pvz-10", {"max_steps": 300, "frames": 10, "observation": "vector"}),
        ("opening", {"max_steps": 205}),
        ("defend", {"frames": 20}),
        ("tech", {"max_steps": 40, "frames": 10, "actions": 5}),
        ("expand", {"max_steps": 40, "candidates": False}),
        ("defend", {"max_steps": 40, "frames": 6, "actions": 3, "two_agents": True}),
    ],
)
def test_games_keep_the_contract(task, options):
    lines = check_env(lambda: make(task, **options))
    assert task == "defend" or any(line.startswith("time limit") and "was kept" in line for line in lines)


@pytest.mark.parametrize(
    ("task", "options"),
    [("pvz-10", {"frames": 10, "max_steps": 180}), ("opening", {"max_steps": 90}), ("defend", {"two_agents": True})],
)
@pytest.mark.parametrize("observation", ["text", "vector"])
def test_batches_keep_the_contract(task, options, observation):
    options = {**options, "observation": observation}
    check_vector_env(lambda: batch(task, 3, **options), [1, 2, 3], lambda: make(task, **options), steps=25)


pytestmark = pytest.mark.timeout(900)  # the first test may compile the simulator


def test_threads_change_nothing():
    runs = []
    for threads in (1, 2):
        env = batch("pvz-8", 5, threads, frames=10)
        obs = env.reset(range(5))
        generator = np.random.default_rng(0)
        for _ in range(30):
            action = np.array([[generator.choice(row[0])] for row in obs.candidates], dtype=object)
            obs = env.step(action).obs
        runs.append(obs.agents)
        env.close()
    assert runs[0] == runs[1]


@pytest.mark.parametrize("frames", [1, 10])
def test_resources_and_supply_stay_within_bounds(frames):
    """Random players never owe anything, and never go over the supply cap by an action of their own."""
    env = batch("pvz-6", 8, frames=frames, observation="vector", building_limits=False)
    obs = env.reset(range(8))
    generator = np.random.default_rng(frames)
    games, views = env.games.games, env.games.views
    before = views.shown[:, 4:6].copy()
    for _ in range(1_500 // frames):
        action = np.array([generator.choice(np.flatnonzero(row[0])) for row in obs.action_mask])[:, None]
        step = env.step(action)
        obs = step.obs
        assert (games.bank >= 0).all()
        assert (games.counts >= 0).all()
        assert (games.pools >= -1e-6).all()
        assert (games.bases[:, :, 1:] >= 0).all()
        cap, used = views.shown[:, 4], views.shown[:, 5]
        grown = (used > before[:, 1]) & (cap >= before[:, 0]) & ~(step.terminated | step.truncated)
        assert (used <= cap)[grown].all()
        before = views.shown[:, 4:6].copy()


def test_every_action_can_be_carried_out_somewhere():
    """Candidates are what can be carried out: none of them fails, and a rich player is offered nearly all of them."""
    env = make("tech", building_limits=False, max_steps=50_000)
    obs = env.reset(0)
    game, generator, offered = env.games.games[0], np.random.default_rng(0), set()
    for _ in range(4_000):
        game.bank[0] = 3_000 * st.MONEY
        game.structures[0, st.CHARGE] = 100 * st.ENERGY
        row = obs.candidates[0]
        offered |= set(row)
        step = env.step(np.array([generator.choice(row)], dtype=object))
        assert int(game.results[0, 1]) == 0, step.obs.agents
        obs = env.reset() if step.terminated else step.obs
        if len(offered) == len(ACTIONS):
            break
    assert all(action == "MORPH ARCHON" or action.endswith("LEVEL3") for action in set(ACTIONS) - offered)


def test_free_text_is_an_action_or_a_failure_with_its_reason():
    env = make("opening", frames=1)
    env.reset(0)
    said = {
        "I think <train probe> is best": "Action executed: TRAIN PROBE",
        "BUILD NEXUS": "Action failed: BUILD NEXUS, Reason: Cannot afford BUILD NEXUS",
        "hello": "Action failed: hello, Reason: no such action",
        "<BUILD PYLONS>": "Action failed: BUILD PYLONS, Reason: no such action; did you mean BUILD PYLON",
    }
    for text, answer in said.items():
        assert env.step(np.array([text], dtype=object)).obs.agents[0].rstrip().endswith(answer)
    last = env.step(np.array([""], dtype=object)).obs.agents[0]
    assert "Action" not in last


def test_five_actions_are_spread_over_ten_frames():
    env = make("opening", frames=10, actions=5, building_limits=False, candidates=False)
    assert env.reset(0).candidates is None
    decisions = "Decisions:\n0: <TRAIN PROBE>\n1: <BUILD NEXUS>\n2: <CHRONOBOOST NEXUS>\n3: <EMPTY ACTION>\n4: <OH NO>"
    step = env.step(np.array([decisions], dtype=object))
    assert step.duration == 10
    told = step.obs.agents[0]
    assert "Action executed: TRAIN PROBE\nAction failed: BUILD NEXUS" in told
    assert "Action executed: CHRONOBOOST NEXUS\nAction executed: EMPTY ACTION\nAction failed: OH NO" in told
    assert "Changes since the decision before:\n- Mineral: 50 -> 0\n" in told
    # five actions come at frames 0, 2, 4, 6 and 9, so that 6 frames were boosted
    work = env.games.games.structures[0, 0, st.WORK, 0]
    assert work == 2 * 272 - 10 * 8 - 4 * 6


def test_candidates_of_five_actions_are_five_decisions_on_one_prompt():
    """Each is taken as late as it is carried out, and its candidates are those of that moment."""
    env = make("opening", actions=5)
    obs, durations, prompts = env.reset(0), [], []
    for _ in range(6):
        train = "TRAIN PROBE" in obs.candidates[0]
        prompts.append(obs.agents[0])
        step = env.step(np.array(["TRAIN PROBE" if train else "EMPTY ACTION"], dtype=object))
        obs = step.obs
        durations.append(step.duration)
    assert durations == [2, 2, 2, 3, 1, 2]
    results = ["Action executed: TRAIN PROBE\n", *["Action executed: EMPTY ACTION\n"] * 3]
    for number in range(1, 5):
        assert prompts[number] == prompts[0] + "".join(results[:number]) + f"Choice {number + 1} of 5.\n"
    assert "Changes since the decision before:\n- Mineral: 50 -> 0\n" in prompts[5]


def test_a_game_saved_between_choices_goes_on():
    env, other = make("opening", actions=3), make("opening", actions=3)
    env.reset(1)
    wait = np.array(["EMPTY ACTION"], dtype=object)
    env.step(wait)
    obs = other.set_state(env.get_state())
    assert obs.agents[0].endswith("Choice 2 of 3.\n")
    for _ in range(4):
        assert env.step(wait).obs == other.step(wait).obs


def test_a_model_summarizes_frames_of_the_window(monkeypatch):
    asked = []

    def write(prompts, max_tokens):
        asked.extend(prompts)
        return [f"{max_tokens} tokens\nfor caf\u00e9 {len(prompts)}" for _ in prompts]

    monkeypatch.setattr(registry, "open_text_model", lambda name: {"some-model": write}[name])
    env = batch("opening", 2, summary="model", summary_model="some-model", summary_tokens=9, actions=2, frames=20)
    obs = env.reset([0, 1])
    wait = np.array([["EMPTY ACTION"]] * 2, dtype=object)
    assert not asked
    assert "Summary" not in obs.agents[0][0]
    env.step(wait)
    assert not asked
    prompt = env.step(wait).obs.agents[0][0]
    assert len(asked) == 2
    times = re.findall(r"Observation (\d): At 00:0(\d)", asked[0])
    assert times == [("1", "0"), ("2", "1"), ("3", "2"), ("4", "2"), ("5", "3")]
    assert "Summary of the last 20 steps:\n9 tokens for caf? 2\nAction executed: EMPTY ACTION" in prompt


def test_economy_and_army_share_a_base():
    env = make("defend", two_agents=True, building_limits=False)
    obs = env.reset(0)
    economy, army = map(set, obs.candidates)
    assert env.spec.agents == ("economy", "army")
    assert economy & army == {"EMPTY ACTION"}
    assert "TRAIN PROBE" in economy
    assert {"TRAIN ZEALOT", "BUILD PHOTONCANNON"} <= army
    assert obs.agents[0].endswith("You are the economy agent: " + roles.ROLE_LINES["economy"].partition(": ")[2])
    step = env.step(np.array(["TRAIN PROBE", "TRAIN ZEALOT"], dtype=object))
    assert step.reward.shape == (2,)
    assert "economy: Action executed: TRAIN PROBE\narmy: Action executed: TRAIN ZEALOT\n" in step.obs.agents[0]
    failed = env.step(np.array(["TRAIN STALKER", "<BUILD PYLON>"], dtype=object)).obs.agents[1]
    assert "economy: Action failed: TRAIN STALKER, Reason: an action of the army agent\n" in failed
    assert "army: Action failed: BUILD PYLON, Reason: an action of the economy agent\n" in failed
    assert env.games.games.core[0, st.FAILURES] == 2


def test_every_action_of_a_team_has_an_agent():
    masks = roles.role_masks(("economy", "army"))
    assert masks.sum(axis=0).tolist() == [1] * 71 + [2]
    assert masks.sum(axis=1).tolist() == [46, 27]


def test_levels_and_options_that_do_not_exist_are_refused():
    assert len(TASKS) == len(LEVELS) + 4
    for task in ("pvz-11", "pvz-0", "tvz-1", "attack"):
        with pytest.raises(UnknownNameError, match="text-starcraft"):
            make(task)
    with pytest.raises(UnknownNameError, match="frames"):
        make("pvz-1", frame=2)
    for options in ({"frames": 0}, {"actions": 11}, {"max_steps": 0}, {"observation": "image"}, {"summary": "none"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make("pvz-1", **options)
    with pytest.raises(ConfigError, match="needs text"):
        make("pvz-1", actions=2, observation="vector")
    with pytest.raises(ConfigError, match="summary='model' needs text"):
        make("pvz-1", summary="model", observation="vector")
    with pytest.raises(ConfigError, match="give frames=4 or more, or candidates=False"):
        make("pvz-1", actions=4, frames=3)
    with pytest.raises(ConfigError, match="num_envs=0"):
        batch("pvz-1", 0)


def test_actions_of_another_kind_are_refused():
    env = make("pvz-1", observation="vector")
    env.reset(0)
    for action in (np.array([72]), np.array([-1]), np.array([0.0]), np.array([0, 0])):
        with pytest.raises(EnvironmentContractError, match="action"):
            env.step(action)
    texts = make("pvz-1")
    texts.reset(0)
    with pytest.raises(EnvironmentContractError, match="is no text"):
        texts.step(np.array([3], dtype=object))


def test_a_state_of_another_task_is_refused():
    env, other = make("pvz-1"), make("pvz-2")
    env.reset(0)
    with pytest.raises(CheckpointError, match=r"text-starcraft/pvz-1 or by another version"):
        other.set_state(env.get_state())


def test_a_game_that_never_ends_is_truncated():
    env = make("pvz-1", frames=100, max_steps=250)
    env.reset(0)
    steps = [env.step(np.array(["EMPTY ACTION"], dtype=object)) for _ in range(3)]
    assert [(step.terminated, step.truncated, step.duration) for step in steps] == [
        (False, False, 100),
        (False, False, 100),
        (False, True, 50),
    ]
    assert steps[2].info["success"] == 0
    assert steps[2].info["game_seconds"] == pytest.approx(1000 / 22.4)


def frame_text(information):
    """The single-frame text by the rule of the original, from its dictionary."""
    lines = [
        f"At {information['resource']['game_time']} game time, our current StarCraft II situation is as follows:\n\n"
    ]

    def entries(section):
        told = []
        for key, value in section.items():
            name = key.replace("_", " ").capitalize()
            if isinstance(value, dict):
                inner = entries(value)
                told += [f"\n{name}:\n", *inner] if inner else []
            elif value:
                told.append(f"- {name}: {value}\n")
        return told

    titles = {"resource": "Resources", "building": "Buildings", "unit": "Units"}
    for key, section in information.items():
        if told := entries(section):
            lines += [f"{titles.get(key, key.capitalize())}:\n", *told, "\n"]
    return "".join(lines)


def test_the_rule_of_the_text_gives_the_published_example():
    information = {
        "resource": {"game_time": "01:02", "worker_supply": 17, "mineral": 85, "gas": 0, "supply_left": 5}
        | {"supply_cap": 23, "supply_used": 18, "army_supply": 0},
        "building": {"nexus_count": 1, "pylon_count": 1, "gas_buildings_count": 0, "gateway_count": 1},
        "unit": {"probe_count": 17},
        "planning": {
            "planning_structure": {"planning_gateway_count": 1},
            "planning_unit": {"planning_probe_count": 1},
        },
        "research": {"cybernetics_core": {"warpgate_research_status": 0.35}, "forge": {}},
        "enemy": {"unit": {"enemy_UnitTypeId.ZERGLING": 2}},
    }
    assert frame_text(information) == (
        "At 01:02 game time, our current StarCraft II situation is as follows:\n\nResources:\n- Game time: 01:02\n"
        "- Worker supply: 17\n- Mineral: 85\n- Supply left: 5\n- Supply cap: 23\n- Supply used: 18\n\nBuildings:\n"
        "- Nexus count: 1\n- Pylon count: 1\n- Gateway count: 1\n\nUnits:\n- Probe count: 17\n\nPlanning:\n\n"
        "Planning structure:\n- Planning gateway count: 1\n\nPlanning unit:\n- Planning probe count: 1\n\nResearch:\n\n"
        "Cybernetics core:\n- Warpgate research status: 0.35\n\nEnemy:\n\nUnit:\n- Enemy unittypeid.zergling: 2\n\n"
    )


def test_texts_follow_the_rule_in_every_game():
    env = batch("pvz-7", 4, frames=3)
    obs = env.reset(range(4))
    generator = np.random.default_rng(1)
    for number in range(800):
        action = np.array([[generator.choice(row[0])] for row in obs.candidates], dtype=object)
        obs = env.step(action).obs
        if number % 25 == 0:
            for index, (prompt,) in enumerate(obs.agents):
                assert prompt.partition("Changes ")[0].partition("Action ")[0] == frame_text(
                    env.games.information(index)
                )
    information = env.games.information(0)
    assert [len(information[key]) for key in ("resource", "building", "unit")] == [8, 16, 19]
    assert [len(part) for part in information["planning"].values()] == [16, 19]
    assert sum(map(len, information["research"].values())) == 26


def test_metrics_by_their_formulas():
    """A player who does nothing: 12 of 15 supply, and a bank that grows by the income."""
    env = make("pvz-3", frames=1, max_steps=336)
    env.reset(0)
    banks, used, seconds = [], [], []
    for _ in range(336):
        step = env.step(np.array(["EMPTY ACTION"], dtype=object))
        resource = env.information()["resource"]
        banks.append(resource["mineral"] + resource["gas"])
        used.append(resource["supply_used"] / resource["supply_cap"])
        minutes, rest = resource["game_time"].split(":")
        seconds.append(60 * int(minutes) + int(rest))
    info = step.info
    assert info["population_block_ratio"] == 0
    assert info["resource_utilization_ratio"] == pytest.approx(sum(banks) / seconds[-1])
    assert info["average_population_utilization"] == pytest.approx(np.mean(used))
    assert info["average_population_utilization"] == pytest.approx(0.8)
    assert info["technology_rate"] == pytest.approx(1 / 42)
    assert info["mean_bank"] == pytest.approx(np.mean(banks))


def test_supply_blocks_are_measured():
    env = make("pvz-1", frames=1, max_steps=400)
    obs, blocked, before = env.reset(0), 0, 0
    for _ in range(400):
        action = "TRAIN PROBE" if "TRAIN PROBE" in obs.candidates[0] else "EMPTY ACTION"
        step = env.step(np.array([action], dtype=object))
        obs, resource = step.obs, env.information()["resource"]
        minutes, rest = resource["game_time"].split(":")
        now = 60 * int(minutes) + int(rest)
        blocked += (now - before) * (resource["supply_left"] == 0)
        before = now
    assert blocked > 20
    assert step.info["population_block_ratio"] == pytest.approx(blocked / now)
