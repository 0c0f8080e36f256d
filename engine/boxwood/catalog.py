"""The schema `boxwood` inside a DuckDB database: what Boxwood keeps of a collection there.

Functions here take a cursor of their own and leave it open. `docs/ARCHITECTURE.md`, "Truth and
index", says what each table is for.
"""

from __future__ import annotations

import atexit
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
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from boxwood import native
from boxwood.encode import Encoder, Head, Quantizer
from boxwood.errors import IndexMismatch, InputError, MissingDependency, ReadOnly

Codes = NDArray[np.uint8]

COLUMNS = [f"d{dim:02}" for dim in range(native.DIMS)]
GIVEN = "codes"
"""In place of a quantizer's fingerprint, in collections whose codes came ready-made."""

_FIELDS = (
    "name, uuid, generation, table_name, id_column, owns_table, encoder, encoder_fingerprint, "
    "head_fingerprint, quantizer_fingerprint, quantizer_offset, quantizer_scale, folder"
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

    @property
    def codes(self) -> str:
        """The codes table, as SQL."""
        return f"boxwood.{quoted(self.name + '_codes')}"

    @property
    def fingerprints(self) -> native.Fingerprints:
        return native.Fingerprints(self.encoder_fingerprint, self.head, self.quantizer)

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


def record(cur: duckdb.DuckDBPyConnection, name: str) -> Record:
    check_name(name)
    row = None
    if exists(cur):
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
        f"VALUES ({', '.join('?' * 14)}, current_localtimestamp())",
        [new.name, str(new.uuid), new.generation, new.table, new.id_column, new.owns_table,
         new.encoder, new.encoder_fingerprint, new.head, new.quantizer, new.offset, new.scale,
         new.folder, blob],
    )  # fmt: skip
    columns = ", ".join(f"{column} UTINYINT NOT NULL" for column in COLUMNS)
    cur.execute(f"CREATE TABLE {new.codes} (id BIGINT PRIMARY KEY, {columns})")


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
    cur: duckdb.DuckDBPyConnection,
    old: Record,
    encoder_fingerprint: str,
    head: Head | None,
    quantizer: Quantizer | None,
) -> Record:
    """Record how the collection's codes are made; within the caller's transaction."""
    if head is not None:
        store_head(cur, head)
    new = replace(
        old,
        encoder_fingerprint=encoder_fingerprint,
        head="" if head is None else head.fingerprint,
        quantizer=GIVEN if quantizer is None else quantizer.fingerprint,
        offset=None if quantizer is None else quantizer.offset,
        scale=None if quantizer is None else quantizer.scale,
    )
    cur.execute(
        "UPDATE boxwood.collections SET encoder_fingerprint = ?, head_fingerprint = ?, "
        "quantizer_fingerprint = ?, quantizer_offset = ?, quantizer_scale = ?, texts = NULL "
        "WHERE name = ?",
        [new.encoder_fingerprint, new.head, new.quantizer, new.offset, new.scale, new.name],
    )
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


def load_quantizer(of: Record) -> Quantizer | None:
    if of.offset is None or of.scale is None:
        return None
    return Quantizer(of.offset, of.scale)


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


def stored_text(cur: duckdb.DuckDBPyConnection, name: str, text: str) -> Codes | None:
    row = one(cur, "SELECT code FROM boxwood.texts WHERE collection = ? AND text = ?", [name, text])
    return None if row is None else np.array(row[0], np.uint8)


def store_texts(cur: duckdb.DuckDBPyConnection, name: str, texts: list[str], codes: Codes) -> None:
    rows = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "code": pa.array(codes.tolist(), pa.list_(pa.uint8())),
        }
    )
    with registered(cur, "boxwood_new_texts", rows):
        cur.execute(
            "INSERT OR IGNORE INTO boxwood.texts SELECT ?, text, code FROM boxwood_new_texts",
            [name],
        )


def text_code(cur: duckdb.DuckDBPyConnection, name: str, text: str) -> Codes:
    """The code of a text, shape (32,): from boxwood.texts where it is known, else by the
    collection's encoder, and then kept there when the database can be written."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the text to search for must not be empty, but is {text!r}")
    of = record(cur, name)
    known = stored_text(cur, name, text)
    if known is not None:
        return known
    quantizer = load_quantizer(of)
    if of.encoder is None:
        raise InputError(
            f"the collection {name!r} has no encoder, so it cannot be searched by words: create it "
            "with encoder=..., or search by embedding, by code or by example"
        )
    if quantizer is None:
        raise InputError(
            f"the collection {name!r} holds no embeddings yet, so there is no head that words "
            "could be put through: add images first"
        )
    encoder = open_encoder(of.encoder, of.encoder_fingerprint)
    head = load_head(cur, of.head)
    assert head is not None
    code: Codes = quantizer.encode(head.texts(encoder.texts([text])))[0]
    if not database(cur).read_only:
        with suppress(duckdb.TransactionException):  # somebody else stores it at this moment
            store_texts(cur, name, [text], code[None])
    return code


def row_count(cur: duckdb.DuckDBPyConnection, of: Record) -> int:
    row: Any = one(cur, f"SELECT count(*) FROM {of.codes}")
    return int(row[0])
