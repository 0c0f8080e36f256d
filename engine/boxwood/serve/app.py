"""The app: the database, the routes, the page, and what errors become."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import duckdb
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

import boxwood
from boxwood import errors
from boxwood.collection import Collection
from boxwood.serve import exports, images, jobs, queries, saved, security, views
from boxwood.serve.images import Pictures
from boxwood.serve.jobs import Jobs
from boxwood.serve.library import Cursor, Library, Refusal
from boxwood.serve.schemas import (
    CollectionInfo,
    ErrorBody,
    ErrorDetail,
    Info,
    LearnerInfo,
    LearnerOption,
    Limits,
    PublicLimits,
)
from boxwood.serve.views import Views

__all__ = ["create_app"]

_log = logging.getLogger("boxwood.serve")
_STATIC = Path(__file__).resolve().parent / "static"

_WORDS = {
    400: "what was asked cannot be done; the message says why",
    403: "refused: the database is open read-only, or the request is not from the page itself",
    404: "there is no such thing, or it is not kept any more",
    409: "it conflicts with what is there",
    413: "it is too large",
    422: "the request is not of this form",
    429: "too many requests",
    500: "a fault of the server",
    503: "the index, the database or what the collection needs cannot be used",
}

_NEGATIVES = LearnerOption(name="random_negatives", min=0, max=100_000, default=500)
_TREE_NEGATIVES = LearnerOption(name="random_negatives", min=0, max=30_000, default=500)
_WEIGHT = LearnerOption(name="negative_weight", min=0.01, max=100, default=1)
_PRIOR = LearnerOption(name="prior", min=0, max=1, default=True)
_ESTIMATORS = LearnerOption(name="estimators", min=1, max=1_024, default=25)


def _learners() -> list[LearnerInfo]:
    trees = find_spec("sklearn") is not None
    return [
        LearnerInfo(
            name="cover", title="Cover", query=True, available=True,
            words="Learns a score from few marks and from what the rest of the collection is like, "
            "and where to cut it; the best choice for nearly everything.",
            options=[
                LearnerOption(name="random_negatives", min=8, max=100_000, default=30_000),
                _WEIGHT,
                LearnerOption(name="boxes", min=0, max=64, default=0),
                LearnerOption(name="rerank", min=0, max=1, default=False),
            ],
        ),
        LearnerInfo(
            name="branch", title="Decision branch", query=True, available=True,
            words="One set of boxes around what you marked as right; simple and fast.",
            options=[_NEGATIVES, _WEIGHT, _PRIOR],
        ),
        LearnerInfo(
            name="ensemble", title="Ensemble of branches", query=True, available=True,
            words="Several decision branches that vote; steadier than one.",
            options=[_NEGATIVES, _WEIGHT, _ESTIMATORS, _PRIOR],
        ),
        LearnerInfo(
            name="tree", title="Decision tree", query=False, available=trees,
            words="A classic decision tree from scikit-learn; needs a fair number of marks.",
            options=[_TREE_NEGATIVES, _WEIGHT],
        ),
        LearnerInfo(
            name="forest", title="Random forest", query=False, available=trees,
            words="Many decision trees that vote, from scikit-learn; slower, and needs many marks.",
            options=[_TREE_NEGATIVES, _WEIGHT, _ESTIMATORS],
        ),
    ]  # fmt: skip


# --- errors ---------------------------------------------------------------------------------------


def _told(error: Exception) -> tuple[int, str, str]:
    """The status, kind and message of an error."""
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, Refusal):
        return error.status, error.kind, error.message
    if isinstance(error, errors.InputError):
        return 400, "input", str(error)
    if isinstance(error, errors.ReadOnly):
        return 403, "read-only", message
    if isinstance(error, errors.MissingDependency):
        return 503, "dependency", message
    if isinstance(error, errors.IndexProblem):
        return 503, "index", message
    if isinstance(error, (errors.StorageError, errors.OutOfMemory)):
        return 503, "storage", message
    if isinstance(error, (errors.Cancelled, duckdb.InterruptException)):
        return 503, "cancelled", "the work was stopped: try again"
    if isinstance(error, errors.Error):
        return 409, "conflict", message
    if isinstance(error, (duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException)):
        return 503, "storage", message
    if isinstance(error, duckdb.TransactionException):
        return 409, "conflict", "somebody else changed the same: try again"
    return 500, "internal", "something went wrong; the terminal that runs `boxwood serve` says what"


def _answer(
    status: int, kind: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    # A lone surrogate, which JSON can hold, is no text that can be sent.
    message = message.encode("utf-8", "replace").decode("utf-8")
    body = ErrorBody(error=ErrorDetail(kind=kind, message=message))
    return JSONResponse(body.model_dump(), status, headers)


async def _on_error(request: Request, error: Exception) -> Response:
    status, kind, message = _told(error)
    if request.app.state.library.ending and status >= 500:
        # Whatever it was driven to when the database was closed under it.
        return _answer(503, "cancelled", "the server ends")
    if status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(status, kind, message)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    parts = []
    for one in error.errors()[:5]:
        place = ".".join(str(part) for part in one["loc"] if part not in ("body", "query", "path"))
        parts.append(f"{place}: {one['msg']}" if place else str(one["msg"]))
    return _answer(422, "invalid", "; ".join(parts))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {400: "invalid", 404: "missing", 405: "method", 413: "too-large"}
    headers = dict(error.headers) if error.headers else None
    kind = kinds.get(error.status_code, "http")
    return _answer(error.status_code, kind, str(error.detail), headers)


# --- the app --------------------------------------------------------------------------------------


def create_app(
    database: str | PathLike[str],
    *,
    read_only: bool = False,
    roots: Iterable[str | PathLike[str]] = (),
    remote: bool = False,
    token: str | None = None,
    hosts: Iterable[str] | None = None,
    cache: str | PathLike[str] | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> FastAPI:
    """The page and its API over a database, as an ASGI app.

    read_only: open the database so; sessions then live in memory, and nothing is stored.
    roots: folders; with them, images are sent only from within these.
    remote: whether images at http and https addresses are fetched.
    token: what clients must show; None: nothing, for servers that only this machine can reach.
    hosts: the names by which the server may be asked for, without ports; None: those of loopback.
    cache: the folder of thumbnails and uploads; None: beside the database.

    The database is opened at once, and closed when the app's lifespan ends.
    """
    library = Library(database, read_only=read_only)
    pictures = Pictures(
        None if library.memory else library.path,
        roots=[Path(root) for root in roots],
        remote=remote,
        cache=None if cache is None else Path(cache),
        limits=limits,
    )
    work = Jobs(limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            close(app)

    app = FastAPI(
        title="Boxwood",
        summary="Search by classification over collections of images",
        version=boxwood.__version__,
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={
            status: {"model": ErrorBody, "description": words} for status, words in _WORDS.items()
        },
    )
    app.state.library = library
    app.state.views = Views(limits.view_bytes)
    app.state.pictures = pictures
    app.state.jobs = work
    app.state.limits = limits
    app.state.remote = remote
    for kind in (errors.Error, duckdb.Error, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for part in (router, queries.router, views.router, images.router, saved.router,
                 exports.router, jobs.router):  # fmt: skip
        app.include_router(part, prefix="/api")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    app.add_middleware(
        security.Guard, limits=limits, token=token,
        hosts=security.LOOPBACK if hosts is None else tuple(hosts),
    )  # fmt: skip
    return app


def stop(app: FastAPI) -> None:
    """Stop what runs, so that requests end soon; `close` follows. From any thread."""
    app.state.library.stop()
    app.state.jobs.stop()


def close(app: FastAPI) -> None:
    """Close the database and remove temporary files. A second time does nothing."""
    stop(app)
    app.state.jobs.close()
    app.state.pictures.close()
    app.state.library.close()


# --- about the database ---------------------------------------------------------------------------

router = APIRouter(tags=["about"])


@router.get("/info")
async def info(request: Request) -> Info:
    """What this server is, takes and offers."""
    library: Library = request.app.state.library
    limits: Limits = request.app.state.limits
    return Info(
        version=boxwood.__version__,
        database=library.path.name,
        read_only=library.read_only,
        remote=request.app.state.remote,
        limits=PublicLimits(
            upload_bytes=limits.upload_bytes, zip_files=limits.zip_files,
            zip_bytes=limits.zip_bytes, page=limits.page, results=limits.results,
        ),
        learners=_learners(),
    )  # fmt: skip


@router.get("/collections")
async def collections(request: Request, cursor: Cursor) -> list[CollectionInfo]:
    """The collections of the database, and the columns of their metadata."""

    def describe(about: dict[str, Any]) -> CollectionInfo:
        table = cursor.table(about["name"])
        return CollectionInfo(
            name=about["name"],
            rows=about["rows"],
            encoder=about["encoder"],
            words=about["encoder"] is not None and about["quantizer"] is not None,
            pictures=table is not None and table.uri,
            fine=about["fine"] is not None,
            state=about["state"],
            columns=[] if table is None else table.columns,
        )

    return await cursor.library.run(
        request, lambda: [describe(about) for about in Collection.describe(cursor.con)]
    )
