"""PettingZoo and Gymnasium environments keep our contract, ours keep PettingZoo's, and nothing is lost between."""

import sys
import warnings
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.utils.agent_selector import AgentSelector
from pettingzoo.utils.env import AECEnv, ParallelEnv

from marl.envs import toy
from marl.envs.gymnasium import GymnasiumBridge
from marl.envs.gymnasium import make as make_gymnasium
from marl.envs.pettingzoo import ParallelBridge
from marl.envs.pettingzoo import make as make_pettingzoo
from marl.envs.pettingzoo_view import as_parallel_env
from marl.envs.testing import check_env, check_vector_env
from marl.envs.testing.compare import random_action
from marl.envs.wrappers import with_bounds
from marl.errors import ConfigError, EnvironmentContractError, MissingDependencyError
from marl.registry import EnvFactory
from marl.types import EnvSpec
from marl.vector import SyncVector

with warnings.catch_warnings():
    # PettingZoo's own test package imports its environments through their deprecated names.
    warnings.filterwarnings("ignore", message="The old environment creation API", category=DeprecationWarning)
    from pettingzoo.test import parallel_api_test

pytest.importorskip("mpe2")

MODULES = ["mpe2.simple_spread_v3", "mpe2.simple_speaker_listener_v4"]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_particle_worlds_keep_the_contract(module, continuous):
    options = {"kwargs": {"continuous_actions": continuous, "max_cycles": 8}}
    make = EnvFactory(f"pettingzoo:{module}", options)
    lines = check_env(make)
    assert "time limit: max_steps=8 was kept" in lines
    assert make().spec.continuous == continuous
    assert make().spec.agent_types == (("agent",) * 3 if "spread" in module else ("speaker", "listener"))


def test_particle_worlds_keep_the_contract_in_a_vector():
    make = EnvFactory("pettingzoo:mpe2.simple_speaker_listener_v4", {"kwargs": {"max_cycles": 5}})
    check_vector_env(lambda: SyncVector([make] * 2), [1, 2], make, steps=12)


def test_a_modules_deprecated_front_door_still_opens():
    lines = check_env(EnvFactory("pettingzoo:pettingzoo.classic.rps_v2"))
    assert any("Discrete(3)" in line for line in lines)


def test_nothing_is_lost_on_the_way_from_pettingzoo():
    from mpe2 import simple_speaker_listener_v4

    bridge, plain = make_pettingzoo(MODULES[1]), simple_speaker_listener_v4.parallel_env()
    spec = bridge.spec
    assert spec.agents == ("speaker_0", "listener_0")
    assert spec.observation_sizes == (3, 11)
    assert spec.action_sizes == (3, 5)
    assert (spec.max_steps, spec.state_size, spec.team_reward) == (25, 14, False)
    obs, (seen, _) = bridge.reset(7), plain.reset(seed=7)
    generator = np.random.default_rng(0)
    for step in range(25):
        assert obs.agents[0].tolist() == [*seen["speaker_0"].tolist(), *[0.0] * 8]
        assert obs.agents[1].tolist() == seen["listener_0"].tolist()
        assert obs.state.tolist() == plain.state().tolist()
        assert obs.action_mask.sum(axis=1).tolist() == [3, 5]
        action = np.array([generator.integers(3), generator.integers(5)])
        given = bridge.step(action)
        seen, rewards, _, _, _ = plain.step(dict(zip(spec.agents, action.tolist(), strict=True)))
        assert given.reward.tolist() == [np.float32(reward) for reward in rewards.values()]
        assert (given.terminated, given.truncated) == (False, step == 24)
        obs = given.obs
    assert obs.alive.all()  # cut off, not dead: the last observation is there to be valued
    assert obs.agents[1].tolist() == seen["listener_0"].tolist()


def test_max_steps_below_the_environments_own_limit_truncates():
    bridge = make_pettingzoo(MODULES[0], max_steps=3)
    assert bridge.spec.max_steps == 3
    bridge.reset(0)
    steps = [bridge.step(np.zeros(3, dtype=np.int64)) for _ in range(3)]
    assert [step.truncated for step in steps] == [False, False, True]
    assert steps[-1].obs.alive.all()
    assert steps[-1].obs.agents.any(axis=1).all()
    assert make_pettingzoo(MODULES[0], max_steps=99).spec.max_steps == 25


class Scripted(ParallelEnv):
    """Agents leave at given steps, in a given way; every agent observes its own space's kind of count."""

    def __init__(self, ends, observation=None, action=None, masks=False):
        self.metadata = {"name": "scripted"}
        self.ends = ends
        self.possible_agents = list(ends)
        self.agents = []
        self.spaces = dict.fromkeys(ends, spaces.Box(0, 9, (1,), np.float32)) | (observation or {})
        self.actions = dict.fromkeys(ends, spaces.Discrete(2)) | (action or {})
        self.masks = masks
        self.received = []

    def observation_space(self, agent):
        if self.masks:
            return spaces.Dict({"observation": self.spaces[agent], "action_mask": spaces.Box(0, 1, (2,), np.int8)})
        return self.spaces[agent]

    def action_space(self, agent):
        return self.actions[agent]

    def observe(self, agents):
        seen = {}
        for agent in agents:
            space = self.spaces[agent]
            kind = isinstance(space, spaces.Box)
            value = np.full(space.shape, self.time + 1, space.dtype) if kind else space.dtype.type(self.time % space.n)
            seen[agent] = {"observation": value, "action_mask": np.array([0, 1], np.int8)} if self.masks else value
        return seen

    def reset(self, seed=None, options=None):  # noqa: ARG002
        self.time, self.agents = 0, self.possible_agents[:]
        return self.observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.received.append(actions)
        self.time += 1
        acted = self.agents
        gone = {agent: self.ends[agent][1] for agent in acted if self.ends[agent][0] == self.time}
        self.agents = [agent for agent in acted if agent not in gone]
        return (
            self.observe(acted),
            dict.fromkeys(acted, 1.0),
            {agent: gone.get(agent) == "terminated" for agent in acted},
            {agent: gone.get(agent) == "truncated" for agent in acted},
            {agent: {"time": self.time, "words": "no number", "flag": True} for agent in acted},
        )


ENDINGS = [
    # how a and b leave, the episode's length, whether it is truncated, who is alive in its last observation
    ({"a": (2, "terminated"), "b": (2, "terminated")}, 2, False, [False, False]),
    ({"a": (2, "truncated"), "b": (2, "truncated")}, 2, True, [True, True]),
    ({"a": (2, "terminated"), "b": (2, "truncated")}, 2, True, [False, True]),
    ({"a": (1, "terminated"), "b": (3, "truncated")}, 3, True, [False, True]),
    ({"a": (1, "truncated"), "b": (3, "terminated")}, 3, False, [False, False]),
]


@pytest.mark.parametrize(("ends", "length", "truncated", "alive"), ENDINGS)
def test_ends_of_agents_make_the_end_of_the_episode(ends, length, truncated, alive):
    bridge = ParallelBridge(Scripted(ends))
    bridge.reset()
    steps = [bridge.step(np.zeros(2, dtype=np.int64)) for _ in range(length)]
    assert not any(step.terminated or step.truncated for step in steps[:-1])
    assert (steps[-1].terminated, steps[-1].truncated) == (not truncated, truncated)
    assert steps[-1].obs.alive.tolist() == alive
    assert steps[-1].obs.agents[:, 0].tolist() == [(length + 1.0) * one for one in alive]
    with pytest.raises(RuntimeError, match="call reset first"):
        bridge.step(np.zeros(2, dtype=np.int64))


class Judged(Scripted):
    """Each agent's info says in its last step whether it has succeeded: `a` has, `b` has not."""

    def step(self, actions):
        *rest, infos = super().step(actions)
        return *rest, {
            agent: info | {"success": agent == "a"} for agent, info in infos.items() if agent not in self.agents
        }


def test_success_of_agents_is_that_of_the_team():
    bridge = ParallelBridge(Judged({"a": (1, "terminated"), "b": (3, "terminated")}))
    for _ in range(2):
        bridge.reset()
        infos = [bridge.step(np.zeros(2, dtype=np.int64)).info for _ in range(3)]
        assert [info["success"] for info in infos] == [1.0, 1.0, 0.5]
        assert infos[-1]["b/success"] == 0.0
    silent = ParallelBridge(Scripted({"a": (1, "terminated")}))
    silent.reset()
    assert "success" not in silent.step(np.zeros(1, dtype=np.int64)).info


def test_an_agent_that_leaves_is_dead_and_no_longer_asked():
    env = Scripted({"a": (1, "terminated"), "b": (3, "terminated")})
    bridge = ParallelBridge(env)
    bridge.reset()
    first, second = (bridge.step(np.array([1, 1])) for _ in range(2))
    assert first.reward.tolist() == [1, 1]
    assert first.obs.alive.tolist() == [False, True]
    assert first.obs.agents[:, 0].tolist() == [0, 2]
    assert first.obs.action_mask.tolist() == [[True, False], [True, True]]
    assert second.reward.tolist() == [0, 1]
    assert env.received == [{"a": 1, "b": 1}, {"b": 1}]


def test_dropped_without_a_flag_is_dead_too():
    class Dropping(Scripted):
        def step(self, actions):
            observations, rewards, terminations, truncations, infos = super().step(actions)
            return observations, rewards, dict.fromkeys(terminations, False), truncations, infos

    bridge = ParallelBridge(Dropping({"a": (1, "terminated"), "b": (2, "terminated")}))
    bridge.reset()
    steps = [bridge.step(np.zeros(2, dtype=np.int64)) for _ in range(2)]
    assert steps[0].obs.alive.tolist() == [False, True]
    assert (steps[1].terminated, steps[1].truncated) == (True, False)


def test_images_and_categories_become_padded_vectors_within_bounds():
    kinds = {"a": spaces.Box(0, 255, (2, 2, 3), np.uint8), "b": spaces.Discrete(5)}
    actions = {"a": spaces.Discrete(3, start=4), "b": spaces.Discrete(2)}
    env = Scripted({"a": (2, "truncated"), "b": (2, "truncated")}, kinds, actions)
    bridge = ParallelBridge(env, max_steps=2)
    assert bridge.spec.observation_sizes == (12, 5)
    assert bridge.spec.action_sizes == (3, 2)
    obs = bridge.reset()
    assert obs.agents[0].tolist() == [1] * 12
    assert obs.agents[1].tolist() == [1, 0, 0, 0, 0] + [0] * 7
    step = bridge.step(np.array([2, 1]))
    assert env.received == [{"a": 6, "b": 1}]
    assert step.obs.agents[1].tolist() == [0, 1, 0, 0, 0] + [0] * 7
    assert step.info == {"a/time": 1, "a/flag": 1, "b/time": 1, "b/flag": 1}
    check_env(bridge)


def test_action_masks_are_understood_beside_the_observation_and_in_the_info():
    class InInfo(Scripted):
        def reset(self, seed=None, options=None):
            observations, _ = super().reset(seed, options)
            return observations, {agent: {"action_mask": np.array([0, 1], np.int8)} for agent in self.agents}

    ends = {"a": (1, "truncated")}
    for env in (Scripted(ends, masks=True), InInfo(ends)):
        bridge = ParallelBridge(env)
        assert bridge.spec.observation_size == 1
        assert bridge.reset().action_mask.tolist() == [[False, True]]


def test_continuous_actions_of_unequal_width_are_cut_and_clipped():
    wide, narrow = spaces.Box(-2, 2, (3,), np.float32), spaces.Box(0, 1, (1, 2), np.float64)
    env = Scripted({"a": (1, "truncated"), "b": (1, "truncated")}, action={"a": wide, "b": narrow})
    bridge = ParallelBridge(env)
    assert bridge.spec.action_sizes == (3, 2)
    obs = bridge.reset()
    assert obs.action_mask.tolist() == [[True, True, True], [True, True, False]]
    bridge.step(np.array([[-1.5, 5, 0], [-1, 0.25, 9]], dtype=np.float32))
    assert env.received[0]["a"].tolist() == [-1.5, 2, 0]
    assert env.received[0]["b"].tolist() == [[0, 0.25]]
    assert env.received[0]["b"].dtype == np.float64


def test_a_team_may_choose_and_steer():
    """Some agents in Discrete spaces, some in Box spaces, of unequal sizes; and back through our view of it."""
    actions = {"switch_1": spaces.Discrete(4, start=3), "dial_1": spaces.Box(-2, 2, (1, 2), np.float64)}
    actions |= {"dial_2": spaces.Box(0, 1, (0,), np.float32)}
    env = Scripted(dict.fromkeys(actions, (2, "truncated")), action=actions)
    bridge = ParallelBridge(env)
    spec = bridge.spec
    assert (spec.mixed, spec.discrete, spec.continuous) == (True, False, False)
    assert spec.action_sizes == (4, 2, 1)
    assert spec.agent_types == ("switch", "dial_1", "dial_2")
    obs = bridge.reset()
    assert obs.action_mask.sum(1).tolist() == [4, 2, 1]
    bridge.step(np.array([[2, 0, 0, 0], [9, 0.25, 0, 0], [1, 1, 1, 1]], dtype=np.float32))
    assert env.received[0]["switch_1"] == 5
    assert env.received[0]["dial_1"].tolist() == [[2, 0.25]]
    assert env.received[0]["dial_2"].shape == (0,)
    check_env(lambda: ParallelBridge(Scripted(dict.fromkeys(actions, (2, "truncated")), action=actions)))
    view = as_parallel_env(toy.make("mixed"))
    assert [type(view.action_space(agent)).__name__ for agent in view.possible_agents] == ["Discrete", "Box"] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": {"b": spaces.MultiDiscrete([2, 2])}}, "actions MultiDiscrete.* not supported; supported: Discrete"),
        ({"action": {"b": spaces.Box(0, 3, (2,), np.int64)}}, "supported: Discrete, and Box of a float type"),
        ({"observation": {"b": spaces.Text(5)}}, "observations Text.* not supported"),
        ({"observation": {"b": spaces.Sequence(spaces.Discrete(2))}}, "observations Sequence.* not supported"),
    ],
)
def test_spaces_without_a_form_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ParallelBridge(Scripted({"a": (1, "truncated"), "b": (1, "truncated")}, **changes))


def test_an_agent_cut_off_alone_is_valued_from_what_it_saw_last():
    env = Scripted({"a": (1, "truncated"), "b": (2, "terminated"), "c": (3, "truncated")}, masks=True)
    bridge = ParallelBridge(env)
    check_env(lambda: ParallelBridge(Scripted(env.ends, masks=True)))
    bridge.reset()
    first, second, third = (bridge.step(np.ones(3, np.int64)) for _ in range(3))
    assert first.agent_truncated.tolist() == [True, False, False]
    assert (first.obs.alive.tolist(), first.final.alive.tolist()) == ([False, True, True], [True] * 3)
    assert (first.obs.agents[:, 0].tolist(), first.final.agents[:, 0].tolist()) == ([0, 2, 2], [2, 2, 2])
    assert first.final.action_mask[0].tolist() == [False, True]
    assert (second.agent_truncated, second.final) == (None, None)  # a death
    assert (third.truncated, third.agent_truncated, third.final) == (True, None, None)
    assert third.obs.alive.tolist() == [False, False, True]


def test_a_cut_agent_without_a_last_observation_is_named():
    class Leaves(Scripted):
        def step(self, actions):
            observations, *rest = super().step(actions)
            return {agent: observations[agent] for agent in self.agents}, *rest

    bridge = ParallelBridge(Leaves({"a": (1, "truncated"), "b": (2, "terminated")}))
    bridge.reset()
    with pytest.raises(EnvironmentContractError, match="no observation to the agent 'a', which acts or was truncated"):
        bridge.step(np.zeros(2, np.int64))


def test_cut_agents_pass_to_pettingzoo_and_back():
    ends = {"a": (1, "truncated"), "b": (2, "terminated"), "c": (3, "truncated")}
    plain, view = Scripted(ends), as_parallel_env(ParallelBridge(Scripted(ends)))
    plain.reset()
    view.reset()
    while plain.agents:
        actions = dict.fromkeys(plain.agents, 0)
        seen, rewards, *flags, _ = plain.step(actions)
        observations, reward, *own, _ = view.step(actions)
        assert (reward, own) == (rewards, flags)
        for agent, value in seen.items():
            left = value.tolist() if not flags[0][agent] else [0.0]  # our dead see zeros
            assert observations[agent]["observation"].tolist() == left
    assert not view.agents


@pytest.mark.parametrize(("bounds", "expected"), [("ignore", 1.5), ("clip", 1.0), ("error", 1.5)])
def test_what_somebody_elses_environment_shows_outside_its_space(bounds, expected):
    class Wide(gymnasium.Env):
        observation_space, action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed, options=options)
            return np.array([1.5], np.float32), {}

        def step(self, action):  # noqa: ARG002
            return np.array([1.5], np.float32), 0.0, True, False, {"huge": 10**400, "small": 1}

    env = with_bounds(GymnasiumBridge(Wide()), bounds)
    assert env.reset().agents.tolist() == [[expected]]
    step = env.step(np.zeros(1, np.int64))
    assert (step.obs.agents.tolist(), step.info) == ([[expected]], {"small": 1.0})
    if bounds == "error":
        with pytest.raises(EnvironmentContractError, match="the space's bounds"):
            check_env(lambda: env)
    else:
        check_env(lambda: with_bounds(GymnasiumBridge(Wide()), bounds))
    with pytest.raises(ConfigError, match="bounds='none'; give one of ignore, clip, error"):
        make_gymnasium("CartPole-v1", bounds="none")


def test_agents_must_be_known_and_observed():
    nobody = Scripted({})
    with pytest.raises(ConfigError, match="no `possible_agents`"):
        ParallelBridge(nobody)

    class Silent(Scripted):
        def observe(self, agents):
            return dict.fromkeys(agents[1:])

    with pytest.raises(EnvironmentContractError, match="no observation to the agent 'a', which acts or was truncated"):
        ParallelBridge(Silent({"a": (2, "truncated")})).reset()


class Turns(AECEnv):
    """Two agents bid in turns; the round is paid when both have bid."""

    render_mode = None

    def __init__(self, rounds=3, parallelizable=True):
        super().__init__()
        self.metadata = {"name": "turns", "is_parallelizable": parallelizable}
        self.max_cycles = rounds
        self.possible_agents = ["first", "second"]
        self._spaces = {
            agent: (spaces.Box(0, 9, (2,), np.float32), spaces.Discrete(3)) for agent in ("first", "second")
        }

    def observation_space(self, agent):
        return self._spaces[agent][0]

    def action_space(self, agent):
        return self._spaces[agent][1]

    def observe(self, agent):
        return np.array([self.round, agent == "first"], dtype=np.float32)

    def reset(self, seed=None, options=None):  # noqa: ARG002
        self.agents, self.round, self.bids = self.possible_agents[:], 0, []
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: {} for agent in self.agents}
        self._order = AgentSelector(self.agents)
        self.agent_selection = self._order.next()

    def step(self, action):
        if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
            self._was_dead_step(action)
            return
        self.bids.append(int(action))
        self._clear_rewards()
        if self._order.is_last():
            self.rewards = {"first": float(self.bids[0] - self.bids[1]), "second": float(self.bids[1] - self.bids[0])}
            self.bids, self.round = [], self.round + 1
            self.truncations = dict.fromkeys(self.agents, self.round == self.max_cycles)
        self.agent_selection = self._order.next()


def test_a_turn_based_environment_comes_through_pettingzoos_converter(monkeypatch):
    module = ModuleType("turns_v0")
    module.env = Turns
    monkeypatch.setitem(sys.modules, "turns_v0", module)
    check_env(EnvFactory("pettingzoo:turns_v0"))
    for bridge in (ParallelBridge.from_aec(Turns(2)), make_pettingzoo("turns_v0", {"rounds": 2})):
        assert bridge.spec.max_steps == 2
        assert bridge.reset().agents.tolist() == [[0, 1], [0, 0]]
        step = bridge.step(np.array([2, 0]))
        assert step.reward.tolist() == [2, -2]
        assert bridge.step(np.array([0, 1])).truncated


def test_turns_that_cannot_be_parallel_are_refused():
    with pytest.raises(ConfigError, match=r"turns: its agents act in turns.*is_parallelizable"):
        ParallelBridge.from_aec(Turns(parallelizable=False))


def test_modules_that_hold_nothing_are_named():
    with pytest.raises(MissingDependencyError, match=r"needs the module 'no_such.thing_v3'.*that holds 'no_such'"):
        make_pettingzoo("no_such.thing_v3")
    with pytest.raises(ConfigError, match="'json' has neither `parallel_env` nor `env`"):
        make_pettingzoo("json")
    with pytest.raises(ConfigError, match=r"'mpe2' has neither .* such as one of \[.*'simple_spread_v3'.*\] in it"):
        make_pettingzoo("mpe2")
    with pytest.raises(ConfigError, match=r"cannot be made with {'color': 'red'}"):
        make_pettingzoo(MODULES[0], {"color": "red"})


def test_frames_are_shown_only_with_a_render_mode():
    silent = make_pettingzoo(MODULES[0])
    silent.reset(0)
    assert silent.render() is None
    shown = make_pettingzoo(MODULES[0], {"render_mode": "rgb_array"})
    shown.reset(0)
    frame = shown.render()
    assert frame.shape == (700, 700, 3)
    assert frame.dtype == np.uint8


def test_a_bridge_has_no_state():
    for bridge in (make_pettingzoo(MODULES[0]), make_gymnasium("CartPole-v1")):
        assert bridge.get_state() is None
        with pytest.raises(RuntimeError, match="cannot restore a state"):
            bridge.set_state({})


GAMES = [*((task, {}) for task in toy.TASKS), ("continuous", {"unequal": True}), ("agent_death", {"individual": True})]


@pytest.mark.parametrize(("task", "options"), GAMES)
@pytest.mark.filterwarnings("error")
def test_our_environments_pass_pettingzoos_own_test(task, options, capsys):
    parallel_api_test(as_parallel_env(toy.make(task, **options)), num_cycles=30)
    assert "Passed" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "options"), GAMES)
def test_there_and_back_again(task, options):
    """The bridge around our own view gives the environment that went in, but for the team's single reward."""
    plain = toy.make(task, **options)
    back = ParallelBridge(as_parallel_env(toy.make(task, **options)), max_steps=plain.spec.max_steps)
    check_env(lambda: ParallelBridge(as_parallel_env(toy.make(task, **options)), max_steps=plain.spec.max_steps))
    expected, obs = plain.reset(3), back.reset(3)
    generator = np.random.default_rng(0)
    ended = False
    while not ended:
        assert np.array_equal(expected.agents, obs.agents)
        assert np.array_equal(expected.alive, obs.alive)
        assert expected.action_mask is None or np.array_equal(expected.action_mask, obs.action_mask)
        assert (expected.state is None and obs.state is None) or np.array_equal(expected.state, obs.state)
        action = random_action(plain.spec, obs, generator)
        one, other = plain.step(action), back.step(action)
        assert np.array_equal(one.reward[expected.alive], other.reward[expected.alive])
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)
        expected, obs, ended = one.obs, other.obs, one.terminated or one.truncated


def test_text_has_no_pettingzoo_view():
    class Talk:
        spec = EnvSpec("talk", ("a",), spaces.Text(9), spaces.Text(9), 1)

    with pytest.raises(ConfigError, match="talk: text has no PettingZoo view"):
        as_parallel_env(Talk())


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"])
def test_gymnasium_environments_keep_the_contract(name):
    check_env(EnvFactory(f"gymnasium:{name}", {"max_steps": 12}), episodes=4)


def test_gymnasium_environments_keep_the_contract_in_a_vector():
    make = EnvFactory("gymnasium:CartPole-v1", {"max_steps": 15})  # ends of both kinds, at different times
    check_vector_env(lambda: SyncVector([make] * 3), [1, 2, 3], make, steps=60)


def test_nothing_is_lost_on_the_way_from_gymnasium():
    bridge, plain = make_gymnasium("CartPole-v1"), gymnasium.make("CartPole-v1")
    assert bridge.spec.max_steps == 500
    assert bridge.reset(5).agents[0].tolist() == plain.reset(seed=5)[0].tolist()
    ended = False
    while not ended:
        step = bridge.step(np.array([1]))
        observation, reward, terminated, truncated, _ = plain.step(1)
        assert step.obs.agents[0].tolist() == observation.tolist()
        assert step.reward.tolist() == [reward]
        assert (step.terminated, step.truncated) == (terminated, truncated)
        ended = terminated
    with pytest.raises(RuntimeError, match="call reset first"):
        bridge.step(np.array([1]))


def test_gymnasium_limit_mask_and_categories():
    bridge = make_gymnasium("FrozenLake-v1", {"is_slippery": False}, max_steps=3)
    assert bridge.reset(0).agents.tolist() == [[1.0] + [0.0] * 15]
    steps = [bridge.step(np.array([0])) for _ in range(3)]
    assert [(step.terminated, step.truncated) for step in steps] == [(False, False)] * 2 + [(False, True)]
    assert steps[0].info["prob"] == 1
    taxi = make_gymnasium("Taxi-v4")
    _, info = taxi.env.env.reset(seed=1)
    assert taxi.reset(1).action_mask.tolist() == [info["action_mask"].astype(bool).tolist()]


class Odd(gymnasium.Env):
    """Ends and is cut off in the same step; keeps the actions it gets."""

    observation_space = spaces.Dict({"position": spaces.Box(-1e300, 1e300, (2,), np.float64), "on": spaces.Discrete(2)})

    def __init__(self, action_space):
        self.action_space = action_space
        self.received = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed, options=options)
        return {"position": np.array([0.5, -0.5]), "on": 1}, {}

    def step(self, action):
        self.received.append(action)
        return {"position": np.array([1.5, 0.0]), "on": 0}, 2, np.True_, True, {"text": "x", "number": np.float64(3)}


def test_an_end_is_an_end_even_at_the_limit():
    env = Odd(spaces.Discrete(3, start=-1))
    bridge = GymnasiumBridge(env)
    assert bridge.reset().agents.tolist() == [[0.0, 1.0, 0.5, -0.5]]
    step = bridge.step(np.array([2]))
    assert (step.terminated, step.truncated) == (True, False)
    assert type(step.terminated) is bool
    assert env.received == [1]
    assert step.info == {"number": 3.0}
    assert step.obs.agents.tolist() == [[1.0, 0.0, 1.5, 0.0]]
    assert bridge.spec.max_steps is None


def test_gymnasium_actions_are_clipped_and_shaped():
    env = Odd(spaces.Box(-1, np.array([[1, 2]]), (1, 2), np.float64))
    bridge = GymnasiumBridge(env)
    bridge.reset()
    bridge.step(np.array([[-3.0, 5.0]], dtype=np.float32))
    assert env.received[0].tolist() == [[-1, 2]]


def test_gymnasium_errors_are_named():
    with pytest.raises(ConfigError, match="cannot make 'NoSuchThing-v0'"):
        make_gymnasium("NoSuchThing-v0")
    with pytest.raises(ConfigError, match=r"cannot make 'CartPole-v1' with {'color': 1}"):
        make_gymnasium("CartPole-v1", {"color": 1})
    with pytest.raises(ConfigError, match=r"actions MultiDiscrete.*supported: Discrete"):
        GymnasiumBridge(Odd(spaces.MultiDiscrete([2, 2])))
