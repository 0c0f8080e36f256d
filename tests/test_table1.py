"""The table of docs/HEADS.md: its measures on cases whose answers are known, and a whole run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwood.encode import Head

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import table1
from table1 import Case, of


def case(folder: Path | None, seed: int, classes: bool = True) -> Case:
    """Images of 6 classes, near to their class's name but for the gap between the two."""
    rng = np.random.default_rng(seed)
    names = rng.normal(size=(40, 64))
    gap = 2 * rng.normal(size=(2, 64))
    number = rng.integers(0, 6, 600)
    images = table1.unit(names[number] + rng.normal(size=(600, 64)) + gap[0])
    texts = table1.unit(names + gap[1])
    truth = np.arange(6)[:, None] == number[None, 300:]
    return Case(
        "made", images[:300], images[300:], texts[6:],
        (images[:300], texts[number[:300]], np.arange(300)), texts[:6], truth, classes,
        np.array([f"class {n}" for n in number[300:]]),
    )  # fmt: skip


def test_a_run_writes_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "HEADS.md"
    page.write_text(f"before\n{table1.BEGIN}\nold\n{table1.END}\nafter\n")
    monkeypatch.setattr(table1, "DOCS", page)
    monkeypatch.setattr(table1, "SEEDS", 2)
    monkeypatch.setitem(table1.MADE, "scenes", case)
    arguments: list[Any] = ["--data", "scenes", "muge"]
    assert table1.main([*arguments, "--seeds", "2", "--docs"]) == 0
    out = capsys.readouterr().out
    assert "left out: muge: there is no cnclip_vitb16/muge.npy" in out
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    lines = written.splitlines()
    assert "**scenes**, 2 seeds" in lines
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    for kind in ("64 floats", "64, centred", "PCA", "shared, a = .5", "shared", "pairs + KoLeo"):
        assert " ± " in rows[kind], kind
    with pytest.raises(SystemExit):
        table1.main(["--quick", "--docs"])
    with pytest.raises(SystemExit):
        table1.main(["--seeds", "0"])


def test_the_measures_know_right_from_wrong() -> None:
    made = case(None, 3)
    head = Head.shared(made.fit, made.vocabulary, steps=0)
    good = table1.measured(made, of("shared", head, head.finer(made.fit, made.vocabulary)), 0)
    assert all(good[figure] > 0.9 for figure in ("text", "mAP", "mean of 8", "recall@1"))
    assert good["cosine"] < 0.01
    # A head of one direction, any, finds next to nothing.
    matrix = np.zeros((64, 32), np.float32)
    matrix[:, 0] = np.random.default_rng(1).normal(size=64)
    layer = (matrix, np.zeros(32, np.float32))
    bad = table1.measured(
        made, of("blind", Head("pca", head.image_mean, head.text_mean, (layer,))), 0
    )
    assert all(bad[figure] < 0.5 for figure in ("text", "mAP", "kept"))


def test_goals_are_held_against_the_better_of_the_floats() -> None:
    runs = {
        "512 floats": [{"text, floats": 0.7}, {"text, floats": 0.9}],
        "512, centred": [{"text, floats": 0.6, "mean of 8": 0.8}],
        "shared": [{"recall@1": 0.98, "recall@10": 0.97, "text": 0.73, "mean of 8": 0.79}],
    }
    lines = table1.goals({"made": runs}).splitlines()
    cells = dict(line.strip("| ").split(" | ", 1) for line in lines if " | " in line)
    assert cells["recall@1 after 8 bits at least 0.97"] == "0.980 reached"
    assert cells["recall@10 after 8 bits at least 0.98"] == "0.970 missed (0.98)"
    assert cells["text at least 90% of all dimensions"] == "0.912 reached"
    assert cells["mean of 8 at least that of all dimensions"] == "0.988 missed (1.00)"


def test_rankings() -> None:
    truth = np.array([True, False, True, False])
    assert table1.precision(np.array([4.0, 3, 2, 1]), truth) == pytest.approx((1 + 2 / 3) / 2)
    scores, again = np.array([[5.0, 4, 3, 2]]), np.array([[1.0, 2, 3, 4]])
    table1.RERANKED, before = 2, table1.RERANKED
    try:
        order = np.argsort(-table1.reranked(scores, again), axis=1)
    finally:
        table1.RERANKED = before
    assert order.tolist() == [[1, 0, 2, 3]]
    assert table1.words_of("running shoe") & table1.words_of("Loafer, dress shoes") == {"shoe"}
