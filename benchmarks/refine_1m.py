"""Refinement over a million rows: the index against DuckDB's own WHERE, in one run.

    python benchmarks/refine_1m.py [--rows 1000000] [--data embeddings.npy] [--repeat 9]

Codes are made from real vectors where --data names a .npy file of embeddings (rows are put between
a row and one of its near neighbours, with a little noise), else from clusters. A region of interest
is a row with its nearest neighbours; 30 of those and 30 from around it are the labels of an
ensemble of 25. Every way of asking is run in turn, over and over, so that all of them meet the same
machine; the figures are medians. The answers of all ways must be equal, or the script fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np

import boxwood
from boxwood import native
from boxwood.encode import Head
from boxwood.report import text_table

DIMS = 32


def quantized(rows: np.ndarray) -> np.ndarray:
    """Unit vectors to bytes at one scale for all dimensions."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scale = np.quantile(np.abs(rows[:100_000]), 0.9995)
    return np.clip(np.rint((rows / scale + 1) * 127.5), 0, 255).astype(np.uint8)


def from_vectors(path: Path, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` codes between real vectors and their neighbours."""
    vectors = np.load(path, mmap_mode="r")
    chosen = np.sort(rng.permutation(len(vectors))[:16_384])
    seeds = Head.pca(vectors[chosen].astype(np.float32)).images(vectors[chosen].astype(np.float32))
    near = np.empty((len(seeds), 10), np.int64)
    gaps = []
    for start in range(0, len(seeds), 2048):
        nearness = seeds[start : start + 2048] @ seeds.T
        best = np.argpartition(-nearness, 11, axis=1)[:, :11]
        order = np.argsort(-np.take_along_axis(nearness, best, 1), axis=1)
        best = np.take_along_axis(best, order, 1)
        near[start : start + 2048] = best[:, 1:]  # the first is the row itself
        cosine = np.take_along_axis(nearness, best[:, 1:2], 1)
        gaps.append(np.sqrt(np.maximum(2 - 2 * cosine, 0)))
    noise = 0.5 * float(np.median(np.concatenate(gaps))) / DIMS**0.5
    out = np.empty((n, DIMS), np.float32)
    for start in range(0, n, 250_000):
        m = min(250_000, n - start)
        one = rng.integers(0, len(seeds), m)
        other = near[one, rng.integers(0, 10, m)]
        part = rng.random((m, 1), np.float32)
        out[start : start + m] = seeds[one] * (1 - part) + seeds[other] * part
        out[start : start + m] += noise * rng.standard_normal((m, DIMS), np.float32)
    return quantized(out)


def from_clusters(n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` codes in 2,000 clusters of uneven size, with variance that falls off by dimension."""
    spread = (1 / np.sqrt(np.arange(1, DIMS + 1))).astype(np.float32)
    centres = rng.standard_normal((2000, DIMS), np.float32) * spread
    weight = rng.pareto(1.5, 2000) + 0.1
    which = rng.choice(2000, n, p=weight / weight.sum())
    out = centres[which]
    for start in range(0, n, 250_000):
        part = out[start : start + 250_000]
        part += 0.35 * spread * rng.standard_normal(part.shape, np.float32)
    return quantized(out)


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return (
        f"{model}, {os.cpu_count()} CPUs, {platform.system()}; kernels {native.isa()}; "
        f"DuckDB {duckdb.__version__}, Python {platform.python_version()}, "
        f"Boxwood {boxwood.__version__}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a .npy file of embeddings")
    parser.add_argument("--repeat", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, action="append",
                        help="may be repeated; default: 1 and all")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    if args.rows < 2000:
        parser.error("--rows must be at least 2000")
    if args.data is not None and not args.data.is_file():
        print(f"skipped: there is no {args.data}")
        return 0
    rng = np.random.default_rng(args.seed)
    codes = from_vectors(args.data, args.rows, rng) if args.data else from_clusters(args.rows, rng)
    ids = np.arange(args.rows, dtype=np.int64)
    source = args.data.name if args.data else "synthetic clusters"
    print(f"{args.rows:,} rows from {source}; {machine()}")

    with tempfile.TemporaryDirectory() as folder:
        con = boxwood.connect(Path(folder) / "bench.duckdb")
        collection = boxwood.Collection.create(con, "rows")
        start = time.perf_counter()
        collection.append(ids, codes=codes)
        append = time.perf_counter() - start
        start = time.perf_counter()
        collection.repair()
        build = time.perf_counter() - start
        info = collection.info()
        print(
            f"append {args.rows / append:,.0f} rows/s (rows in DuckDB and the index built); "
            f"index rebuilt from the table {args.rows / build:,.0f} rows/s; "
            f"{info['bytes'] / args.rows:.1f} bytes/row"
        )
        ask(con, collection, args)
        con.close()
    return 0


def ask(con: duckdb.DuckDBPyConnection, collection: boxwood.Collection,
        args: argparse.Namespace) -> None:  # fmt: skip
    """Train, run every way in turn, compare the answers, print the table."""
    rng = np.random.default_rng(args.seed + 1)
    centre = int(rng.integers(args.rows))
    near = collection.knn(like=centre, k=min(2000, args.rows // 2))["id"].to_numpy()
    positives = rng.choice(near[: len(near) // 4], 30, replace=False).tolist()
    negatives = rng.choice(near[-len(near) // 4 :], 30, replace=False).tolist()
    start = time.perf_counter()
    found = collection.refine(positives, negatives, learner="ensemble", seed=args.seed)
    whole = time.perf_counter() - start
    model = found.model
    document, where = model.to_json(), model.to_sql()
    print(
        f"ensemble: {found.count:,} rows match ({found.count / args.rows:.3%}); trained in "
        f"{found.stats['train_ms']:.1f} ms; refine() from Python {1000 * whole:.1f} ms\n"
    )
    index = native.Index(collection.index_path)
    compiled = native.Model.from_json(document)
    table = f'boxwood."{collection.name}_codes"'
    at = {"index": str(collection.index_path), "model": document}
    rows = []
    for threads in args.threads or sorted({1, os.cpu_count() or 1}):
        con.execute(f"SET threads = {threads}")

        def sql(statement: str, parameters: object = None) -> Callable[[], int]:
            return lambda: int(con.execute(statement, parameters).fetchall()[0][0])

        def arrow(statement: str, parameters: object = None) -> Callable[[], int]:
            return lambda: len(con.sql(statement, params=parameters).to_arrow_table())

        ways: dict[str, Callable[[], int]] = {
            "SQL   boxwood_count": sql(
                "SELECT count FROM boxwood_count($index, model := $model)", at),
            "SQL   boxwood_search, ids": arrow(
                "SELECT id FROM boxwood_search($index, model := $model)", at),
            "SQL   boxwood_search, ids votes score": arrow(
                "FROM boxwood_search($index, model := $model)", at),
            "C API count": lambda n=threads: index.count(compiled, threads=n),
            "C API rows": lambda n=threads: len(index.search(compiled, threads=n)[0]),
            "DuckDB WHERE, count": sql(f"SELECT count(*) FROM {table} WHERE {where}"),
            "DuckDB WHERE, ids": arrow(f"SELECT id FROM {table} WHERE {where}"),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeat):
            for name, way in ways.items():
                start = time.perf_counter()
                count = way()
                times[name].append(1000 * (time.perf_counter() - start))
                if count != found.count:
                    raise SystemExit(f"{name}: {count} rows, but refine() found {found.count}")
        base = statistics.median(times["DuckDB WHERE, ids"])
        for name, values in times.items():
            median = statistics.median(values)
            figures = (median, min(values), max(values), base / median)
            rows.append([name, threads, *(f"{figure:.2f}" for figure in figures)])
    by_index = con.sql("SELECT id FROM boxwood_search($index, model := $model)", params=at)
    one = np.sort(by_index.to_arrow_table()["id"].to_numpy())
    two = np.sort(con.sql(f"SELECT id FROM {table} WHERE {where}").to_arrow_table()["id"])
    three = np.sort(index.search(compiled)[0])
    if not (np.array_equal(one, two) and np.array_equal(one, three)):
        raise SystemExit("the ways do not return the same ids")
    columns = ("way", "threads", "median ms", "min ms", "max ms", "WHERE ids / this")
    print(text_table(columns, rows))
    print(f"\n{args.repeat} runs each, in turn; all ways return the same {found.count:,} ids")


if __name__ == "__main__":
    sys.exit(main())
