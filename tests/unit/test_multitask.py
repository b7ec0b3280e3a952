"""Several tasks in one run, weights that begin another one, and the command that compares both."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from marl import run
from marl.config import default_config, override
from marl.errors import CheckpointError, ConfigError, UnknownNameError
from marl.experiments.report.results_file import read_results
from marl.experiments.transfer import Transfer, transfer
from marl.policy_io import load_policy
from marl.registry import AGENTS, tasks_of
from marl.vector import make_vector

PAIR = "toy/climbing+penalty"


def test_names_of_several_tasks():
    found = tasks_of("mamujoco/HalfCheetah-6x1,disabled_joint=bfoot+Hopper-3x1,max_steps=9", {"max_steps": None})
    assert [task.name for task in found] == ["mamujoco/HalfCheetah-6x1", "mamujoco/Hopper-3x1"]
    assert [task.options for task in found] == [{"max_steps": None, "disabled_joint": "bfoot"}, {"max_steps": 9}]
    assert [task.label for task in found] == ["HalfCheetah-6x1,disabled_joint=bfoot", "Hopper-3x1,max_steps=9"]
    assert tasks_of("toy/copy", {"a": 1})[0].options == {"a": 1}
    for name in ("toy/copy,lenght=3", "mamujoco/Hopper-3x1+Hoper-3x1"):
        with pytest.raises(UnknownNameError):
            [make_vector(task.name, task.options, 1) for task in tasks_of(name, {})]
    with pytest.raises(ConfigError, match="several families"):
        tasks_of("toy/copy+mamujoco/Hopper-3x1", {})
    with pytest.raises(ConfigError, match="has 'climbing' 2 times"):
        tasks_of("toy/climbing+climbing", {})
    for option in ("length", "length=["):
        with pytest.raises(ConfigError, match="is not of the form name=value; give each option a value"):
            tasks_of(f"toy/copy,{option}", {})


def build(env, **changes):
    config = override(default_config(env, "mat"), {"num_envs": 4, "rollout_steps": 8, "embedding": 16} | changes)
    envs = [make_vector(task.name, task.options, 4) for task in config.tasks]
    return run.build(config, envs[0], torch.device("cpu"), 1, *envs[1:])


def test_every_task_has_the_same_weight_whatever_its_number_of_rows():
    """The gradient of both is the mean of each one's own, though the second has a quarter of the rows."""
    trainer = build(PAIR)
    batches = [trainer.make_batch(task.collector.collect()[0], i)[0] for i, task in enumerate(trainer.tasks)]
    batches[1] = batches[1].rows(slice(0, 8))
    found = []
    for chosen in ([0], [1], [0, 1]):
        total = torch.zeros(sum(p.numel() for p in trainer.updater.parameters))
        counts = torch.stack([trainer.updater.objective.counts(batch) for batch in batches])
        trainer.updater.optimizer.zero_grad()
        if chosen == [0, 1]:
            trainer.updater.gradient(batches, counts * 2)
        else:
            (i,) = chosen
            evaluation = trainer.tasks[i].policy.evaluate(batches[i].inputs, batches[i].nodes)
            trainer.updater.objective(evaluation, batches[i], counts[i])[0].backward()
        total = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trainer.updater.parameters]
        )
        found.append(total)
    assert found[2].abs().max() > 1e-4
    torch.testing.assert_close((found[0] + found[1]) / 2, found[2], atol=1e-6, rtol=1e-5)


def test_tasks_share_their_weights_and_not_the_scale_of_their_values():
    trainer = build(PAIR, normalize_observations=True)
    metrics = trainer.iterate()
    first, second = trainer.tasks
    assert all(a is b for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True))
    assert first.policy.moments.count.sum() == 2 * 4 * 8 * first.policy.spec.num_agents
    assert first.policy.moments.count is second.policy.moments.count
    assert first.value_norm.first != second.value_norm.first
    assert trainer.steps == 2 * 4 * 8
    each = [metrics[f"episode/return/{task.name}"] for task in trainer.tasks]
    assert metrics["episode/return"] == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("agent", ["poad", "etpo"])
def test_language_agents_learn_several_tasks_with_one_model(agent):
    names = "overcooked/tomato-salad,max_steps=5+tomato-salad,max_steps=6"
    changes = {"num_envs": 2, "rollout_steps": 4, "epochs": 1, "minibatches": 1}
    config = override(default_config(names, agent), changes)
    envs = [make_vector(task.name, task.options, 2) for task in config.tasks]
    trainer = run.build(config, envs[0], torch.device("cpu"), 1, *envs[1:])
    first, second = (cast(Any, task.policy) for task in trainer.tasks)
    assert first.backbone is second.backbone
    assert first.backoff is second.backoff
    weight = second.backbone.model.get_input_embeddings().weight
    before = weight.clone()
    slow = [p.clone() for p in first.critic_target.parameters()] if agent == "etpo" else []
    trainer.iterate()
    assert not torch.equal(weight, before)
    if slow:
        for old, new, now in zip(slow, first.critic.parameters(), second.critic_target.parameters(), strict=True):
            torch.testing.assert_close(now, old.lerp(new, 1.0 - first.decay))


def test_an_agent_that_is_no_policy_in_a_later_task_is_named(small, monkeypatch):
    entry = AGENTS.get("mat")

    def make(spec, options):
        return entry.make(spec, options) if spec.name == "toy/climbing" else None

    monkeypatch.setitem(AGENTS.entries, "mat", replace(entry, make=make))
    with pytest.raises(ConfigError, match=r"agent='mat' returned .*not a marl\.Policy"):
        run.start(small(PAIR, "mat"))


def test_a_vocabulary_of_other_words_is_refused():
    entry = AGENTS.get("poad")
    specs = [make_vector(f"text/{task}", {}, 1).spec for task in ("wording", "bake")]
    first, second = (entry.make(spec, entry.options()) for spec in specs)
    with pytest.raises(ConfigError, match="have words of their own"):
        second.share_backbone(first)


def test_tasks_of_other_shapes_and_agents_of_their_own_are_refused(small):
    with pytest.raises(ConfigError, match=r"the parameters '.*embed.* in climbing and .* in copy"):
        run.start(small("toy/climbing+copy", "mat"))
    with pytest.raises(ConfigError, match="agent_updates='sequential'"):
        small(PAIR, "happo")


def test_a_run_begins_with_the_weights_of_another(small, tmp_path):
    folder = run.start(small(PAIR, "mat", name="first")).folder
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"climbing", "penalty"}
    config = small("toy/penalty", "mat", name="second", learning_rate=1e-12, init_from=str(folder))
    second = load_policy(run.start(config).folder, "last").policy
    first = load_policy(folder, "last").policy
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    with pytest.raises(CheckpointError, match="holds the weights of 'mat'"):
        run.start(small("toy/penalty", "mappo", name="third", init_from=str(folder)))
    with pytest.raises(CheckpointError, match="is not a folder"):
        run.start(small("toy/penalty", "mat", name="third", init_from=str(tmp_path / "none")))
    with pytest.raises(CheckpointError, match="of other agent options") as caught:
        run.start(small("toy/penalty", "mat", name="third", init_from=str(folder), embedding=8))
    assert "agent options that differ, there and here: embedding 16 and 8" in caught.value.__notes__


SETTINGS = {"num_envs": 4, "rollout_steps": 8, "embedding": 16, "epochs": 1}


def test_transfer_compares_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    asked = Transfer(
        PAIR, "toy/penalty,penalty=-50", ("mat",), (1, 2), (0, 5, 10), 640, 128, runs_dir=tmp_path, settings=SETTINGS
    )
    trained = []
    original = run.execute

    def counted(config, *rest, **options):
        trained.append(config.name)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return original(config, *rest, **options)

    monkeypatch.setattr(run, "execute", counted)
    with pytest.raises(KeyboardInterrupt):
        transfer(asked)
    assert trained == ["mat-1-source", "mat-1-pretrained", "mat-1-pretrained", "mat-1-scratch"]
    transfer(asked)
    whole = json.loads((tmp_path / "transfer" / "transfer.json").read_text())
    for split in ("environments", "test"):
        assert set(whole[split]["toy/penalty,penalty=-50"]) == {"mat pretrained", "mat scratch"}
        for seeds in whole[split]["toy/penalty,penalty=-50"].values():
            assert {seed: sorted(map(int, curve)) for seed, curve in seeds.items()} == {
                seed: [0, 32, 64] for seed in ("1", "2")
            }
    metric, groups = read_results(tmp_path / "transfer" / "transfer.json")
    assert (metric, [group.name for group in groups]) == ("return", ["mat pretrained", "mat scratch"])
    count = len(trained)
    transfer(asked)
    assert len(trained) == count == 4 + 2 + 5
    assert "mat, scratch" in capsys.readouterr().out
    for other in ({"settings": SETTINGS | {"epochs": 2}}, {"pretrain_steps": 640}, {"percentages": (0, 10)}):
        with pytest.raises(ConfigError, match=f"transfer was started with {next(iter(other))}=.*; give another --name"):
            transfer(replace(asked, **other))
    with pytest.raises(ConfigError, match=r"in climbing and .* in copy"):
        transfer(replace(asked, target="toy/copy", name="other"))
    with pytest.raises(ConfigError, match="'random' does not learn"):
        transfer(replace(asked, agents=("mat", "random"), name="other"))
    with pytest.raises(
        ConfigError, match=r"penalty.* have no 'sucess': unknown metric 'sucess'; known: length, return"
    ):
        transfer(replace(asked, metric="sucess", name="other"))
    with pytest.raises(ConfigError, match="settings have seed, which this command sets itself"):
        replace(asked, settings={"seed": 2})
    for said, wrong in {
        "1 % of the budget, 640, is 6 steps, less than an iteration of mat .num_envs 4 x": {"percentages": (0, 1, 10)},
        "percentages has 150; give parts of the budget": {"percentages": (10, 150)},
        "percentages has nan": {"percentages": (10, float("nan"))},
        "is a task of the source too, so it is not unseen": {"target": PAIR.partition("+")[0]},
        "agents has mat 2 times": {"agents": ("mat", "mat")},
        "name='../x' is not the name of a folder": {"name": "../x"},
        "seeds has 1 2 times": {"seeds": (1, 2, 2, 1)},
        "1e-05 % of the budget, 640, is less than a step": {"percentages": (1e-5, 10)},
    }.items():
        with pytest.raises(ConfigError, match=said):
            transfer(replace(asked, **{"name": "other"} | wrong))
    assert not Path(tmp_path / "other").exists()
