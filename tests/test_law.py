"""The dependency law of docs/ARCHITECTURE.md: what may use what, in Python and in C."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "engine" / "boxwood"
CSRC = ROOT / "engine" / "csrc"


def floors(beginning: str) -> list[set[str]]:
    """The floors of docs/ARCHITECTURE.md in the block after the paragraph, lowest first."""
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = page[page.index(beginning) :].split("```")[1]
    return [set(line.split()) for line in reversed(block.strip().splitlines())]


FLOORS = [*floors("The package, floor by floor"), {"__main__"}]
ENCODE = {"errors", "scenes"}
FOLDERS = {"encode", "serve"}
"""Parts of the package that are a folder each, and one name on a floor."""
TORCH = {"torch", "torchvision", "open_clip", "timm"}
WEB = {"fastapi", "starlette", "uvicorn", "pydantic", "anyio"}
C_FLOORS = floors("The core in the same way")
LIBC = {
    "errno.h", "fcntl.h", "float.h", "inttypes.h", "limits.h", "math.h", "pthread.h", "sched.h",
    "signal.h", "stdalign.h",
    "stdarg.h", "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h",
    "string.h", "sys/mman.h", "sys/stat.h", "sys/types.h", "time.h", "unistd.h", "dirent.h",
}  # fmt: skip
INTRINSICS = {"immintrin.h", "nmmintrin.h", "arm_neon.h", "arm_acle.h", "cpuid.h"}


def imports(path: Path) -> set[tuple[str, int]]:
    """Modules that a file imports anywhere, with the level of relative imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, 0) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                found.add((node.module, node.level))
            if node.level or node.module == "boxwood":
                found |= {(f"boxwood.{alias.name}", 0) for alias in node.names if not node.module
                          or node.module == "boxwood"}  # fmt: skip
    return found


def own(path: Path) -> set[str]:
    """Modules of the package that a file imports: the first name below `boxwood`."""
    inside = path.parent.name in FOLDERS
    names = set()
    for name, level in imports(path):
        if level == (2 if inside else 1):
            names.add(name.split(".")[0])
        elif level == 0 and name.startswith("boxwood."):
            names.add(name.split(".")[1])
    modules = {p.stem for p in PACKAGE.glob("*.py")} | FOLDERS
    return names & modules - {"__init__"}


def modules() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE
    )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_modules_use_lower_floors_only(path: Path) -> None:
    name = path.parent.name if path.parent.name in FOLDERS else path.stem
    floor = next((i for i, names in enumerate(FLOORS) if name in names), None)
    assert floor is not None, f"{name} has no floor: add it to docs/ARCHITECTURE.md"
    allowed = ENCODE if name == "encode" else set().union(*FLOORS[:floor])
    assert own(path) - {name} <= allowed


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_encode_knows_torch_only_native_cffi_and_only_serve_the_web(path: Path) -> None:
    roots = {name.split(".")[0] for name, level in imports(path) if level == 0}
    if path.parent.name != "encode":
        assert not roots & TORCH
    if path.stem != "native":
        assert "cffi" not in roots
    if path.parent.name != "serve":
        assert not roots & WEB


def test_the_package_imports_without_torch() -> None:
    program = (
        "import sys, boxwood, boxwood.cli; "
        "sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def c_files(folder: str) -> list[Path]:
    return sorted((CSRC / folder).glob("*.[ch]"))


def includes(path: Path) -> tuple[set[str], set[str]]:
    text = path.read_text(encoding="utf-8")
    return (
        set(re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M)),
        set(re.findall(r"^\s*#\s*include\s+<([^>]+)>", text, re.M)),
    )


def unit(file: str) -> str:
    """The name in docs/ARCHITECTURE.md that a file of the core belongs to; it has to be one."""
    stem = "kernels" if Path(file).stem == "cpu" else Path(file).stem
    names = [n for n in set().union(*C_FLOORS) if stem == n or stem.startswith(f"{n}_")]
    assert len(names) == 1, f"{file} has no floor: add it to docs/ARCHITECTURE.md"
    return names[0]


@pytest.mark.parametrize("path", c_files("core"), ids=lambda p: p.name)
def test_c_core_uses_lower_floors_and_libc_alone(path: Path) -> None:
    name = unit(path.name)
    floor = next(i for i, names in enumerate(C_FLOORS) if name in names)
    allowed = set().union({name}, *C_FLOORS[:floor])
    quoted, angled = includes(path)
    assert all(file.endswith(".h") for file in quoted)
    assert {unit(file) for file in quoted - {"boxwood.h"}} <= allowed
    assert angled <= LIBC | (INTRINSICS if name == "kernels" else set())


def test_every_floor_is_lived_on() -> None:
    lived = {unit(path.name) for path in c_files("core")}
    assert lived == set().union(*C_FLOORS)
    names = {path.stem for path in PACKAGE.glob("*.py")} | FOLDERS
    assert names - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("path", c_files("core"), ids=lambda p: p.name)
def test_c_core_never_prints_aborts_or_reads_the_environment(path: Path) -> None:
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.S)
    code = re.sub(r'"(\\.|[^"\\])*"', '""', code)
    calls = set(re.findall(r"\b(\w+)\s*\(", code))
    assert not calls & {"printf", "puts", "putchar", "perror", "abort", "exit", "_exit", "getenv",
                        "assert", "system", "rand", "srand"}  # fmt: skip
    assert not re.search(r"\b(stdout|stderr|stdin)\b", code)


def test_extension_knows_the_public_header_alone() -> None:
    core = {p.name for p in c_files("core")}
    for path in c_files("duckdb"):
        assert not includes(path)[0] & core


def test_native_file_exports_what_the_header_declares() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm of binutils")
    from boxwood import native

    listing = subprocess.run(
        [nm, "-D", "--defined-only", str(native.extension_path())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    exported = {line.split()[-1] for line in listing.splitlines() if line.split()}
    exported = {
        n for n in exported if not n.startswith(("_init", "_fini", "__bss", "_edata", "_end"))
    }
    header = (CSRC / "include" / "boxwood.h").read_text(encoding="utf-8")
    body = header.split("/* cffi: begin */")[1].split("/* cffi: end */")[0]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    declared = set(re.findall(r"\b(bw_\w+)\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*;", body))
    assert declared, "the header declares functions"
    assert exported == declared | {"boxwood_init_c_api"}
