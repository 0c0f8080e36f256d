"""Collections that change: what the reviewers of a first version broke, and what must not break."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, Model, native, store
from boxwood.errors import Error, InputError
from conftest import clustered_codes, clustered_embeddings

Con = duckdb.DuckDBPyConnection
EVERYTHING = Model.from_json(
    '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
)


def ids_of(photos: Collection) -> list[int]:
    """The live ids, by every way to ask for them."""
    ids = sorted(photos.search(EVERYTHING).ids.tolist())
    assert len(photos) == photos.count(EVERYTHING) == len(ids)
    found = photos.con.execute("SELECT id FROM search_model('photos', ?)", [EVERYTHING.to_json()])
    assert sorted(row for (row,) in found.fetchall()) == ids
    return ids


# --- metadata -------------------------------------------------------------------------------------


def test_the_first_metadata_delete_nothing(con: Con) -> None:
    photos = Collection.create(con, "photos")
    codes = clustered_codes(102)
    photos.append(np.arange(100), codes=codes[:100])
    photos.append([500], codes=codes[100:101], metadata={"uri": ["a.jpg"]})
    assert ids_of(photos) == [*range(100), 500]
    photos.refresh()
    photos.append([600], codes=codes[101:])  # without: a row of NULLs
    assert ids_of(photos) == [*range(100), 500, 600]
    uris = con.execute("SELECT id FROM photos WHERE uri IS NOT NULL").fetchall()
    assert uris == [(500,)]
    con.execute("DELETE FROM photos WHERE id < 50")
    assert ids_of(photos) == [*range(50, 100), 500, 600]


def test_ids_that_the_users_table_lacks(con: Con) -> None:
    con.execute("CREATE TABLE photos AS SELECT range AS id FROM range(10)")
    photos = Collection.create(con, "photos")
    with pytest.raises(boxwood.InputError, match="no row of 2 of the ids, for example 10"):
        photos.append(np.arange(8, 12), codes=clustered_codes(4))
    assert photos.info()["quantizer"] is None
    photos.append(np.arange(8), codes=clustered_codes(8))
    assert ids_of(photos) == [*range(8)]


def test_the_metadata_table_is_always_the_same(con: Con) -> None:
    """Whatever temporary table or schema comes first for whoever asks."""
    photos = Collection.create(con, "photos")
    codes = clustered_codes(30)
    photos.append(np.arange(10), codes=codes[:10], metadata={"a": np.arange(10)})
    con.execute("CREATE TEMP TABLE photos AS SELECT 1 AS id, 2 AS a")
    con.execute("BEGIN")
    photos.append(np.arange(10, 20), codes=codes[10:20], metadata={"a": np.arange(10)})
    assert ids_of(photos) == [*range(20)]
    con.execute("COMMIT")
    assert con.execute("SELECT count(*) FROM photos").fetchall() == [(1,)]
    con.execute("CREATE SCHEMA s")
    con.execute("CREATE TABLE s.photos AS SELECT 3 AS id")
    con.execute("USE s")
    photos.append(np.arange(20, 30), codes=codes[20:], metadata={"a": np.arange(10)})
    assert ids_of(photos) == [*range(30)]
    photos.refresh()
    assert ids_of(photos) == [*range(30)]
    con.execute("CREATE TABLE s.others AS SELECT range AS nr FROM range(5)")
    others = Collection.create(con, "others", table="s.others", id_column="nr")
    assert others.table == "s.others"
    others.append([1, 2], codes=codes[:2])
    con.execute("USE main")
    assert sorted(others.search(EVERYTHING).ids.tolist()) == [1, 2]


@pytest.mark.parametrize("kind", ["UBIGINT", "HUGEINT", "VARCHAR"])
def test_ids_that_are_none(con: Con, kind: str) -> None:
    con.execute("CREATE TABLE photos AS SELECT range AS id FROM range(10)")
    photos = Collection.create(con, "photos")
    photos.append(np.arange(10), codes=clustered_codes(10))
    con.execute(f"ALTER TABLE photos ALTER id TYPE {kind}")
    other = "'abc'" if kind == "VARCHAR" else "18446744073709551615"
    con.execute(f"INSERT INTO photos VALUES ({other}), (NULL)")
    con.execute("DELETE FROM photos WHERE id = 3::VARCHAR")
    assert ids_of(photos) == [0, 1, 2, *range(4, 10)]
    assert photos.knn(like=2, k=20)["id"].to_pylist()[0] == 2
    photos.refresh()
    photos.compact()
    assert ids_of(photos) == [0, 1, 2, *range(4, 10)]


def test_a_table_that_is_gone_and_comes_back(con: Con) -> None:
    con.execute("CREATE TABLE photos AS SELECT range AS id FROM range(10)")
    photos = Collection.create(con, "photos")
    photos.append(np.arange(10), codes=clustered_codes(10))
    other = Collection.create(con, "other")
    other.append([1], codes=clustered_codes(1))
    con.execute("ALTER TABLE photos RENAME TO away")
    states = {info["name"]: info["state"] for info in Collection.describe(con)}
    assert states == {"photos": "no table", "other": "current"}
    with pytest.raises(boxwood.InputError, match="put it back"):
        photos.count(EVERYTHING)
    con.execute("ALTER TABLE away RENAME TO photos")
    assert ids_of(photos) == [*range(10)]


# --- space, pending changes -----------------------------------------------------------------------


def test_space_of_rows_deleted_by_sql_comes_back(con: Con) -> None:
    con.execute("CREATE TABLE photos AS SELECT range AS id FROM range(3000)")
    photos = Collection.create(con, "photos")
    codes = clustered_codes(4000)
    photos.append(np.arange(2000), codes=codes[:2000])
    con.execute("DELETE FROM photos WHERE id < 1500")
    photos.append(np.arange(2000, 3000), codes=codes[2000:3000])
    info = photos.info()
    assert (info["rows"], info["indexed"], info["pending"]) == (1500, 1500, 0)
    assert con.execute("SELECT count(*) FROM boxwood.photos_codes").fetchall() == [(1500,)]
    con.execute("DELETE FROM photos WHERE id < 2500")
    again = Collection.open(con, "photos")
    assert again.info()["indexed"] == 500
    assert ids_of(again) == [*range(2500, 3000)]


def test_changes_of_transactions_are_taken_in(con: Con) -> None:
    photos = Collection.create(con, "photos")
    codes = clustered_codes(6000)
    for part in range(6):
        con.execute("BEGIN")
        rows = slice(1000 * part, 1000 * part + 1000)
        photos.append(np.arange(6000)[rows], codes=codes[rows])
        con.execute("COMMIT")
        assert len(photos.knn(codes[0], k=5)) == 5
    assert photos.info()["pending"] <= 1500
    assert ids_of(photos) == [*range(6000)]


def test_many_pending_rows_are_few_in_the_end(con: Con, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is written to segments more than log2 of all rows times."""
    monkeypatch.setattr(store, "PENDING_ROWS", 64)
    written: list[int] = []
    write = native.write_segment

    def counted(folder: Path, name: str, ids: Any, *rest: Any, **options: Any) -> None:
        written.append(len(ids))
        write(folder, name, ids, *rest, **options)

    monkeypatch.setattr(native, "write_segment", counted)
    photos = Collection.create(con, "photos")
    codes = clustered_codes(3200)
    for first in range(0, 3200, 32):
        photos.append(np.arange(first, first + 32), codes=codes[first : first + 32])
    assert photos.info()["segments"] <= 8
    assert sum(written) <= 3200 * 12
    assert len(written) <= 60
    assert ids_of(photos) == [*range(3200)]


# --- transactions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["codes", "embeddings", "metadata"])
def test_a_failed_append_leaves_no_half_of_itself(con: Con, what: str) -> None:
    con.execute("CREATE TABLE photos (id BIGINT PRIMARY KEY, a INTEGER)")
    con.execute("INSERT INTO photos SELECT range, 0 FROM range(100)")
    photos = Collection.create(con, "photos")
    con.execute("BEGIN")
    ids, values = {
        "codes": ([5, 999], {"codes": clustered_codes(2)}),
        "embeddings": (np.arange(50, 150), {"embeddings": clustered_embeddings(100)}),
        "metadata": ([999], {"codes": clustered_codes(1), "metadata": {"a": ["no number"]}}),
    }[what]
    with pytest.raises(boxwood.InputError):
        photos.append(ids, **values)
    try:
        con.execute("COMMIT")
    except duckdb.Error:
        con.execute("ROLLBACK")
    info = photos.info()
    assert (info["rows"], info["quantizer"], info["generation"]) == (0, None, 0)
    photos.append(np.arange(100), embeddings=clustered_embeddings(100))
    assert ids_of(photos) == [*range(100)]


def test_a_rolled_back_append_leaves_nothing(con: Con) -> None:
    photos = Collection.create(con, "photos")
    con.execute("BEGIN")
    photos.append(np.arange(50), embeddings=clustered_embeddings(50), metadata={"a": np.arange(50)})
    assert ids_of(photos) == [*range(50)]
    near = photos.knn(like=7, k=3)["id"].to_pylist()
    assert near[0] == 7
    con.execute("ROLLBACK")
    assert len(photos) == 0
    assert photos.head is None
    assert photos.table is None
    photos.append(np.arange(50), embeddings=clustered_embeddings(50), metadata={"a": np.arange(50)})
    assert ids_of(photos) == [*range(50)]
    assert photos.knn(like=7, k=3)["id"].to_pylist() == near


def test_dead_rows_are_shown(con: Con) -> None:
    photos = Collection.create(con, "photos")
    photos.append(np.arange(2000), codes=clustered_codes(2000))
    photos.delete(np.arange(100))
    assert photos.info()["state"] == "behind"
    assert photos.info()["pending"] == 100
    photos.refresh()
    [(rows, deleted)] = con.execute(
        "SELECT sum(rows), sum(deleted) FROM collection_info('photos')"
    ).fetchall()
    assert (rows, deleted) == (2000, 100)
    info = photos.info()
    assert (info["indexed"], info["deleted"], info["state"]) == (1900, 100, "current")


# --- small appends --------------------------------------------------------------------------------


def places(con: Con) -> tuple[int, int]:
    """Rows in the codes table, and those of small appends beside it."""
    row = con.execute(
        "SELECT (SELECT count(*) FROM boxwood.photos_codes), "
        "(SELECT coalesce(sum(octet_length(ids)), 0) // 8 FROM boxwood.appended)"
    ).fetchall()
    return row[0]


def settled(con: Con, codes: np.ndarray, **options: Any) -> Collection:
    """Rows 0 to 1999 in the codes table and the index."""
    photos = Collection.create(con, "photos", **options)
    photos.append(np.arange(2000), codes=codes[:2000])
    assert places(con) == (2000, 0)
    return photos


def test_small_appends_lie_beside_the_codes_table(con: Con) -> None:
    codes = clustered_codes(2200)
    photos = settled(con, codes)
    for first in (2000, 2100):
        photos.append(np.arange(first, first + 100), codes=codes[first : first + 100])
    assert places(con) == (2000, 200)
    assert photos.info()["pending"] == 200
    assert ids_of(photos) == [*range(2200)]
    assert photos.knn(codes[2150], k=1)["distance"].to_pylist() == [0.0]
    photos.verify()
    other = boxwood.load(con.cursor())
    found = other.execute(
        "SELECT id FROM search_code('photos', ?::UTINYINT[])", [codes[2150].tolist()]
    )
    assert (2150,) in found.fetchall()
    photos.refresh()
    assert places(con) == (2200, 0)
    kept = "SELECT generation, count(*) FROM boxwood.photos_codes GROUP BY ALL ORDER BY ALL"
    assert con.execute(kept).fetchall() == [(1, 2000), (2, 100), (3, 100)]
    assert ids_of(photos) == [*range(2200)]
    photos.verify()


@pytest.mark.parametrize("what", ["refresh", "compact", "repair", "open"])
def test_the_index_takes_small_appends_in(con: Con, what: str) -> None:
    codes = clustered_codes(2100)
    photos = settled(con, codes)
    photos.append(np.arange(2000, 2100), codes=codes[2000:])
    photos.delete([5, 2005])
    assert places(con)[1] == 0  # one of the rows had to be deleted
    photos.append([5], codes=codes[5:6])
    assert places(con)[1] == 1
    if what == "open":
        photos = Collection.open(con, "photos")
    else:
        getattr(photos, what)()
    assert places(con) == (2099, 0)
    assert photos.info()["state"] == "current"
    assert ids_of(photos) == [*range(2005), *range(2006, 2100)]
    photos.verify()


def test_an_id_is_added_once_wherever_its_row_is(con: Con) -> None:
    codes = clustered_codes(5000)
    photos = settled(con, codes)
    refused = pytest.raises(boxwood.InputError, match="in the collection 'photos' already")
    for first in range(2000, 2500, 50):  # the ids are asked of the database, then known
        photos.append(np.arange(first, first + 50), codes=codes[:50])
        for old in (7, 2000, first + 49):
            with refused:
                photos.append([old, 9000], codes=codes[:2])
    with refused:  # by the primary key
        photos.append(np.arange(2499, 4499), codes=codes[:2000])
    with refused:
        photos.append(np.arange(1999, 3999), codes=codes[:2000])
    assert ids_of(photos) == [*range(2500)]
    con.execute("BEGIN")
    for first in range(2500, 2800, 50):
        photos.append(np.arange(first, first + 50), codes=codes[:50])
        for old in (7, 2000, 2499, 2500, first + 49):
            with refused:
                photos.append([old, 9000], codes=codes[:2])
    assert ids_of(photos) == [*range(2800)]
    photos.delete([2520])
    photos.append([2520], codes=codes[:1])
    with refused:
        photos.append([2520], codes=codes[:1])
    con.execute("ROLLBACK")
    assert ids_of(photos) == [*range(2500)]
    photos.append([2520], codes=codes[:1])
    photos.append([2521], codes=codes[:1])
    with refused:
        photos.append([2520], codes=codes[:1])
    con.execute("BEGIN")
    photos.append([2522], codes=codes[:1])
    photos.append([2523], codes=codes[:1])
    con.execute("COMMIT")
    with refused:
        photos.append([2523], codes=codes[:1])
    photos.verify()


def test_what_is_known_of_ids_is_that_of_the_last_change(con: Con) -> None:
    """Two objects, of which neither sees what the other one does."""
    codes = clustered_codes(2100)
    one = settled(con, codes)
    two = Collection.open(con, "photos")
    for photos in (one, two):
        for _ in range(3):
            some = 3000 + len(photos)
            photos.append([some], codes=codes[:1])
            with pytest.raises(boxwood.InputError, match="already"):
                photos.append([some], codes=codes[:1])
    taken = ids_of(one)[-1]
    with pytest.raises(boxwood.InputError, match="already"):
        one.append([taken], codes=codes[:1])
    one.append([7000], codes=codes[:1])
    one.append([7001], codes=codes[:1])
    two.delete([7000, 3])
    one.append([7000, 3], codes=codes[:2])
    assert {3, 7000, 7001} <= set(ids_of(one))
    one.refresh()
    one.verify()


def test_two_transactions_cannot_append_at_once(con: Con) -> None:
    codes = clustered_codes(2100)
    photos = settled(con, codes)
    other = boxwood.load(con.cursor())
    theirs = Collection.open(other, "photos")
    con.execute("BEGIN")
    photos.append([5000], codes=codes[:1])
    with pytest.raises(boxwood.Error, match="try again"):
        theirs.append([5000], codes=codes[:1])
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM boxwood.collections").fetchall()  # its snapshot
    con.execute("COMMIT")
    with pytest.raises(boxwood.Error, match="try again"):
        theirs.append([5000], codes=codes[:1])
    other.execute("ROLLBACK")
    with pytest.raises(boxwood.InputError, match="already"):
        theirs.append([5000], codes=codes[:1])
    assert places(con) == (2000, 1)
    assert ids_of(photos) == [*range(2000), 5000]


def test_rows_that_moved_meanwhile_are_a_conflict(con: Con) -> None:
    codes = clustered_codes(2100)
    photos = settled(con, codes)
    photos.append([5000, 5001], codes=codes[:2])
    con.execute("BEGIN")
    con.execute("SELECT count(*) FROM boxwood.collections").fetchall()  # its snapshot
    Collection.open(boxwood.load(con.cursor()), "photos").refresh()
    with pytest.raises(boxwood.Error, match="try again"):
        photos.delete([5000])
    con.execute("ROLLBACK")
    assert photos.delete([5000]) == 1
    assert ids_of(photos) == [*range(2000), 5001]
    photos.verify()


def test_update_and_delete_of_small_appends(con: Con) -> None:
    codes = clustered_codes(2200)
    photos = settled(con, codes)
    photos.append(np.arange(2000, 2100), codes=codes[2000:2100])
    photos.update([2003, 4], codes=codes[2103:2105])
    assert photos.knn(codes[2103], k=1)["distance"].to_pylist() == [0.0]
    assert photos.delete([2003, 2004, 9999]) == 2
    assert photos.delete([2003]) == 0
    con.execute("BEGIN")
    photos.append([2003], codes=codes[:1])
    photos.update([2003], codes=codes[2150:2151])
    photos.append([2004], codes=codes[:1])
    photos.delete([2004])
    assert ids_of(photos) == [*range(2004), *range(2005, 2100)]
    con.execute("COMMIT")
    assert ids_of(photos) == [*range(2004), *range(2005, 2100)]
    assert photos.knn(codes[2150], k=1)["id"].to_pylist() == [2003]
    photos.refresh()
    photos.verify()
    assert ids_of(photos) == [*range(2004), *range(2005, 2100)]


def test_small_appends_deleted_by_sql(con: Con) -> None:
    codes = clustered_codes(2200)
    photos = Collection.create(con, "photos")
    photos.append(np.arange(2000), codes=codes[:2000], metadata={"a": np.arange(2000)})
    photos.append(np.arange(2000, 2100), codes=codes[2000:2100], metadata={"a": np.arange(100)})
    assert places(con) == (2000, 100)
    con.execute("DELETE FROM photos WHERE id IN (7, 2007, 2008)")
    alive = [*range(7), *range(8, 2007), *range(2009, 2100)]
    assert ids_of(photos) == alive
    photos.append([2007], codes=codes[2150:2151], metadata={"a": [1]})
    assert photos.knn(codes[2150], k=1)["distance"].to_pylist() == [0.0]
    assert ids_of(photos) == sorted([*alive, 2007])
    photos.refresh()
    assert ids_of(photos) == sorted([*alive, 2007])
    assert places(con) == (2098, 0)
    photos.verify()


def test_small_appends_in_a_database_that_is_read_only(tmp_path: Path) -> None:
    codes = clustered_codes(2100)
    con = boxwood.connect(tmp_path / "a.duckdb")
    photos = settled(con, codes)
    photos.append(np.arange(2000, 2100), codes=codes[2000:])
    con.close()
    con = boxwood.connect(tmp_path / "a.duckdb", read_only=True)
    photos = Collection.open(con, "photos")
    assert places(con) == (2000, 100)
    assert ids_of(photos) == [*range(2100)]
    assert photos.info()["rows"] == 2100
    photos.verify()
    con.close()


def test_kept_embeddings_of_small_appends(con: Con) -> None:
    vectors = clustered_embeddings(2100)
    photos = Collection.create(con, "photos", keep_embeddings=True)
    photos.append(np.arange(2000), embeddings=vectors[:2000])
    photos.append(np.arange(2000, 2100), embeddings=vectors[2000:])
    assert places(con) == (2000, 100)
    assert photos.knn(like=2050, k=1)["id"].to_pylist() == [2050]
    con.execute("DELETE FROM boxwood.photos_embeddings WHERE id = 2050")
    with pytest.raises(boxwood.InputError, match=r"lacks 1 images.*2050"):
        photos.recode("pca")
    photos.delete([2050])
    photos.append([2050, 2200], embeddings=vectors[2050:2052])
    assert photos.recode("pca").rows == 2101
    assert places(con) == (2101, 0)
    assert photos.knn(like=2050, k=1)["distance"].to_pylist() == [0.0]
    photos.append([2300], embeddings=vectors[:1])
    photos.compact()
    assert con.execute("SELECT count(*) FROM boxwood.photos_embeddings").fetchall() == [(2102,)]
    photos.append([2301], embeddings=vectors[:1])
    photos.drop()
    assert con.execute("SELECT count(*) FROM boxwood.appended").fetchall() == [(0,)]


def small(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32), np.uint8)


@pytest.mark.parametrize("first", ["transaction", "autocommit"])
def test_two_appends_that_overlap_conflict(tmp_path: Path, first: str) -> None:
    """One in a transaction of the caller's, one by itself: each raises the generation its own way,
    and DuckDB must see that as one and the same row, or both get one generation, and ids double."""
    con = boxwood.connect(tmp_path / "photos.duckdb")
    one = Collection.create(con, "photos")
    one.append([1], codes=small(1))
    cur = boxwood.load(con.cursor())
    other = Collection.open(cur, "photos")
    cur.execute("BEGIN")
    cur.execute("FROM boxwood.collections").fetchall()
    if first == "transaction":
        other.append([7], codes=small(1))
        with pytest.raises(Error):
            one.append([7], codes=small(1, 1))
        cur.execute("COMMIT")
    else:
        one.append([7], codes=small(1))
        with pytest.raises((Error, duckdb.Error)):
            other.append([7], codes=small(1, 1))
        cur.execute("ROLLBACK")
    for photos in (one, other):
        assert len(photos) == 2
        assert photos.knn(small(1)[0], k=9)["id"].to_pylist() == [1, 7]
    one.refresh()
    one.verify()
    one.compact()


def test_a_drop_conflicts_with_an_append(tmp_path: Path) -> None:
    """Else the row would turn up in the next collection of that name."""
    con = boxwood.connect(tmp_path / "photos.duckdb")
    photos = Collection.create(con, "photos")
    photos.append([1], codes=small(1))
    cur = boxwood.load(con.cursor())
    other = Collection.open(cur, "photos")
    cur.execute("BEGIN")
    other.append([7], codes=small(1))
    with pytest.raises((Error, duckdb.Error)):
        photos.drop()
    cur.execute("COMMIT")
    assert len(photos) == 2
    photos.drop()
    assert len(Collection.create(con, "photos")) == 0


def test_a_connection_of_duckdbs_own(tmp_path: Path) -> None:
    """The functions that small appends need are loaded; where that is not allowed, it says so."""
    with boxwood.connect(tmp_path / "photos.duckdb") as con:
        Collection.create(con, "photos").append([1], codes=small(1), metadata={"n": [1]})
    with (
        duckdb.connect(tmp_path / "photos.duckdb") as con,
        pytest.raises(InputError, match="allow_unsigned_extensions"),
    ):
        Collection.open(con, "photos")
    settings = {"allow_unsigned_extensions": "true"}
    with duckdb.connect(tmp_path / "photos.duckdb", config=settings) as con:
        photos = Collection.open(con, "photos")
        for number in range(2, 6):
            photos.append([number], codes=small(1), metadata={"n": [number]})
        assert len(photos) == 5


def test_an_older_copy_put_back(tmp_path: Path) -> None:
    """What is remembered of the database before is forgotten."""
    database = tmp_path / "photos.duckdb"
    con = boxwood.connect(database)
    photos = Collection.create(con, "photos")
    photos.append([1], codes=small(1))
    photos.refresh()
    con.close()
    shutil.copy(database, tmp_path / "copy")
    con = boxwood.connect(database)
    photos = Collection.open(con, "photos")
    con.execute("BEGIN")
    photos.append([6000], codes=small(1))
    con.execute("COMMIT")
    assert len(photos.knn(small(1)[0], k=9)) == 2
    con.close()
    shutil.copy(tmp_path / "copy", database)
    con = boxwood.connect(database)
    again = Collection.open(con, "photos")
    con.execute("BEGIN")
    again.append([7000], codes=small(1))
    con.execute("COMMIT")
    assert again.knn(small(1)[0], k=9)["id"].to_pylist() == [1, 7000]


@pytest.mark.parametrize("before", [0, 5])
def test_more_than_a_row_group_with_the_first_metadata(tmp_path: Path, before: int) -> None:
    """DuckDB 2.0.0 loses what a transaction inserts after an INSERT of nothing, if it is more than
    122,880 rows: the table that is made with the first metadata was empty, and with it, by the rule
    of what is live, the collection."""
    con = boxwood.connect(tmp_path / "photos.duckdb")
    photos = Collection.create(con, "photos")
    if before:
        photos.append(np.arange(before) + 10**6, codes=small(before))
    count = 130_000
    photos.append(np.arange(count), codes=small(count), metadata={"n": np.arange(count)})
    scanned = con.execute("SELECT count(*) FROM (SELECT n FROM photos WHERE n >= 0)").fetchall()
    assert scanned == [(count,)]
    assert len(photos) == count + before
    photos.refresh()
    photos.verify()
    assert len(photos) == count + before
