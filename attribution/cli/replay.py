"""`python -m attribution replay`."""

from pathlib import Path

import tyro

from attribution.answers.replay import Replayed
from attribution.answers.replay import replay as again
from attribution.answers.report import read_zip
from attribution.cli.asked import opened
from attribution.cli.progress import watch
from attribution.methods.answer import Progress


def replay(run: tyro.conf.Positional[Path], index: Path | None = None) -> None:
    """Answer a run again, and say whether each ranking is the same.

    Args:
        run: a ZIP that `attribute --report` or the page wrote.
        index: the run's index; the embedded one by default.
    """
    kept = read_zip(run)
    model, index_of_run = opened(index)
    for step in watch(again(model, index_of_run, kept), _told):
        if isinstance(step, Replayed):
            for method, rank in step.differs.items():
                print(f"{method}: {'the same ranking' if rank is None else f'differs from rank {rank} on'}")


def _told(step: Progress | Replayed) -> str:
    return f"{step.stage} {step.evaluations}/{step.total} evaluations" if isinstance(step, Progress) else "done"
