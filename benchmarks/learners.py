"""How good are the learners: the whole returned set and its ranking, from a handful of labels.

    python benchmarks/learners.py all DATA_FOLDER           every method, sessions, and the report
    python benchmarks/learners.py all DATA_FOLDER --quick   a fast look, into its own folder
    python benchmarks/learners.py run DATA_FOLDER --data real --space shared --split dev
    python benchmarks/learners.py run DATA_FOLDER --method cover --force     after a change of it
    python benchmarks/learners.py run --data scenes "scenes .1%"             needs no data folder
    python benchmarks/learners.py choose DATA_FOLDER        C of the linear models, on the dev half
    python benchmarks/learners.py sessions DATA_FOLDER      five rounds of labels
    python benchmarks/learners.py labels DATA_FOLDER        wrong labels; words and negatives alone
    python benchmarks/learners.py speed                     training and search, at 1M and 10M rows
    python benchmarks/learners.py report --docs             docs/LEARNERS.md from what was measured

Every method gets the same draws: some rows marked as right, in a second setting ten marked as wrong
besides, and random rows, those that the index draws itself. DATA_FOLDER holds real CLIP
vectors (fashion.npz, unlabelled.npz, imagenet_text.npz, flickr_pairs.npz); what is absent is left
out with a line that says so. Concepts are in two halves: parameters are chosen on `dev`, which has
seeds of its own, and reported on `test`.

Figures go to build/bench/learners/learners.duckdb, one row a draw and method. A second call runs
what is missing; --force runs again what is named. Ctrl-C keeps what there is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

import learner_report
import learner_speed
from boxwood.progress import Bar
from learner_methods import (
    LOGISTIC_C,
    LOGISTIC_C_F1,
    METHODS,
    SVM_C,
    linear,
    measured,
    quality,
    to_point,
)
from learner_tasks import (
    DEV_SEED,
    DILUTED_ROWS,
    PREVALENCES,
    Concept,
    Ids,
    Mask,
    Real,
    Scenes,
    World,
)  # fmt: skip
from results import machine

ROOT = Path(__file__).resolve().parents[1]
DATA = ("real", "scenes", *PREVALENCES)
POSITIVES = (2, 4, 8, 16, 32)
SEEDS = 5
QUICK_POSITIVES, QUICK_SEEDS, QUICK_CONCEPTS, QUICK_ROWS = (2, 8), 1, 4, 100_000
ROUNDS, PAGE, PAGES = 5, 20, 5
SESSION_METHODS = (
    "nearest", "Rocchio", "logistic", "ensemble", "cover", "cover + rerank",
    "cover + rerank, text",
)  # fmt: skip
STARTS = ("text", "two positives")
# What is measured with labels that are wrong, with right ones, and with words and negatives alone.
LABEL_METHODS = ("nearest, told", "nearest", "logistic", "cover", "cover + rerank")
WORD_METHODS = ("text, told", "logistic", "cover, text", "cover + rerank, text")
SPEED_ROWS = (1_000_000, 10_000_000)

DRAWS = {
    "date": "TIMESTAMP", "commit": "VARCHAR", "cpu": "VARCHAR", "data": "VARCHAR",
    "space": "VARCHAR", "split": "VARCHAR", "concept": "VARCHAR", "kind": "VARCHAR",
    "rows": "BIGINT", "positives": "INTEGER", "hard": "BOOLEAN", "seed": "BIGINT",
    "method": "VARCHAR", "ap": "DOUBLE", "precision": "DOUBLE", "recall": "DOUBLE", "f1": "DOUBLE",
    "told": "BOOLEAN", "told_f1": "DOUBLE", "truth": "BIGINT", "returned": "DOUBLE",
    "background": "BIGINT", "touched": "DOUBLE",
    "train_ms": "DOUBLE", "search_ms": "DOUBLE", "fallback": "BOOLEAN",
    "estimated_precision": "DOUBLE", "estimated_precision_low": "DOUBLE",
    "estimated_precision_high": "DOUBLE", "estimated_recall": "DOUBLE",
    "estimated_recall_low": "DOUBLE", "estimated_recall_high": "DOUBLE",
}  # fmt: skip
SESSIONS = {
    "date": "TIMESTAMP", "commit": "VARCHAR", "cpu": "VARCHAR", "data": "VARCHAR",
    "space": "VARCHAR", "split": "VARCHAR", "concept": "VARCHAR", "kind": "VARCHAR",
    "start": "VARCHAR", "seed": "BIGINT", "method": "VARCHAR", "round": "INTEGER",
    "right": "INTEGER", "labels": "INTEGER", "precision": "DOUBLE", "recall": "DOUBLE",
    "f1": "DOUBLE", "ms": "DOUBLE",
}  # fmt: skip
LABELS = {
    "date": "TIMESTAMP", "commit": "VARCHAR", "cpu": "VARCHAR", "data": "VARCHAR",
    "space": "VARCHAR", "split": "VARCHAR", "concept": "VARCHAR", "kind": "VARCHAR",
    "labels": "VARCHAR", "positives": "INTEGER", "seed": "BIGINT", "method": "VARCHAR",
    "ap": "DOUBLE", "precision": "DOUBLE", "recall": "DOUBLE", "f1": "DOUBLE", "told": "BOOLEAN",
    "told_f1": "DOUBLE", "fallback": "BOOLEAN",
}  # fmt: skip
SPEED = {
    "date": "TIMESTAMP", "commit": "VARCHAR", "cpu": "VARCHAR", "data": "VARCHAR",
    "part": "VARCHAR", "what": "VARCHAR", "method": "VARCHAR", "rows": "BIGINT", "ms": "DOUBLE",
    "least_ms": "DOUBLE", "most_ms": "DOUBLE", "runs": "INTEGER",
    **dict.fromkeys(
        ("found", "pruned", "planes", "scanned", "touched", "fine_rows", "bytes", "f1",
         "precision", "recall", "of_exact", "agreement"), "DOUBLE",
    ),
}  # fmt: skip
TABLES = {"draws": DRAWS, "sessions": SESSIONS, "labels": LABELS, "speed": SPEED}


class Store:
    """The file of measurements. Rows are added a batch at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "learners.duckdb"
        try:
            self.con = duckdb.connect(str(file))
        except duckdb.IOException as error:
            raise SystemExit(
                f"cannot open {file}: wait for the other run, or name another folder with --out\n"
                f"({str(error).splitlines()[0]})"
            ) from None
        for table, columns in TABLES.items():
            listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
            self.con.execute(f"CREATE TABLE IF NOT EXISTS {table} ({listed})")
            for name, kind in columns.items():
                self.con.execute(f'ALTER TABLE {table} ADD COLUMN IF NOT EXISTS "{name}" {kind}')
        here = machine()
        self.base = {"commit": here["commit"], "cpu": here["cpu"]}

    def done(self, table: str, data: str, space: str, concept: str, columns: str) -> set[Any]:
        """What a concept of a world has already, as tuples of these columns."""
        return set(
            self.con.execute(
                f"SELECT {columns} FROM {table} WHERE data = ? AND space = ? AND concept = ?",
                [data, space, concept],
            ).fetchall()
        )

    def add(self, table: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        date = datetime.now(UTC).replace(tzinfo=None)
        base = {**self.base, "date": date}
        new = [
            {name: row.get(name) for name in TABLES[table]} for row in ({**base, **r} for r in rows)
        ]
        self.con.register("new_rows", pa.Table.from_pylist(new))
        self.con.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new_rows")
        self.con.unregister("new_rows")

    def forget(self, table: str, data: list[str], spaces: list[str] | None, splits: list[str],
               methods: list[str]) -> None:  # fmt: skip
        self.con.execute(
            f"DELETE FROM {table} WHERE list_contains(?, data) AND list_contains(?, split) AND "
            "list_contains(?, method) AND (? IS NULL OR list_contains(?, space))",
            [data, splits, methods, spaces, spaces],
        )

    def close(self) -> None:
        self.con.close()


# --- worlds ---------------------------------------------------------------------------------------


@dataclass
class Cell:
    """Concepts that share a world, and how to make it: only when something in it is missing."""

    data: str
    space: str
    concepts: list[Concept]
    make: Callable[[], World | None]


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """The worlds that the arguments name, with their concepts of the split."""

    def wanted(concepts: list[Concept]) -> list[Concept]:
        chosen = [c for c in concepts if c.split in args.splits]
        if args.concept:
            chosen = [c for c in chosen if c.name in args.concept]
        return chosen[:: max(1, len(chosen) // QUICK_CONCEPTS)] if args.quick else chosen

    def asked(spaces: tuple[str, ...]) -> list[str]:
        return [space for space in spaces if not args.space or space in args.space]

    if "real" in args.data:
        problem = Real.absent(args.folder)
        if problem:
            print(f"skipped: real: {problem}")
        else:
            real = Real(args.folder)
            for space in asked(real.spaces):
                yield Cell("real", space, wanted(real.concepts), partial(real.world, space))
    rest = [data for data in args.data if data != "real"]
    if not rest:
        return
    problem = Scenes.absent()
    if problem:
        print(f"skipped: {', '.join(rest)}: {problem}")
        return
    made = Scenes(args.out.parent / "data", args.scenes, args.rows)
    if "scenes" in rest:
        for space in asked(made.spaces):
            yield Cell("scenes", space, wanted(made.concepts), partial(made.world, space))
    for data, prevalence in PREVALENCES.items():
        if data in rest and asked(("shared",)):
            for c in wanted(made.concepts):
                yield Cell(data, "shared", [c], partial(made.dilute, c, prevalence))


def seeds(concept: Concept, count: int) -> range:
    first = DEV_SEED if concept.split == "dev" else 0
    return range(first, first + count)


# --- draws ----------------------------------------------------------------------------------------


def run(args: argparse.Namespace, store: Store) -> None:
    """Every method on every draw that has no figures yet."""
    methods = args.method or list(METHODS)
    if args.force:
        store.forget("draws", args.data, args.space, args.splits, methods)
    for cell in cells(args):
        todo = {c.name: _missing(args, store, cell, c, methods) for c in cell.concepts}
        total = sum(map(len, todo.values()))
        if not total:
            continue
        world = cell.make()
        if world is None:
            continue
        label = f"{cell.data}, {cell.space}"
        if len(cell.concepts) == 1:
            label += f", {cell.concepts[0].name}"
        done = 0
        with world.opened(), Bar(label) as bar:
            for concept in world.concepts:
                for key, missing in todo.get(concept.name, {}).items():
                    store.add("draws", draw(world, concept, *key, missing))
                    done += 1
                    bar.update(done, total)


Key = tuple[int, bool, int]
# What has no answer in a world: learners read codes, a text query needs words.
CODES_ONLY = ("branch", "ensemble", "cover", "logistic, 30,000")


def _missing(
    args: argparse.Namespace, store: Store, cell: Cell, concept: Concept, methods: list[str]
) -> dict[Key, list[str]]:
    """By draw, the methods that have no figures."""
    able = [
        name
        for name in methods
        if (cell.space not in ("fine", "floats") or not name.startswith(CODES_ONLY))
        and ("text" not in name or concept.text is not None)
    ]
    done = store.done("draws", cell.data, cell.space, concept.name, "positives, hard, seed, method")
    found: dict[Key, list[str]] = {}
    for positives in args.positives:
        if int(concept.truth.sum()) < positives + 8 and cell.data not in PREVALENCES:
            continue
        for hard in args.settings:
            for seed in seeds(concept, args.seeds):
                left = [n for n in able if (positives, hard, seed, n) not in done]
                if left:
                    found[positives, hard, seed] = left
    return found


def draw(
    world: World, concept: Concept, positives: int, hard: bool, seed: int, methods: list[str]
) -> list[dict[str, Any]]:
    """The figures of these methods on one draw."""
    task = world.task(concept, positives, seed, hard)
    if task is None:
        return []
    rows = []
    for name in methods:
        outcome = METHODS[name](world, task)
        if outcome is not None:
            rows.append({
                "data": world.data, "space": world.space, "split": concept.split,
                "concept": concept.name, "kind": concept.kind, "rows": len(world.codes),
                "positives": positives, "hard": hard, "seed": seed, "method": name,
                **measured(outcome, task),
            })  # fmt: skip
    return rows


# --- sessions -------------------------------------------------------------------------------------


def sessions(args: argparse.Namespace, store: Store) -> None:
    """Five rounds of labels, on the codes of shared directions."""
    methods = [m for m in args.method or SESSION_METHODS if m in SESSION_METHODS]
    args.data = [data for data in args.data if data not in PREVALENCES]
    args.space = ["shared"]
    if args.force:
        store.forget("sessions", args.data, args.space, args.splits, methods)
    for cell in cells(args):
        todo = []
        for concept in cell.concepts:
            columns = "start, seed, method"
            done = store.done("sessions", cell.data, cell.space, concept.name, columns)
            todo += [
                (concept, start, seed, method)
                for start in STARTS
                if start != "text" or concept.text is not None
                for seed in seeds(concept, args.seeds)
                for method in methods
                if (start, seed, method) not in done
                and ("text" not in method or concept.text is not None)
            ]
        if not todo:
            continue
        world = cell.make()
        if world is None:
            continue
        with world.opened(), Bar(f"sessions, {cell.data}") as bar:
            for number, (concept, start, seed, method) in enumerate(todo, 1):
                store.add("sessions", session(world, concept, start, seed, method))
                bar.update(number, len(todo))


class Person:
    """Someone who looks at pages of known rows and says of each whether it is right."""

    def __init__(self, truth: Mask, judged: Mask) -> None:
        self.truth, self.judged = truth, judged
        self.marked = np.zeros(len(truth), bool)

    def look(self, scores: np.ndarray, n: int = PAGE) -> None:
        """Mark the n best rows that have no mark yet; rows of unknown truth are passed over."""
        open_rows = np.flatnonzero(self.judged & ~self.marked)
        best = np.argsort(-scores[open_rows], kind="stable")[:n]
        self.marked[open_rows[best]] = True

    @property
    def right(self) -> Ids:
        return np.flatnonzero(self.marked & self.truth).astype(np.int64)

    @property
    def wrong(self) -> Ids:
        return np.flatnonzero(self.marked & ~self.truth).astype(np.int64)


def session(
    world: World, concept: Concept, start: str, seed: int, method: str
) -> list[dict[str, Any]]:
    """The rounds of one session. The set that counts is the returned one, with what the person
    marked: right rows are in, wrong ones are out. It is measured on all rows of known truth."""
    person = Person(concept.truth, world.judged)
    if start == "text":
        by_words = -to_point(world, world.words[concept.name][2])
        for _ in range(PAGES):
            person.look(by_words)
            if len(person.right):
                break
    else:
        person.marked[world.order(concept, seed)[:2]] = True
    rows: list[dict[str, Any]] = []
    if not len(person.right):
        return rows
    for number in range(1, ROUNDS + 1):
        began = time.perf_counter()
        outcome = METHODS[method](world, world.task_of(concept, person.right, person.wrong, seed))
        ms = 1000 * (time.perf_counter() - began)
        if outcome is None or outcome.returned is None:
            return []
        kept = outcome.returned.copy()
        kept[person.right], kept[person.wrong] = True, False
        q = quality(kept[world.judged], concept.truth[world.judged])
        rows.append({
            "data": world.data, "space": world.space, "split": concept.split,
            "concept": concept.name, "kind": concept.kind, "start": start, "seed": seed,
            "method": method, "round": number, "right": len(person.right),
            "labels": int(person.marked.sum()), "precision": q.precision, "recall": q.recall,
            "f1": q.f1, "ms": ms,
        })  # fmt: skip
        person.look(outcome.scores)
    return rows


# --- wrong labels, and none that is right ---------------------------------------------------------


def labels(args: argparse.Namespace, store: Store) -> None:
    """Right and wrong labels on the same draws, and words with negatives alone; shared codes."""
    args.data = [data for data in args.data if data not in PREVALENCES]
    args.space = ["shared"]
    every = list(dict.fromkeys((*LABEL_METHODS, *WORD_METHODS)))
    methods = [m for m in args.method or every if m in every]
    if args.force:
        store.forget("labels", args.data, args.space, args.splits, methods)
    for cell in cells(args):
        columns = "labels, positives, seed, method"
        todo = []
        for concept in cell.concepts:
            done = store.done("labels", cell.data, cell.space, concept.name, columns)
            for seed in seeds(concept, args.seeds):
                keys = [
                    (kind, positives, seed, method)
                    for kind in ("right", "wrong")
                    for positives in args.positives
                    if int(concept.truth.sum()) >= positives + 8
                    for method in methods
                    if method in LABEL_METHODS
                ]
                keys += [
                    ("words", 0, seed, method)
                    for method in methods
                    if method in WORD_METHODS and concept.text is not None
                ]
                todo += [(concept, key) for key in keys if key not in done]
        if not todo:
            continue
        world = cell.make()
        if world is None:
            continue
        with world.opened(), Bar(f"labels, {cell.data}") as bar:
            for number, (concept, key) in enumerate(todo, 1):
                store.add("labels", labelled(world, concept, *key))
                bar.update(number, len(todo))


def labelled(
    world: World, concept: Concept, kind: str, positives: int, seed: int, method: str
) -> list[dict[str, Any]]:
    """The figures of a method with labels of a kind."""
    if kind == "words":
        task = world.unlike_words(concept, seed)
    elif kind == "wrong":
        task = world.mislabelled(concept, positives, seed)
    else:
        task = world.task(concept, positives, seed, True)
    outcome = None if task is None else METHODS[method](world, task)
    if task is None or outcome is None:
        return []
    return [{
        "data": world.data, "space": world.space, "split": concept.split, "concept": concept.name,
        "kind": concept.kind, "labels": kind, "positives": positives, "seed": seed,
        "method": method, **measured(outcome, task),
    }]  # fmt: skip


# --- speed ----------------------------------------------------------------------------------------


def speed(args: argparse.Namespace, store: Store) -> None:
    """Training and search times, all of one call, in place of those of the last call."""
    sizes = [QUICK_ROWS] if args.quick else list(SPEED_ROWS)
    rounds = learner_speed.QUICK_ROUNDS if args.quick else learner_speed.ROUNDS
    folder = args.folder.resolve().parent if args.folder else None
    rows = []
    for row in learner_speed.measure(args.out.parent / "data", folder, sizes, rounds):
        rows.append(row)
        print(f"{row['part']}, {row['rows']:,} rows, {row['what']}: {row['method']}: "
              f"{row['ms']:.2f} ms")  # fmt: skip
    store.con.execute("DELETE FROM speed")
    store.add("speed", rows)


# --- choosing ------------------------------------------------------------------------------------


def choose(args: argparse.Namespace, store: Store) -> None:
    """C of the linear models: mean average precision and F1 on the dev half, random negatives."""
    grid = (0.01, 0.1, 1.0, 10.0, 100.0)
    args.splits = ["dev"]
    args.data = [data for data in args.data if data not in PREVALENCES]
    for cell in cells(args):
        world = cell.make()
        if world is None:
            continue
        figures: dict[tuple[str, float], list[tuple[float, float]]] = {}
        with world.opened():
            for concept in cell.concepts:
                for positives in args.positives:
                    for seed in seeds(concept, args.seeds):
                        task = world.task(concept, positives, seed, False)
                        if task is None:
                            continue
                        for kind in ("logistic", "svm"):
                            for c in grid:
                                found = measured(linear(world, task, kind, c), task)
                                figures.setdefault((kind, c), []).append((found["ap"], found["f1"]))
        for (kind, c), values in figures.items():
            ap, f1 = np.mean(values, axis=0)
            print(f"{cell.data}, {cell.space}: {kind} C={c:g}: mAP {ap:.3f}, F1 {f1:.3f}")


# --- the command line -----------------------------------------------------------------------------

WORK = {"run": run, "sessions": sessions, "labels": labels, "speed": speed, "choose": choose}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("work", choices=["all", *WORK, "report"])
    top.add_argument("folder", nargs="?", type=Path, metavar="DATA_FOLDER",
                     help="real CLIP vectors; without it the scene world alone")  # fmt: skip
    top.add_argument("--split", choices=["dev", "test", "all"],
                     help="half of the concepts; default: all, the report: test")  # fmt: skip
    data = "; ".join(DATA).replace("%", "%%")
    top.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), metavar="DATA",
                     help=f"any of: {data}. Default: all")  # fmt: skip
    top.add_argument("--space", nargs="+", choices=("pca", "shared", "pairs", "fine", "floats"),
                     help="which vectors of the data; default: all that it has")  # fmt: skip
    top.add_argument("--concept", nargs="+", help="only these")
    top.add_argument("--method", nargs="+", choices=list(METHODS), metavar="METHOD",
                     help=f"any of: {'; '.join(METHODS)}. Default: all")  # fmt: skip
    top.add_argument("--positives", nargs="+", type=int, help="default: 2 4 8 16 32")
    top.add_argument("--seeds", type=int, help=f"draws a concept and number; default: {SEEDS}")
    top.add_argument("--negatives", choices=["random", "hard", "both"], default="both",
                     help="random ones alone, ten marked hard ones besides, or both")  # fmt: skip
    top.add_argument("--scenes", type=int, default=20_000, help="default: %(default)s")
    top.add_argument("--rows", type=int, default=DILUTED_ROWS,
                     help="of a diluted collection; default: %(default)s")  # fmt: skip
    top.add_argument("--force", action="store_true", help="measure again what is named")
    top.add_argument("--quick", action="store_true",
                     help="fewer draws and concepts, smaller collections, own folder")  # fmt: skip
    top.add_argument("--out", type=Path, help="default: build/bench/learners")
    top.add_argument("--clean", action="store_true", help="remove what was measured first")
    top.add_argument("--docs", action="store_true", help="all, report: write docs/LEARNERS.md too")
    return top


def main(words: list[str] | None = None) -> int:
    args = parser().parse_args(words)
    name = "learners-quick" if args.quick else "learners"
    args.out = args.out or ROOT / "build" / "bench" / name
    args.splits = [args.split] if args.split in ("dev", "test") else ["dev", "test"]
    args.settings = {"random": [False], "hard": [True], "both": [False, True]}[args.negatives]
    args.positives = args.positives or (QUICK_POSITIVES if args.quick else POSITIVES)
    args.seeds = args.seeds or (QUICK_SEEDS if args.quick else SEEDS)
    if args.quick:
        args.rows = min(args.rows, QUICK_ROWS)
    if args.clean:
        shutil.rmtree(args.out, ignore_errors=True)
    store = Store(args.out)
    began = time.perf_counter()
    # One thread for every method: numpy, scikit-learn and torch too.
    single = threadpool_limits(1)
    try:
        if args.work in WORK:
            WORK[args.work](args, store)
        elif args.work == "all":
            run(args, store)
            for work in (sessions, labels, speed):
                work(argparse.Namespace(**vars(args)), store)
        if args.work in ("all", "run"):
            print(learner_report.summary(store.con, args.split or "all", args.data))
        if args.work in ("all", "report"):
            constants = {"logistic": LOGISTIC_C, "f1": LOGISTIC_C_F1, "svm": SVM_C}
            docs = ROOT / "docs" if args.docs else None
            learner_report.write(store.con, args.out, args.split or "test", docs, constants)
    except KeyboardInterrupt:
        print("stopped; what was measured is kept", file=sys.stderr)
        return 130
    finally:
        single.restore_original_limits()
        store.close()
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
