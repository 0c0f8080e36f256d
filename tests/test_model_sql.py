"""The SQL of a model, run by plain DuckDB, matches exactly the rows that the model matches."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from boxwood import native

World = tuple[duckdb.DuckDBPyConnection, NDArray[np.uint8]]


def table(rows: int = 3000) -> World:
    """Codes, and fine codes behind them, with many extreme values, in a table of 32 UTINYINT
    columns and one of UTINYINT[128]."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (rows, 160)).astype(np.uint8)
    codes[random.random(codes.shape) < 0.1] = 0
    codes[random.random(codes.shape) < 0.1] = 255
    con = duckdb.connect(config={"threads": 1})
    columns = {"row": pa.array(range(rows))} | {
        f"d{d:02}": pa.array(codes[:, d]) for d in range(32)
    }
    columns["fine"] = pa.FixedSizeListArray.from_arrays(pa.array(codes[:, 32:].ravel()), 128)
    con.register("arrow_codes", pa.table(columns))
    con.execute("CREATE TABLE codes AS FROM arrow_codes")
    return con, codes


@pytest.fixture(scope="module")
def world() -> World:
    return table()


def document(estimators: list[Any], threshold: int, score: Any = None) -> dict[str, Any]:
    model = {
        "boxwood_model": 1, "learner": "test", "dims": 32, "quantizer": "",
        "estimators": estimators, "threshold": threshold,
    }  # fmt: skip
    return model | ({"score": score} if score else {})


def random_terms(random: np.random.Generator, n: int, dims: int) -> list[dict[str, Any]]:
    terms = []
    for _ in range(n):
        limits = [(500, 3), (2**38 * 32 // dims, 2**30 * 32 // dims)]
        linear, square = (
            [int(x) for x in random.integers(-limit, limit + 1, dims) * (random.random(dims) < 0.5)]
            for limit in limits[random.integers(2)]
        )
        terms.append(
            {"linear": linear, "square": square, "constant": int(random.integers(-(2**20), 2**20))}
        )
    return terms


def random_model(random: np.random.Generator, most_terms: int = 3) -> dict[str, Any]:
    def box() -> list[list[int]]:
        dims = random.choice(
            32, random.choice([0, 1, 1, 2, 2, 3], p=[0.04, 0.26, 0.2, 0.2, 0.2, 0.1]), False
        )
        ranges = np.sort(random.integers(0, 256, (len(dims), 2)), axis=1)
        ranges[random.random(len(dims)) < 0.2, 0] = 0
        ranges[random.random(len(dims)) < 0.2, 1] = 255
        if random.random() < 0.1:
            ranges[:, 1] = ranges[:, 0]
        return [[int(d), int(lo), int(hi)] for d, (lo, hi) in zip(dims, ranges, strict=True)]

    estimators = [
        [box() for _ in range(random.integers(0, 4))]
        for _ in range(random.choice([0, 1, 2, 3, 9, 40]))
    ]
    score = None
    if random.random() < 0.6:
        score = {
            "terms": random_terms(random, int(random.integers(1, most_terms + 1)), 32),
            "votes": int(random.choice([0, 1, -7, 2**21, 2**40])), "shift": 3, "threshold": None,
        }  # fmt: skip
    return document(estimators, int(random.integers(0, len(estimators) + 1)), score)


def evaluate(
    model: dict[str, Any], codes: NDArray[np.uint8]
) -> tuple[native.Model, NDArray[np.int64], NDArray[np.bool_]]:
    parsed = native.Model.from_json(json.dumps(model))
    return parsed, *parsed.evaluate(codes[:, :32], codes[:, 32:] if "fine" in model else None)[1:]


def check(con: duckdb.DuckDBPyConnection, codes: NDArray[np.uint8], model: dict[str, Any]) -> int:
    parsed, _, match = evaluate(model, codes)
    sql = parsed.to_sql()
    # AND row >= 0: the expression stands beside others without parentheses of the caller's
    rows = con.execute(f"SELECT row FROM codes WHERE row >= 0 AND {sql} ORDER BY row").fetchnumpy()
    expected = np.flatnonzero(match)
    assert rows["row"].tolist() == expected.tolist(), sql[:2000]
    return len(expected)


@pytest.mark.parametrize("block", range(4))
def test_random_models(world: World, block: int) -> None:
    con, codes = world
    random = np.random.default_rng(block)
    some = 0
    for _ in range(60):
        model = random_model(random)
        if "score" in model:
            scores = evaluate(model, codes)[1]
            thresholds = [*random.choice(scores, 2), -(2**63), 2**63 - 1, 2**53, -(2**53)]
            for threshold in thresholds:
                model["score"]["threshold"] = int(threshold)
                some += 0 < check(con, codes, model) < len(codes)
        else:
            some += 0 < check(con, codes, model) < len(codes)
    assert some > 20


def test_fine_scores() -> None:
    con, codes = table(500)  # the SQL of 128 values is slow
    random = np.random.default_rng(7)
    some = 0
    for round in range(30):
        model = random_model(random)
        if round % 3 == 0:
            model |= {"estimators": [], "threshold": 0}
            model.pop("score", None)
        if "score" in model:
            model["score"]["threshold"] = int(np.quantile(evaluate(model, codes)[1], 0.3))
        model["fine"] = {
            "quantizer": "", "terms": random_terms(random, int(random.integers(1, 4)), 128),
            "shift": 5, "threshold": None,
        }  # fmt: skip
        check(con, codes, model)
        scores = evaluate(model, codes)[1]
        for threshold in (*random.choice(scores, 2), -(2**63), 2**63 - 1):
            model["fine"]["threshold"] = int(threshold)
            some += 0 < check(con, codes, model) < len(codes)
    assert some > 20


def test_extreme_scores(world: World) -> None:
    con, codes = world
    term = {"linear": [2**38] * 32, "square": [2**30] * 32, "constant": 2**51}
    model = document(
        [[[]]] * 1024, 0, {"terms": [term], "votes": 2**40, "shift": 40, "threshold": 0}
    )
    scores = evaluate(model, codes)[1]
    model["score"]["threshold"] = int(np.median(scores))
    assert check(con, codes, model) == len(codes) // 2
    for name in ("linear", "square"):
        term[name] = [-x for x in term[name]]
    model["score"]["threshold"] = int(np.median(-scores))
    check(con, codes, model)
    fine = {"linear": [2**36] * 128, "square": [2**28] * 128, "constant": 2**51}
    model["fine"] = {"terms": [fine], "shift": 0, "threshold": 0}
    model["score"]["threshold"] = None
    model["fine"]["threshold"] = int(np.median(evaluate(model, codes)[1]))
    assert check(con, codes, model) == len(codes) // 2


def test_sqlite_agrees(world: World) -> None:
    """The text is plain SQL: another engine gives the same rows."""
    codes = world[1][:500, :32]
    names = [f"d{d:02}" for d in range(32)]
    random = np.random.default_rng(5)
    with closing(sqlite3.connect(":memory:")) as con:
        con.execute(f"CREATE TABLE codes ({', '.join(f'{name} INTEGER' for name in names)})")
        con.executemany(f"INSERT INTO codes VALUES ({', '.join('?' * 32)})", codes.tolist())
        for _ in range(40):
            model = random_model(random, most_terms=1)  # SQLite has no greatest
            parsed = native.Model.from_json(json.dumps(model))
            if "score" in model:
                model["score"]["threshold"] = int(np.median(parsed.evaluate(codes)[1]))
                parsed = native.Model.from_json(json.dumps(model))
            rows = con.execute(f"SELECT rowid - 1 FROM codes WHERE {parsed.to_sql()} ORDER BY 1")
            assert [row for (row,) in rows] == np.flatnonzero(parsed.evaluate(codes)[2]).tolist()


@pytest.mark.parametrize(
    ("estimators", "boxes", "threshold"),
    [(1024, 10, 513), (1, 3000, 1), (1024, 1, 1), (1024, 1, 1024)],
)
def test_long_chains(estimators: int, boxes: int, threshold: int) -> None:
    """DuckDB limits the depth of expressions: long chains are written in groups."""
    con, codes = table(300)
    random = np.random.default_rng(1)
    model = document(
        [
            [
                [[int(d), int(lo), int(lo) + 20]]
                for d, lo in random.integers(0, [32, 230], (boxes, 2))
            ]
            for _ in range(estimators)
        ],
        threshold,
    )
    if threshold == estimators > 1:
        model["estimators"] = [[[[e % 32, 0, 254]]] for e in range(estimators)]
    check(con, codes, model)
