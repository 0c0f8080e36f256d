"""Macros against plain SQL over the rows that a transaction sees: appended, rewritten, deleted, and
deleted from the metadata table alone, whatever of it the index knows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from boxwood import native
from test_sql import COLUMNS, MACROS, SCHEMA, SHELL, connect, load_in_shell, run_shell

UUID = uuid.UUID("5a6978f8-3c4b-4e5d-8f70-b5c4d3e2f1a0")
PRINTS = native.Fingerprints(encoder="e", head="h", quantizer="q")
ROWS = 1200

Con = duckdb.DuckDBPyConnection


def codes_of(rng: np.random.Generator, n: int) -> np.ndarray:
    """Kinds of rows around a few centres, so that models find something."""
    centres = np.random.default_rng(5).integers(30, 220, (12, 32))
    noise = rng.normal(0, 14, (n, 32))
    return np.clip(centres[rng.integers(0, 12, n)] + noise, 0, 255).astype(np.uint8)


class World:
    """A collection `photos` whose metadata table, if there is one, has ids in another column, of
    another type; and what happens to its rows, done by SQL."""

    def __init__(self, folder: Path, metadata: bool, fine: bool, rows: int = ROWS) -> None:
        self.database = folder / "live.duckdb"
        self.metadata, self.fine = metadata, fine
        self.rng = np.random.default_rng(rows + 2 * fine + metadata)
        self.index = Path(f"{self.database}.boxwood") / str(UUID)
        self.prints = PRINTS._replace(fine="f") if fine else PRINTS
        self.next = 0
        con = self.con = connect(self.database)
        con.execute(SCHEMA)
        con.execute(
            "INSERT INTO boxwood.collections (name, uuid, generation, table_name, id_column,"
            " created, encoder_fingerprint, head_fingerprint, quantizer_fingerprint,"
            " fine_fingerprint) VALUES ('photos', ?, 1, ?, ?, TIMESTAMP '2024-01-01', 'e', 'h',"
            " 'q', ?)",
            [str(UUID), "my things" if metadata else None, 'the "no"' if metadata else "id",
             "f" if fine else ""],
        )  # fmt: skip
        values = ", ".join(f"{column} UTINYINT NOT NULL" for column in COLUMNS)
        last = ", fine UTINYINT[128] NOT NULL" if fine else ""
        con.execute(
            "CREATE TABLE boxwood.photos_codes (id BIGINT PRIMARY KEY, generation BIGINT NOT NULL,"
            f" {values}{last})"
        )
        con.execute('CREATE TABLE "my things" ("the ""no""" UINTEGER, kind VARCHAR)')
        self.generation = 1
        self.append(rows)
        self.write_index()
        con.execute(MACROS)
        con.execute(SHELL)

    def append(self, n: int) -> np.ndarray:
        """Ids in no order, with gaps."""
        ids = self.next + self.rng.permutation(2 * n)[:n].astype(np.int64)
        self.next += 2 * n
        self.insert(ids)
        if self.metadata:
            self.con.execute(
                """INSERT INTO "my things" SELECT unnest(?::BIGINT[]), 'new'""", [ids.tolist()]
            )
        return ids

    def insert(self, ids: np.ndarray) -> None:
        codes = codes_of(self.rng, len(ids))
        table = {"id": ids, "generation": np.full(len(ids), self.generation)}
        table |= {name: codes[:, d] for d, name in enumerate(COLUMNS)}
        if self.fine:
            fine = np.tile(codes, 4) ^ self.rng.integers(0, 8, (len(ids), 128)).astype(np.uint8)
            table["fine"] = pa.FixedSizeListArray.from_arrays(fine.ravel(), 128)
        self.con.register("fresh_rows", pa.table(table))
        self.con.execute("INSERT INTO boxwood.photos_codes BY NAME SELECT * FROM fresh_rows")
        self.con.unregister("fresh_rows")

    def some(self, n: int) -> list[int]:
        ids = self.con.execute("SELECT id FROM boxwood.photos_codes ORDER BY id").fetchnumpy()["id"]
        return sorted(self.rng.choice(ids, n, replace=False).tolist())

    def update(self, ids: list[int]) -> None:
        self.con.execute(f"DELETE FROM boxwood.photos_codes WHERE id IN {tuple(ids)}")
        self.insert(np.array(ids))

    def delete(self, ids: list[int]) -> None:
        self.con.execute(
            "INSERT INTO boxwood.deleted SELECT 'photos', unnest(?::BIGINT[]), ?",
            [ids, self.generation],
        )
        self.con.execute(f"DELETE FROM boxwood.photos_codes WHERE id IN {tuple(ids)}")
        self.con.execute(f"""DELETE FROM "my things" WHERE "the ""no\""" IN {tuple(ids)}""")

    def delete_metadata(self, ids: list[int]) -> None:
        self.con.execute(f"""DELETE FROM "my things" WHERE "the ""no\""" IN {tuple(ids)}""")

    def write_index(self) -> None:
        """An index of all codes, as `refresh` would leave one."""
        rows = self.con.execute("SELECT * FROM boxwood.photos_codes").fetchnumpy()
        self.index.mkdir(parents=True, exist_ok=True)
        codes = np.stack([np.asarray(rows[name]) for name in COLUMNS], axis=1).astype(np.uint8)
        fine = np.stack(rows["fine"]).astype(np.uint8) if self.fine else None
        names = []
        ids = np.asarray(rows["id"])
        for number, part in enumerate(np.array_split(np.arange(len(ids)), 2)):
            if len(part):
                names.append(f"{self.generation}-{number}.segment")
                native.write_segment(
                    self.index, names[-1], ids[part], codes[part], UUID, self.generation,
                    self.prints, fine=None if fine is None else fine[part],
                )  # fmt: skip
        native.write_manifest(self.index, UUID, self.generation, names, self.prints)
        self.con.execute(
            "INSERT OR REPLACE INTO boxwood.indexes VALUES ('photos', ?, 0)", [self.generation]
        )
        self.con.execute("DELETE FROM boxwood.deleted")

    def change(self) -> None:
        """Some of everything that can happen to rows."""
        self.generation += 1
        self.append(int(self.rng.integers(1, 120)))
        self.update(self.some(40))
        self.delete(self.some(50))
        if self.metadata:
            self.delete_metadata(self.some(45))
            self.con.execute("""INSERT INTO "my things" VALUES (NULL, 'none'), (4000000000, '')""")


CODE = "[" + ", ".join(COLUMNS) + "]::UTINYINT[]"


def plain(world: World) -> str:
    """id, code, fine of the live rows."""
    fine = "fine::UTINYINT[]" if world.fine else "NULL"
    live = """WHERE id IN (SELECT "the ""no\""" FROM "my things")""" if world.metadata else ""
    return f"(SELECT *, {CODE} AS code, {fine} AS fine_code FROM boxwood.photos_codes {live})"


def rows(con: Con, query: str, values: Any = None) -> list[Any]:
    return con.execute(query, values).fetchall() if values else con.execute(query).fetchall()


def box_model(rng: np.random.Generator, threshold: int) -> str:
    centre = codes_of(rng, 1)[0].astype(int)
    boxes = [
        [[d, max(0, centre[d] - 40), min(255, centre[d] + 40)] for d in (0, 3, 9)],
        [[5, 0, 120]],
    ]
    return json.dumps(
        {"boxwood_model": 1, "learner": "test", "dims": 32, "quantizer": "",
         "estimators": [boxes, [[[7, 60, 255]]]], "threshold": threshold,
         "score": {"terms": [{"linear": [1, -2] + [0] * 30, "square": [0] * 31 + [-1],
                              "constant": -7}], "votes": 100_000, "shift": 3, "threshold": None}},
        default=int,
    )  # fmt: skip


def check_search(world: World, con: Con, model: str, fine: bool = False) -> int:
    literal = "'" + model.replace("'", "''") + "'"
    condition = rows(con, f"SELECT boxwood_sql({literal})")[0][0]
    third = ", fine_code" if fine else ""
    wanted = rows(
        con,
        f"SELECT id, boxwood_votes({literal}, code), boxwood_score({literal}, code{third})"
        f" FROM {plain(world)} WHERE {condition} ORDER BY id",
    )
    asked = f"FROM search_model('photos', {literal})"
    assert rows(con, f"{asked} ORDER BY id") == wanted
    assert rows(con, f"SELECT count(*) {asked}") == [(len(wanted),)]
    assert rows(con, f"FROM count_model('photos', {literal})") == [(len(wanted),)]
    assert rows(con, f"SELECT id {asked} WHERE id % 2 = 0 ORDER BY id") == [
        (id,) for id, *_ in wanted if id % 2 == 0
    ]
    assert len(rows(con, f"{asked} LIMIT 3")) == min(3, len(wanted))
    return len(wanted)


def check_near(world: World, con: Con, model: str) -> None:
    all_rows = rows(con, f"SELECT id, code FROM {plain(world)} ORDER BY id")
    code = codes_of(world.rng, 1)[0].tolist()
    like, like_code = all_rows[int(world.rng.integers(0, len(all_rows)))]
    literal = "'" + model.replace("'", "''") + "'"
    condition = rows(con, f"SELECT boxwood_sql({literal})")[0][0]
    for k in (1, 7, 60, 10000):
        for call, sought in (("search_code", code), ("search_like", like_code)):
            argument = code if call == "search_code" else like
            for within, where in (("NULL", "true"), (literal, condition)):
                wanted = rows(
                    con,
                    f"SELECT id, boxwood_distance(code, {sought}::UTINYINT[]) AS d"
                    f" FROM {plain(world)} WHERE {where} ORDER BY d, id LIMIT {k}",
                )
                for recall in (1, 0.9):
                    found = rows(
                        con,
                        f"FROM {call}('photos', {argument}, k := {k}, within := {within},"
                        f" recall := {recall})",
                    )
                    assert len(found) == len(wanted)
                    if recall == 1 or within != "NULL":
                        assert found == wanted
            among = f"(SELECT list(id) FROM {plain(world)} WHERE id % 3 = 0)"
            wanted = rows(
                con,
                f"SELECT id, boxwood_distance(code, {sought}::UTINYINT[]) AS d FROM {plain(world)}"
                f" WHERE id % 3 = 0 ORDER BY d, id LIMIT {k}",
            )
            asked = f"FROM {call}('photos', {argument}, k := {k}, ids := "
            assert rows(con, f"{asked}{among})") == wanted
            assert rows(con, f"{asked}list_append({among}, 10**15::BIGINT))") == wanted
            assert rows(con, f"{asked}(SELECT list(id) FROM {plain(world)} WHERE false))") == []
            assert rows(con, f"{asked}[])") == []
        if k == 7:
            assert rows(con, f"FROM search_like('photos', {like}, k := 1)") == [(like, 0.0)]


def check_refine(world: World, con: Con) -> None:
    live = [id for (id,) in rows(con, f"SELECT id FROM {plain(world)} ORDER BY id")]
    fresh = [
        id for (id,) in rows(
            con, f"SELECT id FROM {plain(world)} WHERE generation = {world.generation} ORDER BY id"
        )
    ]  # fmt: skip
    right = sorted({*fresh[:2], *world.rng.choice(live, 4, replace=False).tolist()})
    wrong = [id for id in (*fresh[2:4], *live[:3]) if id not in right]
    for learner in ("cover", "branch"):
        options = f"positives := {right}, negatives := {wrong}, learner := '{learner}'"
        if learner == "cover" and world.fine:
            options += ", rerank := true"
        model, kind, positives = rows(
            con, f"SELECT model, learner, positives FROM train_model('photos', {options})"
        )[0]
        assert positives == len(right)
        found = rows(con, f"FROM refine('photos', {options}) ORDER BY id")
        wanted = rows(con, "SELECT *, ? FROM search_model('photos', ?) ORDER BY id", [kind, model])
        assert found == wanted
        check_search(world, con, model, fine="rerank" in options)
        assert rows(con, f"SELECT count(*) FROM refine('photos', {options})") == [(len(found),)]


def check(world: World, con: Con | None = None) -> None:
    con = con or world.con
    models = [box_model(world.rng, threshold) for threshold in (0, 1, 2)]
    counts = [check_search(world, con, model) for model in models]
    assert counts[0] == rows(con, f"SELECT count(*) FROM {plain(world)}")[0][0]
    check_near(world, con, models[1])
    check_refine(world, con)


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda *a, **k: World(tmp_path, *a, **k)


@pytest.mark.parametrize("metadata", [False, True])
@pytest.mark.parametrize("fine", [False, True])
def test_macros_answer_for_the_rows_that_a_transaction_sees(
    make: Make, metadata: bool, fine: bool
) -> None:
    world = make(metadata, fine)
    con = world.con
    check(world)
    world.change()  # in autocommit
    check(world)
    other = con.cursor()
    other.execute(MACROS)
    other.execute(SHELL)
    counts = {model: len(rows(other, "FROM search_model('photos', ?)", [model]))
              for model in [box_model(world.rng, t) for t in (0, 1)]}  # fmt: skip
    con.execute("BEGIN")
    world.change()
    check(world)
    for model, count in counts.items():  # the other transaction does not see it
        assert rows(other, "FROM count_model('photos', ?)", [model]) == [(count,)]
    con.execute("ROLLBACK")
    for model, count in counts.items():
        assert rows(con, "FROM count_model('photos', ?)", [model]) == [(count,)]
    check(world)
    other.execute("BEGIN")  # an old snapshot, of which the index is ahead
    before = rows(other, "FROM search_model('photos', ?) ORDER BY id", [model])
    world.write_index()
    assert rows(other, "FROM search_model('photos', ?) ORDER BY id", [model]) == before
    other.execute("COMMIT")
    check(world, other)
    check(world)


def test_everything_is_new_or_gone(make: Make) -> None:
    world = make(True, False, rows=0)
    con = world.con
    everything = box_model(world.rng, 0)
    assert rows(con, "FROM search_model('photos', ?)", [everything]) == []
    assert rows(con, f"FROM search_code('photos', {[7] * 32})") == []
    world.generation += 1
    world.append(300)
    check(world)
    con.execute('DELETE FROM "my things"')  # it now has no row at all
    assert rows(con, "FROM count_model('photos', ?)", [everything]) == [(0,)]
    assert rows(con, "FROM search_model('photos', ?)", [everything]) == []
    assert rows(con, f"FROM search_code('photos', {[7] * 32})") == []
    world.write_index()
    assert rows(con, f"FROM search_code('photos', {[7] * 32})") == []
    assert rows(con, "FROM count_model('photos', ?)", [everything]) == [(0,)]


def test_many_rows_deleted_by_sql_alone(make: Make) -> None:
    """More than the index is asked for beyond what is wanted."""
    world = make(True, False)
    near = rows(world.con, "SELECT id FROM search_like('photos', ?, k := 300)", [world.some(1)[0]])
    world.delete_metadata([id for (id,) in near[1:]])
    check(world)
    world.change()
    check(world)


def test_ids_far_apart(make: Make) -> None:
    """Metadata ids that are too far apart for a bit each."""
    world = make(True, False)
    ids = world.rng.integers(0, 2**32, 3000).astype(np.int64)
    world.generation += 1
    world.insert(np.unique(ids)[::3])
    world.con.execute("""INSERT INTO "my things" SELECT unnest(?::BIGINT[]), ''""", [ids.tolist()])
    check(world)


def test_prepared_statements_see_what_changed(make: Make) -> None:
    world = make(True, False)
    con = world.con
    model = box_model(world.rng, 1)
    con.execute("PREPARE near AS SELECT id FROM search_code('photos', ?, k := ?)")
    con.execute("PREPARE matching AS SELECT id FROM search_model('photos', ?)")
    con.execute("PREPARE fixed AS SELECT count FROM count_model('photos', '" + model + "')")
    code = [100] * 32
    for round in range(4):
        condition = rows(con, "SELECT boxwood_sql(?)", [model])[0][0]
        matching = {id for (id,) in rows(con, f"SELECT id FROM {plain(world)} WHERE {condition}")}
        assert {id for (id,) in rows(con, f"EXECUTE matching('{model}')")} == matching
        assert rows(con, "EXECUTE fixed") == [(len(matching),)]
        assert rows(con, f"EXECUTE near({code}, 9)") == rows(
            con,
            f"SELECT id FROM {plain(world)} ORDER BY boxwood_distance(code, {code}::UTINYINT[]), id"
            " LIMIT 9",
        )
        if round == 1:
            con.execute("BEGIN")
        world.change()
        if round == 2:
            con.execute("ROLLBACK")


def test_changed_rows_are_not_judged_by_models_of_other_codes(make: Make) -> None:
    """As after a recode, while the index still has the codes of before."""
    world = make(False, False)
    con = world.con
    [(model,)] = rows(con, f"SELECT model FROM train_model('photos', positives := {world.some(5)})")
    con.execute("UPDATE boxwood.collections SET quantizer_fingerprint = 'new'")
    world.generation += 1
    world.update(world.some(ROWS))
    for call in ("search_model", "count_model"):
        with pytest.raises(duckdb.Error, match="another quantizer"):
            rows(con, f"FROM {call}('photos', ?)", [model])
    [(model,)] = rows(con, f"SELECT model FROM train_model('photos', positives := {world.some(5)})")
    assert json.loads(model)["quantizer"] == "new"


def test_labels_must_be_live(make: Make) -> None:
    world = make(True, False)
    world.generation += 1
    indexed, other, updated = world.some(3)
    fresh, hidden = world.append(2).tolist()
    world.update([updated, other])
    world.delete([other, 10**6])
    world.delete_metadata([indexed, hidden])
    ask = "SELECT positives FROM train_model('photos', positives := ?, negatives := ?)"
    assert rows(world.con, ask, [[fresh, updated], []]) == [(2,)]
    for dead in (other, indexed, hidden, 10**7, -1):
        for labels in ([[fresh, dead], []], [[fresh], [dead]]):
            with pytest.raises(duckdb.Error, match=f"id {dead} is not in the"):
                rows(world.con, ask, labels)
        with pytest.raises(duckdb.Error, match=f"id {dead} is not in the"):
            rows(world.con, f"FROM search_like('photos', {dead})")
    with pytest.raises(duckdb.Error, match="both"):
        rows(world.con, ask, [[fresh], [fresh]])


def test_arguments_from_tables(make: Make) -> None:
    world = make(True, False)
    likes = "CREATE TABLE boxwood_seen AS SELECT unnest(?::BIGINT[]) AS id"
    world.con.execute(likes, [world.some(4)])
    for name in ("refine", "train_model"):
        a, b = (
            rows(world.con, f"SELECT count(*) FROM {name}('photos', positives := {ids})")
            for ids in (
                "(SELECT list(id ORDER BY id) FROM boxwood_seen)",
                [id for (id,) in rows(world.con, "SELECT id FROM boxwood_seen ORDER BY id")],
            )
        )
        assert a == b


def test_the_shell_answers_alike(make: Make) -> None:
    world = make(True, True)
    world.change()
    model = box_model(world.rng, 1)
    wanted = rows(world.con, "FROM count_model('photos', ?)", [model])[0][0]
    nearest = rows(world.con, f"SELECT id FROM search_code('photos', {[90] * 32}, k := 1)")[0][0]
    world.con.close()
    done: subprocess.CompletedProcess[str] = run_shell(
        world.database,
        load_in_shell() + f"FROM count_model('photos', '{model}');\n"
        f"SELECT id FROM search_code('photos', {[90] * 32}, k := 1);",
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["count", str(wanted), "id", str(nearest)]


ROWS_VALUE = (
    "{{'index': {index}, 'uuid': '{uuid}', 'quantizer': '{quantizer}', 'generation': {generation},"
    " 'latest': {latest}, 'ids': {ids}::BIGINT[],"
    " 'codes': {codes}::UTINYINT[], 'fine': {fine}::UTINYINT[], 'deleted': {deleted}::BIGINT[],"
    " 'live': {live}::BLOB}}"
)


def test_hostile_arguments(make: Make) -> None:
    world = make(False, False)
    con = world.con
    model = box_model(world.rng, 1)
    count = rows(con, "FROM count_model('photos', ?)", [model])[0][0]
    good = {"index": f"'{world.index}'", "uuid": str(UUID), "generation": 1, "latest": 1,
            "quantizer": "q",
            **dict.fromkeys(("ids", "codes", "fine", "deleted", "live"), "NULL")}  # fmt: skip

    def asked(**other: Any) -> str:
        return ROWS_VALUE.format(**good | other)

    fine = f"SELECT boxwood_live_count({asked()}, ?, 1)"
    assert rows(con, fine, [model]) == [(count,)]
    huge = "range(2000000)"
    assert rows(con, f"SELECT boxwood_live_count({asked(deleted=huge)}, ?, 1)", [model]) == [(0,)]
    negative = "[-1, -9223372036854775808]"
    assert rows(con, f"SELECT boxwood_live_count({asked(deleted=negative)}, ?, 1)", [model]) == [
        (count,)
    ]
    bad_index = [
        (asked(index="'/nonexistent'"), "no Boxwood index"),
        (asked(uuid="x"), "another collection"), (asked(generation=9, latest=9), "older than the"),
        (asked(latest=0), "run it again"), (asked(latest=-1), "run it again"),
    ]  # fmt: skip
    bad = [
        (asked(index="NULL"), "NULL"), (asked(generation="NULL"), "does not say"),
        (asked(latest="NULL"), "does not say"), (asked(quantizer="q" * 32), "has 32 bytes"),
        (asked(ids="[5]"), "ids without codes"),
        (asked(ids="[5]", codes="[1, 2]"), "32 values"),
        (asked(ids="[5, NULL]", codes="range(64)"), "NULL at place 2"),
        (asked(ids="[5]", codes="list_resize([NULL::INT], 32, 1)"), "NULL at place 1"),
        (asked(ids="[5]", codes="list_resize([1], 32, 1)", fine="[1]"), "128 values"),
        (asked(live="''"), "set of ids"), (asked(live="'\\xFF\\xFE'"), "set of ids"),
        (asked(live="repeat('\\xFF', 6)"), "set of ids"), (asked(live="repeat('a', 24)"), "set of"),
        ("NULL", "NULL"),
    ]  # fmt: skip
    calls = [
        f"boxwood_live_count({{}}, '{model}', 1)", f"boxwood_live_search({{}}, '{model}', 2)",
        f"boxwood_live_fresh({{}}, '{model}')", "boxwood_live_changed({})",
        "boxwood_live_knn({}, list_resize([1], 32, 1)::UTINYINT[], 5, 1.0, NULL, NULL)",
        "boxwood_live_code({}, 4)",
        "boxwood_live_train({}, [1], [2], NULL, NULL, 'cover', 25, 0, NULL, 1, 0, true, false,"
        " true)",
    ]  # fmt: skip
    for call in calls:
        for value, message in [*bad, *([] if "live_fresh" in call else bad_index)]:
            with pytest.raises(duckdb.Error, match=message):
                rows(con, "SELECT " + call.replace("{}", value))
    assert rows(con, f"SELECT boxwood_live_count({asked(quantizer='q' * 31)}, ?, 1)", [model])
    for model_text, message in (
        ("NULL", "NULL"), ("''", "model"), ("'{'", "model"), ("repeat('[', 100000000)", "model"),
        ("repeat('\"', 1000)", "model"),
    ):  # fmt: skip
        for call in ("count_model", "search_model"):
            with pytest.raises(duckdb.Error, match=message):
                rows(con, f"FROM {call}('photos', {model_text})")
    for call, message in (
        ("search_code('photos', [1, 2])", "32"), ("search_code('photos', NULL)", "NULL"),
        (f"search_code('photos', {[1] * 32}, k := 0)", "k is 0"),
        (f"search_code('photos', {[1] * 32}, k := 10001)", "k is 10001"),
        (f"search_code('photos', {[1] * 32}, k := NULL)", "k is NULL"),
        (f"search_code('photos', {[1] * 32}, recall := 2)", "recall is 2"),
        (f"search_code('photos', {[1] * 32}, recall := NULL)", "recall is NULL"),
        (f"search_code('photos', {[1] * 32}, within := 'x')", "model"),
        ("search_like('photos', NULL)", "NULL"), ("search_like('photos', -1)", "-1"),
        ("refine('photos', positives := [1, NULL])", "NULL at place 2"),
        ("refine('photos', positives := [1], learner := 'x')", "no learner 'x'"),
        ("refine('photos', positives := [1], learner := NULL)", "learner is NULL"),
        ("refine('photos', positives := [1], estimators := 0)", "estimators is 0"),
        ("refine('photos', positives := [1], random_negatives := -1)", "random_negatives is -1"),
        ("refine('photos', positives := [1], query_fine := [1])", "128"),
        ("search_like(NULL, 1)", "no collection NULL"),
    ):  # fmt: skip
        with pytest.raises(duckdb.Error, match=message):
            rows(con, f"FROM {call}")


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("metadata", [False, True])
def test_rows_of_small_appends_answer_as_those_of_the_codes_table(
    make: Make, metadata: bool, fine: bool
) -> None:
    world = make(metadata, fine)
    con = world.con
    world.change()
    con.execute("UPDATE boxwood.collections SET generation = ?", [world.generation])
    code = codes_of(world.rng, 1)[0].tolist()
    model = box_model(world.rng, 1)
    labels = [id for (id,) in rows(con, f"SELECT id FROM {plain(world)} ORDER BY hash(id) LIMIT 6")]
    queries = [
        f"FROM search_code('photos', {code}, k := 10000) ORDER BY distance, id",
        f"FROM search_like('photos', {labels[0]}, k := 100) ORDER BY distance, id",
        f"FROM search_model('photos', '{model}') ORDER BY id",
        f"FROM count_model('photos', '{model}')",
        f"FROM refine('photos', positives := {labels}, rerank := {fine}) ORDER BY id",
    ]
    wanted = [rows(con, query) for query in queries]
    assert all(wanted)
    changed = f"FROM boxwood.photos_codes WHERE generation = {world.generation}"
    found = con.execute(f"SELECT * {changed}").fetchnumpy()
    codes = np.stack([np.asarray(found[name]) for name in COLUMNS], axis=1).astype(np.uint8)
    half = len(codes) // 2
    for part in (slice(0, half), slice(half, half + 1)):  # the others stay where they are
        ids = np.asarray(found["id"], np.int64)[part]
        packed = np.stack(found["fine"][part]).astype(np.uint8).tobytes() if fine else None
        con.execute(
            "INSERT INTO boxwood.appended VALUES ('photos', ?, ?, ?, ?)",
            [world.generation, ids.tobytes(), codes[part].tobytes(), packed],
        )
        con.execute(f"DELETE {changed} AND id IN (SELECT unnest(?::BIGINT[]))", [ids.tolist()])
    con.execute(
        "INSERT INTO boxwood.appended VALUES ('others', ?, ?, ?, NULL), ('photos', 1, ?, ?, ?)",
        [world.generation, ids.tobytes(), b"a" * 32, ids.tobytes(), b"a" * 32, b"a" * 128],
    )  # of another collection, and of a generation that the index has
    assert [rows(con, query) for query in queries] == wanted
    con.execute("UPDATE boxwood.appended SET codes = 'abc' WHERE generation > 1")
    with pytest.raises(duckdb.Error, match="do not have 32 values for each id"):
        rows(con, queries[0])


def test_packed_rows_are_unpacked(make: Make) -> None:
    con = make(False, False, rows=2).con
    ids = np.array([-5, 0, 2**63 - 1, 7], np.int64)
    con.execute("CREATE TABLE packed (ids BLOB)")
    con.execute("INSERT INTO packed VALUES (?), (NULL)", [ids.tobytes()])
    assert rows(con, "SELECT boxwood_int64s(ids) FROM packed") == [(ids.tolist(),), (None,)]
    unpacked = [(list(ids.tobytes()),), (None,)]
    assert rows(con, "SELECT boxwood_bytes(ids) FROM packed") == unpacked
    assert rows(con, "SELECT boxwood_int64s(''::BLOB), boxwood_bytes(''::BLOB)") == [([], [])]
    with pytest.raises(duckdb.Error, match="9 bytes cannot hold numbers of 8"):
        rows(con, "SELECT boxwood_int64s('123456789'::BLOB)")


@pytest.mark.parametrize("differing", ["codes", "live", "quantizer", "deleted", "latest"])
def test_each_row_has_a_transaction_of_its_own(make: Make, differing: str) -> None:
    """Structs of the rows of a table, alike but for one member. What is alike is constant, so it
    lies in one place for all of them."""
    world = make(False, False, rows=2)
    con = world.con
    one, two = [id for (id,) in rows(con, "SELECT id FROM boxwood.photos_codes ORDER BY id")]
    world.generation += 1
    fresh, other = world.next, world.next + 1
    con.execute(
        "CREATE TABLE asked AS SELECT i, list_resize([i], 32, i)::UTINYINT[] AS code,"
        " list_resize([255 - i], 32, 255 - i)::UTINYINT[] AS unlike,"
        " CASE WHEN i % 2 = 0 THEN code || unlike ELSE unlike || code END AS codes,"
        f" (SELECT boxwood_ids(x) FROM (VALUES ({fresh})) v(x)) AS only_fresh,"
        f" (SELECT boxwood_ids(x) FROM (VALUES ({other})) v(x)) AS only_other"
        " FROM range(200) t(i)"
    )
    member = {"codes": {"codes": "codes"},
              "live": {"live": "CASE WHEN i % 2 = 0 THEN only_fresh ELSE only_other END"},
              "quantizer": {"quantizer": "' || CASE WHEN i = 199 THEN 'x' ELSE 'q' END || '"},
              "deleted": {"deleted": f"[CASE WHEN i % 2 = 0 THEN {one} ELSE {two} END]"},
              "latest": {"latest": "CASE WHEN i = 199 THEN 0 ELSE 1 END"}}[differing]  # fmt: skip
    struct = ROWS_VALUE.format(
        **{"index": f"'{world.index}'", "uuid": str(UUID), "generation": 1, "latest": 1,
           "quantizer": "q", "ids": f"[{fresh}, {other}]", "fine": "NULL", "deleted": "NULL",
           "codes": "list_resize([9], 64, 9)", "live": "NULL"} | member
    )  # fmt: skip
    model = json.dumps(json.loads(box_model(world.rng, 0)) | {"quantizer": "q"})
    call = f"boxwood_live_knn({struct}, code, 4, 1.0, ?, NULL)"
    ask = f"SELECT i, {call} FROM asked WHERE i < ? ORDER BY i"
    if differing in ("quantizer", "latest"):  # the last row's is wrong
        assert len(rows(con, ask, [model, 199])) == 199
        with pytest.raises(duckdb.Error, match=r"another quantizer|run it again"):
            rows(con, ask, [model, 200])
        return
    found = rows(con, ask, [model, 200])
    assert len(found) == 200
    for i, neighbours in found:
        ids = [neighbour["id"] for neighbour in neighbours]
        if differing == "codes":
            assert neighbours[0] == {"id": other if i % 2 else fresh, "distance": 0.0}
            assert sorted(ids) == [one, two, fresh, other]
        elif differing == "live":
            assert ids == [other if i % 2 else fresh]
        else:
            assert sorted(ids) == [one if i % 2 else two, fresh, other]


def test_the_index_passes_the_transaction(make: Make) -> None:
    """It is brought up to date after the statement looked which generation it has: an error, as
    it now may lack rows that the transaction sees, and has some that it does not."""
    world = make(False, False)
    con = world.con
    model = box_model(world.rng, 0)
    value = {"index": f"'{world.index}'", "uuid": str(UUID), "generation": 1, "latest": 1,
             "quantizer": "q",
             **dict.fromkeys(("ids", "codes", "fine", "deleted", "live"), "NULL")}  # fmt: skip
    con.execute(f"CREATE TABLE seen AS SELECT {ROWS_VALUE.format(**value)} AS r")
    asked = f"SELECT boxwood_live_count(r, '{model}', 1), boxwood_live_changed(r) FROM seen"
    assert rows(con, asked) == [(ROWS, None)]
    world.generation += 1
    world.append(10)
    world.write_index()
    for call in (f"boxwood_live_count(r, '{model}', 1)", "boxwood_live_changed(r)"):
        with pytest.raises(duckdb.Error, match="run it again"):
            rows(con, f"SELECT {call} FROM seen")
    assert rows(con, f"SELECT boxwood_live_fresh(r, '{model}') FROM seen") == [([],)]
    assert rows(con, "FROM count_model('photos', ?)", [model]) == [(ROWS + 10,)]


def test_the_index_passes_the_transaction_before_it_is_scanned(make: Make) -> None:
    """search_model looks at the index twice, for what changed and to scan it. What another session
    commits and brings into it between is an error, also where nothing is found."""
    world = make(False, False)
    con = world.con
    everything, nothing = box_model(world.rng, 0), box_model(world.rng, 2)
    scan = "FROM boxwood_live_scan(boxwood_path('photos'), model := ?)"
    stamps = f"SELECT count(id), count(*), min(generation), max(generation) {scan}"
    found = rows(con, "SELECT count(*) FROM search_model('photos', ?)", [nothing])[0][0]
    assert rows(con, stamps, [everything]) == [(ROWS, ROWS + 1, 1, 1)]
    assert rows(con, stamps, [nothing]) == [(found, found + 1, 1, 1)]
    assert rows(con, f"SELECT generation {scan} WHERE id IS NULL", [nothing]) == [(1,)]
    later = world.index.with_name("later")
    shutil.copytree(world.index, later)
    con.execute("SET VARIABLE boxwood_index = MAP {'photos': ?}", [str(later)])
    assert len(rows(con, "FROM search_model('photos', ?)", [everything])) == ROWS
    names = [name for (name,) in rows(con, "SELECT segment FROM boxwood_info(?)", [str(later)])]
    native.write_manifest(later, UUID, 2, names[:0], world.prints)
    where = ["true", "id = 17", "id IN (17, 5000)", "votes = 7", "score > 1e9"]
    for model, condition in itertools.product((everything, nothing), where):
        with pytest.raises(duckdb.Error, match="run it again"):
            rows(con, f"FROM search_model('photos', ?) WHERE {condition}", [model])
        with pytest.raises(duckdb.Error, match="run it again"):
            rows(con, f"SELECT count(*) FROM search_model('photos', ?) WHERE {condition}", [model])
    native.write_manifest(later, UUID, 1, names, world.prints)
    assert len(rows(con, "FROM search_model('photos', ?)", [everything])) == ROWS


def test_what_the_index_must_not_answer_for(make: Make) -> None:
    """NULL where that is nothing, however many rows there are; else no larger than it must be."""
    changed = (
        "SELECT boxwood_live_changed(r) FROM query(boxwood_of(getvariable('boxwood_rows'),"
        " 'photos'))"
    )
    world = make(True, False)
    con = world.con
    assert rows(con, changed) == [(None,)]
    gone = world.some(3)
    world.delete_metadata(gone)
    world.generation += 1
    fresh, updated = world.append(2).tolist(), world.some(20)
    updated = [id for id in updated if id not in gone]
    world.update(updated)
    deleted = [id for id in world.some(20) if id not in (*gone, *fresh, *updated)]
    world.delete(deleted)
    con.execute(f"CREATE TABLE left_out AS {changed.replace('(r)', '(r) AS s')}")
    probe = f"SELECT id FROM range({world.next}) t(id), left_out WHERE NOT boxwood_live_has(s, id)"
    assert {id for (id,) in rows(con, probe)} == {*gone, *fresh, *updated, *deleted}


def test_errors_are_valid_text(make: Make) -> None:
    """Whatever was cut in the middle of a character to go into them."""
    con = make(False, False).con
    for before in ("", "a", "ab", "abc"):
        for character in ("\u00e9", "\u20ac", "\U0001f418"):
            with pytest.raises(duckdb.Error, match="no learner '") as caught:
                rows(
                    con, "FROM refine('photos', positives := [1], learner := ?)",
                    [before + character * 30],
                )  # fmt: skip
            [told] = re.findall("no learner '([^']*)'", str(caught.value))
            assert 36 < len(told.encode()) <= 40
            assert told == before + character * (len(told) - len(before))


def test_a_set_of_ids(make: Make) -> None:
    con = connect()
    rng = np.random.default_rng(3)
    for ids in (
        np.arange(0), np.arange(5), np.arange(100000), rng.integers(0, 2**62, 5000),
        rng.permutation(70000), np.array([0, 2**63 - 1]), rng.integers(0, 10**6, 3000) * 64,
    ):  # fmt: skip
        con.register("given", pa.table({"id": pa.array(ids.astype(np.int64))}))
        probe = np.unique(np.concatenate([ids[:3000], ids[:3000] + 1, rng.integers(0, 2**40, 100)]))
        con.register("probe", pa.table({"id": pa.array(probe.astype(np.int64))}))
        assert rows(
            con,
            "SELECT count(*) FROM probe, (SELECT boxwood_ids(id) AS s FROM given) WHERE"
            " boxwood_live_has(s, id) <> (id NOT IN (SELECT id FROM given)) OR"
            " NOT boxwood_live_has(NULL, id)",
        ) == [(0,)]
    none = "SELECT boxwood_live_has(boxwood_ids(i), 3) FROM (VALUES (NULL), (-3)) t(i)"
    assert rows(con, none) == [(True,)]
    assert rows(con, "SELECT boxwood_live_has(NULL, NULL)") == [(False,)]
    grouped = rows(
        con,
        "SELECT bool_and(boxwood_live_has(s, g + 1) AND NOT boxwood_live_has(s, g))"
        " FROM (SELECT i % 100 AS g, boxwood_ids(i) AS s FROM range(100000) r(i) GROUP BY g)",
    )
    assert grouped == [(True,)]
