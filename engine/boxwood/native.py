"""The C core, from Python: the only module that touches it.

cffi opens the very file that DuckDB loads as an extension, in ABI mode, so that SQL and Python
share one core. Functions and classes here are thin: arrays in, arrays out, errors from status
codes. Calls release the GIL; everything immutable may be used from several threads at once.
"""

from __future__ import annotations

import os
import threading
import uuid as uuids
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict, Unpack

import cffi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from boxwood import errors

Ids = NDArray[np.int64]
Codes = NDArray[np.uint8]

DIMS = 32
FINE_DIMS = 128
MAX_K = 10_000
MAX_ESTIMATORS = 1024
MAX_BOXES = 65_536
MAX_COVER_BOXES = 64
SCORE_SHIFT = 21
"""In scores, one vote counts more than the largest squared distance, 32 * 255**2 < 2**21."""

_FILE = "boxwood.duckdb_extension"
_HERE = Path(__file__).resolve().parent
# A search over fewer rows ends before anyone could press Ctrl-C.
_QUICK_ROWS = 2_000_000
_QUICK_LABELS = 2_000
# What an approximate k-NN query may cost, in rows of such a search.
_QUICK_QUERY_ROWS = 8_192
# From here on k-NN is exact: include/boxwood.h.
_EXACT_RECALL = 0.999

_STATUS: dict[int, type[errors.Error]] = {
    1: errors.InputError,
    2: errors.OutOfMemory,
    3: errors.StorageError,
    4: errors.IndexCorrupt,
    5: errors.IndexMissing,
    6: errors.IndexCorrupt,
    7: errors.Cancelled,
    8: errors.IndexMismatch,
}


def extension_path() -> Path:
    """The file that DuckDB loads and cffi opens: the package's own, or the build that the
    environment variable BOXWOOD_EXTENSION names."""
    chosen = os.environ.get("BOXWOOD_EXTENSION")
    path = Path(chosen).resolve() if chosen else _HERE / _FILE
    if not path.is_file():
        raise errors.MissingDependency(
            f"there is no native file {path}: "
            + (
                "BOXWOOD_EXTENSION names a file that does not exist"
                if chosen
                else "install the package with `pip install .` in the source tree, or name a build "
                "of it in the environment variable BOXWOOD_EXTENSION"
            )
        )
    return path


def _declarations() -> str:
    """What boxwood.h declares between its cffi marks."""
    places = (_HERE / "boxwood.h", _HERE.parent / "csrc" / "include" / "boxwood.h")
    header = next((place for place in places if place.is_file()), None)
    if header is None:
        raise errors.MissingDependency(
            f"there is no {places[0]}: install the package again with `pip install .`"
        )
    text = header.read_text(encoding="utf-8")
    return text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]


def _open() -> tuple[Any, Any]:
    interface = cffi.FFI()
    interface.cdef(_declarations())
    path = extension_path()
    try:
        library = interface.dlopen(str(path))
    except OSError as error:
        raise errors.MissingDependency(
            f"cannot open {path}: {error}; build it for this machine with `pip install .`"
        ) from error
    return interface, library


ffi, lib = _open()


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode("utf-8", "replace"))


def _call(function: Any, *arguments: Any, input: bool = False) -> None:
    """Call a function that takes a bw_error last, and raise what it reports. With `input`, what is
    missing or malformed is what the caller passed, not the index."""
    error = ffi.new("bw_error *")
    status = function(*arguments, error)
    if status:
        kind = _STATUS.get(status, errors.Error)
        if input and kind in (errors.IndexMissing, errors.IndexCorrupt):
            kind = errors.InputError
        raise kind(_text(error.message) or _text(lib.bw_status_name(status)))


_UINT8, _INT64, _UINT32 = map(ffi.typeof, ("uint8_t[]", "int64_t[]", "uint32_t[]"))


def version() -> str:
    """The version of the native file."""
    return _text(lib.bw_version())


def isa() -> str:
    """The instruction set of the kernels in use."""
    return _text(lib.bw_isa())


def select_isa(name: str | None) -> None:
    """Choose the kernels' instruction set for this process; None: the best of this CPU."""
    _call(lib.bw_isa_select, ffi.NULL if name is None else name.encode())


if os.environ.get("BOXWOOD_FORCE_ISA"):
    select_isa(os.environ["BOXWOOD_FORCE_ISA"])


# --- arrays ---------------------------------------------------------------------------------------


def _array(values: ArrayLike, what: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise errors.InputError(f"{what} cannot be made an array: {error}") from error


def check_ids(ids: ArrayLike, what: str = "ids") -> Ids:
    """Ids as a contiguous int64 array; raises InputError for what is no list of integers >= 0."""
    array = _array(ids, what)
    if array.ndim != 1:
        raise errors.InputError(f"{what} must be a flat list of integers, not {array.ndim}-d")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind == "O":
        for row, value in enumerate(array.tolist()):
            if value is None:
                raise errors.InputError(f"{what} hold NULL in row {row}: every image needs an id")
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise errors.InputError(f"{what} must be integers, but row {row} is {value!r}")
            if not -(2**63) <= value < 2**63:
                raise errors.InputError(f"{what} must fit 64 bits, but row {row} is {value}")
        array = array.astype(np.int64)
    if array.dtype.kind == "f":
        row = int(np.argmax(np.isnan(array)))
        if np.isnan(array[row]):
            raise errors.InputError(f"{what} hold NULL in row {row}: every image needs an id")
        raise errors.InputError(f"{what} must be integers, not {array.dtype}")
    if array.dtype.kind not in "iu":
        raise errors.InputError(f"{what} must be integers, not {array.dtype}")
    if array.dtype.kind == "u" and array.max() >= np.uint64(2**63):
        raise errors.InputError(f"{what} must be below 2^63, but one is {array.max()}")
    array = np.ascontiguousarray(array, np.int64)
    if array.min() < 0:
        row = int(np.argmax(array < 0))
        raise errors.InputError(f"{what} must be 0 or more, but row {row} is {array[row]}")
    return array


def check_codes(codes: ArrayLike, dims: int = DIMS) -> Codes:
    """Codes, or fine codes where `dims` is FINE_DIMS, as a contiguous uint8 array of shape
    (n, dims), or InputError."""
    what = "codes" if dims == DIMS else "fine codes"
    array = _array(codes, what)
    if array.ndim != 2 or array.shape[1] != dims:
        raise errors.InputError(f"{what} must have the shape (rows, {dims}), not {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu":
            raise errors.InputError(f"{what} must be uint8, not {array.dtype}")
        if array.size and (array.min() < 0 or array.max() > 255):
            raise errors.InputError(f"{what} must lie in 0 .. 255")
    return np.ascontiguousarray(array, np.uint8)


def _int64(array: Ids, writable: bool = False) -> Any:
    return ffi.from_buffer("int64_t[]", array, require_writable=writable)


def _uint8(array: Codes, writable: bool = False) -> Any:
    return ffi.from_buffer("uint8_t[]", array, require_writable=writable)


def _borrow(pointer: Any, owner: Any, n: int, dtype: Any) -> NDArray[Any]:
    """An array over memory that lives as long as `owner`, without a copy."""
    if not n:
        return np.empty(0, dtype)
    kept = ffi.gc(pointer, lambda _, owner=owner: None)
    array: NDArray[Any] = np.frombuffer(ffi.buffer(kept, n * np.dtype(dtype).itemsize), dtype)
    return array


# --- writing an index -----------------------------------------------------------------------------


class Fingerprints(NamedTuple):
    """What the rows of an index were made with; empty where that is not known."""

    encoder: str = ""
    head: str = ""
    quantizer: str = ""
    fine: str = ""
    """Of head and quantizer of the fine codes; empty: there are none."""


def _fill(struct: Any, fingerprints: Fingerprints) -> None:
    for name, value in fingerprints._asdict().items():
        data = value.encode()
        if len(data) > 31:
            raise errors.InputError(f"the fingerprint of the {name} is longer than 31 bytes")
        setattr(struct, name, data)


def _fingerprints(struct: Any) -> Fingerprints:
    return Fingerprints(*(_text(getattr(struct, name)) for name in Fingerprints._fields))


def _folder(folder: str | os.PathLike[str]) -> bytes:
    return os.fsencode(folder)


def write_segment(
    folder: str | os.PathLike[str],
    name: str,
    ids: Ids,
    codes: Codes,
    uuid: uuids.UUID,
    generation: int,
    fingerprints: Fingerprints,
    progress: Callable[[float], None] | None = None,
    threads: int = 0,
    fine: Codes | None = None,
) -> None:
    """Sort rows into index order and write them as the segment file ``folder/name``.

    `ids` (n,), `codes` (n, 32) and, where ``fingerprints.fine`` names some, the `fine` codes
    (n, 128) come in any order; `threads` 0: one a core. `progress` is called
    with the part done, from 0 to 1; what it raises, KeyboardInterrupt among it, stops the work and
    is raised here.
    """
    ids, codes = check_ids(ids), check_codes(codes)
    if len(ids) != len(codes):
        raise errors.InputError(f"{len(ids)} ids cannot go with {len(codes)} codes")
    second = None if fine is None else check_codes(fine, FINE_DIMS)
    if second is not None and len(second) != len(ids):
        raise errors.InputError(f"{len(ids)} ids cannot go with {len(second)} fine codes")
    spec = ffi.new("bw_segment_spec *")
    spec.rows, spec.generation, spec.threads = len(ids), generation, _threads(threads)
    id_memory, code_memory = _int64(ids), _uint8(codes)
    fine_memory = ffi.NULL if second is None else _uint8(second)
    spec.ids, spec.codes, spec.uuid = id_memory, code_memory, uuid.bytes
    spec.fine = fine_memory
    _fill(spec.fingerprints, fingerprints)
    raised: list[BaseException] = []

    def failed(kind: Any, value: BaseException, trace: Any) -> None:
        raised.append(value)

    # Also without a progress function: pending signals are seen when Python runs.
    @ffi.callback("int32_t(void *, double)", error=1, onerror=failed)  # type: ignore[untyped-decorator]
    def report(context: Any, done: float) -> int:
        if progress is not None:
            progress(done)
        return 0

    try:
        _call(lib.bw_segment_write, _folder(folder), name.encode(), spec, report, ffi.NULL)
    except errors.Cancelled:
        if raised:
            raise raised[0] from None
        raise


def write_manifest(
    folder: str | os.PathLike[str],
    uuid: uuids.UUID,
    generation: int,
    names: Sequence[str],
    fingerprints: Fingerprints,
    deleted: Sequence[str | None] | None = None,
) -> None:
    """List the segments that make up the index from now on, atomically.

    deleted: for each segment the deletion vector that is to hold for it, or None; left out: no
    segment has one.
    """
    if deleted is not None and len(deleted) != len(names):
        raise errors.InputError(
            f"{len(names)} segments cannot go with {len(deleted)} deletion vectors"
        )
    texts = [ffi.new("char[]", name.encode()) for name in names]
    listed = ffi.new("char *[]", texts) if texts else ffi.NULL
    vectors = [
        ffi.NULL if name is None else ffi.new("char[]", name.encode()) for name in deleted or ()
    ]
    prints = ffi.new("bw_fingerprints *")
    _fill(prints, fingerprints)
    _call(
        lib.bw_manifest_write, _folder(folder), uuid.bytes, generation, listed,
        ffi.new("char *[]", vectors) if vectors else ffi.NULL, len(texts), prints,
    )  # fmt: skip


def write_deleted(folder: str | os.PathLike[str], name: str, segment: str, ids: ArrayLike) -> None:
    """Write the deletion vector ``folder/name`` of a segment file there: the rows with these ids,
    one at least and all of them in the segment, are the dead ones. It takes effect when a manifest
    lists it."""
    dead = check_ids(ids)
    _call(
        lib.bw_deleted_write, _folder(folder), name.encode(), segment.encode(), _int64(dead),
        len(dead),
    )  # fmt: skip


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelInfo:
    learner: str
    quantizer: str
    estimators: int
    boxes: int
    ranges: int
    threshold: int
    has_score: bool
    score_terms: int
    score_threshold: int | None
    score_shift: int
    has_fine: bool
    fine_quantizer: str
    fine_terms: int
    fine_threshold: int | None
    fine_shift: int
    result_shift: int
    """The scores of a search's rows are in units of 2^-result_shift."""


class Model:
    """A parsed and checked model, immutable."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = ffi.gc(pointer, lib.bw_model_free)

    @classmethod
    def from_json(cls, document: str) -> Self:
        data = document.encode()
        out = ffi.new("bw_model **")
        _call(lib.bw_model_from_json, data, len(data), out, input=True)
        return cls(out[0])

    def _string(self, function: Any) -> str:
        out = ffi.new("char **")
        _call(function, self._pointer, out)
        return _text(ffi.gc(out[0], lib.bw_free))

    def to_json(self) -> str:
        return self._string(lib.bw_model_to_json)

    def to_sql(self) -> str:
        return self._string(lib.bw_model_to_sql)

    @property
    def info(self) -> ModelInfo:
        info = ffi.new("bw_model_info *")
        lib.bw_model_describe(self._pointer, info)
        return ModelInfo(
            _text(info.learner), _text(info.quantizer), info.estimators, info.boxes, info.ranges,
            info.threshold, bool(info.has_score), info.score_terms,
            info.score_threshold if info.has_score_threshold else None, info.score_shift,
            bool(info.has_fine), _text(info.fine_quantizer), info.fine_terms,
            info.fine_threshold if info.has_fine_threshold else None, info.fine_shift,
            info.result_shift,
        )  # fmt: skip

    def ranges(self) -> NDArray[Any]:
        """A structured array of estimator, box, dim, lo, hi, ordered by the first three."""
        kind = [("estimator", "u4"), ("box", "u4"), ("dim", "u1"), ("lo", "u1"), ("hi", "u1")]
        dtype = np.dtype(kind, align=True)
        out = np.empty(self.info.ranges, dtype)
        assert dtype.itemsize == ffi.sizeof("bw_range")
        if len(out):
            lib.bw_model_ranges(self._pointer, ffi.from_buffer("bw_range[]", out))
        return out

    def votes(self, codes: ArrayLike) -> NDArray[np.int32]:
        """How many estimators contain each of the codes (n, 32)."""
        rows = check_codes(codes)
        votes = np.empty(len(rows), np.int32)
        _call(
            lib.bw_model_evaluate, self._pointer, _uint8(rows), ffi.NULL, len(rows),
            ffi.from_buffer("int32_t[]", votes), ffi.NULL, ffi.NULL,
        )  # fmt: skip
        return votes

    def evaluate(
        self, codes: ArrayLike, fine: ArrayLike | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """Votes, scores (in units of 2^-result_shift) and matches of codes (n, 32).

        A model with a fine score needs the same rows' fine codes (n, 128) too.
        """
        rows = check_codes(codes)
        n = len(rows)
        second = None if fine is None else check_codes(fine, FINE_DIMS)
        if second is not None and len(second) != n:
            raise errors.InputError(f"there are {n:,} codes, but {len(second):,} fine codes")
        votes, scores = np.empty(n, np.int32), np.empty(n, np.int64)
        match = np.empty(n, np.uint8)
        _call(
            lib.bw_model_evaluate, self._pointer, _uint8(rows),
            ffi.NULL if second is None else _uint8(second), n,
            ffi.from_buffer("int32_t[]", votes), _int64(scores), _uint8(match),
        )  # fmt: skip
        return votes, scores, match.astype(bool)


# --- an open index --------------------------------------------------------------------------------


@dataclass(frozen=True)
class IndexInfo:
    """`rows` are alive; `deleted` ones are dead, but segments still hold them. `checksum` is that
    of the manifest, which tells two indexes of a generation apart."""

    rows: int
    deleted: int
    bytes: int
    generation: int
    segments: int
    checksum: int
    uuid: uuids.UUID
    fingerprints: Fingerprints


@dataclass(frozen=True)
class SegmentInfo:
    """`rows` of the file, of which `deleted` ones are dead, by the deletion vector of the name
    `deletions`."""

    name: str
    deletions: str
    rows: int
    deleted: int
    blocks: int
    bytes: int
    generation: int
    format: int
    min_id: int
    max_id: int


@dataclass(frozen=True)
class Stats:
    """What a search did. `blocks` are 256 rows each; of those that their zones neither rule out
    (pruned; by bounds of the score alone: outscored) nor in (contained), planes or codes were read
    (planes, scanned), or both. Of `fine_rows` rows the fine codes were read."""

    rows: int
    blocks: int
    blocks_pruned: int
    blocks_outscored: int
    blocks_contained: int
    blocks_planes: int
    blocks_scanned: int
    fine_rows: int
    bytes: int
    nanoseconds: int


class Found(NamedTuple):
    """Rows that a model matches, in index order; scores in units of 2^-result_shift."""

    ids: Ids
    votes: NDArray[np.int32]
    scores: NDArray[np.int64]
    stats: Stats


@dataclass(frozen=True)
class TrainStats:
    """What a training took and what is to be expected of its model. Estimates are NaN where
    nothing is known: without held-out positives, and for other learners than cover."""

    positives: int
    negatives: int
    random_negatives: int
    estimators: int
    boxes: int
    terms: int
    held_out: int
    fallback: bool
    rows: float
    precision: float
    precision_low: float
    precision_high: float
    recall: float
    recall_low: float
    recall_high: float
    note: str
    nanoseconds: int


def _as_dict(struct: Any, kind: type[Any]) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in kind.__dataclass_fields__}


_LEARNERS = {"branch": 1, "ensemble": 2, "cover": 3}
RANDOM_NEGATIVES = {"branch": 500, "ensemble": 500, "cover": 30_000}
"""Rows of the collection that labels are told from, where nothing else is asked for."""


class TrainOptions(TypedDict, total=False):
    """Options of training (`bw_train_options`)."""

    learner: str
    estimators: int
    boxes: int
    random_negatives: int | None
    negative_weight: float
    seed: int
    prior: bool
    rerank: bool
    guard: bool
    query: ArrayLike | None
    query_fine: ArrayLike | None


Given = tuple[ArrayLike, ArrayLike, ArrayLike | None]
"""Rows whose codes are given: ids (n,), codes (n, 32), and fine codes (n, 128) or None."""


class Index:
    """The index in a folder as its manifest lists it at this moment.

    It stays usable when the folder is rewritten or removed. May be used by any number of threads.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        out = ffi.new("bw_index **")
        _call(lib.bw_index_open, _folder(folder), out)
        self._own(out[0])

    def _own(self, pointer: Any) -> None:
        self._pointer = ffi.gc(pointer, lib.bw_index_close)
        info = ffi.new("bw_index_info *")
        lib.bw_index_describe(self._pointer, info)
        self.info = IndexInfo(
            info.rows, info.deleted, info.bytes, info.generation, info.segments, info.checksum,
            uuids.UUID(bytes=bytes(info.uuid)), _fingerprints(info.fingerprints),
        )  # fmt: skip

    def without(self, ids: ArrayLike) -> Self:
        """The same segments with these ids dead as well; those that the index lacks are passed
        over. Closed on its own, before or after this one."""
        gone = check_ids(ids)
        out = ffi.new("bw_index **")
        _call(lib.bw_index_without, self._open, _int64(gone), len(gone), out)
        view = type(self).__new__(type(self))
        view._own(out[0])
        return view

    def close(self) -> None:
        """Let go of the files. Whoever still uses the index in another thread must be done."""
        if self._pointer is not None:
            ffi.release(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.info.rows

    @property
    def _open(self) -> Any:
        if self._pointer is None:
            raise errors.InputError("the index is closed: open it again")
        return self._pointer

    def segments(self) -> list[SegmentInfo]:
        out = ffi.new("bw_segment_info *")
        found = []
        for number in range(self.info.segments):
            _call(lib.bw_index_segment, self._open, number, out)
            fields = _as_dict(out, SegmentInfo)
            texts = {"name": _text(out.name), "deletions": _text(out.deletions)}
            found.append(SegmentInfo(**{**fields, **texts}))
        return found

    def write_deleted(self, segment: int, folder: str | os.PathLike[str], name: str) -> None:
        """Write the deletion vector ``folder/name`` of the segment of this number: its rows that
        are dead here. It takes effect when a manifest lists it."""
        _call(lib.bw_index_write_deleted, self._open, segment, _folder(folder), name.encode())

    def validate(self) -> None:
        """Deep check, O(rows); raises IndexCorrupt with the first contradiction."""
        _call(lib.bw_index_validate, self._open)

    def codes(self, ids: ArrayLike) -> Codes:
        """Codes (n, 32) of ids in the order given; InputError for an id that is not there."""
        wanted = check_ids(ids)
        out = np.empty((len(wanted), DIMS), np.uint8)
        _call(
            lib.bw_index_codes, self._open, _int64(wanted), len(wanted), _uint8(out), ffi.NULL,
            input=True,
        )  # fmt: skip
        return out

    def lookup(self, ids: ArrayLike) -> tuple[Codes, NDArray[np.bool_]]:
        """Codes (n, 32) of ids, zeros where there are none, and whether each is there (n,)."""
        wanted = check_ids(ids)
        out, found = np.empty((len(wanted), DIMS), np.uint8), np.empty(len(wanted), np.uint8)
        _call(
            lib.bw_index_codes, self._open, _int64(wanted), len(wanted), _uint8(out), _uint8(found)
        )
        return out, found.astype(bool)

    def fine(self, ids: ArrayLike) -> Codes:
        """Fine codes (n, 128) of ids in the order given; InputError for an id that is not there,
        and where the index has none."""
        wanted = check_ids(ids)
        out = np.empty((len(wanted), FINE_DIMS), np.uint8)
        _call(
            lib.bw_index_fine, self._open, _int64(wanted), len(wanted), _uint8(out), ffi.NULL,
            input=True,
        )  # fmt: skip
        return out

    def rows(self, first: int = 0, n: int | None = None) -> tuple[Ids, Codes]:
        """Ids and codes of rows [first, first + n) in index order; all that follow without n.
        Dead rows have their places here too, and the id -1."""
        held = self.info.rows + self.info.deleted
        if n is None:
            n = held - first
        if first < 0 or n < 0 or first + n > held:
            raise errors.InputError(
                f"rows {first} .. {first + n} are not all among the index's {held}"
            )
        ids, codes = np.empty(n, np.int64), np.empty((n, DIMS), np.uint8)
        self.read(first, ids, codes)
        return ids, codes

    def read(self, first: int, ids: Ids, codes: Codes, fine: Codes | None = None) -> None:
        """Fill ids (n,), codes (n, 32) and fine codes (n, 128) with the rows [first, first + n) in
        index order, of info.rows + info.deleted: a dead row's id is -1."""
        _call(
            lib.bw_index_rows, self._open, first, len(ids), _int64(ids, True), _uint8(codes, True),
            ffi.NULL if fine is None else _uint8(fine, True), input=True,
        )  # fmt: skip

    def ids(self) -> Ids:
        """The ids of all live rows in index order."""
        ids = np.empty(self.info.rows + self.info.deleted, np.int64)
        _call(lib.bw_index_rows, self._open, 0, len(ids), _int64(ids), ffi.NULL, ffi.NULL)
        return ids[ids >= 0] if self.info.deleted else ids

    def draw(self, n: int, seed: int = 0, exclude: ArrayLike = ()) -> Ids:
        """At most n distinct random ids not in `exclude`; they depend on the seed and on the set
        of ids alone."""
        left_out = np.unique(check_ids(exclude))
        ids = np.empty(n, np.int64)
        drawn = ffi.new("size_t *")
        _call(
            lib.bw_index_draw, self._open, _seed(seed), n, _int64(left_out), len(left_out),
            _int64(ids), drawn,
        )  # fmt: skip
        return ids[: drawn[0]]

    def search(self, model: Model, *, count_only: bool = False, threads: int = 0) -> Found:
        """All rows that the model matches, in index order; none of them with `count_only`.

        Ctrl-C stops a long search between two morsels of work.
        """
        flags = int(lib.BW_COUNT_ONLY) if count_only else 0
        out = ffi.new("bw_rows **")
        stats = ffi.new("bw_stats *")

        def work(cancel: Any) -> None:
            _call(
                lib.bw_search_run, self._open, model._pointer, flags, _threads(threads), cancel,
                ffi.NULL if count_only else out, stats,
            )  # fmt: skip

        if self.info.rows <= _QUICK_ROWS:
            work(ffi.NULL)
        else:
            _interruptible(work)
        summary = Stats(**_as_dict(stats, Stats))
        if count_only:
            empty = np.empty(0, np.int64)
            return Found(empty, np.empty(0, np.int32), empty, summary)
        rows = ffi.gc(out[0], lib.bw_rows_free)
        n = rows.rows
        return Found(
            _borrow(rows.ids, rows, n, np.int64), _borrow(rows.votes, rows, n, np.int32),
            _borrow(rows.scores, rows, n, np.int64), summary,
        )  # fmt: skip

    def count(self, model: Model, *, threads: int = 0) -> int:
        """How many rows the model matches."""
        return self.search(model, count_only=True, threads=threads).stats.rows

    def knn(
        self,
        queries: ArrayLike,
        k: int,
        *,
        recall: float = 1.0,
        within: Model | None = None,
        ids: ArrayLike | None = None,
        threads: int = 0,
    ) -> tuple[Ids, NDArray[np.uint32]]:
        """The nearest rows of each query (n, 32): ids and squared distances on codes, both of the
        shape (n, min(k, rows)), nearest first, ties by id.

        recall: 1.0: exact. Less, above 0: at least this share of the true neighbours on average,
            by what the segments measured when they were built, and much faster.
        within, ids: only rows that this model matches; only rows with these ids, of which those
            that the index lacks are passed over. Exact whatever the recall; the shape is then
            (n, min(k, rows that pass)).

        Ctrl-C stops a long search.
        """
        rows = check_codes(queries)
        n, width = len(rows), min(check_k(k), self.info.rows)
        listed = None if ids is None else _int64(check_ids(ids))
        options, counts = ffi.new("bw_knn_options *"), ffi.new("uint32_t[]", max(n, 1))
        options.k, options.recall, options.threads = width, check_recall(recall), _threads(threads)
        options.within = ffi.NULL if within is None else within._pointer
        options.ids = ffi.NULL if listed is None else listed
        options.n_ids = 0 if listed is None else len(listed)
        found, distances = np.empty((n, width), np.int64), np.empty((n, width), np.uint32)
        if not found.size:
            return found, distances
        wide = within is not None or listed is not None or recall > _EXACT_RECALL
        work_rows = n * self.info.rows if wide else n * _QUICK_QUERY_ROWS

        def work(cancel: Any) -> None:
            options.cancel = cancel
            _call(
                lib.bw_knn, self._open, ffi.from_buffer(_UINT8, rows), n, options,
                ffi.from_buffer(_INT64, found), ffi.from_buffer(_UINT32, distances), counts,
                ffi.NULL,
            )  # fmt: skip

        if work_rows <= _QUICK_ROWS:
            work(ffi.NULL)
        else:
            _interruptible(work)
        if counts[0] < width:  # the same for all queries
            return found[:, : counts[0]].copy(), distances[:, : counts[0]].copy()
        return found, distances

    def train(
        self,
        positives: ArrayLike,
        negatives: ArrayLike = (),
        *,
        given: Given | None = None,
        **options: Unpack[TrainOptions],
    ) -> tuple[Model, TrainStats]:
        """Train on labelled ids. The same labels, options and rows give the same model. Ctrl-C
        stops a long training.

        given: ids, codes and fine codes (None without ``rerank=True``) of rows that the index lacks
            or has with other codes: labels are looked for here first.
        """
        right = check_ids(positives, "positives")
        wrong = check_ids(negatives, "negatives")
        chosen, _keep = _options(**options)
        rows = () if given is None else _give(chosen, given)
        trained = _trained(
            chosen, len(right) + len(wrong),
            lambda out, stats: _call(
                lib.bw_train, self._open, _int64(right), len(right), _int64(wrong), len(wrong),
                chosen, out, stats, input=True,
            ),
        )  # fmt: skip
        del rows  # borrowed until here
        return trained

    def explain(self, model: Model) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What each box of the model costs and finds by itself, and the model as a whole: expected
        and true (`bw_box_report`)."""
        reports = ffi.new("bw_box_report[]", max(model.info.boxes, 1))
        whole = ffi.new("bw_box_report *")
        _call(lib.bw_explain, self._open, model._pointer, reports, whole)
        names = [name for name, _ in ffi.typeof("bw_box_report").fields]

        def as_dict(report: Any) -> dict[str, Any]:
            fields = {name: getattr(report, name) for name in names}
            return {**fields, "path": _text(fields["path"])}

        return [as_dict(reports[number]) for number in range(model.info.boxes)], as_dict(whole)


def train_codes(
    positives: ArrayLike,
    negatives: ArrayLike,
    randoms: ArrayLike,
    *,
    fine: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    rows: int = 0,
    quantizer: str = "",
    fine_quantizer: str = "",
    **options: Unpack[TrainOptions],
) -> tuple[Model, TrainStats]:
    """The same from codes (n, 32), without an index.

    randoms: rows of the collection; `rows` of them there are in all (0: these are all).
    fine: the fine codes (n, 128) of the three, with ``rerank=True``.
    """
    codes = [check_codes(part) for part in (positives, negatives, randoms)]
    names = ("positives", "negatives", "randoms")
    labels = ffi.new("bw_labels *")
    quantizers = ffi.new("char[]", quantizer.encode()), ffi.new("char[]", fine_quantizer.encode())
    labels.quantizer, labels.fine_quantizer = quantizers
    labels.rows = check_count(rows, "rows", 0, 2**63 - 1)
    fines = [] if fine is None else [check_codes(part, FINE_DIMS) for part in fine]
    kept = [_uint8(part) for part in (*codes, *fines)]
    for name, part, pointer in zip(names, codes, kept[:3], strict=True):
        setattr(labels, name, pointer)
        setattr(labels, f"n_{name}", len(part))
    for name, part, whole, pointer in zip(names, fines, codes, kept[3:], strict=False):
        if len(part) != len(whole):
            raise errors.InputError(f"fine codes of {name}: {len(part)} for {len(whole)} codes")
        setattr(labels, f"{name}_fine", pointer)
    given, _keep = _options(**options)
    return _trained(
        given, len(codes[0]) + len(codes[1]),
        lambda out, stats: _call(lib.bw_train_codes, labels, given, out, stats, input=True),
    )  # fmt: skip


def _give(options: Any, given: Given) -> tuple[Any, ...]:
    """Fills in the given rows, and gives what must be kept as long as the options."""
    ids, codes = check_ids(given[0], "given ids"), check_codes(given[1])
    fine = None if given[2] is None else check_codes(given[2], FINE_DIMS)
    if len(ids) != len(codes) or (fine is not None and len(ids) != len(fine)):
        raise errors.InputError("given rows need as many codes, and fine codes, as ids")
    kept = _int64(ids), _uint8(codes), ffi.NULL if fine is None else _uint8(fine)
    options.given_ids, options.given_codes, options.given_fine = kept
    options.n_given = len(ids)
    return kept


def _trained(
    options: Any, labels: int, train: Callable[[Any, Any], None]
) -> tuple[Model, TrainStats]:
    out, stats = ffi.new("bw_model **"), ffi.new("bw_train_stats *")

    def work(cancel: Any) -> None:
        options.cancel = cancel
        train(out, stats)

    if labels <= _QUICK_LABELS:
        work(ffi.NULL)
    else:
        _interruptible(work)
    fields = _as_dict(stats, TrainStats)
    fields["fallback"], fields["note"] = bool(stats.fallback), _text(stats.note)
    return Model(out[0]), TrainStats(**fields)


def _options(
    learner: str = "cover",
    estimators: int = 25,
    boxes: int = 0,
    random_negatives: int | None = None,
    negative_weight: float = 1.0,
    seed: int = 0,
    prior: bool = True,
    rerank: bool = False,
    guard: bool = True,
    query: ArrayLike | None = None,
    query_fine: ArrayLike | None = None,
) -> tuple[Any, Any]:
    """The C options, and what must be kept as long as they are."""
    if learner not in _LEARNERS:
        raise errors.InputError(f"learner must be one of {', '.join(_LEARNERS)}, not {learner!r}")
    if random_negatives is None:
        random_negatives = RANDOM_NEGATIVES[learner]
    queries = [
        ffi.NULL if code is None else _uint8(check_codes(np.asarray(code)[None], dims))
        for code, dims in ((query, DIMS), (query_fine, FINE_DIMS))
    ]
    options = ffi.new(
        "bw_train_options *",
        {
            "learner": _LEARNERS[learner],
            "estimators": check_count(estimators, "estimators", 1, MAX_ESTIMATORS),
            "boxes": check_count(boxes, "boxes", 0, MAX_COVER_BOXES),
            "random_negatives": check_count(random_negatives, "random_negatives", 0, 100_000),
            "negative_weight": check_weight(negative_weight),
            "seed": _seed(seed),
            "prior": int(prior),
            "rerank": int(rerank),
            "guard": int(guard),
            "query": queries[0],
            "query_fine": queries[1],
        },
    )
    return options, queries


def check_count(value: int, what: str, least: int, most: int) -> int:
    """An integer in [least, most], or InputError."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise errors.InputError(f"{what} must be from {least:,} to {most:,}, not {value!r}")
    return int(value)


def check_k(k: int) -> int:
    """A number of neighbours, 1 to 10,000, or InputError."""
    return check_count(k, "k", 1, MAX_K)


def check_recall(recall: float) -> float:
    """A share of the true neighbours, above 0 and at most 1, or InputError."""
    number = isinstance(recall, (int, float, np.integer, np.floating))
    if not number or isinstance(recall, bool) or not 0 < recall <= 1:
        raise errors.InputError(
            f"recall must be 1 for exact answers, or the share of the true neighbours to be found, "
            f"above 0 and below 1, not {recall!r}"
        )
    return float(recall)


def check_weight(value: float) -> float:
    """A weight of the given negatives, 0.01 to 100, or InputError."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not 0.01 <= value <= 100:
        raise errors.InputError(f"negative_weight must be from 0.01 to 100, not {value!r}")
    return float(value)


def _seed(seed: int) -> int:
    return check_count(seed, "seed", 0, 2**64 - 1)


def _threads(threads: int) -> int:
    return check_count(threads, "threads", 0, 4096)


def _interruptible(work: Callable[[Any], None]) -> None:
    """Run `work(cancel)` in another thread, and set the cancel flag when Ctrl-C comes, or the event
    in `errors.stopping` is set."""
    stop = errors.stopping.get()
    cancel = ffi.new("int32_t *")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work(cancel)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="boxwood-search")
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # the signal may have come to another thread, which wakes nobody
            if stop is not None and stop.is_set():
                raise errors.Cancelled("nobody waits for this any more")
    except BaseException:
        cancel[0] = 1
        if thread.ident is not None:  # else it has not begun, and will see the flag when it does
            thread.join()
        raise
    if raised:
        raise raised[0]
