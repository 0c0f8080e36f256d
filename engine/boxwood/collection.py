"""Collections: images as rows of a DuckDB table, their codes, and the index over these."""

from __future__ import annotations

import builtins
import html
import math
import os
import re
import signal
import threading
import time
import uuid as uuids
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from boxwood import catalog, concepts, errors, native, rows, sessions
from boxwood.adding import Adding, AddReport, Duplicates, fitting, known_uris
from boxwood.catalog import Codes, Coding, Record, literal, quoted, table_name
from boxwood.concepts import Concept
from boxwood.connection import name_indexes, need_functions
from boxwood.encode import (
    DIMS,
    FINE_DIMS,
    FINE_INSIDE,
    Encoder,
    Head,
    Quantizer,
    load_image,
    vocabulary,
)
from boxwood.encode import check_embeddings as check
from boxwood.encode.decode import TIMEOUT
from boxwood.encode.sources import ClipRetrieval, Sources
from boxwood.errors import (
    Error,
    IndexMismatch,
    IndexProblem,
    IndexStale,
    InputError,
    MissingDependency,
    OutOfMemory,
    StorageError,
)
from boxwood.model import Model
from boxwood.native import Ids
from boxwood.progress import Bar
from boxwood.rows import Known, Rows
from boxwood.store import Draft, Store, hint, inspect, store_at
from boxwood.view import View

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
Learner = Literal["cover", "branch", "ensemble", "tree", "forest"]

__all__ = ["AddReport", "Collection", "Concept", "Encoded", "Estimate", "Recoded", "Refined"]

LEARNERS = ("cover", "branch", "ensemble", "tree", "forest")
FIT_ROWS = 100_000
"""Embeddings, at most, that a head and a quantizer are fitted to."""

_SLICE = 20_000  # trees of a forest times rows, between looks whether anybody waits: about 0.1 s
_FINGERPRINT = re.compile(r"[!-~]{1,31}")
_BATCH_BYTES = 64 << 20  # of embeddings, in bulk loads
_READY_ROWS = 1 << 17  # a batch of ready codes


class Encoded(NamedTuple):
    """What one text, image or embedding is to a collection: its code, uint8 (32,), and its fine
    code, uint8 (128,), which is None in collections without fine codes. `quantizer` is the
    collection's fingerprint of head and quantizer: elsewhere the code is refused."""

    code: Codes
    fine: Codes | None
    quantizer: str


class Recoded(NamedTuple):
    """What `Collection.recode` did: rows with new codes, stored phrases encoded anew, and stored
    phrases that were dropped because the encoder could not be opened."""

    rows: int
    phrases: int
    dropped: int


@dataclass
class _Change:
    """A change of rows that is being made."""

    cur: duckdb.DuckDBPyConnection
    record: Record
    number: int | None
    """Of the caller's transaction; None: it is in one of its own."""
    known: Known | None
    """The ids, where the change before this was an append as well."""


class _Chosen(NamedTuple):
    """A coding that is not stored yet, with the phrases to store beside it."""

    coding: Coding
    phrases: list[str]
    codes: Codes
    fine: Codes | None


Interval = tuple[float, float, float]
"""What a share is expected to be: low, value, high. It lay between low and high in about nine cases
of ten of docs/LEARNERS.md, and in fewer where matches are rarer than one in a thousand."""


@dataclass(frozen=True)
class Estimate:
    """What to expect of a trained model on the collection; None where nothing is known, as for
    learners other than 'cover', and with too few positives.

    `rows` is how many images should match; `precision` the share of these that should be right,
    and `recall` the share of all right images that should be among them.
    """

    rows: float | None = None
    precision: Interval | None = None
    recall: Interval | None = None

    def __str__(self) -> str:
        parts = [
            f"{name} {value[1]:.2f} ({value[0]:.2f}-{value[2]:.2f})"
            for name, value in (("precision", self.precision), ("recall", self.recall))
            if value is not None
        ]
        return f"expected {', '.join(parts)}" if parts else "nothing is known"

    @property
    def known(self) -> bool:
        """Whether anything is known of precision or recall."""
        return self.precision is not None or self.recall is not None


@dataclass(frozen=True, repr=False)
class Refined:
    """All rows that a model matches.

    `model` is the model, `sql` a statement that gives the same rows on any connection or shell with
    the extension loaded, `stats` what training and searching took: ``train_ms``, ``search_ms``,
    ``rows``, ``blocks`` (of 256 rows) and what became of them, and the numbers of labels.
    `estimate` is what to expect of the rows, before anybody has looked at them, and `note` what
    people should know about their labels; often empty.
    """

    model: Model
    stats: dict[str, Any]
    sql: str
    estimate: Estimate
    note: str
    _found: native.Found
    _order: list[NDArray[np.int64]] = field(default_factory=list)

    def __repr__(self) -> str:
        parts = [f"{self.count:,} images by {self.learner!r}"]
        parts += [str(self.estimate)] if self.estimate.known else []
        parts += [self.note] if self.note else []
        return f"Refined({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [("images", f"{self.count:,}"), ("learner", self.learner)]
        rows += [("estimate", str(self.estimate))] if self.estimate.known else []
        rows += [("note", self.note)] if self.note else []
        cells = (f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
        return f"<table>{''.join(cells)}</table>"

    @property
    def learner(self) -> str:
        """The learner of the model as it was trained: 'nearest' where the guard of 'cover' took
        the distance to the mean positive."""
        return self.model.learner

    @property
    def count(self) -> int:
        return len(self._found.ids)

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> Ids:
        """Ids in ranked order."""
        return self._found.ids[self._ranked()]

    def table(self, limit: int | None = None) -> pa.Table:
        """The rows as ``pyarrow.Table(id, votes, score)``, best score first, ties by id."""
        if limit is not None:
            limit = native.check_count(limit, "limit", 0, 2**62)
        return self._slice(0, self.count if limit is None else limit)

    def reader(self, batch_size: int = 65_536) -> pa.RecordBatchReader:
        """The rows of `table` in batches, made as they are asked for."""
        size = native.check_count(batch_size, "batch_size", 1, 2**31)
        batches = (
            batch
            for start in range(0, self.count, size)
            for batch in self._slice(start, start + size).to_batches()
        )
        return pa.RecordBatchReader.from_batches(self._slice(0, 0).schema, batches)

    def _slice(self, start: int, stop: int) -> pa.Table:
        rows = self._ranked()[start:stop]
        return pa.table(
            {
                "id": self._found.ids[rows],
                "votes": self._found.votes[rows],
                "score": self.model.score_values(self._found.scores[rows]),
            }
        )

    def _ranked(self) -> NDArray[np.int64]:
        if not self._order:
            self._order.append(_ranking(self._found.ids, self._found.scores))
        return self._order[0]


class Collection:
    """A set of images under a name. `create` and `open` make one.

    Each image has an id (a whole number from 0) and a code of 32 bytes, and may have metadata in a
    table of the user's, or one that Boxwood makes. Reading may be done from several threads;
    changes take their turns.
    """

    con: duckdb.DuckDBPyConnection
    name: str
    index_path: Path
    """The index folder: what the extension's functions take as `index`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, record: Record, store: Store) -> None:
        self.con = con
        self.name = record.name
        self.index_path = store.path
        self._record = record
        self._store = store
        self._coding: tuple[tuple[str, ...], Coding] | None = None  # by its fingerprints
        self._writable = False  # once that is known
        self._committed: tuple[Record, Known | None] | None = None
        """The record as the last change of this object has left it, and after an append the ids."""

    # --- making, opening, dropping ----------------------------------------------------------------

    @classmethod
    def create(
        cls,
        con: duckdb.DuckDBPyConnection,
        name: str,
        *,
        encoder: str | Encoder | None = None,
        head: Head | str | os.PathLike[str] | None = None,
        texts: Sequence[str] | ArrayLike | None = None,
        table: str | None = None,
        id_column: str = "id",
        fine: bool | None = None,
        keep_embeddings: bool = False,
    ) -> Collection:
        """Make an empty collection on a connection of `boxwood.connect`.

        encoder: a name as `Encoder.open` takes it, for collections of image files and searches by
            words. Without one the collection takes ready embeddings or codes.
        head: the map from embeddings to 32 dimensions, or the path of a file with one. Without one
            it is fitted to the first rows: the encoder's own or the directions that images share
            with its vocabulary; without an
            encoder the directions shared with `texts`, or else the images' principal components.
        texts: phrases in place of the vocabulary, or, without an encoder, text embeddings (n, dims)
            of the images' space.
        table: an existing table of the images' metadata, with the ids in `id_column`. Left out: the
            table of the collection's name, which the first metadata make where there is none.
        fine: whether to keep fine codes, 128 bytes an image more, by which searches can judge what
            they find once more. None: where embeddings are at hand, and where the first ready
            codes come with theirs. True: ready codes must. Either all images of a collection have
            fine codes or none.
        keep_embeddings: whether to keep the embeddings in the database as well, 4 bytes a
            dimension and image, so that `recode` can change the head later.
        """
        catalog.check_name(name)
        if fine is not None and not isinstance(fine, bool):
            raise InputError(f"fine must be True, False or None, not {fine!r}")
        if not isinstance(keep_embeddings, bool):
            raise InputError(f"keep_embeddings must be True or False, not {keep_embeddings!r}")
        head = _head(head)
        _refuse_transaction(con, "create a collection")
        model = _encoder(encoder)
        given = _given_texts(texts, model)
        if head is not None and head.dims != DIMS:
            raise InputError(
                f"the head must put out {DIMS} dimensions, not {head.dims}: the one of the fine "
                "codes is fitted beside it"
            )
        if head is not None and model is not None and head.width != model.dims:
            raise InputError(
                f"the head {head.kind!r} (fingerprint {head.fingerprint}) takes embeddings of "
                f"{head.width} dimensions, but the encoder {model.name!r} (fingerprint "
                f"{model.fingerprint}) makes {model.dims}: use a head of its own"
            )
        if head is not None and isinstance(given, np.ndarray) and given.shape[1] != head.width:
            raise InputError(
                f"the head takes embeddings of {head.width} dimensions, but texts have "
                f"{given.shape[1]}"
            )
        with _database_errors(), con.cursor() as cur:
            catalog.check_writable(cur, f"create the collection {name!r}")
            where = catalog.database(cur)
            need_functions(cur)
            catalog.create_schema(cur)
            for other in catalog.names(cur):
                if other.lower() == name.lower():  # DuckDB's tables do not tell them apart
                    raise InputError(
                        f"there is a collection {other!r} already: Collection.open opens it, and "
                        "its drop() removes it"
                    )
            uuid = uuids.uuid4()
            record = Record(
                name=name, uuid=uuid, generation=0,
                table=_metadata_table(cur, name, table, id_column), id_column=id_column,
                owns_table=False,
                encoder=None if model is None else model.name,
                encoder_fingerprint="" if model is None else model.fingerprint,
                head="" if head is None else head.fingerprint,
                quantizer="", offset=None, scale=None,
                folder=None if where.path else os.path.join(catalog.temporary_folder(), str(uuid)),
                fine_wanted=fine, keep_embeddings=keep_embeddings,
            )  # fmt: skip
            store = store_at(record.index_path(where))
            with store.lock, _transaction(cur):
                if head is not None:
                    catalog.store_head(cur, head)
                catalog.insert(cur, record, given)
                catalog.set_indexed(cur, record, store.create(record))
            name_indexes(con)
            return cls(con, record, store)

    @classmethod
    def open(
        cls,
        con: duckdb.DuckDBPyConnection,
        name: str,
        *,
        repair: bool = False,
        encoder: str | Encoder | None = None,
    ) -> Collection:
        """Open a collection. An index that is behind takes in what it lacks, and one that is older
        or newer than the database is made anew; for one that is missing, damaged or foreign there
        is an IndexProblem, or, with `repair`, a new index from the rows in the database.

        encoder: the collection's own, where its name does not lead to it any more: a checkpoint
            file that lies elsewhere now. Any other is refused.
        """
        model = _encoder(encoder)
        with _database_errors(), con.cursor() as cur:
            need_functions(cur)
            record = catalog.record(cur, name)
            if model is not None:
                if record.encoder is None or model.fingerprint != record.encoder_fingerprint:
                    raise IndexMismatch(
                        f"the encoder {model.name!r} (fingerprint {model.fingerprint}) is not that "
                        f"of the collection {name!r}: "
                        + (
                            f"{record.encoder!r} (fingerprint {record.encoder_fingerprint})"
                            if record.encoder
                            else "it was made without one"
                        )
                        + ". Codes of different encoders cannot be compared"
                    )
                catalog.keep_encoder(model, record.encoder)
            where = catalog.database(cur)
            self = cls(con, record, store_at(record.index_path(where)))
            try:
                with self._store.lock:
                    self._open_index(cur, where, repair)
            finally:
                name_indexes(con)
        return self

    def _open_index(
        self, cur: duckdb.DuckDBPyConnection, where: catalog.Database, repair: bool
    ) -> None:
        """See to it that the index answers for the rows; under the store's lock."""
        self._store.forget()  # the database may be another one than that of before, put back
        try:
            try:
                with catalog.snapshot(cur):
                    record = self._fresh(cur)
                    self._check_index(cur, record)
            except IndexStale:
                if where.read_only:
                    raise
                self._bring_up(cur, anew=True)
            else:
                if not where.read_only and (
                    rows.pending(cur, record) or rows.many_orphans(cur, record)
                ):
                    self._bring_up(cur)
        except IndexProblem as error:
            if not repair:
                raise hint(error, where, self.name) from error
            catalog.check_writable(cur, f"repair the index of {self.name!r}")
            self._bring_up(cur, anew=True)

    def _check_index(self, cur: duckdb.DuckDBPyConnection, record: Record) -> None:
        """That the index is of these rows, as far as that can be told without reading them all."""
        index = self._store.open(record)
        since = index.info.generation
        if since > record.generation:
            raise self._too_new(index)
        if since > record.indexed or not record.checksum:
            # A crash came before the database knew of this index, or it is that of another history.
            try:
                self._store.verify(cur, record)
            except IndexMismatch as error:
                raise IndexStale(str(error)) from error
            return
        index = index.without(self._store.changes(cur, record, index).ids)
        there = rows.count(cur, record, f"generation <= {since}")
        if there != len(index):
            raise IndexStale(
                f"the index in {self.index_path} has {len(index):,} rows of generation {since}, "
                f"the codes table {there:,}"
            )

    def _too_new(self, index: native.Index) -> IndexStale:
        return IndexStale(
            f"the index in {self.index_path} is newer (generation {index.info.generation}) than "
            "the rows: the database may have been put back from an older copy"
        )

    @staticmethod
    def list(con: duckdb.DuckDBPyConnection) -> builtins.list[str]:
        """Names of the collections in a database."""
        with con.cursor() as cur:
            return catalog.names(cur)

    @staticmethod
    def describe(con: duckdb.DuckDBPyConnection) -> builtins.list[dict[str, Any]]:
        """What every collection of a database is and what it takes; all plain values. No index is
        opened for good or mended; ``state`` says what it is to the rows: 'current'; 'behind', where
        changes wait to be taken in and are answered from the database; 'stale', 'missing',
        'corrupt' or 'foreign', which need a repair; and 'no table' where the metadata table is not
        there, without which there are no images."""
        with _database_errors(), con.cursor() as cur:
            where = catalog.database(cur)
            return [_description(cur, where, record) for record in catalog.records(cur)]

    def drop(self) -> None:
        """Remove the collection: codes, index, concepts, sessions, and the metadata table if
        Boxwood made it."""
        with self._writing("drop the collection") as (cur, record):
            with _transaction(cur):
                concepts.remove_all(cur, record)
                sessions.remove_all(cur, record.name)
                catalog.remove(cur, record)
            self._store.remove()
        name_indexes(self.con)

    # --- bulk loads -------------------------------------------------------------------------------

    @classmethod
    def from_table(
        cls,
        con: duckdb.DuckDBPyConnection,
        table: str,
        *,
        id: str = "id",
        embedding: str = "embedding",
        name: str | None = None,
        encoder: str | Encoder | None = None,
        head: Head | str | os.PathLike[str] | None = None,
        texts: Sequence[str] | ArrayLike | None = None,
        fine: bool | None = None,
        keep_embeddings: bool = False,
        progress: bool = False,
    ) -> Collection:
        """A collection of the rows of a table or view with embeddings: a list or array of floats in
        the column `embedding`; or, where it has no such column, with ready codes: integers in the
        columns d00 .. d31, and, unless `fine` is False, in a column `fine` (128 of them) if it has
        one. The table becomes its metadata table. Without `name` it is named like the table. The
        other options are those of `create`. If anything fails, no collection is left behind."""
        with _database_errors(), con.cursor() as cur:
            if not catalog.table_exists(cur, table):
                raise InputError(
                    f"there is no table {table!r} in the database: temporary ones, and objects "
                    "that were registered on a connection, must be made tables first"
                )
            columns = _columns(cur, table_name(table))
        values = _value_columns(columns, embedding, fine, f"the table {table!r}")
        self = cls.create(
            con, table.split(".")[-1] if name is None else name, encoder=encoder, head=head,
            texts=texts, table=table, id_column=id, fine=fine, keep_embeddings=keep_embeddings,
        )  # fmt: skip
        with self._or_drop():
            self._load(table_name(table), quoted(id), values, progress)
        return self

    @classmethod
    def from_parquet(
        cls,
        con: duckdb.DuckDBPyConnection,
        name: str,
        path: str | os.PathLike[str],
        *,
        id: str | None = "id",
        embedding: str = "embedding",
        encoder: str | Encoder | None = None,
        head: Head | str | os.PathLike[str] | None = None,
        texts: Sequence[str] | ArrayLike | None = None,
        fine: bool | None = None,
        keep_embeddings: bool = False,
        progress: bool = False,
    ) -> Collection:
        """A collection of the rows of a Parquet file, or of several (a glob), with embeddings or
        ready codes in columns as `from_table` takes them. The other columns become its metadata
        table. With ``id=None`` the ids are row numbers from 0. If anything fails, nothing is left
        behind."""
        source = f"read_parquet({literal(Path(path).expanduser())})"
        key = "id" if id is None else id
        with _database_errors(), con.cursor() as cur:
            try:
                columns = _columns(cur, source)
            except duckdb.IOException as error:
                raise StorageError(f"cannot read {path}: {_first_line(error)}") from error
            except duckdb.Error as error:
                raise InputError(f"cannot read {path} as Parquet: {_first_line(error)}") from error
        if id is not None and id not in columns:
            raise InputError(f"{path} has no column {id!r}; it has {', '.join(columns)}")
        values = _value_columns(columns, embedding, fine, str(path))
        if id is None:
            if "id" in columns:
                raise InputError(f"{path} has a column 'id': pass id='id' to use it")
            source = f"(SELECT row_number() OVER () - 1 AS id, * FROM {source})"
        self = cls.create(
            con, name, encoder=encoder, head=head, texts=texts, id_column=key, fine=fine,
            keep_embeddings=keep_embeddings,
        )  # fmt: skip
        with self._or_drop():
            if self.table is not None:
                raise InputError(
                    f"there is a table {self.table!r} already: give the collection another name"
                )
            metadata = f"SELECT * EXCLUDE ({', '.join(map(quoted, values))}) FROM {source}"
            self._load(source, quoted(key), values, progress, metadata)
        return self

    @classmethod
    def from_npy(
        cls,
        con: duckdb.DuckDBPyConnection,
        name: str,
        path: str | os.PathLike[str],
        *,
        ids: ArrayLike | str | os.PathLike[str] | None = None,
        encoder: str | Encoder | None = None,
        head: Head | str | os.PathLike[str] | None = None,
        texts: Sequence[str] | ArrayLike | None = None,
        fine: bool | None = None,
        keep_embeddings: bool = False,
        progress: bool = False,
    ) -> Collection:
        """A collection of the rows of an ``.npy`` file: embeddings, floats (n, dims), or codes,
        uint8 (n, 32). `ids` are integers (n,) or the path of such a file; left out: 0 .. n - 1. If
        anything fails, no collection is left behind."""
        self = cls.create(
            con, name, encoder=encoder, head=head, texts=texts, fine=fine,
            keep_embeddings=keep_embeddings,
        )  # fmt: skip
        with self._or_drop():
            self.add_npy(path, ids=ids, progress=progress)
        return self

    def add_npy(
        self,
        path: str | os.PathLike[str],
        *,
        ids: ArrayLike | str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> int:
        """Append the rows of an ``.npy`` file, as `from_npy` takes it; returns their number. Ids
        that are left out go on after the largest. One transaction: if anything fails, or Ctrl-C
        comes, no row is added."""
        rows = _load_npy(path)
        if rows.ndim != 2:
            raise InputError(f"{path} must hold an array (rows, dimensions), not {rows.shape}")
        if ids is None:
            first = self._next_id(len(rows))
            numbers = np.arange(len(rows)) + first
        else:
            given = _load_npy(ids) if isinstance(ids, (str, os.PathLike)) else ids
            numbers = native.check_ids(given)
        if len(numbers) != len(rows):
            raise InputError(f"{len(numbers):,} ids cannot go with {len(rows):,} rows of {path}")
        if not len(rows):
            raise InputError(f"{path} holds no rows")
        _unique(numbers)
        size = _batch_rows(rows.shape[1])
        batches = (
            (numbers[start : start + size], rows[start : start + size], None)
            for start in range(0, len(rows), size)
        )
        if rows.dtype == np.uint8:
            return self._append_all(batches, len(rows), None, progress)
        return self._append_all(
            batches, len(rows), lambda: check(rows[:: -(-len(rows) // FIT_ROWS)]), progress
        )

    @classmethod
    def from_clip_retrieval(
        cls,
        con: duckdb.DuckDBPyConnection,
        name: str,
        folder: str | os.PathLike[str],
        *,
        encoder: str | Encoder | None = None,
        head: Head | str | os.PathLike[str] | None = None,
        texts: Sequence[str] | ArrayLike | None = None,
        fine: bool | None = None,
        keep_embeddings: bool = False,
        progress: bool = False,
    ) -> Collection:
        """A collection of the embeddings that clip-retrieval has written to a folder, as
        `add_clip_retrieval` takes them. If anything fails, no collection is left behind."""
        self = cls.create(
            con, name, encoder=encoder, head=head, texts=texts, fine=fine,
            keep_embeddings=keep_embeddings,
        )  # fmt: skip
        with self._or_drop():
            self.add_clip_retrieval(folder, progress=progress)
        return self

    def add_clip_retrieval(self, folder: str | os.PathLike[str], *, progress: bool = False) -> int:
        """Append the image embeddings of a folder of clip-retrieval: ``img_emb/img_emb_0.npy``, ..
        with ``metadata/metadata_0.parquet``, ..; returns their number. Ids go on after the largest;
        the metadata go into the metadata table, `image_path` as `uri`. Embeddings of texts are left
        alone. One transaction, as `add_npy`; a folder that was added before is refused."""
        parts = ClipRetrieval(folder)
        first = self._next_id(len(parts))
        batches = (
            (rows + first, vectors, None)
            for rows, vectors in parts.batches(_batch_rows(parts.arrays[0].shape[1]))
        )

        def describe(cur: duckdb.DuckDBPyConnection, start: int, count: int) -> pa.Table:
            rows = parts.metadata(start, count)
            known = [uri for uri, row in known_uris(cur, self._fresh(cur), rows["uri"]).items()
                     if row is None]  # fmt: skip
            if known:
                raise InputError(
                    f"{known[0]} is in the collection {self.name!r} already, so {folder} cannot be "
                    "added: was it added before? Nothing was changed"
                )
            return rows

        return self._append_all(
            batches, len(parts), lambda: check(parts.sample(FIT_ROWS)), progress, describe=describe
        )

    def _load(
        self,
        source: str,
        key: str,
        values: builtins.list[str],
        progress: bool,
        metadata: str | None = None,
    ) -> None:
        """Append ids and embeddings, or codes, of something that stands in a FROM clause, out of
        the columns that `_value_columns` has found. `metadata` is a query of what the metadata
        table is made of."""
        with _database_errors(), self.con.cursor() as cur:
            row = catalog.one(cur, f"SELECT count(*) FROM {source}")
            total = int(row[0]) if row else 0
            every = max(1, -(-total // FIT_ROWS))
            query = f"SELECT {key}, {', '.join(map(quoted, values))} FROM {source}"
            if len(values) > 1:
                reader = cur.sql(query).to_arrow_reader(_READY_ROWS)
                ready = (_ready(pa.Table.from_batches([batch])) for batch in reader if len(batch))
                self._append_all(ready, total, None, progress, metadata)
                return
            [embedding] = values
            whole = query
            if every > 1:
                query += f" WHERE hash({key}) % {every} = 0 LIMIT {FIT_ROWS}"
            sample = _embeddings(cur.sql(query).to_arrow_table(), embedding)[1] if total else None
            width = native.DIMS if sample is None else sample.shape[1]
            reader = cur.sql(whole).to_arrow_reader(_batch_rows(width))
            batches = (
                (*_embeddings(pa.Table.from_batches([batch]), embedding), None)
                for batch in reader
                if len(batch)
            )
            self._append_all(batches, total, lambda: sample, progress, metadata)

    def _append_all(
        self,
        batches: Iterable[tuple[Ids, Floats | Codes, Codes | None]],
        total: int,
        sample: Callable[[], Floats | None] | None,
        progress: bool,
        metadata: str | None = None,
        describe: Callable[[duckdb.DuckDBPyConnection, int, int], pa.Table] | None = None,
    ) -> int:
        """Append all batches in one transaction: committed when the rows and their segments are
        written, so whatever ends it earlier leaves nothing behind. `describe` gives the metadata
        of so many rows, from the one of this number on.

        Without `sample` the rows are codes, with fine codes or None beside them; else they are
        embeddings, and the first of a collection have head and quantizer fitted to what it returns.
        """
        done = 0
        with (
            self._writing("append") as (cur, record),
            Bar(self.name, progress) as bar,
            ExitStack() as committing,
        ):
            coding = None if sample is None else self._coding_of(cur, record)
            with _transaction(cur):
                record = catalog.raise_generation(cur, record)
                if metadata is not None:
                    record = self._adopt_table(cur, record)
                    cur.execute(f"CREATE TABLE {record.metadata} AS {metadata}")
                if not record.quantizer and sample is not None:
                    embeddings = sample()
                    if embeddings is not None:
                        chosen = self._choose_coding(cur, record, embeddings)
                        record, coding = self._store_coding(cur, record, chosen), chosen.coding
                elif sample is not None and coding is None:
                    raise self._no_embeddings()
                for ids, values, fine in batches:
                    with _row_offset(done):
                        if coding is None:
                            record = self._take_ready(cur, record, fine is not None, catalog.GIVEN)
                            new = Rows(ids, native.check_codes(values), fine)
                        else:
                            vectors = check(values)
                            _check_width(record, coding, vectors)
                            new = Rows(ids, *coding.images(vectors))
                    _unique(ids)
                    left = self._refuse_known(cur, record, ids)
                    details = None
                    if describe is not None:
                        details = describe(cur, done, len(ids))
                        details, _ = fitting(cur, record, details)
                        details = _metadata_rows(details, ids, self.id_column)
                    record = self._insert(cur, record, new, left, details, rows.insert)
                    if coding is not None:
                        rows.keep_embeddings(cur, record, ids, vectors)
                    done += len(ids)
                    bar.update(done, total)
                draft = self._store.prepare(cur, record)
                committing.enter_context(_interrupts_deferred())
            self._record = record
            self._after_commit(done, lambda: self._publish(cur, record, draft))
        return done

    @contextmanager
    def _or_drop(self) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:  # the generator itself goes away, long after the load
            raise
        except BaseException:
            with _interrupts_deferred():
                self.drop()
            raise

    # --- appending --------------------------------------------------------------------------------

    def append(
        self,
        ids: ArrayLike,
        *,
        embeddings: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        fine: ArrayLike | None = None,
        metadata: Any = None,
        encoder: str | Encoder | None = None,
        fingerprint: str | None = None,
    ) -> int:
        """Add images; returns their number. Either all are added or none.

        ids: integers >= 0, (n,), that the collection does not hold yet.
        embeddings: floats (n, dims), of any length but zero. The first ones decide the head, unless
            one was given, and the quantizer, and whether there are fine codes (see `create`).
        codes: ready codes, uint8 (n, 32), in place of embeddings.
        fine: ready fine codes, uint8 (n, 128), to go with `codes`. The first rows decide whether
            a collection has fine codes; then all of its images have them, or none.
        metadata: n rows for the metadata table: an Arrow table, a pandas DataFrame or a dict of
            columns. The ids are put beside them where they have no such column.
        encoder: what made the embeddings, an Encoder, its name or its fingerprint; refused where
            it is not the collection's.
        fingerprint: which head and quantizer made the ready codes: what ``info()["quantizer"]``
            says of the collection that they come from. A collection takes codes of one fingerprint
            alone, or, if its first ready codes came without, codes without. Embeddings make codes
            of a fingerprint.

        Within a transaction that is open on the connection this is a part of it; until that ends,
        searches by this collection see it too. Like any statement on the connection, a change ends
        what is still being read from it, as by fetchmany(): read from a cursor of its own.
        """
        fingerprint = self._check_given(embeddings, codes, fine, encoder, fingerprint)
        return self._append(
            ids, embeddings=embeddings, codes=codes, fine=fine, metadata=metadata,
            fingerprint=fingerprint,
        )  # fmt: skip

    def _check_given(
        self,
        embeddings: ArrayLike | None,
        codes: ArrayLike | None,
        fine: ArrayLike | None,
        encoder: str | Encoder | None,
        fingerprint: str | None,
    ) -> str:
        """What `append` and `update` take; the fingerprint of ready codes."""
        if (embeddings is None) == (codes is None):
            raise InputError("pass either embeddings or codes")
        if fine is not None and codes is None:
            raise InputError("fine codes go with codes: those of embeddings are made here")
        if fingerprint is not None and (codes is None or not _FINGERPRINT.fullmatch(fingerprint)):
            raise InputError(
                "a fingerprint goes with codes, and is what info()['quantizer'] says of the "
                f"collection that they come from, not {fingerprint!r}"
            )
        if encoder is not None:
            if embeddings is None:
                raise InputError("an encoder goes with embeddings")
            self._refuse_encoder(encoder)
        return fingerprint or catalog.GIVEN

    def _refuse_encoder(self, encoder: str | Encoder) -> None:
        """An error for any encoder but the collection's."""
        if isinstance(encoder, str):
            names = {encoder}
            shown = repr(encoder)
        elif isinstance(encoder, Encoder):
            names = {encoder.fingerprint}
            shown = f"{encoder.name!r} (fingerprint {encoder.fingerprint})"
        else:
            raise InputError(f"encoder must be an Encoder or a name, not {encoder!r}")
        mine = self._record
        if not names & {mine.encoder, mine.encoder_fingerprint}:
            raise IndexMismatch(
                f"the embeddings are of the encoder {shown}, but those of the collection "
                f"{self.name!r} are of "
                + (
                    f"{mine.encoder!r} (fingerprint {mine.encoder_fingerprint})"
                    if mine.encoder
                    else "no encoder that it knows of"
                )
                + ": make another collection for them"
            )

    def _append(
        self,
        ids: ArrayLike,
        *,
        embeddings: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        fine: ArrayLike | None = None,
        metadata: Any = None,
        fingerprint: str | None = None,
        anew: bool = False,
    ) -> int:
        """As `append`, or with `anew` as `update`; codes without a fingerprint are this very
        collection's. Both embeddings and codes: those of rows that the collection has, of which
        these become copies."""
        numbers = native.check_ids(ids)
        if not len(numbers):
            raise InputError(f"there is nothing to {'update' if anew else 'append'}: ids are empty")
        given = None if codes is None else native.check_codes(_matrix(codes, "codes"))
        vectors = None if embeddings is None else check(_matrix(embeddings, "embeddings"))
        count = len(given if given is not None else vectors)  # type: ignore[arg-type]
        if count != len(numbers):
            raise InputError(f"{len(numbers):,} ids cannot go with {count:,} rows")
        second = None
        if fine is not None:
            second = native.check_codes(_matrix(fine, "fine codes"), native.FINE_DIMS)
            if len(second) != count:
                raise InputError(f"{count:,} codes cannot go with {len(second):,} fine codes")
        _unique(numbers)
        details = None
        if metadata is not None:
            details = _metadata_rows(metadata, numbers, self.id_column)
        with self._changing("update" if anew else "append") as change:
            cur, record, known = change.cur, change.record, change.known
            if anew:
                self._need(cur, record, numbers)
            chosen = None
            if given is None:
                assert vectors is not None
                if not record.quantizer:
                    chosen = self._choose_coding(cur, record, vectors)
                coding = self._coding_of(cur, record) if chosen is None else chosen.coding
                if coding is None:
                    raise self._no_embeddings()
                _check_width(record, coding, vectors)
                new = Rows(numbers, *coding.images(vectors))
            else:
                new = Rows(numbers, given, second)
            # Outside of a transaction of the caller's the primary key may refuse many ids.
            refused = cur is not self.con and record.table is None and count > rows.SMALL
            left = numbers if anew else numbers[:0]
            if not anew and not refused:
                few = known is not None and self._store.rows <= Known.MOST and count <= rows.SMALL
                there = known.among(cur, record, numbers) if known is not None and few else None
                left = self._refuse_known(cur, record, numbers, there)
            if details is None and record.table is not None and not record.owns_table:
                self._need_metadata(cur, record, numbers)
            with (
                self._diagnosed(cur, record, numbers),
                self._committing(change, count, None if anew else numbers),
            ):
                now = change.record
                if chosen is not None:
                    now = self._store_coding(cur, now, chosen)
                elif vectors is None:
                    now = self._take_ready(cur, now, second is not None, fingerprint)
                change.record = now = self._insert(cur, now, new, left, details, rows.add)
                if vectors is not None:
                    rows.keep_embeddings(cur, now, numbers, vectors)
            if (record.table, record.fine) != (now.table, now.fine):
                name_indexes(self.con)
        return count

    def delete(self, ids: ArrayLike) -> int:
        """Remove images; returns how many there were. Ids that the collection lacks are passed
        over. Rows of a metadata table that Boxwood made go as well; a table of the user's own is
        left alone.

        Within a transaction that is open on the connection this is a part of it. To delete by a
        condition, delete from the metadata table by SQL: an image without a row there is gone.
        """
        numbers = np.unique(native.check_ids(_listed(ids)))
        if not len(numbers):
            return 0
        with self._changing("delete images") as change:
            cur, record = change.cur, change.record
            there = rows.known(cur, record, numbers)
            gone = rows.without_metadata(cur, record, there)
            if len(there):
                with self._committing(change, len(there)):
                    self._remove(cur, change.record, there)
        return len(there) - len(gone)

    def _remove(self, cur: duckdb.DuckDBPyConnection, record: Record, ids: Ids) -> None:
        """Remove images; within the caller's transaction."""
        rows.remove(cur, record, ids)
        if record.table is not None and record.owns_table:
            with catalog.registered(cur, "boxwood_gone", pa.table({"id": ids})):
                cur.execute(
                    f"DELETE FROM {record.metadata} WHERE "
                    f"{quoted(record.id_column)} IN (SELECT id FROM boxwood_gone)"
                )

    def update(
        self,
        ids: ArrayLike,
        *,
        embeddings: ArrayLike | None = None,
        codes: ArrayLike | None = None,
        fine: ArrayLike | None = None,
        encoder: str | Encoder | None = None,
        fingerprint: str | None = None,
    ) -> int:
        """Give images of the collection new embeddings, or new codes, as `append` takes them;
        returns their number. Either all are changed or none; within a transaction that is open on
        the connection this is a part of it."""
        fingerprint = self._check_given(embeddings, codes, fine, encoder, fingerprint)
        return self._append(
            ids, embeddings=embeddings, codes=codes, fine=fine, fingerprint=fingerprint, anew=True
        )

    def _insert(
        self,
        cur: duckdb.DuckDBPyConnection,
        record: Record,
        new: Rows,
        left: Ids,
        details: pa.Table | None,
        insert: Callable[[duckdb.DuckDBPyConnection, Record, Rows], None],
    ) -> Record:
        """Insert rows with their metadata, or see to it that they have some; `left` are ids of
        which there are still codes. Within the caller's transaction."""
        if len(left):
            rows.remove(cur, record, left)
        if details is not None:
            record = self._insert_metadata(cur, record, details)
        elif record.table is not None and not record.owns_table:
            self._need_metadata(cur, record, new.ids)
        elif record.table is not None:
            lacking = rows.without_metadata(cur, record, new.ids)
            if len(lacking):
                key = pa.table({record.id_column: lacking})
                record = self._insert_metadata(cur, record, key)
        insert(cur, record, new)
        return record

    def _take_ready(
        self,
        cur: duckdb.DuckDBPyConnection,
        record: Record,
        fine: bool,
        fingerprint: str | None,
    ) -> Record:
        """Let ready codes into the collection, with fine codes or without; within the caller's
        transaction. The first ones decide which of the two it takes, and of what fingerprint.
        None: that of the collection."""
        fingerprint = fingerprint or record.quantizer or catalog.GIVEN
        if record.keep_embeddings:
            raise InputError(
                f"the collection {self.name!r} keeps its embeddings, so it takes no ready codes: "
                "pass embeddings, or create it without keep_embeddings"
            )
        if not record.quantizer:
            if record.fine_wanted is not None and record.fine_wanted != fine:
                raise InputError(
                    f"the collection {self.name!r} was created with fine={record.fine_wanted}: "
                    + ("leave the fine codes out" if fine else "pass fine codes with the codes")
                )
            return catalog.set_ready(cur, record, fingerprint, fingerprint if fine else "")
        if fingerprint != record.quantizer:
            known = {
                which: "of no known fingerprint" if which == catalog.GIVEN else f"of {which}"
                for which in (fingerprint, record.quantizer)
            }
            raise IndexMismatch(
                f"the codes are {known[fingerprint]}, but those of the collection {self.name!r} "
                f"are {known[record.quantizer]}: another head or quantizer may have made them. "
                + (
                    f"If they are of the same, append(..., fingerprint={record.quantizer!r}) says "
                    "so; else pass embeddings, or make another collection"
                    if fingerprint == catalog.GIVEN
                    else "Make another collection for them"
                )
            )
        if fine != bool(record.fine):
            raise InputError(
                f"the collection {self.name!r} has {'' if record.fine else 'no '}fine codes, and "
                "either all images of a collection have them or none: "
                + ("leave them out" if fine else "pass fine codes with the codes, or embeddings")
                + ", or make another collection"
            )
        return record

    def _after_commit(self, rows: int, index: Callable[[], None]) -> None:
        """Bring the index up to date with rows that are committed."""
        try:
            index()
        except (IndexProblem, StorageError, OutOfMemory, duckdb.Error) as error:
            with suppress(Error, duckdb.Error):  # this error is the one to tell
                name_indexes(self.con)
            kind = StorageError if isinstance(error, duckdb.Error) else type(error)
            raise kind(
                f"the {rows:,} rows are safe in the database, but the index could not be "
                f"brought up to date: {error}. refresh() tries again, and so does opening the "
                "collection"
            ) from error

    def _no_embeddings(self) -> InputError:
        return InputError(
            f"the collection {self.name!r} holds ready codes, so it cannot take embeddings"
        )

    def _need_metadata(self, cur: duckdb.DuckDBPyConnection, record: Record, ids: Ids) -> None:
        """Refuse ids that the user's table of metadata lacks."""
        lacking = rows.without_metadata(cur, record, ids)
        if len(lacking):
            raise InputError(
                f"the collection's table {record.table!r} has no row of {len(lacking):,} of the "
                f"ids, for example {lacking[0]}: insert them there first, or pass metadata"
            )

    @contextmanager
    def _diagnosed(
        self, cur: duckdb.DuckDBPyConnection, record: Record, ids: Ids
    ) -> Iterator[None]:
        """Say which ids the primary key has refused."""
        try:
            yield
        except duckdb.ConstraintException:
            if cur is not self.con:
                self._refuse_known(cur, record, ids)
            raise

    def _refuse_known(
        self,
        cur: duckdb.DuckDBPyConnection,
        record: Record,
        ids: Ids,
        there: Ids | None = None,
    ) -> Ids:
        """Refuse ids that the collection holds. Returns those of which it still has codes (`there`,
        or what the database says), though they were deleted from the metadata table."""
        if there is None:
            there = rows.known(cur, record, ids)
        left = rows.without_metadata(cur, record, there)
        if len(left) < len(there):
            held = np.setdiff1d(there, left)
            raise InputError(
                f"{len(held):,} of the ids are in the collection {self.name!r} already, for "
                f"example {held[0]}: an image is added once; update() gives it another code"
            )
        return left

    def _need(self, cur: duckdb.DuckDBPyConnection, record: Record, ids: Ids) -> None:
        """Refuse ids that the collection lacks."""
        there = rows.known(cur, record, ids)
        there = np.setdiff1d(there, rows.without_metadata(cur, record, there))
        if len(there) < len(ids):
            lacking = np.setdiff1d(ids, there)
            raise InputError(
                f"{len(lacking):,} of the ids are not in the collection {self.name!r}, for "
                f"example {lacking[0]}: append() adds images"
            )

    def _adopt_table(self, cur: duckdb.DuckDBPyConnection, record: Record) -> Record:
        """Note that Boxwood makes the metadata table; within the caller's transaction."""
        cur.execute(
            "UPDATE boxwood.collections SET table_name = ?, owns_table = true WHERE name = ?",
            [self.name, self.name],
        )
        return replace(record, table=self.name, owns_table=True)

    def _insert_metadata(
        self, cur: duckdb.DuckDBPyConnection, record: Record, details: pa.Table
    ) -> Record:
        if not len(details) and record.table is not None:
            return record
        with catalog.registered(cur, "boxwood_new_rows", details):
            if record.table is None:
                made = cur.execute("DESCRIBE FROM boxwood_new_rows").fetchall()
                columns = ", ".join(
                    f"{quoted(column)} {kind}{' PRIMARY KEY' if n == 0 else ''}"
                    for n, (column, kind, *_) in enumerate(made)  # the ids come first
                )
                record = self._adopt_table(cur, record)
                cur.execute(f"CREATE TABLE {record.metadata} ({columns})")
                # From here on an image is there if it has a row in this table. (In DuckDB 2.0.0 a
                # table into which a transaction inserts first nothing and then more than a row
                # group, 122,880 rows, is empty for good.)
                if rows.count(cur, record):
                    cur.execute(
                        f"INSERT INTO {record.metadata} ({quoted(record.id_column)}) "
                        f"SELECT id FROM {record.ids}"
                    )
            assert record.table is not None
            try:
                cur.execute(f"INSERT INTO {record.metadata} BY NAME SELECT * FROM boxwood_new_rows")
            except (duckdb.BinderException, duckdb.CatalogException, duckdb.ConstraintException,
                    duckdb.ConversionException) as error:  # fmt: skip
                raise InputError(
                    f"the metadata do not fit the table {record.table!r}: {_first_line(error)}"
                ) from error
        return record

    # --- head and quantizer -----------------------------------------------------------------------

    def _coding_now(self) -> Coding | None:
        """Heads and quantizers, once the first embeddings have decided them."""
        with self._cursor() as cur:
            return self._coding_of(cur, self._fresh(cur))

    def _coding_of(self, cur: duckdb.DuckDBPyConnection, record: Record) -> Coding | None:
        """The same, of this record, by its cursor."""
        key = (record.head, record.quantizer, record.fine)
        cached = self._coding
        if cached is not None and cached[0] == key:
            return cached[1]
        coding = catalog.load_coding(cur, record)
        if coding is not None:
            self._coding = key, coding
        return coding

    def _choose_coding(
        self, cur: duckdb.DuckDBPyConnection, record: Record, embeddings: Floats
    ) -> _Chosen:
        """Heads and quantizers by the first embeddings, and the codes of the vocabulary."""
        given = catalog.given_texts(cur, self.name)
        head = catalog.load_head(cur, record.head)
        sample = embeddings[:: -(-len(embeddings) // FIT_ROWS)]
        phrases: builtins.list[str] = []
        texts = given if isinstance(given, np.ndarray) else None
        if record.encoder is not None:
            encoder = catalog.open_encoder(record.encoder, record.encoder_fingerprint)
            if sample.shape[1] != encoder.dims:
                raise InputError(
                    f"embeddings have {sample.shape[1]} dimensions, but the encoder "
                    f"{encoder.name!r} makes {encoder.dims}"
                )
            phrases = given if isinstance(given, list) else list(vocabulary(encoder.name))
            texts = encoder.texts(phrases)
            if head is None and given is None:
                head = encoder.default_head()
        if head is None and texts is not None and texts.shape[1] != sample.shape[1]:
            raise InputError(
                f"embeddings have {sample.shape[1]} dimensions, but the texts given at creation "
                f"{texts.shape[1]}"
            )
        coding = _fitted(sample, head, texts, record.fine_wanted is not False)
        if not phrases or texts is None:
            return _Chosen(coding, [], np.empty((0, native.DIMS), np.uint8), None)
        return _Chosen(coding, phrases, *coding.texts(texts))

    def _store_coding(
        self, cur: duckdb.DuckDBPyConnection, record: Record, chosen: _Chosen
    ) -> Record:
        """Keep what was chosen; within the caller's transaction."""
        record = catalog.set_coding(cur, record, chosen.coding)
        if chosen.phrases:
            catalog.store_texts(cur, record, chosen.phrases, chosen.codes, chosen.fine)
        return record

    @property
    def head(self) -> Head | None:
        """The head; None before the first embeddings, and for ready codes."""
        coding = self._coding_now()
        return None if coding is None else coding.head

    @property
    def quantizer(self) -> Quantizer | None:
        """The quantizer; None before the first embeddings, and for ready codes."""
        coding = self._coding_now()
        return None if coding is None else coding.quantizer

    @property
    def encoder(self) -> Encoder | None:
        """The encoder, loaded when it is first asked for."""
        if self._record.encoder is None:
            return None
        return catalog.open_encoder(self._record.encoder, self._record.encoder_fingerprint)

    def _need_encoder(self, what: str) -> Encoder:
        encoder = self.encoder
        if encoder is None:
            raise InputError(
                f"the collection {self.name!r} has no encoder, so it cannot {what}: create it with "
                "encoder=..., or pass embeddings"
            )
        return encoder

    # --- images -----------------------------------------------------------------------------------

    def add_images(
        self,
        source: Any,
        *,
        column: str | None = None,
        key: str | None = None,
        duplicates: Duplicates = "skip",
        progress: bool = False,
        batch: int = 256,
        workers: int | None = None,
        timeout: float | None = TIMEOUT,
    ) -> AddReport:
        """Embed images and add them; what is known of them goes into the metadata table.

        source: a folder, with all below it; an image file; a glob, as ``"~/Pictures/**/*.jpg"``;
            a tar shard as img2dataset and webdataset write them; a Parquet file; or a list of any
            of these. A folder's tar shards, and its Parquet files with images, are opened too. Or a
            table: a DuckDB relation (``con.table("pictures")``), an Arrow table or a DataFrame.
        column: of a table or Parquet file: the column of images, paths (text) or bytes (BLOB). Left
            out: the first of the usual names ('image', 'jpg', 'path', ..).
        key: the column that tells images in bytes apart, by default 'uri', 'key', 'path', 'url' or
            'id', and in Parquet files at last the row number.
        duplicates: what to do with an image whose bytes are those of another one of the collection:
            'skip' leaves it out and says so in the report; 'keep' adds it with that one's codes,
            without embedding it again.
        batch: images that are embedded and committed at a time.
        workers: processes that decode; 0: none, but threads. None: threads for some hundred images
            or on fewer than 4 cores, else a process a core, 16 at most.
        timeout: seconds that decoding an image may take before it is given up and reported. A
            process that decodes is then ended and replaced; a thread cannot be ended, goes on
            until it is done, and after 8 of them the call fails. None: no limit.

        The metadata table gets ``uri``, ``width``, ``height``, ``bytes``, ``modified`` (UTC; of
        files) and ``hash`` (BLAKE2b-128 of the bytes), and what the source has beside the images:
        captions, addresses, whatever columns. A table of the user's own gets those of them for
        which it has columns. The uri of a file is its absolute path; that of a member of a tar
        shard, or a row of a Parquet file, ``<path>#<member or key>``.

        An image whose uri is in the collection is passed over, and each batch is committed by
        itself, so a call that ended early, be it by Ctrl-C, is gone on with by calling it again. An
        image that cannot be read is reported and does not stop the others.
        """
        size = native.check_count(batch, "batch", 1, 1 << 20)
        if workers is not None:
            workers = native.check_count(workers, "workers", 0, 256)
        if duplicates not in ("skip", "keep"):
            raise InputError(f"duplicates must be 'skip' or 'keep', not {duplicates!r}")
        self._need_encoder("embed images")
        _refuse_transaction(self.con, "add images")
        with ExitStack() as reading, _database_errors():
            label, total = None, None
            if isinstance(source, duckdb.DuckDBPyRelation):
                label, source, total = _relation(self.con, source, reading)
            sources = Sources(source, column, key, label, total)
            report = Adding(self, sources, duplicates, _interrupts_deferred).run(
                size, workers, progress, timeout
            )
            with self._writing("add images") as (cur, record):
                if rows.pending(cur, record):
                    self._bring_up(cur)
        return report

    def _next_id(self, count: int) -> int:
        """The first of so many ids above all that rows and metadata have."""
        with _database_errors(), self.con.cursor() as cur:
            record = self._fresh(cur)
            query = f"SELECT max(id) FROM {record.ids}"
            if record.table is not None:
                query = (
                    f"SELECT greatest(({query}), (SELECT max({quoted(record.id_column)}) "
                    f"FROM {record.metadata}))"
                )
            row = catalog.one(cur, query)
        first = 0 if row is None or row[0] is None else max(0, int(row[0]) + 1)
        if first + count > 2**63:
            raise InputError(
                f"there are no {count:,} ids above the largest, {first - 1}: name the ids"
            )
        return first

    # --- searching --------------------------------------------------------------------------------

    def encode_text(
        self,
        text: str | Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        template: str | Sequence[str] | None = None,
    ) -> Codes:
        """The code of a text, uint8 (32,). It is kept in the database when that can be written, so
        that the shell, which has no encoder, can search by it.

        text: one, or several, of which the code is that of the mixture: between them.
        weights: of several texts, 1 each if left out: how much each counts. A negative one leads
            away from a text: ``encode_text(["beach", "people"], weights=[1, -0.5])``.
        template: what a text is put into, at ``{}``, as in ``"a photo of a {}"``; of several
            templates the embeddings are averaged.
        """
        return self._encode_words(text, weights, template).code

    def encode_image(
        self, image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
    ) -> Codes:
        """The code of an image, uint8 (32,): of a file's path, of a Pillow image, or of RGB pixels,
        uint8 (height, width, 3)."""
        return self._encode_picture(image).code

    def encode_embedding(
        self, vector: ArrayLike, kind: Literal["image", "text"] = "image"
    ) -> Codes:
        """The code of an embedding (dims,) of an image or a text, uint8 (32,)."""
        return self._encode_embedding(vector, kind).code

    def encode(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | None = None,
        embedding: ArrayLike | None = None,
        kind: Literal["image", "text"] = "image",
        weights: Sequence[float] | None = None,
        template: str | Sequence[str] | None = None,
    ) -> Encoded:
        """The code and the fine code of one text, image or embedding, as `encode_text`,
        `encode_image` and `encode_embedding` take them."""
        if (text is not None) + (image is not None) + (embedding is not None) != 1:
            raise InputError("pass one of text, image and embedding")
        if text is None and (weights is not None or template is not None):
            raise InputError("weights and template go with text")
        if text is not None:
            return self._encode_words(text, weights, template)
        if image is not None:
            return self._encode_picture(image)
        return self._encode_embedding(embedding, kind)

    def _encode_words(
        self,
        text: str | Sequence[str],
        weights: Sequence[float] | None,
        template: str | Sequence[str] | None,
    ) -> Encoded:
        phrase = catalog.Phrase.of(text, weights, template)
        with self._cursor() as cur:
            codes, fine, quantizer = catalog.phrase_codes(
                cur, self.name, [phrase], begun=cur is self.con
            )
        return Encoded(codes[0], None if fine is None else fine[0], quantizer)

    def _encode_picture(self, image: Any) -> Encoded:
        encoder = self._need_encoder("encode images")
        return self._encode_embedding(encoder.images([_picture(image)])[0], "image")

    def _encode_embedding(self, vector: Any, kind: str) -> Encoded:
        if kind not in ("image", "text"):
            raise InputError(f"kind must be 'image' or 'text', not {kind!r}")
        coding = self._coding_now()
        if coding is None:
            raise InputError(
                f"the collection {self.name!r} has no head: "
                + (
                    "it holds ready codes, so search by codes"
                    if self._record.quantizer
                    else "append embeddings first"
                )
            )
        rows = _matrix(vector, "an embedding")
        if rows.ndim != 1:
            raise InputError(f"an embedding must have the shape (dims,), not {rows.shape}")
        given = check(rows[None], what=f"{kind} embedding")
        _check_width(self._record, coding, given)
        codes, fine = (coding.images if kind == "image" else coding.texts)(given)
        return Encoded(codes[0], None if fine is None else fine[0], coding.fingerprint)

    def search_text(
        self,
        text: str | Sequence[str],
        k: int = 60,
        *,
        weights: Sequence[float] | None = None,
        template: str | Sequence[str] | None = None,
        recall: float = 1.0,
        within: Model | None = None,
        ids: ArrayLike | None = None,
    ) -> pa.Table:
        """The k images nearest to a phrase, or to a mixture of several: ``pyarrow.Table(id,
        distance)``, nearest first. `text`, `weights` and `template` are those of `encode_text`, the
        options those of `knn`."""
        native.check_k(k)
        native.check_recall(recall)
        if not self._any():
            return _hits(np.empty(0, np.int64), np.empty(0, np.uint32))
        code = self._encode_words(text, weights, template)
        return self.knn(code, k=k, recall=recall, within=within, ids=ids)

    def search_image(
        self,
        image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8],
        k: int = 60,
        *,
        recall: float = 1.0,
        within: Model | None = None,
        ids: ArrayLike | None = None,
    ) -> pa.Table:
        """The k images nearest to an image, as `encode_image` takes it. The options are those of
        `knn`."""
        native.check_k(k)
        native.check_recall(recall)
        if not self._any():
            return _hits(np.empty(0, np.int64), np.empty(0, np.uint32))
        code = self._encode_picture(image)
        return self.knn(code, k=k, recall=recall, within=within, ids=ids)

    def search_embedding(
        self,
        vector: ArrayLike,
        k: int = 60,
        kind: Literal["image", "text"] = "image",
        *,
        recall: float = 1.0,
        within: Model | None = None,
        ids: ArrayLike | None = None,
    ) -> pa.Table:
        """The k images nearest to an embedding (dims,) of an image or a text. The options are those
        of `knn`."""
        code = self._encode_embedding(vector, kind)
        return self.knn(code, k=k, recall=recall, within=within, ids=ids)

    def knn(
        self,
        codes: ArrayLike | Encoded | None = None,
        *,
        like: int | None = None,
        k: int = 60,
        recall: float = 1.0,
        within: Model | None = None,
        ids: ArrayLike | None = None,
    ) -> pa.Table:
        """The k images nearest to a code (32,), or to what `encode` gives, which is refused where
        it is of another collection's head or quantizer; or to the image of the id `like`, itself
        first.
        ``pyarrow.Table(id, distance)``: Euclidean distance on codes, nearest first, ties by id;
        all images where there are fewer than k.

        recall: 1.0: exact. Less, above 0: faster, and at least this share of the true neighbours
            on average over many queries, by what the index measured on itself when it was built.
            The distances are true, and k images come in any case.
        within: only images that this model matches.
        ids: only images with these ids; those that the collection lacks are passed over.

        With `within` or `ids` the answer is exact whatever the recall, and never shorter than the
        images that pass allow."""
        if (codes is None) == (like is None):
            raise InputError("pass either a code or like=<id of an image>")
        native.check_k(k)
        native.check_recall(recall)
        wanted = None if ids is None else native.check_ids(_listed(ids))
        with self._view() as view:
            if like is not None:
                code, _, found = view.lookup(native.check_ids([like], "like"))
                if not found[0]:
                    empty = "" if rows.count(view.cur, view.record) else " is empty: it"
                    raise InputError(f"the collection {self.name!r}{empty} has no id {like}")
                query = code
            else:
                if isinstance(codes, Encoded):
                    codes = self._own(codes, view).code
                query = _matrix(codes, "a code")
                if query.ndim != 1:
                    raise InputError(
                        f"a code must have the shape ({native.DIMS},), not {query.shape}"
                    )
                query = native.check_codes(query[None])
            return _hits(
                *view.knn(query, k, recall, None if within is None else within.handle, wanted)
            )

    def codes(self, ids: ArrayLike) -> tuple[Codes, Codes | None]:
        """Codes (n, 32) of images of the collection by their ids (n,), and fine codes (n, 128)
        where it has such. InputError names ids that it lacks."""
        numbers = native.check_ids(_listed(ids))
        with self._view() as view:
            codes, fine, found = view.lookup(numbers)
        if not found.all():
            raise InputError(
                f"there are ids that are not in the collection {self.name!r}: "
                f"{_some(numbers[~found])}"
            )
        return codes, fine

    def _any(self) -> bool:
        """Whether there are any images, be they live or not."""
        with self._cursor() as cur:
            return rows.count(cur, self._fresh(cur)) > 0

    def _own(self, encoded: Encoded, view: View) -> Encoded:
        """What was encoded, once it is known to be of this collection's head and quantizer."""
        mine = view.record.quantizer
        if mine and encoded.quantizer != mine:
            raise IndexMismatch(
                f"this was encoded by another head or quantizer (fingerprint {encoded.quantizer}) "
                f"than the images of the collection {self.name!r} (fingerprint {mine}): encode it "
                "by this collection"
            )
        return encoded

    # --- models -----------------------------------------------------------------------------------

    def train(
        self,
        positives: ArrayLike = (),
        negatives: ArrayLike = (),
        *,
        text: str | Sequence[str] | None = None,
        image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | None = None,
        query: ArrayLike | Encoded | None = None,
        query_fine: ArrayLike | None = None,
        learner: Learner = "cover",
        estimators: int = 25,
        boxes: int = 0,
        random_negatives: int | None = None,
        negative_weight: float = 1.0,
        seed: int = 0,
        prior: bool = True,
        rerank: bool = False,
        guard: bool = True,
    ) -> Model:
        """Train a model on the ids of right and wrong images.

        text, image: what is sought, in words or as another image, as `encode_text` and
            `encode_image` take them; for 'cover' it stands beside the positives or in
            place of them, for 'branch' and 'ensemble' in place of them alone.
        query, query_fine: the same as a code (32,), and its fine code (128,); or `query` as
            `encode` gives it, with both.
        learner: 'cover', a score and where to cut it; 'branch', one decision branch; 'ensemble', a
            majority of `estimators` of them; 'tree' and 'forest', scikit-learn's, the forest with
            `estimators` trees.
        boxes: 'cover': so many boxes at most around what it looks for, 0 to 64; 0: none.
        random_negatives: rows of the collection that labels are told from, 0 to 100,000. None:
            30,000 for 'cover', which needs 8 and takes them for what the collection is like; 500
            for the others, where each counts as wrong as much as a positive counts as right.
        negative_weight: what a given negative that stays inside costs against a positive that is
            lost, 0.01 to 100; for 'tree' and 'forest' the weight of the given negatives.
        seed: of what is drawn; 'cover' draws nothing.
        prior: 'branch' and 'ensemble': boxes from a variance with a prior, good with few labels;
            False: the papers' own method, boxes from the labels alone.
        rerank: 'cover', in collections with fine codes: rows near the threshold are judged by
            these.
        guard: 'cover': fall back to the distance to the mean positive where held-out positives rank
            clearly higher by it; the model's learner is then 'nearest'.

        The same labels, options, seed and rows give the same model; for 'cover' in a collection of
        more rows than `random_negatives`, the same segments of its index as well.
        """
        with self._view() as view:
            return self._trained(
                view, positives, negatives, text, image, query, query_fine, learner=learner,
                estimators=estimators, boxes=boxes, random_negatives=random_negatives,
                negative_weight=negative_weight, seed=seed, prior=prior, rerank=rerank,
                guard=guard,
            ).model  # fmt: skip

    def _labels(
        self, view: View, positives: ArrayLike, negatives: ArrayLike, sought: bool
    ) -> tuple[Ids, Ids]:
        """Labels as sets, ascending, once they are found to make sense."""
        right = np.unique(native.check_ids(_listed(positives), "positives"))
        wrong = np.unique(native.check_ids(_listed(negatives), "negatives"))
        if not rows.count(view.cur, view.record):
            raise InputError(f"the collection {self.name!r} is empty: there is nothing to refine")
        if not len(right) and not sought:
            raise InputError(
                "there are no positives: name at least one image that is right, or say what is "
                "sought, by text=, image= or query="
            )
        both = np.intersect1d(right, wrong)
        if len(both):
            raise InputError(f"both positive and negative: {_some(both)}")
        for labels, what in ((right, "positives"), (wrong, "negatives")):
            found = view.lookup(labels)[2]
            if not found.all():
                raise InputError(
                    f"{what} that are not in the collection {self.name!r}: {_some(labels[~found])}"
                )
        return right, wrong

    def _sought(
        self,
        view: View,
        text: str | Sequence[str] | None,
        image: Any,
        query: ArrayLike | Encoded | None,
        query_fine: ArrayLike | None,
    ) -> Encoded | None:
        if sum(given is not None for given in (text, image, query)) > 1:
            raise InputError("text, image and query are each what is sought: pass one of them")
        if query_fine is not None and query is None:
            raise InputError("query_fine is the fine code of query: pass that too")
        if text is not None or image is not None:
            return self._own(self.encode(text=text, image=image), view)
        if query is None:
            return None
        if isinstance(query, Encoded):
            if query_fine is not None:
                raise InputError("query has its fine code with it: leave query_fine out")
            return self._own(query, view)
        return Encoded(
            _code(query, "query", DIMS),
            None if query_fine is None else _code(query_fine, "query_fine", FINE_DIMS),
            view.record.quantizer,
        )

    def _trained(
        self,
        view: View,
        positives: ArrayLike,
        negatives: ArrayLike,
        text: str | Sequence[str] | None,
        image: Any,
        query: ArrayLike | Encoded | None,
        query_fine: ArrayLike | None,
        **options: Any,
    ) -> _Trained:
        given = any(what is not None for what in (text, image, query))
        _check_options(options, given)
        right, wrong = self._labels(view, positives, negatives, given)
        sought = self._sought(view, text, image, query, query_fine)
        if options["learner"] in ("tree", "forest"):
            return self._train_trees(view, right, wrong, options)
        if options["rerank"] and not view.record.fine:
            raise InputError(
                f"rerank needs fine codes, which the collection {self.name!r} lacks: make it anew "
                "from embeddings or images with fine=True, or leave rerank out"
            )
        if sought is not None:
            options["query"] = sought.code
            options["query_fine"] = sought.fine if options["rerank"] else None
        model, stats = view.train(right, wrong, options)
        return _Trained(
            Model(model),
            {
                "positives": stats.positives, "negatives": stats.negatives,
                "random_negatives": stats.random_negatives, "boxes": stats.boxes,
                "terms": stats.terms, "held_out": stats.held_out, "fallback": stats.fallback,
                "train_ms": stats.nanoseconds / 1e6,
            },
            _estimate(stats),
            stats.note,
            f"refine({literal(self.name)}, positives := {right.tolist()}, "
            f"negatives := {wrong.tolist()}{_sql_options(options)})",
        )  # fmt: skip

    def _train_trees(self, view: View, right: Ids, wrong: Ids, options: dict[str, Any]) -> _Trained:
        learner, seed, others = options["learner"], options["seed"], options["random_negatives"]
        try:
            from sklearn.ensemble import RandomForestClassifier
            from sklearn.tree import DecisionTreeClassifier
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"the learner {learner!r} needs scikit-learn: pip install 'boxwood[trees]'"
            ) from error
        trees = native.check_count(options["estimators"], "estimators", 1, native.MAX_ESTIMATORS)
        others = native.RANDOM_NEGATIVES["branch"] if others is None else others
        others = native.check_count(others, "random_negatives", 0, 100_000)
        native.check_count(seed, "seed", 0, 2**64 - 1)
        negative_weight = native.check_weight(options["negative_weight"])
        start = time.perf_counter()
        randoms = view.draw(others, seed, np.concatenate([right, wrong]))
        if not len(wrong) and not len(randoms):
            raise InputError(f"the learner {learner!r} needs negatives: given ones, or random ones")
        codes = view.lookup(np.concatenate([right, wrong, randoms]))[0]
        label = np.arange(len(codes)) < len(right)
        weight = np.ones(len(codes))
        weight[len(right) : len(right) + len(wrong)] = negative_weight
        state = seed % 2**32
        classifier: Any
        if learner == "tree":
            errors.check_stopped()
            classifier = DecisionTreeClassifier(random_state=state)
            classifier.fit(codes, label, sample_weight=weight)
        else:
            # Some trees at a time, so that it can be stopped between. They are those of one fit.
            classifier = RandomForestClassifier(random_state=state, n_jobs=1, warm_start=True)
            some = max(1, _SLICE // len(codes))
            for grown in range(some, trees + some, some):
                errors.check_stopped()
                classifier.set_params(n_estimators=min(grown, trees))
                classifier.fit(codes, label, sample_weight=weight)
        errors.check_stopped()
        model = Model.from_sklearn(
            classifier,
            positive=True,
            quantizer=view.record.quantizer,
            mean=codes[: len(right)].mean(axis=0),
        )
        return _Trained(
            model,
            {
                "positives": len(right), "negatives": len(wrong), "random_negatives": len(randoms),
                "boxes": model.box_count, "terms": 1, "held_out": 0, "fallback": False,
                "train_ms": (time.perf_counter() - start) * 1e3,
            },
            Estimate(),
            "",
            self._search_sql(model),
        )  # fmt: skip

    def refine(
        self,
        positives: ArrayLike = (),
        negatives: ArrayLike = (),
        *,
        text: str | Sequence[str] | None = None,
        image: str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | None = None,
        query: ArrayLike | Encoded | None = None,
        query_fine: ArrayLike | None = None,
        learner: Learner = "cover",
        estimators: int = 25,
        boxes: int = 0,
        random_negatives: int | None = None,
        negative_weight: float = 1.0,
        seed: int = 0,
        prior: bool = True,
        rerank: bool = False,
        guard: bool = True,
    ) -> Refined:
        """Train on labels as `train` does, and find every image that the model matches."""
        with self._view() as view:
            trained = self._trained(
                view, positives, negatives, text, image, query, query_fine, learner=learner,
                estimators=estimators, boxes=boxes, random_negatives=random_negatives,
                negative_weight=negative_weight, seed=seed, prior=prior, rerank=rerank,
                guard=guard,
            )  # fmt: skip
            return _run(view, trained)

    def search(self, model: Model | Concept) -> Refined:
        """Every image that a model or a concept matches, ranked."""
        source = self._search_sql(model)
        with self._view() as view:
            return _run(view, _Trained(_checked(model), {}, Estimate(), "", source))

    def count(self, model: Model | Concept) -> int:
        """How many images a model or a concept matches."""
        with self._view() as view:
            return view.count(_checked(model).handle)

    def _search_sql(self, model: Model | Concept) -> str:
        return f"search_model({literal(self.name)}, {literal(_checked(model).to_json())})"

    # --- concepts ---------------------------------------------------------------------------------

    def save_concept(
        self,
        name: str,
        model: Model | Refined,
        positives: ArrayLike = (),
        negatives: ArrayLike = (),
        *,
        note: str = "",
        replace: bool = False,
    ) -> Concept:
        """Keep a model under a name, with the labels that it was trained on: ids, to train it again
        from. In SQL the view ``concepts.<name>``, and ``concept('<collection>', '<name>')``, then
        have its rows, and those of images that are added later.

        With `replace` a name that there is gets another version, which rules from then on. Names
        are like those of collections; no two collections of a database can share one. Within a
        transaction that is open on the connection this is a part of it.
        """
        concepts.check_name(name)
        concepts.check_note(note)
        if not isinstance(replace, bool):
            raise InputError(f"replace must be True or False, not {replace!r}")
        kept = _checked(model.model if isinstance(model, Refined) else model)
        right = np.unique(native.check_ids(_listed(positives), "positives"))
        wrong = np.unique(native.check_ids(_listed(negatives), "negatives"))
        both = np.intersect1d(right, wrong)
        if len(both):
            raise InputError(f"positives and negatives both hold {_some(both)}: keep one of them")
        with self._beside("save a concept") as (cur, record):
            concepts.check_new(cur, record, name, kept, replace)
            with self._whole(cur):
                version = concepts.insert(
                    cur, record, name, kept, right.tolist(), wrong.tolist(), note
                )
            return concepts.load(cur, record, name, version)

    def concepts(self) -> builtins.list[Concept]:
        """The collection's concepts, each in its newest version, by name."""
        with self._cursor() as cur:
            return concepts.newest(cur, self._fresh(cur))

    def concept_names(self) -> builtins.list[str]:
        """Names of the collection's concepts."""
        with self._cursor() as cur:
            return concepts.names(cur, self._fresh(cur))

    def concept(self, name: str, version: int | None = None) -> Concept:
        """A concept; its newest version where none is named."""
        with self._cursor() as cur:
            return concepts.load(cur, self._fresh(cur), name, version)

    def drop_concept(self, name: str) -> int:
        """Remove a concept with its view; returns how many versions it had. Within a transaction
        that is open on the connection this is a part of it."""
        with self._beside("drop a concept") as (cur, record):
            concepts.need(cur, record, name)
            with self._whole(cur):
                return concepts.remove(cur, record, name)

    # --- upkeep -----------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What the collection is and what it takes, as `describe` gives it."""
        with _database_errors(), self.con.cursor() as cur:
            return _description(cur, catalog.database(cur), self._fresh(cur))

    def verify(self) -> None:
        """Check the index in depth: the files, and every row of them against the codes table.
        Raises IndexProblem with the first fault."""
        with (
            _database_errors(), self._store.lock, self.con.cursor() as cur, catalog.snapshot(cur),
        ):  # fmt: skip
            record = self._fresh(cur)
            try:
                self._store.verify(cur, record)
            except IndexProblem as error:
                raise hint(error, catalog.database(cur), self.name) from error

    def refresh(self) -> None:
        """Let the index take in all that has changed, and forget the codes of images that were
        deleted from the metadata table by SQL. Searches do without: until then they look changes
        up in the database, which is slower the more there are."""
        with self._writing("refresh the index") as (cur, record):
            self._forget(cur, record)
            try:
                self._bring_up(cur)
            except IndexProblem as error:
                raise hint(error, catalog.database(cur), self.name) from error
            finally:
                name_indexes(self.con)

    def _forget(self, cur: duckdb.DuckDBPyConnection, record: Record) -> None:
        """Remove codes of images that the metadata table has no row of any more."""
        gone = rows.orphans(cur, record)
        if len(gone):
            with _interrupts_deferred(), _transaction(cur):
                rows.remove(cur, catalog.raise_generation(cur, record), gone)

    def repair(self, *, progress: bool = False) -> None:
        """Build the index from the codes table, and remove what else lies in its folder."""
        self._rebuild("repair the index", progress)

    def compact(self, *, progress: bool = False) -> None:
        """Make the index one segment, in one order, without deleted rows: the smallest and the
        fastest to search."""
        self._rebuild("compact the index", progress)

    def _rebuild(self, what: str, progress: bool) -> None:
        with self._writing(what) as (cur, record), Bar(self.name, progress) as bar:
            self._forget(cur, record)
            if catalog.table_exists(cur, f"boxwood.{self.name}_embeddings"):
                rows.forget(cur, record)
            total = rows.count(cur, record)
            try:
                self._bring_up(
                    cur, anew=True, progress=lambda part: bar.update(int(part * total), total)
                )
            finally:
                name_indexes(self.con)

    def recode(
        self,
        head: Head | str | os.PathLike[str],
        *,
        embeddings: str | os.PathLike[str] | None = None,
        id: str = "id",
        embedding: str = "embedding",
        texts: ArrayLike | None = None,
        progress: bool = False,
    ) -> Recoded:
        """Give every image a new code, and a new fine code, by another head, from the embeddings
        that the collection keeps, without looking at any image again.

        head: a Head of the embeddings' dimensions, the path of a file with one, or 'pca' or
            'shared', which are fitted to the embeddings. The quantizer, and the head of the fine
            codes, are fitted beside it.
        embeddings: where the collection keeps none: a table or view, or the path of a Parquet file,
            with the images' embeddings in the column `embedding` and their ids in `id`.
        texts: for 'shared' without an encoder: text embeddings (n, dims) of the images' space.

        All or nothing: until the end the collection answers as before, and whatever ends this
        earlier leaves it so. Phrases that are stored for the shell are encoded anew where the
        encoder can be opened, and dropped else. Models and concepts that were trained before are
        of other codes: they are refused from then on.
        """
        kind = head if head in ("pca", "shared") else None
        given = None if kind is not None else _head(head)
        if kind is None and given is None:
            raise InputError("a head is needed: a Head, the path of a head file, 'pca' or 'shared'")
        if given is not None and given.dims != DIMS:
            raise InputError(f"the head must put out {DIMS} dimensions, not {given.dims}")
        if texts is not None and kind != "shared":
            raise InputError("texts are for the head 'shared': leave them out")
        with (
            self._writing("re-code the collection") as (cur, record),
            Bar(self.name, progress) as bar,
            self.con.cursor() as reading,
            ExitStack() as committing,
        ):
            self._forget(cur, record)
            record = self._fresh(cur)
            total = rows.count(cur, record)
            if not total:
                raise InputError(
                    f"the collection {self.name!r} is empty, so there is nothing to re-code: "
                    "create it with head=..."
                )
            source = self._source(cur, record, embeddings, id, embedding)
            every = -(-total // FIT_ROWS)
            some = f" WHERE hash(id) % {every} = 0 LIMIT {FIT_ROWS}" if every > 1 else ""
            sample = _embeddings(cur.sql(source + some).to_arrow_table(), embedding)[1]
            old = self._coding_of(cur, record)
            if old is not None and record.encoder is not None:
                _check_width(record, old, sample)
            if given is not None and given.width != sample.shape[1]:
                raise InputError(
                    f"the head {given.kind!r} (fingerprint {given.fingerprint}) takes embeddings "
                    f"of {given.width} dimensions, but those of {self.name!r} have "
                    f"{sample.shape[1]}"
                )
            stored = catalog.stored_phrases(cur, self.name)
            phrases, words = self._said(record, stored)
            fit = words if texts is None else check(np.asarray(texts), what="text embedding")
            if fit is not None and fit.shape[1] != sample.shape[1]:
                raise InputError(
                    f"embeddings have {sample.shape[1]} dimensions, but texts {fit.shape[1]}"
                )
            fine = bool(record.fine) if old is not None else record.fine_wanted is not False
            if kind == "pca":
                given = Head.pca(sample, fit)
            elif kind == "shared":
                if fit is None:
                    raise InputError(
                        "the head 'shared' needs texts: the collection's encoder to embed its "
                        "phrases, or text embeddings, texts=... (`boxwood head fit --kind shared` "
                        "makes a head file of them, for --head)"
                    )
                given = Head.shared(sample, fit)
            coding = _fitted(sample, given, fit, fine)
            with _transaction(cur):
                record = catalog.raise_generation(cur, record)
                record = catalog.set_coding(cur, record, coding, anew=True)
                done = 0
                for batch in reading.sql(source).to_arrow_reader(_batch_rows(sample.shape[1])):
                    if len(batch):
                        some = pa.Table.from_batches([batch])
                        ids, vectors = _embeddings(some, embedding)
                        rows.insert(cur, record, Rows(ids, *coding.images(vectors)))
                        done += len(ids)
                        bar.update(done, total)
                if done != total:
                    raise Error(
                        f"the rows of {self.name!r} were changed while it was re-coded: try again"
                    )
                catalog.remove_texts(cur, self.name)
                if words is not None:
                    catalog.store_texts(cur, record, phrases, *coding.texts(words))
                if record.keep_embeddings:
                    rows.forget(cur, record)
                draft = self._store.prepare_anew(cur, record)
                committing.enter_context(_interrupts_deferred())
            self._record = record
            self._after_commit(done, lambda: self._publish(cur, record, draft))
        kept = len(phrases) if words is not None else 0
        return Recoded(done, kept, 0 if words is not None else len(stored))

    def _source(
        self,
        cur: duckdb.DuckDBPyConnection,
        record: Record,
        given: str | os.PathLike[str] | None,
        id: str,
        embedding: str,
    ) -> str:
        """A query of ids and embeddings of the rows, of each one; checked."""
        kept = catalog.table_exists(cur, f"boxwood.{self.name}_embeddings")
        if given is None:
            if not kept:
                raise InputError(
                    f"the collection {self.name!r} keeps no embeddings (keep_embeddings of "
                    "create): name a table or a Parquet file that has them, embeddings=..."
                )
            where, what, id, embedding = record.embeddings, "the kept embeddings", "id", "embedding"
        else:
            if kept:
                raise InputError(
                    f"the collection {self.name!r} keeps its embeddings, and is re-coded from "
                    "these: leave embeddings= out"
                )
            what = str(given)
            if isinstance(given, str) and catalog.table_exists(cur, given):
                where = table_name(given)
            elif Path(given).expanduser().is_file():
                where = f"read_parquet({literal(Path(given).expanduser())})"
            else:
                raise InputError(f"there is no table and no Parquet file {what!r} of embeddings")
            try:
                columns = _columns(cur, where)
            except duckdb.Error as error:
                raise InputError(f"cannot read {what}: {_first_line(error)}") from error
            for column in (id, embedding):
                if column not in columns:
                    raise InputError(
                        f"{what} has no column {column!r}; it has {', '.join(columns)}"
                    )
        there = f"(SELECT {quoted(id)} AS id, {quoted(embedding)} AS e FROM {where})"
        row = catalog.one(
            cur,
            f"SELECT count(*) FILTER (n IS NULL), min(c.id) FILTER (n IS NULL), "
            f"min(c.id) FILTER (n > 1) FROM {record.ids} c "
            f"LEFT JOIN (SELECT id, count(*) AS n FROM {there} GROUP BY id) s USING (id)",
        )
        assert row is not None
        if row[0]:
            raise InputError(
                f"{what} lacks {row[0]:,} images of the collection {self.name!r}, for example the "
                f"id {row[1]}: nothing was changed"
            )
        if row[2] is not None:
            raise InputError(f"{what} has the id {row[2]} more than once: nothing was changed")
        return f"SELECT id, e AS {quoted(embedding)} FROM {there} SEMI JOIN {record.ids} USING (id)"

    def _said(
        self, record: Record, stored: builtins.list[str]
    ) -> tuple[builtins.list[str], Floats | None]:
        """The phrases to store, and their embeddings; None where the encoder cannot be opened."""
        if record.encoder is None:
            return [], None
        try:
            encoder = catalog.open_encoder(record.encoder, record.encoder_fingerprint)
        except Error:
            return [], None
        phrases = stored or builtins.list(vocabulary(encoder.name))
        return phrases, catalog.vectors.get(
            encoder, "text", phrases, lambda at: encoder.texts([phrases[n] for n in at])
        )

    # --- about ------------------------------------------------------------------------------------

    @property
    def id_column(self) -> str:
        """The metadata table's column of ids."""
        return self._record.id_column

    @property
    def table(self) -> str | None:
        """The metadata table; None while there is none."""
        return self._record.table

    def __len__(self) -> int:
        with self._cursor() as cur:
            return rows.live_count(cur, self._fresh(cur))

    def __repr__(self) -> str:
        encoder = f", {self._record.encoder!r}" if self._record.encoder else ""
        try:
            images = f", {len(self):,} images"
        except (Error, duckdb.Error):  # dropped, or its connection was closed
            images = ""
        return f"Collection({self.name!r}{images}{encoder})"

    # --- inner workings ---------------------------------------------------------------------------

    @contextmanager
    def _view(self) -> Iterator[View]:
        """The live rows as they are committed; with what this connection's open transaction has
        changed of them, if that was by way of a Collection."""
        if self._store.dropped:
            raise InputError(f"the collection {self.name!r} was dropped")
        with _database_errors():
            if _joined(self.con):
                yield self._see(self.con, committed=False)
                return
            self._catch_up()
            for last in (False, False, True):
                with self.con.cursor() as cur, catalog.snapshot(cur):
                    try:
                        view = self._see(cur)
                        if view.index.info.generation > view.record.generation:
                            error = self._too_new(view.index)
                            raise hint(error, catalog.database(cur), self.name)
                    except IndexStale:
                        if last:
                            raise
                    else:
                        yield view
                        return
                # Another thread may have written an index since the snapshot, or be about to.
                with self._store.lock:
                    pass

    def _catch_up(self) -> None:
        """Let the index take in what transactions of the caller's have left, if that is much."""
        if not self._store.due():
            return
        with self._store.lock, self.con.cursor() as cur:
            try:
                if self._store.due() and not catalog.database(cur).read_only:
                    self._bring_up(cur)
            except (Error, duckdb.Error):  # searches do without; tried again after more changes
                self._store.pending = 0

    def _see(self, cur: duckdb.DuckDBPyConnection, committed: bool = True) -> View:
        record = self._fresh(cur)
        try:
            index = self._store.open(record)
            return View(cur, record, index, self._store.changes(cur, record, index, committed))
        except IndexProblem as error:
            raise hint(error, catalog.database(cur), self.name) from error

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """What sees the same as `_view`."""
        with _database_errors():
            if _joined(self.con):
                yield self.con
                return
            with self.con.cursor() as cur:
                yield cur

    def _fresh(self, cur: duckdb.DuckDBPyConnection) -> Record:
        """The collection's record as it is now."""
        self._record = self._same(catalog.record(cur, self.name, opened=True))
        return self._record

    def _same(self, record: Record) -> Record:
        """A record of this name, if it is this collection's."""
        if record.uuid != self._record.uuid:
            raise InputError(
                f"the collection {self.name!r} was dropped and made anew: open it again"
            )
        return record

    @contextmanager
    def _writing(self, what: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Record]]:
        """A cursor and the record, for a change of this collection; one at a time."""
        _refuse_transaction(self.con, what)
        with self._alone(what) as both:
            yield both

    @contextmanager
    def _alone(self, what: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Record]]:
        with _database_errors(), self._store.lock, self.con.cursor() as cur:
            self._check_writable(cur, what)
            yield cur, self._fresh(cur)

    @contextmanager
    def _changing(self, what: str) -> Iterator[_Change]:
        """For a change of rows by `_committing`. It becomes a part of the caller's transaction, if
        there is one: the cursor is then the connection itself. Else it is in a transaction of its
        own that has begun."""
        with _database_errors(), self._store.lock, ExitStack() as ending:
            number = _transaction_of(self.con)
            if number is None:
                cur = ending.enter_context(self.con.cursor())
                self._check_writable(cur, what)
                cur.execute("BEGIN")
                ending.callback(_rollback, cur)
                yield self._begun(cur)
                return
            self._check_writable(self.con, what)
            raised = self._store.raised.get(self.con)
            if raised is not None and raised[0] == number:
                yield _Change(self.con, raised[1], number, raised[2])
            else:
                yield _Change(self.con, self._fresh(self.con), number, None)

    @contextmanager
    def _beside(self, what: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Record]]:
        """A cursor and the record, for a change, by `_whole`, of what is kept beside the rows. It
        becomes a part of the caller's transaction, if there is one."""
        with _database_errors(), self._store.lock, ExitStack() as ending:
            number = _transaction_of(self.con)
            cur = self.con if number is not None else ending.enter_context(self.con.cursor())
            self._check_writable(cur, what)
            if number is not None:
                _joining[cur] = number
            yield cur, self._fresh(cur)

    @contextmanager
    def _whole(self, cur: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """All of a change or none of it: in a transaction of its own, or at the price of the
        caller's."""
        if cur is self.con:
            with _or_fail(cur):
                yield
            return
        with _interrupts_deferred(), _transaction(cur):
            yield

    def _begun(self, cur: duckdb.DuckDBPyConnection) -> _Change:
        """A change in the cursor's transaction, which has raised the generation."""
        if self._committed is not None:
            record, known = self._committed
            raised = catalog.raise_known(cur, record)
            if raised is not None:
                return _Change(cur, raised, None, known)
        return _Change(cur, catalog.raise_generation(cur, self._fresh(cur)), None, None)

    def _check_writable(self, cur: duckdb.DuckDBPyConnection, what: str) -> None:
        if not self._writable:
            catalog.check_writable(cur, what)
            self._writable = True

    @contextmanager
    def _committing(self, change: _Change, count: int, added: Ids | None = None) -> Iterator[None]:
        """See to the end of what `_changing` has begun, for so many changed rows, or for rows that
        are `added`. From here on the record of the change is of the generation to write, and to be
        kept up to date. After a transaction of its own the index takes the rows in if there are
        enough of them."""
        cur, number = change.cur, change.number
        known = None if added is None else change.known or Known()
        if number is not None:
            _joining[cur] = number
            self._store.pending += count
            with _or_fail(cur):
                raised = self._store.raised.get(cur)
                if raised is None or raised[0] != number:
                    change.record = catalog.raise_generation(cur, change.record)
                yield
                self._record = change.record
                self._store.raised[cur] = number, change.record, known
                if known is not None and added is not None:
                    known.add(added)
            return
        with _interrupts_deferred():
            try:
                yield
                cur.execute("COMMIT")
            except BaseException:
                self._committed = None
                _rollback(cur)
                raise
            self._record = change.record
            self._committed = change.record, known
            if known is not None and added is not None:
                known.add(added)
            self._store.pending += count
            if self._store.due():
                self._after_commit(count, lambda: self._bring_up(cur))

    def _bring_up(
        self,
        cur: duckdb.DuckDBPyConnection,
        *,
        anew: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Let the index take in what is committed; with `anew` make it one segment, of a generation
        of its own."""
        record = self._fresh(cur)
        if rows.many_orphans(cur, record):
            self._forget(cur, record)
        if anew:
            with _transaction(cur):
                catalog.raise_generation(cur, record)
        with catalog.snapshot(cur):
            record = self._fresh(cur)
            draft = (
                self._store.prepare_anew(cur, record, progress)
                if anew
                else self._store.prepare(cur, record)
            )
        if draft is not None or record.indexed < record.generation:
            self._publish(cur, record, draft)
        if anew:
            self._store.tidy()

    def _publish(self, cur: duckdb.DuckDBPyConnection, record: Record, draft: Draft | None) -> None:
        """Make files the index of a committed generation, unless they are, and let the database
        know."""
        if draft is not None:
            checksum = self._store.publish(record, draft)
        else:
            checksum = self._store.open(record).info.checksum
        # Somebody else may be writing there: what is not noted now is noted the next time, and
        # until then these changes are looked up in the database as well.
        with suppress(duckdb.TransactionException), _transaction(cur):
            catalog.set_indexed(cur, record, checksum)
            rows.settle(cur, self._fresh(cur))  # it may have got fine codes since
        self._store.pending = rows.pending(cur, self._fresh(cur))


# --- helpers --------------------------------------------------------------------------------------


def _description(
    cur: duckdb.DuckDBPyConnection, where: catalog.Database, record: Record
) -> dict[str, Any]:
    lost = record.table is not None and not catalog.table_exists(cur, record.place)
    live = 0 if lost else rows.live_count(cur, record)
    head = catalog.one(cur, "SELECT kind FROM boxwood.heads WHERE fingerprint = ?", [record.head])
    path = record.index_path(where)
    state, index = inspect(path, record)
    size = 0 if index is None else index.bytes
    return {
        "name": record.name,
        "rows": live,
        "generation": record.generation,
        "indexed": 0 if index is None else index.rows,
        "pending": rows.pending(cur, record),
        "deleted": 0 if index is None else index.deleted,
        "segments": 0 if index is None else index.segments,
        "bytes": size,
        "bytes_per_row": round(size / live, 2) if live else 0.0,
        "table": record.table,
        "id_column": record.id_column,
        "encoder": record.encoder,
        "encoder_fingerprint": record.encoder_fingerprint or None,
        "head": None if head is None else head[0],
        "head_fingerprint": record.head or None,
        "quantizer": record.quantizer or None,
        "fine": record.fine or None,
        "keep_embeddings": record.keep_embeddings,
        "uuid": str(record.uuid),
        "index": str(path),
        "state": "no table" if lost else state,
    }


class _Trained(NamedTuple):
    """A model, and what is known of it."""

    model: Model
    stats: dict[str, Any]
    estimate: Estimate
    note: str
    source: str
    """The table function that gives the model's rows, and its arguments."""


# Of `Collection.train`; what differs stands in a refinement's SQL.
_DEFAULTS: dict[str, Any] = {
    "query": None, "query_fine": None, "estimators": 25, "boxes": 0, "random_negatives": None,
    "negative_weight": 1.0, "seed": 0, "prior": True, "rerank": False, "guard": True,
}  # fmt: skip
_COVER_ONLY = ("boxes", "rerank", "guard")


def _check_options(options: Mapping[str, Any], sought: bool) -> None:
    """What a learner does not know is not passed over in silence."""
    learner = options["learner"]
    if learner not in LEARNERS:
        raise InputError(f"learner must be one of {', '.join(LEARNERS)}, not {learner!r}")
    for name in ("prior", "rerank", "guard"):
        if not isinstance(options[name], bool):
            raise InputError(f"{name} must be True or False, not {options[name]!r}")
    if learner in ("tree", "forest") and sought:
        raise InputError(
            f"the learner {learner!r} takes positives and negatives alone, no text, image or "
            "query: leave it out, or train by 'cover'"
        )
    if not options["prior"] and learner not in ("branch", "ensemble"):
        raise InputError(
            "prior=False is for the learners 'branch' and 'ensemble': name one of them, or leave "
            "it out"
        )
    for name in _COVER_ONLY:
        if learner != "cover" and options[name] != _DEFAULTS[name]:
            raise InputError(
                f"{name}={options[name]} is for the learner 'cover', not {learner!r}: leave it "
                "out, or train by that"
            )


def _sql_options(options: Mapping[str, Any]) -> str:
    """Options of training as further arguments of boxwood_refine."""
    text = f", learner := '{options['learner']}'"
    for name, default in _DEFAULTS.items():
        value = options.get(name)
        if isinstance(value, np.ndarray):
            text += f", {name} := {value.tolist()}"
        elif value is not None and value != default:
            text += f", {name} := {str(value).lower()}"
    return text


def _estimate(stats: native.TrainStats) -> Estimate:
    def interval(low: float, value: float, high: float) -> Interval | None:
        return None if math.isnan(low + value + high) else (low, value, high)

    return Estimate(
        None if math.isnan(stats.rows) else stats.rows,
        interval(stats.precision_low, stats.precision, stats.precision_high),
        interval(stats.recall_low, stats.recall, stats.recall_high),
    )


def _code(values: ArrayLike, what: str, dims: int) -> Codes:
    row = _matrix(values, what)
    if row.shape != (dims,):
        raise InputError(f"{what} must have the shape ({dims},), not {row.shape}")
    return native.check_codes(row[None], dims).reshape(dims)


def _run(view: View, trained: _Trained) -> Refined:
    found = view.search(trained.model.handle)
    stats = found.stats
    return Refined(
        trained.model,
        {
            **trained.stats,
            "rows": len(found.ids),
            "blocks": stats.blocks,
            "blocks_pruned": stats.blocks_pruned,
            "blocks_outscored": stats.blocks_outscored,
            "blocks_contained": stats.blocks_contained,
            "blocks_planes": stats.blocks_planes,
            "blocks_scanned": stats.blocks_scanned,
            "fine_rows": stats.fine_rows,
            "bytes": stats.bytes,
            "search_ms": stats.nanoseconds / 1e6,
        },
        f"SELECT id, votes, score FROM {trained.source} ORDER BY score DESC, id",
        trained.estimate,
        trained.note,
        found,
    )


def _ranking(ids: Ids, scores: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of falling scores, ties by id."""
    order = np.argsort(-scores)  # several times as fast as by two keys
    ranked = scores[order]
    same = ranked[1:] == ranked[:-1]
    if np.count_nonzero(same) > len(ids) // 16:
        return np.lexsort((ids, -scores))
    tied = np.zeros(len(ids), bool)
    tied[1:] = same
    tied[:-1] |= same
    some = order[tied]
    order[tied] = some[np.lexsort((ids[some], -scores[some]))]
    return order


def _checked(model: object) -> Model:
    if isinstance(model, Concept):
        return model.usable_model()
    if not isinstance(model, Model):
        raise InputError(
            f"a Model is needed, not {type(model).__name__}: Model.from_json reads a document"
        )
    return model


def _hits(ids: Ids, distances: NDArray[np.uint32]) -> pa.Table:
    return pa.table({"id": ids, "distance": np.sqrt(distances.astype(np.float64))})


def _listed(ids: ArrayLike) -> ArrayLike:
    """Sets and iterators, which numpy would take for single objects, as lists."""
    if isinstance(ids, (AbstractSet, ValuesView, range, Iterator)):
        return list(ids)
    return ids


def _some(ids: Ids) -> str:
    text = ", ".join(str(number) for number in ids[:5].tolist())
    return text if len(ids) <= 5 else f"{text} and {len(ids) - 5:,} more"


def _unique(ids: Ids) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise InputError(f"ids appear more than once: {_some(values[counts > 1])}")


def _batch_rows(width: int) -> int:
    return max(1024, min(1 << 18, _BATCH_BYTES // (4 * width)))


def _encoder(encoder: str | Encoder | None) -> Encoder | None:
    if encoder is None:
        return None
    if isinstance(encoder, str):
        return catalog.open_encoder(encoder)
    if isinstance(encoder, Encoder):
        catalog.keep_encoder(encoder)
        return encoder
    raise InputError(f"encoder must be a name or an Encoder, not {type(encoder).__name__}")


def _head(head: Head | str | os.PathLike[str] | None) -> Head | None:
    if head is None or isinstance(head, Head):
        return head
    if isinstance(head, (str, os.PathLike)):
        loaded: Head = Head.load(head)
        return loaded
    raise InputError(f"head must be a Head or the path of a head file, not {type(head).__name__}")


def _fitted(sample: Floats, head: Head | None, texts: Floats | None, fine: bool) -> Coding:
    """Head, quantizer, and with `fine` those of the fine codes, fitted to a sample of embeddings.
    Without `head` it is that of the directions shared with texts, or the PCA where there are none.
    """
    if head is None:
        head = Head.pca(sample) if texts is None else Head.shared(sample, texts)
    coding = Coding(head, Quantizer.fit(head.images(sample)))
    if not fine:
        return coding
    finer = head.finer(sample, texts)
    values = finer.images(sample)
    used = values.any(axis=0)  # the others are the zeros after fewer than 128 dimensions
    fitted = Quantizer.fit(values[:, used] if used.any() else values, FINE_INSIDE)
    return coding._replace(fine_head=finer, fine_quantizer=fitted)


def _check_width(record: Record, coding: Coding, vectors: Floats) -> None:
    """Embeddings of another width are those of another encoder."""
    head = coding.head
    if vectors.shape[1] != head.width:
        made = (
            f"its encoder {record.encoder!r} (fingerprint {record.encoder_fingerprint})"
            if record.encoder
            else f"its head {head.kind!r} (fingerprint {head.fingerprint})"
        )
        raise InputError(
            f"embeddings have {vectors.shape[1]} dimensions, but {head.width} are expected by the "
            f"collection {record.name!r}, by {made}: they are those of another encoder"
        )


def _given_texts(
    texts: Sequence[str] | ArrayLike | None, encoder: Encoder | None
) -> list[str] | Floats | None:
    if texts is None:
        return None
    if isinstance(texts, str):
        raise InputError("texts must be a list of phrases, not a single one")
    if isinstance(texts, Sequence) and texts and isinstance(texts[0], str):
        phrases = list(dict.fromkeys(str(text) for text in texts))
        if encoder is None:
            raise InputError("texts are phrases: name the encoder that embeds them, encoder=...")
        if not all(phrase.strip() for phrase in phrases):
            raise InputError("texts hold an empty phrase")
        return phrases
    embeddings = check(np.asarray(texts), what="text embedding")
    if not len(embeddings):
        raise InputError("texts are empty")
    if encoder is not None:
        raise InputError("with an encoder, texts must be phrases: it embeds them itself")
    return embeddings


def _columns(cur: duckdb.DuckDBPyConnection, source: str) -> list[str]:
    """The columns of something that stands in a FROM clause."""
    return [row[0] for row in cur.execute(f"DESCRIBE FROM {source}").fetchall()]


def _relation(
    con: duckdb.DuckDBPyConnection, relation: duckdb.DuckDBPyRelation, reading: ExitStack
) -> tuple[str | None, Any, int]:
    """What a relation of images is called, if it is a table; its rows, to be read while others are
    written; and their number."""
    query = relation.sql_query()
    cur = reading.enter_context(con.cursor())
    named = re.fullmatch(r'SELECT \* FROM ((?:"?\w+"?\.)*"?\w+"?)', query.strip())
    label = named[1].replace('"', "").removeprefix("main.") if named else None
    try:
        row = catalog.one(cur, f"SELECT count(*) FROM ({query})")
        reader = cur.sql(query).to_arrow_reader(256)
    except (duckdb.CatalogException, duckdb.BinderException):
        table = relation.to_arrow_table()  # of temporary tables, which other cursors do not see
        return label, table, len(table)
    return label, reader, int(row[0]) if row else 0


def _picture(image: Any) -> Any:
    """A Pillow image of what `Collection.encode_image` takes."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(Path(image))
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "images need the package 'pillow': pip install 'boxwood[clip]'"
        ) from error
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, np.ndarray):
        raise InputError(
            "an image must be a file's path, a Pillow image or an array of pixels, not "
            f"{type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"pixels must be uint8 of the shape (height, width, 3), not {image.dtype} {image.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _metadata_table(
    cur: duckdb.DuckDBPyConnection, name: str, table: str | None, id_column: str
) -> str | None:
    """The existing metadata table, checked; None where the first metadata will make it."""
    chosen = name if table is None else table
    if not catalog.table_exists(cur, chosen):
        if table is not None:
            raise InputError(f"there is no table {table!r}")
        return None
    described = cur.execute(f"DESCRIBE FROM {catalog.full_name(cur, chosen)}").fetchall()
    columns = {row[0]: row[1] for row in described}
    if id_column not in columns:
        raise InputError(
            f"the table {chosen!r} has no column {id_column!r} of ids; it has "
            f"{', '.join(columns)}: name it, id_column=..., or another table, table=..."
        )
    if columns[id_column] not in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT",
                                  "USMALLINT", "UINTEGER", "UBIGINT"):  # fmt: skip
        raise InputError(
            f"the column {id_column!r} of {chosen!r} holds {columns[id_column]}, but ids must be "
            "whole numbers"
        )
    return chosen


def _metadata_rows(metadata: Any, ids: Ids, id_column: str) -> pa.Table:
    """Metadata as an Arrow table of as many rows as ids, with these in the first column."""
    try:
        if isinstance(metadata, pa.RecordBatch):
            rows = pa.Table.from_batches([metadata])
        elif isinstance(metadata, pa.Table):
            rows = metadata
        elif isinstance(metadata, Mapping):
            rows = pa.table(dict(metadata))
        elif hasattr(metadata, "__arrow_c_stream__"):
            rows = pa.table(metadata)
        elif hasattr(metadata, "columns") and hasattr(metadata, "iloc"):
            rows = pa.Table.from_pandas(metadata, preserve_index=False)
        else:
            raise InputError(
                "metadata must be an Arrow table, a DataFrame or a dict of columns, not "
                f"{type(metadata).__name__}"
            )
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"the metadata cannot be used: {_first_line(error)}") from error
    if len(rows) != len(ids):
        raise InputError(f"{len(ids):,} ids cannot go with {len(rows):,} rows of metadata")
    if id_column in rows.column_names:
        theirs = native.check_ids(rows[id_column].to_numpy(), f"the metadata's {id_column!r}")
        if not np.array_equal(theirs, ids):
            row = int((theirs != ids).argmax())
            raise InputError(
                f"the metadata's column {id_column!r} differs from the ids in row {row}: "
                f"{theirs[row]} and {ids[row]}"
            )
        rows = rows.drop_columns([id_column])
    return rows.add_column(0, id_column, pa.array(ids))


def _value_columns(columns: list[str], embedding: str, fine: bool | None, what: str) -> list[str]:
    """The column of embeddings, or those of ready codes, among the columns of `what`."""
    if embedding in columns:
        return [embedding]
    if not set(catalog.COLUMNS) <= set(columns):
        raise InputError(
            f"{what} has no column {embedding!r}, and no columns {catalog.COLUMNS[0]} .. "
            f"{catalog.COLUMNS[-1]} of codes; it has {', '.join(columns)}"
        )
    keep = fine is not False and catalog.FINE in columns
    return [*catalog.COLUMNS, *([catalog.FINE] if keep else [])]


def _ready(rows: pa.Table) -> tuple[Ids, Codes, Codes | None]:
    """Ids, codes and fine codes out of a column of ids and those of `_value_columns`."""
    ids = native.check_ids(rows.column(0).to_numpy(), "ids")
    values = []
    for name in catalog.COLUMNS:
        column = rows[name].combine_chunks()
        if not pa.types.is_integer(column.type):
            raise InputError(f"the column {name!r} must hold integers, not {column.type}")
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise InputError(f"the column {name!r} is NULL for id {ids[row]}")
        values.append(column.to_numpy())
    codes = native.check_codes(np.stack(values, axis=1))
    if catalog.FINE not in rows.column_names[1:]:
        return ids, codes, None
    column = rows[catalog.FINE].combine_chunks()
    if not _holds_lists(column.type) or not pa.types.is_integer(column.type.value_type):
        raise InputError(
            f"the column {catalog.FINE!r} must hold lists of integers, not {column.type}"
        )
    flat = _flat(column, lambda row: f"the fine code of id {ids[row]}")
    return ids, codes, native.check_codes(flat, native.FINE_DIMS)


def _embeddings(rows: pa.Table, name: str) -> tuple[Ids, Floats]:
    """Ids and embeddings out of two columns: integers, and lists or arrays of floats."""
    ids = native.check_ids(rows.column(0).to_numpy(), "ids")
    column = rows.column(1).combine_chunks()
    if not _holds_lists(column.type) or not pa.types.is_floating(column.type.value_type):
        raise InputError(f"the column {name!r} must hold lists of floats, not {column.type}")
    vectors = _flat(column, lambda row: f"the embedding of id {ids[row]}")
    try:
        return ids, check(vectors)
    except InputError as error:
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        bad = ~(np.isfinite(norms) & (norms > 1e-30))
        if bad.any():
            raise InputError(f"{error} (id {ids[bad.argmax()]})") from error
        raise


def _holds_lists(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _flat(column: pa.Array, what: Callable[[int], str]) -> NDArray[Any]:
    """Arrow lists of one length as an array (rows, length); `what` names a row in errors."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(f"{what(row)} is NULL")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    width = int(lengths[0]) if len(lengths) else 0
    if (lengths != width).any():
        row = int((lengths != width).argmax())
        raise InputError(
            f"all must be of one length, but {what(row)} has {lengths[row]} values, and {what(0)} "
            f"{width}"
        )
    values = column.flatten()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False))) // max(width, 1)
        raise InputError(f"{what(row)} holds a NULL")
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
    return flat


def _matrix(values: Any, what: str) -> NDArray[Any]:
    """Numbers as an array: also Arrow lists, and arrays of arrays as a DataFrame's columns are."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array) and _holds_lists(values.type):
        return _flat(values, lambda row: f"row {row} of {what}")
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1 and len(array):
            array = np.stack([np.asarray(row) for row in array])
    except ValueError as error:
        raise InputError(f"{what} must be numbers, as many in every row ({error})") from error
    return array


def _load_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    try:
        rows: NDArray[Any] = np.load(Path(path).expanduser(), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no .npy file, or a damaged one: {error}") from error
    if not isinstance(rows, np.ndarray):
        raise InputError(f"{path} is an archive of arrays: pass one array, as an .npy file")
    return rows


@contextmanager
def _row_offset(start: int) -> Iterator[None]:
    """Tell where a batch begins, in errors that name a row of it."""
    try:
        yield
    except InputError as error:
        if start and "row " in str(error):
            raise InputError(f"{error} (of the rows from {start:,} on)") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_transaction(con: duckdb.DuckDBPyConnection, what: str) -> None:
    if catalog.in_transaction(con):
        raise InputError(
            f"cannot {what} inside a transaction: it commits by itself. COMMIT or ROLLBACK first"
        )


_joining: weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, int] = weakref.WeakKeyDictionary()
"""Connections with a transaction of their users' in which collections were changed, and its number.
"""


def _transaction_of(con: duckdb.DuckDBPyConnection) -> int | None:
    """The number of the transaction that the caller has begun on this connection; None: there is
    none. Of one that has failed, 0: nothing can be done in it."""
    number = _joining.get(con)
    try:
        row = catalog.one(con, "SELECT txid_current()")
    except duckdb.TransactionException:
        return 0
    assert row is not None
    if row[0] == number:
        return number
    # Outside of a transaction, every statement has one of its own.
    again = catalog.one(con, "SELECT txid_current()")
    return row[0] if again == row else None


def _joined(con: duckdb.DuckDBPyConnection) -> bool:
    """Whether that transaction is still open. Only then may a search run on the connection itself:
    it would end what its user is reading from it."""
    number = _joining.get(con)
    if number is None:
        return False
    try:
        row = catalog.one(con, "SELECT txid_current()")
    except duckdb.Error:  # it has failed, and waits for its ROLLBACK
        return False
    if row is not None and row[0] == number:
        return True
    _joining.pop(con, None)
    name_indexes(con)  # it may have been rolled back, and with it what the macros were told
    return False


@contextmanager
def _or_fail(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Something in the caller's transaction that must not be committed half done."""
    try:
        yield
    except BaseException:
        # A failed statement ends a transaction for good, and this one always fails.
        with suppress(duckdb.Error):
            con.execute("BEGIN")
        raise


@contextmanager
def _transaction(cur: duckdb.DuckDBPyConnection) -> Iterator[None]:
    cur.execute("BEGIN")
    try:
        yield
        cur.execute("COMMIT")
    except BaseException:
        _rollback(cur)
        raise


def _rollback(cur: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.Error):  # a failed COMMIT has rolled back already
        cur.execute("ROLLBACK")


@contextmanager
def _database_errors() -> Iterator[None]:
    """DuckDB's errors that are not about SQL, as Boxwood's."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise OutOfMemory(f"DuckDB ran out of memory: {_first_line(error)}") from error
    except duckdb.TransactionException as error:
        if "conflict" in str(error).lower():
            raise Error(
                f"somebody else changed the same rows: try again ({_first_line(error)})"
            ) from error
        raise StorageError(
            f"the database could not commit, and nothing was changed: {_first_line(error)}"
        ) from error
    except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as error:
        raise StorageError(
            f"the database could not be read or written, and nothing was changed: "
            f"{_first_line(error)}"
        ) from error
    except (duckdb.BinderException, duckdb.CatalogException) as error:
        raise InputError(
            f"a table or column that the collection needs is not there: {_first_line(error)}. If "
            "it was renamed or dropped, put it back: the codes are kept as long"
        ) from error
    except duckdb.ConstraintException as error:
        raise InputError(f"the database refused the rows: {_first_line(error)}") from error
    except RuntimeError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # as DuckDB 1.5 passes Ctrl-C on
            raise error.__cause__ from None
        if str(error) == "Query interrupted":  # as DuckDB does in what is no query
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Ctrl-C takes effect at the end: what is committed together is also indexed."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pending: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            handler(*pending[0])
