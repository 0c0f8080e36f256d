"""kill -9 at any moment: the next one who opens the database finds one of the two states that the
killed step lies between, whole, and right answers by it.

BOXWOOD_LONG=10 makes the run ten times as long, with other seeds than the ones of `make test`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import boxwood
import crash_worker
from boxwood import Collection
from crash_worker import NAME, POINTS, State, after, check_answers, largest_id

LONG = int(os.environ.get("BOXWOOD_LONG", "0"))
WORLDS = 5 * max(1, LONG)
KILLS = 8
FIRST_SEED = random.SystemRandom().randrange(1 << 30) if LONG else 1


class Nursery:
    """Processes to be killed, forked from one that has imported everything."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, crash_worker.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the child says, up to its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # it died in the middle of the line
                continue
            yield message
            if "end" in message:
                return
        raise AssertionError("the nursery has died")

    def raise_child(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.messages()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def run_until_killed(
    nursery: Nursery, job: dict[str, Any], state: State, kill_in: int, delay: float
) -> tuple[list[State], int, bool, str]:
    """Let a child live from `state` on. Without a point of its own it is killed `delay` seconds
    after it has begun its step of number `kill_in`. Returns the states that may be there now, the
    next free id, whether it was killed, and what it was at."""
    child, begun, next_id, at, trouble = 0, 0, job["next"], "birth", ""
    possible = [state]
    for message in nursery.raise_child(job):
        if "child" in message:
            child = message["child"]
        elif "error" in message:
            trouble = message["error"]
        elif "begin" in message:
            step = message["begin"]
            at = step["do"]
            possible = [possible[-1], after(step, possible[-1])]
            next_id = max(next_id, largest_id(step) + 1)
            begun += 1
            if not job["point"] and begun == kill_in:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
        elif "done" in message:
            possible = possible[-1:]
        else:
            assert not trouble, f"at {at}: {trouble}"
            assert message["end"] in (0, -signal.SIGKILL), f"at {at}: exit {message['end']}"
            return possible, next_id, message["end"] != 0, at
    raise AssertionError("the child's end was not told")


def check(folder: Path, possible: list[State], seed: int) -> State:
    """Open the database after a kill; the state that it is in, which must be a possible one."""
    with boxwood.connect(folder / "store.duckdb") as con:
        if NAME not in Collection.list(con):
            assert any(state.kind is None for state in possible)
            crash_worker.check_concept(con, State(None, {}))
            return State(None, {})
        reasons = []
        for state in possible:
            if state.kind is None:
                continue
            try:
                crash_worker.check_rows(con, state)
            except AssertionError as error:
                reasons.append(str(error))
                continue
            break
        else:
            raise AssertionError(f"neither before nor after: {reasons}")
        check_answers(con, None, state, seed)  # by SQL alone, as any connection does
        photos = Collection.open(con, NAME)
        check_answers(con, photos, state, seed + 1)
        photos.refresh()
        photos.verify()
        assert photos.info()["pending"] == 0
        check_answers(con, photos, state, seed + 2)
        if seed % 3 == 0:
            photos.compact()
            check_answers(con, photos, state, seed + 3)
            check_files(photos)
        return state


def check_files(photos: Collection) -> None:
    """After `compact` nothing lies in the folder that the index does not consist of."""
    files = {file.name for file in photos.index_path.iterdir()}
    rows = photos.con.execute("SELECT segment FROM collection_info(?)", [NAME]).fetchall()
    assert files == {"MANIFEST", *(name for (name,) in rows)}


@pytest.mark.parametrize("world", range(WORLDS))
def test_killed_at_any_moment(nursery: Nursery, tmp_path: Path, world: int) -> None:
    seed = FIRST_SEED + 1000 * world
    rng = random.Random(seed)
    state, next_id, kills = State(None, {}), 0, 0
    where: Counter[str] = Counter()
    for number in range(KILLS):
        planted = number % 2 == 0
        job = {
            "folder": str(tmp_path), "seed": seed + number, "steps": 16, "kind": state.kind,
            "rows": state.rows, "concept": state.concept, "old": state.old, "next": next_id,
            "delay": rng.random() ** 2 * 0.03,
            "point": POINTS[(KILLS * world + number) // 2 % len(POINTS)] if planted else None,
            "passes": rng.choice([0, 0, 0, 1, 3]),
        }  # fmt: skip
        kill_in, delay = rng.randint(1, 14), rng.random() ** 2 * 0.06
        try:
            possible, next_id, killed, at = run_until_killed(nursery, job, state, kill_in, delay)
            state = check(tmp_path, possible, seed + number)
        except BaseException as error:
            error.add_note(f"seed {seed}, kill {number}: {job['point']} {job['passes']}")
            raise
        kills += killed
        where[f"{job['point'] or 'at random'}: {at}"] += killed
    assert kills >= KILLS // 2
    print(f"seed {seed}: {kills} kills, {', '.join(place for place in (+where).elements())}")


def test_killed_while_concepts_are_saved(nursery: Nursery, tmp_path: Path) -> None:
    """A version more, or one less, is committed whole: in the table and as a view."""
    state, job = State(None, {}), {"folder": str(tmp_path), "seed": 1, "next": 0, "delay": 0.001}
    save = {"do": "save_concept", "seed": 40}
    steps = [{"do": "create", "kind": "owned"},
             {"do": "append", "ids": list(range(50)), "version": 1, "beside": False}]  # fmt: skip
    job |= {"rows": {}, "kind": None, "concept": (), "old": False, "point": None, "passes": 0}
    possible, _, killed, _ = run_until_killed(nursery, {**job, "steps": steps}, state, 0, 0.0)
    assert not killed
    state = check(tmp_path, possible, 1)
    found = set()
    for number, what in enumerate(["save", "replace", "drop"] * 3):
        script = {
            "save": [{"do": "drop_concept"}] * bool(state.concept) + [save],
            "replace": [save] * (not state.concept) + [{**save, "seed": 80 + number}],
            "drop": [save] * (not state.concept) + [{"do": "drop_concept"}],
        }[what]
        job |= {
            "kind": state.kind, "rows": state.rows, "concept": state.concept, "steps": script,
            "point": f"{('before', 'during', 'after')[number // 3]} commit",
            "passes": len(script) - 1,
        }  # fmt: skip
        possible, _, killed, at = run_until_killed(nursery, job, state, 0, 0.0)
        assert killed
        assert at == script[-1]["do"]
        state = check(tmp_path, possible, number)
        place = possible.index(state)
        assert number // 3 == 1 or place == number // 6, (number, what)
        found.add(place)
    assert found == {0, 1}
