"""The memory that queries need beyond the index files, which are mapped and count as page cache.

    python benchmarks/memory.py [--rows 10000000] [--work FOLDER] [--table]

Makes a collection of synthetic codes (it is kept in the work folder for the next run), then asks
it in processes of their own, each of which opens the database read-only with a memory limit of
1 GB for DuckDB, and prints by how much the anonymous memory (RssAnon) of the process grew at most
while a query ran, over what it was just before, and the answer's size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import boxwood
from boxwood import Collection, Model
from data import Source, make_query

QUERIES = (
    "python knn", "python knn recall .95", "python count", "python search", "python refine",
    "sql search_code", "sql count_model", "sql search_model", "sql refine",
    "sql search_model, most rows",
)  # fmt: skip


def anonymous() -> float:
    """MB of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this needs Linux: /proc/self/status with RssAnon")


def peak(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """MB that were added at most, seconds, and what `work` gave."""
    before, most, done = anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    answer = work()
    seconds = time.perf_counter() - start
    most = max(most, anonymous())
    done.set()
    watcher.join()
    return most - before, seconds, answer


def ask(database: Path, query: str) -> None:
    """One query, twice: the first time opens the index."""
    con = boxwood.connect(database, read_only=True, config={"memory_limit": "1GB", "threads": 2})
    photos = Collection.open(con, "photos")
    codes = np.load(database.with_name("sample.npy"))
    model = Model.from_json(database.with_name("model.json").read_text())
    most = (
        '{"boxwood_model":1,"learner":"most","dims":32,"estimators":[[[[0,0,150]]]],"threshold":1}'
    )
    right, wrong = list(range(0, 200, 10)), list(range(5, 100, 10))
    q = codes[0].tolist()

    def sql(text: str, *parameters: Any) -> Any:
        return con.execute(text, parameters).fetchall()[0]

    def work() -> Any:
        what = {
            "python knn": lambda: len(photos.knn(codes[0])),
            "python knn recall .95": lambda: len(photos.knn(codes[0], recall=0.95)),
            "python count": lambda: photos.count(model),
            "python search": lambda: photos.search(model).count,
            "python refine": lambda: photos.refine(right, wrong).count,
            "sql search_code": lambda: sql("SELECT count(*) FROM search_code('photos', ?)", q)[0],
            "sql count_model": lambda: sql(
                "SELECT count FROM count_model('photos', ?)", model.to_json()
            )[0],
            "sql search_model": lambda: sql(
                "SELECT count(*), sum(score) FROM search_model('photos', ?)", model.to_json()
            )[0],
            "sql refine": lambda: sql(
                "SELECT count(*), sum(score) FROM refine('photos', positives := ?, "
                "negatives := ?)", right, wrong,
            )[0],
            "sql search_model, most rows": lambda: sql(
                "SELECT count(*), sum(score) FROM search_model('photos', ?)", most
            )[0],
        }  # fmt: skip
        return what[query]()

    first, _, _ = peak(work)
    again, seconds, answer = peak(work)
    print(json.dumps({"first": first, "again": again, "ms": seconds * 1e3, "rows": answer}))


def make(work: Path, rows: int, table: bool) -> Path:
    folder = work / f"{rows}{'-table' if table else ''}"
    database = folder / "photos.duckdb"
    if (folder / "made").exists():
        return database
    folder.mkdir(parents=True, exist_ok=True)
    source = Source("synthetic", 0, work / "data")
    codes = source.rows(0, rows)
    np.save(folder / "sample.npy", codes[:100])
    np.save(folder / "codes.npy", codes)
    document = make_query(codes[:1_000_000], "wide", 0, 0).json()
    (folder / "model.json").write_text(document)
    with boxwood.connect(database, config={"threads": 2}) as con:
        if table:
            con.execute(f"CREATE TABLE photos AS SELECT range AS id FROM range({rows})")
        Collection.from_npy(con, "photos", folder / "codes.npy", ids=np.arange(rows))
    (folder / "codes.npy").unlink()
    (folder / "made").touch()
    return database


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, help="where the collection is made and kept")
    parser.add_argument("--table", action="store_true", help="with a metadata table")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        ask(Path(args.ask[0]), args.ask[1])
        return
    with tempfile.TemporaryDirectory() as spare:
        database = make(args.work or Path(spare), args.rows, args.table)
        index = sum(file.stat().st_size for file in Path(f"{database}.boxwood").rglob("*.segment"))
        print(f"{args.rows:,} rows, index {index / 1e6:,.0f} MB, mapped")
        print(f"{'query':30} {'MB, first':>10} {'MB, again':>10} {'ms':>8} {'rows':>12}")
        for query in QUERIES:
            done = subprocess.run(
                [sys.executable, __file__, "--ask", str(database), query],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"{query:30} failed: {done.stderr.splitlines()[-1]}")
                continue
            said = json.loads(done.stdout)
            print(f"{query:30} {said['first']:10.1f} {said['again']:10.1f} {said['ms']:8.1f} "
                  f"{said['rows']:12,}")  # fmt: skip


if __name__ == "__main__":
    main()
