"""Models: unions of boxes with votes and a score, as immutable Python objects."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from boxwood import errors, native
from boxwood.errors import InputError, MissingDependency, StorageError

_VERSION = 1
_VOTE = 1 << native.SCORE_SHIFT
Box = list[list[int]]


class Model:
    """A model: it says of every code of 32 bytes how many estimators contain it, and whether that
    is enough.

    Models are documents (docs/FORMAT.md, "Model"): `from_json` and `to_json`, `load` and `save`.
    Equal models have equal documents.
    """

    __slots__ = ("_info", "_json", "_native")

    def __init__(self, handle: native.Model) -> None:
        """Wraps a model of the core; others come by `from_json`, `load` or `from_sklearn`."""
        self._native = handle
        self._info = handle.info
        self._json = handle.to_json()

    @classmethod
    def from_json(cls, document: str) -> Model:
        """Parse and check a document; raises InputError with the reason for what is none."""
        if not isinstance(document, str):
            raise InputError(f"a model's document is a str, not {type(document).__name__}")
        return cls(native.Model.from_json(document))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a document from a file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"cannot read the model {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no model: it is not UTF-8 text") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to a file."""
        try:
            Path(path).write_text(self._json + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the model {path}: {error.strerror}") from error

    def to_json(self) -> str:
        return self._json

    def to_sql(self) -> str:
        """A boolean SQL expression over columns d00 .. d31, and ``fine`` where the model has a fine
        threshold, true for exactly the rows that match. It runs on a collection's codes table."""
        return self._native.to_sql()

    @property
    def handle(self) -> native.Model:
        """The core's model, for `native.Index.search`."""
        return self._native

    @property
    def learner(self) -> str:
        return self._info.learner

    @property
    def quantizer(self) -> str:
        """Fingerprint of the quantizer of the codes that the model is for; empty: any."""
        return self._info.quantizer

    @property
    def estimators(self) -> int:
        return self._info.estimators

    @property
    def box_count(self) -> int:
        return self._info.boxes

    @property
    def threshold(self) -> int:
        """Votes that a row needs."""
        return self._info.threshold

    @property
    def has_fine(self) -> bool:
        """Whether rows that pass boxes and score are scored by their fine codes too."""
        return self._info.has_fine

    @property
    def fine_quantizer(self) -> str:
        """Fingerprint of the fine codes that it has a score for; empty: any, or there is none."""
        return self._info.fine_quantizer

    @property
    def training(self) -> dict[str, Any]:
        """What the learner left about how the model came about."""
        return dict(json.loads(self._json).get("training", {}))

    def boxes(self) -> pa.Table:
        """Every range as a row: estimator, box, dim, lo, hi, with lo <= code[dim] <= hi. A box
        without ranges, which contains every row, has none here."""
        ranges = self._native.ranges()
        return pa.table(
            {name: np.ascontiguousarray(ranges[name]) for name in ranges.dtype.names or ()}
        )

    def votes(self, codes: ArrayLike) -> NDArray[np.int32]:
        """How many estimators contain each of the codes (n, 32)."""
        return self._native.votes(codes)

    def scores(self, codes: ArrayLike, fine: ArrayLike | None = None) -> NDArray[np.float64]:
        """Scores of codes (n, 32); the higher, the earlier in a ranking. A model with a fine score
        gives that, and needs the rows' fine codes (n, 128)."""
        return self.score_values(self._native.evaluate(codes, fine)[1])

    def score_values(self, scores: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of the core, integers in units of 2^-shift, as floats; exact."""
        return np.ldexp(scores.astype(np.float64), -self._info.result_shift)

    def matches(self, codes: ArrayLike, fine: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Whether the model matches each of the codes (n, 32), with fine codes (n, 128) where it
        has a fine score."""
        return self._native.evaluate(codes, fine)[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self) -> tuple[Any, ...]:
        return Model.from_json, (self._json,)

    def __repr__(self) -> str:
        return (
            f"Model({self.learner!r}, {self.estimators} estimators, {self.box_count} boxes, "
            f"threshold {self.threshold})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in (
                ("learner", self.learner),
                ("estimators", f"{self.estimators:,}, {self.threshold:,} votes needed"),
                ("boxes", f"{self.box_count:,} of {self._info.ranges:,} ranges"),
                ("quantizer", self.quantizer or "any"),
                *self.training.items(),
            )
        )
        return f"<table>{rows}</table>"

    # --- scikit-learn -----------------------------------------------------------------------------

    @classmethod
    def from_sklearn(
        cls,
        estimator: Any,
        *,
        positive: Any = None,
        quantizer: str = "",
        mean: ArrayLike | None = None,
    ) -> Model:
        """Compile a fitted DecisionTreeClassifier or RandomForestClassifier to boxes.

        The estimator must have been fitted on codes, 32 integer features in 0 .. 255. `positive` is
        the label of the wanted class (left out: True, or 1). A tree becomes one estimator, a box
        for each leaf that predicts the positive class, and matches exactly the codes for which
        ``predict`` gives it. A forest becomes one estimator a tree, and needs more than half of
        them: this is the majority vote of the paper, where scikit-learn averages the trees'
        probabilities, so single rows can differ from ``predict``.

        `mean` (32), the mean positive code, adds a score: votes first, then nearness to it.
        """
        try:
            from sklearn.ensemble import RandomForestClassifier
            from sklearn.tree import DecisionTreeClassifier
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "Model.from_sklearn needs scikit-learn: pip install 'boxwood[trees]'"
            ) from error
        if isinstance(estimator, DecisionTreeClassifier):
            learner = "tree"
        elif isinstance(estimator, RandomForestClassifier):
            learner = "forest"
        else:
            raise InputError(
                "Model.from_sklearn takes a DecisionTreeClassifier or a RandomForestClassifier, "
                f"not {type(estimator).__name__}"
            )
        if not hasattr(estimator, "n_classes_"):
            raise InputError(f"the {learner} is not fitted yet: call fit() first")
        if estimator.n_features_in_ != native.DIMS:
            raise InputError(
                f"the {learner} has {estimator.n_features_in_} features, but a code has "
                f"{native.DIMS}: fit it on codes"
            )
        if estimator.n_outputs_ != 1:
            raise InputError(f"the {learner} has {estimator.n_outputs_} outputs, but may have one")
        which = _class_index(estimator.classes_, positive)
        trees = [estimator] if learner == "tree" else list(estimator.estimators_)
        if len(trees) > native.MAX_ESTIMATORS:
            raise InputError(
                f"the forest has {len(trees):,} trees, but a model may have "
                f"{native.MAX_ESTIMATORS:,} estimators"
            )
        boxes = []
        for tree in trees:
            errors.check_stopped()
            boxes.append(_leaf_boxes(tree.tree_, which))
        if sum(map(len, boxes)) > native.MAX_BOXES:
            raise InputError(
                f"the {learner} has {sum(map(len, boxes)):,} positive leaves, but a model may have "
                f"{native.MAX_BOXES:,} boxes: limit max_depth or max_leaf_nodes"
            )
        document: dict[str, Any] = {
            "boxwood_model": _VERSION,
            "learner": learner,
            "dims": native.DIMS,
            "quantizer": quantizer,
            "estimators": boxes,
            "threshold": len(trees) // 2 + 1,
        }
        if mean is not None:
            document["score"] = _nearness(mean)
        return cls.from_json(json.dumps(document))


def _class_index(classes: NDArray[Any], positive: Any) -> int:
    wanted = (True, 1) if positive is None else (positive,)
    for number, label in enumerate(classes.tolist()):
        if label in wanted:
            return number
    raise InputError(
        f"the estimator knows the classes {classes.tolist()}, and "
        + ("none is True or 1: name one, positive=..." if positive is None else f"not {positive!r}")
    )


def _leaf_boxes(tree: Any, which: int) -> list[Box]:
    """The leaves of a tree whose class is `which`, each as the ranges on the way to it."""
    left, right = tree.children_left.tolist(), tree.children_right.tolist()
    feature, threshold = tree.feature.tolist(), tree.threshold
    answer = tree.value[:, 0, :].argmax(axis=1)
    # x <= t on integers is x <= floor(t).
    cut = np.clip(np.floor(threshold), -1, 255).astype(int).tolist()
    found: list[Box] = []
    stack: list[tuple[int, dict[int, tuple[int, int]]]] = [(0, {})]
    while stack:
        node, ranges = stack.pop()
        if left[node] < 0:
            if answer[node] == which:
                found.append([[dim, lo, hi] for dim, (lo, hi) in sorted(ranges.items())])
            continue
        dim = feature[node]
        lo, hi = ranges.get(dim, (0, 255))
        for child, part in (
            (right[node], (max(lo, cut[node] + 1), hi)),
            (left[node], (lo, min(hi, cut[node]))),
        ):
            if part[0] <= part[1]:
                stack.append((child, {**ranges, dim: part}))
    return found


def _nearness(mean: ArrayLike) -> dict[str, Any]:
    """The score of votes first, then nearness to a mean code: 2^21 a vote less squared distance."""
    centre = np.rint(np.asarray(mean, np.float64))
    if centre.shape != (native.DIMS,) or not np.all((centre >= 0) & (centre <= 255)):
        raise InputError(f"mean must be {native.DIMS} numbers in 0 .. 255")
    values = centre.astype(int).tolist()
    term = {
        "linear": [2 * value for value in values],
        "square": [-1] * native.DIMS,
        "constant": -sum(value * value for value in values),
    }
    return {
        "terms": [term],
        "votes": _VOTE,
        "shift": native.SCORE_SHIFT,
        "threshold": None,
    }
