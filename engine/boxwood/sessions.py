"""Sessions: what somebody does in the page, kept in the database from one visit to the next.

A session has a random id, which is all that opens it, and a revision, which every change raises and
must name: two windows cannot write over each other unseen. Its state is JSON that the page knows.

Functions here take a cursor and leave it open; each change is a statement of its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import duckdb

from boxwood import catalog
from boxwood.errors import InputError

MAX_BYTES = 2 << 20
"""Of a state, as JSON."""
MAX_SESSIONS = 10_000
"""In a database."""
MAX_NAME = 200
_LISTED = 500
_FIELDS = "id, collection, name, revision, state, created, updated"


@dataclass(frozen=True)
class Session:
    """`created` and `updated` are in UTC."""

    id: str
    collection: str
    name: str
    revision: int
    text: str
    """The state, as JSON."""
    created: datetime
    updated: datetime

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.text)
        return state


class Summary(NamedTuple):
    """A session in a list: how many rounds it had, and marks of each kind it has."""

    id: str
    collection: str
    name: str
    updated: datetime
    rounds: int
    positives: int
    negatives: int


class UnknownSession(InputError):
    """There is no session of this id."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"there is no session {id!r}: it may have been deleted, or be of another database"
        )


class TooLarge(InputError):
    """The state is longer than MAX_BYTES."""


class Conflict(InputError):
    """Somebody else has changed the session; `stored` is what it is now."""

    def __init__(self, stored: Session, revision: int) -> None:
        super().__init__(
            f"the session was changed elsewhere: it is at revision {stored.revision}, and the "
            f"change is to {revision}. Load it again"
        )
        self.stored = stored


def in_memory() -> duckdb.DuckDBPyConnection:
    """A database of sessions alone, for as long as it is open: where the collections' own one is
    open read-only."""
    con = duckdb.connect(":memory:")
    con.execute(catalog.sql_file("schema.sql"))
    return con


def make(
    cur: duckdb.DuckDBPyConnection,
    collection: str,
    name: str,
    state: Mapping[str, Any],
    most: int = MAX_SESSIONS,
) -> Session:
    """Keep a new session; at most so many are kept."""
    text = _checked(name, state)
    if not catalog.table_exists(cur, "boxwood.sessions"):
        cur.execute(catalog.sql_file("schema.sql"))
    row = catalog.one(cur, "SELECT count(*) FROM boxwood.sessions")
    if row is not None and row[0] >= most:
        raise InputError(f"there are {row[0]:,} sessions already, and no more are kept: delete one")
    now = _now()
    session = Session(secrets.token_urlsafe(12), collection, name, 1, text, now, now)
    cur.execute(
        f"INSERT INTO boxwood.sessions ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [session.id, collection, name, 1, text, *[now.replace(tzinfo=None)] * 2],
    )
    return session


def read(cur: duckdb.DuckDBPyConnection, id: str) -> Session:
    row = None
    if catalog.table_exists(cur, "boxwood.sessions"):
        row = catalog.one(cur, f"SELECT {_FIELDS} FROM boxwood.sessions WHERE id = ?", [id])
    if row is None:
        raise UnknownSession(id)
    key, collection, name, revision, state, created, updated = row
    return Session(
        key, collection, name, revision, state,
        created.replace(tzinfo=UTC), updated.replace(tzinfo=UTC),
    )  # fmt: skip


def write(
    cur: duckdb.DuckDBPyConnection, id: str, revision: int, name: str, state: Mapping[str, Any]
) -> int:
    """Change a session that is at this revision; returns the next one."""
    text = _checked(name, state)
    read(cur, id)  # that there is one
    try:
        row = catalog.one(
            cur,
            "UPDATE boxwood.sessions SET revision = revision + 1, name = ?, state = ?, updated = ? "
            "WHERE id = ? AND revision = ? RETURNING revision",
            [name, text, _now().replace(tzinfo=None), id, revision],
        )
    except duckdb.TransactionException as error:
        if "conflict" not in str(error).lower():
            raise
        row = None  # another thread was faster
    if row is None:
        raise Conflict(read(cur, id), revision)
    return int(row[0])


def delete(cur: duckdb.DuckDBPyConnection, id: str) -> None:
    read(cur, id)
    cur.execute("DELETE FROM boxwood.sessions WHERE id = ?", [id])


def listed(cur: duckdb.DuckDBPyConnection, collection: str | None = None) -> list[Summary]:
    """Sessions, or those of a collection, the latest first; at most 500."""
    if not catalog.table_exists(cur, "boxwood.sessions"):
        return []
    marks = "json_extract_string(state, '$.marks[*].mark')"
    rows = cur.execute(
        "SELECT id, collection, name, updated, coalesce(json_array_length(state, '$.rounds'), 0), "
        f"len(list_filter({marks}, lambda mark: mark = 'right')), "
        f"len(list_filter({marks}, lambda mark: mark = 'wrong')) "
        "FROM boxwood.sessions WHERE $of IS NULL OR collection = $of "
        f"ORDER BY updated DESC, id LIMIT {_LISTED}",
        {"of": collection},
    ).fetchall()
    return [
        Summary(key, of, name, updated.replace(tzinfo=UTC), rounds, positives, negatives)
        for key, of, name, updated, rounds, positives, negatives in rows
    ]


def remove_all(cur: duckdb.DuckDBPyConnection, collection: str) -> None:
    """Remove the sessions of a collection: the ids in them mean nothing to another one."""
    if catalog.table_exists(cur, "boxwood.sessions"):
        cur.execute("DELETE FROM boxwood.sessions WHERE collection = ?", [collection])


def _checked(name: str, state: Mapping[str, Any]) -> str:
    """The state as JSON."""
    if not isinstance(name, str) or len(name) > MAX_NAME or "\0" in name:
        raise InputError(f"a session's name has at most {MAX_NAME} characters, and no NUL")
    try:
        text = json.dumps(state, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # lone surrogates are ValueErrors
        raise InputError(f"the state of a session must be JSON: {error}") from error
    if size > MAX_BYTES:
        raise TooLarge(
            f"the session is too large to keep: {size:,} bytes, and {MAX_BYTES:,} are allowed"
        )
    return text


def _now() -> datetime:
    return datetime.now(UTC)
