"""The whole JSON API under requests that schemathesis makes of its own description: no answer may
be a fault of the server, and each must be what the description says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import boxwood
from boxwood import Collection
from conftest import clustered_embeddings

pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")

import schemathesis
from fastapi.testclient import TestClient
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from boxwood.serve import Limits, create_app

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip
EXAMPLES = 30  # of an operation
HEADERS = {"X-Boxwood": "1", "Host": "localhost"}


class Served:
    """An app over a small collection, and its description with what there is put in as examples:
    without these nearly every request would be about things that are not there."""

    def __init__(self, database: Path) -> None:
        with boxwood.connect(database) as con:
            collection = Collection.create(con, "photos", fine=True)
            metadata = {
                "camera": [f"camera {n % 3}" for n in range(400)], "n": np.arange(400) % 50,
                "x": np.arange(400) / 7, "uri": [f"/nowhere/{n}.jpg" for n in range(400)],
            }  # fmt: skip
            embeddings = clustered_embeddings(400)
            collection.append(np.arange(400), embeddings=embeddings, metadata=metadata)
        limits = Limits(uploads_a_minute=10**6, results=200)
        self.app = create_app(database, limits=limits)
        self.client = TestClient(self.app, base_url="http://localhost", headers=HEADERS)
        self.client.__enter__()
        self.views = [
            self.post("/collections/photos/refine", {"positives": [1, 2], "negatives": [3]}),
            self.post("/collections/photos/search", {"query": {"images": [{"id": 5}]}}),
        ]
        self.description = self.client.get("/api/openapi.json").json()
        self._name_what_is_there(self.description)

    def post(self, path: str, body: Any) -> str:
        answer = self.client.post(f"/api{path}", json=body)
        assert answer.status_code == 200, answer.text
        view: str = answer.json()["view"]
        return view

    def _name_what_is_there(self, description: dict[str, Any]) -> None:
        """Paths about collections, views and images are asked of some that there are, and of one
        that there is not."""
        there: dict[str, list[Any]] = {
            "collection": ["photos", "photos", "none"], "view": [*self.views, "none"],
            "image": [1, 2, 399, 400, 2**63 - 1],
        }  # fmt: skip
        for methods in description["paths"].values():
            for about in methods.values():
                for parameter in about.get("parameters", []) if isinstance(about, dict) else []:
                    if parameter["in"] == "path" and parameter["name"] in there:
                        parameter["schema"] = {"enum": there[parameter["name"]]}
        post = description["paths"]["/api/sessions"]["post"]["requestBody"]["content"]
        schemas = {
            **description["components"]["schemas"],
            "NewSession": post["application/json"]["schema"],
        }
        images = [{"id": 1}, {"id": "2", "weight": -0.5}, {"id": 399}, {"id": 400},
                  {"upload": "ab" * 32}]  # fmt: skip
        filters = [
            {"column": "camera", "op": "in", "values": ["camera 1", "", "'"]},
            {"column": "n", "op": "range", "low": 3, "high": "40"},
            {"column": "n", "op": "range", "low": "x"},
            {"column": "x", "op": "range", "low": -1e300, "high": 1e300, "negate": True},
            {"column": "uri", "op": "contains", "text": "1", "negate": True},
            {"column": "camera", "op": "missing"},
            {"column": "nope", "op": "missing"},
        ]
        mostly = {"type": "array", "maxItems": 3, "items": {"enum": filters}}
        for name, member, chosen in (
            (
                "Query",
                "images",
                {"type": "array", "minItems": 1, "maxItems": 3, "items": {"enum": images}},
            ),
            ("Query", "texts", {"enum": [[], [], [], [{"words": "ü / ' \""}]]}),
            ("Query", "template", {"enum": [None, None, "a {}"]}),
            ("Query", "concept", {"enum": [None, None, None, "none"]}),
            ("Sort", "by", {"enum": ["rank", "camera", "n", "x", "uri", "nope"]}),
            ("SearchRequest", "filters", mostly),
            ("RefineRequest", "filters", mostly),
            ("ArrangeRequest", "filters", mostly),
            ("RefineRequest", "positives", _some_ids(0, 200)),
            ("RefineRequest", "negatives", _some_ids(190, 410)),
            ("NewSession", "collection", {"enum": ["photos", "none"]}),
            ("NewConcept", "view", {"enum": [*self.views, "none"]}),
            ("NewConcept", "positives", _some_ids(0, 200)),
            ("NewConcept", "negatives", _some_ids(200, 400)),
        ):
            about = schemas[name]
            about["properties"][member] = chosen
            if name == "Query":
                about.setdefault("required", []).append(member)


def _some_ids(low: int, high: int) -> dict[str, Any]:
    return {"type": "array", "maxItems": 20, "items": {"anyOf": [
        {"type": "integer", "minimum": low, "maximum": high},
        {"enum": [str(low + 1), str(low + 2)]},
    ]}}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("fuzz") / "fuzz.duckdb")
    yield served
    served.client.__exit__(None, None, None)


def operations(schema: Any) -> Iterator[Any]:
    for found in schema.get_all_operations():
        operation = found.ok()
        if not operation.path.endswith("/events"):  # which go on for as long as an export does
            yield operation


def fuzz(operation: Any, app: Any, seen: Counter[int]) -> None:
    """Raises what is wrong with an answer; `seen` counts their statuses."""

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def every(case: Any) -> None:
        response = case.call(app=app, base_url="http://localhost", headers=HEADERS)
        seen[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    every()


def test_every_operation(served: Served) -> None:
    schema = schemathesis.openapi.from_dict(served.description)
    statuses: dict[str, Counter[int]] = {}
    faults: dict[str, str] = {}
    for operation in operations(schema):
        seen = statuses.setdefault(operation.label, Counter())
        try:
            fuzz(operation, served.app, seen)
        except BaseExceptionGroup as group:
            faults[operation.label] = str(group.exceptions[0])
        except Exception as error:
            faults[operation.label] = f"{type(error).__name__}: {error}"
    assert not faults, "\n\n".join(f"{label}: {fault}" for label, fault in faults.items())
    # That is worth something only where requests were understood.
    for label in (
        "POST /api/collections/{collection}/search", "POST /api/collections/{collection}/refine",
        "POST /api/views/{view}/arrange", "POST /api/views/{view}/border",
        "GET /api/views/{view}/items", "GET /api/views/{view}/facets",
        "GET /api/views/{view}/why/{image}", "GET /api/collections/{collection}/images/{image}",
        "POST /api/collections/{collection}/concepts", "POST /api/sessions", "GET /api/sessions",
        "POST /api/views/{view}/exports",
    ):  # fmt: skip
        assert any(status < 300 for status in statuses[label]), (label, statuses[label])
