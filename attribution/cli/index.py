"""`python -m attribution index`."""

import sys
from dataclasses import replace
from pathlib import Path

import tyro

from attribution.cli.asked import check_folder
from attribution.cli.costs import table
from attribution.cli.parsing import Names, flags, with_further
from attribution.cli.progress import watch
from attribution.cli.stages import stages
from attribution.diffusion.overlaid import open_model
from attribution.diffusion.source import ModelFiles
from attribution.errors import IndexMismatch, InputError
from attribution.evaluate.machine import peak_memory
from attribution.index.blocks import made_here
from attribution.index.build import build
from attribution.index.cluster import ClusterSettings, connected, hired
from attribution.index.lists import ListRecord, ListSettings
from attribution.index.manifest import Manifest
from attribution.index.plan import plan
from attribution.index.plan_update import plan_update
from attribution.index.renewal import Estimates
from attribution.index.rows import listed
from attribution.index.update import update as renew
from attribution.index.verify import verify as check
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.methods.presets import PRESETS, Preset, filled
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings

STATES = {
    "read": "as it was written",
    "unfinished": "unfinished, so not compared",
    "unknown": "made by an earlier version without checksums, so not compared",
}


def verify(folder: tyro.conf.Positional[Path]) -> None:
    """Read a whole index and compare it with the checksums in its manifest.

    Args:
        folder: of the index.
    """
    parts = list(watch(check(folder), lambda part: part.name))
    if damage := [each for part in parts for each in part.damage]:
        raise IndexMismatch(
            f"{folder} is damaged: {listed(damage)}; copy these files from where they are whole, or build it anew"
        )
    read = sum(part.bytes for part in parts)
    for state, told in STATES.items():
        if names := [part.name for part in parts if part.state == state]:
            print(f"{told}: {', '.join(names)}")
    print(f"{read / 1e6:,.1f} MB were read")


@with_further(verify=verify)
@flags(
    {
        FisherSettings: Names("fisher_"),
        ModelFiles: Names(hidden=("lora_apart",)),
        GradientSettings: Names("projection_"),
        ListSettings: Names("approximate_"),
    }
)
def index(
    out: Path,
    resolution: int | None = None,
    preset: Preset | None = None,
    dry_run: bool = False,
    update: bool = False,
    estimates: Estimates | None = None,
    *,
    model_files: ModelFiles,
    settings: BuildSettings,
    additions: ExtendSettings,
    machines: ClusterSettings,
) -> None:
    """Build, or go on building, the index of a training set and a model; with the same settings, add to it.

    `index verify FOLDER` tells whether one is still as it was written.

    Args:
        out: the index folder.
        resolution: px; the model's own by default, and another value is refused.
        preset: the settings of an experiment of the paper, for what is left at its default.
        dry_run: build nothing; measure a few batches of every step, and print what it will take.
        update: go on with the index of a training set that was changed since: what was made of images that stayed is
            kept, new ones are added, and those that are gone are left out.
        estimates: with --update: whether what was estimated from all images (Fisher information, EK-FAC) is kept or
            made anew; by default it is kept while at most 5 % of these images changed.
        model_files: the model that it is of.
        settings: what it is made from.
        additions: what is added to it.
        machines: that make it.
    """
    _check_flags(dry_run, update, estimates, machines)
    if not dry_run:
        check_folder("--out", out)
    if preset is not None:
        settings = filled(settings, PRESETS[preset].build)
    with connected(machines):
        model = open_model(replace(model_files, lora_apart=settings.fisher.weights == "lora"))
        if resolution not in (None, model.resolution):
            raise InputError(
                f"--resolution {resolution} is not possible; {model.source} was made for {model.resolution} px, which"
                " is the default"
            )
        given = (out, model, settings, additions)
        if dry_run:
            measured = plan_update(*given, estimates) if update else plan(*given)
            costs = list(watch(measured, lambda cost: f"measured: {cost.name}", every=1))
            print("\n".join(table(costs, out, settings.fisher.samples)))
            return
        with hired(model, machines) as cluster, stages() as show:
            make = cluster.made if cluster else made_here
            for progress in renew(*given, estimates, show) if update else build(*given, show, make):
                show(progress)
    for name, step in Manifest.read(out).steps.items():
        if name.startswith("listed/") and isinstance(step.made, ListRecord):
            print(f"approximate search of {name.partition('/')[2]}: {step.made.told}", file=sys.stderr)
    print(f"{peak_memory():.0f} MB of memory at most", file=sys.stderr)
    print(out)


def _check_flags(dry_run: bool, update: bool, estimates: Estimates | None, machines: ClusterSettings) -> None:
    """Refuse flags that do not go together."""
    if estimates is not None and not update:
        raise InputError(f"--estimates {estimates} is of no use without --update; leave it out, or name both")
    for flag, given in (("--dry_run", dry_run), ("--update", update)):
        if given and machines != ClusterSettings():
            raise InputError(f"{flag} is for this process alone; leave --cluster and --workers out")
