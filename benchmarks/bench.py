"""Boxwood against its peers: time, memory, growth, instructions.

    python benchmarks/bench.py all                      the standard set, and the report
    python benchmarks/bench.py all --quick              the same on 200,000 rows, under a minute
    python benchmarks/bench.py ensembles --rows 1000000 --data realistic uniform
    python benchmarks/bench.py knn --rows 1000000 --data realistic
    python benchmarks/bench.py growth --full            up to 100,000,000 rows
    python benchmarks/bench.py instructions             needs valgrind or perf
    python benchmarks/bench.py paper-scale              260,000,000 rows; resumable; --clean removes
    python benchmarks/bench.py report --docs            docs/BENCHMARKS.md from the last figures

Every row of figures goes to build/bench/results.duckdb as soon as it is measured (and to
results.parquet at the end): Ctrl-C keeps what there is. All ways to answer a question run in turn
in one process, and their answers must be equal, or the run fails. What is not installed is left
out with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import boxwood
import engine
import instructions
import peers
import report
from boxwood import native
from boxwood.progress import Bar
from boxwood.report import text_table
from data import FAMILIES, KINDS, Codes, Query, Source, branch_of, make_query
from results import Results, interleave, summary

ROOT = Path(__file__).resolve().parents[1]
QUICK_ROWS = 200_000
SEGMENT_ROWS = 10_000_000
K = 60
RECALLS = (0.95, 0.98, 0.99)
"""Recalls at which k-NN methods are compared."""


@dataclass
class Bench:
    """What all workloads share: where things lie, the results, and how much to do."""

    out: Path
    results: Results
    vectors: Path | None
    seed: int
    quick: bool
    repeats: int
    threads: list[int]

    def source(self, kind: str) -> Source:
        return Source(kind, self.seed, self.out / "data", self.vectors)

    def index(self, source: Source, rows: int) -> tuple[engine.Index, engine.Built]:
        """The index of the first rows of a source, built if it is not there yet."""
        into = self.out / "index" / f"{source.kind}-{source.seed}-{rows}"
        say(f"index of {rows:,} {source.kind} rows")
        built = engine.build(source, rows, SEGMENT_ROWS, into)
        self.results.add(
            workload="build", data=source.kind, seed=source.seed, rows=rows,
            segments=built.segments, method="Boxwood", threads=os.cpu_count(), repeats=1,
            build_s=built.seconds, bytes_per_row=built.bytes / rows, bytes=built.bytes,
            peak_bytes=built.peak, extra_bytes=built.extra,
            note="built by an earlier run of the same program" if built.earlier else None,
        )  # fmt: skip
        print(
            f"  {built.seconds:.1f} s, {built.bytes / rows:.1f} bytes a row, {built.segments} "
            f"segment(s); memory beyond the rows {built.extra / 2**20:,.0f} MiB, "
            f"{built.extra / (built.bytes / built.segments):.1f} times a segment"
            + (" (built earlier)" if built.earlier else "")
        )
        return engine.Index(into), built


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def pairs(args: argparse.Namespace) -> list[tuple[str, int]]:
    return [(kind, rows) for rows in args.rows for kind in args.data]


# --- ensembles and single branches ----------------------------------------------------------------


Expected = tuple[np.ndarray, np.ndarray]
"""Ids in ascending order and their votes."""


@dataclass
class Way:
    """One way to answer: a call, and how to read ids and votes (or a count) from its result."""

    run: Callable[[], Any]
    read: Callable[[Any], Any] = lambda answer: answer
    figures: Callable[[], dict[str, int]] | None = None


class Table:
    """The codes as a DuckDB table in index order, on a connection with Boxwood loaded."""

    def __init__(self, folder: Path, name: str, ids: np.ndarray, codes: Codes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{name}.duckdb"
        self.file.unlink(missing_ok=True)
        self.con = boxwood.connect(self.file)
        columns = ", ".join(f"d{d:02} UTINYINT" for d in range(32))
        self.con.execute(f"CREATE TABLE codes (id BIGINT, {columns})")
        for start in range(0, len(ids), 2_000_000):
            part = slice(start, start + 2_000_000)
            rows = {"id": ids[part]} | {
                f"d{d:02}": np.ascontiguousarray(codes[part, d]) for d in range(32)
            }
            self.con.register("rows_now", _arrow(rows))
            self.con.execute("INSERT INTO codes SELECT * FROM rows_now")
            self.con.unregister("rows_now")
        self.con.execute("CHECKPOINT")

    def close(self) -> None:
        self.con.close()
        self.file.unlink(missing_ok=True)


def _arrow(columns: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


def _sql_ids(columns: dict[str, np.ndarray]) -> Any:
    return columns["id"], columns.get("votes")


def ensembles(bench: Bench, args: argparse.Namespace) -> None:
    scan_problem = peers.Scan.build(bench.out)
    if scan_problem:
        print(f"left out: the AVX2 scan: {scan_problem}")
    if not peers.load("sklearn"):
        print("left out: scikit-learn, not installed (pip install 'boxwood[bench]')")
    for kind, rows in pairs(args):
        source = bench.source(kind)
        index, _ = bench.index(source, rows)
        say(f"ensembles and branches: {rows:,} {source.kind} rows")
        codes = source.rows(0, rows)
        ids = np.arange(rows, dtype=np.int64)
        sorted_ids, sorted_codes = index.all_rows()
        table = Table(bench.out / "duckdb", f"{source.kind}-{rows}", sorted_ids, sorted_codes)
        scans = {}
        if not scan_problem:
            scans["scan"] = peers.Scan(codes, ids)
            scans["scan in index order"] = peers.Scan(sorted_codes, sorted_ids)
        del sorted_ids, sorted_codes
        context = _Ensembles(bench, source, codes, ids, index, table, scans)
        try:
            for family in (*FAMILIES, "learned"):
                for number in range(args.models):
                    query = context.query(family, number)
                    context.measure("ensemble", query, every=number == 0)
                    context.measure("branch", branch_of(query, codes), every=number == 0)
            if peers.load("sklearn"):
                context.forest()
        finally:
            table.close()
            index.close()


@dataclass
class _Ensembles:
    """One collection of rows with every way to search it."""

    bench: Bench
    source: Source
    codes: Codes
    ids: np.ndarray
    index: engine.Index
    table: Table
    scans: dict[str, peers.Scan]

    def query(self, family: str, number: int) -> Query:
        """A generated model, or what Boxwood learns from the labels of a tight one."""
        rows = self.codes[:1_000_000]  # the same models at every size
        if family != "learned":
            return make_query(rows, family, number, self.bench.seed)
        labels = make_query(rows, "tight", number, self.bench.seed)
        model = self.index.train(labels.positives, labels.negatives[:20].copy(), self.bench.seed)
        return _from_model(self.index, model, "learned", number, labels)

    def ways(self, query: Query, threads: int, every: bool) -> dict[str, Way]:
        """All ways to answer, the slow ones among them only with `every`."""
        index, model, document = self.index, self.index.model(query.json()), query.json()
        con, at = self.table.con, str(self.bench.out / "index" / self._folder)
        con.execute(f"SET threads = {threads}")
        arguments = {"index": at, "model": document}
        where = index.sql(model)

        def table(statement: str, parameters: Any = None) -> Callable[[], Any]:
            return lambda: con.execute(statement, parameters).fetchnumpy()

        def number(statement: str, parameters: Any = None) -> Callable[[], Any]:
            return lambda: int(con.execute(statement, parameters).fetchall()[0][0])

        found = {
            "Boxwood C": Way(lambda: index.search(model, threads), index.answer,
                             figures=index.figures),
            "Boxwood C count": Way(lambda: index.count(model, threads), figures=index.figures),
            "Boxwood SQL": Way(table(
                "SELECT id, votes FROM boxwood_search($index, model := $model)", arguments),
                _sql_ids),
            "Boxwood SQL count": Way(number(
                "SELECT count FROM boxwood_count($index, model := $model)", arguments)),
        }  # fmt: skip
        if self.scans:
            ordered = peers.rarest_first(query, self.codes)
            for name, scan, early in (
                ("AVX2 scan, plain", "scan", False),
                ("AVX2 scan, early out", "scan", True),
                ("AVX2 scan, early out, index order", "scan in index order", True),
            ):
                run = self.scans[scan].prepare(ordered, query.threshold, early, threads)
                found[name] = Way(run, peers.Scan.answer)
        if every:
            found["DuckDB WHERE"] = Way(table(f"SELECT id FROM codes WHERE {where}"), _sql_ids)
            found["DuckDB WHERE count"] = Way(number(f"SELECT count(*) FROM codes WHERE {where}"))
            if threads == 1:
                found["numpy"] = Way(lambda: peers.numpy_votes(self.columns, self.ids, query))
        return found

    @cached_property
    def columns(self) -> Codes:
        """The codes column by column, for numpy."""
        return np.ascontiguousarray(self.codes.T)

    @property
    def _folder(self) -> str:
        return f"{self.source.kind}-{self.source.seed}-{len(self.codes)}"

    def forest(self) -> None:
        """scikit-learn's own forest on the labels, and the same forest compiled to boxes."""
        labels = make_query(self.codes[:1_000_000], "wide", 0, self.bench.seed)
        forest = peers.Forest(labels, self.codes, self.bench.seed)
        compiled = boxwood.Model.from_sklearn(forest.forest, positive=1)
        model = self.index.model(compiled.to_json())
        query = _from_model(self.index, model, "forest", 0, labels)
        extra = {threads: Way(partial(forest.predict, threads)) for threads in self.bench.threads}
        self.measure("ensemble", query, every=True, forest=extra)

    def measure(self, workload: str, query: Query, every: bool,
                forest: dict[int, Way] | None = None) -> None:  # fmt: skip
        expected: Expected | None = None
        for threads in self.bench.threads:
            ways = self.ways(query, threads, every)
            if forest:
                ways["scikit-learn predict"] = forest[threads]
            # A figure of what a call read belongs to that call: asked once before the rounds.
            figures = {}
            for name, way in ways.items():
                if way.figures:
                    way.run()
                    figures[name] = way.figures()

            times = interleave({name: way.run for name, way in ways.items()}, self.bench.repeats)
            for name, taken in times.items():
                expected = self.check(name, query, ways[name].read(taken.first), expected)
            assert expected is not None
            for name, taken in times.items():
                self.bench.results.add(
                    workload=workload, data=self.source.kind, seed=self.source.seed,
                    rows=len(self.codes), segments=self.index.segments, model=query.family,
                    number=query.number, boxes=query.boxes, method=name, threads=threads,
                    results=len(expected[0]), **taken.fields(), **figures.get(name, {}),
                )  # fmt: skip
            self.show(workload, query, threads, times, len(expected[0]))

    @staticmethod
    def check(name: str, query: Query, answer: Any,
              expected: Expected | None) -> Expected:  # fmt: skip
        """The answer that all ways must give, by the first of them; SystemExit for another one."""
        what = f"{query.family} {query.number}, {name}"
        if isinstance(answer, int):
            assert expected is not None
            if answer != len(expected[0]):
                raise SystemExit(f"{what}: counts {answer:,} rows, not {len(expected[0]):,}")
            return expected
        ids, votes = answer
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        if expected is None:
            return ids, votes[order]
        if not np.array_equal(ids, expected[0]):
            raise SystemExit(
                f"{what}: {len(ids):,} rows, {len(np.setxor1d(ids, expected[0])):,} of them not "
                f"those of the other ways ({len(expected[0]):,})"
            )
        if votes is not None and not np.array_equal(votes[order], expected[1]):
            raise SystemExit(f"{what}: the votes are not those of the other ways")
        return expected

    @staticmethod
    def show(workload: str, query: Query, threads: int, times: dict[str, Any], found: int) -> None:
        median = {name: taken.fields()["median_ms"] for name, taken in times.items()}
        scan = min((median[n] for n in median if n in report.SCANS), default=None)
        where = median.get("DuckDB WHERE")
        listed = [
            [name, f"{ms:.2f}", f"{scan / ms:.2f}" if scan else "",
             f"{where / ms:.1f}" if where else ""] for name, ms in median.items()
        ]  # fmt: skip
        print(f"\n{workload} {query.family} {query.number}: {query.boxes} boxes, {found:,} rows, "
              f"{threads} thread(s)")  # fmt: skip
        columns = ("way", "median ms", "AVX2 scan / this", "DuckDB WHERE / this")
        print(text_table(columns, listed), flush=True)


def _from_model(index: engine.Index, model: Any, family: str, number: int, labels: Query) -> Query:
    """A query with the boxes and votes of a model; its score is left out, since scans have none."""
    document = json.loads(index.document(model))
    return Query(family, number, document["estimators"], document["threshold"], labels.positives,
                 labels.negatives)  # fmt: skip


# --- nearest neighbours ---------------------------------------------------------------------------


def knn(bench: Bench, args: argparse.Namespace) -> None:
    for kind, rows in pairs(args):
        if rows > 2_000_000 and kind != args.data[0] and not args.all_data:
            continue  # a large flat index and its sweeps once, on the first kind
        _knn(bench, args, kind, rows)


def _knn(bench: Bench, args: argparse.Namespace, kind: str, rows: int) -> None:
    source = bench.source(kind)
    index, built = bench.index(source, rows)
    count = min(args.queries, 50) if bench.quick else args.queries
    say(f"k-NN, k = {K}: {rows:,} {source.kind} rows, {count} queries")
    codes, queries = source.rows(0, rows), source.queries(2000)
    truth = peers.true_distances(codes, queries[:count], K)
    common = {
        "workload": "knn", "data": source.kind, "seed": source.seed, "rows": rows, "k": K,
        "queries": count, "segments": index.segments,
    }  # fmt: skip

    exact = engine.Neighbours(index, queries, K)
    exact.name, exact.settings, exact.parameter = "Boxwood exact", (1.0,), "recall"
    methods: list[Any] = [engine.Neighbours(index, queries, K), exact]
    for method in methods:
        method.build_s = built.seconds
    for make, problem in peers.neighbour_methods(rows, args.peers):
        if problem:
            print(f"left out: {make.name}: {problem}")
            continue
        say(f"building {make.name}")
        methods.append(make(codes, queries, K))
        print(f"  {methods[-1].build_s:.1f} s, {methods[-1].bytes_per_row:.0f} bytes a row")

    # First what each setting finds, so that dear settings past .999 are not timed.
    points: list[tuple[Any, float, float]] = []
    for method in methods:
        for setting in method.settings:
            method.set(setting)
            for place in range(count):
                method.one(place)
            share = peers.recall(codes, queries[:count], method.ids[:count], truth)
            if method.name in ("Boxwood exact", "faiss flat"):
                check_exact(method, codes, queries[:count], truth)
            points.append((method, setting, share))
            if share > 0.999:
                break
    seconds: list[list[float]] = [[] for _ in points]
    for _ in range(min(3, bench.repeats)):
        for taken, (method, setting, _) in zip(seconds, points, strict=True):
            if len(taken) and sum(taken) > 5:
                continue
            method.set(setting)
            for place in range(count):
                start = time.perf_counter()
                method.one(place)
                taken.append(time.perf_counter() - start)
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for taken, (method, setting, share) in zip(seconds, points, strict=True):
        method.set(setting)
        stats = bench_stats(method, count) if isinstance(method, engine.Neighbours) else {}
        fields = {**summary(taken), "recall": share, **stats}
        bench.results.add(
            **common, method=method.name, parameter=method.parameter, setting=setting, threads=1,
            build_s=method.build_s, bytes_per_row=method.bytes_per_row, note=method.note,
            **fields,
        )  # fmt: skip
        curves.setdefault(method.name, []).append((share, fields["median_ms"], setting))
    batches(bench, common, methods, curves)
    listed = [
        [name, f"{share:.4f}", f"{setting:g}", f"{1000 * ms:.1f}"]
        for name, curve in curves.items() for share, ms, setting in curve
    ]  # fmt: skip
    print(text_table(("method", f"recall@{K}", "setting", "median us"), listed))
    compared = [
        [name, *(report.microseconds(report.at_recall(curve, r)) for r in RECALLS)]
        for name, curve in curves.items()
    ]
    print(text_table(("us at recall", *(f"{r:g}" for r in RECALLS)), compared), flush=True)
    index.close()


def bench_stats(method: Any, count: int) -> dict[str, int]:
    """What a query reads on average: the figures of one batch of all queries."""
    method.batch(count, 1)
    return {name: value // count for name, value in method.index.figures().items()}


def check_exact(method: Any, codes: Codes, queries: Codes, truth: np.ndarray) -> None:
    """The distances of an exact method are the true ones, of different rows."""
    ids = method.ids[: len(queries)]
    rows = codes[ids].astype(np.int64)
    distance = np.square(rows - queries[:, None].astype(np.int64)).sum(axis=2)
    if not np.array_equal(np.sort(distance, axis=1), np.rint(truth).astype(np.int64)):
        raise SystemExit(f"{method.name}: these are not the nearest rows")
    if any(len(np.unique(row)) != len(row) for row in ids):
        raise SystemExit(f"{method.name}: a row comes twice")


def _batch(method: Any, setting: float, n: int, threads: int) -> None:
    method.set(setting)
    method.batch(n, threads)


def batches(bench: Bench, common: dict[str, Any], methods: list[Any],
            curves: dict[str, list[tuple[float, float, float]]]) -> None:  # fmt: skip
    """Queries a second in one call, at the cheapest setting that reaches each recall."""
    chosen: dict[tuple[str, float], tuple[Any, float, float]] = {}
    for method in methods:
        for target in RECALLS:
            enough = [p for p in curves[method.name] if p[0] >= target]
            if enough:
                share, ms, setting = min(enough, key=lambda point: point[1])
                chosen[method.name, setting] = (method, share, ms)
    for threads in bench.threads:
        ways, sizes = {}, {}
        for (name, setting), (method, _, ms) in chosen.items():
            n = int(np.clip(1000 / ms, 20, len(method.ids)))
            sizes[name, setting] = n

            ways[name, setting] = partial(_batch, method, setting, n, threads)
        for key, taken in interleave(ways, min(3, bench.repeats)).items():
            method, share, _ = chosen[key]
            fields = taken.fields()
            bench.results.add(
                **{**common, "workload": "knn batch", "queries": sizes[key]}, method=key[0],
                parameter=method.parameter, setting=key[1], threads=threads, recall=share,
                per_second=1000 * sizes[key] / fields["median_ms"], **fields,
            )  # fmt: skip


# --- growth ---------------------------------------------------------------------------------------


def growth(bench: Bench, args: argparse.Namespace) -> None:
    sizes = sorted({*args.rows, *([100_000_000] if args.full else [])})
    for kind in args.data:
        source = bench.source(kind)
        queries = source.queries(200)
        # The same labels, models and queries at every size.
        head = source.rows(0, min(sizes[0], 1_000_000))
        asked = [make_query(head, family, n, bench.seed) for family in FAMILIES for n in range(3)]
        measured: dict[str, list[tuple[int, float]]] = {}
        for rows in sizes:
            index, built = bench.index(source, rows)
            say(f"growth: {rows:,} {source.kind} rows")
            _growth(bench, source, index, built, asked, queries, measured)
            index.close()
        listed = []
        for name, points in measured.items():
            exponent = report.exponent(points)
            listed.append([name, *(f"{ms:.4g}" for _, ms in points), f"{exponent:.2f}"])
        columns = ("ms on one thread", *(f"{rows:,}" for rows in sizes), "exponent")
        print(text_table(columns, listed), flush=True)


def _train(index: engine.Index, query: Query) -> Any:
    return index.train(query.positives, query.negatives[:20].copy(), query.number)


def _refine(index: engine.Index, query: Query, threads: int) -> Any:
    return index.search(_train(index, query), threads)


def _growth(bench: Bench, source: Source, index: engine.Index, built: engine.Built,
            asked: list[Query], queries: Codes,
            measured: dict[str, list[tuple[int, float]]]) -> None:  # fmt: skip
    common = {
        "workload": "growth", "data": source.kind, "seed": source.seed, "rows": index.rows,
        "segments": index.segments, "build_s": built.seconds,
        "bytes_per_row": built.bytes / built.rows, "peak_bytes": built.peak,
        "extra_bytes": built.extra,
    }  # fmt: skip
    folder = built.folder
    neighbours = engine.Neighbours(index, queries, K)
    for threads in bench.threads:
        ways: dict[str, list[Callable[[], Any]]] = {}
        for query in asked:
            model = index.model(query.json())
            ways.setdefault(f"ensemble, {query.family}", []).append(
                partial(index.search, model, threads)
            )
            ways.setdefault(f"count, {query.family}", []).append(
                partial(index.count, model, threads)
            )
            if query.family == "tight":
                ways.setdefault("refine", []).append(partial(_refine, index, query, threads))
                if threads == 1:
                    ways.setdefault("refine: training", []).append(partial(_train, index, query))

        for setting in (0.95, 0.99, 1.0) if threads == 1 else ():
            name = "k-NN, exact" if setting == 1 else f"k-NN, recall {setting:g}"

            def ask(setting: float = setting) -> None:
                neighbours.set(setting)
                for place in range(len(queries)):
                    neighbours.one(place)

            ways[name] = [ask]
        flat = {f"{name}#{i}": way for name, several in ways.items()
                for i, way in enumerate(several)}  # fmt: skip
        figures: dict[str, dict[str, int]] = {}
        for name, way in flat.items():
            way()
            figures[name] = {**index.figures(), "results": int(index.stats.rows)}
        times = interleave(flat, max(3, bench.repeats // 2))
        for name, several in ways.items():
            per_call = len(queries) if name.startswith("k-NN") else 1
            seconds = [s / per_call for i in range(len(several))
                       for s in times[f"{name}#{i}"].seconds]  # fmt: skip
            sums = {
                field: int(np.median([figures[f"{name}#{i}"][field] for i in range(len(several))]))
                for field in (*engine.STATS, "results")
                if "training" not in name  # which says nothing of what it reads
            }
            fields = summary(seconds)
            bench.results.add(
                **common, method=name, threads=threads, k=K if per_call > 1 else None,
                resident_bytes=int(engine.resident_share(folder) * index.bytes), **fields, **sums,
            )  # fmt: skip
            if threads == 1:
                measured.setdefault(name, []).append((index.rows, fields["median_ms"]))


# --- the build ------------------------------------------------------------------------------------


def build(bench: Bench, args: argparse.Namespace) -> None:
    for kind, rows in pairs(args):
        source = bench.source(kind)
        if args.fresh:
            (bench.out / "index" / f"{source.kind}-{source.seed}-{rows}.json").unlink(
                missing_ok=True
            )
        index, _ = bench.index(source, rows)
        index.close()
        into = bench.out / "index" / f"{source.kind}-{source.seed}-{rows}"
        engine.evict(into)  # this process may hold its pages
        seconds, share = engine.open_cold(into)
        print(f"  opened in {1000 * seconds:.0f} ms, {share:.1%} of it in memory before")
        bench.results.add(
            workload="open", data=source.kind, seed=source.seed, rows=rows, method="Boxwood",
            repeats=1, median_ms=1000 * seconds, note=f"{share:.1%} in memory before",
        )  # fmt: skip


# --- the paper's size -----------------------------------------------------------------------------


def paper_scale(bench: Bench, args: argparse.Namespace) -> None:
    source = bench.source(args.data[0])
    folder = bench.out / "paper" / f"{source.kind}-{source.seed}-{args.rows[0]}-{args.piece}"
    if args.clean:
        shutil.rmtree(bench.out / "paper", ignore_errors=True)
        print(f"removed {bench.out / 'paper'}")
        return
    rows = args.rows[0]
    names = _paper_segments(bench, source, folder, rows, args.piece)
    size = sum((folder / name).stat().st_size for name in names)
    _paper_queries(bench, source, folder, rows, len(names), size)


def _paper_segments(bench: Bench, source: Source, folder: Path, rows: int, piece: int) -> list[str]:
    """Generate and write what is missing, one segment a piece; the next piece is generated while
    one is written."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "stamp.json"
    # Of all runs that wrote segments: seconds of writing, without the generating beside it.
    state: dict[str, Any] = {"native": engine.native_stamp(), "seconds": 0.0, "peak": 0}
    known = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if known.get("native") == state["native"]:
        state = known
        for cut_short in folder.glob(".*tmp-*"):
            cut_short.unlink()
    else:
        for old in folder.iterdir():
            old.unlink()
        stamp.write_text(json.dumps(state))
    starts = list(range(0, rows, piece))
    names = [f"1-{number}.segment" for number in range(len(starts))]
    todo = [n for n, name in enumerate(names) if not (folder / name).is_file()]
    sizes = {n: min(rows, starts[n] + piece) - starts[n] for n in todo}
    need, free = 64 * sum(sizes.values()), shutil.disk_usage(folder).free
    say(f"{rows:,} {source.kind} rows in {len(names)} segments; {len(todo)} to write, "
        f"{need / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free")  # fmt: skip
    if need > free:
        raise SystemExit("there is not enough room on the disk: choose another --out")

    def make(n: int) -> Codes:
        return source.rows(starts[n], starts[n] + sizes[n])

    with ThreadPoolExecutor(1) as pool, Bar("generating and writing", bool(todo)) as bar:
        ahead = [pool.submit(make, n) for n in todo[:1]]
        for place, n in enumerate(todo):
            codes = ahead.pop().result()
            ahead += [pool.submit(make, later) for later in todo[place + 1 : place + 2]]
            before = sum(sizes[earlier] for earlier in todo[:place])

            def step(done: float, before: int = before, size: int = len(codes)) -> None:
                bar.update(before + int(done * size), sum(sizes.values()))

            start = time.perf_counter()
            engine.write_segment(folder, names[n], starts[n], codes, step)
            state["seconds"] += time.perf_counter() - start
            state["peak"] = max(state["peak"], engine.peak_memory())
            stamp.write_text(json.dumps(state))
    native.write_manifest(folder, engine.UUID, 1, names, native.Fingerprints())
    bench.results.add(
        workload="paper-scale", data=source.kind, seed=source.seed, rows=rows,
        segments=len(names), method="build", repeats=1, build_s=state["seconds"],
        peak_bytes=state["peak"], threads=os.cpu_count(),
    )  # fmt: skip
    return names


def _paper_queries(bench: Bench, source: Source, folder: Path, rows: int, segments: int,
                   size: int) -> None:  # fmt: skip
    head = source.rows(0, min(rows, 1_000_000))
    queries = source.queries(200)
    labels = [make_query(head, "tight", number, bench.seed) for number in range(3)]
    models = [make_query(head, family, 0, bench.seed) for family in FAMILIES]
    con = boxwood.connect(":memory:")
    con.execute(f"SET threads = {bench.threads[-1]}")
    at = {"index": str(folder)}
    common = {
        "workload": "paper-scale", "data": source.kind, "seed": source.seed, "rows": rows,
        "segments": segments, "threads": bench.threads[-1], "bytes_per_row": size / rows,
    }  # fmt: skip
    listed: list[list[object]] = []

    def table(statement: str, **arguments: Any) -> Callable[[], Any]:
        return lambda: con.execute(statement, {**at, **arguments}).fetchnumpy()

    def keep(method: str, seconds: list[float], note: str | None = None, **fields: Any) -> None:
        bench.results.add(
            **common, method=method, note=note, **summary(seconds),
            peak_bytes=engine.peak_memory(),
            resident_bytes=int(engine.resident_share(folder) * size), **fields,
        )  # fmt: skip
        median = summary(seconds)["median_ms"]
        listed.append([method, len(seconds), f"{median:.1f}", fields.get("results", ""),
                       note or ""])  # fmt: skip
        print(f"  {method}: {median:,.1f} ms {note or ''}", flush=True)

    engine.evict(folder)
    # This process may have the index open since it wrote the manifest.
    seconds, share = engine.open_cold(folder)
    keep("open, cold", [seconds], f"{share:.1%} of the index was still in memory")
    index = engine.Index(folder)  # held, so that SQL finds it open

    refine = "SELECT id, votes, score FROM boxwood_refine($index, positives := $p, negatives := $n)"
    refines = [table(refine, p=q.positives.tolist(), n=q.negatives[:20].tolist()) for q in labels]

    def cold(method: str, way: Callable[[], Any]) -> None:
        engine.evict(folder)
        share = engine.resident_share(folder)
        start = time.perf_counter()
        found = way()
        keep(f"{method}, cold", [time.perf_counter() - start], results=len(found["id"]),
             note=f"{share:.1%} of the index was still in memory")  # fmt: skip

    cold("refine", refines[0])
    one = "SELECT id, distance FROM boxwood_knn($index, q := $q, k := 60, recall := $r)"
    cold("k-NN, recall 0.95", table(one, q=queries[0].tolist(), r=0.95))
    cold("k-NN, exact", table(one, q=queries[0].tolist(), r=1.0))

    say("warm: every page is in memory")
    for path in sorted(folder.glob("*.segment")):
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
    ways: dict[str, Callable[[], Any]] = {f"refine#{n}": way for n, way in enumerate(refines)}
    for query in models:
        document = query.json()
        ways[f"ensemble, {query.family}#0"] = table(
            "SELECT id, votes FROM boxwood_search($index, model := $m)", m=document
        )
        ways[f"count, {query.family}#0"] = table(
            "SELECT count FROM boxwood_count($index, model := $m)", m=document
        )
    for setting in (0.95, 1.0):
        name = "k-NN, exact" if setting == 1 else f"k-NN, recall {setting:g}"
        for place in range(1, 21):
            ways[f"{name}#{place}"] = table(one, q=queries[place].tolist(), r=setting)
    times = interleave(ways, 5, patience=20)
    for name in dict.fromkeys(key.split("#")[0] for key in ways):
        chosen = [taken for key, taken in times.items() if key.split("#")[0] == name]
        first = chosen[0].first
        results = len(first["id"]) if "id" in first else int(first["count"][0])
        keep(f"{name}, warm", [s for taken in chosen for s in taken.seconds], results=results)
    truth = {key: set(times[key].first["id"].tolist()) for key in times if "exact" in key}
    shares = [
        len(truth[key.replace("recall 0.95", "exact")] & set(times[key].first["id"].tolist()))
        / K for key in times if "recall 0.95" in key
    ]  # fmt: skip
    print(f"recall of k-NN at 0.95, by ids: {np.mean(shares):.3f}")
    bench.results.add(**common, method="k-NN, recall 0.95, found", recall=float(np.mean(shares)))
    print(text_table(("from SQL", "runs", "median ms", "rows", ""), listed))
    print(f"most memory of this process: {engine.peak_memory() / 1e9:.1f} GB, the index's pages "
          f"among it; {size / 1e9:.1f} GB of files")  # fmt: skip
    index.close()
    con.close()


# --- instructions, report, the standard set -------------------------------------------------------


def count_instructions(bench: Bench, args: argparse.Namespace) -> None:
    source = Source("synthetic", 0, bench.out / "data")  # the same on every machine
    rows = 20_000 if bench.quick else 200_000
    index, built = bench.index(source, rows)
    codes = source.rows(0, rows)
    models = [make_query(codes, family, 0, 0) for family in FAMILIES]
    index.close()
    instructions.measure(bench.out, built.folder, models, source.queries(20), bench.results,
                         {"data": source.kind, "seed": 0, "rows": rows}, say)  # fmt: skip


def make_report(bench: Bench, args: argparse.Namespace) -> None:
    report.write(bench.out, bench.results.con, ROOT / "docs" if args.docs else None)


def interrupted(problem: BaseException) -> bool:
    """Whether somebody pressed Ctrl-C; inside a query DuckDB says so in its own words."""
    return isinstance(problem, (KeyboardInterrupt, duckdb.InterruptException)) or (
        isinstance(problem, RuntimeError) and str(problem) == "Query interrupted"
    )


def everything(bench: Bench, args: argparse.Namespace) -> None:
    """The standard set. A workload that fails does not keep the others from running."""
    failed = []
    for name, work in (("ensembles", ensembles), ("knn", knn), ("growth", growth)):
        mine = argparse.Namespace(**vars(args))
        if args.rows is None:
            mine.rows = DEFAULT_ROWS[name]
        if args.data is None:
            mine.data = DEFAULT_DATA[name]
        if bench.quick and name == "growth":
            mine.rows = [args.rows[0] // 4, args.rows[0] // 2, args.rows[0]]
        try:
            work(bench, mine)
        except (SystemExit, Exception) as problem:
            if interrupted(problem):
                raise
            traceback.print_exc()
            failed.append(name)
    if not bench.quick:
        count_instructions(bench, args)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


DEFAULT_ROWS = {
    "ensembles": [1_000_000, 10_000_000], "knn": [1_000_000, 10_000_000],
    "growth": [1_000_000, 3_000_000, 10_000_000, 30_000_000],
    "build": [1_000_000, 10_000_000], "paper-scale": [260_000_000],
}  # fmt: skip
DEFAULT_DATA = {
    "ensembles": ["realistic", "uniform"], "knn": list(KINDS), "growth": ["realistic"],
    "build": ["realistic"], "paper-scale": ["realistic"],
}  # fmt: skip
WORK: dict[str, tuple[Callable[[Bench, argparse.Namespace], None], str]] = {
    "all": (everything, "the standard set: ensembles, knn, growth, instructions"),
    "ensembles": (ensembles, "ensembles and single branches against DuckDB, numpy, sklearn, scan"),
    "knn": (knn, "nearest neighbours against faiss and usearch"),
    "growth": (growth, "time, bytes and memory by number of rows"),
    "build": (build, "time and memory of the build"),
    "instructions": (
        count_instructions,
        "instructions by workload and function; valgrind or perf",
    ),
    "paper-scale": (paper_scale, "260 million rows from SQL, cold and warm; needs 16 GB of disk"),
    "report": (make_report, "tables and plots of the last figures"),
}


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = parser.add_subparsers(dest="workload", required=True, metavar="WORKLOAD")
    for name, (_, text) in WORK.items():
        one = several.add_parser(name, help=text, description=text)
        one.add_argument("--out", type=Path, 
                         help="for data, indexes and results (default: build/bench, and its "
                         "folder quick with --quick)")  # fmt: skip
        one.add_argument("--docs", action="store_true",
                         help="also write docs/BENCHMARKS.md and its plots")  # fmt: skip
        if name == "report":
            continue
        one.add_argument("--quick", action="store_true",
                         help=f"{QUICK_ROWS:,} rows and few repeats")  # fmt: skip
        one.add_argument("--rows", type=int, nargs="+", metavar="N", help="sizes")
        one.add_argument("--data", nargs="+", choices=KINDS, help="kinds of codes")
        one.add_argument("--vectors", type=Path, metavar="FOLDER",
                         help="the evaluation data, with cnclip_vitb16/muge.npy (default: "
                         "BOXWOOD_DATA, or shared/data beside the repository)")  # fmt: skip
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--repeat", type=int, help="rounds (default: 9; quick: 3)")
        one.add_argument("--threads", type=int, nargs="+", metavar="N",
                         help="default: 1 2, as far as there are cores")  # fmt: skip
        if name in ("all", "ensembles"):
            one.add_argument("--models", type=int, help="models a family (default: 3; quick: 1)")
        if name in ("all", "knn"):
            one.add_argument("--queries", type=int, default=200, help="default: %(default)s")
            one.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.PEERS),
                             help="those to compare with (default: all)")  # fmt: skip
            one.add_argument("--all-data", action="store_true",
                             help="all kinds of data over 2,000,000 rows too")  # fmt: skip
        if name in ("all", "growth"):
            one.add_argument("--full", action="store_true", help="100,000,000 rows as well")
        if name == "build":
            one.add_argument("--fresh", action="store_true", help="build again what is there")
        if name == "paper-scale":
            one.add_argument("--piece", type=int, default=8_000_000, metavar="N",
                             help="rows a segment (default: %(default)s)")  # fmt: skip
            one.add_argument("--clean", action="store_true", help="remove the files and do nothing")
    args = parser.parse_args(words)
    if args.workload == "report":
        return args
    if any(rows < 10_000 for rows in args.rows or ()):
        parser.error("--rows must be at least 10,000: fewer say nothing")
    if args.quick and args.rows is None:
        args.rows = [QUICK_ROWS]
        if args.workload == "growth":
            args.rows = [QUICK_ROWS // 4, QUICK_ROWS // 2, QUICK_ROWS]
    if args.quick and args.data is None and args.workload in ("all", "knn"):
        args.data = ["realistic"]
    if args.workload != "all":
        args.rows = args.rows or DEFAULT_ROWS.get(args.workload, [])
        args.data = args.data or DEFAULT_DATA.get(args.workload, ["realistic"])
    if "models" in args and args.models is None:
        args.models = 1 if args.quick else 3
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    threads = getattr(args, "threads", None) or [n for n in (1, 2) if n <= (os.cpu_count() or 1)]
    quick = getattr(args, "quick", False)
    usual = ROOT / "build" / "bench"
    args.out = args.out or (usual / "quick" if quick else usual)
    try:
        results = Results(args.out)
    except duckdb.IOException as problem:
        print(f"cannot write the results: {problem}", file=sys.stderr)
        return 1
    bench = Bench(
        args.out.resolve(), results, getattr(args, "vectors", None), getattr(args, "seed", 0),
        quick, getattr(args, "repeat", None) or (3 if quick else 9), threads,
    )  # fmt: skip
    code = 0
    try:
        WORK[args.workload][0](bench, args)
    except SystemExit as problem:
        print(problem, file=sys.stderr)
        code = 1
    except BaseException as problem:
        if not interrupted(problem):
            raise
        print("\nstopped; what was measured so far is kept", file=sys.stderr)
        code = 130
    finally:
        if results.added:
            parquet = results.export()
            print(f"{results.added} measurements in {results.file} and {parquet}")
        if results.added and args.workload != "report":
            report.write(bench.out, results.con, ROOT / "docs" if args.docs else None)
        results.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
