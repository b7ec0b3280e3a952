"""A training run: how it starts, resumes and ends."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from marl import distributed
from marl.callbacks import Callback, Checkpoints, Evaluate
from marl.checkpoint.store import Checkpoint
from marl.config import (
    ALGORITHM_REGISTRIES,
    RESUMABLE_FIELDS,
    RunConfig,
    digest,
    flatten,
    option_names,
    override,
    to_yaml,
)
from marl.cpu import free_cores, tune_malloc
from marl.diagnostics import Diagnostics
from marl.emergency import save_on_error
from marl.errors import CheckpointError, ConfigError, MarlError
from marl.multitask import share_parameters
from marl.policy import require_policy
from marl.policy_io import LoadedPolicy, load_checkpoint, load_policy, load_policy_weights
from marl.protocols import VectorEnv
from marl.registry import AGENTS, EnvFactory, find_env, registering_modules
from marl.run_folder import (
    FolderWatch,
    RunStatus,
    check_empty,
    has_checkpoint,
    new_folder,
    prepare_folder,
    read_config,
    read_scores,
    read_status,
    run_lock,
)
from marl.seeding import Streams, own_globals, seed_everything
from marl.stopping import ANOTHER_RANK, INTERRUPTED, stop_requests
from marl.tracking.base import MultiTracker, Tracker, make_tracker, run_name
from marl.tracking.console import ConsoleTracker
from marl.tracking.jsonl import JsonlTracker
from marl.tracking.tensorboard import TensorBoardTracker
from marl.trainer import Trainer
from marl.trust import external_names, mark_trusted, require_trust
from marl.vector import make_vector

IfExists = Literal["error", "skip", "resume"]
"""Treatment of a run that is there already: refuse, leave a finished one alone, or continue it."""


@dataclass(frozen=True)
class Result:
    """A run that has ended."""

    folder: Path
    stop_reason: str
    """"finished", or the reason for an early end."""
    steps: int
    """Environment steps that were learned from, over all ranks."""

    @property
    def scores(self) -> dict[str, float]:
        """Last score of every tag "eval/..." (validation seeds) and "test/..." (test seeds)."""
        return read_scores(self.folder)

    @property
    def policy(self) -> LoadedPolicy:
        """Policy of the best checkpoint."""
        return load_policy(self.folder)


@dataclass(frozen=True)
class Extras:
    """Parts of a run that its configuration does not name."""

    callbacks: Sequence[Callback] = ()
    trackers: Sequence[Tracker | str] = ()
    notes: tuple[str, ...] = ()
    """Lines to print above the dashboard."""

    def __post_init__(self) -> None:
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise ConfigError(
                    f"callback={callback!r:.80} is a {type(callback).__name__}; give marl.Callback instances"
                )


def start(config: RunConfig, extras: Extras = Extras(), if_exists: IfExists = "error") -> Result:
    """Train from the beginning. Raises MarlError, before any long work where it can.

    `if_exists` is for a run of the same name and equal settings: "skip" returns a finished one, "resume" also continues
    an unfinished one.
    """
    folder = Path(config.runs_dir) / config.name if config.name else None
    if folder is not None and if_exists != "error" and has_checkpoint(folder):
        return start_again(config, folder, extras, if_exists)
    device = distributed.start(config.compute.device)
    if folder is not None and distributed.rank() == 0:
        check_empty(folder)
    if config.steps < config.steps_per_iteration and not config.collect.whole_episodes:
        note = f"steps={config.steps} is less than an iteration, {config.steps_per_iteration} steps; one is trained"
        extras = Extras(extras.callbacks, extras.trackers, (*extras.notes, note))
    return execute(config, folder, device, None, extras, continues=folder is not None and if_exists == "resume")


def start_again(config: RunConfig, folder: Path, extras: Extras, if_exists: IfExists) -> Result:
    """Skip or resume the run in `folder`. Raises ConfigError if its settings differ, or to skip an unfinished one."""
    before = read_config(folder)
    new, old = flatten(config), flatten(before)
    differ = [name for name in new if name not in RESUMABLE_FIELDS and new[name] != old.get(name)]
    if differ:
        shown = ", ".join(f"{name}={old.get(name)!r} there and {new[name]!r} here" for name in differ[:5])
        raise ConfigError(f"the run in {folder} has other settings ({shown}); use another --name")
    status = read_status(folder)
    ended, steps = status.get("status") == "finished" and before.steps >= config.steps, status.get("steps")
    if ended and isinstance(steps, int) and before.evaluation.stop_return == config.evaluation.stop_return:
        print(f"{folder} holds this run already, finished after {steps} steps; nothing was trained")
        return Result(folder, status.get("reason") or "finished", steps)
    if if_exists == "skip":
        raise ConfigError(
            f"the run in {folder} is not finished; continue it with --if-exists resume, or use another --name"
        )
    changes = {name: new[name] for name in sorted(RESUMABLE_FIELDS) if name in new and new[name] != old[name]}
    return resume(folder, changes, extras=extras)


def resume(
    folder: Path,
    changes: Mapping[str, Any],
    trust: bool = False,
    extras: Extras = Extras(),
) -> Result:
    """Continue a run from its last usable checkpoint, or from the beginning if it was killed before the first.

    `changes` may only set RESUMABLE_FIELDS, on which the past does not depend. `trust` runs the code that the
    configuration names although this user did not make the run; from then on this user counts as its maker. Raises
    MarlError if the run cannot continue.
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
        notes = (*extras.notes, "no checkpoint yet: from the beginning")
        extras = Extras(extras.callbacks, extras.trackers, notes)
        return execute(override(config, changes), folder, device, None, extras, continues=True)
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
    return execute(changed, folder, device, checkpoint, extras, continues=True)


def execute(
    config: RunConfig,
    folder: Path | None,
    device: torch.device,
    checkpoint: Checkpoint | None,
    extras: Extras,
    *,
    continues: bool,
) -> Result:
    """Build and train a run in `folder`, by default a new one. A checkpoint is saved however training ends.

    `continues`: the same command, started again, continues this run.
    """
    with ExitStack() as stack:
        stack.callback(distributed.stop)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if (check := AGENTS.get(config.agent).check) is not None:
            check(config)
        config.check_algorithm()
        trackers = [make_tracker(each) for each in (*config.trackers, *extras.trackers)]
        seed_everything(config.seed, distributed.rank())
        torch.set_num_threads(1)
        tune_malloc()
        free = max(1, free_cores() // distributed.local_world_size())
        envs = []
        for number, task in enumerate(config.tasks):
            envs.append(make_env(config, task, free, local_share(config), train=True, number=number))
            stack.callback(envs[-1].close)
        trainer = build(config, envs[0], device, free, *envs[1:])
        if checkpoint is None and config.init_from:
            load_initial_weights(trainer, Path(config.init_from))
        notes = [*extras.notes, *([] if checkpoint is None else trainer.set_state(checkpoint))]
        folder = folder or new_folder(config)
        if distributed.rank() == 0:
            stack.enter_context(run_lock(folder))
            if checkpoint is None:
                check_empty(folder)
            prepare_folder(folder, config, trainer.steps)
            if (note := mark_trusted(folder, external_names(config))) is not None:
                notes.append(note)
            trainer.callbacks.append(stack.enter_context(closing(FolderWatch(folder))))
        saver = add_callbacks(trainer, folder, free, checkpoint, callbacks=extras.callbacks, stack=stack)
        run_trainer(trainer, saver, folder, trackers, notes, continues=continues)
        distributed.barrier()
        return Result(folder, trainer.stop_reason or "", trainer.steps)


def add_callbacks(
    trainer: Trainer,
    folder: Path,
    free: int,
    checkpoint: Checkpoint | None,
    *,
    callbacks: Sequence[Callback],
    stack: ExitStack,
) -> Checkpoints:
    """Add evaluation, diagnostics, the user's callbacks and checkpoints, in this order; return the last."""
    config, options = trainer.config, trainer.config.evaluation
    if options.eval_episodes:
        evaluation = Evaluate(
            [partial(make_env, config, task, free, train=False) for task in config.tasks],
            options.eval_episodes,
            options.eval_interval,
            folder / "evaluations.jsonl",
            options.eval_max_steps,
        )
        stack.callback(evaluation.close)
        trainer.callbacks.append(evaluation)
    saver = Checkpoints(folder / "checkpoints", options.checkpoint_interval, options.keep_checkpoints)
    if checkpoint is not None:
        saver.saved, saver.saved_steps = checkpoint.data["iteration"], checkpoint.step
    trainer.callbacks += [Diagnostics(), *callbacks, saver]
    return saver


def run_trainer(
    trainer: Trainer,
    saver: Checkpoints,
    folder: Path,
    trackers: Sequence[Tracker],
    notes: Sequence[str],
    *,
    continues: bool,
) -> None:
    """Train with trackers and signal handlers, and keep status.json up to date. `continues` is as in `execute`."""
    if distributed.rank() != 0:
        with interrupts(trainer, lambda text: None, folder):  # noqa: ARG005
            save_on_error(trainer, saver, folder, continues)
        return
    config = trainer.config
    algorithm = [registry.get(getattr(config.learn, kind)) for kind, registry in ALGORITHM_REGISTRIES.items()]
    entries = [find_env(config.tasks[0].name)[0], AGENTS.get(config.agent), *algorithm]
    status = RunStatus(folder, registering_modules(*entries))
    try:
        status.write("running", trainer.steps)
        with opened_trackers(trainer, folder, trackers) as message:
            for note in notes:
                message(note)
            with interrupts(trainer, message, folder):
                save_on_error(trainer, saver, folder, continues)
    except BaseException as error:
        status.folder = saver.root.parent  # the folder may have been moved
        with suppress(MarlError):
            if isinstance(error, KeyboardInterrupt):
                status.write("stopped", trainer.steps, "stopped at once")
            else:
                status.write("failed", trainer.steps, f"{type(error).__name__}: {error}")
        raise
    reason = trainer.stop_reason or ""
    status.write("stopped" if reason in (INTERRUPTED, ANOTHER_RANK) else "finished", trainer.steps, reason)
    if reason != "finished":
        print(f"stopped: {reason}. Continue with: {distributed.resume_command(folder)}")
    print(f"wrote {folder}")


@contextmanager
def opened_trackers(trainer: Trainer, folder: Path, trackers: Sequence[Tracker]) -> Iterator[Any]:
    """Open JSONL, TensorBoard, the console and further trackers; yield a function that prints above the dashboard."""
    config, step = trainer.config, trainer.steps
    log = folder / "metrics.jsonl"
    console = ConsoleTracker(run_name(folder), config.steps)
    jsonl = JsonlTracker(log, step or -1)
    try:
        board = TensorBoardTracker(folder, step or -1, option_names())
    except BaseException:
        jsonl.close()
        raise
    trainer.tracker = MultiTracker([jsonl, board, console, *trackers])
    try:
        if step:
            console.restore_best(log)
        trainer.tracker.start(folder, step)
        flat = flatten(config)
        # TensorBoard's table of hyper-parameters shows the first few.
        first = ("agent", "env", "seed", "learning_rate", "steps")
        trainer.tracker.config(to_yaml(config), {name: flat[name] for name in first} | flat)
        yield console.message
    except BaseException as error:
        try:
            trainer.tracker.close()
        except MarlError as second:
            error.add_note(f"trackers could not be closed: {second}")
        raise
    trainer.tracker.close()


@contextmanager
def interrupts(trainer: Trainer, message: Any, folder: Path) -> Iterator[None]:
    """End the run after its iteration at the first Ctrl-C or SIGTERM, and at once at a second one.

    Outside of the main thread no signal handler is set.
    """

    def stop() -> None:
        trainer.interrupted = True
        message(f"finishing this iteration, then saving to {folder}; interrupt again to stop at once")

    with stop_requests(stop):
        yield


def local_share(config: RunConfig) -> int:
    """Return the number of environments of each rank.

    Raises ConfigError if they cannot be shared evenly, or if a rank has fewer rows than minibatches.
    """
    world = distributed.world_size()
    count, left = divmod(config.collect.num_envs, world)
    if left:
        raise ConfigError(f"num_envs={config.collect.num_envs} is no multiple of the {world} ranks; give a multiple")
    if count % config.collect.group_size:
        raise ConfigError(
            f"group_size={config.collect.group_size} does not divide the {count} environments of a rank; give a divisor"
        )
    rows = count * config.collect.rollout_steps
    if config.learn.minibatches > rows:
        raise ConfigError(
            f"minibatches={config.learn.minibatches} is more than the {rows} rows of each rank; give fewer"
        )
    return count


def make_env(config: RunConfig, task: EnvFactory, free: int, count: int, *, train: bool, number: int = 0) -> VectorEnv:
    """Return `count` environments of a task. Environments with a batched engine use the `free` cores by default.

    Environments for evaluation run in this process. `number` is the index of the task in the run.
    """
    workers = min(count, config.collect.workers) if train else 0
    batched = find_env(task.name)[0].make_vector is not None and not workers
    threads = config.compute.env_threads if train else 0
    threads = threads or (min(free, count) if batched else 1)
    restart = config.collect.restart_workers and train
    seed = Streams(config.seed).integer("workers", distributed.rank(), number)
    return make_vector(task.name, task.options, count, workers, threads, restart=restart, seed=seed)


def build(config: RunConfig, env: VectorEnv, device: torch.device, free: int, *others: VectorEnv) -> Trainer:
    """Return the trainer of a configuration, without trackers and callbacks.

    `others` are the environments of further tasks. Raises ConfigError if the agent does not learn.
    """
    entry = AGENTS.get(config.agent)
    if entry.trains is False:
        raise ConfigError(
            f"agent={config.agent!r} does not learn; watch it with `marl play {config.env} --agent {config.agent}`"
        )
    # Every rank draws the same weights. Afterwards each rank uses global generators of its own.
    with own_globals(Streams(config.seed).integer("weights")):
        torch.manual_seed(Streams(config.seed).integer("weights"))
        policy = require_policy(entry.make(env.spec, config.agent_options), config.agent).to(device)
        pairs = []
        for task, other in zip(config.tasks[1:], others, strict=True):
            made = require_policy(entry.make(other.spec, config.agent_options), config.agent)
            pairs.append((other, made.to(device)))
            share_parameters(pairs[-1][1], policy, (task.label, config.tasks[0].label))
    return Trainer(config, env, policy, MultiTracker([]), device=device, free_threads=free, extra_tasks=pairs)


def load_initial_weights(trainer: Trainer, path: Path) -> None:
    """Load the weights of another run into an untrained agent. Optimizer and value statistics start new.

    Raises CheckpointError if there are no weights, or if they do not fit.
    """
    checkpoint = load_checkpoint(path / "checkpoints" if (path / "checkpoints").is_dir() else path, "last")
    if (agent := checkpoint.data["agent"]) != trainer.config.agent:
        raise CheckpointError(
            f"{path} holds the weights of {agent!r}; give a run of {trainer.config.agent!r} to --init-from"
        )
    try:
        load_policy_weights(trainer.policy, trainer.env.spec, checkpoint)
    except CheckpointError as error:
        given, mine = checkpoint.data["agent_options"], json.loads(json.dumps(asdict(trainer.config.agent_options)))
        unlike = [f"{name} {given.get(name)} and {mine[name]}" for name in mine if given.get(name) != mine[name]]
        if unlike:
            error.add_note(f"agent options that differ, there and here: {', '.join(unlike)}")
        raise
