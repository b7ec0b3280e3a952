"""Cost of a plan, measured before it starts: hours, and space on the disk."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from marl.config import override
from marl.errors import ConfigError
from marl.experiments.suite.engines.base import Engine
from marl.experiments.suite.plan import Job, Progress

Kind = tuple[str, str]
"""Environment and agent. Runs of a kind are taken to be equally fast."""

TRIAL_ITERATIONS = 2
"""Iterations of a trial. The first one includes work that happens once, such as compiling."""
WORTH_MEASURING = 20
"""A kind is measured if its runs have at least this many times the iterations of a trial left."""
LOG_BYTES = 2_000_000
"""Assumed space of a run without its checkpoints."""
TRIAL_SECONDS = 600.0


@dataclass(frozen=True)
class Rate:
    """Speed of the runs of a kind, without evaluations, and size of a checkpoint."""

    steps_per_second: float
    """Environment steps per second of a run."""
    checkpoint_bytes: int


@dataclass(frozen=True)
class Cost:
    """Estimate for what is left of a plan."""

    steps: int
    hours: float
    """Time with all slots in use; NaN if a kind was not measured."""
    bytes: int
    unmeasured: int
    """Runs of kinds that were not measured."""

    def text(self) -> str:
        """Return the estimate in words."""
        if not self.steps:
            return "nothing is left to train"
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.0f} MB"
        if math.isnan(self.hours):
            return f"{self.steps:,} steps are left; their speed was not measured"
        duration = duration_text(3600 * self.hours)
        rest = f", and {self.unmeasured} short runs that were not measured" if self.unmeasured else ""
        return f"{self.steps:,} steps are left: about {duration} and up to {size} on the disk{rest}"


def duration_text(seconds: float) -> str:
    """Return a duration as `2.5 hours`, `12 minutes` or `40 seconds`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def kind_of(job: Job) -> Kind:
    """Return the kind of a run."""
    return job.config.env, job.config.agent


def estimate(jobs: Sequence[Job], progress: Mapping[Job, Progress], rates: Mapping[Kind, Rate], slots: int) -> Cost:
    """Return the cost of what is left, by measured rates."""
    left = {job: max(0, job.config.steps - progress[job].steps) for job in jobs if progress[job].state != "done"}
    seconds, size, unmeasured = 0.0, 0, 0
    for job, steps in left.items():
        rate = rates.get(kind_of(job))
        if rate is None:
            unmeasured += 1
            continue
        seconds += steps / rate.steps_per_second
        # The last ones are kept, the best one, and one is written before the oldest goes.
        size += LOG_BYTES + rate.checkpoint_bytes * (job.config.evaluation.keep_checkpoints + 2)
    hours = seconds / 3600 / max(1, min(slots, len(left))) if unmeasured < len(left) else math.nan
    return Cost(sum(left.values()), hours, size, unmeasured)


def measured_rates(jobs: Sequence[Job], progress: Mapping[Job, Progress]) -> dict[Kind, Rate]:
    """Return the rates of runs that have begun in this plan."""
    rates = {}
    for job in jobs:
        if progress[job].steps and kind_of(job) not in rates and (rate := read_rate(job.folder)) is not None:
            rates[kind_of(job)] = rate
    return rates


def read_rate(folder: Path) -> Rate | None:
    """Return the rate of a run by its last iteration and its newest checkpoint, or None if it has none."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-5:]]
        speeds = [row["speed/steps_per_second"] for row in rows if "speed/steps_per_second" in row]
        newest = max((folder / "checkpoints").glob("step_*"))
        return Rate(float(speeds[-1]), sum(file.stat().st_size for file in newest.iterdir()))
    return None


def measure_missing_rates(
    jobs: Sequence[Job], progress: Mapping[Job, Progress], engine: Engine, rates: dict[Kind, Rate]
) -> None:
    """Measure the kinds without a rate in short runs in a temporary folder, and add their rates to `rates`.

    Kinds with few iterations left are not measured. Raises ConfigError with the end of the log if a trial fails.
    """
    wanted: dict[Kind, Job] = {}
    left: dict[Kind, float] = {}
    for job in jobs:
        if kind_of(job) not in rates and progress[job].state != "done":
            wanted.setdefault(kind_of(job), job)
            steps = job.config.steps - progress[job].steps
            left[kind_of(job)] = left.get(kind_of(job), 0.0) + steps / job.config.steps_per_iteration
    tried = [job for kind, job in wanted.items() if left[kind] >= WORTH_MEASURING * TRIAL_ITERATIONS]
    if not tried:
        return
    print(f"measuring the speed of {len(tried)} pairs of environment and agent ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="marl-trial-") as folder:
        waiting, running = [trial_of(job, Path(folder), number) for number, job in enumerate(tried)], 0
        deadline = time.monotonic() + TRIAL_SECONDS
        while waiting or running:
            while waiting and running < engine.slots:
                job = waiting.pop(0)
                engine.submit(job, Path(folder) / f"{job.config.name}.log")
                running += 1
            for ended in engine.poll():
                running -= 1
                rate = read_rate(ended.job.folder)
                if ended.exit_status or rate is None:
                    log = (Path(folder) / f"{ended.job.config.name}.log").read_text(encoding="utf-8", errors="replace")
                    raise ConfigError(f"{ended.job.title} cannot be trained:\n{log[-2000:]}")
                rates[kind_of(ended.job)] = rate
            if time.monotonic() > deadline:
                print(f"stopped measuring after {TRIAL_SECONDS:.0f} s", flush=True)
                return
            time.sleep(0.05)


def trial_of(job: Job, folder: Path, number: int) -> Job:
    """Return a short run with the settings of a job."""
    steps = TRIAL_ITERATIONS * job.config.steps_per_iteration
    changes = {"steps": steps, "eval_episodes": 0, "runs_dir": str(folder), "name": f"trial-{number}", "trackers": ()}
    return replace(job, config=override(job.config, changes))


def require_space(folder: Path, cost: Cost) -> None:
    """Raise ConfigError if the disk has less space than the plan needs."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if (free := shutil.disk_usage(place).free) < cost.bytes:
        raise ConfigError(
            f"{place} has {free / 1e9:.1f} GB free and the plan needs up to {cost.bytes / 1e9:.1f} GB; give another "
            "--folder, or fewer --seeds"
        )
