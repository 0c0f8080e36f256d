"""Exports: what a view holds, as CSV, Parquet, a JSON list, or the pictures themselves in a zip."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Request

from boxwood import catalog
from boxwood.catalog import quoted
from boxwood.errors import InputError
from boxwood.serve.images import Pictures, Unavailable, safe_name, title
from boxwood.serve.jobs import Job, Jobs
from boxwood.serve.library import Cursor, Library, RequestCursor, Table
from boxwood.serve.schemas import Column, ErrorBody, ExportRequest, JobStarted
from boxwood.serve.views import View, ViewPath, clean, current, join, shown

_ROWS = 4096  # at a time
_TYPES = {
    "csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet",
    "json": "application/json", "zip": "application/zip",
}  # fmt: skip
_AS_TEXT = frozenset(("UHUGEINT", "BIT", "BIGNUM", "TIME WITH TIME ZONE"))
"""Types that come out of Arrow as others, with other values."""
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
LIST, LEFT_OUT = "pictures.csv", "left-out.txt"
"""Files in a zip, beside the pictures: what each of them is, and why others are not there."""


class Rows:
    """A view's rows with their metadata, in its order.

    columns: of the metadata, those that are wanted; None: all that the format can hold.
    plain: values as CSV and JSON have them, in place of DuckDB's own types.
    most: of rows, the first ones; None: all.
    uri: whether each row is to have where its picture is, in a last column beyond `names`.
    """

    def __init__(
        self, cursor: RequestCursor, view: View, columns: Sequence[str] | None, plain: bool,
        *, most: int | None = None, uri: bool = False,
    ) -> None:  # fmt: skip
        self._cursor = cursor
        self._table = cursor.table(view.base.collection)
        chosen = _chosen(self._table, columns, plain)
        value = "distance" if view.base.kind in ("search", "neighbours") else "score"
        listed = {"rank": pa.array(np.arange(len(view))[:most]), "id": pa.array(view.ids[:most])}
        listed[value] = pa.array(view.values[:most])
        if view.votes is not None:
            listed["votes"] = pa.array(view.votes[:most])
        self._listed = pa.table(listed)
        self.names = [*listed, *_free(listed, [column.name for column in chosen])]
        parts = [f"v.{quoted(name)}" for name in listed]
        odd = frozenset() if plain else _unwritable(cursor, self._table, chosen)
        for column, name in zip(chosen, self.names[len(listed) :], strict=True):
            held = f"m.{quoted(column.name)}"
            text = f"{held}::VARCHAR" if column.name in odd else held
            parts.append(f"{shown(column, held) if plain else text} AS {quoted(name)}")
        if uri and (self._table is None or not self._table.uri):
            raise InputError(
                f"the collection {view.base.collection!r} does not say where its pictures are: it "
                "has no column 'uri'"
            )
        if uri:
            parts.append("m.uri::VARCHAR AS boxwood_uri")
        self._select = ", ".join(parts)

    def __len__(self) -> int:
        return len(self._listed)

    @contextmanager
    def reader(self) -> Iterator[pa.RecordBatchReader]:
        """Gives some thousand rows at a time. Rows without metadata have NULL there."""
        source = "boxwood_export v"
        if self._table is not None:
            key = f"TRY_CAST({quoted(self._table.key)} AS BIGINT)"
            # Where the metadata have several rows of an id, one of them is taken.
            source += (
                f" LEFT JOIN (SELECT DISTINCT ON ({key}) * FROM {self._table.sql} WHERE {key} IN "
                f"(SELECT id FROM boxwood_export)) m ON {join(self._table, 'v.id')}"
            )
        con = self._cursor.con
        with catalog.registered(con, "boxwood_export", self._listed):
            found = con.sql(f"SELECT {self._select} FROM {source} ORDER BY v.rank")
            yield found.to_arrow_reader(_ROWS)


def _chosen(table: Table | None, columns: Sequence[str] | None, plain: bool) -> list[Column]:
    if columns is None:
        held = [] if table is None else table.columns
        return [column for column in held if not (plain and column.type == "BLOB")]
    if table is None and columns:
        raise InputError("the collection has no metadata, so there are no columns to name")
    chosen = [] if table is None else [table.column(name) for name in dict.fromkeys(columns)]
    for column in chosen:
        if plain and column.type == "BLOB":
            raise InputError(f"the column {column.name!r} holds bytes, which only Parquet can hold")
    return chosen


def _unwritable(
    cursor: RequestCursor, table: Table | None, columns: Sequence[Column]
) -> frozenset[str]:
    """Names of columns that Parquet, as Arrow writes it, cannot hold, or holds as something else:
    intervals, unions, variants, what is made of these, and some more."""
    if table is None:
        return frozenset()

    def fits(names: Sequence[str]) -> bool:
        listed = ", ".join(quoted(name) for name in names)
        try:
            found = cursor.con.sql(f"SELECT {listed} FROM {table.sql} LIMIT 0")
            pq.ParquetWriter(io.BytesIO(), found.to_arrow_reader(1).schema).close()
        except (pa.ArrowException, duckdb.NotImplementedException, OSError):
            return False
        return True

    odd = {column.name for column in columns if column.type in _AS_TEXT}
    names = [column.name for column in columns if column.name not in odd]
    if names and not fits(names):
        odd.update(name for name in names if not fits([name]))
    return frozenset(odd)


def _free(taken: Sequence[str] | dict[str, Any], names: Sequence[str]) -> list[str]:
    """Names for metadata columns: those that are taken get a number behind them."""
    used = {name.lower() for name in (*taken, *names)}
    free = []
    for name in names:
        now, number = name, 0
        if name.lower() in {other.lower() for other in taken}:
            while now.lower() in used:
                number += 1
                now = f"{name}_{number}"
            used.add(now.lower())
        free.append(now)
    return free


def safe_cell(value: object) -> object:
    """A value for a CSV file. Text that a spreadsheet would run as a formula gets a ' in front,
    which spreadsheets take as the sign of text."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


# --- the formats ----------------------------------------------------------------------------------


def write_csv(job: Job, rows: Rows) -> None:
    job.report(0, len(rows), "reading the metadata")
    with (
        rows.reader() as reader,
        open(job.path, "w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([safe_cell(name) for name in rows.names])
        for batch in _counted(job, rows, reader):
            held = [column.to_pylist() for column in batch.columns]
            writer.writerows([safe_cell(value) for value in row] for row in zip(*held, strict=True))


def write_json(job: Job, rows: Rows) -> None:
    job.report(0, len(rows), "reading the metadata")
    with rows.reader() as reader, open(job.path, "w", encoding="utf-8", errors="replace") as file:
        first = True
        file.write("[")
        for batch in _counted(job, rows, reader):
            for row in batch.to_pylist():
                file.write("\n" if first else ",\n")
                first = False
                known = {name: clean(value) for name, value in row.items()}
                file.write(json.dumps(known, ensure_ascii=False, allow_nan=False))
        file.write("\n]\n")


def write_parquet(job: Job, rows: Rows) -> None:
    job.report(0, len(rows), "reading the metadata")
    with (
        rows.reader() as reader,
        pq.ParquetWriter(job.path, reader.schema, compression="zstd") as writer,
    ):
        for batch in _counted(job, rows, reader):
            writer.write_batch(batch)


def _counted(job: Job, rows: Rows, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    done = 0
    for batch in reader:
        yield batch
        done += len(batch)
        job.report(done, len(rows), "writing rows")


def write_zip(job: Job, rows: Rows, pictures: Pictures, more: int) -> None:
    """The stored files of what decodes as an image, each under a name of its own, best first, and
    as many as the limit of bytes allows. `more`: how many there are beyond the rows."""
    most = pictures.limits.zip_bytes
    used = {LIST.lower(), LEFT_OUT.lower()}
    written, full, left_out = 0, False, []
    sheet = io.StringIO()
    listed = csv.writer(sheet, lineterminator="\r\n")
    listed.writerow(map(safe_cell, ["file", *rows.names]))
    # Times are not those of writing: the same view gives the same zip.
    with (
        rows.reader() as reader,
        zipfile.ZipFile(job.path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        for *known, uri in _each(reader):
            job.report(known[0], len(rows), f"{written >> 20} MiB so far")
            try:
                if full:
                    raise Unavailable("too-large", f"a zip holds {most >> 20} MiB at most")
                if not uri:
                    raise Unavailable("no-uri", "the collection does not say where it is")
                data = pictures.original(uri).data
                full = written + len(data) > most
                if full:
                    raise Unavailable("too-large", f"a zip holds {most >> 20} MiB at most")
            except Unavailable as error:
                left_out.append(f"{known[1]}\t{uri or ''}\t{error.message}")
                continue
            written += len(data)
            name = _unique(safe_name(title(uri)), used)
            archive.writestr(zipfile.ZipInfo(name), data)
            listed.writerow(map(safe_cell, [name, *known]))
        archive.writestr(zipfile.ZipInfo(LIST), sheet.getvalue().encode("utf-8", "replace"))
        if more:
            left_out.append(f"and {more:,} more: a zip holds {len(rows):,} pictures at most")
        if left_out:
            text = "Left out: id, uri, and why\n\n" + "\n".join(left_out) + "\n"
            archive.writestr(zipfile.ZipInfo(LEFT_OUT), text.encode("utf-8", "replace"))
    missing = len(left_out) - bool(more) + more
    if missing:
        job.note = f"{missing:,} pictures are left out; {LEFT_OUT} in the zip says why"


def _each(reader: pa.RecordBatchReader) -> Iterator[tuple[Any, ...]]:
    for batch in reader:
        yield from zip(*[column.to_pylist() for column in batch.columns], strict=True)


def _unique(name: str, used: set[str]) -> str:
    """A name that no other file has, on systems that do not tell case apart either."""
    stem, dot, suffix = name.rpartition(".") if "." in name else (name, "", "")
    now, number = name, 1
    while now.lower() in used:
        number += 1
        now = f"{stem} ({number}){dot}{suffix}"
    used.add(now.lower())
    return now


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter(tags=["exports"])


def rows_of(cursor: RequestCursor, view: View, wanted: ExportRequest, pictures: Pictures) -> Rows:
    """What is to be written. Raises InputError for what the format cannot hold."""
    if wanted.format == "zip":
        most = pictures.limits.zip_files
        return Rows(cursor, view, wanted.columns, True, most=most, uri=True)
    return Rows(cursor, view, wanted.columns, wanted.format != "parquet")


def work(
    library: Library, pictures: Pictures, view: View, wanted: ExportRequest
) -> Callable[[Job], None]:
    """What writes a view, on a cursor of its own: the request that asked for it is over by then."""

    def write(job: Job) -> None:
        cursor = RequestCursor(library)
        job.on_cancel = cursor.interrupt
        try:
            rows = rows_of(cursor, current(cursor, view), wanted, pictures)
            if wanted.format == "zip":
                write_zip(job, rows, pictures, len(view) - len(rows))
            elif wanted.format == "csv":
                write_csv(job, rows)
            elif wanted.format == "json":
                write_json(job, rows)
            else:
                write_parquet(job, rows)
        finally:
            job.on_cancel = None
            cursor.close()

    return write


@router.post(
    "/views/{view}/exports",
    summary="Write a view to a file, in the background",
    status_code=202,
    responses={
        404: {"model": ErrorBody, "description": "the view is not kept any more"},
        429: {"model": ErrorBody, "description": "too many exports at once"},
    },
)
async def export(
    request: Request, cursor: Cursor, view: ViewPath, wanted: ExportRequest
) -> JobStarted:
    state = request.app.state
    library: Library = state.library
    pictures: Pictures = state.pictures
    jobs: Jobs = state.jobs

    def check() -> View:
        found: View = state.views.get(cursor, view)
        # What cannot be written is told at once, not by a job that fails.
        rows_of(cursor, found, wanted, pictures)
        return found

    found = await library.run(request, check)
    name = f"{safe_name(found.base.collection)}.{wanted.format}"
    job = jobs.start(name, _TYPES[wanted.format], work(library, pictures, found, wanted))
    return JobStarted(job=job.id)
