"""`python -m attribution index`."""

import sys
from pathlib import Path

from attribution.cli.asked import check_folder
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.source import ModelFiles
from attribution.errors import InputError
from attribution.evaluate.bench import peak_memory
from attribution.index.build import build
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings


@flags(
    {
        FisherSettings: Names("fisher_"),
        GradientSettings: Names("projection_"),
    }
)
def index(
    out: Path,
    resolution: int | None = None,
    *,
    model_files: ModelFiles,
    settings: BuildSettings,
    additions: ExtendSettings,
) -> None:
    """Build, or go on building, the index of a training set and a model; with the same settings, add to it.

    Args:
        out: the index folder.
        resolution: px; the model's own by default, and another value is refused.
        model_files: the model that it is of.
        settings: what it is made from.
        additions: what is added to it.
    """
    check_folder("--out", out)
    model = open_model(model_files)
    if resolution not in (None, model.resolution):
        raise InputError(
            f"--resolution {resolution} is not possible; {model.source} was made for {model.resolution} px, which is"
            " the default"
        )
    for _ in watch(build(out, model, settings, additions), lambda step: f"{step.step} {step.done}/{step.total}"):
        pass
    print(f"{peak_memory():.0f} MB of memory at most", file=sys.stderr)
    print(out)
