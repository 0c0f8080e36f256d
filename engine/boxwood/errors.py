"""The exceptions that Boxwood raises on purpose: one tree under `Error`.

Every message says what is wrong and what to do next. Several classes are also of a standard kind,
so that ``except ValueError`` and the like work. And how a thread has another stop, by one of them.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar


class Error(Exception):
    """Base of every exception that Boxwood raises on purpose."""


class InputError(Error, ValueError):
    """What the caller passed cannot be used; the message says why and what to pass instead."""


class MissingDependency(Error, ImportError):
    """An optional package is needed; the message names the command that installs it."""


class IndexProblem(Error):
    """The index beside the database cannot answer. The database holds everything that is needed
    to build it again, so `boxwood repair` cures each of these."""


class IndexMissing(IndexProblem):
    """There is no index where it should be."""


class IndexCorrupt(IndexProblem):
    """A file of the index does not hold what was written to it, or is of another version."""


class IndexMismatch(IndexProblem):
    """Parts that do not belong together: index and collection, model and index."""


class IndexStale(IndexProblem):
    """The index is behind the collection, and the database is open read-only."""


class StorageError(Error, OSError):
    """The operating system or the database refused to read or write."""


class DatabaseLocked(StorageError):
    """Another process has the database open for writing."""


class ReadOnly(StorageError):
    """Something would be written, but the database is open read-only."""


class OutOfMemory(Error, MemoryError):
    """Not enough memory; nothing was changed."""


class Cancelled(Error):
    """The caller's progress function or cancel flag stopped the work."""


stopping: ContextVar[threading.Event | None] = ContextVar("stopping", default=None)
"""An event by which another thread stops what this context runs: it then raises Cancelled."""


def check_stopped() -> None:
    """Raises Cancelled once the event in `stopping` is set."""
    stop = stopping.get()
    if stop is not None and stop.is_set():
        raise Cancelled("nobody waits for this any more")
