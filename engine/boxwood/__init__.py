"""Search by classification over images, in DuckDB.

`connect` opens a database, `Collection` makes, fills and searches collections of images, `Model` is
what refining learns. Everything that is raised on purpose is an `Error`.

Names are imported when they are first used, so that what needs little, such as the command's help,
starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwood.collection import AddReport, Collection, Encoded, Estimate, Recoded, Refined
    from boxwood.concepts import Concept
    from boxwood.connection import connect, load
    from boxwood.encode import Encoder, Head, Quantizer
    from boxwood.encode.vocabulary import TINY
    from boxwood.errors import (
        Cancelled,
        DatabaseLocked,
        Error,
        IndexCorrupt,
        IndexMismatch,
        IndexMissing,
        IndexProblem,
        IndexStale,
        InputError,
        MissingDependency,
        OutOfMemory,
        ReadOnly,
        StorageError,
    )
    from boxwood.model import Model
    from boxwood.native import extension_path

    __version__: str

__all__ = [
    "TINY",
    "AddReport",
    "Cancelled",
    "Collection",
    "Concept",
    "DatabaseLocked",
    "Encoded",
    "Encoder",
    "Error",
    "Estimate",
    "Head",
    "IndexCorrupt",
    "IndexMismatch",
    "IndexMissing",
    "IndexProblem",
    "IndexStale",
    "InputError",
    "MissingDependency",
    "Model",
    "OutOfMemory",
    "Quantizer",
    "ReadOnly",
    "Recoded",
    "Refined",
    "StorageError",
    "__version__",
    "connect",
    "extension_path",
    "load",
]

_HOMES = {
    "collection": ("AddReport", "Collection", "Encoded", "Estimate", "Recoded", "Refined"),
    "concepts": ("Concept",),
    "connection": ("connect", "load"),
    "encode": ("Encoder", "Head", "Quantizer"),
    "encode.vocabulary": ("TINY",),
    "model": ("Model",),
    "native": ("extension_path",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("catalog", "demo", "errors", "progress", "report", "scenes", "store", *_HOMES)


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = _version()
    elif name in __all__:
        value = getattr(import_module(f"boxwood.{_HOME.get(name, 'errors')}"), name)
    elif name in _MODULES:
        value = import_module(f"boxwood.{name}")
    else:
        raise AttributeError(f"module 'boxwood' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("boxwood")
    except PackageNotFoundError:  # run from a source tree
        from boxwood import native

        return native.version()
