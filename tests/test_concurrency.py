"""Many at once: threads with cursors of their own, and processes. Every answer is that of one
committed state, and of one that was the committed one between the question and the answer."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, Model
from conftest import clustered_codes

LONG = int(os.environ.get("BOXWOOD_LONG", "1"))
ALL = Model.from_json(
    json.dumps(
        {"boxwood_model": 1, "learner": "all", "dims": 32, "estimators": [[[]]], "threshold": 1}
    )
)


class History:
    """The committed states of a collection, each a set of ids, in order."""

    def __init__(self) -> None:
        self._states: list[frozenset[int]] = [frozenset()]
        self._lock = threading.Lock()
        self._pending: frozenset[int] | None = None

    @property
    def now(self) -> frozenset[int]:
        return self._states[-1]

    def commit(self, state: frozenset[int], act: Callable[[], Any]) -> None:
        """Take a step; while it lasts both states are right. `act` says False where it was
        refused, and nothing has changed."""
        with self._lock:
            self._pending = state
        done = act() is not False
        with self._lock:
            if done:
                self._states.append(state)
            self._pending = None

    def start(self) -> int:
        """When a question is asked."""
        with self._lock:
            return len(self._states) - 1

    def right_since(self, start: int) -> list[frozenset[int]]:
        """The states that were committed, or being committed, since then."""
        with self._lock:
            states = self._states[start:]
            return states if self._pending is None else [*states, self._pending]


CODES = clustered_codes(60_000, 3)
"""Of every id that there will ever be; they do not change."""


def brute_knn(ids: frozenset[int], query: Any, k: int) -> list[int]:
    listed = np.array(sorted(ids), np.int64)
    apart = ((CODES[listed].astype(np.int64) - query.astype(np.int64)) ** 2).sum(axis=1)
    return [int(row) for row in listed[np.lexsort((listed, apart))[:k]]]


class Threads:
    """Runs functions again and again in threads; the first exception is raised at the end."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.rounds: dict[str, int] = {}
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def run(self, name: str, again: Callable[[], Any]) -> None:
        def loop() -> None:
            try:
                while not self.stop.is_set():
                    again()
                    self.rounds[name] = self.rounds.get(name, 0) + 1
            except BaseException as error:
                self._errors.append(error)
                self.stop.set()

        self._threads.append(threading.Thread(target=loop, name=name))
        self._threads[-1].start()

    def finish(self, seconds: float) -> None:
        self.stop.wait(seconds)
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} hangs"
        if self._errors:
            raise self._errors[0]


@pytest.mark.parametrize("table", [None, "photos"])
def test_readers_beside_a_writer_refresh_and_compaction(tmp_path: Path, table: str | None) -> None:
    con = boxwood.connect(tmp_path / "store.duckdb", config={"threads": 2})
    if table is not None:
        con.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, camera VARCHAR)")
    photos = Collection.create(con, "photos", table=table)
    history, threads, rng = History(), Threads(), random.Random(1)
    next_id = 0
    refused: list[BaseException] = []  # DuckDB lets the first of two writers win
    overtaken: list[BaseException] = []  # statements that the index went past while they ran

    def fresh(count: int) -> list[int]:
        nonlocal next_id
        next_id += count
        return list(range(next_id - count, next_id))

    def append(ids: list[int]) -> None:
        metadata = None if table is None else {"camera": [f"c{row % 3}" for row in ids]}
        photos.append(ids, codes=CODES[ids], metadata=metadata)

    first = fresh(5000)
    history.commit(frozenset(first), lambda: append(first))

    def write() -> None:
        now, what = history.now, rng.random()
        if what < 0.45 and next_id < 50_000:
            ids = fresh(rng.choice([1, 10, 100, 500]))
            history.commit(now | frozenset(ids), lambda: append(ids))
        elif what < 0.65:
            gone = rng.sample(sorted(now), min(len(now), rng.choice([1, 20, 200])))
            history.commit(now - frozenset(gone), lambda: photos.delete(gone))
        elif what < 0.8 and table is not None:
            gone = rng.sample(sorted(now), 10)
            listed = ", ".join(map(str, gone))
            history.commit(
                now - frozenset(gone),
                lambda: con.execute(f"DELETE FROM photos WHERE id IN ({listed})"),
            )
        else:  # several changes become visible together, or not at all
            ids, gone = fresh(30), rng.sample(sorted(now), 15)
            keep = rng.random() < 0.7

            def act() -> bool:
                con.execute("BEGIN")
                try:
                    append(ids)
                    photos.delete(gone)
                    con.execute("COMMIT" if keep else "ROLLBACK")
                except (boxwood.Error, duckdb.TransactionException) as error:
                    with suppress(duckdb.TransactionException):
                        con.execute("ROLLBACK")
                    assert "conflict" in str(error).lower()  # noqa: PT017
                    refused.append(error)
                    return False
                return True

            history.commit(now - frozenset(gone) | frozenset(ids) if keep else now, act)
        time.sleep(0.002)

    keeper = Collection.open(boxwood.load(con.cursor()), "photos")

    def maintain() -> None:
        time.sleep(0.03)
        try:
            keeper.refresh() if rng.random() < 0.8 else keeper.compact()
        except boxwood.Error as error:
            assert "conflict" in str(error).lower()  # noqa: PT017
            refused.append(error)

    def first_column(cur: duckdb.DuckDBPyConnection, query: str, value: Any) -> list[Any]:
        while True:
            try:
                return [first for (first,) in cur.execute(query, [value]).fetchall()]
            except duckdb.Error as error:
                if "run it again" not in str(error):
                    raise
                overtaken.append(error)

    def ids_by_sql(cur: duckdb.DuckDBPyConnection) -> frozenset[int]:
        ids = first_column(cur, "SELECT id FROM search_model('photos', ?)", ALL.to_json())
        assert len(ids) == len(set(ids)), "a row twice"
        return frozenset(ids)

    def ids_by_python(mine: Collection) -> frozenset[int]:
        ids = mine.search(ALL).ids.tolist()
        assert len(ids) == len(set(ids)), "a row twice"
        return frozenset(ids)

    def ask(what: Callable[[], Any], right: Callable[[frozenset[int]], Any]) -> None:
        start = history.start()
        said = what()
        states = history.right_since(start)
        if said in [right(state) for state in states]:
            return
        if isinstance(said, frozenset):
            off = [(sorted(said - right(s))[:3], sorted(right(s) - said)[:3]) for s in states]
            raise AssertionError(f"{len(said)} rows of no committed state: {off}")
        raise AssertionError(f"{said} is of no committed state")

    for number in range(2):
        cur = boxwood.load(con.cursor())
        mine = Collection.open(boxwood.load(con.cursor()), "photos")
        more, queries = boxwood.load(con.cursor()), np.random.default_rng(number)

        def by_sql(cur: Any = cur) -> None:
            ask(lambda: ids_by_sql(cur), lambda state: state)
            ask(
                lambda: first_column(cur, "FROM count_model('photos', ?)", ALL.to_json())[0],
                len,
            )

        def by_python(mine: Collection = mine, queries: Any = queries) -> None:
            query = CODES[queries.integers(len(CODES))]
            ask(lambda: ids_by_python(mine), lambda state: state)
            ask(lambda: mine.count(ALL), len)
            ask(
                lambda: mine.knn(query, k=10)["id"].to_pylist(),
                lambda state: brute_knn(state, query, 10),
            )

        def knn_by_sql(cur: Any = more, queries: Any = queries) -> None:
            query = CODES[queries.integers(len(CODES))]
            ask(
                lambda: first_column(
                    cur,
                    "SELECT id FROM search_code('photos', ?::UTINYINT[], k := 10) "
                    "ORDER BY distance, id",
                    query.tolist(),
                ),
                lambda state: brute_knn(state, query, 10),
            )

        threads.run(f"sql {number}", by_sql)
        threads.run(f"python {number}", by_python)
        threads.run(f"k-NN by SQL {number}", knn_by_sql)
    threads.run("writer", write)
    threads.run("maintenance", maintain)
    threads.finish(5.0 * LONG)
    print(threads.rounds, f"{len(refused)} conflicts, {len(overtaken)} statements overtaken")
    assert len(threads.rounds) == 8
    answers = sum(n * (1 + name.startswith("sql")) for name, n in threads.rounds.items()
                  if "sql" in name.lower())  # fmt: skip
    assert len(overtaken) < answers / 10
    photos.refresh()
    photos.verify()
    assert ids_by_python(photos) == ids_by_sql(con) == history.now
    con.close()


@pytest.mark.parametrize("table", [None, "photos"])
def test_a_transaction_keeps_its_snapshot(tmp_path: Path, table: str | None) -> None:
    """SQL's answers in it, whatever others commit, refresh and compact meanwhile. A Collection
    answers by what is committed until it changes something in the transaction."""
    con = boxwood.connect(tmp_path / "store.duckdb")
    if table is not None:
        con.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY)")
    photos = Collection.create(con, "photos", table=table)

    def append(ids: Any) -> None:
        metadata = None if table is None else {"id": ids}
        photos.append(ids, codes=CODES[ids], metadata=metadata)

    append(np.arange(3000))
    photos.refresh()
    other = boxwood.load(con.cursor())
    theirs = Collection.open(other, "photos")
    other.execute("BEGIN")
    query = CODES[100]

    def seen() -> tuple[list[int], list[int]]:
        found = other.execute("SELECT id FROM search_model('photos', ?)", [ALL.to_json()])
        ids = sorted(row for (row,) in found.fetchall())
        near = other.execute(
            "SELECT id FROM search_code('photos', ?::UTINYINT[], k := 20) ORDER BY distance, id",
            [query.tolist()],
        ).fetchall()
        [(count,)] = other.execute("FROM count_model('photos', ?)", [ALL.to_json()]).fetchall()
        assert count == len(ids)
        return ids, [row for (row,) in near]

    before = seen()
    assert before == (list(range(3000)), brute_knn(frozenset(range(3000)), query, 20))
    photos.delete(np.arange(90, 110))
    assert seen() == before
    append(np.arange(3000, 4000))
    photos.update([500], codes=CODES[100:101])
    assert seen() == before
    live = sorted({*range(4000)} - {*range(90, 110)})
    for step in (photos.refresh, photos.compact):
        step()
        assert seen() == before
        assert sorted(theirs.search(ALL).ids.tolist()) == live
        assert theirs.count(ALL) == len(theirs) == len(live)
    other.execute("COMMIT")
    assert seen()[0] == live
    con.close()


READER = """
    import json, sys
    import boxwood
    from boxwood import Collection, Model

    database, model, rounds = sys.argv[1], Model.from_json(sys.argv[2]), int(sys.argv[3])
    with boxwood.connect(database, read_only=True) as con:
        photos = Collection.open(con, "photos")
        said = set()
        for n in range(rounds):
            found = con.execute("SELECT id FROM search_model('photos', ?)", [model.to_json()])
            ids = sorted(row for (row,) in found.fetchall())
            near = photos.knn(like=ids[n], k=5)["id"].to_pylist()
            said.add((len(ids), sum(ids), photos.count(model), len(photos), near[0] == ids[n]))
    print(json.dumps(sorted(said)))
"""


def started(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_many_reading_processes(tmp_path: Path) -> None:
    """Beside each other, with rows that the index has not got and rows that it has too many of."""
    database = tmp_path / "store.duckdb"
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos")
        photos.append(np.arange(2000), codes=CODES[:2000])
        photos.refresh()
        photos.append(np.arange(2000, 2050), codes=CODES[2000:2050])
        photos.delete(np.arange(100, 120))
    live = [*range(100), *range(120, 2050)]
    readers = [started(READER, database, ALL.to_json(), 5) for _ in range(4)]
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert reader.returncode == 0, err
        assert json.loads(out) == [[len(live), sum(live), len(live), len(live), True]]


def test_a_writer_keeps_other_processes_out(tmp_path: Path) -> None:
    """DuckDB lets one process write, and then no other one in; that is said, and nothing hangs."""
    database = tmp_path / "store.duckdb"
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos")
        photos.append(np.arange(100), codes=CODES[:100])
        photos.refresh()
        for script in (READER, READER.replace(", read_only=True", "")):
            reader = started(script, database, ALL.to_json(), 1)
            _, err = reader.communicate(timeout=60)
            assert reader.returncode != 0
            assert "DatabaseLocked" in err
            assert "another process" in err.lower()
        photos.append([100], codes=CODES[100:101])
        assert photos.count(ALL) == 101
    reader = started(READER, database, ALL.to_json(), 1)
    out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0, err
    assert json.loads(out)[0][0] == 101
    # Readers keep a writer out, too.
    with boxwood.connect(database, read_only=True) as con:
        writer = started(READER.replace(", read_only=True", ""), database, ALL.to_json(), 1)
        _, err = writer.communicate(timeout=60)
        assert writer.returncode != 0
        assert "DatabaseLocked" in err
        assert Collection.open(con, "photos").count(ALL) == 101
