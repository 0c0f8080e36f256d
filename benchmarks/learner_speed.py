"""How long training takes, and searching with what was trained: the speed part of `learners.py`.

Rows are the realistic codes of `data.py`, fine codes a rotation of them. What is sought are the
rows nearest to one row of the collection; labels are drawn from them, given negatives from those
that come next. Everything is asked in turn, round after round, on one thread; figures are medians.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwood import native
from data import Source
from learner_methods import TREES, Learner, quality
from learner_tasks import FINE_DIMS, Codes, Ids

SEED = 7
SHARE = 0.001
"""Of the collection that is sought."""
CONCEPTS, ROUNDS, QUICK_ROUNDS = 3, 7, 1
FEW = 30
"""Positives of the models that are searched with."""


@dataclass(frozen=True)
class Labels:
    positives: int
    negatives: int
    randoms: int
    """Rows of the collection: negatives for most learners, the background for `cover`."""


TRAININGS = {
    "100 positives, 2,000 negatives": Labels(100, 2_000, 0),
    "100 positives, 30,000 random rows": Labels(100, 0, 30_000),
    "10,000 positives, 2,000 negatives": Labels(10_000, 2_000, 0),
}
MOST_LABELS = max(labels.positives + labels.negatives for labels in TRAININGS.values())
BACKGROUND = native.RANDOM_NEGATIVES["cover"]
"""Random rows that `cover` gets whatever the labels are."""
TRAINED: dict[str, Learner] = {
    "branch": Learner("branch"),
    "branch, paper": Learner("branch", {"prior": False}),
    "ensemble": Learner("ensemble"),
    "ensemble, paper": Learner("ensemble", {"prior": False}),
    "cover": Learner("cover"),
    "cover + rerank": Learner("cover", {"rerank": True}),
}
SEARCHED: dict[str, Learner] = {
    "cover": Learner("cover"),
    "cover, 6 boxes": Learner("cover", {"boxes": 6}),
    "cover + rerank": Learner("cover", {"rerank": True}),
    "branch": Learner("branch"),
    "ensemble": Learner("ensemble"),
    "ensemble, paper": Learner("ensemble", {"prior": False}),
}


@dataclass
class Place:
    """A row of the collection and the rows around it, the nearest first."""

    inside: Ids
    around: Ids


@dataclass
class Collection:
    index: native.Index
    codes: Codes
    places: list[Place]
    fine: bool


@contextmanager
def collection(source: Source, rows: int, fine: bool) -> Iterator[Collection]:
    """An index of `rows` rows in a folder that is removed after."""
    codes = source.rows(0, rows)
    ids = np.arange(rows)
    rng = np.random.default_rng([SEED, rows])
    extra: dict[str, Any] = {"fine": rotated(codes)} if fine else {}
    marks = native.Fingerprints(quantizer="speed", fine="speed" if fine else "")
    own = uuid.uuid5(uuid.NAMESPACE_OID, f"speed {rows}")
    with tempfile.TemporaryDirectory() as folder:
        native.write_segment(folder, "segment", ids, codes, own, 1, marks, **extra)
        native.write_manifest(folder, own, 1, ["segment"], marks)
        extra.clear()
        with native.Index(folder) as index:
            wanted = max(100, round(SHARE * rows))
            places = []
            for _ in range(CONCEPTS):
                away = _distances(codes, codes[rng.integers(rows)])
                n = min(max(21 * wanted, MOST_LABELS), rows - 1)
                near = np.argpartition(away, n)[:n]
                near = near[np.argsort(away[near], kind="stable")]
                places.append(Place(near[:wanted], near[wanted:]))
            yield Collection(index, codes, places, fine)


def _distances(codes: Codes, centre: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Squared distances of all rows to a code."""
    out = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), 100_000):
        part = codes[start : start + 100_000].astype(np.float32) - centre
        out[start : start + len(part)] = np.einsum("ij,ij->i", part, part)
    return out


def rotated(codes: Codes) -> Codes:
    """Fine codes (n, 128) that hold what the codes hold, spread over more dimensions."""
    rng = np.random.default_rng(SEED)
    axes = np.linalg.qr(rng.standard_normal((FINE_DIMS, codes.shape[1])))[0].astype(np.float32)
    out = np.empty((len(codes), FINE_DIMS), np.uint8)
    for start in range(0, len(codes), 100_000):
        part = codes[start : start + 100_000].astype(np.float32) - 127.5
        out[start : start + len(part)] = np.clip(np.rint(part @ axes.T + 127.5), 0, 255)
    return out


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    done = work()
    return 1000 * (time.perf_counter() - start), done


def drawn(place: Place, labels: Labels, seed: int) -> tuple[Ids, Ids]:
    """Positives of a place, and negatives from around it; where it has too few rows, rows from
    around it are taken for positives as well."""
    rng = np.random.default_rng([SEED, seed])
    inside, around = place.inside, place.around
    if len(inside) < labels.positives:
        n = labels.positives - len(inside)
        inside, around = np.concatenate([inside, around[:n]]), around[n:]
    right = rng.choice(inside, labels.positives, replace=False)
    wrong = rng.choice(around, min(labels.negatives, len(around)), replace=False)
    return np.sort(right).astype(np.int64), np.sort(wrong).astype(np.int64)


def training(made: Collection, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each learner for each of `TRAININGS`."""
    out = []
    for name, labels in TRAININGS.items():
        ms: dict[str, list[float]] = {}
        for turn in range(rounds):
            for number, place in enumerate(made.places):
                right, wrong = drawn(place, labels, number)
                for method, learner in TRAINED.items():
                    if learner.options.get("rerank") and not made.fine:
                        continue
                    options = dict(learner.options)
                    randoms = BACKGROUND if learner.learner == "cover" else labels.randoms
                    work = partial(
                        made.index.train, right, wrong, learner=learner.learner,
                        random_negatives=randoms, seed=turn, **options,
                    )  # fmt: skip
                    ms.setdefault(method, []).append(_timed(work)[0])
                if turn < max(2, rounds // 2):
                    for method, took in peers(made, labels, right, wrong, turn).items():
                        ms.setdefault(method, []).append(took)
        out += [
            {"part": "training", "what": name, "method": method, "rows": len(made.codes),
             "ms": median(values), "least_ms": min(values), "most_ms": max(values),
             "runs": len(values)}
            for method, values in ms.items()
        ]  # fmt: skip
    return out


def peers(made: Collection, labels: Labels, right: Ids, wrong: Ids, seed: int) -> dict[str, float]:
    """scikit-learn on the same labels; they are at hand as codes."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    marked = np.concatenate([right, wrong])
    randoms = made.index.draw(labels.randoms, seed, marked) if labels.randoms else marked[:0]
    rows = made.codes[np.concatenate([marked, randoms])]
    label = np.arange(len(rows)) < len(right)
    floats = (rows.astype(np.float32) - 127.5) / 127.5
    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=1)
    logistic = LogisticRegression(class_weight="balanced", max_iter=300)
    return {
        "forest, scikit-learn": _timed(lambda: forest.fit(rows, label))[0],
        "logistic, scikit-learn": _timed(lambda: logistic.fit(floats, label))[0],
    }


def searching(made: Collection, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds and blocks of each learner's models, what they find of what is sought, and of
    `cover` with boxes how much of the answer without them."""
    rows = len(made.codes)
    ms: dict[str, list[float]] = {}
    figures: dict[str, list[dict[str, float]]] = {}
    whole = np.ones(rows, bool)
    for number, place in enumerate(made.places):
        right, _ = drawn(place, Labels(FEW, 0, 0), number)
        truth = np.zeros(rows, bool)
        truth[place.inside] = True
        unseen = whole.copy()
        unseen[right] = False
        models = {
            name: made.index.train(right, learner=kind.learner, seed=number, **kind.options)[0]
            for name, kind in SEARCHED.items()
            if made.fine or not kind.options.get("rerank")
        }
        answers: dict[str, NDArray[np.bool_]] = {}
        for turn in range(rounds):
            for name, model in models.items():
                took, found = _timed(partial(made.index.search, model, threads=1))
                ms.setdefault(name, []).append(took)
                if turn:
                    continue
                answers[name] = np.zeros(rows, bool)
                answers[name][found.ids] = True
                stats = found.stats
                read = stats.blocks - stats.blocks_pruned - stats.blocks_contained
                q = quality(answers[name][unseen], truth[unseen])
                figures.setdefault(name, []).append({
                    "found": float(len(found.ids)), "pruned": stats.blocks_pruned / stats.blocks,
                    "planes": stats.blocks_planes / stats.blocks,
                    "scanned": stats.blocks_scanned / stats.blocks, "touched": read / stats.blocks,
                    "fine_rows": float(stats.fine_rows), "bytes": float(stats.bytes), "f1": q.f1,
                    "precision": q.precision, "recall": q.recall,
                })  # fmt: skip
        exact, boxed = answers["cover"], answers["cover, 6 boxes"]
        both = int((exact & boxed).sum())
        figures["cover, 6 boxes"][-1] |= {
            "of_exact": both / max(int(exact.sum()), 1),
            "agreement": both / max(int((exact | boxed).sum()), 1),
        }
    return [
        {"part": "search", "what": f"{FEW} positives", "method": name, "rows": rows,
         "ms": median(values), "least_ms": min(values), "most_ms": max(values),
         "runs": len(values),
         **{key: float(np.mean([one[key] for one in figures[name]])) for key in figures[name][0]}}
        for name, values in ms.items()
    ]  # fmt: skip


def measure(
    cache: Path, folder: Path | None, sizes: list[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows for the store: training over the first size, searches over each."""
    source = Source("realistic", 0, cache, folder)
    for place, rows in enumerate(sizes):
        with collection(source, rows, fine=place == 0) as made:
            lines = training(made, rounds) if place == 0 else []
            yield from ({"data": source.kind, **line} for line in lines + searching(made, rounds))
