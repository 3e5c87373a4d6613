"""Work that many processes share: a folder of jobs, each done once, whoever is killed.

queue.json    what the jobs are made with; a folder made with something else is refused
NAME.claim    who works on a job: host and process; touched while the work goes on
NAME.npz      a job's result, whole

A claim is a file that only one process can make. A claim is dead when its process is gone from this
machine, or when it was not touched for a while; one process at a time, under a lock, may take dead claims over.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray

from attribution.errors import InputError
from attribution.evaluate.arrays import UNREADABLE, Arrays, read_arrays, write_arrays
from attribution.files import PARTIAL

PATIENCE = 900.0  # seconds without a touch after which a claim of another machine is dead


@dataclass(frozen=True)
class Queue:
    """A folder of jobs; see `open_queue`.

    Attributes:
        folder: that all processes share.
    """

    folder: Path

    def done(self, name: str) -> bool:
        """Whether a job has its result."""
        return self._result(name).is_file()

    def result(self, name: str) -> dict[str, NDArray[Any]]:
        """A finished job's arrays, by name.

        Raises:
            InputError: it is not finished, or its file is damaged.
        """
        try:
            return read_arrays(self._result(name))
        except UNREADABLE as error:
            raise InputError(f"the job {name} in {self.folder} has no result that can be read; run it again") from error

    def claimed(self, names: Sequence[str]) -> Iterator[str]:
        """Jobs for this process, one at a time; each is its own until the next is asked for.

        Jobs that are done, or that a living process works on, are passed over; a job whose process died meanwhile is
        offered when the others are through.
        """
        for [name] in self.claimed_together(names, 1):
            yield name

    def claimed_together(self, names: Sequence[str], count: int) -> Iterator[list[str]]:
        """Like `claimed`, up to so many jobs at a time."""
        offered = True
        while offered:
            offered = False
            left = iter(names)
            while some := list(islice(self._free(left), count)):
                offered = True
                try:
                    yield some
                finally:
                    for name in some:
                        self._claim_file(name).unlink(missing_ok=True)

    def _free(self, names: Iterator[str]) -> Iterator[str]:
        """Those that this process has made its own."""
        for name in names:
            if not self.done(name) and self._claim(name):
                if self.done(name):  # by the one who had it a moment ago
                    self._claim_file(name).unlink(missing_ok=True)
                else:
                    yield name

    def touch(self, name: str) -> None:
        """Say that this process still works on a job."""
        with suppress(FileNotFoundError):
            os.utime(self._claim_file(name))

    def keep(self, name: str, arrays: Arrays) -> None:
        """Write a job's result, whole or not at all."""
        write_arrays(self._result(name), arrays)

    def _claim(self, name: str) -> bool:
        """Make this process the one that works on a job; False where a living one is."""
        path, told = self._claim_file(name), json.dumps(_who()).encode()
        try:
            _create(path, told)
        except FileExistsError:
            with self._locked():
                if not _dead(path):
                    return False
                path.unlink(missing_ok=True)
                try:
                    _create(path, told)
                except FileExistsError:  # made by one that found no claim, a moment before
                    return False
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "queue.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _claim_file(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def _result(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def open_queue(folder: Path, settings: Mapping[str, Any]) -> Queue:
    """A queue, begun or to go on with.

    Args:
        folder: shared by all processes.
        settings: all that the jobs' results depend on, as JSON has it.

    Raises:
        InputError: the folder holds jobs of other settings; names the first that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "queue.json", json.loads(json.dumps(settings))
    with suppress(FileExistsError):
        _create(path, (json.dumps(wanted, indent=1) + "\n").encode())
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged; name another folder, or delete it") from error
    for key in sorted(wanted.keys() | held.keys()):
        if held.get(key) != wanted.get(key):
            raise InputError(
                f"{folder} holds jobs with {key} = {held.get(key)!r}, now it is {wanted.get(key)!r};"
                " name another folder, or the same settings to go on with it"
            )
    return Queue(folder)


def _create(path: Path, content: bytes) -> None:
    """A new file with its content, in one step: it is written under another name and linked to its own.

    Raises:
        FileExistsError: the name is taken.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.write_bytes(content)
        os.link(partial, path)  # as O_EXCL does, it fails where the name is taken
    finally:
        partial.unlink(missing_ok=True)


def _who() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _dead(path: Path) -> bool:
    """Whether nobody works behind a claim any more."""
    try:
        told, touched = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except FileNotFoundError:
        return True
    if time.time() - touched > PATIENCE:
        return True
    if told["host"] != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(told["pid"]).create_time() != told["started"])
    except psutil.NoSuchProcess:
        return True
