"""Appends the metadata that DuckDB reads at the end of an extension file.

usage: add_footer.py LIBRARY EXTENSION PLATFORM API_VERSION EXTENSION_VERSION

534 bytes: the head of a WebAssembly custom section named duckdb_signature (22 bytes, so that one
layout serves every platform), eight text fields of 32 bytes in reverse order, and 256 bytes for a
signature, here zeros: unsigned.
"""

from __future__ import annotations

import sys
from pathlib import Path

SECTION_HEAD = b"\x00\x93\x04\x10duckdb_signature\x80\x04"
FIELD_BYTES = 32
SIGNATURE_BYTES = 256


def field(text: str) -> bytes:
    data = text.encode("ascii")
    if len(data) >= FIELD_BYTES:
        raise SystemExit(f"add_footer.py: {text!r} is longer than {FIELD_BYTES - 1} bytes")
    return data.ljust(FIELD_BYTES, b"\0")


def footer(platform: str, api_version: str, extension_version: str) -> bytes:
    magic, abi, unused = "4", "C_STRUCT", ""
    fields = [magic, platform, api_version, extension_version, abi, unused, unused, unused]
    return SECTION_HEAD + b"".join(map(field, reversed(fields))) + bytes(SIGNATURE_BYTES)


def main(arguments: list[str]) -> None:
    if len(arguments) != 5:
        raise SystemExit(__doc__)
    library, extension, *fields = arguments
    target = Path(extension)
    partial = target.with_name(target.name + ".tmp")
    partial.write_bytes(Path(library).read_bytes() + footer(*fields))
    # A file that some process has mapped must not change under it: a new one takes its name.
    partial.replace(target)


if __name__ == "__main__":
    main(sys.argv[1:])
