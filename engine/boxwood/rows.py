"""The rows of collections in the database: their codes, and which of them an index may not know.

They are in the codes table, but for those of small appends: these are in boxwood.appended, an
append in a row, until `settle` moves them. Every function works in the caller's transaction, by its
cursor. A row is live when it has a code and, in a collection with a metadata table, one there: so
plain SQL on that table deletes images.
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
from boxwood.catalog import Codes, Record, literal, one, quoted, registered
from boxwood.native import Ids

__all__ = [
    "Changes", "Known", "Rows", "add", "batches", "changes", "count", "embeddings_of", "empty",
    "forget", "insert", "keep_embeddings", "known", "live_count", "many_orphans", "of_ids",
    "orphans", "pending", "put", "read", "remove", "settle", "without_metadata",
]  # fmt: skip

SMALL = 1 << 10
"""So many rows at most are a small append: in the codes table they would cost several times as
much."""
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
    """The rows whose generation a condition holds for."""
    rows, done = empty(of, count(cur, of, where)), 0
    for some in batches(cur, of, _READ_ROWS, where):
        put(rows, done, some)
        done += len(some.ids)
    return rows


def batches(
    cur: duckdb.DuckDBPyConnection, of: Record, size: int, where: str = "true"
) -> Iterator[Rows]:
    """The same, so many at a time; those of small appends at last and at once."""
    yield from _settled(cur, of, size, where)
    appended, _ = _appended(cur, of, where)
    if len(appended.ids):
        yield appended


def of_ids(cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids) -> Rows:
    """The rows of those of the ids that have a code, in no order."""
    appended, _ = _appended(cur, of)
    with _listed(cur, ids) as source:
        where = f"id IN (SELECT id FROM {source})"
        parts = list(_settled(cur, of, _READ_ROWS, where))
    parts.append(appended.some(np.isin(appended.ids, ids)))
    rows, done = empty(of, sum(len(part.ids) for part in parts)), 0
    for part in parts:
        put(rows, done, part)
        done += len(part.ids)
    return rows


def _settled(cur: duckdb.DuckDBPyConnection, of: Record, size: int, where: str) -> Iterator[Rows]:
    """Rows of the codes table."""
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


def _appended(
    cur: duckdb.DuckDBPyConnection, of: Record, where: str = "true"
) -> tuple[Rows, NDArray[np.int64]]:
    """Rows of small appends, and the generation of each."""
    found = cur.execute(
        "SELECT generation, ids, codes, fine FROM boxwood.appended "
        f"WHERE collection = ? AND {where}",
        [of.name],
    ).fetchall()
    ids = [_unpacked(part[1]) for part in found]
    generations = [np.full(len(some), part[0]) for part, some in zip(found, ids, strict=True)]
    rows, done = empty(of, sum(map(len, ids))), 0
    for some, (_, _, codes, fine) in zip(ids, found, strict=True):
        end = done + len(some)
        rows.ids[done:end] = some
        rows.codes[done:end] = np.frombuffer(codes, np.uint8).reshape(-1, native.DIMS)
        if rows.fine is not None:
            rows.fine[done:end] = np.frombuffer(fine, np.uint8).reshape(-1, native.FINE_DIMS)
        done = end
    return rows, np.concatenate([np.empty(0, np.int64), *generations])


def _appended_ids(cur: duckdb.DuckDBPyConnection, of: Record) -> Ids:
    """Their ids alone."""
    found = cur.execute(
        f"SELECT ids FROM boxwood.appended WHERE collection = {literal(of.name)}"
    ).fetchall()
    return _unpacked(b"".join(ids for (ids,) in found))


def _unpacked(ids: bytes) -> Ids:
    return np.frombuffer(ids, "<i8").astype(np.int64, copy=False)


def _packed(ids: Ids) -> bytes:
    return ids.astype("<i8", copy=False).tobytes()


def count(cur: duckdb.DuckDBPyConnection, of: Record, where: str = "true") -> int:
    """Rows, or those whose generation a condition holds for."""
    row = one(
        cur,
        f"SELECT (SELECT count(*) FROM {of.codes} WHERE {where}) + (SELECT "
        "coalesce(sum(octet_length(ids)), 0) // 8 FROM boxwood.appended "
        f"WHERE collection = {literal(of.name)} AND {where})",
    )
    return int(row[0]) if row else 0


def live_count(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    """Live rows."""
    if of.table is None:
        return count(cur, of)
    row = one(cur, f"SELECT count(*) FROM {of.ids} SEMI JOIN {_there(of)} USING (id)")
    return int(row[0]) if row else 0


def pending(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    """Changes that an index of the generation `of.indexed` has not got."""
    row = one(cur, "SELECT count(*) FROM boxwood.deleted WHERE collection = ?", [of.name])
    return count(cur, of, f"generation > {of.indexed}") + (int(row[0]) if row else 0)


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
    if len(ids) <= _FEW:
        listed = ", ".join(map(str, ids.tolist()))
        found = cur.execute(f"SELECT id FROM {of.codes} WHERE id IN ({listed})").fetchall()
        appended = _appended_ids(cur, of)
        here = appended[np.isin(appended, ids)]
        return np.concatenate([np.array([id for (id,) in found], np.int64), here])
    with _listed(cur, ids) as source:
        joined = cur.execute(f"SELECT id FROM {source} SEMI JOIN {of.ids} USING (id)")
        return np.asarray(joined.fetchnumpy()["id"], np.int64)


class Known:
    """The ids of a collection, kept from one small append to the next, where that costs less than
    to ask for each append's ids. Sorted arrays, merged by the logarithmic method."""

    MOST = 1 << 20
    """Rows of a collection whose ids are kept, 8 bytes each."""

    def __init__(self) -> None:
        self._parts: list[Ids] = []

    def among(self, cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids) -> Ids:
        """Those of the ids that have a code."""
        if not self._parts:
            everything = cur.execute(f"SELECT id FROM {of.ids}").fetchnumpy()["id"]
            self._parts = [np.sort(np.asarray(everything, np.int64))]
        there = np.zeros(len(ids), bool)
        for part in self._parts:
            if len(part):
                place = np.minimum(np.searchsorted(part, ids), len(part) - 1)
                there |= part[place] == ids
        return ids[there]

    def add(self, ids: Ids) -> None:
        """Rows were added; before any are asked for, this is of no interest."""
        if not self._parts:
            return
        self._parts.append(np.sort(ids))
        while len(self._parts) > 1 and len(self._parts[-2]) <= 2 * len(self._parts[-1]):
            last = self._parts.pop()
            self._parts[-1] = np.sort(np.concatenate([self._parts[-1], last]))


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
    row = one(cur, f"SELECT count(*) FROM {of.metadata}")
    codes = count(cur, of)
    return row is not None and (row[0] < codes or 0 < codes <= _LOOK_ROWS)


def orphans(cur: duckdb.DuckDBPyConnection, of: Record) -> Ids:
    """Ids that have a code, but no row in the metadata table: images that were deleted by SQL."""
    if of.table is None:
        return np.empty(0, np.int64)
    gone = cur.execute(f"SELECT id FROM {of.ids} ANTI JOIN {_there(of)} USING (id)")
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


def add(cur: duckdb.DuckDBPyConnection, of: Record, rows: Rows) -> None:
    """Add rows, as of the collection's generation, which the transaction has raised. Whether the
    collection has them already is told of many rows alone, by an error of the primary key."""
    if len(rows.ids) > SMALL:
        insert(cur, of, rows)
        return
    fine = None if rows.fine is None else rows.fine.tobytes()
    cur.execute(
        f"INSERT INTO boxwood.appended VALUES ({literal(of.name)}, {of.generation}, ?, ?, ?)",
        [_packed(rows.ids), rows.codes.tobytes(), fine],
    )


def insert(cur: duckdb.DuckDBPyConnection, of: Record, rows: Rows) -> None:
    """The same, into the codes table however few they are."""
    settle(cur, of)
    _insert(cur, of, rows, np.full(len(rows.ids), of.generation, np.int64))


def settle(cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids | None = None) -> None:
    """Move the rows of small appends to the codes table, if any of them is one of the ids. Nobody
    sees a difference, except the primary key and what goes by the codes table alone."""
    if ids is not None and not np.isin(_appended_ids(cur, of), ids).any():
        return
    rows, generations = _appended(cur, of)
    if len(rows.ids):
        # First, as this is what conflicts where another transaction has moved them meanwhile.
        cur.execute("DELETE FROM boxwood.appended WHERE collection = ?", [of.name])
        _insert(cur, of, rows, generations)


def _insert(
    cur: duckdb.DuckDBPyConnection, of: Record, rows: Rows, generations: NDArray[np.int64]
) -> None:
    if not len(rows.ids):  # nothing must not be inserted: see Collection._insert_metadata
        return
    columns = np.ascontiguousarray(rows.codes.T)
    new = {
        "id": rows.ids, "generation": generations,
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
    settle(cur, of, ids)
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


def embeddings_of(
    cur: duckdb.DuckDBPyConnection, of: Record, ids: Ids
) -> NDArray[np.float32] | None:
    """The kept embeddings (n, dims) of ids; None where the collection keeps none."""
    if not of.keep_embeddings:
        return None
    with _listed(cur, np.unique(ids)) as source:
        found = cur.sql(
            f"SELECT id, embedding FROM {of.embeddings} SEMI JOIN {source} USING (id) ORDER BY id"
        ).to_arrow_table()
    vectors = found["embedding"].combine_chunks().flatten().to_numpy().reshape(len(found), -1)
    kept: NDArray[np.float32] = vectors[np.searchsorted(found["id"].to_numpy(), ids)]
    return kept


def forget(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    """Remove kept embeddings of rows that are gone."""
    cur.execute(f"DELETE FROM {of.embeddings} WHERE id NOT IN (SELECT id FROM {of.ids})")
