"""`marl suite` and `marl sweep`: plan, say the cost, execute, and report."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from marl.cpu import free_cores
from marl.errors import ConfigError
from marl.experiments.report.command import ReportCommand, compare_runs
from marl.experiments.suite.cost import estimate, measure_missing_rates, measured_rates, require_space
from marl.experiments.suite.engines.base import Engine
from marl.experiments.suite.engines.local import LocalEngine
from marl.experiments.suite.engines.ray import RayEngine
from marl.experiments.suite.engines.slurm import SlurmEngine
from marl.experiments.suite.plan import Job, Plan, Progress, older_versions, progress_of
from marl.experiments.suite.scheduler import Scheduler, plan_lock
from marl.experiments.suite.suite import plan_suite
from marl.experiments.suite.sweep import plan_sweep, rank, ranking_tables, write_best
from marl.experiments.suite.table import ProgressTable


@dataclass(frozen=True)
class Execution:
    """Options that suites and sweeps share."""

    folder: Path | None = None
    """Folder of the runs; by default runs/NAME."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Place of the runs: local (processes of this machine), ray (nodes of a Ray cluster) or slurm (array jobs)."""
    address: str = ""
    """Ray: address of the cluster, HOST:PORT. Without one, Ray starts on this machine."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """SLURM: parameters of submitit, as in '{slurm_partition: cpu, timeout_min: 240}'."""
    jobs: int | None = None
    """Runs at the same time, one core each; by default as many as there are free cores (Ray: CPUs of the cluster)."""
    dry_run: bool = False
    """Print the runs and what they cost, and start nothing."""

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"jobs={self.jobs}; give 1 or more")
        for option, engine in (("address", "ray"), ("slurm", "slurm")):
            if getattr(self, option) and self.engine != engine:
                raise ConfigError(f"{option} is an option of --engine {engine}, and engine={self.engine!r}")


@dataclass(frozen=True)
class SuiteCommand(Execution):
    """Run a benchmark over tasks, agents and seeds, and report on it.

    The same command continues a stopped suite and leaves finished runs alone. The cost is measured and printed first.
    """

    suite: Annotated[Positional[str], arg(metavar="NAME|FILE")] = ""
    """A suite (`marl list suites`), or a YAML file, see docs/suites.md."""
    agents: tuple[str, ...] = ()
    """Agents; by default those of the suite."""
    tasks: tuple[str, ...] = ()
    """Tasks; by default those of the suite. The family may be left out."""
    seeds: tuple[int, ...] = ()
    """One number is a count, such as 5 for the seeds 1 to 5. Several are the seeds."""
    scale: str = "laptop"
    """Budget: smoke (seconds a run), laptop (minutes to an hour a run) or paper (as published)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of `marl train` for all runs, for example '{num_envs: 8}'."""


@dataclass(frozen=True)
class SweepCommand(Execution):
    """Search over options of `marl train`: a grid, random samples or a list, as a YAML file says.

    Ranks the settings on the validation seeds, and writes the best for `marl train --config`. The same command
    continues a stopped sweep."""

    file: Annotated[Positional[Path], arg(metavar="FILE")] = Path()
    """YAML file of the sweep, see docs/suites.md."""


def run_suite(command: SuiteCommand) -> int:
    """Run `marl suite`; return the exit status, 1 if a run failed or is unfinished."""
    stem = Path(command.suite).stem if command.suite.endswith((".yaml", ".yml")) else command.suite
    folder = command.folder or Path("runs") / f"{stem}-{command.scale}"
    plan = plan_suite(
        command.suite,
        command.scale,
        folder,
        tasks=command.tasks,
        agents=command.agents,
        seeds=command.seeds,
        options=command.settings,
    )
    progress = execute(plan, command)
    if progress is None:
        return 0
    done = [job.folder for job in plan.jobs if progress[job].state == "done"]
    if done:
        report = ReportCommand(
            tuple(done), metric=plan.metric, out=plan.folder / "report", format=("html", "markdown", "csv", "json")
        )
        compare_runs(report)
    return conclude(plan, progress)


def run_sweep(command: SweepCommand) -> int:
    """Run `marl sweep`; return the exit status, 1 if a run failed or is unfinished."""
    sweep, plan = plan_sweep(command.file, command.folder or Path("runs") / command.file.stem)
    progress = execute(plan, command)
    if progress is None:
        return 0
    ranking = rank(sweep, [job for job in plan.jobs if progress[job].state == "done"])
    Console().print(*ranking_tables(sweep, ranking))
    if written := write_best(ranking, plan.folder):
        print(f"wrote {' and '.join(map(str, written))}")
    return conclude(plan, progress)


def execute(plan: Plan, options: Execution) -> dict[Job, Progress] | None:
    """Execute what is left of a plan, after its cost was printed. Returns None for --dry-run."""
    console = Console()
    progress = {job: progress_of(job) for job in plan.jobs}
    engine = open_engine(plan.folder, options)
    states = [each.state for each in progress.values()]
    console.print(*plan.about, sep="\n", markup=False, highlight=False)
    begun = sum(each.steps > 0 and each.state != "done" for each in progress.values())
    counts = f"{len(plan.jobs)} runs, {states.count('done')} done, {begun} begun"
    print(f"{plan.folder}: {counts}, {engine.slots} at the same time")
    if versions := older_versions(progress.values()):
        print(f"finished runs are of version {', '.join(versions)}; remove their folders to make them again")
    try:
        rates = measured_rates(plan.jobs, progress)
        if options.engine != "slurm":  # the machine that submits is not for computing
            here = engine if isinstance(engine, LocalEngine) else LocalEngine(free_cores())
            measure_missing_rates(plan.jobs, progress, here, rates)
        cost = estimate(plan.jobs, progress, rates, engine.slots)
        print(cost.text(), flush=True)
        if options.dry_run:
            console.print(ProgressTable(plan).table(progress, []))
            return None
        require_space(plan.folder, cost)
        with plan_lock(plan.folder):
            return Scheduler(plan, progress, engine=engine, table=ProgressTable(plan, console), rates=rates).execute()
    finally:
        engine.close()


def open_engine(folder: Path, options: Execution) -> Engine:
    """Return the engine of the options. Raises MarlError if it cannot be used."""
    if options.engine == "ray":
        return RayEngine(options.address, options.jobs)
    if options.engine == "slurm":
        return SlurmEngine(folder, options.slurm, options.jobs)
    return LocalEngine(options.jobs or free_cores())


def conclude(plan: Plan, progress: dict[Job, Progress]) -> int:
    """Print what failed and what is left; return the exit status."""
    failed = [job for job in plan.jobs if progress[job].state == "failed"]
    left = [job for job in plan.jobs if progress[job].state in ("new", "unfinished")]
    for job in failed:
        print(f"failed after {progress[job].steps:,} steps: {job.title}: {progress[job].reason}", file=sys.stderr)
    if failed or left:
        print(
            f"{len(failed)} runs failed and {len(left)} are unfinished; the same command continues them",
            file=sys.stderr,
        )
    return 1 if failed or left else 0
