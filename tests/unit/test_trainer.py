"""Trainer: non-finite numbers, dead workers and odd sizes."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marl import run, run_folder
from marl.advantages import explained_variance, standardize
from marl.agents.mlp import MLPPolicy
from marl.backup import Links
from marl.checkpoint.store import load, save
from marl.config import default_config, digest, from_yaml, override, to_yaml
from marl.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentContractError,
    MemoryLimitError,
    NonFiniteError,
    UnknownNameError,
    WorkerError,
)
from marl.evaluation import EpisodeRow, paired_seeds, run_episodes, summarize
from marl.objective import Batch
from marl.optimizer import parameter_groups
from marl.policy_io import load_policy
from marl.registry import AGENTS, ENVS, EnvEntry
from marl.rollout import iter_minibatches
from marl.settings import LearnConfig
from marl.types import Nodes
from marl.vector import make_vector

BROKEN = "tests.support.faulty_envs:make"


def broken(small, what, at, once="", **changes):
    config = small(BROKEN, "mat", eval_episodes=0, **changes)
    return override(config, {"kwargs": {"what": what, "at": at, "once": str(once)}})


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_nan_is_located_and_what_was_learned_is_kept(small, tmp_path, what):
    once = tmp_path / "once"
    config = broken(small, what, at=19, once=once)  # the third rollout of eight steps
    with pytest.raises(
        NonFiniteError, match=r"environment 0, agent 'agent_0'.*step 4 .*after 76 environment"
    ) as caught:
        run.start(config)
    assert "marl resume" in caught.value.__notes__[0]
    folder = Path(config.runs_dir) / "run"
    assert load(folder / "checkpoints").step == 2 * 32
    run.resume(folder, {})
    assert rows(folder)[-1]["step"] == config.steps


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_dropped_episodes_are_left_out(small, tmp_path, what):
    config = broken(small, what, at=19, once=tmp_path / "once", on_nonfinite="drop")
    folder = run.start(config).folder
    dropped = [row.get("episode/dropped", 0) for row in rows(folder)]
    assert dropped == [0, 0, 1, 0, 0, 0]
    assert all(np.isfinite(v) for row in rows(folder) for v in row.values())


def test_dropping_everything_stops_the_run(small):
    with pytest.raises(NonFiniteError, match="every step of a rollout was dropped"):
        run.start(broken(small, "always", at=1, on_nonfinite="drop"))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("mask", ", agent 'agent_0'.* after 5 steps of its episode: action_mask allows no action"),
        ("outside", ", agent 'agent_0'.* outside the declared"),
        ("unborn", ": no agent is alive at the beginning"),
    ],
)
def test_spaces_that_lie_are_named(small, what, said):
    with pytest.raises(EnvironmentContractError, match=f"environment 0{said}"):
        run.start(broken(small, what, at=5))


@pytest.mark.parametrize("agent", ["mat-bad", "mat-gru", "happo"])
def test_a_step_without_anybody_is_passed_over(small, agent):
    """One step in the middle of an episode has no living agent in every environment, so it holds no decisions."""
    config = override(small(BROKEN, agent, eval_episodes=0, steps=96), {"kwargs": {"what": "nobody", "at": 3}})
    found = rows(run.start(config).folder)
    assert len(found) == 3
    assert all(np.isfinite(value) for row in found for value in row.values())


def test_a_full_disc_at_a_checkpoint_does_not_stop_training(small, monkeypatch, caplog):
    calls = []

    def sometimes(*args, **options):
        calls.append(args)
        if len(calls) in (2, 3):
            raise CheckpointError("no space left")
        return save(*args, **options)

    monkeypatch.setattr("marl.callbacks.save", sometimes)
    folder = run.start(small(eval_episodes=0)).folder
    assert "no space left" in caplog.text
    assert load(folder / "checkpoints").step == 192


def test_non_finite_loss_keeps_finite_weights(small):
    config = broken(small, "huge", at=12)
    with pytest.raises(NonFiniteError, match="iteration 2: loss or gradient of epoch 1 is not finite"):
        run.start(config)
    checkpoint = load(Path(config.runs_dir) / "run" / "checkpoints")
    assert checkpoint.step == 32
    for group in ("model", "optimizer", "value_norm"):
        assert all((x.abs() < 1e6).all() for x in checkpoint.tensors[group].values())


def test_an_error_does_not_replace_the_checkpoint_of_the_same_step(small, tmp_path):
    """Saved at iteration 2 with environments; the error in iteration 3 must not write it again."""
    config = broken(small, "reward", at=19, once=tmp_path / "once")
    with pytest.raises(NonFiniteError):
        run.start(config)
    folder = Path(config.runs_dir) / "run"
    run.resume(folder, {})
    whole = run.start(broken(small, "nothing", at=19, name="whole")).folder
    a, b = (load(f / "checkpoints").tensors["model"] for f in (folder, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("agent", ["mat", "mappo"])
def test_a_bad_state_is_located_too(small, tmp_path, agent):
    config = override(
        small(BROKEN, agent, eval_episodes=0), {"kwargs": {"what": "state", "at": 3, "once": str(tmp_path / "once")}}
    )
    with pytest.raises(NonFiniteError, match=r"environment 0.*step 3"):
        run.start(config)


def test_evaluation_leaves_out_what_is_not_finite():
    bad, good = EpisodeRow(0, 1, float("nan"), 3, True), EpisodeRow(1, 2, 4.0, 3, True)
    assert summarize([bad]) == {"eval/dropped": 1.0}
    summary = summarize([bad, good])
    assert summary["eval/return"] == 4.0
    assert summary["eval/dropped"] == 1.0


def test_what_every_episode_says_of_itself_is_averaged():
    infos = [{"success": 1.0, "dead_allies": 2.0, "rare": 1.0}, {"success": 0.0, "dead_allies": 3.0}]
    noise = {"reward_ctrl": 1.0, "distance_penalty": 1.0, "agent_0/x": 1.0, "episode_return": 4.0, "odd": float("inf")}
    rows = [EpisodeRow(i, i, 1.0, 3, True, {**info, **noise}) for i, info in enumerate(infos)]
    summary = summarize(rows)
    assert summary.keys() - {"eval/return", "eval/return_low", "eval/return_high", "eval/length"} == {
        "eval/success",
        "eval/dead_allies",
    }
    assert (summary["eval/success"], summary["eval/dead_allies"]) == (0.5, 2.5)


class Adapter(MLPPolicy):
    """Saves and trains its actor alone; the critic is part of a frozen backbone that is not the module's."""

    def state_dict(self, *args, **options):
        return {name: x for name, x in super().state_dict(*args, **options).items() if name.startswith("actor")}

    def load_state_dict(self, state, strict=True, assign=False):  # noqa: ARG002
        assert state
        return super().load_state_dict(state, strict=False)


def test_a_module_that_saves_adapters_only(small):
    """The checkpoints hold them and no more, and the last and the best one load."""

    def make(spec, options):
        policy = Adapter(spec, options, central=False)
        torch.manual_seed(0)
        for parameter in policy.critic.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
            parameter.requires_grad = False
        return policy

    AGENTS.entries["adapter"] = replace(AGENTS.get("ippo"), name="adapter", make=make)
    try:
        config = small(agent="adapter")
        folder = run.start(replace(config, steps=config.steps // 2)).folder
        run.resume(folder, {"steps": config.steps})
        whole = run.start(replace(config, name="whole")).folder
        models = [load(f / "checkpoints").tensors["model"] for f in (folder, whole)]
        assert {name.split(".")[0] for name in models[0]} == {"actor"}
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
        seen = np.zeros((1, 6), dtype=np.float32)
        for which in ("best", "last"):
            assert load_policy(folder, which).act(seen).shape == (1,)
    finally:
        del AGENTS.entries["adapter"]


def test_killed_before_the_first_checkpoint(small):
    """The folder has a configuration and lines of a log, but nothing to continue from: start or resume anew."""
    config = small(eval_episodes=0)
    folder = run.start(config).folder
    expected = load(folder / "checkpoints").tensors["model"]
    for again in (lambda: run.resume(folder, {}), lambda: run.start(config)):
        shutil.rmtree(folder / "checkpoints")
        again()
        model = load(folder / "checkpoints").tensors["model"]
        assert all(torch.equal(model[name], expected[name]) for name in expected)
        assert [row["step"] for row in rows(folder)] == [32 * i for i in range(1, 7)]


@contextmanager
def refusing(monkeypatch, limit, error):
    """Forward passes of an update that have more than `limit` rows raise."""
    evaluate, rows = MLPPolicy.evaluate, []

    def refuse(policy, inputs, nodes):
        if len(nodes.node_mask) > limit:
            raise error
        rows.append(len(nodes.node_mask))
        return evaluate(policy, inputs, nodes)

    with monkeypatch.context() as patch:
        patch.setattr(MLPPolicy, "evaluate", refuse)
        yield rows


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_what_does_not_fit_in_memory_is_halved(small, monkeypatch, caplog, error):
    """The same gradients in smaller passes, one message for each halving, and passes stay small after a resume."""
    config = small(agent="mappo", name="small", eval_episodes=0, minibatches=2, epochs=1)
    whole = load(run.start(override(config, {"name": "whole"})).folder / "checkpoints").tensors["model"]
    with refusing(monkeypatch, 5, error) as sizes:
        folder = run.start(override(config, {"steps": config.steps // 2})).folder
        assert set(sizes) == {4}
        assert caplog.text.count("out of memory in a forward pass") == 2
        run.resume(folder, {"steps": config.steps})
        assert caplog.text.count("out of memory in a forward pass") == 2
    for name, x in load(folder / "checkpoints").tensors["model"].items():
        torch.testing.assert_close(x, whole[name], atol=2e-4, rtol=2e-4)


def test_one_row_that_does_not_fit_ends_the_run(small, monkeypatch):
    with refusing(monkeypatch, 0, MemoryError("no room")), pytest.raises(MemoryLimitError, match="no room"):
        run.start(small(agent="mappo", eval_episodes=0))


def test_other_errors_of_a_forward_pass_are_not_hidden(small, monkeypatch):
    error = RuntimeError("shapes do not fit")
    with refusing(monkeypatch, 0, error), pytest.raises(RuntimeError, match="shapes do not fit"):
        run.start(small(agent="mappo", eval_episodes=0))


def test_the_critic_may_learn_at_its_own_rate(small):
    config = small(agent="mappo", critic_learning_rate=1e-12, learning_rate=1e-2, steps=32, eval_episodes=0)
    folder = run.start(config).folder
    after = load(folder / "checkpoints").tensors["model"]
    env = make_vector(config.env, {}, 4)
    before = run.build(config, env, torch.device("cpu"), 1).policy.state_dict()
    env.close()
    moved = {name: float((after[name] - x).abs().max()) > 1e-6 for name, x in before.items() if name.endswith("weight")}
    assert {name.split(".")[0] for name, yes in moved.items() if yes} == {"actor"}
    assert rows(folder)[-1]["value/learning_rate"] == 1e-12
    with pytest.raises(ConfigError, match="no critic parameters"):
        parameter_groups(torch.nn.Linear(2, 2), config.learn)


@pytest.fixture
def defined():
    """An agent that differs from mappo in the settings that define it."""
    known = AGENTS.get("mappo")
    AGENTS.entries["defined"] = replace(known, name="defined", defaults={"gamma": 0.5, "hidden": (8,), "clip": 0.3})
    yield "defined"
    del AGENTS.entries["defined"]


def test_settings_that_define_an_agent_are_its_defaults(small, defined):
    config = default_config("toy/chain", defined)
    assert (config.learn.gamma, config.objective_options.clip, config.agent_options.hidden) == (0.5, 0.3, (8,))
    assert from_yaml(to_yaml(config)) == config
    assert from_yaml(f"env: toy/chain\nagent: {defined}\nobjective_options: {{clip: 0.1}}") == override(
        config, {"clip": 0.1}
    )
    # A digest holds the differences from the agent's defaults.
    assert digest(override(config, {"clip": 0.2})) != digest(config)
    folder = run.start(small(agent=defined, eval_episodes=0)).folder
    run.resume(folder, {"steps": 256})
    assert rows(folder)[-1]["step"] == 256


def test_links_take_what_is_left_out_from_the_step():
    learn = LearnConfig(gamma=0.9, gae_lambda=0.8, token_credit="sequential", gamma_intra=None, lambda_intra=None)
    assert learn.links() == Links("parallel", "sequential", 0.9, 0.8, 0.9, 0.8)
    assert LearnConfig().links() == Links()


def test_options_that_clash_are_refused():
    @dataclass(frozen=True)
    class Clash:
        seed: int = 0

    ENVS.add(EnvEntry("clash", make=make_vector, options=Clash))
    try:
        with pytest.raises(ConfigError, match=r"'seed' of env_options"):
            default_config("clash/x", "mat")
    finally:
        del ENVS.entries["clash"]


@pytest.mark.parametrize(("what", "said"), [("raise", "divided by zero"), ("kill", "SIGKILL")])
def test_a_lost_worker_stops_the_run_with_a_checkpoint(small, what, said):
    config = broken(small, what, at=19, workers=2)
    with pytest.raises(WorkerError, match=said) as caught:
        run.start(config)
    assert "marl resume" in caught.value.__notes__[0]
    assert load(Path(config.runs_dir) / "run" / "checkpoints").step == 2 * 32


def test_a_lost_worker_is_restarted_on_request(small, tmp_path):
    config = broken(small, "kill", at=19, once=tmp_path / "once", workers=2, restart_workers=True)
    folder = run.start(config).folder
    assert rows(folder)[-1]["step"] == config.steps
    assert sum(row.get("episode/dropped", 0) for row in rows(folder)) == 2


def test_full_disc_while_logging_does_not_stop_training(small, capsys):
    config = small(eval_episodes=0)
    folder = Path(config.runs_dir) / "run"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    run.start(config)
    assert load(folder / "checkpoints").step == config.steps
    assert "metrics.jsonl" in "".join(capsys.readouterr())


def test_rollouts_without_anybody_alive_are_told_once(small, caplog):
    run.start(broken(small, "dead", at=9, steps=160))
    assert caplog.text.count("no agent had a choice in the whole rollout") == 1
    assert "iteration 3: no agent" in caplog.text


def test_a_run_that_another_rank_ends_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr("marl.distributed.any_rank", lambda *_: True)
    run.start(small(eval_episodes=0))
    assert "stopped: another rank was asked to stop. Continue with: marl resume" in capsys.readouterr().out


def test_a_folder_belongs_to_one_run(small):
    config = small(eval_episodes=0, steps=32)
    folder = Path(config.runs_dir) / config.name
    with run_folder.run_lock(folder), pytest.raises(ConfigError, match=r"another process trains in .*run; wait for it"):
        run.start(config)
    run.start(config)
    with run_folder.run_lock(folder), pytest.raises(ConfigError, match="another process trains in"):
        run.resume(folder, {"steps": 64})
    run.resume(folder, {"steps": 64})


def test_runs_of_one_second_have_folders_of_their_own_and_failures_leave_none(small):
    config = small(name="", eval_episodes=0, steps=32)
    with pytest.raises(ConfigError, match="group_size=3"):
        run.start(override(config, {"group_size": 3}))
    assert not Path(config.runs_dir).exists()
    folders = {run_folder.new_folder(config), run.start(config).folder, run_folder.new_folder(config)}
    assert len(folders) == 3
    for folder in folders:
        env, agent, seed = folder.relative_to(config.runs_dir).parts
        assert (env, agent) == ("toy-chain", "mat")
        assert seed.startswith(f"{config.seed}-")


def test_kl_stop_ends_the_epochs(small):
    config = small(target_kl=1e-9, epochs=5, learning_rate=1e-2, eval_episodes=0, steps=64)
    assert [row["policy/epochs"] for row in rows(run.start(config).folder)] == [1.0, 1.0]


def test_stop_return_ends_the_run(small):
    folder = run.start(small(stop_return=-1.0)).folder
    assert rows(folder)[-1]["step"] == 2 * 32


def test_micro_batches_and_processes_change_nothing(small):
    """The same weights whatever the forward passes hold, up to rounding, and wherever environments are stepped."""
    reference = load(run.start(small(name="a", eval_episodes=0)).folder / "checkpoints").tensors["model"]
    for name, changes, tolerance in (("b", {"micro_batch": 3}, 2e-4), ("c", {"workers": 3}, 0.0)):
        other = load(run.start(small(name=name, eval_episodes=0, **changes)).folder / "checkpoints").tensors["model"]
        for key, x in reference.items():
            torch.testing.assert_close(other[key], x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("env", "agent", "changes"),
    [
        ("toy/agent_death", "mat", {"bptt_steps": 4}),
        ("toy/agent_death", "sable", {"bptt_steps": 4}),
        ("toy/agent_death", "mat-gru", {"bptt_steps": 2, "parameters_per": "agent"}),
        ("smac/3m", "mat-bad", {"layout": "entities"}),
        ("smac/3m", "mat-encoder", {"layout": "entities"}),
        ("smac/3m+8m", "mat", {"layout": "entities"}),
    ],
)
def test_passes_change_nothing_whatever_is_read(small, env, agent, changes):
    weights = []
    for micro_batch in (0, 4):
        config = small(env, agent, name=f"passes_{micro_batch}", eval_episodes=0, micro_batch=micro_batch, **changes)
        weights.append(load(run.start(config).folder / "checkpoints").tensors["model"])
    for key, x in weights[0].items():
        torch.testing.assert_close(weights[1][key], x, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minibatches": 33}, "33, more than the 32 rows"),
        ({"num_envs": 0}, "num_envs=0"),
        ({"steps": 0}, "steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"device": "cuda:7"}, "sees none; use --device cpu"),
        ({"stop_return": 1.0, "eval_episodes": 0}, "eval_episodes is 0"),
        ({"restart_workers": True}, "worker"),
    ],
)
def test_wrong_values_are_refused_before_any_work(small, changes, said):
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ConfigError, match=said):
        run.start(small(**changes))


def test_unknown_names_suggest(small):
    with pytest.raises(UnknownNameError, match="'mat'"):
        small(agent="mta")
    with pytest.raises(UnknownNameError, match="'climbing'"):
        small(env="toy/climing")
    with pytest.raises(UnknownNameError, match="'mamujoco'"):
        small(env="mamujoko/Ant-4x2")
    with pytest.raises(ConfigError, match="learning_rate"):
        small(learning_rat=1.0)
    with pytest.raises(ConfigError, match="cannot import"):
        run.start(small(env="no.such.module:make"))


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_minibatches_hold_every_row_once(count):
    x = torch.arange(20)
    empty = torch.zeros(20, 1, 1)
    nodes = Nodes(empty, empty.bool(), empty.bool())
    batch = Batch({"x": x}, nodes, empty, empty, empty, empty)
    rows = iter_minibatches(batch, count, torch.Generator().manual_seed(0))
    parts = [batch.rows(index).inputs["x"] for index in rows]
    assert len(parts) == count
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert torch.equal(torch.cat(parts).sort().values, x)


def test_standardize_and_explained_variance_ignore_what_is_masked():
    x = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    mask = torch.tensor([True, True, True, False])
    scaled = standardize(x, mask)
    np.testing.assert_allclose(scaled.numpy(), [-1.22473, 0.0, 1.22473, 0.0], atol=1e-4)
    far = standardize(x + 1e5, mask)
    np.testing.assert_allclose(far.numpy(), scaled.numpy(), atol=1e-2)
    assert explained_variance(x, x, mask) == 1.0
    assert explained_variance(torch.zeros(4), x, mask) == 0.0


def test_evaluation_is_paired_and_plays_every_seed():
    """Whatever the number of environments, episode i is the same; long and short ones count alike."""
    from marl.agents.scripted import FixedPolicy

    seeds = paired_seeds(7)
    tables = []
    for count in (1, 3, 10):
        env = make_vector("toy/copy", {}, count)
        tables.append(run_episodes(FixedPolicy(env.spec, 0.0), env, seeds))
        env.close()
    assert tables[0] == tables[1] == tables[2]
    assert [row.seed for row in tables[0]] == seeds
    assert len({row.episode_return for row in tables[0]}) > 1
    summary = summarize(tables[0])
    assert summary["eval/return_low"] <= summary["eval/return"] <= summary["eval/return_high"]


def test_threads_follow_the_size_of_the_work(small):
    config = small("toy/copy", "mappo", learn_threads=0)
    env = make_vector(config.env, config.tasks[0].options, config.collect.num_envs)
    trainer = run.build(config, env, torch.device("cpu"), 2)
    rollout, _ = trainer.collector.collect()
    assert (trainer.act_threads, trainer.learn_threads(rollout)) == (1, 1)
    trainer.policy.threaded_acting = True
    assert (trainer.act_threads, trainer.learn_threads(rollout)) == (2, 2)
    trainer.config = override(config, {"learn_threads": 1})
    assert (trainer.act_threads, trainer.learn_threads(rollout)) == (2, 1)
    env.close()


@pytest.mark.parametrize(("stochastic", "expected"), [(False, 3), (True, 8)])
def test_greedy_evaluation_takes_no_more_environments_than_training(small, monkeypatch, stochastic, expected):
    counts = []
    original = run.make_env

    def counted(*args, train, **options):
        counts.append((args[-1], train))
        return original(*args, train=train, **options)

    monkeypatch.setattr(run, "make_env", counted)
    run.start(small(num_envs=3, eval_episodes=8, eval_stochastic=stochastic))
    assert counts == [(3, True), (expected, False)]
