"""Concepts: models with names, in Python, SQL, the shell and the command."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, Concept, Model, native
from boxwood.encode import Head
from boxwood.errors import IndexMismatch, InputError, ReadOnly
from conftest import ROOT, clustered_codes, clustered_embeddings

Run = Callable[..., tuple[int, str, str]]
Connection = duckdb.DuckDBPyConnection

HOSTILE = [
    "", " ", "a b", "1st", "x'; DROP TABLE photos; --", 'a"b', "ä", "a" * 64, "a.b", "leopard\n",
    "leopard\0", "concepts.x", None, 7, b"leopard",
]  # fmt: skip


def box(low: int, high: int, dim: int = 0, quantizer: str = "") -> Model:
    return Model.from_json(
        json.dumps(
            {
                "boxwood_model": 1, "learner": "test", "dims": 32, "quantizer": quantizer,
                "estimators": [[[[dim, low, high]]]], "threshold": 1,
            }
        )
    )  # fmt: skip


def ids_of(con: Connection, name: str = "leopard", of: str = "photos") -> list[int]:
    """The rows of a concept by its view, by its macro: they must be the same."""
    by_view = con.execute(f'SELECT * FROM concepts."{name}" ORDER BY id').fetchall()
    by_macro = con.execute("FROM concept(?, ?) ORDER BY id", [of, name]).fetchall()
    assert by_view == by_macro
    return [row[0] for row in by_view]


def views(con: Connection) -> list[str]:
    found = con.execute(
        "SELECT view_name FROM duckdb_views() WHERE schema_name = 'concepts' ORDER BY ALL"
    )
    return [row[0] for row in found.fetchall()]


# --- saving, reading, versions --------------------------------------------------------------------


def test_a_concept_is_kept(photos: Collection, con: Connection) -> None:
    found = photos.refine([0, 3, 6], [9, 12])
    saved = photos.save_concept("leopard", found, [6, 3, 0, 3], {9, 12}, note="spotted – 🐆")
    assert (saved.name, saved.version, saved.collection) == ("leopard", 1, "photos")
    assert saved.model == found.model
    assert saved.learner == found.learner
    assert (saved.positives, saved.negatives) == ([0, 3, 6], [9, 12])
    assert (saved.note, saved.current) == ("spotted – 🐆", True)
    assert photos.concept("leopard") == saved
    assert photos.concepts() == [saved]
    assert isinstance(saved, boxwood.Concept)
    assert repr(saved) == (
        f"Concept('leopard' of 'photos', version 1, by {found.learner!r}: 3 positives, 2 negatives)"
    )
    assert ids_of(con) == sorted(found.ids.tolist())
    assert photos.search(saved).ids.tolist() == found.ids.tolist()
    assert photos.count(saved) == found.count
    assert con.execute(saved.sql).fetchall() == con.execute(found.sql).fetchall()
    assert con.execute("DESCRIBE concepts.leopard").fetchall()[:3] == [
        ("id", "BIGINT", "YES", None, None, None),
        ("votes", "INTEGER", "YES", None, None, None),
        ("score", "DOUBLE", "YES", None, None, None),
    ]


def test_versions(photos: Collection, con: Connection) -> None:
    first = photos.save_concept("leopard", box(0, 99), [0])
    with pytest.raises(InputError, match="has a concept 'leopard' already: replace=True"):
        photos.save_concept("leopard", box(0, 49))
    assert photos.concepts() == [first]
    second = photos.save_concept("leopard", box(0, 49), [3], replace=True, note="fewer")
    assert second.version == 2
    assert photos.concept("leopard") == second
    assert photos.concept("leopard", version=1) == first
    assert photos.concepts() == [second]
    assert ids_of(con) == sorted(photos.search(box(0, 49)).ids.tolist())
    other = photos.save_concept("anything_", box(0, 255), replace=True)
    assert [c.name for c in photos.concepts()] == ["anything_", "leopard"]
    assert other.version == 1
    with pytest.raises(InputError, match=r"no version 3; it has 1, 2"):
        photos.concept("leopard", 3)
    with pytest.raises(InputError, match="version must be a whole number"):
        photos.concept("leopard", "1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no concept 'lion'; it has: anything_, leopard"):
        photos.concept("lion")
    assert photos.drop_concept("leopard") == 2
    assert views(con) == ["anything_"]
    assert photos.concepts() == [other]
    with pytest.raises(InputError, match="no concept 'leopard'; it has: anything_"):
        photos.drop_concept("leopard")
    again = photos.save_concept("leopard", box(0, 9))
    assert again.version == 1
    assert ids_of(con) == sorted(photos.search(box(0, 9)).ids.tolist())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(photos: Collection, con: Connection, name: Any) -> None:
    for call in (
        lambda: photos.save_concept(name, box(0, 9)),
        lambda: photos.concept(name),
        lambda: photos.drop_concept(name),
    ):
        with pytest.raises(InputError, match="cannot name a concept"):
            call()
    assert views(con) == []
    if isinstance(name, str) and "\0" not in name:
        with pytest.raises(duckdb.Error, match="no concept"):
            con.execute("FROM concept('photos', ?)", [name]).fetchall()
        with pytest.raises(duckdb.ConstraintException, match="CHECK"):
            con.execute(
                "INSERT INTO boxwood.concepts BY NAME FROM new_concept('photos', ?, [0, 3])", [name]
            )
    assert len(photos) == 3000


@pytest.mark.parametrize("name", ["select", "table", "group", "_", "A" * 63, "order"])
def test_words_of_sql_may_be_names(photos: Collection, con: Connection, name: str) -> None:
    photos.save_concept(name, box(0, 99), note='it\'s "quoted"; --')
    assert ids_of(con, name) == sorted(photos.search(box(0, 99)).ids.tolist())
    assert photos.drop_concept(name) == 1
    assert views(con) == []


def test_what_is_refused(photos: Collection, con: Connection) -> None:
    for wrong, message in (
        ({"model": "leopard"}, "a Model is needed, not str"),
        ({"positives": [-1]}, "positives"),
        ({"positives": [3], "negatives": [3]}, "both hold 3"),
        ({"note": 7}, "a note is a text"),
        ({"note": "a" * 10_001}, "at most 10,000"),
        ({"note": "a\0b"}, "NUL"),
        ({"note": "\ud800"}, "surrogates"),
        ({"replace": 1}, "replace must be"),
    ):
        given: dict[str, Any] = {"model": box(0, 9), **wrong}
        with pytest.raises(InputError, match=message):
            photos.save_concept("leopard", given.pop("model"), **given)
    with pytest.raises(IndexMismatch, match=r"another quantizer.*train it again"):
        photos.save_concept("leopard", box(0, 9, quantizer="f00d"))
    empty = Collection.create(con, "empty")
    with pytest.raises(InputError, match="holds no images yet"):
        empty.save_concept("leopard", box(0, 9))
    assert photos.concepts() == empty.concepts() == []


def test_one_name_is_of_one_collection(photos: Collection, con: Connection) -> None:
    other = Collection.create(con, "scans")
    other.append(np.arange(100), codes=clustered_codes(100, 5))
    photos.save_concept("leopard", box(0, 99))
    for name in ("leopard", "LEOPARD"):
        with pytest.raises(InputError, match=r"'photos' has a concept 'leopard' already"):
            other.save_concept(name, box(0, 9), replace=True)
    with pytest.raises(InputError, match="'leopard' already"):
        photos.save_concept("Leopard", box(0, 9), replace=True)
    other.save_concept("lion", box(0, 99))
    assert ids_of(con, "lion", "scans") == sorted(other.search(box(0, 99)).ids.tolist())
    photos.drop()
    assert views(con) == ["lion"]
    assert con.execute("SELECT DISTINCT collection FROM boxwood.concepts").fetchall() == [
        ("scans",)
    ]
    other.save_concept("leopard", box(0, 50))
    assert ids_of(con, "leopard", "scans") == sorted(other.search(box(0, 50)).ids.tolist())


def test_tables_of_the_users_are_left_alone(photos: Collection, con: Connection) -> None:
    con.execute("CREATE SCHEMA concepts")
    con.execute("CREATE TABLE concepts.leopard AS SELECT 42 AS answer")
    con.execute("CREATE VIEW concepts.lion AS SELECT 43 AS answer")
    for name in ("leopard", "Lion"):
        with pytest.raises(InputError, match="is no concept's: choose another name"):
            photos.save_concept(name, box(0, 9))
    photos.save_concept("tiger", box(0, 9))
    photos.drop()
    assert con.execute("SELECT * FROM concepts.leopard, concepts.lion").fetchall() == [(42, 43)]
    assert views(con) == ["lion"]


# --- live rows ------------------------------------------------------------------------------------


def test_images_added_later_are_in(photos: Collection, con: Connection) -> None:
    photos.save_concept("leopard", box(0, 99))
    before = ids_of(con)
    inside, outside = np.full((1, 32), 50, np.uint8), np.full((1, 32), 200, np.uint8)
    photos.append([100_000, 100_001], codes=np.concatenate([inside, outside]))
    assert ids_of(con) == [*before, 100_000]
    photos.update([100_001], codes=inside)
    photos.update([before[0]], codes=outside)
    photos.delete([before[1]])
    con.execute("DELETE FROM photos WHERE id = ?", [before[2]])
    expected = [*before[3:], 100_000, 100_001]
    assert ids_of(con) == expected
    photos.refresh()
    assert ids_of(con) == expected
    photos.compact()
    assert ids_of(con) == expected
    joined = con.execute(
        "SELECT camera, count(*) FROM concepts.leopard JOIN photos USING (id) GROUP BY ALL"
    ).fetchall()
    assert sum(count for _, count in joined) == len(expected)


def test_fine_codes(con: Connection) -> None:
    fine = Collection.create(con, "photos", fine=True)
    rows = clustered_embeddings(600)
    fine.append(np.arange(600), embeddings=rows)
    found = fine.refine([0, 12, 24, 36], [1, 2], rerank=True)
    assert found.model.has_fine
    fine.save_concept("leopard", found)
    assert ids_of(con) == sorted(found.ids.tolist())


def test_recode_makes_concepts_old(con: Connection) -> None:
    photos = Collection.create(con, "photos", keep_embeddings=True)
    rows = clustered_embeddings(600)
    photos.append(np.arange(600), embeddings=rows)
    found = photos.refine([0, 12, 24], [1])
    for model in (found, box(0, 99)):  # also one that is of any codes
        photos.save_concept("leopard", model, [0, 12, 24], [1], replace=True)
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(48, 48)))[0][:, :32]
    zero = np.zeros(48, np.float32)
    photos.recode(Head("pca", zero, zero, ((basis.astype(np.float32), np.zeros(32, np.float32)),)))
    kept = photos.concept("leopard")
    assert not kept.current
    assert "of older codes" in repr(kept)
    for use in (photos.search, photos.count, lambda c: photos.save_concept("x", c)):
        with pytest.raises(IndexMismatch, match="before it was re-coded: train it again"):
            use(kept)
    for query in ("FROM concepts.leopard", "FROM concept('photos', 'leopard')"):
        with pytest.raises(duckdb.Error, match="before it was re-coded: train it again"):
            con.execute(query).fetchall()
    assert con.execute("SELECT name, current FROM concept_list('photos')").fetchall() == [
        ("leopard", False)
    ]
    again = photos.refine(kept.positives, kept.negatives)
    saved = photos.save_concept("leopard", again, kept.positives, kept.negatives, replace=True)
    assert (saved.version, saved.current) == (3, True)
    assert ids_of(con) == sorted(again.ids.tolist())


# --- transactions ---------------------------------------------------------------------------------


def test_a_part_of_the_callers_transaction(photos: Collection, con: Connection) -> None:
    photos.save_concept("lion", box(0, 9))
    with boxwood.load(con.cursor()) as other:
        con.execute("BEGIN")
        saved = photos.save_concept("leopard", box(0, 99))
        photos.save_concept("lion", box(0, 19), replace=True)
        assert photos.concept("leopard") == saved
        assert len(ids_of(con)) == photos.count(box(0, 99))
        photos.append([100_000], codes=np.full((1, 32), 50, np.uint8))
        assert 100_000 in ids_of(con)
        with pytest.raises(duckdb.CatalogException):
            other.execute("FROM concepts.leopard")
        with pytest.raises(duckdb.Error, match="no concept 'leopard'; it has: lion"):
            other.execute("FROM concept('photos', 'leopard')").fetchall()
        con.execute("ROLLBACK")
        assert [c.name for c in photos.concepts()] == ["lion"]
        assert photos.concept("lion").version == 1
        assert views(con) == ["lion"]

        con.execute("BEGIN")
        photos.save_concept("leopard", box(0, 99))
        assert photos.drop_concept("lion") == 1
        photos.save_concept("lion", box(0, 29))
        assert photos.drop_concept("leopard") == 1
        photos.save_concept("leopard", box(0, 39))
        con.execute("COMMIT")
        for name, high in (("leopard", 39), ("lion", 29)):
            expected = sorted(photos.search(box(0, high)).ids.tolist())
            assert ids_of(other, name) == expected
            assert photos.concept(name).version == 1


def test_refusals_leave_the_transaction_usable(photos: Collection, con: Connection) -> None:
    photos.save_concept("leopard", box(0, 9))
    con.execute("BEGIN")
    con.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(InputError, match="already"):
        photos.save_concept("leopard", box(0, 99))
    with pytest.raises(InputError, match="no concept"):
        photos.drop_concept("lion")
    photos.save_concept("lion", box(0, 99))
    con.execute("COMMIT")
    assert con.execute("SELECT count(*) FROM mine").fetchall() == [(0,)]
    assert [c.name for c in photos.concepts()] == ["leopard", "lion"]


def test_a_connection_without_macros(photos: Collection, con: Connection) -> None:
    """A cursor has none, and gets none for good, within a transaction and without."""
    cur = con.cursor()
    mine = Collection.open(cur, "photos")
    mine.save_concept("leopard", box(0, 99))
    cur.execute("BEGIN")
    mine.save_concept("lion", box(0, 49))
    cur.execute("COMMIT")
    with pytest.raises(duckdb.CatalogException, match="boxwood_concept"):
        cur.execute("FROM concepts.lion")
    assert len(ids_of(con, "lion")) == photos.count(box(0, 49))
    assert len(ids_of(boxwood.load(cur), "leopard")) == photos.count(box(0, 99))


def test_two_writers(photos: Collection, con: Connection) -> None:
    """Of two transactions that save a version of one concept the later one fails."""
    photos.save_concept("leopard", box(0, 9))
    with boxwood.load(con.cursor()) as other:
        theirs = Collection.open(other, "photos")
        other.execute("BEGIN")
        assert theirs.concept("leopard").version == 1
        other.execute("SELECT count(*) FROM boxwood.concepts")  # from here on it sees this
        photos.save_concept("leopard", box(0, 19), replace=True)
        with pytest.raises(boxwood.Error, match=r"somebody else has saved .*: try again"):
            theirs.save_concept("leopard", box(0, 29), replace=True)
        other.execute("ROLLBACK")
        assert photos.concept("leopard").version == 2
        expected = sorted(photos.search(box(0, 19)).ids.tolist())
        assert ids_of(con) == ids_of(other) == expected
        assert theirs.save_concept("leopard", box(0, 29), replace=True).version == 3


def test_threads_save_side_by_side(photos: Collection, con: Connection) -> None:
    trouble: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with con.cursor() as cur:
                mine = Collection.open(cur, "photos")
                for version in range(3):
                    model = box(0, 10 * number + version)
                    mine.save_concept(f"concept_{number}", model, replace=version > 0)
                    assert mine.concept(f"concept_{number}").version == version + 1
                    mine.concepts()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not trouble
    assert [(c.name, c.version) for c in photos.concepts()] == [
        (f"concept_{number}", 3) for number in range(4)
    ]
    for number in range(4):
        expected = sorted(photos.search(box(0, 10 * number + 2)).ids.tolist())
        assert ids_of(con, f"concept_{number}") == expected


# --- other connections, files ---------------------------------------------------------------------


def test_reopened_moved_and_read_only(
    photos: Collection, con: Connection, database: Path, tmp_path: Path
) -> None:
    saved = photos.save_concept("leopard", box(0, 99), [0], note="hm")
    expected = ids_of(con)
    con.close()
    with boxwood.connect(database) as again:
        assert ids_of(again) == expected
        assert Collection.open(again, "photos").concepts() == [saved]
    moved = tmp_path / "moved" / "it's another.duckdb"
    moved.parent.mkdir()
    database.rename(moved)
    Path(f"{database}.boxwood").rename(f"{moved}.boxwood")
    with boxwood.connect(moved, read_only=True) as reader:
        assert ids_of(reader) == expected
        theirs = Collection.open(reader, "photos")
        assert theirs.concepts() == [saved]
        assert theirs.search(theirs.concept("leopard")).count == len(expected)
        for write in (
            lambda: theirs.save_concept("lion", box(0, 9)),
            lambda: theirs.drop_concept("leopard"),
        ):
            with pytest.raises(ReadOnly, match="read-only"):
                write()


def test_without_boxwood_the_database_is_whole(
    photos: Collection, con: Connection, database: Path, tmp_path: Path
) -> None:
    """Whoever has no Boxwood cannot ask the view, and is told what is missing; all else works."""
    photos.save_concept("leopard", box(0, 99))
    expected = ids_of(con)
    con.close()
    with duckdb.connect(str(database)) as plain:
        with pytest.raises(duckdb.CatalogException, match="boxwood_concept does not exist"):
            plain.execute("FROM concepts.leopard")
        for query in (
            "SHOW TABLES", "SHOW ALL TABLES", "FROM duckdb_columns()", "FROM duckdb_views()",
            "FROM information_schema.columns", "FROM information_schema.tables",
            "SELECT * EXCLUDE model FROM boxwood.concepts",
        ):  # fmt: skip
            assert plain.execute(query).fetchall()
        plain.execute("CREATE TABLE mine AS SELECT 1 AS a")
        plain.execute("CHECKPOINT")
        plain.execute(f"EXPORT DATABASE '{tmp_path / 'exported'}'")
        condition = plain.execute("SELECT model FROM boxwood.concepts").fetchall()[0][0]
        where = Model.from_json(condition).to_sql()
        rows = plain.execute(f"SELECT id FROM boxwood.photos_codes WHERE {where} ORDER BY id")
        assert [row[0] for row in rows.fetchall()] == expected
    with boxwood.connect(database) as again:
        assert ids_of(again) == expected


def test_attached_under_another_name(photos: Collection, con: Connection, database: Path) -> None:
    """Macros look into the database that they were loaded for, whatever USE says later."""
    photos.save_concept("leopard", box(0, 99))
    expected = ids_of(con)
    con.execute("ATTACH ':memory:' AS other")
    con.execute("USE other")
    rows = con.execute("SELECT id FROM concept('photos', 'leopard') ORDER BY id").fetchall()
    assert [row[0] for row in rows] == expected
    found = con.execute("SELECT count(*) FROM photos.concepts.leopard").fetchall()
    assert found == [(len(expected),)]


def test_in_memory() -> None:
    with boxwood.connect() as con:
        photos = Collection.create(con, "photos")
        photos.append(np.arange(500), codes=clustered_codes(500))
        photos.save_concept("leopard", box(0, 99))
        assert ids_of(con) == sorted(photos.search(box(0, 99)).ids.tolist())


def test_database_from_before_there_were_concepts(photos: Collection, con: Connection) -> None:
    con.execute("DROP TABLE boxwood.concepts")
    con.execute("DROP TABLE boxwood.sessions")
    assert photos.concepts() == []
    with pytest.raises(InputError, match="it has none; save_concept"):
        photos.concept("leopard")
    photos.save_concept("leopard", box(0, 99))
    assert len(ids_of(con)) == photos.count(box(0, 99))
    con.execute("DROP TABLE boxwood.concepts")
    con.execute("DROP VIEW concepts.leopard")
    photos.drop()


def test_a_damaged_row(photos: Collection, con: Connection) -> None:
    photos.save_concept("leopard", box(0, 9))
    con.execute("UPDATE boxwood.concepts SET model = '{}'")
    for ask in (photos.concepts, lambda: photos.concept("leopard")):
        with pytest.raises(InputError, match=r"'leopard' \(version 1\) of 'photos' is damaged"):
            ask()
    with pytest.raises(duckdb.Error, match="model"):
        con.execute("FROM concepts.leopard").fetchall()
    photos.save_concept("leopard", box(0, 99), replace=True)
    assert len(ids_of(con)) == photos.count(box(0, 99))
    con.execute("UPDATE boxwood.concepts SET model = '[' WHERE version = 2")
    assert photos.drop_concept("leopard") == 2


def test_a_view_that_was_dropped_comes_back(photos: Collection, con: Connection) -> None:
    photos.save_concept("leopard", box(0, 9))
    con.execute("DROP VIEW concepts.leopard")
    assert photos.concept("leopard").version == 1
    photos.save_concept("leopard", box(0, 99), replace=True)
    assert len(ids_of(con)) == photos.count(box(0, 99))
    con.execute("DROP VIEW concepts.leopard")
    assert photos.drop_concept("leopard") == 2


# --- from SQL alone -------------------------------------------------------------------------------

SAVE = (
    "INSERT INTO boxwood.concepts BY NAME FROM new_concept('photos', 'leopard', "
    "positives := [0, 3, 6], negatives := [9], note := 'by SQL');\n"
)
VIEW = (
    "CREATE SCHEMA IF NOT EXISTS concepts;\n"
    "CREATE VIEW concepts.leopard AS FROM boxwood_concept('photos', 'leopard');\n"
)


def test_saved_by_sql(photos: Collection, con: Connection) -> None:
    con.execute(SAVE + VIEW)
    found = photos.refine([0, 3, 6], [9])
    saved = photos.concept("leopard")
    assert saved.model == found.model
    assert (saved.version, saved.learner) == (1, found.learner)
    assert (saved.positives, saved.negatives, saved.note) == ([0, 3, 6], [9], "by SQL")
    assert saved.current
    assert ids_of(con) == sorted(found.ids.tolist())
    con.execute(
        "INSERT INTO boxwood.concepts BY NAME FROM new_concept('photos', 'leopard', [0, 3], "
        "learner := 'branch', seed := 3, random_negatives := 50)"
    )
    found = photos.refine([0, 3], learner="branch", seed=3, random_negatives=50)
    assert ids_of(con) == sorted(found.ids.tolist())
    assert con.execute(
        "SELECT name, version, learner, positives, negatives, note, current "
        "FROM concept_list('photos')"
    ).fetchall() == [("leopard", 2, "branch", 2, 0, "", True)]
    assert photos.save_concept("leopard", box(0, 9), replace=True).version == 3
    assert photos.drop_concept("leopard") == 3
    assert views(con) == []
    with pytest.raises(duckdb.Error, match="there is no collection 'scans'; there are: photos"):
        con.execute("FROM concept_list('scans')").fetchall()
    con.execute("BEGIN")
    con.execute(SAVE)
    con.execute("ROLLBACK")
    assert photos.concepts() == []


def test_parameters_of_statements(photos: Collection, con: Connection) -> None:
    photos.save_concept("leopard", box(0, 99))
    photos.save_concept("lion", box(0, 49))
    con.execute("PREPARE of AS SELECT count(*) FROM concept(?, ?)")
    for name, high in (("leopard", 99), ("lion", 49), ("leopard", 99)):
        counted = con.execute(f"EXECUTE of('photos', '{name}')").fetchall()
        assert counted == [(photos.count(box(0, high)),)]


def _shell(database: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).parent / "duckdb"
    command = str(beside) if beside.is_file() else shutil.which("duckdb")
    if command is None:
        pytest.skip("needs the DuckDB shell: pip install duckdb-cli")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    loading = (
        f"LOAD '{native.extension_path()}';\n"
        f".read '{ROOT / 'sql' / 'macros.sql'}'\n.read '{ROOT / 'sql' / 'shell.sql'}'\n"
    )
    return subprocess.run(
        [command, "-unsigned", "-csv", "-noheader", *options, str(database)],
        input=loading + script, capture_output=True, text=True, timeout=60, check=False,
        env=environment,
    )  # fmt: skip


def test_in_the_shell(photos: Collection, con: Connection, database: Path) -> None:
    photos.save_concept("lion", box(0, 99))
    expected = ids_of(con, "lion")
    wanted = photos.refine([0, 3, 6], [9]).count
    con.close()
    query = "SELECT id FROM concepts.lion ORDER BY id;\n"
    done = _shell(database, query, "-readonly")
    assert done.stderr == ""
    assert [int(line) for line in done.stdout.split()] == expected
    done = _shell(
        database,
        SAVE + VIEW + "SELECT count(*) FROM concepts.leopard;\n"
        "SELECT name, positives FROM concept_list('photos');\nFROM concept('photos', 'tiger');",
    )
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert rows[-3:] == [[str(wanted)], ["leopard", "3"], ["lion", "0"]]
    assert "has no concept 'tiger'; it has: leopard, lion" in done.stderr
    with boxwood.connect(database) as again:
        assert len(ids_of(again)) == wanted
        assert [c.note for c in Collection.open(again, "photos").concepts()] == ["by SQL", ""]


# --- the command ----------------------------------------------------------------------------------


def test_the_command(
    photos: Collection, con: Connection, database: Path, tmp_path: Path, run: Run
) -> None:
    con.close()
    code, out, err = run("concepts", database)
    assert (code, out) == (0, f"{database} has no concepts; `boxwood refine --save-concept NAME` "
                              "saves one\n")  # fmt: skip
    refine = ("refine", database, "photos", "--positives", "0,3,6", "--negatives", "9")
    code, out, err = run(*refine, "--save-concept", "leopard", "--note", "spots")
    assert (code, err) == (0, "saved the concept leopard, version 1\n")
    code, out, err = run(*refine, "--save-concept", "leopard")
    assert code == 1
    assert "has a concept 'leopard' already" in err
    assert "--replace" in err
    code, out, err = run(*refine, "--save-concept", "leopard", "--replace", "--json")
    assert (code, err) == (0, "saved the concept leopard, version 2\n")
    wanted = json.loads(out)["count"]
    code, out, err = run("concepts", database, "photos")
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["collection", "name", "version"]
    assert out.splitlines()[-1].split()[:3] == ["photos", "leopard", "2"]
    code, out, err = run("concepts", database, "--json")
    [listed] = json.loads(out)
    assert (listed["name"], listed["version"], listed["images"]) == ("leopard", 2, wanted)
    assert (listed["positives"], listed["negatives"]) == ([0, 3, 6], [9])
    target = tmp_path / "found.csv"
    code, out, err = run("export", database, "photos", "--concept", "leopard", "--out", target)
    assert code == 0
    assert len(target.read_text().splitlines()) == wanted + 1
    for words in ((), ("--concept", "leopard", "--model", "m.json")):
        assert run("export", database, "photos", *words, "--out", target)[0] == 2
    code, out, err = run("export", database, "photos", "--concept", "lion", "--out", target)
    assert code == 1
    assert "no concept 'lion'; it has: leopard" in err
    assert run("concepts", database, "--drop", "leopard")[0] == 2
    assert run("concepts", database, "photos", "--drop", "leo pard")[0] == 1
    code, out, err = run("concepts", database, "photos", "--drop", "leopard")
    assert (code, out) == (0, "dropped the concept leopard, 2 versions\n")
    assert run("concepts", database, "photos")[1].startswith(f"{database} has no concepts")
    code, out, err = run("concepts", database, "scans")
    assert code == 1
    assert "no collection 'scans'" in err
    for words in (("--note", "x"), ("--replace",)):
        assert run(*refine, *words)[0] == 2


def test_concepts_are_plain_values(photos: Collection) -> None:
    saved = photos.save_concept("leopard", box(0, 9), np.array([3, 6]), (n for n in [9]))
    assert all(type(n) is int for n in [*saved.positives, *saved.negatives])
    with pytest.raises(AttributeError):
        saved.name = "lion"  # type: ignore[misc]
    assert isinstance(saved, Concept)
