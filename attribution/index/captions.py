"""Captions that are kept apart from their images: a .txt beside each, one prompt for all, or COCO's JSON.

diffusers' scripts read the second of these (`train_dreambooth.py`), kohya's the first.
"""

import json
from pathlib import Path
from typing import Any

from attribution.errors import InputError, reason
from attribution.index.folder import inside, left_out, pictures_of
from attribution.index.rows import Rows, listed


def has_texts(files: list[Path]) -> bool:
    """Whether any picture among some files has a .txt of its name beside it."""
    names = set(files)
    return any(path.with_suffix(".txt") in names for path in pictures_of(files))


def read_texts(folder: Path, files: list[Path]) -> Rows:
    """All pictures of a folder, each with the first line of the .txt of its name beside it, as kohya takes it."""
    pictures = pictures_of(files)
    captions, faults, longer = [], {}, []
    for row, path in enumerate(pictures):
        try:
            lines = path.with_suffix(".txt").read_text(encoding="utf-8-sig").strip().splitlines()
        except FileNotFoundError:
            lines, faults[row] = [], f"there is no {path.stem}.txt beside it"
        except (OSError, ValueError) as error:
            lines, faults[row] = [], f"its {path.stem}.txt cannot be read: {reason(error)}"
        captions.append(lines[0].strip() if lines else "")
        if len(lines) > 1:
            longer.append(path.name)
    notes = [f"captions are read from the .txt beside each image of {str(folder)!r}"]
    if longer:
        notes.append(f"of texts with several lines the first counts ({len(longer):,}): {listed(longer)}")
    return _rows(folder, pictures, captions, faults, tuple(notes))


def read_prompted(folder: Path, files: list[Path], prompt: str) -> Rows:
    """The pictures that lie in a folder itself, all with one caption, as diffusers' `train_dreambooth.py` reads them.

    Raises:
        InputError: no picture lies in it itself.
    """
    pictures = [path for path in pictures_of(files) if path.parent == folder]
    if not pictures:
        raise InputError(
            f"no picture lies in {str(folder)!r} itself, whose pictures --instance_prompt is for; name the folder that"
            " they lie in with --train_data_dir"
        )
    told = "left out, as by train_dreambooth.py, are the pictures in folders of {}"
    notes = left_out(told, folder, files, [path.name for path in pictures])
    return _rows(folder, pictures, [prompt] * len(pictures), {}, notes)


def read_coco(folder: Path, files: list[Path], captions_file: Path) -> Rows:
    """The images that a captions file of COCO's kind names, by their numbers, each with all of its captions.

    Raises:
        InputError: there is no such file, or it is of another kind.
    """
    told = _coco(captions_file)
    by_image: dict[str, list[Any]] = {}
    for each in told["annotations"]:
        by_image.setdefault(str(each.get("image_id")), []).append(each.get("caption"))
    images = sorted(told["images"], key=lambda each: str(each.get("id")).zfill(20))
    names, paths, faults = [], [], {}
    for row, each in enumerate(images):
        path, fault = inside(folder, each.get("file_name"))
        names.append(path.relative_to(folder).as_posix() if path else f"image {each.get('id')}")
        paths.append({"bytes": None, "path": path and str(path)})
        if fault:
            faults[row] = fault
    captions = [by_image.get(str(each.get("id"))) for each in images]
    notes = left_out(f"left out are the images of {{}} that {captions_file.name} does not name", folder, files, names)
    return Rows(names, captions, paths, faults, notes)


def _coco(captions_file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        told = json.loads(captions_file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"--captions_file {captions_file} could not be read ({reason(error)})") from error
    parts = [told.get(part) if isinstance(told, dict) else None for part in ("images", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(each, dict) for each in part) for part in parts):
        raise InputError(
            f"--captions_file {captions_file} is not of COCO's kind; accepted is a JSON object with images (id,"
            " file_name) and annotations (image_id, caption)"
        )
    return told  # type: ignore[no-any-return]


def _rows(
    folder: Path, pictures: list[Path], captions: list[str], faults: dict[int, str], notes: tuple[str, ...]
) -> Rows:
    names = [path.relative_to(folder).as_posix() for path in pictures]
    return Rows(names, captions, [{"bytes": None, "path": str(path)} for path in pictures], faults, notes)
