"""Collections: making, filling, searching, refining, and what SQL says of the same."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import boxwood
from boxwood import Collection, Head, native, store
from conftest import clustered_codes, clustered_embeddings

Con = duckdb.DuckDBPyConnection


def rows_of(con: Con, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return con.execute(query, list(parameters)).fetchall()


# --- connections ----------------------------------------------------------------------------------


def test_a_connection_is_duckdbs_own(con: Con) -> None:
    assert isinstance(con, duckdb.DuckDBPyConnection)
    assert rows_of(con, "SELECT getvariable('boxwood_index')") == [({},)]
    # Nothing is written before there is a collection.
    schemas = rows_of(con, "SELECT schema_name FROM duckdb_schemas() WHERE schema_name = 'boxwood'")
    assert schemas == []


def test_closing_lets_go_of_the_file(database: Path) -> None:
    con = boxwood.connect(database)
    collection = Collection.create(con, "photos")
    cursor = boxwood.load(con.cursor())
    cursor.close()
    con.close()
    # The collection object is still here, and must not keep the database open: another
    # configuration is refused while it is.
    with duckdb.connect(str(database), config={"threads": "1"}) as plain:
        assert rows_of(plain, "SELECT name FROM boxwood.collections") == [("photos",)]
    assert collection.name == "photos"


def test_cursors_are_loaded_by_load(con: Con, photos: Collection) -> None:
    cursor = con.cursor()
    with pytest.raises(duckdb.Error):
        cursor.execute("FROM search_like('photos', 0)")
    assert boxwood.load(cursor) is cursor
    assert boxwood.load(cursor) is cursor
    assert len(rows_of(cursor, "FROM search_like('photos', 0, k := 5)")) == 5
    cursor.close()


def test_a_connection_of_somebody_else(database: Path) -> None:
    config = {"allow_unsigned_extensions": "true"}
    with duckdb.connect(str(database), config=config) as other:
        boxwood.load(other)
        collection = Collection.create(other, "photos")
        collection.append([1, 2], codes=clustered_codes(2))
        assert len(rows_of(other, "FROM search_like('photos', 1)")) == 2


def test_in_memory() -> None:
    con = boxwood.connect()
    collection = Collection.create(con, "photos")
    collection.append(np.arange(100), codes=clustered_codes(100))
    folder = Path(collection.index_path)
    assert folder.is_dir()
    assert len(rows_of(con, "FROM search_like('photos', 1, k := 10)")) == 10
    again = Collection.open(boxwood.load(con.cursor()), "photos")
    assert again.index_path == collection.index_path
    collection.verify()
    other = boxwood.connect()
    assert Collection.list(other) == []
    other.close()
    collection.drop()
    assert not folder.exists()
    con.close()


def test_config_reaches_duckdb(database: Path) -> None:
    with boxwood.connect(database, config={"threads": 1}) as con:
        assert rows_of(con, "SELECT current_setting('threads')") == [(1,)]


# --- create, open, list, drop ---------------------------------------------------------------------


def test_the_life_of_a_collection(database: Path) -> None:
    con = boxwood.connect(database)
    photos = Collection.create(con, "photos")
    assert (len(photos), Collection.list(con)) == (0, ["photos"])
    assert photos.append([5, 3], codes=clustered_codes(2)) == 2
    Collection.create(con, "art")
    assert Collection.list(con) == ["art", "photos"]
    con.close()

    con = boxwood.connect(database)
    photos = Collection.open(con, "photos")
    assert len(photos) == 2
    assert repr(photos) == "Collection('photos', 2 images)"
    assert rows_of(con, "SELECT id FROM boxwood.photos_codes ORDER BY id") == [(3,), (5,)]
    photos.verify()
    folder = Path(photos.index_path)
    assert folder.parent == Path(f"{database}.boxwood")
    photos.drop()
    assert Collection.list(con) == ["art"]
    assert not folder.exists()
    assert rows_of(
        con, "SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '%codes'"
    ) == [("art_codes",)]
    again = Collection.create(con, "photos")
    assert len(again) == 0
    with pytest.raises(boxwood.InputError, match="dropped"):
        photos.knn(like=3)
    with pytest.raises(boxwood.InputError, match="dropped"):
        photos.append([1], codes=clustered_codes(1))
    con.close()


def test_info(photos: Collection) -> None:
    info = photos.info()
    assert (info["name"], info["rows"], info["segments"]) == ("photos", 3000, 1)
    assert (info["state"], info["quantizer"], info["head"]) == ("current", "codes", None)
    assert info["index"] == str(photos.index_path)
    # 56.75 bytes a row, and in a small segment as much again: sample, histograms, whole pages.
    assert 56.75 < info["bytes_per_row"] < 115
    assert info["generation"] == native.Index(photos.index_path).info.generation


# --- appending ------------------------------------------------------------------------------------


def test_embeddings_fix_head_and_quantizer(con: Con) -> None:
    photos = Collection.create(con, "photos")
    embeddings = clustered_embeddings(500)
    assert photos.head is None
    assert photos.quantizer is None
    photos.append(np.arange(400), embeddings=embeddings[:400])
    head, quantizer = photos.head, photos.quantizer
    assert head == Head.pca(embeddings[:400])
    assert quantizer is not None
    photos.append(np.arange(400, 500), embeddings=embeddings[400:] * 7)
    assert (photos.head, photos.quantizer) == (head, quantizer)
    again = Collection.open(con, "photos")
    assert (again.head, again.quantizer) == (head, quantizer)
    codes = quantizer.encode(head.images(embeddings))
    columns = ", ".join(f"d{d:02}" for d in range(32))
    stored = rows_of(con, f"SELECT {columns} FROM boxwood.photos_codes ORDER BY id")
    assert np.array_equal(np.array(stored, np.uint8), codes)
    assert photos.info()["head"] == "pca"
    photos.verify()


def test_a_given_head(con: Con) -> None:
    embeddings = clustered_embeddings(300)
    head = Head.pca(embeddings[100:])
    photos = Collection.create(con, "photos", head=head)
    photos.append(np.arange(300), embeddings=embeddings)
    assert photos.head == head
    photos.drop()
    assert rows_of(con, "SELECT count(*) FROM boxwood.heads") == [(0,)]


def test_given_texts(database: Path) -> None:
    images, texts = clustered_embeddings(300), clustered_embeddings(100, seed=3)
    with boxwood.connect(database) as con:
        Collection.create(con, "photos", texts=texts)
    with boxwood.connect(database) as con:  # they are kept until then
        photos = Collection.open(con, "photos")
        photos.append(np.arange(300), embeddings=images)
        assert photos.head == Head.shared(images, texts)
        assert rows_of(con, "SELECT texts FROM boxwood.collections") == [(None,)]
        near = photos.search_embedding(texts[0], k=5, kind="text")
        assert len(near) == 5
        code = photos.encode_embedding(texts[0], "text")
        assert near.equals(photos.knn(code, k=5))


@pytest.mark.parametrize("kind", ["arrow", "batch", "dict", "with ids"])
def test_metadata(con: Con, kind: str) -> None:
    photos = Collection.create(con, "photos", id_column="image")
    columns = {"uri": ["a", "b", "c"], "year": [2001, None, 2003]}
    metadata: Any = {
        "arrow": pa.table(columns),
        "batch": pa.RecordBatch.from_pydict(columns),
        "dict": columns,
        "with ids": {"image": [7, 8, 9], **columns},
    }[kind]
    photos.append([7, 8, 9], codes=clustered_codes(3), metadata=metadata)
    assert photos.table == "photos"
    photos.append([10], codes=clustered_codes(1), metadata={"uri": ["d"]})
    assert rows_of(con, "FROM photos ORDER BY image") == [
        (7, "a", 2001), (8, "b", None), (9, "c", 2003), (10, "d", None),
    ]  # fmt: skip
    photos.drop()
    assert rows_of(con, "SELECT 1 FROM duckdb_tables() WHERE table_name = 'photos'") == []


@pytest.mark.parametrize("name", ["name", "names", "record", "con", "cur", "id", "select", "np"])
def test_names_that_mean_something_elsewhere(con: Con, name: str) -> None:
    collection = Collection.create(con, name)
    collection.append([1], codes=clustered_codes(1), metadata={"uri": ["a"]})
    assert len(Collection.open(con, name)) == 1
    assert rows_of(con, f'SELECT * FROM "{name}"') == [(1, "a")]
    collection.drop()


def test_pandas_metadata(con: Con) -> None:
    pandas = pytest.importorskip("pandas")
    photos = Collection.create(con, "photos")
    frame = pandas.DataFrame({"uri": ["a", "b"]}, index=[5, 6])
    photos.append([1, 2], codes=clustered_codes(2), metadata=frame)
    assert rows_of(con, "FROM photos ORDER BY id") == [(1, "a"), (2, "b")]


def test_a_table_of_the_users_is_used_as_it_is(con: Con) -> None:
    con.execute("CREATE SCHEMA work; CREATE TABLE work.pictures (nr INTEGER, title VARCHAR)")
    con.execute("INSERT INTO work.pictures VALUES (1, 'one'), (2, 'two')")
    photos = Collection.create(con, "photos", table="work.pictures", id_column="nr")
    photos.append([1, 2], codes=clustered_codes(2))
    photos.append([3], codes=clustered_codes(1), metadata={"title": ["three"]})
    assert rows_of(con, "SELECT title FROM work.pictures ORDER BY nr") == [
        ("one",), ("two",), ("three",)
    ]  # fmt: skip
    photos.drop()
    assert rows_of(con, "SELECT count(*) FROM work.pictures") == [(3,)]


def test_a_table_of_the_collections_name_is_its_metadata(con: Con) -> None:
    con.execute("CREATE TABLE photos AS SELECT 5 AS id, 'x' AS uri")
    photos = Collection.create(con, "photos")
    assert photos.table == "photos"
    photos.drop()
    assert rows_of(con, "FROM photos") == [(5, "x")]


def test_small_segments_are_merged(con: Con) -> None:
    photos = Collection.create(con, "photos")
    codes = clustered_codes(500)
    for start in range(0, 500, 10):
        photos.append(np.arange(start, start + 10), codes=codes[start : start + 10])
    index = native.Index(photos.index_path)
    assert len(index) == 500
    assert index.info.segments <= 7
    photos.verify()
    photos.compact()
    assert native.Index(photos.index_path).info.segments == 1
    photos.verify()
    assert len(list(Path(photos.index_path).glob("*.segment"))) == 1


def test_large_segments_are_left_alone(con: Con, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SEGMENT_ROWS", 100)
    photos = Collection.create(con, "photos")
    codes = clustered_codes(1000)
    for start in range(0, 1000, 100):
        photos.append(np.arange(start, start + 100), codes=codes[start : start + 100])
    assert native.Index(photos.index_path).info.segments == 10
    photos.verify()


# --- bulk loads -----------------------------------------------------------------------------------


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxwood.collection, "_batch_rows", lambda width: 128)
    monkeypatch.setattr(boxwood.collection, "FIT_ROWS", 300)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("kind", ["FLOAT[]", "FLOAT[48]", "DOUBLE[]"])
def test_from_table(con: Con, kind: str) -> None:
    embeddings = clustered_embeddings(1000)
    rows = pa.table({"nr": np.arange(1000) * 2, "e": embeddings.tolist(), "t": ["x"] * 1000})
    con.register("rows", rows)
    con.execute(f"CREATE TABLE pictures AS SELECT nr, e::{kind} AS clip, t FROM rows")
    con.unregister("rows")
    photos = Collection.from_table(con, "pictures", id="nr", embedding="clip")
    assert (photos.name, photos.table, len(photos)) == ("pictures", "pictures", 1000)
    assert photos.info()["segments"] == 1
    photos.verify()
    assert photos.search_embedding(embeddings[17], k=1)["id"].to_pylist() == [34]
    named = Collection.from_table(con, "pictures", id="nr", embedding="clip", name="again")
    assert (named.name, len(named)) == ("again", 1000)


@pytest.mark.usefixtures("small_batches")
def test_from_parquet(con: Con, tmp_path: Path) -> None:
    embeddings = clustered_embeddings(700)
    path = tmp_path / "it's.parquet"
    pq.write_table(
        pa.table({"id": np.arange(700), "embedding": embeddings.tolist(), "t": ["x"] * 700}), path
    )
    photos = Collection.from_parquet(con, "photos", path)
    assert len(photos) == 700
    assert rows_of(con, "SELECT * FROM photos WHERE id = 5") == [(5, "x")]
    assert photos.search_embedding(embeddings[5], k=1)["id"].to_pylist() == [5]
    photos.verify()
    pq.write_table(pa.table({"clip": embeddings[:9].tolist()}), path)
    other = Collection.from_parquet(con, "other", path, id=None, embedding="clip")
    assert rows_of(con, "SELECT id FROM other ORDER BY id") == [(i,) for i in range(9)]
    assert len(other) == 9
    with pytest.raises(boxwood.InputError, match="no column 'nr'"):
        Collection.from_parquet(con, "third", path, id="nr", embedding="clip")
    with pytest.raises(boxwood.StorageError):
        Collection.from_parquet(con, "third", tmp_path / "none.parquet")
    assert Collection.list(con) == ["other", "photos"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1"])
def test_from_npy(con: Con, tmp_path: Path, dtype: str) -> None:
    rows = clustered_codes(500) if dtype == "u1" else clustered_embeddings(500).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "ids.npy", np.arange(500)[::-1] * 3)
    photos = Collection.from_npy(con, "photos", tmp_path / "rows.npy", ids=tmp_path / "ids.npy")
    assert len(photos) == 500
    photos.verify()
    assert photos.add_npy(tmp_path / "rows.npy") == 500
    assert rows_of(con, "SELECT max(id) FROM boxwood.photos_codes") == [(3 * 499 + 500,)]
    twins = photos.knn(like=3 * 499, k=2)
    assert twins["distance"].to_pylist() == [0, 0]
    assert twins["id"].to_pylist() == [3 * 499, 3 * 499 + 1]
    photos.verify()


@pytest.mark.usefixtures("small_batches")
def test_a_bulk_load_that_fails_leaves_nothing(con: Con, tmp_path: Path) -> None:
    rows = clustered_embeddings(500)
    rows[450, 3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(boxwood.InputError, match="NaN"):
        Collection.from_npy(con, "photos", tmp_path / "rows.npy")
    pq.write_table(pa.table({"id": np.arange(500), "embedding": rows.tolist()}), tmp_path / "p")
    with pytest.raises(boxwood.InputError, match="450"):
        Collection.from_parquet(con, "photos", tmp_path / "p")
    assert Collection.list(con) == []
    assert not list(Path(f"{tmp_path}/photos.duckdb.boxwood").glob("*"))
    assert rows_of(con, "SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE 'photos%'") == [
        (0,)
    ]


# --- searching ------------------------------------------------------------------------------------


def test_knn_equals_sql(con: Con, photos: Collection) -> None:
    hits = photos.knn(like=30, k=7)
    assert hits.schema.equals(pa.schema([("id", pa.int64()), ("distance", pa.float64())]))
    assert rows_of(con, "FROM search_like('photos', 30, k := 7)") == [
        tuple(row.values()) for row in hits.to_pylist()
    ]
    code = clustered_codes(3000)[10]
    assert photos.knn(code, k=7).equals(hits)
    assert photos.knn(code.tolist(), k=7).equals(hits)
    assert rows_of(con, "FROM search_code('photos', ?, k := 7)", code.tolist()) == [
        tuple(row.values()) for row in hits.to_pylist()
    ]
    assert len(photos.knn(code, k=5000)) == 3000
    nearly = photos.knn(code, k=40, recall=0.9)
    assert len(nearly) == 40
    assert nearly["distance"][0].as_py() == 0
    assert rows_of(con, "FROM search_code('photos', ?, k := 40, recall := 0.9)", code.tolist()) == [
        tuple(row.values()) for row in nearly.to_pylist()
    ]


def test_knn_within(con: Con, photos: Collection) -> None:
    every = photos.knn(like=30, k=3000)
    near = every["id"].to_pylist()
    model = photos.train(near[:30], near[60:90])
    matching = set(photos.search(model).ids.tolist())
    assert 30 <= len(matching) < 3000
    wanted = [row for row in every.to_pylist() if row["id"] in matching]
    assert photos.knn(like=30, k=7, within=model).to_pylist() == wanted[:7]
    assert photos.knn(like=30, k=3000, within=model, recall=0.5).to_pylist() == wanted
    assert rows_of(con, "FROM search_like('photos', 30, k := 7, within := ?)", model.to_json()) == [
        tuple(row.values()) for row in wanted[:7]
    ]
    some = [row for row in wanted if row["id"] % 2]
    odd = {number for number in near if number % 2} | {10**15}
    assert photos.knn(like=30, k=9, within=model, ids=odd).to_pylist() == some[:9]
    assert len(photos.knn(like=30, ids=[])) == 0


@pytest.mark.parametrize("learner", ["branch", "ensemble", "tree", "forest"])
def test_refine_equals_sql(con: Con, photos: Collection, learner: Any) -> None:
    if learner in ("tree", "forest"):
        pytest.importorskip("sklearn")
    near = photos.knn(like=30, k=60)["id"].to_pylist()
    found = photos.refine(near[:20], set(near[45:]), learner=learner, seed=3)
    again = photos.refine(near[:20][::-1], near[45:], learner=learner, seed=3)
    assert found.model == again.model
    assert found.model == photos.train(near[:20], near[45:], learner=learner, seed=3)
    table = found.table()
    assert table.equals(again.table())
    assert found.count == len(found) == table.num_rows == photos.count(found.model) > 0
    # The statement gives the same rows in the same order.
    assert rows_of(con, found.sql) == [tuple(row.values()) for row in table.to_pylist()]
    # And DuckDB alone the same set.
    where = rows_of(con, f"SELECT id FROM boxwood.photos_codes WHERE {found.model.to_sql()}")
    assert {i for (i,) in where} == set(found.ids.tolist())
    # Ranked by score, ties by id.
    ranked = list(zip((-table["score"].to_numpy()).tolist(), table["id"].to_pylist(), strict=True))
    assert ranked == sorted(ranked)
    assert found.table(3).equals(table.slice(0, 3))
    assert found.reader(7).read_all().to_pylist() == table.to_pylist()
    searched = photos.search(found.model)
    assert searched.table().equals(table)
    assert rows_of(con, searched.sql) == rows_of(con, found.sql)
    codes = native.Index(photos.index_path).codes(table["id"])
    assert found.model.matches(codes).all()
    assert found.model.scores(codes).tolist() == table["score"].to_pylist()
    for key in ("train_ms", "search_ms", "rows", "blocks", "positives", "random_negatives"):
        assert found.stats[key] >= 0
    assert found.stats["rows"] == found.count


def test_refine_in_sql_has_the_same_rows(con: Con, photos: Collection) -> None:
    near = photos.knn(like=30, k=60)["id"].to_pylist()
    found = photos.refine(near[:20], near[45:], learner="branch", seed=1, random_negatives=200)
    rows = rows_of(
        con,
        f"SELECT * FROM refine('photos', positives := {near[:20]}, negatives := {near[45:]}, "
        "learner := 'branch', seed := 1, random_negatives := 200) ORDER BY score DESC, id",
    )
    assert rows == [tuple(row.values()) for row in found.table().to_pylist()]


def test_labels_are_read_once(con: Con, photos: Collection) -> None:
    expected = photos.refine([3, 6, 9], [30, 33])
    found = photos.refine(iter([3, 6, 9]), {30: 1, 33: 2}.keys())
    assert found.sql == expected.sql
    assert con.execute(found.sql).fetchall() == [
        tuple(row.values()) for row in expected.table().to_pylist()
    ]


def test_describe(con: Con, photos: Collection) -> None:
    empty = Collection.create(con, "empty")
    assert Collection.describe(con) == [empty.info(), photos.info()]
    assert Collection.describe(con)[1]["rows"] == 3000
    with duckdb.connect() as plain:
        assert Collection.describe(plain) == []


def test_options_change_the_model(photos: Collection) -> None:
    near = photos.knn(like=30, k=60)["id"].to_pylist()
    models = {
        photos.train(near[:9], near[30:], **options)
        for options in (
            {}, {"seed": 1}, {"estimators": 5}, {"learner": "branch"}, {"learner": "tree"},
            {"learner": "forest"}, {"learner": "forest", "estimators": 5},
        )
    }  # fmt: skip
    assert len(models) == 7


def test_models_of_another_quantizer_are_refused(con: Con, photos: Collection) -> None:
    other = Collection.create(con, "other")
    other.append(np.arange(300), embeddings=clustered_embeddings(300))
    model = other.train(range(10))
    with pytest.raises(boxwood.IndexMismatch):
        photos.search(model)
    with pytest.raises(boxwood.IndexMismatch):
        photos.count(model)


def test_an_empty_collection(con: Con) -> None:
    photos = Collection.create(con, "photos")
    assert len(photos.knn(clustered_codes(1)[0])) == 0
    assert len(photos.search_text("a dog")) == 0
    for search in (lambda: photos.refine([1]), lambda: photos.knn(like=1)):
        with pytest.raises(boxwood.InputError, match="empty"):
            search()
    everything = boxwood.Model.from_json(
        '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
    )
    assert photos.count(everything) == 0
    assert photos.search(everything).table().num_rows == 0
    assert photos.search(everything).reader().read_all().num_rows == 0
    photos.verify()
    photos.refresh()
    photos.compact()
    assert photos.info()["rows"] == 0


def test_rows_come_back_joined(con: Con, photos: Collection) -> None:
    near = photos.knn(like=30, k=20)["id"].to_pylist()
    rows = rows_of(
        con,
        f"SELECT p.camera, count(*) FROM refine('photos', positives := {near}) r "
        "JOIN photos p USING (id) GROUP BY ALL",
    )
    assert sum(n for _, n in rows) == photos.refine(near).count


# --- several objects, cursors and threads ---------------------------------------------------------


def test_two_objects_on_one_collection(con: Con) -> None:
    one = Collection.create(con, "photos")
    two = Collection.open(con, "photos")
    one.append([1, 2, 3], embeddings=clustered_embeddings(3))
    assert len(two) == 3
    two.append([4], embeddings=clustered_embeddings(1))
    assert len(one) == 4
    assert two.head == one.head
    one.verify()


def test_threads_search_while_one_appends(con: Con, photos: Collection) -> None:
    codes = clustered_codes(6000, seed=9)
    model = photos.train(photos.knn(like=30, k=20)["id"])
    failed: list[BaseException] = []
    done = threading.Event()

    def search(python: bool) -> None:
        cursor = boxwood.load(con.cursor())
        index, last = str(photos.index_path), 0
        try:
            while not done.is_set():
                if python:
                    count = photos.count(model)
                else:
                    [(count,)] = rows_of(
                        cursor, "SELECT count FROM boxwood_count(?, model := ?)", index,
                        model.to_json(),
                    )  # fmt: skip
                assert count >= last
                last = count
                assert len(photos.knn(like=30, k=10)) == 10
        except BaseException as error:
            failed.append(error)
        finally:
            cursor.close()

    threads = [threading.Thread(target=search, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for start in range(0, 3000, 100):
        photos.append(np.arange(20_000 + start, 20_100 + start), codes=codes[start : start + 100])
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(photos) == 6000
    photos.verify()


def test_threads_append(con: Con, photos: Collection) -> None:
    failed: list[BaseException] = []

    def append(first: int) -> None:
        try:
            mine = Collection.open(con.cursor(), "photos")
            for n in range(5):
                ids = np.arange(first + 10 * n, first + 10 * n + 10)
                mine.append(ids, codes=clustered_codes(10, first + n))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=append, args=(10_000 * (n + 1),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(photos) == 3000 + 4 * 50
    photos.verify()


# --- real vectors ---------------------------------------------------------------------------------


def test_real_vectors(con: Con, real_data: Path) -> None:
    fashion = np.load(real_data / "clip_vitb32" / "fashion.npz")
    embeddings = fashion["emb"].astype(np.float32)
    texts = np.load(real_data / "clip_vitb32" / "imagenet_text.npz")["emb"].astype(np.float32)
    photos = Collection.create(con, "fashion", texts=texts)
    photos.append(np.arange(len(embeddings)), embeddings=embeddings)
    label = fashion["label"]
    kind = "Watches" if "Watches" in label else max(set(label.tolist()), key=label.tolist().count)
    truth = set(np.flatnonzero(label == kind).tolist())
    some = sorted(truth)[:20]
    for learner in ("branch", "ensemble"):
        found = photos.refine(some, learner=learner)
        where = rows_of(con, f"SELECT id FROM boxwood.fashion_codes WHERE {found.model.to_sql()}")
        assert {i for (i,) in where} == set(found.ids.tolist())
        assert len(truth & set(found.ids.tolist())) >= 10
    photos.verify()
