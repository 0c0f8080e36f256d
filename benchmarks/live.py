"""What a live collection costs: small appends against one large one, deletions, compaction.

    python benchmarks/live.py [--batches 1000] [--rows 100] [--repeat 3] [--kinds codes,fine,...]

Every kind of rows is measured in one run, large and small appends taking turns, and the ratio of
the medians is printed. In DuckDB's files nothing is synced less: each autocommitted append is one
commit with its fsync.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import boxwood
from boxwood import Collection, Model

KINDS = ("codes", "fine", "embeddings", "table")
"""Ready codes; with fine codes; embeddings (512), which get fine codes; codes with metadata in a
table that Boxwood makes."""
WIDTH = 512
MODEL = Model.from_json(
    '{"boxwood_model": 1, "learner": "live", "dims": 32, "threshold": 1,'
    ' "estimators": [[[[0, 100, 150], [5, 90, 160], [9, 110, 200]]]]}'
)


class Rows:
    """Clustered rows of a kind."""

    def __init__(self, kind: str, count: int) -> None:
        rng = np.random.default_rng(0)
        self.kind, self.count = kind, count
        self.ids: NDArray[np.int64] = rng.permutation(count).astype(np.int64)
        which = rng.integers(50, size=count)
        self.values: dict[str, NDArray[Any]] = {}
        if kind == "embeddings":
            centres = rng.normal(0, 1, (50, WIDTH)).astype(np.float32)
            noise = rng.normal(0, 0.5, (count, WIDTH)).astype(np.float32)
            self.values["embeddings"] = centres[which] + noise
            return
        centres = rng.normal(127, 40, (50, 32))
        codes = np.clip(centres[which] + rng.normal(0, 15, (count, 32)), 0, 255)
        self.values["codes"] = codes.astype(np.uint8)
        if kind == "fine":
            self.values["fine"] = rng.integers(0, 256, (count, 128), np.uint8)

    def append(self, to: Collection, first: int, last: int) -> None:
        some = {name: values[first:last] for name, values in self.values.items()}
        if self.kind == "table":
            some["metadata"] = {"camera": np.arange(first, last) % 7}
        to.append(self.ids[first:last], **some)


def taken(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def made(folder: Path, rows: Rows, seed: int) -> Collection:
    """An empty collection; of embeddings, one whose head is fitted already, by rows that are not
    measured."""
    con = boxwood.connect(folder / f"{rows.kind}-{seed}.duckdb")
    photos = Collection.create(con, "photos", fine=rows.kind in ("fine", "embeddings"))
    if rows.kind == "embeddings":
        some = rows.values["embeddings"][:5000]
        photos.append(np.arange(len(some)) + 10**9, embeddings=some)
        photos.refresh()
    return photos


def appends(folder: Path, rows: Rows, batch: int, repeat: int) -> None:
    """One append against many, autocommitted and in one transaction; the refresh that leaves
    nothing pending belongs to the cost."""
    ways: dict[str, list[float]] = {"one append": [], "autocommit": [], "one transaction": []}
    refreshed: dict[str, list[float]] = {name: [] for name in ways}
    waiting: dict[str, int] = {}
    for number in range(repeat):
        for place, way in enumerate(ways):
            photos = made(folder, rows, 10 * number + place)
            con, size = photos.con, rows.count if way == "one append" else batch

            def run(photos: Collection = photos, size: int = size) -> None:
                for first in range(0, rows.count, size):
                    rows.append(photos, first, first + size)

            if way == "one transaction":
                con.execute("BEGIN")
            seconds = taken(run)
            if way == "one transaction":
                seconds += taken(con.commit)
            ways[way].append(seconds)
            waiting[way] = photos.info()["pending"]
            refreshed[way].append(taken(photos.refresh))
            photos.verify()
            con.close()
    whole = {
        way: statistics.median(a + b for a, b in zip(times, refreshed[way], strict=True))
        for way, times in ways.items()
    }
    for way, times in ways.items():
        print(
            f"{rows.kind:10}  {way:15}  {statistics.median(times):7.2f} s, then {waiting[way]:7,} "
            f"pending: refresh {statistics.median(refreshed[way]):5.2f} s; together "
            f"{whole[way] / whole['one append']:5.2f} times one append"
        )


def changes(folder: Path, rows: Rows) -> None:
    """Deletions, updates, refresh, compaction and queries on one collection."""
    photos = made(folder, rows, 1000)
    rows.append(photos, 0, rows.count)
    photos.refresh()

    def searched() -> float:
        photos.count(MODEL)
        return statistics.median(taken(lambda: photos.search(MODEL)) for _ in range(5)) * 1000

    def state() -> str:
        info = photos.info()
        size = sum(file.stat().st_size for file in photos.index_path.iterdir()) / 2**20
        return (
            f"{info['pending']:6,} pending, {info['deleted']:6,} dead, {info['segments']} "
            f"segments, {size:5.1f} MiB, search {searched():5.1f} ms"
        )

    def say(what: str, seconds: float) -> None:
        print(f"{rows.kind:10}  {what:38} {seconds:7.3f} s   {state()}")

    say("at the start", 0.0)
    tenth = rows.ids[: rows.count // 10]
    some = {name: values[:1000] for name, values in rows.values.items()}
    say("delete 100 rows", taken(lambda: photos.delete(rows.ids[-100:])))
    say("update 1,000 rows", taken(lambda: photos.update(rows.ids[:1000], **some)))
    say("refresh", taken(photos.refresh))
    say(f"delete {len(tenth):,} rows", taken(lambda: photos.delete(tenth)))
    say("refresh", taken(photos.refresh))
    ones = rows.ids[len(tenth) : len(tenth) + 200]
    say("delete 200 rows, one at a time", taken(lambda: [photos.delete([int(i)]) for i in ones]))
    say("compact", taken(photos.compact))
    say("repair", taken(photos.repair))
    photos.verify()
    photos.con.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=1000, help="small appends")
    parser.add_argument("--rows", type=int, default=100, help="rows of each")
    parser.add_argument("--repeat", type=int, default=3, help="rounds, of which medians are taken")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    options = parser.parse_args()
    for kind in options.kinds.split(","):
        rows = Rows(kind, options.batches * options.rows)
        with tempfile.TemporaryDirectory(prefix="boxwood-bench-") as folder:
            appends(Path(folder), rows, options.rows, options.repeat)
            changes(Path(folder), rows)


if __name__ == "__main__":
    main()
