"""Suites and sweeps: plans are checked before anything starts, and nothing that is done is done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from marl.errors import ConfigError, MarlError
from marl.experiments.suite.command import SuiteCommand, SweepCommand, run_suite, run_sweep
from marl.experiments.suite.cost import Rate, estimate
from marl.experiments.suite.plan import Progress, progress_of, read_file
from marl.experiments.suite.scheduler import plan_lock
from marl.experiments.suite.suite import SuiteFile, known_suites, plan_suite
from marl.experiments.suite.sweep import plan_sweep

SUITE = {
    "title": "Toys",
    "metric": "return",
    "step": "one step",
    "tasks": ["toy/climbing", "toy/xor3"],
    "agents": ["mappo", "ippo"],
    "options": {"num_envs": 4, "rollout_steps": 8, "eval_episodes": 2, "eval_interval": 2, "hidden": [16]},
    "scales": {"smoke": {"steps": 64, "seeds": [1, 2]}, "long": {"steps": 10**8, "seeds": [7]}},
}
SWEEP = {
    "env": "toy/climbing",
    "agent": "mappo",
    "search": "grid",
    "values": {"learning_rate": [1e-3, 1e-2], "epochs": [1]},
    "options": {"num_envs": 4, "rollout_steps": 8, "eval_episodes": 2, "steps": 64},
    "seeds": [11],
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file of a suite or a sweep with changes; return its name."""
    monkeypatch.chdir(tmp_path)

    def write(content, **changes):
        path = Path("toys.yaml")
        path.write_text(yaml.safe_dump(content | changes))
        return str(path)

    return write


SCALES = [(name, scale) for name, path in known_suites().items() for scale in read_file(path, SuiteFile).scales]


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_suites_of_this_package_can_be_planned(name, scale, tmp_path):
    plan = plan_suite(name, scale, tmp_path)
    assert plan.jobs
    assert len({job.folder for job in plan.jobs}) == len(plan.jobs)
    assert all(job.config.compute.learn_threads == 1 for job in plan.jobs)


def test_a_suite_runs_once_and_reports(write, capfd):
    """The second time nothing is left, and a task more adds its runs alone."""
    file = write(SUITE)
    command = SuiteCommand(suite=file, scale="smoke", tasks=("xor3",), jobs=2)
    assert run_suite(command) == 0
    folder = Path("runs/toys-smoke")
    assert {path.name for path in folder.glob("report.*")} == {"report.html", "report.md", "report.csv", "report.json"}
    first = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    assert len(first) == 4
    capfd.readouterr()
    assert run_suite(SuiteCommand(suite=file, scale="smoke", agents=("mappo",), jobs=2)) == 0
    out = capfd.readouterr().out
    assert "4 runs, 2 done" in out
    assert "128 steps are left" in out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}
    assert len(after) == 6
    assert first.items() <= after.items()
    with pytest.raises(ConfigError, match=r"other settings \(epochs=5 there and 2 here\)"):
        run_suite(SuiteCommand(suite=file, scale="smoke", settings={"epochs": 2}))


def test_a_run_that_fails_does_not_stop_the_others(write, capfd, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    broken = "tests.support.faulty_envs:make"
    options = {broken: {"kwargs": {"what": "raise", "at": 3}}}
    file = write(SUITE, tasks=[broken, "toy/climbing"], agents=["mappo"], task_options=options)
    assert run_suite(SuiteCommand(suite=file, scale="smoke", jobs=1)) == 1
    said = capfd.readouterr()
    assert "done: toy/climbing mappo seed 1" in said.out
    assert "its output is in runs/toys-smoke/logs/tests.support.faulty_envs-make-mappo-1.log" in said.out
    assert "2 runs failed and 0 are unfinished; the same command continues them" in said.err


def test_a_full_disk_starts_no_further_run_and_says_so(write, capfd, monkeypatch):
    """The disk fills up when the first run has begun, which goes on to its end."""
    begun = []

    def usage(folder):
        begun.append(folder)
        return SimpleNamespace(free=10**12 if len(begun) <= 2 else 10**6)  # one question is of the cost

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert run_suite(SuiteCommand(suite=write(SUITE), scale="smoke", tasks=("xor3",), jobs=1)) == 1
    said = capfd.readouterr()
    assert "done: toy/xor3 mappo seed 1" in said.out
    assert "the disk of runs/toys-smoke is full, so no further run starts; make room and repeat" in said.out
    assert "0 runs failed and 3 are unfinished" in said.err


def test_a_killed_suite_leaves_no_process_and_goes_on(write):
    """kill -9 of the command: its run saves and ends, and the same command continues it."""
    file = write(SUITE, tasks=["toy/climbing"], agents=["mappo"])
    command = [sys.executable, "-m", "marl.experiments.cli", "suite", file, "--scale", "long", "--jobs", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    folder = Path("runs/toys-long/climbing/mappo/7")
    wait_until(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", "interrupted")
    plan = plan_suite(file, "long", Path("runs/toys-long"))
    found = progress_of(plan.jobs[0])
    assert (found.state, found.steps) == ("unfinished", status["steps"])
    steps = {"toy/climbing": found.steps + 32}
    shorter = SUITE["scales"] | {"long": {"task_steps": steps, "seeds": [7]}}
    write(SUITE, tasks=["toy/climbing"], agents=["mappo"], scales=shorter)
    assert run_suite(SuiteCommand(suite=file, scale="long", jobs=1)) == 0
    assert progress_of(plan_suite(file, "long", Path("runs/toys-long")).jobs[0]) == Progress(
        "done", found.steps + 32, version=found.version
    )


def wait_until(reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "smak"}, "unknown suite 'smak'; did you mean 'smac'"),
        ({"suite": "none.yaml"}, r"there is no suite file none.yaml"),
        ({"scale": "huge"}, "unknown scale of toys 'huge'; known: long, smoke"),
        ({"tasks": ("climbin",)}, "unknown task of toy 'climbin'; did you mean 'climbing'"),
        ({"agents": ("mapo",)}, "unknown agent 'mapo'; did you mean 'mappo'"),
        ({"agents": ("mappo", "mappo")}, "agents has mappo 2 times; give it once"),
        ({"seeds": (3, 3)}, "seeds has 3 2 times; give it once"),
        ({"seeds": (0,)}, "seeds=0; give a number of seeds"),
        ({"settings": {"epocs": 2}}, "unknown option of mappo on toy/climbing 'epocs'; did you mean 'epochs'"),
        ({"settings": {"epochs": "many"}}, "epochs"),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_starts(write, changes, message):
    file = write(SUITE)
    with pytest.raises(MarlError, match=message):
        run_suite(SuiteCommand(**({"suite": file, "scale": "smoke"} | changes)))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serch": "grid"}, "unknown field 'serch'; did you mean 'search'"),
        ({"search": "all"}, "toys.yaml: .*search"),
        ({"values": {"epocs": [1]}}, "unknown option .*'epocs'; did you mean 'epochs'"),
        ({"values": {"seed": [1]}}, "have seed; a sweep has a field for it"),
        ({"values": {"epochs": {"low": 1, "high": 3}}}, "give a list$"),
        ({"search": "random", "values": {"epochs": {"low": 3, "high": 1}}}, "range 3 to 1 holds no numbers"),
        ({"search": "list"}, "search=list takes the field settings"),
        ({"seeds": [4, 4]}, "seeds has 4 2 times"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_starts(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        plan_sweep(Path(write(SWEEP, **changes)), Path("runs/toys"))


def test_a_sweep_ranks_and_writes_the_best(write, capfd):
    file = Path(write(SWEEP))
    assert run_sweep(SweepCommand(file=file, jobs=2)) == 0
    out = capfd.readouterr().out
    assert "grid search over epochs, learning_rate: 2 settings, 1 seeds" in out
    assert "wrote runs/toys/best-toy-climbing-mappo.yaml" in out
    best = yaml.safe_load(Path("runs/toys/best-toy-climbing-mappo.yaml").read_text())
    assert best["env"] == "toy/climbing"
    assert best["learn"]["learning_rate"] in (1e-3, 1e-2)
    assert "seed" not in best


def test_a_random_search_is_seeded(write):
    values = {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "epochs": {"low": 1, "high": 9, "integer": True},
    }
    file = Path(write(SWEEP, search="random", values=values, samples=5))
    rates = [[job.config.learn.learning_rate for job in plan_sweep(file, Path("x"))[1].jobs] for _ in range(2)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 5
    assert all(1e-4 <= rate <= 1e-2 for rate in rates[0])


def test_two_commands_in_one_folder(tmp_path):
    with plan_lock(tmp_path), pytest.raises(ConfigError, match="another command works in"), plan_lock(tmp_path):
        pass


def test_the_cost_is_that_of_what_is_left(write):
    plan = plan_suite(write(SUITE), "smoke", Path("runs/toys"))
    progress = {job: Progress("done", 64) if job.config.seed == 1 else Progress("unfinished", 32) for job in plan.jobs}
    rates = {(task, agent): Rate(0.5, 10**6) for task in SUITE["tasks"] for agent in SUITE["agents"]}
    cost = estimate(plan.jobs, progress, rates, slots=2)
    assert cost.steps == 4 * 32
    assert cost.hours == pytest.approx(4 * 64 / 2 / 3600)
    assert cost.text().startswith("128 steps are left: about 2 minutes and up to ")
    assert estimate(plan.jobs, progress, {}, slots=2).text() == "128 steps are left; their speed was not measured"
