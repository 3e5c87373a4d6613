"""The commands that judge methods by other noises and by customised models.

Without --folder they print the results that come with this program. With it they compute, and --out keeps what
was found in a file of results.
"""

from dataclasses import replace
from pathlib import Path

from attribution.cli.asked import check_folder, check_results, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.errors import InputError
from attribution.evaluate import lds as halves
from attribution.evaluate import recalled
from attribution.evaluate import retrieval as exemplars
from attribution.evaluate import steadiness as steady
from attribution.evaluate import twice as again
from attribution.evaluate.customised import Cases, RetrievalSettings, check_settings, own_cases
from attribution.evaluate.published import Published, published_cases
from attribution.evaluate.results import (
    Results,
    check_replaced,
    committed,
    provenance,
    read_results,
    refuse_ignored,
    write_results,
)
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.scenes.compose import WORLD
from attribution.scenes.customise import CustomiseSettings
from attribution.scenes.proof import PROOF
from attribution.scenes.world import EMBEDDED


def steadiness(
    *,
    settings: again.SteadinessSettings,
    folder: Path | None = None,
    index: Path | None = None,
    second: Path | None = None,
    compute: bool = False,
    out: Path | None = None,
    results: Path | None = None,
) -> None:
    """How far two answers agree that differ in their noises alone: first images in common, rank correlation.

    What was measured is printed at once, with what is missing; --compute measures that. Several processes share it.

    Args:
        settings: what is compared.
        folder: that answers are kept in, one for an index and its settings; without it finished results are printed.
        index: an index folder; the embedded one by default.
        second: an index that was built from the same pictures with another --seed, for other training gradients.
        compute: measure what is missing.
        out: a file that the results of the folder are written to.
        results: a file of results to print; the one that comes with this program by default.
    """
    check_results(folder, out, results, compute)
    if second is not None and not compute:
        raise InputError(f"--second {second} is read to measure, with --compute; what was measured is printed without")
    manifest_id = None if index is None else Manifest.read(index).id
    if folder is None:
        _print_steadiness(results or committed("steadiness"), manifest_id, settings)
        return
    if compute:
        check_folder("--folder", folder)
        model, first = opened(index)
        other = None if second is None else Index.open(second)
        world = WORLD if first.path.resolve() == EMBEDDED else PROOF
        queries = halves.queries_of(model, settings.queries, again.QUERY_SEED, world)
        for _ in watch(again.measure(folder, model, first, other, queries, settings), str):
            pass
    answers = steady.answers(folder, manifest_id)
    if out is not None:
        made = steady.made_of(Manifest.read(index or EMBEDDED), folder, settings)
        steady.answers(folder, made.index)  # refuses those of another one
        write_results(out, made, steady.packed(answers))
    found = steady.judged(answers)
    print(f"{steady.table(found)}\n\n{steady.notes(found, settings, steady.made_with(folder))}")


def _print_steadiness(path: Path, index_id: str | None, settings: again.SteadinessSettings) -> None:
    held = read_results(path, "steadiness")
    _check_index(held, path, index_id)
    refuse_ignored(settings, ("queries", "methods"))
    again.lines(settings.methods, False)  # refuses unknown methods
    found = steady.judged(steady.unpacked(held, settings))
    print(f"{steady.table(found)}\n\n{steady.notes(found, settings, held.made.fixed)}")
    print(provenance(held.made, path, []))


@flags({CustomiseSettings: Names("customise_")})
def retrieval(
    *,
    settings: RetrievalSettings,
    folder: Path | None = None,
    index: Path | None = None,
    compute: bool = False,
    benchmark: Path | None = None,
    benchmark_models: Path | None = None,
    benchmark_prompts: Path | None = None,
    out: Path | None = None,
    results: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Recall@K and mAP of the exemplars that customised models were made from; prints what is finished.

    Args:
        settings: how many, and who is judged.
        folder: of the models, their candidates and the rankings; without it finished results are printed.
        index: an index folder; the embedded one by default.
        compute: do what is still to do first; resumable, any number of processes share the work.
        benchmark: folder of the published benchmark (Wang et al. 2023), instead of models that are customised here.
        benchmark_models: folder of what its models have of their own; BENCHMARK/models by default.
        benchmark_prompts: JSON file of its pictures' prompts; BENCHMARK/path_to_prompts.json by default.
        out: a file that the results of the folder are written to.
        results: a file of results to print; the one that comes with this program by default.
        plot: a figure of what is printed, PNG, SVG or PDF.
    """
    check_results(folder, out, results, compute or benchmark is not None, plot)
    manifest = Manifest.read(index or EMBEDDED)
    check_settings(settings, manifest.data.count)
    if folder is None:
        _print_retrieval(results or committed("retrieval"), None if index is None else manifest.id, settings, plot)
        return
    check_folder("--folder", folder)
    if benchmark:
        beside = (benchmark_models or benchmark / "models", benchmark_prompts or benchmark / "path_to_prompts.json")
        cases = published_cases(Published(benchmark, *beside), manifest.id, settings)
    else:
        cases = own_cases(folder, manifest.id, settings)
    made = recalled.made_of(manifest, cases, settings)
    check_replaced(out, made)
    queue = exemplars.rankings(folder, cases, settings)
    if compute:
        work = exemplars.run_all(folder, opened(index)[1], cases, settings, here=not benchmark)
        for _ in watch(work, str):
            pass
    if out is not None:
        write_results(out, made, recalled.packed(queue, cases, settings))
    _print_recall(queue, cases, settings, plot)


def _print_retrieval(path: Path, index_id: str | None, settings: RetrievalSettings, plot: Path | None) -> None:
    held = read_results(path, "retrieval")
    _check_index(held, path, index_id)
    refuse_ignored(settings, ("k", "methods"))
    asked = replace(settings, scenes=held.made.settings["scenes"])
    _print_recall(*recalled.unpacked(held, asked), asked, plot)
    print(provenance(held.made, path, []))


def _print_recall(done: exemplars.Finished, cases: Cases, settings: RetrievalSettings, plot: Path | None) -> None:
    found = exemplars.found(done, cases, settings)
    print(exemplars.table(found, cases, settings))
    print(exemplars.left(done, cases, settings))
    if plot is not None:
        from attribution.evaluate.plots import recall_bars  # Matplotlib takes a second

        recall_bars(found, settings.k, plot)


def _check_index(held: Results, path: Path, index_id: str | None) -> None:
    if index_id not in (None, held.made.index):
        raise InputError(f"{path} holds results of index {held.made.index}, not of {index_id}; leave out --index")
