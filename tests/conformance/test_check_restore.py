"""Environments that cannot continue from their own state, and the complaint that the conformance suite must make."""

import numpy as np
import pytest

from marl.envs import toy
from marl.envs.testing import Promise, check_env
from marl.errors import EnvironmentContractError


class Amnesiac(toy.AgentDeath):
    """Forgets something of its state."""

    def __init__(self, lost):
        super().__init__()
        self.lost = lost

    def get_state(self):
        return {name: value for name, value in super().get_state().items() if name != self.lost}

    def set_state(self, state):
        return super().set_state({**super().get_state(), **state})


class Leaky(toy.AgentDeath):
    """Gives and takes its own arrays instead of copies."""

    def _draw(self, now):
        if not hasattr(self, "wanted"):
            self.wanted = np.zeros(3, dtype=np.int64)
        draws = self._random.integers(1, 4, size=3)
        self.wanted[:] = (now + np.arange(3) + draws) % 4


class LeakyOut(Leaky):
    def get_state(self):
        return {**super().get_state(), "wanted": self.wanted}


class LeakyIn(Leaky):
    def set_state(self, state):
        super().set_state(state)
        self.wanted = state["wanted"]
        return self._observe()


class Restless(toy.AgentDeath):
    """Saving disturbs it."""

    def get_state(self):
        self._random.integers(9)
        return super().get_state()


class Stuffed(toy.AgentDeath):
    """Puts something into its state that no file can hold."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def get_state(self):
        return {**super().get_state(), "extra": self.value}


class Revived(toy.AgentDeath):
    """Forgets that the episode was over."""

    def set_state(self, state):
        return super().set_state({**state, "over": False})


class Choosy(toy.AgentDeath):
    def set_state(self, state):
        return super().set_state({**state, "elapsed": state["count"]})


RESTORES = [
    (lambda: Amnesiac("random"), r"state after step 0 of 6, after set_state, step 0: agents\["),
    (lambda: Amnesiac("elapsed"), r"state after step 3 of 6, set_state: agents\[0, \d\] is"),
    (lambda: Amnesiac("wanted"), r"state after step 0 of 6, set_state: agents\["),
    (LeakyOut, r"the state that get_state gave, after more steps: value\['wanted'\]\[\d\] is"),
    (LeakyIn, r"the state given to set_state, after more steps: value\['wanted'\]\[\d\] is"),
    (Restless, r"state after step 0 of 6, continued after get_state, step \d: agents\["),
    (lambda: Stuffed(object()), r"state\['extra'\] is neither an array nor JSON"),
    (lambda: Stuffed({"deep": np.zeros(2)}), r"state\['extra'\] is neither an array nor JSON"),
    (lambda: Stuffed(np.array([None])), r"state\['extra'\] is neither an array nor JSON"),
    (Revived, "get_state after set_state: value.'over'. is False, it was True"),
    (Choosy, "state after step 0 of 6: set_state raised KeyError: 'count'"),
]


@pytest.mark.parametrize(("make", "message"), RESTORES)
def test_states_must_restore(make, message):
    with pytest.raises(
        EnvironmentContractError, match=rf"^\[{int(Promise.RESTORE)} restore\] toy/agent_death, .*{message}"
    ):
        check_env(make)
