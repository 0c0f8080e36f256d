"""The whole store against a dict: whatever happens to it, it answers as NumPy does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from numpy.typing import NDArray

import boxwood
from boxwood import Collection, Model, native
from conftest import clustered_codes

Ids = NDArray[np.int64]


@st.composite
def models(draw: st.DrawFn, codes: NDArray[np.uint8] | None = None) -> Model:
    """A model whose boxes lie around codes of the collection, so that it matches something."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centres = clustered_codes(50, 0) if codes is None or not len(codes) else codes
    estimators = []
    for _ in range(draw(st.integers(1, 5))):
        boxes = []
        for _ in range(draw(st.integers(0, 3))):
            centre = centres[rng.integers(len(centres))].astype(int)
            dims = np.sort(rng.permutation(32)[: draw(st.integers(0, 5))])
            width = rng.integers(0, 120, len(dims))
            boxes.append(
                [[int(d), max(0, int(centre[d] - w)), min(255, int(centre[d] + w))]
                 for d, w in zip(dims, width, strict=True)]
            )  # fmt: skip
        estimators.append(boxes)
    document: dict[str, Any] = {
        "boxwood_model": 1, "learner": "random", "dims": 32, "estimators": estimators,
        "threshold": draw(st.integers(0, len(estimators))),
    }  # fmt: skip
    if draw(st.booleans()):
        terms = [
            {"linear": rng.integers(-500, 500, 32).tolist(),
             "square": rng.integers(-2, 3, 32).tolist(),
             "constant": int(rng.integers(-1000, 1000))}
            for _ in range(draw(st.integers(1, 3)))
        ]  # fmt: skip
        document["score"] = {
            "terms": terms, "votes": int(rng.integers(0, 10**5)),
            "shift": 3, "threshold": draw(st.none() | st.integers(-(10**6), 10**6)),
        }  # fmt: skip
    return Model.from_json(json.dumps(document))


EVERYTHING = Model.from_json(
    '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
)


class StoreMachine(RuleBasedStateMachine):
    """Rules change or damage the store, by two connections; invariants compare what each of them
    sees with `rows`, id -> code and, behind it, the fine code in machines that keep such.

    The first connection now and then has a transaction open: `mine` is then what it sees, until it
    commits or rolls back, and the second one still sees `rows`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="boxwood-test-"))
        self.database = self.folder / "photos.duckdb"
        self.rows: dict[int, NDArray[np.uint8]] = {}
        self.mine: dict[int, NDArray[np.uint8]] | None = None
        self.joined = False  # whether that transaction has changed rows through the collection
        self.kept: dict[int, NDArray[np.uint8]] | None = None  # rows of the database that is kept
        self.older: dict[int, NDArray[np.uint8]] | None = None  # rows of the index that is kept
        self.next_id = 0
        self.told = 0

    @initialize(fine=st.booleans(), told=st.booleans(), table=st.booleans())
    def create(self, fine: bool, told: bool, table: bool) -> None:
        self.with_fine, self.with_table = fine, table
        self.con = boxwood.connect(self.database)
        if table:
            self.con.execute("CREATE TABLE photos (uri VARCHAR, id INTEGER)")
        self.photos = Collection.create(self.con, "photos", fine=fine if told else None)
        self.second()

    def second(self) -> None:
        self.other = boxwood.load(self.con.cursor())
        self.theirs = Collection.open(self.other, "photos")

    def teardown(self) -> None:
        self.other.close()
        self.con.close()
        shutil.rmtree(self.folder)

    @property
    def seen(self) -> dict[int, NDArray[np.uint8]]:
        """What the first connection sees."""
        return self.rows if self.mine is None else self.mine

    def table_of(
        self, rows: dict[int, NDArray[np.uint8]]
    ) -> tuple[Ids, NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Ids, codes and fine codes."""
        ids = np.array(sorted(rows), np.int64)
        width = 160 if self.with_fine else 32
        values = np.array([rows[i] for i in ids.tolist()], np.uint8).reshape(-1, width)
        return ids, values[:, :32], values[:, 32:] if self.with_fine else None

    def made(self, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        fine = np.random.default_rng(seed).integers(0, 256, (n, 128), np.uint8)
        return clustered_codes(n, seed), fine if self.with_fine else None

    def remember(self, ids: Ids, codes: NDArray[np.uint8], fine: NDArray[np.uint8] | None) -> None:
        values = codes if fine is None else np.concatenate([codes, fine], axis=1)
        self.seen.update(zip(ids.tolist(), values, strict=True))
        self.joined = self.mine is not None

    def some(self, data: st.DataObject, rows: dict[int, NDArray[np.uint8]]) -> Ids:
        """A few, or a good part, of the ids."""
        ids = np.array(sorted(rows), np.int64)
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        share = data.draw(st.sampled_from([0.01, 0.1, 0.5, 1.0]))
        return rng.permutation(ids)[: max(1, int(share * len(ids)))]

    def metadata(self, ids: Ids) -> dict[str, Any] | None:
        return {"uri": [f"{i}.jpg" for i in ids.tolist()]} if self.with_table else None

    # --- changes

    @precondition(lambda self: self.mine is None)
    @rule()
    def begin(self) -> None:
        self.con.execute("BEGIN")
        self.con.execute("SELECT count(*) FROM boxwood.collections").fetchall()
        self.mine, self.joined = dict(self.rows), False

    @precondition(lambda self: self.mine is not None)
    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        self.con.execute("COMMIT" if commit else "ROLLBACK")
        if commit and self.mine is not None:
            self.rows = self.mine
        self.mine, self.joined = None, False

    @rule(n=st.integers(1, 700), seed=st.integers(0, 2**32), gap=st.integers(0, 50))
    def append(self, n: int, seed: int, gap: int) -> None:
        ids = self.next_id + gap + np.random.default_rng(seed).permutation(n)
        codes, fine = self.made(n, seed)
        metadata = self.metadata(ids)
        assert self.photos.append(ids, codes=codes, fine=fine, metadata=metadata) == n
        self.remember(ids, codes, fine)
        self.next_id += gap + n

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), absent=st.booleans())
    def delete(self, data: st.DataObject, absent: bool) -> None:
        ids = self.some(data, self.seen)
        given = np.concatenate([ids, [self.next_id + 5000]]) if absent else ids
        assert self.photos.delete(given) == len(ids)
        if self.with_table:  # the user's own: the row of metadata stays
            self.con.execute(f"DELETE FROM photos WHERE id IN ({', '.join(map(str, ids))})")
        for i in ids.tolist():
            del self.seen[i]
        self.joined = self.mine is not None

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), seed=st.integers(0, 2**32))
    def update(self, data: st.DataObject, seed: int) -> None:
        ids = self.some(data, self.seen)
        codes, fine = self.made(len(ids), seed)
        assert self.photos.update(ids, codes=codes, fine=fine) == len(ids)
        self.remember(ids, codes, fine)

    @precondition(lambda self: self.with_table and self.seen)
    @rule(data=st.data())
    def delete_by_sql(self, data: st.DataObject) -> None:
        ids = self.some(data, self.seen)
        self.con.execute(f"DELETE FROM photos WHERE id IN ({', '.join(map(str, ids))})")
        for i in ids.tolist():
            del self.seen[i]

    @precondition(lambda self: self.with_table and self.rows and self.mine is None)
    @rule(data=st.data())
    def the_other_deletes_by_sql(self, data: st.DataObject) -> None:
        ids = self.some(data, self.rows)
        self.other.execute(f"DELETE FROM photos WHERE id IN ({', '.join(map(str, ids))})")
        for i in ids.tolist():
            del self.rows[i]

    @precondition(lambda self: self.mine is None and self.rows)
    @rule(data=st.data(), n=st.integers(1, 50), seed=st.integers(0, 2**32))
    def the_other_changes(self, data: st.DataObject, n: int, seed: int) -> None:
        ids = self.some(data, self.rows)
        codes, fine = self.made(len(ids), seed)
        assert self.theirs.update(ids, codes=codes, fine=fine) == len(ids)
        self.remember(ids, codes, fine)
        ids = self.next_id + np.arange(n)
        codes, fine = self.made(n, seed)
        self.theirs.append(ids, codes=codes, fine=fine, metadata=self.metadata(ids))
        self.remember(ids, codes, fine)
        self.next_id += n

    @precondition(lambda self: self.mine is None)
    @rule(n=st.integers(1, 700), seed=st.integers(0, 2**32), good=st.booleans())
    def load(self, n: int, seed: int, good: bool) -> None:
        """A file's rows come all or, where the last id is taken, none; and none where all rows
        have fine codes, which such a file has not, or where the user's table lacks them."""
        ids, codes = self.next_id + np.arange(n), clustered_codes(n, seed)
        good = good or not self.rows
        if not good:
            ids[-1] = max(self.rows)
        reason = None if good else "already"
        if self.with_fine:
            if not self.rows:
                return
            reason = "fine codes"
        elif good and self.with_table:
            reason = "has no row"
        np.save(self.folder / "rows.npy", codes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(boxwood.collection, "_batch_rows", lambda width: 100)
            if reason is not None:
                with pytest.raises(boxwood.InputError, match=f"{reason}|has no row"):
                    self.photos.add_npy(self.folder / "rows.npy", ids=ids)
                return
            assert self.photos.add_npy(self.folder / "rows.npy", ids=ids) == n
        self.remember(ids, codes, None)
        self.next_id += n

    @precondition(lambda self: self.rows and self.mine is None)
    @rule(data=st.data())
    def append_what_is_there(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(sorted(self.rows)))
        codes, fine = self.made(2, 0)
        with pytest.raises(boxwood.InputError, match="already"):
            self.photos.append([self.next_id + 1000, known], codes=codes, fine=fine)

    @precondition(lambda self: self.rows and self.mine is None)
    @rule()
    def append_the_other_kind(self) -> None:
        fine = None if self.with_fine else np.zeros((1, 128), np.uint8)
        with pytest.raises(boxwood.InputError, match=r"or none|has no row"):
            self.photos.append([self.next_id], codes=clustered_codes(1), fine=fine)

    @precondition(lambda self: self.mine is None)
    @rule()
    def compact(self) -> None:
        self.photos.compact()
        info = self.photos.info()
        assert info["segments"] == bool(self.rows)
        assert info["pending"] == info["deleted"] == 0
        assert {path.suffix for path in self.photos.index_path.iterdir()} <= {".segment", ""}

    @rule(mine=st.booleans())
    def refresh(self, mine: bool) -> None:
        """Also beside a transaction, by the other connection."""
        photos = self.photos if mine and self.mine is None else self.theirs
        photos.refresh()
        info = photos.info()
        assert info["pending"] == 0
        assert info["indexed"] == len(self.rows) if self.mine is None else True

    # --- what happens to files and processes

    def closed(self) -> None:
        if self.mine is not None:
            self.end(commit=False)
        self.other.close()
        self.con.close()

    def opened(self, **options: Any) -> None:
        self.con = boxwood.connect(self.database)
        try:
            self.photos = Collection.open(self.con, "photos", **options)
        except BaseException:
            self.other = self.con.cursor()
            raise
        self.second()

    @rule()
    def reopen(self) -> None:
        self.closed()
        self.opened()

    @rule()
    def open_read_only(self) -> None:
        self.closed()
        with boxwood.connect(self.database, read_only=True) as con:
            photos = Collection.open(con, "photos")
            assert len(photos) == photos.count(EVERYTHING) == len(self.rows)
        self.opened()

    @rule()
    def lose_the_index(self) -> None:
        self.closed()
        shutil.rmtree(f"{self.database}.boxwood")
        with pytest.raises(boxwood.IndexMissing, match="boxwood repair"):
            self.opened()
        self.closed()
        self.opened(repair=True)

    @rule()
    def lose_the_index_while_it_is_open(self) -> None:
        if self.mine is not None:
            self.end(commit=True)
        shutil.rmtree(self.photos.index_path)
        with pytest.raises(boxwood.IndexMissing, match="boxwood repair"):
            self.photos.count(EVERYTHING)
        with pytest.raises(duckdb.Error, match="repair"):
            self.con.execute("FROM search_model('photos', ?)", [EVERYTHING.to_json()])
        self.photos.repair()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def damage_the_index(self, data: st.DataObject) -> None:
        self.closed()
        files = sorted(Path(self.photos.index_path).iterdir())
        file = data.draw(st.sampled_from(files))
        # Only listed files matter: others are left from the generation before.
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(content)
        try:
            self.opened()
        except boxwood.IndexProblem:
            self.closed()
            self.opened(repair=True)
        else:
            # A bit in the zeros between sections, or in a file that is not listed.
            self.photos.repair()

    @precondition(lambda self: self.older is None)
    @rule()
    def keep_the_index(self) -> None:
        shutil.copytree(self.photos.index_path, self.folder / "older")
        self.older = dict(self.rows)

    @precondition(lambda self: self.older is not None)
    @rule()
    def put_the_kept_index_back(self) -> None:
        """It is as a crash between commit and index leaves it, or older than what is known of
        deletions, or even newer than the rows."""
        self.closed()
        shutil.rmtree(self.photos.index_path)
        (self.folder / "older").rename(self.photos.index_path)
        self.older = None
        self.opened()

    @precondition(lambda self: self.kept is None)
    @rule()
    def keep_the_database(self) -> None:
        self.closed()
        shutil.copy(self.database, self.folder / "kept.duckdb")
        self.kept = dict(self.rows)
        self.opened()

    @precondition(lambda self: self.kept is not None)
    @rule()
    def put_the_kept_database_back(self) -> None:
        """The index is then ahead of the rows."""
        self.closed()
        (self.folder / "kept.duckdb").rename(self.database)
        assert self.kept is not None
        self.rows, self.kept = self.kept, None
        self.opened()

    # --- what it answers

    def ask(
        self, con: duckdb.DuckDBPyConnection, query: str, parameters: Any = None
    ) -> duckdb.DuckDBPyConnection:
        """The first rows of a collection decide whether it has fine codes. Connections that were
        told of it before, or by a transaction that was rolled back, have to be told again."""
        try:
            return con.execute(query, parameters)
        except duckdb.Error as error:
            if "boxwood.load(con)" not in str(error):
                raise
            self.told += 1
            assert self.told < 10
            return boxwood.load(con).execute(query, parameters)

    def connections(
        self,
    ) -> list[tuple[duckdb.DuckDBPyConnection, Collection | None, dict[int, NDArray[np.uint8]]]]:
        """Each connection, its collection, and what they see. In a transaction in which nothing
        was changed through the collection, that sees what is committed."""
        mine = self.photos if self.mine is None or self.joined else None
        return [(self.con, mine, self.seen), (self.other, self.theirs, self.rows)]

    @invariant()
    def everybody_sees_the_rows(self) -> None:
        for con, photos, rows in self.connections():
            ids, _, _ = self.table_of(rows)
            found = self.ask(
                con, "SELECT id FROM search_model('photos', ?) ORDER BY id", [EVERYTHING.to_json()]
            ).fetchnumpy()["id"]
            assert np.array_equal(found, ids)
            if photos is not None:
                assert len(photos) == photos.count(EVERYTHING) == len(rows)
                assert np.array_equal(np.sort(photos.search(EVERYTHING).ids), ids)

    @precondition(lambda self: self.mine is None)
    @rule()
    def verifies(self) -> None:
        self.photos.verify()
        assert self.photos.info()["state"] in ("current", "behind")
        self.photos.refresh()
        self.photos.verify()
        assert self.photos.info()["state"] == "current"
        index = native.Index(self.photos.index_path)
        ids, codes, fine = self.table_of(self.rows)
        assert np.array_equal(np.sort(index.ids()), ids)
        assert np.array_equal(index.codes(ids), codes)
        if fine is not None and len(ids):
            assert np.array_equal(index.fine(ids), fine)

    @rule(data=st.data(), k=st.integers(1, 100), seed=st.integers(0, 2**32))
    def knn(self, data: st.DataObject, k: int, seed: int) -> None:
        for con, photos, rows in self.connections():
            ids, codes, _ = self.table_of(rows)
            query = clustered_codes(1, seed)[0]
            if len(ids) and data.draw(st.booleans()):
                query = codes[data.draw(st.integers(0, len(ids) - 1))]
            distance = ((codes.astype(np.int64) - query.astype(np.int64)) ** 2).sum(axis=1)
            order = np.lexsort((ids, distance))[:k]
            expected = list(zip(ids[order].tolist(), np.sqrt(distance[order]), strict=True))
            found = self.ask(
                con,
                "FROM search_code('photos', ?, k := ?) ORDER BY distance, id",
                [query.tolist(), k],
            ).fetchall()
            assert found == expected
            if photos is not None:
                hits = photos.knn(query, k=k).to_pylist()
                assert [tuple(hit.values()) for hit in hits] == expected

    @rule(data=st.data())
    def search(self, data: st.DataObject) -> None:
        for con, photos, rows in self.connections():
            ids, codes, _ = self.table_of(rows)
            model = data.draw(models(codes))
            match = model.matches(codes)
            order = np.lexsort((ids[match], -model.scores(codes[match])))
            expected = ids[match][order].tolist()
            found = self.ask(
                con, "FROM search_model('photos', ?) ORDER BY score DESC, id", [model.to_json()]
            ).fetchnumpy()
            assert found["id"].tolist() == expected
            assert np.array_equal(found["votes"], model.votes(codes[match])[order])
            count = "SELECT count FROM count_model('photos', ?)"
            assert self.ask(con, count, [model.to_json()]).fetchall() == [(match.sum(),)]
            if photos is not None:
                ranked = photos.search(model).table()
                assert ranked["id"].to_pylist() == expected
                assert np.array_equal(ranked["votes"].to_numpy(), found["votes"])
                assert np.array_equal(ranked["score"].to_numpy(), found["score"])
                assert photos.count(model) == match.sum()

    @precondition(lambda self: min(len(self.rows), len(self.seen)) > 10)
    @rule(data=st.data(), learner=st.sampled_from(["cover", "branch", "ensemble"]))
    def refine(self, data: st.DataObject, learner: Any) -> None:
        for con, photos, rows in self.connections():
            ids, codes, _ = self.table_of(rows)
            some = data.draw(
                st.lists(st.sampled_from(ids.tolist()), min_size=2, max_size=10, unique=True)
            )
            cut = data.draw(st.integers(1, len(some)))
            options = {"learner": learner, "random_negatives": 50, "estimators": 5}
            [(model,)] = self.ask(
                con,
                "SELECT model FROM train_model('photos', positives := ?, negatives := ?, "
                "learner := ?, random_negatives := 50, estimators := 5)",
                [some[:cut], some[cut:], learner],
            ).fetchall()
            match = Model.from_json(model).matches(codes)
            found = self.ask(
                con,
                "SELECT id FROM refine('photos', positives := ?, negatives := ?, learner := ?, "
                "random_negatives := 50, estimators := 5) ORDER BY id",
                [some[:cut], some[cut:], learner],
            ).fetchnumpy()["id"]
            assert np.array_equal(found, ids[match])
            if photos is not None:
                refined = photos.refine(some[:cut], some[cut:], **options)
                match = refined.model.matches(codes)
                assert np.array_equal(np.sort(refined.ids), ids[match])


StoreMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("BOXWOOD_MACHINES", "14")), stateful_step_count=14
)
TestStore = StoreMachine.TestCase


# --- random models against DuckDB alone -----------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    con = boxwood.connect(tmp_path_factory.mktemp("large") / "large.duckdb", config={"threads": 2})
    photos = Collection.create(con, "photos")
    rng = np.random.default_rng(5)
    ids = rng.permutation(60_000)[:20_000]
    codes = clustered_codes(20_000, 5)
    for part in (slice(0, 12_000), slice(12_000, 15_000), slice(15_000, 20_000)):
        photos.append(ids[part], codes=codes[part])
    yield con, photos
    con.close()


@settings(max_examples=300)
@given(models())
def test_every_way_to_search_gives_what_duckdb_gives(large: Any, model: Model) -> None:
    con: duckdb.DuckDBPyConnection
    con, photos = large
    where = f"SELECT id FROM boxwood.photos_codes WHERE {model.to_sql()} ORDER BY id"
    expected = con.execute(where).fetchnumpy()["id"]
    found = photos.search(model)
    assert np.array_equal(np.sort(found.ids), expected)
    assert photos.count(model) == len(expected)
    at = [str(photos.index_path), model.to_json()]
    rows = con.execute("FROM boxwood_search(?, model := ?) ORDER BY id", at).fetchnumpy()
    assert np.array_equal(rows["id"], expected)
    order = np.argsort(found.ids)
    table = found.table().sort_by("id")
    assert np.array_equal(rows["score"], table["score"].to_numpy())
    assert np.array_equal(rows["votes"], table["votes"].to_numpy())
    assert np.array_equal(found.ids[order], expected)
    count = con.execute("SELECT count FROM boxwood_count(?, model := ?)", at).fetchall()
    assert count == [(len(expected),)]
