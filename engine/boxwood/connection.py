"""DuckDB connections with Boxwood loaded on them."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from boxwood import catalog, native
from boxwood.catalog import Codes
from boxwood.errors import DatabaseLocked, Error, InputError, StorageError

__all__ = ["connect", "load"]

# Else DuckDB 2.0 makes files that the shell of 1.5 cannot read.
_SETTINGS = {"storage_compatibility_version": "v1.5.0"}


def connect(
    database: str | os.PathLike[str] = ":memory:",
    *,
    read_only: bool = False,
    config: Mapping[str, Any] | None = None,
) -> duckdb.DuckDBPyConnection:
    """Open a database as ``duckdb.connect`` does, with Boxwood's functions and macros on it.

    The connection is DuckDB's own; `load` prepares its cursors. Indexes lie beside the file, in
    ``<database>.boxwood``; those of an in-memory database in a temporary folder.
    """
    settings = {**_SETTINGS, **(config or {}), "allow_unsigned_extensions": "true"}
    name = os.fspath(database)
    try:
        con = duckdb.connect(name, read_only=read_only, config=settings)
    except duckdb.IOException as error:
        message = str(error)
        if "Could not set lock" in message:
            raise DatabaseLocked(
                f"{name} is open in another process, which may write to it: close it there, or "
                f"wait. ({_first_line(error)})"
            ) from error
        if read_only and not Path(name).exists():
            raise StorageError(
                f"there is no database {name}; connect without read_only=True to make one"
            ) from error
        raise StorageError(f"cannot open {name}: {_first_line(error)}") from error
    except duckdb.Error as error:
        if "different configuration" in str(error):
            raise InputError(
                f"{name} is open in this process already, with another configuration: use that "
                "connection's cursor(), or open it by boxwood.connect there too"
            ) from error
        raise
    try:
        return load(con)
    except BaseException:
        con.close()
        raise


def load(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Prepare a connection or cursor that somebody else has opened, and return it.

    Loads the extension, names the collections' indexes by `name_indexes`, registers what is behind
    ``clip_text`` and ``clip_image``, and creates the macros as temporary ones. Nothing is written.
    The database must have been opened with ``allow_unsigned_extensions``. Loading twice does no
    harm.
    """
    _load_extension(con)
    _register(con)
    con.execute("SET VARIABLE boxwood_index = MAP {}::MAP(VARCHAR, VARCHAR)")
    con.execute("SET VARIABLE boxwood_rows = MAP {}::MAP(VARCHAR, VARCHAR)")
    con.execute("SET VARIABLE boxwood_names = 'none'")
    con.execute(catalog.sql_file("macros.sql"))
    con.execute(catalog.sql_file("encoder.sql"))
    name_indexes(con)
    return con


def need_functions(con: duckdb.DuckDBPyConnection) -> None:
    """Load the extension into the connection's database, unless it is there."""
    try:
        con.execute("SELECT boxwood_int64s(NULL)").fetchall()
    except duckdb.CatalogException:
        _load_extension(con)


def _load_extension(con: duckdb.DuckDBPyConnection) -> None:
    with _usable():
        allowed = _unsigned_allowed(con)
    if not allowed:
        raise InputError(
            "this connection does not take unsigned extensions: open the database by "
            "boxwood.connect(...), or by duckdb.connect(..., "
            "config={'allow_unsigned_extensions': 'true'})"
        )
    try:
        con.execute(f"LOAD {catalog.literal(native.extension_path())}")
    except duckdb.Error as error:
        raise Error(
            f"DuckDB {duckdb.__version__} cannot load {native.extension_path()}: "
            f"{_first_line(error)}. Boxwood works with DuckDB 1.5 and 2.0"
        ) from error


def name_indexes(con: duckdb.DuckDBPyConnection) -> None:
    """Tell a connection's macros of the collections that its transaction sees now, by the variables
    that ``macros.sql`` names."""
    with _usable():
        row = catalog.one(con, "SELECT getvariable('boxwood_index') IS NULL")
        if row is not None and row[0]:
            return  # a cursor without macros
        where = catalog.database(con)
        known = catalog.records(con)
    paths = {of.name: str(of.index_path(where)) for of in known}
    literal = catalog.literal
    rows = [
        "boxwood_rows_sql(current_database(), "
        f"{literal(of.name)}, {literal(of.uuid)}, {literal(paths[of.name])}, "
        f"{'NULL' if of.table is None else literal(of.table)}, {literal(of.id_column)}, "
        f"{bool(of.fine)})"
        for of in known
    ]
    with _usable():
        _set_map(con, "boxwood_index", paths, map(literal, paths.values()))
        _set_map(con, "boxwood_rows", paths, rows)
        con.execute(f"SET VARIABLE boxwood_names = {literal(', '.join(sorted(paths)) or 'none')}")
        con.execute("SET VARIABLE boxwood_database = current_database()")


def _set_map(
    con: duckdb.DuckDBPyConnection, variable: str, keys: Iterable[str], values: Iterable[str]
) -> None:
    """`values` are expressions for strings."""
    parts = (", ".join(side) for side in (map(catalog.literal, keys), values))
    lists = ", ".join(f"[{part}]::VARCHAR[]" for part in parts)
    con.execute(f"SET VARIABLE {variable} = MAP({lists})")


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except duckdb.TransactionException as error:
        raise InputError(
            "the connection is in a transaction that has failed: ROLLBACK it first"
        ) from error


def _unsigned_allowed(con: duckdb.DuckDBPyConnection) -> bool:
    row = catalog.one(con, "SELECT current_setting('allow_unsigned_extensions')")
    return row is not None and str(row[0]).lower() == "true"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# --- clip_text, clip_image ------------------------------------------------------------------------
#
# A function belongs to a database instance, and lives as long as that. It must not hold a
# connection, which would keep the instance, and its lock on the file, alive after the user has
# closed every connection. So it holds weak references to the connections that were loaded, and
# takes a cursor of one of them for as long as a call lasts. `boxwood_instance()` tells a later
# load() which instance it has come to.


class _Instance:
    def __init__(self) -> None:
        self._connections: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        self._lock = threading.Lock()

    def add(self, con: duckdb.DuckDBPyConnection) -> None:
        with self._lock:
            self._connections.add(con)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            connections = list(self._connections)
        for con in connections:
            try:
                return con.cursor()
            except duckdb.ConnectionException:  # closed
                with self._lock:
                    self._connections.discard(con)
        raise Error(
            "clip_text and clip_image have no connection to look things up with: call "
            "boxwood.load(con)"
        )

    def clip_text(
        self,
        collections: pa.Array,
        texts: pa.Array,
        weights: pa.Array,
        templates: pa.Array,
        fine: pa.Array,
    ) -> pa.Array:
        """``boxwood_clip_text(VARCHAR, VARCHAR[], DOUBLE[], VARCHAR[], BOOLEAN)``: codes, or fine
        codes, of a chunk of rows. NULL where collection or texts are, or one of the texts is."""
        values = zip(*(column.to_pylist() for column in (texts, weights, templates)), strict=True)
        asked = [
            None if said is None or None in said else catalog.Phrase.of(said, weight, template)
            for said, weight, template in values
        ]
        return self._codes(collections, asked, fine, catalog.phrase_codes)

    def clip_image(
        self, collections: pa.Array, paths: pa.Array, files: pa.Array, fine: pa.Array
    ) -> pa.Array:
        """``boxwood_clip_image(VARCHAR, VARCHAR, BLOB, BOOLEAN)``: the same of image files, by
        their path or what they hold."""
        asked = [
            path if file is None else file
            for path, file in zip(paths.to_pylist(), files.to_pylist(), strict=True)
        ]
        return self._codes(collections, asked, fine, catalog.image_codes)

    def _codes(
        self,
        collections: pa.Array,
        asked: Sequence[Any],
        fine: pa.Array,
        encode: Callable[..., tuple[Codes, Codes | None, str]],
    ) -> pa.Array:
        """What `encode` makes of all that is asked of a collection in one call of it."""
        wanted: dict[str, dict[Any, list[int]]] = {}
        for row, (name, what) in enumerate(zip(collections.to_pylist(), asked, strict=True)):
            if name is not None and what is not None:
                wanted.setdefault(name, {}).setdefault(what, []).append(row)
        finer = fine.to_pylist()
        out: list[list[int] | None] = [None] * len(asked)
        for name, rows in wanted.items():
            with self.cursor() as cur:
                codes, fine_codes, _ = encode(cur, name, list(rows))
            for place, at in enumerate(rows.values()):
                for row in at:
                    if not finer[row]:
                        out[row] = codes[place].tolist()
                    elif fine_codes is not None:
                        out[row] = fine_codes[place].tolist()
        return pa.array(out, pa.list_(pa.uint8()))


_instances: weakref.WeakValueDictionary[int, _Instance] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
_registering = threading.Lock()


def _register(con: duckdb.DuckDBPyConnection) -> None:
    with _registering:
        try:
            row = catalog.one(con, "SELECT boxwood_instance()")
        except duckdb.CatalogException:
            instance, number = _Instance(), next(_numbers)
            _instances[number] = instance
            for name, function, kinds in (
                ("boxwood_clip_text", instance.clip_text,
                 ["VARCHAR", "VARCHAR[]", "DOUBLE[]", "VARCHAR[]", "BOOLEAN"]),
                ("boxwood_clip_image", instance.clip_image,
                 ["VARCHAR", "VARCHAR", "BLOB", "BOOLEAN"]),
            ):  # fmt: skip
                con.create_function(  # type: ignore[call-overload]
                    name, function, kinds, "UTINYINT[]", type="arrow", null_handling="special"
                )
            con.create_function(
                "boxwood_instance", lambda: number, [], "BIGINT", side_effects=False
            )
        else:
            assert row is not None
            instance = _instances[row[0]]
        instance.add(con)
