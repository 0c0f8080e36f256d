"""Every allocation, write, sync, rename and map of the C core fails in its turn, and with it all
that come after, as on a disk that is full: there is an error that says so, the collection is what
it was or what it was to become, and answers by that.

Needs a build with -DBOXWOOD_FAULTS=ON, which `make test-faults` makes.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

import boxwood
import crash_worker
from boxwood import native
from crash_worker import NAME, State, Step, after, check_answers, check_rows, largest_id

KINDS = ("allocation", "write", "sync", "rename", "map")
LONG = "BOXWOOD_LONG" in os.environ


@pytest.fixture(scope="module")
def fault() -> Iterator[Callable[[str, int], None]]:
    """Lets the calls of a kind fail from that number on; below 0: none."""
    library = ctypes.CDLL(str(native.extension_path()))
    try:
        set_fault = library.bw_fault_set
    except AttributeError:
        pytest.skip("the extension is built without faults: make test-faults")
    set_fault.argtypes = [ctypes.c_int, ctypes.c_long]
    set_fault.restype = None
    yield lambda kind, countdown: set_fault(KINDS.index(kind), countdown)
    for kind in range(len(KINDS)):
        set_fault(kind, -1)


@contextmanager
def failing(fault: Callable[[str, int], None], kind: str, countdown: int) -> Iterator[None]:
    fault(kind, countdown)
    try:
        yield
    finally:
        fault(kind, -1)


STEPS = [
    "append many", "refresh", "refresh deletions", "compact", "repair", "recode", "open", "create",
    "ask",
]  # fmt: skip


class World:
    """A collection, and what it must hold."""

    def __init__(self, folder: Path, what: str) -> None:
        kind = "embeddings" if what == "recode" else "owned"
        self.rng, self.state, self.next_id = random.Random(what), State(None, {}), 0
        self.store = crash_worker.Store(folder)
        if what != "create":
            self.take({"do": "create", "kind": kind})
            for _ in range(3):
                self.take(self.append(200))
                self.take({"do": "refresh"})
            self.take(self.some("delete", 40))

    def append(self, count: int) -> Step:
        ids = list(range(self.next_id, self.next_id + count))
        return {"do": "append", "ids": ids, "version": 1, "beside": False}

    def some(self, do: str, count: int) -> Step:
        return {"do": do, "ids": self.rng.sample(sorted(self.state.rows), count), "version": 2}

    def take(self, step: Step) -> None:
        self.next_id = max(self.next_id, largest_id(step) + 1)
        self.store.run(step, self.state)
        self.state = after(step, self.state)

    def step(self, what: str) -> Step:
        """What is to fail, after what it needs."""
        if what == "append many":
            return self.append(4200)
        if what == "refresh":
            self.take(self.append(20))
        if what == "refresh deletions":
            self.take(self.some("delete", 5))
            return {"do": "refresh"}
        if what == "create":
            return {"do": what, "kind": "owned"}
        if what in ("ask", "recode"):
            return {"do": what, "seed": self.rng.randrange(1 << 30)}
        return {"do": "reopen" if what == "open" else what}

    def found(self, possible: list[State], seed: int) -> State:
        """Which of these states the database is in; its answers are checked."""
        con = self.store.con
        if NAME not in boxwood.Collection.list(con):
            assert any(state.kind is None for state in possible)
            return State(None, {})
        for state in [state for state in possible if state.kind is not None]:
            try:
                check_rows(con, state)
            except AssertionError:
                continue
            check_answers(con, self.store.photos, state, seed)
            return state
        raise AssertionError("neither before nor after")

    def reopen(self) -> None:
        self.store.con.close()
        self.store = crash_worker.Store(self.store.database.parent)


@pytest.mark.parametrize("what", STEPS)
def test_everything_fails_once(
    fault: Callable[[str, int], None], tmp_path: Path, what: str
) -> None:
    faults = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        world = World(tmp_path / kind, what)
        countdown = 0
        while fails(fault, world, what, kind, countdown):
            faults[kind] = faults.get(kind, 0) + 1
            countdown += 1 if LONG else max(1, countdown)
        assert world.state.kind is not None
        assert world.store.photos is not None
        world.store.photos.refresh()
        world.store.photos.verify()
        world.found([world.state], 99)
        world.store.con.close()
    print(what, faults)
    assert faults.keys() >= {"allocation", "map"}


def fails(
    fault: Callable[[str, int], None], world: World, what: str, kind: str, countdown: int
) -> bool:
    """Take the step with that fault; whether it failed. Afterwards the collection is what it was,
    or what the step makes of it."""
    step = world.step(what)
    possible = [world.state, after(step, world.state)]
    world.next_id = max(world.next_id, largest_id(step) + 1)
    failed = False
    with failing(fault, kind, countdown):
        try:
            world.store.run(step, world.state)
        except (boxwood.OutOfMemory, boxwood.StorageError):
            failed = True
        except duckdb.Error as error:  # SQL has DuckDB's errors
            failed = True
            assert what in ("ask", "open"), error  # noqa: PT017
    if failed and what == "open":
        world.reopen()
    world.state = world.found(possible if failed else possible[1:], countdown)
    if failed:
        world.reopen()
        world.state = world.found([world.state], countdown)
    return failed
