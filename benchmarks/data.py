"""Codes and models to measure with: generated, deterministic by kind, seed and piece.

Rows come in pieces of `PIECE`; piece p of a source depends on its kind, its seed and p alone, so
the first million rows are the same whether a million or 260 million are asked for. Row number =
id. Queries are rows of a piece that is never among the rows.

    realistic  codes between a CLIP vector and one of its near neighbours, with noise of about half
               the distance between neighbours; from cnclip_vitb16/muge.npy
    synthetic  2,000 clusters of uneven size on a sphere, with variance that falls off by dimension
    uniform    random bytes: the worst case, nothing is like anything
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Box = list[list[int]]  # [dim, lo, hi] each

DIMS = 32
PIECE = 250_000
CACHED = 10_000_000  # rows kept on disk; those after it are made anew each time
NEIGHBOURS = 10
KINDS = ("realistic", "synthetic", "uniform")
FAMILIES = ("wide", "tight", "tiny")
_QUERY_PIECE = 1 << 40
_VECTORS = Path("cnclip_vitb16") / "muge.npy"


def data_folder(chosen: Path | None) -> Path:
    """Where the evaluation data lies: the folder given, or BOXWOOD_DATA, or the usual place."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return chosen or Path(os.environ.get("BOXWOOD_DATA", beside))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _bytes(rows: NDArray[np.float32], scale: float) -> Codes:
    """Coordinates of unit vectors as bytes, one scale for all dimensions."""
    rows *= 127.5 / scale
    rows += 127.5
    np.rint(rows, out=rows)
    return np.clip(rows, 0, 255, out=rows).astype(np.uint8)


def _nearest(rows: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k nearest other rows of each unit vector, and the squared distance to the first."""
    try:
        import faiss
    except ModuleNotFoundError:
        near = np.empty((len(rows), k), np.int32)
        first = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 512):
            likeness = rows[start : start + 512] @ rows.T
            here = np.arange(len(likeness))
            likeness[here, start + here] = -2  # not itself
            best = np.argpartition(-likeness, k, axis=1)[:, :k]
            value = np.take_along_axis(likeness, best, 1)
            order = np.argsort(-value, axis=1, kind="stable")
            near[start : start + 512] = np.take_along_axis(best, order, 1)
            first[start : start + 512] = 2 - 2 * value.max(axis=1)
        return near, np.maximum(first, 0)
    flat = faiss.IndexFlatL2(rows.shape[1])
    flat.add(rows)
    distance, found = flat.search(rows, k + 1)
    return found[:, 1:].astype(np.int32), distance[:, 1]


@dataclass
class Source:
    """Rows of one kind. `cache` is a folder for what is slow to make; it may be removed."""

    kind: str
    seed: int
    cache: Path
    folder: Path | None = None
    _parts: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SystemExit(f"there is no data kind {self.kind}: {', '.join(KINDS)}")
        if self.kind == "realistic" and not self.vectors.is_file():
            print(
                f"there is no {_VECTORS} in the data folder: synthetic codes take the place of "
                "realistic ones"
            )
            self.kind = "synthetic"
        self.cache.mkdir(parents=True, exist_ok=True)

    @property
    def vectors(self) -> Path:
        return data_folder(self.folder) / _VECTORS

    def prepare(self) -> None:
        """What all pieces need: seeds and their neighbours, or the clusters."""
        if self._parts or self.kind == "uniform":
            return
        if self.kind == "synthetic":
            rng = np.random.default_rng([self.seed, 1])
            spread = (1 / np.sqrt(np.arange(1, DIMS + 1))).astype(np.float32)
            weight = rng.pareto(1.5, 2000) + 0.1
            centres = rng.standard_normal((2000, DIMS), np.float32) * spread
            self._parts = {
                "spread": spread, "edges": np.cumsum(weight / weight.sum()), "centres": centres,
                "scale": np.quantile(np.abs(_unit(centres.copy())), 0.9995),
            }  # fmt: skip
            return
        kept = self.cache / "realistic-seeds.npz"
        if not kept.is_file():
            rows = np.load(self.vectors).astype(np.float32)
            rows -= rows.mean(axis=0)
            _, axes = np.linalg.eigh(rows.T @ rows / len(rows))
            seeds = _unit(np.ascontiguousarray(rows @ axes[:, : -DIMS - 1 : -1]))
            near, first = _nearest(seeds, NEIGHBOURS)
            noise = 0.5 * np.sqrt(np.median(first)) / np.sqrt(DIMS)
            scale = np.quantile(np.abs(seeds), 0.9995)
            partial = kept.with_suffix(".part.npz")
            np.savez(partial, seeds=seeds, near=near, noise=noise, scale=scale)
            partial.replace(kept)
        with np.load(kept) as parts:
            self._parts = {name: parts[name] for name in parts.files}

    def piece(self, number: int) -> Codes:
        """Piece `number`: codes (PIECE, 32)."""
        self.prepare()
        rng = np.random.default_rng([self.seed, 2, number])
        if self.kind == "uniform":
            return rng.integers(0, 256, (PIECE, DIMS), np.uint8)
        parts = self._parts
        rows: NDArray[np.float32]
        if self.kind == "synthetic":
            which = np.searchsorted(parts["edges"], rng.random(PIECE))
            rows = parts["centres"][np.minimum(which, len(parts["centres"]) - 1)]
            rows += 0.35 * parts["spread"] * rng.standard_normal((PIECE, DIMS), np.float32)
        else:
            seeds, near = parts["seeds"], parts["near"]
            one = rng.integers(0, len(seeds), PIECE)
            step = rng.integers(0, NEIGHBOURS + 1, PIECE)  # 0: no neighbour, the row itself
            other = np.where(step == 0, one, near[one, np.maximum(step, 1) - 1])
            share = rng.random((PIECE, 1), np.float32)
            rows = seeds[one] * (1 - share) + seeds[other] * share
            noise = rng.standard_normal((PIECE, DIMS), np.float32)
            noise *= np.float32(parts["noise"])
            rows += noise
        return _bytes(_unit(rows), float(parts["scale"]))

    def _file(self) -> Path:
        return self.cache / f"{self.kind}-{self.seed}.u8"

    def _cached(self, rows: int) -> Codes:
        """The first `rows` rows (up to CACHED, whole pieces) as a map of the cache file, which
        grows as needed."""
        pieces = -(-rows // PIECE)
        size = PIECE * DIMS
        path = self._file()
        have = path.stat().st_size // size if path.is_file() else 0
        if have < pieces:
            with open(path, "r+b" if have else "wb") as out:
                out.truncate(have * size)  # a piece cut short by Ctrl-C
                out.seek(have * size)
                for codes in self.pieces(have, pieces):
                    out.write(codes.tobytes())
        return np.memmap(path, np.uint8, "r", shape=(pieces * PIECE, DIMS))

    def pieces(self, first: int, stop: int) -> Iterator[Codes]:
        """Pieces [first, stop) in order, made by two threads."""
        self.prepare()
        with ThreadPoolExecutor(2) as pool:
            ahead = [
                pool.submit(self.piece, number) for number in range(first, min(stop, first + 3))
            ]
            for number in range(first, stop):
                codes = ahead.pop(0).result()
                if number + 3 < stop:
                    ahead.append(pool.submit(self.piece, number + 3))
                yield codes

    def rows(self, start: int, stop: int) -> Codes:
        """Codes of rows [start, stop), in memory."""
        out = np.empty((stop - start, DIMS), np.uint8)
        kept = min(stop, CACHED)
        if start < kept:
            out[: kept - start] = self._cached(kept)[start:kept]
        if stop > CACHED:
            begin = max(start, CACHED)
            first = begin // PIECE
            for number, codes in enumerate(self.pieces(first, -(-stop // PIECE)), first):
                low, high = max(begin, number * PIECE), min(stop, (number + 1) * PIECE)
                part = codes[low - number * PIECE : high - number * PIECE]
                out[low - start : high - start] = part
        return out

    def queries(self, n: int) -> Codes:
        """n codes of the same kind that are not among the rows."""
        return self.piece(_QUERY_PIECE)[:n]


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A model to search with and the labels that it stands for (row numbers)."""

    family: str
    number: int
    estimators: list[list[Box]]
    threshold: int
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]

    def json(self) -> str:
        return json.dumps(
            {
                "boxwood_model": 1, "learner": f"bench-{self.family}"[:15], "dims": DIMS,
                "estimators": self.estimators, "threshold": self.threshold,
            }, separators=(",", ":"),
        )  # fmt: skip

    @property
    def boxes(self) -> int:
        return sum(map(len, self.estimators))


def _inside(codes: Codes, box: Box, but: int = -1) -> NDArray[np.bool_]:
    """Which codes (n, 32) a box contains; `but` is the place of a range that is left out."""
    inside = np.ones(len(codes), bool)
    for place, (dim, lo, hi) in enumerate(box):
        if place != but:
            inside &= (codes[:, dim] >= lo) & (codes[:, dim] <= hi)
    return inside


def _grown(box: Box, negatives: Codes) -> None:
    """Move every bound half way to the next negative, or as far as it goes where there is none."""
    for place, (dim, lo, hi) in enumerate(box):
        values = negatives[_inside(negatives, box, place), dim].astype(int)
        below, above = values[values < lo], values[values > hi]
        box[place][1] = (lo + int(below.max()) + 1) // 2 if len(below) else 0
        box[place][2] = (hi + int(above.min())) // 2 if len(above) else 255


def make_query(codes: Codes, family: str, number: int, seed: int) -> Query:
    """A voting model of 25 estimators with 1 to 4 boxes each over 4 to 8 dimensions.

    The positives are the 20 nearest rows of a random row among a sample; an estimator is a
    bootstrap of them, parted among some of their own, each part's extent a box. `wide`: bounds
    grown half way to 300 random negatives, about 2% of the rows a box; `tight`: as they are, 0.3
    to 1.2%; `tiny`: of a ten times larger sample, over 6 to 8 dimensions, below 0.1%.
    """
    rng = np.random.default_rng([seed, 3, FAMILIES.index(family), number])
    size = min(200_000 if family == "tiny" else 20_000, len(codes))
    sample = np.sort(rng.choice(len(codes), size, replace=False))
    rows = codes[sample]
    centre = codes[rng.integers(len(codes))].astype(np.int32)
    distance = np.zeros(size, np.int32)
    for dim in range(DIMS):
        distance += np.square(rows[:, dim].astype(np.int32) - centre[dim])
    nearest = np.argsort(distance, kind="stable")[:20]
    positives, positive = sample[nearest], rows[nearest].astype(np.int32)
    negatives = np.setdiff1d(rng.choice(len(codes), min(300, len(codes)), replace=False), positives)
    negative = codes[negatives]
    estimators: list[list[Box]] = []
    for _ in range(25):
        bag = rng.integers(0, 20, 20)
        centres = positive[rng.choice(bag, rng.integers(1, 5))]
        part = np.square(positive[bag][:, None] - centres[None]).sum(axis=2).argmin(axis=1)
        boxes: list[Box] = []
        for group in np.unique(part):
            members = positive[np.unique(bag[part == group])]
            count = int(rng.integers(6, 9) if family == "tiny" else rng.integers(4, 9))
            dims = np.sort(rng.choice(DIMS, count, replace=False))
            low, high = members[:, dims].min(axis=0), members[:, dims].max(axis=0)
            if len(members) == 1:
                low, high = np.maximum(low - 6, 0), np.minimum(high + 6, 255)
            box = np.stack([dims, low, high], axis=1).tolist()
            if family == "wide":
                _grown(box, negative)
            boxes.append([[dim, lo, hi] for dim, lo, hi in box if (lo, hi) != (0, 255)] or box[:1])
        estimators.append(boxes)
    return Query(family, number, estimators, 13, positives.astype(np.int64),
                 negatives.astype(np.int64))  # fmt: skip


def branch_of(query: Query, codes: Codes) -> Query:
    """A single decision branch: the estimator of `query` with the median share of rows."""
    rows = codes[:: max(1, len(codes) // 50_000)]
    share = []
    for boxes in query.estimators:
        inside = np.zeros(len(rows), bool)
        for box in boxes:
            inside |= _inside(rows, box)
        share.append(int(inside.sum()))
    middle = int(np.argsort(share, kind="stable")[len(share) // 2])
    return Query(f"{query.family}", query.number, [query.estimators[middle]], 1,
                 query.positives, query.negatives)  # fmt: skip
