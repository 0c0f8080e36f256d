"""Collections: making, filling, searching, refining, and what SQL says of the same."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import boxwood
from boxwood import Collection, Head, catalog, native, store
from boxwood.encode import FINE_INSIDE, Quantizer
from conftest import PlainEncoder, clustered_codes, clustered_embeddings

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


# --- fine codes -----------------------------------------------------------------------------------


def check_fine(con: Con, photos: Collection, expected: dict[int, NDArray[np.uint8]]) -> None:
    """That database and index hold these fine codes."""
    ids = np.array(sorted(expected))
    wanted = np.stack([expected[i] for i in ids.tolist()])
    name = photos.name
    stored = con.sql(f"SELECT id, fine FROM boxwood.{name}_codes ORDER BY id").to_arrow_table()
    assert np.array_equal(stored["id"].to_numpy(), ids)
    values = stored["fine"].combine_chunks().flatten().to_numpy().reshape(-1, 128)
    assert np.array_equal(values, wanted)
    assert np.array_equal(native.Index(photos.index_path).fine(ids), wanted)
    photos.verify()


def alike(fine: NDArray[np.uint8] | None, other: NDArray[np.uint8]) -> bool:
    """Equal but for rounding: one row and many go different ways through matrix products."""
    return fine is not None and int(np.abs(fine.astype(int) - other.astype(int)).max()) <= 1


def test_embeddings_give_fine_codes(con: Con, database: Path) -> None:
    embeddings = clustered_embeddings(600, 160)
    photos = Collection.create(con, "photos")
    assert photos.info()["fine"] is None
    photos.append(np.arange(400), embeddings=embeddings[:400])
    finer = Head.pca(embeddings[:400]).finer(embeddings[:400])
    quantizer = Quantizer.fit(finer.images(embeddings[:400]), FINE_INSIDE)
    parts = [quantizer.encode(finer.images(e)) for e in (embeddings[:400], embeddings[400:])]
    expected = dict(enumerate(np.concatenate(parts)))
    info = photos.info()
    assert len(info["fine"]) == 16
    assert info["fine"] == native.Index(photos.index_path).info.fingerprints.fine
    assert rows_of(con, "SELECT fine FROM collection_info('photos')") == [(info["fine"],)]
    check_fine(con, photos, dict(list(expected.items())[:400]))
    photos.append(np.arange(400, 600), embeddings=embeddings[400:])  # is merged
    assert photos.info()["segments"] == 1
    check_fine(con, photos, expected)
    photos.compact()
    check_fine(con, photos, expected)
    shutil.rmtree(photos.index_path)
    photos.repair()
    check_fine(con, photos, expected)
    one = photos.encode(embedding=embeddings[7])
    assert np.array_equal(one.code, photos.encode_embedding(embeddings[7]))
    assert alike(one.fine, expected[7])
    text = photos.encode(embedding=embeddings[7], kind="text")
    assert alike(text.fine, quantizer.encode(finer.texts(embeddings[7:8]))[0])
    heads = [Head.from_bytes(data) for (data,) in rows_of(con, "SELECT data FROM boxwood.heads")]
    assert sorted(head.dims for head in heads) == [32, 128]
    con.close()
    with boxwood.connect(database, read_only=True) as reader:
        again = Collection.open(reader, "photos")
        check_fine(reader, again, expected)
        assert alike(again.encode(embedding=embeddings[7]).fine, expected[7])
    with boxwood.connect(database) as writer:
        Collection.open(writer, "photos").drop()
        assert rows_of(writer, "SELECT count(*) FROM boxwood.heads") == [(0,)]


def test_texts_and_images_have_fine_codes(con: Con, database: Path) -> None:
    encoder, pixels = PlainEncoder(), np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), "u1")
    pictures = [Image.fromarray(each) for each in pixels]
    photos = Collection.create(con, "photos", encoder=encoder, texts=["a cat", "a dog"])
    with pytest.raises(boxwood.InputError, match="no embeddings yet"):
        photos.encode(text="a cat")
    photos.append(np.arange(40), embeddings=encoder.images(pictures))
    coding = photos._coding_now()
    assert coding is not None
    for text in ("a cat", "a new phrase", "a new phrase"):
        codes, fine = coding.texts(encoder.texts([text]))
        one = photos.encode(text=text)
        assert alike(one.code, codes[0])
        assert np.array_equal(one.code, photos.encode_text(text))
        assert fine is not None
        assert alike(one.fine, fine[0])
    kept = rows_of(con, "SELECT text, len(code), len(fine) FROM boxwood.texts ORDER BY text")
    assert kept == [(text, 32, 128) for text in ("a cat", "a dog", "a new phrase")]
    one = photos.encode(image=pixels[7])
    assert alike(one.fine, native.Index(photos.index_path).fine([7])[0])
    assert np.array_equal(one.code, photos.encode_image(pictures[7]))
    photos_fine = native.Index(photos.index_path).fine([7])[0]
    con.close()
    with boxwood.connect(database, read_only=True) as reader:
        again = Collection.open(reader, "photos")
        assert alike(again.encode(image=pictures[7]).fine, photos_fine)
        assert again.encode(text="another").fine is not None
    catalog._encoders.clear()


@pytest.mark.parametrize("dims", [5, 48, 127, 128])
def test_fine_codes_of_short_embeddings(con: Con, dims: int) -> None:
    embeddings = clustered_embeddings(300, dims)
    photos = Collection.create(con, "photos")
    photos.append(np.arange(300), embeddings=embeddings)
    fine = native.Index(photos.index_path).fine(np.arange(300))
    assert ((fine[:, dims:] == 127) | (fine[:, dims:] == 128)).all()  # zero, in the middle
    assert (np.ptp(fine[:, :dims], axis=0) > 0).all()
    # One scale for all dimensions, and zeros have no say in it: the range is used.
    ends = np.mean((fine[:, :dims] == 0) | (fine[:, :dims] == 255))
    assert 0 < ends < 0.002


def test_no_fine_codes_where_they_are_not_wanted(con: Con, tmp_path: Path) -> None:
    embeddings = clustered_embeddings(300)
    photos = Collection.create(con, "photos", fine=False)
    photos.append(np.arange(300), embeddings=embeddings)
    codes = clustered_codes(20)
    given = Collection.create(con, "given")
    given.append(np.arange(20), codes=codes)
    np.save(tmp_path / "e.npy", embeddings)
    loaded = Collection.from_npy(con, "loaded", tmp_path / "e.npy", fine=False)
    for collection in (photos, given, loaded):
        assert collection.info()["fine"] is None
        assert "fine" not in [
            row[0] for row in rows_of(con, f"DESCRIBE boxwood.{collection.name}_codes")
        ]
        assert native.Index(collection.index_path).info.fingerprints.fine == ""
        with pytest.raises(boxwood.InputError, match="no fine codes"):
            native.Index(collection.index_path).fine([1])
        collection.verify()
    assert photos.encode(embedding=embeddings[0]).fine is None
    rows, _ = con.execute("SELECT count(*), 1 FROM boxwood.heads").fetchone() or (0, 0)
    assert rows == 1  # the two made from the same embeddings share it


def test_ready_fine_codes(con: Con) -> None:
    rng = np.random.default_rng(0)
    codes, fine = clustered_codes(700), rng.integers(0, 256, (700, 128), np.uint8)
    for name, wanted in (("a", None), ("b", True)):
        photos = Collection.create(con, name, fine=wanted)
        photos.append(np.arange(100), codes=codes[:100], fine=fine[:100])
        photos.append(np.arange(100, 700), codes=codes[100:].tolist(), fine=fine[100:].tolist())
        assert photos.info()["fine"] == "codes"
        check_fine(con, photos, dict(enumerate(fine)))
        for extra in (photos.append, photos._append):
            with pytest.raises(boxwood.InputError, match="of a collection have them or none"):
                extra([900], codes=codes[:1])
        assert len(photos) == 700


def test_mixed_fine_codes_are_refused(con: Con, tmp_path: Path) -> None:
    codes, fine = clustered_codes(3), np.zeros((3, 128), np.uint8)
    embeddings = clustered_embeddings(50)
    np.save(tmp_path / "codes.npy", codes)

    def refused(photos: Collection, message: str, ids: list[int], **rows: Any) -> None:
        before = len(photos)
        with pytest.raises(boxwood.InputError, match=message):
            photos.append(ids, **rows)
        assert len(photos) == before
        photos.verify()

    plain = Collection.create(con, "plain")
    plain.append([1, 2, 3], codes=codes)
    refused(plain, "has no fine codes.*leave them out", [5], codes=codes[:1], fine=fine[:1])
    never = Collection.create(con, "never", fine=False)
    refused(never, "created with fine=False: leave", [5], codes=codes[:1], fine=fine[:1])
    always = Collection.create(con, "always", fine=True)
    refused(always, "created with fine=True: pass fine codes", [5], codes=codes[:1])
    with pytest.raises(boxwood.InputError, match="created with fine=True"):
        always.add_npy(tmp_path / "codes.npy")
    always.append(np.arange(50), embeddings=embeddings)
    mine = always.info()["quantizer"]
    refused(always, "has fine codes.*or embeddings", [90], codes=codes[:1], fingerprint=mine)
    with pytest.raises(boxwood.IndexMismatch, match=f"of no known fingerprint.*are of {mine}"):
        always.add_npy(tmp_path / "codes.npy")
    always.append([90, 91, 92], codes=codes, fine=fine, fingerprint=mine)
    always.verify()
    refused(always, "go with codes", [95], embeddings=embeddings[:1], fine=fine[:1])
    for bad, message in (
        (fine[:2], "3 codes cannot go with 2 fine codes"),
        (fine[:, :127], r"fine codes must have the shape \(rows, 128\), not \(3, 127\)"),
        (fine[0], r"\(rows, 128\)"),
        (fine.astype("f4"), "fine codes must be uint8, not float32"),
        (fine.astype("i4") - 1, r"fine codes must lie in 0 .. 255"),
        ([[1] * 128, [1] * 128, [1] * 5], "fine codes"),
        ("words", "fine codes"),
    ):
        refused(always, message, [96, 97, 98], codes=codes, fine=bad)
    with pytest.raises(boxwood.InputError, match="fine must be True, False or None"):
        Collection.create(con, "x", fine="yes")  # type: ignore[arg-type]
    with pytest.raises(boxwood.InputError, match="must put out 32"):
        Collection.create(con, "x", head=Head.pca(embeddings, dims=128))
    assert "x" not in Collection.list(con)
    for wrong in ({}, {"text": "a", "embedding": embeddings[0]}):
        with pytest.raises(boxwood.InputError, match="one of text, image and embedding"):
            always.encode(**wrong)


@pytest.mark.parametrize("source", ["table", "parquet"])
@pytest.mark.parametrize("kind", ["with", "without", "not wanted"])
def test_ready_codes_from_columns(con: Con, tmp_path: Path, source: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    n = 1000
    codes, fine = clustered_codes(n), rng.integers(0, 256, (n, 128), np.uint8)
    columns: dict[str, Any] = {"t": [f"t{i}" for i in range(n)], "nr": np.arange(n) * 2}
    columns |= {f"d{dim:02}": codes[:, dim].astype("i8" if dim % 2 else "u1") for dim in range(32)}
    if kind != "without":
        columns["fine"] = fine.tolist()
    wanted = False if kind == "not wanted" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxwood.collection, "_READY_ROWS", 300)
        if source == "parquet":
            pq.write_table(pa.table(columns), tmp_path / "p")
            photos = Collection.from_parquet(con, "photos", tmp_path / "p", id="nr", fine=wanted)
        else:
            con.register("rows", pa.table(columns))
            con.execute("CREATE TABLE photos AS FROM rows")
            photos = Collection.from_table(con, "photos", id="nr", fine=wanted)
    assert len(photos) == n
    assert np.array_equal(native.Index(photos.index_path).codes(np.arange(n) * 2), codes)
    if kind == "with":
        check_fine(con, photos, dict(zip((np.arange(n) * 2).tolist(), fine, strict=True)))
    else:
        assert photos.info()["fine"] is None
    assert rows_of(con, "SELECT t FROM photos WHERE nr = 10") == [("t5",)]
    if source == "parquet":
        left = [row[0] for row in rows_of(con, "DESCRIBE photos")]
        assert left == ["t", "nr"] + ["fine"] * (kind == "not wanted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("d07 = NULL WHERE nr = 4", "'d07' is NULL for id 4"),
        ("fine = NULL WHERE nr = 4", "fine code of id 4 is NULL"),
        ("fine = [1, 2] WHERE nr = 4", "fine code of id 4 has 2 values"),
        ("d07 = 256 WHERE nr = 4", "must lie in 0 .. 255"),
        ("fine = list_transform(fine, lambda x: x - 300)", "fine codes must lie in 0 .. 255"),
        ("nr = NULL WHERE nr = 4", "NULL"),
    ],
)
def test_bad_ready_codes_from_columns(con: Con, change: str, message: str) -> None:
    columns: dict[str, Any] = {"nr": np.arange(5)}
    columns |= {f"d{dim:02}": np.arange(5, dtype="i4") for dim in range(32)}
    columns["fine"] = [[1] * 128] * 5
    con.register("rows", pa.table(columns))
    con.execute("CREATE TABLE pictures AS FROM rows")
    con.execute(f"UPDATE pictures SET {change}")
    with pytest.raises(boxwood.InputError, match=message):
        Collection.from_table(con, "pictures", id="nr")
    assert Collection.list(con) == []
    con.execute("ALTER TABLE pictures DROP COLUMN d31")
    with pytest.raises(boxwood.InputError, match="no column 'embedding', and no columns d00"):
        Collection.from_table(con, "pictures", id="nr")


def test_fine_codes_of_another_kind_are_noticed(con: Con, database: Path) -> None:
    photos = Collection.create(con, "photos")
    photos.append(np.arange(300), embeddings=clustered_embeddings(300))
    index = native.Index(photos.index_path)
    ids, codes = index.rows()
    fine = index.fine(ids)
    fine[17, 5] ^= 1
    native.write_segment(
        photos.index_path, "x.segment", ids, codes, index.info.uuid, index.info.generation,
        index.info.fingerprints, fine=fine,
    )  # fmt: skip
    native.write_manifest(
        photos.index_path, index.info.uuid, index.info.generation, ["x.segment"],
        index.info.fingerprints,
    )  # fmt: skip
    with pytest.raises(boxwood.IndexStale, match="not the one that the database knows of"):
        photos.verify()
    checksum = native.Index(photos.index_path).info.checksum
    con.execute("UPDATE boxwood.indexes SET checksum = ?", [checksum])
    with pytest.raises(boxwood.IndexProblem, match=f"disagree on id {ids[17]}"):
        photos.verify()
    photos.repair()
    photos.verify()
    con.execute("UPDATE boxwood.collections SET fine_fingerprint = 'another'")
    assert photos.info()["state"] == "foreign"
    con.close()
    with (
        boxwood.connect(database) as other,
        pytest.raises(boxwood.IndexMismatch, match="boxwood repair"),
    ):
        Collection.open(other, "photos")


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


EVERYTHING = boxwood.Model.from_json(
    '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
)


def test_small_segments_are_merged(con: Con) -> None:
    photos = Collection.create(con, "photos")
    codes = clustered_codes(500)
    for start in range(0, 500, 10):
        photos.append(np.arange(start, start + 10), codes=codes[start : start + 10])
        photos.refresh()
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
        photos.refresh()
    assert native.Index(photos.index_path).info.segments == 10
    photos.verify()


def test_space_of_deleted_rows_comes_back_step_by_step(
    con: Con, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each refresh moves so many rows at most out of a segment that is dead in good part."""
    monkeypatch.setattr(store, "SEGMENT_ROWS", 100)
    written: list[int] = []
    write = native.write_segment

    def counted(folder: Path, name: str, ids: Any, *rest: Any, **options: Any) -> None:
        written.append(len(ids))
        write(folder, name, ids, *rest, **options)

    photos = Collection.create(con, "photos")
    codes = clustered_codes(1000)
    photos.append(np.arange(1000), codes=codes)
    monkeypatch.setattr(native, "write_segment", counted)
    photos.delete(np.arange(200))
    photos.refresh()
    info = photos.info()
    assert (info["segments"], info["deleted"], written) == (1, 200, [])  # a fifth may stay dead
    photos.delete(np.arange(200, 300))
    photos.refresh()
    assert photos.info()["deleted"] == 400  # 300, and 100 that were moved
    left = 700
    for step in range(40):
        photos.delete([300 + step])
        photos.refresh()
        left -= 1
        photos.verify()
        assert photos.count(EVERYTHING) == len(photos) == left
        if photos.info()["deleted"] <= left // 4:
            break
    assert 5 <= step < 20
    assert max(written) <= 300
    assert np.array_equal(np.sort(photos.search(EVERYTHING).ids), np.arange(1000 - left, 1000))
    names = {path.name for path in photos.index_path.iterdir()}
    photos.compact()
    assert photos.info()["deleted"] == 0
    assert names.isdisjoint(path.name for path in photos.index_path.glob("*.segment"))


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


@pytest.mark.parametrize("learner", ["cover", "branch", "ensemble", "tree", "forest"])
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
    assert (
        found.learner == found.model.learner == ("nearest" if found.stats["fallback"] else learner)
    )


def test_refine_in_sql_has_the_same_rows(con: Con, photos: Collection) -> None:
    near = photos.knn(like=30, k=60)["id"].to_pylist()
    found = photos.refine(near[:20], near[45:], learner="branch", seed=1, random_negatives=200)
    rows = rows_of(
        con,
        f"SELECT * FROM refine('photos', positives := {near[:20]}, negatives := {near[45:]}, "
        "learner := 'branch', seed := 1, random_negatives := 200) ORDER BY score DESC, id",
    )
    assert rows == [(*row.values(), "branch") for row in found.table().to_pylist()]


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
            {}, {"boxes": 4}, {"negative_weight": 9.0}, {"random_negatives": 500},
            {"query": clustered_codes(1)[0]}, {"learner": "ensemble"},
            {"learner": "ensemble", "seed": 1}, {"learner": "ensemble", "estimators": 5},
            {"learner": "ensemble", "prior": False}, {"learner": "branch"}, {"learner": "tree"},
            {"learner": "forest"}, {"learner": "forest", "estimators": 5},
        )
    }  # fmt: skip
    assert len(models) == 13


def check_estimate(estimate: boxwood.Estimate) -> None:
    assert estimate.rows is None or estimate.rows >= 0
    for share in (estimate.precision, estimate.recall):
        if share is not None:
            low, value, high = share
            assert 0 <= low <= value <= high <= 1
    assert estimate.known == (estimate.precision is not None or estimate.recall is not None)


def test_what_a_refinement_says_of_itself(photos: Collection) -> None:
    near = photos.knn(like=30, k=60)["id"].to_pylist()
    found = photos.refine(near[:20], near[50:])
    check_estimate(found.estimate)
    assert found.learner in ("cover", "nearest")
    assert found.estimate.rows is not None
    assert found.stats["held_out"] <= 20
    assert repr(found).startswith(
        f"Refined({found.count:,} images by {found.learner!r}; expected precision"
    )
    page = found._repr_html_()
    assert f"{found.count:,}" in page
    assert str(found.estimate) in page

    for other in (photos.refine(near[:20], learner="ensemble"), photos.search(found.model)):
        assert other.estimate == boxwood.Estimate()
        assert not other.estimate.known
        assert other.note == ""
        assert "expected" not in repr(other) + other._repr_html_()


def test_estimates_in_words() -> None:
    share = (0.71, 0.834, 0.92)
    estimate = boxwood.Estimate(1412.4, share, (0.6, 0.77, 0.88))
    assert str(estimate) == ("expected precision 0.83 (0.71-0.92), recall 0.77 (0.60-0.88)")
    assert str(boxwood.Estimate(rows=7)) == "nothing is known"
    assert not boxwood.Estimate(rows=7).known
    assert str(boxwood.Estimate(recall=share)) == "expected recall 0.83 (0.71-0.92)"
    assert str(boxwood.Estimate()) == "nothing is known"


def test_words_and_images_say_what_is_sought(con: Con, tmp_path: Path) -> None:
    photos = Collection.create(con, "photos", encoder=PlainEncoder())
    rng = np.random.default_rng(3)
    for number in range(80):
        pixels = rng.integers(0, 60, (16, 16, 3)) + np.array([150, 40, 20]) * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    photos.add_images([tmp_path])
    uri = dict(rows_of(con, "SELECT id, uri FROM photos"))
    red = {i for i, name in uri.items() if int(Path(name).stem) % 2}
    example = tmp_path / "01.png"
    wrong = sorted(set(uri) - red)[:3]
    shown = photos.encode(image=example)
    found = photos.refine(negatives=wrong, image=example)
    assert set(found.ids.tolist()) <= red
    assert found.count
    assert found.model == photos.train((), wrong, query=shown.code)
    assert found.stats["positives"] == 0
    with Image.open(example) as picture:
        assert photos.train((), wrong, image=picture) == found.model

    words = photos.encode(text="a red picture")
    by_words = photos.refine(sorted(red)[:5], wrong, text="a red picture")
    assert by_words.model == photos.train(sorted(red)[:5], wrong, query=words.code)
    assert by_words.model != photos.train(sorted(red)[:5], wrong)
    macro = (
        f"SELECT id, votes, score FROM refine('photos', negatives := {wrong}, "
        f"positives := {sorted(red)[:5]}, text := 'a red picture') ORDER BY score DESC, id"
    )
    assert rows_of(con, macro) == rows_of(con, by_words.sql)

    # with rerank: both codes of what is sought
    assert shown.fine is not None
    again = photos.refine(negatives=wrong, image=example, rerank=True)
    assert again.model.has_fine
    assert again.model == photos.train(
        (), wrong, query=shown.code, query_fine=shown.fine, rerank=True
    )
    assert rows_of(con, again.sql) == [tuple(row.values()) for row in again.table().to_pylist()]
    where = rows_of(con, f"SELECT id FROM boxwood.photos_codes WHERE {again.model.to_sql()}")
    assert {i for (i,) in where} == set(again.ids.tolist())
    reranked = photos.refine(negatives=wrong, text="a red picture", rerank=True)
    macro = (
        f"SELECT id, votes, score FROM refine('photos', negatives := {wrong}, "
        "text := 'a red picture', rerank := true) ORDER BY score DESC, id"
    )
    assert rows_of(con, macro) == rows_of(con, reranked.sql)


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


def test_the_shell_knows_both_codes_of_words(database: Path, tmp_path: Path) -> None:
    con = boxwood.connect(database)
    photos = Collection.create(con, "photos", encoder=PlainEncoder())
    rng = np.random.default_rng(4)
    for number in range(40):
        pixels = rng.integers(0, 250, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    photos.add_images([tmp_path])
    wanted = {
        rerank: rows_of(con, photos.refine(text="a red picture", rerank=rerank).sql)
        for rerank in (False, True)
    }
    con.close()
    with duckdb.connect(
        str(database), read_only=True, config={"allow_unsigned_extensions": "true"}
    ) as shell:
        shell.execute(f"LOAD {catalog.literal(boxwood.extension_path())}")
        shell.execute(catalog.sql_file("macros.sql"))
        shell.execute(catalog.sql_file("shell.sql"))
        for rerank, rows in wanted.items():
            query = (
                "SELECT id, votes, score FROM refine('photos', text := 'a red picture', "
                f"rerank := {rerank}) ORDER BY score DESC, id"
            )
            assert rows_of(shell, query) == rows
        for name in ("clip_text", "clip_text_fine"):
            with pytest.raises(duckdb.Error, match=r"no encoder.*'a red picture'"):
                shell.execute(f"SELECT {name}('photos', 'a red pictur')").fetchall()


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


@pytest.mark.one_duckdb
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
    for learner in ("cover", "branch", "ensemble"):
        found = photos.refine(some, learner=learner)
        where = rows_of(con, f"SELECT id FROM boxwood.fashion_codes WHERE {found.model.to_sql()}")
        assert {i for (i,) in where} == set(found.ids.tolist())
        assert len(truth & set(found.ids.tolist())) >= 10
    photos.verify()
