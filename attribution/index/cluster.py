"""Several GPUs, many machines: the blocks of the table of steps, and losses of training images, by workers of Ray.

Workers are actors of Ray's core rather than a pool of Ray Data's, which would put every block, sums and files too, into
tables of Arrow, and needs pandas. Each holds the model. What they make comes back in the order of the rows, so that it
is added and written just as if it had been made here. The folders of the index, the model and the training data have
to be at the same paths on all machines.
"""

import logging
import math
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribution.batches import batches
from attribution.diffusion.noise import NoiseBank
from attribution.diffusion.pipeline import Model
from attribution.errors import InputError, reason
from attribution.index.blocks import Made, Task, end_of, gaps_of
from attribution.index.crew import Call, Crew, ray
from attribution.index.manifest import StepRecord
from attribution.index.worker import AskedLosses, AskedStep, Held, Worker, on
from attribution.unlearning.score import EncodedSet, Floats, Losses, Views, views_at, width

AUTO = "auto"
ANSWERS, JOINED = 5.0, 15.0  # s within which the machine of an address has to answer, and Ray there
TRIAL = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
QUIET = {  # nothing is sent to Ray's makers; no tip is printed, nor that its dashboard is not installed
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
ACCEPTED = f"accepted are {AUTO}, for this machine, and the HOST:PORT that `ray start --head` prints"


@dataclass(frozen=True)
class ClusterSettings:
    """Which processes compute.

    Attributes:
        cluster: auto is workers on this machine, one for each of its GPUs; HOST:PORT is those of a Ray cluster that
            this machine is part of; by default this process computes alone. It needs `pip install "ray>=2.40"`.
        workers: how many processes hold the model; by default as many as there are GPUs, or without any as there are
            cores for, each with as many threads as this process has (OMP_NUM_THREADS).
    """

    cluster: str | None = None
    workers: int | None = None


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[None]:
    """A context in which Ray is there, if a cluster is asked for; one that this process has joined already is used.

    Raises:
        InputError: Ray is not installed, or does not answer at this address; or a setting is not possible.
    """
    if settings.workers is not None and (settings.cluster is None or settings.workers < 1):
        told = "accepted are whole numbers from 1" if settings.cluster else "it is for --cluster, which is not given"
        raise InputError(f"--workers {settings.workers} is not possible; {told}")
    if settings.cluster is None or ray().is_initialized():
        yield
        return
    _join(settings.cluster)
    try:
        yield
    finally:
        ray().shutdown()


def _join(address: str) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if address != AUTO:
        _require_answer(address)
    where: dict[str, Any] = {"address": address}
    if address == AUTO:
        where = {"address": "local", "include_dashboard": False}
    try:
        ray().init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a dozen kinds
        raise InputError(f"no Ray cluster could be joined at {address} ({reason(error)}); {ACCEPTED}") from error


def _require_answer(address: str) -> None:
    named = re.fullmatch(r"(\S+):(\d{1,5})", address)
    if named is None:
        raise InputError(f"--cluster {address} is not possible; {ACCEPTED}")
    try:
        socket.create_connection((named[1], int(named[2])), ANSWERS).close()
        subprocess.run([sys.executable, "-c", TRIAL, address], timeout=JOINED, check=True, capture_output=True)
    except subprocess.SubprocessError as error:  # another process tries, as Ray does for minutes, and writes of it
        raise InputError(f"what answers at {address} is no Ray cluster{_why(error)}; {ACCEPTED}") from error
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address} ({reason(error)}); {ACCEPTED}") from error


def _why(error: subprocess.SubprocessError) -> str:
    """The last line of a process that names an error, in brackets."""
    if not isinstance(error, subprocess.CalledProcessError):
        return f", or one that could not be joined within {JOINED:.0f} s"
    told = re.findall(r"^[\w.]+(?:Error|Exception): (.+)$", error.stderr.decode(errors="replace"), re.MULTILINE)
    return f" that could be joined ({told[-1]})" if told else " that could be joined"


@contextmanager
def hired(model: Model, settings: ClusterSettings) -> Iterator["Cluster | None"]:
    """A context with workers that hold a model, where a cluster is asked for and `connected`.

    Raises:
        InputError: there are more workers than cores for them.
    """
    if settings.cluster is None:
        yield None
        return
    threads = torch.get_num_threads()
    device, count, needs = _shared_out(model, settings, threads)
    held = Held(model.files, Path.cwd(), device, model.dtype, threads, model.sha256)
    actor = ray().remote(Worker).options(scheduling_strategy="SPREAD", **needs)
    crew = Crew(lambda: actor.remote(held), count)
    try:
        yield Cluster(crew)
    finally:
        crew.leave()


def _shared_out(model: Model, settings: ClusterSettings, threads: int) -> tuple[str, int, dict[str, float]]:
    """The device that workers compute on, how many they are, and what each of them takes of the cluster."""
    there = ray().cluster_resources()
    if gpus := int(there.get("GPU", 0)):
        count = settings.workers or gpus
        return "cuda", count, {"num_cpus": 1, "num_gpus": 1 / math.ceil(count / gpus)}
    cores = int(there.get("CPU", 1))
    count = settings.workers or max(1, cores // threads)
    if count > 1 and count * threads > cores:
        raise InputError(
            f"{count} workers of {threads} threads each are not possible on {cores} cores; lower --workers, or set"
            " OMP_NUM_THREADS=1 for one thread each"
        )
    return "cpu" if model.device.type == "cuda" else model.device.type, count, {"num_cpus": min(threads, cores)}


@dataclass(frozen=True)
class Cluster:
    """Workers that hold a model, and what they are asked for."""

    crew: Crew

    def made(self, task: Task, held: StepRecord) -> Made:
        """Blocks of a step that are not done, in order: a `Maker` for `build`."""
        source, out = task.source, task.source.out.resolve()
        asked = AskedStep(
            *(uuid.uuid4().hex, task.name, out, source.folder, ray().put(source.training)),
            *(source.settings, task.record, task.work.made),
        )
        for blocks in self.crew.results(_calls(asked, task, held)):
            for rows, block in blocks:
                yield rows, on(block, source.model.device)

    def losses(self, path: Path) -> Losses:
        """Losses of the training images of an index's folder: what `losses_by_call` gives, under the weights of now."""

        def measured(
            model: Model,
            _training: EncodedSet,
            bank: NoiseBank,
            rows: Sequence[int],
            columns: Sequence[int],
            views: Views,
            batch: int = 64,
        ) -> Iterator[tuple[slice, int, Floats]]:
            weights = {name: each.cpu() for changed, _ in model.changed for name, each in changed.items()}
            asked = AskedLosses(path.resolve(), ray().put(bank), ray().put(weights))
            at_once = max(1, batch // width(views))
            chunks = [range(some.start, some.start + at_once) for some in batches(len(rows), at_once)]
            filled = ([i % len(rows) for i in each] for each in chunks)
            calls = (_losses_call(asked, [rows[i] for i in each], columns, views_at(views, each)) for each in filled)
            for which, losses in zip(chunks, self.crew.results(calls), strict=True):
                here = slice(which.start, min(which.stop, len(rows)))
                for column in range(len(columns)):
                    yield here, column, losses[: here.stop - here.start, :, column]

        return measured


def _calls(asked: AskedStep, task: Task, held: StepRecord) -> Iterator[Call]:
    """A call for each block that is not done, cut as they would be here."""
    for part, gaps in gaps_of(task.work, held):
        for gap in gaps:
            for rows in batches(end_of(task.work, gap), task.work.batch, gap.start):
                yield partial(_block, asked, part, gap, rows)


def _block(asked: AskedStep, part: int, gap: range, rows: range, worker: Any) -> Any:
    return worker.block.remote(asked, part, gap, rows)


def _losses_call(asked: AskedLosses, rows: list[int], columns: Sequence[int], views: Views) -> Call:
    return lambda worker: worker.losses.remote(asked, rows, list(columns), np.asarray(views))
