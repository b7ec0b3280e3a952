"""Callbacks of a run: the base class, evaluation and checkpoints."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marl import distributed
from marl.checkpoint.store import save
from marl.config import digest
from marl.errors import CheckpointError
from marl.evaluation import EpisodeRow, Split, paired_seeds, run_episodes, summarize
from marl.files import RecordFile
from marl.policy_io import spec_to_json
from marl.protocols import VectorEnv
from marl.seeding import Streams, own_globals
from marl.stopping import ANOTHER_RANK, INTERRUPTED
from marl.transcript import record_transcript

if TYPE_CHECKING:
    from marl.trainer import Trainer
    from marl.transitions import Transitions

LOGGER = logging.getLogger("marl")

MAX_EVAL_ENVS = 32
"""Most environments of an evaluation."""


class Callback:
    """Hooks that a run calls, on every rank unless noted. Every hook does nothing by default.

    A hook may read the trainer and set `trainer.stop_reason`, which ends the run after the iteration. If a hook raises,
    the error names the callback, and the run stops. Complete iterations before it are kept in a checkpoint.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """Run before the first iteration of this process."""

    def on_rollout(self, trainer: "Trainer", transitions: "Transitions") -> None:
        """Receive the raw steps of one task, before the update on them. Defining it costs a copy of every step."""

    def on_update(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Receive the metrics of the update, which has just changed the weights."""

    def on_iteration(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Receive all metrics of an iteration, before they are logged. Entries may be added."""

    def on_logged(self, trainer: "Trainer") -> None:
        """Run after the metrics of an iteration were logged."""

    def on_evaluation(
        self,
        trainer: "Trainer",
        split: Split,
        episodes: Mapping[str, Sequence[EpisodeRow]],
        scores: Mapping[str, float],
    ) -> None:
        """Receive the episodes of an evaluation by task, and its scores by tag. Called on rank 0."""

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        """Receive the folder of a new checkpoint. Called on rank 0."""

    def on_stop(self, trainer: "Trainer") -> None:
        """Run when training ends without an error; `trainer.stop_reason` says why."""


class Evaluate(Callback):
    """Play episodes of each task every `interval` iterations and at the end, on rank 0.

    The validation seeds choose the best checkpoint. The last weights, and the first ones with --eval-start, are also
    scored on the test seeds. Episodes are written to `path` as JSON lines, and their summary joins the metrics. If the
    policy has a transcript, the first episode is played again and logged as text. Environments are made on first use.
    Draws from the global random generators do not change the training.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[int], VectorEnv]],
        episodes: int,
        interval: int,
        path: Path,
        max_steps: int,
    ) -> None:
        self.env_fns, self.episodes, self.interval, self.path = env_fns, episodes, interval, path
        self.max_steps = max_steps
        self.envs: list[VectorEnv] = []
        self.transcript_env: VectorEnv | None = None
        self.rows: RecordFile | None = None
        self.last_tested = 0
        """Iteration of the last evaluation on the test seeds."""

    def on_start(self, trainer: "Trainer") -> None:
        """Play an evaluation that was interrupted before the run was resumed, or the one of --eval-start."""
        if trainer.evaluation_missing:
            metrics: dict[str, float] = {}
            self.on_iteration(trainer, metrics)
            if metrics:
                trainer.tracker.log(trainer.steps, metrics)
        elif trainer.config.evaluation.eval_start and not trainer.steps and distributed.rank() == 0:
            trainer.tracker.log(0, self.run(trainer, "validation") | self.run(trainer, "test"))

    def on_iteration(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """Evaluate if it is time, and ask to stop at --stop-return."""
        trainer.evaluation_missing = False
        if not trainer.finished and (not self.interval or trainer.iteration % self.interval):
            return
        if distributed.rank() == 0:
            found = self.run(trainer, "validation")
            trainer.evaluation_missing = not found
            metrics |= found
        trainer.last_score = distributed.gather(metrics.get("eval/return"))[0]
        limit = trainer.config.evaluation.stop_return
        if limit is not None and trainer.last_score is not None and trainer.last_score >= limit:
            trainer.stop_reason = f"reached the return {limit:g}"
        if distributed.rank() == 0 and (trainer.finished or trainer.stop_reason is not None):
            found = self.run(trainer, "test")
            trainer.evaluation_missing |= not found
            metrics |= found
            self.last_tested = trainer.iteration

    def on_stop(self, trainer: "Trainer") -> None:
        """Score the last weights, where that is not done, if another callback ended the run early."""
        done = self.last_tested == trainer.iteration or trainer.stop_reason in ("finished", INTERRUPTED, ANOTHER_RANK)
        if done or distributed.rank() != 0:
            return
        metrics: dict[str, float] = {}
        if trainer.last_score is None:
            metrics = self.run(trainer, "validation")
            trainer.last_score = metrics.get("eval/return")
        trainer.tracker.log(trainer.steps, metrics | self.run(trainer, "test"))

    def close(self) -> None:
        """Close the environments and the file."""
        for part in (*self.envs, self.transcript_env, self.rows):
            if part is not None:
                part.close()

    def run(self, trainer: "Trainer", split: Split) -> dict[str, float]:
        """Evaluate and return the scores by tag; nothing if an interrupt came first."""
        with own_globals(Streams(trainer.config.seed).integer("eval")):
            return self.play_all(trainer, split)

    def play_all(self, trainer: "Trainer", split: Split) -> dict[str, float]:
        """Play the episodes of all tasks, write them and return their scores."""
        config, greedy = trainer.config, not trainer.config.evaluation.eval_stochastic
        if self.rows is None:
            # Greedy episodes do not depend on the number of environments, each of which may be a game of its own.
            count = min(self.episodes, MAX_EVAL_ENVS, config.collect.num_envs if greedy else MAX_EVAL_ENVS)
            self.envs = [make(count) for make in self.env_fns]
            self.rows = RecordFile(self.path)
        episodes: dict[str, Sequence[EpisodeRow]] = {}
        seeds = paired_seeds(self.episodes, split)
        for task, env in zip(trainer.tasks, self.envs, strict=True):
            rows = run_episodes(
                task.policy, env, seeds, greedy, max_steps=self.max_steps, stop=lambda: trainer.interrupted
            )
            if len(rows) < len(seeds):
                self.warn_interrupted(trainer, split, task.name, rows)
                return {}
            if cut := sum(row.cut for row in rows):
                LOGGER.warning(
                    "%d of %d evaluation episodes of %s were cut after %d steps; see --eval-max-steps",
                    cut,
                    len(rows),
                    task.name,
                    max(row.length for row in rows if row.cut),
                )
            episodes[task.name] = rows
        for name, rows in episodes.items():
            note = {"step": trainer.steps, "split": split} | ({"task": name} if len(episodes) > 1 else {})
            for row in rows:
                self.rows.write((json.dumps(note | dataclasses.asdict(row)) + "\n").encode())
        if split == "validation" and trainer.policy.has_transcript:
            self.log_transcript(trainer)
        prefix = "eval" if split == "validation" else "test"
        scores = trainer.mean_over_tasks([summarize(rows, prefix) for rows in episodes.values()])
        trainer.notify("on_evaluation", split, episodes, scores)
        return scores

    def warn_interrupted(self, trainer: "Trainer", split: Split, task: str, rows: Sequence[EpisodeRow]) -> None:
        """Warn that an evaluation was interrupted and does not count."""
        ended = f"{len(rows)} of {self.episodes} episodes of {task} had ended"
        ended += f", with a mean return of {np.mean([row.episode_return for row in rows]):.6g}" if rows else ""
        LOGGER.warning(
            "the %s evaluation after %d steps was interrupted and does not count: %s. A resumed run begins with it",
            split,
            trainer.steps,
            ended,
        )

    def log_transcript(self, trainer: "Trainer") -> None:
        """Log the transcript of the first validation episode of the first task."""
        if self.transcript_env is None:
            self.transcript_env = self.env_fns[0](1)
        greedy = not trainer.config.evaluation.eval_stochastic
        seed, norm = paired_seeds(1)[0], trainer.value_norm
        episode = record_transcript(
            trainer.policy,
            self.transcript_env,
            seed,
            trainer.links,
            norm,
            deterministic=greedy,
            stop=lambda: trainer.interrupted,
        )
        trainer.tracker.text(trainer.steps, "eval/transcript", trainer.policy.transcript(episode))
        trainer.tracker.image(trainer.steps, "eval/credit", trainer.policy.picture(episode))


class Checkpoints(Callback):
    """Save every `interval` iterations, after evaluations and at the end. Keep the last `keep` and the best."""

    def __init__(self, root: Path, interval: int, keep: int) -> None:
        self.root, self.interval, self.keep = root, interval, keep
        self.saved = -1
        self.saved_steps = 0

    def on_start(self, trainer: "Trainer") -> None:
        """Save if an evaluation that was interrupted before has been played."""
        if trainer.last_score is not None:
            self.try_save(trainer)

    def on_logged(self, trainer: "Trainer") -> None:
        """Save if it is time."""
        if trainer.iteration % self.interval == 0 or trainer.last_score is not None:
            self.try_save(trainer)

    def try_save(self, trainer: "Trainer") -> None:
        """Save, or warn that the checkpoint could not be written."""
        try:
            self.save(trainer)
        except CheckpointError as error:
            LOGGER.warning("%s. Training goes on; the next checkpoint tries again", error)

    def on_stop(self, trainer: "Trainer") -> None:
        """Save unless this iteration is saved."""
        if self.saved != trainer.iteration:
            self.save(trainer)

    def save(self, trainer: "Trainer", environments: bool = True, alone: bool = False, notify: bool = True) -> None:
        """Save a checkpoint: every rank takes part, and rank 0 writes.

        `environments=False` leaves the environments' states out. `alone` saves on rank 0 without the other ranks.
        `notify` calls `on_checkpoint`. Raises CheckpointError on every rank that takes part if rank 0 cannot write.
        """
        tensors, data = trainer.get_state(environments, alone)
        data |= {
            "digest": digest(trainer.config),
            "agent": trainer.config.agent,
            "agent_options": dataclasses.asdict(trainer.config.agent_options),
            "spec": spec_to_json(trainer.env.spec),
        }
        problem = None
        path: Path | None = None
        if distributed.rank() == 0:
            try:
                path = save(self.root, trainer.steps, tensors, data, keep=self.keep, score=trainer.last_score)
            except CheckpointError as error:
                problem = error
        # A rank that went on alone would wait for the others in its next save for ever.
        if problem := problem if alone else distributed.gather(problem)[0]:
            raise problem
        self.saved, self.saved_steps = trainer.iteration, trainer.steps
        if notify and path is not None:
            trainer.notify("on_checkpoint", path)
