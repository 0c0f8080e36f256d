"""The index folder of a collection: kept up to date with the codes table, checked, rebuilt.

DuckDB holds the truth. What stands here is derived from it, so the worst that can happen to an
index is that it is built again.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from boxwood import catalog, native
from boxwood.catalog import Record, Rows
from boxwood.errors import (
    IndexCorrupt,
    IndexMismatch,
    IndexMissing,
    IndexProblem,
    StorageError,
)
from boxwood.native import Ids

SEGMENT_ROWS = 1 << 20
"""A segment of so many rows is not merged with newer ones by appends, only by `compact`."""

_READ_ROWS = 1 << 18
_CHECK_ROWS = 1 << 18


class Store:
    """A collection's index in this process; every Collection object on it shares one.

    `lock` is held by whoever changes rows or index. `index` may be read without it: indexes are
    immutable, and stay usable after newer ones have taken their place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.index: native.Index | None = None
        self.behind = False  # rows were committed that the index has not got
        self.dropped = False

    def __len__(self) -> int:
        return 0 if self.index is None else len(self.index)

    # --- opening ----------------------------------------------------------------------------------

    def open(self, of: Record, rows: int) -> bool:
        """Open the index as it is on disk; False when it is of another generation than the rows in
        the database, or of another number. Raises IndexProblem for an index that cannot answer for
        this collection."""
        index = native.Index(self.path)
        if index.info.uuid != of.uuid:
            raise IndexMismatch(
                f"the index in {self.path} belongs to another collection ({index.info.uuid})"
            )
        current = index.info.generation == of.generation and len(index) == rows
        if current and index.info.fingerprints != of.fingerprints:
            raise IndexMismatch(
                f"the index in {self.path} was made with another encoder, head or quantizer: "
                + _differences(index.info.fingerprints, of.fingerprints)
            )
        if current:
            self.index, self.behind = index, False
        return current

    # --- writing ----------------------------------------------------------------------------------

    def create(self, of: Record) -> None:
        """An empty index, in a new folder."""
        self._make_folder()
        self.publish(of, [])

    def extend(self, of: Record, rows: Rows) -> None:
        """Add the rows by which the collection came from the last generation to this one."""
        assert self.index is not None
        self.publish(of, self._extended(self.index, of, rows))

    def refresh(self, cur: duckdb.DuckDBPyConnection, of: Record) -> None:
        """Bring the index to the codes table: add what it lacks, or build it anew where it holds
        what the table does not."""
        self.publish(of, self.prepare(cur, of))

    def prepare(self, cur: duckdb.DuckDBPyConnection, of: Record) -> list[str]:
        """Write the segments that the index lacks of the codes table, as this cursor's transaction
        sees it; the names for `publish`, once that has been committed."""
        index = native.Index(self.path)
        same = index.info.fingerprints == of.fingerprints or len(index) == 0
        if index.info.uuid != of.uuid or index.info.generation > of.generation or not same:
            return self._anew(cur, of)
        there = np.sort(index.ids())
        wanted = np.sort(read_ids(cur, of))
        if len(np.setdiff1d(there, wanted, assume_unique=True)):
            return self._anew(cur, of)
        missing = np.setdiff1d(wanted, there, assume_unique=True)
        self.index = index
        if len(missing):
            return self._extended(index, of, read_codes(cur, of, missing))
        return [segment.name for segment in index.segments()]

    def prepare_anew(self, cur: duckdb.DuckDBPyConnection, of: Record) -> list[str]:
        """The same with a new segment of all rows, whatever there is."""
        self._make_folder()
        return self._anew(cur, of)

    def publish(self, of: Record, names: list[str]) -> None:
        """Make these segments the index."""
        before = set() if self.index is None else {s.name for s in self.index.segments()}
        native.write_manifest(self.path, of.uuid, of.generation, names, of.fingerprints)
        self.index, self.behind = native.Index(self.path), False
        # A reader in another thread may be about to open what the last manifest lists.
        self._sweep(before | set(names))

    def rebuild(
        self,
        cur: duckdb.DuckDBPyConnection,
        of: Record,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """One segment of all rows in the codes table, and nothing else in the folder."""
        self._make_folder()
        names = self._anew(cur, of, progress)
        self.publish(of, names)
        self._sweep(set(names))

    def remove(self) -> None:
        self.index, self.dropped = None, True
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

    def _anew(
        self,
        cur: duckdb.DuckDBPyConnection,
        of: Record,
        progress: Callable[[float], None] | None = None,
    ) -> list[str]:
        rows = read_codes(cur, of)
        return [self._write(of, rows, progress)] if len(rows.ids) else []

    def _extended(self, index: native.Index, of: Record, rows: Rows) -> list[str]:
        """Write rows that `index` has not got; the names of its segments with them.

        Small segments at the end are merged with the new rows as long as they are not more than
        twice as many (the logarithmic method of Bentley and Saxe), so there are never many.
        """
        segments = index.segments()
        first, merged = len(index), len(rows.ids)
        kept = len(segments)
        while kept and segments[kept - 1].rows <= min(2 * merged, SEGMENT_ROWS - 1):
            kept -= 1
            first -= segments[kept].rows
            merged += segments[kept].rows
        if first < len(index):
            both, old = _empty(of, merged), len(index) - first
            index.read(
                first, both.ids[:old], both.codes[:old],
                None if both.fine is None else both.fine[:old],
            )  # fmt: skip
            _put(both, old, rows)
            rows = both
        return [*(segment.name for segment in segments[:kept]), self._write(of, rows)]

    def _write(
        self, of: Record, rows: Rows, progress: Callable[[float], None] | None = None
    ) -> str:
        number = 0
        while (self.path / (name := f"{of.generation:08}-{number:03}.segment")).exists():
            number += 1
        native.write_segment(
            self.path, name, rows.ids, rows.codes, of.uuid, of.generation, of.fingerprints,
            progress, fine=rows.fine,
        )  # fmt: skip
        return name

    def _sweep(self, keep: set[str]) -> None:
        """Remove segments that are not listed, and files that a crash left half written."""
        try:
            for entry in os.scandir(self.path):
                unlisted = entry.name.endswith(".segment") and entry.name not in keep
                if unlisted or (entry.name.startswith(".") and ".tmp-" in entry.name):
                    Path(entry).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot remove what is no longer needed in {self.path}: {error.strerror}. Its "
                "files must be removable by this user"
            ) from error

    # --- checking ---------------------------------------------------------------------------------

    def verify(self, cur: duckdb.DuckDBPyConnection, of: Record) -> None:
        """Deep check of the files on disk, and of every row against the codes table."""
        with native.Index(self.path) as index:
            if index.info.uuid != of.uuid or index.info.generation != of.generation:
                raise IndexMismatch(f"the index in {self.path} is not that of these rows")
            index.validate()
            rows = catalog.row_count(cur, of)
            if len(index) != rows:
                raise IndexMismatch(
                    f"the index in {self.path} has {len(index):,} rows, the codes table {rows:,}"
                )
            for rows_there in _batches(cur, of, _CHECK_ROWS):
                indexed, found = index.lookup(rows_there.ids)
                wrong = ~found | (indexed != rows_there.codes).any(axis=1)
                if rows_there.fine is not None and not wrong.any():
                    wrong = (index.fine(rows_there.ids) != rows_there.fine).any(axis=1)
                if wrong.any():
                    row = rows_there.ids[wrong.argmax()]
                    raise IndexMismatch(
                        f"the index in {self.path} and the codes table disagree on id {row}"
                    )


def _differences(theirs: native.Fingerprints, mine: native.Fingerprints) -> str:
    return ", ".join(
        f"its {what} is {there or 'none'}, the collection's {here or 'none'}"
        for what, there, here in zip(mine._fields, theirs, mine, strict=True)
        if there != here
    )


def inspect(path: Path, of: Record, rows: int) -> tuple[str, native.IndexInfo | None]:
    """What the index on disk is to a collection of so many rows: 'current', 'stale', 'missing',
    'corrupt' or 'foreign'; and what it says of itself, where it can be opened."""
    try:
        with native.Index(path) as index:
            info = index.info
    except IndexMissing:
        return "missing", None
    except (IndexCorrupt, IndexMismatch):
        return "corrupt", None
    if info.uuid != of.uuid:
        return "foreign", info
    if info.generation != of.generation or info.rows != rows:
        return "stale", info
    return ("current" if info.fingerprints == of.fingerprints else "foreign"), info


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


# --- the codes table ------------------------------------------------------------------------------


def read_ids(cur: duckdb.DuckDBPyConnection, of: Record) -> Ids:
    ids: Ids = cur.execute(f"SELECT id FROM {of.codes}").fetchnumpy()["id"]
    return np.asarray(ids, np.int64)


def _empty(of: Record, n: int) -> Rows:
    """Room for so many rows of a collection."""
    fine = np.empty((n, native.FINE_DIMS), np.uint8) if of.fine else None
    return Rows(np.empty(n, np.int64), np.empty((n, native.DIMS), np.uint8), fine)


def _put(into: Rows, first: int, rows: Rows) -> None:
    into.ids[first : first + len(rows.ids)] = rows.ids
    into.codes[first : first + len(rows.ids)] = rows.codes
    if into.fine is not None and rows.fine is not None:
        into.fine[first : first + len(rows.ids)] = rows.fine


def read_codes(cur: duckdb.DuckDBPyConnection, of: Record, only: Ids | None = None) -> Rows:
    """The rows of the codes table, or these of its ids."""
    rows = _empty(of, catalog.row_count(cur, of) if only is None else len(only))
    done = 0
    for some in _batches(cur, of, _READ_ROWS, only):
        _put(rows, done, some)
        done += len(some.ids)
    return Rows(
        rows.ids[:done], rows.codes[:done], rows.fine if rows.fine is None else rows.fine[:done]
    )


def _batches(
    cur: duckdb.DuckDBPyConnection, of: Record, rows: int, only: Ids | None = None
) -> Iterator[Rows]:
    columns = ", ".join([*catalog.COLUMNS, *([catalog.FINE] if of.fine else [])])
    query = f"SELECT id, {columns} FROM {of.codes}"
    with ExitStack() as stack:
        if only is not None:
            stack.enter_context(catalog.registered(cur, "boxwood_wanted", pa.table({"id": only})))
            query += " SEMI JOIN boxwood_wanted USING (id)"
        for batch in cur.sql(query).to_arrow_reader(rows):
            if not len(batch):
                continue
            ids, *values = (column.to_numpy() for column in batch.columns[: 1 + native.DIMS])
            fine = None
            if of.fine:
                fine = batch.columns[-1].flatten().to_numpy().reshape(-1, native.FINE_DIMS)
            yield Rows(ids, np.stack(values, axis=1), fine)
