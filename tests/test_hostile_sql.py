"""Hostile parameters to every function of the extension: DuckDB's errors, and nothing worse.

What goes wrong in C ends the process, so the statements run in one of their own. It writes down
each before it runs it, and the last one is named if the process dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import boxwood
from boxwood import Collection

ROWS = 700

EVERYTHING = json.dumps(
    {"boxwood_model": 1, "learner": "all", "dims": 32, "estimators": [[[]]], "threshold": 1}
)
_TERM = {"linear": [1] * 32, "square": [-1] * 32, "constant": 0}
_WIDE = {"linear": [1] * 128, "square": [0] * 128, "constant": -5}
MODELS = [
    EVERYTHING,
    EVERYTHING.replace("[[[]]]", "[[[[3, 0, 200]], [[9, 17, 17]]]]"),
    json.dumps({
        "boxwood_model": 1, "learner": "s", "dims": 32, "estimators": [], "threshold": 0,
        "score": {"terms": [_TERM], "votes": 0, "shift": 3, "threshold": -10},
        "fine": {"terms": [_WIDE], "shift": 0, "threshold": 3},
    }),
    EVERYTHING.replace("[[[]]]", "[]"),
    EVERYTHING.replace('"dims": 32', '"dims": 33'),
    EVERYTHING.replace('"threshold": 1', '"threshold": -9223372036854775809'),
    EVERYTHING[:-1],
    '{"boxwood_model": 1, "quantizer": "' + "q" * 5000 + '"}',
    "[" * 100_000,
    '{"a":' * 2000 + "1" + "}" * 2000,
    "null", "1e999", "\\u0000", '"\\ud800"',
]  # fmt: skip

WHOLE = [-(2**63), -(2**31) - 1, -1, 0, 1, 2, 60, 255, 256, 10_000, 10_001, 65_537, 2**31,
         2**32 + 1, 2**63 - 1, 2**64 - 1, 2**127 - 1]  # fmt: skip


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def numbers(kind: str) -> st.SearchStrategy[str]:
    """SQL of one value of a type; NULL and values outside of it are among them."""
    if kind == "BOOLEAN":
        return st.sampled_from(["true", "false", "NULL", "1", "'maybe'"])
    if kind in ("DOUBLE", "FLOAT"):
        special = ["'nan'::DOUBLE", "'inf'::DOUBLE", "'-inf'::DOUBLE", "-0.0", "1e308", "5e-324"]
        usual = ["0.5", "0.9", "1.0", "1", "NULL"]
        return st.sampled_from(special + usual) | st.floats(-2, 2).map(repr)
    if kind == "UTINYINT":
        return st.integers(0, 255).map(str) | st.sampled_from(["NULL", "256", "-1", "'x'", "0.5"])
    return st.sampled_from(["NULL", "0", "1", "'1'", "0.5", *map(str, WHOLE)]) | st.integers(
        0, ROWS
    ).map(str)


@st.composite
def lists(draw: st.DrawFn, kind: str) -> str:
    """A list: of a likely length, with a bad value somewhere or none."""
    length = draw(st.sampled_from([0, 1, 2, 3, 10, 31, 32, 32, 32, 33, 127, 128, 128, 129]))
    good = st.integers(0, 255 if kind == "UTINYINT" else ROWS - 1).map(str)
    values = draw(st.lists(good, min_size=length, max_size=length, unique=kind == "BIGINT"
                           and length < 100))  # fmt: skip
    if values and draw(st.integers(0, 3)) == 0:
        values[draw(st.integers(0, length - 1))] = draw(numbers(kind))
    text = f"[{', '.join(values)}]"
    how = draw(st.integers(0, 9))
    if how == 0:
        return "NULL"
    if how == 1:
        return f"range({draw(st.sampled_from([0, 5, 70_000, 200_000]))})"
    if how == 2:
        return f"repeat([7], {draw(st.sampled_from([0, 32, 128, 100_000]))})"
    return f"{text}::{kind}[]" if how < 7 else text


def texts(folder: Path) -> st.SearchStrategy[str]:
    learners = ["cover", "branch", "ensemble", "tree", "", "COVER", "x" * 4000]
    index = str(folder / "index")
    paths = [
        index, index, index, index + "/", index + "/MANIFEST", str(folder), "", ".", "/",
        "/dev/null", "/dev/zero", str(folder / "none"), str(folder / "loop"), "x" * 70_000,
        "a\nb", "\u202e\ud7ff",
    ]  # fmt: skip
    known = st.sampled_from([*MODELS, *paths, *learners])
    odd = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    return (known | odd).map(literal) | st.sampled_from(["NULL", "''", "chr(0)", "'a' || chr(0)"])


def argument(kind: str, folder: Path) -> st.SearchStrategy[str]:
    """SQL for a parameter of this type, and now and then for one of another."""
    if kind.endswith("[]"):
        right: st.SearchStrategy[str] = lists(kind[:-2])
    elif kind == "VARCHAR":
        right = texts(folder)
    else:
        right = numbers(kind)
    wrong = st.sampled_from(
        ["{'a': 1}", "[[1]]", "MAP {1: 2}", "'\\x00'::BLOB", "DATE '2026-01-01'", "(SELECT 1)",
         "[NULL]", "NULL::INT[]", "random()"]
    )  # fmt: skip
    return st.integers(0, 11).flatmap(lambda n: wrong if n == 0 else right)


@st.composite
def statements(draw: st.DrawFn, functions: list[Any], folder: Path) -> str:
    name, kind, names, types = draw(st.sampled_from(functions))
    index = literal(str(folder / "index"))
    arguments = []
    for at, (parameter, type_) in enumerate(zip(names, types, strict=True)):
        positional = kind == "scalar" or parameter.startswith("col")
        if not positional and draw(st.booleans()):
            continue
        if parameter == "model" or (parameter == "within" and draw(st.booleans())):
            value = draw(st.sampled_from(MODELS).map(literal) | argument(type_, folder))
        elif at == 0 and type_ == "VARCHAR" and draw(st.integers(0, 3)):
            value = draw(st.just(index) | st.sampled_from(MODELS).map(literal))
        else:
            value = draw(argument(type_, folder))
        arguments.append(value if positional else f'"{parameter}" := {value}')
    call = f"{name}({', '.join(arguments)})"
    if kind == "table":
        return f"FROM {call}"
    rows = draw(st.sampled_from(["", " FROM range(3)", " FROM range(3000) LIMIT 2500"]))
    return f"SELECT {call}{rows}"


def work(folder: Path, examples: int) -> None:
    """What the process of its own does."""
    con = boxwood.connect(folder / "hostile.duckdb", config={"threads": 2})
    functions = con.execute(
        "SELECT function_name, function_type, parameters, parameter_types FROM duckdb_functions() "
        "WHERE function_name LIKE 'boxwood!_%' ESCAPE '!' AND function_type IN ('table', 'scalar') "
        "AND function_name NOT LIKE 'boxwood!_clip%' ESCAPE '!' ORDER BY ALL"
    ).fetchall()
    assert len(functions) > 10
    done = {"ran": 0, "refused": 0}
    log = open(folder / "statement", "w", encoding="utf-8", errors="replace")  # noqa: SIM115

    @settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=os.environ.get("BOXWOOD_LONG") is None,
    )  # fmt: skip
    @given(statements(functions, folder))
    def run(statement: str) -> None:
        log.seek(0)
        log.truncate()
        log.write(statement)
        log.flush()
        try:
            con.execute(statement).fetchall()
            done["ran"] += 1
        except (duckdb.InternalException, duckdb.FatalException):
            raise
        except duckdb.Error:
            done["refused"] += 1

    run()
    # It still answers, and rightly.
    at = [str(folder / "index"), EVERYTHING]
    assert con.execute("FROM boxwood_count(?, model := ?)", at).fetchall()[0][0] == ROWS
    con.close()
    print(json.dumps(done))


def test_no_statement_ends_the_process(tmp_path: Path) -> None:
    con = boxwood.connect(tmp_path / "hostile.duckdb")
    rng = np.random.default_rng(0)
    photos = Collection.create(con, "photos")
    photos.append(
        np.arange(ROWS),
        codes=rng.integers(0, 256, (ROWS, 32), np.uint8),
        fine=rng.integers(0, 256, (ROWS, 128), np.uint8),
    )
    photos.refresh()
    con.close()
    (tmp_path / "index").symlink_to(photos.index_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    examples = int(os.environ.get("BOXWOOD_LONG", "1")) * 300
    done = subprocess.run(
        [sys.executable, __file__, tmp_path, str(examples)], capture_output=True, text=True
    )
    last = (tmp_path / "statement").read_text(errors="replace")
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nlast statement: {last[:3000]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["ran"] > examples / 20  # not all were nonsense
    assert counts["refused"] > examples / 20
    print(counts)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
