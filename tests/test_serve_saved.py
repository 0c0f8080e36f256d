"""Sessions and concepts by the server's API, and the sessions' table behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import boxwood
from boxwood import Collection, sessions
from boxwood.encode import Head
from boxwood.errors import InputError
from conftest import clustered_codes, clustered_embeddings

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from boxwood.serve import create_app, saved

BIG = 2**53 + 1


@contextmanager
def serving(database: Path, **options: Any) -> Iterator[TestClient]:
    with TestClient(
        create_app(database, **options), base_url="http://localhost", headers={"X-Boxwood": "1"}
    ) as client:
        yield client


@pytest.fixture
def filled(database: Path) -> Path:
    """A database of two collections: photos, and scans with ids beyond 2^53."""
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos")
        metadata = {"camera": [f"camera {n % 7}" for n in range(2000)]}
        photos.append(np.arange(2000), codes=clustered_codes(2000), metadata=metadata)
        scans = Collection.create(con, "scans")
        scans.append(np.arange(100) + BIG, codes=clustered_codes(100, 5))
    return database


@pytest.fixture
def client(filled: Path) -> Iterator[TestClient]:
    with serving(filled) as client:
        yield client


STATE: dict[str, Any] = {
    "query": {"texts": [{"words": "a leopard – 🐆 \" ' </script>", "weight": 1.0}], "images": []},
    "typed": {"words": "a leopard\0", "but": "", "strength": 0.6, "images": []},
    "marks": [{"id": "17", "mark": "right"}, {"id": str(BIG), "mark": "wrong"},
              {"id": "3", "mark": "right"}],
    "undo": {
        "steps": [
            {"changes": [{"id": "17", "before": None, "after": "right"}], "query": None},
            {"changes": [{"id": str(BIG), "before": "right", "after": "wrong"}], "query": {"a": 1}},
        ],
        "at": 1,
    },
    "options": {"learner": "cover", "random_negatives": None, "negative_weight": 1.5, "seed": 0},
    "filters": [{"column": "camera", "op": "in", "values": ["camera 1"]}],
    "sort": {"by": "rank", "descending": False},
    "size": 180,
    "rounds": [{"at": "2026-01-02T03:04:05Z", "learner": "cover", "positives": 2, "total": 99}],
    "shown": {"act": "search"},
}  # fmt: skip


def make(client: TestClient, **members: Any) -> dict[str, Any]:
    body = {"collection": "photos", "name": "leopards", "state": STATE, **members}
    answer = client.post("/api/sessions", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def error(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()["error"]
    assert {"kind", "message"} <= told.keys()
    assert "Traceback" not in told["message"]
    return told


# --- sessions -------------------------------------------------------------------------------------


def test_round_trip(client: TestClient) -> None:
    made = make(client)
    assert made["revision"] == 1
    assert len(made["id"]) == 16
    assert set(made["id"]) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    kept = client.get(f"/api/sessions/{made['id']}").json()
    assert kept["state"] == STATE
    assert (kept["id"], kept["revision"]) == (made["id"], 1)
    assert (kept["collection"], kept["name"]) == ("photos", "leopards")
    updated = datetime.fromisoformat(kept["updated"])
    assert abs(updated - datetime.now(UTC)) < timedelta(minutes=5)

    changed = {**STATE, "marks": [], "rounds": [], "more": [1, {"a": None}]}
    answer = client.put(
        f"/api/sessions/{made['id']}", json={"revision": 1, "name": "lions", "state": changed}
    )
    assert answer.json() == {"id": made["id"], "revision": 2}
    kept = client.get(f"/api/sessions/{made['id']}").json()
    assert (kept["name"], kept["revision"], kept["state"]) == ("lions", 2, changed)

    answer = client.delete(f"/api/sessions/{made['id']}")
    assert (answer.status_code, answer.content) == (204, b"")
    for again in (
        client.get(f"/api/sessions/{made['id']}"),
        client.delete(f"/api/sessions/{made['id']}"),
        client.put(f"/api/sessions/{made['id']}", json={"revision": 2, "name": "", "state": STATE}),
    ):
        assert error(again, 404)["kind"] == "session"


def test_ids_may_be_numbers(client: TestClient) -> None:
    state = {"marks": [{"id": 17, "mark": "right"}, {"id": 2**63 - 1, "mark": "wrong"}]}
    made = make(client, state=state)
    kept = client.get(f"/api/sessions/{made['id']}").json()["state"]
    assert [mark["id"] for mark in kept["marks"]] == ["17", str(2**63 - 1)]
    assert (kept["rounds"], kept["undo"]) == ([], {"steps": [], "at": 0})


def test_listed(client: TestClient) -> None:
    assert client.get("/api/sessions").json() == []
    first, second = make(client), make(client, name="second", state={})
    other = make(client, collection="scans", name="")
    client.put(
        f"/api/sessions/{first['id']}", json={"revision": 1, "name": "first", "state": STATE}
    )
    listed = client.get("/api/sessions").json()
    assert [one["id"] for one in listed] == [first["id"], other["id"], second["id"]]
    assert {**listed[0], "updated": None} == {
        "id": first["id"], "collection": "photos", "name": "first", "updated": None, "rounds": 1,
        "positives": 2, "negatives": 1,
    }  # fmt: skip
    assert (listed[2]["rounds"], listed[2]["positives"]) == (0, 0)
    mine = client.get("/api/sessions", params={"collection": "scans"}).json()
    assert [one["id"] for one in mine] == [other["id"]]
    assert client.get("/api/sessions", params={"collection": "none"}).json() == []


def test_two_windows(client: TestClient) -> None:
    """The second one is told, and has what it needs to go on."""
    made = make(client)
    path = f"/api/sessions/{made['id']}"
    assert client.put(path, json={"revision": 1, "name": "a", "state": {}}).status_code == 200
    told = error(client.put(path, json={"revision": 1, "name": "b", "state": {}}), 409)
    assert (told["kind"], told["revision"]) == ("conflict", 2)
    assert "changed elsewhere" in told["message"]
    assert error(client.put(path, json={"revision": 7, "name": "b", "state": {}}), 409)
    kept = client.get(path).json()
    assert (kept["name"], kept["revision"]) == ("a", 2)
    assert client.put(path, json={"revision": 2, "name": "b", "state": {}}).json()["revision"] == 3


def test_size_limit(client: TestClient) -> None:
    made = make(client)
    for text, status in (("a" * (2**21 - 2000), 200), ("a" * 2**21, 413), ("ä" * 2**20, 413)):
        state = {**STATE, "typed": {"words": text}}
        answer = client.put(
            f"/api/sessions/{made['id']}", json={"revision": 1, "name": "", "state": state}
        )
        assert answer.status_code == status
        if status == 413:
            assert "2,097,152 are allowed" in error(answer, 413)["message"]
    body = {"collection": "photos", "name": "", "state": {"typed": {"words": "a" * 2**21}}}
    assert error(client.post("/api/sessions", json=body), 413)["kind"] == "too-large"
    assert len(client.get("/api/sessions").json()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": {"marks": [{"id": -1, "mark": "right"}]}},
        {"state": {"marks": [{"id": "x", "mark": "right"}]}},
        {"state": {"marks": [{"id": True, "mark": "right"}]}},
        {"state": {"marks": [{"id": 2**63, "mark": "right"}]}},
        {"state": {"marks": [{"id": 1.5, "mark": "right"}]}},
        {"state": {"marks": [{"id": None, "mark": "right"}]}},
        {"state": {"marks": [{"id": 1, "mark": "none"}]}},
        {"state": {"marks": {"17": "right"}}},
        {"state": {"undo": {"steps": [{"changes": 7}], "at": 0}}},
        {"state": {"undo": {"steps": [], "at": -1}}},
        {"state": {"rounds": [1]}},
        {"state": []},
        {"state": None},
        {"name": "a" * 201},
        {"name": "a\nb"},
        {"name": 7},
        {"collection": ""},
        {"revision": 1},
    ],
)
def test_what_is_no_session(client: TestClient, wrong: dict[str, Any]) -> None:
    body = {"collection": "photos", "name": "", "state": {}, **wrong}
    assert error(client.post("/api/sessions", json=body), 422)["kind"] == "invalid"
    assert client.get("/api/sessions").json() == []


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (r'{"typed": {"words": "\ud800"}}', 400),
        ('{"options": {"seed": 1e999}}', None),
        ('{"options": {"seed": NaN}}', None),
        ('{"options": {"seed": ' + "9" * 400 + "}}", 200),
        (r'{"typed": {"\u0000": "\u0000"}}', 200),
        ('{"typed": {"a": ' + "[" * 200 + "]" * 200 + "}}", 200),
        ('{"typed": {"a": ' + "[" * 900 + "]" * 900 + "}}", 400),
        ('{"typed": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", 400),
    ],
)
def test_strange_json(client: TestClient, text: str, status: int | None) -> None:
    """What can be kept comes back as it was; what JSON has no number for as null (None here)."""
    body = '{"collection": "photos", "name": "", "state": ' + text + "}"
    answer = client.post(
        "/api/sessions", content=body, headers={"Content-Type": "application/json"}
    )
    if status == 400:
        assert answer.status_code in (400, 422), answer.text
        return
    assert answer.status_code == 200, answer.text
    kept = client.get(f"/api/sessions/{answer.json()['id']}")
    assert kept.status_code == 200
    for name, value in json.loads(text).items():
        expected = {"seed": None} if status is None else value
        assert kept.json()["state"][name] == expected
    assert len(client.get("/api/sessions").json()) == 1


def test_of_many_faults_one_is_told(client: TestClient) -> None:
    marks = [{"id": "x", "mark": "right"}] * 3
    changes = [{"id": "x"}] * 3
    for state in ({"marks": marks}, {"undo": {"steps": [{"changes": changes}]}}):
        body = {"collection": "photos", "state": state}
        told = error(client.post("/api/sessions", json=body), 422)
        assert told["message"].count("an id is a whole number") == 1


def test_long_states_are_checked_in_a_thread(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop, which all requests share, is not held up."""
    loop = client.portal.call(threading.current_thread)  # type: ignore[union-attr]
    checked = []

    def watched(model: Any, sent: object) -> Any:
        checked.append(threading.current_thread())
        return real_check(model, sent)

    real_check = saved._checked
    monkeypatch.setattr(saved, "_checked", watched)
    made = make(client)
    client.put(f"/api/sessions/{made['id']}", json={"revision": 1, "name": "", "state": STATE})
    assert len(checked) == 2
    assert loop not in checked


def test_unknown_things(client: TestClient) -> None:
    body = {"collection": "paintings", "name": "", "state": {}}
    assert error(client.post("/api/sessions", json=body), 404)["kind"] == "collection"
    assert error(client.get("/api/sessions/" + "a" * 16), 404)["kind"] == "session"
    for id in ("short", "a" * 17, "a" * 15 + "'", "a" * 15 + "%00"):
        assert client.get(f"/api/sessions/{id}").status_code in (404, 422)


def test_the_server_may_start_anew(filled: Path) -> None:
    with serving(filled) as client:
        made = make(client)
    with serving(filled) as client:
        assert client.get(f"/api/sessions/{made['id']}").json()["state"] == STATE
        answer = client.put(
            f"/api/sessions/{made['id']}", json={"revision": 1, "name": "", "state": {}}
        )
        assert answer.json()["revision"] == 2


def test_read_only(filled: Path) -> None:
    """Sessions live in the memory of the server; nothing is written."""
    with serving(filled) as client:
        kept = make(client)["id"]
    before = filled.read_bytes()
    with serving(filled, read_only=True) as client:
        assert client.get("/api/sessions").json() == []
        assert error(client.get(f"/api/sessions/{kept}"), 404)
        made = make(client)
        answer = client.put(
            f"/api/sessions/{made['id']}", json={"revision": 1, "name": "b", "state": STATE}
        )
        assert answer.json()["revision"] == 2
        assert [one["name"] for one in client.get("/api/sessions").json()] == ["b"]
        for _ in range(99):
            make(client)
        body = {"collection": "photos", "name": "", "state": {}}
        assert (
            "100 sessions already" in error(client.post("/api/sessions", json=body), 400)["message"]
        )
        client.delete(f"/api/sessions/{made['id']}")
        make(client)
    assert filled.read_bytes() == before
    with serving(filled, read_only=True) as client:
        assert client.get("/api/sessions").json() == []


def test_sessions_go_with_their_collection(client: TestClient, filled: Path) -> None:
    make(client)
    other = make(client, collection="scans")["id"]
    cursor = client.app.state.library.con.cursor()  # type: ignore[attr-defined]
    Collection.open(cursor, "photos").drop()
    assert [one["id"] for one in client.get("/api/sessions").json()] == [other]


def test_the_table_by_itself(con: duckdb.DuckDBPyConnection, photos: Collection) -> None:
    made = sessions.make(con, "photos", "a", {"a": 1})
    assert sessions.read(con, made.id) == made
    with pytest.raises(sessions.UnknownSession, match="there is no session"):
        sessions.read(con, "' OR true --")
    with con.cursor() as other:
        con.execute("BEGIN")
        assert sessions.write(con, made.id, 1, "b", {}) == 2
        with pytest.raises(sessions.Conflict):
            sessions.write(other, made.id, 1, "c", {})
        con.execute("COMMIT")
    assert sessions.read(con, made.id).name == "b"
    with pytest.raises(InputError, match="1 sessions already"):
        sessions.make(con, "photos", "a", {}, most=1)
    for state in ({"a": {1}}, {"a": float("nan")}, {"a": "\ud800"}):
        with pytest.raises(InputError, match="must be JSON"):
            sessions.write(con, made.id, 2, "c", state)
    for name in ("a" * 201, "a\0", 7):
        with pytest.raises(InputError, match="a session's name"):
            sessions.write(con, made.id, 2, name, {})  # type: ignore[arg-type]
    assert len({sessions.make(con, "photos", "", {}).id for _ in range(50)}) == 50


# --- concepts -------------------------------------------------------------------------------------


def refine(client: TestClient, of: str = "photos", **members: Any) -> dict[str, Any]:
    body = {"positives": [0, 1, 2], "negatives": ["9"], **members}
    answer = client.post(f"/api/collections/{of}/refine", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


CONCEPTS = "/api/collections/photos/concepts"


def test_concepts(client: TestClient) -> None:
    assert client.get(CONCEPTS).json() == []
    found = refine(client)
    body = {"name": "leopard", "view": found["view"], "note": "spots – 🐆"}
    saved = client.post(CONCEPTS, json=body).json()
    assert (saved["name"], saved["version"], saved["current"]) == ("leopard", 1, True)
    assert (saved["positives"], saved["negatives"]) == ([0, 1, 2], [9])
    assert (saved["note"], saved["count"]) == ("spots – 🐆", found["total"])
    made = datetime.fromisoformat(saved["created"])
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=5)
    assert client.get(f"{CONCEPTS}/leopard").json() == saved
    [listed] = client.get(CONCEPTS).json()
    assert listed == {
        **{name: saved[name] for name in ("name", "version", "created", "note", "count")},
        "learner": found["learner"], "positives": 3, "negatives": 1, "current": True,
    }  # fmt: skip

    told = error(client.post(CONCEPTS, json=body), 409)
    assert told["kind"] == "exists"
    body = {**body, "positives": [5], "negatives": [], "replace": True}
    saved = client.post(CONCEPTS, json=body).json()
    assert (saved["version"], saved["positives"], saved["negatives"]) == (2, [5], [])

    answer = client.delete(f"{CONCEPTS}/leopard")
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (
        client.delete(f"{CONCEPTS}/leopard"), client.get(f"{CONCEPTS}/leopard"),
        client.post(f"{CONCEPTS}/leopard/open", json={}),
    ):  # fmt: skip
        assert error(gone, 404)["kind"] == "concept"


def test_open_a_concept(client: TestClient, filled: Path) -> None:
    found = refine(client)
    client.post(CONCEPTS, json={"name": "leopard", "view": found["view"]})
    opened = client.post(f"{CONCEPTS}/leopard/open", json={}).json()
    assert (opened["kind"], opened["model"]) == ("concept", True)
    assert opened["total"] == found["total"]
    assert [one["id"] for one in opened["items"]] == [one["id"] for one in found["items"]]
    assert (opened["stats"]["train_ms"], opened["learner"]) == (None, found["learner"])
    some = {"column": "camera", "op": "in", "values": ["camera 1"]}
    sort = {"by": "camera", "descending": True}
    body = {"filters": [some], "sort": sort, "previous": found["view"]}
    fewer = client.post(f"{CONCEPTS}/leopard/open", json=body).json()
    assert 0 < fewer["total"] < found["total"]
    assert (fewer["unfiltered"], fewer["changes"]["new"]) == (found["total"], 0)
    assert client.get(f"/api/views/{opened['view']}/why/0").status_code == 200
    sql = client.get(f"{CONCEPTS}/leopard").json()["sql"]
    con = boxwood.load(client.app.state.library.con.cursor())  # type: ignore[attr-defined]
    for statement in (sql, opened["sql"]):
        ids = [row[0] for row in con.execute(statement).fetchall()]
        assert ids[:120] == [one["id"] for one in opened["items"]]
        assert len(ids) == opened["total"]
    ids = [row[0] for row in con.execute(fewer["sql"]).fetchall()]
    assert ids[:120] == [one["id"] for one in fewer["items"]]
    # images that come later are in, deleted ones are not
    photos = Collection.open(con, "photos")
    photos.append([5000], codes=photos.codes([0])[0], metadata={"camera": ["new"]})
    photos.delete([1])
    after = client.post(f"{CONCEPTS}/leopard/open", json={"previous": opened["view"]}).json()
    assert after["changes"] == {"new": 1, "gone": 1, "gone_ids": [1]}
    con.close()


def test_large_ids_are_text(client: TestClient) -> None:
    found = refine(client, "scans", positives=[str(BIG), str(BIG + 1)], negatives=[BIG + 2])
    path = "/api/collections/scans/concepts"
    saved = client.post(path, json={"name": "leopard", "view": found["view"]}).json()
    assert (saved["positives"], saved["negatives"]) == ([str(BIG), str(BIG + 1)], [str(BIG + 2)])


def test_what_cannot_be_saved(client: TestClient) -> None:
    found = refine(client)
    body = {"name": "leopard", "view": found["view"]}
    other = "/api/collections/scans/concepts"
    assert "of the collection 'photos'" in error(client.post(other, json=body), 400)["message"]
    answer = client.post("/api/collections/paintings/concepts", json=body)
    assert error(answer, 404)["kind"] == "collection"
    gone = client.post(CONCEPTS, json={**body, "view": "gone"})
    assert error(gone, 404)["kind"] == "gone"
    near = client.get("/api/collections/photos/images/0/neighbours").json()
    told = error(client.post(CONCEPTS, json={**body, "view": near["view"]}), 400)
    assert "no model to save" in told["message"]
    both = client.post(CONCEPTS, json={**body, "positives": [3], "negatives": [3]})
    assert "both hold 3" in error(both, 400)["message"]
    for wrong in (
        {"name": "a b"}, {"name": ""}, {"name": "a" * 64}, {"name": "x'; --"}, {"name": "a\n"},
        {"note": 7}, {"note": "a\0"}, {"positives": [-1]}, {"replace": "maybe"}, {"what": 1},
    ):  # fmt: skip
        assert error(client.post(CONCEPTS, json={**body, **wrong}), 422)
    assert client.get(CONCEPTS).json() == []
    client.post(CONCEPTS, json=body)
    found = refine(client, "scans", positives=[str(BIG)], negatives=[])
    told = error(client.post(other, json={"name": "leopard", "view": found["view"]}), 400)
    assert "'photos' has a concept 'leopard' already" in told["message"]


def test_concepts_of_a_read_only_database(filled: Path) -> None:
    with serving(filled) as client:
        client.post(CONCEPTS, json={"name": "leopard", "view": refine(client)["view"]})
    with serving(filled, read_only=True) as client:
        assert [one["name"] for one in client.get(CONCEPTS).json()] == ["leopard"]
        assert client.post(f"{CONCEPTS}/leopard/open", json={}).json()["total"] > 0
        body = {"name": "lion", "view": refine(client)["view"]}
        for answer in (client.post(CONCEPTS, json=body), client.delete(f"{CONCEPTS}/leopard")):
            told = error(answer, 403)
            assert told["kind"] == "read-only"
            assert "without --read-only" in told["message"]


def test_a_concept_of_older_codes(database: Path) -> None:
    with boxwood.connect(database) as con:
        photos = Collection.create(con, "photos", keep_embeddings=True)
        photos.append(np.arange(600), embeddings=clustered_embeddings(600))
    with serving(database) as client:
        found = refine(client, positives=[0, 12, 24], negatives=[1])
        client.post(CONCEPTS, json={"name": "leopard", "view": found["view"]})
        con = client.app.state.library.con.cursor()  # type: ignore[attr-defined]
        basis = np.linalg.qr(np.random.default_rng(7).normal(size=(48, 48)))[0][:, :32]
        zero = np.zeros(48, np.float32)
        head = Head("pca", zero, zero, ((basis.astype(np.float32), np.zeros(32, np.float32)),))
        Collection.open(con, "photos").recode(head)
        [listed] = client.get(CONCEPTS).json()
        assert (listed["current"], listed["count"]) == (False, None)
        opened = client.post(f"{CONCEPTS}/leopard/open", json={})
        assert error(opened, 409)["kind"] == "recoded"
        again = client.post(CONCEPTS, json={"name": "lion", "view": found["view"]})
        assert error(again, 409)["kind"] == "recoded"
        kept = client.get(f"{CONCEPTS}/leopard").json()
        found = refine(client, positives=kept["positives"], negatives=kept["negatives"])
        body = {"name": "leopard", "view": found["view"], "replace": True}
        assert client.post(CONCEPTS, json=body).json()["version"] == 2
        assert client.post(f"{CONCEPTS}/leopard/open", json={}).json()["total"] == found["total"]


def test_writes_need_the_page(filled: Path) -> None:
    """Without the header that other sites cannot send, nothing is changed."""
    with serving(filled) as client:
        found = refine(client)
        made = make(client)
        del client.headers["X-Boxwood"]
        for answer in (
            client.post("/api/sessions", json={"collection": "photos", "name": "", "state": {}}),
            client.put(f"/api/sessions/{made['id']}",
                       json={"revision": 1, "name": "", "state": {}}),
            client.delete(f"/api/sessions/{made['id']}"),
            client.post(CONCEPTS, json={"name": "leopard", "view": found["view"]}),
        ):  # fmt: skip
            assert error(answer, 403)
        assert client.get(f"/api/sessions/{made['id']}").json()["revision"] == 1
        assert client.get(CONCEPTS).json() == []


def test_described(client: TestClient) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    put = paths["/api/sessions/{id}"]["put"]["responses"]
    assert put["409"]["content"]["application/json"]["schema"]["$ref"].endswith("ConflictBody")
    for path in ("/api/sessions", "/api/sessions/{id}", "/api/collections/{collection}/concepts",
                 "/api/collections/{collection}/concepts/{name}",
                 "/api/collections/{collection}/concepts/{name}/open"):  # fmt: skip
        assert all("summary" in route for route in paths[path].values())
