"""`python -m attribution scenes`."""

from pathlib import Path
from typing import Literal

from attribution.cli.asked import check_folder
from attribution.scenes.compose import write_imagefolder


def scenes(out: Path, split: Literal["train", "heldout"] = "train") -> None:
    """Compose EmojiScenes, the embedded training set, as an imagefolder with metadata.jsonl.

    Args:
        out: a folder that does not exist yet.
        split: which scenes.
    """
    check_folder("--out", out)
    print(write_imagefolder(out, split))
