"""Agents that read entities: exact as the others, and blind to how many there are."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from marl.agents.entities import split_blocks
from marl.checkpoint.codec import load_weights
from marl.errors import CheckpointError, ConfigError, EnvironmentContractError
from marl.multitask import one_shape, share_parameters
from marl.policy_io import spec_from_json, spec_to_json
from marl.registry import AGENTS, EnvFactory
from marl.types import EntityLayout, EnvSpec, Obs
from marl.vector import make_vector

E, ORDINARY = 6, 3
ENEMY, ALLY = 5, 4


def make_spec(agents: int, enemies: int) -> EnvSpec:
    """Own features 0 and 1, enemies, allies, own features 2 and 3; those with feature 3 aim at allies."""
    entities = EntityLayout(
        (("own", 1, 2), ("enemy", enemies, ENEMY), ("ally", agents, ALLY), ("own", 1, 2)), enemies, "enemy", 3, "ally"
    )
    return EnvSpec(
        name="made-up",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (entities.width,), np.float32),
        action_space=gymnasium.spaces.Discrete(ORDINARY + enemies),
        max_steps=10,
        entities=entities,
    )


def make_obs(spec: EnvSpec, seed: int = 0, deaths: bool = True) -> Obs:
    rng = np.random.default_rng(seed)
    shape = (E, spec.num_agents)
    alive = rng.random(shape) < 0.7 if deaths else np.ones(shape, bool)
    mask = rng.random((*shape, spec.action_size)) < 0.6
    mask[..., 1] = True
    seen = rng.normal(size=(*shape, spec.observation_size)).astype(np.float32)
    own, at = seen[..., -2:], 2
    own[..., 1] = rng.random(shape) < 0.4
    for name, rows, width in spec.entities.blocks:
        if name != "own":
            part = seen[..., at : at + rows * width].reshape(*shape, rows, width)
            part *= rng.random((*shape, rows, 1)) < 0.6
            seen[..., at : at + rows * width] = part.reshape(*shape, -1)
            at += rows * width
    return Obs(seen, alive, mask)


def make(name, spec, **options):
    entry = AGENTS.get(name)
    torch.manual_seed(0)
    policy = entry.make(spec, entry.options(**options))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return policy


NAMES = ("mat", "mat-bad", "mat-decoder", "mat-gru", "mat-encoder", "mat-dec", "ff-sable", "mappo", "ippo")
CHAINS = {
    "mat": {},
    "mat-bad": {"agent_order": "random"},
    "mat-decoder": {"blocks": 2, "heads": 2},
    "mat-gru": {"agent_order": "random"},
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_decision_follows_those_before_it_only(name):
    spec = make_spec(4, 3)
    policy = make(name, spec)
    inputs = policy.encode(make_obs(spec, deaths=False))
    nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
    with torch.no_grad():
        before = policy.evaluate(inputs, nodes).log_prob
        for agent in range(4):
            other = nodes.action.clone()
            other[:, agent] = torch.where(other[:, agent] == ORDINARY, 1, ORDINARY)
            after = policy.evaluate(inputs, type(nodes)(other, nodes.node_mask, nodes.loss_mask)).log_prob
            torch.testing.assert_close(after[:, :agent], before[:, :agent])
            assert agent == 3 or not torch.allclose(after[:, agent + 1 :], before[:, agent + 1 :])


@pytest.mark.parametrize("name", CHAINS)
def test_jacobi_decoding_equals_one_agent_after_another(name):
    spec = make_spec(5, 4)
    policy = make(name, spec, **CHAINS[name])
    inputs = policy.encode(make_obs(spec, deaths=False))
    mask = inputs["action_mask"]
    noise = policy.head.noise(tuple(mask.shape[:2]), mask.device, torch.Generator().manual_seed(1))
    action = torch.zeros(*mask.shape[:2], 1, dtype=torch.long)
    with torch.no_grad():
        fused = policy.fuse()
        known = policy.decoder_memory(inputs, fused, None)
        offset = policy.head.sampling_offset(mask, noise)
        for i in range(5):
            logits = policy.actor(policy.decode(known, action, fused, None))
            action[:, i] = policy.head.argmax_action(logits[:, i] + offset[:, i], mask[:, i])
        assert torch.equal(
            policy.jacobi_decode(known, mask, offset, fused, policy.jacobi_iterations(len(mask), 5)).action, action
        )


@pytest.mark.parametrize("name", NAMES)
def test_targets_have_no_number(name):
    """Enemies that change places change the places of their actions, and nothing else."""
    spec = make_spec(3, 4)
    policy, obs = make(name, spec), make_obs(spec, deaths=False)
    obs.agents[..., -1] = 0.0
    places = np.array([2, 0, 3, 1])
    at = 2 + ENEMY * 4
    enemies = obs.agents[..., 2:at].reshape(E, 3, 4, ENEMY)[..., places, :].reshape(E, 3, -1)
    moved = np.concatenate([obs.agents[..., :2], enemies, obs.agents[..., at:]], -1)
    actions = np.concatenate([np.arange(ORDINARY), ORDINARY + places])
    other = Obs(moved, obs.alive, obs.action_mask[..., actions])
    nodes = policy.act(policy.encode(obs), torch.Generator().manual_seed(0)).nodes
    renamed = torch.as_tensor(np.argsort(actions))[nodes.action]
    with torch.no_grad():
        first = policy.evaluate(policy.encode(obs), nodes)
        second = policy.evaluate(policy.encode(other), type(nodes)(renamed, nodes.node_mask, nodes.loss_mask))
    torch.testing.assert_close(first.log_prob, second.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.value, second.value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_fit_teams_of_any_size(name, tmp_path):
    small, large = make(name, make_spec(3, 3)), make(name, make_spec(9, 7))
    load_weights(large, small.state_dict(), tmp_path)
    share_parameters(large, small, ("large", "small"))
    assert all(a is b for a, b in zip(small.parameters(), large.parameters(), strict=True))
    for policy in (small, large):
        inputs = policy.encode(make_obs(policy.spec))
        assert policy.act(inputs).nodes.action.shape == (E, policy.spec.num_agents, 1)


def test_advice_on_shapes_fits_what_is_read():
    specs = [make_vector(name, {}, 1).spec for name in ("toy/climbing", "text/chain")]
    entities = EntityLayout((("own", 1, 2), ("enemy", 3, 9), ("ally", 3, 4), ("own", 1, 2)), 3, "enemy", 3, "ally")
    wide = replace(make_spec(3, 3), entities=entities, observation_space=gymnasium.spaces.Box(-1, 1, (entities.width,)))
    assert "layout=entities" in one_shape(specs[0], specs[0])
    assert one_shape(specs[1], specs[1]) == "give tasks with equal spaces"
    assert one_shape(make_spec(3, 3), make_spec(4, 3)).startswith("observations are made of entities")
    assert "'enemy': 9" in one_shape(make_spec(3, 3), wide)


def test_a_policy_tied_to_its_team_says_so(tmp_path):
    policies = [make("happo", make_spec(agents, 3)) for agents in (3, 4)]
    with pytest.raises(CheckpointError, match="of another number of agents"):
        load_weights(policies[1], policies[0].state_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"in 4m and .* in 3m, so one agent cannot learn both"):
        share_parameters(policies[0], policies[1], ("3m", "4m"))
    with pytest.raises(ConfigError, match=r"normalize_observations=True does not fit the entity"):
        make("mat", make_spec(3, 3), normalize_observations=True)


def test_the_number_of_those_who_chose_a_target_counts():
    """The second of two equal agents knows the target of the first, although both targets look the same."""
    spec = make_spec(2, 2)
    policy = make("mat", spec)
    obs = make_obs(spec, deaths=False)
    obs.agents[..., 2 + ENEMY : 2 + 2 * ENEMY] = obs.agents[..., 2 : 2 + ENEMY]
    obs.agents[..., -1] = 0.0
    obs.action_mask[:] = True
    inputs = policy.encode(obs)
    with torch.no_grad():
        fused = policy.fuse()
        known = policy.decoder_memory(inputs, fused, None)
        logits = policy.actor(policy.decode(known, torch.full((E, 2, 1), ORDINARY), fused))
    torch.testing.assert_close(logits[:, 0, ORDINARY], logits[:, 0, ORDINARY + 1])
    assert (logits[:, 1, ORDINARY] - logits[:, 1, ORDINARY + 1]).abs().min() > 1e-4


def test_a_spec_of_entities_comes_back_from_json_and_must_add_up():
    spec = make_spec(3, 4)
    assert spec_from_json(spec_to_json(spec)).entities == spec.entities
    with pytest.raises(EnvironmentContractError, match="its entities are 42 wide"):
        EnvSpec(
            "odd",
            spec.agents,
            gymnasium.spaces.Box(-1, 1, (41,)),
            spec.action_space,
            9,
            entities=EntityLayout((("own", 1, 2), ("enemy", 4, 5), ("ally", 4, 5)), 4, "enemy", 0, "ally"),
        )


@pytest.mark.parametrize("task", ["3m", "2s3z", "MMM2", "2s_vs_1sc"])
def test_smac_shows_units_alike_on_all_maps(task):
    """Against the units themselves: who is in sight, where, how healthy and of what type."""
    from marl.envs.smac.engine.fields import HEALTH_SHARE, SHIELD_SHARE, X, Y
    from marl.envs.smac.maps import UNIT_TYPES

    env = EnvFactory(f"smac/{task}", {"layout": "entities"})()
    plain = EnvFactory(f"smac/{task}")()
    rng = np.random.default_rng(0)
    obs, other = env.reset(3), plain.reset(3)
    spec, battles = env.spec, env._battles
    n, types = spec.num_agents, battles.map.types
    assert {width for name, _, width in spec.entities.blocks if name != "own"} == {4 + 2 + len(UNIT_TYPES)}
    for _ in range(30):
        assert np.array_equal(obs.action_mask, other.action_mask)
        own, rows = split_blocks(spec.entities, torch.as_tensor(obs.agents))
        real = battles.battle.unit_float[0]
        for agent in np.flatnonzero(obs.alive):
            kind = UNIT_TYPES.index(types[agent])
            expected = np.zeros(16)
            expected[:4], expected[4:6] = obs.action_mask[agent, 2:6], real[[HEALTH_SHARE, SHIELD_SHARE], agent]
            expected[6 + kind] = 1.0
            np.testing.assert_allclose(own[agent], expected, atol=1e-6)
            assert bool(own[agent, spec.entities.healer_flag]) == (types[agent] == "medivac")
            for unit in range(len(types)):
                row = rows["ally"][agent, unit] if unit < n else rows["enemy"][agent, unit - n]
                apart = real[[X, Y], unit] - real[[X, Y], agent]
                seen = unit != agent and real[HEALTH_SHARE, unit] > 0 and np.hypot(*apart) < 9.0
                assert bool(row.any()) == seen
                if seen:
                    np.testing.assert_allclose(row[1:4], [np.hypot(*apart) / 9, *apart / 9], atol=1e-6)
                    np.testing.assert_allclose(row[4:6], real[[HEALTH_SHARE, SHIELD_SHARE], unit], atol=1e-6)
                    assert row[6:].tolist() == [float(name == types[unit]) for name in UNIT_TYPES]
        action = np.array([rng.choice(np.flatnonzero(row)) for row in obs.action_mask])
        step, other = env.step(action), plain.step(action).obs
        obs = step.obs
        if step.terminated or step.truncated:
            break


def test_smac_in_entities_shows_nothing_that_counts_units():
    for option in ("obs_last_action", "obs_agent_id"):
        with pytest.raises(ConfigError, match="layout=entities nothing of the kind"):
            EnvFactory("smac/3m", {"layout": "entities", option: True})()
