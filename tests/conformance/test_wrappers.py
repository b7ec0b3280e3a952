"""Wrappers keep the contract, alone and stacked, and do what they say."""

import sys

import numpy as np
import pytest
from gymnasium import spaces

from marl.envs import toy
from marl.envs.testing import check_env, check_vector_env
from marl.envs.wrappers import AgentId, DeathMask, EnvWrapper, EpisodeStatistics, Pad, Record, TimeLimit
from marl.errors import ConfigError, MissingDependencyError
from marl.protocols import Env
from marl.types import EnvSpec, Obs
from marl.vector import SyncVector

WRAPPERS = {
    "EnvWrapper": EnvWrapper,
    "TimeLimit": lambda env: TimeLimit(env, 2),
    "AgentId": AgentId,
    "DeathMask": DeathMask,
    "Pad": lambda env: Pad(env, observation_size=15, action_size=6, num_agents=7),
    "EpisodeStatistics": EpisodeStatistics,
    "two time limits": lambda env: TimeLimit(EpisodeStatistics(TimeLimit(env, 3)), 2),
    "ids outside": lambda env: AgentId(DeathMask(Pad(env, num_agents=6, observation_size=14))),
    "ids inside": lambda env: EpisodeStatistics(TimeLimit(Pad(DeathMask(AgentId(env)), action_size=5), 4)),
}
OPTIONS = {"continuous": {"agents": 3, "unequal": True, "length": 3}, "agent_death": {"individual": True}}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("task", ["climbing", "chain", "copy", "continuous", "agent_death"])
def test_wrapped_environments_keep_the_contract(wrapper, task):
    check_env(lambda: WRAPPERS[wrapper](toy.make(task, **OPTIONS.get(task, {}))))


def test_a_stack_keeps_the_contract_in_a_vector():
    def make():
        return WRAPPERS["ids inside"](toy.make("agent_death"))

    check_vector_env(lambda: SyncVector([make] * 3), [1, 2, 3], make, steps=15)


def test_the_base_changes_nothing():
    env, plain = EnvWrapper(toy.make("copy")), toy.make("copy")
    assert isinstance(env, Env)
    assert env.spec == plain.spec
    assert np.array_equal(env.reset(4).agents, plain.reset(4).agents)
    assert env.render() == plain.render()


def test_time_limit_truncates_where_the_game_goes_on_and_not_where_it_ends():
    env = TimeLimit(toy.make("agent_death"), 3)
    assert env.spec.max_steps == 3
    env.reset(0)
    assert not env.step(np.array([1, 2, 3])).truncated
    env = TimeLimit(toy.make("continuous", length=9), 3)
    for _ in range(2):  # the count starts anew
        env.reset(0)
        steps = [env.step(np.zeros((2, 2), np.float32)) for _ in range(3)]
        assert [(step.terminated, step.truncated) for step in steps] == [(False, False)] * 2 + [(False, True)]
        with pytest.raises(RuntimeError, match="call reset first"):
            env.step(np.zeros((2, 2), np.float32))
    env = TimeLimit(toy.make("chain", length=3), 3)
    env.reset(0)
    last = [env.step(np.zeros(1, np.int64)) for _ in range(3)][-1]
    assert (last.terminated, last.truncated) == (True, False)


def test_time_limit_keeps_a_shorter_limit_of_the_environment():
    assert TimeLimit(toy.make("chain", length=3), 8).spec.max_steps == 3
    with pytest.raises(ConfigError, match="max_steps=0; give 1 or more"):
        TimeLimit(toy.make("chain"), 0)


def test_agent_id_comes_first_and_survives_death_only_outside_a_death_mask():
    inside, outside = DeathMask(AgentId(toy.make("agent_death"))), AgentId(DeathMask(toy.make("agent_death")))
    for env, kept in ((inside, 0.0), (outside, 1.0)):
        obs = env.reset(0)
        assert np.array_equal(obs.agents[:, :3], np.eye(3))
        for _ in range(4):
            obs = env.step(np.where(obs.alive, obs.agents[:, 3:7].argmax(axis=1), 0)).obs
        assert obs.alive.tolist() == [True, False, False]
        assert obs.agents[1, 1] == obs.agents[2, 2] == kept
        assert not obs.agents[1:, 3:].any()


def test_agent_id_leaves_padding_last():
    env = AgentId(Pad(toy.make("chain", agents=2), observation_size=9))
    assert env.spec.observation_sizes == (8, 8)
    assert not env.reset(0).agents[:, 8:].any()


class Ghosts(EnvWrapper):
    """Kills agent 1 but goes on telling what it sees and could do."""

    def observe(self, obs):
        alive = obs.alive.copy()
        alive[1] = False
        return type(obs)(obs.agents + 2, alive, obs.action_mask, obs.state)

    @property
    def spec(self):
        spec = self.env.spec
        space = spaces.Box(spec.observation_space.low + 2, spec.observation_space.high + 2, dtype=np.float32)
        return type(spec)(**{**vars(spec), "observation_space": space})


@pytest.mark.parametrize("task", ["copy", "continuous"])
def test_death_mask_blanks_the_dead_only(task):
    ghosts, env = Ghosts(toy.make(task)), DeathMask(Ghosts(toy.make(task)))
    shown, masked = ghosts.reset(2), env.reset(2)
    assert shown.agents[1].all()
    assert not masked.agents[1].any()
    assert np.array_equal(masked.agents[0], shown.agents[0])
    assert masked.action_mask[0].all()
    assert masked.action_mask[1].tolist() == [True] + [False] * (env.spec.action_size - 1)
    check_env(lambda: DeathMask(Ghosts(toy.make(task))))  # zero is within the bounds now


@pytest.mark.parametrize(("options", "fill"), [({}, True), ({"individual": True}, False)])
def test_pad_adds_agents_that_never_live(options, fill):
    env = Pad(toy.make("agent_death", **options), observation_size=8, action_size=6, num_agents=5)
    spec = env.spec
    assert spec.agents[3:] == ("pad_0", "pad_1")
    assert spec.agent_types == ("agent",) * 3 + ("pad",) * 2
    assert spec.observation_sizes == (5, 5, 5, 0, 0)
    assert spec.action_sizes == (4, 4, 4, 1, 1)
    obs = env.reset(0)
    assert obs.agents.shape == (5, 8)
    assert obs.alive.tolist() == [True] * 3 + [False] * 2
    assert not obs.action_mask[:, 4:].any()
    step = env.step(np.append(obs.agents[:3, :4].argmax(axis=1), [5, 5]))
    assert step.reward[0] > 0
    assert step.reward[3:].tolist() == [step.reward[0] * fill] * 2


def test_pad_passes_on_the_own_part_of_a_continuous_action():
    plain, env = toy.make("continuous"), Pad(toy.make("continuous"), action_size=3, num_agents=4)
    action = np.random.default_rng(0).uniform(-1, 1, size=(4, 3)).astype(np.float32)
    plain.reset(1)
    env.reset(1)
    assert env.step(action).reward[:2].tolist() == plain.step(action[:2, :2]).reward.tolist()


@pytest.mark.parametrize("size", ["observation_size", "action_size", "num_agents"])
def test_pad_cannot_cut(size):
    with pytest.raises(ConfigError, match=f"{size}=1 is below the environment's own"):
        Pad(toy.make("agent_death"), **{size: 1})


@pytest.mark.parametrize("wrapper", [AgentId, DeathMask, Pad])
def test_text_cannot_be_widened_or_masked(wrapper):
    class Talk:
        spec = EnvSpec("talk", ("a",), spaces.Text(9), spaces.Text(9), 1)

    with pytest.raises(ConfigError, match="talk has Text observations"):
        wrapper(Talk())


def test_text_actions_of_the_dead_have_no_mask_and_cannot_be_padded():
    class Say:
        spec = EnvSpec("say", ("a", "b"), spaces.Box(0, 1, (1,), np.float32), spaces.Text(9), 1)

        def reset(self, seed=None):  # noqa: ARG002
            return Obs(np.ones((2, 1), np.float32), np.array([True, False]))

    obs = DeathMask(Say()).reset()
    assert obs.action_mask is None
    assert obs.agents.tolist() == [[1], [0]]
    with pytest.raises(ConfigError, match="say has Text actions"):
        Pad(Say())


def test_episode_statistics_of_every_episode():
    env = EpisodeStatistics(toy.make("agent_death", individual=True))
    for _ in range(2):
        obs, steps = env.reset(0), []
        for _ in range(6):
            steps.append(env.step(np.where(obs.alive, obs.agents[:, :4].argmax(axis=1), 0)))
            obs = steps[-1].obs
        assert all("episode_return" not in step.info for step in steps[:-1])
        assert steps[-1].info["episode_return"] == pytest.approx(toy.optimum("agent_death"))
        assert steps[-1].info["episode_length"] == 6


def test_states_of_a_stack_are_flat_and_apart():
    env = TimeLimit(EpisodeStatistics(TimeLimit(toy.make("continuous"), 3)), 2)
    env.reset(0)
    env.step(np.zeros((2, 2), np.float32))
    state = env.get_state()
    assert state["wrapper0.elapsed"] == state["wrapper2.elapsed"] == state["wrapper1.episode_length"] == 1
    assert not any(isinstance(value, dict) for name, value in state.items() if name.startswith("wrapper"))


def test_no_state_stays_none():
    class Forgetful(EnvWrapper):
        def get_state(self):
            return None

    assert TimeLimit(Forgetful(toy.make("chain")), 2).get_state() is None


class Frames(EnvWrapper):
    """Renders frames with odd sides, each of another gray."""

    def render(self):
        return np.full((33, 47, 3), 40 * self.env.elapsed, dtype=np.uint8)


def play(env, steps=3):
    env.reset(0)
    for _ in range(steps):
        env.step(np.zeros(1, np.int64))
    env.close()
    env.close()


# imageio's reader, which only this test uses, leaves the pipes of its ffmpeg process open.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.Buffered:ResourceWarning")
@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_record_writes_every_frame(tmp_path, suffix):
    imageio = pytest.importorskip("imageio.v2")
    path = tmp_path / "videos" / f"run{suffix}"
    play(Record(Frames(toy.make("chain")), path, fps=5))
    with imageio.get_reader(path) as reader:
        assert (reader.count_frames() if suffix == ".mp4" else len(reader)) == 4
        frames = np.stack([reader.get_data(index)[..., :3] for index in range(4)])
    assert frames.shape == (4, 34, 48, 3)
    assert frames[..., 0].mean(axis=(1, 2)) == pytest.approx([0, 40, 80, 120], abs=4)


def test_record_writes_text(tmp_path):
    path = tmp_path / "run.txt"
    play(Record(toy.make("chain"), path))
    text = path.read_text()
    assert [f"step {step} of 5" in text for step in range(5)] == [True] * 4 + [False]


def test_record_refuses_what_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"ends in \.mp4, \.gif or \.txt"):
        Record(toy.make("chain"), tmp_path / "run.avi")
    with pytest.raises(ConfigError, match="fps=0"):
        Record(toy.make("chain"), tmp_path / "run.gif", fps=0)
    with pytest.raises(ConfigError, match=r"toy/chain renders str.*takes ndarray"):
        Record(toy.make("chain"), tmp_path / "run.gif").reset()
    with pytest.raises(ConfigError, match=r"toy/chain renders ndarray.*takes str"):
        Record(Frames(toy.make("chain")), tmp_path / "run.txt").reset()
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    with pytest.raises(MissingDependencyError, match="pip install imageio"):
        Record(Frames(toy.make("chain")), tmp_path / "run.gif").reset()
