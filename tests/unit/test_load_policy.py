"""Observations that a loaded policy accepts, and its actions."""

import json

import numpy as np
import pytest
import torch

from marl.callbacks import Checkpoints
from marl.config import default_config, override
from marl.envs.toy import make as make_toy
from marl.errors import CheckpointError
from marl.manifest import manifest_digest
from marl.policy_io import RUN_FIELDS, LoadedPolicy, load_checkpoint, load_policy
from marl.registry import AGENTS
from marl.run import build
from marl.types import Obs
from marl.vector import make_vector
from tests.support.language import CANDIDATES, PROMPTS, make_agent, observe, spec_of

CHOICE = CANDIDATES[0]


@pytest.fixture(scope="module")
def cook():
    return LoadedPolicy(make_agent("poad", spec_of(), critic="none"), 0)


@pytest.fixture(scope="module")
def couple():
    return LoadedPolicy(make_agent("poad", spec_of(("ann", "bob"))), 0)


def mappo(task, **options):
    spec = make_toy(task, **options).spec
    entry = AGENTS.get("mappo")
    return LoadedPolicy(entry.make(spec, entry.options()), 0)


def test_texts_are_answered_in_their_own_form(cook, couple):
    expected = str(cook.act(observe([[0]]))[0, 0])
    assert expected in CHOICE
    assert cook.act(PROMPTS[0], candidates=CHOICE) == expected
    assert cook.act([PROMPTS[0]], candidates=[CHOICE]).tolist() == [expected]
    assert cook.act([[PROMPTS[0]]] * 2, candidates=[[CHOICE]] * 2).tolist() == [[expected]] * 2
    assert cook.act({"cook": PROMPTS[0]}, candidates={"cook": CHOICE}) == {"cook": expected}
    assert isinstance(cook.act(PROMPTS[0]), str)
    both = couple.act(observe([[0, 1]]))[0].tolist()
    assert couple.act(PROMPTS[:2], candidates=CANDIDATES[:2]).tolist() == both
    assert couple.act(np.array(PROMPTS[:2]), candidates=CANDIDATES[:2]).tolist() == both
    named = {"bob": PROMPTS[1], "ann": PROMPTS[0]}
    choices = {"bob": CANDIDATES[1], "ann": CANDIDATES[0]}
    assert couple.act(named, candidates=choices) == {"bob": both[1], "ann": both[0]}
    assert couple.act({"bob": PROMPTS[1]}, candidates={"bob": CANDIDATES[1]}) == {"bob": both[1]}


@pytest.mark.parametrize("task", ["copy", "continuous", "mixed"])
def test_arrays_by_name_are_answered_by_name(task):
    policy = mappo(task)
    spec, obs = policy.spec, make_toy(task).reset(0)
    whole = policy.act(obs)
    by_name = policy.act({name: obs.agents[n, : spec.observation_sizes[n]] for n, name in enumerate(spec.agents)})
    assert list(by_name) == list(spec.agents)
    for index, (name, space) in enumerate(zip(spec.agents, spec.action_spaces, strict=True)):
        assert space.contains(by_name[name])
        expected = np.ravel(whole[index])[: np.size(by_name[name])]
        np.testing.assert_allclose(np.ravel(by_name[name]), expected)
    assert np.array_equal(policy.act(obs.agents.tolist()), policy.act(obs.agents))
    alone = policy.act({spec.agents[1]: obs.agents[1]})
    assert list(alone) == [spec.agents[1]]


WRONG_TEXTS = [
    (np.zeros((1, 3)), None, "observation=array.*kitchen is read as text: give its text, 1 strings"),
    (["a", "b"], None, r"observation=\['a', 'b'\]; kitchen is read as text"),
    ([], None, r"observation=\[\]; kitchen"),
    ([["a"], ["b", "c"]], None, "kitchen is read as text"),
    (None, None, "observation=None; kitchen is read as text"),
    (7, None, "observation=7; kitchen"),
    ({"chef": "a"}, None, "observation is of agents 'chef'; kitchen has cook"),
    ({}, None, "observation is of nobody; kitchen has cook"),
    ({"cook": 3}, None, r"observation=\[3\]; kitchen"),
    ("a", "go", "candidates are .*; give each agent a list of texts"),
    ("a", [], "candidates are .*; give each agent a list of texts"),
    ("a", [1], "candidates are .*; give each agent a list of texts"),
    (["a"], ["go", "stay"], "candidates are .*; give each agent a list of texts"),
    ([["a"]] * 2, [["go"]], "candidates are .*; give each agent a list of texts"),
    ({"cook": "a"}, ["go"], "candidates are not for the agents of the observation"),
    (observe([[0]]), ["go"], "candidates are given twice"),
    (Obs(np.zeros((1, 2)), np.ones(1, bool)), None, "observation=array.*kitchen is read as text"),
]


@pytest.mark.parametrize(("observation", "candidates", "message"), WRONG_TEXTS)
def test_what_is_no_text_is_refused_with_what_would_be(cook, observation, candidates, message):
    with pytest.raises(ValueError, match=message):
        cook.act(observation, candidates=candidates)


WRONG_ARRAYS = [
    ("text", None, "observation=.*'text'.*, no array of numbers"),
    ([[1.0], [1.0, 2.0]], None, r"observation=\[\[1.0\], \[1.0, 2.0\]\], no array of numbers"),
    (None, None, r"observation has shape \(\); toy/copy gives"),
    (np.zeros((3, 99)), None, r"observation has shape \(3, 99\); toy/copy gives"),
    ({"agent_0": [1.0]}, None, r"the observation of agent_0 has shape \(1,\); toy/copy gives"),
    ({"agent_0": "x"}, None, "observation='x', no array of numbers"),
    ({"nobody": [1.0]}, None, "observation is of agents 'nobody'; toy/copy has agent_0"),
    (Obs(("a", "b"), np.ones(2, bool)), None, r"observation=\('a', 'b'\); toy/copy gives"),
]


@pytest.mark.parametrize(("observation", "candidates", "message"), WRONG_ARRAYS)
def test_what_is_no_array_is_refused_with_what_would_be(observation, candidates, message):
    with pytest.raises(ValueError, match=message):
        mappo("copy").act(observation, candidates=candidates)


def test_numbers_have_no_candidates():
    policy = mappo("copy")
    with pytest.raises(ValueError, match="toy/copy has no texts to choose from"):
        policy.act(np.zeros((policy.spec.num_agents, policy.spec.observation_size)), candidates=["go"])


def test_every_field_of_a_run_s_state_is_checked_when_it_is_loaded():
    """A checkpoint without one falls back to the checkpoint before, instead of failing in the middle of a resume."""
    trainer = build(
        default_config("toy/climbing", "mappo"), make_vector("toy/climbing", {}, 32), torch.device("cpu"), 1
    )
    for name, value in trainer.get_state()[1].items():
        assert type(value) is RUN_FIELDS[name], name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A trainer and its only checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    config = override(default_config("toy/climbing", "mappo"), {"num_envs": 2, "rollout_steps": 4, "hidden": (8,)})
    trainer = build(config, make_vector("toy/climbing", {}, 2), torch.device("cpu"), 1)
    trainer.iterate()
    Checkpoints(root, 1, 1).save(trainer)
    return trainer, next(root.iterdir())


def reseal(checkpoint, change):
    """Change the data of a checkpoint and update its digest. Return the manifest before."""
    file = checkpoint / "manifest.json"
    before = file.read_text()
    manifest = json.loads(before)
    change(manifest["data"])
    file.write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))
    return before


def numpy_key(data):
    return data["ranks"][0]["rng"]["items"][1]["global"]["numpy"]["state"]["key"]


def use(trainer, checkpoint):
    trainer.set_state(load_checkpoint(checkpoint.parent, "last"))
    load_policy(checkpoint)


RESEALED = {
    "random key": lambda data: numpy_key(data).__setitem__(0, -1),
    "huge random key": lambda data: numpy_key(data).__setitem__(0, 10**40),
    "optimizer step": lambda data: data["optimizer"]["state"]["items"][2][1].update(step=10**400),
    "learning rate": lambda data: data["annealing"].update(start=None),
    "option of another type": lambda data: data["agent_options"].update(agent_id=[[]]),
    "value that is no choice": lambda data: data["agent_options"].update(parameters_per=-1),
    "layer that fits in no memory": lambda data: data["agent_options"].update(hidden=[10**17]),
    "nobody": lambda data: data["spec"].update(agents=[]),
    "huge space": lambda data: data["spec"].update(action_space={"kind": "discrete", "n": 10**400}),
}


@pytest.mark.parametrize("change", RESEALED)
def test_a_checkpoint_that_was_resealed_with_wrong_data_is_a_checkpoint_error(saved, change):
    trainer, checkpoint = saved
    before = reseal(checkpoint, RESEALED[change])
    try:
        with pytest.raises(CheckpointError):
            use(trainer, checkpoint)
    finally:
        (checkpoint / "manifest.json").write_text(before)


def test_a_checkpoint_of_another_version_is_named(saved):
    _, checkpoint = saved
    before = reseal(checkpoint, lambda data: data.pop("warned"))
    with pytest.raises(CheckpointError, match="made by another version of seqmarl: it lacks warned; load it with that"):
        load_policy(checkpoint)
    (checkpoint / "manifest.json").write_text(before)
