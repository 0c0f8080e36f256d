"""Instructions by workload and by function: figures that do not depend on how busy a machine is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxwood import native
from boxwood.report import text_table
from data import Codes, Query
from results import Results

REPEATS = 3
TOP = 6  # functions shown a workload


def _driver(folder: Path) -> Path:
    """instructions.c, linked to the native file of the package."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("left out: instructions: there is no C compiler (cc)")
    folder.mkdir(parents=True, exist_ok=True)
    here, target = Path(__file__).resolve().parent, folder / "instructions"
    library = native.extension_path()
    headers = (library.parent, here.parent / "engine" / "csrc" / "include")
    include = next(path for path in reversed(headers) if (path / "boxwood.h").is_file())
    subprocess.run(
        [*compiler.split(), "-std=c11", "-O2", "-g", f"-I{include}", str(here / "instructions.c"),
         str(library), "-o", str(target), f"-Wl,-rpath,{library.parent}"], check=True,
    )  # fmt: skip
    return target


def _callgrind(command: list[str], scratch: Path) -> tuple[int, Counter[str]]:
    """Instructions below measured() for one repeat, in all and by the function they stand in."""
    scratch.unlink(missing_ok=True)
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--toggle-collect=measured", "--compress-strings=no",
         "--compress-pos=no", f"--callgrind-out-file={scratch}", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "failed").splitlines()[-1])
    own: Counter[str] = Counter()
    function, skip = "", False
    for line in scratch.read_text(errors="replace").splitlines():
        if line.startswith("fn="):
            function = line[3:].split("'")[0]
        elif line.startswith("calls="):
            skip = True  # the next line is the cost of what is called
        elif line[:1].isdigit() or line.startswith("0x"):
            if not skip:
                own[function] += int(line.split()[1])
            skip = False
    scratch.unlink()
    return sum(own.values()) // REPEATS, Counter({f: n // REPEATS for f, n in own.items()})


def _perf(command: list[str], repeats_at: int) -> int:
    """The same in all by `perf stat`: what further repeats add."""
    counts = []
    for repeats in (1, 1 + REPEATS):
        command[repeats_at] = str(repeats)
        done = subprocess.run(
            ["perf", "stat", "-x,", "-e", "instructions:u", *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.search(r"^(\d+),,instructions", done.stderr, re.M)
        if done.returncode or found is None:
            raise RuntimeError("perf counts no instructions here")
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) // REPEATS


def measure(out: Path, index: Path, models: list[Query], queries: Codes, results: Results,
            common: dict[str, Any], say: Callable[[str], None]) -> None:  # fmt: skip
    """Count every workload with every instruction set that a counting tool here can run."""
    tools = [name for name in ("valgrind", "perf") if shutil.which(name)]
    if not tools:
        print("left out: instructions: there is neither valgrind nor perf")
        return
    driver = _driver(out)
    scratch = out / "instructions.out"
    workloads: list[tuple[str, list[str]]] = []
    for query in models:
        document = out / f"instructions-{query.family}.json"
        document.write_text(query.json())
        workloads.append((f"search, {query.family}", ["search", str(document)]))
        if query.family == "wide":
            workloads.append(("count, wide", ["count", str(document)]))
            single = Query(query.family, 0, query.estimators[:1], 1, query.positives,
                           query.negatives)  # fmt: skip
            branch = out / "instructions-branch.json"
            branch.write_text(single.json())
            workloads.append(("search, one branch", ["search", str(branch)]))
    asked = out / "instructions-queries.u8"
    asked.write_bytes(queries.tobytes())
    for setting in ("0.95", "1"):
        name = f"{len(queries)} k-NN, " + ("exact" if setting == "1" else f"recall {setting}")
        workloads.append((name, ["knn", str(asked), setting]))
    listed = []
    chosen = native.isa()
    for isa in ("generic", "avx2", "avx512", "neon"):
        try:
            native.select_isa(isa)
        except Exception:
            continue  # not of this CPU
        for name, words in workloads:
            command = [str(driver), str(index), isa, str(REPEATS), *words]
            total, functions, tool, problem = 0, Counter[str](), "", ""
            # valgrind first: it says where. It knows no AVX-512 up to 3.19 at least.
            for tool in tools:
                try:
                    if tool == "valgrind":
                        total, functions = _callgrind(command, scratch)
                    else:
                        total = _perf(command, 3)
                    break
                except RuntimeError as error:
                    problem = f"{tool}: {error}"
            if not total:
                say(f"left out: instructions of {name} with {isa}: {problem}")
                break
            fields = {**common, "workload": "instructions", "model": name, "threads": 1}
            results.add(**{**fields, "isa": isa}, method="all", instructions=total, note=tool)
            for function, count in functions.most_common(TOP):
                results.add(
                    **{**fields, "isa": isa}, method=function, instructions=count, note=tool
                )
            most = ", ".join(f"{f} {n / total:.0%}" for f, n in functions.most_common(3))
            listed.append([isa, name, f"{total / 1e6:.2f}", most])
    native.select_isa(chosen)
    print(text_table(("kernels", "workload", "million instructions", "most of it"), listed))
