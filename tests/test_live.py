"""Collections that change: what the reviewers of a first version broke, and what must not break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, Model, native, store
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
