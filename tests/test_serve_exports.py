"""Exports of views: each format against what the view shows, limits, cancelling, and tidying up."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import boxwood
from conftest import clustered_codes

pytest.importorskip("fastapi")
image_module = pytest.importorskip("PIL.Image")

from starlette.testclient import TestClient  # noqa: E402

from boxwood.serve import Limits, create_app, exports, jobs  # noqa: E402

N = 40
FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "＝1", "\r=1")
LIMITS = Limits(zip_files=30, zip_bytes=200_000, jobs=3)


def texts() -> list[str | None]:
    rest: list[str | None] = [None, "", "-5", "+1.5e3", 'quote " comma , line\nend', "a-b", "é 猫"]
    return [*FORMULAS, *rest, *[f"text {n}" for n in range(N - len(FORMULAS) - len(rest))]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures, some of one name, one of which is no picture, and one is missing."""
    folder = tmp_path_factory.mktemp("pictures").resolve()
    rng = np.random.default_rng(0)
    for n in range(N):
        (folder / str(n % 4)).mkdir(exist_ok=True)
        name = folder / str(n % 4) / ("Same.png" if n < 2 else "same.png" if n < 4 else f"{n}.png")
        image_module.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(name)
    (folder / "1" / "5.png").write_text("no picture")
    (folder / "2" / "6.png").unlink()
    return folder


def uris(folder: Path) -> list[str | None]:
    found: list[str | None] = []
    for n in range(N):
        name = "Same.png" if n < 2 else "same.png" if n < 4 else f"{n}.png"
        found.append(str(folder / str(n % 4) / name))
    found[7] = None
    return found


@pytest.fixture
def client(tmp_path: Path, pictures: Path) -> Iterator[TestClient]:
    database = tmp_path / "exported.duckdb"
    con = boxwood.connect(database)
    rng = np.random.default_rng(1)
    ids = [*range(N - 1), 2**60]
    boxwood.Collection.create(con, "photos").append(
        ids, codes=clustered_codes(N),
        metadata={
            "uri": pa.array(uris(pictures), pa.string()), "note": pa.array(texts(), pa.string()),
            "=size": rng.integers(-5, 5, N), "score": [f"s{n}" for n in range(N)],
            "day": pa.array([n * 86_400_000_000 for n in range(N)], pa.timestamp("us")),
            "ratio": pa.array([float("nan"), *[n / 3 for n in range(1, N)]]),
            "raw": pa.array([b"\\x00"] * N), "tags": [["=a", "b"]] * N,
        },
    )  # fmt: skip
    boxwood.Collection.create(con, "bare").append(np.arange(5), codes=clustered_codes(5))
    con.close()
    app = create_app(database, cache=tmp_path / "cache", limits=LIMITS)
    with TestClient(app, base_url="http://127.0.0.1", headers={"X-Boxwood": "1"}) as made:
        yield made


def view(client: TestClient, k: int = N, **options: Any) -> dict[str, Any]:
    """A search that finds k images; all items of it."""
    name = options.pop("name", "photos")
    answer = client.post(
        f"/api/collections/{name}/search",
        json={"query": {"images": [{"id": 0}]}, "k": k, **options},
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def start(client: TestClient, found: dict[str, Any], form: str, **options: Any) -> Any:
    return client.post(f"/api/views/{found['view']}/exports", json={"format": form, **options})


def follow(client: TestClient, job: str) -> list[tuple[str, dict[str, Any]]]:
    """All events of a job."""
    answer = client.get(f"/api/jobs/{job}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        events.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def save(client: TestClient, found: dict[str, Any], form: str, **options: Any) -> bytes:
    """Run an export to its file."""
    answer = start(client, found, form, **options)
    assert answer.status_code == 202, answer.text
    job = answer.json()["job"]
    events = follow(client, job)
    assert [kind for kind, _ in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1][0] == "done", events
    assert events[-2][1]["done"] == events[-2][1]["total"]
    file = client.get(f"/api/jobs/{job}/file")
    assert file.status_code == 200
    assert len(file.content) == events[-1][1]["bytes"]
    assert events[-1][1]["name"] == f"photos.{form}"
    assert f'filename="photos.{form}"' in file.headers["content-disposition"]
    assert file.headers["cache-control"] == "no-store"
    # It is gone after that.
    assert client.get(f"/api/jobs/{job}/file").status_code == 404
    assert not list(client.app.state.jobs._folder.iterdir())  # type: ignore[attr-defined]
    return file.content


def test_parquet_has_the_rows_of_the_view_with_their_types(
    client: TestClient, pictures: Path
) -> None:
    found = view(client)
    table = pq.read_table(io.BytesIO(save(client, found, "parquet")))
    assert table.column_names == ["rank", "id", "distance", "uri", "note", "=size", "score", "day",
                                  "ratio", "raw", "tags"]  # fmt: skip
    assert [str(i) for i in table["id"].to_pylist()] == [str(i["id"]) for i in found["items"]]
    assert table["rank"].to_pylist() == list(range(N))
    assert table["distance"].to_pylist() == [item["value"] for item in found["items"]]
    assert table["id"].to_pylist()[0] == 0
    rows = {min(i, N - 1): row for i, row in zip(table["id"].to_pylist(), table.to_pylist(),
                                                 strict=True)}  # fmt: skip
    assert [rows[n]["note"] for n in range(N)] == texts()
    assert [rows[n]["uri"] for n in range(N)] == uris(pictures)
    assert table.schema.field("day").type == pa.timestamp("us")
    assert table.schema.field("raw").type == pa.binary()


def test_csv_has_the_rows_of_the_view_and_no_formulas(client: TestClient) -> None:
    found = view(client, filters=[{"column": "note", "op": "missing", "negate": True}],
                 sort={"by": "note"})  # fmt: skip
    text = save(client, found, "csv").decode()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["rank", "id", "distance", "uri", "note", "'=size", "score", "day", "ratio",
                       "tags"]  # fmt: skip
    body = rows[1:]
    assert [row[1] for row in body] == [str(item["id"]) for item in found["items"]]
    notes = {row[4] for row in body}
    for formula in FORMULAS:
        assert f"'{formula}" in notes
        assert formula not in notes
    assert {"-5", "+1.5e3", "", 'quote " comma , line\nend', "a-b", "é 猫"} <= notes
    assert any(row[5].startswith("-") for row in body)  # numbers stay numbers
    for row in body:
        for cell in row:
            assert not cell.startswith(exports._FORMULA) or exports._NUMBER.fullmatch(cell)


def test_json_is_a_list_of_files_and_what_is_known_of_them(
    client: TestClient, pictures: Path
) -> None:
    found = view(client)
    rows = json.loads(save(client, found, "json"))
    assert [row["id"] for row in rows] == [item["id"] for item in found["items"]]
    assert {row["id"] for row in rows} >= {str(2**60), 0}
    by_id = {row["id"]: row for row in rows}
    assert by_id[3]["uri"] == uris(pictures)[3]
    assert by_id[0]["note"] == "=1+1"  # JSON is no spreadsheet
    assert by_id[0]["ratio"] == "nan"
    assert "raw" not in rows[0]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_columns_can_be_chosen(client: TestClient, form: str) -> None:
    found = view(client, k=5)
    data = save(client, found, form, columns=["score", "note", "score"])
    if form == "csv":
        names = next(csv.reader(io.StringIO(data.decode())))
    elif form == "json":
        names = list(json.loads(data)[0])
    else:
        names = pq.read_table(io.BytesIO(data)).column_names
    assert names == ["rank", "id", "distance", "score", "note"]
    assert len(save(client, found, form, columns=[])) < len(data)
    assert start(client, found, form, columns=["no such"]).status_code == 400
    if form != "parquet":
        answer = start(client, found, form, columns=["raw"])
        assert answer.status_code == 400
        assert "Parquet" in answer.json()["error"]["message"]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_scores_votes_and_names_that_are_taken(client: TestClient, form: str) -> None:
    answer = client.post(
        "/api/collections/photos/refine",
        json={"positives": [0, 20], "negatives": [3], "learner": "ensemble"},
    )
    found = answer.json()
    data = save(client, found, form)
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    elif form == "json":
        rows = json.loads(data)
    else:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    assert list(rows[0])[:4] == ["rank", "id", "score", "votes"]
    assert "score_1" in rows[0]
    items = found["items"]
    assert [str(row["id"]) for row in rows] == [str(item["id"]) for item in items]
    assert [float(row["score"]) for row in rows] == pytest.approx([item["value"] for item in items])
    assert [int(row["votes"]) for row in rows] == [item["votes"] for item in items]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_nothing_found_is_a_file_without_rows(client: TestClient, form: str) -> None:
    found = view(client, filters=[{"column": "note", "op": "in", "values": ["no such"]}])
    assert found["total"] == 0
    data = save(client, found, form)
    if form == "json":
        assert json.loads(data) == []
    elif form == "csv":
        assert len(data.decode().splitlines()) == 1
    else:
        table = pq.read_table(io.BytesIO(data))
        assert len(table) == 0
        assert table.schema.field("day").type == pa.timestamp("us")


def test_columns_that_formats_cannot_hold(tmp_path: Path) -> None:
    """They are text there, and no export fails by them."""
    with boxwood.connect(tmp_path / "odd.duckdb") as con:
        con.execute(
            "CREATE TABLE odd AS SELECT range AS id, to_days(range::INTEGER) AS took, "
            "[to_days(1)] AS several, (SELECT sum(range) FROM range(5)) AS total, "
            "340282366920938463463374607431768211455::UHUGEINT AS huge, "
            "union_value(a := 3) AS either, '101'::BIT AS bits, range AS plain FROM range(5)"
        )
        odd = boxwood.Collection.create(con, "photos", table="odd")
        odd.append(np.arange(5), codes=clustered_codes(5))
    app = create_app(tmp_path / "odd.duckdb")
    with TestClient(app, base_url="http://127.0.0.1", headers={"X-Boxwood": "1"}) as client:
        found = view(client, k=5)
        table = pq.read_table(io.BytesIO(save(client, found, "parquet")))
        [first] = [row for row in table.to_pylist() if row["id"] == 1]
        assert (first["took"], first["several"]) == ("1 day", "[1 day]")
        assert (first["huge"], first["either"], first["bits"]) == (str(2**128 - 1), "3", "101")
        assert (int(first["total"]), first["plain"]) == (10, 1)
        assert table.schema.field("plain").type == pa.int64()
        [first] = [row for row in json.loads(save(client, found, "json")) if row["id"] == 1]
        assert (first["total"], first["huge"], first["took"]) == ("10", str(2**128 - 1), "1 day")
        assert b"1 day" in save(client, found, "csv")


def test_a_collection_without_metadata(client: TestClient) -> None:
    found = view(client, k=5, name="bare")
    answer = start(client, found, "csv")
    events = follow(client, answer.json()["job"])
    assert events[-1] == ("done", {"bytes": events[-1][1]["bytes"], "name": "bare.csv", "note": ""})
    text = client.get(f"/api/jobs/{answer.json()['job']}/file").text
    assert text.splitlines()[0] == "rank,id,distance"
    assert len(text.splitlines()) == 6
    answer = start(client, found, "zip")
    assert answer.status_code == 400
    assert "uri" in answer.json()["error"]["message"]
    assert start(client, found, "csv", columns=["x"]).status_code == 400


def test_zip_has_the_files_and_says_what_is_left_out(client: TestClient, pictures: Path) -> None:
    found = view(client, k=30, filters=[
        {"column": "note", "op": "in", "values": [*FORMULAS, "-5", "", "+1.5e3"]}])  # fmt: skip
    ids = [item["id"] for item in found["items"]]
    data = save(client, found, "zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len({name.lower() for name in names}) == len(names)
        assert not any("/" in name or "\\" in name or ".." in name for name in names)
        listed = list(csv.DictReader(io.StringIO(archive.read(exports.LIST).decode(), newline="")))
        places = uris(pictures)
        for row in listed:
            uri = places[int(row["id"])]
            assert uri is not None
            assert row["uri"] == uri
            assert archive.read(row["file"]) == Path(uri).read_bytes()
            assert ids[int(row["rank"])] == int(row["id"])
        left_out = archive.read(exports.LEFT_OUT).decode()
        missing = {5: "not an image", 6: "not there any more"}
        for number, words in missing.items():
            line = next(line for line in left_out.splitlines() if line.startswith(f"{number}\t"))
            assert words in line
        assert sorted([*map(int, [row["id"] for row in listed]), *missing]) == sorted(ids)
        same = [name for name in names if name.lower().startswith("same")]
        assert len(same) == 4  # Same.png, Same (2).png, ..


def test_limits_of_a_zip(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = view(client)
    job = start(client, found, "zip").json()["job"]
    note = follow(client, job)[-1][1]["note"]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/jobs/{job}/file").content)) as archive:
        listed = list(csv.DictReader(io.StringIO(archive.read(exports.LIST).decode(), newline="")))
        left_out = archive.read(exports.LEFT_OUT).decode()
    best = [str(item["id"]) for item in found["items"][:30]]
    assert {row["id"] for row in listed} <= set(best)
    assert len(listed) >= 27
    assert "and 10 more: a zip holds 30 pictures at most" in left_out
    assert note.startswith(f"{40 - len(listed)} pictures are left out")
    with zipfile.ZipFile(io.BytesIO(save(client, view(client, k=5), "zip", columns=["note"]))) as z:
        assert z.read(exports.LIST).startswith(b"file,rank,id,distance,note\r\n")
    limits = Limits(zip_bytes=3000)
    monkeypatch.setattr(client.app.state.pictures, "limits", limits)  # type: ignore[attr-defined]
    with zipfile.ZipFile(io.BytesIO(save(client, view(client, k=20), "zip"))) as archive:
        listed = list(csv.DictReader(io.StringIO(archive.read(exports.LIST).decode(), newline="")))
        assert 1 <= len(listed) < 10
        assert sum(archive.getinfo(row["file"]).file_size for row in listed) <= 3000
        left_out = archive.read(exports.LEFT_OUT).decode()
    assert left_out.count("\n") - 2 == 20 - len(listed)
    assert left_out.count("a zip holds 0 MiB at most") >= 20 - len(listed) - 3  # no pictures
    ranks = [int(row["rank"]) for row in listed]
    assert ranks == sorted(ranks)


def test_cancelling(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = client.app.state  # type: ignore[attr-defined]
    real = state.pictures.original
    at_work = []

    def slow(uri: str) -> Any:
        at_work.append(uri)
        time.sleep(0.1)
        return real(uri)

    monkeypatch.setattr(state.pictures, "original", slow)
    job = start(client, view(client, k=30), "zip").json()["job"]
    while not at_work:
        time.sleep(0.01)
    assert client.get(f"/api/jobs/{job}/file").status_code == 409  # not yet
    running = state.jobs.get(job)
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    for _ in range(100):
        if running.ended:
            break
        time.sleep(0.05)
    assert running.error.kind == "cancelled"
    assert len(at_work) < 10
    assert not list(state.jobs._folder.iterdir())
    for path in ("events", "file"):
        assert client.get(f"/api/jobs/{job}/{path}").status_code == 404
    assert client.delete(f"/api/jobs/{job}").status_code == 404


def test_a_query_that_runs_is_interrupted(client: TestClient) -> None:
    """Cancelling does not wait for what DuckDB is at."""
    state: Any = client.app.state  # type: ignore[attr-defined]

    def work(job: jobs.Job) -> None:
        cursor = exports.RequestCursor(state.library)
        job.on_cancel = cursor.interrupt
        job.words = "at it"
        cursor.con.execute("SELECT count(*) FROM range(10000000000) a, range(1000) b").fetchall()

    job = state.jobs.start("x", "text/plain", work)
    while job.words != "at it":
        time.sleep(0.01)
    time.sleep(0.2)
    begin = time.monotonic()
    state.jobs.remove(job.id)
    while not job.ended:
        assert time.monotonic() - begin < 10
        time.sleep(0.01)
    assert job.error.kind == "cancelled"


def test_too_many_at_once_and_files_that_nobody_fetches(tmp_path: Path) -> None:
    kept = jobs.Jobs(Limits(jobs=2, job_seconds=0.3))

    def work(job: jobs.Job) -> None:
        job.path.write_text("x")

    first, second = kept.start("a", "t", work), kept.start("b", "t", work)
    with pytest.raises(boxwood.Error, match="save or cancel"):
        kept.start("c", "t", work)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            kept.get(first.id), kept.get(second.id)
        except boxwood.Error:
            break
        time.sleep(0.05)
    while first.path.exists() or second.path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    third = kept.start("c", "t", work)
    while not third.ended:
        time.sleep(0.01)
    folder = third.path.parent
    kept.close()
    assert not folder.exists()
    with pytest.raises(boxwood.Error):
        kept.start("d", "t", work)


def test_a_download_that_is_broken_off_can_be_started_again(client: TestClient) -> None:
    """The file is let go of when its last byte was sent to somebody who was there."""
    found = view(client, k=5)
    job = start(client, found, "csv").json()["job"]
    follow(client, job)
    path = f"/api/jobs/{job}/file"

    async def leave() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        await client.app(
            {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
             "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 80)},
            receive, send,
        )  # fmt: skip

    asyncio.run(leave())
    part = client.get(path, headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"rank")
    assert client.get(path).status_code == 200
    assert client.get(path).status_code == 404


def test_files_that_were_fetched_make_room(client: TestClient) -> None:
    found = view(client, k=5)
    waiting = [start(client, found, "csv").json()["job"] for _ in range(LIMITS.jobs)]
    for job in waiting:
        follow(client, job)
    assert start(client, found, "csv").status_code == 429
    for job in waiting[2:0:-1]:
        client.get(f"/api/jobs/{job}/file", headers={"Range": "bytes=0-3"})
    assert start(client, found, "csv").status_code == 202
    left = [client.get(f"/api/jobs/{job}/events").status_code for job in waiting]
    assert left == [200, 404, 200]


def test_what_goes_wrong_is_told_without_details(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    def broken(*args: Any) -> None:
        raise RuntimeError("a secret")

    for failing, kind, words in ((full, "storage", "No space left on device"),
                                 (broken, "internal", "terminal")):  # fmt: skip
        monkeypatch.setattr(exports, "write_csv", failing)
        kind_of, content = follow(client, start(client, view(client, k=3), "csv").json()["job"])[-1]
        assert kind_of == "failed"
        assert content["error"]["kind"] == kind
        assert words in content["error"]["message"]
        assert "secret" not in content["error"]["message"]


def test_an_unknown_view_or_format(client: TestClient) -> None:
    assert client.post("/api/views/none/exports", json={"format": "csv"}).status_code == 404
    found = view(client, k=3)
    assert start(client, found, "exe").status_code == 422
    assert start(client, found, "csv", columns="note").status_code == 422
