"""A training run: its folder, its parts, how it starts, stops and resumes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from marl import distributed
from marl.callbacks import Checkpoints, Evaluate
from marl.checkpoint.store import Checkpoint
from marl.config import RESUMABLE_FIELDS, RunConfig, digest, flatten, from_yaml, option_names, override, to_yaml
from marl.cpu import free_cores, tune_malloc
from marl.diagnostics import Diagnostics
from marl.errors import CheckpointError, ConfigError, MarlError, RunFolderError, named_error
from marl.factories import short_name
from marl.files import exclusive_lock, write_whole
from marl.multitask import share_parameters
from marl.policy import require_policy
from marl.policy_io import load_checkpoint, load_policy_weights
from marl.protocols import VectorEnv
from marl.registry import AGENTS, EnvFactory, find_env
from marl.run_folder import FolderWatch
from marl.seeding import Streams, own_globals, seed_everything
from marl.stopping import StopNow, stop_requests
from marl.tracking import MultiTracker
from marl.tracking.console import ConsoleTracker
from marl.tracking.jsonl import JsonlTracker, drop_lines
from marl.tracking.tensorboard import TensorBoardTracker
from marl.trainer import Trainer
from marl.trust import external_of_agent, external_of_algorithm, external_of_env, mark_trusted, require_trust
from marl.vector import make_vector


def start(config: RunConfig, notes: tuple[str, ...] = ()) -> Path:
    """Train from the beginning; returns the run's folder. Raises MarlError before any long work where it cannot."""
    device = distributed.start(config.compute.device)
    folder = Path(config.runs_dir) / config.name if config.name else None
    if folder is not None and distributed.rank() == 0:
        check_empty(folder)
    if config.steps < config.steps_per_iteration and not config.collect.whole_episodes:
        notes += (f"steps is {config.steps}; an iteration has {config.steps_per_iteration}, and one is trained",)
    return execute(config, folder, device, None, notes)


def resume(folder: Path, changes: dict[str, Any], trust: bool = False) -> Path:
    """Continue a run from its last usable checkpoint; `changes` may only touch what the past does not depend on.

    A run that was killed before its first checkpoint starts from the beginning. `trust` runs the code that the run's
    configuration names where this user did not make the run; from then on it counts as made by this user.
    """
    config = read_config(folder)
    require_trust(folder, external_names(config), trust)
    fixed = sorted(set(changes) - RESUMABLE_FIELDS)
    if fixed:
        raise ConfigError(
            f"a resumed run cannot change {', '.join(fixed)}; it may change {', '.join(sorted(RESUMABLE_FIELDS))}. "
            "Start a new run for another setting"
        )
    device = distributed.start(config.compute.device)
    if not has_checkpoint(folder):
        return execute(override(config, changes), folder, device, None, ("no checkpoint yet: from the beginning",))
    checkpoint = load_checkpoint(folder / "checkpoints", "last")
    if checkpoint.data["digest"] != digest(config):
        raise ConfigError(
            f"{folder / 'config.yaml'} differs from the configuration that {checkpoint.path.name} was trained with; "
            "put the file back, or start a new run"
        )
    changed = override(config, changes)
    if changed.steps <= checkpoint.step and not checkpoint.data.get("evaluation_missing"):
        raise ConfigError(
            f"{folder} has trained for {checkpoint.step} steps already, and {changed.steps} were asked for; "
            f"train on with: {distributed.resume_command(folder)} --steps MORE"
        )
    return execute(changed, folder, device, checkpoint, ())


def external_names(config: RunConfig) -> set[str]:
    """Names of code and files outside the suite that the run imports, runs or opens."""
    agent = external_of_agent(config.agent, asdict(config.agent_options))
    return external_of_env(config) | agent | external_of_algorithm(config)


def check_empty(folder: Path) -> None:
    """Raises ConfigError where a run has saved something there."""
    if has_checkpoint(folder):
        raise ConfigError(
            f"{folder} holds a run already; continue it with `{distributed.resume_command(folder)}`, or use another "
            "--name"
        )


def has_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step_*"))


def read_config(folder: Path) -> RunConfig:
    path = folder / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{folder} is no run: it has no config.yaml; `ls runs` shows the runs")
    try:
        return from_yaml(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def execute(
    config: RunConfig, folder: Path | None, device: torch.device, checkpoint: Checkpoint | None, notes: tuple[str, ...]
) -> Path:
    """Build the parts, train in the folder, by default a new one, and leave a checkpoint whatever ends it."""
    if (check := AGENTS.get(config.agent).check) is not None:
        check(config)
    config.check_algorithm()
    seed_everything(config.seed, distributed.rank())
    torch.set_num_threads(1)
    tune_malloc()
    free = max(1, free_cores() // distributed.local_world_size())
    tasks, envs = config.tasks, []
    evaluation: Evaluate | None = None
    stack = ExitStack()
    try:
        for number, task in enumerate(tasks):
            envs.append(make_env(config, task, free, local_share(config), train=True, number=number))
        trainer = build(config, envs[0], device, free, *envs[1:])
        if checkpoint is None and config.init_from:
            load_initial_weights(trainer, Path(config.init_from))
        restored = [] if checkpoint is None else trainer.set_state(checkpoint)
        folder = folder or new_folder(config)
        if distributed.rank() == 0:
            stack.enter_context(run_lock(folder))
            if checkpoint is None:
                check_empty(folder)
            prepare_folder(folder, config, trainer.steps)
            if untrusted := mark_trusted(folder, external_names(config)):
                notes += (untrusted,)
            trainer.callbacks.append(stack.enter_context(closing(FolderWatch(folder))))
        trainer.tracker, console = make_tracker(config, folder, trainer.steps)
        for note in (*notes, *restored):
            console(note)
        if config.evaluation.eval_episodes:
            evaluation = Evaluate(
                [partial(make_env, config, task, free, train=False) for task in tasks],
                config.evaluation.eval_episodes,
                config.evaluation.eval_interval,
                folder / "evaluations.jsonl",
                config.evaluation.eval_max_steps,
            )
            trainer.callbacks.append(evaluation)
        trainer.callbacks.append(Diagnostics())
        saver = Checkpoints(
            folder / "checkpoints", config.evaluation.checkpoint_interval, config.evaluation.keep_checkpoints
        )
        if checkpoint is not None:
            saver.saved, saver.saved_steps = checkpoint.data["iteration"], checkpoint.step
        trainer.callbacks.append(saver)
        with interrupts(trainer, console, folder), closing_tracker(trainer):
            save_on_error(trainer, saver, folder)
        if trainer.stop_reason != "finished" and distributed.rank() == 0:
            print(f"stopped: {trainer.stop_reason}. Continue with: {distributed.resume_command(folder)}")
        distributed.barrier()
    finally:
        if evaluation is not None:
            evaluation.close()
        for env in envs:
            env.close()
        stack.close()
        distributed.stop()
    return folder


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes from training in it. Raises ConfigError where one does."""
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / ".lock", wait=False))
        except BlockingIOError:
            raise ConfigError(f"another process trains in {folder}; wait for it, or use another --name") from None
        yield


@contextmanager
def translate_os_errors(folder: Path) -> Iterator[None]:
    """Raises ConfigError where the system does not let us write."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write the folder {folder}: {error}; choose another with --runs-dir") from error


def prepare_folder(folder: Path, config: RunConfig, step: int) -> None:
    """Write the configuration; drop what an earlier start logged after `step`."""
    write_whole(folder / "config.yaml", to_yaml(config))
    evaluations = folder / "evaluations.jsonl"
    if evaluations.exists():
        drop_lines(evaluations, step or -1)  # a run from the beginning logs step 0 again


def save_on_error(trainer: Trainer, saver: Checkpoints, folder: Path) -> None:
    """Train; when an error ends it, save what was learned since the last checkpoint and say how to go on.

    Of several ranks, rank 0 saves what all have. The others get a RankError, or their own error, and save nothing.
    Where the folder is gone, the run continues in another.
    """
    try:
        trainer.train()
    except StopNow:
        raise
    except BaseException as caught:
        error = (
            caught if isinstance(caught, Exception) else named_error(caught, "training")
        )  # an environment may sys.exit
        if distributed.rank():
            error.add_note("rank 0 saves what was learned where it can, and says so")
        else:
            keep_what_was_learned(trainer, saver, folder, error)
        raise error from error.__cause__ if error is caught else caught


def keep_what_was_learned(trainer: Trainer, saver: Checkpoints, folder: Path, error: Exception) -> None:
    """Save what was learned since the last checkpoint, in another folder where the run's own is gone.

    Notes on the error say what is kept, what is lost and how to go on.
    """
    try:
        if between := isinstance(error, RunFolderError):
            folder = move_to_refuge(trainer, saver)
        if trainer.iteration > max(0, saver.saved):
            saver.save(trainer, environments=between, alone=distributed.world_size() > 1)
    except MarlError as second:
        error.add_note(f"what was learned since the last checkpoint could not be saved: {second}")
    lost = trainer.steps - saver.saved_steps
    if saver.saved > 0:
        kept = f"what was learned in {saver.saved_steps} steps is kept"
        kept += f", and that of the {lost} steps since is lost" if lost else ""
        error.add_note(f"{kept}; continue with: {distributed.resume_command(folder)}")
    elif lost:
        error.add_note(f"what was learned in {lost} steps is lost: there is no checkpoint")


def move_to_refuge(trainer: Trainer, saver: Checkpoints) -> Path:
    """Make `saver` write where the run's folder is now, or to a new folder that the run can continue in; return it."""
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, FolderWatch))
    with translate_os_errors(watch.folder):
        folder = watch.refuge()
        if watch.renamed() is None:
            prepare_folder(folder, trainer.config, trainer.steps)
            mark_trusted(folder, external_names(trainer.config))
            saver.saved, saver.saved_steps = 0, 0
    saver.root = folder / "checkpoints"
    return folder


def local_share(config: RunConfig) -> int:
    """The environments of this rank. Raises ConfigError where ranks do not divide them, or leave minibatches empty."""
    world = distributed.world_size()
    count, left = divmod(config.collect.num_envs, world)
    if left:
        raise ConfigError(f"num_envs is {config.collect.num_envs}, which {world} ranks do not divide; give a multiple")
    if count % config.collect.group_size:
        raise ConfigError(f"group_size is {config.collect.group_size}, which does not divide a rank's {count}")
    rows = count * config.collect.rollout_steps
    if config.learn.minibatches > rows:
        raise ConfigError(f"minibatches is {config.learn.minibatches}, more than the {rows} rows of each rank")
    return count


def make_env(config: RunConfig, task: EnvFactory, free: int, count: int, train: bool, number: int = 0) -> VectorEnv:
    """`count` environments of a task; those that are batched by nature take the `free` cores by default.

    Environments for evaluation run in this process. `number`: the task's place among those of the run.
    """
    workers = min(count, config.collect.workers) if train else 0
    batched = find_env(task.name)[0].make_vector is not None and not workers
    threads = config.compute.env_threads if train else 0
    threads = threads or (min(free, count) if batched else 1)
    restart = config.collect.restart_workers and train
    seed = Streams(config.seed).integer("workers", distributed.rank(), number)
    return make_vector(task.name, task.options, count, workers, threads, restart, seed)


def build(config: RunConfig, env: VectorEnv, device: torch.device, free: int, *others: VectorEnv) -> Trainer:
    """The trainer of a configuration, without trackers or callbacks; `others` are the environments of further tasks."""
    entry = AGENTS.get(config.agent)
    if entry.trains is False:
        raise ConfigError(
            f"agent {config.agent!r} does not learn; watch it with `marl play {config.env} --agent {config.agent}`"
        )
    # Every rank draws the same weights; after them, each goes on with global generators of its own.
    with own_globals(Streams(config.seed).integer("weights")):
        torch.manual_seed(Streams(config.seed).integer("weights"))
        policy = require_policy(entry.make(env.spec, config.agent_options), config.agent).to(device)
        pairs = []
        for task, other in zip(config.tasks[1:], others, strict=True):
            pairs.append((other, entry.make(other.spec, config.agent_options).to(device)))
            share_parameters(pairs[-1][1], policy, (task.label, config.tasks[0].label))
    return Trainer(config, env, policy, MultiTracker([]), device=device, free_threads=free, extra_tasks=pairs)


def load_initial_weights(trainer: Trainer, path: Path) -> None:
    """Give an untrained agent the weights of another run; its optimizer and the scale of its values begin anew.

    Raises CheckpointError where there are none, or they do not fit.
    """
    checkpoint = load_checkpoint(path / "checkpoints" if (path / "checkpoints").is_dir() else path, "last")
    if (agent := checkpoint.data["agent"]) != trainer.config.agent:
        raise CheckpointError(f"{path} holds the weights of {agent!r}; begin a {trainer.config.agent!r} with its own")
    try:
        load_policy_weights(trainer.policy, trainer.env.spec, checkpoint)
    except CheckpointError as error:
        given, mine = checkpoint.data["agent_options"], json.loads(json.dumps(asdict(trainer.config.agent_options)))
        unlike = [f"{name} {given.get(name)} and {mine[name]}" for name in mine if given.get(name) != mine[name]]
        if unlike:
            error.add_note(f"agent options there and here: {', '.join(unlike)}")
        raise


def make_tracker(config: RunConfig, folder: Path, step: int) -> tuple[MultiTracker, Any]:
    """The trackers of rank 0, and a function that prints a line above the dashboard."""
    if distributed.rank() != 0:
        return MultiTracker([]), lambda text: None  # noqa: ARG005
    title = folder.name if config.name else "/".join(folder.parts[-3:])
    console, log = ConsoleTracker(title, config.steps), folder / "metrics.jsonl"
    board = TensorBoardTracker(folder, step or -1, option_names())
    tracker = MultiTracker([JsonlTracker(log, step or -1), board, console])
    if step:
        console.restore_best(log)
    flat = flatten(config)
    # TensorBoard's table of hyper-parameters shows the first few.
    first = ("agent", "env", "seed", "learning_rate", "steps")
    tracker.config(to_yaml(config), {name: flat[name] for name in first} | flat)
    return tracker, console.message


@contextmanager
def closing_tracker(trainer: Trainer) -> Iterator[None]:
    try:
        yield
    finally:
        trainer.tracker.close()


@contextmanager
def interrupts(trainer: Trainer, console: Any, folder: Path) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after this iteration, with a checkpoint; a later one at once."""

    def stop() -> None:
        trainer.interrupted = True
        console(f"finishing this iteration, then saving to {folder}; interrupt again to stop at once")

    with stop_requests(stop):
        yield


def new_folder(config: RunConfig) -> Path:
    """Make and return runs/ENV/AGENT/SEED-TIME, the same folder on every rank. TensorBoard shows the path as the name.

    A number is appended if the folder of this second exists.
    """
    env, agent = (
        "".join(c if c.isalnum() or c in "-_." else "-" for c in short_name(name))
        for name in (config.env, config.agent)
    )
    parent = Path(config.runs_dir) / env / agent
    folder = first = parent / f"{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    with translate_os_errors(Path(config.runs_dir)):
        parent.mkdir(parents=True, exist_ok=True)
        while distributed.rank() == 0:
            with suppress(FileExistsError):
                folder.mkdir()
                break
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
    return distributed.gather(folder)[0]
