"""Suites: files that name tasks, agents, settings and budgets, and the plans that they make."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from marl.config import override
from marl.errors import ConfigError, unknown_name_message
from marl.experiments.api import with_options
from marl.experiments.presets import choose
from marl.experiments.suite.plan import Job, Plan, folder_name, read_file, require_distinct, require_distinct_folders

THREADS = {"learn_threads": 1, "env_threads": 1}
"""Runs share the cores: each has one. So results do not depend on how many run at the same time."""


@dataclass(frozen=True)
class Scale:
    """Budget of a suite. What is left out is that of the suite."""

    seeds: tuple[int, ...] = (1,)
    steps: int | None = None
    """Environment steps of each run; without them, those of the presets."""
    task_steps: dict[str, int] = field(default_factory=dict)
    """Environment steps on single tasks."""
    tasks: tuple[str, ...] | None = None
    agents: tuple[str, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `marl train` for every run."""


@dataclass(frozen=True)
class SuiteFile:
    """A suite as a YAML file."""

    title: str
    tasks: tuple[str, ...]
    """Names of environments."""
    agents: tuple[str, ...]
    metric: str
    """Metric of the report."""
    step: str
    """Meaning of an environment step."""
    scales: dict[str, Scale]
    source: str = ""
    """Publication of the settings and scores."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `marl train` for every run, above the presets."""
    task_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    agent_options: dict[str, dict[str, Any]] = field(default_factory=dict)


def known_suites() -> dict[str, Path]:
    """Return the files of the suites of this package by name."""
    folder = Path(str(files("marl.experiments") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_suite(name: str) -> Path:
    """Return the file of a suite by its name or path. Raises ConfigError with the closest name if there is none."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"there is no suite file {name}")
        return Path(name)
    if name not in (known := known_suites()):
        raise ConfigError(unknown_name_message("suite", name, known, "give one of them, or a .yaml file"))
    return known[name]


def plan_suite(
    name: str,
    scale: str,
    folder: Path,
    *,
    tasks: tuple[str, ...] = (),
    agents: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> Plan:
    """Return the runs of a suite. Empty `tasks`, `agents` and `seeds` are those of the scale.

    A single number in `seeds` is a count: 5 means the seeds 1 to 5. Every run is checked before anything starts.
    Raises ConfigError for a task, agent, scale or option that does not exist, or for two equal ones.
    """
    path = find_suite(name)
    suite: SuiteFile = read_file(path, SuiteFile)
    if scale not in suite.scales:
        raise ConfigError(unknown_name_message(f"scale of {path.stem}", scale, suite.scales))
    budget = suite.scales[scale]
    chosen = tuple(full_name(task, suite) for task in tasks or budget.tasks or suite.tasks)
    agents = agents or budget.agents or suite.agents
    if len(seeds) == 1:
        if seeds[0] < 1:
            raise ConfigError(f"seeds={seeds[0]}; give a number of seeds, 1 or more, or several seeds")
        seeds = tuple(range(1, seeds[0] + 1))
    seeds = seeds or budget.seeds
    for option, values in (("tasks", chosen), ("agents", agents), ("seeds", seeds)):
        require_distinct(option, values)
    jobs = []
    for task in chosen:
        for agent in agents:
            steps = budget.task_steps.get(task, budget.steps)
            settings = THREADS | suite.options | budget.options
            settings |= suite.task_options.get(task, {}) | suite.agent_options.get(agent, {})
            settings |= {} if steps is None else {"steps": steps}
            settings |= options or {}
            base = with_options(choose(task, agent)[0], settings)
            place = folder / folder_name(task.partition("/")[2] or task) / agent
            for seed in seeds:
                own = {"seed": seed, "runs_dir": str(place), "name": str(seed)}
                jobs.append(Job(override(base, own), task, agent))
    require_distinct_folders(jobs)
    about = [suite.title, *([f"Source: {suite.source}"] if suite.source else []), f"A step is {suite.step}."]
    return Plan(f"{path.stem}, scale {scale}", folder, suite.metric, tuple(jobs), tuple(about))


def full_name(task: str, suite: SuiteFile) -> str:
    """Return the name of an environment of which the family may be left out. Raises ConfigError if it is unknown."""
    if task in suite.tasks or "/" in task or ":" in task:
        return task
    families = dict.fromkeys(each.partition("/")[0] for each in suite.tasks if "/" in each)
    matches = [each for each in suite.tasks if each.partition("/")[2] == task]
    if matches:
        return matches[0]
    if len(families) == 1:
        return f"{next(iter(families))}/{task}"
    raise ConfigError(unknown_name_message("task", task, suite.tasks))
