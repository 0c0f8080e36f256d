"""The server's JSON API for searches, refinements and views, against Python's API and plain SQL."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, Model, scenes
from conftest import clustered_codes, clustered_embeddings

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from boxwood.serve import Limits, create_app
from boxwood.serve.library import Library, Refusal, RequestCursor, kind_of
from boxwood.serve.queries import mixture
from boxwood.serve.schemas import Stats
from boxwood.serve.views import Base, View, Views

BIG = 2**53 + 1
ROWS = 3000
QUOTED = 'si"ze, in px'

METADATA = f"""
CREATE TABLE photos AS SELECT
    range * 3 AS id,
    '/photos/2024 summer/IMG ' || range || '.jpg' AS uri,
    CASE WHEN range % 11 = 0 THEN NULL ELSE 'camera ' || range % 7 END AS camera,
    (range * 37 % 1000)::INTEGER AS "{QUOTED.replace('"', '""')}",
    DATE '2020-01-01' + (range * 13 % 1500)::INTEGER AS taken,
    TIMESTAMP '2020-01-01 10:00:00' + to_seconds(range * 1009) AS "at",
    (TIMESTAMP '2020-01-01 10:00:00' + to_hours(range))::TIMESTAMPTZ AS zoned,
    CASE WHEN range % 5 = 0 THEN NULL ELSE range % 2 = 0 END AS colour,
    CASE WHEN range % 100 = 7 THEN 'nan'::DOUBLE WHEN range % 100 = 8 THEN 'inf'::DOUBLE
         ELSE (range * 17 % 400) / 8 END AS rating,
    (range / 7)::DECIMAL(9, 2) AS price,
    (range % 3)::FLOAT / 10 AS tenths,
    {2**53} + range AS serial,
    (CASE range % 2 WHEN 0 THEN 'raw' ELSE 'jpeg' END)::ENUM('raw', 'jpeg') AS format,
    [range, range + 1] AS tags,
    'ünïcode ' || chr(128006) || ' it''s' || (range % 4) AS "select",
    encode('abc') AS bytes,
    NULL::VARCHAR AS nothing
FROM range({ROWS})
"""


@contextmanager
def serving(database: Path, **options: Any) -> Iterator[TestClient]:
    app = create_app(database, **options)
    with TestClient(
        app, base_url="http://localhost", headers={"X-Boxwood": "1"}, raise_server_exceptions=False
    ) as client:
        yield client


class Api:
    """Calls that must succeed, and the library behind them."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.library: Library = client.app.state.library  # type: ignore[attr-defined]

    def get(self, path: str, status: int = 200, **parameters: Any) -> Any:
        answer = self.client.get(f"/api{path}", params=parameters)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        answer = self.client.post(f"/api{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def search(self, body: dict[str, Any], collection: str = "photos", status: int = 200) -> Any:
        return self.post(f"/collections/{collection}/search", body, status)

    def refine(self, collection: str = "photos", status: int = 200, **body: Any) -> Any:
        return self.post(f"/collections/{collection}/refine", body, status)

    def arrange(self, view: str, status: int = 200, **body: Any) -> Any:
        return self.post(f"/views/{view}/arrange", body, status)

    def all(self, view: str, limit: int = 500) -> list[dict[str, Any]]:
        """Every item of a view, page by page, by its keys."""
        items: list[dict[str, Any]] = []
        key: dict[str, Any] = {}
        while True:
            page = self.get(f"/views/{view}/items", limit=limit, **key)
            items += page["items"]
            if page["next"] is None:
                assert len(items) == page["total"]
                return items
            key = {"after": page["next"]}

    def ids(self, view: str) -> list[int]:
        return [int(item["id"]) for item in self.all(view)]

    def collection(self, name: str = "photos") -> Collection:
        return Collection.open(self.library.con.cursor(), name)

    def sql(self, statement: str) -> list[int]:
        """Ids that a statement gives on a connection of its own."""
        with boxwood.load(self.library.con.cursor()) as cur:
            # As Arrow: DuckDB needs another package to give times with zones to Python.
            ids: list[int] = cur.sql(statement).to_arrow_table().column(0).to_pylist()
            return ids

    def same(self, result: dict[str, Any]) -> list[int]:
        """The view's ids, once they are found to be those of its SQL."""
        ids = self.ids(result["view"])
        assert len(ids) == result["total"]
        assert self.sql(result["sql"]) == ids
        return ids


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collections: photos with many kinds of columns; bare without metadata; big with large ids;
    embedded with a head and fine codes; empty."""
    database = tmp_path_factory.mktemp("serve") / "photos.duckdb"
    with boxwood.connect(database) as con:
        con.execute(METADATA)
        photos = Collection.create(con, "photos", table="photos")
        photos.append(np.arange(ROWS) * 3, codes=clustered_codes(ROWS))
        Collection.create(con, "bare").append(np.arange(500), codes=clustered_codes(500, 3))
        big = Collection.create(con, "big")
        big.append(np.arange(300) + BIG, codes=clustered_codes(300, 4),
                   metadata={"n": np.arange(300)})  # fmt: skip
        embedded = Collection.create(con, "embedded", fine=True)
        embedded.append(np.arange(1500), embeddings=clustered_embeddings(1500),
                        metadata={"n": np.arange(1500) % 10})  # fmt: skip
        Collection.create(con, "empty")
    return database


@pytest.fixture(scope="module")
def api(filled: Path) -> Iterator[Api]:
    with serving(filled) as client:
        yield Api(client)


POSITIVES, NEGATIVES = [0, 60, 180], [9, 12]


@pytest.fixture(scope="module")
def refined(api: Api) -> Any:
    return api.refine(positives=POSITIVES, negatives=NEGATIVES)


def in_(column: str, *values: Any, **more: Any) -> dict[str, Any]:
    return {"column": column, "op": "in", "values": list(values), **more}


# --- about ----------------------------------------------------------------------------------------


def test_info(api: Api) -> None:
    info = api.get("/info")
    assert info["database"] == "photos.duckdb"
    assert info["version"] == boxwood.__version__
    assert not info["read_only"]
    assert not info["remote"]
    assert info["limits"]["results"] == Limits().results
    assert [learner["name"] for learner in info["learners"]] == [
        "cover", "branch", "ensemble", "tree", "forest",
    ]  # fmt: skip


def test_learners_take_the_options_that_info_names(api: Api) -> None:
    for learner in api.get("/info")["learners"]:
        if not learner["available"]:
            continue
        for option in learner["options"]:
            for value in (option["min"], option["default"]):
                if isinstance(option["default"], bool):
                    value = bool(value)
                elif option["name"] != "negative_weight":
                    value = int(value)
                api.refine(
                    "embedded", positives=[1, 2, 3], negatives=[4], learner=learner["name"],
                    **{option["name"]: value},
                )  # fmt: skip


def test_collections(api: Api) -> None:
    found = {about["name"]: about for about in api.get("/collections")}
    assert list(found) == ["bare", "big", "embedded", "empty", "photos"]
    assert found["photos"]["rows"] == ROWS
    assert found["empty"]["rows"] == 0
    assert found["photos"]["pictures"]
    assert not found["bare"]["pictures"]
    assert found["embedded"]["fine"]
    assert not found["photos"]["fine"]
    assert not any(about["words"] for about in found.values())
    assert found["photos"]["state"] == "current"
    columns = {column["name"]: column for column in found["photos"]["columns"]}
    assert "id" not in columns
    kinds = {name: column["kind"] for name, column in columns.items()}
    assert kinds == {
        "uri": "text", "camera": "text", QUOTED: "number", "taken": "time", "at": "time",
        "zoned": "time", "colour": "bool", "rating": "number", "price": "number",
        "tenths": "number", "serial": "number", "format": "text", "tags": "other",
        "select": "text", "bytes": "other", "nothing": "text",
    }  # fmt: skip
    assert not columns["uri"]["facet"]
    assert not columns["nothing"]["facet"]
    assert columns["camera"]["facet"]
    assert columns["format"]["facet"]
    assert columns["colour"]["facet"]


@pytest.mark.parametrize(
    ("type_", "kind"),
    [("BIGINT", "number"), ("DECIMAL(9,2)", "number"), ("TIMESTAMP_NS", "time"), ("TIME", "other"),
     ("INTEGER[]", "other"), ("DATE[3]", "other"), ("ENUM('a]', 'b')", "text"),
     ("STRUCT(a INTEGER)", "other"), ("INTERVAL", "other"), ("UUID", "text")],
)  # fmt: skip
def test_kinds_of_columns(type_: str, kind: str) -> None:
    assert kind_of(type_) == kind


def test_openapi_documents_every_route_and_error(api: Api) -> None:
    document = api.get("/openapi.json")
    assert document["info"]["title"] == "Boxwood"
    paths = document["paths"]
    for path in ("/api/collections/{collection}/search", "/api/views/{view}/items"):
        assert path in paths
    for path, methods in paths.items():
        assert path.startswith("/api/")
        for method, about in methods.items():
            if method == "parameters":
                continue
            for status in ("400", "404", "422", "429", "503"):
                schema = about["responses"][status]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/ErrorBody"), (path, status)
    for gone in ("/docs", "/redoc", "/openapi.json"):
        assert api.client.get(gone).status_code == 404


# --- searches -------------------------------------------------------------------------------------


def test_search_by_one_image(api: Api) -> None:
    result = api.search({"query": {"images": [{"id": 30}]}, "k": 25})
    truth = api.collection().knn(like=30, k=25)
    assert result["kind"] == "search"
    assert not result["model"]
    assert result["learner"] is None
    assert api.same(result) == truth["id"].to_pylist()
    assert [item["value"] for item in result["items"]] == truth["distance"].to_pylist()
    assert result["items"][0]["title"] == "IMG 10.jpg"
    assert result["items"][0]["id"] == 30
    assert result["stats"]["total_ms"] > 0
    assert "exact" in result["stats"]["path"]
    assert all(item["votes"] is None and item["inside"] for item in result["items"])


def test_search_with_a_recall(api: Api) -> None:
    result = api.search({"query": {"images": [{"id": 30}]}, "recall": 0.9})
    truth = api.collection().knn(like=30, recall=0.9)
    assert api.same(result) == truth["id"].to_pylist()


def test_search_by_a_mixture_lies_between(api: Api) -> None:
    collection = api.collection()
    codes, _ = collection.codes([30, 33])
    result = api.search({"query": {"images": [{"id": 30}, {"id": "33", "weight": 0.5}]}})
    code = mixture(codes, [1, 0.5], boxwood.Quantizer(-127.5, 1))
    assert api.same(result) == collection.knn(code)["id"].to_pylist()
    away = api.search({"query": {"images": [{"id": 30}, {"id": 33, "weight": -1}]}})
    assert api.same(away) != api.same(result)


def test_a_mixture_is_the_direction_of_the_weighted_sum() -> None:
    quantizer = boxwood.Quantizer(-127.5, 1)
    one, two = np.full((2, 32), 127, np.uint8)
    one[0], two[1] = 227, 227
    both = mixture(np.stack([one, two]), [1, 1], quantizer).astype(int)
    assert both[0] == both[1]
    assert 190 < both[0] < 205
    assert abs(both[2:] - 127).max() <= 1
    alone = mixture(np.stack([one, two]), [3, 0], quantizer)
    assert np.abs(alone.astype(int) - one).max() <= 1
    with pytest.raises(boxwood.InputError, match="cancel"):
        mixture(np.stack([one, one]), [1, -1], quantizer)


def test_a_mixture_in_a_collection_with_a_quantizer(api: Api) -> None:
    collection = api.collection("embedded")
    codes, _ = collection.codes([1, 2, 3])
    assert collection.quantizer is not None
    code = mixture(codes, [1, 1, -0.3], collection.quantizer)
    body = {"query": {"images": [{"id": 1}, {"id": 2}, {"id": 3, "weight": -0.3}]}}
    assert api.same(api.search(body, "embedded")) == collection.knn(code)["id"].to_pylist()


def test_search_with_filters_finds_the_nearest_that_pass(api: Api) -> None:
    filters = [in_("camera", "camera 3"), {"column": QUOTED, "op": "range", "high": 500}]
    result = api.search({"query": {"images": [{"id": 30}]}, "k": 40, "filters": filters})
    size = QUOTED.replace('"', '""')
    passing = api.sql(f"SELECT id FROM photos WHERE camera = 'camera 3' AND \"{size}\" <= 500")
    assert len(passing) > 40
    truth = api.collection().knn(like=30, k=40, ids=passing)["id"].to_pylist()
    assert api.same(result) == truth
    assert result["total"] == result["unfiltered"] == 40
    # The same by arranging a search that has none.
    plain = api.search({"query": {"images": [{"id": 30}]}, "k": 40})
    again = api.arrange(plain["view"], filters=filters, previous=plain["view"])
    assert api.same(again) == truth
    assert again["changes"]["new"] + 40 - again["changes"]["gone"] == 40
    assert api.ids(api.arrange(again["view"])["view"]) == api.ids(plain["view"])


def test_search_sorted_by_a_column(api: Api) -> None:
    result = api.search({
        "query": {"images": [{"id": 30}]}, "k": 40, "filters": [in_("format", "raw")],
        "sort": {"by": "taken", "descending": True},
    })  # fmt: skip
    ids = api.same(result)
    taken = dict(api.library.con.cursor().execute("SELECT id, taken FROM photos").fetchall())
    assert [taken[id_] for id_ in ids] == sorted((taken[id_] for id_ in ids), reverse=True)
    backwards = api.arrange(result["view"], sort={"by": "rank", "descending": True})
    nearest = api.arrange(result["view"])
    assert api.same(backwards) == api.same(nearest)[::-1]


def test_a_sample(api: Api) -> None:
    path = "/collections/photos/sample"
    found = api.post(path, {"k": 40})
    ids = [int(item["id"]) for item in found["items"]]
    assert (found["kind"], len(set(ids)), found["model"]) == ("sample", 40, False)
    assert api.sql(found["sql"]) == ids
    assert max(ids) - min(ids) > ROWS  # not the first ones
    again = api.post(path, {"k": 40})
    assert [item["id"] for item in again["items"]] == [item["id"] for item in found["items"]]
    few = api.post(path, {"k": 30, "filters": [in_("camera", "camera 3")]})
    passing = set(api.sql("SELECT id FROM photos WHERE camera = 'camera 3'"))
    ids = [int(item["id"]) for item in few["items"]]
    assert len(ids) == 30
    assert set(ids) <= passing
    assert api.sql(few["sql"]) == ids
    arranged = api.arrange(found["view"], filters=[in_("camera", "camera 3")])
    assert arranged["total"] == 40
    assert api.post("/collections/bare/sample", {})["total"] == 60
    assert api.post("/collections/empty/sample", {})["total"] == 0
    api.post(path, {"k": 0}, 422)


def test_large_ids_are_strings(api: Api) -> None:
    result = api.search({"query": {"images": [{"id": str(BIG + 5)}]}}, "big")
    assert result["items"][0]["id"] == str(BIG + 5)
    api.same(result)
    labels = [str(BIG + 1), BIG + 2]
    api.same(api.refine("big", positives=labels, negatives=[str(BIG + 9)]))
    about = api.get(f"/collections/big/images/{BIG + 7}")
    assert about["id"] == str(BIG + 7)
    assert about["metadata"] == {"n": 7}


def test_neighbours(api: Api) -> None:
    result = api.get("/collections/photos/images/30/neighbours", k=10)
    truth = api.collection().knn(like=30, k=11)["id"].to_pylist()[1:]
    assert result["kind"] == "neighbours"
    assert api.same(result) == truth
    filtered = api.arrange(result["view"], filters=[in_("camera", "camera 3")])
    ids = api.same(filtered)
    assert len(ids) == 10
    assert 30 not in ids
    api.get("/collections/photos/images/31/neighbours", 404)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 422, "invalid"),
        ({"query": {}}, 422, "invalid"),
        ({"query": {"images": [{"id": 1, "upload": "ab" * 32}]}}, 422, "invalid"),
        ({"query": {"images": [{}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": -1}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": 2**63}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": True}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": 1.5}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": "٣"}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": 30, "weight": 0}]}}, 422, "invalid"),
        ({"query": {"texts": [{"words": "  "}]}}, 422, "invalid"),
        ({"query": {"texts": [{"words": "a\0b"}]}}, 422, "invalid"),
        ({"query": {"images": [{"id": 30}]}, "k": 0}, 422, "invalid"),
        ({"query": {"images": [{"id": 30}]}, "k": 10_001}, 422, "invalid"),
        ({"query": {"images": [{"id": 30}]}, "recall": 0}, 422, "invalid"),
        ({"query": {"images": [{"id": 30}]}, "what": 1}, 422, "invalid"),
        ({"query": {"images": [{"id": 31}]}}, 404, "image"),
        ({"query": {"texts": [{"words": "a cat"}]}}, 400, "input"),
        ({"query": {"images": [{"upload": "ab" * 32}]}}, 404, None),
        ({"query": {"images": [{"id": 30}, {"id": 30, "weight": -1}]}}, 400, "input"),
        ({"query": {"images": [{"id": 30}]}, "filters": [in_("nope", 1)]}, 400, "input"),
        ({"query": {"images": [{"id": 30}]}, "sort": {"by": "nope"}}, 400, "input"),
    ],
)
def test_bad_searches(api: Api, body: Any, status: int, kind: str | None) -> None:
    error = api.search(body, status=status)["error"]
    assert kind is None or error["kind"] == kind
    assert error["message"]


def test_a_body_that_is_no_json(api: Api) -> None:
    for content in (b"", b"{", b'{"query": NaN}', b"\xff", b'"\\ud800"', b"[" * 100_000):
        answer = api.client.post(
            "/api/collections/photos/search", content=content,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]["kind"] == "invalid"


# --- refinements ----------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["cover", "branch", "ensemble", "tree", "forest"])
def test_refine_is_the_collections(api: Api, learner: str) -> None:
    options: dict[str, Any] = {"learner": learner, "negative_weight": 2.0, "seed": 3}
    if learner in ("tree", "forest"):
        pytest.importorskip("sklearn")
    if learner in ("ensemble", "forest"):
        options["estimators"] = 7
    if learner == "cover":
        options["boxes"] = 4
    result = api.refine(positives=POSITIVES, negatives=NEGATIVES, **options)
    truth = api.collection().refine(POSITIVES, NEGATIVES, **options)
    assert result["model"]
    assert result["learner"] == truth.learner
    assert api.same(result) == truth.ids.tolist()
    table = truth.table(120)
    assert [item["value"] for item in result["items"]] == table["score"].to_pylist()
    assert [item["votes"] for item in result["items"]] == table["votes"].to_pylist()
    assert [item["rank"] for item in result["items"]] == list(range(len(result["items"])))
    stats = result["stats"]
    assert (stats["positives"], stats["negatives"]) == (3, 2)
    assert stats["train_ms"] >= 0
    assert stats["rows"] == truth.count
    assert stats["blocks"] == truth.stats["blocks"]
    assert stats["boxes"] == truth.stats["boxes"]
    if result["estimate"] is not None:
        assert result["estimate"]["words"] == str(truth.estimate)
    assert result["note"] == truth.note


def test_refine_by_a_query(api: Api) -> None:
    result = api.refine(query={"images": [{"id": 30}]}, negatives=NEGATIVES)
    code = api.collection().codes([30])[0][0]
    truth = api.collection().refine([], NEGATIVES, query=code)
    assert api.same(result) == truth.ids.tolist()


def test_refine_with_fine_codes(api: Api) -> None:
    result = api.refine("embedded", positives=[1, 2, 3], negatives=[4], rerank=True)
    truth = api.collection("embedded").refine([1, 2, 3], [4], rerank=True)
    assert api.same(result) == truth.ids.tolist()
    alone = api.refine("embedded", query={"images": [{"id": 1}]}, rerank=True)
    codes, fine = api.collection("embedded").codes([1])
    assert fine is not None
    expected = api.collection("embedded").refine(query=codes[0], query_fine=fine[0], rerank=True)
    assert api.ids(alone["view"]) == expected.ids.tolist()


def test_changes_since_the_previous_view(api: Api, refined: Any) -> None:
    assert refined["changes"] is None
    result = api.refine(positives=[*POSITIVES, 300], negatives=NEGATIVES, previous=refined["view"])
    before, now = api.ids(refined["view"]), api.ids(result["view"])
    changes = result["changes"]
    gone = [id_ for id_ in before if id_ not in set(now)]
    assert changes["gone"] == len(gone)
    assert changes["gone_ids"] == gone[:60]
    new = {int(item["id"]) for item in api.all(result["view"]) if item["new"]}
    assert new == set(now) - set(before)
    assert changes["new"] == len(new) > 0
    narrow = api.arrange(result["view"], filters=[in_("camera", "camera 1")],
                         previous=refined["view"])  # fmt: skip
    assert narrow["changes"]["new"] == len(set(api.ids(narrow["view"])) - set(before))
    # What is not kept, or of another collection, is nothing to compare with.
    assert api.refine(positives=POSITIVES, previous="gone")["changes"] is None
    other = api.refine("bare", positives=[1], previous=refined["view"])
    assert other["changes"] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"positives": [1]}, 400),
        ({"positives": [0], "negatives": [0]}, 400),
        ({"positives": ["x"]}, 422),
        ({"positives": [0], "learner": "magic"}, 422),
        ({"positives": [0], "random_negatives": 3}, 400),
        ({"positives": [0], "random_negatives": 100_001}, 422),
        ({"positives": [0], "negative_weight": 0}, 422),
        ({"positives": [0], "learner": "branch", "boxes": 3}, 400),
        ({"positives": [0], "rerank": True}, 400),
        ({"positives": [0], "query": {"images": [{"id": 31}]}}, 404),
        ({"learner": "tree", "query": {"images": [{"id": 30}]}}, 400),
        ({"positives": [0], "estimators": 0}, 422),
    ],
)
def test_bad_refinements(api: Api, body: Any, status: int) -> None:
    assert api.refine(status=status, **body)["error"]["message"]


def test_of_many_bad_marks_one_is_told(api: Api) -> None:
    """To tell all of fifty thousand would hold up everybody."""
    for body in ({"positives": ["x"] * 3}, {"filters": [in_("camera", [], [], [])]}):
        message = api.refine(status=422, **body)["error"]["message"]
        assert ".0" in message
        assert ".1" not in message


def test_limits_that_are_lower(filled: Path) -> None:
    limits = replace(Limits(), results=10, labels=2, page=5)
    with serving(filled, limits=limits) as client:
        api = Api(client)
        api.search({"query": {"images": [{"id": 30}]}, "k": 11}, status=400)
        result = api.search({"query": {"images": [{"id": 30}]}, "k": 10})
        api.get(f"/views/{result['view']}/items", 400, limit=6)
        api.refine(positives=[0, 3, 6], status=413)


def test_an_empty_result(api: Api) -> None:
    filters = [in_("camera", "no such camera")]
    result = api.refine(positives=POSITIVES, negatives=NEGATIVES, filters=filters)
    assert result["total"] == 0
    assert result["items"] == []
    assert result["next"] is None
    assert result["unfiltered"] > 0
    assert api.same(result) == []
    facets = api.get(f"/views/{result['view']}/facets")["facets"]
    assert sum(value["count"] for value in facets[0]["values"]) == result["unfiltered"] - facets[0][
        "missing"]  # fmt: skip
    search = api.search({"query": {"images": [{"id": 30}]}, "filters": filters})
    assert search["total"] == 0
    assert api.same(search) == []
    api.get(f"/views/{search['view']}/why/30")


def test_an_empty_collection(api: Api) -> None:
    assert "empty" in api.refine("empty", positives=[1], status=400)["error"]["message"]
    api.search({"query": {"images": [{"id": 1}]}}, "empty", 404)
    api.get("/collections/empty/images/1", 404)


def test_unknown_collections(api: Api) -> None:
    for name in ("nope", "Photos", "a/b", "a'b", "%00", "ü", "x" * 100):
        path = f"/api/collections/{name}/refine"
        answer = api.client.post(path, json={"positives": [1]})
        assert answer.status_code == 404, (name, answer.text)
        assert answer.json()["error"]["message"]
    assert "photos" in api.refine("Photos", positives=[1], status=404)["error"]["message"]


def test_a_collection_without_metadata(api: Api) -> None:
    result = api.refine("bare", positives=[1, 2], negatives=[3])
    assert api.same(result) == api.collection("bare").refine([1, 2], [3]).ids.tolist()
    assert result["items"][0]["title"] == str(result["items"][0]["id"])
    assert api.get(f"/views/{result['view']}/facets") == {"facets": []}
    api.arrange(result["view"], 400, filters=[in_("camera", "x")])
    api.arrange(result["view"], 400, sort={"by": "camera"})
    assert api.same(api.arrange(result["view"], sort={"by": "rank", "descending": True}))
    assert api.get("/collections/bare/images/1")["metadata"] == {}
    api.get("/collections/bare/images/500", 404)
    search = api.search({"query": {"images": [{"id": 1}]}}, "bare")
    api.arrange(search["view"], 400, filters=[in_("camera", "x")])


# --- filters and sorts ----------------------------------------------------------------------------

FILTERS: list[tuple[dict[str, Any], str]] = [
    (in_("camera", "camera 1", "camera 2"), "camera IN ('camera 1', 'camera 2')"),
    (in_("camera"), "false"),
    (in_("camera", "camera 1", negate=True), "camera IS DISTINCT FROM 'camera 1'"),
    (in_("camera", "x'; DROP TABLE photos; --"), "false"),
    (in_("select", "ünïcode 🐆 it's2"), "\"select\" LIKE '%2'"),
    (in_("format", "raw"), "format = 'raw'"),
    (in_("format", "no such"), "false"),
    (in_(QUOTED, 37, 74.0, "111"), "size IN (37, 74, 111)"),
    (in_("tenths", "0.1"), "tenths = 0.1::FLOAT"),
    (in_("colour", True), "colour"),
    (in_("colour", False, negate=True), "colour IS NULL OR colour"),
    (in_("taken", "2021-03-01", "2022-01-05"), "taken IN ('2021-03-01', '2022-01-05')"),
    (in_("serial", str(BIG + 8)), f"serial = {BIG + 8}"),
    (in_("tags", "[3, 4]"), "tags = [3, 4]"),
    (in_("id", 30, 33), "id IN (30, 33)"),
    ({"column": QUOTED, "op": "range", "low": 100, "high": 200}, "size BETWEEN 100 AND 200"),
    ({"column": QUOTED, "op": "range", "low": 99.5}, "size >= 99.5"),
    ({"column": QUOTED, "op": "range", "high": 10, "negate": True}, "size > 10"),
    ({"column": "price", "op": "range", "low": 12.5, "high": "20.25"},
     "price BETWEEN 12.5 AND 20.25"),
    ({"column": "rating", "op": "range", "low": 1e-300, "high": 7.125},
     "rating > 0 AND rating <= 7.125"),
    ({"column": "taken", "op": "range", "low": "2021-01-01"}, "taken >= '2021-01-01'"),
    ({"column": "at", "op": "range", "low": "2020-01-02 00:00:00", "high": "2020-01-03T12:00:00"},
     "\"at\" BETWEEN '2020-01-02' AND '2020-01-03 12:00:00'"),
    ({"column": "zoned", "op": "range", "high": "2020-02-01 00:00:00+00"},
     "zoned <= '2020-02-01 00:00:00+00'"),
    ({"column": "camera", "op": "range", "low": "camera 3", "high": "camera 4"},
     "camera BETWEEN 'camera 3' AND 'camera 4'"),
    ({"column": "uri", "op": "contains", "text": "img 12"}, "uri ILIKE '%img 12%'"),
    ({"column": "select", "op": "contains", "text": "ÜNÏ"}, "true"),
    ({"column": "camera", "op": "contains", "text": "%"}, "false"),
    ({"column": "camera", "op": "contains", "text": "A 1", "negate": True},
     "camera IS DISTINCT FROM 'camera 1'"),
    ({"column": QUOTED, "op": "contains", "text": "77"}, "size::VARCHAR LIKE '%77%'"),
    ({"column": "camera", "op": "missing"}, "camera IS NULL"),
    ({"column": "colour", "op": "missing", "negate": True}, "colour IS NOT NULL"),
    ({"column": "nothing", "op": "missing"}, "true"),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "truth"), FILTERS, ids=[truth for _, truth in FILTERS])
def test_filters(api: Api, refined: Any, chosen: dict[str, Any], truth: str) -> None:
    everything = api.ids(refined["view"])
    size = QUOTED.replace('"', '""')
    passing = set(api.sql(
        f'SELECT id FROM (SELECT *, "{size}" AS size FROM photos) WHERE {truth}'
    ))  # fmt: skip
    result = api.arrange(refined["view"], filters=[chosen])
    assert api.same(result) == [id_ for id_ in everything if id_ in passing]
    assert result["unfiltered"] == len(everything)
    asked = {"query": {"images": [{"id": 30}]}, "k": 30, "filters": [chosen]}
    nearest = api.collection().knn(like=30, k=30, ids=sorted(passing))["id"].to_pylist()
    assert api.same(api.search(asked)) == nearest


def test_several_filters_hold_together(api: Api, refined: Any) -> None:
    filters = [FILTERS[0][0], FILTERS[15][0], in_("format", "raw")]
    result = api.refine(positives=POSITIVES, negatives=NEGATIVES, filters=filters,
                        sort={"by": QUOTED})  # fmt: skip
    parts = [set(api.ids(api.arrange(refined["view"], filters=[one])["view"])) for one in filters]
    assert set(api.same(result)) == set.intersection(*parts)


@pytest.mark.parametrize(
    "chosen",
    [
        in_("nope", 1),
        in_(QUOTED, "no number"),
        in_(QUOTED, True),
        in_("colour", "true"),
        in_("camera", 3),
        in_("taken", "no date"),
        in_("taken", 20210101),
        in_("serial", str(10**40)),
        {"column": "taken", "op": "range", "low": "2021-99-99"},
        {"column": "zoned", "op": "range", "low": "yesterday"},
        {"column": "colour", "op": "range", "low": "x"},
    ],
)
def test_filters_that_do_not_fit(api: Api, refined: Any, chosen: dict[str, Any]) -> None:
    error = api.arrange(refined["view"], 400, filters=[chosen])["error"]
    assert error["kind"] == "input"
    assert "Traceback" not in error["message"]
    api.search({"query": {"images": [{"id": 30}]}, "filters": [chosen]}, status=400)


@pytest.mark.parametrize(
    "chosen",
    [
        {"column": "camera", "op": "in"},
        {"column": "camera", "op": "range"},
        {"column": "camera", "op": "contains"},
        {"column": "camera", "op": "contains", "text": ""},
        {"column": "camera", "op": "like", "text": "x"},
        {"column": "", "op": "missing"},
        {"column": "a\0b", "op": "missing"},
        {"column": "camera", "op": "in", "values": [None]},
        {"column": "camera", "op": "in", "values": [["a"]]},
        {"column": "camera", "op": "in", "values": ["a\0b"]},
        {"column": "camera", "op": "in", "values": ["a"], "nor": 1},
    ],
)
def test_filters_that_are_none(api: Api, refined: Any, chosen: dict[str, Any]) -> None:
    api.arrange(refined["view"], 422, filters=[chosen])


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "column",
    ["camera", QUOTED, "taken", "at", "zoned", "colour", "rating", "price", "serial", "format",
     "tags", "select", "nothing", "uri", "bytes", "id"],
)  # fmt: skip
def test_sorts(api: Api, refined: Any, column: str, descending: bool) -> None:
    result = api.arrange(refined["view"], sort={"by": column, "descending": descending})
    ids = api.same(result)
    ranks = {id_: rank for rank, id_ in enumerate(api.ids(refined["view"]))}
    assert sorted(ids) == sorted(ranks)
    cur = api.library.con.cursor()
    name = '"' + column.replace('"', '""') + '"'
    # DuckDB's own order of the values, as groups of equal ones; then by rank.
    groups = dict(cur.execute(
        f"SELECT id, CASE WHEN {name} IS NULL THEN 1e9 ELSE dense_rank() OVER (ORDER BY {name} "
        f"{'DESC' if descending else 'ASC'} NULLS LAST) END FROM photos"
    ).fetchall())  # fmt: skip
    assert ids == sorted(ranks, key=lambda id_: (groups[id_], ranks[id_]))


def test_metadata_that_has_an_id_twice(tmp_path: Path) -> None:
    with boxwood.connect(tmp_path / "twice.duckdb") as con:
        con.execute("CREATE TABLE t AS SELECT range % 100 AS id, range AS n FROM range(200)")
        Collection.create(con, "t", table="t").append(np.arange(100), codes=clustered_codes(100))
    with serving(tmp_path / "twice.duckdb") as client:
        api = Api(client)
        result = api.refine("t", positives=[1, 2, 3], sort={"by": "n", "descending": True})
        ids = api.ids(result["view"])
        assert len(ids) == len(set(ids)) == result["unfiltered"]
        assert ids == sorted(ids, reverse=True)
        assert api.ids(api.arrange(result["view"])["view"])[0] in ids
        # Their SQL gives each once too, and where its best row under the sort stands.
        assert api.same(result) == ids
        half = {"column": "n", "op": "range", "high": 150}
        for arrangement in (
            {}, {"sort": {"by": "n"}}, {"filters": [half]},
            {"filters": [half], "sort": {"by": "n", "descending": True}},
        ):  # fmt: skip
            arranged = api.arrange(result["view"], **arrangement)
            api.same(arranged)
            api.same(api.post(f"/views/{arranged['view']}/border", {"limit": 20}))


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", [
    {}, {"sort": {"by": "camera"}}, {"filters": [in_("format", "raw")]},
    {"sort": {"by": "rank", "descending": True}},
])  # fmt: skip
def test_pages_cover_everything_once(api: Api, refined: Any, arrangement: Any) -> None:
    result = api.arrange(refined["view"], **arrangement)
    items = api.all(result["view"], limit=97)
    assert [item["rank"] for item in items] == list(range(result["total"]))
    assert len({item["id"] for item in items}) == result["total"]
    assert items[:120] == result["items"]
    for start in (0, 5, 117, result["total"] - 1):
        page = api.get(f"/views/{result['view']}/items", start=start, limit=10)
        assert page["items"] == items[start : start + 10]
    after = api.get(f"/views/{result['view']}/items", after=result["next"], limit=10)
    assert after["items"] == items[120:130]
    beyond = api.get(f"/views/{result['view']}/items", start=result["total"])
    assert beyond == {"items": [], "next": None, "total": result["total"]}
    assert api.get(f"/views/{result['view']}/items", start=2**53)["items"] == []


def test_a_key_finds_its_image_in_another_order(api: Api, refined: Any) -> None:
    key = refined["next"]
    last = refined["items"][-1]
    other = api.arrange(refined["view"], sort={"by": "taken"})
    ids = api.ids(other["view"])
    page = api.get(f"/views/{other['view']}/items", after=key, limit=1)
    place = ids.index(int(last["id"]))
    assert [item["rank"] for item in page["items"]] == [place + 1][: len(ids) - place - 1]


@pytest.mark.parametrize("parameters", [
    {"start": -1}, {"limit": 0}, {"start": "x"}, {"limit": 10**9}, {"start": 2**60},
])  # fmt: skip
def test_bad_pages(api: Api, refined: Any, parameters: Any) -> None:
    api.get(f"/views/{refined['view']}/items", 422, **parameters)


@pytest.mark.parametrize("key", ["x", "1", "1.", "-1.5", "1.5.6", "1e3.5"])
def test_keys_that_are_none(api: Api, refined: Any, key: str) -> None:
    api.get(f"/views/{refined['view']}/items", 400, after=key)


def test_a_view_once_more(api: Api, refined: Any) -> None:
    again = api.get(f"/views/{refined['view']}")
    assert {**again, "stats": None} == {**refined, "stats": None}


def test_views_that_are_gone(api: Api) -> None:
    for path in ("", "/items", "/facets", "/why/30"):
        assert api.get(f"/views/nope{path}", 404)["error"]["kind"] == "gone"
    for path in ("/arrange", "/border"):
        assert api.post(f"/views/nope{path}", {}, 404)["error"]["kind"] == "gone"
    api.get("/views/" + "x" * 65, 422)


def test_views_make_room_by_bytes() -> None:
    def view(rows: int, base: Base | None = None) -> View:
        base = base or Base("c", "search", np.arange(rows), np.zeros(rows), None, "", (), Stats())
        number = f"{next(names)}"
        return View(number, base, base, [], None, None, None, None, "", uuid4())

    names = iter(range(100))
    views = Views(100_000)
    first, second = view(2500), view(2500)
    views.add(first)
    views.add(second)
    assert views.kept("0") is first  # and so the second is the older one
    shared = [view(0, first.base) for _ in range(20)]
    for one in shared:
        views.add(one)  # their base is there already
    assert views.kept("1") is second
    assert views.kept("21") is shared[-1]
    views.add(view(4000))
    with pytest.raises(Refusal, match="search again"):
        views.kept("0")
    huge = view(10**6)
    views.add(huge)
    assert views.kept(huge.name) is huge  # the latest is kept whatever it takes
    with pytest.raises(Refusal):
        views.kept("1")


# --- facets ---------------------------------------------------------------------------------------


def test_facets_are_counts(api: Api, refined: Any) -> None:
    found = {one["column"]: one for one in api.get(f"/views/{refined['view']}/facets")["facets"]}
    ids = api.ids(refined["view"])
    cur = api.library.con.cursor()
    listed = ", ".join(map(str, ids))
    rows = cur.execute(
        f"SELECT * REPLACE (zoned::VARCHAR AS zoned) FROM photos WHERE id IN ({listed})"
    )
    names = [about[0] for about in rows.description or []]
    columns = dict(zip(names, zip(*rows.fetchall(), strict=True), strict=True))
    assert "uri" not in found
    assert "tags" not in found
    assert "nothing" not in found
    for column in ("camera", "colour", "format", "select"):
        facet = found[column]
        counts = {entry["value"]: entry["count"] for entry in facet["values"]}
        assert counts == {
            value: columns[column].count(value) for value in set(columns[column]) - {None}
        }
        assert facet["missing"] == columns[column].count(None)
        assert facet["other"] == 0
        ordered = [entry["count"] for entry in facet["values"]]
        assert ordered == sorted(ordered, reverse=True)
    for column in (QUOTED, "serial"):
        facet = found[column]
        assert 1 < len(facet["bins"]) <= 20
        for entry in facet["bins"]:
            low, high = int(entry["low"]), int(entry["high"])
            assert entry["count"] == sum(low <= value <= high for value in columns[column])
        assert sum(entry["count"] for entry in facet["bins"]) == len(ids)
    rating = found["rating"]
    assert rating["missing"] == sum(not np.isfinite(value) for value in columns["rating"]) > 0
    assert sum(entry["count"] for entry in rating["bins"]) == len(ids) - rating["missing"]
    for entry in rating["bins"][:-1]:
        low, high = entry["low"], entry["high"]
        assert entry["count"] == sum(low <= value < high for value in columns["rating"])


@pytest.mark.parametrize("column", [QUOTED, "serial", "taken", "at", "zoned"])
def test_a_bin_is_a_filter(api: Api, refined: Any, column: str) -> None:
    facets = api.get(f"/views/{refined['view']}/facets")["facets"]
    [facet] = [one for one in facets if one["column"] == column]
    assert sum(entry["count"] for entry in facet["bins"]) == refined["total"]
    for entry in facet["bins"][::4]:
        chosen = {"column": column, "op": "range", "low": entry["low"], "high": entry["high"]}
        assert api.arrange(refined["view"], filters=[chosen])["total"] == entry["count"]


def test_facets_under_the_filters_of_the_others(api: Api, refined: Any) -> None:
    filters = [in_("camera", "camera 1"), in_("format", "raw")]
    result = api.arrange(refined["view"], filters=filters)
    found = {one["column"]: one for one in api.get(f"/views/{result['view']}/facets")["facets"]}
    for own, other in ((0, 1), (1, 0)):
        name = filters[own]["column"]
        for entry in found[name]["values"]:
            chosen = [filters[other], in_(name, entry["value"])]
            assert api.arrange(refined["view"], filters=chosen)["total"] == entry["count"]
    assert sum(entry["count"] for entry in found[QUOTED]["bins"]) == result["total"]


def test_facets_of_a_search(api: Api) -> None:
    body = {"query": {"images": [{"id": 30}]}, "k": 50, "filters": [in_("camera", "camera 1")]}
    result = api.search(body)
    found = {one["column"]: one for one in api.get(f"/views/{result['view']}/facets")["facets"]}
    assert sum(entry["count"] for entry in found["format"]["values"]) == 50
    ids = set(api.collection().knn(like=30, k=50)["id"].to_pylist())
    truth = api.sql(f"SELECT count(*) FROM photos WHERE id IN {tuple(ids)} AND camera = 'camera 2'")
    counts = {entry["value"]: entry["count"] for entry in found["camera"]["values"]}
    assert counts.get("camera 2", 0) == truth[0]


def test_facet_limits(api: Api, refined: Any) -> None:
    facets = api.get(f"/views/{refined['view']}/facets", limit=2)["facets"]
    [camera] = [one for one in facets if one["column"] == "camera"]
    assert len(camera["values"]) == 2
    total = sum(entry["count"] for entry in camera["values"]) + camera["other"] + camera["missing"]
    assert total == refined["total"]
    api.get(f"/views/{refined['view']}/facets", 422, limit=0)


@pytest.mark.parametrize("values", [
    [1e308, -1e308], [5.0, 5.0], [5e-324, 0.0], [0.0, 1e-300], [float("nan"), float("inf")],
])  # fmt: skip
def test_facets_of_odd_numbers(tmp_path: Path, values: list[float]) -> None:
    with boxwood.connect(tmp_path / "odd.duckdb") as con:
        Collection.create(con, "odd").append(
            np.arange(20), codes=clustered_codes(20), metadata={"x": (values * 10)}
        )
    with serving(tmp_path / "odd.duckdb") as client:
        api = Api(client)
        result = api.search({"query": {"images": [{"id": 1}]}}, "odd")
        [facet] = api.get(f"/views/{result['view']}/facets")["facets"]
        assert sum(entry["count"] for entry in facet["bins"]) + facet["missing"] == 20
        assert facet["missing"] == 10 * sum(not np.isfinite(value) for value in values)


def test_facets_of_odd_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Dates may be further away than microseconds can tell, and one column that cannot be counted
    does not take the others with it."""
    with boxwood.connect(tmp_path / "odd.duckdb") as con:
        con.execute(
            "CREATE TABLE odd AS SELECT range AS id, range % 3 AS n, CASE range % 4 WHEN 0 "
            "THEN DATE '5881580-07-10' WHEN 1 THEN DATE '1969-12-31' WHEN 2 THEN DATE 'infinity' "
            "END AS day FROM range(20)"
        )
        Collection.create(con, "odd", table="odd").append(np.arange(20), codes=clustered_codes(20))
    with serving(tmp_path / "odd.duckdb") as client:
        api = Api(client)
        result = api.search({"query": {"images": [{"id": 1}]}}, "odd")
        day = {facet["column"]: facet for facet in api.get(f"/views/{result['view']}/facets")[
            "facets"]}["day"]  # fmt: skip
        assert day["missing"] == 10
        assert (day["bins"][0]["low"], day["bins"][0]["count"]) == ("1969-12-31", 5)
        assert (day["bins"][-1]["high"], day["bins"][-1]["count"]) == ("5881580-07-10", 5)

        def broken(*_: Any) -> None:
            raise duckdb.ConversionException("too late")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("boxwood.serve.views._times", broken)
            left = api.get(f"/views/{result['view']}/facets")["facets"]
        assert [facet["column"] for facet in left] == ["n"]
        assert "'day' cannot be counted: too late" in caplog.text


# --- the border -----------------------------------------------------------------------------------


def test_the_border_of_a_score(api: Api, refined: Any) -> None:
    result = api.post(f"/views/{refined['view']}/border", {"limit": 40})
    assert result["kind"] == "border"
    assert result["model"]
    items = result["items"]
    assert sum(item["inside"] for item in items) == 20 == sum(not item["inside"] for item in items)
    truth = api.collection().refine(POSITIVES, NEGATIVES)
    document = json.loads(truth.model.to_json())
    cut = document["score"]["threshold"] / 2 ** document["score"]["shift"]
    # Every row's score, by the model row by row.
    ids = np.arange(ROWS) * 3
    scores = truth.model.scores(api.collection().codes(ids)[0])
    order = np.lexsort((ids, np.abs(scores - cut)))
    inside = scores >= cut
    expected = [*ids[order[inside[order]][:20]], *ids[order[~inside[order]][:20]]]
    assert sorted(item["id"] for item in items) == sorted(expected)
    away = [abs(item["value"] - cut) for item in items]
    assert away == sorted(away)
    assert all(item["inside"] == (item["value"] >= cut) for item in items)
    api.same(result)


def test_the_border_under_filters_and_its_arrangements(api: Api, refined: Any) -> None:
    narrow = api.arrange(refined["view"], filters=[in_("camera", "camera 1")])
    result = api.post(f"/views/{narrow['view']}/border", {"limit": 30})
    ids = api.same(result)
    assert set(ids) <= set(api.sql("SELECT id FROM photos WHERE camera = 'camera 1'"))
    assert sum(item["inside"] for item in result["items"]) == 15 == len(ids) // 2
    sorted_ = api.arrange(result["view"], sort={"by": "taken"}, filters=[in_("format", "raw")])
    assert set(api.same(sorted_)) < set(ids)
    api.same(api.arrange(result["view"], sort={"by": "rank", "descending": True}))
    api.get(f"/views/{result['view']}/why/{ids[0]}")


def test_the_border_of_votes(api: Api) -> None:
    view = api.refine(positives=POSITIVES, negatives=NEGATIVES, learner="ensemble", estimators=9)
    result = api.post(f"/views/{view['view']}/border", {"limit": 20})
    items = api.all(result["view"])
    model = api.collection().train(POSITIVES, NEGATIVES, learner="ensemble", estimators=9)
    needed = model.threshold
    for item in items:
        assert item["votes"] >= needed if item["inside"] else item["votes"] == needed - 1
    inside = [item["value"] for item in items if item["inside"]]
    outside = [item["value"] for item in items if not item["inside"]]
    assert inside == sorted(inside)
    assert outside == sorted(outside, reverse=True)
    assert len(inside) == 10
    assert outside
    assert inside[0] == api.all(view["view"])[-1]["value"]
    api.same(result)


@pytest.mark.parametrize("options", [
    {"learner": "branch"}, {"learner": "tree"}, {"boxes": 6}, {"positives": [0]},
    {"positives": list(range(0, 3000, 9)), "negatives": []},
])  # fmt: skip
def test_borders_of_other_models(api: Api, options: dict[str, Any]) -> None:
    if options.get("learner") == "tree":
        pytest.importorskip("sklearn")
    view = api.refine(**{"positives": POSITIVES, "negatives": NEGATIVES, **options})
    result = api.post(f"/views/{view['view']}/border", {"limit": 21})
    matched = set(api.ids(view["view"]))
    for item in api.all(result["view"]):
        assert item["inside"] == (item["id"] in matched)
    assert result["total"]
    api.same(result)


def test_the_border_of_a_fine_score(api: Api) -> None:
    view = api.refine("embedded", positives=[1, 2, 3, 14], negatives=[4], rerank=True)
    result = api.post(f"/views/{view['view']}/border", {})
    matched = set(api.ids(view["view"]))
    assert all(item["inside"] == (item["id"] in matched) for item in api.all(result["view"]))
    api.same(result)
    why = api.get(f"/views/{view['view']}/why/{result['items'][0]['id']}")
    assert "fine code" in why["sentences"][0]
    assert why["inside"] == result["items"][0]["inside"]


def test_a_search_has_no_border(api: Api) -> None:
    view = api.search({"query": {"images": [{"id": 30}]}})["view"]
    error = api.post(f"/views/{view}/border", {}, 400)["error"]
    assert "refine first" in error["message"]
    api.post(f"/views/{view}/border", {"limit": 1}, 422)


# --- reasons --------------------------------------------------------------------------------------


def test_why_by_a_score(api: Api, refined: Any) -> None:
    model = api.collection().train(POSITIVES, NEGATIVES)
    document = json.loads(model.to_json())
    cut = document["score"]["threshold"] / 2 ** document["score"]["shift"]
    matched = set(api.ids(refined["view"]))
    codes, _ = api.collection().codes(np.arange(ROWS) * 3)
    scores = model.scores(codes)
    middle = {n: scores[n] for n in (0, 1, 20, 777, 2999)}
    for row, score in middle.items():
        why = api.get(f"/views/{refined['view']}/why/{row * 3}")
        assert why["score"] == score
        assert why["threshold"] == cut
        assert why["inside"] == (row * 3 in matched)
        assert f"{score:.3g} where {cut:.3g} is needed" in why["sentences"][0]
        parts = [dim["part"] for dim in why["dims"]]
        assert 0 < len(parts) <= 8
        assert [abs(part) for part in parts] == sorted(map(abs, parts), reverse=True)
        assert all(dim["code"] == codes[row][dim["dim"]] for dim in why["dims"])
        for marks, name in ((POSITIVES, "nearest_positives"), (NEGATIVES, "nearest_negatives")):
            away = np.linalg.norm(
                codes[np.array(marks) // 3].astype(float) - codes[row].astype(float), axis=1
            )
            order = np.argsort(away, kind="stable")[:3]
            assert [near["id"] for near in why[name]] == [marks[n] for n in order]
            assert [near["distance"] for near in why[name]] == pytest.approx(away[order])
    assert "You marked it as right." in api.get(f"/views/{refined['view']}/why/60")["sentences"]
    assert "You marked it as wrong." in api.get(f"/views/{refined['view']}/why/9")["sentences"]
    api.get(f"/views/{refined['view']}/why/31", 404)
    api.get(f"/views/{refined['view']}/why/x", 422)


def test_what_dimensions_add_comes_to_the_score(api: Api) -> None:
    """With few dimensions in the model all parts are shown, and their sum is known."""
    from boxwood.serve.queries import _parts

    linear, square = [0] * 32, [0] * 32
    linear[3], square[3], linear[7] = 40, -2, -5
    document = {"score": {"terms": [{"linear": linear, "square": square, "constant": 11}],
                          "votes": 0, "shift": 2, "threshold": 0}}  # fmt: skip
    code = np.full(32, 100, np.uint8)
    parts = {dim.dim: dim.part for dim in _parts(document, code)}
    by_hand = {3: ((40 - 200) * 100 - (40 - 255) * 127.5) / 4, 7: -5 * (100 - 127.5) / 4}
    assert parts == by_hand


def test_why_by_boxes(api: Api) -> None:
    view = api.refine(positives=POSITIVES, negatives=NEGATIVES, learner="ensemble", estimators=9)
    model = api.collection().train(POSITIVES, NEGATIVES, learner="ensemble", estimators=9)
    matched = api.ids(view["view"])
    for id_ in (*matched[:3], *matched[-3:], 3, 999):
        why = api.get(f"/views/{view['view']}/why/{id_}")
        code = api.collection().codes([id_])[0]
        assert why["votes"] == model.votes(code)[0]
        assert why["votes_needed"] == model.threshold
        assert why["inside"] == model.matches(code)[0]
        assert len(why["boxes"]) == min(2, why["votes"])
        for box in why["boxes"]:
            assert box["ranges"]
            assert all(
                one["low"] <= one["code"] == code[0][one["dim"]] <= one["high"]
                for one in box["ranges"]
            )
        assert any(f"{why['votes']} of 9" in sentence for sentence in why["sentences"])


def test_why_of_a_search(api: Api) -> None:
    view = api.search({"query": {"images": [{"id": 30}]}})
    third = view["items"][2]
    why = api.get(f"/views/{view['view']}/why/{third['id']}")
    assert why["inside"]
    assert "number 3 of the nearest" in why["sentences"][1]
    assert why["score"] is None
    assert why["boxes"] == []
    far = api.get(f"/views/{view['view']}/why/900")
    assert far["inside"] == (900 in api.ids(view["view"]))


# --- images ---------------------------------------------------------------------------------------


def test_what_is_known_of_an_image(api: Api) -> None:
    about = api.get("/collections/photos/images/21")  # row 7: rating is no number
    known = about["metadata"]
    assert about["title"] == "IMG 7.jpg"
    assert about["uri"].endswith("IMG 7.jpg")
    assert known["camera"] == "camera 0"
    assert known[QUOTED] == 259
    assert known["colour"] is False
    assert known["rating"] == "nan"
    assert known["serial"] == str(2**53 + 7)
    assert known["tags"] == "[7, 8]"
    assert known["bytes"] == "3 bytes"
    assert known["nothing"] is None
    assert known["price"] == "1.00"
    assert known["format"] == "jpeg"
    assert known["zoned"].startswith("2020-01-01")
    assert known["taken"] == "2020-04-01"
    assert not about["picture"]["available"]
    assert about["picture"]["reason"]
    api.get("/collections/photos/images/22", 404)
    api.get("/collections/photos/images/-1", 422)
    api.get("/collections/photos/images/" + str(2**63), 422)
    api.get("/collections/nope/images/1", 404)


# --- words and pictures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A collection of pictures with the small encoder that comes with Boxwood."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.write(folder / "pictures", 150, seed=5)
    with boxwood.connect(folder / "drawn.duckdb") as con:
        collection = Collection.create(con, "drawn", encoder=boxwood.TINY)
        collection.add_images(folder / "pictures")
    with serving(folder / "drawn.duckdb") as client:
        api = Api(client)
        api.folder = folder / "pictures"  # type: ignore[attr-defined]
        yield api


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ({"texts": [{"words": "a red circle"}]}, {"text": "a red circle"}),
        ({"texts": [{"words": "circle", "weight": 2}, {"words": "a star", "weight": -0.5}]},
         {"text": ["circle", "a star"], "weights": [2, -0.5]}),
        ({"texts": [{"words": "circle", "weight": -1}]}, {"text": "circle", "weights": [-1]}),
        ({"texts": [{"words": "circle"}], "template": "a photo of {}"},
         {"text": "circle", "template": "a photo of {}"}),
        ({"texts": [{"words": "it's / a \"test\" ünïcode 🐆 -- ; {}\n<b>"}]},
         {"text": "it's / a \"test\" ünïcode 🐆 -- ; {}\n<b>"}),
    ],
)  # fmt: skip
def test_search_by_words(drawn: Api, query: Any, options: Any) -> None:
    result = drawn.search({"query": query, "k": 30}, "drawn")
    truth = drawn.collection("drawn").search_text(k=30, **options)
    assert drawn.same(result) == truth["id"].to_pylist()
    assert result["items"][0]["title"].startswith("scene_")
    filtered = drawn.search(
        {"query": query, "k": 30,
         "filters": [{"column": "uri", "op": "contains", "text": ".jpg"}]}, "drawn",
    )  # fmt: skip
    assert len(drawn.same(filtered)) == 30
    refined = drawn.refine("drawn", query=query, negatives=[3])
    collection = drawn.collection("drawn")
    expected = collection.refine([], [3], query=collection.encode(**options))
    assert drawn.same(refined) == expected.ids.tolist()


def test_search_by_an_upload(drawn: Api) -> None:
    from PIL import Image

    path = drawn.folder / "scene_000001.png"  # type: ignore[attr-defined]
    answer = drawn.client.post(
        "/api/uploads", content=path.read_bytes(), headers={"Content-Type": "image/png"}
    )
    assert answer.status_code == 201
    upload = answer.json()["upload"]
    result = drawn.search({"query": {"images": [{"upload": upload}]}, "k": 5}, "drawn")
    drawn.same(result)
    pictures = drawn.client.app.state.pictures  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(pictures.upload(upload))) as image:
        truth = drawn.collection("drawn").search_image(image.convert("RGB"), k=5)
    assert drawn.ids(result["view"]) == truth["id"].to_pylist()
    assert result["items"][0]["title"] == "scene_000001.png"
    mixed = drawn.search(
        {"query": {"images": [{"upload": upload}, {"id": 3}],
                   "texts": [{"words": "red", "weight": -0.3}]}}, "drawn",
    )  # fmt: skip
    drawn.same(mixed)
    drawn.same(drawn.refine("drawn", query={"images": [{"upload": upload}]}, negatives=[0]))


def test_a_picture_that_can_be_shown(drawn: Api) -> None:
    about = drawn.get("/collections/drawn/images/1")
    assert about["picture"]["available"]
    assert about["picture"]["width"] > 0
    assert drawn.get("/collections")[0]["words"]


def test_bad_words(drawn: Api) -> None:
    for query in ({"texts": [{"words": "a"}], "template": "no place"},
                  {"texts": [{"words": "a"}, {"words": "a", "weight": -1}]}):  # fmt: skip
        assert drawn.search({"query": query}, "drawn", 400)["error"]["kind"] == "input"


def test_search_within_a_concept(drawn: Api) -> None:
    red = {"texts": [{"words": "red"}]}
    view = drawn.refine("drawn", positives=[1, 4], negatives=[3], query=red)
    saved = drawn.client.post(
        "/api/collections/drawn/concepts",
        json={"name": "red_ones", "view": view["view"], "positives": [1, 4], "negatives": [3]},
    )
    assert saved.status_code == 200, saved.text
    query = {"texts": [{"words": "a star"}], "concept": "red_ones"}
    result = drawn.search({"query": query, "k": 12}, "drawn")
    collection = drawn.collection("drawn")
    model = collection.concept("red_ones").model
    truth = collection.search_text("a star", 12, within=model)["id"].to_pylist()
    assert drawn.same(result) == truth
    filtered = drawn.arrange(
        result["view"], filters=[{"column": "uri", "op": "contains", "text": ".jpg"}]
    )
    assert set(drawn.same(filtered)) <= set(drawn.ids(view["view"]))
    drawn.search({"query": {"texts": [{"words": "x"}], "concept": "nope"}}, "drawn", 404)
    drawn.refine("drawn", query=query, status=400)


# --- changes under the server's feet --------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Api]:
    with boxwood.connect(tmp_path / "small.duckdb") as con:
        Collection.create(con, "small").append(
            np.arange(400), codes=clustered_codes(400), metadata={"n": np.arange(400)}
        )
    with serving(tmp_path / "small.duckdb") as client:
        yield Api(client)


def test_rows_that_come_and_go(small: Api) -> None:
    before = small.refine("small", positives=[1, 2], negatives=[3])
    first = small.ids(before["view"])
    collection = small.collection("small")
    collection.delete(first[:5])
    assert small.ids(before["view"]) == first  # a view stays as it was
    assert small.get(f"/views/{before['view']}/items")["items"][0]["title"] == str(first[0])
    small.arrange(before["view"], sort={"by": "n"})
    codes, _ = collection.codes([first[6]])
    collection.append([9000], codes=codes, metadata={"n": [1]})
    positives = [first[6], first[7]]
    after = small.refine("small", positives=positives, previous=before["view"])
    ids = small.same(after)
    assert 9000 in ids
    assert not set(first[:5]) & set(ids)
    # Marks that are gone are passed over in reasons.
    collection.delete([positives[1]])
    why = small.get(f"/views/{after['view']}/why/9000")
    assert [near["id"] for near in why["nearest_positives"]] == positives[:1]


def test_a_collection_that_is_dropped_and_made_anew(small: Api) -> None:
    view = small.refine("small", positives=[1, 2])["view"]
    small.collection("small").drop()
    assert small.refine("small", positives=[1], status=404)["error"]["kind"] == "collection"
    small.get(f"/views/{view}/items", 404)
    small.arrange(view, 404, sort={"by": "n"})
    con = small.library.con.cursor()
    Collection.create(con, "small").append(np.arange(50) + 1000, codes=clustered_codes(50))
    ids = small.ids(small.refine("small", positives=[1001])["view"])
    assert 1001 in ids
    assert min(ids) >= 1000


def test_views_do_not_outlive_their_collection(small: Api) -> None:
    """Also where another one has its name and its ids."""
    old = small.refine("small", positives=[1, 2])["view"]
    small.collection("small").drop()
    Collection.create(small.library.con.cursor(), "small").append(
        np.arange(400), codes=clustered_codes(400), metadata={"n": np.arange(400)}
    )
    for path in ("", "/items", "/facets", "/why/3"):
        assert small.get(f"/views/{old}{path}", 404)["error"]["kind"] == "gone"
    for path, body in (
        (f"/views/{old}/arrange", {}), (f"/views/{old}/border", {}),
        (f"/views/{old}/exports", {"format": "csv"}),
        ("/collections/small/concepts", {"name": "kept", "view": old}),
    ):  # fmt: skip
        assert small.post(path, body, 404)["error"]["kind"] == "gone"
    assert small.get("/collections/small/concepts") == []
    assert small.refine("small", positives=[1, 2], previous=old)["changes"] is None


def test_pictures_go_with_their_rows(small: Api, tmp_path: Path) -> None:
    """Where a picture lies is remembered for a moment, but not beyond its row or collection."""
    from PIL import Image

    def make(name: str) -> Collection:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        made = Collection.create(small.library.con.cursor(), "shown")
        uris = [str(tmp_path / name)] * 4
        made.append(np.arange(4), codes=clustered_codes(4), metadata={"uri": uris})
        return made

    def statuses(number: int) -> list[int]:
        path = f"/api/collections/shown/images/{number}/"
        return [small.client.get(path + kind).status_code
                for kind in ("thumbnail", "picture", "original")]  # fmt: skip

    collection = make("a.png")
    query = {"query": {"images": [{"id": 0}]}}
    small.search(query, "shown")  # the page that its pictures are asked for after
    assert statuses(1) == statuses(2) == [200] * 3
    collection.delete([1])
    small.library.con.cursor().execute("DELETE FROM shown WHERE id = 2")
    assert statuses(1) == statuses(2) == [404] * 3
    assert statuses(3) == [200] * 3
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    small.library.con.cursor().execute("UPDATE shown SET uri = replace(uri, 'a.png', 'b.png')")
    answer = small.client.get("/api/collections/shown/images/3/original")
    assert "b.png" in answer.headers["content-disposition"]
    collection.drop()
    assert statuses(3) == [404] * 3
    make("c.png")
    record = RequestCursor(small.library).record("shown")
    assert small.library.recalled(record.uuid, 3) is None


def test_marks_of_images_that_are_gone(small: Api) -> None:
    """They are left out, and said to be, so that one can go on."""
    small.collection("small").delete([1, 3])
    small.library.con.cursor().execute("DELETE FROM small WHERE id = 4")
    left = small.refine("small", positives=[1, 2], negatives=[3, 4, 5])
    words = "3 marks are of images that are not in the collection any more: left out"
    assert left["note"].endswith(words)
    same = small.refine("small", positives=[2], negatives=[5])
    assert same["note"] == left["note"].removesuffix(words).removesuffix("; ")
    assert small.ids(left["view"]) == small.ids(same["view"])
    assert left["stats"]["positives"] == 1
    query = {"images": [{"id": 2}]}
    assert (
        "1 mark is of an image that is not"
        in small.refine("small", positives=[1], query=query)["note"]
    )
    error = small.refine("small", positives=[1], negatives=[5], status=400)["error"]
    assert "not in the collection" in error["message"]
    error = small.refine("small", positives=[1, 2], negatives=[2], status=400)["error"]
    assert "both positive and negative" in error["message"]


def test_a_column_that_is_dropped(small: Api) -> None:
    view = small.refine("small", positives=[1, 2])["view"]
    small.library.con.cursor().execute("ALTER TABLE small RENAME COLUMN n TO m")
    small.arrange(view, 400, sort={"by": "n"})
    assert small.get(f"/views/{view}/facets")["facets"][0]["column"] == "m"


def test_a_metadata_table_that_is_dropped(small: Api) -> None:
    small.library.con.cursor().execute("DROP TABLE small")
    [about] = small.get("/collections")
    assert about["state"] == "no table"
    assert about["columns"] == []
    assert "not there" in small.refine("small", positives=[1], status=400)["error"]["message"]


def test_an_index_that_is_damaged(small: Api, tmp_path: Path) -> None:
    for file in (tmp_path / "small.duckdb.boxwood").rglob("*"):
        if file.is_file():
            file.write_bytes(b"no index")
    error = small.refine("small", positives=[1], status=503)["error"]
    assert error["kind"] == "index"
    assert "repair" in error["message"]


def test_a_database_that_is_read_only(tmp_path: Path) -> None:
    database = tmp_path / "kept.duckdb"
    with boxwood.connect(database) as con:
        kept = Collection.create(con, "kept")
        kept.append(np.arange(300), codes=clustered_codes(300), metadata={"n": np.arange(300) % 3})
        truth = kept.refine([1, 2], [3]).ids.tolist()
    with serving(database, read_only=True) as client:
        api = Api(client)
        assert api.get("/info")["read_only"]
        result = api.refine("kept", positives=[1, 2], negatives=[3])
        assert api.same(result) == truth
        api.get(f"/views/{result['view']}/facets")
        api.same(api.arrange(result["view"], filters=[in_("n", 1)], sort={"by": "n"}))


def test_a_database_without_collections(tmp_path: Path) -> None:
    with serving(tmp_path / "new.duckdb") as client:
        api = Api(client)
        assert api.get("/collections") == []
        assert "no collection" in api.refine("x", positives=[1], status=404)["error"]["message"]


def test_a_database_in_memory() -> None:
    app = create_app(":memory:")
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/api/collections").json() == []


def test_a_fault_is_told_without_its_insides(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(Collection, "refine", broken)
    answer = api.client.post("/api/collections/photos/refine", json={"positives": [0]})
    assert answer.status_code == 500
    assert answer.json()["error"]["kind"] == "internal"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


# --- threads --------------------------------------------------------------------------------------


def test_many_at_once(api: Api) -> None:
    marks = [[n * 3, n * 3 + 30] for n in range(24)]
    collection = api.collection()
    truth = [collection.refine(some).ids.tolist() for some in marks]

    def one(some: list[int]) -> list[int]:
        result = api.refine(positives=some, sort={"by": "taken"})
        api.get(f"/views/{result['view']}/facets")
        return api.ids(api.arrange(result["view"])["view"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, marks)) == truth


async def _call(
    app: Any, path: str, body: bytes, leave: float | None
) -> tuple[float, list[dict[str, Any]]]:
    """A POST whose client goes away after so many seconds; what it took, and what was sent."""
    sent: list[dict[str, Any]] = []
    given = iter([{"type": "http.request", "body": body, "more_body": False}])
    begun = time.monotonic()

    async def receive() -> dict[str, Any]:
        for message in given:
            return message
        while leave is None or time.monotonic() < begun + leave:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}  # at once, as of a server that knows it

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"x-boxwood", b"1"),
               (b"content-type", b"application/json")]  # fmt: skip
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return time.monotonic() - begun, sent


def slow_query(cursor: RequestCursor) -> None:
    cursor.con.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")


def slow_collection(cursor: RequestCursor) -> None:
    with cursor.collection("photos").con.cursor() as cur:
        cur.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")


def slow_core(cursor: RequestCursor) -> None:
    from boxwood import native

    ended = threading.Event()

    def work(cancel: Any) -> None:
        while not cancel[0] and not ended.wait(0.01):
            pass

    native._interruptible(work)


@pytest.mark.parametrize("slow", [slow_query, slow_collection, slow_core])
def test_who_goes_away_stops_the_work(
    api: Api, monkeypatch: pytest.MonkeyPatch, slow: Callable[[RequestCursor], None]
) -> None:
    from boxwood.serve import queries

    monkeypatch.setattr(
        queries, "refine_base", lambda cursor, collection, asked, pictures: slow(cursor)
    )
    threads = threading.active_count()
    body = json.dumps({"positives": POSITIVES}).encode()
    app = api.client.app
    seconds, _ = asyncio.run(_call(app, "/api/collections/photos/refine", body, 0.3))
    assert seconds < 10
    assert threading.active_count() <= threads + 4
    monkeypatch.undo()
    api.refine(positives=POSITIVES)  # and the others go on


def test_work_does_not_hold_up_the_others(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from boxwood.serve import queries

    monkeypatch.setattr(
        queries, "refine_base", lambda cursor, collection, asked, pictures: slow_query(cursor)
    )

    async def both() -> float:
        body = json.dumps({"positives": POSITIVES}).encode()
        app = api.client.app
        slow = asyncio.create_task(_call(app, "/api/collections/photos/refine", body, 3.0))
        await asyncio.sleep(0.2)
        query = json.dumps({"query": {"images": [{"id": 30}]}}).encode()
        seconds, sent = await _call(app, "/api/collections/photos/search", query, None)
        assert sent[0]["status"] == 200
        assert not slow.done()
        await slow
        return seconds

    assert asyncio.run(both()) < 2.5


def test_who_goes_away_stops_a_forest(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    real = ensemble.RandomForestClassifier.fit
    grown: list[int] = []

    def fit(self: Any, *given: Any, **options: Any) -> Any:
        new = self.n_estimators - len(getattr(self, "estimators_", ()))
        grown.append(new)
        time.sleep(new * 0.02)
        return real(self, *given, **options)

    monkeypatch.setattr(ensemble.RandomForestClassifier, "fit", fit)
    body = {"positives": POSITIVES, "learner": "forest", "estimators": 600}
    seconds, _ = asyncio.run(
        _call(api.client.app, "/api/collections/photos/refine", json.dumps(body).encode(), 0.3)
    )
    assert seconds < 8
    assert 1 <= sum(grown) < 500
    assert api.library._training.borrowed_tokens == 0


def test_a_forest_that_grows_by_and_by_is_the_same(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    from boxwood import collection

    photos = Collection.open(api.library.con, "photos")
    models = []
    for rows in (1, 2_000, 10**9):
        monkeypatch.setattr(collection, "_SLICE", rows)
        models.append(
            photos.train(POSITIVES, NEGATIVES, learner="forest", estimators=11, seed=3).to_json()
        )
    assert models[0] == models[1] == models[2]
    assert len(json.loads(models[0])["estimators"]) == 11


def test_training_holds_up_nobody_and_is_dropped_where_nobody_waits(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boxwood.serve import queries

    let_go = threading.Event()
    begun: list[int] = []

    def stuck(cursor: RequestCursor, *given: Any) -> None:
        begun.append(1)
        let_go.wait(20)

    monkeypatch.setattr(queries, "refine_base", stuck)
    own = int(api.library._training.total_tokens)

    async def all_of_them() -> tuple[float, list[float]]:
        body = json.dumps({"positives": POSITIVES}).encode()
        path, app = "/api/collections/photos/refine", api.client.app
        at_work = [asyncio.create_task(_call(app, path, body, 1.5)) for _ in range(own)]
        while len(begun) < own:
            await asyncio.sleep(0.01)
        many = [asyncio.create_task(_call(app, path, body, 0.3)) for _ in range(3 * own)]
        await asyncio.sleep(0.1)
        query = json.dumps({"query": {"images": [{"id": 30}]}}).encode()
        seconds, sent = await _call(app, "/api/collections/photos/search", query, None)
        assert sent[0]["status"] == 200
        waited = [(await one)[0] for one in many]
        let_go.set()
        await asyncio.gather(*at_work)
        return seconds, waited

    try:
        seconds, waited = asyncio.run(all_of_them())
    finally:
        let_go.set()
    assert seconds < 5
    assert max(waited) < 10
    assert len(begun) == own  # the others were never begun


def test_trees_that_would_take_long_are_refused(filled: Path) -> None:
    pytest.importorskip("sklearn")
    with serving(filled, limits=replace(Limits(), tree_rows=6_000)) as client:
        api = Api(client)
        api.refine(positives=POSITIVES, learner="forest", estimators=10)
        api.refine(positives=POSITIVES, learner="tree")
        for options, words in (
            ({"learner": "forest", "estimators": 12}, "lower estimators to 11"),
            ({"learner": "forest", "random_negatives": 100_000}, "lower estimators to 1,"),
            ({"learner": "tree", "random_negatives": 100_000}, "lower random_negatives"),
        ):
            error = api.refine(positives=POSITIVES, status=400, **options)["error"]
            assert words in error["message"]
        api.refine(positives=POSITIVES, estimators=1_024)  # of the others nothing is asked


def test_the_page_is_there_for_head(api: Api) -> None:
    answer = api.client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-length"] == api.client.get("/").headers["content-length"]


def test_the_models_of_views_are_documents(api: Api, refined: Any) -> None:
    view: View = api.client.app.state.views.kept(refined["view"])  # type: ignore[attr-defined]
    assert isinstance(view.base.model, Model)
    assert Model.from_json(view.base.model.to_json()) == view.base.model
    assert view.ids.tolist() == api.ids(refined["view"])
    assert view.values.tolist() == [item["value"] for item in api.all(refined["view"])]
    assert view.votes is not None
    assert len(view.votes) == len(view)


def test_duckdb_errors_have_answers() -> None:
    from boxwood.serve.app import _told

    for error, status in (
        (duckdb.IOException("x"), 503), (duckdb.InterruptException("x"), 503),
        (duckdb.TransactionException("x"), 409), (duckdb.CatalogException("x"), 500),
        (boxwood.MissingDependency("x"), 503), (boxwood.ReadOnly("x"), 403),
        (boxwood.IndexMissing("x"), 503), (boxwood.OutOfMemory("x"), 503),
        (boxwood.Cancelled("x"), 503), (boxwood.Error("x"), 409), (ValueError("x"), 500),
    ):  # fmt: skip
        assert _told(error)[0] == status


@pytest.mark.parametrize("kinds", [1, 2, 40, 10**9])
@pytest.mark.parametrize("rows", [0, 1, 2, 5000])
def test_the_order_of_results(rows: int, kinds: int) -> None:
    from boxwood.collection import _ranking

    rng = np.random.default_rng(rows + kinds)
    ids = rng.permutation(rows).astype(np.int64)
    scores = rng.integers(-kinds, kinds, rows)
    scores[: rows // 99] = 5  # few ties among many that are none
    assert _ranking(ids, scores).tolist() == np.lexsort((ids, -scores)).tolist()
