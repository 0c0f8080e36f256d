"""The `boxwood` command: each subcommand end to end, exit codes, messages, and its own examples."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import boxwood
from boxwood import cli, scenes
from boxwood.progress import Bar

ROWS = 600
Run = Callable[..., tuple[int, str, str]]


def process(*words: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "boxwood", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Ten clusters of 60 rows, 64-d; row i is of cluster i % 10."""
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((10, 64))
    rows = centres[np.arange(ROWS) % 10] + 0.3 * rng.standard_normal((ROWS, 64))
    return rows.astype(np.float32)


@pytest.fixture
def database(tmp_path: Path, embeddings: np.ndarray, run: Run) -> Path:
    """A database with the collection `rows`, made by `create --npy`; ids are 100, 101, ..."""
    np.save(tmp_path / "emb.npy", embeddings)
    np.save(tmp_path / "ids.npy", np.arange(ROWS) + 100)
    path = tmp_path / "data.duckdb"
    code, out, err = run("create", path, "rows", "--npy", tmp_path / "emb.npy",
                         "--ids", tmp_path / "ids.npy")  # fmt: skip
    assert (code, err) == (0, "")
    assert "600 rows" in out
    return path


def cluster(ids: list[int]) -> set[int]:
    return {(i - 100) % 10 for i in ids}


# --- help and usage -----------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from boxwood.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print({'numpy', 'duckdb', 'pyarrow', 'torch', 'PIL'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "set()\n"
    assert "examples:" in done.stdout


@pytest.mark.parametrize("command", [name for name in cli._EXAMPLES if name])
def test_help_of_each_command_shows_its_examples(command: str, run: Run) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"boxwood {command} " in out.split("examples:")[1]


@pytest.mark.parametrize(
    "line", [line.strip() for text in cli._EXAMPLES.values() for line in text.splitlines()]
)
def test_examples_are_valid_commands(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("right.txt").write_text("17\n42\n")
    Path("wrong.txt").write_text("5, 8")
    words = shlex.split(line)
    assert words[0] == "boxwood"
    args = cli._parser().parse_args(words[1:])
    assert args.command == words[1]
    if args.command == "refine":
        assert args.positives[:1] == [17] or args.text == "a leopard"


def test_help_names_the_exit_codes(run: Run) -> None:
    _, out, _ = run("--help")
    codes = out.split("exit codes:")[1]
    assert re.findall(r"^  (\d+) ", codes, re.MULTILINE) == ["0", "1", "2", "130"]
    for command in ("create", "add"):
        words = " ".join(run(command, "--help")[1].split())
        assert "cannot be read are named and left out; the exit code is then 0" in words


def test_no_command_prints_help_and_says_usage(run: Run) -> None:
    code, out, _ = run()
    assert code == 2
    assert out.startswith("usage: boxwood")


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"boxwood {boxwood.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "x.duckdb", "rows"], "one of the arguments"),
        (["search", "x.duckdb", "rows", "words", "--like", "3"], "not allowed with"),
        (["search", "x.duckdb", "rows", "words", "-k", "0"], "at least 1"),
        (["search", "x.duckdb", "rows", "words", "--recall", "0"], "above 0 and at most 1"),
        (["search", "x.duckdb", "rows", "words", "--recall", "most"], "above 0 and at most 1"),
        (
            ["search", "x.duckdb", "rows", "--like", "-1"],
            "'-1' is not a whole number of at least 0",
        ),
        (["refine", "x.duckdb", "rows", "--positives", "1", "--seed", "-1"], "of at least 0"),
        (["refine", "x.duckdb", "rows", "--positives", "1", "--limit", "x"], "of at least 0"),
        (["refine", "x.duckdb", "rows", "--positives", "1", "--estimators", "0"], "of at least 1"),
        (["refine", "x.duckdb", "rows", "--positives", "1,two"], "'two' is not an id"),
        (["refine", "x.duckdb", "rows", "--positives", "@none.txt"], "cannot read ids"),
        (["refine", "x.duckdb", "rows"], "--positives"),
        (["create", "x.duckdb", "rows", "--ids", "ids.npy"], "--ids belongs to --npy"),
        (["create", "x.duckdb", "rows", "--npy", "a.npy", "--id", "id"], "--id belongs to"),
        (["add", "x.duckdb", "rows"], "name images"),
        (["export", "x.duckdb", "rows", "--model", "m", "--out", "f.xls"], "must end in .parquet"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_wrong_usage(words: list[str], says: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "boxwood: error: " in err
    assert says in err


# --- create -------------------------------------------------------------------------------------


def test_create_from_parquet_and_from_table(
    tmp_path: Path, embeddings: np.ndarray, run: Run
) -> None:
    table = pa.table(
        {
            "key": pa.array(np.arange(ROWS) + 100),
            "vec": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), 64),
            "colour": pa.array([f"c{i % 3}" for i in range(ROWS)]),
        }
    )
    pq.write_table(table, tmp_path / "emb.parquet")
    path = tmp_path / "data.duckdb"
    code, out, err = run("create", path, "one", "--parquet", tmp_path / "emb.parquet",
                         "--id", "key", "--embedding", "vec")  # fmt: skip
    assert (code, err) == (0, "")
    assert "600 rows" in out
    con = duckdb.connect(path)
    con.execute(f"CREATE TABLE pictures AS FROM '{tmp_path / 'emb.parquet'}'")
    con.close()
    code, out, err = run("create", path, "two", "--table", "pictures",
                         "--id", "key", "--embedding", "vec")  # fmt: skip
    assert (code, err) == (0, "")
    code, out, _ = run("info", path, "--json")
    assert code == 0
    assert {(info["name"], info["rows"]) for info in json.loads(out)} == {
        ("one", 600),
        ("two", 600),
    }
    answers = [run("search", path, name, "--like", 107, "--json") for name in ("one", "two")]
    rows = [json.loads(out) for _, out, _ in answers]
    assert [r["id"] for r in rows[0]] == [r["id"] for r in rows[1]]
    assert rows[1][0]["colour"] == "c1"  # 107 itself, row 7; metadata comes along


def test_fine_codes_are_kept_unless_told_otherwise(
    tmp_path: Path, embeddings: np.ndarray, run: Run
) -> None:
    np.save(tmp_path / "emb.npy", embeddings)
    path = tmp_path / "data.duckdb"
    for name, options in (("with", []), ("without", ["--no-fine"])):
        code, _, err = run("create", path, name, "--npy", tmp_path / "emb.npy", *options)
        assert (code, err) == (0, "")
    infos = {info["name"]: info for info in json.loads(run("info", path, "--json")[1])}
    assert len(infos["with"]["fine"]) == 16
    assert infos["without"]["fine"] is None
    assert infos["with"]["bytes_per_row"] > infos["without"]["bytes_per_row"] + 127
    lines = dict(line.split(maxsplit=1) for line in run("info", path, "with")[1].splitlines())
    assert lines["fine"] == infos["with"]["fine"]
    assert run("repair", path, "with")[0] == 0
    assert run("verify", path, "with")[0] == 0


def test_create_that_fails_leaves_no_database(tmp_path: Path, run: Run) -> None:
    bad = np.ones((5, 64), np.float32)
    bad[3, 7] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    path = tmp_path / "data.duckdb"
    code, out, err = run("create", path, "rows", "--npy", tmp_path / "bad.npy")
    assert (code, out) == (1, "")
    assert err.startswith("boxwood: error: ")
    assert "3" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npy"]


def test_create_that_fails_keeps_what_was_there(database: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("create", database, "other", "--npy", tmp_path / "absent.npy")
    assert code == 1
    assert "absent.npy" in err
    code, out, _ = run("info", database, "--json")
    assert [info["name"] for info in json.loads(out)] == ["rows"]


def test_create_twice_says_so(database: Path, tmp_path: Path, run: Run) -> None:
    code, _, err = run("create", database, "rows", "--npy", tmp_path / "emb.npy")
    assert code == 1
    assert "rows" in err
    assert run("search", database, "rows", "--like", 100)[0] == 0


def test_create_that_fails_leaves_what_lay_beside_before(tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "bad.npy", np.full((5, 64), np.nan, np.float32))
    path = tmp_path / "data.duckdb"
    beside = Path(f"{path}.boxwood")
    (beside / "mine").mkdir(parents=True)
    (beside / "mine" / "file").write_text("mine")
    assert run("create", path, "rows", "--npy", tmp_path / "bad.npy")[0] == 1
    assert not path.exists()
    assert [p.relative_to(beside).as_posix() for p in sorted(beside.rglob("*"))] == [
        "mine",
        "mine/file",
    ]


@pytest.mark.parametrize("others_stay", [True, False])
def test_create_at_the_same_time_takes_nothing_away(
    others_stay: bool,
    tmp_path: Path,
    embeddings: np.ndarray,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between this command's look at the folder and its connection another one makes the database,
    and holds it open or closes it."""
    np.save(tmp_path / "emb.npy", embeddings)
    path = tmp_path / "data.duckdb"
    program = (
        "import sys, boxwood\n"
        "con = boxwood.connect(sys.argv[1])\n"
        "boxwood.Collection.from_npy(con, 'rows', sys.argv[2])\n"
        "print('made', flush=True)\n"
        "sys.stdin.read()\n"
    )
    connect = boxwood.connect
    others: list[subprocess.Popen[str]] = []

    def late(*words: object, **options: object) -> object:
        monkeypatch.setattr(boxwood, "connect", connect)
        other = subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(tmp_path / "emb.npy")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        others.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        if not others_stay:
            other.communicate("", timeout=60)
        return connect(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(boxwood, "connect", late)
    code, _, err = run("create", path, "rows", "--npy", tmp_path / "emb.npy")
    assert code == 1
    assert ("another process" if others_stay else "already") in err
    if others_stay:
        others[0].communicate("", timeout=60)
    assert others[0].returncode == 0
    assert run("verify", path) == (0, "rows: sound\n", "")
    assert json.loads(run("info", path, "rows", "--json")[1])["rows"] == ROWS


def interrupt_in(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Ctrl-C at a call of the progress bar: `update` is amid a load, `__exit__` after it."""
    monkeypatch.setattr(Bar, method, lambda *_: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("method", ["update", "__exit__"])
@pytest.mark.parametrize("existed", [False, True])
def test_interrupted_create_of_embeddings_leaves_nothing(
    method: str, existed: bool, database: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = database if existed else database.with_name("new.duckdb")
    interrupt_in(monkeypatch, method)
    code, out, err = run("create", path, "other", "--npy", database.with_name("emb.npy"))
    assert (code, out) == (130, "")
    assert err == "boxwood: interrupted; no collection was made; run it again\n"
    assert path.exists() == existed
    if existed:
        assert [info["name"] for info in json.loads(run("info", path, "--json")[1])] == ["rows"]
    else:
        assert not Path(f"{path}.boxwood").exists()


@pytest.mark.parametrize(
    ("method", "rows", "says"),
    [
        ("update", ROWS, "nothing was added; run it again"),
        ("__exit__", 2 * ROWS, "all rows were added before that"),
    ],
)
def test_interrupted_add_of_embeddings_is_all_or_nothing(
    method: str, rows: int, says: str, database: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(monkeypatch, method)
    code, out, err = run("add", database, "rows", "--npy", database.with_name("emb.npy"))
    assert (code, out) == (130, "")
    assert err == f"boxwood: interrupted; {says}\n"
    assert json.loads(run("info", database, "rows", "--json")[1])["rows"] == rows
    assert run("verify", database) == (0, "rows: sound\n", "")


# --- add, search, refine, export ----------------------------------------------------------------


def test_add_embeddings(database: Path, tmp_path: Path, embeddings: np.ndarray, run: Run) -> None:
    np.save(tmp_path / "more.npy", embeddings[:50])
    np.save(tmp_path / "more_ids.npy", np.arange(50) + 1000)
    more = ("--npy", tmp_path / "more.npy", "--ids", tmp_path / "more_ids.npy")
    code, out, err = run("add", database, "rows", *more)
    assert (code, out, err) == (0, "50 added\n", "")
    code, out, _ = run("search", database, "rows", "--like", 1007, "-k", 2, "--json")
    assert {row["id"] for row in json.loads(out)} == {107, 1007}  # equal vectors
    code, _, err = run("add", database, "rows", *more)
    assert code == 1
    assert "1000" in err  # the first id that is there already


def test_search_prints_a_table_json_and_csv(database: Path, run: Run) -> None:
    code, out, err = run("search", database, "rows", "--like", 104, "-k", 5)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["id", "distance"]
    assert set(lines[1]) == {"-", " "}
    assert lines[2].split() == ["104", "0"]
    as_table = [int(line.split()[0]) for line in lines[2:]]
    _, out, _ = run("search", database, "rows", "--like", 104, "-k", 5, "--json")
    as_json = [row["id"] for row in json.loads(out)]
    _, out, _ = run("search", database, "rows", "--like", 104, "-k", 5, "--csv")
    as_csv = [int(row["id"]) for row in csv.DictReader(io.StringIO(out))]
    assert as_table == as_json == as_csv
    assert cluster(as_json) == {4}
    code, out, _ = run("search", database, "rows", "--like", 104, "--recall", 0.9, "--json")
    assert (code, len(json.loads(out)), json.loads(out)[0]["id"]) == (0, 60, 104)


def test_more_than_there_is(database: Path, run: Run) -> None:
    code, out, _ = run("search", database, "rows", "--like", 104, "-k", 5000, "--json")
    assert code == 0
    assert len(json.loads(out)) == ROWS


@pytest.mark.parametrize("learner", cli.LEARNERS)
def test_refine_and_export(database: Path, learner: str, tmp_path: Path, run: Run) -> None:
    if learner in ("tree", "forest"):
        pytest.importorskip("sklearn")
    model = tmp_path / "model.json"
    labels = ("--positives", "104,114,124,134,144,154,164,174", "--negatives", "105,106,107")
    code, out, err = run("refine", database, "rows", *labels, "--learner", learner,
                         "--limit", 0, "--save-model", model, "--json")  # fmt: skip
    assert (code, err) == (0, f"wrote {model}\n")
    found = json.loads(out)
    assert found["learner"] in (learner, "nearest" if learner == "cover" else learner)
    ids = [row["id"] for row in found["rows"]]
    assert found["count"] == len(ids) == len(set(ids)) > 4
    assert sum((i - 100) % 10 == 4 for i in ids) / len(ids) > 0.9
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True)

    for suffix in ("parquet", "csv", "json"):
        target = tmp_path / f"found.{suffix}"
        code, out, err = run("export", database, "rows", "--model", model, "--out", target)
        assert (code, out, err) == (0, f"wrote {len(ids):,} rows to {target}\n", "")
        written = duckdb.sql(f"SELECT id, score FROM '{target}'").fetchall()
        assert [row[0] for row in written] == ids
        assert [row[1] for row in written] == pytest.approx(scores)


def test_refine_says_what_to_expect(database: Path, run: Run) -> None:
    labels = ("--positives", "104,114,124,134,144,154,164,174", "--negatives", "105,106,107")
    code, out, err = run("refine", database, "rows", *labels, "--limit", 3)
    assert (code, err) == (0, "")
    *_, summary, estimate = [line for line in out.splitlines() if not line.startswith("note: ")]
    assert re.fullmatch(r"[\d,]+ images match; 3 shown", summary)
    share = r"[01]\.\d\d \([01]\.\d\d-[01]\.\d\d\)"
    assert re.fullmatch(rf"expected precision {share}, recall {share}", estimate)
    code, csv_out, err = run("refine", database, "rows", *labels, "--limit", 3, "--csv")
    assert code == 0
    assert estimate in err
    assert estimate not in csv_out
    found = json.loads(run("refine", database, "rows", *labels, "--json")[1])
    assert set(found) == {"count", "learner", "estimate", "note", "rows"}
    assert set(found["estimate"]) == {"rows", "precision", "recall"}
    for share in (found["estimate"]["precision"], found["estimate"]["recall"]):
        assert share is None or 0 <= share[0] <= share[1] <= share[2] <= 1

    code, out, _ = run("refine", database, "rows", *labels, "--learner", "branch", "--limit", 3)
    assert code == 0
    assert out.splitlines()[-1].endswith("3 shown")  # of which nothing is known


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--rerank",), {"rerank": True}),
        (("--boxes", 4), {"boxes": 4}),
        (("--no-guard",), {"guard": False}),
        (("--random-negatives", 300), {"random_negatives": 300}),
        (("--learner", "ensemble", "--paper", "--seed", 2),
         {"learner": "ensemble", "prior": False, "seed": 2}),
    ],
)  # fmt: skip
def test_refine_options(
    database: Path, words: tuple[object, ...], options: Any, tmp_path: Path, run: Run
) -> None:
    labels = ("--positives", "104,114,124", "--negatives", "105")
    code, _, _ = run("refine", database, "rows", *labels, *words, "--save-model", tmp_path / "m")
    assert code == 0
    with boxwood.connect(database) as con:
        wanted = boxwood.Collection.open(con, "rows").train([104, 114, 124], [105], **options)
    assert boxwood.Model.load(tmp_path / "m") == wanted


def test_refine_refuses(database: Path, run: Run) -> None:
    for words in (("--negatives", "105"), ("--positives", "")):
        code, _, err = run("refine", database, "rows", *words)
        assert code == 2
        assert "--positives IDS" in err
        assert "--text WORDS" in err
    some = ("--positives", "104,114")
    assert run("refine", database, "rows", *some, "--text", "a", "--image", "b")[0] == 2
    for words, message in (
        (("--paper",), "prior=False is for the learners 'branch' and 'ensemble'"),
        (("--learner", "branch", "--rerank"), "rerank=True is for the learner 'cover'"),
        (("--boxes", 65), "boxes must be from 0 to 64"),
        (("--text", "a dog"), "no encoder"),
    ):
        code, out, err = run("refine", database, "rows", *some, *words)
        assert (code, out) == (1, "")
        assert message in err


@pytest.fixture
def clashing(tmp_path: Path, embeddings: np.ndarray, run: Run) -> Path:
    """A collection whose metadata has Boxwood's own column names, and two rows for id 4."""
    rows = np.append(np.arange(ROWS), 4)
    words = [f"mine {i}" for i in rows]
    path = tmp_path / "clash.duckdb"
    np.save(tmp_path / "emb.npy", embeddings)
    con = duckdb.connect(path)
    table = pa.table({"key": rows, "id": words, "Distance": words, "votes": words, "score": words,
                      "score_1": words})  # fmt: skip
    con.register("made", table)
    con.execute("CREATE TABLE details AS FROM made")
    con.close()
    con = boxwood.connect(path)
    made = boxwood.Collection.create(con, "rows", table="details", id_column="key")
    made.append(np.arange(ROWS), embeddings=embeddings)
    con.close()
    return path


def test_metadata_of_the_same_names_stand_beside(clashing: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run("search", clashing, "rows", "--like", 4, "-k", 3, "--json")
    assert (code, err) == (0, "")
    first, *_ = rows = json.loads(out)
    assert len({row["id"] for row in rows}) == len(rows) == 3
    assert first == {"id": 4, "distance": 0.0, "id_1": "mine 4", "Distance_1": "mine 4",
                     "votes": "mine 4", "score": "mine 4", "score_1": "mine 4"}  # fmt: skip
    for form in ((), ("--csv",)):
        code, out, err = run("search", clashing, "rows", "--like", 4, *form)
        assert (code, err) == (0, "")
        assert "mine 4" in out
    model = tmp_path / "m.json"
    code, out, _ = run("refine", clashing, "rows", "--positives", "4,14,24,34", "--limit", 0,
                       "--save-model", model, "--json")  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["count"] == len(found["rows"])
    for row in found["rows"]:
        assert isinstance(row["votes"], int)
        assert isinstance(row["score"], float)
        assert {row["votes_1"], row["score_1"], row["score_2"]} == {f"mine {row['id']}"}
    target = tmp_path / "found.parquet"
    code, out, err = run("export", clashing, "rows", "--model", model, "--out", target)
    assert (code, out, err) == (0, f"wrote {found['count']:,} rows to {target}\n", "")
    assert pq.read_table(target).to_pylist() == found["rows"]


def test_errors_of_duckdb_come_without_its_statements(
    database: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet at all")
    code, _, err = run("create", database, "other", "--parquet", tmp_path / "bad.parquet")
    assert code == 1
    assert "bad.parquet" in err
    assert "LINE" not in err
    assert "^" not in err


def test_refine_table_limit_and_sql(database: Path, run: Run) -> None:
    labels = ("--positives", "104,114,124,134,144", "--negatives", "105,106")
    code, out, err = run("refine", database, "rows", *labels, "--limit", 3, "--sql")
    assert (code, err) == (0, "")
    summary = re.search(r"^([\d,]+) images match; 3 shown$", out, re.MULTILINE)
    assert summary is not None
    count = int(summary[1].replace(",", ""))
    statement = out.splitlines()[0]
    con = boxwood.connect(database)
    rows = con.execute(statement).fetchall()
    con.close()
    assert len(rows) == count


def test_refine_reads_labels_from_files(database: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "right.txt").write_text("104\n114, 124\n134 144\n")
    one = run("refine", database, "rows", "--positives", f"@{tmp_path / 'right.txt'}", "--json")
    two = run("refine", database, "rows", "--positives", "104,114,124,134,144", "--json")
    assert one == two
    assert one[0] == 0


def test_same_seed_same_answer_other_options_other_answer(database: Path, run: Run) -> None:
    def count(*options: object) -> list[object]:
        code, out, _ = run("refine", database, "rows", "--positives", "104,114,124", "--negatives",
                           "105", "--limit", 0, "--json", *options)  # fmt: skip
        assert code == 0
        return [row["id"] for row in json.loads(out)["rows"]]

    assert count("--seed", 3) == count("--seed", 3)
    assert count("--random-negatives", 10) != count("--random-negatives", 400)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["refine", "--positives", "99999"], "99999"),
        (["refine", "--positives", "104", "--negatives", "104"], "104"),
        (["search", "--like", "99999"], "99999"),
        (["search", "a red circle"], "encoder"),
        (["search", "--image", "absent.jpg"], "encoder"),
    ],
)
def test_bad_input_is_explained(database: Path, words: list[str], says: str, run: Run) -> None:
    code, out, err = run(words[0], database, "rows", *words[1:])
    assert (code, out) == (1, "")
    assert err.startswith("boxwood: error: ")
    assert says in err
    assert "Traceback" not in err


def test_missing_things_are_named(database: Path, tmp_path: Path, run: Run) -> None:
    absent = tmp_path / "absent.duckdb"
    for words in (["info"], ["search", "rows", "--like", 1], ["repair"],
                  ["add", "rows", "x.jpg"]):  # fmt: skip
        code, _, err = run(words[0], absent, *words[1:])
        assert code == 1
        assert "boxwood create" in err
        assert not absent.exists()
    code, _, err = run("search", database, "rose", "--like", 104)
    assert code == 1
    assert "'rose'" in err
    assert "rows" in err
    code, _, err = run("info", database, "rose")
    assert (code, "rows" in err) == (1, True)
    code, _, err = run("export", database, "rows", "--model", tmp_path / "m.json",
                       "--out", tmp_path / "f.csv")  # fmt: skip
    assert (code, "m.json" in err) == (1, True)


def test_a_file_that_is_no_database(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "text.duckdb"
    path.write_text("hello" * 1000)
    code, _, err = run("info", path)
    assert code == 1
    assert err.startswith("boxwood: error: ")
    assert path.read_text() == "hello" * 1000


def test_a_broken_model(database: Path, tmp_path: Path, run: Run) -> None:
    for text in ("{", '{"boxwood_model": 1}', "[]", "\xff"):
        (tmp_path / "m.json").write_text(text)
        code, _, err = run("export", database, "rows", "--model", tmp_path / "m.json",
                           "--out", tmp_path / "f.csv")  # fmt: skip
        assert code == 1
        assert err.startswith("boxwood: error: ")
        assert not (tmp_path / "f.csv").exists()


# --- info and repair ----------------------------------------------------------------------------


def test_info(database: Path, run: Run) -> None:
    code, out, _ = run("info", database)
    assert code == 0
    assert out.splitlines()[2].split()[:2] == ["rows", "600"]
    code, out, _ = run("info", database, "rows")
    assert code == 0
    assert re.search(r"^rows +600$", out, re.MULTILINE)
    code, out, _ = run("info", database, "rows", "--json")
    assert json.loads(out)["rows"] == 600


@pytest.mark.parametrize("state", ["missing", "corrupt", "foreign", "stale"])
def test_info_tells_of_a_bad_index(
    state: str, database: Path, tmp_path: Path, embeddings: np.ndarray, run: Run
) -> None:
    [folder] = Path(f"{database}.boxwood").iterdir()
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    assert run("create", database, "other", "--npy", tmp_path / "emb.npy")[0] == 0
    if state == "stale":
        np.save(tmp_path / "one.npy", embeddings[:1])
        assert run("add", database, "rows", "--npy", tmp_path / "one.npy")[0] == 0
    shutil.rmtree(folder)
    if state == "corrupt":
        shutil.copytree(kept, folder)
        for file in folder.iterdir():
            file.write_bytes(b"no index")
    elif state == "foreign":
        [other] = Path(f"{database}.boxwood").iterdir()
        shutil.copytree(other, folder)
    elif state == "stale":
        shutil.copytree(kept, folder)
    rows = ROWS + (state == "stale")
    hint = (f"the index of rows is {state}; the rows are safe, and `boxwood repair {database} "
            "rows` builds it again\n")  # fmt: skip
    code, out, err = run("info", database, "--json")
    assert (code, err) == (0, hint)
    assert {(info["name"], info["rows"], info["state"]) for info in json.loads(out)} == {
        ("rows", rows, state),
        ("other", ROWS, "current"),
    }
    code, out, err = run("info", database, "rows")
    assert (code, err) == (0, hint)
    assert re.search(rf"^state +{state}$", out, re.MULTILINE)
    assert run("info", database, "other")[2] == ""
    assert run("repair", database, "rows")[0] == 0
    code, out, err = run("info", database, "rows", "--json")
    assert (code, json.loads(out)["state"], err) == (0, "current", "")


def test_info_shell_runs_in_the_shell(database: Path, run: Run) -> None:
    code, out, _ = run("info", database, "rows", "--shell")
    assert code == 0
    words = shlex.split(out.splitlines()[0])
    assert words[0] == "duckdb"
    shell = Path(sys.executable).with_name("duckdb")
    if not shell.exists():
        pytest.skip("needs the package duckdb-cli")
    done = subprocess.run([shell, *words[1:]], input="\n".join(out.splitlines()[1:]),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "600" in done.stdout


def test_repair_and_check(database: Path, run: Run) -> None:
    before = run("search", database, "rows", "--like", 104, "--json")
    assert run("verify", database) == (0, "rows: sound\n", "")
    [segment] = Path(f"{database}.boxwood").glob("*/*.segment")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0x40
    segment.write_bytes(data)
    code, out, _ = run("verify", database, "rows")
    assert code == 1
    assert out.startswith("rows: ")
    code, _, err = run("search", database, "rows", "--like", 104)
    assert code == 1
    assert "boxwood repair" in err
    code, out, _ = run("repair", database)
    assert (code, out) == (0, "rows: index rebuilt, 600 rows\n")
    assert run("search", database, "rows", "--like", 104, "--json") == before
    assert run("verify", database)[0] == 0


def test_delete_and_compact(database: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "wrong.txt").write_text("101\n102\n9999\n")
    code, out, _ = run("delete", database, "rows", "--ids", f"@{tmp_path / 'wrong.txt'}")
    assert (code, out) == (0, "rows: 2 deleted, 598 left\n")
    code, out, err = run("search", database, "rows", "--like", 101)
    assert code == 1
    assert "no id 101" in err
    info = json.loads(run("info", database, "rows", "--json")[1])
    assert (info["rows"], info["pending"], info["state"]) == (598, 2, "behind")
    assert run("info", database)[2] == ""  # that is nothing to repair
    assert run("verify", database) == (0, "rows: sound\n", "")
    code, out, _ = run("compact", database)
    assert code == 0
    assert re.fullmatch(r"rows: 598 rows, [\d,]+ bytes of index\n", out)
    info = json.loads(run("info", database, "rows", "--json")[1])
    assert (info["indexed"], info["pending"], info["deleted"]) == (598, 0, 0)
    code, _, err = run("delete", database, "rows", "--where", "id < 110")
    assert code == 1
    assert "no metadata table" in err
    con = boxwood.connect(database)
    con.execute("CREATE TABLE mine AS SELECT id, id % 7 AS kind FROM boxwood.rows_codes")
    codes = con.sql("SELECT * EXCLUDE generation FROM boxwood.rows_codes").to_arrow_table()
    boxwood.Collection.create(con, "other", table="mine").append(
        codes["id"].to_numpy(), codes=np.stack([codes[f"d{d:02}"] for d in range(32)], axis=1)
    )
    con.close()
    code, out, _ = run("delete", database, "other", "--where", "kind = 3 -- all of them")
    assert code == 0
    assert re.fullmatch(r"other: 8\d deleted, 51\d left\n", out)
    code, _, err = run("delete", database, "other", "--where", "nothing = 3")
    assert code == 1
    assert "nothing" in err


def test_a_second_writer_is_told(database: Path) -> None:
    con = boxwood.connect(database)
    try:
        done = process("repair", database)
        _, err = done.communicate(timeout=60)
    finally:
        con.close()
    assert done.returncode == 1
    assert err.startswith("boxwood: error: ")
    assert "lock" in err.lower() or "another" in err.lower()


# --- images -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240 scenes."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("needs open_clip")
    folder = tmp_path_factory.mktemp("pictures")
    scenes.write(folder, 240, 1)
    return folder


def test_images_from_create_to_sheet(pictures: Path, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "data.duckdb"
    code, out, err = run("create", path, "scenes", "--images", pictures, "--no-progress")
    assert code == 0
    assert out.startswith("240 added, 0 were there already, 0 could not be added")
    assert "tiny-scenes" in err
    assert "--encoder ViT-B-32" in err
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    code, out, err = run("add", path, "scenes", pictures, tmp_path / "broken.png", "--no-progress")
    assert code == 0
    assert out.startswith("0 added, 240 were there already, 1 could not be added")
    assert "broken.png" in err

    sheet = tmp_path / "found.png"
    code, out, err = run(
        "search", path, "scenes", "a red circle", "-k", 12, "--sheet", sheet, "--json"
    )
    assert (code, err) == (0, f"wrote {sheet}\n")
    words = json.loads(out)
    assert len(words) == 12
    assert Path(words[0]["uri"]).parent == pictures.resolve()
    assert sheet.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("search", path, "scenes", "--image", words[0]["uri"], "-k", 3, "--json")
    assert code == 0
    assert json.loads(out)[0]["id"] == words[0]["id"]
    code, out, err = run("refine", path, "scenes", "--positives", words[0]["id"], "--sheet",
                         tmp_path / "sheet.jpg", "--negatives", words[-1]["id"])  # fmt: skip
    assert code == 0
    code, _, err = run("search", path, "scenes", "--image", tmp_path / "absent.jpg")
    assert (code, "absent.jpg" in err) == (1, True)
    code, _, err = run("search", path, "scenes", "a red circle", "--sheet", tmp_path / "sheet.txt")
    assert (code, "must end in" in err) == (1, True)


def test_nothing_to_add(tmp_path: Path, pictures: Path, run: Run) -> None:
    path = tmp_path / "data.duckdb"
    (tmp_path / "empty").mkdir()
    for source, says in (("empty", "no images"), ("nowhere", "nowhere")):
        code, out, err = run("create", path, "scenes", "--images", tmp_path / source)
        assert (code, out) == (1, "")
        assert says in err
        assert not path.exists()
    assert run("create", path, "scenes", "--encoder", "tiny-scenes")[0] == 0
    assert run("search", path, "scenes", "a red circle", "--json") == (0, "[]\n", "")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no picture")
    code, out, err = run("add", path, "scenes", tmp_path / "empty")
    assert code == 1
    assert out.startswith("0 added, 0 were there already, 1 could not be added")
    code, out, err = run("add", path, "scenes", pictures / "scene_000000.png", "--progress")
    assert code == 0
    assert "1/1" in err
    code, _, err = run("create", path, "other", "--encoder", "ViT-B-99/nothing")
    assert (code, "ViT-B-99" in err) == (1, True)
    (tmp_path / "texts.txt").write_bytes(b"\xff\xfe")
    code, _, err = run("create", path, "other", "--encoder", "tiny-scenes", "--texts",
                       tmp_path / "texts.txt")  # fmt: skip
    assert (code, "texts.txt" in err) == (1, True)


def test_words_that_were_searched_are_kept_for_the_shell(
    tmp_path: Path, pictures: Path, run: Run
) -> None:
    path = tmp_path / "data.duckdb"
    assert run("create", path, "scenes", "--images", pictures / "scene_000001.png")[0] == 0
    assert run("search", path, "scenes", "a very unusual phrase")[0] == 0
    words = ("--text", "another phrase", "--learner", "cover", "--limit", 0, "--json")
    code, out, _ = run("refine", path, "scenes", *words)
    assert (code, json.loads(out)["learner"]) == (0, "cover")
    con = duckdb.connect(path, read_only=True)
    query = "SELECT text FROM boxwood.texts WHERE text LIKE 'a%phrase' ORDER BY text"
    assert con.execute(query).fetchall() == [("a very unusual phrase",), ("another phrase",)]
    con.close()


def test_output_into_a_closed_pipe(database: Path) -> None:
    started = process("search", database, "rows", "--like", 104, "-k", 600)
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    assert started.stderr.read() == ""
    assert started.wait(timeout=60) == 0


def test_interrupted_add_goes_on(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "data.duckdb"
    started = process("create", path, "scenes", "--images", pictures, "--batch", 8)
    deadline = time.monotonic() + 120
    # Interrupt once some images are in: their segments stand beside the database.
    while len(list(tmp_path.glob("*.boxwood/*/*.segment"))) < 2:
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert "interrupted; what was committed stays, and `boxwood add` goes on" in err
    done = process("add", path, "scenes", pictures)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    added, skipped = map(int, re.match(r"(\d+) added, (\d+) were there already", out).groups())  # type: ignore[union-attr]
    assert added + skipped == 240
    assert skipped > 0
    checked = process("verify", path)
    out, _ = checked.communicate(timeout=60)
    assert (checked.returncode, out) == (0, "scenes: sound\n")
