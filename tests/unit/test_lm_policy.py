"""Language policies against the plain model, one row and one candidate at a time."""

import dataclasses
import functools

import gymnasium
import numpy as np
import pytest
import torch

import marl.agents.lm.agents
from marl import run
from marl.agents.lm.options import LanguageOptions
from marl.agents.lm.token_tree import Tree
from marl.config import default_config, override
from marl.errors import ConfigError, EnvironmentContractError, MemoryLimitError
from marl.registry import AGENTS
from marl.types import Nodes
from tests.support.language import CANDIDATES, PROMPTS, make_agent, next_logits, observe, spec_of, stir

MANY = [[0], [1], [0], [2], [1], [0], [0], [1]]


def act(policy, obs, seed=1, **options):
    inputs = policy.encode(obs)
    with torch.inference_mode():
        return inputs, policy.act(inputs, torch.Generator().manual_seed(seed), **options)


def rows_of(nodes, index):
    return Nodes(nodes.action[index], nodes.node_mask[index], nodes.loss_mask[index])


def take(inputs, index):
    return {name: x[index] for name, x in inputs.items()}


@pytest.fixture(
    params=["poad", "poad frozen", "poad free", "poad adapters", "twosome", "twosome frozen", "etpo", "etpo shared"]
)
def case(request):
    """A policy far from its beginning, and an observation that suits it."""
    name, _, kind = request.param.partition(" ")
    options = {"critic": kind} if kind in ("frozen", "shared") else {"lora_rank": 4} if kind == "adapters" else {}
    policy = make_agent(name, reference=True, max_action_tokens=6, **options)
    stir(policy)
    return policy, observe(MANY, free=kind == "free")


def test_what_was_decided_is_what_is_evaluated_in_whatever_company(case):
    """Log-probabilities and values of acting and of learning agree, for all rows, some rows, and one row."""
    policy, obs = case
    inputs, decision = act(policy, obs)
    for index in (torch.arange(8), torch.tensor([7, 2, 3]), torch.tensor([5])):
        evaluation = policy.evaluate(take(inputs, index), rows_of(decision.nodes, index))
        torch.testing.assert_close(evaluation.log_prob.detach(), decision.log_prob[index], atol=2e-5, rtol=0)
        if evaluation.policy_loss is None:
            torch.testing.assert_close(evaluation.value.detach(), decision.value[index], atol=2e-5, rtol=1e-4)
    assert bool((decision.log_prob[~decision.nodes.node_mask] == 0).all())
    assert bool((decision.log_prob[~decision.nodes.loss_mask] == 0).all())


def test_equal_rows_are_computed_once_with_equal_gradients(case):
    """The gradient of a weighted sum over all rows is that of the rows one by one."""
    policy, obs = case
    inputs, decision = act(policy, obs)
    weight = torch.randn(4, 8, 1, policy.slots, generator=torch.Generator().manual_seed(2))

    def gradient(parts):
        policy.zero_grad()
        for index in parts:
            evaluation = policy.evaluate(take(inputs, index), rows_of(decision.nodes, index))
            terms = (evaluation.log_prob, evaluation.entropy, evaluation.value, evaluation.policy_loss)
            sum((w[index] * x).sum() for w, x in zip(weight, terms, strict=True) if x is not None).backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    whole = gradient([torch.arange(8)])
    naive = gradient([torch.tensor([row]) for row in range(8)])
    split = gradient(policy.micro_batches(inputs, decision.nodes, 3, 1))
    for one, other, third in zip(whole, naive, split, strict=True):
        scale = float(one.abs().max()) + 1e-8
        assert float((one - other).abs().max()) < 2e-4 * scale
        assert float((one - third).abs().max()) < 2e-4 * scale


def test_an_update_never_tokenizes(case, monkeypatch):
    policy, obs = case
    inputs, decision = act(policy, obs)
    for name in ("prompt", "action", "decode"):
        monkeypatch.setattr(policy.backbone.tokenizer, name, None)
    for index in policy.micro_batches(inputs, decision.nodes, 0, 2):
        evaluation = policy.evaluate(take(inputs, index), rows_of(decision.nodes, index))
        (evaluation.log_prob.sum() + evaluation.value.sum()).backward()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_token_is_as_likely_as_the_model_says_among_those_allowed(temperature):
    policy = make_agent("poad", max_action_tokens=6, temperature=temperature)
    stir(policy)
    inputs, _ = act(policy, observe([[0]]))
    prompt = policy.prompt_table.prompts[int(inputs["prompt"])]
    (menu,) = policy.score_candidates([(int(inputs["prompt"]), int(inputs["choices"]))])
    end = policy.backbone.tokenizer.end
    said = [policy.backbone.tokenizer.action(text) for text in CANDIDATES[0]]
    said[2] += (end,)  # "go south" begins "go south by boat"
    total = 0.0
    for candidate, tokens in enumerate(said):
        logits = next_logits(policy, prompt, tokens) / temperature
        expected = []
        for n, token in enumerate(tokens):
            allowed = sorted({other[n] for other in said if other[:n] == tokens[:n] and len(other) > n})
            expected.append(float(logits[n, token] - logits[n, allowed].logsumexp(0)))
        row = menu.rows["log_prob"][candidate]
        np.testing.assert_allclose(row[: len(tokens)], expected, atol=2e-5)
        assert menu.rows["action"][candidate, : len(tokens)].tolist() == list(tokens)
        assert menu.rows["trained"][candidate, : len(tokens)].tolist() == [x != 0.0 for x in expected]
        total += np.exp(sum(expected))
    assert total == pytest.approx(1.0)
    assert menu.cumulative[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("normalization", ["sum", "token", "word"])
def test_twosome_scores_whole_actions_under_the_whole_vocabulary(normalization):
    policy = make_agent("twosome", normalization=normalization, temperature=0.8)
    stir(policy)
    inputs, decision = act(policy, observe([[0]]))
    prompt = policy.prompt_table.prompts[int(inputs["prompt"])]
    scores = []
    for text in CANDIDATES[0]:
        tokens = policy.backbone.tokenizer.action(text)
        log_probs = next_logits(policy, prompt, tokens).log_softmax(-1)
        total = float(log_probs[range(len(tokens)), tokens].sum())
        scores.append(total / {"sum": 1, "token": len(tokens), "word": len(text.split())}[normalization])
    expected = (torch.tensor(scores) / 0.8).log_softmax(0)
    choice = int(decision.nodes.action)
    assert decision.action[0, 0] == CANDIDATES[0][choice]
    assert float(decision.log_prob) == pytest.approx(float(expected[choice]), abs=2e-5)
    evaluation = policy.evaluate(inputs, decision.nodes)
    assert float(evaluation.entropy.detach()) == pytest.approx(float(-(expected.exp() * expected).sum()), abs=2e-5)


def test_candidates_are_drawn_as_often_as_they_are_likely():
    policy = make_agent("poad")
    stir(policy)
    inputs, decision = act(policy, observe([[0]] * 4000))
    (menu,) = policy.score_candidates([(int(inputs["prompt"][0, 0]), int(inputs["choices"][0, 0]))])
    share = np.diff(menu.cumulative, prepend=0.0)
    drawn = [float(np.mean(decision.action[:, 0] == text)) for text in CANDIDATES[0]]
    np.testing.assert_allclose(drawn, share, atol=4 * 0.5 / 4000**0.5)
    _, greedy = act(policy, observe([[0]]), deterministic=True)
    assert greedy.action[0, 0] == CANDIDATES[0][int(share.argmax())]


def test_situations_are_computed_once_a_policy_and_frozen_features_once_for_all(monkeypatch):
    policy = make_agent("poad", critic="frozen")
    calls = []
    features = policy.backbone.features

    def counted(trees, reference=False):
        calls.extend([reference] * len(trees))
        return features(trees, reference)

    monkeypatch.setattr(policy.backbone, "features", counted)
    for _ in range(3):
        act(policy, observe(MANY))
        policy.value(policy.encode(observe(MANY)))
    assert sorted(calls) == [False] * 3 + [True] * 3
    inputs, decision = act(policy, observe(MANY))
    del calls[:]
    policy.evaluate(inputs, decision.nodes)
    assert calls == [False] * 3
    policy.after_update()
    act(policy, observe(MANY))
    assert calls == [False] * 6


def test_a_shared_critic_reads_the_model_that_learns_whatever_the_reference():
    plain, referred = (make_agent("poad", critic="shared", reference=reference) for reference in (False, True))
    referred.load_state_dict(plain.state_dict())
    for policy in (plain, referred):
        stir(policy)
    values = [policy.value(policy.encode(observe(MANY))) for policy in (plain, referred)]
    torch.testing.assert_close(values[0], values[1])
    frozen = make_agent("poad", critic="frozen")
    before = frozen.value(frozen.encode(observe(MANY)))
    for weight in frozen.backbone.parameters():
        weight.data.mul_(1.1)
    frozen.after_update()
    torch.testing.assert_close(frozen.value(frozen.encode(observe(MANY))), before)


def test_the_policy_forgets_when_its_weights_change():
    policy = make_agent("poad")
    _, before = act(policy, observe([[0]]))
    stir(policy)
    _, after = act(policy, observe([[0]]))
    assert not torch.equal(before.value, after.value)
    optimizer = torch.optim.Adam(policy.parameters(), fused=True)
    inputs, decision = act(policy, observe([[0]]))
    policy.evaluate(inputs, decision.nodes).value.sum().backward()
    optimizer.step()
    _, stepped = act(policy, observe([[0]]))
    assert not torch.equal(stepped.value, after.value)
    policy.load_state_dict(make_agent("poad").state_dict())
    _, again = act(policy, observe([[0]]))
    assert torch.equal(again.value, before.value)


def test_values_belong_to_the_state_before_a_token_and_the_first_to_the_prompt(case):
    policy, obs = case
    inputs, decision = act(policy, obs)
    torch.testing.assert_close(policy.value(inputs), decision.value[..., 0], atol=2e-5, rtol=1e-4)
    assert decision.value.shape == decision.log_prob.shape


def test_the_reference_is_the_policy_before_training(case):
    policy, obs = case
    _, decision = act(policy, obs)
    fresh = type(policy)(policy.spec, policy.options, policy.backbone)
    fresh.backbone.load_state_dict(make_fresh(policy).state_dict())
    fresh.prompt_table = policy.prompt_table
    evaluation = fresh.evaluate(policy.encode(obs), decision.nodes)
    torch.testing.assert_close(evaluation.log_prob.detach(), decision.reference_log_prob, atol=2e-5, rtol=0)


def make_fresh(policy):
    return marl.agents.lm.agents.open_backbone(policy.spec, policy.options)


@pytest.mark.parametrize("reads", ["shared", "frozen"])
def test_a_critic_of_its_own_features_moves_what_learns_or_does_not(reads):
    policy = make_agent("poad", critic=reads, reference=True)
    inputs, decision = act(policy, observe(MANY))
    policy.evaluate(inputs, decision.nodes).value.sum().backward()
    moved = any(bool(p.grad is not None and p.grad.any()) for p in policy.backbone.parameters())
    assert moved == (reads == "shared")


def test_only_what_is_trained_is_saved():
    policy = make_agent("poad", lora_rank=4)
    names = set(policy.state_dict())
    assert all("lora" in name or name.startswith("critic") for name in names)
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trained == {name for name in names if not name.startswith("critic_scale")}


# Free text


def test_free_text_is_sampled_from_the_policy_or_from_a_cut_of_it():
    policy = make_agent("poad", max_action_tokens=6)
    stir(policy)
    _, decision = act(policy, observe(MANY, free=True))
    torch.testing.assert_close(decision.behavior_log_prob, decision.log_prob, atol=2e-5, rtol=0)
    cut = make_agent("poad", max_action_tokens=6, top_p=0.5)
    stir(cut)
    _, decision = act(cut, observe(MANY, free=True))
    mask = decision.nodes.node_mask
    gap = (decision.behavior_log_prob - decision.log_prob)[mask]
    assert 0.1 < float(gap.min()) <= float(gap.max()) <= np.log(2) + 1e-5
    assert decision.nodes.loss_mask.equal(mask)


def test_free_text_ends_before_a_stop_string():
    policy, obs = make_agent("poad", stop_strings=("the",), max_action_tokens=12), observe(MANY * 8, free=True)
    inputs, decision = act(policy, obs)
    said = [policy.backbone.tokenizer.decode(row[mask].tolist()) for row, mask in
            zip(decision.nodes.action[:, 0], decision.nodes.node_mask[:, 0], strict=True)]  # fmt: skip
    assert any("the" in text for text in said)
    for text, action in zip(said, decision.action[:, 0], strict=True):
        assert action == (text[: text.find("the")].strip() if "the" in text else text)
    evaluation = policy.evaluate(inputs, decision.nodes)
    torch.testing.assert_close(evaluation.log_prob.detach(), decision.log_prob, atol=2e-5, rtol=0)


def test_an_empty_answer_is_one_end_token():
    policy = make_agent("poad", max_action_tokens=4)
    end = policy.backbone.tokenizer.end
    with torch.no_grad():
        prompt = policy.prompt_table.prompts[policy.prompt_table.prompt_id(PROMPTS[0])]
        features = policy.backbone.features([Tree(prompt)])
        policy.backbone.model.get_output_embeddings().weight[end] = 0.5 * features[0]
    policy.after_update()
    inputs, decision = act(policy, observe([[0]], free=True))
    assert decision.action[0, 0] == ""
    assert decision.nodes.node_mask.sum() == 1
    assert int(decision.nodes.action[0, 0, 0]) == end
    assert float(policy.evaluate(inputs, decision.nodes).log_prob[0, 0, 0].detach()) == pytest.approx(0.0, abs=1e-4)


# Teams


def test_agents_in_sequence_see_what_was_chosen_before_them():
    spec = spec_of(("Ada", "Bo", "Cy"))
    policy = make_agent("poad", spec, team="sequential")
    stir(policy)
    inputs, decision = act(policy, observe([[0, 0, 1], [1, 0, 0]]))
    evaluation = policy.evaluate(inputs, decision.nodes)
    torch.testing.assert_close(evaluation.log_prob.detach(), decision.log_prob, atol=2e-5, rtol=0)

    action, mask = decision.nodes.action.numpy(), decision.nodes.node_mask.numpy()
    prompt, choices = inputs["prompt"].numpy(), inputs["choices"].numpy()
    last = policy.extended(prompt, choices, action, mask, 2)[0, 2]
    said = policy.backbone.tokenizer.decode(policy.prompt_table.prompts[int(last)])
    assert said.endswith(f"{PROMPTS[1]}\nAda: {decision.action[0, 0]}\nBo: {decision.action[0, 1]}")

    # Another choice of the second agent is seen by the third agent alone.
    other = next(text for text in CANDIDATES[0] if text != decision.action[0, 1])
    trie = policy.prompt_table.tries[int(choices[0, 1])]
    row = policy.score_candidates([(int(policy.extended(prompt, choices, action, mask, 1)[0, 1]), int(choices[0, 1]))])[
        0
    ].rows
    k = trie.texts.index(other)
    changed = [torch.clone(x) for x in (decision.nodes.action, decision.nodes.node_mask, decision.nodes.loss_mask)]
    for x, name in zip(changed, ("action", "mask", "trained"), strict=True):
        x[0, 1] = torch.from_numpy(row[name][k])
    after = policy.evaluate(inputs, Nodes(*changed))
    torch.testing.assert_close(after.log_prob[0, 0], evaluation.log_prob[0, 0])
    torch.testing.assert_close(after.log_prob[1], evaluation.log_prob[1])
    assert not torch.allclose(after.log_prob[0, 2], evaluation.log_prob[0, 2], atol=1e-3)


@pytest.mark.parametrize("team", ["parallel", "sequential"])
def test_the_dead_say_their_candidate_and_have_no_nodes(team):
    policy = make_agent("poad", spec_of(("Ada", "Bo")), team=team)
    obs = observe([[0, 1], [1, 0], [0, 0]], alive=[[True, False], [False, True], [False, False]])
    inputs, decision = act(policy, obs)
    assert decision.action[0, 1] == CANDIDATES[1][0]
    assert decision.nodes.node_mask.any(-1).tolist() == obs.alive.tolist()
    evaluation = policy.evaluate(inputs, decision.nodes)
    torch.testing.assert_close(evaluation.log_prob.detach(), decision.log_prob, atol=2e-5, rtol=0)
    assert policy.value(inputs).shape == (3, 2)
    nobody = policy.evaluate(take(inputs, torch.tensor([2])), rows_of(decision.nodes, torch.tensor([2])))
    assert not nobody.log_prob.any()
    assert not nobody.log_prob.requires_grad  # a gradient of zero would let momentum move every weight


# Soft values


@pytest.mark.parametrize("free", [False, True])
def test_soft_values_and_the_policy_loss_are_expectations_over_all_tokens(free):
    policy = make_agent("etpo", beta=0.3, max_action_tokens=3)
    stir(policy)
    with torch.no_grad():
        policy.critic_target.net[-1].weight.normal_(0.0, 0.1)
    policy.after_update()
    inputs, decision = act(policy, observe([[1]], free=free))
    evaluation = policy.evaluate(inputs, decision.nodes)
    prompt = policy.prompt_table.prompts[int(inputs["prompt"])]
    tokens = decision.nodes.action[0, 0][decision.nodes.node_mask[0, 0]].tolist()
    logits = next_logits(policy, prompt, tokens)
    reference = reference_logits(policy, prompt, tokens)
    said = [policy.backbone.tokenizer.action(text) for text in CANDIDATES[1]]
    everything = range(policy.backbone.output.weight.shape[0])
    for n, token in enumerate(tokens):
        allowed = everything if free else sorted({other[n] for other in said if list(other[:n]) == tokens[:n]})
        index = torch.tensor(list(allowed))
        log_prob, log_rho = logits[n][index].log_softmax(0), reference[n][index].log_softmax(0)
        q, slow = (q_values(policy, head, prompt, tokens[:n]) for head in (policy.critic, policy.critic_target))
        share = log_prob.exp()
        value = (share * (slow[index] - 0.3 * (log_prob - log_rho))).sum()
        loss = (share * (0.3 * (log_prob - log_rho) - q[index])).sum()
        assert float(decision.value[0, 0, n]) == pytest.approx(float(value), abs=1e-4)
        assert float(evaluation.policy_loss[0, 0, n].detach()) == pytest.approx(float(loss), abs=1e-4)
        assert float(evaluation.value[0, 0, n].detach()) == pytest.approx(float(q[token]), abs=1e-4)
    evaluation.policy_loss.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.critic.parameters())


def reference_logits(policy, prompt, tokens):
    model = policy.backbone._held[2]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0].double()
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]


def q_values(policy, head, prompt, prefix):
    """(V,) Q values behind a prefix, from the frozen model's last hidden state."""
    model = policy.backbone._held[2]
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[*prompt, *prefix]]), use_cache=False).last_hidden_state[0, -1:]
        v, u = head(hidden)
        return (v + (u @ model.get_output_embeddings().weight.T)[0]).double()


def test_the_slow_copy_follows():
    policy = make_agent("etpo", target_decay=0.75)
    with torch.no_grad():
        policy.critic.net[-1].bias += 1.0
    policy.after_update()
    torch.testing.assert_close(policy.critic_target.net[-1].bias, torch.full_like(policy.critic.net[-1].bias, 0.25))


# Passes of an update


def test_passes_hold_every_row_once_within_the_budget():
    policy = make_agent("poad")
    inputs, decision = act(policy, observe(MANY * 3))
    keys = [(int(p), int(c), ()) for p, c in zip(inputs["prompt"], inputs["choices"], strict=True)]
    lengths = {key: policy.tree(key, policy.trie(key)).length for key in keys}
    budget = sum(lengths.values()) - 1
    policy.options = dataclasses.replace(policy.options, token_budget=budget)
    parts = policy.micro_batches(inputs, decision.nodes, 0, 1)
    assert sorted(int(row) for part in parts for row in part) == list(range(24))
    assert [len({keys[row] for row in part}) for part in parts] == [2, 1]
    assert sum(lengths[key] for key in {keys[row] for row in parts[0]}) <= budget
    assert max(map(len, policy.micro_batches(inputs, decision.nodes, 5, 1))) == 5
    assert (
        len(policy.micro_batches(inputs, decision.nodes, 0, 4)) == 5
    )  # 9 rows of one situation, 3, and 12: at most 6 in a pass


def refuse_passes(policy, monkeypatch, limit):
    """Forward passes of more than `limit` tokens run out of memory; returns the sizes of the others."""
    decoder, sizes = policy.backbone.model.get_decoder(), []
    forward = decoder.forward

    @functools.wraps(forward)
    def refuse(input_ids, **rest):
        if input_ids.numel() > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(input_ids.numel())
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(decoder, "forward", refuse)
    return sizes


def test_acting_that_does_not_fit_in_memory_is_halved(monkeypatch, caplog):
    """The same text, log-probabilities and values in passes of half the size, and passes stay small."""
    policy = make_agent("poad", max_action_tokens=6, reference=True)
    stir(policy)
    obs = observe([[0], [1], [2], [0]], free=True)
    inputs, whole = act(policy, obs, deterministic=True)
    values = policy.value(inputs)
    policy._frozen.clear()
    sizes = refuse_passes(policy, monkeypatch, 32)
    _, halved = act(policy, obs, deterministic=True)
    assert policy.backoff.reduction > 1
    assert "from now on they are smaller. Set --token-budget" in caplog.text
    assert halved.action.tolist() == whole.action.tolist()
    for name in ("log_prob", "value", "reference_log_prob"):
        torch.testing.assert_close(getattr(halved, name), getattr(whole, name), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(policy.value(inputs), values, atol=2e-5, rtol=1e-4)
    assert max(sizes) <= 32
    warned = len(caplog.records)
    act(policy, obs)
    assert len(caplog.records) == warned


@pytest.mark.parametrize("free", [True, False])
def test_one_situation_that_does_not_fit_in_memory_is_an_error(free, monkeypatch):
    policy = make_agent("poad")
    refuse_passes(policy, monkeypatch, 3)
    with pytest.raises(MemoryLimitError, match="a forward pass of one row does not fit in memory"):
        act(policy, observe(MANY, free=free))


# Bad input


def test_an_agent_without_candidates_is_an_error():
    policy = make_agent("poad")
    obs = dataclasses.replace(observe([[0]]), candidates=(((),),))
    with pytest.raises(EnvironmentContractError, match="no candidate"):
        policy.encode(obs)


def test_equal_candidates_count_once(caplog):
    policy = make_agent("poad")
    inputs, _ = act(policy, dataclasses.replace(observe([[0]]), candidates=((("go north", "go south", "go north"),),)))
    assert policy.score_candidates([(int(inputs["prompt"]), int(inputs["choices"]))])[0].texts == (
        "go north",
        "go south",
    )
    assert "equal" in caplog.text


def test_a_candidate_that_is_too_long_names_the_option():
    with pytest.raises(ConfigError, match=r"'go south by boat' has 4 tokens.*--max-action-tokens 4"):
        make_agent("poad", max_action_tokens=3).encode(observe([[0]]))


def test_a_prompt_that_is_too_long_is_an_error_or_cut(caplog):
    long = "north " * 1200 + "You stand in the hall."
    obs = dataclasses.replace(observe([[0]]), agents=((long,),))
    with pytest.raises(ConfigError, match=r"1\d\d\d tokens.*prompt-overflow cut"):
        make_agent("poad").encode(obs)
    policy = make_agent("poad", prompt_overflow="cut")
    inputs, _ = act(policy, obs)
    ids = policy.prompt_table.prompts[int(inputs["prompt"])]
    assert len(ids) == policy.prompt_table.room
    assert policy.backbone.tokenizer.decode(ids).endswith("You stand in the hall.")
    assert "cut off" in caplog.text


def test_a_team_needs_room_for_what_is_said():
    with pytest.raises(ConfigError, match="no room for a prompt"):
        make_agent("poad", spec_of(("Ada", "Bo", "Cy")), team="sequential", max_action_tokens=400)


@pytest.mark.parametrize("free", [False, True])
def test_text_beyond_ascii(free):
    policy = make_agent("poad")
    candidates = None if free else ((("öffne die Tür", "開ける"),),)
    obs = dataclasses.replace(observe([[0]]), agents=(("Die Tür ist zu. 扉 🚪",),), candidates=candidates)
    inputs, decision = act(policy, obs)
    if not free:
        assert decision.action[0, 0] in candidates[0][0]
    evaluation = policy.evaluate(inputs, decision.nodes)
    torch.testing.assert_close(evaluation.log_prob.detach(), decision.log_prob, atol=2e-5, rtol=0)


def test_twosome_refuses_free_text():
    with pytest.raises(ConfigError, match="twosome chooses among candidates"):
        make_agent("twosome").encode(observe([[0]], free=True))


def test_the_models_seed_and_the_layers_of_adapters_are_options():
    def weights(**options):
        return dict(make_agent("poad", **options).backbone.state_dict())

    one, same, other = weights(), weights(model_seed=0), weights(model_seed=1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert all("down_proj" in name for name in weights(lora_rank=2, lora_targets=("down_proj",)))


def test_twosome_refuses_an_action_without_tokens():
    policy, obs = make_agent("twosome"), observe([[0]])
    with pytest.raises(ConfigError, match="'' has no tokens"):
        policy.encode(dataclasses.replace(obs, candidates=((("", "go north"),),)))


def test_only_text_is_read_and_written():
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    with pytest.raises(ConfigError, match="kitchen has Box observations"):
        make_agent("poad", dataclasses.replace(spec_of(), observation_space=box))
    with pytest.raises(ConfigError, match="kitchen has Discrete actions"):
        make_agent("poad", dataclasses.replace(spec_of(), action_space=gymnasium.spaces.Discrete(2)))


def test_without_a_critic_nothing_is_read_for_values(monkeypatch):
    policy = make_agent("grpo", critic="none")
    inputs = policy.encode(observe([[0], [1]]))
    monkeypatch.setattr(policy, "encode_batch", None)
    assert policy.value(inputs).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("team", ["parallel", "sequential"])
def test_the_critic_s_scale_is_that_of_what_agents_read(team):
    """Prompts of living agents count, with the actions of earlier agents where they are part of the prompt."""
    policy = make_agent("poad", spec_of(("Ada", "Bo")), team=team, critic="frozen")
    inputs, decision = act(policy, observe([[0, 1], [2, 0]], alive=np.array([[True, True], [True, False]])))
    read = policy.prompt_ids(inputs, decision.nodes)
    assert (read[0, 1] == int(inputs["prompt"][0, 1])) == (team == "parallel")
    policy._frozen.clear()
    policy.update_statistics(inputs, decision.nodes)
    choices = inputs["choices"].tolist()
    assert set(policy._frozen) == {(int(read[e, i]), choices[e][i], ()) for e, i in ((0, 0), (0, 1), (1, 0))}


def test_too_many_situations_are_forgotten(monkeypatch):
    monkeypatch.setattr("marl.agents.lm.policy.MAX_PROMPTS", 3)
    policy = make_agent("poad")
    act(policy, observe([[0], [1], [2]]))
    inputs, decision = act(policy, observe([[1]]))
    policy.update_statistics(inputs, decision.nodes)
    assert len(policy.prompt_table.prompts) == len(policy.prompt_table.tries) == 1
    inputs, decision = act(policy, observe([[0], [1], [2]]))
    policy.evaluate(inputs, decision.nodes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("poad", {"temperature": 0.0}, "temperature=0.0"),
        ("poad", {"top_p": 0.0}, "top_p=0.0"),
        ("poad", {"max_action_tokens": 0}, "max_action_tokens=0"),
        ("poad", {"lora_rank": -1}, "lora_rank=-1"),
        ("poad", {"lora_targets": ("v_proj",)}, r"lora_targets=\('v_proj',\), which is for adapters"),
        ("poad", {"lora_dropout": 0.1}, "lora_dropout=0.1, which is for adapters"),
        ("poad", {"lora_rank": 2, "lora_dropout": 1.0}, "lora_dropout=1.0; give 0 or more, less than 1"),
        ("poad", {"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha=0.0; give a positive number"),
        ("poad", {"lora_rank": 2, "lora_targets": ()}, "lora_targets is empty; give names of layers, or all-linear"),
        ("poad", {"stop_strings": ("",)}, "stop_strings holds an empty string"),
        ("poad", {"model": "smollm2", "lora_rank": 0, "device_map": "auto"}, "device_map='auto', which is for adap"),
        ("poad", {"device_map": "auto"}, "device_map is for pretrained models"),
        ("poad", {"model": ""}, "model is empty; give tiny, smollm2"),
        ("poad", {"critic_hidden": (8, 0)}, r"critic_hidden=\(8, 0\)"),
        ("etpo", {"beta": 0.0}, "beta=0.0"),
        ("etpo", {"target_decay": 1.0}, "target_decay=1.0"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_agent(name, **options)


@pytest.mark.parametrize(
    ("options", "rank", "reads"),
    [
        ({}, 0, "shared"),
        ({"model": "smollm2"}, 8, "frozen"),
        ({"model": "smollm2", "lora_rank": 0}, 0, "shared"),
        ({"lora_rank": 4, "critic": "shared"}, 4, "shared"),
    ],
)
def test_what_is_trained_and_read_by_default(options, rank, reads):
    taken = LanguageOptions(**options)
    assert (taken.rank, taken.critic_reads) == (rank, reads)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("poad", {"critic": "none"}, "critic is 'none', and advantage 'gae' needs one"),
        ("twosome", {"critic": "none"}, "critic is 'none'"),
        ("poad", {"value_coef": 0.0}, "value_coef is 0, so nothing trains the critic"),
        ("grpo", {"critic": "shared"}, "advantage='grpo', which uses no critic; add --critic none"),
        (
            "reinforce",
            {"reference": False},
            "reference_reward_coef=0.001, but no reference is kept; add --reference",
        ),
        ("poad", {"reference_coef": 0.1}, "reference_coef=0.1, but no reference is kept; add --reference"),
        ("etpo", {"reference_coef": 0.1}, "unknown option of etpo on text/chain .reference_coef."),
        ("etpo", {"objective": "ppo"}, "objective='ppo'; 'soft_q' is what agent etpo computes"),
        ("poad", {"team": "sequential", "agent_updates": "sequential"}, "an agent reads what the others have said"),
    ],
)
def test_settings_that_make_no_sense_together_are_errors_before_any_work(name, changes, message, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "make_env", None)
    with pytest.raises(ConfigError, match=message):
        run.start(override(default_config("text/chain", name), changes | {"runs_dir": str(tmp_path)}))


@pytest.mark.parametrize("name", ["poad", "ntpo", "twosome", "etpo", "reinforce", "grpo", "gigpo"])
def test_every_agent_agrees_with_its_own_settings(name):
    config = default_config("text/chain", name)
    AGENTS.get(name).check(config)
