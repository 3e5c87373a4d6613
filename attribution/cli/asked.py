"""What a command is asked for: the index that it opens, and the files and folders that it will write.

Those are checked before any work: it would be lost.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from attribution.errors import InputError, reason
from attribution.files import try_folder

if TYPE_CHECKING:
    from attribution.diffusion.pipeline import Model
    from attribution.index.index import Index


def opened(index: Path | None) -> tuple["Model", "Index"]:
    """The index of a folder, the embedded one by default, and its model; raises what `open_index` raises."""
    from attribution.scenes.world import open_world_or  # takes seconds

    return open_world_or(index)


def check_file(flag: str, path: Path | None, endings: tuple[str, ...] = ()) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Args:
        flag: that names it.
        path: the file; None is none.
        endings: of its name, in lower case, that are accepted; none is any.

    Raises:
        InputError: there is no such folder, or it cannot be written to, or the name is that of a folder or device.
    """
    if path is None:
        return
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{flag} {path} cannot be written; name a file that ends in {', '.join(endings)}")
    if path.exists() and not path.is_file():
        raise InputError(f"{flag} {path} cannot be written; it is a folder or a device, name a file")
    _check_folder(flag, path, path.resolve().parent)


def check_folder(flag: str, path: Path) -> None:
    """Refuse, before any work, a folder that could not be made, or written to.

    Raises:
        InputError: the name or one above it is that of a file, or a folder may not be written to.
    """
    existing = path.resolve()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    _check_folder(flag, path, existing)


def _check_folder(flag: str, path: Path, folder: Path) -> None:
    """Refuse a folder that no file can be made in."""
    if not folder.is_dir():
        told = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{flag} {path} cannot be written; {folder} {told}, name a folder that can be written to")
    try:
        try_folder(folder)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written ({error.strerror or reason(error)})") from error


def check_results(
    folder: Path | None,
    out: Path | None,
    results: Path | None,
    computes: bool = False,
    plot: Path | None = None,
    further: bool = False,
) -> None:
    """Refuse, before any work, files of results that would not be read or written, and work without a folder.

    Args:
        folder: that work is kept in; None prints finished results.
        out: a file that the folder's results are written to.
        results: a file of finished results.
        computes: something else needs a folder too.
        plot: a file that a figure is written to.
        further: the folder can add to finished results.

    Raises:
        InputError: names what does not go together, or cannot be written.
    """
    check_file("--out", out, (".npz",))
    check_file("--plot", plot, (".png", ".svg", ".pdf"))
    if folder is None and (out is not None or computes):
        raise InputError("what is computed is kept in a folder; add --folder DIR to print or compute what it holds")
    if folder is not None and results is not None and not further:
        raise InputError(f"--results {results} is printed as it is; leave out --folder, or --results")
