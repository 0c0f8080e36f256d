"""Concepts: models with a name, kept in the database in versions; each has a view of its rows.

Functions here take a cursor and leave it open; what writes is within the caller's transaction.
`Collection.save_concept` and the methods beside it are what people call. The view is over the macro
``boxwood_concept`` of ``macros.sql``, which looks the model up in ``boxwood.concepts`` whenever it
is asked: so table and view cannot differ, and images that are added later are in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from boxwood import catalog
from boxwood.catalog import Record, literal, quoted
from boxwood.errors import Error, IndexMismatch, InputError
from boxwood.model import Model

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_FIELDS = "name, version, model, learner, positives, negatives, note, created, quantizer"
_NOTE_CHARACTERS = 10_000


@dataclass(frozen=True, repr=False)
class Concept:
    """A model that was saved under a name, with the labels that it was trained on.

    `created` is local time, as DuckDB's ``current_localtimestamp()`` gives it. `current` says
    whether it is of the codes that the collection has: after `Collection.recode` it is not, and
    another must be trained from `positives` and `negatives`.
    """

    name: str
    version: int
    model: Model
    learner: str
    positives: list[int]
    negatives: list[int]
    note: str
    created: datetime
    collection: str
    current: bool

    @property
    def sql(self) -> str:
        """A statement that gives its rows on any connection or shell with Boxwood loaded."""
        return (
            f"SELECT id, votes, score FROM concept({literal(self.collection)}, "
            f"{literal(self.name)}) ORDER BY score DESC, id"
        )

    def usable_model(self) -> Model:
        """The model; raises IndexMismatch where it is of other codes than the collection has."""
        if not self.current:
            raise IndexMismatch(
                f"the concept {self.name!r} is of codes that {self.collection!r} had before it was "
                "re-coded: train it again from its labels, refine(concept.positives, "
                "concept.negatives), and save that with replace=True"
            )
        return self.model

    def __repr__(self) -> str:
        labels = f"{len(self.positives):,} positives, {len(self.negatives):,} negatives"
        stale = "" if self.current else "; of older codes: train it again"
        return (
            f"Concept({self.name!r} of {self.collection!r}, version {self.version}, by "
            f"{self.learner!r}: {labels}{stale})"
        )


def check_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a concept: use a letter, then up to 62 letters, digits and _"
        )
    return name


def check_note(note: object) -> str:
    if not isinstance(note, str) or len(note) > _NOTE_CHARACTERS or "\0" in note:
        raise InputError(
            f"a note is a text of at most {_NOTE_CHARACTERS:,} characters, without NUL characters"
        )
    try:
        note.encode()
    except UnicodeEncodeError:
        raise InputError("the note holds characters that are none (lone surrogates)") from None
    return note


def names(cur: duckdb.DuckDBPyConnection, of: Record) -> list[str]:
    if not catalog.table_exists(cur, "boxwood.concepts"):
        return []
    found = cur.execute(
        "SELECT DISTINCT name FROM boxwood.concepts WHERE collection = ? ORDER BY name", [of.name]
    ).fetchall()
    return [name for (name,) in found]


def newest(cur: duckdb.DuckDBPyConnection, of: Record) -> list[Concept]:
    """The newest version of each of a collection's concepts, by name."""
    if not catalog.table_exists(cur, "boxwood.concepts"):
        return []
    found = cur.execute(
        f"SELECT {_FIELDS} FROM boxwood.concepts WHERE collection = ? QUALIFY "
        "row_number() OVER (PARTITION BY name ORDER BY version DESC) = 1 ORDER BY name",
        [of.name],
    ).fetchall()
    return [_concept(of, row) for row in found]


def load(
    cur: duckdb.DuckDBPyConnection, of: Record, name: str, version: int | None = None
) -> Concept:
    """A concept, the newest version where none is named."""
    check_name(name)
    if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
        raise InputError(f"version must be a whole number or None, not {version!r}")
    found = []
    if catalog.table_exists(cur, "boxwood.concepts"):
        found = cur.execute(
            f"SELECT {_FIELDS} FROM boxwood.concepts WHERE collection = $of AND name = $name "
            "AND ($version IS NULL OR version = $version) ORDER BY version DESC LIMIT 1",
            {"of": of.name, "name": name, "version": version},
        ).fetchall()
    if found:
        return _concept(of, found[0])
    need(cur, of, name)
    rows = cur.execute(
        "SELECT version FROM boxwood.concepts WHERE collection = ? AND name = ? ORDER BY version",
        [of.name, name],
    ).fetchall()
    raise InputError(
        f"the concept {name!r} has no version {version}; it has "
        f"{', '.join(str(row[0]) for row in rows)}"
    )


def need(cur: duckdb.DuckDBPyConnection, of: Record, name: str) -> None:
    """Raise where there is no such concept."""
    check_name(name)
    known = names(cur, of)
    if name not in known:
        hint = f"it has: {', '.join(known)}" if known else "it has none; save_concept() makes one"
        raise InputError(f"the collection {of.name!r} has no concept {name!r}; {hint}")


def _concept(of: Record, row: tuple[Any, ...]) -> Concept:
    name, version, model, learner, positives, negatives, note, created, quantizer = row
    try:
        parsed = Model.from_json(model)
    except InputError as error:
        raise InputError(
            f"the concept {name!r} (version {version}) of {of.name!r} is damaged: {error}. Save it "
            "again with replace=True, or drop it"
        ) from error
    return Concept(
        name, version, parsed, learner, positives, negatives, note, created, of.name,
        current=quantizer == of.quantizer,
    )  # fmt: skip


def check_new(
    cur: duckdb.DuckDBPyConnection, of: Record, name: str, model: Model, replace: bool
) -> None:
    """That a model may be saved under this name."""
    if not of.quantizer:
        raise InputError(
            f"the collection {of.name!r} holds no images yet, so no model can be of its codes: add "
            "images first"
        )
    if model.quantizer and model.quantizer != of.quantizer:
        raise IndexMismatch(
            f"the model is for codes of another quantizer ({model.quantizer!r}), but those of "
            f"{of.name!r} are of {of.quantizer!r}: train it again on this collection"
        )
    taken = []
    if catalog.table_exists(cur, "boxwood.concepts"):
        taken = cur.execute(
            "SELECT DISTINCT collection, name FROM boxwood.concepts WHERE lower(name) = lower(?) "
            "ORDER BY ALL",
            [name],
        ).fetchall()
    if (of.name, name) in taken:
        if not replace:
            raise InputError(
                f"the collection {of.name!r} has a concept {name!r} already: replace=True saves "
                "this as its next version"
            )
    elif taken:
        other, theirs = taken[0]
        raise InputError(
            f"the collection {other!r} has a concept {theirs!r} already, and the view "
            f"concepts.{theirs} is its: choose another name, or drop that one"
        )
    elif catalog.table_exists(cur, f"concepts.{name}"):
        raise InputError(
            f"there is a table or view concepts.{name} already, which is no concept's: choose "
            "another name, or drop it"
        )


def insert(
    cur: duckdb.DuckDBPyConnection,
    of: Record,
    name: str,
    model: Model,
    positives: Sequence[int],
    negatives: Sequence[int],
    note: str,
) -> int:
    """Save the next version of a concept, with its view; returns its number."""
    if not catalog.table_exists(cur, "boxwood.concepts"):
        cur.execute(catalog.sql_file("schema.sql"))
    values = {
        "of": of.name, "name": name, "model": model.to_json(), "learner": model.learner,
        "quantizer": of.quantizer, "positives": list(positives), "negatives": list(negatives),
        "note": note,
    }  # fmt: skip
    try:
        row = catalog.one(
            cur,
            "INSERT INTO boxwood.concepts "
            "(collection, name, version, model, learner, quantizer, positives, negatives, note) "
            "SELECT $of, $name, coalesce(max(version), 0) + 1, $model, $learner, $quantizer, "
            "$positives::BIGINT[], $negatives::BIGINT[], $note "
            "FROM boxwood.concepts WHERE collection = $of AND name = $name RETURNING version",
            values,
        )
    except duckdb.ConstraintException as error:
        raise Error(
            f"somebody else has saved the concept {name!r} since this transaction began: try again"
        ) from error
    assert row is not None
    if not catalog.table_exists(cur, f"concepts.{name}"):
        _create_view(cur, of, name)
    return int(row[0])


def _create_view(cur: duckdb.DuckDBPyConnection, of: Record, name: str) -> None:
    cur.execute("CREATE SCHEMA IF NOT EXISTS concepts")
    # The macro must be there as the view is made, for its columns; cursors have no macros.
    row = catalog.one(
        cur, "SELECT count(*) FROM duckdb_functions() WHERE function_name = 'boxwood_concept'"
    )
    bare = row == (0,)
    if bare:
        cur.execute(
            "CREATE TEMP MACRO boxwood_concept(collection, name) AS TABLE "
            "SELECT NULL::BIGINT AS id, NULL::INTEGER AS votes, NULL::DOUBLE AS score"
        )
    cur.execute(
        f"CREATE VIEW concepts.{quoted(name)} AS SELECT id, votes, score "
        f"FROM boxwood_concept({literal(of.name)}, {literal(name)})"
    )
    if bare:
        cur.execute("DROP MACRO TABLE temp.boxwood_concept")


def remove(cur: duckdb.DuckDBPyConnection, of: Record, name: str) -> int:
    """Remove all versions of a concept, and its view; returns how many there were."""
    rows = cur.execute(
        "DELETE FROM boxwood.concepts WHERE collection = ? AND name = ? RETURNING version",
        [of.name, name],
    ).fetchall()
    if _is_view_of(cur, of, name):
        cur.execute(f"DROP VIEW concepts.{quoted(name)}")
    return len(rows)


def remove_all(cur: duckdb.DuckDBPyConnection, of: Record) -> None:
    """Remove all concepts of a collection."""
    for name in names(cur, of):
        remove(cur, of, name)


def _is_view_of(cur: duckdb.DuckDBPyConnection, of: Record, name: str) -> bool:
    """Whether concepts.<name> is a view of this concept, and not of another collection's."""
    row = catalog.one(
        cur,
        "SELECT sql FROM duckdb_views() WHERE database_name = current_database() "
        "AND schema_name = 'concepts' AND lower(view_name) = lower(?)",
        [name],
    )
    return row is not None and f"concept({literal(of.name)}, {literal(name)})" in row[0]
