"""The C core through native.py, against NumPy."""

from __future__ import annotations

import json
import signal
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from boxwood import errors, native
from conftest import clustered_codes

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
PRINTS = native.Fingerprints("encoder", "head", "quantizer", "fine")
PLAIN = PRINTS._replace(fine="")


def write(
    folder: Path, parts: list[tuple[NDArray[np.int64], NDArray[np.uint8]]], generation: int = 1
) -> native.Index:
    names = []
    for number, (ids, codes) in enumerate(parts):
        names.append(f"{number}.segment")
        native.write_segment(
            folder, names[-1], ids, codes, UUID, generation, PRINTS, fine=fine_codes(ids)
        )
    native.write_manifest(folder, UUID, generation, names, PRINTS)
    return native.Index(folder)


def fine_codes(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Fine codes (n, 128) that depend on the ids alone."""
    return ((ids[:, None] * 2654435761 >> np.arange(128) % 24) % 251).astype(np.uint8)


def rows(n: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return rng.permutation(n * 5)[:n].astype(np.int64), clustered_codes(n, seed)


@st.composite
def models(draw: st.DrawFn) -> native.Model:
    """Models with boxes that hold some of the clustered codes, with and without scores."""

    def box() -> list[list[int]]:
        dims = draw(st.lists(st.integers(0, 31), max_size=4, unique=True))
        ranges = []
        for dim in sorted(dims):
            lo, hi = sorted((draw(st.integers(0, 255)), draw(st.integers(0, 255))))
            ranges.append([dim, lo, max(lo, min(255, hi + 40))])
        return ranges

    estimators = [
        [box() for _ in range(draw(st.integers(0, 3)))] for _ in range(draw(st.integers(1, 6)))
    ]
    document: dict[str, Any] = {
        "boxwood_model": 1, "learner": "test", "dims": 32, "quantizer": "",
        "estimators": estimators, "threshold": draw(st.integers(0, len(estimators))),
    }  # fmt: skip
    if draw(st.booleans()):
        small = st.integers(-1000, 1000)
        terms = [
            {
                "linear": draw(st.lists(small, min_size=32, max_size=32)),
                "square": draw(st.lists(st.integers(-3, 3), min_size=32, max_size=32)),
                "constant": draw(small),
            }
            for _ in range(draw(st.integers(1, 3)))
        ]
        document["score"] = {
            "terms": terms, "votes": draw(st.integers(-(2**21), 2**21)), "shift": 4,
            "threshold": draw(st.none() | st.integers(-(10**6), 10**6)),
        }  # fmt: skip
    return native.Model.from_json(json.dumps(document))


def brute(model: native.Model, codes: NDArray[np.uint8]) -> Any:
    """Votes, scores and matches by NumPy, from the document alone."""
    document = json.loads(model.to_json())
    x = codes.astype(np.int64)
    votes = np.zeros(len(x), np.int32)
    for estimator in document["estimators"]:
        inside = np.zeros(len(x), bool)
        for box in estimator:
            part = np.ones(len(x), bool)
            for dim, lo, hi in box:
                part &= (x[:, dim] >= lo) & (x[:, dim] <= hi)
            inside |= part
        votes += inside
    match = votes >= document["threshold"]
    score = document.get("score")
    if score is None:
        return votes, votes.astype(np.int64), match
    values = [
        ((np.array(term["linear"]) + np.array(term["square"]) * x) * x).sum(1) + term["constant"]
        for term in score["terms"]
    ]
    scores = votes.astype(np.int64) * score["votes"] + np.max(values, axis=0)
    if score["threshold"] is not None:
        match &= scores >= score["threshold"]
    return votes, scores, match


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> native.Index:
    ids, codes = rows(9000)
    cuts = [(0, 5000), (5000, 5001), (5001, 9000)]
    return write(tmp_path_factory.mktemp("index"), [(ids[a:b], codes[a:b]) for a, b in cuts])


def test_info(index: native.Index) -> None:
    assert (len(index), index.info.segments, index.info.uuid) == (9000, 3, UUID)
    assert index.info.fingerprints == PRINTS
    assert [segment.rows for segment in index.segments()] == [5000, 1, 3999]
    assert sum(segment.bytes for segment in index.segments()) == index.info.bytes
    index.validate()


def test_rows_are_those_that_were_written(index: native.Index) -> None:
    ids, codes = rows(9000)
    got_ids, got_codes = index.rows()
    order = np.argsort(ids)
    got = np.argsort(got_ids)
    assert np.array_equal(ids[order], got_ids[got])
    assert np.array_equal(codes[order], got_codes[got])
    assert np.array_equal(index.rows(4990, 20)[0], got_ids[4990:5010])
    assert np.array_equal(index.ids(), got_ids)
    assert np.array_equal(index.codes(ids), codes)


def test_fine_codes_are_those_that_were_written(index: native.Index, tmp_path: Path) -> None:
    ids, codes = index.rows()
    assert np.array_equal(index.fine(ids[::-7]), fine_codes(ids[::-7]))
    assert index.fine([]).shape == (0, 128)
    got = np.empty(300, np.int64), np.empty((300, 32), np.uint8), np.empty((300, 128), np.uint8)
    index.read(4900, *got)
    for one, expected in zip(got, (ids, codes, fine_codes(ids)), strict=True):
        assert np.array_equal(one, expected[4900:5200])
    with pytest.raises(errors.InputError, match="is not in the index"):
        index.fine([2**62])

    def write(fine: Any, prints: native.Fingerprints) -> None:
        native.write_segment(tmp_path, "0.segment", ids[:9], codes[:9], UUID, 1, prints, fine=fine)

    for fine, prints, message in (
        (fine_codes(ids[:8]), PRINTS, "9 ids cannot go with 8 fine codes"),
        (codes[:9], PRINTS, r"fine codes must have the shape \(rows, 128\)"),
        (fine_codes(ids[:9]).astype("f4"), PRINTS, "fine codes must be uint8"),
        (fine_codes(ids[:9]), PLAIN, "together or not at all"),
        (None, PRINTS, "together or not at all"),
        (fine_codes(ids[:9]), PRINTS._replace(fine="f" * 32), "longer than 31 bytes"),
    ):
        with pytest.raises(errors.InputError, match=message):
            write(fine, prints)
    write(None, PLAIN)
    with pytest.raises(errors.IndexMismatch, match="fingerprints"):
        native.write_manifest(tmp_path, UUID, 1, ["0.segment"], PRINTS)
    native.write_manifest(tmp_path, UUID, 1, ["0.segment"], PLAIN)
    with native.Index(tmp_path) as without:
        with pytest.raises(errors.InputError, match="has no fine codes"):
            without.fine(ids[:1])
        with pytest.raises(errors.InputError, match="has no fine codes"):
            without.read(0, *(part[:9] for part in got))


def test_lookup(index: native.Index) -> None:
    ids, codes = rows(9000)
    absent = np.setdiff1d(np.arange(50_000), ids)[:10]
    found_codes, found = index.lookup(np.concatenate([absent, ids[:10]]))
    assert found.tolist() == [False] * 10 + [True] * 10
    assert np.array_equal(found_codes[10:], codes[:10])
    assert not found_codes[:10].any()
    with pytest.raises(errors.InputError, match=str(absent[0])):
        index.codes(absent[:1])


# --- dead rows ------------------------------------------------------------------------------------


def dead_index(folder: Path) -> tuple[native.Index, NDArray[np.int64]]:
    """Two segments with deletion vectors and a third without, and the dead ids."""
    ids, codes = rows(6000, 3)
    parts = [(ids[s], codes[s]) for s in (slice(0, 3000), slice(3000, 5000), slice(5000, 6000))]
    write(folder, parts).close()
    dead = [ids[:3000:7], ids[3500:4500]]
    for number, gone in enumerate(dead):
        native.write_deleted(folder, f"{number}.deleted", f"{number}.segment", gone)
    names = [f"{number}.segment" for number in range(3)]
    vectors = ["0.deleted", "1.deleted", None]
    native.write_manifest(folder, UUID, 2, names, PRINTS, deleted=vectors)
    return native.Index(folder), np.concatenate(dead)


def rebuilt(folder: Path, index: native.Index) -> native.Index:
    """An index built anew of the live rows."""
    ids, codes = index.rows()
    folder.mkdir()
    return write(folder, [(ids[ids >= 0], codes[ids >= 0])])


def test_dead_rows(tmp_path: Path) -> None:
    index, dead = dead_index(tmp_path)
    assert (len(index), index.info.rows, index.info.deleted) == (6000 - len(dead),) * 2 + (
        len(dead),
    )
    assert [(s.rows, s.deleted) for s in index.segments()] == [(3000, 429), (2000, 1000), (1000, 0)]
    index.validate()
    ids, codes = index.rows()
    assert len(ids) == 6000
    assert np.count_nonzero(ids == -1) == len(dead)
    live = ids[ids >= 0]
    assert np.array_equal(index.ids(), live)
    assert not np.isin(dead, live).any()
    assert not index.lookup(dead)[1].any()
    assert np.array_equal(index.codes(live), codes[ids >= 0])
    with pytest.raises(errors.InputError, match=f"id {dead[0]} is not in the index"):
        index.fine(dead[:1])
    got = np.empty(3000, np.int64), np.empty((3000, 32), np.uint8), np.empty((3000, 128), np.uint8)
    index.read(0, *got)
    assert np.array_equal(got[0], ids[:3000])
    alive = got[0] >= 0
    assert np.array_equal(got[2][alive], fine_codes(got[0][alive]))
    anew = rebuilt(tmp_path / "anew", index)
    for n, excluded in ((50, ids[ids >= 0][::5]), (6000, dead)):
        drawn = index.draw(n, 4, excluded)
        assert np.array_equal(drawn, anew.draw(n, 4, excluded))
    within, _ = anew.train(live[:9], learner="ensemble")
    for options in ({}, {"within": within}, {"ids": ids[ids >= 0][::3]}, {"ids": dead}):
        found, expected = (one.knn(codes[:5], 40, **options) for one in (index, anew))
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one, other)
    near, _ = index.knn(codes[:5], 3000, recall=0.5)
    assert near.shape == (5, 3000)
    assert not np.isin(near, dead).any()
    assert sorted(index.search(within).ids) == sorted(anew.search(within).ids)
    assert index.count(within) == anew.count(within)
    assert index.explain(within)[1]["rows"] == anew.count(within)


@given(models(), st.integers(0, 3))
def test_search_of_live_rows_equals_numpy(
    with_dead: native.Index, model: native.Model, threads: int
) -> None:
    ids, codes = with_dead.rows()
    ids, codes = ids[ids >= 0], codes[ids >= 0]
    votes, scores, match = brute(model, codes)
    found = with_dead.search(model, threads=threads)
    assert np.array_equal(found.ids, ids[match])
    assert np.array_equal(found.votes, votes[match])
    assert np.array_equal(found.scores, scores[match])
    assert with_dead.count(model, threads=threads) == match.sum()


@pytest.fixture(scope="module")
def with_dead(tmp_path_factory: pytest.TempPathFactory) -> native.Index:
    index, _ = dead_index(tmp_path_factory.mktemp("dead"))
    return index.without(index.ids()[-700::2])


def test_without(tmp_path: Path) -> None:
    index, dead = dead_index(tmp_path)
    live = index.ids()
    gone = np.concatenate([live[:300], dead[:5], [2**62]])
    view = index.without(gone)
    assert (len(view), view.info.deleted) == (len(live) - 300, len(dead) + 300)
    assert len(index) == len(live)
    assert np.array_equal(view.ids(), live[300:])
    again = view.without(live[300:301])
    view.close()
    index.close()
    assert np.array_equal(again.ids(), live[301:])
    assert again.info.fingerprints == PRINTS
    assert len(again.without([])) == len(again)
    again.validate()
    assert [part.deletions for part in again.segments()] == ["", "1.deleted", ""]
    again.write_deleted(0, tmp_path, "2.deleted")
    vectors = ["2.deleted", "1.deleted", None]
    names = [part.name for part in again.segments()]
    native.write_manifest(tmp_path, UUID, 3, names, PRINTS, deleted=vectors)
    with native.Index(tmp_path) as written:
        assert np.array_equal(written.ids(), live[301:])
        assert written.info.checksum == int.from_bytes(
            (tmp_path / "MANIFEST").read_bytes()[-4:], "little"
        )
    nothing = again.without(live)
    assert (len(nothing), nothing.knn(np.zeros((2, 32), np.uint8), 5)[0].shape) == (0, (2, 0))
    with pytest.raises(errors.InputError, match="closed"):
        view.without([1])
    with pytest.raises(errors.InputError, match="must be 0 or more"):
        again.without([-1])


def test_given_rows_are_labels(tmp_path: Path) -> None:
    index, _ = dead_index(tmp_path)
    live = index.ids()
    right, wrong = live[:8], live[8:12]
    labels = np.concatenate([right, wrong])
    codes, fine = index.codes(labels), index.fine(labels)
    without = index.without(labels)
    for options in ({"learner": "branch"}, {"learner": "ensemble", "estimators": 5}):
        model, _ = index.train(right, wrong, **options)
        with pytest.raises(errors.InputError, match="is not in the index"):
            without.train(right, wrong, **options)
        same, _ = without.train(right, wrong, given=(labels[::-1], codes[::-1], None), **options)
        assert same.to_json() == model.to_json()
        other, _ = index.train(right, wrong, given=(labels, codes ^ 85, None), **options)
        assert other.to_json() != model.to_json()
    model, _ = without.train(right, wrong, given=(labels, codes, fine), rerank=True)
    assert model.evaluate(codes, fine)[2][:8].all()
    for given_rows, message in (
        ((labels, codes[1:], None), "as many codes"),
        ((labels, codes, fine[1:]), "as many codes"),
        ((labels[[0, 0]], codes[:2], None), "is given twice"),
    ):
        with pytest.raises(errors.InputError, match=message):
            without.train(right, wrong, given=given_rows)
    with pytest.raises(errors.InputError, match="with rerank fine codes"):
        without.train(right, wrong, given=(labels, codes, None), rerank=True)


def test_deletion_vectors_are_checked(tmp_path: Path) -> None:
    index, dead = dead_index(tmp_path)
    names, live = [f"{number}.segment" for number in range(3)], index.ids()
    with pytest.raises(errors.InputError, match=r"is not in segment 2\.segment"):
        native.write_deleted(tmp_path, "x.deleted", "2.segment", dead[:1])
    with pytest.raises(errors.InputError, match="at least one id"):
        native.write_deleted(tmp_path, "x.deleted", "2.segment", [])
    with pytest.raises(errors.InputError, match="cannot go with 1 deletion vectors"):
        native.write_manifest(tmp_path, UUID, 3, names, PRINTS, deleted=["0.deleted"])
    with pytest.raises(errors.IndexMismatch, match="another segment"):
        native.write_manifest(tmp_path, UUID, 3, names, PRINTS, deleted=[None, None, "0.deleted"])
    file = tmp_path / "0.deleted"
    data = bytearray(file.read_bytes())
    data[130] ^= 4
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(errors.IndexCorrupt, match=r"deletion vector 0\.deleted.*boxwood repair"):
        native.Index(tmp_path)
    file.unlink()
    with pytest.raises(errors.IndexCorrupt, match="deletion vector that is gone"):
        native.Index(tmp_path)
    assert np.array_equal(index.ids(), live)  # what is open stays


@given(models(), st.integers(0, 3))
def test_search_equals_numpy(index: native.Index, model: native.Model, threads: int) -> None:
    ids, codes = index.rows()
    votes, scores, match = brute(model, codes)
    evaluated = model.evaluate(codes)
    assert np.array_equal(evaluated[0], votes)
    assert np.array_equal(evaluated[1], scores)
    assert np.array_equal(evaluated[2], match)
    found = index.search(model, threads=threads)
    assert np.array_equal(found.ids, ids[match])
    assert np.array_equal(found.votes, votes[match])
    assert np.array_equal(found.scores, scores[match])
    assert index.count(model, threads=threads) == match.sum() == found.stats.rows
    stats = found.stats
    assert stats.blocks == sum(s.blocks for s in index.segments())


@given(models())
def test_model_documents_round_trip(model: native.Model) -> None:
    document = model.to_json()
    assert native.Model.from_json(document).to_json() == document
    ranges = model.ranges()
    flat = [
        (e, b, *r)
        for e, boxes in enumerate(json.loads(document)["estimators"])
        for b, box in enumerate(boxes)
        for r in box
    ]
    assert [tuple(r) for r in ranges.tolist()] == flat
    assert model.info.ranges == len(flat)


@given(st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 3))
def test_knn_equals_numpy(index: native.Index, k: int, seed: int, queries: int) -> None:
    ids, codes = index.rows()
    rng = np.random.default_rng(seed)
    query = rng.integers(0, 256, (queries, 32)).astype(np.uint8)
    query[0] = codes[rng.integers(len(codes))]
    got_ids, got = index.knn(query, k)
    for i in range(queries):
        distance = ((codes.astype(np.int64) - query[i].astype(np.int64)) ** 2).sum(axis=1)
        order = np.lexsort((ids, distance))[:k]
        assert np.array_equal(got_ids[i], ids[order])
        assert np.array_equal(got[i], distance[order])


@given(
    st.integers(1, 300), st.integers(0, 2**32), st.sampled_from([0.0, 0.001, 0.1, 1.0]), models()
)
def test_knn_within_equals_numpy(
    index: native.Index, k: int, seed: int, share: float, model: native.Model
) -> None:
    ids, codes = index.rows()
    rng = np.random.default_rng(seed)
    query = codes[rng.integers(len(codes))][None]
    listed = rng.permutation(np.append(ids[rng.random(len(ids)) < share], [2**62]))
    matches = model.evaluate(codes)[2]
    distance = ((codes.astype(np.int64) - query.astype(np.int64)) ** 2).sum(axis=1)
    order = np.lexsort((ids, distance))
    for within, among in ((model, None), (None, listed), (model, listed)):
        passes = np.ones(len(ids), bool) if within is None else matches.copy()
        if among is not None:
            passes &= np.isin(ids, among)
        wanted = order[passes[order]][:k]
        got_ids, got = index.knn(
            query, k, recall=0.8, within=within, ids=among, threads=1 + seed % 2
        )
        assert np.array_equal(got_ids[0], ids[wanted])
        assert np.array_equal(got[0], distance[wanted])


def test_recall_of_knn(index: native.Index) -> None:
    queries = clustered_codes(400)  # other rows of the same clusters
    for k in (1, 10, 60):
        _, true = index.knn(queries, k)
        for recall in (0.5, 0.8, 0.95, 0.99):
            ids, found = index.knn(queries, k, recall=recall)
            assert ids.shape == (400, k)
            assert (found <= true[:, -1:]).mean() >= recall - (0.05 if k == 1 else 0.02)
            alone = [index.knn(query[None], k, recall=recall, threads=1)[0][0] for query in queries]
            assert np.array_equal(ids, alone)


def test_knn_with_more_than_there_is(tmp_path: Path) -> None:
    ids, codes = rows(5)
    assert write(tmp_path, [(ids, codes)]).knn(codes[:1], 100)[0].shape == (1, 5)


def test_an_index_without_segments(tmp_path: Path) -> None:
    empty = write(tmp_path, [])
    assert len(empty) == 0
    assert empty.knn(np.zeros((2, 32), np.uint8), 10)[0].shape == (2, 0)
    everything = native.Model.from_json(
        '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
    )
    assert empty.count(everything) == 0
    assert len(empty.search(everything).ids) == 0
    assert len(empty.draw(10)) == 0


def test_draw(index: native.Index) -> None:
    ids = index.ids()
    out = ids[:8000]
    drawn = index.draw(500, seed=7, exclude=out)
    assert len(np.unique(drawn)) == 500
    assert np.isin(drawn, ids[8000:]).all()
    assert np.array_equal(drawn, index.draw(500, seed=7, exclude=out[::-1]))
    assert not np.array_equal(drawn, index.draw(500, seed=8, exclude=out))
    assert len(index.draw(5000, exclude=out)) == 1000


def test_draw_and_training_do_not_depend_on_segments(tmp_path: Path, index: native.Index) -> None:
    ids, codes = rows(9000)
    one = write(tmp_path, [(ids, codes)])
    assert np.array_equal(np.sort(one.draw(300, 3)), np.sort(index.draw(300, 3)))
    near = one.knn(codes[:1], 60)[0][0]
    for learner in ("branch", "ensemble"):
        options = {"learner": learner, "seed": 5, "negative_weight": 2.5}
        a, _ = one.train(near[:20], near[40:], **options)  # type: ignore[arg-type]
        b, stats = index.train(near[:20][::-1], near[40:], **options)  # type: ignore[arg-type]
        assert a.to_json() == b.to_json()
        assert (stats.positives, stats.negatives, stats.random_negatives) == (20, 20, 500)
        assert index.info.fingerprints.quantizer == a.info.quantizer


def test_training_from_codes_equals_training_from_ids(index: native.Index) -> None:
    near = index.knn(clustered_codes(1), 60)[0][0]
    right, wrong = np.sort(near[:20]), np.sort(near[40:])
    randoms = index.draw(100, 9, np.concatenate([right, wrong]))
    by_id, _ = index.train(right, wrong, learner="ensemble", random_negatives=100, seed=9)
    labels = index.codes(right), index.codes(wrong)
    by_code, _ = native.train_codes(
        *labels, index.codes(randoms), learner="ensemble", seed=9, quantizer="quantizer"
    )
    assert by_id.to_json() == by_code.to_json()


def test_cover_is_trained_against_all_rows_of_small_segments(index: native.Index) -> None:
    near = index.knn(clustered_codes(1), 60)[0][0]
    right, wrong = np.sort(near[:20]), np.sort(near[40:])
    ids, codes = index.rows()
    others = codes[np.argsort(ids)][~np.isin(np.sort(ids), np.concatenate([right, wrong]))]
    labels = index.codes(right), index.codes(wrong)
    by_id, stats = index.train(right, wrong)
    by_code, _ = native.train_codes(*labels, others, quantizer="quantizer")
    assert by_id.to_json() == by_code.to_json()
    assert stats.random_negatives == len(others)
    assert stats.rows == index.count(by_id)
    boxed, stats = index.train(right, wrong, boxes=6)
    assert stats.rows >= index.count(boxed)
    every, stats = index.train(ids)
    assert np.isnan(stats.rows)
    assert "hardly any other" in stats.note
    assert index.count(every) > 0
    with pytest.raises(errors.InputError, match="too few for cover; give 8"):
        index.train(right, wrong, random_negatives=7)
    few, stats = index.train(right, wrong, random_negatives=500)
    assert 480 <= stats.random_negatives <= 500
    assert few.to_json() != by_id.to_json()


def test_labels_from_the_top_are_told_by_all_rows_and_not_by_a_sample(tmp_path: Path) -> None:
    """A sample of 30,000 rows holds a few of 32 matches, whether or not the best are marked."""
    rng = np.random.default_rng(5)
    n, matches = 200_000, 32
    codes = np.clip(rng.normal(128, 30, (n, 32)), 0, 255).astype(np.uint8)
    codes[:matches] = np.clip(codes[0] + rng.normal(0, 12, (matches, 32)), 0, 255)
    native.write_segment(tmp_path, "a", np.arange(n), codes, UUID, 1, PLAIN)
    native.write_manifest(tmp_path, UUID, 1, ["a"], PLAIN)
    index = native.Index(tmp_path)
    for _ in range(30):
        fair = rng.permutation(matches)[:10]
        model, stats = index.train(fair, np.zeros(0, np.int64))
        assert "marked already" not in stats.note
    scores = model.evaluate(codes[:matches])[1]
    best = np.argsort(-scores)[:10]
    model, stats = index.train(best, np.zeros(0, np.int64))
    scores = model.evaluate(codes[:matches])[1]
    best = np.argsort(-scores)[:10]  # what is best now was best before, all but a few
    assert "marked already" in index.train(best, np.zeros(0, np.int64))[1].note


def test_cover_does_not_depend_on_segments(tmp_path: Path, index: native.Index) -> None:
    ids, codes = index.rows()
    one = write(tmp_path, [(ids, codes)])
    near = index.knn(clustered_codes(1), 60)[0][0]
    assert (
        one.train(near[:20], near[50:])[0].to_json()
        == index.train(near[:20], near[50:])[0].to_json()
    )


def test_defaults_and_limits_are_the_cores() -> None:
    lib = native.lib
    assert lib.BW_MAX_COVER_BOXES == native.MAX_COVER_BOXES
    learners = {"branch": lib.BW_BRANCH_ROWS, "ensemble": lib.BW_BRANCH_ROWS}
    assert learners | {"cover": lib.BW_COVER_ROWS} == native.RANDOM_NEGATIVES


def test_explain(index: native.Index) -> None:
    near = index.knn(clustered_codes(1), 60)[0][0]
    model, _ = index.train(near[:20], learner="ensemble")
    reports, total = index.explain(model)
    assert len(reports) == model.info.boxes
    assert total["rows"] == index.count(model)
    assert (total["estimator"], total["box"]) == (model.info.estimators, model.info.boxes)
    assert max(report["rows"] for report in reports) >= 20 * 0.5
    for report in [*reports, total]:
        settled = sum(report[f"blocks_{fate}"] for fate in ("pruned", "contained", "scanned"))
        assert settled <= report["blocks"] <= settled + report["blocks_planes"]
        assert report["path"] in ("zones", "planes", "scan")
        assert report["path"] == "planes" or report["blocks_planes"] == 0
        assert 0 <= report["estimated_blocks"] <= report["blocks"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    ids, codes = rows(3000)
    for name, order, threads in (("a", slice(None), 1), ("b", slice(None, None, -1), 2)):
        native.write_segment(
            tmp_path, name, np.ascontiguousarray(ids[order]), np.ascontiguousarray(codes[order]),
            UUID, 1, PRINTS, threads=threads, fine=fine_codes(ids[order]),
        )  # fmt: skip
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(errors.InputError, match="threads"):
        native.write_segment(tmp_path, "c", ids, codes, UUID, 1, PLAIN, threads=-1)


def test_progress_and_its_exceptions(tmp_path: Path) -> None:
    ids, codes = rows(200_000)
    parts: list[float] = []
    native.write_segment(tmp_path, "a", ids, codes, UUID, 1, PLAIN, parts.append)
    assert parts == sorted(parts)
    assert parts
    assert 0 <= parts[0] <= parts[-1] <= 1

    def stop(part: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        native.write_segment(tmp_path, "b", ids, codes, UUID, 1, PLAIN, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_search_can_be_interrupted() -> None:
    started = threading.Event()

    def work(cancel: Any) -> None:
        started.set()
        while not cancel[0]:
            pass

    def interrupt() -> None:
        started.wait()
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        native._interruptible(work)
    thread.join()


def test_what_a_long_search_raises_arrives() -> None:
    def work(cancel: Any) -> None:
        raise errors.IndexCorrupt("no")

    with pytest.raises(errors.IndexCorrupt):
        native._interruptible(work)


def test_results_outlive_the_index(tmp_path: Path) -> None:
    ids, codes = rows(2000)
    index = write(tmp_path, [(ids, codes)])
    everything = native.Model.from_json(
        '{"boxwood_model":1,"learner":"all","dims":32,"estimators":[[[]]],"threshold":1}'
    )
    found = index.search(everything)
    for path in tmp_path.iterdir():
        path.unlink()
    assert index.count(everything) == 2000
    index.close()
    index.close()
    assert np.array_equal(np.sort(found.ids), np.sort(ids))
    with pytest.raises(errors.InputError, match="closed"):
        index.count(everything)


def test_threads_share_an_index(index: native.Index) -> None:
    near = index.knn(clustered_codes(1), 40)[0][0]
    model, _ = index.train(near[:20])
    expected = index.search(model).ids
    wrong: list[int] = []

    def work() -> None:
        for _ in range(30):
            if not np.array_equal(index.search(model, threads=2).ids, expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_isa(index: native.Index) -> None:
    model, _ = index.train(index.ids()[:20])
    before = native.isa()
    expected = index.search(model)
    try:
        native.select_isa("generic")
        assert native.isa() == "generic"
        got = index.search(model)
        assert np.array_equal(got.ids, expected.ids)
        assert np.array_equal(got.scores, expected.scores)
        with pytest.raises(errors.InputError, match="pentium"):
            native.select_isa("pentium")
    finally:
        native.select_isa(None)
    native.select_isa(before)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, None, 3], "NULL in row 1"),
        ([1.0, float("nan")], "NULL in row 1"),
        ([1.5], "integers"),
        (["a"], "integers"),
        ([True, False], "integers"),
        ([[1, 2]], "flat"),
        ([3, -4], "row 1 is -4"),
        ([2**63], "2\\^63|64 bits"),
        ([2**70], "64 bits"),
    ],
)
def test_bad_ids(ids: Any, message: str) -> None:
    with pytest.raises(errors.InputError, match=message):
        native.check_ids(ids)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 31), np.uint8), np.zeros(32, np.uint8), np.zeros((1, 32)),
              np.full((1, 32), 256), np.full((1, 32), -1)],
)  # fmt: skip
def test_bad_codes(codes: Any) -> None:
    with pytest.raises(errors.InputError, match="codes must"):
        native.check_codes(codes)


def test_bad_arguments(tmp_path: Path, index: native.Index) -> None:
    ids, codes = rows(10)
    for k in (0, -1, native.MAX_K + 1, 1.5, True):
        with pytest.raises(errors.InputError, match="k must be"):
            index.knn(codes[:1], k)  # type: ignore[arg-type]
    with pytest.raises(errors.InputError, match="learner"):
        index.train(ids, learner="magic")
    with pytest.raises(errors.InputError):
        index.train(index.ids()[:5], negative_weight=float("nan"))
    with pytest.raises(errors.InputError, match="estimators"):
        index.train(index.ids()[:5], estimators=0)
    with pytest.raises(errors.InputError, match="seed"):
        index.train(index.ids()[:5], seed=-1)
    with pytest.raises(errors.InputError, match="rows"):
        index.rows(8990, 20)
    with pytest.raises(errors.InputError):
        native.write_segment(tmp_path, "a", ids[:9], codes, UUID, 1, PLAIN)
    with pytest.raises(errors.InputError):
        native.write_segment(tmp_path, "../a", ids, codes, UUID, 1, PLAIN)
    double = np.concatenate([ids, ids])
    with pytest.raises(errors.InputError):
        native.write_segment(tmp_path, "a", double, np.repeat(codes, 2, 0), UUID, 1, PLAIN)
    with pytest.raises(errors.StorageError):
        native.write_segment(tmp_path / "nowhere", "a", ids, codes, UUID, 1, PLAIN)
    with pytest.raises(errors.InputError, match="31 bytes"):
        native.write_segment(
            tmp_path, "a", ids, codes, UUID, 1, native.Fingerprints(encoder="x" * 32)
        )
    with pytest.raises(errors.IndexMissing):
        native.Index(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())
