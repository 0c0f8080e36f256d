"""Exact answers of one snapshot: the index without what has changed since it was written, and the
changed rows from the codes table, judged one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from boxwood import native, rows
from boxwood.catalog import Codes, Record
from boxwood.errors import IndexStale
from boxwood.native import Ids
from boxwood.rows import Changes

_NOTHING = native.Found(
    np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), native.Stats(*[0] * 10)
)
_BACKGROUND_SHARE = 4
"""Trainings are told what a collection is like by its index, as long as that has so many times the
rows that it lacks."""


class View:
    """The live rows of a collection, as a cursor's transaction sees them while it lasts.

    `index` and `changes` are what `Store.open` and `Store.changes` gave.
    """

    def __init__(
        self,
        cur: duckdb.DuckDBPyConnection,
        of: Record,
        index: native.Index,
        changes: Changes,
    ) -> None:
        self.cur, self.record = cur, of
        self.index = index.without(changes.ids) if len(changes.ids) else index
        if len(self.index) and index.info.fingerprints != of.fingerprints:
            # A collection that was given other codes has changed in all of its rows.
            raise IndexStale("the index has rows of another encoder, head or quantizer")
        gone = rows.without_metadata(cur, of, changes.rows.ids)
        self.fresh = changes.rows.some(~np.isin(changes.rows.ids, gone))
        """Changed rows that are live: those that `index` does not answer for."""

    def __len__(self) -> int:
        return rows.live_count(self.cur, self.record)

    def _dead(self, ids: Ids) -> Ids:
        """Those of the ids from the index that are not live."""
        return rows.without_metadata(self.cur, self.record, ids)

    # --- rows

    def lookup(self, ids: Ids) -> tuple[Codes, Codes | None, NDArray[np.bool_]]:
        """Codes (n, 32) and fine codes (n, 128) of ids, zeros where there are none, and whether
        each is live (n,)."""
        codes, found = self.index.lookup(ids)
        fine = None
        if self.record.fine:
            fine = np.zeros((len(ids), native.FINE_DIMS), np.uint8)
            if found.any():
                fine[found] = self.index.fine(ids[found])
        dead = self._dead(ids[found])
        found &= ~np.isin(ids, dead)
        order = np.argsort(self.fresh.ids)
        place = np.searchsorted(self.fresh.ids, ids, sorter=order)
        place = order[np.minimum(place, len(order) - 1)] if len(order) else place
        mine = self.fresh.ids[place] == ids if len(order) else np.zeros(len(ids), bool)
        codes[mine] = self.fresh.codes[place[mine]]
        if fine is not None and self.fresh.fine is not None:
            fine[mine] = self.fresh.fine[place[mine]]
        return codes, fine, found | mine

    # --- searches

    def search(self, model: native.Model) -> native.Found:
        """Every live row that a model matches; the statistics are those of the index."""
        found = self.index.search(model) if len(self.index) else _NOTHING
        ids, votes, scores = found.ids, found.votes, found.scores
        dead = self._dead(ids)
        if len(dead):
            alive = ~np.isin(ids, dead)
            ids, votes, scores = ids[alive], votes[alive], scores[alive]
        if len(self.fresh.ids):
            more_votes, more_scores, match = model.evaluate(self.fresh.codes, self.fresh.fine)
            ids = np.concatenate([ids, self.fresh.ids[match]])
            votes = np.concatenate([votes, more_votes[match]])
            scores = np.concatenate([scores, more_scores[match]])
        return native.Found(ids, votes, scores, found.stats)

    def count(self, model: native.Model) -> int:
        """How many live rows a model matches."""
        if self.record.table is not None:
            return len(self.search(model).ids)
        more = 0
        if len(self.fresh.ids):
            more = int(model.evaluate(self.fresh.codes, self.fresh.fine)[2].sum())
        return (self.index.count(model) if len(self.index) else 0) + more

    def knn(
        self,
        query: Codes,
        k: int,
        recall: float = 1.0,
        within: native.Model | None = None,
        ids: Ids | None = None,
    ) -> tuple[Ids, NDArray[np.uint32]]:
        """The k nearest live rows of a code (1, 32), as `native.Index.knn` gives them."""
        found, distances = self._indexed_knn(query, k, recall, within, ids)
        near = self.fresh
        if len(near.ids):
            allowed = np.ones(len(near.ids), bool)
            if within is not None:
                allowed &= within.evaluate(near.codes, near.fine)[2]
            if ids is not None:
                allowed &= np.isin(near.ids, ids)
            near = near.some(allowed)
            apart = near.codes.astype(np.int32) - query.astype(np.int32)
            found = np.concatenate([found, near.ids])
            distances = np.concatenate([distances, (apart * apart).sum(axis=1, dtype=np.uint32)])
            first = np.lexsort((found, distances))[:k]
            found, distances = found[first], distances[first]
        return found, distances

    def _indexed_knn(
        self,
        query: Codes,
        k: int,
        recall: float,
        within: native.Model | None,
        ids: Ids | None,
    ) -> tuple[Ids, NDArray[np.uint32]]:
        """Of the rows in the index. Rows that were deleted by SQL are found out when they come up;
        where several come up again and again, all are looked for at once."""
        index = self.index
        if not len(index):
            return _NOTHING.ids, np.empty(0, np.uint32)
        for attempt in range(3):
            found, distances = index.knn(query, k, recall=recall, within=within, ids=ids)
            dead = self._dead(found[0])
            if not len(dead):
                break
            if attempt == 1:
                dead = rows.orphans(self.cur, self.record)
            index = index.without(dead)
        return found[0], distances[0]

    # --- training

    def draw(self, n: int, seed: int, exclude: Ids) -> Ids:
        """At most n random ids of live rows that are not in `exclude`, ascending."""
        if len(self.index) >= _BACKGROUND_SHARE * len(self.fresh.ids):
            drawn = self.index.draw(n, seed, np.concatenate([exclude, self.fresh.ids]))
        else:
            others = np.setdiff1d(self._ids(), exclude)
            chosen = np.random.default_rng(seed).permutation(len(others))[:n]
            drawn = np.sort(others[chosen])
        return np.setdiff1d(drawn, self._dead(drawn))

    def _ids(self) -> Ids:
        """Of all live rows, ascending."""
        ids = self.index.ids()
        ids = np.concatenate([ids[ids >= 0], self.fresh.ids])
        return np.setdiff1d(ids, self._dead(ids))

    def train(
        self, right: Ids, wrong: Ids, options: Mapping[str, Any]
    ) -> tuple[native.Model, native.TrainStats]:
        """`native.Index.train` on the live rows; labels must be live."""
        labels = np.concatenate([right, wrong])
        mine = np.isin(self.fresh.ids, labels)
        if len(self.index) >= _BACKGROUND_SHARE * len(self.fresh.ids):
            given = self.fresh.some(mine) if mine.any() else None
            return self.index.train(right, wrong, given=given, **options)
        return self._train_codes(right, wrong, dict(options))

    def _train_codes(
        self, right: Ids, wrong: Ids, options: dict[str, Any]
    ) -> tuple[native.Model, native.TrainStats]:
        """The same where the index has too little of the collection to say what that is like."""
        ids = self._ids()
        others = np.setdiff1d(ids, np.concatenate([right, wrong]))
        most = options["random_negatives"]
        if most is None:
            most = native.RANDOM_NEGATIVES[options["learner"]]
        drawn = others[:: max(1, -(-len(others) // most))] if most else others[:0]
        parts = [self.lookup(some) for some in (right, wrong, drawn)]
        codes = [part[0] for part in parts]
        fines = [part[1] for part in parts if part[1] is not None]
        fine = (fines[0], fines[1], fines[2]) if options["rerank"] else None
        marks = self.record.fingerprints
        return native.train_codes(
            *codes, fine=fine, rows=len(ids), quantizer=marks.quantizer,
            fine_quantizer=marks.fine, **options,
        )  # fmt: skip
