"""The whole store against a dict: whatever happens to it, it answers as NumPy does."""

from __future__ import annotations

import json
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


class StoreMachine(RuleBasedStateMachine):
    """Rules change or damage the store; invariants compare it with `rows`, id -> code and, behind
    it, the fine code in machines that keep such."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="boxwood-test-"))
        self.database = self.folder / "photos.duckdb"
        self.rows: dict[int, NDArray[np.uint8]] = {}
        self.kept: dict[int, NDArray[np.uint8]] | None = None  # rows of the database that is kept
        self.next_id = 0

    @initialize(fine=st.booleans(), told=st.booleans())
    def create(self, fine: bool, told: bool) -> None:
        self.with_fine = fine
        self.con = boxwood.connect(self.database)
        self.photos = Collection.create(self.con, "photos", fine=fine if told else None)

    def teardown(self) -> None:
        self.con.close()
        shutil.rmtree(self.folder)

    def numpy(self) -> tuple[Ids, NDArray[np.uint8]]:
        ids = np.array(sorted(self.rows), np.int64)
        return ids, self.values(ids)[:, :32]

    def values(self, ids: Ids) -> NDArray[np.uint8]:
        """Codes and fine codes behind them, (n, 160); or codes alone."""
        width = 160 if self.with_fine else 32
        return np.array([self.rows[i] for i in ids.tolist()], np.uint8).reshape(-1, width)

    def made(self, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        fine = np.random.default_rng(seed).integers(0, 256, (n, 128), np.uint8)
        return clustered_codes(n, seed), fine if self.with_fine else None

    def remember(self, ids: Ids, codes: NDArray[np.uint8], fine: NDArray[np.uint8] | None) -> None:
        values = codes if fine is None else np.concatenate([codes, fine], axis=1)
        self.rows.update(zip(ids.tolist(), values, strict=True))

    def open(self, **options: Any) -> None:
        self.photos = Collection.open(self.con, "photos", **options)

    # --- changes

    @rule(n=st.integers(1, 700), seed=st.integers(0, 2**32), gap=st.integers(0, 50))
    def append(self, n: int, seed: int, gap: int) -> None:
        ids = self.next_id + gap + np.random.default_rng(seed).permutation(n)
        codes, fine = self.made(n, seed)
        assert self.photos.append(ids, codes=codes, fine=fine) == n
        self.remember(ids, codes, fine)
        self.next_id += gap + n

    @rule(n=st.integers(1, 700), seed=st.integers(0, 2**32), good=st.booleans())
    def load(self, n: int, seed: int, good: bool) -> None:
        """A file's rows come all or, where the last id is taken, none; and none where all rows
        have fine codes, which such a file has not."""
        ids, codes = self.next_id + np.arange(n), clustered_codes(n, seed)
        if not good and self.rows:
            ids[-1] = max(self.rows)
        if self.with_fine:
            if self.rows:
                np.save(self.folder / "rows.npy", codes)
                with pytest.raises(boxwood.InputError, match="fine codes"):
                    self.photos.add_npy(self.folder / "rows.npy", ids=ids)
            return
        np.save(self.folder / "rows.npy", codes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(boxwood.collection, "_batch_rows", lambda width: 100)
            if not good and self.rows:
                with pytest.raises(boxwood.InputError, match="already"):
                    self.photos.add_npy(self.folder / "rows.npy", ids=ids)
                return
            assert self.photos.add_npy(self.folder / "rows.npy", ids=ids) == n
        self.rows.update(zip(ids.tolist(), codes, strict=True))
        self.next_id += n

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def append_what_is_there(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(sorted(self.rows)))
        codes, fine = self.made(2, 0)
        with pytest.raises(boxwood.InputError, match="already"):
            self.photos.append([self.next_id + 1000, known], codes=codes, fine=fine)

    @precondition(lambda self: self.rows)
    @rule()
    def append_the_other_kind(self) -> None:
        fine = None if self.with_fine else np.zeros((1, 128), np.uint8)
        with pytest.raises(boxwood.InputError, match="or none"):
            self.photos.append([self.next_id], codes=clustered_codes(1), fine=fine)

    @rule()
    def compact(self) -> None:
        self.photos.compact()
        assert self.photos.info()["segments"] == bool(self.rows)

    @rule()
    def refresh(self) -> None:
        self.photos.refresh()

    # --- what happens to files and processes

    def closed(self) -> None:
        self.con.close()

    def opened(self) -> None:
        self.con = boxwood.connect(self.database)

    @rule()
    def reopen(self) -> None:
        self.closed()
        self.opened()
        self.open()

    @rule()
    def open_read_only(self) -> None:
        self.closed()
        with boxwood.connect(self.database, read_only=True) as con:
            assert len(Collection.open(con, "photos")) == len(self.rows)
        self.opened()
        self.open()

    @rule()
    def lose_the_index(self) -> None:
        self.closed()
        shutil.rmtree(f"{self.database}.boxwood")
        self.opened()
        with pytest.raises(boxwood.IndexMissing, match="boxwood repair"):
            self.open()
        self.open(repair=True)

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
        self.opened()
        try:
            self.open()
        except boxwood.IndexProblem:
            self.open(repair=True)
        else:
            # A bit in the zeros between sections, or in a file that is not listed.
            self.photos.repair()

    @rule(n=st.integers(1, 300), seed=st.integers(0, 2**32))
    def die_between_commit_and_index(self, n: int, seed: int) -> None:
        before = self.folder / "before"
        shutil.copytree(self.photos.index_path, before)
        self.append(n, seed, 0)
        self.closed()
        shutil.rmtree(self.photos.index_path)
        before.rename(self.photos.index_path)
        with (
            boxwood.connect(self.database, read_only=True) as con,
            pytest.raises(boxwood.IndexStale, match="read_only"),
        ):
            Collection.open(con, "photos")
        self.opened()
        with pytest.raises(duckdb.Error, match="repair"):
            self.con.execute("SELECT * FROM collection_info('photos')")
        self.open()

    @precondition(lambda self: self.kept is None)
    @rule()
    def keep_the_database(self) -> None:
        self.closed()
        shutil.copy(self.database, self.folder / "kept.duckdb")
        self.kept = dict(self.rows)
        self.opened()
        self.open()

    @precondition(lambda self: self.kept is not None)
    @rule()
    def put_the_kept_database_back(self) -> None:
        """The index is then ahead of the rows."""
        self.closed()
        (self.folder / "kept.duckdb").rename(self.database)
        assert self.kept is not None
        self.rows, self.kept = self.kept, None
        self.opened()
        self.open()

    # --- what it answers

    @invariant()
    def sql_sees_the_rows(self) -> None:
        [(rows,)] = self.con.execute("SELECT sum(rows) FROM collection_info('photos')").fetchall()
        assert (rows or 0) == len(self.rows)

    @invariant()
    def holds_the_rows(self) -> None:
        assert len(self.photos) == len(self.rows)
        ids, codes = native.Index(self.photos.index_path).rows()
        order = np.argsort(ids)
        expected_ids, expected_codes = self.numpy()
        assert np.array_equal(ids[order], expected_ids)
        assert np.array_equal(codes[order], expected_codes)

    @invariant()
    def keeps_fine_codes_everywhere_or_nowhere(self) -> None:
        columns = [row[0] for row in self.con.execute("DESCRIBE boxwood.photos_codes").fetchall()]
        index = native.Index(self.photos.index_path)
        expected = self.with_fine and bool(self.rows)
        assert ("fine" in columns[-1:]) == expected == bool(index.info.fingerprints.fine)
        if expected:
            ids, _ = self.numpy()
            fine = self.values(ids)[:, 32:]
            assert np.array_equal(index.fine(ids), fine)
            query = "SELECT fine FROM boxwood.photos_codes ORDER BY id"
            stored = self.con.sql(query).to_arrow_table()["fine"].combine_chunks()
            assert np.array_equal(stored.flatten().to_numpy().reshape(-1, 128), fine)

    @rule()
    def verifies(self) -> None:
        self.photos.verify()
        assert self.photos.info()["state"] == "current"

    @rule(data=st.data(), k=st.integers(1, 100), seed=st.integers(0, 2**32))
    def knn(self, data: st.DataObject, k: int, seed: int) -> None:
        ids, codes = self.numpy()
        query = clustered_codes(1, seed)[0]
        if len(ids) and data.draw(st.booleans()):
            query = codes[data.draw(st.integers(0, len(ids) - 1))]
        distance = ((codes.astype(np.int64) - query.astype(np.int64)) ** 2).sum(axis=1)
        order = np.lexsort((ids, distance))[:k]
        hits = self.photos.knn(query, k=k)
        assert hits["id"].to_pylist() == ids[order].tolist()
        assert hits["distance"].to_pylist() == np.sqrt(distance[order]).tolist()

    @rule(data=st.data())
    def search(self, data: st.DataObject) -> None:
        ids, codes = self.numpy()
        model = data.draw(models(codes))
        match = model.matches(codes)
        found = self.photos.search(model)
        assert np.array_equal(np.sort(found.ids), ids[match])
        assert self.photos.count(model) == match.sum()
        ranked = found.table()
        order = np.lexsort((ids[match], -model.scores(codes[match])))
        assert np.array_equal(ranked["id"].to_numpy(), ids[match][order])
        assert np.array_equal(ranked["votes"].to_numpy(), model.votes(codes[match])[order])
        where = f"SELECT id FROM boxwood.photos_codes WHERE {model.to_sql()} ORDER BY id"
        assert [i for (i,) in self.con.execute(where).fetchall()] == ids[match].tolist()

    @precondition(lambda self: len(self.rows) > 10)
    @rule(data=st.data(), learner=st.sampled_from(["cover", "branch", "ensemble"]))
    def refine(self, data: st.DataObject, learner: Any) -> None:
        ids, codes = self.numpy()
        some = data.draw(
            st.lists(st.sampled_from(ids.tolist()), min_size=2, max_size=10, unique=True)
        )
        cut = data.draw(st.integers(1, len(some)))
        found = self.photos.refine(
            some[:cut], some[cut:], learner=learner, random_negatives=50, estimators=5
        )
        assert np.array_equal(np.sort(found.ids), ids[found.model.matches(codes)])
        assert self.con.execute(found.sql).fetchall() == [
            tuple(row.values()) for row in found.table().to_pylist()
        ]

    @rule(data=st.data())
    def range(self, data: st.DataObject) -> None:
        ids, codes = self.numpy()
        dims = data.draw(st.lists(st.integers(0, 31), min_size=1, max_size=4, unique=True))
        bounds = [sorted((data.draw(st.integers(0, 255)), data.draw(st.integers(0, 255))))
                  for _ in dims]  # fmt: skip
        inside = np.ones(len(ids), bool)
        for dim, (lo, hi) in zip(dims, bounds, strict=True):
            inside &= (codes[:, dim] >= lo) & (codes[:, dim] <= hi)
        rows = self.con.execute(
            "SELECT id FROM boxwood_range(?, dims := ?, lo := ?, hi := ?) ORDER BY id",
            [str(self.photos.index_path), dims, [b[0] for b in bounds], [b[1] for b in bounds]],
        ).fetchall()
        assert [i for (i,) in rows] == ids[inside].tolist()


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=14)
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
