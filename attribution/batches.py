"""Work cut into batches, and into smaller ones where the device's memory is too small for them."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from attribution.errors import WorkFailed, reason

LOG = logging.getLogger(__name__)
T = TypeVar("T")


def batches(count: int, size: int, start: int = 0) -> Iterator[range]:
    """Consecutive ranges of at most `size` rows."""
    for first in range(start, count, size):
        yield range(first, min(first + size, count))


def in_batches(count: int, size: int, work: Callable[[range], T], start: int = 0) -> Iterator[tuple[range, T]]:
    """Do work on rows `start` to `count`, a batch at a time; out of memory, with half as many from there on.

    Args:
        count: of rows.
        size: of a batch, at most.
        work: on a range of rows; it may be asked anew for a part of one that it could not do.
        start: the first row.

    Raises:
        WorkFailed: the device's memory is too small for a single row.
    """
    return in_parts(count, size, lambda rows: iter((work(rows),)), start)


def in_parts(count: int, size: int, work: Callable[[range], Iterator[T]], start: int = 0) -> Iterator[tuple[range, T]]:
    """Like `in_batches`, of work that gives several things for each batch; out of memory, its batch begins anew."""
    while start < count:
        rows = range(start, min(start + size, count))
        try:
            for part in work(rows):
                yield rows, part
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                raise WorkFailed(f"the device's memory is too small for this model ({reason(error)})") from error
            size = len(rows) // 2
        else:
            start = rows.stop
            continue
        clear_device_cache()  # here, where the error no longer holds what was computed
        LOG.warning("the device's memory is too small for %d at once; going on with %d", len(rows), size)
