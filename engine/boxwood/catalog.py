"""The schema `boxwood` inside a DuckDB database: what Boxwood keeps of a collection there.

Functions here take a cursor of their own and leave it open. `docs/ARCHITECTURE.md`, "Truth and
index", says what each table is for.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import threading
import uuid as uuids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from boxwood import native
from boxwood.encode import Encoder, Head, Quantizer, map_images, map_texts
from boxwood.errors import Error, IndexMismatch, InputError, MissingDependency, ReadOnly

Codes = NDArray[np.uint8]

COLUMNS = [f"d{dim:02}" for dim in range(native.DIMS)]
FINE = "fine"
"""The codes table's column of fine codes, in collections that have them."""
GIVEN = "codes"
"""In place of a quantizer's fingerprint, in collections whose codes came ready-made; and in place
of that of fine codes."""

_FIELDS = (
    "name, uuid, generation, table_name, id_column, owns_table, encoder, encoder_fingerprint, "
    "head_fingerprint, quantizer_fingerprint, quantizer_offset, quantizer_scale, folder, fine, "
    "fine_fingerprint, fine_head_fingerprint, fine_quantizer_offset, fine_quantizer_scale"
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


class Rows(NamedTuple):
    """Images as the codes table and the index hold them."""

    ids: native.Ids
    codes: Codes
    """(n, 32)"""
    fine: Codes | None
    """(n, 128); None in collections without fine codes."""


class Coding(NamedTuple):
    """How embeddings become codes, and fine codes where the last two are not None."""

    head: Head
    quantizer: Quantizer
    fine_head: Head | None = None
    fine_quantizer: Quantizer | None = None

    @property
    def fine_fingerprint(self) -> str:
        if self.fine_head is None or self.fine_quantizer is None:
            return ""
        both = f"{self.fine_head.fingerprint} {self.fine_quantizer.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]

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

    @property
    def codes(self) -> str:
        """The codes table, as SQL."""
        return f"boxwood.{quoted(self.name + '_codes')}"

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
    except duckdb.BinderException as error:
        raise Error(
            "the tables of the schema boxwood in this database are those of another version of "
            f"Boxwood ({str(error).splitlines()[0]}): open it with that version, or make its "
            "collections again"
        ) from error


def record(cur: duckdb.DuckDBPyConnection, name: str) -> Record:
    check_name(name)
    row = None
    if exists(cur):
        with _other_version():
            row = one(cur, f"SELECT {_FIELDS} FROM boxwood.collections WHERE name = ?", [name])
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
    return Record(row[0], uuids.UUID(row[1]), *row[2:])


def records(cur: duckdb.DuckDBPyConnection) -> list[Record]:
    if not exists(cur):
        return []
    with _other_version():
        rows = cur.execute(f"SELECT {_FIELDS} FROM boxwood.collections ORDER BY name").fetchall()
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
        f"VALUES ({', '.join('?' * 19)}, current_localtimestamp())",
        [new.name, str(new.uuid), new.generation, new.table, new.id_column, new.owns_table,
         new.encoder, new.encoder_fingerprint, new.head, new.quantizer, new.offset, new.scale,
         new.folder, new.fine_wanted, new.fine, new.fine_head, new.fine_offset, new.fine_scale,
         blob],
    )  # fmt: skip
    _create_codes(cur, new)


def _create_codes(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    columns = ", ".join(f"{column} UTINYINT NOT NULL" for column in COLUMNS)
    if of.fine:
        columns += f", {FINE} UTINYINT[{native.FINE_DIMS}] NOT NULL"
    cur.execute(f"CREATE TABLE {of.codes} (id BIGINT PRIMARY KEY, {columns})")


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


def set_coding(
    cur: duckdb.DuckDBPyConnection, old: Record, coding: Coding | None, fine: bool = False
) -> Record:
    """Record how the codes of a collection that has none yet are made; within the caller's
    transaction. Without `coding` they come ready-made, and so do fine codes if `fine`."""
    if coding is None:
        new = replace(old, head="", quantizer=GIVEN, fine=GIVEN if fine else "")
    else:
        head, quantizer, fine_head, fine_quantizer = coding
        store_head(cur, head)
        new = replace(
            old, head=head.fingerprint, quantizer=quantizer.fingerprint,
            offset=quantizer.offset, scale=quantizer.scale, fine=coding.fine_fingerprint,
        )  # fmt: skip
        if fine_head is not None and fine_quantizer is not None:
            store_head(cur, fine_head)
            new = replace(
                new, fine_head=fine_head.fingerprint, fine_offset=fine_quantizer.offset,
                fine_scale=fine_quantizer.scale,
            )  # fmt: skip
    cur.execute(
        "UPDATE boxwood.collections SET head_fingerprint = ?, quantizer_fingerprint = ?, "
        "quantizer_offset = ?, quantizer_scale = ?, fine_fingerprint = ?, "
        "fine_head_fingerprint = ?, fine_quantizer_offset = ?, fine_quantizer_scale = ?, "
        "texts = NULL WHERE name = ?",
        [new.head, new.quantizer, new.offset, new.scale, new.fine, new.fine_head, new.fine_offset,
         new.fine_scale, new.name],
    )  # fmt: skip
    if new.fine:  # a column that no row may lack cannot be added to a table
        cur.execute(f"DROP TABLE {new.codes}")
        _create_codes(cur, new)
    return new


def raise_generation(cur: duckdb.DuckDBPyConnection, old: Record) -> Record:
    """The next generation; within the caller's transaction."""
    cur.execute(
        "UPDATE boxwood.collections SET generation = generation + 1 WHERE name = ?", [old.name]
    )
    row = one(cur, "SELECT generation FROM boxwood.collections WHERE name = ?", [old.name])
    assert row is not None
    return replace(old, generation=row[0])


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
        if name not in _encoders:
            _encoders[name] = Encoder.open(name)
        encoder = _encoders[name]
    if fingerprint and encoder.fingerprint != fingerprint:
        raise IndexMismatch(
            f"the encoder {name!r} has other weights ({encoder.fingerprint}) than those that made "
            f"this collection ({fingerprint}): use the same ones, or make a new collection"
        )
    return encoder


def keep_encoder(encoder: Encoder) -> None:
    """Let `open_encoder` find an encoder that the caller has opened."""
    with _encoders_lock:
        _encoders[encoder.name] = encoder


# --- texts ----------------------------------------------------------------------------------------


def stored_text(
    cur: duckdb.DuckDBPyConnection, name: str, text: str
) -> tuple[Codes, Codes | None] | None:
    row = one(
        cur, "SELECT code, fine FROM boxwood.texts WHERE collection = ? AND text = ?", [name, text]
    )
    if row is None:
        return None
    return np.array(row[0], np.uint8), None if row[1] is None else np.array(row[1], np.uint8)


def store_texts(
    cur: duckdb.DuckDBPyConnection,
    name: str,
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
            "INSERT OR IGNORE INTO boxwood.texts SELECT ?, text, code, fine FROM boxwood_new_texts",
            [name],
        )


def text_code(cur: duckdb.DuckDBPyConnection, name: str, text: str) -> Codes:
    """The code of a text, shape (32,), as `text_codes` finds it."""
    return text_codes(cur, name, text)[0]


def text_codes(cur: duckdb.DuckDBPyConnection, name: str, text: str) -> tuple[Codes, Codes | None]:
    """The code of a text, shape (32,), and its fine code (128,) where the collection has such: from
    boxwood.texts where it is known, else by the collection's encoder, and then kept there when the
    database can be written."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the text to search for must not be empty, but is {text!r}")
    of = record(cur, name)
    known = stored_text(cur, name, text)
    if known is not None:
        return known
    coding = load_coding(cur, of)
    if of.encoder is None:
        raise InputError(
            f"the collection {name!r} has no encoder, so it cannot be searched by words: create it "
            "with encoder=..., or search by embedding, by code or by example"
        )
    if coding is None:
        raise InputError(
            f"the collection {name!r} holds no embeddings yet, so there is no head that words "
            "could be put through: add images first"
        )
    encoder = open_encoder(of.encoder, of.encoder_fingerprint)
    codes, fine = coding.texts(encoder.texts([text]))
    if not database(cur).read_only:
        with suppress(duckdb.TransactionException):  # somebody else stores it at this moment
            store_texts(cur, name, [text], codes, fine)
    return codes[0], None if fine is None else fine[0]


def row_count(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    row: Any = one(cur, f"SELECT count(*) FROM {of.codes}")
    return int(row[0])
