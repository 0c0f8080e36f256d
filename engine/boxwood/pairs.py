"""What heads are trained on: embeddings and pairs of them, from files and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boxwood.catalog import literal, quoted, table_exists, table_name
from boxwood.encode.head import Floats, check_embeddings
from boxwood.encode.images import ImageError, load_image
from boxwood.errors import InputError, StorageError

if TYPE_CHECKING:
    import duckdb

    from boxwood.encode.encoder import Encoder

_BATCH = 64


@dataclass(frozen=True)
class Pairs:
    """Row i of `images` belongs to row i of `texts`, both ``(n, width)`` float32.

    `groups` says which rows show the same thing; None: those with equal image embeddings.
    `skipped` has what was left out, as (path, reason).
    """

    images: Floats
    texts: Floats
    groups: list[Any] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file with the columns image, text and, if there are groups, group."""
        columns: dict[str, Any] = {"image": _lists(self.images), "text": _lists(self.texts)}
        if self.groups is not None:
            columns["group"] = pa.array(self.groups)
        try:
            pq.write_table(pa.table(columns), path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error}") from error


def read_embeddings(
    con: duckdb.DuckDBPyConnection, source: str, embedding: str = "embedding"
) -> Floats:
    """Embeddings ``(n, width)`` of an ``.npy`` file, or of a column of a Parquet file or table."""
    if source.lower().endswith(".npy"):
        try:
            with open(Path(source).expanduser(), "rb") as file:
                start = file.read(6)
                if start.startswith(b"PK"):
                    raise ValueError("an archive of arrays; pass one array")
                if start != b"\x93NUMPY":  # of which NumPy would say that it may be a pickle
                    raise ValueError("it does not begin as one")
                file.seek(0)
                rows = np.load(file, allow_pickle=False)
        except FileNotFoundError as error:
            raise InputError(f"there is no file {source}") from error
        except (EOFError, ValueError) as error:
            raise InputError(f"{source} is no .npy file, or a damaged one: {error}") from error
        return check_embeddings(rows)
    [rows] = _columns(con, source, [embedding])
    return check_embeddings(_matrix(rows, embedding, source))


def read_pairs(
    con: duckdb.DuckDBPyConnection,
    source: str,
    *,
    image: str = "image",
    text: str = "text",
    group: str | None = None,
) -> Pairs:
    """Pairs of embeddings: two columns of lists of floats of a Parquet file or table. `group`, a
    column of any kind, says which rows show the same thing; a column called "group" is taken where
    none is named. Raises InputError for a column that is missing, NULL, or no matrix."""
    if group is None and "group" in _names(con, source):
        group = "group"
    names = [image, text, *([] if group is None else [group])]
    images, texts, *groups = _columns(con, source, names)
    if groups and groups[0].null_count:
        raise InputError(f"{source} has rows without a {group!r}")
    return Pairs(
        check_embeddings(_matrix(images, image, source), what="image embedding"),
        check_embeddings(_matrix(texts, text, source), what="text embedding"),
        groups[0].to_pylist() if groups else None,
    )


def embed_pairs(
    con: duckdb.DuckDBPyConnection,
    source: str,
    encoder: Encoder,
    *,
    path: str = "path",
    caption: str = "caption",
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Pairs of image files and captions, two columns of a CSV or Parquet file or of a table,
    embedded by an encoder. A file's several captions are rows of their own, and its path is their
    group; it is embedded once. Paths are relative to the folder that a CSV or Parquet file lies in.

    Rows without a caption, and those of files that cannot be read, are left out and listed as
    `skipped`. `progress` is called with (files and captions embedded, all of them).
    """
    columns = [column.to_pylist() for column in _columns(con, source, [path, caption])]
    folder = Path(source).parent if _is_file(source) else Path()
    skipped: list[tuple[str, str]] = []
    wanted: dict[str, list[str]] = {}
    for name, words in zip(*columns, strict=True):
        if not isinstance(name, str) or not name.strip():
            skipped.append((str(name), "no path"))
        elif not isinstance(words, str) or not words.strip():
            skipped.append((name, "no caption"))
        else:
            wanted.setdefault(name, []).append(words)
    total = len(wanted) + sum(map(len, wanted.values()))
    names: list[str] = []
    images: list[Floats] = []
    loaded: list[tuple[str, Any]] = []

    def embed() -> None:
        if loaded:
            images.append(encoder.images([picture for _, picture in loaded]))
            names.extend(name for name, _ in loaded)
            loaded.clear()

    for done, name in enumerate(wanted, 1):
        try:
            loaded.append((name, load_image(folder / Path(name).expanduser())))
        except ImageError as error:
            skipped.append((name, error.reason))
        if len(loaded) == _BATCH:
            embed()
        if progress is not None:
            progress(done, total)
    embed()
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise InputError(f"{source} has no image with a caption that could be read. {reasons}")
    captions = [words for name in names for words in wanted[name]]
    texts = []
    for start in range(0, len(captions), _BATCH):
        texts.append(encoder.texts(captions[start : start + _BATCH]))
        if progress is not None:
            progress(len(wanted) + min(start + _BATCH, len(captions)), total)
    if progress is not None:
        progress(total, total)
    counts = [len(wanted[name]) for name in names]
    return Pairs(
        np.concatenate(images).repeat(counts, axis=0),
        np.concatenate(texts),
        [name for name, count in zip(names, counts, strict=True) for _ in range(count)],
        skipped,
    )


def _is_file(source: str) -> bool:
    return source.lower().endswith((".parquet", ".csv", ".tsv"))


def _relation(con: duckdb.DuckDBPyConnection, source: str) -> str:
    """A file or a table as SQL."""
    if _is_file(source):
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"there is no file {source}")
        if path.suffix.lower() == ".parquet":
            return f"read_parquet({literal(path)})"
        return f"read_csv({literal(path)}, header := true, all_varchar := true)"
    if not table_exists(con, source):
        raise InputError(
            f"{source!r} is neither a .parquet, .csv or .tsv file nor a table of the database; "
            "for a table, name its database"
        )
    return table_name(source)


def _names(con: duckdb.DuckDBPyConnection, source: str) -> list[str]:
    import duckdb

    try:
        rows = con.execute(f"DESCRIBE FROM {_relation(con, source)}").fetchall()
    except duckdb.Error as error:
        raise InputError(f"cannot read {source}: {str(error).splitlines()[0]}") from error
    return [row[0] for row in rows]


def _columns(con: duckdb.DuckDBPyConnection, source: str, wanted: Sequence[str]) -> list[Any]:
    import duckdb

    names = _names(con, source)
    for name in wanted:
        if name not in names:
            raise InputError(f"{source} has no column {name!r}; it has: {', '.join(names)}")
    selected = ", ".join(map(quoted, wanted))
    try:
        table = con.sql(f"SELECT {selected} FROM {_relation(con, source)}").to_arrow_table()
    except duckdb.Error as error:
        raise InputError(f"cannot read {source}: {str(error).splitlines()[0]}") from error
    if len(table) == 0:
        raise InputError(f"{source} has no rows")
    return [column.combine_chunks() for column in table.columns]


def _matrix(column: Any, name: str, source: str) -> Floats:
    """Lists of floats of one length as a matrix."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (listed or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise InputError(f"the column {name!r} of {source} must hold lists of floats, not {kind}")
    missing = np.asarray(column.is_null(), bool)
    if missing.any():
        raise InputError(f"row {int(missing.argmax())} of {source} has no {name!r}")
    lengths = np.asarray(column.value_lengths()) if listed else np.full(len(column), kind.list_size)
    other = lengths != lengths[0]
    if other.any():
        row = int(other.argmax())
        raise InputError(
            f"{name!r} has {lengths[0]} values in row 0 of {source}, but {lengths[row]} in row "
            f"{row}: embeddings are of one length"
        )
    # NULL within a list becomes NaN, which is refused with its row.
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), int(lengths[0]))


def _lists(rows: Floats) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
