"""A run's folder while the run writes to it: whether it is still there, and where what was learned can go if not."""

import os
from pathlib import Path
from typing import Any

from marl.errors import RunFolderError


class FolderWatch:
    """Notices after every iteration that the run's folder was renamed, replaced or deleted; for the rank that writes.

    Raises RunFolderError then. Files that are open go on in a renamed folder, and nowhere if it was deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptor = os.open(folder, os.O_RDONLY)
        self.identity = self._identity(folder)

    def on_start(self, trainer: Any) -> None:
        pass

    def on_iteration(self, trainer: Any, metrics: dict[str, float]) -> None:
        pass

    def on_logged(self, trainer: Any) -> None:  # noqa: ARG002
        self.require()

    def on_stop(self, trainer: Any) -> None:  # noqa: ARG002
        self.require()

    def require(self) -> None:
        """Raise RunFolderError unless the folder stands where the run began.

        An error of the file system is no proof that it does not: a network may be down for a while.
        """
        try:
            if self._identity(self.folder) == self.identity:
                return
        except OSError:
            return
        renamed = self.renamed()
        what = "was deleted" if renamed is None else f"was renamed to {renamed}"
        raise RunFolderError(f"the run's folder {self.folder} {what} while it trained; leave it in place until it ends")

    def renamed(self) -> Path | None:
        """Return where the folder is now; None if it was deleted, or the system cannot say."""
        try:
            now = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            return now if self._identity(now) == self.identity else None
        except OSError:
            return None

    def refuge(self) -> Path:
        """Return a folder to save to: where the run's folder is now, else a new one where it was or beside it."""
        if renamed := self.renamed():
            return renamed
        folder, number = self.folder, 1
        while (folder / "config.yaml").exists() or (folder.exists() and not folder.is_dir()):
            number += 1
            folder = self.folder.with_name(f"{self.folder.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        os.close(self.descriptor)

    def _identity(self, folder: Path) -> tuple[int, int] | None:
        """Return the device and the number of a folder; None if it is not there."""
        try:
            found = os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_dev, found.st_ino
