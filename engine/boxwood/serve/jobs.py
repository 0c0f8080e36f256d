"""Long work in the background: started by one request, followed by another, fetched by a third.

A job writes one file into a temporary folder. The file goes when all of it was fetched, when
nobody has fetched it for long, and when the server ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from boxwood.errors import Cancelled, Error
from boxwood.serve import schemas
from boxwood.serve.images import attachment
from boxwood.serve.library import Refusal

if TYPE_CHECKING:
    from boxwood.serve.schemas import Limits

_log = logging.getLogger("boxwood.serve")
_TICK = 0.1  # seconds between looks at a job that somebody follows
_ALIVE = 15.0  # seconds after which a silent stream says that it lives


class Job:
    """A piece of work. The function that does it calls `report` as it goes, which raises Cancelled
    once somebody has had enough, writes `path`, sets `note` to what people should
    know of the file, and sets `on_cancel` while something else than
    its own loop must be stopped."""

    def __init__(self, folder: Path, name: str, media_type: str) -> None:
        self.id = secrets.token_urlsafe(16)
        self.path = folder / self.id
        self.name = name
        self.type = media_type
        self.state = "waiting"  # running, done, failed
        self.done, self.total, self.words = 0, 0, "waiting for other exports"
        self.bytes = 0
        self.note = ""
        self.fetched = False
        """Whether somebody has begun to fetch the file, or a part of it."""
        self.error: schemas.ErrorDetail | None = None
        self.on_cancel: Callable[[], object] | None = None
        self.cancelled = threading.Event()

    def report(self, done: int, total: int, words: str) -> None:
        """Say how far it is. Raises Cancelled."""
        if self.cancelled.is_set():
            raise Cancelled("the export was cancelled")
        self.done, self.total, self.words = done, total, words

    def cancel(self) -> None:
        self.cancelled.set()
        stop = self.on_cancel
        if stop is not None:
            stop()

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed")


class Jobs:
    """The jobs of a server; `close` ends them and removes their files."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._folder: Path | None = None
        self._pool = ThreadPoolExecutor(2, "boxwood-job")
        self._jobs: dict[str, Job] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self, name: str, media_type: str, work: Callable[[Job], None]) -> Job:
        """Do `work` in the background; `name` is what its file is saved as. Where there are too
        many, a file that was fetched before, in part at least, makes room; refused with 429 where
        there is none."""
        with self._lock:
            full = len(self._jobs) >= self.limits.jobs
            fetched = [job.id for job in self._jobs.values() if job.fetched]
        if full and fetched:
            self.forget(fetched[0])
        with self._lock:
            if self._closed or len(self._jobs) >= self.limits.jobs:
                raise Refusal(
                    429,
                    "rate",
                    f"{len(self._jobs)} exports are at work or wait to be saved: save or cancel "
                    "one of them first",
                )
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="boxwood-exports-"))
            job = Job(self._folder, name, media_type)
            self._jobs[job.id] = job
        self._pool.submit(self._run, job, work)
        return job

    def get(self, name: str) -> Job:
        """Refused with 404 where there is no such job."""
        with self._lock:
            job = self._jobs.get(name)
        if job is None:
            raise Refusal(404, "gone", "there is no such export any more: start it again")
        return job

    def remove(self, name: str) -> None:
        """Cancel a job, and remove what it has written. Refused as `get` is."""
        job = self.get(name)
        job.cancel()
        with self._lock:
            self._jobs.pop(name, None)
            timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        job.path.unlink(missing_ok=True)  # one that is at work removes its file as it ends

    def stop(self) -> None:
        """Cancel all, and take no more."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()

    def close(self) -> None:
        """End all, and remove what they have written. One that is in the midst of something that
        cannot be stopped is waited for no longer than a second."""
        self.stop()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self.forget(job.id)
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + 1
        while any(job.state == "running" for job in jobs) and time.monotonic() < end:
            time.sleep(0.02)
            for job in jobs:
                job.cancel()  # again: DuckDB forgets an interrupt that comes between statements
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def forget(self, name: str) -> None:
        """The same of one that may be gone already."""
        with suppress(Refusal):
            self.remove(name)

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            job.report(0, 0, "starting")
            job.state = "running"
            work(job)
            job.report(job.total, job.total, "done")
            job.bytes = job.path.stat().st_size
            job.state = "done"
        except Exception as error:
            job.error = _detail(job, error)
            job.state = "failed"
            job.path.unlink(missing_ok=True)
        finally:
            job.on_cancel = None
        with self._lock:
            if job.id not in self._jobs:  # removed meanwhile
                job.path.unlink(missing_ok=True)
                return
            # Failures wait to be seen for a moment only, files to be fetched.
            wait = self.limits.job_seconds if job.state == "done" else 60.0
            timer = threading.Timer(wait, self.forget, [job.id])
            timer.daemon = True
            self._timers[job.id] = timer
            timer.start()


def _detail(job: Job, error: Exception) -> schemas.ErrorDetail:
    if job.cancelled.is_set() or isinstance(error, Cancelled):
        return schemas.ErrorDetail(kind="cancelled", message="the export was cancelled")
    if isinstance(error, Refusal):
        return schemas.ErrorDetail(kind=error.kind, message=error.message)
    if isinstance(error, Error):
        return schemas.ErrorDetail(kind="input", message=str(error))
    if isinstance(error, OSError):
        reason = error.strerror or "reading or writing failed"
        return schemas.ErrorDetail(kind="storage", message=f"the export failed: {reason}")
    _log.error("an export failed", exc_info=error)
    return schemas.ErrorDetail(
        kind="internal",
        message="the export failed; the terminal that runs `boxwood serve` says why",
    )


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter(tags=["exports"])
JobId = Annotated[str, InPath(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_ERRORS: dict[int | str, dict[str, object]] = {404: {"model": schemas.ErrorBody}}


def _event(kind: str, content: BaseModel) -> str:
    return f"event: {kind}\ndata: {json.dumps(content.model_dump())}\n\n"


async def follow(job: Job) -> AsyncIterator[str]:
    """Server-sent events: `progress`, and at the end `done` or `failed`."""
    last: tuple[object, ...] | None = None
    spoke = time.monotonic()
    while True:
        ended = job.ended
        now = (job.done, job.total, job.words)
        if now != last:
            last, spoke = now, time.monotonic()
            yield _event(
                "progress", schemas.JobProgress(done=job.done, total=job.total, words=job.words)
            )
        if ended and job.error is not None:
            yield _event("failed", schemas.JobFailed(error=job.error))
            return
        if ended:
            yield _event("done", schemas.JobDone(bytes=job.bytes, name=job.name, note=job.note))
            return
        if time.monotonic() - spoke > _ALIVE:
            spoke = time.monotonic()
            yield ": still at work\n\n"
        await asyncio.sleep(_TICK)


@router.get(
    "/jobs/{job}/events",
    summary="Follow an export",
    response_class=StreamingResponse,
    responses={
        **_ERRORS,
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "server-sent events: `progress` {done, total, words}, and at the end "
            "`done` {bytes, name, note} or `failed` {error}",
        },
    },
)
async def events(request: Request, job: JobId) -> StreamingResponse:
    found: Job = request.app.state.jobs.get(job)
    return StreamingResponse(
        follow(found), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


class _FetchedOnce(FileResponse):
    """A file that is let go of by `forget` once all of it was sent. Who got a part, or went away in
    the midst, may come again for the rest."""

    def __init__(self, path: Path, forget: Callable[[], None], **more: Any) -> None:
        super().__init__(path, **more)
        self._forget = forget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = sent = False

        async def watched(message: Message) -> None:
            nonlocal whole, sent
            if message["type"] == "http.response.start":
                whole = message["status"] == 200
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            # Asked before the last part: after that everybody is gone.
            here = last and whole and not await Request(scope, receive).is_disconnected()
            await send(message)
            sent = sent or here

        await super().__call__(scope, receive, watched)
        if sent:
            await to_thread.run_sync(self._forget)


@router.get(
    "/jobs/{job}/file",
    summary="Fetch an export, once it is done; it is removed when all of it was sent",
    response_class=FileResponse,
    responses={
        **_ERRORS,
        200: {
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
            "description": "the file",
        },
        409: {"model": schemas.ErrorBody, "description": "it is not done yet, or has failed"},
    },
)
async def file(request: Request, job: JobId) -> FileResponse:
    jobs: Jobs = request.app.state.jobs
    found = jobs.get(job)
    if found.state != "done":
        message = found.error.message if found.error else "the export is still at work"
        raise Refusal(409, "conflict", message)
    found.fetched = True
    return _FetchedOnce(
        found.path,
        partial(jobs.forget, job),
        media_type=found.type,
        headers={"Content-Disposition": attachment(found.name), "Cache-Control": "no-store"},
    )


@router.delete(
    "/jobs/{job}", summary="Cancel an export, or remove its file", status_code=204,
    responses=_ERRORS,
)  # fmt: skip
async def cancel(request: Request, job: JobId) -> Response:
    request.app.state.jobs.remove(job)
    return Response(status_code=204)
