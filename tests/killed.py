"""Kill a build, each addition, an update and a build on Ray by SIGKILL at random moments, and go on: the same bytes?

    python tests/killed.py [--moments 20] [--what build ekfac features gradients update cluster ...] [--seed 0]

Every moment is one of a run of its own: it is killed there and gone on with to its end, and all files are compared with
those of a run that nobody disturbed. A line for each kind of run; the exit status is 1 where a byte differs.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from conftest import CAPTIONS, make_tiny_tokenizer, random_picture, save_tiny_pipeline
from networks import tiny_clip, tiny_vit

from attribution.diffusion.noise import NoiseSettings
from attribution.diffusion.pipeline import Model
from attribution.index.build import build
from attribution.index.data import DataSettings
from attribution.index.found import UPDATED
from attribution.index.manifest import MANIFEST, Manifest
from attribution.index.update import update
from attribution.index.work import BuildSettings, ExtendSettings
from attribution.unlearning.fisher import FisherSettings
from attribution.unlearning.projection import GradientSettings

ROOT = Path(__file__).parent.parent
COUNT = 24  # training images
WORKERS = 2
TRIES = 4  # times as many runs as moments, at most: some end before they are killed
Begin = Callable[[Path], int]  # begins a run in a folder; the process that does it


@dataclass
class Kind:
    """A kind of run.

    Attributes:
        name: of it.
        begin: a run that will be killed.
        resume: runs to its end, one of these after another.
        before: the index that it begins with; None is none.
        slow: it takes seconds to begin; moments are counted from its first manifest on.
    """

    name: str
    begin: Begin
    resume: tuple[Begin, ...]
    before: Path | None = None
    slow: bool = False


@dataclass
class Told:
    """What became of the runs of a kind: at which steps they were killed, and which files differ."""

    killed: Counter[str] = field(default_factory=Counter)
    differ: set[str] = field(default_factory=set)


def forked(work: Callable[[Path], Iterable[object]]) -> Begin:
    """Work in a child of this process, which has imported all and holds the model."""

    def begin(out: Path) -> int:
        if child := os.fork():
            return child
        try:
            for _ in work(out):
                pass
            os._exit(0)
        finally:
            os._exit(1)

    return begin


def commanded(arguments: list[str]) -> Begin:
    """`python -m attribution index` in a process of its own, with a Ray of its own."""

    def begin(out: Path) -> int:
        command = [sys.executable, "-m", "attribution", "index", "--out", str(out), *arguments]
        one = {**os.environ, "OMP_NUM_THREADS": "1"}  # thread for each worker, as for this process
        with (out.parent / "commands.log").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=one, stdout=log, stderr=log).pid

    return begin


def ended(child: int) -> bool:
    """Wait for a process; whether it did all of its work."""
    return os.waitpid(child, 0)[1] == 0


def pictures_of(folder: Path, seeds: Iterable[int]) -> Path:
    """An imagefolder of pictures by their seeds."""
    folder.mkdir()
    rows = [{"file_name": f"p{seed:02d}.png", "text": f"{CAPTIONS[seed % len(CAPTIONS)]} {seed}"} for seed in seeds]
    for row in rows:
        random_picture(int(row["file_name"][1:3])).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step_of(out: Path) -> str:
    """The step that an index was at."""
    if not (out / MANIFEST).exists():
        return "before the first step"
    updated = sorted(path.parent for path in out.glob(f"{UPDATED}*/**/{MANIFEST}"))
    held = [(name, step) for folder in (out, *updated) for name, step in Manifest.read(folder).steps.items()]
    return next((name for name, step in reversed(held) if not step.finished), "between two steps")


def fresh(kind: Kind, out: Path) -> Path:
    """A folder to begin in."""
    shutil.rmtree(out, ignore_errors=True)
    if kind.before:
        shutil.copytree(kind.before, out)
    return out


def begun(kind: Kind, out: Path) -> int:
    """A run that will be killed, from where its moments are counted."""
    child = kind.begin(out)
    while kind.slow and not (out / MANIFEST).exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.005)
    return child


def timed(kind: Kind, out: Path) -> float:
    """Seconds of a run that nobody disturbs."""
    child, began = begun(kind, out), time.monotonic()
    assert ended(child), f"the run that nobody disturbed failed; see {out.parent}"
    return time.monotonic() - began


def kill_at_moments(kind: Kind, folder: Path, moments: int, chance: random.Random) -> Told:
    """Runs of a kind, each killed at one moment and gone on with."""
    folder.mkdir()
    assert ended(kind.resume[0](fresh(kind, folder / "whole")))
    whole, told = files_of(folder / "whole"), Told()
    took = timed(kind, fresh(kind, folder / "timed"))
    for attempt in range(TRIES * moments):
        if (number := sum(told.killed.values())) == moments:
            break
        out = fresh(kind, folder / "index")
        child = begun(kind, out)
        time.sleep(moment := took * chance.random())
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            took = moment  # the machine has less to do by now
            continue
        step = step_of(out)
        told.killed[step] += 1
        if not ended(kind.resume[number % len(kind.resume)](out)):
            told.differ.add(f"(not gone on with after {step}, run {attempt})")
            continue
        now = files_of(out)
        differ = {name for name in whole.keys() | now.keys() if whole.get(name) != now.get(name)}
        told.differ |= differ
        print(f"{kind.name}, {number + 1}: killed, {step}; {len(differ)} of {len(whole)} files differ", flush=True)
    return told


def kinds_in(folder: Path, asked: list[str]) -> Iterable[Kind]:
    """The kinds of runs, over a tiny model and its pictures."""
    torch.set_num_threads(1)
    source = save_tiny_pipeline(folder / "model", "v_prediction")
    clip, dino = tiny_clip(folder / "clip", make_tiny_tokenizer()), tiny_vit(folder / "dino")
    then = pictures_of(folder / "then", range(COUNT))
    now = pictures_of(folder / "now", [*range(2, COUNT), *range(COUNT, COUNT + 3)])
    model = Model.load(source, torch.device("cpu"))
    assert model.sha256
    fisher = FisherSettings(samples=90, timesteps=7, seed=6)
    settings = BuildSettings(DataSettings(train_data_dir=then), NoiseSettings(3, 1, 5), fisher, batch=5)
    changed = replace(settings, data=DataSettings(train_data_dir=now))
    added = {
        "fisher_all": ExtendSettings(fisher_all=True),
        "ekfac": ExtendSettings(ekfac=True),
        "features": ExtendSettings(
            features=("clip", "dino"),
            feature_weights={"clip": str(clip), "dino": str(dino)},
            approximate=("clip", "dino"),
        ),
        "gradients": ExtendSettings(gradients=("loss", "d-trak"), projection=GradientSettings(dimension=64)),
    }
    plain = folder / "plain"
    assert ended(forked(lambda out: build(out, model, settings))(plain))
    runs: dict[str, Callable[[Path], Iterable[object]]] = {
        "build": lambda out: build(out, model, settings),
        **{name: partial(_adding, model, settings, more) for name, more in added.items()},
    }
    for name, work in runs.items():
        if name in asked:
            begin = forked(work)
            yield Kind(name, begin, (begin,), None if name == "build" else plain)
    if "update" in asked:
        full = shutil.copytree(plain, folder / "full")
        assert ended(forked(partial(_adding, model, settings, added["gradients"]))(full))
        begin = forked(lambda out: update(out, model, changed))
        yield Kind("update", begin, (begin,), full)
    if "cluster" in asked:
        alone = forked(partial(_adding, model, settings, added["ekfac"]))
        begin = commanded([*_flags(source, settings), "--ekfac", "--cluster", "auto", "--workers", str(WORKERS)])
        yield Kind("cluster", begin, (alone, begin), slow=True)


def _adding(model: Model, settings: BuildSettings, more: ExtendSettings, out: Path) -> Iterable[object]:
    return build(out, model, settings, more)


def _flags(source: Path, settings: BuildSettings) -> list[str]:
    """The same settings for the command line."""
    given = {
        "pretrained_model_name_or_path": source,
        "train_data_dir": settings.data.train_data_dir,
        "timesteps": settings.noise.timesteps,
        "noises": settings.noise.noises,
        "seed": settings.noise.seed,
        "fisher_samples": settings.fisher.samples,
        "fisher_timesteps": settings.fisher.timesteps,
        "fisher_seed": settings.fisher.seed,
        "batch": settings.batch,
    }
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


ALL = ("build", "fisher_all", "ekfac", "features", "gradients", "update", "cluster")


def main() -> int:
    """Every kind that is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--what", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # each update tells what it keeps
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        for kind in kinds_in(Path(temporary), asked.what):
            where, chance = Path(temporary) / f"killed-{kind.name}", random.Random(asked.seed)
            told = kill_at_moments(kind, where, asked.moments, chance)
            count, steps = sum(told.killed.values()), ", ".join(f"{name} {n}" for name, n in told.killed.most_common())
            good = count == asked.moments and not told.differ
            bad += not good
            ends = "all the same bytes" if not told.differ else f"DIFFERENT: {', '.join(sorted(told.differ)[:5])}"
            print(f"{kind.name}: killed at {count} of {asked.moments} moments ({steps}); {ends}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
