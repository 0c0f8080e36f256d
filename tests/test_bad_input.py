"""Bad input and bad luck: a clear error that says what to do, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import boxwood
from boxwood import Collection, Head, native
from conftest import ROOT, PlainEncoder, clustered_codes, clustered_embeddings

Con = duckdb.DuckDBPyConnection


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program with the package and these tests in reach."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=child_environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def child_environment() -> dict[str, str]:
    path = [str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def stored(con: Con, name: str = "photos") -> int:
    row = con.execute(
        f'SELECT (SELECT count(*) FROM boxwood."{name}_codes") + (SELECT '
        "coalesce(sum(octet_length(ids)), 0) // 8 FROM boxwood.appended WHERE collection = ?)",
        [name],
    ).fetchall()
    return int(row[0][0])


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "1a", "x" * 64, 'a"b', "a.b", "ä", None, 3])
def test_names(con: Con, name: Any) -> None:
    with pytest.raises(boxwood.InputError, match="cannot name"):
        Collection.create(con, name)


def test_create(con: Con, photos: Collection) -> None:
    with pytest.raises(boxwood.InputError, match="already"):
        Collection.create(con, "photos")
    with pytest.raises(boxwood.InputError, match="no table 'none'"):
        Collection.create(con, "other", table="none")
    con.execute("CREATE TABLE t (nr INTEGER, label VARCHAR)")
    with pytest.raises(boxwood.InputError, match="no column 'id'"):
        Collection.create(con, "other", table="t")
    with pytest.raises(boxwood.InputError, match="whole numbers"):
        Collection.create(con, "other", table="t", id_column="label")
    with pytest.raises(boxwood.InputError, match="no column 'id'"):
        Collection.create(con, "t")
    with pytest.raises(boxwood.InputError, match="encoder"):
        Collection.create(con, "other", texts=["a dog"])
    with pytest.raises(boxwood.InputError, match="phrases"):
        Collection.create(con, "other", encoder=PlainEncoder(), texts=clustered_embeddings(5))
    with pytest.raises(boxwood.InputError, match="list of phrases"):
        Collection.create(con, "other", encoder=PlainEncoder(), texts="a dog")
    with pytest.raises(boxwood.InputError, match="48 dimensions"):
        Collection.create(
            con, "other", encoder=PlainEncoder(), head=Head.pca(clustered_embeddings(50))
        )
    with pytest.raises(boxwood.InputError, match="no collection 'other'; it has: photos"):
        Collection.open(con, "other")
    with pytest.raises(boxwood.InputError, match="'photos' already"):
        Collection.create(con, "Photos")
    with pytest.raises(boxwood.InputError, match="did you mean 'photos'"):
        Collection.open(con, "Photos")
    assert Collection.list(con) == ["photos"]
    assert len(os.listdir(Path(photos.index_path).parent)) == 1


def test_lists_of_embeddings(con: Con) -> None:
    rows = clustered_embeddings(6)
    lists = pa.array(rows.tolist(), pa.list_(pa.float32()))
    photos = Collection.create(con, "photos")
    photos.append([0], embeddings=rows[:1])
    photos.append([1], embeddings=lists[1:2])
    photos.append([2], embeddings=pa.FixedSizeListArray.from_arrays(rows[2], 48))
    photos.append([3], embeddings=pa.chunked_array([lists[3:4]]))
    column = np.empty(1, object)  # as a DataFrame gives it
    column[0] = rows[4]
    photos.append([4], embeddings=column)
    for embeddings, message in (
        ([[1.0, 2.0], [1.0]], "as many in every row"),
        (pa.array([[1.0, 2.0], [1.0]]), "row 1 of embeddings has 1 values"),
        (pa.array([[1.0], None]), "row 1 of embeddings is NULL"),
        (pa.array([[1.0], [None]]), "row 1 of embeddings holds a NULL"),
        (pa.array(["a", "b"]), "floats"),
    ):
        with pytest.raises(boxwood.InputError, match=message):
            photos.append([5, 6], embeddings=embeddings)
    with pytest.raises(boxwood.InputError, match="as many in every row"):
        photos.append([5, 6], codes=[[1, 2], [1]])
    with pytest.raises(boxwood.InputError, match="as many in every row"):
        photos.search_embedding([[1.0], [1.0, 2.0]])
    with pytest.raises(boxwood.InputError, match="ids cannot be made an array"):
        photos.append([[1], [1, 2]], codes=clustered_codes(2))
    assert photos.head is not None
    assert photos.quantizer is not None
    expected = photos.quantizer.encode(photos.head.images(rows[:5]))
    assert np.array_equal(native.Index(photos.index_path).codes(np.arange(5)), expected)


def embeddings_with(row: int, value: float) -> np.ndarray:
    rows = clustered_embeddings(10)
    rows[row] = value if value == 0 else rows[row]
    rows[row, 5] = value
    return rows


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (embeddings_with(4, np.nan), "row 4"),
        (embeddings_with(5, np.inf), "row 5"),
        (embeddings_with(6, 0), "row 6 is zero"),
        (clustered_embeddings(10)[:, :40], "40 dimensions, but 48"),
        (clustered_embeddings(9), "10 ids cannot go with 9 rows"),
        (clustered_embeddings(10)[0], "shape"),
        (np.ones((10, 48), int), "floats"),
        ([["a"] * 48] * 10, "floats"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_embeddings(con: Con, embeddings: Any, message: str, first: bool) -> None:
    if first and "dimensions" in message:
        pytest.skip("the first embeddings may have any width")
    photos = Collection.create(con, "photos")
    if not first:
        photos.append([100], embeddings=clustered_embeddings(1))
    with pytest.raises(boxwood.InputError, match=message):
        photos.append(np.arange(10), embeddings=embeddings)
    assert stored(con) == len(photos) == (0 if first else 1)
    assert (photos.head is None) == first
    photos.append(np.arange(10), embeddings=clustered_embeddings(10))
    photos.verify()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1], "more than once: 1"),
        ([1, None, 3], "NULL in row 1"),
        ([1, -2, 3], "row 1 is -2"),
        ([1, 2, 3.5], "integers"),
        ([1, 2, 0], "already, for example 0"),
        ([1, 2], "2 ids cannot go with 3 rows"),
        ([], "empty"),
        (["1", "2", "3"], "integers"),
        (None, "flat list"),
    ],
)
def test_ids(con: Con, photos: Collection, ids: Any, message: str) -> None:
    with pytest.raises(boxwood.InputError, match=message):
        photos.append(ids, codes=clustered_codes(3))
    assert stored(con) == len(photos) == 3000
    photos.verify()


def test_append(con: Con, photos: Collection) -> None:
    codes = clustered_codes(1)
    with pytest.raises(boxwood.InputError, match="either"):
        photos.append([1])
    with pytest.raises(boxwood.InputError, match="either"):
        photos.append([1], codes=codes, embeddings=clustered_embeddings(1))
    with pytest.raises(boxwood.InputError, match="ready codes"):
        photos.append([1], embeddings=clustered_embeddings(1))
    with pytest.raises(boxwood.InputError, match="2 rows of metadata"):
        photos.append([1], codes=codes, metadata={"camera": ["a", "b"]})
    with pytest.raises(boxwood.InputError, match="no_such"):
        photos.append([1], codes=codes, metadata={"no_such": ["a"]})
    with pytest.raises(boxwood.InputError, match="differs from the ids in row 0: 2 and 1"):
        photos.append([1], codes=codes, metadata={"id": [2], "camera": ["a"]})
    with pytest.raises(boxwood.InputError, match="dict of columns"):
        photos.append([1], codes=codes, metadata="camera")
    con.execute("INSERT INTO photos VALUES (7, 'there')")
    with pytest.raises(boxwood.InputError, match="do not fit"):
        photos.append([7], codes=codes, metadata={"camera": ["a"]})
    assert stored(con) == 3000
    assert con.execute("SELECT count(*) FROM photos").fetchall() == [(3001,)]
    photos.append([7], codes=codes)
    photos.verify()


def test_the_metadata_tables_first_rows_fail_whole(con: Con) -> None:
    photos = Collection.create(con, "photos")
    with pytest.raises(boxwood.InputError):
        photos.append([1, 2], codes=clustered_codes(2), metadata={"a": [1]})
    photos.append([1, 2], codes=clustered_codes(2), metadata={"a": [1, 2]})
    assert con.execute("FROM photos ORDER BY id").fetchall() == [(1, 1), (2, 2)]


def test_labels(con: Con, photos: Collection) -> None:
    cases: list[tuple[Any, Any, str]] = [
        ([], [3], "no positives"),
        ([1, 3], [], "positives that are not in the collection 'photos': 1"),
        ([3], [6, 7, 8], "negatives that are not in the collection 'photos': 7, 8"),
        ([3, 6], [6, 9], "both positive and negative: 6"),
        ([3, None], [], "NULL"),
        ([3, -3], [], "-3"),
        (["3"], [], "integers"),
    ]
    for positives, negatives, message in cases:
        for learner in boxwood.collection.LEARNERS:
            with pytest.raises(boxwood.InputError, match=message):
                photos.refine(positives, negatives, learner=learner)  # type: ignore[arg-type]


@pytest.mark.parametrize("learner", boxwood.collection.LEARNERS)
@pytest.mark.parametrize(
    "options",
    [
        {"estimators": 0}, {"estimators": 1025}, {"random_negatives": -1},
        {"random_negatives": 100_001}, {"negative_weight": 0}, {"negative_weight": 101},
        {"negative_weight": float("nan")}, {"seed": -1}, {"seed": 2**64}, {"seed": "a"},
        {"boxes": 65}, {"boxes": -1}, {"boxes": 1.5}, {"prior": 1}, {"rerank": "yes"},
        {"guard": None}, {"query": [1, 2]},
    ],
)  # fmt: skip
def test_options(photos: Collection, learner: Any, options: Any) -> None:
    if learner in ("tree", "forest"):
        pytest.importorskip("sklearn")
    with pytest.raises(boxwood.InputError, match=next(iter(options))):
        photos.refine([3, 6], learner=learner, **options)


@pytest.mark.parametrize(
    ("learners", "options"),
    [
        (("cover", "tree", "forest"), {"prior": False}),
        (("branch", "ensemble", "tree", "forest"), {"rerank": True}),
        (("branch", "ensemble", "tree", "forest"), {"boxes": 3}),
        (("branch", "ensemble", "tree", "forest"), {"guard": False}),
        (("tree", "forest"), {"query": [7] * 32}),
        (("tree", "forest"), {"text": "a dog"}),
        (("tree", "forest"), {"image": "dog.jpg"}),
    ],
)
def test_options_of_another_learner(photos: Collection, learners: Any, options: Any) -> None:
    (name,) = options
    for learner in learners:
        with pytest.raises(boxwood.InputError, match=rf"{name}.*leave") as raised:
            photos.refine([3, 6], [9], learner=learner, **options)
        assert "cover" in str(raised.value) or "ensemble" in str(raised.value)


def test_what_is_sought(con: Con, photos: Collection) -> None:
    code, fine = [7] * 32, [7] * 128
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": "a dog"}, "no encoder"),
        ({"image": "dog.jpg"}, "no encoder"),
        ({"text": ""}, "empty"),
        ({"text": "a dog", "image": "dog.jpg"}, "pass one of them"),
        ({"text": "a dog", "query": code}, "pass one of them"),
        ({"query": code[:31]}, r"query must have the shape \(32,\), not \(31,\)"),
        ({"query": [256] * 32}, r"0 \.\. 255"),
        ({"query": [code]}, "shape"),
        ({"query": code, "query_fine": code}, r"query_fine must have the shape \(128,\)"),
        ({"query_fine": fine}, "pass that too"),
        ({"query": code, "rerank": True}, "rerank needs fine codes.*or leave rerank out"),
    ]
    for options, message in cases:
        for train in (photos.train, photos.refine):
            with pytest.raises(boxwood.InputError, match=message):
                train([3, 6], [9], **options)
    for labels in ({}, {"negatives": [3]}):
        with pytest.raises(boxwood.InputError, match=r"no positives.*text=, image= or query="):
            photos.refine(**labels)
    assert photos.refine(negatives=[3], query=code).stats["positives"] == 0
    other = Collection.create(con, "other", fine=True)
    other.append([1, 2, 3], embeddings=clustered_embeddings(3))
    with pytest.raises(boxwood.InputError, match="query_fine"):
        other.refine(query=code, rerank=True)


@pytest.mark.parametrize("weight", ["x", None, True, 0, np.nan, np.inf, 101, [1]])
@pytest.mark.parametrize("learner", ["ensemble", "tree"])
def test_negative_weight(photos: Collection, weight: Any, learner: Any) -> None:
    with pytest.raises(boxwood.InputError, match=r"negative_weight must be from 0\.01 to 100"):
        photos.refine([3], [6], learner=learner, negative_weight=weight)


def test_search_arguments(photos: Collection) -> None:
    code = clustered_codes(1)[0]
    for k in (0, -1, 10_001, 2.5, "3", None):
        with pytest.raises(boxwood.InputError, match="k must be"):
            photos.knn(code, k=k)  # type: ignore[arg-type]
        with pytest.raises(boxwood.InputError, match="k must be"):
            photos.search_text("a dog", k=k)  # type: ignore[arg-type]
    for recall in (0, -0.5, 1.01, float("nan"), True, "1", None):
        with pytest.raises(boxwood.InputError, match="recall must be"):
            photos.knn(code, recall=recall)  # type: ignore[arg-type]
        with pytest.raises(boxwood.InputError, match="recall must be"):
            photos.search_text("a dog", recall=recall)  # type: ignore[arg-type]
    for ids in ([-1], [1.5], [[3]], ["a"]):
        with pytest.raises(boxwood.InputError, match="ids"):
            photos.knn(code, ids=ids)
    assert len(photos.knn(code, k=10_000)) == 3000
    with pytest.raises(boxwood.InputError, match="either"):
        photos.knn()
    with pytest.raises(boxwood.InputError, match="either"):
        photos.knn(code, like=3)
    with pytest.raises(boxwood.InputError, match="shape"):
        photos.knn(code[:31])
    with pytest.raises(boxwood.InputError, match=r"0 \.\. 255"):
        photos.knn([256] * 32)
    with pytest.raises(boxwood.InputError, match="id 1"):
        photos.knn(like=1)
    with pytest.raises(boxwood.InputError, match="no encoder"):
        photos.search_text("a dog")
    with pytest.raises(boxwood.InputError, match="no encoder"):
        photos.search_image("dog.jpg")
    with pytest.raises(boxwood.InputError, match="no encoder"):
        photos.add_images(".")
    with pytest.raises(boxwood.InputError, match="ready codes"):
        photos.search_embedding(np.ones(5))
    with pytest.raises(boxwood.InputError, match="learner"):
        photos.refine([3], learner="magic")  # type: ignore[arg-type]
    with pytest.raises(boxwood.InputError, match="Model"):
        photos.search("{}")  # type: ignore[arg-type]
    found = photos.refine([3])
    with pytest.raises(boxwood.InputError, match="limit"):
        found.table(-1)
    with pytest.raises(boxwood.InputError, match="batch_size"):
        found.reader(0)


def test_bulk_loads(con: Con, tmp_path: Path) -> None:
    with pytest.raises(boxwood.InputError, match="no table 'none'"):
        Collection.from_table(con, "none")
    con.execute("CREATE TABLE t AS SELECT i AS id, [1.0, 2.0]::FLOAT[] AS embedding, 'x' AS s "
                "FROM range(5) r(i)")  # fmt: skip
    with pytest.raises(boxwood.InputError, match="lists of floats"):
        Collection.from_table(con, "t", embedding="s")
    for change, message in (
        ("embedding = NULL", "id 3 is NULL"),
        ("embedding = [1, NULL]", "id 3 holds a NULL"),
        ("embedding = [1]", "id 3 has 1 values"),
        ("embedding = [0, 0]", "zero.*id 3"),
        ("embedding = ['inf'::FLOAT, 0]", "infinite.*id 3"),
        ("id = NULL", "NULL in row 3"),
        ("id = -1", "-1"),
        ("id = 4", "more than once: 4"),
    ):
        con.execute("CREATE OR REPLACE TABLE bad AS FROM t")
        con.execute(f"UPDATE bad SET {change} WHERE id = 3")
        with pytest.raises(boxwood.InputError, match=message):
            Collection.from_table(con, "bad")
    (tmp_path / "x.npy").write_bytes(b"not an array")
    for path, message in ((tmp_path / "x.npy", r"no \.npy"), (tmp_path / "none.npy", "none.npy")):
        with pytest.raises((boxwood.InputError, boxwood.StorageError), match=message):
            Collection.from_npy(con, "photos", path)
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(boxwood.InputError, match="archive"):
        Collection.from_npy(con, "photos", tmp_path / "x.npz")
    for rows, message in (
        (np.ones(5, np.float32), "array"),
        (np.zeros((0, 4), np.float32), "no rows"),
        (np.ones((3, 5), np.uint8), "shape"),
        (np.array([[None]]), "pickle|objects|array"),
    ):
        np.save(tmp_path / "x.npy", rows, allow_pickle=True)
        with pytest.raises(boxwood.InputError, match=message):
            Collection.from_npy(con, "photos", tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", clustered_embeddings(3))
    for ids, message in (([1, 2], "2 ids"), ([1, 2, 2], "more than once"), ([1, 2, -3], "-3")):
        with pytest.raises(boxwood.InputError, match=message):
            Collection.from_npy(con, "photos", tmp_path / "x.npy", ids=ids)
    assert Collection.list(con) == []


def test_sources_that_cannot_be_read(con: Con, tmp_path: Path) -> None:
    con.execute("CREATE TABLE t AS SELECT 1 AS id, [1.0]::FLOAT[] AS embedding")
    with pytest.raises(boxwood.InputError, match=r"no column 'zz', and .* it has id, embedding"):
        Collection.from_table(con, "t", embedding="zz")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is not enough")
    for path, kind in (
        ("bad.parquet", boxwood.InputError),
        ("none.parquet", boxwood.StorageError),
    ):
        with pytest.raises(kind, match=f"cannot read .*{path}") as caught:
            Collection.from_parquet(con, "photos", tmp_path / path)
        assert "DESCRIBE" not in str(caught.value)
        assert "\n" not in str(caught.value)
    con.execute("CREATE TABLE ids AS SELECT 1 AS id")
    photos = Collection.create(con, "photos", table="ids")
    con.execute("DROP TABLE boxwood.photos_codes")
    with pytest.raises(boxwood.InputError, match="photos_codes"):
        photos.append([1], codes=clustered_codes(1))
    with pytest.raises(boxwood.InputError, match="photos_codes"):
        Collection.open(con, "photos")


def test_a_load_adds_all_rows_or_none(
    con: Con, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxwood.collection, "_batch_rows", lambda width: 100)
    rows = clustered_embeddings(1000)
    rows[777, 3] = np.nan
    np.save(tmp_path / "x.npy", rows)
    photos = Collection.create(con, "photos")
    before = photos.info()
    with pytest.raises(boxwood.InputError, match=r"row 77 .*rows from 700 on|row 777"):
        photos.add_npy(tmp_path / "x.npy")
    assert (stored(con), photos.info()) == (0, before)  # head and quantizer are open, too
    rows[777] = rows[776]
    np.save(tmp_path / "x.npy", rows)
    photos.add_npy(tmp_path / "x.npy")
    assert photos.info()["generation"] == before["generation"] + 1
    before = photos.info()
    with pytest.raises(boxwood.InputError, match="already"):
        photos.add_npy(tmp_path / "x.npy", ids=np.arange(1999, 999, -1) - 5)
    assert (stored(con), photos.info()) == (1000, before)

    def full(*_: object, **__: object) -> None:
        raise boxwood.StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(native, "write_segment", full)
        with pytest.raises(boxwood.StorageError, match="no space"):
            photos.add_npy(tmp_path / "x.npy")
    assert (stored(con), photos.info()) == (1000, before)
    assert photos.add_npy(tmp_path / "x.npy") == 1000
    photos.verify()
    with monkeypatch.context() as patch:
        patch.setattr(native, "write_manifest", full)
        with pytest.raises(boxwood.StorageError, match=r"1,000 rows are safe"):
            photos.add_npy(tmp_path / "x.npy")
    assert len(photos) == 3000
    photos.verify()


@pytest.mark.parametrize("moment", ["rows", "index"])
def test_an_interrupted_load_adds_nothing(
    con: Con, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(boxwood.collection, "_batch_rows", lambda width: 100)
    np.save(tmp_path / "x.npy", clustered_codes(1000))
    photos = Collection.create(con, "photos")
    photos.add_npy(tmp_path / "x.npy")
    module, name = {
        "rows": (boxwood.rows, "insert"),
        "index": (native, "write_segment"),
    }[moment]
    work = getattr(module, name)

    def interrupted(*arguments: Any, **options: Any) -> None:
        work(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            photos.add_npy(tmp_path / "x.npy")
    assert stored(con) == len(photos) == 1000
    assert photos.add_npy(tmp_path / "x.npy") == 1000
    photos.verify()
    assert len(list(photos.index_path.glob("*.segment"))) <= 3  # the unlisted one is gone


def test_no_ids_are_left(con: Con, tmp_path: Path) -> None:
    photos = Collection.create(con, "photos")
    photos.append([2**63 - 3], codes=clustered_codes(1))
    np.save(tmp_path / "x.npy", clustered_codes(3))
    with pytest.raises(boxwood.InputError, match=f"no 3 ids above the largest, {2**63 - 3}"):
        photos.add_npy(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", clustered_codes(2))
    photos.add_npy(tmp_path / "x.npy")
    with pytest.raises(boxwood.InputError, match="no 2 ids above"):
        photos.add_npy(tmp_path / "x.npy")
    assert photos.knn(like=2**63 - 1, k=1)["id"].to_pylist() == [2**63 - 1]


def test_an_empty_table_makes_an_empty_collection(con: Con) -> None:
    con.execute("CREATE TABLE t (id BIGINT, embedding FLOAT[])")
    assert len(Collection.from_table(con, "t")) == 0


# --- transactions, read-only, several processes ---------------------------------------------------


def test_inside_a_transaction(con: Con, photos: Collection) -> None:
    con.execute("BEGIN")
    con.execute("CREATE TABLE mine AS SELECT 1 AS a")
    for change in (
        lambda: Collection.create(con, "other"),
        photos.compact,
        photos.refresh,
        photos.drop,
    ):
        with pytest.raises(boxwood.InputError, match="transaction"):
            change()
    assert len(photos.knn(like=3, k=2)) == 2
    con.execute("COMMIT")
    assert con.execute("FROM mine").fetchall() == [(1,)]
    photos.append([1], codes=clustered_codes(1))


def test_read_only(database: Path) -> None:
    with boxwood.connect(database) as con:
        Collection.create(con, "photos").append([1, 2, 3], codes=clustered_codes(3))
    with boxwood.connect(database, read_only=True) as con:
        photos = Collection.open(con, "photos")
        assert len(photos.knn(like=1)) == 3
        assert photos.refine([1], random_negatives=8).count >= 1
        photos.verify()
        for change in (
            lambda: photos.append([4], codes=clustered_codes(1)),
            lambda: Collection.create(con, "other"),
            photos.compact,
            photos.repair,
            photos.refresh,
            photos.drop,
        ):
            with pytest.raises(boxwood.ReadOnly, match="read-only"):
                change()
        assert con.execute("SELECT count(*) FROM search_like('photos', 1)").fetchall() == [(3,)]
    shutil.rmtree(f"{database}.boxwood")
    with boxwood.connect(database, read_only=True) as con:
        with pytest.raises(boxwood.IndexMissing, match="boxwood repair"):
            Collection.open(con, "photos")
        with pytest.raises(boxwood.ReadOnly, match="repair"):
            Collection.open(con, "photos", repair=True)
    with boxwood.connect(database) as con:
        assert len(Collection.open(con, "photos", repair=True)) == 3


def test_connect(tmp_path: Path) -> None:
    with pytest.raises(boxwood.StorageError, match="no database"):
        boxwood.connect(tmp_path / "none.duckdb", read_only=True)
    with pytest.raises(boxwood.StorageError):
        boxwood.connect(tmp_path / "nowhere" / "x.duckdb")
    with duckdb.connect() as plain, pytest.raises(boxwood.InputError, match="unsigned"):
        boxwood.load(plain)
    with (
        duckdb.connect(str(tmp_path / "x.duckdb")),
        pytest.raises(boxwood.InputError, match="open in this process already"),
    ):
        boxwood.connect(tmp_path / "x.duckdb")


def test_lock_is_no_part_of_a_name(tmp_path: Path) -> None:
    with pytest.raises(boxwood.StorageError) as caught:
        boxwood.connect(tmp_path / "nowhere" / "clock.duckdb")
    assert not isinstance(caught.value, boxwood.DatabaseLocked)


def test_a_failed_transaction(con: Con, photos: Collection) -> None:
    con.execute("BEGIN")
    with pytest.raises(duckdb.Error):
        con.execute("SELECT error('failed')")
    for work in (lambda: Collection.open(con, "photos"), lambda: boxwood.load(con)):
        with pytest.raises(boxwood.InputError, match="ROLLBACK"):
            work()
    con.execute("ROLLBACK")
    assert len(Collection.open(con, "photos")) == 3000


def test_a_second_writer(database: Path, con: Con) -> None:
    program = """
        import sys, boxwood
        for read_only in (False, True):
            try:
                boxwood.connect(sys.argv[1], read_only=read_only)
            except boxwood.DatabaseLocked as error:
                print(error)
    """
    done = run_python(program, database)
    assert done.stdout.count("is open in another process") == 2, done.stderr
    assert con.execute("SELECT 1").fetchall() == [(1,)]


# --- a damaged index ------------------------------------------------------------------------------


def sections(segment: Path) -> list[tuple[int, int, int]]:
    """Kind, offset and bytes of a segment's sections, as docs/FORMAT.md has them."""
    content = segment.read_bytes()
    (count,) = struct.unpack_from("<I", content, 216)
    entries = (struct.unpack_from("<IIQQQ", content, 224 + 32 * i) for i in range(count))
    return [(kind, offset, size) for kind, _, offset, size, _ in entries]


def damage(how: str, folder: Path) -> None:
    [segment] = folder.glob("*.segment")
    manifest = folder / "MANIFEST"
    what, _, where = how.partition(" ")
    file, start, size = {
        "manifest": (manifest, 0, manifest.stat().st_size),
        "header": (segment, 0, 4096),
        **{f"section {kind}": (segment, at, n) for kind, at, n in sections(segment)},
    }[where]
    content = bytearray(file.read_bytes())
    match what:
        case "flip":
            content[start + size // 2 if where != "header" else 40] ^= 4
        case "zero":
            content[start : start + size] = bytes(size)
        case "cut":
            del content[start + size // 2 :]
        case "empty":
            content.clear()
        case "grow":
            content += b"\0"
    file.write_bytes(content)


PARTS = ["manifest", "header", "section 1", "section 2", "section 3", "section 4"]
DAMAGES = [f"{what} {part}" for part in PARTS for what in ("flip", "zero", "cut")]


@pytest.mark.parametrize("how", [*DAMAGES, "empty manifest", "empty header", "grow manifest",
                                 "grow header"])  # fmt: skip
def test_damage(database: Path, how: str) -> None:
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos")
        photos.append(np.arange(3000), codes=clustered_codes(3000))
    damage(how, Path(photos.index_path))
    with boxwood.connect(database) as con:
        with pytest.raises(boxwood.IndexCorrupt, match=f"boxwood repair {database} photos"):
            Collection.open(con, "photos")
        # SQL says so too, and does not crash.
        with pytest.raises(duckdb.Error, match="boxwood repair"):
            con.execute("FROM search_like('photos', 1)")
        assert len(Collection.open(con, "photos", repair=True)) == 3000
        photos = Collection.open(con, "photos")
        photos.verify()
        assert con.execute("SELECT count(*) FROM search_like('photos', 1)").fetchall() == [(60,)]
        assert len(list(Path(photos.index_path).iterdir())) == 2


def test_damage_while_it_is_open(photos: Collection) -> None:
    model = photos.train([3, 6, 9])
    count = photos.count(model)
    folder = Path(photos.index_path)
    [segment] = folder.glob("*.segment")
    content = bytearray(segment.read_bytes())
    content[5000] ^= 1
    segment.unlink()
    segment.write_bytes(content)
    with pytest.raises(boxwood.IndexCorrupt, match="boxwood repair"):
        photos.count(model)
    assert photos.info()["state"] == "corrupt"
    with pytest.raises(boxwood.IndexCorrupt, match="boxwood repair"):
        photos.verify()
    photos.repair()
    photos.verify()
    assert photos.info()["state"] == "current"
    assert photos.count(model) == count
    shutil.rmtree(folder)
    with pytest.raises(boxwood.IndexMissing, match="boxwood repair"):
        photos.count(model)
    assert photos.info()["state"] == "missing"
    photos.repair()
    assert photos.count(model) == count
    photos.verify()


def missing_folder(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)


def missing_manifest(folder: Path, other: Path) -> None:
    (folder / "MANIFEST").unlink()


def missing_segment(folder: Path, other: Path) -> None:
    [segment] = folder.glob("*.segment")
    segment.unlink()


def foreign_folder(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def foreign_segment(folder: Path, other: Path) -> None:
    [mine], [theirs] = folder.glob("*.segment"), other.glob("*.segment")
    shutil.copy(theirs, mine)


def foreign_fingerprints(folder: Path, other: Path) -> None:
    index = native.Index(folder)
    ids, codes = index.rows()
    prints = native.Fingerprints("", "", "another")
    uuid, generation = index.info.uuid, index.info.generation
    native.write_segment(folder, "x.segment", ids, codes, uuid, generation, prints)
    native.write_manifest(folder, uuid, generation, ["x.segment"], prints)


def a_file(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("hello")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (missing_folder, boxwood.IndexMissing),
        (missing_manifest, boxwood.IndexMissing),
        (missing_segment, boxwood.IndexProblem),
        (foreign_folder, boxwood.IndexMismatch),
        (foreign_segment, boxwood.IndexProblem),
        (a_file, boxwood.Error),
    ],
)
def test_wrong_files(
    database: Path, change: Callable[[Path, Path], None], error: type[boxwood.Error]
) -> None:
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos")
        photos.append(np.arange(500), codes=clustered_codes(500))
        other = Collection.create(con, "other")
        other.append(np.arange(500), codes=clustered_codes(500, 1))
    change(Path(photos.index_path), Path(other.index_path))
    with boxwood.connect(database) as con:
        with pytest.raises(error) as caught:
            Collection.open(con, "photos")
        if change is a_file:
            Path(photos.index_path).unlink()
        else:
            assert f"boxwood repair {database} photos" in str(caught.value)
        Collection.open(con, "photos", repair=True).verify()
        Collection.open(con, "other").verify()


@pytest.mark.parametrize("known", [True, False])
def test_an_index_of_other_codes(con: Con, photos: Collection, known: bool) -> None:
    """One that the database does not know of is made anew, as what a crash or a copy left."""
    foreign_fingerprints(photos.index_path, photos.index_path)
    if known:
        checksum = native.Index(photos.index_path).info.checksum
        con.execute("UPDATE boxwood.indexes SET checksum = ?", [checksum])
        with pytest.raises(boxwood.IndexMismatch, match="another encoder, head or quantizer"):
            Collection.open(con, "photos")
    else:
        with pytest.raises(boxwood.IndexStale, match="put back from a copy"):
            photos.knn(like=3)
    Collection.open(con, "photos", repair=known).verify()


def test_verify_finds_what_opening_cannot(con: Con, photos: Collection) -> None:
    folder, info = Path(photos.index_path), native.Index(photos.index_path).info
    ids, codes = native.Index(folder).rows()
    codes[7, 3] ^= 1
    native.write_segment(
        folder, "x.segment", ids, codes, info.uuid, info.generation, info.fingerprints
    )
    native.write_manifest(folder, info.uuid, info.generation, ["x.segment"], info.fingerprints)
    checksum = native.Index(photos.index_path).info.checksum
    con.execute("UPDATE boxwood.indexes SET checksum = ?", [checksum])
    photos = Collection.open(con, "photos")
    with pytest.raises(boxwood.IndexMismatch, match=f"id {ids[7]}"):
        photos.verify()
    photos.repair()
    photos.verify()


def test_rows_changed_behind_boxwoods_back(con: Con, photos: Collection) -> None:
    con.execute("DELETE FROM boxwood.photos_codes WHERE id < 300")
    with pytest.raises(boxwood.IndexMismatch, match="2,900"):
        photos.verify()
    photos = Collection.open(con, "photos")
    assert len(photos) == 2900
    photos.verify()


def test_leftovers_are_removed_by_repair(photos: Collection) -> None:
    folder = Path(photos.index_path)
    (folder / ".x.segment.tmp-123-1").write_bytes(b"half")
    (folder / "00000000-999.segment").write_bytes(b"old")
    (folder / "notes.txt").write_text("not ours")
    photos.repair()
    assert len(list(folder.glob("*.segment"))) == 1
    assert not (folder / ".x.segment.tmp-123-1").exists()
    assert (folder / "notes.txt").exists()


def test_something_in_the_indexs_place(con: Con, database: Path, tmp_path: Path) -> None:
    base = Path(f"{database}.boxwood")
    base.write_text("a file")
    with pytest.raises(boxwood.StorageError, match="Move that away"):
        Collection.create(con, "photos")
    assert Collection.list(con) == []
    base.unlink()
    photos = Collection.create(con, "photos")
    photos.append([1], codes=clustered_codes(1))
    shutil.rmtree(photos.index_path)
    photos.index_path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(boxwood.IndexCorrupt, match="is no folder: remove it"):
        photos.repair()
    photos.index_path.unlink()
    shutil.rmtree(base)
    base.symlink_to(tmp_path / "nowhere")
    with pytest.raises(boxwood.StorageError, match="Move that away"):
        photos.repair()
    base.unlink()
    photos.repair()
    photos.verify()


def knn_in_sql(con: Con, name: str = "photos") -> int:
    return len(con.execute(f"SELECT * FROM search_like('{name}', 1)").fetchall())


def test_sql_does_not_answer_by_a_wrong_index(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = boxwood.connect(database)
    photos = Collection.create(con, "photos")
    other = Collection.create(con, "other")
    for collection in (photos, other):
        collection.append([1, 2], codes=clustered_codes(2))

    def full(*_: object, **__: object) -> None:
        raise boxwood.StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(native, "write_segment", full)
        with pytest.raises(boxwood.StorageError, match="safe in the database"):
            photos.append([3], codes=clustered_codes(1))
    assert knn_in_sql(con) == 3  # the codes table has it
    assert knn_in_sql(con, "other") == 2
    con.close()
    for read_only in (True, False):
        with boxwood.connect(database, read_only=read_only) as con:
            assert knn_in_sql(con) == 3
            states = {row["name"]: row["state"] for row in Collection.describe(con)}
            assert states == {"photos": "behind", "other": "current"}
    con = boxwood.connect(database)
    photos = Collection.open(con, "photos")  # takes it in
    assert photos.info()["state"] == "current"
    with monkeypatch.context() as patch:
        patch.setattr(native, "write_segment", full)
        with pytest.raises(boxwood.StorageError):
            photos.append([4], codes=clustered_codes(1))
    photos.append([5], codes=clustered_codes(1))  # so does an append
    assert photos.info()["state"] == "current"
    assert knn_in_sql(con) == 5
    older = database.parent / "older"
    shutil.copytree(photos.index_path, older)
    photos.delete([5])
    photos.refresh()
    photos.append([5], codes=clustered_codes(1))
    photos.refresh()
    shutil.rmtree(photos.index_path)
    shutil.copytree(older, photos.index_path)
    with pytest.raises(duckdb.Error, match="repair"):
        knn_in_sql(con)
    assert {row["state"] for row in Collection.describe(con)} == {"stale", "current"}
    shutil.rmtree(photos.index_path)
    shutil.copytree(other.index_path, photos.index_path)
    boxwood.load(con)
    with pytest.raises(duckdb.Error, match=r"another collection.*repair"):
        knn_in_sql(con)
    assert {row["state"] for row in Collection.describe(con)} == {"foreign", "current"}
    photos.repair()
    assert knn_in_sql(con) == 5
    shutil.rmtree(photos.index_path)
    with pytest.raises(boxwood.IndexMissing):
        Collection.open(con, "photos")
    with pytest.raises(duckdb.Error, match=r"no Boxwood index.*repair"):
        knn_in_sql(con)
    assert {row["state"] for row in Collection.describe(con)} == {"missing", "current"}
    Collection.open(con, "photos", repair=True)
    assert knn_in_sql(con) == 5
    (photos.index_path / "MANIFEST").write_bytes(b"damaged")
    assert {row["state"] for row in Collection.describe(con)} == {"corrupt", "current"}
    con.close()


# --- faults while writing -------------------------------------------------------------------------


def test_rows_stay_when_the_index_cannot_be_written(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    con = boxwood.connect(database)
    photos = Collection.create(con, "photos")
    photos.append([1, 2], codes=clustered_codes(2))

    def full(*_: object, **__: object) -> None:
        raise boxwood.StorageError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(native, "write_segment", full)
        with pytest.raises(boxwood.StorageError, match=r"safe in the database.*no space left"):
            photos.append([3, 4], codes=clustered_codes(2))
        assert stored(con) == 4
        # It never answers without them.
        assert len(photos.knn(like=1)) == 4
    with monkeypatch.context() as patch:
        patch.setattr(native, "write_segment", full)
        with pytest.raises(boxwood.StorageError):
            photos.append([5], codes=clustered_codes(1))
    con.close()
    with boxwood.connect(database, read_only=True) as con:
        photos = Collection.open(con, "photos")
        assert len(photos.knn(like=1)) == 5
        assert photos.info()["pending"] == 3
    with boxwood.connect(database) as con:
        photos = Collection.open(con, "photos")
        assert len(photos) == 5
        assert photos.info()["pending"] == 0
        Collection.open(con, "photos").verify()


def test_a_full_disk(database: Path) -> None:
    """The limit on file sizes stands in for the disk: both end a write in the middle."""
    program = """
        import resource, signal, sys
        import numpy as np
        import boxwood
        from boxwood import Collection
        from conftest import clustered_codes

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        con = boxwood.connect(sys.argv[1])
        photos = Collection.create(con, "photos")
        photos.append(np.arange(5000), codes=clustered_codes(5000))
        con.execute("CHECKPOINT")
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        try:
            photos.compact()
        except boxwood.StorageError as error:
            print("compact:", error)
        print(len(photos.knn(like=17, k=5)))
        try:
            photos.append(np.arange(5000, 15000), codes=clustered_codes(10000, 1))
        except boxwood.StorageError as error:
            print("append:", error)
    """
    done = run_python(program, database)
    assert "compact:" in done.stdout, done.stderr
    assert "append:" in done.stdout, done.stderr
    assert "\n5\n" in done.stdout
    with boxwood.connect(database) as con:
        photos = Collection.open(con, "photos")
        assert len(photos) in (5000, 15_000)
        photos.verify()
        photos.compact()
        left = [path.name for path in Path(photos.index_path).iterdir() if ".tmp-" in path.name]
        assert left == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(200):
        pixels = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_add_images(con: Con, pictures: Path) -> None:
    photos = Collection.create(con, "photos", encoder=PlainEncoder(), texts=["a cat", "a dog"])
    (pictures / "broken.png").write_bytes(b"\x89PNG")
    (pictures / "notes.txt").write_text("no image")
    report = photos.add_images(pictures, batch=64)
    assert (report.added, report.known) == (200, 0)
    assert [Path(uri).name for uri, _ in report.failed] == ["broken.png"]
    assert con.execute("SELECT id, width, height FROM photos LIMIT 1").fetchall() == [(0, 16, 12)]
    rows = con.execute("SELECT uri, bytes FROM photos").fetchall()
    assert all(Path(uri).stat().st_size == size for uri, size in rows)
    again = photos.add_images([pictures, pictures / "005.png"])
    assert (again.added, again.known, len(again.failed)) == (0, 200, 1)
    photos.verify()
    hits = photos.search_image(pictures / "017.png", k=1)
    assert con.execute("SELECT uri FROM photos WHERE id = ?", [hits["id"][0].as_py()]).fetchall() \
        == [(str((pictures / "017.png").resolve()),)]  # fmt: skip
    with pytest.raises(boxwood.InputError, match="no such file"):
        photos.add_images(pictures / "none")
    with pytest.raises(boxwood.InputError, match="batch"):
        photos.add_images(pictures, batch=0)
    with pytest.raises(boxwood.InputError, match="not an image"):
        photos.search_image(pictures / "notes.txt")


def test_words(con: Con, pictures: Path) -> None:
    photos = Collection.create(con, "photos", encoder=PlainEncoder(), texts=["a cat", "a dog"])
    with pytest.raises(boxwood.InputError, match="add images first"):
        photos.encode_text("a cat")
    photos.add_images(pictures)
    stored_texts = "SELECT text FROM boxwood.texts ORDER BY text"
    assert con.execute(stored_texts).fetchall() == [("a cat",), ("a dog",)]
    hits = [tuple(row.values()) for row in photos.search_text("a cat", k=5).to_pylist()]
    assert con.execute("FROM search_text('photos', 'a cat', k := 5)").fetchall() == hits
    new = con.execute("FROM search_text('photos', 'a new phrase', k := 5)").fetchall()
    assert ("a new phrase",) in con.execute(stored_texts).fetchall()
    assert new == [
        tuple(row.values()) for row in photos.search_text("a new phrase", k=5).to_pylist()
    ]
    assert con.execute("SELECT clip_text('photos', NULL)").fetchall() == [(None,)]
    code = con.execute("SELECT clip_text('photos', 'a cat')").fetchall()
    assert code == [(photos.encode_text("a cat").tolist(),)]
    with pytest.raises(duckdb.Error, match="no collection 'none'"):
        con.execute("SELECT clip_text('none', 'a cat')").fetchall()
    for text in ("", "  ", None, 3):
        with pytest.raises(boxwood.InputError, match="empty"):
            photos.encode_text(text)  # type: ignore[arg-type]
    # Inside a transaction too, and in a cursor.
    con.execute("BEGIN")
    con.execute("FROM search_text('photos', 'a third phrase')").fetchall()
    con.execute("ROLLBACK")
    cursor = boxwood.load(con.cursor())
    assert cursor.execute("FROM search_text('photos', 'a cat', k := 5)").fetchall() == hits
    cursor.close()


def test_images_to_search_by(con: Con, pictures: Path) -> None:
    photos = Collection.create(con, "photos", encoder=PlainEncoder())
    photos.add_images(pictures)
    file = sorted(pictures.glob("*.png"))[0]
    with Image.open(file) as picture:
        rgb = picture.convert("RGB")
    hits = photos.search_image(file, k=5)
    assert photos.search_image(rgb, k=5) == hits
    assert photos.search_image(np.asarray(rgb), k=5) == hits
    assert photos.search_image(np.asarray(rgb)[::-1][::-1], k=5) == hits
    bad: list[Any] = [5, None, b"x", np.ones((4, 4, 3)), np.ones((4, 4), np.uint8),
                      np.ones((0, 4, 3), np.uint8)]  # fmt: skip
    for image in bad:
        with pytest.raises(boxwood.InputError, match=r"an image must be|pixels must be"):
            photos.search_image(image)


def test_a_name_that_is_not_utf8(con: Con, pictures: Path) -> None:
    name = os.fsencode(pictures) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(sorted(pictures.glob("*.png"))[0]), name)
    photos = Collection.create(con, "photos", encoder=PlainEncoder())
    failed = photos.add_images(pictures).failed
    assert [path for path, reason in failed if "UTF-8" in reason] == [f"{pictures}/caf\\xe9.png"]


def test_images_listed_in_a_table_of_the_users(con: Con, pictures: Path) -> None:
    con.execute("CREATE TABLE photos (id BIGINT, uri VARCHAR, width INTEGER, height INTEGER, "
                "bytes BIGINT, modified TIMESTAMP, title VARCHAR)")  # fmt: skip
    uri = str((pictures / "003.png").resolve())
    con.execute("INSERT INTO photos (id, uri, title) VALUES (77, ?, 'mine')", [uri])
    photos = Collection.create(con, "photos", encoder=PlainEncoder(), texts=["a cat"])
    assert photos.add_images(pictures).added == 200
    assert con.execute("SELECT count(*), max(id) FROM photos").fetchall() == [(200, 276)]
    assert photos.search_image(pictures / "003.png", k=1)["id"].to_pylist() == [77]
    con.execute("CREATE TABLE other (id BIGINT, name VARCHAR)")
    other = Collection.create(con, "other", encoder=PlainEncoder(), texts=["a cat"])
    with pytest.raises(boxwood.InputError, match="no column 'uri'"):
        other.add_images(pictures)


def test_an_encoder_with_other_weights(con: Con, pictures: Path) -> None:
    Collection.create(con, "photos", encoder=PlainEncoder("p"), texts=["a"]).add_images(pictures)
    changed = PlainEncoder("p")
    changed.fingerprint = "changed"
    boxwood.catalog.keep_encoder(changed)
    photos = Collection.open(con, "photos")
    with pytest.raises(boxwood.IndexMismatch, match="other weights"):
        photos.search_text("b")
    with pytest.raises(boxwood.IndexMismatch, match="other weights"):
        photos.add_images(pictures)


ADDING = """
    import signal, sys
    import boxwood
    from boxwood import Collection
    from conftest import PlainEncoder

    signal.signal(signal.SIGINT, signal.default_int_handler)
    con = boxwood.connect(sys.argv[1])
    encoder = PlainEncoder(seconds=0.05)
    photos = Collection.create(con, "photos", encoder=encoder, texts=["a cat"])
    append = photos._append

    def tell(*arguments, **options):
        count = append(*arguments, **options)
        print("committed", flush=True)
        return count

    photos._append = tell
    try:
        photos.add_images(sys.argv[2], batch=10)
    except KeyboardInterrupt:
        photos.verify()
        print("interrupted", len(photos), flush=True)
"""


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_add_images_is_interrupted(database: Path, pictures: Path, how: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ADDING), str(database), str(pictures)],
        env=child_environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    for _ in range(3):
        assert child.stdout.readline() == "committed\n"
    time.sleep(0.02)
    child.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    rest, _ = child.communicate(timeout=60)
    with boxwood.connect(database) as con:
        boxwood.catalog.keep_encoder(PlainEncoder())
        photos = Collection.open(con, "photos")
        before = len(photos)
        if how == "interrupt":
            assert rest.splitlines()[-1] == f"interrupted {before}"
        assert 30 <= before < 200
        assert before % 10 == 0
        photos.verify()
        assert con.execute("SELECT count(*) FROM photos").fetchall() == [(before,)]
        report = photos.add_images(pictures)
        assert (report.added, report.known) == (200 - before, before)
        photos.verify()


def test_an_interrupt_waits_for_what_belongs_together(
    photos: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = photos._store.publish

    def interrupted(*arguments: Any) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return publish(*arguments)

    monkeypatch.setattr(photos._store, "publish", interrupted)
    ids = 1_000_000 + np.arange(3000)
    with pytest.raises(KeyboardInterrupt):
        photos.append(ids, codes=clustered_codes(3000))
    assert photos.info()["pending"] == 0
    assert len(photos.knn(like=int(ids[0]))) == 60
    photos.verify()


def test_an_interrupt_ends_a_bulk_load_without_a_trace(con: Con, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clustered_embeddings(40_000))
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    ticks: list[int] = []
    update = boxwood.collection.Bar.update

    def slow(self: Any, done: int, total: int) -> None:
        update(self, done, total)
        ticks.append(done)
        if len(ticks) == 1:
            timer.start()
        time.sleep(0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxwood.collection, "_batch_rows", lambda width: 2000)
        patch.setattr(boxwood.collection.Bar, "update", slow)
        with pytest.raises(KeyboardInterrupt):
            Collection.from_npy(con, "photos", tmp_path / "x.npy")
    assert Collection.list(con) == []
    assert 1 <= len(ticks) < 20


@pytest.fixture(autouse=True)
def _no_encoders_left() -> Iterator[None]:
    yield
    boxwood.catalog._encoders.clear()


def test_messages_of_arrow_errors(photos: Collection) -> None:
    with pytest.raises(boxwood.InputError, match="cannot be used"):
        photos.append([1], codes=clustered_codes(1), metadata={"a": [object()]})


def test_an_interrupted_query_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), boxwood.collection._database_errors():
        raise RuntimeError("Query interrupted") from KeyboardInterrupt()
    with pytest.raises(RuntimeError), boxwood.collection._database_errors():
        raise RuntimeError("another")


def test_tables_of_another_version(tmp_path: Path) -> None:
    con = boxwood.connect(tmp_path / "other.duckdb")
    con.execute("CREATE SCHEMA boxwood; CREATE TABLE boxwood.collections (name VARCHAR)")
    with pytest.raises(boxwood.Error, match="those of another version of Boxwood"):
        boxwood.Collection.open(con, "photos")
