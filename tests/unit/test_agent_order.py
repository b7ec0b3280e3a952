"""Bootstrap values of agents that decide in a random order."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from tests.unit.test_agents import make, make_obs, make_spec

AGENTS = 3


@pytest.mark.parametrize("agent", ["mat-gru", "mat-decoder"])
@pytest.mark.parametrize("deaths", [False, True])
def test_a_random_order_is_valued_over_all_orders(agent, deaths):
    """With three agents the mean is over each of the six orders: that of the values with which agents act."""
    spec = make_spec("discrete", agents=AGENTS)
    policy = make(agent, spec, agent_order="random")
    inputs = policy.encode(make_obs(spec, deaths=deaths))
    alive = inputs["alive"]
    values = []
    with torch.no_grad():
        nodes = policy.act(inputs, deterministic=True).nodes
        for order in permutations(range(AGENTS)):
            rank = torch.tensor(order).argsort() + AGENTS * ~alive
            if agent == "mat-gru":
                values.append(policy.evaluate(inputs, replace(nodes, order=rank.argsort(-1))).value)
            else:
                values.append(policy.decide(inputs, None, rank.argsort(-1)).value)
        expected = torch.stack(values).mean(0).squeeze(-1)
        found = policy.value(inputs)
    torch.testing.assert_close(found[alive], expected[alive], atol=1e-5, rtol=1e-5)
    fixed = make(agent, spec)
    fixed.load_state_dict(policy.state_dict())
    with torch.no_grad():
        assert not torch.allclose(fixed.value(inputs)[alive], expected[alive], atol=1e-4)
