"""`python -m attribution evaluate ...`: a table of further commands, each resumable."""

from pathlib import Path

from attribution.answers.provenance import art_credits
from attribution.cli.asked import check_file, check_folder, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.errors import InputError
from attribution.evaluate import counterfactual as removed
from attribution.evaluate import lds as halves
from attribution.evaluate import locality as boxes
from attribution.evaluate import proof as shown
from attribution.evaluate import retrieval as exemplars
from attribution.evaluate import steadiness as steady
from attribution.evaluate import tuning as grid
from attribution.evaluate import twice as again
from attribution.evaluate import verdict as grades
from attribution.evaluate.customised import RetrievalSettings, check_settings, own_cases
from attribution.evaluate.published import Published, published_cases
from attribution.evaluate.retrain import measured, trained
from attribution.index.index import Index
from attribution.index.manifest import Manifest
from attribution.scenes.compose import WORLD
from attribution.scenes.customise import CustomiseSettings
from attribution.scenes.proof import PROOF, lessons_of
from attribution.scenes.unrelated import unrelated_of
from attribution.scenes.world import EMBEDDED


def locality(out: Path, *, settings: boxes.LocalitySettings, index: Path | None = None) -> None:
    """Precision@10 of boxed objects in generated pictures, by the scenes' own metadata.

    Args:
        out: a JSON-lines file; what it holds already is not measured again.
        settings: what is measured.
        index: an index folder; the embedded one by default.
    """
    check_file("--out", out)
    boxes.check_rows(settings.rows)
    model, measured = opened(index)
    for _ in watch(boxes.measure(model, measured, settings, out), str):
        pass
    print(boxes.summary(out, measured))


def tuning(out: Path, *, settings: grid.TuningSettings, index: Path | None = None) -> None:
    """Precision@10 over a grid of settings, on pictures that are not reported.

    Args:
        out: a JSON-lines file, which is added to.
        settings: the grid, and the pictures.
        index: an index folder; the embedded one by default.
    """
    check_file("--out", out)
    for _ in watch(grid.tune(*opened(index), settings, out), str):
        pass
    print(grid.summary(out))


def verdict(out: Path, *, settings: grades.VerdictSettings, index: Path | None = None) -> None:
    """Grades of unrelated questions that the calibration did not use, and of objects that are there.

    Args:
        out: a JSON-lines file; what it holds already is not measured again.
        settings: what is graded.
        index: an index folder; the embedded one by default.
    """
    check_file("--out", out)
    model, measured = opened(index)
    for _ in watch(grades.measure(model, measured, settings, out, unrelated_of(measured)), str):
        pass
    print(grades.summary(out, measured))


def retrain(folder: Path, *, settings: halves.LdsSettings) -> None:
    """Train models on random halves of the world for proofs; several processes share the work.

    Args:
        folder: of the world for proofs, as `python -m attribution.scenes.proof` made it, with its index.
        settings: how many, and how.
    """
    model, index = opened(folder / "index")
    wanted = halves.removals(index, settings)
    lessons = lessons_of(model, settings.training.scenes)
    for _ in watch(trained(folder, lessons, settings.training, wanted), lambda each: each.name):
        pass


def lds(folder: Path, *, settings: halves.LdsSettings) -> None:
    """Linear datamodelling scores of the methods, from the halves that are trained so far.

    Args:
        folder: of the world for proofs, with its index and what `retrain` has trained.
        settings: how many, and which methods.
    """
    model, index = opened(folder / "index")
    queries = halves.queries_of(model, settings.queries)
    found = halves.agreement(folder, model, index, queries, settings)
    print(halves.table(found) if found else f"no two models are trained in {folder} yet; run evaluate retrain first")


def counterfactual(folder: Path, *, settings: removed.LeaveOutSettings) -> None:
    """Take away the images that methods name, train again, and see what becomes of the pictures; resumable.

    Several processes share the work. The table is of the methods whose trainings are all done.

    Args:
        folder: of the world for proofs, with its index.
        settings: what is taken away.
    """
    model, index = opened(folder / "index")
    queries = halves.queries_of(model, settings.queries)
    scores = halves.scored(folder, model, index, queries, settings.methods)
    wanted = removed.removals(scores, queries, settings)
    lessons = lessons_of(model, settings.training.scenes)
    for _ in watch(trained(folder, lessons, settings.training, wanted), lambda each: each.name):
        pass
    known = measured(folder, model, settings.training, wanted, queries)
    print(removed.table(removed.outcome(known, scores, queries, settings)))


def steadiness(
    folder: Path,
    *,
    settings: again.SteadinessSettings,
    index: Path | None = None,
    second: Path | None = None,
    compute: bool = False,
) -> None:
    """How far two answers agree that differ in their noises alone: first images in common, rank correlation.

    What was measured is printed at once, with what is missing; --compute measures that. Several processes share it.

    Args:
        folder: that answers are kept in; one for an index and its settings.
        settings: what is compared.
        index: an index folder; the embedded one by default.
        second: an index that was built from the same pictures with another --seed, for other training gradients.
        compute: measure what is missing.
    """
    if second is not None and not compute:
        raise InputError(f"--second {second} is read to measure, with --compute; what was measured is printed without")
    if compute:
        check_folder("--folder", folder)
        model, first = opened(index)
        other = None if second is None else Index.open(second)
        world = WORLD if first.path.resolve() == EMBEDDED else PROOF
        queries = halves.queries_of(model, settings.queries, again.QUERY_SEED, world)
        for _ in watch(again.measure(folder, model, first, other, queries, settings), str):
            pass
    found = steady.measured(folder, None if index is None else Manifest.read(index).id)
    print(f"{steady.table(found)}\n\n{steady.notes(found, settings, steady.made_with(folder))}")


@flags({CustomiseSettings: Names("customise_")})
def retrieval(
    folder: Path,
    *,
    settings: RetrievalSettings,
    index: Path | None = None,
    compute: bool = False,
    benchmark: Path | None = None,
    benchmark_models: Path | None = None,
    benchmark_prompts: Path | None = None,
) -> None:
    """Recall@K and mAP of the exemplars that customised models were made from; prints what is finished.

    Args:
        folder: of the models, their candidates and the rankings.
        settings: how many, and who is judged.
        index: an index folder; the embedded one by default.
        compute: do what is still to do first; resumable, any number of processes share the work.
        benchmark: folder of the published benchmark (Wang et al. 2023), instead of models that are customised here.
        benchmark_models: folder of what its models have of their own; BENCHMARK/models by default.
        benchmark_prompts: JSON file of its pictures' prompts; BENCHMARK/path_to_prompts.json by default.
    """
    manifest = Manifest.read(index or EMBEDDED)
    check_settings(settings, manifest.data.count)
    check_folder("--folder", folder)
    if benchmark:
        beside = (benchmark_models or benchmark / "models", benchmark_prompts or benchmark / "path_to_prompts.json")
        cases = published_cases(Published(benchmark, *beside), manifest.id, settings)
    else:
        cases = own_cases(folder, manifest.id, settings)
    queue = exemplars.rankings(folder, cases, settings)
    if compute:
        work = exemplars.run_all(folder, opened(index)[1], cases, settings, here=not benchmark)
        for _ in watch(work, str):
            pass
    print(exemplars.table(exemplars.found(queue, cases, settings), cases, settings))
    print(exemplars.left(queue, cases, settings))


def proof(folder: Path, out: Path, *, settings: shown.ProofSettings) -> None:
    """Write the pictures that the page shows as proof, from what `counterfactual` has trained.

    Args:
        folder: of the world for proofs.
        out: a folder, assets/proof for the page.
        settings: what is shown, and the settings that `counterfactual` was run with.
    """
    check_folder("--out", out)
    model, index = opened(folder / "index")
    queries = halves.queries_of(model, settings.leave_out.queries)
    scores = halves.scored(folder, model, index, queries, settings.leave_out.methods)
    wanted = removed.removals(scores, queries, settings.leave_out)
    known = measured(folder, model, settings.leave_out.training, wanted, queries)
    results = shown.Results(index, queries, scores, known)
    command = "python -m attribution evaluate counterfactual"
    shown.write_proof(out, results, settings, command, model.sha256, art_credits(EMBEDDED))


evaluate = {
    "retrain": retrain,
    "lds": lds,
    "counterfactual": counterfactual,
    "steadiness": steadiness,
    "retrieval": retrieval,
    "locality": locality,
    "tuning": tuning,
    "verdict": verdict,
    "proof": proof,
}
