"""What every policy must hold, and what the transformer promises."""

import gymnasium
import numpy as np
import pytest
import torch

from agents.attention import Attention, ask, causal_bias, mix
from agents.decode import Bag, TokenTable
from agents.mat import MAT, MATOptions, parallel_passes, reorder
from agents.mlp import MLPOptions, MLPPolicy
from agents.nn import GaussianHead
from agents.scripted import FixedPolicy
from experiments.reference_mat import ReferenceMAT
from marl.errors import ConfigError
from marl.types import EnvSpec, Obs

E, N, D, A = 7, 5, 4, 3


def make_spec(discrete: bool, agents: int = N, state: int = 0) -> EnvSpec:
    low, high = np.array([-2.0, 0.0, -1.0], dtype=np.float32), np.array([2.0, 1.0, 1.0], dtype=np.float32)
    return EnvSpec(
        name="made-up",
        agents=tuple(f"agent_{i}" for i in range(agents)),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (D,), np.float32),
        action_space=gymnasium.spaces.Discrete(A) if discrete else gymnasium.spaces.Box(low, high),
        max_steps=10,
        state_space=gymnasium.spaces.Box(-np.inf, np.inf, (state,), np.float32) if state else None,
        action_sizes=(A,) * agents if discrete else (A, *(2,) * (agents - 1)),
    )


def make_obs(spec: EnvSpec, seed: int = 0, deaths: bool = True) -> Obs:
    rng = np.random.default_rng(seed)
    agents = spec.num_agents
    alive = rng.random((E, agents)) < 0.6 if deaths else np.ones((E, agents), dtype=bool)
    if spec.discrete:
        mask = rng.random((E, agents, A)) < 0.6
        mask[..., 1] = True
    else:
        mask = np.broadcast_to(np.arange(A) < np.array(spec.action_sizes)[:, None], (E, agents, A)).copy()
    state = rng.normal(size=(E, spec.state_size)).astype(np.float32) if spec.state_size else None
    return Obs(rng.normal(size=(E, agents, D)).astype(np.float32), alive, mask, state)


def wake(policy):
    """Weights far from their small start, so that nothing is equal by accident."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def mat(spec, **options):
    return wake(MAT(spec, MATOptions(**options)))


POLICIES = {
    "mat": lambda spec: mat(spec),
    "mat, two blocks and heads": lambda spec: mat(spec, blocks=2, heads=2),
    "mat, random order": lambda spec: mat(spec, agent_order="random"),
    "mappo": lambda spec: wake(MLPPolicy(spec, MLPOptions(), central=True)),
    "ippo": lambda spec: wake(MLPPolicy(spec, MLPOptions(), central=False)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("state", [0, 6])
@pytest.mark.parametrize("deaths", [True, False])
def test_act_and_evaluate_agree(name, discrete, state, deaths):
    spec = make_spec(discrete, state=state)
    policy = POLICIES[name](spec)
    inputs = policy.encode(make_obs(spec, deaths=deaths))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(3))
        evaluation = policy.evaluate(inputs, decision.nodes)
    mask = decision.nodes.mask
    torch.testing.assert_close(evaluation.log_prob[mask], decision.log_prob[mask], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(evaluation.value, decision.value, atol=2e-5, rtol=1e-5)
    alive = inputs["alive"]
    torch.testing.assert_close(policy.value(inputs)[alive], decision.value.squeeze(-1)[alive], atol=2e-5, rtol=1e-5)
    assert (mask.any(-1) == alive).all()
    if discrete:
        assert inputs["action_mask"].gather(-1, decision.nodes.action).all()
        assert decision.action.shape == (E, N)
        assert decision.action.dtype == np.int64
    else:
        assert (mask.sum(-1)[alive] == torch.tensor(spec.action_sizes).expand(E, N)[alive]).all()
        assert decision.action.shape == (E, N, A)
        assert all(spec.action_space.contains(a) for a in decision.action.reshape(-1, A))


def one_by_one(policy, parameters, mask, noise):
    """Actions of a decoder that is run on all positions once per agent, of which it reads one row each time."""
    action = torch.zeros(*mask.shape[:2], policy.slots, dtype=torch.long if policy.spec.discrete else noise.dtype)
    for i in range(mask.shape[1]):
        row = slice(i, i + 1)
        perturbed = parameters(action)[:, row] + policy.head.offset(mask[:, row], noise[:, row])
        action[:, row] = policy.head.pick(perturbed, mask[:, row])
    return action


SHAPES = [{}, {"blocks": 2, "heads": 2}, {"heads": 4}, {"blocks": 3}]


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("passes", [0, N])
def test_every_way_of_decoding_is_the_full_decoder(monkeypatch, discrete, options, passes):
    """One position at a time or all at once until nothing changes: the same sampled actions."""
    spec = make_spec(discrete)
    policy = mat(spec, **options)
    monkeypatch.setattr("agents.mat.parallel_passes", lambda *_: passes)
    inputs = policy.encode(make_obs(spec))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(5))
        noise = policy.head.noise((E, N), torch.device("cpu"), torch.Generator().manual_seed(5))
        order = decision.nodes.order
        folds = policy.fold()
        representation = reorder(policy.represent(inputs, folds)[0], order)
        mask = reorder(inputs["action_mask"], order)
        action = one_by_one(policy, lambda a: policy.decode(representation, a, folds), mask, noise)
        if discrete:
            assert policy.search(representation, mask, noise, folds, 1) is None
            assert len(action.unique()) > 1
    same(action, reorder(decision.nodes.action, order), discrete)


def same(action, expected, discrete):
    if discrete:
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
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("options", SHAPES)
def test_folded_weights_compute_what_the_layers_do(discrete, options):
    """Against a network with separate keys, queries and values, a mask buffer, and distributions of torch's."""
    spec = make_spec(discrete)
    policy = mat(spec, **options)
    reference = ReferenceMAT(policy)
    obs = make_obs(spec, deaths=False)
    if not discrete:
        obs.action_mask[:] = True
    inputs = policy.encode(obs)
    inputs["agents"] = inputs["agents"].double()
    available = torch.as_tensor(obs.action_mask)
    noise = policy.head.noise((E, N), torch.device("cpu"), torch.Generator().manual_seed(5))
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(5))
        representation = reference.encode(inputs["agents"])[0]
        action = one_by_one(policy, lambda a: reference.decode(shifted(a, discrete), representation), available, noise)
        same(action, decision.nodes.action, discrete)
        likeliest = policy.act(inputs, deterministic=True).nodes.action
        expected = reference.act(obs.agents.astype(np.float64), obs.action_mask, deterministic=True)[0]
        same(torch.as_tensor(expected).to(likeliest.dtype), likeliest, discrete)
    ours = policy.evaluate(inputs, decision.nodes)
    theirs = reference.evaluate(inputs["agents"], decision.nodes.action, available if discrete else None)
    near(decision.value, ours.value)
    near(decision.log_prob, ours.log_prob)
    for mine, other in zip((ours.log_prob, ours.entropy, ours.value), theirs, strict=True):
        near(mine, other)
    sum(x.square().sum() for x in (ours.log_prob, ours.entropy, ours.value)).backward()
    sum(x.square().sum() for x in theirs).backward()
    for name in ("embed.0.weight", "embed.1.weight", "decoder.0.own.key.weight", "decoder.0.cross.value.bias"):
        near(policy.get_parameter(name).grad, reference.get_parameter(name).grad)
    key = policy.get_parameter("encoder.0.attention.key.bias").grad
    assert torch.equal(key, torch.zeros_like(key))


def near(x, y):
    torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


def shifted(action, discrete):
    """The token of each position: one-hot, the start first, or the torques themselves."""
    if not discrete:
        return torch.nn.functional.pad(action[:, :-1], (0, 0, 1, 0))
    kinds = torch.nn.functional.pad(action[:, :-1, 0] + 1, (1, 0))
    return torch.nn.functional.one_hot(kinds, A + 1).to(torch.get_default_dtype())


@pytest.mark.parametrize("change", ["step", "fused step", "load", "in place", "replace"])
def test_acting_follows_the_weights_at_once(change):
    """What acting keeps of the weights is made anew after whatever changes them."""
    spec = make_spec(True)
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


def test_a_bag_of_tokens_is_attention_over_them():
    """Scores so far apart that all but one weight underflow, and tokens many times over."""
    torch.manual_seed(0)
    layer = Attention(8, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(4.0 * torch.randn_like(parameter))
        tokens, actions = torch.randn(4, 8), torch.randint(0, 3, (5, 12, 1))
        bag = Bag(TokenTable(layer.fold(), 2, tokens), 5)
        kinds = torch.nn.functional.pad(actions[:, :, 0] + 1, (1, 0))
        x = tokens[kinds]
        expected = x + mix(layer.fold(), ask(layer.fold(), x), x, causal_bias(13, 2, x))
        for i in range(13):
            row = bag.attend(actions[:, i - 1] if i else None)
            torch.testing.assert_close(row, expected[:, i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("envs", "agents", "passes"), [(8, 8, 0), (32, 27, 0), (8, 27, 2), (1, 27, 5), (1, 1, 0)])
def test_passes_over_all_agents_are_tried_where_they_cost_less(envs, agents, passes):
    assert parallel_passes(envs, agents, "cpu") == passes
    assert parallel_passes(envs, agents, "cuda") == agents


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_changing_an_action_leaves_earlier_agents_untouched(discrete, order):
    spec = make_spec(discrete)
    policy = mat(spec, agent_order=order, blocks=2)
    inputs = policy.encode(make_obs(spec, deaths=False))
    with torch.no_grad():
        nodes = policy.act(inputs, torch.Generator().manual_seed(0)).nodes
        before = policy.evaluate(inputs, nodes).log_prob
        places = nodes.order if nodes.order is not None else torch.arange(N).expand(E, N)
        for position in range(N):
            who = places[:, position]
            action = nodes.action.clone()
            rows = torch.arange(E)
            action[rows, who] = (action[rows, who] + 1) % A if discrete else action[rows, who] + 0.7
            changed = type(nodes)(action, nodes.mask, nodes.trained, nodes.order)
            after = policy.evaluate(inputs, changed).log_prob
            for place in range(N):
                other = places[:, place]
                same = torch.equal(after[rows, other], before[rows, other])
                if place < position:
                    assert same
                elif place > position:
                    assert not same


@pytest.mark.parametrize("discrete", [True, False])
def test_the_living_do_not_see_the_dead(discrete):
    """Neither what a dead agent observes nor how many dead or padded agents there are changes anything."""
    spec = make_spec(discrete)
    policy = mat(spec, agent_id=False)
    obs = make_obs(spec, seed=4)
    obs.alive[:, 0] = True
    spoiled = Obs(np.where(obs.alive[..., None], obs.agents, 1e3).astype(np.float32), obs.alive, obs.action_mask)
    few, many = spec, make_spec(discrete, agents=N + 3)
    wide = mat(many, agent_id=False)
    wide.load_state_dict(policy.state_dict())
    pad = lambda x, fill: np.concatenate([x, np.full((E, 3, *x.shape[2:]), fill, x.dtype)], 1)  # noqa: E731
    padded = Obs(pad(obs.agents, 7.0), pad(obs.alive, False), pad(obs.action_mask, True))
    with torch.no_grad():
        base = policy.act(policy.encode(obs), deterministic=True)
        for other, view, count in ((policy, spoiled, few.num_agents), (wide, padded, few.num_agents)):
            decision = other.act(other.encode(view), deterministic=True)
            alive = torch.as_tensor(obs.alive)
            torch.testing.assert_close(decision.nodes.action[:, :count][alive], base.nodes.action[alive])
            torch.testing.assert_close(decision.log_prob[:, :count][alive], base.log_prob[alive], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(decision.value[:, :count][alive], base.value[alive], atol=1e-5, rtol=1e-5)


def test_encoder_is_permutation_equivariant():
    spec = make_spec(True)
    policy = mat(spec, agent_id=False)
    inputs = policy.encode(make_obs(spec))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    permuted = {name: x[:, order] for name, x in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(policy.value(permuted), policy.value(inputs)[:, order], atol=1e-5, rtol=1e-5)


def test_random_order_is_random_and_kept():
    spec = make_spec(True)
    policy = mat(spec, agent_order="random")
    inputs = policy.encode(make_obs(spec, deaths=False))
    order = policy.act(inputs, torch.Generator().manual_seed(0)).nodes.order
    assert order is not None
    assert torch.equal(order.sort(-1).values, torch.arange(N).expand(E, N))
    assert len({tuple(row) for row in order.tolist()}) > 1


@pytest.mark.parametrize("name", POLICIES)
def test_sampled_actions_follow_the_reported_distribution(name):
    spec = make_spec(True, agents=2)
    policy = POLICIES[name](spec)
    obs = make_obs(spec, deaths=False)
    many = Obs(*(np.repeat(x[:1], 4000, 0) for x in (obs.agents, obs.alive, obs.action_mask)))
    inputs = policy.encode(many)
    with torch.no_grad():
        decision = policy.act(inputs, torch.Generator().manual_seed(0))
    joint = decision.log_prob.sum((1, 2)).exp()
    order = decision.nodes.order
    orders = torch.zeros(4000, 2) if order is None else order
    if order is not None:
        joint = joint / 2  # either order of two agents is as likely
    seen = {}
    for *key, probability in zip(decision.action.tolist(), orders.tolist(), joint.tolist(), strict=True):
        seen.setdefault(str(key), []).append(probability)
    assert len(seen) > 1
    for probabilities in seen.values():
        expected = probabilities[0]
        error = 4 * np.sqrt(expected * (1 - expected) / 4000)
        assert len(probabilities) / 4000 == pytest.approx(expected, abs=error + 1e-3)


def test_gaussian_start_is_the_paper_s():
    head = GaussianHead(make_spec(False), 0.5, 0.3655)
    assert head.std().tolist() == pytest.approx([0.3655] * A, abs=1e-4)
    assert head.log_std.tolist() == pytest.approx([1.0] * A, abs=1e-3)


def test_parameter_counts_are_the_paper_s():
    """MAT at width 64 on 8m's sizes: 91.2k released, of which 7850 get no gradient."""
    spec = EnvSpec(
        "8m",
        tuple(map(str, range(8))),
        gymnasium.spaces.Box(-1, 1, (80,), np.float32),
        gymnasium.spaces.Discrete(14),
        max_steps=120,
    )
    policy = MAT(spec, MATOptions(agent_id=False))
    assert sum(p.numel() for p in policy.parameters()) == 91161 - 7850


def test_unusable_spaces_and_options_are_named():
    spec = make_spec(True)
    text = EnvSpec("words", ("a",), spec.observation_space, gymnasium.spaces.Text(5), max_steps=3, action_sizes=(1,))
    with pytest.raises(ConfigError, match="words has Text actions"):
        MAT(text, MATOptions())
    with pytest.raises(ConfigError, match="heads is 3"):
        MATOptions(heads=3)
    with pytest.raises(ConfigError, match="std_start"):
        GaussianHead(make_spec(False), 0.5, 0.6)
    with pytest.raises(ConfigError, match="action is 3"):
        FixedPolicy(spec, 3)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("constant", [None, 0.0])
def test_fixed_policies_obey_masks(discrete, constant):
    spec = make_spec(discrete)
    policy = FixedPolicy(spec, constant)
    inputs = policy.encode(make_obs(spec))
    decision = policy.act(inputs, torch.Generator().manual_seed(0))
    if discrete:
        assert inputs["action_mask"].gather(-1, decision.nodes.action).all()
    else:
        assert all(spec.action_space.contains(a) for a in decision.action.reshape(-1, A))
    assert not decision.nodes.trained.any()
