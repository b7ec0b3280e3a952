"""Transcripts of episodes: their advantages, and where they are logged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Text

from marl import run
from marl.agents.mlp import MLPOptions, MLPPolicy
from marl.backup import Links
from marl.envs.toy import make as make_toy
from marl.envs.wrappers import EnvWrapper
from marl.policy import Policy
from marl.policy_io import LoadedPolicy
from marl.registry import AGENTS
from marl.transcript import record_transcript
from marl.types import Decision, EnvSpec, Nodes, Obs
from marl.value_norm import ValueNorm
from marl.vector import SyncVector


class Macro(EnvWrapper):
    def step(self, action):
        return replace(super().step(action), duration=2)


class Describing(MLPPolicy):
    def transcript(self, episode):
        return "\n\n".join(f"step {i}: reward {step.reward[0]:.2f}" for i, step in enumerate(episode))

    def picture(self, episode):
        return np.zeros((2, len(episode), 3), dtype=np.uint8)


def policy_for(env, kind=MLPPolicy):
    torch.manual_seed(0)
    return kind(env.spec, MLPOptions(hidden=(8,)), central=False)


@pytest.mark.parametrize("task", ["chain", "agent_death"])  # terminated, truncated
def test_an_episode_with_its_credit(task):
    """At lambda 0 each advantage is a one-step error, and the last one shows whether the end was true."""
    env = SyncVector([lambda: Macro(make_toy(task))])
    policy, norm = policy_for(env), ValueNorm(0.9)
    norm.update(torch.tensor([1.0, 3.0]), torch.ones(2, dtype=torch.bool))
    episode = record_transcript(policy, env, 3, Links(gamma=0.9, gae_lambda=0.0), norm)
    assert len(episode) == env.spec.max_steps
    values = [norm.denormalize(step.decision.value[0, :, 0]) for step in episode]
    alive = [torch.as_tensor(step.obs.alive[0]) for step in episode]
    for i, step in enumerate(episode[:-1]):
        both = alive[i] & alive[i + 1]
        expected = torch.as_tensor(step.reward) + 0.81 * values[i + 1] - values[i]
        torch.testing.assert_close(step.advantage[both, 0], expected[both])
        assert not step.advantage[~alive[i]].any()
    again = record_transcript(policy, env, 3, Links(gamma=0.9, gae_lambda=0.0), norm)
    assert all(torch.equal(a.advantage, b.advantage) for a, b in zip(episode, again, strict=True))
    last = torch.as_tensor(episode[-1].reward) - values[-1]
    ended = torch.allclose(episode[-1].advantage[:1, 0], last[:1])
    assert ended == (task == "chain")


def test_transcripts_are_logged_at_every_evaluation(small):
    AGENTS.entries["describing"] = replace(
        AGENTS.get("ippo"), name="describing", make=lambda spec, options: Describing(spec, options, central=False)
    )
    try:
        folder = run.start(small(agent="describing")).folder
    finally:
        del AGENTS.entries["describing"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    transcripts = {row["step"]: row["eval/transcript"] for row in rows if "eval/transcript" in row}
    assert list(transcripts) == [64, 128, 192]
    assert transcripts[64].startswith("step 0: reward 0.00")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert [image.step for image in events.Images("eval/credit")] == [64, 128, 192]


class LastCandidate(Policy):
    """A policy that takes the last candidate."""

    def encode(self, obs):
        return {"said": obs.candidates, "read": obs.agents}

    def act(self, inputs, generator=None, deterministic=False):  # noqa: ARG002
        action = np.array([[choice[-1] for choice in row] for row in inputs["said"]], dtype=object)
        zeros = torch.zeros(*action.shape, 1)
        return Decision(action, Nodes(zeros, zeros.bool(), zeros.bool()), zeros, zeros)


def test_a_loaded_policy_reads_and_says_text():
    policy = LoadedPolicy(LastCandidate(EnvSpec("talk", ("a", "b"), Text(99), Text(9), None)), 0)  # type: ignore[arg-type]
    obs = Obs(("you see x", "you see y"), np.ones(2, bool), candidates=(("go", "stay"), ("wait",)))
    assert policy.act(obs).tolist() == ["stay", "wait"]
    two = Obs([obs.agents] * 2, np.ones((2, 2), bool), candidates=[obs.candidates] * 2)
    assert policy.act(two).tolist() == [["stay", "wait"]] * 2
    with pytest.raises(ValueError, match="give 2 strings"):
        policy.act(replace(obs, agents=("one",)))
