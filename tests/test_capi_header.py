"""duckdb_slots.h, the extension's own header, against the headers in DuckDB's sources."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / "engine" / "csrc" / "duckdb" / "check_slots.py"
CACHE = ROOT / "build" / "duckdb-headers"
HEADERS = ("duckdb.h", "duckdb_extension.h")


def load_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_slots", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headers(version: str, scratch: Path) -> Path:
    """A folder with the headers of that DuckDB, fetched once and kept in the build folder."""
    folder = CACHE / version
    if all((folder / name).is_file() for name in HEADERS):
        return folder
    try:
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
             "duckdb", "--dest", str(scratch), f"duckdb=={version}"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"DuckDB {version}'s source distribution did not arrive in five minutes")
    archive = scratch / f"duckdb-{version}.tar.gz"
    if not archive.is_file():
        reason = fetched.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        pytest.skip(f"needs DuckDB {version}'s source distribution: {reason[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as source:
        for member in source:
            path = Path(member.name)
            if path.name in HEADERS and path.parts[-3:-1] == ("src", "include"):
                content = source.extractfile(member)
                assert content is not None
                (folder / path.name).write_bytes(content.read())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.5.6", "2.0.0"])
def test_slots_are_duckdbs(version: str, tmp_path: Path) -> None:
    folder = headers(version, tmp_path)
    done = subprocess.run(
        [sys.executable, str(CHECK), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours = (CHECK.parent / "duckdb_slots.h").read_text(encoding="utf-8")
    assert f"compared {ours.count('#define duckdb_')} of" in done.stdout


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Headers of a made-up DuckDB that has two of our functions, the first in another slot."""
    (tmp_path / "duckdb_extension.h").write_text(
        "typedef struct {\n    // a comment\n"
        "    duckdb_state (*duckdb_connect)(duckdb_database database, duckdb_connection *out);\n"
        "#if VERSION\n"
        "    void (*duckdb_disconnect)(duckdb_connection *connection);\n"
        "#endif\n} duckdb_ext_api_v1;\n"
    )
    (tmp_path / "duckdb.h").write_text(
        "typedef void (*duckdb_delete_callback_t)(int data);\n"
        "typedef enum duckdb_state { DuckDBSuccess = 0, DuckDBError = 2 } duckdb_state;\n"
    )
    return tmp_path


def test_differences_are_found(small: Path) -> None:
    compared, differences = load_check().compare(small)
    assert compared[0].endswith("of 2 slots")
    text = "\n".join(differences)
    assert "slot 3 duckdb_connect: DuckDB's table has 2 slots" in text
    assert "DuckDBError: 1 here, 2 in DuckDB" in text
    assert "duckdb_delete_callback_t: void(void*) here, void(int) in DuckDB" in text
    assert "duckdb_string_t: " in text


def test_signatures_are_compared_without_names() -> None:
    check = load_check()
    assert check.signature("void", "") == check.signature("void", "void") == "void(void)"
    assert check.signature("const char *", "duckdb_value value, const char *name") == (
        check.signature("const char*", "duckdb_value, const char *")
    )
    assert check.signature("int", "uint8_t x") != check.signature("int", "uint16_t x")
    assert check.signature("int", "char **x") != check.signature("int", "char *x")
