"""What Boxwood is measured against. Each rival is optional: what is not installed is left out."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cffi
import numpy as np
from numpy.typing import NDArray

from data import DIMS, Codes, Query

# Idle OpenMP threads would spin on the cores that the next method is measured on.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Ids = NDArray[np.int64]
Answer = tuple[Ids, NDArray[np.integer] | None]  # ids in any order, and votes where there are any


def load(name: str) -> ModuleType | None:
    """An optional module, or None."""
    try:
        return __import__(name)
    except ImportError:
        return None


# --- boxes: scans ---------------------------------------------------------------------------------


def rarest_first(query: Query, codes: Codes) -> list[list[list[list[int]]]]:
    """The estimators of a query, those with the fewest rows of a sample first, and the ranges of
    each box likewise: what lets an early-out scan leave early."""
    sample = codes[:: max(1, len(codes) // 20_000)]
    ordered = []
    for boxes in query.estimators:
        total, sorted_boxes = 0, []
        for box in boxes:
            inside = [(sample[:, d] >= lo) & (sample[:, d] <= hi) for d, lo, hi in box]
            order = np.argsort([int(one.sum()) for one in inside], kind="stable")
            sorted_boxes.append([box[i] for i in order])
            total += int(np.logical_and.reduce(inside).sum()) if inside else len(sample)
        ordered.append((total, sorted_boxes))
    return [boxes for _, boxes in sorted(ordered, key=lambda pair: pair[0])]


class Scan:
    """The AVX2 column scan of scan_avx2.c over codes (n, 32) with their ids."""

    _interface: Any = None
    _library: Any = None

    @classmethod
    def build(cls, folder: Path) -> str:
        """Compile and open it; "" or why it cannot be."""
        if cls._library is not None:
            return ""
        source = Path(__file__).with_name("scan_avx2.c")
        text = source.read_text(encoding="utf-8")
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return "there is no C compiler (cc)"
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"scan_avx2-{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"
        if not made.is_file():
            partial = made.with_suffix(f".{os.getpid()}")
            done = subprocess.run(
                [*compiler.split(), "-O3", "-mavx2", "-mbmi", "-shared", "-fPIC", "-pthread",
                 str(source), "-o", str(partial)], capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                return f"{compiler} cannot compile scan_avx2.c: {done.stderr.strip()[:200]}"
            partial.replace(made)
        interface = cffi.FFI()
        interface.cdef(text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0])
        library = interface.dlopen(str(made))
        if not library.scan_supported():
            return "this CPU has no AVX2"
        cls._interface, cls._library = interface, library
        return ""

    def __init__(self, codes: Codes, ids: Ids) -> None:
        self.rows, self.ids = len(codes), np.ascontiguousarray(ids)
        blocks = -(-self.rows // 4096)
        ffi, lib = self._interface, self._library
        memory = lib.scan_alloc(4096 * blocks)
        if memory == ffi.NULL:
            raise MemoryError(f"no room for {DIMS} columns of {self.rows:,} rows")
        self._memory = ffi.gc(memory, lib.scan_free)
        columns = np.frombuffer(ffi.buffer(memory, DIMS * 4096 * blocks), np.uint8)
        columns = columns.reshape(blocks, DIMS, 4096)
        for block in range(blocks):
            part = codes[4096 * block : 4096 * (block + 1)]
            columns[block, :, : len(part)] = part.T

    def prepare(self, estimators: list[list[list[list[int]]]], threshold: int,
                early: bool, threads: int) -> Callable[[], Any]:  # fmt: skip
        """A call that searches and gives a scan_rows *; `answer` reads it."""
        ffi, lib = self._interface, self._library
        boxes = [box for some in estimators for box in some]
        ranges = np.array([part for box in boxes for part in box], np.uint8).reshape(-1, 3)
        arrays = {
            "box_start": np.cumsum([0, *map(len, estimators)], dtype=np.uint32),
            "range_start": np.cumsum([0, *map(len, boxes)], dtype=np.uint32),
            "dim": ranges[:, 0].copy(), "lo": ranges[:, 1].copy(),
            "width": ranges[:, 2] - ranges[:, 1],
        }  # fmt: skip
        kept = [ffi.from_buffer("uint32_t[]" if name.endswith("start") else "uint8_t[]", array)
                for name, array in arrays.items()]  # fmt: skip
        model = ffi.new("scan_model *", [len(estimators), threshold, *kept])
        columns = ffi.cast("uint8_t *", self._memory)
        ids = ffi.from_buffer("int64_t[]", self.ids)
        variant = lib.SCAN_EARLY if early else lib.SCAN_PLAIN

        def run(_alive: object = (kept, arrays)) -> Any:
            found = lib.scan_run(columns, self.rows, ids, model, variant, threads)
            if found == ffi.NULL:
                raise SystemExit("the scan has no memory or cannot start its threads")
            return ffi.gc(found, lib.scan_rows_free)

        return run

    @classmethod
    def answer(cls, found: Any) -> Answer:
        ffi, n = cls._interface, found.rows
        if not n:
            return np.empty(0, np.int64), np.empty(0, np.int32)
        ids = np.frombuffer(ffi.buffer(found.ids, 8 * n), np.int64)
        return ids.copy(), np.frombuffer(ffi.buffer(found.votes, 4 * n), np.int32).copy()


def numpy_votes(columns: Codes, ids: Ids, query: Query) -> Answer:
    """Boxes by NumPy over whole columns (32, n), a chunk that fits the caches at a time."""
    found, votes = [], []
    for start in range(0, len(ids), 65_536):
        part = columns[:, start : min(start + 65_536, len(ids))]
        count = np.zeros(part.shape[1], np.uint8)
        for boxes in query.estimators:
            any_box = np.zeros(part.shape[1], bool)
            for box in boxes:
                inside = np.ones(part.shape[1], bool)
                for dim, lo, hi in box:
                    inside &= part[dim] - np.uint8(lo) <= np.uint8(hi - lo)
                any_box |= inside
            count += any_box
        place = np.flatnonzero(count >= query.threshold)
        found.append(ids[start + place])
        votes.append(count[place])
    return np.concatenate(found), np.concatenate(votes)


class Forest:
    """scikit-learn's RandomForestClassifier of 25 trees on a query's labels."""

    def __init__(self, query: Query, codes: Codes, seed: int) -> None:
        from sklearn.ensemble import RandomForestClassifier

        self.codes = codes
        labelled = np.concatenate([query.positives, query.negatives])
        labels = np.repeat([1, 0], [len(query.positives), len(query.negatives)])
        self.forest = RandomForestClassifier(25, random_state=seed).fit(codes[labelled], labels)

    def predict(self, threads: int) -> Answer:
        """Rows that it takes for positive, a million at a time (it needs them as float32)."""
        self.forest.n_jobs = threads
        found = [
            start + np.flatnonzero(self.forest.predict(self.codes[start : start + 1_000_000]))
            for start in range(0, len(self.codes), 1_000_000)
        ]
        return np.concatenate(found).astype(np.int64), None


# --- neighbours -----------------------------------------------------------------------------------


class Neighbours:
    """A k-NN method: `settings` from cheap to dear, `one(place)` a call for one query, `batch` for
    all. Ids come back as rows of shape (n, k); fewer than k are padded with -1."""

    name = ""
    parameter = ""
    settings: Sequence[float] = ()
    build_s = 0.0
    bytes_per_row = 0.0
    note = ""

    def set(self, setting: float) -> None:
        """Choose the setting of the calls that follow."""

    def one(self, place: int) -> None:
        """Answer query `place` into `self.ids[place]`."""
        raise NotImplementedError(self.name)

    def batch(self, n: int, threads: int) -> None:
        """Answer the first n queries into `self.ids`."""
        raise NotImplementedError(self.name)

    def __init__(self, queries: Codes, k: int) -> None:
        self.k = k
        self.ids = np.full((len(queries), k), -1, np.int64)


class Faiss(Neighbours):
    """An index of faiss, called below its Python wrapper: queries and answers lie ready."""

    def __init__(self, queries: Codes, k: int) -> None:
        super().__init__(queries, k)
        import faiss

        self.faiss = faiss
        self.queries = queries.astype(np.float32)
        self.distances = np.empty((len(queries), k), np.float32)
        self.places = [
            (faiss.swig_ptr(self.queries[i]), faiss.swig_ptr(self.distances[i]),
             faiss.swig_ptr(self.ids[i])) for i in range(len(queries))
        ]  # fmt: skip

    def fill(self, index: Any, codes: Codes, train: int = 0) -> None:
        self.index = index
        self.faiss.omp_set_num_threads(min(2, os.cpu_count() or 1))
        start = time.perf_counter()
        if train:
            index.train(codes[: min(train, len(codes))].astype(np.float32))
        for first in range(0, len(codes), 1_000_000):
            index.add(codes[first : first + 1_000_000].astype(np.float32))
        self.build_s = time.perf_counter() - start
        self.faiss.omp_set_num_threads(1)

    def measure_bytes(self, rows: int) -> None:
        writer = self.faiss.VectorIOWriter()
        self.faiss.write_index(self.index, writer)
        self.bytes_per_row = writer.data.size() / rows

    def one(self, place: int) -> None:
        query, distances, ids = self.places[place]
        self.index.search_c(1, query, self.k, distances, ids)

    def batch(self, n: int, threads: int) -> None:
        query, distances, ids = self.places[0]
        self.faiss.omp_set_num_threads(threads)
        self.index.search_c(n, query, self.k, distances, ids)
        self.faiss.omp_set_num_threads(1)


class FaissFlat(Faiss):
    name, parameter, settings = "faiss flat", "", (0,)
    note = "float32, exact"

    def __init__(self, codes: Codes, queries: Codes, k: int) -> None:
        super().__init__(queries, k)
        self.fill(self.faiss.IndexFlatL2(DIMS), codes)
        self.bytes_per_row = 4.0 * DIMS


class FaissIVF(Faiss):
    name, parameter = "faiss IVF-SQ8", "nprobe"

    def __init__(self, codes: Codes, queries: Codes, k: int) -> None:
        super().__init__(queries, k)
        faiss = self.faiss
        lists = 1 << round(np.log2(1.3 * len(codes) ** 0.5))  # 1,024 at 1M, 4,096 at 10M
        self.coarse = faiss.IndexFlatL2(DIMS)
        index = faiss.IndexIVFScalarQuantizer(
            self.coarse, DIMS, lists, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
        )
        self.fill(index, codes, train=max(200_000, 100 * lists))
        self.measure_bytes(len(codes))
        self.note = f"nlist {lists}"
        steps = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)
        self.settings = [n for n in steps if n <= lists]

    def set(self, setting: float) -> None:
        self.index.nprobe = int(setting)


class FaissHNSW(Faiss):
    name, parameter = "faiss HNSW-SQ8", "efSearch"
    settings = (16, 24, 32, 40, 60, 80, 100, 140, 200, 300, 500, 1000, 2000)
    note = "M 32, efConstruction 80"

    def __init__(self, codes: Codes, queries: Codes, k: int) -> None:
        super().__init__(queries, k)
        faiss = self.faiss
        index = faiss.IndexHNSWSQ(DIMS, faiss.ScalarQuantizer.QT_8bit_direct, 32)
        index.hnsw.efConstruction = 80
        self.fill(index, codes, train=1000)
        self.measure_bytes(len(codes))

    def set(self, setting: float) -> None:
        self.index.hnsw.efSearch = int(setting)


class Usearch(Neighbours):
    name, parameter = "usearch i8", "expansion"
    settings = (60, 80, 100, 140, 200, 300, 500, 1000, 2000)
    note = "connectivity 16, expansion_add 128; called by its Python wrapper"

    def __init__(self, codes: Codes, queries: Codes, k: int) -> None:
        super().__init__(queries, k)
        from usearch.index import Index

        def signed(rows: Codes) -> NDArray[np.int8]:
            return (rows ^ np.uint8(128)).view(np.int8)

        self.queries = signed(queries)
        self.index = Index(ndim=DIMS, metric="l2sq", dtype="i8")
        start = time.perf_counter()
        self.index.add(np.arange(len(codes)), signed(codes), threads=min(2, os.cpu_count() or 1))
        self.build_s = time.perf_counter() - start
        self.bytes_per_row = self.index.serialized_length / len(codes)

    def set(self, setting: float) -> None:
        self.index.expansion_search = int(setting)

    def _keep(self, place: slice, keys: NDArray[Any]) -> None:
        self.ids[place, : keys.shape[-1]] = keys.astype(np.int64)

    def one(self, place: int) -> None:
        self._keep(slice(place, place + 1), self.index.search(self.queries[place], self.k).keys)

    def batch(self, n: int, threads: int) -> None:
        found = self.index.search(self.queries[:n], self.k, threads=threads)
        self._keep(slice(0, n), found.keys)


PEERS: dict[str, type[Any]] = {
    "flat": FaissFlat, "ivf": FaissIVF, "hnsw": FaissHNSW, "usearch": Usearch,
}  # fmt: skip


def neighbour_methods(rows: int, names: Sequence[str]) -> list[tuple[type[Any], str]]:
    """The rivals of these names, each with why it has to be left out, or ""."""
    methods = []
    for name in names:
        problem = ""
        if not load("usearch" if name == "usearch" else "faiss"):
            problem = "not installed (pip install 'boxwood[bench]')"
        elif name in ("hnsw", "usearch") and rows > 2_000_000:
            problem = "a graph over more than 2,000,000 rows takes too long to build"
        methods.append((PEERS[name], problem))
    return methods


def true_distances(codes: Codes, queries: Codes, k: int) -> NDArray[np.float32]:
    """Squared distances of the k nearest rows of each query, ascending: (n, k)."""
    faiss = load("faiss")
    asked = queries.astype(np.float32)
    best = np.full((len(queries), 0), 0, np.float32)
    square = np.square(asked).sum(axis=1)[:, None]
    for start in range(0, len(codes), 250_000):
        rows = codes[start : start + 250_000].astype(np.float32)
        if faiss is not None:
            distance, _ = faiss.knn(asked, rows, min(k, len(rows)))
        else:
            distance = square - 2 * (asked @ rows.T) + np.square(rows).sum(axis=1)[None]
            if len(rows) > k:
                distance = np.partition(distance, k - 1, axis=1)[:, :k]
        best = np.sort(np.concatenate([best, distance], axis=1), axis=1)[:, :k]
    return best


def recall(codes: Codes, queries: Codes, ids: Ids, truth: NDArray[np.float32]) -> float:
    """Share of answers that are as near as the k-th true neighbour, ties taken as right."""
    there = ids >= 0
    rows = codes[np.maximum(ids, 0)].astype(np.float32)
    distance = np.square(rows - queries[:, None].astype(np.float32)).sum(axis=2)
    return float(np.mean(there & (distance <= truth[:, -1:] + 0.5)))
