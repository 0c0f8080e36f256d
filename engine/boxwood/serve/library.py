"""The open database: a cursor for each request, threads for the work, and what stops it."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike, cpu_count, fspath
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

import anyio
import anyio.to_thread
import duckdb
from fastapi import Depends, Request

from boxwood import catalog, errors
from boxwood.catalog import Record, quoted
from boxwood.collection import Collection
from boxwood.connection import connect
from boxwood.errors import Cancelled, Error, InputError
from boxwood.serve.schemas import Column, Kind

__all__ = ["Cursor", "Library", "Refusal", "RequestCursor", "Table"]

T = TypeVar("T")

_POLL = 0.05  # seconds between looks whether the client is still there
_FACET_VALUES = 1_000
_FACET_SECONDS = 60.0  # for so long it is taken for known which columns have few values

_NUMBERS = frozenset(
    ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER",
     "UBIGINT", "UHUGEINT", "FLOAT", "DOUBLE")
)  # fmt: skip
_URI_SECONDS = 20.0  # for so long it is taken for known where an image is
_URIS = 10_000
WHOLE = _NUMBERS - {"FLOAT", "DOUBLE"}
_TIMES = ("DATE", "TIMESTAMP")


class Refusal(Error):
    """An answer that is not a success: its HTTP status, its kind for programs, and its message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


@dataclass(frozen=True)
class Table:
    """A collection's metadata table."""

    sql: str
    """In full, for queries."""
    shown: str
    """For people's SQL."""
    key: str
    """The column of ids, by its plain name."""
    whole: bool
    """Whether that is of whole numbers, as it was when the collection was made."""
    single: bool
    """Whether no id can have several rows: it is the primary key of Boxwood's own table."""
    columns: list[Column]
    """All others."""

    @property
    def id(self) -> str:
        """The id of a row of the table as ``m``."""
        name = f"m.{quoted(self.key)}"
        return name if self.whole else f"TRY_CAST({name} AS BIGINT)"

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise Refusal(
            400,
            "input",
            f"there is no column {name!r}; there are {', '.join(c.name for c in self.columns)}",
        )

    @property
    def uri(self) -> bool:
        """Whether rows say where their image is, in a column `uri`."""
        return any(column.name == "uri" and column.kind == "text" for column in self.columns)


def kind_of(type_: str) -> Kind:
    """What a column of a DuckDB type is to people."""
    if type_.endswith("]"):  # a list
        return "other"
    if type_ in _NUMBERS or type_.startswith("DECIMAL("):
        return "number"
    if type_ == "BOOLEAN":
        return "bool"
    if type_.startswith(_TIMES):
        return "time"
    if type_ in ("VARCHAR", "UUID") or type_.startswith("ENUM("):
        return "text"
    return "other"


class _Tracked:
    """A connection whose cursors are remembered while they are open, so that whatever runs on them
    can be interrupted. It stands in for the connection of a Collection."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self._con = con
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._lock = threading.Lock()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        cursor = self._con.cursor()
        with self._lock:
            self._cursors = [*self._cursors[-16:], cursor]
        return cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def interrupt(self) -> None:
        with self._lock:
            cursors = [self._con, *self._cursors]
        for cursor in cursors:
            with suppress(duckdb.Error):  # closed
                cursor.interrupt()


class RequestCursor:
    """What one request has of the database. Only one thread at a time may use it."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.stopped = threading.Event()
        self._tracked: _Tracked | None = None
        self._records: dict[str, Record] = {}
        self._tables: dict[str, Table | None] = {}

    @property
    def con(self) -> duckdb.DuckDBPyConnection:
        """A cursor of this request's own, made when it is first asked for. It has the functions of
        the extension; `boxwood.load` brings the macros."""
        if self._tracked is None:
            self._tracked = _Tracked(self.library.con.cursor())
        if self.stopped.is_set():
            raise Cancelled("nobody waits for this any more")
        return cast(duckdb.DuckDBPyConnection, self._tracked)

    def collection(self, name: str) -> Collection:
        """The open collection, working on this cursor. Refused with 404 where there is none."""
        return self.library.collection(self, name)

    def record(self, name: str) -> Record:
        """The row of the catalogue. Refused with 404 where there is none."""
        if name not in self._records:
            try:
                self._records[name] = catalog.record(self.con, name)
            except InputError as error:
                raise Refusal(404, "collection", str(error)) from error
        return self._records[name]

    def table(self, name: str) -> Table | None:
        """The collection's metadata table; None where it has none."""
        if name not in self._tables:
            self._tables[name] = self.library.table(self, self.record(name))
        return self._tables[name]

    def uri(self, name: str, number: int, *, recall: bool = True) -> str | None:
        """Where the image of an id lies; None where that is not known. Refused with 404 where the
        collection has no such id. `recall`: it may be what was remembered a moment ago."""
        known = self.library.recalled(self.record(name).uuid, number) if recall else None
        if known is not None and self._there(self.record(name), number):
            return known
        table = self.table(name)
        if table is None or not table.uri:
            self.has(name, number)
            return None
        found = self.con.execute(
            f'SELECT m."uri"::VARCHAR FROM {table.sql} m WHERE {table.id} = $id AND EXISTS '
            f"(FROM {self.record(name).ids} c WHERE c.id = $id)",
            {"id": number},
        ).fetchall()
        if not found:
            raise Refusal(404, "image", f"the collection {name!r} has no id {number}")
        return None if found[0][0] is None else str(found[0][0])

    def _there(self, record: Record, number: int) -> bool:
        """Whether an image that was there is there still, with its metadata."""
        try:
            row = catalog.one(
                self.con,
                f"SELECT EXISTS (FROM {record.metadata} m WHERE m.{quoted(record.id_column)} = "
                f"$id) AND EXISTS (FROM {record.ids} c WHERE c.id = $id)",
                {"id": number},
            )
        except (duckdb.CatalogException, duckdb.BinderException, duckdb.ConversionException):
            return False  # no such table any more, or ids that are text: to be asked in full
        return row is not None and bool(row[0])

    def has(self, name: str, number: int) -> None:
        """Refused with 404 where the collection has no such id."""
        try:
            self.collection(name).codes([number])
        except InputError as error:
            raise Refusal(404, "image", f"the collection {name!r} has no id {number}") from error

    def interrupt(self) -> None:
        """Stop what runs; from any thread. To be repeated until it has stopped: DuckDB forgets an
        interrupt that comes between two statements."""
        self.stopped.set()
        if self._tracked is not None:
            self._tracked.interrupt()

    def close(self) -> None:
        if self._tracked is not None:
            with suppress(duckdb.Error):
                self._tracked._con.close()


class Library:
    """A database and its collections, for the whole life of the app."""

    def __init__(self, database: str | PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(fspath(database))
        self.memory = fspath(database) == ":memory:"
        self.con = connect(database, read_only=read_only)
        self.read_only = catalog.database(self.con).read_only
        cores = cpu_count() or 1
        self._limiter = anyio.CapacityLimiter(2 * cores)
        self._training = anyio.CapacityLimiter(cores)
        self.ending = False
        self._active: set[RequestCursor] = set()
        self._open: dict[str, tuple[UUID, Collection]] = {}
        self._opening = threading.Lock()
        self._facets: dict[tuple[str, ...], tuple[float, frozenset[str]]] = {}
        self._uris: OrderedDict[tuple[UUID, int], tuple[float, str]] = OrderedDict()
        self._recalling = threading.Lock()

    def remember(self, of: UUID, uris: Iterable[tuple[int, str | None]]) -> None:
        """Keep for a moment where images of a collection are: a page of results is followed by as
        many requests for their pictures."""
        until = time.monotonic() + _URI_SECONDS
        with self._recalling:
            for number, uri in uris:
                if uri:
                    self._uris[of, number] = until, uri
                    self._uris.move_to_end((of, number))
            while len(self._uris) > _URIS:
                self._uris.popitem(last=False)

    def recalled(self, of: UUID, number: int) -> str | None:
        """What was remembered of an image; None: nothing."""
        with self._recalling:
            until, uri = self._uris.get((of, number), (0.0, ""))
        return uri if until > time.monotonic() else None

    def warm(self) -> None:
        """Load the encoders of the collections, which takes seconds, before anybody waits.
        What goes wrong here the first search by words tells."""
        with suppress(Exception):
            with self.con.cursor() as cur:
                known = catalog.records(cur)
            for encoder, fingerprint in {(of.encoder, of.encoder_fingerprint) for of in known}:
                if encoder:
                    with suppress(Exception):
                        catalog.open_encoder(encoder, fingerprint).texts(["a picture"])

    def stop(self) -> None:
        """Stop what runs and what comes, with Cancelled; from any thread. It takes a moment."""
        self.ending = True

    def close(self) -> None:
        """Stop what runs, and let go of the database; a second time does nothing."""
        self.stop()
        for cursor in list(self._active):
            cursor.interrupt()
        # Nothing refers to it any more: DuckDB complains of connections that are left at the end of
        # Python, where the app may still be in somebody's hands.
        self._open.clear()
        con = self.__dict__.pop("con", None)
        if con is not None:
            con.close()

    async def run(
        self, request: Request, function: Callable[[], T], *, training: bool = False
    ) -> T:
        """`function()` in a thread. When the client goes away meanwhile, what runs on the request's
        cursor, or in the core, is stopped, and what waits for a thread is dropped.

        training: it may take seconds. Such work waits for threads of its own, one a core, so that
            everything else never waits for it.
        """
        cursor: RequestCursor | None = getattr(request.state, "cursor", None)
        outcome: list[T] = []
        failure: list[BaseException] = []

        begun = threading.Event()

        def work() -> None:
            begun.set()
            try:
                if cursor is not None:
                    errors.stopping.set(cursor.stopped)
                    errors.check_stopped()
                outcome.append(function())
            except BaseException as error:
                # An interrupt may look like Ctrl-C, which never comes to this thread.
                failure.append(error)

        async def watch() -> None:
            while True:
                await anyio.sleep(_POLL)
                if cursor is not None and (self.ending or await request.is_disconnected()):
                    cursor.interrupt()  # sets flags, no more
                    if not begun.is_set():
                        # Ends the wait for a thread; one that has just begun is waited for.
                        group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                limiter = self._training if training else self._limiter
                await anyio.to_thread.run_sync(work, limiter=limiter)
            finally:
                group.cancel_scope.cancel()
        if outcome:
            return outcome[0]
        error = failure[0] if failure else Cancelled("nobody waits for this any more")
        stopped = cursor is not None and cursor.stopped.is_set()
        if stopped and isinstance(error, (Cancelled, duckdb.Error, KeyboardInterrupt)):
            if self.ending:
                raise Cancelled("the server ends") from error
            raise Refusal(499, "cancelled", "the client went away") from error
        if isinstance(error, KeyboardInterrupt):
            raise Cancelled("the work was interrupted") from error
        raise error

    def collection(self, cursor: RequestCursor, name: str) -> Collection:
        record = cursor.record(name)
        kept = self._open.get(name)
        if kept is None or kept[0] != record.uuid:
            with self._opening:
                kept = self._open.get(name)
                if kept is None or kept[0] != record.uuid:
                    kept = record.uuid, Collection.open(self.con.cursor(), name)
                    self._open[name] = kept
        mine = copy.copy(kept[1])
        mine.con = cursor.con
        return mine

    def table(self, cursor: RequestCursor, record: Record) -> Table | None:
        if record.table is None or not catalog.table_exists(cursor.con, record.place):
            return None
        described = cursor.con.execute(f"DESCRIBE FROM {record.metadata}").fetchall()
        types = {str(row[0]): str(row[1]) for row in described}
        keys = [str(row[0]) for row in described if row[3] == "PRI"]
        whole = types.pop(record.id_column, "") in WHOLE
        columns = list(types.items())
        texts = [name for name, type_ in columns if kind_of(type_) == "text" and name != "uri"]
        few = self._few(cursor, record, texts)
        shown = record.table if "." in record.table else f"main.{record.table}"
        return Table(
            record.metadata,
            catalog.table_name(shown),
            record.id_column,
            whole,
            whole and record.owns_table and keys == [record.id_column],
            [
                Column(
                    name=name,
                    type=type_ if len(type_) < 200 else type_[:199] + "…",
                    kind=kind_of(type_),
                    facet=kind_of(type_) in ("bool", "number", "time") or name in few,
                )
                for name, type_ in columns
            ],
        )

    def _few(self, cursor: RequestCursor, record: Record, texts: Sequence[str]) -> frozenset[str]:
        """Those of the columns that have few values, and these often enough to be counted."""
        key = (str(record.uuid), record.metadata, *texts)
        kept = self._facets.get(key)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        few: list[str] = []
        if texts:
            counts = ", ".join(
                f"approx_count_distinct({quoted(text)}), count({quoted(text)})" for text in texts
            )
            row = catalog.one(cursor.con, f"SELECT {counts} FROM {record.metadata}")
            assert row is not None
            for text, distinct, count in zip(texts, row[::2], row[1::2], strict=True):
                if 2 <= distinct <= _FACET_VALUES and 2 * distinct <= count:
                    few.append(text)
        if len(self._facets) > 1_000:
            self._facets.clear()
        self._facets[key] = time.monotonic() + _FACET_SECONDS, frozenset(few)
        return frozenset(few)


async def _cursor(request: Request) -> AsyncIterator[RequestCursor]:
    library: Library = request.app.state.library
    cursor = RequestCursor(library)
    request.state.cursor = cursor
    library._active.add(cursor)
    try:
        yield cursor
    finally:
        library._active.discard(cursor)
        cursor.close()


Cursor = Annotated[RequestCursor, Depends(_cursor)]
"""A parameter of a route: the request's own RequestCursor, closed when the answer is made."""
