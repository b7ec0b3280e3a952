"""What happens around the learning: evaluation, checkpoints, early stop."""

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marl import distributed
from marl.checkpoint.store import save
from marl.config import digest
from marl.errors import CheckpointError
from marl.evaluation import Split, paired_seeds, run_episodes, summarize
from marl.files import RecordFile
from marl.protocols import VectorEnv
from marl.seeding import Streams, own_globals
from marl.spaces import spec_to_json
from marl.transcript import record_transcript

LOGGER = logging.getLogger("marl")


class Evaluate:
    """Plays episodes of each task, greedy or sampled, every `interval` iterations and at the end; rank 0 only.

    The validation seeds choose the best checkpoint. The end, and the start where it is evaluated, are scored on the
    test seeds too. Rows go to `path` as JSON lines; their summary joins the metrics. A policy that is a Storyteller
    then tells of one more episode, the first again. The environments are made on first use, and what they draw from
    the global random generators does not change the training.
    """

    def __init__(
        self, makes: Sequence[Callable[[int], VectorEnv]], episodes: int, interval: int, path: Path, max_steps: int
    ) -> None:
        self.env_fns, self.episodes, self.interval, self.path = makes, episodes, interval, path
        self.max_steps = max_steps
        self.envs: list[VectorEnv] = []
        self.transcript_env: VectorEnv | None = None
        self.rows: RecordFile | None = None

    def on_start(self, trainer: Any) -> None:
        if trainer.evaluation_missing:
            metrics: dict[str, float] = {}
            self.on_iteration(trainer, metrics)
            if metrics:
                trainer.tracker.log(trainer.steps, metrics)
        elif trainer.config.evaluation.eval_start and not trainer.steps and distributed.rank() == 0:
            trainer.tracker.log(0, self.run(trainer, "validation") | self.run(trainer, "test"))

    def on_iteration(self, trainer: Any, metrics: dict[str, float]) -> None:
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

    def on_logged(self, trainer: Any) -> None:
        pass

    def on_stop(self, trainer: Any) -> None:
        pass

    def close(self) -> None:
        for part in (*self.envs, self.transcript_env, self.rows):
            if part is not None:
                part.close()

    def run(self, trainer: Any, split: Split) -> dict[str, float]:
        """Evaluate; return the metrics. One that was interrupted is told of, and left out."""
        with own_globals(Streams(trainer.config.seed).integer("eval")):
            return self.play_all(trainer, split)

    def play_all(self, trainer: Any, split: Split) -> dict[str, float]:
        config, greedy = trainer.config, not trainer.config.evaluation.eval_stochastic
        if self.rows is None:
            # Greedy episodes are the same in any number of environments, each of which may be a game of its own.
            count = min(self.episodes, 32, config.collect.num_envs) if greedy else min(self.episodes, 32)
            self.envs = [make(count) for make in self.env_fns]
            self.rows = RecordFile(self.path)
        summaries, lines, seeds = [], [], paired_seeds(self.episodes, split)
        prefix = "eval" if split == "validation" else "test"
        for task, env in zip(trainer.tasks, self.envs, strict=True):
            rows = run_episodes(
                task.policy, env, seeds, greedy, max_steps=self.max_steps, stop=lambda: trainer.interrupted
            )
            if len(rows) < len(seeds):
                ended = f"{len(rows)} of {len(seeds)} episodes of {task.name} had ended"
                ended += f", with a mean return of {np.mean([row.episode_return for row in rows]):.6g}" if rows else ""
                LOGGER.warning(
                    "the %s evaluation after %d steps was interrupted: %s. It is left out; a resumed run begins "
                    "with it",
                    split,
                    trainer.steps,
                    ended,
                )
                return {}
            if cut := sum(row.cut for row in rows):
                LOGGER.warning(
                    "%d of %d evaluation episodes of %s were left after %d steps; see --eval-max-steps",
                    cut,
                    len(rows),
                    task.name,
                    max(row.length for row in rows if row.cut),
                )
            note = {"step": trainer.steps, "split": split} | ({"task": task.name} if len(self.envs) > 1 else {})
            lines += [json.dumps(note | dataclasses.asdict(row)) + "\n" for row in rows]
            summaries.append(summarize(rows, prefix))
        for line in lines:
            self.rows.write(line.encode())
        if split == "validation" and trainer.policy.has_transcript:
            self.log_transcript(trainer)
        return trainer.mean_over_tasks(summaries)

    def log_transcript(self, trainer: Any) -> None:
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


class Checkpoints:
    """Saves every `interval` iterations and when training stops; what was scored best is kept."""

    def __init__(self, root: Path, interval: int, keep: int) -> None:
        self.root, self.interval, self.keep = root, interval, keep
        self.saved = -1
        self.saved_steps = 0

    def on_start(self, trainer: Any) -> None:
        if trainer.last_score is not None:  # of an evaluation that was interrupted before
            self.try_save(trainer)

    def on_iteration(self, trainer: Any, metrics: dict[str, float]) -> None:
        pass

    def on_logged(self, trainer: Any) -> None:
        if trainer.iteration % self.interval == 0 or trainer.last_score is not None:
            self.try_save(trainer)

    def try_save(self, trainer: Any) -> None:
        """Save, or warn that the checkpoint could not be written."""
        try:
            self.save(trainer)
        except CheckpointError as error:
            LOGGER.warning("%s. Training goes on; the next checkpoint tries again", error)

    def on_stop(self, trainer: Any) -> None:
        if self.saved != trainer.iteration:
            self.save(trainer)

    def save(self, trainer: Any, environments: bool = True, alone: bool = False) -> None:
        """Every rank takes part and rank 0 writes; `alone`, rank 0 saves what all ranks have.

        Raises CheckpointError on every rank that takes part where rank 0 cannot write.
        """
        tensors, data = trainer.get_state(environments, alone)
        data |= {
            "digest": digest(trainer.config),
            "agent": trainer.config.agent,
            "agent_options": dataclasses.asdict(trainer.config.agent_options),
            "spec": spec_to_json(trainer.env.spec),
        }
        problem = None
        if distributed.rank() == 0:
            try:
                save(self.root, trainer.steps, tensors, data, keep=self.keep, score=trainer.last_score)
            except CheckpointError as error:
                problem = error
        # A rank that went on alone would wait for the others in its next save for ever.
        if problem := problem if alone else distributed.gather(problem)[0]:
            raise problem
        self.saved, self.saved_steps = trainer.iteration, trainer.steps
