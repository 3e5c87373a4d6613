"""`python -m attribution evaluate ...`: a table of further commands, each resumable."""

from pathlib import Path

from attribution.cli.asked import check_file, opened
from attribution.cli.judging import retrieval, steadiness
from attribution.cli.progress import watch
from attribution.cli.retraining import ablations, counterfactual, lds, proof, retrain
from attribution.evaluate import locality as boxes
from attribution.evaluate import tuning as grid
from attribution.evaluate import verdict as grades
from attribution.scenes.unrelated import unrelated_of


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


evaluate = {
    "retrain": retrain,
    "lds": lds,
    "ablations": ablations,
    "counterfactual": counterfactual,
    "steadiness": steadiness,
    "retrieval": retrieval,
    "locality": locality,
    "tuning": tuning,
    "verdict": verdict,
    "proof": proof,
}
