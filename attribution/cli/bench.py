"""`python -m attribution bench`."""

import json
from pathlib import Path

from attribution.cli.asked import check_file, opened
from attribution.cli.progress import watch
from attribution.evaluate.bench import BenchSettings
from attribution.evaluate.bench import bench as measure
from attribution.files import write_whole


def bench(*, settings: BenchSettings, out: Path | None = None, index: Path | None = None) -> None:
    """Measure seconds and resident memory of generating and attributing pictures on this machine.

    Args:
        settings: how much is measured.
        out: a JSON file.
        index: an index folder; the embedded one by default.
    """
    check_file("--out", out)
    *_, summary = watch(measure(*opened(index), settings), str)
    text = json.dumps(summary, indent=1)
    if out is not None:
        write_whole(out, f"{text}\n".encode())
    print(text)
