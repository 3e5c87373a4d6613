"""The commands that judge methods by training again.

Without --folder they print the results that come with this program. With it they compute, and --out keeps what
was found in a file of results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attribution.answers.proof import foreseen_words
from attribution.answers.provenance import art_credits
from attribution.cli.asked import check_folder, check_results, opened
from attribution.cli.parsing import Names, flags
from attribution.cli.progress import watch
from attribution.errors import InputError
from attribution.evaluate import ablations as variants
from attribution.evaluate import counterfactual as removed
from attribution.evaluate import foreseen, left
from attribution.evaluate import lds as halves
from attribution.evaluate import proof as shown
from attribution.evaluate.controls import controls
from attribution.evaluate.results import (
    Results,
    check_replaced,
    committed,
    held_methods,
    provenance,
    read_results,
    refuse_ignored,
    write_results,
)
from attribution.evaluate.retrain import measured, trained, unmeasured
from attribution.evaluate.scored import scored
from attribution.index.typed import read_as
from attribution.query.query import Query
from attribution.scenes.proof import lessons_of
from attribution.scenes.world import EMBEDDED
from attribution.unlearning.score import Floats


def retrain(folder: Path, *, settings: halves.LdsSettings) -> None:
    """Train models on random halves of the world for proofs; several processes share the work.

    Args:
        folder: of the world for proofs, as `python -m attribution.scenes.proof` made it.
        settings: how many, and how.
    """
    model, index = opened(folder / "index")
    wanted = halves.removals(index, settings)
    lessons = lessons_of(model, settings.training.scenes)
    for _ in watch(trained(folder, lessons, settings.training, wanted, model.device), lambda each: each.name):
        pass


def lds(
    *,
    settings: halves.LdsSettings,
    folder: Path | None = None,
    out: Path | None = None,
    results: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Linear datamodelling scores of the methods: finished ones, or with --folder from what is trained there so far.

    Args:
        settings: how many, and which methods.
        folder: of the world for proofs, with its index and what `retrain` has trained.
        out: a file that the results of the folder are written to.
        results: a file of results to print, with all of its methods where none are named; the one that comes with this
            program by default. With --folder, methods that it lacks are scored there, and judged by its trainings.
        plot: a figure of what is printed, PNG, SVG or PDF.
    """
    check_results(folder, out, results, plot=plot, further=True)
    if folder is None:
        _print_lds(results or committed("lds"), settings, plot)
        return
    model, index = opened(folder / "index")
    queries = halves.queries_of(model, settings.queries)
    held = None if results is None else read_results(results, "lds")
    made = halves.made_of(index, model, queries, settings)
    check_replaced(out, made)
    if held is not None:
        evidence = halves.with_further_methods(held, folder, model, index, queries, settings)
    else:
        evidence = halves.gathered(folder, model, index, queries, settings)
    if out is not None:
        write_results(out, made, halves.packed(evidence))
    _show_lds(evidence, plot)
    _print_controls(evidence, [query.prompt for query in queries])


def _print_controls(evidence: halves.Evidence, prompts: Sequence[str]) -> None:
    if told := controls(evidence, prompts):
        print(told)


def _show_lds(evidence: halves.Evidence, plot: Path | None) -> None:
    found = halves.agreement(evidence)
    print(halves.table(found))
    if plot is not None:
        from attribution.evaluate.plots import lds_bars  # Matplotlib takes a second

        lds_bars(found, plot)


def _print_lds(path: Path, settings: halves.LdsSettings, plot: Path | None) -> None:
    held = read_results(path, "lds")
    refuse_ignored(settings, ("models", "seeds", "queries", "methods"))
    every = halves.unpacked(held)
    asked = every.scores if path != committed("lds") and settings.methods == halves.JUDGED else settings.methods
    methods = held_methods(list(asked), every.scores)
    evidence = every.of(methods, settings)
    _show_lds(evidence, plot)
    _print_controls(evidence, [prompt for prompt, *_ in held.made.fixed["queries"]])
    lacking = [method for method in asked if method not in methods]
    print(provenance(held.made, path, [*lacking, *evidence.lacks(settings)]))


def ablations(
    *,
    settings: variants.AblationSettings,
    folder: Path | None = None,
    out: Path | None = None,
    results: Path | None = None,
) -> None:
    """Linear datamodelling scores of variants of unlearning: finished ones, or computed with --folder.

    Args:
        settings: which variants, and by how many pictures.
        folder: of the world for proofs, with its index and what `retrain` has trained; several processes share it.
        out: a file that the results of the folder are written to.
        results: a file of results to print; the one that comes with this program by default.
    """
    check_results(folder, out, results)
    asked = settings.named
    if folder is None:
        _print_ablations(results or committed("ablations"), settings)
        return
    model, index = opened(folder / "index")
    queries = halves.queries_of(model, max(settings.queries, halves.LdsSettings().queries))
    first = queries[: settings.queries]
    made = variants.made_of(index, model, first, settings)
    check_replaced(out, made)
    for _ in watch(variants.compute(folder, model, index, first, settings), str):
        pass
    evidence = variants.gathered(folder, model, index, queries, settings)
    if out is not None:
        write_results(out, made, halves.packed(evidence))
    _show_lds(evidence, None)
    if missing := [name for name in asked if name not in evidence.scores]:
        print(f"Another process is still at work on: {', '.join(missing)}.")


def _print_ablations(path: Path, settings: variants.AblationSettings) -> None:
    held = read_results(path, "ablations")
    refuse_ignored(settings, ("models", "seeds", "queries", "variants"))
    every = halves.unpacked(held)
    evidence = every.of([name for name in settings.named if name in every.scores], settings.judged)
    _show_lds(evidence, None)
    lacking = [name for name in settings.named if name not in every.scores]
    print(provenance(held.made, path, [*lacking, *evidence.lacks(settings.judged)]))


@flags({removed.LeaveOutSettings: Names(renamed={"ks": "k"})})
def counterfactual(
    *,
    settings: removed.LeaveOutSettings,
    folder: Path | None = None,
    unlearn: bool = False,
    out: Path | None = None,
    results: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Take away the images that methods name, train again, and see what becomes of the pictures.

    Prints finished results, or computes them with --folder: resumable, several processes share the work. The table is
    of the methods whose trainings are all done.

    Args:
        settings: what is taken away.
        folder: of the world for proofs, with its index.
        unlearn: unlearn the same images too, to see how well that foresees training without them; with --folder.
        out: a file that the results of the folder are written to.
        results: a file of results to print; the one that comes with this program by default.
        plot: a figure of what is printed, PNG, SVG or PDF.
    """
    check_results(folder, out, results, plot=plot)
    if unlearn and folder is None:
        raise InputError("--unlearn computes, in a folder; name it by --folder")
    if folder is None:
        _print_counterfactual(results or committed("counterfactual"), settings, plot)
        return
    model, index = opened(folder / "index")
    removed.check_sizes((*settings.ks, *settings.curve), len(index))
    queries = halves.queries_of(model, settings.queries)
    made = left.made_of(index, model, queries, settings)
    check_replaced(out, made)
    scores = scored(folder, model, index, queries, settings.methods)
    wanted = removed.removals(scores, queries, settings)
    lessons = lessons_of(model, settings.training.scenes)
    missing = unmeasured(folder, wanted, queries)
    for _ in watch(trained(folder, lessons, settings.training, missing, model.device), lambda each: each.name):
        pass
    known = removed.changes(measured(folder, model, settings.training, wanted, queries))
    if unlearn:
        once = [each for each in removed.named_by_methods(scores, queries, settings, 0) if each in known]
        for _ in watch(foreseen.foresee(folder, model, index, once, queries), lambda each: each.name):
            pass
    evidence = _evidence(folder, known, scores, queries, settings)
    if out is not None:
        write_results(out, made, left.packed(evidence, settings))
    _show_counterfactual(evidence, settings, settings.queries, plot)


def _evidence(
    folder: Path,
    known: removed.Changes,
    scores: Mapping[str, Floats],
    queries: Sequence[Query],
    settings: removed.LeaveOutSettings,
) -> removed.Evidence:
    """What trainings have changed, with what unlearning the same images has changed as far as the folder holds it."""
    unlearned = foreseen.foreseen(folder, removed.named_by_methods(scores, queries, settings, 0), queries)
    return removed.Evidence(known, scores, removed.groups(queries, settings.together), unlearned)


def _show_counterfactual(
    evidence: removed.Evidence, settings: removed.LeaveOutSettings, queries: int, plot: Path | None
) -> list[removed.Left]:
    """Print, and draw, what evidence that was computed with some settings says of the first queries."""
    every = [*removed.noise(evidence), *removed.judged(evidence, settings)]
    found = [each.of(queries) for each in every]
    print(removed.table(found))
    if told := [each.told for each in foreseen.foresight(evidence, settings)]:
        print(foreseen_words(told))
    if plot is not None:
        from attribution.evaluate.plots import left_out  # Matplotlib takes a second

        curve = removed.random_curve(evidence, settings)
        left_out(found, {k: changes[:queries] for k, changes in curve.items()}, plot)
    return every


def _print_counterfactual(path: Path, settings: removed.LeaveOutSettings, plot: Path | None) -> None:
    held = read_results(path, "counterfactual")
    removed.check_sizes(settings.ks, held.made.images)
    refuse_ignored(settings, ("ks", "queries", "methods"))
    evidence = left.unpacked(held)
    methods = held_methods(settings.methods, evidence.scores)
    asked = replace(_left_out(held), ks=settings.ks, methods=tuple(methods))
    found = _show_counterfactual(evidence, asked, settings.queries, plot)
    print(provenance(held.made, path, removed.lacking(found, settings)))


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
    scores = scored(folder, model, index, queries, settings.leave_out.methods)
    wanted = removed.removals(scores, queries, settings.leave_out)
    known = measured(folder, model, settings.leave_out.training, wanted, queries)
    evidence = _evidence(folder, removed.changes(known), scores, queries, settings.leave_out)
    told = tuple(each.told for each in foreseen.foresight(evidence, settings.leave_out))
    pictures = shown.Results(index, queries, scores, known, told)
    command = "python -m attribution evaluate counterfactual"
    shown.write_proof(out, pictures, settings, command, model.sha256, art_credits(EMBEDDED))


def _left_out(held: Results) -> removed.LeaveOutSettings:
    """The settings that results of leave-K-out were computed with."""
    try:
        settings: removed.LeaveOutSettings = read_as(removed.LeaveOutSettings, held.made.settings, "settings")
        return settings
    except ValueError as error:
        raise InputError(f"these results are of another version ({error}); compute them anew with --folder") from error
