"""Vectors that lie, each in one way, and the exact complaint that the conformance suite must make."""

import re
from dataclasses import replace

import numpy as np
import pytest

from marl.envs import toy
from marl.envs.testing import Promise, check_vector_env
from marl.errors import EnvironmentContractError
from marl.types import Obs
from marl.vector import SyncVector


def singles():
    return toy.make("copy", length=5)


def vector_of(kind):
    return lambda: kind([singles] * 3)


def batch_complaint(kind, make_env=singles):
    with pytest.raises(EnvironmentContractError) as caught:
        check_vector_env(vector_of(kind), [1, 2, 3], make_env, steps=12)
    message = str(caught.value)
    return Promise(int(message[1:3])), message


def test_an_honest_vector_passes():
    lines = check_vector_env(vector_of(SyncVector), [1, 2, 3], singles, steps=12)
    assert lines[1].startswith("batch: 3 environments, 12 steps, 6 episodes ended")
    assert "autoreset: equal to single environments, final observations included" in lines
    assert len(check_vector_env(vector_of(SyncVector), [1, 2, 3])) == len(lines) - 1


class Lying(SyncVector):
    """A vector whose steps pass through `lie`."""

    def step(self, action):
        return self.lie(super().step(action))


class FinalIsNext(Lying):
    """Gives the next episode's first observation as the last of the one before."""

    def lie(self, step):
        if step.final is None:
            return step
        obs = step.obs
        rows = step.final.env
        return replace(
            step, final=replace(step.final, obs=Obs(obs.agents[rows], obs.alive[rows], state=obs.state[rows]))
        )


class NoFinal(Lying):
    def lie(self, step):
        return replace(step, final=None)


class FinalElsewhere(Lying):
    def lie(self, step):
        return step if step.final is None else replace(step, final=replace(step.final, env=step.final.env[::-1]))


class LateReset(Lying):
    """Shows the last observation once more instead of the next episode's first."""

    def lie(self, step):
        if step.final is None:
            return step
        final = step.final.obs
        obs = Obs(final.agents, final.alive, state=final.state)
        return replace(step, obs=obs)


class OneReward(Lying):
    def lie(self, step):
        return replace(step, reward=step.reward[:, 0])


class Restarted(Lying):
    def lie(self, step):
        return replace(step, restarted=np.array([False, True, False]))


class Timeless(Lying):
    def lie(self, step):
        return replace(step, duration=np.array([2, 0, 1]))


class Slow(Lying):
    """Environment whose episodes end on time."""

    def lie(self, step):
        return step if step.final is None else replace(step, duration=np.array([1, 1, 2]))


class Tied(SyncVector):
    """Every environment gets the first one's seed."""

    def reset(self, seeds):
        return super().reset([seeds[0]] * len(seeds))


class Coupled(SyncVector):
    """The seeds of later environments spoil the first."""

    def reset(self, seeds):
        return super().reset([sum(seeds), *seeds[1:]])


class ResetsAll(SyncVector):
    def reset_at(self, index, seed=None):
        for other in range(self.num_envs):
            super().reset_at(other, seed if other == index else None)
        return super().reset_at(index, seed)


class Shuffled(SyncVector):
    """Gives the states back in another order."""

    def set_state(self, states):
        return super().set_state(states[::-1])


class FirstReset(SyncVector):
    """Later episodes replay the first: resets that should go on start anew."""

    def step(self, action):
        step = super().step(action)
        for index in [] if step.final is None else step.final.env:
            self.reset_at(int(index), seed=int(index) + 1)
        return step


@pytest.mark.parametrize(
    ("kind", "make_env", "promise", "message"),
    [
        (FinalIsNext, singles, Promise.AUTORESET, r"step 4, final observation: agents\[\d, \d+\] is"),
        (NoFinal, None, Promise.AUTORESET, r"step 4: final is None; expected one for environments \[0, 1, 2\]"),
        (FinalElsewhere, None, Promise.AUTORESET, r"final is for environments \[2, 1, 0\]; expected one for"),
        (LateReset, singles, Promise.AUTORESET, r"step 4, observation: agents\["),
        (FirstReset, singles, Promise.AUTORESET, r"step 4, observation: agents\["),
        (
            OneReward,
            None,
            Promise.BATCH,
            r"reward has shape \(3,\) and dtype float32; expected an array of shape \(3, 2\)",
        ),
        (Restarted, None, Promise.BATCH, r"restarted=\[False, True, False\]; expected no environment to be lost"),
        (Timeless, None, Promise.DURATION, r"step 0: duration=\[2, 0, 1\]; expected 1 or more"),
        (Slow, singles, Promise.AUTORESET, r"environment 2 .*, step 4, duration: value is 2, it was 1"),
        (Tied, singles, Promise.AUTORESET, r"environment 1 beside a single one with seed 2, reset: agents\["),
        (Coupled, None, Promise.INDEPENDENCE, r"environment 0 beside other seeds, reset: agents\["),
        (ResetsAll, None, Promise.INDEPENDENCE, r"reset_at\(2, seed=3\), environment 0: agents\["),
        (Shuffled, None, Promise.RESTORE, r"step \d after set_state in another vector, environment 0"),
    ],
)
def test_lies_of_vectors(kind, make_env, promise, message):
    found, text = batch_complaint(kind, make_env)
    assert re.search(message, text), text
    assert found == promise


def test_the_number_of_environments_must_fit_the_seeds():
    with pytest.raises(EnvironmentContractError, match="num_envs=3; expected 2, one for each seed"):
        check_vector_env(vector_of(SyncVector), [1, 2])
