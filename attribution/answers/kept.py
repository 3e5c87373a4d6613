"""The folder that the latest runs are kept in."""

import re
import time
from contextlib import suppress
from pathlib import Path

from attribution.answers.report import write_zip
from attribution.answers.run import Run
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, NotKept, reason
from attribution.files import PARTIAL, cache_folder, passing_folder, try_folder
from attribution.index.index import Index

STALE = 3600  # seconds after which an unfinished file belongs to nobody any more


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run's id; it can then be a file's name."""
    return bool(re.fullmatch(r"[0-9a-f]{12}", text))


def own_folder() -> Path:
    """Where a user's runs are kept unless told otherwise: in the cache; until this process ends where that fails."""
    try:
        folder = cache_folder() / "runs"
        folder.mkdir(mode=0o700, exist_ok=True)
        try_folder(folder)
    except OSError:
        return passing_folder()
    return folder


class RunFolder:
    """A folder that keeps the latest runs, each a ZIP named by its id. Others may read, write and delete them too."""

    def __init__(self, folder: Path, most: int = 200) -> None:
        self.folder, self.most = folder, most

    def keep(self, run: Run, index: Index, model: Model) -> Path:
        """Write a run, and delete the oldest ones over `most`.

        Raises:
            NotKept: the folder is gone and cannot be made, may not be written to or is full; the answer stands.
        """
        path = self.folder / f"{run.id}.zip"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_zip(run, index, model, path)
            self._forget()
        except (OSError, InputError) as error:
            told = getattr(error, "strerror", None) or reason(error)
            raise NotKept(
                f"this answer could not be kept ({told}): its link will not open later, and it has no files"
            ) from error
        return path

    def _forget(self) -> None:
        """Delete the oldest runs over `most`, and files that a process left unfinished."""
        runs = sorted(self._dated(".zip"), reverse=True)[self.most :]
        left = [each for each in self._dated(PARTIAL) if each[0] < time.time() - STALE]
        for _, path in (*runs, *left):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _dated(self, ending: str) -> list[tuple[float, Path]]:
        """Files with the time of their last change; without those that another process deletes meanwhile."""
        found = []
        for path in self.folder.glob(f"*{ending}"):
            with suppress(OSError):
                found.append((path.stat().st_mtime, path))
        return found

    def holds(self, run_id: str) -> bool:
        """Whether a run is kept."""
        return is_run_id(run_id) and (self.folder / f"{run_id}.zip").is_file()

    def path(self, run_id: str) -> Path:
        """The ZIP of a run.

        Raises:
            InputError: the id is none, or that run is not kept (any more).
        """
        if not self.holds(run_id):
            raise InputError(f"the run {run_id[:40]!r} is not kept here; the latest {self.most} are")
        return self.folder / f"{run_id}.zip"
