"""Views: results that stay as they were found, to be paged, filtered, sorted and counted."""

from __future__ import annotations

import logging
import math
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from uuid import UUID

import duckdb
import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request
from numpy.typing import NDArray

from boxwood import catalog, native
from boxwood.catalog import quoted
from boxwood.errors import InputError
from boxwood.model import Model
from boxwood.native import Ids
from boxwood.serve.images import title
from boxwood.serve.library import WHOLE, Cursor, Refusal, RequestCursor, Table
from boxwood.serve.schemas import (
    EXACT,
    ArrangeRequest,
    Changes,
    Column,
    EstimateOut,
    Facet,
    FacetBin,
    Facets,
    FacetValue,
    Filter,
    Item,
    Page,
    Result,
    ResultKind,
    Sort,
    Stats,
    Value,
    ViewId,
)

__all__ = ["Base", "Rank", "View", "Views", "arrange", "current", "matching", "result", "router"]

Floats = NDArray[np.float64]

FIRST = 120
"""Items that come with a result."""
_MOST_VIEWS = 500
_BINS = 20
_ODD = (
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.InvalidInputException,
    duckdb.BinderException,
    duckdb.NotImplementedException,
)
"""What DuckDB says of values that cannot be compared or converted."""
_log = logging.getLogger("boxwood.serve")
_LONG = 10_000  # characters of a value that are shown

Rank = tuple[tuple[str, bool], ...]
"""What a source is ranked by: expressions over it, as ``r``, and whether they descend."""


@dataclass(frozen=True)
class Base:
    """Rows as they were found, best first, and what found them."""

    collection: str
    kind: ResultKind
    ids: Ids
    values: Floats
    """Scores, or distances (n,)."""
    votes: NDArray[np.int32] | None
    source: str
    """What gives the same rows in SQL: what stands in a FROM clause."""
    rank: Rank
    stats: Stats
    columns: tuple[str, ...] = ("id", "votes", "score")
    """Of the source, those that are shown."""
    inside: NDArray[np.bool_] | None = None
    """Whether the model matches each; None: all."""
    model: Model | None = None
    estimate: EstimateOut | None = None
    note: str = ""
    positives: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    negatives: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    code: NDArray[np.uint8] | None = None
    """Of searches: the code that all are near to."""
    again: Callable[[RequestCursor, Sequence[Filter]], Base] | None = None
    """Of searches: the same among the rows that pass filters."""

    @property
    def bytes(self) -> int:
        arrays = (self.ids, self.values, self.votes, self.inside)
        return 4096 + sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True)
class View:
    """A base under filters and in an order."""

    name: str
    base: Base
    whole: Base
    """The base without filters: the same one but for searches."""
    filters: Sequence[Filter]
    sort: Sort | None
    order: NDArray[np.int64] | None
    """Rows of the base in the view's order; None: all, best first."""
    new: NDArray[np.bool_] | None
    """Rows of the base that the previous view had not; None: there was none."""
    changes: Changes | None
    sql: str
    of: UUID
    """The collection: another one of the same name is not it."""

    def __len__(self) -> int:
        return len(self.base.ids) if self.order is None else len(self.order)

    @property
    def ids(self) -> Ids:
        """Of all its rows, in its order."""
        return self.base.ids if self.order is None else self.base.ids[self.order]

    @property
    def values(self) -> Floats:
        """Scores, or distances, in its order."""
        return self.base.values if self.order is None else self.base.values[self.order]

    @property
    def votes(self) -> NDArray[np.int32] | None:
        """Votes in its order; None where there is no model."""
        votes = self.base.votes
        return votes if votes is None or self.order is None else votes[self.order]

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows of the base that stand from place to place."""
        if self.order is not None:
            return self.order[start:stop]
        return np.arange(start, min(stop, len(self)))


class Views:
    """The latest views, as many as go into so many bytes; one at least."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._views: OrderedDict[str, View] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, cursor: RequestCursor, name: str) -> View:
        """Refused with 404 where it is not kept any more, or its collection is not there."""
        return current(cursor, self.kept(name))

    def kept(self, name: str) -> View:
        """The same, whatever became of its collection."""
        with self._lock:
            view = self._views.get(name)
            if view is not None:
                self._views.move_to_end(name)
        if view is None:
            raise Refusal(404, "gone", "these results are not kept any more: search again")
        return view

    def add(self, view: View) -> None:
        with self._lock:
            self._views[view.name] = view
            while len(self._views) > 1 and (
                len(self._views) > _MOST_VIEWS or self._bytes() > self._most
            ):
                self._views.popitem(last=False)

    def _bytes(self) -> int:
        """What bases share counts once."""
        views = self._views.values()
        bases = {id(base): base for view in views for base in (view.base, view.whole)}
        own = (
            array.nbytes for view in views for array in (view.order, view.new) if array is not None
        )
        return sum(base.bytes for base in bases.values()) + sum(own)


def current(cursor: RequestCursor, view: View) -> View:
    """The view, once it is found to be of the collection that is there now."""
    name = view.base.collection
    if cursor.record(name).uuid != view.of:
        raise Refusal(404, "gone", f"the collection {name!r} was made anew since: search it again")
    return view


# --- filters --------------------------------------------------------------------------------------


def _plain(value: Value) -> str:
    """A value as SQL, to be read by people."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return catalog.literal(value)
    if isinstance(value, int):
        return str(value)
    return number(value)


def number(value: float) -> str:
    """A DOUBLE as SQL, exactly."""
    text = repr(float(value))
    return text if "e" in text else f"{text}e0"


def condition(table: Table, chosen: Filter, bind: Callable[[Value], str]) -> str:
    """A filter as SQL over the metadata table ``m``; `bind` puts a value in."""
    column = _column(table, chosen.column)
    name = f"m.{quoted(column.name)}"
    text = name if column.type == "VARCHAR" else f"CAST({name} AS VARCHAR)"

    def value(given: Value) -> tuple[str, str]:
        """What is compared, and with what."""
        if column.kind in ("text", "other"):
            if isinstance(given, str):
                return text, bind(given)
        elif column.kind == "bool":
            if isinstance(given, bool):
                return name, bind(given)
        elif isinstance(given, str):
            return name, f"CAST({bind(given)} AS {column.type})"
        elif column.kind == "number" and not isinstance(given, bool):
            return name, bind(given)
        wanted = {"number": "numbers", "time": "times, as text", "bool": "true or false"}
        raise InputError(
            f"the column {column.name!r} holds {wanted.get(column.kind, 'text')}, so it cannot be "
            f"compared with {given!r}"
        )

    if chosen.op == "in":
        pairs = [value(given) for given in chosen.values or []]
        test = f"{pairs[0][0]} IN ({', '.join(pair[1] for pair in pairs)})" if pairs else "false"
    elif chosen.op == "range":
        parts = []
        for given, sign in ((chosen.low, ">="), (chosen.high, "<=")):
            if given is not None:
                left, right = value(given)
                parts.append(f"{left} {sign} {right}")
        test = " AND ".join(parts)
    elif chosen.op == "contains":
        test = f"contains(lower({text}), lower({bind(chosen.text or '')}))"
    else:
        test = f"{name} IS NULL"
    return f"NOT coalesce({test}, false)" if chosen.negate else f"({test})"


def _column(table: Table, name: str) -> Column:
    if name == table.key:
        return Column(name=name, type="BIGINT", kind="number", facet=False)
    return table.column(name)


def where(table: Table, filters: Sequence[Filter], parameters: list[Value] | None) -> str:
    """Filters as SQL; the values are appended to `parameters`, or, where these are None, stand in
    the text."""

    def bind(value: Value) -> str:
        if parameters is None:
            return _plain(value)
        parameters.append(value)
        return "?"

    return " AND ".join(condition(table, chosen, bind) for chosen in filters) or "true"


def join(table: Table, of: str) -> str:
    """That a row of the metadata table ``m`` is that of an id."""
    return f"{table.id} = {of}"


@contextmanager
def compared() -> Iterator[None]:
    """What DuckDB says of values that are not of a column's type, as what the caller did wrong."""
    try:
        yield
    except _ODD as error:
        raise InputError(
            f"a filter, or the sort, does not fit its column: {str(error).splitlines()[0]}"
        ) from error


def need(table: Table | None, collection: str) -> Table:
    if table is None:
        raise InputError(
            f"the collection {collection!r} has no metadata, so there is nothing to filter or sort "
            "by"
        )
    return table


def passing(cursor: RequestCursor, table: Table, filters: Sequence[Filter]) -> Ids:
    """Ids of all rows of the metadata table that pass filters."""
    parameters: list[Value] = []
    test = where(table, filters, parameters)
    with compared():
        found = cursor.con.execute(
            f"SELECT {table.id}::BIGINT AS id FROM {table.sql} m WHERE {table.id} BETWEEN 0 AND "
            f"{2**63 - 1} AND {test}",
            parameters,
        ).fetchnumpy()["id"]
    return np.unique(np.asarray(found, np.int64))


def matching(
    cursor: RequestCursor,
    table: Table | None,
    collection: str,
    ids: Ids,
    filters: Sequence[Filter],
    sort: Sort | None = None,
) -> NDArray[np.int64] | None:
    """Places of the ids that pass filters, in the order of the sort; None: all, as they are."""
    by_rank = sort is None or sort.by == "rank"
    if not filters and by_rank:
        if sort is None or not sort.descending:
            return None
        return np.arange(len(ids))[::-1]
    table = need(table, collection)
    parameters: list[Value] = []
    test = where(table, filters, parameters)
    order = ""
    if not by_rank:
        assert sort is not None
        name = quoted(_column(table, sort.by).name)
        order = f" ORDER BY m.{name} {'DESC' if sort.descending else 'ASC'} NULLS LAST, v.place"
    listed = pa.table({"id": ids, "place": np.arange(len(ids))})
    with compared(), catalog.registered(cursor.con, "boxwood_view", listed):
        found = cursor.con.execute(
            f"SELECT v.place FROM boxwood_view v JOIN {table.sql} m ON {join(table, 'v.id')} "
            f"WHERE {test}{order}",
            parameters,
        ).fetchnumpy()["place"]
    places = np.asarray(found, np.int64)
    if by_rank:
        places = np.unique(places)
        return places[::-1] if sort is not None and sort.descending else places
    if len(places) > len(ids) or len(np.unique(places)) < len(places):
        _, first = np.unique(places, return_index=True)  # ids that the table has twice
        places = places[np.sort(first)]
    return places


# --- SQL ------------------------------------------------------------------------------------------


def statement(base: Base, table: Table | None, filters: Sequence[Filter], sort: Sort | None) -> str:
    """What gives a view's rows on any Boxwood connection, with their metadata."""
    shown = ", ".join(f"r.{name}" for name in base.columns)
    lines = []
    by = None
    if sort is not None and sort.by != "rank" and table is not None:
        name = quoted(_column(table, sort.by).name)
        by = f"m.{name} {'DESC' if sort.descending else 'ASC'} NULLS LAST"
    if table is None:
        lines += [f"SELECT {shown}", f"FROM {base.source} r"]
    else:
        rest = f", m.* EXCLUDE ({quoted(table.key)})" if table.columns else ""
        lines += [
            f"SELECT {shown}{rest}",
            f"FROM {base.source} r",
            f"JOIN {table.shown} m ON {join(table, 'r.id')}",
        ]
        if filters:
            lines.append(f"WHERE {where(table, filters, None)}")
        if not table.single:
            first = "" if by is None else f" ORDER BY {by}"
            lines.append(f"QUALIFY row_number() OVER (PARTITION BY r.id{first}) = 1")
    turned = sort is not None and sort.by == "rank" and sort.descending
    order = [f"{text}{' DESC' if down != turned else ''}" for text, down in base.rank]
    if by is not None:
        order.insert(0, by)
    lines.append(f"ORDER BY {', '.join(order)}")
    return "\n".join(lines)


# --- making views ---------------------------------------------------------------------------------


def arrange(
    views: Views,
    cursor: RequestCursor,
    whole: Base,
    filters: Sequence[Filter] = (),
    sort: Sort | None = None,
    previous: str | None = None,
) -> View:
    """A new view of a base, kept in `views`."""
    table = cursor.table(whole.collection)
    base, left = whole, list(filters)
    if filters and whole.again is not None:
        # Of searches the nearest among those that pass, not those that pass among the nearest.
        base, left = whole.again(cursor, filters), []
    order = matching(cursor, table, whole.collection, base.ids, left, sort)
    view = View(
        secrets.token_urlsafe(12), base, whole, list(filters), sort, order, None, None,
        statement(base, table, left, sort), cursor.record(whole.collection).uuid,
    )  # fmt: skip
    if previous is not None:
        try:
            before = views.kept(previous)
        except Refusal:
            before = None  # there is nothing to compare with any more
        if before is not None and before.of == view.of:
            view = _compare(view, before)
    views.add(view)
    return view


def _compare(view: View, before: View) -> View:
    old, now = before.ids, view.ids
    new = ~np.isin(view.base.ids, old)
    gone = old[~np.isin(old, now)]
    count = int(new.sum() if view.order is None else new[view.order].sum())
    changes = Changes(new=count, gone=len(gone), gone_ids=gone[:60].tolist())
    return replace(view, new=new, changes=changes)


def result(
    cursor: RequestCursor, view: View, *, first: int = FIRST, total_ms: float = 0.0
) -> Result:
    """What a request is answered with: the view and its first items."""
    base = view.base
    return Result(
        view=view.name,
        kind=base.kind,
        collection=base.collection,
        total=len(view),
        unfiltered=len(view.whole.ids),
        items=items(cursor, view, 0, first),
        next=_key(view, first - 1) if first < len(view) else None,
        sql=view.sql,
        stats=base.stats.model_copy(update={"total_ms": round(total_ms, 3)}),
        estimate=base.estimate,
        learner=None if base.model is None else base.model.learner,
        note=base.note,
        changes=view.changes,
        model=base.model is not None,
    )


def items(cursor: RequestCursor, view: View, start: int, stop: int) -> list[Item]:
    base = view.base
    rows = view.rows(start, stop)
    ids = base.ids[rows]
    names = titles(cursor, base.collection, ids)
    values = base.values[rows].tolist()
    votes = [None] * len(rows) if base.votes is None else base.votes[rows].tolist()
    inside = np.ones(len(rows), bool) if base.inside is None else base.inside[rows]
    new = np.zeros(len(rows), bool) if view.new is None else view.new[rows]
    columns = (ids.tolist(), values, votes, inside.tolist(), new.tolist())
    return [
        Item(
            id=id_, rank=start + n, value=value, votes=vote, inside=within, new=fresh,
            title=names.get(id_) or str(id_),
        )
        for n, (id_, value, vote, within, fresh) in enumerate(zip(*columns, strict=True))
    ]  # fmt: skip


def titles(cursor: RequestCursor, collection: str, ids: Ids) -> dict[int, str]:
    """File names of images, of those that have one."""
    table = cursor.table(collection)
    if table is None or not table.uri or not len(ids):
        return {}
    # A join, as DuckDB reads fewer of the texts than for a list of ids.
    with catalog.registered(cursor.con, "boxwood_view", pa.table({"id": ids})):
        found = cursor.con.execute(
            f'SELECT v.id, m."uri"::VARCHAR FROM boxwood_view v JOIN {table.sql} m '
            f"ON {join(table, 'v.id')}"
        ).fetchall()
    cursor.library.remember(cursor.record(collection).uuid, found)
    return {id_: title(uri) for id_, uri in found if uri}


def _key(view: View, place: int) -> str:
    """What stands for a place: the id too, so that it is found again in a view of the same."""
    return f"{place}.{int(view.base.ids[view.rows(place, place + 1)[0]])}"


def _after(view: View, key: str) -> int:
    """The place after that of a key."""
    parts = re.fullmatch(r"([0-9]{1,15})\.([0-9]{1,19})", key)
    if parts is None:
        raise InputError("`after` must be what `next` of another page says")
    place, id_ = int(parts[1]), int(parts[2])
    if place < len(view) and view.base.ids[view.rows(place, place + 1)[0]] == id_:
        return place + 1
    found = np.flatnonzero(view.ids == id_) if id_ < 2**63 else np.empty(0, np.int64)
    return int(found[0]) + 1 if len(found) else min(place, len(view))


# --- facets ---------------------------------------------------------------------------------------


def facets(cursor: RequestCursor, view: View, limit: int) -> list[Facet]:
    """Counts of the values of every column that has few, or can be told by ranges. Each is taken
    under the filters of all columns but its own."""
    table = cursor.table(view.base.collection)
    if table is None:
        return []
    counted = [column for column in table.columns if column.facet and column.name != "uri"]
    found: dict[str, Facet] = {}
    filtered = {chosen.column for chosen in view.filters}
    free = [column for column in counted if column.name not in filtered]
    groups = [(view.ids, free)] if free else []
    for column in counted:
        if column.name in filtered:
            others = [chosen for chosen in view.filters if chosen.column != column.name]
            groups.append((_under(cursor, view, table, others), [column]))
    for ids, columns in groups:
        with catalog.registered(cursor.con, "boxwood_view", pa.table({"id": ids})):
            source = f"boxwood_view v JOIN {table.sql} m ON {join(table, 'v.id')}"
            for column in columns:
                try:
                    found[column.name] = _facet(cursor, column, source, limit)
                except _ODD as error:  # of values at the end of what a type holds
                    _log.warning("the column %r cannot be counted: %s", column.name, error)
    return [found[column.name] for column in counted if column.name in found]


def _under(cursor: RequestCursor, view: View, table: Table, filters: Sequence[Filter]) -> Ids:
    """Ids of the view if it had these filters."""
    if view.whole.again is not None and filters:
        return view.whole.again(cursor, filters).ids
    whole = view.whole
    places = matching(cursor, table, whole.collection, whole.ids, filters)
    return whole.ids if places is None else whole.ids[places]


def _facet(cursor: RequestCursor, column: Column, source: str, limit: int) -> Facet:
    name = f"m.{quoted(column.name)}"
    if column.kind in ("text", "bool"):
        value = name if column.kind == "bool" else f"{name}::VARCHAR"
        rows = cursor.con.execute(
            f"SELECT {value} AS value, count(*) AS n FROM {source} GROUP BY value "
            "ORDER BY n DESC, value"
        ).fetchall()
        missing = sum(count for given, count in rows if given is None)
        there = [(given, count) for given, count in rows if given is not None]
        return Facet(
            column=column.name,
            kind=column.kind,
            values=[
                FacetValue(value=given if isinstance(given, bool) else given[:_LONG], count=count)
                for given, count in there[:limit]
            ],
            other=sum(count for _, count in there[limit:]),
            missing=missing,
        )
    if column.kind == "time":
        return _times(cursor, column, name, source)
    if column.type in WHOLE - {"HUGEINT", "UHUGEINT"}:
        return _whole_bins(cursor, column, f"{name}::HUGEINT", f"{name} IS NOT NULL", source)
    return _float_bins(cursor, column, f"{name}::DOUBLE", source)


def _whole_bins(
    cursor: RequestCursor,
    column: Column,
    value: str,
    there: str,
    source: str,
    show: Callable[[list[int]], list[int | str]] | None = None,
) -> Facet:
    row = catalog.one(
        cursor.con,
        f"SELECT min({value}) FILTER ({there}), max({value}) FILTER ({there}), "
        f"count(*) - count(*) FILTER ({there}) FROM {source}",
    )
    assert row is not None
    if row[0] is None:
        return Facet(column=column.name, kind=column.kind, bins=[], missing=row[2])
    low, high = int(row[0]), int(row[1])
    width = -(-(high - low + 1) // _BINS)
    counts = dict(
        cursor.con.execute(
            f"SELECT CAST(({value} - {low}::HUGEINT) // {width}::HUGEINT AS INTEGER) AS bin, "
            f"count(*) FROM {source} WHERE {there} GROUP BY bin"
        ).fetchall()
    )
    edges = list(range(low, high + 1, width))
    ends = [min(edge + width - 1, high) for edge in edges]
    show = show or _exact
    return Facet(
        column=column.name,
        kind=column.kind,
        bins=[
            FacetBin(low=first, high=last, count=counts.get(n, 0))
            for n, (first, last) in enumerate(zip(show(edges), show(ends), strict=True))
        ],
        missing=row[2],
    )


def _exact(values: list[int]) -> list[int | str]:
    return [value if abs(value) < EXACT else str(value) for value in values]


def _times(cursor: RequestCursor, column: Column, name: str, source: str) -> Facet:
    first = "DATE '1970-01-01'"
    if column.type == "DATE":
        # In days: there are dates that are too far away for microseconds.
        value, time = f"({name} - {first})::HUGEINT", f"({first} + n::INTEGER)"
    else:
        value, time = f"epoch_us({name}::TIMESTAMP)::HUGEINT", "make_timestamp(n)"
        if column.type == "TIMESTAMP WITH TIME ZONE":
            value = f"epoch_us({name})::HUGEINT"

    def show(edges: list[int]) -> list[int | str]:
        listed = ", ".join(map(str, edges))
        rows = cursor.con.execute(
            f"SELECT {time}::VARCHAR FROM (SELECT unnest([{listed}]::BIGINT[]) AS n)"
        ).fetchall()
        zone = "+00" if column.type == "TIMESTAMP WITH TIME ZONE" else ""
        return [row[0] + zone for row in rows]

    there = f"{name} IS NOT NULL AND isfinite({name})"
    return _whole_bins(cursor, column, value, there, source, show)


def _float_bins(cursor: RequestCursor, column: Column, value: str, source: str) -> Facet:
    there = f"{value} IS NOT NULL AND isfinite({value})"
    row = catalog.one(
        cursor.con,
        f"SELECT min({value}) FILTER ({there}), max({value}) FILTER ({there}), "
        f"count(*) - count(*) FILTER ({there}) FROM {source}",
    )
    assert row is not None
    if row[0] is None:
        return Facet(column=column.name, kind=column.kind, bins=[], missing=row[2])
    low, high = float(row[0]), float(row[1])
    width = high / _BINS - low / _BINS  # high - low may be infinite
    if not width > 0 or not math.isfinite(1 / width):
        (count,) = catalog.one(cursor.con, f"SELECT count(*) FROM {source} WHERE {there}") or (0,)
        return Facet(
            column=column.name, kind=column.kind, missing=row[2],
            bins=[FacetBin(low=low, high=high, count=count)],
        )  # fmt: skip
    shares = [n / _BINS for n in range(_BINS + 1)]
    edges = [min(max(low * (1 - share) + high * share, low), high) for share in shares]
    tests = " + ".join(f"({value} >= {number(edge)})::INTEGER" for edge in edges[1:-1])
    counts = dict(
        cursor.con.execute(
            f"SELECT {tests} AS bin, count(*) FROM {source} WHERE {there} GROUP BY bin"
        ).fetchall()
    )
    return Facet(
        column=column.name, kind=column.kind, missing=row[2],
        bins=[
            FacetBin(low=edges[n], high=edges[n + 1], count=counts.get(n, 0)) for n in range(_BINS)
        ],
    )  # fmt: skip


# --- metadata -------------------------------------------------------------------------------------


def shown(column: Column, name: str) -> str:
    """A column as what JSON can hold: numbers, booleans, and text for everything else."""
    if column.kind == "bool" or column.type in WHOLE - {"HUGEINT", "UHUGEINT"} | {"DOUBLE"}:
        return name
    if column.kind == "number":
        return f"{name}::DOUBLE" if column.type == "FLOAT" else f"{name}::VARCHAR"
    if column.type == "BLOB":
        return f"octet_length({name})::VARCHAR || ' bytes'"
    return f"{name}::VARCHAR"


def clean(value: Any) -> Any:
    """A value of `shown` as JSON: whole numbers from 2^53 on, and what is no number, as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str) and len(value) > _LONG:
        return value[: _LONG - 1] + "…"
    return value


def metadata(cursor: RequestCursor, collection: str, id_: int) -> dict[str, Any]:
    """All columns of an image. Refused with 404 where the collection has no such id."""
    table = cursor.table(collection)
    cursor.has(collection, id_)
    if table is None or not table.columns:
        return {}
    listed = ", ".join(shown(column, f"m.{quoted(column.name)}") for column in table.columns)
    row = catalog.one(
        cursor.con, f"SELECT {listed} FROM {table.sql} m WHERE {join(table, '?')}", [id_]
    )
    if row is None:
        raise Refusal(404, "image", f"the collection {collection!r} has no id {id_}")
    names = (column.name for column in table.columns)
    return {name: clean(value) for name, value in zip(names, row, strict=True)}


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter(prefix="/views/{view}", tags=["views"])

ViewPath = Annotated[ViewId, Path(description="of a Result")]


def kept(request: Request) -> Views:
    views: Views = request.app.state.views
    return views


@router.get("")
async def first_page(request: Request, cursor: Cursor, view: ViewPath) -> Result:
    """A view once more, as it was, with its first items."""
    return await cursor.library.run(
        request, lambda: result(cursor, kept(request).get(cursor, view))
    )


@router.get("/items")
async def page(
    request: Request,
    cursor: Cursor,
    view: ViewPath,
    start: Annotated[int, Query(ge=0, le=2**53, description="the place of the first item")] = 0,
    after: Annotated[
        str | None,
        Query(max_length=64, description="`next` of another page, in place of `start`"),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=native.MAX_K)] = FIRST,
) -> Page:
    """Items from a place on, or after those of another page."""
    limits = request.app.state.limits
    if limit > limits.page:
        raise InputError(f"limit may be {limits.page} at most, not {limit}")

    def work() -> Page:
        chosen = kept(request).get(cursor, view)
        first = start if after is None else _after(chosen, after)
        last = min(first + limit, len(chosen))
        return Page(
            items=items(cursor, chosen, first, last) if first < last else [],
            next=_key(chosen, last - 1) if first < last < len(chosen) else None,
            total=len(chosen),
        )

    return await cursor.library.run(request, work)


@router.get("/facets")
async def count_facets(
    request: Request,
    cursor: Cursor,
    view: ViewPath,
    limit: Annotated[int, Query(ge=1, le=1_000, description="values of a column")] = 20,
) -> Facets:
    """How many images have which values."""
    return await cursor.library.run(
        request, lambda: Facets(facets=facets(cursor, kept(request).get(cursor, view), limit))
    )


@router.post("/arrange")
async def arrange_view(
    request: Request, cursor: Cursor, view: ViewPath, asked: ArrangeRequest
) -> Result:
    """The same results under other filters and in another order, as a new view."""
    views = kept(request)

    def work() -> Result:
        whole = views.get(cursor, view).whole
        return result(
            cursor, arrange(views, cursor, whole, asked.filters, asked.sort, asked.previous)
        )

    return await cursor.library.run(request, work)
