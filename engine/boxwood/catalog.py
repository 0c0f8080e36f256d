"""The schema `boxwood` inside a DuckDB database: what Boxwood keeps of a collection there.

Functions here take a cursor of their own and leave it open. `docs/ARCHITECTURE.md`, "Truth and
index", says what each table is for.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import threading
import uuid as uuids
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from boxwood import native
from boxwood.encode import Encoder, Head, Quantizer, load_image, map_images, map_texts
from boxwood.errors import Error, IndexMismatch, InputError, MissingDependency, ReadOnly

Codes = NDArray[np.uint8]

COLUMNS = [f"d{dim:02}" for dim in range(native.DIMS)]
FINE = "fine"
"""The codes table's column of fine codes, in collections that have them."""
GIVEN = "codes"
"""In place of a quantizer's fingerprint, in collections whose codes came ready-made, from nobody
knows where; and in place of that of fine codes."""

_FIELDS = (
    "name, uuid, generation, table_name, id_column, owns_table, encoder, encoder_fingerprint, "
    "head_fingerprint, quantizer_fingerprint, quantizer_offset, quantizer_scale, folder, fine, "
    "fine_fingerprint, fine_head_fingerprint, fine_quantizer_offset, fine_quantizer_scale, "
    "keep_embeddings"
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def quoted(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: object) -> str:
    """A SQL string."""
    return "'" + str(text).replace("'", "''") + "'"


def table_name(name: str) -> str:
    """A table as SQL, from ``table`` or ``schema.table``."""
    return ".".join(quoted(part) for part in name.split("."))


def _parts(database: str, name: str) -> list[str]:
    parts = name.split(".")
    return [*[database, "main"][: max(0, 3 - len(parts))], *parts]


def _full_name(database: str, name: str) -> str:
    return ".".join(map(quoted, _parts(database, name)))


def full_name(cur: duckdb.DuckDBPyConnection, name: str) -> str:
    """The table ``table``, ``schema.table`` or ``database.schema.table`` as SQL, in full."""
    row = one(cur, "SELECT current_database()")
    assert row is not None
    return _full_name(row[0], name)


def check_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a collection: use a letter, then up to 62 letters, digits and _"
        )
    return name


def one(
    con: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
) -> tuple[Any, ...] | None:
    """The first row. All are fetched: DuckDB 2.0 lets a connection with an unfinished result do
    little else."""
    rows = con.execute(query, parameters).fetchall()
    return rows[0] if rows else None


@contextmanager
def registered(cur: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> Iterator[None]:
    """Let queries of this cursor read an Arrow table by a name."""
    cur.register(name, rows)
    try:
        yield
    finally:
        with suppress(duckdb.Error):  # in a transaction that has failed; it ends with the cursor
            cur.unregister(name)


# --- the database ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """The file behind a connection; None: it is in memory."""

    path: Path | None
    read_only: bool


def database(cur: duckdb.DuckDBPyConnection) -> Database:
    row = one(
        cur,
        "SELECT path, readonly FROM duckdb_databases() WHERE database_name = current_database()",
    )
    path, read_only = row if row else (None, False)
    return Database(Path(path).absolute() if path else None, bool(read_only))


def check_writable(cur: duckdb.DuckDBPyConnection, what: str) -> None:
    where = database(cur)
    if where.read_only:
        raise ReadOnly(
            f"cannot {what}: {where.path} is open read-only. Connect without read_only=True"
        )


def in_transaction(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether the caller has begun a transaction on this connection."""
    try:
        # Outside of one, every statement has a transaction of its own.
        first, second = (one(con, "SELECT txid_current()") for _ in range(2))
    except duckdb.TransactionException:
        return True  # one that has failed, and waits for its ROLLBACK
    return bool(first == second)


_temporary: list[str] = []
_temporary_lock = threading.Lock()


def temporary_folder() -> str:
    """A folder for the indexes of in-memory databases, removed when Python ends."""
    with _temporary_lock:
        if not _temporary:
            folder = tempfile.mkdtemp(prefix="boxwood-")
            pid = os.getpid()

            def remove() -> None:
                if os.getpid() == pid:  # not in a forked child
                    shutil.rmtree(folder, ignore_errors=True)

            atexit.register(remove)
            _temporary.append(folder)
        return _temporary[0]


# --- collections ----------------------------------------------------------------------------------


class Coding(NamedTuple):
    """How embeddings become codes, and fine codes where the last two are not None."""

    head: Head
    quantizer: Quantizer
    fine_head: Head | None = None
    fine_quantizer: Quantizer | None = None

    @property
    def fingerprint(self) -> str:
        """Of the codes: what the collection, its index and models call their quantizer. The head is
        in it, since a head that turns the axes may well have the same quantizer."""
        return _both(self.head, self.quantizer)

    @property
    def fine_fingerprint(self) -> str:
        if self.fine_head is None or self.fine_quantizer is None:
            return ""
        return _both(self.fine_head, self.fine_quantizer)

    def blend(self, texts: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
        """One text embedding (1, width) out of several (n, width), as far towards each as its
        weight says, and away from it where that is negative.

        Texts lie together around their mean, so differences from it are weighed: the answer is
        the unit vector that lies from the mean in the direction of the weighted sum. One text
        comes back as it is.
        """
        mean = self.head.text_mean.astype(np.float64)
        unit = texts.astype(np.float64)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        if len(unit) == 1 and weights[0] > 0:
            return np.asarray(unit, np.float32)
        given = np.asarray(weights, np.float64)
        way = (given / np.abs(given).max()) @ (unit - mean)
        length, inside = float(way @ way), 1 - float(mean @ mean)
        if length < 1e-12 and min(weights) >= 0:  # the mean itself: words for everything
            whole = given @ unit
            return np.asarray((whole / np.linalg.norm(whole))[None], np.float32)
        if length < 1e-12:
            raise InputError(
                "the weighted texts cancel each other out, so that nothing is left to search for: "
                "change the weights"
            )
        if inside <= 0:  # a mean that is not that of unit vectors
            mean, inside = np.zeros_like(mean), 1.0
        along = float(mean @ way)
        step = (math.sqrt(along * along + length * inside) - along) / length
        return np.asarray((mean + step * way)[None], np.float32)

    def images(self, embeddings: ArrayLike) -> tuple[Codes, Codes | None]:
        """Codes (n, 32) and fine codes (n, 128) of image embeddings (n, width)."""
        return self._encode(map_images(self._heads(), embeddings))

    def texts(self, embeddings: ArrayLike) -> tuple[Codes, Codes | None]:
        """The same of text embeddings."""
        return self._encode(map_texts(self._heads(), embeddings))

    def _heads(self) -> list[Head]:
        return [self.head] if self.fine_head is None else [self.head, self.fine_head]

    def _encode(self, mapped: list[NDArray[np.float32]]) -> tuple[Codes, Codes | None]:
        codes = self.quantizer.encode(mapped[0])
        if self.fine_quantizer is None:
            return codes, None
        return codes, self.fine_quantizer.encode(mapped[1])


def _both(head: Head, quantizer: Quantizer) -> str:
    both = f"{head.fingerprint} {quantizer.fingerprint}"
    return hashlib.sha256(both.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """A row of boxwood.collections."""

    name: str
    uuid: uuids.UUID
    generation: int
    table: str | None
    id_column: str
    owns_table: bool
    encoder: str | None
    encoder_fingerprint: str
    head: str
    quantizer: str
    offset: float | None
    scale: float | None
    folder: str | None
    fine_wanted: bool | None = None
    """What `create` was told; None: fine codes where embeddings are at hand."""
    fine: str = ""
    """The fingerprint of the fine codes; empty: there are none, or none yet."""
    fine_head: str = ""
    fine_offset: float | None = None
    fine_scale: float | None = None
    keep_embeddings: bool = False
    indexed: int = 0
    """A generation that the index on disk has at least, and"""
    checksum: int = 0
    """the checksum of the manifest of that generation; 0: unknown."""
    database: str = ""

    @property
    def place(self) -> str:
        """The metadata table as ``database.schema.table``."""
        assert self.table is not None
        return ".".join(_parts(self.database, self.table))

    @property
    def metadata(self) -> str:
        """The metadata table, which there must be, as SQL. In full, as a temporary table of that
        name, or another schema in use, would come first: without a schema it is that of main."""
        assert self.table is not None
        return _full_name(self.database, self.table)

    @property
    def codes(self) -> str:
        """The codes table, as SQL."""
        return f"boxwood.{quoted(self.name + '_codes')}"

    @property
    def ids(self) -> str:
        """The ids of all rows, in the codes table and of small appends, as something that stands in
        a FROM clause."""
        return (
            f"(SELECT id FROM {self.codes} UNION ALL SELECT unnest(boxwood_int64s(ids)) FROM "
            f"boxwood.appended WHERE collection = {literal(self.name)})"
        )

    @property
    def embeddings(self) -> str:
        """The table of kept embeddings, as SQL; there once there are embeddings to keep."""
        return f"boxwood.{quoted(self.name + '_embeddings')}"

    @property
    def fingerprints(self) -> native.Fingerprints:
        return native.Fingerprints(self.encoder_fingerprint, self.head, self.quantizer, self.fine)

    def index_path(self, where: Database) -> Path:
        """The index folder."""
        if where.path is not None:
            return Path(f"{where.path}.boxwood", str(self.uuid))
        return Path(self.folder or "/nonexistent")


def sql_file(name: str) -> str:
    """A file of the package's sql folder, or of the source tree's."""
    here = Path(__file__).resolve().parent
    for folder in (here / "sql", here.parent.parent / "sql"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise MissingDependency(
        f"there is no {here / 'sql' / name}: install the package again with `pip install .`"
    )


def create_schema(cur: duckdb.DuckDBPyConnection) -> None:
    if not exists(cur):
        cur.execute(sql_file("schema.sql"))


def exists(cur: duckdb.DuckDBPyConnection) -> bool:
    """Whether the database has the schema."""
    return table_exists(cur, "boxwood.collections")


def table_exists(cur: duckdb.DuckDBPyConnection, name: str) -> bool:
    """Whether there is a table or view ``table``, ``schema.table`` or ``database.schema.table``."""
    # Asked of the catalog: a mere SELECT would also find Python variables of that name.
    parts = name.split(".")
    row = one(
        cur,
        "SELECT count(*) FROM ("
        "  SELECT database_name, schema_name, table_name AS name FROM duckdb_tables() UNION ALL"
        "  SELECT database_name, schema_name, view_name FROM duckdb_views()) "
        "WHERE lower(name) = lower($name) AND lower(schema_name) = "
        "lower(coalesce($schema, current_schema())) AND "
        "database_name = coalesce($database, current_database())",
        {
            "name": parts[-1],
            "schema": parts[-2] if len(parts) > 1 else None,
            "database": parts[-3] if len(parts) > 2 else None,
        },
    )
    return row is not None and row[0] > 0


_RECORDS = (
    f"SELECT {_FIELDS}, coalesce(indexed, 0), coalesce(checksum, 0), current_database() "
    "FROM boxwood.collections LEFT JOIN (SELECT collection AS name, generation AS indexed, "
    "checksum FROM boxwood.indexes) USING (name)"
)


def names(cur: duckdb.DuckDBPyConnection) -> list[str]:
    if not exists(cur):
        return []
    rows = cur.execute("SELECT name FROM boxwood.collections ORDER BY name").fetchall()
    return [name for (name,) in rows]


@contextmanager
def _other_version() -> Iterator[None]:
    """Tables that lack columns were made by another version; there is nothing to guess."""
    try:
        yield
    except (duckdb.BinderException, duckdb.CatalogException) as error:
        raise Error(
            "the tables of the schema boxwood in this database are those of another version of "
            f"Boxwood ({str(error).splitlines()[0]}): open it with that version, or make its "
            "collections again"
        ) from error


def record(cur: duckdb.DuckDBPyConnection, name: str, opened: bool = False) -> Record:
    """The record of a collection; `opened`: it was there before, so that there is a schema."""
    check_name(name)
    row = None
    if opened or exists(cur):
        with _other_version():  # two queries take less time to plan than their join
            if not opened:
                cur.execute("SELECT collection FROM boxwood.appended LIMIT 0").fetchall()
            row = one(cur, f"SELECT {_FIELDS} FROM boxwood.collections WHERE name = ?", [name])
            indexed = one(
                cur,
                "SELECT max(generation), max(checksum), current_database() FROM boxwood.indexes "
                "WHERE collection = ?",
                [name],
            )
    if row is None:
        others = names(cur)
        alike = next((other for other in others if other.lower() == name.lower()), None)
        hint = (
            f"did you mean {alike!r}?"
            if alike
            else (
                f"it has: {', '.join(others)}"
                if others
                else "it has none; Collection.create makes one"
            )
        )
        raise InputError(f"the database has no collection {name!r}; {hint}")
    assert indexed is not None
    known = Record(row[0], uuids.UUID(row[1]), *row[2:])
    return replace(known, indexed=indexed[0] or 0, checksum=indexed[1] or 0, database=indexed[2])


def records(cur: duckdb.DuckDBPyConnection) -> list[Record]:
    if not exists(cur):
        return []
    with _other_version():
        rows = cur.execute(f"{_RECORDS} ORDER BY name").fetchall()
    return [Record(row[0], uuids.UUID(row[1]), *row[2:]) for row in rows]


def insert(
    cur: duckdb.DuckDBPyConnection, new: Record, texts: list[str] | NDArray[np.float32] | None
) -> None:
    """Add a collection and its empty codes table; within the caller's transaction. `texts` are kept
    until the head is fitted."""
    blob: bytes | None
    if isinstance(texts, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, texts.astype("<f4"))
        blob = buffer.getvalue()
    else:
        blob = None if texts is None else json.dumps(texts).encode()
    cur.execute(
        f"INSERT INTO boxwood.collections ({_FIELDS}, texts, created) "
        f"VALUES ({', '.join('?' * 20)}, current_localtimestamp())",
        [new.name, str(new.uuid), new.generation, new.table, new.id_column, new.owns_table,
         new.encoder, new.encoder_fingerprint, new.head, new.quantizer, new.offset, new.scale,
         new.folder, new.fine_wanted, new.fine, new.fine_head, new.fine_offset, new.fine_scale,
         new.keep_embeddings, blob],
    )  # fmt: skip
    _create_codes(cur, new)


def _create_codes(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    columns = ", ".join(f"{column} UTINYINT NOT NULL" for column in COLUMNS)
    if of.fine:
        columns += f", {FINE} UTINYINT[{native.FINE_DIMS}] NOT NULL"
    cur.execute(
        f"CREATE TABLE {of.codes} (id BIGINT PRIMARY KEY, generation BIGINT NOT NULL, {columns})"
    )


def given_texts(
    cur: duckdb.DuckDBPyConnection, name: str
) -> list[str] | NDArray[np.float32] | None:
    """What `insert` was given besides the record, until `set_coding`."""
    row = one(cur, "SELECT texts FROM boxwood.collections WHERE name = ?", [name])
    blob = row[0] if row else None
    if blob is None:
        return None
    if blob.startswith(b"\x93NUMPY"):
        embeddings: NDArray[np.float32] = np.load(io.BytesIO(blob), allow_pickle=False)
        return embeddings
    return list(json.loads(blob))


def set_ready(cur: duckdb.DuckDBPyConnection, old: Record, codes: str, fine: str) -> Record:
    """Record what the ready codes of a collection that has none yet are called, and its fine codes
    or empty; within the caller's transaction."""
    return _set_codes(cur, replace(old, head="", quantizer=codes, fine=fine), anew=bool(fine))


def set_coding(
    cur: duckdb.DuckDBPyConnection, old: Record, coding: Coding, anew: bool = False
) -> Record:
    """Record how the codes of a collection are made; within the caller's transaction. The codes
    table is then empty: that of a collection without codes as it was, or, with `anew`, a new one.
    """
    head, quantizer, fine_head, fine_quantizer = coding
    store_head(cur, head)
    new = replace(
        old, head=head.fingerprint, quantizer=coding.fingerprint, offset=quantizer.offset,
        scale=quantizer.scale, fine=coding.fine_fingerprint, fine_head="", fine_offset=None,
        fine_scale=None,
    )  # fmt: skip
    if fine_head is not None and fine_quantizer is not None:
        store_head(cur, fine_head)
        new = replace(
            new, fine_head=fine_head.fingerprint, fine_offset=fine_quantizer.offset,
            fine_scale=fine_quantizer.scale,
        )  # fmt: skip
    new = _set_codes(cur, new, anew=anew or bool(new.fine))
    if new.keep_embeddings:
        cur.execute(
            f"CREATE TABLE IF NOT EXISTS {new.embeddings} "
            f"(id BIGINT PRIMARY KEY, embedding FLOAT[{head.width}] NOT NULL)"
        )
    if anew:
        remove_unused_heads(cur)
    return new


def _set_codes(cur: duckdb.DuckDBPyConnection, new: Record, anew: bool) -> Record:
    cur.execute(
        "UPDATE boxwood.collections SET head_fingerprint = ?, quantizer_fingerprint = ?, "
        "quantizer_offset = ?, quantizer_scale = ?, fine_fingerprint = ?, "
        "fine_head_fingerprint = ?, fine_quantizer_offset = ?, fine_quantizer_scale = ?, "
        "texts = NULL WHERE name = ?",
        [new.head, new.quantizer, new.offset, new.scale, new.fine, new.fine_head, new.fine_offset,
         new.fine_scale, new.name],
    )  # fmt: skip
    if anew:  # a column that no row may lack cannot be added to a table
        cur.execute(f"DROP TABLE {new.codes}")
        cur.execute("DELETE FROM boxwood.appended WHERE collection = ?", [new.name])
        _create_codes(cur, new)
    return new


def remove_unused_heads(cur: duckdb.DuckDBPyConnection) -> None:
    cur.execute(
        "DELETE FROM boxwood.heads WHERE fingerprint NOT IN "
        "(SELECT unnest([head_fingerprint, fine_head_fingerprint]) FROM boxwood.collections)"
    )


def raise_generation(cur: duckdb.DuckDBPyConnection, old: Record) -> Record:
    """The next generation, for what is written next; within the caller's transaction.

    All changes of a collection begin with this or `raise_known`, so that DuckDB refuses the later
    one of two that overlap. Both must be a plain UPDATE: one with RETURNING deletes the row of a
    table with a primary key and inserts it anew, and DuckDB does not see that this, or a DELETE,
    conflicts with an update in place.
    """
    cur.execute(
        "UPDATE boxwood.collections SET generation = generation + 1 WHERE name = ?", [old.name]
    )
    row = one(cur, "SELECT generation FROM boxwood.collections WHERE name = ?", [old.name])
    assert row is not None
    return replace(old, generation=row[0])


def raise_known(cur: duckdb.DuckDBPyConnection, known: Record) -> Record | None:
    """The same for the record of a generation that was committed, without reading it again; None,
    and nothing done, where the collection is of another generation now. Every change of a record,
    but for what it knows of the index, raises the generation."""
    row = one(
        cur,
        f"UPDATE boxwood.collections SET generation = {known.generation + 1} WHERE name = "
        f"{literal(known.name)} AND generation = {known.generation} AND uuid = '{known.uuid}'",
    )
    if row is None or row[0] != 1:
        return None
    return replace(known, generation=known.generation + 1)


def set_indexed(cur: duckdb.DuckDBPyConnection, of: Record, checksum: int) -> None:
    """Note that an index of this generation, with a manifest of this checksum, is on disk; within
    the caller's transaction."""
    cur.execute(
        "INSERT OR REPLACE INTO boxwood.indexes VALUES (?, ?, ?)",
        [of.name, of.generation, checksum],
    )
    cur.execute(
        "DELETE FROM boxwood.deleted WHERE collection = ? AND generation <= ?",
        [of.name, of.generation],
    )


def remove(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    """Remove a collection and what is kept of it; within the caller's transaction."""
    raise_generation(cur, of)  # or what others append meanwhile would not conflict with this
    cur.execute("DELETE FROM boxwood.collections WHERE name = ?", [of.name])
    for table in ("appended", "indexes", "deleted"):
        cur.execute(f"DELETE FROM boxwood.{table} WHERE collection = ?", [of.name])
    remove_texts(cur, of.name)
    remove_unused_heads(cur)
    cur.execute(f"DROP TABLE {of.codes}")
    cur.execute(f"DROP TABLE IF EXISTS {of.embeddings}")
    if of.table is not None and of.owns_table:
        cur.execute(f"DROP TABLE IF EXISTS {of.metadata}")


# --- heads, quantizers, encoders ------------------------------------------------------------------


def store_head(cur: duckdb.DuckDBPyConnection, head: Head) -> None:
    cur.execute(
        "INSERT OR IGNORE INTO boxwood.heads VALUES (?, ?, ?)",
        [head.fingerprint, head.kind, head.to_bytes()],
    )


def load_head(cur: duckdb.DuckDBPyConnection, fingerprint: str) -> Head | None:
    if not fingerprint:
        return None
    row = one(cur, "SELECT data FROM boxwood.heads WHERE fingerprint = ?", [fingerprint])
    if row is None:
        raise IndexMismatch(f"the head {fingerprint} is missing from boxwood.heads")
    return Head.from_bytes(row[0])


def load_coding(cur: duckdb.DuckDBPyConnection, of: Record) -> Coding | None:
    """None before the first embeddings, and for ready codes."""
    head = load_head(cur, of.head)
    if head is None or of.offset is None or of.scale is None:
        return None
    coding = Coding(head, Quantizer(of.offset, of.scale))
    if of.fine_offset is None or of.fine_scale is None:
        return coding
    return coding._replace(
        fine_head=load_head(cur, of.fine_head),
        fine_quantizer=Quantizer(of.fine_offset, of.fine_scale),
    )


_encoders: dict[str, Encoder] = {}
_encoders_lock = threading.Lock()


def open_encoder(name: str, fingerprint: str = "") -> Encoder:
    """The encoder of this name, loaded once in a process; refused where its weights are others
    than those of the fingerprint."""
    with _encoders_lock:
        encoder = _encoders.get(name)
        if encoder is None:
            encoder = Encoder.open(name)
            _encoders[name] = _encoders[encoder.name] = encoder
    if fingerprint and encoder.fingerprint != fingerprint:
        raise IndexMismatch(
            f"the encoder {name!r} has other weights (fingerprint {encoder.fingerprint}) than "
            f"those that made this collection ({fingerprint}): use the same ones, or make a new "
            "collection"
        )
    return encoder


def keep_encoder(encoder: Encoder, name: str | None = None) -> None:
    """Let `open_encoder` find an encoder that the caller has opened, by its name or another."""
    with _encoders_lock:
        _encoders[encoder.name if name is None else name] = encoder


# --- texts ----------------------------------------------------------------------------------------


def stored_texts(
    cur: duckdb.DuckDBPyConnection, of: Record, texts: Sequence[str]
) -> dict[str, tuple[Codes, Codes | None]]:
    """Code and fine code of those of the texts that are stored by the coding of now."""
    if not texts:
        return {}
    rows = cur.execute(
        "SELECT text, code, fine FROM boxwood.texts "
        "WHERE collection = ? AND quantizer_fingerprint = ? AND "
        + ("text = ?" if len(texts) == 1 else "text IN (SELECT unnest(?::VARCHAR[]))"),
        [of.name, of.quantizer, texts[0] if len(texts) == 1 else list(texts)],
    ).fetchall()
    return {
        text: (np.array(code, np.uint8), None if fine is None else np.array(fine, np.uint8))
        for text, code, fine in rows
    }


def stored_phrases(cur: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    """The stored phrases of a collection, sorted."""
    rows = cur.execute(
        "SELECT text FROM boxwood.texts WHERE collection = ? ORDER BY text", [name]
    ).fetchall()
    return [text for (text,) in rows]


def remove_texts(cur: duckdb.DuckDBPyConnection, name: str) -> None:
    cur.execute("DELETE FROM boxwood.texts WHERE collection = ?", [name])


def store_texts(
    cur: duckdb.DuckDBPyConnection,
    of: Record,
    texts: list[str],
    codes: Codes,
    fine: Codes | None,
) -> None:
    bytes_ = pa.list_(pa.uint8())
    rows = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "code": pa.array(codes.tolist(), bytes_),
            "fine": pa.nulls(len(texts), bytes_)
            if fine is None
            else pa.array(fine.tolist(), bytes_),
        }
    )
    with registered(cur, "boxwood_new_texts", rows):
        cur.execute(
            "INSERT OR REPLACE INTO boxwood.texts "
            "SELECT ?, text, code, fine, ? FROM boxwood_new_texts",
            [of.name, of.quantizer],
        )


class _Vectors:
    """Embeddings that were made lately, so that a phrase, or a picture, in many queries or many
    rows of one is embedded once. Those asked for least lately make room for new ones."""

    LIMIT = 8192  # of some 2 KiB

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, str, object], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        encoder: Encoder,
        kind: str,
        keys: Sequence[Hashable],
        make: Callable[[list[int]], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Embeddings (n, dims) for keys; `make` gives those of the places where it is asked."""
        at = [(encoder.fingerprint, kind, key) for key in keys]
        with self._lock:
            found = {key: self._rows[key] for key in at if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
        missing = {key: place for place, key in enumerate(at) if key not in found}
        if missing:
            made = make(list(missing.values()))
            found.update(zip(missing, made, strict=True))
            with self._lock:
                for key, row in zip(missing, made, strict=True):
                    self._rows[key] = row.copy()
                while len(self._rows) > self.LIMIT:
                    self._rows.popitem(last=False)
        return np.stack([found[key] for key in at])

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()


vectors = _Vectors()

SLOT = "{}"
"""In a template, the place of the text."""

_KEPT_AT_ONCE = 100
"""New phrases in a call, at most, that are stored for the shell: more are a column of a table, not
a search."""


class Phrase(NamedTuple):
    """What a search by words asks for: texts with weights, each put into templates."""

    texts: tuple[str, ...]
    weights: tuple[float, ...]
    templates: tuple[str, ...] = (SLOT,)

    @classmethod
    def of(
        cls,
        text: str | Sequence[str],
        weights: Sequence[float] | None = None,
        template: str | Sequence[str] | None = None,
    ) -> Phrase:
        """Checked. Raises InputError for what makes no sense."""
        texts = _strings(text, "text", "the text to search for must not be empty, but is")
        templates: tuple[str, ...] = (SLOT,)
        if template is not None:
            templates = _strings(template, "template", "a template must not be empty, but is")
            for one_ in templates:
                if SLOT not in one_:
                    raise InputError(
                        f"the template {one_!r} has no {SLOT}, the place of the text, as in "
                        f"'a photo of a {SLOT}'"
                    )
        if weights is None:
            return cls(texts, (1.0,) * len(texts), templates)
        given = [weights] if isinstance(weights, (int, float)) else list(weights)
        if len(given) != len(texts):
            raise InputError(f"{len(texts)} texts cannot go with {len(given)} weights")
        for weight in given:
            bad = isinstance(weight, (bool, str)) or weight is None
            if bad or not math.isfinite(weight) or abs(weight) > 1e6:
                raise InputError(f"a weight must be a number from -1e6 to 1e6, not {weight!r}")
        if not any(given):
            raise InputError("all weights are 0, so that nothing is left to search for")
        return cls(texts, tuple(float(weight) for weight in given), templates)

    @property
    def plain(self) -> str | None:
        """The one text that says the same; None where there is none."""
        if len(self.texts) > 1 or len(self.templates) > 1 or self.weights[0] <= 0:
            return None
        return self.filled()[0]

    def filled(self) -> list[str]:
        """Every text in every template, text by text."""
        return [form.replace(SLOT, text) for text in self.texts for form in self.templates]

    def embedding(self, coding: Coding, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The embedding (1, width) of the whole, out of those of `filled`: templates averaged as
        "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.)
        does it, then `Coding.blend`."""
        if self.plain is not None:
            return rows
        rows = rows.reshape(len(self.texts), len(self.templates), -1)
        return coding.blend(rows.mean(axis=1), self.weights)


def _strings(values: str | Sequence[str], what: str, empty: str) -> tuple[str, ...]:
    if isinstance(values, str):
        values = (values,)
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise InputError(f"{empty} {values!r}: pass a string, or a list of them")
    if not len(values):
        raise InputError(f"there is no {what}: the list is empty")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{empty} {value!r}")
    return tuple(values)


def phrase_codes(
    cur: duckdb.DuckDBPyConnection, name: str, phrases: Sequence[Phrase], begun: bool = False
) -> tuple[Codes, Codes | None, str]:
    """Codes (n, 32) of phrases, their fine codes (n, 128) where the collection has such, and the
    fingerprint of the codes.

    Single texts come from boxwood.texts where they are known. All others are embedded in one call
    of the collection's encoder, and single texts, a hundred at most, kept in boxwood.texts when the
    database can be written. `begun`: in a transaction of the caller's, where nothing is kept.
    """
    plain = [phrase.plain for phrase in phrases]
    with snapshot(cur, begun):
        of = record(cur, name)
        known = stored_texts(cur, of, [text for text in plain if text is not None])
        todo = [n for n, text in enumerate(plain) if text is None or text not in known]
        coding = _need_coding(cur, of) if todo else None
    codes = np.empty((len(phrases), native.DIMS), np.uint8)
    fine = np.empty((len(phrases), native.FINE_DIMS), np.uint8) if of.fine else None
    if coding is not None:
        encoder = _need_encoder(of)
        filled = {text: None for n in todo for text in phrases[n].filled()}
        texts = list(filled)
        rows = vectors.get(encoder, "text", texts, lambda at: encoder.texts([texts[n] for n in at]))
        place = {text: n for n, text in enumerate(texts)}
        whole = [
            phrases[n].embedding(coding, rows[[place[text] for text in phrases[n].filled()]])
            for n in todo
        ]
        made, made_fine = coding.texts(np.concatenate(whole))
        codes[todo] = made
        if fine is not None and made_fine is not None:
            fine[todo] = made_fine
        if not begun:
            _keep_texts(cur, of, [plain[n] for n in todo], made, made_fine)
    for n, text in enumerate(plain):
        if text in known:
            codes[n], finer = known[text]
            if fine is not None and finer is not None:
                fine[n] = finer
    return codes, fine, of.quantizer


def _keep_texts(
    cur: duckdb.DuckDBPyConnection,
    of: Record,
    texts: Sequence[str | None],
    codes: Codes,
    fine: Codes | None,
) -> None:
    new = {text: n for n, text in enumerate(texts) if text is not None}
    if not new or len(new) > _KEPT_AT_ONCE or database(cur).read_only:
        return
    at = list(new.values())
    with suppress(duckdb.TransactionException):  # somebody else stores it at this moment
        store_texts(cur, of, list(new), codes[at], None if fine is None else fine[at])


def image_codes(
    cur: duckdb.DuckDBPyConnection, name: str, images: Sequence[str | bytes]
) -> tuple[Codes, Codes | None, str]:
    """Codes of image files, by their paths or what they hold, as `phrase_codes` gives them. Each is
    decoded when its turn comes, a batch at a time, and what was embedded lately is not again."""
    with snapshot(cur):
        of = record(cur, name)
        coding = _need_coding(cur, of)
    encoder = _need_encoder(of)
    codes = np.empty((len(images), native.DIMS), np.uint8)
    fine = np.empty((len(images), native.FINE_DIMS), np.uint8) if of.fine else None
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        some = images[start : start + _IMAGES_AT_ONCE]
        files = [_ImageFile(cur, image) for image in some]

        def make(at: list[int], files: list[_ImageFile] = files) -> NDArray[np.float32]:
            return encoder.images([files[n].picture() for n in at])

        rows = vectors.get(encoder, "image", [file.digest for file in files], make)
        made, made_fine = coding.images(rows)
        codes[start : start + len(some)] = made
        if fine is not None and made_fine is not None:
            fine[start : start + len(some)] = made_fine
    return codes, fine, of.quantizer


_IMAGES_AT_ONCE = 64


class _ImageFile:
    """An image that SQL names. Paths are read by DuckDB, whose rules about files hold
    (`enable_external_access`, `allowed_directories`, `disabled_filesystems`)."""

    def __init__(self, cur: duckdb.DuckDBPyConnection, image: str | bytes) -> None:
        self._file = io.BytesIO(_content(cur, image) if isinstance(image, str) else image)
        self._file.name = image if isinstance(image, str) else "image"  # for errors
        self.digest = hashlib.sha256(self._file.getvalue()).digest()

    def picture(self) -> Any:
        return load_image(self._file)


def _content(cur: duckdb.DuckDBPyConnection, image: str) -> bytes:
    path = str(Path(image).expanduser())
    problem = InputError(f"there is no image file {image!r}")
    if "://" in image:
        raise problem
    try:
        row = one(cur, "SELECT content FROM read_blob(?)", [re.sub(r"([\[*?])", r"[\1]", path)])
    except duckdb.PermissionException as error:
        raise InputError(
            f"this database may not read {image!r}: pass what the file holds, a BLOB "
            f"({str(error).splitlines()[0]})"
        ) from error
    except duckdb.IOException as error:
        if not Path(path).is_file():
            raise problem from error
        raise InputError(f"cannot read {image!r}: {str(error).splitlines()[0]}") from error
    if row is None:
        raise problem
    return bytes(row[0])


@contextmanager
def snapshot(cur: duckdb.DuckDBPyConnection, begun: bool = False) -> Iterator[None]:
    """Let queries see one state of the database, whatever is committed meanwhile. `begun`: a
    transaction of the caller's does that already."""
    if begun:
        yield
        return
    cur.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(duckdb.Error):  # the error that has ended the transaction is the one to tell
            cur.execute("ROLLBACK")


def _need_coding(cur: duckdb.DuckDBPyConnection, of: Record) -> Coding:
    if of.encoder is None:
        raise InputError(
            f"the collection {of.name!r} has no encoder, so it cannot be searched by words or "
            "image files: create it with encoder=..., or search by embedding, by code or by example"
        )
    coding = load_coding(cur, of)
    if coding is None:
        raise InputError(
            f"the collection {of.name!r} holds no embeddings yet, so there is no head that words "
            "could be put through: add images first"
        )
    return coding


def _need_encoder(of: Record) -> Encoder:
    assert of.encoder is not None
    return open_encoder(of.encoder, of.encoder_fingerprint)
