"""What is kept of somebody's work: sessions, and concepts."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import duckdb
from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from boxwood import sessions
from boxwood.catalog import literal
from boxwood.collection import Collection
from boxwood.concepts import Concept
from boxwood.errors import InputError
from boxwood.serve.library import Cursor, Library, Refusal, RequestCursor
from boxwood.serve.queries import refined_base, show
from boxwood.serve.schemas import (
    ArrangeRequest,
    ConceptDetail,
    ConceptInfo,
    ConceptName,
    ConflictBody,
    ConflictDetail,
    Name,
    NewConcept,
    NewSession,
    Result,
    SessionChange,
    SessionId,
    SessionOut,
    SessionSaved,
    SessionState,
    SessionSummary,
    Unchecked,
)

__all__ = ["router"]

M = TypeVar("M", bound=BaseModel)

router = APIRouter(tags=["saved"])

_MEMORY_SESSIONS = 100
"""Where they are kept in memory."""

Id = Annotated[SessionId, Path(description="what opens the session")]
CollectionName = Annotated[Name, Path(description="the collection")]
ConceptPath = Annotated[ConceptName, Path(description="the concept")]

_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ConflictBody, "description": "it was changed elsewhere meanwhile"}
}


# --- sessions -------------------------------------------------------------------------------------

_memories: weakref.WeakKeyDictionary[Library, duckdb.DuckDBPyConnection] = (
    weakref.WeakKeyDictionary()
)
_memories_lock = threading.Lock()


@contextmanager
def _sessions(cursor: RequestCursor) -> Iterator[tuple[duckdb.DuckDBPyConnection, int]]:
    """Where sessions are kept, and how many at most: in the database; where that is open read-only,
    in the memory of the server, until it ends."""
    library = cursor.library
    if not library.read_only:
        yield cursor.con, sessions.MAX_SESSIONS
        return
    with _memories_lock:
        memory = _memories.get(library)
        if memory is None:
            memory = _memories[library] = sessions.in_memory()
    with memory.cursor() as cur:
        yield cur, _MEMORY_SESSIONS


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except sessions.UnknownSession as error:
        raise Refusal(404, "session", str(error)) from error
    except sessions.TooLarge as error:
        raise Refusal(413, "too-large", str(error)) from error


@router.get("/sessions", summary="Sessions, the latest first")
async def get_sessions(
    request: Request,
    cursor: Cursor,
    collection: Annotated[Name | None, Query(description="of this collection alone")] = None,
) -> list[SessionSummary]:
    def work() -> list[SessionSummary]:
        with _sessions(cursor) as (cur, _):
            found = sessions.listed(cur, collection)
        return [SessionSummary(**summary._asdict()) for summary in found]

    return await cursor.library.run(request, work)


@router.post("/sessions", summary="Keep a new session")
async def post_session(
    request: Request, cursor: Cursor, sent: Annotated[Any, Unchecked(NewSession), Body()]
) -> SessionSaved:
    def work() -> SessionSaved:
        body = _checked(NewSession, sent)
        cursor.record(body.collection)
        with _refusals(), _sessions(cursor) as (cur, most):
            made = sessions.make(cur, body.collection, body.name, _plain(body.state), most)
        return SessionSaved(id=made.id, revision=made.revision)

    return await cursor.library.run(request, work)


@router.get("/sessions/{id}", summary="A session, to go on with", response_model=SessionOut)
async def get_session(request: Request, cursor: Cursor, id: Id) -> Response:
    def work() -> Response:
        with _refusals(), _sessions(cursor) as (cur, _):
            kept = sessions.read(cur, id)
        about = SessionOut(
            id=kept.id, revision=kept.revision, collection=kept.collection, name=kept.name,
            created=kept.created, updated=kept.updated, state=SessionState.model_construct(),
        ).model_dump_json(exclude={"state"})  # fmt: skip
        # The state goes as it is kept: it was checked when it came, and may be long.
        return Response(f'{about[:-1]},"state":{kept.text}}}', media_type="application/json")

    return await cursor.library.run(request, work)


@router.put(
    "/sessions/{id}",
    summary="Change a session that nobody else has changed since it was read",
    response_model=SessionSaved,
    responses=_CONFLICT,
)
async def put_session(
    request: Request,
    cursor: Cursor,
    id: Id,
    sent: Annotated[Any, Unchecked(SessionChange), Body()],
) -> SessionSaved | JSONResponse:
    def work() -> SessionSaved | JSONResponse:
        body = _checked(SessionChange, sent)
        with _refusals(), _sessions(cursor) as (cur, _):
            try:
                revision = sessions.write(cur, id, body.revision, body.name, _plain(body.state))
            except sessions.Conflict as error:
                detail = ConflictDetail(
                    kind="conflict", message=str(error), revision=error.stored.revision
                )
                return JSONResponse(ConflictBody(error=detail).model_dump(), 409)
        return SessionSaved(id=id, revision=revision)

    return await cursor.library.run(request, work)


@router.delete("/sessions/{id}", status_code=204, summary="Forget a session")
async def delete_session(request: Request, cursor: Cursor, id: Id) -> None:
    def work() -> None:
        with _refusals(), _sessions(cursor) as (cur, _):
            sessions.delete(cur, id)

    await cursor.library.run(request, work)


def _checked(model: type[M], sent: object) -> M:
    """The body of a request that is `Unchecked`."""
    try:
        return model.model_validate(sent)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _plain(state: SessionState) -> dict[str, Any]:
    try:
        return state.model_dump(mode="json")
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the state of a session cannot be kept: its parts are nested too deeply"
        ) from error


# --- concepts -------------------------------------------------------------------------------------


@router.get("/collections/{collection}/concepts", summary="The collection's concepts, by name")
async def get_concepts(
    request: Request, cursor: Cursor, collection: CollectionName
) -> list[ConceptInfo]:
    def work() -> list[ConceptInfo]:
        of = cursor.collection(collection)
        return [
            ConceptInfo(
                name=concept.name, version=concept.version, learner=concept.learner,
                created=concept.created.astimezone(), positives=len(concept.positives),
                negatives=len(concept.negatives), note=concept.note, count=_count(of, concept),
                current=concept.current,
            )
            for concept in of.concepts()
        ]  # fmt: skip

    return await cursor.library.run(request, work)


@router.post(
    "/collections/{collection}/concepts",
    summary="Save the model of a view under a name",
)
async def post_concept(
    request: Request, cursor: Cursor, collection: CollectionName, body: NewConcept
) -> ConceptDetail:
    def work() -> ConceptDetail:
        of = cursor.collection(collection)
        _refuse_read_only(cursor)
        base = request.app.state.views.get(cursor, body.view).base
        if base.collection != collection:
            raise Refusal(400, "input", f"these results are of the collection {base.collection!r}")
        if base.model is None:
            raise Refusal(
                400, "input", "these results have no model to save: mark some of them, and refine"
            )
        quantizer = cursor.record(collection).quantizer
        if base.model.quantizer and base.model.quantizer != quantizer:
            raise Refusal(
                409, "recoded", "the collection was re-coded since these results: refine again"
            )
        if not body.replace and body.name in of.concept_names():
            raise Refusal(
                409, "exists",
                f"there is a concept {body.name!r} already: save it under another name, or as that "
                "one's next version",
            )  # fmt: skip
        saved = of.save_concept(
            body.name, base.model,
            base.positives if body.positives is None else body.positives,
            base.negatives if body.negatives is None else body.negatives,
            note=body.note, replace=body.replace,
        )  # fmt: skip
        return _detail(of, saved)

    return await cursor.library.run(request, work)


@router.get("/collections/{collection}/concepts/{name}", summary="A concept, with its labels")
async def get_concept(
    request: Request, cursor: Cursor, collection: CollectionName, name: ConceptPath
) -> ConceptDetail:
    def work() -> ConceptDetail:
        of = cursor.collection(collection)
        return _detail(of, _concept(of, name))

    return await cursor.library.run(request, work)


@router.post(
    "/collections/{collection}/concepts/{name}/open",
    summary="All images that a concept finds",
)
async def open_concept(
    request: Request,
    cursor: Cursor,
    collection: CollectionName,
    name: ConceptPath,
    body: ArrangeRequest,
) -> Result:
    def work() -> Result:
        start = time.perf_counter()
        of = cursor.collection(collection)
        concept = _concept(of, name)
        if not concept.current:
            raise Refusal(
                409, "recoded",
                f"the concept {name!r} was saved before the collection was re-coded: refine with "
                "its labels again, and save that as its next version",
            )  # fmt: skip
        base = refined_base(
            collection, of.search(concept), "concept", positives=concept.positives,
            negatives=concept.negatives,
            sql=f"SELECT id, votes, score FROM concept({literal(collection)}, {literal(name)})",
        )  # fmt: skip
        return show(request, cursor, base, start, body.filters, body.sort, body.previous)

    return await cursor.library.run(request, work)


@router.delete(
    "/collections/{collection}/concepts/{name}",
    status_code=204,
    summary="Remove a concept with all its versions",
)
async def delete_concept(
    request: Request, cursor: Cursor, collection: CollectionName, name: ConceptPath
) -> None:
    def work() -> None:
        of = cursor.collection(collection)
        _refuse_read_only(cursor)
        _concept_there(of, name)
        of.drop_concept(name)

    await cursor.library.run(request, work)


def _detail(of: Collection, concept: Concept) -> ConceptDetail:
    return ConceptDetail(
        name=concept.name, version=concept.version, learner=concept.learner,
        created=concept.created.astimezone(), positives=list(concept.positives),
        negatives=list(concept.negatives), note=concept.note, count=_count(of, concept),
        current=concept.current, sql=concept.sql,
    )  # fmt: skip


def _count(of: Collection, concept: Concept) -> int | None:
    return of.count(concept) if concept.current else None


def _concept(of: Collection, name: str) -> Concept:
    _concept_there(of, name)
    return of.concept(name)


def _concept_there(of: Collection, name: str) -> None:
    known = of.concept_names()
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "there are none"
        raise Refusal(404, "concept", f"there is no concept {name!r}: {there}")


def _refuse_read_only(cursor: RequestCursor) -> None:
    if cursor.library.read_only:
        raise Refusal(
            403, "read-only",
            "the database is open read-only, so that concepts can neither be saved nor removed: "
            "start `boxwood serve` without --read-only",
        )  # fmt: skip
