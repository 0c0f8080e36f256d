"""Boxwood as its users meet it: boxwood.h by cffi, SQL on a DuckDB connection, and index building
in a process of its own, so that memory can be measured."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwood import native
from data import Codes, Source

ffi, lib = native.ffi, native.lib
UUID = uuid.UUID("b0c5b0c5-0000-4000-8000-000000000001")
STATS = ("bytes", "blocks", "blocks_pruned", "blocks_contained", "blocks_planes", "blocks_scanned")


def call(function: Any, *arguments: Any) -> None:
    """Call a function of boxwood.h that takes a bw_error last; SystemExit with its message."""
    error = ffi.new("bw_error *")
    if function(*arguments, error):
        raise SystemExit(ffi.string(error.message).decode("utf-8", "replace"))


def _figures(stats: Any) -> dict[str, int]:
    return {name: int(getattr(stats, name)) for name in STATS}


class Index:
    """An open index, called through boxwood.h with as little in between as cffi allows."""

    def __init__(self, folder: Path) -> None:
        out = ffi.new("bw_index **")
        call(lib.bw_index_open, os.fsencode(folder), out)
        self._index = ffi.gc(out[0], lib.bw_index_close)
        info = ffi.new("bw_index_info *")
        lib.bw_index_describe(self._index, info)
        self.rows, self.bytes, self.segments = info.rows, info.bytes, info.segments
        self.stats = ffi.new("bw_stats *")

    def close(self) -> None:
        ffi.release(self._index)

    def figures(self) -> dict[str, int]:
        """What the last call read and how: the fields of bw_stats in `STATS`."""
        return _figures(self.stats)

    def model(self, document: str) -> Any:
        out, data = ffi.new("bw_model **"), document.encode()
        call(lib.bw_model_from_json, data, len(data), out)
        return ffi.gc(out[0], lib.bw_model_free)

    def sql(self, model: Any) -> str:
        """The model as a WHERE expression."""
        out = ffi.new("char **")
        call(lib.bw_model_to_sql, model, out)
        return str(ffi.string(ffi.gc(out[0], lib.bw_free)).decode())

    def search(self, model: Any, threads: int) -> Any:
        """Ids, votes and scores of all matching rows: a bw_rows *; `answer` reads it."""
        out = ffi.new("bw_rows **")
        call(lib.bw_search_run, self._index, model, 0, threads, ffi.NULL, out, self.stats)
        return ffi.gc(out[0], lib.bw_rows_free)

    @staticmethod
    def answer(rows: Any) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        if not rows.rows:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        ids = np.frombuffer(ffi.buffer(rows.ids, 8 * rows.rows), np.int64)
        return ids.copy(), np.frombuffer(ffi.buffer(rows.votes, 4 * rows.rows), np.int32).copy()

    def count(self, model: Any, threads: int) -> int:
        flag = lib.BW_COUNT_ONLY
        call(lib.bw_search_run, self._index, model, flag, threads, ffi.NULL, ffi.NULL, self.stats)
        return int(self.stats.rows)

    def train(self, positives: NDArray[np.int64], negatives: NDArray[np.int64], seed: int) -> Any:
        """An ensemble of 25 on labelled ids, with 500 random negatives."""
        options = ffi.new(
            "bw_train_options *",
            {
                "learner": lib.BW_LEARNER_ENSEMBLE, "estimators": 25, "random_negatives": 500,
                "negative_weight": 1.0, "seed": seed, "prior": 1,
            },
        )  # fmt: skip
        out = ffi.new("bw_model **")
        call(
            lib.bw_train, self._index, ffi.from_buffer("int64_t[]", positives), len(positives),
            ffi.from_buffer("int64_t[]", negatives), len(negatives), options, out, ffi.NULL,
        )  # fmt: skip
        return ffi.gc(out[0], lib.bw_model_free)

    @staticmethod
    def document(model: Any) -> str:
        out = ffi.new("char **")
        call(lib.bw_model_to_json, model, out)
        return str(ffi.string(ffi.gc(out[0], lib.bw_free)).decode())

    def all_rows(self) -> tuple[NDArray[np.int64], Codes]:
        """Ids and codes in index order."""
        ids, codes = np.empty(self.rows, np.int64), np.empty((self.rows, 32), np.uint8)
        call(
            lib.bw_index_rows, self._index, 0, self.rows, ffi.from_buffer("int64_t[]", ids),
            ffi.from_buffer("uint8_t[]", codes), ffi.NULL,
        )  # fmt: skip
        return ids, codes


class Neighbours:
    """k-NN through bw_knn, with the interface of peers.Neighbours. The setting is `recall`."""

    name, parameter = "Boxwood", "recall"
    settings: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    note = "C API"

    def __init__(self, index: Index, queries: Codes, k: int) -> None:
        self.index, self.k, self.queries = index, k, np.ascontiguousarray(queries)
        self.ids = np.full((len(queries), k), -1, np.int64)
        self.distances = np.zeros((len(queries), k), np.uint32)
        self.counts = np.zeros(len(queries), np.uint32)
        self.options = ffi.new("bw_knn_options *")
        self.options.k = min(k, index.rows)
        self.build_s, self.bytes_per_row = 0.0, index.bytes / index.rows
        self._from = (
            ffi.from_buffer("uint8_t[]", self.queries), ffi.from_buffer("int64_t[]", self.ids),
            ffi.from_buffer("uint32_t[]", self.distances),
            ffi.from_buffer("uint32_t[]", self.counts),
        )  # fmt: skip
        self._error = ffi.new("bw_error *")

    def set(self, setting: float) -> None:
        self.options.recall = setting

    def _ask(self, place: int, n: int, threads: int) -> None:
        query, ids, distances, counts = self._from
        self.options.threads = threads
        status = lib.bw_knn(
            self.index._index, query + 32 * place, n, self.options, ids + self.k * place,
            distances + self.k * place, counts + place, self.index.stats, self._error,
        )  # fmt: skip
        if status:
            raise SystemExit(ffi.string(self._error.message).decode())

    def one(self, place: int) -> None:
        self._ask(place, 1, 1)

    def batch(self, n: int, threads: int) -> None:
        self._ask(0, n, threads)


# --- building -------------------------------------------------------------------------------------


def native_stamp() -> str:
    """The identity of the native file: an index of another one is built again."""
    return hashlib.sha256(native.extension_path().read_bytes()).hexdigest()[:16]


def _memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes, 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.M)
    return 1024 * int(found[1]) if found else 0


def resident() -> int:
    return _memory("VmRSS")


def peak_memory() -> int:
    """The most memory that this process ever had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(_memory("VmHWM"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def write_segment(folder: Path, name: str, start: int, codes: Codes,
                  progress: Callable[[float], None] | None = None) -> None:  # fmt: skip
    ids = np.arange(start, start + len(codes), dtype=np.int64)
    native.write_segment(folder, name, ids, codes, UUID, 1, native.Fingerprints(), progress)


def measure_segment(job: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own does: write one segment and say what that took."""
    source = Source(job["kind"], job["seed"], Path(job["cache"]),
                    Path(job["folder"]) if job["folder"] else None)  # fmt: skip
    codes = source.rows(job["start"], job["stop"])
    ids = np.arange(job["start"], job["stop"], dtype=np.int64)
    before = resident()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.perf_counter()
    native.write_segment(
        job["into"], job["name"], ids, codes, UUID, 1, native.Fingerprints(), lambda done: None
    )
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") or peak_memory()
    return {
        "seconds": seconds, "peak": peak, "extra": peak - before,
        "bytes": (Path(job["into"]) / job["name"]).stat().st_size,
    }  # fmt: skip


@dataclass(frozen=True)
class Built:
    """An index and what it took: seconds, the largest memory of the process that wrote a segment,
    and how much of that was more than the rows themselves."""

    folder: Path
    rows: int
    segments: int
    seconds: float
    peak: int
    extra: int
    bytes: int
    earlier: bool


def _apart(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job, `measure_segment` or `measure_open`, in a process of its own."""
    worker = subprocess.run(
        [sys.executable, str(Path(__file__)), json.dumps(job)], stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    if worker.returncode:
        raise SystemExit(f"a process of its own failed: {job}")
    return dict(json.loads(worker.stdout))


def open_cold(folder: Path) -> tuple[float, float]:
    """Seconds to open an index in a process that never saw it, its files dropped from memory
    before, and how much of them was there all the same."""
    done = _apart({"open": str(folder)})
    return done["seconds"], done["share"]


def measure_open(job: dict[str, Any]) -> dict[str, Any]:
    folder = Path(job["open"])
    evict(folder)
    share = resident_share(folder)
    start = time.perf_counter()
    Index(folder)
    return {"seconds": time.perf_counter() - start, "share": share}


def build(source: Source, rows: int, segment_rows: int, into: Path) -> Built:
    """The index of rows [0, rows), built by processes of their own, one a segment, in turn. An
    index that the same native file has built before is taken as it is."""
    wanted = {
        "native": native_stamp(), "kind": source.kind, "seed": source.seed, "rows": rows,
        "segment_rows": segment_rows,
    }  # fmt: skip
    stamp = into.with_suffix(".json")
    if stamp.is_file():
        known = json.loads(stamp.read_text())
        if all(known.get(name) == value for name, value in wanted.items()):
            return Built(into, rows, known["segments"], known["seconds"], known["peak"],
                         known["extra"], known["bytes"], earlier=True)  # fmt: skip
        stamp.unlink()
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    source.rows(0, 1)  # the cache exists, and is not made in the measured process
    if rows <= 10_000_000:
        source.rows(rows - 1, rows)
    names, done = [], []
    for number, start in enumerate(range(0, rows, segment_rows)):
        names.append(f"1-{number}.segment")
        job = {
            "kind": source.kind, "seed": source.seed, "cache": str(source.cache),
            "folder": str(source.folder) if source.folder else "", "start": start,
            "stop": min(rows, start + segment_rows), "into": str(into), "name": names[-1],
        }  # fmt: skip
        done.append(_apart(job))
    native.write_manifest(into, UUID, 1, names, native.Fingerprints())
    figures = {
        "segments": len(names), "seconds": sum(one["seconds"] for one in done),
        "peak": max(one["peak"] for one in done), "extra": max(one["extra"] for one in done),
        "bytes": sum(one["bytes"] for one in done),
    }  # fmt: skip
    stamp.write_text(json.dumps({**wanted, **figures}))
    return Built(into, rows, earlier=False, **figures)


# --- memory and pages of an open index ------------------------------------------------------------


def _maps(folder: Path) -> Iterator[tuple[int, int]]:
    """Address and bytes of every map of a segment file of this folder in this process."""
    listing = Path("/proc/self/maps")
    for line in listing.read_text().splitlines() if listing.is_file() else ():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith(str(folder.resolve())):
            low, high = (int(word, 16) for word in words[0].split("-"))
            yield low, high - low


def resident_share(folder: Path) -> float:
    """How much of the segment files lies in memory, open or not, 0..1."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = total = 0
    for path in folder.glob("*.segment"):
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
        ):
            seen = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            here = ctypes.c_char.from_buffer(view)  # the address; private, so nothing is written
            address, answer = ctypes.addressof(here), ctypes.c_void_p(seen.ctypes.data)
            done = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), answer)
            del here
            there += int((seen & 1).sum()) if done == 0 else 0
            total += len(seen)
    return there / total if total else 0.0


def evict(folder: Path) -> bool:
    """Drop the index's pages from this process and, if nobody else has them, from memory. Whether
    the system offers that; `resident_share` says how much of it happened."""
    if not hasattr(os, "posix_fadvise"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    for address, size in _maps(folder):
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    for path in folder.glob("*.segment"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure_open(asked) if "open" in asked else measure_segment(asked)))
