"""The index folder of a collection: brought up to date with the database, merged, checked, rebuilt.

DuckDB holds the truth. What stands here is derived from it, so the worst that can happen to an
index is that it is built again.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np

from boxwood import catalog, native, rows
from boxwood.catalog import Record
from boxwood.errors import (
    IndexCorrupt,
    IndexMismatch,
    IndexMissing,
    IndexProblem,
    IndexStale,
    StorageError,
)
from boxwood.rows import Changes, Known, Rows

SEGMENT_ROWS = 1 << 20
"""A segment of so many rows is not merged with newer ones by appends, and so many rows at most are
moved out of one in which many are dead; only `compact` does more at once."""
PENDING_ROWS = 1 << 14
"""So many changes at most, or a quarter of the rows in the index if these are fewer, are left to
be answered from the database before the index takes them in."""
_DEAD_SHARE = 0.25
"""A segment with more dead rows than this share is written anew."""
_CHECK_ROWS = 1 << 18


class Draft(NamedTuple):
    """Files that are written, to become the index."""

    segments: list[str]
    deleted: list[str | None]
    """The deletion vector of each segment, or None."""


class Store:
    """A collection's index folder in this process; every Collection object on it shares one.

    `lock` is held by whoever changes rows or files. Indexes are read without it: they are
    immutable, and stay usable after newer ones have taken their place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.dropped = False
        self.pending = 0  # changes that the index has not got, as far as this process knows
        self.raised: weakref.WeakKeyDictionary[
            duckdb.DuckDBPyConnection, tuple[int, Record, Known | None]
        ] = weakref.WeakKeyDictionary()
        """Of connections: the number of a transaction of the caller's that has raised the
        generation, the record as it is in there, and, after an append, the ids. One generation is
        enough for all that a transaction changes."""
        self.rows = 0  # that the index has
        self._changes: tuple[tuple[int, int], Changes] | None = None

    # --- opening ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget what is known of the database."""
        self.pending = self.rows = 0
        self._changes = None

    def open(self, of: Record) -> native.Index:
        """The index on disk. Raises IndexProblem for one that cannot answer for this collection,
        together with what `Store.changes` gives. To be called after the transaction has begun that
        `of` was read in: what is committed before that is either in it or among the changes."""
        index = native.Index(self.path)
        if index.info.uuid != of.uuid:
            raise IndexMismatch(
                f"the index in {self.path} belongs to another collection ({index.info.uuid})"
            )
        if index.info.generation < of.indexed:
            raise IndexStale(
                f"the index in {self.path} is older (generation {index.info.generation}) than the "
                f"one that the database knows of ({of.indexed})"
            )
        if (
            of.checksum
            and index.info.generation == of.indexed
            and index.info.checksum != of.checksum
        ):
            raise IndexStale(
                f"the index in {self.path} is not the one that the database knows of: one of the "
                "two may have been put back from a copy"
            )
        if index.info.generation == of.generation and not _same_codes(index, of):
            raise IndexMismatch(
                f"the index in {self.path} was made with another encoder, head or quantizer: "
                + _differences(index.info.fingerprints, of.fingerprints)
            )
        self.rows = len(index)
        return index

    def changes(
        self,
        cur: duckdb.DuckDBPyConnection,
        of: Record,
        index: native.Index,
        committed: bool = True,
    ) -> Changes:
        """What has changed since the index, in the cursor's transaction. Where that has written
        nothing (`committed`) it is remembered."""
        since = index.info.generation
        if since >= of.generation:
            return Changes(np.empty(0, np.int64), rows.empty(of, 0))
        if not committed:
            return rows.changes(cur, of, since)
        kept, key = self._changes, (since, of.generation)
        if kept is None or kept[0] != key:
            kept = self._changes = key, rows.changes(cur, of, since)
        return kept[1]

    # --- writing ----------------------------------------------------------------------------------

    def create(self, of: Record) -> int:
        """An empty index, in a new folder; returns the checksum of its manifest."""
        self._make_folder()
        return self.publish(of, Draft([], []))

    def prepare(self, cur: duckdb.DuckDBPyConnection, of: Record) -> Draft | None:
        """Write what the index lacks of the rows as this cursor's transaction sees them; for
        `publish`, once that has been committed. None: it lacks nothing. An index that is not of
        these rows, or older than what is known of deletions, is not gone on from: all rows are
        written anew."""
        index = native.Index(self.path)
        info = index.info
        own = info.uuid == of.uuid and of.indexed <= info.generation <= of.generation
        if of.checksum and info.generation == of.indexed:
            own = own and info.checksum == of.checksum
        if not own or not _same_codes(index, of):
            return self.prepare_anew(cur, of)
        if info.generation == of.generation:
            return None
        changes = self.changes(cur, of, index, committed=False)
        return self._changed(index, of, changes)

    def prepare_anew(
        self,
        cur: duckdb.DuckDBPyConnection,
        of: Record,
        progress: Callable[[float], None] | None = None,
    ) -> Draft:
        """The same with a new segment of all rows, whatever there is."""
        self._make_folder()
        everything = rows.read(cur, of)
        if not len(everything.ids):
            return Draft([], [])
        return Draft([self._write(of, everything, progress)], [None])

    def publish(self, of: Record, draft: Draft) -> int:
        """Make these files the index; returns the checksum of its manifest."""
        before = self._listed()
        native.write_manifest(
            self.path, of.uuid, of.generation, draft.segments, of.fingerprints, draft.deleted
        )
        # A reader in another thread may be about to open what the last manifest lists.
        self._sweep(before | self._listed())
        self.pending = 0
        with native.Index(self.path) as index:
            return index.info.checksum

    def due(self) -> bool:
        """Whether enough has changed for the index to take it in."""
        return self.pending >= min(PENDING_ROWS, max(1, self.rows // 4))

    def tidy(self) -> None:
        """Remove all that the index does not consist of."""
        self._sweep(self._listed())

    def remove(self) -> None:
        self.dropped = True
        shutil.rmtree(self.path, ignore_errors=True)

    def _make_folder(self) -> None:
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise IndexCorrupt(f"{self.path} is no folder: remove it, then repair again")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageError(
                f"cannot make the index folder {self.path}: {self.path.parent}, or what it lies "
                "in, is no folder. Move that away, then try again"
            ) from error
        except OSError as error:
            raise StorageError(
                f"cannot make the index folder {self.path}: {error.strerror}. The folder beside "
                "the database must be writable, with room on its disk"
            ) from error

    def _changed(self, index: native.Index, of: Record, changes: Changes) -> Draft:
        """Write what makes of an index one with these changes.

        New rows become a segment. Segments that are small beside it, at most twice as many rows
        (the logarithmic method of Bentley and Saxe), are merged into it from the newest back, so
        there are never many. So are `SEGMENT_ROWS` rows at most of one that consists of dead rows
        for more than a quarter, the one with the most: of a larger one the first of its live rows,
        so that it shrinks step by step. Other segments get new deletion vectors where rows of
        theirs died.
        """
        before, index = index.segments(), index.without(changes.ids)
        moved = _moved(index, of, index.segments(), SEGMENT_ROWS)
        if len(moved.ids):
            index = index.without(moved.ids)
        segments = index.segments()
        merged = _to_merge(segments, len(changes.rows.ids) + len(moved.ids))
        fresh = _gather(index, of, segments, merged, [moved, changes.rows])
        names: list[str] = []
        deleted: list[str | None] = []
        for number, (old, segment) in enumerate(zip(before, segments, strict=True)):
            if number in merged or segment.deleted == segment.rows:
                continue
            names.append(segment.name)
            if segment.deleted == old.deleted:
                deleted.append(old.deletions or None)
            else:
                name = self._name(of, "deleted")
                index.write_deleted(number, self.path, name)
                deleted.append(name)
        if len(fresh.ids):
            names.append(self._write(of, fresh))
            deleted.append(None)
        return Draft(names, deleted)

    def _write(
        self, of: Record, some: Rows, progress: Callable[[float], None] | None = None
    ) -> str:
        name = self._name(of, "segment")
        native.write_segment(
            self.path, name, some.ids, some.codes, of.uuid, of.generation, of.fingerprints,
            progress, fine=some.fine,
        )  # fmt: skip
        return name

    def _name(self, of: Record, kind: str) -> str:
        number = 0
        while (self.path / (name := f"{of.generation:08}-{number:03}.{kind}")).exists():
            number += 1
        return name

    def _listed(self) -> set[str]:
        """The files that the manifest on disk lists."""
        try:
            with native.Index(self.path) as index:
                self.rows = len(index)
                return {
                    name
                    for segment in index.segments()
                    for name in (segment.name, segment.deletions)
                    if name
                }
        except IndexProblem:
            return set()

    def _sweep(self, keep: set[str]) -> None:
        """Remove files that are not listed, and those that a crash left half written."""
        try:
            for entry in os.scandir(self.path):
                ours = entry.name.endswith((".segment", ".deleted")) and entry.name not in keep
                if ours or (entry.name.startswith(".") and ".tmp-" in entry.name):
                    Path(entry).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot remove what is no longer needed in {self.path}: {error.strerror}. Its "
                "files must be removable by this user"
            ) from error

    # --- checking ---------------------------------------------------------------------------------

    def verify(self, cur: duckdb.DuckDBPyConnection, of: Record) -> None:
        """Deep check of the files on disk, and of every row that they hold against the codes table
        as the cursor's transaction sees it."""
        index = self.open(of)
        index.validate()
        since = index.info.generation
        if since > of.generation:
            raise IndexStale(
                f"the index in {self.path} is newer (generation {since}) than the rows in the "
                f"database ({of.generation})"
            )
        index = index.without(self.changes(cur, of, index).ids)
        expected = 0
        for there in rows.batches(cur, of, _CHECK_ROWS, f"generation <= {since}"):
            expected += len(there.ids)
            indexed, found = index.lookup(there.ids)
            wrong = ~found | (indexed != there.codes).any(axis=1)
            if there.fine is not None and not wrong.any():
                wrong = (index.fine(there.ids) != there.fine).any(axis=1)
            if wrong.any():
                raise IndexMismatch(
                    f"the index in {self.path} and the codes table disagree on id "
                    f"{there.ids[wrong.argmax()]}"
                )
        if len(index) != expected:
            raise IndexMismatch(
                f"the index in {self.path} has {len(index):,} rows of which the codes table has "
                f"{expected:,}"
            )


def _to_merge(segments: Sequence[native.SegmentInfo], new: int) -> set[int]:
    """Which segments are merged with so many new rows."""
    merged: set[int] = set()
    total = new
    for number in reversed(range(len(segments))):
        live = segments[number].rows - segments[number].deleted
        if live > min(2 * total, SEGMENT_ROWS - 1):
            break
        merged.add(number)
        total += live
    return merged


def _moved(
    index: native.Index, of: Record, segments: Sequence[native.SegmentInfo], most: int
) -> Rows:
    """The first live rows of the segment with the most dead ones, if those are too many."""
    dead = [
        number for number, segment in enumerate(segments)
        if _DEAD_SHARE * segment.rows < segment.deleted < segment.rows
    ]  # fmt: skip
    if not dead:
        return rows.empty(of, 0)
    worst = max(dead, key=lambda number: segments[number].deleted)
    first = sum(segment.rows for segment in segments[:worst])
    parts: list[Rows] = []
    left, at = most, 0
    while left and at < segments[worst].rows:
        part = rows.empty(of, min(_CHECK_ROWS, segments[worst].rows - at))
        index.read(first + at, part.ids, part.codes, part.fine)
        at += len(part.ids)
        parts.append(part.some(np.flatnonzero(part.ids >= 0)[:left]))
        left -= len(parts[-1].ids)
    return _together(of, parts)


def _gather(
    index: native.Index,
    of: Record,
    segments: Sequence[native.SegmentInfo],
    which: set[int],
    new: Sequence[Rows],
) -> Rows:
    """The live rows of some segments, and new ones."""
    starts = np.cumsum([0, *(segment.rows for segment in segments)])
    parts = []
    for number in sorted(which):
        part = rows.empty(of, segments[number].rows)
        index.read(int(starts[number]), part.ids, part.codes, part.fine)
        parts.append(part.some(np.flatnonzero(part.ids >= 0)))
    return _together(of, [*parts, *new])


def _together(of: Record, parts: Sequence[Rows]) -> Rows:
    everything = rows.empty(of, sum(len(part.ids) for part in parts))
    done = 0
    for part in parts:
        rows.put(everything, done, part)
        done += len(part.ids)
    return everything


def _same_codes(index: native.Index, of: Record) -> bool:
    """Whether codes in the index can be compared with the collection's; an empty one is any's."""
    empty = len(index) + index.info.deleted == 0
    return empty or index.info.fingerprints == of.fingerprints


def _differences(theirs: native.Fingerprints, mine: native.Fingerprints) -> str:
    return ", ".join(
        f"its {what} is {there or 'none'}, the collection's {here or 'none'}"
        for what, there, here in zip(mine._fields, theirs, mine, strict=True)
        if there != here
    )


def inspect(path: Path, of: Record) -> tuple[str, native.IndexInfo | None]:
    """What the index on disk is to a collection: 'current'; 'behind', where changes of rows wait
    to be taken in and are answered from the codes table; 'stale', 'missing', 'corrupt' or
    'foreign', which need a repair; and what it says of itself, where it can be opened."""
    try:
        with native.Index(path) as index:
            info, same = index.info, _same_codes(index, of)
    except IndexMissing:
        return "missing", None
    except (IndexCorrupt, IndexMismatch):
        return "corrupt", None
    if info.uuid != of.uuid:
        return "foreign", info
    other = of.checksum and info.generation == of.indexed and info.checksum != of.checksum
    if other or not of.indexed <= info.generation <= of.generation:
        return "stale", info
    if not same:
        return "foreign", info
    return ("current" if info.generation == of.generation else "behind"), info


_stores: weakref.WeakValueDictionary[str, Store] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def store_at(path: Path) -> Store:
    """The one Store of a folder in this process."""
    with _stores_lock:
        store = _stores.get(str(path))
        if store is None or store.dropped:
            store = _stores[str(path)] = Store(path)
        return store


def hint(error: IndexProblem, where: catalog.Database, name: str) -> IndexProblem:
    """The same error, with the repair named."""
    database = where.path or ":memory:"
    return type(error)(
        f"{str(error).rstrip('.')}. The rows are safe in the database: `boxwood repair {database} "
        f"{name}`, or Collection.open(con, {name!r}, repair=True), builds the index again"
    )
