"""Images whose vectors are near one another, in lists: a search looks at the few lists that are nearest, not at all.

This is FAISS's inverted file (IVF; Johnson et al. 2019, arXiv 1702.08734): FAISS learns the lists' centres and puts
each image into one. What an index keeps of it are plain arrays, the vectors among them as they were, so that every
score is exact and only who is looked at is not; how many of the best are missed is measured on images held out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribution.errors import InputError

FEWEST = 8  # images, of which two are held out
ROUNDS = 10  # of k-means
EACH = 40  # images that are learned from, for each list
ASKED = 200  # images at most that are held out and asked about: half to choose how many lists, half to measure
GOAL = 0.95  # of the first DEPTHS[0] that are to be found
DEPTHS = (10, 100)  # of the recall that is measured; nobody is given more images
Floats = NDArray[np.floating]
Rows = NDArray[np.integer]


def faiss() -> Any:
    """FAISS, which only building lists needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        told = '--approximate needs FAISS, which is not installed; pip install "faiss-cpu>=1.9" does that'
        raise InputError(f"{told} (the extra `approximate`)") from error
    return faiss


@dataclass(frozen=True)
class ListSettings:
    """How images are put into lists.

    Attributes:
        lists: how many; by default twice the root of the number of images.
        probes: lists that a search looks at; by default the fewest that find 95 % of the first ten.
        seed: of the images that are held out, and of those that are learned from.
    """

    lists: int | None = None
    probes: int | None = None
    seed: int = 4

    def checked(self, images: int) -> "ListSettings":
        """The same, if that is possible with so many images.

        Raises:
            InputError: it is not.
        """
        if images < FEWEST:
            raise InputError(f"{images} training images are too few to put into lists; at least {FEWEST} are needed")
        most = images - _held_out(images)
        if self.lists is not None and not 1 <= self.lists <= most:
            raise InputError(
                f"--approximate_lists {self.lists} is not possible; accepted are whole numbers from 1 to {most:,}, the"
                " training images that are not held out"
            )
        if self.probes is not None and not 1 <= self.probes <= self.count(images):
            raise InputError(
                f"--approximate_probes {self.probes} is not possible; accepted are whole numbers from 1 to"
                f" {self.count(images):,}, the lists"
            )
        if self.seed < 0:
            raise InputError(f"--approximate_seed {self.seed} is not possible; accepted are whole numbers from 0")
        return self

    def count(self, images: int) -> int:
        """How many lists there are of so many images."""
        return self.lists or max(1, min(round(2 * images**0.5), images - _held_out(images)))

    def drawn(self, images: int) -> tuple[Rows, Rows]:
        """The images that are learned from, and those that are held out: rows, in order."""
        shuffled, asked = np.random.default_rng(self.seed).permutation(images), _held_out(images)
        return np.sort(shuffled[asked : asked + EACH * self.count(images)]), np.sort(shuffled[:asked])


def _held_out(images: int) -> int:
    return min(ASKED, images // 4)


@dataclass(frozen=True)
class ListRecord(ListSettings):
    """How images were put into lists, and what a search is worth, which is known when they are.

    Attributes:
        made: lists.
        near: of them, those that a search looks at.
        looked_at: the mean share of the images that is in those.
        asked: images that were asked about.
        recall: share of the first of DEPTHS that was found, by depth.
        vectors: a hash of the vectors' file.
    """

    made: int = field(default=0, compare=False)
    near: int = field(default=0, compare=False)
    looked_at: float = field(default=0.0, compare=False)
    asked: int = field(default=0, compare=False)
    recall: tuple[float, ...] = field(default=(), compare=False)
    vectors: str = field(default="", compare=False)

    def again(self) -> "ListRecord":
        """The same as it was asked for."""
        return ListRecord(self.lists, self.probes, self.seed)

    @property
    def told(self) -> str:
        """How a search goes and what it is worth, in words."""
        return (
            f"the nearest {self.near:,} of {self.made:,} lists are looked at, on average {self.looked_at:.1%} of the"
            f" training images; {self.measured}"
        )

    @property
    def measured(self) -> str:
        """What a search is worth, in words."""
        found = " and ".join(
            f"{share:.1%} of the first {depth}" for share, depth in zip(self.recall, DEPTHS, strict=True)
        )
        return f"of {self.asked:,} held-out training images that were asked about, it found {found}"


def unit(vectors: Floats) -> NDArray[np.float32]:
    """Vectors (..., D) of length one; zeros stay zeros."""
    precise = np.asarray(vectors, np.float32)
    length = np.maximum(np.linalg.norm(precise, axis=-1, keepdims=True), 1e-12)
    directions: NDArray[np.float32] = (precise / length).astype(np.float32, copy=False)
    return directions


def points(vectors: Floats) -> NDArray[np.float32]:
    """Where images (n, D) are by their vectors (n, views, D): the direction of the mean of their views' directions."""
    return unit(unit(vectors).mean(1))


def learned(drawn: NDArray[np.float32], count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Centres (count, D) of points (n, D) by spherical k-means, after each of ROUNDS."""
    centres: NDArray[np.float32] | None = None
    for _ in range(ROUNDS):
        means = faiss().Kmeans(
            drawn.shape[1],
            count,
            niter=1,
            spherical=True,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(drawn),
        )
        means.train(drawn, init_centroids=centres)
        centres = means.centroids
        yield means.centroids


def nearest(some: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The list (n,) of each point (n, D)."""
    found: NDArray[np.int64] = faiss().knn(some, centres, 1, metric=faiss().METRIC_INNER_PRODUCT)[1][:, 0]
    return found


class Trial:
    """A search for what is nearest to images that were held out, by looking at all: whom lists have to find.

    Attributes:
        asked: rows (q,) of these images.
        wanted: (q, D) their own vectors, of length one.
        scores: (q, depth) the highest cosines so far with other images, the larger of their views.
        rows: (q, depth) of which images.
    """

    def __init__(self, asked: Rows, vectors: Floats, images: int) -> None:
        self.asked, self.wanted = asked, unit(vectors[:, 0])
        shape = len(asked), min(DEPTHS[-1], images - 1)
        self.scores, self.rows = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)

    def look(self, rows: range, vectors: Floats) -> None:
        """Take images into account, whose vectors are (n, views, D)."""
        cosines = (unit(vectors) @ self.wanted.T).max(1).T
        inside = (self.asked >= rows.start) & (self.asked < rows.stop)
        cosines[np.flatnonzero(inside), self.asked[inside] - rows.start] = -np.inf  # not itself
        depth = self.scores.shape[1]
        scores = np.concatenate([self.scores, cosines], 1)
        held = np.concatenate([self.rows, np.broadcast_to(np.arange(rows.start, rows.stop), cosines.shape)], 1)
        best = np.argpartition(-scores, depth - 1, 1)[:, :depth]
        self.scores, self.rows = np.take_along_axis(scores, best, 1), np.take_along_axis(held, best, 1)

    def judge(self, record: ListRecord, centres: NDArray[np.float32], lists: Rows) -> dict[str, Any]:
        """What a search is worth that looks at as many lists as a record says, or as it takes.

        Args:
            record: as it was asked for.
            centres: of the lists.
            lists: (N,) that each image is in.
        """
        order = np.argsort(-(self.wanted @ centres.T), 1, kind="stable")
        place = np.argsort(order, 1)  # of each list, among the nearest
        ranked = np.take_along_axis(self.rows, np.argsort(-self.scores, 1, kind="stable"), 1)
        needed = np.take_along_axis(place, lists[ranked], 1) + 1  # lists, to find each of the best
        first = np.sort(needed[::2, : DEPTHS[0]], axis=None)
        near = record.probes or int(first[int(np.ceil(GOAL * first.size)) - 1])
        sizes = np.bincount(lists, minlength=len(centres))
        others = needed[1::2]
        return {
            "made": len(centres),
            "near": near,
            "looked_at": float(sizes[order[1::2, :near]].sum(1).mean() / len(lists)),
            "asked": len(others),
            "recall": tuple(float((others[:, :depth] <= near).mean()) for depth in DEPTHS),
        }
