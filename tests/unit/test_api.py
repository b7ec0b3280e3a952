"""The Python interface: train, evaluate, resume, load and make."""

import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import marl
from marl.advantages import GAE
from marl.agents.mlp import MLPOptions, make_mappo
from marl.config import from_yaml, to_yaml
from marl.errors import CallbackError, ConfigError, UnknownNameError
from marl.objective import ClippedPPO
from marl.registry import AGENTS, EnvFactory

QUICK = {"num_envs": 4, "rollout_steps": 8, "steps": 32, "epochs": 1, "eval_episodes": 2}


def own_agent(spec, width=8):
    return make_mappo(spec, MLPOptions(hidden=(width,)))


def own_env(task="chain"):
    return EnvFactory(f"toy/{task}")()


def test_train_evaluate_and_resume(tmp_path):
    result = marl.train(env="toy/climbing", agent="mappo", hidden=(8,), runs_dir=str(tmp_path), name="a", **QUICK)
    assert result.folder == tmp_path / "a"
    assert {"eval/return", "test/return"} <= result.scores.keys()
    evaluation = marl.evaluate(result, episodes=3)
    assert [row.episode for row in evaluation.episodes["climbing"]] == [0, 1, 2]
    assert evaluation.scores["test/return"] == pytest.approx(
        np.mean([row.episode_return for row in evaluation.episodes["climbing"]])
    )
    assert marl.resume(result.folder, steps=64).steps == 64
    with pytest.raises(ConfigError, match="act='both'; give one of run, greedy, sampled, and call twice"):
        marl.evaluate(result, act="both")  # pyright: ignore[reportArgumentType]
    assert marl.evaluate("toy/chain", agent="random", episodes=2).scores["test/length"] > 0
    assert marl.load_policy(result.folder).spec.name == result.policy.spec.name


def test_factories_train_from_a_thread_without_signal_handlers(tmp_path):
    """Functions stand for names, and a thread, as of a notebook's kernel, may train."""
    found = []

    def work():
        found.append(marl.train(env=own_env, agent=own_agent, runs_dir=str(tmp_path), **QUICK))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].policy.spec.name == "toy/chain"
    config = from_yaml((found[0].folder / "config.yaml").read_text())
    assert config.agent.endswith("test_api:own_agent")


def test_a_file_of_settings_takes_overrides(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "env: toy/chain\nagent: mappo\nlearn: {epochs: 3, learning_rate: 1e-3}\nagent_options: {hidden: [8]}\n"
    )
    result = marl.train(file, runs_dir=str(tmp_path), **QUICK | {"epochs": 2})
    config = from_yaml((result.folder / "config.yaml").read_text())
    assert (config.learn.epochs, config.learn.learning_rate, config.agent_options.hidden) == (2, 1e-3, (8,))
    assert to_yaml(from_yaml(to_yaml(config))) == to_yaml(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: toy/chain\nagent: mat\nlern: {clip: 0.1}", "unknown field 'lern'; did you mean 'learn'"),
        ("env: toy/chain\nagent: mat\nlearn: {epoch: 1}", "unknown field of learn 'epoch'; did you mean 'epochs'"),
        ("env: toy/chain\nagent: mat\nepochs: 1", "'epochs' is not a field; write it under learn"),
        ("env: toy/chain\nagent: mat\nlearn: {steps: 1}", "'steps' is not a field of learn; write it under no part"),
        ("env: toy/chain\nagent: mat\nlearn: {epochs: many}", "learn.epochs"),
        ("env: toy/chain\nagent: mta", "did you mean 'mat'"),
        ("steps: 3", "no text under 'env'"),
        ("- 3", "no text under 'env'"),
    ],
)
def test_a_wrong_field_of_a_file_is_named(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml") as error:
        marl.train(file)
    assert message in str(error.value)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        marl.train(env="toy/chain", epoch=1)
    with pytest.raises(ConfigError, match="steps"):
        marl.train(env="toy/chain", runs_dir=str(tmp_path), steps="many")
    with pytest.raises(ConfigError, match="give config="):
        marl.train()
    with pytest.raises(ConfigError, match="env beside a RunConfig"):
        marl.train(from_yaml("env: toy/chain\nagent: mat"), env="toy/copy")
    with pytest.raises(ConfigError, match="cannot read"):
        marl.train(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="episodes"):
        marl.evaluate("toy/chain", episodes=0)
    with pytest.raises(UnknownNameError, match="unknown option of toy/chain 'lenght'"):
        marl.evaluate("toy/chain", lenght=3)
    with pytest.raises(ConfigError, match="is a run with its own environment options; leave length out"):
        marl.evaluate(tmp_path, length=3)
    with pytest.raises(ConfigError, match=r"env=.* is an instance of Matrix.*; give a name, or the class or function"):
        marl.train(env=marl.make("toy/climbing"))
    with pytest.raises(ConfigError, match=r"agent=<function .*lambda.* cannot be imported"):
        marl.train(env="toy/climbing", agent=lambda _: None)
    with pytest.raises(ConfigError, match="wrong type"):
        marl.train(env=own_env, kwargs={"task": object()})


@dataclass(frozen=True)
class Late(GAE):
    """Fails in an iteration."""

    def __call__(self, rollout, context):
        if rollout.reward.shape[0] == 8:
            raise KeyError("ratio")
        return super().__call__(rollout, context)


@dataclass(frozen=True)
class Broken(ClippedPPO):
    def extra_terms(self, evaluation, batch, units):  # noqa: ARG002
        return {}["surrogate"]


def test_classes_are_algorithms(tmp_path):
    run = {"env": "toy/climbing", "agent": "mappo", "runs_dir": str(tmp_path), "eval_episodes": 0, "num_envs": 4}
    result = marl.train(**run, advantage=Late, objective=ClippedPPO, rollout_steps=4, steps=16)
    settings = (result.folder / "config.yaml").read_text()
    assert f"advantage: {__name__}:Late" in settings
    assert "objective: ppo" in settings
    with pytest.raises(ConfigError, match=r"advantage=.* is an instance of GAE; give the class"):
        marl.train(**run, advantage=GAE())
    with pytest.raises(CallbackError, match=r"advantage Late raised KeyError at .*test_api.py:\d+: 'ratio'"):
        marl.train(**run, advantage=Late, rollout_steps=8, steps=32)
    with pytest.raises(CallbackError, match=r"objective Broken raised KeyError at .*test_api.py:\d+: 'surrogate'"):
        marl.train(**run, objective=Broken, rollout_steps=4, steps=16)


def test_a_run_names_the_module_that_registered_its_agent(tmp_path, monkeypatch):
    mappo = AGENTS.get("mappo")
    entry = replace(mappo, name="own", make=lambda spec, options: mappo.make(spec, options))
    monkeypatch.setitem(AGENTS.entries, "own", entry)
    result = marl.train(env="toy/climbing", agent="own", runs_dir=str(tmp_path), steps=100, eval_episodes=0)
    monkeypatch.delitem(AGENTS.entries, "own")
    with pytest.raises(ConfigError, match="unknown agent 'own'") as caught:
        marl.evaluate(result.folder)
    (note,) = caught.value.__notes__
    assert note.startswith(f"{__name__} registered it when the run was made. In Python, import that first.")


def test_make_returns_an_environment():
    env = marl.make("toy/agent_death", length=5)
    assert env.reset(0).alive.all()
    env.close()
    assert marl.make(own_env, kwargs={"task": "copy"}).spec.name == "toy/copy"
    with pytest.raises(UnknownNameError, match=r"as kwargs=\{\.\.\.\}"):
        marl.make(own_env, task="copy")
    with pytest.raises(UnknownNameError, match="unknown option of toy/chain 'lenght'"):
        marl.make("toy/chain", lenght=3)


def test_the_package_imports_without_torch():
    code = "import sys, marl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
    for name in marl.__all__:
        assert getattr(marl, name).__doc__
