"""`boxwood demo`: the main job, end to end, on pictures whose truth is known.

Pictures of the scene world are written as real files, added to a collection like anyone's photos,
searched by words, and labelled as a person would who looks at a page of results. Each learner then
refines for a few rounds, and the whole set that it returns is held against the truth. The truth is
used in two ways only: to answer "is this picture right?" for pictures that a page shows, and to
measure.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import shutil
import sys
import textwrap
import time
import webbrowser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import boxwood
from boxwood import report, scenes
from boxwood.encode.vocabulary import TINY
from boxwood.errors import DatabaseLocked, Error, InputError, MissingDependency
from boxwood.progress import Bar

LEARNERS = ("cover", "branch", "ensemble", "tree", "forest")
DEFAULT = LEARNERS[0]
QUERIES = (
    "a red circle",
    "a striped star",
    "a large blue shape on a black background",
)
PAGE = 60
"""Pictures on a page of results by words."""
TOP, BORDER = 20, 10
"""Unlabelled pictures that a person looks at in a later round: the best, and the last ones in."""
PAGES = 5
"""Pages that a person turns over in search of a first right picture."""
COLLECTION = "scenes"
MARKER = "boxwood-demo.txt"
"""Written first into a new demo folder: what a demo finds beside it, it may replace."""


# --- labels and measures ------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """A returned set against the truth. Precision of an empty set is 0."""

    found: int
    precision: float
    recall: float
    f1: float


def quality(found: Iterable[int], truth: frozenset[int]) -> Quality:
    """Precision, recall and F1 of a set of ids against the ids that are right."""
    ids = set(found)
    hits = len(ids & truth)
    return Quality(
        len(ids),
        hits / len(ids) if ids else 0.0,
        hits / len(truth) if truth else 0.0,
        2 * hits / (len(ids) + len(truth)) if ids or truth else 0.0,
    )


@dataclass
class Person:
    """Someone who says of each picture on a page whether it is right, once each."""

    truth: frozenset[int]
    positives: list[int] = field(default_factory=list)
    negatives: list[int] = field(default_factory=list)

    def look(self, shown: Iterable[int]) -> None:
        labelled = self.labelled()
        for image in dict.fromkeys(shown):
            if image not in labelled:
                (self.positives if image in self.truth else self.negatives).append(image)

    def labelled(self) -> set[int]:
        return {*self.positives, *self.negatives}


def first_page(person: Person, by_words: Sequence[int]) -> list[int]:
    """Label the first page; turn it over while nothing right was seen. Returns what was shown."""
    for start in range(0, min(len(by_words), PAGE * PAGES), PAGE):
        person.look(by_words[start : start + PAGE])
        if person.positives:
            return list(by_words[: start + PAGE])
    return list(by_words[: PAGE * PAGES])


def next_page(person: Person, ranked: Sequence[int], by_words: Sequence[int]) -> list[int]:
    """What a person looks at after a round: of the pictures found that have no label yet the best
    and the last ones; where there are few, further results of the search by words."""
    labelled = person.labelled()
    fresh = [image for image in ranked if image not in labelled]
    shown = fresh[:TOP] + fresh[max(TOP, len(fresh) - BORDER) :]
    seen = labelled | set(shown)
    further = (image for image in by_words if image not in seen)
    return shown + [image for image, _ in zip(further, range(TOP + BORDER - len(shown)))]  # noqa: B905


@dataclass(frozen=True)
class Round:
    """One round of one learner on one query."""

    query: str
    learner: str
    number: int
    positives: int
    negatives: int
    quality: Quality
    train_ms: float
    search_ms: float

    COLUMNS = (
        "learner", "round", "right", "wrong", "found", "precision", "recall", "F1",
        "train ms", "search ms",
    )  # fmt: skip

    def row(self) -> list[object]:
        q = self.quality
        return [
            self.learner, self.number, self.positives, self.negatives, q.found,
            f"{q.precision:.3f}", f"{q.recall:.3f}", f"{q.f1:.3f}",
            f"{self.train_ms:.1f}", f"{self.search_ms:.2f}",
        ]  # fmt: skip


@dataclass
class Answer:
    """Everything about one query that the report shows."""

    query: str
    truth: frozenset[int]
    shown: list[int]
    first: Quality
    rounds: list[Round] = field(default_factory=list)
    labels: dict[str, Person] = field(default_factory=dict)
    last: dict[str, list[int]] = field(default_factory=dict)
    """The ids that each learner returned in its last round, best first."""
    statements: dict[str, str] = field(default_factory=dict)
    """The SQL of each learner's last round."""
    where: str = ""
    """The default learner's last model as a condition on the codes."""
    expected: str = ""
    """What the default learner said to expect of its last set."""


# --- SQL ----------------------------------------------------------------------------------------


def id_list(ids: Sequence[int]) -> str:
    """A DuckDB list literal, wrapped to lines that fit a terminal."""
    return textwrap.fill(
        "[" + ", ".join(map(str, ids)) + "]", 84, subsequent_indent=" " * 8, break_on_hyphens=False
    )


def refine_sql(name: str, person: Person, learner: str) -> str:
    """The call of the macro ``refine`` with these labels."""
    return (
        f"refine('{name}', learner := '{learner}',\n"
        f"    positives := {id_list(person.positives)},\n"
        f"    negatives := {id_list(person.negatives)})"
    )


def _count(con: Any, sql: str, parameters: dict[str, object] | None = None) -> int:
    return int(con.execute(sql, parameters).fetchall()[0][0])


def _check_counts(collection: Any, found: Any, where: str, learner: str, person: Person) -> str:
    """Ask DuckDB for the count in two more ways; all must agree. Returns the first statement."""
    con, name = collection.con, collection.name
    counts = {
        "Refined.count": found.count,
        "DuckDB's WHERE": _count(con, f'SELECT count(*) FROM boxwood."{name}_codes" WHERE {where}'),
    }
    if learner not in ("tree", "forest"):
        statement = f"SELECT count(*) FROM {refine_sql(name, person, learner)};"
        counts["refine()"] = _count(con, statement)
    else:
        # scikit-learn trained this one; SQL runs the boxes that it was compiled to.
        statement = "SELECT count(*) FROM boxwood_search($index, model := $model);"
        parameters = {"index": str(collection.index_path), "model": found.model.to_json()}
        counts["boxwood_search()"] = _count(con, statement, parameters)
    if len(set(counts.values())) != 1:
        ways = ", ".join(f"{way} {count}" for way, count in counts.items())
        raise Error(f"the counts of {learner} do not agree: {ways}; please report this as a bug")
    return statement


# --- the demo -----------------------------------------------------------------------------------


@dataclass
class Demo:
    """The demo's settings and its output."""

    folder: Path
    images: int = 4000
    seed: int = 0
    rounds: int = 4
    queries: Sequence[str] = QUERIES
    out: TextIO = field(default_factory=lambda: sys.stdout)
    progress: bool = False

    def say(self, *lines: str) -> None:
        print(*lines or ("",), sep="\n", file=self.out, flush=True)

    def run(self) -> list[Answer]:
        """Do everything; returns the answers, one a query."""
        self._check_images()
        if not 1 <= self.rounds <= 20:
            raise InputError(f"--rounds must be from 1 to 20, not {self.rounds}")
        for query in self.queries:
            scenes.parse(query)  # before any work: every word must have a truth
        begin = time.perf_counter()
        self._claim()
        pictures, files = self._pictures()
        collection = self._collection(files)
        try:
            ids = self._ids(collection, files)
            answers = []
            for query in self.queries:
                truth = frozenset(ids[scenes.matches(pictures, query)].tolist())
                answers.append(self._query(collection, query, truth))
            learned = [answer for answer in answers if answer.rounds]
            statement = self._show_sql(collection, learned[0]) if learned else ""
        finally:
            collection.con.close()
        self._report(answers, dict(zip(ids.tolist(), files, strict=True)), statement)
        self._closing(time.perf_counter() - begin)
        return answers

    def prepare(self) -> Path:
        """The pictures and the collection alone, with what is known of each picture in columns;
        returns the database."""
        self._check_images()
        self._claim()
        _, files = self._pictures()
        collection = self._collection(files)
        try:
            self._ids(collection, files)
            self._describe(collection.con)
        finally:
            collection.con.close()
        return self._database

    # -- files and collection

    def _check_images(self) -> None:
        if not 100 <= self.images <= 50_000:
            raise InputError(f"--images must be from 100 to 50000, not {self.images}")

    def _describe(self, con: Any) -> None:
        """Put the words for each picture beside it, to filter and count by."""
        for name in ("background", "shape", "colour", "size", "pattern", "place", "caption"):
            con.execute(f"ALTER TABLE {COLLECTION} ADD COLUMN IF NOT EXISTS {name} VARCHAR")
            con.execute(
                f"UPDATE {COLLECTION} SET {name} = truth.{name} FROM truth "
                f"WHERE truth.id = {COLLECTION}.id AND {COLLECTION}.{name} IS DISTINCT FROM "
                f"truth.{name}"
            )

    def _claim(self) -> None:
        """Mark the folder as a demo's, unless somebody else's files are in the way."""
        marker = self.folder / MARKER
        if marker.is_file():
            return
        ours = ("images", "demo.duckdb", "demo.duckdb.wal", "demo.duckdb.boxwood", "report.html",
                "contact-sheet.png", MARKER)  # fmt: skip
        for name in ours:
            if os.path.lexists(self.folder / name):
                raise InputError(
                    f"{self.folder / name} was not made by a demo, which would replace it: name a "
                    "new folder, --folder FOLDER"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(
            "`boxwood demo` made this folder, and may replace its pictures, database and report.\n"
        )

    @property
    def _image_folder(self) -> Path:
        return self.folder / "images"

    @property
    def _database(self) -> Path:
        return self.folder / "demo.duckdb"

    def _pictures(self) -> tuple[scenes.Scenes, list[Path]]:
        """Draw the pictures, or take those that an earlier run has drawn."""
        start = time.perf_counter()
        note = self._image_folder / "scenes.json"  # written last, when all files are there
        wanted = {"scenes": self.images, "seed": self.seed}
        if note.exists() and json.loads(note.read_text()) == wanted:
            drawn, done = scenes.sample(self.images, self.seed), "are there already"
        else:
            self._remove()
            with Bar("drawing", self.progress) as bar:
                drawn = scenes.write(
                    self._image_folder, self.images, self.seed, progress=bar.update
                )
            done = f"drawn as PNG and JPEG files in {time.perf_counter() - start:.1f} s"
        truth = pq.read_table(self._image_folder / "scenes.parquet", columns=["file"])
        self.say(f"images      {self.images:,} pictures {done}")
        return drawn, [self._image_folder / name for name in truth["file"].to_pylist()]

    def _remove(self) -> None:
        """Take away what an earlier demo left here, and nothing else."""
        self._remove_database()
        for pattern in ("scene_*.png", "scene_*.jpg", "scenes.json", "scenes.parquet"):
            for file in self._image_folder.glob(pattern):
                file.unlink()

    def _remove_database(self) -> None:
        if self._database.exists():
            try:
                boxwood.connect(self._database).close()
            except DatabaseLocked:  # another demo is at work here
                raise
            except (Error, duckdb.Error):
                pass  # damaged
        for name in ("demo.duckdb", "demo.duckdb.wal"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "demo.duckdb.boxwood", ignore_errors=True)

    def _collection(self, files: Sequence[Path]) -> Any:
        """The collection with every picture in it; goes on where an earlier run stopped."""
        try:
            return self._filled(files)
        except (DatabaseLocked, MissingDependency):
            raise
        except (Error, duckdb.Error) as error:
            if not (self.folder / "demo.duckdb").exists():
                raise
            # The demo's own database, perhaps of another version: a new one is the cure.
            self.say(f"database    made anew: {str(error).splitlines()[0]}")
            self._remove_database()
            return self._filled(files)

    def _filled(self, files: Sequence[Path]) -> Any:
        collection = self._open()
        try:
            added = collection.add_images(files, progress=self.progress)
        except BaseException:
            collection.con.close()
            raise
        rate = f", {added.images_per_second:,.0f} images/s" if added.added else ""
        self.say(
            f"collection  {added.added:,} added in {added.seconds:.1f} s{rate}; "
            f"{added.known:,} were there; {len(added.failed)} could not be read"
        )
        return collection

    def _open(self) -> Any:
        con = boxwood.connect(self._database)
        try:
            if COLLECTION in boxwood.Collection.list(con):
                return boxwood.Collection.open(con, COLLECTION, repair=True)
            return boxwood.Collection.create(con, COLLECTION, encoder=TINY)
        except BaseException:
            con.close()
            raise

    def _ids(self, collection: Any, files: Sequence[Path]) -> NDArray[np.int64]:
        """The collection's id of each file; also puts the truth into the database."""
        rows = collection.con.execute(f"SELECT uri, id FROM {COLLECTION}").fetchall()
        of_uri = dict(rows)
        missing = [str(file) for file in files if str(file.resolve()) not in of_uri]
        if missing or len(rows) != len(files):
            raise Error(
                f"{self._database} does not hold the pictures beside it; "
                f"remove {self.folder} and run the demo again"
            )
        ids = np.array([of_uri[str(file.resolve())] for file in files], np.int64)
        truth = pq.read_table(self._image_folder / "scenes.parquet")
        truth = truth.set_column(truth.column_names.index("id"), "id", pa.array(ids))
        collection.con.register("scenes_parquet", truth)
        collection.con.execute("CREATE OR REPLACE TABLE truth AS FROM scenes_parquet")
        collection.con.unregister("scenes_parquet")
        return ids

    # -- one query

    def _learners(self) -> list[str]:
        if importlib.util.find_spec("sklearn") is not None:
            return list(LEARNERS)
        self.say("tree and forest are left out: pip install 'boxwood[trees]' brings them")
        return [name for name in LEARNERS if name not in ("tree", "forest")]

    def _query(self, collection: Any, query: str, truth: frozenset[int]) -> Answer:
        words = collection.search_text(query, min(PAGE * 20, self.images))
        by_words = words["id"].to_pylist()
        opening = Person(truth)
        shown = first_page(opening, by_words)
        answer = Answer(query, truth, shown, quality(shown, truth))
        q = answer.first
        self.say(
            "",
            f'"{query}": {len(truth):,} of {self.images:,} pictures are right',
            f"the first {len(shown)} by words: precision {q.precision:.3f}, "
            f"recall {q.recall:.3f}, F1 {q.f1:.3f}",
        )
        if not opening.positives:
            self.say("no right picture in sight: nothing to learn from")
            return answer
        for learner in self._learners():
            person = Person(truth, list(opening.positives), list(opening.negatives))
            for number in range(1, self.rounds + 1):
                if number > 1:
                    person.look(next_page(person, answer.last[learner], by_words))
                self._round(collection, answer, learner, number, person)
            answer.labels[learner] = person
        self.say("", report.text_table(Round.COLUMNS, [r.row() for r in answer.rounds]))
        self.say("", f"What {DEFAULT} itself says of its last set, from the labels alone:")
        self.say(f"    {answer.expected}")
        return answer

    def _round(
        self, collection: Any, answer: Answer, learner: str, number: int, person: Person
    ) -> None:
        found = collection.refine(
            person.positives, person.negatives, learner=learner, seed=self.seed
        )
        ranked = found.table()["id"].to_pylist()
        where = found.model.to_sql()
        if learner == DEFAULT:
            answer.where = where
            answer.expected = " ".join([f"{found.estimate}.", found.note]).strip()
        answer.statements[learner] = _check_counts(collection, found, where, learner, person)
        answer.last[learner] = ranked
        answer.rounds.append(
            Round(
                answer.query, learner, number, len(person.positives), len(person.negatives),
                quality(ranked, answer.truth),
                found.stats["train_ms"], found.stats["search_ms"],
            )
        )  # fmt: skip

    # -- what it looks like in SQL, on paper, and from here on

    def _show_sql(self, collection: Any, answer: Answer) -> str:
        """Run a refinement as a relation, joined and grouped; returns the statement."""
        person = answer.labels[DEFAULT]
        statement = (
            "SELECT t.background, t.shape2 IS NOT NULL AS two_objects, count(*) AS pictures\n"
            f"  FROM {refine_sql(COLLECTION, person, DEFAULT)}\n"
            "  JOIN truth t USING (id)\n"
            " GROUP BY ALL ORDER BY ALL;"
        )
        cursor = collection.con.execute(statement)
        columns, rows = [column[0] for column in cursor.description], cursor.fetchall()
        self.say(
            "",
            f'The last "{DEFAULT}" set for "{answer.query}" as a relation, joined and grouped:',
            "",
            textwrap.indent(statement, "    "),
            "",
            textwrap.indent(report.text_table(columns, rows), "    "),
            "",
            "Every count above was asked for in three ways, which agree: Refined.count in Python,",
            "refine() or boxwood_search() in SQL, and DuckDB's own WHERE on the codes:",
            "",
            f'    SELECT count(*) FROM boxwood."{COLLECTION}_codes" WHERE',
            f"        {answer.where[:84]} ...",
        )
        return statement

    def _sheets(self, answer: Answer, paths: dict[int, Path]) -> list[tuple[str, Any]]:
        marks: dict[bool, report.Mark] = {True: "right", False: "wrong"}

        def sheet(ids: Sequence[int], caption: str) -> tuple[str, Any]:
            cells = [report.Cell(paths[i], str(i), marks[i in answer.truth]) for i in ids]
            title = f'"{answer.query}": {caption}'
            return caption, report.contact_sheet(cells, columns=15, side=64, title=title)

        sheets = [sheet(answer.shown[:PAGE], "first page by words, labelled right or wrong")]
        for learner in (DEFAULT, "ensemble"):
            if learner not in answer.labels:
                continue
            labelled = answer.labels[learner].labelled()
            fresh = [image for image in answer.last[learner] if image not in labelled]
            if fresh:
                step = max(1, len(fresh) // PAGE)
                caption = (
                    f"found by {learner} in round {self.rounds} and never labelled, "
                    f"{len(fresh[::step][:PAGE])} of {len(fresh)}"
                )
                sheets.append(sheet(fresh[::step][:PAGE], caption))
        return sheets

    def _report(self, answers: Sequence[Answer], paths: dict[int, Path], statement: str) -> None:
        parts = [
            f"<p>{self.images:,} pictures of generated scenes, whose truth is known, were searched "
            "by words; a simulated person labelled what the pages showed, and each learner refined "
            f"for {self.rounds} rounds. Precision, recall and F1 are those of the <em>whole "
            "returned set</em> against the truth; the truth was used for labels of pictures that "
            f"were shown and for measuring, for nothing else. A later round shows {TOP} pictures "
            f"from the top and {BORDER} from the end of the set that have no label yet, and where "
            "there are fewer, further results of the search by words. Labelled pictures count in "
            "these figures like all others.</p>"
        ]
        images = []
        for answer in answers:
            q = answer.first
            parts.append(f"<h2>{html.escape(answer.query)}</h2>")
            parts.append(
                f"<p>{len(answer.truth):,} of {self.images:,} pictures are right. The first "
                f"{len(answer.shown)} by words: precision {q.precision:.3f}, "
                f"recall {q.recall:.3f}, F1 {q.f1:.3f}.</p>"
            )
            for caption, image in self._sheets(answer, paths):
                parts.append(report.figure(image, caption))
                images.append(image)
            if not answer.rounds:
                parts.append("<p>No right picture was in sight: nothing to learn from.</p>")
                continue
            curves: dict[str, list[float]] = {}
            for r in answer.rounds:
                curves.setdefault(r.learner, []).append(r.quality.f1)
            parts.append(report.plot(curves, start={"by words": q.f1}))
            parts.append(
                report.html_table(Round.COLUMNS, [r.row() for r in answer.rounds], group=0)
            )
            parts.append(
                f"<p>What {DEFAULT} itself says of its last set, from the labels alone: "
                f"{html.escape(answer.expected)}</p>"
            )
            parts.append("<h3>The SQL of the last rounds</h3>")
            parts += [report.code(sql) for sql in answer.statements.values()]
            parts.append(
                f"<p>The model of {DEFAULT} as a condition on the codes, for DuckDB alone or any "
                "other database:</p>"
            )
            parts.append(report.code(answer.where[:600] + " ..."))
        parts.append("<h2>As a relation</h2>")
        parts.append(report.code(statement))
        page = self.folder / "report.html"
        page.write_text(report.page("Boxwood demo", parts), encoding="utf-8")
        sheet = self.folder / "contact-sheet.png"
        report.stack(images).save(sheet)
        self.say("", f"report         {page}", f"contact sheet  {sheet}")

    def _closing(self, seconds: float) -> None:
        data = self.folder / "demo.duckdb"
        self.say(
            f"all done in    {seconds:.0f} s",
            "",
            "What to type next",
            "  with your own photos and a CLIP model that knows the world:",
            "    boxwood create photos.duckdb photos --images ~/Pictures \\",
            "        --encoder ViT-B-32/laion2b_s34b_b79k",
            '    boxwood search photos.duckdb photos "a dog on a beach" --sheet found.png',
            "    boxwood refine photos.duckdb photos --positives 17,42 --negatives 5,8",
            "  in the shell of DuckDB, without Python:",
            f"    boxwood info {data} --shell",
            "  in Python:",
            "    import boxwood",
            f"    con = boxwood.connect({str(data)!r})",
            f"    scenes = boxwood.Collection.open(con, {COLLECTION!r})",
            '    scenes.search_text("a pink heart", 20)',
            "    con.sql(\"FROM search_text('scenes', 'a pink heart') JOIN scenes USING (id)\")",
        )


def run(
    folder: str | Path, *, images: int = 4000, seed: int = 0, rounds: int = 4,
    queries: Sequence[str] = QUERIES, progress: bool = False, open_report: bool = False,
) -> list[Answer]:  # fmt: skip
    """Run the demo in `folder`, printing to standard output; see `Demo`."""
    answers = Demo(Path(folder), images, seed, rounds, queries, progress=progress).run()
    if open_report:
        webbrowser.open((Path(folder) / "report.html").resolve().as_uri())
    return answers


def prepare(
    folder: str | Path, *, images: int = 4000, seed: int = 0, progress: bool = False
) -> Path:
    """Make the demo's pictures and collection in `folder`, or go on where an earlier run stopped;
    returns the path of the database."""
    return Demo(Path(folder), images, seed, progress=progress).prepare()
