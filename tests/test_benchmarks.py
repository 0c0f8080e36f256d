"""The benchmarks run, agree with themselves, and skip politely what is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *map(str, words)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_absent_data_is_skipped(tmp_path: Path) -> None:
    assert run("real_clip.py", tmp_path).startswith("skipped: ")
    assert run("refine_1m.py", "--data", tmp_path / "absent.npy").startswith("skipped: ")


def test_refine_on_synthetic_codes() -> None:
    out = run("refine_1m.py", "--rows", 5000, "--repeat", 2, "--threads", 1)
    assert "all ways return the same" in out
    assert len(re.findall(r"^(?:SQL|C API|DuckDB) ", out, re.MULTILINE)) == 7


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
