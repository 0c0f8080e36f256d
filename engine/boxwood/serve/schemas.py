"""What goes in and out of the JSON API: every type of it, with its limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

__all__ = ["EXACT", "Limits"]

EXACT = 2**53
"""JSON numbers below this are exact everywhere; ids from here on are strings."""


@dataclass(frozen=True)
class Limits:
    """What the server takes and gives at most."""

    upload_bytes: int = 32 << 20
    """Of an uploaded image."""
    upload_pixels: int = 50_000_000
    uploads_a_minute: int = 30
    """Of one client."""
    body_bytes: int = 4 << 20
    """Of any other request."""
    bytes: int = 256 << 20
    """Of a stored image that is read."""
    pixels: int = 200_000_000
    """Of a stored image that is decoded."""
    seconds: float = 20.0
    """For reading and decoding one image."""
    cache_bytes: int = 2 << 30
    """Of thumbnails on disk."""
    kept_bytes: int = 512 << 20
    """Of uploads on disk."""
    zip_files: int = 2_000
    zip_bytes: int = 1 << 30
    jobs: int = 8
    """Exports that are at work, or whose files wait to be fetched."""
    job_seconds: float = 900.0
    """That an export's file waits to be fetched."""
    page: int = 500
    """Items of one page of results."""
    results: int = 10_000
    """Results of a search by words or images, `k`."""
    labels: int = 50_000
    """Positives, and negatives, of a refinement."""
    tree_rows: int = 1_000_000
    """Trees of a forest, times the rows that each learns from: about 5 seconds. One decision tree,
    which looks at all dimensions of a row, counts as ten."""
    view_bytes: int = 512 << 20
    """Of all views that are kept, so that their pages can be asked for."""


LIMITS = Limits()
"""Those that the schemas state. `create_app` may be given lower ones."""


# --- building blocks ------------------------------------------------------------------------------


class Strict(BaseModel):
    """A request, or a part of one: members that nobody knows are errors, not passed over."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Unchecked:
    """Marks a request's body that is described as `model`, but not checked before the route is
    called: it may be so long that this must not hold up the other requests."""

    model: type[BaseModel]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.any_schema()

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(self.model.__pydantic_core_schema__)


def _id_in(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("an id is a whole number, or a string of its digits")
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 19):
            raise ValueError("an id is a whole number, or a string of its digits")
        return int(value)
    return value


def _id_out(value: int | str) -> int | str:
    """Ids go out as numbers below 2^53 and as strings from there on."""
    number = int(value)
    return number if number < EXACT else str(number)


Id = Annotated[
    int,
    BeforeValidator(
        _id_in,
        json_schema_input_type=Annotated[int, Field(ge=0, le=2**63 - 1)]
        | Annotated[str, Field(pattern=r"^[0-9]{1,18}$")],
    ),
    Field(ge=0, le=2**63 - 1),
]
"""An image's id in a request: a whole number, or a string of its digits."""

IdOut = Annotated[int | str, AfterValidator(_id_out)]
"""An image's id in an answer: a number below 2^53, a string of digits from there on."""

NO_NUL = r"^[^\x00]*$"
Text = Annotated[str, Field(max_length=2_000, pattern=NO_NUL)]
SOME = r"^[^\x00]*[^\x00\s][^\x00]*$"
Words = Annotated[str, Field(min_length=1, max_length=2_000, pattern=SOME)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Value = bool | Whole | FiniteFloat | Annotated[str, Field(max_length=10_000, pattern=NO_NUL)]
"""A value of a column, as JSON has it: times as ISO 8601 text, numbers above 2^53 as text."""
Weight = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class ErrorDetail(BaseModel):
    kind: str = Field(description="what sort of error it is, in one word, for programs")
    message: str = Field(description="what is wrong, and what to do, for people")


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


# --- the database and its collections -------------------------------------------------------------


class PublicLimits(BaseModel):
    upload_bytes: int
    zip_files: int
    zip_bytes: int
    page: int
    results: int


class LearnerOption(BaseModel):
    name: Literal["random_negatives", "negative_weight", "estimators", "boxes", "rerank", "prior"]
    min: float
    max: float
    default: float | bool


class LearnerInfo(BaseModel):
    name: str
    title: str
    words: str = Field(description="one sentence for people")
    query: bool = Field(description="whether it also learns from words and images that are sought")
    available: bool = Field(description="whether what it needs is installed")
    options: list[LearnerOption]


class Info(BaseModel):
    version: str
    database: str = Field(description="the file's name, without its folders")
    read_only: bool
    remote: bool = Field(description="whether pictures are fetched from http addresses")
    limits: PublicLimits
    learners: list[LearnerInfo]


Kind = Literal["number", "text", "time", "bool", "other"]


class Column(BaseModel):
    """A column of the metadata table."""

    name: str
    type: str = Field(description="as DuckDB names it")
    kind: Kind
    facet: bool = Field(
        description="whether its values are counted: bool, number and time always; text where it "
        "has 2 to 1,000 values that come twice or more on average"
    )


class CollectionInfo(BaseModel):
    name: str
    rows: int
    encoder: str | None
    words: bool = Field(description="whether it can be searched by words and by other images")
    pictures: bool = Field(description="whether its rows have the uri of an image")
    fine: bool = Field(description="whether it has fine codes, which `rerank` needs")
    state: str = Field(description="of the index, as Collection.describe says")
    columns: list[Column]


# --- what is asked for ----------------------------------------------------------------------------


class QueryText(Strict):
    words: Words
    weight: Weight = Field(default=1.0, description="negative: away from it")


class QueryImage(Strict):
    """An image of the collection, or an uploaded one."""

    id: Id | None = None
    upload: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")] | None = Field(
        None, description="what POST /api/uploads said"
    )
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _one(self) -> QueryImage:
        if (self.id is None) == (self.upload is None):
            raise ValueError("an image is either an id or an upload")
        return self


class Query(Strict):
    """What is sought: texts, images, or several of both with weights.

    One text or image alone is itself. Texts alone are mixed as Collection.encode_text does it;
    everything else by the unit vectors of the codes.
    """

    texts: list[QueryText] = Field(default=[], max_length=16)
    images: list[QueryImage] = Field(default=[], max_length=64)
    template: Words | None = Field(
        None, description="what texts are put into, at {}, as in 'a photo of a {}'"
    )
    concept: Name | None = Field(
        None, description="a stored concept of the collection: only what it matches"
    )

    @model_validator(mode="after")
    def _some(self) -> Query:
        if not self.texts and not self.images:
            raise ValueError("a query needs texts or images")
        weights = [text.weight for text in self.texts] + [image.weight for image in self.images]
        if not any(weights):
            raise ValueError("all weights are 0, so that nothing is left to search for")
        return self


class Filter(Strict):
    """A condition on a column of the metadata. With `negate` all other rows, also those where the
    value is missing."""

    column: Name
    op: Literal["in", "range", "contains", "missing"] = Field(
        description="in: equal to one of `values`. range: from `low` to `high`, both included; "
        "null leaves a side open. contains: has `text` in it, whatever the case. missing: is NULL"
    )
    values: Annotated[list[Value], Field(fail_fast=True, max_length=1_000)] | None = None
    low: Value | None = None
    high: Value | None = None
    text: Text | None = None
    negate: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Filter:
        if self.op == "in" and self.values is None:
            raise ValueError("a filter 'in' needs values")
        if self.op == "range" and self.low is None and self.high is None:
            raise ValueError("a filter 'range' needs low or high")
        if self.op == "contains" and not self.text:
            raise ValueError("a filter 'contains' needs text")
        return self


class Sort(Strict):
    by: Name = Field(default="rank", description="'rank', or a column; rows without it come last")
    descending: bool = False


Filters = Annotated[list[Filter], Field(max_length=32)]
ViewId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Results = Annotated[int, Field(ge=1, le=LIMITS.results)]
Ids = Annotated[list[Id], Field(fail_fast=True, max_length=LIMITS.labels)]
"""Of so many the first wrong one is told, not all."""
LearnerName = Literal["cover", "branch", "ensemble", "tree", "forest"]


class SearchRequest(Strict):
    query: Query
    k: Results = Field(default=60, description="how many at most; with filters, of those that pass")
    recall: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    filters: Filters = []
    sort: Sort | None = None


class SampleRequest(Strict):
    k: Results = Field(60, description="how many at most; with filters, of those that pass")
    filters: Filters = []
    sort: Sort | None = None


class RefineRequest(Strict):
    """Labels, and options as Collection.refine takes them."""

    positives: Ids = []
    negatives: Ids = []
    query: Query | None = None
    learner: LearnerName = "cover"
    random_negatives: Annotated[int, Field(ge=0, le=100_000)] | None = None
    negative_weight: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)
    estimators: int = Field(default=25, ge=1, le=1_024)
    boxes: int = Field(default=0, ge=0, le=64)
    rerank: bool = False
    seed: int = Field(default=0, ge=0, le=2**53)
    prior: bool = True
    filters: Filters = []
    sort: Sort | None = None
    previous: ViewId | None = Field(default=None, description="what `changes` are told from")


class ArrangeRequest(Strict):
    filters: Filters = []
    sort: Sort | None = None
    previous: ViewId | None = None


class BorderRequest(Strict):
    limit: int = Field(default=60, ge=2, le=1_000)


# --- what is answered -----------------------------------------------------------------------------


class Item(BaseModel):
    id: IdOut
    rank: int = Field(description="the place in the view, from 0")
    value: float = Field(description="the score, or, of searches, the distance")
    votes: int | None
    title: str = Field(description="the file's name, or the id")
    new: bool = Field(description="not in the previous view")
    inside: bool = Field(description="matched by the model; false only in views of the border")


class Page(BaseModel):
    items: list[Item]
    next: str | None = Field(description="`after` of the next page; null: this is the last")
    total: int


class Stats(BaseModel):
    """What the run took; null where it does not apply."""

    train_ms: float | None = None
    search_ms: float | None = None
    total_ms: float = 0.0
    rows: int = 0
    boxes: int | None = None
    blocks: int | None = None
    blocks_pruned: int | None = None
    bytes: int | None = None
    path: str = Field(default="", description="how it was searched, in words")
    positives: int | None = None
    negatives: int | None = None
    random_negatives: int | None = None


class EstimateOut(BaseModel):
    """What to expect, before anybody has looked: [low, value, high] of the shares."""

    rows: float | None
    precision: tuple[float, float, float] | None
    recall: tuple[float, float, float] | None
    words: str


class Changes(BaseModel):
    """Against the previous view."""

    new: int
    gone: int
    gone_ids: list[IdOut] = Field(description="60 at most, best first")


ResultKind = Literal["search", "sample", "refine", "border", "concept", "neighbours"]


class Result(BaseModel):
    """A view of results, with its first page. Views are kept as long as there is room."""

    view: str
    kind: ResultKind
    collection: str
    total: int
    unfiltered: int = Field(description="how many there are without the filters")
    items: list[Item]
    next: str | None
    sql: str = Field(description="gives the same ids in the same order on a Boxwood connection")
    stats: Stats
    estimate: EstimateOut | None
    learner: str | None
    note: str
    changes: Changes | None
    model: bool = Field(description="whether it has a model, and so a border and reasons")


class FacetValue(BaseModel):
    value: str | bool
    count: int


class FacetBin(BaseModel):
    """From low to high, `high` itself excluded but in the last one, and of whole numbers."""

    low: int | float | str
    high: int | float | str
    count: int


class Facet(BaseModel):
    column: str
    kind: Kind
    values: list[FacetValue] | None = Field(default=None, description="the most frequent, and")
    other: int = Field(default=0, description="images with any other value")
    bins: list[FacetBin] | None = None
    missing: int


class Facets(BaseModel):
    facets: list[Facet]


class WhyDim(BaseModel):
    dim: int
    code: int
    part: float = Field(description="of the score, against a code of the middle value, 127.5")


class WhyRange(BaseModel):
    dim: int
    low: int
    high: int
    code: int


class WhyBox(BaseModel):
    estimator: int
    box: int
    ranges: list[WhyRange]


class WhyNear(BaseModel):
    id: IdOut
    distance: float


class Why(BaseModel):
    id: IdOut
    inside: bool
    score: float | None
    threshold: float | None
    votes: int | None
    votes_needed: int | None
    sentences: list[str]
    dims: list[WhyDim]
    boxes: list[WhyBox]
    nearest_positives: list[WhyNear]
    nearest_negatives: list[WhyNear]


class PictureInfo(BaseModel):
    available: bool
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    reason: str | None = None


class ImageInfo(BaseModel):
    id: IdOut
    title: str
    uri: str | None
    metadata: dict[str, Any]
    picture: PictureInfo


# --- pictures, uploads, exports -------------------------------------------------------------------


class Upload(BaseModel):
    upload: str = Field(description="its name, for the `images` of a query")
    width: int
    height: int


class ExportRequest(Strict):
    """What to write of a view. A zip holds the files of the pictures and a list of them; a JSON
    file is a list of ids and files."""

    format: Literal["csv", "parquet", "json", "zip"]
    columns: list[Name] | None = Field(
        None, max_length=500, description="of the metadata; null: all that can be written"
    )


class JobStarted(BaseModel):
    job: str


class JobProgress(BaseModel):
    done: int
    total: int
    words: str = Field(description="what it is at, for people")


class JobDone(BaseModel):
    bytes: int
    name: str = Field(description="what the file is saved as")
    note: str = Field("", description="what people should know of the file")


class JobFailed(BaseModel):
    error: ErrorDetail


# --- sessions, concepts ---------------------------------------------------------------------------


def _id_text(value: object) -> str:
    number = _id_in(value)
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise ValueError("an id is a whole number, or a string of its digits")
    return str(number)


IdText = Annotated[
    str,
    BeforeValidator(
        _id_text,
        json_schema_input_type=Annotated[int, Field(ge=0, le=2**63 - 1)]
        | Annotated[str, Field(pattern=r"^[0-9]{1,18}$")],
    ),
]
"""An image's id in a session: comes as a number or a string, and goes as a string."""

Mark = Literal["right", "wrong"]
Part = dict[str, Any]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{16}$")]
SessionName = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
ConceptName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")]


class MarkedImage(BaseModel):
    id: IdText
    mark: Mark


class MarkChange(BaseModel):
    id: IdText
    before: Mark | None = None
    after: Mark | None = None


class UndoStep(BaseModel):
    model_config = ConfigDict(extra="allow")

    changes: Annotated[list[MarkChange], Field(fail_fast=True)] = []


class UndoSteps(BaseModel):
    steps: Annotated[list[UndoStep], Field(fail_fast=True, max_length=10_000)] = []
    at: int = Field(default=0, ge=0, le=10_000, description="how many of the steps are done")


class SessionState(BaseModel):
    """What a page needs to go on where somebody left: at most 2 MiB of JSON. Members that are not
    named here are kept as well."""

    model_config = ConfigDict(extra="allow")

    query: Part | None = Field(
        default=None, description="the last search, as POST .../search takes it"
    )
    typed: Part = Field({}, description="what stands in the search box")
    marks: Annotated[list[MarkedImage], Field(fail_fast=True, max_length=2 * LIMITS.labels)] = []
    undo: UndoSteps = UndoSteps()
    options: Part = Field({}, description="the learner, and its options")
    filters: Annotated[list[Part], Field(fail_fast=True)] = []
    sort: Part | None = None
    size: float = Field(180, ge=1, le=10_000, allow_inf_nan=False, description="of the pictures")
    rounds: Annotated[list[Part], Field(fail_fast=True, max_length=10_000)] = Field(
        [], description="what each refinement was made from, and what it found"
    )


class NewSession(Strict):
    collection: Name
    name: SessionName = ""
    state: SessionState


class SessionChange(Strict):
    revision: int = Field(ge=1, le=2**53, description="the one that the change was made to")
    name: SessionName = ""
    state: SessionState


class SessionSaved(BaseModel):
    id: str
    revision: int


class SessionOut(SessionSaved):
    collection: str
    name: str
    created: datetime
    updated: datetime
    state: SessionState


class SessionSummary(BaseModel):
    id: str
    collection: str
    name: str
    updated: datetime
    rounds: int
    positives: int
    negatives: int


class ConflictDetail(ErrorDetail):
    revision: int = Field(description="the one that is stored")


class ConflictBody(BaseModel):
    """Somebody else has changed the session meanwhile."""

    error: ConflictDetail


class NewConcept(Strict):
    name: ConceptName
    view: ViewId = Field(description="whose model is saved")
    positives: Ids | None = Field(
        default=None, description="null: those that the model was trained on"
    )
    negatives: Ids | None = None
    note: Text = ""
    replace: bool = Field(
        default=False, description="save the next version where there is one already"
    )


class ConceptInfo(BaseModel):
    name: str
    version: int
    learner: str
    created: datetime
    positives: int
    negatives: int
    note: str
    count: int | None = Field(description="images that it finds now; null where it is not current")
    current: bool = Field(
        description="false: the collection was re-coded since; refine with its labels again"
    )


class ConceptDetail(BaseModel):
    name: str
    version: int
    learner: str
    created: datetime
    positives: list[IdOut]
    negatives: list[IdOut]
    note: str
    count: int | None
    current: bool
    sql: str = Field(description="gives its images on a Boxwood connection, or in the shell")
