"""What the browser tests stand on: a demo-like database, `boxwood serve` as a process, a page that
keeps account of what went wrong in it, and the steps that a person takes there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, expect

import boxwood
from boxwood import scenes
from boxwood.demo import Demo, Quality, quality
from boxwood.encode.vocabulary import TINY
from conftest import ROOT, clustered_codes

IMAGES = 500
MANY = 100_000
SHOTS = ROOT / "build" / "browser"
"""Screenshots of the main states, for people to look at."""

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def chromium() -> str | None:
    """The browser to test in: the one that BOXWOOD_CHROMIUM names, or the system's."""
    named = os.environ.get("BOXWOOD_CHROMIUM")
    if named:
        return shutil.which(named)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


# --- the database -----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A database with three collections: `scenes`, pictures whose truth is known; `torn`, of whose
    twelve pictures one is missing and one is broken; `zillion`, codes without pictures, with a
    concept that finds each of them."""

    database: Path
    ids: list[int]
    """The id of each picture of `scenes`, in the order in which they were drawn."""
    drawn: scenes.Scenes
    missing: int
    broken: int

    def truth(self, query: str) -> frozenset[int]:
        return frozenset(np.array(self.ids)[scenes.matches(self.drawn, query)].tolist())

    def quality(self, found: Iterable[int], query: str) -> Quality:
        return quality(found, self.truth(query))

    def picture(self, image: int) -> Path:
        """The file of a picture of `scenes`."""
        return next(self.database.parent.glob(f"images/scene_{self.ids.index(image):06d}.*"))


def make_world(folder: Path) -> World:
    with open(os.devnull, "w") as quiet:
        database = Demo(folder / "demo", images=IMAGES, out=quiet).prepare()
    con = boxwood.connect(database)
    try:
        found = con.execute("SELECT id FROM scenes ORDER BY uri").fetchall()
        con.execute("ALTER TABLE scenes ADD COLUMN stars INTEGER")
        con.execute("ALTER TABLE scenes ADD COLUMN taken DATE")
        con.execute(
            "UPDATE scenes SET stars = id % 5 + 1, taken = CASE WHEN id % 10 > 0 "
            "THEN DATE '2020-01-01' + (id * 3)::INTEGER END"
        )
        missing, broken = _torn(con, folder / "torn")
        many = boxwood.Collection.create(con, "zillion")
        many.append(
            np.arange(MANY), codes=clustered_codes(MANY),
            metadata={"series": [f"series {i % 9}" for i in range(MANY)]},
        )  # fmt: skip
        many.save_concept("everything", _everything(), [1, 2], [3])
    finally:
        con.close()
    return World(database, [row[0] for row in found], scenes.sample(IMAGES, 0), missing, broken)


def _torn(con: Any, folder: Path) -> tuple[int, int]:
    scenes.write(folder, 12, seed=7)
    torn = boxwood.Collection.create(con, "torn", encoder=TINY)
    files = sorted(folder.glob("scene_*"))
    torn.add_images(files)
    files[3].unlink()
    files[5].write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    rows = con.execute("SELECT uri, id FROM torn").fetchall()
    of_name = {Path(uri).name: image for uri, image in rows}
    return of_name[files[3].name], of_name[files[5].name]


def _everything() -> boxwood.Model:
    """A model that finds all, ranked by the sum of the code."""
    return boxwood.Model.from_json(
        json.dumps(
            {
                "boxwood_model": 1, "learner": "hand", "dims": 32, "quantizer": "",
                "estimators": [[[[0, 0, 255]]]], "threshold": 1,
                "score": {
                    "terms": [{"linear": [1] * 32, "square": [0] * 32, "constant": 0}],
                    "votes": 0, "shift": 0, "threshold": None,
                },
                "training": {"positives": 2},
            }
        )
    )  # fmt: skip


# --- the server -------------------------------------------------------------------------------


class Server:
    """`boxwood serve` in a process of its own."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """A second start is at the same port."""
        command = [sys.executable, "-m", "boxwood", "serve", self.database, "--port", self.port]
        self._process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := re.search(r"served at http://[^:]+:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("the server did not start: " + "".join(said))
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def warm(self) -> None:
        """The first search by words loads the encoder."""
        request = urllib.request.Request(
            f"{self.url}api/collections/scenes/search",
            json.dumps({"query": {"texts": [{"words": "a star"}]}}).encode(),
            {"Content-Type": "application/json", "X-Boxwood": "1"},
        )
        urllib.request.urlopen(request, timeout=120).close()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self.said.extend(self._process.stdout)

    def stop(self) -> tuple[int, str]:
        """Ctrl-C. Returns the exit code and what was said since the start."""
        if self._process is None:
            return 0, ""
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError("Ctrl-C did not end the server") from None
        self._reader.join(10)
        self._process = None
        return code, "".join(self.said)


# --- the page ---------------------------------------------------------------------------------


@dataclass
class Watch:
    """Everything that a browser's console calls an error, violations of the CSP among it."""

    faults: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def follow(self, context: BrowserContext) -> None:
        context.on("console", self._said)
        context.on("weberror", lambda error: self.faults.append(f"uncaught: {error.error}"))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.text} at {message.location.get('url', '')}")

    def allow(self, pattern: str) -> None:
        """A test that makes a thing fail says so."""
        self.allowed.append(pattern)

    def unexpected(self) -> list[str]:
        return [f for f in self.faults if not any(re.search(p, f) for p in self.allowed)]


class Person:
    """Someone in front of the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    def come(self, path: str = "") -> Person:
        self.page.goto(self.url + path)
        expect(self.find("#collection option")).not_to_have_count(0)
        expect(self.find("#learners input")).not_to_have_count(0)
        return self

    def find(self, selector: str, **which: Any) -> Locator:
        return self.page.locator(selector, **which)

    def idle(self) -> None:
        expect(self.find("#busy")).to_be_hidden()

    # -- asking

    def answer(self, path: str, act: Callable[[], object]) -> Any:
        """What the API answers to a request (its path is a pattern) that `act` makes the page send;
        returns when the page shows it."""
        with self.page.expect_response(
            lambda r: (
                re.search(path, r.url.split("?")[0]) is not None
                and r.request.method in ("POST", "PUT", "GET")
            )
        ) as got:
            act()
        self.idle()
        assert got.value.ok, (got.value.status, got.value.text())
        return got.value.json()

    def asked(self, path: str, act: Callable[[], object]) -> Any:
        """The body of the request that `act` makes the page send."""
        with self.page.expect_response(lambda r: re.search(path, r.url) is not None) as got:
            act()
        self.idle()
        return got.value.request.post_data_json

    def search(self, words: str, but: str = "") -> Any:
        self.find("#words").fill(words)
        self.find("#but").fill(but)
        return self.answer("/search$", lambda: self.find("#words").press("Enter"))

    def refine(self) -> Any:
        return self.answer("/refine$", lambda: self.find("#refine").click())

    def results(self, view: str) -> list[int]:
        """The ids of all results of a view, in their order."""
        ids: list[int] = []
        while True:
            answer = self.page.request.get(
                f"{self.url}api/views/{view}/items?start={len(ids)}&limit=500"
            ).json()
            ids += [item["id"] for item in answer["items"]]
            if len(ids) >= answer["total"] or not answer["items"]:
                return ids

    # -- marking

    def cell(self, image: object) -> Locator:
        return self.find(f'.cell[data-id="{image}"]')

    def shown(self) -> list[int]:
        """The ids on screen, in their order."""
        expect(self.find(".cell[data-id]").first).to_be_attached()
        return [int(i) for i in self.page.evaluate(
            """() => {
                const box = document.querySelector("#grid").getBoundingClientRect();
                return [...document.querySelectorAll(".cell[data-id]")].filter((cell) => {
                    const { top, bottom } = cell.getBoundingClientRect();
                    return top >= box.top - 1 && bottom <= box.bottom + 1;
                }).map((cell) => cell.dataset.id);
            }"""
        )]  # fmt: skip

    def brush(self, name: str) -> None:
        self.find(f"#brush input[value={name}]").check()

    def mark(self, images: Iterable[int], mark: str) -> None:
        """By clicks on pictures that are on screen."""
        self.brush(mark)
        for image in images:
            self.cell(image).click()
            expect(self.cell(image)).to_have_attribute("data-mark", mark)

    def look(self, images: Iterable[int], truth: frozenset[int]) -> None:
        """Mark what is not marked, each as it is."""
        fresh = [i for i in images if self.cell(i).get_attribute("data-mark") == "none"]
        self.mark([i for i in fresh if i in truth], "right")
        self.mark([i for i in fresh if i not in truth], "wrong")

    def counts(self, right: int, wrong: int) -> None:
        expect(self.find("#right-count")).to_have_text(f"{right} right")
        expect(self.find("#wrong-count")).to_have_text(f"{wrong} wrong")

    # -- keeping

    def saved(self) -> str:
        """Waits until the server has the session as it is; returns its id."""
        self.page.wait_for_url(re.compile(r"[?&]session="))
        self.page.wait_for_function(
            "() => !Object.keys(localStorage).some((key) => key.startsWith('boxwood:draft:'))"
        )
        return re.search(r"session=([^&]+)", self.page.url)[1]  # type: ignore[index]

    def shot(self, name: str) -> None:
        """Keeps a picture of the page, when what is on screen has been loaded."""
        self.page.wait_for_function(
            "() => [...document.images].every((i) => !i.getAttribute('src') || i.complete)"
        )
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def accessible(self) -> None:
        """Everything that axe knows to check holds."""
        found = Axe().run(self.page)
        told = [
            f"{v['id']} ({v['impact']}): {v['help']}\n    "
            + "\n    ".join(
                f"{node['target']} {node['html'][:160]}: {node['failureSummary']}"
                for node in v["nodes"][:4]
            )
            for v in found.response["violations"]
        ]
        assert not told, "\n".join(told)
