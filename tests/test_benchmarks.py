"""The benchmarks run, agree with themselves and with the oracle, and skip what is not there. No
test looks at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from boxwood import native

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import data  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from results import Results  # noqa: E402


def run(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, words)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def rows_of(folder: Path, workload: str) -> list[dict[str, Any]]:
    """The measurements of a workload, as the Parquet file has them."""
    with duckdb.connect() as con:
        found = con.execute(
            f"SELECT * FROM '{folder / 'results.parquet'}' WHERE workload = ?", [workload]
        )
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module keep their data and indexes."""
    return tmp_path_factory.mktemp("bench")


def test_absent_data_is_skipped(tmp_path: Path) -> None:
    assert run("real_clip.py", tmp_path).startswith("skipped: ")
    source = data.Source("realistic", 0, tmp_path, tmp_path / "absent")
    assert source.kind == "synthetic"


@pytest.mark.parametrize("kind", ["synthetic", "uniform"])
def test_rows_depend_on_kind_seed_and_number_alone(kind: str, tmp_path: Path) -> None:
    one, two = (data.Source(kind, 3, tmp_path / name) for name in "ab")
    late = one.rows(249_990, 250_020)  # across two pieces
    assert np.array_equal(two.rows(0, 1000), one.rows(0, 1000))
    assert np.array_equal(two.rows(249_990, 250_020), late)
    assert np.array_equal(late, np.concatenate([one.piece(0)[-10:], one.piece(1)[:20]]))
    with open(one._file(), "r+b") as cut:  # a run that was stopped while it wrote
        cut.truncate(data.PIECE * data.DIMS + 7)
    assert np.array_equal(one.rows(249_990, 250_020), late)
    other = data.Source(kind, 4, tmp_path / "c")
    assert not np.array_equal(other.rows(0, 100), one.rows(0, 100))
    head = {row.tobytes() for row in one.rows(0, 5000)}
    assert not head & {row.tobytes() for row in one.queries(200)}


def test_rows_beyond_the_cache_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = data.Source("uniform", 0, tmp_path / "a").rows(240_000, 510_000)
    monkeypatch.setattr(data, "CACHED", data.PIECE)
    made = data.Source("uniform", 0, tmp_path / "b").rows(240_000, 510_000)
    assert np.array_equal(kept, made)


@pytest.mark.parametrize("rows", [1, 255, 4095, 4096, 4097, 12_345])
def test_the_scans_agree_with_the_oracle(rows: int, out: Path) -> None:
    problem = peers.Scan.build(out)
    if problem:
        pytest.skip(problem)
    source = data.Source("synthetic", 0, out / "data")
    codes = source.rows(0, rows)
    ids = np.arange(rows, dtype=np.int64) * 3
    scan = peers.Scan(codes, ids)
    for family in data.FAMILIES:
        query = data.make_query(source.rows(0, 20_000), family, 1, 0)
        for asked in (query, data.branch_of(query, codes)):
            for threshold in (1, asked.threshold, len(asked.estimators)):
                model = data.Query(family, 1, asked.estimators, threshold, asked.positives,
                                   asked.negatives)  # fmt: skip
                votes, _, match = native.Model.from_json(model.json()).evaluate(codes)
                ordered = peers.rarest_first(model, codes)
                answers = [
                    peers.Scan.answer(scan.prepare(ordered, threshold, early, threads)())
                    for early in (False, True)
                    for threads in (1, 2, 5)
                ]
                answers.append(peers.numpy_votes(np.ascontiguousarray(codes.T), ids, model))
                for found, count in answers:
                    assert np.array_equal(found, ids[match])
                    assert np.array_equal(count, votes[match])


def test_ensembles_and_neighbours_on_few_rows(out: Path) -> None:
    """All ways answer alike, or the run fails; the file of results has every one of them."""
    common = ["--rows", 20_000, "--data", "synthetic", "--out", out, "--quick", "--repeat", 1]
    printed = run("bench.py", "ensembles", *common, "--models", 1, "--threads", 1, 2)
    rows = rows_of(out, "ensemble") + rows_of(out, "branch")
    every = {"Boxwood C", "Boxwood C count", "Boxwood SQL", "Boxwood SQL count", "DuckDB WHERE",
             "DuckDB WHERE count"}  # fmt: skip
    if not peers.Scan.build(out):
        every |= {*report.SCANS, report.SORTED_SCAN}
    else:
        assert "left out: the AVX2 scan" in printed
    cases = {(r["workload"], r["model"], r["threads"]) for r in rows}
    families = {*data.FAMILIES, "learned"}
    assert {(w, m, t) for w in ("ensemble", "branch") for m in families for t in (1, 2)} <= cases
    for case in cases:
        mine = [r for r in rows if (r["workload"], r["model"], r["threads"]) == case]
        assert every <= {r["method"] for r in mine}
        assert len({r["results"] for r in mine}) == 1
        assert all(r["median_ms"] > 0 and r["repeats"] >= 1 for r in mine)
        assert all(r["blocks"] == 79 for r in mine if r["method"].startswith("Boxwood C"))
    assert {r["rows"] for r in rows} == {20_000}
    assert all(r["cpu"] and r["isa"] and r["versions"] and r["run"] for r in rows)

    run("bench.py", "knn", *common, "--queries", 20)
    rows = rows_of(out, "knn")
    exact = [r for r in rows if r["method"] in ("Boxwood exact", "faiss flat")]
    assert [r["recall"] for r in exact] == [1.0] * len(exact)
    assert {"Boxwood", "Boxwood exact"} <= {r["method"] for r in rows}
    assert all(0 < r["recall"] <= 1 and r["queries"] == 20 and r["k"] == 60 for r in rows)
    assert rows_of(out, "knn batch")
    text = (out / "report.md").read_text("utf-8")
    for heading in ("## Machine", "## Ensembles and single branches", "## Nearest neighbours"):
        assert heading in text


def test_growth_and_the_papers_run_on_few_rows(out: Path) -> None:
    common = ["--data", "synthetic", "--out", out, "--quick", "--repeat", 1, "--threads", 1]
    run("bench.py", "growth", *common, "--rows", 10_000, 20_000)
    rows = rows_of(out, "growth")
    assert {r["rows"] for r in rows} == {10_000, 20_000}
    assert {"refine", "ensemble, wide", "k-NN, exact"} <= {r["method"] for r in rows}
    rows = [r for r in rows if r["method"] != "refine: training"]  # reads nothing it tells of
    assert all(r["bytes"] > 0 and r["build_s"] > 0 and r["peak_bytes"] > 0 for r in rows)

    paper = ["paper-scale", *common, "--rows", 25_000, "--piece", 10_000]
    assert "3 to write" in run("bench.py", *paper)
    assert "0 to write" in run("bench.py", *paper)
    rows = rows_of(out, "paper-scale")
    assert {r["segments"] for r in rows} == {3}
    assert {"refine, cold", "refine, warm", "k-NN, recall 0.95, warm", "k-NN, exact, warm",
            "count, tiny, warm"} <= {r["method"] for r in rows}  # fmt: skip
    run("bench.py", *paper, "--clean")
    assert not (out / "paper").exists()


def test_a_wrong_answer_fails() -> None:
    query = data.Query("wide", 0, [[[[0, 0, 9]]]], 1, np.arange(1), np.arange(1))
    right = (np.array([3, 7]), np.array([1, 1]))
    check = bench._Ensembles.check
    assert check("a", query, (np.array([7, 3]), np.array([1, 1])), None)[0].tolist() == [3, 7]
    assert check("b", query, 2, right) == right
    for wrong in (3, (np.array([3]), None), (np.array([3, 8]), None),
                  (np.array([3, 7]), np.array([1, 2]))):  # fmt: skip
        with pytest.raises(SystemExit, match="wide 0, c"):
            check("c", query, wrong, right)


def test_an_interrupt_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(run: bench.Bench, args: object) -> None:
        run.results.add(workload="ensemble", data="uniform", rows=1, method="first", results=9)
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.WORK, "build", (work, ""))
    monkeypatch.setattr(report, "write", lambda *_: None)
    assert bench.main(["build", "--out", str(tmp_path)]) == 130
    assert "kept" in capsys.readouterr().err
    assert [r["results"] for r in rows_of(tmp_path, "ensemble")] == [9]


def test_figures_of_the_report() -> None:
    curve = [(0.9, 10.0, 1), (0.97, 24.0, 2), (1.0, 40.0, 3)]
    assert report.at_recall(curve, 0.95) == pytest.approx(20.0)
    assert report.at_recall(curve, 0.85) == 10.0
    assert report.at_recall([*curve, (0.99, 15.0, 4)], 0.95) == pytest.approx(10 + 5 * 5 / 9)
    assert report.at_recall(curve[:2], 0.98) is None
    assert report.exponent([(10, 1.0), (100, 10.0), (1000, 100.0)]) == pytest.approx(1.0)


def test_the_report_goes_to_the_documentation(tmp_path: Path) -> None:
    kept = Results(tmp_path / "bench")
    common = {"data": "uniform", "rows": 1_000_000, "threads": 1, "results": 5, "number": 0}
    for method, ms in (("Boxwood C", 1.0), ("AVX2 scan, plain", 4.0), ("DuckDB WHERE", 250.0)):
        kept.add(workload="ensemble", model="wide", method=method, median_ms=ms, **common)
    kept.add(workload="knn", method="Boxwood", recall=0.96, setting=0.95, median_ms=0.02,
             bytes_per_row=57.0, **common)  # fmt: skip
    report.write(tmp_path / "bench", kept.con, tmp_path / "docs")
    kept.close()
    text = (tmp_path / "docs" / "BENCHMARKS.md").read_text("utf-8")
    assert "| ensemble, wide | 4.00 | — | 250 |" in text
    assert "4.00× (ensemble wide, 1,000,000 uniform rows, 1 thread(s)) | yes" in text
    assert str(ROOT) not in text
    assert str(tmp_path) not in text
    for picture in re.findall(r"\]\((bench/\w+\.png)\)", text):
        assert (tmp_path / "docs" / picture).stat().st_size < 150_000


def test_only_the_public_surface_is_used() -> None:
    folder = ROOT / "benchmarks"
    for path in folder.glob("*.c"):
        assert set(re.findall(r'#include "([^"]+)"', path.read_text("utf-8"))) <= {"boxwood.h"}
    for path in folder.glob("*.py"):
        used = re.findall(r"\b(?:boxwood|native|lib)\.(_\w+)", path.read_text("utf-8"))
        assert not used, f"{path.name} uses {used}"


def test_help_has_examples() -> None:
    assert "bench.py ensembles --rows" in run("bench.py", "--help")
    assert "--clean" in run("bench.py", "paper-scale", "--help")


def test_instructions_are_counted(out: Path) -> None:
    printed = run("bench.py", "instructions", "--quick", "--out", out)
    if "left out: instructions: " in printed or not rows_of(out, "instructions"):
        pytest.skip("needs valgrind or perf, and a C compiler")
    rows = rows_of(out, "instructions")
    assert {"generic"} <= {r["isa"] for r in rows}
    assert all(r["instructions"] > 0 for r in rows)


def test_real_vectors_are_found(real_data: Path) -> None:
    out = run("real_clip.py", real_data / "clip_vitb32", "--rounds", 3, "--learner", "ensemble",
              "--markdown")  # fmt: skip
    if out.startswith("skipped: "):
        pytest.skip(out)
    assert len(re.findall(r'^".*" -> ', out, re.MULTILINE)) >= 8
    mean = re.findall(r"^\| ensemble \| (\d) \| (\S+) \| (\S+) \| (\S+) \|$", out, re.MULTILINE)
    f1 = {int(number): float(value) for number, _, _, value in mean}
    assert f1[1] > 0.6
    assert f1[3] > 0.7
