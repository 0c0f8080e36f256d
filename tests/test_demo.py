"""The demo: it runs, its figures agree with each other, and its answers are good enough to show."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import boxwood
from boxwood import demo, report
from boxwood.errors import DatabaseLocked, InputError

pytestmark = pytest.mark.skipif(
    find_spec("open_clip") is None or find_spec("sklearn") is None,
    reason="needs open_clip and scikit-learn",
)

IMAGES = 600
ROUNDS = 3


class Tables(HTMLParser):
    """Every table of a page as rows of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][-1].append("".join(self.cell))
            self.cell = None


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo as a person runs it: its folder and its output."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "boxwood", "demo", "--folder", str(folder),
         "--images", str(IMAGES), "--rounds", str(ROUNDS)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def rounds(output: str) -> list[list[list[str]]]:
    """The tables of rounds as printed, one a query."""
    tables: list[list[list[str]]] = []
    inside = False
    for line in output.splitlines():
        cells = line.split()
        if line.startswith("learner "):
            tables.append([])
        if cells and cells[0] in demo.LEARNERS:
            inside = True
            tables[-1].append(cells)
        elif inside and not cells:
            inside = False
    return tables


def test_every_learner_has_every_round(ran: tuple[Path, str]) -> None:
    tables = rounds(ran[1])
    assert len(tables) == len(demo.QUERIES)
    assert demo.LEARNERS[0] == demo.DEFAULT == "cover"
    for table in tables:
        wanted = [[name, str(i + 1)] for name in demo.LEARNERS for i in range(ROUNDS)]
        assert [row[:2] for row in table] == wanted


def test_figures_agree(ran: tuple[Path, str]) -> None:
    truths = [int(n) for n in re.findall(r'^".*": (\d+) of 600', ran[1], re.MULTILINE)]
    assert len(truths) == len(demo.QUERIES)
    for truth, table in zip(truths, rounds(ran[1]), strict=True):
        for _, number, right, wrong, found, *measured in table:
            precision, recall, f1 = map(float, measured[:3])
            hits = round(precision * int(found))
            assert recall == pytest.approx(hits / truth, abs=6e-4)
            assert f1 == pytest.approx(2 * hits / (int(found) + truth), abs=6e-4)
            labels = int(right) + int(wrong)
            assert labels <= demo.PAGE * demo.PAGES + (int(number) - 1) * (demo.TOP + demo.BORDER)
            assert int(right) <= truth
        for earlier, later in itertools.pairwise(table):
            if earlier[0] == later[0]:  # labels only grow
                assert int(later[2]) >= int(earlier[2])
                assert int(later[3]) >= int(earlier[3])


@pytest.mark.parametrize(
    ("learner", "least", "mean"), [("cover", 0.5, 0.75), ("ensemble", 0.85, 0.92)]
)
def test_answers_are_worth_showing(
    ran: tuple[Path, str], learner: str, least: float, mean: float
) -> None:
    last = [
        float(row[7])
        for table in rounds(ran[1])
        for row in table
        if row[0] == learner and row[1] == str(ROUNDS)
    ]
    assert min(last) > least
    assert sum(last) / len(last) > mean


def test_the_report_says_the_same_and_needs_nothing_else(ran: tuple[Path, str]) -> None:
    page = (ran[0] / "report.html").read_text(encoding="utf-8")
    parser = Tables()
    parser.feed(page)
    assert [table[1:] for table in parser.tables] == rounds(ran[1])
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("<svg") == len(demo.QUERIES)
    image_module = pytest.importorskip("PIL.Image")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) >= len(demo.QUERIES)
    assert "The model of cover as a condition on the codes" in page
    says = re.findall(r"from the labels alone:\n    (expected precision .*)\n", ran[1])
    assert len(says) == len(demo.QUERIES)
    said = re.findall(r"from the labels alone: (expected .*?)</p>", page)
    assert [html.unescape(text) for text in said] == says
    for data in pictures:
        assert image_module.open(io.BytesIO(base64.b64decode(data))).width > 60
    with image_module.open(ran[0] / "contact-sheet.png") as sheet:
        assert sheet.height > 300


def test_the_sql_shown_gives_what_was_printed(ran: tuple[Path, str]) -> None:
    folder, output = ran
    statement = re.search(r"^    (SELECT t\.background.*?;)$", output, re.MULTILINE | re.DOTALL)
    assert statement is not None
    con = boxwood.connect(folder / "demo.duckdb", read_only=True)
    rows = con.execute(statement[1]).fetchall()
    con.close()
    found = next(
        int(row[4]) for row in rounds(output)[0] if row[0] == demo.DEFAULT and row[1] == str(ROUNDS)
    )
    assert sum(row[-1] for row in rows) == found
    printed = re.findall(r"^    (white|black|gray) +\S+ +(\d+)$", output, re.MULTILINE)
    assert sum(int(count) for _, count in printed) == found


def test_a_second_run_adds_nothing_and_finds_the_same(
    ran: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    demo.run(ran[0], images=IMAGES, rounds=1, queries=demo.QUERIES[:1])
    again = capsys.readouterr().out
    assert "0 added" in again
    first = [row[:-2] for row in rounds(ran[1])[0] if row[1] == "1"]  # without times
    assert [row[:-2] for row in rounds(again)[0]] == first


def test_another_size_starts_anew_and_touches_nothing_else(
    ran: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (ran[0] / "images" / "mine.png").write_bytes(b"mine")
    (ran[0] / "notes.txt").write_text("mine")
    (ran[0] / "demo.duckdb").write_bytes(b"no database at all")
    demo.run(ran[0], images=150, rounds=1, queries=["a red shape"])
    out = capsys.readouterr().out
    assert "150 added" in out
    assert len(list((ran[0] / "images").glob("scene_*"))) == 150
    assert (ran[0] / "images" / "mine.png").read_bytes() == b"mine"
    assert (ran[0] / "notes.txt").read_text() == "mine"


def test_bad_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    for settings in ({"images": 5}, {"rounds": 0}, {"queries": ["a leopard"]}):
        with pytest.raises(InputError):
            demo.run(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["demo.duckdb", "images", "report.html", "contact-sheet.png"])
def test_a_folder_with_somebody_elses_files_is_refused(tmp_path: Path, name: str) -> None:
    if name == "images":
        (tmp_path / name).mkdir()
        (tmp_path / name / "scene_1.png").write_bytes(b"mine")
    else:
        (tmp_path / name).write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"{re.escape(name)} was not made by a demo.*--folder"):
        demo.run(tmp_path, images=100, rounds=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert all(file.read_bytes() == b"mine" for file in before if file.is_file())


def test_a_demo_does_not_take_away_a_database_that_is_open_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.run(tmp_path, images=100, rounds=1, queries=["a red shape"])
    pictures = sorted((tmp_path / "images").iterdir())
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, duckdb; con = duckdb.connect(sys.argv[1]); "
         "print('open', flush=True); sys.stdin.read()", str(tmp_path / "demo.duckdb")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        for images in (100, 120):
            with pytest.raises(DatabaseLocked):
                demo.run(tmp_path, images=images, rounds=1, queries=["a red shape"])
    finally:
        holder.communicate("", timeout=60)
    assert sorted((tmp_path / "images").iterdir()) == pictures
    demo.run(tmp_path, images=100, rounds=1, queries=["a red shape"])
    assert "0 added" in capsys.readouterr().out.split("collection")[-1]


# --- labels and measures ------------------------------------------------------------------------


def test_quality() -> None:
    truth = frozenset({1, 2, 3, 4})
    assert demo.quality([1, 2, 9], truth) == demo.Quality(3, 2 / 3, 0.5, 4 / 7)
    assert demo.quality([], truth) == demo.Quality(0, 0.0, 0.0, 0.0)
    assert demo.quality([], frozenset()) == demo.Quality(0, 0.0, 0.0, 0.0)


def test_a_person_labels_what_is_shown_once() -> None:
    person = demo.Person(frozenset({2, 4, 6}))
    person.look([1, 2, 3])
    person.look([2, 3, 4, 4])
    assert (person.positives, person.negatives) == ([2, 4], [1, 3])


def test_the_first_page_is_turned_until_something_is_right() -> None:
    by_words = list(range(1000))
    assert demo.first_page(demo.Person(frozenset({3})), by_words) == list(range(60))
    late = demo.Person(frozenset({130}))
    assert demo.first_page(late, by_words) == list(range(180))
    assert late.positives == [130]
    never = demo.Person(frozenset({999}))
    assert demo.first_page(never, by_words) == list(range(300))
    assert never.positives == []


def test_the_next_page_shows_the_best_and_the_last_and_then_goes_on_by_words() -> None:
    person = demo.Person(frozenset(), negatives=[0, 1, 2])
    ranked = list(range(100))
    assert demo.next_page(person, ranked, []) == [*range(3, 23), *range(90, 100)]
    assert demo.next_page(person, list(range(25)), []) == list(range(3, 25))
    few = demo.next_page(person, [1, 7, 5], list(range(200)))
    assert few[:2] == [7, 5]
    assert few[2:] == [i for i in range(200) if i not in {0, 1, 2, 5, 7}][:28]


# --- pictures and tables ------------------------------------------------------------------------


def test_contact_sheet(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    colours = {"right": (0, 0, 255), "wrong": (255, 255, 0)}
    cells = []
    for mark, colour in colours.items():
        image_module.new("RGB", (300, 200), colour).save(tmp_path / f"{mark}.png")
        cells.append(report.Cell(tmp_path / f"{mark}.png", mark, mark))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cells += [report.Cell(tmp_path / "broken.png"), report.Cell(tmp_path / "absent.png")]
    sheet = report.contact_sheet(cells, columns=4, side=96, title="a title")
    gap, border = 6, 4
    for i, mark in enumerate(colours):
        left = gap + i * (96 + 2 * border + gap)
        top = 22 + gap
        assert sheet.getpixel((left + border + 48, top + border + 48)) == colours[mark]
        red, green, _ = sheet.getpixel((left + 1, top + 50))
        assert (green > red) == (mark == "right")
    with pytest.raises(InputError):
        report.contact_sheet([])


def test_text_table() -> None:
    rows = [["a", 7, 0.123456, None], ["long\nname", 12345, 10.0, "x"]]
    table = report.text_table(["name", "n", "x", "note"], rows)
    assert table.splitlines() == [
        "name           n       x  note",
        "---------  -----  ------  ----",
        "a              7  0.1235",
        "long name  12345      10  x",
    ]
    narrow = report.text_table(["uri", "id"], [["/a/very/long/path/one.jpg", 5]], width=20)
    assert max(map(len, narrow.splitlines())) <= 20
    assert narrow.splitlines()[-1] == "…ng/path/one.jpg   5"
    assert report.text_table(["a"], []).splitlines() == ["a", "-"]


def test_plot_keeps_values_inside() -> None:
    svg = report.plot({"one": [0.0, 1.0], "two": [0.5, 0.5]}, start={"<words>": 0.25})
    assert "&lt;words&gt;" in svg
    points = re.findall(r'points="([^"]+)"', svg)
    assert len(points) == 2
    lows = [float(pair.split(",")[1]) for pair in points[0].split()]
    middle = float(points[1].split(",")[1].split()[0])
    assert lows[0] > middle > lows[1]
