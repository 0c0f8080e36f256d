"""The methods that `learners.py` compares, and what it measures of their answers.

A method gets a world and a task and gives an `Outcome`: a score for every row of the world, and
the set that it would return. Those of Boxwood are trained and searched through the index like the
product does; the others see the rows as floats.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwood import native
from boxwood.model import Model
from learner_tasks import RANDOM_NEGATIVES, Floats, Ids, Mask, Task, World

Scores = NDArray[np.float64]

LOGISTIC_C, LOGISTIC_C_F1 = 1.0, 10.0
SVM_C = 0.1
"""By `learners.py choose`, on the dev half, once for all vectors: the C with the best mean average
precision, and for logistic regression the one with the best F1 as well, which is another."""
TREES = 25
ROCCHIO = (1.0, 0.75, 0.15)
"""Weights of the query, of the mean positive and of the mean negative."""
ESTIMATES = ("precision", "precision_low", "precision_high", "recall", "recall_low", "recall_high")


# --- measures -------------------------------------------------------------------------------------


def average_precision(scores: NDArray[Any], truth: Mask) -> float:
    """Mean over the right rows of the precision at their score; rows of one score count together.

    This is scikit-learn's definition. NaN where nothing is right.
    """
    right, wrong = np.sort(scores[truth]), scores[~truth]
    if not len(right):
        return float("nan")
    wrong = np.sort(wrong[wrong >= right[0]])
    levels, gained = np.unique(right, return_counts=True)
    hits = len(right) - np.searchsorted(right, levels)
    misses = len(wrong) - np.searchsorted(wrong, levels)
    return float((gained * hits / (hits + misses)).sum() / len(right))


@dataclass(frozen=True)
class Quality:
    precision: float
    recall: float
    f1: float


def quality(returned: Mask, truth: Mask) -> Quality:
    """Of a returned set; precision is 0 where nothing is returned."""
    hits, found, right = int((returned & truth).sum()), int(returned.sum()), int(truth.sum())
    return Quality(
        hits / found if found else 0.0, hits / right if right else 0.0,
        2 * hits / (found + right) if found + right else 0.0,
    )  # fmt: skip


def first(scores: NDArray[Any], n: int) -> Mask:
    """The n rows with the highest scores; of equal ones those that come first."""
    if n <= 0 or n >= len(scores):
        return np.full(len(scores), n > 0)
    last = np.partition(scores, len(scores) - n)[len(scores) - n]
    chosen: Mask = scores > last
    chosen[np.flatnonzero(scores == last)[: n - int(chosen.sum())]] = True
    return chosen


# --- what a method gives --------------------------------------------------------------------------


@dataclass
class Outcome:
    """The answer of a method: everything is over all rows of the world."""

    scores: NDArray[Any]
    returned: Mask | None
    """None: as many scored rows as are right, which nobody could know."""
    touched: float = 1.0
    """Share of the blocks of 256 rows whose codes or planes were read."""
    train_ms: float = 0.0
    search_ms: float = 0.0
    estimates: dict[str, float] = field(default_factory=dict)
    fallback: bool | None = None
    """Whether the learner itself said that nearest neighbours are likely better."""
    background: int = 0
    """Random rows that it was trained with."""


Method = Callable[[World, Task], Outcome | None]


def measured(outcome: Outcome, task: Task) -> dict[str, Any]:
    """The figures of an outcome on the task's scored rows."""
    scores, truth = outcome.scores[task.scored], task.truth
    told = outcome.returned is None
    best = first(scores, int(truth.sum()))
    if outcome.returned is None:
        returned, share = best, None
    else:
        returned, share = outcome.returned[task.scored], float(outcome.returned.mean())
    q = quality(returned, truth)
    return {
        "ap": average_precision(scores, truth), "precision": q.precision, "recall": q.recall,
        "f1": q.f1, "told": told, "told_f1": quality(best, truth).f1,
        "truth": int(truth.sum()), "returned": share, "background": outcome.background,
        "touched": outcome.touched, "train_ms": outcome.train_ms, "search_ms": outcome.search_ms,
        "fallback": outcome.fallback,
        **{f"estimated_{name}": outcome.estimates.get(name) for name in ESTIMATES},
    }  # fmt: skip


class Timer:
    """Milliseconds since it was made, or since the last `lap`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        past, self.start = now - self.start, now
        return 1000 * past


# --- distances ------------------------------------------------------------------------------------


def _squares(rows: Floats) -> Floats:
    out: Floats = np.einsum("ij,ij->i", rows, rows)
    return out


def to_point(world: World, point: Floats) -> Floats:
    """Squared distances of all rows to a point."""
    rows = world.vectors
    out = rows @ (-2 * point)
    out += world.squares
    out += np.float32(point @ point)
    away: Floats = np.maximum(out, 0)
    return away


def left_out(rows: Floats) -> Floats:
    """Distances of each of the rows to the mean of the others."""
    n = len(rows)
    others = (rows.sum(axis=0) - rows) / (n - 1)
    return np.sqrt(_squares(rows - others))


def nearest(world: World, task: Task, told: bool) -> Outcome:
    """By distance to the mean positive. Told: as many as are right. Else the fair cut: a distance
    of at most mean + 1 standard deviation of the positives' distances to the mean of the others."""
    timer = Timer()
    right = world.vectors[task.positives]
    centre = right.mean(axis=0)
    cut = None
    if not told and len(right) > 1:
        away = left_out(right)
        cut = float(away.mean() + away.std())
    train_ms = timer.lap()
    squared = to_point(world, centre)
    returned = None
    if not told:
        # One positive says nothing about how far the others are: itself and its equals.
        returned = squared <= np.float32((cut or 0.0) ** 2)
    return Outcome(-squared, returned, train_ms=train_ms, search_ms=timer.lap())


def text(world: World, task: Task) -> Outcome | None:
    """By distance to the code of the words, told how many are right; no label is used."""
    words = world.words.get(task.concept.name)
    if words is None:
        return None
    timer = Timer()
    return Outcome(-to_point(world, words[2]), None, search_ms=timer.lap())


def rocchio(world: World, task: Task, by_words: bool) -> Outcome | None:
    """Rocchio (1971): query + mean positive - mean negative, weighted, by cosine. The query is the
    vector of the words, or the mean positive. Cut like `nearest`, by the positives' own cosines."""
    words = world.words.get(task.concept.name)
    if by_words and words is None:
        return None
    timer = Timer()
    rows = world.vectors
    right = rows[task.positives]
    wrong = rows[np.concatenate([task.negatives, task.randoms])].mean(axis=0)
    alpha, beta, gamma = ROCCHIO

    def moved(mean: Floats) -> Floats:
        query = words[2] if by_words and words is not None else mean
        vector: Floats = alpha * query + beta * mean - gamma * wrong
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    lengths = np.sqrt(world.squares)
    vector = moved(right.mean(axis=0))
    cut = float("inf")
    n = len(right)
    if n > 1:
        total = right.sum(axis=0)
        own = np.array([
            row @ moved((total - row) / (n - 1)) / max(float(np.linalg.norm(row)), 1e-12)
            for row in right
        ])  # fmt: skip
        cut = float(own.mean() - own.std())
    train_ms = timer.lap()
    scores = (rows @ vector) / np.maximum(lengths, 1e-12)
    return Outcome(scores, scores >= cut, train_ms=train_ms, search_ms=timer.lap())


# --- scikit-learn ---------------------------------------------------------------------------------


def training_rows(task: Task) -> tuple[Ids, NDArray[np.bool_]]:
    rows = np.concatenate([task.positives, task.negatives, task.randoms])
    return rows, np.arange(len(rows)) < len(task.positives)


def linear(
    world: World, task: Task, kind: str, c: float | None = None, wide: bool = False
) -> Outcome:
    """Logistic regression or a linear SVM, classes weighted equally; returns what lies above 0.

    Without a positive the vector of the concept's words is one. wide: as many random rows as
    `cover` gets, in place of the draw's."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if wide:
        marked = np.concatenate([task.positives, task.negatives])
        randoms = _index(world).draw(native.RANDOM_NEGATIVES["cover"], task.seed, marked)
        task = replace(task, randoms=randoms)
    timer = Timer()
    rows, label = training_rows(task)
    vectors = world.vectors[rows]
    if not len(task.positives):  # the words are all that is right
        vectors = np.concatenate([world.words[task.concept.name][2][None], vectors])
        label = np.arange(len(vectors)) == 0
    if kind == "logistic":
        model = LogisticRegression(C=c or LOGISTIC_C, class_weight="balanced", max_iter=300)
    else:
        model = LinearSVC(C=c or SVM_C, class_weight="balanced", random_state=0, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged: so it would be used
        model.fit(vectors, label)
    train_ms = timer.lap()
    weights = model.coef_[0].astype(np.float32)
    scores = world.vectors @ weights + np.float32(model.intercept_[0])
    return Outcome(scores, scores > 0, train_ms=train_ms, search_ms=timer.lap(),
                   background=len(task.randoms))  # fmt: skip


def trees(world: World, task: Task, kind: str) -> Outcome:
    """A decision tree, or a random forest of 25. On codes they run as boxes through the index, as
    in the product; ranked by votes. On other vectors scikit-learn predicts."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    timer = Timer()
    rows, label = training_rows(task)
    classifier: Any = (
        DecisionTreeClassifier(random_state=task.seed)
        if kind == "tree"
        else RandomForestClassifier(TREES, random_state=task.seed, n_jobs=1)
    )
    if not world.learners:
        classifier.fit(world.vectors[rows], label)
        train_ms = timer.lap()
        scores = classifier.predict_proba(world.vectors)[:, 1]
        return Outcome(scores, scores > 0.5, train_ms=train_ms, search_ms=timer.lap())
    classifier.fit(world.codes[rows], label)
    compiled = Model.from_sklearn(classifier, positive=True)
    model = native.Model.from_json(compiled.to_json())
    index = _index(world)
    train_ms = timer.lap()
    found = index.search(model, threads=1)
    search_ms = timer.lap()
    votes = np.zeros(len(world.codes), np.int32)
    any_vote = _model({**json.loads(model.to_json()), "threshold": 1})
    every = index.search(any_vote, threads=1)
    votes[every.ids] = every.votes
    returned = np.zeros(len(votes), bool)
    returned[found.ids] = True
    return Outcome(votes, returned, _touched(found.stats), train_ms, search_ms)


# --- Boxwood --------------------------------------------------------------------------------------


def _index(world: World) -> native.Index:
    assert world.index is not None, "the index is not open"
    return world.index


def _touched(stats: native.Stats) -> float:
    return 1 - (stats.blocks_pruned + stats.blocks_contained) / max(stats.blocks, 1)


@dataclass(frozen=True)
class Learner:
    """One of Boxwood's learners with options of `native.Index.train`, and as many random rows as
    it takes by itself: 500 for branch and ensemble, which are the draw's, 30,000 for cover."""

    learner: str
    options: dict[str, Any] = field(default_factory=dict)
    words: bool = False
    """Whether the words of the concept go in as a query."""

    def __call__(self, world: World, task: Task) -> Outcome | None:
        if not world.learners:
            return None
        options: dict[str, Any] = dict(self.options)
        if options.get("rerank") and world.fine is None:
            return None
        if self.words:
            words = world.words.get(task.concept.name)
            if words is None:
                return None
            options["query"] = words[0]
            if options.get("rerank"):
                options["query_fine"] = words[1]
        index = _index(world)
        timer = Timer()
        model, stats = index.train(
            task.positives, task.negatives, learner=self.learner, seed=task.seed, **options
        )
        train_ms = timer.lap()
        found = index.search(model, threads=1)
        search_ms = timer.lap()
        returned = np.zeros(len(world.codes), bool)
        returned[found.ids] = True
        estimates = {name: float(getattr(stats, name)) for name in ESTIMATES}
        fallback = stats.fallback if self.learner == "cover" else None
        return Outcome(
            ranking(model, world), returned, _touched(found.stats), train_ms, search_ms, estimates,
            fallback, stats.random_negatives,
        )  # fmt: skip


def ranking(model: native.Model, world: World) -> NDArray[Any]:
    """Scores of all rows in the order in which the model ranks them: what `Model.evaluate` gives,
    put together from what is quicker over a million rows.

    With fine codes the rows that pass the first code come before the others, by their fine score.
    """
    document = json.loads(model.to_json())
    fine, score = document.pop("fine", None), document.get("score")
    if score is not None:
        document["score"] = {**score, "threshold": None}
    votes = np.zeros(len(world.codes), np.int64)
    if document["estimators"]:
        found = _index(world).search(_model({**document, "threshold": 1}), threads=1)
        votes[found.ids] = found.votes
    scores, passed = votes, votes >= document["threshold"]
    if score is not None:
        alone = {**document, "estimators": [], "threshold": 0}
        scores = votes * score["votes"] + _model(alone).evaluate(world.codes)[1]
        if score["threshold"] is not None:
            passed &= scores >= score["threshold"]
    if fine is None or world.fine is None:
        return scores
    out = scores - (int(scores.max()) + 1)
    if passed.any():
        again = fine_scores(fine["terms"], world.fine[passed])
        out[passed] = again - int(again.min())
    return out


def _model(document: dict[str, Any]) -> native.Model:
    return native.Model.from_json(json.dumps(document))


def fine_scores(terms: list[dict[str, Any]], rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The largest of the terms, constant + sum (linear + square * x) * x, for each row."""
    x = rows.astype(np.int64)
    scores = [
        term["constant"]
        + x @ np.array(term["linear"], np.int64)
        + (x * x) @ np.array(term["square"], np.int64)
        for term in terms
    ]
    out: NDArray[np.int64] = np.max(scores, axis=0)
    return out


# --- all of them ----------------------------------------------------------------------------------

METHODS: dict[str, Method] = {
    "nearest, told": lambda w, t: nearest(w, t, True),
    "nearest": lambda w, t: nearest(w, t, False),
    "text, told": text,
    "Rocchio": lambda w, t: rocchio(w, t, False),
    "Rocchio, text": lambda w, t: rocchio(w, t, True),
    "tree": lambda w, t: trees(w, t, "tree"),
    "forest": lambda w, t: trees(w, t, "forest"),
    "logistic": lambda w, t: linear(w, t, "logistic"),
    f"logistic, C {LOGISTIC_C_F1:g}": lambda w, t: linear(w, t, "logistic", LOGISTIC_C_F1),
    "logistic, 30,000": lambda w, t: linear(w, t, "logistic", wide=True) if w.learners else None,
    "SVM": lambda w, t: linear(w, t, "svm"),
    "branch, paper": Learner("branch", {"prior": False}),
    "ensemble, paper": Learner("ensemble", {"prior": False}),
    "branch": Learner("branch"),
    "ensemble": Learner("ensemble"),
    "cover": Learner("cover"),
    "cover, 500": Learner("cover", {"random_negatives": RANDOM_NEGATIVES}),
    "cover, 6 boxes": Learner("cover", {"boxes": 6}),
    "cover, no guard": Learner("cover", {"guard": False}),
    "cover, text": Learner("cover", words=True),
    "cover + rerank": Learner("cover", {"rerank": True}),
    "cover + rerank, text": Learner("cover", {"rerank": True}, words=True),
}
"""By name; `told` in a name: its F1 is that of as many rows as are right."""
