"""What is sought becomes results: searches, refinements, the border of a model, and reasons."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi import Query as InQuery
from numpy.typing import NDArray

from boxwood import native, rows
from boxwood.catalog import Codes, literal
from boxwood.collection import Collection, Encoded, Estimate, Refined
from boxwood.encode import Quantizer
from boxwood.errors import InputError
from boxwood.model import Model
from boxwood.native import Ids
from boxwood.serve import views
from boxwood.serve.images import Pictures, title
from boxwood.serve.library import Cursor, Refusal, RequestCursor
from boxwood.serve.schemas import (
    BorderRequest,
    EstimateOut,
    Filter,
    ImageInfo,
    Limits,
    PictureInfo,
    Query,
    RefineRequest,
    Result,
    ResultKind,
    SampleRequest,
    SearchRequest,
    Sort,
    Stats,
    Value,
    Why,
    WhyBox,
    WhyDim,
    WhyNear,
    WhyRange,
)
from boxwood.serve.views import Base, Rank, View, ViewPath, Views

__all__ = ["Sought", "border", "refined_base", "router", "search_base", "show", "sought", "why"]

T = TypeVar("T")

BY_SCORE: Rank = (("r.score", True), ("r.id", False))
BY_DISTANCE: Rank = (("r.distance", False), ("r.id", False))
_MIDDLE = 127.5
"""The code of the mean of a collection, in every dimension: quantizers are symmetric around it."""
_NEAREST = 3  # marks that reasons name
_DIMS = 8  # dimensions that they name
_BOXES = 2


# --- what is sought -------------------------------------------------------------------------------


class Sought(NamedTuple):
    """What a query comes to: a code, how SQL says the search for it, and a model within."""

    encoded: Encoded
    function: str
    """The macro with its first arguments, open for more."""
    within: Model | None
    words: str


def sought(
    cursor: RequestCursor, collection: Collection, query: Query, pictures: Pictures
) -> Sought:
    """The code of a query."""
    within = None
    if query.concept is not None:
        if query.concept not in collection.concept_names():
            message = f"the collection {collection.name!r} has no concept {query.concept!r}"
            raise Refusal(404, "concept", message)
        within = collection.concept(query.concept).model
    name = literal(collection.name)
    texts, images = query.texts, query.images
    if texts and not images:
        phrases = [text.words for text in texts]
        weights = [text.weight for text in texts]
        encoded = collection.encode(text=phrases, weights=weights, template=query.template)
        said = literal(phrases[0]) if len(texts) == 1 else _sql_list(map(literal, phrases))
        more = ""
        if weights != [1.0] * len(weights):
            more += f", weights := {_sql_list(map(views.number, weights))}"
        if query.template is not None:
            more += f", template := {literal(query.template)}"
        # Named arguments come after k and recall as well as before them.
        return Sought(encoded, f"search_text({name}, {said}{more}", within, "words")
    if len(images) == 1 and not texts and images[0].weight > 0:
        only = images[0]
        if only.id is not None:
            encoded = _own(cursor, collection, only.id)
            return Sought(encoded, f"search_like({name}, {only.id}", within, "an image")
        assert only.upload is not None
        encoded = _uploaded(collection, pictures, only.upload)
        return Sought(encoded, _search_code(name, encoded.code), within, "an image")
    parts: list[tuple[Codes, float]] = [
        (collection.encode(text=text.words, template=query.template).code, text.weight)
        for text in texts
    ]
    for image in images:
        if image.id is not None:
            part = _own(cursor, collection, image.id)
        else:
            assert image.upload is not None
            part = _uploaded(collection, pictures, image.upload)
        parts.append((part.code, image.weight))
    code = mixture(
        np.stack([code for code, _ in parts]), [weight for _, weight in parts],
        collection.quantizer or Quantizer(-_MIDDLE, 1.0),
    )  # fmt: skip
    encoded = Encoded(code, None, cursor.record(collection.name).quantizer)
    return Sought(encoded, _search_code(name, code), within, "a mixture")


def mixture(codes: Codes, weights: Sequence[float], quantizer: Quantizer) -> Codes:
    """The code (32,) that lies in the direction of the weighted sum of codes (n, 32) as unit
    vectors, as far out as these are on average."""
    vectors = quantizer.decode(codes).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)
    given = np.asarray(weights, np.float64)
    given /= np.abs(given).max()
    way = given @ (vectors / np.maximum(lengths, 1e-30)[:, None])
    if np.linalg.norm(way) < 1e-6:
        raise InputError(
            "the weighted parts cancel each other out, so that nothing is left to search for: "
            "change the weights"
        )
    length = np.abs(given) @ lengths / np.abs(given).sum()
    code: Codes = quantizer.encode((way / np.linalg.norm(way) * length)[None])[0]
    return code


def _own(cursor: RequestCursor, collection: Collection, id_: int) -> Encoded:
    try:
        codes, fine = collection.codes([id_])
    except InputError as error:
        message = f"the collection {collection.name!r} has no id {id_}"
        raise Refusal(404, "image", message) from error
    quantizer = cursor.record(collection.name).quantizer
    return Encoded(codes[0], None if fine is None else fine[0], quantizer)


def _uploaded(collection: Collection, pictures: Pictures, upload: str) -> Encoded:
    from PIL import Image

    data = pictures.upload(upload)
    with Image.open(io.BytesIO(data)) as image:  # as the server has written it
        return collection.encode(image=image.convert("RGB"))


def _sql_list(parts: Any) -> str:
    return f"[{', '.join(parts)}]"


def _search_code(name: str, code: Codes) -> str:
    return f"search_code({name}, {code.tolist()}"


# --- searches -------------------------------------------------------------------------------------


def search_base(
    cursor: RequestCursor, collection: Collection, what: Sought, k: int, recall: float,
    kind: ResultKind = "search",
) -> Base:  # fmt: skip
    """The k nearest."""
    start = time.perf_counter()
    found = collection.knn(what.encoded, k=k, recall=recall, within=what.within)
    took = (time.perf_counter() - start) * 1e3
    more = f", k := {k}"
    if recall < 1:
        more += f", recall := {views.number(recall)}"
    if what.within is not None:
        more += f", within := {literal(what.within.to_json())}"
    path = "exact" if recall == 1 or what.within is not None else f"approximate, recall {recall:g}"
    if what.within is not None:
        path += ", among the images of the concept"
    return _nearest(
        collection.name, kind, found, f"{what.function}{more})", took, f"nearest to {what.words}, "
        f"{path}", what.encoded.code,
        lambda then, filters: _filtered(then, collection.name, what, k, kind, filters),
    )  # fmt: skip


def _nearest(
    collection: str,
    kind: ResultKind,
    found: Any,
    source: str,
    search_ms: float,
    path: str,
    code: Codes,
    again: Callable[[RequestCursor, Sequence[Filter]], Base],
) -> Base:
    ids = np.ascontiguousarray(found["id"].to_numpy())
    return Base(
        collection, kind, ids, np.ascontiguousarray(found["distance"].to_numpy()), None, source,
        BY_DISTANCE, Stats(search_ms=round(search_ms, 3), rows=len(ids), path=path),
        columns=("id", "distance"), code=code, again=again,
    )  # fmt: skip


def _filtered(
    cursor: RequestCursor,
    name: str,
    what: Sought,
    k: int,
    kind: ResultKind,
    filters: Sequence[Filter],
    without: int | None = None,
) -> Base:
    """The k nearest of those that pass filters, but one."""
    collection = cursor.collection(name)
    table = views.need(cursor.table(name), name)
    start = time.perf_counter()
    passing = views.passing(cursor, table, filters)
    if without is not None:
        passing = passing[passing != without]
    found = collection.knn(what.encoded, k=k, within=what.within, ids=passing)
    took = (time.perf_counter() - start) * 1e3
    tests = [f"{table.id} >= 0", views.where(table, filters, None)]
    if without is not None:
        tests.append(f"{table.id} <> {without}")
    within = "" if what.within is None else f", within := {literal(what.within.to_json())}"
    source = (
        f"{what.function}, k := {k}{within},\n"
        f"      ids := (SELECT list({table.id}) FROM {table.shown} m WHERE {' AND '.join(tests)}))"
    )
    return _nearest(
        name, kind, found, source, took, f"nearest to {what.words}, exact, among the "
        f"{len(passing):,} images that pass the filters", what.encoded.code,
        lambda then, others: _filtered(then, name, what, k, kind, others, without),
    )  # fmt: skip


def neighbours_base(cursor: RequestCursor, collection: Collection, id_: int, k: int) -> Base:
    """The k images nearest to one, without itself."""
    own = _own(cursor, collection, id_)
    name = collection.name
    what = Sought(own, f"search_like({literal(name)}, {id_}", None, "an image")
    start = time.perf_counter()
    found = collection.knn(like=id_, k=min(k + 1, native.MAX_K)).slice(1)
    took = (time.perf_counter() - start) * 1e3
    source = (
        f"(SELECT id, distance FROM {what.function}, k := {min(k + 1, native.MAX_K)}) "
        f"WHERE id <> {id_})"
    )
    return _nearest(
        name, "neighbours", found, source, took, "nearest to an image, exact", own.code,
        lambda then, filters: _filtered(then, name, what, k, "neighbours", filters, id_),
    )  # fmt: skip


def sample_base(
    cursor: RequestCursor, name: str, k: int, filters: Sequence[Filter] = ()
) -> Base:  # fmt: skip
    """Some images of a collection, to see what is in it: always the same ones, until it changes."""
    start = time.perf_counter()
    record, table = cursor.record(name), cursor.table(name)
    parameters: list[Value] = []
    if filters or table is not None:
        table = views.need(table, name)

    def source(bind: list[Value] | None, where: str) -> str:
        there = "" if table is None else (
            f" SEMI JOIN (SELECT {table.id} AS id FROM {where} m WHERE "
            f"{views.where(table, filters, bind)}) USING (id)"
        )  # fmt: skip
        return (
            f"(SELECT id, hash(id) AS place FROM {record.ids}{there}\n"
            f"      ORDER BY place, id LIMIT {k})"
        )

    with views.compared():
        found = cursor.con.execute(
            f"FROM {source(parameters, '' if table is None else table.sql)} ORDER BY place, id",
            parameters,
        ).fetchnumpy()["id"]
    ids = np.asarray(found, np.int64)
    took = round((time.perf_counter() - start) * 1e3, 3)
    return Base(
        name, "sample", ids, np.zeros(len(ids)), None,
        source(None, "" if table is None else table.shown), (("r.place", False), ("r.id", False)),
        Stats(search_ms=took, rows=len(ids), path="a sample, in no particular order"),
        columns=("id",), again=lambda then, others: sample_base(then, name, k, others),
    )  # fmt: skip


# --- models ---------------------------------------------------------------------------------------


def refined_base(
    collection: str,
    refined: Refined,
    kind: ResultKind = "refine",
    *,
    positives: Sequence[int] | Ids = (),
    negatives: Sequence[int] | Ids = (),
    sql: str | None = None,
) -> Base:
    """All rows that a model matches; `sql` stands in for that of `refined`."""
    found = refined.table()
    stats = refined.stats
    scanned = stats["blocks"] - stats["blocks_pruned"] - stats["blocks_outscored"]
    path = f"{scanned:,} of {stats['blocks']:,} blocks of 256 rows were looked at"
    if scanned < stats["blocks"]:
        path += "; the zones of the others said that they hold nothing"
    if stats.get("fine_rows"):
        path += f"; {stats['fine_rows']:,} rows were judged by their fine codes"

    def listed(ids: Sequence[int] | Ids) -> Ids:
        return np.unique(np.asarray(ids, np.int64))

    ids = np.ascontiguousarray(found["id"].to_numpy())
    # Where somebody has looked at every row there is nothing to expect of them.
    seen = np.isin(ids, np.concatenate([listed(positives), listed(negatives)])).all()

    return Base(
        collection,
        kind,
        ids,
        np.ascontiguousarray(found["score"].to_numpy()),
        np.ascontiguousarray(found["votes"].to_numpy()),
        f"({refined.sql if sql is None else sql})",
        BY_SCORE,
        Stats(
            train_ms=_rounded(stats.get("train_ms")), search_ms=_rounded(stats["search_ms"]),
            rows=stats["rows"], boxes=stats.get("boxes", refined.model.box_count),
            blocks=stats["blocks"], blocks_pruned=stats["blocks_pruned"], bytes=stats["bytes"],
            path=path, positives=stats.get("positives"), negatives=stats.get("negatives"),
            random_negatives=stats.get("random_negatives"),
        ),
        model=refined.model,
        estimate=None if seen else _estimate(refined.estimate),
        note=refined.note,
        positives=listed(positives),
        negatives=listed(negatives),
    )  # fmt: skip


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


def _estimate(known: Estimate) -> EstimateOut | None:
    if not known.known and known.rows is None:
        return None
    return EstimateOut(
        rows=known.rows, precision=known.precision, recall=known.recall, words=str(known)
    )


def _check_trees(collection: Collection, asked: RefineRequest, limits: Limits) -> None:
    """Refused with 400 where scikit-learn would be at work for long: while it grows a tree,
    nothing stops it."""
    if asked.learner not in ("tree", "forest"):
        return
    others = 500 if asked.random_negatives is None else asked.random_negatives
    marks = len(asked.positives) + len(asked.negatives)
    learnt = marks + min(others, len(collection))
    trees = asked.estimators if asked.learner == "forest" else 10
    if trees * learnt <= limits.tree_rows:
        return
    most = limits.tree_rows // trees
    if asked.learner == "tree":
        raise InputError(
            f"a tree of {learnt:,} rows takes too long here; {most:,} may be: lower "
            f"random_negatives (here {others:,}), or mark fewer images"
        )
    raise InputError(
        f"a forest of {trees:,} trees and {learnt:,} rows takes too long here: lower estimators to "
        f"{max(1, limits.tree_rows // learnt):,}, or random_negatives (here {others:,}) and marks "
        f"to {most:,} together"
    )


def refine_base(
    cursor: RequestCursor, collection: Collection, asked: RefineRequest, pictures: Pictures
) -> Base:
    """Train, and find what the model matches."""
    query = None
    if asked.query is not None:
        what = sought(cursor, collection, asked.query, pictures)
        if what.within is not None:
            raise InputError("a refinement cannot be within a concept: leave `concept` out")
        query = what.encoded

    def learned(positives: Sequence[int] | Ids, negatives: Sequence[int] | Ids) -> Base:
        refined = collection.refine(
            positives, negatives, query=query, learner=asked.learner,
            estimators=asked.estimators, boxes=asked.boxes, random_negatives=asked.random_negatives,
            negative_weight=asked.negative_weight, seed=asked.seed, prior=asked.prior,
            rerank=asked.rerank,
        )  # fmt: skip
        return refined_base(collection.name, refined, positives=positives, negatives=negatives)

    try:
        return learned(asked.positives, asked.negatives)
    except InputError:
        # Images that were marked may have been deleted since. What is left is learned from.
        left = [_still_there(cursor, collection, ids) for ids in (asked.positives, asked.negatives)]
        gone = len({*asked.positives, *asked.negatives}) - sum(map(len, left))
        if gone <= 0 or not (len(left[0]) or query is not None):
            raise
    base = learned(*left)
    words = (
        "1 mark is of an image that is" if gone == 1 else f"{gone:,} marks are of images that are"
    )
    note = f"{words} not in the collection any more: left out"
    return replace(base, note=f"{base.note}; {note}" if base.note else note)


def _still_there(cursor: RequestCursor, collection: Collection, marks: Sequence[int] | Ids) -> Ids:
    """Those of the marked images that the collection still has, ascending."""
    record = cursor.record(collection.name)
    ids = np.unique(np.asarray(marks, np.int64))
    if not len(ids):
        return ids
    ids = rows.known(cursor.con, record, ids)
    return np.setdiff1d(ids, rows.without_metadata(cursor.con, record, ids))


# --- the border -----------------------------------------------------------------------------------


def border(cursor: RequestCursor, view: View, limit: int) -> Base:
    """Rows nearest to where the view's model cuts, half of them inside and half just outside: those
    whose marks teach it most. The view's filters hold."""
    model = view.whole.model
    if model is None:
        raise InputError("these results are of no model, so they have no border: refine first")
    document = json.loads(model.to_json())
    if document.get("fine", {}).get("threshold", 0) is None:
        del document["fine"]  # it ranks, but does not cut
    part = next(
        (name for name in ("fine", "score") if document.get(name, {}).get("threshold") is not None),
        None,
    )
    start = time.perf_counter()
    if part is None or (part == "score" and "fine" in document):
        base = _border_votes(cursor, view, document, limit)
    else:
        base = _border_score(cursor, view, document, part, limit)
    took = round((time.perf_counter() - start) * 1e3, 3)
    return replace(base, stats=base.stats.model_copy(update={"search_ms": took}))


def _seen(
    cursor: RequestCursor, view: View, document: dict[str, Any]
) -> tuple[Model, Ids, NDArray[np.float64], NDArray[np.int32]]:
    """What a wider model matches, of what passes the view's filters."""
    model = Model.from_json(json.dumps(document))
    name = view.whole.collection
    found = cursor.collection(name).search(model).table()
    ids = found["id"].to_numpy()
    places = views.matching(cursor, cursor.table(name), name, ids, view.filters)
    chosen: Any = slice(None) if places is None else places
    return model, ids[chosen], found["score"].to_numpy()[chosen], found["votes"].to_numpy()[chosen]


def _border_score(
    cursor: RequestCursor, view: View, document: dict[str, Any], part: str, limit: int
) -> Base:
    """By the score: its threshold is lowered until as many rows are outside as are wanted."""
    half = (limit + 1) // 2
    score = document[part]
    given, shift = score["threshold"], score["shift"]
    cut = given / 2**shift
    inside = np.sort(view.whole.values)[: max(half, len(view.whole.values) // 20)]
    step = max(1, int((inside[-1] - cut) * 2**shift)) if len(inside) else 1 << shift
    least = -(2**52)
    while True:
        score["threshold"] = max(least, given - step)
        model, ids, values, votes = _seen(cursor, view, document)
        if int((values < cut).sum()) >= half or score["threshold"] == least:
            break
        step *= 4
    away = np.abs(values - cut)
    within = values >= cut
    order = np.lexsort((ids, away))
    chosen = np.concatenate([order[within[order]][:half], order[~within[order]][:half]])
    chosen = chosen[np.lexsort((ids[chosen], away[chosen]))]
    at = views.number(cut)
    source = _border_sql(cursor, view, model, f"score >= {at}", f"abs(score - {at}), id", half)
    return _border_base(
        view, ids[chosen], values[chosen], votes[chosen], within[chosen], source,
        ((f"abs(r.score - {at})", False), ("r.id", False)), "nearest to the score that is needed",
    )  # fmt: skip


def _border_votes(cursor: RequestCursor, view: View, document: dict[str, Any], limit: int) -> Base:
    """By the votes: one less is enough. The worst inside and the best outside take turns."""
    half = (limit + 1) // 2
    needed = document["threshold"]
    document["threshold"] = max(0, needed - 1)
    model, ids, values, votes = _seen(cursor, view, document)
    within = votes >= needed
    worst = np.lexsort((ids, values))
    best = np.lexsort((ids, -values))
    sides = worst[within[worst]][:half], best[~within[best]][:half]
    places = np.concatenate([np.arange(len(side)) for side in sides])
    chosen = np.concatenate(sides)
    chosen = chosen[np.lexsort((~within[chosen], places))]
    source = _border_sql(
        cursor, view, model, f"votes >= {needed}",
        f"CASE WHEN votes >= {needed} THEN score ELSE -score END, id", half,
    )  # fmt: skip
    return _border_base(
        view,
        ids[chosen],
        values[chosen],
        votes[chosen],
        within[chosen],
        source,
        (("r.place", False), ("r.inside", True)),
        "the worst that have enough votes, and the best that lack one",
    )


def _border_sql(
    cursor: RequestCursor, view: View, model: Model, inside: str, order: str, half: int
) -> str:
    name = view.whole.collection
    join = ""
    table = cursor.table(name)
    if view.filters and table is not None:
        join = (
            f" WHERE s.id IN (SELECT {table.id} FROM {table.shown} m "
            f"WHERE {views.where(table, view.filters, None)})"
        )
    return (
        f"(SELECT id, votes, score, {inside} AS inside, row_number() OVER (PARTITION BY {inside} "
        f"ORDER BY {order}) AS place\n"
        f"      FROM (SELECT s.id, s.votes, s.score FROM search_model({literal(name)}, "
        f"{literal(model.to_json())}) s{join})\n"
        f"      QUALIFY place <= {half})"
    )


def _border_base(
    view: View, ids: Ids, values: NDArray[np.float64], votes: NDArray[np.int32],
    inside: NDArray[np.bool_], source: str, rank: Rank, path: str,
) -> Base:  # fmt: skip
    whole = view.whole
    return Base(
        whole.collection, "border", ids, values, votes, source, rank,
        Stats(rows=len(ids), path=path), columns=("id", "votes", "score", "inside"), inside=inside,
        model=whole.model, estimate=whole.estimate, note=whole.note, positives=whole.positives,
        negatives=whole.negatives,
    )  # fmt: skip


# --- reasons --------------------------------------------------------------------------------------


def why(cursor: RequestCursor, view: View, id_: int) -> Why:
    """Why an image is among the results of a view's model, or is not."""
    base = view.whole
    collection = cursor.collection(base.collection)
    own = _own(cursor, collection, id_)
    if base.model is None:
        return _why_near(base, own.code, id_)
    model, code = base.model, own.code
    fine = own.fine[None] if own.fine is not None and model.has_fine else None
    votes = int(model.votes(code[None])[0])
    score = float(model.scores(code[None], fine)[0])
    inside = bool(model.matches(code[None], fine)[0])
    document = json.loads(model.to_json())
    cuts = {
        part: document[part]["threshold"] / 2 ** document[part]["shift"]
        for part in ("fine", "score")
        if document.get(part, {}).get("threshold") is not None
    }
    threshold = cuts.get("fine" if model.has_fine else "score")
    dims = _parts(document, code)
    nearest = [
        _nearest_marks(cursor, collection, marks, code)
        for marks in (base.positives, base.negatives)
    ]
    sentences = []
    if threshold is not None:
        verb = "scores" if not model.has_fine else "scores, by its fine code,"
        sentences.append(f"It {verb} {score:.3g} where {threshold:.3g} is needed.")
    elif document["estimators"] and "score" in document:
        sentences.append(f"It scores {score:.3g}, by which the results are ranked.")
    coarse = cuts.get("score")
    if model.has_fine and coarse is not None:
        value = _coarse(document, code, votes)
        sentences.append(
            f"Its code scores {value:.3g}; from {coarse:.3g} on fine codes are looked at."
        )
    needed = model.threshold
    if model.estimators and needed:
        if model.estimators == 1:
            sentences.append(
                "It lies in one of the boxes that were learned."
                if votes
                else "It lies outside of all boxes that were learned."
            )
        else:
            sentences.append(
                f"{votes} of {model.estimators} {model.learner} members count it in; {needed} are "
                "needed."
            )
    sentences += _mark_sentences(base, id_, nearest)
    if not inside:
        sentences.append("So it is not among the results.")
    return Why(
        id=id_, inside=inside, score=score, threshold=threshold, votes=votes, votes_needed=needed,
        sentences=sentences, dims=dims, boxes=_containing(model, code),
        nearest_positives=nearest[0], nearest_negatives=nearest[1],
    )  # fmt: skip


def _why_near(base: Base, code: Codes, id_: int) -> Why:
    """Why an image is among the nearest."""
    assert base.code is not None
    away = code.astype(np.int64) - base.code.astype(np.int64)
    distance = float(np.sqrt((away * away).sum()))
    place = np.flatnonzero(base.ids == id_)
    sentences = [f"It lies {distance:.3g} from what is sought."]
    if len(place):
        sentences.append(f"That makes it number {place[0] + 1} of the nearest.")
    elif len(base.values):
        sentences.append(
            f"The results end at a distance of {base.values[-1]:.3g}, so it is not among them."
        )
    parts = -(away * away)
    return Why(
        id=id_, inside=bool(len(place)), score=None, threshold=None, votes=None, votes_needed=None,
        sentences=sentences, dims=_largest(parts.astype(np.float64), code), boxes=[],
        nearest_positives=[], nearest_negatives=[],
    )  # fmt: skip


def _term(term: dict[str, Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    linear, square = (np.asarray(term[name], np.float64) for name in ("linear", "square"))
    return (linear + square * values) * values


def _term_value(term: dict[str, Any], code: Codes) -> int:
    terms = zip(term["linear"], term["square"], code.tolist(), strict=True)
    return int(term["constant"] + sum((line + square * x) * x for line, square, x in terms))


def _coarse(document: dict[str, Any], code: Codes, votes: int) -> float:
    score = document["score"]
    value = max(_term_value(term, code) for term in score["terms"])
    return float((value + votes * score["votes"]) / 2 ** score["shift"])


def _parts(document: dict[str, Any], code: Codes) -> list[WhyDim]:
    """What each dimension adds to the score of the code, against a code of the middle value, by the
    term that is the score."""
    if "score" not in document:
        return []
    score = document["score"]
    term = max(score["terms"], key=lambda term: _term_value(term, code))
    middle = np.full(native.DIMS, _MIDDLE)
    parts = _term(term, code.astype(np.float64)) - _term(term, middle)
    return _largest(parts / 2.0 ** score["shift"], code)


def _largest(parts: NDArray[np.float64], code: Codes) -> list[WhyDim]:
    order = np.argsort(-np.abs(parts), kind="stable")[:_DIMS]
    return [
        WhyDim(dim=int(dim), code=int(code[dim]), part=float(parts[dim]))
        for dim in order
        if parts[dim]
    ]


def _containing(model: Model, code: Codes) -> list[WhyBox]:
    """Boxes that the code lies in; of an estimator one is enough."""
    ranges = model.handle.ranges()
    if not len(ranges):
        return []
    values = code[ranges["dim"]]
    holds = (ranges["lo"] <= values) & (values <= ranges["hi"])
    box = ranges["estimator"].astype(np.int64) << 32 | ranges["box"].astype(np.int64)
    starts = np.flatnonzero(np.diff(box, prepend=box[0] - 1))
    within = np.flatnonzero(np.logical_and.reduceat(holds, starts))
    _, first = np.unique(ranges["estimator"][starts[within]], return_index=True)
    ends = np.append(starts[1:], len(ranges))
    found = []
    for number in within[first][:_BOXES].tolist():
        part = ranges[starts[number] : ends[number]]
        found.append(
            WhyBox(
                estimator=int(part["estimator"][0]),
                box=int(part["box"][0]),
                ranges=[
                    WhyRange(dim=int(dim), low=int(lo), high=int(hi), code=int(code[dim]))
                    for dim, lo, hi in zip(part["dim"], part["lo"], part["hi"], strict=True)
                ],
            )
        )
    return found


def _nearest_marks(
    cursor: RequestCursor, collection: Collection, marks: Ids, code: Codes
) -> list[WhyNear]:
    """The marks nearest to a code, of those that are still there."""
    if not len(marks):
        return []
    marks = _still_there(cursor, collection, marks)
    codes, _ = collection.codes(marks)
    away = codes.astype(np.int64) - code.astype(np.int64)
    distances = np.sqrt((away * away).sum(axis=1))
    order = np.lexsort((marks, distances))[:_NEAREST]
    return [WhyNear(id=int(marks[n]), distance=float(distances[n])) for n in order]


def _mark_sentences(base: Base, id_: int, nearest: list[list[WhyNear]]) -> list[str]:
    sentences = []
    for marks, near, what in (
        (base.positives, nearest[0], "right"),
        (base.negatives, nearest[1], "wrong"),
    ):
        if id_ in marks:
            sentences.append(f"You marked it as {what}.")
        elif near:
            sentences.append(
                f"Of what you marked as {what} it is most like {near[0].id} (distance "
                f"{near[0].distance:.3g})."
            )
    return sentences


# --- routes ---------------------------------------------------------------------------------------

router = APIRouter(tags=["queries"])

CollectionName = Annotated[str, Path(max_length=200, description="of the collection")]
ImageId = Annotated[int, Path(ge=0, le=2**63 - 1, description="of the image")]


def show(
    request: Request,
    cursor: RequestCursor,
    base: Base,
    start: float,
    filters: Sequence[Filter] = (),
    sort: Sort | None = None,
    previous: str | None = None,
) -> Result:
    """A view of a base, and the answer of a request that began at `start`."""
    kept: Views = request.app.state.views
    view = views.arrange(kept, cursor, base, filters, sort, previous)
    answer = views.result(cursor, view)
    answer.stats.total_ms = round((time.perf_counter() - start) * 1e3, 3)
    return answer


@router.post("/collections/{collection}/search")
async def search(
    request: Request, cursor: Cursor, collection: CollectionName, asked: SearchRequest
) -> Result:
    """The images nearest to words, images, or a mixture of both."""
    limits, pictures = request.app.state.limits, request.app.state.pictures

    def work() -> Result:
        start = time.perf_counter()
        if asked.k > limits.results:
            raise InputError(f"k may be {limits.results} at most, not {asked.k}")
        chosen = cursor.collection(collection)
        what = sought(cursor, chosen, asked.query, pictures)
        base = search_base(cursor, chosen, what, asked.k, asked.recall)
        return show(request, cursor, base, start, asked.filters, asked.sort)

    return await cursor.library.run(request, work)


@router.post("/collections/{collection}/sample")
async def sample(
    request: Request, cursor: Cursor, collection: CollectionName, asked: SampleRequest
) -> Result:
    """Some images, to see what is in a collection before anything is sought."""
    limits = request.app.state.limits

    def work() -> Result:
        start = time.perf_counter()
        if asked.k > limits.results:
            raise InputError(f"k may be {limits.results} at most, not {asked.k}")
        base = sample_base(cursor, collection, asked.k)
        return show(request, cursor, base, start, asked.filters, asked.sort)

    return await cursor.library.run(request, work)


@router.post("/collections/{collection}/refine")
async def refine(
    request: Request, cursor: Cursor, collection: CollectionName, asked: RefineRequest
) -> Result:
    """Learn from marks, and find every image that is like what is right and unlike what is
    wrong."""
    limits, pictures = request.app.state.limits, request.app.state.pictures

    def work() -> Result:
        start = time.perf_counter()
        for labels in (asked.positives, asked.negatives):
            if len(labels) > limits.labels:
                raise Refusal(413, "too-large", f"{limits.labels:,} marks of a kind at most")
        chosen = cursor.collection(collection)
        _check_trees(chosen, asked, limits)
        base = refine_base(cursor, chosen, asked, pictures)
        return show(request, cursor, base, start, asked.filters, asked.sort, asked.previous)

    return await cursor.library.run(request, work, training=True)


@router.get("/collections/{collection}/images/{image}")
async def image_info(
    request: Request, cursor: Cursor, collection: CollectionName, image: ImageId
) -> ImageInfo:
    """What is known of an image, and whether it can be shown."""
    pictures: Pictures = request.app.state.pictures

    def work() -> tuple[dict[str, Any], str | None]:
        found = views.metadata(cursor, collection, image)
        table = cursor.table(collection)
        uri = found.get("uri") if table is not None and table.uri else None
        return found, uri

    found, uri = await cursor.library.run(request, work)
    if uri is None:
        picture = PictureInfo(available=False, reason="the collection does not say where it lies")
    else:
        picture = await pictures.run(request, pictures.describe, uri)
    name = str(image) if uri is None else title(uri)
    return ImageInfo(id=image, title=name, uri=uri, metadata=found, picture=picture)


@router.get("/collections/{collection}/images/{image}/neighbours")
async def neighbours(
    request: Request,
    cursor: Cursor,
    collection: CollectionName,
    image: ImageId,
    k: Annotated[int, InQuery(ge=1, le=1_000)] = 24,
) -> Result:
    """The images that are most like one."""

    def work() -> Result:
        start = time.perf_counter()
        base = neighbours_base(cursor, cursor.collection(collection), image, k)
        return show(request, cursor, base, start)

    return await cursor.library.run(request, work)


@router.post("/views/{view}/border")
async def border_view(
    request: Request, cursor: Cursor, view: ViewPath, asked: BorderRequest | None = None
) -> Result:
    """Images whose marks teach the model most: those nearest to where it cuts."""
    kept: Views = request.app.state.views
    limit = (asked or BorderRequest()).limit

    def work() -> Result:
        start = time.perf_counter()
        return show(request, cursor, border(cursor, kept.get(cursor, view), limit), start)

    return await cursor.library.run(request, work)


@router.get("/views/{view}/why/{image}")
async def why_image(request: Request, cursor: Cursor, view: ViewPath, image: ImageId) -> Why:
    """Why an image is among the results, or is not."""
    kept: Views = request.app.state.views
    return await cursor.library.run(request, lambda: why(cursor, kept.get(cursor, view), image))
