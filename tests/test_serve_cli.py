"""`boxwood serve` and `boxwood demo --serve` as processes: they start, answer, and end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

import boxwood
from boxwood import cli
from conftest import clustered_codes

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

PATIENCE = 120.0


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A database with a collection."""
    path = tmp_path / "photos.duckdb"
    con = boxwood.connect(path)
    boxwood.Collection.create(con, "photos").append(np.arange(500), codes=clustered_codes(500))
    con.close()
    return path


class Running:
    """A `boxwood` process, with what it has said so far."""

    def __init__(self, *words: object, program: str | None = None, **variables: object) -> None:
        """program: Python that is run in place of the command."""
        start = ["-m", "boxwood"] if program is None else ["-c", program]
        own = {name: str(value) for name, value in variables.items()}
        self.process = subprocess.Popen(
            [sys.executable, *start, *map(str, words)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": "true", **own},
        )  # fmt: skip
        self.out: list[str] = []
        self.err: list[str] = []
        self._threads = []
        for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            assert pipe is not None
            thread = threading.Thread(target=self._read, args=[pipe, lines], daemon=True)
            thread.start()
            self._threads.append(thread)

    @staticmethod
    def _read(pipe: IO[str], lines: list[str]) -> None:
        lines.extend(iter(pipe.readline, ""))

    def address(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(r"served at (http://\S+)", "".join(self.out))
            if found and "Ctrl-C" in "".join(self.out):
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"it did not start: {''.join(self.out)} {''.join(self.err)}")

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        for thread in self._threads:
            thread.join(10)
        return code


@contextmanager
def running(*words: object, **options: Any) -> Iterator[Running]:
    made = Running(*words, **options)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait()


def get(address: str, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(address, headers={"Connection": "close", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_it_starts_answers_and_ends_with_ctrl_c(served: Path) -> None:
    with running("serve", served, "--port", 0, "--open") as server:
        address = server.address()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        status, page = get(address)
        assert status == 200
        assert b"<!doctype html>" in page[:100].lower()
        status, body = get(f"{address}api/collections")
        assert [one["name"] for one in json.loads(body)] == ["photos"]
        assert get(address, Host="attacker.example")[0] == 421
        # A stream that somebody follows does not keep it from ending.
        lasting = socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/"))))
        lasting.sendall(b"GET /api/info HTTP/1.1\r\n")
        begin = time.monotonic()
        assert server.stop() == cli.INTERRUPTED
        assert time.monotonic() - begin < 10
        lasting.close()
    assert server.err == ["boxwood: interrupted; the page has ended; what was saved is kept\n"]
    con = boxwood.connect(served)  # let go
    boxwood.Collection.open(con, "photos").verify()
    con.close()


STUCK = """
import sys, time
from boxwood import cli
from boxwood.serve import queries

def stuck(*given):
    if {stoppable}:
        many = "range(1000000)"
        given[0].con.execute(f"SELECT sum(a.range * b.range) FROM {{many}} a, {{many}} b")
    else:
        time.sleep(60)

queries.refine_base = stuck
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("stoppable", [True, False])
def test_ctrl_c_ends_it_whatever_runs(served: Path, tmp_path: Path, stoppable: bool) -> None:
    """Also what nothing can stop, and what waits behind it; nothing of it is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    program = STUCK.format(stoppable=stoppable)
    answers: list[int] = []
    with running("serve", served, "--port", 0, program=program, TMPDIR=folder) as server:
        port = int(server.address().split(":")[2].strip("/"))

        def post(path: str, body: Any) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            headers = {"X-Boxwood": "1", "Content-Type": "application/json"}
            connection.request("POST", f"/api{path}", json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        def refine() -> None:
            answers.append(post("/collections/photos/refine", {"positives": [1]})[0])

        query = {"query": {"images": [{"id": 1}]}}
        view = post("/collections/photos/search", query)[1]["view"]
        assert post(f"/views/{view}/exports", {"format": "csv"})[0] == 202
        assert list(folder.iterdir())
        threads = [threading.Thread(target=refine) for _ in range((os.cpu_count() or 1) + 2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        # Others are answered meanwhile.
        assert post("/collections/photos/search", query)[0] == 200
        begin = time.monotonic()
        assert server.stop() == cli.INTERRUPTED
        assert time.monotonic() - begin < 8
        for thread in threads:
            thread.join(10)
    assert answers == [503] * len(threads)
    assert server.err == ["boxwood: interrupted; the page has ended; what was saved is kept\n"]
    assert not list(folder.iterdir())
    con = boxwood.connect(served)
    boxwood.Collection.open(con, "photos").verify()
    con.close()


def test_answers_do_not_wait_for_each_other_on_one_connection(served: Path) -> None:
    """Nagle's algorithm and delayed acknowledgements would make 40 ms of each."""
    with running("serve", served, "--port", 0) as server:
        port = int(server.address().split(":")[2].strip("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        seconds = []
        for _ in range(30):
            begin = time.perf_counter()
            connection.request("GET", "/api/info")
            assert json.loads(connection.getresponse().read())["database"] == "photos.duckdb"
            seconds.append(time.perf_counter() - begin)
        connection.close()
        assert sorted(seconds)[5] < 0.03
        server.stop()


def test_two_at_once_and_a_port_that_is_taken(served: Path, tmp_path: Path) -> None:
    with running("serve", served, "--port", 0, "--read-only", "--cache", tmp_path / "c") as first:
        address = first.address()
        port = int(address.split(":")[2].strip("/"))
        with running("serve", served, "--port", 0, "--read-only") as second:
            assert get(f"{second.address()}api/info")[0] == 200
            second.stop()
        assert json.loads(get(f"{address}api/info")[1])["read_only"] is True
        with running("serve", served, "--port", port, "--read-only") as third:
            assert third.process.wait(PATIENCE) == cli.FAILED
        for thread in third._threads:
            thread.join(10)
        assert re.search(rf"port {port} of 127\.0\.0\.1 is in use: try --port \d+", third.err[0])
        assert first.stop() == cli.INTERRUPTED


def test_elsewhere_a_token_is_needed(served: Path) -> None:
    with running("serve", served, "--port", 0, "--host", "0.0.0.0", "--name", "box.test") as server:
        address = server.address()
        found = re.fullmatch(r"http://[^/]+:(\d+)/\?token=([\w-]{32})", address)
        assert found is not None
        port, token = found[1], found[2]
        for host in ("127.0.0.1", "localhost", "box.test", "192.168.7.7"):
            name = f"{host}:{port}"
            assert get(f"http://127.0.0.1:{port}/api/info", Host=name)[0] == 401
            bearer = f"Bearer {token}"
            own = get(f"http://127.0.0.1:{port}/api/info", Host=name, Authorization=bearer)
            assert own[0] == 200, host
        assert get(f"http://127.0.0.1:{port}/api/info", Host="attacker.example")[0] == 421
        assert "Whoever has this address" in server.out[1]
        server.stop()


def test_a_token_may_be_given(served: Path) -> None:
    token = "sixteen-letters-x"
    with running("serve", served, "--port", 0, "--token", token) as server:
        assert server.address().endswith(f"/?token={token}")
        assert get(server.address().partition("?")[0] + "api/info")[0] == 401
        server.stop(signal.SIGTERM)


def test_the_demo_ends_in_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with running("demo", "--folder", folder, "--images", 120, "--serve", "--port", 0) as server:
        address = server.address()
        (one,) = json.loads(get(f"{address}api/collections")[1])
        assert (one["name"], one["rows"], one["words"], one["pictures"]) == (
            "scenes", 120, True, True,
        )  # fmt: skip
        columns = {column["name"] for column in one["columns"] if column["facet"]}
        assert {"background", "shape", "colour", "size"} <= columns
        status, data = get(f"{address}api/collections/scenes/images/3/thumbnail")
        assert (status, data[8:12]) == (200, b"WEBP")
        assert server.stop() == cli.INTERRUPTED
    assert not (folder / "report.html").exists()
    con = boxwood.connect(folder / "demo.duckdb", read_only=True)
    wrong = con.execute(
        "SELECT count(*) FROM scenes JOIN truth USING (id) WHERE scenes.shape <> truth.shape"
    ).fetchone()
    con.close()
    assert wrong == (0,)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--port", "70000"], cli.USAGE, "70000"),
        (["--port", "x"], cli.USAGE, "whole number"),
        (["--token", "short"], cli.USAGE, "16 to 200"),
        (["--token", "with spaces and more letters"], cli.USAGE, "16 to 200"),
        (["--root", "/no/such/folder"], cli.FAILED, "no such folder"),
        (["--host", "no.such.name.test", "--port", "0"], cli.FAILED, "--host"),
        (["--host", "203.0.113.7", "--port", "0"], cli.FAILED, "cannot listen"),
    ],
)
def test_mistakes_are_told(
    run: Callable[..., tuple[int, str, str]], served: Path, words: list[str], code: int, said: str
) -> None:
    got, out, err = run("serve", served, *words)
    assert got == code, err
    assert said in err
    assert not out
    assert "Traceback" not in err


def test_databases_that_cannot_be_served(
    run: Callable[..., tuple[int, str, str]], served: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code, _, err = run("serve", tmp_path / "none.duckdb")
    assert code == cli.FAILED
    assert "there is no database" in err
    assert "boxwood create" in err
    boxwood.connect(tmp_path / "empty.duckdb").close()
    code, _, err = run("serve", tmp_path / "empty.duckdb")
    assert code == cli.FAILED
    assert "has no collections" in err
    (tmp_path / "broken.duckdb").write_bytes(b"no database at all")
    assert run("serve", tmp_path / "broken.duckdb")[0] == cli.FAILED
    holder = subprocess.Popen(
        [sys.executable, "-c", "import boxwood, sys; con = boxwood.connect(sys.argv[1]); "
         "print('open', flush=True); sys.stdin.read()", str(served)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, _, err = run("serve", served)
        assert code == cli.FAILED
        assert "is open in another process" in err
    finally:
        holder.communicate()
    real = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec",
        lambda name, *rest: None if name in ("fastapi", "uvicorn") else real(name, *rest),
    )  # fmt: skip
    for words in (("serve", served), ("demo", "--serve", "--folder", tmp_path / "d")):
        code, _, err = run(*words)
        assert code == cli.FAILED
        assert (
            "needs fastapi, uvicorn, which are not installed: pip install 'boxwood[serve]'" in err
        )
    assert not (tmp_path / "d").exists()


def test_options_of_the_demo_that_do_not_go_together(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for words in (["--serve", "--rounds", "2"], ["--serve", "--query", "a red circle"],
                  ["--port", "8000"]):  # fmt: skip
        code, _, err = run("demo", "--folder", tmp_path / "d", *words)
        assert code == cli.USAGE
        assert "belong" in err


def test_nothing_of_it_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, boxwood, boxwood.cli; boxwood.cli._parser(); "
        "sys.exit(bool({'fastapi', 'uvicorn', 'pydantic', 'boxwood.serve'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    program = (
        "import sys, boxwood.serve.server; "
        "sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
