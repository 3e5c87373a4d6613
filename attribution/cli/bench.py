"""`python -m attribution bench`."""

import json
from pathlib import Path

from attribution.cli.asked import check_file, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.evaluate.bench import BenchSettings
from attribution.evaluate.bench import bench as measure
from attribution.evaluate.findings import Findings
from attribution.evaluate.growth import GrowthSettings
from attribution.evaluate.recipe import RecipeSettings
from attribution.files import write_whole


@flags({RecipeSettings: Names("recipe_"), GrowthSettings: Names("growth_", renamed={"sizes": "growth"})})
def bench(*, settings: BenchSettings, out: Path | None = None, index: Path | None = None) -> None:
    """Measure every way to answer on this machine: predictions, seconds, how good it is; and the published recipe.

    Prints a table. With --growth it also measures how a search grows with the training set.

    Args:
        settings: what is measured.
        out: a JSON file, written anew after each picture, with what was found so far.
        index: an index folder; the embedded one by default.
    """
    check_file("--out", out)
    found: Findings | None = None
    for step in watch(measure(*opened(index), settings), _told):
        if isinstance(step, Findings):
            found = step
            if out is not None:
                write_whole(out, f"{json.dumps(found.json, indent=1)}\n".encode())
    if found is not None:
        print(found.markdown)


def _told(step: str | Findings) -> str:
    return step if isinstance(step, str) else "a part is done"
