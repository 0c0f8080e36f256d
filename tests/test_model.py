"""Models as Python objects, and scikit-learn's trees as boxes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood import InputError, Model, StorageError
from conftest import clustered_codes

DOCUMENT = (
    '{"boxwood_model":1,"learner":"hand","dims":32,"quantizer":"q1",'
    '"estimators":[[[[3,12,80],[7,0,99]],[[1,5,200]]],[[[3,20,90]]]],"threshold":2,'
    '"score":{"terms":[{"linear":[' + ",".join(["1"] * 32) + '],"square":['
    + ",".join(["0"] * 32) + '],"constant":5}],"votes":1024,"shift":2,"threshold":null},'
    '"training":{"positives":12}}'
)  # fmt: skip


def test_properties() -> None:
    model = Model.from_json(DOCUMENT)
    assert (model.learner, model.quantizer, model.threshold) == ("hand", "q1", 2)
    assert (model.estimators, model.box_count, model.training) == (2, 3, {"positives": 12})
    assert model.to_json() == DOCUMENT
    assert "hand" in repr(model)
    assert "<td>q1</td>" in model._repr_html_()
    assert model.boxes().to_pylist()[0] == {"estimator": 0, "box": 0, "dim": 3, "lo": 12, "hi": 80}
    assert model.boxes().num_rows == 4
    codes = np.full((2, 32), 50, np.uint8)
    codes[1, 3] = 85
    assert model.votes(codes).tolist() == [2, 2]
    assert model.scores(codes).tolist() == [(2048 + 5 + 1600) / 4, (2048 + 5 + 1635) / 4]
    assert model.matches(codes).tolist() == [True, True]


def flat_term(first: int, constant: int, dims: int = 32) -> dict[str, Any]:
    return {
        "linear": [first] + [0] * (dims - 1), "square": [0] * dims, "constant": constant
    }  # fmt: skip


def test_terms_and_fine_codes() -> None:
    document = json.loads(DOCUMENT)
    document |= {"estimators": [], "threshold": 0}
    document["score"] |= {"terms": [flat_term(1, 0), flat_term(-1, 250)], "threshold": 200}
    best = Model.from_json(json.dumps(document))
    assert not best.has_fine
    assert best.fine_quantizer == ""
    codes = np.zeros((4, 32), np.uint8)
    codes[:, 0] = [10, 100, 199, 230]
    assert best.scores(codes).tolist() == [60.0, 37.5, 49.75, 57.5]
    assert best.matches(codes).tolist() == [True, False, False, True]

    document["fine"] = {
        "quantizer": "f1", "terms": [flat_term(2, 1, 128)], "shift": 1, "threshold": 100
    }  # fmt: skip
    both = Model.from_json(json.dumps(document))
    assert both.has_fine
    assert both.fine_quantizer == "f1"
    fine = np.zeros((4, 128), np.uint8)
    fine[:, 0] = [49, 50, 51, 52]
    assert both.scores(codes, fine).tolist() == [49.5, 50.5, 51.5, 52.5]
    assert both.matches(codes, fine).tolist() == [False, False, False, True]
    assert both.votes(codes).tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match="fine codes"):
        both.scores(codes)
    with pytest.raises(InputError, match="fine codes"):
        both.matches(codes, fine[:3])
    with pytest.raises(InputError, match=r"fine codes must have the shape \(rows, 128\)"):
        both.matches(codes, codes)

    document["score"]["terms"].append(flat_term(1, 0))
    document["fine"]["terms"].append(flat_term(2, 1, 128))
    assert Model.from_json(json.dumps(document)) == both, "of equal terms one is kept"


def test_equality_and_pickles() -> None:
    one, two = Model.from_json(DOCUMENT), Model.from_json(DOCUMENT)
    other = Model.from_json(DOCUMENT.replace('"threshold":2', '"threshold":1'))
    assert one == two
    assert one != other
    assert one != DOCUMENT
    assert len({one, two, other}) == 2
    assert pickle.loads(pickle.dumps(one)) == one


def test_files(tmp_path: Path) -> None:
    model = Model.from_json(DOCUMENT)
    model.save(tmp_path / "m.json")
    assert Model.load(tmp_path / "m.json") == model
    with pytest.raises(StorageError, match=r"none\.json"):
        Model.load(tmp_path / "none.json")
    with pytest.raises(StorageError, match="nowhere"):
        model.save(tmp_path / "nowhere" / "m.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bad\.json.*UTF-8"):
        Model.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match=r"bad\.json"):
        Model.load(tmp_path / "bad.json")


def changed(**members: Any) -> str:
    return json.dumps({**json.loads(DOCUMENT), **members})


@pytest.mark.parametrize(
    "document",
    [
        "", "{", "[]", "null", "{}", DOCUMENT + "x", DOCUMENT[:-1],
        changed(boxwood_model=2), changed(dims=31), changed(dims=33), changed(threshold=3),
        changed(threshold=-1), changed(learner=""), changed(learner="x" * 16), changed(extra=1),
        changed(quantizer="q" * 32), changed(quantizer=1), changed(estimators=[[[[32, 0, 1]]]]),
        changed(estimators=[[[[-1, 0, 1]]]]), changed(estimators=[[[[0, 5, 4]]]]),
        changed(estimators=[[[[0, 0, 256]]]]), changed(estimators=[[[[0, 0, 1], [0, 0, 1]]]]),
        changed(estimators=[[[[0, 0.5, 1]]]]), changed(estimators=[[[[0, 0]]]]),
        changed(estimators=[[[]]] * 1025, threshold=1), changed(estimators=[[[]] * 65_537]),
        changed(estimators="[]"), changed(score={"linear": []}), changed(score=[]),
        changed(score={"terms": [], "votes": 0, "shift": 0, "threshold": 1}),
        changed(score={"terms": [{}] * 9, "votes": 0, "shift": 0, "threshold": 1}),
        changed(fine={}),
        changed(fine={"terms": [{"linear": [0] * 32, "square": [0] * 32, "constant": 0}],
                      "shift": 0, "threshold": 1}),
        changed(fine={"terms": [{"linear": [0] * 128, "square": [2**28 + 1] + [0] * 127,
                                 "constant": 0}], "shift": 0, "threshold": 1}),
        changed(training=[]), "[" * 100_000, DOCUMENT.replace('"dims":32', '"dims":32,"dims":32'),
    ],
    ids=range(37),
)  # fmt: skip
def test_bad_documents(document: str) -> None:
    with pytest.raises(InputError) as error:
        Model.from_json(document)
    assert str(error.value)


def test_a_document_is_text() -> None:
    with pytest.raises(InputError, match="bytes"):
        Model.from_json(DOCUMENT.encode())  # type: ignore[arg-type]


# --- scikit-learn ---------------------------------------------------------------------------------

ensemble = pytest.importorskip("sklearn.ensemble")
tree = pytest.importorskip("sklearn.tree")


def labelled(seed: int, n: int, classes: int = 2) -> tuple[Any, Any]:
    codes = clustered_codes(n, seed)
    rng = np.random.default_rng(seed + 1)
    noise = rng.random(n) < 0.1
    label = (codes[:, :classes].astype(int).argmax(axis=1) + noise) % classes
    return codes, label


@settings(max_examples=40)
@given(
    st.integers(0, 10**6), st.integers(2, 200), st.none() | st.integers(1, 6),
    st.sampled_from(["gini", "entropy"]),
)  # fmt: skip
def test_a_tree_is_its_boxes(seed: int, n: int, depth: int | None, criterion: str) -> None:
    codes, label = labelled(seed, n)
    label[0], label[1] = 0, 1
    fitted = tree.DecisionTreeClassifier(
        max_depth=depth, criterion=criterion, random_state=seed
    ).fit(codes, label)
    model = Model.from_sklearn(fitted, quantizer="q")
    assert (model.learner, model.estimators, model.quantizer) == ("tree", 1, "q")
    everything = np.concatenate(
        [codes, clustered_codes(500, seed + 2),
         np.random.default_rng(seed).integers(0, 256, (500, 32)).astype(np.uint8)]
    )  # fmt: skip
    assert np.array_equal(model.matches(everything), fitted.predict(everything) == 1)


def test_every_code_along_a_dimension() -> None:
    codes = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 32, axis=1)
    label = (codes[:, 0] // 16) % 2 == 0
    fitted = tree.DecisionTreeClassifier(random_state=0).fit(codes, label)
    model = Model.from_sklearn(fitted)
    assert np.array_equal(model.matches(codes), label)
    assert model.box_count == 8


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_a_forest_is_a_majority_of_its_trees(seed: int, trees: int) -> None:
    codes, label = labelled(seed, 150)
    fitted = ensemble.RandomForestClassifier(trees, random_state=seed).fit(codes, label)
    model = Model.from_sklearn(fitted, positive=1, mean=codes[label == 1].mean(axis=0))
    some = clustered_codes(400, seed + 2)
    votes = sum((t.predict(some) == 1).astype(int) for t in fitted.estimators_)
    assert np.array_equal(model.votes(some), votes)
    assert np.array_equal(model.matches(some), 2 * votes > trees)
    # Votes come first in the score, then nearness to the mean.
    scores = model.scores(some)
    assert np.array_equal(np.ceil(scores), votes)
    centre = np.rint(codes[label == 1].mean(axis=0))
    distance = ((some - centre) ** 2).sum(axis=1)
    assert np.array_equal(votes * 2**21 - distance, scores * 2**21)


def test_one_class_of_several_by_name() -> None:
    codes, label = labelled(3, 400, classes=4)
    names = np.array(["cat", "dog", "owl", "newt"])[label]
    fitted = tree.DecisionTreeClassifier(random_state=0, max_depth=5).fit(codes, names)
    for name in ("cat", "newt"):
        model = Model.from_sklearn(fitted, positive=name)
        assert np.array_equal(model.matches(codes), fitted.predict(codes) == name)
    with pytest.raises(InputError, match="cat"):
        Model.from_sklearn(fitted)
    with pytest.raises(InputError, match="'cow'"):
        Model.from_sklearn(fitted, positive="cow")


def test_a_tree_of_one_leaf() -> None:
    codes = clustered_codes(20)
    always = tree.DecisionTreeClassifier().fit(codes, np.ones(20, bool))
    assert Model.from_sklearn(always).matches(codes).all()
    never = tree.DecisionTreeClassifier(max_depth=1).fit(codes, np.arange(20) == 0)
    model = Model.from_sklearn(never)
    assert np.array_equal(model.matches(codes), never.predict(codes))


def test_what_cannot_be_compiled() -> None:
    codes, label = labelled(0, 50)
    with pytest.raises(InputError, match="DecisionTreeRegressor"):
        Model.from_sklearn(tree.DecisionTreeRegressor().fit(codes, label))
    with pytest.raises(InputError, match="fit"):
        Model.from_sklearn(tree.DecisionTreeClassifier())
    with pytest.raises(InputError, match="fit"):
        Model.from_sklearn(ensemble.RandomForestClassifier())
    with pytest.raises(InputError, match="31 features"):
        Model.from_sklearn(tree.DecisionTreeClassifier().fit(codes[:, 1:], label))
    two = np.stack([label, label], axis=1)
    with pytest.raises(InputError, match="2 outputs"):
        Model.from_sklearn(tree.DecisionTreeClassifier().fit(codes, two))
    with pytest.raises(InputError, match="mean"):
        Model.from_sklearn(tree.DecisionTreeClassifier().fit(codes, label), mean=[1, 2])
    many = ensemble.RandomForestClassifier(1025, max_depth=1, max_samples=5).fit(codes, label)
    with pytest.raises(InputError, match="1,024"):
        Model.from_sklearn(many)


def test_sql_of_a_forest() -> None:
    codes, label = labelled(5, 300)
    fitted = ensemble.RandomForestClassifier(9, random_state=0).fit(codes, label)
    model = Model.from_sklearn(fitted)
    rows = pa.table(
        {"n": np.arange(300), **{f"d{d:02}": np.ascontiguousarray(codes[:, d]) for d in range(32)}}
    )
    with duckdb.connect() as plain:
        plain.register("rows", rows)
        found = plain.execute(f"SELECT n FROM rows WHERE {model.to_sql()} ORDER BY n").fetchall()
    assert [n for (n,) in found] == np.flatnonzero(model.matches(codes)).tolist()
