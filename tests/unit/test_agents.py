"""Equality of the ways to decode and to learn, parameter sharing, and options; the rest is in test_check_agent."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete

from marl.agents.heads import GaussianHead, make_head
from marl.agents.mat.agents import MAT
from marl.agents.mat.attention import FusedAttention, attend
from marl.agents.mat.autoregressive import max_jacobi_iterations
from marl.agents.mat.options import MATOptions
from marl.agents.mat.order import decision_order
from marl.agents.mlp import MLPOptions
from marl.agents.parameter_sharing import make_actors
from marl.agents.scripted import FixedPolicy
from marl.checkpoint.codec import load_weights
from marl.errors import CheckpointError, ConfigError, NonFiniteError
from marl.experiments.bench.baseline_mat import ReferenceMAT
from marl.registry import AGENTS
from marl.types import EnvSpec, Nodes, Obs

E, N, D, A = 7, 5, 4, 3


KINDS = ["discrete", "torques", "mixed"]


def make_spec(kind: str, agents: int = N, state: int = 0) -> EnvSpec:
    """Agent 0 has three torques and the others two; of a mixed team every second agent chooses instead."""
    low, high = np.array([-2.0, 0.0, -1.0], dtype=np.float32), np.array([2.0, 1.0, 1.0], dtype=np.float32)
    wide, narrow, choice = Box(low, high), Box(low[:2] - 1, high[:2]), Discrete(A)
    team = spaces.Tuple([wide if i == 0 else choice if i % 2 else narrow for i in range(agents)])
    return EnvSpec(
        name="made-up",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation_space=Box(-np.inf, np.inf, (D,), np.float32),
        action_space={"discrete": choice, "torques": wide, "mixed": team}[kind],
        max_steps=10,
        state_space=Box(-np.inf, np.inf, (state,), np.float32) if state else None,
        action_sizes=(A, *(2,) * (agents - 1)) if kind == "torques" else (),
        agent_types=tuple("first" if i == 0 else "odd" if i % 2 else "even" for i in range(agents)),
    )


def make_obs(spec: EnvSpec, seed: int = 0, deaths: bool = True) -> Obs:
    rng = np.random.default_rng(seed)
    agents = spec.num_agents
    alive = rng.random((E, agents)) < 0.6 if deaths else np.ones((E, agents), dtype=bool)
    some = rng.random((E, agents, A)) < 0.6
    some[..., 1] = True
    mask = np.broadcast_to(np.arange(A) < np.array(spec.action_sizes)[:, None], (E, agents, A)).copy()
    chooses = np.array([isinstance(space, Discrete) for space in spec.action_spaces])
    mask[:, chooses] = some[:, chooses]
    state = rng.normal(size=(E, spec.state_size)).astype(np.float32) if spec.state_size else None
    return Obs(rng.normal(size=(E, agents, D)).astype(np.float32), alive, mask, state)


def wake(policy):
    """Weights far from their small start, so that nothing is equal by accident."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return policy


def mat(spec, **options):
    return make("mat", spec, **options)


def make(name, spec, **options):
    entry = AGENTS.get(name)
    torch.manual_seed(0)
    return wake(entry.make(spec, entry.options(**options)))


POLICIES = {
    "mat": ("mat", {}),
    "mat, two blocks and heads": ("mat", {"blocks": 2, "heads": 2}),
    "mat, random order": ("mat", {"agent_order": "random"}),
    "mat, per group": ("mat", {"parameters_per": "agent_type", "blocks": 2}),
    "mat, per agent, random order": ("mat", {"parameters_per": "agent", "agent_order": "random"}),
    "mat-bad": ("mat-bad", {}),
    "mat-bad, per group": ("mat-bad", {"parameters_per": "agent_type"}),
    "mat-bad, random order": ("mat-bad", {"agent_order": "random"}),
    "mat-decoder": ("mat-decoder", {}),
    "mat-decoder, two blocks": ("mat-decoder", {"blocks": 2, "agent_order": "random"}),
    "mat-gru": ("mat-gru", {}),
    "mat-gru, random order": ("mat-gru", {"agent_order": "random", "layers": 1}),
    "mat-gru, per group, random order": ("mat-gru", {"parameters_per": "agent_type", "agent_order": "random"}),
    "mat-encoder": ("mat-encoder", {}),
    "mat-encoder, per group": ("mat-encoder", {"parameters_per": "agent_type"}),
    "mat-dec": ("mat-dec", {}),
    "mat-dec, per agent": ("mat-dec", {"parameters_per": "agent"}),
    "ff-sable": ("ff-sable", {}),
    "ff-sable, two blocks and heads, random order": ("ff-sable", {"blocks": 2, "heads": 2, "agent_order": "random"}),
    "ff-sable, per group": ("ff-sable", {"parameters_per": "agent_type"}),
    "mappo": ("mappo", {}),
    "mappo, per group": ("mappo", {"parameters_per": "agent_type"}),
    "ippo": ("ippo", {}),
    "happo": ("happo", {}),
}
ONE_BY_ONE = [name for name, (agent, _) in POLICIES.items() if agent in ("mat", "mat-bad", "mat-decoder", "mat-gru")]
# Sable decides one by one too; tests/unit/test_sable.py decodes it.
AT_ONCE = [name for name in POLICIES if name not in ONE_BY_ONE and "sable" not in name]


def build(name, spec, **options):
    agent, given = POLICIES[name]
    return make(agent, spec, **given, **options)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("state", [0, 6])
def test_act_evaluate_and_value_agree_on_values(name, state):
    spec = make_spec("discrete", state=state)
    policy = build(name, spec)
    inputs = policy.encode(make_obs(spec))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(3))
        evaluation = policy.evaluate(inputs, decision.nodes)
    torch.testing.assert_close(evaluation.value, decision.value, atol=2e-5, rtol=1e-5)
    alive = inputs["alive"]
    # The others' values depend on the actions of those before, or on the order in which agents are read.
    if not getattr(policy, "critic_reads_decoder", False) and not (name.startswith("mat-gru") and "random" in name):
        same = policy.value(inputs)[alive]
        torch.testing.assert_close(same, decision.value.squeeze(-1)[alive], atol=2e-5, rtol=1e-5)


def one_by_one(policy, parameters, mask, offset):
    """Return the actions of a full decoder pass per agent, of which one row is read each time."""
    action = policy.start_actions(*mask.shape[:2])
    for i in range(mask.shape[1]):
        row = slice(i, i + 1)
        perturbed = parameters(action)[:, row] + offset[:, row]
        action[:, row] = policy.head.argmax_action(perturbed, mask[:, row])
    return action


SHAPES = [{}, {"blocks": 2, "heads": 2}]


@pytest.mark.parametrize("kind", ["discrete", "mixed"])
@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("passes", [0, N])
def test_every_way_of_decoding_is_the_full_decoder(monkeypatch, kind, name, passes):
    """Cached and Jacobi decoding sample the same actions as the full decoder."""
    spec = make_spec(kind)
    policy = build(name, spec)
    monkeypatch.setattr("marl.agents.mat.autoregressive.max_jacobi_iterations", lambda *_: passes)
    inputs = policy.encode(make_obs(spec))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(5))
        noise = policy.head.noise((E, N), torch.device("cpu"), torch.Generator().manual_seed(5))
        order = decision.nodes.order
        fused = policy.fuse()
        representation = policy.decoder_memory(inputs, fused, order)
        mask = decision_order(inputs["action_mask"], order)
        full = lambda action: policy.action_parameters(policy.decode(representation, action, fused, order), order)  # noqa: E731
        offset = policy.head.sampling_offset(mask, noise, order)
        action = one_by_one(policy, full, mask, offset)
        found = policy.jacobi_decode(representation, mask, offset, fused, N, order)
        same(action, found.action, kind)
        if kind == "discrete":
            assert policy.jacobi_decode(representation, mask, offset, fused, 1, order) is None
            assert len(action.unique()) > 1
    same(action, decision_order(decision.nodes.action, order), kind)


def same(action, expected, kind):
    if kind == "mixed":
        assert torch.equal(action[..., 0], expected[..., 0])
    if kind == "discrete":
        assert torch.equal(action, expected)
    else:
        torch.testing.assert_close(action, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def double():
    """Sixteen digits, so that nothing but a difference in meaning is seen."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("options", SHAPES)
def test_folded_weights_compute_what_the_layers_do(kind, options):
    """Against a network with separate keys, queries and values, a mask buffer, and distributions of torch's."""
    spec = make_spec(kind)
    policy = mat(spec, **options)
    reference = ReferenceMAT(policy)
    obs = make_obs(spec, deaths=False)
    if kind == "torques":
        obs.action_mask[:] = True
    inputs = policy.encode(obs)
    inputs["agents"] = inputs["agents"].double()
    available = torch.as_tensor(obs.action_mask)
    noise = policy.head.noise((E, N), torch.device("cpu"), torch.Generator().manual_seed(5))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(5))
        representation = reference.encode(inputs["agents"])[0]
        offset = policy.head.sampling_offset(available, noise)
        action = one_by_one(policy, lambda a: reference.decode(shifted(a, kind), representation), available, offset)
        same(action, decision.nodes.action, kind)
        likeliest = policy.act(inputs, deterministic=True).nodes.action
        expected = reference.act(obs.agents.astype(np.float64), obs.action_mask, deterministic=True)[0]
        same(torch.as_tensor(expected).to(likeliest.dtype), likeliest, kind)
    ours = policy.evaluate(inputs, decision.nodes)
    theirs = reference.evaluate(inputs["agents"], decision.nodes.action, available if kind == "discrete" else None)
    near(decision.value, ours.value)
    near(decision.log_prob, ours.log_prob)
    for mine, other in zip((ours.log_prob, ours.entropy, ours.value), theirs, strict=True):
        near(mine, other)
    sum(x.square().sum() for x in (ours.log_prob, ours.entropy, ours.value)).backward()
    sum(x.square().sum() for x in theirs).backward()
    for mine, other in (
        ("encoder.embed.0.weight", "embed.0.weight"),
        ("encoder.embed.1.weight", "embed.1.weight"),
        ("decoder.blocks.0.self_attention.key.weight", "decoder.0.self_attention.key.weight"),
        ("decoder.blocks.0.cross_attention.value.bias", "decoder.0.cross_attention.value.bias"),
    ):
        near(policy.get_parameter(mine).grad, reference.get_parameter(other).grad)
    key = policy.get_parameter("encoder.blocks.0.attention.key.bias").grad
    assert torch.equal(key, torch.zeros_like(key))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("lives", [True, False])
def test_the_gradient_of_attention_that_is_written_out(lives):
    """Two heads, three queries and four keys, some of them masked."""
    torch.manual_seed(0)
    shapes = (2, 3, 4), (2, 4, 4), (8, 4), (8,), (4, 8), (4,)
    x, y, *fold = (torch.randn(shape, requires_grad=True) for shape in shapes)
    bias = None if lives else torch.zeros(2, 6, 4).masked_fill(torch.rand(2, 6, 4) < 0.4, float("-inf"))
    assert torch.autograd.gradcheck(lambda x, y, *fold: attend(FusedAttention(*fold), x, y, bias), (x, y, *fold))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["mixed"])
@pytest.mark.parametrize("name", [name for name in POLICIES if not POLICIES[name][0].endswith("ppo")])
def test_passes_of_one_step_share_the_fold_of_the_weights(name, kind):
    spec = make_spec(kind)
    policy = build(name, spec)
    inputs = {key: x.double() if key == "agents" else x for key, x in policy.encode(make_obs(spec)).items()}
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes

    def gradients(*parts):
        for part in parts:
            fields = (
                None if x is None else x[part] for x in (nodes.action, nodes.node_mask, nodes.loss_mask, nodes.order)
            )
            mine = Nodes(*fields)
            told = policy.evaluate({key: x[part] for key, x in inputs.items()}, mine)
            loss = told.value.square().sum()
            (loss + sum(x[mine.node_mask].square().sum() for x in (told.log_prob, told.entropy))).backward()

    def taken():
        found = {key: p.grad for key, p in policy.named_parameters()}
        policy.zero_grad()
        return found

    gradients(slice(0, E))
    whole = taken()
    with policy.accumulation_context():
        gradients(slice(0, 3), slice(3, E))
    parted = taken()
    for key, x in whole.items():
        assert (x is None) == (parted[key] is None), key
        if x is not None:
            near(parted[key], x)
    with pytest.raises(ValueError, match="in the middle"), policy.accumulation_context():
        raise ValueError("in the middle")
    gradients(slice(0, E))
    near(taken()["critic.0.weight"], whole["critic.0.weight"])


@pytest.mark.parametrize(
    ("name", "rows", "passes"),
    [
        *(("mat", rows, passes) for rows, passes in ((1, 1), (819, 1), (820, 3), (4914, 3), (4917, 4))),
        *(("mappo", rows, passes) for rows, passes in ((819, 1), (820, 1), (1638, 1), (1639, 2), (4917, 4))),
    ],
)
def test_a_large_batch_is_cut_in_three_or_more_where_passes_are_large(name, rows, passes):
    policy = build(name, make_spec("discrete"))
    mask = torch.ones(rows, N, 1, dtype=torch.bool)
    parts = policy.micro_batches({}, Nodes(mask, mask, mask), 0, 1)
    assert len(parts) == passes
    sizes = [part.stop - part.start for part in parts]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) < passes


def near(x, y):
    torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


def shifted(action, kind):
    """The token of each position: one-hot, the start first, or the torques themselves."""
    if kind == "torques":
        return torch.nn.functional.pad(action[:, :-1], (0, 0, 1, 0))
    kinds = torch.nn.functional.pad(action[:, :-1, 0] + 1, (1, 0))
    return torch.nn.functional.one_hot(kinds, A + 1).to(torch.get_default_dtype())


@pytest.mark.parametrize("change", ["step", "fused step", "load", "in place", "replace"])
def test_acting_follows_the_weights_at_once(change):
    """Weights cached for acting are rebuilt after every change of the weights."""
    spec = make_spec("discrete")
    policy, other = mat(spec), mat(spec)
    obs = make_obs(spec)
    with torch.inference_mode():
        before = policy.act(policy.encode(obs), deterministic=True).value
    if "step" in change:
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.Adam(policy.parameters(), lr=0.1, fused=change == "fused step").step()
        other.load_state_dict(policy.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(policy.parameters(), other.parameters(), strict=True):
            if change not in ("step", "fused step"):
                theirs.add_(0.2)
            if change == "in place":
                mine.copy_(theirs)
            elif change == "replace":
                mine.data = theirs.data.clone()
    if change == "load":
        policy.load_state_dict(other.state_dict())
    with torch.inference_mode():
        after, expected = (p.act(p.encode(obs), deterministic=True) for p in (policy, other))
    assert torch.equal(after.value, expected.value)
    assert torch.equal(after.log_prob, expected.log_prob)
    assert not torch.equal(after.value, before)


@pytest.mark.parametrize(("envs", "agents", "passes"), [(8, 8, 0), (32, 27, 0), (8, 27, 4), (1, 27, 10), (1, 1, 0)])
def test_passes_over_all_agents_are_tried_where_they_cost_less(envs, agents, passes):
    assert max_jacobi_iterations(envs, agents, "cpu") == passes
    assert max_jacobi_iterations(envs, agents, "cuda") == agents


@pytest.mark.parametrize("kind", ["discrete", "mixed"])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_changing_an_action_leaves_earlier_agents_untouched(kind, name):
    spec = make_spec(kind)
    policy = build(name, spec)
    inputs = policy.encode(make_obs(spec))
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
        before = policy.evaluate(inputs, nodes)
        places = nodes.order if nodes.order is not None else torch.arange(N).expand(E, N)
        rows = torch.arange(E)
        for position in range(N):
            after = policy.evaluate(inputs, changed(policy, nodes, places[:, position]))
            for place in range(N):
                other = places[:, place]
                same = torch.equal(after.log_prob[rows, other], before.log_prob[rows, other])
                assert same if place < position else place == position or not same
                same = torch.equal(after.value[rows, other], before.value[rows, other])
                assert same == (place <= position or not policy.critic_reads_decoder)


def changed(policy, nodes, who):
    """The nodes with another action of agent `who` (E,)."""
    action = nodes.action.clone()
    for env, agent in enumerate(who.tolist()):
        own = action[env, agent]
        if isinstance(policy.spec.action_spaces[agent], Discrete):
            own[0] = (own[0] + 1) % A
        else:
            own[int(policy.spec.mixed) :] += 0.7
    return dataclasses.replace(nodes, action=action)


@pytest.mark.parametrize("kind", ["mixed"])
@pytest.mark.parametrize("name", AT_ONCE)
def test_agents_that_decide_at_once_do_not_hear_of_each_other(kind, name):
    spec = make_spec(kind)
    policy = build(name, spec)
    inputs = policy.encode(make_obs(spec))
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
        before = policy.evaluate(inputs, nodes)
        for agent in range(N):
            after = policy.evaluate(inputs, changed(policy, nodes, torch.full((E,), agent)))
            differs = (after.log_prob != before.log_prob).any(-1).any(0)
            assert differs.tolist() == [other == agent for other in range(N)]
            assert torch.equal(after.value, before.value)


TEAM = [
    name
    for name, (agent, options) in POLICIES.items()
    if agent.startswith("mat") and "parameters_per" not in options and "agent_order" not in options
]


@pytest.mark.parametrize("kind", ["discrete"])
@pytest.mark.parametrize("name", TEAM)
def test_the_living_do_not_see_the_dead(kind, name):
    """Neither what a dead agent observes nor how many dead or padded agents there are changes anything."""
    spec = make_spec(kind)
    policy = build(name, spec, agent_id=False)
    obs = make_obs(spec, seed=4)
    obs.alive[:, 0] = True
    spoiled = Obs(np.where(obs.alive[..., None], obs.agents, 1e3).astype(np.float32), obs.alive, obs.action_mask)
    few, many = spec, make_spec(kind, agents=N + 3)
    wide = build(name, many, agent_id=False)
    wide.load_state_dict(policy.state_dict())
    pad = lambda x, fill: np.concatenate([x, np.full((E, 3, *x.shape[2:]), fill, x.dtype)], 1)  # noqa: E731
    padded = Obs(pad(obs.agents, 7.0), pad(obs.alive, False), pad(obs.action_mask, True))
    alive = torch.as_tensor(obs.alive)
    with torch.no_grad():
        base, worth = policy.act(policy.encode(obs), deterministic=True), policy.value(policy.encode(obs))
        for other, view, count in ((policy, spoiled, few.num_agents), (wide, padded, few.num_agents)):
            decision = other.act(other.encode(view), deterministic=True)
            torch.testing.assert_close(decision.nodes.action[:, :count][alive], base.nodes.action[alive])
            torch.testing.assert_close(decision.log_prob[:, :count][alive], base.log_prob[alive], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(decision.value[:, :count][alive], base.value[alive], atol=1e-4, rtol=1e-4)
            value = other.value(other.encode(view))[:, :count]
            torch.testing.assert_close(value[alive], worth[alive], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_a_chain_of_decisions_is_valued_before_the_first(order):
    """The value of a step is that of its first node, whichever agent has it."""
    spec = make_spec("discrete")
    policy = make("mat-bad", spec, agent_order=order)
    inputs = policy.encode(make_obs(spec, deaths=order == "fixed"))
    with torch.no_grad():
        value = policy.value(inputs)
        assert torch.equal(value, value[:, :1].expand(E, N))
        alive = inputs["alive"]
        firsts = []
        for seed in range(1 if order == "fixed" else 40):
            decision = policy.act(inputs, torch.Generator().manual_seed(seed))
            places = torch.arange(N).expand(E, N) if decision.nodes.order is None else decision.nodes.order
            firsts.append(decision.value.squeeze(-1).gather(1, places[:, :1]))
        mine = torch.stack(firsts).squeeze(-1)
        if order == "fixed":
            torch.testing.assert_close(value[alive.any(-1), 0], mine[0][alive.any(-1)], atol=1e-5, rtol=1e-5)
        else:
            kinds = torch.stack([mine[:, env].sort().values[[0, -1]] for env in range(E)])
            assert ((kinds[:, 0] <= value[:, 0]) & (value[:, 0] <= kinds[:, 1])).all()
            assert (kinds[:, 0] < kinds[:, 1]).all()


def test_no_gradient_of_decentralized_actors_reaches_the_encoder():
    spec = make_spec("discrete")
    policy = make("mat-dec", spec)
    inputs = policy.encode(make_obs(spec))
    policy.evaluate(inputs, policy.act(inputs).nodes).log_prob.sum().backward()
    assert {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None} == {"actor"}


@pytest.mark.parametrize("kind", KINDS)
def test_actors_of_their_own_rest_while_another_learns(kind):
    spec = make_spec(kind)
    policy = make("happo", spec)
    inputs = policy.encode(make_obs(spec, deaths=False))
    with torch.no_grad():
        nodes = policy.act(inputs).nodes
    mine = nodes.loss_mask.clone()
    mine[:, [0, 1, 3, 4]] = False
    whole, part = (
        policy.evaluate(inputs, dataclasses.replace(nodes, loss_mask=m)).log_prob for m in (nodes.loss_mask, mine)
    )
    assert torch.equal(whole[:, 2], part[:, 2])
    part[:, 2].sum().backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert {name for name in touched if name.startswith("actor.networks.2.")}
    assert all(name.startswith("actor.networks.2.") or name.endswith("log_std.2") for name in touched)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mappo, per group", "ippo", "happo"])
def test_one_agent_alone_is_evaluated_as_in_company(name, kind):
    spec = make_spec(kind)
    policy = build(name, spec, normalize_observations=True)
    inputs = policy.encode(make_obs(spec, deaths=False))
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
        policy.update_statistics(inputs, nodes)
        whole = policy.evaluate(inputs, nodes)
        for agent in range(N):
            mask = torch.zeros_like(nodes.node_mask)
            mask[:, agent] = nodes.node_mask[:, agent]
            alone = policy.evaluate(inputs, dataclasses.replace(nodes, node_mask=mask))
            for one, all_of_them in ((alone.log_prob, whole.log_prob), (alone.entropy, whole.entropy)):
                torch.testing.assert_close(one[:, agent], all_of_them[:, agent])
            torch.testing.assert_close(alone.value[:, agent], whole.value[:, agent])


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["mat", "mat-decoder", "mat-gru, per group, random order", "mat-dec", "mappo", "ippo"])
def test_observation_layer_norm_hides_the_scale_of_an_observation(name, kept):
    spec = make_spec("discrete")
    policy = build(name, spec, agent_id=False, observation_layer_norm=kept)
    obs = make_obs(spec, deaths=False)
    inputs = policy.encode(obs)
    scaled = policy.encode(dataclasses.replace(obs, agents=1000 * obs.agents))
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
        first, second = (policy.evaluate(given, nodes) for given in (inputs, scaled))
    assert torch.allclose(first.value, second.value, atol=1e-3) == kept
    assert torch.allclose(first.log_prob, second.log_prob, atol=1e-3) == kept


OWN = [name for name, (agent, given) in POLICIES.items() if agent == "happo" or "parameters_per" in given]


@pytest.mark.parametrize("name", OWN)
def test_each_group_has_its_own_deviation(name):
    """Widening it changes the log-probabilities and the noise of its members alone, in whatever order they decide."""
    spec = make_spec("torques")
    policy = build(name, spec)
    inputs = policy.encode(make_obs(spec))
    place = policy.head.parameter_sets[1]
    with torch.no_grad():
        likeliest = policy.act(inputs, deterministic=True).action
        nodes = policy.act(inputs, torch.Generator().manual_seed(3)).nodes
        before = policy.evaluate(inputs, nodes)
        for other, log_std in enumerate(policy.head.log_std):
            log_std.fill_(3.0 if other == place else -20.0)
        after = policy.evaluate(inputs, nodes)
        drawn = policy.act(inputs, torch.Generator().manual_seed(3)).action
    exists = nodes.node_mask.any(-1)
    members = (torch.tensor(policy.head.parameter_sets) == place).expand_as(exists)[exists]
    assert torch.equal((after.entropy > before.entropy)[exists].any(-1), members)
    assert torch.equal((after.log_prob > -1e3)[exists].all(-1), members)
    if name in AT_ONCE:
        assert torch.equal(torch.as_tensor(np.abs(drawn - likeliest).max(-1) > 1e-3)[exists], members)


def test_encoder_is_permutation_equivariant():
    spec = make_spec("discrete")
    policy = mat(spec, agent_id=False)
    inputs = policy.encode(make_obs(spec))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    permuted = {name: x[:, order] for name, x in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(policy.value(permuted), policy.value(inputs)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("agent", ["mat", "mat-bad", "mat-decoder", "mat-gru"])
@pytest.mark.parametrize("deaths", [True, False])
def test_random_order_is_random_and_kept(agent, deaths):
    spec = make_spec("discrete")
    policy = make(agent, spec, agent_order="random")
    inputs = policy.encode(make_obs(spec, deaths=deaths))
    drawn = []
    with torch.no_grad():
        for seed in range(8):
            order = policy.act(inputs, torch.Generator().manual_seed(seed)).nodes.order
            assert torch.equal(order.sort(-1).values, torch.arange(N).expand(E, N))
            alive = inputs["alive"].gather(1, order)
            assert torch.equal(alive, alive.sort(-1, descending=True).values)
            drawn.append(order[:, 0])
    several = inputs["alive"].sum(-1) > 1
    assert (torch.stack(drawn) != drawn[0]).any(0)[several].all()


def test_gaussian_start_is_the_paper_s():
    head = make_head(make_spec("torques"), 0.5, 0.3655)
    assert isinstance(head, GaussianHead)
    assert head.std().tolist() == pytest.approx([0.3655] * A, abs=1e-4)
    assert head.log_std[0].tolist() == pytest.approx([1.0] * A, abs=1e-3)


def test_parameter_counts_are_the_paper_s():
    """MAT at width 64 on 8m's sizes: the released code has 91.2k parameters, and 7850 of them get no gradient."""
    spec = EnvSpec(
        "8m",
        tuple(map(str, range(8))),
        Box(-1, 1, (80,), np.float32),
        Discrete(14),
        max_steps=120,
    )
    policy = MAT(spec, MATOptions(agent_id=False))
    assert sum(p.numel() for p in policy.parameters()) == 91161 - 7850


def test_a_mixed_head_is_two_distributions_side_by_side():
    """Against torch's own, agent by agent; a slot that does not exist has neither probability nor entropy."""
    spec = make_spec("mixed")
    head = make_head(spec, 0.5, 0.2)
    mask = head.split_mask(torch.as_tensor(make_obs(spec).action_mask))
    parameters = torch.randn(E, N, head.size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    action = head.argmax_action(parameters + head.sampling_offset(mask, torch.randn(parameters.shape)), mask)
    log_prob, entropy = head.evaluate(parameters, mask, action)
    for agent, space in enumerate(spec.action_spaces):
        row = parameters[:, agent]
        if isinstance(space, Discrete):
            logits = row[:, :A].masked_fill(~mask[:, agent, :A], -1e9)
            own = torch.distributions.Categorical(logits=logits)
            expected = own.log_prob(action[:, agent, 0]).unsqueeze(-1), own.entropy().unsqueeze(-1)
            slots = slice(0, 1)
        else:
            size = space.shape[0]
            own = torch.distributions.Normal(row[:, A : A + size], 0.2)
            expected = own.log_prob(action[:, agent, 1 : 1 + size]), own.entropy()
            slots = slice(1, 1 + size)
        for mine, other in zip((log_prob, entropy), expected, strict=True):
            torch.testing.assert_close(mine[:, agent, slots], other)
            assert mine[:, agent].count_nonzero() == mine[:, agent, slots].count_nonzero()
    (log_prob.sum() + entropy.sum()).backward()
    assert parameters.grad.isfinite().all()


@pytest.mark.parametrize("places", [(0, 0, 1, 2, 2), (0, 0, 0, 0, 1), (0, 1, 0, 2, 0), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("absent", [(), (0, 1), (2, 3, 4)])
def test_groups_computed_together_are_their_networks(places, absent):
    actor = make_actors(D, (8, 8), A, places)
    wake(actor)
    x = torch.randn(3, E, N, D)
    present = [agent not in absent for agent in range(N)]
    together = actor(x, present)
    used = {places[agent] for agent in range(N) if present[agent]}
    for agent, place in enumerate(places):
        expected = actor.networks[place](x[..., agent, :]) if place in used else torch.zeros(3, E, A)
        torch.testing.assert_close(together[..., agent, :], expected)
        torch.testing.assert_close(actor.rowwise()(x[0, :, agent], place), actor.networks[place](x[0, :, agent]))
    together.sum().backward()
    touched = {int(name.split(".")[1]) for name, p in actor.named_parameters() if p.grad is not None}
    assert touched == used


@pytest.mark.parametrize("agent", ["mat", "mat-gru", "mat-dec", "mat-encoder", "mappo", "ippo"])
def test_only_a_group_s_own_agents_move_its_actor(agent):
    spec = make_spec("mixed")
    policy = make(agent, spec, parameters_per="agent_type")
    inputs = policy.encode(make_obs(spec, deaths=False))
    with torch.no_grad():
        nodes = policy.act(inputs).nodes
    policy.evaluate(inputs, nodes).log_prob[:, 2].sum().backward()
    grads = {n: p.grad for n, p in policy.actor.named_parameters() if p.grad is not None and p.grad.any()}
    assert grads
    assert all(name.startswith("networks.2.") for name in grads)


def test_groups_of_unequal_agents_are_refused():
    with pytest.raises(ConfigError, match="'agent_0' and 'agent_1' of type 'all' in made-up have unequal spaces"):
        make("mat", dataclasses.replace(make_spec("mixed"), agent_types=("all",) * N), parameters_per="agent_type")


def test_unusable_spaces_and_options_are_named():
    spec = make_spec("discrete")
    text = EnvSpec("words", ("a",), spec.observation_space, spaces.Text(5), max_steps=3, action_sizes=(1,))
    with pytest.raises(ConfigError, match="words has Text actions"):
        MAT(text, MATOptions())
    with pytest.raises(ConfigError, match="heads=3"):
        MATOptions(heads=3)
    for start in (0.6, 0.0, -1.0, 1e-30, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"init_std={start} is not between"):
            MATOptions(init_std=start)
    for limit in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"max_std={limit}"):
            MLPOptions(max_std=limit)
    with pytest.raises(ConfigError, match="action=3"):
        FixedPolicy(spec, 3)


def test_agents_choose_only_what_they_have():
    """Without a mask from the environment, the agents' numbers of actions before padding act as one."""
    spec = dataclasses.replace(make_spec("discrete"), action_sizes=(1, 2, 3, 1, 2))
    policy = mat(spec)
    obs = dataclasses.replace(make_obs(spec), action_mask=None)
    with torch.no_grad():
        decision = policy.act(policy.encode(obs), torch.Generator().manual_seed(0))
    assert (decision.action < np.array(spec.action_sizes)).all()
    assert decision.action.max() == 2


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", ["mat", "mappo"])
def test_a_deviation_without_bounds_is_refused(value, deterministic, name):
    spec = make_spec("torques")
    policy = build(name, spec)
    with torch.no_grad():
        policy.head.log_std[0][1] = value
    with pytest.raises(NonFiniteError, match="log_std="):
        policy.act(policy.encode(make_obs(spec)), deterministic=deterministic)


@pytest.mark.parametrize(
    ("name", "agents", "said"),
    [
        ("mat-gru", N, r"holds nothing for 'encoder.rnn.weight_ih_l0' where this network has .*"),
        ("mat-encoder", N, r"holds \[.*\] for 'decoder.token.weight' where this network has nothing"),
        ("mat", N + 1, r"holds \[9\] for 'encoder.embed.0.weight' where this network has \[10\]"),
    ],
)
def test_weights_of_another_network_are_refused(name, agents, said):
    tensors = mat(make_spec("discrete")).state_dict()
    other = build(name, make_spec("discrete", agents=agents))
    before = other.state_dict()
    with pytest.raises(CheckpointError, match=f"step_5 {said}: it is of another agent"):
        load_weights(other, tensors, Path("step_5"))
    assert all(torch.equal(x, before[key]) for key, x in other.state_dict().items())


def test_values_given_likely_actions_draw_nothing():
    """The value of MAT without an encoder does not depend on the order that is drawn for decisions."""
    policy = build("mat-decoder", make_spec("discrete"), agent_order="random")
    inputs = policy.encode(make_obs(policy.spec))
    before = torch.get_rng_state()
    with torch.no_grad():
        first = policy.value(inputs)
        assert torch.equal(policy.value(inputs), first)
    assert torch.equal(torch.get_rng_state(), before)
