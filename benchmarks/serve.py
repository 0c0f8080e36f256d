"""What people who use the page wait for: many at once over a large collection, and one browser.

    python benchmarks/serve.py FOLDER [--rows 1000000] [--people 20] [--rounds 10]
                               [--browser /usr/bin/chromium]

Makes a collection in FOLDER (kept for the next run): scenes with the tiny encoder's embeddings,
each many times over with noise, so that words find something and pictures can be shown. Starts
`boxwood serve` on it in a process of its own, then
- load: so many people search by words, mark the first five as right and the last five as wrong,
  refine, and look at a further page, each again and again without a pause, all at the same time;
- browser: a page in Chromium does the same, and the time until results stand on the screen is
  taken in the page.
Server, people and browser share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

import boxwood
from boxwood import Collection, scenes
from boxwood.encode import Encoder
from boxwood.encode.vocabulary import TINY

NAME = "photos"
SCENES = 3000
NOISE = 0.25
"""Of an embedding's length."""
BATCH = 100_000
QUERIES = (
    "a red circle", "a striped star", "a blue square", "a pink heart", "a large green triangle",
    "a dotted ring", "a yellow cross", "a small purple circle",
)  # fmt: skip


def make(folder: Path, rows: int) -> Path:
    """The database, made unless it is there."""
    database = folder / f"serve-{rows}.duckdb"
    done = database.with_suffix(".done")
    if done.exists():
        return database
    pictures = folder / "images"
    drawn = scenes.write(pictures, SCENES, 0)
    encoder = Encoder.open(TINY)
    pixels = np.concatenate([scenes.render(drawn[at : at + 256], at)
                             for at in range(0, SCENES, 256)])  # fmt: skip
    embeddings = encoder.pixels(pixels)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    files = sorted(str(file.resolve()) for file in pictures.glob("scene_*.*"))
    rng = np.random.default_rng(0)
    con = boxwood.connect(database)
    photos = Collection.create(con, NAME, encoder=encoder)
    start = time.perf_counter()
    for first in range(0, rows, BATCH):
        ids = np.arange(first, min(first + BATCH, rows))
        which = rng.integers(SCENES, size=len(ids))
        noise = rng.normal(0, NOISE / embeddings.shape[1] ** 0.5, (len(ids), embeddings.shape[1]))
        photos.append(
            ids,
            embeddings=(embeddings[which] + noise).astype(np.float32),
            metadata=pa.table({
                "uri": [files[n] for n in which],
                "camera": [f"camera {n}" for n in rng.integers(8, size=len(ids))],
                "rating": rng.integers(1, 6, size=len(ids)),
                "taken": pa.array(rng.integers(0, 2**30, size=len(ids)), pa.timestamp("s")),
            }),
        )  # fmt: skip
        print(f"\r{ids[-1] + 1:,} rows", end="", file=sys.stderr, flush=True)
    photos.compact()
    con.close()
    print(f"\r{rows:,} rows in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    done.touch()
    return database


@contextmanager
def served(database: Path) -> Iterator[str]:
    """The address of `boxwood serve` in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "boxwood", "serve", str(database), "--port", "0"],
        stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            found = re.search(r"http://[0-9.]+:\d+/?", line)
            if found:
                break
        else:
            raise SystemExit("".join(lines))
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield found[0].rstrip("/")
    finally:
        server.terminate()
        server.wait(20)


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def say(what: str, milliseconds: Sequence[float]) -> None:
    print(
        f"{what:28} {len(milliseconds):6,} times   p50 {quantile(milliseconds, 0.5):7.1f} ms   "
        f"p95 {quantile(milliseconds, 0.95):7.1f} ms   max {max(milliseconds):7.1f} ms"
    )


class Person:
    """Somebody who searches, marks and refines."""

    def __init__(self, address: str, number: int) -> None:
        self.http = httpx.Client(base_url=address, headers={"X-Boxwood": "1"}, timeout=60)
        self.number = number
        self.took: dict[str, list[float]] = {"search": [], "refine": [], "further page": []}

    def ask(self, what: str, method: str, path: str, **body: Any) -> Any:
        start = time.perf_counter()
        answer = self.http.request(method, f"/api{path}", **body)
        self.took[what].append((time.perf_counter() - start) * 1000)
        answer.raise_for_status()
        return answer.json()

    def round(self, number: int) -> int:
        words = QUERIES[(self.number + number) % len(QUERIES)]
        query = {"texts": [{"words": words}]}
        found = self.ask("search", "POST", f"/collections/{NAME}/search", json={"query": query})
        ids = [item["id"] for item in found["items"]]
        # Other labels each time, so that nothing can be remembered.
        asked = {"positives": ids[number % 3 : 5 + number % 3], "negatives": ids[-5:],
                 "query": query}  # fmt: skip
        refined = self.ask("refine", "POST", f"/collections/{NAME}/refine", json=asked)
        middle = refined["total"] // 2
        self.ask("further page", "GET", f"/views/{refined['view']}/items",
                 params={"start": middle, "limit": 120})  # fmt: skip
        return int(refined["total"])


def load(address: str, people: int, rounds: int) -> None:
    """Everybody at once."""
    everyone = [Person(address, number) for number in range(people)]
    everyone[0].round(0)  # the encoder is loaded by the first search
    everyone[0].took = {what: [] for what in everyone[0].took}
    barrier = threading.Barrier(people)
    totals: list[int] = []
    failures: list[Exception] = []

    def work(person: Person) -> None:
        try:
            barrier.wait()
            totals.extend(person.round(number) for number in range(rounds))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in everyone]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    print(
        f"{people} people, {rounds} rounds each, no pauses: {people * rounds / seconds:.1f} rounds "
        f"a second; {statistics.median(totals):,.0f} images found (median)"
    )
    for what in ("search", "refine", "further page"):
        say(what, [took for person in everyone for took in person.took[what]])


def alone(address: str, rounds: int) -> None:
    """The same, one person at a time."""
    person = Person(address, 0)
    for number in range(rounds):
        person.round(number)
    print("one person")
    for what, took in person.took.items():
        say(what, took)


# From the click until the new results have been painted: the figures of the run change with them.
CLICK = """async (button) => {
    const told = new Promise((done) => {
        const watch = new MutationObserver(() => { watch.disconnect(); done(); });
        const what = { childList: true, characterData: true, subtree: true };
        watch.observe(document.querySelector("#took"), what);
    });
    const start = performance.now();
    document.querySelector(button).click();
    await Promise.race([told, new Promise((done) => setTimeout(done, 10000))]);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    const shown = performance.now() - start;
    const waiting = () =>
        [...document.querySelectorAll("#grid img")].some((image) => !image.complete);
    while (waiting() && performance.now() - start < 10000) {
        await new Promise(requestAnimationFrame);
    }
    return { shown, pictures: performance.now() - start };
}"""
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browse(address: str, browser: str, rounds: int) -> None:
    """Somebody in a browser: searches by words, marks by clicks, refines."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=list(FLAGS))
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        paints = []
        for _ in range(5):
            page.goto(address)
            page.wait_for_selector("#collection option", state="attached")
            paints.append(page.evaluate(
                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            ))  # fmt: skip
        print("browser, one person")
        say("first paint", paints)
        searches, refines, pictures = [], [], []
        for number in range(rounds):
            if number:
                page.click("#clear-right")
            page.fill("#words", QUERIES[number % len(QUERIES)])
            searches.append(page.evaluate(CLICK, "#go")["shown"])
            cells = page.locator("#grid .cell[data-id]")
            for place in range(3):
                cells.nth(place).click()
            took = page.evaluate(CLICK, "#refine")
            refines.append(took["shown"])
            pictures.append(took["pictures"])
        say("search, on the screen", searches)
        say("refine, on the screen", refines)
        say("refine, with all pictures", pictures)
        chromium.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("load", "browser"), help="leave the other one out")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    database = make(given.folder, given.rows)
    print(json.dumps({"rows": given.rows, "cores": os.cpu_count()}))
    with served(database) as address:
        load(address, 1, 2)  # the encoder is loaded, and the index read
        if given.only != "browser":
            alone(address, 2 * given.rounds)
            load(address, given.people, given.rounds)
        if given.only != "load" and Path(given.browser).exists():
            browse(address, given.browser, 2 * given.rounds)
        elif given.only != "load":
            print(f"there is no {given.browser}: the page was not timed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
