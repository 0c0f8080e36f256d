"""The file of measurements: one row each, with everything that it depends on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from boxwood import native

COLUMNS = {
    "run": "VARCHAR", "date": "TIMESTAMP", "system": "VARCHAR", "cpu": "VARCHAR",
    "cores": "INTEGER", "memory_gb": "DOUBLE", "isa": "VARCHAR", "versions": "VARCHAR",
    "commit": "VARCHAR", "workload": "VARCHAR", "data": "VARCHAR", "seed": "BIGINT",
    "rows": "BIGINT", "segments": "INTEGER", "model": "VARCHAR", "number": "INTEGER",
    "boxes": "INTEGER", "method": "VARCHAR", "parameter": "VARCHAR", "setting": "DOUBLE",
    "k": "INTEGER", "queries": "INTEGER", "threads": "INTEGER", "repeats": "INTEGER",
    "median_ms": "DOUBLE", "min_ms": "DOUBLE", "p90_ms": "DOUBLE", "per_second": "DOUBLE",
    "recall": "DOUBLE", "results": "BIGINT", "bytes": "BIGINT", "blocks": "BIGINT",
    "blocks_pruned": "BIGINT", "blocks_contained": "BIGINT", "blocks_planes": "BIGINT",
    "blocks_scanned": "BIGINT", "build_s": "DOUBLE", "bytes_per_row": "DOUBLE",
    "peak_bytes": "BIGINT", "extra_bytes": "BIGINT", "resident_bytes": "BIGINT",
    "instructions": "BIGINT", "note": "VARCHAR",
}  # fmt: skip
_PACKAGES = ("boxwood", "duckdb", "numpy", "scikit-learn", "faiss-cpu", "usearch")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to."""
    versions = {package: _version(package) for package in _PACKAGES}
    versions["python"] = platform.python_version()
    return {
        "system": " ".join([platform.system(), *platform.release().split("-")[:1]]), "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "isa": native.isa(), "versions": json.dumps({k: v for k, v in versions.items() if v}),
        "commit": _commit(),
    }  # fmt: skip


class Results:
    """Rows go to the file as they are measured, so that what stops a run keeps what it had."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "results.duckdb"
        self.con = duckdb.connect(str(self.file))
        listed = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
        self.con.execute(f"CREATE TABLE IF NOT EXISTS measurements ({listed})")
        for name, kind in COLUMNS.items():
            self.con.execute(f'ALTER TABLE measurements ADD COLUMN IF NOT EXISTS "{name}" {kind}')
        self.base = {**machine(), "run": datetime.now(UTC).strftime("%Y%m%dT%H%M%S")}
        self.added = 0

    def add(self, **fields: Any) -> None:
        unknown = fields.keys() - COLUMNS.keys()
        assert not unknown, f"no such columns: {unknown}"
        date = datetime.now(UTC).replace(tzinfo=None)
        row = {**self.base, "date": date, **fields}
        row = {name: value for name, value in row.items() if value is not None}
        names = ", ".join(f'"{name}"' for name in row)
        places = ", ".join("?" * len(row))
        values = [v.item() if isinstance(v, np.generic) else v for v in row.values()]
        self.con.execute(f"INSERT INTO measurements ({names}) VALUES ({places})", values)
        self.added += 1

    def export(self) -> Path:
        """All rows of all runs as results.parquet."""
        parquet = self.folder / "results.parquet"
        self.con.execute(f"COPY measurements TO '{str(parquet).replace(chr(39), chr(39) * 2)}'")
        return parquet

    def close(self) -> None:
        self.con.close()


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Times:
    """Seconds of one way, and what its first call answered."""

    seconds: list[float]
    first: Any

    def fields(self) -> dict[str, Any]:
        return summary(self.seconds)


def summary(seconds: list[float]) -> dict[str, Any]:
    ms = 1000 * np.asarray(seconds)
    return {
        "repeats": len(ms), "median_ms": float(np.median(ms)), "min_ms": float(ms.min()),
        "p90_ms": float(np.quantile(ms, 0.9)),
    }  # fmt: skip


def interleave(
    ways: Mapping[Any, Callable[[], Any]], repeats: int, patience: float = 3.0
) -> dict[Any, Times]:
    """Every way in turn, over and over, so that all meet the same machine.

    The first call of each is a warm-up whose answer is kept. One that took more than a second
    counts as measured, and a way is left out of the rounds after it has used `patience` seconds.
    """
    times: dict[Any, Times] = {}
    for name, way in ways.items():
        start = time.perf_counter()
        answer = way()
        seconds = time.perf_counter() - start
        times[name] = Times([seconds] if seconds > 1 else [], answer)
    for _ in range(repeats):
        for name, way in ways.items():
            so_far = times[name].seconds
            if so_far and sum(so_far) > patience:
                continue
            start = time.perf_counter()
            answer = way()
            so_far.append(time.perf_counter() - start)
            del answer
    return times
