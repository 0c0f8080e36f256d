"""Compares duckdb_slots.h with DuckDB's own C headers.

usage: check_slots.py HEADER_FOLDER

HEADER_FOLDER holds duckdb.h and duckdb_extension.h (src/include in DuckDB's sources). Of every
function in duckdb_slots.h the slot's number, name and signature are compared, of every constant its
value, of every structure and callback its members. Prints what was compared; exits with 1 and the
differences when there are any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

OURS = Path(__file__).with_name("duckdb_slots.h")


def without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", " ", text)
    return text.replace("\\\n", " ")


def split_arguments(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def canonical_type(text: str, named: bool) -> str:
    """`const char *name` -> `const char*`; `named`: a parameter name may follow the type."""
    words = re.findall(r"\w+|\*", text)
    keywords = {"const", "void", "struct"}
    if named and len(words) > 1 and words[-1] != "*" and words[-1] not in keywords:
        types = [w for w in words[:-1] if w not in ("*", "const", "struct")]
        if types:
            words = words[:-1]
    return " ".join(w for w in words if w != "struct").replace(" *", "*")


def signature(result: str, arguments: str) -> str:
    types = [canonical_type(a, named=True) for a in split_arguments(arguments) if a]
    return f"{canonical_type(result, named=False)}({', '.join(types) or 'void'})"


def stable_slots(header: str) -> list[tuple[str, str]]:
    """Name and signature of every slot, in order."""
    body = re.search(r"typedef struct \{(.*?)\}\s*duckdb_ext_api_v1\s*;", header, re.S)
    if body is None:
        raise SystemExit("check_slots.py: duckdb_extension.h has no duckdb_ext_api_v1")
    text = re.sub(r"^\s*#[^\n]*$", " ", without_comments(body.group(1)), flags=re.M)
    pattern = r"([\w\s*]+?)\(\s*\*\s*(\w+)\s*\)\s*\(([^()]*)\)\s*;"
    return [(name, signature(result, args)) for result, name, args in re.findall(pattern, text)]


def constants(text: str) -> dict[str, int]:
    found = re.findall(r"\b(DUCKDB_TYPE_\w+|DuckDB\w+)\s*=\s*(\d+)", without_comments(text))
    return {name: int(value) for name, value in found}


def callbacks(text: str) -> dict[str, str]:
    pattern = r"typedef\s+([\w\s*]+?)\(\s*\*\s*(duckdb_\w+_t)\s*\)\s*\(([^()]*)\)\s*;"
    found = re.findall(pattern, without_comments(text))
    return {name: signature(result, args) for result, name, args in found}


def structure(text: str, pattern: str) -> str | None:
    body = re.search(pattern, without_comments(text), re.S)
    return None if body is None else re.sub(r"\s+", "", body.group(1))


STRUCTURES = {
    "duckdb_string_t": r"typedef struct \{(\s*union \{.*?\} value;\s*)\}\s*duckdb_string_t;",
    "duckdb_list_entry": r"struct duckdb_list_entry \{([^{}]*)\}",
    "duckdb_extension_access": r"struct duckdb_extension_access \{([^{}]*)\}",
}


def compare(folder: Path) -> tuple[list[str], list[str]]:
    """(what was compared, differences)"""
    ours = OURS.read_text(encoding="utf-8")
    table = (folder / "duckdb_extension.h").read_text(encoding="utf-8")
    types = (folder / "duckdb.h").read_text(encoding="utf-8") + table
    slots = stable_slots(table)
    differences = []

    limit = re.search(r"#define DUCKDB_SLOTS (\d+)", ours)
    used = re.findall(
        r"#define\s+(duckdb_\w+)\s+SLOT\(\s*(\d+)\s*,\s*([^,(]+),\s*\(([^()]*)\)\s*\)",
        without_comments(ours),
    )
    if limit is None or not used:
        raise SystemExit("check_slots.py: no slots found in duckdb_slots.h")
    for name, number_text, result, arguments in used:
        number = int(number_text)
        mine = (name, signature(result, arguments))
        if number >= int(limit.group(1)):
            differences.append(f"slot {number} {name}: outside the stable part")
        elif number >= len(slots):
            differences.append(f"slot {number} {name}: DuckDB's table has {len(slots)} slots")
        elif mine != slots[number]:
            differences.append(f"slot {number}: {mine} here, {slots[number]} in DuckDB")

    theirs, mine_constants = constants(types), constants(ours)
    for name, value in mine_constants.items():
        if theirs.get(name) != value:
            differences.append(f"{name}: {value} here, {theirs.get(name)} in DuckDB")

    their_callbacks, our_callbacks = callbacks(types), callbacks(ours)
    for name, text in our_callbacks.items():
        if their_callbacks.get(name) != text:
            differences.append(f"{name}: {text} here, {their_callbacks.get(name)} in DuckDB")

    for name, pattern in STRUCTURES.items():
        left, right = structure(ours, pattern), structure(types, pattern)
        if left is None or left != right:
            differences.append(f"{name}: {left} here, {right} in DuckDB")

    compared = [
        f"{len(used)} of {len(slots)} slots",
        f"{len(mine_constants)} constants",
        f"{len(our_callbacks)} callbacks",
        f"{len(STRUCTURES)} structures",
    ]
    return compared, differences


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    compared, differences = compare(Path(arguments[0]))
    print("compared " + ", ".join(compared))
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
