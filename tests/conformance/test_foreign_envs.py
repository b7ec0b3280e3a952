"""Environments of other packages run as they are, or say what to change."""

import sys
import warnings
from types import ModuleType

import gymnasium
import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces

from marl.envs.gymnasium import GymnasiumBridge, bridge_gymnasium
from marl.envs.gymnasium import make as make_gymnasium
from marl.envs.pettingzoo import ParallelBridge
from marl.envs.pettingzoo import make as make_pettingzoo
from marl.envs.testing import check_env
from marl.errors import ConfigError, EnvironmentContractError, MissingDependencyError, UnknownNameError
from marl.registry import EnvFactory
from marl.vector import SyncVector
from tests.support import foreign
from tests.support.foreign import Foraging, Grid, Walkers

HERE = "tests.support.foreign"


def test_a_gymnasium_team_in_tuple_spaces_is_a_team():
    make = EnvFactory(f"gymnasium:{HERE}:Foraging-v0")
    assert any("max_steps=4 was kept" in line for line in check_env(make))
    env = make()
    spec = env.spec
    assert (spec.name, spec.agents, spec.max_steps) == ("gymnasium:Foraging-v0", ("agent_0", "agent_1"), 4)
    assert (spec.observation_sizes, spec.action_sizes, spec.team_reward) == ((2, 4), (3, 2), False)
    assert env.reset(0).agents.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    step = env.step(np.array([2, 1]))
    assert env.env.env.env.unwrapped.received == [(2, 6)]
    assert step.reward.tolist() == [1, -0.5]
    assert step.obs.agents.tolist() == [[1, 1, 0, 0], [2, 2, 2, 2]]
    assert step.obs.action_mask.tolist() == [[True] * 3, [True, True, False]]
    assert make_gymnasium(f"{HERE}:Foraging-v0", max_steps=3).spec.max_steps == 3


class Warehouse(Foraging):
    """A team that reports its own step limit as termination, as RWARE does, and may truly end at `end`."""

    def __init__(self, end=None):
        super().__init__()
        self.end = end

    def step(self, action):
        observation, reward, _, at_limit, info = super().step(action)
        return observation, reward, at_limit or self.time == self.end, False, info


@pytest.mark.parametrize(("end", "expected"), [(None, (4, False, True)), (3, (3, True, False))])
def test_an_own_limit_that_is_reported_as_termination_is_truncation(end, expected):
    env = bridge_gymnasium(Warehouse(end))
    for _ in range(2):
        env.reset()
        steps = [env.step(np.array([1, 1]))]
        while not (steps[-1].terminated or steps[-1].truncated):
            steps.append(env.step(np.array([1, 1])))
        assert (len(steps), steps[-1].terminated, steps[-1].truncated) == expected
    assert steps[-1].obs.alive.tolist() == [end is None] * 2


def test_a_gymnasium_team_may_be_named_by_dict_spaces():
    env = bridge_gymnasium(Foraging("dict"))
    assert env.spec.agents == ("ant", "bee")
    env.reset()
    assert env.step(np.array([1, 0])).reward.tolist() == [1, -0.5]
    assert env.env.env.received == [{"ant": 1, "bee": 5}]


def test_infos_masks_and_single_rewards_of_a_gymnasium_team():
    info = {"agent_1": {"score": np.array(3.0, np.float32)}, "level": 2, "action_mask": [[1, 0, 0], [0, 1]]}
    env = bridge_gymnasium(Foraging(reward=2.0, info=info))
    assert env.reset().action_mask.tolist() == [[True, False, False], [False, True, False]]
    step = env.step(np.array([0, 1]))
    assert step.reward.tolist() == [2, 2]
    assert step.info == {"agent_1/score": 3, "level": 2}


def test_agents_of_a_gymnasium_team_may_end_alone():
    env = bridge_gymnasium(Foraging(ends=[True, False]))
    env.reset()
    steps = [env.step(np.array([1, 1])) for _ in range(4)]
    assert [step.obs.alive.tolist() for step in steps] == [[True, True], [False, True], [False, True], [False, True]]
    assert [(step.terminated, step.truncated) for step in steps[2:]] == [(False, False), (False, True)]
    assert env.env.env.received[3] == (0, 6)  # something stands for the one that has left


def test_a_gymnasium_team_needs_one_reward_for_each_agent():
    env = bridge_gymnasium(Foraging(reward=[1, 2, 3]))
    env.reset()
    with pytest.raises(EnvironmentContractError, match=r"rewards are \[1, 2, 3\]; give one for each of the agents"):
        env.step(np.array([0, 0]))


@pytest.mark.parametrize("place", ["observation", "info"])
def test_gymnasium_action_masks_are_used_and_no_part_of_the_observation(place):
    env = GymnasiumBridge(Grid(place))
    assert env.spec.observation_size == 4
    obs = env.reset(0)
    assert obs.action_mask.tolist() == [[False, True, False]]
    steps = [env.step(np.array([1])) for _ in range(3)]
    assert steps[0].obs.agents.tolist() == [[1, 1, 1, 1]]
    assert steps[0].obs.action_mask.tolist() == [[False, True, True]]
    assert steps[2].obs.action_mask.tolist() == [[True, False, False]]  # the game is over: no action is left
    check_env(lambda: GymnasiumBridge(Grid(place)))


def test_an_action_mask_that_is_lost_is_told():
    env = GymnasiumBridge(Grid("reset"))
    env.reset()
    with pytest.raises(EnvironmentContractError, match="`action_mask` in reset and none in step"):
        env.step(np.array([1]))


def test_an_action_mask_of_another_size_is_told():
    class Short(Grid):
        def _observe(self):
            observation, _ = super()._observe()
            return observation, {"action_mask": [1]}

    with pytest.raises(EnvironmentContractError, match=r"shape \(1,\); give one entry for each of the 3 actions"):
        GymnasiumBridge(Short("info")).reset()


def test_text_in_an_observation_is_left_out_when_asked():
    with pytest.raises(ConfigError, match=r"'mission' \(MissionSpace\).*`--ignore mission`.*\['direction', 'image'\]"):
        GymnasiumBridge(Grid())
    env = GymnasiumBridge(Grid(), ignore=("mission",))
    assert env.reset().agents.tolist() == [[0, 0, 0, 1] + [0] * 12]
    check_env(lambda: GymnasiumBridge(Grid(), ignore=("mission",)))
    with pytest.raises(UnknownNameError, match="did you mean 'mission'"):
        GymnasiumBridge(Grid(), ignore=("missions",))
    with pytest.raises(ConfigError, match="nothing is left"):
        GymnasiumBridge(Grid(), ignore=("mission", "image", "direction"))
    with pytest.raises(ConfigError, match=r"but Box.* is not a Dict"):
        make_gymnasium("CartPole-v1", ignore=("mission",))


def test_an_observation_outside_its_declared_space_is_told():
    class Wrong(Foraging):
        def _observe(self):
            return (np.zeros(2), None) if self._form == "tuple" else {}

    with pytest.raises(EnvironmentContractError, match=r"None is not in the declared space Box"):
        bridge_gymnasium(Wrong()).reset()
    lacking = Grid()
    lacking._observe = lambda: ({"image": 0, "mission": ""}, {})
    with pytest.raises(EnvironmentContractError, match="is not in the declared space Dict"):
        GymnasiumBridge(lacking, ignore=("mission",)).reset()


class Declares(gymnasium.Env):
    def __init__(self, action=None, observation=None):
        self.action_space, self.observation_space = action, observation


BOX = spaces.Box(0, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("action", "observation", "message"),
    [
        (
            spaces.MultiDiscrete([3, 2], start=[1, 0]),
            BOX,
            r"unravel_index\(action, \[3, 2\]\)\) \+ \[1, 0\].*Discrete\(6\)",
        ),
        (spaces.MultiBinary(3), BOX, r"unravel_index\(action, \[2, 2, 2\]\)\), gymnasium.spaces.Discrete\(8\)"),
        (spaces.Box(0, 3, (2,), np.int64), BOX, r"np.round\(action\).astype\(int64\)"),
        (spaces.Tuple([BOX, BOX]), BOX, "team's if the observation space is one too"),
        (
            spaces.Tuple([spaces.MultiDiscrete([5, 2])] * 2),
            spaces.Tuple([BOX, BOX]),
            r"agent 'agent_0': .*declare gymnasium.spaces.Discrete\(10\) for each agent, and convert in `step`: np",
        ),
        (spaces.Text(3), BOX, "Convert from a supported space"),
        (spaces.Discrete(2), None, "declares no `observation_space`"),
        (None, BOX, "declares no `action_space`"),
        (spaces.Discrete(2), [0, 1], r"`observation_space` is \[0, 1\] \(builtins.list\), not a Gymnasium space"),
    ],
)
def test_spaces_that_cannot_be_used_say_what_helps(action, observation, message):
    with pytest.raises(ConfigError, match=message):
        bridge_gymnasium(Declares(action, observation))


def test_the_combinations_of_a_multi_discrete_space_are_numbered_as_the_message_says():
    space = spaces.MultiDiscrete([3, 2], start=[1, 0])
    with pytest.raises(ConfigError) as caught:
        bridge_gymnasium(Declares(space, BOX))
    line = str(caught.value).partition("combinations: ")[2]
    wrapped = eval(line, {"gymnasium": gymnasium, "np": np, "env": Declares(space, BOX)})
    found = {tuple(wrapped.action(index)) for index in range(wrapped.action_space.n)}
    assert found == {(i, j) for i in (1, 2, 3) for j in (0, 1)}
    assert all(np.array(pair) in space for pair in found)


def test_spaces_of_the_old_gym_package_are_understood():
    def old(kind, **fields):
        return type(kind, (), {"__module__": f"gym.spaces.{kind.lower()}", **fields})()

    box = old("Box", low=np.zeros(2, np.float32), high=np.ones(2, np.float32), dtype=np.float32)
    env = bridge_gymnasium(Declares(old("Discrete", n=3), old("Dict", spaces={"a": box, "b": old("MultiBinary", n=2)})))
    assert (env.spec.observation_size, env.spec.action_size) == (4, 3)
    team = bridge_gymnasium(Declares(*(old("Tuple", spaces=[each, each]) for each in (box, box))))
    assert (team.spec.num_agents, team.spec.continuous) == (2, True)
    with pytest.raises(ConfigError, match=r"gym.spaces.graph.Graph\), not a Gymnasium space"):
        bridge_gymnasium(Declares(box, old("Graph")))


def test_pettingzoo_spaces_must_be_declared():
    class Undeclared(Walkers):
        def action_space(self, agent):
            return {}[agent]

    with pytest.raises(ConfigError, match=r"no action space for agent 'walker_0' \(KeyError.*`action_space\(agent\)`"):
        ParallelBridge(Undeclared())


def test_an_environment_that_has_no_state_at_its_end_runs():
    check_env(Walkers)
    env = ParallelBridge(Walkers())
    env.reset()
    states = [env.step(np.zeros(2, np.int64)).obs.state.tolist() for _ in range(3)]
    assert states == [[1] * 3, [2] * 3, [2] * 3]


def test_a_state_that_fails_in_an_episode_can_be_left_out():
    env = ParallelBridge(Walkers(breaks_at=1))
    env.reset()
    with pytest.raises(EnvironmentContractError, match=r"`state\(\)` failed \(AttributeError.*--no-state"):
        env.step(np.zeros(2, np.int64))
    assert ParallelBridge(Walkers(breaks_at=0), use_state=False).spec.state_space is None


@pytest.mark.parametrize("factory", ["cartpole", "team", "walkers", "turns"])
def test_factories_may_return_environments_of_other_libraries(factory):
    make = EnvFactory(f"{HERE}:{factory}")
    assert make().spec.name == f"{HERE}:{factory}"
    check_env(make)


def test_registered_factories_and_the_checker_take_them_too():
    assert EnvFactory("foreign/walkers")().spec.agents == ("walker_0", "walker_1")
    check_env(foreign.cartpole)
    check_env(foreign.cartpole())


def test_what_is_no_single_environment_is_refused():
    for factory, message in (
        ("nothing", "returned None, which is not an environment; return a `marl.protocols.Env`"),
        ("batch", r"returned a batch of environments \(SyncVectorEnv\); return a single one"),
        ("HERE", "cannot import environment 'tests.support.foreign:HERE'"),
    ):
        with pytest.raises(ConfigError, match=message):
            EnvFactory(f"{HERE}:{factory}")()
    for package, message in (("gym", "GymV26Environment-v0"), ("vmas", "wrapper='gymnasium'")):
        foreigner = type("Env", (), {"__module__": f"{package}.core"})()
        with pytest.raises(ConfigError, match=message):
            check_env(foreigner)


def test_wrong_keyword_arguments_of_a_factory_are_named():
    make = EnvFactory(f"{HERE}:walkers", {"kwargs": {"color": 1}})
    with pytest.raises(ConfigError, match=r"kwargs={'color': 1}: .*'color'.*signature is \(breaks_at=3\)"):
        make()
    with pytest.raises(ConfigError, match=r"simple_tag_v3: cannot be made with {'num_good': 'x'}: \w+Error"):
        make_pettingzoo("mpe2.simple_tag_v3", {"num_good": "x"})
    with pytest.raises(ConfigError, match=r"with {'render_mode': 'x', 'natural': 1}: \w+"):
        make_gymnasium("Blackjack-v1", {"render_mode": "x", "natural": 1})


def test_pettingzoos_own_registry_is_a_way_in():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # registered twice where the test is repeated
        pettingzoo.register("parallel", "tests/walkers_v1", entry_point=Walkers)
    assert make_pettingzoo("tests/walkers_v1", {"breaks_at": 2}).spec.agents == ("walker_0", "walker_1")
    assert make_pettingzoo(f"{HERE}:classic/rps_v2").spec.num_agents == 2
    with pytest.raises(UnknownNameError, match=r"did you mean 'tests/walkers-v1'.*pettingzoo:PACKAGE:tests/walker-v1"):
        make_pettingzoo("tests/walker-v1")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "mpe2.simple_spread_v2",
            r"'mpe2' has no environment 'simple_spread_v2'; .*mean mpe2.simple_spread_v3\?",
        ),
        ("mpe2.simpel_tag_v3", r"did you mean mpe2.simple_tag_v3"),
        ("pettingzoo.sisl.zzz", r"it has: \['multiwalker_v9', 'pursuit_v5'\]"),
        ("simple_spread_v3", r"no module 'simple_spread_v3'; did you mean mpe2.simple_spread_v3\?"),
        ("pistonball_v5", r"did you mean pettingzoo.butterfly.pistonball_v6\?"),
    ],
)
def test_wrong_names_of_modules_list_what_there_is(module, message):
    with pytest.raises(UnknownNameError, match=message):
        make_pettingzoo(module)


def test_absent_packages_are_named_with_the_line_that_installs_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("pettingzoo.sisl.multiwalker")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r"multiwalker_v9.*pip install 'pettingzoo\[sisl\]'$"):
        make_pettingzoo("pettingzoo.sisl.multiwalker_v9")
    with pytest.raises(MissingDependencyError, match=r"multiwalker_v9.*pip install 'pettingzoo\[sisl\]'"):
        make_pettingzoo("sisl/multiwalker_v9")
    with pytest.raises(MissingDependencyError, match=r"pip install mpe2.*did you mean mpe2.simple_tag_v3\?"):
        make_pettingzoo("pettingzoo.mpe.simple_tag_v3")

    def late(**kwargs):  # noqa: ARG001
        raise ModuleNotFoundError("No module named 'pygame'", name="pygame")

    module = ModuleType("late_v0")
    module.parallel_env = late
    monkeypatch.setitem(sys.modules, "late_v0", module)
    with pytest.raises(MissingDependencyError, match="install the package that holds 'pygame'"):
        make_pettingzoo("late_v0")
    with pytest.raises(MissingDependencyError, match=r"gymnasium:no_such:Id-v0.*No module named 'no_such'"):
        make_gymnasium("no_such:Id-v0")
    with pytest.raises(ConfigError, match="gymnasium:PACKAGE:NoSuch-v0"):
        make_gymnasium("NoSuch-v0")


def test_a_raw_environment_runs_in_a_vector():
    vector = SyncVector([foreign.team] * 2)
    assert vector.reset([1, 2]).agents.shape == (2, 2, 4)
    assert vector.step(np.zeros((2, 2), np.int64)).reward.tolist() == [[1, -0.5]] * 2
