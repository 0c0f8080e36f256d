"""Where images come from: folders, globs, lists, tables, Parquet files and tar shards.

Every source gives `Item`s: what an image is called, where its bytes are, and what is known of it.
A file is called by its absolute path; a member of a tar shard or a row of a Parquet file by the
file's path, ``#``, and the member's name or the row's key. What is called the same is the same
image, so that a second call passes over it.
"""

from __future__ import annotations

import functools
import glob
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from boxwood import errors
from boxwood.encode.decode import Broken, Item, Slice
from boxwood.encode.images import SUFFIXES, ImageError, find_images, is_hidden
from boxwood.errors import Cancelled, InputError

COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "path", "file", "filename", "image_path")
"""Columns of images that are found without being named: bytes in any, paths in text ones."""
KEYS = ("uri", "key", "path", "url", "id")
"""Columns that tell images in bytes apart, where none is named."""
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""How the names of tar shards end. What a shard is packed with is told from its first bytes."""
_ROWS = 64  # of a table of bytes, at a time
_WHOLE = 1 << 20  # JSON beside an image that is larger is none of img2dataset's
_LARGEST = 1 << 30  # bytes of an image in a compressed shard, where a kilobyte may say any size
_HELD = 64 << 20  # bytes of one name in a compressed shard; what follows is taken by itself
_PADDING = 16 << 20  # bytes after a tar's end, at most, that are read to see the shard's checksum


def is_pattern(text: str) -> bool:
    """Whether a path that does not exist is meant as a glob."""
    return glob.has_magic(text) and not os.path.lexists(os.path.expanduser(text))


class Sources:
    """All items of some sources, in order; `total` is how many, by what is known so far.

    source: a folder (with all below it), a file, a glob as ``~/Pictures/**/*.jpg``, or a list of
        such; a Parquet file or tar shard is opened, a folder's too; or a table: an Arrow table or
        reader, a DataFrame, or a DuckDB relation's reader.
    column: of a table or Parquet file, the column of images: paths (text) or bytes (BLOB).
    key: the column that tells images apart where they are bytes.
    label: what a table is called in uris; None: it needs a key that is text.
    rows: how many a reader has, where it does not say.
    """

    def __init__(
        self,
        source: Any,
        column: str | None = None,
        key: str | None = None,
        label: str | None = None,
        rows: int | None = None,
    ) -> None:
        self._column = column
        self._key = key
        self._parts: list[tuple[str, Any, int]] = []  # kind, what, images or, of tars, bytes
        self._files: set[str] = set()
        self._listed = 0  # images of tars that are listed to their end, and their bytes
        self._bytes = 0
        if isinstance(source, (str, os.PathLike)):
            self._add_path(source)
        elif hasattr(source, "__arrow_c_stream__") or _is_frame(source):
            table = _reader(source)
            self._parts.append(("table", (table, label), rows or _length(source)))
        elif isinstance(source, Mapping) or not isinstance(source, Iterable):
            raise InputError(
                "images come as a path, a glob, a list of these, or a table (Arrow, DataFrame, "
                f"DuckDB relation), not {type(source).__name__}"
            )
        else:
            for path in source:
                if not isinstance(path, (str, os.PathLike)):
                    raise InputError(f"a list of images holds paths, not {type(path).__name__}")
                self._add_path(path)
        if column is not None and not any(kind in ("table", "parquet") for kind, *_ in self._parts):
            raise InputError(f"column={column!r} is for tables and Parquet files")

    def _add_path(self, given: str | os.PathLike[str]) -> None:
        text = os.path.expanduser(os.fspath(given))
        found = [text]
        if is_pattern(text):
            found = sorted(glob.glob(text, recursive=True))
            # Of what `**` finds, folders are only the way to the files.
            found = [name for name in found if not os.path.isdir(name)] or found
            if not found:
                raise InputError(f"no file matches {given}")
        files: list[str] = []
        for name in found:
            if os.path.isdir(name):
                self._add_folder(name, files)
            else:
                self._add_file(name, files, given)
        new = [file for file in dict.fromkeys(files) if file not in self._files]
        self._files.update(new)
        if new:
            self._parts.append(("files", new, len(new)))

    def _add_folder(self, folder: str, files: list[str]) -> None:
        """Its images, and the shards in it: what lies beside a tar under its name is about it."""
        files += map(str, find_images(folder))
        for here, subfolders, names in os.walk(folder):
            subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                path = os.path.join(here, name)
                if is_hidden(name):
                    continue
                if is_tar(name):
                    self._add_file(path, files, path)
                elif suffix.lower() == ".parquet" and not any(stem + tar in names for tar in TARS):
                    schema = _schema(path)
                    if self._column in schema.names or _bytes_column(schema) is not None:
                        self._add_file(path, files, path)

    def _add_file(self, path: str, files: list[str], given: object) -> None:
        if not os.path.lexists(path):
            raise InputError(f"no such file or folder: {given}")
        kind = "tar" if is_tar(path) else os.path.splitext(path)[1].lower()[1:]
        if kind not in ("tar", "parquet"):
            files.append(path)
            return
        whole = os.path.realpath(path)
        if any(whole == what for _, what, _ in self._parts):
            return
        if kind == "parquet":
            schema = _schema(whole)
            _image_column(schema, self._column, path)
            self._parts.append((kind, whole, pq.read_metadata(whole).num_rows))
        else:
            self._parts.append((kind, whole, os.path.getsize(whole)))

    @property
    def total(self) -> int:
        """How many items there are; of tar shards an estimate, by those that were listed."""
        counted = sum(size for kind, _, size in self._parts if kind != "tar")
        left = sum(size for kind, _, size in self._parts if kind == "tar") - self._bytes
        mean = self._bytes / self._listed if self._listed else 1 << 16
        return counted + self._listed + round(left / mean)

    def __iter__(self) -> Iterator[Item | Broken]:
        for entry in self._entries():
            try:
                entry.uri.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(entry.uri).decode("utf-8", "backslashreplace")
                if isinstance(entry, Broken):
                    yield Broken(shown, entry.reason, entry.detail)
                else:
                    yield Broken(shown, "unreadable", "its name is not valid UTF-8: rename it")
            else:
                yield entry

    def _entries(self) -> Iterator[Item | Broken]:
        for kind, what, _ in self._parts:
            if kind == "files":
                yield from _files(what)
            elif kind == "table":
                table, label = what
                yield from self._table(table, label, table.schema)
            elif kind == "parquet":
                yield from self._parquet(what)
            else:
                yield from self._tar(what)

    def _parquet(self, path: str) -> Iterator[Item | Broken]:
        with pq.ParquetFile(path) as file:
            column = _image_column(file.schema_arrow, self._column, path)
            kind = file.schema_arrow.field(column).type
            size = _ROWS if _is_bytes(kind) else 4096
            try:
                yield from self._table(
                    file.iter_batches(size), path, file.schema_arrow, numbered=True
                )
            except (pa.ArrowException, OSError) as error:
                yield Broken(path, "truncated", f"the rest cannot be read: {_line(error)}")

    def _table(
        self,
        batches: Iterable[pa.RecordBatch],
        label: str | None,
        schema: pa.Schema,
        numbered: bool = False,
    ) -> Iterator[Item | Broken]:
        row = 0
        name = label or "the table"
        column = _image_column(schema, self._column, name)
        key = None
        if not _is_text(schema.field(column).type):
            key = _key_column(schema, column, self._key, label, name, numbered)
        others = [other for other in schema.names if other not in (column, "uri")]
        for batch in batches:
            lists = {other: batch.column(other).to_pylist() for other in others}
            keys = None if key is None else batch.column(key).to_pylist()
            for n, value in enumerate(batch.column(column)):
                data = value.as_py()
                told = None if keys is None else keys[n]
                if isinstance(data, str):
                    if not data or "\0" in data:
                        uri = f"{name}, row {row + n}"
                        yield Broken(uri, "unreadable", f"its {column!r} is no path: {data!r}")
                        continue
                    uri = data = os.path.realpath(os.path.expanduser(data))
                elif told is None and not numbered:
                    uri = f"{name}, row {row + n}"
                    yield Broken(uri, "unreadable", f"its {key or column!r} is NULL")
                    continue
                elif label is None or (key == "uri" and told is not None):
                    uri = str(told)
                else:
                    uri = f"{label}#{row + n if told is None else told}"
                if data is None:
                    yield Broken(uri, "unreadable", f"its {column!r} is NULL")
                else:
                    yield Item(uri, data, {other: lists[other][n] for other in others})
            row += len(batch)

    def _tar(self, path: str) -> Iterator[Item | Broken]:
        """Images of a tar shard, with what stands in the .json or .txt of the same name. Those of a
        compressed one come as bytes: it can only be read from its start."""
        size = os.path.getsize(path)
        listed = 0
        before = self._bytes
        packed = False
        try:
            with _open_tar(path) as (shard, raw, packed):
                for group in _samples(shard, packed):
                    images = [file for file in group if _suffix(file.member.name) in SUFFIXES]
                    metadata = _beside(shard, group) if images else None
                    for member, data in images:
                        uri = f"{path}#{member.name}"
                        if not packed:
                            held = Slice(path, member.offset_data, member.size)
                            yield Item(uri, held, metadata)
                        elif data is not None:
                            yield Item(uri, data, metadata)
                        else:
                            said = f"{member.size:,} bytes are more than {_LARGEST:,}"
                            yield Broken(uri, "decompression bomb", said)
                    listed += len(images)
                    self._listed += len(images)
                    self._bytes = before + min(size, raw.tell())
        except Exception as error:  # tarfile raises whatever a damaged archive drives it to
            said = _line(error) or "damaged"
            cut = isinstance(error, EOFError) or isinstance(error.__cause__, EOFError)
            if cut or "end of" in said or "truncated" in said or not size:
                reason = "truncated"
            else:
                reason = "broken" if listed or packed else "not an image"
            yield Broken(path, reason, f"the rest of this tar cannot be read: {said}")
        self._bytes = before + size


def _files(files: Sequence[str]) -> Iterator[Item | Broken]:
    folders: dict[str, str] = {}  # where they really are: files follow each other
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders = {folder: os.path.realpath(folder)}
        uri = os.path.join(folders[folder], name)
        uri = os.path.realpath(uri) if os.path.islink(uri) or name in ("", "..") else uri
        yield Item(uri, uri)


# --- tables ---------------------------------------------------------------------------------------


def _is_frame(source: object) -> bool:
    return hasattr(source, "columns") and hasattr(source, "iloc")


def _length(source: Any) -> int:
    try:
        return len(source)
    except TypeError:
        return 0


def _reader(source: Any) -> pa.RecordBatchReader:
    try:
        if _is_frame(source):
            return pa.Table.from_pandas(source, preserve_index=False).to_reader(_ROWS)
        if isinstance(source, pa.RecordBatch):
            source = pa.Table.from_batches([source])
        if isinstance(source, pa.Table):
            return source.to_reader(4096)
        return pa.RecordBatchReader.from_stream(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"the table of images cannot be read: {_line(error)}") from error


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
                or pa.types.is_fixed_size_binary(kind) or "binary_view" in str(kind))  # fmt: skip


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)
                or "string_view" in str(kind))  # fmt: skip


def _schema(path: str) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path} as Parquet: {_line(error)}") from error


def _bytes_column(schema: pa.Schema) -> str | None:
    for name in COLUMNS:
        if name in schema.names and _is_bytes(schema.field(name).type):
            return name
    return None


def _image_column(schema: pa.Schema, column: str | None, where: str) -> str:
    """The column of images: the one that is named, or the first that looks like it."""
    listed = f"it has {', '.join(schema.names)}"
    if len(set(schema.names)) < len(schema.names):
        raise InputError(f"the columns of {where} must have different names; {listed}")
    if column is None:
        texts = [n for n in COLUMNS if n in schema.names and _is_text(schema.field(n).type)]
        found = _bytes_column(schema) or (texts[0] if texts else None)
        if found is None:
            raise InputError(
                f"{where} has no column of images that is known by its name: name the one of paths "
                f"or bytes, column=...; {listed}"
            )
        return found
    if column not in schema.names:
        raise InputError(f"{where} has no column {column!r}; {listed}")
    kind = schema.field(column).type
    if not _is_bytes(kind) and not _is_text(kind):
        raise InputError(
            f"the column {column!r} of {where} must hold paths or bytes of images, not {kind}"
        )
    return column


def _key_column(
    schema: pa.Schema, column: str, key: str | None, label: str | None, name: str, numbered: bool
) -> str | None:
    """The column that tells the rows apart; None where their numbers do."""
    if key is not None:
        if key not in schema.names:
            raise InputError(f"{name} has no column {key!r}: {', '.join(schema.names)}")
        return key
    for known in KEYS:
        if known in schema.names and known != column:
            text = _is_text(schema.field(known).type)
            if text or label is not None:
                return known
    if numbered:
        return None
    raise InputError(
        "images in bytes need a column that tells them apart, key=..., so that a second call "
        f"knows them; {name} has {', '.join(schema.names)}"
    )


# --- tar shards -----------------------------------------------------------------------------------


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_tar(name: str) -> bool:
    return name.lower().endswith(TARS)


class _Member(tarfile.TarInfo):
    """A member whose damaged or missing header is an error; tarfile takes it for the tar's end."""

    @classmethod
    def fromtarfile(cls, shard: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(shard)
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("unexpected end of data, no block that ends it") from error
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


class _File(NamedTuple):
    """A file in a tar; `data` of images and notes in a compressed one, unless it is too large."""

    member: tarfile.TarInfo
    data: bytes | None


def _packing(raw: IO[bytes]) -> str:
    start = raw.read(6)
    raw.seek(0)
    for magic, kind in ((b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz")):
        if start.startswith(magic):
            return kind
    return ""


@contextmanager
def _open_tar(
    path: str, kind_of_file: type[io.FileIO] = io.FileIO
) -> Iterator[tuple[tarfile.TarFile, IO[bytes], bool]]:
    """A tar shard, its file, and whether it is compressed."""
    with io.BufferedReader(kind_of_file(path)) as raw:
        kind = _packing(raw)
        mode: Any = f"r:{kind}"
        with tarfile.open(path, mode, fileobj=raw, tarinfo=_Member) as shard:
            yield shard, raw, bool(kind)


def _samples(shard: tarfile.TarFile, packed: bool) -> Iterator[list[_File]]:
    """Files of one name but for the suffix, which follow each other, as webdataset has them. A
    compressed shard is read to its end once, never back."""
    group: list[_File] = []
    stem = ""
    held = 0
    while (member := shard.next()) is not None:
        shard.members.clear()  # type: ignore[attr-defined]  # or it would keep every one
        folder, name = os.path.split(member.name)
        if not member.isfile() or is_hidden(name):
            continue
        this = os.path.join(folder, name.split(".")[0])
        if group and (this != stem or held > _HELD):
            yield group
            group, held = [], 0
        stem = this
        data = None
        most = {".json": _WHOLE, ".txt": _WHOLE}.get(_suffix(name), _LARGEST)
        if packed and member.size <= most and _suffix(name) in SUFFIXES | {".json", ".txt"}:
            file = shard.extractfile(member)
            data = b"" if file is None else file.read()
            held += len(data)
        group.append(_File(member, data))
    if group:
        yield group
    left = _PADDING if packed else 0
    while left > 0 and (rest := shard.fileobj.read(1 << 16)):
        left -= len(rest)


def _beside(shard: tarfile.TarFile, group: Sequence[_File]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    caption = None
    for member, data in group:
        kind = _suffix(member.name)
        if kind not in (".json", ".txt") or member.size > _WHOLE:
            continue
        if data is None:
            file = shard.extractfile(member)
            data = b"" if file is None else file.read()
        text = data.decode("utf-8", "replace")
        if kind == ".txt":
            caption = text.strip()
            continue
        try:
            held = json.loads(text)
        except (ValueError, RecursionError):
            continue  # an image with a damaged note is an image
        if isinstance(held, dict):
            known.update(held)
    if caption is not None and known.get("caption") is None:
        known["caption"] = caption
    return known


def open_uri(uri: str, most: int = _LARGEST) -> str | io.BytesIO:
    """What `load_image` takes, of an image by its uri: a member of a tar shard or a row of a
    Parquet file as its bytes. A compressed shard is read from its start to the member. Raises
    ImageError where it is not there, and of the kind "decompression bomb" where it has more than
    `most` bytes: these are not read. Raises Cancelled once `errors.stopping` is set."""
    path, hash_, member = uri.partition("#")
    if not hash_ or not (is_tar(path) or _suffix(path) == ".parquet") or os.path.lexists(uri):
        return uri
    try:
        if is_tar(path):
            return io.BytesIO(_read_member(path, member, most))
        data = _read_row(path, uri, most)
    except Cancelled:
        raise
    except _Large as error:
        said = f"{error.size:,} bytes are more than {most:,}"
        raise ImageError(uri, said, "decompression bomb") from error
    except Exception as error:  # as above: whatever a damaged archive drives it to
        raise ImageError(uri, f"cannot be read: {_line(error)}", "unreadable") from error
    if data is None:
        raise ImageError(uri, "no such row", "unreadable")
    return io.BytesIO(data)


class _Large(Exception):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Stoppable(io.FileIO):
    """A file that is read until `errors.stopping` is set. Passing over one member of a compressed
    shard may take minutes."""

    def readinto(self, buffer: Any) -> int:
        errors.check_stopped()
        return super().readinto(buffer)


def _read_member(path: str, name: str, most: int) -> bytes:
    """The bytes of the first image of this name. Raises KeyError where there is none, and _Large
    before it reads more than `most`: a header may say any size, and a sparse file hold it."""
    with open(path, "rb") as raw:
        if not _packing(raw):
            offset, size = _members(path, os.fstat(raw.fileno()).st_mtime_ns)[name]
            if size > most:
                raise _Large(size)
            raw.seek(offset)
            return raw.read(size)
    with _open_tar(path, _Stoppable) as (shard, _, _):
        while (member := shard.next()) is not None:
            shard.members.clear()  # type: ignore[attr-defined]  # or it would keep every one
            image = _suffix(name) in SUFFIXES and not is_hidden(os.path.basename(name))
            if member.name != name or not member.isfile() or not image:
                continue
            if member.size > most:
                raise _Large(member.size)
            file = shard.extractfile(member)
            return b"" if file is None else file.read()
    raise KeyError(name)


def _read_row(path: str, uri: str, most: int) -> bytes | None:
    """The bytes of the image that a Parquet file's rows, as `Sources` names them, have under this
    uri; None: there is none. Only the column of keys is read whole. That of images is read value
    by value, so that no more than one page of it lies in memory: a dictionary makes thousands of
    rows of the largest image in no space. Raises _Large for an image of more than `most`."""
    path = os.path.realpath(path)
    # Without pre_buffer, which loads whole columns of row groups at once.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        schema = file.schema_arrow
        column = _image_column(schema, None, path)
        if not _is_bytes(schema.field(column).type):
            return None
        key = _key_column(schema, column, None, path, path, numbered=True)
        if key is None:
            number = uri.removeprefix(f"{path}#")
            canonical = number.isdecimal() and number == str(int(number[:20]))
            wanted = [int(number)] if canonical else []
        else:
            wanted, row = [], 0
            for batch in file.iter_batches(4096, columns=[key]):
                errors.check_stopped()
                for told in batch.column(0).to_pylist():
                    if key == "uri" and told is not None:
                        same = str(told) == uri
                    else:
                        same = f"{path}#{row if told is None else told}" == uri
                    if same:
                        wanted.append(row)
                    row += 1
        for row in wanted:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < rows:
                    values = file.iter_batches(1, row_groups=[group], columns=[column])
                    for value in itertools.islice(_watched(values), row, row + 1):
                        held = value.column(0)[0]
                        if held.is_valid:
                            size = held.as_buffer().size
                            if size > most:
                                raise _Large(size)
                            data: bytes = held.as_py()
                            return data
                    break
                row -= rows
    return None


def _watched(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        errors.check_stopped()
        yield batch


@functools.lru_cache(maxsize=4)
def _members(path: str, changed: int) -> dict[str, tuple[int, int]]:
    """Where an uncompressed shard has its images. `changed` tells versions of a file apart."""
    with _open_tar(path) as (shard, _, _):
        found: dict[str, tuple[int, int]] = {}
        for member, _ in itertools.chain.from_iterable(_samples(shard, False)):
            if _suffix(member.name) in SUFFIXES:  # of one name the first, as when they are added
                found.setdefault(member.name, (member.offset_data, member.size))
        return found


# --- columns --------------------------------------------------------------------------------------


def columns(items: Sequence[Mapping[str, Any] | None], taken: Iterable[str]) -> dict[str, pa.Array]:
    """What is known of images as Arrow columns, but for the names that are `taken`; a column of
    nothing but NULL is left out. Numbers of two kinds become DOUBLE, other mixtures text."""
    names = dict.fromkeys(itertools.chain.from_iterable(item for item in items if item))
    lower = {name.lower() for name in taken}
    found: dict[str, pa.Array] = {}
    for given in names:
        name = _text(given)
        if not name or name.lower() in lower:
            continue
        values = [None if item is None else item.get(given) for item in items]
        if all(value is None for value in values):
            continue
        lower.add(name.lower())  # DuckDB does not tell them apart by case
        found[name] = _column(values)
    return found


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return pa.array([None if value is None else float(value) for value in values])
    if len(kinds) == 1 and not kinds & {dict, list}:
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError):
            pass
    return pa.array([value if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            value = "nested too deeply"
    # JSON may hold halves of characters, which no database takes.
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- ready embeddings -----------------------------------------------------------------------------


class ClipRetrieval:
    """Image embeddings in a folder as clip-retrieval writes it: ``img_emb/img_emb_<n>.npy``, and
    their rows in ``metadata/metadata_<n>.parquet``. Raises InputError where they do not fit."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.path.realpath(os.path.expanduser(os.fspath(folder)))
        found = glob.glob(os.path.join(glob.escape(self.folder), "img_emb", "img_emb_*.npy"))
        parts = sorted(found, key=lambda path: (len(os.path.basename(path)), path))
        if not parts:
            raise InputError(
                f"there is no img_emb/img_emb_0.npy in {folder}: name a folder that clip-retrieval "
                "inference has written"
            )
        self.arrays: list[NDArray[Any]] = []
        self._tables: list[str] = []
        for path in parts:
            number = os.path.basename(path)[len("img_emb_") : -len(".npy")]
            table = os.path.join(self.folder, "metadata", f"metadata_{number}.parquet")
            if not os.path.exists(table):
                raise InputError(f"there is no {table}, which says what {path} is of")
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"cannot read {path}: {_line(error)}") from error
            rows = _metadata(table).num_rows
            if array.ndim != 2 or array.dtype.kind != "f":
                raise InputError(f"{path} must hold floats (rows, dimensions), not {array.shape}")
            if array.shape[1] != (self.arrays or [array])[0].shape[1]:
                raise InputError(f"{path} has another number of dimensions than {parts[0]}")
            if rows != len(array):
                raise InputError(f"{path} has {len(array):,} rows, but {table} has {rows:,}")
            if len(array):
                self.arrays.append(array)
                self._tables.append(table)
        if not self.arrays:
            raise InputError(f"{folder} holds no embeddings")
        self._open: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.arrays))

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Row numbers and embeddings, none of two files together."""
        start = 0
        for array in self.arrays:
            for at in range(0, len(array), size):
                rows = array[at : at + size]
                yield np.arange(start, start + len(rows)), rows
                start += len(rows)

    def sample(self, rows: int) -> NDArray[Any]:
        """About so many embeddings, from all over."""
        step = -(-len(self) // rows)
        return np.concatenate([array[::step] for array in self.arrays])

    def metadata(self, start: int, count: int) -> pa.Table:
        """Of rows that lie in one file, with the column `uri` first."""
        part = 0
        while start >= len(self.arrays[part]):
            start -= len(self.arrays[part])
            part += 1
        if self._open is None or self._open[0] != part:
            self._open = part, _with_uri(pq.read_table(self._tables[part]), self._tables[part])
        return self._open[1].slice(start, count)


def _metadata(path: str) -> Any:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path} as Parquet: {_line(error)}") from error


def _with_uri(table: pa.Table, path: str) -> pa.Table:
    """Rows of metadata, with where each image comes from: its path if that is a whole one (of
    shards clip-retrieval writes the key alone, which others have too), else the row's place."""
    places = [f"{path}#{row}" for row in range(len(table))]
    if "image_path" in table.column_names:
        for row, given in enumerate(table["image_path"].to_pylist()):
            if isinstance(given, str) and os.path.isabs(given):
                places[row] = given
    keep = [name for name in table.column_names if name.lower() != "uri"]
    return table.select(keep).add_column(0, "uri", pa.array(places, pa.string()))
