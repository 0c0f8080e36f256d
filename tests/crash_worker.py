"""A store that is killed again and again: what happens to it, step by step, and who does it.

The test process and the processes that it kills share this file. `Step`s say what is done to a
collection, `after` what it then holds, `run` does it. Run as a program it is a nursery: it imports
what takes long once, then forks a child for each job that it reads from its standard input, and
tells how the child ended. A child announces each step before it takes it, and says when it is done.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

import boxwood
from boxwood import Collection, catalog, native
from boxwood.encode import Head

NAME = "photos"
CONCEPT = "leopard"
WIDTH = 48
KINDS = ("codes", "fine", "table", "owned", "embeddings")
"""What a collection is made of: ready codes; with fine codes; with a table of the user's; with one
that Boxwood makes; embeddings that are kept."""

Step = dict[str, Any]
"""What is done: ``do`` names it, the rest are its parameters; plain values, for JSON."""


class State(NamedTuple):
    """What a collection holds."""

    kind: str | None
    """One of KINDS; None: there is no collection."""
    rows: dict[int, int]
    """Versions of the live rows by their ids. Code and embedding follow from id and version."""
    concept: tuple[int, ...] = ()
    """Seeds of the versions of a concept, the newest last; empty: there is none."""
    old: bool = False
    """Whether the collection was re-coded since the newest version was saved."""


# --- rows -----------------------------------------------------------------------------------------


def values(rows: dict[int, int], width: int) -> NDArray[np.uint8]:
    """Bytes (n, width) that belong to ids and versions, in clusters."""
    ids = np.array(list(rows), np.uint64)[:, None]
    versions = np.array(list(rows.values()), np.uint64)[:, None]
    dims = np.arange(width, dtype=np.uint64)[None, :]
    centre = _mixed(ids % np.uint64(7) * np.uint64(1000) + dims) % np.uint64(195)
    spread = _mixed((ids * np.uint64(1009) + versions) * np.uint64(1000) + dims) % np.uint64(51)
    return (centre + spread + np.uint64(5)).astype(np.uint8)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well mixed bits (the finalizer of SplitMix64)."""
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def vectors(rows: dict[int, int]) -> NDArray[np.float32]:
    return (values(rows, WIDTH).astype(np.float32) - 127) / 64


def turned(seed: int) -> Head:
    """A head of WIDTH dimensions."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0][:, :32]
    zero = np.zeros(WIDTH, np.float32)
    return Head("pca", zero, zero, ((basis.astype(np.float32), np.zeros(32, np.float32)),))


# --- steps ----------------------------------------------------------------------------------------


def choose(rng: random.Random, state: State, next_id: int) -> Step:
    """A step that makes sense. New ids are `next_id` and on."""
    if state.kind is None:
        return {"do": "create", "kind": rng.choice(KINDS)}
    ids, table = sorted(state.rows), state.kind in ("table", "owned")
    if not ids or rng.random() < 0.3:
        return _append(rng, next_id)
    do = rng.choice(
        ["update", "delete", "transaction", "transaction", "refresh", "refresh", "compact", "ask",
         "ask", "repair", "reopen", "checkpoint", "sql_delete" if table else "delete",
         "recode" if state.kind == "embeddings" else "compact", "drop" if rng.random() < 0.2
         else "append", "save_concept", "save_concept",
         "drop_concept" if state.concept else "save_concept"]
    )  # fmt: skip
    if do == "append":
        return _append(rng, next_id)
    if do in ("update", "delete", "sql_delete"):
        return _some(rng, do, ids)
    if do in ("recode", "ask", "save_concept"):
        return {"do": do, "seed": rng.randrange(1 << 30)}
    if do != "transaction":
        return {"do": do}
    steps, inside = [], state
    for _ in range(rng.randint(1, 3)):
        there = sorted(inside.rows)
        if rng.random() < 0.4 or not there:
            step = _append(rng, next_id)
            next_id = max(step["ids"]) + 1
        elif rng.random() < 0.25:
            do_it = "drop_concept" if inside.concept and rng.random() < 0.4 else "save_concept"
            step = {"do": do_it, "seed": rng.randrange(1 << 30)}
        else:
            step = _some(rng, rng.choice(["update", "delete", "sql_delete" if table else "update"]),
                         there)  # fmt: skip
        inside = after(step, inside)
        steps += [step, {"do": "ask", "seed": rng.randrange(1 << 30)}][: rng.randint(1, 2)]
    return {"do": do, "steps": steps, "commit": rng.random() < 0.75}


def _append(rng: random.Random, next_id: int) -> Step:
    count = rng.choice([1, 3, 20, 100, 300])
    ids = [next_id + 2 * n for n in range(count)]
    rng.shuffle(ids)
    beside = rng.random() < 0.5
    return {"do": "append", "ids": ids, "version": rng.randrange(1000), "beside": beside}


def _some(rng: random.Random, do: str, ids: list[int]) -> Step:
    count = min(len(ids), rng.choice([1, 2, 10, 60, 200]))
    return {"do": do, "ids": rng.sample(ids, count), "version": rng.randrange(1000)}


def after(step: Step, state: State) -> State:
    """What there is when a step is done."""
    do, rows = step["do"], dict(state.rows)
    concept, old = state.concept, state.old
    if do == "create":
        return State(step["kind"], {})
    if do == "drop":
        return State(None, {})
    if do in ("append", "update"):
        rows.update(dict.fromkeys(step["ids"], step["version"]))
    elif do in ("delete", "sql_delete"):
        for row in step["ids"]:
            del rows[row]
    elif do == "transaction" and step["commit"]:
        inside = state
        for part in step["steps"]:
            inside = after(part, inside)
        return inside
    elif do == "recode":
        old = True
    elif do == "save_concept":
        concept, old = (*concept, step["seed"]), False
    elif do == "drop_concept":
        concept, old = (), False
    return State(state.kind, rows, concept, old)


def largest_id(step: Step) -> int:
    """The largest id that a step may have used; -1: none."""
    parts = [largest_id(part) for part in step.get("steps", [])]
    return max([-1, *step.get("ids", []), *parts])


# --- doing it -------------------------------------------------------------------------------------


class Store:
    """A database with a collection, open in this process."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "store.duckdb"
        self.con = boxwood.connect(self.database)
        self.photos: Collection | None = None
        if NAME in Collection.list(self.con):
            self.photos = Collection.open(self.con, NAME)

    def run(self, step: Step, state: State) -> None:
        """Take a step from this state."""
        do, kind = step["do"], state.kind
        if do == "create":
            self.create(step["kind"])
            return
        photos = self.photos
        assert photos is not None
        assert kind is not None
        if do in ("append", "update"):
            self.write(step, kind)
        elif do == "delete":
            assert photos.delete(step["ids"]) == len(step["ids"])
        elif do == "sql_delete":
            listed = ", ".join(map(str, step["ids"]))
            self.con.execute(f"DELETE FROM {NAME} WHERE id IN ({listed})")
        elif do == "transaction":
            self.con.execute("BEGIN")
            seen = False
            for part in step["steps"]:
                seen |= part["do"] not in ("sql_delete", "ask")
                if part["do"] == "ask":
                    # Python sees a transaction from its first change by way of a Collection on.
                    check_answers(self.con, photos if seen else None, state, part["seed"])
                else:
                    self.run(part, state)
                state = after(part, state)
            self.con.execute("COMMIT" if step["commit"] else "ROLLBACK")
        elif do == "ask":
            check_answers(self.con, photos, state, step["seed"])
        elif do == "recode":
            photos.recode(turned(step["seed"]))
        elif do == "save_concept":
            photos.save_concept(
                CONCEPT, concept_model(step["seed"]), [step["seed"]], replace=bool(state.concept)
            )
        elif do == "drop_concept":
            assert photos.drop_concept(CONCEPT) == len(state.concept)
        elif do == "drop":
            photos.drop()
            self.photos = None
            self.con.execute(f"DROP TABLE IF EXISTS {NAME}")
        elif do == "reopen":
            self.con.close()
            self.__init__(self.database.parent)  # type: ignore[misc]
        elif do == "checkpoint":
            self.con.execute("CHECKPOINT")
        else:
            getattr(photos, do)()

    def create(self, kind: str) -> None:
        options: dict[str, Any] = {
            "codes": {"fine": False}, "fine": {"fine": True}, "table": {"table": NAME}, "owned": {},
            "embeddings": {"keep_embeddings": True, "head": turned(0)},
        }[kind]  # fmt: skip
        # A killed drop may have left the user's table, which a collection of its name would take.
        self.con.execute(f"DROP TABLE IF EXISTS {NAME}")
        if kind == "table":
            self.con.execute(f"CREATE TABLE {NAME} (id BIGINT PRIMARY KEY, v INTEGER)")
        self.photos = Collection.create(self.con, NAME, **options)

    def write(self, step: Step, kind: str) -> None:
        assert self.photos is not None
        rows = dict.fromkeys(step["ids"], step["version"])
        given: dict[str, Any] = {}
        if kind == "embeddings":
            given["embeddings"] = vectors(rows)
        else:
            given["codes"] = values(rows, 32)
            given["fine"] = values(rows, 128) if kind == "fine" else None
        if step["do"] == "update":
            assert self.photos.update(list(rows), **given) == len(rows)
            return
        if kind == "table" and step["beside"]:  # metadata first; no image yet
            listed = ", ".join(f"({row}, {version})" for row, version in rows.items())
            self.con.execute(f"INSERT INTO {NAME} VALUES {listed}")
        elif kind in ("table", "owned"):
            given["metadata"] = {"v": np.array(list(rows.values()), np.int32)}
        assert self.photos.append(list(rows), **given) == len(rows)


# --- what it must answer --------------------------------------------------------------------------


def stored(con: duckdb.DuckDBPyConnection, kind: str) -> dict[int, bytes]:
    """Code of every live row, and what belongs to it, as the database has them."""
    # The first rows decide whether there is a column of fine codes.
    more = ", fine" if kind == "fine" and _has_fine(con) else ""
    live = f" SEMI JOIN {NAME} USING (id)" if kind == "table" else ""
    if kind == "owned" and con.execute(
        "SELECT table_name FROM boxwood.collections WHERE name = ?", [NAME]
    ).fetchone() != (None,):
        live = f" SEMI JOIN {NAME} USING (id)"
    columns = ", ".join(f"d{dim:02}" for dim in range(32))
    rows = con.execute(f"SELECT id, {columns}{more} FROM boxwood.{NAME}_codes{live}").fetchall()
    held = {row[0]: bytes(row[1:33]) + (bytes(row[33]) if more else b"") for row in rows}
    appended = con.execute(
        "SELECT ids, codes, fine FROM boxwood.appended WHERE collection = ?", [NAME]
    ).fetchall()
    there = {row for (row,) in con.execute(f"SELECT id FROM {NAME}").fetchall()} if live else None
    for ids, codes, fine in appended:
        for place, row in enumerate(np.frombuffer(ids, "<i8").tolist()):
            if there is not None and row not in there:
                continue
            assert row not in held, f"the id {row} twice"
            code = codes[32 * place : 32 * place + 32]
            held[row] = code + (fine[128 * place : 128 * place + 128] if more else b"")
    return held


def _has_fine(con: duckdb.DuckDBPyConnection) -> bool:
    columns = con.execute(f"DESCRIBE boxwood.{NAME}_codes").fetchall()
    return columns[-1][0] == "fine"


def concept_model(seed: int) -> boxwood.Model:
    low = seed % 120
    return boxwood.Model.from_json(json.dumps({
        "boxwood_model": 1, "learner": f"test_{seed}", "dims": 32, "threshold": 1,
        "estimators": [[[[seed % 32, low, low + 80]]]],
    }))  # fmt: skip


def check_concept(con: duckdb.DuckDBPyConnection, state: State) -> None:
    """That the database has the versions of a concept, each whole, and its view."""
    kept = []
    if catalog.exists(con):
        kept = con.execute(
            "SELECT collection, name, version, model, learner, positives FROM boxwood.concepts "
            "ORDER BY version"
        ).fetchall()
    models = [concept_model(seed) for seed in state.concept]
    assert kept == [
        (NAME, CONCEPT, number + 1, model.to_json(), model.learner, [seed])
        for number, (model, seed) in enumerate(zip(models, state.concept, strict=True))
    ], f"concepts: {[row[4] for row in kept]}, not {state.concept}"
    views = con.execute(
        "SELECT view_name FROM duckdb_views() WHERE schema_name = 'concepts'"
    ).fetchall()
    assert views == ([(CONCEPT,)] if state.concept else []), "the view of the concept"


def check_concept_rows(
    con: duckdb.DuckDBPyConnection, photos: Collection | None, state: State, held: dict[int, bytes]
) -> None:
    """That the concept answers by its newest version, for the live rows."""
    if not state.concept:
        return
    query = f"SELECT id FROM concepts.{CONCEPT} ORDER BY id"
    if state.old:
        # A statement that fails would end the transaction that it is in.
        current = con.execute("SELECT current FROM concept_list(?)", [NAME]).fetchall()
        assert current == [(False,)], "the concept is of older codes"
        return
    dim, low = state.concept[-1] % 32, state.concept[-1] % 120
    inside = sorted(row for row, code in held.items() if low <= code[dim] <= low + 80)
    assert [row for (row,) in con.execute(query).fetchall()] == inside, "concepts.leopard"
    if photos is not None:
        assert photos.concept(CONCEPT).version == len(state.concept)
        assert sorted(photos.search(photos.concept(CONCEPT)).ids.tolist()) == inside, "concept"


def check_rows(con: duckdb.DuckDBPyConnection, state: State) -> dict[int, bytes]:
    """That the database holds the rows, and the concept, of a state; returns `stored`."""
    assert state.kind is not None
    check_concept(con, state)
    held = stored(con, state.kind)
    assert held.keys() == state.rows.keys(), (
        f"lost: {sorted(state.rows.keys() - held.keys())[:5]}, "
        f"too many: {sorted(held.keys() - state.rows.keys())[:5]}"
    )
    if state.kind == "embeddings":
        if not state.rows:
            return held
        kept = con.execute(f"SELECT id, embedding FROM boxwood.{NAME}_embeddings").fetchall()
        by_id = {row: np.array(vector, np.float32) for row, vector in kept}
        assert by_id.keys() == state.rows.keys()
        for row, vector in zip(state.rows, vectors(state.rows), strict=True):
            assert np.array_equal(by_id[row], vector), f"the embedding of id {row}"
        return held
    width = {"fine": 160}.get(state.kind, 32)
    expected = np.concatenate([values(state.rows, 32), values(state.rows, 128)], axis=1)
    for row, code in zip(state.rows, expected, strict=True):
        assert held[row] == code[:width].tobytes(), f"the code of id {row}"
    return held


def check_answers(
    con: duckdb.DuckDBPyConnection, photos: Collection | None, state: State, seed: int
) -> None:
    """That SQL, and Python where there is a collection, answer by the live rows alone."""
    held = check_rows(con, state)
    check_concept_rows(con, photos, state, held)
    ids = np.array(sorted(held), np.int64)
    codes = np.array([list(held[row][:32]) for row in ids.tolist()], np.uint8).reshape(-1, 32)
    rng = np.random.default_rng(seed)
    centre = codes[rng.integers(len(codes))] if len(ids) else np.full(32, 100, np.uint8)
    boxes, inside = [], np.zeros(len(ids), np.int64)
    for _ in range(3):
        dims = np.sort(rng.permutation(32)[: rng.integers(1, 4)])
        low = np.maximum(0, centre[dims].astype(int) - rng.integers(0, 90, len(dims)))
        high = np.minimum(255, centre[dims].astype(int) + rng.integers(0, 90, len(dims)))
        boxes.append([[[int(d), int(a), int(b)] for d, a, b in zip(dims, low, high, strict=True)]])
        inside += ((codes[:, dims] >= low) & (codes[:, dims] <= high)).all(axis=1)
    least = int(rng.integers(0, 4))
    model = boxwood.Model.from_json(json.dumps({
        "boxwood_model": 1, "learner": "test", "dims": 32, "estimators": boxes, "threshold": least,
    }))  # fmt: skip
    match = inside >= least
    matching = dict(zip(ids[match].tolist(), inside[match].tolist(), strict=True))
    query = centre if rng.integers(2) else rng.integers(0, 256, 32, np.uint8)
    k = int(rng.choice([1, 5, 60]))
    apart = ((codes.astype(np.int64) - query.astype(np.int64)) ** 2).sum(axis=1)
    near = np.lexsort((ids, apart))[:k]
    near_within = np.lexsort((ids[match], apart[match]))[:k]

    rows = con.execute(
        "SELECT id, votes FROM search_model(?, ?)", [NAME, model.to_json()]
    ).fetchall()
    assert len(rows) == len(matching), "search_model"
    assert dict(rows) == matching, "search_model"
    count = con.execute("FROM count_model(?, ?)", [NAME, model.to_json()]).fetchone()
    assert count is not None
    assert count[0] == len(matching), "count_model"
    said = con.execute(
        "SELECT id, distance FROM search_code(?, ?::UTINYINT[], k := ?) ORDER BY distance, id",
        [NAME, query.tolist(), k],
    ).fetchall()
    assert [row for row, _ in said] == ids[near].tolist(), "search_code"
    assert [far for _, far in said] == np.sqrt(apart[near]).tolist(), "search_code"
    if photos is None:
        return
    assert len(photos) == len(ids)
    found = photos.search(model)
    assert dict(zip(found.ids.tolist(), found.table()["votes"].to_pylist(), strict=True)) == (
        matching
    ), "search"
    assert photos.count(model) == len(matching), "count"
    assert photos.knn(query, k=k)["id"].to_pylist() == ids[near].tolist(), "knn"
    within = photos.knn(query, k=k, within=model)["id"].to_pylist()
    assert within == ids[match][near_within].tolist(), "knn within"
    if len(ids):
        like = int(ids[rng.integers(len(ids))])
        first = photos.knn(like=like, k=1)["distance"].to_pylist()
        assert first == [0.0], "knn like"


# --- dying ----------------------------------------------------------------------------------------

POINTS = (
    "before write_segment", "during write_segment", "after write_segment",
    "before write_manifest", "during write_manifest", "after write_manifest",
    "before deletions", "during deletions", "after deletions",
    "before commit", "during commit", "after commit", "before unlink", "after unlink",
    "before mkdir", "after mkdir", "before rmtree", "during rmtree", "after rmtree",
)  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def plant(point: str, passes: int, delay: float) -> None:
    """Die when this point is passed for the `passes`-th time, counted from 0; in the middle of a
    call: `delay` seconds after its start, or at its end."""
    when, what = point.split()
    left = [passes]

    def around(real: Callable[..., Any], concerns: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not concerns(*args, **kwargs):
                return real(*args, **kwargs)
            left[0] -= 1
            if left[0] >= 0:
                return real(*args, **kwargs)
            if when == "before":
                die()
            if when == "during":
                threading.Timer(delay, die).start()
            result = real(*args, **kwargs)
            die()
            return result

        return call

    def always(*args: Any, **kwargs: Any) -> bool:
        return True

    def commits(con: Any, query: Any = "", *args: Any, **kwargs: Any) -> bool:
        return str(query).strip().upper() == "COMMIT"

    if what in ("write_segment", "write_manifest"):
        setattr(native, what, around(getattr(native, what), always))
    elif what == "deletions":
        writer: Any = native.Index
        writer.write_deleted = around(writer.write_deleted, always)
    elif what == "commit":
        connection: Any = duckdb.DuckDBPyConnection
        connection.execute = around(connection.execute, commits)
    elif what == "unlink":
        path: Any = Path
        path.unlink = around(Path.unlink, always)
    elif what == "mkdir":
        path = Path
        path.mkdir = around(Path.mkdir, always)
    elif what == "rmtree":
        shutil.rmtree = around(shutil.rmtree, always)  # type: ignore[assignment]
    else:
        raise AssertionError(point)


def live(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Open the database and take the job's steps: so many random ones, or those of a list; `say`
    announces each, and its end."""
    rng = random.Random(job["seed"])
    rows = {int(row): version for row, version in job["rows"].items()}
    state = State(job["kind"], rows, tuple(job["concept"]), job["old"])
    next_id = job["next"]
    if job["point"]:
        plant(job["point"], job["passes"], job["delay"])
    say({"begin": {"do": "open"}})
    store = Store(Path(job["folder"]))
    say({"done": True})
    script = job["steps"] if isinstance(job["steps"], list) else [None] * job["steps"]
    for planned in script:
        step = planned or choose(rng, state, next_id)
        if (
            planned is None
            and "rmtree" in (job["point"] or "")
            and state.kind is not None
            and rng.random() < 0.3
        ):
            step = {"do": "drop"}  # few steps would come by there
        next_id = max(next_id, largest_id(step) + 1)
        say({"begin": step})
        store.run(step, state)
        state = after(step, state)
        say({"done": True})
    say({"begin": {"do": "close"}})
    store.con.close()
    say({"done": True})


def nursery() -> None:
    """Children for the jobs on standard input; what they say, and how each ended, on standard
    output, a JSON object a line."""
    out = os.dup(1)
    os.dup2(2, 1)  # what else is printed must not come between

    def say(message: dict[str, Any]) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    # The extension's C library is loaded once; no thread and no database is there to be forked.
    native.version()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                say({"child": os.getpid()})
                live(job, say)
                status = 0
            except BaseException:
                say({"error": traceback.format_exc()})
            os._exit(status)
        _, ended = os.waitpid(child, 0)
        os.write(out, b"\n")  # it may have died in the middle of a line
        say({"end": os.waitstatus_to_exitcode(ended)})


if __name__ == "__main__":
    nursery()
