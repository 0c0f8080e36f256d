"""Decoding ahead of the encoder: image files to the pixels that a model wants, by other processes.

A worker is a Python process of its own that imports pillow and numpy alone. It is no child of
``multiprocessing``: that one would import the caller's main module again, and its queues outlive a
parent that was killed. Here each worker has a pipe to and one from the parent; when the parent
goes, however it goes, reading from the pipe ends and the worker with it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxwood.encode.images import ImageError, load_image, open_file
from boxwood.errors import Error

Pixels = NDArray[np.uint8]

_CHUNK = 8  # images that a worker is handed at a time
_LONG = 32  # times as long as wide: such a picture is cropped while it is resized
_FEW = 256  # images: fewer are decoded by threads before processes have started
_PATIENCE = 60.0  # seconds that a process may take to start
_HUNG = 8  # threads that hang, at most; each may keep a core busy, and none can be ended
TIMEOUT = 60.0
"""Seconds that decoding an image may take. The largest that are decoded at all take some ten."""
_CORES = 4  # with fewer, threads keep all of them busy: pillow lets others run while it decodes


@dataclass(frozen=True)
class Recipe:
    """What a model wants of a picture: resized, cropped in the middle, then its values normalised.

    `resize` is the shorter side, or (height, width) where the picture is squeezed into these;
    `crop` is (height, width), `filter` a number of ``PIL.Image.Resampling``; `mean` and `std` are
    of red, green and blue as shares of 1.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    filter: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, preprocess: Any) -> Recipe | None:
        """The recipe of an open_clip preprocessing; None for one that is put together otherwise."""
        try:
            from torchvision.transforms import InterpolationMode

            steps = {type(step).__name__: step for step in preprocess.transforms}
            known = {"Resize", "CenterCrop", "MaybeConvertMode", "MaybeToTensor", "ToTensor",
                     "Normalize", "function"}  # fmt: skip
            if len(steps) != len(preprocess.transforms) or not set(steps) <= known:
                return None
            resize, normal = steps["Resize"], steps["Normalize"]
            names = {InterpolationMode.BICUBIC: 3, InterpolationMode.BILINEAR: 2}
            sides = [int(side) for side in np.ravel(resize.size)]
            if "CenterCrop" in steps or len(sides) == 1:
                tall, wide = (int(side) for side in steps["CenterCrop"].size)
            else:
                tall, wide = sides
            if max(tall, wide) > min(sides) or resize.max_size is not None:
                return None
            return cls(
                sides[0] if len(sides) == 1 else (sides[0], sides[1]), (tall, wide),
                names[resize.interpolation],
                tuple(map(float, normal.mean)), tuple(map(float, normal.std)),
            )  # fmt: skip
        except (AttributeError, ImportError, KeyError, TypeError, ValueError):
            return None

    def pixels(self, picture: Any) -> Pixels:
        """The pixels (height, width, 3) of a Pillow image, as torchvision makes them."""
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        width, height = picture.size
        tall, wide = self.crop
        if isinstance(self.resize, tuple):
            wanted = (self.resize[1], self.resize[0])
        else:
            short = min(width, height)
            wanted = (
                (self.resize, int(self.resize * height / width)) if width == short
                else (int(self.resize * width / height), self.resize)
            )  # fmt: skip
        left, top = round((wanted[0] - wide) / 2.0), round((wanted[1] - tall) / 2.0)
        if max(wanted) > _LONG * min(wanted):  # resized in full it might not fit into memory
            x, y = width / wanted[0], height / wanted[1]
            box = (left * x, top * y, (left + wide) * x, (top + tall) * y)
            picture = picture.resize((wide, tall), self.filter, box=box)
        else:
            if wanted != picture.size:
                picture = picture.resize(wanted, self.filter)
            if wanted != (wide, tall):
                picture = picture.crop((left, top, left + wide, top + tall))
        return np.asarray(picture)


class Slice(NamedTuple):
    """Bytes within a file, as a member of a tar has them."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """An image to decode: what it is called, where its bytes are, and what is known of it."""

    uri: str
    data: str | bytes | Slice
    """The path of a file, the bytes themselves, or where they are within a file."""
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image: `pixels` by the recipe, or without one a Pillow image."""

    item: Item
    pixels: Any
    width: int
    height: int
    bytes: int
    modified: datetime | None
    """Of the file, in UTC; None for what is no file of its own."""
    hash: str
    """Of the bytes, BLAKE2b of 128 bits, 32 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An image that cannot be used: one of `boxwood.encode.images.REASONS`, and details."""

    uri: str
    reason: str
    detail: str


def content_hash(file: IO[bytes]) -> str:
    """BLAKE2b-128 of an open file from where it stands to its end."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # type: ignore[arg-type]


def _source(data: str | bytes | Slice) -> tuple[IO[bytes], int, datetime | None]:
    if isinstance(data, str):
        file = open_file(data)
        status = os.fstat(file.fileno())
        modified = datetime.fromtimestamp(int(status.st_mtime), UTC).replace(tzinfo=None)
        return file, status.st_size, modified
    if isinstance(data, Slice):
        with open_file(data.file) as shard:
            shard.seek(data.offset)
            held = shard.read(data.size)
        if len(held) < data.size:
            raise ImageError(data.file, "the shard ends in the middle of it", "truncated")
        data = held
    return io.BytesIO(data), len(data), None


def decode(item: Item, recipe: Recipe | None) -> Decoded | Broken:
    """Decode one image; raises nothing but what is no fault of the image's."""
    try:
        file, size, modified = _source(item.data)
        with file:
            digest = content_hash(file)
            file.seek(0)
            picture = load_image(file)
        width, height = picture.info["file_size"]
        pixels = picture if recipe is None else recipe.pixels(picture)
        return Decoded(item, pixels, width, height, size, modified, digest)
    except ImageError as error:
        return Broken(item.uri, error.kind, error.reason)
    except MemoryError:
        return Broken(item.uri, "unreadable", "not enough memory to decode it")
    except OSError as error:
        return Broken(item.uri, "unreadable", error.strerror or str(error))


# --- worker processes -----------------------------------------------------------------------------

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from boxwood.encode.decode import serve; serve({recipe!r})"
)


def serve(recipe_: tuple[Any, ...]) -> None:
    """The life of a worker: lists of items come in, lists of what became of them go out."""
    recipe = Recipe(*recipe_)
    tasks = sys.stdin.buffer
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not come between the results
    pickle.dump("ready", results)
    results.flush()
    with suppress(EOFError, BrokenPipeError):
        while True:
            items = [Item("", data) for data in pickle.load(tasks)]
            pickle.dump([_fields(decode(item, recipe)) for item in items], results, 5)
            results.flush()
    os._exit(0)  # nothing is left to write, and the pipe may be gone


def _fields(result: Decoded | Broken) -> tuple[Any, ...]:
    if isinstance(result, Broken):
        return (result.reason, result.detail)
    return (
        result.pixels, result.width, result.height, result.bytes, result.modified, result.hash,
    )  # fmt: skip


class _WorkerDied(Exception):
    pass


class _Worker:
    """A process that decodes; one thread uses it."""

    def __init__(self, recipe: Recipe) -> None:
        fields = (recipe.resize, recipe.crop, recipe.filter, recipe.mean, recipe.std)
        program = _PROGRAM.format(path=list(sys.path), recipe=fields)
        # In a group of its own: Ctrl-C is for the parent, which then ends it.
        group = {"process_group": 0} if os.name == "posix" else {}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, bufsize=1 << 18, **group,  # type: ignore[call-overload]
        )  # fmt: skip

    def ready(self) -> bool:
        """Whether it has started; where Python is part of another program, that is not sure."""
        timer = threading.Timer(_PATIENCE, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            return bool(pickle.load(self.process.stdout) == "ready")
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            return False
        finally:
            timer.cancel()

    def decode(self, items: Sequence[Item]) -> list[Decoded | Broken]:
        try:
            pickle.dump([item.data for item in items], self.process.stdin, 5)
            self.process.stdin.flush()
            replies = pickle.load(self.process.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise _WorkerDied from error
        return [
            Broken(item.uri, *fields) if len(fields) == 2 else Decoded(item, *fields)
            for item, fields in zip(items, replies, strict=True)
        ]

    def end(self) -> None:
        # Not close(): that would wait for the thread that reads from it.
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that waits for a disk that is gone
            self.process.wait(5)


@dataclass(eq=False)
class _Chunk:
    """Entries that one thread decodes, in order, and what became of them so far."""

    entries: list[Item | Broken]
    results: list[Decoded | Broken] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    worker: _Worker | None = None
    since: float | None = None
    """When decoding began of the next entry, or of all that the worker has; None: of none."""
    overdue: float | None = None
    """The `since` that was too long ago when that was last looked at."""
    late: float | None = None
    """The `since` that the worker was ended for."""
    error: BaseException | None = None


class Decoder:
    """Decodes items a little ahead of who takes them, and gives them back in order.

    `workers` is how many processes decode. One may crash without harm: its items are decoded again
    one by one, and the one that ends a second process is given up as broken. With 0, without a
    recipe, and where no process can be started, threads of this process decode, 8 at most. None:
    a process a core, 16 at most, but threads for some hundred items, or on fewer than 4 cores.
    `ahead` is how many results may wait.

    An image that takes more than `timeout` seconds is given up (None: never). A process that is not
    done with its few images by then is ended, and another one gets them one by one. A thread cannot
    be ended: another one takes its place, and it goes on until it is done or this process ends, so
    `take` raises Error when too many of them hang. A decoder that keeps Python's lock while it
    hangs stops all of this process.
    """

    def __init__(
        self,
        items: Iterable[Item | Broken],
        recipe: Recipe | None,
        workers: int | None = None,
        ahead: int = 512,
        timeout: float | None = TIMEOUT,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = cores or 1
        few = list(itertools.islice(items := iter(items), _FEW + 1))
        self._items = itertools.chain(few, items)
        if workers is None:
            workers = min(16, cores) if cores >= _CORES and len(few) > _FEW else 0
        self.processes = bool(recipe is not None and workers and sys.executable)
        self._most = workers if self.processes else min(8, cores)  # threads
        self._recipe = recipe
        self._ahead = ahead if recipe is not None else min(ahead, 64)
        self._timeout = timeout
        self._own = threading.local()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self._threads: set[threading.Thread] = set()
        self._hung: list[threading.Thread] = []
        self._queue: SimpleQueue[_Chunk | None] = SimpleQueue()
        self._waiting: deque[_Chunk] = deque()
        self._results: deque[Decoded | Broken] = deque()
        self._count = 0

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            alive = list(self._all)
        for _thread in self._threads:
            self._queue.put(None)
        for worker in alive:
            worker.end()

    def take(self, n: int) -> list[Decoded | Broken]:
        """The next n results; fewer at the end."""
        while len(self._results) < n:
            self._fill()
            if not self._waiting:
                break
            chunk = self._waiting[0]
            self._wait(chunk)
            self._waiting.popleft()
            self._results.extend(chunk.results)
            self._count -= len(chunk.entries)
        return [self._results.popleft() for _ in range(min(n, len(self._results)))]

    def _fill(self) -> None:
        while self._count < self._ahead:
            entries = list(itertools.islice(self._items, _CHUNK))
            if not entries:
                return
            chunk = _Chunk(entries)
            self._waiting.append(chunk)
            self._count += len(entries)
            self._queue.put(chunk)
            if len(self._threads) < self._most:
                self._start(None)

    # --- time limit

    def _wait(self, chunk: _Chunk) -> None:
        every = None if self._timeout is None else min(1.0, self._timeout / 4)
        while not chunk.finished.wait(every):
            for other in self._waiting:
                if other.since is not None:
                    self._look(other, other.since)
        if chunk.error is not None:
            raise chunk.error

    def _look(self, chunk: _Chunk, since: float) -> None:
        """Give up the image that a chunk is at, if its time is over."""
        if self._timeout is None or time.monotonic() - since < self._timeout:
            return
        if chunk.overdue != since:  # this process may have been stopped: what is done is read first
            chunk.overdue = since
            return
        with self._lock:
            if chunk.since != since or len(chunk.results) == len(chunk.entries):
                return
            if (worker := chunk.worker) is not None:
                chunk.late = since
                worker.process.kill()  # which its thread sees
                return
            assert chunk.thread is not None
            self._hung = [thread for thread in self._hung if thread.is_alive()]
            if len(self._hung) == _HUNG:
                raise Error(
                    f"{_HUNG} images hang in their decoders, in threads, which cannot be ended: "
                    "decode in processes, workers=1 or more (--workers)"
                )
            self._hung.append(chunk.thread)
            self._threads.discard(chunk.thread)
            chunk.results.append(self._given_up(chunk))
            chunk.thread = chunk.since = None
        self._start(chunk)

    def _given_up(self, chunk: _Chunk) -> Broken:
        entry = chunk.entries[len(chunk.results)]
        detail = f"decoding it took more than {self._timeout:g} seconds, the time limit"
        return Broken(entry.uri, "timeout", detail)

    # --- threads

    def _start(self, chunk: _Chunk | None) -> None:
        """Start a thread, with a chunk that another one has begun or with the next."""
        # One that hangs must not keep the interpreter from ending.
        thread = threading.Thread(
            target=self._run, args=(chunk,), name="boxwood-decode", daemon=True
        )
        self._threads.add(thread)
        thread.start()

    def _run(self, chunk: _Chunk | None) -> None:
        while (chunk := chunk or self._queue.get()) is not None and not self._closed:
            chunk.thread = threading.current_thread()
            try:
                if not self._decode(chunk):
                    return
            except BaseException as error:
                with self._lock:
                    if chunk.thread is not threading.current_thread():
                        return
                    chunk.error = error
            with self._lock:
                chunk.since = None
            chunk.finished.set()
            chunk = None

    def _decode(self, chunk: _Chunk) -> bool:
        """Decode what is left of a chunk; False if it was taken from this thread."""
        alone = False  # after a worker was ended over some of them
        while (rest := chunk.entries[len(chunk.results) :]) and not self._closed:
            items = list(itertools.takewhile(lambda entry: isinstance(entry, Item), rest))
            if not items:
                chunk.results.append(rest[0])  # type: ignore[arg-type]
                continue
            worker = self._worker()
            with self._lock:
                chunk.worker, chunk.since = worker, time.monotonic()
            if worker is None:
                result = decode(items[0], self._recipe)  # type: ignore[arg-type]
                if not self._note(chunk, result):
                    return False
                continue
            sent = items[:1] if alone else items
            try:
                for result in worker.decode(sent):  # type: ignore[arg-type]
                    self._note(chunk, result)
            except _WorkerDied:
                self._drop()
                if chunk.late == chunk.since and len(sent) == 1:
                    self._note(chunk, self._given_up(chunk))
                elif alone:
                    said = "decoding it ended the process that did"
                    self._note(chunk, Broken(sent[0].uri, "broken", said))
                alone = True
            finally:
                with self._lock:
                    chunk.worker = chunk.since = None
        return True

    def _note(self, chunk: _Chunk, result: Decoded | Broken) -> bool:
        """Note what became of a chunk's next entry, unless it was taken from this thread."""
        with self._lock:
            if chunk.thread is not threading.current_thread():
                return False
            chunk.results.append(result)
            chunk.since = time.monotonic()
        return True

    def _worker(self) -> _Worker | None:
        """This thread's worker, started if need be; None where threads decode."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is not None or not self.processes:
            return worker
        try:
            with self._lock:
                if self._closed:
                    raise Error("decoding was stopped")
                worker = _Worker(self._recipe)  # type: ignore[arg-type]
                self._all.append(worker)
        except (OSError, ValueError):
            self.processes = False
            return None
        if not worker.ready():
            self.processes = False
            return None
        self._own.worker = worker
        return worker

    def _drop(self) -> None:
        worker: _Worker = self._own.worker
        self._own.worker = None
        worker.end()
        with self._lock:
            self._all.remove(worker)
