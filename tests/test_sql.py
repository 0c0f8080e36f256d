"""The DuckDB extension and the macros, against DuckDB's own answers over the codes table.

Golden files: sql/*.sql are run statement by statement, in Python and in the DuckDB shell, and their
results compared with sql/*.out (BOXWOOD_WRITE_GOLDEN=1 writes them anew).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from boxwood import native

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "sql"
MACROS = (ROOT / "sql" / "macros.sql").read_text(encoding="utf-8")
SCHEMA = (ROOT / "sql" / "schema.sql").read_text(encoding="utf-8")
SHELL = (ROOT / "sql" / "shell.sql").read_text(encoding="utf-8")

UUID = uuid.UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
PRINTS = native.Fingerprints(encoder="encoder-1", head="head-1", quantizer="quantizer-1")
COLUMNS = [f"d{d:02d}" for d in range(32)]
CODE = "[" + ", ".join(COLUMNS) + "]"


def connect(database: str | Path = ":memory:", **options: Any) -> duckdb.DuckDBPyConnection:
    # The second setting: a file that DuckDB 2.0 makes can be read by the shell, which is 1.5.
    config = {"allow_unsigned_extensions": "true", "storage_compatibility_version": "v1.5.0"}
    con = duckdb.connect(str(database), config=config, **options)
    con.execute(f"LOAD '{native.extension_path()}'")
    return con


def write_index(
    folder: Path, ids: np.ndarray, codes: np.ndarray, segments: int = 1, generation: int = 1,
    fine: np.ndarray | None = None,
) -> str:  # fmt: skip
    """Writes an index of the rows, dealt out to segments. Returns the folder."""
    prints = PRINTS if fine is None else PRINTS._replace(fine="fine-1")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, part in enumerate(np.array_split(np.arange(len(ids)), segments)):
        if len(part):
            names.append(f"{generation}-{number}.segment")
            native.write_segment(
                folder, names[-1], ids[part], codes[part], UUID, generation, prints,
                fine=None if fine is None else fine[part],
            )  # fmt: skip
    native.write_manifest(folder, UUID, generation, names, prints)
    return str(folder)


def codes_table(con: duckdb.DuckDBPyConnection, ids: np.ndarray, codes: np.ndarray) -> None:
    """Makes the tables codes(id, d00 .. d31) and lists(id, code)."""
    table = pa.table({"id": ids, **{name: codes[:, d] for d, name in enumerate(COLUMNS)}})
    con.register("arrow_codes", table)
    con.execute("CREATE OR REPLACE TABLE codes AS SELECT * FROM arrow_codes")
    con.unregister("arrow_codes")
    con.execute(f"CREATE OR REPLACE TABLE lists AS SELECT id, {CODE} AS code FROM codes")


def collection_codes(con: duckdb.DuckDBPyConnection, name: str, generation: int = 1) -> None:
    """The codes table of a collection from `codes`, all of it in the index of this generation."""
    con.execute(
        f"CREATE TABLE boxwood.{name}_codes AS SELECT id, {generation}::BIGINT AS generation,"
        " * EXCLUDE (id) FROM codes"
    )
    con.execute("INSERT INTO boxwood.indexes VALUES (?, ?, 0)", [name, generation])


# --- golden files ---------------------------------------------------------------------------------

MODEL = json.dumps(
    {
        "boxwood_model": 1,
        "learner": "branch",
        "dims": 32,
        "quantizer": "",
        "estimators": [[[[3, 12, 180], [7, 0, 99]], [[1, 5, 60]]], [[[3, 20, 90]]]],
        "threshold": 1,
        "score": {
            "terms": [{"linear": [1, -2] + [0] * 30, "square": [0] * 31 + [-1], "constant": -7}],
            "votes": 100_000,
            "shift": 3,
            "threshold": None,
        },
    },
    separators=(",", ":"),
)


@dataclass
class Store:
    """A database file with a collection `photos` and its index, and one empty index."""

    database: Path
    index: str
    empty: str

    def prelude(self) -> str:
        return (
            f"SET VARIABLE ix = '{self.index}'; SET VARIABLE empty = '{self.empty}';"
            f"SET VARIABLE m = '{MODEL}';"
        )


def golden_rows() -> tuple[np.ndarray, np.ndarray]:
    """600 rows in which 16 neighbours are alike, by a formula."""
    i, d = np.arange(600)[:, None], np.arange(32)[None, :]
    codes = (i // 16 * (7 + 3 * d)) % 200 + (i * 13 + d * 17) % 40
    return np.arange(600, dtype=np.int64) * 5, codes.astype(np.uint8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("golden")
    database = folder / "photos.duckdb"
    ids, codes = golden_rows()
    con = connect(database)
    con.execute(SCHEMA)
    con.execute(
        "INSERT INTO boxwood.collections (name, uuid, generation, table_name, id_column, created,"
        " encoder_fingerprint, head_fingerprint, quantizer_fingerprint)"
        " VALUES ('photos', ?, 1, 'photos', 'id', TIMESTAMP '2024-01-01', '', '', '')",
        [str(UUID)],
    )
    phrases = {"a leopard": codes[17], "a lion": codes[18], "a red bus": codes[400]}
    for text, code in phrases.items():
        con.execute(
            "INSERT INTO boxwood.texts VALUES ('photos', ?, ?, NULL, '')", [text, code.tolist()]
        )
    codes_table(con, ids, codes)
    collection_codes(con, "photos")
    con.execute(
        "CREATE TABLE photos AS SELECT id, 'image-' || id || '.jpg' AS uri,"
        " ['A', 'B', 'C'][1 + id % 3] AS camera FROM codes"
    )
    con.close()
    index = write_index(Path(f"{database}.boxwood") / str(UUID), ids, codes, segments=2)
    empty = write_index(folder / "empty", ids[:0], codes[:0])
    return Store(database, index, empty)


@pytest.fixture
def golden(store: Store) -> Iterator[duckdb.DuckDBPyConnection]:
    """As the shell does it: shell.sql's clip_text, read-only."""
    con = connect(store.database, read_only=True)
    con.execute(MACROS)
    con.execute(SHELL)
    con.execute(store.prelude())
    yield con
    con.close()


def as_text(value: Any) -> str:
    if value is None:
        return "NULL"
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_statements(con: duckdb.DuckDBPyConnection, script: str) -> list[list[list[str]]]:
    """Header and rows of each statement that gives rows."""
    results = []
    for statement in con.extract_statements(script):
        kind = statement.type.name
        result = con.execute(statement.query)
        if kind in ("SELECT", "EXECUTE"):
            header = [column[0] for column in result.description]
            rows = [[as_text(value) for value in row] for row in result.fetchall()]
            results.append([header, *rows])
    return results


def run_failing(con: duckdb.DuckDBPyConnection, script: str, folder: str) -> str:
    lines = []
    for statement in con.extract_statements(script):
        query = " ".join(statement.query.split("*/")[-1].split())
        query = query[query.index("FROM") :] if query.startswith("--") else query
        lines.append(query.rstrip(";"))
        try:
            con.execute(statement.query).fetchall()
            lines.append("    no error")
        except duckdb.Error as error:
            message = str(error).split("\n\nLINE")[0].replace(folder, "<folder>")
            lines.append("    " + message.replace("\n", "\n    "))
    return "\n".join(lines) + "\n"


def expected(name: str, actual: str) -> str:
    path = GOLDEN / f"{name}.out"
    if os.environ.get("BOXWOOD_WRITE_GOLDEN"):
        path.write_text(actual, encoding="utf-8")
    return path.read_text(encoding="utf-8")


def as_csv(results: list[list[list[str]]]) -> str:
    blocks = []
    for result in results:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(result)
        blocks.append(buffer.getvalue())
    return "\n".join(blocks)


@pytest.mark.parametrize("name", ["functions", "training", "macros"])
def test_golden(golden: duckdb.DuckDBPyConnection, name: str) -> None:
    script = (GOLDEN / f"{name}.sql").read_text(encoding="utf-8")
    actual = as_csv(run_statements(golden, script))
    assert actual == expected(name, actual)


def test_golden_errors(golden: duckdb.DuckDBPyConnection, store: Store) -> None:
    script = (GOLDEN / "errors.sql").read_text(encoding="utf-8")
    actual = run_failing(golden, script, str(store.database.parent))
    assert "no error" not in actual
    assert actual == expected("errors", actual)


def shell() -> str:
    beside = Path(sys.executable).with_name("duckdb")
    found = str(beside) if beside.exists() else shutil.which("duckdb")
    if found is None:
        pytest.skip("needs the DuckDB shell: pip install duckdb-cli")
    return found


def run_shell(database: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [shell(), "-unsigned", "-readonly", "-csv", "-nullvalue", "NULL", str(database)],
        input=script, capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip


def load_in_shell() -> str:
    return (
        f"LOAD '{native.extension_path()}';\n"
        f".read '{ROOT / 'sql' / 'macros.sql'}'\n.read '{ROOT / 'sql' / 'shell.sql'}'\n"
    )


@pytest.mark.parametrize("name", ["functions", "training", "macros"])
def test_golden_in_the_shell(store: Store, name: str) -> None:
    script = (GOLDEN / f"{name}.sql").read_text(encoding="utf-8")
    done = run_shell(store.database, load_in_shell() + store.prelude() + "\n" + script)
    assert done.stderr == ""
    actual = [row for row in csv.reader(io.StringIO(done.stdout)) if row]
    wanted = (GOLDEN / f"{name}.out").read_text(encoding="utf-8")
    assert actual == [row for row in csv.reader(io.StringIO(wanted)) if row]


def test_shell_names_what_is_missing(store: Store) -> None:
    done = run_shell(
        store.database,
        load_in_shell() + "FROM search_text('photos', 'a leopart');\nFROM search_like('foto', 5);",
    )
    assert "'a leopard', 'a lion', 'a red bus'" in done.stderr
    assert "there is no collection 'foto'; there are: photos" in done.stderr


# --- whether an index is that of its rows ---------------------------------------------------------

OTHER = uuid.UUID("00000000-0000-4000-8000-000000000000")


def test_check_says_what_is_wrong_with_an_index(tmp_path: Path) -> None:
    ids, codes = golden_rows()
    index = write_index(tmp_path / "index", ids, codes, generation=3)
    missing, broken = str(tmp_path / "missing"), tmp_path / "broken"
    write_index(broken, ids, codes)
    (broken / "MANIFEST").write_bytes(b"x" * 1000)
    con = connect()

    def problem(folder: Any, owner: Any, generation: Any) -> Any:
        found = con.execute("SELECT boxwood_check(?, ?, ?)", [folder, owner, generation])
        return found.fetchall()[0][0]

    assert problem(index, str(UUID), 3) is None
    assert problem(index, str(UUID), 2) is None  # it may have more than is known to be in it
    assert problem(index, str(UUID), -1) is None
    assert problem(index, str(UUID).upper(), 3) is None
    assert problem(index, str(UUID), 4) == (
        f"the index in '{index}' is older than the rows (generation 3 of 4)"
    )
    for owner in (str(OTHER), "", str(UUID) + "0"):
        foreign = problem(index, owner, 3)
        assert foreign == f"the index in '{index}' belongs to another collection"
    assert problem(missing, str(UUID), 3) == f"there is no Boxwood index at '{missing}'"
    assert problem(str(broken), str(UUID), 1) == f"manifest of '{broken}': this is not a manifest"
    assert problem(index + "\0", str(UUID), 3) == "index is not the path of an index folder"
    for pad in range(9):  # long paths are cut, never inside a character
        assert problem("x" * pad + "ä日𝕏" * 300, str(UUID), 3).startswith("cannot read '")
        long = tmp_path / ("x" * pad) / ("ä日𝕏" * 25) / ("ä日𝕏" * 25)
        write_index(long, ids[:10], codes[:10])
        assert problem(str(long), str(OTHER), 1).endswith("' belongs to another collection")
    for arguments in ((None, "", 1), (index, None, 1), (index, str(UUID), None)):
        assert problem(*arguments) is None

    rows = con.execute(
        "SELECT boxwood_check(ix, ?, g) IS NULL FROM (SELECT CASE i % 2 WHEN 0 THEN ? ELSE ? END"
        " AS ix, CASE i % 3 WHEN 0 THEN 3 ELSE 4 END AS g FROM range(3000) r(i)) ",
        [str(UUID), index, missing],
    ).fetchall()
    assert [row[0] for row in rows] == [i % 6 == 0 for i in range(3000)]


@dataclass
class Case:
    """What befalls an index, and what SQL then says."""

    name: str
    message: str


CASES = [
    Case("stale", "is older than the rows (generation 1 of 2)"),
    Case("foreign", "belongs to another collection"),
    Case("missing", "there is no Boxwood index at"),
    Case("damaged", "this is not a manifest"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def spoilt(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the database whose index is not that of its rows, and the message's middle."""
    case: Case = request.param
    database = tmp_path / "photos.duckdb"
    shutil.copy(store.database, database)
    folder = Path(f"{database}.boxwood") / str(UUID)
    if case.name != "missing":
        shutil.copytree(store.index, folder)
    con = connect(database)
    if case.name == "stale":
        con.execute("UPDATE boxwood.indexes SET generation = 2")
    if case.name == "damaged":
        (folder / "MANIFEST").write_bytes(b"x" * 1000)
    if case.name == "foreign":
        native.write_manifest(folder, OTHER, 1, [], PRINTS)
    con.execute(  # a sound one beside it
        "INSERT INTO boxwood.collections (name, uuid, generation, id_column, created,"
        " encoder_fingerprint, head_fingerprint, quantizer_fingerprint, folder)"
        " VALUES ('sound', ?, 1, 'id', TIMESTAMP '2024-01-01', '', '', '', ?)",
        [str(UUID).upper(), store.index],
    )
    collection_codes(con, "sound")
    con.close()
    return database, case.message


MACRO_CALLS = [
    "FROM search_text('photos', 'a lion')",
    "FROM search_like('photos', 0)",
    "FROM refine('photos', positives := [0])",
    "FROM train_model('photos', text := 'a lion')",
    "FROM search_model('photos', getvariable('m'))",
    "FROM search_model('photos', getvariable('m')) LIMIT 1",
    "FROM count_model('photos', getvariable('m'))",
]


def test_macros_refuse_an_index_that_is_not_of_its_rows(spoilt: tuple[Path, str]) -> None:
    database, message = spoilt
    con = connect(database, read_only=True)
    con.execute(MACROS)
    con.execute(SHELL)
    con.execute("SET VARIABLE m = ?", [MODEL])
    for call in MACRO_CALLS:
        with pytest.raises(duckdb.Error, match=re.escape(message)) as caught:
            con.execute(call).fetchall()
        assert str(caught.value).count("boxwood repair") == 1
    assert con.execute("SELECT count(*) FROM search_like('sound', 0)").fetchall() == [(60,)]
    con.close()


def test_the_shell_refuses_an_index_that_is_not_of_its_rows(spoilt: tuple[Path, str]) -> None:
    database, message = spoilt
    script = f"SET VARIABLE m = '{MODEL}';\n" + ";\n".join(MACRO_CALLS)
    script += ";\nSELECT count(*) AS n FROM search_like('sound', 0);\n"
    done = run_shell(database, load_in_shell() + script)
    assert done.stderr.count(message) == len(MACRO_CALLS)
    assert done.stderr.count("boxwood repair") == len(MACRO_CALLS)
    assert [row for row in csv.reader(io.StringIO(done.stdout)) if row] == [["n"], ["60"]]


def test_path_of_a_collection(store: Store) -> None:
    con = connect(store.database, read_only=True)
    con.execute(MACROS)
    con.execute("SET VARIABLE boxwood_index = MAP {'photos': ?}", [store.index])
    con.execute("SET VARIABLE boxwood_names = 'photos'")
    assert con.execute("SELECT boxwood_path('photos')").fetchall() == [(store.index,)]
    for name, shown in (("'nobody'", "'nobody'"), ("NULL", "NULL")):
        with pytest.raises(duckdb.Error, match=f"no collection {shown}; there are: photos"):
            con.execute(f"SELECT boxwood_path({name})").fetchall()
    con.close()


# --- equality with DuckDB's own WHERE -------------------------------------------------------------


def random_codes(rng: np.random.Generator, n: int) -> np.ndarray:
    """Clusters, as embeddings have them, and some dimensions with few values."""
    centres = rng.normal(128, 45, (12, 32))
    codes = centres[rng.integers(0, 12, n)] + rng.normal(0, rng.uniform(4, 30), (n, 32))
    codes[:, 30] = rng.integers(0, 3, n)
    codes[:, 31] = 255 * rng.integers(0, 2, n)
    return np.clip(codes, 0, 255).astype(np.uint8)


def random_box(rng: np.random.Generator, codes: np.ndarray) -> list[list[int]]:
    dims = np.sort(rng.choice(32, rng.integers(0, 7) if rng.random() < 0.1 else rng.integers(1, 7),
                              replace=False))  # fmt: skip
    centre = codes[rng.integers(len(codes))] if len(codes) else rng.integers(0, 256, 32)
    box = []
    for d in dims:
        below, above = rng.integers(0, 60, 2).tolist()
        lo, hi = max(0, int(centre[d]) - below), min(255, int(centre[d]) + above)
        box.append([int(d), 0 if rng.random() < 0.2 else lo, 255 if rng.random() < 0.2 else hi])
    return box


def random_model(rng: np.random.Generator, codes: np.ndarray) -> dict[str, Any]:
    estimators = [
        [random_box(rng, codes) for _ in range(rng.integers(0 if rng.random() < 0.2 else 1, 4))]
        for _ in range(rng.choice([1, 2, 3, 7, 25]))
    ]
    model: dict[str, Any] = {
        "boxwood_model": 1,
        "learner": "random",
        "dims": 32,
        "quantizer": PRINTS.quantizer if rng.random() < 0.5 else "",
        "estimators": estimators,
        "threshold": int(rng.integers(0, max(2, len(estimators) // 3 + 1))),
    }
    if rng.random() < 0.7:
        terms = [
            {
                "linear": rng.integers(-(2**30), 2**30, 32).tolist(),
                "square": rng.integers(-(2**20), 2**20, 32).tolist(),
                "constant": int(rng.integers(-(2**40), 2**40)),
            }
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        score: dict[str, Any] = {
            "terms": terms,
            "votes": int(rng.integers(0, 2**38)),
            "shift": int(rng.choice([0, 1, 21, 40])),
            "threshold": None,
        }
        model["score"] = score
        if len(codes) and rng.random() < 0.5:
            score["threshold"] = int(np.quantile(scores_of(model, codes), rng.random()))
    return model


def votes_of(model: dict[str, Any], codes: np.ndarray) -> np.ndarray:
    votes = np.zeros(len(codes), np.int64)
    for estimator in model["estimators"]:
        inside = np.zeros(len(codes), bool)
        for box in estimator:
            rows = np.ones(len(codes), bool)
            for d, lo, hi in box:
                rows &= (codes[:, d] >= lo) & (codes[:, d] <= hi)
            inside |= rows
        votes += inside
    return votes


def scores_of(model: dict[str, Any], codes: np.ndarray) -> np.ndarray:
    votes, score, x = votes_of(model, codes), model.get("score"), codes.astype(np.int64)
    if score is None:
        return votes
    values = [
        term["constant"]
        + ((np.array(term["linear"]) + np.array(term["square"]) * x) * x).sum(axis=1)
        for term in score["terms"]
    ]
    return votes * score["votes"] + np.max(values, axis=0)


@pytest.mark.parametrize("seed", range(14))
def test_search_equals_where(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = [0, 1, 255, 256, 257, 4096, 5000, 33000, 300, 1000, 2000, 3000, 700, 70000][seed]
    codes = random_codes(rng, n)
    ids = rng.choice(3 * n + 1, n, replace=False).astype(np.int64)
    index = write_index(tmp_path / "index", ids, codes, segments=int(rng.integers(1, 4)))
    con = connect()
    codes_table(con, ids, codes)
    for _ in range(6):
        model = random_model(rng, codes)
        text = json.dumps(model)
        where = con.execute("SELECT boxwood_sql(?)", [text]).fetchall()[0][0]
        wanted = con.execute(
            "SELECT id, boxwood_votes(?, code) FROM lists WHERE id IN "
            f"(SELECT id FROM codes WHERE {where}) ORDER BY id", [text],
        ).fetchall()  # fmt: skip
        found = con.execute(
            "SELECT id, votes, score FROM boxwood_search(?, model := ?) ORDER BY id", [index, text]
        ).fetchall()
        assert [row[:2] for row in found] == wanted

        order = np.argsort(ids)
        votes, scores = votes_of(model, codes), scores_of(model, codes)
        score = model.get("score") or {}
        matching = votes >= model["threshold"]
        if score.get("threshold") is not None:
            matching &= scores >= score["threshold"]
        chosen = order[matching[order]]
        assert [row[0] for row in found] == ids[chosen].tolist()
        assert [row[1] for row in found] == votes[chosen].tolist()
        unit = 2.0 ** -score.get("shift", 0)
        assert [row[2] for row in found] == (scores[chosen] * unit).tolist()
        given = con.execute("SELECT boxwood_score(?, code) FROM lists ORDER BY id", [text])
        assert [row[0] for row in given.fetchall()] == (scores[order] * unit).tolist()

        counted = con.execute("FROM boxwood_count(?, model := ?)", [index, text]).fetchall()
        assert len(counted) == 1
        count, rows, blocks, pruned, outscored, contained, planes, scanned, *rest = counted[0]
        fine_rows, _, milliseconds = rest
        assert (count, rows, fine_rows) == (len(wanted), n, 0)
        assert outscored <= pruned
        settled = pruned + contained + scanned
        assert settled <= blocks <= settled + planes
        assert milliseconds >= 0
        in_search = con.execute(
            "SELECT count(*) FROM boxwood_search(?, model := ?)", [index, text]
        ).fetchall()
        assert in_search == [(count,)]

        boxes = con.execute("FROM boxwood_boxes(?)", [text]).fetchall()
        assert boxes == [
            (e, b, *sides)
            for e, estimator in enumerate(model["estimators"])
            for b, box in enumerate(estimator)
            for sides in box
        ]
        explained = con.execute(
            "SELECT estimator, box, ranges, rows, complete FROM boxwood_explain(?, model := ?)",
            [index, text],
        ).fetchall()
        singles = [
            (e, b, len(box), int(votes_of({"estimators": [[box]]}, codes).sum()), True)
            for e, estimator in enumerate(model["estimators"])
            for b, box in enumerate(estimator)
        ]
        whole = (None, None, len(boxes), len(wanted), True)
        assert explained == [whole, *singles]


def fine_model(rng: np.random.Generator, codes: np.ndarray, fine: np.ndarray) -> dict[str, Any]:
    """Scores of both codes that fall from a row's, cut so that some rows pass; boxes or none."""

    def terms(rows: np.ndarray) -> list[dict[str, Any]]:
        made = []
        for row in rows[rng.integers(0, len(rows), rng.integers(1, 4))].astype(int):
            weights = rng.integers(0, 60, len(row)) * int(rng.choice([1, 1000]))
            made.append(
                {"linear": (2 * weights * row).tolist(), "square": (-weights).tolist(),
                 "constant": int(-(weights * row * row).sum())}
            )  # fmt: skip
        return made

    model = random_model(rng, codes) if rng.random() < 0.5 else {
        "boxwood_model": 1, "learner": "cover", "dims": 32, "estimators": [], "threshold": 0,
    }  # fmt: skip
    model["score"] = {"terms": terms(codes), "votes": int(rng.choice([0, 5000])), "shift": 3,
                      "threshold": None}  # fmt: skip
    model["score"]["threshold"] = int(np.quantile(scores_of(model, codes), rng.random()))
    model["fine"] = {"quantizer": "fine-1", "terms": terms(fine), "shift": 7, "threshold": None}
    if rng.random() < 0.8:
        values = native.Model.from_json(json.dumps(model)).evaluate(codes, fine)[1]
        model["fine"]["threshold"] = int(np.quantile(values, rng.random()))
    return model


@pytest.mark.parametrize("seed", range(6))
def test_fine_search_equals_where(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    n = [1, 257, 2500, 1500, 9000, 4000][seed]  # the plain SQL of 128 values takes the time
    codes = random_codes(rng, n)
    fine = np.tile(codes, 4) ^ rng.integers(0, 8, (n, 128)).astype(np.uint8)
    ids = rng.choice(3 * n, n, replace=False).astype(np.int64)
    index = write_index(tmp_path / "index", ids, codes, int(rng.integers(1, 4)), fine=fine)
    con = connect()
    codes_table(con, ids, codes)
    column = pa.FixedSizeListArray.from_arrays(pa.array(fine.ravel()), 128)
    con.register("arrow_fine", pa.table({"id": ids, "fine": column}))
    con.execute("CREATE TABLE fines AS FROM codes JOIN arrow_fine USING (id) JOIN lists USING (id)")
    for _ in range(6):
        text = json.dumps(fine_model(rng, codes, fine))
        where = con.execute("SELECT boxwood_sql(?)", [text]).fetchall()[0][0]
        wanted = con.execute(
            "SELECT id, boxwood_votes(?, code), boxwood_score(?, code, fine) FROM fines "
            f"WHERE {where} ORDER BY id", [text, text],
        ).fetchall()  # fmt: skip
        found = con.execute(
            "SELECT id, votes, score FROM boxwood_search(?, model := ?) ORDER BY id", [index, text]
        ).fetchall()
        assert found == wanted
        votes_alone = con.execute(
            "SELECT id, votes FROM boxwood_search(?, model := ?) ORDER BY id", [index, text]
        ).fetchall()
        assert votes_alone == [row[:2] for row in wanted]
        count, fine_rows, pruned, outscored = con.execute(
            "SELECT count, fine_rows, blocks_pruned, blocks_outscored "
            "FROM boxwood_count(?, model := ?)", [index, text],
        ).fetchall()[0]  # fmt: skip
        assert count == len(wanted)
        assert count <= fine_rows <= n or json.loads(text)["fine"]["threshold"] is None
        assert outscored <= pruned
        rows, explained, complete = con.execute(
            "SELECT rows, fine_rows, complete FROM boxwood_explain(?, model := ?) "
            "WHERE estimator IS NULL", [index, text],
        ).fetchall()[0]  # fmt: skip
        assert (rows, explained, complete) == (count, fine_rows, True)

        code = codes[int(rng.integers(n))].tolist()
        listed = ids[: n // 2].tolist()
        near = con.execute(
            "SELECT id, distance FROM boxwood_knn(?, q := ?, k := 20, within := ?, ids := ?)",
            [index, code, text, listed],
        ).fetchall()
        truth = con.execute(
            "SELECT id, boxwood_distance(code, ?::UTINYINT[]) AS distance FROM fines "
            "WHERE id IN (SELECT unnest(?)) AND id IN (SELECT unnest(?)) "
            "ORDER BY distance, id LIMIT 20", [code, listed, [row[0] for row in wanted]],
        ).fetchall()  # fmt: skip
        assert near == truth
        everywhere = con.execute(
            "SELECT count(*) FROM boxwood_knn(?, q := ?, k := 1000, within := ?)",
            [index, code, text],
        ).fetchall()
        assert everywhere == [(min(1000, count),)]


def test_a_fine_score_needs_its_fine_codes(tmp_path: Path, store: Store) -> None:
    rng = np.random.default_rng(9)
    codes = random_codes(rng, 300)
    fine = np.tile(codes, 4)
    model = fine_model(rng, codes, fine)
    text = json.dumps(model)
    con = connect()
    with pytest.raises(duckdb.Error, match="fine score, but the index holds no fine codes"):
        con.execute("FROM boxwood_search(?, model := ?)", [store.index, text])
    other = json.dumps({**model, "quantizer": "", "fine": {**model["fine"], "quantizer": "fine-2"}})
    index = write_index(tmp_path / "index", np.arange(300), codes, fine=fine)
    for statement in ("FROM boxwood_search(?, model := ?)", "FROM boxwood_count(?, model := ?)",
                      "FROM boxwood_explain(?, model := ?)"):  # fmt: skip
        with pytest.raises(duckdb.Error, match=r'fine codes of "fine-2".*fine codes of "fine-1"'):
            con.execute(statement, [index, other]).fetchall()
    code = "list_resize([1::UTINYINT], 32, 1)"
    for arguments, message in (
        (f"?, {code}", "fine codes, 128 bytes each"),
        (f"?, {code}, {code}", "a list has 32 values: a fine code has 128"),
        (f"?, {code}, list_resize([1::UTINYINT], 128, NULL)", "a fine code has a NULL at place 2"),
    ):
        with pytest.raises(duckdb.Error, match=message):
            con.execute(f"SELECT boxwood_score({arguments})", [text]).fetchall()
    second = "list_resize([1::UTINYINT], 128, 1)"
    row = con.execute(
        f"SELECT boxwood_score(NULL, {code}), boxwood_score(?, NULL, {second}), "
        f"boxwood_score(?, {code}, NULL), boxwood_votes(?, {code}) IS NULL", [text, text, text],
    ).fetchall()  # fmt: skip
    assert row == [(None, None, None, False)]


@pytest.mark.parametrize("seed", range(6))
def test_knn_equals_order_by(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    n = [1, 60, 257, 3000, 9000, 5000][seed]
    codes = random_codes(rng, n) if seed < 4 else rng.integers(0, 4, (n, 32)).astype(np.uint8)
    ids = rng.choice(3 * n, n, replace=False).astype(np.int64)
    index = write_index(tmp_path / "index", ids, codes, segments=1 + seed % 3)
    con = connect()
    codes_table(con, ids, codes)
    for k in (1, 2, 60, 10000):
        row = int(rng.integers(n))
        near = rng.integers(0, 256, 32) if rng.random() < 0.5 else codes[row]
        wanted = con.execute(
            "SELECT id, boxwood_distance(code, ?::UTINYINT[]) AS d FROM lists ORDER BY d, id"
            f" LIMIT {k}", [near.tolist()],
        ).fetchall()  # fmt: skip
        by_code = con.execute(
            "FROM boxwood_knn(?, q := ?, k := ?)", [index, near.tolist(), k]
        ).fetchall()
        assert by_code == wanted
        in_list = con.execute(
            "SELECT boxwood_knn_list(?, ?::UTINYINT[], ?)", [index, near.tolist(), k]
        ).fetchall()[0][0]
        assert [(hit["id"], hit["distance"]) for hit in in_list] == wanted
        nearly = con.execute(
            "FROM boxwood_knn(?, q := ?, k := ?, recall := 0.9)", [index, near.tolist(), k]
        ).fetchall()
        assert len(nearly) == len(wanted)
        assert nearly == sorted(nearly, key=lambda hit: hit[::-1])
        true = dict(con.execute(
            "SELECT id, boxwood_distance(code, ?::UTINYINT[]) FROM lists", [near.tolist()]
        ).fetchall())  # fmt: skip
        assert all(true.pop(number) == distance for number, distance in nearly)
        in_list = con.execute(
            "SELECT boxwood_knn_list(?, ?::UTINYINT[], ?, 0.9)", [index, near.tolist(), k]
        ).fetchall()[0][0]
        assert [(hit["id"], hit["distance"]) for hit in in_list] == nearly
        among = ids[rng.random(n) < 0.3].tolist()
        assert con.execute(
            "FROM boxwood_knn(?, q := ?, k := ?, ids := ?)", [index, near.tolist(), k, among]
        ).fetchall() == con.execute(
            "SELECT id, boxwood_distance(code, ?::UTINYINT[]) AS d FROM lists"
            f" WHERE list_contains(?, id) ORDER BY d, id LIMIT {k}", [near.tolist(), among],
        ).fetchall()  # fmt: skip

        by_id = con.execute("FROM boxwood_knn(?, like := ?, k := ?)", [index, int(ids[row]), k])
        distances = np.sqrt(((codes.astype(float) - codes[row]) ** 2).sum(axis=1))
        order = np.lexsort((ids, distances))[:k]
        assert by_id.fetchall() == list(
            zip(ids[order].tolist(), distances[order].tolist(), strict=True)
        )


@pytest.mark.parametrize("seed", range(4))
def test_range_equals_between(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    n = [1, 300, 5000, 40000][seed]
    codes, ids = random_codes(rng, n), np.arange(n, dtype=np.int64)
    index = write_index(tmp_path / "index", ids, codes, segments=1 + seed % 2)
    con = connect()
    codes_table(con, ids, codes)
    for _ in range(8):
        box = random_box(rng, codes)
        rng.shuffle(box)
        dims, lo, hi = (list(side) for side in zip(*box, strict=True)) if box else ([], [], [])
        where = " AND ".join(f"{COLUMNS[d]} BETWEEN {a} AND {b}" for d, a, b in box) or "true"
        wanted = con.execute(f"SELECT id FROM codes WHERE {where} ORDER BY id").fetchall()
        found = con.execute(
            "FROM boxwood_range(?, dims := ?, lo := ?, hi := ?) ORDER BY id", [index, dims, lo, hi]
        ).fetchall()
        assert found == wanted


# --- one larger collection ------------------------------------------------------------------------


@dataclass
class Large:
    index: str
    ids: np.ndarray
    codes: np.ndarray
    model: str


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """150,000 rows in three segments, so that several threads have several morsels."""
    rng = np.random.default_rng(5)
    n = 150_000
    codes, ids = random_codes(rng, n), rng.permutation(n).astype(np.int64) * 2
    index = write_index(tmp_path_factory.mktemp("large"), ids, codes, segments=3)
    model = {
        "boxwood_model": 1, "learner": "test", "dims": 32, "threshold": 2,
        "estimators": [[[[0, 60, 200]]], [[[1, 0, 140]], [[2, 100, 255]]], [[[5, 90, 255]]]],
    }  # fmt: skip
    return Large(index, ids, codes, json.dumps(model))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_any_number_of_threads(large: Large, threads: int) -> None:
    con = connect()
    con.execute(f"SET threads = {threads}")
    model = json.loads(large.model)
    wanted = np.sort(large.ids[votes_of(model, large.codes) >= 2]).tolist()
    for order in ("true", "false"):
        con.execute(f"SET preserve_insertion_order = {order}")
        found = con.execute(
            "SELECT id FROM boxwood_search(?, model := ?)", [large.index, large.model]
        ).fetchnumpy()["id"]
        assert np.sort(found).tolist() == wanted
    for _ in range(20):
        counts = con.execute(
            "SELECT count FROM boxwood_count(?, model := ?)", [large.index, large.model]
        ).fetchall()
        assert counts == [(len(wanted),)]


def test_projections(large: Large) -> None:
    con = connect()
    arguments = [large.index, large.model]
    every = con.execute(
        "SELECT id, votes, score FROM boxwood_search(?, model := ?) ORDER BY id", arguments
    ).fetchall()
    for columns in ("score", "votes, id", "score, votes, id", "id, id, votes + votes"):
        order = "ORDER BY id"
        found = con.execute(
            f"SELECT {columns} FROM boxwood_search(?, model := ?) {order}", arguments
        ).fetchall()
        place = {"id": 0, "votes": 1, "score": 2}
        wanted = [
            tuple(
                2 * row[1] if name == "votes + votes" else row[place[name]]
                for name in columns.split(", ")
            )
            for row in every
        ]
        assert found == wanted
    for query in (
        "SELECT count(*) FROM {}",
        "SELECT sum(1) FROM {}",
        "SELECT count(votes) FROM {}",
    ):
        found = con.execute(query.format("boxwood_search(?, model := ?)"), arguments).fetchall()
        assert found == [(len(every),)]
    limited = con.execute("SELECT id FROM boxwood_search(?, model := ?) LIMIT 7", arguments)
    assert {row[0] for row in limited.fetchall()} <= {row[0] for row in every}


def test_threads_share_one_database(large: Large) -> None:
    con = connect()
    wanted = {
        "SELECT count(*), sum(id), max(score) FROM boxwood_search($ix, model := $m)": None,
        "SELECT count FROM boxwood_count($ix, model := $m)": None,
        "SELECT sum(id), max(distance) FROM boxwood_knn($ix, like := 20, k := 500)": None,
        "SELECT count(*), sum(id), max(score) FROM boxwood_refine($ix, positives := [2, 4, 6],"
        " random_negatives := 200)": None,
        "SELECT sum(boxwood_votes($m, list_resize([i % 256]::UTINYINT[], 32, i % 200)))"
        " FROM range(5000) r(i)": None,
    }  # fmt: skip

    def ask(cursor: duckdb.DuckDBPyConnection, query: str) -> Any:
        parameters = {"ix": large.index, "m": large.model}
        used = {name: value for name, value in parameters.items() if f"${name}" in query}
        return cursor.execute(query, used).fetchall()

    wanted = {query: ask(con, query) for query in wanted}
    failures: list[str] = []

    def work(offset: int) -> None:
        cursor = con.cursor()
        queries = list(wanted)
        for turn in range(10):
            query = queries[(turn + offset) % len(queries)]
            try:
                if ask(cursor, query) != wanted[query]:
                    failures.append(query)
            except Exception as error:
                failures.append(f"{query}: {error}")

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- training -------------------------------------------------------------------------------------


REFINEMENTS = {
    "cover": "learner := 'cover', random_negatives := 900",
    "boxes": "boxes := 6",
    "query": "query := $q",
    "nearest": "guard := true, negative_weight := 4",
    "no guard": "guard := false",
    "branch": "learner := 'branch', random_negatives := 300, negative_weight := 2.5, seed := 11",
    "ensemble": "learner := 'ensemble', estimators := 9, random_negatives := 300, seed := 11",
    "paper": "learner := 'ensemble', prior := false, random_negatives := 300, seed := 11",
}


@pytest.mark.parametrize("options", REFINEMENTS.values(), ids=REFINEMENTS)
def test_refine_is_train_and_search_and_where(large: Large, options: str) -> None:
    con = connect()
    near = con.execute(
        "SELECT list(id) FROM boxwood_knn(?, like := 20, k := 12)", [large.index]
    ).fetchall()[0][0]
    arguments: dict[str, Any] = {"ix": large.index, "p": near[:8], "n": [100, 102, 104]}
    if "$q" in options:
        arguments["q"] = large.codes[0].tolist()
    options = f"positives := $p, negatives := $n, {options}"
    (row,) = con.execute(f"FROM boxwood_train($ix, {options})", arguments).fetchall()
    trained = dict(zip([column[0] for column in con.description], row, strict=True))
    model = trained["model"]
    assert json.loads(model)["learner"] == trained["learner"]
    assert (trained["positives"], trained["negatives"]) == (8, 3)
    assert trained["fallback"] == (trained["learner"] == "nearest")
    assert_an_estimate(trained)

    found = con.execute(f"FROM boxwood_refine($ix, {options}) ORDER BY id", arguments).fetchall()
    searched = con.execute(
        "FROM boxwood_search(?, model := ?) ORDER BY id", [large.index, model]
    ).fetchall()
    assert [row[:3] for row in found] == searched
    assert {row[3] for row in found} <= {trained["learner"]}
    codes_table(con, large.ids, large.codes)
    (where,) = con.execute("SELECT boxwood_sql(?)", [model]).fetchall()[0]
    wanted = con.execute(f"SELECT id FROM codes WHERE {where} ORDER BY id").fetchall()
    assert [row[:1] for row in found] == wanted
    assert {row[0] for row in found} & set(near[:8])


def assert_an_estimate(row: dict[str, Any]) -> None:
    """Of boxwood_train: shares in order, or nothing."""
    assert row["estimated_rows"] is None or row["estimated_rows"] >= 0
    for name in ("precision", "recall"):
        low, value, high = (row[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert value is None or 0 <= value <= 1
        assert (low is None) == (high is None)
        if low is not None:
            assert 0 <= low <= value <= high <= 1
    assert row["note"] is None or row["note"]
    assert row["milliseconds"] >= 0


def test_refine_with_fine_codes_and_two_kinds(tmp_path: Path) -> None:
    """The same with rerank, and with positives of two kinds, against the column `fine`."""
    rng = np.random.default_rng(5)
    ids = np.arange(3000, dtype=np.int64)
    kind = rng.integers(0, 60, len(ids))

    def rows(dims: int) -> np.ndarray:
        centres, apart = rng.normal(127, 12, (60, dims)), rng.normal(0, 15, dims)
        centres[3], centres[7] = 127 + apart, 127 - apart  # all others lie between these two
        return np.clip(rng.normal(centres[kind], 12), 0, 255).astype(np.uint8)

    codes, fine = rows(32), rows(128)
    index = write_index(tmp_path / "index", ids, codes, segments=2, fine=fine)
    con = connect()
    codes_table(con, ids, codes)
    con.register("arrow_fine", pa.table({"id": ids, "fine": pa.array(fine.tolist())}))
    con.execute(
        "CREATE OR REPLACE TABLE codes AS SELECT c.*, f.fine::UTINYINT[128] AS fine"
        " FROM codes c JOIN arrow_fine f USING (id)"
    )
    both = [*np.flatnonzero(kind == 3)[:9].tolist(), *np.flatnonzero(kind == 7)[:9].tolist()]
    one = np.flatnonzero(kind == 3)[:10].tolist()
    wrong = np.flatnonzero(kind == 5)[:4].tolist()
    terms = {}
    for positives, rerank in itertools.product((one, both), (False, True)):
        arguments = {"ix": index, "p": positives, "n": wrong, "r": rerank}
        options = "positives := $p, negatives := $n, rerank := $r, guard := false"
        model, number = con.execute(
            f"SELECT model, terms FROM boxwood_train($ix, {options})", arguments
        ).fetchall()[0]
        terms[len(positives), rerank] = number
        assert ("fine" in json.loads(model)) == rerank
        found = con.execute(
            f"SELECT id, votes, score FROM boxwood_refine($ix, {options}) ORDER BY id", arguments
        ).fetchall()
        searched = con.execute(
            "FROM boxwood_search($ix, model := $m) ORDER BY id", {"ix": index, "m": model}
        ).fetchall()
        assert found == searched
        (where,) = con.execute("SELECT boxwood_sql(?)", [model]).fetchall()[0]
        assert ("fine[" in where) == rerank
        wanted = con.execute(f"SELECT id FROM codes WHERE {where} ORDER BY id").fetchall()
        assert [row[:1] for row in found] == wanted
        assert {row[0] for row in found} & set(positives)
        scores = con.execute(
            f"SELECT boxwood_score(?, [{', '.join(COLUMNS)}], fine::UTINYINT[]) FROM codes"
            f" WHERE {where} ORDER BY id", [model],
        ).fetchall()  # fmt: skip
        assert [row[0] for row in scores] == [row[2] for row in found]
    assert terms == {(10, False): 1, (10, True): 1, (18, False): 2, (18, True): 2}

    # words alone know no fine code but the one that is given with them
    options = "query := $q, negatives := $n, rerank := true"
    arguments = {"ix": index, "q": codes[one[0]].tolist(), "n": wrong}
    with pytest.raises(duckdb.Error, match="query_fine"):
        con.execute(f"FROM boxwood_refine($ix, {options})", arguments)
    arguments["f"] = fine[one[0]].tolist()
    found = con.execute(f"FROM boxwood_refine($ix, {options}, query_fine := $f)", arguments)
    assert len({row[0] for row in found.fetchall()} & set(np.flatnonzero(kind == 3).tolist())) > 9
    con.close()


def test_a_fallback_is_told(tmp_path: Path) -> None:
    """Labels that have nothing in common: sooner or later the distance to their mean is better."""
    con = connect()
    rng = np.random.default_rng(0)
    codes = np.clip(rng.normal(127, 20, (2000, 32)), 0, 255).astype(np.uint8)
    index = write_index(tmp_path / "index", np.arange(2000, dtype=np.int64), codes)
    options = "positives := $p, guard := $g"
    for _ in range(400):
        arguments = {"ix": index, "p": rng.choice(2000, 5, replace=False).tolist(), "g": True}
        query = f"SELECT learner, fallback, note, model FROM boxwood_train($ix, {options})"
        learner, fallback, note, model = con.execute(query, arguments).fetchall()[0]
        assert learner == ("nearest" if fallback else "cover")
        if fallback:
            break
    assert fallback
    assert note
    query = f"SELECT id, votes, score, learner FROM boxwood_refine($ix, {options}) ORDER BY id"
    found = con.execute(query, arguments).fetchall()
    searched = con.execute(
        "FROM boxwood_search($ix, model := $m) ORDER BY id", {"ix": index, "m": model}
    ).fetchall()
    assert found == [(*row, "nearest") for row in searched]
    arguments["g"] = False
    assert con.execute(f"SELECT DISTINCT learner FROM boxwood_refine($ix, {options})", arguments
    ).fetchall() == [("cover",)]  # fmt: skip


def test_columns_of_a_refinement_by_themselves(large: Large) -> None:
    con = connect()
    source = "boxwood_refine($ix, positives := [20, 22], learner := 'ensemble', seed := 3)"
    arguments = {"ix": large.index}
    rows = con.execute(f"FROM {source} ORDER BY id", arguments).fetchall()
    assert len(rows) > 10
    for place, name in enumerate(("id", "votes", "score", "learner")):
        part = con.execute(f"SELECT {name} FROM {source} ORDER BY {name}", arguments).fetchall()
        assert [row[0] for row in part] == sorted(row[place] for row in rows)
    (count,) = con.execute(f"SELECT count(*) FROM {source}", arguments).fetchall()[0]
    assert count == len(rows)
    mixed = con.execute(f"SELECT learner, id, learner FROM {source} ORDER BY id", arguments)
    assert mixed.fetchall() == [("ensemble", row[0], "ensemble") for row in rows]


def test_planning_does_not_train(store: Store) -> None:
    con = connect()
    failing = f"FROM boxwood_refine('{store.index}', positives := [1])"
    con.execute(f"EXPLAIN {failing}")
    con.execute(f"PREPARE p AS {failing}")
    for query in (failing, "EXECUTE p"):
        with pytest.raises(duckdb.Error, match=r"boxwood_refine: .*1"):
            con.execute(query).fetchall()


def test_prepared_statements_see_the_index_as_it_is(tmp_path: Path) -> None:
    ids, codes = golden_rows()
    model = json.dumps(
        {"boxwood_model": 1, "learner": "all", "dims": 32, "estimators": [[[]]], "threshold": 1}
    )
    index = write_index(tmp_path / "index", ids[:100], codes[:100])
    con = connect()
    statements = {
        "search": (f"SELECT count(*) FROM boxwood_search('{index}', model := '{model}')", 100, 600),
        "count": (f"SELECT count FROM boxwood_count('{index}', model := '{model}')", 100, 600),
        "near": (f"SELECT count(*) FROM boxwood_knn('{index}', like := 0, k := 999)", 100, 600),
        "info": (f"SELECT sum(rows) FROM boxwood_info('{index}')", 100, 600),
        "list": (
            f"SELECT len(boxwood_knn_list('{index}', list_resize([0::UTINYINT], 32, 0), 999))",
            100,
            600,
        ),
    }
    for name, (query, before, _) in statements.items():
        con.execute(f"PREPARE {name} AS {query}")
        assert con.execute(f"EXECUTE {name}").fetchall() == [(before,)]
    write_index(tmp_path / "index", ids, codes, segments=2, generation=2)
    for name, (_, _, after) in statements.items():
        assert con.execute(f"EXECUTE {name}").fetchall() == [(after,)]
    shutil.rmtree(tmp_path / "index")
    for name in statements:
        with pytest.raises(duckdb.Error, match="no Boxwood index"):
            con.execute(f"EXECUTE {name}").fetchall()


# --- lists, casts, NULLs --------------------------------------------------------------------------

EXPRESSIONS = {
    "plain": "code",
    "array": "code::UTINYINT[32]",
    "slice": "(code || code)[5:36]",
    "reversed": "list_reverse(code)",
    "sorted": "list_sort(code)",
    "selected": "list_select(code || [1::UTINYINT], range(32, 0, -1))",
    "filtered": "list_resize(list_filter(code, lambda e: e > 100), 32, 0::UTINYINT)",
    "flattened": "flatten([code[1:10], code[11:32]])",
    "case": "CASE WHEN id % 2 = 0 THEN code ELSE list_reverse(code) END",
    "member": "{'a': code}['a']",
    "constant": "list_resize([9::UTINYINT], 32, 9)",
    "transformed": "list_transform(code, lambda e: (255 - e)::UTINYINT)",
    "nested": "[code, list_reverse(code)][2]",
}
SOURCES = [
    "lists",
    "(SELECT * FROM lists WHERE id % 35 = 0)",
    "(SELECT l.* FROM lists l JOIN range(0, 3000, 45) r(id) USING (id))",
    "(SELECT id, any_value(code) AS code FROM lists GROUP BY id)",
    "(SELECT * FROM lists ORDER BY code[3] LIMIT 100)",
]


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_lists_in_any_form(golden: duckdb.DuckDBPyConnection, name: str) -> None:
    for source in SOURCES:
        rows, wrong, unlike = golden.execute(f"""
            WITH t AS (SELECT id, code, {EXPRESSIONS[name]} AS x FROM {source})
            SELECT count(*),
                   count(*) FILTER (boxwood_distance(x, code) <> sqrt(list_sum(list_transform(
                       list_zip(x::INTEGER[], code::INTEGER[]),
                       lambda e: (e[1] - e[2]) * (e[1] - e[2]))))),
                   count(*) FILTER (boxwood_votes(getvariable('m'), x) <>
                       ((x[4] BETWEEN 12 AND 180 AND x[8] <= 99) OR x[2] BETWEEN 5 AND 60)::INTEGER
                       + (x[4] BETWEEN 20 AND 90)::INTEGER)
            FROM t""").fetchall()[0]
        assert rows > 0
        assert (wrong, unlike) == (0, 0)


def test_several_models_and_nulls_in_one_chunk(golden: duckdb.DuckDBPyConnection) -> None:
    narrow = MODEL.replace("[3,12,180]", "[3,12,60]")
    golden.execute("SET VARIABLE narrow = ?", [narrow])
    rows = golden.execute("""
        SELECT id, code IS NULL OR m IS NULL, boxwood_votes(m, code), v,
               boxwood_sql(m) IS NULL, m IS NULL
        FROM (SELECT id, CASE WHEN id % 7 = 0 THEN NULL ELSE code END AS code,
                     CASE id % 3 WHEN 0 THEN getvariable('m')
                                 WHEN 1 THEN getvariable('narrow') END AS m,
                     ((code[4] BETWEEN 12 AND CASE id % 3 WHEN 0 THEN 180 ELSE 60 END
                       AND code[8] <= 99) OR code[2] BETWEEN 5 AND 60)::INTEGER
                     + (code[4] BETWEEN 20 AND 90)::INTEGER AS v
              FROM lists)""").fetchall()
    assert len(rows) == 600
    for _, missing, votes, wanted, no_sql, no_model in rows:
        assert votes == (None if missing else wanted)
        assert no_sql == no_model


def test_knn_list_with_nulls_and_several_indexes(
    golden: duckdb.DuckDBPyConnection, store: Store
) -> None:
    rows = golden.execute("""
        SELECT id, boxwood_knn_list(
            CASE id % 4 WHEN 0 THEN NULL WHEN 1 THEN getvariable('empty')
                        ELSE getvariable('ix') END,
            CASE WHEN id % 25 = 0 THEN NULL ELSE code END, 1 + id % 3) FROM lists""").fetchall()
    assert len(rows) == 600
    for id_, hits in rows:
        if id_ % 4 == 0 or id_ % 25 == 0:
            assert hits is None
        elif id_ % 4 == 1:
            assert hits == []
        else:
            assert len(hits) == 1 + id_ % 3
            assert hits[0]["distance"] == 0


def test_values_out_of_range_are_refused(golden: duckdb.DuckDBPyConnection, store: Store) -> None:
    for argument in (
        "q := list_resize([256], 32, 0)",
        "q := list_resize([-1], 32, 0)",
        "q := 'abc'",
        "like := 'abc'",
    ):
        with pytest.raises(duckdb.Error, match=r"(?i)cast|convert"):
            golden.execute(f"FROM boxwood_knn('{store.index}', {argument})")
    with pytest.raises(duckdb.Error, match=r"(?i)cast|convert"):
        golden.execute(f"FROM boxwood_train('{store.index}', positives := [0], seed := -1)")


def test_odd_shapes_of_arguments(golden: duckdb.DuckDBPyConnection, store: Store) -> None:
    """Prepared parameters, arrays, numpy, long lists, an id at the end of its range."""
    q = golden_rows()[1][3]
    wanted = golden.execute("FROM search_code('photos', ?, k := 3)", [q.tolist()]).fetchall()
    for value in (q.tolist(), tuple(q.tolist()), q):
        found = golden.execute(
            "FROM boxwood_knn($ix, q := $q, k := 3)", {"ix": store.index, "q": value}
        )
        assert found.fetchall() == wanted
    found = golden.execute(
        f"FROM boxwood_knn('{store.index}', q := {q.tolist()}::UTINYINT[32], k := 3)"
    )
    assert found.fetchall() == wanted
    every = golden_rows()[0].tolist()
    trained = golden.execute(
        "SELECT positives, negatives FROM boxwood_train(?, positives := ?, negatives := ?,"
        " learner := 'branch')", [store.index, every[:300] * 50, every[300:] * 50],
    ).fetchall()  # fmt: skip
    assert trained == [(300, 300)]
    with pytest.raises(duckdb.Error, match="9223372036854775807"):
        golden.execute(f"FROM boxwood_knn('{store.index}', like := {2**63 - 1})")


def test_text_ends_at_nul_in_table_functions_alone(
    golden: duckdb.DuckDBPyConnection, store: Store
) -> None:
    """As docs/SQL.md says: DuckDB's stable C interface has no length for a parameter's text."""
    query = "SELECT count(*) FROM boxwood_search(? || chr(0) || 'x', model := ? || chr(0) || 'x')"
    assert golden.execute(query, [store.index, MODEL]).fetchall() == [(360,)]
    for scalar in ("boxwood_sql(? || chr(0))", "boxwood_votes(? || chr(0), code)"):
        with pytest.raises(duckdb.Error, match="boxwood_"):
            golden.execute(f"SELECT {scalar} FROM lists LIMIT 1", [MODEL]).fetchall()


def test_long_messages_stay_text(golden: duckdb.DuckDBPyConnection) -> None:
    """Messages are cut to a length: never inside a character."""
    for pad in range(4):
        path = "/" + "x" * pad + "ä日𝕏" * 300
        with pytest.raises(duckdb.Error, match="boxwood_info: "):
            golden.execute("FROM boxwood_info(?)", [path])


# --- loading --------------------------------------------------------------------------------------


def test_loads_again_and_into_several_databases(store: Store) -> None:
    one, two = connect(), connect()
    one.execute(f"LOAD '{native.extension_path()}'")
    query = f"SELECT count(*) FROM boxwood_info('{store.index}')"
    assert one.execute(query).fetchall() == two.execute(query).fetchall() == [(2,)]
    one.close()
    assert two.execute(query).fetchall() == [(2,)]


@pytest.mark.parametrize(("isa", "message"), [("generic", ""), ("vax", "BOXWOOD_FORCE_ISA: .*vax")])
def test_forced_instruction_set(store: Store, isa: str, message: str) -> None:
    program = (
        "import duckdb, sys\n"
        "con = duckdb.connect(config={'allow_unsigned_extensions': 'true'})\n"
        "try:\n"
        "    con.execute(f\"LOAD '{sys.argv[1]}'\")\n"
        "    query = 'FROM boxwood_knn(?, like := 0, k := 1)'\n"
        "    print(con.execute(query, [sys.argv[2]]).fetchall())\n"
        "except duckdb.Error as error:\n"
        "    print(str(error).splitlines()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(native.extension_path()), store.index],
        capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "BOXWOOD_FORCE_ISA": isa},
    )  # fmt: skip
    assert re.search(message or r"\[\(0, 0.0\)\]", done.stdout)


def test_connections_are_not_kept(tmp_path: Path) -> None:
    """A database that was closed can be opened for writing by another process."""
    database = tmp_path / "closed.duckdb"
    con = connect(database)
    con.execute("CREATE TABLE t AS SELECT 1 AS a")
    con.close()
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('INSERT INTO t VALUES (2)')"
    subprocess.run([sys.executable, "-c", program, str(database)], check=True, timeout=60)


def test_damaged_index_is_an_error(tmp_path: Path) -> None:
    ids, codes = golden_rows()
    index = Path(write_index(tmp_path / "index", ids, codes))
    segment = next(index.glob("*.segment"))
    whole, manifest = segment.read_bytes(), (index / "MANIFEST").read_bytes()
    con = connect()
    query = "FROM boxwood_knn(?, like := 0)"
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    for file, content in (
        (segment, whole[:-1]), (segment, b""), (segment, bytes(damaged)),
        (index / "MANIFEST", manifest[:50]), (index / "MANIFEST", b""),
    ):  # fmt: skip
        good = file.read_bytes()
        replacement = file.with_name("new")
        replacement.write_bytes(content)
        replacement.replace(file)
        with pytest.raises(duckdb.Error, match=r"boxwood_knn: .*(repair|corrupt|damaged)"):
            con.execute(query, [str(index)])
        replacement.write_bytes(good)
        replacement.replace(file)
    assert len(con.execute(query, [str(index)]).fetchall()) == 60


def test_schema_can_be_run_twice() -> None:
    con = duckdb.connect()
    con.execute(SCHEMA)
    con.execute(SCHEMA)
    tables = con.execute(
        "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'boxwood' ORDER BY 1"
    ).fetchall()
    names = [
        "appended", "collections", "concepts", "deleted", "heads", "indexes", "sessions", "texts",
    ]  # fmt: skip
    assert tables == [(name,) for name in names]


def test_examples_of_the_docs(tmp_path: Path) -> None:
    """Every sql block of docs/SQL.md, on a collection that has what they name."""
    document = (ROOT / "docs" / "SQL.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sql\n(.*?)^```", document, re.S | re.M)
    assert blocks
    codes, ids = golden_rows()[1], np.arange(600, dtype=np.int64)
    index = write_index(tmp_path / "index", ids, codes)
    con = connect()
    con.execute(SCHEMA)
    codes_table(con, ids, codes)
    collection_codes(con, "photos")
    con.execute(
        "CREATE TABLE photos AS SELECT id, 'x' || id AS uri, DATE '2024-01-01' + id::INTEGER AS"
        " taken FROM codes; CREATE TABLE likes AS SELECT 17 AS id, 'me' AS who"
    )
    con.execute(
        "INSERT INTO boxwood.texts SELECT 'photos', 'a leopard', code, NULL, '' FROM lists LIMIT 1"
    )
    con.execute(
        "INSERT INTO boxwood.collections (name, uuid, generation, id_column, created,"
        " encoder_fingerprint, head_fingerprint, quantizer_fingerprint, folder)"
        " VALUES ('photos', ?, 1, 'id', TIMESTAMP '2024-01-01', '', '', '', ?)", [str(UUID), index],
    )  # fmt: skip
    con.execute(MACROS)
    con.execute(SHELL)
    quiet = ("SET", "TRANSACTION", "CREATE", "DROP")
    for block in blocks:
        script = block.replace("d01, /* .. */ d31", ", ".join(COLUMNS[1:]))
        for statement in con.extract_statements(script):
            rows = con.execute(statement.query).fetchall()
            assert rows or statement.type.name in quiet, statement.query
