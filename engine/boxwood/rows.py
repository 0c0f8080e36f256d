"""The rows of collections in the database: their codes, and which of them an index may not know.

Every function works in the caller's transaction, by its cursor. A row is live when it has a code
and, in a collection with a metadata table, a row there: so plain SQL on that table deletes images.
`docs/ARCHITECTURE.md`, "Truth and index", says what the tables are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxwood import catalog, native
from boxwood.catalog import Codes, Record, one, quoted, registered
from boxwood.native import Ids

__all__ = [
    "Changes", "Rows", "batches", "changes", "count", "empty", "forget", "insert",
    "keep_embeddings", "known", "live_count", "many_orphans", "orphans", "pending", "put", "read",
    "remove", "without_metadata",
]  # fmt: skip

_READ_ROWS = 1 << 18
_LOOK_ROWS = 1 << 20  # of a collection in which orphans are looked for with every refresh
_FEW = 1000  # ids that stand in a statement's text, where an index on the table can look them up


class Rows(NamedTuple):
    """Images as the codes table and the index hold them."""

    ids: Ids
    codes: Codes
    """(n, 32)"""
    fine: Codes | None
    """(n, 128); None in collections without fine codes."""

    def some(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        """Some of them."""
        return Rows(
            self.ids[which], self.codes[which], None if self.fine is None else self.fine[which]
        )


def empty(of: Record, n: int) -> Rows:
    """Room for so many rows of a collection."""
    fine = np.empty((n, native.FINE_DIMS), np.uint8) if of.fine else None
    return Rows(np.empty(n, np.int64), np.empty((n, native.DIMS), np.uint8), fine)


def put(into: Rows, first: int, rows: Rows) -> None:
    """Write rows over those from `first` on."""
    end = first + len(rows.ids)
    into.ids[first:end] = rows.ids
    into.codes[first:end] = rows.codes
    if into.fine is not None and rows.fine is not None:
        into.fine[first:end] = rows.fine


# --- reading --------------------------------------------------------------------------------------


def read(cur: duckdb.DuckDBPyConnection, of: Record, where: str = "true") -> Rows:
    """The rows of the codes table for which a condition holds."""
    total = one(cur, f"SELECT count(*) FROM {of.codes} WHERE {where}")
    rows, done = empty(of, total[0] if total else 0), 0
    for some in batches(cur, of, _READ_ROWS, where):
        put(rows, done, some)
        done += len(some.ids)
    return rows


def batches(
    cur: duckdb.DuckDBPyConnection, of: Record, size: int, where: str = "true"
) -> Iterator[Rows]:
    """The same, so many at a time."""
    columns = ", ".join([*catalog.COLUMNS, *([catalog.FINE] if of.fine else [])])
    query = f"SELECT id, {columns} FROM {of.codes} WHERE {where}"
    for batch in cur.sql(query).to_arrow_reader(size):
        if not len(batch):
            continue
        ids, *values = (column.to_numpy() for column in batch.columns[: 1 + native.DIMS])
        fine = None
        if of.fine:
            fine = batch.columns[-1].flatten().to_numpy().reshape(-1, native.FINE_DIMS)
        yield Rows(ids, np.stack(values, axis=1), fine)


def count(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    """Rows of the codes table."""
    row = one(cur, f"SELECT count(*) FROM {of.codes}")
    return int(row[0]) if row else 0


def live_count(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    """Live rows."""
    if of.table is None:
        return count(cur, of)
    row = one(cur, f"SELECT count(*) FROM {of.codes} SEMI JOIN {_there(of)} USING (id)")
    return int(row[0]) if row else 0


def pending(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    """Changes that an index of the generation `of.indexed` has not got."""
    row = one(
        cur,
        f"SELECT (SELECT count(*) FROM {of.codes} WHERE generation > $indexed) + "
        "(SELECT count(*) FROM boxwood.deleted WHERE collection = $name)",
        {"indexed": of.indexed, "name": of.name},
    )
    return int(row[0]) if row else 0


class Changes(NamedTuple):
    """What has changed since a generation."""

    ids: Ids
    """Of all rows that were added, rewritten or deleted, ascending."""
    rows: Rows
    """Those of them that are there."""


def changes(cur: duckdb.DuckDBPyConnection, of: Record, since: int) -> Changes:
    """What has changed since a generation, which must be `of.indexed` or a later one: of what came
    before that, deletions are not known any more."""
    rows = read(cur, of, f"generation > {since}")
    gone = cur.execute(
        "SELECT id FROM boxwood.deleted WHERE collection = ? AND generation > ?", [of.name, since]
    ).fetchnumpy()["id"]
    return Changes(np.union1d(rows.ids, np.asarray(gone, np.int64)), rows)


def known(cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids) -> Ids:
    """Those of the ids that have a code."""
    with _listed(cur, ids) as source:
        found = cur.execute(f"SELECT id FROM {source} SEMI JOIN {of.codes} USING (id)")
        return np.asarray(found.fetchnumpy()["id"], np.int64)


def without_metadata(cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids) -> Ids:
    """Those of the ids that the metadata table has no row of; none where there is no such table."""
    if of.table is None or not len(ids):
        return np.empty(0, np.int64)
    if len(ids) <= _FEW:
        key = quoted(of.id_column)
        there = cur.execute(
            f"SELECT TRY_CAST({key} AS BIGINT) AS id FROM {of.metadata} WHERE TRY_CAST({key} AS "
            f"BIGINT) IN ({', '.join(map(str, ids.tolist()))})"
        ).fetchnumpy()["id"]
        return np.setdiff1d(ids, np.asarray(there, np.int64))
    with _listed(cur, ids) as source:
        gone = cur.execute(f"SELECT id FROM {source} ANTI JOIN {_there(of)} USING (id)")
        return np.asarray(gone.fetchnumpy()["id"], np.int64)


def many_orphans(cur: duckdb.DuckDBPyConnection, of: Record) -> bool:
    """Whether images were deleted by SQL, as far as that costs little to know: by the number of
    rows, or in a collection that is not large."""
    if of.table is None:
        return False
    row = one(cur, f"SELECT count(*), (SELECT count(*) FROM {of.metadata}) FROM {of.codes}")
    return row is not None and (row[1] < row[0] or 0 < row[0] <= _LOOK_ROWS)


def orphans(cur: duckdb.DuckDBPyConnection, of: Record) -> Ids:
    """Ids that have a code, but no row in the metadata table: images that were deleted by SQL."""
    if of.table is None:
        return np.empty(0, np.int64)
    gone = cur.execute(f"SELECT id FROM {of.codes} ANTI JOIN {_there(of)} USING (id)")
    return np.asarray(gone.fetchnumpy()["id"], np.int64)


def _there(of: Record) -> str:
    """The ids of the metadata table, as SQL."""
    return f"(SELECT TRY_CAST({quoted(of.id_column)} AS BIGINT) AS id FROM {of.metadata})"


@contextmanager
def _listed(cur: duckdb.DuckDBPyConnection, ids: Ids) -> Iterator[str]:
    """Ids as something that stands in a FROM clause."""
    with registered(cur, "boxwood_ids", pa.table({"id": ids})):
        yield "boxwood_ids"


# --- writing --------------------------------------------------------------------------------------


def insert(cur: duckdb.DuckDBPyConnection, of: Record, rows: Rows) -> None:
    """Add rows, as of the collection's generation."""
    columns = np.ascontiguousarray(rows.codes.T)
    generation = np.full(len(rows.ids), of.generation, np.int64)
    new = {
        "id": rows.ids, "generation": generation,
        **dict(zip(catalog.COLUMNS, columns, strict=True)),
    }  # fmt: skip
    if rows.fine is not None:
        flat = pa.array(np.ascontiguousarray(rows.fine).reshape(-1))
        new[catalog.FINE] = pa.FixedSizeListArray.from_arrays(flat, native.FINE_DIMS)
    with registered(cur, "boxwood_new_codes", pa.table(new)):
        cur.execute(f"INSERT INTO {of.codes} SELECT * FROM boxwood_new_codes")


def remove(cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids) -> int:
    """Delete codes, and embeddings that are kept, as of the collection's generation; returns how
    many there were. Metadata are left alone."""
    with _listed(cur, ids) as source:
        cur.execute(
            "INSERT INTO boxwood.deleted "
            f"SELECT $name, id, $generation FROM {of.codes} SEMI JOIN {source} USING (id)",
            {"name": of.name, "generation": of.generation},
        )
        row = one(cur, f"DELETE FROM {of.codes} WHERE id IN (SELECT id FROM {source})")
        if of.keep_embeddings and of.head:
            cur.execute(f"DELETE FROM {of.embeddings} WHERE id IN (SELECT id FROM {source})")
    return int(row[0]) if row else 0


def keep_embeddings(
    cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids, vectors: NDArray[np.float32]
) -> None:
    """Keep the embeddings of new rows, if the collection does."""
    if not of.keep_embeddings:
        return
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    kept = pa.table({"id": ids, "e": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
    with registered(cur, "boxwood_new_embeddings", kept):
        # Or replace: rows may have been taken out of the codes table by hand.
        cur.execute(f"INSERT OR REPLACE INTO {of.embeddings} SELECT * FROM boxwood_new_embeddings")


def forget(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    """Remove kept embeddings of rows that are gone."""
    cur.execute(f"DELETE FROM {of.embeddings} WHERE id NOT IN (SELECT id FROM {of.codes})")
