"""Engines of suites: Ray and SLURM execute the same runs with the same results."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from marl.errors import ConfigError, MissingDependencyError
from marl.experiments.suite.command import SuiteCommand, open_engine, run_suite
from marl.experiments.suite.engines.local import LocalEngine
from marl.experiments.suite.engines.ray import News, RayEngine, Remote, bring_home, require_answer
from marl.experiments.suite.engines.slurm import SlurmEngine
from marl.experiments.suite.plan import progress_of
from marl.experiments.suite.scheduler import Scheduler
from marl.experiments.suite.suite import plan_suite
from marl.experiments.suite.table import ProgressTable

SUITE = {
    "title": "Toys",
    "metric": "return",
    "step": "one step",
    "tasks": ["toy/climbing"],
    "agents": ["mappo"],
    "options": {"num_envs": 4, "rollout_steps": 8, "eval_episodes": 2, "eval_interval": 0, "hidden": [16]},
    "scales": {
        "smoke": {"steps": 64, "seeds": [1, 2]},
        "long": {"steps": 12_000, "seeds": [7, 8], "options": {"checkpoint_interval": 50}},
        "broken": {"steps": 64, "seeds": [1], "options": {"init_from": "nowhere"}},
    },
}


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Return the name of a suite's file in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = Path("toys.yaml")
    path.write_text(yaml.safe_dump(SUITE))
    return str(path)


def weights(folder: Path):
    newest = max((folder / "checkpoints").glob("step_*"))
    return newest.name, {name: array.tobytes() for name, array in load_file(newest / "model.safetensors").items()}


def scores(folder: Path):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {tag: value for tag, value in row.items() if not tag.startswith(("speed/", "time/", "memory/"))} for row in rows
    ]


def execute(plan, engine):
    """Execute a plan, and return the states of its runs."""
    progress = {job: progress_of(job) for job in plan.jobs}
    plan.folder.mkdir(parents=True, exist_ok=True)
    return Scheduler(plan, progress, engine=engine, table=ProgressTable(plan), rates={}).execute()


def require_equal(plan, other):
    """The runs of two plans have equal weights and scores."""
    for job, twin in zip(plan.jobs, other.jobs, strict=True):
        assert weights(job.folder) == weights(twin.folder)
        assert scores(job.folder) == scores(twin.folder)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("address", "127.0.0.1:9", "address is an option of --engine ray, and engine='local'"),
        ("slurm", {"timeout_min": 5}, "slurm is an option of --engine slurm, and engine='local'"),
    ],
)
def test_options_of_another_engine_are_refused(option, value, message):
    with pytest.raises(ConfigError, match=message):
        SuiteCommand(**{option: value})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "head", "127.0.0.1:99999999"])
def test_an_address_that_does_not_answer_is_named_at_once(address):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"address='{address}'"):
        require_answer(address)
    assert time.monotonic() - began < 30


def test_ray_that_is_absent_is_named_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(MissingDependencyError, match=r"engine='ray' needs the package ray; install with: pip install"):
        RayEngine()


def test_files_come_home_and_old_ones_go(suite, tmp_path):
    (job, _) = plan_suite(suite, "smoke", tmp_path / "plan").jobs
    run = Remote(job, tmp_path / "log", None)
    bring_home(
        run,
        News(
            {"a/one": b"1", "a/two": b"2", "config.yaml": b"x"},
            frozenset({"a/one", "a/two", "config.yaml"}),
            b"ho",
            None,
        ),
    )
    assert str(tmp_path / "plan") in (job.folder / "config.yaml").read_text()
    bring_home(run, News({"b/three": b"3"}, frozenset({"b/three", "config.yaml"}), b"me", 0))
    assert sorted(path.name for path in job.folder.rglob("*")) == ["b", "config.yaml", "three"]
    assert (tmp_path / "log").read_bytes() == b"home"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_survive_the_loss_of_a_node(suite, tmp_path):
    """A Ray cluster of three nodes; the node of the first run is killed after its first checkpoint is home."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    here, there = (plan_suite(suite, "long", tmp_path / name) for name in ("here", "there"))
    execute(here, LocalEngine(2))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        engine = RayEngine(cluster.address)
        assert engine.slots == 2
        killed = []

        poll = engine.poll

        def poll_and_kill():
            if not killed and list(there.jobs[0].folder.glob("checkpoints/step_*")):
                killed.append(nodes[0])
                cluster.remove_node(nodes[0], allow_graceful=False)
                nodes[0] = cluster.add_node(num_cpus=1)
            return poll()

        engine.poll = poll_and_kill
        states = execute(there, engine)
        assert killed
        assert [state.state for state in states.values()] == ["done", "done"]
        logs = "".join(path.read_text() for path in (tmp_path / "there" / "logs").iterdir())
        assert "its node was lost; continues on another one, try 2" in logs
        require_equal(here, there)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_fails_on_a_node_says_why(suite, capfd):
    pytest.importorskip("ray")
    assert run_suite(SuiteCommand(suite=suite, scale="broken", engine="ray")) == 1
    assert "nowhere" in capfd.readouterr().err


SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
count = int(re.search(r"--array=0-([0-9]+)", text)[1]) + 1 if "--array" in text else 1
open({calls!r}, "a").write(f"{{count}}\\n")
for index in range(count):
    names = {{"JOB_ID": 70 + index, "ARRAY_JOB_ID": 70, "ARRAY_TASK_ID": index, "LOCALID": 0, "PROCID": 0, "NTASKS": 1}}
    names = {{f"SLURM_{{name}}": str(value) for name, value in names.items()}}
    names |= {{"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SUBMITIT_EXECUTOR": "slurm"}}
    command = text[text.index({python!r} + " -u") :]
    quiet = {{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
    subprocess.Popen(["bash", "-c", command], env=os.environ | names, start_new_session=True, **quiet)
print("Submitted batch job 70")
"""
SACCT = """#!{python}
import glob
print("JobID|State|NodeList")
for index in range(4):
    state = "COMPLETED" if glob.glob({folder!r} + f"/70_{{index}}_*_result.pkl") else "RUNNING"
    print(f"70_{{index}}|{{state}}|here")
"""


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put stand-ins of SLURM's commands on the PATH, which execute scripts here. Return a file of the calls."""
    pytest.importorskip("submitit")
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    command(tools, "sbatch", SBATCH.format(python=sys.executable, calls=str(calls)))
    command(tools, "sacct", SACCT.format(python=sys.executable, folder=str(tmp_path / "there" / "submitit")))
    command(tools, "srun", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return calls


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_runs_are_submitted_as_one_array_job(suite, slurm, tmp_path):
    here, there = (plan_suite(suite, "smoke", tmp_path / name) for name in ("here", "there"))
    execute(here, LocalEngine(2))
    states = execute(there, SlurmEngine(there.folder, {"timeout_min": 5}))
    assert [state.state for state in states.values()] == ["done", "done"]
    assert slurm.read_text() == "2\n"
    record = json.loads((tmp_path / "there" / "slurm.json").read_text())
    assert sorted(record.values()) == ["70_0", "70_1"]
    require_equal(here, there)


def test_an_unfit_parameter_of_slurm_is_named(slurm, tmp_path):
    assert slurm
    with pytest.raises(ConfigError, match=r"slurm=.*cpus_per_taks.* does not fit"):
        open_engine(tmp_path, SuiteCommand(engine="slurm", slurm={"cpus_per_taks": 2}))


def test_slurm_that_is_absent_is_named(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="engine='slurm' finds no SLURM on this machine"):
        open_engine(tmp_path, SuiteCommand(engine="slurm"))


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_later_command_waits_for_the_jobs_of_an_earlier_one(suite, slurm, tmp_path):
    plan = plan_suite(suite, "long", tmp_path / "there")
    first = SlurmEngine(plan.folder, {})
    (plan.folder / "logs").mkdir(parents=True)
    for job in plan.jobs:
        first.submit(job, plan.folder / "logs" / f"{job.config.seed}.log")
    assert list(first.poll()) == []
    states = execute(plan, SlurmEngine(plan.folder, {}))
    assert [state.state for state in states.values()] == ["done", "done"]
    assert slurm.read_text() == "2\n"
