"""Adding images to a collection: from sources by way of decoder and encoder to rows, and a report.

Every batch is committed by itself, with its rows of metadata, so what ends an add, be it Ctrl-C,
an error or a power cut, leaves whole batches; the next add passes over what is in.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from boxwood import catalog, rows
from boxwood.catalog import quoted
from boxwood.encode import Encoder
from boxwood.encode.decode import TIMEOUT, Broken, Decoded, Decoder, Item
from boxwood.encode.sources import Sources, columns
from boxwood.errors import InputError
from boxwood.progress import Bar

Duplicates = Literal["skip", "keep"]

SKIPPED = pa.schema([("uri", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
"""Of the table of what was left out."""

_OWN = pa.schema(
    [
        ("uri", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("bytes", pa.int64()),
        ("modified", pa.timestamp("us")), ("hash", pa.string()),
    ]
)  # fmt: skip
_CHUNK = 1 << 14  # uris that are looked up at a time
_HELD = 32 << 20  # bytes of images, at most, that are listed ahead
_WHOLE = frozenset(("TINYINT", "SMALLINT", "INTEGER", "BIGINT"))
_NUMBERS = _WHOLE | {"FLOAT", "DOUBLE"}


@dataclass(frozen=True, repr=False)
class AddReport:
    """What `Collection.add_images` did.

    `added` images were embedded, or, with ``duplicates='keep'``, have the codes of another one;
    `known` were in the collection already. `skipped` is a ``pyarrow.Table(uri, reason, detail)`` of
    the rest: the reasons are 'truncated', 'not an image', 'decompression bomb', 'zero pixels',
    'unreadable', 'broken', 'timeout', 'duplicate' and 'same name'.
    """

    added: int
    known: int
    skipped: pa.Table
    seconds: float

    def __repr__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.known:,} known"]
        parts += [f"{count:,} {reason}" for reason, count in self.reasons.items()]
        return f"AddReport({', '.join(parts)}; {self.seconds:.1f} s)"

    @property
    def images_per_second(self) -> float:
        return self.added / self.seconds if self.seconds else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """How many images were skipped for each reason, most frequent first."""
        return dict(Counter(self.skipped["reason"].to_pylist()).most_common())

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Uri and detail of the images that could not be read: those skipped but for duplicates."""
        return [
            (row["uri"], row["detail"])
            for row in self.skipped.to_pylist()
            if row["reason"] != "duplicate"
        ]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write what was skipped as CSV."""
        pyarrow.csv.write_csv(self.skipped, Path(path).expanduser())


class Target(Protocol):
    """What is used of a collection; see there."""

    name: str
    con: duckdb.DuckDBPyConnection

    def _append(
        self,
        ids: Any,
        *,
        embeddings: Any = None,
        codes: Any = None,
        fine: Any = None,
        metadata: Any = None,
    ) -> int: ...
    def _fresh(self, cur: duckdb.DuckDBPyConnection) -> catalog.Record: ...
    def _next_id(self, count: int) -> int: ...
    def _need_encoder(self, what: str) -> Encoder: ...


@dataclass
class Adding:
    """One call of `Collection.add_images`."""

    collection: Target
    sources: Sources
    duplicates: Duplicates
    deferred: Callable[[], AbstractContextManager[None]]
    """Puts Ctrl-C off, so that what is embedded is also committed."""
    known: int = 0
    added: int = 0
    skipped: list[Broken] = field(default_factory=list)
    # Uris that are listed and not committed yet, and of some of them the row of metadata that
    # waits for its code.
    _pending: set[str] = field(default_factory=set)
    _rows: dict[str, int] = field(default_factory=dict)
    # What this call has given ids from `_first` on, and what had a row of metadata before.
    _first: int = 0
    _filled: set[str] = field(default_factory=set)
    # Hashes: the first 64 bits of those in the database, sorted; those that this call has added;
    # and whose they are, where the database does not say.
    _stored: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    _new: set[str] = field(default_factory=set)
    _unstored: dict[str, tuple[str, int]] = field(default_factory=dict)
    _next_id: int = 0

    def run(
        self,
        batch: int,
        workers: int | None,
        progress: bool,
        timeout: float | None = TIMEOUT,
    ) -> AddReport:
        start = time.perf_counter()
        with self.collection.con.cursor() as cur:
            catalog.check_writable(cur, "add images")
        if timeout is not None and not (
            isinstance(timeout, (int, float)) and 0 < timeout <= threading.TIMEOUT_MAX
        ):
            raise InputError(f"timeout must be a number of seconds above 0, or None: {timeout!r}")
        encoder = self.collection._need_encoder("embed images")
        recipe = encoder.recipe
        self._stored = self._stored_hashes()
        self._next_id = self._first = self.collection._next_id(0)
        done = 0
        with (
            Bar(self.collection.name, progress) as bar,
            Decoder(self._unknown(), recipe, workers, min(2 * batch, 1024), timeout) as decoder,
        ):
            while results := decoder.take(batch):
                done += len(results)
                good, first = self._sift(results)
                vectors: NDArray[np.float32] | None = None
                if good and recipe is None:
                    vectors = encoder.images([image.pixels for image in good])
                elif good:
                    vectors = encoder.pixels(np.stack([image.pixels for image in good]))
                with self.deferred():
                    if vectors is not None:
                        self._append_new(good, first, vectors)
                    self._append_copies()
                self._pending.difference_update(_uri(result) for result in results)
                bar.update(done, max(done, self.sources.total - self.known))
        table = pa.table(
            [[getattr(row, name) for row in self.skipped] for name in SKIPPED.names], SKIPPED
        )
        return AddReport(self.added, self.known, table, time.perf_counter() - start)

    # --- what is there already

    def _unknown(self) -> Iterator[Item | Broken]:
        """The items that are not in the collection."""
        for chunk in _chunks(self.sources):
            known = self._known([entry.uri for entry in chunk if isinstance(entry, Item)])
            for entry in chunk:
                if isinstance(entry, Broken):
                    yield entry
                    continue
                number, coded = known.get(entry.uri, (-1, False))
                if entry.uri in self._pending or (
                    coded and (number >= self._first or entry.uri in self._filled)
                ):
                    yield _listed_before(entry)
                elif coded:
                    self.known += 1
                else:
                    self._pending.add(entry.uri)
                    if number >= 0:
                        self._rows[entry.uri] = number
                    yield entry

    def _known(self, uris: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """The ids of those that have a row of metadata, and whether they have a code."""
        with self.collection.con.cursor() as cur:
            record = self.collection._fresh(cur)
            found = rows_of_uris(cur, record, pa.array(dict.fromkeys(uris), pa.string()))
        for uri, (number, _) in found.items():
            if number < 0:
                raise InputError(
                    f"the table {record.table!r} gives {uri} the id {number} in its column "
                    f"{record.id_column!r}; ids are 0 or more: change it there"
                )
        return found

    def _stored_hashes(self) -> NDArray[np.uint64]:
        with self.collection.con.cursor() as cur:
            record = self.collection._fresh(cur)
            if metadata_columns(cur, record).get("hash") != "VARCHAR":
                return np.empty(0, np.uint64)
            table = cur.sql(
                "SELECT TRY_CAST('0x' || hash[:16] AS UBIGINT) AS hash "
                f"FROM {record.metadata} WHERE length(hash) = 32 ORDER BY 1"
            ).to_arrow_table()
        found: NDArray[np.uint64] = table["hash"].drop_null().to_numpy()
        return found

    def _is_new(self, digest: str) -> bool:
        """Whether certainly no image has this hash."""
        if digest in self._new:
            return False
        first = np.uint64(int(digest[:16], 16))
        at = int(np.searchsorted(self._stored, first))
        return at == len(self._stored) or self._stored[at] != first

    def _older(self, digests: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Uri and id of an image in the collection for each hash that one has."""
        wanted = dict.fromkeys(digests)
        found = {digest: self._unstored[digest] for digest in wanted if digest in self._unstored}
        if len(found) == len(wanted):
            return found
        with self.collection.con.cursor() as cur:
            record = self.collection._fresh(cur)
            if record.table is None or metadata_columns(cur, record).get("hash") != "VARCHAR":
                return found
            listed = pa.table({"hash": pa.array(wanted, pa.string())})
            with catalog.registered(cur, "boxwood_hashes", listed):
                rows = cur.execute(
                    f"SELECT m.hash, min_by(m.uri, c.id), min(c.id) FROM "
                    f"{record.metadata} m JOIN boxwood_hashes n ON n.hash = m.hash "
                    f"JOIN {record.ids} c ON c.id = m.{quoted(record.id_column)} GROUP BY m.hash"
                ).fetchall()
        return found | {digest: (uri, number) for digest, uri, number in rows}

    # --- batches

    def _sift(self, results: Sequence[Decoded | Broken]) -> tuple[list[Decoded], list[int]]:
        """The images to embed of a batch, and for each of its images that get a vector, the place
        of that. Duplicates of images in the collection are put aside, or copied."""
        self._copies: list[tuple[Decoded, int]] = []
        self._same: list[Decoded] = []
        decoded = [result for result in results if isinstance(result, Decoded)]
        self.skipped += [result for result in results if isinstance(result, Broken)]
        older = self._older(image.hash for image in decoded if not self._is_new(image.hash))
        good: list[Decoded] = []
        place: dict[str, int] = {}
        first: list[int] = []
        for image in decoded:
            if image.hash in older:
                uri, number = older[image.hash]
                if self._left_out(image, uri):
                    continue
                self._copies.append((image, number))
            elif image.hash in place:
                if self._left_out(image, good[place[image.hash]].item.uri):
                    continue
                self._same.append(image)
                first.append(place[image.hash])
            else:
                place[image.hash] = len(good)
                good.append(image)
        return good, [*range(len(good)), *first]

    def _left_out(self, image: Decoded, uri: str) -> bool:
        """Whether a duplicate is skipped. What the user has given a row of metadata never is."""
        if self.duplicates == "keep" or image.item.uri in self._rows:
            return False
        self.skipped.append(Broken(image.item.uri, "duplicate", f"the same bytes as {uri}"))
        return True

    def _append_new(
        self, good: list[Decoded], places: Sequence[int], vectors: NDArray[np.float32]
    ) -> None:
        images = [*good, *self._same]
        self._append(images, lambda some: {"embeddings": vectors[[places[n] for n in some]]})

    def _append_copies(self) -> None:
        """Append images whose bytes are those of images in the collection."""
        if not self._copies:
            return
        wanted = [number for _, number in self._copies]
        with self.collection.con.cursor() as cur:
            record = self.collection._fresh(cur)
            found = rows.of_ids(cur, record, np.unique(np.array(wanted, np.int64)))
            order = np.argsort(found.ids)
            copied = found.some(order[np.searchsorted(found.ids, wanted, sorter=order)])
            embeddings = rows.embeddings_of(cur, record, copied.ids)
        codes, fine = copied.codes, copied.fine
        self._append(
            [image for image, _ in self._copies],
            lambda some: {
                "codes": codes[some],
                "fine": None if fine is None else fine[some],
                "embeddings": None if embeddings is None else embeddings[some],
            },
        )

    def _append(
        self, images: Sequence[Decoded], values: Callable[[list[int]], dict[str, Any]]
    ) -> None:
        """Append images, those first that have a row of metadata."""
        collection = self.collection
        old = [n for n, image in enumerate(images) if image.item.uri in self._rows]
        new = [n for n, image in enumerate(images) if image.item.uri not in self._rows]
        if old:
            ids = [self._rows.pop(images[n].item.uri) for n in old]
            self._filled.update(images[n].item.uri for n in old)
            collection._append(ids, **values(old))
            self._note([images[n] for n in old], ids, stored=False)
        if new:
            some = [images[n] for n in new]
            numbers = range(self._next_id, self._next_id + len(new))
            with collection.con.cursor() as cur:
                metadata, stored = fitting(cur, collection._fresh(cur), _details(some))
            collection._append(np.array(numbers), metadata=metadata, **values(new))
            self._next_id += len(new)
            self._note(some, numbers, stored)
        self.added += len(images)

    def _note(self, images: Sequence[Decoded], ids: Iterable[int], stored: bool) -> None:
        for image, number in zip(images, ids, strict=True):
            self._new.add(image.hash)
            if not stored:
                self._unstored.setdefault(image.hash, (image.item.uri, number))


def metadata_columns(cur: duckdb.DuckDBPyConnection, record: catalog.Record) -> dict[str, str]:
    """The columns of the metadata table, with their types."""
    if record.table is None:
        return {}
    rows = cur.execute(f"DESCRIBE FROM {record.metadata}").fetchall()
    return {row[0]: row[1] for row in rows}


def rows_of_uris(
    cur: duckdb.DuckDBPyConnection, record: catalog.Record, uris: pa.Array | pa.ChunkedArray
) -> dict[str, tuple[int, bool]]:
    """Of the uris that have a row of metadata: its id, and whether it has a code. Of several rows
    of one uri, one with a code."""
    kinds = metadata_columns(cur, record)
    if record.table is None:
        return {}
    if "uri" not in kinds:
        raise InputError(
            f"the table {record.table!r} has no column 'uri', which says where images come from; "
            f"it has {', '.join(kinds)}"
        )
    listed = pa.table({"uri": uris})
    with catalog.registered(cur, "boxwood_uris", listed):
        rows = cur.execute(
            f"SELECT m.uri, m.{quoted(record.id_column)}, c.id IS NOT NULL AS coded "
            f"FROM {record.metadata} m "
            f"LEFT JOIN {record.ids} c ON c.id = m.{quoted(record.id_column)} "
            "WHERE m.uri IN (SELECT uri FROM boxwood_uris) "
            f"AND m.{quoted(record.id_column)} IS NOT NULL ORDER BY coded"
        ).fetchall()
    return {uri: (number, coded) for uri, number, coded in rows}


def known_uris(
    cur: duckdb.DuckDBPyConnection, record: catalog.Record, uris: pa.Array | pa.ChunkedArray
) -> dict[str, int | None]:
    """Of the uris that have a row of metadata: None if it has a code, else its id."""
    return {
        uri: None if coded else number
        for uri, (number, coded) in rows_of_uris(cur, record, uris).items()
    }


def fitting(
    cur: duckdb.DuckDBPyConnection, record: catalog.Record, rows: pa.Table
) -> tuple[pa.Table, bool]:
    """Rows as the metadata table takes them, and whether it keeps their hashes. A table that
    Boxwood made gets the columns that it lacks, and wider ones; of the user's own only the columns
    that are there are filled. What a source calls as the collection its ids gets another name."""
    rows = rows.rename_columns(
        [f"source_{name}" if name.lower() == record.id_column.lower() else name
         for name in rows.column_names]
    )  # fmt: skip
    if record.table is None:
        return rows, "hash" in rows.column_names
    kinds = {name.lower(): kind for name, kind in metadata_columns(cur, record).items()}
    if not record.owns_table:
        keep = [name for name in rows.column_names if name.lower() in kinds]
        return rows.select(keep), "hash" in kinds
    with catalog.registered(cur, "boxwood_new_rows", rows):
        made = cur.execute("DESCRIBE FROM boxwood_new_rows").fetchall()
    for name, kind, *_ in made:
        change = None
        there = kinds.get(name.lower())
        if there is None:
            change = f"ADD COLUMN {quoted(name)} {kind}"
        elif name not in _OWN.names and (wider := _wider(there, kind)) != there:
            change = f"ALTER COLUMN {quoted(name)} TYPE {wider}"
        if change is not None:
            cur.execute(f"ALTER TABLE {record.metadata} {change}")
    return rows, "hash" in rows.column_names


def _listed_before(item: Item) -> Broken:
    """An image whose uri another one of this call has."""
    if isinstance(item.data, str):
        return Broken(item.uri, "duplicate", "the same file is listed before, in this call")
    said = (
        "an image before it in this call is called the same; rename one, or in a table name the "
        "column that tells them apart, key=.. (--key)"
    )
    return Broken(item.uri, "same name", said)


def _uri(result: Decoded | Broken) -> str:
    return result.uri if isinstance(result, Broken) else result.item.uri


def _chunks(entries: Iterable[Item | Broken]) -> Iterator[list[Item | Broken]]:
    """Some thousand entries at a time; fewer at first, and of those that hold their bytes."""
    chunk: list[Item | Broken] = []
    held, most = 0, 256
    for entry in entries:
        chunk.append(entry)
        if isinstance(entry, Item) and isinstance(entry.data, bytes):
            held += len(entry.data)
        if len(chunk) >= most or held >= _HELD:
            yield chunk
            chunk, held, most = [], 0, min(2 * most, _CHUNK)
    if chunk:
        yield chunk


def _details(images: Sequence[Decoded]) -> pa.Table:
    own = [
        pa.array([image.item.uri for image in images], pa.string()),
        *(pa.array([getattr(image, name) for image in images], _OWN.field(name).type)
          for name in _OWN.names[1:]),
    ]  # fmt: skip
    table = pa.table(own, _OWN)
    found = columns([image.item.metadata for image in images], _OWN.names)
    for name, values in found.items():
        table = table.append_column(name, values)
    return table


def _wider(there: str, new: str) -> str:
    """The type of a column that holds what it has and what is new."""
    if there in (new, "VARCHAR"):
        return there
    if there in _WHOLE and new in _WHOLE:
        return "BIGINT"
    numbers = all(kind in _NUMBERS or kind.startswith("DECIMAL(") for kind in (there, new))
    return "DOUBLE" if numbers else "VARCHAR"
