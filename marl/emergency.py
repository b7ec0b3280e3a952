"""Saving what was learned when an error ends a run."""

from pathlib import Path

from marl import distributed
from marl.callbacks import Checkpoints
from marl.errors import MarlError, RunFolderError, named_error
from marl.run_folder import FolderWatch, prepare_folder, translate_os_errors
from marl.stopping import StopNow
from marl.trainer import Trainer
from marl.trust import external_names, mark_trusted


def save_on_error(trainer: Trainer, saver: Checkpoints, folder: Path, continues: bool) -> None:
    """Train. After an error, save what was learned since the last checkpoint, and add notes on how to continue.

    Of several ranks, only rank 0 saves, and without the others' states. If torchrun starts the ranks again and their
    command `continues` this run, none saves: they repeat the iterations since the last checkpoint with the same result.
    If the run's folder is gone, the checkpoint goes to another.
    """
    try:
        trainer.train()
    except StopNow:
        raise
    except BaseException as caught:
        # An environment may call sys.exit.
        error = caught if isinstance(caught, Exception) else named_error(caught, "training")
        if continues and distributed.will_restart():
            place = "from the last checkpoint" if saver.saved > 0 else "from the beginning, for want of a checkpoint"
            error.add_note(f"torchrun starts the ranks again; they continue {place}")
        elif distributed.rank():
            error.add_note("rank 0 saves what was learned if it can, and says so")
        else:
            keep_what_was_learned(trainer, saver, folder, error)
        raise error from error.__cause__ if error is caught else caught


def keep_what_was_learned(trainer: Trainer, saver: Checkpoints, folder: Path, error: Exception) -> None:
    """Save what was learned since the last checkpoint, in another folder if the run's own is gone.

    Notes on the error say what is kept, what is lost and how to continue.
    """
    try:
        if between := isinstance(error, RunFolderError):
            folder = move_to_refuge(trainer, saver)
        if trainer.iteration > max(0, saver.saved):
            saver.save(trainer, environments=between, alone=distributed.world_size() > 1, notify=False)
    except MarlError as second:
        error.add_note(f"what was learned since the last checkpoint could not be saved: {second}")
    lost = trainer.steps - saver.saved_steps
    if saver.saved > 0:
        kept = f"what was learned in {saver.saved_steps} steps is kept"
        kept += f", and what was learned in the {lost} steps since is lost" if lost else ""
        error.add_note(f"{kept}; continue with: {distributed.resume_command(folder)}")
    elif lost:
        error.add_note(f"what was learned in {lost} steps is lost: there is no checkpoint")


def move_to_refuge(trainer: Trainer, saver: Checkpoints) -> Path:
    """Return the folder in which the run can continue: where its own is now, or else a new one. Point `saver` to it."""
    watch = next(callback for callback in trainer.callbacks if isinstance(callback, FolderWatch))
    with translate_os_errors(watch.folder):
        folder = watch.refuge()
        if watch.renamed() is None:
            prepare_folder(folder, trainer.config, trainer.steps)
            mark_trusted(folder, external_names(trainer.config))
            saver.saved, saver.saved_steps = 0, 0
    saver.root = folder / "checkpoints"
    return folder
